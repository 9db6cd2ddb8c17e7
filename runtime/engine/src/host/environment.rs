//! `wasi:cli/environment`, answered from the specification: most instances live for one request and never ask, so
//! nothing is copied before they do.

use wasmtime::component::HasData;
use wasmtime_wasi::p2::bindings::cli::environment as p2;
use wasmtime_wasi::p3::bindings::cli::environment as p3;

use crate::{Spec, slice};

/// From so many bytes on copying takes long.
const LONG_BYTES: usize = 32 << 10;
/// What a string costs beside its bytes: it is allocated, here and in the guest.
const STRING_BYTES: usize = 64;

/// Before strings are copied for a guest: an environment may have 2 MiB of them, and as many as a guest likes to ask for.
fn copies<'a>(strings: impl Iterator<Item = &'a String>) {
    let bytes: usize = strings.map(|text| text.len() + STRING_BYTES).sum();
    if bytes >= LONG_BYTES {
        slice::is_long();
    }
}

fn environment(spec: &Spec) -> Vec<(String, String)> {
    copies(spec.env.iter().flat_map(|(name, value)| [name, value]));
    spec.env.clone()
}

fn arguments(spec: &Spec) -> Vec<String> {
    copies(spec.args.iter());
    spec.args.clone()
}

/// Marks the interface.
pub(crate) struct Environment;

impl HasData for Environment {
    type Data<'a> = &'a Spec;
}

impl p2::Host for &Spec {
    fn get_environment(&mut self) -> wasmtime::Result<Vec<(String, String)>> {
        Ok(environment(self))
    }

    fn get_arguments(&mut self) -> wasmtime::Result<Vec<String>> {
        Ok(arguments(self))
    }

    fn initial_cwd(&mut self) -> wasmtime::Result<Option<String>> {
        Ok(self.working_dir.clone())
    }
}

impl p3::Host for &Spec {
    fn get_environment(&mut self) -> wasmtime::Result<Vec<(String, String)>> {
        Ok(environment(self))
    }

    fn get_arguments(&mut self) -> wasmtime::Result<Vec<String>> {
        Ok(arguments(self))
    }

    fn get_initial_cwd(&mut self) -> wasmtime::Result<Option<String>> {
        Ok(self.working_dir.clone())
    }
}
