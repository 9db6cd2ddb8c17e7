//! Whether the node takes a pod that was bound to it. The scheduler has counted before; what is bound by name passes it
//! by, and two may have counted at once. What the node has not is refused as the kubelet does
//! (`pkg/kubelet/lifecycle/predicate.go`): the pod fails and says `OutOf…`.

use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use parking_lot::Mutex;

use crate::machine::Machine;
use crate::quantity;

/// Reasons of pods that were refused; one for each of [`NAMES`].
pub const REASONS: [&str; 4] = ["OutOfcpu", "OutOfmemory", "OutOfephemeral-storage", "OutOfpods"];

/// What is counted, as resources of Kubernetes are called, and their order in [`Amounts`].
const NAMES: [&str; 4] = ["cpu", "memory", "ephemeral-storage", "pods"];

/// Thousandths of CPUs, bytes of memory, bytes of storage, pods.
pub type Amounts = [u64; 4];

/// What the node's pods have been promised.
pub struct Room {
    allocatable: Amounts,
    used: Mutex<Amounts>,
}

/// Why a pod is refused.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The pod's `status.reason`.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

impl Room {
    /// All of the machine that pods may have.
    pub fn of(machine: &Machine) -> Self {
        let memory = machine.allocatable_memory_bytes();
        Self { allocatable: [machine.cpu_millis, memory, machine.storage_bytes, machine.pods], used: Mutex::default() }
    }

    /// Promises a pod what it asks for, if all of it is there.
    pub fn take(&self, requested: &Amounts) -> Result<(), Refusal> {
        let mut used = self.used.lock();
        for (kind, name) in NAMES.iter().enumerate() {
            let (wants, used, capacity) = (requested[kind], used[kind], self.allocatable[kind]);
            if wants > 0 && used.saturating_add(wants) > capacity {
                let message = format!(
                    "Pod was rejected: Node didn't have enough resource: {name}, requested: {wants}, used: {used}, \
                     capacity: {capacity}"
                );
                return Err(Refusal { reason: REASONS[kind], message });
            }
        }
        *used = std::array::from_fn(|kind| used[kind].saturating_add(requested[kind]));
        Ok(())
    }

    /// Promises it to a pod that ran here before, whatever is there.
    pub fn take_up(&self, requested: &Amounts) {
        let mut used = self.used.lock();
        *used = std::array::from_fn(|kind| used[kind].saturating_add(requested[kind]));
    }

    /// Takes back what a pod was promised.
    pub fn give_back(&self, requested: &Amounts) {
        let mut used = self.used.lock();
        *used = std::array::from_fn(|kind| used[kind].saturating_sub(requested[kind]));
    }
}

/// What a pod asks for: the most that it needs at a time. Sidecars run beside all that come after them, other init
/// containers one after another (`k8s.io/component-helpers/resource`, `PodRequests`).
pub fn requested(pod: &Pod) -> Amounts {
    std::array::from_fn(|kind| if NAMES[kind] == "pods" { 1 } else { requested_of(pod, NAMES[kind]) })
}

fn requested_of(pod: &Pod, name: &str) -> u64 {
    let Some(spec) = &pod.spec else { return 0 };
    let overhead = spec.overhead.as_ref().and_then(|overhead| overhead.get(name));
    let overhead = overhead.and_then(|quantity| amount(name, quantity)).unwrap_or(0);
    if let Some(whole) = of(name, spec.resources.as_ref()) {
        return whole.saturating_add(overhead);
    }
    let (mut sidecars, mut starting) = (0_u64, 0_u64);
    for init in spec.init_containers.iter().flatten() {
        let beside = sidecars.saturating_add(of_container(name, init));
        starting = starting.max(beside);
        if init.restart_policy.as_deref() == Some("Always") {
            sidecars = beside;
        }
    }
    let running = spec.containers.iter().fold(sidecars, |sum, one| sum.saturating_add(of_container(name, one)));
    running.max(starting).saturating_add(overhead)
}

fn of_container(name: &str, container: &Container) -> u64 {
    of(name, container.resources.as_ref()).unwrap_or(0)
}

fn of(name: &str, resources: Option<&ResourceRequirements>) -> Option<u64> {
    amount(name, resources?.requests.as_ref()?.get(name)?)
}

/// What does not fit into the number fits into no node.
fn amount(name: &str, quantity: &k8s_openapi::apimachinery::pkg::api::resource::Quantity) -> Option<u64> {
    let amount = if name == "cpu" { quantity::millis(quantity) } else { quantity::units(quantity) };
    Some(amount.unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"spec": spec})).unwrap()
    }

    #[test]
    fn a_pod_needs_the_most_that_runs_at_a_time() {
        let wants = |cpu: &str| json!({"requests": {"cpu": cpu, "memory": "1Ki"}});
        for (spec, cpu, memory) in [
            (json!({"containers": [{"name": "a"}]}), 0, 0),
            (
                json!({"containers": [{"name": "a", "resources": wants("1")}, {"name": "b", "resources": wants("500m")}]}),
                1500,
                2048,
            ),
            (
                json!({
                    "initContainers": [{"name": "i", "resources": wants("2")}],
                    "containers": [{"name": "a", "resources": wants("1")}],
                }),
                2000,
                1024,
            ),
            (
                json!({
                    "initContainers": [
                        {"name": "s", "restartPolicy": "Always", "resources": wants("1")},
                        {"name": "i", "resources": wants("2")},
                    ],
                    "containers": [{"name": "a", "resources": wants("1")}],
                    "overhead": {"cpu": "100m"},
                }),
                3100,
                2048,
            ),
            (json!({"containers": [{"name": "a", "resources": wants("8E")}]}), u64::MAX, 1024),
        ] {
            assert_eq!(requested(&pod(spec.clone())), [cpu, memory, 0, 1], "{spec}");
        }
    }

    #[test]
    fn what_is_not_there_is_refused_and_what_is_given_back_is_there() {
        let machine = Machine { cpu_millis: 1000, memory_bytes: 1 << 30, storage_bytes: 0, pods: 2 };
        let room = Room::of(&machine);
        room.take(&[600, 0, 0, 1]).unwrap();
        let refusal = room.take(&[500, 0, 0, 1]).unwrap_err();
        assert_eq!(refusal.reason, "OutOfcpu");
        assert!(refusal.message.ends_with("cpu, requested: 500, used: 600, capacity: 1000"), "{}", refusal.message);
        assert_eq!(room.take(&[0, 2 << 30, 0, 1]).unwrap_err().reason, "OutOfmemory");
        assert_eq!(room.take(&[u64::MAX, 0, 0, 1]).unwrap_err().reason, "OutOfcpu");
        room.give_back(&[600, 0, 0, 1]);
        room.take(&[500, 0, 0, 1]).unwrap();
        room.take(&[500, 0, 0, 1]).unwrap();
        assert_eq!(room.take(&[0, 0, 0, 1]).unwrap_err().reason, "OutOfpods");
    }
}
