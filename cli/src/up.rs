//! `coracle up`: a cluster on this machine.

use std::io::Write;
use std::path::PathBuf;

use coracle_sdk::{Cluster, manifests};

use crate::cluster::{Here, Signals, drain};
use crate::output::Step;

/// Start a cluster on this machine and run it until Ctrl-C
///
/// A second start on the same data directory finds everything again. `ready` is printed on standard output when the
/// API answers, the node is Ready and the kubeconfig in the data directory is complete.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    here: Here,
    /// Manifests to apply: a file, or a directory of *.yaml, *.yml and *.json; may be repeated
    #[arg(short = 'f', long = "filename", value_name = "FILE|DIR")]
    files: Vec<PathBuf>,
}

/// Runs the command.
pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    // Read first: a mistake in a file is told before anything starts.
    let objects = manifests::read(&arguments.files)?;
    let mut signals = Signals::take()?;
    let step = Step::begin("start the cluster");
    let cluster = tokio::select! {
        cluster = arguments.here.start("coracle") => cluster?,
        () = signals.received() => return Ok(()),
    };
    step.done();
    if let Err(error) = apply(&cluster, &objects).await {
        cluster.shutdown().await;
        return Err(error);
    }
    announce(&cluster)?;
    tokio::select! {
        () = signals.received() => drain(cluster, &mut signals).await,
        why = cluster.ended() => {
            cluster.shutdown().await;
            anyhow::bail!(why)
        }
    }
}

/// Applies `objects`, saying each.
pub async fn apply(cluster: &Cluster, objects: &[manifests::Manifest]) -> anyhow::Result<()> {
    if objects.is_empty() {
        return Ok(());
    }
    let step = Step::begin(format!("apply {} objects", objects.len()));
    manifests::apply(cluster.remote().client(), objects, |applied| step.detail(applied)).await?;
    step.done();
    Ok(())
}

/// Prints where everything is, and then `ready`.
pub fn announce(cluster: &Cluster) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "api        {}", cluster.api_url())?;
    writeln!(out, "registry   {}", cluster.registry_address())?;
    writeln!(out, "kubeconfig {}", cluster.kubeconfig().display())?;
    writeln!(out, "ready")?;
    out.flush()?;
    Ok(())
}
