//! The grammar of label selectors in queries (`labels.Parse`), with its errors word for word.
//!
//! ```text
//! selector    = [ requirement { "," requirement } ]
//! requirement = [ "!" ] key [ ( "in" | "notin" ) "(" values ")" | ( "=" | "==" | "!=" | ">" | "<" ) value ]
//! ```

use std::collections::BTreeSet;

use super::SelectorError;
use super::label::{Operator, Requirement};
use crate::meta::field::FieldError;
use crate::meta::names;

const BINARY: &str = "in, notin, =, ==, !=, gt, lt";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    Wrong,
    End,
    Close,
    Comma,
    Not,
    DoubleEquals,
    Equals,
    Greater,
    Identifier,
    In,
    Less,
    NotEquals,
    NotIn,
    Open,
}

fn keyword(text: &[u8]) -> Option<Token> {
    Some(match text {
        b")" => Token::Close,
        b"," => Token::Comma,
        b"!" => Token::Not,
        b"==" => Token::DoubleEquals,
        b"=" => Token::Equals,
        b">" => Token::Greater,
        b"in" => Token::In,
        b"<" => Token::Less,
        b"!=" => Token::NotEquals,
        b"notin" => Token::NotIn,
        b"(" => Token::Open,
        _ => return None,
    })
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | b'\n')
}

fn is_symbol(byte: u8) -> bool {
    matches!(byte, b'=' | b'!' | b'(' | b')' | b',' | b'>' | b'<')
}

/// Splits the text; the last token is always [`Token::End`]. A NUL ends the text.
fn scan(text: &str) -> Vec<(Token, String)> {
    let bytes = text.split('\0').next().unwrap_or_default().as_bytes();
    let string = |part: &[u8]| String::from_utf8_lossy(part).into_owned();
    let (mut tokens, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        let start = at;
        if is_space(bytes[at]) {
            at += 1;
        } else if is_symbol(bytes[at]) {
            // The longest run of symbols that is a token; a run that never becomes one is an error.
            let mut found = None;
            while at < bytes.len() && is_symbol(bytes[at]) {
                match keyword(&bytes[start..=at]) {
                    Some(token) => found = Some((token, at + 1)),
                    None if found.is_some() => break,
                    None => {}
                }
                at += 1;
            }
            match found {
                Some((token, end)) => {
                    tokens.push((token, string(&bytes[start..end])));
                    at = end;
                }
                None => {
                    let run = string(&bytes[start..at]);
                    tokens.push((Token::Wrong, format!("error expected: keyword found '{run}'")));
                }
            }
        } else {
            while at < bytes.len() && !is_symbol(bytes[at]) && !is_space(bytes[at]) {
                at += 1;
            }
            let word = &bytes[start..at];
            tokens.push((keyword(word).unwrap_or(Token::Identifier), string(word)));
        }
    }
    tokens.push((Token::End, String::new()));
    tokens
}

struct Parser {
    tokens: Vec<(Token, String)>,
    at: usize,
}

/// Reads all requirements.
pub(super) fn parse(text: &str) -> Result<Vec<Requirement>, SelectorError> {
    let mut parser = Parser { tokens: scan(text), at: 0 };
    let mut requirements = Vec::new();
    loop {
        match parser.peek() {
            (Token::Identifier | Token::Not, _) => {
                let requirement = parser.requirement();
                requirements
                    .push(requirement.map_err(|e| SelectorError(format!("unable to parse requirement: {}", e.0)))?);
                match parser.next() {
                    (Token::End, _) => return Ok(requirements),
                    (Token::Comma, _) => match parser.peek() {
                        (Token::Identifier | Token::Not, _) => {}
                        (_, found) => return expected(found, ", expected: identifier after ','"),
                    },
                    (_, found) => return expected(&found, ", expected: ',' or 'end of string'"),
                }
            }
            (Token::End, _) => return Ok(requirements),
            (_, found) => return expected(found, ", expected: !, identifier, or 'end of string'"),
        }
    }
}

fn expected<T>(found: &str, words: &str) -> Result<T, SelectorError> {
    Err(SelectorError(format!("found '{found}'{words}")))
}

impl Parser {
    /// The next token where `in` and `notin` are words like others.
    fn peek(&self) -> (Token, &str) {
        let (token, text) = &self.tokens[self.at.min(self.tokens.len() - 1)];
        match token {
            Token::In | Token::NotIn => (Token::Identifier, text),
            token => (*token, text),
        }
    }

    fn next(&mut self) -> (Token, String) {
        let (token, text) = self.peek();
        let result = (token, text.to_owned());
        self.at += 1;
        result
    }

    fn requirement(&mut self) -> Result<Requirement, SelectorError> {
        let (mut token, mut key) = self.next();
        let negated = token == Token::Not;
        if negated {
            (token, key) = self.next();
        }
        if token != Token::Identifier {
            return expected(&key, ", expected: identifier");
        }
        let messages = names::qualified_name(&key);
        if !messages.is_empty() {
            // The reference has no path here, and prints that.
            let error = FieldError::invalid("<nil>", &key, &messages.join("; "));
            return Err(SelectorError(error.to_string()));
        }
        if negated {
            return Requirement::new(&key, Operator::DoesNotExist, Vec::new());
        }
        if matches!(self.peek().0, Token::End | Token::Comma) {
            return Requirement::new(&key, Operator::Exists, Vec::new());
        }
        let (token, found) = self.tokens[self.at.min(self.tokens.len() - 1)].clone();
        self.at += 1;
        let operator = match token {
            Token::In => Operator::In,
            Token::NotIn => Operator::NotIn,
            Token::Equals => Operator::Equals,
            Token::DoubleEquals => Operator::DoubleEquals,
            Token::NotEquals => Operator::NotEquals,
            Token::Greater => Operator::GreaterThan,
            Token::Less => Operator::LessThan,
            _ => return expected(&found, &format!(", expected: {BINARY}")),
        };
        let values = match operator {
            Operator::In | Operator::NotIn => self.values()?,
            _ => BTreeSet::from([self.value()?]),
        };
        Requirement::new(&key, operator, values.into_iter().collect())
    }

    fn value(&mut self) -> Result<String, SelectorError> {
        if matches!(self.peek().0, Token::End | Token::Comma) {
            return Ok(String::new());
        }
        match self.next() {
            (Token::Identifier, text) => Ok(text),
            (_, found) => expected(&found, ", expected: identifier"),
        }
    }

    fn values(&mut self) -> Result<BTreeSet<String>, SelectorError> {
        match self.next() {
            (Token::Open, _) => {}
            (_, found) => return expected(&found, " expected: '('"),
        }
        let (token, first) = self.peek();
        let first = first.to_owned();
        match token {
            Token::Identifier | Token::Comma => {
                let values = self.list()?;
                match self.next() {
                    (Token::Close, _) => Ok(values),
                    _ => expected(&first, ", expected: ')'"),
                }
            }
            Token::Close => {
                self.at += 1;
                Ok(BTreeSet::from([String::new()]))
            }
            _ => expected(&first, ", expected: ',', ')' or identifier"),
        }
    }

    /// Words between commas, any of which may be missing, up to the closing parenthesis.
    fn list(&mut self) -> Result<BTreeSet<String>, SelectorError> {
        let mut values = BTreeSet::new();
        loop {
            match self.next() {
                (Token::Identifier, text) => {
                    values.insert(text);
                    match self.peek() {
                        (Token::Comma, _) => {}
                        (Token::Close, _) => return Ok(values),
                        (_, found) => return expected(found, ", expected: ',' or ')'"),
                    }
                }
                (Token::Comma, _) => {
                    if values.is_empty() {
                        values.insert(String::new());
                    }
                    match self.peek().0 {
                        Token::Close => {
                            values.insert(String::new());
                            return Ok(values);
                        }
                        Token::Comma => drop(values.insert(String::new())),
                        _ => {}
                    }
                }
                (_, found) => return expected(&found, ", expected: ',', or identifier"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::LabelSelector;

    #[test]
    fn reads_the_grammar() {
        for (text, expected) in [
            ("", Ok("")),
            ("a", Ok("a")),
            (" b = c , a != d", Ok("a!=d,b=c")),
            ("x in (foo,,baz),y,z notin ()", Ok("x in (,baz,foo),y,z notin ()")),
            ("in in (in,notin)", Ok("in in (in,notin)")),
            ("a==", Ok("a==")),
            ("a=,b", Ok("a=,b")),
            ("a in (,)", Ok("a in ()")),
            ("a>1,b<2", Ok("a>1,b<2")),
            ("!a, !b", Ok("!a,!b")),
            ("a b", Err("unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt")),
            ("a,", Err("found '', expected: identifier after ','")),
            (",a", Err("found ',', expected: !, identifier, or 'end of string'")),
            ("a in b", Err("unable to parse requirement: found 'b' expected: '('")),
            ("a in (b", Err("unable to parse requirement: found '', expected: ',' or ')'")),
            ("a in (b c)", Err("unable to parse requirement: found 'c', expected: ',' or ')'")),
            ("a=b=c", Err("found '=', expected: ',' or 'end of string'")),
            ("!", Err("unable to parse requirement: found '', expected: identifier")),
            (
                "a>x",
                Err(
                    "unable to parse requirement: values[0]: Invalid value: \"x\": for 'Gt', 'Lt' operators, the value must be an integer",
                ),
            ),
            ("a=b c", Err("found 'c', expected: ',' or 'end of string'")),
            (
                "a=-",
                Err(
                    "unable to parse requirement: values[0][a]: Invalid value: \"-\": a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')",
                ),
            ),
            ("/x", Err("unable to parse requirement: <nil>: Invalid value: \"/x\": prefix part must be non-empty")),
        ] {
            let parsed = LabelSelector::parse(text).map(|selector| selector.to_string()).map_err(|e| e.0);
            assert_eq!(parsed, expected.map(str::to_owned).map_err(str::to_owned), "{text}");
        }
    }
}
