//! What a component says about how it was made, and what follows for using its instances again.
//!
//! Whether an instance may serve a second request is a matter of the language's runtime: StarlingMonkey (JavaScript)
//! answers once; Rust, Go and Python, which keep their state in ordinary memory, answer as long as they are asked. What
//! nobody knows gets a fresh instance for each request. See `docs` of the annotation `coracle.dev/http-reuse` for what
//! one request can leave for the next.

use wasmparser::{KnownCustom, Parser, Payload};

/// Requests that one instance serves where using it again is known to be safe: enough that making it costs nothing,
/// few enough that what leaks in it goes.
pub(crate) const REUSE_DEFAULT: u32 = 1_000;

/// The same for WASI 0.3, whose guests lose about one handle with each request, of the 1,024 that they may have.
pub(crate) const REUSE_P3_MAX: u32 = 500;

/// Runtimes that answer one request only; they are known by what they are, not by a section.
const ONCE: [&[u8]; 3] = [b"StarlingMonkey", b"SpiderMonkey", b"QuickJS"];

/// Languages and tools whose instances may be used again, as `producers` sections name them.
const AGAIN: [&str; 4] = ["Rust", "Go", "TinyGo", "componentize-py"];

/// Producers that are looked at. A component has some dozens.
const PRODUCERS_MAX: usize = 1_000;

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Whether an instance may serve more than one request.
    pub(crate) is_reusable: bool,
}

impl Facts {
    /// Of the file of a component, or of a core module. What cannot be read says nothing.
    pub(crate) fn of(wasm: &[u8]) -> Facts {
        let known = producers(wasm).iter().any(|name| AGAIN.contains(&name.as_str()));
        let python = !known && contains(wasm, b"PyEval_EvalCode");
        let once = || ONCE.iter().any(|name| contains(wasm, name));
        Facts { is_reusable: (known || python) && !once() }
    }

    /// One line of text.
    pub(crate) fn to_text(self) -> &'static str {
        if self.is_reusable { "reusable\n" } else { "fresh\n" }
    }

    /// The other way round; none for anything else.
    pub(crate) fn from_text(text: &str) -> Option<Facts> {
        [true, false].map(|is_reusable| Facts { is_reusable }).into_iter().find(|facts| facts.to_text() == text)
    }
}

/// The names in all `producers` sections, of modules within, too.
fn producers(wasm: &[u8]) -> Vec<String> {
    let mut names = Vec::new();
    for payload in Parser::new(0).parse_all(wasm) {
        let Ok(payload) = payload else { break };
        let Payload::CustomSection(section) = payload else { continue };
        let KnownCustom::Producers(fields) = section.as_known() else { continue };
        for field in fields.into_iter().map_while(Result::ok) {
            for value in field.values.into_iter().map_while(Result::ok) {
                if names.len() >= PRODUCERS_MAX {
                    return names;
                }
                names.push(value.name.to_owned());
            }
        }
    }
    names
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    let Some((first, rest)) = wanted.split_first() else { return true };
    let mut from = 0;
    while let Some(at) = bytes.get(from..).and_then(|bytes| bytes.iter().position(|byte| byte == first)) {
        from += at + 1;
        if bytes.get(from..).is_some_and(|bytes| bytes.starts_with(rest)) {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made_by(language: &str, data: &str) -> Facts {
        let text = format!(
            "(component (core module (@producers (language \"{language}\" \"1\")) (memory 1) (data (i32.const 0) \"{data}\")))"
        );
        Facts::of(&wat::parse_str(text).unwrap())
    }

    #[test]
    fn what_is_known_to_be_safe_is_reused_and_nothing_else() {
        assert!(made_by("Rust", "").is_reusable && made_by("Go", "").is_reusable);
        assert!(made_by("C11", "PyEval_EvalCode").is_reusable);
        assert!(!made_by("C11", "").is_reusable && !made_by("JavaScript", "").is_reusable);
        assert!(!made_by("Rust", "StarlingMonkey/0.1").is_reusable, "it has Rust within");
        assert!(!Facts::of(b"anything").is_reusable);
        for facts in [made_by("Rust", ""), made_by("C", "")] {
            assert_eq!(Facts::from_text(facts.to_text()), Some(facts));
        }
        assert_eq!(Facts::from_text("torn"), None);
    }
}
