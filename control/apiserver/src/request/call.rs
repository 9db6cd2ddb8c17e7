//! One request, understood: who asks for what, and how the answer shall look.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use coracle_api::meta;
use coracle_api::meta::selector::FieldSelector;
use coracle_api::status::Status;
use http::{HeaderMap, Method, Uri, header};
use parking_lot::Mutex;
use serde_json::Value;

use super::annotations::Annotations;
use super::negotiate::{self, Form, Offer};
use super::path::ResourcePath;
use super::query::Query;
use super::spent::Spent;
use crate::identity::Identity;
use crate::limits::{Class, Flow, Here};

/// Most characters of all warnings of one answer; beyond it each is cut short (kubernetes-api §1.5).
const WARNINGS_MAX: usize = 4096;
const WARNING_CUT: usize = 256;
/// Most warnings that are kept, and most bytes of them: no more fits into an answer, however it is cut.
const WARNINGS_KEPT: usize = 512;
const WARNINGS_KEPT_BYTES: usize = 64 << 10;

/// The warnings of an answer.
#[derive(Default)]
struct Warnings {
    list: Vec<Arc<str>>,
    known: HashSet<Arc<str>>,
    /// Bytes of what is kept.
    kept: usize,
    /// Bytes of what was said, before anything was cut.
    said: usize,
}

impl Warnings {
    fn add(&mut self, message: &str) {
        if message.is_empty() || self.list.len() >= WARNINGS_KEPT || self.kept >= WARNINGS_KEPT_BYTES {
            return;
        }
        // One that is longer than all may be is cut in any case.
        let text = &message[..message.floor_char_boundary(WARNINGS_MAX)];
        if self.known.contains(text) {
            return;
        }
        let text: Arc<str> = Arc::from(text);
        self.said += message.len();
        self.kept += text.len();
        self.known.insert(text.clone());
        self.list.push(text);
    }
}

/// A request.
pub(crate) struct Call {
    pub method: Method,
    pub uri: Uri,
    pub query: Query,
    pub headers: HeaderMap,
    pub identity: Arc<Identity>,
    pub target: ResourcePath,
    /// Whether it was made in this process, and did not come over the network.
    pub is_here: bool,
    class: Class,
    /// Who really calls, when that is somebody else.
    acting: Option<Arc<str>>,
    /// What the expressions that admission asks about it have taken.
    pub spent: Spent,
    warnings: Mutex<Warnings>,
    /// Of the request's events, where it is told of.
    annotations: Option<Arc<Annotations>>,
}

impl Call {
    pub fn new(parts: http::request::Parts, identity: Arc<Identity>, target: ResourcePath) -> Call {
        Call {
            query: Query::parse(parts.uri.query().unwrap_or_default()),
            is_here: parts.extensions.get::<Here>().is_some(),
            annotations: parts.extensions.get::<Arc<Annotations>>().cloned(),
            method: parts.method,
            uri: parts.uri,
            headers: parts.headers,
            identity,
            target,
            class: Class::User,
            acting: None,
            spent: Spent::default(),
            warnings: Mutex::default(),
        }
    }

    /// The same call, that takes its turns among these and as this user.
    pub fn taking_turns(self, class: Class, acting: Option<Arc<str>>) -> Call {
        Call { class, acting, ..self }
    }

    /// Whose turn it takes.
    pub fn flow(&self) -> Flow<'_> {
        Flow::of(self.class, self.acting.as_deref().unwrap_or(&self.identity.user))
    }

    /// The same call about another target.
    pub fn acting_on(call: &Call, target: ResourcePath) -> Call {
        Call {
            method: call.method.clone(),
            uri: call.uri.clone(),
            query: call.query.clone(),
            headers: call.headers.clone(),
            identity: call.identity.clone(),
            target,
            is_here: call.is_here,
            class: call.class,
            acting: call.acting.clone(),
            spent: Spent::default(),
            warnings: Mutex::default(),
            annotations: call.annotations.clone(),
        }
    }

    /// A header as text; one that is no text is as good as none.
    pub fn header(&self, name: impl header::AsHeaderName) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// Every `Accept` header as one.
    pub fn accept(&self) -> Option<String> {
        let all: Vec<&str> = self.headers.get_all(header::ACCEPT).iter().filter_map(|v| v.to_str().ok()).collect();
        (!all.is_empty()).then(|| all.join(","))
    }

    /// The form of the answer.
    pub fn form(&self, offer: Offer) -> Result<Form, Status> {
        negotiate::choose(self.accept().as_deref(), offer, self.pretty())
    }

    /// The same of objects that have no protobuf form.
    pub fn form_without_protobuf(&self, offer: Offer) -> Result<Form, Status> {
        negotiate::choose_of(self.accept().as_deref(), offer, self.pretty(), false)
    }

    /// Whether people read the answer.
    fn pretty(&self) -> bool {
        self.query.flag("pretty").unwrap_or_else(|| {
            let agent = self.header(header::USER_AGENT).unwrap_or_default();
            ["curl", "Wget", "Mozilla/5.0"].iter().any(|prefix| agent.starts_with(prefix))
        })
    }

    pub fn namespace(&self) -> Option<&str> {
        self.target.namespace.as_deref()
    }

    /// An object in a body is of the path's namespace, or of none that it names.
    pub fn check_namespace(&self, object: &Value) -> Result<(), Status> {
        let given = object["metadata"]["namespace"].as_str().unwrap_or_default();
        if given.is_empty() || self.namespace().is_none_or(|namespace| namespace == given) {
            return Ok(());
        }
        let words = "the namespace of the provided object does not match the namespace sent on the request";
        Err(Status::bad_request(words))
    }

    /// An object in a body has the path's name.
    pub fn check_name(&self, object: &Value) -> Result<(), Status> {
        let (given, name) = (meta::name(object), self.name());
        if given.is_empty() {
            return Err(Status::bad_request(format!(
                "the name of the object ({name} based on URL) was undeterminable: name must be provided"
            )));
        }
        if given != name {
            return Err(Status::bad_request(format!(
                "the name of the object ({given}) does not match the name on the URL ({name})"
            )));
        }
        Ok(())
    }

    /// The object's name; paths without one are never given to the verbs that ask.
    pub fn name(&self) -> &str {
        self.target.name.as_deref().unwrap_or_default()
    }

    /// The one name that the field selector of a list or a watch lets through.
    pub fn selected_name(&self) -> Option<String> {
        let selector = FieldSelector::parse(self.query.get("fieldSelector")?).ok()?;
        selector.exact("metadata.name").map(str::to_owned)
    }

    pub fn subresource(&self) -> &str {
        self.target.subresource.as_deref().unwrap_or_default()
    }

    /// Who is written down as the manager of fields: the User-Agent up to its first slash.
    pub fn default_manager(&self) -> String {
        let agent = self.header(header::USER_AGENT).unwrap_or_default();
        let manager: String =
            agent.split('/').next().unwrap_or_default().chars().filter(|c| !c.is_control()).take(128).collect();
        if manager.is_empty() { "unknown".to_owned() } else { manager }
    }

    /// Warns the client; each message once.
    pub fn warn(&self, message: impl Into<String>) {
        let message = message.into();
        self.warnings.lock().add(&message);
    }

    pub fn warn_all(&self, messages: impl IntoIterator<Item = String>) {
        messages.into_iter().for_each(|message| self.warn(message));
    }

    /// Whether the audit log may tell of it.
    pub fn is_audited(&self) -> bool {
        self.annotations.is_some()
    }

    /// Adds to what the audit log says of the request; what it is made of is only made where there is one.
    pub fn annotate(&self, key: &str, value: impl FnOnce() -> String) {
        if let Some(annotations) = &self.annotations {
            annotations.add(key, &value());
        }
    }

    /// The same, whatever was said before.
    pub fn annotate_anew(&self, key: &str, value: &str) {
        if let Some(annotations) = &self.annotations {
            annotations.set(key, value);
        }
    }

    /// Something that was to be told there had no room.
    pub fn leave_out(&self) {
        if let Some(annotations) = &self.annotations {
            annotations.cut();
        }
    }

    /// The object that was sent is this one.
    pub fn has_sent(&self, object: &serde_json::Value) {
        if let Some(annotations) = &self.annotations {
            annotations.sent(object);
        }
    }

    /// The values of the `Warning` headers.
    pub fn warning_headers(&self) -> Vec<http::HeaderValue> {
        let warnings = self.warnings.lock();
        let cut = warnings.said > WARNINGS_MAX;
        let mut left = WARNINGS_MAX;
        let mut headers = Vec::with_capacity(warnings.list.len());
        for text in &warnings.list {
            let text: String = text.chars().take(if cut { WARNING_CUT } else { usize::MAX }).collect();
            if text.len() > left {
                break;
            }
            left -= text.len();
            let quoted = text.replace('\\', "\\\\").replace('"', "\\\"").replace(['\n', '\r'], " ");
            headers.extend(http::HeaderValue::from_str(&format!("299 - \"{quoted}\"")));
        }
        headers
    }
}

/// A call and its body, which was read whole.
#[derive(Clone)]
pub(crate) struct Request {
    pub call: Arc<Call>,
    pub body: Bytes,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_are_kept_once_and_not_without_end() {
        let mut warnings = Warnings::default();
        for number in 0..100_000 {
            warnings.add("again");
            warnings.add(&format!("{number} {}", "x".repeat(100)));
        }
        assert_eq!(warnings.list.iter().filter(|text| &***text == "again").count(), 1);
        assert!(warnings.list.len() <= WARNINGS_KEPT && warnings.kept <= WARNINGS_KEPT_BYTES + WARNINGS_MAX);
        let mut long = Warnings::default();
        long.add(&"é".repeat(1 << 20));
        assert!(long.kept <= WARNINGS_MAX && long.said > WARNINGS_MAX);
    }
}
