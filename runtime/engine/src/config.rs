//! What an engine is told at its start.

use std::path::PathBuf;
use std::time::Duration;

use crate::machine;

/// Everything an engine is told.
#[derive(Clone, Debug)]
pub struct Config {
    /// Holds compiled components. Made with mode 0700: whoever can write here runs code in this process.
    pub cache_dir: PathBuf,
    /// Bound of that directory; what was not used for longest goes first.
    pub cache_bytes_max: u64,
    /// Instances that may live at the same time; fewer where the kernel does not allow as many.
    pub instances_max: u32,
    /// Where components are compiled.
    pub compiler: Compiler,
    /// Address space of one compiler process. A component of 40 MB takes some 600 MB.
    pub compile_bytes_max: u64,
    /// How long one compiler process may take. A component of 40 MB takes some 30 seconds, the largest one seen 104.
    pub compile_time_max: Duration,
    /// Threads on which guests compute, and as many that serve their traffic.
    pub guest_threads: usize,
    /// Bytes that all guests may hold together; at it, guests end, the process never does.
    pub memory_bytes_max: u64,
}

impl Config {
    /// Defaults for a node that keeps its cache in `cache_dir`.
    pub fn new(cache_dir: impl Into<PathBuf>) -> Config {
        Config {
            cache_dir: cache_dir.into(),
            cache_bytes_max: 8 << 30,
            instances_max: 10_000,
            compiler: Compiler::InProcess,
            compile_bytes_max: 4 << 30,
            compile_time_max: Duration::from_secs(600),
            guest_threads: std::thread::available_parallelism().map_or(2, usize::from),
            memory_bytes_max: machine::memory_bytes() / 4 * 3,
        }
    }
}

/// Where components are compiled.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Compiler {
    /// On a thread of this process: for tests and programs that trust their components.
    #[default]
    InProcess,
    /// In a process of its own, limited and of low priority: `EXE compile ARGUMENT…`, which is to call
    /// [`compile_worker`](crate::compile_worker).
    Process(PathBuf),
}
