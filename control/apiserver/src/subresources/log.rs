//! `pods/log`: options are checked here, the node has the lines.

use std::sync::Arc;

use axum::response::Response;
use coracle_api::kinds::FieldError;
use coracle_api::meta;
use coracle_api::status::Status;
use http::request::Parts;
use hyper::upgrade::OnUpgrade;

use super::forward;
use crate::catalog::Resource;
use crate::edge::call::Call;
use crate::edge::respond;
use crate::server::Shared;
use crate::server::nodes;

pub(super) async fn answer(
    server: &Arc<Shared>,
    call: Call,
    resource: &Arc<Resource>,
    parts: Parts,
    upgrade: Option<OnUpgrade>,
) -> Result<Response, Status> {
    let pod = forward::read_pod(server, &call, resource).await?;
    check(&call)?;
    let container = forward::container(&pod, call.query.text("container"), meta::name(&pod))?;
    let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
    if node.is_empty() {
        // A pod that runs nowhere yet has said nothing yet.
        return Ok(respond::nothing());
    }
    let to = nodes::kubelet(server, node)?;
    let namespace = call.namespace().unwrap_or_default();
    let query = parts.uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    let path = format!("/containerLogs/{namespace}/{}/{container}{query}", call.name());
    forward::pass(server, &to, &path, parts, nodes::empty(), upgrade).await
}

/// The rules of the options.
fn check(call: &Call) -> Result<(), Status> {
    let query = &call.query;
    let mut errors = Vec::new();
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
