//! The scheduler: it finds a node for every pod that has none, as an ordinary client of the API (kubernetes-api §21).
//!
//! A pure core ([`decide`]) works on a view of the cluster that is kept event by event ([`view`]); pods that are alike
//! are filtered and scored once ([`class`]), and what pods mean for each other is counted as they come and go
//! ([`relations`]). The loop ([`cycle`]) owns both, sends bindings in batches ([`bind`]) and lets pods that no node can
//! take wait for what helps them ([`queue`]). How fast the core is, [`mod@bench`] says.

pub mod bench;
mod bind;
mod class;
mod cycle;
mod decide;
mod domains;
mod filter;
mod preempt;
mod queue;
mod relations;
mod report;
mod resources;
mod score;
#[cfg(test)]
mod stories;
#[cfg(test)]
mod tests;
mod view;
mod volumes;
mod wire;

use tokio_util::sync::CancellationToken;

/// What the scheduler needs to know: nothing yet that a user should set.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Config {}

/// Schedules until `shutdown`; returns when what was sent has been answered.
pub async fn run(client: kube::Client, _config: Config, shutdown: CancellationToken) {
    let reporter = report::Reporter::default();
    tokio::join!(
        cycle::run(client.clone(), reporter.clone(), shutdown.clone()),
        reporter.clone().send_events(client.clone(), shutdown.clone()),
        reporter.write_conditions(client, shutdown),
    );
}
