//! `GET /coracle/v1/peers`: where nodes reach each other's pods. A node may read no other node's object, as in Kubernetes;
//! this tells it the four things it needs of them: name, address, port, and the range of its pods' addresses.
//!
//! With `?after=VERSION` the answer waits until there is another version, or for [`WAIT_MAX`].

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, HashMap};
use std::hash::{Hash as _, Hasher as _};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use kube::api::{ApiResource, DynamicObject, GroupVersionKind};
use kube::runtime::{WatchStreamExt as _, watcher};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How long an answer waits for news.
const WAIT_MAX: Duration = Duration::from_secs(25);

/// What is known of the nodes.
struct Known {
    version: String,
    peers: Vec<Value>,
}

#[derive(Clone)]
struct Shared {
    /// Nothing before the nodes were listed once.
    known: watch::Receiver<Option<Arc<Known>>>,
    stop: CancellationToken,
}

/// The route, and what keeps its answer up to date until `stop`. The caller puts authentication before the route.
pub fn start(client: kube::Client, stop: CancellationToken) -> (Router, impl Future<Output = ()>) {
    let (known, receiver) = watch::channel(None);
    let shared = Shared { known: receiver, stop: stop.clone() };
    let follow = async move {
        // Dropped at any moment: it only reads.
        tokio::select! {
            () = follow(client, &known) => {}
            () = stop.cancelled() => {}
        }
    };
    (Router::new().route("/coracle/v1/peers", get(answer)).with_state(shared), follow)
}

async fn answer(
    State(Shared { mut known, stop }): State<Shared>,
    Query(query): Query<HashMap<String, String>>,
) -> Result<Json<Value>, StatusCode> {
    let after = query.get("after").map(String::as_str).unwrap_or_default();
    let is_new = |known: &Option<Arc<Known>>| known.as_ref().is_some_and(|known| known.version != after);
    tokio::select! {
        _ = known.wait_for(is_new) => {}
        () = tokio::time::sleep(WAIT_MAX) => {}
        () = stop.cancelled() => {}
    }
    // Not known is not none: who hears of no nodes would cut its pods off from them.
    let known = known.borrow().clone().ok_or(StatusCode::SERVICE_UNAVAILABLE)?;
    Ok(Json(json!({"version": known.version, "peers": known.peers})))
}

async fn follow(client: kube::Client, known: &watch::Sender<Option<Arc<Known>>>) {
    let nodes = ApiResource::from_gvk(&GroupVersionKind::gvk("", "v1", "Node"));
    let api: kube::Api<DynamicObject> = kube::Api::all_with(client, &nodes);
    let mut events = std::pin::pin!(watcher(api, watcher::Config::default()).default_backoff());
    let (mut all, mut listed) = (BTreeMap::<String, Value>::new(), None);
    while let Some(event) = futures::StreamExt::next(&mut events).await {
        let put = |all: &mut BTreeMap<String, Value>, node: DynamicObject| {
            let name = node.metadata.name.clone().unwrap_or_default();
            match peer(&name, &node.data) {
                Some(peer) => all.insert(name, peer),
                None => all.remove(&name),
            };
        };
        match event {
            Ok(watcher::Event::Init) => listed = Some(BTreeMap::new()),
            Ok(watcher::Event::InitApply(node)) => put(listed.as_mut().unwrap_or(&mut all), node),
            Ok(watcher::Event::InitDone) => all = listed.take().unwrap_or(all),
            Ok(watcher::Event::Apply(node)) => put(&mut all, node),
            Ok(watcher::Event::Delete(node)) => drop(all.remove(&node.metadata.name.unwrap_or_default())),
            Err(error) => {
                tracing::debug!(%error, "watch nodes");
                continue;
            }
        }
        if listed.is_some() {
            continue;
        }
        let peers: Vec<Value> = all.values().cloned().collect();
        let mut hash = DefaultHasher::new();
        peers.iter().for_each(|peer| peer.to_string().hash(&mut hash));
        let version = format!("{:016x}", hash.finish());
        known.send_if_modified(|known| {
            let is_new = known.as_ref().is_none_or(|known| known.version != version);
            if is_new {
                *known = Some(Arc::new(Known { version, peers }));
            }
            is_new
        });
    }
}

/// What of a Node object other nodes need; `None` while it lacks some of it.
fn peer(name: &str, node: &Value) -> Option<Value> {
    let addresses = node["status"]["addresses"].as_array()?;
    let address = addresses.iter().find(|address| address["type"] == "InternalIP")?["address"].as_str()?;
    let port = node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"].as_u64()?;
    let range = node["spec"]["podCIDR"].as_str()?;
    Some(json!({"name": name, "address": address, "port": port, "podCIDR": range}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_a_peer_when_it_says_where_it_is() {
        let whole = json!({
            "spec": {"podCIDR": "10.240.16.0/20"},
            "status": {
                "addresses": [{"type": "Hostname", "address": "boat"}, {"type": "InternalIP", "address": "192.0.2.1"}],
                "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}},
            },
        });
        let expected = json!({"name": "boat", "address": "192.0.2.1", "port": 10250, "podCIDR": "10.240.16.0/20"});
        assert_eq!(peer("boat", &whole), Some(expected));
        for lacks in ["/spec/podCIDR", "/status/addresses/1/address", "/status/daemonEndpoints/kubeletEndpoint/Port"] {
            let mut node = whole.clone();
            *node.pointer_mut(lacks).unwrap() = Value::Null;
            assert_eq!(peer("boat", &node), None, "{lacks}");
        }
    }
}
