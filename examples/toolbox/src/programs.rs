//! The programs that scripts call: as much of each as the test suite's scripts ask for. An option that is not known is an error,
//! never ignored.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::io::{Input, Io};
use crate::shell::Shell;

type Program = fn(&[String], &mut Shell, &mut Io) -> Result<u8, String>;

const PROGRAMS: &[(&str, Program)] = &[
    ("[", bracket),
    ("awk", awk),
    ("basename", basename),
    ("cat", cat),
    ("chmod", unsupported),
    ("cp", cp),
    ("cut", cut),
    ("date", date),
    ("dirname", dirname),
    ("echo", echo),
    ("env", env),
    ("expr", expr),
    ("false", |_, _, _| Ok(1)),
    ("find", find),
    ("grep", grep),
    ("gzip", gzip),
    ("head", head),
    ("hexdump", hexdump),
    ("hostname", hostname),
    ("ls", ls),
    ("mkdir", mkdir),
    ("mv", mv),
    ("printenv", printenv),
    ("printf", printf),
    ("rm", rm),
    ("seq", seq),
    ("sleep", pause),
    ("sort", sort),
    ("sync", |_, _, _| Ok(0)),
    ("tail", tail),
    ("tee", tee),
    ("test", test),
    ("touch", touch),
    ("tr", tr),
    ("true", |_, _, _| Ok(0)),
    ("uniq", uniq),
    ("uptime", uptime),
    ("wc", wc),
    ("xargs", xargs),
];

/// Whether a script may call it.
pub fn exists(name: &str) -> bool {
    let known = |name: &str| {
        PROGRAMS.iter().any(|(known, _)| *known == name)
            || ["sh", "ash", "bash", "busybox"].contains(&name)
            || crate::clients::exists(name)
    };
    program_name(name).is_some_and(known)
}

/// The program of a path: those of an image lie in its usual places.
fn program_name(name: &str) -> Option<&str> {
    match name.rsplit_once('/') {
        None => Some(name),
        Some((folder, name)) => {
            ["/bin", "/usr/bin", "/sbin", "/usr/sbin", "/usr/local/bin"].contains(&folder).then_some(name)
        }
    }
}

/// Runs a program; none when there is none of this name.
pub fn run(name: &str, arguments: &[String], shell: &mut Shell, io: &mut Io) -> Option<u8> {
    if let Some(status) = crate::agnhost(name, arguments) {
        return Some(status);
    }
    let called = name;
    let name = program_name(name)?;
    let done = match name {
        "sh" | "ash" | "bash" => {
            let mut inner = Shell::new(shell.environment(), shell.directory.clone());
            inner.arguments = vec![called.to_owned()];
            return Some(inner.main(arguments, io));
        }
        "busybox" => return arguments.split_first().and_then(|(name, arguments)| run(name, arguments, shell, io)),
        _ => match PROGRAMS.iter().find(|(known, _)| *known == name) {
            Some((_, program)) => program(arguments, shell, io),
            None => return crate::clients::run(name, arguments, io),
        },
    };
    Some(done.unwrap_or_else(|wrong| {
        io.errors.line(&format!("{name}: {wrong}"));
        if name == "test" || name == "[" { 2 } else { 1 }
    }))
}

/// Flags of one letter, and what is not one. `with` are the letters that a value follows.
struct Flags<'a> {
    letters: Vec<(char, String)>,
    rest: Vec<&'a str>,
}

impl<'a> Flags<'a> {
    fn read(arguments: &'a [String], known: &str, with: &str) -> Result<Flags<'a>, String> {
        let mut flags = Flags { letters: Vec::new(), rest: Vec::new() };
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            if argument == "--" {
                flags.rest.extend(arguments.by_ref().map(String::as_str));
                break;
            }
            let Some(letters) = argument.strip_prefix('-').filter(|letters| !letters.is_empty()) else {
                flags.rest.push(argument);
                continue;
            };
            let mut letters = letters.chars();
            while let Some(letter) = letters.next() {
                if with.contains(letter) {
                    let value = letters.as_str().to_owned();
                    let value = if value.is_empty() {
                        arguments.next().cloned().ok_or(format!("option requires an argument -- {letter}"))?
                    } else {
                        value
                    };
                    flags.letters.push((letter, value));
                    break;
                }
                if !known.contains(letter) {
                    return Err(format!("unrecognized option: {argument}"));
                }
                flags.letters.push((letter, String::new()));
            }
        }
        Ok(flags)
    }

    fn has(&self, letter: char) -> bool {
        self.letters.iter().any(|(found, _)| *found == letter)
    }

    fn value(&self, letter: char) -> Option<&str> {
        self.letters.iter().find(|(found, _)| *found == letter).map(|(_, value)| value.as_str())
    }

    fn number<T: std::str::FromStr>(&self, letter: char) -> Result<Option<T>, String> {
        self.value(letter).map(|value| value.parse().map_err(|_| format!("invalid number '{value}'"))).transpose()
    }
}

fn told(path: &str) -> impl Fn(std::io::Error) -> String + '_ {
    move |error| format!("{path}: {}", reason(&error))
}

/// As C libraries say it.
pub fn reason(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => "No such file or directory".to_owned(),
        std::io::ErrorKind::PermissionDenied => "Permission denied".to_owned(),
        std::io::ErrorKind::AlreadyExists => "File exists".to_owned(),
        std::io::ErrorKind::IsADirectory => "Is a directory".to_owned(),
        std::io::ErrorKind::ReadOnlyFilesystem => "Read-only file system".to_owned(),
        _ => error.to_string(),
    }
}

/// The content of the files, or of the input where there are none.
fn contents(files: &[&str], shell: &Shell, io: &mut Io) -> Result<Vec<u8>, String> {
    if files.is_empty() {
        return Ok(io.input.all());
    }
    let mut all = Vec::new();
    for file in files {
        match *file {
            "-" => all.append(&mut io.input.all()),
            file => all.append(&mut Input::file(&shell.path(file)).map_err(told(file))?.all()),
        }
    }
    Ok(all)
}

fn lines(files: &[&str], shell: &Shell, io: &mut Io) -> Result<Vec<String>, String> {
    Ok(String::from_utf8_lossy(&contents(files, shell, io)?).lines().map(str::to_owned).collect())
}

fn unsupported(_: &[String], _: &mut Shell, _: &mut Io) -> Result<u8, String> {
    Err("a component's files have no modes and no owners".to_owned())
}

fn test(arguments: &[String], shell: &mut Shell, _: &mut Io) -> Result<u8, String> {
    shell.test(arguments).map(|holds| u8::from(!holds))
}

fn bracket(arguments: &[String], shell: &mut Shell, _: &mut Io) -> Result<u8, String> {
    match arguments.split_last() {
        Some((last, arguments)) if last == "]" => shell.test(arguments).map(|holds| u8::from(!holds)),
        _ => Err("missing ]".to_owned()),
    }
}

fn cat(arguments: &[String], shell: &mut Shell, io: &mut Io) -> Result<u8, String> {
    let flags = Flags::read(arguments, "u", "")?;
    let mut status = 0;
    for file in if flags.rest.is_empty() { &["-"] } else { flags.rest.as_slice() } {
        if *file == "-" {
            while let bytes = io.input.some()
                && !bytes.is_empty()
            {
                io.output.write(&bytes);
            }
            continue;
        }
        match contents(&[file], shell, io) {
            Ok(bytes) => {
                io.output.write(&bytes);
            }
            Err(wrong) => {
                io.errors.line(&format!("cat: {wrong}"));
                status = 1;
            }
        }
    }
    Ok(status)
}

fn echo(arguments: &[String], _: &mut Shell, io: &mut Io) -> Result<u8, String> {
    let mut rest = arguments;
    let (mut ends_line, mut escapes) = (true, false);
    while let Some((flags, others)) = rest.split_first() {
        let letters = flags.strip_prefix('-').unwrap_or_default();
        if letters.is_empty() || !letters.chars().all(|letter| "neE".contains(letter)) {
            break;
        }
        ends_line &= !letters.contains('n');
        escapes |= letters.contains('e');
        rest = others;
    }
    let text = rest.join(" ");
    let text = if escapes { escaped(&text) } else { text };
    Ok(u8::from(!io.output.write(format!("{text}{}", if ends_line { "\n" } else { "" }).as_bytes())))
}

/// With what `\n` and its like stand for.
fn escaped(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        match rest.next() {
            Some('n') => out.push('\n'),
            Some('t') => out.push('\t'),
            Some('r') => out.push('\r'),
            Some('\\') => out.push('\\'),
            Some('0') => {
                let digits: String = rest.clone().take(3).take_while(|c| c.is_digit(8)).collect();
                rest.by_ref().take(digits.len()).for_each(drop);
                out.extend(
                    u32::from_str_radix(&digits, 8).ok().or(digits.is_empty().then_some(0)).and_then(char::from_u32),
                );
            }
            Some(other) => out.extend(['\\', other]),
            None => out.push('\\'),
        }
    }
    out
}

fn printf(arguments: &[String], _: &mut Shell, io: &mut Io) -> Result<u8, String> {
    let (format, mut values) = arguments.split_first().ok_or("a format is needed")?;
    let format = escaped(format);
    loop {
        let before = values.len();
        let (mut out, mut rest) = (String::new(), format.chars().peekable());
        while let Some(c) = rest.next() {
            if c != '%' {
                out.push(c);
                continue;
            }
            let mut width = String::new();
            while let Some(c) = rest.next_if(|c| c.is_ascii_digit() || *c == '-') {
                width.push(c);
            }
            let mut next = || {
                let (first, others) =
                    values.split_first().map_or(("", values), |(first, others)| (first.as_str(), others));
                values = others;
                first.to_owned()
            };
            let text = match rest.next() {
                Some('%') => "%".to_owned(),
                Some('s') => next(),
                Some('b') => escaped(&next()),
                Some('d' | 'i' | 'u') => next().trim().parse::<i64>().unwrap_or(0).to_string(),
                Some('x') => format!("{:x}", next().trim().parse::<i64>().unwrap_or(0)),
                other => return Err(format!("invalid format %{}", other.map_or(String::new(), String::from))),
            };
            let (is_left, is_zero) = (width.starts_with('-'), width.starts_with('0'));
            let width = width.trim_start_matches('-').parse::<usize>().unwrap_or(0).min(1000);
            out.push_str(&match (is_left, is_zero) {
                (true, _) => format!("{text:<width$}"),
                (_, true) => format!("{text:0>width$}"),
                _ => format!("{text:>width$}"),
            });
        }
        io.output.write(out.as_bytes());
        if values.is_empty() || values.len() == before {
            return Ok(0);
        }
    }
}

fn env(arguments: &[String], shell: &mut Shell, io: &mut Io) -> Result<u8, String> {
    let assigned = arguments.iter().take_while(|argument| argument.contains('=')).count();
    let (assigned, command) = arguments.split_at(assigned);
    let mut inner = shell.clone();
    for (name, value) in assigned.iter().filter_map(|argument| argument.split_once('=')) {
        inner.exported.insert(name.to_owned());
        inner.variables.insert(name.to_owned(), value.to_owned());
    }
    match command.split_first() {
        Some((name, arguments)) => {
            run(name, arguments, &mut inner, io).ok_or(format!("can't execute '{name}': No such file or directory"))
        }
        None => {
            inner.environment().iter().for_each(|(name, value)| io.output.line(&format!("{name}={value}")));
            Ok(0)
        }
    }
}

fn printenv(arguments: &[String], shell: &mut Shell, io: &mut Io) -> Result<u8, String> {
    let mut status = 0;
    for (name, value) in shell.environment() {
        if arguments.is_empty() {
            io.output.line(&format!("{name}={value}"));
        }
    }
    for name in arguments {
        match shell.variables.get(name).filter(|_| shell.exported.contains(name)) {
            Some(value) => io.output.line(value),
            None => status = 1,
        }
    }
    Ok(status)
}

/// Waits as long as numbers and units say.
fn pause(arguments: &[String], _: &mut Shell, _: &mut Io) -> Result<u8, String> {
    let mut seconds = 0.0;
    if arguments.is_empty() {
        return Err("a time is needed".to_owned());
    }
    for argument in arguments {
        let (number, unit) = match argument.find(|c: char| c.is_ascii_alphabetic()) {
            _ if argument == "infinity" || argument == "inf" => ("1e9", ""),
            Some(at) => argument.split_at(at),
            None => (argument.as_str(), ""),
        };
        let unit = match unit {
            "" | "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            "d" => 86400.0,
            _ => return Err(format!("invalid number '{argument}'")),
        };
        let number: f64 = number.parse().map_err(|_| format!("invalid number '{argument}'"))?;
        seconds += number * unit;
    }
    sleep(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::from_secs(1 << 30)));
    Ok(0)
}

/// `hexdump -C`: sixteen bytes a line, in hexadecimal and as text.
fn hexdump(arguments: &[String], shell: &mut Shell, io: &mut Io) -> Result<u8, String> {
    let flags = Flags::read(arguments, "C", "")?;
    if !flags.has('C') {
        return Err("only -C is supported".to_owned());
    }
    let bytes = contents(&flags.rest, shell, io)?;
    for (number, line) in bytes.chunks(16).enumerate() {
        let hex: Vec<String> = line.iter().map(|byte| format!("{byte:02x}")).collect();
        let (left, right) = hex.split_at(hex.len().min(8));
        let text: String = line
            .iter()
            .map(|byte| if byte.is_ascii_graphic() || *byte == b' ' { char::from(*byte) } else { '.' })
            .collect();
        io.output.line(&format!("{:08x}  {:<23}  {:<23}  |{text}|", number * 16, left.join(" "), right.join(" ")));
    }
    if !bytes.is_empty() {
        io.output.line(&format!("{:08x}", bytes.len()));
    }
    Ok(0)
}

fn hostname(arguments: &[String], shell: &mut Shell, io: &mut Io) -> Result<u8, String> {
    Flags::read(arguments, "s", "")?;
    io.output.line(shell.variables.get("HOSTNAME").map_or("localhost", String::as_str));
    Ok(0)
}

fn touch(arguments: &[String], shell: &mut Shell, _: &mut Io) -> Result<u8, String> {
    for file in Flags::read(arguments, "", "")?.rest {
        fs::File::options().create(true).append(true).open(shell.path(file)).map_err(told(file))?;
    }
    Ok(0)
}

fn rm(arguments: &[String], shell: &mut Shell, _: &mut Io) -> Result<u8, String> {
    let flags = Flags::read(arguments, "rRfv", "")?;
    let (is_deep, is_forced) = (flags.has('r') || flags.has('R'), flags.has('f'));
    for file in flags.rest {
        let path = shell.path(file);
        let removed = match path.symlink_metadata() {
            Ok(metadata) if metadata.is_dir() && is_deep => fs::remove_dir_all(&path),
            Ok(_) => fs::remove_file(&path),
            Err(error) => Err(error),
        };
        match removed {
            Err(error) if is_forced && error.kind() == std::io::ErrorKind::NotFound => {}
            removed => removed.map_err(|error| format!("can't remove '{file}': {}", reason(&error)))?,
        }
    }
    Ok(0)
}

fn mkdir(arguments: &[String], shell: &mut Shell, _: &mut Io) -> Result<u8, String> {
    let flags = Flags::read(arguments, "p", "")?;
    for file in &flags.rest {
        let path = shell.path(file);
        if flags.has('p') { fs::create_dir_all(path) } else { fs::create_dir(path) }
            .map_err(|error| format!("can't create directory '{file}': {}", reason(&error)))?;
    }
    Ok(0)
}

/// Sources and where each goes.
fn targets<'a>(flags: &Flags<'a>, shell: &Shell) -> Result<Vec<(&'a str, PathBuf)>, String> {
    let (to, from) =
        flags.rest.split_last().filter(|(_, from)| !from.is_empty()).ok_or("a source and a target are needed")?;
    let to = shell.path(to);
    Ok(from
        .iter()
        .map(|source| match (to.is_dir(), Path::new(source).file_name()) {
            (true, Some(name)) => (*source, to.join(name)),
            _ => (*source, to.clone()),
        })
        .collect())
}

fn cp(arguments: &[String], shell: &mut Shell, _: &mut Io) -> Result<u8, String> {
    for (source, target) in targets(&Flags::read(arguments, "f", "")?, shell)? {
        let bytes = fs::read(shell.path(source)).map_err(told(source))?;
        fs::write(&target, bytes).map_err(|error| format!("{}: {}", target.display(), reason(&error)))?;
    }
    Ok(0)
}

fn mv(arguments: &[String], shell: &mut Shell, io: &mut Io) -> Result<u8, String> {
    let flags = Flags::read(arguments, "fv", "")?;
    for (source, target) in targets(&flags, shell)? {
        let from = shell.path(source);
        // Between two volumes it is a copy.
        let moved = fs::rename(&from, &target).or_else(|_| {
            fs::read(&from).and_then(|bytes| fs::write(&target, bytes)).and_then(|()| fs::remove_file(&from))
        });
        moved.map_err(|error| format!("can't rename '{source}': {}", reason(&error)))?;
        if flags.has('v') {
            io.output.line(&format!("'{source}' -> '{}'", target.display()));
        }
    }
    Ok(0)
}

fn ls(arguments: &[String], shell: &mut Shell, io: &mut Io) -> Result<u8, String> {
    let flags = Flags::read(arguments, "1aA", "")?;
    for file in if flags.rest.is_empty() { &["."] } else { flags.rest.as_slice() } {
        let path = shell.path(file);
        if path.metadata().map_err(told(file))?.is_file() {
            io.output.line(file);
            continue;
        }
        let names =
            fs::read_dir(&path).map_err(told(file))?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut names: Vec<String> =
            names.filter(|name| flags.has('a') || flags.has('A') || !name.starts_with('.')).collect();
        names.sort();
        names.iter().for_each(|name| io.output.line(name));
    }
    Ok(0)
}

fn find(arguments: &[String], shell: &mut Shell, io: &mut Io) -> Result<u8, String> {
    let (mut roots, mut kind, mut name) = (Vec::new(), None, None);
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        match argument.as_str() {
            "-type" => kind = rest.next().cloned(),
            "-name" => name = rest.next().cloned(),
            flag if flag.starts_with('-') => return Err(format!("unrecognized: {flag}")),
            root => roots.push(root.to_owned()),
        }
    }
    let mut open: Vec<String> = if roots.is_empty() { vec![".".to_owned()] } else { roots };
    open.reverse();
    while let Some(path) = open.pop() {
        let full = shell.path(&path);
        let is_dir = full.symlink_metadata().map_err(told(&path))?.is_dir();
        let is_kind = kind.as_deref().is_none_or(|kind| (kind == "d") == is_dir);
        let own = Path::new(&path).file_name().map_or(path.clone(), |own| own.to_string_lossy().into_owned());
        if is_kind && name.as_deref().is_none_or(|name| own == name) {
            io.output.line(&path);
        }
        if is_dir {
            let mut inner: Vec<String> = fs::read_dir(&full)
                .map_err(told(&path))?
                .filter_map(|entry| {
                    Some(format!("{}/{}", path.trim_end_matches('/'), entry.ok()?.file_name().to_string_lossy()))
                })
                .collect();
            inner.sort_by(|a, b| b.cmp(a));
            open.append(&mut inner);
        }
    }
    Ok(0)
}

fn head(arguments: &[String], shell: &mut Shell, io: &mut Io) -> Result<u8, String> {
    let flags = Flags::read(arguments, "", "nc")?;
    let bytes = contents(&flags.rest, shell, io)?;
    let end = match (flags.number::<usize>('c')?, flags.number::<usize>('n')?) {
        (Some(count), _) => count.min(bytes.len()),
        (None, count) => bytes.split_inclusive(|byte| *byte == b'\n').take(count.unwrap_or(10)).map(<[u8]>::len).sum(),
    };
    io.output.write(&bytes[..end]);
    Ok(0)
}

fn tail(arguments: &[String], shell: &mut Shell, io: &mut Io) -> Result<u8, String> {
    let flags = Flags::read(arguments, "fF", "n")?;
    let follows = flags.has('f') || flags.has('F');
    let count = flags.value('n').unwrap_or("10");
    let number: usize = count.trim_start_matches('+').parse().map_err(|_| format!("invalid number '{count}'"))?;
    let bytes = if follows && flags.rest.is_empty() { Vec::new() } else { contents(&flags.rest, shell, io)? };
    let parts: Vec<&[u8]> = bytes.split_inclusive(|byte| *byte == b'\n').collect();
    let skipped = if count.starts_with('+') { number.saturating_sub(1) } else { parts.len().saturating_sub(number) };
    parts.iter().skip(skipped).for_each(|line| {
        io.output.write(line);
    });
    if !follows {
        return Ok(0);
    }
    let mut seen = bytes.len();
    loop {
        sleep(Duration::from_secs(1));
        let now = contents(&flags.rest, shell, io)?;
        if now.len() > seen {
            io.output.write(&now[seen..]);
        }
        seen = now.len();
    }
}

fn wc(arguments: &[String], shell: &mut Shell, io: &mut Io) -> Result<u8, String> {
    let flags = Flags::read(arguments, "lwc", "")?;
    let all = flags.letters.is_empty();
    for file in if flags.rest.is_empty() { &["-"] } else { flags.rest.as_slice() } {
        let bytes = contents(&[file], shell, io)?;
        let text = String::from_utf8_lossy(&bytes);
        let mut counts = Vec::new();
        for (letter, count) in
            [('l', text.matches('\n').count()), ('w', text.split_whitespace().count()), ('c', bytes.len())]
        {
            if all || flags.has(letter) {
                counts.push(count.to_string());
            }
        }
        if *file != "-" {
            counts.push((*file).to_owned());
        }
        io.output.line(&counts.join(" "));
    }
    Ok(0)
}

/// A pattern of text with `^`, `$`, `.` and `.*`, which is what scripts look for.
fn found(pattern: &str, line: &str) -> bool {
    fn here(pattern: &[char], text: &[char]) -> bool {
        match pattern {
            [] => true,
            ['$'] => text.is_empty(),
            ['\\', c, rest @ ..] => text.first() == Some(c) && here(rest, &text[1..]),
            [c, '*', rest @ ..] => (0..=text.len())
                .take_while(|count| *count == 0 || *c == '.' || text[count - 1] == *c)
                .any(|count| here(rest, &text[count..])),
            [c, rest @ ..] => text.first().is_some_and(|found| *c == '.' || found == c) && here(rest, &text[1..]),
        }
    }
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), line.chars().collect());
    match pattern.strip_prefix(&['^']) {
        Some(rest) => here(rest, &text),
        None => (0..=text.len()).any(|at| here(&pattern, &text[at..])),
    }
}

fn grep(arguments: &[String], shell: &mut Shell, io: &mut Io) -> Result<u8, String> {
    let flags = Flags::read(arguments, "qviFEcx", "e")?;
    let mut rest = flags.rest.clone();
    let pattern = match flags.value('e') {
        Some(pattern) => pattern.to_owned(),
        None if rest.is_empty() => return Err("a pattern is needed".to_owned()),
        None => rest.remove(0).to_owned(),
    };
    let fold = |text: &str| if flags.has('i') { text.to_lowercase() } else { text.to_owned() };
    let pattern = fold(&pattern);
    let fits = |line: &str| {
        let line = fold(line);
        let fits = match (flags.has('F'), flags.has('x')) {
            (_, true) => line == pattern,
            (true, _) => line.contains(&pattern),
            (false, _) => pattern.split(if flags.has('E') { '|' } else { '\n' }).any(|pattern| found(pattern, &line)),
        };
        fits != flags.has('v')
    };
    let lines: Vec<String> = lines(&rest, shell, io)?.into_iter().filter(|line| fits(line)).collect();
    match (flags.has('q'), flags.has('c')) {
        (true, _) => {}
        (_, true) => io.output.line(&lines.len().to_string()),
        _ => lines.iter().for_each(|line| io.output.line(line)),
    }
    Ok(u8::from(lines.is_empty()))
}

fn cut(arguments: &[String], shell: &mut Shell, io: &mut Io) -> Result<u8, String> {
    let flags = Flags::read(arguments, "s", "dfc")?;
    let (list, by_field) = flags
        .value('f')
        .map(|list| (list, true))
        .or(flags.value('c').map(|list| (list, false)))
        .ok_or("a list is needed")?;
    let delimiter = flags.value('d').unwrap_or("\t");
    let wanted = |number: usize| {
        list.split(',').any(|part| match part.split_once('-') {
            Some((from, to)) => from.parse().unwrap_or(1) <= number && number <= to.parse().unwrap_or(usize::MAX),
            None => part.parse() == Ok(number),
        })
    };
    for line in lines(&flags.rest, shell, io)? {
        if by_field && !line.contains(delimiter) {
            if !flags.has('s') {
                io.output.line(&line);
            }
            continue;
        }
        let line = match by_field {
            true => {
                let parts = line.split(delimiter).enumerate().filter(|(at, _)| wanted(at + 1));
                parts.map(|(_, part)| part).collect::<Vec<_>>().join(delimiter)
            }
            false => line.chars().enumerate().filter(|(at, _)| wanted(at + 1)).map(|(_, c)| c).collect(),
        };
        io.output.line(&line);
    }
    Ok(0)
}

fn tr(arguments: &[String], _: &mut Shell, io: &mut Io) -> Result<u8, String> {
    let flags = Flags::read(arguments, "d", "")?;
    let set = |text: &str| -> Vec<char> {
        let text: Vec<char> = escaped(text).chars().collect();
        let (mut set, mut at) = (Vec::new(), 0);
        while at < text.len() {
            match text.get(at + 1..at + 3) {
                Some(['-', to]) => {
                    set.extend(text[at]..=*to);
                    at += 3;
                }
                _ => {
                    set.push(text[at]);
                    at += 1;
                }
            }
        }
        set
    };
    let from = set(flags.rest.first().ok_or("a set is needed")?);
    let to = flags.rest.get(1).map(|text| set(text)).unwrap_or_default();
    if to.is_empty() && !flags.has('d') {
        return Err("a second set is needed".to_owned());
    }
    let text = String::from_utf8_lossy(&io.input.all()).into_owned();
    let out: String = text
        .chars()
        .filter_map(|c| match from.iter().position(|from| *from == c) {
            Some(_) if flags.has('d') => None,
            Some(at) => to.get(at).or(to.last()).copied(),
            None => Some(c),
        })
        .collect();
    io.output.write(out.as_bytes());
    Ok(0)
}

/// `awk '{print $N}'`, which is how scripts take a column.
fn awk(arguments: &[String], shell: &mut Shell, io: &mut Io) -> Result<u8, String> {
    let flags = Flags::read(arguments, "", "F")?;
    let (script, files) = flags.rest.split_first().ok_or("a script is needed")?;
    let columns = script
        .trim()
        .strip_prefix('{')
        .and_then(|rest| rest.strip_suffix('}'))
        .map(str::trim)
        .and_then(|rest| rest.strip_prefix("print"));
    let columns = columns.ok_or(format!("only '{{print $N}}' is supported, not {script:?}"))?;
    let mut wanted = Vec::new();
    for column in columns.split(',').map(str::trim).filter(|column| !column.is_empty()) {
        let number = column.strip_prefix('$').and_then(|number| number.parse::<usize>().ok());
        wanted.push(number.ok_or(format!("only '{{print $N}}' is supported, not {script:?}"))?);
    }
    for line in lines(files, shell, io)? {
        let fields: Vec<&str> = match flags.value('F') {
            Some(delimiter) => line.split(delimiter).collect(),
            None => line.split_whitespace().collect(),
        };
        let field = |number: &usize| {
            if *number == 0 { line.as_str() } else { fields.get(number - 1).copied().unwrap_or_default() }
        };
        let text =
            if wanted.is_empty() { line.clone() } else { wanted.iter().map(field).collect::<Vec<_>>().join(" ") };
        io.output.line(&text);
    }
    Ok(0)
}

fn sort(arguments: &[String], shell: &mut Shell, io: &mut Io) -> Result<u8, String> {
    let flags = Flags::read(arguments, "nru", "")?;
    let mut lines = lines(&flags.rest, shell, io)?;
    match flags.has('n') {
        true => lines.sort_by_key(|line| line.trim().parse::<i64>().unwrap_or(0)),
        false => lines.sort(),
    }
    if flags.has('r') {
        lines.reverse();
    }
    if flags.has('u') {
        lines.dedup();
    }
    lines.iter().for_each(|line| io.output.line(line));
    Ok(0)
}

fn uniq(arguments: &[String], shell: &mut Shell, io: &mut Io) -> Result<u8, String> {
    let flags = Flags::read(arguments, "", "")?;
    let mut lines = lines(&flags.rest, shell, io)?;
    lines.dedup();
    lines.iter().for_each(|line| io.output.line(line));
    Ok(0)
}

fn tee(arguments: &[String], shell: &mut Shell, io: &mut Io) -> Result<u8, String> {
    let flags = Flags::read(arguments, "a", "")?;
    let bytes = io.input.all();
    io.output.write(&bytes);
    for file in &flags.rest {
        let out = crate::io::Output::file(&shell.path(file), flags.has('a')).map_err(told(file))?;
        out.write(&bytes);
    }
    Ok(0)
}

fn xargs(arguments: &[String], shell: &mut Shell, io: &mut Io) -> Result<u8, String> {
    let (name, given) = arguments.split_first().ok_or("a command is needed")?;
    let input = String::from_utf8_lossy(&io.input.all()).into_owned();
    let all: Vec<String> = given.iter().cloned().chain(input.split_whitespace().map(str::to_owned)).collect();
    run(name, &all, shell, io).ok_or(format!("{name}: not found"))
}

fn seq(arguments: &[String], _: &mut Shell, io: &mut Io) -> Result<u8, String> {
    let numbers: Result<Vec<i64>, _> =
        arguments.iter().map(|argument| argument.parse().map_err(|_| format!("invalid number '{argument}'"))).collect();
    let (mut at, step, end) = match numbers?.as_slice() {
        [end] => (1, 1, *end),
        [from, end] => (*from, 1, *end),
        [from, step, end] if *step != 0 => (*from, *step, *end),
        _ => return Err("a last number is needed".to_owned()),
    };
    while (step > 0 && at <= end) || (step < 0 && at >= end) {
        io.output.line(&at.to_string());
        at += step;
    }
    Ok(0)
}

fn expr(arguments: &[String], _: &mut Shell, io: &mut Io) -> Result<u8, String> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let value = match words.as_slice() {
        [value] => (*value).to_owned(),
        [left, operator, right] => match (*operator, left.parse::<i64>(), right.parse::<i64>()) {
            ("=", _, _) => i64::from(left == right).to_string(),
            ("!=", _, _) => i64::from(left != right).to_string(),
            (operator, Ok(left), Ok(right)) => match operator {
                "+" => left.wrapping_add(right),
                "-" => left.wrapping_sub(right),
                "*" => left.wrapping_mul(right),
                "/" | "%" if right == 0 => return Err("division by zero".to_owned()),
                "/" => left.wrapping_div(right),
                "%" => left.wrapping_rem(right),
                "<" => i64::from(left < right),
                "<=" => i64::from(left <= right),
                ">" => i64::from(left > right),
                ">=" => i64::from(left >= right),
                _ => return Err("syntax error".to_owned()),
            }
            .to_string(),
            _ => return Err("non-numeric argument".to_owned()),
        },
        _ => return Err("syntax error".to_owned()),
    };
    io.output.line(&value);
    Ok(u8::from(value.is_empty() || value == "0"))
}

fn basename(arguments: &[String], _: &mut Shell, io: &mut Io) -> Result<u8, String> {
    let path = arguments.first().ok_or("a path is needed")?;
    let name = path.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    let name = arguments.get(1).and_then(|suffix| name.strip_suffix(suffix.as_str())).unwrap_or(name);
    io.output.line(name);
    Ok(0)
}

fn dirname(arguments: &[String], _: &mut Shell, io: &mut Io) -> Result<u8, String> {
    let path = arguments.first().ok_or("a path is needed")?;
    io.output.line(match path.trim_end_matches('/').rsplit_once('/') {
        Some(("", _)) => "/",
        Some((folder, _)) => folder,
        None => ".",
    });
    Ok(0)
}

/// A point in time, as the days of the proleptic Gregorian calendar.
pub fn utc(time: SystemTime) -> [u64; 6] {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Years begin in March here, so that a leap day is the last of one (Howard Hinnant's civil_from_days).
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (day, month) = (day - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
    [era * 400 + year + u64::from(month <= 2), month, day, rest / 3_600, rest / 60 % 60, rest % 60]
}

/// Stored, not made smaller: whoever reads it finds the same.
fn gzip(arguments: &[String], shell: &mut Shell, io: &mut Io) -> Result<u8, String> {
    let flags = Flags::read(arguments, "c", "")?;
    if !flags.rest.is_empty() {
        return Err("it reads its input only".to_owned());
    }
    let bytes = contents(&[], shell, io)?;
    let mut out = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    // Each block says whether it is the last, how long it is, and that in ones' complement.
    let count = bytes.len().div_ceil(0xffff);
    for (number, block) in bytes.chunks(0xffff).enumerate() {
        let length = block.len() as u16;
        out.push(u8::from(number + 1 == count));
        out.extend([length.to_le_bytes(), (!length).to_le_bytes()].concat());
        out.extend(block);
    }
    if bytes.is_empty() {
        out.extend([1, 0, 0, 0xff, 0xff]);
    }
    out.extend(crc32(&bytes).to_le_bytes());
    out.extend((bytes.len() as u32).to_le_bytes());
    Ok(u8::from(!io.output.write(&out)))
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
    })
}

/// A component knows the time, and nothing of the machine.
fn uptime(_: &[String], _: &mut Shell, io: &mut Io) -> Result<u8, String> {
    let [_, _, _, hour, minute, second] = utc(SystemTime::now());
    io.output.line(&format!(" {hour:02}:{minute:02}:{second:02} up"));
    Ok(0)
}

fn date(arguments: &[String], _: &mut Shell, io: &mut Io) -> Result<u8, String> {
    let flags = Flags::read(arguments, "u", "")?;
    let now = SystemTime::now();
    let [year, month, day, hour, minute, second] = utc(now);
    let format = flags.rest.first().map_or("%Y-%m-%dT%H:%M:%SZ", |format| format.trim_start_matches('+'));
    let (mut out, mut rest) = (String::new(), format.chars());
    while let Some(c) = rest.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        out.push_str(&match rest.next() {
            Some('Y') => format!("{year:04}"),
            Some('m') => format!("{month:02}"),
            Some('d') => format!("{day:02}"),
            Some('H') => format!("{hour:02}"),
            Some('M') => format!("{minute:02}"),
            Some('S') => format!("{second:02}"),
            Some('s') => now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()).to_string(),
            Some('N') => format!("{:09}", now.duration_since(UNIX_EPOCH).map_or(0, |since| since.subsec_nanos())),
            other => return Err(format!("invalid format %{}", other.map_or(String::new(), String::from))),
        });
    }
    io.output.line(&out);
    Ok(0)
}
