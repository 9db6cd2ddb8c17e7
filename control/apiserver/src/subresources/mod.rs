//! What hangs below an object.

pub(crate) mod binding;
pub(crate) mod bindings;
mod eviction;
mod forward;
mod log;
pub(crate) mod reviews;
mod scale;
mod token;

use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use coracle_api::status::Status;
use http::Method;

use crate::catalog::Resource;
use crate::edge::call::{Call, Request};
use crate::server::Shared;
use crate::verbs;

/// Whether a call is for a subresource whose answer is a stream from a node.
pub(crate) fn is_stream(call: &Call, resource: &Resource) -> bool {
    let row = resource.row;
    row.group.is_empty()
        && match row.resource {
            "pods" => matches!(call.subresource(), "log" | "portforward" | "exec" | "attach" | "proxy"),
            "services" | "nodes" => call.subresource() == "proxy",
            _ => false,
        }
}

/// Answers such a call.
pub(crate) async fn stream(
    server: &Arc<Shared>,
    call: Call,
    resource: &Arc<Resource>,
    parts: http::request::Parts,
    body: Body,
    upgrade: Option<hyper::upgrade::OnUpgrade>,
) -> Result<Response, Status> {
    match (resource.row.resource, call.subresource()) {
        ("pods", "log") if matches!(call.method, Method::GET | Method::HEAD) => {
            log::answer(server, call, resource, parts, upgrade).await
        }
        ("pods", "portforward" | "exec" | "attach") if matches!(call.method, Method::GET | Method::POST) => {
            forward::to_pod(server, call, resource, parts, body, upgrade).await
        }
        (_, "proxy") => forward::proxy(server, call, resource, parts, body, upgrade).await,
        _ => Err(Status::method_not_allowed()),
    }
}

/// Every other subresource.
pub(crate) async fn dispatch(
    server: &Arc<Shared>,
    request: &Request,
    resource: &Arc<Resource>,
) -> Result<Response, Status> {
    let call = &request.call;
    let row = resource.row;
    let subresource = call.subresource();
    let verbs: &[&str] = match subresource {
        "status" if row.has_status => &["get", "patch", "update"],
        "scale" if row.has_scale => &["get", "patch", "update"],
        other => row.subresources.iter().find(|part| part.name == other).ok_or_else(Status::path_not_found)?.verbs,
    };
    let verb = match call.method {
        Method::GET | Method::HEAD => "get",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => return Err(Status::method_not_allowed()),
    };
    if !verbs.contains(&verb) {
        return Err(Status::method_not_allowed());
    }
    match (row.resource, subresource, verb) {
        (_, "scale", _) => scale::answer(server, request, resource, verb).await,
        ("pods", "binding", _) => binding::create(server, request, false).await,
        ("pods", "eviction", _) => eviction::create(server, request, resource).await,
        ("serviceaccounts", "token", _) => token::create(server, request, resource).await,
        (_, _, "get") => verbs::get::get(server, call, resource).await,
        (_, _, "update") => verbs::update::update(server, request, resource, subresource).await,
        (_, _, "patch") => verbs::patch::patch(server, request, resource, subresource).await,
        _ => Err(Status::method_not_allowed()),
    }
}
