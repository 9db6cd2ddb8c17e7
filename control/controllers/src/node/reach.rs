//! Whether whoever leads reaches the nodes where they say that they are: logs, exec and requests to their pods go there. A node that is
//! not reached renews its lease all the same, as one behind NAT does.
//!
//! Each node of ours that is ready is asked now and then, through the API server as all that goes to nodes. One that is not
//! reached several times in a row has the condition `NetworkUnavailable`, which keeps new pods away ([`plan`]), and an
//! event tells of it. Where no other node is reached either it is rather us: it is said (`Unknown`), and keeps nothing away. What the
//! answer says does not matter, and one that nobody knows of changes nothing.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use http::Request;
use k8s_openapi::api::core::v1::{Node, NodeCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::json;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::plan;
use crate::client::{Client, NODES};
use crate::concurrency::is_ours;
use crate::events::{Record, Recorder, Subject};
use crate::informer::{Object as _, Store};
use crate::{Error, now_in_seconds};

const COMPONENT: &str = "node-controller";
const CONDITION: &str = "NetworkUnavailable";
/// The condition's reasons. One of somebody else's is not taken back.
const UNREACHED: &str = "NodeNotReached";
const REACHED: &str = "NodeReached";
/// How often it is looked whom to ask: whoever was not reached last, and others that were not asked for [`FINE_FOR`].
const LOOK_EVERY: Duration = Duration::from_millis(if cfg!(test) { 100 } else { 5_000 });
const FINE_FOR: Duration = Duration::from_millis(if cfg!(test) { 200 } else { 30_000 });
/// An API server waits for as long as 10 s for a connection.
const ANSWER_MAX: Duration = Duration::from_secs(12);
/// Nodes that are asked at a time.
const ASKED_MAX: usize = 64;
/// Who is not reached so often in a row is told of.
const FAILURES: u32 = 3;
/// How an API server says that it does not reach a node.
const DIALING: &str = "error dialing backend ";

/// Asks the nodes.
pub(crate) struct Reach {
    client: Client,
    recorder: Recorder,
    nodes: Arc<Store<Node>>,
    /// The node in this process.
    own: Option<String>,
}

/// What came of asking a node so far.
#[derive(Debug, Default)]
struct Look {
    asked: Option<Instant>,
    failures: u32,
    /// Where it was not reached, and why.
    why: String,
}

/// What came of asking a node once.
#[derive(Debug)]
enum Said {
    Something,
    /// It is not reached.
    Nothing(String),
    /// Nobody knows whether it is.
    Unknown,
}

impl Look {
    fn is_due(&self, now: Instant) -> bool {
        self.failures > 0 || self.asked.is_none_or(|asked| now.saturating_duration_since(asked) >= FINE_FOR)
    }

    fn take(&mut self, said: Said, now: Instant) {
        self.asked = Some(now);
        match said {
            Said::Something => self.failures = 0,
            Said::Nothing(why) => (self.failures, self.why) = (self.failures.saturating_add(1), why),
            Said::Unknown => {}
        }
    }
}

impl Reach {
    pub(crate) fn new(client: Client, recorder: Recorder, nodes: Arc<Store<Node>>, own: Option<String>) -> Self {
        Self { client, recorder, nodes, own }
    }

    /// Asks until shutdown.
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        let mut looks: HashMap<Arc<str>, Look> = HashMap::new();
        let looking = async {
            loop {
                tokio::time::sleep(LOOK_EVERY).await;
                self.look(&mut looks).await;
            }
        };
        // A condition that is written, or not, is looked at again by whoever leads next.
        tokio::select! {
            () = looking => {}
            () = shutdown.cancelled() => {}
        }
    }

    async fn look(&self, looks: &mut HashMap<Arc<str>, Look>) {
        let is_asked = |node: &Arc<Node>| {
            plan::is_ready(node) && is_ours(node) && node.metadata.name.as_deref() != self.own.as_deref()
        };
        let nodes: HashMap<Arc<str>, Arc<Node>> =
            self.nodes.all().into_iter().filter(is_asked).map(|node| (node.key().name, node)).collect();
        looks.retain(|name, _| nodes.contains_key(name));
        let now = Instant::now();
        let due: Vec<Arc<str>> =
            nodes.keys().filter(|name| looks.get(*name).is_none_or(|look| look.is_due(now))).cloned().collect();
        let asked = due.into_iter().map(|name| async move { (self.ask(&name).await, name) });
        let said: Vec<(Said, Arc<str>)> = futures::stream::iter(asked).buffer_unordered(ASKED_MAX).collect().await;
        let now = Instant::now();
        let mut changed = Vec::with_capacity(said.len());
        for (said, name) in said {
            looks.entry(name.clone()).or_default().take(said, now);
            changed.push(name);
        }
        let reached = looks.values().filter(|look| look.failures == 0).count();
        for name in changed {
            let is_us = reached == 0 && looks.len() > 1;
            let condition = condition(&nodes[&name], &looks[&name], is_us);
            if let Some(condition) = condition
                && let Err(error) = self.say(&nodes[&name], condition).await
            {
                tracing::debug!(node = &*name, %error, "whether a node is reached is not written");
            }
        }
    }

    async fn ask(&self, node: &str) -> Said {
        let path = format!("/api/v1/nodes/{node}/proxy/healthz");
        let Ok(request) = Request::get(path).body(Vec::new()) else { return Said::Unknown };
        match tokio::time::timeout(ANSWER_MAX, self.client.0.request_stream(request)).await {
            Ok(Ok(_)) => Said::Something,
            Ok(Err(kube::Error::Api(status))) => {
                let why = status.message.strip_prefix(DIALING);
                why.map_or(Said::Unknown, |why| Said::Nothing(why.to_owned()))
            }
            Ok(Err(_)) | Err(_) => Said::Unknown,
        }
    }

    async fn say(&self, node: &Node, condition: NodeCondition) -> Result<(), Error> {
        let (is_wrong, message) = (condition.status != "False", condition.message.clone().unwrap_or_default());
        let patch = json!({"metadata": {"uid": node.uid()}, "status": {"conditions": [condition]}});
        self.client
            .merge_status(NODES, &node.key(), &patch)
            .await
            .map_err(Error::api("write whether a node is reached"))?;
        let subject =
            Subject { api_version: "v1".into(), kind: "Node".into(), key: node.key(), uid: node.uid().into() };
        let reason = if is_wrong { UNREACHED } else { REACHED };
        self.recorder.record(Record { subject, component: COMPONENT, warning: is_wrong, reason, message });
        Ok(())
    }
}

/// What the node's condition is to say, if that is something else than it does.
fn condition(node: &Node, look: &Look, is_us: bool) -> Option<NodeCondition> {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let known = conditions.into_iter().find(|condition| condition.type_ == CONDITION);
    let was_said = known.is_some_and(|known| known.reason.as_deref() == Some(UNREACHED));
    let (status, reason, message) = match look.failures {
        0 if was_said => ("False", REACHED, "the servers reach the node".to_owned()),
        FAILURES.. => {
            let status = if is_us { "Unknown" } else { "True" };
            let message = format!(
                "the server that leads does not reach the node at {}. Logs, exec and requests from other machines to its pods do not \
                 arrive there: open the port, or start the node with --address and --port as it is reached; behind NAT it is not",
                look.why
            );
            (status, UNREACHED, message)
        }
        _ => return None,
    };
    let is_said = known.is_some_and(|known| known.status == status && known.reason.as_deref() == Some(reason));
    (!is_said).then(|| NodeCondition {
        type_: CONDITION.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message),
        last_heartbeat_time: Some(Time(now_in_seconds())),
        last_transition_time: Some(Time(now_in_seconds())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(condition: Option<(&str, &str)>) -> Node {
        let conditions =
            condition.map(|(status, reason)| json!([{"type": CONDITION, "status": status, "reason": reason}]));
        serde_json::from_value(json!({"metadata": {"name": "n"}, "status": {"conditions": conditions}})).unwrap()
    }

    #[test]
    fn who_is_not_reached_several_times_in_a_row_is_told_of_until_it_is_reached() {
        let now = Instant::now();
        let mut look = Look::default();
        assert!(look.is_due(now));
        let says = |look: &Look, known, is_us| condition(&node(known), look, is_us).map(|said| said.status);
        let nothing = || Said::Nothing("192.0.2.1:10250: connection timed out".to_owned());
        for expected in [None, None, Some("True")] {
            look.take(nothing(), now);
            look.take(Said::Unknown, now);
            assert!(look.is_due(now), "soon again");
            assert_eq!(says(&look, None, false).as_deref(), expected);
        }
        assert_eq!(says(&look, None, true).as_deref(), Some("Unknown"), "no other is reached");
        assert_eq!(says(&look, Some(("True", UNREACHED)), false), None, "it is said already");
        assert!(condition(&node(None), &look, false).unwrap().message.unwrap().contains("at 192.0.2.1:10250: conn"));
        look.take(Said::Something, now);
        assert!(!look.is_due(now) && look.is_due(now + FINE_FOR));
        assert_eq!(says(&look, Some(("True", UNREACHED)), false).as_deref(), Some("False"));
        assert_eq!(says(&look, None, false), None, "nothing was said before");
        assert_eq!(says(&look, Some(("True", "NoRouteCreated")), false), None, "somebody else's");
        look.take(nothing(), now);
        assert_eq!(says(&look, None, false), None, "it counts anew");
    }
}
