//! Taking up again what the API object says about an earlier life of the pod, after the node was restarted.
//!
//! Nothing of a pod outlives the node's process. A container that the status calls running ended with it: it is shown
//! as terminated (exit code 255, reason `Unknown`, as container runtimes say it) and its restart policy decides. What
//! ended before, or was completed before (init containers), stays as it was; also where nobody could be told of it then, which the
//! earlier life has kept.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ContainerStateTerminated, ContainerStatus, Pod, PodStatus};

use super::container::{Container, State, Terminated};
use super::status::OWNED_CONDITIONS;
use super::{Condition, Core, Failure, Now, Part, REASONS, Run, SetupState, deadline_of, specs};

/// Exit code of a container whose end nobody saw.
const LOST: i32 = 255;

pub(super) fn restore(pod: Arc<Pod>, ends: Vec<ContainerStatus>, host_address: IpAddr, now: Now) -> Core {
    let status = pod.status.clone().unwrap_or_default();
    let begun = ends.iter().filter_map(|end| end.state.as_ref()?.terminated.as_ref()?.started_at.as_ref());
    let begun = begun.map(|time| time.0).min();
    let start_time = status.start_time.as_ref().map(|time| time.0).or(begun);
    let containers = containers(&pod, &status, ends, now);
    let terminal = match status.phase.as_deref() {
        Some("Succeeded") => Some("Succeeded"),
        Some("Failed") => Some("Failed"),
        _ => None,
    };
    let failure = status.reason.as_deref().filter(|_| terminal == Some("Failed"));
    let failure = failure.and_then(|given| REASONS.into_iter().find(|reason| *reason == given));
    let message = || status.message.clone().unwrap_or_default();
    let failure = failure.map(|reason| Failure { reason, message: message(), since: None });
    let host_network = pod.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or(false);
    Core {
        initialized: containers.iter().any(|c| !c.container_id.is_empty()) && is_initialized(&status),
        had_run: containers.iter().any(|container| !container.container_id.is_empty()),
        deadline: deadline_of(&pod, start_time, now),
        address: None,
        previous_address: status.pod_ip.as_deref().filter(|_| !host_network).and_then(|address| address.parse().ok()),
        host_address,
        start_time,
        terminal,
        failure,
        conditions: conditions(&status, now),
        says_scheduled: !status.conditions.iter().flatten().any(|condition| condition.type_ == "PodScheduled"),
        pod,
        containers,
        setup: SetupState::Absent,
        setup_delay: None,
        ending: None,
        ending_by: None,
        finalizing: false,
        releasing: false,
        forgotten: false,
    }
}

fn is_initialized(status: &PodStatus) -> bool {
    let conditions = status.conditions.as_deref().unwrap_or_default();
    conditions.iter().any(|condition| condition.type_ == "Initialized" && condition.status == "True")
}

fn containers(pod: &Pod, status: &PodStatus, mut ends: Vec<ContainerStatus>, now: Now) -> Vec<Container> {
    let policy = pod.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref()).unwrap_or("Always");
    let find = |list: &Option<Vec<ContainerStatus>>, name: &str| {
        list.iter().flatten().find(|status| status.name == name).cloned()
    };
    specs::all(pod)
        .enumerate()
        .map(|(index, spec)| {
            let part = specs::part(pod, index);
            let list = match part {
                Part::Init => &status.init_container_statuses,
                Part::Regular => &status.container_statuses,
                Part::Ephemeral => &status.ephemeral_container_statuses,
            };
            let mut container = Container::new(&spec, part, policy);
            let end = ends.iter().position(|end| end.name == spec.name).map(|at| ends.swap_remove(at));
            if let Some(status) = newer(find(list, &spec.name), end) {
                take_up(&mut container, status, now);
            }
            container
        })
        .collect()
}

/// What counts of a container: what was told, or what was kept of its end. That is it of a later life, or of one that is told of as if it
/// went on.
fn newer(told: Option<ContainerStatus>, end: Option<ContainerStatus>) -> Option<ContainerStatus> {
    let (Some(status), Some(kept)) = (&told, &end) else { return told.or(end) };
    let run = |status: &ContainerStatus| status.container_id.as_deref().and_then(run_of);
    let is_later = match run(kept).cmp(&run(status)) {
        Ordering::Less => false,
        Ordering::Greater => true,
        Ordering::Equal => {
            kept.container_id == status.container_id
                && status.state.as_ref().is_some_and(|state| state.running.is_some())
        }
    };
    if is_later { end } else { told }
}

fn take_up(container: &mut Container, status: ContainerStatus, now: Now) {
    container.restarts = u32::try_from(status.restart_count).unwrap_or(0);
    container.container_id = status.container_id.unwrap_or_default();
    container.image_id = status.image_id.into();
    // Runs go on counting, so that the logs of an earlier life are found and not written over. Starts that failed have counted, too.
    let counted = container.restarts.saturating_add(u32::from(!container.container_id.is_empty()));
    container.run = run_of(&container.container_id).unwrap_or(counted);
    container.last = status.last_state.and_then(|state| state.terminated).map(terminated);
    let Some(state) = status.state else { return };
    let ended = match (state.terminated, state.running) {
        (Some(state), _) => terminated(state),
        (None, Some(running)) => Terminated {
            code: LOST,
            reason: "Unknown".to_owned(),
            message: "The node was restarted while the container ran".to_owned(),
            started_at: running.started_at.map(|time| time.0),
            finished_at: Some(now.wall),
            container_id: container.container_id.clone(),
        },
        (None, None) => return,
    };
    container.state = State::Ended { terminated: ended, finished: now.mono };
}

/// Which life a `containerID` names (`start::container_id`).
fn run_of(container_id: &str) -> Option<Run> {
    const CONTAINER_DIGITS: usize = 4;
    const RUN_DIGITS: usize = 8;
    let digits = container_id.strip_prefix("wasmtime://")?;
    let end = digits.get(digits.len().checked_sub(CONTAINER_DIGITS + RUN_DIGITS)?..)?;
    let is_hex = end.bytes().all(|byte| byte.is_ascii_hexdigit());
    // There have to be lives left to count.
    Run::from_str_radix(end.get(CONTAINER_DIGITS..)?, 16).ok().filter(|run| is_hex && *run < Run::MAX / 2)
}

fn terminated(state: ContainerStateTerminated) -> Terminated {
    Terminated {
        code: state.exit_code,
        reason: state.reason.unwrap_or_default(),
        message: state.message.unwrap_or_default(),
        started_at: state.started_at.map(|time| time.0),
        finished_at: state.finished_at.map(|time| time.0),
        container_id: state.container_id.unwrap_or_default(),
    }
}

fn conditions(status: &PodStatus, now: Now) -> BTreeMap<&'static str, Condition> {
    let mut found = BTreeMap::new();
    for condition in status.conditions.iter().flatten() {
        if let Some(name) = OWNED_CONDITIONS.iter().find(|name| **name == condition.type_) {
            let since = condition.last_transition_time.as_ref().map_or(now.wall, |time| time.0);
            let status = condition.status == "True";
            found.insert(*name, Condition { status, reason: "", message: String::new(), since });
        }
    }
    found
}
