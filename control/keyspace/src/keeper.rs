//! The duty beside the requests: writing checkpoints, cutting the log.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use crate::raft::Member;

/// How often it looks when nothing calls it.
const TICK: Duration = Duration::from_secs(5);
/// Whatever changed is in a checkpoint after this time.
const CHECKPOINT_AGE: Duration = Duration::from_secs(120);
/// After a failure the next try waits. One that the disk refused has stopped Raft (`Keyspace::failed`); this is for a
/// disk that is too slow.
const RETRY_AFTER: Duration = Duration::from_secs(30);

/// Runs until `stopped` says so. Cancelling it between two steps loses nothing.
pub(crate) async fn run(member: Arc<Member>, mut stopped: watch::Receiver<bool>) {
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut checkpointed = Instant::now();
    let mut retry_at = Instant::now();
    loop {
        tokio::select! {
            _ = tick.tick() => (),
            // A large log calls for as long as it is large: a failed checkpoint is tried again by the tick alone.
            () = member.log_grown(), if Instant::now() >= retry_at => (),
            _ = stopped.wait_for(|stopped| *stopped) => return,
        }
        let now = Instant::now();
        // What is in the log counts, whether it changed a record or not: entries that did nothing take room too.
        let due = member.is_log_large() || now.duration_since(checkpointed) >= CHECKPOINT_AGE;
        if due && now >= retry_at && member.has_news() {
            match member.checkpoint().await {
                Ok(()) => {
                    tracing::debug!(elapsed_ms = now.elapsed().as_millis() as u64, "wrote a checkpoint");
                    checkpointed = Instant::now();
                }
                Err(error) => {
                    tracing::error!(%error, "write a checkpoint; the log grows until one succeeds");
                    retry_at = now + RETRY_AFTER;
                }
            }
        }
    }
}
