//! Turns a core module of WASI 0.1 into a component, with the adapter that wasmtime ships.

use wasi_preview1_component_adapter_provider as adapters;
use wasmparser::{Parser, Payload};
use wit_component::ComponentEncoder;

/// What a file is, by its first eight bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A component.
    Component,
    /// A core module.
    Module,
}

/// What these bytes are; none for no WebAssembly.
pub(crate) fn kind(bytes: &[u8]) -> Option<Kind> {
    if Parser::is_component(bytes) {
        Some(Kind::Component)
    } else if Parser::is_core_wasm(bytes) {
        Some(Kind::Module)
    } else {
        None
    }
}

/// A component that does what the core module does; for people, why it cannot be made.
pub(crate) fn component(module: &[u8]) -> Result<Vec<u8>, String> {
    let adapter = if is_command(module)? {
        adapters::WASI_SNAPSHOT_PREVIEW1_COMMAND_ADAPTER
    } else {
        adapters::WASI_SNAPSHOT_PREVIEW1_REACTOR_ADAPTER
    };
    ComponentEncoder::default()
        .validate(true)
        .module(module)
        .and_then(|encoder| encoder.adapter(adapters::WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME, adapter))
        .and_then(|mut encoder| encoder.encode())
        .map_err(|error| format!("a core module that cannot be made a component: {error:#}"))
}

/// Whether the module has an entry point, as commands have.
fn is_command(module: &[u8]) -> Result<bool, String> {
    for payload in Parser::new(0).parse_all(module) {
        if let Payload::ExportSection(exports) = payload.map_err(|error| error.to_string())? {
            for export in exports {
                if export.map_err(|error| error.to_string())?.name == "_start" {
                    return Ok(true);
                }
            }
        }
    }
    Ok(false)
}
