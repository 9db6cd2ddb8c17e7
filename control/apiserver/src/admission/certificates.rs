//! Requests for certificates: who asks is what was proved, the request is signed with its own key, and who approves or signs may do
//! so for that signer (CertificateApproval, CertificateSigning, CertificateSubjectRestriction).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use coracle_api::kinds::FieldError;
use coracle_api::meta::{self, text, time};
use coracle_api::pem;
use coracle_api::status::Status;
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer as _;

use super::Attributes;
use crate::authz;

pub(super) const GROUP: &str = "certificates.k8s.io";
const CLIENT: &str = "kubernetes.io/kube-apiserver-client";
const MASTERS: &str = "system:masters";

/// Completes and checks a new request.
pub(super) fn create(at: &Attributes<'_>, object: &mut Value) -> Result<(), Status> {
    let caller = at.caller;
    if !object["spec"].is_object() {
        return Ok(());
    }
    let extra: Map<String, Value> = caller.extra.iter().map(|(name, values)| (name.clone(), json!(values))).collect();
    let who = [
        ("username", json!(caller.user)),
        ("uid", json!(caller.uid)),
        ("groups", json!(caller.groups)),
        ("extra", Value::Object(extra)),
    ];
    for (field, value) in who {
        let is_empty = value == "" || value.as_object().is_some_and(Map::is_empty);
        match object["spec"].as_object_mut() {
            Some(spec) if is_empty => drop(spec.remove(field)),
            Some(spec) => drop(spec.insert(field.to_owned(), value)),
            None => {}
        }
    }
    let name = meta::name(object);
    // What is no PEM text at all validation says.
    let Some(der) = der(&object["spec"]["request"]) else { return Ok(()) };
    let invalid = |why: &str| {
        let error = FieldError::invalid("spec.request", object["spec"]["request"].as_str().unwrap_or_default(), why);
        Status::invalid(GROUP, "CertificateSigningRequest", name, vec![error])
    };
    let (_, request) = X509CertificationRequest::from_der(&der).map_err(|error| invalid(&error.to_string()))?;
    request.verify_signature().map_err(|_| invalid("it is not signed with the key that it names"))?;
    let organizations = request.certification_request_info.subject.iter_organization();
    let is_master = organizations.filter_map(|it| it.as_str().ok()).any(|organization| organization == MASTERS);
    if is_master && object["spec"]["signerName"] == CLIENT {
        let why = format!("use of {CLIENT} signer with {MASTERS} group is not allowed");
        return Err(at.resource.forbidden(name, why));
    }
    Ok(())
}

/// Checks who decides about a request or signs it, and notes when.
pub(super) fn update(at: &Attributes<'_>, object: &mut Value, old: &Value) -> Result<(), Status> {
    let signer = old["spec"]["signerName"].as_str().unwrap_or_default();
    let (name, quoted) = (meta::name(old), text::quote(signer));
    let refused = |what: &str| {
        let message = format!("user not permitted to {what} requests with signerName {quoted}");
        Err(at.resource.forbidden(name, message))
    };
    let failures = |request: &Value| -> Vec<Value> {
        let conditions = request["status"]["conditions"].as_array().into_iter().flatten();
        conditions.filter(|condition| condition["type"] == "Failed").cloned().collect()
    };
    let signs = object["status"]["certificate"] != old["status"]["certificate"] || failures(object) != failures(old);
    match at.subresource {
        "approval" if !may(at, "approve", signer) => return refused("approve"),
        "status" if signs && !may(at, "sign", signer) => return refused("sign"),
        "approval" | "status" => note_times(object, old),
        _ => {}
    }
    Ok(())
}

/// Whether the caller may do this for a signer, or for all of its domain.
pub(super) fn may(at: &Attributes<'_>, verb: &str, signer: &str) -> bool {
    let domain = signer.split_once('/').map_or(signer, |(domain, _)| domain);
    [signer.to_owned(), format!("{domain}/*")].iter().any(|name| {
        let asked = authz::Attributes { verb, group: GROUP, resource: "signers", name, ..authz::Attributes::default() };
        authz::allows(at.cluster, at.caller, &asked)
    })
}

/// Conditions say when they came and were told, where nobody else has.
fn note_times(object: &mut Value, old: &Value) {
    let now = time::format(Timestamp::now());
    let before = old["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let conditions = object.pointer_mut("/status/conditions").and_then(Value::as_array_mut);
    for condition in conditions.into_iter().flatten().filter(|condition| condition.is_object()) {
        if condition["lastUpdateTime"].is_null() {
            condition["lastUpdateTime"] = now.clone().into();
        }
        if condition["lastTransitionTime"].is_null() {
            let same = |it: &&Value| it["type"] == condition["type"] && it["status"] == condition["status"];
            let since = before.iter().find(same).map(|it| it["lastTransitionTime"].clone());
            condition["lastTransitionTime"] = since.filter(|it| !it.is_null()).unwrap_or_else(|| now.clone().into());
        }
    }
}

fn der(request: &Value) -> Option<Vec<u8>> {
    pem::request(&STANDARD.decode(request.as_str()?).ok()?).ok()
}
