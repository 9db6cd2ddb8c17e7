//! CertificateSigningRequests: those of nodes for themselves are approved, approved ones are signed, and old ones go; so do those for
//! pods ([`pods`]), which others sign.
//!
//! [`plan`] decides. The cluster's authority is not known here: what reads requests and signs them is lent ([`Signer`]).

mod plan;
mod pods;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use coracle_api::pem;
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::client::{self, CERTIFICATE_SIGNING_REQUESTS, Client, DeleteOptions};
use crate::informer::{Change, Informer, Key, Object as _, Store};
use crate::queue::{Next, Queue, Reconciler};
use crate::{Error, now_in_seconds};

use plan::Step;
pub(crate) use pods::Cleaner;

/// Between looks at one request in a storm.
const SPACING: Duration = Duration::from_millis(100);
/// Longest life of a certificate (the reference's `--cluster-signing-duration`), and of one that says nothing.
const LIFE_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// What a request asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// Common name of the subject.
    pub common_name: String,
    /// Its organizations, in their order.
    pub organizations: Vec<String>,
    /// Names of hosts.
    pub dns_names: Vec<String>,
    /// Addresses.
    pub addresses: Vec<std::net::IpAddr>,
    /// E-mail addresses.
    pub emails: Vec<String>,
    /// URIs.
    pub uris: Vec<String>,
}

/// Reads requests for certificates (PKCS #10, DER), and signs them with the cluster's authority. Quick: it is called on the
/// controllers' thread.
pub trait Signer: fmt::Debug + Send + Sync {
    /// What a request asks for; why it cannot be read, or is not signed with its own key.
    fn read(&self, request: &[u8]) -> Result<Asked, String>;
    /// A certificate in PEM for the subject, names and key of a request, for these usages (`client auth` …) and so long.
    fn sign(&self, request: &[u8], usages: &[String], life: Duration) -> Result<String, String>;
    /// When a certificate in PEM ends, in seconds since 1970.
    fn ends(&self, certificate: &[u8]) -> Option<i64>;
}

/// Approves, signs and deletes requests.
pub(crate) struct Controller {
    client: Client,
    signer: Option<Arc<dyn Signer>>,
    queue: Queue<Key>,
    requests: Arc<Store<CertificateSigningRequest>>,
}

impl Controller {
    /// Without a signer it only looks.
    pub(crate) fn new(
        client: Client,
        signer: Option<Arc<dyn Signer>>,
        requests: &mut Informer<CertificateSigningRequest>,
    ) -> Arc<Self> {
        let queue: Queue<Key> = Queue::new(SPACING);
        requests.on_change({
            let queue = queue.clone();
            move |change| match change {
                Change::Deleted(_) => {}
                change => queue.add(&change.object().key()),
            }
        });
        Arc::new(Self { client, signer, queue, requests: requests.store() })
    }
}

#[derive(Deserialize)]
struct Review {
    #[serde(default)]
    status: ReviewStatus,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct ReviewStatus {
    allowed: bool,
}

impl Reconciler for Controller {
    type Key = Key;
    const NAME: &'static str = "certificatesigningrequest";
    const WORKERS: usize = 2;

    fn queue(&self) -> &Queue<Key> {
        &self.queue
    }

    async fn reconcile(self: Arc<Self>, key: Key) -> Result<Next, Error> {
        let (Some(request), Some(signer)) = (self.requests.get(&key), &self.signer) else { return Ok(Next::OnEvent) };
        if request.is_deleting() {
            return Ok(Next::OnEvent);
        }
        // What is checked and what is signed are the same bytes.
        let der = pem::request(&request.spec.request.0).map_err(str::to_owned);
        let asked = der.as_ref().map_err(String::clone).and_then(|der| signer.read(der));
        let issued = request.status.as_ref().and_then(|status| status.certificate.as_ref());
        let ends = issued.filter(|bytes| !bytes.0.is_empty()).and_then(|bytes| signer.ends(&bytes.0));
        let ends = ends.and_then(|seconds| Timestamp::from_second(seconds).ok());
        let now = now_in_seconds();
        match plan::plan(&request, asked.as_ref().map_err(String::as_str), ends, now) {
            Step::Nothing => {}
            Step::Approve(ways) => {
                for (way, message) in ways {
                    if self.may(&request, way).await? {
                        self.condition(&request, "approval", "Approved", "AutoApproved", message).await?;
                        break;
                    }
                }
            }
            Step::Sign => {
                let seconds = request.spec.expiration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
                let life = seconds.map_or(LIFE_MAX, Duration::from_secs).min(LIFE_MAX);
                let usages = request.spec.usages.clone().unwrap_or_default();
                match der.and_then(|der| signer.sign(&der, &usages, life)) {
                    Ok(pem) => {
                        let certificate = ByteString(pem.into_bytes());
                        self.write(&request, "status", json!({ "certificate": certificate })).await?;
                    }
                    Err(why) => self.condition(&request, "status", "Failed", "SignerValidationFailure", &why).await?,
                }
            }
            Step::Fail(why) => self.condition(&request, "status", "Failed", "SignerValidationFailure", &why).await?,
            Step::Delete => {
                let options = DeleteOptions::of(request.uid());
                match self.client.delete(CERTIFICATE_SIGNING_REQUESTS, &key, &options).await {
                    Err(error) if client::is_conflict(&error) => {}
                    deleted => deleted.map_err(Error::api("delete a request for a certificate"))?,
                }
                return Ok(Next::OnEvent);
            }
        }
        let left = plan::deadline(&request, ends).map(|at| at.duration_since(now));
        let left = left.and_then(|left| Duration::try_from(left).ok());
        Ok(left.map_or(Next::OnEvent, |left| Next::After(left.max(Duration::from_secs(1)))))
    }
}

impl Controller {
    /// Whether whoever asks may have a request of this kind approved.
    async fn may(&self, request: &CertificateSigningRequest, way: &str) -> Result<bool, Error> {
        let spec = &request.spec;
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
            "spec": {
                "user": spec.username, "uid": spec.uid, "groups": spec.groups, "extra": spec.extra,
                "resourceAttributes": {
                    "group": "certificates.k8s.io", "resource": "certificatesigningrequests", "subresource": way,
                    "verb": "create", "version": "*",
                },
            },
        });
        let path = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
        let review: Review = self.client.post(path, &review).await.map_err(Error::api("ask what an account may do"))?;
        Ok(review.status.allowed)
    }

    /// Adds a condition, through this subresource.
    async fn condition(
        &self,
        request: &CertificateSigningRequest,
        door: &str,
        kind: &str,
        reason: &str,
        message: &str,
    ) -> Result<(), Error> {
        let known = request.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
        let mut conditions: Vec<Value> = known.iter().map(|condition| json!(condition)).collect();
        let now = Time(now_in_seconds());
        conditions.push(json!({
            "type": kind, "status": "True", "reason": reason, "message": message, "lastUpdateTime": now,
            "lastTransitionTime": now,
        }));
        self.write(request, door, json!({ "conditions": conditions })).await
    }

    async fn write(&self, request: &CertificateSigningRequest, door: &str, status: Value) -> Result<(), Error> {
        let metadata = &request.metadata;
        let resource = CERTIFICATE_SIGNING_REQUESTS;
        let path = client::path(resource.version, resource.plural, "", &request.key().name);
        let guard = json!({"uid": metadata.uid, "resourceVersion": metadata.resource_version});
        let patch = json!({ "metadata": guard, "status": status });
        let patched = self.client.patch_at(&format!("{path}/{door}"), &patch).await;
        patched.map(drop).map_err(Error::api("decide about a request for a certificate"))
    }
}
