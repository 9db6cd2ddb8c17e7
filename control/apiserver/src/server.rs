//! Everything that an API server is made of. Only the router and what starts the server see all of it: each part below is
//! handed what it needs.

use std::sync::Arc;

use coracle_keyspace::Keyspace;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::audit::Audit;
use crate::authn::tokens::Tokens;
use crate::cluster::Cluster;
use crate::config::Config;
use crate::discovery::DiscoveryOf;
use crate::fairness::Fairness;
use crate::layers::answers::Answers;
use crate::layers::bodies::Bodies;
use crate::layers::lanes::Lanes;
use crate::layers::metrics::Metrics;
use crate::layers::stalls::Stalls;
use crate::limits::Limits;
use crate::nodes::Nodes;
use crate::openapi::OpenApi;
use crate::store::Store;
use crate::usage::Usages;

/// The state of an API server.
pub(crate) struct Shared {
    pub config: Config,
    pub cluster: Arc<Cluster>,
    pub audit: Option<Arc<Audit>>,
    pub tokens: Tokens,
    pub discovery: DiscoveryOf,
    pub openapi: OpenApi,
    pub nodes: Arc<Nodes>,
    pub usages: Usages,
    pub metrics: Metrics,
    pub fairness: Fairness,
    pub limits: Limits,
    pub bodies: Bodies,
    pub answers: Answers,
    pub stalls: Stalls,
    /// Users' heavy work.
    pub lanes: Lanes,
    /// The same of the cluster's duties, which never wait behind users.
    pub duty_lanes: Lanes,
    /// Cancelled when watches shall end.
    pub stopping: CancellationToken,
    /// What goes on without a request.
    pub tasks: TaskTracker,
}

impl Shared {
    pub fn new(keyspace: Keyspace, mut config: Config) -> Result<Arc<Shared>, crate::StartError> {
        let tokens = Tokens::new(&config.token_key, &config.issuer).map_err(crate::StartError::TokenKey)?;
        let audit = config.audit.take().map(Audit::open).transpose().map_err(crate::StartError::Audit)?;
        let stopping = CancellationToken::new();
        let cluster =
            Arc::new(Cluster::new(Store::new(keyspace), config.node_client.clone(), config.front_proxy.clone()));
        Ok(Arc::new(Shared {
            discovery: DiscoveryOf::default(),
            openapi: OpenApi::default(),
            nodes: Arc::new(Nodes::new(cluster.nodes.clone(), stopping.clone())),
            usages: Usages::default(),
            metrics: Metrics::default(),
            fairness: Fairness::new(&cluster.store.keyspace, config.requests_max),
            limits: Limits::new(config.streams_max),
            bodies: Bodies::default(),
            answers: Answers::default(),
            stalls: Stalls::default(),
            lanes: Lanes::new(),
            duty_lanes: Lanes::new(),
            cluster,
            stopping,
            tasks: TaskTracker::new(),
            audit,
            tokens,
            config,
        }))
    }
}
