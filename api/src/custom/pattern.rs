//! Regular expressions of schemas. They are written for Go's `regexp` and matched by Rust's, which is as linear: what the two
//! read differently is rewritten (`\d`, `\w`, `\s` and `\b` are ASCII in Go; brackets and ampersands in a class mean
//! themselves; a brace that counts nothing does, too).

use std::fmt;
use std::sync::OnceLock;

use regex::{Match, Regex, RegexBuilder};

/// Most states that one expression may unfold to, about: Go has a limit of the same kind.
const STATES_MAX: usize = 20_000;
/// Most states that all expressions of one schema may unfold to together: each is compiled when the schema is checked.
pub(crate) const STATES_ALL_MAX: usize = 1_000_000;
/// States of an expression that is matched fast: names, numbers, versions.
const FEW_STATES: usize = 32;
/// Largest count of a repetition (Go's).
const REPEAT_MAX: usize = 1_000;
/// Bytes of a compiled expression, and of what is kept to match it faster.
const SIZE_MAX: usize = 4 << 20;
const CACHE_MAX: usize = 256 << 10;

/// An expression, compiled when it is first needed.
pub struct Pattern {
    text: Box<str>,
    /// About how many states it unfolds to.
    states: usize,
    regex: OnceLock<Option<Regex>>,
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Pattern {
    pub(crate) fn new(text: &str) -> Pattern {
        let states = Translation::of(text).map_or(0, |translation| translation.states);
        Pattern { text: text.into(), states, regex: OnceLock::new() }
    }

    /// As it was written.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// Steps that matching a text of this length may take. An expression whose automaton does not fit into its cache is
    /// matched state by state, each about 4 ns a byte (measured: 160 ns a byte with 36 states, 4 µs with 1,200), and a step is
    /// about 100 ns. One of few states takes less than that, but for the worst of texts.
    pub(crate) fn cost(&self, bytes: usize) -> usize {
        let parts = if self.states <= FEW_STATES { 64 } else { 16 };
        bytes.saturating_mul(self.states.max(1)) / parts + 1
    }

    /// Whether it matches anywhere in a text. One that does not compile, which was refused when it was written, matches nothing.
    pub(crate) fn matches(&self, text: &str) -> bool {
        let regex = self.regex.get_or_init(|| compile(&self.text).ok());
        regex.as_ref().is_some_and(|regex| regex.is_match(text))
    }

    /// What of a text matches, one after the other.
    pub(crate) fn each<'t>(&'t self, text: &'t str) -> impl Iterator<Item = Match<'t>> {
        let regex = self.regex.get_or_init(|| compile(&self.text).ok());
        regex.iter().flat_map(|regex| regex.find_iter(text))
    }
}

fn compile(text: &str) -> Result<Regex, String> {
    Translation::of(text)?.compile()
}

/// An expression in Rust's words, which is read in a step a byte.
pub(crate) struct Translation {
    text: String,
    /// About how many states it unfolds to: what compiling it takes, also where it fails.
    pub states: usize,
}

impl Translation {
    pub fn of(text: &str) -> Result<Translation, String> {
        let mut reader = Reader {
            rest: text,
            past_named: text.rfind(":]").map_or(text.len(), |at| text.len() - at - 1),
            out: String::with_capacity(text.len() + 16),
            levels: vec![Level::default()],
        };
        while !reader.rest.is_empty() {
            reader.part()?;
        }
        let states = reader.levels.iter().map(Level::all).fold(0_usize, usize::saturating_add);
        if states > STATES_MAX {
            return Err("expression too large".to_owned());
        }
        Ok(Translation { text: reader.out, states })
    }

    /// Whether it is an expression. That compiles it: its states are paid for before.
    pub fn check(&self) -> Result<(), String> {
        self.compile().map(drop)
    }

    /// What is matched at once with the expression of this text, which it is of.
    pub fn pattern(&self, text: &str) -> Result<Pattern, String> {
        let regex = OnceLock::from(Some(self.compile()?));
        Ok(Pattern { text: text.into(), states: self.states, regex })
    }

    fn compile(&self) -> Result<Regex, String> {
        let built =
            RegexBuilder::new(&self.text).size_limit(SIZE_MAX).dfa_size_limit(CACHE_MAX).nest_limit(200).build();
        built.map_err(|error| match error {
            regex::Error::Syntax(words) => {
                words.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned()
            }
            error => error.to_string(),
        })
    }
}

/// What is between two brackets.
#[derive(Default)]
struct Level {
    /// States of all parts but the last.
    before: usize,
    /// Of the last part, which a repetition repeats.
    last: usize,
}

impl Level {
    fn push(&mut self, states: usize) {
        self.before = self.before.saturating_add(self.last);
        self.last = states;
    }

    fn all(&self) -> usize {
        self.before.saturating_add(self.last)
    }
}

struct Reader<'a> {
    rest: &'a str,
    /// Bytes that are left where no class is named any more (`:]`).
    past_named: usize,
    out: String,
    levels: Vec<Level>,
}

impl Reader<'_> {
    fn next(&mut self) -> Option<char> {
        let c = self.rest.chars().next()?;
        self.rest = &self.rest[c.len_utf8()..];
        Some(c)
    }

    fn push(&mut self, states: usize) {
        if let Some(level) = self.levels.last_mut() {
            level.push(states);
        }
    }

    fn part(&mut self) -> Result<(), String> {
        let Some(c) = self.next() else { return Ok(()) };
        match c {
            '\\' => self.escape(false)?,
            '[' => self.class()?,
            '(' => {
                self.out.push('(');
                self.levels.push(Level::default());
                if self.rest.starts_with('?') {
                    self.group()?;
                }
            }
            ')' => {
                self.out.push(')');
                let inner = self.levels.pop().map_or(0, |level| level.all());
                if self.levels.is_empty() {
                    return Err("unexpected )".to_owned());
                }
                self.push(inner.saturating_add(1));
            }
            '{' => self.repeat()?,
            c => {
                self.out.push(c);
                if !matches!(c, '*' | '+' | '?' | '|' | '^' | '$') {
                    self.push(1);
                }
            }
        }
        Ok(())
    }

    /// What follows `(?`: a name, or flags that both know.
    fn group(&mut self) -> Result<(), String> {
        let end = self.rest.find([':', ')', '>']).ok_or("missing argument to group")?;
        let head = &self.rest[..=end];
        let is_name = head.starts_with("?P<") || head.starts_with("?<");
        let flags = head.trim_start_matches('?').trim_end_matches([':', ')']);
        if !is_name && !flags.chars().all(|c| matches!(c, 'i' | 'm' | 's' | 'U' | '-')) {
            return Err(format!("invalid or unsupported Perl syntax: `({head}`"));
        }
        // The bracket that ends flags ends the group, too.
        let taken = if head.ends_with(')') { end } else { end + 1 };
        self.out.push_str(&self.rest[..taken]);
        self.rest = &self.rest[taken..];
        Ok(())
    }

    fn repeat(&mut self) -> Result<(), String> {
        // Nothing else is looked for: what is not a count is read again as what it is.
        let length = self.rest.bytes().take_while(|byte| byte.is_ascii_digit() || *byte == b',').count();
        let counts = self.rest[length..].strip_prefix('}').and_then(|rest| {
            let inside = &self.rest[..length];
            let (least, most) = inside.split_once(',').unwrap_or((inside, inside));
            let number =
                |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse::<usize>().ok());
            let least = number(least)??;
            let most = if most.is_empty() { least + 1 } else { number(most)?? };
            Some((inside.len() + 1, least.max(most), rest))
        });
        let Some((length, most, rest)) = counts else {
            self.out.push_str("\\{");
            self.push(1);
            return Ok(());
        };
        // One without an end counts once more than its least.
        if most > REPEAT_MAX + usize::from(self.rest[..length].ends_with(",}")) {
            return Err(format!("invalid repeat count: `{{{}`", &self.rest[..length]));
        }
        self.out.push('{');
        self.out.push_str(&self.rest[..length]);
        self.rest = rest;
        if let Some(level) = self.levels.last_mut() {
            level.last = level.last.saturating_mul(most.max(1));
        }
        Ok(())
    }

    /// What follows a backslash, also within brackets.
    fn escape(&mut self, in_class: bool) -> Result<(), String> {
        let c = self.next().ok_or("trailing backslash at end of expression")?;
        let set = match c {
            'd' => Some(("0-9", false)),
            'D' => Some(("0-9", true)),
            'w' => Some(("0-9A-Za-z_", false)),
            'W' => Some(("0-9A-Za-z_", true)),
            's' => Some(("\\t\\n\\f\\r ", false)),
            'S' => Some(("\\t\\n\\f\\r ", true)),
            _ => None,
        };
        if let Some((set, negated)) = set {
            let not = if negated { "^" } else { "" };
            match (in_class, negated) {
                (true, false) => self.out.push_str(set),
                _ => self.out.push_str(&format!("[{not}{set}]")),
            }
        } else if c == 'Q' {
            let (quoted, rest) = self.rest.split_once("\\E").unwrap_or((self.rest, ""));
            self.out.push_str(&regex::escape(quoted));
            self.rest = rest;
            self.push(quoted.chars().count());
            return Ok(());
        } else if matches!(c, 'b' | 'B') && !in_class {
            self.out.push_str(&format!("(?-u:\\{c})"));
        } else if matches!(c, 'p' | 'P') {
            self.out.push('\\');
            self.out.push(c);
            if self.rest.starts_with('{') {
                let end = self.rest.find('}').ok_or("invalid character class range")?;
                self.out.push_str(&self.rest[..=end]);
                self.rest = &self.rest[end + 1..];
            } else if let Some(name) = self.next() {
                self.out.push(name);
            }
            // A class of Unicode is many ranges of bytes.
            self.push(200);
            return Ok(());
        } else if c == 'x' {
            self.out.push_str("\\x");
            let taken = match self.rest.strip_prefix('{') {
                Some(rest) => rest.find('}').map(|end| end + 2),
                None => self.rest.is_char_boundary(2).then_some(2),
            };
            let taken = taken.filter(|taken| *taken <= self.rest.len()).ok_or("invalid escape sequence: `\\x`")?;
            self.out.push_str(&self.rest[..taken]);
            self.rest = &self.rest[taken..];
        } else if matches!(c, 'a' | 'f' | 't' | 'n' | 'r' | 'v') || (matches!(c, 'A' | 'z') && !in_class) {
            self.out.push('\\');
            self.out.push(c);
        } else if c.is_ascii() && !c.is_ascii_alphanumeric() {
            self.literal(c, in_class);
        } else {
            return Err(format!("invalid escape sequence: `\\{c}`"));
        }
        self.push(1);
        Ok(())
    }

    /// A character that means itself.
    fn literal(&mut self, c: char, in_class: bool) {
        let special = if in_class { "[]^-&~\\" } else { "\\.+*?()|[]{}^$#&-~" };
        if special.contains(c) {
            self.out.push('\\');
        }
        self.out.push(c);
    }

    /// What is between square brackets.
    fn class(&mut self) -> Result<(), String> {
        self.out.push('[');
        if self.rest.starts_with('^') {
            self.next();
            self.out.push('^');
        }
        // What is within counts as one part, so that a repetition repeats all of it.
        self.levels.push(Level::default());
        let mut first = true;
        // Whether what comes may begin a range: a dash between two characters makes one, elsewhere it means itself.
        let mut can_range = false;
        loop {
            let c = self.next().ok_or("missing closing ]")?;
            match c {
                ']' if !first => break,
                '[' if self.rest.starts_with(':') && self.rest.len() > self.past_named => {
                    let end = self.rest.find(":]").map_or(0, |end| end + 2);
                    self.out.push('[');
                    self.out.push_str(&self.rest[..end]);
                    self.rest = &self.rest[end..];
                    can_range = false;
                }
                '-' if can_range && !self.rest.starts_with(']') => {
                    self.out.push('-');
                    can_range = false;
                    let to = self.next().ok_or("missing closing ]")?;
                    match to {
                        '\\' => self.escape(true)?,
                        to => self.literal(to, true),
                    }
                }
                '\\' => {
                    can_range = !self.rest.starts_with(['d', 'D', 'w', 'W', 's', 'S', 'p', 'P']);
                    self.escape(true)?;
                }
                c => {
                    self.literal(c, true);
                    can_range = true;
                }
            }
            first = false;
        }
        self.out.push(']');
        let inner = self.levels.pop().map_or(0, |level| level.all());
        self.push(inner.saturating_add(2));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of what is an expression.
    fn states(text: &str) -> Result<usize, String> {
        let translation = Translation::of(text)?;
        translation.check().map(|()| translation.states)
    }

    #[test]
    fn expressions_mean_what_they_mean_in_go() {
        for (pattern, text, expected) in [
            (r"^\d+$", "12", true),
            (r"^\d+$", "١٢", false),
            (r"^[\w.-]+$", "a_b-c.d", true),
            (r"^[^\s]+$", "a\u{a0}b", true),
            (r"^[\W]$", "é", true),
            (r"^[a&&b[]+$", "&[ab", true),
            (r"^[+--]+$", "+,-", true),
            (r"^[]a-]+$", "]-a", true),
            (r"^\$\{[^}]+\}$", "${x}", true),
            (r"^{a}$", "{a}", true),
            (r"^a{2,3}$", "aaaa", false),
            (r"^\Qa.b\E$", "a.b", true),
            (r"^\Qa.b\E$", "axb", false),
            (r"\bfoo\b", "é foo!", true),
            (r"^\<\/$", "</", true),
            (r"(?i)^ABC$", "abc", true),
            (r"^(?:a|b)(?P<x>c)$", "bc", true),
            (r"^[[:alpha:]]+$", "ab", true),
            (r"^\p{L}+$", "é", true),
            (r"^.$", "é", true),
            (r"^\x41\x{42}$", "AB", true),
        ] {
            let states = states(pattern).unwrap_or_else(|error| panic!("{pattern}: {error}"));
            assert!(states < 1_000, "{pattern}");
            assert_eq!(Pattern::new(pattern).matches(text), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn matching_costs_more_the_more_states_there_are() {
        let cost = |pattern: &str, bytes: usize| Pattern::new(pattern).cost(bytes);
        // A whole object of names is checked, as it was before.
        assert!(cost("^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$", 3 << 20) < 2_000_000);
        assert!(cost("^[a-z]+$", 1_000) < 100);
        // Half a microsecond of each byte, and four.
        assert!(cost("(a|b)*a(a|b){40}c", 1_000) >= 5_000);
        assert!(cost("(a|b)*a(a|b){400}c", 1_000) >= 40_000);
        assert_eq!(cost("a{1000}", usize::MAX), usize::MAX / 16 + 1);
    }

    #[test]
    fn what_is_wrong_or_would_be_large_is_refused() {
        for pattern in
            ["(", ")", "[a", r"\", r"(?=a)", r"\y", "a{1001}", "(a{1000}){1000}", "(((a{99}){99}){99}){99}", "*"]
        {
            assert!(states(pattern).is_err(), "{pattern}");
        }
        // Classes of Unicode are as large within brackets as beside them.
        for pattern in [r"\p{L}{250}", r"[\p{L}]{250}", r"[^\p{L}]{250}", r"([\p{L}\p{N}]{2}){60}"] {
            assert_eq!(states(pattern).unwrap_err(), "expression too large", "{pattern}");
        }
        assert!(states(r"^[\p{L}_-]{1,63}$").is_ok_and(|states| states > 63 * 200));
        let deep = format!("{}a{}", "(".repeat(5_000), ")".repeat(5_000));
        assert!(states(&deep).is_err());
    }

    #[test]
    fn what_is_long_is_read_once() {
        let begun = std::time::Instant::now();
        for part in ["{", "{1", "{1}", "["] {
            let _ = Translation::of(&part.repeat(1 << 20));
        }
        let _ = Translation::of(&format!("[{}", "[:".repeat(1 << 20)));
        // Half a minute and more where each looks for its end.
        assert!(begun.elapsed() < std::time::Duration::from_secs(10), "{:?}", begun.elapsed());
    }
}
