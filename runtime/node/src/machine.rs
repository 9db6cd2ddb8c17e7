//! What the machine has.

use std::fs;
use std::path::Path;

use crate::config::{Capacity, Cidr};

/// Memory maps that a parked command guest costs, measured (`shared/runtime-limits.md` §5, §9 item 13).
const MAPS_PER_POD: f64 = 6.5;
/// Guests of one process that fit into the address space with full reservations (same source).
const PODS_MAX: u64 = 29_000;
/// Memory that a small pod costs at least, with all its bookkeeping.
const POD_BYTES: u64 = 100 << 10;
/// Kept for the node itself.
const RESERVED_BYTES: u64 = 128 << 20;
/// What Linux allows a process by default.
const MAP_COUNT_DEFAULT: u64 = 65_530;

/// What the node says it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Machine {
    /// Thousandths of a CPU.
    pub cpu_millis: u64,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Bytes of the file system that holds the node's data.
    pub storage_bytes: u64,
    /// Pods.
    pub pods: u64,
}

impl Machine {
    /// Asks the machine.
    pub fn read(overrides: Capacity, range: Cidr, data_dir: &Path) -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, |count| count.get() as u64);
        let memory = [meminfo("MemTotal:"), cgroup_memory()].into_iter().flatten().min().unwrap_or(1 << 30);
        let memory_bytes = overrides.memory_bytes.unwrap_or(memory);
        let maps = fs::read_to_string("/proc/sys/vm/max_map_count").ok();
        let maps = maps.and_then(|text| text.trim().parse().ok()).unwrap_or(MAP_COUNT_DEFAULT);
        let pods = pods(maps, memory_bytes);
        Self {
            cpu_millis: overrides.cpu_millis.unwrap_or(cpus * 1000),
            memory_bytes,
            storage_bytes: storage(data_dir).map_or(0, |(total, _)| total),
            pods: overrides.pods.map_or(pods, u64::from).min(u64::from(range.capacity())),
        }
    }

    /// Memory that pods may ask for.
    pub fn allocatable_memory_bytes(&self) -> u64 {
        self.memory_bytes.saturating_sub(RESERVED_BYTES).max(self.memory_bytes / 2)
    }
}

/// How many pods fit, rounded down to what people can remember.
fn pods(max_map_count: u64, memory_bytes: u64) -> u64 {
    let by_maps = (max_map_count as f64 / MAPS_PER_POD) as u64;
    let by_memory = memory_bytes.saturating_sub(RESERVED_BYTES) / POD_BYTES;
    let fits = by_maps.min(by_memory).clamp(10, PODS_MAX);
    if fits >= 1000 { fits / 1000 * 1000 } else { fits / 10 * 10 }
}

/// A line of `/proc/meminfo`, in bytes.
pub fn meminfo(name: &str) -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
}

fn cgroup_memory() -> Option<u64> {
    ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"]
        .iter()
        .find_map(|path| fs::read_to_string(path).ok()?.trim().parse().ok())
}

/// Total and available bytes of the file system that holds `path`.
pub fn storage(path: &Path) -> Option<(u64, u64)> {
    let stat = rustix::fs::statvfs(path).ok()?;
    Some((stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize))
}

/// Total and available files of the file system that holds `path`; `None` where it does not count them.
pub fn inodes(path: &Path) -> Option<(u64, u64)> {
    let stat = rustix::fs::statvfs(path).ok()?;
    (stat.f_files > 0).then_some((stat.f_files, stat.f_favail))
}

/// Resident memory of this process in bytes.
pub fn resident_bytes() -> Option<u64> {
    let text = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = text.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_follow_maps_and_memory() {
        for (maps, memory, expected) in [
            (65_530, 24 << 30, 10_000),
            (1_048_576, 24 << 30, 29_000),
            (65_530, 256 << 20, 1000),
            (65_530, 64 << 20, 10),
        ] {
            assert_eq!(pods(maps, memory), expected, "{maps} maps, {memory} bytes");
        }
        assert!(meminfo("MemTotal:").unwrap() > 1 << 20);
        assert!(storage(Path::new("/")).unwrap().0 > 0);
        assert!(resident_bytes().unwrap() > 1 << 20);
    }
}
