//! The other end of a link ([`crate::network::Peers`]): connections of other nodes' pods to pods of this one.
//!
//! A `CONNECT` names a pod's address and port, and gets bytes to what answers there: a guest's socket, or HTTP that its
//! component is called with. It leads to nothing else of this machine. Who calls is a node, by its certificate.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use coracle_proxy::{Local, serve_stream};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

use crate::network::{LINK_WINDOW_BYTES, STREAM_WINDOW_BYTES};
use crate::pod::Pods;

/// Connections in one link at the same time; the other node waits with more.
const STREAMS_MAX: u32 = 4096;
/// A node that has been silent for so long is asked whether it is there,
const PING_AFTER: Duration = Duration::from_secs(10);
/// and answers within this time.
const PONG_MAX: Duration = Duration::from_secs(10);
/// A guest's socket is connected within this time.
const CONNECT_MAX: Duration = Duration::from_secs(5);

/// Serves a link until its end.
pub async fn serve<S>(stream: S, pods: Arc<Pods>, shutdown: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut http = auto::Builder::new(TokioExecutor::new());
    http.http1().timer(TokioTimer::new());
    http.http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(LINK_WINDOW_BYTES)
        .keep_alive_interval(PING_AFTER)
        .keep_alive_timeout(PONG_MAX);
    let answer = service_fn(move |request| {
        let (pods, shutdown) = (pods.clone(), shutdown.clone());
        async move { Ok::<_, Infallible>(answer(&pods, request, shutdown).await) }
    });
    if let Err(error) = http.serve_connection_with_upgrades(TokioIo::new(stream), answer).await {
        tracing::debug!(%error, "a link from a node ended");
    }
}

async fn answer(pods: &Arc<Pods>, request: Request<Incoming>, shutdown: CancellationToken) -> Response<Empty<Bytes>> {
    let code = match connect(pods, request, shutdown).await {
        Ok(()) => StatusCode::OK,
        Err(code) => code,
    };
    let mut response = Response::new(Empty::new());
    *response.status_mut() = code;
    response
}

/// Begins to pass bytes, or says why not.
async fn connect(pods: &Arc<Pods>, request: Request<Incoming>, shutdown: CancellationToken) -> Result<(), StatusCode> {
    match (request.method(), request.uri().path()) {
        (&Method::CONNECT, _) => {}
        // What everybody may ask.
        (&Method::GET, "/healthz") => return Ok(()),
        _ => return Err(StatusCode::FORBIDDEN),
    }
    let authority = request.uri().authority().map(http::uri::Authority::as_str).unwrap_or_default();
    let to: SocketAddr = authority.parse().map_err(|_| StatusCode::BAD_REQUEST)?;
    let context = &pods.context;
    let socket = match context.network.local(to.ip(), to.port()) {
        None => return Err(StatusCode::SERVICE_UNAVAILABLE),
        Some(Local::Http(_)) => None,
        Some(Local::Tcp(at)) => {
            let dialled = tokio::time::timeout(CONNECT_MAX, context.network.dial(at)).await;
            let socket = dialled.ok().and_then(Result::ok).ok_or(StatusCode::SERVICE_UNAVAILABLE)?;
            let _ = socket.set_nodelay(true);
            Some(socket)
        }
    };
    let service = context.network.component(to);
    let upgrade = hyper::upgrade::on(request);
    let pass = async move {
        let Ok(upgraded) = upgrade.await else { return };
        let mut stream = TokioIo::new(upgraded);
        match socket {
            Some(mut socket) => drop(tokio::io::copy_bidirectional(&mut stream, &mut socket).await),
            None => {
                if let Err(error) = serve_stream(stream, service).await {
                    tracing::trace!(%error, "a connection from another node");
                }
            }
        }
    };
    // Where guests may run, as every connection that calls them.
    let until = async move {
        tokio::select! {
            () = pass => {}
            () = shutdown.cancelled() => {}
        }
    };
    context.tasks.spawn_on(until, context.engine.gateway());
    Ok(())
}
