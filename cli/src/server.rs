//! `coracle server`: this machine as a server of a cluster, without pods.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use coracle_sdk::Options;

use crate::anew;
use crate::audit::AuditLog;
use crate::cluster::{self, Peers, Signals, default_dir};
use crate::controllers::Others;
use crate::output::Step;
use crate::up::announce;

/// Run a server of a cluster, the first or one more, until Ctrl-C
///
/// On an empty data directory it founds a cluster, or joins one with --join: `coracle token create --server` on a server prints
/// the whole command. A server that has founded or joined needs neither --join nor --token again. Three servers go on when one
/// is gone. Pods run on nodes: `coracle node`, or `coracle up`, which is both. `ready` is printed on standard output when the
/// API answers and the kubeconfig in the data directory is complete.
#[derive(clap::Args)]
pub struct Arguments {
    /// Directory of all data; made when missing [default: ~/.local/share/coracle]
    #[arg(long, env = "CORACLE_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Port of the Kubernetes API; 0 takes a free one
    #[arg(long, value_name = "PORT", default_value_t = 6443)]
    api_port: u16,
    /// Port of the image registry; 0 takes a free one [default: 5000, or a free one where that is taken]
    #[arg(long, value_name = "PORT")]
    registry_port: Option<u16>,
    /// Address on which the API and other servers are listened for (the registry stays on loopback)
    #[arg(long, value_name = "ADDRESS", default_value_t = IpAddr::V4(Ipv4Addr::UNSPECIFIED))]
    bind: IpAddr,
    /// Further name or address for the API's certificate; may be repeated
    #[arg(long = "tls-san", value_name = "NAME|ADDRESS")]
    tls_san: Vec<String>,
    #[command(flatten)]
    audit: AuditLog,
    #[command(flatten)]
    peers: Peers,
    #[command(flatten)]
    others: Others,
}

/// Runs the command.
pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let data_dir = match arguments.data_dir {
        Some(dir) => std::path::absolute(dir)?,
        None => default_dir("coracle")?,
    };
    let options = Options {
        bind: arguments.bind,
        tls_san: arguments.tls_san,
        api_port: arguments.api_port,
        registry_port: arguments.registry_port,
        with_node: false,
        audit: arguments.audit.audit()?,
        duties: arguments.others.into(),
        ..Options::new(data_dir)
    };
    let options = arguments.peers.apply(options)?;
    let program = anew::program()?;
    let mut signals = Signals::take()?;
    let step = Step::begin("start the server");
    let server = tokio::select! {
        server = cluster::start(options, Some(&program)) => server?,
        () = signals.received() => return Ok(()),
    };
    step.done();
    if let Err(error) = announce(&server) {
        server.shutdown().await;
        return Err(error);
    }
    cluster::run(server, &program, &mut signals).await
}
