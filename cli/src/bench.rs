//! `coracle bench`: the benchmarks, one figure a line.

use anyhow::Context;
use coracle_sdk::bench;

/// Run the benchmarks and print one figure a line: name, value, unit
///
/// Each starts what it needs in a temporary directory on free ports and leaves nothing behind.
#[derive(clap::Args)]
pub struct Arguments {
    /// Which one; all when absent
    #[arg(value_parser = clap::builder::PossibleValuesParser::new(bench::NAMES))]
    name: Option<String>,
}

/// Runs the command.
pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let program = std::env::current_exe().context("find this program's own file")?;
    let names = bench::NAMES.into_iter().filter(|name| arguments.name.as_deref().is_none_or(|only| only == *name));
    for name in names {
        bench::run(name, &program, |figure| println!("{figure}"))
            .await
            .map_err(anyhow::Error::from_boxed)
            .with_context(|| format!("benchmark {name}"))?;
    }
    Ok(())
}

/// Runs the hidden command.
pub async fn peer() -> anyhow::Result<()> {
    bench::peer(|address| println!("{address}")).await.map_err(anyhow::Error::from_boxed)
}
