//! A server goes on alone when a majority of the servers is lost for good.

use std::io;
use std::path::{Path, PathBuf};

use coracle_server::recover;
pub use coracle_server::recover::{Lost, RecoverError};

/// A server that does not run, and what it has; nobody can start it as long as this lives.
pub struct Recovery {
    dir: PathBuf,
    found: recover::Recovery,
}

impl Recovery {
    /// Looks at the server that keeps its data in `dir`, and changes nothing. Refused while it runs, and when there is nothing to
    /// recover.
    pub async fn look(dir: &Path) -> Result<Recovery, RecoverError> {
        let dir = dir.to_owned();
        let (path, ended) = (dir.clone(), dir.clone());
        let found = tokio::task::spawn_blocking(move || recover::Recovery::look(&path)).await;
        let found = found.map_err(|error| RecoverError::File { path: ended, source: io::Error::other(error) })??;
        Ok(Recovery { dir, found })
    }

    /// Its number among the servers.
    pub fn member(&self) -> u64 {
        self.found.survivor().member()
    }

    /// Everything that it has was written up to this revision.
    pub fn revision(&self) -> u64 {
        self.found.survivor().revision().get()
    }

    /// How many objects it has, and what else is kept beside them.
    pub fn records(&self) -> usize {
        self.found.survivor().records()
    }

    /// The servers that are no more of the cluster when it is carried out.
    pub fn lost(&self) -> Vec<Lost> {
        self.found.survivor().lost()
    }

    /// Where its data as it was stays when it is carried out.
    pub fn before(&self) -> PathBuf {
        self.dir.join(recover::BEFORE)
    }

    /// Has it be the only server of the cluster from its next start, with everything that it has. The others are refused then, and
    /// may join again with empty directories.
    pub async fn carry_out(self) -> Result<(), RecoverError> {
        let path = self.dir;
        let done = tokio::task::spawn_blocking(move || self.found.carry_out()).await;
        done.map_err(|error| RecoverError::File { path, source: io::Error::other(error) })?
    }
}
