//! The duty that keeps the [history](crate::history): writes what was applied, behind everybody's back, and forgets.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use crate::raft::Machine;

/// How often it writes and forgets when little is applied. What a crash takes until then, the log says again.
const TICK: Duration = Duration::from_secs(5);

/// Runs until `stopped` says so, and writes what is left then.
pub(crate) async fn run(machine: Arc<Machine>, mut stopped: watch::Receiver<bool>) {
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut running = true;
    while running {
        let trims = tokio::select! {
            _ = tick.tick() => true,
            () = machine.history_due.notified() => false,
            _ = stopped.wait_for(|stopped| *stopped) => {
                running = false;
                false
            }
        };
        let machine = machine.clone();
        let work = tokio::task::spawn_blocking(move || {
            machine.write_history();
            if trims {
                machine.trim_history(Instant::now());
                machine.state.write().tick(Instant::now());
            }
        });
        if let Err(error) = work.await {
            tracing::error!(%error, "keep the watch history");
        }
    }
}
