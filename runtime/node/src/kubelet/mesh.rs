//! What this node sees of requests: `/coracle/v1/tap` (each as it is answered, a JSON object a line), `/coracle/v1/routes` (where one
//! would go) and `/metrics` (how many there were).

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use coracle_discovery::Protocol;
use coracle_proxy::{Asker, Filter, Rule, Sight, Tapped, View};
use futures::stream;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{json_response, refusal};
use crate::pod::{Pods, Slot};

/// How long names of pods are believed.
const NAMES_HOLD: Duration = Duration::from_secs(1);

/// What is asked about.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Wanted {
    namespace: Option<String>,
    service: Option<String>,
    host: Option<String>,
    path: Option<String>,
}

/// `/metrics`.
pub async fn metrics(State(pods): State<Arc<Pods>>) -> Response {
    let page = pods.context.network.proxy.metrics();
    (StatusCode::OK, [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], page).into_response()
}

/// `/coracle/v1/tap`: requests to Services of a namespace, or to one of them, until the other side goes.
pub async fn tap(State(pods): State<Arc<Pods>>, Query(wanted): Query<Wanted>) -> Response {
    let given = |text: Option<String>| text.filter(|text| !text.is_empty());
    let filter = Filter { namespace: given(wanted.namespace), service: given(wanted.service) };
    let Some(tapping) = pods.context.network.proxy.tap(filter) else {
        return refusal(StatusCode::SERVICE_UNAVAILABLE, "too many look at this node's requests already".to_owned());
    };
    let names = Names { pods, read: None };
    let lines = stream::unfold((names, tapping), |(mut names, mut tapping)| async move {
        let line = match tapping.next().await? {
            Sight::Request(tapped) => request(&mut names, &tapped),
            Sight::Lost(lost) => json!({ "lost": lost }),
        };
        Some((Ok::<_, Infallible>(Bytes::from(format!("{line}\n"))), (names, tapping)))
    });
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response()
}

/// Names of this node's pods by their addresses, no older than [`NAMES_HOLD`].
struct Names {
    pods: Arc<Pods>,
    read: Option<(Instant, HashMap<IpAddr, String>)>,
}

impl Names {
    /// The pod at an address, as `namespace/name`.
    fn of(&mut self, address: IpAddr) -> Option<&str> {
        if self.read.as_ref().is_none_or(|(at, _)| at.elapsed() >= NAMES_HOLD) {
            let named = |slot: &Arc<Slot>| Some((slot.address()?.pod, format!("{}/{}", slot.namespace, slot.name)));
            self.read = Some((Instant::now(), self.pods.all().iter().filter_map(named).collect()));
        }
        self.read.as_ref()?.1.get(&address).map(String::as_str)
    }
}

fn request(names: &mut Names, tapped: &Tapped) -> Value {
    let at = Timestamp::try_from(tapped.at).unwrap_or_default();
    json!({
        "at": format!("{at:.6}"),
        "source": source(names, &tapped.asker),
        "namespace": &*tapped.namespace,
        "service": &*tapped.service,
        "port": tapped.port,
        "endpoint": tapped.endpoint.map(|endpoint| endpoint.to_string()),
        "pod": tapped.endpoint.and_then(|endpoint| names.of(endpoint.ip()).map(str::to_owned)),
        "method": tapped.method.as_str(),
        "path": tapped.path,
        "status": tapped.status.map(|status| status.as_u16()),
        "error": tapped.error,
        "latencyMicros": u64::try_from(tapped.took.as_micros()).unwrap_or(u64::MAX),
        "attempts": tapped.attempts,
    })
}

/// Who has asked, as people call it.
fn source(names: &mut Names, asker: &Asker) -> String {
    match asker {
        Asker::Pod(address) => names.of(*address).map_or_else(|| address.to_string(), |name| format!("pod {name}")),
        Asker::NodePort(port) => format!("node port {port}"),
        Asker::Ingresses(namespace) => format!("ingresses of {namespace}"),
        Asker::Node => "node".to_owned(),
    }
}

/// `/coracle/v1/routes`: by host and path the rule that takes a request, and the Service; or a Service by its name.
pub async fn routes(State(pods): State<Arc<Pods>>, Query(wanted): Query<Wanted>) -> Response {
    let network = &pods.context.network;
    let view = |namespace: &str, name: &str| match network.proxy.view(namespace, name) {
        Some(view) => service(&view),
        None => Value::Null,
    };
    let shown = match (&wanted.host, &wanted.service) {
        (Some(host), _) => {
            let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
            let routing = pods.context.gateway.routing();
            let found = Rule::find(&routing, &host, wanted.path.as_deref().unwrap_or("/"));
            found.map_or(json!({ "rule": null }), |rule| {
                let backend = match &rule.backend {
                    Ok((namespace, name, port)) => {
                        json!({"namespace": &**namespace, "service": &**name, "port": port})
                    }
                    Err(what) => json!({ "other": what }),
                };
                let target = match &rule.backend {
                    Ok((namespace, name, _)) => view(namespace, name),
                    Err(_) => Value::Null,
                };
                json!({
                    "rule": {
                        "from": rule.ingress,
                        "namespace": &*rule.namespace,
                        "secureOnly": rule.is_secure_only,
                        "bodyBytesMax": rule.body_bytes_max,
                        "silenceSeconds": rule.silence_max.map(|silence| silence.as_secs()),
                        "backend": backend,
                    },
                    "service": target,
                })
            })
        }
        (None, Some(name)) => json!({"service": view(wanted.namespace.as_deref().unwrap_or("default"), name)}),
        (None, None) => {
            return refusal(StatusCode::BAD_REQUEST, "a host or a service must be named".to_owned());
        }
    };
    json_response(StatusCode::OK, &shown)
}

fn service(view: &View) -> Value {
    let protocol = |protocol: Protocol| match protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
        Protocol::Sctp => "SCTP",
    };
    let ports = view.ports.iter().map(|port| {
        let endpoints = port.endpoints.iter().map(|endpoint| {
            json!({
                "address": endpoint.address.to_string(),
                "node": endpoint.node.as_deref(),
                "leftOutMillis": endpoint.left_out.map(|left| u64::try_from(left.as_millis()).unwrap_or(u64::MAX)),
                "underWay": endpoint.under_way,
                "latencyMicros": u64::try_from(endpoint.latency.as_micros()).unwrap_or(u64::MAX),
            })
        });
        json!({
            "name": port.name,
            "port": port.port,
            "protocol": protocol(port.protocol),
            "nodePort": port.node_port,
            "held": port.held,
            "endpoints": endpoints.collect::<Vec<_>>(),
        })
    });
    json!({
        "namespace": &*view.service.namespace,
        "name": &*view.service.name,
        "clusterIP": view.service.cluster_ip.map(|address| address.to_string()),
        "externalName": view.service.external_name,
        "scaledByDemand": view.service.activates,
        "ports": ports.collect::<Vec<_>>(),
    })
}
