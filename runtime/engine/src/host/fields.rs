//! Lists of headers of guests. What a call hands over is bounded in bytes, but of the shortest strings that is tens of thousands, and
//! taking them in lasts for milliseconds, whatever becomes of them.

use wasmtime::StoreContextMut;
use wasmtime::component::{Linker, Resource};
use wasmtime_wasi_http::p2::bindings::http::types as p2;
use wasmtime_wasi_http::p3::bindings::http::types as p3;
use wasmtime_wasi_http::{FieldMap, WasiHttpView};

use crate::guest::Guest;
use crate::slice;

/// From so many entries on a list takes long.
const LONG: usize = 256;

/// After a list was taken in.
fn taken<T>(list: &[T]) {
    if list.len() >= LONG {
        slice::is_long();
    }
}

/// Defines the functions that take lists in place of wasmtime's, for one version.
macro_rules! define {
    ($linker:expr, $interface:literal, $types:ident) => {{
        let mut types = $linker.instance($interface)?;
        types.func_wrap(
            "[static]fields.from-list",
            |mut store: StoreContextMut<'_, Guest>, (list,): (Vec<(String, Vec<u8>)>,)| {
                taken(&list);
                let made: Result<Resource<FieldMap>, $types::HeaderError> =
                    match $types::HostFields::from_list(&mut store.data_mut().http(), list) {
                        Ok(made) => Ok(made),
                        Err(error) => Err(error.downcast()?),
                    };
                Ok((made,))
            },
        )?;
        types.func_wrap(
            "[method]fields.set",
            |mut store: StoreContextMut<'_, Guest>,
             (fields, name, list): (Resource<FieldMap>, String, Vec<Vec<u8>>)| {
                taken(&list);
                let set: Result<(), $types::HeaderError> =
                    match $types::HostFields::set(&mut store.data_mut().http(), fields, name, list) {
                        Ok(()) => Ok(()),
                        Err(error) => Err(error.downcast()?),
                    };
                Ok((set,))
            },
        )
    }};
}

/// Those of 0.2.
pub(super) fn add_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    define!(linker, "wasi:http/types@0.2.12", p2)
}

/// Those of 0.3.
pub(super) fn add_p3_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    define!(linker, "wasi:http/types@0.3.0", p3)
}
