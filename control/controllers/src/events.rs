//! The recorder of events, with the manners of client-go: what repeats is counted, what is alike is combined, and one
//! object may not flood the API.
//!
//! Recording never waits: an event goes into a bounded queue ([`QUEUE_MAX`]; beyond it events are dropped), which one
//! task empties, a little later ([`BEHIND`]): nobody waits for an event, but every write has to wait for those before it.
//! At shutdown what is left is sent for [`LAST`] and then dropped. Per object: [`BURST`] events, then one per five minutes. More than [`SIMILAR_MAX`] different messages
//! for one object and reason within ten minutes become one event "(combined from similar events)".

use std::borrow::Cow;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use coracle_tolerant::cut_message;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::client::{Client, EVENTS, is_not_found};
use crate::informer::Key;

/// Waiting events; beyond it new ones are dropped.
const QUEUE_MAX: usize = 1000;
/// How long after it was recorded an event is sent.
const BEHIND: Duration = Duration::from_millis(40);
/// How long events are still sent at shutdown.
const LAST: Duration = Duration::from_millis(200);
/// Events at once per object (client-go's spam filter).
const BURST: f64 = 25.0;
/// Events per second per object afterwards.
const PER_SECOND: f64 = 1.0 / 300.0;
/// Different messages before they are combined.
const SIMILAR_MAX: usize = 10;
/// How long an event is counted up, or combined, instead of written anew.
const WINDOW: Duration = Duration::from_secs(600);
/// Objects and messages remembered.
const MEMORY_MAX: usize = 4096;

/// The object an event is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Subject {
    pub api_version: Cow<'static, str>,
    pub kind: Cow<'static, str>,
    pub key: Key,
    pub uid: Arc<str>,
}

/// What an event says.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Record {
    pub subject: Subject,
    /// `deployment-controller`.
    pub component: &'static str,
    pub warning: bool,
    pub reason: &'static str,
    pub message: String,
}

/// What is told of an object that whoever decides need not name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Told {
    pub warning: bool,
    pub reason: &'static str,
    pub message: String,
}

impl Told {
    pub(crate) fn normal(reason: &'static str, message: impl Into<String>) -> Self {
        Self { warning: false, reason, message: message.into() }
    }

    pub(crate) fn warning(reason: &'static str, message: impl Into<String>) -> Self {
        Self { warning: true, reason, message: message.into() }
    }
}

/// Takes events. Clones share one queue.
#[derive(Clone)]
pub(crate) struct Recorder {
    inner: Arc<Inner>,
}

struct Inner {
    client: Client,
    /// With its time, and when it is sent.
    waiting: Mutex<VecDeque<(Record, Timestamp, Instant)>>,
    added: Notify,
}

impl Recorder {
    pub(crate) fn new(client: Client) -> Self {
        Self { inner: Arc::new(Inner { client, waiting: Mutex::default(), added: Notify::new() }) }
    }

    /// Records an event, or drops it when too many wait.
    pub(crate) fn record(&self, mut record: Record) {
        record.message.truncate(cut_message(&record.message).len());
        let mut waiting = self.inner.waiting.lock();
        if waiting.len() < QUEUE_MAX {
            waiting.push_back((record, Timestamp::now(), Instant::now() + BEHIND));
            drop(waiting);
            self.inner.added.notify_one();
        }
    }

    /// Sends what is recorded, until shutdown.
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        let mut memory = Memory::default();
        let last = async {
            shutdown.cancelled().await;
            tokio::time::sleep(LAST).await;
        };
        tokio::select! {
            () = self.send_all(&mut memory, &shutdown) => {}
            () = last => {}
        }
    }

    /// Returns when there is nothing more to send after shutdown.
    async fn send_all(&self, memory: &mut Memory, shutdown: &CancellationToken) {
        loop {
            let next = self.inner.waiting.lock().pop_front();
            let Some((record, at, due)) = next else {
                tokio::select! {
                    () = self.inner.added.notified() => continue,
                    () = shutdown.cancelled() => return,
                }
            };
            if !shutdown.is_cancelled() {
                tokio::time::sleep_until(due).await;
            }
            let Some((record, repeated)) = memory.correlate(record, Instant::now()) else { continue };
            if let Err(error) = self.send(memory, record, repeated, at).await {
                tracing::debug!(%error, "event not recorded");
            }
        }
    }

    async fn send(
        &self,
        memory: &mut Memory,
        record: Record,
        repeated: Option<(String, i32)>,
        at: Timestamp,
    ) -> Result<(), kube::Error> {
        let client = &self.inner.client;
        let namespace = match &*record.subject.key.namespace {
            "" => "default",
            namespace => namespace,
        };
        if let Some((name, count)) = repeated {
            let patch = json!({
                "count": count,
                "message": record.message,
                "lastTimestamp": at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            });
            match client.patch(EVENTS, &Key::new(namespace, &name), &patch).await {
                // The old one may have expired; then it begins anew.
                Err(error) if is_not_found(&error) => {}
                other => return other.map(drop),
            }
        }
        let name = format!("{}.{:x}", record.subject.key.name, at.as_nanosecond());
        client.create(EVENTS, namespace, &event(&record, &name, namespace, at)).await?;
        memory.sent(record, name, Instant::now());
        Ok(())
    }
}

fn event(record: &Record, name: &str, namespace: &str, at: Timestamp) -> Event {
    let time = Time(Timestamp::from_second(at.as_second()).unwrap_or(at));
    let subject = &record.subject;
    Event {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        involved_object: ObjectReference {
            api_version: Some(subject.api_version.to_string()),
            kind: Some(subject.kind.to_string()),
            name: Some(subject.key.name.to_string()),
            namespace: Some(subject.key.namespace.to_string()).filter(|namespace| !namespace.is_empty()),
            uid: Some(subject.uid.to_string()),
            ..ObjectReference::default()
        },
        reason: Some(record.reason.to_owned()),
        message: Some(record.message.clone()),
        type_: Some(if record.warning { "Warning" } else { "Normal" }.to_owned()),
        source: Some(EventSource { component: Some(record.component.to_owned()), host: None }),
        first_timestamp: Some(time.clone()),
        last_timestamp: Some(time),
        count: Some(1),
        reporting_component: Some(record.component.to_owned()),
        ..Event::default()
    }
}

/// What was sent lately.
#[derive(Default)]
struct Memory {
    objects: HashMap<Arc<str>, Bucket>,
    similar: HashMap<(Arc<str>, &'static str), Similar>,
    sent: HashMap<Record, Sent>,
}

struct Bucket {
    tokens: f64,
    at: Instant,
}

struct Similar {
    messages: HashSet<String>,
    at: Instant,
}

struct Sent {
    name: String,
    count: i32,
    at: Instant,
}

impl Memory {
    /// The event to send, and the one it repeats; `None` when the object has had its share.
    fn correlate(&mut self, mut record: Record, now: Instant) -> Option<(Record, Option<(String, i32)>)> {
        self.forget(now);
        let uid = &record.subject.uid;
        let similar = self
            .similar
            .entry((uid.clone(), record.reason))
            .or_insert_with(|| Similar { messages: HashSet::new(), at: now });
        if now.duration_since(similar.at) > WINDOW {
            similar.messages.clear();
        }
        similar.at = now;
        if similar.messages.len() < SIMILAR_MAX {
            similar.messages.insert(record.message.clone());
        }
        let combined = similar.messages.len() >= SIMILAR_MAX && !similar.messages.contains(&record.message);
        let bucket = self.objects.entry(uid.clone()).or_insert(Bucket { tokens: BURST, at: now });
        bucket.tokens = (bucket.tokens + now.duration_since(bucket.at).as_secs_f64() * PER_SECOND).min(BURST);
        bucket.at = now;
        if bucket.tokens < 1.0 {
            return None;
        }
        bucket.tokens -= 1.0;
        let mut identity = record.clone();
        if combined {
            record.message = format!("(combined from similar events): {}", record.message);
            identity.message.clear();
        }
        let repeated = self.sent.get_mut(&identity).map(|sent| {
            sent.count += 1;
            sent.at = now;
            (sent.name.clone(), sent.count)
        });
        Some((record, repeated))
    }

    fn sent(&mut self, mut record: Record, name: String, now: Instant) {
        if record.message.starts_with("(combined from similar events): ") {
            record.message.clear();
        }
        self.sent.insert(record, Sent { name, count: 1, at: now });
    }

    fn forget(&mut self, now: Instant) {
        let fresh = |at: Instant, window: Duration| now.duration_since(at) < window;
        for window in [WINDOW, WINDOW / 10, Duration::from_secs(1)] {
            if self.objects.len() + self.similar.len() + self.sent.len() < MEMORY_MAX {
                return;
            }
            self.objects.retain(|_, bucket| fresh(bucket.at, window));
            self.similar.retain(|_, similar| fresh(similar.at, window));
            self.sent.retain(|_, sent| fresh(sent.at, window));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(message: &str) -> Record {
        let subject =
            Subject { api_version: "v1".into(), kind: "Pod".into(), key: Key::new("a", "b"), uid: "u".into() };
        Record { subject, component: "test", warning: false, reason: "Made", message: message.to_owned() }
    }

    #[test]
    fn counts_combines_and_limits() {
        let mut memory = Memory::default();
        let now = Instant::now();
        let mut sent = Vec::new();
        for index in 0..100 {
            let Some((record, repeated)) = memory.correlate(record(&format!("made {index}")), now) else { continue };
            sent.push((record.message.clone(), repeated.as_ref().map(|(_, count)| *count)));
            if repeated.is_none() {
                memory.sent(record, format!("e{index}"), now);
            }
        }
        assert_eq!(sent.len(), 25, "the share of an object");
        assert_eq!(sent[9], ("made 9".to_owned(), None));
        assert_eq!(sent[10], ("(combined from similar events): made 10".to_owned(), None));
        assert_eq!(sent[24], ("(combined from similar events): made 24".to_owned(), Some(15)));
    }

    #[tokio::test]
    async fn a_long_message_is_told_in_part() {
        let recorder = Recorder::new(Client(coracle_scripted::Scripted::new().client()));
        recorder.record(record(&"é".repeat(1 << 20)));
        let waiting = recorder.inner.waiting.lock();
        assert!(waiting[0].0.message.len() <= 4 << 10 && waiting[0].0.message.ends_with('é'));
    }

    #[test]
    fn counts_what_repeats() {
        let mut memory = Memory::default();
        let now = Instant::now();
        let (first, repeated) = memory.correlate(record("again"), now).unwrap();
        assert_eq!(repeated, None);
        memory.sent(first, "e".to_owned(), now);
        assert_eq!(memory.correlate(record("again"), now).unwrap().1, Some(("e".to_owned(), 2)));
    }
}
