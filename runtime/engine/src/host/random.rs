//! `wasi:random`: so many bytes at a time that a call stays short.

use rand::RngCore;
use wasmtime::StoreContextMut;
use wasmtime::component::Linker;

use crate::guest::Guest;
use crate::slice;

/// Random bytes of one call: some 50 µs. A guest of WASI 0.2 that asks for more is ended, as its interface has no other
/// answer; one of 0.3 gets as many.
const BYTES_MAX: u64 = 64 << 10;

/// The functions of the two versions; the insecure ones give the same.
const FUNCTIONS: [(&str, &str); 2] =
    [("wasi:random/random", "get-random-bytes"), ("wasi:random/insecure", "get-insecure-random-bytes")];

/// Defines them in place of wasmtime's, which make each byte on its own.
pub(super) fn add_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    for (interface, name) in FUNCTIONS {
        linker.instance(&format!("{interface}@0.2.12"))?.func_wrap(
            name,
            |_: StoreContextMut<'_, Guest>, (count,): (u64,)| {
                if count > BYTES_MAX {
                    return Err(wasmtime::Error::msg(format!(
                        "{count} random bytes in one call, which may ask for {BYTES_MAX}"
                    )));
                }
                Ok((bytes(count),))
            },
        )?;
    }
    Ok(())
}

/// The same.
pub(super) fn add_p3_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    for (interface, name) in FUNCTIONS {
        linker
            .instance(&format!("{interface}@0.3.0"))?
            .func_wrap(name, |_: StoreContextMut<'_, Guest>, (count,): (u64,)| Ok((bytes(count.min(BYTES_MAX)),)))?;
    }
    Ok(())
}

fn bytes(count: u64) -> Vec<u8> {
    slice::is_long();
    let mut bytes = vec![0; usize::try_from(count).unwrap_or(0)];
    rand::rng().fill_bytes(&mut bytes);
    bytes
}
