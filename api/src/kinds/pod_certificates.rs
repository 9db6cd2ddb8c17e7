//! PodCertificateRequest of `certificates.k8s.io`: a node asks for a certificate for one of its pods, and whoever signs for the named
//! signer answers once. What is asked for never changes. What is in the request and in the certificates, the API server looks into.

use std::ops::RangeInclusive;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::pod::{signer_name, user_annotations};
use super::value::{Read, fields, keep};
use super::{Cell, FieldError, FieldErrors, Kind, NAME, Strategy, VERBS, checks, column, table};
use crate::meta::field::{Path, Printed};

pub(super) static KIND: Kind = Kind {
    group: "certificates.k8s.io",
    version: "v1",
    kind: "PodCertificateRequest",
    resource: "podcertificaterequests",
    singular: "podcertificaterequest",
    short_names: &[],
    categories: &[],
    namespaced: true,
    schema: "io.k8s.api.certificates.v1.PodCertificateRequest",
    collection: "podcertificaterequests.certificates.k8s.io",
    verbs: VERBS,
    has_status: true,
    has_scale: false,
    subresources: &[],
    selectable: &["spec.signerName", "spec.podName", "spec.nodeName"],
    columns: &[
        NAME,
        column("PodName", "string"),
        column("ServiceAccountName", "string"),
        column("NodeName", "string"),
        column("SignerName", "string"),
        column("State", "string"),
        column("UnverifiedUserAnnotations", "string"),
    ],
    strategy: &Request,
};

struct Request;

/// How a request ends; it ends in one of these ways and stays so.
const ENDS: [&str; 3] = ["Issued", "Denied", "Failed"];
const UID_BYTES_MAX: usize = 128;
const REQUEST_BYTES_MAX: usize = 10 << 10;
/// Longest chain of certificates, in bytes of PEM text.
const CHAIN_BYTES_MAX: usize = 100 << 10;
/// Shortest life of a pod's certificate, in seconds.
pub const SECONDS_MIN: i64 = 3600;
/// Longest lives: 91 days, for Kubernetes' own signers a day.
const SECONDS_MAX: i64 = 91 * 24 * 3600;
const KUBERNETES_SECONDS_MAX: i64 = 24 * 3600;

/// How long a certificate of this signer may live, in seconds.
pub(in crate::kinds) fn life(signer: &str) -> RangeInclusive<i64> {
    let domain = signer.split('/').next().unwrap_or_default();
    let is_own = domain == "kubernetes.io" || domain.ends_with(".kubernetes.io");
    SECONDS_MIN..=if is_own { KUBERNETES_SECONDS_MAX } else { SECONDS_MAX }
}

impl Strategy for Request {
    /// No one comes answered.
    fn prepare_create(&self, object: &mut Value) {
        fields(object).insert("status".to_owned(), json!({}));
    }

    fn prepare_update(&self, object: &mut Value, old: &Value) {
        keep(object, old, "status");
    }

    fn prepare_status_update(&self, object: &mut Value, old: &Value) {
        keep(object, old, "spec");
    }

    fn validate(&self, object: &Value, errors: &mut FieldErrors) {
        spec(&object["spec"], errors);
    }

    fn validate_update(&self, object: &Value, old: &Value, errors: &mut FieldErrors) {
        checks::immutable(&Path::new("spec"), &object["spec"], &old["spec"], errors);
    }

    fn is_status_alone(&self) -> bool {
        true
    }

    fn validate_status_update(&self, object: &Value, old: &Value, errors: &mut FieldErrors) {
        status(&object["status"], &old["status"], errors);
    }

    fn allows_unconditional_update(&self) -> bool {
        false
    }

    fn field(&self, object: &Value, path: &str) -> Option<String> {
        let name = path.strip_prefix("spec.").filter(|name| ["signerName", "podName", "nodeName"].contains(name))?;
        Some(object["spec"][name].text().to_owned())
    }

    fn cells(&self, object: &Value) -> Vec<Cell> {
        let spec = &object["spec"];
        let text = |name: &str| spec[name].text().into();
        vec![
            table::name(object),
            text("podName"),
            text("serviceAccountName"),
            text("nodeName"),
            text("signerName"),
            end(&object["status"]).unwrap_or("Pending").into(),
            table::labels(&spec["unverifiedUserAnnotations"]),
        ]
    }
}

/// How a request has ended, if it has.
fn end(status: &Value) -> Option<&str> {
    let conditions = status["conditions"].items().iter().filter(|condition| condition["status"] == "True");
    conditions.map(|condition| condition["type"].text()).find(|kind| ENDS.contains(kind))
}

fn spec(spec: &Value, errors: &mut FieldErrors) {
    let path = Path::new("spec");
    let signer = spec["signerName"].text();
    signer_name(signer, &path.child("signerName"), errors);
    user_annotations(&spec["unverifiedUserAnnotations"], &path.child("unverifiedUserAnnotations"), errors);
    for (name, uid) in [("podName", "podUID"), ("serviceAccountName", "serviceAccountUID"), ("nodeName", "nodeUID")] {
        checks::dns_subdomain(&path.child(name), spec[name].text(), errors);
        let (uid, path) = (spec[uid].text(), path.child(uid));
        if uid.is_empty() {
            errors.push(FieldError::invalid(path, uid, "must not be empty"));
        } else if uid.len() > UID_BYTES_MAX {
            errors.push(FieldError::too_long(path, UID_BYTES_MAX));
        }
    }
    let seconds_path = path.child("maxExpirationSeconds");
    let life = life(signer);
    match spec["maxExpirationSeconds"].maybe_int() {
        None => errors.push(FieldError::required(seconds_path, "must be set")),
        Some(seconds) if !life.contains(&seconds) => {
            let detail = format!("must be in the range [{}, {}]", life.start(), life.end());
            errors.push(FieldError::invalid(seconds_path, seconds, &detail));
        }
        Some(_) => {}
    }
    let request_path = path.child("stubPKCS10Request");
    match STANDARD.decode(spec["stubPKCS10Request"].text()) {
        Ok(request) if request.len() > REQUEST_BYTES_MAX => {
            errors.push(FieldError::too_long(request_path, REQUEST_BYTES_MAX));
        }
        Ok(request) if !request.is_empty() => {}
        _ => errors.push(FieldError::required(request_path, "")),
    }
}

/// Checks an answer, which is given once.
fn status(status: &Value, old: &Value, errors: &mut FieldErrors) {
    let path = Path::new("status");
    let so_far = errors.len();
    let conditions = path.child("conditions");
    for (index, condition) in status["conditions"].items().iter().enumerate() {
        let at = conditions.index(index);
        if !ENDS.contains(&condition["type"].text()) {
            checks::supported(&at.child("type"), &condition["type"], &ENDS, errors);
            continue;
        }
        if index > 0 {
            let detail = "There may be at most one condition with type \"Issued\", \"Denied\", or \"Failed\"";
            errors.push(FieldError::invalid(at.child("type"), &condition["type"], detail));
        }
        checks::supported(&at.child("status"), &condition["status"], &["True"], errors);
    }
    checks::conditions(status["conditions"].items(), &conditions, errors);
    if errors.len() > so_far {
        return;
    }
    let wrong = match (end(old), end(status)) {
        (Some(_), _) if !is_same(status, old) => "immutable after PodCertificateRequest is issued, denied, or failed",
        (None, None) if !is_same(status, old) => {
            "status is immutable unless transitioning to \"Issued\", \"Denied\", or \"Failed\""
        }
        (None, Some("Denied" | "Failed")) if !is_same(status, &json!({"conditions": status["conditions"]})) => {
            "non-condition status fields must be empty when denying or failing the PodCertificateRequest"
        }
        (None, Some("Issued")) => return issued(status, &path, errors),
        _ => return,
    };
    errors.push(FieldError::invalid(path, Printed(""), wrong));
}

fn issued(status: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    if status["certificateChain"].text().len() > CHAIN_BYTES_MAX {
        return errors.push(FieldError::too_long(path.child("certificateChain"), CHAIN_BYTES_MAX));
    }
    let consistent = "must be present and consistent with the issued certificate";
    let between = "must be present and in the range [notbefore+10min, notafter-10min]";
    for (field, detail) in [("notBefore", consistent), ("notAfter", consistent), ("beginRefreshAt", between)] {
        if status[field].is_empty() {
            errors.push(FieldError::required(path.child(field), detail));
        }
    }
}

/// Whether two statuses say the same; nothing is as much as empty.
fn is_same(status: &Value, other: &Value) -> bool {
    let said = |status: &Value| {
        let fields = status.as_object().into_iter().flatten().filter(|(_, value)| !value.is_empty());
        fields.map(|(name, value)| (name.clone(), value.clone())).collect::<serde_json::Map<_, _>>()
    };
    said(status) == said(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(more: Value) -> Value {
        let mut request = json!({"spec": {
            "signerName": "example.com/s", "podName": "p", "podUID": "1", "serviceAccountName": "default",
            "serviceAccountUID": "2", "nodeName": "n", "nodeUID": "3", "maxExpirationSeconds": 86400,
            "stubPKCS10Request": "AAAA",
        }, "status": {}});
        for (name, value) in more.as_object().into_iter().flatten() {
            request["spec"][name] = value.clone();
        }
        request
    }

    fn told(check: impl FnOnce(&mut FieldErrors)) -> String {
        let mut errors = FieldErrors::new();
        check(&mut errors);
        errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn a_request_says_for_whom_and_how_long() {
        for (more, expected) in [
            (json!({}), ""),
            (json!({"signerName": "x"}), "spec.signerName: Invalid value"),
            (json!({"podName": "A"}), "spec.podName: Invalid value"),
            (json!({"nodeUID": ""}), "spec.nodeUID: Invalid value: \"\": must not be empty"),
            (json!({"podUID": "x".repeat(129)}), "spec.podUID: Too long"),
            (json!({"maxExpirationSeconds": 3599}), "must be in the range [3600, 7862400]"),
            (json!({"signerName": "kubernetes.io/x", "maxExpirationSeconds": 86401}), "[3600, 86400]"),
            (json!({"maxExpirationSeconds": null}), "spec.maxExpirationSeconds: Required value"),
            (json!({"stubPKCS10Request": ""}), "spec.stubPKCS10Request: Required value"),
            (json!({"unverifiedUserAnnotations": {"a": ""}}), "must be a domain-prefixed key"),
        ] {
            let told = told(|errors| Request.validate(&request(more.clone()), errors));
            assert!(told.contains(expected) && told.is_empty() == expected.is_empty(), "{more}: {told}");
        }
        let told =
            told(|errors| Request.validate_update(&request(json!({"podName": "q"})), &request(json!({})), errors));
        assert!(told.contains("field is immutable"), "{told}");
    }

    #[test]
    fn an_answer_is_given_once_and_whole() {
        let end = |kind: &str| json!([{"type": kind, "status": "True", "reason": "R", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}]);
        let issued = json!({"conditions": end("Issued"), "certificateChain": "c", "notBefore": "2026-01-01T00:00:00Z",
            "notAfter": "2026-01-02T00:00:00Z", "beginRefreshAt": "2026-01-01T12:00:00Z"});
        let mut unsaid = issued.clone();
        unsaid["notAfter"] = Value::Null;
        let mut other = end("Issued");
        other[0]["status"] = json!("False");
        let both = json!([end("Issued")[0], end("Failed")[0]]);
        for (new, old, expected) in [
            (issued.clone(), json!({}), ""),
            (issued.clone(), issued.clone(), ""),
            (unsaid, json!({}), "status.notAfter: Required value"),
            (json!({"conditions": end("Denied")}), json!({}), ""),
            (json!({"conditions": end("Denied"), "certificateChain": "c"}), json!({}), "must be empty when denying"),
            (json!({"conditions": end("Failed")}), issued.clone(), "immutable after"),
            (json!({"certificateChain": "c"}), json!({}), "status is immutable unless"),
            (json!({"conditions": end("Approved")}), json!({}), "status.conditions[0].type: Unsupported value"),
            (json!({"conditions": other}), json!({}), "status.conditions[0].status: Unsupported value"),
            (json!({"conditions": both}), json!({}), "There may be at most one condition"),
        ] {
            let told = told(|errors| status(&new, &old, errors));
            assert!(told.contains(expected) && told.is_empty() == expected.is_empty(), "{new}: {told}");
        }
    }
}
