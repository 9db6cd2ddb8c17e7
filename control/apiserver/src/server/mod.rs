//! What all requests share.

pub(crate) mod limits;
pub(crate) mod metrics;
pub(crate) mod nodes;

use std::sync::Arc;

use coracle_keyspace::Keyspace;
use tokio_util::sync::CancellationToken;

use crate::authn::tokens::Tokens;
use crate::catalog::Catalog;
use crate::config::Config;
use crate::discovery::Discovery;
use crate::openapi::OpenApi;
use crate::store::Store;
use limits::Limits;
use metrics::Metrics;
use nodes::Nodes;

/// The state of an API server.
pub(crate) struct Shared {
    pub config: Config,
    pub store: Store,
    pub catalog: Catalog,
    pub tokens: Tokens,
    pub discovery: Discovery,
    pub openapi: OpenApi,
    pub nodes: Nodes,
    pub metrics: Metrics,
    pub limits: Limits,
    /// Cancelled when watches shall end.
    pub stopping: CancellationToken,
}

impl Shared {
    pub fn new(keyspace: Keyspace, config: Config) -> Result<Arc<Shared>, crate::StartError> {
        let tokens = Tokens::new(&config.token_key, &config.issuer).map_err(crate::StartError::TokenKey)?;
        Ok(Arc::new(Shared {
            store: Store { keyspace },
            discovery: Discovery::new(),
            openapi: OpenApi::default(),
            nodes: Nodes::new(config.node_client.clone()),
            metrics: Metrics::default(),
            limits: Limits::new(config.requests_max, config.streams_max),
            stopping: CancellationToken::new(),
            catalog: Catalog::new(),
            tokens,
            config,
        }))
    }
}
