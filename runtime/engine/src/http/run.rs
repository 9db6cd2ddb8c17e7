//! What a flight's future does: one request in one instance.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Instant;

use http::{Request, Response};
use wasmtime::Store;
use wasmtime_wasi_http::p2::bindings::Proxy;
use wasmtime_wasi_http::p2::bindings::http::types::Scheme;
use wasmtime_wasi_http::p3;
use wasmtime_wasi_http::p3::bindings::Service as ServiceP3;
use wasmtime_wasi_http::{WasiBody, WasiHttpView};

use super::RequestError;
use super::flight::Head;
use super::service::Service;
use crate::component::Pre;
use crate::engine::start_error;
use crate::error::{cut, line};
use crate::guest::{self, Claim, Guest};
use crate::host::{Answering, Chain, Trace};
use crate::{Body, Error, Exit, exit, host};

/// An instance that may serve more requests.
pub(super) struct Warm {
    store: Store<Guest>,
    exports: Exports,
    served: u32,
    pub(super) idle_since: Instant,
}

impl Warm {
    pub(super) fn memory_bytes(&self) -> u64 {
        self.store.data().memory_bytes()
    }
}

enum Exports {
    P2(Proxy),
    P3(ServiceP3),
}

/// Serves one request; returns when the guest has nothing more to do for it, which may be long after its answer.
pub(super) async fn run(
    service: Arc<Service>,
    request: Request<Body>,
    head: Arc<Head>,
    chain: Chain,
) -> Result<(), RequestError> {
    // Given back when the memory is, however this ends.
    let place = Place(&head);
    let mut warm = match service.warm() {
        Some(warm) => warm,
        None => instantiate(&service, place.0.is_probe()).await.map_err(|error| match error {
            Error::OutOfMemory { .. } => RequestError::OutOfMemory,
            error => RequestError::Unavailable(error.to_string()),
        })?,
    };
    warm.store.data_mut().answering = Answering::new(head.end.clone());
    warm.store.data_mut().hooks.chain = chain;
    warm.store.data_mut().hooks.trace = Trace::of(request.headers());
    let result = match &warm.exports {
        Exports::P2(proxy) => serve_p2(&mut warm.store, proxy, request, head.clone()).await,
        Exports::P3(exports) => serve_p3(&mut warm.store, exports, request, head.clone()).await,
    };
    service.account.burnt(guest::burnt(&warm.store));
    let memory_bytes = warm.memory_bytes();
    warm.served += 1;
    // A store that trapped is thrown away, and so is one that gave no answer: it would give none to the next one.
    let is_good = result.is_ok() && head.is_answered() && warm.served < service.reuse;
    if is_good && warm.store.data_mut().is_anybodys() {
        guest::refuel(&mut warm.store);
        warm.idle_since = Instant::now();
        service.keep(warm);
    } else {
        drop(warm);
    }
    // The next one may come when the memory is free.
    service.admission.learn(memory_bytes, place.0.take_permit());
    result
}

/// Gives a flight's place back.
struct Place<'a>(&'a Head);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        drop(self.0.take_permit());
    }
}

/// A fresh instance. A probe's has places that no request takes.
pub(super) async fn instantiate(service: &Service, is_probe: bool) -> Result<Warm, Error> {
    let claim = if is_probe { Claim::Probe } else { Claim::Request };
    let mut store = service.engine.store(&service.component, &service.spec, &service.account, claim)?;
    let failed = |error: wasmtime::Error| start_error(&error, &service.account);
    let exports = match service.component.pre() {
        Pre::HttpP2(pre) => Exports::P2(pre.instantiate_async(&mut store).await.map_err(failed)?),
        Pre::HttpP3(pre) => Exports::P3(pre.instantiate_async(&mut store).await.map_err(failed)?),
        Pre::CommandP2(_) | Pre::CommandP3(_) => return Err(Error::WrongWorld { wanted: "service" }),
    };
    Ok(Warm { store, exports, served: 0, idle_since: Instant::now() })
}

async fn serve_p2(
    store: &mut Store<Guest>,
    proxy: &Proxy,
    request: Request<Body>,
    head: Arc<Head>,
) -> Result<(), RequestError> {
    let invalid = |error: wasmtime::Error| RequestError::Invalid(line(&error));
    let request = request.map(host::to_wasi);
    let is_https = request.uri().scheme() == Some(&http::uri::Scheme::HTTPS);
    let scheme = if is_https { Scheme::Https } else { Scheme::Http };
    let request = store.data_mut().http().new_incoming_request(scheme, request).map_err(invalid)?;
    let out = store
        .data_mut()
        .http()
        .new_response_outparam_from_callback(move |response| {
            head.set(response.map_err(|error| RequestError::Guest(cut(format!("{error:?}")))));
        })
        .map_err(invalid)?;
    let called = proxy.wasi_http_incoming_handler().call_handle(&mut *store, request, out).await;
    called.map_err(|error| failure(store, &error))
}

async fn serve_p3(
    store: &mut Store<Guest>,
    exports: &ServiceP3,
    request: Request<Body>,
    head: Arc<Head>,
) -> Result<(), RequestError> {
    let request = request.map(host::to_wasi);
    let (request, taken) = p3::Request::from_http(store.data_mut().http().hooks, request);
    let ran = store
        .run_concurrent(async |accessor| {
            let response: Result<Response<WasiBody>, RequestError> = match exports.handle(accessor, request).await? {
                Ok(response) => Ok(accessor.with(|store| response.into_http(store, taken))?),
                Err(error) => Err(RequestError::Guest(cut(format!("{error:?}")))),
            };
            head.set(response);
            // The body is written by tasks of the guest.
            poll_fn(|context| accessor.poll_no_interesting_tasks(context)).await;
            wasmtime::Result::Ok(())
        })
        .await;
    ran.and_then(|result| result).map_err(|error| failure(store, &error))
}

/// Classifies what ended a guest and tells its log.
fn failure(store: &Store<Guest>, error: &wasmtime::Error) -> RequestError {
    let exit = Exit::of(error);
    let backtrace = exit::backtrace(error);
    let failure = RequestError::from(exit);
    // Before the store goes, and with it the guest's end of the body.
    store.data().answering.end.break_off();
    store.data().spec.stderr.write(format!("{failure}\n{backtrace}").as_bytes());
    failure
}
