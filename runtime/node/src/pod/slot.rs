//! What the shell keeps of one pod.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use coracle_engine::{Command, HttpService, OpenSocket, Pipe, Usage};
use k8s_openapi::api::core::v1::{Container as Spec, Pod};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::admission::{self, Requested};
use super::core::{Core, Index, Run};
use super::files::Written;
use super::probe::ProbeState;
use super::report::Report;
use crate::addresses::PodAddress;
use crate::certificates::PodCertificates;
use crate::logs::{ContainerLog, Stream};
use crate::network::GuestNetwork;
use crate::tokens::PodTokens;
use crate::volumes::Shown;

/// One pod.
pub struct Slot {
    /// Its uid.
    pub uid: Arc<str>,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    state: Mutex<State>,
    /// Which volumes were written. Held while they are.
    pub(super) written: tokio::sync::Mutex<Written>,
    /// Its certificates and tokens: who asks for one holds none of these locks.
    pub(super) certificates: PodCertificates,
    pub(super) tokens: PodTokens,
    /// Held by the thread that writes or removes anything below the pod's directory, until it is done.
    pub(super) on_disk: Arc<tokio::sync::Mutex<()>>,
    /// What it asks for of the node.
    pub(super) requested: Requested,
    /// Whether it was promised that.
    pub(super) has_room: AtomicBool,
    /// Whether there is anything below the pod's directory.
    has_files: AtomicBool,
    /// Whether a container has a writable directory beside its volumes.
    has_own_files: AtomicBool,
    /// What files of volumes held that are shown to each container alone, when it was started; none before that.
    shown: Mutex<Vec<Option<Shown>>>,
}

/// What changes.
pub(super) struct State {
    pub core: Core,
    pub network: Option<Arc<GuestNetwork>>,
    pub containers: Vec<Container>,
    pub probes: Vec<ProbeState>,
    pub report: Report,
    /// The moment for which the pod's timer is set.
    pub wake: Option<Duration>,
}

/// The shell's side of a container.
#[derive(Default)]
pub(super) enum Container {
    /// Nothing runs.
    #[default]
    Idle,
    /// A task is about to start it.
    Starting { run: Run, cancel: CancellationToken },
    /// It runs.
    Running(Life),
    /// It runs and was told to end; the deadline can come nearer.
    Stopping { life: Life, deadline: watch::Sender<Instant> },
}

/// One life of a container.
#[derive(Clone)]
pub(super) struct Life {
    pub run: Run,
    pub handle: Handle,
    pub log: Arc<Log>,
    /// What it reads of those who are attached.
    pub stdin: Option<Arc<Stdin>>,
    /// When it began, for the first probes.
    pub since: Instant,
    /// Whether it can listen at sockets.
    pub has_sockets: bool,
    /// Told to end: what only waits on its behalf stops waiting.
    pub stopping: CancellationToken,
    /// Over: nothing of it runs any more.
    pub over: CancellationToken,
}

/// What a container prints, and what it leaves.
pub(super) struct Log {
    pub log: Arc<ContainerLog>,
    pub stdout: Arc<Stream>,
    pub stderr: Arc<Stream>,
    /// Its termination message, if it was given a file for one.
    pub message: Option<std::path::PathBuf>,
}

impl Log {
    /// Writes what is left; nothing more will come.
    pub fn finish(&self) {
        self.stdout.flush();
        self.stderr.flush();
        self.log.finish();
    }
}

/// The standard input of one life of a container that has `stdin`. It is open from its start.
pub struct Stdin {
    /// What it reads.
    pub pipe: Pipe,
    /// With `stdinOnce` it ends with the first client that says no more.
    is_once: bool,
}

impl Stdin {
    /// The input of a container that asks for one.
    pub(super) fn of(spec: &Spec) -> Option<Arc<Stdin>> {
        let is_once = spec.stdin_once == Some(true);
        let stdin = || Stdin { pipe: Pipe::default(), is_once };
        (spec.stdin == Some(true)).then(|| Arc::new(stdin()))
    }

    /// A client says no more.
    pub fn leave(&self) {
        if self.is_once {
            self.pipe.end();
        }
    }

    /// Whether it has ended: so, or by a key of a client's terminal.
    pub fn is_over(&self) -> bool {
        self.pipe.is_ended()
    }
}

/// A running component.
#[derive(Clone)]
pub enum Handle {
    /// It runs by itself.
    Command(Command),
    /// It runs when it is called.
    Http(HttpService),
}

impl Handle {
    /// Counts a socket that the node opens on its behalf among its own; none when it has as many as it may.
    pub fn open_socket(&self) -> Option<OpenSocket> {
        match self {
            Self::Command(command) => command.open_socket(),
            Self::Http(service) => service.open_socket(),
        }
    }

    /// What it has used.
    pub fn usage(&self) -> Usage {
        match self {
            Self::Command(command) => command.usage(),
            Self::Http(service) => service.usage(),
        }
    }
}

impl Slot {
    /// A pod with nothing running.
    pub fn new(uid: Arc<str>, pod: &Pod, core: Core) -> Self {
        let text = |value: &Option<String>| Arc::from(value.as_deref().unwrap_or_default());
        let containers = core.containers().iter().map(|_| Container::default()).collect();
        let shown = Mutex::new(core.containers().iter().map(|_| None).collect());
        // A pod with a start time may have files of an earlier life of the node.
        let had_life = pod.status.as_ref().is_some_and(|status| status.start_time.is_some());
        Self {
            uid,
            namespace: text(&pod.metadata.namespace),
            name: text(&pod.metadata.name),
            state: Mutex::new(State {
                core,
                network: None,
                containers,
                probes: Vec::new(),
                report: Report::default(),
                wake: None,
            }),
            written: tokio::sync::Mutex::default(),
            certificates: PodCertificates::default(),
            tokens: PodTokens::default(),
            on_disk: Arc::default(),
            requested: admission::requested(pod),
            has_room: AtomicBool::new(false),
            has_files: AtomicBool::new(had_life),
            has_own_files: AtomicBool::new(had_life),
            shown,
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// The API object as last seen.
    pub fn pod(&self) -> Arc<Pod> {
        self.lock().core.pod().clone()
    }

    /// The pod's address while it has one.
    pub fn address(&self) -> Option<PodAddress> {
        self.lock().network.as_ref().map(|network| network.address)
    }

    /// The log of a container's present life, if it has one.
    pub fn live_log(&self, container: Index) -> Option<(Run, Arc<ContainerLog>)> {
        self.lock().containers.get(container)?.life().map(|life| (life.run, life.log.log.clone()))
    }

    /// The input of a container's present life, if it has one, and who reads it.
    pub fn stdin(&self, container: Index) -> Option<(Arc<Stdin>, Handle)> {
        let state = self.lock();
        let life = state.containers.get(container)?.life()?;
        Some((life.stdin.clone()?, life.handle.clone()))
    }

    /// Running containers by name, and since when they run.
    pub fn running(&self) -> Vec<(Arc<str>, Handle, Instant)> {
        let state = self.lock();
        let names = state.core.containers().iter().map(|container| container.name.clone());
        let lives = state.containers.iter().map(Container::life);
        let one = |(name, life): (_, Option<&Life>)| life.map(|life| (name, life.handle.clone(), life.since));
        names.zip(lives).filter_map(one).collect()
    }

    /// Looks at the state machine.
    pub fn with_core<T>(&self, look: impl FnOnce(&mut Core) -> T) -> T {
        look(&mut self.lock().core)
    }

    pub(super) fn set_has_files(&self) {
        self.has_files.store(true, Ordering::Release);
    }

    pub(super) fn set_has_own_files(&self) {
        self.has_own_files.store(true, Ordering::Release);
    }

    /// Whether a container has a writable directory beside its volumes.
    pub fn has_own_files(&self) -> bool {
        self.has_own_files.load(Ordering::Acquire)
    }

    /// None while that is not known.
    pub(super) fn set_shown(&self, container: Index, shown: Option<Shown>) {
        let mut all = self.shown.lock();
        if container >= all.len() {
            all.resize(container + 1, None);
        }
        all[container] = shown;
    }

    /// Bytes of copies that the other containers of the pod have.
    pub(super) fn copied_beside(&self, container: Index) -> u64 {
        let shown = self.shown.lock();
        let others = shown.iter().enumerate().filter(|(index, _)| *index != container);
        others.filter_map(|(_, shown)| *shown).map(|shown| shown.copied_bytes).sum()
    }

    /// By container, what files of volumes held that are shown to it alone, when it was started; none for one that this process has not
    /// started, which runs nothing: what an earlier one has left beside its volumes goes before it starts, and may all be files of volumes.
    pub fn shown_bytes(&self) -> Vec<Option<u64>> {
        self.shown.lock().iter().map(|shown| shown.map(|shown| shown.bytes)).collect()
    }

    /// Whether there is anything below the pod's directory.
    pub fn has_files(&self) -> bool {
        self.has_files.load(Ordering::Acquire)
    }
}

impl Container {
    /// The life that is under way.
    pub fn life(&self) -> Option<&Life> {
        match self {
            Self::Running(life) | Self::Stopping { life, .. } => Some(life),
            Self::Idle | Self::Starting { .. } => None,
        }
    }
}

impl State {
    /// Has room for containers that came while the pod runs.
    pub fn grow(&mut self) {
        let count = self.core.containers().len();
        self.containers.resize_with(count, Container::default);
    }

    /// The life of this number, if it is the present one.
    pub fn life(&self, container: Index, run: Run) -> Option<&Life> {
        self.containers.get(container)?.life().filter(|life| life.run == run)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::super::core::Now;
    use super::*;

    #[test]
    fn copies_count_for_the_other_containers_of_a_pod() {
        let spec = json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}, {"name": "c"}]}});
        let pod: Arc<Pod> = Arc::new(serde_json::from_value(spec).unwrap());
        let now = Now { mono: Duration::ZERO, wall: jiff::Timestamp::UNIX_EPOCH };
        let slot = Slot::new("u".into(), &pod, Core::new(pod.clone(), "192.168.0.1".parse().unwrap(), now));
        slot.set_shown(0, Some(Shown { bytes: 12, copied_bytes: 4 }));
        slot.set_shown(2, Some(Shown { bytes: 2, copied_bytes: 1 }));
        assert_eq!([0, 1, 2].map(|container| slot.copied_beside(container)), [1, 5, 4]);
        assert_eq!(slot.shown_bytes(), [Some(12), None, Some(2)]);
    }
}
