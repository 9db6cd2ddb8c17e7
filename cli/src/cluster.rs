//! Arguments that say which cluster, and how one is run until a signal.

use std::io::Read as _;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use coracle_sdk::{Cluster, Compiler, IngressPort, IngressPorts, Join, Options, Otlp, OtlpEndpoint, Program, Remote};
use futures::FutureExt as _;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::anew;
use crate::audit::AuditLog;

/// Where a cluster that runs here keeps everything and listens.
#[derive(Args, Clone)]
pub struct Here {
    /// Directory of all data; made when missing [default: ~/.local/share/coracle, demo: ~/.local/share/coracle-demo]
    #[arg(long, env = "CORACLE_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Port of the Kubernetes API; 0 takes a free one
    #[arg(long, value_name = "PORT", default_value_t = 6443)]
    api_port: u16,
    /// Port of the image registry; 0 takes a free one
    #[arg(long, value_name = "PORT", default_value_t = 5000)]
    registry_port: u16,
    /// Address on which the API listens (the registry stays on loopback: it asks nobody who they are)
    #[arg(long, value_name = "ADDRESS", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    bind: IpAddr,
    /// Further name or address for the API's certificate; may be repeated
    #[arg(long = "tls-san", value_name = "NAME|ADDRESS")]
    tls_san: Vec<String>,
    /// Address on which NodePort and LoadBalancer services answer
    #[arg(long, value_name = "ADDRESS", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    node_port_bind: IpAddr,
    #[command(flatten)]
    ingress: Ingress,
    #[command(flatten)]
    traces: Traces,
    #[command(flatten)]
    audit: AuditLog,
    #[command(flatten)]
    peers: Peers,
}

/// Where spans of requests are sent.
#[derive(Args, Clone)]
pub struct Traces {
    /// Send a span of each request to a Service to this collector (OTLP over HTTP in protobuf, to URL/v1/traces)
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_name = "URL")]
    otlp_endpoint: Option<OtlpEndpoint>,
    /// Share of the traces that begin here which is kept, from 0 to 1; of those that come with a traceparent, it says
    #[arg(long, env = "OTEL_TRACES_SAMPLER_ARG", value_name = "SHARE", default_value_t = 1.0, value_parser = share)]
    otlp_sample: f64,
}

fn share(text: &str) -> Result<f64, String> {
    let share = text.parse::<f64>().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| format!("{text:?} is no number from 0 to 1"))
}

impl From<Traces> for Option<Otlp> {
    fn from(said: Traces) -> Option<Otlp> {
        said.otlp_endpoint.map(|endpoint| Otlp { endpoint, share: said.otlp_sample })
    }
}

/// Where a node serves Ingresses.
#[derive(Args, Clone)]
pub struct Ingress {
    /// Port on which Ingresses answer: a port, 0 for a free one, or off [default: 8080, once it is free]
    #[arg(long, value_name = "PORT|off")]
    http_port: Option<IngressPort>,
    /// Port on which they answer with TLS, likewise [default: 8443, once it is free]
    #[arg(long, value_name = "PORT|off")]
    https_port: Option<IngressPort>,
    /// Address on which they answer, and Gateways
    #[arg(long, value_name = "ADDRESS", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    ingress_bind: IpAddr,
}

impl From<Ingress> for IngressPorts {
    fn from(said: Ingress) -> IngressPorts {
        let usual = IngressPorts::usual();
        IngressPorts {
            bind: said.ingress_bind,
            http: said.http_port.unwrap_or(usual.http),
            https: said.https_port.unwrap_or(usual.https),
        }
    }
}

/// This server among others.
#[derive(Args, Clone)]
pub struct Peers {
    /// Join a cluster as one more of its servers: the address of its API
    #[arg(long, value_name = "https://HOST:PORT", requires = "token")]
    pub join: Option<String>,
    /// Token that `coracle token create --server` printed
    #[arg(long, env = "CORACLE_TOKEN", hide_env_values = true, value_name = "TOKEN", requires = "join")]
    pub token: Option<String>,
    /// Name of this machine in the cluster [default: the machine's]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Port at which other servers reach this one [default: 6442, or a free one while it listens on loopback only]
    #[arg(long, value_name = "PORT")]
    pub peer_port: Option<u16>,
    /// Address by which they do [default: the one it listens at, or the one that leads out of this machine]
    #[arg(long, value_name = "HOST[:PORT]")]
    pub peer_address: Option<String>,
    /// Where another server is now, when all have moved at once and do not find each other; may be repeated
    #[arg(long = "peer", value_name = "HOST:PORT", value_parser = place)]
    pub peer_places: Vec<String>,
}

/// `HOST:PORT`.
fn place(text: &str) -> Result<String, String> {
    let is_place = text.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
    if is_place { Ok(text.to_owned()) } else { Err(format!("{text:?} is no HOST:PORT, as 192.0.2.7:6442")) }
}

/// Where servers reach each other, beside the API's 6443.
const PEER_PORT: u16 = 6442;

impl Peers {
    /// Sets what it says in `options`.
    pub fn apply(self, options: Options) -> Options {
        let usual = if options.bind.is_loopback() { 0 } else { PEER_PORT };
        Options {
            join: self.join.zip(self.token).map(|(server, token)| Join { server, token }),
            name: self.name,
            peer_port: self.peer_port.unwrap_or(usual),
            peer_address: self.peer_address,
            peer_places: self.peer_places,
            ..options
        }
    }
}

impl Here {
    /// Whether the audit log goes to standard output.
    pub fn tells_standard_output(&self) -> bool {
        self.audit.is_standard_output()
    }

    /// Where it keeps everything; `name` is the default directory's name.
    pub fn data_dir(&self, name: &str) -> anyhow::Result<PathBuf> {
        match &self.data_dir {
            Some(dir) => Ok(std::path::absolute(dir)?),
            None => default_dir(name),
        }
    }

    /// Starts the cluster and waits until it is ready. `name` is the default directory's name.
    /// Where there is a `program`, it can begin anew.
    pub async fn start(self, name: &str, program: Option<&Program>) -> anyhow::Result<Cluster> {
        let data_dir = self.data_dir(name)?;
        let options = Options {
            bind: self.bind,
            tls_san: self.tls_san,
            api_port: self.api_port,
            registry_port: self.registry_port,
            node_port_bind: self.node_port_bind,
            ingress: self.ingress.into(),
            otlp: self.traces.into(),
            audit: self.audit.audit()?,
            compiler: Compiler::Process(anew::own_file()?),
            ..Options::new(data_dir)
        };
        start(self.peers.apply(options), program).await
    }
}

/// Starts a cluster's server, and its node if there is one, and waits until it is ready.
pub async fn start(options: Options, program: Option<&Program>) -> anyhow::Result<Cluster> {
    // Whatever this process makes is for its owner alone.
    coracle_sdk::close_new_files();
    let options = match program {
        Some(program) => Options { program: Some(program.clone()), listeners: anew::listeners(), ..options },
        None => options,
    };
    let cluster = Cluster::start(options).await?;
    if let Err(error) = cluster.ready().await {
        cluster.shutdown().await;
        return Err(error.into());
    }
    Ok(cluster)
}

/// Which cluster a command is for.
#[derive(Args)]
pub struct Which {
    /// Kubeconfig of the cluster [default: the data directory's, $KUBECONFIG, then ~/.local/share/coracle's]
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Data directory of a cluster on this machine
    #[arg(long, env = "CORACLE_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

impl Which {
    /// Connects to it; a server that does not answer is left for another of the kubeconfig, and the person is told.
    pub async fn connect(&self) -> anyhow::Result<Remote> {
        Ok(Remote::connect_merged(&self.kubeconfigs()?, |moved| eprintln!("note: {moved}")).await?)
    }

    /// The files that say which cluster it is, as kubectl finds them: what is named must be there.
    pub fn kubeconfigs(&self) -> anyhow::Result<Vec<PathBuf>> {
        if let Some(file) = &self.kubeconfig {
            return Ok(vec![file.clone()]);
        }
        if let Some(dir) = &self.data_dir {
            return Ok(vec![dir.join("kubeconfig")]);
        }
        if let Some(list) = std::env::var_os("KUBECONFIG").filter(|list| !list.is_empty()) {
            let files: Vec<PathBuf> = std::env::split_paths(&list).filter(|file| file.is_file()).collect();
            if files.is_empty() {
                bail!("KUBECONFIG names no file that exists: {}", list.to_string_lossy());
            }
            return Ok(files);
        }
        match default_dirs()?.into_iter().map(|dir| dir.join("kubeconfig")).find(|file| file.exists()) {
            Some(file) => Ok(vec![file]),
            None => {
                bail!("no cluster is known: start one with `coracle up`, or say which with --data-dir or --kubeconfig")
            }
        }
    }
}

/// A cluster on this machine, by its data directory.
#[derive(Args)]
pub struct Local {
    /// Directory of its data [default: ~/.local/share/coracle, or the demo's]
    #[arg(long, env = "CORACLE_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

impl Local {
    /// Its data directory, which must be there.
    pub fn dir(&self) -> anyhow::Result<PathBuf> {
        let candidates = match &self.data_dir {
            Some(dir) => vec![std::path::absolute(dir)?],
            None => default_dirs()?,
        };
        match candidates.iter().find(|dir| is_cluster(dir)) {
            Some(dir) => Ok(dir.clone()),
            None => bail!("there is no cluster's data in {}", candidates[0].display()),
        }
    }
}

/// Bytes of a file that are looked at to know whose it is.
const MARK_BYTES: u64 = 64;

/// Whether a cluster's data is here: only what a founding leaves says so, by what is in it. A directory `control` alone may be anybody's, and
/// `reset` deletes what it finds beside it.
fn is_cluster(dir: &Path) -> bool {
    let says = |mark: &str, is_ours: fn(&str) -> bool| {
        let path = dir.join(mark);
        let begin = || {
            let mut text = Vec::new();
            std::fs::File::open(&path)?.take(MARK_BYTES).read_to_end(&mut text)?;
            Ok::<_, std::io::Error>(text)
        };
        path.is_file() && begin().is_ok_and(|text| is_ours(&String::from_utf8_lossy(&text)))
    };
    // Of any version: the one that reads the data says which it is.
    says("CLUSTER", |text| text.starts_with("coracle cluster "))
        || says("FOUNDING", str::is_empty)
        || says("control/FORMAT", |text| text.starts_with("coracle keyspace "))
}

/// Where clusters are kept that nobody said a directory for.
fn default_dirs() -> anyhow::Result<Vec<PathBuf>> {
    Ok(vec![default_dir("coracle")?, default_dir("coracle-demo")?])
}

/// `$XDG_DATA_HOME/NAME`, or `~/.local/share/NAME` (XDG base directory specification).
pub fn default_dir(name: &str) -> anyhow::Result<PathBuf> {
    let base = std::env::var_os("XDG_DATA_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let base = match base {
        Some(base) => base,
        None => {
            PathBuf::from(std::env::var_os("HOME").context("HOME is not set: use --data-dir")?).join(".local/share")
        }
    };
    Ok(base.join(name))
}

/// The signals that ask the program to end.
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    /// Takes them over from the default, which would end the program at once.
    pub fn take() -> anyhow::Result<Signals> {
        Ok(Signals { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    /// Waits for one.
    pub async fn received(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// Runs it until a signal, until it is asked to begin anew, or until it ends by itself.
pub async fn run(cluster: Cluster, program: &Program, signals: &mut Signals) -> anyhow::Result<()> {
    tokio::select! {
        () = signals.received() => drain(cluster, signals).await,
        () = program.asked() => {
            eprintln!("beginning anew with {}: pods end in grace", program.path().display());
            let ended = to_begin_anew(cluster.shutdown_to_begin_anew(), async || signals.received().await).await;
            match ended.context("nothing acknowledged is lost")? {
                Some(listeners) => Err(anew::begin(program, &listeners)),
                None => Ok(()),
            }
        }
        why = cluster.ended() => {
            cluster.shutdown().await;
            bail!(why)
        }
    }
}

/// Waits for `shutdown` of a process that is to begin anew; what that leaves for its next life. A signal meanwhile asks for the end
/// of it, as it does at any time: it is drained all the same, and there is no next life. A second one ends it at once.
pub async fn to_begin_anew<T>(
    shutdown: impl Future<Output = T>,
    mut signal: impl AsyncFnMut(),
) -> anyhow::Result<Option<T>> {
    let mut shutdown = std::pin::pin!(shutdown);
    let left = tokio::select! {
        biased;
        () = signal() => None,
        left = &mut shutdown => Some(left),
    };
    if let Some(left) = left {
        // What comes after this is for the next life.
        return Ok(signal().now_or_never().is_none().then_some(left));
    }
    eprintln!("stopping instead (once more to stop at once)");
    tokio::select! {
        _ = shutdown => Ok(None),
        () = signal() => bail!("stopped before everything was drained"),
    }
}

/// Drains and stops; a second signal ends it at once.
pub async fn drain(cluster: Cluster, signals: &mut Signals) -> anyhow::Result<()> {
    eprintln!("stopping: pods end in grace (once more to stop at once)");
    tokio::select! {
        () = cluster.shutdown() => Ok(()),
        () = signals.received() => bail!("stopped before everything was drained; nothing acknowledged is lost"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_signal_to_a_process_that_begins_anew_ends_it_in_order() {
        let channel = || tokio::sync::mpsc::unbounded_channel::<()>();
        let run = async |signals: usize, at_its_end: usize| {
            let (send, mut signal) = channel();
            (0..signals).for_each(|_| send.send(()).unwrap());
            let (drained, mut is_drained) = tokio::sync::oneshot::channel();
            let shutdown = async {
                // Long enough for what has come already.
                for _ in 0..10 {
                    tokio::task::yield_now().await;
                }
                (0..at_its_end).for_each(|_| send.send(()).unwrap());
                drained.send(()).unwrap();
                "listeners"
            };
            let next = to_begin_anew(shutdown, async || signal.recv().await.unwrap()).await;
            (next.map_err(|error| error.to_string()), is_drained.try_recv().is_ok())
        };
        assert_eq!(run(0, 0).await, (Ok(Some("listeners")), true));
        assert_eq!(run(1, 0).await, (Ok(None), true), "it ends, and first in order");
        assert_eq!(run(0, 1).await, (Ok(None), true), "it ends, however late it hears so");
        assert_eq!(run(2, 0).await, (Err("stopped before everything was drained".to_owned()), false));
    }

    #[test]
    fn a_directory_is_a_cluster_by_the_marks_of_its_founding_only() {
        let dir = tempfile::tempdir().unwrap();
        let local = Local { data_dir: Some(dir.path().to_owned()) };
        // As in a checkout of this project, or of many another.
        for part in ["control", "node", "registry", "pki"] {
            std::fs::create_dir(dir.path().join(part)).unwrap();
        }
        assert!(local.dir().unwrap_err().to_string().contains("no cluster's data"));
        for (mark, text) in
            [("CLUSTER", "coracle cluster 2\n"), ("FOUNDING", ""), ("control/FORMAT", "coracle keyspace 2\nmember 1\n")]
        {
            // Another program's file of that name is none.
            std::fs::write(dir.path().join(mark), "mine\n").unwrap();
            assert!(local.dir().is_err(), "{mark}");
            std::fs::write(dir.path().join(mark), text).unwrap();
            assert_eq!(local.dir().unwrap(), dir.path(), "{mark}");
            std::fs::remove_file(dir.path().join(mark)).unwrap();
        }
    }
}
