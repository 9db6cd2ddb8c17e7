//! From a request to the handler that answers it, through the layers that all pass.
//!
//! ```text
//! observe ─► authenticate ─► fairness ─► authorize ─► body ─► seat ─► (lane for heavy work) ─► verb
//! ```
//! There is one route for everything: a path is taken apart ([`Route::parse`]) and the resource is looked up in the
//! catalog, so that kinds that appear while the server runs need no new route. A request takes its seat when its body is
//! there, not before.

use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::response::Response;
use coracle_api::status::Status;
use coracle_keyspace::Record;
use futures::FutureExt;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};

use crate::aggregation::Backend;
use crate::answer::{compress, pieces, respond};
use crate::apart::apart;
use crate::audit::{Audit, Trail, Unanswered};
use crate::authn::Caller;
use crate::authz::{self, Attributes};
use crate::catalog::Resource;
use crate::discovery::Discovery;
use crate::fairness::{self, Fairness, Ticket};
use crate::layers::deadline::Deadline;
use crate::layers::fair;
use crate::layers::lanes::{HEAVY_BYTES, HEAVY_RECORDS, HEAVY_RECORDS_BYTES};
use crate::layers::stalls::{self, To};
use crate::layers::websocket;
use crate::limits::{Class, Connection, Flow};
use crate::relay::Longest;
use crate::request::call::{Call, Request};
use crate::request::negotiate::{self, Form, Offer};
use crate::request::path::{ResourcePath, Route};
use crate::server::Shared;
use crate::subresources::Passing;
use crate::subresources::bindings::Bindings;
use crate::subresources::reviews::Review;
use crate::verbs::watch::Around;
use crate::{authn, discovery, health, mesh, openapi, relay, store, subresources, usage, verbs};

/// Whose turn it is to make a document of the API: nobody's own.
const DOCUMENTS: &str = "system:openapi";

/// Answers a request. It never fails: what goes wrong is an answer, too.
pub(crate) async fn handle(server: Arc<Shared>, mut request: http::Request<Body>) -> Response {
    let started = Instant::now();
    let head = request.method() == Method::HEAD;
    let line = tracing::enabled!(tracing::Level::DEBUG).then(|| (request.method().clone(), request.uri().clone()));
    let audit_id = audit_id(request.headers());
    let accept = request.headers().get(header::ACCEPT).cloned();
    let trail = told(server.audit.as_ref(), &mut request, audit_id.as_ref());
    let unanswered = trail.clone().map(Unanswered::new);
    let seen = Observed::default();
    let answer = AssertUnwindSafe(route(&server, request, &seen)).catch_unwind().await;
    let mut response = match answer {
        Ok(Ok(response)) => response,
        Ok(Err(status)) => failure(accept.as_ref(), &status),
        Err(_) => {
            tracing::error!(verb = seen.verb(), resource = seen.resource(), "a request handler panicked");
            if let Some(trail) = &trail {
                trail.panicked();
            }
            let status = Status::internal_error("this request caused the server to fail; its log says why");
            failure(accept.as_ref(), &status)
        }
    };
    let headers = response.headers_mut();
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-cache, private"));
    if let Some(mut id) = audit_id {
        // It is never seen again: in HTTP/2's table of headers it would only push out what is.
        id.set_sensitive(true);
        headers.insert("audit-id", id);
    }
    if head {
        *response.body_mut() = Body::empty();
    }
    let (code, elapsed) = (response.status().as_u16(), started.elapsed());
    if let Some((method, uri)) = line {
        tracing::debug!(%method, path = uri.path(), code, elapsed_us = elapsed.as_micros(), "request");
    }
    server.metrics.observe(seen.verb(), seen.resource(), code, elapsed);
    match unanswered {
        Some(unanswered) => unanswered.answered(response).await,
        None => response,
    }
}

/// By what a request is told from others: what it says itself, or something new.
pub(crate) fn audit_id(headers: &HeaderMap) -> Option<HeaderValue> {
    let said = headers.get("audit-id").cloned().filter(|id| id.len() <= 64);
    said.or_else(|| HeaderValue::from_str(&crate::identity::new_uuid()).ok())
}

/// Has the audit log tell of a request, where there is one.
pub(crate) fn told(
    audit: Option<&Arc<Audit>>,
    request: &mut http::Request<Body>,
    id: Option<&HeaderValue>,
) -> Option<Arc<Trail>> {
    let trail = audit?.begin(request, id.and_then(|id| id.to_str().ok()).unwrap_or_default());
    request.extensions_mut().insert(trail.annotations().clone());
    request.extensions_mut().insert(trail.clone());
    Some(trail)
}

/// Refuses what the caller may not do; the audit log is told either way, and why.
fn authorize(server: &Shared, call: &Call, asked: &Attributes<'_>) -> Result<(), Status> {
    let decided = authz::check(&server.cluster, &call.identity, asked);
    told_decision(call, &decided);
    call.annotate("authorization.k8s.io/reason", || {
        let reason = decided.as_ref().ok().and_then(|()| authz::rbac::reason(&server.cluster, &call.identity, asked));
        reason.map(|reason| format!("RBAC: allowed by {reason}")).unwrap_or_default()
    });
    decided
}

fn told_decision(call: &Call, decided: &Result<(), Status>) {
    match decided {
        Ok(()) => call.annotate("authorization.k8s.io/decision", || "allow".to_owned()),
        // Whoever refuses decides.
        Err(_) => call.annotate_anew("authorization.k8s.io/decision", "forbid"),
    }
}

/// What the metrics page says of the present.
fn gauges(server: &Shared) -> [(&'static str, &'static str, u64); 4] {
    let keyspace = &server.cluster.store.keyspace;
    [
        ("apiserver_current_inflight_requests", "Requests at work now.", server.fairness.executing() as u64),
        ("apiserver_longrunning_requests", "Watches and streams open now.", server.limits.streams_now() as u64),
        ("coracle_keyspace_revision", "Revision that is applied here.", keyspace.revision().get()),
        (
            "coracle_keyspace_compacted_revision",
            "Oldest revision that can be read is after this.",
            keyspace.compacted().get(),
        ),
    ]
}

/// What the metrics say of a request, once it is known.
#[derive(Default)]
struct Observed {
    verb: OnceLock<&'static str>,
    resource: OnceLock<&'static str>,
}

impl Observed {
    fn verb(&self) -> &'static str {
        self.verb.get().copied().unwrap_or("get")
    }

    fn resource(&self) -> &'static str {
        self.resource.get().copied().unwrap_or_default()
    }

    fn is(&self, verb: &'static str, resource: &'static str) {
        let _ = self.verb.set(verb);
        let _ = self.resource.set(resource);
    }

    fn is_of(&self, resource: &'static str) {
        let _ = self.resource.set(resource);
    }
}

fn failure(accept: Option<&HeaderValue>, status: &Status) -> Response {
    let accept = accept.and_then(|accept| accept.to_str().ok());
    let form = negotiate::choose(accept, Offer::Stored, false).unwrap_or(Form::JSON);
    respond::status(form, status)
}

/// What comes with a request beside its words.
struct Rest {
    /// `None` for a resource: its path is the target of the call.
    route: Option<Route>,
    caller: Caller,
    body: Body,
    connection: Option<Connection>,
    upgrade: Option<hyper::upgrade::OnUpgrade>,
    peer: Option<SocketAddr>,
    trail: Option<Arc<Trail>>,
}

async fn route(server: &Arc<Shared>, request: http::Request<Body>, seen: &Observed) -> Result<Response, Status> {
    let caller = authn::authenticate(&server.cluster, &server.tokens, request.headers(), request.extensions()).await;
    let route = Route::parse(request.uri().path());
    let trail = request.extensions().get::<Arc<Trail>>().cloned();
    if let Some(trail) = &trail {
        let class = caller.as_ref().map_or(Class::User, |caller| caller.class);
        trail.let_in(class, matches!(route, Route::Health(..))).await?;
    }
    let caller = caller?;
    let (mut parts, body) = request.into_parts();
    let (route, target) = match route {
        Route::Resource(target) => (None, target),
        route => (Some(route), ResourcePath::default()),
    };
    let (connection, upgrade) = (parts.extensions.remove(), parts.extensions.remove());
    let peer = parts.extensions.get::<axum::extract::ConnectInfo<SocketAddr>>().map(|peer| peer.0);
    let call = caller.call(parts, target);
    let (ticket, belongs) = fair::ticket(&server.fairness, &call).await;
    let with = Rest { route, caller, body, connection, upgrade, peer, trail };
    let mut response = answered(server, ticket, call, with, seen).await;
    belongs.say(&mut response);
    Ok(response)
}

/// The answer to a request that has its ticket.
async fn answered(server: &Arc<Shared>, ticket: Ticket, call: Call, with: Rest, seen: &Observed) -> Response {
    let accept = call.headers.get(header::ACCEPT).cloned();
    let backend = match &with.route {
        // Documents are those of who serves what they are about.
        Some(Route::OpenApiV3(document)) => match Route::parse(&format!("/{document}")) {
            Route::Resources(..) => elsewhere(server, &format!("/{document}")).await,
            _ => None,
        },
        _ => elsewhere(server, call.uri.path()).await,
    };
    let answer = match (backend, with.route) {
        (Some(backend), route) => apart(|| relayed(server, &backend, call, Rest { route, ..with }, seen)).await,
        (None, None) => apart(|| resource(server, ticket, call, Rest { route: None, ..with }, seen)).await,
        (None, Some(Route::Mesh)) => apart(|| mesh(server, call, Rest { route: None, ..with }, seen)).await,
        (None, Some(route)) => {
            let mutates = !matches!(call.method, Method::GET | Method::HEAD);
            let (caller, connection) = (with.caller, with.connection);
            let asked = (with.body, with.trail);
            let answer = apart(|| path(server, &ticket, Arc::new(call), asked, &caller, route, seen)).await;
            answer.and_then(|response| held(server, caller.flow(), connection, response, mutates))
        }
    };
    answer.unwrap_or_else(|status| failure(accept.as_ref(), &status))
}

/// Who else serves what is at a path; nobody what is served here.
async fn elsewhere(server: &Shared, path: &str) -> Option<Arc<Backend>> {
    let backend = server.cluster.backends.at(path).await?;
    let is_here = server.cluster.served().await.serves(&backend.group, &backend.version);
    (!is_here).then_some(backend)
}

/// How long another API server has to say what it serves: clients ask each before they do anything else (Kubernetes').
const DISCOVERY_MAX: Duration = Duration::from_secs(5);

/// The answer of another API server.
async fn relayed(
    server: &Shared,
    backend: &Arc<Backend>,
    call: Call,
    with: Rest,
    seen: &Observed,
) -> Result<Response, Status> {
    let Rest { caller, body, connection, upgrade, peer, ref route, .. } = with;
    let (verb, flow) = (authz::verb(&call), caller.flow());
    let is_resource = route.is_none();
    let method = call.method.as_str().to_ascii_lowercase();
    // Names of other servers' resources are no labels of metrics: there is no end to them.
    seen.is(if is_resource { verb } else { "get" }, "apiservices/proxy");
    let asked = match is_resource {
        true => Attributes::of(&call, verb),
        false => {
            let verb = if method == "head" { "get" } else { &method };
            Attributes { verb, path: Some(call.uri.path()), ..Attributes::default() }
        }
    };
    authorize(server, &call, &asked)?;
    if let Some(refused) = misused_watch(server, &call).await {
        return refused;
    }
    // What was not understood was not allowed as what it may mean there: nothing goes on but what was, written anew.
    let path = match route {
        None => call.target.written().ok_or_else(Status::path_not_found)?,
        Some(Route::Resources(group, version)) => format!("/apis/{group}/{version}"),
        Some(Route::OpenApiV3(_)) if !matches!(call.method, Method::GET | Method::HEAD) => {
            return Err(Status::method_not_allowed());
        }
        Some(Route::OpenApiV3(_)) => format!("/openapi/v3/apis/{}/{}", backend.group, backend.version),
        Some(_) => return Err(Status::path_not_found()),
    };
    let is_discovery = matches!(route, Some(Route::Resources(..)));
    let longest = match verb {
        "watch" => Longest::Begins(server.config.request_timeout),
        _ => {
            let left = Deadline::new(call.query.get("timeout"), server.config.request_timeout)?.left();
            let left = if is_discovery { left.min(DISCOVERY_MAX) } else { left };
            if call.target.is_long() { Longest::Begins(left) } else { Longest::Whole(left) }
        }
    };
    let place = server.limits.stream(flow)?;
    let to = To { flow, account: server.answers.account(flow), connection: connection.clone() };
    let passing = Passing { call, body, upgrade, peer, connection, place };
    let response = match relay::pass(&server.cluster, &server.stopping, passing, backend, (&path, longest)).await {
        Err(status) if is_discovery && status.code() == 504 => relay::unreachable("context deadline exceeded"),
        passed => passed?,
    };
    Ok(stalls::counted(to, response))
}

/// The answer, bounded while it is sent. What is read in this process is read at once; and what was done is said, however
/// much there is to be sent: whoever is told to come again would do it twice.
fn held(
    server: &Shared,
    flow: Flow<'_>,
    connection: Option<Connection>,
    response: Response,
    mutates: bool,
) -> Result<Response, Status> {
    server.answers.hold(flow, connection, response, server.config.request_timeout, mutates)
}

/// What nodes see of requests.
async fn mesh(server: &Arc<Shared>, call: Call, with: Rest, seen: &Observed) -> Result<Response, Status> {
    let of = mesh::Of::find(call.uri.path()).ok_or_else(Status::path_not_found)?;
    seen.is("get", "mesh");
    authorize(server, &call, &of.attributes(&call))?;
    if call.method != Method::GET {
        return Err(Status::method_not_allowed());
    }
    let flow = with.caller.flow();
    let place = server.limits.stream(flow)?;
    let response = match of {
        mesh::Of::Routes => mesh::routes(&server.cluster, &server.nodes, &call, flow).await?,
        mesh::Of::Tap => mesh::tap(&server.cluster, &server.nodes, &server.tasks, &call, (flow, place))?,
    };
    let to = To { flow, account: server.answers.account(flow), connection: with.connection };
    Ok(stalls::counted(to, response))
}

/// Answers at paths that are no resources.
async fn path(
    server: &Arc<Shared>,
    ticket: &Ticket,
    call: Arc<Call>,
    (body, trail): (Body, Option<Arc<Trail>>),
    caller: &Caller,
    route: Route,
    seen: &Observed,
) -> Result<Response, Status> {
    let method = call.method.as_str().to_ascii_lowercase();
    let verb = if method == "head" { "get" } else { &method };
    authorize(server, &call, &Attributes { verb, path: Some(call.uri.path()), ..Attributes::default() })?;
    let deadline = Deadline::new(call.query.get("timeout"), server.config.request_timeout)?;
    let flow = caller.flow();
    match route {
        Route::Bindings if call.method == Method::POST => {
            seen.is("create", "bindings");
            let body = server.bodies.read(flow.name, body, deadline.at).await?;
            if let Some(trail) = &trail {
                trail.has_sent(&call.headers, &body);
            }
            let _room = server.limits.body(flow, body.len())?;
            let _seat = server.fairness.seat(ticket, 1, deadline.at.into_std()).await?;
            let bindings = Bindings::read(&server.cluster, &Request { call, body })?;
            let heavy = bindings.bytes(&server.cluster) >= HEAVY_BYTES;
            let here = server.clone();
            let bound = async move { bindings.bind_all(&here.cluster).await };
            let work = async { if heavy { aside(server, flow, bound).await } else { bound.await } };
            return deadline.limit("create", work).await;
        }
        _ if !matches!(call.method, Method::GET | Method::HEAD) => return Err(Status::method_not_allowed()),
        // How the server is must be told also when it is busy.
        Route::Health(which, check) => {
            return Ok(health::answer(&server.cluster, &server.stopping, &call, &which, check.as_deref()));
        }
        Route::Version => return Ok(discovery::version(&call)),
        Route::Metrics => {
            let mut page = server.metrics.render(&gauges(server));
            server.fairness.render(&mut page);
            server.cluster.calls.render(&mut page);
            server.cluster.backends.render(&mut page).await;
            if let Some(audit) = &server.audit {
                audit.render(&mut page);
            }
            return Ok(respond::bytes(200, "text/plain; version=0.0.4; charset=utf-8", page));
        }
        // How requests wait must be seen also while they do.
        _ if call.uri.path().starts_with(fairness::DEBUG) => {
            let page =
                call.uri.path().strip_prefix(fairness::DEBUG).and_then(|page| server.fairness.dump(page, &call.query));
            return Ok(page.map_or_else(|| respond::text(404, "404 page not found\n"), |page| respond::text(200, page)));
        }
        _ => {}
    }
    let _seat = server.fairness.seat(ticket, 1, deadline.at.into_std()).await?;
    match route {
        Route::Root => Ok(discovery::root(&*discovery(server).await, &call)),
        Route::CoreVersions => discovery::core(&*discovery(server).await, &server.config.external_url, &call),
        Route::Groups => discovery::groups(&*discovery(server).await, &call),
        Route::Group(group) => discovery::group(&*discovery(server).await, &call, &group),
        Route::Resources(group, version) => discovery::resources(&*discovery(server).await, &call, &group, &version),
        // A document is made once, aside; every client that asks for it meanwhile takes the same turn.
        Route::OpenApiV2 => {
            let discovery = discovery(server).await;
            if server.openapi.has_v2(&discovery) {
                return openapi::v2(&server.openapi, &discovery, &call);
            }
            let here = server.clone();
            let make = async move { openapi::v2(&here.openapi, &discovery, &call) };
            server.lanes.run(DOCUMENTS, make).await
        }
        Route::OpenApiV3(document) => {
            let discovery = discovery(server).await;
            if server.openapi.has_v3(&discovery, &document) {
                return openapi::v3(&server.openapi, &discovery, &call, &document);
            }
            let here = server.clone();
            let make = async move { openapi::v3(&here.openapi, &discovery, &call, &document) };
            server.lanes.run(DOCUMENTS, make).await
        }
        Route::IssuerConfiguration => Ok(authn::oidc::configuration(&server.tokens)),
        Route::IssuerKeys => Ok(authn::oidc::keys(&server.tokens)),
        _ => not_found(server, call.uri.path()).await,
    }
}

/// What is served now: everything that was answered anywhere is in it, as far as that can be known.
async fn discovery(server: &Shared) -> Arc<Discovery> {
    // Without a leader what is known here is better than nothing.
    let _ = server.cluster.store.barrier().await;
    known(server).await
}

/// What is served as far as it is known here.
async fn known(server: &Shared) -> Arc<Discovery> {
    let backends = &server.cluster.backends;
    // What is heard of one that is gone by then is left out.
    let heard = backends.heard();
    server.discovery.of(&server.cluster.served().await, &backends.now().await, &heard)
}

/// What the reference says of paths that are nothing: within a group that it knows it speaks as the API.
async fn not_found(server: &Shared, path: &str) -> Result<Response, Status> {
    let mut parts = path.split('/').skip(1);
    let group = match parts.next() {
        Some("api") => parts.next().map(|_| ""),
        Some("apis") => parts.next(),
        _ => None,
    };
    match group {
        Some(group) if known(server).await.has_group(group) => Err(Status::path_not_found()),
        _ => Ok(respond::text(404, "404 page not found\n")),
    }
}

/// Refuses what the old path of watches is not for: it is of resources alone, and read. Nobody runs, reads or calls something as
/// who may watch it.
async fn misused_watch(server: &Shared, call: &Call) -> Option<Result<Response, Status>> {
    let target = &call.target;
    if target.watch && !matches!(call.method, Method::GET | Method::HEAD) {
        return Some(Err(Status::method_not_allowed()));
    }
    if target.watch && target.subresource.is_some() {
        return Some(not_found(server, call.uri.path()).await);
    }
    None
}

/// What answers a request for a resource.
enum Handler {
    Review(Review),
    /// A binding that names its pod in its body.
    Binding,
    /// How much of something is used now.
    Usage(usage::Of),
    Resource(Arc<Resource>),
}

async fn resource(
    server: &Arc<Shared>,
    ticket: Ticket,
    call: Call,
    with: Rest,
    seen: &Observed,
) -> Result<Response, Status> {
    let Rest { caller, body, connection, upgrade, peer, trail, .. } = with;
    let verb = authz::verb(&call);
    let _ = seen.verb.set(verb);
    // A list or a watch of one name is allowed to who may read that one.
    let selected = if call.target.name.is_none() { call.selected_name() } else { None };
    let mut asked = Attributes::of(&call, verb);
    if let (Some(name), "list" | "watch" | "deletecollection") = (&selected, verb) {
        asked.name = name;
    }
    authorize(server, &call, &asked)?;
    let target = &call.target;
    if let Some(refused) = misused_watch(server, &call).await {
        return refused;
    }
    let handler = if let Some(review) = subresources::reviews::find(&target.group, &target.version, &target.resource) {
        seen.is_of("reviews");
        if call.method != Method::POST || target.name.is_some() {
            return Err(Status::method_not_allowed());
        }
        Handler::Review(review)
    } else if (target.group.as_str(), target.version.as_str(), target.resource.as_str()) == ("", "v1", "bindings") {
        seen.is_of("bindings");
        Handler::Binding
    } else if let Some(of) = usage::find(&target.group, &target.version, &target.resource) {
        seen.is_of(of.resource);
        let (named, placed) = (target.name.is_some(), target.namespace.is_some());
        if placed && !of.is_namespaced() || named && of.is_namespaced() && !placed || target.subresource.is_some() {
            return Err(Status::path_not_found());
        }
        if !matches!(verb, "get" | "list") {
            return Err(Status::method_not_allowed());
        }
        Handler::Usage(of)
    } else {
        let found = server.cluster.resource(&target.group, &target.version, &target.resource).await?;
        let Some(resource) = found else { return not_found(server, call.uri.path()).await };
        // Names of definitions are no labels of metrics: there is no end to them.
        seen.is_of(resource.row.built_in().map_or("customresources", |row| row.resource));
        let (named, placed) = (target.name.is_some(), target.namespace.is_some());
        if placed && !resource.row.namespaced() || named && resource.row.namespaced() && !placed && !target.watch {
            return Err(Status::path_not_found());
        }
        let decided = authz::node::check(&server.cluster, &call, &resource, verb).await;
        told_decision(&call, &decided);
        decided?;
        if subresources::is_stream(&call, &resource) {
            // A WebSocket begins with a GET; but whoever may only read runs nothing, and speaks to nobody.
            let enters = matches!(call.subresource(), "exec" | "attach" | "portforward");
            if enters && verb != "create" {
                authorize(server, &call, &Attributes::of(&call, "create"))?;
            }
            let place = server.limits.stream(caller.flow())?;
            let account = server.answers.account(caller.flow());
            let to = To { flow: caller.flow(), account, connection: connection.clone() };
            let passing = Passing { call, body, upgrade, peer, connection, place };
            let response = subresources::stream(&server.cluster, &server.nodes, passing, &resource).await?;
            return Ok(stalls::counted(to, response));
        }
        Handler::Resource(resource)
    };
    if let Handler::Resource(resource) = &handler {
        match (resource.row.group(), resource.row.resource()) {
            ("", "endpoints") => {
                call.warn("v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice");
            }
            ("", "componentstatuses") => call.warn("v1 ComponentStatus is deprecated in v1.19+"),
            _ => {}
        }
        if let Some(custom) = resource.row.custom() {
            call.warn_all(custom.version.deprecation.clone());
            if verb == "create" && custom.definition.terminating && call.subresource().is_empty() {
                let message = "create not allowed while custom resource definition is terminating";
                return Err(Status::failure(405, "MethodNotAllowed", message));
            }
        }
        if verb == "watch" {
            if !resource.row.verbs().contains(&"watch") || !call.subresource().is_empty() {
                return Err(Status::method_not_allowed());
            }
            let place = server.limits.stream(caller.flow())?;
            let around = Around {
                cluster: &server.cluster,
                stopping: &server.stopping,
                tasks: &server.tasks,
                initial_max: server.config.request_timeout,
            };
            // Until what is there is read; what follows is sent as the client takes it.
            let objects = if begins_with_all(&call) { objects(server, &call, resource) } else { 1 };
            let until = std::time::Instant::now() + server.config.request_timeout;
            let seat = server.fairness.seat(&ticket, objects, until).await?;
            let watch = verbs::watch::watch(&server.cluster, &call, resource, around, place);
            let watch = with_warnings(&call, watch.await?);
            drop(seat);
            // Also where the connection becomes a WebSocket, which the listener does not hear of any more.
            let connection = connection.unwrap_or_default();
            let account = server.answers.account(caller.flow());
            let to = To { flow: caller.flow(), account, connection: Some(connection.clone()) };
            let response = server.stalls.guard(to, watch);
            return Ok(websocket::upgraded(&call, upgrade, connection, response, &server.tasks));
        }
    }
    let deadline = Deadline::new(call.query.get("timeout"), server.config.request_timeout)?;
    let body = server.bodies.read(caller.flow().name, body, deadline.at).await?;
    if let Some(trail) = &trail {
        trail.has_sent(&call.headers, &body);
    }
    let room = server.limits.body(caller.flow(), body.len())?;
    let objects = match &handler {
        Handler::Resource(resource) if verb == "list" => objects(server, &call, resource),
        _ => 1,
    };
    let seat = server.fairness.seat(&ticket, objects, deadline.at.into_std()).await?;
    let call = Arc::new(call);
    let heavy = unfolds(&call, &body) || is_heavy(server, &call, &handler, body.len(), verb);
    let request = Request { call: call.clone(), body };
    let mutates = !matches!(verb, "get" | "list");
    let work = apart(|| carried_out(server, caller.flow(), request, handler, (verb, heavy)));
    let response = match deadline.limit(verb, work).await {
        Ok(response) => response,
        Err(status) => failure(call.headers.get(header::ACCEPT), &status),
    };
    drop((seat, room));
    let response = compressed(&call, peer, with_warnings(&call, pieces::in_pieces(response)));
    // A dry run did nothing that would be done twice.
    let did = mutates && call.query.get("dryRun").is_none();
    held(server, caller.flow(), connection, response, did)
}

/// Does what is asked, in the lanes of heavy work where it may keep a processor busy.
async fn carried_out(
    server: &Arc<Shared>,
    flow: Flow<'_>,
    request: Request,
    handler: Handler,
    (verb, heavy): (&'static str, bool),
) -> Result<Response, Status> {
    let here = server.clone();
    if let Handler::Usage(_) = handler {
        let here = here.clone();
        let collect = || async move { usage::collect(&here.cluster, &here.nodes, &here.usages).await };
        server.usages.refresh(&server.tasks, collect).await;
    }
    if !heavy {
        return answer(server, &request, &handler, verb).await;
    }
    aside(server, flow, async move { answer(&here, &request, &handler, verb).await }).await
}

/// Whether a watch tells of what is there before it tells of what happens.
fn begins_with_all(call: &Call) -> bool {
    let asked = call.query.flag("sendInitialEvents");
    asked.unwrap_or_else(|| matches!(call.query.get("resourceVersion"), None | Some("" | "0")))
}

/// How many objects a list looks at: all where it selects, and else as many as it shows. It is counted as far as it makes a
/// difference.
fn objects(server: &Shared, call: &Call, resource: &Resource) -> usize {
    if names_one(call, resource) {
        return 1;
    }
    let records = server.cluster.store.keyspace.snapshot(resource.row.collection()).records;
    let there = match call.namespace() {
        Some(namespace) if resource.row.namespaced() => {
            store::range(&records, Some(namespace), None).take(Fairness::OBJECTS_MAX).count()
        }
        _ => records.len(),
    };
    let selects = ["labelSelector", "fieldSelector"].iter().any(|name| call.query.get(name).is_some());
    let limit = call.query.get("limit").and_then(|limit| limit.parse().ok()).filter(|limit| *limit > 0 && !selects);
    limit.map_or(there, |limit: usize| limit.min(there))
}

/// Does heavy work of a flow in its lanes, under the lead of the request: other threads know nothing of that.
async fn aside<T, F>(server: &Shared, flow: Flow<'_>, work: F) -> Result<T, Status>
where
    T: Send + 'static,
    F: Future<Output = Result<T, Status>> + Send + 'static,
{
    let lanes = if flow.class == Class::User { &server.lanes } else { &server.duty_lanes };
    lanes.run(flow.name, store::under(store::lead(), work)).await
}

/// Whether a body may become much more than it is: YAML that names parts of itself.
fn unfolds(call: &Call, body: &[u8]) -> bool {
    let is_yaml = call.header(header::CONTENT_TYPE).is_some_and(|media_type| media_type.contains("yaml"));
    is_yaml && body.contains(&b'&') && body.contains(&b'*')
}

/// Whether a request may keep a processor busy for more than a moment.
fn is_heavy(server: &Shared, call: &Call, handler: &Handler, body: usize, verb: &str) -> bool {
    let store = &server.cluster.store;
    let resource = match handler {
        Handler::Resource(resource) => resource,
        Handler::Usage(of) => {
            // Collections of the core group are named as their resources.
            let records = store.keyspace.snapshot(of.resource).records;
            return verb == "list"
                && is_long(crate::store::range(&records, call.namespace(), None).map(|(_, record)| record));
        }
        Handler::Review(_) | Handler::Binding => return body >= HEAVY_BYTES,
    };
    if body >= HEAVY_BYTES {
        return true;
    }
    let stored = || {
        let name = resource.record_name(call.namespace(), call.target.name.as_deref()?);
        store.get(resource, &name).map(|record| record.bytes.len())
    };
    let is_whole = call.subresource().is_empty() && !resource.is_view && resource.custom.is_none();
    // What is sent as it is stored, or broken into lines, is made while it is sent.
    let is_plain = |offer| is_whole && call.form(offer).is_ok_and(|form| Form { pretty: false, ..form } == Form::JSON);
    match verb {
        "deletecollection" => true,
        "list" => {
            let selects = ["labelSelector", "fieldSelector"].iter().any(|name| call.query.get(name).is_some());
            let is_long = || {
                let records = store.keyspace.snapshot(resource.row.collection()).records;
                is_long(crate::store::range(&records, call.namespace(), None).map(|(_, record)| record))
            };
            (selects || !is_plain(Offer::List)) && !names_one(call, resource) && is_long()
        }
        // The commonest answer is bytes as they are stored.
        "get" => stored().is_some_and(|stored| stored >= HEAVY_BYTES) && !is_plain(Offer::Stored),
        // Fifteen bytes of an expression may take ten milliseconds to compile.
        _ => resource.row.strategy().compiles() || body + stored().unwrap_or(0) >= HEAVY_BYTES,
    }
}

/// Whether a list looks at one record.
fn names_one(call: &Call, resource: &Resource) -> bool {
    let placed = call.namespace().is_some() || !resource.row.namespaced();
    placed && call.selected_name().is_some()
}

/// Whether looking into all of these takes long.
fn is_long<'a>(records: impl Iterator<Item = &'a Arc<Record>>) -> bool {
    let mut bytes = 0;
    records.enumerate().any(|(at, record)| {
        bytes += record.bytes.len();
        at + 1 >= HEAVY_RECORDS || bytes >= HEAVY_RECORDS_BYTES
    })
}

fn with_warnings(call: &Call, mut response: Response) -> Response {
    for warning in call.warning_headers() {
        response.headers_mut().append(header::WARNING, warning);
    }
    response
}

/// How often a request is decided anew because its definition changed meanwhile.
const REDEFINED_MAX: usize = 8;

async fn answer(server: &Shared, request: &Request, handler: &Handler, verb: &'static str) -> Result<Response, Status> {
    let Handler::Resource(resource) = handler else { return answer_once(server, request, handler, verb).await };
    if resource.custom.is_none() {
        return answer_once(server, request, handler, verb).await;
    }
    let mut resource = resource.clone();
    for _ in 0..REDEFINED_MAX {
        let answer = answer_once(server, request, &Handler::Resource(resource.clone()), verb).await;
        let Err(status) = answer else { return answer };
        // What may have been done is not done again.
        if matches!(status.code(), 503 | 504) {
            return Err(status);
        }
        match server.cluster.redefined(&resource).await {
            Ok(Some(now)) => resource = now,
            Ok(None) => return Err(status),
            Err(gone) => return Err(if gone.code() == 404 { gone } else { status }),
        }
    }
    Err(Status::server_timeout(resource.row.group(), resource.row.resource(), verb, 1))
}

async fn answer_once(
    server: &Shared,
    request: &Request,
    handler: &Handler,
    verb: &'static str,
) -> Result<Response, Status> {
    let cluster = &server.cluster;
    let resource = match handler {
        Handler::Review(review) => {
            return subresources::reviews::answer(cluster, &server.tokens, request, *review).await;
        }
        Handler::Binding => return subresources::binding::create(cluster, request, true).await,
        Handler::Usage(of) => return usage::answer(cluster, &server.usages, &request.call, *of).await,
        Handler::Resource(resource) => resource,
    };
    let call = &request.call;
    if !call.subresource().is_empty() {
        return apart(|| subresources::dispatch(cluster, &server.tokens, request, resource)).await;
    }
    let method_ok = match call.method {
        Method::GET | Method::HEAD | Method::DELETE => true,
        Method::POST => call.target.name.is_none(),
        Method::PUT | Method::PATCH => call.target.name.is_some(),
        _ => false,
    };
    let across = resource.row.namespaced() && call.target.namespace.is_none() && verb != "list";
    if !method_ok || !resource.row.verbs().contains(&verb) || across {
        return Err(Status::method_not_allowed());
    }
    match verb {
        "create" => apart(|| verbs::create::create(cluster, request, resource)).await,
        "get" => verbs::get::get(cluster, call, resource).await,
        "list" => apart(|| verbs::list::list(cluster, call, resource)).await,
        "update" => apart(|| verbs::update::update(cluster, request, resource, "")).await,
        "patch" => apart(|| verbs::patch::patch(cluster, request, resource, "")).await,
        "delete" => apart(|| verbs::delete::delete(cluster, request, resource)).await,
        "deletecollection" => apart(|| verbs::deletecollection::deletecollection(cluster, request, resource)).await,
        _ => Err(Status::method_not_allowed()),
    }
}

/// Compresses large answers when the client asks for it and is not on this machine, where the network costs nothing.
fn compressed(call: &Call, peer: Option<SocketAddr>, response: Response) -> Response {
    use http_body::Body as _;
    /// Smallest answer worth compressing (kubernetes-api §4.3).
    const SMALLEST: u64 = 128 << 10;
    let asked = call.header(header::ACCEPT_ENCODING).is_some_and(|accepted| accepted.contains("gzip"));
    let far = peer.is_some_and(|peer| !peer.ip().is_loopback());
    let size = response.body().size_hint();
    let small = size.exact().is_some_and(|size| size < SMALLEST);
    if !asked || !far || small || response.status() != StatusCode::OK || call.method != Method::GET {
        return response;
    }
    compress::gzipped(response)
}
