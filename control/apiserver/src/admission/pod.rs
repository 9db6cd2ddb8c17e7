//! Pods get an account and its token, a priority, and tolerations of a node that is away for a moment.

use std::collections::BTreeMap;
use std::time::Duration;

use coracle_api::meta::{self, Quantity, generate, names};
use coracle_api::status::Status;
use serde_json::{Value, json};

use super::{Attributes, topology};
use crate::store::Seen;

const TOKEN_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Lifetime of a pod's token: an hour, and some seconds by which the reference's tokens are recognized.
const TOKEN_SECONDS: i64 = 3607;
/// How long a pod waits for the account `default` of a namespace that was just made: its controller makes it.
const ACCOUNT_WAIT: Duration = Duration::from_secs(1);
/// How long a pod that says nothing of it stays on a node that says that it is not ready (the reference's
/// `--default-not-ready-toleration-seconds`).
const NOT_READY_SECONDS: i64 = 300;
/// The same where nothing is heard of the node (`--default-unreachable-toleration-seconds`, which is 300 there): with the
/// silence before, its replacement begins after 16 seconds.
const UNREACHABLE_SECONDS: i64 = 12;
/// What a class without a policy of its own says.
const PREEMPTS: &str = "PreemptLowerPriority";

pub(super) async fn create(at: &Attributes<'_>, pod: &mut Value) -> Result<(), Status> {
    if !pod["spec"].is_object() {
        return Ok(());
    }
    account(at, pod).await?;
    priority(at, pod).await?;
    tolerations(pod);
    runtime_class(at, pod).await?;
    let node = pod["spec"]["nodeName"].as_str().unwrap_or_default().to_owned();
    if !node.is_empty() {
        topology::label(at.cluster, &node, pod);
    }
    Ok(())
}

/// A class that a pod names must exist. It says what a pod needs beside its containers, and which nodes are for it; how it
/// is run it does not say here.
async fn runtime_class(at: &Attributes<'_>, pod: &mut Value) -> Result<(), Status> {
    let refuse = |pod: &Value, why: &str| Err(at.resource.forbidden(meta::name(pod), format!("pod rejected: {why}")));
    let is_some = |overhead: &Value| overhead.as_object().is_some_and(|overhead| !overhead.is_empty());
    let class = match pod["spec"]["runtimeClassName"].as_str() {
        None => Value::Null,
        Some(name) => match stored(at, ("node.k8s.io", "runtimeclasses"), name).await? {
            Some(class) => class,
            None => return refuse(pod, &format!("RuntimeClass {} not found", meta::text::quote(name))),
        },
    };
    let (fixed, given) = (&class["overhead"]["podFixed"], &pod["spec"]["overhead"]);
    match (is_some(fixed), is_some(given)) {
        (false, false) => {}
        (false, true) => return refuse(pod, "Pod Overhead set without corresponding RuntimeClass defined Overhead"),
        (true, false) => pod["spec"]["overhead"] = fixed.clone(),
        (true, true) if amounts(fixed) == amounts(given) => {}
        (true, true) => return refuse(pod, "Pod's Overhead doesn't match RuntimeClass's defined Overhead"),
    }
    scheduling(&class["scheduling"], pod).map_err(|why| at.resource.forbidden(meta::name(pod), why))
}

/// The nodes of a class are those of its pods, too, and what these tolerate.
fn scheduling(class: &Value, pod: &mut Value) -> Result<(), String> {
    for (key, wanted) in class["nodeSelector"].as_object().into_iter().flatten() {
        let given = &pod["spec"]["nodeSelector"][key];
        if given.is_string() && given != wanted {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            return Err(format!(
                "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {}; pod.spec.nodeSelector[{key}] = {}",
                text(wanted),
                text(given)
            ));
        }
    }
    for (key, wanted) in class["nodeSelector"].as_object().into_iter().flatten() {
        pod["spec"]["nodeSelector"][key] = wanted.clone();
    }
    if let Some(more) = class["tolerations"].as_array() {
        let own = pod["spec"]["tolerations"].as_array().cloned().unwrap_or_default();
        pod["spec"]["tolerations"] = merged(&[own, more.clone()].concat()).into();
    }
    Ok(())
}

/// Tolerations without those that another includes; of two that are the same the first (`MergeTolerations`).
fn merged(all: &[Value]) -> Vec<Value> {
    let mut merged: Vec<Value> = Vec::with_capacity(all.len());
    for (index, toleration) in all.iter().enumerate() {
        let mut later = all[index + 1..].iter().filter(|other| *other != toleration);
        if !merged.iter().any(|kept| includes(kept, toleration)) && !later.any(|other| includes(other, toleration)) {
            merged.push(toleration.clone());
        }
    }
    merged
}

/// Whether whoever has one toleration tolerates all that another does.
fn includes(one: &Value, other: &Value) -> bool {
    let [(key, operator, value, effect), (other_key, other_operator, other_value, other_effect)] =
        [one, other].map(|toleration| {
            let text = |field: &str| toleration[field].as_str().unwrap_or_default();
            (text("key"), text("operator"), text("value"), text("effect"))
        });
    if one == other {
        return true;
    }
    let has_key = key == other_key || key.is_empty() && operator == "Exists";
    let has_effect = effect.is_empty() || effect == other_effect;
    let ends_before = effect == "NoExecute"
        && one["tolerationSeconds"]
            .as_i64()
            .is_some_and(|seconds| other["tolerationSeconds"].as_i64().is_none_or(|other| other > seconds));
    let has_value = match operator {
        "Exists" => true,
        "Equal" | "" => other_operator == "Equal" && value == other_value,
        _ => false,
    };
    has_key && has_effect && !ends_before && has_value
}

/// Quantities by resource.
fn amounts(resources: &Value) -> BTreeMap<&str, Option<Quantity>> {
    let resources = resources.as_object().into_iter().flatten();
    resources.map(|(name, amount)| (name.as_str(), Quantity::from_json(amount).ok())).collect()
}

pub(super) fn update(pod: &mut Value, old: &Value) {
    if !pod["spec"].is_object() {
        return;
    }
    tolerations(pod);
    // What admission gave it needs not be sent back.
    for field in ["priority", "preemptionPolicy"] {
        if pod["spec"][field].is_null() && !old["spec"][field].is_null() {
            pod["spec"][field] = old["spec"][field].clone();
        }
    }
}

/// The pod's account must exist; its token goes where client libraries look for it.
async fn account(at: &Attributes<'_>, pod: &mut Value) -> Result<(), Status> {
    let spec = &mut pod["spec"];
    let alias = spec["serviceAccount"].as_str().unwrap_or_default().to_owned();
    let name = match spec["serviceAccountName"].as_str().unwrap_or_default() {
        "" if alias.is_empty() => "default".to_owned(),
        "" => alias,
        name => name.to_owned(),
    };
    spec["serviceAccountName"] = name.clone().into();
    spec["serviceAccount"] = name.clone().into();
    let Some(accounts) = at.cluster.catalog.named("", "serviceaccounts").cloned() else { return Ok(()) };
    let namespace = at.namespace.unwrap_or_default().to_owned();
    let wrong = names::path_segment(&name);
    if !wrong.is_empty() {
        let words = format!(
            "error looking up service account {namespace}/{name}: invalid resource name {name:?}: [{}]",
            wrong.join(" ")
        );
        return Err(at.resource.forbidden(meta::name(pod), words));
    }
    let record_name = accounts.record_name(Some(&namespace), &name);
    let store = &at.cluster.store;
    let deadline = tokio::time::Instant::now() + ACCOUNT_WAIT;
    let record = loop {
        let revision = store.keyspace.revision();
        if let Some(record) = store.find(&accounts, &record_name).await? {
            break record;
        }
        let next = coracle_keyspace::Revision::new(revision.get() + 1);
        let waits = name == "default" && tokio::time::timeout_at(deadline, store.keyspace.wait_for(next)).await.is_ok();
        if !waits {
            return Err(no_account(at, pod, &name));
        }
    };
    let account = Seen::new(&accounts, &record).stored()?;
    let spec = &mut pod["spec"];
    if spec.get("imagePullSecrets").and_then(Value::as_array).is_none_or(Vec::is_empty)
        && let Some(secrets) = account["imagePullSecrets"].as_array().filter(|secrets| !secrets.is_empty())
    {
        spec["imagePullSecrets"] = secrets.clone().into();
    }
    let mounts = spec["automountServiceAccountToken"]
        .as_bool()
        .or(account["automountServiceAccountToken"].as_bool())
        .unwrap_or(true);
    if mounts {
        mount_token(spec);
    }
    Ok(())
}

/// 403 of a pod whose account is not there.
pub(super) fn no_account(at: &Attributes<'_>, pod: &Value, name: &str) -> Status {
    let namespace = at.namespace.unwrap_or_default();
    let message = format!("error looking up service account {namespace}/{name}: serviceaccount \"{name}\" not found");
    at.resource.forbidden(meta::name(pod), message)
}

fn mount_token(spec: &mut Value) {
    let volumes = spec["volumes"].as_array().map(Vec::as_slice).unwrap_or_default();
    let known = volumes
        .iter()
        .filter_map(|volume| volume["name"].as_str())
        .find(|name| name.starts_with("kube-api-access-"))
        .map(str::to_owned);
    let name = known.clone().unwrap_or_else(|| format!("kube-api-access-{}", generate::suffix(rand::random(), 5)));
    let mut used = false;
    for list in ["initContainers", "containers"] {
        for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            let mounts = container["volumeMounts"].as_array().map(Vec::as_slice).unwrap_or_default();
            if !container.is_object() || mounts.iter().any(|mount| mount["mountPath"] == TOKEN_PATH) {
                continue;
            }
            let mut mounts = mounts.to_vec();
            mounts.push(json!({"name": name, "readOnly": true, "mountPath": TOKEN_PATH}));
            container["volumeMounts"] = mounts.into();
            used = true;
        }
    }
    if used && known.is_none() {
        let mut volumes = volumes_of(spec);
        volumes.push(json!({
            "name": name,
            "projected": {
                "defaultMode": 420,
                "sources": [
                    {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
                    {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                    {"downwardAPI": {"items": [
                        {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}},
                    ]}},
                ],
            },
        }));
        spec["volumes"] = volumes.into();
    }
}

fn volumes_of(spec: &Value) -> Vec<Value> {
    spec["volumes"].as_array().cloned().unwrap_or_default()
}

/// The number that the pod's class stands for, or the class for pods that name none.
async fn priority(at: &Attributes<'_>, pod: &mut Value) -> Result<(), Status> {
    let class = match pod["spec"]["priorityClassName"].as_str().unwrap_or_default() {
        "" => default_class(at)?,
        name => Some(stored(at, ("scheduling.k8s.io", "priorityclasses"), name).await?.ok_or_else(|| {
            let message = format!("no PriorityClass with name {name} was found");
            at.resource.forbidden(meta::name(pod), message)
        })?),
    };
    let number = class.as_ref().and_then(|class| class["value"].as_i64()).unwrap_or(0);
    let policy = class.as_ref().and_then(|class| class["preemptionPolicy"].as_str()).unwrap_or(PREEMPTS).to_owned();
    if let Some(class) = &class {
        pod["spec"]["priorityClassName"] = meta::name(class).into();
    }
    if let Some(given) = pod["spec"]["priority"].as_i64().filter(|given| *given != number) {
        let message = format!(
            "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller \
             computed {number} from the given PriorityClass name"
        );
        return Err(at.resource.forbidden(meta::name(pod), message));
    }
    if let Some(given) = pod["spec"]["preemptionPolicy"].as_str().filter(|given| *given != policy) {
        let message = format!(
            "the string value of PreemptionPolicy ({given}) must not be provided in pod spec; priority admission \
             controller computed {policy} from the given PriorityClass name"
        );
        return Err(at.resource.forbidden(meta::name(pod), message));
    }
    pod["spec"]["priority"] = number.into();
    pod["spec"]["preemptionPolicy"] = policy.into();
    Ok(())
}

/// A class that a pod names, of a group and a resource.
async fn stored(at: &Attributes<'_>, (group, resource): (&str, &str), name: &str) -> Result<Option<Value>, Status> {
    let Some(classes) = at.cluster.catalog.named(group, resource) else { return Ok(None) };
    at.cluster.store.find(classes, name).await?.map(|record| Seen::new(classes, &record).stored()).transpose()
}

/// Of several classes that are the default the lowest counts.
fn default_class(at: &Attributes<'_>) -> Result<Option<Value>, Status> {
    let Some(classes) = at.cluster.catalog.named("scheduling.k8s.io", "priorityclasses") else { return Ok(None) };
    let snapshot = at.cluster.store.keyspace.snapshot(classes.row.collection());
    let mut marked = Vec::new();
    for (_, record) in crate::store::range(&snapshot.records, None, None) {
        let seen = Seen::new(classes, record);
        // Hardly ever is one the default: the others are not read again for each pod. What cannot be read may be it.
        if seen.known_facts()?.is_default {
            marked.push(seen.stored()?);
        }
    }
    Ok(marked.into_iter().min_by_key(|class| class["value"].as_i64()))
}

/// A node that is not ready or not reachable for a while does not lose the pod at once.
fn tolerations(pod: &mut Value) {
    let spec = &mut pod["spec"];
    let mut tolerations = spec["tolerations"].as_array().cloned().unwrap_or_default();
    let before = tolerations.len();
    for (taint, seconds) in
        [("node.kubernetes.io/not-ready", NOT_READY_SECONDS), ("node.kubernetes.io/unreachable", UNREACHABLE_SECONDS)]
    {
        let tolerates = |toleration: &Value| {
            let text = |field: &str| toleration[field].as_str().unwrap_or_default().to_owned();
            (text("key") == taint || text("key").is_empty()) && matches!(text("effect").as_str(), "" | "NoExecute")
        };
        if !tolerations[..before].iter().any(tolerates) {
            tolerations.push(json!({
                "key": taint, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds,
            }));
        }
    }
    if tolerations.len() > before {
        spec["tolerations"] = tolerations.into();
    }
}
