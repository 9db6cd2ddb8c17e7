//! Who calls from another node. That node is who its certificate names, and it vouches for its pods: what it says of one is believed, where
//! the pod's address is one of its own. So a node that was taken over may pass for its own pods with whatever labels, for whomever is outside of the
//! cluster (its clients are), and for no other node's pods.

use std::collections::HashMap;
use std::sync::Arc;

use coracle_policy::{Source, Workload};
use coracle_proxy::LocalEndpoints as _;
use http::HeaderValue;
use parking_lot::Mutex;

use super::gate::embedded;
use super::{Peers, Table};

/// Pods of other nodes that are remembered as they were told, 8 KiB each at most; at the bound all are forgotten, and are read again.
const HEARD_MAX: usize = 1024;

/// Reads what other nodes say.
#[derive(Default)]
pub struct Callers(Mutex<HashMap<Box<str>, Arc<Workload>>>);

impl Callers {
    /// Who calls through a link of the node `from`, which says so; `None` when that cannot be.
    pub fn source(&self, table: &Table, peers: &Peers, from: &str, said: Option<&HeaderValue>) -> Option<Source> {
        // One of an older version says nothing.
        let Some(said) = said else { return Some(Source::Unknown) };
        let text = said.to_str().unwrap_or_default();
        match self.read(text) {
            Source::Pod(pod) => match peers.owns(from, pod.address) {
                Some(true) => Some(Source::Pod(pod)),
                Some(false) => None,
                // It has just joined, and this node has not heard of it yet.
                None => Some(Source::Unknown),
            },
            Source::Outside(address) => {
                // In whatever form: a pod's is not outside.
                let (address, within) = (address.to_canonical(), embedded(address));
                let is_pods = table.is_pod_address(within) || peers.has(within);
                (!is_pods).then_some(Source::Outside(address))
            }
            // Not the node on which the pod runs.
            Source::Node => Some(peers.address_of(from).map_or(Source::Unknown, Source::Outside)),
            Source::Unknown => Some(Source::Unknown),
        }
    }

    fn read(&self, text: &str) -> Source {
        if let Some(pod) = self.0.lock().get(text) {
            return Source::Pod(pod.clone());
        }
        let source = Source::from_text(text).unwrap_or(Source::Unknown);
        if let Source::Pod(pod) = &source {
            let mut heard = self.0.lock();
            if heard.len() >= HEARD_MAX {
                heard.clear();
            }
            heard.insert(text.into(), pod.clone());
        }
        source
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;
    use crate::addresses::Addresses;

    #[test]
    fn a_node_speaks_for_its_own_pods_and_for_nobody_elses() {
        let table = Table::new(Addresses::new("10.9.0.0/24".parse().unwrap()).unwrap(), Box::new(|_, _| {}));
        let peers = Peers::new("n9", None);
        let node = |name: &str, range: &str| json!({"name": name, "address": "192.0.2.1", "port": 1, "podCIDR": range});
        peers.take(vec![node("n1", "10.1.0.0/24"), node("n2", "10.2.0.0/24")]);
        let pod = |address: [u8; 4]| {
            Source::Pod(Arc::new(Workload::new(address.into(), "n", "a", "b", BTreeMap::new(), vec![])))
        };
        let outside = |address: [u8; 4]| Source::Outside(address.into());
        let written = |address: &str| Source::Outside(address.parse().unwrap());
        let callers = Callers::default();
        for _ in 0..2 {
            for (from, says, is) in [
                ("n1", pod([10, 1, 0, 2]), Some(pod([10, 1, 0, 2]))),
                ("n1", pod([10, 2, 0, 2]), None),
                ("n1", pod([10, 9, 0, 2]), None),
                ("n1", pod([192, 0, 2, 9]), None),
                ("n3", pod([10, 1, 0, 2]), Some(Source::Unknown)),
                ("n1", outside([198, 51, 100, 7]), Some(outside([198, 51, 100, 7]))),
                ("n1", outside([10, 2, 0, 2]), None),
                ("n1", outside([10, 9, 0, 2]), None),
                ("n1", written("::ffff:10.2.0.2"), None),
                ("n1", written("64:ff9b::10.9.0.2"), None),
                ("n1", written("2001:db8::1"), Some(written("2001:db8::1"))),
                ("n1", written("64:ff9b::c000:209"), Some(written("64:ff9b::c000:209"))),
                ("n1", Source::Node, Some(outside([192, 0, 2, 1]))),
                ("n3", Source::Node, Some(Source::Unknown)),
                ("n1", Source::Unknown, Some(Source::Unknown)),
            ] {
                let said = coracle_proxy::source_header(&says);
                assert_eq!(callers.source(&table, &peers, from, Some(&said)), is, "{from} {says:?}");
            }
        }
        assert_eq!(callers.source(&table, &peers, "n1", None), Some(Source::Unknown));
        let nonsense = HeaderValue::from_static("{\"a\":");
        assert_eq!(callers.source(&table, &peers, "n1", Some(&nonsense)), Some(Source::Unknown));
    }
}
