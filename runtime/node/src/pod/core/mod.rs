//! The life of one pod as a pure state machine.
//!
//! [`Core::step`] takes one [`Input`] at one moment and returns the [`Command`]s that follow; it does no I/O and reads
//! no clock. Inputs change what is known; after each one [`Core::advance`] looks at everything that is known
//! and decides what should be under way (level-driven, as the kubelet does). What the API should show is computed
//! on demand by [`Core::status`].
//!
//! ```text
//!  Observed ─► Setup ─► init containers in order (sidecars stay) ─► containers ─► all ended ─► Release
//!                │            │ Start ► Started ► Exited ► back-off ► Start …          │
//!                └ retry      └ deletion, deadline: Stop ► Exited ─────────────────────┴─► Finalize (delete the object)
//! ```
//!
//! Exit codes of components: what the guest exits with; 134 for a trap (as `wasmtime run` and SIGABRT), 137 for out of
//! memory and for a kill after the grace period (SIGKILL), 143 for a guest ended by the stop of its pod (SIGTERM), 152 for
//! spent fuel (SIGXCPU), 255 when the node went away under it.

mod advance;
mod backoff;
mod container;
mod restore;
mod specs;
mod status;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::admission::{self, Refusal};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, EphemeralContainer, Pod};

pub use self::backoff::human;
pub use self::container::{Container, Exit, FAILED_MOUNT, Kind, State};
pub use self::specs::{Part, all as all_specs, mounted, names, part as part_of, specs};
pub(super) use self::status::OWNED_CONDITIONS;

/// A moment: monotonic since the node's start for waiting, wall clock for showing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Time since the node started.
    pub mono: Duration,
    /// Wall clock.
    pub wall: Timestamp,
}

/// Reason of a pod that the node has ended because of what it used.
pub(super) const EVICTED: &str = "Evicted";

/// Reasons that a pod which failed as a whole goes on giving.
pub(super) const REASONS: [&str; 7] = {
    let [cpu, memory, storage, pods, ports] = admission::REASONS;
    ["DeadlineExceeded", EVICTED, cpu, memory, storage, pods, ports]
};

/// Index of a container: init containers first, in the order of the spec, then the others, then ephemeral ones, which come while the
/// pod runs and stay.
pub type Index = usize;

/// Which of a container's lives is meant. A late answer about an earlier life is ignored.
pub type Run = u32;

/// What a probe is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ProbeKind {
    /// Holds the other probes back until it succeeds.
    Startup,
    /// Decides whether the pod gets traffic.
    Readiness,
    /// Decides whether the container is restarted.
    Liveness,
}

impl ProbeKind {
    /// As events spell it.
    pub fn title(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Readiness => "Readiness",
            Self::Liveness => "Liveness",
        }
    }
}

/// A container that did not come to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartFailure {
    /// Waiting reason, as `ErrImagePull` or `CreateContainerConfigError`.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

/// What happened.
#[derive(Debug)]
pub enum Input {
    /// The API object is new or changed.
    Observed(Arc<Pod>),
    /// The node has not what the pod asks for.
    Refused(Refusal),
    /// The API object is gone.
    Removed,
    /// Address and volumes are there, or not yet.
    SetUp(Result<IpAddr, String>),
    /// A ConfigMap or Secret that the pod refers to has changed.
    ConfigChanged,
    /// A container runs.
    Started {
        /// Which one.
        container: Index,
        /// Which of its lives.
        run: Run,
        /// For `containerID`.
        container_id: String,
        /// For `imageID`.
        image_id: Arc<str>,
    },
    /// A container could not be started.
    StartFailed {
        /// Which one.
        container: Index,
        /// Which of its lives.
        run: Run,
        /// Why.
        failure: StartFailure,
    },
    /// A container ended.
    Exited {
        /// Which one.
        container: Index,
        /// Which of its lives.
        run: Run,
        /// How.
        exit: Exit,
    },
    /// A probe's verdict changed.
    Probed {
        /// Which container.
        container: Index,
        /// Which of its lives.
        run: Run,
        /// Which probe.
        kind: ProbeKind,
        /// Its verdict.
        healthy: bool,
    },
    /// The node has no room for the pod any more, or the pod has taken more than it may: it ends as `Evicted`.
    Evict {
        /// For people.
        message: String,
    },
    /// The moment that [`Core::wake_at`] asked for, or one at which clocks have jumped.
    Wake,
    /// The node is going down: stop, but leave the API object to the next start.
    NodeStopping {
        /// Time for guests to end.
        grace: Duration,
    },
    /// What [`Command::Release`] or [`Command::Leave`] asked for is done.
    Released,
}

/// What the shell has to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Command {
    /// Allocate an address and make the volumes' sources known; answered by [`Input::SetUp`].
    SetUp {
        /// The address that the pod had before the node restarted.
        previous: Option<IpAddr>,
    },
    /// Bring changed ConfigMaps and Secrets to the mounted volumes.
    RefreshVolumes,
    /// Pull, prepare, run; answered by [`Input::Started`] or [`Input::StartFailed`], later [`Input::Exited`].
    Start {
        /// Which container.
        container: Index,
        /// Its new life.
        run: Run,
    },
    /// Begin probing.
    StartProbe {
        /// Which container.
        container: Index,
        /// Which of its lives.
        run: Run,
        /// Which probe.
        kind: ProbeKind,
    },
    /// End a container: preStop hook, stop, after `grace` kill; answered by [`Input::Exited`].
    Stop {
        /// Which container.
        container: Index,
        /// Which of its lives.
        run: Run,
        /// Time it has.
        grace: Duration,
    },
    /// Shorten the grace of a stop under way.
    Hurry {
        /// Which container.
        container: Index,
        /// Which of its lives.
        run: Run,
        /// Time it has from now.
        grace: Duration,
    },
    /// Record an event on the pod, or on one of its containers.
    Event {
        /// Which container it is about.
        container: Option<Index>,
        /// Whether it is a warning.
        warning: bool,
        /// Kubelet's reason.
        reason: &'static str,
        /// For people.
        message: String,
    },
    /// Give back address, volumes and mounts; logs stay. Answered by [`Input::Released`].
    Release,
    /// Give back the address: the pod goes on with its volumes in the node's next life. Answered by [`Input::Released`].
    Leave,
    /// Write the last status, then delete the API object with grace period 0 and its uid as precondition.
    Finalize,
    /// Forget the pod and delete its logs.
    Forget,
}

/// Why all containers of a pod are being ended.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Ending {
    /// The object has a deletion timestamp.
    Deleted,
    /// The object is gone already.
    Gone,
    /// The pod failed as a whole; why, is its [`Failure`], whatever else ends it afterwards.
    Failed,
    /// The node goes down.
    NodeStopping,
}

/// Why a pod failed as a whole. It goes on saying so.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Failure {
    reason: &'static str,
    message: String,
    /// When that was; none when it was in an earlier life of the node.
    since: Option<Timestamp>,
}

/// Address and volumes.
#[derive(Debug, Clone, PartialEq, Eq)]
enum SetupState {
    /// Not asked for yet.
    Absent,
    /// Under way.
    UnderWay,
    /// There.
    Done,
    /// Failed; again at this moment.
    Failed { retry_at: Duration },
    /// Given back.
    Released,
}

/// A condition that the node owns.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Condition {
    status: bool,
    reason: &'static str,
    message: String,
    since: Timestamp,
}

/// Everything known about one pod.
#[derive(Debug)]
pub struct Core {
    pod: Arc<Pod>,
    containers: Vec<Container>,
    setup: SetupState,
    setup_delay: Option<Duration>,
    address: Option<IpAddr>,
    previous_address: Option<IpAddr>,
    host_address: IpAddr,
    start_time: Option<Timestamp>,
    initialized: bool,
    ending: Option<Ending>,
    /// When the grace period of the ending is over.
    ending_by: Option<Duration>,
    deadline: Option<Duration>,
    /// A terminal phase is never left.
    terminal: Option<&'static str>,
    failure: Option<Failure>,
    /// The pod was bound without a word about it; the node says so, and goes on saying it.
    says_scheduled: bool,
    finalizing: bool,
    releasing: bool,
    forgotten: bool,
    had_run: bool,
    conditions: BTreeMap<&'static str, Condition>,
}

impl Core {
    /// A pod as the node first sees it. What its status says about an earlier life is taken up again, and what that life has kept as its
    /// [ends](Core::ends).
    pub fn new(pod: Arc<Pod>, ends: Vec<ContainerStatus>, host_address: IpAddr, now: Now) -> Self {
        restore::restore(pod, ends, host_address, now)
    }

    /// Takes in what happened and says what to do.
    pub fn step(&mut self, now: Now, input: Input) -> Vec<Command> {
        let mut commands = Vec::new();
        self.take(now, input, &mut commands);
        self.advance(now, &mut commands);
        commands
    }

    /// The API object as last seen.
    pub fn pod(&self) -> &Arc<Pod> {
        &self.pod
    }

    /// The containers, in the order of [`Index`].
    pub fn containers(&self) -> &[Container] {
        &self.containers
    }

    /// Whether something quick is under way whose result belongs in the same status write.
    pub fn is_settling(&self) -> bool {
        self.setup == SetupState::UnderWay
            || self.containers.iter().any(|container| container.is_settling())
            || (self.ending.is_none() && self.setup == SetupState::Absent && self.terminal.is_none())
    }

    /// Whether the object is being deleted, or the pod ended as a whole.
    pub fn is_ending(&self) -> bool {
        self.ending.is_some()
    }

    /// Whether the pod ends because its node does.
    pub fn is_leaving(&self) -> bool {
        matches!(self.ending, Some(Ending::NodeStopping))
    }

    /// Whether it ran on this node in an earlier life of it.
    pub fn had_life(&self) -> bool {
        self.start_time.is_some() || self.had_run
    }

    /// Whether the pod's object is gone or in its last phase: it has no claim on the node any more.
    pub fn is_over(&self) -> bool {
        self.terminal.is_some() || matches!(self.ending, Some(Ending::Gone))
    }

    /// Whether the shell may forget the pod.
    pub fn is_forgotten(&self) -> bool {
        self.forgotten
    }

    /// Whether nothing of the pod runs any more.
    pub fn is_stopped(&self) -> bool {
        self.containers.iter().all(|container| !container.is_alive())
    }

    fn take(&mut self, now: Now, input: Input, commands: &mut Vec<Command>) {
        match input {
            Input::Observed(pod) => self.observe(now, pod, commands),
            Input::Refused(Refusal { reason, message }) => {
                commands.push(Command::Event { container: None, warning: true, reason, message: message.clone() });
                self.fail(reason, message, now, Duration::ZERO, commands);
            }
            Input::Removed => self.end(Ending::Gone, now, Duration::ZERO, commands),
            Input::NodeStopping { grace } => self.end(Ending::NodeStopping, now, grace, commands),
            Input::SetUp(result) => self.set_up(now, result, commands),
            Input::ConfigChanged => self.config_changed(now, commands),
            Input::Started { container, run, container_id, image_id } => {
                if let Some(found) = self.current(container, run) {
                    let newly = found.start(now, container_id, image_id);
                    if newly {
                        self.had_run = true;
                        self.announce_start(container, run, commands);
                    }
                }
            }
            Input::StartFailed { container, run, failure } => {
                if let Some(found) = self.current(container, run) {
                    // Of a failed pull the shell has told the details; this event says the class (kubelet's `startContainer`).
                    let reason = if failure.reason == FAILED_MOUNT { FAILED_MOUNT } else { "Failed" };
                    let message = match failure.reason {
                        FAILED_MOUNT => failure.message.clone(),
                        "ErrImagePull" | "ErrImageNeverPull" | "InvalidImageName" => {
                            format!("Error: {}", failure.reason)
                        }
                        _ => format!("Error: {}", failure.message),
                    };
                    found.start_failed(now, failure);
                    commands.push(Command::Event { container: Some(container), warning: true, reason, message });
                }
            }
            Input::Exited { container, run, exit } => {
                if let Some(found) = self.current(container, run) {
                    found.exit(now, exit);
                }
            }
            Input::Probed { container, run, kind, healthy } => {
                self.probed(now, container, run, kind, healthy, commands)
            }
            Input::Evict { message } => self.evict(now, message, commands),
            // Time may have passed that the monotonic clock has not seen.
            Input::Wake => self.deadline = deadline_of(&self.pod, self.start_time, now),
            Input::Released => {
                self.releasing = false;
                self.setup = SetupState::Released;
            }
        }
    }

    fn evict(&mut self, now: Now, message: String, commands: &mut Vec<Command>) {
        if self.ending.is_some() || self.terminal.is_some() {
            return;
        }
        commands.push(Command::Event { container: None, warning: true, reason: EVICTED, message: message.clone() });
        // What it goes on writing is what it is ended for: no grace.
        self.fail(EVICTED, message, now, Duration::ZERO, commands);
    }

    fn current(&mut self, container: Index, run: Run) -> Option<&mut Container> {
        self.containers.get_mut(container).filter(|container| container.run == run)
    }

    fn observe(&mut self, now: Now, mut pod: Arc<Pod>, commands: &mut Vec<Command>) {
        // Ephemeral containers may come in front of others; an index means the same one for good.
        let place = |spec: &EphemeralContainer| {
            self.containers.iter().position(|known| *known.name == *spec.name).unwrap_or(usize::MAX)
        };
        let ephemeral = pod.spec.as_ref().and_then(|spec| spec.ephemeral_containers.as_deref());
        if !ephemeral.unwrap_or_default().is_sorted_by_key(place)
            && let Some(spec) = &mut Arc::make_mut(&mut pod).spec
        {
            spec.ephemeral_containers.iter_mut().for_each(|ephemeral| ephemeral.sort_by_key(place));
        }
        self.pod = pod;
        let policy = self.pod.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref()).unwrap_or("Always");
        for spec in specs::all(&self.pod).skip(self.containers.len()) {
            self.containers.push(Container::new(&spec, Part::Ephemeral, policy));
        }
        for (container, spec) in self.containers.iter_mut().zip(specs(&self.pod)) {
            if let Some(image) = &spec.image {
                container.wanted_image.clone_from(image);
            }
        }
        self.deadline = deadline_of(&self.pod, self.start_time, now);
        if self.pod.metadata.deletion_timestamp.is_some() {
            let grace = seconds(self.pod.metadata.deletion_grace_period_seconds.unwrap_or(0));
            self.end(Ending::Deleted, now, grace, commands);
        }
    }

    /// The pod fails as a whole.
    fn fail(&mut self, reason: &'static str, message: String, now: Now, grace: Duration, commands: &mut Vec<Command>) {
        self.failure.get_or_insert(Failure { reason, message, since: Some(now.wall) });
        self.end(Ending::Failed, now, grace, commands);
    }

    /// Begins to end the pod. A stronger reason replaces a weaker one, a shorter grace a longer one.
    fn end(&mut self, ending: Ending, now: Now, grace: Duration, commands: &mut Vec<Command>) {
        let rank = |ending: &Ending| match ending {
            Ending::Failed => 0,
            Ending::NodeStopping => 1,
            Ending::Deleted => 2,
            Ending::Gone => 3,
        };
        let by = now.mono + grace;
        match &self.ending {
            Some(current) if rank(current) >= rank(&ending) => {}
            _ => self.ending = Some(ending),
        }
        if self.ending_by.is_none_or(|current| by < current) {
            if self.ending_by.is_some() {
                for (container, found) in self.containers.iter().enumerate() {
                    if matches!(found.state, State::Stopping { .. }) {
                        commands.push(Command::Hurry { container, run: found.run, grace });
                    }
                }
            }
            self.ending_by = Some(by);
        }
    }

    fn set_up(&mut self, now: Now, result: Result<IpAddr, String>, commands: &mut Vec<Command>) {
        if self.setup != SetupState::UnderWay {
            return;
        }
        match result {
            Ok(address) => {
                self.address = Some(address);
                self.setup = SetupState::Done;
            }
            Err(message) => {
                let delay = self.setup_delay.map_or(backoff::SETUP_FIRST, |delay| (delay * 2).min(backoff::SETUP_MAX));
                self.setup_delay = Some(delay);
                self.setup = SetupState::Failed { retry_at: now.mono + delay };
                commands.push(Command::Event { container: None, warning: true, reason: "FailedMount", message });
            }
        }
    }

    fn config_changed(&mut self, now: Now, commands: &mut Vec<Command>) {
        if let SetupState::Failed { retry_at } = &mut self.setup {
            *retry_at = now.mono;
        }
        if self.setup == SetupState::Done {
            commands.push(Command::RefreshVolumes);
        }
        for container in &mut self.containers {
            container.config_changed(now);
        }
    }

    fn announce_start(&mut self, container: Index, run: Run, commands: &mut Vec<Command>) {
        for (reason, message) in [("Created", "Container created"), ("Started", "Container started")] {
            commands.push(Command::Event {
                container: Some(container),
                warning: false,
                reason,
                message: message.to_owned(),
            });
        }
        let found = &self.containers[container];
        if found.probes.startup {
            commands.push(Command::StartProbe { container, run, kind: ProbeKind::Startup });
        } else {
            self.start_other_probes(container, run, commands);
        }
    }

    fn start_other_probes(&self, container: Index, run: Run, commands: &mut Vec<Command>) {
        let probes = self.containers[container].probes;
        for (exists, kind) in [(probes.readiness, ProbeKind::Readiness), (probes.liveness, ProbeKind::Liveness)] {
            if exists {
                commands.push(Command::StartProbe { container, run, kind });
            }
        }
    }

    fn probed(
        &mut self,
        now: Now,
        index: Index,
        run: Run,
        kind: ProbeKind,
        healthy: bool,
        commands: &mut Vec<Command>,
    ) {
        let ending = self.ending.is_some();
        let grace = self.probe_grace(index, kind);
        let Some(container) = self.current(index, run) else { return };
        let State::Running { started, ready, .. } = &mut container.state else {
            if let (State::Stopping { ready, .. }, ProbeKind::Readiness) = (&mut container.state, kind) {
                *ready = healthy;
            }
            return;
        };
        match (kind, healthy) {
            (ProbeKind::Readiness, healthy) => *ready = Some(healthy),
            (ProbeKind::Startup, true) => {
                *started = true;
                if !container.probes.readiness
                    && let State::Running { ready, .. } = &mut container.state
                {
                    *ready = Some(true);
                }
                self.start_other_probes(index, run, commands);
            }
            (ProbeKind::Liveness, true) => {}
            (ProbeKind::Startup | ProbeKind::Liveness, false) if !ending => {
                let verb = if kind == ProbeKind::Startup { "startup" } else { "liveness" };
                let will = if container.restarts_at_all { ", will be restarted" } else { "" };
                let message = format!("Container {} failed {verb} probe{will}", container.name);
                container.stop(now);
                commands.push(Command::Event { container: Some(index), warning: false, reason: "Killing", message });
                commands.push(Command::Stop { container: index, run, grace });
            }
            (ProbeKind::Startup | ProbeKind::Liveness, false) => {}
        }
    }

    fn probe_grace(&self, index: Index, kind: ProbeKind) -> Duration {
        let spec = specs(&self.pod).nth(index);
        let probe = spec.and_then(|spec| match kind {
            ProbeKind::Startup => spec.startup_probe.as_ref(),
            ProbeKind::Readiness => spec.readiness_probe.as_ref(),
            ProbeKind::Liveness => spec.liveness_probe.as_ref(),
        });
        let own = probe.and_then(|probe| probe.termination_grace_period_seconds);
        seconds(own.or(self.pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds)).unwrap_or(30))
    }
}

/// `name_namespace(uid)`, as kubelet names a pod in messages.
fn full_name(pod: &Pod) -> String {
    let metadata = &pod.metadata;
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    format!("{}_{}({})", text(&metadata.name), text(&metadata.namespace), text(&metadata.uid))
}

/// A grace period as somebody has written it. Clocks have an end: a year is for ever.
fn seconds(value: i64) -> Duration {
    const YEAR: i64 = 365 * 24 * 3600;
    Duration::from_secs(value.clamp(0, YEAR).unsigned_abs())
}

fn deadline_of(pod: &Pod, start_time: Option<Timestamp>, now: Now) -> Option<Duration> {
    let active = pod.spec.as_ref()?.active_deadline_seconds?;
    let since = now.wall.duration_since(start_time?);
    let left = jiff::SignedDuration::from_secs(active) - since;
    Some(now.mono + Duration::try_from(left).unwrap_or(Duration::ZERO))
}
