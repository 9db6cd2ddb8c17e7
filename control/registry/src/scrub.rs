//! Contents are read again, all of them, over and over: what a disk has changed is found while another server still has it.
//!
//! It reads slowly, one content at a time and one piece after the other, so that nobody notices. Each start begins somewhere else: a
//! server that is started again and again comes everywhere all the same. What the disk does not give is looked at once more when
//! everything else was, and where it is not to be had then either, another server's takes its place; if none gives it, it stays, and is
//! asked for again as what is missing is ([`Registry::catch_up`]).

use std::collections::HashSet;
use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio_util::sync::CancellationToken;

use crate::Registry;
use crate::name::Digest;
use crate::replicas::NotHere;
use crate::store::{Checked, Found};

/// How long after a start, or a round that did not look at everything, and after the end of one that did, the next one begins.
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
    /// Those that the disk did not give, twice.
    pub unread: u64,
}

impl Registry {
    /// Goes on and on until `stop`.
    pub async fn scrub(self, stop: CancellationToken) {
        let rounds = async {
            let mut wait = ROUND_AFTER.0;
            loop {
                tokio::time::sleep(wait).await;
                wait = match self.scrub_once(BYTES_PER_SECOND).await {
                    Ok(Round { read, damaged, unread }) => {
                        tracing::debug!(read, damaged, unread, "contents of images were read");
                        ROUND_AFTER.1
                    }
                    Err(error) => {
                        tracing::warn!(%error, "look whether contents of images are sound");
                        ROUND_AFTER.0
                    }
                };
            }
        };
        // The next start begins anew.
        tokio::select! {
            () = rounds => (),
            () = stop.cancelled() => (),
        }
    }

    /// Reads every content on this disk, `bytes_per_second`, and has what is damaged, or not to be read, brought by another server.
    pub async fn scrub_once(&self, bytes_per_second: u64) -> io::Result<Round> {
        let mut contents = self.blocking(|inner| inner.store.all()).await?;
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let from = seconds.checked_rem(contents.len() as u64).unwrap_or_default();
        contents.rotate_left(usize::try_from(from).unwrap_or_default());
        let mut round = Round::default();
        let unread = self.scrub_each(contents, bytes_per_second, &mut round).await;
        let unread = self.scrub_each(unread, bytes_per_second, &mut round).await;
        round.unread = unread.len() as u64;
        for (digest, error) in self.replace(&unread).await? {
            tracing::warn!(%digest, %error, "what this disk does not give of an image does not come from another server now");
        }
        Ok(round)
    }

    /// Has those of `unread` that somebody names brought by others; gives those that do not come now, with why.
    pub(crate) async fn replace(&self, unread: &HashSet<Digest>) -> io::Result<Vec<(Digest, NotHere)>> {
        let mut failed = Vec::new();
        if unread.is_empty() {
            return Ok(failed);
        }
        let named = self.blocking(|inner| inner.names.contents().map_err(io::Error::other)).await?;
        for (digest, size) in named.into_iter().filter(|(digest, _)| unread.contains(digest)) {
            match self.obtain_anew(&digest, size, None).await {
                Ok(()) => tracing::info!(%digest, "what this disk does not give of an image came from another server"),
                Err(error) => failed.push((digest, error)),
            }
        }
        Ok(failed)
    }

    /// Reads each of `contents`; those that the disk did not give.
    async fn scrub_each(
        &self,
        contents: impl IntoIterator<Item = Digest>,
        bytes_per_second: u64,
        round: &mut Round,
    ) -> HashSet<Digest> {
        let mut unread = HashSet::new();
        for digest in contents {
            match self.scrub_content(digest.clone(), bytes_per_second).await {
                None => (),
                Some(Found::Sound) => round.read += 1,
                Some(Found::Damaged) => {
                    round.read += 1;
                    round.damaged += 1;
                    self.fetch_again().await;
                }
                Some(Found::Unread) => drop(unread.insert(digest)),
            }
        }
        unread
    }

    /// Has what is missing here brought by others. What is not to be had now is fetched later, as everything that is missing.
    async fn fetch_again(&self) {
        if let Err(why) = self.complete().await {
            tracing::warn!(why, "a damaged content does not come from another server now");
        }
    }

    /// What looking at the content has found; `None` where it is gone.
    async fn scrub_content(&self, digest: Digest, bytes_per_second: u64) -> Option<Found> {
        let begun = self.blocking(move |inner| inner.store.check(&digest)).await;
        let mut checking = match begun {
            Ok(checking) => checking?,
            Err(_) => return Some(Found::Unread),
        };
        let mut cost = CONTENT_COSTS;
        loop {
            let piece = self.blocking(move |inner| {
                let mut read = 0;
                while read < PIECE_BYTES {
                    match inner.store.check_on(&mut checking)? {
                        Checked::Read(bytes) => read += bytes as u64,
                        Checked::Done(found) => return Ok((checking, Some(found), read)),
                    }
                }
                Ok((checking, None, read))
            });
            let (back, done, read) = match piece.await {
                Ok(piece) => piece,
                // The disk does not even take that it has another name.
                Err(error) => {
                    tracing::warn!(%error, "set a damaged content of an image aside");
                    return Some(Found::Unread);
                }
            };
            checking = back;
            let micros = (cost + read).saturating_mul(1_000_000) / bytes_per_second.max(1);
            tokio::time::sleep(Duration::from_micros(micros)).await;
            if done.is_some() {
                return done;
            }
            cost = 0;
        }
    }
}
