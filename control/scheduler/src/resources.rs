//! Amounts of resources, as integers: cpu in thousandths, all else in units.
//!
//! A pod may ask for as much as fits 64 bits, whether any node has it or not. A sum of such is exact: what is taken away when
//! the pod goes is what was added when it came.

use std::collections::BTreeMap;
use std::ops::{Add as _, Sub as _};
use std::sync::Arc;

use coracle_api::meta::Quantity;

use crate::wire::{Container, PodSpec};

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

/// What a pod occupies: all containers and sidecars together, or more if an init container needs more while it runs
/// beside the sidecars started before it; plus overhead. Requests of the pod as a whole stand for its containers'.
pub(crate) fn requests(spec: &PodSpec) -> Requests {
    let total = |of: &dyn Fn(&Container) -> Amounts| {
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
        if let Some(whole) = &spec.resources {
            let whole = &whole.requests;
            let parsed = Amounts::parse(whole);
            if whole.contains_key("cpu") {
                running.cpu = parsed.cpu;
            }
            if whole.contains_key("memory") {
                running.memory = parsed.memory;
            }
        }
        running.add(&Amounts::parse(&spec.overhead));
        running
    };
    let exact = total(&|container| Amounts::parse(&container.resources.requests));
    let assumed = total(&|container| {
        let mut amounts = Amounts::parse(&container.resources.requests);
        let asks = |name: &str| container.resources.requests.contains_key(name);
        if !asks("cpu") {
            amounts.cpu = CPU_ASSUMED;
        }
        if !asks("memory") {
            amounts.memory = MEMORY_ASSUMED;
        }
        amounts
    });
    Requests { exact, assumed: (assumed.cpu, assumed.memory) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

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
            let parsed: PodSpec = serde_json::from_value(spec.clone()).unwrap();
            assert_eq!(requests(&parsed).exact.cpu, cpu, "{spec}");
        }
        let nothing: PodSpec = serde_json::from_value(json!({"containers": [{}, {}]})).unwrap();
        assert_eq!(requests(&nothing).assumed, (200, 400 * 1024 * 1024));
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
