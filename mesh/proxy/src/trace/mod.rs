//! Traces: where they are wanted, a request to a Service is a span, a child of whatever its `traceparent` names, and its endpoint
//! hears of that span by the same header. Spans go into a queue of bounded length that somebody else empties; what finds no room is
//! dropped and counted, and nobody waits.
//!
//! Whether a trace is kept is what its `traceparent` says; of requests that come without, a share is ([`Tracer::new`]), by the number
//! of the trace. Where nobody wants traces, headers pass as they are.

mod context;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use coracle_discovery::Service;
use http::header::HeaderValue;
use http::{Method, Request, StatusCode};
use tokio::sync::mpsc;

pub use self::context::Context;
use self::context::{TRACEPARENT, TRACESTATE};
use crate::Asker;

/// Spans that wait to be sent: some megabytes.
const QUEUED_MAX: usize = 8192;

/// A request to a Service.
#[derive(Debug, Clone)]
pub struct Span {
    /// Its place in its trace.
    pub context: Context,
    /// The span that it is a part of.
    pub parent: Option<u64>,
    /// What goes with the trace (`tracestate`).
    pub state: Option<HeaderValue>,
    /// Who has asked.
    pub asker: Asker,
    /// The Service that was asked,
    pub service: Arc<Service>,
    /// at this port.
    pub port: u16,
    /// Who has answered, or was asked last.
    pub endpoint: Option<SocketAddr>,
    /// The request's method,
    pub method: Method,
    /// and its path, without a query.
    pub path: String,
    /// The answer's status; none where nobody has answered.
    pub status: Option<StatusCode>,
    /// Why nobody has.
    pub error: Option<String>,
    /// When it came.
    pub begun: SystemTime,
    /// How long it took to the head of the answer.
    pub took: Duration,
    /// How often it was asked again.
    pub retries: u32,
}

/// Makes spans. Clones share the queue.
#[derive(Debug, Clone)]
pub struct Tracer {
    spans: mpsc::Sender<Span>,
    /// Traces whose lower half is below this are kept.
    below: u64,
    dropped: Arc<AtomicU64>,
}

/// Where a request stands, before it is asked.
#[derive(Debug)]
pub(crate) struct Begun {
    pub context: Context,
    pub parent: Option<u64>,
    pub state: Option<HeaderValue>,
}

impl Tracer {
    /// Keeps this share of the traces that begin here, from 0 to 1; and where their spans come out.
    pub fn new(share: f64) -> (Tracer, mpsc::Receiver<Span>) {
        let (spans, queue) = mpsc::channel(QUEUED_MAX);
        let below = (share.clamp(0.0, 1.0) * u64::MAX as f64) as u64;
        (Tracer { spans, below, dropped: Arc::default() }, queue)
    }

    /// Spans for which there was no room.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }

    /// A request begins: whoever answers it hears of its span.
    pub(crate) fn begin<B>(&self, request: &mut Request<B>) -> Begun {
        let from = Context::of(request.headers());
        let headers = request.headers_mut();
        if from.is_none() {
            // It belongs to a context that there is not (§4.3).
            headers.remove(TRACESTATE);
        }
        let (trace, is_sampled) = match from {
            Some(from) => (from.trace, from.is_sampled),
            None => {
                let trace = rand::random::<u128>().max(1);
                // The lower half is as random as the whole (as OpenTelemetry's sampler by ratio has it).
                (trace, self.below == u64::MAX || (trace as u64) < self.below)
            }
        };
        let context = Context { trace, span: rand::random::<u64>().max(1), is_sampled };
        headers.insert(TRACEPARENT, context.header());
        Begun { context, parent: from.map(|from| from.span), state: headers.get(TRACESTATE).cloned() }
    }

    /// A span has ended.
    pub(crate) fn end(&self, span: Span) {
        if self.spans.try_send(span).is_err() {
            self.dropped.fetch_add(1, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIVEN: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_trace_is_gone_on_with_and_whether_it_is_kept_is_what_its_beginner_says() {
        let (tracer, _spans) = Tracer::new(0.0);
        let mut request = Request::get("/").header("traceparent", GIVEN).header("tracestate", "a=1").body(()).unwrap();
        let begun = tracer.begin(&mut request);
        assert_eq!((begun.parent, begun.context.is_sampled), (Some(0x00f0_67aa_0ba9_02b7), true));
        assert_eq!(begun.context.trace, 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736);
        let told = request.headers()["traceparent"].to_str().unwrap().to_owned();
        assert_eq!(told, begun.context.to_string());
        assert!(told != GIVEN && begun.state == Some(HeaderValue::from_static("a=1")));
        assert_eq!(request.headers()["tracestate"], "a=1");
        // One that comes without, or with nonsense, begins one.
        for given in [None, Some("nonsense")] {
            let mut request = Request::get("/").header("tracestate", "a=1").body(()).unwrap();
            if let Some(given) = given {
                request.headers_mut().insert("traceparent", given.parse().unwrap());
            }
            let begun = tracer.begin(&mut request);
            assert_eq!((begun.parent, begun.context.is_sampled, begun.state), (None, false, None));
            assert!(!request.headers().contains_key("tracestate"));
        }
    }

    #[test]
    fn a_share_of_what_begins_here_is_kept() {
        for (share, least, most) in [(0.0, 0, 0), (0.25, 150, 350), (1.0, 1000, 1000), (7.0, 1000, 1000)] {
            let (tracer, _spans) = Tracer::new(share);
            let kept = (0..1000).filter(|_| {
                let mut request = Request::get("/").body(()).unwrap();
                tracer.begin(&mut request).context.is_sampled
            });
            let kept = kept.count();
            assert!((least..=most).contains(&kept), "{kept} of 1000 at {share}");
        }
    }
}
