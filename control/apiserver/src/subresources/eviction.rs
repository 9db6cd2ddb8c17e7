//! Eviction: a deletion that asks first whether the pod can be spared (policy/v1). There are no budgets yet, so it can.

use std::sync::Arc;

use axum::response::Response;
use coracle_api::codec::json;
use coracle_api::meta::{self, time};
use coracle_api::schema;
use coracle_api::status::Status;
use jiff::Timestamp;
use serde_json::{Value, json as object};

use crate::answer::respond;
use crate::catalog::Resource;
use crate::cluster::Cluster;
use crate::request::body::{self, Expected};
use crate::request::call::Request;
use crate::request::negotiate::Offer;
use crate::request::options::{DeleteOptions, write_options};
use crate::verbs::delete::{check_preconditions, remove};
use crate::verbs::update::{Changed, change};
use crate::verbs::write::Write;

pub(super) async fn create(cluster: &Cluster, request: &Request, resource: &Arc<Resource>) -> Result<Response, Status> {
    let call = &request.call;
    let form = call.form(Offer::Plain)?;
    let schema = schema::of_kind("policy", "v1", "Eviction")
        .ok_or_else(|| Status::internal_error("the type Eviction is not known"))?;
    let options = write_options(call, "CreateOptions", None)?;
    let version = json::type_of(&request.body).map(|(version, _)| version).unwrap_or_default();
    let api_version = if version == "policy/v1beta1" { "policy/v1beta1" } else { "policy/v1" };
    let expected = Expected { api_version, kind: "Eviction", schema: &schema };
    let eviction = body::object(call, &request.body, &expected, options.validation)?;
    if meta::name(&eviction) != call.name() {
        return Err(Status::bad_request("name in URL does not match name in Eviction object"));
    }
    let mut delete = DeleteOptions::from_body(&eviction["deleteOptions"])?;
    delete.dry_run |= options.dry_run;
    if !delete.dry_run {
        let write = Write { cluster, call, resource, options: &options, subresource: "status" };
        let step = |old: &Value| {
            check_preconditions(resource, old, &delete)?;
            Ok(Changed { object: disrupted(old), owned: true, names_version: false })
        };
        let marked = change(&write, step).await?.into_value(resource)?;
        // The version that the client meant was there when the condition was written; now it is this one.
        if delete.resource_version.is_some() {
            delete.resource_version = Some(meta::resource_version(&marked).to_owned());
        }
    }
    remove(cluster, call, resource, call.name(), &delete).await?;
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
    conditions.push(object!({
        "type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI",
        "message": "Eviction API: evicting", "lastProbeTime": null, "lastTransitionTime": time::format(Timestamp::now()),
    }));
    if !pod["status"].is_object() {
        pod["status"] = object!({});
    }
    pod["status"]["conditions"] = conditions.into();
    pod
}
