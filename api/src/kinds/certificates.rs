//! CertificateSigningRequest of `certificates.k8s.io`: what a request may say, and which of its doors may change what. Who asks, when
//! conditions were set, and whether the request is signed with the key that it names, the API server knows.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::pod::signer_name;
use super::value::{Read, fields, keep};
use super::{AGE, Cell, FieldError, FieldErrors, Kind, NAME, Strategy, Subresource, VERBS, checks, column, table};
use crate::meta::field::Path;
use crate::meta::{names, time};
use crate::pem;

pub(super) static KIND: Kind = Kind {
    group: "certificates.k8s.io",
    version: "v1",
    kind: "CertificateSigningRequest",
    resource: "certificatesigningrequests",
    singular: "certificatesigningrequest",
    short_names: &["csr"],
    categories: &[],
    namespaced: false,
    schema: "io.k8s.api.certificates.v1.CertificateSigningRequest",
    collection: "certificatesigningrequests.certificates.k8s.io",
    verbs: VERBS,
    has_status: true,
    has_scale: false,
    subresources: &[Subresource {
        name: "approval",
        group: "",
        version: "",
        kind: "CertificateSigningRequest",
        verbs: &["get", "patch", "update"],
    }],
    selectable: &["spec.signerName"],
    columns: &[
        NAME,
        AGE,
        column("SignerName", "string"),
        column("Requestor", "string"),
        column("RequestedDuration", "string"),
        column("Condition", "string"),
    ],
    strategy: &Request,
};

struct Request;

/// Conditions that are decisions: they are made through `approval` only, and never taken back.
const DECISIONS: [&str; 2] = ["Approved", "Denied"];
/// Conditions that are there or not, and never false.
const LASTING: [&str; 3] = ["Approved", "Denied", "Failed"];
/// Shortest life of a certificate that may be asked for.
const SECONDS_MIN: i64 = 600;
/// A signer of before there were names for them.
const LEGACY: &str = "kubernetes.io/legacy-unknown";

const USAGES: [&str; 23] = [
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];

impl Strategy for Request {
    /// No one comes approved.
    fn prepare_create(&self, object: &mut Value) {
        fields(object).insert("status".to_owned(), json!({}));
    }

    /// A request never changes, but through its subresources.
    fn prepare_update(&self, object: &mut Value, old: &Value) {
        keep(object, old, "spec");
        keep(object, old, "status");
    }

    /// Decisions stay as they were; one that is added or missing is refused afterwards.
    fn prepare_status_update(&self, object: &mut Value, old: &Value) {
        keep(object, old, "spec");
        for decision in DECISIONS {
            let of = |object: &Value| -> Vec<Value> {
                let conditions = object["status"]["conditions"].items().iter();
                conditions.filter(|condition| condition["type"] == decision).cloned().collect()
            };
            let (before, now) = (of(old), of(object));
            if before.len() != now.len() {
                continue;
            }
            let mut before = before.into_iter();
            let conditions = object.pointer_mut("/status/conditions").and_then(Value::as_array_mut);
            for condition in conditions.into_iter().flatten().filter(|condition| condition["type"] == decision) {
                if let Some(kept) = before.next() {
                    *condition = kept;
                }
            }
        }
    }

    /// `approval` changes conditions only.
    fn prepare_subresource_update(&self, _subresource: &str, object: &mut Value, old: &Value) {
        let conditions = object["status"].get("conditions").cloned();
        keep(object, old, "spec");
        keep(object, old, "status");
        match conditions {
            Some(conditions) => object["status"]["conditions"] = conditions,
            None => drop(object["status"].as_object_mut().and_then(|status| status.remove("conditions"))),
        }
    }

    fn validate(&self, object: &Value, errors: &mut FieldErrors) {
        let spec = &object["spec"];
        let path = Path::new("spec");
        if let Err(detail) = pem::request(&bytes(&spec["request"])) {
            errors.push(FieldError::invalid(path.child("request"), &spec["request"], detail));
        }
        usages(&spec["usages"], &path.child("usages"), errors);
        match spec["signerName"].text() {
            LEGACY => {
                let detail = "the legacy signerName is not allowed via this API version";
                errors.push(FieldError::invalid(path.child("signerName"), LEGACY, detail));
            }
            name => signer_name(name, &path.child("signerName"), errors),
        }
        if let Some(seconds) = spec["expirationSeconds"].maybe_int().filter(|seconds| *seconds < SECONDS_MIN) {
            let detail = "may not specify a duration less than 600 seconds (10 minutes)";
            errors.push(FieldError::invalid(path.child("expirationSeconds"), seconds, detail));
        }
        conditions(object["status"]["conditions"].items(), errors);
        let certificate = &object["status"]["certificate"];
        if !certificate.is_empty() && !pem::is_certificates(&bytes(certificate)) {
            let detail = "must contain at least one CERTIFICATE PEM block";
            errors.push(FieldError::invalid("status.certificate", "<certificate data>", detail));
        }
    }

    fn validate_update(&self, object: &Value, old: &Value, errors: &mut FieldErrors) {
        self.validate(object, errors);
        changes(object, old, Door::Main, errors);
    }

    fn validate_status_update(&self, object: &Value, old: &Value, errors: &mut FieldErrors) {
        self.validate(object, errors);
        changes(object, old, Door::Status, errors);
    }

    fn validate_subresource_update(&self, _subresource: &str, object: &Value, old: &Value, errors: &mut FieldErrors) {
        self.validate(object, errors);
        changes(object, old, Door::Approval, errors);
    }

    /// Any name: nobody else is named by it.
    fn check_name(&self, name: &str, is_prefix: bool) -> Vec<String> {
        names::name_is_path_segment(name, is_prefix)
    }

    fn field(&self, object: &Value, path: &str) -> Option<String> {
        (path == "spec.signerName").then(|| object["spec"]["signerName"].text().to_owned())
    }

    fn cells(&self, object: &Value) -> Vec<Cell> {
        let spec = &object["spec"];
        let duration = spec["expirationSeconds"].maybe_int().map_or_else(|| "<none>".to_owned(), time::human);
        let signer = match spec["signerName"].text() {
            "" => "<none>",
            name => name,
        };
        vec![
            table::name(object),
            table::age(object),
            signer.into(),
            spec["username"].text().into(),
            duration.into(),
            state(object).into(),
        ]
    }
}

/// What has become of a request, in a word or two.
fn state(object: &Value) -> String {
    let conditions = object["status"]["conditions"].items();
    let is = |kind: &str| conditions.iter().any(|condition| condition["type"] == kind);
    let mut state = match (is("Denied"), is("Approved")) {
        (true, _) => "Denied",
        (false, true) => "Approved",
        (false, false) => "Pending",
    }
    .to_owned();
    if is("Failed") {
        state.push_str(",Failed");
    }
    if !object["status"]["certificate"].is_empty() {
        state.push_str(",Issued");
    }
    state
}

/// What there is in base64; nothing where it cannot be read.
fn bytes(value: &Value) -> Vec<u8> {
    STANDARD.decode(value.text()).unwrap_or_default()
}

fn usages(usages: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    checks::required(path, usages, errors);
    let mut seen = std::collections::HashSet::new();
    for (index, usage) in usages.items().iter().enumerate() {
        checks::supported(&path.index(index), usage, &USAGES, errors);
        if !seen.insert(usage.text()) {
            errors.push(FieldError::duplicate(path.index(index), usage.text()));
        }
    }
}

fn conditions(conditions: &[Value], errors: &mut FieldErrors) {
    let path = Path::new("status.conditions");
    let mut seen = std::collections::HashSet::new();
    let mut decisions = 0;
    for (index, condition) in conditions.iter().enumerate() {
        let (at, kind) = (path.index(index), condition["type"].text());
        checks::required(&at.child("type"), &condition["type"], errors);
        let allowed: &[&str] = if LASTING.contains(&kind) { &["True"] } else { &["False", "True", "Unknown"] };
        match condition["status"].text() {
            "" => errors.push(FieldError::required(at.child("status"), "")),
            _ => checks::supported(&at.child("status"), &condition["status"], allowed, errors),
        }
        let is_new = seen.insert(kind);
        if is_new && DECISIONS.contains(&kind) {
            decisions += 1;
            if decisions > 1 {
                let detail = "Approved and Denied conditions are mutually exclusive";
                errors.push(FieldError::invalid(path, kind, detail));
            }
        }
        if !is_new {
            errors.push(FieldError::duplicate(at.child("type"), kind));
        }
    }
}

/// Through which door a request is changed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Door {
    Main,
    Status,
    Approval,
}

/// What may change where.
fn changes(object: &Value, old: &Value, door: Door, errors: &mut FieldErrors) {
    let of = |object: &Value, kind: &str| -> Vec<Value> {
        let conditions = object["status"]["conditions"].items().iter();
        conditions.filter(|condition| condition["type"] == kind).cloned().collect()
    };
    for kind in LASTING {
        let (now, before) = (of(object, kind), of(old, kind));
        let mut refuse = |what: &str| {
            let detail = format!("updates may not {what} a condition of type {kind:?}");
            errors.push(FieldError::forbidden("status.conditions", &detail));
        };
        match () {
            () if now.len() < before.len() => refuse("remove"),
            () if door == Door::Approval || !DECISIONS.contains(&kind) => {}
            () if now.len() > before.len() => refuse("add"),
            () if now != before => refuse("modify"),
            () => {}
        }
    }
    let (now, before) = (&object["status"]["certificate"], &old["status"]["certificate"]);
    if now != before && !(now.is_empty() && before.is_empty()) {
        if door != Door::Status {
            errors.push(FieldError::forbidden("status.certificate", "updates may not set certificate content"));
        } else if !before.is_empty() {
            let detail = "updates may not modify existing certificate content";
            errors.push(FieldError::forbidden("status.certificate", detail));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEM: &str = "-----BEGIN CERTIFICATE REQUEST-----\nAA==\n-----END CERTIFICATE REQUEST-----\n";

    fn request(more: Value) -> Value {
        let mut request = json!({"spec": {
            "request": STANDARD.encode(PEM), "signerName": "kubernetes.io/kube-apiserver-client", "usages": ["client auth"],
        }, "status": {}});
        for (field, value) in more.as_object().into_iter().flatten() {
            for (name, value) in value.as_object().into_iter().flatten() {
                request[field][name] = value.clone();
            }
        }
        request
    }

    fn told(errors: FieldErrors) -> Vec<String> {
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_request_is_checked_as_far_as_it_can_be_read() {
        for (more, expected) in [
            (json!({}), ""),
            (json!({"spec": {"request": STANDARD.encode("x")}}), "PEM block type must be CERTIFICATE REQUEST"),
            (json!({"spec": {"request": STANDARD.encode(PEM.repeat(2))}}), "there is more than one PEM block"),
            (json!({"spec": {"usages": []}}), "spec.usages: Required value"),
            (json!({"spec": {"usages": ["client auth", "client auth"]}}), "spec.usages[1]: Duplicate value"),
            (json!({"spec": {"usages": ["fun"]}}), "spec.usages[0]: Unsupported value: \"fun\""),
            (json!({"spec": {"signerName": "x"}}), "must be a fully qualified domain and path of the form"),
            (json!({"spec": {"signerName": "x/y"}}), "should be a domain with at least two segments"),
            (json!({"spec": {"signerName": LEGACY}}), "the legacy signerName is not allowed"),
            (json!({"spec": {"expirationSeconds": 599}}), "may not specify a duration less than 600 seconds"),
            (
                json!({"status": {"conditions": [{"type": "Approved", "status": "False"}]}}),
                "supported values: \"True\"",
            ),
            (
                json!({"status": {"conditions": [{"type": "Approved", "status": "True"}, {"type": "Denied", "status": "True"}]}}),
                "mutually exclusive",
            ),
        ] {
            let mut errors = FieldErrors::new();
            Request.validate(&request(more.clone()), &mut errors);
            let told = told(errors).join("; ");
            assert!(told.contains(expected) && told.is_empty() == expected.is_empty(), "{more}: {told}");
        }
    }

    #[test]
    fn each_door_changes_what_is_its() {
        let approved = json!({"type": "Approved", "status": "True", "reason": "a"});
        let with = |conditions: Value| request(json!({"status": {"conditions": conditions}}));
        let mut issued = with(json!([approved]));
        issued["status"]["certificate"] = "x".into();
        for (new, old, main, status, approval) in [
            (with(json!([approved])), request(json!({})), "may not add", "may not add", ""),
            (request(json!({})), with(json!([approved])), "may not remove", "may not remove", "may not remove"),
            (issued.clone(), with(json!([approved])), "may not set certificate", "", "may not set certificate"),
            (with(json!([approved])), issued, "may not set certificate", "may not modify existing", "may not set"),
        ] {
            for (door, expected) in [(Door::Main, main), (Door::Status, status), (Door::Approval, approval)] {
                let mut errors = FieldErrors::new();
                changes(&new, &old, door, &mut errors);
                let told = told(errors).join("; ");
                assert!(told.contains(expected) && told.is_empty() == expected.is_empty(), "{told}");
            }
        }
        let mut changed =
            with(json!([{"type": "Approved", "status": "True", "reason": "b"}, {"type": "Failed", "status": "True"}]));
        Request.prepare_status_update(&mut changed, &with(json!([approved])));
        assert_eq!(changed["status"]["conditions"], json!([approved, {"type": "Failed", "status": "True"}]));
        let mut decided = with(json!([approved]));
        decided["status"]["certificate"] = "x".into();
        decided["spec"]["usages"] = json!(["signing"]);
        Request.prepare_subresource_update("approval", &mut decided, &request(json!({})));
        assert_eq!(decided, with(json!([approved])));
    }
}
