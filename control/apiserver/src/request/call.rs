//! One request, understood: who asks for what, and how the answer shall look.

use std::sync::Arc;

use bytes::Bytes;
use coracle_api::status::Status;
use http::{HeaderMap, Method, Uri, header};
use parking_lot::Mutex;

use super::negotiate::{self, Form, Offer};
use super::path::ResourcePath;
use super::query::Query;
use crate::identity::Identity;

/// Most characters of all warnings of one answer; beyond it each is cut short (kubernetes-api §1.5).
const WARNINGS_MAX: usize = 4096;
const WARNING_CUT: usize = 256;

/// A request.
pub(crate) struct Call {
    pub method: Method,
    pub uri: Uri,
    pub query: Query,
    pub headers: HeaderMap,
    pub identity: Arc<Identity>,
    pub target: ResourcePath,
    warnings: Mutex<Vec<String>>,
}

impl Call {
    pub fn new(parts: http::request::Parts, identity: Arc<Identity>, target: ResourcePath) -> Call {
        Call {
            query: Query::parse(parts.uri.query().unwrap_or_default()),
            method: parts.method,
            uri: parts.uri,
            headers: parts.headers,
            identity,
            target,
            warnings: Mutex::default(),
        }
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
            warnings: Mutex::default(),
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

    /// The object's name; paths without one are never given to the verbs that ask.
    pub fn name(&self) -> &str {
        self.target.name.as_deref().unwrap_or_default()
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
        let mut warnings = self.warnings.lock();
        if !message.is_empty() && !warnings.contains(&message) {
            warnings.push(message);
        }
    }

    pub fn warn_all(&self, messages: impl IntoIterator<Item = String>) {
        messages.into_iter().for_each(|message| self.warn(message));
    }

    /// The values of the `Warning` headers.
    pub fn warning_headers(&self) -> Vec<http::HeaderValue> {
        let warnings = self.warnings.lock();
        let cut = warnings.iter().map(String::len).sum::<usize>() > WARNINGS_MAX;
        let mut left = WARNINGS_MAX;
        let mut headers = Vec::with_capacity(warnings.len());
        for text in warnings.iter() {
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
