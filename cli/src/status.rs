//! `coracle status`: how the cluster is.

use anyhow::Context;
use clap::ValueEnum;

use crate::cluster::Which;
use crate::output::{self, say};

/// Show the cluster's addresses (those of Ingresses too), servers, revision, nodes, pods and memory, and what is wrong and what to do
#[derive(clap::Args)]
pub struct Arguments {
    /// Form of the output
    #[arg(short, long, value_enum, default_value_t = Form::Text)]
    output: Form,
    #[command(flatten)]
    which: Which,
}

/// How something is printed.
#[derive(Clone, Copy, ValueEnum)]
pub enum Form {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// Runs the command.
pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let kubeconfigs = arguments.which.kubeconfigs()?;
    let remote = arguments.which.connect().await?;
    let status = remote.status().await.context("ask the cluster")?;
    let kubeconfig = std::env::join_paths(&kubeconfigs).unwrap_or_default().to_string_lossy().into_owned();
    match arguments.output {
        Form::Json => {
            let mut value = serde_json::to_value(&status)?;
            value["kubeconfig"] = kubeconfig.into();
            say!("{}", serde_json::to_string_pretty(&value)?)?;
        }
        Form::Text => {
            say!("api         {}", status.api_url)?;
            say!("registry    {}", status.registry)?;
            say!("kubeconfig  {kubeconfig}")?;
            if !status.ingress.is_empty() {
                say!("ingress     {}", status.ingress.join(" "))?;
            }
            say!("data        {} ({})", status.data_dir.display(), output::bytes(status.disk_bytes))?;
            say!("version     {} (log in format {})", status.version, status.format)?;
            say!("revision    {} (term {})", status.revision, status.term)?;
            if status.alone_milliseconds.is_none() {
                say!("nodes       {}/{} ready", status.nodes.ready, status.nodes.total)?;
                say!("pods        {}/{} ready, {} finished", status.pods.ready, status.pods.total, status.finished)?;
            } else {
                say!("nodes       unknown without a majority of the servers")?;
                say!("pods        unknown without a majority of the servers")?;
            }
            say!("memory      {}", status.memory_bytes.map_or_else(|| "unknown".to_owned(), output::bytes))?;
            say!("process     {}", status.process_id)?;
            let day = status.certificates.iter().map(coracle_sdk::Certificate::days_left).min();
            say!("certificates  the first ends in {} days", day.map_or_else(|| "?".to_owned(), |day| day.to_string()))?;
            if status.members.len() > 1 {
                say!("")?;
                crate::member::print(&status.members)?;
            }
            let wrong = status.in_words();
            if !wrong.is_empty() {
                say!("\nto do:")?;
            }
            for wrong in &wrong {
                say!("  {wrong}")?;
            }
            if !status.not_ready.is_empty() {
                say!("\nnot ready:")?;
            }
            for not_ready in &status.not_ready {
                say!("  {}  {}", not_ready.what, not_ready.why)?;
            }
        }
    }
    Ok(())
}
