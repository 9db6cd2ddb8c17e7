//! Eviction: a deletion that asks first whether the pod can be spared (policy/v1). There are no budgets yet, so it can.

use std::sync::Arc;

use axum::response::Response;
use coracle_api::meta::{self, time};
use coracle_api::schema;
use coracle_api::status::Status;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::catalog::Resource;
use crate::edge::body::{self, Expected};
use crate::edge::call::Request;
use crate::edge::negotiate::Offer;
use crate::edge::options::{DeleteOptions, write_options};
use crate::edge::respond;
use crate::server::Shared;
use crate::verbs::delete::remove;
use crate::verbs::update::{Changed, change};
use crate::verbs::write::Write;

pub(super) async fn create(
    server: &Arc<Shared>,
    request: &Request,
    resource: &Arc<Resource>,
) -> Result<Response, Status> {
    let call = &request.call;
    let form = call.form(Offer::Plain)?;
    let schema = schema::of_kind("policy", "v1", "Eviction")
        .ok_or_else(|| Status::internal_error("the type Eviction is not known"))?;
    let options = write_options(call, "CreateOptions", None)?;
    let expected = Expected { api_version: "policy/v1", kind: "Eviction", schema: &schema };
    let eviction = body::object(call, &request.body, &expected, options.validation)?;
    if meta::name(&eviction) != call.name() {
        return Err(Status::bad_request("name in URL does not match name in Eviction object"));
    }
    let mut delete = DeleteOptions::from_body(&eviction["deleteOptions"])?;
    delete.dry_run |= options.dry_run;
    if !delete.dry_run {
        let write = Write { server, call, resource, options: &options, subresource: "status" };
        change(&write, |old| Ok(Changed { object: disrupted(old), owned: true, names_version: false })).await?;
    }
    remove(server, call, resource, call.name(), &delete).await?;
    let mut done = Status::success(None);
    done.code = 201;
    Ok(respond::status(form, &done))
}

/// Says in the pod's status why it goes.
fn disrupted(old: &Value) -> Value {
    let mut pod = old.clone();
    let finished = matches!(old["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    let mut conditions = old["status"]["conditions"].as_array().cloned().unwrap_or_default();
    if finished || conditions.iter().any(|known| known["type"] == "DisruptionTarget" && known["status"] == "True") {
        return pod;
    }
    conditions.retain(|known| known["type"] != "DisruptionTarget");
    conditions.push(json!({
        "type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI",
        "message": "Eviction API: evicting", "lastProbeTime": null, "lastTransitionTime": time::format(Timestamp::now()),
    }));
    if !pod["status"].is_object() {
        pod["status"] = json!({});
    }
    pod["status"]["conditions"] = conditions.into();
    pod
}
