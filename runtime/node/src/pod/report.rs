//! Status writes: at most one under way per pod, a bounded number in all, each with the newest state, and none that
//! would change nothing.
//!
//! A pod whose start is about to be known is given [`SETTLE`] before it is written about, so that a pod usually becomes
//! Running and Ready in one write.

use std::collections::VecDeque;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash as _, Hasher as _};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::request::Builder;
use http::{Method, Request, StatusCode, header};
use http_body_util::BodyExt as _;
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::{Value, json};

use super::core::OWNED_CONDITIONS;
use super::slot::{Slot, State};
use super::table::{Alarm, Pods};

/// Writes under way at the same time; pods beyond it wait in line, each once.
const IN_FLIGHT_MAX: usize = 64;
/// How long a start that is under way may hold back its pod's status.
pub(crate) const SETTLE: Duration = Duration::from_millis(if cfg!(test) { 3_000 } else { 100 });
/// How often the API server is contradicted about one pod.
const RECONCILE_EVERY: Duration = Duration::from_secs(1);
/// An answer of the API server is waited for so long: one that never comes would end what is told about the pod, and take a place
/// of the line. Everything that is sent may be sent twice.
const ANSWER_MAX: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 30 });
/// First wait after a write that failed; it doubles up to the second one.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(10);

/// What is known about a pod's status writes.
#[derive(Debug, Default)]
pub(super) struct Report {
    /// Something may have changed since the last write.
    is_dirty: bool,
    /// A write is under way or in line.
    is_under_way: bool,
    /// After the next write the object is deleted.
    is_final: bool,
    /// Of the body that was written last.
    written: Option<u64>,
    /// Of what it said, as far as the API server's answer is compared with it.
    print: Option<u64>,
    /// The version of the object that the last write has made.
    revision: Option<u64>,
    /// The object was seen while a write was under way, so that it could not be compared.
    is_unseen: bool,
    /// When the API server was last found to say something else, and until when no write follows from that.
    hold_until: Option<Duration>,
    /// Until when a start may settle.
    settle_until: Option<Duration>,
    failures: u32,
    /// A write failed although the API server answers, and is tried again: it is waited for like one under way.
    is_retrying: bool,
}

impl Report {
    /// The next write is the last.
    pub fn finalize(&mut self) {
        self.is_final = true;
        self.is_dirty = true;
    }

    /// How long no write may follow yet.
    fn held(&self, now: Duration) -> Option<Duration> {
        self.hold_until?.checked_sub(now).filter(|wait| !wait.is_zero())
    }
}

/// The line of pods to be written about.
#[derive(Default)]
pub(super) struct Reports(Mutex<Line>);

#[derive(Default)]
struct Line {
    in_flight: usize,
    /// Pods whose write waits for a timer, and that the API server may take.
    retrying: usize,
    waiting: VecDeque<Arc<Slot>>,
}

impl Reports {
    /// Whether nothing is under way, or is tried again soon. Who does not answer at all is not waited for.
    pub fn is_idle(&self) -> bool {
        let line = self.0.lock();
        line.in_flight == 0 && line.retrying == 0 && line.waiting.is_empty()
    }
}

/// How a request to the API server went.
enum Answer {
    /// The object has this version now.
    Done(Option<u64>),
    /// The object is gone, or another one has its name.
    Gone,
    /// The API server will never take it.
    Refused(String),
    /// Later, perhaps. Whether somebody answered.
    Failed { message: String, is_answered: bool },
}

impl Pods {
    /// Something may have changed; called under the slot's lock after each input.
    pub(super) fn report(self: &Arc<Self>, slot: &Arc<Slot>, state: &mut State) {
        state.report.is_dirty = true;
        if !state.core.is_settling() || state.report.is_final {
            state.report.settle_until = None;
            return self.report_now(slot, state);
        }
        let now = self.context.started.elapsed();
        match state.report.settle_until {
            Some(until) if until <= now => self.report_now(slot, state),
            Some(_) => {}
            None => {
                state.report.settle_until = Some(now + SETTLE);
                self.timers.set((slot.uid.clone(), Alarm::Settled), SETTLE);
            }
        }
    }

    /// Writes the status if it may have changed and no write is under way.
    pub(super) fn report_now(self: &Arc<Self>, slot: &Arc<Slot>, state: &mut State) {
        if !state.report.is_dirty || state.report.is_under_way || state.core.is_forgotten() {
            return;
        }
        let now = self.context.started.elapsed();
        if let Some(wait) = state.report.held(now) {
            self.timers.set((slot.uid.clone(), Alarm::Report), wait);
            return;
        }
        state.report.is_under_way = true;
        let mut line = self.reports.0.lock();
        if line.in_flight >= IN_FLIGHT_MAX {
            line.waiting.push_back(slot.clone());
            return;
        }
        line.in_flight += 1;
        drop(line);
        self.context.tasks.spawn(self.clone().write_line(slot.clone()));
    }

    /// The API server says something about a pod: when it is not what the node has said last, the node says it again. A controller
    /// that believed the node gone has marked its pods as not ready, and nobody else would take that back.
    pub(super) fn reconcile(&self, state: &mut State) {
        match state.report.is_under_way {
            true => state.report.is_unseen = true,
            false => self.compare(state),
        }
    }

    fn compare(&self, state: &mut State) {
        let (report, pod) = (&mut state.report, state.core.pod());
        // Whether something is to be written anyway does not matter: that may turn out to be what was written already.
        let Some(print) = report.print.filter(|_| !report.is_final) else { return };
        let seen = pod.metadata.resource_version.as_deref().and_then(|text| text.parse::<u64>().ok());
        // What the object was before the last write is no answer to it.
        if let (Some(seen), Some(own)) = (seen, report.revision)
            && seen < own
        {
            return;
        }
        let status = serde_json::to_value(&pod.status).unwrap_or_default();
        if print == print_of(&status) {
            return;
        }
        report.written = None;
        report.is_dirty = true;
        // Two who do not agree do not go on for ever at full speed.
        let now = self.context.started.elapsed();
        let wait = if report.hold_until.is_some_and(|until| until + RECONCILE_EVERY > now) {
            RECONCILE_EVERY
        } else {
            Duration::ZERO
        };
        report.hold_until = Some(now + wait);
    }

    /// Whether a failed write about a pod is to be waited for; under its lock.
    pub(super) fn retries(&self, report: &mut Report, is_retrying: bool) {
        if std::mem::replace(&mut report.is_retrying, is_retrying) == is_retrying {
            return;
        }
        let mut line = self.reports.0.lock();
        line.retrying = if is_retrying { line.retrying + 1 } else { line.retrying - 1 };
    }

    /// Writes about one pod, then about those that wait in line.
    async fn write_line(self: Arc<Self>, mut slot: Arc<Slot>) {
        loop {
            self.write(&slot).await;
            let mut line = self.reports.0.lock();
            match line.waiting.pop_front() {
                Some(next) => slot = next,
                None => {
                    line.in_flight -= 1;
                    drop(line);
                    self.nudge();
                    return;
                }
            }
        }
    }

    /// Writes about a pod until there is nothing new.
    async fn write(self: &Arc<Self>, slot: &Arc<Slot>) {
        loop {
            let Some((body, hash, is_final)) = self.next_body(slot) else { return };
            let mut answer = Answer::Done(None);
            if let Some(body) = body {
                answer = self.patch_status(slot, body).await;
            }
            if is_final && let Answer::Refused(message) = &answer {
                tracing::warn!(namespace = %slot.namespace, pod = %slot.name, message, "last status refused: the pod goes without it");
            }
            if is_final && matches!(answer, Answer::Done(_) | Answer::Refused(_)) {
                answer = match self.delete(slot).await {
                    // Nobody else would delete it.
                    Answer::Refused(message) => Answer::Failed { message, is_answered: true },
                    answer => answer,
                };
            }
            let mut state = slot.lock();
            // Of one that was forgotten meanwhile nothing is tried again.
            let is_waited_for =
                matches!(answer, Answer::Failed { is_answered: true, .. }) && !state.core.is_forgotten();
            let report = &mut state.report;
            self.retries(report, is_waited_for);
            match answer {
                Answer::Done(revision) => {
                    report.revision = revision.or(report.revision);
                    report.written = Some(hash);
                    report.failures = 0;
                    report.is_final &= !is_final;
                    if std::mem::take(&mut report.is_unseen) {
                        self.compare(&mut state);
                    }
                }
                Answer::Gone => {
                    report.written = Some(hash);
                    report.failures = 0;
                    report.is_final &= !is_final;
                }
                Answer::Refused(message) => {
                    tracing::warn!(namespace = %slot.namespace, pod = %slot.name, message, "status refused");
                    report.written = Some(hash);
                    report.is_final &= !is_final;
                }
                Answer::Failed { message, .. } => {
                    tracing::debug!(namespace = %slot.namespace, pod = %slot.name, message, "status not written");
                    let wait = RETRY_FIRST.saturating_mul(1 << report.failures.min(10)).min(RETRY_MAX);
                    report.failures += 1;
                    report.is_dirty = true;
                    report.is_under_way = false;
                    self.timers.set((slot.uid.clone(), Alarm::Report), wait);
                    return;
                }
            }
        }
    }

    /// What is to be written now: the body unless it is the last one again, its hash, and whether the object goes after
    /// that. `None` when there is nothing to do; the pod has then left the line.
    #[allow(clippy::type_complexity, reason = "used once, right above")]
    fn next_body(&self, slot: &Slot) -> Option<(Option<Vec<u8>>, u64, bool)> {
        let mut state = slot.lock();
        // Of the pods of a node that is another process says how they are.
        let is_told = self.context.replaced.borrow().is_none();
        if !state.report.is_dirty || state.core.is_forgotten() || !is_told {
            state.report.is_under_way = false;
            self.retries(&mut state.report, false);
            return None;
        }
        let now = self.context.started.elapsed();
        if let Some(wait) = state.report.held(now) {
            state.report.is_under_way = false;
            self.timers.set((slot.uid.clone(), Alarm::Report), wait);
            return None;
        }
        state.report.is_dirty = false;
        let status = state.core.status(self.context.now());
        let body = json!({"metadata": {"uid": &*slot.uid}, "status": &status}).to_string().into_bytes();
        let mut hasher = DefaultHasher::new();
        body.hash(&mut hasher);
        let hash = hasher.finish();
        let is_final = state.report.is_final;
        let is_new = state.report.written != Some(hash);
        state.report.print = Some(print_of(&status));
        Some((is_new.then_some(body), hash, is_final))
    }

    async fn patch_status(&self, slot: &Slot, body: Vec<u8>) -> Answer {
        let path = format!("/api/v1/namespaces/{}/pods/{}/status?fieldManager=kubelet", slot.namespace, slot.name);
        self.send(slot, Method::PATCH, path, ("application/strategic-merge-patch+json", body)).await
    }

    async fn delete(&self, slot: &Slot) -> Answer {
        let body = json!({
            "kind": "DeleteOptions", "apiVersion": "v1",
            "gracePeriodSeconds": 0, "preconditions": {"uid": &*slot.uid},
        });
        let path = format!("/api/v1/namespaces/{}/pods/{}", slot.namespace, slot.name);
        self.send(slot, Method::DELETE, path, ("application/json", body.to_string().into_bytes())).await
    }

    /// Sends a request whose answer is only looked at when it is a refusal: decoding a pod to drop it costs more than
    /// the write.
    async fn send(
        &self,
        slot: &Slot,
        method: Method,
        path: String,
        (content_type, body): (&'static str, Vec<u8>),
    ) -> Answer {
        let request = Request::builder().method(method).uri(path).header(header::CONTENT_TYPE, content_type);
        let (status, body) = match self.ask(request.header(header::ACCEPT, "application/json"), body).await {
            Ok(answered) => answered,
            Err(answer) => return answer,
        };
        if status.is_success() {
            let version = metadata_in(&body).and_then(|written| written.resource_version);
            return Answer::Done(version.and_then(|version| version.parse().ok()));
        }
        let message = String::from_utf8_lossy(&body).into_owned();
        match status {
            StatusCode::NOT_FOUND | StatusCode::GONE => Answer::Gone,
            // A uid that is another one's is a conflict, and so is much that passes: the words are nobody's promise.
            StatusCode::CONFLICT if self.is_gone(slot).await => Answer::Gone,
            // What is forbidden now may be allowed once somebody has mended a rule. What is too large stays so.
            StatusCode::BAD_REQUEST | StatusCode::PAYLOAD_TOO_LARGE | StatusCode::UNPROCESSABLE_ENTITY => {
                Answer::Refused(message)
            }
            _ => Answer::Failed { message, is_answered: true },
        }
    }

    /// Whether the API server says that there is no such pod, or another one of its name.
    async fn is_gone(&self, slot: &Slot) -> bool {
        let path = format!("/api/v1/namespaces/{}/pods/{}", slot.namespace, slot.name);
        let accept = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json";
        let request = Request::builder().method(Method::GET).uri(path).header(header::ACCEPT, accept);
        match self.ask(request, Vec::new()).await {
            Ok((StatusCode::NOT_FOUND, _)) => true,
            Ok((status, body)) if status.is_success() => {
                metadata_in(&body).and_then(|found| found.uid).is_some_and(|uid| *uid != *slot.uid)
            }
            _ => false,
        }
    }

    /// Sends a request and waits for its answer, for so long; fails as such a one is to be taken.
    async fn ask(&self, request: Builder, body: Vec<u8>) -> Result<(StatusCode, Bytes), Answer> {
        let request = request.body(kube::client::Body::from(body));
        let request = request.map_err(|error| Answer::Refused(error.to_string()))?;
        let answered = async {
            let response = self.context.client.send(request).await.map_err(|error| error.to_string())?;
            let status = response.status();
            // What it is, the status says; the rest of an answer that broke off is not needed.
            Ok((status, response.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default()))
        };
        let late = || Err("the API server has not answered in time".to_owned());
        let answer = tokio::time::timeout(ANSWER_MAX, answered).await.unwrap_or_else(|_| late());
        answer.map_err(|message| Answer::Failed { message, is_answered: false })
    }
}

/// As much of an object in a response as is looked at.
#[derive(Deserialize)]
struct Answered {
    metadata: Metadata,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    uid: Option<String>,
    resource_version: Option<String>,
}

fn metadata_in(body: &[u8]) -> Option<Metadata> {
    serde_json::from_slice(body).ok().map(|answered: Answered| answered.metadata)
}

/// What of a status the node answers for, as a number: phase, its conditions, its containers. The same for what it writes
/// and for what it reads.
fn print_of(status: &Value) -> u64 {
    let mut hasher = DefaultHasher::new();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    (text(&status["phase"]), text(&status["reason"])).hash(&mut hasher);
    let conditions = status["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    for name in OWNED_CONDITIONS {
        let found = conditions.iter().find(|condition| condition["type"] == name).unwrap_or(&Value::Null);
        (name, text(&found["status"]), text(&found["reason"])).hash(&mut hasher);
    }
    for list in ["initContainerStatuses", "containerStatuses", "ephemeralContainerStatuses"] {
        let containers = status[list].as_array().map(Vec::as_slice).unwrap_or_default();
        let mut shown: Vec<_> = containers
            .iter()
            .map(|container| {
                let state = &container["state"];
                let (kind, detail) = match state {
                    _ if state["running"].is_object() => ("running", text(&state["running"]["startedAt"])),
                    _ if state["terminated"].is_object() => ("terminated", state["terminated"]["exitCode"].to_string()),
                    _ => ("waiting", text(&state["waiting"]["reason"])),
                };
                let flags =
                    (container["ready"] == true, container["started"] == true, container["restartCount"].as_u64());
                (text(&container["name"]), flags, kind, detail, text(&container["containerID"]))
            })
            .collect();
        shown.sort();
        shown.hash(&mut hasher);
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compares_what_the_node_answers_for() {
        let status = |ready: &str, extra: Value| {
            json!({
                "phase": "Running", "conditions": [
                    {"type": "Ready", "status": ready, "reason": null, "lastProbeTime": null},
                    {"type": "Other", "status": extra},
                ],
                "containerStatuses": [{"name": "c", "ready": true, "state": {"running": {"startedAt": "x"}}}],
            })
        };
        let own = print_of(&status("True", json!("a")));
        assert_eq!(own, print_of(&status("True", json!("b"))), "a condition of somebody else");
        assert_ne!(own, print_of(&status("False", json!("a"))));
        let read: k8s_openapi::api::core::v1::PodStatus =
            serde_json::from_value(json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}))
                .unwrap();
        let written = json!({
            "phase": "Running", "reason": null, "containerStatuses": [],
            "conditions": [{"type": "Ready", "status": "True", "reason": null, "message": null}],
        });
        assert_eq!(print_of(&written), print_of(&serde_json::to_value(read).unwrap()), "null is nothing");
    }

    #[test]
    fn the_version_of_an_object_is_its_own() {
        let version = |body: &[u8]| metadata_in(body).and_then(|metadata| metadata.resource_version);
        let body = br#"{"kind":"Pod","metadata":{"annotations":{"resourceVersion":"99"},"resourceVersion":"42"}}"#;
        assert_eq!(version(body).as_deref(), Some("42"));
        assert_eq!(version(b"{}"), None);
    }
}
