//! A node, wired together.
//!
//! Start: machine, image store, engine, listener → pods are watched → the node is registered as Ready, last, so that Ready is
//! true when it is said. Stop: no new pods, guests end, statuses are written, then the rest.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::Weak;

use coracle_artifact::PullPolicy;
use coracle_discovery::Again;
use coracle_discovery::Discovery;
use coracle_discovery::Policies;
use coracle_discovery::Protocol;
use coracle_engine::Engine;
use coracle_proxy::{Spans, Tracer};
use coracle_tolerant::Tolerant;
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Resource as _};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::addresses::Addresses;
use crate::balancer;
use crate::clock;
use crate::config::Config;
use crate::context::Context;
use crate::disk::{self, Disk};
use crate::events::Recorder;
use crate::images::{ImageError, Images};
use crate::ingress::{self, Gateway};
use crate::kubelet;
use crate::logs::OpenFiles;
use crate::machine::Machine;
use crate::names;
use crate::network::{Network, Peers, Table};
use crate::objects::{Bounds, Objects, OnChange};
use crate::otlp;
use crate::pod::Pods;
use crate::registration::{Facts, Registration};
use crate::volumes::kept::{self, Kept};

/// Why a node could not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A directory cannot be used.
    #[error("{path}")]
    Directory {
        /// Which one.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The engine.
    #[error("start the engine")]
    Engine(#[source] Box<coracle_engine::Error>),
    /// The loopback addresses of pods.
    #[error("find a free block of loopback addresses for pods")]
    Addresses(#[source] io::Error),
    /// The HTTPS endpoint.
    #[error("listen at {address} for API servers: choose another port with --kubelet-port, or 0 for a free one{why}")]
    Listen {
        /// Where.
        address: std::net::SocketAddr,
        /// Who has it, or who may: more than the kernel says.
        why: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A port for Ingresses that somebody has asked for.
    #[error(
        "listen at {address} for Ingresses: choose another port with --http-port or --https-port, 0 for a free one, or off{why}"
    )]
    Ingress {
        /// Where.
        address: std::net::SocketAddr,
        /// Who has it, or who may: more than the kernel says.
        why: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Where questions about names were to be answered.
    #[error(
        "listen at {address} for questions about names (UDP and TCP): is another program using it? choose another with --dns-listen"
    )]
    Names {
        /// Where.
        address: std::net::SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another process is the same node.
    #[error("{0}")]
    Replaced(String),
    /// The certificate for hosts that have none.
    #[error("make a certificate for hosts that have none")]
    Certificate(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl Error {
    /// That the port for API servers cannot be had. Blocks on files.
    fn listen(address: std::net::SocketAddr, source: io::Error) -> Self {
        Self::Listen { address, why: balancer::holder::why(source.kind(), address.port(), Protocol::Tcp), source }
    }

    /// That a port for Ingresses cannot be had. Blocks on files.
    pub(crate) fn ingress(address: std::net::SocketAddr, source: io::Error) -> Self {
        Self::Ingress { address, why: balancer::holder::why(source.kind(), address.port(), Protocol::Tcp), source }
    }
}

/// A node. Clones are the same one.
#[derive(Clone)]
pub struct Node {
    inner: Arc<Inner>,
}

struct Inner {
    pods: Arc<Pods>,
    registration: Registration,
    listener: TcpListener,
    peers: Arc<Peers>,
    /// Questions about names, until somebody answers them; and where they are asked.
    names: Mutex<Option<coracle_dns::Listener>>,
    names_at: Option<std::net::SocketAddr>,
    /// Spans, until somebody sends them.
    traces: Mutex<Option<(Tracer, Spans)>>,
    synced: watch::Sender<bool>,
    stop_watching: CancellationToken,
}

impl Node {
    /// Makes everything a node needs and listens; nothing runs before [`Node::run`].
    pub async fn new(client: kube::Client, config: Config) -> Result<Node, Error> {
        for dir in ["images", "components", "logs", "pods", "volumes"] {
            make(&config.data_dir.join(dir))?;
        }
        let address = (config.node_ip, config.port).into();
        let listen = |source| Error::listen(address, source);
        let listener = TcpListener::bind(address).await.map_err(listen)?;
        let port = listener.local_addr().map_err(listen)?.port();
        let gateway = Arc::new(Gateway::open(&config)?);
        let names = match config.dns {
            Some(address) => {
                let failed = |source| Error::Names { address, source };
                Some(coracle_dns::Listener::open(address).await.map_err(failed)?)
            }
            None => None,
        };
        let names_at = names.as_ref().and_then(|names| names.address().ok());
        let names = Mutex::new(names);
        let mut machine = Machine::read(config.capacity, config.pod_cidr, &config.data_dir);
        let engine = start_engine(&config, &machine).await?;
        machine.pods = machine.pods.min(u64::from(engine.instances_max()));
        let store = coracle_artifact::Store::new(coracle_artifact::Config {
            dir: config.data_dir.join("images"),
            embedded: config.registry.clone(),
            max_bytes: config.image_bytes_max,
            component_bytes_max: coracle_engine::COMPONENT_BYTES_MAX,
            min_free_bytes: config.min_free_bytes,
            transport: config.transport.clone(),
        });
        let store = store.map_err(|source| Error::Directory { path: config.data_dir.join("images"), source })?;
        let recorder = Recorder::new(client.clone(), config.name.clone());
        let addresses = Addresses::new(config.pod_cidr).map_err(Error::Addresses)?;
        let table = Arc::new(Table::new(addresses, balancer::service_failed(recorder.clone())));
        let peers = Arc::new(Peers::new(&config.name, config.link.clone()));
        table.lead_elsewhere(&peers);
        let traces = config.otlp.as_ref().map(|otlp| Tracer::new(otlp.share));
        let tracer = traces.as_ref().map(|(tracer, _)| tracer.clone());
        let (discovery, policies) = (Discovery::new(client.clone()), Policies::new(client.clone()));
        let network = Arc::new(Network::new(table, discovery, policies, config.cluster_roots.clone(), tracer));
        let stop_watching = CancellationToken::new();
        let watching = stop_watching.clone();
        let pods = Pods::new(move |pods| {
            let on_change: OnChange = on_change(pods);
            Arc::new(Context {
                objects: Objects::new(client.clone(), Bounds::PODS, watching, on_change),
                images: Images::new(store, engine.clone()),
                allocatable: BTreeMap::from([
                    ("cpu", machine.cpu_millis),
                    ("memory", machine.allocatable_memory_bytes()),
                    ("ephemeral-storage", machine.storage_bytes),
                ]),
                disk: Disk::new(config.data_dir.clone(), config.min_free_bytes),
                wall: clock::Wall::default(),
                jumps: watch::Sender::new(0),
                replaced: watch::Sender::new(None),
                open_logs: OpenFiles::default(),
                logs_dir: config.data_dir.join("logs"),
                pods_dir: config.data_dir.join("pods"),
                kept: Kept::new(config.data_dir.join("volumes")),
                tasks: TaskTracker::new(),
                started: Instant::now(),
                client,
                recorder,
                engine,
                network,
                gateway,
                machine,
                config,
            })
        });
        pods.context.open_logs.drop_while(pods.context.disk.low_flag());
        let registration = Registration::new(pods.clone(), Facts::read(port));
        let synced = watch::Sender::new(false);
        let traces = Mutex::new(traces);
        Ok(Node {
            inner: Arc::new(Inner {
                pods,
                registration,
                listener,
                peers,
                names,
                names_at,
                traces,
                synced,
                stop_watching,
            }),
        })
    }

    /// Its pods.
    #[cfg(test)]
    pub(crate) fn pods(&self) -> &Arc<Pods> {
        &self.inner.pods
    }

    /// Waits until a pod that is bound to this node would start: its pods are known, the API server can reach it, and it has
    /// said that it is Ready.
    pub async fn ready(&self) {
        let mut synced = self.inner.synced.subscribe();
        let mut registered = self.inner.registration.registered();
        // The senders live as long as `self`.
        let _ = synced.wait_for(|synced| *synced).await;
        let _ = registered.wait_for(|registered| *registered).await;
        self.inner.pods.context.network.discovery.synced().await;
        self.inner.pods.context.gateway.tried().await;
    }

    /// Why it ends, or has ended, when that is because another process is the same node.
    pub fn replaced(&self) -> Option<String> {
        self.inner.pods.context.replaced.borrow().clone()
    }

    /// Where it serves Ingresses, as URLs; complete when it is ready.
    pub fn ingress_urls(&self) -> Vec<String> {
        self.inner.pods.context.gateway.urls()
    }

    /// Where it answers questions about the cluster's names, if it does.
    pub fn dns_address(&self) -> Option<std::net::SocketAddr> {
        self.inner.names_at
    }

    /// Pulls and compiles an image before any pod names it; pods that come meanwhile wait for the same compilation, and find
    /// the other compiler free when this is done for one image at a time. Its failure is told to those pods, too.
    pub async fn prepare(&self, image: &str) -> Result<(), ImageError> {
        self.inner.pods.context.images.prepare("", image, PullPolicy::IfNotPresent, &[], &|_| {}).await.map(drop)
    }

    /// Runs pods until `shutdown`, then stops them and leaves their objects to the next start; until another process is the same node,
    /// too, which fails. Call it once.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), Error> {
        let Inner { pods, registration, listener, peers, names, names_at: _, traces, synced, stop_watching } =
            &*self.inner;
        let context = &pods.context;
        // What still works while pods are stopped.
        let background = CancellationToken::new();
        let until = |name: &'static str| {
            let token = background.clone();
            tracing::trace!(name, "starts");
            token
        };
        let network = context.network.clone();
        context.tasks.spawn(network.discovery.clone().run(until("discovery")));
        context.tasks.spawn(network.policies.clone().run(until("policies")));
        context.tasks.spawn(peers.clone().run(context.client.clone(), until("peers")));
        let node_ports = Some(context.config.node_port_bind);
        // Before Services may take a port.
        ingress::run(context, &until);
        // Connections of clients are served where guests may run.
        network.proxy.expect_had();
        context.tasks.spawn_on(network.proxy.clone().run(node_ports, until("proxy")), context.engine.gateway());
        if let Some(listener) = names.lock().take() {
            let (pods, stop) = (pods.clone(), until("names"));
            context.tasks.spawn(async move { names::run(&pods.context, listener, stop).await });
        }
        if let (Some(otlp), Some(traces)) = (&context.config.otlp, traces.lock().take()) {
            context.tasks.spawn(otlp::run(otlp.clone(), context.config.name.clone(), traces, until("otlp")));
        }
        context.tasks.spawn(kept::run(pods.clone(), until("volumes")));
        context.tasks.spawn(disk::run(pods.clone(), synced.subscribe(), until("disk")));
        let jumped = pods.clone();
        context.tasks.spawn(clock::watch(move |_| jumped.time_jumped(), until("clock")));
        context.tasks.spawn(context.images.clone().forget_unused(until("images")));
        let (recorder, token) = (context.recorder.clone(), until("events"));
        context.tasks.spawn(async move { recorder.run(token).await });
        let serve = kubelet::serve(listener, pods.clone(), until("kubelet"));
        let watch = async {
            // No pod runs before it is known what it may do, nor where another process may run it.
            tokio::join!(network.policies.synced(), registration.claim());
            watch_pods(pods.clone(), synced).await;
        };
        let register = async {
            // Ready is said when it is true.
            let mut known = synced.subscribe();
            let _ = known.wait_for(|synced| *synced).await;
            registration.run(shutdown.clone()).await;
        };
        context.node_event(false, "Starting", "Starting kubelet.".to_owned());
        tokio::pin!(serve);
        let mut replaced = context.replaced.subscribe();
        {
            // Dropping the watch loses nothing: the next start lists.
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = watch => {}
                () = async { tokio::join!(register, std::future::pending::<()>()); } => {}
                () = &mut serve => {}
                Ok(_) = replaced.wait_for(Option::is_some) => {}
            }
        }
        let replaced = self.replaced();
        tracing::info!(node = %context.config.name, pods = pods.len(), "node is stopping");
        let stopping = async {
            if replaced.is_none() {
                registration.leave().await;
            }
            pods.stop_all(context.config.stop_grace).await;
        };
        tokio::select! {
            () = stopping => {}
            () = &mut serve => {}
        }
        stop_watching.cancel();
        background.cancel();
        context.tasks.close();
        let ended = context.tasks.wait();
        if tokio::time::timeout(std::time::Duration::from_secs(5), ended).await.is_err() {
            tracing::warn!(tasks = context.tasks.len(), "some of the node's tasks have not ended");
        }
        replaced.map_or(Ok(()), |why| Err(Error::Replaced(why)))
    }
}

async fn start_engine(config: &Config, machine: &Machine) -> Result<Engine, Error> {
    let mut engine = coracle_engine::Config::new(config.data_dir.join("components"));
    engine.compiler = config.compiler.clone();
    engine.instances_max = u32::try_from(machine.pods).unwrap_or(u32::MAX);
    engine.memory_bytes_max = machine.allocatable_memory_bytes();
    let started = tokio::task::spawn_blocking(move || Engine::new(engine)).await;
    match started {
        Ok(result) => result.map_err(|error| Error::Engine(Box::new(error))),
        Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
    }
}

fn make(dir: &Path) -> Result<(), Error> {
    std::fs::create_dir_all(dir).map_err(|source| Error::Directory { path: dir.to_owned(), source })
}

fn on_change(pods: Weak<Pods>) -> OnChange {
    Arc::new(move |uid: &str| {
        if let Some(pods) = pods.upgrade() {
            pods.config_changed(uid);
        }
    })
}

/// Those of a list.
#[derive(Default)]
struct Listed {
    pods: Vec<Pod>,
    /// Of all of them: one that cannot be read is there, too.
    uids: HashSet<String>,
}

/// A pod that can be read. Another one is nobody's reason not to hear of the others: it is not run, and if it runs it goes on as it was.
pub(crate) fn readable(pod: Tolerant<Pod>) -> Option<Pod> {
    match pod {
        Tolerant::Good(pod) => Some(pod),
        Tolerant::Odd { meta, why } => {
            tracing::warn!(namespace = meta.namespace, pod = meta.name, %why, "a pod of this node cannot be read");
            None
        }
    }
}

/// Follows the pods that are bound to this node.
async fn watch_pods(pods: Arc<Pods>, synced: &watch::Sender<bool>) {
    let context = &pods.context;
    let api: Api<Tolerant<Pod>> = Api::all(context.client.clone());
    let fields = format!("spec.nodeName={}", context.config.name);
    let config = watcher::Config::default().streaming_lists().fields(&fields);
    let mut events = watcher(api, config).backoff(Again::new()).boxed();
    let mut listed: Option<Listed> = None;
    loop {
        match events.try_next().await {
            Ok(Some(watcher::Event::Init)) => listed = Some(Listed::default()),
            Ok(Some(watcher::Event::InitApply(pod))) => {
                let uid = pod.meta().uid.clone();
                match (&mut listed, readable(pod)) {
                    (Some(listed), pod) => {
                        listed.uids.extend(uid);
                        listed.pods.extend(pod);
                    }
                    (None, Some(pod)) => pods.observe(pod),
                    (None, None) => {}
                }
            }
            Ok(Some(watcher::Event::InitDone)) => {
                take_list(&pods, listed.take().unwrap_or_default()).await;
                synced.send_replace(true);
            }
            Ok(Some(watcher::Event::Apply(pod))) => {
                if let Some(pod) = readable(pod) {
                    pods.observe(pod);
                }
            }
            Ok(Some(watcher::Event::Delete(pod))) => pods.remove(pod.meta().uid.as_deref().unwrap_or_default()),
            Ok(None) => return,
            Err(error) => tracing::debug!(%error, "watch pods"),
        }
    }
}

/// All pods of the node at one moment.
async fn take_list(pods: &Arc<Pods>, Listed { pods: mut list, uids }: Listed) {
    let addresses = list.iter().filter_map(|pod| pod.status.as_ref()?.pod_ip.as_ref()?.parse().ok());
    pods.context.network.table.reserve_order(addresses);
    remove_orphans(pods, uids.clone()).await;
    pods.retain(&uids);
    // Who ran here before has its room before who came later, as with the kubelet.
    list.sort_by_cached_key(|pod| {
        let started = pod.status.as_ref().is_some_and(|status| status.start_time.is_some());
        (!started, pod.metadata.creation_timestamp.as_ref().map(|created| created.0))
    });
    for pod in list {
        pods.observe(pod);
    }
}

/// Removes what pods have left that went while the node was away.
async fn remove_orphans(pods: &Pods, uids: HashSet<String>) {
    let (volumes, logs) = (pods.context.pods_dir.clone(), pods.context.logs_dir.clone());
    let known: HashSet<String> = pods.all().iter().map(|slot| slot.uid.to_string()).collect();
    let removed = tokio::task::spawn_blocking(move || {
        for (dir, separator) in [(volumes, '/'), (logs, '_')] {
            let Ok(entries) = std::fs::read_dir(&dir) else { continue };
            for entry in entries.flatten() {
                let name = entry.file_name();
                let name = name.to_string_lossy();
                let uid = name.rsplit(separator).next().unwrap_or(&name);
                if !uids.contains(uid) && !known.contains(uid) {
                    let _ = crate::beneath::remove_tree(&entry.path());
                }
            }
        }
    });
    if let Err(error) = removed.await {
        tracing::warn!(%error, "files of pods that are gone are not removed");
    }
}
