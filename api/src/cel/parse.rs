//! The grammar of CEL: text to a tree, in which a macro is still a call.

use std::fmt::Write as _;

use super::program::dotted;

/// How deep an expression may nest; chains of one operator count, but those of `&&` and `||` do not.
const DEPTH_MAX: usize = 120;
/// How deep brackets may nest: each takes a dozen calls to read.
const BRACKETS_MAX: usize = 50;

/// What is said of one place of an expression.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub at: usize,
    pub message: String,
}

impl Fault {
    pub fn new(at: usize, message: impl Into<String>) -> Fault {
        Fault { at, message: message.into() }
    }

    /// As Kubernetes shows it, with the line and a caret below the place.
    pub fn show(&self, source: &str) -> String {
        if source.is_empty() {
            return format!("ERROR: <input>:1:0: {}", self.message);
        }
        let before = source.get(..self.at).unwrap_or(source);
        let line = before.matches('\n').count();
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count();
        let text = source.split('\n').nth(line).unwrap_or_default();
        let mut shown = format!("ERROR: <input>:{}:{}: {}\n | {text}\n | ", line + 1, column + 1, self.message);
        let _ = write!(shown, "{}^", ".".repeat(column));
        shown
    }
}

/// A node, and where it stands in the text.
#[derive(Debug)]
pub(crate) struct Node {
    pub at: usize,
    pub is: Is,
    depth: usize,
    /// How many nodes it is, with those that it is made of.
    pub count: usize,
}

#[derive(Debug)]
pub(crate) enum Is {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    Text(String),
    Bytes(Vec<u8>),
    Name(String),
    /// `of.field` or `of.?field`.
    Select(Box<Node>, String, bool),
    /// `of[at]` or `of[?at]`.
    Index(Box<Node>, Box<Node>, bool),
    /// `function(…)` or `on.function(…)`.
    Call(Option<Box<Node>>, String, Vec<Node>),
    /// `[a, ?b]`.
    List(Vec<(Node, bool)>),
    /// `{a: b, ?c: d}`.
    Map(Vec<(Node, Node, bool)>),
    /// `Name{a: b, ?c: d}`; with each field where its colon stands.
    Struct(String, Vec<(usize, String, Node, bool)>),
    All(Vec<Node>),
    Any(Vec<Node>),
    Not(Box<Node>),
    Negative(Box<Node>),
    Either(Box<Node>, Box<Node>, Box<Node>),
    Binary(Operator, Box<Node>, Box<Node>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operator {
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
    Equal,
    NotEqual,
    In,
    Add,
    Subtract,
    Multiply,
    Divide,
    Modulo,
}

#[derive(Debug, Clone, PartialEq)]
enum Token {
    Name(String),
    Int(i64),
    /// Beyond an `int`, but for the one that a minus makes one.
    Large(u64),
    Uint(u64),
    Double(f64),
    Text(String),
    Bytes(Vec<u8>),
    Sign(&'static str),
    End,
}

/// Longer signs first.
const SIGNS: [&str; 25] = [
    "==", "!=", "<=", ">=", "&&", "||", "<", ">", "!", "+", "-", "*", "/", "%", "?", ":", "(", ")", "[", "]", "{", "}",
    ".", ",", "=",
];

/// Words that are no names.
pub(super) const RESERVED: [&str; 17] = [
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];

/// What an expression may begin with.
const BEGINNINGS: &str = "{'[', '{', '(', '.', '-', '!', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, \
                          IDENTIFIER}";

pub(crate) fn parse(source: &str) -> Result<Node, Fault> {
    let mut parser = Parser { source, at: 0, token: Token::End, start: 0, depth: 0 };
    parser.advance()?;
    let node = parser.expression()?;
    if parser.token == Token::End {
        return Ok(node);
    }
    let (at, shown) = (parser.start, source.get(parser.start..parser.at).unwrap_or_default());
    parser.advance()?;
    // One token too many is passed over; of several the first does not match.
    let word = if parser.token == Token::End { "extraneous" } else { "mismatched" };
    Err(Fault::new(at, format!("Syntax error: {word} input '{shown}' expecting <EOF>")))
}

struct Parser<'a> {
    source: &'a str,
    /// Behind the token.
    at: usize,
    token: Token,
    /// Where the token begins.
    start: usize,
    depth: usize,
}

fn node(at: usize, is: Is) -> Node {
    let (mut depth, mut count) = (1, 1);
    is.each(|part| {
        depth = depth.max(1 + part.depth);
        count += part.count;
    });
    Node { at, is, depth, count }
}

impl Is {
    /// Each node that it is made of.
    fn each(&self, mut see: impl FnMut(&Node)) {
        match self {
            Is::Select(of, ..) | Is::Not(of) | Is::Negative(of) => see(of),
            Is::Index(a, b, _) | Is::Binary(_, a, b) => [a, b].into_iter().for_each(|part| see(part)),
            Is::Either(a, b, c) => [a, b, c].into_iter().for_each(|part| see(part)),
            Is::Call(on, _, arguments) => {
                on.iter().for_each(|on| see(on));
                arguments.iter().for_each(see);
            }
            Is::All(of) | Is::Any(of) => of.iter().for_each(see),
            Is::List(items) => items.iter().for_each(|(item, _)| see(item)),
            Is::Struct(_, fields) => fields.iter().for_each(|(_, _, value, _)| see(value)),
            Is::Map(fields) => fields.iter().flat_map(|(key, value, _)| [key, value]).for_each(see),
            Is::Null
            | Is::Bool(_)
            | Is::Int(_)
            | Is::Uint(_)
            | Is::Double(_)
            | Is::Text(_)
            | Is::Bytes(_)
            | Is::Name(_) => {}
        }
    }
}

impl Parser<'_> {
    fn rest(&self) -> &str {
        self.source.get(self.at..).unwrap_or_default()
    }

    /// What is told of a token that cannot be here (in the words of cel-go's parser).
    fn unexpected(&self, expecting: &str) -> Fault {
        match &self.token {
            Token::End => {
                Fault::new(self.start, format!("Syntax error: mismatched input '<EOF>' expecting {expecting}"))
            }
            _ => {
                let shown = self.source.get(self.start..self.at).unwrap_or_default();
                Fault::new(self.start, format!("Syntax error: extraneous input '{shown}' expecting {expecting}"))
            }
        }
    }

    fn is(&self, sign: &str) -> bool {
        matches!(&self.token, Token::Sign(token) if *token == sign)
    }

    /// Passes a sign when it comes next.
    fn take(&mut self, sign: &str) -> Result<bool, Fault> {
        let found = self.is(sign);
        if found {
            self.advance()?;
        }
        Ok(found)
    }

    /// Passes a sign that must come next; `or` says what else could.
    fn expect(&mut self, sign: &str, or: &str) -> Result<(), Fault> {
        if self.take(sign)? {
            return Ok(());
        }
        let expecting = if or.is_empty() { format!("'{sign}'") } else { format!("{{'{sign}', {or}}}") };
        Err(self.unexpected(&expecting))
    }

    fn made(&self, at: usize, is: Is) -> Result<Node, Fault> {
        let node = node(at, is);
        if node.depth > DEPTH_MAX {
            return Err(Fault::new(at, "Syntax error: the expression nests too deeply"));
        }
        Ok(node)
    }

    fn expression(&mut self) -> Result<Node, Fault> {
        self.depth += 1;
        if self.depth > BRACKETS_MAX {
            return Err(Fault::new(self.start, "Syntax error: the expression nests too deeply"));
        }
        let condition = self.any()?;
        let at = self.start;
        let made = if self.take("?")? {
            let yes = self.any()?;
            self.expect(":", "")?;
            let no = self.expression()?;
            self.made(at, Is::Either(Box::new(condition), Box::new(yes), Box::new(no)))
        } else {
            Ok(condition)
        };
        self.depth -= 1;
        made
    }

    fn any(&mut self) -> Result<Node, Fault> {
        let (first, at) = (self.all()?, self.start);
        if !self.is("||") {
            return Ok(first);
        }
        let mut parts = vec![first];
        while self.take("||")? {
            parts.push(self.all()?);
        }
        self.made(at, Is::Any(parts))
    }

    fn all(&mut self) -> Result<Node, Fault> {
        let (first, at) = (self.relation()?, self.start);
        if !self.is("&&") {
            return Ok(first);
        }
        let mut parts = vec![first];
        while self.take("&&")? {
            parts.push(self.relation()?);
        }
        self.made(at, Is::All(parts))
    }

    fn relation(&mut self) -> Result<Node, Fault> {
        let mut left = self.sum()?;
        loop {
            let operator = match &self.token {
                Token::Sign("<") => Operator::Less,
                Token::Sign("<=") => Operator::LessEqual,
                Token::Sign(">") => Operator::Greater,
                Token::Sign(">=") => Operator::GreaterEqual,
                Token::Sign("==") => Operator::Equal,
                Token::Sign("!=") => Operator::NotEqual,
                Token::Name(name) if name == "in" => Operator::In,
                _ => return Ok(left),
            };
            left = self.binary(operator, left, Self::sum)?;
        }
    }

    fn sum(&mut self) -> Result<Node, Fault> {
        let mut left = self.product()?;
        loop {
            let operator = match &self.token {
                Token::Sign("+") => Operator::Add,
                Token::Sign("-") => Operator::Subtract,
                _ => return Ok(left),
            };
            left = self.binary(operator, left, Self::product)?;
        }
    }

    fn product(&mut self) -> Result<Node, Fault> {
        let mut left = self.unary()?;
        loop {
            let operator = match &self.token {
                Token::Sign("*") => Operator::Multiply,
                Token::Sign("/") => Operator::Divide,
                Token::Sign("%") => Operator::Modulo,
                _ => return Ok(left),
            };
            left = self.binary(operator, left, Self::unary)?;
        }
    }

    fn binary(
        &mut self,
        operator: Operator,
        left: Node,
        next: fn(&mut Self) -> Result<Node, Fault>,
    ) -> Result<Node, Fault> {
        let at = self.start;
        self.advance()?;
        let right = next(self)?;
        self.made(at, Is::Binary(operator, Box::new(left), Box::new(right)))
    }

    fn unary(&mut self) -> Result<Node, Fault> {
        let at = self.start;
        let sign = match self.token {
            Token::Sign(sign @ ("!" | "-")) => sign,
            _ => return self.member(),
        };
        let mut count = 0_usize;
        while self.take(sign)? {
            count += 1;
        }
        // The smallest number has no positive counterpart.
        if sign == "-" {
            match self.token {
                Token::Int(number) if count % 2 == 1 => {
                    self.token = Token::Int(-number);
                    return self.member();
                }
                Token::Large(number) if count == 1 && number == 1 << 63 => {
                    self.token = Token::Int(i64::MIN);
                    return self.member();
                }
                Token::Double(number) if count % 2 == 1 => {
                    self.token = Token::Double(-number);
                    return self.member();
                }
                _ => {}
            }
        }
        let of = self.member()?;
        match (count % 2, sign) {
            (0, _) => Ok(of),
            (_, "!") => self.made(at, Is::Not(Box::new(of))),
            _ => self.made(at, Is::Negative(Box::new(of))),
        }
    }

    fn member(&mut self) -> Result<Node, Fault> {
        let mut of = self.primary()?;
        loop {
            let at = self.start;
            if self.take(".")? {
                let optional = self.take("?")?;
                let name = self.field()?;
                if !optional && self.is("(") {
                    let at = self.start;
                    let arguments = self.arguments()?;
                    of = self.made(at, Is::Call(Some(Box::new(of)), name, arguments))?;
                } else {
                    of = self.made(at, Is::Select(Box::new(of), name, optional))?;
                }
            } else if self.take("[")? {
                let optional = self.take("?")?;
                let index = self.expression()?;
                self.expect("]", "")?;
                of = self.made(at, Is::Index(Box::new(of), Box::new(index), optional))?;
            } else if self.is("{")
                && let Some(name) = dotted(&of)
            {
                self.advance()?;
                let fields = self.fields()?;
                of = self.made(at, Is::Struct(name, fields))?;
            } else {
                return Ok(of);
            }
        }
    }

    /// The name behind a dot; one in backquotes may have dashes, dots and slashes.
    fn field(&mut self) -> Result<String, Fault> {
        match std::mem::replace(&mut self.token, Token::End) {
            Token::Name(name) if ["true", "false", "null", "in"].contains(&name.as_str()) => {
                Err(Fault::new(self.start, format!("Syntax error: mismatched input '{name}' expecting IDENTIFIER")))
            }
            Token::Name(name) => {
                self.advance()?;
                Ok(name)
            }
            token => {
                self.token = token;
                Err(Fault::new(self.start, "Syntax error: no viable alternative at input '.'"))
            }
        }
    }

    fn arguments(&mut self) -> Result<Vec<Node>, Fault> {
        self.expect("(", "")?;
        let mut arguments = Vec::new();
        while !self.is(")") {
            arguments.push(self.expression()?);
            if !self.take(",")? {
                break;
            }
        }
        self.expect(")", "','")?;
        Ok(arguments)
    }

    fn primary(&mut self) -> Result<Node, Fault> {
        let at = self.start;
        let is = match std::mem::replace(&mut self.token, Token::End) {
            Token::Int(number) => Is::Int(number),
            Token::Uint(number) => Is::Uint(number),
            Token::Double(number) => Is::Double(number),
            Token::Text(text) => Is::Text(text),
            Token::Bytes(bytes) => Is::Bytes(bytes),
            Token::Large(_) => return Err(Fault::new(at, "Syntax error: invalid int literal")),
            Token::Name(name) => {
                self.advance()?;
                return self.named(at, name);
            }
            Token::Sign("(") => {
                self.advance()?;
                let inner = self.expression()?;
                self.expect(")", "")?;
                return Ok(inner);
            }
            Token::Sign("[") => {
                self.advance()?;
                let items = self.list()?;
                return self.made(at, Is::List(items));
            }
            Token::Sign("{") => {
                self.advance()?;
                let fields = self.map()?;
                return self.made(at, Is::Map(fields));
            }
            // A name of the root's scope, which is the only one.
            Token::Sign(".") => {
                self.advance()?;
                let name = self.field()?;
                return self.named(at, name);
            }
            token => {
                self.token = token;
                return Err(self.unexpected(BEGINNINGS));
            }
        };
        self.advance()?;
        self.made(at, is)
    }

    fn named(&mut self, at: usize, name: String) -> Result<Node, Fault> {
        if self.is("(") {
            let at = self.start;
            let arguments = self.arguments()?;
            return self.made(at, Is::Call(None, name, arguments));
        }
        let is = match name.as_str() {
            "null" => Is::Null,
            "true" => Is::Bool(true),
            "false" => Is::Bool(false),
            word if RESERVED.contains(&word) || word == "in" => {
                return Err(Fault::new(at, format!("Syntax error: reserved identifier: {word}")));
            }
            _ => Is::Name(name),
        };
        self.made(at, is)
    }

    fn list(&mut self) -> Result<Vec<(Node, bool)>, Fault> {
        let mut items = Vec::new();
        while !self.is("]") {
            let optional = self.take("?")?;
            items.push((self.expression()?, optional));
            if !self.take(",")? {
                break;
            }
        }
        self.expect("]", "','")?;
        Ok(items)
    }

    fn map(&mut self) -> Result<Vec<(Node, Node, bool)>, Fault> {
        let mut fields = Vec::new();
        while !self.is("}") {
            let optional = self.take("?")?;
            let key = self.expression()?;
            self.expect(":", "")?;
            fields.push((key, self.expression()?, optional));
            if !self.take(",")? {
                break;
            }
        }
        self.expect("}", "','")?;
        Ok(fields)
    }

    /// The fields of a structure, behind its bracket.
    fn fields(&mut self) -> Result<Vec<(usize, String, Node, bool)>, Fault> {
        let mut fields = Vec::new();
        while !self.is("}") {
            let optional = self.take("?")?;
            let name = self.field()?;
            let at = self.start;
            self.expect(":", "")?;
            fields.push((at, name, self.expression()?, optional));
            if !self.take(",")? {
                break;
            }
        }
        self.expect("}", "','")?;
        Ok(fields)
    }

    /// Reads the next token.
    fn advance(&mut self) -> Result<(), Fault> {
        loop {
            let rest = self.rest();
            let blank = rest.len() - rest.trim_start_matches([' ', '\t', '\n', '\r', '\x0c']).len();
            let comment = match rest.get(blank..) {
                Some(rest) if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
                _ => 0,
            };
            self.at += blank + comment;
            if comment == 0 {
                break;
            }
        }
        self.start = self.at;
        self.token = self.token()?;
        Ok(())
    }

    fn token(&mut self) -> Result<Token, Fault> {
        let rest = self.source.get(self.at..).unwrap_or_default();
        let Some(first) = rest.chars().next() else { return Ok(Token::End) };
        let digit_next = rest.as_bytes().get(1).is_some_and(u8::is_ascii_digit);
        if first.is_ascii_digit() || (first == '.' && digit_next) {
            return self.number();
        }
        if first == '`' {
            let Some((name, _)) = rest.get(1..).and_then(|rest| rest.split_once('`')) else {
                return Err(Fault::new(self.at, "Syntax error: token recognition error at: '`'"));
            };
            self.at += name.len() + 2;
            return Ok(Token::Name(name.to_owned()));
        }
        if let Some((prefix, quote)) = quoted(rest) {
            return self.quoted(prefix, quote);
        }
        if first.is_ascii_alphabetic() || first == '_' {
            let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
            self.at += end;
            return Ok(Token::Name(rest.get(..end).unwrap_or_default().to_owned()));
        }
        match SIGNS.iter().find(|sign| rest.starts_with(**sign)) {
            Some(sign) => {
                self.at += sign.len();
                Ok(Token::Sign(sign))
            }
            None => Err(Fault::new(self.at, format!("Syntax error: token recognition error at: '{first}'"))),
        }
    }

    fn number(&mut self) -> Result<Token, Fault> {
        let rest = self.source.get(self.at..).unwrap_or_default();
        let bytes = rest.as_bytes();
        let wrong = Fault::new(self.at, "Syntax error: invalid number");
        let digits =
            |from: usize| bytes.get(from..).unwrap_or_default().iter().take_while(|b| b.is_ascii_digit()).count();
        if rest.starts_with("0x") || rest.starts_with("0X") {
            let end = rest
                .get(2..)
                .unwrap_or_default()
                .find(|c: char| !c.is_ascii_hexdigit())
                .map_or(rest.len(), |at| at + 2);
            let value = u64::from_str_radix(rest.get(2..end).unwrap_or_default(), 16).map_err(|_| wrong)?;
            return Ok(self.whole(end, value));
        }
        let mut end = digits(0);
        let mut is_whole = true;
        if bytes.get(end) == Some(&b'.') && digits(end + 1) > 0 {
            end += 1 + digits(end + 1);
            is_whole = false;
        }
        if matches!(bytes.get(end), Some(b'e' | b'E')) {
            let sign = usize::from(matches!(bytes.get(end + 1), Some(b'+' | b'-')));
            let power = digits(end + 1 + sign);
            if power > 0 {
                end += 1 + sign + power;
                is_whole = false;
            }
        }
        let text = rest.get(..end).unwrap_or_default();
        if is_whole {
            let value = text.parse().map_err(|_| wrong)?;
            return Ok(self.whole(end, value));
        }
        self.at += end;
        text.parse().map(Token::Double).map_err(|_| wrong)
    }

    fn whole(&mut self, length: usize, value: u64) -> Token {
        self.at += length;
        if self.rest().starts_with(['u', 'U']) {
            self.at += 1;
            return Token::Uint(value);
        }
        i64::try_from(value).map_or(Token::Large(value), Token::Int)
    }

    fn quoted(&mut self, prefix: usize, quote: &'static str) -> Result<Token, Fault> {
        let start = self.at;
        let rest = self.source.get(start..).unwrap_or_default();
        let marks = rest.get(..prefix).unwrap_or_default().to_ascii_lowercase();
        let (raw, is_bytes) = (marks.contains('r'), marks.contains('b'));
        let body = rest.get(prefix + quote.len()..).unwrap_or_default();
        let open = || Fault::new(start, "Syntax error: a string that does not end");
        let mut out = Out { text: String::new(), bytes: Vec::new(), is_bytes };
        let mut chars = body.char_indices();
        loop {
            let Some((at, c)) = chars.next() else { return Err(open()) };
            if body.get(at..).is_some_and(|rest| rest.starts_with(quote)) {
                self.at = start + prefix + quote.len() + at + quote.len();
                break;
            }
            match c {
                '\n' | '\r' if quote.len() == 1 => return Err(open()),
                '\\' if !raw => {
                    let wrong =
                        || Fault::new(start + prefix + quote.len() + at, "Syntax error: invalid escape sequence");
                    let (_, escape) = chars.next().ok_or_else(open)?;
                    let mut digits = |count: usize, radix: u32, first: Option<char>| {
                        let text: String =
                            first.into_iter().chain((0..count).map_while(|_| chars.next().map(|(_, c)| c))).collect();
                        u32::from_str_radix(&text, radix).ok().filter(|_| text.chars().all(|c| c.is_digit(radix)))
                    };
                    match escape {
                        'a' => out.push('\x07'),
                        'b' => out.push('\x08'),
                        'f' => out.push('\x0c'),
                        'n' => out.push('\n'),
                        'r' => out.push('\r'),
                        't' => out.push('\t'),
                        'v' => out.push('\x0b'),
                        '\\' | '?' | '"' | '\'' | '`' => out.push(escape),
                        'x' | 'X' => out.code(digits(2, 16, None), true).ok_or_else(wrong)?,
                        'u' if !is_bytes => out.code(digits(4, 16, None), false).ok_or_else(wrong)?,
                        'U' if !is_bytes => out.code(digits(8, 16, None), false).ok_or_else(wrong)?,
                        '0'..='3' => out.code(digits(2, 8, Some(escape)), true).ok_or_else(wrong)?,
                        _ => return Err(wrong()),
                    }
                }
                c => out.push(c),
            }
        }
        Ok(if is_bytes { Token::Bytes(out.bytes) } else { Token::Text(out.text) })
    }
}

/// What a quoted text becomes.
struct Out {
    text: String,
    bytes: Vec<u8>,
    is_bytes: bool,
}

impl Out {
    fn push(&mut self, c: char) {
        if self.is_bytes {
            self.bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
        } else {
            self.text.push(c);
        }
    }

    /// One that is written as a number: a byte, or a character.
    fn code(&mut self, code: Option<u32>, is_byte: bool) -> Option<()> {
        let code = code?;
        if self.is_bytes && is_byte {
            self.bytes.push(u8::try_from(code).ok()?);
        } else {
            self.push(char::from_u32(code)?);
        }
        Some(())
    }
}

/// The length of what stands before a quote, `r` and `b`, and the quote.
fn quoted(rest: &str) -> Option<(usize, &'static str)> {
    let prefix = rest.bytes().take(2).take_while(|byte| matches!(byte, b'r' | b'R' | b'b' | b'B')).count();
    let rest = rest.get(prefix..)?;
    let quote = ["\"\"\"", "'''", "\"", "'"].into_iter().find(|quote| rest.starts_with(quote))?;
    Some((prefix, quote))
}
