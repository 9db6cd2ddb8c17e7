//! The duty that keeps the [history](crate::history): writes what was applied, behind everybody's back, and forgets.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use crate::host;
use crate::raft::Machine;

/// How often it writes and forgets when little is applied. What a crash takes until then, the log says again.
const TICK: Duration = Duration::from_secs(5);

/// What was computed of records and not asked for goes after this many ticks, or twice as many.
const REST_EVERY: u32 = 3;

/// Runs until `stopped` says so, and writes what is left then.
pub(crate) async fn run(machine: Arc<Machine>, mut stopped: watch::Receiver<bool>) {
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut running, mut ticks) = (true, 0_u32);
    while running {
        let trims = tokio::select! {
            _ = tick.tick() => true,
            () = machine.history_due.notified() => false,
            _ = stopped.wait_for(|stopped| *stopped) => {
                running = false;
                false
            }
        };
        ticks += u32::from(trims);
        let rests = trims && ticks.is_multiple_of(REST_EVERY);
        let machine = machine.clone();
        let work = host::spawn_blocking(move || {
            machine.write_history();
            if trims {
                machine.trim_history(Instant::now());
                machine.state.write().tick(Instant::now());
            }
            if rests {
                let all = machine.state.read().all();
                all.iter().flat_map(|records| records.values()).for_each(|record| record.rest());
            }
        });
        if let Err(error) = work.await {
            tracing::error!(%error, "keep the watch history");
        }
    }
}
