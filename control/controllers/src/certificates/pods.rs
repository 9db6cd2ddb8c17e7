//! PodCertificateRequests go a quarter of an hour after they were made: whoever asked has its answer by then, or asks again.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::certificates::v1::PodCertificateRequest;

use crate::Error;
use crate::client::{self, Client, DeleteOptions, POD_CERTIFICATE_REQUESTS};
use crate::informer::{Change, Informer, Key, Object as _, Store};
use crate::queue::{Next, Queue, Reconciler};

/// How long a request stays (the reference's `podcertificaterequestcleaner`).
const STAYS: SignedDuration = SignedDuration::from_mins(15);

/// Deletes old requests.
pub(crate) struct Cleaner {
    client: Client,
    queue: Queue<Key>,
    requests: Arc<Store<PodCertificateRequest>>,
}

impl Cleaner {
    /// Listens to requests.
    pub(crate) fn new(client: Client, requests: &mut Informer<PodCertificateRequest>) -> Arc<Self> {
        let queue: Queue<Key> = Queue::new(Duration::from_millis(20));
        requests.on_change({
            let queue = queue.clone();
            move |change| {
                if matches!(change, Change::Added(_)) {
                    queue.add(&change.object().key());
                }
            }
        });
        Arc::new(Self { client, queue, requests: requests.store() })
    }
}

impl Reconciler for Cleaner {
    type Key = Key;
    const NAME: &'static str = "podcertificaterequest-cleaner";
    const WORKERS: usize = 2;

    fn queue(&self) -> &Queue<Key> {
        &self.queue
    }

    async fn reconcile(self: Arc<Self>, key: Key) -> Result<Next, Error> {
        let Some(request) = self.requests.get(&key) else { return Ok(Next::OnEvent) };
        let left = left(&request, Timestamp::now());
        if !left.is_zero() {
            return Ok(Next::After(left));
        }
        match self.client.delete(POD_CERTIFICATE_REQUESTS, &key, &DeleteOptions::of(request.uid())).await {
            Err(error) if client::is_conflict(&error) || client::is_not_found(&error) => {}
            deleted => deleted.map_err(Error::api("delete a request for a pod's certificate"))?,
        }
        Ok(Next::OnEvent)
    }
}

/// How much longer a request stays.
fn left(request: &PodCertificateRequest, now: Timestamp) -> Duration {
    let made = request.metadata.creation_timestamp.as_ref().map_or(now, |time| time.0);
    let left = made.checked_add(STAYS).unwrap_or(Timestamp::MAX).duration_since(now);
    // A clock that went back does not keep it for ever.
    left.clamp(SignedDuration::ZERO, STAYS).unsigned_abs()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_request_stays_for_a_quarter_of_an_hour() {
        let made = |at: &str| -> PodCertificateRequest {
            let spec = json!({"signerName": "a.b/c", "podName": "p", "podUID": "1", "serviceAccountName": "s",
                "serviceAccountUID": "2", "nodeName": "n", "nodeUID": "3", "stubPKCS10Request": ""});
            serde_json::from_value(json!({"metadata": {"creationTimestamp": at}, "spec": spec})).expect("a request")
        };
        let now: Timestamp = "2026-01-01T01:00:00Z".parse().expect("a time");
        for (at, seconds) in [
            ("2026-01-01T01:00:00Z", 900),
            ("2026-01-01T00:50:00Z", 300),
            ("2026-01-01T00:45:00Z", 0),
            ("2025-01-01T00:00:00Z", 0),
            ("2027-01-01T00:00:00Z", 900),
        ] {
            assert_eq!(left(&made(at), now).as_secs(), seconds, "{at}");
        }
    }
}
