//! `scale`: how many, of whatever kind it is (autoscaling/v1). Where a custom resource says so, its definition says.

use std::sync::Arc;

use axum::response::Response;
use coracle_api::kinds::FieldError;
use coracle_api::meta;
use coracle_api::schema;
use coracle_api::status::Status;
use http::header;
use serde_json::{Value, json};

use crate::admission::scale::{Paths, at, scale_of, set};
use crate::answer::respond;
use crate::answer::table::{self, Include};
use crate::catalog::Resource;
use crate::cluster::Cluster;
use crate::request::body::{self, Expected};
use crate::request::call::{Call, Request};
use crate::request::negotiate::Offer;
use crate::request::options::write_options;
use crate::store::Seen;
use crate::verbs::patch::{self, Patch};
use crate::verbs::update::{Changed, change};
use crate::verbs::{get, ownership, write::Write};

pub(super) async fn answer(
    cluster: &Cluster,
    request: &Request,
    resource: &Arc<Resource>,
    verb: &str,
) -> Result<Response, Status> {
    let call = &request.call;
    let (form, include) = (call.form(Offer::Stored)?, Include::of(&call.query)?);
    let answer = |scale: &Value| {
        let table = |beta| table::of_scale(scale, include, beta);
        respond::shaped(form, 200, &resource.row, scale, table)
    };
    let schema = schema::of_kind("autoscaling", "v1", "Scale")
        .ok_or_else(|| Status::internal_error("the type Scale is not known"))?;
    if verb == "get" {
        let record = get::read(cluster, call, resource).await?;
        let object = Seen::new(resource, &record).stored()?;
        let spec = Paths::of(resource).spec;
        if resource.custom.is_some() && at(&object, &spec).is_none() {
            let path = coracle_api::meta::text::quote(&format!(".{}", spec.join(".")));
            return Err(Status::internal_error(format_args!("the spec replicas field {path} does not exist")));
        }
        return answer(&scale_of(resource, &object));
    }
    if verb == "patch" {
        patch::check_type(call, resource)?;
    }
    let media_type = call.header(header::CONTENT_TYPE).unwrap_or_default();
    let (kind, patch_type) = if verb == "patch" { ("PatchOptions", Some(media_type)) } else { ("UpdateOptions", None) };
    let options = write_options(call, kind, patch_type)?;
    let patch = if verb == "patch" { Some(Patch::read(call, &request.body)?) } else { None };
    let sent = match &patch {
        Some(_) => None,
        None => {
            let expected = Expected { api_version: "autoscaling/v1", kind: "Scale", schema: &schema };
            let scale = body::object(call, &request.body, &expected, options.validation)?;
            Some(scale)
        }
    };
    let write = Write { cluster, call, resource, options: &options, subresource: "scale" };
    if let Some(patch) = patch.as_ref().filter(|patch| patch.kind == patch::Kind::Apply) {
        let (config, problems) = patch.config();
        let applied = ownership::read_applied(&write, of_parent(resource, config)?, problems.to_vec())?;
        let step = |old: &Value| {
            let object = ownership::apply(&write, Some(old), &applied)?;
            check(call, &scale_of(resource, &object))?;
            Ok(Changed { object, owned: true, names_version: false })
        };
        let written = change(&write, step).await?;
        return answer(&scale_of(resource, &written.into_value(cluster, resource).await?));
    }
    let step = |old: &Value| {
        let shown = scale_of(resource, old);
        let scale = match (&patch, &sent) {
            (Some(patch), _) => patch.apply_to(call, &schema, &options, &shown)?,
            (None, Some(sent)) => sent.clone(),
            (None, None) => shown,
        };
        check(call, &scale)?;
        let mut object = old.clone();
        let replicas = scale["spec"]["replicas"].as_i64().unwrap_or(0);
        set(&mut object, &Paths::of(resource).spec, replicas.into());
        // The version and the incarnation that the scale names are those of the object.
        let metadata = meta::metadata_mut(&mut object);
        for field in ["resourceVersion", "uid"] {
            match scale["metadata"].get(field) {
                Some(value) => drop(metadata.insert(field.to_owned(), value.clone())),
                None => drop(metadata.remove(field)),
            }
        }
        Ok(Changed { object, owned: false, names_version: patch.is_none() })
    };
    let written = change(&write, step).await?;
    answer(&scale_of(resource, &written.into_value(cluster, resource).await?))
}

/// What an applied scale says of the object itself: that is where ownership is kept.
fn of_parent(resource: &Resource, scale: &Value) -> Result<Value, Status> {
    let text = |field: &str| scale[field].as_str().unwrap_or_default();
    if (text("apiVersion"), text("kind")) != ("autoscaling/v1", "Scale") {
        let (group, version) = text("apiVersion").split_once('/').unwrap_or(("", text("apiVersion")));
        return Err(Status::bad_request(format!("invalid object type: {group}/{version}, Kind={}", text("kind"))));
    }
    let mut config =
        json!({"apiVersion": resource.api_version, "kind": resource.row.kind(), "metadata": {}, "spec": {}});
    // Which object, and nothing of it: who may scale may not write the rest.
    for field in ["name", "namespace", "uid", "resourceVersion"] {
        if let Some(value) = scale["metadata"].get(field) {
            config["metadata"][field] = value.clone();
        }
    }
    if let Some(replicas) = scale["spec"].get("replicas") {
        set(&mut config, &Paths::of(resource).spec, replicas.clone());
    }
    Ok(config)
}

fn check(call: &Call, scale: &Value) -> Result<(), Status> {
    call.check_name(scale)?;
    call.check_namespace(scale)?;
    let replicas = scale["spec"]["replicas"].as_i64().unwrap_or(0);
    if replicas < 0 {
        let error = FieldError::invalid("spec.replicas", replicas, "must be greater than or equal to 0");
        return Err(Status::invalid("autoscaling", "Scale", call.name(), vec![error]));
    }
    Ok(())
}
