//! The API server: HTTP in, transactions of the keyspace out.
//!
//! ```text
//! router ─► layers (time, fairness, bytes, lanes; authn, authz) ─► usage ─► subresources ─► verbs ─► admission
//!                                                                └► answer ─► store ─► keyspace
//! all of them ─► request (the words of a request), identity, limits
//! ```
//! A request falls downstairs: a module names only those below it, and is handed what it needs of the server (a test reads
//! the arrows).
//!
//! The generic path ([`verbs`]) is written once and driven by the rows of `coracle_api::kinds` and by schema data; it
//! knows no kind. What an object *is* is decided by the api crate's pure functions; what the *cluster* adds to it is
//! [`admission`]. An object is serialised once, when it is written; everything else copies those bytes.
//!
//! Invariants: nothing is answered before it is committed. A write that changes nothing makes no revision. A read without
//! a resourceVersion sees every write that was answered before it.

// Futures within futures: a request's is a hundred levels deep.
#![recursion_limit = "256"]

mod admission;
mod aggregation;
mod answer;
mod apart;
mod apiservices;
mod audit;
mod authn;
mod authz;
mod bootstrap;
mod callout;
mod catalog;
mod cluster;
mod config;
mod conversion;
mod current;
mod definitions;
mod discovery;
mod duties;
mod fairness;
mod flowschemas;
mod health;
mod hooks;
mod identity;
mod in_process;
mod layers;
mod limits;
mod mesh;
mod nodes;
mod openapi;
mod outward;
mod policies;
mod relay;
mod request;
mod roles;
mod router;
mod server;
mod shown;
mod store;
mod subresources;
mod typechecks;
mod usage;
mod verbs;

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::Response;
use coracle_api::status::Status;
use coracle_keyspace::Keyspace;
use http::{HeaderValue, Uri, header};
use http_body::Body as _;
use http_body_util::BodyExt as _;

pub use audit::{AuditLog, Log, Mode, Policy, PolicyError, Sending, Throttle, Truncate, Webhook};
use audit::{Trail, Unanswered};
use authz::Attributes;
pub use authz::node::JOINED;
pub use config::Config;
pub use identity::Identity;
pub use in_process::InProcess;
pub use layers::COUNTED;
use layers::stalls::To;
use limits::{Class, Flow};
pub use limits::{Connection, Here};
pub use outward::{Endpoint, FrontProxy, Login, Shown, keep_alive, why};
use server::Shared;

/// Why an API server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The key that signs tokens cannot be used.
    #[error("the key for ServiceAccount tokens cannot be used: {0}")]
    TokenKey(String),
    /// The audit log cannot be written.
    #[error("open the audit log")]
    Audit(#[source] std::io::Error),
    /// The objects that every cluster has cannot be made.
    #[error("make the namespaces and the service of the API: {0}")]
    Bootstrap(Status),
}

/// A running API server; clones are handles to the same.
#[derive(Clone)]
pub struct ApiServer {
    shared: Arc<Shared>,
}

impl ApiServer {
    /// Starts an API server over `keyspace`; when this returns, the objects that every cluster has are there.
    pub async fn start(keyspace: Keyspace, config: Config) -> Result<ApiServer, StartError> {
        let shared = Shared::new(keyspace, config)?;
        let has_roles = bootstrap::run(&shared).await.map_err(StartError::Bootstrap)?;
        shared.tasks.spawn(shared.stalls.keep(shared.stopping.clone()));
        shared.tasks.spawn(bootstrap::keep(Arc::downgrade(&shared), has_roles, shared.stopping.clone()));
        shared.tasks.spawn(definitions::keep(Arc::downgrade(&shared), shared.stopping.clone()));
        shared.tasks.spawn(apiservices::keep(Arc::downgrade(&shared), shared.stopping.clone()));
        shared.tasks.spawn(apiservices::hear(Arc::downgrade(&shared), shared.stopping.clone()));
        shared.tasks.spawn(flowschemas::keep(Arc::downgrade(&shared), shared.stopping.clone()));
        shared.tasks.spawn(typechecks::keep(Arc::downgrade(&shared), shared.stopping.clone()));
        Ok(ApiServer { shared })
    }

    /// The whole API. Who calls is taken from the request's extension [`Identity`] (a verified client certificate) or
    /// from its bearer token.
    pub fn router(&self) -> Router {
        Router::new().fallback(answer).with_state(self.shared.clone())
    }

    /// Puts authentication before other routes: only known callers pass, and their [`Identity`] is an extension. What they are
    /// answered is bounded as the API's own streams are: in places by caller, in bytes, and in how long it lies unread.
    pub fn authenticated(&self, router: Router) -> Router {
        router.layer(middleware::from_fn_with_state(self.shared.clone(), admit))
    }

    /// Puts the bounds of [`ApiServer::authenticated`] on routes that ask nobody who they are: all who come there are one caller.
    pub fn bounded(&self, router: Router) -> Router {
        router.layer(middleware::from_fn_with_state(self.shared.clone(), bound))
    }

    /// The API for a client in this process, acting as `identity`, without network or TLS.
    pub fn in_process(&self, identity: Identity) -> InProcess {
        InProcess::new(self.shared.clone(), identity)
    }

    /// Waits until the audit log has everything that was told, within ten seconds.
    pub async fn flush_audit(&self) {
        if let Some(audit) = &self.shared.audit {
            audit.flush().await;
        }
    }

    /// Ends all watches and streams; other requests are still answered.
    pub fn shutdown(&self) {
        self.shared.tasks.close();
        self.shared.stopping.cancel();
    }
}

async fn answer(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    router::handle(shared, request).await
}

/// The path of the blob that a request would take from another repository.
fn mounted(uri: &Uri) -> Option<String> {
    let query = request::query::Query::parse(uri.query()?);
    let from = query.get("from")?;
    Some(format!("/v2/{from}/blobs/{}", query.get("mount").unwrap_or_default()))
}

async fn admit(State(shared): State<Arc<Shared>>, mut request: Request<Body>, next: Next) -> Response {
    // Of the registry nothing is told: images are pushed and pulled in many requests.
    let audit = shared.audit.as_ref().filter(|_| !request.uri().path().starts_with("/v2"));
    let id = audit.and_then(|_| router::audit_id(request.headers()));
    let trail = router::told(audit, &mut request, id.as_ref());
    let unanswered = trail.clone().map(Unanswered::new);
    let response = admitted(&shared, trail, request, next).await;
    match unanswered {
        Some(unanswered) => unanswered.answered(response).await,
        None => response,
    }
}

async fn admitted(shared: &Shared, trail: Option<Arc<Trail>>, mut request: Request<Body>, next: Next) -> Response {
    let answered = |status: &Status| answer::respond::status(request::negotiate::Form::JSON, status);
    authn::accept_basic(request.headers_mut());
    let caller = authn::authenticate(&shared.cluster, &shared.tokens, request.headers(), request.extensions()).await;
    if let Some(trail) = &trail {
        let class = caller.as_ref().map_or(Class::User, |caller| caller.class);
        if let Err(status) = trail.let_in(class, false).await {
            return answered(&status);
        }
    }
    let caller = match caller {
        Ok(caller) if caller.identity.is_authenticated() => caller,
        refused => {
            let status = refused.err().unwrap_or_else(Status::unauthorized);
            let mut response = answered(&status);
            if status.code() == 401 {
                // Tools ask without credentials first, and show what they have when they are told how.
                let how = HeaderValue::from_static("Basic realm=\"coracle: any name, and a token as the password\"");
                response.headers_mut().insert(header::WWW_AUTHENTICATE, how);
            }
            return response;
        }
    };
    let method = request.method().as_str().to_ascii_lowercase();
    let verb = if method == "head" { "get" } else { &method };
    let asked = Attributes { verb, path: Some(request.uri().path()), ..Attributes::default() };
    // What a node may ask for at these paths, they know themselves.
    let allowed = match caller.identity.node() {
        Some(_) => Ok(()),
        None => authz::check(&shared.cluster, &caller.identity, &asked),
    };
    if let Some(trail) = &trail {
        let decided = if allowed.is_ok() { "allow" } else { "forbid" };
        trail.annotations().add("authorization.k8s.io/decision", decided);
    }
    if let Err(status) = allowed {
        return answered(&status);
    }
    // A blob is mounted by who may read it where it is; others upload it (OCI distribution specification 1.1).
    let may_read = |path: &String| {
        let asked = Attributes { verb: "get", path: Some(path), ..Attributes::default() };
        caller.identity.node().is_some() || authz::allows(&shared.cluster, &caller.identity, &asked)
    };
    if mounted(request.uri()).is_some_and(|path| !may_read(&path)) {
        let path = Uri::try_from(request.uri().path()).unwrap_or_default();
        *request.uri_mut() = path;
    }
    request.extensions_mut().insert(Identity::clone(&caller.identity));
    streamed(shared, caller.flow(), request, next).await
}

async fn bound(State(shared): State<Arc<Shared>>, request: Request<Body>, next: Next) -> Response {
    streamed(&shared, Flow { class: Class::User, name: identity::ANONYMOUS }, request, next).await
}

/// The answer of another route, in a place of the flow's streams, counted, and let go of when it is not read.
async fn streamed(shared: &Shared, flow: Flow<'_>, request: Request<Body>, next: Next) -> Response {
    let place = match shared.limits.stream(flow) {
        Ok(place) => place,
        Err(status) => return answer::respond::status(request::negotiate::Form::JSON, &status),
    };
    let to = To {
        flow,
        account: shared.answers.account(flow),
        connection: request.extensions().get::<Connection>().cloned(),
    };
    let response = next.run(request).await;
    if response.body().size_hint().upper().is_some_and(|most| most == 0) {
        return response;
    }
    let response = shared.stalls.guard(to, response);
    response.map(|body| {
        Body::new(body.map_frame(move |frame| {
            let _place = &place;
            frame
        }))
    })
}
