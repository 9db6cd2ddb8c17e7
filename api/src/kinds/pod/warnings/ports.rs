//! Ports of a pod's containers that get in each other's way: they share one address.

use serde_json::Value;

use super::each_container;
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
    let mut before: Vec<(String, Value)> = Vec::new();
    each_container(spec, path, |container, path| {
        let list = path.child("ports");
        for (index, port) in container["ports"].items().iter().enumerate() {
            let at = list.index(index).to_string();
            if !port["hostIP"].is_empty() && port["hostPort"].int() == 0 {
                warnings.push(format!("{at}: hostIP set without hostPort: {}", shown(port)));
            }
            let is_same = |other: &Value| {
                other["containerPort"].int() == port["containerPort"].int()
                    && other["protocol"].text() == port["protocol"].text()
            };
            for (other_at, other) in before.iter().filter(|(_, other)| is_same(other)) {
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
            before.push((at, port.clone()));
        }
    });
    for (index, (at, port)) in before.iter().enumerate() {
        let name = port["name"].text();
        if name.is_empty() {
            continue;
        }
        if let Some((other, _)) = before[..index].iter().find(|(_, before)| before["name"].text() == name) {
            warnings.push(format!(
                "{at}: duplicate port name {} with {other}, services and probes that select ports by name will use {other}",
                quote(name)
            ));
        }
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
