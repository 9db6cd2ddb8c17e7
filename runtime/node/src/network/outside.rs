//! Requests that leave the mesh: to hosts outside of the cluster, for guests that may, and TLS to Services, for all.
//!
//! A name is resolved here and nowhere else on this way, in the turns of the pod's namespace, and its addresses pass the [`Gate`] before
//! anything is connected. A connection that is kept for the next request is kept for the same pod: what a server remembers of one (who
//! has logged in, what it still has to say) is nobody else's.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use coracle_engine::{Body, BoxError, OutboundError};
use http::uri::{Scheme, Uri};
use http::{Request, Response, header};
use http_body_util::BodyExt as _;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::OnceCell;
use tokio_rustls::TlsConnector;

use super::gate::Gate;

/// Longest wait for a connection, to each of a name's addresses.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections to outside, of all pods together, up to which those that nobody uses are kept for the next request.
const KEPT_MAX: usize = 512;
/// Addresses of a name that are tried.
const ADDRESSES_MAX: usize = 4;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// It leads to where no guest goes.
    #[error("{0} is an address of this machine, or near it: no pod may reach it")]
    Forbidden(String),
    /// Network policies do not let the pod out there.
    #[error("network policies do not allow a connection to {0}")]
    NotAllowed(String),
    /// There is no such name.
    #[error("{0} cannot be resolved")]
    Name(String),
    /// Nobody answered.
    #[error("connect to {0}")]
    Failed(String, #[source] io::Error),
}

type Client = legacy::Client<HttpsConnector<Dialer>, Body>;

/// Between a namespace and the key of a pod's connections; neither has it.
const OF: char = '~';

/// Whether a pod may connect to an address, by what its connections are kept under ([`Proxy::outside_key`]).
///
/// [`Proxy::outside_key`]: coracle_proxy::Proxy::outside_key
pub type Judge = Arc<dyn Fn(&str, SocketAddr) -> bool + Send + Sync>;

/// Connects for a pool.
#[derive(Clone)]
struct Dialer {
    gate: Arc<Gate>,
    judge: Judge,
    /// Connections that are open.
    open: Arc<AtomicUsize>,
}

impl tower::Service<Uri> for Dialer {
    type Response = Counted;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Counted, ConnectError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let Dialer { gate, judge, open } = self.clone();
        Box::pin(async move {
            let host = uri.host().unwrap_or_default();
            let port = uri.port_u16().unwrap_or(if uri.scheme() == Some(&Scheme::HTTPS) { 443 } else { 80 });
            let kept = uri.authority().and_then(|authority| authority.as_str().rsplit_once('@')).map(|(kept, _)| kept);
            let (namespace, key) = kept.and_then(|kept| kept.split_once(OF)).unwrap_or_default();
            let may = |to| judge(key, to);
            connect(&gate, may, namespace, host, port).await.map(|stream| Counted::new(stream, open))
        })
    }
}

/// A connection for a pool. While there are few it is kept when its request is over; nobody counts it as his then.
struct Counted {
    inner: TokioIo<TcpStream>,
    open: Arc<AtomicUsize>,
}

impl Counted {
    fn new(stream: TcpStream, open: Arc<AtomicUsize>) -> Counted {
        open.fetch_add(1, Relaxed);
        Counted { inner: TokioIo::new(stream), open }
    }

    fn may_be_kept(&self) -> bool {
        self.open.load(Relaxed) <= KEPT_MAX
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Relaxed);
    }
}

impl Connection for Counted {
    fn connected(&self) -> Connected {
        let connected = self.inner.connected();
        if !self.may_be_kept() {
            connected.poison();
        }
        connected
    }
}

impl Read for Counted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl Write for Counted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }
}

/// Pooled connections, made when the first guest asks.
pub struct Outside {
    gate: Arc<Gate>,
    judge: Judge,
    /// Authorities of the cluster, trusted beside the machine's for its own names.
    cluster_roots: Vec<CertificateDer<'static>>,
    client: OnceCell<Client>,
    cluster_tls: OnceCell<TlsConnector>,
}

impl Outside {
    /// Nothing is connected before it is asked for.
    pub fn new(gate: Arc<Gate>, judge: Judge, cluster_roots: Vec<CertificateDer<'static>>) -> Self {
        Self { gate, judge, cluster_roots, client: OnceCell::new(), cluster_tls: OnceCell::new() }
    }

    /// Sends a request whose URI is absolute, `http` or `https`, to outside of the cluster, for a pod of this namespace. Its connection is
    /// one that is judged by the `key`, and used for nobody else.
    /// `not_allowed` is called where policies do not let it out.
    pub async fn send(
        &self,
        (namespace, key): (&str, &str),
        mut request: Request<Body>,
        not_allowed: impl FnOnce(),
    ) -> Result<Response<Body>, OutboundError> {
        keep_under(&format!("{namespace}{OF}{key}"), &mut request)?;
        let client = self.client.get_or_try_init(|| self.connect_client()).await?;
        let endpoint = request.uri().authority().map(without_user).unwrap_or_default().to_owned();
        // What the connection speaks is agreed with the server.
        *request.version_mut() = http::Version::HTTP_11;
        let response = client.request(request).await.map_err(|error| {
            if is_not_allowed(&error) {
                not_allowed();
            }
            no_answer(endpoint, error.into())
        })?;
        Ok(response.map(|body| body.map_err(BoxError::from).boxed_unsync()))
    }

    /// Connects to a host and port outside of the cluster, for a pod of this namespace, at an address that it `may` connect to.
    pub async fn connect(
        &self,
        namespace: &str,
        host: &str,
        port: u16,
        may: impl Fn(SocketAddr) -> bool,
    ) -> Result<TcpStream, ConnectError> {
        connect(&self.gate, may, namespace, host, port).await
    }

    /// Sends a request with TLS to a Service or pod that is really at `to`, and is called `host`. Its certificate is of the
    /// cluster's authority or of one that the machine trusts. What is on this machine is connected to `from` the pod's twin, so that it
    /// is known there who comes.
    pub async fn send_tls(
        &self,
        from: IpAddr,
        to: SocketAddr,
        host: &str,
        request: Request<Body>,
    ) -> Result<Response<Body>, OutboundError> {
        let connector = self.cluster_tls.get_or_try_init(|| self.tls_connector()).await?;
        let name = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let name = ServerName::try_from(name).map_err(|error| OutboundError::Protocol(error.into()))?;
        let endpoint = host.to_owned();
        let stream = match tokio::time::timeout(CONNECT_TIMEOUT, connect_from(from, to)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(no_answer(endpoint, error.into())),
            Err(_) => return Err(OutboundError::Timeout),
        };
        let _ = stream.set_nodelay(true);
        let stream = match tokio::time::timeout(CONNECT_TIMEOUT, connector.connect(name, stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                // Said in words, because a guest sees no more than them. Nothing has been sent.
                let message = format!("https://{host}: TLS could not be agreed with the endpoint: {error}");
                return Err(OutboundError::Internal(message));
            }
            Err(_) => return Err(OutboundError::Timeout),
        };
        over(TokioIo::new(stream), request).await.map_err(|error| no_answer(endpoint, error))
    }

    async fn connect_client(&self) -> Result<Client, OutboundError> {
        let dialer = Dialer { gate: self.gate.clone(), judge: self.judge.clone(), open: Arc::default() };
        let connector = https(tls(Vec::new()).await?, dialer);
        Ok(legacy::Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(30))
            .pool_max_idle_per_host(16)
            .build(connector))
    }

    async fn tls_connector(&self) -> Result<TlsConnector, OutboundError> {
        let mut config = tls(self.cluster_roots.clone()).await?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(TlsConnector::from(Arc::new(config)))
    }
}

/// Connects with TLS where that is asked for. HTTP/1.1 is all that is offered: a connection of its own for each request, which the
/// kernel holds back while its guest does not read. One of HTTP/2 would be shared by all pods, its window used up by those that do
/// not read, and what it had taken would be nobody's memory.
fn https<D>(tls: rustls::ClientConfig, dialer: D) -> HttpsConnector<D> {
    hyper_rustls::HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http()
        .enable_http1()
        .wrap_connector(dialer)
}

/// Trust in the machine's authorities, and in these.
async fn tls(more: Vec<CertificateDer<'static>>) -> Result<rustls::ClientConfig, OutboundError> {
    let loaded = tokio::task::spawn_blocking(rustls_native_certs::load_native_certs).await;
    let loaded = loaded.map_err(|error| OutboundError::Internal(error.to_string()))?;
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(more);
    roots.add_parsable_certificates(loaded.certs);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let tls = tls.map_err(|error| OutboundError::Internal(error.to_string()))?;
    Ok(tls.with_root_certificates(roots).with_no_client_auth())
}

/// Has the connection of a request kept under a key, instead of whatever its guest has written there.
fn keep_under(key: &str, request: &mut Request<Body>) -> Result<(), OutboundError> {
    let Some(authority) = request.uri().authority() else { return Ok(()) };
    let text = format!("{key}@{}", without_user(authority));
    let mut parts = request.uri().clone().into_parts();
    let bad = |error: http::Error| OutboundError::Protocol(error.into());
    parts.authority = Some(text.parse().map_err(|error: http::uri::InvalidUri| bad(error.into()))?);
    *request.uri_mut() = Uri::from_parts(parts).map_err(|error| bad(error.into()))?;
    Ok(())
}

fn without_user(authority: &http::uri::Authority) -> &str {
    let text = authority.as_str();
    text.rsplit_once('@').map_or(text, |(_, host)| host)
}

/// Connects as a socket of the pod would.
async fn connect_from(from: IpAddr, to: SocketAddr) -> io::Result<TcpStream> {
    if !to.ip().is_loopback() || from.is_ipv4() != to.is_ipv4() {
        return TcpStream::connect(to).await;
    }
    let socket = if to.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.bind(SocketAddr::new(from, 0))?;
    socket.connect(to).await
}

/// Resolves, asks the gate and the policies, connects.
async fn connect(
    gate: &Gate,
    may: impl Fn(SocketAddr) -> bool,
    namespace: &str,
    host: &str,
    port: u16,
) -> Result<TcpStream, ConnectError> {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let addresses: Vec<SocketAddr> = match host.parse::<IpAddr>() {
        Ok(address) => vec![SocketAddr::new(address, port)],
        Err(_) => {
            let found = coracle_engine::look_up(namespace, host).await;
            let found = found.ok_or_else(|| ConnectError::Name(host.to_owned()))?;
            found.into_iter().map(|address| SocketAddr::new(address, port)).collect()
        }
    };
    if addresses.is_empty() {
        return Err(ConnectError::Name(host.to_owned()));
    }
    let mut last = ConnectError::Forbidden(host.to_owned());
    for address in addresses.into_iter().filter(|address| gate.permits(address.ip())).take(ADDRESSES_MAX) {
        if !may(address) {
            last = ConnectError::NotAllowed(host.to_owned());
            continue;
        }
        let connected = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await;
        let connected = connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        match connected {
            Ok(stream) => {
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Err(error) => last = ConnectError::Failed(address.to_string(), error),
        }
    }
    Err(last)
}

/// Sends one request over a connection of its own, which lives until the body of the answer has been read.
pub async fn over<S>(stream: S, mut request: Request<Body>) -> Result<Response<Body>, BoxError>
where
    S: Read + Write + Send + Unpin + 'static,
{
    if !request.headers().contains_key(header::HOST)
        && let Some(host) = request.uri().authority().and_then(|authority| authority.as_str().parse().ok())
    {
        request.headers_mut().insert(header::HOST, host);
    }
    // On a connection of its own a request names a path only.
    let path = request.uri().path_and_query().cloned().unwrap_or_else(|| http::uri::PathAndQuery::from_static("/"));
    *request.uri_mut() = path.into();
    *request.version_mut() = http::Version::HTTP_11;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await?;
    let driven = AbortOnDrop(tokio::spawn(connection));
    let response = sender.send_request(request).await?;
    Ok(response.map(move |body| {
        let body = body.map_err(BoxError::from).map_frame(move |frame: http_body::Frame<bytes::Bytes>| {
            // The connection lives as long as somebody reads from it.
            let _ = &driven;
            frame
        });
        body.boxed_unsync()
    }))
}

struct AbortOnDrop(tokio::task::JoinHandle<hyper::Result<()>>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Whether policies are why.
fn is_not_allowed(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| error.source())
        .any(|error| matches!(error.downcast_ref(), Some(ConnectError::NotAllowed(_))))
}

/// Why there was no answer from `endpoint`, as far as the causes tell.
pub fn no_answer(endpoint: String, source: BoxError) -> OutboundError {
    let mut cause = Some(&*source as &(dyn std::error::Error + 'static));
    while let Some(error) = cause {
        match error.downcast_ref::<ConnectError>() {
            Some(ConnectError::Forbidden(_)) => return OutboundError::Denied,
            Some(ConnectError::NotAllowed(_)) => return OutboundError::Refused,
            Some(ConnectError::Name(name)) => return OutboundError::Name(name.clone()),
            _ => {}
        }
        if let Some(io) = error.downcast_ref::<io::Error>() {
            match io.kind() {
                io::ErrorKind::ConnectionRefused => return OutboundError::Refused,
                io::ErrorKind::TimedOut => return OutboundError::Timeout,
                _ => {}
            }
        }
        if error.to_string() == "dns error" {
            return OutboundError::Name(endpoint);
        }
        cause = error.source();
    }
    OutboundError::Protocol(source)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A registry that asks nobody who they are would answer here.
    #[tokio::test]
    async fn no_spelling_of_this_machine_is_connected() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let outside = Outside::new(Arc::default(), Arc::new(|_, _| true), Vec::new());
        for host in [
            "127.0.0.1",
            "127.1",
            "0x7f.1",
            "2130706433",
            "0",
            "0.0.0.0",
            "localhost",
            "[::1]",
            "[::ffff:127.0.0.1]",
            "[::ffff:7f00:1]",
        ] {
            for scheme in ["http", "https"] {
                let uri = format!("{scheme}://{host}:{port}/v2/_catalog");
                let request = Request::get(&uri).body(coracle_engine::empty()).unwrap();
                let error = outside.send(("n", "key"), request, || {}).await.map(|_| ()).unwrap_err();
                // Which numbers are names is the resolver's business, and TLS knows no such names: nothing is connected.
                let is_refused = matches!(error, OutboundError::Denied | OutboundError::Name(_));
                assert!(
                    is_refused || scheme == "https" && matches!(error, OutboundError::Protocol(_)),
                    "{uri}: {error:?}"
                );
            }
            assert!(outside.connect("n", host, port, |_| true).await.is_err(), "{host}");
        }
        let accepted = tokio::time::timeout(Duration::from_millis(50), listener.accept()).await;
        assert!(accepted.is_err(), "nobody came");
    }

    #[test]
    fn what_a_guest_has_written_keeps_no_connection_for_it() {
        for uri in ["http://example.org:81/x", "http://other~p1@example.org:81/x"] {
            let mut request = Request::get(uri).body(coracle_engine::empty()).unwrap();
            keep_under("n~key", &mut request).unwrap();
            let authority = request.uri().authority().unwrap();
            assert_eq!((authority.as_str(), authority.host()), ("n~key@example.org:81", "example.org"));
        }
    }

    #[tokio::test]
    async fn it_is_told_when_policies_are_why() {
        let outside = Outside::new(Arc::default(), Arc::new(|_, _| false), Vec::new());
        let told = std::cell::Cell::new(0);
        let send = async |to: &str| {
            let request = Request::get(to).body(coracle_engine::empty()).unwrap();
            outside.send(("n", "key"), request, || told.set(told.get() + 1)).await.map(drop).unwrap_err()
        };
        assert!(matches!(send("http://192.0.2.1/").await, OutboundError::Refused));
        assert_eq!(told.get(), 1);
        assert!(matches!(send("http://127.0.0.1/").await, OutboundError::Denied));
        assert_eq!(told.get(), 1, "that is no policy's");
    }

    /// A server that would rather speak HTTP/2, as most do.
    #[tokio::test]
    async fn no_connection_to_outside_is_shared_by_requests() {
        let key = rcgen::KeyPair::generate().unwrap();
        let own = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let server =
            rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let secret = rustls_pki_types::PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let mut server = server.with_no_client_auth().with_single_cert(vec![own.der().clone()], secret).unwrap();
        server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(server));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let serving = tokio::spawn(async move {
            let stream = acceptor.accept(listener.accept().await.unwrap().0).await.unwrap();
            stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec)
        });
        let dialer = tower::service_fn(move |_: Uri| async move {
            TcpStream::connect(at).await.map(|stream| Counted::new(stream, Arc::default()))
        });
        let mut connector = https(tls(vec![own.der().clone()]).await.unwrap(), dialer);
        let uri = format!("https://localhost:{}/", at.port()).parse().unwrap();
        let stream = tower::Service::call(&mut connector, uri).await.unwrap();
        assert!(!stream.connected().is_negotiated_h2());
        let agreed = serving.await.unwrap();
        assert!(agreed.is_none_or(|agreed| agreed == b"http/1.1"));
    }

    #[tokio::test]
    async fn connections_are_kept_while_there_are_few() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let open: Arc<AtomicUsize> = Arc::default();
        let one = Counted::new(stream, open.clone());
        assert_eq!((one.may_be_kept(), open.load(Relaxed)), (true, 1));
        open.store(KEPT_MAX + 1, Relaxed);
        assert!(!one.may_be_kept());
        drop(one);
        assert_eq!(open.load(Relaxed), KEPT_MAX);
    }
}
