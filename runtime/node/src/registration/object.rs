//! What the Node object says, as JSON. Conditions and reasons are the kubelet's (`pkg/kubelet/nodestatus/setters.go`).

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::context::Context;
use crate::machine;

/// Memory below which the node says that it has none (kubelet's default eviction threshold).
const MEMORY_FREE_MIN: u64 = 100 << 20;
/// The same for what guests may have together: a twentieth of it.
const GUESTS_FREE_SHARE: u64 = 20;
/// Images named in the status (kubelet's `nodeStatusMaxImages`).
const IMAGES_MAX: usize = 50;
/// Version of Kubernetes whose API this node speaks, and our own.
const VERSION: &str = concat!("v1.37.0+coracle.", env!("CARGO_PKG_VERSION"));
/// The engine, as `containerRuntimeVersion` has it; the workspace pins this version.
const RUNTIME: &str = "wasmtime://48.0.8";

/// What about a node does not change while it runs.
pub struct Facts {
    /// Port of its HTTPS endpoint.
    pub port: u16,
    machine_id: String,
    boot_id: String,
    kernel: String,
    os_image: String,
}

impl Facts {
    /// Asks the machine.
    pub fn read(port: u16) -> Self {
        let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let release = text("/etc/os-release");
        let pretty = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
        Self {
            port,
            machine_id: text("/etc/machine-id"),
            boot_id: text("/proc/sys/kernel/random/boot_id"),
            kernel: text("/proc/sys/kernel/osrelease"),
            os_image: pretty.unwrap_or("Linux").trim_matches('"').to_owned(),
        }
    }

    /// The object to register.
    pub fn node(&self, context: &Context) -> Value {
        let config = &context.config;
        let mut labels: BTreeMap<&str, &str> = BTreeMap::from([
            ("kubernetes.io/hostname", config.name.as_str()),
            ("kubernetes.io/os", "linux"),
            ("kubernetes.io/arch", "wasm32"),
            ("beta.kubernetes.io/os", "linux"),
            ("beta.kubernetes.io/arch", "wasm32"),
        ]);
        labels.extend(config.labels.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        let mut metadata = json!({"name": config.name, "labels": labels});
        if !config.annotations.is_empty() {
            metadata["annotations"] = json!(config.annotations);
        }
        json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": metadata,
            "spec": {"podCIDR": config.pod_cidr.to_string(), "podCIDRs": [config.pod_cidr.to_string()]},
            "status": self.status(context, &Value::Null),
        })
    }

    /// The status; conditions keep the time of their last change from `old`.
    pub fn status(&self, context: &Context, old: &Value) -> Value {
        let config = &context.config;
        let machine = &context.machine;
        let capacity = |memory: u64| {
            json!({
                "cpu": cpu(machine.cpu_millis),
                "memory": format!("{}Ki", memory >> 10),
                "ephemeral-storage": format!("{}Ki", machine.storage_bytes >> 10),
                "pods": machine.pods.to_string(),
                "hugepages-1Gi": "0",
                "hugepages-2Mi": "0",
            })
        };
        let heartbeat = now();
        let conditions: Vec<Value> = conditions(context)
            .into_iter()
            .map(|(name, status, reason, message)| {
                let known = old["conditions"].as_array().into_iter().flatten().find(|known| known["type"] == name);
                let since = known.filter(|known| known["status"] == status);
                let since = since.and_then(|known| known["lastTransitionTime"].as_str()).unwrap_or(&heartbeat);
                json!({
                    "type": name, "status": status, "reason": reason, "message": message,
                    "lastHeartbeatTime": heartbeat, "lastTransitionTime": since,
                })
            })
            .collect();
        json!({
            "capacity": capacity(machine.memory_bytes),
            "allocatable": capacity(machine.allocatable_memory_bytes()),
            "conditions": conditions,
            "addresses": [
                {"type": "InternalIP", "address": config.node_ip.to_string()},
                {"type": "Hostname", "address": config.name},
            ],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": self.port}},
            "nodeInfo": {
                "machineID": self.machine_id,
                "systemUUID": self.machine_id,
                "bootID": self.boot_id,
                "kernelVersion": self.kernel,
                "osImage": self.os_image,
                "containerRuntimeVersion": RUNTIME,
                "kubeletVersion": VERSION,
                "kubeProxyVersion": "",
                "operatingSystem": "linux",
                "architecture": "wasm32",
            },
            "images": images(context),
        })
    }

    /// The same as the body of a strategic merge patch: addresses, which would be merged by their types, are these and no others.
    pub fn status_patch(&self, context: &Context, old: &Value) -> Value {
        let mut status = self.status(context, old);
        if let Some(addresses) = status["addresses"].as_array_mut() {
            addresses.insert(0, json!({"$patch": "replace"}));
        }
        status
    }

    /// Whether a status that the API server has shown says what is true, but for the times in it.
    pub fn agrees(&self, context: &Context, seen: &Value) -> bool {
        let shown = seen["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
        let conditions = conditions(context).into_iter().all(|(name, status, reason, _)| {
            shown.iter().any(|shown| shown["type"] == name && shown["status"] == status && shown["reason"] == reason)
        });
        let wanted = self.status(context, seen);
        let same = |field: &str| wanted[field] == seen[field] || is_empty(&wanted[field]) && is_empty(&seen[field]);
        conditions && ["addresses", "daemonEndpoints", "images"].into_iter().all(same)
    }
}

fn is_empty(value: &Value) -> bool {
    value.is_null() || value.as_array().is_some_and(Vec::is_empty)
}

/// Whether a status says that nobody has heard of its node.
pub fn is_given_up(status: &Value) -> bool {
    let conditions = status["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    conditions.iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "Unknown")
}

/// The condition of a node that is going away.
pub fn leaving() -> Value {
    json!({
        "type": "Ready", "status": "False", "reason": "KubeletNotReady", "message": "node is shutting down",
        "lastHeartbeatTime": now(), "lastTransitionTime": now(),
    })
}

fn conditions(context: &Context) -> [(&'static str, &'static str, &'static str, &'static str); 4] {
    let guests = context.engine.memory();
    let is_taken =
        guests.memory_bytes >= guests.memory_bytes_max.saturating_sub(guests.memory_bytes_max / GUESTS_FREE_SHARE);
    let memory = is_taken || machine::meminfo("MemAvailable:").is_some_and(|free| free < MEMORY_FREE_MIN);
    let disk = context.disk.is_low();
    let memory = match memory {
        true => ("True", "KubeletHasInsufficientMemory", "kubelet has insufficient memory available"),
        false => ("False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
    };
    let disk = match disk {
        true => ("True", "KubeletHasDiskPressure", "kubelet has disk pressure"),
        false => ("False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
    };
    [
        ("MemoryPressure", memory.0, memory.1, memory.2),
        ("DiskPressure", disk.0, disk.1, disk.2),
        // Guests are no processes.
        ("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        ("Ready", "True", "KubeletReady", "kubelet is posting ready status"),
    ]
}

fn images(context: &Context) -> Value {
    let mut images = context.images.list();
    images.sort_by(|(left, _, left_bytes), (right, _, right_bytes)| (right_bytes, left).cmp(&(left_bytes, right)));
    images
        .into_iter()
        .take(IMAGES_MAX)
        .map(|(name, digest, bytes)| {
            let base = name.rsplit_once(':').map_or(name.as_str(), |(base, _)| base);
            json!({"names": [format!("{base}@{digest}"), name], "sizeBytes": bytes})
        })
        .collect()
}

fn cpu(millis: u64) -> String {
    if millis.is_multiple_of(1000) { (millis / 1000).to_string() } else { format!("{millis}m") }
}

/// `metav1.Time`.
pub fn now() -> String {
    Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
