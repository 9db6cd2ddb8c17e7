//! What is told of a request, and its line in the log: an `Event` of `audit.k8s.io/v1`.

use std::io::{self, Read as _};
use std::sync::Arc;

use bytes::Bytes;
use coracle_api::codec::{json, protobuf, yaml};
use coracle_api::{meta, schema};
use flate2::read::GzDecoder;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, HeaderName};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::policy::{Level, Stage};
use super::trail::Trail;
use super::writer::Tells;
use crate::identity::Identity;
use crate::request::annotations::{Named, TRUNCATED};

/// Most bytes of a body that is told; of longer ones it is told that they were.
pub(super) const BODY_TOLD_MAX: usize = 10 << 20;

/// A body as it was sent.
#[derive(Debug, Clone)]
pub(super) struct Body {
    bytes: Bytes,
    content_type: String,
    is_gzip: bool,
}

/// Why a body is not told.
#[derive(Debug, PartialEq, Eq)]
enum Untold {
    /// It is no object.
    NoObject,
    TooLong,
}

impl Body {
    /// Of a request. What it says of its encoding means nothing to the server.
    pub fn sent(headers: &HeaderMap, bytes: Bytes) -> Body {
        Body { bytes, content_type: header(headers, &CONTENT_TYPE), is_gzip: false }
    }

    /// Of an answer.
    pub fn answered(headers: &HeaderMap, bytes: Bytes) -> Body {
        let is_gzip = header(headers, &CONTENT_ENCODING) == "gzip";
        Body { bytes, content_type: header(headers, &CONTENT_TYPE), is_gzip }
    }

    fn object(&self) -> Result<Value, Untold> {
        let unpacked = self.is_gzip.then(|| unpack(&self.bytes)).transpose()?;
        let bytes = unpacked.as_deref().unwrap_or(&self.bytes);
        let object = if bytes.is_empty() {
            None
        } else if self.content_type.contains("protobuf") {
            from_protobuf(bytes)
        } else if self.content_type.contains("yaml") {
            yaml::to_json(bytes).ok().and_then(|converted| json::parse(&converted.bytes).ok())
        } else if self.content_type.is_empty() || self.content_type.contains("json") {
            // What says nothing of itself is taken for JSON.
            json::parse(bytes).ok()
        } else {
            None
        };
        object.ok_or(Untold::NoObject)
    }
}

fn header(headers: &HeaderMap, name: &HeaderName) -> String {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
}

fn unpack(bytes: &[u8]) -> Result<Vec<u8>, Untold> {
    let mut unpacked = Vec::new();
    let read = GzDecoder::new(bytes).take(BODY_TOLD_MAX as u64 + 1).read_to_end(&mut unpacked);
    read.map_err(|_| Untold::NoObject)?;
    if unpacked.len() > BODY_TOLD_MAX { Err(Untold::TooLong) } else { Ok(unpacked) }
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
    /// About how many bytes that holds.
    pub status_bytes: usize,
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
        let sent = self.answered.as_ref().and_then(|_| self.trail.sent());
        let bodies: usize = [answered, sent].into_iter().flatten().map(|body| body.bytes.len()).sum();
        let annotations: usize = self.annotations.iter().map(|(key, value)| key.len() + value.len()).sum();
        let status = self.answered.as_ref().map_or(0, |answered| answered.status_bytes);
        self.trail.bytes() + bodies + annotations + status
    }

    /// Its line, with the end of it.
    fn written(&self, with_bodies: bool) -> io::Result<Vec<u8>> {
        let trail = &self.trail;
        let mut annotations: Map<String, Value> =
            self.annotations.iter().map(|(key, value)| (key.clone(), value.as_str().into())).collect();
        let mut told = |body: Option<&Body>| match body?.object() {
            Ok(mut object) => {
                if trail.omits_managed_fields() {
                    without_managed_fields(&mut object);
                }
                Some(object)
            }
            Err(Untold::TooLong) => {
                annotations.insert(TRUNCATED.to_owned(), "true".into());
                None
            }
            Err(Untold::NoObject) => None,
        };
        // Before an answer, nothing of the body was read.
        let answered = self.answered.as_ref();
        let whole = answered.filter(|_| with_bodies);
        let request_object = told(whole.and_then(|_| trail.sent()));
        let response_object = told(whole.and_then(|answered| answered.body.as_ref()));
        if !with_bodies {
            annotations.insert(TRUNCATED.to_owned(), "true".into());
        }
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
        let mut line = serde_json::to_vec(&line)?;
        line.push(b'\n');
        Ok(line)
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
        let named = self.answered.as_ref().and_then(|_| self.trail.named()).unwrap_or_default();
        let Named { name, uid, resource_version } = named;
        put("name", of.name.as_deref().unwrap_or(&name));
        put("uid", &uid);
        put("apiGroup", &of.group);
        put("apiVersion", &of.version);
        put("resourceVersion", &resource_version);
        put("subresource", of.subresource.as_deref().unwrap_or_default());
        Some(Value::Object(map))
    }
}

impl Tells for Event {
    fn line(&self) -> io::Result<Vec<u8>> {
        self.written(true)
    }

    fn without_bodies(&self) -> Option<io::Result<Vec<u8>>> {
        (self.level >= Level::Request).then(|| self.written(false))
    }
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
    let rows = object.get_mut("rows").and_then(Value::as_array_mut).into_iter().flatten();
    rows.filter_map(|row| row.get_mut("object")).for_each(drop);
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
        assert_eq!(body("application/json", text.as_bytes(), false).object(), Ok(expected.clone()));
        assert_eq!(body("", text.as_bytes(), false).object(), Ok(expected.clone()));
        let yaml = b"apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n";
        assert_eq!(body("application/yaml", yaml, false).object(), Ok(expected.clone()));
        let schema = schema::of_kind("", "v1", "Namespace").unwrap();
        let wrapped = protobuf::encode(&expected, &schema);
        let told = body("application/vnd.kubernetes.protobuf", &wrapped, false).object().unwrap();
        assert_eq!((&told["kind"], &told["metadata"]["name"]), (&expected["kind"], &expected["metadata"]["name"]));
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut packed, text.as_bytes()).unwrap();
        assert_eq!(body("application/json", &packed.finish().unwrap(), true).object(), Ok(expected));
        for (content_type, bytes) in [("text/plain", &b"{}"[..]), ("application/json", b"{"), ("application/json", b"")]
        {
            assert_eq!(body(content_type, bytes, false).object(), Err(Untold::NoObject), "{content_type}");
        }
    }

    #[test]
    fn managed_fields_are_left_out_of_objects_and_lists() {
        let one = || json!({"metadata": {"name": "a", "managedFields": [{}]}});
        let mut list = json!({"items": [one(), one()], "metadata": {}});
        without_managed_fields(&mut list);
        assert_eq!(list, json!({"items": [{"metadata": {"name": "a"}}, {"metadata": {"name": "a"}}], "metadata": {}}));
        let mut table = json!({"rows": [{"object": one()}, {}]});
        without_managed_fields(&mut table);
        assert_eq!(table, json!({"rows": [{"object": {"metadata": {"name": "a"}}}, {}]}));
    }

    #[test]
    fn what_unpacks_to_more_than_is_told_is_too_long() {
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut packed, &vec![b' '; BODY_TOLD_MAX + 1]).unwrap();
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_ENCODING, "gzip".parse().unwrap());
        let packed = Bytes::from(packed.finish().unwrap());
        assert_eq!(Body::answered(&headers, packed).object(), Err(Untold::TooLong));
        // Who says so of a request hides nothing.
        let plain = Bytes::from_static(b"{}");
        assert_eq!(Body::sent(&headers, plain).object(), Ok(json!({})));
    }
}
