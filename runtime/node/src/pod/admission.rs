//! Whether the node takes a pod that was bound to it. The scheduler has counted before; what is bound by name passes it
//! by, and two may have counted at once. What the node has not is refused as the kubelet does
//! (`pkg/kubelet/lifecycle/predicate.go`): the pod fails and says `OutOf…`, or `NodePorts` for a port of the node that another pod has.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use parking_lot::Mutex;

use crate::machine::Machine;
use crate::quantity;

/// Reasons of pods that were refused: one for each of [`NAMES`], then [`PORTS`].
pub const REASONS: [&str; 5] = ["OutOfcpu", "OutOfmemory", "OutOfephemeral-storage", "OutOfpods", PORTS];

/// A port of the node is taken.
const PORTS: &str = "NodePorts";

/// What is counted, as resources of Kubernetes are called, and their order in [`Amounts`].
const NAMES: [&str; 4] = ["cpu", "memory", "ephemeral-storage", "pods"];

/// Thousandths of CPUs, bytes of memory, bytes of storage, pods.
type Amounts = [u64; 4];

/// A number, and the protocol that is spoken there.
type Port = (i32, String);

/// A port of the node that a pod has for itself: nobody opens it here, and as with a kubelet no other pod has it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct HostPort {
    port: Port,
    /// Empty for every address.
    address: String,
}

/// The addresses at which a port is taken, and by how many: pods that ran here before have what they had, whoever else has it.
type Addresses = HashMap<String, usize>;

/// What a pod asks for of its node.
#[derive(Debug, Default)]
pub struct Requested {
    amounts: Amounts,
    ports: Vec<HostPort>,
}

/// What was promised of the node.
#[derive(Debug, Default)]
struct Used {
    amounts: Amounts,
    ports: HashMap<Port, Addresses>,
}

/// What the node's pods have been promised.
pub struct Room {
    allocatable: Amounts,
    used: Mutex<Used>,
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
    pub fn take(&self, requested: &Requested) -> Result<(), Refusal> {
        let mut used = self.used.lock();
        for (kind, name) in NAMES.iter().enumerate() {
            let (wants, used, capacity) = (requested.amounts[kind], used.amounts[kind], self.allocatable[kind]);
            if wants > 0 && used.saturating_add(wants) > capacity {
                let message = format!(
                    "Pod was rejected: Node didn't have enough resource: {name}, requested: {wants}, used: {used}, \
                     capacity: {capacity}"
                );
                return Err(Refusal { reason: REASONS[kind], message });
            }
        }
        if requested.ports.iter().any(|port| used.is_taken(port)) {
            let message = "Pod was rejected: Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports";
            return Err(Refusal { reason: PORTS, message: message.to_owned() });
        }
        used.add(requested);
        Ok(())
    }

    /// Promises it to a pod that ran here before, whatever is there.
    pub fn take_up(&self, requested: &Requested) {
        self.used.lock().add(requested);
    }

    /// Takes back what a pod was promised.
    pub fn give_back(&self, requested: &Requested) {
        self.used.lock().remove(requested);
    }
}

impl Used {
    /// Whether somebody has the same port of the same protocol, at one address or at all of them.
    fn is_taken(&self, HostPort { port, address }: &HostPort) -> bool {
        let Some(taken) = self.ports.get(port) else { return false };
        address.is_empty() || taken.contains_key(address) || taken.contains_key("")
    }

    fn add(&mut self, requested: &Requested) {
        self.amounts = std::array::from_fn(|kind| self.amounts[kind].saturating_add(requested.amounts[kind]));
        for HostPort { port, address } in &requested.ports {
            *self.ports.entry(port.clone()).or_default().entry(address.clone()).or_default() += 1;
        }
    }

    fn remove(&mut self, requested: &Requested) {
        self.amounts = std::array::from_fn(|kind| self.amounts[kind].saturating_sub(requested.amounts[kind]));
        for HostPort { port, address } in &requested.ports {
            let Some(taken) = self.ports.get_mut(port) else { continue };
            let Some(count) = taken.get_mut(address) else { continue };
            *count -= 1;
            if *count == 0 {
                taken.remove(address);
            }
            if taken.is_empty() {
                self.ports.remove(port);
            }
        }
    }
}

/// What a pod asks for: the most that it needs at a time. Sidecars run beside all that come after them, other init
/// containers one after another (`k8s.io/component-helpers/resource`, `PodRequests`).
pub fn requested(pod: &Pod) -> Requested {
    let amounts = std::array::from_fn(|kind| if NAMES[kind] == "pods" { 1 } else { requested_of(pod, NAMES[kind]) });
    Requested { amounts, ports: host_ports(pod) }
}

/// The ports of the node that are for the pod's ordinary containers and its sidecars.
fn host_ports(pod: &Pod) -> Vec<HostPort> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let sidecars =
        spec.init_containers.iter().flatten().filter(|init| init.restart_policy.as_deref() == Some("Always"));
    let ports = spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
    let ports = ports.filter_map(|port| {
        let address = port.host_ip.clone().filter(|address| address != "0.0.0.0" && address != "::");
        let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
        let number = port.host_port.filter(|number| *number > 0)?;
        Some(HostPort { port: (number, protocol), address: address.unwrap_or_default() })
    });
    ports.collect()
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
            assert_eq!(requested(&pod(spec.clone())).amounts, [cpu, memory, 0, 1], "{spec}");
        }
    }

    #[test]
    fn what_is_not_there_is_refused_and_what_is_given_back_is_there() {
        let machine = Machine { cpu_millis: 1000, memory_bytes: 1 << 30, storage_bytes: 0, pods: 2 };
        let room = Room::of(&machine);
        let take = |amounts| room.take(&Requested { amounts, ..Requested::default() });
        take([600, 0, 0, 1]).unwrap();
        let refusal = take([500, 0, 0, 1]).unwrap_err();
        assert_eq!(refusal.reason, "OutOfcpu");
        assert!(refusal.message.ends_with("cpu, requested: 500, used: 600, capacity: 1000"), "{}", refusal.message);
        assert_eq!(take([0, 2 << 30, 0, 1]).unwrap_err().reason, "OutOfmemory");
        assert_eq!(take([u64::MAX, 0, 0, 1]).unwrap_err().reason, "OutOfcpu");
        room.give_back(&Requested { amounts: [600, 0, 0, 1], ..Requested::default() });
        take([500, 0, 0, 1]).unwrap();
        take([500, 0, 0, 1]).unwrap();
        assert_eq!(take([0, 0, 0, 1]).unwrap_err().reason, "OutOfpods");
    }

    #[test]
    fn a_port_of_the_node_is_one_pods() {
        let room = Room::of(&Machine { cpu_millis: 1000, memory_bytes: 1 << 30, storage_bytes: 0, pods: 9 });
        let with = |port: serde_json::Value| requested(&pod(json!({"containers": [{"name": "a", "ports": [port]}]})));
        let first = with(json!({"containerPort": 1, "hostPort": 80, "hostIP": "127.0.0.1"}));
        room.take(&first).unwrap();
        for (port, is_free) in [
            (json!({"containerPort": 80}), true),
            (json!({"containerPort": 1, "hostPort": 81}), true),
            (json!({"containerPort": 1, "hostPort": 80, "hostIP": "127.0.0.2"}), true),
            (json!({"containerPort": 1, "hostPort": 80, "protocol": "UDP"}), true),
            (json!({"containerPort": 2, "hostPort": 80, "hostIP": "127.0.0.1"}), false),
            (json!({"containerPort": 1, "hostPort": 80}), false),
            (json!({"containerPort": 1, "hostPort": 80, "hostIP": "0.0.0.0", "protocol": "TCP"}), false),
        ] {
            let asked = with(port.clone());
            assert_eq!(
                room.take(&asked).map_err(|refusal| refusal.reason),
                is_free.then_some(()).ok_or(PORTS),
                "{port}"
            );
            if is_free {
                room.give_back(&asked);
            }
        }
        room.give_back(&first);
        room.take(&with(json!({"containerPort": 1, "hostPort": 80}))).unwrap();
    }

    /// As after a restart of the node, when all that ran is taken up before anybody is asked.
    #[test]
    fn a_port_that_two_pods_have_is_free_when_both_have_gone() {
        let room = Room::of(&Machine { cpu_millis: 1000, memory_bytes: 1 << 30, storage_bytes: 0, pods: 9 });
        let port = |address: &str| {
            let port = json!({"containerPort": 1, "hostPort": 80, "hostIP": address});
            requested(&pod(json!({"containers": [{"name": "a", "ports": [port]}]})))
        };
        let (here, everywhere) = (port("127.0.0.1"), port("0.0.0.0"));
        for pod in [&here, &here, &everywhere] {
            room.take_up(pod);
        }
        let is_free = |port: &Requested| room.take(port).map(|()| room.give_back(port)).is_ok();
        room.give_back(&here);
        room.give_back(&everywhere);
        assert!(!is_free(&here) && !is_free(&everywhere) && is_free(&port("127.0.0.2")));
        room.give_back(&here);
        assert!(is_free(&here) && is_free(&everywhere));
        assert!(room.used.lock().ports.is_empty(), "nothing is kept of ports that nobody has");
    }
}
