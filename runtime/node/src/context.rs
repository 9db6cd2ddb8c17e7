//! What the parts of a node share.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::clock::Wall;
use crate::config::Config;
use crate::disk::Disk;
use crate::events::{Record, Recorder};
use crate::images::Images;
use crate::ingress::Gateway;
use crate::logs::OpenFiles;
use crate::machine::Machine;
use crate::network::Network;
use crate::objects::Objects;
use crate::pod::core::Now;
use crate::volumes::kept::Kept;

/// What the parts of a node share.
pub struct Context {
    /// What the node was told.
    pub config: Config,
    /// The API.
    pub client: kube::Client,
    /// Events.
    pub recorder: Recorder,
    /// ConfigMaps and Secrets.
    pub objects: Objects,
    /// Images.
    pub images: Images,
    /// The engine.
    pub engine: coracle_engine::Engine,
    /// Addresses, Services, routes.
    pub network: Arc<Network>,
    /// Where Ingresses are served.
    pub gateway: Arc<Gateway>,
    /// What the machine has.
    pub machine: Machine,
    /// What of it pods may ask for, as the downward API shows it.
    pub allocatable: BTreeMap<&'static str, u64>,
    /// The disk that all of this is on.
    pub disk: Disk,
    /// The clock on the wall.
    pub wall: Wall,
    /// Counts jumps of time.
    pub jumps: watch::Sender<u64>,
    /// Why this process ends: another one is the node. From then on it says nothing of its pods.
    pub replaced: watch::Sender<Option<String>>,
    /// Open log files.
    pub open_logs: OpenFiles,
    /// Where logs are.
    pub logs_dir: PathBuf,
    /// Where the pods' own volumes are.
    pub pods_dir: PathBuf,
    /// Volumes that outlive pods.
    pub kept: Kept,
    /// Everything that was spawned and must end before the node has ended.
    pub tasks: TaskTracker,
    /// The origin of [`Now::mono`].
    pub started: Instant,
}

impl Context {
    /// This moment.
    pub fn now(&self) -> Now {
        Now { mono: self.started.elapsed(), wall: self.wall.now() }
    }

    /// Records an event about the node itself. Kubelet uses the node's name as its uid.
    pub fn node_event(&self, warning: bool, reason: &'static str, message: String) {
        let name: Arc<str> = self.config.name.as_str().into();
        self.recorder.record(Record {
            kind: "Node",
            namespace: "".into(),
            name: name.clone(),
            uid: name,
            field_path: None,
            warning,
            reason,
            message,
        });
    }
}
