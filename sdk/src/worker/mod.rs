//! A node of a cluster that runs elsewhere: joins with a token, keeps what it was given, and runs pods.
//!
//! In the data directory are `identity.json` (name, key, certificate, the cluster's authority and address), `servers.json` (where all
//! its servers are) and `node/`. With an identity no token is needed any more; the certificate is renewed while the node runs. It
//! speaks with one server, and goes to another when that one is gone.

mod call;
mod identity;
mod images;
mod servers;

use std::collections::BTreeMap;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use coracle_node::{Cidr, IngressPorts, Node, Otlp};
use coracle_server::Program;
use http::Request;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use self::call::Server;
pub(crate) use self::call::join_server;
pub use self::identity::IdentityError;
use self::identity::{Current, Identity};
use crate::failover::Servers;
use crate::tokens::{NotAToken, Token};
use crate::{Compiler, StartError};

/// How often it is looked whether the certificate has to be renewed.
const LOOK_EVERY: Duration = Duration::from_secs(3600);
/// The share of a certificate's life at whose rest it is renewed.
const RENEWED_AT: f64 = 1.0 / 3.0;
/// How often a server that does not answer is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// How long it is waited for a node that has the directory and may be ending, since it was killed, and how often it is asked for meanwhile.
const ENDS_WITHIN: Duration = Duration::from_secs(3);
const ASK_EVERY: Duration = Duration::from_millis(20);
/// By this a node asks for a range of addresses for its pods.
pub(crate) const RANGE: &str = "coracle.dev/pod-range";

/// How a node or a server joins.
#[derive(Clone, Debug)]
pub struct Join {
    /// `https://HOST:PORT` of the API.
    pub server: String,
    /// What `coracle token create` printed.
    pub token: String,
}

impl Join {
    pub(crate) fn parse(&self) -> Result<(Server, Token), WorkerError> {
        Ok((self.server.parse()?, self.token.parse()?))
    }
}

/// How a node is started.
#[derive(Clone, Debug)]
pub struct WorkerOptions {
    /// Where everything is kept; made when it has joined.
    pub data_dir: PathBuf,
    /// How to join; not needed where it has joined before.
    pub join: Option<Join>,
    /// Its name; the machine's when absent.
    pub name: Option<String>,
    /// The address by which servers and other nodes reach it; the one that leads to the server when absent.
    pub address: Option<IpAddr>,
    /// The port there; 0 takes a free one.
    pub port: u16,
    /// Address of the listeners of NodePort services.
    pub node_port_bind: IpAddr,
    /// Where Ingresses are served.
    pub ingress: IngressPorts,
    /// Where the node answers questions about the cluster's names (DNS), to programs that are no pods; nowhere when absent.
    pub dns: Option<SocketAddr>,
    /// Where spans of requests are sent; nowhere when absent.
    pub otlp: Option<Otlp>,
    /// Where components are compiled.
    pub compiler: Compiler,
    /// The program that this process runs, where the process can begin anew when it is asked to ([`Program::asked`]).
    pub program: Option<Program>,
}

impl WorkerOptions {
    /// Defaults for a node kept in `data_dir`.
    pub fn new(data_dir: impl Into<PathBuf>) -> WorkerOptions {
        WorkerOptions {
            data_dir: data_dir.into(),
            join: None,
            name: None,
            address: None,
            port: 10_250,
            node_port_bind: IpAddr::V4(Ipv4Addr::LOCALHOST),
            ingress: IngressPorts::usual(),
            dns: None,
            otlp: None,
            compiler: Compiler::InProcess,
            program: None,
        }
    }
}

/// Why a node is not part of the cluster.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The address of the server.
    #[error("{0:?} is no server: it must be https://HOST:PORT")]
    Server(String),
    /// The token's text.
    #[error(transparent)]
    Token(#[from] NotAToken),
    /// Nobody answers.
    #[error("{server} cannot be reached: {why}")]
    Unreachable {
        /// Who was asked.
        server: String,
        /// What the network said.
        why: String,
    },
    /// What answers is not what the token is for.
    #[error(
        "the server at {server} is not of the cluster that the token was made for, so the token was not shown to it: check the \
         address, or make a token in that cluster"
    )]
    OtherCluster {
        /// Who was asked.
        server: String,
    },
    /// The server said no.
    #[error("the server refuses: {0}")]
    Refused(String),
    /// What answers is no server of this kind.
    #[error("{server} does not answer as a server of coracle does: {why}")]
    Strange {
        /// Who was asked.
        server: String,
        /// What is strange.
        why: String,
    },
    /// What is kept, or was given.
    #[error("the node's identity")]
    Identity(#[from] IdentityError),
    /// The directory is used already.
    #[error("{dir} {why}")]
    Directory {
        /// The directory.
        dir: PathBuf,
        /// Why it cannot be used.
        why: String,
    },
    /// There is nothing to start from.
    #[error("no node has joined from {0} yet: `coracle token create` on a server prints the command for it")]
    NotJoined(PathBuf),
    /// The certificate is over.
    #[error("the certificate of node {0} has ended while it was away: join again with --join and a new token")]
    Expired(String),
    /// A listener.
    #[error("listen on loopback for images")]
    Listen(#[source] std::io::Error),
    /// The node itself.
    #[error(transparent)]
    Start(#[from] StartError),
}

/// A running node.
pub struct Worker {
    name: String,
    server: Server,
    node: Node,
    running: JoinHandle<Result<(), coracle_node::Error>>,
    /// The node is told to stop also when nobody waits for it.
    stop: DropGuard,
    ended: CancellationToken,
    expired: CancellationToken,
}

impl Worker {
    /// Joins, where that is still to be done, and starts the node. See [`Worker::ready`].
    pub async fn start(options: WorkerOptions) -> Result<Worker, WorkerError> {
        let (identity, lock) = identity(&options).await?;
        let server: Server = identity.server.parse()?;
        let current = Current::new(&identity)?;
        let connect = {
            let (identity, current) = (identity.clone(), current.clone());
            move |server: &str| call::client(&server.parse()?, &identity, &current)
        };
        let names = match &options.join {
            Some(_) => servers::kept_behind(&options.data_dir, &identity.server),
            None => servers::kept(&options.data_dir, &identity.server),
        };
        let clients: Result<Vec<_>, WorkerError> =
            names.iter().map(|name| Ok((name.clone(), connect(name)?))).collect();
        let servers = Servers::new(clients?, |moved| tracing::warn!("{moved}"));
        let client = servers.client("default");
        let range = register(&client, &identity.name, &identity.server).await?;
        let address = match options.address {
            Some(address) => address,
            None => address_towards(&names).await?,
        };
        let (listener, registry) = images::listen().await.map_err(WorkerError::Listen)?;
        let config = coracle_node::Config {
            pod_cidr: range,
            port: options.port,
            link: Some(Arc::new(current.client(&identity)?)),
            cluster_roots: vec![identity.root()?],
            annotations: BTreeMap::from([(RANGE.to_owned(), "joined".to_owned())]),
            registry: Some(registry.to_string()),
            min_free_bytes: coracle_server::free_floor(&options.data_dir),
            node_port_bind: options.node_port_bind,
            ingress: options.ingress,
            dns: options.dns,
            otlp: options.otlp.clone(),
            compiler: options.compiler.clone(),
            routes: options.program.as_ref().map(Program::router).unwrap_or_default(),
            ..coracle_node::Config::new(
                &identity.name,
                options.data_dir.join("node"),
                address,
                Arc::new(current.server(&identity)?),
            )
        };
        let failed = |source| StartError::Node { name: identity.name.clone(), source };
        let node = Node::new(client.clone(), config).await.map_err(failed)?;
        let (stop, ended, tasks) = (CancellationToken::new(), CancellationToken::new(), TaskTracker::new());
        let (background, expired) = (CancellationToken::new(), CancellationToken::new());
        tasks.spawn(images::serve(listener, servers.clone(), background.clone()));
        let (name, joined, dir) = (identity.name.clone(), identity.server.clone(), options.data_dir.clone());
        tasks.spawn(servers::follow(servers, joined, dir.clone(), connect, background.clone()));
        tasks.spawn(renew(client, identity, current, dir, expired.clone(), background.clone()));
        let run = node.clone().run(stop.clone());
        // Cancelled also when the node panics.
        let (when_over, background) = (ended.clone().drop_guard(), background.drop_guard());
        tasks.close();
        let running = tokio::spawn(async move {
            let _when_over = when_over;
            // The directory is this node's until nothing of it runs any more, whoever still knows of it.
            let _lock = lock;
            let ended = async {
                let _background = background;
                run.await
            };
            let ended = ended.await;
            tasks.wait().await;
            ended
        });
        Ok(Worker { name, server, node, running, stop: stop.drop_guard(), ended, expired })
    }

    /// Its name in the cluster.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it serves Ingresses, as URLs; complete when it is ready.
    pub fn ingress_urls(&self) -> Vec<String> {
        self.node.ingress_urls()
    }

    /// Where it answers questions about names, if it does.
    pub fn dns_address(&self) -> Option<SocketAddr> {
        self.node.dns_address()
    }

    /// The server that it has joined.
    pub fn server(&self) -> String {
        self.server.to_string()
    }

    /// Waits until a pod would start: the node is registered and Ready.
    pub async fn ready(&self) -> Result<(), WorkerError> {
        tokio::select! {
            () = self.node.ready() => Ok(()),
            why = self.ended() => Err(why),
        }
    }

    /// Waits until the node has ended although nobody stopped it, or is none of the cluster any more; says why.
    pub async fn ended(&self) -> WorkerError {
        tokio::select! {
            () = self.expired.cancelled() => WorkerError::Expired(self.name.clone()),
            () = self.ended.cancelled() => StartError::Ended(crate::cluster::why_ended(&self.node)).into(),
        }
    }

    /// Pods end in grace; then the node does. It is still a node of the cluster, and runs its pods again at the next start.
    pub async fn shutdown(self) {
        drop(self.stop);
        match self.running.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the node ended"),
            Err(error) => tracing::error!(%error, "the node's task"),
        }
    }
}

/// The identity that is kept, or that joining gives. Nothing is written before there is one.
async fn identity(options: &WorkerOptions) -> Result<(Identity, File), WorkerError> {
    let dir = &options.data_dir;
    let taken = |why: String| WorkerError::Directory { dir: dir.clone(), why };
    if ["CLUSTER", "FOUNDING", "control"].iter().any(|part| dir.join(part).exists()) {
        return Err(taken("holds a cluster of its own: choose another directory for a node".to_owned()));
    }
    let join = match &options.join {
        Some(join) => Some(join.parse()?),
        None => None,
    };
    let kept = Identity::load(dir)?;
    if let Some(kept) = &kept {
        if options.name.as_ref().is_some_and(|name| *name != kept.name) {
            return Err(taken(format!("belongs to node {}: choose another directory for another node", kept.name)));
        }
        if join.as_ref().is_some_and(|(_, token)| !token.is_of(&kept.authority)) {
            return Err(taken(format!(
                "belongs to node {} of another cluster, at {}: choose another directory",
                kept.name, kept.server
            )));
        }
    }
    let is_over = match &kept {
        Some(kept) => kept.left()? <= 0.0,
        None => false,
    };
    match (&kept, &join) {
        (None, None) => return Err(WorkerError::NotJoined(dir.clone())),
        (Some(kept), None) if is_over => return Err(WorkerError::Expired(kept.name.clone())),
        _ => {}
    }
    // Before the cluster is asked for a place: who could not keep one takes none.
    let lock = lock(dir).await.map_err(|error| match error.kind() {
        std::io::ErrorKind::WouldBlock => taken("is used by a node that runs".to_owned()),
        _ => taken(format!("cannot be used: {error}")),
    })?;
    let place = async {
        if Identity::load(dir)? != kept {
            return Err(taken("was taken by another node meanwhile".to_owned()));
        }
        let joined = match (&kept, join) {
            (Some(kept), None) => return Ok(kept.clone()),
            // A cluster may have moved: the address that somebody writes holds, the token is not needed.
            (Some(kept), Some((server, _))) if !is_over => Identity { server: server.to_string(), ..kept.clone() },
            (kept, Some((server, token))) => {
                let named = kept.as_ref().map(|kept| kept.name.clone()).or_else(|| options.name.clone());
                let listener = listen(options, &server).await;
                let address = listener.as_ref().and_then(|listener| listener.local_addr().ok());
                call::join(&server, &token, &named.unwrap_or_else(crate::cluster::machine_name), address).await?
            }
            (None, None) => return Err(WorkerError::NotJoined(dir.clone())),
        };
        if kept.as_ref() != Some(&joined) {
            joined.store(dir)?;
        }
        Ok(joined)
    };
    match place.await {
        Ok(joined) => Ok((joined, lock)),
        Err(error) => {
            if kept.is_none() {
                let_go(dir, lock);
            }
            Err(error)
        }
    }
}

/// Listens where the node will, while it joins. What keeps it from that is told when it starts.
async fn listen(options: &WorkerOptions, server: &Server) -> Option<TcpListener> {
    let address = match options.address {
        Some(address) => address,
        None => address_towards(&[server.to_string()]).await.ok()?,
    };
    TcpListener::bind((address, options.port)).await.ok()
}

/// Holds the directory for as long as the file lives.
async fn lock(dir: &Path) -> std::io::Result<File> {
    use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
    let path = dir.join("LOCK");
    let give_up = Instant::now() + ENDS_WITHIN;
    loop {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let file = File::options().write(true).create(true).truncate(false).mode(0o600).open(&path)?;
        let locked = rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive);
        // Who had it may have let go just now, and somebody else have made another.
        let is_there = std::fs::metadata(&path).is_ok_and(|there| {
            file.metadata().is_ok_and(|held| (held.dev(), held.ino()) == (there.dev(), there.ino()))
        });
        match locked {
            Ok(()) if is_there => return Ok(file),
            Ok(()) | Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < give_up => {
                tokio::time::sleep(ASK_EVERY).await;
            }
            Ok(()) => return Err(std::io::ErrorKind::WouldBlock.into()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Leaves nothing of a directory in which no node has a place; what somebody else keeps there stays.
fn let_go(dir: &Path, lock: File) {
    let _ = std::fs::remove_file(dir.join("LOCK"));
    drop(lock);
    let _ = std::fs::remove_dir(dir);
}

/// Makes the Node object where there is none, and says which range of addresses its pods have. Waits for a server that does
/// not answer.
pub(crate) async fn register(client: &kube::Client, name: &str, server: &str) -> Result<Cidr, WorkerError> {
    let path = format!("/api/v1/nodes/{name}");
    let object =
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "annotations": {RANGE: "joined"}}});
    let request = |method: &str, path: &str, body: &Value| {
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        let request = Request::builder().method(method).uri(path).header("content-type", "application/json");
        request.body(body).expect("a method, and a path of a name that the server has signed")
    };
    let mut is_told = false;
    loop {
        let asked = match client.request::<Value>(request("GET", &path, &Value::Null)).await {
            Err(kube::Error::Api(status)) if status.code == 404 => {
                client.request::<Value>(request("POST", "/api/v1/nodes", &object)).await
            }
            other => other,
        };
        match asked {
            Ok(node) => {
                let range = node["spec"]["podCIDR"].as_str().unwrap_or_default();
                return range.parse().map_err(|_| {
                    WorkerError::Refused(format!(
                        "node {name} has no range of addresses for pods; it was made by somebody else: `kubectl delete node \
                         {name}`, and start again"
                    ))
                });
            }
            // Made by another request meanwhile.
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(kube::Error::Api(status)) if status.code < 500 && status.code != 429 => {
                return Err(WorkerError::Refused(status.message.clone()));
            }
            Err(error) => {
                if !std::mem::replace(&mut is_told, true) {
                    tracing::warn!(server, %error, "the server does not answer; asking again until it does");
                }
            }
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

/// The address of this machine that leads to the servers, the first of them that has a known address. Nothing is sent.
async fn address_towards(servers: &[String]) -> Result<IpAddr, WorkerError> {
    let mut last = None;
    for name in servers {
        let server: Server = name.parse()?;
        let find = async {
            let any = if server.address().0.parse::<std::net::Ipv6Addr>().is_ok() { "[::]:0" } else { "0.0.0.0:0" };
            let socket = tokio::net::UdpSocket::bind(any).await?;
            socket.connect(server.address()).await?;
            socket.local_addr()
        };
        match find.await {
            Ok(address) => return Ok(address.ip()),
            Err(error) => last = Some(WorkerError::Unreachable { server: name.clone(), why: error.to_string() }),
        }
    }
    Err(last.unwrap_or_else(|| WorkerError::Server(String::new())))
}

/// Renews the certificate in time, until `stop`. `expired` is told when it is over: nobody renews one that has ended (its machine
/// slept, say), and the node could go on for ever without anybody hearing of its pods.
async fn renew(
    client: kube::Client,
    mut identity: Identity,
    current: Arc<Current>,
    dir: PathBuf,
    expired: CancellationToken,
    stop: CancellationToken,
) {
    loop {
        let left = identity.left().unwrap_or(1.0);
        if left < RENEWED_AT {
            match renewed(&client, &identity, &current, &dir).await {
                Ok(next) => identity = next,
                Err(_) if left <= 0.0 => return expired.cancel(),
                Err(error) => {
                    tracing::warn!(%error, node = identity.name, "the certificate is not renewed; trying again")
                }
            }
        }
        // Waiting is all that is cut here.
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = stop.cancelled() => return,
        }
    }
}

async fn renewed(
    client: &kube::Client,
    identity: &Identity,
    current: &Arc<Current>,
    dir: &Path,
) -> Result<Identity, WorkerError> {
    let next = call::renew(client, identity).await?;
    // On disk first: what is shown from now on must be there after a kill.
    next.store(dir)?;
    current.replace(&next)?;
    Ok(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_certificate_that_has_ended_is_said_and_not_tried_for_ever() {
        let mut params = rcgen::CertificateParams::new(vec!["worker".to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2020, 4, 1);
        let key = rcgen::KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        let temp = tempfile::tempdir().unwrap();
        // A port that is free refuses at once.
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let server = format!("https://{free}");
        let identity = Identity::new("worker", &server, pem.clone(), pem, key.serialize_pem()).unwrap();
        let current = Current::new(&identity).unwrap();
        let (expired, stop) = (CancellationToken::new(), CancellationToken::new());
        let client = call::client(&server.parse().unwrap(), &identity, &current).unwrap();
        renew(client, identity, current, temp.path().into(), expired.clone(), stop).await;
        assert!(expired.is_cancelled());
    }

    #[tokio::test]
    async fn what_cannot_join_leaves_nothing_behind() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("node");
        let hash = "0a".repeat(32);
        let token = format!("c1.0a1b2c3d.{}.{hash}", "5e".repeat(16));
        // A port that is taken and answers nobody's handshake would wait; one that is free refuses at once.
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        for (join, expected) in [
            (None, "no node has joined"),
            (Some(("https://127.0.0.1:1", "rubbish")), "not a whole token"),
            (Some(("127.0.0.1:1", token.as_str())), "is no server"),
            (Some((format!("https://{free}").as_str(), token.as_str())), "cannot be reached"),
        ] {
            let join = join.map(|(server, token)| Join { server: server.to_owned(), token: token.to_owned() });
            let options = WorkerOptions { join, ..WorkerOptions::new(&dir) };
            let error = Worker::start(options).await.err().expect("it cannot join").to_string();
            assert!(error.contains(expected), "{error}");
            assert!(!dir.exists(), "{expected}");
        }
        // Nobody was asked who could not have kept the answer, nor beside a start that is under way.
        let join = || Some(Join { server: format!("https://{free}"), token: token.clone() });
        for dir in [Path::new("/proc/coracle-node"), &dir] {
            let _held = lock(dir).await;
            let error = Worker::start(WorkerOptions { join: join(), ..WorkerOptions::new(dir) }).await.err().unwrap();
            assert!(matches!(error, WorkerError::Directory { .. }), "{error}");
        }
        std::fs::create_dir_all(dir.join("control")).unwrap();
        let error = Worker::start(WorkerOptions::new(&dir)).await.err().unwrap().to_string();
        assert!(error.contains("a cluster of its own"), "{error}");
    }
}
