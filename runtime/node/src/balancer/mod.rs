//! The node as a balancer of Services: what it says of their ports, to the controller that writes their status and to people.

pub mod holder;

use std::net::IpAddr;
use std::sync::Arc;

use coracle_discovery::{Protocol, Service};
use coracle_proxy::{Opened, ServiceFailure};

use crate::events::{Record, Recorder};
use crate::network::ServiceFailed;

/// Annotation of the Node object: the address at which it is the balancer of Services, and what has become of their ports, as
/// `ADDRESS,NAMESPACE/NAME:PORT/PROTOCOL,…` with `=taken` behind a port that it could not have.
pub const ANNOTATION: &str = "coracle.dev/load-balancer";

/// The annotation's value; `None` while nobody wants a port.
pub fn annotation(bind: IpAddr, node_ip: IpAddr, opened: &[Opened]) -> Option<String> {
    if opened.is_empty() {
        return None;
    }
    let address = if bind.is_unspecified() { node_ip } else { bind };
    let mut text = address.to_string();
    // Those that are open first: the end is what is left out of a text that is too long.
    let (open, taken): (Vec<&Opened>, Vec<&Opened>) = opened.iter().partition(|port| port.is_open);
    for Opened { namespace, name, port, protocol, is_open } in open.into_iter().chain(taken) {
        let taken = if *is_open { "" } else { "=taken" };
        text.push_str(&format!(",{namespace}/{name}:{port}/{}{taken}", name_of(*protocol)));
    }
    Some(text)
}

/// What an annotation says has become of ports; nothing of entries that are none.
pub fn opened(annotation: &str) -> Vec<Opened> {
    let one = |entry: &str| {
        let (entry, is_open) = match entry.strip_suffix("=taken") {
            Some(entry) => (entry, false),
            None => (entry, true),
        };
        let (of, port) = entry.rsplit_once(':')?;
        let ((namespace, name), (port, protocol)) = (of.split_once('/')?, port.split_once('/')?);
        let protocol = match protocol {
            "TCP" => Protocol::Tcp,
            "UDP" => Protocol::Udp,
            "SCTP" => Protocol::Sctp,
            _ => return None,
        };
        Some(Opened { namespace: namespace.into(), name: name.into(), port: port.parse().ok()?, protocol, is_open })
    };
    annotation.split(',').skip(1).filter_map(one).collect()
}

fn name_of(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
        Protocol::Sctp => "SCTP",
    }
}

/// What is wrong with a Service is told on it.
pub fn service_failed(recorder: Recorder) -> ServiceFailed {
    Box::new(move |service, failure| {
        let tell = teller(recorder.clone(), service);
        match failure {
            ServiceFailure::Port(port, protocol, error) => {
                let (error, kind) = (error.to_string(), error.kind());
                let at = format!("port {port}/{}", name_of(protocol));
                // Who has it is read from files, of which there may be many.
                tokio::task::spawn_blocking(move || {
                    let why = holder::why(kind, port, protocol);
                    tell("PortUnavailable", format!("can't open {at} for the Service on this node: {error}{why}"));
                });
            }
            ServiceFailure::Taken(port, protocol, holder) => {
                let (namespace, name) = (&holder.namespace, &holder.name);
                let at = format!("port {port}/{}", name_of(protocol));
                let message =
                    format!("{at} is that of service {namespace}/{name} at every node: this one does not get it");
                tell("PortUnavailable", message);
            }
            ServiceFailure::TooMany(port, protocol) => {
                let at = format!("port {port}/{}", name_of(protocol));
                tell(
                    "PortUnavailable",
                    format!(
                        "{at} is not opened: Services of type LoadBalancer, or those of this namespace, have all that a node opens for them"
                    ),
                );
            }
            ServiceFailure::Endpoint(at) => tell(
                "EndpointForbidden",
                format!(
                    "{at} is an address of this node's machine, or near it, where no Service may lead: it is left out"
                ),
            ),
        }
    })
}

fn teller(recorder: Recorder, service: &Service) -> impl Fn(&'static str, String) + Send + 'static {
    let (namespace, name, uid) = (service.namespace.clone(), service.name.clone(), service.uid.clone());
    move |reason, message| {
        recorder.record(Record {
            kind: "Service",
            namespace: Arc::clone(&namespace),
            name: Arc::clone(&name),
            uid: Arc::clone(&uid),
            field_path: None,
            warning: true,
            reason,
            message,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_where_it_is_a_balancer_and_at_which_ports() {
        let opened =
            |port, protocol, is_open| Opened { namespace: "n".into(), name: "web".into(), port, protocol, is_open };
        let (node_ip, loopback) = ("192.0.2.7".parse().unwrap(), "127.0.0.1".parse().unwrap());
        assert_eq!(annotation(loopback, node_ip, &[]), None);
        let all = [opened(80, Protocol::Tcp, true), opened(53, Protocol::Udp, false)];
        let reverse = [all[1].clone(), all[0].clone()];
        assert_eq!(annotation(loopback, node_ip, &reverse), annotation(loopback, node_ip, &all));
        let text = annotation(loopback, node_ip, &all);
        assert_eq!(text.as_deref(), Some("127.0.0.1,n/web:80/TCP,n/web:53/UDP=taken"));
        assert_eq!(super::opened(text.as_deref().unwrap()), all);
        assert_eq!(super::opened("::1,n/web:80/TCP,n/web:x/TCP,web:80/TCP,n/web:80/ODD,+beyond"), all[..1]);
        assert_eq!(
            annotation("0.0.0.0".parse().unwrap(), node_ip, &all[..1]).as_deref(),
            Some("192.0.2.7,n/web:80/TCP")
        );
    }
}
