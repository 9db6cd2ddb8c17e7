//! What an instance is given: everything it can see and use, and how much of it.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::task::{Context, Poll};

use crate::{Network, NoNetwork, Outbound, Pipe, Qos};

/// What an instance is given.
#[derive(Clone)]
pub struct Spec {
    /// For messages: namespace, pod and container.
    pub name: String,
    /// Whose containers have a share of the node's descriptors together.
    pub namespace: Arc<str>,
    /// Arguments; the first one is the program's name.
    pub args: Vec<String>,
    /// Environment.
    pub env: Vec<(String, String)>,
    /// What the guest is told as its initial directory.
    pub working_dir: Option<String>,
    /// Directories.
    pub mounts: Vec<Mount>,
    /// What stays open as long as instances may be made: a mount's path may name a descriptor of this process.
    pub held: Vec<Arc<OwnedFd>>,
    /// Standard input; without it, there is none to read.
    pub stdin: Option<Pipe>,
    /// Standard output.
    pub stdout: Arc<dyn Sink>,
    /// Standard error; the engine writes here, too, when the guest traps.
    pub stderr: Arc<dyn Sink>,
    /// Whether the guest is told that it talks with a terminal.
    pub is_terminal: bool,
    /// Bytes of all instances together: linear memories, tables, and what the host holds for them (headers, bodies,
    /// handles). Without it, all that the node has for guests.
    pub memory_bytes_max: Option<u64>,
    /// Bytes that it asked for: up to these it is not the one that ends when the node's memory is used up.
    pub memory_bytes_request: Option<u64>,
    /// Its pod's class: who ends first.
    pub qos: Qos,
    /// Thousandths of a CPU, as a quota of time for all instances together.
    pub cpu_millis_max: Option<u64>,
    /// Thousandths of a CPU that it asked for: its weight among the guests that compute.
    pub cpu_millis_request: Option<u64>,
    /// Fuel of a command to its end, and of an instance of a service for each request: one that is used again is filled up before it. Time
    /// costs fuel, too: a slice that ends by the clock costs as much as one that ends by fuel, up to 1,000,000.
    pub fuel_max: Option<u64>,
    /// What its sockets reach.
    pub network: Arc<dyn Network>,
    /// Where its outgoing HTTP requests go.
    pub outbound: Arc<dyn Outbound>,
}

impl Spec {
    /// Nothing given, nothing limited, output dropped.
    pub fn new(name: impl Into<String>) -> Spec {
        Spec {
            name: name.into(),
            namespace: "".into(),
            args: Vec::new(),
            env: Vec::new(),
            working_dir: None,
            mounts: Vec::new(),
            held: Vec::new(),
            stdin: None,
            stdout: Arc::new(Discard),
            stderr: Arc::new(Discard),
            is_terminal: false,
            memory_bytes_max: None,
            memory_bytes_request: None,
            qos: Qos::default(),
            cpu_millis_max: None,
            cpu_millis_request: None,
            fuel_max: None,
            network: Arc::new(NoNetwork),
            outbound: Arc::new(NoNetwork),
        }
    }
}

/// A directory for a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Where it is on this machine.
    pub host: PathBuf,
    /// Where the guest sees it.
    pub guest: String,
    /// Whether the guest may change it.
    pub read_only: bool,
}

/// Bytes that a guest may write at once. Where each of them ends a line, a log has fifty times as many to write.
pub(crate) const WRITE_BYTES_MAX: usize = 16 << 10;

/// Where a guest's output goes.
///
/// Called on the thread that runs the guest. It may take its time within reason (a write into the page cache): that
/// is what slows down a guest that floods its log, and nobody else. What takes longer has a guest wait for room.
pub trait Sink: Send + Sync + 'static {
    /// Takes what was printed; what the engine has to say as well where there is no room.
    fn write(&self, bytes: &[u8]);

    /// Takes what a guest was permitted to write; false when there is no room for it. Others may have taken the room that it had seen:
    /// once more of what may be written at once (16 KiB) is taken beyond it.
    fn take(&self, bytes: &[u8]) -> bool {
        self.write(bytes);
        true
    }

    /// Bytes that a guest may write now.
    fn room(&self) -> usize {
        usize::MAX
    }

    /// Whether there is any room; if not, the task is woken when there is.
    fn poll_room(&self, _context: &mut Context<'_>) -> Poll<()> {
        Poll::Ready(())
    }
}

impl<F: Fn(&[u8]) + Send + Sync + 'static> Sink for F {
    fn write(&self, bytes: &[u8]) {
        self(bytes);
    }
}

/// Drops what is written.
#[derive(Clone, Copy, Debug, Default)]
pub struct Discard;

impl Sink for Discard {
    fn write(&self, _bytes: &[u8]) {}
}
