//! Field selectors: `metadata.name=x,status.phase!=Running`. Which fields a kind offers is the kind's.

use std::borrow::Cow;
use std::fmt;

use super::SelectorError;

/// A field selector: all terms must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct FieldSelector {
    terms: Vec<FieldTerm>,
}

/// One comparison of one field.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct FieldTerm {
    /// As `spec.nodeName`.
    pub field: String,
    /// Whether it must be equal, or must not.
    pub equal: bool,
    /// To what; a field that is absent is the empty text.
    pub value: String,
}

impl FieldSelector {
    /// Selects all.
    pub const fn everything() -> Self {
        Self { terms: Vec::new() }
    }

    /// The selector of one object by its name.
    pub fn name(name: &str) -> Self {
        let term = FieldTerm { field: "metadata.name".to_owned(), equal: true, value: name.to_owned() };
        Self { terms: vec![term] }
    }

    /// Reads the text of a query.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut parts = split(text);
        parts.sort_unstable();
        let mut terms = Vec::with_capacity(parts.len());
        for part in parts.into_iter().filter(|part| !part.is_empty()) {
            let (field, equal, value) = term(part)
                .ok_or_else(|| SelectorError(format!("invalid selector: '{text}'; can't understand '{part}'")))?;
            let value = unescape(value)?;
            // Nothing compared with nothing is no term.
            if !(field.is_empty() && value.is_empty()) {
                terms.push(FieldTerm { field: field.to_owned(), equal, value: value.into_owned() });
            }
        }
        Ok(Self { terms })
    }

    /// Whether it selects everything.
    pub fn is_everything(&self) -> bool {
        self.terms.is_empty()
    }

    /// What must hold.
    pub fn terms(&self) -> &[FieldTerm] {
        &self.terms
    }

    /// The same, for renaming the fields of an older version.
    pub fn terms_mut(&mut self) -> &mut Vec<FieldTerm> {
        &mut self.terms
    }

    /// Whether an object is selected; `field` gives the value of a field, `None` for the empty text.
    pub fn matches<'a>(&self, field: impl Fn(&str) -> Option<Cow<'a, str>>) -> bool {
        self.terms.iter().all(|term| {
            let value = field(&term.field);
            (value.as_deref().unwrap_or_default() == term.value) == term.equal
        })
    }

    /// The only value that the field may have, if there is one; for reads by name and for indexes.
    pub fn exact(&self, field: &str) -> Option<&str> {
        self.terms.iter().find(|term| term.equal && term.field == field).map(|term| term.value.as_str())
    }
}

impl fmt::Display for FieldSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, term) in self.terms.iter().enumerate() {
            let value = term.value.replace('\\', "\\\\").replace(',', "\\,").replace('=', "\\=");
            let comma = if at > 0 { "," } else { "" };
            write!(f, "{comma}{}{}{value}", term.field, if term.equal { "=" } else { "!=" })?;
        }
        Ok(())
    }
}

/// Splits at commas that no backslash is before.
fn split(text: &str) -> Vec<&str> {
    let (mut parts, mut start, mut escaped) = (Vec::new(), 0, false);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b',' => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn term(part: &str) -> Option<(&str, bool, &str)> {
    let bytes = part.as_bytes();
    let at = (0..bytes.len()).find(|&at| bytes[at] == b'=' || bytes[at..].starts_with(b"!="))?;
    let (field, rest) = part.split_at(at);
    let operators = [("!=", false), ("==", true), ("=", true)];
    operators.into_iter().find_map(|(operator, equal)| Some((field, equal, rest.strip_prefix(operator)?)))
}

fn unescape(value: &str) -> Result<Cow<'_, str>, SelectorError> {
    if !value.contains(['\\', ',', '=']) {
        return Ok(Cow::Borrowed(value));
    }
    let wrong = |sequence: &str| SelectorError(format!("invalid field selector: invalid escape sequence: {sequence}"));
    let mut out = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(c @ ('\\' | ',' | '=')) => out.push(c),
                Some(c) => return Err(wrong(&format!("\\{c}"))),
                None => return Err(wrong("\\")),
            },
            ',' | '=' => {
                let message = format!("invalid field selector: unescaped character in value: {}", c as u32);
                return Err(SelectorError(message));
            }
            c => out.push(c),
        }
    }
    Ok(Cow::Owned(out))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_matches() {
        for (text, expected, matches) in [
            ("", Ok(""), true),
            ("=", Ok(""), true),
            ("metadata.name=a", Ok("metadata.name=a"), true),
            ("status.phase!=Running,metadata.name==a", Ok("metadata.name=a,status.phase!=Running"), true),
            ("status.phase=", Ok("status.phase="), true),
            ("é=b", Ok("é=b"), false),
            ("a=b\\,c\\=d\\\\", Ok("a=b\\,c\\=d\\\\"), false),
            ("a", Err("invalid selector: 'a'; can't understand 'a'"), false),
            ("a=b=c", Err("invalid field selector: unescaped character in value: 61"), false),
            ("a=\\x", Err("invalid field selector: invalid escape sequence: \\x"), false),
        ] {
            let parsed = FieldSelector::parse(text);
            if let Ok(selector) = &parsed {
                let field = |path: &str| (path == "metadata.name").then_some(Cow::Borrowed("a"));
                assert_eq!(selector.matches(field), matches, "{text}");
            }
            let printed = parsed.map(|selector| selector.to_string()).map_err(|e| e.0);
            assert_eq!(printed, expected.map(str::to_owned).map_err(str::to_owned), "{text}");
        }
    }
}
