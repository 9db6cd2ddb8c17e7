//! What a script is, read from its text: POSIX' shell language without jobs, and the `[[ ]]` that scripts take for granted.

use std::rc::Rc;

/// Nested commands and words; deeper ones are refused, since they are read by recursion.
const DEPTH_MAX: u32 = 60;

#[derive(Debug, PartialEq)]
pub enum Node {
    Simple(Simple),
    /// One after the other: what a command prints is there when the next begins.
    Pipeline {
        negated: bool,
        stages: Vec<Node>,
    },
    And(Box<Node>, Box<Node>),
    Or(Box<Node>, Box<Node>),
    List(Vec<Node>),
    If {
        arms: Vec<(Node, Node)>,
        otherwise: Option<Box<Node>>,
    },
    Loop {
        until: bool,
        condition: Box<Node>,
        body: Box<Node>,
    },
    For {
        name: String,
        words: Option<Vec<Word>>,
        body: Box<Node>,
    },
    Case {
        word: Word,
        arms: Vec<(Vec<Word>, Node)>,
    },
    Subshell(Box<Node>),
    Test(Vec<Operand>),
    Function(String, Rc<Node>),
    Redirected(Box<Node>, Vec<Redirection>),
}

#[derive(Debug, Default, PartialEq)]
pub struct Simple {
    pub assignments: Vec<(String, Word)>,
    pub words: Vec<Word>,
    pub redirections: Vec<Redirection>,
}

#[derive(Debug, PartialEq)]
pub struct Redirection {
    pub descriptor: u8,
    pub target: Target,
}

#[derive(Debug, PartialEq)]
pub enum Target {
    Read(Word),
    Write(Word),
    Append(Word),
    /// The same as another descriptor.
    Same(u8),
    /// What follows in the script.
    Here(Word),
}

/// Between `[[` and `]]`.
#[derive(Debug, PartialEq)]
pub enum Operand {
    Word(Word),
    Operator(&'static str),
}

pub type Word = Vec<Part>;

#[derive(Debug, PartialEq)]
pub enum Part {
    Text { text: String, quoted: bool },
    Variable { name: String, operator: Option<(String, Word)>, quoted: bool },
    Length(String),
    Command { script: Rc<Node>, quoted: bool },
    Arithmetic(Word),
}

/// Reads a whole script; the error says what is wrong with it.
pub fn parse(text: &str) -> Result<Node, String> {
    let mut parser = Parser { text: text.chars().collect(), at: 0, depth: 0, here: Vec::new() };
    let node = parser.list(&[])?;
    match parser.peek() {
        None => Ok(node),
        Some(c) => Err(format!("syntax error: unexpected {c:?}")),
    }
}

struct Parser {
    text: Vec<char>,
    at: usize,
    depth: u32,
    /// Ends of documents that begin with the next line, and whether what is in them is expanded.
    here: Vec<(String, bool)>,
}

const OPERATORS: &[&str] = &["&&", "||", "(", ")", "<", ">"];

impl Parser {
    fn peek(&self) -> Option<char> {
        self.text.get(self.at).copied()
    }

    fn ahead(&self, text: &str) -> bool {
        text.chars().enumerate().all(|(offset, c)| self.text.get(self.at + offset) == Some(&c))
    }

    fn skip(&mut self, text: &str) -> bool {
        let is_next = self.ahead(text);
        if is_next {
            self.at += text.chars().count();
        }
        is_next
    }

    fn expect(&mut self, text: &str) -> Result<(), String> {
        match self.skip(text) {
            true => Ok(()),
            false => Err(format!(
                "syntax error: {text:?} expected, not {:?}",
                self.peek().map_or("the end".to_owned(), String::from)
            )),
        }
    }

    /// Spaces, joined lines and comments.
    fn blanks(&mut self) {
        loop {
            match self.peek() {
                Some(' ' | '\t') => self.at += 1,
                Some('\\') if self.ahead("\\\n") => self.at += 2,
                Some('#') => {
                    while self.peek().is_some_and(|c| c != '\n') {
                        self.at += 1;
                    }
                }
                _ => return,
            }
        }
    }

    fn lines(&mut self) {
        self.blanks();
        while self.peek() == Some('\n') {
            self.at += 1;
            self.blanks();
        }
    }

    /// The plain word that comes next.
    fn reserved(&self) -> String {
        let rest = &self.text[self.at.min(self.text.len())..];
        let word: String = rest.iter().take_while(|c| !c.is_whitespace() && !";&|<>()\"'$`\\".contains(**c)).collect();
        let follows = rest.get(word.chars().count());
        if follows.is_some_and(|c| "\"'$`\\".contains(*c)) { String::new() } else { word }
    }

    fn keyword(&mut self, word: &str) -> Result<(), String> {
        self.lines();
        match self.reserved() == word {
            true => {
                self.at += word.len();
                Ok(())
            }
            false => Err(format!("syntax error: {word:?} expected")),
        }
    }

    fn list(&mut self, until: &[&str]) -> Result<Node, String> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err("the script is nested too deeply".to_owned());
        }
        let mut nodes = Vec::new();
        loop {
            self.lines();
            let is_end = self.peek().is_none_or(|c| c == ')') || self.ahead(";;");
            if is_end || until.contains(&self.reserved().as_str()) {
                break;
            }
            nodes.push(self.and_or()?);
            self.blanks();
            match self.peek() {
                Some(';') if !self.ahead(";;") => self.at += 1,
                Some('\n') => {
                    self.at += 1;
                    let here = std::mem::take(&mut self.here);
                    if !here.is_empty() {
                        self.documents(here, &mut nodes)?;
                    }
                }
                Some('&') => return Err("jobs in the background are not supported".to_owned()),
                _ => {}
            }
        }
        self.depth -= 1;
        Ok(if nodes.len() == 1 { nodes.remove(0) } else { Node::List(nodes) })
    }

    /// Reads the documents that the commands before this line have announced; they are theirs in the order of the script.
    fn documents(&mut self, here: Vec<(String, bool)>, nodes: &mut [Node]) -> Result<(), String> {
        let mut texts = Vec::new();
        for (end, is_expanded) in here {
            let mut text = String::new();
            loop {
                if self.peek().is_none() {
                    return Err(format!("the document does not end with {end:?}"));
                }
                let rest = &self.text[self.at..];
                let line: String = rest.iter().take_while(|c| **c != '\n').collect();
                self.at = (self.at + line.chars().count() + 1).min(self.text.len());
                if line == end {
                    break;
                }
                text.push_str(&line);
                text.push('\n');
            }
            texts.push(if is_expanded { quoted(&text, self.depth)? } else { vec![Part::Text { text, quoted: true }] });
        }
        let mut texts = texts.into_iter();
        nodes.iter_mut().for_each(|node| fill(node, &mut texts));
        Ok(())
    }

    fn and_or(&mut self) -> Result<Node, String> {
        let mut left = self.pipeline()?;
        loop {
            self.blanks();
            let is_and = self.skip("&&");
            if !is_and && !self.skip("||") {
                return Ok(left);
            }
            self.lines();
            let right = Box::new(self.pipeline()?);
            left = if is_and { Node::And(Box::new(left), right) } else { Node::Or(Box::new(left), right) };
        }
    }

    fn pipeline(&mut self) -> Result<Node, String> {
        self.blanks();
        let negated = self.reserved() == "!" && self.skip("!");
        let mut stages = vec![self.command()?];
        loop {
            self.blanks();
            if self.ahead("||") || !self.skip("|") {
                break;
            }
            self.lines();
            stages.push(self.command()?);
        }
        Ok(if stages.len() == 1 && !negated { stages.remove(0) } else { Node::Pipeline { negated, stages } })
    }

    fn command(&mut self) -> Result<Node, String> {
        self.blanks();
        let node = match self.reserved().as_str() {
            "if" => self.conditional()?,
            word @ ("while" | "until") => {
                let until = word == "until";
                self.at += 5;
                let condition = Box::new(self.list(&["do"])?);
                Node::Loop { until, condition, body: Box::new(self.body()?) }
            }
            "for" => {
                self.at += 3;
                self.blanks();
                let name = self.name().ok_or("syntax error: bad for loop variable")?;
                self.lines();
                let mut words = None;
                if self.reserved() == "in" {
                    self.at += 2;
                    words = Some(self.words()?);
                }
                self.blanks();
                let _ = self.skip(";");
                Node::For { name, words, body: Box::new(self.body()?) }
            }
            "case" => self.case()?,
            "[[" => self.test()?,
            "{" => {
                self.at += 1;
                let node = self.list(&["}"])?;
                self.keyword("}")?;
                node
            }
            _ if self.peek() == Some('(') => {
                self.at += 1;
                let node = self.list(&[])?;
                self.expect(")")?;
                Node::Subshell(Box::new(node))
            }
            _ => return self.simple(),
        };
        let mut redirections = Vec::new();
        loop {
            self.blanks();
            match self.redirection()? {
                Some(redirection) => redirections.push(redirection),
                None => break,
            }
        }
        Ok(if redirections.is_empty() { node } else { Node::Redirected(Box::new(node), redirections) })
    }

    fn body(&mut self) -> Result<Node, String> {
        self.keyword("do")?;
        let body = self.list(&["done"])?;
        self.keyword("done")?;
        Ok(body)
    }

    fn conditional(&mut self) -> Result<Node, String> {
        self.keyword("if")?;
        let (mut arms, mut otherwise) = (Vec::new(), None);
        loop {
            let condition = self.list(&["then"])?;
            self.keyword("then")?;
            arms.push((condition, self.list(&["elif", "else", "fi"])?));
            match self.reserved().as_str() {
                "elif" => self.at += 4,
                "else" => {
                    self.at += 4;
                    otherwise = Some(Box::new(self.list(&["fi"])?));
                    break;
                }
                _ => break,
            }
        }
        self.keyword("fi")?;
        Ok(Node::If { arms, otherwise })
    }

    fn case(&mut self) -> Result<Node, String> {
        self.at += 4;
        self.blanks();
        let word = self.word()?;
        self.keyword("in")?;
        let mut arms = Vec::new();
        loop {
            self.lines();
            if self.reserved() == "esac" {
                break;
            }
            let _ = self.skip("(");
            let mut patterns = Vec::new();
            loop {
                self.blanks();
                patterns.push(self.word()?);
                self.blanks();
                if !self.skip("|") {
                    break;
                }
            }
            self.expect(")")?;
            arms.push((patterns, self.list(&["esac"])?));
            let _ = self.skip(";;");
        }
        self.keyword("esac")?;
        Ok(Node::Case { word, arms })
    }

    fn test(&mut self) -> Result<Node, String> {
        self.at += 2;
        let mut operands = Vec::new();
        loop {
            self.lines();
            if self.reserved() == "]]" {
                self.at += 2;
                return Ok(Node::Test(operands));
            }
            operands.push(match OPERATORS.iter().find(|operator| self.ahead(operator)) {
                Some(operator) => {
                    self.at += operator.len();
                    Operand::Operator(operator)
                }
                None => Operand::Word(self.word()?),
            });
        }
    }

    fn words(&mut self) -> Result<Vec<Word>, String> {
        let mut words = Vec::new();
        loop {
            self.blanks();
            if self.peek().is_none_or(|c| "\n;&|()<>".contains(c)) {
                return Ok(words);
            }
            words.push(self.word()?);
        }
    }

    fn simple(&mut self) -> Result<Node, String> {
        let mut simple = Simple::default();
        loop {
            self.blanks();
            if let Some(redirection) = self.redirection()? {
                simple.redirections.push(redirection);
                continue;
            }
            if self.peek().is_none_or(|c| "\n;&|)".contains(c)) {
                break;
            }
            if self.peek() == Some('(') {
                let name = match (simple.words.as_slice(), simple.assignments.is_empty()) {
                    ([word], true) => plain(word),
                    _ => None,
                };
                let name = name.ok_or("syntax error: unexpected \"(\"")?;
                self.expect("(")?;
                self.blanks();
                self.expect(")")?;
                self.lines();
                return Ok(Node::Function(name, Rc::new(self.command()?)));
            }
            let start = self.at;
            if simple.words.is_empty()
                && let Some(name) = self.name()
            {
                if self.skip("=") {
                    let is_empty = self.peek().is_none_or(|c| c.is_whitespace() || ";&|)".contains(c));
                    let value = if is_empty { Vec::new() } else { self.word()? };
                    simple.assignments.push((name, value));
                    continue;
                }
                self.at = start;
            }
            simple.words.push(self.word()?);
        }
        if simple == Simple::default() {
            return Err(format!(
                "syntax error: a command expected, not {:?}",
                self.peek().map_or("the end".to_owned(), String::from)
            ));
        }
        Ok(Node::Simple(simple))
    }

    fn redirection(&mut self) -> Result<Option<Redirection>, String> {
        let start = self.at;
        let number = self.peek().and_then(|c| c.to_digit(10)).and_then(|digit| u8::try_from(digit).ok());
        if number.is_some() {
            self.at += 1;
        }
        let both = number.is_none() && self.ahead("&>") && self.skip("&");
        let (is_read, is_write) = (self.peek() == Some('<'), self.peek() == Some('>'));
        if !is_read && !is_write {
            self.at = start;
            return Ok(None);
        }
        let descriptor = number.unwrap_or(u8::from(is_write));
        if both {
            return Err("\"&>\" is not supported: write \"> FILE 2>&1\"".to_owned());
        }
        if self.skip("<<") {
            let _ = self.skip("-");
            self.blanks();
            let is_expanded = !self.peek().is_some_and(|c| "'\"\\".contains(c));
            let end = self.word()?;
            let end = end.iter().map(|part| if let Part::Text { text, .. } = part { text.as_str() } else { "" });
            self.here.push((end.collect(), is_expanded));
            return Ok(Some(Redirection { descriptor, target: Target::Here(Vec::new()) }));
        }
        for (operator, make) in [
            (">>", Target::Append as fn(Word) -> Target),
            (">|", Target::Write),
            ("<", Target::Read),
            (">", Target::Write),
        ] {
            if !self.skip(operator) {
                continue;
            }
            if operator.len() == 1 && self.skip("&") {
                let same = self.peek().and_then(|c| c.to_digit(10)).and_then(|digit| u8::try_from(digit).ok());
                self.at += 1;
                let same = same.ok_or("syntax error: bad descriptor")?;
                return Ok(Some(Redirection { descriptor, target: Target::Same(same) }));
            }
            self.blanks();
            return Ok(Some(Redirection { descriptor, target: make(self.word()?) }));
        }
        Ok(None)
    }

    fn name(&mut self) -> Option<String> {
        let rest = &self.text[self.at.min(self.text.len())..];
        let name: String = rest.iter().take_while(|c| c.is_ascii_alphanumeric() || **c == '_').collect();
        if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
            return None;
        }
        self.at += name.len();
        Some(name)
    }

    fn word(&mut self) -> Result<Word, String> {
        let word = self.word_until(|c| c.is_whitespace() || ";&|<>()".contains(c))?;
        match word.is_empty() {
            true => Err(format!(
                "syntax error: a word expected, not {:?}",
                self.peek().map_or("the end".to_owned(), String::from)
            )),
            false => Ok(word),
        }
    }

    fn word_until(&mut self, is_end: impl Fn(char) -> bool) -> Result<Word, String> {
        let mut word = Word::new();
        while let Some(c) = self.peek().filter(|c| !is_end(*c)) {
            self.at += 1;
            match c {
                '\\' => {
                    let Some(c) = self.peek() else { break };
                    self.at += 1;
                    if c != '\n' {
                        push(&mut word, c, true);
                    }
                }
                '\'' => {
                    word.push(Part::Text { text: String::new(), quoted: true });
                    loop {
                        let c = self.peek().ok_or("syntax error: unterminated quoted string")?;
                        self.at += 1;
                        if c == '\'' {
                            break;
                        }
                        push(&mut word, c, true);
                    }
                }
                '"' => {
                    word.push(Part::Text { text: String::new(), quoted: true });
                    self.quoted(&mut word, Some('"'))?;
                }
                '$' => self.dollar(&mut word, false)?,
                '`' => self.backticks(&mut word, false)?,
                c => push(&mut word, c, false),
            }
        }
        Ok(word)
    }

    /// What stands between double quotes, or a text that is expanded as if it did.
    fn quoted(&mut self, word: &mut Word, end: Option<char>) -> Result<(), String> {
        loop {
            let Some(c) = self.peek() else {
                return if end.is_none() { Ok(()) } else { Err("syntax error: unterminated quoted string".to_owned()) };
            };
            self.at += 1;
            match c {
                c if Some(c) == end => return Ok(()),
                '\\' => match self.peek() {
                    Some('\n') => self.at += 1,
                    Some(c) if "$`\\".contains(c) || Some(c) == end => {
                        self.at += 1;
                        push(word, c, true);
                    }
                    _ => push(word, '\\', true),
                },
                '$' => self.dollar(word, true)?,
                '`' => self.backticks(word, true)?,
                c => push(word, c, true),
            }
        }
    }

    fn backticks(&mut self, word: &mut Word, quoted: bool) -> Result<(), String> {
        let mut text = String::new();
        loop {
            let c = self.peek().ok_or("syntax error: unterminated backquote")?;
            self.at += 1;
            match (c, self.peek()) {
                ('`', _) => break,
                ('\\', Some(next)) if "`\\$".contains(next) => {
                    self.at += 1;
                    text.push(next);
                }
                _ => text.push(c),
            }
        }
        let mut parser = Parser { text: text.chars().collect(), at: 0, depth: self.depth + 1, here: Vec::new() };
        word.push(Part::Command { script: Rc::new(parser.list(&[])?), quoted });
        Ok(())
    }

    /// What follows a dollar sign.
    fn dollar(&mut self, word: &mut Word, is_quoted: bool) -> Result<(), String> {
        if self.skip("((") {
            let (start, mut depth) = (self.at, 0_u32);
            loop {
                match self.peek().ok_or("syntax error: missing \"))\"")? {
                    '(' => depth += 1,
                    ')' if depth == 0 => break,
                    ')' => depth -= 1,
                    _ => {}
                }
                self.at += 1;
            }
            let text: String = self.text[start..self.at].iter().collect();
            self.expect("))")?;
            word.push(Part::Arithmetic(quoted(&text, self.depth)?));
            return Ok(());
        }
        if self.skip("(") {
            let script = Rc::new(self.list(&[])?);
            self.expect(")")?;
            word.push(Part::Command { script, quoted: is_quoted });
            return Ok(());
        }
        if self.skip("{") {
            if self.ahead("#") && !self.ahead("#}") {
                self.at += 1;
                let name = self.parameter().ok_or("syntax error: bad substitution")?;
                self.expect("}")?;
                word.push(Part::Length(name));
                return Ok(());
            }
            let name = self.parameter().ok_or("syntax error: bad substitution")?;
            let mut operator = String::new();
            while let Some(c) = self.peek().filter(|c| ":-=?+%#".contains(*c)) {
                let is_longer =
                    matches!((operator.as_str(), c), ("", _) | (":", '-' | '=' | '?' | '+') | ("%", '%') | ("#", '#'));
                if !is_longer {
                    break;
                }
                operator.push(c);
                self.at += 1;
            }
            if operator.is_empty() && self.peek() != Some('}') || operator == ":" {
                return Err("syntax error: bad substitution".to_owned());
            }
            let rest = self.word_until(|c| c == '}')?;
            self.expect("}")?;
            let operator = (!operator.is_empty()).then_some((operator, rest));
            word.push(Part::Variable { name, operator, quoted: is_quoted });
            return Ok(());
        }
        match self.parameter() {
            Some(name) => word.push(Part::Variable { name, operator: None, quoted: is_quoted }),
            None => push(word, '$', is_quoted),
        }
        Ok(())
    }

    fn parameter(&mut self) -> Option<String> {
        self.name().or_else(|| {
            let c = self.peek().filter(|c| c.is_ascii_digit() || "?#@*$!-".contains(*c))?;
            self.at += 1;
            Some(c.to_string())
        })
    }
}

fn push(word: &mut Word, c: char, quoted: bool) {
    match word.last_mut() {
        Some(Part::Text { text, quoted: was }) if *was == quoted => text.push(c),
        _ => word.push(Part::Text { text: c.to_string(), quoted }),
    }
}

fn quoted(text: &str, depth: u32) -> Result<Word, String> {
    let mut word = Word::new();
    let mut parser = Parser { text: text.chars().collect(), at: 0, depth, here: Vec::new() };
    parser.quoted(&mut word, None)?;
    Ok(word)
}

/// A word in which nothing is expanded.
fn plain(word: &Word) -> Option<String> {
    match word.as_slice() {
        [Part::Text { text, quoted: false }] => Some(text.clone()),
        _ => None,
    }
}

/// Gives documents to the redirections that wait for them.
fn fill(node: &mut Node, texts: &mut dyn Iterator<Item = Word>) {
    let redirections = |redirections: &mut Vec<Redirection>, texts: &mut dyn Iterator<Item = Word>| {
        for redirection in redirections {
            if let Target::Here(text) = &mut redirection.target
                && text.is_empty()
            {
                *text = texts.next().unwrap_or_default();
            }
        }
    };
    match node {
        Node::Simple(simple) => redirections(&mut simple.redirections, texts),
        Node::Redirected(node, list) => {
            fill(node, texts);
            redirections(list, texts);
        }
        Node::Pipeline { stages: nodes, .. } | Node::List(nodes) => nodes.iter_mut().for_each(|node| fill(node, texts)),
        Node::And(left, right) | Node::Or(left, right) => {
            fill(left, texts);
            fill(right, texts);
        }
        _ => {}
    }
}
