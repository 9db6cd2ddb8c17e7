//! What only one server does at a time: controllers and scheduler, as ordinary clients of the API.

use coracle_keyspace::Lead;
use kube::Client;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Who they are at the API, as in Kubernetes.
const CONTROLLERS: &str = "system:kube-controller-manager";
const SCHEDULER: &str = "system:kube-scheduler";

/// Which of them run here; the others are another program's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Duties {
    /// The controllers.
    pub controllers: bool,
    /// The scheduler.
    pub scheduler: bool,
}

impl Default for Duties {
    fn default() -> Self {
        Self { controllers: true, scheduler: true }
    }
}

impl Duties {
    /// Runs them until `until`, and returns when what they had begun has ended. `client` gives a user its way to the API.
    pub async fn run(self, client: impl Fn(&str) -> Client, config: crate::DutiesConfig, until: CancellationToken) {
        let tasks = TaskTracker::new();
        if self.controllers {
            tasks.spawn(coracle_controllers::run(client(CONTROLLERS), config, until.clone()));
        }
        if self.scheduler {
            tasks.spawn(coracle_scheduler::run(client(SCHEDULER), coracle_scheduler::Config::default(), until));
        }
        tasks.close();
        tasks.wait().await;
    }

    /// Runs them for as long as this server leads, and again whenever it does, until `stop`. What they write through `client` is
    /// written under that lead or not at all.
    pub async fn run_while_leading(
        self,
        client: impl Fn(&str, Lead) -> Client,
        config: crate::DutiesConfig,
        mut lead: watch::Receiver<Option<Lead>>,
        stop: CancellationToken,
    ) {
        loop {
            let mine = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                lead = lead.wait_for(Option::is_some) => lead.ok().and_then(|lead| *lead),
            };
            let Some(mine) = mine else { return };
            tracing::info!(term = mine.term, duties = ?self, "this server leads: its duties run here");
            let until = stop.child_token();
            let duties = self.run(|user| client(user, mine), config.clone(), until.clone());
            let over = async {
                tokio::select! {
                    _ = lead.wait_for(|lead| *lead != Some(mine)) => tracing::info!("this server leads no more"),
                    () = stop.cancelled() => (),
                }
                until.cancel();
            };
            tokio::join!(duties, over);
        }
    }
}
