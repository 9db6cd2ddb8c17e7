//! Events, recorded as the kubelet records them: what repeats becomes a count, a flood is thinned out.
//!
//! Recording never waits: an event goes into a bounded queue that one task empties, a little later ([`BEHIND`]): nobody
//! waits for an event, but every write waits for those before it. At shutdown what is left is sent for [`LAST`]. Up to [`BURST`] events are sent at
//! once and [`PER_SECOND`] afterwards (kubelet: `eventBurst`, `eventRecordQPS`); what does not fit is dropped,
//! ordinary events well before warnings.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Api, Patch, PatchParams, PostParams};
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::text;

/// Events at once (kubelet's `eventBurst`).
const BURST: f64 = 100.0;
/// Events per second afterwards (kubelet's `eventRecordQPS`).
const PER_SECOND: f64 = 50.0;
/// How long after it was recorded an event is sent.
const BEHIND: Duration = Duration::from_millis(40);
/// How long events are still sent at shutdown.
const LAST: Duration = Duration::from_millis(200);
/// An event whose write is not answered by then is given up: the others wait behind it.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// Waiting events; beyond it new ones are dropped.
const QUEUE_MAX: usize = 1000;
/// Waiting events beyond which only warnings are taken.
const QUEUE_NORMAL_MAX: usize = 100;
/// Remembered events, to count what repeats.
const SEEN_MAX: usize = 1024;
/// How long an event is counted up instead of written anew (client-go's correlator).
const SEEN_FOR: Duration = Duration::from_secs(600);

/// What an event is about, and what it says.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Record {
    /// `Pod`, `Node`, `Service`, `Ingress` or `PersistentVolume`.
    pub kind: &'static str,
    /// Namespace of the object; empty for a node.
    pub namespace: Arc<str>,
    /// Name of the object.
    pub name: Arc<str>,
    /// Uid of the object.
    pub uid: Arc<str>,
    /// `spec.containers{name}`.
    pub field_path: Option<String>,
    /// Whether it is a warning.
    pub warning: bool,
    /// Kubelet's reason.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

/// Takes events. Clones share one queue.
#[derive(Debug, Clone)]
pub struct Recorder {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    client: KubeClient,
    node: String,
    queue: Mutex<Queue>,
    added: Notify,
}

struct KubeClient(kube::Client);

impl std::fmt::Debug for KubeClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("kube::Client")
    }
}

#[derive(Debug)]
struct Queue {
    /// With its time, and when it is sent.
    waiting: VecDeque<(Record, Timestamp, Instant)>,
    tokens: f64,
    filled: Instant,
}

impl Queue {
    fn admit(&mut self, warning: bool, now: Instant) -> bool {
        self.tokens = (self.tokens + now.duration_since(self.filled).as_secs_f64() * PER_SECOND).min(BURST);
        self.filled = now;
        let room = if warning { QUEUE_MAX } else { QUEUE_NORMAL_MAX };
        if self.waiting.len() >= room || (self.tokens < 1.0 && !warning) {
            return false;
        }
        self.tokens = (self.tokens - 1.0).max(0.0);
        true
    }
}

struct Seen {
    name: String,
    count: i32,
    at: Instant,
}

impl Recorder {
    /// A recorder for the node of this name; nothing is sent until [`Self::run`].
    pub fn new(client: kube::Client, node: String) -> Self {
        let queue = Queue { waiting: VecDeque::new(), tokens: BURST, filled: Instant::now() };
        let inner = Inner { client: KubeClient(client), node, queue: Mutex::new(queue), added: Notify::new() };
        Self { inner: Arc::new(inner) }
    }

    /// Records an event, or drops it when there are too many. A message is no longer than [`text::MESSAGE_BYTES_MAX`]: it is kept
    /// as long as it may repeat.
    pub fn record(&self, mut record: Record) {
        record.message = text::cut_off(record.message);
        let mut queue = self.inner.queue.lock();
        if !queue.admit(record.warning, Instant::now()) {
            tracing::trace!(reason = record.reason, "event dropped");
            return;
        }
        queue.waiting.push_back((record, Timestamp::now(), Instant::now() + BEHIND));
        drop(queue);
        self.inner.added.notify_one();
    }

    /// Sends what is recorded, until shutdown and a moment longer.
    pub async fn run(&self, shutdown: CancellationToken) {
        let last = async {
            shutdown.cancelled().await;
            tokio::time::sleep(LAST).await;
        };
        tokio::select! {
            () = self.send_all(&shutdown) => {}
            () = last => {}
        }
    }

    /// Returns when there is nothing more to send after shutdown.
    async fn send_all(&self, shutdown: &CancellationToken) {
        let mut seen: HashMap<Record, Seen> = HashMap::new();
        loop {
            let next = self.inner.queue.lock().waiting.pop_front();
            let Some((record, at, due)) = next else {
                tokio::select! {
                    () = self.inner.added.notified() => continue,
                    () = shutdown.cancelled() => return,
                }
            };
            if !shutdown.is_cancelled() {
                tokio::time::sleep_until(due).await;
            }
            match tokio::time::timeout(ANSWER_MAX, self.send(&mut seen, record, at)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, "event not recorded"),
                Err(_) => tracing::debug!("event not recorded: the API server has not answered in time"),
            }
        }
    }

    async fn send(&self, seen: &mut HashMap<Record, Seen>, record: Record, at: Timestamp) -> Result<(), kube::Error> {
        let now = Instant::now();
        let namespace = if record.namespace.is_empty() { "default" } else { &record.namespace };
        let api: Api<Event> = Api::namespaced(self.inner.client.0.clone(), namespace);
        if let Some(old) = seen.get_mut(&record)
            && now.duration_since(old.at) < SEEN_FOR
        {
            old.count += 1;
            old.at = now;
            let patch = json!({"count": old.count, "lastTimestamp": second(at)});
            match api.patch(&old.name, &PatchParams::default(), &Patch::Merge(patch)).await {
                // The old one may have expired; then it begins anew.
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                other => return other.map(drop),
            }
        }
        let name = format!("{}.{:x}", record.name, at.as_nanosecond());
        api.create(&PostParams::default(), &self.event(&record, &name, namespace, at)).await?;
        if seen.len() >= SEEN_MAX {
            seen.retain(|_, old| now.duration_since(old.at) < SEEN_FOR / 4);
        }
        if seen.len() < SEEN_MAX {
            seen.insert(record, Seen { name, count: 1, at: now });
        }
        Ok(())
    }

    fn event(&self, record: &Record, name: &str, namespace: &str, at: Timestamp) -> Event {
        let time = Time(Timestamp::from_second(at.as_second()).unwrap_or(at));
        let (api_version, component) = match record.kind {
            "Ingress" => ("networking.k8s.io/v1", "ingress-controller"),
            _ => ("v1", "kubelet"),
        };
        Event {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                namespace: Some(namespace.to_owned()),
                ..ObjectMeta::default()
            },
            involved_object: ObjectReference {
                api_version: Some(api_version.to_owned()),
                kind: Some(record.kind.to_owned()),
                name: Some(record.name.to_string()),
                namespace: Some(record.namespace.to_string()).filter(|namespace| !namespace.is_empty()),
                uid: Some(record.uid.to_string()),
                field_path: record.field_path.clone(),
                ..ObjectReference::default()
            },
            reason: Some(record.reason.to_owned()),
            message: Some(record.message.clone()),
            type_: Some(if record.warning { "Warning" } else { "Normal" }.to_owned()),
            source: Some(EventSource { component: Some(component.to_owned()), host: Some(self.inner.node.clone()) }),
            first_timestamp: Some(time.clone()),
            last_timestamp: Some(time),
            count: Some(1),
            reporting_component: Some(component.to_owned()),
            reporting_instance: Some(self.inner.node.clone()),
            ..Event::default()
        }
    }
}

fn second(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thins_out_a_flood_and_keeps_warnings() {
        let now = Instant::now();
        let mut queue = Queue { waiting: VecDeque::new(), tokens: BURST, filled: now };
        assert_eq!((0..500).filter(|_| queue.admit(false, now)).count(), 100);
        assert!(queue.admit(true, now));
        assert_eq!((0..500).filter(|_| queue.admit(false, now + Duration::from_secs(1))).count(), 50);
    }
}
