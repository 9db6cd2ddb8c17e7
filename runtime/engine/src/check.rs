//! What a file is, found without compiling it: for people who push one, before a pod says it.

use wasmparser::{Parser, Payload};

use crate::adapt::{Kind, kind};
use crate::compile::COMPONENT_BYTES_MAX;
use crate::component::WORLDS;
use crate::error::{cut, list};

/// Names of imports and exports that are kept; components have some dozens.
const NAMES_MAX: usize = 1_000;

/// A file that may run here: whether each import exists shows when it is linked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// Whether it is a core module of WASI 0.1, which is made a component when it is compiled.
    pub is_module: bool,
    /// What it wants, in the order of the file.
    pub imports: Vec<String>,
    /// What it offers, in the order of the file.
    pub exports: Vec<String>,
}

/// Why a file cannot run here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// No WebAssembly.
    #[error(
        "it is not WebAssembly: it does not begin with \"\\0asm\"; build a component, e.g. cargo build --release --target wasm32-wasip2"
    )]
    NotWasm,
    /// More than any component may have.
    #[error(
        "it has {0} bytes, and no component may have more than {COMPONENT_BYTES_MAX}; build it without debug information"
    )]
    TooLarge(usize),
    /// Cut off, or damaged.
    #[error("it is damaged or not whole ({0}); build it again")]
    Damaged(String),
    /// A component of another world.
    #[error(
        "it exports neither wasi:http/incoming-handler nor wasi:http/handler nor wasi:cli/run in a version that runs here, but {0}; build a service of wasi:http or a command of wasi:cli"
    )]
    NoWorld(String),
    /// A core module of something else, as browsers run.
    #[error(
        "it is a core module without the function _start of WASI 0.1; build a component, e.g. cargo build --release --target wasm32-wasip2"
    )]
    NoEntry,
}

/// Reads a file as far as it takes to say what it is. What is in its functions is the compiler's matter.
pub fn check(bytes: &[u8]) -> Result<Checked, Unfit> {
    let is_module = match kind(bytes) {
        None if bytes.starts_with(b"\0asm") => return Err(Unfit::Damaged("its version is unknown".to_owned())),
        None => return Err(Unfit::NotWasm),
        Some(_) if bytes.len() as u64 > COMPONENT_BYTES_MAX => return Err(Unfit::TooLarge(bytes.len())),
        Some(kind) => kind == Kind::Module,
    };
    let (mut imports, mut exports) = (Vec::new(), Vec::new());
    let (mut depth, mut has_type) = (0_usize, false);
    let damaged = |error: wasmparser::BinaryReaderError| Unfit::Damaged(cut(error.to_string()));
    for payload in Parser::new(0).parse_all(bytes) {
        let keep = |names: &mut Vec<String>, name: &str| {
            if depth == 0 && names.len() < NAMES_MAX {
                names.push(name.to_owned());
            }
        };
        match payload.map_err(damaged)? {
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
            Payload::End(_) => depth = depth.saturating_sub(1),
            Payload::ComponentExportSection(section) => {
                for export in section {
                    keep(&mut exports, export.map_err(damaged)?.name.name);
                }
            }
            Payload::ComponentImportSection(section) => {
                for import in section {
                    keep(&mut imports, import.map_err(damaged)?.name.name);
                }
            }
            Payload::ExportSection(section) => {
                for export in section {
                    keep(&mut exports, export.map_err(damaged)?.name);
                }
            }
            // How wit-bindgen tells what a module becomes.
            Payload::CustomSection(section) if depth == 0 => has_type |= section.name().starts_with("component-type"),
            _ => {}
        }
    }
    match is_module {
        true if !has_type && !exports.iter().any(|name| name == "_start") => Err(Unfit::NoEntry),
        false if !exports.iter().any(|name| WORLDS.iter().any(|world| name.starts_with(world))) => {
            let names = list(exports.iter().map(String::as_str));
            Err(Unfit::NoWorld(if names.is_empty() { "nothing".to_owned() } else { names }))
        }
        _ => Ok(Checked { is_module, imports, exports }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wasm(text: &str) -> Vec<u8> {
        wat::parse_str(text).unwrap()
    }

    #[test]
    fn what_can_run_is_told_from_what_cannot() {
        let service = wasm(
            "(component (import \"wasi:cli/stdout@0.2.0\" (instance)) (core module (memory 1) (data \"0123456789\"))
             (instance) (export \"wasi:http/incoming-handler@0.2.0\" (instance 1)))",
        );
        let checked = check(&service).unwrap();
        assert_eq!(checked.imports, ["wasi:cli/stdout@0.2.0"]);
        assert_eq!(
            (checked.is_module, &*checked.exports),
            (false, &["wasi:http/incoming-handler@0.2.0".to_owned()][..])
        );
        assert!(check(&wasm("(module (func (export \"_start\")))")).unwrap().is_module);
        // Wherever it is cut off (it has no names, which would come last), it is refused, and no damage panics.
        for end in 0..service.len() {
            assert!(check(&service[..end]).is_err(), "{end} of {}", service.len());
            let mut damaged = service.clone();
            damaged[end] ^= 0x55;
            let _ = check(&damaged);
        }
        assert_eq!(check(b"hello"), Err(Unfit::NotWasm));
        assert_eq!(check(&wasm("(component)")), Err(Unfit::NoWorld("nothing".to_owned())));
        assert_eq!(check(&wasm("(module (func (export \"run\")))")), Err(Unfit::NoEntry));
        let inner = wasm("(component (component (instance $i) (export \"wasi:cli/run@0.2.0\" (instance $i))))");
        assert!(matches!(check(&inner), Err(Unfit::NoWorld(_))), "what a part exports is not what it exports");
        let other = wasm("(component (instance $i) (export \"wasi:http/incoming-handler@0.1.0\" (instance $i)))");
        assert!(check(&other).unwrap_err().to_string().contains("but wasi:http/incoming-handler@0.1.0"));
    }
}
