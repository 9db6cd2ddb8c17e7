//! `coracle bench`: the benchmarks, one figure a line.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use anyhow::Context;
use clap::ValueEnum;
use coracle_sdk::bench;

use crate::cluster::usage;
use crate::output::{Step, say};

/// Run the benchmarks and print one figure a line: name, value, unit
///
/// Each starts what it needs in a temporary directory on free ports and leaves nothing behind.
#[derive(clap::Args)]
pub struct Arguments {
    /// Which one; all when absent
    #[arg(value_parser = clap::builder::PossibleValuesParser::new(bench::NAMES))]
    name: Option<String>,
    #[arg(long, value_name = "COUNT", help = format!("How often `failover` kills the leader, and has it hand over [default: {}]", bench::ROUNDS))]
    rounds: Option<NonZeroUsize>,
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
    heeded(&arguments)?;
    let program = std::env::current_exe().context("find this program's own file")?;
    let names = bench::NAMES.into_iter().filter(|name| arguments.name.as_deref().is_none_or(|only| only == *name));
    let options = bench::Options {
        rounds: arguments.rounds.map_or(bench::ROUNDS, NonZeroUsize::get),
        reference: arguments.reference,
    };
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

/// What one benchmark is told is refused with another.
fn heeded(arguments: &Arguments) -> anyhow::Result<()> {
    let said =
        [("--rounds", arguments.rounds.is_some(), "failover"), ("--reference", arguments.reference.is_some(), "group")];
    for (flag, _, of) in said.into_iter().filter(|(_, is_said, _)| *is_said) {
        if arguments.name.as_deref().is_some_and(|name| name != of) {
            return Err(usage(format!("{flag} is for the benchmark {of} alone")));
        }
    }
    Ok(())
}

/// Runs the hidden command.
pub async fn peer() -> anyhow::Result<()> {
    bench::peer(|address| drop(say!("{address}"))).await.map_err(anyhow::Error::from_boxed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_benchmark_is_told_is_refused_with_another() {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            arguments: Arguments,
        }
        for (words, is_heeded) in [
            (&["--rounds", "1", "--reference", "k"][..], true),
            (&["failover", "--rounds", "1"], true),
            (&["group", "--reference", "k"], true),
            (&["deploy", "--rounds", "1"], false),
            (&["failover", "--reference", "k"], false),
        ] {
            let Line { arguments } = clap::Parser::parse_from([&["bench"], words].concat());
            assert_eq!(heeded(&arguments).is_ok(), is_heeded, "{words:?}");
        }
    }
}
