//! What the API shows of a pod: the status as the kubelet computes it (`pkg/kubelet/status/generate.go`,
//! `kubelet_pods.go`), as the body of a strategic merge patch.
//!
//! The patch is complete and does not depend on what was written before: what must not be there is `null`, the
//! container statuses are atomic lists, addresses replace those of before (they would be merged by the address), and
//! conditions are merged by type, so those of others stay. Messages are cut at a bound: a
//! status that is too large for the API server is one that nobody ever sees.

use serde_json::{Map, Value, json};

use super::container::{Container, FAILED_MOUNT, Kind, State, Terminated};
use super::{Condition, Core, EVICTED, Failure, Now, SetupState, all_specs, specs};
use crate::text::cut;

/// The conditions that the node owns, in the order in which the kubelet lists them.
pub(in crate::pod) const OWNED_CONDITIONS: [&str; 4] =
    ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady"];

impl Core {
    /// The phase, as `getPhase` of the kubelet.
    pub fn phase(&self) -> &'static str {
        if let Some(phase) = self.terminal {
            return phase;
        }
        let init_pending = self.containers.iter().any(|container| match container.kind {
            Kind::Init => !container.is_completed(),
            Kind::Sidecar => !container.is_started() && container.restarts == 0,
            Kind::Regular | Kind::Ephemeral => false,
        });
        if init_pending && !self.initialized {
            return "Pending";
        }
        let regular = || self.containers.iter().filter(|container| container.kind == Kind::Regular);
        let never_ran = regular().any(|container| {
            !matches!(container.state, State::Running { .. } | State::Stopping { .. } | State::Ended { .. })
                && container.last.is_none()
        });
        if never_ran { "Pending" } else { "Running" }
    }

    /// The `status` of a patch. Conditions remember when they changed, therefore `&mut`.
    pub fn status(&mut self, now: Now) -> Value {
        let phase = self.phase();
        let conditions = self.conditions(phase, now);
        let (reason, message) = match &self.failure {
            Some(Failure { reason, message, .. }) => (json!(reason), json!(cut(message))),
            None => (Value::Null, Value::Null),
        };
        let mut status = json!({
            "phase": phase,
            "conditions": conditions,
            "reason": reason,
            "message": message,
            "hostIP": self.host_address,
            "hostIPs": [{"$patch": "replace"}, {"ip": self.host_address}],
            "startTime": self.start_time.map(second),
            "qosClass": self.qos_class(),
            "containerStatuses": self.container_statuses(|kind| kind == Kind::Regular, true),
        });
        let fields = status.as_object_mut().expect("it was written as an object");
        if let Some(generation) = self.pod.metadata.generation {
            fields.insert("observedGeneration".to_owned(), json!(generation));
        }
        if let Some(address) = self.address.or(self.previous_address.filter(|_| self.terminal.is_some())) {
            fields.insert("podIP".to_owned(), json!(address));
            fields.insert("podIPs".to_owned(), json!([{"$patch": "replace"}, {"ip": address}]));
        }
        if self.containers.iter().any(|container| container.kind.is_init()) {
            let statuses = self.container_statuses(Kind::is_init, false);
            fields.insert("initContainerStatuses".to_owned(), statuses);
        }
        if self.containers.iter().any(|container| container.kind == Kind::Ephemeral) {
            let statuses = self.container_statuses(|kind| kind == Kind::Ephemeral, true);
            fields.insert("ephemeralContainerStatuses".to_owned(), statuses);
        }
        status
    }

    /// What the status says of the containers that have run and do not now. The next life of the node takes it up where the API server
    /// does not know as much.
    pub fn ends(&self) -> Value {
        let has_init = self.containers.iter().any(|container| container.kind.is_init());
        let all = self.containers.iter().zip(all_specs(&self.pod));
        let ended = all.filter(|(container, _)| {
            !container.container_id.is_empty()
                && !matches!(container.state, State::Running { .. } | State::Stopping { .. })
        });
        ended.map(|(container, spec)| container_status(container, &spec, has_init)).collect()
    }

    fn qos_class(&self) -> &'static str {
        let given = self.pod.status.as_ref().and_then(|status| status.qos_class.as_deref());
        match given {
            Some("Guaranteed") => "Guaranteed",
            Some("BestEffort") => "BestEffort",
            Some("Burstable") => "Burstable",
            _ => computed_qos(self),
        }
    }

    fn container_statuses(&self, wanted: impl Fn(Kind) -> bool, sorted: bool) -> Value {
        let has_init = self.containers.iter().any(|container| container.kind.is_init());
        let mut statuses: Vec<(&str, Value)> = self
            .containers
            .iter()
            .zip(all_specs(&self.pod))
            .filter(|(container, _)| wanted(container.kind))
            .map(|(container, spec)| (&*container.name, container_status(container, &spec, has_init)))
            .collect();
        if sorted {
            statuses.sort_by_key(|(name, _)| *name);
        }
        statuses.into_iter().map(|(_, status)| status).collect()
    }

    fn conditions(&mut self, phase: &'static str, now: Now) -> Value {
        let has_sandbox = self.address.is_some() && matches!(self.setup, SetupState::Done);
        let initialized = self.initialized_condition(phase);
        let containers_ready = self.containers_ready(phase);
        let ready = self.ready(&containers_ready);
        let mut list = Vec::with_capacity(OWNED_CONDITIONS.len() + 1);
        let wanted = [(has_sandbox, "", String::new()), initialized, ready, containers_ready];
        for (name, (status, reason, message)) in OWNED_CONDITIONS.into_iter().zip(wanted) {
            let since = match self.conditions.get(name) {
                Some(old) if old.status == status => old.since,
                _ => now.wall,
            };
            let condition = Condition { status, reason, message, since };
            list.push(self.condition(name, &condition));
            self.conditions.insert(name, condition);
        }
        // One that an earlier life of the node has said is there, with its time.
        if let Some(Failure { reason: EVICTED, message, since: Some(since) }) = &self.failure {
            let since = *since;
            let reason = "TerminationByKubelet";
            let message = format!("{EVICTED}: {message}").chars().take(1024).collect();
            let condition = Condition { status: true, reason, message, since };
            list.push(self.condition("DisruptionTarget", &condition));
        }
        if self.says_scheduled {
            let since = self.start_time.unwrap_or(now.wall);
            let condition = Condition { status: true, reason: "", message: String::new(), since };
            list.push(self.condition("PodScheduled", &condition));
        }
        Value::Array(list)
    }

    fn condition(&self, name: &str, condition: &Condition) -> Value {
        let text = |text: &str| if text.is_empty() { Value::Null } else { json!(cut(text)) };
        json!({
            "type": name,
            "status": if condition.status { "True" } else { "False" },
            "reason": text(condition.reason),
            "message": text(&condition.message),
            "lastProbeTime": null,
            "lastTransitionTime": second(condition.since),
            "observedGeneration": self.pod.metadata.generation,
        })
    }

    fn initialized_condition(&self, phase: &str) -> (bool, &'static str, String) {
        if phase == "Succeeded" {
            return (true, "PodCompleted", String::new());
        }
        let incomplete: Vec<&str> = self
            .containers
            .iter()
            .filter(|container| match container.kind {
                Kind::Init => !container.is_completed(),
                Kind::Sidecar => !container.is_started(),
                Kind::Regular | Kind::Ephemeral => false,
            })
            .map(|container| &*container.name)
            .collect();
        if self.initialized || incomplete.is_empty() {
            return (true, "", String::new());
        }
        let message = format!("containers with incomplete status: [{}]", incomplete.join(" "));
        (false, "ContainersNotInitialized", message)
    }

    fn containers_ready(&self, phase: &str) -> (bool, &'static str, String) {
        match phase {
            "Succeeded" => return (false, "PodCompleted", String::new()),
            "Failed" => return (false, "PodFailed", String::new()),
            _ => {}
        }
        let unready: Vec<&str> = self
            .containers
            .iter()
            .filter(|container| matches!(container.kind, Kind::Sidecar | Kind::Regular) && !container.is_ready())
            .map(|container| &*container.name)
            .collect();
        match unready.is_empty() {
            true => (true, "", String::new()),
            false => (false, "ContainersNotReady", format!("containers with unready status: [{}]", unready.join(" "))),
        }
    }

    fn ready(&self, containers: &(bool, &'static str, String)) -> (bool, &'static str, String) {
        if !containers.0 {
            return containers.clone();
        }
        let gates = self.pod.spec.as_ref().and_then(|spec| spec.readiness_gates.as_deref()).unwrap_or_default();
        let given = self.pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
        let mut messages = Vec::new();
        for gate in gates {
            let name = &gate.condition_type;
            match given.iter().find(|condition| condition.type_ == *name) {
                None => {
                    messages.push(format!("corresponding condition of pod readiness gate {name:?} does not exist."))
                }
                Some(condition) if condition.status != "True" => messages.push(format!(
                    "the status of pod readiness gate {name:?} is not \"True\", but {}",
                    condition.status
                )),
                Some(_) => {}
            }
        }
        match messages.is_empty() {
            true => (true, "", String::new()),
            false => (false, "ReadinessGatesNotReady", messages.join(", ")),
        }
    }
}

/// QoS as the API server computes it, for a pod whose status does not carry it.
fn computed_qos(core: &Core) -> &'static str {
    let (mut guaranteed, mut any) = (true, false);
    for spec in specs(&core.pod) {
        let resources = spec.resources.as_ref();
        let limits = resources.and_then(|resources| resources.limits.as_ref());
        let requests = resources.and_then(|resources| resources.requests.as_ref());
        for name in ["cpu", "memory"] {
            let (limit, request) =
                (limits.and_then(|limits| limits.get(name)), requests.and_then(|requests| requests.get(name)));
            any |= limit.is_some() || request.is_some();
            guaranteed &= limit.is_some() && request.is_none_or(|request| Some(request) == limit);
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

fn container_status(container: &Container, spec: &k8s_openapi::api::core::v1::Container, has_init: bool) -> Value {
    let mut status = Map::new();
    let mut put = |name: &str, value: Value| {
        status.insert(name.to_owned(), value);
    };
    put("name", json!(&*container.name));
    put("state", state(container, has_init));
    put("lastState", container.last.as_ref().map_or_else(|| json!({}), |last| json!({"terminated": terminated(last)})));
    put("ready", json!(container.is_ready()));
    put("restartCount", json!(container.restarts));
    put("image", json!(container.image));
    put("imageID", json!(&*container.image_id));
    if !container.container_id.is_empty() {
        put("containerID", json!(container.container_id));
    }
    if container.kind != Kind::Ephemeral {
        put("started", json!(matches!(container.state, State::Running { started: true, .. })));
    }
    if let Some(resources) = &spec.resources {
        let present = |value: &Value| value.as_object().is_some_and(|fields| !fields.is_empty());
        let resources = json!(resources);
        if let Some(requests) = resources.get("requests").filter(|requests| present(requests)) {
            put("allocatedResources", requests.clone());
        }
        if present(&resources) {
            put("resources", resources);
        }
    }
    let mounts: Vec<Value> = spec
        .volume_mounts
        .iter()
        .flatten()
        .map(|mount| {
            let mut shown = json!({"name": mount.name, "mountPath": mount.mount_path});
            if mount.read_only == Some(true) {
                shown["readOnly"] = json!(true);
                shown["recursiveReadOnly"] = json!("Disabled");
            }
            shown
        })
        .collect();
    if !mounts.is_empty() {
        put("volumeMounts", Value::Array(mounts));
    }
    Value::Object(status)
}

fn state(container: &Container, has_init: bool) -> Value {
    let waiting = |reason: &str, message: &str| match message {
        "" => json!({"waiting": {"reason": reason}}),
        _ => json!({"waiting": {"reason": reason, "message": cut(message)}}),
    };
    match &container.state {
        State::Waiting | State::Starting { shown: None } => {
            waiting(if has_init { "PodInitializing" } else { "ContainerCreating" }, "")
        }
        State::Failing { reason: FAILED_MOUNT, .. } => {
            waiting(if has_init { "PodInitializing" } else { "ContainerCreating" }, "")
        }
        State::Starting { shown: Some((reason, message)) } => waiting(reason, message),
        State::Failing { reason, message, .. } => waiting(reason, message),
        State::Running { since, .. } | State::Stopping { since, .. } => {
            json!({"running": {"startedAt": second(*since)}})
        }
        State::Ended { terminated: ended, .. } => json!({"terminated": terminated(ended)}),
        State::CrashLoop { message, .. } => waiting("CrashLoopBackOff", message),
    }
}

fn terminated(ended: &Terminated) -> Value {
    let mut shown = json!({
        "exitCode": ended.code,
        "startedAt": ended.started_at.map(second),
        "finishedAt": ended.finished_at.map(second),
    });
    for (name, text) in [("reason", &ended.reason), ("message", &ended.message), ("containerID", &ended.container_id)] {
        if !text.is_empty() {
            shown[name] = json!(cut(text));
        }
    }
    shown
}

/// `metav1.Time`: whole seconds.
fn second(time: jiff::Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
