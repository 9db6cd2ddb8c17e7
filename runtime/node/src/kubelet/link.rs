//! The other end of a link ([`crate::network::Peers`]): connections of other nodes' pods to pods of this one.
//!
//! A `CONNECT` names a pod's address and port, and gets bytes to what answers there: a guest's socket, or HTTP that its
//! component is called with. It leads to nothing else of this machine, and to no other pod that gets the address later. Who calls
//! is a node, by its certificate: what its proxy says beside its requests is believed ([`LINK`]), and what a guest says through it
//! is not.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use coracle_proxy::{BoxError, HttpService, Local, serve_link, serve_stream};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

use crate::network::{LINK, REQUESTS, called, pass};
use crate::pod::Pods;

/// A guest's socket is connected within this time.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// How long a stream of requests stays when its pod has gone: who sends one on it meanwhile is told that nobody has taken it, as it
/// would not be where the stream ends under its hands.
const LINGER: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 5 });

/// Serves a link until its end.
pub async fn serve<S>(stream: S, pods: Arc<Pods>, shutdown: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let answer = service_fn(move |request| {
        let (pods, shutdown) = (pods.clone(), shutdown.clone());
        async move { Ok::<_, Infallible>(answer(&pods, request, shutdown).await) }
    });
    if let Err(error) = called().serve_connection_with_upgrades(TokioIo::new(stream), answer).await {
        tracing::debug!(%error, "a link from a node ended");
    }
}

async fn answer(pods: &Arc<Pods>, request: Request<Incoming>, shutdown: CancellationToken) -> Response<Empty<Bytes>> {
    let connected = connect(pods, request, shutdown).await;
    let mut response = Response::new(Empty::new());
    match connected {
        Ok(Answers::Requests) => drop(response.headers_mut().insert(LINK, REQUESTS)),
        Ok(Answers::Bytes) => {}
        Err(code) => *response.status_mut() = code,
    }
    response
}

/// What is at the end of a stream.
enum Answers {
    /// A component, which is called.
    Requests,
    /// A guest's socket.
    Bytes,
}

/// Begins to pass bytes, or says why not.
async fn connect(
    pods: &Arc<Pods>,
    request: Request<Incoming>,
    shutdown: CancellationToken,
) -> Result<Answers, StatusCode> {
    match (request.method(), request.uri().path()) {
        (&Method::CONNECT, _) => {}
        // What everybody may ask.
        (&Method::GET, "/healthz") => return Ok(Answers::Bytes),
        _ => return Err(StatusCode::FORBIDDEN),
    }
    let authority = request.uri().authority().map(http::uri::Authority::as_str).unwrap_or_default();
    let to: SocketAddr = authority.parse().map_err(|_| StatusCode::BAD_REQUEST)?;
    let context = &pods.context;
    let life = context.network.table.life(to.ip()).ok_or(StatusCode::SERVICE_UNAVAILABLE)?;
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
    let are_requests = request.headers().get(LINK) == Some(&REQUESTS);
    let answers = if socket.is_some() { Answers::Bytes } else { Answers::Requests };
    let upgrade = hyper::upgrade::on(request);
    let passing = async move {
        // Until the stream is there the socket is cut off, too, by whatever ends this.
        let stream = async { upgrade.await.map(TokioIo::new).map_err(io::Error::other) };
        match socket {
            Some(socket) => pass(socket, stream).await.map_err(BoxError::from),
            None if are_requests => requests(stream.await?, service, life).await,
            // As a connection on this node: it ends with the pod.
            None => life.run_until_cancelled(serve_stream(stream.await?, service)).await.unwrap_or(Ok(())),
        }
    };
    // Where guests may run, as every connection that calls them.
    let until = async move {
        tokio::select! {
            passed = passing => if let Err(error) = passed {
                tracing::trace!(%error, "a connection from another node");
            },
            () = shutdown.cancelled() => {}
        }
    };
    context.tasks.spawn_on(until, context.engine.gateway());
    Ok(answers)
}

/// Answers requests of another node's proxy until a while after the pod has gone.
async fn requests<S>(stream: S, service: Arc<dyn HttpService>, life: CancellationToken) -> Result<(), BoxError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let over = CancellationToken::new();
    let mut serving = std::pin::pin!(serve_link(stream, service, over.clone()));
    tokio::select! {
        served = &mut serving => return served,
        () = async {
            life.cancelled().await;
            tokio::time::sleep(LINGER).await;
        } => over.cancel(),
    }
    serving.await
}
