//! Nobody looks through a policy at what it may not read: who makes one, or binds one, must be able to read its params (the
//! reference's strategies of these kinds).

use coracle_api::kinds::FieldError;
use coracle_api::meta;
use coracle_api::status::Status;
use serde_json::Value;

use super::super::Attributes;
use super::params;
use crate::authz;
use crate::identity::Identity;
use crate::policies::ParamKind;

/// Checks a policy or a binding that is about to be stored.
pub(in crate::admission) async fn check(
    at: &Attributes<'_>,
    object: &Value,
    old: Option<&Value>,
) -> Result<(), Status> {
    if !at.subresource.is_empty() || at.caller.is_in("system:masters") {
        return Ok(());
    }
    let of = |object: &Value| match at.resource.row.resource() {
        "validatingadmissionpolicies" | "mutatingadmissionpolicies" => Some(object["spec"]["paramKind"].clone()),
        "validatingadmissionpolicybindings" | "mutatingadmissionpolicybindings" => {
            let spec = &object["spec"];
            let params = spec["paramRef"].clone();
            Some(if params.is_null() { params } else { serde_json::json!([spec["policyName"], params]) })
        }
        _ => None,
    };
    let Some(new) = of(object).filter(|new| !new.is_null()) else { return Ok(()) };
    if old.and_then(of).is_some_and(|old| old == new) {
        return Ok(());
    }
    let (field, refused) = if at.resource.row.resource().ends_with("policies") {
        ("spec.paramKind", policy(at, &object["spec"]["paramKind"]).await)
    } else {
        ("spec.paramRef", binding(at, &object["spec"]).await?)
    };
    let Some(why) = refused else { return Ok(()) };
    let row = &at.resource.row;
    Err(Status::invalid(row.group(), row.kind(), meta::name(object), vec![FieldError::forbidden(field, &why)]))
}

/// A caller as Go prints its structure.
fn shown(caller: &Identity) -> String {
    let extra: Vec<String> = caller.extra.iter().map(|(key, values)| format!("{key}:[{}]", values.join(" "))).collect();
    format!("&{{{} {} [{}] map[{}]}}", caller.user, caller.uid, caller.groups.join(" "), extra.join(" "))
}

fn kind(kind: &Value) -> ParamKind {
    let text = |field: &str| kind[field].as_str().unwrap_or_default().to_owned();
    ParamKind { api_version: text("apiVersion"), kind: text("kind") }
}

/// The group and the resource of params; everything, where that is not known.
async fn asked(at: &Attributes<'_>, kind: &ParamKind) -> (String, String) {
    let resource = params::resource(at.cluster, kind).await;
    let name = resource.map_or_else(|_| "*".to_owned(), |resource| resource.row.resource().to_owned());
    (kind.group_version().0.to_owned(), name)
}

async fn policy(at: &Attributes<'_>, params: &Value) -> Option<String> {
    let kind = kind(params);
    let (group, resource) = asked(at, &kind).await;
    let asked = authz::Attributes {
        verb: "get",
        group: &group,
        resource: &resource,
        namespace: "*",
        name: "*",
        ..Default::default()
    };
    (!authz::allows(at.cluster, at.caller, &asked)).then(|| {
        format!(
            "user {} must have \"get\" permission on all objects of the referenced paramKind (kind={}, apiVersion={})",
            shown(at.caller),
            kind.kind,
            kind.api_version
        )
    })
}

async fn binding(at: &Attributes<'_>, spec: &Value) -> Result<Option<String>, Status> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let params = &spec["paramRef"];
    let (name, namespace) = (text(&params["name"]), text(&params["namespace"]));
    let verb = if name.is_empty() { "list" } else { "get" };
    let policies = at.resource.row.resource().replace("bindings", "").replace("policy", "policies");
    let of = text(&spec["policyName"]);
    let policy = match at.cluster.catalog.named(at.resource.row.group(), &policies) {
        Some(resource) => match at.cluster.store.find(resource, &of).await? {
            Some(record) => Some(crate::store::Seen::new(resource, &record).stored()?),
            None => None,
        },
        None => None,
    };
    let known = policy.as_ref().map(|policy| &policy["spec"]["paramKind"]).filter(|kind| kind.is_object());
    let (group, resource) = match known {
        Some(params) => asked(at, &kind(params)).await,
        None => ("*".to_owned(), "*".to_owned()),
    };
    let asked = authz::Attributes {
        verb,
        group: &group,
        resource: &resource,
        namespace: &namespace,
        name: &name,
        ..Default::default()
    };
    if authz::allows(at.cluster, at.caller, &asked) {
        return Ok(None);
    }
    let user = shown(at.caller);
    Ok(Some(match policy {
        None => format!(
            "unable to get policy {of} to determine minimum required permissions and user {user} does not have \"{verb}\" \
             permission for all groups, versions and resources"
        ),
        Some(_) => format!("user {user} does not have \"{verb}\" permission on the object referenced by paramRef"),
    }))
}
