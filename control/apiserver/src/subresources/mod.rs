//! What hangs below an object.

pub(crate) mod binding;
pub(crate) mod bindings;
mod budget;
mod eviction;
mod forward;
mod html;
mod log;
pub(crate) mod nodes;
pub(crate) mod reviews;
mod scale;
mod token;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use coracle_api::status::Status;
use http::Method;

use self::nodes::Nodes;
use crate::authn::tokens::Tokens;
use crate::catalog::Resource;
use crate::cluster::Cluster;
use crate::limits::{Connection, Place};
use crate::request::call::{Call, Request};
use crate::verbs;

/// A request that somebody else answers; its body is still arriving.
pub(crate) struct Passing {
    pub call: Call,
    pub body: Body,
    pub upgrade: Option<hyper::upgrade::OnUpgrade>,
    /// Where it comes from, when that is over the network.
    pub peer: Option<SocketAddr>,
    /// The same, to be held for as long as it is in use.
    pub connection: Option<Connection>,
    /// Held for as long as the answer goes on.
    pub place: Place,
}

/// Whether a call is for a subresource whose answer is a stream from a node.
pub(crate) fn is_stream(call: &Call, resource: &Resource) -> bool {
    let row = &resource.row;
    row.group().is_empty()
        && match row.resource() {
            "pods" => matches!(call.subresource(), "log" | "portforward" | "exec" | "attach" | "proxy"),
            "services" | "nodes" => call.subresource() == "proxy",
            _ => false,
        }
}

/// Answers such a call.
pub(crate) async fn stream(
    cluster: &Cluster,
    nodes: &Nodes,
    passing: Passing,
    resource: &Arc<Resource>,
) -> Result<Response, Status> {
    let call = &passing.call;
    match (resource.row.resource(), call.subresource()) {
        ("pods", "log") if matches!(call.method, Method::GET | Method::HEAD) => {
            log::answer(cluster, nodes, passing, resource).await
        }
        ("pods", "portforward" | "exec" | "attach") if matches!(call.method, Method::GET | Method::POST) => {
            forward::to_pod(cluster, nodes, passing, resource).await
        }
        (_, "proxy") => forward::proxy(cluster, nodes, passing, resource).await,
        _ => Err(Status::method_not_allowed()),
    }
}

/// Every other subresource.
pub(crate) async fn dispatch(
    cluster: &Cluster,
    tokens: &Tokens,
    request: &Request,
    resource: &Arc<Resource>,
) -> Result<Response, Status> {
    let call = &request.call;
    let row = &resource.row;
    let subresource = call.subresource();
    let verbs: &[&str] = match subresource {
        "status" if row.has_status() => &["get", "patch", "update"],
        "scale" if row.has_scale() => &["get", "patch", "update"],
        other => row.subresources().iter().find(|part| part.name == other).ok_or_else(Status::path_not_found)?.verbs,
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
    match (row.resource(), subresource, verb) {
        (_, "scale", _) => scale::answer(cluster, request, resource, verb).await,
        ("pods", "binding", _) => binding::create(cluster, request, false).await,
        ("pods", "eviction", _) => eviction::create(cluster, request, resource).await,
        ("serviceaccounts", "token", _) => token::create(cluster, tokens, request, resource).await,
        (_, _, "get") => verbs::get::get(cluster, call, resource).await,
        (_, _, "update") => verbs::update::update(cluster, request, resource, subresource).await,
        (_, _, "patch") => verbs::patch::patch(cluster, request, resource, subresource).await,
        _ => Err(Status::method_not_allowed()),
    }
}
