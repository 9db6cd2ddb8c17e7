//! Row of a pod in a table.

use std::collections::{HashMap, HashSet};

use jiff::Timestamp;
use serde_json::Value;

use crate::kinds::value::{Read, or};
use crate::kinds::{Cell, table};

pub(super) fn cells(pod: &Value) -> Vec<Cell> {
    let (spec, status) = (&pod["spec"], &pod["status"]);
    let summary = Summary::of(pod);
    let restarts = match (summary.restarts, summary.last_restart) {
        (0, _) | (_, None) => summary.restarts.to_string().into(),
        (count, Some(since)) => Cell::WithAge { before: format!("{count} ("), since, after: " ago)".to_owned() },
    };
    vec![
        table::name(pod),
        format!("{}/{}", summary.ready, summary.total).into(),
        summary.word.into(),
        restarts,
        table::age(pod),
        or(status["podIPs"][0]["ip"].text(), "<none>").into(),
        or(spec["nodeName"].text(), "<none>").into(),
        or(status["nominatedNodeName"].text(), "<none>").into(),
        readiness_gates(pod).into(),
    ]
}

fn readiness_gates(pod: &Value) -> String {
    let gates = pod["spec"]["readinessGates"].items();
    if gates.is_empty() {
        return "<none>".to_owned();
    }
    // The first condition of a type counts.
    let conditions = pod["status"]["conditions"].items().iter().rev();
    let known: HashMap<&str, &Value> = conditions.map(|known| (known["type"].text(), &known["status"])).collect();
    let is_open = |gate: &&Value| known.get(gate["conditionType"].text()).is_some_and(|status| *status == "True");
    let open = gates.iter().filter(is_open).count();
    format!("{open}/{}", gates.len())
}

/// Whether the first condition of a type is true.
fn has_condition(pod: &Value, kind: &str) -> bool {
    let conditions = pod["status"]["conditions"].items();
    conditions.iter().find(|condition| condition["type"] == kind).is_some_and(|found| found["status"] == "True")
}

struct Summary {
    word: String,
    ready: usize,
    total: usize,
    restarts: i64,
    last_restart: Option<Timestamp>,
}

impl Summary {
    fn of(pod: &Value) -> Self {
        let (spec, status) = (&pod["spec"], &pod["status"]);
        let init = spec["initContainers"].items();
        let always = |container: &&Value| container["restartPolicy"] == "Always";
        let sidecars: HashSet<&str> = init.iter().filter(always).map(|container| container["name"].text()).collect();
        let mut summary = Self {
            word: or(status["reason"].text(), status["phase"].text()).to_owned(),
            ready: 0,
            total: spec["containers"].items().len() + init.iter().filter(always).count(),
            restarts: 0,
            last_restart: None,
        };
        if status["conditions"].items().iter().any(|c| c["type"] == "PodScheduled" && c["reason"] == "SchedulingGated")
        {
            summary.word = "SchedulingGated".to_owned();
        }
        let sidecars = summary.add_init_containers(status, init.len(), &sidecars);
        if sidecars.initialized || has_condition(pod, "Initialized") {
            summary.restarts = sidecars.restarts;
            summary.last_restart = sidecars.last_restart;
            summary.add_containers(pod);
        }
        if pod["metadata"]["deletionTimestamp"].is_set() {
            if status["reason"] == "NodeLost" {
                summary.word = "Unknown".to_owned();
            } else if !["Failed", "Succeeded"].contains(&status["phase"].text()) {
                summary.word = "Terminating".to_owned();
            }
        }
        summary
    }

    /// Counts init containers until the first that is not done; tells about those that keep running.
    fn add_init_containers(&mut self, status: &Value, total: usize, restartable: &HashSet<&str>) -> Sidecars {
        let mut sidecars = Sidecars { initialized: true, restarts: 0, last_restart: None };
        for (index, container) in status["initContainerStatuses"].items().iter().enumerate() {
            let is_sidecar = restartable.contains(container["name"].text());
            let finished = container["lastState"]["terminated"]["finishedAt"].time();
            self.restarts += container["restartCount"].int();
            self.last_restart = self.last_restart.max(finished);
            if is_sidecar {
                sidecars.restarts += container["restartCount"].int();
                sidecars.last_restart = sidecars.last_restart.max(finished);
            }
            let (terminated, waiting) = (&container["state"]["terminated"], &container["state"]["waiting"]);
            if terminated.is_set() && terminated["exitCode"].int() == 0 {
                continue;
            }
            if is_sidecar && container["started"].flag() {
                self.ready += usize::from(container["ready"].flag());
                continue;
            }
            self.word = if terminated.is_set() {
                format!("Init:{}", reason_of_end(terminated))
            } else if !["", "PodInitializing"].contains(&waiting["reason"].text()) {
                format!("Init:{}", waiting["reason"].text())
            } else {
                format!("Init:{index}/{total}")
            };
            sidecars.initialized = false;
            break;
        }
        sidecars
    }

    fn add_containers(&mut self, pod: &Value) {
        let (mut has_running, mut error) = (false, None);
        for container in pod["status"]["containerStatuses"].items().iter().rev() {
            self.restarts += container["restartCount"].int();
            self.last_restart = self.last_restart.max(container["lastState"]["terminated"]["finishedAt"].time());
            let state = &container["state"];
            if !state["waiting"]["reason"].is_empty() {
                self.word = state["waiting"]["reason"].text().to_owned();
            } else if state["terminated"].is_set() {
                self.word = reason_of_end(&state["terminated"]);
                if state["terminated"]["exitCode"].int() != 0 {
                    error = Some(self.word.clone());
                }
            } else if container["ready"].flag() && state["running"].is_set() {
                has_running = true;
                self.ready += 1;
            }
        }
        if self.word == "Completed" {
            if has_running && has_true_condition(pod, "Ready") {
                self.word = "Running".to_owned();
            } else if let Some(error) = error {
                self.word = error;
            } else if has_running {
                self.word = "NotReady".to_owned();
            }
        }
    }
}

/// What init containers that keep running contribute.
struct Sidecars {
    initialized: bool,
    restarts: i64,
    last_restart: Option<Timestamp>,
}

/// Whether any condition of a type is true.
fn has_true_condition(pod: &Value, kind: &str) -> bool {
    let conditions = pod["status"]["conditions"].items();
    conditions.iter().any(|condition| condition["type"] == kind && condition["status"] == "True")
}

fn reason_of_end(terminated: &Value) -> String {
    match (terminated["reason"].text(), terminated["signal"].int()) {
        ("", 0) => format!("ExitCode:{}", terminated["exitCode"].int()),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}
