//! A backup of a running cluster, and a new cluster made of one.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use coracle_server::SecretKey;
use coracle_server::backup::{Contents, Error, RestoreError, Restored, verify};
use http::Request;
use http_body_util::{BodyExt as _, Limited};
use kube::client::Body;
use tokio::sync::mpsc;

use crate::{AskError, Remote};

/// Pieces that wait between the network and the disk.
const PIECES_QUEUED: usize = 16;
/// Bytes of a refusal that are read.
const REFUSAL_BYTES_MAX: usize = 16 << 10;

/// Why there is no backup.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The cluster does not give one.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// What came is not whole.
    #[error("the backup is not whole")]
    NotWhole(#[source] Error),
    /// It cannot be written.
    #[error("write the backup")]
    Write(#[source] io::Error),
}

impl Remote {
    /// Writes a backup of the cluster to `to`, checking it on its way; without `images` the registry's files stay out of it. The
    /// cluster's keys are sealed in it under `key`, without which nobody can restore it.
    /// When this fails, what was written is no whole backup, and no restore takes it for one.
    pub async fn backup<W: Write + Send + 'static>(
        &self,
        images: bool,
        key: &SecretKey,
        to: W,
    ) -> Result<(Contents, W), BackupError> {
        let request = Request::post(format!("/coracle/v1/backup?images={images}"));
        let request = request.body(Body::from(key.to_hex().into_bytes())).expect("a request of constants");
        let answer = self.client().send(request).await.map_err(AskError::from)?;
        let (parts, mut body) = answer.into_parts();
        if !parts.status.is_success() {
            let said = Limited::new(body, REFUSAL_BYTES_MAX).collect().await.map(|body| body.to_bytes());
            let mut message = String::from_utf8_lossy(&said.unwrap_or_default()).into_owned();
            if parts.status == http::StatusCode::METHOD_NOT_ALLOWED {
                message =
                    "the server has a version that does not seal the keys in a backup: use the coracle of its version"
                        .into();
            }
            return Err(AskError::Refused { code: parts.status.as_u16(), message }.into());
        }
        let (send, pieces) = mpsc::channel(PIECES_QUEUED);
        let key = key.clone();
        let checked = tokio::task::spawn_blocking(move || {
            let mut tee = Tee { pieces, piece: Bytes::new(), to, failed: None };
            let verified = verify(&mut tee, Some(&key));
            match (tee.failed, verified) {
                (Some(error), _) => Err(BackupError::Write(error)),
                (None, Err(error)) => Err(BackupError::NotWhole(error)),
                // What the writer keeps back may be what finds no room.
                (None, Ok(contents)) => {
                    tee.to.flush().map_err(BackupError::Write)?;
                    Ok((contents, tee.to))
                }
            }
        });
        while let Some(frame) = body.frame().await {
            let piece = match frame {
                Ok(frame) => frame.into_data().map_err(|_| io::Error::other("something else than data came")),
                Err(error) => Err(io::Error::other(error)),
            };
            let is_last = piece.is_err();
            // Whoever checks has seen enough: it says why.
            if send.send(piece).await.is_err() || is_last {
                break;
            }
        }
        drop(send);
        checked.await.map_err(|error| BackupError::Write(io::Error::other(error)))?
    }
}

/// Reads what comes from the network, and writes what was read.
struct Tee<W> {
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    piece: Bytes,
    to: W,
    /// Why it could not be written.
    failed: Option<io::Error>,
}

impl<W: Write> Read for Tee<W> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.pieces.blocking_recv() {
                Some(piece) => self.piece = piece?,
                None => return Ok(0),
            }
        }
        let length = out.len().min(self.piece.len());
        let read = self.piece.split_to(length);
        if let Err(error) = self.to.write_all(&read) {
            let kind = error.kind();
            self.failed = Some(error);
            return Err(kind.into());
        }
        out[..length].copy_from_slice(&read);
        Ok(length)
    }
}

/// Makes the data directory `dir`, where there is none or an empty one, of the backup that `from` gives. A cluster that is
/// started there has the backup's objects, keys and images, and a new id; its only server is the one that is started. `key` is what
/// the backup was made with; one of version 1 takes none.
pub async fn restore(
    from: impl Read + Send + 'static,
    dir: &Path,
    key: Option<SecretKey>,
) -> Result<Restored, RestoreError> {
    let dir: PathBuf = dir.to_owned();
    let failed = |path: PathBuf| move |error| RestoreError::File { path, source: io::Error::other(error) };
    let path = dir.clone();
    let made = tokio::task::spawn_blocking(move || coracle_server::backup::restore(from, &dir, key.as_ref()));
    made.await.map_err(failed(path))?
}
