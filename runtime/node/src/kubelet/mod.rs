//! The node's HTTPS endpoint: logs, port-forward, figures, requests to pods for API servers, and links for other nodes.
//!
//! Paths and answers are the kubelet's (`pkg/kubelet/server/server.go`) where the kubelet has them. Who calls shows a certificate of
//! the cluster's authority that names the API server or another node ([`link`]); everybody else may ask whether the node is well and nothing more.

mod attach;
mod channels;
mod demand;
mod exec;
mod figures;
mod input;
mod link;
mod logs;
mod mesh;
mod peer;
mod places;
mod port_forward;
mod proxy;
mod socket;
mod spdy;
mod strangers;
mod terminal;
mod traffic;
mod upgrade;

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use axum::{Extension, Router};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use self::peer::Peer;
#[cfg(test)]
pub(crate) use self::places::{API_SERVERS_MAX, FOR_PODS_MAX};
use self::places::{ApiServers, ByNamespace, Links};
#[cfg(test)]
pub(crate) use self::spdy::tests::syn_stream;
use self::strangers::{Stranger, Strangers};
use crate::pod::Pods;

/// A client that has not finished its handshake by then is let go.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Who is no API server has so long in all: it may ask whether the node is well, and holds a place meanwhile.
const STRANGER_MAX: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 10 });
/// An API server that has been silent for so long on HTTP/2 is asked whether it is there, and answers within the second time.
const PING_AFTER: Duration = Duration::from_secs(30);
const PONG_MAX: Duration = Duration::from_secs(15);

/// Serves until shutdown; requests under way are cut then.
pub async fn serve(listener: &TcpListener, pods: Arc<Pods>, shutdown: CancellationToken) {
    let acceptor = TlsAcceptor::from(pods.context.config.tls.clone());
    let routers = Routers {
        full: full(pods.clone(), places::by_namespace()),
        closed: closed(StatusCode::FORBIDDEN),
        anonymous: closed(StatusCode::UNAUTHORIZED),
        pods,
        api_servers: ApiServers::default(),
        links: Arc::default(),
    };
    let routers = Arc::new(routers);
    let strangers: Arc<Strangers> = Arc::default();
    loop {
        // Waiting is all that is cut here.
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.cancelled() => return,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "accept");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let (acceptor, routers, shutdown, stranger) =
            (acceptor.clone(), routers.clone(), shutdown.clone(), strangers.enter());
        tokio::spawn(async move {
            tokio::select! {
                () = connection(stream, stranger, acceptor, &routers, &shutdown) => {}
                () = shutdown.cancelled() => {}
            }
        });
    }
}

struct Routers {
    full: Router,
    closed: Router,
    anonymous: Router,
    pods: Arc<Pods>,
    /// Places of those who are known; others have theirs in [`Strangers`].
    api_servers: ApiServers,
    links: Arc<Links>,
}

async fn connection(
    stream: TcpStream,
    stranger: Stranger,
    acceptor: TlsAcceptor,
    routers: &Routers,
    shutdown: &CancellationToken,
) {
    let _ = stream.set_nodelay(true);
    let _ = coracle_proxy::keep_alive(&stream);
    let (socket, watch) = socket::watched(stream);
    let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(socket));
    let stream = match stranger.over.run_until_cancelled(handshake).await {
        Some(Ok(Ok(stream))) => stream,
        Some(Ok(Err(error))) => return tracing::debug!(%error, "TLS handshake"),
        Some(Err(_)) | None => return,
    };
    let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
    // Whoever is known leaves its place to the next stranger.
    let (router, place, stranger) = match Peer::of(certificates) {
        Peer::ApiServer => {
            drop(stranger);
            let Some(place) = routers.api_servers.enter(watch.clone()) else {
                return tracing::warn!(
                    "an API server is turned away: the node's endpoint has too many of its connections"
                );
            };
            (routers.full.clone(), Some(place), None)
        }
        Peer::Node(name) => {
            drop(stranger);
            let Some(link) = routers.links.enter(name.clone()) else {
                return tracing::warn!("a node is turned away: the node's endpoint has too many links");
            };
            let served = link::serve(stream, routers.pods.clone(), name.into(), shutdown.clone());
            // A node that has made newer ones does not use this one.
            link.over.run_until_cancelled(served).await;
            return;
        }
        Peer::Other => (routers.closed.clone(), None, Some(stranger)),
        Peer::Anonymous => (routers.anonymous.clone(), None, Some(stranger)),
    };
    let router = router.map_request(move |mut request: http::Request<hyper::body::Incoming>| {
        if let Some(place) = &place {
            request.extensions_mut().insert(place.clone());
        }
        request
    });
    let mut http = auto::Builder::new(TokioExecutor::new());
    http.http1().timer(TokioTimer::new());
    http.http2().timer(TokioTimer::new()).keep_alive_interval(PING_AFTER).keep_alive_timeout(PONG_MAX);
    let served = http.serve_connection_with_upgrades(TokioIo::new(stream), TowerToHyperService::new(router));
    let served = match stranger {
        // Also while a request waits for a pod that does not take it.
        None => tokio::select! {
            served = served => served,
            () = watch.gone() => return tracing::debug!("an API server has gone"),
        },
        // Cut, whatever it is about to say.
        Some(stranger) => {
            let served = tokio::time::timeout(STRANGER_MAX, served);
            stranger.over.run_until_cancelled(served).await.and_then(Result::ok).unwrap_or(Ok(()))
        }
    };
    if let Err(error) = served {
        tracing::trace!(%error, "connection");
    }
}

fn full(pods: Arc<Pods>, shares: ByNamespace) -> Router {
    let own = pods.context.config.routes.clone();
    Router::new()
        .route("/containerLogs/{namespace}/{pod}/{container}", get(logs::get))
        .route("/portForward/{namespace}/{pod}", any(port_forward::any))
        .route("/portForward/{namespace}/{pod}/{uid}", any(port_forward::any))
        .route("/exec/{namespace}/{pod}/{container}", any(exec::any))
        .route("/exec/{namespace}/{pod}/{uid}/{container}", any(exec::any))
        .route("/attach/{namespace}/{pod}/{container}", any(attach::any))
        .route("/attach/{namespace}/{pod}/{uid}/{container}", any(attach::any))
        .route("/run/{namespace}/{pod}/{container}", any(refuse_run))
        .route("/coracle/v1/proxy/{namespace}/{pod}/{port}", any(proxy::any))
        .route("/coracle/v1/proxy/{namespace}/{pod}/{port}/", any(proxy::any))
        .route("/coracle/v1/proxy/{namespace}/{pod}/{port}/{*path}", any(proxy::any))
        // Those above are for pods.
        .route_layer(middleware::from_fn_with_state(shares, places::share))
        .route("/healthz", get(|| async { "ok" }))
        .route("/pods", get(list))
        .route("/stats/summary", get(figures::summary))
        .route("/metrics/resource", get(figures::resource))
        .route("/metrics", get(mesh::metrics))
        .route("/coracle/v1/demand", get(demand::get))
        .route("/coracle/v1/tap", get(mesh::tap))
        .route("/coracle/v1/routes", get(mesh::routes))
        .with_state(pods)
        .merge(own)
        .layer(middleware::from_fn(negotiate))
}

/// What was refused, in plain words.
#[derive(Clone)]
struct Refused(String);

/// A kubelet refuses in plain text, which Kubernetes' API server puts into a Status. For a caller that asks for JSON, as an API
/// server that passes its clients' headers on, it is a Status here already. So it is for one that wants to change the protocol,
/// who hears it as it is: kubectl reads text with a colon as YAML, and then says nothing at all.
async fn negotiate(request: Request, next: Next) -> Response {
    let accepts = request.headers().get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let wants_json = accepts.flat_map(|value| value.split(',')).any(|kind| kind.trim().starts_with("application/json"));
    let wants_json = wants_json || request.headers().contains_key(header::UPGRADE);
    let response = next.run(request).await;
    match response.extensions().get::<Refused>() {
        Some(Refused(message)) if wants_json => status_response(response.status(), message.trim_end()),
        _ => response,
    }
}

fn status_response(code: StatusCode, message: &str) -> Response {
    let reason = match code {
        StatusCode::BAD_REQUEST => "BadRequest",
        StatusCode::FORBIDDEN => "Forbidden",
        StatusCode::NOT_FOUND => "NotFound",
        StatusCode::UNPROCESSABLE_ENTITY => "Invalid",
        StatusCode::SERVICE_UNAVAILABLE => "ServiceUnavailable",
        StatusCode::GATEWAY_TIMEOUT => "Timeout",
        _ => "InternalError",
    };
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "reason": reason, "code": code.as_u16(), "message": message,
    });
    json_response(code, &status)
}

fn closed(code: StatusCode) -> Router {
    let words = if code == StatusCode::FORBIDDEN { "Forbidden" } else { "Unauthorized" };
    Router::new().route("/healthz", get(|| async { "ok" })).fallback(move || async move { (code, words) })
}

async fn list(State(pods): State<Arc<Pods>>) -> Response {
    let items: Vec<_> = pods.all().iter().map(|slot| slot.pod()).collect();
    let items: Vec<_> = items.iter().map(|pod| &**pod).collect();
    json_response(StatusCode::OK, &json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}))
}

/// Nobody asks for it any more.
async fn refuse_run() -> Response {
    let message = "run is not supported by this node; use exec";
    refusal(StatusCode::BAD_REQUEST, message.to_owned())
}

fn json_response(code: StatusCode, value: &serde_json::Value) -> Response {
    (code, [(header::CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}

/// A refusal in plain words, which the API server passes on.
fn refusal(code: StatusCode, message: String) -> Response {
    let refused = Extension(Refused(message.clone()));
    (code, refused, [(header::CONTENT_TYPE, "text/plain; charset=utf-8")], message).into_response()
}
