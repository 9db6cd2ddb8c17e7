//! `coracle push`: a component into the cluster's registry.

use std::path::PathBuf;

use crate::cluster::Which;
use crate::output;

/// Push a component into the cluster's registry
///
/// Pods then name it as their image: `image: NAME:TAG`.
#[derive(clap::Args)]
pub struct Arguments {
    /// The component: a .wasm file
    file: PathBuf,
    /// Name of the image, and its tag (latest by default)
    #[arg(value_name = "NAME[:TAG]")]
    image: String,
    #[command(flatten)]
    which: Which,
}

/// Runs the command.
pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let remote = arguments.which.connect().await?;
    let pushed = coracle_sdk::push(remote.client(), &arguments.file, &arguments.image).await?;
    println!("{} {} {}", pushed.image, pushed.digest, output::bytes(pushed.bytes as u64));
    Ok(())
}
