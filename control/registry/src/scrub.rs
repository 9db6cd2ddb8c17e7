//! Contents are read again, all of them, over and over: what a disk has changed is found while another server still has it.
//!
//! It reads slowly, one content at a time and one piece after the other, so that nobody notices. Each start begins somewhere else: a
//! server that is started again and again comes everywhere all the same.

use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio_util::sync::CancellationToken;

use crate::Registry;
use crate::name::Digest;
use crate::store::Checked;

/// How long after a start, and after the end of a round, the next one begins.
const ROUND_AFTER: (Duration, Duration) = (Duration::from_secs(600), Duration::from_secs(7 * 24 * 3600));
/// Bytes that are read in a second: 100 GB take seven hours, of which a disk notices nothing.
const BYTES_PER_SECOND: u64 = 4 << 20;
/// What a content costs beside its bytes: to find it is to read, too.
const CONTENT_COSTS: u64 = 64 << 10;
/// Bytes after which others have their turn.
const PIECE_BYTES: u64 = 1 << 20;

/// What a round has found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Round {
    /// Contents that were read.
    pub read: u64,
    /// Those of them that were not what their digests say.
    pub damaged: u64,
}

impl Registry {
    /// Goes on and on until `stop`.
    pub async fn scrub(self, stop: CancellationToken) {
        let rounds = async {
            let mut wait = ROUND_AFTER.0;
            loop {
                tokio::time::sleep(wait).await;
                match self.scrub_once(BYTES_PER_SECOND).await {
                    Ok(Round { read, damaged }) => tracing::debug!(read, damaged, "contents of images were read"),
                    Err(error) => tracing::warn!(%error, "look whether contents of images are sound"),
                }
                wait = ROUND_AFTER.1;
            }
        };
        // The next start begins anew.
        tokio::select! {
            () = rounds => (),
            () = stop.cancelled() => (),
        }
    }

    /// Reads every content on this disk, `bytes_per_second`, and has what is damaged brought by another server.
    pub async fn scrub_once(&self, bytes_per_second: u64) -> io::Result<Round> {
        let mut contents = self.blocking(|inner| inner.store.all()).await?;
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let from = seconds.checked_rem(contents.len() as u64).unwrap_or_default();
        contents.rotate_left(usize::try_from(from).unwrap_or_default());
        let mut round = Round::default();
        for digest in contents {
            match self.scrub_content(digest, bytes_per_second).await? {
                None => (),
                Some(true) => round.read += 1,
                Some(false) => {
                    round = Round { read: round.read + 1, damaged: round.damaged + 1 };
                    // What is not to be had now is fetched later, as everything that is missing.
                    if let Err(why) = self.complete().await {
                        tracing::warn!(why, "a damaged content does not come from another server now");
                    }
                }
            }
        }
        Ok(round)
    }

    /// Whether the content is sound; `None` where it is gone.
    async fn scrub_content(&self, digest: Digest, bytes_per_second: u64) -> io::Result<Option<bool>> {
        let begun = self.blocking(move |inner| inner.store.check(&digest)).await?;
        let Some(mut checking) = begun else { return Ok(None) };
        let mut cost = CONTENT_COSTS;
        loop {
            let piece = self.blocking(move |inner| {
                let mut read = 0;
                while read < PIECE_BYTES {
                    match inner.store.check_on(&mut checking)? {
                        Checked::Read(bytes) => read += bytes as u64,
                        Checked::Done(is_sound) => return Ok((checking, Some(is_sound), read)),
                    }
                }
                Ok((checking, None, read))
            });
            let (back, done, read) = piece.await?;
            checking = back;
            let micros = (cost + read).saturating_mul(1_000_000) / bytes_per_second.max(1);
            tokio::time::sleep(Duration::from_micros(micros)).await;
            if done.is_some() {
                return Ok(done);
            }
            cost = 0;
        }
    }
}
