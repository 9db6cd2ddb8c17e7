//! The one server that is left of a cluster goes on alone: its data is made anew beside its place, and the two change places in one
//! step. What was there stays, for whoever finds the others again.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

pub use coracle_keyspace::Lost;
use coracle_keyspace::Survivor;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use tokio::runtime::Handle;

use crate::founding;

/// Where the data as it was before stays.
pub const BEFORE: &str = "control.before-recovery";
/// Where the new data is made.
pub const WORK: &str = "control.recovering";

/// Why the server does not go on alone; it is as it was.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// The data.
    #[error(transparent)]
    Data(#[from] coracle_keyspace::RecoverError),
    /// There is no cluster's data.
    #[error("there is no cluster's data in {dir}")]
    Nothing {
        /// The directory.
        dir: PathBuf,
    },
    /// What it would keep is there from another time.
    #[error(
        "{path} is there from an earlier recovery: move it away, or delete it if the servers that were lost then are gone for good"
    )]
    Before {
        /// Where it is.
        path: PathBuf,
    },
    /// A file.
    #[error("{path}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A server that does not run, and what it has; nobody can start it as long as this lives.
pub struct Recovery {
    dir: PathBuf,
    survivor: Survivor,
}

impl Recovery {
    /// Looks at the server in `dir`, and changes nothing. Blocks.
    pub fn look(dir: &Path) -> Result<Recovery, RecoverError> {
        let control = dir.join("control");
        if !dir.join("CLUSTER").is_file() || !control.is_dir() {
            return Err(RecoverError::Nothing { dir: dir.into() });
        }
        let before = dir.join(BEFORE);
        if before.exists() {
            return Err(RecoverError::Before { path: before });
        }
        Ok(Recovery { dir: dir.into(), survivor: Survivor::read(&control)? })
    }

    /// The server, and what it has.
    pub fn survivor(&self) -> &Survivor {
        &self.survivor
    }

    /// Has it go on alone from its next start. Blocks, within a runtime.
    pub fn carry_out(mut self) -> Result<(), RecoverError> {
        let (control, work, before) = (self.dir.join("control"), self.dir.join(WORK), self.dir.join(BEFORE));
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| RecoverError::File { path, source }
        };
        // Of an attempt that was cut off.
        match fs::remove_dir_all(&work) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(&work)(error)),
            _ => {}
        }
        let made = founding::closed_dir(&work).map_err(failed(&work));
        let made = made.and_then(|()| Ok(Handle::current().block_on(self.survivor.make(&work))?));
        let changed = made.and_then(|()| {
            let exchange = || -> io::Result<()> {
                rustix::fs::syncfs(File::open(&work)?)?;
                // First where the old data are kept: once they have changed places nothing deletes them, whenever this is cut off.
                fs::rename(&work, &before)?;
                let exchanged = renameat_with(CWD, &before, CWD, &control, RenameFlags::EXCHANGE);
                Ok(exchanged.inspect_err(|_| drop(fs::remove_dir_all(&before)))?)
            };
            exchange().map_err(failed(&control))
        });
        changed.inspect_err(|_| drop(fs::remove_dir_all(&work)))?;
        File::open(&self.dir).and_then(|dir| dir.sync_all()).map_err(failed(&self.dir))
    }
}
