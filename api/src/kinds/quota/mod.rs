//! What a ResourceQuota counts, and whether a write fits into it (`pkg/quota/v1`, `apiserver/…/resourcequota`).
//!
//! A kind of objects is counted in one of five ways ([`Way`]). [`usage`] says what one object takes, [`charge()`] what a write
//! adds to the quotas of its namespace, or why it may not; the same [`usage`] adds up to what a recount finds. The way
//! in which a name is spelled says which objects it counts: [`tracks`].

mod charge;
mod count;
mod pods;
mod scopes;
#[cfg(test)]
mod tests;

use jiff::Timestamp;
use serde_json::Value;

pub use super::pod::Amounts;
use super::pod::amounts::add;
use super::value::Read;
use crate::meta::{Format, Quantity};

pub use charge::{Charge, Quota, Write, charge};
pub use count::Count;
pub use scopes::is_in_scope;

/// Suffix of what is counted by storage class: `gold.storageclass.storage.k8s.io/requests.storage`.
const BY_STORAGE_CLASS: &str = ".storageclass.storage.k8s.io/";
/// Suffix of what is counted by device class.
const BY_DEVICE_CLASS: &str = ".deviceclass.resource.k8s.io/devices";
/// Devices of a claim that takes all there are, at most.
const ALL_DEVICES: i64 = 32;
const CLAIMS: [&str; 2] = ["persistentvolumeclaims", "requests.storage"];
const SERVICES: [&str; 3] = ["services", "services.loadbalancers", "services.nodeports"];
/// Kinds that were counted before `count/` was there, under their own names.
const ALIASED: [&str; 4] = ["configmaps", "replicationcontrollers", "resourcequotas", "secrets"];

/// How objects of a kind are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Pod,
    Service,
    /// A PersistentVolumeClaim.
    Claim,
    /// A ResourceClaim.
    Devices,
    /// One by one.
    Each,
}

impl Way {
    /// `None` for what no quota counts: events, and what is not stored.
    fn of(group: &str, resource: &str) -> Option<Way> {
        Some(match (group, resource) {
            ("" | "events.k8s.io", "events") | ("", "bindings" | "componentstatuses") => return None,
            ("", "pods") => Way::Pod,
            ("", "services") => Way::Service,
            ("", "persistentvolumeclaims") => Way::Claim,
            ("resource.k8s.io", "resourceclaims") => Way::Devices,
            _ => Way::Each,
        })
    }
}

/// As `count/deployments.apps`.
fn count_name(group: &str, resource: &str) -> String {
    let dot = if group.is_empty() { "" } else { "." };
    format!("count/{resource}{dot}{group}")
}

/// The resource and the group that a name counts one by one: `count/deployments.apps`, `configmaps`.
pub fn counted(name: &str) -> Option<(&str, &str)> {
    match name.strip_prefix("count/") {
        Some(counted) => Some(counted.split_once('.').unwrap_or((counted, ""))),
        None => ALIASED.contains(&name).then_some((name, "")),
    }
}

/// Whether objects of a kind count for a name.
pub fn tracks(group: &str, resource: &str, name: &str) -> bool {
    let Some(way) = Way::of(group, resource) else { return false };
    if counted(name) == Some((resource, group)) {
        return true;
    }
    match way {
        Way::Pod => pods::tracks(name),
        Way::Service => SERVICES.contains(&name),
        Way::Claim => match name.rsplit_once(BY_STORAGE_CLASS) {
            Some((_, name)) => CLAIMS.contains(&name),
            None => CLAIMS.contains(&name),
        },
        Way::Devices => name.ends_with(BY_DEVICE_CLASS),
        Way::Each => false,
    }
}

/// Whether objects of a kind are only counted one by one, each alike.
pub fn is_plain(group: &str, resource: &str) -> bool {
    Way::of(group, resource) == Some(Way::Each)
}

/// The kinds whose objects take more than their number, by group and resource.
pub const MEASURED: [(&str, &str); 4] =
    [("", "pods"), ("", "services"), ("", "persistentvolumeclaims"), ("resource.k8s.io", "resourceclaims")];

/// What an object takes, under every name that may count it.
pub fn usage(group: &str, resource: &str, object: &Value, now: Timestamp) -> Amounts {
    let Some(way) = Way::of(group, resource) else { return Amounts::new() };
    let mut usage = Amounts::from([(count_name(group, resource), number(1))]);
    match way {
        Way::Pod => pods::usage(object, now, &mut usage),
        Way::Service => service(object, &mut usage),
        Way::Claim => claim(object, &mut usage),
        Way::Devices => devices(object, &mut usage),
        Way::Each if group.is_empty() && ALIASED.contains(&resource) => {
            usage.insert(resource.to_owned(), number(1));
        }
        Way::Each => {}
    }
    usage
}

/// A number of things.
pub fn number(count: i64) -> Quantity {
    Quantity::from_units(count, Format::DecimalSi)
}

fn service(service: &Value, usage: &mut Amounts) {
    let ports = service["spec"]["ports"].items();
    let given = ports.iter().filter(|port| port["nodePort"].int() != 0).count();
    let (balancers, node_ports) = match service["spec"]["type"].text() {
        "NodePort" => (0, ports.len()),
        "LoadBalancer" if service["spec"]["allocateLoadBalancerNodePorts"] == false => (1, given),
        // They are not given out yet, so that what is meant counts.
        "LoadBalancer" => (1, ports.len()),
        _ => (0, 0),
    };
    for (name, count) in SERVICES.into_iter().zip([1, balancers, node_ports as i64]) {
        usage.insert(name.to_owned(), number(count));
    }
}

fn claim(claim: &Value, usage: &mut Amounts) {
    const CLASS: &str = "volume.beta.kubernetes.io/storage-class";
    let class = match &claim["metadata"]["annotations"][CLASS] {
        Value::String(class) => class,
        _ => claim["spec"]["storageClassName"].text(),
    };
    let [claims, storage] = CLAIMS;
    let mut take = |name: &str, amount: Quantity| {
        if !class.is_empty() {
            usage.insert(format!("{class}{BY_STORAGE_CLASS}{name}"), amount.clone());
        }
        usage.insert(name.to_owned(), amount);
    };
    take(claims, number(1));
    let Ok(mut wanted) = Quantity::from_json(&claim["spec"]["resources"]["requests"]["storage"]) else { return };
    if let Ok(given) = Quantity::from_json(&claim["status"]["allocatedResources"]["storage"])
        && given > wanted
    {
        wanted = given;
    }
    wanted.round_up(0);
    take(storage, wanted);
}

fn devices(claim: &Value, usage: &mut Amounts) {
    let count = |request: &Value| match request["allocationMode"].text() {
        "ExactCount" => request["count"].int(),
        "All" => ALL_DEVICES,
        _ => 0,
    };
    let name = |request: &Value| format!("{}{BY_DEVICE_CLASS}", request["deviceClassName"].text());
    for request in claim["spec"]["devices"]["requests"].items() {
        let alternatives = request["firstAvailable"].items();
        // Of the alternatives of a class the largest.
        let mut most: std::collections::BTreeMap<String, i64> = std::collections::BTreeMap::new();
        for alternative in alternatives {
            let most = most.entry(name(alternative)).or_default();
            *most = (*most).max(count(alternative));
        }
        if alternatives.is_empty() && request["exactly"].is_set() {
            most.insert(name(&request["exactly"]), count(&request["exactly"]));
        }
        for (name, count) in most.iter().filter(|(_, count)| **count > 0) {
            add(usage, name, &number(*count));
        }
    }
}

/// The quantities of a list of resources.
pub fn amounts(list: &Value) -> Amounts {
    super::pod::amounts::read(list)
}

/// A list of resources as it is written.
pub fn to_list(amounts: &Amounts) -> Value {
    amounts.iter().map(|(name, amount)| (name.clone(), Value::from(amount.to_string()))).collect()
}
