//! Requests to sockets: pooled HTTP/1.1 connections.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use coracle_discovery::Protocol;
use futures::future::BoxFuture;
use http::header::{CONNECTION, HOST, HeaderMap, HeaderName, TE, TRAILER, TRANSFER_ENCODING, UPGRADE};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Request, Response, Uri};
use http_body_util::BodyExt;
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tower_service::Service;

use crate::endpoint::{CONNECT_MAX, Failure};
use crate::{Body, BoxError, LocalEndpoints};

/// Connections to one socket that are kept while nobody uses them,
const IDLE_PER_SOCKET_MAX: usize = 64;
/// and for how long.
const IDLE_MAX: Duration = Duration::from_secs(30);

/// Headers that are for one connection only (RFC 9110 §7.6.1), beside those that `Connection` names.
const OF_A_CONNECTION: [HeaderName; 7] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// Connects to what a pod listens at, and to nothing else that happens to be there.
#[derive(Clone)]
struct Connector {
    connector: HttpConnector,
    local: Arc<dyn LocalEndpoints>,
}

impl Service<Uri> for Connector {
    type Response = <HttpConnector as Service<Uri>>::Response;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.connector.poll_ready(context).map_err(BoxError::from)
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let socket = to.authority().and_then(|to| to.as_str().parse::<SocketAddr>().ok());
        if socket.is_some_and(|socket| !self.local.is_reached(socket, Protocol::Tcp)) {
            return Box::pin(async { Err(io::Error::from(io::ErrorKind::ConnectionRefused).into()) });
        }
        let connecting = self.connector.call(to);
        Box::pin(async move { connecting.await.map_err(BoxError::from) })
    }
}

/// Sends requests to sockets. Clones share the connections.
#[derive(Clone)]
pub(crate) struct Dialer(legacy::Client<Connector, Body>);

impl Dialer {
    pub fn new(local: Arc<dyn LocalEndpoints>) -> Dialer {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(CONNECT_MAX));
        let client = legacy::Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_MAX)
            .pool_max_idle_per_host(IDLE_PER_SOCKET_MAX)
            .build(Connector { connector, local });
        Dialer(client)
    }

    /// Sends a request to the socket of `endpoint`, whatever its URI names.
    pub async fn call(
        &self,
        endpoint: SocketAddr,
        socket: SocketAddr,
        request: Request<Body>,
    ) -> Result<Response<Body>, Failure> {
        let to = socket.to_string().parse().expect("a socket address is an authority");
        self.send(&to, request).await.map_err(|error| match error.is_connect() {
            true => Failure::unseen(endpoint, error.into()),
            false => Failure::seen(endpoint, error.into()),
        })
    }

    async fn send(&self, to: &Authority, mut request: Request<Body>) -> Result<Response<Body>, legacy::Error> {
        strip(request.headers_mut());
        if !request.headers().contains_key(HOST)
            && let Some(host) = request.uri().authority().and_then(|authority| authority.as_str().parse().ok())
        {
            request.headers_mut().insert(HOST, host);
        }
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(Scheme::HTTP);
        parts.authority = Some(to.clone());
        parts.path_and_query =
            Some(request.uri().path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/")));
        *request.uri_mut() = Uri::from_parts(parts).expect("a scheme, an authority and a path are a URI");
        *request.version_mut() = http::Version::HTTP_11;
        let mut response = self.0.request(request).await?;
        strip(response.headers_mut());
        Ok(response.map(|body| body.map_err(BoxError::from).boxed_unsync()))
    }
}

/// Takes away what is for one connection only.
fn strip(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        let named = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
        let named: Vec<HeaderName> =
            named.flat_map(|value| value.split(',')).filter_map(|name| name.trim().parse().ok()).collect();
        for name in named {
            headers.remove(name);
        }
    }
    for name in &OF_A_CONNECTION {
        headers.remove(name);
    }
}
