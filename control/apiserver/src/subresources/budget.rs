//! What a PodDisruptionBudget says to an eviction (`registry/core/pod/rest/eviction.go`): each that is granted is taken from what it
//! allows, in a write of its own, so that of two at the same time one is refused.

use std::sync::Arc;

use coracle_api::meta::selector::LabelSelector;
use coracle_api::meta::{self, condition, time};
use coracle_api::status::Status;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::catalog::Resource;
use crate::cluster::Cluster;
use crate::request::own::own_call;
use crate::store::{self, Seen};
use crate::verbs::update::{Changed, change};
use crate::verbs::write::Write;

/// Pods that a budget has let go and that are not gone yet; beyond it no more go.
const DISRUPTED_MAX: usize = 2000;
/// When a client may ask again while a budget is being counted.
const COUNTED_WITHIN: u16 = 10;
/// Why, to clients that look at causes.
const CAUSE: &str = "DisruptionBudget";

/// On what an eviction was granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Grant {
    /// The pod may go as it is now, or a budget has let it go.
    Free,
    /// Only because it is not ready.
    Unready,
}

/// Asks the budget that is about the pod.
pub(super) async fn ask(cluster: &Cluster, pod: &Value, dry_run: bool) -> Result<Grant, Status> {
    if is_nobodys_loss(pod) {
        return Ok(Grant::Free);
    }
    let Some(budgets) = cluster.catalog.named("policy", "poddisruptionbudgets") else { return Ok(Grant::Free) };
    let namespace = meta::namespace(pod);
    let about = about(cluster, budgets, namespace, pod)?;
    let budget = match &about[..] {
        [] => return Ok(Grant::Free),
        [budget] => budget,
        _ => {
            let message =
                "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.";
            return Err(Status::failure(500, "", message));
        }
    };
    // It disrupts nothing while it waits; it may have begun to serve by the time it is marked.
    if pod["status"]["phase"] == "Pending" {
        return Ok(Grant::Unready);
    }
    if !condition::is_true(pod, "Ready") && lets_unready_go(budget) {
        return Ok(Grant::Unready);
    }
    let (call, mut options) = own_call(Some(namespace), meta::name(budget));
    options.dry_run = dry_run;
    let write = Write { cluster, call: &call, resource: budgets, options: &options, subresource: "status" };
    let step =
        |old: &Value| Ok(Changed { object: taken(budgets, old, meta::name(pod))?, owned: false, names_version: false });
    change(&write, step).await.map(|_| Grant::Free)
}

/// Whether it disrupts nothing when the pod goes: it has ended, or goes anyway.
fn is_nobodys_loss(pod: &Value) -> bool {
    matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"))
        || pod["metadata"]["deletionTimestamp"].is_string()
}

fn about(cluster: &Cluster, budgets: &Arc<Resource>, namespace: &str, pod: &Value) -> Result<Vec<Value>, Status> {
    let records = cluster.store.keyspace.snapshot(budgets.row.collection()).records;
    let mut about = Vec::new();
    for (_, record) in store::range(&records, Some(namespace), None) {
        let budget = Seen::new(budgets, record).value()?;
        // Without a selector it is about no pod, with an empty one about all.
        let selector = match &budget["spec"]["selector"] {
            Value::Null => continue,
            selector => LabelSelector::from_object(selector).map_err(|error| Status::internal_error(error.0))?,
        };
        if selector.matches(&pod["metadata"]["labels"]) {
            about.push(budget);
        }
    }
    Ok(about)
}

/// Whether a pod that is not ready, and so is not among the healthy, may go without being taken from them.
fn lets_unready_go(budget: &Value) -> bool {
    let healthy = |name: &str| budget["status"][name].as_i64().unwrap_or_default();
    budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
        || (healthy("desiredHealthy") > 0 && healthy("currentHealthy") >= healthy("desiredHealthy"))
}

/// The budget with one less to go, and who goes.
fn taken(budgets: &Resource, old: &Value, pod: &str) -> Result<Value, Status> {
    const REFUSED: &str = "Cannot evict pod as it would violate the pod's disruption budget.";
    let (name, status) = (meta::name(old), &old["status"]);
    let number = |name: &str| status[name].as_i64().unwrap_or_default();
    if number("observedGeneration") < old["metadata"]["generation"].as_i64().unwrap_or_default() {
        let message = format!("The disruption budget {name} is still being processed by the server.");
        return Err(Status::too_many_requests(REFUSED, COUNTED_WITHIN).with_cause(CAUSE, message, ""));
    }
    let allowed = number("disruptionsAllowed");
    if allowed < 0 {
        return Err(budgets.forbidden(name, "pdb disruptions allowed is negative"));
    }
    if status["disruptedPods"].as_object().is_some_and(|pods| pods.len() > DISRUPTED_MAX) {
        let message = "DisruptedPods map too big - too many evictions not confirmed by PDB controller";
        return Err(budgets.forbidden(name, message));
    }
    if allowed == 0 {
        let mut conditions = status["conditions"].as_array().into_iter().flatten();
        let failed = conditions
            .find(|it| it["type"] == "DisruptionAllowed" && it["status"] == "False" && it["reason"] == "SyncFailed");
        let message = match failed {
            Some(failed) => {
                let why = failed["message"].as_str().unwrap_or_default();
                format!("The disruption budget {name} is failing to sync: {why}")
            }
            None => {
                let (desired, current) = (number("desiredHealthy"), number("currentHealthy"));
                format!("The disruption budget {name} needs {desired} healthy pods and has {current} currently")
            }
        };
        return Err(Status::too_many_requests(REFUSED, 0).with_cause(CAUSE, message, ""));
    }
    let mut budget = old.clone();
    let now = time::format(Timestamp::now());
    budget["status"]["disruptionsAllowed"] = json!(allowed - 1);
    if !budget["status"]["disruptedPods"].is_object() {
        budget["status"]["disruptedPods"] = json!({});
    }
    budget["status"]["disruptedPods"][pod] = json!(now);
    if allowed == 1 {
        let conditions = budget.pointer_mut("/status/conditions").and_then(Value::as_array_mut);
        for condition in conditions.into_iter().flatten() {
            if condition["type"] == "DisruptionAllowed" && condition["status"] != "False" {
                condition["status"] = json!("False");
                condition["reason"] = json!("InsufficientPods");
                condition["lastTransitionTime"] = json!(now);
            }
        }
    }
    Ok(budget)
}
