//! `coracle recover`: the server that is left goes on alone.

use anyhow::{Context as _, bail};
use coracle_sdk::Recovery;

use crate::cluster::Local;
use crate::down::agrees;
use crate::output::{Step, tell};

/// Have this machine's server go on alone when a majority of the servers is lost for good
///
/// The server must not run. Of several that are left, choose the one with the highest revision (`coracle status` of each). From its next
/// start it is the only server of the cluster, with everything that it has; what only the lost ones had is lost. Those are refused from
/// then on: one that turns up again is reset (`coracle reset`) and joins anew. Its data as it was stays beside the new.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    local: Local,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

/// Runs the command.
pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    coracle_sdk::close_new_files();
    let dir = arguments.local.dir()?;
    let recovery = Recovery::look(&dir).await.context("recover the server")?;
    let (member, revision, before) = (recovery.member(), recovery.revision(), recovery.before());
    tell!("server {member} in {} has {} objects, up to revision {revision}", dir.display(), recovery.records());
    tell!("it goes on alone; these are no servers of the cluster any more:");
    for lost in recovery.lost() {
        let address = if lost.address.is_empty() { "an unknown address" } else { &lost.address };
        tell!("  {} ({}) at {address}", lost.name, lost.member);
    }
    tell!(
        "what they acknowledged after revision {revision} is lost, and so are images that only they have. Do not go on while a majority of \
         the servers can still be started: nothing would be lost then"
    );
    if !arguments.yes && !agrees("the cluster will be this server alone")? {
        bail!("nothing was changed");
    }
    let step = Step::begin(format!("recover {}", dir.display()));
    recovery.carry_out().await.context("recover the server")?;
    step.done();
    tell!(
        "start it again now; let other servers join with new tokens. Its data as it was is in {}: delete that when all is well",
        before.display()
    );
    Ok(())
}
