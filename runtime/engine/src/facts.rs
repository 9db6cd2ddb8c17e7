//! What a component says about how it was made, and what follows for using its instances again.
//!
//! Whether an instance may serve a second request is a matter of the language's runtime: StarlingMonkey (JavaScript)
//! answers once; Rust, Go and Python, which keep their state in ordinary memory, answer as long as they are asked. What
//! nobody knows gets a fresh instance for each request. See `docs` of the annotation `coracle.dev/http-reuse` for what
//! one request can leave for the next.

use std::ops::Range;

use wasmparser::{KnownCustom, Parser, Payload};

/// Requests that one instance serves where using it again is known to be safe: enough that making it costs nothing,
/// few enough that what leaks in it goes.
pub(crate) const REUSE_DEFAULT: u32 = 1_000;

/// The same for WASI 0.3, whose guests lose about one handle with each request, of the 1,024 that they may have.
pub(crate) const REUSE_P3_MAX: u32 = 500;

/// Runtimes that answer one request only; they are known by what they are, not by a section: JavaScript's engines, and
/// the event that StarlingMonkey's programs answer.
const ONCE: [&[u8]; 4] = [b"StarlingMonkey", b"SpiderMonkey", b"QuickJS", b"respondWith"];

/// Languages and tools whose instances may be used again, as `producers` sections name them.
const AGAIN: [&str; 4] = ["Rust", "Go", "TinyGo", "componentize-py"];

/// What programs of these languages have in their data also when they are stripped: variables that their runtimes read,
/// and a function of CPython. Adapters have none of it.
const MARKS: [&[u8]; 3] = [b"RUST_BACKTRACE", b"GOMAXPROCS", b"PyEval_EvalCode"];

/// Modules that are looked at.
const MODULES_MAX: usize = 1_000;

/// Producers that are looked at. A component has some dozens.
const PRODUCERS_MAX: usize = 1_000;

/// Names of WASI's interfaces begin with this, and have this in them where they are those of WASI 0.3.
const WASI: &str = "wasi:";
const P3: &str = "@0.3.";

/// Which component model a component is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Model {
    /// That of WASI 0.2: a guest does one thing at a time.
    Sync,
    /// With what WASI 0.3 adds: calls, streams and futures that are under way beside each other. Keeping account of them costs each
    /// call of a guest and of the host, also where there is none.
    Async,
}

impl Model {
    /// As far as the names say it that a component imports and exports: who uses nothing else of 0.3 is refused by the compiler for
    /// [`Model::Sync`].
    pub(crate) fn of(wasm: &[u8]) -> Model {
        let mut depth = 0_usize;
        for payload in Parser::new(0).parse_all(wasm).map_while(Result::ok) {
            let is_async = match payload {
                Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => {
                    depth += 1;
                    false
                }
                Payload::End(_) => {
                    depth = depth.saturating_sub(1);
                    false
                }
                Payload::ComponentImportSection(section) if depth == 0 => {
                    section.into_iter().map_while(Result::ok).any(|import| is_p3(import.name.name))
                }
                Payload::ComponentExportSection(section) if depth == 0 => {
                    section.into_iter().map_while(Result::ok).any(|export| is_p3(export.name.name))
                }
                _ => false,
            };
            if is_async {
                return Model::Async;
            }
        }
        Model::Sync
    }
}

/// Whether an interface is one of WASI 0.3: others have versions of their own.
fn is_p3(name: &str) -> bool {
    name.starts_with(WASI) && name.contains(P3)
}

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Whether an instance may serve more than one request.
    pub(crate) is_reusable: bool,
    /// What its code was compiled for.
    pub(crate) model: Model,
}

impl Facts {
    /// Of the file of a component, or of a core module. What cannot be read says nothing.
    pub(crate) fn of(wasm: &[u8]) -> Facts {
        let says = producers(wasm).iter().any(|name| AGAIN.contains(&name.as_str()));
        let has = |marks: &[&[u8]]| marks.iter().any(|mark| contains(wasm, mark));
        Facts { is_reusable: (says || has(&MARKS)) && !has(&ONCE), model: Model::of(wasm) }
    }

    /// One line of text.
    pub(crate) fn to_text(self) -> &'static str {
        match (self.is_reusable, self.model) {
            (true, Model::Sync) => "reusable sync\n",
            (true, Model::Async) => "reusable async\n",
            (false, Model::Sync) => "fresh sync\n",
            (false, Model::Async) => "fresh async\n",
        }
    }

    /// The other way round; none for anything else.
    pub(crate) fn from_text(text: &str) -> Option<Facts> {
        let all =
            [true, false].map(|is_reusable| [Model::Sync, Model::Async].map(|model| Facts { is_reusable, model }));
        all.into_iter().flatten().find(|facts| facts.to_text() == text)
    }
}

/// The names in the `producers` sections of the largest core module: the program itself. Adapters and shims beside it
/// are Rust whatever the program is.
fn producers(wasm: &[u8]) -> Vec<String> {
    let mut modules: Vec<(Range<usize>, Vec<String>)> = Vec::new();
    if Parser::is_core_wasm(wasm) {
        modules.push((0..wasm.len(), Vec::new()));
    }
    for payload in Parser::new(0).parse_all(wasm) {
        let Ok(payload) = payload else { break };
        match payload {
            Payload::ModuleSection { unchecked_range, .. } if modules.len() < MODULES_MAX => {
                modules.push((unchecked_range, Vec::new()));
            }
            Payload::CustomSection(section) => {
                let KnownCustom::Producers(fields) = section.as_known() else { continue };
                let at = section.range().start;
                let Some((_, names)) = modules.iter_mut().rev().find(|(range, _)| range.contains(&at)) else {
                    continue;
                };
                for field in fields.into_iter().map_while(Result::ok) {
                    for value in field.values.into_iter().map_while(Result::ok) {
                        if names.len() < PRODUCERS_MAX {
                            names.push(value.name.to_owned());
                        }
                    }
                }
            }
            _ => {}
        }
    }
    modules.into_iter().max_by_key(|(range, _)| range.len()).map(|(_, names)| names).unwrap_or_default()
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
        assert!(made_by("C11", "PyEval_EvalCode").is_reusable && made_by("", "RUST_BACKTRACE").is_reusable);
        assert!(!made_by("C11", "").is_reusable && !made_by("JavaScript", "").is_reusable);
        assert!(!made_by("Rust", "StarlingMonkey/0.1").is_reusable, "it has Rust within");
        assert!(!made_by("Rust", "respondWith can't be called twice").is_reusable);
        assert!(!Facts::of(b"anything").is_reusable);
        let adapted = format!(
            "(component (core module (@producers (language \"C\" \"1\")) (memory 1) (data \"{}\"))
             (core module (@producers (language \"Rust\" \"1\"))))",
            "x".repeat(1_000)
        );
        assert!(!Facts::of(&wat::parse_str(adapted).unwrap()).is_reusable, "the program is C, its adapter is Rust");
        for facts in [made_by("Rust", ""), made_by("C", "")] {
            for model in [Model::Sync, Model::Async] {
                let facts = Facts { model, ..facts };
                assert_eq!(Facts::from_text(facts.to_text()), Some(facts));
            }
        }
        assert_eq!(Facts::from_text("torn"), None);
    }

    #[test]
    fn what_names_nothing_of_0_3_needs_nothing_of_it() {
        for (text, model) in [
            ("(module)", Model::Sync),
            ("(component (import \"wasi:cli/stdout@0.2.0\" (instance)))", Model::Sync),
            ("(component (import \"wasi:cli/stdout@0.3.0\" (instance)))", Model::Async),
            ("(component (core module) (instance) (export \"wasi:http/handler@0.3.0\" (instance 0)))", Model::Async),
            ("(component (import \"acme:shop/stock@0.3.0\" (instance)))", Model::Sync),
            ("(component (core module) (instance) (export \"acme:wasi/run@0.3.1\" (instance 0)))", Model::Sync),
            // What a part of it is made of is linked within it.
            ("(component (component (import \"wasi:cli/stdout@0.3.0\" (instance))))", Model::Sync),
        ] {
            assert_eq!(Model::of(&wat::parse_str(text).unwrap()), model, "{text}");
        }
    }
}
