//! `test`, `[ ]` and `[[ ]]`.

use std::path::Path;

use super::syntax::Operand;
use super::{Shell, pattern};
use crate::io::Io;

/// Brackets within brackets.
const DEPTH_MAX: u32 = 50;

/// One word of a condition.
enum Token {
    /// As text, and as the pattern that it is on the right of `==`.
    Word(String, String),
    Operator(&'static str),
}

impl Shell {
    /// Whether what stands between `[[` and `]]` holds.
    pub(super) fn conditional(&mut self, operands: &[Operand], io: &mut Io) -> Result<bool, String> {
        let mut tokens = Vec::new();
        for operand in operands {
            tokens.push(match operand {
                Operand::Operator(operator) => Token::Operator(operator),
                Operand::Word(word) => Token::Word(self.value(word, io)?, self.pattern(word, io)?),
            });
        }
        holds(&tokens, self, true)
    }

    /// Whether the arguments of `test` hold.
    pub fn test(&self, arguments: &[String]) -> Result<bool, String> {
        let tokens: Vec<Token> = arguments
            .iter()
            .map(|argument| match argument.as_str() {
                "-a" => Token::Operator("&&"),
                "-o" => Token::Operator("||"),
                "(" => Token::Operator("("),
                ")" => Token::Operator(")"),
                text => Token::Word(text.to_owned(), text.chars().flat_map(|c| ['\\', c]).collect()),
            })
            .collect();
        holds(&tokens, self, false)
    }
}

fn holds(tokens: &[Token], shell: &Shell, is_long: bool) -> Result<bool, String> {
    if tokens.is_empty() {
        return Ok(false);
    }
    let mut reader = Reader { tokens, at: 0, depth: 0, shell, is_long };
    let value = reader.or()?;
    if reader.at == tokens.len() { Ok(value) } else { Err("test: syntax error".to_owned()) }
}

struct Reader<'a> {
    tokens: &'a [Token],
    at: usize,
    depth: u32,
    shell: &'a Shell,
    is_long: bool,
}

impl Reader<'_> {
    fn operator(&mut self, wanted: &str) -> bool {
        let is_next = matches!(self.tokens.get(self.at), Some(Token::Operator(operator)) if *operator == wanted);
        self.at += usize::from(is_next);
        is_next
    }

    fn word(&self, ahead: usize) -> Option<&str> {
        match self.tokens.get(self.at + ahead) {
            Some(Token::Word(text, _)) => Some(text),
            Some(Token::Operator(operator @ ("<" | ">"))) => Some(operator),
            _ => None,
        }
    }

    fn or(&mut self) -> Result<bool, String> {
        let mut value = self.and()?;
        while self.operator("||") {
            value |= self.and()?;
        }
        Ok(value)
    }

    fn and(&mut self) -> Result<bool, String> {
        let mut value = self.primary()?;
        while self.operator("&&") {
            value &= self.primary()?;
        }
        Ok(value)
    }

    fn primary(&mut self) -> Result<bool, String> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err("test: nested too deeply".to_owned());
        }
        let value = self.inner();
        self.depth -= 1;
        value
    }

    fn inner(&mut self) -> Result<bool, String> {
        if self.operator("(") {
            let value = self.or()?;
            return if self.operator(")") { Ok(value) } else { Err("test: closing paren expected".to_owned()) };
        }
        let Some(first) = self.word(0).map(str::to_owned) else { return Err("test: argument expected".to_owned()) };
        if let (Some(operator), Some(right)) = (self.word(1).map(str::to_owned), self.word(2).map(str::to_owned))
            && let Some(value) = self.binary(&first, &operator, &right)?
        {
            self.at += 3;
            return Ok(value);
        }
        if first == "!" && self.tokens.len() > self.at + 1 {
            self.at += 1;
            return Ok(!self.primary()?);
        }
        if first.len() == 2
            && first.starts_with('-')
            && let Some(operand) = self.word(1).map(str::to_owned)
        {
            self.at += 2;
            return unary(&first, &operand, &self.shell.path(&operand));
        }
        self.at += 1;
        Ok(!first.is_empty())
    }

    fn binary(&self, left: &str, operator: &str, right: &str) -> Result<Option<bool>, String> {
        let number = |text: &str| text.trim().parse::<i64>().map_err(|_| format!("{text}: bad number"));
        let compared = |holds: fn(&i64, &i64) -> bool| Ok(Some(holds(&number(left)?, &number(right)?)));
        let is_same = || match (self.is_long, self.tokens.get(self.at + 2)) {
            (true, Some(Token::Word(_, pattern))) => pattern::matches(pattern, left),
            _ => left == right,
        };
        match operator {
            "=" | "==" => Ok(Some(is_same())),
            "!=" => Ok(Some(!is_same())),
            "<" => Ok(Some(left < right)),
            ">" => Ok(Some(left > right)),
            "-eq" => compared(i64::eq),
            "-ne" => compared(i64::ne),
            "-lt" => compared(i64::lt),
            "-le" => compared(i64::le),
            "-gt" => compared(i64::gt),
            "-ge" => compared(i64::ge),
            _ => Ok(None),
        }
    }
}

fn unary(operator: &str, text: &str, path: &Path) -> Result<bool, String> {
    let metadata = || path.metadata();
    Ok(match operator {
        "-n" => !text.is_empty(),
        "-z" => text.is_empty(),
        // Nothing says who may: a component sees no modes.
        "-e" | "-r" | "-w" | "-x" => metadata().is_ok(),
        "-f" => metadata().is_ok_and(|metadata| metadata.is_file()),
        "-d" => metadata().is_ok_and(|metadata| metadata.is_dir()),
        "-s" => metadata().is_ok_and(|metadata| metadata.len() > 0),
        "-L" | "-h" => path.symlink_metadata().is_ok_and(|metadata| metadata.is_symlink()),
        "-t" => false,
        other => return Err(format!("test: {other}: unknown operand")),
    })
}
