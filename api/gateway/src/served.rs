//! What nodes say of the ports of Gateways: a text that a node writes into an annotation of its object, and the controller reads.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::Key;

/// Ports of Gateways that a node opens, those of one namespace half of them.
pub const PORTS_MAX: usize = 256;

/// What has become of a port at a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PortState {
    /// It listens there.
    Open,
    /// It could not have it.
    Taken,
}

/// What has become of the ports of Gateways at a node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PortStates {
    /// Of those for which it has room.
    pub ports: BTreeMap<u16, PortState>,
    /// Whether there are others, for which it has none ([`PORTS_MAX`]): any that is not named. They may be many, so that they are not.
    pub has_beyond: bool,
}

/// Behind a port that is not open.
const TAKEN: &str = "=taken";
/// For all ports that are not named.
const BEYOND: &str = "+beyond";

/// What a node says, as `ADDRESS,PORT,PORT=taken,+beyond,!NAMESPACE/NAME`: the address at which it serves Gateways, their ports, whether
/// it has no room for others, and Secrets of theirs without a certificate that it could show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServedAt {
    /// Where.
    pub address: IpAddr,
    /// Ports, and what has become of them.
    pub ports: PortStates,
    /// Secrets that hold no certificate.
    pub broken: BTreeSet<Key>,
}

impl ServedAt {
    /// As it is written.
    pub fn to_text(&self) -> String {
        let mut text = self.address.to_string();
        let ports = |state| self.ports.ports.iter().filter(move |(_, of)| **of == state).map(|(port, _)| port);
        // Those that are open first, and what may be long last: the end is what is left out of a text that is too long.
        for port in ports(PortState::Open) {
            text.push_str(&format!(",{port}"));
        }
        for port in ports(PortState::Taken) {
            text.push_str(&format!(",{port}{TAKEN}"));
        }
        if self.ports.has_beyond {
            text.push_str(&format!(",{BEYOND}"));
        }
        for (namespace, name) in &self.broken {
            text.push_str(&format!(",!{namespace}/{name}"));
        }
        text
    }

    /// From its text; what makes no sense is passed over.
    pub fn parse(text: &str) -> Option<ServedAt> {
        let mut parts = text.split(',');
        let address = parts.next()?.parse().ok()?;
        let mut served = ServedAt { address, ports: PortStates::default(), broken: BTreeSet::new() };
        for part in parts {
            if let Some((namespace, name)) = part.strip_prefix('!').and_then(|key| key.split_once('/')) {
                served.broken.insert((Arc::from(namespace), Arc::from(name)));
                continue;
            }
            if part == BEYOND {
                served.ports.has_beyond = true;
                continue;
            }
            let (port, state) = match part.strip_suffix(TAKEN) {
                Some(port) => (port, PortState::Taken),
                None => (part, PortState::Open),
            };
            if let Ok(port) = port.parse() {
                served.ports.ports.insert(port, state);
            }
        }
        Some(served)
    }
}

/// What all nodes say together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Served {
    /// The addresses of nodes that listen at a port; a port at which some would and none does has none.
    ports: BTreeMap<u16, BTreeSet<IpAddr>>,
    /// How many nodes have no room for all ports; and how many of those have it for a port.
    full: usize,
    full_with: BTreeMap<u16, usize>,
    /// Secrets that hold no certificate, as some node says.
    pub broken: BTreeSet<Key>,
    /// All addresses at which Gateways are served.
    pub addresses: BTreeSet<IpAddr>,
}

impl Served {
    /// Adds what one says.
    pub fn add(&mut self, node: &ServedAt) {
        self.addresses.insert(node.address);
        self.full += usize::from(node.ports.has_beyond);
        for (port, state) in &node.ports.ports {
            let at = self.ports.entry(*port).or_default();
            if *state == PortState::Open {
                at.insert(node.address);
            }
            if node.ports.has_beyond {
                *self.full_with.entry(*port).or_default() += 1;
            }
        }
        self.broken.extend(node.broken.iter().cloned());
    }

    /// Where a port is served; `None` while no node has named it.
    pub fn at(&self, port: u16) -> Option<&BTreeSet<IpAddr>> {
        self.ports.get(&port)
    }

    /// Whether a node had no room for a port.
    pub fn is_beyond(&self, port: u16) -> bool {
        self.full > self.full_with.get(&port).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_node_says_is_read_as_it_was_written() {
        let text = "127.0.0.1,8080,80=taken,+beyond,!n/secret";
        let served = ServedAt::parse(text).unwrap();
        let ports = [(80, PortState::Taken), (8080, PortState::Open)].into();
        assert_eq!(served.ports, PortStates { ports, has_beyond: true });
        assert_eq!(served.to_text(), text);
        assert_eq!(ServedAt::parse("2001:db8::1,x,99999,!odd,443,12 left out").unwrap().to_text(), "2001:db8::1,443");
        assert_eq!(ServedAt::parse("host,80"), None);
        let mut all = Served::default();
        for text in ["10.0.0.1,80,443=taken", "10.0.0.2,80,445=taken,+beyond", "10.0.0.3"] {
            all.add(&ServedAt::parse(text).unwrap());
        }
        let at = |port| all.at(port).map(|at| at.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(at(80), Some(vec!["10.0.0.1".to_owned(), "10.0.0.2".to_owned()]));
        assert_eq!((at(443), at(445), at(444)), (Some(vec![]), Some(vec![]), None));
        assert_eq!([80, 445, 443, 444].map(|port| all.is_beyond(port)), [false, false, true, true]);
        assert_eq!(all.addresses.len(), 3);
    }
}
