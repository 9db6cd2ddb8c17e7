//! Arguments that say which cluster, and how one is run until a signal.

use std::io::Read as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use coracle_sdk::{
    Cluster, Compiler, IngressPort, IngressPorts, Join, NoOtlpEndpoint, Options, Otlp, OtlpEndpoint, Program, Remote,
};
use futures::FutureExt as _;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::anew;
use crate::audit::AuditLog;
use crate::output::tell;

/// Where a cluster that runs here keeps everything and listens.
#[derive(Args, Clone)]
pub struct Here {
    /// Directory of all data; made when missing [default: ~/.local/share/coracle, demo: ~/.local/share/coracle-demo]
    #[arg(long, env = "CORACLE_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Port of the Kubernetes API; 0 takes a free one
    #[arg(long, value_name = "PORT", default_value_t = 6443)]
    api_port: u16,
    /// Port of the image registry; 0 takes a free one [default: 5000, or a free one where that is taken]
    #[arg(long, value_name = "PORT")]
    registry_port: Option<u16>,
    /// Port at which servers and other nodes reach this node; 0 takes a free one [default: 10250, or a free one while it listens on
    /// loopback only]
    #[arg(long, value_name = "PORT")]
    kubelet_port: Option<u16>,
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
    names: Names,
    #[command(flatten)]
    traces: Traces,
    #[command(flatten)]
    audit: AuditLog,
    #[command(flatten)]
    peers: Peers,
}

/// Where a node answers questions about names.
#[derive(Args, Clone)]
pub struct Names {
    /// Answer questions about the cluster's names (DNS, UDP and TCP) here, for programs that are no pods; a port alone is one of 127.0.0.1
    ///
    /// Services that are served at ports of this machine (NodePort, LoadBalancer) have the address of those ports, and SRV records say
    /// which they are. All others have the address that pods get, which leads somewhere in pods only. Nobody is asked for other names.
    #[arg(long, value_name = "[ADDRESS:]PORT", value_parser = listens)]
    dns_listen: Option<SocketAddr>,
}

fn listens(text: &str) -> Result<SocketAddr, String> {
    let near = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let at = text.parse().or_else(|_| text.parse().map(near));
    at.map_err(|_| format!("{text:?} is neither a port nor an address with one, as 127.0.0.1:5353 or [::1]:5353"))
}

impl From<Names> for Option<SocketAddr> {
    /// Says so when it is not for this machine alone.
    fn from(said: Names) -> Option<SocketAddr> {
        let at = said.dns_listen?;
        if !at.ip().is_loopback() {
            tell!("note: whoever reaches {at} can ask for the cluster's names (--dns-listen)");
        }
        Some(at)
    }
}

/// Where spans of requests are sent.
#[derive(Args, Clone)]
pub struct Traces {
    /// Send a span of each request to a Service to this collector (OTLP over HTTP in protobuf, to URL/v1/traces)
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_name = "URL", value_parser = endpoint)]
    otlp_endpoint: Option<Endpoint>,
    /// Share of the traces that begin here which is kept, from 0 to 1; of those that come with a traceparent, it says. There must be a
    /// collector [env: OTEL_TRACES_SAMPLER_ARG] [default: 1]
    #[arg(long, value_name = "SHARE", value_parser = share)]
    otlp_sample: Option<f64>,
}

/// By this programs are told which share to keep, by samplers of their own, too: it is read where there is a collector.
const SAMPLER_ARG: &str = "OTEL_TRACES_SAMPLER_ARG";

/// A collector. An empty variable is as none (OpenTelemetry, environment variable specification).
#[derive(Clone)]
struct Endpoint(Option<OtlpEndpoint>);

fn endpoint(text: &str) -> Result<Endpoint, NoOtlpEndpoint> {
    if text.is_empty() { Ok(Endpoint(None)) } else { text.parse().map(|endpoint| Endpoint(Some(endpoint))) }
}

fn share(text: &str) -> Result<f64, String> {
    let share = text.parse::<f64>().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| format!("{text:?} is no number from 0 to 1"))
}

impl Traces {
    /// Where they go, if anywhere.
    pub fn otlp(self) -> anyhow::Result<Option<Otlp>> {
        self.otlp_with(std::env::var(SAMPLER_ARG).ok().filter(|text| !text.is_empty()))
    }

    fn otlp_with(self, sampler_arg: Option<String>) -> anyhow::Result<Option<Otlp>> {
        let Some(endpoint) = self.otlp_endpoint.and_then(|Endpoint(endpoint)| endpoint) else {
            return match self.otlp_sample {
                Some(_) => Err(usage(
                    "--otlp-sample needs a collector: --otlp-endpoint, or OTEL_EXPORTER_OTLP_ENDPOINT in the environment",
                )),
                None => Ok(None),
            };
        };
        let share = match (self.otlp_sample, sampler_arg) {
            (Some(share), _) => share,
            (None, Some(text)) => share(&text).map_err(|why| usage(format!("{SAMPLER_ARG}: {why}")))?,
            (None, None) => 1.0,
        };
        Ok(Some(Otlp { endpoint, share }))
    }
}

/// That arguments are wrong in a way that only all of them together show; `main` ends as for any other that is.
pub fn usage(why: impl std::fmt::Display) -> anyhow::Error {
    clap::Error::raw(clap::error::ErrorKind::ArgumentConflict, format!("{why}\n")).into()
}

/// The variable with a token, for those that are not to be seen among the arguments.
const TOKEN: &str = "CORACLE_TOKEN";

/// How to join, if one is to: a token may be left in the environment by an earlier start, and says nothing alone.
pub fn join(server: Option<String>, token: Option<String>) -> anyhow::Result<Option<Join>> {
    join_with(server, token, std::env::var(TOKEN).ok().filter(|token| !token.is_empty()))
}

fn join_with(server: Option<String>, token: Option<String>, left: Option<String>) -> anyhow::Result<Option<Join>> {
    let Some(server) = server else { return Ok(None) };
    match token.or(left) {
        Some(token) => Ok(Some(Join { server, token })),
        None => Err(usage(format!(
            "--join needs a token: --token, or {TOKEN} in the environment; `coracle token create` on the cluster's machine prints one"
        ))),
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
    #[arg(long, value_name = "https://HOST:PORT")]
    pub join: Option<String>,
    /// Token that `coracle token create --server` printed [env: CORACLE_TOKEN]
    #[arg(long, value_name = "TOKEN", requires = "join")]
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
    pub fn apply(self, options: Options) -> anyhow::Result<Options> {
        let usual = if options.bind.is_loopback() { 0 } else { PEER_PORT };
        let join = join(self.join, self.token)?;
        // Other servers call it before it is let in.
        if let Some(join) = &join
            && options.bind.is_loopback()
            && self.peer_address.is_none()
            && !is_on_loopback(&join.server)
        {
            return Err(usage(format!(
                "{} is on another machine, and its servers could not reach this one, which listens on {} only: say --bind 0.0.0.0, or one \
                 address of this machine",
                join.server, options.bind
            )));
        }
        Ok(Options {
            join,
            name: self.name,
            peer_port: self.peer_port.unwrap_or(usual),
            peer_address: self.peer_address,
            peer_places: self.peer_places,
            ..options
        })
    }
}

/// Whether `https://HOST:PORT` is on this machine; what is no such address is told of where it is used.
fn is_on_loopback(server: &str) -> bool {
    let Ok(url) = server.parse::<http::Uri>() else { return true };
    let Some(host) = url.host() else { return true };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.ends_with(".localhost") || host.parse::<IpAddr>().is_ok_and(|host| host.is_loopback())
}

/// Where API servers and nodes find a node, as with the kubelet.
const KUBELET_PORT: u16 = 10_250;

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
            kubelet_port: self.kubelet_port.unwrap_or(if self.bind.is_loopback() { 0 } else { KUBELET_PORT }),
            node_port_bind: self.node_port_bind,
            ingress: self.ingress.into(),
            dns: self.names.into(),
            otlp: self.traces.otlp()?,
            audit: self.audit.audit()?,
            compiler: Compiler::Process(anew::own_file()?),
            ..Options::new(data_dir)
        };
        start(self.peers.apply(options)?, program).await
    }

    /// Where NodePorts answer, as a client on this machine asks for them.
    pub fn node_ports(&self) -> IpAddr {
        match self.node_port_bind {
            IpAddr::V4(any) if any.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(any) if any.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            address => address,
        }
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
        Ok(Remote::connect_merged(&self.kubeconfigs()?, |moved| tell!("note: {moved}")).await?)
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
        match first_running(&default_dirs()?, |dir| dir.join("kubeconfig").exists()) {
            Some(dir) => Ok(vec![dir.join("kubeconfig")]),
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
    /// Its data directory, which must be there: of several, the one whose cluster runs.
    pub fn dir(&self) -> anyhow::Result<PathBuf> {
        let candidates = self.candidates()?;
        first_running(&candidates, is_cluster).with_context(|| nothing_in(&candidates))
    }

    /// The same for what cannot be undone, of a node, too: of several clusters, the person has to say which, and a node is always named.
    pub fn to_delete(&self) -> anyhow::Result<(PathBuf, Kept)> {
        if let Some(dir) = self.named()? {
            return match whose(&dir) {
                Some(kept) => Ok((dir, kept)),
                None => bail!("there is no cluster's and no node's data in {}", dir.display()),
            };
        }
        let node = std::env::var_os("CORACLE_NODE_DIR").map(PathBuf::from);
        only(&default_dirs()?, &node.map_or_else(|| default_dir("coracle-node"), Ok)?).map(|dir| (dir, Kept::Cluster))
    }

    /// The directory that was named, if one was.
    pub fn named(&self) -> anyhow::Result<Option<PathBuf>> {
        Ok(self.data_dir.as_ref().map(std::path::absolute).transpose()?)
    }

    fn candidates(&self) -> anyhow::Result<Vec<PathBuf>> {
        self.named()?.map_or_else(default_dirs, |dir| Ok(vec![dir]))
    }
}

/// The one cluster that is there.
fn only(candidates: &[PathBuf], node: &Path) -> anyhow::Result<PathBuf> {
    let found: Vec<&PathBuf> = candidates.iter().filter(|dir| is_cluster(dir)).collect();
    match found.as_slice() {
        [dir] => Ok((*dir).clone()),
        [] if node_of(node).is_some() => {
            bail!("{}, but a node's in {}: name it with --data-dir", nothing_in(candidates), node.display())
        }
        [] => bail!("{}", nothing_in(candidates)),
        several => {
            let several: Vec<String> = several.iter().map(|dir| dir.display().to_string()).collect();
            bail!("there are several clusters: name one with --data-dir: {}", several.join(", "))
        }
    }
}

fn nothing_in(candidates: &[PathBuf]) -> String {
    format!("there is no cluster's data in {}", candidates[0].display())
}

/// Of the directories that fit, the one whose cluster runs, or else the first.
fn first_running(dirs: &[PathBuf], is_fit: impl Fn(&Path) -> bool) -> Option<PathBuf> {
    let fit: Vec<&PathBuf> = dirs.iter().filter(|dir| is_fit(dir)).collect();
    let running = match fit.len() {
        0 | 1 => None,
        _ => fit.iter().find(|dir| crate::down::is_running(dir)),
    };
    running.or(fit.first()).map(|dir| (*dir).clone())
}

/// What a data directory holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kept {
    /// A server's data, and its node's, if it has one.
    Cluster,
    /// That of a node that has joined.
    Node(NodeOf),
}

/// Which node it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeOf {
    /// Its name.
    pub name: String,
    /// The server that it has joined.
    pub server: String,
}

fn whose(dir: &Path) -> Option<Kept> {
    if is_cluster(dir) { Some(Kept::Cluster) } else { node_of(dir).map(Kept::Node) }
}

/// Bytes of a file that may be a node's identity.
const IDENTITY_BYTES_MAX: u64 = 1 << 20;

/// The node whose data is here, by what joining leaves: another program's file of that name is none.
fn node_of(dir: &Path) -> Option<NodeOf> {
    let file = std::fs::File::open(dir.join("identity.json")).ok()?;
    let identity: serde_json::Value = serde_json::from_reader(file.take(IDENTITY_BYTES_MAX)).ok()?;
    let text = |name: &str| identity[name].as_str().map(str::to_owned);
    // Of any version: the one that reads the data says which it is.
    let is_whole =
        identity["layout"].is_u64() && ["authority", "certificate", "key"].iter().all(|key| text(key).is_some());
    if is_whole { Some(NodeOf { name: text("name")?, server: text("server")? }) } else { None }
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
            tell!("beginning anew with {}: pods end in grace", program.path().display());
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
    tell!("stopping instead (once more to stop at once)");
    tokio::select! {
        _ = shutdown => Ok(None),
        () = signal() => bail!("stopped before everything was drained"),
    }
}

/// Drains and stops; a second signal ends it at once.
pub async fn drain(cluster: Cluster, signals: &mut Signals) -> anyhow::Result<()> {
    tell!("stopping: pods end in grace (once more to stop at once)");
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
    fn what_other_programs_leave_in_the_environment_stops_no_start() {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            traces: Traces,
        }
        let read = |words: &[&str], arg: Option<&str>| {
            let Line { traces } = clap::Parser::parse_from([&["up"], words].concat());
            traces.otlp_with(arg.map(str::to_owned)).map(|otlp| otlp.map(|otlp| otlp.share)).map_err(|e| e.to_string())
        };
        let told = |endpoint: &str, arg: Option<&str>| read(&["--otlp-endpoint", endpoint], arg);
        assert_eq!(told("", Some("parentbased")), Ok(None));
        // What a person says is not left without effect.
        for words in [&["--otlp-sample", "0.5"][..], &["--otlp-endpoint", "", "--otlp-sample", "0.5"]] {
            assert!(read(words, None).unwrap_err().contains("--otlp-sample needs a collector"), "{words:?}");
        }
        assert_eq!(
            read(&["--otlp-endpoint", "http://127.0.0.1:4318", "--otlp-sample", "0.5"], Some("1")),
            Ok(Some(0.5))
        );
        assert_eq!(told("http://127.0.0.1:4318", None), Ok(Some(1.0)));
        assert_eq!(told("http://127.0.0.1:4318", Some("0.25")), Ok(Some(0.25)));
        assert!(told("http://127.0.0.1:4318", Some("rate=5")).unwrap_err().contains("OTEL_TRACES_SAMPLER_ARG"));
        let word = |word: &str| Some(word.to_owned());
        assert!(join_with(None, None, word("left")).unwrap().is_none());
        assert_eq!(join_with(word("s"), None, word("left")).unwrap().unwrap().token, "left");
        assert_eq!(join_with(word("s"), word("said"), word("left")).unwrap().unwrap().token, "said");
        assert!(join_with(word("s"), None, None).unwrap_err().to_string().contains("--token"));
    }

    #[test]
    fn who_joins_from_loopback_is_told_where_to_listen() {
        let peers = |join: &str, address: Option<&str>| Peers {
            join: Some(join.to_owned()),
            token: Some("t".to_owned()),
            name: None,
            peer_port: None,
            peer_address: address.map(str::to_owned),
            peer_places: Vec::new(),
        };
        let refused = |peers: Peers, bind: &str| {
            let options = Options { bind: bind.parse().unwrap(), ..Options::new("/none") };
            peers.apply(options).err().map(|error| error.to_string())
        };
        let far = "https://192.0.2.1:6443";
        assert!(refused(peers(far, None), "127.0.0.1").is_some_and(|said| said.contains("--bind 0.0.0.0")));
        assert!(refused(peers("https://server.example:6443", None), "::1").is_some());
        assert_eq!(refused(peers(far, None), "0.0.0.0"), None);
        assert_eq!(refused(peers(far, Some("192.0.2.2:6442")), "127.0.0.1"), None, "something leads there");
        for near in ["https://127.0.0.1:6443", "https://[::1]:6443", "https://localhost:6443"] {
            assert_eq!(refused(peers(near, None), "127.0.0.1"), None, "{near}");
        }
    }

    #[test]
    fn of_several_clusters_the_one_that_runs_is_meant_and_what_cannot_be_undone_is_named() {
        let base = tempfile::tempdir().unwrap();
        let dirs = ["coracle", "coracle-demo"].map(|name| base.path().join(name));
        let node = base.path().join("coracle-node");
        let said = || only(&dirs, &node).map_err(|error| error.to_string());
        assert!(said().unwrap_err().starts_with("there is no cluster's data in"));
        std::fs::create_dir(&node).unwrap();
        std::fs::write(node.join("identity.json"), r#"{"name": "n", "server": "s"}"#).unwrap();
        assert!(!said().unwrap_err().contains("coracle-node"), "somebody else's file");
        let identity = r#"{"layout": 1, "name": "n", "server": "s", "authority": "", "certificate": "", "key": ""}"#;
        std::fs::write(node.join("identity.json"), identity).unwrap();
        assert!(said().unwrap_err().contains("coracle-node: name it with --data-dir"));
        let named = Local { data_dir: Some(node.clone()) };
        let expected = NodeOf { name: "n".to_owned(), server: "s".to_owned() };
        assert_eq!(named.to_delete().unwrap(), (node.clone(), Kept::Node(expected)));
        assert!(named.dir().is_err(), "it is no cluster");

        for dir in &dirs {
            std::fs::create_dir_all(dir.join("control")).unwrap();
            std::fs::write(dir.join("CLUSTER"), "coracle cluster 1\n").unwrap();
            std::fs::write(dir.join("control/LOCK"), "").unwrap();
        }
        let refused = said().unwrap_err();
        assert!(refused.contains("coracle, ") && refused.contains("coracle-demo"), "{refused}");
        assert_eq!(first_running(&dirs, is_cluster).as_ref(), Some(&dirs[0]), "none runs");
        assert_eq!(first_running(&dirs, |_| false), None);
        // Another process has the second one's lock.
        let lock = std::fs::File::open(dirs[1].join("control/LOCK")).unwrap();
        lock.lock().unwrap();
        let mut holds = std::process::Command::new("tail").args(["-f", "/dev/null"]).stdin(lock).spawn().unwrap();
        let running = first_running(&dirs, is_cluster);
        holds.kill().unwrap();
        holds.wait().unwrap();
        assert_eq!(running.as_ref(), Some(&dirs[1]));
        std::fs::remove_file(dirs[0].join("CLUSTER")).unwrap();
        assert_eq!(said().as_ref(), Ok(&dirs[1]));
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
