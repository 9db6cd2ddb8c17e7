//! A small shell: POSIX' language for what runs to its end. It starts no processes, of which a component has none; every
//! program is one of the [`crate::programs`], and the stages of a pipeline run one after the other.

mod arithmetic;
mod conditions;
mod expansion;
mod pattern;
mod syntax;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use crate::io::{Input, Io, Output};
use crate::programs;
use syntax::{Node, Redirection, Simple, Target};

/// Functions that call each other, and scripts within scripts; more would end the component's stack.
const CALLS_MAX: u32 = 60;

/// Where a script goes on, when not with the next command.
#[derive(Debug, PartialEq)]
pub enum Flow {
    Break(u32),
    Continue(u32),
    Return(u8),
    Exit(u8),
}

type Done = Result<u8, Flow>;

/// What a script can see and change.
#[derive(Clone)]
pub struct Shell {
    pub variables: HashMap<String, String>,
    pub exported: HashSet<String>,
    /// `$0`, `$1` and so on.
    pub arguments: Vec<String>,
    pub directory: PathBuf,
    status: u8,
    functions: HashMap<String, Rc<Node>>,
    /// Trapped signals and what is done then; none comes but `EXIT`.
    traps: HashMap<String, String>,
    ends_on_failure: bool,
    random: u32,
    calls: u32,
}

impl Shell {
    /// With a component's environment.
    pub fn new(environment: impl IntoIterator<Item = (String, String)>, directory: PathBuf) -> Shell {
        let variables: HashMap<_, _> = environment.into_iter().collect();
        Shell {
            exported: variables.keys().cloned().collect(),
            variables,
            arguments: vec!["sh".to_owned()],
            directory,
            status: 0,
            functions: HashMap::new(),
            traps: HashMap::new(),
            ends_on_failure: false,
            random: std::time::UNIX_EPOCH.elapsed().map_or(1, |elapsed| elapsed.subsec_nanos()),
            calls: 0,
        }
    }

    /// What the programs it runs see.
    pub fn environment(&self) -> Vec<(String, String)> {
        let mut environment: Vec<_> =
            self.exported.iter().filter_map(|name| Some((name.clone(), self.variables.get(name)?.clone()))).collect();
        environment.sort();
        environment
    }

    /// A path as programs are given it.
    pub fn path(&self, path: &str) -> PathBuf {
        self.directory.join(path)
    }

    /// Runs `sh` with these arguments: a script after `-c`, in a file, or in its input.
    pub fn main(&mut self, arguments: &[String], io: &mut Io) -> u8 {
        let mut rest = arguments;
        let mut is_text = false;
        while let Some((first, others)) = rest.split_first()
            && let Some(flags) = first.strip_prefix('-')
            && !flags.is_empty()
        {
            rest = others;
            for flag in flags.chars() {
                match flag {
                    'c' => is_text = true,
                    'e' => self.ends_on_failure = true,
                    // What is run is not shown, nor is anything interactive.
                    'x' | 'u' | 'l' | 'i' | 's' => {}
                    other => {
                        self.complain(io, &format!("bad option '-{other}'"));
                        return 2;
                    }
                }
            }
        }
        let (text, names) = match (rest, is_text) {
            ([text, names @ ..], true) => (text.clone(), names.to_vec()),
            ([], true) => {
                self.complain(io, "-c requires an argument");
                return 2;
            }
            ([file, ..], false) => match std::fs::read(self.path(file)) {
                Ok(text) => (String::from_utf8_lossy(&text).into_owned(), rest.to_vec()),
                Err(error) => {
                    self.complain(io, &format!("can't open '{file}': {error}"));
                    return 127;
                }
            },
            ([], false) => {
                let done = self.typed(io);
                return self.finished(done, io);
            }
        };
        if !names.is_empty() {
            self.arguments = names;
        }
        self.script(&text, io)
    }

    /// Runs a script to its end.
    pub fn script(&mut self, text: &str, io: &mut Io) -> u8 {
        let done = self.text(text, io);
        self.finished(done, io)
    }

    /// Runs what the input says, each command as soon as it is there.
    fn typed(&mut self, io: &mut Io) -> Done {
        let (mut said, mut status) = (String::new(), 0);
        while let Some(line) = io.input.line() {
            said.push_str(&line);
            said.push('\n');
            // What goes on in the next line is no command yet.
            if !line.ends_with('\\') && syntax::parse(&said).is_ok() {
                status = self.text(&std::mem::take(&mut said), io)?;
            }
        }
        if said.is_empty() { Ok(status) } else { self.text(&said, io) }
    }

    fn finished(&mut self, done: Done, io: &mut Io) -> u8 {
        let status = self.ended(done);
        self.status = status;
        match self.traps.remove("EXIT") {
            Some(last) => match self.text(&last, io) {
                Err(Flow::Exit(status)) => status,
                _ => status,
            },
            None => status,
        }
    }

    fn ended(&self, done: Done) -> u8 {
        match done {
            Ok(status) | Err(Flow::Exit(status) | Flow::Return(status)) => status,
            Err(Flow::Break(_) | Flow::Continue(_)) => self.status,
        }
    }

    /// Says what is wrong, as the program that it was called as.
    fn complain(&self, io: &Io, wrong: &str) {
        io.errors.line(&format!("{}: {wrong}", self.arguments.first().map_or("sh", String::as_str)));
    }

    /// Runs a text as part of this script.
    fn text(&mut self, text: &str, io: &mut Io) -> Done {
        match syntax::parse(text) {
            Ok(node) => self.nested(|shell| shell.run(&node, io)),
            Err(wrong) => {
                self.complain(io, &format!("{wrong}"));
                Err(Flow::Exit(2))
            }
        }
    }

    fn nested(&mut self, work: impl FnOnce(&mut Shell) -> Done) -> Done {
        if self.calls >= CALLS_MAX {
            return Err(Flow::Exit(2));
        }
        self.calls += 1;
        let done = work(self);
        self.calls -= 1;
        done
    }

    /// Runs a part of a script in a shell of its own, whose changes nobody sees.
    fn apart(&self, node: &Node, io: &mut Io) -> u8 {
        let mut shell = self.clone();
        shell.traps.clear();
        let done = shell.nested(|shell| shell.run(node, io));
        let status = shell.ended(done);
        shell.status = status;
        match shell.traps.remove("EXIT") {
            Some(last) => drop(shell.text(&last, io)),
            None => {}
        }
        status
    }

    fn run(&mut self, node: &Node, io: &mut Io) -> Done {
        let status = match node {
            Node::List(nodes) => {
                let mut status = 0;
                for node in nodes {
                    status = self.run(node, io)?;
                }
                return Ok(status);
            }
            Node::And(left, right) | Node::Or(left, right) => {
                let status = self.condition(left, io)?;
                match (status == 0) == matches!(node, Node::And(..)) {
                    true => return self.run(right, io),
                    false => status,
                }
            }
            Node::If { arms, otherwise } => {
                for (condition, body) in arms {
                    if self.condition(condition, io)? == 0 {
                        return self.run(body, io);
                    }
                }
                match otherwise {
                    Some(body) => return self.run(body, io),
                    None => 0,
                }
            }
            Node::Loop { until, condition, body } => {
                let mut status = 0;
                while (self.condition(condition, io)? == 0) != *until {
                    match self.turn(body, io)? {
                        Some(done) => status = done,
                        None => break,
                    }
                }
                status
            }
            Node::For { name, words, body } => {
                let values = match words {
                    Some(words) => match self.fields(words, io) {
                        Ok(values) => values,
                        Err(wrong) => return self.refuse(&wrong, io),
                    },
                    None => self.arguments.iter().skip(1).cloned().collect(),
                };
                let mut status = 0;
                for value in values {
                    self.variables.insert(name.clone(), value);
                    match self.turn(body, io)? {
                        Some(done) => status = done,
                        None => break,
                    }
                }
                status
            }
            Node::Case { word, arms } => {
                let value = match self.value(word, io) {
                    Ok(value) => value,
                    Err(wrong) => return self.refuse(&wrong, io),
                };
                for (patterns, body) in arms {
                    for pattern in patterns {
                        let pattern = match self.pattern(pattern, io) {
                            Ok(pattern) => pattern,
                            Err(wrong) => return self.refuse(&wrong, io),
                        };
                        if pattern::matches(&pattern, &value) {
                            return self.run(body, io);
                        }
                    }
                }
                0
            }
            Node::Subshell(node) => self.apart(node, io),
            Node::Test(operands) => match self.conditional(operands, io) {
                Ok(holds) => u8::from(!holds),
                Err(wrong) => {
                    self.complain(io, &format!("{wrong}"));
                    2
                }
            },
            Node::Function(name, body) => {
                self.functions.insert(name.clone(), body.clone());
                0
            }
            Node::Pipeline { negated, stages } => {
                let status = self.pipeline(stages, io)?;
                self.status = if *negated { u8::from(status == 0) } else { status };
                // What is negated may fail.
                return if *negated { Ok(self.status) } else { self.settle(self.status) };
            }
            Node::Redirected(node, redirections) => match self.redirect(redirections, io) {
                Ok(mut io) => return self.run(node, &mut io),
                Err(wrong) => {
                    self.complain(io, &format!("{wrong}"));
                    1
                }
            },
            Node::Simple(simple) => {
                let status = self.simple(simple, io)?;
                return self.settle(status);
            }
        };
        self.status = status;
        Ok(status)
    }

    /// A failure ends the script where `set -e` asks for it.
    fn settle(&mut self, status: u8) -> Done {
        self.status = status;
        if status != 0 && self.ends_on_failure { Err(Flow::Exit(status)) } else { Ok(status) }
    }

    /// What is asked for may fail.
    fn condition(&mut self, node: &Node, io: &mut Io) -> Done {
        let ends = std::mem::take(&mut self.ends_on_failure);
        let done = self.run(node, io);
        self.ends_on_failure = ends;
        done
    }

    /// One turn of a loop; none when it has ended.
    fn turn(&mut self, body: &Node, io: &mut Io) -> Result<Option<u8>, Flow> {
        match self.run(body, io) {
            Ok(status) => Ok(Some(status)),
            Err(Flow::Break(0 | 1)) => Ok(None),
            Err(Flow::Continue(0 | 1)) => Ok(Some(0)),
            Err(Flow::Break(more)) => Err(Flow::Break(more - 1)),
            Err(Flow::Continue(more)) => Err(Flow::Continue(more - 1)),
            Err(flow) => Err(flow),
        }
    }

    fn pipeline(&mut self, stages: &[Node], io: &mut Io) -> Done {
        let (last, before) = stages.split_last().expect("a pipeline has a stage");
        let mut input = io.input.clone();
        for stage in before {
            let printed = Output::buffer();
            let mut io = Io { input: input.clone(), output: printed.clone(), errors: io.errors.clone() };
            self.apart(stage, &mut io);
            input = Input::bytes(printed.taken());
        }
        let mut io = Io { input, ..io.clone() };
        if before.is_empty() { self.run(last, &mut io) } else { Ok(self.apart(last, &mut io)) }
    }

    fn refuse(&mut self, wrong: &str, io: &mut Io) -> Done {
        self.complain(io, &format!("{wrong}"));
        Err(Flow::Exit(2))
    }

    fn redirect(&mut self, redirections: &[Redirection], io: &mut Io) -> Result<Io, String> {
        let mut changed = io.clone();
        for redirection in redirections {
            let output = match &redirection.target {
                Target::Here(text) => {
                    changed.input = Input::bytes(self.value(text, io)?.into_bytes());
                    continue;
                }
                Target::Read(word) => {
                    let name = self.value(word, io)?;
                    changed.input = Input::file(&self.path(&name))
                        .map_err(|error| format!("can't open {name}: {}", programs::reason(&error)))?;
                    continue;
                }
                Target::Same(0) => continue,
                Target::Same(1) => changed.output.clone(),
                Target::Same(2) => changed.errors.clone(),
                Target::Same(other) => return Err(format!("{other}: bad file descriptor")),
                Target::Write(word) | Target::Append(word) => {
                    let name = self.value(word, io)?;
                    let is_append = matches!(redirection.target, Target::Append(_));
                    Output::file(&self.path(&name), is_append)
                        .map_err(|error| format!("can't create {name}: {}", programs::reason(&error)))?
                }
            };
            match redirection.descriptor {
                1 => changed.output = output,
                2 => changed.errors = output,
                other => return Err(format!("{other}: descriptors beside 0, 1 and 2 are not supported")),
            }
        }
        Ok(changed)
    }

    fn simple(&mut self, simple: &Simple, io: &mut Io) -> Done {
        let (fields, assigned) = match self.prepared(simple, io) {
            Ok(prepared) => prepared,
            Err(wrong) => return self.refuse(&wrong, io),
        };
        let mut redirected = match self.redirect(&simple.redirections, io) {
            Ok(io) => io,
            Err(wrong) => {
                self.complain(io, &format!("{wrong}"));
                return Ok(1);
            }
        };
        let Some((name, arguments)) = fields.split_first() else {
            self.variables.extend(assigned);
            // The status is that of a command within.
            return Ok(self.status);
        };
        // Set for this command alone.
        let before: Vec<_> = assigned
            .iter()
            .map(|(name, _)| (name.clone(), self.variables.get(name).cloned(), self.exported.contains(name)))
            .collect();
        for (name, value) in assigned {
            self.exported.insert(name.clone());
            self.variables.insert(name, value);
        }
        let done = self.call(name, arguments, &mut redirected, io);
        for (name, value, was_exported) in before {
            if !was_exported {
                self.exported.remove(&name);
            }
            match value {
                Some(value) => drop(self.variables.insert(name, value)),
                None => drop(self.variables.remove(&name)),
            }
        }
        done
    }

    fn prepared(&mut self, simple: &Simple, io: &mut Io) -> Result<(Vec<String>, Vec<(String, String)>), String> {
        if !simple.words.is_empty() || simple.assignments.iter().all(|(_, word)| !has_command(word)) {
            let was = self.status;
            let fields = self.fields(&simple.words, io)?;
            let mut assigned = Vec::new();
            for (name, word) in &simple.assignments {
                assigned.push((name.clone(), self.value(word, io)?));
            }
            if simple.words.is_empty() {
                self.status = 0;
            } else {
                self.status = was;
            }
            return Ok((fields, assigned));
        }
        self.status = 0;
        let mut assigned = Vec::new();
        for (name, word) in &simple.assignments {
            assigned.push((name.clone(), self.value(word, io)?));
        }
        Ok((Vec::new(), assigned))
    }

    /// Runs a builtin, a function or a program.
    fn call(&mut self, name: &str, arguments: &[String], io: &mut Io, outer: &mut Io) -> Done {
        if let Some(done) = self.builtin(name, arguments, io, outer) {
            return done;
        }
        if let Some(body) = self.functions.get(name).cloned() {
            let zero = self.arguments.first().cloned().unwrap_or_default();
            let own = std::iter::once(zero).chain(arguments.iter().cloned()).collect();
            let before = std::mem::replace(&mut self.arguments, own);
            let done = self.nested(|shell| shell.run(&body, io));
            self.arguments = before;
            return match done {
                Err(Flow::Return(status)) => Ok(status),
                done => done,
            };
        }
        Ok(self.program(name, arguments, io))
    }

    fn program(&mut self, name: &str, arguments: &[String], io: &mut Io) -> u8 {
        if self.calls >= CALLS_MAX {
            self.complain(io, &format!("{name}: nested too deeply"));
            return 2;
        }
        self.calls += 1;
        let status = programs::run(name, arguments, self, io).unwrap_or_else(|| {
            self.complain(io, &format!("{name}: not found"));
            127
        });
        self.calls -= 1;
        status
    }

    fn builtin(&mut self, name: &str, arguments: &[String], io: &mut Io, outer: &mut Io) -> Option<Done> {
        let first = arguments.first().map_or("", String::as_str);
        let number = |default: u8| match first {
            "" => Ok(default),
            // Exit codes are bytes.
            text => text
                .parse::<i64>()
                .map(|number| number.rem_euclid(256) as u8)
                .map_err(|_| format!("Illegal number: {text}")),
        };
        let flow = |make: fn(u8) -> Flow, default: u8, io: &mut Io| match number(default) {
            Ok(number) => Err(make(number)),
            Err(wrong) => {
                self.complain(io, &format!("{wrong}"));
                Err(Flow::Exit(2))
            }
        };
        Some(match name {
            ":" => Ok(0),
            "exit" => flow(Flow::Exit, self.status, io),
            "return" => flow(Flow::Return, self.status, io),
            "break" => flow(|levels| Flow::Break(u32::from(levels)), 1, io),
            "continue" => flow(|levels| Flow::Continue(u32::from(levels)), 1, io),
            "cd" => {
                let wanted = if first.is_empty() { "/" } else { first };
                let path = normal(&self.path(wanted));
                match path.is_dir() || path == Path::new("/") {
                    true => {
                        self.directory = path;
                        Ok(0)
                    }
                    false => {
                        self.complain(io, &format!("cd: can't cd to {wanted}: No such file or directory"));
                        Ok(2)
                    }
                }
            }
            "export" | "readonly" | "local" => {
                for argument in arguments.iter().filter(|argument| !argument.starts_with('-')) {
                    let (name_of, value) =
                        argument.split_once('=').map_or((argument.as_str(), None), |(name, value)| (name, Some(value)));
                    if let Some(value) = value {
                        self.variables.insert(name_of.to_owned(), value.to_owned());
                    }
                    if name == "export" {
                        self.exported.insert(name_of.to_owned());
                    }
                }
                Ok(0)
            }
            "unset" => {
                for argument in arguments {
                    self.variables.remove(argument);
                    self.exported.remove(argument);
                    self.functions.remove(argument);
                }
                Ok(0)
            }
            "set" => self.set(arguments, io),
            "shift" => match number(1) {
                Ok(count) if usize::from(count) < self.arguments.len() => {
                    self.arguments.drain(1..=usize::from(count));
                    Ok(0)
                }
                _ => Ok(1),
            },
            "trap" => {
                if let Some((action, signals)) = arguments.split_first() {
                    for signal in signals {
                        let signal = if signal == "0" { "EXIT" } else { signal.as_str() };
                        match action.as_str() {
                            "-" => drop(self.traps.remove(signal)),
                            action => drop(self.traps.insert(signal.to_owned(), action.to_owned())),
                        }
                    }
                }
                Ok(0)
            }
            "eval" => self.text(&arguments.join(" "), io),
            "exec" => match arguments.split_first() {
                Some((name, arguments)) => Err(Flow::Exit(self.program(name, arguments, io))),
                None => {
                    *outer = io.clone();
                    Ok(0)
                }
            },
            "." | "source" => match std::fs::read_to_string(self.path(first)) {
                Ok(text) => self.text(&text, io),
                Err(error) => {
                    self.complain(io, &format!("can't open '{first}': {error}"));
                    Err(Flow::Exit(2))
                }
            },
            "read" => Ok(self.read(arguments, io)),
            // Nothing runs beside a script.
            "wait" => Ok(0),
            "command" | "type" | "which" if first == "-v" || name != "command" => {
                let wanted = arguments.iter().find(|argument| !argument.starts_with('-')).map_or("", String::as_str);
                let is_known = self.functions.contains_key(wanted) || programs::exists(wanted);
                if is_known {
                    io.output.line(wanted);
                }
                Ok(u8::from(!is_known))
            }
            "command" | "builtin" => match arguments.split_first() {
                Some((name, arguments)) => Ok(self.program(name, arguments, io)),
                None => Ok(0),
            },
            "pwd" => {
                io.output.line(&self.directory.to_string_lossy());
                Ok(0)
            }
            _ => return None,
        })
    }

    fn set(&mut self, arguments: &[String], io: &mut Io) -> Done {
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next() {
            match argument.as_str() {
                "--" => {
                    self.arguments.truncate(1);
                    self.arguments.extend(rest.by_ref().cloned());
                }
                // Whose names are not looked at: the others change nothing here.
                "-o" | "+o" => drop(rest.next()),
                flags if flags.starts_with(['-', '+']) => {
                    if flags.contains('e') {
                        self.ends_on_failure = flags.starts_with('-');
                    }
                }
                other => {
                    self.complain(io, &format!("set: {other}: write \"--\" before arguments"));
                    return Ok(2);
                }
            }
        }
        Ok(0)
    }

    fn read(&mut self, arguments: &[String], io: &mut Io) -> u8 {
        let Some(line) = io.input.line() else { return 1 };
        let names: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
        let mut rest = line.trim();
        for (at, name) in names.iter().enumerate() {
            let value = if at + 1 == names.len() { rest } else { rest.split_whitespace().next().unwrap_or_default() };
            self.variables.insert((*name).clone(), value.to_owned());
            rest = rest[value.len()..].trim_start();
        }
        0
    }
}

fn has_command(word: &[syntax::Part]) -> bool {
    word.iter().any(|part| matches!(part, syntax::Part::Command { .. }))
}

/// Without `.` and `..`.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::from("/");
    for component in path.components() {
        match component {
            std::path::Component::ParentDir => drop(normal.pop()),
            std::path::Component::Normal(name) => normal.push(name),
            _ => {}
        }
    }
    normal
}
