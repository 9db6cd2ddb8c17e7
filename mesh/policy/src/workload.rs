//! Who calls, and who is called.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

/// The trust domain of identities: the cluster's, by the name that its DNS has.
pub const TRUST_DOMAIN: &str = "cluster.local";

/// What one node tells another of a pod has so many bytes at most: about fifty long labels. One of whom there is more to tell is nobody
/// to other nodes whom a rule could name.
pub const TEXT_BYTES_MAX: usize = 8 << 10;

/// The account of a pod that names none.
const DEFAULT_ACCOUNT: &str = "default";

/// The number of the next workload.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// `protocol` of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// By the name that objects have for it; TCP where there is none.
    pub fn of(name: Option<&str>) -> Protocol {
        match name {
            Some("UDP") => Protocol::Udp,
            Some("SCTP") => Protocol::Sctp,
            _ => Protocol::Tcp,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
            Protocol::Sctp => "SCTP",
        }
    }
}

/// A port that somebody connects to, where it really is: a pod's, not a Service's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Port {
    /// Its protocol.
    pub protocol: Protocol,
    /// Its number.
    pub number: u16,
}

/// A port that a container declares by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedPort {
    /// Its name.
    pub name: String,
    /// What it stands for.
    pub port: Port,
}

/// A pod as those know it who connect to it or are connected to. It is a value: a pod whose labels change is another one.
#[derive(Debug)]
pub struct Workload {
    /// Its address.
    pub address: IpAddr,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// Its service account.
    pub account: Arc<str>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Ports that have a name.
    pub ports: Vec<NamedPort>,
    pub(crate) number: u64,
    text: OnceLock<String>,
}

/// The same pod, said in the same words.
impl PartialEq for Workload {
    fn eq(&self, other: &Workload) -> bool {
        self.is(other) && self.account == other.account && self.labels == other.labels && self.ports == other.ports
    }
}

impl Eq for Workload {}

impl Workload {
    /// What is known of a pod.
    pub fn new(
        address: IpAddr,
        namespace: &str,
        name: &str,
        account: &str,
        labels: BTreeMap<String, String>,
        ports: Vec<NamedPort>,
    ) -> Workload {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let (namespace, name, account) = (namespace.into(), name.into(), account.into());
        Workload { address, namespace, name, account, labels, ports, number, text: OnceLock::new() }
    }

    /// What an object says of a pod that has this address.
    pub fn of(pod: &Pod, address: IpAddr) -> Workload {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let spec = pod.spec.as_ref();
        let containers =
            spec.into_iter().flat_map(|spec| spec.init_containers.iter().flatten().chain(&spec.containers));
        let ports = containers.flat_map(|container| container.ports.iter().flatten()).filter_map(|port| {
            let number = u16::try_from(port.container_port).ok()?;
            let port_of = Port { protocol: Protocol::of(port.protocol.as_deref()), number };
            Some(NamedPort { name: port.name.clone()?, port: port_of })
        });
        let account = spec.and_then(|spec| spec.service_account_name.as_deref()).filter(|account| !account.is_empty());
        Workload::new(
            address,
            &text(&pod.metadata.namespace),
            &text(&pod.metadata.name),
            account.unwrap_or(DEFAULT_ACCOUNT),
            pod.metadata.labels.clone().unwrap_or_default(),
            ports.collect(),
        )
    }

    /// Who it is to others: `spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT`.
    pub fn identity(&self) -> String {
        format!("spiffe://{TRUST_DOMAIN}/ns/{}/sa/{}", self.namespace, self.account)
    }

    /// What another node is told of it, in ASCII.
    pub fn text(&self) -> &str {
        self.text.get_or_init(|| {
            let ports =
                self.ports.iter().map(|NamedPort { name, port }| json!([name, port.protocol.name(), port.number]));
            let all = json!({
                "address": self.address.to_string(), "namespace": *self.namespace, "name": *self.name,
                "account": *self.account, "labels": self.labels, "ports": ports.collect::<Vec<_>>(),
            });
            all.to_string()
        })
    }

    /// What another node tells; `None` when it makes no sense.
    pub fn from_text(text: &str) -> Option<Workload> {
        let all: Value = serde_json::from_str(text).ok().filter(|_| text.len() <= TEXT_BYTES_MAX)?;
        let ports = all["ports"].as_array()?.iter().map(|port| {
            let port_of = Port {
                protocol: Protocol::of(port[1].as_str()),
                number: port[2].as_u64().and_then(|number| u16::try_from(number).ok())?,
            };
            Some(NamedPort { name: port[0].as_str()?.to_owned(), port: port_of })
        });
        let labels = all["labels"].as_object()?.iter();
        let labels = labels.map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())));
        Some(Workload::new(
            all["address"].as_str()?.parse().ok()?,
            all["namespace"].as_str()?,
            all["name"].as_str()?,
            all["account"].as_str()?,
            labels.collect::<Option<_>>()?,
            ports.collect::<Option<_>>()?,
        ))
    }

    /// What no other value has, as long as the process lives.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Whether both are the same pod, whatever is said of it.
    pub fn is(&self, other: &Workload) -> bool {
        (self.address, &self.namespace, &self.name) == (other.address, &other.namespace, &other.name)
    }

    /// Whether a name stands for this port of the pod.
    pub(crate) fn names(&self, name: &str, port: Port) -> bool {
        self.ports.iter().any(|named| named.port == port && named.name == name)
    }
}

/// Who calls. It travels with every request of the mesh, in its extensions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A pod of the cluster.
    Pod(Arc<Workload>),
    /// Somebody who is no pod, at this address: a client of a port of a node.
    Outside(IpAddr),
    /// The node on which the called pod runs: probes, and what an API server asks it for.
    Node,
    /// Somebody of whom nothing is known that a rule could name.
    Unknown,
}

impl Source {
    /// Its address, as far as it is one client's.
    pub fn address(&self) -> Option<IpAddr> {
        match self {
            Source::Pod(pod) => Some(pod.address),
            Source::Outside(address) => Some(*address),
            Source::Node | Source::Unknown => None,
        }
    }

    /// What another node is told, in ASCII.
    pub fn text(&self) -> Cow<'_, str> {
        const UNKNOWN: &str = "unknown";
        match self {
            Source::Pod(pod) if pod.text().len() > TEXT_BYTES_MAX => UNKNOWN.into(),
            Source::Pod(pod) => pod.text().into(),
            Source::Outside(address) => format!("outside {address}").into(),
            Source::Node => "node".into(),
            Source::Unknown => UNKNOWN.into(),
        }
    }

    /// What another node tells; `None` when it makes no sense. Whether it is true is for others to find out.
    pub fn from_text(text: &str) -> Option<Source> {
        Some(match text {
            "node" => Source::Node,
            "unknown" => Source::Unknown,
            text => match text.strip_prefix("outside ") {
                Some(address) => Source::Outside(address.parse::<IpAddr>().ok()?.to_canonical()),
                None => Source::Pod(Arc::new(Workload::from_text(text)?)),
            },
        })
    }
}

/// Who is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// A pod of the cluster.
    Pod(Arc<Workload>),
    /// Whatever is at this address, which is no pod's.
    Outside(IpAddr),
    /// A pod of which nothing is known that a rule could name.
    Unknown,
}
