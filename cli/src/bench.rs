//! `coracle bench`: the benchmarks, one figure a line.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use anyhow::Context;
use clap::ValueEnum;
use coracle_sdk::bench;

use crate::output::Step;

/// Run the benchmarks and print one figure a line: name, value, unit
///
/// Each starts what it needs in a temporary directory on free ports and leaves nothing behind.
#[derive(clap::Args)]
pub struct Arguments {
    /// Which one; all when absent
    #[arg(value_parser = clap::builder::PossibleValuesParser::new(bench::NAMES))]
    name: Option<String>,
    /// How often `failover` kills the leader, and has it hand over
    #[arg(long, value_name = "COUNT", default_value_t = NonZeroUsize::new(bench::ROUNDS).expect("a constant"))]
    rounds: NonZeroUsize,
    /// Kubeconfig of a cluster that `group` writes to in turns with its own, as a Kubernetes of three etcd members
    #[arg(long, value_name = "FILE")]
    reference: Option<PathBuf>,
    /// Form of the output; as JSON each figure is an object on a line of its own
    #[arg(short, long, value_enum, default_value_t = Form::Text)]
    output: Form,
}

#[derive(Clone, Copy, ValueEnum)]
enum Form {
    Text,
    Json,
}

/// Runs the command.
pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let program = std::env::current_exe().context("find this program's own file")?;
    let names = bench::NAMES.into_iter().filter(|name| arguments.name.as_deref().is_none_or(|only| only == *name));
    let options = bench::Options { rounds: arguments.rounds.get(), reference: arguments.reference };
    for name in names {
        let step = Step::begin(format!("benchmark {name}"));
        let mut failed = None;
        let print = |figure: bench::Figure| {
            let printed = step.print(&match arguments.output {
                Form::Text => figure.to_string(),
                Form::Json => serde_json::to_string(&figure).expect("text and a number"),
            });
            failed = failed.take().or(printed.err());
        };
        bench::run(name, &program, &options, print, |doing| step.detail(&doing))
            .await
            .map_err(anyhow::Error::from_boxed)
            .with_context(|| format!("benchmark {name}"))?;
        if let Some(error) = failed {
            return Err(error);
        }
        step.done();
    }
    Ok(())
}

/// Runs the hidden command.
pub async fn peer() -> anyhow::Result<()> {
    bench::peer(|address| println!("{address}")).await.map_err(anyhow::Error::from_boxed)
}
