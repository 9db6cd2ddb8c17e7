//! What the scheduler tells: events, and the condition of pods that have no node. Neither ever holds a decision up.
//!
//! Both wait in bounded queues that one task each empties. Of events what does not fit is dropped ([`EVENTS_MAX`], and
//! [`PER_SECOND`] after a burst, as the reference's client does); of conditions only the latest per pod is kept, so
//! their number is bounded by the pods. A condition that could not be written is written later, unless there is a newer
//! one: the queue does not tell the same twice.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use coracle_tolerant::cut_message;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use http::Request;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::view::Uid;

const EVENTS_MAX: usize = 1000;
/// Events per second, once [`BURST`] are sent (the reference's client: 50, 100).
const PER_SECOND: u32 = 50;
const BURST: u32 = 100;
/// How long after it was recorded an event is sent: nobody waits for one, but every write waits for those before it.
const BEHIND: Duration = Duration::from_millis(40);
/// How long events are still sent at shutdown.
const LAST: Duration = Duration::from_millis(200);
/// How often a condition is written again after somebody else changed the pod.
const ATTEMPTS: u32 = 5;
/// After this a condition that could not be written is put back; until then it counts among those in flight, so that an
/// API server in trouble is not asked more often.
const AGAIN: Duration = Duration::from_secs(1);
/// Requests for conditions at a time.
const CONDITIONS_IN_FLIGHT: usize = 16;
const NAME: &str = "default-scheduler";
const NOMINATED: &str = "nominatedNodeName";

/// A pod that something is told about.
#[derive(Debug, Clone)]
pub(crate) struct Subject {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    pub uid: Uid,
    /// Generation of the specification that was looked at.
    pub generation: Option<i64>,
    /// `resourceVersion` that was looked at.
    pub version: Option<Arc<str>>,
}

/// What is to be said of the node on which room is being made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Nominated<'a> {
    /// This one.
    Node(&'a str),
    /// None any more.
    Nowhere,
    /// As before.
    Unchanged,
}

#[derive(Debug)]
struct Event {
    subject: Subject,
    warning: bool,
    reason: &'static str,
    action: &'static str,
    message: String,
    at: Timestamp,
    due: tokio::time::Instant,
}

#[derive(Debug, Default)]
struct Inner {
    events: Mutex<VecDeque<Event>>,
    event_added: Notify,
    conditions: Mutex<HashMap<Uid, (Subject, Value)>>,
    condition_added: Notify,
}

impl Inner {
    /// What is newer takes the place of what is not written yet; each part of that holds until another is told.
    fn tell(&self, subject: Subject, mut status: Value) {
        let mut conditions = self.conditions.lock();
        if let Some((_, before)) = conditions.remove(&subject.uid) {
            keep_rest(&mut status, before);
        }
        conditions.insert(subject.uid.clone(), (subject, status));
        drop(conditions);
        self.condition_added.notify_one();
    }

    /// The condition could not be written.
    fn put_back(&self, subject: Subject, status: Value) {
        let mut conditions = self.conditions.lock();
        match conditions.get_mut(&subject.uid) {
            Some((_, newer)) => keep_rest(newer, status),
            None => drop(conditions.insert(subject.uid.clone(), (subject, status))),
        }
    }

    /// One to be written, of a pod for which no other is under way: they go out in their order.
    fn next(&self, busy: &HashSet<Uid>) -> Option<(Subject, Value)> {
        let mut conditions = self.conditions.lock();
        let uid = conditions.keys().find(|uid| !busy.contains(*uid))?.clone();
        conditions.remove(&uid)
    }
}

/// Adds the parts that the newer status does not have: condition or nomination.
fn keep_rest(newer: &mut Value, before: Value) {
    let Value::Object(before) = before else { return };
    for (name, value) in before {
        if newer.get(&name).is_none() {
            newer[name] = value;
        }
    }
}

/// Takes what is to be told. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reporter {
    inner: Arc<Inner>,
}

impl Reporter {
    pub(crate) fn scheduled(&self, subject: Subject, node: &str) {
        let message = format!("Successfully assigned {}/{} to {node}", subject.namespace, subject.name);
        self.event(subject, false, "Scheduled", "Binding", message);
    }

    pub(crate) fn preempted(&self, victim: Subject, by: &str, node: &str) {
        let message = format!("Preempted by pod {by} on node {node}");
        self.event(victim, false, "Preempted", "Preempting", message);
    }

    /// The pod has no node: event and condition.
    pub(crate) fn unschedulable(&self, subject: Subject, message: &str, nominated: Nominated<'_>) {
        self.not_scheduled(subject, "Unschedulable", message, nominated);
    }

    /// The pod has a place, and may not be bound there: event and condition.
    pub(crate) fn rejected(&self, subject: Subject, message: &str) {
        self.not_scheduled(subject, "SchedulerError", message, Nominated::Unchanged);
    }

    /// Room is made for the pod nowhere any more: it stands in its status as long as nobody says so.
    pub(crate) fn withdrawn(&self, subject: Subject) {
        self.inner.tell(subject, json!({ NOMINATED: null }));
    }

    fn not_scheduled(&self, subject: Subject, reason: &str, message: &str, nominated: Nominated<'_>) {
        let message = cut_message(message);
        let condition = json!({
            "type": "PodScheduled", "status": "False", "reason": reason, "message": message,
            "lastTransitionTime": second(Timestamp::now()), "lastProbeTime": null,
            "observedGeneration": subject.generation,
        });
        let mut status = json!({ "conditions": [condition] });
        match nominated {
            Nominated::Node(node) => status[NOMINATED] = json!(node),
            Nominated::Nowhere => status[NOMINATED] = Value::Null,
            Nominated::Unchanged => {}
        }
        self.inner.tell(subject.clone(), status);
        self.event(subject, true, "FailedScheduling", "Scheduling", message.to_owned());
    }

    /// The pod is bound or gone: nothing is told of its condition any more.
    pub(crate) fn settled(&self, uid: &str) {
        self.inner.conditions.lock().remove(uid);
    }

    fn event(&self, subject: Subject, warning: bool, reason: &'static str, action: &'static str, message: String) {
        let mut events = self.inner.events.lock();
        if events.len() < EVENTS_MAX {
            let due = tokio::time::Instant::now() + BEHIND;
            events.push_back(Event { subject, warning, reason, action, message, at: Timestamp::now(), due });
            drop(events);
            self.inner.event_added.notify_one();
        }
    }

    /// Sends events until shutdown, and a moment longer.
    pub(crate) async fn send_events(self, client: kube::Client, shutdown: CancellationToken) {
        let last = async {
            shutdown.cancelled().await;
            tokio::time::sleep(LAST).await;
        };
        tokio::select! {
            () = self.send_all_events(client, &shutdown) => {}
            () = last => {}
        }
    }

    /// Returns when there is nothing more to send after shutdown.
    async fn send_all_events(&self, client: kube::Client, shutdown: &CancellationToken) {
        let mut left = BURST;
        let mut refill = tokio::time::interval(Duration::from_secs(1) / PER_SECOND);
        refill.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let next = self.inner.events.lock().pop_front();
            let Some(event) = next else {
                // Waiting is all that is cut here. While it is quiet, the burst is earned again.
                let quiet = tokio::time::Instant::now();
                tokio::select! {
                    () = self.inner.event_added.notified() => {}
                    () = shutdown.cancelled() => return,
                }
                let earned = quiet.elapsed().as_secs_f64() * f64::from(PER_SECOND);
                left = (left + earned.min(f64::from(BURST)) as u32).min(BURST);
                continue;
            };
            if left > 0 {
                left -= 1;
            } else {
                tokio::select! {
                    _ = refill.tick() => {}
                    () = shutdown.cancelled() => return,
                }
            }
            if !shutdown.is_cancelled() {
                tokio::time::sleep_until(event.due).await;
            }
            let path = format!("/api/v1/namespaces/{}/events", event.subject.namespace);
            if let Err(error) = send(&client, "POST", &path, "application/json", &body(&event)).await {
                tracing::debug!(%error, "event not recorded");
            }
        }
    }

    /// Writes conditions until shutdown.
    pub(crate) async fn write_conditions(self, client: kube::Client, shutdown: CancellationToken) {
        let mut running = FuturesUnordered::new();
        let mut busy = HashSet::new();
        loop {
            while running.len() < CONDITIONS_IN_FLIGHT
                && let Some((subject, status)) = self.inner.next(&busy)
            {
                busy.insert(subject.uid.clone());
                let client = client.clone();
                running.push(async move {
                    let written = write(&client, &subject, &status).await;
                    if !written {
                        tokio::time::sleep(AGAIN).await;
                    }
                    (subject, status, written)
                });
            }
            // Requests that are cut at shutdown are those of a scheduler that is done for.
            tokio::select! {
                Some((subject, status, written)) = running.next() => {
                    busy.remove(&subject.uid);
                    if !written {
                        self.inner.put_back(subject, status);
                    }
                }
                () = self.inner.condition_added.notified() => {}
                () = shutdown.cancelled() => return,
            }
        }
    }
}

/// Writes a condition of a pod that has no node, in the version that was looked at: one that has got a node meanwhile hears
/// nothing of it any more. Returns whether it is done with: written, or not to be written.
async fn write(client: &kube::Client, subject: &Subject, status: &Value) -> bool {
    let path = format!("/api/v1/namespaces/{}/pods/{}", subject.namespace, subject.name);
    let mut version = subject.version.as_deref().map(str::to_owned);
    for _ in 0..ATTEMPTS {
        let patch = json!({"metadata": {"uid": &*subject.uid, "resourceVersion": version}, "status": status});
        let at = format!("{path}/status?fieldManager=kube-scheduler");
        match send(client, "PATCH", &at, "application/strategic-merge-patch+json", &patch).await {
            Ok(()) => return true,
            Err(kube::Error::Api(refused)) if refused.code == 409 => {}
            Err(error) => return is_for_good(&error, subject),
        }
        let live = match live(client, subject).await {
            Ok(Some(live)) => live,
            Ok(None) => return true,
            Err(error) => return is_for_good(&error, subject),
        };
        if live.spec.node_name.is_some_and(|node| !node.is_empty()) {
            return true;
        }
        version = live.metadata.resource_version;
    }
    false
}

/// Whether the same would be answered again: the pod is gone, or the condition is not what the server takes.
fn is_for_good(error: &kube::Error, subject: &Subject) -> bool {
    tracing::debug!(%error, pod = %subject.name, "condition not written");
    matches!(error, kube::Error::Api(refused) if matches!(refused.code, 400 | 403 | 404 | 413 | 422))
}

/// A pod as the API has it.
#[derive(serde::Deserialize)]
pub(crate) struct Live {
    pub metadata: ObjectMeta,
    #[serde(default)]
    pub spec: LiveSpec,
}

#[derive(serde::Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct LiveSpec {
    pub node_name: Option<String>,
}

/// The very pod, if it is there.
pub(crate) async fn live(client: &kube::Client, subject: &Subject) -> Result<Option<Live>, kube::Error> {
    let path = format!("/api/v1/namespaces/{}/pods/{}", subject.namespace, subject.name);
    let request = Request::get(&path).body(Vec::new()).map_err(kube::Error::HttpError)?;
    match client.request::<Live>(request).await {
        Ok(live) => Ok(Some(live).filter(|live| live.metadata.uid.as_deref() == Some(&*subject.uid))),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
        Err(error) => Err(error),
    }
}

/// One request whose answer does not matter but for success.
pub(crate) async fn send(
    client: &kube::Client,
    method: &str,
    path: &str,
    media: &str,
    body: &Value,
) -> Result<(), kube::Error> {
    let bytes = serde_json::to_vec(body).map_err(kube::Error::SerdeError)?;
    let request = Request::builder().method(method).uri(path).header(http::header::CONTENT_TYPE, media);
    client.request::<serde::de::IgnoredAny>(request.body(bytes).map_err(kube::Error::HttpError)?).await.map(drop)
}

fn second(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn body(event: &Event) -> Value {
    let subject = &event.subject;
    json!({
        "apiVersion": "v1", "kind": "Event",
        "metadata": {"name": format!("{}.{:x}", subject.name, event.at.as_nanosecond()), "namespace": &*subject.namespace},
        "involvedObject": {
            "apiVersion": "v1", "kind": "Pod",
            "namespace": &*subject.namespace, "name": &*subject.name, "uid": &*subject.uid,
        },
        "type": if event.warning { "Warning" } else { "Normal" },
        "reason": event.reason, "action": event.action, "message": event.message,
        "eventTime": event.at.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string(),
        "reportingComponent": NAME, "reportingInstance": NAME,
        "source": {},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject() -> Subject {
        Subject { namespace: "n".into(), name: "p".into(), uid: "u".into(), generation: None, version: None }
    }

    #[test]
    fn a_long_message_is_told_in_part() {
        let reporter = Reporter::default();
        reporter.unschedulable(subject(), &"x".repeat(1 << 20), Nominated::Unchanged);
        let (_, status) = reporter.inner.next(&HashSet::new()).expect("one is to be written");
        let bytes = |text: &str| text.len();
        assert!(status["conditions"][0]["message"].as_str().map_or(0, bytes) <= 4 << 10);
        assert!(bytes(&reporter.inner.events.lock()[0].message) <= 4 << 10);
    }

    #[test]
    fn a_newer_condition_keeps_the_nomination_that_was_not_written() {
        let reporter = Reporter::default();
        let none = HashSet::new();
        let take = || reporter.inner.next(&none).expect("one is to be written");
        let told = |status: &Value| (status["conditions"][0]["message"].clone(), status.get(NOMINATED).cloned());
        reporter.unschedulable(subject(), "first", Nominated::Node("one"));
        assert!(reporter.inner.next(&HashSet::from([Uid::from("u")])).is_none(), "one at a time");
        reporter.unschedulable(subject(), "second", Nominated::Unchanged);
        let (failed, status) = take();
        assert_eq!(told(&status), (json!("second"), Some(json!("one"))));
        reporter.unschedulable(subject(), "third", Nominated::Unchanged);
        reporter.inner.put_back(failed.clone(), status.clone());
        assert_eq!(told(&take().1), (json!("third"), Some(json!("one"))));
        reporter.unschedulable(subject(), "fourth", Nominated::Nowhere);
        reporter.inner.put_back(failed.clone(), status.clone());
        assert_eq!(told(&take().1), (json!("fourth"), Some(Value::Null)), "what is newer counts");
        reporter.inner.put_back(failed, status);
        assert_eq!(told(&take().1), (json!("second"), Some(json!("one"))));
        reporter.unschedulable(subject(), "fifth", Nominated::Node("one"));
        reporter.withdrawn(subject());
        assert_eq!(told(&take().1), (json!("fifth"), Some(Value::Null)), "the condition is still to be written");
    }
}
