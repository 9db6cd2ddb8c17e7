//! Jobs that have finished go when `spec.ttlSecondsAfterFinished` is over, and their pods with them.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::Job;

use crate::Error;
use crate::client::{self, Client, DeleteOptions, JOBS};
use crate::informer::{Change, Informer, Key, Object as _, Store};
use crate::job;
use crate::queue::{Next, Queue, Reconciler};

/// The controller of Jobs that have finished.
pub(crate) struct Controller {
    client: Client,
    queue: Queue<Key>,
    jobs: Arc<Store<Job>>,
}

impl Controller {
    /// Listens to Jobs.
    pub(crate) fn new(client: Client, jobs: &mut Informer<Job>) -> Arc<Self> {
        let queue = Queue::new(Duration::from_millis(20));
        jobs.on_change({
            let queue = queue.clone();
            move |change| {
                let job = change.object();
                if !matches!(change, Change::Deleted(_)) && left(job, Timestamp::UNIX_EPOCH).is_some() {
                    queue.add(&job.key());
                }
            }
        });
        Arc::new(Self { client, queue, jobs: jobs.store() })
    }
}

impl Reconciler for Controller {
    type Key = Key;
    const NAME: &'static str = "ttl-after-finished";
    const WORKERS: usize = 4;

    fn queue(&self) -> &Queue<Key> {
        &self.queue
    }

    async fn reconcile(self: Arc<Self>, key: Key) -> Result<Next, Error> {
        let left = |job: &Job| left(job, Timestamp::now());
        match self.jobs.get(&key).and_then(|job| left(&job)) {
            None => return Ok(Next::OnEvent),
            Some(wait) if !wait.is_zero() => return Ok(Next::After(wait)),
            Some(_) => {}
        }
        // The time may have been changed meanwhile: only what is true now counts.
        let job: Job = match self.client.fetch(JOBS, &key).await {
            Err(error) if client::is_not_found(&error) => return Ok(Next::OnEvent),
            other => other.map_err(Error::api("read the Job again"))?,
        };
        match left(&job) {
            None => Ok(Next::OnEvent),
            Some(wait) if !wait.is_zero() => Ok(Next::After(wait)),
            Some(_) => {
                let options = DeleteOptions { propagation_policy: Some("Foreground"), ..DeleteOptions::of(job.uid()) };
                let deleted = self.client.delete(JOBS, &key, &options).await;
                deleted.map_err(Error::api("delete a finished Job"))?;
                Ok(Next::OnEvent)
            }
        }
    }
}

/// How much longer a finished Job stays; none when it has no such time, or goes already.
fn left(job: &Job, now: Timestamp) -> Option<Duration> {
    let seconds = job.spec.as_ref()?.ttl_seconds_after_finished?;
    let finished = job::finished(job)?.last_transition_time.as_ref()?.0;
    if job.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let end = finished.checked_add(SignedDuration::from_secs(i64::from(seconds))).unwrap_or(Timestamp::MAX);
    let left = end.duration_since(now).max(SignedDuration::ZERO);
    // No number of seconds that somebody wrote reaches a clock as it is.
    Some(left.unsigned_abs().min(Duration::from_secs(365 * 24 * 3600)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn counts_from_when_it_was_finished() {
        let job = |spec: serde_json::Value, condition: &str, meta: serde_json::Value| -> Job {
            let condition = json!({"type": condition, "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"});
            let template = json!({"spec": {"containers": []}});
            let mut job = json!({"metadata": meta, "spec": spec, "status": {"conditions": [condition]}});
            job["spec"]["template"] = template;
            serde_json::from_value(job).expect("a Job")
        };
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().expect("a time");
        for (spec, condition, meta, expected) in [
            (json!({"ttlSecondsAfterFinished": 100}), "Complete", json!({}), Some(40)),
            (json!({"ttlSecondsAfterFinished": 100}), "Failed", json!({}), Some(40)),
            (json!({"ttlSecondsAfterFinished": 0}), "Complete", json!({}), Some(0)),
            (json!({"ttlSecondsAfterFinished": 60}), "Complete", json!({}), Some(0)),
            (json!({"ttlSecondsAfterFinished": i32::MAX}), "Complete", json!({}), Some(365 * 24 * 3600)),
            (json!({"ttlSecondsAfterFinished": 100}), "Suspended", json!({}), None),
            (json!({}), "Complete", json!({}), None),
            (
                json!({"ttlSecondsAfterFinished": 100}),
                "Complete",
                json!({"deletionTimestamp": "2026-01-01T00:00:30Z"}),
                None,
            ),
        ] {
            let left = left(&job(spec.clone(), condition, meta), now).map(|left| left.as_secs());
            assert_eq!(left, expected, "{spec} {condition}");
        }
    }
}
