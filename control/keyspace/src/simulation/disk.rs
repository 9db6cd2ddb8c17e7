//! The disk: what was written is in its cache, page by page, until it is synced; a power cut keeps what it likes of the rest.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::host::{Disk, DiskFile, How, Locked, parent};

const PAGE: usize = 4096;
const SECTOR: usize = 512;
/// How long a log's write takes at most, as a rule.
const LATENCY: Duration = Duration::from_millis(3);

/// The disk; clones are the same one.
#[derive(Clone, Debug)]
pub struct SimDisk(Arc<Mutex<World>>);

#[derive(Debug)]
struct World {
    random: StdRng,
    files: BTreeMap<u64, Inode>,
    names: BTreeMap<PathBuf, u64>,
    dirs: BTreeSet<PathBuf>,
    /// The names that are on the disk, and the changes that are not, in order.
    durable_names: BTreeMap<PathBuf, u64>,
    durable_dirs: BTreeSet<PathBuf>,
    changes: Vec<Change>,
    next: u64,
    capacity: u64,
    /// How often there was no space, and how often it was asked for what is free.
    refused: u64,
    asked: u64,
    /// Steps until the power goes.
    power_for: Option<u64>,
    off: bool,
    /// Files that were opened before the last power cut are gone.
    epoch: u64,
    failing_syncs: u32,
    /// Syncs of files so far.
    syncs: u64,
    panics: bool,
    /// How long what a log writes may take.
    slowest: Duration,
    /// A planted fault: of files with these ends to their names it says that it has synced, and has not.
    lies: Option<&'static str>,
}

#[derive(Debug, Clone)]
enum Change {
    Name(PathBuf, u64),
    Rename(PathBuf, PathBuf, u64),
    Remove(PathBuf),
    Dir(PathBuf),
}

impl Change {
    fn dir(&self) -> &Path {
        match self {
            Change::Name(path, _) | Change::Rename(_, path, _) | Change::Remove(path) | Change::Dir(path) => {
                parent(path)
            }
        }
    }
}

#[derive(Debug, Default)]
struct Inode {
    content: Vec<u8>,
    durable: Vec<u8>,
    /// Pages that the next sync writes.
    dirty: BTreeSet<usize>,
}

impl SimDisk {
    /// An empty disk with room for everything.
    pub fn new(seed: u64) -> SimDisk {
        SimDisk(Arc::new(Mutex::new(World {
            random: StdRng::seed_from_u64(seed),
            files: BTreeMap::new(),
            names: BTreeMap::new(),
            dirs: BTreeSet::new(),
            durable_names: BTreeMap::new(),
            durable_dirs: BTreeSet::new(),
            changes: Vec::new(),
            next: 0,
            capacity: u64::MAX,
            refused: 0,
            asked: 0,
            power_for: None,
            off: false,
            epoch: 0,
            failing_syncs: 0,
            syncs: 0,
            panics: false,
            slowest: LATENCY,
            lies: None,
        })))
    }

    /// Has the power go after so many more steps.
    pub fn power_for(&self, steps: Option<u64>) {
        self.0.lock().power_for = steps;
    }

    /// Whether it has gone.
    pub fn is_off(&self) -> bool {
        self.0.lock().off
    }

    /// How much it holds.
    pub fn set_capacity(&self, bytes: u64) {
        self.0.lock().capacity = bytes;
    }

    /// Bytes that are used.
    pub fn used(&self) -> u64 {
        self.0.lock().used()
    }

    /// How often there was no space for something.
    pub fn refused(&self) -> u64 {
        self.0.lock().refused
    }

    /// How often somebody looked how much is free.
    pub fn asked(&self) -> u64 {
        self.0.lock().asked
    }

    /// How often a file was synced.
    pub fn syncs(&self) -> u64 {
        self.0.lock().syncs
    }

    /// The next syncs of files fail, and forget what they should have written.
    pub fn fail_syncs(&self, count: u32) {
        self.0.lock().failing_syncs = count;
    }

    /// The next sync of a file panics, as a library above it might.
    pub fn panic_once(&self) {
        self.0.lock().panics = true;
    }

    /// Takes the power away now; [`SimDisk::power_cut`] gives it back.
    pub fn power_off(&self) {
        self.0.lock().off = true;
    }

    /// Has what a log writes take up to so long, or as long as usual.
    pub fn set_slow(&self, slowest: Option<Duration>) {
        self.0.lock().slowest = slowest.unwrap_or(LATENCY);
    }

    /// How long what a log writes next takes.
    pub fn latency(&self) -> Duration {
        let mut world = self.0.lock();
        let most = world.slowest.as_micros() as u64;
        Duration::from_micros(world.random.random_range(0..=most))
    }

    /// Plants a fault: from now on a sync writes nothing.
    pub fn lie(&self) {
        self.lie_about("");
    }

    /// The same for files whose names end with `end`.
    pub fn lie_about(&self, end: &'static str) {
        self.0.lock().lies = Some(end);
    }

    /// Cuts the power, and gives it back: of what was not synced, any part is there.
    pub fn power_cut(&self) {
        self.0.lock().power_cut();
    }

    /// Everything there is.
    pub fn image(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let world = self.0.lock();
        world.names.iter().map(|(path, id)| (path.clone(), world.files[id].content.clone())).collect()
    }

    /// Puts `image` in the place of everything, on the disk.
    pub fn restore(&self, image: &BTreeMap<PathBuf, Vec<u8>>) {
        let mut world = self.0.lock();
        world.files.clear();
        world.names.clear();
        world.changes.clear();
        for (path, content) in image {
            world.next += 1;
            let id = world.next;
            world.files.insert(id, Inode { content: content.clone(), durable: content.clone(), ..Inode::default() });
            world.names.insert(path.clone(), id);
            for dir in path.ancestors().skip(1) {
                world.dirs.insert(dir.into());
                world.durable_dirs.insert(dir.into());
            }
        }
        world.durable_names = world.names.clone();
        world.epoch += 1;
    }
}

impl World {
    fn lies_about(&self, id: u64) -> bool {
        let is_meant = |path: &Path| self.lies.is_some_and(|end| path.to_string_lossy().ends_with(end));
        self.lies.is_some() && self.names.iter().any(|(path, of)| *of == id && is_meant(path))
    }

    fn used(&self) -> u64 {
        self.names.values().map(|id| self.files[id].content.len() as u64).sum()
    }

    /// One step that changes something: whatever it did is done when the power goes.
    fn step(&mut self) -> io::Result<()> {
        if let Some(steps) = &mut self.power_for {
            match steps.checked_sub(1) {
                Some(left) => *steps = left,
                None => self.off = true,
            }
        }
        self.on()
    }

    fn on(&self) -> io::Result<()> {
        if self.off { Err(io::Error::other("the power is gone")) } else { Ok(()) }
    }

    fn power_cut(&mut self) {
        let mut random = self.random.clone();
        for inode in self.files.values_mut() {
            let mut content = inode.durable.clone();
            if inode.content.len() != content.len() && random.random() {
                content.resize(inode.content.len(), 0);
            }
            for page in std::mem::take(&mut inode.dirty) {
                let whole: Option<bool> = random.random::<bool>().then(|| random.random());
                for sector in (page * PAGE..(page + 1) * PAGE).step_by(SECTOR) {
                    let end = (sector + SECTOR).min(content.len()).min(inode.content.len());
                    if sector < end && whole.unwrap_or_else(|| random.random()) {
                        content[sector..end].copy_from_slice(&inode.content[sector..end]);
                    }
                }
            }
            inode.content.clone_from(&content);
            inode.durable = content;
        }
        for change in std::mem::take(&mut self.changes) {
            if random.random() {
                self.make_durable(change);
            }
        }
        self.names.clone_from(&self.durable_names);
        self.dirs.clone_from(&self.durable_dirs);
        let reachable: BTreeSet<u64> = self.names.values().copied().collect();
        self.files.retain(|id, _| reachable.contains(id));
        self.random = random;
        self.off = false;
        self.power_for = None;
        self.epoch += 1;
    }

    fn make_durable(&mut self, change: Change) {
        match change {
            Change::Name(path, id) => {
                self.durable_names.insert(path, id);
            }
            Change::Rename(from, to, id) => {
                self.durable_names.remove(&from);
                self.durable_names.insert(to, id);
            }
            Change::Remove(path) => {
                self.durable_names.remove(&path);
            }
            Change::Dir(path) => {
                self.durable_dirs.insert(path);
            }
        }
    }

    fn grow(&mut self, id: u64, length: u64) -> io::Result<()> {
        let there = self.files[&id].content.len() as u64;
        if length > there {
            if self.used().saturating_add(length - there) > self.capacity {
                self.refused += 1;
                return Err(io::Error::new(io::ErrorKind::StorageFull, "no space left on the simulated disk"));
            }
            self.files.get_mut(&id).unwrap().content.resize(length as usize, 0);
        }
        Ok(())
    }
}

fn not_found() -> io::Error {
    io::ErrorKind::NotFound.into()
}

impl Disk for SimDisk {
    fn open(&self, path: &Path, how: How) -> io::Result<Arc<dyn DiskFile>> {
        let mut world = self.0.lock();
        world.on()?;
        let id = match (world.names.get(path).copied(), how) {
            (Some(id), How::Read | How::Write) => id,
            (None, How::Read | How::Write) => return Err(not_found()),
            (Some(id), How::Create) => {
                world.files.get_mut(&id).unwrap().content.clear();
                world.step()?;
                id
            }
            (None, How::Create) => {
                if !world.dirs.contains(parent(path)) {
                    return Err(not_found());
                }
                world.next += 1;
                let id = world.next;
                world.files.insert(id, Inode::default());
                world.names.insert(path.into(), id);
                world.changes.push(Change::Name(path.into(), id));
                world.step()?;
                id
            }
        };
        Ok(Arc::new(SimFile { disk: self.clone(), id, epoch: world.epoch }))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        let mut world = self.0.lock();
        for dir in path.ancestors() {
            if world.dirs.insert(dir.into()) {
                // What is above the data is not part of the play.
                if dir == path {
                    world.changes.push(Change::Dir(dir.into()));
                } else {
                    world.durable_dirs.insert(dir.into());
                }
            }
        }
        world.step()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut world = self.0.lock();
        world.on()?;
        let id = world.names.remove(from).ok_or_else(not_found)?;
        world.names.insert(to.into(), id);
        world.changes.push(Change::Rename(from.into(), to.into(), id));
        world.step()
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut world = self.0.lock();
        world.on()?;
        world.names.remove(path).ok_or_else(not_found)?;
        world.changes.push(Change::Remove(path.into()));
        world.step()
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let world = self.0.lock();
        world.on()?;
        if !world.dirs.contains(dir) {
            return Err(not_found());
        }
        let all = world.names.keys().chain(&world.dirs);
        let inside = all.filter(|path| path.parent() == Some(dir));
        let mut names: Vec<String> =
            inside.filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned())).collect();
        names.sort_unstable();
        Ok(names)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut world = self.0.lock();
        world.step()?;
        let (these, others) = std::mem::take(&mut world.changes).into_iter().partition(|change| change.dir() == dir);
        world.changes = others;
        let these: Vec<Change> = these;
        these.into_iter().for_each(|change| world.make_durable(change));
        Ok(())
    }

    fn lock(&self, _: &Path, _: &str) -> io::Result<Locked> {
        Ok(Locked::Ours(Box::new(())))
    }

    fn free(&self, _: &Path) -> io::Result<u64> {
        let mut world = self.0.lock();
        world.asked += 1;
        Ok(world.capacity.saturating_sub(world.used()))
    }
}

#[derive(Debug)]
struct SimFile {
    disk: SimDisk,
    id: u64,
    epoch: u64,
}

impl SimFile {
    fn with<T>(&self, act: impl FnOnce(&mut World) -> io::Result<T>) -> io::Result<T> {
        let mut world = self.disk.0.lock();
        world.on()?;
        if world.epoch != self.epoch || !world.files.contains_key(&self.id) {
            return Err(io::Error::other("opened before the power went"));
        }
        act(&mut world)
    }
}

impl DiskFile for SimFile {
    fn len(&self) -> io::Result<u64> {
        self.with(|world| Ok(world.files[&self.id].content.len() as u64))
    }

    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        self.with(|world| {
            let content = world.files[&self.id].content.get(offset as usize..).and_then(|rest| rest.get(..into.len()));
            into.copy_from_slice(content.ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        })
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.with(|world| {
            let (start, end) = (offset as usize, offset as usize + bytes.len());
            world.grow(self.id, end as u64)?;
            let inode = world.files.get_mut(&self.id).unwrap();
            inode.content[start..end].copy_from_slice(bytes);
            inode.dirty.extend(start / PAGE..end.div_ceil(PAGE));
            world.step()
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.with(|world| {
            world.step()?;
            world.syncs += 1;
            assert!(!std::mem::take(&mut world.panics), "the test has this panic");
            if world.lies_about(self.id) {
                return Ok(());
            }
            let inode = world.files.get_mut(&self.id).unwrap();
            if world.failing_syncs > 0 {
                world.failing_syncs -= 1;
                inode.dirty.clear();
                return Err(io::Error::other("the simulated disk failed to sync"));
            }
            inode.durable.resize(inode.content.len(), 0);
            for page in std::mem::take(&mut inode.dirty) {
                let (start, end) = (page * PAGE, ((page + 1) * PAGE).min(inode.content.len()));
                if start < end {
                    inode.durable[start..end].copy_from_slice(&inode.content[start..end]);
                }
            }
            Ok(())
        })
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.with(|world| {
            world.grow(self.id, length)?;
            let inode = world.files.get_mut(&self.id).unwrap();
            inode.content.truncate(length as usize);
            world.step()
        })
    }

    fn reserve(&self, offset: u64, length: u64) -> io::Result<()> {
        self.with(|world| {
            world.grow(self.id, offset + length)?;
            world.step()
        })
    }
}
