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
    /// A recovery was cut when the new data had the place of the old, and these not yet the new one's: what is there is nobody's.
    is_cut: bool,
}

impl Recovery {
    /// Looks at the server in `dir`, and changes nothing. Blocks.
    pub fn look(dir: &Path) -> Result<Recovery, RecoverError> {
        let control = dir.join("control");
        if !dir.join("CLUSTER").is_file() || !control.is_dir() {
            return Err(RecoverError::Nothing { dir: dir.into() });
        }
        let before = dir.join(BEFORE);
        if !before.exists() {
            return Ok(Recovery { dir: dir.into(), survivor: Survivor::read(&control)?, is_cut: false });
        }
        // Data from before a recovery are never those of a member alone, for there is nothing to recover of such a one. So this is what
        // was made for one that has others still, and the two never changed places.
        match (Survivor::read(&before), Survivor::read(&control)) {
            (Err(coracle_keyspace::RecoverError::Alone(member)), Ok(survivor)) if member == survivor.member() => {
                Ok(Recovery { dir: dir.into(), survivor, is_cut: true })
            }
            _ => Err(RecoverError::Before { path: before }),
        }
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
        // Of an attempt that was cut off. Under the name of what is made first: a part of it is never taken for something whole.
        if self.is_cut {
            fs::remove_dir_all(&work).or_else(absent).map_err(failed(&work))?;
            fs::rename(&before, &work).map_err(failed(&before))?;
        }
        fs::remove_dir_all(&work).or_else(absent).map_err(failed(&work))?;
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

fn absent(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

#[cfg(test)]
mod tests {
    use coracle_keyspace::{Begin, Config, Formats, Hub, Keyspace, Promotion, Role};

    use super::*;
    use crate::group::tests::until;

    /// The data of one of three servers, in a directory that is a founded cluster's.
    async fn one_of_three(dir: &Path) {
        let (hub, others) = (Hub::new(), [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()]);
        let mut members = vec![Keyspace::open_at(Config::new(dir.join("control")), &hub).await.unwrap()];
        until("it has an address", async || (!members[0].members()[0].address.is_empty()).then_some(())).await;
        for (other, name) in others.iter().zip(["second", "third"]) {
            let admission = members[0].admit_until(name, Formats::OWN, Promotion::WhenCaughtUp).await.unwrap();
            let config = Config { begin: Begin::Join(admission), ..Config::new(other.path()) };
            members.push(Keyspace::open_at(config, &hub).await.unwrap());
        }
        let voters = || members[0].members().iter().filter(|member| member.role == Role::Voter).count();
        until("there are three", async || (voters() == 3).then_some(())).await;
        for member in members.into_iter().rev() {
            member.shutdown().await;
        }
        fs::write(dir.join("CLUSTER"), "").unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_recovery_that_was_cut_between_its_renames_is_begun_again_and_one_that_was_done_is_not() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().to_owned();
        one_of_three(&dir).await;
        let carry_out = async || {
            let dir = dir.clone();
            tokio::task::spawn_blocking(move || Recovery::look(&dir)?.carry_out()).await.unwrap()
        };
        carry_out().await.unwrap();
        assert!(matches!(Survivor::read(&dir.join("control")), Err(coracle_keyspace::RecoverError::Alone(1))));
        // As a crash between the two renames leaves them: the new data is where the old is to be kept.
        renameat_with(CWD, dir.join(BEFORE), CWD, dir.join("control"), RenameFlags::EXCHANGE).unwrap();
        assert!(Survivor::read(&dir.join("control")).is_ok());
        carry_out().await.unwrap();
        assert!(matches!(Survivor::read(&dir.join("control")), Err(coracle_keyspace::RecoverError::Alone(1))));
        assert!(Survivor::read(&dir.join(BEFORE)).is_ok(), "the data as it was is kept");
        assert!(!dir.join(WORK).exists());
        assert!(matches!(carry_out().await, Err(RecoverError::Before { .. })));
    }
}
