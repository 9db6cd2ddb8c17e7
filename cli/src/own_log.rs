//! The log of a process in the background: so long at most, and as much before it.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::output::tell;

/// Name of the log in the data directory; what it held before is beside it, with `.1` behind the name.
pub const NAME: &str = "coracle.log";
/// Beyond this it begins anew.
const BYTES_MAX: u64 = 8 << 20;
/// How often its length is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Keeps the log in bounds for as long as the process runs.
pub async fn keep(log: PathBuf) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        if let Err(error) = bound(&log, BYTES_MAX) {
            tell!("{} begins anew, and what it held is not kept whole: {error}", log.display());
        }
    }
}

/// Begins the log anew when it is longer than `max`. Whoever writes to it appends, and goes on at the new beginning.
fn bound(log: &Path, max: u64) -> io::Result<()> {
    if fs::metadata(log)?.len() <= max {
        return Ok(());
    }
    // A full disk keeps nothing of it, and is no reason to let it grow.
    let kept = fs::copy(log, log.with_extension("log.1"));
    File::options().write(true).open(log)?.set_len(0)?;
    kept.map(drop)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};

    use super::*;

    #[test]
    fn a_log_that_is_too_long_begins_anew_under_its_writer() {
        let dir = tempfile::tempdir().unwrap();
        let (log, before) = (dir.path().join(NAME), dir.path().join("coracle.log.1"));
        let mut writer = File::options().create(true).append(true).mode(0o600).open(&log).unwrap();
        let read = |path: &Path| fs::read_to_string(path).unwrap_or_default();
        for (line, now, then) in [("one ", "one ", ""), ("two ", "", "one two "), ("three", "three", "one two ")] {
            writer.write_all(line.as_bytes()).unwrap();
            bound(&log, 5).unwrap();
            assert_eq!((read(&log).as_str(), read(&before).as_str()), (now, then));
        }
        assert_eq!(fs::metadata(&before).unwrap().permissions().mode() & 0o777, 0o600);
        // What cannot be kept is let go.
        fs::remove_file(&before).unwrap();
        fs::create_dir(&before).unwrap();
        writer.write_all(b"four").unwrap();
        assert!(bound(&log, 5).is_err());
        assert_eq!(read(&log), "");
    }
}
