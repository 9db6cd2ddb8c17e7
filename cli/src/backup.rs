//! `coracle backup` and `coracle restore`: a cluster in a file, and a new cluster of it.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use rustix::fs::{FlockOperation, OFlags};

use crate::backup_key::{self, Key};
use crate::cluster::{Which, default_dir, usage};
use crate::output::{Step, tell};

/// Write everything of a running cluster into a file: objects, keys, images
///
/// It is of one moment, and nobody who writes meanwhile waits. The cluster's keys are sealed in it under a backup key, and Secrets under
/// the cluster's: whoever has both files has the cluster, and without the key nobody can restore it.
#[derive(clap::Args)]
pub struct Arguments {
    /// Where it goes; `-` is standard output
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Replace a file that is there
    #[arg(long)]
    force: bool,
    /// Leave out the registry: pods of images that were pushed to the cluster start only after they were pushed again
    #[arg(long)]
    no_images: bool,
    /// The backup key, made where there is none; one may be used for many backups [default: FILE.key]
    #[arg(long, value_name = "KEY")]
    key_file: Option<PathBuf>,
    #[command(flatten)]
    which: Which,
}

/// Runs `coracle backup`.
pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let Arguments { file, force, no_images, key_file, which } = arguments;
    let is_stream = file == Path::new("-");
    let key_file = match key_file {
        Some(key_file) => key_file,
        None if is_stream => {
            return Err(usage("a backup on standard output needs --key-file: where its key is, or is to be"));
        }
        None => backup_key::beside(&file),
    };
    let remote = which.connect().await?;
    let step = Step::begin(format!("back up to {}", file.display()));
    let (contents, is_new);
    if is_stream {
        let key = Key::of(&key_file)?;
        contents = remote.backup(!no_images, &key.key, BufWriter::new(io::stdout())).await.context(WHAT)?.0;
        is_new = key.keep()?;
    } else {
        check_place(&file)?;
        let part = Part::create(&file)?;
        // Nobody else makes one there from here on.
        if !force && file.exists() {
            bail!("{} is there already; --force replaces it", file.display());
        }
        let key = Key::of(&key_file)?;
        let to = BufWriter::new(part.file.try_clone().context("write the backup")?);
        (contents, _) = remote.backup(!no_images, &key.key, to).await.context(WHAT)?;
        // First: no backup has its place without its key.
        is_new = key.keep()?;
        part.finish(&file)?;
    }
    step.done();
    let images = if no_images { String::new() } else { format!(", {} files of the registry", contents.files) };
    tell!("revision {}: {} objects{images}, {} MiB", contents.revision, contents.records, contents.bytes >> 20);
    let new = if is_new { "the new" } else { "the" };
    tell!(
        "its keys are sealed under {new} backup key {} in {}: keep that apart from the backup, and keep it; nothing restores the \
         backup without it",
        contents.key,
        key_file.display()
    );
    if let Some(open @ 1..) = contents.open {
        tell!(
            "warning: {open} Secrets, or other objects that the cluster is to encrypt, are in the backup in the clear, since it has not \
             encrypted them yet: `coracle encryption status` says why. Whoever has the backup has them"
        );
    }
    if !contents.lacking.is_empty() {
        tell!("warning: no server has these images whole, so that the backup lacks them; push them again:");
        contents.lacking.iter().for_each(|image| tell!("  {image}"));
        match contents.lacking_count.saturating_sub(contents.lacking.len() as u64) {
            0 => {}
            more => tell!("  and {more} more"),
        }
    }
    Ok(())
}

const WHAT: &str = "back up the cluster";

/// Told before anything is written: a backup takes the place of a file, and not of a device that others use, of a link to one, or of a
/// directory.
fn check_place(file: &Path) -> anyhow::Result<()> {
    match std::fs::symlink_metadata(file) {
        Ok(found) if !found.is_file() => {
            bail!("{} is there already, and no file: choose another name, or - for standard output", file.display())
        }
        _ => Ok(()),
    }
}

/// How often the file is looked for anew that another backup has just finished.
const TAKE_MAX: usize = 16;

/// The backup under another name, until it is whole; it goes when it does not become that.
struct Part {
    file: File,
    path: Option<PathBuf>,
}

impl Part {
    /// Takes it for this backup alone. What one left that was cut off is written over: nobody holds it any more.
    fn create(file: &Path) -> anyhow::Result<Part> {
        let path = PathBuf::from(format!("{}.part", file.display()));
        let made = Part::take(&path).with_context(|| format!("write {}", path.display()))?;
        Ok(Part { file: made, path: Some(path) })
    }

    fn take(path: &Path) -> anyhow::Result<File> {
        for _ in 0..TAKE_MAX {
            let flags = OFlags::NOFOLLOW.union(OFlags::NONBLOCK).bits().cast_signed();
            let file =
                File::options().write(true).create(true).truncate(false).mode(0o600).custom_flags(flags).open(path)?;
            let found = file.metadata()?;
            // Somebody else might have it open, or read it: it is as secret as the cluster.
            let is_own = found.is_file() && found.uid() == rustix::process::geteuid().as_raw() && found.nlink() <= 1;
            if !is_own || found.mode() & 0o077 != 0 {
                bail!("it is there, and not what a backup leaves: delete it, or choose another name");
            }
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Err(rustix::io::Errno::WOULDBLOCK) => bail!("another backup is being written there"),
                other => other?,
            }
            // Whoever held it may have renamed or deleted it meanwhile.
            let is_there =
                std::fs::symlink_metadata(path).is_ok_and(|now| (now.dev(), now.ino()) == (found.dev(), found.ino()));
            if is_there {
                file.set_len(0)?;
                return Ok(file);
            }
        }
        bail!("other backups are being written there")
    }

    fn finish(mut self, file: &Path) -> anyhow::Result<()> {
        let path = self.path.take().context("a part is finished once")?;
        let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let moved = self.file.sync_all().and_then(|()| std::fs::rename(&path, file));
        let moved = moved.inspect_err(|_| drop(std::fs::remove_file(&path)));
        moved.and_then(|()| File::open(parent)?.sync_all()).with_context(|| format!("write {}", file.display()))
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Make a new cluster on this machine of a backup
///
/// It has the objects, keys and images of the backup, an id of its own, and this machine as its only server. `coracle up`
/// starts it.
#[derive(clap::Args)]
pub struct RestoreArguments {
    /// The backup; `-` is standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The backup key that it was made with [default: FILE.key]
    #[arg(long, value_name = "KEY")]
    key_file: Option<PathBuf>,
    /// Directory of the new cluster's data; must not be there, or be empty [default: ~/.local/share/coracle]
    #[arg(long, env = "CORACLE_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

/// Runs `coracle restore`.
pub async fn restore(arguments: RestoreArguments) -> anyhow::Result<()> {
    coracle_sdk::close_new_files();
    let dir = match &arguments.data_dir {
        Some(dir) => std::path::absolute(dir)?,
        None => default_dir("coracle")?,
    };
    let beside = backup_key::beside(&arguments.file);
    let key = match &arguments.key_file {
        Some(key_file) => Some(backup_key::read(key_file)?),
        None if arguments.file != Path::new("-") && beside.exists() => Some(backup_key::read(&beside)?),
        // One of an earlier version takes none; it says which one it takes.
        None => None,
    };
    let from: Box<dyn Read + Send> = match arguments.file.as_path() {
        path if path == Path::new("-") => Box::new(BufReader::new(io::stdin())),
        path => Box::new(BufReader::new(File::open(path).with_context(|| format!("open {}", path.display()))?)),
    };
    let step = Step::begin(format!("restore into {}", dir.display()));
    let restored = coracle_sdk::restore(from, &dir, key).await.context("restore the cluster")?;
    step.done();
    tell!(
        "cluster {} has the {} objects of revision {}{}; `coracle up` starts it",
        restored.cluster,
        restored.records,
        restored.revision,
        if restored.files == 0 { ", and no images" } else { "" }
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_backup_takes_the_place_of_a_file_only() {
        let dir = tempfile::tempdir().unwrap();
        let [file, link] = ["file", "link"].map(|name| dir.path().join(name));
        std::os::unix::fs::symlink("/dev/null", &link).unwrap();
        for other in [Path::new("/dev/null"), &link, dir.path()] {
            let told = check_place(other).unwrap_err().to_string();
            assert!(told.contains("no file"), "{told}");
        }
        check_place(&file).unwrap();
        std::fs::write(&file, "").unwrap();
        check_place(&file).unwrap();
    }

    #[test]
    fn what_a_backup_left_that_was_killed_stops_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("cluster.backup");
        let left = dir.path().join("cluster.backup.part");
        let open = |mode: u32| File::options().write(true).create(true).truncate(true).mode(mode).open(&left).unwrap();
        open(0o600).write_all(b"half a backup, and longer than the next").unwrap();
        let mut part = Part::create(&file).unwrap();
        part.file.write_all(b"whole").unwrap();
        // One at a time, and the first is not harmed.
        let told = Part::create(&file).map(drop).unwrap_err();
        assert!(format!("{told:#}").contains("another backup is being written"), "{told:#}");
        part.finish(&file).unwrap();
        assert_eq!((std::fs::read(&file).unwrap(), left.exists()), (b"whole".to_vec(), false));
        assert_eq!(std::fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
        // The finished one is held by nobody, and the next has a file of its own.
        let mut next = Part::create(&file).unwrap();
        next.file.write_all(b"x").unwrap();
        assert_eq!(std::fs::read(&file).unwrap(), b"whole");
        drop(next);
        assert!(!left.exists(), "what does not become a backup goes");
        // What somebody else may have prepared is not written to.
        drop(open(0o644));
        std::fs::set_permissions(&left, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
        assert!(Part::create(&file).is_err());
        std::fs::remove_file(&left).unwrap();
        std::os::unix::fs::symlink(&file, &left).unwrap();
        assert!(Part::create(&file).is_err());
        assert_eq!(std::fs::read(&file).unwrap(), b"whole");
    }
}
