//! Tokens of JSON text, with syntax errors in the words of Go's scanner.

use std::borrow::Cow;

use serde_json::{Map, Number, Value};

use crate::codec::{DEPTH_MAX, TOO_DEEP, TOO_MANY_OBJECTS};

/// Deepest nesting that is read (Go's limit) where the value is skipped.
const DEEPEST: usize = 10_000;

/// A syntax error, as Go words it.
#[derive(Debug)]
pub(super) struct Syntax(pub(super) String);

type Result<T> = std::result::Result<T, Syntax>;

/// Reads forward through the text. Nothing is read twice.
pub(super) struct Scanner<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) at: usize,
    pub(super) depth: usize,
    /// Objects that may still come.
    pub(super) objects_left: usize,
    /// What is nested too deeply is left out of a value without a type.
    pub(super) cuts: Cuts,
}

/// What becomes of lists and objects that nest deeper than [`DEPTH_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cuts {
    /// They are an error.
    Refused,
    /// They are left out; none was seen yet.
    None,
    /// They are left out, and there are such.
    Some,
}

/// Told of keys that an untyped object has twice; the way to the object is kept by whoever listens.
pub(super) trait Twice {
    fn enter(&mut self, step: Step<'_>);
    fn leave(&mut self);
    fn twice(&mut self, key: &str);
}

/// A step of the way to a value.
pub(super) enum Step<'a> {
    Key(&'a str),
    Index(usize),
}

/// Nobody is told.
pub(super) struct Silent;

impl Twice for Silent {
    fn enter(&mut self, _: Step<'_>) {}
    fn leave(&mut self) {}
    fn twice(&mut self, _: &str) {}
}

impl<'a> Scanner<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Scanner<'a> {
        Scanner { bytes, at: 0, depth: 0, objects_left: usize::MAX, cuts: Cuts::Refused }
    }

    /// The next byte that is not space; it stays to be read.
    #[inline]
    pub(super) fn peek(&mut self) -> Result<u8> {
        while let Some(&byte) = self.bytes.get(self.at) {
            if !matches!(byte, b' ' | b'\n' | b'\t' | b'\r') {
                return Ok(byte);
            }
            self.at += 1;
        }
        Err(Syntax("unexpected end of JSON input".into()))
    }

    pub(super) fn wrong<T>(&self, context: &str) -> Result<T> {
        let Some(&byte) = self.bytes.get(self.at) else { return Err(Syntax("unexpected end of JSON input".into())) };
        let quoted = match byte {
            b'\'' => r"'\''".to_owned(),
            b'"' => "'\"'".to_owned(),
            b'\\' => r"'\\'".to_owned(),
            b'\n' => r"'\n'".to_owned(),
            b'\t' => r"'\t'".to_owned(),
            b'\r' => r"'\r'".to_owned(),
            0x20..=0x7e => format!("'{}'", byte as char),
            0xa1..=0xff if byte != 0xad => format!("'{}'", byte as char),
            0x80.. => format!(r"'\u{byte:04x}'"),
            _ => format!(r"'\x{byte:02x}'"),
        };
        Err(Syntax(format!("invalid character {quoted} {context}")))
    }

    /// Nothing but space may follow.
    pub(super) fn end(&mut self) -> Result<()> {
        match self.peek() {
            Ok(_) => self.wrong("after top-level value"),
            Err(_) => Ok(()),
        }
    }

    /// Goes into an object or list.
    pub(super) fn enter(&mut self, deepest: usize) -> Result<()> {
        if self.depth >= deepest {
            return self.wrong(TOO_DEEP);
        }
        self.depth += 1;
        self.at += 1;
        Ok(())
    }

    /// The next key of an object, its colon read too; `None` when the object ends. `first` says that no key came before.
    #[inline]
    pub(super) fn key(&mut self, first: bool) -> Result<Option<Cow<'a, str>>> {
        match (self.peek()?, first) {
            (b'}', _) => {
                self.at += 1;
                self.depth -= 1;
                return Ok(None);
            }
            (b',', false) => {
                self.at += 1;
                if self.peek()? != b'"' {
                    return self.wrong("looking for beginning of object key string");
                }
            }
            (b'"', true) => {}
            (_, true) => return self.wrong("looking for beginning of object key string"),
            (_, false) => return self.wrong("after object key:value pair"),
        }
        if first {
            self.count()?;
        }
        let key = self.string()?;
        if self.peek()? != b':' {
            return self.wrong("after object key");
        }
        self.at += 1;
        Ok(Some(key))
    }

    /// Counts an object that is not empty.
    pub(super) fn count(&mut self) -> Result<()> {
        let left = self.objects_left.checked_sub(1);
        self.objects_left = left.ok_or_else(|| Syntax(TOO_MANY_OBJECTS.into()))?;
        Ok(())
    }

    /// Whether a list goes on with another item.
    #[inline]
    pub(super) fn item(&mut self, first: bool) -> Result<bool> {
        match (self.peek()?, first) {
            (b']', _) => {
                self.at += 1;
                self.depth -= 1;
                Ok(false)
            }
            (_, true) => Ok(true),
            (b',', false) => {
                self.at += 1;
                if self.peek()? == b']' {
                    return self.wrong("looking for beginning of value");
                }
                Ok(true)
            }
            _ => self.wrong("after array element"),
        }
    }

    /// The string that starts here, at its quote.
    #[inline]
    pub(super) fn string(&mut self) -> Result<Cow<'a, str>> {
        let start = self.at + 1;
        let mut at = start;
        loop {
            at += plain(&self.bytes[at..]);
            match self.bytes.get(at) {
                Some(b'"') => {
                    self.at = at + 1;
                    return Ok(crate::codec::text(&self.bytes[start..at]));
                }
                Some(b'\\') => return self.escaped(start, at),
                Some(0x20..) => at += 1,
                _ => {
                    self.at = at;
                    return self.wrong("in string literal");
                }
            }
        }
    }

    fn escaped(&mut self, start: usize, at: usize) -> Result<Cow<'a, str>> {
        let mut text = self.bytes[start..at].to_vec();
        self.at = at;
        loop {
            match self.bytes.get(self.at) {
                Some(b'"') => {
                    self.at += 1;
                    let text = String::from_utf8(text);
                    return Ok(Cow::Owned(text.unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())));
                }
                Some(b'\\') => {
                    self.at += 1;
                    let c = match self.bytes.get(self.at) {
                        Some(&c @ (b'"' | b'\\' | b'/')) => c as char,
                        Some(b'b') => '\u{8}',
                        Some(b'f') => '\u{c}',
                        Some(b'n') => '\n',
                        Some(b'r') => '\r',
                        Some(b't') => '\t',
                        Some(b'u') => {
                            let unit = self.unit()?;
                            self.character(unit)?
                        }
                        _ => return self.wrong("in string escape code"),
                    };
                    self.at += 1;
                    text.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                }
                Some(&byte @ 0x20..) => {
                    text.push(byte);
                    self.at += 1;
                }
                _ => return self.wrong("in string literal"),
            }
        }
    }

    /// The four digits after `u`, where we stand; afterwards at the last of them.
    fn unit(&mut self) -> Result<u16> {
        let mut unit = 0;
        for _ in 0..4 {
            self.at += 1;
            match self.bytes.get(self.at).and_then(|&byte| (byte as char).to_digit(16)) {
                Some(digit) => unit = unit * 16 + digit as u16,
                None => return self.wrong("in \\u hexadecimal character escape"),
            }
        }
        Ok(unit)
    }

    /// The character of a unit; of two, when it is the first half of a pair and the second follows.
    fn character(&mut self, unit: u16) -> Result<char> {
        if (0xd800..0xdc00).contains(&unit) && self.bytes.get(self.at + 1..self.at + 3) == Some(br"\u") {
            let before = self.at;
            self.at += 2;
            let second = self.unit()?;
            if let Some(Ok(c)) = char::decode_utf16([unit, second]).next() {
                return Ok(c);
            }
            self.at = before;
        }
        Ok(char::from_u32(u32::from(unit)).unwrap_or(char::REPLACEMENT_CHARACTER))
    }

    /// The number that starts here, as it is written.
    pub(super) fn number(&mut self) -> Result<&'a str> {
        let start = self.at;
        if self.bytes.get(self.at) == Some(&b'-') {
            self.at += 1;
        }
        match self.bytes.get(self.at) {
            Some(b'0') => self.at += 1,
            Some(b'1'..=b'9') => self.digits(),
            _ if self.at > start => return self.wrong("in numeric literal"),
            _ => return self.wrong("looking for beginning of value"),
        }
        if self.bytes.get(self.at) == Some(&b'.') {
            self.at += 1;
            if !self.bytes.get(self.at).is_some_and(u8::is_ascii_digit) {
                return self.wrong("after decimal point in numeric literal");
            }
            self.digits();
        }
        if matches!(self.bytes.get(self.at), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.bytes.get(self.at), Some(b'+' | b'-')) {
                self.at += 1;
            }
            if !self.bytes.get(self.at).is_some_and(u8::is_ascii_digit) {
                return self.wrong("in exponent of numeric literal");
            }
            self.digits();
        }
        // Only ASCII was passed.
        Ok(std::str::from_utf8(&self.bytes[start..self.at]).unwrap_or("0"))
    }

    fn digits(&mut self) {
        while self.bytes.get(self.at).is_some_and(u8::is_ascii_digit) {
            self.at += 1;
        }
    }

    /// The word that starts here: true, false or null.
    pub(super) fn word(&mut self, word: &'static str) -> Result<()> {
        for expected in word.bytes() {
            if self.bytes.get(self.at) != Some(&expected) {
                return self.wrong(&format!("in literal {word} (expecting '{}')", expected as char));
            }
            self.at += 1;
        }
        Ok(())
    }

    /// Reads past a value. Uses no stack, so nesting is as deep as Go takes it.
    pub(super) fn skip(&mut self) -> Result<()> {
        // Nothing of it is kept.
        let left = std::mem::replace(&mut self.objects_left, usize::MAX);
        let past = self.skip_past();
        self.objects_left = left;
        past
    }

    fn skip_past(&mut self) -> Result<()> {
        // The brackets that are open.
        let mut open: Vec<u8> = Vec::new();
        let mut first = true;
        loop {
            let goes_on = match open.last() {
                Some(b'{') => self.key(first)?.is_some(),
                Some(_) => self.item(first)?,
                None => true,
            };
            if !goes_on {
                open.pop();
                first = false;
                if open.is_empty() {
                    return Ok(());
                }
                continue;
            }
            let byte = self.peek()?;
            if matches!(byte, b'{' | b'[') {
                self.enter(DEEPEST)?;
                open.push(byte);
                first = true;
                continue;
            }
            self.scalar(byte)?;
            first = false;
            if open.is_empty() {
                return Ok(());
            }
        }
    }

    fn scalar(&mut self, byte: u8) -> Result<()> {
        match byte {
            b'"' => drop(self.string()?),
            b't' => self.word("true")?,
            b'f' => self.word("false")?,
            b'n' => self.word("null")?,
            _ => drop(self.number()?),
        }
        Ok(())
    }

    /// Any value. Each kind of value has a function of its own, so that a level takes no more of the stack than it needs.
    pub(super) fn any(&mut self, told: &mut impl Twice) -> Result<Value> {
        match self.peek()? {
            b'{' => self.any_object(told),
            b'[' => self.any_list(told),
            byte => self.any_scalar(byte),
        }
    }

    /// Whether what starts here is too deep and left out; then it was read over.
    fn is_cut(&mut self) -> Result<bool> {
        if self.cuts == Cuts::Refused || self.depth < DEPTH_MAX || !matches!(self.peek()?, b'{' | b'[') {
            return Ok(false);
        }
        self.skip()?;
        self.cuts = Cuts::Some;
        Ok(true)
    }

    fn any_object(&mut self, told: &mut impl Twice) -> Result<Value> {
        self.enter(DEPTH_MAX)?;
        let mut map = Map::new();
        let mut first = true;
        while let Some(key) = self.key(first)? {
            first = false;
            if self.is_cut()? {
                continue;
            }
            if map.contains_key(&*key) {
                told.twice(&key);
            }
            told.enter(Step::Key(&key));
            let value = self.any(told);
            told.leave();
            map.insert(key.into_owned(), value?);
        }
        Ok(Value::Object(map))
    }

    fn any_list(&mut self, told: &mut impl Twice) -> Result<Value> {
        self.enter(DEPTH_MAX)?;
        let mut items = Vec::new();
        let mut first = true;
        while self.item(first)? {
            first = false;
            if self.is_cut()? {
                continue;
            }
            told.enter(Step::Index(items.len()));
            let item = self.any(told);
            told.leave();
            items.push(item?);
        }
        Ok(Value::Array(items))
    }

    fn any_scalar(&mut self, byte: u8) -> Result<Value> {
        Ok(match byte {
            b'"' => Value::String(self.string()?.into_owned()),
            b't' => {
                self.word("true")?;
                Value::Bool(true)
            }
            b'f' => {
                self.word("false")?;
                Value::Bool(false)
            }
            b'n' => {
                self.word("null")?;
                Value::Null
            }
            _ => number(self.number()?)?,
        })
    }
}

/// How many bytes at least stand before the next quote, backslash or control character: eight are looked at at once.
#[inline]
fn plain(bytes: &[u8]) -> usize {
    const ONES: u64 = u64::MAX / 255;
    const HIGHS: u64 = ONES << 7;
    let mut length = 0;
    for chunk in bytes.chunks_exact(8) {
        let Ok(chunk) = <[u8; 8]>::try_from(chunk) else { break };
        let word = u64::from_le_bytes(chunk);
        let below_space = word.wrapping_sub(ONES * 0x20) & !word;
        let is = |byte: u8| {
            let differs = word ^ (ONES * u64::from(byte));
            differs.wrapping_sub(ONES) & !differs
        };
        let found = (below_space | is(b'"') | is(b'\\')) & HIGHS;
        if found != 0 {
            return length + found.trailing_zeros() as usize / 8;
        }
        length += 8;
    }
    length
}

/// A number without a type: whole when it is written without fraction and fits, else a double. Beyond doubles it is none.
fn number(text: &str) -> Result<Value> {
    if let Ok(whole) = text.parse::<i64>() {
        return Ok(Value::from(whole));
    }
    let double = text.parse::<f64>().ok().and_then(Number::from_f64);
    double
        .map(Value::Number)
        .ok_or_else(|| Syntax(format!("json: cannot unmarshal number {text} into Go value of type float64")))
}
