//! Where events go: a file, written by a thread of its own, so that no request waits for a disk.
//!
//! What is on its way is bounded in lines and in bytes. At the bound an event is lost, which is counted and said in the log of the
//! server: whoever needs each of them wants a larger disk, not a slower cluster.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, SystemTime};

use jiff::Timestamp;

/// Most lines on their way, and most bytes of them.
const LINES_MAX: usize = 10_000;
const BYTES_MAX: usize = 64 << 20;
/// What a day is, for the age of files.
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A file and how long it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogFile {
    /// The file; `-` is standard output.
    pub path: PathBuf,
    /// Bytes at which another is begun; 0 for never.
    pub bytes_max: u64,
    /// Older files that are kept; 0 for all.
    pub backups_max: usize,
    /// Days for which they are kept; 0 for ever.
    pub days_max: u64,
}

/// Lines on their way to a file.
pub(crate) struct Log {
    send: SyncSender<Vec<u8>>,
    bytes: Arc<AtomicUsize>,
    lost: AtomicU64,
    /// Whether it was said that some were lost, since the last that was not.
    told: AtomicBool,
}

impl Log {
    /// Opens the file and begins to write.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn open(file: LogFile) -> io::Result<Log> {
        let (send, receive) = sync_channel(LINES_MAX);
        let bytes = Arc::<AtomicUsize>::default();
        let writer = Writer::open(file)?;
        let waiting = bytes.clone();
        std::thread::Builder::new().name("audit-log".to_owned()).spawn(move || writer.run(&receive, &waiting))?;
        Ok(Log { send, bytes, lost: AtomicU64::new(0), told: AtomicBool::new(false) })
    }

    /// Sends a line, which ends in a line feed. Never waits.
    pub fn write(&self, line: Vec<u8>) {
        let size = line.len();
        let before = self.bytes.fetch_add(size, Ordering::Relaxed);
        if before + size <= BYTES_MAX {
            match self.send.try_send(line) {
                Ok(()) => return self.told.store(false, Ordering::Relaxed),
                Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {}
            }
        }
        self.bytes.fetch_sub(size, Ordering::Relaxed);
        let lost = self.lost.fetch_add(1, Ordering::Relaxed) + 1;
        if !self.told.swap(true, Ordering::Relaxed) {
            tracing::error!(lost, "audit events are lost: the disk of the audit log is too slow, or is full");
        }
    }

    /// How many events were lost.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

/// The file.
struct Writer {
    file: LogFile,
    /// `None` for standard output.
    open: Option<File>,
    size: u64,
}

impl Writer {
    fn open(file: LogFile) -> io::Result<Writer> {
        if file.path == Path::new("-") {
            return Ok(Writer { file, open: None, size: 0 });
        }
        let open = OpenOptions::new().create(true).append(true).mode(0o600).open(&file.path)?;
        let size = open.metadata()?.len();
        Ok(Writer { file, open: Some(open), size })
    }

    fn run(mut self, lines: &Receiver<Vec<u8>>, waiting: &AtomicUsize) {
        let mut is_told = false;
        while let Ok(line) = lines.recv() {
            waiting.fetch_sub(line.len(), Ordering::Relaxed);
            match self.write(&line) {
                Ok(()) => is_told = false,
                Err(error) if !is_told => {
                    is_told = true;
                    tracing::error!(path = %self.file.path.display(), %error, "the audit log cannot be written");
                }
                Err(_) => {}
            }
        }
    }

    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        let size = line.len() as u64;
        if self.open.is_some() && self.file.bytes_max > 0 && self.size > 0 && self.size + size > self.file.bytes_max {
            self.rotate()?;
        }
        match &mut self.open {
            Some(file) => file.write_all(line)?,
            None => io::stdout().lock().write_all(line)?,
        }
        self.size += size;
        Ok(())
    }

    /// Puts the file aside and begins another.
    fn rotate(&mut self) -> io::Result<()> {
        let path = self.file.path.clone();
        let (stem, extension) = (part(path.file_stem()), part(path.extension()));
        let dot = if extension.is_empty() { "" } else { "." };
        let now = Timestamp::now().strftime("%Y-%m-%dT%H-%M-%S%.6f");
        std::fs::rename(path, path.with_file_name(format!("{stem}-{now}{dot}{extension}")))?;
        *self = Writer::open(self.file.clone())?;
        self.clean()
    }

    /// Removes what is too old or too much.
    fn clean(&self) -> io::Result<()> {
        let path = &self.file.path;
        let prefix = format!("{}-", part(path.file_stem()));
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut aside: Vec<PathBuf> = std::fs::read_dir(dir)?
            .filter_map(Result::ok)
            .map(|entry| entry.path())
            .filter(|other| part(other.file_stem()).starts_with(&prefix) && other.extension() == path.extension())
            .collect();
        // Their names are in the order of their times.
        aside.sort_unstable();
        let many = if self.file.backups_max == 0 { 0 } else { aside.len().saturating_sub(self.file.backups_max) };
        let is_old = |file: &PathBuf| {
            let written = std::fs::metadata(file).and_then(|file| file.modified()).ok();
            let age = written.and_then(|written| SystemTime::now().duration_since(written).ok()).unwrap_or_default();
            self.file.days_max > 0 && age > DAY * u32::try_from(self.file.days_max).unwrap_or(u32::MAX)
        };
        for (at, file) in aside.iter().enumerate() {
            if at < many || is_old(file) {
                std::fs::remove_file(file)?;
            }
        }
        Ok(())
    }
}

fn part(name: Option<&std::ffi::OsStr>) -> String {
    name.map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_full_is_put_aside_and_the_oldest_go() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = LogFile { path: dir.path().join("audit.log"), bytes_max: 100, backups_max: 2, days_max: 0 };
        let mut writer = Writer::open(file.clone()).expect("a file");
        for number in 0..12 {
            writer.write(format!("{number:059}\n").as_bytes()).expect("written");
        }
        let mut names: Vec<String> =
            std::fs::read_dir(dir.path()).expect("a directory").map(|entry| part(Some(&entry.expect("an entry").file_name()))).collect();
        names.sort_unstable();
        assert_eq!(names.len(), 3, "{names:?}");
        assert!(names[..2].iter().all(|name| name.starts_with("audit-2") && name.ends_with(".log")), "{names:?}");
        assert_eq!(std::fs::read_to_string(&file.path).expect("text"), format!("{:059}\n", 11));
        use std::os::unix::fs::PermissionsExt as _;
        let mode = std::fs::metadata(&file.path).expect("a file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn what_does_not_fit_is_lost_and_nobody_waits() {
        let (send, receive) = sync_channel(2);
        let log = Log { send, bytes: Arc::default(), lost: AtomicU64::new(0), told: AtomicBool::new(false) };
        (0..5).for_each(|_| log.write(vec![b'x'; 10]));
        assert_eq!((log.lost(), log.bytes.load(Ordering::Relaxed)), (3, 20));
        assert_eq!(receive.try_iter().count(), 2);
        log.write(vec![b'x'; BYTES_MAX + 1]);
        assert_eq!(log.lost(), 4);
    }
}
