//! `serviceaccounts/token`: a token for an account, for some time, bound to a pod or secret if asked.

use std::sync::Arc;

use axum::response::Response;
use coracle_api::kinds::FieldError;
use coracle_api::meta::{self, time};
use coracle_api::schema;
use coracle_api::status::Status;
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use crate::answer::respond;
use crate::authn::tokens::{Bound, Claims, Object, Tokens};
use crate::catalog::Resource;
use crate::cluster::Cluster;
use crate::request::body::{self, Expected};
use crate::request::call::Request;
use crate::request::negotiate::Offer;
use crate::request::options::write_options;
use crate::store::Seen;
use crate::verbs::ownership;

const LEAST_SECONDS: i64 = 600;
const MOST_SECONDS: i64 = 1 << 32;
const DEFAULT_SECONDS: i64 = 3600;
/// What pods ask for; such tokens live longer than they say, because old clients do not read them anew in time.
const POD_SECONDS: i64 = 3607;
const EXTENDED_SECONDS: i64 = 365 * 24 * 3600;
/// Audiences of one token: together with the rest it stays below [`TOKEN_BYTES_MAX`](crate::authn::tokens::TOKEN_BYTES_MAX).
const AUDIENCES_MAX: usize = 64;
const AUDIENCES_BYTES_MAX: usize = 8 << 10;

pub(super) async fn create(
    cluster: &Cluster,
    tokens: &Tokens,
    request: &Request,
    resource: &Arc<Resource>,
) -> Result<Response, Status> {
    let call = &request.call;
    let form = call.form(Offer::Plain)?;
    let schema = schema::of_kind("authentication.k8s.io", "v1", "TokenRequest")
        .ok_or_else(|| Status::internal_error("the type TokenRequest is not known"))?;
    let options = write_options(call, "CreateOptions", None)?;
    let expected = Expected { api_version: "authentication.k8s.io/v1", kind: "TokenRequest", schema: &schema };
    let mut asked = body::object(call, &request.body, &expected, options.validation)?;
    let namespace = call.namespace().unwrap_or_default();
    let given = meta::name(&asked);
    if !given.is_empty() && given != call.name() {
        let error = FieldError::invalid("metadata.name", given, "must match the service account name if specified");
        return Err(Status::invalid("authentication.k8s.io", "TokenRequest", call.name(), vec![error]));
    }
    let record = cluster
        .store
        .read(resource, &resource.record_name(Some(namespace), call.name()))
        .await?
        .ok_or_else(|| resource.not_found(call.name()))?;
    let account = Seen::new(resource, &record).stored()?;
    super::admit(cluster, call, resource, &mut asked, options.dry_run).await?;
    let seconds = asked["spec"]["expirationSeconds"].as_i64().unwrap_or(DEFAULT_SECONDS);
    let wrong = |message: &str| {
        let error = FieldError::invalid("spec.expirationSeconds", seconds, message);
        Err(Status::invalid("authentication.k8s.io", "TokenRequest", "", vec![error]))
    };
    if seconds < LEAST_SECONDS {
        return wrong("may not specify a duration less than 10 minutes");
    }
    if seconds > MOST_SECONDS {
        return wrong("may not specify a duration larger than 2^32 seconds");
    }
    let audiences: Vec<String> = asked["spec"]["audiences"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|audience| audience.as_str().map(str::to_owned))
        .collect();
    check_audiences(&audiences)?;
    let asked_for = audiences.first().cloned().unwrap_or_default();
    let several = audiences.len() > 1;
    let audiences = if audiences.is_empty() { vec![tokens.issuer.clone()] } else { audiences };
    asked["spec"]["expirationSeconds"] = seconds.into();
    ownership::track_answer(&schema, &expected, "token", &options.manager, &mut asked);
    let now = Timestamp::now();
    let at = now.as_second();
    let mut bound = Bound {
        namespace: namespace.to_owned(),
        serviceaccount: Object { name: call.name().to_owned(), uid: meta::uid(&account).to_owned() },
        ..Bound::default()
    };
    let reference = &asked["spec"]["boundObjectRef"];
    let pod = bind(cluster, namespace, reference, call.name(), &mut bound)?;
    let extended = pod.is_some() && seconds == POD_SECONDS && audiences == [tokens.issuer.clone()];
    bound.warnafter = extended.then_some(at + seconds);
    if let Some(node) = call.identity.node() {
        let why = if bound.pod.is_none() {
            "node requested token not bound to a pod".to_owned()
        } else if reference["uid"].as_str().unwrap_or_default().is_empty() {
            "node requested token with a pod binding without a uid".to_owned()
        } else if bound.node.as_ref().is_none_or(|bound| bound.name != node) {
            "node requested token bound to a pod scheduled on a different node".to_owned()
        } else if several {
            "node may only request 0 or 1 audiences".to_owned()
        } else if !pod.is_some_and(|pod| mounts_audience(&pod, &asked_for)) {
            let audience = meta::text::quote(&asked_for);
            format!("{} is not authorized to request tokens for audience {audience}", call.identity.user)
        } else {
            String::new()
        };
        if !why.is_empty() {
            return Err(resource.forbidden(call.name(), why));
        }
    }
    let claims = Claims {
        iss: tokens.issuer.clone(),
        sub: format!("system:serviceaccount:{namespace}:{}", call.name()),
        aud: audiences.clone(),
        exp: at + if extended { EXTENDED_SECONDS } else { seconds },
        iat: at,
        nbf: at,
        jti: crate::identity::new_uuid(),
        kubernetes: bound,
    };
    let token = tokens.sign(&claims).map_err(Status::internal_error)?;
    asked["metadata"]["uid"] = meta::uid(&account).into();
    asked["metadata"]["name"] = call.name().into();
    asked["metadata"]["namespace"] = namespace.into();
    asked["metadata"]["creationTimestamp"] = time::format(now).into();
    asked["spec"]["audiences"] = audiences.into();
    asked["status"]["token"] = token.into();
    let expires = now.checked_add(SignedDuration::from_secs(seconds)).unwrap_or(now);
    asked["status"]["expirationTimestamp"] = time::format(expires).into();
    Ok(respond::value(form, 201, &asked))
}

/// As Go prints it: `/v1` in the core group.
fn group_version(api_version: &str) -> String {
    if api_version.contains('/') { api_version.to_owned() } else { format!("/{api_version}") }
}

/// A token has a bounded length, or nobody would accept it.
fn check_audiences(audiences: &[String]) -> Result<(), Status> {
    if audiences.len() <= AUDIENCES_MAX && audiences.iter().map(String::len).sum::<usize>() <= AUDIENCES_BYTES_MAX {
        return Ok(());
    }
    let why = format!("may have at most {AUDIENCES_MAX} items, of {AUDIENCES_BYTES_MAX} bytes together");
    let error = FieldError::invalid("spec.audiences", i64::try_from(audiences.len()).unwrap_or(i64::MAX), &why);
    Err(Status::invalid("authentication.k8s.io", "TokenRequest", "", vec![error]))
}

/// Whether a pod has a token for this audience among its volumes.
fn mounts_audience(pod: &Value, audience: &str) -> bool {
    let volumes = pod["spec"]["volumes"].as_array().into_iter().flatten();
    let sources = volumes.flat_map(|volume| volume["projected"]["sources"].as_array().into_iter().flatten());
    let mut tokens = sources.filter_map(|source| source.get("serviceAccountToken")).filter(|token| token.is_object());
    tokens.any(|token| token["audience"].as_str().unwrap_or_default() == audience)
}

/// The object to which the token is bound must exist, and a pod must run as this account. The pod comes back.
fn bind(
    cluster: &Cluster,
    namespace: &str,
    reference: &Value,
    account: &str,
    bound: &mut Bound,
) -> Result<Option<Value>, Status> {
    if !reference.is_object() {
        return Ok(None);
    }
    let text = |field: &str| reference[field].as_str().unwrap_or_default();
    let (kind, name) = (text("kind"), text("name"));
    let plural = match kind {
        "Pod" => "pods",
        "Secret" => "secrets",
        "Node" => "nodes",
        other => {
            return Err(Status::bad_request(format!(
                "cannot bind token to object of type {}, Kind={other}",
                group_version(text("apiVersion"))
            )));
        }
    };
    let resource = cluster.catalog.named("", plural).ok_or_else(Status::path_not_found)?;
    let record = cluster
        .store
        .get(resource, &resource.record_name(Some(namespace), name))
        .ok_or_else(|| resource.not_found(name))?;
    let object = Seen::new(resource, &record).stored()?;
    let uid = meta::uid(&object).to_owned();
    if !text("uid").is_empty() && text("uid") != uid {
        let message = format!(
            "the UID in the bound object reference ({}) does not match the UID in record. The object might have been \
             deleted and then recreated",
            text("uid")
        );
        return Err(Status::conflict("", plural, name, message));
    }
    let held = Object { name: name.to_owned(), uid };
    match kind {
        "Pod" => {
            if object["spec"]["serviceAccountName"] != account {
                let message = "cannot bind token for serviceaccount to pod running with different serviceaccount name.";
                return Err(Status::bad_request(message));
            }
            if let Some(node) = object["spec"]["nodeName"].as_str().filter(|node| !node.is_empty()) {
                let nodes = cluster.catalog.named("", "nodes").ok_or_else(Status::path_not_found)?;
                let uid = match cluster.store.get(nodes, node) {
                    Some(record) => Seen::new(nodes, &record).known_facts()?.uid.clone(),
                    None => String::new(),
                };
                bound.node = Some(Object { name: node.to_owned(), uid });
            }
            bound.pod = Some(held);
            return Ok(Some(object));
        }
        "Secret" => bound.secret = Some(held),
        _ => bound.node = Some(held),
    }
    Ok(None)
}
