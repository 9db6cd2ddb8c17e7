//! How containers have ended, for the next life of the node: the API server may not have been told before this one ends, and nothing
//! else remembers it. A pod that is never to run again would fail then, although it has succeeded, or run twice.
//!
//! One small file beside the pod's logs, which stay until its object goes, says it of all containers, as a status does; each end
//! replaces it. It is never taken away: of a life that the API server knows to be over, nobody reads it
//! ([`super::core`] compares). It outlives the process and not the machine: it is not synced, for a container that was at work when
//! that stopped has no end that anybody saw.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::Path;
use std::sync::Arc;

use k8s_openapi::api::core::v1::ContainerStatus;

use super::slot::Slot;
use super::table::Pods;
use crate::logs;

/// Its name beside directories that are called as containers are, which none begins with a dot.
const NAME: &str = ".ends";
/// More is nobody's: a status has a bound, and containers have one.
const BYTES_MAX: u64 = 1 << 20;

/// What was kept in a pod's directory of logs; nothing where there is none.
pub(super) fn read(dir: &Path) -> Vec<ContainerStatus> {
    let mut bytes = Vec::new();
    let read = File::open(dir.join(NAME)).and_then(|file| file.take(BYTES_MAX).read_to_end(&mut bytes));
    let kept = match read {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => Err(error),
        Ok(_) => serde_json::from_slice(&bytes).map_err(io::Error::other),
    };
    kept.unwrap_or_else(|error| {
        tracing::warn!(%error, dir = %dir.display(), "how containers ended is not known: what the API server says counts");
        Vec::new()
    })
}

fn write(dir: &Path, ends: &serde_json::Value) -> io::Result<()> {
    let (path, part) = (dir.join(NAME), dir.join(format!("{NAME}.part")));
    fs::create_dir_all(dir)?;
    fs::write(&part, ends.to_string())?;
    fs::rename(part, path)
}

impl Pods {
    /// Keeps how the pod's containers have ended. What is written is what is so by then: of several writes the last says all.
    pub(super) fn keep_ends(&self, slot: &Arc<Slot>) {
        let dir = logs::pod_dir(&self.context.logs_dir, &slot.namespace, &slot.name, &slot.uid);
        let slot = slot.clone();
        self.context.tasks.spawn_blocking(move || {
            let _turn = slot.ends.lock();
            let ends = slot.with_core(|core| (!core.is_forgotten()).then(|| core.ends()));
            if let Some(ends) = ends
                && let Err(error) = write(&dir, &ends)
            {
                tracing::warn!(%error, pod = %slot.name, "how a container ended is not kept");
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_kept_is_read_and_what_cannot_be_read_is_nothing() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("n_p_u");
        assert!(read(&dir).is_empty());
        let ended = |code: i32| {
            json!([{"name": "a", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
                "state": {"terminated": {"exitCode": code}}}])
        };
        write(&dir, &ended(1)).unwrap();
        write(&dir, &ended(7)).unwrap();
        let code = read(&dir)[0].state.as_ref().unwrap().terminated.as_ref().unwrap().exit_code;
        assert_eq!((code, fs::read_dir(&dir).unwrap().count()), (7, 1));
        fs::write(dir.join(NAME), "[{").unwrap();
        assert!(read(&dir).is_empty());
    }
}
