//! How texts are compared.

use regex::{Regex, RegexBuilder};

/// Bytes that a compiled expression may take: every node has all of them in memory.
const COMPILED_BYTES_MAX: usize = 256 << 10;
/// Bytes of an expression (the field's own bound is 4,096 at most).
const TEXT_BYTES_MAX: usize = 4096;

/// A regular expression that is for a whole text, in the words of the crate `regex` (RE2's, but for little). Its time is linear.
#[derive(Debug, Clone)]
pub struct Pattern(Regex);

impl Pattern {
    /// From its text; why it is none.
    pub fn parse(text: &str) -> Result<Pattern, String> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(format!("an expression has more than {TEXT_BYTES_MAX} bytes"));
        }
        // By itself first: `a)|(b` is none, and would be one between other parentheses, for more than whole texts.
        compile(text, text)?;
        compile(&format!("^(?:{text})$"), text).map(Pattern)
    }

    /// For a path of so many segments, each from the text of an expression; where there is none, it is anything without a slash. A
    /// segment is a line to it: what is its begin and its end to an expression that is for it alone is so here.
    pub(crate) fn of_segments(segments: &[Option<&str>]) -> Result<Pattern, String> {
        let mut whole = r"\A".to_owned();
        for text in segments {
            match text {
                Some(text) => {
                    Pattern::parse(text)?;
                    whole.push_str(&format!("/(?:{text})"));
                }
                None => whole.push_str("/[^/]+"),
            }
        }
        whole.push_str(r"\z");
        let mut builder = RegexBuilder::new(&whole);
        built(builder.multi_line(true).line_terminator(b'/'), &whole).map(Pattern)
    }

    /// Whether it is for this text.
    pub fn is_match(&self, text: &str) -> bool {
        self.0.is_match(text)
    }
}

/// `said` is what somebody has written of it.
fn compile(text: &str, said: &str) -> Result<Regex, String> {
    built(&mut RegexBuilder::new(text), said)
}

fn built(builder: &mut RegexBuilder, said: &str) -> Result<Regex, String> {
    let made = builder.size_limit(COMPILED_BYTES_MAX).dfa_size_limit(COMPILED_BYTES_MAX).build();
    made.map_err(|error| match error {
        regex::Error::CompiledTooBig(_) => format!("expression {said:?} is too large"),
        _ => format!("{said:?} is no regular expression"),
    })
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Pattern) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

/// How a header or a parameter is compared.
#[derive(Debug, Clone, PartialEq)]
pub enum TextMatch {
    /// To the byte.
    Exact(String),
    /// By an expression.
    Pattern(Pattern),
}

impl TextMatch {
    /// From `type` and `value`.
    pub(crate) fn read(kind: Option<&str>, value: &str) -> Result<TextMatch, String> {
        match kind.unwrap_or("Exact") {
            "Exact" => Ok(TextMatch::Exact(value.to_owned())),
            "RegularExpression" => Pattern::parse(value).map(TextMatch::Pattern),
            other => Err(format!("type {other:?} of a match is not supported")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expression_is_for_the_whole_text_and_has_bounds() {
        let pattern = Pattern::parse("a+|b").unwrap();
        assert_eq!(
            ["aa", "b", "ab", "xa", "a\n"].map(|text| pattern.is_match(text)),
            [true, true, false, false, false]
        );
        for wrong in ["(", "x{1000}{1000}", "a)|(b", &"a".repeat(5000)] {
            assert!(Pattern::parse(wrong).is_err(), "{}", &wrong[..wrong.len().min(20)]);
        }
    }
}
