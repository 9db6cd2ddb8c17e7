//! Amounts of resources, as integers: cpu in thousandths, all else in units.
//!
//! A pod may ask for as much as fits 64 bits, whether any node has it or not. A sum of such is exact: what is taken away when
//! the pod goes is what was added when it came.

use std::collections::{BTreeMap, HashMap};
use std::ops::{Add as _, Sub as _};
use std::sync::Arc;

use coracle_api::meta::Quantity;

use crate::wire::{Container, ContainerStatus, Pod, PodSpec};

/// An amount, or a sum of many.
pub(crate) type Amount = i128;

/// What scoring assumes of a container without requests, so that such pods are spread as well (the reference's values).
const CPU_ASSUMED: Amount = 100;
const MEMORY_ASSUMED: Amount = 200 * 1024 * 1024;

/// Amounts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Amounts {
    pub cpu: Amount,
    pub memory: Amount,
    pub ephemeral: Amount,
    /// By name, in order of it; no zeros.
    pub extended: Vec<(Arc<str>, Amount)>,
}

/// What a pod asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Requests {
    pub exact: Amounts,
    /// cpu and memory as scoring sees them.
    pub assumed: (Amount, Amount),
}

impl Amounts {
    /// Reads a resource list. What is no quantity counts as nothing: the API server admits none.
    pub(crate) fn parse(list: &BTreeMap<String, String>) -> Self {
        let mut amounts = Self::default();
        for (name, text) in list {
            let Ok(quantity) = Quantity::parse(text) else { continue };
            match name.as_str() {
                "cpu" => amounts.cpu = quantity.milli_value().into(),
                "memory" => amounts.memory = quantity.value().into(),
                "ephemeral-storage" => amounts.ephemeral = quantity.value().into(),
                "pods" => {}
                _ => amounts.set(name, quantity.value().into()),
            }
        }
        amounts
    }

    fn set(&mut self, name: &str, amount: Amount) {
        match self.extended.binary_search_by(|(known, _)| (**known).cmp(name)) {
            Ok(index) if amount == 0 => drop(self.extended.remove(index)),
            Ok(index) => self.extended[index].1 = amount,
            Err(_) if amount == 0 => {}
            Err(index) => self.extended.insert(index, (name.into(), amount)),
        }
    }

    /// The amount of an extended resource.
    pub(crate) fn extended(&self, name: &str) -> Amount {
        self.extended.binary_search_by(|(known, _)| (**known).cmp(name)).map_or(0, |index| self.extended[index].1)
    }

    fn combine(&mut self, other: &Self, with: impl Fn(Amount, Amount) -> Amount) {
        self.cpu = with(self.cpu, other.cpu);
        self.memory = with(self.memory, other.memory);
        self.ephemeral = with(self.ephemeral, other.ephemeral);
        for (name, amount) in &other.extended {
            let combined = with(self.extended(name), *amount);
            self.set(name, combined);
        }
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.combine(other, Amount::add);
    }

    pub(crate) fn subtract(&mut self, other: &Self) {
        self.combine(other, Amount::sub);
    }

    fn raise(&mut self, other: &Self) {
        self.combine(other, Amount::max);
    }

    fn plus(&self, other: &Self) -> Self {
        let mut sum = self.clone();
        sum.add(other);
        sum
    }
}

/// Amounts by name, as they come over the wire.
type List = BTreeMap<String, String>;

/// What a pod occupies: all containers and sidecars together, or more if an init container needs more while it runs
/// beside the sidecars started before it; plus overhead. Requests of the pod as a whole stand for its containers'.
///
/// Of a pod that is resized it is the most of what it is to have, what its node has given it and what it has; what its node
/// can never give counts for nothing (`PodRequests` of the reference, as quotas count).
pub(crate) fn requests(pod: &Pod) -> Requests {
    let exact = most(pod, &Amounts::parse);
    let assumed = most(pod, &|list| {
        let mut amounts = Amounts::parse(list);
        if !list.contains_key("cpu") {
            amounts.cpu = CPU_ASSUMED;
        }
        if !list.contains_key("memory") {
            amounts.memory = MEMORY_ASSUMED;
        }
        amounts
    });
    Requests { exact, assumed: (assumed.cpu, assumed.memory) }
}

fn most(pod: &Pod, read: &dyn Fn(&List) -> Amounts) -> Amounts {
    let (spec, status) = (&pod.spec, &pod.status);
    let statuses = status.container_statuses.iter().chain(&status.init_container_statuses);
    let statuses: HashMap<&str, &ContainerStatus> = statuses.map(|status| (&*status.name, status)).collect();
    let pending = status.conditions.iter().find(|condition| condition.type_ == "PodResizePending");
    let is_infeasible = pending.is_some_and(|condition| condition.reason.as_deref() == Some("Infeasible"));
    let asked = |container: &Container| match is_infeasible {
        true => read(&List::new()),
        false => read(&container.resources.requests),
    };
    let mut total = together(spec, &asked);
    if !statuses.is_empty() {
        let status = |container: &Container| statuses.get(&*container.name).copied();
        let given = |container: &Container| {
            let given = status(container).and_then(|status| status.allocated_resources.as_ref());
            given.map_or_else(|| asked(container), read)
        };
        let has = |container: &Container| {
            let resources = status(container).and_then(|status| status.resources.as_ref());
            resources.and_then(|resources| resources.requests.as_ref()).map_or_else(|| given(container), read)
        };
        total.raise(&together(spec, &given));
        total.raise(&together(spec, &has));
    }
    if let Some(whole) = &spec.resources {
        let parsed = Amounts::parse(&whole.requests);
        if whole.requests.contains_key("cpu") {
            total.cpu = parsed.cpu;
        }
        if whole.requests.contains_key("memory") {
            total.memory = parsed.memory;
        }
    }
    total.add(&Amounts::parse(&spec.overhead));
    total
}

/// What all containers of a pod occupy together.
fn together(spec: &PodSpec, of: &dyn Fn(&Container) -> Amounts) -> Amounts {
    let mut running = Amounts::default();
    for container in &spec.containers {
        running.add(&of(container));
    }
    let (mut sidecars, mut peak) = (Amounts::default(), Amounts::default());
    for container in &spec.init_containers {
        let needs = of(container);
        if container.restart_policy.as_deref() == Some("Always") {
            sidecars.add(&needs);
            peak.raise(&sidecars);
        } else {
            peak.raise(&sidecars.plus(&needs));
        }
    }
    running.add(&sidecars);
    running.raise(&peak);
    running
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(spec: &Value, status: &Value) -> Pod {
        serde_json::from_value(json!({"metadata": {}, "spec": spec, "status": status})).unwrap()
    }

    #[test]
    fn counts_what_a_pod_occupies() {
        let container = |cpu: &str| json!({"resources": {"requests": {"cpu": cpu, "memory": "1Mi"}}});
        let sidecar = |cpu: &str| json!({"restartPolicy": "Always", "resources": {"requests": {"cpu": cpu}}});
        for (spec, cpu) in [
            (json!({"containers": [container("100m"), container("0.25")]}), 350),
            (json!({"containers": [container("100m")], "initContainers": [container("300m")]}), 300),
            (json!({"containers": [container("100m")], "initContainers": [sidecar("50m"), container("300m")]}), 350),
            (json!({"containers": [container("100m")], "initContainers": [container("300m"), sidecar("50m")]}), 300),
            (json!({"containers": [container("100m")], "overhead": {"cpu": "10m"}}), 110),
            (json!({"containers": [container("1")], "resources": {"requests": {"cpu": "2"}}}), 2000),
            (json!({"containers": [{}]}), 0),
        ] {
            assert_eq!(requests(&pod(&spec, &json!({}))).exact.cpu, cpu, "{spec}");
        }
        let nothing = pod(&json!({"containers": [{}, {}]}), &json!({}));
        assert_eq!(requests(&nothing).assumed, (200, 400 * 1024 * 1024));
    }

    #[test]
    fn a_pod_that_is_resized_occupies_the_most_of_what_it_has_and_is_to_have() {
        let spec = json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": "200m"}}}]});
        let status = |given: &str, has: &str| {
            json!({"containerStatuses": [
                {"name": "c", "allocatedResources": {"cpu": given}, "resources": {"requests": {"cpu": has}}}]})
        };
        let mut infeasible = status("100m", "150m");
        infeasible["conditions"] = json!([{"type": "PodResizePending", "status": "True", "reason": "Infeasible"}]);
        let mut deferred = status("100m", "150m");
        deferred["conditions"] = json!([{"type": "PodResizePending", "status": "True", "reason": "Deferred"}]);
        for (status, cpu) in [
            (json!({}), 200),
            (status("200m", "200m"), 200),
            (status("300m", "200m"), 300),
            (status("200m", "400m"), 400),
            (json!({"containerStatuses": [{"name": "c", "allocatedResources": {"cpu": "500m"}}]}), 500),
            (json!({"containerStatuses": [{"name": "c", "resources": null}, {"name": "gone"}]}), 200),
            (deferred, 200),
            (infeasible, 150),
        ] {
            assert_eq!(requests(&pod(&spec, &status)).exact.cpu, cpu, "{status}");
        }
    }

    #[test]
    fn extended_resources_add_up_and_vanish() {
        let list = |count: &str| Amounts::parse(&[("a.b/c".to_owned(), count.to_owned())].into());
        let mut sum = list("2");
        sum.add(&list("3"));
        assert_eq!(sum.extended("a.b/c"), 5);
        sum.subtract(&list("5"));
        assert!(sum.extended.is_empty());
    }
}
