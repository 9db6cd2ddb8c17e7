//! One call of a conversion webhook: a ConversionReview out, its objects in, each of which is checked.

use std::time::Duration;

use bytes::Bytes;
use coracle_api::codec::json;
use coracle_api::kinds::FieldErrors;
use coracle_api::meta::field::Path;
use coracle_api::meta::text::quote;
use coracle_api::meta::{self, validate_annotations, validate_labels};
use coracle_api::status::Status;
use serde_json::{Value, json};

use super::BYTES_MAX;
use crate::callout;
use crate::cluster::Cluster;
use crate::hooks::Conversion;
use crate::identity::new_uuid;
use crate::outward::{self, CallError};
use crate::store::object;

/// Bytes of an answer: three times what was sent, and the largest object there may be.
const ANSWER_BYTES_MAX: usize = 3 * BYTES_MAX + object::OBJECT_BYTES_MAX;
/// How long one call may take (the reference's).
const TIMEOUT: Duration = Duration::from_secs(30);

/// Why nothing was converted.
pub(super) enum Failure {
    /// There is no answer, whatever it was asked about.
    Unanswered(Status),
    /// The answer is that these objects are not converted, one of them or all.
    Refused(Status),
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Status {
        match failure {
            Failure::Unanswered(status) | Failure::Refused(status) => status,
        }
    }
}

/// Has objects converted, each of which is in another version; what came of each, in their order.
pub(super) async fn convert(
    cluster: &Cluster,
    conversion: &Conversion,
    wanted: &str,
    objects: &[Value],
) -> Result<Vec<Result<Value, Status>>, Failure> {
    let Some(first) = objects.first() else { return Ok(Vec::new()) };
    let (version, kind) = (first["apiVersion"].as_str().unwrap_or_default(), &first["kind"]);
    let of = format!("conversion webhook for {version}, Kind={}", kind.as_str().unwrap_or_default());
    let failed = |why: String| Status::unknown_error(format!("{of} failed: {}", outward::words(&why)));
    let unanswered = |why: String| Failure::Unanswered(failed(why));
    let refused = |why: String| Failure::Refused(failed(why));
    let review = conversion.version.ok_or_else(|| unanswered("no supported conversion review versions".to_owned()))?;
    let uid = new_uuid();
    let (kind, api_version) = ("ConversionReview", format!("apiextensions.k8s.io/{}", review.name()));
    let request = json!({
        "kind": kind, "apiVersion": api_version,
        "request": {"uid": uid, "desiredAPIVersion": wanted, "objects": objects},
    });
    let callee = &conversion.callee;
    let target =
        callout::target(cluster, &callee.place, callee.client.has_authorities(), "?timeout=30s").map_err(unanswered)?;
    let body = Bytes::from(request.to_string());
    let call = callee.client.post(&cluster.nodes, &target, body, ANSWER_BYTES_MAX);
    let timed_out = |_| unanswered(format!("Post {}: context deadline exceeded", quote(&target.url)));
    let answered = tokio::time::timeout(TIMEOUT, call).await.map_err(timed_out)?;
    let (code, bytes) = answered.map_err(|error| match error {
        CallError::Failed { .. } => unanswered(error.to_string()),
        CallError::TooLarge { .. } => refused(error.to_string()),
    })?;
    if !code.is_success() {
        let words = outward::words(&String::from_utf8_lossy(&bytes));
        return Err(refused(Status::generic(code.as_u16(), &words).message.clone()));
    }
    let mut answer = json::parse_body(&bytes).map_err(|error| refused(error.to_string()))?;
    let given = (answer["kind"].as_str(), answer["apiVersion"].as_str());
    let is_review = given == (Some(kind), Some(api_version.as_str()));
    let response = answer.get_mut("response").map(Value::take).unwrap_or_default();
    let converted = answers(is_review, &uid, response).map_err(refused)?;
    if converted.len() != objects.len() {
        let why = format!("{of} returned {} objects, expected {}", converted.len(), objects.len());
        return Err(Failure::Refused(Status::unknown_error(why)));
    }
    let check = |(at, (before, after)): (usize, (&Value, Value))| {
        checked(before, after, wanted).map_err(|why| {
            let why = outward::words(&why);
            Status::unknown_error(format!("{of} returned invalid converted object at index {at}: {why}"))
        })
    };
    Ok(objects.iter().zip(converted).enumerate().map(check).collect())
}

/// The objects of a response, or why there are none.
fn answers(is_review: bool, uid: &str, mut response: Value) -> Result<Vec<Value>, String> {
    if !is_review {
        return Err("the webhook's response is no ConversionReview of the version that was sent".to_owned());
    }
    if !response.is_object() {
        return Err("no response provided".to_owned());
    }
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let given = text(&response["uid"]);
    if given != uid {
        return Err(format!("expected response.uid={}, got {}", quote(uid), quote(&given)));
    }
    let (status, message) = (text(&response["result"]["status"]), text(&response["result"]["message"]));
    match status.as_str() {
        "Success" => match response["convertedObjects"].take() {
            Value::Null => Ok(Vec::new()),
            Value::Array(objects) => Ok(objects),
            other => Err(format!("response.convertedObjects is no list: {other}")),
        },
        _ if !message.is_empty() => Err(message),
        other => Err(format!("response.result.status was '{other}', not 'Success'")),
    }
}

/// What a webhook made of an object: it is the same one, in the version that was asked for, and of its metadata only labels and
/// annotations are others.
fn checked(before: &Value, mut after: Value, wanted: &str) -> Result<Value, String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    if after["apiVersion"] != wanted {
        return Err(format!("invalid groupVersion (expected {wanted}, received {})", text(&after["apiVersion"])));
    }
    if after["kind"] != before["kind"] {
        let (expected, given) = (text(&before["kind"]), text(&after["kind"]));
        return Err(format!("invalid kind (expected {expected}, received {given})"));
    }
    for (field, name) in [("name", "name"), ("namespace", "namespace"), ("uid", "UID")] {
        let (expected, given) = (text(&before["metadata"][field]), text(&after["metadata"][field]));
        if expected != given {
            return Err(format!("must have the same {name}: {expected} != {given}"));
        }
    }
    if !after["metadata"].is_object() {
        return Err("missing metadata in converted object".to_owned());
    }
    let mut metadata = before["metadata"].clone();
    for field in ["labels", "annotations"] {
        let given = after["metadata"][field].take();
        let Some(fields) = metadata.as_object_mut() else { return Err("invalid metadata in input object".to_owned()) };
        match &given {
            Value::Null => drop(fields.remove(field)),
            Value::Object(pairs) => {
                if let Some((key, value)) = pairs.iter().find(|(_, value)| !value.is_string()) {
                    return Err(format!(
                        "metadata.{field}[{key}] must be a string, but is {value} in converted object"
                    ));
                }
                if fields.get(field) != Some(&given) {
                    let mut errors = FieldErrors::new();
                    match field {
                        "labels" => validate_labels(Some(pairs), &Path::new("metadata.labels"), &mut errors),
                        _ => validate_annotations(Some(pairs), &Path::new("metadata.annotation"), &mut errors),
                    }
                    if !errors.is_empty() {
                        return Err(meta::field::aggregate(errors.iter().map(ToString::to_string)));
                    }
                }
                fields.insert(field.to_owned(), given);
            }
            _ => return Err(format!("invalid metadata.{field} in converted object")),
        }
    }
    after["metadata"] = metadata;
    Ok(after)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn before() -> Value {
        json!({
            "apiVersion": "e.com/v1", "kind": "E", "spec": {"a": 1},
            "metadata": {"name": "n", "namespace": "s", "uid": "u", "resourceVersion": "7", "labels": {"a": "b"}},
        })
    }

    #[test]
    fn a_conversion_changes_labels_annotations_and_content_alone() {
        let mut after = before();
        after["apiVersion"] = "e.com/v2".into();
        after["spec"] = json!({"b": "1"});
        let metadata = json!({
            "name": "n", "namespace": "s", "uid": "u", "resourceVersion": "9", "finalizers": ["x"],
            "labels": {"c": "d"}, "annotations": {"e": "f"},
        });
        after["metadata"] = metadata;
        let checked = checked(&before(), after, "e.com/v2").unwrap();
        let expected = json!({
            "apiVersion": "e.com/v2", "kind": "E", "spec": {"b": "1"},
            "metadata": {
                "name": "n", "namespace": "s", "uid": "u", "resourceVersion": "7", "labels": {"c": "d"},
                "annotations": {"e": "f"},
            },
        });
        assert_eq!(checked, expected);
    }

    #[test]
    fn what_is_another_object_is_refused() {
        for (path, value, expected) in [
            ("/apiVersion", json!("e.com/v1"), "invalid groupVersion (expected e.com/v2, received e.com/v1)"),
            ("/kind", json!("F"), "invalid kind (expected E, received F)"),
            ("/metadata/name", json!("m"), "must have the same name: n != m"),
            ("/metadata/uid", json!(""), "must have the same UID: u != "),
            ("/metadata/labels", json!({"a": 1}), "metadata.labels[a] must be a string, but is 1 in converted object"),
            ("/metadata/labels", json!([]), "invalid metadata.labels in converted object"),
        ] {
            let mut after = before();
            after["apiVersion"] = "e.com/v2".into();
            *after.pointer_mut(path).unwrap() = value;
            assert_eq!(checked(&before(), after, "e.com/v2"), Err(expected.to_owned()), "{path}");
        }
        let mut after = before();
        after["apiVersion"] = "e.com/v2".into();
        after["metadata"]["labels"] = json!({"a": "not a label!"});
        assert!(checked(&before(), after, "e.com/v2").unwrap_err().contains("metadata.labels"));
    }

    #[test]
    fn an_answer_is_to_what_was_asked() {
        let read = |is_review, uid, response: &Value| answers(is_review, uid, response.clone());
        let good = json!({"uid": "u", "result": {"status": "Success"}, "convertedObjects": [{}]});
        assert_eq!(read(true, "u", &good), Ok(vec![json!({})]));
        assert!(read(false, "u", &good).is_err() && read(true, "u", &Value::Null).is_err());
        assert_eq!(read(true, "v", &good), Err("expected response.uid=\"v\", got \"u\"".to_owned()));
        let failed = json!({"uid": "u", "result": {"status": "Failed", "message": "no"}});
        assert_eq!(read(true, "u", &failed), Err("no".to_owned()));
        let silent = json!({"uid": "u", "result": {}});
        assert_eq!(read(true, "u", &silent), Err("response.result.status was '', not 'Success'".to_owned()));
        let odd = json!({"uid": "u", "result": {"status": "Success"}, "convertedObjects": "x"});
        assert_eq!(read(true, "u", &odd), Err("response.convertedObjects is no list: \"x\"".to_owned()));
    }
}
