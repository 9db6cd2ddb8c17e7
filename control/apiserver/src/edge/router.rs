//! From a request to the handler that answers it, through the filters that all pass.
//!
//! There is one route for everything: a path is taken apart ([`Route::parse`]) and the resource is looked up in the
//! catalog, so that kinds that appear while the server runs need no new route.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use axum::response::Response;
use coracle_api::status::Status;
use futures::FutureExt;
use http::{HeaderValue, Method, StatusCode, header};

use super::body;
use super::call::{Call, Request};
use super::negotiate::{self, Form, Offer};
use super::path::{ResourcePath, Route};
use super::respond;
use crate::authz::{self, Attributes};
use crate::catalog::Resource;
use crate::identity::Identity;
use crate::server::Shared;
use crate::{authn, discovery, health, openapi, subresources, verbs};

/// Answers a request. It never fails: what goes wrong is an answer, too.
pub(crate) async fn handle(server: Arc<Shared>, request: http::Request<Body>) -> Response {
    let started = Instant::now();
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let head = method == Method::HEAD;
    let audit_id = request
        .headers()
        .get("audit-id")
        .cloned()
        .filter(|id| id.len() <= 64)
        .or_else(|| HeaderValue::from_str(&crate::identity::new_uuid()).ok());
    let accept = request.headers().get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).map(str::to_owned);
    let mut seen = Observed { verb: "get", resource: String::new() };
    let answer = AssertUnwindSafe(route(&server, request, &mut seen)).catch_unwind().await;
    let mut response = match answer {
        Ok(Ok(response)) => response,
        Ok(Err(status)) => failure(accept.as_deref(), &status),
        Err(_) => {
            tracing::error!(verb = seen.verb, resource = seen.resource, "a request handler panicked");
            failure(
                accept.as_deref(),
                &Status::internal_error("this request caused the server to fail; its log says why"),
            )
        }
    };
    let headers = response.headers_mut();
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-cache, private"));
    if let Some(id) = audit_id {
        headers.insert("audit-id", id);
    }
    if head {
        *response.body_mut() = Body::empty();
    }
    let (code, elapsed) = (response.status().as_u16(), started.elapsed());
    tracing::debug!(%method, path, code, elapsed_us = elapsed.as_micros(), "request");
    server.metrics.observe(seen.verb, &seen.resource, code, elapsed);
    response
}

/// What the metrics say of a request.
struct Observed {
    verb: &'static str,
    resource: String,
}

fn failure(accept: Option<&str>, status: &Status) -> Response {
    let form = negotiate::choose(accept, Offer::Stored, false).unwrap_or(Form::JSON);
    respond::status(form, status)
}

async fn route(server: &Arc<Shared>, request: http::Request<Body>, seen: &mut Observed) -> Result<Response, Status> {
    let identity = authn::authenticate(server, &request)?;
    let path = request.uri().path().to_owned();
    match Route::parse(&path) {
        Route::Resource(target) => resource(server, request, identity, target, seen).await,
        route => {
            let method = request.method().as_str().to_ascii_lowercase();
            let verb = if method == "head" { "get" } else { &method };
            let asked = Attributes { verb, path: Some(&path), ..Attributes::default() };
            if !authz::allows(&identity, &asked) {
                return Err(authz::refusal(&identity, &asked));
            }
            let (parts, body) = request.into_parts();
            let call = Call::new(&parts, identity, ResourcePath::default());
            let _place = server.limits.request()?;
            let reads = matches!(call.method, Method::GET | Method::HEAD);
            match route {
                Route::Bindings if call.method == Method::POST => {
                    seen.verb = "create";
                    seen.resource = "bindings".to_owned();
                    let body = body::read(body, content_length(&parts.headers)).await?;
                    subresources::bindings::bind_all(server, &Request { call: Arc::new(call), body }).await
                }
                _ if !reads => Err(Status::method_not_allowed()),
                Route::Root => Ok(discovery::root(server, &call)),
                Route::Health(which, check) => Ok(health::answer(server, &call, &which, check.as_deref())),
                Route::Version => Ok(discovery::version(&call)),
                Route::Metrics => {
                    Ok(respond::bytes(200, "text/plain; version=0.0.4; charset=utf-8", server.metrics.render(server)))
                }
                Route::CoreVersions => discovery::core(server, &call),
                Route::Groups => discovery::groups(server, &call),
                Route::Group(group) => discovery::group(server, &call, &group),
                Route::Resources(group, version) => discovery::resources(server, &call, &group, &version),
                Route::OpenApiV2 => openapi::v2(server, &call),
                Route::OpenApiV3(document) => openapi::v3(server, &call, &document),
                Route::IssuerConfiguration => Ok(authn::oidc::configuration(server)),
                Route::IssuerKeys => Ok(authn::oidc::keys(server)),
                Route::Bindings => Err(Status::method_not_allowed()),
                Route::Unknown | Route::Resource(_) => not_found(server, &path),
            }
        }
    }
}

/// What the reference says of paths that are nothing: within a group that it knows it speaks as the API.
fn not_found(server: &Shared, path: &str) -> Result<Response, Status> {
    let mut parts = path.split('/').skip(1);
    let group = match parts.next() {
        Some("api") => parts.next().map(|_| ""),
        Some("apis") => parts.next(),
        _ => None,
    };
    match group {
        Some(group) if server.discovery.groups.iter().any(|known| known.name == group) => Err(Status::path_not_found()),
        _ => Ok(respond::text(404, "404 page not found\n")),
    }
}

fn content_length(headers: &http::HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

async fn resource(
    server: &Arc<Shared>,
    mut request: http::Request<Body>,
    identity: Identity,
    target: ResourcePath,
    seen: &mut Observed,
) -> Result<Response, Status> {
    let upgrade = request.extensions_mut().remove::<hyper::upgrade::OnUpgrade>();
    let peer = request.extensions().get::<axum::extract::ConnectInfo<std::net::SocketAddr>>().map(|peer| peer.0);
    let (parts, body) = request.into_parts();
    let call = Call::new(&parts, identity, target);
    let verb = authz::verb(&call);
    seen.verb = verb;
    let target = &call.target;
    let asked = Attributes {
        verb,
        group: &target.group,
        resource: &target.resource,
        subresource: call.subresource(),
        namespace: target.namespace.as_deref().unwrap_or_default(),
        name: call.name(),
        path: None,
    };
    if !authz::allows(&call.identity, &asked) {
        return Err(authz::refusal(&call.identity, &asked));
    }
    if let Some(answer) = subresources::reviews::find(&target.group, &target.version, &target.resource) {
        seen.resource = target.resource.clone();
        let _place = server.limits.request()?;
        if call.method != Method::POST || call.target.name.is_some() {
            return Err(Status::method_not_allowed());
        }
        let body = body::read(body, content_length(&parts.headers)).await?;
        return subresources::reviews::answer(server, &Request { call: Arc::new(call), body }, answer);
    }
    if (target.group.as_str(), target.version.as_str(), target.resource.as_str()) == ("", "v1", "bindings") {
        let body = body::read(body, content_length(&parts.headers)).await?;
        return subresources::binding::create(server, &Request { call: Arc::new(call), body }, true).await;
    }
    let Some(resource) = server.catalog.get(&target.group, &target.version, &target.resource).cloned() else {
        return not_found(server, &call.path);
    };
    resource.row.resource.clone_into(&mut seen.resource);
    let named = target.name.is_some();
    let in_namespace = target.namespace.is_some();
    if in_namespace && !resource.row.namespaced || named && resource.row.namespaced && !in_namespace && !target.watch {
        return Err(Status::path_not_found());
    }
    authz::own_pods_only(server, &call, &resource)?;
    if subresources::is_stream(&call, &resource) {
        let _place = server.limits.stream()?;
        return subresources::stream(server, call, &resource, parts, body, upgrade).await;
    }
    let call = Arc::new(call);
    match (resource.row.group, resource.row.resource) {
        ("", "endpoints") => call.warn("v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice"),
        ("", "componentstatuses") => call.warn("v1 ComponentStatus is deprecated in v1.19+"),
        _ => {}
    }
    if verb == "watch" {
        if !resource.row.verbs.contains(&"watch") || !call.subresource().is_empty() {
            return Err(Status::method_not_allowed());
        }
        return verbs::watch::watch(server, &call, &resource).await.map(|response| with_warnings(&call, response));
    }
    let _place = server.limits.request()?;
    let answer = async {
        let body = body::read(body, content_length(&parts.headers)).await?;
        let request = Request { call: call.clone(), body };
        let response = dispatch(server, &request, &resource, verb).await?;
        Ok::<Response, Status>(response)
    };
    let timed = tokio::time::timeout(server.config.request_timeout, answer).await;
    let answered =
        timed.unwrap_or_else(|_| Err(Status::timeout("request did not complete within the allotted timeout", 0)));
    let response = match answered {
        Ok(response) => response,
        Err(status) => failure(call.accept().as_deref(), &status),
    };
    Ok(compressed(&call, peer, with_warnings(&call, response)))
}

fn with_warnings(call: &Call, mut response: Response) -> Response {
    for warning in call.warning_headers() {
        response.headers_mut().append(header::WARNING, warning);
    }
    response
}

async fn dispatch(
    server: &Arc<Shared>,
    request: &Request,
    resource: &Arc<Resource>,
    verb: &'static str,
) -> Result<Response, Status> {
    let call = &request.call;
    if !call.subresource().is_empty() {
        return subresources::dispatch(server, request, resource).await;
    }
    let method_ok = match call.method {
        Method::GET | Method::HEAD | Method::DELETE => true,
        Method::POST => call.target.name.is_none(),
        Method::PUT | Method::PATCH => call.target.name.is_some(),
        _ => false,
    };
    let across = resource.row.namespaced && call.target.namespace.is_none() && verb != "list";
    if !method_ok || !resource.row.verbs.contains(&verb) || across {
        return Err(Status::method_not_allowed());
    }
    match verb {
        "create" => verbs::create::create(server, request, resource).await,
        "get" => verbs::get::get(server, call, resource).await,
        "list" => verbs::list::list(server, call, resource).await,
        "update" => verbs::update::update(server, request, resource, "").await,
        "patch" => verbs::patch::patch(server, request, resource, "").await,
        "delete" => verbs::delete::delete(server, request, resource).await,
        "deletecollection" => verbs::deletecollection::deletecollection(server, request, resource).await,
        _ => Err(Status::method_not_allowed()),
    }
}

/// Compresses large answers when the client asks for it and is not on this machine, where the network costs nothing.
fn compressed(call: &Call, peer: Option<std::net::SocketAddr>, response: Response) -> Response {
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
    super::compress::gzipped(response)
}
