//! `coracle status`: how the cluster is.

use anyhow::Context;
use clap::ValueEnum;

use crate::cluster::Which;
use crate::output;

/// Show the cluster's addresses, revision, nodes, pods and memory
#[derive(clap::Args)]
pub struct Arguments {
    /// Form of the output
    #[arg(short, long, value_enum, default_value_t = Form::Text)]
    output: Form,
    #[command(flatten)]
    which: Which,
}

#[derive(Clone, Copy, ValueEnum)]
enum Form {
    Text,
    Json,
}

/// Runs the command.
pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let remote = arguments.which.connect().await?;
    let status = remote.status().await.context("ask the cluster: does it run?")?;
    match arguments.output {
        Form::Json => println!("{}", serde_json::to_string_pretty(&status)?),
        Form::Text => {
            println!("api       {}", status.api_url);
            println!("registry  {}", status.registry);
            println!("data      {} ({})", status.data_dir.display(), output::bytes(status.disk_bytes));
            println!("version   {}", status.version);
            println!("revision  {} (term {})", status.revision, status.term);
            println!("nodes     {}/{} ready", status.nodes.ready, status.nodes.total);
            println!("pods      {}/{} ready", status.pods.ready, status.pods.total);
            println!("memory    {}", status.memory_bytes.map_or_else(|| "unknown".to_owned(), output::bytes));
            println!("process   {}", status.process_id);
        }
    }
    Ok(())
}
