//! `coracle backup` and `coracle restore`: a cluster in a file, and a new cluster of it.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use coracle_sdk::BackupError;

use crate::cluster::{Which, default_dir};
use crate::output::Step;

/// Write everything of a running cluster into a file: objects, keys, images
///
/// It is of one moment, and nobody who writes meanwhile waits. Whoever has the file has the cluster's keys and Secrets: it is
/// written for its owner alone.
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
    #[command(flatten)]
    which: Which,
}

/// Runs `coracle backup`.
pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let Arguments { file, force, no_images, which } = arguments;
    let remote = which.connect().await?;
    let step = Step::begin(format!("back up to {}", file.display()));
    let contents = if file == Path::new("-") {
        remote.backup(!no_images, BufWriter::new(io::stdout())).await.map_err(told)?.0
    } else {
        if !force && file.exists() {
            bail!("{} is there already; --force replaces it", file.display());
        }
        let part = Part::create(&file)?;
        let to = BufWriter::new(part.file.try_clone().context("write the backup")?);
        let (contents, _) = remote.backup(!no_images, to).await.map_err(told)?;
        part.finish(&file)?;
        contents
    };
    step.done();
    let images = if no_images { String::new() } else { format!(", {} files of the registry", contents.files) };
    eprintln!("revision {}: {} objects{images}, {} MiB", contents.revision, contents.records, contents.bytes >> 20);
    if !contents.lacking.is_empty() {
        eprintln!("warning: no server has these images whole, so that the backup lacks them; push them again:");
        contents.lacking.iter().for_each(|image| eprintln!("  {image}"));
    }
    Ok(())
}

/// That no cluster answers has an exit code of its own.
fn told(error: BackupError) -> anyhow::Error {
    let error = match error {
        BackupError::Ask(error) => error.into(),
        error => anyhow::Error::new(error),
    };
    error.context("back up the cluster")
}

/// The backup under another name, until it is whole; it goes when it does not become that.
struct Part {
    file: File,
    path: Option<PathBuf>,
}

impl Part {
    fn create(file: &Path) -> anyhow::Result<Part> {
        let path = PathBuf::from(format!("{}.part", file.display()));
        let made = File::options().write(true).create_new(true).mode(0o600).open(&path);
        let made = made.with_context(|| {
            format!("write {}; where a backup was cut off, delete what it has left", path.display())
        })?;
        Ok(Part { file: made, path: Some(path) })
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
    let from: Box<dyn Read + Send> = match arguments.file.as_path() {
        path if path == Path::new("-") => Box::new(BufReader::new(io::stdin())),
        path => Box::new(BufReader::new(File::open(path).with_context(|| format!("open {}", path.display()))?)),
    };
    let step = Step::begin(format!("restore into {}", dir.display()));
    let restored = coracle_sdk::restore(from, &dir).await.context("restore the cluster")?;
    step.done();
    eprintln!(
        "cluster {} has the {} objects of revision {}{}; `coracle up` starts it",
        restored.cluster,
        restored.records,
        restored.revision,
        if restored.files == 0 { ", and no images" } else { "" }
    );
    Ok(())
}
