//! Benchmarks that print figures; they judge nothing.
//!
//! Those of a whole cluster start the real executable in a temporary directory on free ports and measure it from
//! outside. Peers that do the same work run in the same minute, each in a process of its own, since machines differ and are noisy.

mod cluster;
mod cost;
mod deploy;
mod failover;
mod gigabyte;
mod group;
mod http;
mod many_nodes;
mod mesh;
mod node_killed;
mod rollout;
mod servers;

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;

pub use http::{Answer, http_get, http_get_ok, peer};

/// The benchmarks' names, in the order in which all of them run.
pub const NAMES: [&str; 13] = [
    "keyspace",
    "engine",
    "neighbours",
    "deploy",
    "rollout",
    "http",
    "mesh",
    "placements",
    "failover",
    "group",
    "gigabyte",
    "node-killed",
    "many-nodes",
];

/// How often `failover` kills the leader, and has it hand over, unless somebody says otherwise.
pub const ROUNDS: usize = 30;

/// Nodes on which `placements` places as many pods.
const PLACEMENT_NODES: usize = 5_000;

/// What some benchmarks are told.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// How often `failover` kills the leader, and has it hand over.
    pub rounds: usize,
    /// The kubeconfig of a cluster that `group` writes to in turns with its own.
    pub reference: Option<PathBuf>,
}

/// Whatever went wrong in a benchmark.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// One measured figure.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// What was measured.
    pub name: String,
    /// How much.
    pub value: f64,
    /// Of what.
    pub unit: &'static str,
}

impl Figure {
    fn new(name: impl Into<String>, value: f64, unit: &'static str) -> Figure {
        Figure { name: name.into(), value, unit }
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = if self.value.abs() < 100.0 { 2 } else { 0 };
        write!(f, "{:<44} {:>12.digits$} {}", self.name, self.value, self.unit)
    }
}

/// Runs the benchmark `name` (one of [`NAMES`]); `program` is the coracle executable. Calls `report` with each figure
/// as soon as it is known, and `doing` with what it does meanwhile, where that takes long.
pub async fn run(
    name: &str,
    program: &Path,
    options: &Options,
    mut report: impl FnMut(Figure),
    mut doing: impl FnMut(String),
) -> Result<(), Error> {
    match name {
        "keyspace" => {
            let dir = tempfile::tempdir()?;
            for figure in coracle_server::keyspace_bench::run(dir.path()).await? {
                report(Figure::new(figure.name, figure.value, figure.unit));
            }
        }
        "engine" => {
            let dir = tempfile::tempdir()?;
            let hello = crate::component(&cluster::examples()?, "hello").await?;
            for figure in coracle_node::engine_bench(dir.path(), &hello).await? {
                report(Figure::new(figure.name, figure.value, figure.unit));
            }
        }
        "neighbours" => {
            let dir = tempfile::tempdir()?;
            let examples = cluster::examples()?;
            let hello = crate::component(&examples, "hello").await?;
            let hostile = crate::component(&examples, "hostile").await?;
            let report = |figure: coracle_node::Figure| report(Figure::new(figure.name, figure.value, figure.unit));
            coracle_node::neighbours_bench(dir.path(), &hello, &hostile, report).await?;
        }
        "deploy" => deploy::run(program, &mut report).await?,
        "rollout" => rollout::run(program, &mut report).await?,
        "http" => http::run(program, &mut report).await?,
        "mesh" => mesh::run(program, &mut report, &mut doing).await?,
        "placements" => {
            let placed = tokio::task::spawn_blocking(|| {
                coracle_server::placements_bench::scheduler_perf(PLACEMENT_NODES, PLACEMENT_NODES).collect::<Vec<_>>()
            });
            for (case, rate) in placed.await? {
                report(Figure::new(format!("placements.{case}"), rate, "/s"));
            }
        }
        "failover" => failover::run(program, options.rounds, &mut report, &mut doing).await?,
        "group" => group::run(program, options.reference.as_deref(), &mut report, &mut doing).await?,
        "gigabyte" => gigabyte::run(program, &mut report, &mut doing).await?,
        "node-killed" => node_killed::run(program, &mut report, &mut doing).await?,
        "many-nodes" => many_nodes::run(program, &mut report, &mut doing).await?,
        other => return Err(format!("no benchmark is called {other:?}; there are {}", NAMES.join(", ")).into()),
    }
    Ok(())
}
