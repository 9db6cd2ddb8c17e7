//! Which servers the cluster has, as a node learns it: from the endpoints of the Service `default/kubernetes`, where each server says
//! where it is. What was learned is kept in `servers.json` beside the identity, so that a node starts also while the server that it
//! has joined is gone. That one is asked last, unless it is named as well: it may not be a server any more, or the only address that leads
//! to one from here. The file is no secret and can be learned again: one that cannot be read is left aside.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use futures::StreamExt as _;
use kube::Api;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind};
use kube::runtime::{WatchStreamExt as _, watcher};
use rand::seq::SliceRandom as _;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::WorkerError;
use super::identity;
use crate::failover::Servers;

/// Name of the file in the data directory.
const FILE: &str = "servers.json";
/// Version of its form.
const LAYOUT: u32 = 1;
/// Most servers that are kept: a group has five voters, and some that are about to be.
const SERVERS_MAX: usize = 32;

#[derive(Serialize, Deserialize)]
struct Kept {
    layout: u32,
    servers: Vec<String>,
}

/// The servers to ask first: those that were learned, and then the one that was `joined`.
pub fn kept(dir: &Path, joined: &str) -> Vec<String> {
    let path = dir.join(FILE);
    let learned = match std::fs::read(&path) {
        Ok(bytes) => match serde_json::from_slice::<Kept>(&bytes) {
            Ok(kept) if kept.layout == LAYOUT => kept.servers,
            _ => {
                tracing::warn!(path = %path.display(), "the list of servers cannot be used; it is learned again");
                Vec::new()
            }
        },
        Err(error) => {
            if error.kind() != std::io::ErrorKind::NotFound {
                tracing::warn!(path = %path.display(), %error, "the list of servers cannot be read; it is learned again");
            }
            Vec::new()
        }
    };
    before(learned, joined)
}

/// The same with the one first that somebody has just named: a cluster may have moved.
pub fn kept_behind(dir: &Path, named: &str) -> Vec<String> {
    let mut servers = kept(dir, named);
    servers.retain(|server| server != named);
    servers.insert(0, named.to_owned());
    servers
}

/// Those of `learned` that can be addresses, in an order of this node's own: when a server goes, its nodes do not all go to the same
/// one. Behind them the one that was `joined`, if it is another.
fn before(mut learned: Vec<String>, joined: &str) -> Vec<String> {
    learned.retain(|server| server.parse::<super::Server>().is_ok());
    learned.sort();
    learned.dedup();
    learned.truncate(SERVERS_MAX);
    learned.shuffle(&mut rand::rng());
    if !learned.iter().any(|server| server == joined) {
        learned.push(joined.to_owned());
    }
    learned
}

/// Has `servers` be those of the cluster, and keeps them in `dir`, until `stop`.
pub async fn follow(
    servers: Servers,
    joined: String,
    dir: PathBuf,
    connect: impl Fn(&str) -> Result<kube::Client, WorkerError>,
    stop: CancellationToken,
) {
    let kind = ApiResource::from_gvk(&GroupVersionKind::gvk("", "v1", "Endpoints"));
    let api: Api<DynamicObject> = Api::namespaced_with(servers.client("default"), "default", &kind);
    let config = watcher::Config::default().fields("metadata.name=kubernetes");
    let mut events = std::pin::pin!(watcher(api, config).default_backoff());
    let learn = async {
        let mut last = Vec::new();
        while let Some(event) = events.next().await {
            let learned = match event {
                Ok(watcher::Event::Apply(object) | watcher::Event::InitApply(object)) => addresses(&object.data),
                Ok(_) => continue,
                Err(error) => {
                    tracing::debug!(%error, "watch where the servers are");
                    continue;
                }
            };
            // None is a cluster that has lost its endpoints, and no reason to forget where its servers were.
            if learned.is_empty() || learned == last {
                continue;
            }
            last.clone_from(&learned);
            if let Err(error) = servers.replace(&before(learned.clone(), &joined), &connect) {
                tracing::warn!(%error, "take the servers for others");
            }
            tracing::debug!(servers = ?servers.names(), "the servers of the cluster");
            let text = serde_json::to_vec_pretty(&Kept { layout: LAYOUT, servers: learned }).expect("JSON of strings");
            if let Err(error) = identity::write(&dir, FILE, &text) {
                tracing::warn!(%error, "keep where the servers are");
            }
        }
    };
    // Dropped at any moment: a file is replaced whole.
    tokio::select! {
        () = learn => {}
        () = stop.cancelled() => {}
    }
}

/// URLs of the servers that an Endpoints object names.
fn addresses(endpoints: &Value) -> Vec<String> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mut found = Vec::new();
    for subset in list(&endpoints["subsets"]) {
        for (address, port) in list(&subset["addresses"])
            .iter()
            .flat_map(|address| list(&subset["ports"]).into_iter().map(move |port| (address.clone(), port)))
        {
            let ip = address["ip"].as_str().and_then(|ip| ip.parse::<IpAddr>().ok());
            let port = port["port"].as_u64().and_then(|port| u16::try_from(port).ok());
            if let (Some(ip), Some(port)) = (ip, port) {
                found.push(format!("https://{}", SocketAddr::new(ip, port)));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn endpoints_say_where_the_servers_are() {
        let endpoints = json!({"subsets": [
            {"addresses": [{"ip": "192.0.2.1"}, {"ip": "192.0.2.2"}], "ports": [{"name": "https", "port": 6443}]},
            {"addresses": [{"ip": "2001:db8::1"}, {"ip": "nonsense"}], "ports": [{"port": 7443}, {"port": 70000}]},
            {"ports": [{"port": 1}]},
        ]});
        let expected = ["https://192.0.2.1:6443", "https://192.0.2.2:6443", "https://[2001:db8::1]:7443"];
        assert_eq!(addresses(&endpoints), expected);
        assert_eq!(addresses(&json!({})), Vec::<String>::new());
    }

    #[test]
    fn what_was_learned_is_kept_and_what_is_damaged_is_learned_again() {
        let temp = tempfile::tempdir().unwrap();
        let (dir, joined) = (temp.path(), "https://192.0.2.1:6443");
        assert_eq!(kept(dir, joined), [joined]);
        let servers = ["https://192.0.2.2:6443", joined, "nonsense", "https://192.0.2.3:6443"].map(str::to_owned);
        let text = serde_json::to_vec(&Kept { layout: LAYOUT, servers: servers.to_vec() }).unwrap();
        identity::write(dir, FILE, &text).unwrap();
        let mut found = kept(dir, joined);
        found.sort();
        assert_eq!(found, [joined, "https://192.0.2.2:6443", "https://192.0.2.3:6443"]);
        // Who is no server any more is asked last, unless somebody has just named it.
        let gone = "https://192.0.2.9:6443";
        assert_eq!((kept(dir, gone).len(), kept(dir, gone)[3].as_str()), (4, gone));
        for named in [gone, joined] {
            assert_eq!(
                (kept_behind(dir, named)[0].as_str(), kept_behind(dir, named).len()),
                (named, found.len() + usize::from(named == gone))
            );
        }
        for damaged in ["", "[]", r#"{"layout": 2, "servers": ["https://192.0.2.2:6443"]}"#] {
            std::fs::write(dir.join(FILE), damaged).unwrap();
            assert_eq!(kept(dir, joined), [joined], "{damaged}");
        }
    }

    /// The one that was joined is named by no endpoint any more.
    #[tokio::test]
    async fn what_is_learned_comes_before_what_was_joined() {
        let temp = tempfile::tempdir().unwrap();
        let endpoints = json!({
            "apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "kubernetes", "namespace": "default", "resourceVersion": "1"},
            "subsets": [{"addresses": [{"ip": "192.0.2.2"}, {"ip": "192.0.2.3"}], "ports": [{"port": 6443}]}],
        });
        let list = json!({"apiVersion": "v1", "kind": "EndpointsList", "metadata": {"resourceVersion": "1"}, "items": [endpoints]});
        let answers = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let is_watch = request.uri().query().is_some_and(|query| query.contains("watch=true"));
            let list = list.to_string().into_bytes();
            async move {
                match is_watch {
                    true => std::future::pending().await,
                    false => Ok::<_, std::convert::Infallible>(http::Response::new(kube::client::Body::from(list))),
                }
            }
        });
        let client = kube::Client::new(answers, "default");
        let joined = "https://192.0.2.1:6443".to_owned();
        let servers = Servers::new(vec![(joined.clone(), client.clone())], |_| {});
        let stop = CancellationToken::new();
        let connect = move |_: &str| Ok(client.clone());
        let following = follow(servers.clone(), joined.clone(), temp.path().into(), connect, stop.clone());
        let following = tokio::spawn(following);
        let learned = async {
            while servers.names().len() != 3 {
                tokio::time::sleep(std::time::Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(30), learned).await.expect("it hears of them");
        assert_eq!(servers.names()[2], joined);
        // As at the next start.
        let file = std::fs::read_to_string(temp.path().join(FILE)).unwrap();
        assert!(file.contains("192.0.2.2") && !file.contains("192.0.2.1"), "{file}");
        assert_eq!(kept(temp.path(), &joined)[2], joined);
        stop.cancel();
        following.await.unwrap();
    }
}
