//! What nodes tell of what is asked there: a stream from each, through the API server, as logs go. Nothing of it is written
//! anywhere; a node that is not heard is not one where nothing is asked. Which nodes have something to tell they say themselves: an
//! answer that is none may come from anybody on the way.

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

use crate::client::Client;
use crate::foreign::Lines;
use crate::informer::Key;

/// A node says something every five seconds at least (its `kubelet/demand.rs`): one that does not is not heard any more.
const SILENCE_MAX: Duration = Duration::from_secs(12);
/// What a node said of a Service holds for so long: it says it again every second.
const HOLDS: Duration = Duration::from_secs(5);
/// The same of what was over soon after: it is looked at before.
const OVER_HOLDS: Duration = Duration::from_secs(1);
/// Bytes of one line: some ten thousand Services.
const LINE_BYTES_MAX: usize = 4 << 20;
/// Services of which a node may say something at a time; what it says of more is not kept.
const SERVICES_MAX: usize = 10_000;
/// More than so many requests to one Service are under way at no node, nor wait there: a node has as many connections
/// (`coracle_proxy`'s bound). What says more may be one in strange hands, and makes pods all the same.
const ASKED_MAX: usize = 20_000;
/// Wait before a node is asked again; doubles,
const AGAIN_FIRST: Duration = Duration::from_millis(100);
/// up to this.
const AGAIN_MAX: Duration = Duration::from_secs(15);
/// What the `kubeletVersion` of a node that tells has in it: other kubelets have no such stream.
const TELLS: &str = "+coracle.";

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

#[derive(Debug, Clone, Copy)]
struct Sample {
    average: f64,
    held: usize,
    at: Instant,
    is_over: bool,
}

impl Sample {
    fn holds(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.at) < if self.is_over { OVER_HOLDS } else { HOLDS }
    }
}

struct Heard {
    /// Since when nothing is missed of what it says.
    since: Option<Instant>,
    /// Of Services of which something is asked there, or was a moment ago.
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

/// What all nodes have said: of each no more than [`SERVICES_MAX`] entries.
pub(super) struct Reports {
    begun: Instant,
    nodes: Mutex<HashMap<Arc<str>, Heard>>,
}

impl Default for Reports {
    fn default() -> Self {
        Self { begun: Instant::now(), nodes: Mutex::default() }
    }
}

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
        let nodes = self.nodes.lock();
        let all = nodes.values().flat_map(|heard| services.iter().filter_map(|service| heard.said.get(service)));
        let holds = all.filter(|sample| sample.holds(now));
        holds.fold(Asked::default(), |sum, sample| Asked {
            average: sum.average + sample.average,
            held: sum.held.saturating_add(sample.held),
        })
    }

    /// Since when every one of these nodes is heard; `None` when one is not.
    pub(super) fn heard_since<'a>(&self, nodes: impl Iterator<Item = &'a str>) -> Option<Instant> {
        let heard = self.nodes.lock();
        let mut nodes = nodes;
        nodes.try_fold(self.begun, |all, node| Some(heard.get(node)?.since?.max(all)))
    }

    /// Listens to these nodes and to no other: says which are new, with what ends the listening.
    pub(super) fn follow(&self, nodes: &HashSet<Arc<str>>) -> Vec<(Arc<str>, CancellationToken)> {
        let mut heard = self.nodes.lock();
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
                heard.insert(node.clone(), Heard { since: None, said: HashMap::new(), stop: stop.clone() });
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
        is_known: impl Fn(&Key) -> bool + Send,
        tell: impl Fn(News<'_>) + Send,
    ) {
        let listen = async {
            let mut wait = AGAIN_FIRST;
            loop {
                let ended = self.hear(client, node, &is_known, &tell).await;
                if self.lose(node) {
                    tell(News::Ear);
                    wait = AGAIN_FIRST;
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
    async fn hear(
        &self,
        client: &Client,
        node: &str,
        is_known: &impl Fn(&Key) -> bool,
        tell: &impl Fn(News<'_>),
    ) -> Result<(), kube::Error> {
        let path = format!("/api/v1/nodes/{node}/proxy/coracle/v1/demand");
        let request = Request::get(path).extension(Lines).body(Vec::new()).map_err(kube::Error::HttpError)?;
        let begun = tokio::time::timeout(SILENCE_MAX, client.0.request_stream(request)).await;
        // One that takes the question and says nothing is silent.
        let Ok(begun) = begun else { return Ok(()) };
        let mut lines = Box::pin(begun?);
        let mut is_first = true;
        loop {
            let line = tokio::time::timeout(SILENCE_MAX, line(&mut lines)).await;
            let Ok(Some(line)) = line.unwrap_or(Ok(None)) else { return Ok(()) };
            let Ok(line) = serde_json::from_slice::<Line>(&line) else {
                tracing::warn!(node, "what a node tells of what is asked there makes no sense");
                return Ok(());
            };
            let now = Instant::now();
            if std::mem::take(&mut is_first) {
                self.begin(node, now);
                tell(News::Ear);
            }
            for service in self.take(node, line, now, is_known) {
                tell(News::Asked(&service));
            }
        }
    }

    /// A node begins to tell, all that is under way there first: what it has said before is of no use any more.
    fn begin(&self, node: &str, now: Instant) {
        if let Some(heard) = self.nodes.lock().get_mut(node) {
            (heard.since, heard.said) = (Some(now), HashMap::new());
        }
    }

    /// A node is not heard any more; says whether it was. What it has said holds no longer than [`HOLDS`].
    fn lose(&self, node: &str) -> bool {
        self.nodes.lock().get_mut(node).is_some_and(|heard| heard.since.take().is_some())
    }

    /// Keeps what a node says of Services that are known; gives those of which it is news.
    fn take(&self, node: &str, line: Line, now: Instant, is_known: &impl Fn(&Key) -> bool) -> Vec<Key> {
        let mut nodes = self.nodes.lock();
        let Some(heard) = nodes.get_mut(node) else { return Vec::new() };
        heard.said.retain(|_, sample| sample.holds(now));
        let mut news = Vec::new();
        for said in line.services {
            let (key, average) = (Key::new(&said.namespace, &said.name), said.average);
            if !(average.is_finite() && average >= 0.0) {
                continue;
            }
            if average == 0.0 && said.held == 0 {
                if let Some(sample) = heard.said.get_mut(&key) {
                    (sample.held, sample.is_over) = (0, true);
                }
                continue;
            }
            let has_room = heard.said.len() < SERVICES_MAX || heard.said.contains_key(&key);
            if !has_room || !is_known(&key) {
                continue;
            }
            let (average, held) = (average.min(ASKED_MAX as f64), said.held.min(ASKED_MAX));
            let sample = Sample { average, held, at: now, is_over: false };
            if heard.said.insert(key.clone(), sample).is_none() || said.held > 0 {
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

/// Whether a node is one of ours, which tells.
pub(crate) fn is_ours(node: &Node) -> bool {
    let info = node.status.as_ref().and_then(|status| status.node_info.as_ref());
    info.is_some_and(|info| info.kubelet_version.contains(TELLS))
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
        let all_known = |_: &Key| true;
        let asked = r#"{"services": [{"namespace": "n", "name": "web", "average": 1.5, "held": 0}]}"#;
        assert_eq!(reports.take("a", says(asked), now, &all_known), std::slice::from_ref(&web));
        assert_eq!(reports.take("a", says(asked), now, &all_known), [], "it is the same as before");
        let held = r#"{"services": [{"namespace": "n", "name": "web", "average": 2, "held": 2}]}"#;
        assert_eq!(reports.take("b", says(held), now, &all_known), std::slice::from_ref(&web));
        assert_eq!(reports.take("b", says(held), now, &all_known).len(), 1, "somebody waits");
        assert!(reports.take("c", says(held), now, &all_known).is_empty(), "nobody listens to it");
        let services = [web.clone(), Key::new("n", "other")];
        assert_eq!(reports.asked(&services, now), Asked { average: 3.5, held: 2 });
        assert_eq!(reports.asked(&services, now + HOLDS), Asked::default());
        // What is over counts a moment longer, and nobody waits any more.
        let over = r#"{"services": [{"namespace": "n", "name": "web", "average": 0, "held": 0}]}"#;
        reports.take("b", says(over), now, &all_known);
        assert_eq!(reports.asked(&services, now), Asked { average: 3.5, held: 0 });
        assert_eq!(reports.asked(&services, now + OVER_HOLDS), Asked { average: 1.5, held: 0 });
        // What holds no longer hides nothing.
        assert_eq!(reports.take("a", says(asked), now + HOLDS, &all_known), [web], "it is news again");
        reports.begin("a", now + HOLDS);
        assert_eq!(reports.asked(&services, now + HOLDS), Asked::default(), "a new stream tells all of it");
    }

    #[test]
    fn a_node_in_strange_hands_says_much_and_little_of_it_is_kept() {
        let reports = Reports::default();
        let now = Instant::now();
        reports.follow(&[Arc::from("a"), Arc::from("b")].into());
        let all = |names: std::ops::Range<usize>| Line {
            services: names
                .map(|index| Said {
                    namespace: "n".into(),
                    name: format!("s{index}"),
                    average: 1e308,
                    held: usize::MAX,
                })
                .collect(),
        };
        let kept = || reports.nodes.lock()["a"].said.len();
        reports.take("a", all(0..100), now, &|service: &Key| *service.name == *"s1");
        assert_eq!(kept(), 1, "of what nobody knows nothing is kept");
        let most = Asked { average: ASKED_MAX as f64, held: ASKED_MAX };
        assert_eq!(reports.asked(&[Key::new("n", "s1")], now), most);
        reports.take("b", all(1..2), now, &|_: &Key| true);
        let both = Asked { average: 2.0 * most.average, held: 2 * most.held };
        assert_eq!(reports.asked(&[Key::new("n", "s1")], now), both);
        reports.take("a", all(0..SERVICES_MAX + 10), now, &|_: &Key| true);
        assert_eq!(kept(), SERVICES_MAX);
        assert_eq!(
            reports.take("a", all(0..1), now, &|_: &Key| true).len(),
            1,
            "what is there already is kept as it is now"
        );
    }

    #[test]
    fn who_is_not_heard_is_known_and_since_when_all_are() {
        let reports = Reports::default();
        let both: HashSet<Arc<str>> = [Arc::from("a"), Arc::from("b")].into();
        let followed = reports.follow(&both);
        let since = |nodes: &[&'static str]| reports.heard_since(nodes.iter().copied());
        assert_eq!((since(&["a"]), since(&[])), (None, Some(reports.begun)));
        let (first, second) = (reports.begun + HOLDS, reports.begun + HOLDS * 2);
        reports.begin("a", first);
        assert_eq!((since(&["a"]), since(&["a", "b"])), (Some(first), None));
        reports.begin("b", second);
        assert_eq!((since(&["a", "b"]), since(&["a", "c"])), (Some(second), None));
        assert!(reports.lose("a") && !reports.lose("a"));
        assert_eq!(since(&["a", "b"]), None);
        // Heard again at once, it may have been silent about something.
        reports.begin("a", second + HOLDS);
        assert_eq!(since(&["a", "b"]), Some(second + HOLDS));
        reports.follow(&HashSet::new());
        assert!(followed.iter().all(|(_, stop)| stop.is_cancelled()) && since(&["a"]).is_none());
    }

    #[test]
    fn a_node_says_itself_whether_it_tells() {
        let node = |version: &str| -> Node {
            let info = serde_json::json!({
                "kubeletVersion": version, "architecture": "", "bootID": "", "containerRuntimeVersion": "", "kernelVersion": "",
                "kubeProxyVersion": "", "machineID": "", "operatingSystem": "", "osImage": "", "systemUUID": ""});
            serde_json::from_value(serde_json::json!({"metadata": {}, "status": {"nodeInfo": info}})).unwrap()
        };
        assert!(is_ours(&node("v1.37.0+coracle.0.1.0")) && !is_ours(&node("v1.37.0")) && !is_ours(&Node::default()));
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
