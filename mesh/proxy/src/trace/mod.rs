//! Traces: where they are wanted, a request to a Service is a span, a child of whatever its `traceparent` names, and its endpoint
//! hears of that span by the same header. Spans go into a queue that somebody else empties, bounded in number and in bytes; what finds
//! no room is dropped and counted, and nobody waits.
//!
//! Whether a trace is kept is what its `traceparent` says; of requests that come without, a share is ([`Tracer::new`]), by the number
//! of the trace. Where nobody wants traces, headers pass as they are.

mod context;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use http::Request;
use http::header::HeaderValue;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

pub use self::context::Context;
use self::context::{TRACEPARENT, TRACESTATE};
use crate::Tapped;

/// Spans that wait to be sent,
const QUEUED_MAX: usize = 8192;
/// and bytes of those that wait and of those that are being sent.
const QUEUED_BYTES_MAX: usize = 8 << 20;
/// Bytes of a `tracestate` that a span has; one that is longer goes on with its request, and not with the span (§3.3.1.5 wants 512 to
/// be passed on).
const STATE_BYTES_MAX: usize = 512;

/// A request to a Service.
#[derive(Debug, Clone)]
pub struct Span {
    /// Its place in its trace.
    pub context: Context,
    /// The span that it is a part of.
    pub parent: Option<u64>,
    /// What goes with the trace (`tracestate`).
    pub state: Option<HeaderValue>,
    /// The request.
    pub request: Arc<Tapped>,
}

impl Span {
    fn bytes(&self) -> usize {
        let Tapped { method, path, error, .. } = &*self.request;
        let state = self.state.as_ref().map_or(0, HeaderValue::len);
        let said = method.as_str().len() + path.len() + error.as_ref().map_or(0, String::len) + state;
        size_of::<Waiting>() + size_of::<Tapped>() + said
    }
}

/// A span that waits to be sent, or is; its bytes are room for others once it is dropped.
#[derive(Debug)]
pub struct Waiting {
    /// It.
    pub span: Span,
    _room: OwnedSemaphorePermit,
}

/// Where spans come out.
pub type Spans = mpsc::Receiver<Waiting>;

/// Makes spans. Clones share the queue.
#[derive(Debug, Clone)]
pub struct Tracer {
    spans: mpsc::Sender<Waiting>,
    room: Arc<Semaphore>,
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
    pub fn new(share: f64) -> (Tracer, Spans) {
        let (spans, queue) = mpsc::channel(QUEUED_MAX);
        let below = (share.clamp(0.0, 1.0) * u64::MAX as f64) as u64;
        let room = Arc::new(Semaphore::new(QUEUED_BYTES_MAX));
        (Tracer { spans, room, below, dropped: Arc::default() }, queue)
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
        // A copy, where it is kept: the header is a part of all that was read with it.
        let state = headers.get(TRACESTATE).filter(|state| is_sampled && state.len() <= STATE_BYTES_MAX);
        let state = state.and_then(|state| HeaderValue::from_bytes(state.as_bytes()).ok());
        Begun { context, parent: from.map(|from| from.span), state }
    }

    /// A span has ended.
    pub fn keep(&self, span: Span) {
        let room = u32::try_from(span.bytes()).ok();
        let room = room.and_then(|bytes| self.room.clone().try_acquire_many_owned(bytes).ok());
        let is_kept = room.is_some_and(|room| self.spans.try_send(Waiting { span, _room: room }).is_ok());
        if !is_kept {
            self.dropped.fetch_add(1, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

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
    fn a_tracestate_is_kept_as_a_copy_of_its_own_and_a_long_one_is_not() {
        let (tracer, _spans) = Tracer::new(0.0);
        let read = Bytes::from("a=1,".repeat(100) + &"x".repeat(400_000));
        for (bytes, is_kept) in [(400, true), (600, false)] {
            let state = HeaderValue::from_maybe_shared(read.slice(..bytes)).unwrap();
            let mut request =
                Request::get("/").header("traceparent", GIVEN).header("tracestate", &state).body(()).unwrap();
            let begun = tracer.begin(&mut request);
            assert_eq!(begun.state.is_some(), is_kept);
            assert!(begun.state.is_none_or(|kept| kept == state && kept.as_bytes().as_ptr() != read.as_ptr()));
            assert_eq!(request.headers()["tracestate"], state, "whoever answers has it");
        }
    }

    #[test]
    fn spans_that_wait_have_so_many_bytes_and_those_that_are_sent_make_room() {
        let (tracer, mut spans) = Tracer::new(1.0);
        let request = Tapped {
            at: std::time::SystemTime::UNIX_EPOCH,
            asker: crate::Asker::Node,
            namespace: "n".into(),
            service: "web".into(),
            port: 80,
            endpoint: None,
            method: http::Method::GET,
            path: "/".repeat(512),
            status: None,
            error: Some("e".repeat(512)),
            took: std::time::Duration::ZERO,
            attempts: 1,
        };
        let context = Context { trace: 1, span: 1, is_sampled: true };
        let state = Some(HeaderValue::try_from("s".repeat(512)).unwrap());
        let span = Span { context, parent: None, state, request: Arc::new(request) };
        (0..QUEUED_MAX).for_each(|_| tracer.keep(span.clone()));
        let kept = spans.len();
        assert!(kept * 3 * 512 < QUEUED_BYTES_MAX && kept * 2048 > QUEUED_BYTES_MAX, "{kept}");
        assert_eq!(tracer.dropped() as usize, QUEUED_MAX - kept);
        let sent = spans.try_recv().unwrap();
        tracer.keep(span.clone());
        assert_eq!(spans.len(), kept - 1, "it is being sent");
        drop(sent);
        tracer.keep(span);
        assert_eq!(spans.len(), kept);
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
