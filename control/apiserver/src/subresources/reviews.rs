//! Reviews: questions about who somebody is and what they may do, answered from what really holds here.

use axum::response::Response;
use coracle_api::kinds::{FieldError, printed_metadata};
use coracle_api::meta::field::{Path, Printed};
use coracle_api::meta::selector::{FieldSelector, LabelSelector};
use coracle_api::meta::{self, names, time};
use coracle_api::schema;
use coracle_api::status::Status;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::answer::respond;
use crate::authn::tokens::{self, Refused, Tokens};
use crate::authz::{self, Attributes};
use crate::cluster::Cluster;
use crate::identity::Identity;
use crate::request::body::{self, Expected};
use crate::request::call::Request;
use crate::request::negotiate::Offer;
use crate::request::options::write_options;
use crate::verbs::ownership;

/// The kinds of question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Review {
    Token,
    SelfSubject,
    Access,
    LocalAccess,
    SelfAccess,
    SelfRules,
}

const AUTHENTICATION: &str = "authentication.k8s.io";
const AUTHORIZATION: &str = "authorization.k8s.io";

/// The question at a path.
pub(crate) fn find(group: &str, version: &str, resource: &str) -> Option<Review> {
    match (group, version, resource) {
        (AUTHENTICATION, "v1", "tokenreviews") => Some(Review::Token),
        (AUTHENTICATION, "v1", "selfsubjectreviews") => Some(Review::SelfSubject),
        (AUTHORIZATION, "v1", "subjectaccessreviews") => Some(Review::Access),
        (AUTHORIZATION, "v1", "localsubjectaccessreviews") => Some(Review::LocalAccess),
        (AUTHORIZATION, "v1", "selfsubjectaccessreviews") => Some(Review::SelfAccess),
        (AUTHORIZATION, "v1", "selfsubjectrulesreviews") => Some(Review::SelfRules),
        _ => None,
    }
}

impl Review {
    fn group_and_kind(self) -> (&'static str, &'static str) {
        match self {
            Review::Token => (AUTHENTICATION, "TokenReview"),
            Review::SelfSubject => (AUTHENTICATION, "SelfSubjectReview"),
            Review::Access => (AUTHORIZATION, "SubjectAccessReview"),
            Review::LocalAccess => (AUTHORIZATION, "LocalSubjectAccessReview"),
            Review::SelfAccess => (AUTHORIZATION, "SelfSubjectAccessReview"),
            Review::SelfRules => (AUTHORIZATION, "SelfSubjectRulesReview"),
        }
    }
}

pub(crate) async fn answer(
    cluster: &Cluster,
    tokens: &Tokens,
    request: &Request,
    review: Review,
) -> Result<Response, Status> {
    let call = &request.call;
    let form = call.form(Offer::Plain)?;
    let (group, kind) = review.group_and_kind();
    let schema = schema::of_kind(group, "v1", kind).ok_or_else(Status::path_not_found)?;
    let options = write_options(call, "CreateOptions", None)?;
    let api_version = format!("{group}/v1");
    let expected = Expected { api_version: &api_version, kind, schema: &schema };
    let mut asked = body::object(call, &request.body, &expected, options.validation)?;
    ownership::track_answer(&schema, &expected, "", &options.manager, &mut asked);
    place(call.namespace(), &mut asked);
    let identity = &call.identity;
    match review {
        Review::Token => {
            let token = asked["spec"]["token"].as_str().unwrap_or_default().to_owned();
            if token.is_empty() {
                return Err(Status::bad_request("token is required for TokenReview in authentication"));
            }
            let wanted: Vec<String> = texts(&asked["spec"]["audiences"]);
            asked["status"] = match tokens::authenticate(cluster, tokens, &token, &wanted).await {
                Ok(accepted) => {
                    let mut status = json!({"authenticated": true, "user": user_info(&accepted.identity)});
                    status["audiences"] = accepted.audiences.into();
                    status
                }
                Err(Refused::Unknown(status)) => return Err(status),
                Err(Refused::Bad(why)) if why.starts_with("token audiences") => {
                    json!({"user": {}, "error": format!("[invalid bearer token, {why}]")})
                }
                Err(Refused::Bad(_)) => json!({"user": {}, "error": "invalid bearer token"}),
            };
        }
        Review::SelfSubject => {
            let metadata = json!({"creationTimestamp": time::format(Timestamp::now())});
            let status = json!({"userInfo": user_info(identity)});
            asked = json!({"kind": kind, "apiVersion": api_version, "metadata": metadata, "status": status});
        }
        Review::SelfRules => {
            let namespace = asked["spec"]["namespace"].as_str().unwrap_or_default();
            if namespace.is_empty() {
                return Err(Status::bad_request("no namespace on request"));
            }
            let answer = rules(cluster, identity, namespace);
            asked = json!({"kind": kind, "apiVersion": api_version, "metadata": {}, "spec": {}, "status": answer});
        }
        Review::Access | Review::LocalAccess | Review::SelfAccess => {
            asked["status"] = Box::pin(access(cluster, identity, review, call.namespace(), &asked)).await?;
        }
    }
    Ok(respond::value(form, 201, &asked))
}

/// A question is asked where its path says; what else the server says of an object nobody can ask with.
fn place(namespace: Option<&str>, asked: &mut Value) {
    let metadata = meta::metadata_mut(asked);
    for field in ["uid", "selfLink", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"] {
        metadata.remove(field);
    }
    match namespace {
        Some(namespace) => drop(metadata.insert("namespace".to_owned(), namespace.into())),
        None => drop(metadata.remove("namespace")),
    }
}

fn texts(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(|text| text.as_str().map(str::to_owned)).collect()
}

fn user_info(identity: &Identity) -> Value {
    let mut info = json!({"username": identity.user, "groups": identity.groups});
    if !identity.uid.is_empty() {
        info["uid"] = identity.uid.clone().into();
    }
    if !identity.extra.is_empty() {
        info["extra"] = json!(identity.extra);
    }
    info
}

/// Whether somebody may do something.
async fn access(
    cluster: &Cluster,
    caller: &Identity,
    kind: Review,
    namespace: Option<&str>,
    review: &Value,
) -> Result<Value, Status> {
    let spec = &review["spec"];
    let (resource, path) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
    let mut errors = Vec::new();
    if resource.is_object() == path.is_object() {
        let text = |field: &str| meta::text::quote(path[field].as_str().unwrap_or_default()).to_string();
        let shown = match path.is_object() {
            true => format!("{{\"Path\":{},\"Verb\":{}}}", text("path"), text("verb")),
            false => "null".to_owned(),
        };
        let detail = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
        errors.push(FieldError::invalid("spec", Printed(&shown), detail));
    }
    let user = spec["user"].as_str().unwrap_or_default();
    let groups = texts(&spec["groups"]);
    let of_others = kind != Review::SelfAccess;
    if of_others && user.is_empty() && groups.is_empty() {
        errors.push(FieldError::invalid("spec.user", user, "at least one of user or group must be specified"));
    }
    let place = namespace.filter(|namespace| resource.is_object() && resource["namespace"] != *namespace);
    if place.is_some() {
        let given = resource["namespace"].as_str().unwrap_or_default();
        let detail = "must match metadata.namespace";
        errors.push(FieldError::invalid("spec.resourceAttributes.namespace", given, detail));
    }
    for field in SELECTORS {
        check_selector(&resource[field], field, &mut errors);
    }
    let metadata = review["metadata"].as_object();
    // Who writes it is no part of the question, and neither is where.
    if metadata.into_iter().flatten().any(|(field, _)| !["managedFields", "namespace"].contains(&field.as_str())) {
        let detail = if kind == Review::LocalAccess { "must be empty except for namespace" } else { "must be empty" };
        let shown = printed_metadata(&review["metadata"]);
        errors.push(FieldError::invalid("metadata", Printed(&shown), detail));
    }
    if !errors.is_empty() {
        return Err(Status::invalid(AUTHORIZATION, "", "", errors));
    }
    // As the question says it: whoever is asked about may be somebody whom nobody knows.
    let extra = spec["extra"].as_object().into_iter().flatten().map(|(key, values)| (key.clone(), texts(values)));
    let uid = spec["uid"].as_str().unwrap_or_default().to_owned();
    let other = Identity { user: user.to_owned(), groups, uid, extra: extra.collect() };
    let subject = if of_others { &other } else { caller };
    let text = |value: &'_ Value| value.as_str().unwrap_or_default().to_owned();
    let (verb, group, plural, subresource, namespace, name, path_text) = (
        text(if path.is_object() { &path["verb"] } else { &resource["verb"] }),
        text(&resource["group"]),
        text(&resource["resource"]),
        text(&resource["subresource"]),
        text(&resource["namespace"]),
        text(&resource["name"]),
        text(&path["path"]),
    );
    let asked = Attributes {
        verb: &verb,
        group: &group,
        resource: &plural,
        subresource: &subresource,
        namespace: &namespace,
        name: &name,
        path: path.is_object().then_some(path_text.as_str()),
    };
    let selector = field_selector(&resource["fieldSelector"]);
    // What a node agent may do beside that depends on its pods.
    let allowed = authz::allows(cluster, subject, &asked)
        && match subject.node() {
            Some(node) => asked.path.is_some() || authz::node::promises(cluster, node, &asked, &selector).await,
            None => true,
        };
    let mut answer = json!({"allowed": allowed});
    if let Some(why) = authz::rbac::reason(cluster, subject, &asked).filter(|_| allowed) {
        answer["reason"] = format!("RBAC: allowed by {why}").into();
    }
    let unread: Vec<String> =
        SELECTORS.into_iter().filter_map(|field| unread(&resource[field], field == LABELS, field)).collect();
    if !unread.is_empty() {
        answer["evaluationError"] = unread.join("; ").into();
    }
    Ok(answer)
}

const LABELS: &str = "labelSelector";
const SELECTORS: [&str; 2] = ["fieldSelector", LABELS];

/// What of a selector is not understood: it is not looked at.
fn unread(given: &Value, is_of_labels: bool, field: &str) -> Option<String> {
    if !given.is_object() {
        return None;
    }
    let is_read = |one: &Value| {
        let count = one["values"].as_array().map_or(0, Vec::len);
        match one["operator"].as_str().unwrap_or_default() {
            "In" | "NotIn" => is_of_labels || count == 1,
            "Exists" | "DoesNotExist" => is_of_labels,
            _ => false,
        }
    };
    let (read, all) = match given["requirements"].as_array().filter(|all| !all.is_empty()) {
        Some(all) => (all.iter().filter(|one| is_read(one)).count(), all.len()),
        None => {
            let raw = given["rawSelector"].as_str().unwrap_or_default();
            let is_read =
                if is_of_labels { LabelSelector::parse(raw).is_ok() } else { FieldSelector::parse(raw).is_ok() };
            (usize::from(is_read), 1)
        }
    };
    let how = match read {
        read if read == all => return None,
        0 => "ignored",
        _ => "partially ignored",
    };
    Some(format!("spec.resourceAttributes.{field} {how} due to parse error"))
}

/// A selector of what is asked about has its requirements or its text.
fn check_selector(given: &Value, field: &str, errors: &mut Vec<FieldError>) {
    if !given.is_object() {
        return;
    }
    let path = format!("spec.resourceAttributes.{field}");
    let raw = given["rawSelector"].as_str().unwrap_or_default();
    let requirements = given["requirements"].as_array().map(Vec::as_slice).unwrap_or_default();
    let path = Path::new(&path);
    match (raw.is_empty(), requirements.is_empty()) {
        (true, true) => {
            let detail = format!("when {path} is specified, requirements or rawSelector is required");
            errors.push(FieldError::required(path.child("requirements"), &detail));
        }
        (false, false) => {
            let detail = format!("may not specify both at {path}");
            errors.push(FieldError::invalid(path.child("rawSelector"), raw, &detail));
        }
        _ => {}
    }
    for (index, requirement) in requirements.iter().enumerate() {
        let list = path.child("requirements");
        let path = list.index(index);
        let values = texts(&requirement["values"]);
        match requirement["operator"].as_str() {
            Some("In" | "NotIn") if values.is_empty() => {
                let detail = "must be specified when `operator` is 'In' or 'NotIn'";
                errors.push(FieldError::required(path.child("values"), detail));
            }
            Some("Exists" | "DoesNotExist") if !values.is_empty() => {
                let detail = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                errors.push(FieldError::forbidden(path.child("values"), detail));
            }
            _ => {}
        }
        let key = requirement["key"].as_str().unwrap_or_default();
        if field != LABELS {
            if key.is_empty() {
                errors.push(FieldError::required(path.child("key"), "must be specified"));
            }
            continue;
        }
        errors.extend(names::qualified_name(key).iter().map(|why| FieldError::invalid(path.child("key"), key, why)));
        for (index, value) in values.iter().enumerate() {
            let list = path.child("values");
            let refused = names::label_value(value);
            errors.extend(refused.iter().map(|why| FieldError::invalid(list.index(index), value, why)));
        }
    }
}

/// The field selector of what is asked about; one that is not understood selects everything, and more is asked for then.
fn field_selector(given: &Value) -> FieldSelector {
    let exact = |one: &Value| match (one["operator"].as_str(), one["values"].as_array()?.as_slice()) {
        (Some("In"), [value]) => Some(format!("{}={}", one["key"].as_str()?, value.as_str()?)),
        _ => None,
    };
    let text = match given["requirements"].as_array() {
        Some(requirements) => requirements.iter().filter_map(exact).collect::<Vec<_>>().join(","),
        None => given["rawSelector"].as_str().unwrap_or_default().to_owned(),
    };
    FieldSelector::parse(&text).unwrap_or_default()
}

/// What the caller may do in a namespace, as rules.
fn rules(cluster: &Cluster, identity: &Identity, namespace: &str) -> Value {
    let told = authz::rbac::rules(cluster, identity, namespace);
    let mut status = json!({"resourceRules": told.resources, "nonResourceRules": told.paths, "incomplete": false});
    let of_node = identity.node().map(|_| "what a node may do beside this depends on its pods");
    let too_many = told.incomplete.then_some("there are more rules than are told");
    let why: Vec<&str> = of_node.into_iter().chain(too_many).collect();
    if !why.is_empty() {
        status["incomplete"] = true.into();
        status["evaluationError"] = why.join("; ").into();
    }
    status
}
