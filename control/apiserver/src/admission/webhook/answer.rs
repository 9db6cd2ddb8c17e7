//! What a webhook answers (AdmissionResponse), checked.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use coracle_api::codec::json;
use coracle_api::meta::text::quote;
use coracle_api::status::Status;
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// AdmissionResponse as it is written; null is as nothing.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Response {
    uid: Option<String>,
    allowed: Option<bool>,
    status: Option<Value>,
    patch: Option<String>,
    patch_type: Option<String>,
    warnings: Option<Vec<String>>,
    audit_annotations: Option<BTreeMap<String, String>>,
}

/// An answer to what was asked. Its patch is not read before it is known to consent: a refusal is one with any patch.
#[derive(Debug, PartialEq)]
pub(super) struct Answer {
    allowed: bool,
    patch: Option<Vec<u8>>,
    pub warnings: Vec<String>,
    pub audit: BTreeMap<String, String>,
    /// What is said about a refusal.
    result: Map<String, Value>,
}

/// What a webhook consents to.
#[derive(Debug, PartialEq)]
pub(super) struct Consent {
    /// A JSON patch; one without operations is none.
    pub patch: Option<Value>,
}

/// Reads a review. `expected` are the version and the uid of the request, where the answer has to repeat them (v1).
///
/// # Errors
/// What is wrong with it, in the reference's words.
pub(super) fn read(review: &Value, expected: Option<(&str, &str)>, mutating: bool) -> Result<Answer, String> {
    checked(review, expected, mutating).map_err(|why| format!("received invalid webhook response: {why}"))
}

fn checked(review: &Value, expected: Option<(&str, &str)>, mutating: bool) -> Result<Answer, String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    if !review["response"].is_object() {
        return Err("webhook response was absent".to_owned());
    }
    let response = Response::deserialize(&review["response"]).map_err(|error| format!("response: {error}"))?;
    if let Some((api_version, uid)) = expected {
        let given = response.uid.unwrap_or_default();
        if given != uid {
            return Err(format!("expected response.uid={}, got {}", quote(uid), quote(&given)));
        }
        if review["apiVersion"] != api_version || review["kind"] != "AdmissionReview" {
            let (version, kind) = (text(&review["apiVersion"]), text(&review["kind"]));
            let version = if version.contains('/') { version } else { format!("/{version}") };
            return Err(format!(
                "expected webhook response of {api_version}, Kind=AdmissionReview, got {version}, Kind={kind}"
            ));
        }
    }
    let patch = STANDARD.decode(response.patch.unwrap_or_default());
    let patch = patch.map_err(|error| format!("response.patch is no base64: {error}"))?;
    let patch = match (patch.is_empty(), response.patch_type.as_deref(), mutating) {
        (true, None, _) => None,
        (false, _, false) => return Err("validating webhook may not return response.patch".to_owned()),
        (true, Some(_), false) => return Err("validating webhook may not return response.patchType".to_owned()),
        // Of old the type was not told.
        (false, None, true) if expected.is_some() => {
            return Err("webhook returned response.patch but not response.patchType".to_owned());
        }
        (true, Some(_), true) if expected.is_some() => {
            return Err("webhook returned response.patchType but not response.patch".to_owned());
        }
        (true, Some(_), true) => None,
        (false, Some("JSONPatch") | None, true) => Some(patch),
        (false, Some(""), true) => return Err("webhook returned invalid response.patchType of \"\"".to_owned()),
        (false, Some(other), true) => return Err(format!("unsupported patch type {}", quote(other))),
    };
    Ok(Answer {
        allowed: response.allowed.unwrap_or_default(),
        patch,
        warnings: response.warnings.unwrap_or_default(),
        audit: response.audit_annotations.unwrap_or_default(),
        // What is no Status is told as none.
        result: response.status.and_then(|mut status| status.as_object_mut().map(std::mem::take)).unwrap_or_default(),
    })
}

impl Answer {
    /// What the client hears of a refusal, as the webhook says it.
    pub fn refusal(&self, webhook: &str) -> Option<Status> {
        if self.allowed {
            return None;
        }
        let by = format!("admission webhook {} denied the request", quote(webhook));
        let said = |field: &str| self.result.get(field).and_then(Value::as_str).unwrap_or_default();
        let message = match (said("message"), said("reason")) {
            ("", "") => format!("{by} without explanation"),
            ("", reason) => format!("{by}: {reason}"),
            (message, _) => format!("{by}: {message}"),
        };
        let code = self.result.get("code").and_then(Value::as_u64);
        let code = code.and_then(|code| u16::try_from(code).ok()).unwrap_or(0).max(400);
        let mut status = self.result.clone();
        let fixed =
            json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "message": message});
        if let Value::Object(fixed) = fixed {
            status.extend(fixed);
        }
        status.entry("metadata").or_insert_with(|| json!({}));
        status.entry("reason").or_insert_with(|| "".into());
        // What is no Status is told without what it says beside.
        Some(serde_json::from_value(status.into()).unwrap_or_else(|_| Status::failure(code, "", message)))
    }

    /// What it consents to, of one that does not refuse.
    ///
    /// # Errors
    /// Its patch is none.
    pub fn consent(self) -> Result<Consent, String> {
        let undecodable = |why: String| format!("received undecodable patch in webhook response: {why}");
        let operations = match self.patch {
            None => Vec::new(),
            Some(patch) => match json::parse_body(&patch).map_err(|error| undecodable(error.to_string()))? {
                Value::Array(operations) => operations,
                _ => return Err(undecodable("it is no list of operations".to_owned())),
            },
        };
        let patch = (!operations.is_empty()).then_some(Value::Array(operations));
        Ok(Consent { patch })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXPECTED: Option<(&str, &str)> = Some(("admission.k8s.io/v1", "u"));

    fn review(response: Value) -> Value {
        let mut review = json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": response});
        if review["response"].is_object() && review["response"]["uid"].is_null() {
            review["response"]["uid"] = "u".into();
        }
        review
    }

    fn patch(text: &str) -> String {
        STANDARD.encode(text)
    }

    #[test]
    fn what_is_no_answer_is_told() {
        for (response, mutating, expected) in [
            (Value::Null, true, "webhook response was absent"),
            (json!({"uid": "v"}), true, "expected response.uid=\"u\", got \"v\""),
            (json!({"allowed": true, "patch": patch("[]")}), false, "validating webhook may not return response.patch"),
            (
                json!({"allowed": true, "patchType": "JSONPatch"}),
                false,
                "validating webhook may not return response.patchType",
            ),
            (
                json!({"allowed": true, "patch": patch("[]")}),
                true,
                "webhook returned response.patch but not response.patchType",
            ),
            (
                json!({"allowed": true, "patchType": "JSONPatch"}),
                true,
                "webhook returned response.patchType but not response.patch",
            ),
            (
                json!({"allowed": true, "patch": patch("[]"), "patchType": "Merge"}),
                true,
                "unsupported patch type \"Merge\"",
            ),
        ] {
            let expected = format!("received invalid webhook response: {expected}");
            assert_eq!(read(&review(response.clone()), EXPECTED, mutating), Err(expected), "{response}");
        }
        let mut other = review(json!({"allowed": true}));
        other["apiVersion"] = "v1".into();
        let words = "received invalid webhook response: expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got /v1, Kind=AdmissionReview";
        assert_eq!(read(&other, EXPECTED, true), Err(words.to_owned()));
        for response in [
            json!({"allowed": "true"}),
            json!({"allowed": true, "warnings": "careful"}),
            json!({"allowed": true, "warnings": [7]}),
            json!({"allowed": true, "auditAnnotations": {"k": 7}}),
            json!({"allowed": true, "patch": 7, "patchType": "JSONPatch"}),
            json!({"allowed": true, "patch": patch("[]"), "patchType": 7}),
        ] {
            let told = read(&review(response.clone()), EXPECTED, true).expect_err("mistyped");
            assert!(
                told.starts_with("received invalid webhook response: response: invalid type"),
                "{response}: {told}"
            );
        }
    }

    #[test]
    fn a_patch_that_is_none_is_told_of_who_consents_and_of_nobody_else() {
        for bad in ["{", "{}", "7"] {
            let answer = |allowed: bool| {
                let response = json!({"allowed": allowed, "patch": patch(bad), "patchType": "JSONPatch"});
                read(&review(response), EXPECTED, true).unwrap()
            };
            assert!(answer(true).consent().unwrap_err().starts_with("received undecodable patch"), "{bad}");
            assert_eq!(answer(false).refusal("x").map(|status| status.code()), Some(400), "{bad}");
        }
    }

    #[test]
    fn an_answer_has_a_patch_warnings_and_annotations() {
        let response = json!({
            "allowed": true, "patchType": "JSONPatch", "patch": patch(r#"[{"op": "remove", "path": "/a"}]"#),
            "warnings": ["careful"], "auditAnnotations": {"k": "v"},
        });
        let answer = read(&review(response), EXPECTED, true).unwrap();
        assert!(answer.refusal("x").is_none());
        assert_eq!(answer.warnings, ["careful"]);
        assert_eq!(answer.audit.get("k").map(String::as_str), Some("v"));
        assert_eq!(answer.consent().unwrap().patch, Some(json!([{"op": "remove", "path": "/a"}])));
        let empty = json!({"allowed": true, "patchType": "JSONPatch", "patch": patch("[]")});
        assert_eq!(read(&review(empty), EXPECTED, true).unwrap().consent().unwrap().patch, None);
        // The older form repeats nothing.
        let old = json!({"response": {"allowed": true, "patch": patch(r#"[{"op": "remove", "path": "/a"}]"#)}});
        assert!(read(&old, None, true).unwrap().consent().unwrap().patch.is_some());
    }

    #[test]
    fn a_refusal_is_told_as_the_webhook_says_it() {
        let refused = |status: Value| {
            let answer = read(&review(json!({"allowed": false, "status": status})), EXPECTED, false).unwrap();
            let status = answer.refusal("a.b.c").unwrap();
            (status.code(), status.reason.to_string(), status.message.clone())
        };
        let by = "admission webhook \"a.b.c\" denied the request";
        for (status, code, reason, message) in [
            (Value::Null, 400, "", format!("{by} without explanation")),
            (json!({"message": "no"}), 400, "", format!("{by}: no")),
            (json!({"code": 403, "reason": "Forbidden", "message": "no"}), 403, "Forbidden", format!("{by}: no")),
            (json!({"reason": "Invalid", "code": 200}), 400, "Invalid", format!("{by}: Invalid")),
            (json!({"code": 422, "message": "x", "details": {"name": 7}}), 422, "", format!("{by}: x")),
        ] {
            assert_eq!(refused(status.clone()), (code, reason.to_owned(), message), "{status}");
        }
    }
}
