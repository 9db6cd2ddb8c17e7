//! The other end of a link ([`crate::network::Peers`]): connections of other nodes' pods to pods of this one.
//!
//! A `CONNECT` names a pod's address and port, and gets bytes to what answers there: a guest's socket, or HTTP that its
//! component is called with. It leads to nothing else of this machine. Who calls is a node, by its certificate.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use coracle_proxy::{BoxError, Local, serve_stream};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

use crate::network::{called, pass};
use crate::pod::Pods;

/// A guest's socket is connected within this time.
const CONNECT_MAX: Duration = Duration::from_secs(5);

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
    let passing = async move {
        // Until the stream is there the socket is cut off, too, by whatever ends this.
        let stream = async { upgrade.await.map(TokioIo::new).map_err(io::Error::other) };
        match socket {
            Some(socket) => pass(socket, stream).await.map_err(BoxError::from),
            None => serve_stream(stream.await?, service).await,
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
    Ok(())
}
