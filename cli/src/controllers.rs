//! `coracle controllers`: controllers and scheduler for an API server that leaves them to others.

use coracle_sdk::Duties;

use crate::cluster::{Signals, Which, usage};

/// Run the controllers and the scheduler for an API server that has none, Coracle's or Kubernetes', until Ctrl-C
///
/// They do what kube-controller-manager and kube-scheduler do, without leader election: run them once for a cluster. Coracle's
/// servers run them themselves unless they are told not to (`coracle server --disable-controllers --disable-scheduler`). They
/// do not sign certificates, whose key the servers have.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    others: Others,
    #[command(flatten)]
    which: Which,
}

/// What another program does.
#[derive(clap::Args)]
pub struct Others {
    /// Run no controllers: another program does, as kube-controller-manager
    #[arg(long)]
    disable_controllers: bool,
    /// Run no scheduler: another program does, as kube-scheduler
    #[arg(long)]
    disable_scheduler: bool,
}

impl From<Others> for Duties {
    fn from(others: Others) -> Self {
        Duties { controllers: !others.disable_controllers, scheduler: !others.disable_scheduler }
    }
}

/// Runs the command.
pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let duties = Duties::from(arguments.others);
    if duties == (Duties { controllers: false, scheduler: false }) {
        return Err(usage("with both --disable-controllers and --disable-scheduler there is nothing to run"));
    }
    let mut signals = Signals::take()?;
    let kubeconfigs = arguments.which.kubeconfigs()?;
    coracle_sdk::run_duties(&kubeconfigs, duties, signals.received()).await?;
    Ok(())
}
