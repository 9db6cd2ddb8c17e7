//! Directories in which a guest may write, as the node touches them: a guest can put a symbolic link or a very deep tree anywhere
//! in them, at any moment.
//!
//! Paths are resolved beneath an open directory by the library that resolves the guests' own ([`cap_primitives`]: `openat2` with
//! `RESOLVE_BENEATH` where the kernel has it); a path that leads out is an error. What was opened is used by its descriptor
//! afterwards, so that nothing is resolved twice. Trees are walked without recursion and with few descriptors.

use std::collections::HashSet;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Component, Path, PathBuf};

use cap_primitives::fs::{DirOptions, OpenOptions};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

/// Directories within each other that are looked into when a tree is measured; what lies deeper makes it [`Usage::is_too_deep`].
/// Each level is a descriptor while it is measured.
const DEPTH_MAX: usize = 64;
/// Files and directories that are counted in one tree; what has more is [`Usage::is_too_deep`] as well.
const ENTRIES_MAX: u64 = 1_000_000;

/// An open directory beneath which paths are resolved. The path to it is the node's own.
pub struct Root(File);

/// What is at a path.
pub enum Found {
    /// A directory.
    Directory(File),
    /// A regular file.
    File(File),
}

impl Root {
    /// Opens the directory; its last component is not followed when it is a link.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(Self(File::from(rustix::fs::open(path, flags, Mode::empty())?)))
    }

    /// The directory or file at `path`; directories that are missing are made.
    pub fn find_or_make(&self, path: &Path) -> io::Result<Found> {
        match self.find(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.make(path).map(Found::Directory),
            found => found,
        }
    }

    /// The directory or file at `path`.
    pub fn find(&self, path: &Path) -> io::Result<Found> {
        checked(path)?;
        let mut options = OpenOptions::new();
        options.read(true);
        // A pipe must not make this wait. No guest can make one, but a volume may outlive that sentence.
        cap_primitives::fs::OpenOptionsExt::custom_flags(&mut options, OFlags::NONBLOCK.bits() as i32);
        let file = match cap_primitives::fs::open(&self.0, path, &options) {
            Err(error) if error.kind() == io::ErrorKind::IsADirectory => {
                return cap_primitives::fs::open_dir(&self.0, path).map(Found::Directory);
            }
            opened => opened?,
        };
        let kind = file.metadata()?.file_type();
        if kind.is_dir() {
            return Ok(Found::Directory(file));
        }
        if kind.is_file() {
            return Ok(Found::File(file));
        }
        Err(io::Error::new(io::ErrorKind::InvalidInput, "it is neither a directory nor a regular file"))
    }

    fn make(&self, path: &Path) -> io::Result<File> {
        let mut so_far = PathBuf::new();
        for component in path.components() {
            so_far.push(component);
            match cap_primitives::fs::create_dir(&self.0, &so_far, &DirOptions::new()) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                // One that is there already may be a link; the next step says whether it leads out.
                _ => {}
            }
        }
        cap_primitives::fs::open_dir(&self.0, path)
    }
}

/// A path within a directory, as text: relative and without `..`. That is for the message only; what decides is the kernel.
fn checked(path: &Path) -> io::Result<()> {
    match path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir)) {
        true => Ok(()),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "the path is not within the volume")),
    }
}

/// The path under which what is open can be opened again, for as long as it is open.
pub fn path_of(file: &impl AsFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_fd().as_raw_fd()))
}

/// Gives a file that is open a second name in `dir`: both are the same file from then on.
pub fn link(file: &File, dir: &Path, name: &str) -> io::Result<()> {
    let target = Root::open(dir)?;
    Ok(rustix::fs::linkat(rustix::fs::CWD, path_of(file), &target.0, name, AtFlags::SYMLINK_FOLLOW)?)
}

/// The first bytes of a regular file; a link in its place is not followed.
pub fn read_regular(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(bytes_max).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Removes a directory and everything in it; one that is not there is no error. Whoever writes in it meanwhile makes it last longer,
/// or fail at its end, and leads it nowhere else.
///
/// A directory within a directory of the top is moved to the top, so that neither the depth of a tree nor the length of its paths
/// matters.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    let top = match Root::open(path) {
        Ok(top) => top.0,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let mut moved = 0_u64;
    loop {
        let names = entries(&top)?;
        if names.is_empty() {
            break;
        }
        for name in names {
            if unlink(&top, &name)? {
                continue;
            }
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let dir = File::from(rustix::fs::openat(&top, &name, flags, Mode::empty())?);
            for child in entries(&dir)? {
                while !unlink(&dir, &child)? {
                    moved += 1;
                    let place = format!("..removed.{moved}");
                    match rustix::fs::renameat_with(&dir, &child, &top, place.as_str(), RenameFlags::NOREPLACE) {
                        Ok(()) => break,
                        Err(Errno::EXIST) => {}
                        Err(error) => return Err(error.into()),
                    }
                }
            }
            drop(dir);
            match rustix::fs::unlinkat(&top, &name, AtFlags::REMOVEDIR) {
                // It has more entries than were read; the next round reads on.
                Ok(()) | Err(Errno::NOTEMPTY) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    drop(top);
    Ok(rustix::fs::rmdir(path)?)
}

/// Removes what is no directory; false when it is one.
fn unlink(dir: &File, name: &CStr) -> io::Result<bool> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::ISDIR | Errno::PERM) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// At most this many names are read at once: the rest of a large directory is read when these are gone.
const NAMES_MAX: usize = 4096;

fn entries(dir: &File) -> io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if name.to_bytes() != b"." && name.to_bytes() != b".." {
            names.push(name.to_owned());
        }
        if names.len() >= NAMES_MAX {
            break;
        }
    }
    Ok(names)
}

/// What a tree takes on the disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of its blocks; a file that has several names in the tree is counted once.
    pub bytes: u64,
    /// Those of files that were not seen before ([`Seen`]).
    pub new_bytes: u64,
    /// Files and directories.
    pub entries: u64,
    /// There is more than was measured.
    pub is_too_deep: bool,
}

impl std::ops::AddAssign for Usage {
    fn add_assign(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.new_bytes += other.new_bytes;
        self.entries += other.entries;
        self.is_too_deep |= other.is_too_deep;
    }
}

/// What has no name any more and is open in this process, as guests have it: it takes its room until it is closed, and no walk
/// through a tree finds it.
#[derive(Debug, Default)]
pub struct Unnamed(Vec<(PathBuf, u64)>);

impl Unnamed {
    /// What there is now, each file once. What is opened or closed meanwhile may be among it or not.
    pub fn look() -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = rustix::fs::open("/proc/self/fd", flags, Mode::empty())?;
        let (mut found, mut seen) = (Vec::new(), Seen::new());
        for entry in rustix::fs::Dir::read_from(&open)? {
            let entry = entry?;
            let name = entry.file_name();
            if !name.to_bytes().iter().all(u8::is_ascii_digit) {
                continue;
            }
            // Through the link to what is open, whatever may have its name by now.
            let stat = match rustix::fs::statat(&open, name, AtFlags::empty()) {
                Ok(stat) => stat,
                // It was closed meanwhile, or is nothing that guests have: they have files of one disk, which answers.
                Err(_) => continue,
            };
            let is_kept = matches!(FileType::from_raw_mode(stat.st_mode), FileType::RegularFile | FileType::Directory);
            if !is_kept || stat.st_nlink > 0 || !seen.insert((stat.st_dev, stat.st_ino)) {
                continue;
            }
            // Where it was when it lost its last name.
            if let Ok(path) = rustix::fs::readlinkat(&open, name, Vec::new()) {
                let path = PathBuf::from(std::ffi::OsString::from_vec(path.into_bytes()));
                found.push((path, u64::try_from(stat.st_blocks).unwrap_or(0) * 512));
            }
        }
        Ok(Self(found))
    }

    /// What of it was beneath this directory.
    pub fn beneath(&self, dir: &Path) -> Usage {
        // The kernel's paths have no links.
        let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
        let mut usage = Usage::default();
        for (path, bytes) in &self.0 {
            if path.starts_with(&dir) && *path != dir {
                usage += Usage { bytes: *bytes, new_bytes: *bytes, entries: 1, is_too_deep: false };
            }
        }
        usage
    }
}

/// Files with several names that were counted already, in whatever tree: device and number. At most [`ENTRIES_MAX`] for each tree.
pub type Seen = HashSet<(u64, u64)>;

/// Measures a tree while others may write in it. Symbolic links are counted and not followed; a file that has several names is
/// counted once in the tree ([`Usage::bytes`]) and once in all trees that are measured with the same `seen`
/// ([`Usage::new_bytes`]). An error is never
/// "nothing": how much there is is not known then.
pub fn usage(path: &Path, seen: &mut Seen) -> io::Result<Usage> {
    let mut usage = Usage::default();
    let mut here = Seen::new();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = |dir: &OwnedFd, name: &CStr| rustix::fs::openat(dir, name, flags, Mode::empty());
    let top = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(top) => top,
        Err(Errno::NOENT) => return Ok(usage),
        Err(error) => return Err(error.into()),
    };
    let mut stack = vec![(rustix::fs::Dir::read_from(&top)?, top)];
    loop {
        let depth = stack.len();
        let Some((names, dir)) = stack.last_mut() else { break };
        let Some(entry) = names.next() else {
            stack.pop();
            continue;
        };
        let entry = entry?;
        let name = entry.file_name();
        if name.to_bytes() == b"." || name.to_bytes() == b".." {
            continue;
        }
        let stat = match rustix::fs::statat(&*dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            // What has just gone takes nothing.
            Err(Errno::NOENT) => continue,
            Err(error) => return Err(error.into()),
        };
        usage.entries += 1;
        let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        let bytes = u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
        // One with a single name may have had more a moment ago, when it was seen.
        let (is_single, id) = (is_directory || stat.st_nlink == 1, (stat.st_dev, stat.st_ino));
        if is_single || here.insert(id) {
            usage.bytes += bytes;
        }
        if is_single || seen.insert(id) {
            usage.new_bytes += bytes;
        }
        if usage.entries >= ENTRIES_MAX {
            usage.is_too_deep = true;
            break;
        }
        if is_directory {
            if depth >= DEPTH_MAX {
                usage.is_too_deep = true;
            } else {
                match open(dir, name) {
                    Ok(below) => stack.push((rustix::fs::Dir::read_from(&below)?, below)),
                    // It has gone, or something else has its name.
                    Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
    }
    Ok(usage)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn nothing_leads_out_of_a_root() {
        let dir = tempfile::tempdir().unwrap();
        let (volume, secret) = (dir.path().join("v"), dir.path().join("secret"));
        std::fs::create_dir(&volume).unwrap();
        std::fs::create_dir(&secret).unwrap();
        std::fs::write(secret.join("key"), "private").unwrap();
        std::fs::create_dir(volume.join("real")).unwrap();
        std::fs::write(volume.join("real/file"), "x").unwrap();
        for (name, target) in [
            ("up", "../secret"),
            ("file", "../secret/key"),
            ("absolute", secret.to_str().unwrap()),
            ("new", "../made"),
            ("twice", "real/../../secret"),
            ("inside", "real"),
        ] {
            symlink(target, volume.join(name)).unwrap();
        }
        let root = Root::open(&volume).unwrap();
        for path in
            ["up", "up/sub/dir", "file", "absolute", "absolute/x", "new", "new/x", "twice", "../secret", "/", "a/../b"]
        {
            assert!(root.find_or_make(Path::new(path)).is_err(), "{path}");
        }
        assert!(!dir.path().join("made").exists());
        assert_eq!(std::fs::read_dir(&secret).unwrap().count(), 1, "nothing was made outside");
        for path in ["real", "inside", "a/b/c", "inside/d"] {
            assert!(matches!(root.find_or_make(Path::new(path)), Ok(Found::Directory(_))), "{path}");
        }
        assert!(volume.join("real/d").is_dir());
        let Found::File(file) = root.find_or_make(Path::new("inside/file")).unwrap() else { panic!("a file") };
        let other = dir.path().join("other");
        std::fs::create_dir(&other).unwrap();
        link(&file, &other, "name").unwrap();
        std::fs::write(other.join("name"), "written").unwrap();
        assert_eq!(std::fs::read_to_string(volume.join("real/file")).unwrap(), "written");
        // The root itself may not be a link either.
        assert!(Root::open(&volume.join("inside")).is_err());
    }

    #[test]
    fn a_message_is_a_regular_file_and_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("f"), dir.path().join("l"));
        std::fs::write(&file, "0123456789").unwrap();
        std::fs::File::options().write(true).open(&file).unwrap().set_len(1 << 40).unwrap();
        symlink(&file, &link).unwrap();
        assert_eq!(read_regular(&file, 4).unwrap(), b"0123");
        assert!(read_regular(&link, 4).is_err());
        assert!(read_regular(dir.path(), 4).is_err());
    }

    #[test]
    fn what_has_lost_its_name_is_found_while_it_is_open() {
        let dir = tempfile::tempdir().unwrap();
        // A place that is called by a link.
        let (real, called) = (dir.path().join("real"), dir.path().join("called"));
        std::fs::create_dir_all(real.join("v/a")).unwrap();
        symlink(&real, &called).unwrap();
        let hidden = |name: &str, kib: usize| {
            let path = real.join(name);
            std::fs::write(&path, vec![1; kib << 10]).unwrap();
            let file = File::open(&path).unwrap();
            std::fs::remove_file(&path).unwrap();
            file
        };
        let (mut files, named) =
            (vec![hidden("v/a/x", 300), hidden("v/y", 200), hidden("z", 400)], real.join("v/named"));
        files.push(files[0].try_clone().unwrap());
        std::fs::write(&named, vec![1; 100_000]).unwrap();
        files.push(File::open(&named).unwrap());
        // Its directory goes as well.
        std::fs::remove_dir(real.join("v/a")).unwrap();
        let kib = |dir: &Path| Unnamed::look().unwrap().beneath(dir).bytes >> 10;
        let measured = [called.join("v"), called, real.join("v/y")].map(|dir| kib(&dir));
        assert!((500..520).contains(&measured[0]) && (900..930).contains(&measured[1]), "each once: {measured:?}");
        assert_eq!(measured[2], 0, "one that has another's name has not its bytes");
        files.clear();
        assert_eq!(kib(&real), 0);
    }

    /// A tree deeper than there are descriptors and longer than a path can be, with links out of it.
    fn deep(top: &Path, depth: usize) {
        std::fs::create_dir(top).unwrap();
        let mut at = File::open(top).unwrap();
        for _ in 0..depth {
            rustix::fs::mkdirat(&at, "directory", Mode::RWXU).unwrap();
            rustix::fs::symlinkat("/etc", &at, "link").unwrap();
            let flags = OFlags::RDONLY | OFlags::DIRECTORY;
            at = File::from(rustix::fs::openat(&at, "directory", flags, Mode::empty()).unwrap());
        }
    }

    #[test]
    fn removes_and_measures_trees_of_any_depth() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().join("t");
        deep(&top, 5_000);
        std::fs::create_dir_all(top.join("a/b")).unwrap();
        std::fs::write(top.join("a/b/c"), vec![1; 100_000]).unwrap();
        let measured = usage(&top, &mut Seen::new()).unwrap();
        assert!(measured.is_too_deep && measured.bytes >= 100_000, "{measured:?}");
        assert!(!usage(&top.join("a"), &mut Seen::new()).unwrap().is_too_deep);
        remove_tree(&top).unwrap();
        assert!(!top.exists());
        remove_tree(&top).unwrap();
        symlink("/etc", &top).unwrap();
        assert!(remove_tree(&top).is_err(), "a link in its place is not followed");
        assert!(Path::new("/etc").exists());
    }
}
