//! `pods/log`: options are checked here, the node has the lines.

use std::sync::Arc;

use axum::response::Response;
use coracle_api::kinds::FieldError;
use coracle_api::meta;
use coracle_api::status::Status;

use super::Passing;
use super::forward;
use crate::answer::respond;
use crate::catalog::Resource;
use crate::cluster::Cluster;
use crate::nodes::{self, Nodes};
use crate::request::call::Call;

pub(super) async fn answer(
    cluster: &Cluster,
    nodes: &Nodes,
    passing: Passing,
    resource: &Arc<Resource>,
) -> Result<Response, Status> {
    let call = &passing.call;
    let pod = forward::read_pod(cluster, call, resource).await?;
    check(call)?;
    let container = forward::container(&pod, call.query.text("container"), meta::name(&pod))?;
    let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
    if node.is_empty() {
        // A pod that runs nowhere yet has said nothing yet.
        return Ok(respond::nothing(http::StatusCode::NO_CONTENT));
    }
    let to = nodes::kubelet(cluster, node)?;
    let namespace = call.namespace().unwrap_or_default();
    let query = call.uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    let path = format!("/containerLogs/{namespace}/{}/{container}{query}", call.name());
    forward::pass(nodes, &to, &path, Passing { body: nodes::empty(), ..passing }, None).await
}

/// The rules of the options.
fn check(call: &Call) -> Result<(), Status> {
    let query = &call.query;
    let mut errors = Vec::new();
    query.text("sinceTime").map_or(Ok(()), coracle_api::codec::check_time).map_err(Status::bad_request)?;
    for (field, least) in [("tailLines", 0), ("limitBytes", 1), ("sinceSeconds", 1)] {
        if let Some(number) = query.integer(field)?.filter(|number| *number < least) {
            let message = format!("must be greater than {}", if least == 0 { "or equal to 0" } else { "0" });
            errors.push(FieldError::invalid(field, number, &message));
        }
    }
    if query.text("sinceSeconds").is_some() && query.text("sinceTime").is_some() {
        errors.push(FieldError::forbidden("", "at most one of `sinceTime` or `sinceSeconds` may be specified"));
    }
    match query.text("stream") {
        None | Some("All") => {}
        Some("Stdout" | "Stderr") if query.text("tailLines").is_some() => {
            errors.push(FieldError::forbidden("", "`tailLines` and specific `stream` are mutually exclusive for now"));
        }
        Some("Stdout" | "Stderr") => {}
        Some(other) => errors.push(FieldError::not_supported("stream", other, &["All", "Stderr", "Stdout"])),
    }
    if errors.is_empty() { Ok(()) } else { Err(Status::invalid("", "PodLogOptions", call.name(), errors)) }
}
