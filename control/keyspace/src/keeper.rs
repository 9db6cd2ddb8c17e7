//! The duty beside the requests: writing checkpoints, cutting the log.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::host;
use crate::raft::Member;

/// How often it looks when nothing calls it.
const TICK: Duration = Duration::from_secs(5);
/// The same while a checkpoint fails.
const TICK_FAILING: Duration = Duration::from_secs(1);
/// Whatever changed is in a checkpoint after this time.
const CHECKPOINT_AGE: Duration = Duration::from_secs(120);
/// What a burst leaves in the log's memory is good for nobody, and would stay until that age: with this much more than the last
/// checkpoint left there, the next is written as soon as less than [`RESTING`] is added between two looks.
const LEFT: usize = 2 << 20;
const RESTING: usize = 64 << 10;
/// How long after a failed checkpoint the next try comes at first; doubled with each failure up to the second.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(16));

/// Runs until `stopped` says so. Cancelling it between two steps loses nothing.
pub(crate) async fn run(member: Arc<Member>, mut stopped: watch::Receiver<bool>) {
    let mut checkpointed = host::now();
    let (mut retry_at, mut retry_after) = (host::now(), RETRY.0);
    let mut failing = false;
    // Bytes of the log in memory: at the last look, and the least since the last checkpoint.
    let (mut before, mut least) = (0, 0);
    loop {
        let patience = if failing { TICK_FAILING } else { TICK };
        tokio::select! {
            () = tokio::time::sleep(patience) => (),
            // A large log calls for as long as it is large: a failed checkpoint is tried again by the clock alone.
            () = member.log_grown(), if host::now() >= retry_at => (),
            _ = stopped.wait_for(|stopped| *stopped) => return,
        }
        let now = host::now();
        // What is in the log counts, whether it changed a record or not: entries that did nothing take room too.
        let is_old = now.duration_since(checkpointed) >= CHECKPOINT_AGE;
        let bytes = member.log_bytes();
        least = least.min(bytes);
        let rests = bytes - least >= LEFT && bytes.abs_diff(before) < RESTING;
        before = bytes;
        let due = failing || member.is_log_large() || is_old || rests || member.is_rotation_owed();
        if now < retry_at {
            continue;
        }
        if !due || !member.has_news() {
            // A hold has ended, or a full disk needs what was kept.
            if member.is_cut_due()
                && let Err(error) = member.cut_log().await
            {
                tracing::debug!(%error, "cut the log; it is tried again");
            }
            continue;
        }
        match member.checkpoint().await {
            Ok(()) => {
                tracing::debug!(elapsed_ms = now.elapsed().as_millis() as u64, "wrote a checkpoint");
                (checkpointed, retry_after, failing) = (host::now(), RETRY.0, false);
                least = member.log_bytes();
            }
            Err(error) => {
                if !failing {
                    tracing::error!(%error, "write a checkpoint; it is tried again, and the log grows meanwhile");
                }
                failing = true;
                retry_at = host::now() + retry_after;
                retry_after = (retry_after * 2).min(RETRY.1);
            }
        }
    }
}
