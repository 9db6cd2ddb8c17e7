//! What a pod takes: its number, and what its containers ask for.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::{Amounts, number};
use crate::kinds::checks;
use crate::kinds::pod::amounts::{add, raise_all, read, sum, sum_by};
use crate::kinds::value::Read;

const REQUESTS: &str = "requests.";
const LIMITS: &str = "limits.";
/// What stands under its own name for its request, too.
const COMPUTED: [&str; 3] = ["cpu", "memory", "ephemeral-storage"];
/// Resources of device classes that stand for none of their own.
const DEVICE_CLASS: &str = "deviceclass.resource.kubernetes.io/";

/// Whether pods count for a name.
pub(super) fn tracks(name: &str) -> bool {
    let computed = |name: &str| COMPUTED.contains(&name);
    let request = name.strip_prefix(REQUESTS);
    name == "pods"
        || computed(name)
        || checks::is_huge_pages(name)
        || name.strip_prefix(LIMITS).is_some_and(computed)
        || request.is_some_and(|of| {
            computed(of)
                || checks::is_huge_pages(of)
                || of.starts_with(DEVICE_CLASS)
                || !checks::is_native_resource(name)
        })
}

/// A pod that has ended, or whose time to end is over, takes nothing but its place in the store.
fn is_alive(pod: &Value, now: Timestamp) -> bool {
    if matches!(pod["status"]["phase"].text(), "Failed" | "Succeeded") {
        return false;
    }
    let metadata = &pod["metadata"];
    let end = metadata["deletionTimestamp"].time().zip(metadata["deletionGracePeriodSeconds"].maybe_int());
    let end = end.and_then(|(at, grace)| at.checked_add(SignedDuration::from_secs(grace)).ok());
    end.is_none_or(|end| now <= end)
}

pub(super) fn usage(pod: &Value, now: Timestamp, usage: &mut Amounts) {
    if is_alive(pod, now) {
        usage.extend(computed(&total(pod, "requests"), &total(pod, "limits")));
    }
}

/// Requests and limits under the names that count them.
fn computed(requests: &Amounts, limits: &Amounts) -> Amounts {
    let mut all = Amounts::from([("pods".to_owned(), number(1))]);
    for (name, amount) in requests {
        let is_computed = COMPUTED.contains(&name.as_str());
        let is_huge = checks::is_huge_pages(name);
        if is_computed || is_huge {
            all.insert(name.clone(), amount.clone());
        }
        if is_computed || is_huge || checks::is_extended_resource(name) || name.starts_with(DEVICE_CLASS) {
            all.insert(format!("{REQUESTS}{name}"), amount.clone());
        }
    }
    for name in COMPUTED {
        if let Some(amount) = limits.get(name) {
            all.insert(format!("{LIMITS}{name}"), amount.clone());
        }
    }
    all
}

/// All that the pod asks for, or may use: what its spec says and what its node gave it, whichever is more, over that what
/// the pod says as a whole, and what it takes beside its containers.
fn total(pod: &Value, list: &'static str) -> Amounts {
    let (spec, status) = (&pod["spec"], &pod["status"]);
    let statuses = ["initContainerStatuses", "containerStatuses"].into_iter().flat_map(|field| status[field].items());
    let statuses: HashMap<&str, &Value> = statuses.map(|status| (status["name"].text(), status)).collect();
    let pending = status["conditions"].items().iter().find(|condition| condition["type"] == "PodResizePending");
    let is_infeasible = pending.is_some_and(|condition| condition["reason"] == "Infeasible");
    let of = |container: &Value| statuses.get(container["name"].text()).copied().unwrap_or(&Value::Null);
    fn otherwise<'a>(container: &'a Value, list: &str, is_infeasible: bool) -> &'a Value {
        if is_infeasible { &Value::Null } else { &container["resources"][list] }
    }
    let is_request = list == "requests";
    let actuated = sum_by(spec, |container| {
        let status = of(container);
        match (&status["resources"][list], &status["allocatedResources"]) {
            (actual @ Value::Object(_), _) => actual,
            (_, given @ Value::Object(_)) if is_request => given,
            _ => otherwise(container, list, is_infeasible),
        }
    });
    let mut total = if is_infeasible { Amounts::new() } else { sum(spec, list) };
    raise_all(&mut total, &actuated);
    if is_request {
        let allocated = sum_by(spec, |container| match &of(container)["allocatedResources"] {
            given @ Value::Object(_) => given,
            _ => otherwise(container, list, is_infeasible),
        });
        raise_all(&mut total, &allocated);
    }
    for (name, amount) in read(&spec["resources"][list]) {
        if matches!(name.as_str(), "cpu" | "memory") || checks::is_huge_pages(&name) {
            total.insert(name, amount);
        }
    }
    for (name, amount) in read(&spec["overhead"]) {
        if is_request || total.get(&name).is_some_and(|limit| !limit.is_zero()) {
            add(&mut total, &name, &amount);
        }
    }
    total
}

/// Whether the pod says what it may use as a whole.
fn is_pod_level(pod: &Value) -> bool {
    ["requests", "limits"].iter().any(|list| {
        let mut names = pod["spec"]["resources"][list].entries();
        names.any(|(name, _)| matches!(name.as_str(), "cpu" | "memory") || checks::is_huge_pages(name))
    })
}

/// Where cpu or memory is limited, each container must say what it takes of it. Says what is missing.
pub(super) fn lacks(pod: &Value, names: &[&str]) -> Option<String> {
    if is_pod_level(pod) {
        return None;
    }
    const ASKED: [&str; 6] = ["cpu", "limits.cpu", "limits.memory", "memory", "requests.cpu", "requests.memory"];
    let mut missing: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for container in pod["spec"]["containers"].items().iter().chain(pod["spec"]["initContainers"].items()) {
        let (requests, limits) = (read(&container["resources"]["requests"]), read(&container["resources"]["limits"]));
        let said = computed(&requests, &limits);
        for name in ASKED.into_iter().filter(|name| names.contains(name) && !said.contains_key(*name)) {
            missing.entry(name).or_default().insert(container["name"].text());
        }
    }
    let words = |(name, containers): (&&str, &BTreeSet<&str>)| {
        format!("{name} for: {}", containers.iter().copied().collect::<Vec<_>>().join(","))
    };
    let missing: Vec<String> = missing.iter().map(words).collect();
    (!missing.is_empty()).then(|| format!("must specify {}", missing.join("; ")))
}

/// Whether it ends at a deadline of its own.
pub(super) fn is_terminating(pod: &Value) -> bool {
    pod["spec"]["activeDeadlineSeconds"].maybe_int().is_some_and(|seconds| seconds >= 0)
}

/// Whether it is to be with, or away from, pods of other namespaces.
pub(super) fn crosses_namespaces(pod: &Value) -> bool {
    let crosses = |term: &Value| !term["namespaces"].is_empty() || term["namespaceSelector"].is_set();
    ["podAffinity", "podAntiAffinity"].iter().any(|kind| {
        let affinity = &pod["spec"]["affinity"][kind];
        affinity["requiredDuringSchedulingIgnoredDuringExecution"].items().iter().any(crosses)
            || affinity["preferredDuringSchedulingIgnoredDuringExecution"]
                .items()
                .iter()
                .any(|weighted| crosses(&weighted["podAffinityTerm"]))
    })
}
