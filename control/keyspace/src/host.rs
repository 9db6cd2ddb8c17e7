//! The package's one door to the machine it runs on: disk, clock, randomness, threads.
//!
//! Log, checkpoint and directory reach nothing except through a [`Host`], so that a test can put a machine in its place that
//! loses power in the middle of a write, whose disk lies, and which does the same again for the same seed.

use std::any::Any;
use std::fmt;
use std::fs::{self, File};
use std::hash::{BuildHasher, Hasher};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::{FallocateFlags, FlockOperation};

/// Directories are for their owner alone, and so are files: what is in them are other people's secrets.
const DIR_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;

/// How long it is waited for a process that has a lock and may be ending: one that was killed keeps it until all of its memory is gone, and
/// its last write has come back from the disk.
pub const ENDS_WITHIN: Duration = Duration::from_secs(3);
/// How often it is asked for the lock meanwhile.
const ASK_EVERY: Duration = Duration::from_millis(20);

/// How a file is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum How {
    /// An existing one, to be read.
    Read,
    /// An existing one, to be read and written.
    Write,
    /// One to be read and written, made when missing, and emptied.
    Create,
}

/// A file that is open.
pub trait DiskFile: Send + Sync + fmt::Debug {
    /// Its length.
    fn len(&self) -> io::Result<u64>;
    /// Fills `into` from `offset`; an error when the file ends before.
    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<()>;
    /// Writes all of `bytes` at `offset`. After a power cut any part of it may be there, until a [`DiskFile::sync_data`].
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Returns when everything written before is on the disk. After an error nothing is known of what was written since the
    /// last success, and asking again proves nothing.
    fn sync_data(&self) -> io::Result<()>;
    /// Cuts it, or lengthens it with zeros.
    fn set_len(&self, length: u64) -> io::Result<()>;
    /// Has the disk's space for the bytes from `offset` to `offset + length` and lengthens the file to hold them, so that
    /// writing there cannot fail for lack of space.
    fn reserve(&self, offset: u64, length: u64) -> io::Result<()>;
}

/// What asking for a lock gives.
pub enum Locked {
    /// It is held until this is dropped, or the process ends.
    Ours(Box<dyn Any + Send + Sync>),
    /// Another has it, which may have said who it is.
    Theirs(String),
}

/// Files and directories.
pub trait Disk: Send + Sync + 'static {
    /// Opens a file.
    fn open(&self, path: &Path, how: How) -> io::Result<Arc<dyn DiskFile>>;
    /// Makes a directory and those above it, unless they are there.
    fn create_dir(&self, path: &Path) -> io::Result<()>;
    /// Gives a file another name in its directory; what has it already is replaced.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Names of what is in a directory, in order.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// Returns when the names in a directory are on the disk: a file that was made, renamed or removed may be its old self
    /// after a power cut until then.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Locks `path`, a file made for it; leaves `word` there for others to read. Waits a moment for whoever has it and may be ending.
    fn lock(&self, path: &Path, word: &str) -> io::Result<Locked>;
    /// Bytes that could still be written below `dir`.
    fn free(&self, dir: &Path) -> io::Result<u64>;
}

/// Bounds that a simulation makes small, so that it comes past them.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// A file of the log.
    pub segment: u64,
    /// A purge begins a new segment once this much was written since the last one.
    pub rotate: usize,
    /// Beyond this the log asks to be cut. Replaying it at the next start takes well under a second.
    pub cut: usize,
    /// Beyond this new proposals wait until it is cut: the disk is slower than those who write.
    pub full: usize,
}

impl Default for Sizes {
    fn default() -> Sizes {
        Sizes { segment: 16 << 20, rotate: 12 << 20, cut: 16 << 20, full: 64 << 20 }
    }
}

/// How often a leader is heard of (design.md §4). Longer than the way there and back with a sync on it: openraft gives up a
/// heartbeat that is not answered within this time.
const HEARTBEAT: Duration = Duration::from_millis(100);

/// How long a group takes to notice things, all of it in heartbeats; a simulation is impatient.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// How often a leader is heard of.
    pub heartbeat: Duration,
    /// openraft's bounds of an election's timeout, a number between which is drawn for each. It counts *after* the leader's
    /// lease, which is the upper bound: a leader that is not heard of is replaced after a lease and a timeout, eleven to
    /// twelve heartbeats. So many may be late on a busy machine, or wait behind a sync. The lower bound is also how long a
    /// vote may take, which is synced; so they are close to each other. Two who stand at the same moment do not stand in each
    /// other's way: in one term the vote for the higher number counts more (openraft's `leader_id_adv`).
    pub election: (Duration, Duration),
    /// Who was not heard of for this long is down: two elections' time.
    pub down: Duration,
}

impl Timing {
    /// The one that goes with this heartbeat.
    pub fn of(heartbeat: Duration) -> Timing {
        Timing { heartbeat, election: (heartbeat * 5, heartbeat * 6), down: heartbeat * 24 }
    }
}

impl Default for Timing {
    fn default() -> Timing {
        Timing::of(HEARTBEAT)
    }
}

/// The machine.
#[derive(Clone)]
pub struct Host {
    /// Its disk.
    pub disk: Arc<dyn Disk>,
    /// Numbers that nobody guesses.
    random: Arc<dyn Fn() -> u64 + Send + Sync>,
    /// Whether the log may have threads of its own; without, everything happens in the caller's, in one order.
    pub threads: bool,
    /// Bounds.
    pub sizes: Sizes,
    /// How patient its member is.
    pub timing: Timing,
    simulated: bool,
    /// How long a simulated disk takes for what the log writes next: a task waits for it. Otherwise no time goes by.
    #[cfg(any(test, feature = "simulation"))]
    pub latency: Option<Latency>,
}

/// How long something takes next.
#[cfg(any(test, feature = "simulation"))]
pub type Latency = Arc<dyn Fn() -> Duration + Send + Sync>;

impl Host {
    /// The machine this process runs on.
    pub fn real() -> Host {
        // Of keys that the system has drawn for this thread, others for each call.
        let random = || std::hash::RandomState::new().build_hasher().finish();
        Host {
            disk: Arc::new(RealDisk),
            random: Arc::new(random),
            threads: true,
            sizes: Sizes::default(),
            timing: Timing::default(),
            simulated: false,
            #[cfg(any(test, feature = "simulation"))]
            latency: None,
        }
    }

    /// A machine of a test.
    #[cfg(any(test, feature = "simulation"))]
    pub fn simulated(disk: Arc<dyn Disk>, random: u64, threads: bool, sizes: Sizes) -> Host {
        let timing = Timing::default();
        Host { disk, random: Arc::new(move || random), threads, sizes, timing, simulated: true, latency: None }
    }

    /// Where the watch history of `dir` is. It may be lost and reads its own files; a simulated machine keeps none.
    pub fn history(&self, dir: &Path) -> PathBuf {
        if self.simulated { PathBuf::from("/dev/null/history") } else { dir.join("history") }
    }

    /// The file that parts of a snapshot for `dir` are kept in, which loses its name at once. A simulated disk has no files without
    /// names; there it is one of this machine, and nobody else's at this moment.
    pub fn parts(&self, dir: &Path) -> PathBuf {
        match self.simulated {
            true => {
                let (process, thread) = (std::process::id(), std::thread::current().id());
                std::env::temp_dir().join(format!("coracle-snapshot-{process}-{thread:?}.part"))
            }
            false => dir.join("snapshot.part"),
        }
    }

    /// A number that nobody guesses.
    pub fn random(&self) -> u64 {
        (self.random)()
    }
}

/// What time it is.
pub fn now() -> Instant {
    Instant::now()
}

/// What the wall's clock says, for whoever founds something. Nothing that is replicated may depend on it.
pub fn since_1970() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

/// Begins a thread.
pub fn thread(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name.into()).spawn(run)
}

#[cfg(any(test, feature = "simulation"))]
thread_local! {
    /// Whether this thread is all there is of a simulated machine.
    pub static IS_ALONE: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Has `work` done where it hinders nobody when it blocks, or computes for long. What the control plane has done aside goes
/// through here, so that a simulated machine does it on its only thread: another one would come back when it likes, and no seed
/// would repeat itself.
pub fn spawn_blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> tokio::task::JoinHandle<T> {
    #[cfg(any(test, feature = "simulation"))]
    if IS_ALONE.get() {
        return tokio::spawn(async { work() });
    }
    tokio::task::spawn_blocking(work)
}

/// The same for work that may fail, waited for.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}

/// The same for work that also waits for others.
pub async fn blocking_with_others<T: Send + 'static>(
    work: impl Future<Output = io::Result<T>> + Send + 'static,
) -> io::Result<T> {
    #[cfg(any(test, feature = "simulation"))]
    if IS_ALONE.get() {
        return work.await;
    }
    let runtime = tokio::runtime::Handle::current();
    blocking(move || runtime.block_on(work)).await
}

/// Whether an error says that the disk has no space left.
pub fn is_no_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge)
}

/// What to do about data that is lost. An old copy of one of several members lacks what it has acknowledged: with it back, a majority
/// may be one that knows nothing of a write that was answered.
pub const LOST_DATA: &str = "Restore the data directory from a backup if this is the only server. If there are others, put no old copy \
     back, which may lack what this server has acknowledged: `coracle member remove` it at another one, `coracle reset` here, and join \
     again. To begin anew without its data, choose an empty directory";

/// What a start says that finds `path` damaged at `offset`.
pub fn damaged(path: &Path, offset: u64, why: impl fmt::Display) -> io::Error {
    let text = format!("{} is damaged at byte {offset}: {why}. Nothing was changed. {LOST_DATA}", path.display());
    io::Error::new(io::ErrorKind::InvalidData, text)
}

/// What a start says that does not find `path`.
pub fn missing(path: &Path, why: impl fmt::Display) -> io::Error {
    let text = format!("{} is missing: {why}. Nothing was changed. {LOST_DATA}", path.display());
    io::Error::new(io::ErrorKind::InvalidData, text)
}

/// All of a file.
pub fn read(disk: &dyn Disk, path: &Path) -> io::Result<Vec<u8>> {
    let file = disk.open(path, How::Read)?;
    let mut content = vec![0; file.len()? as usize];
    file.read_at(&mut content, 0)?;
    Ok(content)
}

/// Writes a file whole or not at all, and its name with it.
pub fn replace(disk: &dyn Disk, path: &Path, content: &[u8]) -> io::Result<()> {
    let part = path.with_extension("part");
    let file = disk.open(&part, How::Create)?;
    file.write_at(content, 0)?;
    file.sync_data()?;
    disk.rename(&part, path)?;
    disk.sync_dir(parent(path))
}

/// The directory that `path` is in.
pub fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// The disk of this machine.
struct RealDisk;

impl Disk for RealDisk {
    fn open(&self, path: &Path, how: How) -> io::Result<Arc<dyn DiskFile>> {
        let mut options = File::options();
        options.read(true);
        match how {
            How::Read => (),
            How::Write => drop(options.write(true)),
            How::Create => drop(options.write(true).create(true).truncate(true).mode(FILE_MODE)),
        }
        Ok(Arc::new(RealFile(options.open(path)?)))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        if path.is_dir() {
            // One that an earlier version, or somebody by hand, left open to others.
            if fs::metadata(path)?.permissions().mode() & 0o077 != 0
                && let Err(error) = fs::set_permissions(path, fs::Permissions::from_mode(DIR_MODE))
            {
                tracing::warn!(path = %path.display(), %error, "close the directory to other users");
            }
            return Ok(());
        }
        fs::DirBuilder::new().recursive(true).mode(DIR_MODE).create(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let names = fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        let mut names = names.collect::<io::Result<Vec<String>>>()?;
        names.sort_unstable();
        Ok(names)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }

    fn lock(&self, path: &Path, word: &str) -> io::Result<Locked> {
        let mut file =
            File::options().read(true).write(true).create(true).truncate(false).mode(FILE_MODE).open(path)?;
        let give_up = now() + ENDS_WITHIN;
        loop {
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(rustix::io::Errno::WOULDBLOCK) if now() < give_up => std::thread::sleep(ASK_EVERY),
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    let mut holder = String::new();
                    let _ = file.read_to_string(&mut holder);
                    return Ok(Locked::Theirs(holder.trim().to_owned()));
                }
                Err(error) => return Err(error.into()),
            }
        }
        // Whoever had it meanwhile may have deleted the file: then the lock of that name is another one.
        let own = rustix::fs::fstat(&file)?;
        let is_named = match rustix::fs::stat(path) {
            Ok(named) => (named.st_dev, named.st_ino) == (own.st_dev, own.st_ino),
            Err(rustix::io::Errno::NOENT) => false,
            Err(error) => return Err(error.into()),
        };
        if !is_named {
            return Ok(Locked::Theirs("one that deletes the data".to_owned()));
        }
        // A full disk has no room for the word either; the lock holds without it.
        let _ = file.set_len(0).and_then(|()| file.seek(SeekFrom::Start(0))).and_then(|_| writeln!(file, "{word}"));
        Ok(Locked::Ours(Box::new(file)))
    }

    fn free(&self, dir: &Path) -> io::Result<u64> {
        let space = rustix::fs::statvfs(dir)?;
        Ok(space.f_bavail.saturating_mul(space.f_frsize))
    }
}

#[derive(Debug)]
struct RealFile(File);

impl DiskFile for RealFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(into, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.0.set_len(length)
    }

    fn reserve(&self, offset: u64, length: u64) -> io::Result<()> {
        match rustix::fs::fallocate(&self.0, FallocateFlags::empty(), offset, length) {
            // Where the file system cannot reserve, writing has to find out.
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {
                let end = offset + length;
                if self.len()? < end { self.set_len(end) } else { Ok(()) }
            }
            result => Ok(result?),
        }
    }
}
