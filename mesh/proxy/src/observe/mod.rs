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

use coracle_discovery::Service;
use http::{Method, Request, Response};

pub(crate) use self::ingresses::ByIngress;
pub(crate) use self::page::Page;
pub(crate) use self::stats::{Classes, Stats};
pub use self::tap::{Filter, Sight, Tapped, Tapping, Taps};
pub use self::view::{Endpoint, Port, Rule, View};
use crate::routes::Route;
use crate::trace::{Begun, Span, Tracer};
use crate::{Asker, Body, Error, Proxy};

/// A request to a Service's port, from its begin to the head of its answer.
pub(crate) struct Observed {
    stats: Arc<Stats>,
    begun: Instant,
    /// Where somebody looks, or wants a trace.
    shown: Option<Box<Shown>>,
    /// How many were asked, and who last.
    pub attempts: u32,
    pub endpoint: Option<SocketAddr>,
}

struct Shown {
    taps: Option<Arc<Taps>>,
    span: Option<(Tracer, Begun)>,
    at: SystemTime,
    asker: Asker,
    service: Arc<Service>,
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
                service: route.service.clone(),
                port: route.service.ports[route.at].port,
                method: request.method().clone(),
                path: tap::shown(request.uri().path()),
            })
        });
        let stats = route.balancer.stats.clone();
        Observed { stats, begun: Instant::now(), shown, attempts: 0, endpoint: None }
    }

    /// It has an answer, or will have none.
    pub fn end(self, answered: &Result<Response<Body>, Error>) {
        let took = self.begun.elapsed();
        let status = answered.as_ref().ok().map(Response::status);
        self.stats.requests.count(status);
        self.stats.latencies.count(took);
        let Some(shown) = self.shown else { return };
        let Shown { taps, span, at, asker, service, port, method, path } = *shown;
        let error = answered.as_ref().err().map(ToString::to_string);
        let (endpoint, attempts) = (self.endpoint, self.attempts);
        if let Some((tracer, Begun { context, parent, state })) = span {
            tracer.end(Span {
                context,
                parent,
                state,
                asker: asker.clone(),
                service: service.clone(),
                port,
                endpoint,
                method: method.clone(),
                path: path.clone(),
                status,
                error: error.clone(),
                begun: at,
                took,
                retries: attempts.saturating_sub(1),
            });
        }
        let Some(taps) = taps else { return };
        taps.show(&Tapped { at, asker, service, port, endpoint, method, path, status, error, took, attempts });
    }
}
