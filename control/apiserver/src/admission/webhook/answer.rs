//! What a webhook answers (AdmissionResponse), checked.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use coracle_api::codec::json;
use coracle_api::meta::text::quote;
use coracle_api::status::Status;
use serde_json::{Value, json};

/// An answer.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Answer {
    allowed: bool,
    /// A JSON patch; one without operations is none.
    pub patch: Option<Value>,
    pub warnings: Vec<String>,
    pub audit: Vec<(String, String)>,
    /// What is said about a refusal.
    result: Value,
}

/// Reads a review. `expected` are the version and the uid of the request, where the answer has to repeat them (v1).
///
/// # Errors
/// What is wrong with it, in the reference's words.
pub(super) fn read(review: &Value, expected: Option<(&str, &str)>, mutating: bool) -> Result<Answer, String> {
    let response = &review["response"];
    let patch =
        checked(review, expected, mutating).map_err(|why| format!("received invalid webhook response: {why}"))?;
    let patch = patch
        .map(|patch| {
            json::parse_body(&patch).map_err(|error| format!("received undecodable patch in webhook response: {error}"))
        })
        .transpose()?
        .filter(|patch| patch.as_array().is_none_or(|operations| !operations.is_empty()));
    let texts =
        |list: &Value| list.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
    let annotations = response["auditAnnotations"].as_object().into_iter().flatten();
    Ok(Answer {
        allowed: response["allowed"] == true,
        patch,
        warnings: texts(&response["warnings"]),
        audit: annotations.map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned())).collect(),
        result: if response["status"].is_object() { response["status"].clone() } else { json!({}) },
    })
}

/// The bytes of the patch of an answer that is one.
fn checked(review: &Value, expected: Option<(&str, &str)>, mutating: bool) -> Result<Option<Vec<u8>>, String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let response = &review["response"];
    if !response.is_object() {
        return Err("webhook response was absent".to_owned());
    }
    if let Some((api_version, uid)) = expected {
        if response["uid"] != uid {
            return Err(format!("expected response.uid={}, got {}", quote(uid), quote(&text(&response["uid"]))));
        }
        if review["apiVersion"] != api_version || review["kind"] != "AdmissionReview" {
            let (version, kind) = (text(&review["apiVersion"]), text(&review["kind"]));
            let version = if version.contains('/') { version } else { format!("/{version}") };
            return Err(format!(
                "expected webhook response of {api_version}, Kind=AdmissionReview, got {version}, Kind={kind}"
            ));
        }
    }
    if !matches!(response["allowed"], Value::Bool(_) | Value::Null) {
        return Err(format!("response.allowed is no boolean: {}", response["allowed"]));
    }
    let patch = match &response["patch"] {
        Value::Null => Vec::new(),
        Value::String(text) => {
            STANDARD.decode(text).map_err(|error| format!("response.patch is no base64: {error}"))?
        }
        other => return Err(format!("response.patch is no text: {other}")),
    };
    let patch_type = response["patchType"].as_str();
    Ok(match (patch.is_empty(), patch_type, mutating) {
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
    })
}

impl Answer {
    /// What the client hears of a refusal, as the webhook says it.
    pub fn refusal(&self, webhook: &str) -> Option<Status> {
        if self.allowed {
            return None;
        }
        let by = format!("admission webhook {} denied the request", quote(webhook));
        let said = |field: &str| self.result[field].as_str().unwrap_or_default();
        let message = match (said("message"), said("reason")) {
            ("", "") => format!("{by} without explanation"),
            ("", reason) => format!("{by}: {reason}"),
            (message, _) => format!("{by}: {message}"),
        };
        let code = self.result["code"].as_u64().and_then(|code| u16::try_from(code).ok()).unwrap_or(0).max(400);
        let mut status = self.result.clone();
        let fixed =
            json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "message": message});
        if let (Some(status), Value::Object(fixed)) = (status.as_object_mut(), fixed) {
            status.extend(fixed);
            status.entry("metadata").or_insert_with(|| json!({}));
            status.entry("reason").or_insert_with(|| "".into());
        }
        // What is no Status is told without what it says beside.
        Some(serde_json::from_value(status).unwrap_or_else(|_| Status::failure(code, "", message)))
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
        let bad = json!({"allowed": true, "patch": patch("{"), "patchType": "JSONPatch"});
        assert!(read(&review(bad), EXPECTED, true).unwrap_err().starts_with("received undecodable patch"));
    }

    #[test]
    fn an_answer_has_a_patch_warnings_and_annotations() {
        let response = json!({
            "allowed": true, "patchType": "JSONPatch", "patch": patch(r#"[{"op": "remove", "path": "/a"}]"#),
            "warnings": ["careful"], "auditAnnotations": {"k": "v"},
        });
        let answer = read(&review(response), EXPECTED, true).unwrap();
        assert_eq!(answer.patch, Some(json!([{"op": "remove", "path": "/a"}])));
        assert_eq!((answer.warnings.as_slice(), answer.audit.len()), (&["careful".to_owned()][..], 1));
        assert!(answer.refusal("x").is_none());
        let empty = json!({"allowed": true, "patchType": "JSONPatch", "patch": patch("[]")});
        assert_eq!(read(&review(empty), EXPECTED, true).unwrap().patch, None);
        // The older form repeats nothing.
        let old = json!({"response": {"allowed": true, "patch": patch(r#"[{"op": "remove", "path": "/a"}]"#)}});
        assert!(read(&old, None, true).unwrap().patch.is_some());
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
