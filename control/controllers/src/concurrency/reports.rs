//! What nodes tell of what is asked there: a stream from each, through the API server, as logs go. Nothing of it is written
//! anywhere; a node that is not heard is not one where nothing is asked.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::AsyncBufReadExt as _;
use futures::io::AsyncBufRead;
use http::Request;
use k8s_openapi::api::core::v1::Node;
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::client::{self, Client};
use crate::informer::Key;

/// A node says something every 15 s at least: one that does not is not heard any more.
const SILENCE_MAX: Duration = Duration::from_secs(40);
/// What a node said of a Service holds for so long: it says it again every second.
const HOLDS: Duration = Duration::from_secs(5);
/// Bytes of one line: some ten thousand Services.
const LINE_BYTES_MAX: usize = 4 << 20;
/// Wait before a node is asked again; doubles,
const AGAIN_FIRST: Duration = Duration::from_millis(100);
/// up to this.
const AGAIN_MAX: Duration = Duration::from_secs(15);
/// One that has no such stream, as a kubelet has none, is asked again after this.
const NONE_AGAIN: Duration = Duration::from_secs(300);

/// A line of a node's stream.
#[derive(Debug, Deserialize)]
struct Line {
    services: Vec<Said>,
}

#[derive(Debug, Deserialize)]
struct Said {
    namespace: String,
    name: String,
    average: f64,
    held: usize,
}

/// How a node is heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ear {
    Deaf,
    Open,
    /// It is none of those that tell.
    Mute,
}

#[derive(Debug, Clone, Copy)]
struct Sample {
    average: f64,
    held: usize,
    at: Instant,
}

struct Heard {
    ear: Ear,
    /// Of Services of which something is asked there.
    said: HashMap<Key, Sample>,
    stop: CancellationToken,
}

/// What is asked of some Services.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Asked {
    /// Under way on average, those that wait among them.
    pub average: f64,
    pub held: usize,
}

/// What all nodes have said. As large as what they say.
#[derive(Default)]
pub(super) struct Reports(Mutex<HashMap<Arc<str>, Heard>>);

/// What has changed when a node has said something.
pub(super) enum News<'a> {
    /// It is heard, or is not any more.
    Ear,
    /// Of this Service something is asked and was not before, or somebody waits for a pod.
    Asked(&'a Key),
}

impl Reports {
    /// What is asked of these Services together.
    pub(super) fn asked(&self, services: &[Key], now: Instant) -> Asked {
        let nodes = self.0.lock();
        let all = nodes.values().flat_map(|heard| services.iter().filter_map(|service| heard.said.get(service)));
        let holds = all.filter(|sample| now.saturating_duration_since(sample.at) < HOLDS);
        holds.fold(Asked::default(), |sum, sample| Asked {
            average: sum.average + sample.average,
            held: sum.held + sample.held,
        })
    }

    /// Whether every one of these nodes is heard.
    pub(super) fn hears<'a>(&self, nodes: impl Iterator<Item = &'a str>) -> bool {
        let heard = self.0.lock();
        let mut nodes = nodes;
        nodes.all(|node| heard.get(node).is_some_and(|heard| heard.ear != Ear::Deaf))
    }

    /// Listens to these nodes and to no other: says which are new, with what ends the listening.
    pub(super) fn follow(&self, nodes: &HashSet<Arc<str>>) -> Vec<(Arc<str>, CancellationToken)> {
        let mut heard = self.0.lock();
        heard.retain(|node, heard| {
            let stays = nodes.contains(node);
            if !stays {
                heard.stop.cancel();
            }
            stays
        });
        let mut new = Vec::new();
        for node in nodes {
            if !heard.contains_key(node) {
                let stop = CancellationToken::new();
                heard.insert(node.clone(), Heard { ear: Ear::Deaf, said: HashMap::new(), stop: stop.clone() });
                new.push((node.clone(), stop));
            }
        }
        new
    }

    /// Listens to a node until `stop`.
    pub(super) async fn listen(
        &self,
        client: &Client,
        node: &str,
        stop: CancellationToken,
        tell: impl Fn(News<'_>) + Send,
    ) {
        let listen = async {
            let mut wait = AGAIN_FIRST;
            loop {
                let ended = self.hear(client, node, &tell).await;
                let was_open = self.set(node, Ear::Deaf) == Some(Ear::Open);
                if was_open {
                    tell(News::Ear);
                    wait = AGAIN_FIRST;
                }
                if ended.as_ref().is_err_and(client::is_not_found) {
                    self.set(node, Ear::Mute);
                    tell(News::Ear);
                    tokio::time::sleep(NONE_AGAIN).await;
                    continue;
                }
                tracing::debug!(node, error = ?ended.err(), "what is asked at a node is not heard");
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(AGAIN_MAX);
            }
        };
        // Only reads and waits are cut.
        tokio::select! {
            () = listen => {}
            () = stop.cancelled() => {}
        }
    }

    /// Reads what a node says, to its end.
    async fn hear(&self, client: &Client, node: &str, tell: &impl Fn(News<'_>)) -> Result<(), kube::Error> {
        let path = format!("/api/v1/nodes/{node}/proxy/coracle/v1/demand");
        let request = Request::get(path).body(Vec::new()).map_err(kube::Error::HttpError)?;
        let mut lines = Box::pin(client.0.request_stream(request).await?);
        loop {
            let line = tokio::time::timeout(SILENCE_MAX, line(&mut lines)).await;
            let Ok(Some(line)) = line.unwrap_or(Ok(None)) else { return Ok(()) };
            let Ok(line) = serde_json::from_slice::<Line>(&line) else {
                tracing::warn!(node, "what a node tells of what is asked there makes no sense");
                return Ok(());
            };
            if self.set(node, Ear::Open) != Some(Ear::Open) {
                tell(News::Ear);
            }
            for service in self.take(node, line, Instant::now()) {
                tell(News::Asked(&service));
            }
        }
    }

    /// Notes how a node is heard; says how it was. What it has said before holds no longer than [`HOLDS`] anyway.
    fn set(&self, node: &str, ear: Ear) -> Option<Ear> {
        let mut nodes = self.0.lock();
        let heard = nodes.get_mut(node)?;
        Some(std::mem::replace(&mut heard.ear, ear))
    }

    /// Keeps what a node says; gives the Services of which it is news.
    fn take(&self, node: &str, line: Line, now: Instant) -> Vec<Key> {
        let mut nodes = self.0.lock();
        let Some(heard) = nodes.get_mut(node) else { return Vec::new() };
        let mut news = Vec::new();
        for said in line.services {
            let (key, average) = (Key::new(&said.namespace, &said.name), said.average);
            if !(average.is_finite() && average >= 0.0) {
                continue;
            }
            if average == 0.0 && said.held == 0 {
                heard.said.remove(&key);
                continue;
            }
            let before = heard.said.insert(key.clone(), Sample { average, held: said.held, at: now });
            if before.is_none() || said.held > 0 {
                news.push(key);
            }
        }
        news
    }
}

/// The next line; `None` at the end, and of one that is too long.
async fn line(lines: &mut (impl AsyncBufRead + Unpin)) -> std::io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    loop {
        let piece = lines.fill_buf().await?;
        if piece.is_empty() || line.len() + piece.len() > LINE_BYTES_MAX {
            return Ok(None);
        }
        let end = piece.iter().position(|byte| *byte == b'\n');
        let taken = end.map_or(piece.len(), |end| end + 1);
        line.extend_from_slice(&piece[..taken]);
        lines.consume_unpin(taken);
        if end.is_some() {
            return Ok(Some(line));
        }
    }
}

/// The nodes that are to be heard: those that are ready.
pub(super) fn is_ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn says(text: &str) -> Line {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn what_nodes_say_adds_up_and_does_not_hold_for_long() {
        let reports = Reports::default();
        let now = Instant::now();
        let all: HashSet<Arc<str>> = [Arc::from("a"), Arc::from("b")].into();
        assert_eq!(reports.follow(&all).len(), 2);
        assert!(reports.follow(&all).is_empty());
        let web = Key::new("n", "web");
        let asked = r#"{"services": [{"namespace": "n", "name": "web", "average": 1.5, "held": 0}]}"#;
        assert_eq!(reports.take("a", says(asked), now), std::slice::from_ref(&web));
        assert_eq!(reports.take("a", says(asked), now), [], "it is the same as before");
        let held = r#"{"services": [{"namespace": "n", "name": "web", "average": 2, "held": 2}]}"#;
        assert_eq!(reports.take("b", says(held), now), std::slice::from_ref(&web));
        assert_eq!(reports.take("b", says(held), now).len(), 1, "somebody waits");
        assert!(reports.take("c", says(held), now).is_empty(), "nobody listens to it");
        let services = [web.clone(), Key::new("n", "other")];
        assert_eq!(reports.asked(&services, now), Asked { average: 3.5, held: 2 });
        assert_eq!(reports.asked(&services, now + HOLDS), Asked::default());
        let over = r#"{"services": [{"namespace": "n", "name": "web", "average": 0, "held": 0}]}"#;
        reports.take("b", says(over), now);
        assert_eq!(reports.asked(&services, now), Asked { average: 1.5, held: 0 });
    }

    #[test]
    fn who_is_not_heard_is_known() {
        let reports = Reports::default();
        let both: HashSet<Arc<str>> = [Arc::from("a"), Arc::from("b")].into();
        let followed = reports.follow(&both);
        assert!(!reports.hears(["a"].into_iter()));
        assert_eq!(reports.set("a", Ear::Open), Some(Ear::Deaf));
        reports.set("b", Ear::Mute);
        assert!(reports.hears(["a", "b"].into_iter()) && !reports.hears(["a", "c"].into_iter()));
        reports.follow(&HashSet::new());
        assert!(followed.iter().all(|(_, stop)| stop.is_cancelled()) && !reports.hears(["a"].into_iter()));
    }

    #[tokio::test]
    async fn lines_have_an_end() {
        let mut lines = futures::io::Cursor::new(b"one\ntwo\nhalf".to_vec());
        assert_eq!(line(&mut lines).await.unwrap().unwrap(), b"one\n");
        assert_eq!(line(&mut lines).await.unwrap().unwrap(), b"two\n");
        assert_eq!(line(&mut lines).await.unwrap(), None, "half a line is none");
        let mut endless = futures::io::Cursor::new(vec![b'x'; LINE_BYTES_MAX + 1]);
        assert_eq!(line(&mut endless).await.unwrap(), None);
    }
}
