//! Where a request would go, and what is known of who would answer it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use coracle_discovery::{Backend, Protocol, Routing, Service};

use super::{Filter, Page, Tapping};
use crate::Proxy;
use crate::routes::Side;

/// A Service as this node sees it.
#[derive(Debug)]
pub struct View {
    /// Which one.
    pub service: Arc<Service>,
    /// Its ports, in its own order.
    pub ports: Vec<Port>,
}

/// A port of it.
#[derive(Debug)]
pub struct Port {
    /// Its name.
    pub name: String,
    /// Its number.
    pub port: u16,
    /// Its protocol.
    pub protocol: Protocol,
    /// Its number at nodes.
    pub node_port: Option<u16>,
    /// Who answers.
    pub endpoints: Vec<Endpoint>,
    /// Requests that wait for one.
    pub held: usize,
}

/// Who would answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Endpoint {
    /// Where.
    pub address: SocketAddr,
    /// On which node.
    pub node: Option<Arc<str>>,
    /// For how long it is left out, since it gave no answer; or for a moment, since it has too much to do.
    pub left_out: Option<Duration>,
    /// Requests and connections under way from this node.
    pub under_way: u32,
    /// How long an answer takes, as far as is known.
    pub latency: Duration,
}

/// The rule of an Ingress by which a request goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// The Ingress, as `namespace/name`.
    pub ingress: String,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Whether it is for TLS alone: without it is redirected.
    pub is_secure_only: bool,
    /// The Service and its port, where it leads to one; else what it leads to.
    pub backend: Result<(Arc<str>, Arc<str>, String), String>,
    /// Bytes that a body may have.
    pub body_bytes_max: Option<u64>,
    /// How long its Service may say nothing.
    pub silence_max: Option<Duration>,
}

impl Rule {
    /// The rule that takes a request for this host and path, if there is one.
    pub fn find(routing: &Routing, host: &str, path: &str) -> Option<Rule> {
        let rule = routing.routes.find(host, path)?;
        let backend = match &rule.backend {
            Backend::Service { key, port } => Ok((key.0.clone(), key.1.clone(), port.to_string())),
            Backend::Other(what) | Backend::Nobody(what) => Err(what.to_string()),
            // No Ingress leads there.
            Backend::Split(_) | Backend::Redirect(_) => Err("several places".to_owned()),
        };
        Some(Rule {
            ingress: rule.origin.to_string(),
            namespace: rule.origin.namespace.clone(),
            is_secure_only: rule.is_secure_only,
            backend,
            body_bytes_max: rule.options.body_bytes_max,
            silence_max: rule.options.silence_max,
        })
    }
}

impl Proxy {
    /// What is counted here, as Prometheus reads it.
    pub fn metrics(&self) -> String {
        Page::of(self)
    }

    /// Requests as they are answered, for whoever looks; `None` when too many do.
    pub fn tap(&self, filter: Filter) -> Option<Tapping> {
        self.taps.open(filter)
    }

    /// A Service as this node sees it now.
    pub fn view(&self, namespace: &str, name: &str) -> Option<View> {
        let service = self.discovery.snapshot().service(namespace, name)?.clone();
        let ports = service.ports.iter().enumerate().filter_map(|(at, port)| {
            let route = self.routes.find(&service, at, Side::Gateway)?;
            Some(Port {
                name: port.name.clone(),
                port: port.port,
                protocol: port.protocol,
                node_port: port.node_port,
                endpoints: route.balancer.view(),
                held: route.demand.held(),
            })
        });
        Some(View { ports: ports.collect(), service: service.clone() })
    }
}
