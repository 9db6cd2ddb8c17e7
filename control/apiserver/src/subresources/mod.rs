//! What hangs below an object.

pub(crate) mod binding;
pub(crate) mod bindings;
mod budget;
mod eviction;
mod forward;
mod html;
mod log;
pub(crate) mod reviews;
mod scale;
mod token;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use coracle_api::meta;
use coracle_api::status::Status;
use http::Method;
use serde_json::{Value, json};

use crate::admission;
use crate::admission::matching::Operation;
use crate::authn::tokens::Tokens;
use crate::catalog::Resource;
use crate::cluster::Cluster;
use crate::limits::{Connection, Place};
use crate::nodes::Nodes;
use crate::request::call::{Call, Request};
use crate::request::options::Admitted;
use crate::verbs;

pub(crate) use forward::{forwarded, forwarded_for, remove_hop_by_hop, tunnel};

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

/// Admits something of a subresource's own, which somebody makes; gives by what it was admitted, which goes into the
/// transactions that carry it out.
async fn admit(
    cluster: &Cluster,
    call: &Call,
    resource: &Resource,
    object: &mut Value,
    dry_run: bool,
) -> Result<Admitted, Status> {
    let subresource = match call.subresource() {
        // The older path of the same.
        "" => "binding",
        subresource => subresource,
    };
    let at = attributes(cluster, call, resource, subresource);
    let name = if call.name().is_empty() { meta::name(object) } else { call.name() }.to_owned();
    let guard = at.guard().await;
    Box::pin(admission::admit(&at, Operation::Create, &name, object, dry_run)).await?;
    Ok(Admitted::As(guard))
}

fn attributes<'a>(
    cluster: &'a Cluster,
    call: &'a Call,
    resource: &'a Resource,
    subresource: &'a str,
) -> admission::Attributes<'a> {
    admission::Attributes {
        cluster,
        resource,
        caller: &call.identity,
        call,
        spent: &call.spent,
        is_here: call.is_here,
        namespace: call.namespace(),
        subresource,
        is_admitted: false,
    }
}

/// Asks webhooks whether a connection may be made (CONNECT). What it is for is told by its options; these they cannot change.
async fn connects(cluster: &Cluster, call: &Call, resource: &Resource) -> Result<(), Status> {
    let at = attributes(cluster, call, resource, call.subresource());
    if !at.may_ask() || call.subresource() == "log" {
        return Ok(());
    }
    let mut options = connection(call, resource);
    if Box::pin(admission::admit(&at, Operation::Connect, call.name(), &mut options, false)).await? {
        let message =
            "an admission webhook changed the options of a connection, which this version of Coracle does not do";
        return Err(Status::internal_error(message));
    }
    Ok(())
}

/// The options of a connection, from its query and its path.
fn connection(call: &Call, resource: &Resource) -> Value {
    let part = resource.row.subresources().iter().find(|part| part.name == call.subresource());
    let mut options = json!({"kind": part.map_or("", |part| part.kind), "apiVersion": "v1"});
    match call.subresource() {
        "exec" | "attach" => {
            for field in ["stdin", "stdout", "stderr", "tty"] {
                if call.query.flag(field) == Some(true) {
                    options[field] = true.into();
                }
            }
            if let Some(container) = call.query.text("container") {
                options["container"] = container.into();
            }
            let command: Vec<&str> = call.query.all("command").collect();
            if !command.is_empty() {
                options["command"] = command.into();
            }
        }
        "portforward" => {
            let ports: Vec<i64> = call.query.all("ports").filter_map(|port| port.parse().ok()).collect();
            if !ports.is_empty() {
                options["ports"] = ports.into();
            }
        }
        _ => options["path"] = call.target.rest.as_str().into(),
    }
    options
}

/// Answers such a call.
pub(crate) async fn stream(
    cluster: &Cluster,
    nodes: &Nodes,
    passing: Passing,
    resource: &Arc<Resource>,
) -> Result<Response, Status> {
    let call = &passing.call;
    connects(cluster, call, resource).await?;
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
