//! Addresses and node ports of services: each is given out once.
//!
//! Who holds what is a record of its own, written in the transaction that stores the service and guarded by "nothing is
//! there". So two servers that choose the same address at once cannot both succeed, and nothing leaks when a server dies.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use bytes::Bytes;
use coracle_api::codec::json;
use coracle_api::kinds::{self, FieldError, FieldErrors};
use coracle_api::meta;
use coracle_api::status::Status;
use coracle_keyspace::{Guard, Key, Op, Value as Content};
use serde_json::{Value, json as object};

use super::Attributes;
use crate::cluster::Cluster;

/// Records of addresses that are held.
const ADDRESSES: &str = "coracle.serviceips";
/// Records of node ports that are held.
const PORTS: &str = "coracle.nodeports";

/// 10.96.0.0/16; the first and the last address are not given out.
const FIRST: u32 = u32::from_be_bytes([10, 96, 0, 0]);
const SIZE: u32 = 1 << 16;
/// The range that addresses are given out of.
pub(crate) fn range() -> String {
    format!("{}/{}", std::net::Ipv4Addr::from(FIRST), SIZE.leading_zeros() + 1)
}

/// The lower band is for addresses that somebody asks for by number.
const ADDRESSES_RESERVED: u32 = 256;
const PORT_FIRST: u16 = 30_000;
const PORT_COUNT: u16 = 2_768;
/// Ports at the beginning that are given out by number only, while others are left.
const PORTS_RESERVED: u16 = 86;
/// What says which families of addresses a service has.
const FAMILIES: [&str; 2] = ["ipFamilyPolicy", "ipFamilies"];
const ALLOCATED: &str = "provided port is already allocated";
/// Random choices before all are looked at in turn.
const GUESSES: usize = 64;

/// What a service holds.
#[derive(Default, Debug, PartialEq)]
struct Held {
    addresses: BTreeSet<String>,
    ports: BTreeSet<u16>,
}

impl Held {
    fn by(service: Option<&Value>) -> Held {
        let Some(spec) = service.map(|service| &service["spec"]) else { return Held::default() };
        let mut held = Held::default();
        let addresses = spec["clusterIPs"].as_array().map(Vec::as_slice).unwrap_or_default();
        for address in addresses.iter().chain([&spec["clusterIP"]]).filter_map(Value::as_str) {
            if address.parse::<Ipv4Addr>().is_ok() {
                held.addresses.insert(address.to_owned());
            }
        }
        let ports = spec["ports"].as_array().map(Vec::as_slice).unwrap_or_default();
        let ports = ports.iter().map(|port| &port["nodePort"]).chain([&spec["healthCheckNodePort"]]);
        held.ports
            .extend(ports.filter_map(Value::as_u64).filter_map(|port| u16::try_from(port).ok()).filter(|p| *p > 0));
        held
    }
}

/// Gives a service its addresses and ports. The object is changed; the operations make it so.
pub(super) fn allocate(at: &Attributes<'_>, service: &mut Value, old: Option<&Value>) -> Result<Vec<Op>, Status> {
    if !service["spec"].is_object() {
        return Ok(Vec::new());
    }
    let before = Held::by(old);
    let kind = service["spec"]["type"].as_str().unwrap_or_default().to_owned();
    let mut errors = Vec::new();
    if matches!(kind.as_str(), "ClusterIP" | "NodePort" | "LoadBalancer") {
        // What is given has to agree with itself before anything is given to it.
        let mut wrong = FieldErrors::new();
        kinds::validate_service_addresses(service, old, &mut wrong);
        if !wrong.is_empty() {
            return Err(Status::invalid("", "Service", meta::name(service), wrong));
        }
        let spec = &mut service["spec"];
        family(spec);
        if old.is_none_or(|old| FAMILIES.iter().any(|field| old["spec"][field] != spec[field])) {
            single_stack(spec, &mut errors);
        }
        address(at, service, &before, &mut errors);
    }
    if matches!(kind.as_str(), "NodePort" | "LoadBalancer") {
        ports(at, &mut service["spec"], &before, &mut errors);
    }
    if kind == "LoadBalancer" && service["spec"]["externalTrafficPolicy"] == "Local" {
        health_port(at, &mut service["spec"], &before, &mut errors);
    }
    if !errors.is_empty() {
        return Err(Status::invalid("", "Service", meta::name(service), errors));
    }
    let after = Held::by(Some(service));
    let owner = owner(service);
    let mut ops = Vec::new();
    ops.extend(after.addresses.difference(&before.addresses).map(|name| claim(ADDRESSES, name, &owner)));
    ops.extend(after.ports.difference(&before.ports).map(|port| claim(PORTS, &port.to_string(), &owner)));
    let (addresses, ports) = (before.addresses.difference(&after.addresses), before.ports.difference(&after.ports));
    ops.extend(addresses.filter_map(|name| release(at.cluster, ADDRESSES, name, &owner)));
    ops.extend(ports.filter_map(|port| release(at.cluster, PORTS, &port.to_string(), &owner)));
    Ok(ops)
}

/// Gives everything back.
pub(super) fn release_all(cluster: &Cluster, service: &Value) -> Vec<Op> {
    let held = Held::by(Some(service));
    let owner = owner(service);
    let addresses = held.addresses.iter().filter_map(|name| release(cluster, ADDRESSES, name, &owner));
    let ports = held.ports.iter().filter_map(|port| release(cluster, PORTS, &port.to_string(), &owner));
    addresses.chain(ports).collect()
}

fn owner(service: &Value) -> String {
    format!("{}/{}", meta::namespace(service), meta::name(service))
}

fn claim(collection: &str, name: &str, owner: &str) -> Op {
    let bytes = Bytes::from(object!({ "holder": owner }).to_string());
    let revision_at = bytes.len();
    Op::Put { key: Key::new(collection, name), value: Content { bytes, revision_at }, guard: Guard::Absent }
}

/// Gives back what `owner` holds, and nothing that is another's.
fn release(cluster: &Cluster, collection: &str, name: &str, owner: &str) -> Option<Op> {
    let record = cluster.store.keyspace.get(collection, name)?;
    // The revision stands behind the claim.
    let end = record.bytes.iter().rposition(|byte| *byte == b'}')? + 1;
    let claim = json::parse(&record.bytes[..end]).ok()?;
    let guard = Guard::Revision(record.revision);
    (claim["holder"] == owner).then(|| Op::Delete { key: Key::new(collection, name), guard })
}

/// There are IPv4 addresses only. A headless service without a selector may have both: whoever writes its endpoints knows.
fn family(spec: &mut Value) {
    let open = is_open(spec);
    if spec["ipFamilyPolicy"].is_null() {
        spec["ipFamilyPolicy"] = if open { "RequireDualStack" } else { "SingleStack" }.into();
    }
    if spec["ipFamilies"].as_array().is_none_or(Vec::is_empty) {
        let both = open && spec["ipFamilyPolicy"] != "SingleStack";
        spec["ipFamilies"] = if both { object!(["IPv4", "IPv6"]) } else { object!(["IPv4"]) };
    }
}

fn is_open(spec: &Value) -> bool {
    let selects = spec["selector"].as_object().is_some_and(|selector| !selector.is_empty());
    spec["clusterIP"] == "None" && !selects
}

/// Refuses what would have addresses of both families.
fn single_stack(spec: &Value, errors: &mut Vec<FieldError>) {
    if is_open(spec) {
        return;
    }
    if spec["ipFamilyPolicy"] == "RequireDualStack" {
        let why = "this cluster is not configured for dual-stack services";
        errors.push(FieldError::invalid("spec.ipFamilyPolicy", &spec["ipFamilyPolicy"], why));
    }
    for (index, family) in spec["ipFamilies"].as_array().into_iter().flatten().enumerate() {
        if family == "IPv6" {
            let path = format!("spec.ipFamilies[{index}]");
            errors.push(FieldError::invalid(path, family, "not configured on this cluster"));
        }
    }
}

fn address(at: &Attributes<'_>, service: &mut Value, before: &Held, errors: &mut Vec<FieldError>) {
    let spec = &mut service["spec"];
    match spec["clusterIP"].as_str().unwrap_or_default() {
        "None" => spec["clusterIPs"] = object!(["None"]),
        "" => match free_address(at) {
            Some(address) => {
                let address = address.to_string();
                spec["clusterIPs"] = object!([address]);
                spec["clusterIP"] = address.into();
            }
            None => errors.push(FieldError::internal("spec.clusterIPs", "range is full")),
        },
        asked if before.addresses.contains(asked) => {}
        asked => {
            let asked = asked.to_owned();
            let shown = object!([asked]);
            let mut refuse = |why: String| {
                errors.push(FieldError::invalid(
                    "spec.clusterIPs",
                    &shown,
                    &format!("failed to allocate IP {asked}: {why}"),
                ))
            };
            match asked.parse::<Ipv4Addr>() {
                // Who has one keeps it: validation says so, wherever this one is from.
                _ if !before.addresses.is_empty() => {}
                Ok(address) if !in_range(address) => {
                    refuse("the provided network does not match the current range".to_owned());
                }
                Ok(_) if at.cluster.store.keyspace.get(ADDRESSES, &asked).is_some() => {
                    refuse("provided IP is already allocated".to_owned());
                }
                // Text that is no address is for validation to refuse.
                _ => {}
            }
            spec["clusterIPs"] = shown;
        }
    }
}

fn in_range(address: Ipv4Addr) -> bool {
    let offset = u32::from(address).wrapping_sub(FIRST);
    offset > 0 && offset < SIZE - 1
}

fn free_address(at: &Attributes<'_>) -> Option<Ipv4Addr> {
    let free = |offset: u32| {
        let address = Ipv4Addr::from(FIRST + offset);
        at.cluster.store.keyspace.get(ADDRESSES, &address.to_string()).is_none().then_some(address)
    };
    for _ in 0..GUESSES {
        if let Some(address) = free(rand::random_range(ADDRESSES_RESERVED..SIZE - 1)) {
            return Some(address);
        }
    }
    (1..SIZE - 1).rev().find_map(free)
}

fn ports(at: &Attributes<'_>, spec: &mut Value, before: &Held, errors: &mut Vec<FieldError>) {
    let mut taken: BTreeSet<u16> = BTreeSet::new();
    // One port may be served by two protocols under one number.
    let mut shared: HashMap<i64, u16> = HashMap::new();
    let mut asked_for: HashSet<(i64, String)> = HashSet::new();
    let mut is_full = false;
    // Whoever wants none to be given may still ask for some by number.
    let gives = spec["type"] == "NodePort" || spec["allocateLoadBalancerNodePorts"] != false;
    let list = spec.get_mut("ports").and_then(Value::as_array_mut).map(Vec::as_mut_slice).unwrap_or_default();
    for port in list.iter() {
        taken.extend(
            port["nodePort"].as_u64().and_then(|number| u16::try_from(number).ok()).filter(|number| *number > 0),
        );
    }
    for (index, port) in list.iter_mut().enumerate() {
        let protocol = port["protocol"].as_str().unwrap_or("TCP").to_owned();
        let number = port["port"].as_i64().unwrap_or(0);
        let asked = port["nodePort"].as_i64().unwrap_or(0);
        let field = format!("spec.ports[{index}].nodePort");
        if asked == 0 && !gives {
            continue;
        }
        if asked == 0 {
            let twin = shared.get(&number).copied();
            // The range is looked through once when it has nothing left.
            match twin.or_else(|| if is_full { None } else { free_port(at, &taken) }) {
                Some(chosen) => {
                    taken.insert(chosen);
                    shared.insert(number, chosen);
                    port["nodePort"] = chosen.into();
                }
                None => {
                    is_full = true;
                    errors.push(FieldError::internal(field, "failed to allocate a nodePort: range is full"));
                }
            }
            continue;
        }
        let is_new = asked_for.insert((asked, protocol));
        let refused = match refused_port(at, before, asked) {
            None if !is_new && !is_held(before, asked) => Some(ALLOCATED),
            refused => refused,
        };
        errors.extend(refused.map(|why| FieldError::invalid(field, asked, why)));
        if let Ok(asked) = u16::try_from(asked) {
            shared.entry(number).or_insert(asked);
        }
    }
}

/// The port at which balancers outside ask whether a node has endpoints: one more node port.
fn health_port(at: &Attributes<'_>, spec: &mut Value, before: &Held, errors: &mut Vec<FieldError>) {
    const FIELD: &str = "spec.healthCheckNodePort";
    let ports = spec["ports"].as_array().map(Vec::as_slice).unwrap_or_default();
    let own: BTreeSet<u16> =
        ports.iter().filter_map(|port| port["nodePort"].as_u64()).filter_map(|port| u16::try_from(port).ok()).collect();
    let asked = spec["healthCheckNodePort"].as_i64().unwrap_or(0);
    if asked == 0 {
        match free_port(at, &own) {
            Some(port) => spec["healthCheckNodePort"] = port.into(),
            None => errors.push(FieldError::internal(FIELD, "range is full")),
        }
        return;
    }
    let is_own = u16::try_from(asked).is_ok_and(|asked| own.contains(&asked));
    let refused = if is_own { Some(ALLOCATED) } else { refused_port(at, before, asked) };
    errors.extend(refused.map(|why| FieldError::invalid(FIELD, asked, why)));
}

/// Whether the service has had this port already.
fn is_held(before: &Held, asked: i64) -> bool {
    u16::try_from(asked).is_ok_and(|asked| before.ports.contains(&asked))
}

/// Why a port that is asked for by number cannot be had.
fn refused_port(at: &Attributes<'_>, before: &Held, asked: i64) -> Option<&'static str> {
    if is_held(before, asked) {
        return None;
    }
    if !(i64::from(PORT_FIRST)..i64::from(PORT_FIRST + PORT_COUNT)).contains(&asked) {
        return Some("provided port is not in the valid range. The range of valid ports is 30000-32767");
    }
    at.cluster.store.keyspace.get(PORTS, &asked.to_string()).map(|_| ALLOCATED)
}

fn free_port(at: &Attributes<'_>, taken: &BTreeSet<u16>) -> Option<u16> {
    let free = |port: u16| {
        let free = !taken.contains(&port) && at.cluster.store.keyspace.get(PORTS, &port.to_string()).is_none();
        free.then_some(port)
    };
    for _ in 0..GUESSES {
        if let Some(port) = free(PORT_FIRST + rand::random_range(PORTS_RESERVED..PORT_COUNT)) {
            return Some(port);
        }
    }
    (PORT_FIRST..PORT_FIRST + PORT_COUNT).rev().find_map(free)
}

/// The operation that keeps `address` for the service of the API itself.
pub(crate) fn reserve(address: &str, owner: &str) -> Op {
    claim(ADDRESSES, &Arc::<str>::from(address), owner)
}
