//! Requests to sockets, and to pods of other nodes: pooled HTTP/1.1 connections, and those of HTTP/2 where a request needs it ([`http2`]).

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use coracle_discovery::Protocol;
use coracle_policy::Source;
use futures::future::BoxFuture;
use http::header::{HOST, HeaderValue, TE};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Request, Response, StatusCode, Uri, Version};
use http_body_util::BodyExt;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::{self, HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tower_service::Service;

use crate::endpoint::{CONNECT_MAX, Failure, ShareTaken};
use crate::guard::{Guard, Pooled, locked};
use crate::held::Held;
use crate::http2::{self, InHttp2};
use crate::{Asker, Body, BoxError, Elsewhere, Kept, Purpose, Stream, headers, link};

/// Connections to one socket that are kept while nobody uses them,
const IDLE_PER_SOCKET_MAX: usize = 64;
/// and for how long.
const IDLE_MAX: Duration = Duration::from_secs(30);
/// Streams to pods of other nodes, to all of them together, up to which those that nobody uses are kept: a link has room for as
/// many beside all that are in use (`network/peers.rs` of the node).
pub const KEPT_ELSEWHERE_MAX: usize = 1024;

/// Endpoints of other nodes of which it is remembered whether a component is called there; beyond it all are forgotten, and are learnt again.
const LEARNT_MAX: usize = 4096;

/// A connection to an endpoint.
pub(crate) enum Connection {
    Socket(TokioIo<TcpStream>),
    Elsewhere { stream: TokioIo<Box<dyn Stream>>, is_called: bool, open: Open },
}

impl Connection {
    /// Whether a component is called at its end, by its node.
    pub fn is_called(&self) -> bool {
        matches!(self, Connection::Elsewhere { is_called: true, .. })
    }

    /// Whether it may be kept for other requests.
    pub fn may_be_kept(&self) -> bool {
        match self {
            Connection::Socket(_) => true,
            Connection::Elsewhere { open, .. } => open.may_be_kept,
        }
    }
}

/// A stream to another node is open. While there are few it is kept when its request is over.
pub(crate) struct Open {
    all: Arc<AtomicUsize>,
    may_be_kept: bool,
}

impl Open {
    fn count(all: &Arc<AtomicUsize>) -> Open {
        let may_be_kept = all.fetch_add(1, Relaxed) < KEPT_ELSEWHERE_MAX;
        Open { all: all.clone(), may_be_kept }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.all.fetch_sub(1, Relaxed);
    }
}

/// The answer came through a component's node, which says how requests end: in the extensions of each answer.
#[derive(Clone)]
struct OfComponent;

impl connect::Connection for Connection {
    fn connected(&self) -> connect::Connected {
        match self {
            Connection::Socket(socket) => socket.connected(),
            Connection::Elsewhere { is_called, open, .. } => {
                let connected = connect::Connected::new();
                if !open.may_be_kept {
                    connected.poison();
                }
                if *is_called { connected.extra(OfComponent) } else { connected }
            }
        }
    }
}

impl Read for Connection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Connection::Socket(stream) => Pin::new(stream).poll_read(cx, buf),
            Connection::Elsewhere { stream, .. } => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl Write for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Connection::Socket(stream) => Pin::new(stream).poll_write(cx, buf),
            Connection::Elsewhere { stream, .. } => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Connection::Socket(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Connection::Elsewhere { stream, .. } => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Connection::Socket(stream) => stream.is_write_vectored(),
            Connection::Elsewhere { stream, .. } => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Connection::Socket(stream) => Pin::new(stream).poll_flush(cx),
            Connection::Elsewhere { stream, .. } => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Connection::Socket(stream) => Pin::new(stream).poll_shutdown(cx),
            Connection::Elsewhere { stream, .. } => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// What answers at an endpoint of another node has changed since it was learnt.
#[derive(Debug, thiserror::Error)]
#[error("its pod has begun, or ceased, to listen itself")]
struct Changed;

/// Which endpoints of other nodes are components, which are told who asks and more ([`link`]); who listens itself is told nothing. To learn
/// it a stream is made, which the request that made it then has.
#[derive(Clone, Default)]
struct Learnt {
    is_called: Arc<Mutex<HashMap<SocketAddr, bool>>>,
    /// By what they are kept under.
    made: Arc<Mutex<HashMap<Authority, Elsewhere>>>,
}

impl Learnt {
    fn put(&self, endpoint: SocketAddr, is_called: bool) {
        let mut known = locked(&self.is_called);
        if known.len() >= LEARNT_MAX {
            known.clear();
        }
        known.insert(endpoint, is_called);
    }

    fn forget(&self, endpoint: SocketAddr) {
        locked(&self.is_called).remove(&endpoint);
    }
}

/// A stream that was made, until it is taken or its request is over.
struct Made {
    learnt: Learnt,
    to: Authority,
}

impl Made {
    fn put(learnt: &Learnt, to: &Authority, stream: Elsewhere) -> Made {
        locked(&learnt.made).insert(to.clone(), stream);
        Made { learnt: learnt.clone(), to: to.clone() }
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        let left = locked(&self.learnt.made).remove(&self.to);
        drop(left);
    }
}

/// Connects to what a pod listens at, and to nothing else that happens to be there.
#[derive(Clone)]
struct Connector {
    connector: HttpConnector,
    guard: Guard,
    learnt: Learnt,
    open_elsewhere: Arc<AtomicUsize>,
}

impl Service<Uri> for Connector {
    type Response = Connection;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.connector.poll_ready(context).map_err(BoxError::from)
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let of_pool = to.authority().and_then(|to| self.guard.of_pool(to));
        if of_pool.as_ref().is_some_and(|pooled| !self.guard.local.is_reached(pooled.to, Protocol::Tcp)) {
            return Box::pin(async { Err(io::Error::from(io::ErrorKind::ConnectionRefused).into()) });
        }
        if let Some(pooled) = of_pool.filter(|pooled| self.guard.local.is_elsewhere(pooled.to.ip())) {
            let Pooled { source, to: endpoint, is_called: is_component } = pooled;
            let made = to.authority().and_then(|to| locked(&self.learnt.made).remove(to));
            let (guard, learnt, open) = (self.guard.clone(), self.learnt.clone(), self.open_elsewhere.clone());
            return Box::pin(async move {
                let there = match made {
                    Some(made) => made,
                    None => {
                        let is_anybodys = source == Source::Unknown;
                        let connected = guard.connect(endpoint, Purpose::Requests, source).await;
                        // One that listens itself may be there by now, and does not let in whoever it is.
                        connected.inspect_err(|_| {
                            if is_anybodys {
                                learnt.forget(endpoint);
                            }
                        })?
                    }
                };
                let Elsewhere { stream, is_called, .. } = there;
                if is_called != is_component {
                    learnt.put(endpoint, is_called);
                    return Err(Changed.into());
                }
                Ok(Connection::Elsewhere { stream: TokioIo::new(stream), is_called, open: Open::count(&open) })
            });
        }
        let connecting = self.connector.call(to);
        Box::pin(async move { connecting.await.map(Connection::Socket).map_err(BoxError::from) })
    }
}

/// Sends requests to sockets. Clones share the connections.
#[derive(Clone)]
pub(crate) struct Dialer {
    client: legacy::Client<Connector, Body>,
    /// The same connector, for connections of HTTP/2.
    connector: Connector,
    http2: http2::Pool,
    guard: Guard,
    learnt: Learnt,
}

impl Dialer {
    pub fn new(guard: Guard) -> Dialer {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(CONNECT_MAX));
        let learnt = Learnt::default();
        let connector =
            Connector { connector, guard: guard.clone(), learnt: learnt.clone(), open_elsewhere: Arc::default() };
        let client = legacy::Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_MAX)
            .pool_max_idle_per_host(IDLE_PER_SOCKET_MAX)
            .build(connector.clone());
        Dialer { client, connector, http2: http2::Pool::default(), guard, learnt }
    }

    /// Sends a request to the socket of `endpoint`, whatever its URI names. One that asks for another protocol is sent as such;
    /// what follows an answer that agrees is in its extensions (`hyper::upgrade`).
    pub async fn call(
        &self,
        endpoint: SocketAddr,
        socket: SocketAddr,
        mut request: Request<Body>,
    ) -> Result<Response<Body>, Failure> {
        link::strip(request.headers_mut());
        let mut response = self.exchange(endpoint, &authority(socket.to_string()), request, false).await?;
        link::strip(response.headers_mut());
        Ok(response)
    }

    /// Sends a request to a pod of another node, within the share of who asks ([`Asker`]). Where its node says that nobody has
    /// answered, that is no answer.
    pub async fn call_elsewhere(
        &self,
        endpoint: SocketAddr,
        mut request: Request<Body>,
    ) -> Result<Response<Body>, Failure> {
        let by = request.extensions().get::<Asker>().cloned().unwrap_or(Asker::Node);
        let place = self.guard.local.enter_elsewhere(endpoint, by);
        let place = place.ok_or_else(|| Failure::unseen(endpoint, ShareTaken.into()))?;
        link::strip(request.headers_mut());
        let source = request.extensions().get::<Source>().cloned().unwrap_or(Source::Unknown);
        let generation = || self.guard.policies.table().generation();
        let (learnt, judged) = (locked(&self.learnt.is_called).get(&endpoint).copied(), generation());
        let (is_called, made) = match learnt {
            Some(is_called) => (is_called, None),
            None => {
                let made = self.guard.connect(endpoint, Purpose::Requests, source.clone()).await;
                let made = made.map_err(|error| Failure::unseen(endpoint, error.into()))?;
                self.learnt.put(endpoint, made.is_called);
                (made.is_called, Some(made))
            }
        };
        let to = authority(self.guard.pool_key(&source, endpoint, is_called));
        // One that was judged by older policies is of no use.
        let made = made.filter(|_| judged == generation()).map(|made| Made::put(&self.learnt, &to, made));
        let mut response = self.exchange(endpoint, &to, request, is_called).await?;
        drop(made);
        let is_of_component = response.extensions_mut().remove::<OfComponent>().is_some();
        if let Some(refusal) = link::take_refusal(response.headers_mut()).filter(|_| is_of_component) {
            return Err(refusal.failure(endpoint));
        }
        link::strip(response.headers_mut());
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            Kept::add(&mut response, place);
            return Ok(response);
        }
        Ok(response.map(|body| Held { body, by: place }.boxed_unsync()))
    }

    async fn exchange(
        &self,
        endpoint: SocketAddr,
        to: &Authority,
        request: Request<Body>,
        is_link: bool,
    ) -> Result<Response<Body>, Failure> {
        if request.extensions().get::<InHttp2>().is_some() {
            return self.exchange_http2(endpoint, to, request, is_link).await;
        }
        let upgrade = headers::upgrade(request.headers());
        let is_upgrade = upgrade.is_some();
        let mut response =
            self.send(to, request, upgrade, is_link).await.map_err(|error| match error.is_connect() {
                true => Failure::unseen(endpoint, error.into()),
                false => Failure::seen(endpoint, error.into()),
            })?;
        match (response.status() == StatusCode::SWITCHING_PROTOCOLS, is_upgrade) {
            (true, true) => {}
            (true, false) => {
                return Err(Failure::seen(endpoint, "it changes to a protocol that nobody asked for".into()));
            }
            (false, _) => headers::strip(response.headers_mut()),
        }
        Ok(response)
    }

    /// The same in HTTP/2, whose authority is what the request names. What is behind its body comes with the answer, and goes with the
    /// request: both sides take trailers.
    async fn exchange_http2(
        &self,
        endpoint: SocketAddr,
        to: &Authority,
        mut request: Request<Body>,
        is_link: bool,
    ) -> Result<Response<Body>, Failure> {
        headers::strip(request.headers_mut());
        if is_link {
            link::send(&mut request);
        }
        request.headers_mut().insert(TE, HeaderValue::from_static("trailers"));
        let host = request.headers().get(HOST).and_then(|host| Authority::try_from(host.as_bytes()).ok());
        let named = host.or_else(|| request.uri().authority().cloned());
        *request.uri_mut() = with_authority(request.uri(), named.unwrap_or_else(|| authority(endpoint.to_string())));
        *request.version_mut() = Version::HTTP_2;
        let connect = || {
            let (mut connector, to) = (self.connector.clone(), with_authority(&Uri::default(), to.clone()));
            async move {
                std::future::poll_fn(|context| connector.poll_ready(context)).await?;
                connector.call(to).await
            }
        };
        let (mut response, is_called) = self.http2.send(to, request, connect).await.map_err(|failed| match failed {
            http2::Failed::Unseen(error) => Failure::unseen(endpoint, error),
            http2::Failed::Seen(error) => Failure::seen(endpoint, error),
        })?;
        headers::strip(response.headers_mut());
        if is_called {
            response.extensions_mut().insert(OfComponent);
        }
        Ok(response)
    }

    async fn send(
        &self,
        to: &Authority,
        mut request: Request<Body>,
        upgrade: Option<HeaderValue>,
        is_link: bool,
    ) -> Result<Response<Body>, legacy::Error> {
        headers::strip(request.headers_mut());
        if is_link {
            // Now, when nothing that the request says of its own connection takes it away again.
            link::send(&mut request);
        }
        if let Some(protocol) = upgrade {
            headers::ask(request.headers_mut(), protocol);
        }
        if !request.headers().contains_key(HOST)
            && let Some(host) = request.uri().authority().and_then(|authority| authority.as_str().parse().ok())
        {
            request.headers_mut().insert(HOST, host);
        }
        *request.uri_mut() = with_authority(request.uri(), to.clone());
        *request.version_mut() = Version::HTTP_11;
        let response = self.client.request(request).await?;
        Ok(response.map(|body| body.map_err(BoxError::from).boxed_unsync()))
    }
}

/// The same path, of this authority.
fn with_authority(uri: &Uri, authority: Authority) -> Uri {
    let mut parts = http::uri::Parts::default();
    parts.scheme = Some(Scheme::HTTP);
    parts.authority = Some(authority);
    parts.path_and_query = Some(uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/")));
    Uri::from_parts(parts).expect("a scheme, an authority and a path are a URI")
}

fn authority(text: String) -> Authority {
    Authority::try_from(text).expect("a socket address is an authority, also behind a word")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_to_other_nodes_are_kept_while_there_are_few() {
        let all: Arc<AtomicUsize> = Arc::default();
        let few: Vec<Open> = (0..KEPT_ELSEWHERE_MAX).map(|_| Open::count(&all)).collect();
        assert!(few.iter().all(|open| open.may_be_kept) && !Open::count(&all).may_be_kept);
        drop(few);
        assert!(Open::count(&all).may_be_kept && all.load(Relaxed) == 0);
    }
}
