//! One request, as it is written down (`audit.k8s.io/v1` Event).

use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use coracle_api::codec::json;
use http::header;
use jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::{Map, Value, json};

use super::Auditor;
use super::policy::{Level, Plan, Stage};
use crate::identity::Identity;
use crate::request::call::Told;

/// Most bytes of an object that are written down; of a larger one it is said that it is larger.
const OBJECT_BYTES_MAX: usize = 1_572_864;
/// The same of the answer to a request that failed: its status.
const STATUS_BYTES_MAX: usize = 64 << 10;

/// Who asks, and for what.
pub(crate) struct Who<'a> {
    pub identity: &'a Identity,
    /// Who really calls, when that is somebody else.
    pub acting: Option<&'a str>,
    pub source: Option<String>,
    pub agent: Option<&'a str>,
    pub uri: String,
    pub verb: &'a str,
    pub id: String,
    /// Of what is a resource.
    pub object: Option<Value>,
    pub received: Timestamp,
}

/// A request on its way.
pub(crate) struct Draft {
    auditor: Arc<Auditor>,
    plan: Plan,
    event: Mutex<Map<String, Value>>,
    told: Mutex<Option<Told>>,
}

/// A user as events show it.
fn user(identity: &Identity) -> Value {
    let mut user = json!({"username": identity.user, "groups": identity.groups});
    if !identity.uid.is_empty() {
        user["uid"] = identity.uid.as_str().into();
    }
    if !identity.extra.is_empty() {
        user["extra"] = json!(identity.extra);
    }
    user
}

/// A time as events have it, with microseconds.
fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()
}

impl Draft {
    pub fn begin(auditor: &Arc<Auditor>, plan: Plan, who: Who<'_>) -> Arc<Draft> {
        let mut event = Map::new();
        let mut set = |field: &str, value: Value| drop(event.insert(field.to_owned(), value));
        set("kind", "Event".into());
        set("apiVersion", "audit.k8s.io/v1".into());
        set("level", plan.level.name().into());
        set("auditID", who.id.into());
        set("requestURI", who.uri.into());
        set("verb", who.verb.into());
        match who.acting {
            Some(acting) => {
                set("user", json!({ "username": acting }));
                set("impersonatedUser", user(who.identity));
            }
            None => set("user", user(who.identity)),
        }
        set("sourceIPs", who.source.into_iter().collect());
        if let Some(agent) = who.agent {
            set("userAgent", agent.into());
        }
        if let Some(object) = who.object {
            set("objectRef", object);
        }
        set("requestReceivedTimestamp", time(who.received).into());
        let draft = Draft { auditor: auditor.clone(), plan, event: Mutex::new(event), told: Mutex::default() };
        draft.say(Stage::RequestReceived, who.received);
        Arc::new(draft)
    }

    /// Where the parts of the server tell what they have to say of the request.
    pub fn listen(&self, told: Told) {
        *self.told.lock() = Some(told);
    }

    /// Whether what is sent is written down.
    pub fn wants_request(&self) -> bool {
        self.plan.level >= Level::Request
    }

    /// What was sent, read.
    pub fn sent(&self, body: Value) {
        self.put("requestObject", body);
    }

    fn put(&self, field: &str, mut object: Value) {
        if self.plan.omit_managed_fields {
            drop_managed_fields(&mut object);
        }
        self.event.lock().insert(field.to_owned(), object);
    }

    fn say(&self, stage: Stage, at: Timestamp) {
        if self.plan.omitted.contains(&stage) {
            return;
        }
        let mut event = self.event.lock().clone();
        event.insert("stage".to_owned(), stage.name().into());
        event.insert("stageTimestamp".to_owned(), time(at).into());
        let told = self.told.lock().as_ref().map(Told::all).unwrap_or_default();
        if !told.is_empty() {
            let annotations: Map<String, Value> = told.into_iter().map(|(key, value)| (key, value.into())).collect();
            event.insert("annotations".to_owned(), annotations.into());
        }
        self.auditor.write(&Value::Object(event));
    }

    /// The server failed over it.
    pub fn panicked(&self) {
        self.status(json!({"metadata": {}, "status": "Failure", "reason": "InternalError", "code": 500}));
        self.say(Stage::Panic, Timestamp::now());
    }

    fn status(&self, status: Value) {
        self.event.lock().insert("responseStatus".to_owned(), status);
    }

    /// The answer, which is written down when it has been sent; one that goes on, as a watch does, also when it begins.
    pub fn answered(self: Arc<Draft>, response: Response, goes_on: bool) -> Response {
        let code = response.status().as_u16();
        self.status(json!({"metadata": {}, "code": code}));
        if goes_on {
            self.say(Stage::ResponseStarted, Timestamp::now());
        }
        let is_json = response.headers().get(header::CONTENT_TYPE).is_some_and(|of| of.as_bytes().starts_with(b"application/json"));
        let most = match self.plan.level {
            _ if goes_on || !is_json => 0,
            Level::RequestResponse => OBJECT_BYTES_MAX,
            _ if code >= 400 => STATUS_BYTES_MAX,
            _ => 0,
        };
        let mut sending = Sending { draft: self, kept: Vec::new(), most, is_over: false, code };
        use http_body_util::BodyExt as _;
        response.map(|body| {
            Body::new(body.map_frame(move |frame| {
                if let Some(data) = frame.data_ref() {
                    sending.see(data);
                }
                frame
            }))
        })
    }

    /// What was answered, as far as it was kept.
    fn complete(&self, kept: &[u8], is_over: bool, code: u16) {
        let answer = if is_over || kept.is_empty() { None } else { json::parse(kept).ok() };
        if let Some(answer) = &answer
            && answer["kind"] == "Status"
        {
            let mut status = answer.clone();
            if let Some(fields) = status.as_object_mut() {
                fields.remove("kind");
                fields.remove("apiVersion");
                fields.insert("code".to_owned(), code.into());
            }
            self.status(status);
        }
        if self.plan.level == Level::RequestResponse {
            match answer {
                Some(answer) => self.put("responseObject", answer),
                None if is_over => {
                    let words = format!("not written down: it has more than {OBJECT_BYTES_MAX} bytes");
                    self.put("responseObject", json!({"kind": "Status", "apiVersion": "v1", "message": words}));
                }
                None => {}
            }
        }
        self.say(Stage::ResponseComplete, Timestamp::now());
    }
}

/// An answer on its way; when it goes, it was sent, or was given up.
struct Sending {
    draft: Arc<Draft>,
    kept: Vec<u8>,
    most: usize,
    is_over: bool,
    code: u16,
}

impl Sending {
    fn see(&mut self, data: &Bytes) {
        if self.most == 0 || self.is_over {
            return;
        }
        if self.kept.len() + data.len() > self.most {
            (self.is_over, self.kept) = (true, Vec::new());
            return;
        }
        self.kept.extend_from_slice(data);
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        self.draft.complete(&self.kept, self.is_over, self.code);
    }
}

/// Of an object, and of the items of a list.
fn drop_managed_fields(object: &mut Value) {
    let remove = |object: &mut Value| {
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.remove("managedFields");
        }
    };
    remove(object);
    object.get_mut("items").and_then(Value::as_array_mut).into_iter().flatten().for_each(remove);
}
