//! Events, recorded as the kubelet records them: what repeats becomes a count, a flood is thinned out. Of one object there are few at
//! once and seldom more ([`OBJECT_BURST`]): one whose probe fails each second leaves room for others, and the log of the servers alone.
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
/// Events of one object at once, and how long until there may be one more (client-go's `EventSourceObjectSpamFilter`).
const OBJECT_BURST: f64 = 25.0;
const OBJECT_EVERY: Duration = Duration::from_secs(300);
/// Objects of which that is remembered (client-go: 4096). Beyond it those go first of which it matters least.
const OBJECTS_MAX: usize = 4096;
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
    tokens: Tokens,
    /// Of objects, by their uids.
    objects: HashMap<Arc<str>, Tokens>,
}

/// So many at once, and more with time.
#[derive(Debug, Clone, Copy)]
struct Tokens {
    left: f64,
    filled: Instant,
}

impl Tokens {
    fn refill(&mut self, max: f64, per_second: f64, now: Instant) {
        self.left = (self.left + now.duration_since(self.filled).as_secs_f64() * per_second).min(max);
        self.filled = now;
    }

    fn take(&mut self) {
        self.left = (self.left - 1.0).max(0.0);
    }
}

impl Queue {
    fn new(now: Instant) -> Self {
        let tokens = Tokens { left: BURST, filled: now };
        Self { waiting: VecDeque::new(), tokens, objects: HashMap::new() }
    }

    fn admit(&mut self, of: &Arc<str>, warning: bool, now: Instant) -> bool {
        self.tokens.refill(BURST, PER_SECOND, now);
        let room = if warning { QUEUE_MAX } else { QUEUE_NORMAL_MAX };
        if self.waiting.len() >= room || (self.tokens.left < 1.0 && !warning) {
            return false;
        }
        let refill = |tokens: &mut Tokens| tokens.refill(OBJECT_BURST, 1.0 / OBJECT_EVERY.as_secs_f64(), now);
        if self.objects.len() >= OBJECTS_MAX && !self.objects.contains_key(of) {
            // Those that are full, else those that have half of it: it is they who are forgiven least.
            self.objects.values_mut().for_each(refill);
            for enough in [OBJECT_BURST, OBJECT_BURST / 2.0, 0.0] {
                self.objects.retain(|_, tokens| tokens.left < enough);
                if self.objects.len() < OBJECTS_MAX {
                    break;
                }
            }
        }
        let own = self.objects.entry(of.clone()).or_insert(Tokens { left: OBJECT_BURST, filled: now });
        refill(own);
        if own.left < 1.0 {
            return false;
        }
        own.take();
        self.tokens.take();
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
        let queue = Mutex::new(Queue::new(Instant::now()));
        let inner = Inner { client: KubeClient(client), node, queue, added: Notify::new() };
        Self { inner: Arc::new(inner) }
    }

    /// Records an event, or drops it when there are too many. A message is no longer than [`text::MESSAGE_BYTES_MAX`]: it is kept
    /// as long as it may repeat.
    pub fn record(&self, mut record: Record) {
        record.message = text::cut_off(record.message);
        let mut queue = self.inner.queue.lock();
        if !queue.admit(&record.uid, record.warning, Instant::now()) {
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
        let mut queue = Queue::new(now);
        let mut number = 0;
        let mut next = || {
            number += 1;
            Arc::from(number.to_string())
        };
        assert_eq!((0..500).filter(|_| queue.admit(&next(), false, now)).count(), 100);
        assert!(queue.admit(&next(), true, now));
        assert_eq!((0..500).filter(|_| queue.admit(&next(), false, now + Duration::from_secs(1))).count(), 50);
    }

    #[test]
    fn one_object_has_few_and_takes_nothing_from_others() {
        let now = Instant::now();
        let mut queue = Queue::new(now);
        let (loud, quiet): (Arc<str>, Arc<str>) = ("loud".into(), "quiet".into());
        assert_eq!((0..500).filter(|_| queue.admit(&loud, true, now)).count(), 25);
        assert!(queue.admit(&quiet, false, now));
        let later = now + OBJECT_EVERY + Duration::from_secs(1);
        assert!(queue.admit(&loud, true, later) && !queue.admit(&loud, true, later));
        // However many others there are, what was said of it is remembered.
        for number in 0..2 * OBJECTS_MAX {
            queue.admit(&number.to_string().into(), true, later);
        }
        assert!(queue.objects.len() <= OBJECTS_MAX && !queue.admit(&loud, true, later));
    }
}
