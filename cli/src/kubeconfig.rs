//! `coracle kubeconfig`: for kubectl on another machine.

use coracle_sdk::Elsewhere;

use crate::cluster::Which;
use crate::output::{self, tell};

/// Print a kubeconfig for another machine: the administrator's, by a URL that is reached from there
///
/// It holds the administrator's key. The one in the data directory names the API as it is reached from its own machine.
#[derive(clap::Args)]
pub struct Arguments {
    /// URL by which the API is reached; its host must be in the API's certificate (--tls-san) [default: that of `coracle token create`]
    #[arg(long, value_name = "https://HOST:PORT")]
    server: Option<String>,
    #[command(flatten)]
    which: Which,
}

/// Runs the command.
pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let Elsewhere { kubeconfig, certificate } =
        Elsewhere::of(&arguments.which.kubeconfigs()?, arguments.server.as_deref()).await?;
    output::line(kubeconfig)?;
    if let Some(certificate) = certificate {
        tell!("the certificate of {} in it ends on {}: make another before", certificate.name, certificate.day());
    }
    Ok(())
}
