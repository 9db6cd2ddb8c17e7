//! Outgoing HTTP requests of guests: all of them go through the node's [`Outbound`].

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::FutureExt as _;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, Uri};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::time::{Instant, Sleep, sleep, timeout};
use wasmtime_wasi_http::{
    DEFAULT_FORBIDDEN_HEADERS, Error as WasiError, ForbiddenHeaderFilter, RequestOptions, WasiBody, WasiHttpHooks,
};

use super::descriptors::Taken;
use super::held;
use super::read_ahead::{Held, read_ahead};
use crate::exit::OverLimit;
use crate::limits::Account;
use crate::{Body, BoxError, NoNetwork};

/// Bytes that a guest may have written to a body and nobody has taken yet.
pub(crate) const CHUNK_BYTES_MAX: usize = 64 << 10;

/// How long a guest waits for an answer when it says nothing about it.
const FIRST_BYTE_TIMEOUT: Duration = Duration::from_secs(300);

/// Sends the requests of guests.
#[async_trait]
pub trait Outbound: Send + Sync + 'static {
    /// Sends one. Its URI is absolute, `host` is set, and its extensions hold [`Timeouts`].
    ///
    /// Dropped when the guest no longer wants the answer.
    async fn send(&self, request: Request<Body>) -> Result<Response<Body>, OutboundError>;

    /// Whether a request to this address surely takes a socket of its own: one that stays in this process takes none.
    /// The engine counts these among what a container has open.
    fn needs_socket(&self, _uri: &Uri) -> bool {
        false
    }
}

/// What a guest asked for. The engine itself sees to `first_byte` and `between_bytes`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// To connect.
    pub connect: Option<Duration>,
    /// From sending to the answer's head.
    pub first_byte: Option<Duration>,
    /// Between two frames of the answer's body.
    pub between_bytes: Option<Duration>,
}

/// Why a guest's request was not answered.
#[derive(Debug, thiserror::Error)]
pub enum OutboundError {
    /// There is no such host.
    #[error("there is no host {0:?}")]
    Name(String),
    /// The guest may not.
    #[error("denied by policy")]
    Denied,
    /// Nobody listens there.
    #[error("connection refused")]
    Refused,
    /// The service has nobody who could answer.
    #[error("no endpoint is ready")]
    Unavailable,
    /// It took too long.
    #[error("timed out")]
    Timeout,
    /// The peer or the connection broke the protocol.
    #[error("the connection failed")]
    Protocol(#[source] BoxError),
    /// A fault of the node.
    #[error("{0}")]
    Internal(String),
}

impl From<OutboundError> for WasiError {
    fn from(error: OutboundError) -> Self {
        match error {
            OutboundError::Name(_) => {
                Self::DnsError { rcode: Some("name or service not known".to_owned()), info_code: None }
            }
            OutboundError::Denied => Self::HttpRequestDenied,
            OutboundError::Refused => Self::ConnectionRefused,
            OutboundError::Unavailable => Self::DestinationUnavailable,
            OutboundError::Timeout => Self::ConnectionReadTimeout,
            OutboundError::Protocol(_) => Self::ConnectionTerminated,
            OutboundError::Internal(message) => Self::InternalError(Some(message)),
        }
    }
}

#[async_trait]
impl Outbound for NoNetwork {
    async fn send(&self, _request: Request<Body>) -> Result<Response<Body>, OutboundError> {
        Err(OutboundError::Denied)
    }
}

/// A body of the engine as wasmtime wants it.
pub(crate) fn to_wasi(body: Body) -> WasiBody {
    body.map_err(|error| match error.downcast::<WasiError>() {
        Ok(error) => *error,
        Err(error) => WasiError::InternalError(Some(error.to_string())),
    })
    .boxed_unsync()
}

/// The other way round.
fn from_wasi(body: WasiBody) -> Body {
    body.map_err(BoxError::from).boxed_unsync()
}

/// Who has called whom until here: what a service must not wait for is itself. It travels in a request's extensions, and as text
/// from node to node.
#[derive(Clone, Debug, Default)]
pub struct Chain(Option<Arc<Link>>);

#[derive(Debug)]
struct Link {
    account: u64,
    depth: u32,
    before: Chain,
}

/// Callers that a text may name: more are refused long before.
const CALLERS_MAX: usize = 32;

/// The text names no callers.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("this is no list of callers")]
pub struct NoChain;

impl Chain {
    /// The same with one more caller.
    pub(crate) fn with(&self, account: &Account) -> Chain {
        self.and(account.id)
    }

    fn and(&self, account: u64) -> Chain {
        Chain(Some(Arc::new(Link { account, depth: self.depth() + 1, before: self.clone() })))
    }

    /// How many have called.
    pub(crate) fn depth(&self) -> u32 {
        self.0.as_ref().map_or(0, |link| link.depth)
    }

    /// Whether this one is among them.
    pub(crate) fn has(&self, account: &Account) -> bool {
        self.links().any(|link| link.account == account.id)
    }

    /// The last caller first.
    fn links(&self) -> impl Iterator<Item = &Link> {
        std::iter::successors(self.0.as_deref(), |link| link.before.0.as_deref())
    }
}

/// Callers in their order, `,` between them.
impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let accounts: Vec<u64> = self.links().map(|link| link.account).collect();
        for (index, account) in accounts.iter().rev().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{account:016x}")?;
        }
        Ok(())
    }
}

impl FromStr for Chain {
    type Err = NoChain;

    fn from_str(text: &str) -> Result<Chain, NoChain> {
        let callers: Vec<&str> = text.split(',').take(CALLERS_MAX + 1).collect();
        if callers.len() > CALLERS_MAX {
            return Err(NoChain);
        }
        callers.iter().try_fold(Chain::default(), |chain, caller| match u64::from_str_radix(caller, 16) {
            Ok(account) if caller.len() == 16 && !caller.starts_with('+') => Ok(chain.and(account)),
            _ => Err(NoChain),
        })
    }
}

/// The trace of a request (W3C Trace Context), as it came: what a guest asks while it answers goes on with it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Trace {
    parent: Option<HeaderValue>,
    state: Option<HeaderValue>,
}

impl Trace {
    const PARENT: HeaderName = HeaderName::from_static("traceparent");
    const STATE: HeaderName = HeaderName::from_static("tracestate");

    /// Of the request that is being served.
    pub(crate) fn of(headers: &HeaderMap) -> Trace {
        let parent = headers.get(Trace::PARENT).cloned();
        let state = parent.as_ref().and_then(|_| headers.get(Trace::STATE).cloned());
        Trace { parent, state }
    }

    /// Says so in a request of the guest, which may have said something itself: then that holds.
    fn go_on(&self, headers: &mut HeaderMap) {
        let Some(parent) = &self.parent else { return };
        if headers.contains_key(Trace::PARENT) {
            return;
        }
        headers.insert(Trace::PARENT, parent.clone());
        match &self.state {
            Some(state) => drop(headers.insert(Trace::STATE, state.clone())),
            None => drop(headers.remove(Trace::STATE)),
        }
    }
}

/// wasmtime's door for what leaves a guest.
pub(crate) struct Hooks {
    outbound: Arc<dyn Outbound>,
    account: Arc<Account>,
    /// Of the request that is being served.
    pub(crate) chain: Chain,
    pub(crate) trace: Trace,
}

impl Hooks {
    pub(crate) fn new(outbound: Arc<dyn Outbound>, account: Arc<Account>) -> Hooks {
        Hooks { outbound, account, chain: Chain::default(), trace: Trace::default() }
    }
}

type Answered = (Response<WasiBody>, Box<dyn Future<Output = Result<(), WasiError>> + Send>);

impl WasiHttpHooks for Hooks {
    fn is_forbidden_header(&mut self, name: &HeaderName) -> bool {
        DEFAULT_FORBIDDEN_HEADERS.contains(name)
    }

    fn forbidden_header_filter(&mut self) -> ForbiddenHeaderFilter {
        static FILTER: LazyLock<ForbiddenHeaderFilter> =
            LazyLock::new(|| Arc::new(|name| DEFAULT_FORBIDDEN_HEADERS.contains(name)));
        FILTER.clone()
    }

    fn send_request(
        &mut self,
        request: Request<WasiBody>,
        options: Option<RequestOptions>,
        // Tells how the guest took the answer, which nobody here wants to know.
        _taken: Box<dyn Future<Output = Result<(), WasiError>> + Send>,
    ) -> Box<dyn Future<Output = Result<Answered, WasiError>> + Send> {
        let (outbound, account) = (self.outbound.clone(), self.account.clone());
        let timeouts = options.map_or_else(Timeouts::default, |options| Timeouts {
            connect: options.connect_timeout,
            first_byte: options.first_byte_timeout,
            between_bytes: options.between_bytes_timeout,
        });
        let mut request = request.map(from_wasi);
        request.extensions_mut().insert(timeouts);
        request.extensions_mut().insert(self.chain.with(&self.account));
        self.trace.go_on(request.headers_mut());
        // Its handle is gone, and with it what was counted: an instance of 0.3 may wait for as many answers as it has handles.
        let bytes = held::CALL_BYTES + held::headers(request.headers()) + held::uri(request.uri());
        let asked = Held::take(&account, bytes);
        Box::new(async move {
            let over = |over: OverLimit| WasiError::InternalError(Some(over.to_string()));
            let asked = asked.map_err(over)?;
            let (head, body) = request.into_parts();
            let body = Lingering::of(body, &account).map_err(over)?;
            // A guest that sends all of a large body before it reads the answer, to one that answers as it reads: between
            // sockets, the kernel's buffers take what comes meanwhile.
            let reads_ahead = body.rest.is_some();
            let request = Request::from_parts(head, body.boxed_unsync());
            let patience = timeouts.first_byte.unwrap_or(FIRST_BYTE_TIMEOUT);
            let sent = timeout(patience, async {
                // The semaphore is never closed.
                let _turn = account.outgoing.acquire().await;
                let socket = match outbound.needs_socket(request.uri()) {
                    true => Some(Taken::take(&account).ok_or(WasiError::ConnectionLimitReached)?),
                    false => None,
                };
                Ok::<_, WasiError>((outbound.send(request).await?, socket))
            });
            let (response, socket) = sent.await.map_err(|_| WasiError::ConnectionReadTimeout)??;
            drop(asked);
            // Before the guest has looked at it, nobody else knows what is held for it.
            let head = Held::take(&account, held::headers(response.headers())).map_err(over)?;
            let response = match timeouts.between_bytes {
                Some(between_bytes) => response.map(|body| Paced::new(body, between_bytes).boxed_unsync()),
                None => response,
            };
            let response = match reads_ahead {
                true => response.map(|body| read_ahead(account, body)),
                false => response,
            };
            let response = response.map(|body| Counted { body, _head: head, _socket: socket }.boxed_unsync());
            Ok((response.map(to_wasi), Box::new(std::future::ready(Ok(()))) as _))
        })
    }

    fn p2_outgoing_body_chunk_size(&mut self) -> usize {
        CHUNK_BYTES_MAX
    }

    fn p3_outgoing_body_chunk_size(&mut self) -> usize {
        CHUNK_BYTES_MAX
    }
}

/// Bytes of a request's body that are taken although whoever answers does not want them.
const LINGER_BYTES_MAX: usize = 256 << 10;
/// For how long.
const LINGER: Duration = Duration::from_secs(5);

/// Frames of a request's body that are taken before it is sent, if they are there: one, and whether it was all.
const FRAMES_FIRST: usize = 2;

/// The body of a guest's request. Whoever answers may do so without reading it, and be done before the guest has
/// finished it: between sockets, the kernel would still take that, so the guest is not told of a reset here either.
///
/// A guest of 0.2 sends the head of its request first, and has ended a body of nothing, or of little, by the time at which that goes out: what
/// is known to be whole needs no task that reads it, nor one that reads the answer meanwhile.
struct Lingering {
    first: VecDeque<(Result<Frame<Bytes>, BoxError>, Held)>,
    /// What comes after it; `None` when that was all.
    rest: Option<Body>,
}

impl Lingering {
    fn of(mut body: Body, account: &Arc<Account>) -> Result<Lingering, OverLimit> {
        let mut first = VecDeque::new();
        while first.len() < FRAMES_FIRST {
            match body.frame().now_or_never() {
                Some(Some(frame)) => {
                    let bytes = frame.as_ref().ok().and_then(Frame::data_ref).map_or(0, Bytes::len);
                    let is_last = frame.is_err();
                    first.push_back((frame, Held::take(account, bytes as u64)?));
                    if is_last {
                        return Ok(Lingering { first, rest: None });
                    }
                }
                Some(None) => return Ok(Lingering { first, rest: None }),
                None => break,
            }
        }
        let rest = (!body.is_end_stream()).then_some(body);
        Ok(Lingering { first, rest })
    }
}

impl http_body::Body for Lingering {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Some((frame, _held)) = self.first.pop_front() {
            return Poll::Ready(Some(frame));
        }
        let Some(body) = &mut self.rest else { return Poll::Ready(None) };
        let frame = ready!(Pin::new(body).poll_frame(context));
        if !matches!(frame, Some(Ok(_))) {
            self.rest = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_empty() && self.rest.as_ref().is_none_or(http_body::Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let first = || self.first.iter().filter_map(|(frame, _)| frame.as_ref().ok());
        let bytes: u64 = first().filter_map(Frame::data_ref).map(|data| data.len() as u64).sum();
        // Before trailers no length is said.
        let rest = match &self.rest {
            Some(rest) => rest.size_hint(),
            None if first().any(Frame::is_trailers) => SizeHint::default(),
            None => SizeHint::with_exact(0),
        };
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower().saturating_add(bytes));
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper.saturating_add(bytes));
        }
        hint
    }
}

impl Drop for Lingering {
    fn drop(&mut self) {
        if let Some(mut body) = self.rest.take()
            && !body.is_end_stream()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(timeout(LINGER, async move {
                let mut left = LINGER_BYTES_MAX;
                while let Some(Ok(frame)) = body.frame().await {
                    let bytes = frame.data_ref().map_or(0, Bytes::len);
                    let Some(less) = left.checked_sub(bytes.max(1)) else { return };
                    left = less;
                }
            }));
        }
    }
}

/// The body of an answer, with what the container is charged for as long as it lives.
struct Counted {
    body: Body,
    /// The answer's headers.
    _head: Held,
    _socket: Option<Taken>,
}

impl http_body::Body for Counted {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A body that ends with an error when nothing comes for too long.
struct Paced {
    body: Body,
    patience: Duration,
    sleep: Pin<Box<Sleep>>,
}

impl Paced {
    fn new(body: Body, patience: Duration) -> Paced {
        Paced { body, patience, sleep: Box::pin(sleep(patience)) }
    }
}

impl http_body::Body for Paced {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(context) {
            this.sleep.as_mut().reset(Instant::now() + this.patience);
            return Poll::Ready(frame);
        }
        ready!(this.sleep.as_mut().poll(context));
        Poll::Ready(Some(Err(WasiError::ConnectionReadTimeout.into())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::NodeMemory;
    use crate::{Spec, empty, machine};

    /// Answers with a large header, from elsewhere.
    struct Elsewhere;

    #[async_trait]
    impl Outbound for Elsewhere {
        async fn send(&self, _request: Request<Body>) -> Result<Response<Body>, OutboundError> {
            Ok(Response::builder().header("x", "y".repeat(1_000)).body(empty()).unwrap())
        }

        fn needs_socket(&self, _uri: &Uri) -> bool {
            true
        }
    }

    #[test]
    fn who_has_called_is_the_same_on_another_node() {
        let accounts = [(); 3].map(|()| Account::new(&Spec::new("a"), &NodeMemory::new(u64::MAX)));
        let chain = Chain::default().with(&accounts[0]).with(&accounts[1]);
        let there: Chain = chain.to_string().parse().unwrap();
        assert_eq!((there.depth(), there.to_string()), (2, chain.to_string()));
        assert_eq!(accounts.each_ref().map(|account| there.has(account)), [true, true, false]);
        assert_eq!(there.with(&accounts[2]).depth(), 3);
        let many = vec!["00000000000000ff"; CALLERS_MAX].join(",");
        assert_eq!(many.parse::<Chain>().unwrap().depth(), CALLERS_MAX as u32);
        for nonsense in ["", ",", "1", "+000000000000001", "00000000000000fg", &format!("{many},00000000000000ff")] {
            assert_eq!(nonsense.parse::<Chain>().map(drop), Err(NoChain), "{nonsense}");
        }
    }

    #[tokio::test]
    async fn what_a_guest_has_sent_by_the_time_it_is_taken_is_known_to_be_all() {
        use futures::{StreamExt as _, stream};
        let account = Account::new(&Spec::new("a"), &NodeMemory::new(u64::MAX));
        for (sent, is_ended, exact) in [
            (&[][..], true, Some(0)),
            (&["one"], true, Some(3)),
            (&["one", "two"], true, None),
            (&["one"], false, None),
            (&[], false, None),
        ] {
            let frames = stream::iter(sent.to_vec()).map(|text| Ok(Frame::data(Bytes::from(text))));
            let later = tokio::sync::oneshot::channel::<()>();
            let end = stream::once(async move { if !is_ended { later.1.await.is_err() } else { true } });
            let body = http_body_util::StreamBody::new(frames.chain(end.filter_map(async |_| None)));
            let body = Lingering::of(BodyExt::boxed_unsync(body), &account).unwrap();
            assert_eq!((body.size_hint().exact(), body.rest.is_none()), (exact, exact.is_some()), "{sent:?}");
            assert_eq!(
                (body.is_end_stream(), account.usage().memory_bytes),
                (exact == Some(0), sent.concat().len() as u64)
            );
            drop(later.0);
            assert_eq!(body.collect().await.unwrap().to_bytes(), sent.concat());
            assert_eq!(account.usage().memory_bytes, 0);
        }
        let trailers = stream::iter([Ok(Frame::trailers(HeaderMap::new()))]);
        let body = Lingering::of(BodyExt::boxed_unsync(http_body_util::StreamBody::new(trailers)), &account).unwrap();
        assert!(body.rest.is_none() && body.size_hint().exact().is_none(), "no length goes before trailers");
    }

    /// Does not answer.
    struct Silent;

    #[async_trait]
    impl Outbound for Silent {
        async fn send(&self, _request: Request<Body>) -> Result<Response<Body>, OutboundError> {
            std::future::pending().await
        }
    }

    #[tokio::test]
    async fn a_request_that_waits_for_its_answer_is_memory_of_the_container() {
        let account =
            Account::new(&Spec { memory_bytes_max: Some(5_000), ..Spec::new("a") }, &NodeMemory::new(u64::MAX));
        let mut hooks = Hooks::new(Arc::new(Silent), account.clone());
        let mut ask = || {
            let uri = format!("http://silent/{}", "z".repeat(1_000));
            let request = Request::get(uri).header("x", "y".repeat(1_000)).body(to_wasi(empty())).unwrap();
            Box::into_pin(hooks.send_request(request, None, Box::new(std::future::ready(Ok(())))))
        };
        let mut waits = ask();
        assert!(futures::poll!(&mut waits).is_pending());
        assert!(account.usage().memory_bytes > 2_000, "{account:?}");
        assert!(matches!(ask().await.map(drop), Err(WasiError::InternalError(_))), "that is more than it may have");
        drop(waits);
        assert_eq!(account.usage().memory_bytes, 0);
    }

    #[tokio::test]
    async fn an_answer_from_elsewhere_holds_a_descriptor_and_its_headers_are_charged() {
        let account = Account::new(&Spec::new("a"), &NodeMemory::new(u64::MAX));
        let bound = machine::descriptors().container_max;
        for _ in 1..bound {
            assert!(account.take_descriptor(bound));
        }
        let mut hooks = Hooks::new(Arc::new(Elsewhere), account.clone());
        let mut ask = || {
            let request = Request::get("http://elsewhere/").body(to_wasi(empty())).unwrap();
            Box::into_pin(hooks.send_request(request, None, Box::new(std::future::ready(Ok(())))))
        };
        let (held, _) = ask().await.unwrap();
        assert!(account.usage().memory_bytes > 1_000, "{account:?}");
        assert!(matches!(ask().await.map(drop), Err(WasiError::ConnectionLimitReached)), "that was the last one");
        drop(held);
        assert_eq!(account.usage().memory_bytes, 0);
        assert!(ask().await.is_ok());
    }
}
