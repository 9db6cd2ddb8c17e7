//! What an API server needs to know.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;

use crate::audit::AuditLog;
use crate::outward::FrontProxy;

/// Settings of an [`ApiServer`](crate::ApiServer). The defaults suit everything but the first four fields.
#[derive(Clone)]
pub struct Config {
    /// `https://HOST:PORT` by which clients reach this server.
    pub external_url: String,
    /// The cluster's certificate authority (PEM).
    pub authority: String,
    /// Signs ServiceAccount tokens: ECDSA P-256, PKCS #8 PEM.
    pub token_key: String,
    /// TLS towards the nodes' own servers (logs, port-forward); without it they cannot be reached.
    pub node_client: Option<Arc<ClientConfig>>,
    /// By what other API servers know this one (APIServices); without it they are shown no certificate.
    pub front_proxy: Option<Arc<FrontProxy>>,
    /// `iss` of the tokens, and the audience of those meant for this API.
    pub issuer: String,
    /// Seats for requests that end by themselves, which PriorityLevelConfigurations divide; more wait, or are told to come again
    /// (429).
    pub requests_max: usize,
    /// Watches and streams at a time.
    pub streams_max: usize,
    /// How long an ordinary request may take.
    pub request_timeout: Duration,
    /// Which requests are told of, and where; without it none are.
    pub audit: Option<AuditLog>,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            external_url: String::new(),
            authority: String::new(),
            token_key: String::new(),
            node_client: None,
            front_proxy: None,
            issuer: "https://kubernetes.default.svc.cluster.local".to_owned(),
            requests_max: 2_000,
            streams_max: 20_000,
            request_timeout: Duration::from_secs(60),
            audit: None,
        }
    }
}

/// Without the key.
impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("external_url", &self.external_url)
            .field("issuer", &self.issuer)
            .field("requests_max", &self.requests_max)
            .field("streams_max", &self.streams_max)
            .field("request_timeout", &self.request_timeout)
            .finish_non_exhaustive()
    }
}
