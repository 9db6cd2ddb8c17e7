//! The audit log: who asked for what, when, and what came of it, as far as a policy says (`audit.k8s.io/v1`).
//!
//! ```text
//! a request ─► Trail: who ─► the policy's level ─► what was sent, decided, answered ─► Event ─► the writer's thread ─► a line ─┬─► the log
//!                                                                                                                              └─► the webhook
//! ```
//! Without a policy nothing of this is there, and a request pays one look at an option. With one, requests hand over what they
//! have, and a thread makes lines of it and writes them; while more than a bound waits for the disk, requests of users that will be
//! told of wait before they begin, and are told to come again in the end. The cluster's duties and health do not wait. Beyond a second
//! bound events are lost, as are those that the disk refuses, and counted; those of health and of who was not let in already beyond
//! the first, so that nobody has others' lost. What is kept of answers until they are whole has a bound of its own. What a webhook is
//! sent, and who waits for it, its module says.

mod event;
mod log;
pub(crate) mod policy;
mod trail;
mod waiting;
mod webhook;
mod writer;

use std::io;
use std::sync::Arc;

use http::{Method, Uri};

pub use self::log::Log;
pub use self::policy::{Policy, PolicyError};
pub(crate) use self::trail::{Trail, Unanswered};
pub use self::webhook::{Mode, Sending, Throttle, Truncate, Webhook};
use self::writer::Writer;
use crate::limits::Pool;
use crate::request::path::{self, ResourcePath, Route};
use crate::request::query::Query;

/// Bytes of answers that are on their way and will be told; who takes long to read its own leaves room for others'.
const KEPT_BYTES_MAX: usize = 64 << 20;

/// What is told, and where.
#[derive(Debug, Clone, PartialEq)]
pub struct AuditLog {
    /// Which requests, and how much of them.
    pub policy: Policy,
    /// Where it is written, if it is.
    pub log: Option<Log>,
    /// Where it is sent, if it is.
    pub webhook: Option<Webhook>,
}

/// What a request asks for, as policies see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Asked {
    verb: String,
    path: String,
    resource: Option<ResourcePath>,
}

impl Asked {
    fn of(method: &Method, uri: &Uri) -> Asked {
        let path = uri.path().to_owned();
        match Route::parse(&path) {
            // The scheduler's batch of bindings.
            Route::Bindings => {
                let (version, resource, subresource) = ("v1".into(), "pods".into(), Some("binding".into()));
                let bindings = ResourcePath { version, resource, subresource, ..ResourcePath::default() };
                Asked { verb: "create".to_owned(), path, resource: Some(bindings) }
            }
            Route::Resource(mut target) => {
                // A namespace is in itself.
                if target.group.is_empty() && target.resource == "namespaces" {
                    target.namespace = target.name.clone();
                }
                let verb = path::verb(method, &target, &Query::parse(uri.query().unwrap_or_default()));
                let verb = if verb.is_empty() { method.as_str().to_ascii_lowercase() } else { verb.to_owned() };
                Asked { verb, path, resource: Some(target) }
            }
            _ => Asked { verb: method.as_str().to_ascii_lowercase(), path, resource: None },
        }
    }

    /// Whether its answer goes on for as long as the client likes.
    fn is_long(&self) -> bool {
        self.verb == "watch" || self.resource.as_ref().is_some_and(ResourcePath::is_long)
    }
}

/// The audit log of a server.
pub(crate) struct Audit {
    policy: Policy,
    writer: Writer,
    /// Where what is kept of answers is counted.
    kept: Arc<Pool>,
}

impl Audit {
    /// Opens it; it can be written when this returns.
    pub fn open(config: AuditLog) -> io::Result<Arc<Audit>> {
        let writer = Writer::open(config.log, config.webhook)?;
        Ok(Arc::new(Audit { policy: config.policy, writer, kept: Pool::new(KEPT_BYTES_MAX) }))
    }

    /// A request is here.
    pub fn begin<B>(self: &Arc<Self>, request: &http::Request<B>, id: &str) -> Arc<Trail> {
        Arc::new(Trail::new(self, request, id))
    }

    /// Waits until all is written and sent, within bounds.
    pub async fn flush(&self) {
        self.writer.flush().await;
    }

    /// What the metrics page says of it.
    pub fn render(&self, page: &mut String) {
        self.writer.render(page);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_is_seen_as_authorization_sees_it() {
        let asked = |method: Method, uri: &str| Asked::of(&method, &uri.parse().unwrap());
        for (method, uri, verb, long) in [
            (Method::GET, "/api/v1/namespaces/a/pods", "list", false),
            (Method::GET, "/api/v1/namespaces/a/pods?watch=1", "watch", true),
            (Method::GET, "/api/v1/watch/pods", "watch", true),
            (Method::HEAD, "/api/v1/namespaces/a/pods/b", "get", false),
            (Method::GET, "/api/v1/namespaces/a/pods/b/log", "get", true),
            (Method::DELETE, "/api/v1/namespaces/a/pods", "deletecollection", false),
            (Method::OPTIONS, "/api/v1/namespaces/a/pods", "options", false),
            (Method::POST, "/healthz", "post", false),
        ] {
            let asked = asked(method, uri);
            assert_eq!((asked.verb.as_str(), asked.is_long()), (verb, long), "{uri}");
        }
        assert_eq!(asked(Method::GET, "/healthz").resource, None);
        let namespace = asked(Method::DELETE, "/api/v1/namespaces/a").resource.unwrap();
        assert_eq!((namespace.namespace.as_deref(), namespace.name.as_deref()), (Some("a"), Some("a")));
        let bindings = asked(Method::POST, "/coracle/v1/bindings");
        assert_eq!(bindings.resource.unwrap().subresource.as_deref(), Some("binding"));
    }
}
