//! Certificates for pods, by the API's PodCertificateRequest: the node makes a key and asks, whoever signs for the signer answers, and
//! the key never leaves the node.
//!
//! ```text
//!  none ─► Waiting ─► Issued ─(its time has come)─► Issued, and the next is waited for ─► Issued
//!             └─► Refused, and stays so
//! ```
//! Nothing else of a pod waits for who signs. One that has run out is nobody's beginning: a container that is started waits for the next.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use coracle_api::pem;
use coracle_discovery::Again;
use futures::{StreamExt as _, TryStreamExt as _};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{PodCertificateRequest, PodCertificateRequestSpec};
use k8s_openapi::api::core::v1::{Node, Pod, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Api;
use kube::api::PostParams;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, watcher};
use parking_lot::Mutex;
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use tokio::time::timeout;

use crate::volumes::{CertificateRequest, Credential};

/// How long an answer is waited for at once, of the API server and of who signs. Whoever wants it comes again.
const ANSWER_MAX: Duration = Duration::from_secs(if cfg!(test) { 2 } else { 10 });
/// A request that is older is gone (the reference's `podcertificaterequestcleaner`).
const STAYS: SignedDuration = SignedDuration::from_mins(15);
/// The reference's `defaultMaxExpirationSeconds`.
const SECONDS_DEFAULT: i32 = 24 * 3600;
/// Pods that were started together do not all ask again at the same moment: each comes up to so many seconds late.
const LATE_SECONDS_MAX: i64 = 300;
/// After a refresh that came to nothing.
const RETRY: SignedDuration = SignedDuration::from_secs(60);

/// Certificates that one pod may have.
const CERTIFICATES_MAX: usize = 100;

/// Those of a pod, also the ones that it waits for.
#[derive(Default)]
pub struct PodCertificates(Mutex<HashMap<CertificateRequest, Arc<Certificate>>>);

impl PodCertificates {
    /// What there is of one that is wanted, from now on.
    pub fn want(&self, wanted: &CertificateRequest) -> Result<Arc<Certificate>, CertificateError> {
        let mut all = self.0.lock();
        if let Some(known) = all.get(wanted) {
            return Ok(known.clone());
        }
        if all.len() >= CERTIFICATES_MAX {
            return Err(CertificateError::TooMany);
        }
        Ok(all.entry(wanted.clone()).or_default().clone())
    }

    /// The last one that was issued.
    pub fn credential(&self, wanted: &CertificateRequest) -> Option<Credential> {
        let known = self.0.lock().get(wanted).cloned()?;
        match &*known.state.lock() {
            Some(State::Issued { credential, .. }) => Some(credential.clone()),
            _ => None,
        }
    }

    /// When the next is asked for.
    pub fn refresh_at(&self) -> Option<Timestamp> {
        let all = self.0.lock();
        let moments = all.values().filter_map(|certificate| match &*certificate.state.lock() {
            Some(State::Issued { refresh_at, .. }) => Some(*refresh_at),
            _ => None,
        });
        moments.min()
    }

    /// None is wanted any more.
    pub fn forget(&self) {
        self.0.lock().clear();
    }
}

/// What a certificate is wanted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// To begin with it: one that is good will do, whatever its age.
    Good,
    /// To go on with it: its time may have come, and the next is waited for.
    Fresh,
}

/// A certificate that a pod wants, as far as it is known.
#[derive(Default)]
pub struct Certificate {
    /// Whoever asks holds it, so that it is asked for once.
    turn: tokio::sync::Mutex<()>,
    state: Mutex<Option<State>>,
}

enum State {
    /// It was asked for.
    Waiting(Pending),
    /// It is there.
    Issued {
        /// The key and the certificates.
        credential: Credential,
        /// When the next is asked for.
        refresh_at: Timestamp,
        /// From then on it is good for nothing.
        expires_at: Timestamp,
        /// The next, if it was asked for.
        next: Option<Pending>,
    },
    /// It was denied, or could not be signed: why. It is not asked for again, as with a kubelet.
    Refused(String),
}

/// A request that nobody has answered.
#[derive(Clone)]
struct Pending {
    name: String,
    key: String,
    since: Timestamp,
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// The API server refused, or could not be reached.
    #[error("failed to ask for a certificate")]
    Api(#[from] kube::Error),
    /// No key can be made.
    #[error("failed to make a key")]
    Key(#[from] rcgen::Error),
    /// The node has no keys of this type.
    #[error("keys of type {0} are not supported by this node, which makes ECDSAP256, ECDSAP384 and ED25519")]
    KeyType(String),
    /// The last has run out, and the API server or who signs has not given another.
    #[error("the certificate has expired, and there is no other yet")]
    Expired,
    /// There was no answer to the request for it.
    #[error("the API server has not answered in time")]
    Late,
    /// The pod asks for too many.
    #[error("the pod asks for more than {CERTIFICATES_MAX} certificates")]
    TooMany,
    /// Whoever is to sign has not answered.
    #[error("PodCertificateRequest {0:?} is not answered yet")]
    Unanswered(String),
    /// The request went before it was answered.
    #[error("PodCertificateRequest {0:?} has gone")]
    Gone(String),
    /// The answer is no.
    #[error("{0}")]
    Refused(String),
}

enum Answer {
    Issued { chain: String, refresh_at: Timestamp, expires_at: Timestamp },
    Refused(String),
    Gone,
}

impl Certificate {
    /// Has a certificate that is good for this, as far as that can be had now; `now` is on the wall's clock. What was reached stays, also
    /// when this is dropped.
    pub async fn provide(
        &self,
        client: &kube::Client,
        node: &str,
        pod: &Pod,
        wanted: &CertificateRequest,
        need: Need,
        now: Timestamp,
    ) -> Result<(), CertificateError> {
        // Who can begin with it does not wait for who refreshes it.
        if self.is_enough(need, now) {
            return Ok(());
        }
        let _turn = self.turn.lock().await;
        if self.is_enough(need, now) {
            return Ok(());
        }
        let pending = match &*self.state.lock() {
            Some(State::Refused(why)) => return Err(CertificateError::Refused(why.clone())),
            // There was a try a moment ago.
            Some(State::Issued { refresh_at, next: None, .. }) if *refresh_at > now => {
                return Err(CertificateError::Expired);
            }
            Some(State::Issued { next, .. }) => next.clone(),
            Some(State::Waiting(pending)) => Some(pending.clone()),
            None => None,
        };
        let pending = match pending.filter(|pending| now.duration_since(pending.since) < STAYS) {
            Some(pending) => pending,
            None => match timeout(ANSWER_MAX, ask(client, node, pod, wanted, now)).await {
                Ok(Ok(asked)) => {
                    match &mut *self.state.lock() {
                        Some(State::Issued { next, .. }) => *next = Some(asked.clone()),
                        state => *state = Some(State::Waiting(asked.clone())),
                    }
                    asked
                }
                Ok(Err(error)) => return self.later(now, error),
                Err(_) => return self.later(now, CertificateError::Late),
            },
        };
        let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
        let answer = timeout(ANSWER_MAX, answer(client, node, namespace, &pending.name)).await;
        match answer {
            Err(_) => self.later(now, CertificateError::Unanswered(pending.name)),
            Ok(Answer::Issued { chain, refresh_at, expires_at }) => {
                let late = SignedDuration::from_secs(rand::random_range(0..LATE_SECONDS_MAX));
                let refresh_at = refresh_at.checked_add(late).unwrap_or(Timestamp::MAX).min(expires_at);
                let credential = Credential { key: pending.key, chain };
                *self.state.lock() = Some(State::Issued { credential, refresh_at, expires_at, next: None });
                Ok(())
            }
            Ok(Answer::Gone) => {
                match &mut *self.state.lock() {
                    Some(State::Issued { next, .. }) => *next = None,
                    state => *state = None,
                }
                self.later(now, CertificateError::Gone(pending.name))
            }
            Ok(Answer::Refused(why)) => {
                // What is issued is good until it ends.
                match &mut *self.state.lock() {
                    Some(State::Issued { next, .. }) => *next = None,
                    state => *state = Some(State::Refused(why.clone())),
                }
                self.later(now, CertificateError::Refused(why))
            }
        }
    }

    fn is_enough(&self, need: Need, now: Timestamp) -> bool {
        match (&*self.state.lock(), need) {
            (Some(State::Issued { expires_at, .. }), Need::Good) => *expires_at > now,
            (Some(State::Issued { refresh_at, .. }), Need::Fresh) => *refresh_at > now,
            _ => false,
        }
    }

    /// A pod that has a certificate goes on with it while it is good, and comes again; one that has none waits for it.
    fn later(&self, now: Timestamp, error: CertificateError) -> Result<(), CertificateError> {
        match &mut *self.state.lock() {
            Some(State::Issued { refresh_at, expires_at, .. }) => {
                tracing::debug!(%error, "a pod's certificate is not refreshed");
                *refresh_at = now + RETRY;
                if *expires_at > now { Ok(()) } else { Err(error) }
            }
            _ => Err(error),
        }
    }
}

/// A new key, as PEM text, and an empty request that is signed with it.
fn key_and_request(key_type: &str) -> Result<(String, Vec<u8>), CertificateError> {
    let algorithm = match key_type {
        "ECDSAP256" => &rcgen::PKCS_ECDSA_P256_SHA256,
        "ECDSAP384" => &rcgen::PKCS_ECDSA_P384_SHA384,
        "ED25519" => &rcgen::PKCS_ED25519,
        other => return Err(CertificateError::KeyType(other.to_owned())),
    };
    let key = KeyPair::generate_for(algorithm)?;
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name = DistinguishedName::new();
    let request = parameters.serialize_request(&key)?;
    Ok((key.serialize_pem(), request.der().to_vec()))
}

async fn ask(
    client: &kube::Client,
    node: &str,
    pod: &Pod,
    wanted: &CertificateRequest,
    now: Timestamp,
) -> Result<Pending, CertificateError> {
    let (key, request) = key_and_request(&wanted.key_type)?;
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.as_deref());
    let account = account.filter(|name| !name.is_empty()).unwrap_or("default");
    let nodes: Api<Node> = Api::all(client.clone());
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    let (of_node, of_account) = tokio::try_join!(nodes.get(node), accounts.get(account))?;
    let (name, uid) = (pod.metadata.name.clone().unwrap_or_default(), pod.metadata.uid.clone().unwrap_or_default());
    let owner = OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Pod".to_owned(),
        name: name.clone(),
        uid: uid.clone(),
        ..OwnerReference::default()
    };
    let metadata = ObjectMeta {
        generate_name: Some("req-".to_owned()),
        owner_references: Some(vec![owner]),
        ..ObjectMeta::default()
    };
    let spec = PodCertificateRequestSpec {
        signer_name: wanted.signer.clone(),
        pod_name: name,
        pod_uid: uid,
        service_account_name: account.to_owned(),
        service_account_uid: of_account.metadata.uid.unwrap_or_default(),
        node_name: node.to_owned(),
        node_uid: of_node.metadata.uid.unwrap_or_default(),
        max_expiration_seconds: Some(wanted.seconds_max.unwrap_or(SECONDS_DEFAULT)),
        stub_pkc_s10_request: ByteString(request),
        unverified_user_annotations: Some(wanted.annotations.clone()).filter(|annotations| !annotations.is_empty()),
    };
    let requests: Api<PodCertificateRequest> = Api::namespaced(client.clone(), namespace);
    let made = PodCertificateRequest { metadata, spec, status: None };
    let made = requests.create(&PostParams::default(), &made).await?;
    Ok(Pending { name: made.metadata.name.unwrap_or_default(), key, since: now })
}

/// Waits for the answer to a request.
async fn answer(client: &kube::Client, node: &str, namespace: &str, name: &str) -> Answer {
    let requests: Api<PodCertificateRequest> = Api::namespaced(client.clone(), namespace);
    let config = watcher::Config::default().fields(&format!("metadata.name={name},spec.nodeName={node}"));
    let mut events = watcher(requests, config).backoff(Again::new()).boxed();
    let mut is_there = false;
    loop {
        match events.try_next().await {
            Ok(Some(watcher::Event::Init)) => is_there = false,
            Ok(Some(watcher::Event::InitApply(request) | watcher::Event::Apply(request))) => {
                is_there = true;
                if let Some(answer) = answered(&request) {
                    return answer;
                }
            }
            Ok(Some(watcher::Event::InitDone)) if is_there => {}
            Ok(Some(watcher::Event::InitDone | watcher::Event::Delete(_)) | None) => return Answer::Gone,
            // The API server is away, for a while.
            Err(error) => tracing::debug!(%error, "watch of a request for a certificate"),
        }
    }
}

fn answered(request: &PodCertificateRequest) -> Option<Answer> {
    let status = request.status.as_ref()?;
    let condition = status.conditions.iter().flatten().find(|condition| condition.status == "True")?;
    let name = request.metadata.name.as_deref().unwrap_or_default();
    let refused = |how: &str| {
        let (reason, message) = (&condition.reason, &condition.message);
        Some(Answer::Refused(format!("PodCertificateRequest {name} {how}, reason={reason:?}, message={message:?}")))
    };
    match condition.type_.as_str() {
        "Denied" => refused("was denied"),
        "Failed" => refused("failed"),
        "Issued" => {
            // What stands between the certificates is nobody's.
            let chain = pem::certificates(status.certificate_chain.as_deref().unwrap_or_default().as_bytes());
            let Some(chain) = chain.filter(|chain| !chain.is_empty()) else { return refused("has no certificate") };
            let chain = chain.iter().map(|der| pem::certificate(der)).collect();
            let refresh_at = status.begin_refresh_at.as_ref().map_or(Timestamp::MAX, |time| time.0);
            let expires_at = status.not_after.as_ref().map_or(Timestamp::MAX, |time| time.0);
            Some(Answer::Issued { chain, refresh_at, expires_at })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures::FutureExt as _;
    use http::{Method, Request, Response};
    use http_body_util::{BodyExt as _, Full, StreamBody};
    use serde_json::{Value, json};
    use x509_parser::certification_request::X509CertificationRequest;
    use x509_parser::prelude::FromDer as _;

    use super::*;

    #[test]
    fn a_request_is_empty_and_signed_with_its_own_key() {
        for key_type in ["ECDSAP256", "ECDSAP384", "ED25519"] {
            let (key, request) = key_and_request(key_type).unwrap();
            let (_, request) = X509CertificationRequest::from_der(&request).unwrap();
            request.verify_signature().unwrap();
            assert_eq!(request.certification_request_info.subject.to_string(), "");
            assert!(key.starts_with("-----BEGIN PRIVATE KEY-----"), "{key_type}");
        }
        let refused = key_and_request("RSA4096").unwrap_err().to_string();
        assert!(refused.starts_with("keys of type RSA4096 are not supported"), "{refused}");
    }

    #[test]
    fn reads_answers() {
        let read = |conditions: serde_json::Value, chain: &str| {
            let spec = json!({"signerName": "a.b/c", "podName": "p", "podUID": "1", "serviceAccountName": "s",
                "serviceAccountUID": "2", "nodeName": "n", "nodeUID": "3", "stubPKCS10Request": ""});
            let status =
                json!({"conditions": conditions, "certificateChain": chain, "beginRefreshAt": "2026-01-01T00:00:00Z"});
            let request = json!({"metadata": {"name": "r"}, "spec": spec, "status": status});
            answered(&serde_json::from_value(request).unwrap())
        };
        let is = |kind: &str| json!([{"type": kind, "status": "True", "reason": "R", "message": "M", "lastTransitionTime": "2026-01-01T00:00:00Z"}]);
        let one = pem::certificate(b"one");
        assert!(read(json!([]), "").is_none());
        assert!(
            matches!(read(is("Issued"), &format!("words\n{one}")), Some(Answer::Issued { chain, .. }) if chain == one)
        );
        for (kind, expected) in [
            ("Denied", "PodCertificateRequest r was denied, reason=\"R\", message=\"M\""),
            ("Failed", "PodCertificateRequest r failed, reason=\"R\", message=\"M\""),
            ("Issued", "PodCertificateRequest r has no certificate, reason=\"R\", message=\"M\""),
        ] {
            assert!(matches!(read(is(kind), ""), Some(Answer::Refused(why)) if why == expected), "{kind}");
        }
    }

    /// An API server that has one answer for all requests, and counts them.
    #[derive(Clone, Default)]
    struct Api(Arc<Mutex<(Vec<Value>, Value)>>);

    impl Api {
        fn client(&self) -> kube::Client {
            let api = self.clone();
            let service = tower::service_fn(move |request: Request<kube::client::Body>| {
                let api = api.clone();
                async move { Ok::<_, Infallible>(api.answer(request).await) }
            });
            kube::Client::new(service, "default")
        }

        async fn answer(&self, request: Request<kube::client::Body>) -> Response<BoxBody> {
            let (parts, body) = request.into_parts();
            if parts.uri.query().is_some_and(|query| query.contains("watch=true")) {
                // Nothing more happens.
                let silence = futures::stream::pending::<Result<http_body::Frame<bytes::Bytes>, Infallible>>();
                return Response::new(StreamBody::new(silence).boxed_unsync());
            }
            let object = match (parts.method, parts.uri.path()) {
                (Method::POST, _) => {
                    let body = body.collect().await.unwrap().to_bytes();
                    let mut made: Value = serde_json::from_slice(&body).unwrap();
                    let asked = &mut self.0.lock().0;
                    made["metadata"]["name"] = json!(format!("req-{}", asked.len() + 1));
                    made["metadata"]["resourceVersion"] = json!("1");
                    asked.push(made.clone());
                    made
                }
                (_, path) if path.ends_with("/podcertificaterequests") => {
                    let (asked, status) = &*self.0.lock();
                    let mut last = asked.last().cloned().unwrap();
                    last["status"] = status.clone();
                    json!({"apiVersion": "certificates.k8s.io/v1", "kind": "PodCertificateRequestList",
                        "metadata": {"resourceVersion": "1"}, "items": [last]})
                }
                (_, path) => json!({"metadata": {"name": path.rsplit('/').next(), "uid": format!("uid of {path}")}}),
            };
            Response::new(Full::from(object.to_string()).boxed_unsync())
        }

        fn says(&self, status: Value) {
            self.0.lock().1 = status;
        }

        fn asked(&self) -> usize {
            self.0.lock().0.len()
        }
    }

    type BoxBody = http_body_util::combinators::UnsyncBoxBody<bytes::Bytes, Infallible>;

    fn ended(kind: &str, chain: &str, refresh_at: Timestamp, expires_at: Timestamp) -> Value {
        let (refresh_at, expires_at) = (refresh_at.to_string(), expires_at.to_string());
        let condition =
            json!({"type": kind, "status": "True", "reason": "R", "message": "M", "lastTransitionTime": refresh_at});
        json!({"conditions": [condition], "certificateChain": chain, "beginRefreshAt": refresh_at, "notAfter": expires_at})
    }

    #[tokio::test(start_paused = true)]
    async fn a_certificate_is_asked_for_once_and_again_when_its_time_has_come() {
        let api = Api::default();
        let client = api.client();
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"serviceAccountName": "acc", "containers": []}}))
        .unwrap();
        let annotations = [("a.b/c".to_owned(), "d".to_owned())].into();
        let wanted = CertificateRequest {
            signer: "a.b/c".to_owned(),
            key_type: "ED25519".to_owned(),
            seconds_max: None,
            annotations,
        };
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let refresh_at = now + SignedDuration::from_hours(1);
        let at = |hours| now + SignedDuration::from_hours(hours);
        let provide = async |certificate: &Certificate, now| {
            certificate.provide(&client, "node", &pod, &wanted, Need::Fresh, now).await
        };
        let certificates = PodCertificates::default();
        let certificate = certificates.want(&wanted).unwrap();

        // Who signs takes its time: the request stays, and is not made a second time.
        let error = provide(&certificate, now).await.unwrap_err();
        assert!(matches!(error, CertificateError::Unanswered(name) if name == "req-1"));
        let spec = api.0.lock().0[0]["spec"].clone();
        let of_account = "uid of /api/v1/namespaces/n/serviceaccounts/acc";
        for (field, expected) in [
            ("podUID", json!("u")),
            ("nodeName", json!("node")),
            ("nodeUID", json!("uid of /api/v1/nodes/node")),
            ("serviceAccountUID", json!(of_account)),
            ("maxExpirationSeconds", json!(86400)),
            ("unverifiedUserAnnotations", json!({"a.b/c": "d"})),
        ] {
            assert_eq!(spec[field], expected, "{field}");
        }
        assert!(certificates.credential(&wanted).is_none() && certificates.refresh_at().is_none());
        api.says(ended("Issued", &pem::certificate(b"one"), refresh_at, at(9)));
        provide(&certificate, now).await.unwrap();
        let credential = certificates.credential(&wanted).unwrap();
        assert_eq!((credential.chain.as_str(), api.asked()), (pem::certificate(b"one").as_str(), 1));
        assert!(certificates.refresh_at().is_some_and(|at| at >= refresh_at));
        let key = credential.key;
        provide(&certificate, refresh_at - SignedDuration::from_secs(1)).await.unwrap();
        assert_eq!(api.asked(), 1, "it still lives");

        // The next is refused: the old one is good until it ends, and there is another try.
        api.says(ended("Denied", "", at(9), at(9)));
        provide(&certificate, at(2)).await.unwrap();
        assert_eq!(certificates.credential(&wanted).unwrap().key, key);
        api.says(ended("Issued", &pem::certificate(b"two"), at(9), at(12)));
        provide(&certificate, at(3)).await.unwrap();
        let credential = certificates.credential(&wanted).unwrap();
        assert_eq!((credential.chain.as_str(), api.asked()), (pem::certificate(b"two").as_str(), 3));
        assert_ne!(credential.key, key, "with a key of its own");

        // Who has none and is refused does not ask again.
        let certificate = Certificate::default();
        api.says(ended("Denied", "", at(9), at(9)));
        for _ in 0..2 {
            let error = provide(&certificate, now).await.unwrap_err();
            assert!(error.to_string().contains("was denied"), "{error}");
        }
        assert_eq!(api.asked(), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn who_begins_does_not_wait_for_a_refresh_and_is_not_given_what_has_expired() {
        let api = Api::default();
        let client = api.client();
        let pod: Pod =
            serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}})).unwrap();
        let wanted = CertificateRequest {
            signer: "a.b/c".to_owned(),
            key_type: "ED25519".to_owned(),
            seconds_max: None,
            annotations: Default::default(),
        };
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let at = |hours| now + SignedDuration::from_hours(hours);
        let certificate = Certificate::default();
        let provide = async |need, now| certificate.provide(&client, "node", &pod, &wanted, need, now).await;
        api.says(ended("Issued", &pem::certificate(b"one"), at(1), at(3)));
        provide(Need::Good, now).await.unwrap();

        // Nobody answers any more.
        api.says(Value::Null);
        let mut refreshing = Box::pin(provide(Need::Fresh, at(2)));
        for _ in 0..100 {
            assert!(futures::poll!(refreshing.as_mut()).is_pending());
            tokio::task::yield_now().await;
        }
        assert_eq!(api.asked(), 2, "the next is waited for");
        provide(Need::Good, at(2)).now_or_never().expect("it is there").unwrap();
        refreshing.await.expect("what is issued is good");

        // It runs out, and nobody has answered: another is asked for, and waited for.
        let error = provide(Need::Good, at(3)).await.unwrap_err();
        assert!(matches!(error, CertificateError::Unanswered(_)), "{error}");
        api.says(ended("Denied", "", at(9), at(9)));
        let error = provide(Need::Good, at(3)).await.unwrap_err();
        assert!(matches!(error, CertificateError::Refused(_)), "{error}");
        let asked = api.asked();
        let error = provide(Need::Good, at(3)).await.unwrap_err();
        assert!(
            matches!(error, CertificateError::Expired) && api.asked() == asked,
            "it is asked for now and then: {error}"
        );
        api.says(ended("Issued", &pem::certificate(b"two"), at(8), at(9)));
        provide(Need::Good, at(4)).await.unwrap();
        assert_eq!(api.asked(), asked + 1);
    }

    #[test]
    fn a_pod_has_so_many() {
        let certificates = PodCertificates::default();
        let wanted = |number: usize| CertificateRequest {
            signer: format!("a.b/{number}"),
            key_type: "ED25519".to_owned(),
            seconds_max: None,
            annotations: Default::default(),
        };
        for number in 0..CERTIFICATES_MAX {
            certificates.want(&wanted(number)).unwrap();
        }
        assert!(matches!(certificates.want(&wanted(CERTIFICATES_MAX)), Err(CertificateError::TooMany)));
        certificates.want(&wanted(0)).unwrap();
        certificates.forget();
        certificates.want(&wanted(CERTIFICATES_MAX)).unwrap();
    }
}
