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

use http::{Method, Request, StatusCode, header};
use http_body_util::BodyExt as _;
use parking_lot::Mutex;
use serde_json::json;

use super::slot::{Slot, State};
use super::table::{Alarm, Pods};

/// Writes under way at the same time; pods beyond it wait in line, each once.
const IN_FLIGHT_MAX: usize = 64;
/// How long a start that is under way may hold back its pod's status.
const SETTLE: Duration = Duration::from_millis(100);
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
    /// Until when a start may settle.
    settle_until: Option<Duration>,
    failures: u32,
}

impl Report {
    /// The next write is the last.
    pub fn finalize(&mut self) {
        self.is_final = true;
        self.is_dirty = true;
    }
}

/// The line of pods to be written about.
#[derive(Default)]
pub(super) struct Reports(Mutex<Line>);

#[derive(Default)]
struct Line {
    in_flight: usize,
    waiting: VecDeque<Arc<Slot>>,
}

impl Reports {
    /// Whether nothing is under way.
    pub fn is_idle(&self) -> bool {
        let line = self.0.lock();
        line.in_flight == 0 && line.waiting.is_empty()
    }
}

/// How a request to the API server went.
enum Answer {
    Done,
    /// The object is gone, or another one has its name.
    Gone,
    /// The API server will never take it.
    Refused(String),
    /// Later, perhaps.
    Failed(String),
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
            let mut answer = Answer::Done;
            if let Some(body) = body {
                answer = self.patch_status(slot, body).await;
            }
            if is_final && matches!(answer, Answer::Done) {
                answer = self.delete(slot).await;
            }
            let mut state = slot.lock();
            let report = &mut state.report;
            match answer {
                Answer::Done | Answer::Gone => {
                    report.written = Some(hash);
                    report.failures = 0;
                    report.is_final &= !is_final;
                }
                Answer::Refused(message) => {
                    tracing::warn!(namespace = %slot.namespace, pod = %slot.name, message, "status refused");
                    report.written = Some(hash);
                    report.is_final &= !is_final;
                }
                Answer::Failed(message) => {
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
        if !state.report.is_dirty || state.core.is_forgotten() {
            state.report.is_under_way = false;
            return None;
        }
        state.report.is_dirty = false;
        let status = state.core.status(self.context.now());
        let body = json!({"metadata": {"uid": &*slot.uid}, "status": status}).to_string().into_bytes();
        let mut hasher = DefaultHasher::new();
        body.hash(&mut hasher);
        let hash = hasher.finish();
        let is_final = state.report.is_final;
        let is_new = state.report.written != Some(hash);
        Some((is_new.then_some(body), hash, is_final))
    }

    async fn patch_status(&self, slot: &Slot, body: Vec<u8>) -> Answer {
        let path = format!("/api/v1/namespaces/{}/pods/{}/status?fieldManager=kubelet", slot.namespace, slot.name);
        self.send(Method::PATCH, path, "application/strategic-merge-patch+json", body).await
    }

    async fn delete(&self, slot: &Slot) -> Answer {
        let body = json!({
            "kind": "DeleteOptions", "apiVersion": "v1",
            "gracePeriodSeconds": 0, "preconditions": {"uid": &*slot.uid},
        });
        let path = format!("/api/v1/namespaces/{}/pods/{}", slot.namespace, slot.name);
        self.send(Method::DELETE, path, "application/json", body.to_string().into_bytes()).await
    }

    /// Sends a request whose answer is only looked at when it is a refusal: decoding a pod to drop it costs more than
    /// the write.
    async fn send(&self, method: Method, path: String, content_type: &'static str, body: Vec<u8>) -> Answer {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::CONTENT_TYPE, content_type)
            .header(header::ACCEPT, "application/json")
            .body(kube::client::Body::from(body));
        let request = match request {
            Ok(request) => request,
            Err(error) => return Answer::Refused(error.to_string()),
        };
        let response = match self.context.client.send(request).await {
            Ok(response) => response,
            Err(error) => return Answer::Failed(error.to_string()),
        };
        let status = response.status();
        if status.is_success() {
            return Answer::Done;
        }
        let body = response.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        let message = String::from_utf8_lossy(&body).into_owned();
        match status {
            // A uid that is another one's is a conflict of that kind too.
            StatusCode::NOT_FOUND | StatusCode::GONE => Answer::Gone,
            StatusCode::CONFLICT if message.contains("Precondition failed") || message.contains("uid") => Answer::Gone,
            StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY | StatusCode::FORBIDDEN => {
                Answer::Refused(message)
            }
            _ => Answer::Failed(message),
        }
    }
}
