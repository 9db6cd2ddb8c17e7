//! Ports of a pod's containers that get in each other's way: they share one address.

use std::collections::HashMap;

use serde_json::Value;

use super::{WARNINGS_MAX, each_container};
use crate::kinds::value::Read;
use crate::meta::field::Path;
use crate::meta::text::quote;

pub(super) fn overlapping(spec: &Value, path: &Path<'_>, warnings: &mut Vec<String>) {
    let has_ports = ["initContainers", "containers", "ephemeralContainers"]
        .iter()
        .any(|list| spec[*list].items().iter().any(|container| container["ports"].is_set()));
    if !has_ports {
        return;
    }
    let mut before: Vec<(String, &Value)> = Vec::new();
    let mut places = Places::default();
    each_container(spec, path, |container, path| {
        let list = path.child("ports");
        for (index, port) in container["ports"].items().iter().enumerate() {
            if warnings.len() >= WARNINGS_MAX {
                return;
            }
            let at = list.index(index).to_string();
            if !port["hostIP"].is_empty() && port["hostPort"].int() == 0 {
                warnings.push(format!("{at}: hostIP set without hostPort: {}", shown(port)));
            }
            for other in places.near(port, WARNINGS_MAX - warnings.len()) {
                let (other_at, other) = &before[other];
                let (ips, ports) = (
                    (port["hostIP"].text(), other["hostIP"].text()),
                    (port["hostPort"].int(), other["hostPort"].int()),
                );
                let words = if ips.0 == ips.1 && ports.0 == ports.1 {
                    "duplicate"
                } else if ports.0 == 0 || ports.1 == 0 {
                    "overlapping"
                } else if ports.0 == ports.1 && ips.0.is_empty() != ips.1.is_empty() {
                    "dangerously ambiguous"
                } else {
                    continue;
                };
                warnings.push(format!("{at}: {words} port definition with {other_at}"));
            }
            places.add(port, before.len());
            before.push((at, port));
        }
    });
    let mut firsts: HashMap<&str, &str> = HashMap::new();
    for (at, port) in &before {
        let name = port["name"].text();
        if name.is_empty() || warnings.len() >= WARNINGS_MAX {
            continue;
        }
        if let Some(other) = firsts.get(name) {
            warnings.push(format!(
                "{at}: duplicate port name {} with {other}, services and probes that select ports by name will use {other}",
                quote(name)
            ));
        } else {
            firsts.insert(name, at);
        }
    }
}

/// Where ports stand that may get in the way of another: found by their numbers, because there may be very many.
#[derive(Default)]
struct Places<'a> {
    /// Of one number and protocol, in their order.
    all: HashMap<Own<'a>, Vec<usize>>,
    /// Those of them without a port of the host.
    unbound: HashMap<Own<'a>, Vec<usize>>,
    /// Those of them with this port of the host.
    bound: HashMap<(Own<'a>, i64), Vec<usize>>,
    /// Those of them at this address of the host.
    at_address: HashMap<(Own<'a>, i64, &'a str), Vec<usize>>,
}

/// Number in the container, and protocol.
type Own<'a> = (i64, &'a str);

impl<'a> Places<'a> {
    fn own(port: &'a Value) -> Own<'a> {
        (port["containerPort"].int(), port["protocol"].text())
    }

    fn add(&mut self, port: &'a Value, at: usize) {
        let (own, host) = (Self::own(port), port["hostPort"].int());
        self.all.entry(own).or_default().push(at);
        match host {
            0 => self.unbound.entry(own).or_default().push(at),
            host => {
                self.bound.entry((own, host)).or_default().push(at);
                self.at_address.entry((own, host, port["hostIP"].text())).or_default().push(at);
            }
        }
    }

    /// The ports before that a warning is due about, `most` at most.
    fn near(&self, port: &'a Value, most: usize) -> Vec<usize> {
        let (own, host, address) = (Self::own(port), port["hostPort"].int(), port["hostIP"].text());
        let some = |list: Option<&Vec<usize>>| list.into_iter().flatten().copied().take(most).collect::<Vec<usize>>();
        if host == 0 {
            return some(self.all.get(&own));
        }
        let mut found = some(self.unbound.get(&own));
        match address {
            "" => found.extend(some(self.bound.get(&(own, host)))),
            address => {
                found.extend(some(self.at_address.get(&(own, host, address))));
                found.extend(some(self.at_address.get(&(own, host, ""))));
            }
        }
        found.sort_unstable();
        found.truncate(most);
        found
    }
}

/// As Go's `%+v` shows a port.
fn shown(port: &Value) -> String {
    format!(
        "{{Name:{} HostPort:{} ContainerPort:{} Protocol:{} HostIP:{}}}",
        port["name"].text(),
        port["hostPort"].int(),
        port["containerPort"].int(),
        port["protocol"].text(),
        port["hostIP"].text(),
    )
}
