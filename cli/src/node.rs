//! `coracle node`: this machine as a node of a cluster that runs elsewhere.

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use coracle_sdk::{Compiler, Listeners, Worker, WorkerOptions};

use crate::anew;
use crate::cluster::{Ingress, Names, Signals, Traces, default_dir, join, to_begin_anew};
use crate::memory;
use crate::output::{self, Step, tell};

/// Join a cluster as a node, and run its pods here until Ctrl-C
///
/// `coracle token create` on the cluster's machine prints the whole command. A node that has joined needs neither --join nor
/// --token again. `ready` is printed on standard output when pods can run here.
#[derive(clap::Args)]
pub struct Arguments {
    /// Address of the cluster's API
    #[arg(long, value_name = "https://HOST:PORT")]
    join: Option<String>,
    /// Token that `coracle token create` printed [env: CORACLE_TOKEN]
    #[arg(long, value_name = "TOKEN", requires = "join")]
    token: Option<String>,
    /// Name of the node [default: the machine's]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Directory of all data; made when it has joined [default: ~/.local/share/coracle-node]
    #[arg(long, env = "CORACLE_NODE_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Address by which servers and other nodes reach this one [default: the one that leads to the server]
    #[arg(long, value_name = "ADDRESS")]
    address: Option<IpAddr>,
    /// Port there; 0 takes a free one
    #[arg(long, visible_alias = "kubelet-port", value_name = "PORT", default_value_t = 10_250)]
    port: u16,
    /// Address on which NodePort and LoadBalancer services answer
    #[arg(long, value_name = "ADDRESS", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    node_port_bind: IpAddr,
    #[command(flatten)]
    ingress: Ingress,
    #[command(flatten)]
    names: Names,
    #[command(flatten)]
    traces: Traces,
}

/// Runs the command.
pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    // Whatever this process makes is for its owner alone.
    coracle_sdk::close_new_files();
    let data_dir = match arguments.data_dir {
        Some(dir) => std::path::absolute(dir)?,
        None => default_dir("coracle-node")?,
    };
    let program = anew::program()?;
    let options = WorkerOptions {
        join: join(arguments.join, arguments.token)?,
        name: arguments.name,
        address: arguments.address,
        port: arguments.port,
        node_port_bind: arguments.node_port_bind,
        ingress: arguments.ingress.into(),
        dns: arguments.names.into(),
        otlp: arguments.traces.otlp()?,
        compiler: Compiler::Process(anew::own_file()?),
        program: Some(program.clone()),
        ..WorkerOptions::new(data_dir)
    };
    let mut signals = Signals::take()?;
    let step = Step::begin("join the cluster");
    let worker = tokio::select! {
        worker = Worker::start(options) => worker?,
        () = signals.received() => return Ok(()),
    };
    let ready = tokio::select! {
        ready = worker.ready() => ready,
        () = signals.received() => return drain(worker, &mut signals).await,
    };
    if let Err(error) = ready {
        worker.shutdown().await;
        return Err(error.into());
    }
    step.done();
    match announce(&worker) {
        // Whoever was told before has gone.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => (),
        Err(error) => {
            worker.shutdown().await;
            return Err(error).context("print where it is");
        }
        Ok(()) => (),
    }
    tokio::select! {
        () = signals.received() => drain(worker, &mut signals).await,
        () = program.asked() => {
            tell!("beginning anew with {}: pods end in grace", program.path().display());
            match to_begin_anew(worker.shutdown(), async || signals.received().await).await? {
                Some(()) => Err(anew::begin(&program, &Listeners::default())),
                None => Ok(()),
            }
        }
        why = worker.ended() => {
            worker.shutdown().await;
            Err(why.into())
        }
    }
}

/// Prints where it is, and then `ready`.
fn announce(worker: &Worker) -> std::io::Result<()> {
    memory::started();
    let mut out = std::io::stdout().lock();
    writeln!(out, "node       {}", worker.name())?;
    writeln!(out, "server     {}", worker.server())?;
    output::ingress(&mut out, &worker.ingress_urls())?;
    output::names(&mut out, worker.dns_address())?;
    writeln!(out, "ready")?;
    out.flush()
}

/// Drains and stops; a second signal ends it at once.
async fn drain(worker: Worker, signals: &mut Signals) -> anyhow::Result<()> {
    tell!("stopping: pods end in grace (once more to stop at once)");
    tokio::select! {
        () = worker.shutdown() => Ok(()),
        () = signals.received() => bail!("stopped before every pod had ended"),
    }
}
