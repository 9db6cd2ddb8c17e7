//! What containers print: files in the format of the container runtime interface, rotated, readable while they grow.
//!
//! ```text
//! logs/<namespace>_<pod>_<uid>/<container>/0.log       one file per life of the container
//! 2026-11-23T21:00:00.123456789Z stdout F a whole line
//! ```
//! A container that prints nothing has no file and no open descriptor.

mod line;
mod read;
mod write;

pub use self::read::{Options, read, read_until, tail};
pub use self::write::{ContainerLog, OpenFiles, Stream};

use std::path::{Path, PathBuf};

/// Rotation begins a new file at this size (kubelet's `containerLogMaxSize`).
pub const FILE_BYTES_MAX: u64 = 10 << 20;
/// Files per life of a container (kubelet's `containerLogMaxFiles`).
pub const FILES_MAX: u32 = 5;
/// Longest line that is kept in one piece; longer ones are cut into partial lines.
pub const LINE_BYTES_MAX: usize = 16 << 10;

/// Where the logs of a pod are.
pub fn pod_dir(logs: &Path, namespace: &str, pod: &str, uid: &str) -> PathBuf {
    logs.join(format!("{namespace}_{pod}_{uid}"))
}

/// The log of one life of a container.
pub fn file(pod_dir: &Path, container: &str, run: u32) -> PathBuf {
    pod_dir.join(container).join(format!("{run}.log"))
}

/// The `number`th older part of a log; 0 is the one that is written.
fn part(path: &Path, number: u32) -> PathBuf {
    match number {
        0 => path.to_owned(),
        _ => {
            let mut name = path.as_os_str().to_owned();
            name.push(format!(".{number}"));
            name.into()
        }
    }
}

/// Removes the logs of all lives before `keep_from`.
pub fn remove_older(pod_dir: &Path, container: &str, keep_from: u32) {
    let Ok(entries) = std::fs::read_dir(pod_dir.join(container)) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let run = name.to_str().and_then(|name| name.split('.').next()).and_then(|run| run.parse::<u32>().ok());
        if run.is_some_and(|run| run < keep_from) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests;
