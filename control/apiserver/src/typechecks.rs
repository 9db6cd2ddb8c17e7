//! Types of what policies say (kubernetes-api §22.4): the server that leads checks the expressions of a ValidatingAdmissionPolicy
//! against the schemas of the kinds that it names, and writes what is wrong into its status. That changes nothing of what the
//! policy does.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};

use coracle_api::cel::admission::{Compiler, Known};
use coracle_api::codec::json;
use coracle_api::kinds::Row;
use coracle_api::meta;
use coracle_api::status::Status;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::catalog::Resource;
use crate::cluster::Cluster;
use crate::duties;
use crate::server::Shared;
use crate::verbs::own::Own;

/// Whose work it is.
const WHO: &str = "system:typechecks";
const GROUP: &str = "admissionregistration.k8s.io";
const POLICIES: &str = "validatingadmissionpolicies";
/// Who is written down for that.
const MANAGER: &str = "validatingadmissionpolicy-status";
/// Most kinds that the expressions of a policy are checked against, by one rule of it (Kubernetes').
const KINDS_MAX: usize = 10;
/// The same by all of its rules, in the order of their names.
const KINDS_ALL_MAX: usize = 100;
/// Most bytes of warnings that are written into a status.
const WARNINGS_BYTES_MAX: usize = 64 << 10;

/// Goes on until the server stops: while this server leads.
pub(crate) async fn keep(server: Weak<Shared>, stopping: CancellationToken) {
    duties::keep(server, stopping, WHO, look).await;
}

/// Checks each policy whose status is of an older generation.
async fn look(server: Arc<Shared>) -> Result<Vec<String>, Status> {
    let cluster = &server.cluster;
    let Some(resource) = cluster.catalog.named(GROUP, POLICIES) else { return Ok(Vec::new()) };
    let collection = resource.row.collection();
    let mut failed = None;
    for record in cluster.store.keyspace.snapshot(collection).records.values() {
        let Ok(policy) = json::parse(&record.bytes) else { continue };
        let generation = meta::generation(&policy);
        if policy["status"]["observedGeneration"].as_i64().unwrap_or_default() >= generation {
            continue;
        }
        let policy = Arc::new(policy);
        // One that cannot be checked or written holds up no other.
        let written = match check(cluster, &policy).await {
            Ok(warnings) => write(cluster, resource, &policy, generation, &warnings).await,
            Err(status) => Err(status),
        };
        if let Err(status) = written {
            failed = failed.or(Some(status));
        }
    }
    failed.map_or_else(|| Ok(vec![collection.to_owned()]), Err)
}

async fn write(
    cluster: &Cluster,
    resource: &Arc<Resource>,
    policy: &Value,
    generation: i64,
    warnings: &[Value],
) -> Result<(), Status> {
    let own = Own::new(cluster, resource, None, meta::name(policy)).by(MANAGER).status();
    let step = |old: &Value| {
        let mut object = old.clone();
        // Another of the same name, or another that it says now, is another matter.
        if meta::uid(old) == meta::uid(policy) && meta::generation(old) == generation {
            let checked = if warnings.is_empty() { json!({}) } else { json!({ "expressionWarnings": warnings }) };
            object["status"]["observedGeneration"] = generation.into();
            object["status"]["typeChecking"] = checked;
        }
        object
    };
    own.change(step).await.map(drop)
}

/// What is wrong with the expressions of a policy, for each kind that it names.
async fn check(cluster: &Cluster, policy: &Arc<Value>) -> Result<Vec<Value>, Status> {
    let spec = &policy["spec"];
    let params = match &spec["paramKind"] {
        Value::Null => None,
        kind => {
            let api_version = kind["apiVersion"].as_str().unwrap_or_default();
            let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
            let name = kind["kind"].as_str().unwrap_or_default();
            Some((cluster.of_kind(group, version, name).await, name.to_owned()))
        }
    };
    let mut resources = Vec::new();
    for (group, version, name) in named(spec) {
        if let Ok(Some(found)) = cluster.resource(&group, &version, &name).await {
            resources.push(found);
        }
    }
    resources.sort_by(|a, b| {
        let key = |of: &Resource| (of.row.group().to_owned(), of.row.version().to_owned(), of.row.kind().to_owned());
        key(a).cmp(&key(b))
    });
    resources.truncate(KINDS_ALL_MAX);
    // By expression: what is told of it, kind after kind.
    let mut told: BTreeMap<(usize, &str), String> = BTreeMap::new();
    let mut left = WARNINGS_BYTES_MAX;
    for resource in resources {
        if left == 0 {
            break;
        }
        let (policy, params) = (policy.clone(), params.clone());
        // Compiling much takes a moment.
        let aside = tokio::task::spawn_blocking(move || faults(&resource, params.as_ref(), &policy["spec"]));
        for (place, faults) in aside.await.map_err(Status::internal_error)? {
            let faults = faults.get(..faults.floor_char_boundary(left)).unwrap_or_default();
            left -= faults.len();
            let told = told.entry(place).or_default();
            if !told.is_empty() && !faults.is_empty() {
                told.push('\n');
            }
            told.push_str(faults);
        }
    }
    told.retain(|_, warning| !warning.is_empty());
    let warning = |((index, field), warning)| json!({"fieldRef": format!("spec.validations[{index}].{field}"), "warning": warning});
    Ok(told.into_iter().map(warning).collect())
}

/// `apps/v1, Kind=Deployment`.
fn shown(resource: &Resource) -> String {
    let row = &resource.row;
    format!("{}/{}, Kind={}", row.group(), row.version(), row.kind())
}

fn known(resource: &Resource) -> Known<'_> {
    match &resource.row {
        Row::BuiltIn(_) => Known::BuiltIn(resource.schema.clone()),
        Row::Custom(kind) => Known::Custom(kind.schema()),
    }
}

/// What is wrong with the expressions of a policy about objects of a kind: by the number of the validation and its field.
fn faults(
    resource: &Resource,
    params: Option<&(Option<Arc<Resource>>, String)>,
    spec: &Value,
) -> Vec<((usize, &'static str), String)> {
    let object = known(resource);
    let bound = params.map(|(found, name)| (found.as_deref().map_or(Known::Any, known), name));
    let mut compiler =
        Compiler::typed((&object, resource.row.kind()), bound.as_ref().map(|(known, name)| (known, name.as_str())));
    compiler.declare();
    for variable in spec["variables"].as_array().into_iter().flatten() {
        let text = |field: &str| variable[field].as_str().unwrap_or_default();
        // What is wrong with it is told where it is used.
        let _ = compiler.variable(text("name"), text("expression"));
    }
    let (mut found, mut bytes) = (Vec::new(), 0);
    for (index, validation) in spec["validations"].as_array().into_iter().flatten().enumerate() {
        for field in ["expression", "messageExpression"] {
            let source = validation[field].as_str().filter(|source| !source.is_empty());
            if let Some(faults) =
                source.filter(|_| bytes < WARNINGS_BYTES_MAX).and_then(|source| compiler.faults(source))
            {
                bytes += faults.len();
                found.push(((index, field), format!("{}: {faults}\n", shown(resource))));
            }
        }
    }
    found
}

/// The resources that the rules of a policy name; what is said of all says nothing of types.
fn named(spec: &Value) -> BTreeSet<(String, String, String)> {
    let texts = |list: &Value| -> Vec<String> {
        let mut texts: Vec<String> =
            list.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
        texts.sort_unstable();
        texts
    };
    let mut found = BTreeSet::new();
    for rule in spec["matchConstraints"]["resourceRules"].as_array().into_iter().flatten() {
        let (groups, versions) = (texts(&rule["apiGroups"]), texts(&rule["apiVersions"]));
        if groups.iter().chain(&versions).any(|text| text.contains('*')) {
            continue;
        }
        let mut resources = texts(&rule["resources"]);
        resources.retain(|resource| !resource.contains(['*', '/']));
        let all = groups.iter().flat_map(|group| {
            let resources = &resources;
            versions.iter().flat_map(move |version| {
                resources.iter().map(move |resource| (group.clone(), version.clone(), resource.clone()))
            })
        });
        found.extend(all.take(KINDS_MAX));
    }
    found
}
