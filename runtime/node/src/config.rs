//! What a node is told at its start.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use coracle_engine::Compiler;

use crate::otlp::Otlp;

/// Everything a node is told.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of the Node object.
    pub name: String,
    /// Images, compiled components, volumes and logs are kept below.
    pub data_dir: PathBuf,
    /// Where the addresses of pods come from.
    pub pod_cidr: Cidr,
    /// The address under which API servers reach this node.
    pub node_ip: IpAddr,
    /// Port of the node's HTTPS endpoint on [`Self::node_ip`]; 0 takes a free one.
    pub port: u16,
    /// Server certificate of that endpoint, and whose client certificates are verified.
    pub tls: Arc<rustls::ServerConfig>,
    /// TLS towards other nodes, showing this node's certificate; without it their pods are not reached.
    pub link: Option<Arc<rustls::ClientConfig>>,
    /// The cluster's own authorities, which guests' TLS to its Services trusts beside the machine's.
    pub cluster_roots: Vec<rustls_pki_types::CertificateDer<'static>>,
    /// Labels beside the well-known ones; these win.
    pub labels: BTreeMap<String, String>,
    /// Annotations of the Node object.
    pub annotations: BTreeMap<String, String>,
    /// `host:port` of the cluster's own registry, asked first.
    pub registry: Option<String>,
    /// How other registries are reached.
    pub transport: coracle_artifact::registry::Transport,
    /// Bound of the image store.
    pub image_bytes_max: u64,
    /// Space that pods, images and logs leave free on the disk: below it pods are evicted, logs dropped and pulls refused, so that
    /// who shares the disk (the API's log) can go on.
    pub min_free_bytes: u64,
    /// What the node says it has, where the machine is not to be asked.
    pub capacity: Capacity,
    /// Where components are compiled.
    pub compiler: Compiler,
    /// Address of the listeners of NodePort services.
    pub node_port_bind: IpAddr,
    /// Where Ingresses are served.
    pub ingress: IngressPorts,
    /// Where questions about the cluster's names are answered, to programs that are no pods; nowhere when absent. Port 0 takes a free one.
    pub dns: Option<SocketAddr>,
    /// Where spans of requests go.
    pub otlp: Option<Otlp>,
    /// How long guests may take to end when the node goes down.
    pub stop_grace: Duration,
    /// Further routes of the node's endpoint, for API servers: what the program that runs the node has to say.
    pub routes: axum::Router,
}

impl Config {
    /// Defaults for the node `name` at `address`: free ports, addresses of pods from `10.244.0.0/16`, the machine's own capacity,
    /// NodePort listeners on loopback, no Ingresses, no registry of its own.
    pub fn new(
        name: impl Into<String>,
        data_dir: impl Into<PathBuf>,
        address: IpAddr,
        tls: Arc<rustls::ServerConfig>,
    ) -> Self {
        Self {
            name: name.into(),
            data_dir: data_dir.into(),
            pod_cidr: Cidr { network: u32::from(Ipv4Addr::new(10, 244, 0, 0)), prefix: 16 },
            node_ip: address,
            port: 0,
            tls,
            link: None,
            cluster_roots: Vec::new(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            registry: None,
            transport: coracle_artifact::registry::Transport::default(),
            image_bytes_max: 20 << 30,
            min_free_bytes: 512 << 20,
            capacity: Capacity::default(),
            compiler: Compiler::default(),
            node_port_bind: IpAddr::V4(Ipv4Addr::LOCALHOST),
            ingress: IngressPorts::default(),
            dns: None,
            otlp: None,
            stop_grace: Duration::from_secs(10),
            routes: axum::Router::new(),
        }
    }
}

/// Where Ingresses are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IngressPorts {
    /// Address of the listeners.
    pub bind: IpAddr,
    /// Without TLS.
    pub http: IngressPort,
    /// With TLS.
    pub https: IngressPort,
}

impl Default for IngressPorts {
    /// Nowhere.
    fn default() -> Self {
        Self { bind: IpAddr::V4(Ipv4Addr::LOCALHOST), http: IngressPort::Off, https: IngressPort::Off }
    }
}

impl IngressPorts {
    /// The usual ports on loopback.
    pub const fn usual() -> Self {
        let bind = IpAddr::V4(Ipv4Addr::LOCALHOST);
        Self { bind, http: IngressPort::Usual(8080), https: IngressPort::Usual(8443) }
    }

    /// Free ports on loopback.
    pub const fn free() -> Self {
        Self { bind: IpAddr::V4(Ipv4Addr::LOCALHOST), http: IngressPort::Named(0), https: IngressPort::Named(0) }
    }
}

/// A port for Ingresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IngressPort {
    /// None.
    Off,
    /// One that nobody has asked for: where it is taken, the node starts without it and tries it again and again.
    Usual(u16),
    /// One that somebody has asked for: where it is taken, the node does not start. 0 takes a free one.
    Named(u16),
}

impl IngressPort {
    /// Its number.
    pub fn number(self) -> Option<u16> {
        match self {
            Self::Off => None,
            Self::Usual(number) | Self::Named(number) => Some(number),
        }
    }
}

impl FromStr for IngressPort {
    type Err = NotAPort;

    fn from_str(text: &str) -> Result<Self, NotAPort> {
        match text {
            "off" => Ok(Self::Off),
            number => number.parse().map(Self::Named).map_err(|_| NotAPort(text.to_owned())),
        }
    }
}

/// The text is no port for Ingresses.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is neither a port nor off")]
pub struct NotAPort(String);

/// Overrides of what the machine says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capacity {
    /// Thousandths of a CPU.
    pub cpu_millis: Option<u64>,
    /// Bytes of memory.
    pub memory_bytes: Option<u64>,
    /// Pods.
    pub pods: Option<u32>,
}

/// A range of IPv4 addresses, as `10.244.0.0/16`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    network: u32,
    prefix: u8,
}

impl Cidr {
    /// Number of addresses that pods can have: all but the first two and the last.
    pub fn capacity(self) -> u32 {
        let size = 1_u64 << (32 - u32::from(self.prefix));
        u32::try_from(size.saturating_sub(3)).unwrap_or(u32::MAX)
    }

    /// The address at `offset` from the network's own.
    pub fn at(self, offset: u32) -> Ipv4Addr {
        Ipv4Addr::from(self.network + offset)
    }

    /// The offset of an address that pods can have.
    pub fn offset(self, address: IpAddr) -> Option<u32> {
        let IpAddr::V4(address) = address else { return None };
        let offset = u32::from(address).checked_sub(self.network)?;
        (offset >= 2 && offset - 2 < self.capacity()).then_some(offset)
    }
}

impl std::fmt::Display for Cidr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from(self.network), self.prefix)
    }
}

/// The text is no range of IPv4 addresses that a node could use.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not an IPv4 range between /8 and /29, as 10.244.0.0/16")]
pub struct NotACidr(String);

impl FromStr for Cidr {
    type Err = NotACidr;

    fn from_str(text: &str) -> Result<Self, NotACidr> {
        let refuse = || NotACidr(text.to_owned());
        let (address, prefix) = text.split_once('/').ok_or_else(refuse)?;
        let address: Ipv4Addr = address.parse().map_err(|_| refuse())?;
        let prefix: u8 = prefix.parse().map_err(|_| refuse())?;
        if !(8..=29).contains(&prefix) {
            return Err(refuse());
        }
        Ok(Self { network: u32::from(address) & (u32::MAX << (32 - u32::from(prefix))), prefix })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_ports() {
        for (text, expected) in
            [("8080", IngressPort::Named(8080)), ("0", IngressPort::Named(0)), ("off", IngressPort::Off)]
        {
            assert_eq!(text.parse(), Ok(expected));
        }
        for wrong in ["", "-1", "65536", "OFF", "http"] {
            assert!(wrong.parse::<IngressPort>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn reads_ranges() {
        let cidr: Cidr = "10.244.7.9/24".parse().unwrap();
        assert_eq!((cidr.to_string().as_str(), cidr.capacity()), ("10.244.7.0/24", 253));
        assert_eq!(cidr.offset("10.244.7.2".parse().unwrap()), Some(2));
        for outside in ["10.244.7.0", "10.244.7.1", "10.244.7.255", "10.244.8.2", "::1"] {
            assert_eq!(cidr.offset(outside.parse().unwrap()), None, "{outside}");
        }
        for wrong in ["", "10.0.0.0", "10.0.0.0/33", "10.0.0.0/30", "::/64"] {
            assert!(wrong.parse::<Cidr>().is_err(), "{wrong}");
        }
    }
}
