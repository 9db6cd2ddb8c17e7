//! What is told of a request, and its line in the log: an `Event` of `audit.k8s.io/v1`.

use std::io::Read as _;
use std::sync::Arc;

use bytes::Bytes;
use coracle_api::codec::{json, protobuf, yaml};
use coracle_api::{meta, schema};
use flate2::read::GzDecoder;
use http::HeaderMap;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::policy::{Level, Stage};
use super::trail::Trail;
use crate::identity::Identity;

/// Most bytes of a body that is told; of longer ones it is told that they were.
pub(super) const BODY_TOLD_MAX: usize = 10 << 20;
/// Says that something was left out, as the reference does where an event is too large for its log.
pub(super) const TRUNCATED: &str = "audit.k8s.io/truncated";

/// A body as it was sent.
#[derive(Debug, Clone)]
pub(super) struct Body {
    pub bytes: Bytes,
    pub content_type: String,
    pub is_gzip: bool,
}

impl Body {
    pub fn new(headers: &HeaderMap, bytes: Bytes) -> Body {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        Body {
            bytes,
            content_type: text(http::header::CONTENT_TYPE).to_owned(),
            is_gzip: text(http::header::CONTENT_ENCODING) == "gzip",
        }
    }

    /// The object that it is, if it is one.
    fn object(&self) -> Option<Value> {
        let unpacked = self.is_gzip.then(|| unpack(&self.bytes));
        let bytes = match &unpacked {
            Some(unpacked) => unpacked.as_deref()?,
            None => &self.bytes[..],
        };
        if bytes.is_empty() {
            return None;
        }
        if self.content_type.contains("protobuf") {
            return from_protobuf(bytes);
        }
        if self.content_type.contains("yaml") {
            return json::parse(&yaml::to_json(bytes).ok()?.bytes).ok();
        }
        // What says nothing of itself is taken for JSON.
        (self.content_type.is_empty() || self.content_type.contains("json")).then(|| json::parse(bytes).ok()).flatten()
    }
}

fn unpack(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut unpacked = Vec::new();
    GzDecoder::new(bytes).take(BODY_TOLD_MAX as u64 + 1).read_to_end(&mut unpacked).ok()?;
    (unpacked.len() <= BODY_TOLD_MAX).then_some(unpacked)
}

fn from_protobuf(bytes: &[u8]) -> Option<Value> {
    let envelope = protobuf::open(bytes).ok()?;
    let (group, version) = envelope.api_version.split_once('/').unwrap_or(("", envelope.api_version));
    let schema = schema::of_kind(group, version, envelope.kind)?;
    Some(protobuf::decode(bytes, &schema).ok()?.value)
}

/// The answer to a request, as far as it is known.
#[derive(Debug, Clone)]
pub(super) struct Answered {
    /// A `Status`: of a success only its code.
    pub status: Value,
    /// What was sent, where that is told.
    pub body: Option<Body>,
}

/// A moment of a request. It is made into a line by who writes the log: requests do not wait for that.
pub(super) struct Event {
    pub trail: Arc<Trail>,
    pub level: Level,
    pub stage: Stage,
    pub at: Timestamp,
    pub answered: Option<Answered>,
    /// In order of their keys.
    pub annotations: Vec<(String, String)>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Line<'a> {
    kind: &'static str,
    api_version: &'static str,
    level: Level,
    #[serde(rename = "auditID")]
    audit_id: &'a str,
    stage: Stage,
    #[serde(rename = "requestURI")]
    request_uri: &'a str,
    verb: &'a str,
    user: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    impersonated_user: Option<Value>,
    #[serde(rename = "sourceIPs", skip_serializing_if = "<[String]>::is_empty")]
    source_ips: &'a [String],
    #[serde(skip_serializing_if = "str::is_empty")]
    user_agent: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    object_ref: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_status: Option<&'a Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_object: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_object: Option<Value>,
    request_received_timestamp: String,
    stage_timestamp: String,
    #[serde(skip_serializing_if = "Map::is_empty")]
    annotations: Map<String, Value>,
}

impl Event {
    /// About as many bytes as it holds.
    pub fn bytes(&self) -> usize {
        let answered = self.answered.as_ref().and_then(|answered| answered.body.as_ref());
        let sent = if self.level >= Level::Request { self.trail.sent() } else { None };
        let bodies = [answered, sent].into_iter().flatten().map(|body| body.bytes.len()).sum::<usize>();
        (1 << 10) + bodies
    }

    /// Its line, with the end of it.
    pub fn line(&self) -> Vec<u8> {
        let trail = &self.trail;
        let mut annotations: Map<String, Value> =
            self.annotations.iter().map(|(key, value)| (key.clone(), value.as_str().into())).collect();
        let mut told = |body: Option<&Body>| {
            let body = body?;
            let mut object = body.object();
            if object.is_none() && body.bytes.len() > BODY_TOLD_MAX {
                annotations.insert(TRUNCATED.to_owned(), "true".into());
            }
            if let (Some(object), true) = (&mut object, trail.omits_managed_fields()) {
                without_managed_fields(object);
            }
            object
        };
        // Before an answer, nothing of the body was read.
        let sent = if self.level >= Level::Request && self.answered.is_some() { trail.sent() } else { None };
        let request_object = told(sent);
        let answered = self.answered.as_ref();
        let response_object = told(answered.and_then(|answered| answered.body.as_ref()));
        let line = Line {
            kind: "Event",
            api_version: "audit.k8s.io/v1",
            level: self.level,
            audit_id: &trail.id,
            stage: self.stage,
            request_uri: &trail.uri,
            verb: &trail.asked.verb,
            user: user(trail.user()),
            impersonated_user: trail.acting().map(|acting| user(Some(acting))),
            source_ips: &trail.addresses,
            user_agent: &trail.agent,
            object_ref: self.object_ref(),
            response_status: answered.map(|answered| &answered.status),
            request_object,
            response_object,
            request_received_timestamp: meta::time::format_micro(trail.received),
            stage_timestamp: meta::time::format_micro(self.at),
            annotations,
        };
        let mut line = serde_json::to_vec(&line).unwrap_or_default();
        line.push(b'\n');
        line
    }

    /// What it is about. A name that the path has not is the body's.
    fn object_ref(&self) -> Option<Value> {
        let of = self.trail.asked.resource.as_ref()?;
        let mut map = Map::new();
        let mut put = |key: &str, value: &str| {
            if !value.is_empty() {
                map.insert(key.to_owned(), value.into());
            }
        };
        put("resource", &of.resource);
        put("namespace", of.namespace.as_deref().unwrap_or_default());
        let named = self.answered.as_ref().and_then(|_| self.trail.sent()).and_then(named);
        let Metadata { name, uid, resource_version } = named.unwrap_or_default();
        put("name", of.name.as_deref().unwrap_or(&name));
        put("uid", &uid);
        put("apiGroup", &of.group);
        put("apiVersion", &of.version);
        put("resourceVersion", &resource_version);
        put("subresource", of.subresource.as_deref().unwrap_or_default());
        Some(Value::Object(map))
    }
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Metadata {
    name: String,
    uid: String,
    resource_version: String,
}

/// What an object in JSON says of itself. In other forms the body is not read for that.
fn named(body: &Body) -> Option<Metadata> {
    #[derive(Deserialize)]
    struct Named {
        #[serde(default)]
        metadata: Metadata,
    }
    let is_json = body.content_type.is_empty() || body.content_type.starts_with("application/json");
    is_json.then(|| serde_json::from_slice::<Named>(&body.bytes).ok()).flatten().map(|named| named.metadata)
}

fn user(identity: Option<&Identity>) -> Value {
    let Some(identity) = identity else { return json!({}) };
    let mut user = json!({"username": identity.user});
    if !identity.uid.is_empty() {
        user["uid"] = identity.uid.as_str().into();
    }
    user["groups"] = identity.groups.as_slice().into();
    if !identity.extra.is_empty() {
        user["extra"] = json!(identity.extra);
    }
    user
}

fn without_managed_fields(object: &mut Value) {
    let drop = |one: &mut Value| {
        if let Some(metadata) = one.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.remove("managedFields");
        }
    };
    drop(object);
    object.get_mut("items").and_then(Value::as_array_mut).into_iter().flatten().for_each(drop);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_told_in_whatever_form_it_came() {
        let body = |content_type: &str, bytes: &[u8], is_gzip| Body {
            bytes: Bytes::copy_from_slice(bytes),
            content_type: content_type.to_owned(),
            is_gzip,
        };
        let expected = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a"}});
        let text = expected.to_string();
        assert_eq!(body("application/json", text.as_bytes(), false).object(), Some(expected.clone()));
        assert_eq!(body("", text.as_bytes(), false).object(), Some(expected.clone()));
        let yaml = b"apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n";
        assert_eq!(body("application/yaml", yaml, false).object(), Some(expected.clone()));
        let schema = schema::of_kind("", "v1", "Namespace").unwrap();
        let wrapped = protobuf::encode(&expected, &schema);
        let told = body("application/vnd.kubernetes.protobuf", &wrapped, false).object().unwrap();
        assert_eq!((&told["kind"], &told["metadata"]["name"]), (&expected["kind"], &expected["metadata"]["name"]));
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut packed, text.as_bytes()).unwrap();
        assert_eq!(body("application/json", &packed.finish().unwrap(), true).object(), Some(expected));
        for (content_type, bytes) in [("text/plain", &b"{}"[..]), ("application/json", b"{"), ("application/json", b"")]
        {
            assert_eq!(body(content_type, bytes, false).object(), None, "{content_type}");
        }
    }

    #[test]
    fn managed_fields_are_left_out_of_objects_and_lists() {
        let one = || json!({"metadata": {"name": "a", "managedFields": [{}]}});
        let mut list = json!({"items": [one(), one()], "metadata": {}});
        without_managed_fields(&mut list);
        assert_eq!(list, json!({"items": [{"metadata": {"name": "a"}}, {"metadata": {"name": "a"}}], "metadata": {}}));
    }
}
