//! Copies of requests for others, whose answers are thrown away (`RequestMirror` of Gateway API).
//!
//! A request waits for no copy of it. What is read of its body for whoever answers goes into a queue of each copy, too, of so many bytes; a
//! copy for which that is not enough, since whoever gets it is slower, is broken off. So many copies are under way at a time, and no longer
//! than so. What becomes of each is counted, and nothing else is said of it.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use coracle_discovery::gateway_api::{Mirror, Share as Part};
use coracle_discovery::{PortName, Route as Rule};
use coracle_policy::Source;
use http::Request;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt;
use rand::Rng;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::Inbound;
use crate::http2::InHttp2;
use crate::routes::Route;
use crate::shares::{Share, Shares};
use crate::{Asker, Body, BoxError, Deadline, Error, headers, retry};

/// Copies at a time at a node. A namespace whose routes have them made has its share of those ([`Shares`]): a third, where it is alone.
const COPIES_MAX: usize = 256;
/// Bytes of a copy's body that were read for its request and not taken by whoever gets the copy. So all copies have 64 MiB at most.
const QUEUED_BYTES_MAX: usize = 256 << 10;
/// What a frame of it costs beside its bytes.
const FRAME_BYTES: usize = 128;
/// A copy, with its answer, is over after this time.
const COPY_MAX: Duration = Duration::from_secs(60);

/// What becomes of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It was answered.
    Answered,
    /// There were as many already as there may be: it was not made.
    Full,
    /// Its request asks for another protocol: it was not made.
    Upgrade,
    /// The Service, or its port, is not there: it was not made.
    Nowhere,
    /// Whoever got it was slower than whoever answered: it was broken off.
    Behind,
    /// It was not over in time.
    Late,
    /// Nobody took it, or its request broke off.
    Failed,
}

impl Fate {
    const ALL: [(Fate, &str); 7] = [
        (Fate::Answered, "answered"),
        (Fate::Full, "full"),
        (Fate::Upgrade, "upgrade"),
        (Fate::Nowhere, "nowhere"),
        (Fate::Behind, "behind"),
        (Fate::Late, "late"),
        (Fate::Failed, "failed"),
    ];
}

/// All copies of a node.
#[derive(Debug)]
pub(crate) struct Mirrors {
    shares: Arc<Shares<Arc<str>>>,
    counts: [AtomicU64; Fate::ALL.len()],
}

impl Default for Mirrors {
    fn default() -> Mirrors {
        Mirrors { shares: Shares::new(COPIES_MAX), counts: Default::default() }
    }
}

impl Mirrors {
    fn count(&self, fate: Fate) {
        if let Some(at) = Fate::ALL.iter().position(|(of, _)| *of == fate) {
            self.counts[at].fetch_add(1, Relaxed);
        }
    }

    /// How many there were, by what has become of them.
    pub fn each(&self, mut tell: impl FnMut(&str, u64)) {
        for ((_, name), count) in Fate::ALL.iter().zip(&self.counts) {
            tell(name, count.load(Relaxed));
        }
    }
}

/// Whether a request is among those of which copies are made.
fn is_drawn(part: Part, random: &mut impl Rng) -> bool {
    part.numerator >= part.denominator || random.random_range(0..part.denominator) < part.numerator
}

impl Inbound {
    /// Has copies of a request made for whom its rule names; the request, of whose body they get what is read of it.
    pub(super) fn mirror(&self, source: &Source, rule: &Rule, request: Request<Body>) -> Request<Body> {
        let mirrors = rule.options.filters.mirrors.iter();
        let drawn: Vec<&Mirror> = mirrors.filter(|mirror| is_drawn(mirror.share, &mut rand::rng())).collect();
        if drawn.is_empty() {
            return request;
        }
        let (head, body) = request.into_parts();
        let is_upgrade = headers::upgrade(&head.headers).is_some();
        let mut copies = Vec::new();
        for mirror in drawn {
            let namespace = &rule.origin.namespace;
            let (route, share) = match self.place(mirror, rule, is_upgrade) {
                Ok(place) => place,
                Err(fate) => {
                    self.proxy.mirrors.count(fate);
                    continue;
                }
            };
            let (queue, line, copied) = queue(&body);
            copies.extend(queue);
            let mut copy = Request::new(copied);
            (*copy.method_mut(), *copy.uri_mut()) = (head.method.clone(), head.uri.clone());
            (*copy.version_mut(), *copy.headers_mut()) = (head.version, head.headers.clone());
            let extensions = copy.extensions_mut();
            extensions.insert(Asker::Ingresses(namespace.clone()));
            extensions.insert(Deadline(Instant::now() + COPY_MAX));
            if let Some(in_http2) = head.extensions.get::<InHttp2>() {
                extensions.insert(*in_http2);
            }
            self.send_copy(source.clone(), route, copy, line, share);
        }
        Request::from_parts(head, Copied::of(body, copies))
    }

    /// Where a copy goes, and its place among all.
    fn place(&self, mirror: &Mirror, rule: &Rule, is_upgrade: bool) -> Result<(Route, Share<Arc<str>>), Fate> {
        if is_upgrade {
            return Err(Fate::Upgrade);
        }
        let target = &mirror.target;
        let key = (target.namespace.clone(), target.name.clone());
        let route = self.service(&rule.origin, &key, &PortName::Number(target.port)).map_err(|why| {
            tracing::debug!(why, "a copy leads nowhere");
            Fate::Nowhere
        })?;
        let share = self.proxy.mirrors.shares.take(rule.origin.namespace.clone(), 1).ok_or(Fate::Full)?;
        Ok((route, share))
    }

    /// Nobody waits for the task: it ends in time, and with the listener, whose end needs no copies.
    fn send_copy(&self, source: Source, route: Route, copy: Request<Body>, line: Arc<Line>, share: Share<Arc<str>>) {
        let (proxy, stop) = (self.proxy.clone(), self.stop.clone());
        tokio::spawn(async move {
            let answered = async {
                let response = proxy.call_route(&source, route, copy).await.map_err(|error| match error {
                    Error::Late => Fate::Late,
                    error => {
                        tracing::debug!(%error, "a copy was not answered");
                        Fate::Failed
                    }
                })?;
                let mut body = response.into_body();
                while let Some(frame) = body.frame().await {
                    frame.map_err(|_| Fate::Failed)?;
                }
                Ok::<_, Fate>(())
            };
            let fate = tokio::select! {
                ended = tokio::time::timeout(COPY_MAX, answered) => match ended {
                    Ok(Ok(())) => Fate::Answered,
                    Ok(Err(Fate::Failed)) if line.is_behind.load(Relaxed) => Fate::Behind,
                    Ok(Err(fate)) => fate,
                    Err(_) => Fate::Late,
                },
                () = stop.cancelled() => Fate::Late,
            };
            drop(share);
            proxy.mirrors.count(fate);
        });
    }
}

/// What both ends of a queue know.
#[derive(Debug, Default)]
struct Line {
    /// Bytes in it.
    queued: AtomicUsize,
    /// Whether all has been put into it.
    is_whole: AtomicBool,
    /// Whether there was no more room in it.
    is_behind: AtomicBool,
}

/// The end at which a copy is made. The queue ends when this is dropped.
struct Queue {
    to: mpsc::UnboundedSender<(Frame<Bytes>, usize)>,
    line: Arc<Line>,
}

/// A queue for a copy of this body, if there is anything to come of it, and the copy.
fn queue(of: &Body) -> (Option<Queue>, Arc<Line>, Body) {
    let line: Arc<Line> = Arc::default();
    if of.is_end_stream() {
        return (None, line, retry::empty());
    }
    // Its bound is [`QUEUED_BYTES_MAX`], which `put` keeps.
    let (to, frames) = mpsc::unbounded_channel();
    let copy = CopyBody { frames, line: line.clone(), left: of.size_hint().exact() };
    (Some(Queue { to, line: line.clone() }), line, copy.boxed_unsync())
}

impl Queue {
    /// Puts a copy of a frame into it; says whether it goes on.
    fn put(&self, frame: &Frame<Bytes>) -> bool {
        let (bytes, frame) = match (frame.data_ref(), frame.trailers_ref()) {
            // What is a part of a larger piece of memory would keep all of that.
            (Some(data), _) => (data.len(), Frame::data(Bytes::copy_from_slice(data))),
            (None, Some(trailers)) => {
                let bytes = trailers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
                (bytes, Frame::trailers(trailers.clone()))
            }
            (None, None) => return true,
        };
        let cost = bytes + FRAME_BYTES;
        if self.line.queued.fetch_add(cost, Relaxed) + cost > QUEUED_BYTES_MAX {
            self.line.is_behind.store(true, Relaxed);
            return false;
        }
        self.to.send((frame, cost)).is_ok()
    }
}

/// A request's body of which copies are made.
struct Copied {
    body: Body,
    copies: Vec<Queue>,
}

impl Copied {
    fn of(body: Body, copies: Vec<Queue>) -> Body {
        match copies.is_empty() {
            true => body,
            false => Copied { body, copies }.boxed_unsync(),
        }
    }

    /// All has come.
    fn end(&mut self) {
        for copy in self.copies.drain(..) {
            copy.line.is_whole.store(true, Relaxed);
        }
    }
}

impl http_body::Body for Copied {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                self.copies.retain(|copy| copy.put(frame));
                // Nobody may ask for more.
                if self.body.is_end_stream() {
                    self.end();
                }
            }
            Poll::Ready(Some(Err(_))) => self.copies.clear(),
            Poll::Ready(None) => self.end(),
            Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The body of a copy.
struct CopyBody {
    frames: mpsc::UnboundedReceiver<(Frame<Bytes>, usize)>,
    line: Arc<Line>,
    /// Bytes that are to come, where that is known.
    left: Option<u64>,
}

impl http_body::Body for CopyBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Poll::Ready(match std::task::ready!(self.frames.poll_recv(cx)) {
            Some((frame, cost)) => {
                self.line.queued.fetch_sub(cost, Relaxed);
                let bytes = frame.data_ref().map_or(0, Bytes::len) as u64;
                self.left = self.left.map(|left| left.saturating_sub(bytes));
                Some(Ok(frame))
            }
            None if self.line.is_whole.load(Relaxed) => None,
            None => Some(Err("the request that it is a copy of went on without it".into())),
        })
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map(SizeHint::with_exact).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt as _;
    use http_body_util::StreamBody;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    /// A body of these pieces.
    fn body(pieces: Vec<Result<Bytes, BoxError>>) -> Body {
        StreamBody::new(futures::stream::iter(pieces).map(|piece| piece.map(Frame::data))).boxed_unsync()
    }

    async fn read(body: Body) -> Result<Bytes, String> {
        body.collect().await.map(|all| all.to_bytes()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_part_of_all_requests_is_drawn() {
        let mut random = StdRng::seed_from_u64(7);
        for (numerator, denominator, near) in
            [(1, 1, 1000), (0, 100, 0), (25, 100, 250), (1, 1000, 1), (1000, 1000, 1000)]
        {
            let part = Part { numerator, denominator };
            let drawn = (0..1000).filter(|_| is_drawn(part, &mut random)).count() as i64;
            let is_exact = numerator == 0 || numerator == denominator;
            assert!((drawn - near).abs() <= if is_exact { 0 } else { 60 }, "{part:?}: {drawn}");
        }
    }

    #[tokio::test]
    async fn a_copy_has_all_that_was_read_of_a_body_and_is_whole_only_then() {
        let pieces = || vec![Ok(Bytes::from("one,")), Ok(Bytes::from("two"))];
        let original = body(pieces());
        let (first, line, copy) = queue(&original);
        let (second, _, other) = queue(&original);
        let copied = Copied::of(original, first.into_iter().chain(second).collect());
        assert_eq!(read(copied).await.unwrap(), "one,two");
        assert_eq!((read(copy).await.unwrap(), read(other).await.unwrap()), ("one,two".into(), "one,two".into()));
        assert_eq!(line.queued.load(Relaxed), 0);
        // What breaks off, and what nobody reads to its end, is not whole.
        for is_read in [true, false] {
            let original = body(pieces().into_iter().chain([Err("broken".into())]).collect());
            let (made, line, copy) = queue(&original);
            let mut copied = Copied::of(original, made.into_iter().collect());
            while is_read && copied.frame().await.is_some_and(|frame| frame.is_ok()) {}
            drop(copied);
            assert!(read(copy).await.is_err() && !line.is_behind.load(Relaxed));
        }
        // One of a length is whole with its last byte: nobody asks for more.
        let original = http_body_util::Full::new(Bytes::from("all")).map_err(|never| match never {}).boxed_unsync();
        let (made, _, copy) = queue(&original);
        assert_eq!(copy.size_hint().exact(), Some(3));
        let mut copied = Copied::of(original, made.into_iter().collect());
        copied.frame().await.unwrap().unwrap();
        assert_eq!(read(copy).await.unwrap(), "all");
        let (made, _, copy) = queue(&retry::empty());
        assert!(made.is_none() && copy.is_end_stream());
    }

    #[tokio::test]
    async fn a_copy_that_is_slower_is_broken_off_and_its_request_goes_on() {
        for (size, pieces) in [(64 << 10, 8), (1, 4096)] {
            let original = body((0..pieces).map(|_| Ok(Bytes::from(vec![7; size]))).collect());
            let (made, line, copy) = queue(&original);
            let copied = Copied::of(original, made.into_iter().collect());
            assert_eq!(read(copied).await.unwrap().len(), size * pieces);
            assert!(line.is_behind.load(Relaxed), "{size}");
            assert!(read(copy).await.is_err(), "{size}");
        }
    }
}
