//! Whether the body of an answer came to its end.
//!
//! wasmtime ends a body in the same way when the guest has finished it and when the guest is gone, so an answer that
//! was cut off would look complete. Two functions of `wasi:http/types` are watched to tell one from the other.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use wasmtime::StoreContextMut;
use wasmtime::component::{Linker, Resource};
use wasmtime_wasi_http::FieldMap;
use wasmtime_wasi_http::WasiHttpView;
use wasmtime_wasi_http::p2::bindings::http::types::{ErrorCode, HostOutgoingBody as _, HostOutgoingResponse as _};
use wasmtime_wasi_http::p2::body::HostOutgoingBody;
use wasmtime_wasi_http::p2::types::HostOutgoingResponse;

use crate::guest::Guest;

/// The interface, at the version that wasmtime defines; guests of other versions of 0.2 get the same.
const TYPES: &str = "wasi:http/types@0.2.12";

/// How a body ended: the first word counts.
#[derive(Debug, Default)]
pub(crate) struct BodyEnd(AtomicU8);

const FINISHED: u8 = 1;
const BROKEN: u8 = 2;

impl BodyEnd {
    fn finish(&self) {
        let _ = self.0.compare_exchange(0, FINISHED, Ordering::AcqRel, Ordering::Relaxed);
    }

    /// The guest is gone, or about to be.
    pub(crate) fn break_off(&self) {
        let _ = self.0.compare_exchange(0, BROKEN, Ordering::AcqRel, Ordering::Relaxed);
    }

    /// Whether the guest went away before it had finished.
    pub(crate) fn is_broken(&self) -> bool {
        self.0.load(Ordering::Acquire) == BROKEN
    }
}

/// The answer that a guest is giving.
#[derive(Default)]
pub(crate) struct Answering {
    /// Of the request that is being served.
    pub(crate) end: Arc<BodyEnd>,
    /// The body of the response that was made last.
    body: Option<u32>,
}

impl Answering {
    pub(crate) fn new(end: Arc<BodyEnd>) -> Answering {
        Answering { end, body: None }
    }
}

/// Watches where bodies of responses begin and end.
pub(super) fn add_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    let mut types = linker.instance(TYPES)?;
    types.func_wrap(
        "[method]outgoing-response.body",
        |mut store: StoreContextMut<'_, Guest>, (response,): (Resource<HostOutgoingResponse>,)| {
            let body = store.data_mut().http().body(response)?;
            if let Ok(body) = &body {
                store.data_mut().answering.body = Some(body.rep());
            }
            Ok((body,))
        },
    )?;
    types.func_wrap(
        "[static]outgoing-body.finish",
        |mut store: StoreContextMut<'_, Guest>,
         (body, trailers): (Resource<HostOutgoingBody>, Option<Resource<FieldMap>>)| {
            let guest = store.data_mut();
            let is_answer = guest.answering.body == Some(body.rep());
            let result: Result<(), ErrorCode> = match guest.http().finish(body, trailers) {
                Ok(()) => Ok(()),
                Err(error) => Err(error.downcast()?),
            };
            if is_answer && result.is_ok() {
                guest.answering.body = None;
                guest.answering.end.finish();
            }
            Ok((result,))
        },
    )?;
    Ok(())
}
