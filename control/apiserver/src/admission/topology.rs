//! A pod has the zone and the region of its node among its labels, for programs that ask for them (the reference's admission
//! plugin PodTopologyLabels): from when it is bound, or made on a node.

use coracle_api::meta;
use serde_json::{Map, Value};

use crate::cluster::Cluster;
use crate::store::Seen;

const LABELS: [&str; 2] = ["topology.kubernetes.io/zone", "topology.kubernetes.io/region"];

/// Labels `pod` by `node`, over what the pod says itself. A node that is not there says nothing.
pub(crate) fn label(cluster: &Cluster, node: &str, pod: &mut Value) {
    let Some(nodes) = cluster.catalog.named("", "nodes") else { return };
    let Some(record) = cluster.store.get(nodes, node) else { return };
    let seen = Seen::new(nodes, &record);
    for key in LABELS {
        if let Some(value) = seen.facts().label(key) {
            let labels = meta::metadata_mut(pod).entry("labels").or_insert_with(|| Map::new().into());
            labels[key] = value.into();
        }
    }
}
