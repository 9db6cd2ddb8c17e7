//! The server: one member of the control plane, wired together.
//!
//! It opens the data, makes the certificates, listens, and runs the duties that only the Raft leader has (controllers,
//! scheduler). What each part does is the part's own affair; the order in which they start and stop is decided here.
//!
//! Start: data (which locks the directory) → certificates → listeners, which say that the server waits → a majority of the servers →
//! API → duties. Stop: duties, then listeners (open
//! requests finish, watches end), then the data, so that nothing which was answered is lost.

mod addresses;
mod audit;
mod authority;
pub mod backup;
mod cork;
mod door;
mod duties;
mod encryption;
mod founding;
mod group;
mod images;
mod join;
mod kubeconfig;
mod listener;
mod members;
mod peers;
mod program;
pub mod recover;
mod status;
mod tls;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use coracle_apiserver::{ApiServer, Here, Identity, PolicyError};
use coracle_keyspace::{Begin, GroupError, Keyspace, Promotion};
pub use coracle_registry::{Name as Repository, Push, Reference, Registry, State as Preparation};
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, ServerConfig};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use door::Door;
use tls::Certificates;

pub use audit::{Audit, Webhook};
pub use authority::{Authority, Pair, SharedKeys, Subject};
/// YAML as the API reads it, for whoever reads manifests on a client's side.
pub use coracle_api::codec::yaml;
pub use coracle_apiserver::{Log, Mode, Sending, Throttle, Truncate};
pub use coracle_controllers::Config as DutiesConfig;
pub use coracle_keyspace::bench as keyspace_bench;
pub use coracle_keyspace::{Admission, Formats, MemberStatus, Role, SecretKey};
pub use coracle_scheduler::bench as placements_bench;
pub use duties::Duties;
pub use group::{Joining, Peering};
pub use join::{hash as join_token_hash, is_node_name};
pub use listener::Listeners;
pub use program::{Next, Program, Running, Version};

/// Group that may do everything (kubernetes-api §23.6).
const MASTERS: &str = "system:masters";
/// Streams from other servers that wait to be served; more wait unread.
const STREAMS_QUEUED: usize = 16;
/// How often the registry is tidied up.
const TIDY_EVERY: Duration = Duration::from_secs(3600);
/// How long a blob may lie without a manifest.
const TIDY_AGE: Duration = Duration::from_secs(3600);

/// What a server needs to know. Ports of 0 take a free one.
#[derive(Debug)]
pub struct Config {
    /// Where everything is kept.
    pub data_dir: PathBuf,
    /// Where the API listens.
    pub api: SocketAddr,
    /// Where the registry listens for clients on this machine, without TLS.
    pub registry: IpAddr,
    /// At which port; without, at 5000, or at a free one where another program has that.
    pub registry_port: Option<u16>,
    /// Further host names or addresses the API is reached at; they go into its certificate.
    pub hosts: Vec<String>,
    /// Bytes of objects beyond which nothing may be added; deletions are possible.
    pub stored_max: u64,
    /// What it is called among the servers, where it founds the cluster; the others are called as they were admitted.
    pub name: String,
    /// The node in the same process, whose name no other may have.
    pub node: Option<String>,
    /// Where other servers reach this one; without, there can be none.
    pub peers: Option<Peering>,
    /// The cluster that admitted this server, where there is no data of it yet; without, one is founded then.
    pub joining: Option<Joining>,
    /// The program that this process runs, where it can begin anew with another one.
    pub program: Option<Program>,
    /// What it listened at before it began anew.
    pub listeners: Listeners,
    /// What is told of requests, and where; nothing when absent.
    pub audit: Option<Audit>,
    /// What it does for the cluster when it leads.
    pub duties: Duties,
}

/// What to do about an address that cannot be had.
fn to_do(why: &io::Error, flag: &str) -> String {
    match why.kind() {
        io::ErrorKind::AddrNotAvailable => "choose an address of this machine with --bind".to_owned(),
        _ => format!("is another program using it? choose another port with {flag}, or 0 for a free one"),
    }
}

/// Why a server could not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A listener's address cannot be had.
    #[error("listen at {address} for {what}: {}", to_do(source, flag))]
    Bind {
        /// Which listener.
        what: &'static str,
        /// What `coracle` calls its port.
        flag: &'static str,
        /// Its address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The data directory cannot be used.
    #[error("open the data directory {dir}")]
    Data {
        /// The directory.
        dir: PathBuf,
        /// Why.
        #[source]
        source: coracle_keyspace::OpenError,
    },
    /// Certificates.
    #[error("set up the certificate authority")]
    Authority(#[from] authority::Error),
    /// TLS.
    #[error("set up TLS")]
    Tls(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The registry's files.
    #[error("open the registry")]
    Registry(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The API server's own objects.
    #[error("start the API server")]
    Api(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// There is data of a cluster, or must be, and what says so is gone.
    #[error("{path} is missing, although there is data of a cluster. {}", coracle_keyspace::LOST_DATA)]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// It was given a place among the servers, and its start ended before it had it.
    #[error(
        "{dir} has what a start has left that was given a place among the servers, or founded a cluster, and ended before it was one \
         of them: `coracle reset` removes it. At another server `coracle member list` shows the place as absent, and `coracle member \
         remove` takes it back"
    )]
    Begun {
        /// The data directory.
        dir: PathBuf,
    },
    /// The data directory was laid out by another version.
    #[error("{path} says {found:?}, which this version does not know; use the version of coracle that wrote it")]
    Layout {
        /// The file.
        path: PathBuf,
        /// What it says.
        found: String,
    },
    /// The policy of the audit log.
    #[error("{path}")]
    AuditPolicy {
        /// The file.
        path: PathBuf,
        /// Why it is none.
        #[source]
        source: PolicyError,
    },
    /// Where the audit log is sent.
    #[error("{path}: {why}")]
    AuditWebhook {
        /// The kubeconfig that says it.
        path: PathBuf,
        /// Why it does not.
        why: String,
    },
    /// It is no server of the cluster any more.
    #[error("{0}")]
    Removed(String),
    /// The group of servers stays as it is.
    #[error(transparent)]
    Group(#[from] GroupError),
    /// A file.
    #[error("{path}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A running server.
pub struct Server {
    config: Config,
    api: ApiServer,
    /// Everything that the API's listener serves.
    router: axum::Router,
    keyspace: Keyspace,
    founder: bool,
    authority: Arc<Authority>,
    certificates: Arc<Certificates>,
    api_address: SocketAddr,
    registry_address: SocketAddr,
    registry: Registry,
    kubeconfig: PathBuf,
    /// The API's and the registry's, for as long as clients are let in.
    listening: [Arc<TcpListener>; 2],
    listeners: CancellationToken,
    duties: CancellationToken,
    tasks: TaskTracker,
    duty_tasks: TaskTracker,
}

/// What a node needs for its own listener and its clients.
pub struct NodeTls {
    /// TLS of the node's listener: its certificate, and the cluster's authority for clients.
    pub server: Arc<ServerConfig>,
    /// TLS towards other nodes, where it shows the same certificate.
    pub client: Arc<ClientConfig>,
    /// The cluster's authority.
    pub root: CertificateDer<'static>,
}

impl Server {
    /// Looks whether this machine has what a server needs that is to join, before it is given a place among the others: each start that
    /// fails with a place has taken a number, and its name. Blocks on the disk.
    pub fn check_joining(data_dir: &Path, audit: Option<&Audit>) -> Result<(), Error> {
        audit.cloned().map(Audit::read).transpose()?;
        if founding::is_founded(data_dir)? {
            return Authority::check(&data_dir.join("pki")).map_err(Error::from);
        }
        let control = data_dir.join("control");
        let format = control.join("FORMAT");
        match format.try_exists() {
            Ok(false) => (),
            Ok(true) => return Err(Error::Begun { dir: data_dir.to_owned() }),
            Err(source) => return Err(Error::File { path: format, source }),
        }
        Keyspace::check_new(&control).map_err(|source| Error::Data { dir: data_dir.to_owned(), source })
    }

    /// Starts a server; when this returns the API answers and the kubeconfig is complete.
    pub async fn start(mut config: Config) -> Result<Server, Error> {
        let dir = config.data_dir.clone();
        let file = |path: &Path| {
            let path = path.to_owned();
            move |source| Error::File { path, source }
        };
        let audit = config.audit.take().map(Audit::read).transpose()?;
        let founded = founding::is_founded(&dir)?;
        // Read before anything is written anywhere: a cluster that lacks its authority stays as it is.
        let pki = dir.join("pki");
        let root = match (&config.joining, founded) {
            (_, true) => {
                Authority::check(&pki)?;
                Some(Authority::root_key(&pki)?)
            }
            (Some(joining), false) => Some(joining.keys.root_key(&pki)?),
            // It is made below, once the directory is locked.
            (None, false) => None,
        };
        let is_root_known = root.is_some();
        // First: this locks the directory, so that two servers cannot both go on.
        let keyspace = coracle_keyspace::Config {
            stored_max: config.stored_max,
            begin: match (&config.joining, founded) {
                (Some(joining), _) => Begin::Join(joining.admission.clone()),
                (None, true) => Begin::Resume,
                (None, false) => Begin::Found,
            },
            root,
            ..coracle_keyspace::Config::new(dir.join("control"))
        };
        let data_failed = |source| Error::Data { dir: dir.clone(), source };
        let prepared = Keyspace::prepare(keyspace).await.map_err(data_failed)?;
        if let (Some(joining), false) = (&config.joining, founded) {
            Authority::adopt(&pki, &joining.keys)?;
        }
        let founder = prepared.founds();
        let authority = Arc::new(Authority::open(&pki, founded || !prepared.founds())?);
        match founded {
            true => founding::settled(&dir)?,
            false => founding::founded(&dir)?,
        }
        let certificates = Arc::new(Certificates::default());
        let prepared = match is_root_known {
            true => prepared,
            // Its authority was made just now.
            false => prepared.with_root(Authority::root_key(&pki)?),
        };
        let (cluster, member) = (prepared.cluster(), prepared.member());
        let (streams, called) = mpsc::channel(STREAMS_QUEUED);
        let peers = config.peers.take();
        peers.iter().for_each(|peers| peers.remember(&dir));
        let peers = peers.map(|peers| group::peers(peers, &authority, &certificates, (cluster, member), streams));
        let peers = peers.transpose()?;
        let keyspace = prepared.start(peers).await.map_err(data_failed)?;
        for own in ["registry", "node"] {
            let own = dir.join(own);
            founding::closed_dir(&own).map_err(file(&own))?;
        }

        let kept = std::mem::take(&mut config.listeners);
        let api_listener = Arc::new(listener::bind(config.api, kept.api, "the API", "--api-port").await?);
        let registry_listener = listener::bind_registry(config.registry, config.registry_port, kept.registry).await?;
        let registry_listener = Arc::new(registry_listener);
        let local = |listener: &TcpListener| listener.local_addr().map_err(file(Path::new("listener")));
        let (api_address, registry_address) = (local(&api_listener)?, local(&registry_listener)?);
        let api_url = format!("https://{}", reachable(api_address));
        // As others reach it.
        let external = SocketAddr::new(advertised(api_address.ip()), api_address.port());

        let subject = serving_subject(&config);
        let names: Vec<String> = subject.hosts.iter().chain(&config.node).cloned().collect();
        let tls = certificates.issue(&authority, subject)?.server(&authority)?;
        let node_client = certificates.issue(
            &authority,
            Subject {
                file: "apiserver-node-client".into(),
                // By this name nodes know it; it has no rights anywhere else.
                user: "kube-apiserver-kubelet-client".into(),
                groups: vec![],
                hosts: vec![],
                addresses: vec![],
            },
        )?;
        let registry = coracle_registry::Config {
            free_min: free_floor(&dir),
            ..coracle_registry::Config::new(dir.join("registry"))
        };
        let (listeners, duties) = (CancellationToken::new(), CancellationToken::new());
        let (tasks, duty_tasks) = (TaskTracker::new(), TaskTracker::new());
        let images = images::Images::new(keyspace.clone(), tasks.clone());
        let registry = Registry::open(registry, images.clone(), images).map_err(|e| Error::Registry(e.into()))?;

        // A start that fails, or that nobody waits for any more, leaves no listener behind.
        let unfinished = listeners.clone().drop_guard();
        let own_facts = status::router(status::Facts {
            authority: authority.clone(),
            certificates: certificates.clone(),
            keyspace: keyspace.clone(),
            images: registry.clone(),
            registry: registry_address,
            api_url: api_url.clone(),
            join_urls: join_urls(api_address),
            data_dir: dir.clone(),
        });
        let own_facts = own_facts.merge(members::router(keyspace.clone())).merge(encryption::router(keyspace.clone()));
        let door = Door::new(keyspace.clone(), own_facts.clone());
        let accept = Some(TlsAcceptor::from(Arc::new(tls)));
        let listening = [api_listener.clone(), registry_listener.clone()];
        tasks.spawn(listener::serve(api_listener, accept, door.router(), listeners.clone()));

        let kubeconfig = dir.join("kubeconfig");
        let written = kubeconfig::Kubeconfig {
            path: kubeconfig.clone(),
            api_url: api_url.clone(),
            authority: authority.clone(),
            keyspace: keyspace.clone(),
        };
        written.write()?;
        group::caught_up(&keyspace).await?;
        group::introduced(&keyspace, &config.name, &names).await?;
        // Before the first Secret is written.
        keyspace.begin_sealing().await;
        let api = ApiServer::start(
            keyspace.clone(),
            coracle_apiserver::Config {
                external_url: format!("https://{external}"),
                authority: authority.certificate().to_owned(),
                token_key: authority.token_key()?,
                node_client: Some(node_client.client(&authority)?),
                front_proxy: Some(Arc::new(authority.front_proxy()?)),
                audit,
                ..coracle_apiserver::Config::default()
            },
        )
        .await
        .map_err(|e| Error::Api(e.into()))?;

        let registry_router = coracle_registry::router(registry.clone());
        if let Some(program) = &config.program {
            program.serves(keyspace.clone());
        }
        let own_program = config.program.as_ref().map(Program::router).unwrap_or_default();
        let programs = members::programs(members::Programs {
            keyspace: keyspace.clone(),
            own: own_program.clone(),
            tasks: tasks.clone(),
        });
        let peers_router = coracle_registry::peers_router(registry.clone()).merge(own_program);
        tasks.spawn(images::serve(called, peers_router, listeners.clone()));
        tasks.spawn(registry.clone().catch_up(listeners.clone()));
        tasks.spawn(registry.clone().scrub(listeners.clone()));
        tasks.spawn(images::complete(registry.clone(), keyspace.clone(), listeners.clone()));
        let internal = Identity::authenticated("system:apiserver", vec![MASTERS.to_owned()]);
        let internal = kube::Client::new(api.in_process(internal), "default");
        let joining = join::Joining::new(authority.clone(), internal.clone(), keyspace.clone());
        tasks.spawn({
            // The node in this process has its certificate from here, whether it joined once or not.
            let names: Vec<String> = names.iter().filter(|name| Some(*name) != config.node.as_ref()).cloned().collect();
            let (joining, stop) = (joining.clone(), listeners.clone());
            async move {
                // It only reads.
                tokio::select! {
                    () = joining.warn_of_nodes(&names) => {}
                    () = stop.cancelled() => {}
                }
            }
        });
        let (peers, follow_peers) = peers::start(internal, listeners.clone());
        tasks.spawn(follow_peers);
        let extra =
            registry_router.clone().merge(joining.authenticated()).merge(peers).merge(own_facts).merge(programs);
        let extra = extra.merge(backup::router(backup::Sources {
            keyspace: keyspace.clone(),
            authority: authority.clone(),
            registry: registry.clone(),
            dir: dir.join("registry"),
        }));
        let extra = extra.layer(axum::middleware::from_fn(join::nodes_only));
        let router = api.router().merge(api.authenticated(extra)).merge(joining.open());
        door.open(router.clone());
        tasks.spawn(tidy(registry.clone(), listeners.clone()));
        let registry_local = api.bounded(coracle_registry::local_router(registry.clone(), &config.hosts));
        tasks.spawn(listener::serve(registry_listener, None, registry_local, listeners.clone()));
        // Now with what the others have told.
        written.write()?;
        tasks.spawn(written.follow(listeners.clone()));
        tasks.spawn(certificates.clone().keep(authority.clone(), listeners.clone()));
        tasks.spawn(program::is_back(keyspace.clone(), config.program.clone(), listeners.clone()));
        unfinished.disarm();

        let server = Server {
            config,
            api,
            router,
            keyspace,
            founder,
            authority,
            certificates,
            api_address,
            registry_address,
            registry,
            kubeconfig,
            listening,
            listeners,
            duties,
            tasks,
            duty_tasks,
        };
        server.start_duties();
        Ok(server)
    }

    /// Controllers and scheduler: ordinary clients of the API, of the server that leads.
    fn start_duties(&self) {
        let config = DutiesConfig {
            root_ca: self.authority.certificate().to_owned(),
            node: self.config.node.clone(),
            signer: Some(self.authority.clone()),
            ..DutiesConfig::default()
        };
        let api = self.api.clone();
        let client = move |user: &str, lead| {
            let identity = Identity::authenticated(user, vec![MASTERS.to_owned()]);
            kube::Client::new(api.in_process(identity).under(lead), "default")
        };
        let duties = self.config.duties.run_while_leading(client, config, self.keyspace.lead(), self.duties.clone());
        self.duty_tasks.spawn(duties);
    }

    /// Gives a new server called `name`, which understands `formats` of the log, a place in the cluster. The caller must have made
    /// sure that it may have one.
    pub async fn admit(&self, name: &str, formats: Formats) -> Result<Joining, Error> {
        let keys = self.authority.shared()?;
        let admission = self.keyspace.admit_until(name, formats, Promotion::WhenComplete).await?;
        Ok(Joining { admission, keys })
    }

    /// Whether it founded the cluster: its node has the first range of addresses for pods, and those of others ask for one.
    pub fn is_founder(&self) -> bool {
        self.founder
    }

    /// The data and its members.
    pub fn keyspace(&self) -> &Keyspace {
        &self.keyspace
    }

    /// A client of this server's API within the process, acting as `user`.
    pub fn client(&self, user: &str, groups: &[&str]) -> kube::Client {
        let groups = groups.iter().map(ToString::to_string).collect();
        kube::Client::new(self.api.in_process(Identity::authenticated(user, groups)), "default")
    }

    /// A client with every right, for the program that started the server.
    pub fn admin(&self) -> kube::Client {
        self.whole_client(Identity::authenticated("coracle-admin", vec![MASTERS.to_owned()]), None)
    }

    /// A client that reaches all that the API's listener does, the registry and the server's status among it.
    fn whole_client(&self, identity: Identity, here: Option<Here>) -> kube::Client {
        let router = self.router.clone();
        let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let mut request = request.map(axum::body::Body::new);
            request.extensions_mut().insert(identity.clone());
            if let Some(here) = here {
                request.extensions_mut().insert(here);
            }
            tower::ServiceExt::oneshot(router.clone(), request)
        });
        kube::Client::new(service, "default")
    }

    /// A client for the node agent `node`, which is in this process and may name its own range of addresses.
    pub fn node_client(&self, node: &str) -> kube::Client {
        let identity = Identity::authenticated(format!("system:node:{node}"), vec!["system:nodes".to_owned()]);
        self.whole_client(identity, Some(Here))
    }

    /// TLS for the listener of the node agent `node`, which only this server may call.
    pub fn node_tls(&self, node: &str, address: IpAddr) -> Result<NodeTls, Error> {
        let shown = self.certificates.issue(
            &self.authority,
            Subject {
                file: format!("node-{node}"),
                user: format!("system:node:{node}"),
                groups: vec!["system:nodes".into()],
                hosts: vec![node.to_owned()],
                addresses: vec![address],
            },
        )?;
        Ok(NodeTls {
            server: Arc::new(shown.server(&self.authority)?),
            client: shown.client(&self.authority)?,
            root: self.authority.root(),
        })
    }

    /// `https://HOST:PORT` of the API.
    pub fn api_url(&self) -> String {
        format!("https://{}", reachable(self.api_address))
    }

    /// Where clients on this machine reach the registry, without TLS.
    pub fn registry_address(&self) -> SocketAddr {
        reachable(self.registry_address)
    }

    /// The registry, for whoever prepares what is pushed to it.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// The kubeconfig of the administrator.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// Where everything is kept.
    pub fn data_dir(&self) -> &Path {
        &self.config.data_dir
    }

    /// Waits until the data can no longer be written, or this is no server of the cluster any more; says why. Whoever runs
    /// the server stops it then.
    pub async fn failed(&self) -> String {
        tokio::select! {
            why = self.keyspace.failed() => format!("the data can no longer be written: {why}"),
            alarm = self.keyspace.removed() => alarm.to_string(),
        }
    }

    /// Ends what controllers and scheduler do here, and has another server lead, if there is one; the API still answers.
    pub async fn stop_duties(&self) {
        self.duties.cancel();
        self.duty_tasks.close();
        self.duty_tasks.wait().await;
        self.keyspace.hand_over().await;
    }

    /// Stops in order; when this returns everything that was answered is on disk.
    pub async fn shutdown(self) {
        // Another server leads before clients are turned away here.
        self.stop_duties().await;
        self.stop().await;
    }

    /// The same for a process that begins anew: who asks from then on waits for what comes of these.
    pub async fn shutdown_to_begin_anew(self) -> Listeners {
        self.stop_duties().await;
        let [api, registry] = self.listening.each_ref().map(|listener| listener::keep(listener));
        self.stop().await;
        Listeners { api, registry }
    }

    async fn stop(self) {
        drop(self.listening);
        self.api.shutdown();
        self.listeners.cancel();
        self.registry.shutdown().await;
        self.tasks.close();
        self.tasks.wait().await;
        self.api.flush_audit().await;
        self.keyspace.shutdown().await;
    }
}

/// Now and then, what pushes left that were never finished, and what nothing names any more.
async fn tidy(registry: Registry, stop: CancellationToken) {
    let mut turns = tokio::time::interval(TIDY_EVERY);
    loop {
        // Waiting is all that is cut here.
        tokio::select! {
            _ = turns.tick() => {}
            () = stop.cancelled() => return,
        }
        if let Err(error) = registry.collect_garbage(TIDY_AGE).await {
            tracing::warn!(%error, "tidy up the registry");
        }
    }
}

/// Bytes that images, uploads, logs and volumes leave free on the disk that holds `dir`, so that the log of the control
/// plane has them: a twentieth of the disk, but no less and no more than stated here.
pub fn free_floor(dir: &Path) -> u64 {
    const FLOOR: (u64, u64) = (64 << 20, 1 << 30);
    let total = rustix::fs::statvfs(dir).map_or(0, |space| space.f_blocks.saturating_mul(space.f_frsize));
    (total / 20).clamp(FLOOR.0, FLOOR.1)
}

/// Writes the kubeconfig where it says something else. A full disk leaves the old one, and is no reason not to start.
fn write_kubeconfig(path: &Path, text: &str) -> Result<(), Error> {
    if std::fs::read_to_string(path).is_ok_and(|there| there == text) {
        return Ok(());
    }
    match founding::write(path, text.as_bytes()) {
        Err(error) if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {
            tracing::error!(path = %path.display(), %error, "the kubeconfig stays as it was");
            Ok(())
        }
        written => written.map_err(|source| Error::File { path: path.into(), source }),
    }
}

/// The API's names: this machine's, and those by which pods know it.
fn serving_subject(config: &Config) -> Subject {
    let mut hosts: Vec<String> = [
        "localhost",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
    ]
    .map(str::to_owned)
    .to_vec();
    let mut addresses = vec![IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V4(Ipv4Addr::new(10, 96, 0, 1))];
    hosts.extend(std::fs::read_to_string("/proc/sys/kernel/hostname").ok().map(|name| name.trim().to_owned()));
    match config.api.ip() {
        // Every address of this machine, those of the moment.
        ip if ip.is_unspecified() => addresses.extend(addresses::of_this_machine()),
        ip => addresses.push(ip),
    }
    for host in &config.hosts {
        match host.parse::<IpAddr>() {
            Ok(address) => addresses.push(address),
            Err(_) => hosts.push(host.clone()),
        }
    }
    hosts.retain(|host| !host.is_empty());
    let mut seen = std::collections::HashSet::new();
    addresses.retain(|address| seen.insert(*address));
    Subject { file: "apiserver".into(), user: "kube-apiserver".into(), groups: vec![], hosts, addresses }
}

/// An address to call for one to listen at: every address is reached at loopback.
fn reachable(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        ip if ip.is_unspecified() => SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), address.port()),
        _ => address,
    }
}

/// The address by which other machines reach what listens here: where that is every address of this machine, the one that
/// leads out of it.
pub fn advertised(address: IpAddr) -> IpAddr {
    match address.is_unspecified() {
        true => addresses::outward().into_iter().next().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        false => address,
    }
}

/// URLs at which other machines may find the API, the likeliest first.
fn join_urls(api: SocketAddr) -> Vec<String> {
    let all = match api.ip().is_unspecified() {
        true => addresses::outward(),
        false => vec![api.ip()],
    };
    all.into_iter().map(|address| format!("https://{}", SocketAddr::new(address, api.port()))).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    pub(crate) fn config(dir: &Path) -> Config {
        let any = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
        Config {
            data_dir: dir.to_owned(),
            api: any,
            registry: any.ip(),
            registry_port: Some(0),
            hosts: Vec::new(),
            stored_max: 6 << 30,
            name: "boat".into(),
            node: None,
            peers: None,
            joining: None,
            program: None,
            listeners: Listeners::default(),
            audit: None,
            duties: Duties::default(),
        }
    }

    /// Everything below `dir`: what is open to others, and contents.
    pub(crate) fn below(dir: &Path) -> (Vec<String>, BTreeMap<PathBuf, Vec<u8>>) {
        let (mut open, mut contents) = (Vec::new(), BTreeMap::new());
        let mut left = vec![dir.to_owned()];
        while let Some(path) = left.pop() {
            let metadata = std::fs::metadata(&path).unwrap();
            let mode = metadata.permissions().mode() & 0o777;
            if mode & 0o077 != 0 {
                open.push(format!("{mode:o} {}", path.display()));
            }
            if metadata.is_dir() {
                left.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            } else if !path.ends_with("LOCK") {
                contents.insert(path.clone(), std::fs::read(path).unwrap());
            }
        }
        (open, contents)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_kept_is_for_its_owner_alone_and_never_made_again() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("data");
        let server = Server::start(config(&dir)).await.unwrap();
        assert_eq!(below(&dir).0, Vec::<String>::new());
        server.shutdown().await;
        let away = temp.path().join("away");
        for gone in ["CLUSTER", "control", "control/log", "control/state.redb", "control/FORMAT", "pki", "pki/ca.crt"] {
            std::fs::rename(dir.join(gone), &away).unwrap();
            let before = below(&dir).1;
            let error = Server::start(config(&dir)).await.err().expect("it is refused");
            let mut text = error.to_string();
            let mut source = std::error::Error::source(&error);
            while let Some(next) = source {
                text = format!("{text}: {next}");
                source = next.source();
            }
            assert!(text.contains("missing") && text.contains(gone), "without {gone}: {text}");
            assert_eq!(below(&dir).1, before, "without {gone}");
            std::fs::rename(&away, dir.join(gone)).unwrap();
        }
        Server::start(config(&dir)).await.unwrap().shutdown().await;
    }

    #[test]
    fn a_certificate_names_where_the_api_is_reached() {
        let bound = |ip: &str| Config {
            api: SocketAddr::new(ip.parse().unwrap(), 0),
            hosts: vec!["boat.example".into(), "192.0.2.9".into()],
            ..config(Path::new("/"))
        };
        let subject = serving_subject(&bound("192.0.2.2"));
        assert!(subject.hosts.contains(&"boat.example".to_owned()));
        for address in ["192.0.2.2", "192.0.2.9", "127.0.0.1", "10.96.0.1"] {
            assert!(subject.addresses.contains(&address.parse().unwrap()), "{address}");
        }
        let everywhere = serving_subject(&bound("0.0.0.0")).addresses;
        assert!(addresses::of_this_machine().iter().all(|address| everywhere.contains(address)));
    }
}
