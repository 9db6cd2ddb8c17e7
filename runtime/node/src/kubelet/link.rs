//! The other end of a link ([`crate::network::Peers`]): connections of other nodes' pods to pods of this one.
//!
//! A `CONNECT` names a pod's address and port, and gets bytes to what answers there: a guest's socket, or HTTP that its
//! component is called with; or datagrams to a guest's socket, in a stream for each flow. It leads to nothing else of this machine, and to no other pod that gets the address later. Who calls
//! is a node, by its certificate: what its proxy says beside its requests is believed ([`LINK`]), also for which of its pods it calls
//! ([`crate::network::Callers`]), and what a guest says through it is not. Whether network policies let that pod in is decided here: for
//! bytes when they begin, for a component with each request, and for each datagram; what a proxy keeps for its requests ends when they may not come any more.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use coracle_policy::{Protocol, Source, TEXT_BYTES_MAX, Workload};
use coracle_proxy::{Admit, BoxError, HttpService, Local, LocalEndpoints as _, NotAllowed, serve_link, serve_stream};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

use crate::network::{CALLED, DATAGRAMS, LINK, Network, REQUESTS, called, pass};
use crate::pod::Pods;

/// How long a stream of requests stays when its pod has gone: who sends one on it meanwhile is told that nobody has taken it, as it
/// would not be where the stream ends under its hands.
const LINGER: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 5 });

/// Serves a link of the node `from` until its end.
pub async fn serve<S>(stream: S, pods: Arc<Pods>, from: Arc<str>, shutdown: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let answer = service_fn(move |request| {
        let (pods, from, shutdown) = (pods.clone(), from.clone(), shutdown.clone());
        async move { Ok::<_, Infallible>(answer(&pods, &from, request, shutdown).await) }
    });
    if let Err(error) = called().serve_connection_with_upgrades(TokioIo::new(stream), answer).await {
        tracing::debug!(%error, "a link from a node ended");
    }
}

async fn answer(
    pods: &Arc<Pods>,
    from: &Arc<str>,
    request: Request<Incoming>,
    shutdown: CancellationToken,
) -> Response<Empty<Bytes>> {
    let connected = connect(pods, from, request, shutdown).await;
    let mut response = Response::new(Empty::new());
    match connected {
        Ok(Answered { takes, called }) => {
            if let Some(takes) = takes {
                response.headers_mut().insert(LINK, takes);
            }
            if let Some(called) = called {
                response.headers_mut().insert(CALLED, called);
            }
        }
        Err(code) => *response.status_mut() = code,
    }
    response
}

/// What is at the end of a stream.
#[derive(Default)]
struct Answered {
    /// Requests for a component, which is called, or datagrams; else the bytes of a connection to a guest's socket.
    takes: Option<HeaderValue>,
    /// Whose it is.
    called: Option<HeaderValue>,
}

/// Who calls a pod of this node, as far as that can be true.
fn source(network: &Network, from: &str, said: Option<&HeaderValue>) -> Option<Source> {
    let peers = network.table.peers()?;
    network.callers.source(&network.table, peers, from, said)
}

/// Begins to pass bytes, or says why not.
async fn connect(
    pods: &Arc<Pods>,
    from: &Arc<str>,
    request: Request<Incoming>,
    shutdown: CancellationToken,
) -> Result<Answered, StatusCode> {
    match (request.method(), request.uri().path()) {
        (&Method::CONNECT, _) => {}
        // What everybody may ask.
        (&Method::GET, "/healthz") => return Ok(Answered::default()),
        _ => return Err(StatusCode::FORBIDDEN),
    }
    let authority = request.uri().authority().map(http::uri::Authority::as_str).unwrap_or_default();
    let to: SocketAddr = authority.parse().map_err(|_| StatusCode::BAD_REQUEST)?;
    let context = &pods.context;
    let network = &context.network;
    let life = network.table.life(to.ip()).ok_or(StatusCode::SERVICE_UNAVAILABLE)?;
    if request.headers().get(LINK) == Some(&DATAGRAMS) {
        return datagrams(pods, from, request, (to, life), shutdown).await;
    }
    let local = network.local(to.ip(), to.port()).ok_or(StatusCode::SERVICE_UNAVAILABLE)?;
    let asks = request.headers().get(LINK) == Some(&REQUESTS);
    let are_requests = asks && matches!(local, Local::Http(_));
    let source = source(network, from, request.headers().get(coracle_proxy::SOURCE)).ok_or(StatusCode::FORBIDDEN)?;
    let (mut policies, mut relabelled) = (network.policies.subscribe(), network.table.relabelled());
    // Each of them says for whom it is.
    if !are_requests && !network.proxy.permits(&source, to, Protocol::Tcp) {
        return Err(StatusCode::FORBIDDEN);
    }
    let socket = match local {
        Local::Http(_) => None,
        Local::Tcp(at) => {
            let socket = network.dial(at).await.map_err(|_| StatusCode::SERVICE_UNAVAILABLE)?;
            let _ = socket.set_nodelay(true);
            Some(socket)
        }
    };
    let service = network.component(to);
    let called = network.table.workload(to.ip());
    let answered = Answered { takes: socket.is_none().then_some(REQUESTS), called: told(called.as_deref()) };
    let (network, from) = (network.clone(), from.clone());
    // Requests of a proxy to a guest that listens itself: it keeps the stream for the next, as long as they may come.
    let (judge, of) = (network.clone(), source.clone());
    let forbidden = async move {
        loop {
            let changed = tokio::select! {
                changed = policies.changed() => changed,
                changed = relabelled.changed() => changed,
            };
            if changed.is_err() || !judge.proxy.permits(&of, to, Protocol::Tcp) {
                return;
            }
        }
    };
    let upgrade = hyper::upgrade::on(request);
    let passing = async move {
        // Until the stream is there the socket is cut off, too, by whatever ends this.
        let stream = async { upgrade.await.map(TokioIo::new).map_err(io::Error::other) };
        match socket {
            Some(socket) if asks => tokio::select! {
                passed = pass(socket, stream) => passed.map_err(BoxError::from),
                () = forbidden => Err(NotAllowed.into()),
            },
            Some(socket) => pass(socket, stream).await.map_err(BoxError::from),
            None if are_requests => {
                let admit: Admit = Arc::new(move |said| {
                    let source = self::source(&network, &from, said)?;
                    network.proxy.permits(&source, to, Protocol::Tcp).then_some(source)
                });
                requests(stream.await?, service, admit, life).await
            }
            // As a connection on this node: it ends with the pod.
            None => life
                .run_until_cancelled(serve_stream(stream.await?, network.proxy.guarded(source, to, service)))
                .await
                .unwrap_or(Ok(())),
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
    Ok(answered)
}

/// What the other node is told of the pod.
fn told(called: Option<&Workload>) -> Option<HeaderValue> {
    let called = called.filter(|called| called.text().len() <= TEXT_BYTES_MAX)?;
    HeaderValue::from_str(called.text()).ok()
}

/// Begins to pass datagrams of one flow, or says why not. It ends with the pod, and when the pod is another to policies than the other
/// node was told: that one judges, too.
async fn datagrams(
    pods: &Arc<Pods>,
    from: &Arc<str>,
    request: Request<Incoming>,
    (to, life): (SocketAddr, CancellationToken),
    shutdown: CancellationToken,
) -> Result<Answered, StatusCode> {
    let (context, network) = (&pods.context, pods.context.network.clone());
    let Some(Local::Tcp(at)) = network.local(to.ip(), to.port()) else { return Err(StatusCode::SERVICE_UNAVAILABLE) };
    let mut relabelled = network.table.relabelled();
    let called = network.table.workload(to.ip());
    let source = source(&network, from, request.headers().get(coracle_proxy::SOURCE)).ok_or(StatusCode::FORBIDDEN)?;
    if !network.proxy.permits(&source, to, Protocol::Udp) {
        return Err(StatusCode::FORBIDDEN);
    }
    let flow = network.flows.take(from.clone(), 1).ok_or(StatusCode::TOO_MANY_REQUESTS)?;
    let upstream = network.proxy.upstream(at).await.map_err(|error| match error.kind() {
        io::ErrorKind::QuotaExceeded => StatusCode::TOO_MANY_REQUESTS,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    })?;
    let answered = Answered { takes: Some(DATAGRAMS), called: told(called.as_deref()) };
    let upgrade = hyper::upgrade::on(request);
    let judge = network.clone();
    let passing = async move {
        let stream = TokioIo::new(upgrade.await?);
        upstream.serve(stream, || judge.proxy.permits(&source, to, Protocol::Udp)).await?;
        Ok::<_, BoxError>(())
    };
    let other = async move {
        while network.table.workload(to.ip()) == called {
            if relabelled.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    };
    context.tasks.spawn(async move {
        tokio::select! {
            passed = passing => if let Err(error) = passed {
                tracing::debug!(%error, "datagrams from another node");
            },
            () = other => {}
            () = life.cancelled() => {}
            () = shutdown.cancelled() => {}
        }
        drop(flow);
    });
    Ok(answered)
}

/// Answers requests of another node's proxy until a while after the pod has gone.
async fn requests<S>(
    stream: S,
    service: Arc<dyn HttpService>,
    admit: Admit,
    life: CancellationToken,
) -> Result<(), BoxError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let over = CancellationToken::new();
    let mut serving = std::pin::pin!(serve_link(stream, service, admit, over.clone()));
    tokio::select! {
        served = &mut serving => return served,
        () = async {
            life.cancelled().await;
            tokio::time::sleep(LINGER).await;
        } => over.cancel(),
    }
    serving.await
}
