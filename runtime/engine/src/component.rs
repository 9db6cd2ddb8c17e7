//! A component that is compiled, loaded and linked, and what can be started of it.

use std::fmt;
use std::sync::Arc;

use wasmtime::component::{InstancePre, Linker};
use wasmtime_wasi::p2::bindings::CommandPre as CommandP2;
use wasmtime_wasi_http::p2::bindings::ProxyPre as ServiceP2;
use wasmtime_wasi_http::p3::bindings::ServicePre as ServiceP3;

use crate::error::{line, list};
use crate::facts::{Facts, REUSE_DEFAULT, REUSE_P3_MAX};
use crate::guest::Guest;
use crate::{Error, settings};

/// Where exports and imports are versioned, their names go on with `@` and a version.
const HTTP_P2: &str = "wasi:http/incoming-handler@0.2.";
const HTTP_P3: &str = "wasi:http/handler@0.3.";
const RUN_P2: &str = "wasi:cli/run@0.2.";
const RUN_P3: &str = "wasi:cli/run@0.3.";
/// A component that runs here exports one of these.
pub(crate) const WORLDS: [&str; 4] = [HTTP_P2, HTTP_P3, RUN_P2, RUN_P3];

/// Bytes of the names that a component imports; what runs here has some dozens, of 30 bytes.
const IMPORTS_BYTES_MAX: usize = 64 << 10;

/// A component that can be started. Clones share it; the code is unloaded with the last of them and of its instances.
#[derive(Clone)]
pub struct Component(Arc<Loaded>);

pub(crate) struct Loaded {
    digest: String,
    /// In which it is loaded.
    wasm: wasmtime::Engine,
    imports: Vec<String>,
    /// Places that an instance takes in the engine.
    pub(crate) places: u32,
    facts: Facts,
    pub(crate) pre: Pre,
}

/// A component linked with everything it imports, by what it exports.
pub(crate) enum Pre {
    HttpP2(ServiceP2<Guest>),
    HttpP3(ServiceP3<Guest>),
    CommandP2(CommandP2<Guest>),
    CommandP3(InstancePre<Guest>),
}

/// What a component is, by what it exports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum World {
    /// Answers HTTP requests. Wins, since Rust programs built on `wstd` export both.
    Http,
    /// Runs to its end.
    Command,
}

impl fmt::Display for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            World::Http => "service (wasi:http)",
            World::Command => "command (wasi:cli)",
        })
    }
}

impl Component {
    /// Links what was loaded; refuses what cannot be started, saying why. An instance takes `weight` times as many places as it has
    /// memories.
    pub(crate) fn link(
        digest: &str,
        component: &wasmtime::component::Component,
        linker: &Linker<Guest>,
        facts: Facts,
        weight: u32,
    ) -> Result<Component, Error> {
        let engine = component.engine();
        let ty = component.component_type();
        let imports = || ty.imports(engine).map(|(name, _)| name);
        let exports = || ty.exports(engine).map(|(name, _)| name);
        let instance = linker.instantiate_pre(component).map_err(|error| import_error(imports(), &error))?;
        let imported: usize = imports().map(str::len).sum();
        if imported > IMPORTS_BYTES_MAX {
            let message = format!("the names of its imports have {imported} bytes, more than {IMPORTS_BYTES_MAX}");
            return Err(Error::Invalid(message));
        }
        let imports: Vec<String> = imports().map(str::to_owned).collect();
        let has = |prefix: &str| exports().any(|name| name.starts_with(prefix));
        let invalid = |error: wasmtime::Error| Error::Invalid(line(&error));
        let pre = if has(HTTP_P2) {
            Pre::HttpP2(ServiceP2::new(instance).map_err(invalid)?)
        } else if has(HTTP_P3) {
            Pre::HttpP3(ServiceP3::new(instance).map_err(invalid)?)
        } else if has(RUN_P2) {
            Pre::CommandP2(CommandP2::new(instance).map_err(invalid)?)
        } else if has(RUN_P3) {
            Pre::CommandP3(instance)
        } else {
            let names = list(exports());
            return Err(Error::NoWorld(if names.is_empty() { "none".to_owned() } else { names }));
        };
        let places = settings::places(component).saturating_mul(weight);
        let (digest, wasm) = (digest.to_owned(), engine.clone());
        Ok(Component(Arc::new(Loaded { digest, wasm, imports, places, facts, pre })))
    }

    pub(crate) fn from_loaded(loaded: Arc<Loaded>) -> Component {
        Component(loaded)
    }

    pub(crate) fn loaded(&self) -> &Arc<Loaded> {
        &self.0
    }

    pub(crate) fn pre(&self) -> &Pre {
        &self.0.pre
    }

    pub(crate) fn wasm(&self) -> &wasmtime::Engine {
        &self.0.wasm
    }

    pub(crate) fn places(&self) -> u32 {
        self.0.places
    }

    /// Requests that one instance of it may serve, one after the other, as far as is known of its language and its world:
    /// 1 where nothing is known. Memory persists from one to the next, nothing else does.
    pub fn reuse(&self) -> u32 {
        match (&self.0.pre, self.0.facts.is_reusable) {
            (Pre::HttpP3(_), _) => REUSE_P3_MAX,
            (Pre::HttpP2(_), true) => REUSE_DEFAULT,
            (Pre::HttpP2(_) | Pre::CommandP2(_) | Pre::CommandP3(_), _) => 1,
        }
    }

    /// The same with what was asked for; never for ever.
    pub(crate) fn reuse_of(&self, asked: Option<u32>) -> u32 {
        let reuse = asked.unwrap_or_else(|| self.reuse()).max(1);
        if matches!(self.0.pre, Pre::HttpP3(_)) { reuse.min(REUSE_P3_MAX) } else { reuse }
    }

    /// Digest of the file it was made from.
    pub fn digest(&self) -> &str {
        &self.0.digest
    }

    /// What can be started of it.
    pub fn world(&self) -> World {
        match self.0.pre {
            Pre::HttpP2(_) | Pre::HttpP3(_) => World::Http,
            Pre::CommandP2(_) | Pre::CommandP3(_) => World::Command,
        }
    }

    /// The interfaces it imports, with their versions.
    pub fn imports(&self) -> &[String] {
        &self.0.imports
    }
}

impl fmt::Debug for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Component").field("digest", &self.0.digest).field("world", &self.world()).finish()
    }
}

/// Names the import that does not fit. wasmtime says it in words only.
fn import_error<'a>(mut imports: impl Iterator<Item = &'a str>, error: &wasmtime::Error) -> Error {
    let text = line(error);
    let is_named = |name: &&str| name.len() < text.len() && text.contains(&format!("`{name}`"));
    let Some(name) = imports.find(is_named) else {
        return Error::Invalid(text);
    };
    let unknown =
        error.chain().any(|cause| cause.to_string().contains("matching implementation was not found in the linker"));
    let is_plain = unknown && error.chain().count() <= 1;
    let detail = if is_plain { String::new() } else { format!(" in this form ({text})") };
    Error::Import { name: name.to_owned(), detail }
}
