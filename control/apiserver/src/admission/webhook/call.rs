//! One call: an AdmissionReview out, its answer in.

use bytes::Bytes;
use coracle_api::codec::json;
use coracle_api::meta::text::quote;
use coracle_api::status::Status;
use serde_json::{Value, json};

use super::answer::{self, Consent};
use crate::admission::matching::Versioned;
use crate::admission::review::Review;
use crate::callout;
use crate::hooks::{Hook, ReviewVersion};
use crate::identity::new_uuid;
use crate::outward;

/// Bytes of an answer: a patch is not larger than what a client may send itself.
const ANSWER_BYTES_MAX: usize = 3 << 20;

/// Why a webhook's answer is no consent.
pub(super) enum Failure {
    /// There is none: what that means the webhook's failurePolicy says.
    Calling { why: String, code: u16 },
    /// It refuses, or may not be asked at all.
    Refused(Status),
}

impl Failure {
    fn calling(why: impl AsRef<str>, code: u16) -> Failure {
        Failure::Calling { why: outward::words(why.as_ref()), code }
    }
}

/// Asks a webhook about objects as they are in the version that it wants.
pub(super) async fn call(
    review: &Review<'_>,
    hook: &Hook,
    version: &Versioned,
    (object, old): (Option<&Value>, Option<&Value>),
    mutating: bool,
) -> Result<Consent, Failure> {
    if review.dry_run && !hook.allows_dry_run {
        let message = format!("admission webhook {} does not support dry run", quote(&hook.name));
        return Err(Failure::Refused(Status::bad_request(message)));
    }
    let form = hook.version.ok_or_else(|| {
        let why =
            "could not create admission objects: webhook does not accept known AdmissionReview versions (v1, v1beta1)";
        Failure::calling(why, 400)
    })?;
    let uid = new_uuid();
    let mut request = review.request(version);
    request["uid"] = uid.as_str().into();
    request["object"] = object.cloned().unwrap_or_default();
    request["oldObject"] = old.cloned().unwrap_or_default();
    let api_version = format!("admission.k8s.io/{}", form.name());
    let mut body = json!({"kind": "AdmissionReview", "apiVersion": api_version});
    body["request"] = request;
    let body = body.to_string();
    let query = format!("?timeout={}s", hook.timeout.as_secs());
    let (cluster, callee) = (review.at.cluster, &hook.callee);
    let failed = |why: String| Failure::calling(format!("failed to call webhook: {why}"), 503);
    let target = callout::target(cluster, &callee.place, callee.client.has_authorities(), &query).map_err(failed)?;
    let post = callee.client.post(&cluster.nodes, &target, Bytes::from(body), ANSWER_BYTES_MAX);
    // Its connection ends with it.
    let answered = tokio::time::timeout(hook.timeout, post).await;
    let timed_out = |_| failed(format!("Post {}: context deadline exceeded", quote(&target.url)));
    let (code, bytes) = answered.map_err(timed_out)?.map_err(|error| failed(error.to_string()))?;
    if !code.is_success() {
        let status = Status::generic(code.as_u16(), &outward::words(&String::from_utf8_lossy(&bytes)));
        return Err(Failure::calling(format!("failed to call webhook: {}", status.message), code.as_u16()));
    }
    let answer = json::parse_body(&bytes).map_err(|error| failed(error.to_string()))?;
    let strict = (form == ReviewVersion::V1).then_some((api_version.as_str(), uid.as_str()));
    let answer = answer::read(&answer, strict, mutating).map_err(|why| Failure::calling(why, 503))?;
    // Who is refused hears them, too.
    review.at.call.warn_all(answer.warnings.iter().cloned());
    for (key, value) in &answer.audit {
        review.at.call.annotate(&format!("{}/{key}", hook.name), || value.clone());
    }
    match answer.refusal(&hook.name) {
        Some(status) => Err(Failure::Refused(status)),
        None => answer.consent().map_err(|why| Failure::calling(why, 503)),
    }
}
