//! A cluster in this process: one server, the first or one more, and one node or none.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Instant;

use coracle_node::{Node, Otlp};
use coracle_server::{Audit, Duties, Joining, Listeners, Peering, Preparation, Program, Registry, Server};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::worker::{self, WorkerError};
use crate::{Join, Remote};

pub use coracle_node::{Compiler, IngressPort, IngressPorts, compile_worker};

/// How a cluster is started.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where everything is kept; made when missing.
    pub data_dir: PathBuf,
    /// Address of the API. The registry asks nobody who they are and stays on loopback whatever this is; on the API's
    /// address it is reached with TLS and credentials.
    pub bind: IpAddr,
    /// Further names and addresses that the API is reached at; they go into its certificate.
    pub tls_san: Vec<String>,
    /// Bytes of objects beyond which nothing may be added; deletions are possible.
    pub stored_max: u64,
    /// Port of the API; 0 takes a free one.
    pub api_port: u16,
    /// Port of the registry; 0 takes a free one. Without, it is 5000, or a free one where another program has that.
    pub registry_port: Option<u16>,
    /// Port at which servers and other nodes reach the node in this process, on the API's address; 0 takes a free one.
    pub kubelet_port: u16,
    /// Address of the listeners of NodePort services.
    pub node_port_bind: IpAddr,
    /// Where Ingresses are served.
    pub ingress: IngressPorts,
    /// Where the node answers questions about the cluster's names (DNS), to programs that are no pods; nowhere when absent.
    pub dns: Option<SocketAddr>,
    /// Where spans of requests are sent; nowhere when absent.
    pub otlp: Option<Otlp>,
    /// Name of the server and of its node; the machine's when absent.
    pub name: Option<String>,
    /// Whether pods run here; without, it is a server only.
    pub with_node: bool,
    /// Port at which other servers reach this one, on the API's address; 0 takes a free one, and after that the same.
    pub peer_port: u16,
    /// `HOST` or `HOST:PORT` by which they do, where it is another than they would think.
    pub peer_address: Option<String>,
    /// `HOST:PORT` at which other servers may be that are not where they were: all may have moved at once.
    pub peer_places: Vec<String>,
    /// How to join a cluster as one more server; not needed where it has joined before.
    pub join: Option<Join>,
    /// Where components are compiled. Within this process, as is the default, is for programs that trust their components: one may have a
    /// compiler take any amount of time and memory. For [`Compiler::Process`] see [`compile_worker`].
    pub compiler: Compiler,
    /// The program that this process runs, where the process can begin anew when it is asked to ([`Program::asked`]).
    pub program: Option<Program>,
    /// What [`Cluster::shutdown_to_begin_anew`] has left.
    pub listeners: Listeners,
    /// What the server tells of the requests of its API, and where; nothing when absent.
    pub audit: Option<Audit>,
    /// Which of controllers and scheduler the server runs when it leads ([`run_duties`](crate::run_duties) runs the others).
    pub duties: Duties,
}

impl Options {
    /// Defaults for a cluster kept in `data_dir`: loopback only, the usual ports.
    pub fn new(data_dir: impl Into<PathBuf>) -> Options {
        let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
        Options {
            data_dir: data_dir.into(),
            bind: loopback,
            tls_san: Vec::new(),
            stored_max: 6 << 30,
            api_port: 6443,
            registry_port: None,
            kubelet_port: 0,
            node_port_bind: loopback,
            ingress: IngressPorts::usual(),
            dns: None,
            otlp: None,
            name: None,
            with_node: true,
            peer_port: 0,
            peer_address: None,
            peer_places: Vec::new(),
            join: None,
            compiler: Compiler::InProcess,
            program: None,
            listeners: Listeners::default(),
            audit: None,
            duties: Duties::default(),
        }
    }

    /// The same with free ports.
    pub fn free_ports(self) -> Options {
        Options { api_port: 0, registry_port: Some(0), kubelet_port: 0, ingress: IngressPorts::free(), ..self }
    }
}

/// Has every file that this process makes from now on be for its owner alone, and the kernel write no core file of its memory, in
/// which Secrets and keys are open. For programs whose only purpose is a cluster; what is secret on the disk is closed without it.
pub fn close_new_files() {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    // One byte and not none: the kernel hands a core to a program (`|` in core_pattern) whatever the limit is, but for this one
    // (core(5), `fs/coredump.c`). The hard limit stays, for whoever wants a core file of a process and says so with prlimit(1).
    let limit = getrlimit(Resource::Core);
    let limit = Rlimit { current: Some(limit.maximum.map_or(1, |most| most.min(1))), ..limit };
    if let Err(error) = setrlimit(Resource::Core, limit) {
        tracing::warn!(%error, "core files of this process may be written, with what is secret in them");
    }
}

/// Why a cluster could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The control plane.
    #[error("start the control plane")]
    Server(#[from] coracle_server::Error),
    /// The node.
    #[error("start the node {name}")]
    Node {
        /// Its name.
        name: String,
        /// Why.
        #[source]
        source: coracle_node::Error,
    },
    /// It did not join the cluster that it was to join.
    #[error(transparent)]
    Join(Box<WorkerError>),
    /// No node can be called so.
    #[error(
        "{0:?} is no name for a node: lower case letters, digits, '-' and '.', at most 63, and each part between dots begins and ends \
         with a letter or a digit"
    )]
    Name(String),
    /// It ended before it was ready.
    #[error("the cluster ended before it was ready: {0}")]
    Ended(String),
}

/// A running cluster. One that is dropped ends like one that is shut down, but nobody waits for it.
pub struct Cluster {
    /// There until it is stopped.
    parts: Option<Parts>,
}

struct Parts {
    server: Server,
    node: Option<NodeParts>,
}

struct NodeParts {
    node: Node,
    running: JoinHandle<Result<(), coracle_node::Error>>,
    stop: CancellationToken,
    ended: CancellationToken,
    ahead: JoinHandle<()>,
}

impl Cluster {
    /// Starts a cluster. When this returns the API answers and the kubeconfig is complete; see [`Cluster::ready`].
    pub async fn start(options: Options) -> Result<Cluster, StartError> {
        let name = options.name.clone().unwrap_or_else(machine_name);
        // The cluster would refuse it again and again, and never be ready.
        if options.with_node && !coracle_server::is_node_name(&name) {
            return Err(StartError::Name(name));
        }
        // Whoever joins is called there before it is let in.
        let listen = SocketAddr::new(options.bind, options.peer_port);
        let peers = Peering::listen(listen, options.peer_address.as_deref(), &options.data_dir).await?;
        let joining = match &options.join {
            Some(join) => joining(&options, join, &name, peers.address()).await?,
            None => None,
        };
        let server = Server::start(coracle_server::Config {
            data_dir: options.data_dir.clone(),
            api: SocketAddr::new(options.bind, options.api_port),
            registry: if options.bind.is_loopback() { options.bind } else { IpAddr::V4(Ipv4Addr::LOCALHOST) },
            registry_port: options.registry_port,
            hosts: options.tls_san.clone(),
            stored_max: options.stored_max,
            node: options.with_node.then(|| name.clone()),
            name: name.clone(),
            peers: Some(peers.looking_at(options.peer_places.clone())),
            joining,
            program: options.program.clone(),
            listeners: options.listeners.clone(),
            audit: options.audit.clone(),
            duties: options.duties,
        })
        .await?;
        // From here on, who no longer waits for the start leaves nothing behind: what runs ends with this.
        let mut cluster = Cluster { parts: Some(Parts { server, node: None }) };
        if !options.with_node {
            return Ok(cluster);
        }
        match start_node(&cluster.parts().server, &options, &name).await {
            Ok(node) => {
                if let Some(parts) = &mut cluster.parts {
                    parts.node = Some(node);
                }
                Ok(cluster)
            }
            Err(error) => {
                cluster.shutdown().await;
                Err(error)
            }
        }
    }

    /// Waits until a pod would start: the node, if there is one, is registered and Ready.
    pub async fn ready(&self) -> Result<(), StartError> {
        let Some(node) = &self.parts().node else { return Ok(()) };
        tokio::select! {
            () = node.node.ready() => Ok(()),
            why = self.ended() => Err(StartError::Ended(why)),
        }
    }

    /// Waits until the node has ended, or the data can no longer be written, or the server was removed from the cluster,
    /// although nobody stopped it; says which.
    pub async fn ended(&self) -> String {
        let node_ended = async {
            match &self.parts().node {
                Some(node) => {
                    node.ended.cancelled().await;
                    why_ended(&node.node)
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            why = node_ended => why,
            why = self.parts().server.failed() => why,
        }
    }

    /// This cluster as a client sees it, with every right and without the network.
    pub fn remote(&self) -> Remote {
        Remote::new(self.parts().server.admin())
    }

    /// `https://HOST:PORT` of the API.
    pub fn api_url(&self) -> String {
        self.parts().server.api_url()
    }

    /// Where clients on this machine reach the registry, without TLS.
    pub fn registry_address(&self) -> SocketAddr {
        self.parts().server.registry_address()
    }

    /// Where the node in this process serves Ingresses, as URLs; complete when it is ready.
    pub fn ingress_urls(&self) -> Vec<String> {
        self.parts().node.as_ref().map(|node| node.node.ingress_urls()).unwrap_or_default()
    }

    /// Where the node in this process answers questions about names, if it does.
    pub fn dns_address(&self) -> Option<SocketAddr> {
        self.parts().node.as_ref().and_then(|node| node.node.dns_address())
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> &Path {
        self.parts().server.kubeconfig()
    }

    fn parts(&self) -> &Parts {
        self.parts.as_ref().expect("they are taken by who stops the cluster, which is its end")
    }

    /// Stops in order: no more scheduling, another server leads, pods end in grace, then the API, then the data.
    ///
    /// Pods are stopped, not deleted: the next start runs them again.
    pub async fn shutdown(mut self) {
        if let Some(parts) = self.parts.take() {
            parts.shutdown().await;
        }
    }

    /// The same for a process that begins anew, with [`Options::listeners`]: whoever asks the API meanwhile waits for that.
    pub async fn shutdown_to_begin_anew(mut self) -> Listeners {
        match self.parts.take() {
            Some(parts) => parts.shutdown_to_begin_anew().await,
            None => Listeners::default(),
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let Some(parts) = self.parts.take() else { return };
        match tokio::runtime::Handle::try_current() {
            // Whoever would wait for it has gone.
            Ok(runtime) => drop(runtime.spawn(parts.shutdown())),
            // Its tasks are on another thread's runtime, or on none any more: the node is told, and nothing can be waited for.
            Err(_) => drop(parts.node.map(|node| node.stop.cancel())),
        }
    }
}

impl Parts {
    async fn shutdown(self) {
        self.without_node().await.shutdown().await;
    }

    async fn shutdown_to_begin_anew(self) -> Listeners {
        self.without_node().await.shutdown_to_begin_anew().await
    }

    /// The server alone, once the node has ended: its last words are for the server.
    async fn without_node(self) -> Server {
        self.server.stop_duties().await;
        if let Some(node) = self.node {
            node.shutdown().await;
        }
        self.server
    }
}

impl NodeParts {
    async fn shutdown(self) {
        self.stop.cancel();
        if let Err(error) = self.ahead.await {
            tracing::error!(%error, "the compilation of pushed images");
        }
        match self.running.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the node ended"),
            Err(error) => tracing::error!(%error, "the node's task"),
        }
    }
}

/// What the cluster gives a server that joins; nothing where it has joined before.
async fn joining(options: &Options, join: &Join, name: &str, address: &str) -> Result<Option<Joining>, StartError> {
    let dir = &options.data_dir;
    let failed = |error| StartError::Join(Box::new(error));
    let (server, token) = join.parse().map_err(failed)?;
    let taken = |why: &str| Err(failed(WorkerError::Directory { dir: dir.clone(), why: why.to_owned() }));
    if dir.join("identity.json").exists() {
        return taken("belongs to a node: choose another directory for a server");
    }
    if !dir.join("CLUSTER").exists() {
        Server::check_joining(dir, options.audit.as_ref())?;
        return worker::join_server(&server, &token, name, address).await.map(Some).map_err(failed);
    }
    match std::fs::read_to_string(dir.join("pki/ca.crt")) {
        // What is missing is told at the start.
        Ok(authority) if !token.is_of(&authority) => {
            taken("belongs to another cluster: choose another directory, or remove this one with `coracle reset`")
        }
        _ => Ok(None),
    }
}

/// Has the node compile what is pushed to the cluster's registry before a pod names it: one image at a time, so that a
/// compiler stays free for pods that wait.
async fn prepare_ahead(registry: Registry, node: Node, stop: CancellationToken) {
    let forever = async {
        loop {
            let push = registry.next_push().await;
            let begun = Instant::now();
            let state = match node.prepare(&push.image).await {
                Ok(()) => Preparation::ready(begun.elapsed()),
                Err(error) => {
                    let message = chain(&error);
                    tracing::warn!(image = push.image, error = message, "a pushed image cannot be prepared");
                    Preparation::Failed { message }
                }
            };
            registry.tell(&push.manifest_digest, state);
        }
    };
    // Dropped at any moment: a compiler ends, and what was not prepared is when a pod asks for it.
    tokio::select! {
        () = forever => {}
        () = stop.cancelled() => {}
    }
}

/// An error and its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    for cause in std::iter::successors(error.source(), |error| error.source()).map(ToString::to_string) {
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

async fn start_node(server: &Server, options: &Options, name: &str) -> Result<NodeParts, StartError> {
    // Where other nodes and servers reach this one.
    let address = coracle_server::advertised(options.bind);
    let tls = server.node_tls(name, address)?;
    let client = server.node_client(name);
    let mut config = coracle_node::Config {
        port: options.kubelet_port,
        link: Some(tls.client),
        cluster_roots: vec![tls.root],
        registry: Some(server.registry_address().to_string()),
        min_free_bytes: coracle_server::free_floor(&options.data_dir),
        node_port_bind: options.node_port_bind,
        ingress: options.ingress,
        dns: options.dns,
        otlp: options.otlp.clone(),
        compiler: options.compiler.clone(),
        routes: options.program.as_ref().map(Program::router).unwrap_or_default(),
        ..coracle_node::Config::new(name, options.data_dir.join("node"), address, tls.server)
    };
    // The first has a range of addresses for its pods; those of others get one as nodes do that join.
    if !server.is_founder() {
        let range = worker::register(&client, name, &server.api_url()).await;
        config.pod_cidr = range.map_err(|error| StartError::Join(Box::new(error)))?;
        config.annotations.insert(worker::RANGE.to_owned(), "joined".to_owned());
    }
    let failed = |source| StartError::Node { name: name.to_owned(), source };
    let node = Node::new(client, config).await.map_err(failed)?;
    let stop = CancellationToken::new();
    let ended = CancellationToken::new();
    let run = node.clone().run(stop.clone());
    // Cancelled also when the node panics.
    let when_over = ended.clone().drop_guard();
    let running = tokio::spawn(async move {
        let _when_over = when_over;
        run.await
    });
    let ahead = tokio::spawn(prepare_ahead(server.registry().clone(), node.clone(), stop.clone()));
    Ok(NodeParts { node, running, stop, ended, ahead })
}

/// Why a node has ended that nobody stopped.
pub(crate) fn why_ended(node: &Node) -> String {
    node.replaced().unwrap_or_else(|| "the node ended by itself".to_owned())
}

/// The machine's name as a node can have it (RFC 1123: lower case, letters, digits, '-' and '.').
pub(crate) fn machine_name() -> String {
    node_name(&std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default())
}

fn node_name(host: &str) -> String {
    let name: String = host
        .trim()
        .to_lowercase()
        .chars()
        .map(|c| if c.is_ascii_lowercase() || c.is_ascii_digit() || c == '.' { c } else { '-' })
        .take(63)
        .collect();
    let labels = name.split('.').map(|label| label.trim_matches('-')).filter(|label| !label.is_empty());
    match labels.collect::<Vec<_>>().join(".") {
        name if name.is_empty() => "node".to_owned(),
        name => name,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn whatever_a_machine_is_called_a_node_can_be() {
        let long = "a".repeat(70);
        for (host, name) in [
            ("vm\n", "vm"),
            ("My_Laptop.Local", "my-laptop.local"),
            ("_my_.-laptop-..x.", "my.laptop.x"),
            ("10.0.0.7", "10.0.0.7"),
            ("(none)", "none"),
            ("ü", "node"),
            ("", "node"),
            (&long, &long[..63]),
        ] {
            assert_eq!(node_name(host), name, "{host:?}");
            assert!(coracle_server::is_node_name(name), "{name}");
        }
    }

    #[tokio::test]
    async fn a_name_that_no_node_can_have_is_told_before_anything_starts() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["My_Laptop", "a b", "a..b", "-a", "", &"a".repeat(64)] {
            let data = dir.path().join("data");
            let options = Options { name: Some(name.to_owned()), ..Options::new(&data).free_ports() };
            let started = Cluster::start(options).await.map(drop);
            assert!(matches!(started, Err(StartError::Name(told)) if told == name), "{name:?}");
            assert!(!data.exists());
        }
    }

    /// Each place that is given is a number and a name, for good.
    #[tokio::test(flavor = "multi_thread")]
    async fn who_could_not_start_here_asks_nobody_for_a_place() {
        let token = format!("c1.{}.{}.{}", "0".repeat(8), "0".repeat(32), "0".repeat(64));
        // Nobody is there: whoever asks is told so.
        let join = Join { server: "https://127.0.0.1:1".to_owned(), token };
        let start = async |dir: &Path, audit: Option<Audit>| {
            let options = Options { join: Some(join.clone()), audit, ..Options::new(dir).free_ports() };
            match Cluster::start(options).await {
                Ok(_) => panic!("it joined nobody"),
                Err(error) => error,
            }
        };
        let new = tempfile::tempdir().unwrap();
        let asked = start(new.path(), None).await;
        assert!(matches!(asked, StartError::Join(_)), "{asked:?}");
        // A start that nobody answered leaves nothing in the way of the next.
        assert!(matches!(start(new.path(), None).await, StartError::Join(_)));
        let log = Some(coracle_server::Log::default());
        let audit = Audit { policy: new.path().join("none"), log, webhook: None };
        let told = start(new.path(), Some(audit)).await;
        assert!(matches!(told, StartError::Server(coracle_server::Error::File { .. })), "{told:?}");
        std::fs::write(new.path().join("control/FORMAT"), "coracle keyspace 2\nmember 7\norigin admitted\n").unwrap();
        let told = start(new.path(), None).await;
        assert!(matches!(told, StartError::Server(coracle_server::Error::Begun { .. })), "{told:?}");
        // Data whose mark is gone is a loss, and nothing to remove.
        std::fs::remove_file(new.path().join("FOUNDING")).unwrap();
        let told = start(new.path(), None).await;
        assert!(matches!(told, StartError::Server(coracle_server::Error::Missing { .. })), "{told:?}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_cluster_that_is_dropped_ends() {
        let dir = tempfile::tempdir().unwrap();
        let options = Options::new(dir.path()).free_ports();
        let first = Cluster::start(options.clone()).await.unwrap();
        first.ready().await.unwrap();
        assert!(matches!(Cluster::start(options.clone()).await, Err(StartError::Server(_))), "the data has one user");
        drop(first);
        let again = async {
            loop {
                match Cluster::start(options.clone()).await {
                    Ok(cluster) => return cluster,
                    Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
                }
            }
        };
        let again = tokio::time::timeout(Duration::from_secs(60), again).await.expect("the data is free");
        again.shutdown().await;
    }
    #[tokio::test(flavor = "multi_thread")]
    async fn a_cluster_whose_start_nobody_waits_for_ends() {
        let dir = tempfile::tempdir().unwrap();
        let options = Options::new(dir.path()).free_ports();
        let begun = async {
            // The server runs, and its node is on its way.
            while !dir.path().join("node").exists() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::select! {
            started = Cluster::start(options.clone()) => drop(started.unwrap()),
            () = begun => {}
        }
        let again = async {
            loop {
                match Cluster::start(options.clone()).await {
                    Ok(cluster) => return cluster,
                    Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
                }
            }
        };
        let again = tokio::time::timeout(Duration::from_secs(60), again).await.expect("the data is free");
        again.shutdown().await;
    }
}
