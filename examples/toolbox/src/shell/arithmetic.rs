//! `$(( ))`: whole numbers of 64 bits, as C reckons with them.

use super::Shell;

/// Operators by how they bind, the weakest first.
const LEVELS: &[&[&str]] = &[
    &["||"],
    &["&&"],
    &["|"],
    &["^"],
    &["&"],
    &["==", "!="],
    &["<=", ">=", "<", ">"],
    &["<<", ">>"],
    &["+", "-"],
    &["*", "/", "%"],
];

/// Brackets within brackets.
const DEPTH_MAX: u32 = 50;

pub fn evaluate(text: &str, shell: &mut Shell) -> Result<i64, String> {
    let mut reader = Reader { text: text.as_bytes(), at: 0, depth: 0, shell };
    let value = reader.assignment()?;
    reader.spaces();
    match reader.at == text.len() {
        true => Ok(value),
        false => Err("arithmetic syntax error".to_owned()),
    }
}

struct Reader<'a> {
    text: &'a [u8],
    at: usize,
    depth: u32,
    shell: &'a mut Shell,
}

impl Reader<'_> {
    fn spaces(&mut self) {
        while self.text.get(self.at).is_some_and(u8::is_ascii_whitespace) {
            self.at += 1;
        }
    }

    fn skip(&mut self, text: &str) -> bool {
        self.spaces();
        let is_next = self.text[self.at..].starts_with(text.as_bytes());
        if is_next {
            self.at += text.len();
        }
        is_next
    }

    fn name(&mut self) -> Option<String> {
        self.spaces();
        let rest = &self.text[self.at..];
        let length = rest.iter().take_while(|c| c.is_ascii_alphanumeric() || **c == b'_').count();
        if length == 0 || rest[0].is_ascii_digit() {
            return None;
        }
        self.at += length;
        Some(String::from_utf8_lossy(&rest[..length]).into_owned())
    }

    fn value_of(&mut self, name: &str) -> i64 {
        self.shell.variable(name).and_then(|value| value.trim().parse().ok()).unwrap_or(0)
    }

    fn assignment(&mut self) -> Result<i64, String> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err("arithmetic nested too deeply".to_owned());
        }
        let start = self.at;
        if let Some(name) = self.name() {
            for operator in ["+=", "-=", "*=", "/=", "%=", "="] {
                if self.text[self.at..].starts_with(b"==") || !self.skip(operator) {
                    continue;
                }
                let right = self.assignment()?;
                let value = match operator {
                    "=" => right,
                    _ => reckon(&operator[..1], self.value_of(&name), right)?,
                };
                self.shell.variables.insert(name, value.to_string());
                self.depth -= 1;
                return Ok(value);
            }
            self.at = start;
        }
        let condition = self.level(0)?;
        let value = match self.skip("?") {
            true => {
                let (then, _) = (self.assignment()?, self.skip(":"));
                let otherwise = self.assignment()?;
                if condition != 0 { then } else { otherwise }
            }
            false => condition,
        };
        self.depth -= 1;
        Ok(value)
    }

    fn level(&mut self, level: usize) -> Result<i64, String> {
        let Some(operators) = LEVELS.get(level) else { return self.unary() };
        let mut left = self.level(level + 1)?;
        'next: loop {
            for operator in *operators {
                self.spaces();
                let rest = &self.text[self.at..];
                // Not a part of a longer one.
                let is_part = operator.len() == 1
                    && rest.len() > 1
                    && matches!(
                        (operator.as_bytes()[0], rest[1]),
                        (b'|', b'|') | (b'&', b'&') | (b'<', b'<') | (b'>', b'>')
                    );
                if !is_part && self.skip(operator) {
                    let right = self.level(level + 1)?;
                    left = reckon(operator, left, right)?;
                    continue 'next;
                }
            }
            return Ok(left);
        }
    }

    fn unary(&mut self) -> Result<i64, String> {
        if self.skip("(") {
            let value = self.assignment()?;
            return if self.skip(")") { Ok(value) } else { Err("arithmetic syntax error".to_owned()) };
        }
        for (step, change) in [("++", 1), ("--", -1)] {
            if self.skip(step) {
                let name = self.name().ok_or("arithmetic syntax error")?;
                let value = self.value_of(&name).wrapping_add(change);
                self.shell.variables.insert(name, value.to_string());
                return Ok(value);
            }
        }
        for (sign, apply) in [
            ("-", i64::wrapping_neg as fn(i64) -> i64),
            ("+", |value| value),
            ("!", |value| i64::from(value == 0)),
            ("~", |value| !value),
        ] {
            if self.skip(sign) {
                self.depth += 1;
                if self.depth > DEPTH_MAX {
                    return Err("arithmetic nested too deeply".to_owned());
                }
                let value = apply(self.unary()?);
                self.depth -= 1;
                return Ok(value);
            }
        }
        if let Some(name) = self.name() {
            let value = self.value_of(&name);
            for (step, change) in [("++", 1), ("--", -1)] {
                if self.skip(step) {
                    self.shell.variables.insert(name, value.wrapping_add(change).to_string());
                    break;
                }
            }
            return Ok(value);
        }
        let digits = self.text[self.at..].iter().take_while(|c| c.is_ascii_alphanumeric()).count();
        let text = String::from_utf8_lossy(&self.text[self.at..self.at + digits]).into_owned();
        self.at += digits;
        let number = match text.strip_prefix("0x") {
            Some(hex) => i64::from_str_radix(hex, 16),
            None if text.starts_with('0') && text.len() > 1 => i64::from_str_radix(&text, 8),
            None => text.parse(),
        };
        number.map_err(|_| "arithmetic syntax error".to_owned())
    }
}

fn reckon(operator: &str, left: i64, right: i64) -> Result<i64, String> {
    Ok(match operator {
        "||" => i64::from(left != 0 || right != 0),
        "&&" => i64::from(left != 0 && right != 0),
        "|" => left | right,
        "^" => left ^ right,
        "&" => left & right,
        "==" => i64::from(left == right),
        "!=" => i64::from(left != right),
        "<=" => i64::from(left <= right),
        ">=" => i64::from(left >= right),
        "<" => i64::from(left < right),
        ">" => i64::from(left > right),
        "<<" => left.wrapping_shl(u32::try_from(right).unwrap_or(0)),
        ">>" => left.wrapping_shr(u32::try_from(right).unwrap_or(0)),
        "+" => left.wrapping_add(right),
        "-" => left.wrapping_sub(right),
        "*" => left.wrapping_mul(right),
        "/" | "%" if right == 0 => return Err("divide by zero".to_owned()),
        "/" => left.wrapping_div(right),
        _ => left.wrapping_rem(right),
    })
}
