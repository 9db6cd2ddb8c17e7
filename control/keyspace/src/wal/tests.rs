//! The log in real files.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;

use parking_lot::Condvar;

use super::*;
use crate::host::{Disk, Locked};
use crate::simulation::{SIZES, SimDisk};

fn begin(dir: &Path) -> Wal {
    create(&Host::real(), dir).unwrap();
    read(&Host::real(), dir).unwrap().start().unwrap()
}

fn append(wal: &Wal, bodies: &[&[u8]]) {
    let (send, receive) = mpsc::channel();
    wal.append(bodies.iter().map(|b| b.to_vec()).collect(), Box::new(move |result| send.send(result).unwrap()));
    receive.recv().unwrap().unwrap();
}

fn bodies(dir: &Path) -> Vec<Vec<u8>> {
    read(&Host::real(), dir).unwrap().bodies.into_iter().map(|body| body.bytes).collect()
}

/// Sets bytes of a segment, as something that is not this program would.
fn damage(dir: &Path, number: u64, at: u64, bytes: &[u8]) {
    File::options().write(true).open(path(dir, number)).unwrap().write_all_at(bytes, at).unwrap();
}

#[test]
fn what_was_never_answered_may_be_torn_and_is_cut() {
    let dir = tempfile::tempdir().unwrap();
    let wal = begin(dir.path());
    append(&wal, &[b"one", b"two"]);
    drop(wal);
    // A frame of a write that was cut off: no mark follows it.
    let end = HEAD_BYTES + 2 * (FRAME_HEAD as u64 + 3) + MARK_BYTES as u64;
    damage(dir.path(), 1, end, b"\x05\0\0\0torn");
    assert_eq!(bodies(dir.path()), [b"one", b"two"]);
    let wal = read(&Host::real(), dir.path()).unwrap().start().unwrap();
    append(&wal, &[b"three"]);
    drop(wal);
    assert_eq!(bodies(dir.path()), [&b"one"[..], b"two", b"three"]);
}

#[test]
fn what_was_answered_is_refused_when_it_is_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let wal = begin(dir.path());
    append(&wal, &[b"one"]);
    append(&wal, &[b"two"]);
    drop(wal);
    // In the last frame of all.
    let last = HEAD_BYTES + 2 * (FRAME_HEAD + 3) as u64 + MARK_BYTES as u64 - 1;
    damage(dir.path(), 1, last, b"X");
    let error = read(&Host::real(), dir.path()).err().expect("it is refused").to_string();
    assert!(error.contains("00000000000000000001.log is damaged at byte 91"), "{error}");
    assert!(error.contains("Restore the data directory"), "{error}");
}

#[test]
fn segments_follow_one_another_and_old_ones_go() {
    let dir = tempfile::tempdir().unwrap();
    let big = vec![7_u8; 6 << 20];
    let wal = begin(dir.path());
    for _ in 0..3 {
        append(&wal, &[&big]);
    }
    drop(wal);
    assert!(path(dir.path(), 2).exists());
    assert_eq!(bodies(dir.path()), vec![big; 3]);
    let wal = read(&Host::real(), dir.path()).unwrap().start().unwrap();
    let (send, receive) = mpsc::channel();
    wal.rotate(vec![b"head".to_vec()], Box::new(move |result| send.send(result).unwrap()));
    receive.recv().unwrap().unwrap();
    drop(wal);
    let names: Vec<String> = Host::real().disk.list(dir.path()).unwrap();
    let logs: Vec<&String> = names.iter().filter(|name| name.ends_with(".log")).collect();
    assert_eq!(logs, ["00000000000000000003.log"]);
    assert_eq!(bodies(dir.path()), [b"head"]);
}

/// On a full disk there is no file for a new segment before an old one is gone.
#[test]
fn a_full_disk_gets_the_space_of_old_segments_back() {
    const LIMIT: Duration = Duration::from_secs(30);
    let disk = SimDisk::new(1);
    let host = Host::simulated(Arc::new(disk.clone()), 7, true, SIZES);
    let dir = Path::new("/log");
    create(&host, dir).unwrap();
    let wal = read(&host, dir).unwrap().start().unwrap();
    let known = || futures::executor::block_on(wal.hurry());
    let asked = |rotate: bool, bodies: Vec<Vec<u8>>| {
        let (send, receive) = mpsc::channel();
        let done: Done = Box::new(move |result| drop(send.send(result)));
        if rotate {
            wal.rotate(bodies, done)
        } else {
            wal.append(bodies, done)
        }
        receive.recv_timeout(LIMIT).expect("nothing waits for space that only this gives").unwrap();
    };
    known();
    assert!(wal.space().ready);
    disk.set_capacity(disk.used());
    // The second goes to the next file, and there is no other.
    let big = vec![7; SIZES.segment as usize * 2 / 3];
    asked(false, vec![big.clone()]);
    asked(false, vec![big.clone()]);
    known();
    assert!(wal.space().stuck);
    // What does not fit is left for later, but for its beginning.
    asked(true, vec![b"mark".to_vec(), big.clone()]);
    assert!(wal.is_rotation_owed());
    asked(true, vec![b"again".to_vec(), b"needed".to_vec()]);
    assert!(!wal.is_rotation_owed());
    // The space of the first is there for another, and writing goes on.
    asked(false, vec![big.clone()]);
    drop(wal);
    let there: Vec<Vec<u8>> = read(&host, dir).unwrap().bodies.into_iter().map(|body| body.bytes).collect();
    assert_eq!(there, [big.clone(), b"mark".to_vec(), b"again".to_vec(), b"needed".to_vec(), big]);
}

/// What is needed still takes more than the one file that is there, and there is none to come before old ones are gone.
#[test]
fn a_rotation_that_a_full_disk_has_no_space_to_end_is_not_begun() {
    let disk = SimDisk::new(1);
    let host = Host::simulated(Arc::new(disk.clone()), 7, true, SIZES);
    let dir = Path::new("/log");
    create(&host, dir).unwrap();
    let wal = read(&host, dir).unwrap().start().unwrap();
    let rotate = |bodies: Vec<Vec<u8>>| {
        let (send, receive) = mpsc::channel();
        wal.rotate(bodies, Box::new(move |result| drop(send.send(result))));
        receive.recv_timeout(Duration::from_secs(30)).expect("nothing waits for space that only this gives").unwrap();
    };
    let big = vec![7; SIZES.segment as usize * 2 / 3];
    for _ in 0..2 {
        append(&wal, &[&big]);
    }
    futures::executor::block_on(wal.hurry());
    assert!(wal.space().ready);
    disk.set_capacity(disk.used());
    rotate(vec![b"mark".to_vec(), big.clone(), big.clone()]);
    assert!(wal.is_rotation_owed() && wal.space().ready, "the last file is not spent on it");
    append(&wal, &[b"more"]);
    // Less is needed by then, or there is space.
    disk.set_capacity(disk.used() + SIZES.segment);
    rotate(vec![b"again".to_vec(), big.clone(), big.clone()]);
    assert!(!wal.is_rotation_owed());
    drop(wal);
    let there: Vec<Vec<u8>> = read(&host, dir).unwrap().bodies.into_iter().map(|body| body.bytes).collect();
    assert!(there == [b"again".to_vec(), big.clone(), big], "the old ones are gone");
}

/// The disk said that there was space for it.
#[test]
fn a_rotation_that_finds_less_space_than_there_was_deletes_nothing_and_is_owed() {
    let inner = SimDisk::new(1);
    let disk = Slow { disk: inner.clone(), slow: Arc::default(), spares: Arc::default(), boasts: true };
    let host = Host::simulated(Arc::new(disk), 7, true, SIZES);
    let dir = Path::new("/log");
    create(&host, dir).unwrap();
    let wal = read(&host, dir).unwrap().start().unwrap();
    let big = vec![7; SIZES.segment as usize * 2 / 3];
    for _ in 0..2 {
        append(&wal, &[&big]);
    }
    futures::executor::block_on(wal.hurry());
    inner.set_capacity(inner.used());
    let (send, receive) = mpsc::channel();
    let bodies = vec![b"mark".to_vec(), big.clone(), big.clone()];
    wal.rotate(bodies, Box::new(move |result| drop(send.send(result))));
    receive.recv_timeout(Duration::from_secs(30)).expect("nothing waits for space that only this gives").unwrap();
    assert!(wal.is_rotation_owed());
    append(&wal, &[b"more"]);
    drop(wal);
    let there: Vec<Vec<u8>> = read(&host, dir).unwrap().bodies.into_iter().map(|body| body.bytes).collect();
    assert!(there == [big.clone(), big.clone(), b"mark".to_vec(), big, b"more".to_vec()]);
}

/// Who stops does not wait for space that may never come.
#[test]
fn who_waits_for_space_is_told_when_the_log_gives_up() {
    let disk = SimDisk::new(1);
    let host = Host::simulated(Arc::new(disk.clone()), 7, true, SIZES);
    let dir = Path::new("/log");
    create(&host, dir).unwrap();
    let wal = read(&host, dir).unwrap().start().unwrap();
    futures::executor::block_on(wal.hurry());
    disk.set_capacity(disk.used());
    let big = vec![7; SIZES.segment as usize * 2 / 3];
    append(&wal, &[&big]);
    append(&wal, &[&big]);
    let (send, receive) = mpsc::channel();
    wal.append(vec![big.clone()], Box::new(move |result| send.send(result).unwrap()));
    wal.give_up_waiting();
    let told = receive.recv_timeout(Duration::from_secs(30)).expect("it is told");
    assert!(told.is_err_and(|error| host::is_no_space(&error)));
    drop(wal);
    assert_eq!(read(&host, dir).unwrap().bodies.len(), 2);
}

/// A disk that takes its time over the sync of a spare that becomes a segment: until another spare has taken its place, or a while.
struct Slow {
    disk: SimDisk,
    slow: Arc<AtomicBool>,
    /// How many spares there were.
    spares: Arc<(Mutex<u32>, Condvar)>,
    /// Whether it says that it has more space than it has.
    boasts: bool,
}

#[derive(Debug)]
struct SlowFile {
    file: Arc<dyn DiskFile>,
    slow: Arc<AtomicBool>,
    spares: Arc<(Mutex<u32>, Condvar)>,
}

impl Disk for Slow {
    fn open(&self, path: &Path, how: How) -> io::Result<Arc<dyn DiskFile>> {
        let file = self.disk.open(path, how)?;
        if how != How::Write || !path.ends_with("spare") {
            return Ok(file);
        }
        Ok(Arc::new(SlowFile { file, slow: self.slow.clone(), spares: self.spares.clone() }))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.disk.create_dir(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.rename(from, to)?;
        if to.ends_with("spare") {
            *self.spares.0.lock() += 1;
            self.spares.1.notify_all();
        }
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.disk.remove(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.disk.list(dir)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.disk.sync_dir(dir)
    }

    fn lock(&self, path: &Path, word: &str) -> io::Result<Locked> {
        self.disk.lock(path, word)
    }

    fn free(&self, dir: &Path) -> io::Result<u64> {
        if self.boasts { Ok(u64::MAX) } else { self.disk.free(dir) }
    }
}

impl DiskFile for SlowFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_at(into, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_at(bytes, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        if self.slow.swap(false, Ordering::SeqCst) {
            let (spares, more) = &*self.spares;
            let mut spares = spares.lock();
            let before = *spares;
            more.wait_while_for(&mut spares, |spares| *spares == before, Duration::from_millis(500));
        }
        self.file.sync_data()
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.file.set_len(length)
    }

    fn reserve(&self, offset: u64, length: u64) -> io::Result<()> {
        self.file.reserve(offset, length)
    }
}

/// Whoever proposes while a spare becomes a segment has the next one made at once.
#[test]
fn the_next_file_does_not_take_the_place_of_the_one_that_becomes_a_segment() {
    let (slow, spares) = (Arc::new(AtomicBool::new(false)), Arc::default());
    let disk = Slow { disk: SimDisk::new(1), slow: slow.clone(), spares, boasts: false };
    let host = Host::simulated(Arc::new(disk), 7, true, SIZES);
    let dir = Path::new("/log");
    create(&host, dir).unwrap();
    let wal = read(&host, dir).unwrap().start().unwrap();
    futures::executor::block_on(wal.hurry());
    let big = vec![7; SIZES.segment as usize * 2 / 3];
    append(&wal, &[&big]);
    slow.store(true, Ordering::SeqCst);
    let (send, receive) = mpsc::channel();
    wal.append(vec![big.clone()], Box::new(move |result| send.send(result).unwrap()));
    while wal.space().ready {
        std::thread::yield_now();
    }
    futures::executor::block_on(wal.hurry());
    receive.recv_timeout(Duration::from_secs(30)).expect("it is written").unwrap();
    append(&wal, &[b"more"]);
    drop(wal);
    let there: Vec<Vec<u8>> = read(&host, dir).unwrap().bodies.into_iter().map(|body| body.bytes).collect();
    assert!(there == [big.clone(), big, b"more".to_vec()], "what was acknowledged is there");
}

#[test]
fn whoever_appends_does_not_wait_for_a_disk_that_stands_still() {
    let dir = tempfile::tempdir().unwrap();
    let wal = Arc::new(begin(dir.path()));
    let (go_on, stands_still) = mpsc::channel::<()>();
    wal.append(vec![b"first".to_vec()], Box::new(move |_| stands_still.recv().unwrap_or_default()));
    let (appended, all) = mpsc::channel();
    let appending = std::thread::spawn({
        let wal = wal.clone();
        move || {
            (0..10_000).for_each(|_| wal.append(vec![b"more".to_vec()], Box::new(Result::unwrap)));
            drop(wal);
            appended.send(()).unwrap();
        }
    });
    all.recv_timeout(Duration::from_secs(30)).expect("nobody waits");
    drop(go_on);
    appending.join().unwrap();
    drop(wal);
    assert_eq!(bodies(dir.path()).len(), 10_001);
}

/// A sync is what whoever appends next would wait for.
#[test]
fn what_is_noted_costs_no_sync_and_is_written_with_what_follows_it() {
    let (disk, dir) = (SimDisk::new(1), Path::new("/log"));
    let there =
        |host: &Host| -> Vec<Vec<u8>> { read(host, dir).unwrap().bodies.into_iter().map(|body| body.bytes).collect() };
    let host = Host::simulated(Arc::new(disk.clone()), 7, false, SIZES);
    create(&host, dir).unwrap();
    let wal = read(&host, dir).unwrap().start().unwrap();
    append(&wal, &[b"one"]);
    let before = disk.syncs();
    wal.note(b"noted".to_vec());
    assert_eq!((disk.syncs(), there(&host)), (before, vec![b"one".to_vec()]));
    append(&wal, &[b"two"]);
    assert_eq!(disk.syncs(), before + 1);
    wal.note(b"late".to_vec());
    wal.settle().unwrap();
    drop(wal);
    disk.power_cut();
    assert_eq!(there(&host), [&b"one"[..], b"noted", b"two", b"late"]);
    // Where nothing follows, it is there before long all the same, and at the end.
    let host = Host::simulated(Arc::new(disk), 7, true, SIZES);
    let wal = read(&host, dir).unwrap().start().unwrap();
    wal.note(b"alone".to_vec());
    let began = std::time::Instant::now();
    while there(&host).len() < 5 {
        assert!(began.elapsed() < Duration::from_secs(30), "a note is not written");
        std::thread::yield_now();
    }
    wal.note(b"last".to_vec());
    drop(wal);
    assert_eq!(there(&host)[4..], [&b"alone"[..], b"last"]);
}

#[test]
fn files_are_for_their_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("log");
    let wal = begin(&dir);
    append(&wal, &[b"secret"]);
    drop(wal);
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&dir), 0o700);
    for name in Host::real().disk.list(&dir).unwrap() {
        assert_eq!(mode(&dir.join(&name)), 0o600, "{name}");
    }
}

/// The bytes of a log as version 2 of the format has them. When this fails, the format has changed: give it a new version
/// (`FORMAT` in dir.rs, docs/formats.md), or read the old one.
#[test]
fn the_format_is_that_of_version_2() {
    let head = Head { number: 1, nonce: 0x0102_0304_0506_0708, end: 9, chain: 10, length: 64 + 12 + 16 };
    let mut segment = head.encode().to_vec();
    let chain = format::checksum(head.chain_begin(), b"body");
    segment.extend_from_slice(b"\x04\0\0\0");
    segment.extend_from_slice(&chain.to_le_bytes());
    segment.extend_from_slice(b"body");
    segment.extend_from_slice(&format::mark(76, chain, head.nonce));
    let hex: String = segment.iter().map(|byte| format!("{byte:02x}")).collect();
    let (slot, at) = Index { sequence: 3, first: 1, last: 2 }.encode();
    let slot: String = slot.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!((hex.as_str(), slot.as_str(), at), (GOLDEN_SEGMENT, GOLDEN_SLOT, 512));
    let read = format::parse(&segment, 1).unwrap();
    assert_eq!((read.bodies[0].bytes.as_slice(), read.synced), (&b"body"[..], 76));
}

const GOLDEN_SEGMENT: &str = "\
    434f52414c4f47320100000000000000080706050403020109000000000000000a0000005c00000000000000000000000000000000000000\
    000000007683c384040000000d175f1b626f6479f553594e4c0000000d175f1b60c80297";
const GOLDEN_SLOT: &str = "03000000000000000100000000000000020000000000000076d26ec0";
