//! What is seen of requests: counted ([`stats`]), shown to whoever looks ([`tap`]), traced ([`crate::trace`]), and where they would go
//! ([`view`]).

mod ingresses;
mod page;
mod stats;
mod tap;
mod view;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use http::{Method, Request, Response, StatusCode};

pub(crate) use self::ingresses::ByIngress;
pub(crate) use self::page::Page;
pub(crate) use self::stats::{Classes, Stats};
pub use self::tap::{Filter, Sight, Tapped, Tapping, Taps};
pub use self::view::{Endpoint, Port, Rule, View};
use crate::routes::Route;
use crate::trace::{Begun, Span, Tracer};
use crate::{Asker, Body, Error, Proxy};

/// Bytes of a method that are shown: those that the standards know are shorter.
const METHOD_BYTES_MAX: usize = 32;
/// Bytes of an error that are shown; it may repeat what a client has said.
const ERROR_BYTES_MAX: usize = 512;

/// A request to a Service's port, from its begin to the head of its answer, or until nobody waits for that any more.
pub(crate) struct Observed {
    stats: Arc<Stats>,
    begun: Instant,
    /// Where somebody looks, or wants a trace.
    shown: Option<Box<Shown>>,
    /// How many were asked, and who last.
    pub attempts: u32,
    pub endpoint: Option<SocketAddr>,
    is_over: bool,
}

struct Shown {
    taps: Option<Arc<Taps>>,
    span: Option<(Tracer, Begun)>,
    at: SystemTime,
    asker: Asker,
    /// Namespace and name of the Service; it itself is as large as it has endpoints.
    service: (Arc<str>, Arc<str>),
    port: u16,
    method: Method,
    path: String,
}

impl Observed {
    pub fn begin(proxy: &Proxy, route: &Route, request: &mut Request<Body>) -> Observed {
        let taps = proxy.taps.are_open().then(|| proxy.taps.clone());
        // Whoever answers hears of it, also where it is not kept: it is not for the next one to decide.
        let span = proxy.tracer.as_ref().map(|tracer| (tracer.begin(request), tracer));
        let span = span.filter(|(begun, _)| begun.context.is_sampled).map(|(begun, tracer)| (tracer.clone(), begun));
        let shown = (taps.is_some() || span.is_some()).then(|| {
            Box::new(Shown {
                taps,
                span,
                at: SystemTime::now(),
                asker: request.extensions().get::<Asker>().cloned().unwrap_or(Asker::Node),
                service: (route.service.namespace.clone(), route.service.name.clone()),
                port: route.service.ports[route.at].port,
                method: shown(request.method()),
                path: tap::shown(request.uri().path()).to_owned(),
            })
        });
        let stats = route.balancer.stats.clone();
        Observed { stats, begun: Instant::now(), shown, attempts: 0, endpoint: None, is_over: false }
    }

    /// It has an answer, or will have none.
    pub fn end(mut self, answered: &Result<Response<Body>, Error>) {
        let error = answered.as_ref().err();
        self.over(answered.as_ref().ok().map(Response::status), || error.map(ToString::to_string));
    }

    fn over(&mut self, status: Option<StatusCode>, error: impl FnOnce() -> Option<String>) {
        self.is_over = true;
        let took = self.begun.elapsed();
        self.stats.requests.count(status);
        self.stats.latencies.count(took);
        let Some(shown) = self.shown.take() else { return };
        let Shown { taps, span, at, asker, service: (namespace, service), port, method, path } = *shown;
        let error = error().map(|error| cut(&error, ERROR_BYTES_MAX).to_owned());
        let (endpoint, attempts) = (self.endpoint, self.attempts);
        let seen =
            Tapped { at, asker, namespace, service, port, endpoint, method, path, status, error, took, attempts };
        let seen = Arc::new(seen);
        if let Some((tracer, Begun { context, parent, state })) = span {
            tracer.keep(Span { context, parent, state, request: seen.clone() });
        }
        if let Some(taps) = taps {
            taps.show(&seen);
        }
    }
}

impl Drop for Observed {
    fn drop(&mut self) {
        if !self.is_over {
            self.over(None, || Some("whoever asked has gone".to_owned()));
        }
    }
}

/// A method as it is shown.
fn shown(method: &Method) -> Method {
    let text = cut(method.as_str(), METHOD_BYTES_MAX);
    // What is left of a method is one.
    Method::from_bytes(text.as_bytes()).unwrap_or_default()
}

/// So many bytes at most, cut between letters.
fn cut(text: &str, bytes_max: usize) -> &str {
    let end = (0..=bytes_max.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    &text[..end]
}
