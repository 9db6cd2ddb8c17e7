//! Ranges of addresses for the pods of nodes that join: each is given out once.
//!
//! A node that asks (by the annotation [`ASKS`]) and names no range is given one when it is made; one that comes again and
//! names the range it had keeps it, unless somebody else has it by then. Who holds what is a record of its own, as it is for
//! the addresses of Services. Nodes that do not ask are left alone: the cluster's first, whose range is [`FOUNDER`] and
//! whose agent is in this process, and those that people make by hand. A node agent elsewhere that names a range asks for
//! it: it has none but those that are given out.

use std::net::Ipv4Addr;

use bytes::Bytes;
use coracle_api::kinds::FieldError;
use coracle_api::meta;
use coracle_api::status::Status;
use coracle_keyspace::{Guard, Key, Op, Record, Value as Content};
use serde_json::{Value, json};

use super::Attributes;
use crate::cluster::Cluster;

/// The annotation of a node that wants a range; its value does not matter.
const ASKS: &str = "coracle.dev/pod-range";
/// Records of ranges that are held.
const RANGES: &str = "coracle.podranges";
/// 10.240.0.0/12, in parts of 4,096 addresses.
const FIRST: u32 = u32::from_be_bytes([10, 240, 0, 0]);
const PREFIX: u32 = 20;
const COUNT: u32 = 1 << (PREFIX - 12);
/// 10.244.0.0/16, which the node has that was founded with the cluster.
const FOUNDER: std::ops::Range<u32> = 4 << 4..5 << 4;

/// Refuses a node the range that another holds.
pub(super) fn check(cluster: &Cluster, node: &Value) -> Result<(), Status> {
    let range = node["spec"]["podCIDR"].as_str().unwrap_or_default();
    match cluster.store.keyspace.get(RANGES, range) {
        Some(record) if !is_held_by(&record, meta::name(node)) => {
            let why = format!("{range} belongs to another node by now");
            let error = FieldError::invalid("spec.podCIDR", &node["spec"]["podCIDR"], &why);
            Err(Status::invalid("", "Node", meta::name(node), vec![error]))
        }
        _ => Ok(()),
    }
}

/// Gives a new node its range.
pub(super) fn allocate(at: &Attributes<'_>, node: &mut Value) -> Result<Vec<Op>, Status> {
    let cluster = at.cluster;
    check(cluster, node)?;
    let names_one = !node["spec"]["podCIDR"].as_str().unwrap_or_default().is_empty();
    let chooses = names_one && at.caller.node().is_some() && !at.is_here;
    if node["metadata"]["annotations"][ASKS].is_null() && !chooses {
        return Ok(Vec::new());
    }
    let name = meta::name(node).to_owned();
    let is_free = |range: &str| cluster.store.keyspace.get(RANGES, range).is_none();
    let refuse = |why: String| {
        let error = FieldError::invalid("spec.podCIDR", &node["spec"]["podCIDR"], &why);
        Status::invalid("", "Node", &name, vec![error])
    };
    let held = node["spec"]["podCIDR"].as_str().and_then(|range| cluster.store.keyspace.get(RANGES, range));
    // It is there already, which the write itself will say.
    if held.is_some_and(|record| is_held_by(&record, &name)) {
        return Ok(Vec::new());
    }
    let range = match node["spec"]["podCIDR"].as_str().unwrap_or_default() {
        // From a random place on, so that what was given back is not soon another's.
        "" => free(rand::random_range(0..COUNT), is_free)
            .ok_or_else(|| refuse("every range of addresses for pods belongs to a node".to_owned()))?,
        // The founder's is in no record: one that comes again under its name is told so.
        asked if number(asked).is_none() && cluster.store.get(at.resource, &name).is_some() => {
            return Err(Status::already_exists("", "nodes", &name));
        }
        asked if number(asked).is_none() => {
            return Err(refuse(format!(
                "{asked} is none of the ranges that the cluster gives out; a node that is started again is given one"
            )));
        }
        asked => asked.to_owned(),
    };
    if !node["spec"].is_object() {
        node["spec"] = json!({});
    }
    node["spec"]["podCIDR"] = range.as_str().into();
    node["spec"]["podCIDRs"] = json!([range]);
    let bytes = Bytes::from(json!({ "holder": name }).to_string());
    let revision_at = bytes.len();
    Ok(vec![Op::Put {
        key: Key::new(RANGES, range.as_str()),
        value: Content { bytes, revision_at },
        guard: Guard::Absent,
    }])
}

/// Gives back what a node holds, and not what another does.
pub(super) fn release(cluster: &Cluster, node: &Value) -> Vec<Op> {
    let Some(range) = node["spec"]["podCIDR"].as_str() else { return Vec::new() };
    match cluster.store.keyspace.get(RANGES, range) {
        Some(record) if is_held_by(&record, meta::name(node)) => {
            vec![Op::Delete { key: Key::new(RANGES, range), guard: Guard::Present }]
        }
        _ => Vec::new(),
    }
}

fn is_held_by(record: &Record, name: &str) -> bool {
    // Its revision stands behind the content.
    let content = record.bytes.get(..record.revision_at.start as usize).unwrap_or_default();
    serde_json::from_slice::<Value>(content).is_ok_and(|content| content["holder"] == name)
}

/// The first free range from this number on, around.
fn free(start: u32, is_free: impl Fn(&str) -> bool) -> Option<String> {
    let numbers = (0..COUNT).map(|step| (start + step) % COUNT).filter(|number| !FOUNDER.contains(number));
    numbers.map(text).find(|range| is_free(range))
}

fn text(number: u32) -> String {
    format!("{}/{PREFIX}", Ipv4Addr::from(FIRST + (number << (32 - PREFIX))))
}

/// The number of one of the ranges that are given out.
fn number(range: &str) -> Option<u32> {
    let address: Ipv4Addr = range.strip_suffix(&format!("/{PREFIX}"))?.parse().ok()?;
    let number = u32::from(address).checked_sub(FIRST)? >> (32 - PREFIX);
    (number < COUNT && !FOUNDER.contains(&number) && text(number) == range).then_some(number)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_range_is_given_once_and_the_first_node_s_never() {
        let mut held = HashSet::new();
        while let Some(range) = free(250, |range| !held.contains(range)) {
            assert!(number(&range).is_some() && !range.starts_with("10.244."), "{range}");
            assert!(held.insert(range));
        }
        assert_eq!(held.len(), 240);
        for wrong in ["", "10.240.0.0/16", "10.240.1.0/20", "10.244.0.0/20", "10.0.0.0/20", "11.0.0.0/20"] {
            assert_eq!(number(wrong), None, "{wrong}");
        }
    }
}
