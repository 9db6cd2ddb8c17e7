//! Conversion webhooks (kubernetes-api §22.2): objects of a definition whose versions are turned into each other by somebody
//! outside.
//!
//! ```text
//! records as they are stored ─► each ─► records in the version that was asked for ─► whoever reads, as of any other resource
//! an object that is written  ─► to_stored ─► the same in the version that is stored ─► the keyspace
//! ```
//! What is in the right version already is not sent. Many objects are sent together; what came of a record is kept with it for
//! as long as somebody asks for it. Of what the webhook answers only labels, annotations and what is beside the metadata is
//! believed: an object stays what it is, and where.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use coracle_api::codec::json;
use coracle_api::kinds::FieldErrors;
use coracle_api::meta::field::Path;
use coracle_api::meta::text::quote;
use coracle_api::meta::{self, validate_annotations, validate_labels};
use coracle_api::status::Status;
use coracle_keyspace::{Event, Record, Records};
use serde_json::{Value, json};

use crate::callout;
use crate::catalog::{Custom, Resource};
use crate::cluster::Cluster;
use crate::hooks::Conversion;
use crate::identity::new_uuid;
use crate::store::{self, Seen, object};

/// Objects of one call, and bytes of them unless one alone is larger: a webhook may make them larger, and its answer has to fit.
const OBJECTS_MAX: usize = 500;
const BYTES_MAX: usize = 1 << 20;
/// Bytes of an answer: three times what was sent, and the largest object there may be.
const ANSWER_BYTES_MAX: usize = 3 * BYTES_MAX + object::OBJECT_BYTES_MAX;
/// How long one call may take (the reference's).
const TIMEOUT: Duration = Duration::from_secs(30);

/// The records as clients of this resource see them: those that are stored in another version are converted, if its definition
/// says by whom.
pub(crate) async fn each(
    cluster: &Cluster,
    resource: &Arc<Resource>,
    records: Vec<Arc<Record>>,
) -> Result<Vec<Arc<Record>>, Status> {
    let Some(custom) = resource.custom.as_ref().filter(|custom| custom.conversion.is_some()) else {
        return Ok(records);
    };
    let mut converted = records;
    let (mut batch, mut bytes) = (Vec::new(), 0);
    for at in 0..converted.len() {
        let record = &converted[at];
        if custom.converter(record).is_none() {
            continue;
        }
        let known = Seen::new(resource, record).converted().get().cloned();
        if let Some(known) = known {
            converted[at] = known;
            continue;
        }
        if !batch.is_empty() && (batch.len() >= OBJECTS_MAX || bytes + converted[at].bytes.len() > BYTES_MAX) {
            run(cluster, resource, custom, &mut converted, std::mem::take(&mut batch)).await?;
            bytes = 0;
        }
        bytes += converted[at].bytes.len();
        batch.push(at);
    }
    run(cluster, resource, custom, &mut converted, batch).await?;
    Ok(converted)
}

/// The same of one.
pub(crate) async fn one(
    cluster: &Cluster,
    resource: &Arc<Resource>,
    record: &Arc<Record>,
) -> Result<Arc<Record>, Status> {
    // What nearly every request asks costs nothing, and no room in its future.
    if resource.custom.as_ref().is_none_or(|custom| custom.converter(record).is_none()) {
        return Ok(record.clone());
    }
    let one = Box::pin(each(cluster, resource, vec![record.clone()])).await?;
    Ok(one.into_iter().next().unwrap_or_else(|| record.clone()))
}

/// The same of a part of a collection: of a namespace, after a name.
pub(crate) async fn all(
    cluster: &Cluster,
    resource: &Arc<Resource>,
    (namespace, after): (Option<&str>, Option<&str>),
    records: Records,
) -> Result<Records, Status> {
    if resource.custom.as_ref().is_none_or(|custom| custom.conversion.is_none()) {
        return Ok(records);
    }
    let asked: Vec<Arc<Record>> = store::range(&records, namespace, after).map(|(_, record)| record.clone()).collect();
    let mut records = records;
    for record in Box::pin(each(cluster, resource, asked)).await? {
        records.insert(record.key.name.clone(), record);
    }
    Ok(records)
}

/// The same of events, with what was before them.
pub(crate) async fn events(
    cluster: &Cluster,
    resource: &Arc<Resource>,
    events: Vec<Arc<Event>>,
) -> Result<Vec<Arc<Event>>, Status> {
    let told = events.iter().flat_map(|event| std::iter::once(event.record.clone()).chain(event.previous.clone()));
    let converted = Box::pin(each(cluster, resource, told.collect())).await?;
    let mut converted = converted.into_iter();
    let mut next = |before: &Arc<Record>| converted.next().unwrap_or_else(|| before.clone());
    let retell = |event: Arc<Event>| {
        let record = next(&event.record);
        let previous = event.previous.as_ref().map(&mut next);
        let is_same = Arc::ptr_eq(&record, &event.record)
            && previous.as_ref().zip(event.previous.as_ref()).is_none_or(|(a, b)| Arc::ptr_eq(a, b));
        if is_same { event } else { Arc::new(event.retold(record, previous)) }
    };
    Ok(events.into_iter().map(retell).collect())
}

/// Whether records of this resource may have to be converted.
pub(crate) fn is_needed(resource: &Resource) -> bool {
    resource.custom.as_ref().is_some_and(|custom| custom.conversion.is_some())
}

/// Converts the records at these places.
async fn run(
    cluster: &Cluster,
    resource: &Arc<Resource>,
    custom: &Custom,
    records: &mut [Arc<Record>],
    places: Vec<usize>,
) -> Result<(), Status> {
    let Some(conversion) = &custom.conversion else { return Ok(()) };
    let mut objects = Vec::with_capacity(places.len());
    for at in &places {
        objects.push(Seen::new(resource, &records[*at]).in_own_version()?);
    }
    // What was written is there, whoever cannot show it.
    let unread = |status: Status| Status::internal_error(&status.message);
    let converted = convert(cluster, conversion, &custom.kind.api_version, objects).await.map_err(unread)?;
    for (at, mut object) in places.into_iter().zip(converted) {
        custom.kind.renew(&mut object).map_err(Status::internal_error)?;
        let record = Arc::new(records[at].renewed(&object::encode(&object)));
        let _ = Seen::new(resource, &records[at]).converted().set(record.clone());
        records[at] = record;
    }
    Ok(())
}

/// An object of a resource in the version that is stored.
pub(crate) async fn to_stored(cluster: &Cluster, resource: &Resource, object: &Value) -> Result<Option<Value>, Status> {
    let Some(custom) = &resource.custom else { return Ok(None) };
    let stored = &custom.kind.stored_version;
    match &custom.conversion {
        Some(conversion) if *stored != custom.kind.api_version => {
            Ok(Box::pin(convert(cluster, conversion, stored, vec![object.clone()])).await?.pop())
        }
        _ => Ok(None),
    }
}

/// An object of a resource in another of its versions.
pub(crate) async fn to_version(cluster: &Cluster, to: &Resource, mut object: Value) -> Result<Value, Status> {
    let Some(custom) = &to.custom else { return Ok(object) };
    if object["apiVersion"] == custom.kind.api_version {
        return Ok(object);
    }
    match &custom.conversion {
        Some(conversion) => {
            let converted = convert(cluster, conversion, &custom.kind.api_version, vec![object]).await?;
            object = converted.into_iter().next().unwrap_or_default();
        }
        None => object["apiVersion"] = custom.kind.api_version.as_str().into(),
    }
    custom.kind.renew(&mut object).map_err(Status::internal_error)?;
    Ok(object)
}

/// Has objects converted, each of which is in another version.
async fn convert(
    cluster: &Cluster,
    conversion: &Conversion,
    wanted: &str,
    objects: Vec<Value>,
) -> Result<Vec<Value>, Status> {
    let Some(first) = objects.first() else { return Ok(objects) };
    let (version, kind) = (first["apiVersion"].as_str().unwrap_or_default(), &first["kind"]);
    let of = format!("conversion webhook for {version}, Kind={}", kind.as_str().unwrap_or_default());
    let failed = |why: String| Status::unknown_error(format!("{of} failed: {why}"));
    let review = conversion.version.ok_or_else(|| failed("no supported conversion review versions".to_owned()))?;
    let uid = new_uuid();
    let (kind, api_version) = ("ConversionReview", format!("apiextensions.k8s.io/{}", review.name()));
    let request = json!({
        "kind": kind, "apiVersion": api_version,
        "request": {"uid": uid, "desiredAPIVersion": wanted, "objects": objects},
    });
    let callee = &conversion.callee;
    let target =
        callout::target(cluster, &callee.place, callee.client.has_authorities(), "?timeout=30s").map_err(failed)?;
    let body = Bytes::from(request.to_string());
    let call = callee.client.post(cluster.nodes.as_ref(), &target, body, ANSWER_BYTES_MAX);
    let timed_out = |_| failed(format!("Post {}: context deadline exceeded", quote(&target.url)));
    let answered = tokio::time::timeout(TIMEOUT, call).await.map_err(timed_out)?;
    let (code, bytes) = answered.map_err(|error| failed(error.to_string()))?;
    if !code.is_success() {
        return Err(failed(Status::generic(code.as_u16(), &String::from_utf8_lossy(&bytes)).message.clone()));
    }
    let answer = json::parse_body(&bytes).map_err(|error| failed(error.to_string()))?;
    let given = (answer["kind"].as_str(), answer["apiVersion"].as_str());
    let converted =
        answers(given == (Some(kind), Some(api_version.as_str())), &uid, &answer["response"]).map_err(failed)?;
    if converted.len() != objects.len() {
        let why = format!("{of} returned {} objects, expected {}", converted.len(), objects.len());
        return Err(Status::unknown_error(why));
    }
    objects
        .iter()
        .zip(converted)
        .enumerate()
        .map(|(at, (before, after))| {
            let wrong = |why: String| {
                Status::unknown_error(format!("{of} returned invalid converted object at index {at}: {why}"))
            };
            checked(before, after.clone(), wanted).map_err(wrong)
        })
        .collect()
}

/// The objects of a response, or why there are none.
fn answers<'a>(is_review: bool, uid: &str, response: &'a Value) -> Result<&'a [Value], String> {
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
        "Success" => Ok(response["convertedObjects"].as_array().map(Vec::as_slice).unwrap_or_default()),
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
        let good = json!({"uid": "u", "result": {"status": "Success"}, "convertedObjects": [{}]});
        assert_eq!(answers(true, "u", &good).map(<[Value]>::len), Ok(1));
        assert!(answers(false, "u", &good).is_err() && answers(true, "u", &Value::Null).is_err());
        assert_eq!(answers(true, "v", &good), Err("expected response.uid=\"v\", got \"u\"".to_owned()));
        let failed = json!({"uid": "u", "result": {"status": "Failed", "message": "no"}});
        assert_eq!(answers(true, "u", &failed), Err("no".to_owned()));
        let silent = json!({"uid": "u", "result": {}});
        assert_eq!(answers(true, "u", &silent), Err("response.result.status was '', not 'Success'".to_owned()));
    }
}
