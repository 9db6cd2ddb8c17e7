//! `coracle push`: a component into the cluster's registry.

use std::path::PathBuf;

use coracle_sdk::{Preparation, Pushed};

use crate::cluster::Which;
use crate::output::{self, Step, say};

/// Push a component into the cluster's registry
///
/// Pods then name it as their image: `image: NAME:TAG`. The cluster compiles it at once, at low priority, so that the first pod
/// need not wait; a component that cannot be compiled is an error, although it is pushed.
#[derive(clap::Args)]
pub struct Arguments {
    /// The component: a .wasm file
    file: PathBuf,
    /// Name of the image, and its tag (latest by default)
    #[arg(value_name = "NAME[:TAG]")]
    image: String,
    /// Leave when it is pushed, without waiting until the cluster has compiled it
    #[arg(long)]
    no_wait: bool,
    #[command(flatten)]
    which: Which,
}

/// Runs the command.
pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let remote = arguments.which.connect().await?;
    let step = Step::begin(format!("push {}", arguments.image));
    let pushed = coracle_sdk::push(remote.client(), &arguments.file, &arguments.image).await?;
    step.done();
    say!("{} {} {}", pushed.image, pushed.digest, output::bytes(pushed.bytes as u64))?;
    if !arguments.no_wait {
        wait(remote.client(), &pushed).await?;
    }
    Ok(())
}

/// Shows how the cluster compiles it.
async fn wait(client: &coracle_sdk::kube::Client, pushed: &Pushed) -> anyhow::Result<()> {
    let step = Step::begin(format!("compile {}", pushed.image));
    let tell = |state: &Preparation| {
        if *state == Preparation::Waiting {
            step.detail("others are before it");
        }
    };
    match coracle_sdk::compiled(client, pushed, tell).await? {
        Some(Preparation::Ready { .. }) => step.done(),
        Some(Preparation::Failed { message }) => anyhow::bail!("{} is pushed and cannot run: {message}", pushed.image),
        // It goes on, or nobody says how far it is.
        Some(Preparation::Waiting | Preparation::Compiling) | None => {}
    }
    Ok(())
}
