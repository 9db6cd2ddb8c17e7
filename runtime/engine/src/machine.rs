//! What this machine's kernel allows.

use std::fs;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Memory maps that one instance needs, measured: two for its stack, which the pool makes at once, four for its memory.
const MAPS_PER_INSTANCE: u64 = 6;

/// Those of them that a pool has also when nothing is in it.
const MAPS_PER_STACK: u64 = 2;

/// Maps left for everything else: the program, threads, compiled components.
const MAPS_LEFT: u64 = 5_000;

/// The kernel's own default.
const MAP_COUNT_DEFAULT: u64 = 65_530;

/// 47 bits of address space hold 29,000 memories of 4 GiB with their guards; leave room for the rest.
const ADDRESS_SPACE_MAX: u32 = 28_000;

/// How many instances fit, at most `wanted`.
pub(crate) fn instances_max(wanted: u32) -> u32 {
    fit(wanted, maps())
}

/// The same when there is a second pool, for so many.
pub(crate) fn instances_max_beside(wanted: u32, second: u32) -> u32 {
    fit_beside(wanted, second, maps())
}

/// Memory maps that this process may have.
fn maps() -> u64 {
    let text = fs::read_to_string("/proc/sys/vm/max_map_count").ok();
    text.and_then(|text| text.trim().parse().ok()).unwrap_or(MAP_COUNT_DEFAULT)
}

fn fit_beside(wanted: u32, second: u32, maps: u64) -> u32 {
    fit(wanted, maps.saturating_sub(u64::from(second) * MAPS_PER_STACK))
}

fn fit(wanted: u32, maps: u64) -> u32 {
    let by_maps = u32::try_from(maps.saturating_sub(MAPS_LEFT) / MAPS_PER_INSTANCE).unwrap_or(u32::MAX);
    wanted.min(by_maps).clamp(1, ADDRESS_SPACE_MAX)
}

/// Lets this process open as many files as it may. Guests hold files and sockets of this process; the usual 1024 are
/// meant for programs that still use `select`.
pub(crate) fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            tracing::warn!(%error, "the number of open files stays limited");
        }
    }
}

/// Descriptors of this process that guests leave alone, at least: API, log, connections of clients.
const DESCRIPTORS_LEFT: u64 = 512;

/// How many descriptors guests may open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Descriptors {
    /// The kernel gives the lowest number that is free: one at or above this means that the rest is for the node.
    pub(crate) number_max: u32,
    /// The most that one container may have open; of a namespace's share see `host/descriptors.rs`.
    pub(crate) container_max: u32,
}

/// How many descriptors guests may open.
pub(crate) fn descriptors() -> Descriptors {
    share(getrlimit(Resource::Nofile).current.unwrap_or(1 << 20))
}

fn share(limit: u64) -> Descriptors {
    let left = (limit / 4).max(DESCRIPTORS_LEFT).min(limit / 2);
    let guests = limit - left;
    let number = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    Descriptors { number_max: number(guests), container_max: number((guests / 8).max(32)) }
}

/// Bytes of memory that this machine, or the control group of this process, has.
pub(crate) fn memory_bytes() -> u64 {
    let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let kib = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        kib.trim().trim_end_matches("kB").trim().parse::<u64>().ok()
    });
    let group = fs::read_to_string("/sys/fs/cgroup/memory.max").ok().and_then(|text| text.trim().parse::<u64>().ok());
    machine.map_or(4 << 30, |kib| kib * 1024).min(group.unwrap_or(u64::MAX))
}

/// Whether the kernel has PAGEMAP_SCAN (6.7), which finds the pages that an instance has touched.
pub(crate) fn has_pagemap_scan() -> bool {
    fs::read_to_string("/proc/sys/kernel/osrelease").is_ok_and(|release| version(&release) >= Some((6, 7)))
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(['.', '-']).map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instances_fit_maps_and_address_space() {
        let table = [(10_000, 65_530, 10_000), (30_000, 65_530, 10_088), (50_000, 1 << 20, 28_000), (10_000, 100, 1)];
        for (wanted, maps, fits) in table {
            assert_eq!(fit(wanted, maps), fits, "{wanted} with {maps} maps");
        }
        let table = [
            (10_000, 0, 65_530, 10_000),
            (10_000, 265, 65_530, 10_000),
            (10_000, 266, 65_530, 9_999),
            (10_000, 3_000, 65_530, 9_088),
            (50_000, 3_000, 1 << 20, 28_000),
            (10_000, u32::MAX, 65_530, 1),
        ];
        for (wanted, second, maps, fits) in table {
            assert_eq!(fit_beside(wanted, second, maps), fits, "{wanted} beside {second} with {maps} maps");
        }
    }

    #[test]
    fn descriptors_are_shared_and_some_are_left_for_the_node() {
        for (limit, number_max, container_max) in [(1024, 512, 64), (20_000, 15_000, 1_875), (256, 128, 32)] {
            assert_eq!(share(limit), Descriptors { number_max, container_max }, "of {limit}");
        }
        assert!(memory_bytes() > 64 << 20);
    }

    #[test]
    fn reads_kernel_releases() {
        assert_eq!(version("6.18.44-fc-v34\n"), Some((6, 18)));
        assert_eq!(version("5.10.0-8-amd64"), Some((5, 10)));
        assert_eq!(version("plan9"), None);
    }
}
