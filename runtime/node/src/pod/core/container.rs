//! What is known about one container, and how its states follow each other.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container as Spec, ContainerRestartRule};

use super::backoff::{self, Backoff};
use super::{Now, Part, Run, StartFailure};

/// How long the first failure of a kind (`ErrImagePull`) is shown before the back-off (`ImagePullBackOff`) is.
const SHOW_FAILURE: Duration = Duration::from_secs(2);

/// A volume could not be made: told by an event, while the container is shown as being created.
pub const FAILED_MOUNT: &str = "FailedMount";

/// The part a container plays in its pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Runs to its end before the next one.
    Init,
    /// An init container with `restartPolicy: Always`: started in order, stays.
    Sidecar,
    /// An ordinary container.
    Regular,
    /// Put into the pod while it runs, to look at it: started at once, once, and nothing waits for it.
    Ephemeral,
}

impl Kind {
    /// Whether it is listed among the init containers.
    pub fn is_init(self) -> bool {
        matches!(self, Kind::Init | Kind::Sidecar)
    }
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// Exit code; see the head of [`super`] for those that are not the guest's own.
    pub code: i32,
    /// `Completed`, `Error` or `OOMKilled`.
    pub reason: &'static str,
    /// Termination message.
    pub message: String,
}

/// A life that is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terminated {
    /// Exit code.
    pub code: i32,
    /// Reason.
    pub reason: String,
    /// Termination message.
    pub message: String,
    /// When it began.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
    /// Its `containerID`.
    pub container_id: String,
}

/// Where a container is in its life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Not started: its turn has not come, or its start has not been asked for.
    Waiting,
    /// Its start is under way.
    Starting {
        /// What is shown meanwhile: why it does not run yet.
        shown: Option<(String, String)>,
    },
    /// Its start failed; again at `retry_at`.
    Failing {
        /// Waiting reason.
        reason: &'static str,
        /// For people.
        message: String,
        /// When the reason turns into its back-off form.
        show_until: Option<Duration>,
        /// When it is tried again.
        retry_at: Duration,
    },
    /// It runs.
    Running {
        /// Since when.
        since: Timestamp,
        /// Whether the startup probe has succeeded (or there is none).
        started: bool,
        /// The readiness probe's verdict; none yet is not ready.
        ready: Option<bool>,
    },
    /// It was told to end and has not yet.
    Stopping {
        /// Since when it ran.
        since: Timestamp,
        /// Whether its startup probe had succeeded.
        started: bool,
        /// The readiness probe goes on meanwhile.
        ready: bool,
    },
    /// It ended.
    Ended {
        /// How.
        terminated: Terminated,
        /// On the node's clock.
        finished: Duration,
    },
    /// It ended and will be started again at `retry_at`.
    CrashLoop {
        /// For people.
        message: String,
        /// When.
        retry_at: Duration,
    },
}

/// Which probes a container has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Probes {
    /// Startup probe.
    pub startup: bool,
    /// Readiness probe.
    pub readiness: bool,
    /// Liveness probe.
    pub liveness: bool,
}

/// A container of the pod.
#[derive(Debug)]
pub struct Container {
    /// Its name.
    pub name: Arc<str>,
    /// The part it plays.
    pub kind: Kind,
    /// Its current life; a new start is a new number.
    pub run: Run,
    /// Where it is.
    pub state: State,
    /// Its last life, if there was one before this.
    pub last: Option<Terminated>,
    /// How often it was started again.
    pub restarts: u32,
    /// The image that the spec asks for now.
    pub wanted_image: String,
    /// The image of the current life.
    pub image: String,
    /// `imageID` of the current life.
    pub image_id: Arc<str>,
    /// `containerID` of the current life.
    pub container_id: String,
    /// Its probes.
    pub probes: Probes,
    /// Whether its restart policy can ever start it again.
    pub restarts_at_all: bool,
    pub(super) crashes: Backoff,
    pub(super) failures: Backoff,
    policy: RestartPolicy,
    rules: Vec<ContainerRestartRule>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RestartPolicy {
    Always,
    OnFailure,
    Never,
}

impl RestartPolicy {
    fn parse(text: &str) -> Self {
        match text {
            "Never" => Self::Never,
            "OnFailure" => Self::OnFailure,
            _ => Self::Always,
        }
    }
}

impl Container {
    /// A container that has not run.
    pub(super) fn new(spec: &Spec, part: Part, pod_policy: &str) -> Self {
        let own = spec.restart_policy.as_deref();
        let kind = match (part, own) {
            (Part::Init, Some("Always")) => Kind::Sidecar,
            (Part::Init, _) => Kind::Init,
            (Part::Regular, _) => Kind::Regular,
            (Part::Ephemeral, _) => Kind::Ephemeral,
        };
        let mut policy = RestartPolicy::parse(own.unwrap_or(pod_policy));
        if kind == Kind::Ephemeral {
            policy = RestartPolicy::Never;
        }
        if kind == Kind::Init && policy == RestartPolicy::Always {
            // An init container that has succeeded is done.
            policy = RestartPolicy::OnFailure;
        }
        let image = spec.image.clone().unwrap_or_default();
        Self {
            name: spec.name.as_str().into(),
            kind,
            run: 0,
            state: State::Waiting,
            last: None,
            restarts: 0,
            wanted_image: image.clone(),
            image,
            image_id: "".into(),
            container_id: String::new(),
            probes: Probes {
                startup: spec.startup_probe.is_some(),
                readiness: spec.readiness_probe.is_some(),
                liveness: spec.liveness_probe.is_some(),
            },
            restarts_at_all: policy != RestartPolicy::Never,
            crashes: Backoff::default(),
            failures: Backoff::default(),
            policy,
            rules: spec.restart_policy_rules.clone().unwrap_or_default(),
        }
    }

    /// Whether an ending with this code is followed by a start.
    pub fn restarts_after(&self, code: i32) -> bool {
        let matches = |rule: &&ContainerRestartRule| {
            rule.exit_codes.as_ref().is_some_and(|codes| {
                let listed = codes.values.iter().flatten().any(|value| *value == code);
                match codes.operator.as_str() {
                    "In" => listed,
                    "NotIn" => !listed,
                    _ => false,
                }
            })
        };
        if self.rules.iter().find(matches).is_some_and(|rule| rule.action == "Restart") {
            return true;
        }
        match self.policy {
            RestartPolicy::Always => true,
            RestartPolicy::OnFailure => code != 0,
            RestartPolicy::Never => false,
        }
    }

    /// Whether it has ended with this code for good. Another image is started whatever the policy says.
    pub fn is_over(&self, code: i32) -> bool {
        self.image == self.wanted_image && !self.restarts_after(code)
    }

    /// Whether something of it is under way or runs.
    pub fn is_alive(&self) -> bool {
        matches!(self.state, State::Starting { .. } | State::Running { .. } | State::Stopping { .. })
    }

    pub(super) fn is_settling(&self) -> bool {
        match &self.state {
            State::Starting { .. } => true,
            // The first verdict of a readiness probe comes soon after the start.
            State::Running { started: true, ready: None, .. } => self.probes.readiness,
            _ => false,
        }
    }

    /// Whether it has ended well: what an init container must, before the next.
    pub fn is_completed(&self) -> bool {
        matches!(&self.state, State::Ended { terminated, .. } if terminated.code == 0)
    }

    /// Whether it has passed its startup probe and still runs.
    pub fn is_started(&self) -> bool {
        matches!(self.state, State::Running { started: true, .. } | State::Stopping { started: true, .. })
    }

    /// What the status shows as `ready`.
    pub fn is_ready(&self) -> bool {
        match (&self.state, self.kind) {
            (State::Ended { terminated, .. }, Kind::Init) => terminated.code == 0,
            (_, Kind::Init | Kind::Ephemeral) => false,
            (State::Running { started, ready, .. }, _) => *started && *ready == Some(true),
            (State::Stopping { ready, .. }, _) => *ready,
            _ => false,
        }
    }

    /// Begins a new life.
    pub(super) fn begin(&mut self) -> Run {
        // Another image has failed in nothing yet.
        let changed = self.image != self.wanted_image;
        if changed {
            self.failures.reset();
            self.crashes.reset();
        }
        let shown = match &self.state {
            _ if changed => None,
            State::Failing { reason: FAILED_MOUNT, .. } => None,
            State::Failing { reason, message, .. } => Some(((*reason).to_owned(), message.clone())),
            State::CrashLoop { message, .. } => Some(("CrashLoopBackOff".to_owned(), message.clone())),
            _ => None,
        };
        if let State::Ended { terminated, .. } = &self.state {
            self.last = Some(terminated.clone());
        }
        self.run += 1;
        self.image.clone_from(&self.wanted_image);
        self.state = State::Starting { shown };
        self.run
    }

    /// It runs; false when it has been told to stop meanwhile.
    pub(super) fn start(&mut self, now: Now, container_id: String, image_id: Arc<str>) -> bool {
        if !matches!(self.state, State::Starting { .. }) {
            return false;
        }
        if !self.container_id.is_empty() {
            self.restarts += 1;
        }
        self.container_id = container_id;
        self.image_id = image_id;
        self.failures.reset();
        let started = !self.probes.startup;
        let ready = (started && !self.probes.readiness).then_some(true);
        self.state = State::Running { since: now.wall, started, ready };
        true
    }

    pub(super) fn start_failed(&mut self, now: Now, failure: StartFailure) {
        self.failures.next(now.mono);
        let delay = self.failures.wait(now.mono).unwrap_or(backoff::FIRST);
        let show_until = (failure.reason == "ErrImagePull").then_some(now.mono + SHOW_FAILURE);
        self.state =
            State::Failing { reason: failure.reason, message: failure.message, show_until, retry_at: now.mono + delay };
    }

    pub(super) fn config_changed(&mut self, now: Now) {
        if let State::Failing { reason: "CreateContainerConfigError" | FAILED_MOUNT, retry_at, .. } = &mut self.state {
            *retry_at = now.mono;
        }
    }

    /// The pod has ended: one that waited to be started again is shown as it ended last.
    pub(super) fn settle(&mut self, now: Now) {
        if matches!(self.state, State::CrashLoop { .. })
            && let Some(terminated) = self.last.take()
        {
            self.state = State::Ended { terminated, finished: now.mono };
        }
    }

    pub(super) fn stop(&mut self, now: Now) {
        self.state = match &self.state {
            State::Running { since, started, ready } => {
                State::Stopping { since: *since, started: *started, ready: *ready == Some(true) }
            }
            State::Starting { .. } => State::Stopping { since: now.wall, started: false, ready: false },
            _ => return,
        };
    }

    pub(super) fn exit(&mut self, now: Now, exit: Exit) {
        let started_at = match &self.state {
            State::Running { since, .. } | State::Stopping { since, .. } => Some(*since),
            State::Starting { .. } => Some(now.wall),
            _ => return,
        };
        self.state = State::Ended {
            terminated: Terminated {
                code: exit.code,
                reason: exit.reason.to_owned(),
                message: exit.message,
                started_at,
                finished_at: Some(now.wall),
                container_id: self.container_id.clone(),
            },
            finished: now.mono,
        };
    }
}
