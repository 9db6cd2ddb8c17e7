//! Where events are written: a file of a line each that is followed by the next when it is full, or standard output.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use jiff::Timestamp;

/// Where events go; fields are named and counted as kube-apiserver's `--audit-log-*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// The file; none is standard output.
    pub path: Option<PathBuf>,
    /// Days that a full file is kept; 0 is for ever.
    pub max_age: u64,
    /// Full files that are kept; 0 is all.
    pub max_backup: usize,
    /// Megabytes of a file.
    pub max_size: u64,
}

impl Default for Log {
    fn default() -> Log {
        Log { path: None, max_age: 0, max_backup: 0, max_size: 100 }
    }
}

/// The log itself.
pub(super) enum Out {
    Standard,
    Rotating(Rotating),
}

pub(super) struct Rotating {
    path: PathBuf,
    log: Log,
    file: Option<File>,
    size: u64,
}

impl Out {
    /// Opens it; it must be possible to write it now.
    pub fn open(log: Log) -> io::Result<Out> {
        let Some(path) = log.path.clone() else { return Ok(Out::Standard) };
        let mut rotating = Rotating { path, log, file: None, size: 0 };
        rotating.file()?;
        Ok(Out::Rotating(rotating))
    }

    pub fn write(&mut self, line: &[u8]) -> io::Result<()> {
        match self {
            Out::Standard => {
                let mut out = io::stdout().lock();
                out.write_all(line)?;
                out.flush()
            }
            Out::Rotating(rotating) => rotating.write(line),
        }
    }
}

impl Rotating {
    /// The file that is written; for its owner's eyes only.
    fn file(&mut self) -> io::Result<&mut File> {
        if self.file.is_none() {
            if let Some(dir) = self.path.parent() {
                std::fs::create_dir_all(dir)?;
            }
            let mut file = OpenOptions::new().create(true).append(true).mode(0o600).open(&self.path)?;
            self.size = file.metadata()?.len();
            // A line that was cut by a crash or a full disk ends here, so that the next is one of its own.
            if self.size > 0 && !ends_with_newline(&self.path)? {
                file.write_all(b"\n")?;
                self.size += 1;
            }
            self.file = Some(file);
        }
        self.file.as_mut().ok_or_else(|| io::Error::other("it was opened above"))
    }

    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        let most = self.log.max_size.max(1) << 20;
        self.file()?;
        if self.size > 0 && self.size + line.len() as u64 > most {
            self.rotate()?;
        }
        let length = line.len() as u64;
        let written = self.file()?.write_all(line);
        match &written {
            Ok(()) => self.size += length,
            // How much of it is there is not known: the file is looked at again.
            Err(_) => self.file = None,
        }
        written
    }

    /// Puts the full file aside, and deletes the oldest of those that are aside.
    fn rotate(&mut self) -> io::Result<()> {
        self.file = None;
        let mut at = Timestamp::now();
        let mut aside = aside(&self.path, at);
        while aside.exists() {
            at += Duration::from_millis(1);
            aside = self::aside(&self.path, at);
        }
        std::fs::rename(&self.path, &aside)?;
        // What is to be written now has its file all the same.
        if let Err(error) = self.tidy() {
            tracing::warn!(%error, "delete the oldest files of the audit log: they stay");
        }
        Ok(())
    }

    fn tidy(&self) -> io::Result<()> {
        let (dir, stem, extension) = parts(&self.path);
        let mut backups = Vec::new();
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let time = name.strip_prefix(&format!("{stem}-")).and_then(|rest| rest.strip_suffix(&extension));
            if time.is_some_and(is_time) {
                backups.push((name, entry));
            }
        }
        // The newest first: their names have the time.
        backups.sort_by(|(one, _), (other, _)| other.cmp(one));
        let oldest = match self.log.max_age {
            0 => None,
            days => SystemTime::now().checked_sub(Duration::from_secs(days.saturating_mul(24 * 3600))),
        };
        for (at, (_, entry)) in backups.into_iter().enumerate() {
            let too_many = self.log.max_backup > 0 && at >= self.log.max_backup;
            let too_old = oldest.is_some_and(|oldest| {
                entry.metadata().and_then(|metadata| metadata.modified()).is_ok_and(|written| written < oldest)
            });
            if too_many || too_old {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }
}

fn ends_with_newline(path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::FileExt as _;
    let file = File::open(path)?;
    let mut last = [0];
    file.read_exact_at(&mut last, file.metadata()?.len().saturating_sub(1))?;
    Ok(last == *b"\n")
}

/// The directory, the name and the extension with its dot.
fn parts(path: &Path) -> (&Path, String, String) {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let extension = path.extension().map(|extension| format!(".{}", extension.to_string_lossy())).unwrap_or_default();
    (dir, stem, extension)
}

/// `NAME-2026-11-30T09-10-11.123.EXTENSION`, as the reference calls them.
fn aside(path: &Path, at: Timestamp) -> PathBuf {
    let (dir, stem, extension) = parts(path);
    let at = at.strftime("%Y-%m-%dT%H-%M-%S.%3f");
    dir.join(format!("{stem}-{at}{extension}"))
}

/// Whether this is a time as in [`aside`].
fn is_time(text: &str) -> bool {
    let like = "0000-00-00T00-00-00.000";
    text.len() == like.len()
        && text
            .bytes()
            .zip(like.bytes())
            .all(|(byte, like)| if like == b'0' { byte.is_ascii_digit() } else { byte == like })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_full_file_is_put_aside_and_the_oldest_go() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("logs/audit.log");
        let log = Log { path: Some(path.clone()), max_backup: 2, max_size: 1, ..Log::default() };
        let mut out = Out::open(log).unwrap();
        std::fs::write(dir.path().join("logs/audit-other.log"), "somebody's").unwrap();
        let line = vec![b'x'; 700 << 10];
        for _ in 0..5 {
            out.write(&line).unwrap();
        }
        let names = names(&dir.path().join("logs"));
        assert_eq!(names.iter().filter(|name| name.starts_with("audit-2")).count(), 2, "{names:?}");
        assert!(names.contains(&"audit.log".to_owned()) && names.contains(&"audit-other.log".to_owned()), "{names:?}");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_line_that_was_cut_is_not_continued() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        std::fs::write(&path, "{\"cut").unwrap();
        let mut out = Out::open(Log { path: Some(path.clone()), ..Log::default() }).unwrap();
        out.write(b"{}\n").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{\"cut\n{}\n");
    }

    #[test]
    fn a_log_that_cannot_be_written_is_told_when_it_is_opened() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Out::open(Log { path: Some(dir.path().to_owned()), ..Log::default() }).is_err());
    }
}
