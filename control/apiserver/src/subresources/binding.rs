//! Binding a pod to a node: what a scheduler does.

use std::sync::Arc;

use axum::response::Response;
use coracle_api::kinds::FieldError;
use coracle_api::meta::{self, names, time};
use coracle_api::schema;
use coracle_api::status::Status;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::admit;
use crate::admission::topology;
use crate::answer::respond;
use crate::catalog::Resource;
use crate::cluster::Cluster;
use crate::request::body::{self, Expected};
use crate::request::call::{Call, Request};
use crate::request::negotiate::Offer;
use crate::request::options::{WriteOptions, write_options};
use crate::verbs::update::{Changed, change};
use crate::verbs::write::Write;

const OTHER_NAME: &str = "name in URL does not match name in Binding object";

/// `POST …/pods/{name}/binding`, or `POST …/bindings` where the pod is named in the body.
pub(crate) async fn create(cluster: &Cluster, request: &Request, by_body: bool) -> Result<Response, Status> {
    let call = &request.call;
    if call.method != http::Method::POST || call.namespace().is_none() {
        return Err(Status::method_not_allowed());
    }
    let form = call.form(Offer::Plain)?;
    let schema =
        schema::of_kind("", "v1", "Binding").ok_or_else(|| Status::internal_error("the type Binding is not known"))?;
    let options = write_options(call, "CreateOptions", None)?;
    let expected = Expected { api_version: "v1", kind: "Binding", schema: &schema };
    let mut binding = body::object(call, &request.body, &expected, options.validation)?;
    let pods = pods(cluster)?;
    let name = if by_body { meta::name(&binding).to_owned() } else { call.name().to_owned() };
    if name.is_empty() || !meta::name(&binding).is_empty() && meta::name(&binding) != name {
        return Err(Status::bad_request(OTHER_NAME));
    }
    // The change is made to the pod, whatever path the binding came by.
    let mut target_path = call.target.clone();
    target_path.name = Some(name.clone());
    let pod_call = Call::acting_on(call, target_path);
    let admitted = admit(cluster, call, &pods, &mut binding, options.dry_run).await?;
    let target = target(&binding, &name)?;
    let options = WriteOptions { admitted, ..options };
    let write = Write { cluster, call: &pod_call, resource: &pods, options: &options, subresource: "binding" };
    let uid = meta::uid(&binding).to_owned();
    let step = |old: &Value| {
        let object = bound(cluster, &pods, old, target, &uid, &binding)?;
        Ok(Changed { object, owned: true, names_version: false })
    };
    change(&write, step).await?;
    let mut done = Status::success(None);
    done.code = 201;
    Ok(respond::status(form, &done))
}

/// Where a binding sends the pod of this name, as it was admitted.
pub(super) fn target<'a>(binding: &'a Value, name: &str) -> Result<&'a str, Status> {
    let given = meta::name(binding);
    if !given.is_empty() && given != name {
        return Err(Status::bad_request(OTHER_NAME));
    }
    let text = |field: &str| binding["target"][field].as_str().unwrap_or_default();
    let (kind, node) = (text("kind"), text("name"));
    let mut errors = Vec::new();
    if !matches!(kind, "" | "Node") {
        errors.push(FieldError::not_supported("target.kind", kind, &["Node", "<empty>"]));
    }
    if node.is_empty() {
        errors.push(FieldError::required("target.name", ""));
    }
    if !errors.is_empty() {
        let messages = errors.iter().map(ToString::to_string);
        return Err(Status::unknown_error(coracle_api::meta::field::aggregate(messages)));
    }
    check_node(node).map(|()| node)
}

/// A pod is bound to what may be the name of a node.
pub(super) fn check_node(name: &str) -> Result<(), Status> {
    if name.is_empty() {
        return Err(Status::unknown_error(FieldError::required("target.name", "").to_string()));
    }
    match names::dns_subdomain(name).first() {
        Some(why) => Err(Status::unknown_error(FieldError::invalid("target.name", name, why).to_string())),
        None => Ok(()),
    }
}

pub(super) fn pods(cluster: &Cluster) -> Result<Arc<Resource>, Status> {
    cluster.catalog.named("", "pods").cloned().ok_or_else(Status::path_not_found)
}

/// The pod, bound to `node`.
pub(super) fn bound(
    cluster: &Cluster,
    pods: &Resource,
    old: &Value,
    node: &str,
    uid: &str,
    binding: &Value,
) -> Result<Value, Status> {
    let name = meta::name(old);
    let conflict = |message: String| Status::conflict("", "pods/binding", name, message);
    let preconditions = [
        ("UID", uid, meta::uid(old)),
        ("ResourceVersion", meta::resource_version(binding), meta::resource_version(old)),
    ];
    for (what, given, known) in preconditions {
        if !given.is_empty() && given != known {
            let message =
                format!("Precondition failed: {what} in precondition: {given}, {what} in object meta: {known}");
            return Err(Status::conflict("", pods.row.resource(), name, message));
        }
    }
    if meta::is_deleting(old) {
        return Err(conflict(format!("pod {name} is being deleted, cannot be assigned to a host")));
    }
    if let Some(bound) = old["spec"]["nodeName"].as_str().filter(|bound| !bound.is_empty()) {
        return Err(conflict(format!("pod {name} is already assigned to node \"{bound}\"")));
    }
    if old["spec"]["schedulingGates"].as_array().is_some_and(|gates| !gates.is_empty()) {
        return Err(conflict(format!("pod {name} has non-empty .spec.schedulingGates")));
    }
    let mut pod = old.clone();
    pod["spec"]["nodeName"] = node.into();
    for field in ["annotations", "labels"] {
        if let Some(added) = binding["metadata"][field].as_object().filter(|added| !added.is_empty()) {
            let metadata = meta::metadata_mut(&mut pod);
            let map = metadata.entry(field).or_insert_with(|| json!({}));
            for (key, value) in added {
                map[key.as_str()] = value.clone();
            }
        }
    }
    topology::label(cluster, node, &mut pod);
    scheduled(&mut pod);
    Ok(pod)
}

/// Sets the condition PodScheduled; where room was made for it says nothing any more.
fn scheduled(pod: &mut Value) {
    let now = time::format(Timestamp::now());
    if !pod["status"].is_object() {
        pod["status"] = json!({"phase": "Pending"});
    }
    let mut conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let mut condition =
        json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now});
    match conditions.iter_mut().find(|known| known["type"] == "PodScheduled") {
        Some(known) => {
            if known["status"] == "True" {
                condition["lastTransitionTime"] = known["lastTransitionTime"].clone();
            }
            *known = condition;
        }
        None => conditions.push(condition),
    }
    pod["status"]["conditions"] = conditions.into();
    pod["status"].as_object_mut().map(|status| status.remove("nominatedNodeName"));
}
