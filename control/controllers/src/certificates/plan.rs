//! Which request for a certificate may be approved by itself, which signer would sign it, and when it is of no use any more. No I/O.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestCondition};

use super::Asked;

pub(super) const CLIENT: &str = "kubernetes.io/kube-apiserver-client";
pub(super) const CLIENT_KUBELET: &str = "kubernetes.io/kube-apiserver-client-kubelet";
pub(super) const SERVING: &str = "kubernetes.io/kubelet-serving";
const NODES: &str = "system:nodes";
const NODE: &str = "system:node:";

/// How long a request that was decided is kept, and one that was not (the reference's).
const DECIDED: Duration = Duration::from_secs(3600);
const UNDECIDED: Duration = Duration::from_secs(24 * 3600);

/// What is to be done about a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    Nothing,
    /// Approve it, if whoever asks may create one of these subresources.
    Approve(Vec<(&'static str, &'static str)>),
    Sign,
    /// It was approved, and no signer signs it.
    Fail(String),
    Delete,
}

fn condition<'a>(request: &'a CertificateSigningRequest, kind: &str) -> Option<&'a CertificateSigningRequestCondition> {
    let status = request.status.as_ref()?;
    status.conditions.as_deref().unwrap_or_default().iter().find(|condition| condition.type_ == kind)
}

fn certificate(request: &CertificateSigningRequest) -> Option<&[u8]> {
    let status = request.status.as_ref()?;
    status.certificate.as_ref().map(|bytes| bytes.0.as_slice()).filter(|bytes| !bytes.is_empty())
}

/// Decides about a request that asks for this; nothing was read where it cannot be read. `ends` is when its certificate ends.
pub(super) fn plan(
    request: &CertificateSigningRequest,
    asked: Result<&Asked, &str>,
    ends: Option<Timestamp>,
    now: Timestamp,
) -> Step {
    if deadline(request, ends).is_some_and(|at| at <= now) {
        return Step::Delete;
    }
    let is_decided = ["Approved", "Denied"].map(|kind| condition(request, kind).is_some());
    match is_decided {
        _ if certificate(request).is_some() || condition(request, "Failed").is_some() => Step::Nothing,
        [_, true] => Step::Nothing,
        [true, false] => match asked.map_err(str::to_owned).and_then(|asked| check(request, asked)) {
            Ok(true) => Step::Sign,
            Ok(false) => Step::Nothing,
            Err(why) => Step::Fail(why),
        },
        [false, false] => match asked {
            Ok(asked) if request.spec.signer_name == CLIENT_KUBELET && kubelet_client(request, asked).is_ok() => {
                Step::Approve(approvals(request, asked))
            }
            _ => Step::Nothing,
        },
    }
}

/// By which subresource an account may have its request approved, and what is said then.
fn approvals(request: &CertificateSigningRequest, asked: &Asked) -> Vec<(&'static str, &'static str)> {
    let own = ("selfnodeclient", "Auto approving self kubelet client certificate after SubjectAccessReview.");
    let any = ("nodeclient", "Auto approving kubelet client certificate after SubjectAccessReview.");
    match request.spec.username.as_deref() == Some(&asked.common_name) {
        true => vec![own, any],
        false => vec![any],
    }
}

/// Whether a signer of ours signs it; false of another's.
fn check(request: &CertificateSigningRequest, asked: &Asked) -> Result<bool, String> {
    match request.spec.signer_name.as_str() {
        CLIENT => client(request)?,
        CLIENT_KUBELET => kubelet_client(request, asked)?,
        SERVING => kubelet_serving(request, asked)?,
        _ => return Ok(false),
    }
    let mut names = asked.dns_names.iter().chain(&asked.organizations).chain([&asked.common_name]);
    match names.any(|name| is_own(name)) {
        true => Err("it asks for a name that only the cluster's servers have".to_owned()),
        false => Ok(true),
    }
}

/// Whether servers know each other by a name like this, or nodes know them, and nobody else has it: as TLS compares names, whatever
/// the case and with or without the dot at the end (RFC 6125, section 6.4.1).
fn is_own(name: &str) -> bool {
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    name.starts_with("coracle:")
        || name.starts_with("member_")
        || name.ends_with(".coracle")
        || name == "kube-apiserver-kubelet-client"
}

fn usages(request: &CertificateSigningRequest) -> BTreeSet<&str> {
    request.spec.usages.iter().flatten().map(String::as_str).collect()
}

fn client(request: &CertificateSigningRequest) -> Result<(), String> {
    const ALLOWED: [&str; 3] = ["digital signature", "key encipherment", "client auth"];
    let usages = usages(request);
    match usages.contains("client auth") && usages.iter().all(|usage| ALLOWED.contains(usage)) {
        true => Ok(()),
        false => Err(format!("invalid usage for client certificate: {usages:?}")),
    }
}

fn is_node(asked: &Asked) -> Result<(), String> {
    if asked.organizations != [NODES] {
        return Err("subject organization is not system:nodes".to_owned());
    }
    if !asked.common_name.starts_with(NODE) {
        return Err("subject common name does not begin with system:node:".to_owned());
    }
    if !asked.emails.is_empty() {
        return Err("Email subjectAltNames are not allowed".to_owned());
    }
    match asked.uris.is_empty() {
        true => Ok(()),
        false => Err("URI subjectAltNames are not allowed".to_owned()),
    }
}

fn kubelet_client(request: &CertificateSigningRequest, asked: &Asked) -> Result<(), String> {
    is_node(asked)?;
    if !asked.dns_names.is_empty() {
        return Err("DNS subjectAltNames are not allowed".to_owned());
    }
    if !asked.addresses.is_empty() {
        return Err("IP subjectAltNames are not allowed".to_owned());
    }
    exactly(request, "client auth")
}

fn kubelet_serving(request: &CertificateSigningRequest, asked: &Asked) -> Result<(), String> {
    is_node(asked)?;
    if asked.dns_names.is_empty() && asked.addresses.is_empty() {
        return Err("DNS or IP subjectAltName is required".to_owned());
    }
    // What the reference leaves to whoever approves: a node asks for itself.
    if request.spec.username.as_deref() != Some(&asked.common_name) {
        return Err("the node that is named is not the one that asks".to_owned());
    }
    exactly(request, "server auth")
}

/// Whether the usages are these, with or without that which only RSA needs.
fn exactly(request: &CertificateSigningRequest, usage: &str) -> Result<(), String> {
    let mut given = usages(request);
    given.remove("key encipherment");
    match given == BTreeSet::from(["digital signature", usage]) {
        true => Ok(()),
        false => Err(format!("usages did not match [digital signature key encipherment {usage}]")),
    }
}

/// When a request is of no use any more; never one that is approved and not signed yet.
pub(super) fn deadline(request: &CertificateSigningRequest, ends: Option<Timestamp>) -> Option<Timestamp> {
    let after = |since: Timestamp, keep: Duration| since.checked_add(keep).ok();
    let said = |kind: &str| {
        let condition = condition(request, kind)?;
        condition.last_update_time.as_ref().or(condition.last_transition_time.as_ref()).map(|time| time.0)
    };
    let decided = |kind| said(kind).and_then(|since| after(since, DECIDED));
    let is_undecided = ["Approved", "Denied", "Failed"].iter().all(|kind| condition(request, kind).is_none());
    match certificate(request) {
        Some(_) => [ends, decided("Approved")].into_iter().flatten().min(),
        None if is_undecided => {
            let made = request.metadata.creation_timestamp.as_ref()?.0;
            after(made, UNDECIDED)
        }
        None => [decided("Denied"), decided("Failed")].into_iter().flatten().min(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn request(signer: &str, usages: Value, status: Value) -> CertificateSigningRequest {
        let request = json!({
            "metadata": {"name": "r", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"request": "", "signerName": signer, "usages": usages, "username": "system:node:a"},
            "status": status,
        });
        serde_json::from_value(request).unwrap()
    }

    fn node(name: &str) -> Asked {
        let organizations = vec![NODES.to_owned()];
        Asked { common_name: format!("{NODE}{name}"), organizations, ..Asked::default() }
    }

    fn said(kind: &str) -> Value {
        json!({"conditions": [{"type": kind, "status": "True", "lastUpdateTime": "2026-01-01T00:00:00Z"}]})
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn nodes_are_approved_for_themselves_and_what_was_approved_is_signed() {
        let now = at("2026-01-01T00:00:01Z");
        let both = json!(["digital signature", "client auth"]);
        let of = |signer: &str, status: Value, asked: &Asked| {
            plan(&request(signer, both.clone(), status), Ok(asked), None, now)
        };
        let Step::Approve(ways) = of(CLIENT_KUBELET, json!({}), &node("a")) else { panic!("it may be approved") };
        assert_eq!(ways.iter().map(|(way, _)| *way).collect::<Vec<_>>(), ["selfnodeclient", "nodeclient"]);
        let Step::Approve(ways) = of(CLIENT_KUBELET, json!({}), &node("b")) else { panic!("it may be approved") };
        assert_eq!(ways.len(), 1);
        assert_eq!(of(CLIENT, json!({}), &node("a")), Step::Nothing, "people decide");
        for signer in [CLIENT, CLIENT_KUBELET] {
            assert_eq!(of(signer, said("Approved"), &node("a")), Step::Sign);
            assert_eq!(of(signer, said("Denied"), &node("a")), Step::Nothing);
        }
        assert_eq!(of("example.com/own", said("Approved"), &node("a")), Step::Nothing, "it is another's");
        let mut done = said("Approved");
        done["certificate"] = json!("eA==");
        assert_eq!(of(CLIENT, done, &node("a")), Step::Nothing);
    }

    #[test]
    fn what_a_signer_does_not_sign_fails() {
        let now = at("2026-01-01T00:00:01Z");
        let serving = Asked { dns_names: vec!["a".to_owned()], ..node("a") };
        for (signer, usages, asked, expected) in [
            (CLIENT, json!(["client auth", "server auth"]), node("a"), "invalid usage for client certificate"),
            (CLIENT, json!(["digital signature"]), node("a"), "invalid usage for client certificate"),
            (
                CLIENT,
                json!(["client auth"]),
                Asked { common_name: "coracle:member:1".into(), ..Asked::default() },
                "only the cluster's servers have",
            ),
            (
                SERVING,
                json!(["server auth", "digital signature"]),
                Asked { dns_names: vec!["member_1.x.coracle".to_owned()], ..node("a") },
                "only the cluster's servers have",
            ),
            (
                CLIENT,
                json!(["client auth"]),
                Asked { common_name: "kube-apiserver-kubelet-client".into(), ..Asked::default() },
                "only the cluster's servers have",
            ),
            (CLIENT_KUBELET, json!(["client auth", "digital signature"]), Asked::default(), "organization is not"),
            (CLIENT_KUBELET, json!(["client auth"]), node("a"), "usages did not match"),
            (
                CLIENT_KUBELET,
                json!(["client auth", "digital signature"]),
                serving.clone(),
                "DNS subjectAltNames are not",
            ),
            (SERVING, json!(["server auth", "digital signature"]), node("a"), "DNS or IP subjectAltName is required"),
            (
                SERVING,
                json!(["server auth", "digital signature"]),
                Asked { dns_names: vec!["b".to_owned()], ..node("b") },
                "not the one that asks",
            ),
            (SERVING, json!(["server auth", "digital signature"]), serving.clone(), ""),
        ] {
            let step = plan(&request(signer, usages, said("Approved")), Ok(&asked), None, now);
            match step {
                Step::Fail(why) => assert!(!expected.is_empty() && why.contains(expected), "{why}"),
                step => assert!(expected.is_empty() && step == Step::Sign, "{step:?}"),
            }
        }
        for name in ["MEMBER_1", "Member_1.X.Coracle", "member_1.x.coracle.", "x.CORACLE..", "*.coracle"] {
            let asked = Asked { dns_names: vec!["boat".to_owned(), name.to_owned()], ..node("a") };
            let serving = request(SERVING, json!(["server auth", "digital signature"]), said("Approved"));
            let step = plan(&serving, Ok(&asked), None, now);
            assert!(
                matches!(&step, Step::Fail(why) if why.contains("only the cluster's servers have")),
                "{name}: {step:?}"
            );
        }
        let broken = request(CLIENT, json!(["client auth"]), said("Approved"));
        assert_eq!(plan(&broken, Err("no PKCS #10"), None, now), Step::Fail("no PKCS #10".to_owned()));
    }

    #[test]
    fn requests_go_when_they_are_of_no_use() {
        let both = json!(["digital signature", "client auth"]);
        let mut issued = said("Approved");
        issued["certificate"] = json!("eA==");
        let soon = Some(at("2026-01-01T00:30:00Z"));
        for (status, ends, expected) in [
            (json!({}), None, Some("2026-01-02T00:00:00Z")),
            (said("Denied"), None, Some("2026-01-01T01:00:00Z")),
            (said("Failed"), None, Some("2026-01-01T01:00:00Z")),
            (said("Approved"), None, None),
            (issued.clone(), None, Some("2026-01-01T01:00:00Z")),
            (issued, soon, Some("2026-01-01T00:30:00Z")),
        ] {
            let request = request(CLIENT, both.clone(), status);
            assert_eq!(deadline(&request, ends), expected.map(at));
        }
        let old = request(CLIENT, both, json!({}));
        assert_eq!(plan(&old, Ok(&node("a")), None, at("2026-01-02T00:00:00Z")), Step::Delete);
    }
}
