//! Listeners of Gateways: which may be, and what is wrong with the others.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::kinds::{self, Gateway, GroupKind, Listener, RouteKind};
use crate::resolve::ListenerState;
use crate::{GROUP, Hostname, Key, Verdict, grant};

/// What is spoken at a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// HTTP without TLS.
    Http,
    /// HTTP with TLS.
    Https,
}

impl Protocol {
    fn of(name: &str) -> Option<Protocol> {
        match name {
            "HTTP" => Some(Protocol::Http),
            "HTTPS" => Some(Protocol::Https),
            _ => None,
        }
    }
}

/// Whether a grant permits a reference to another namespace.
type Permits<'a> = &'a dyn Fn(grant::Reference<'_>) -> bool;

/// The kind that is named, if its routes are served.
fn served(named: &GroupKind) -> Option<RouteKind> {
    let is_ours = named.group.as_deref().unwrap_or(GROUP) == GROUP;
    RouteKind::ALL.into_iter().find(|kind| is_ours && kind.name() == named.kind)
}

/// All listeners of a Gateway, as far as it says itself what is wrong with them.
pub(crate) fn all(gateway: &Gateway, permits: Permits<'_>) -> Vec<ListenerState> {
    let mut listeners: Vec<ListenerState> =
        gateway.spec.listeners.iter().map(|listener| one(gateway, listener, permits)).collect();
    conflicts(&gateway.spec.listeners, &mut listeners);
    listeners
}

fn one(gateway: &Gateway, listener: &Listener, permits: Permits<'_>) -> ListenerState {
    let protocol = Protocol::of(&listener.protocol);
    let mode = listener.tls.mode.as_deref().unwrap_or("Terminate");
    let mut accepted = Verdict::yes("Accepted");
    let mut notes = Vec::new();
    match protocol {
        None => {
            let words = format!("protocol {} is not supported: HTTP and HTTPS are", listener.protocol);
            accepted = Verdict::no("UnsupportedProtocol", words);
        }
        Some(Protocol::Https) if mode != "Terminate" => {
            accepted = Verdict::no("UnsupportedProtocol", format!("TLS mode {mode} is not supported: Terminate is"));
        }
        Some(_) => {
            let of_tls = kinds::first(&listener.tls.others).map(|name| format!("tls.{name}"));
            if let Some(name) = kinds::first(&listener.others).map(str::to_owned).or(of_tls) {
                accepted = Verdict::no("UnsupportedValue", format!("{name} is not supported"));
            }
        }
    }
    if !listener.tls.options.is_empty() {
        notes.push("tls.options have no effect");
    }
    if accepted.holds {
        accepted.message = notes.join("; ");
    }
    let (mut resolved, mut secrets) = (Verdict::yes("ResolvedRefs"), Vec::new());
    if protocol == Some(Protocol::Https) {
        (secrets, resolved) = certificates(gateway, listener, permits);
    }
    let allowed = &listener.allowed_routes.kinds;
    let odd: Vec<&str> = allowed.iter().filter(|kind| served(kind).is_none()).map(|kind| kind.kind.as_str()).collect();
    if !odd.is_empty() && resolved.holds {
        let words = format!("routes of kind {} are not served: HTTPRoute and GRPCRoute are", odd.join(", "));
        resolved = Verdict::no("InvalidRouteKinds", words);
    }
    // Where nothing is said all that are served are allowed.
    let is_allowed = |kind: &RouteKind| allowed.is_empty() || allowed.iter().any(|named| served(named) == Some(*kind));
    let kinds: Vec<RouteKind> =
        RouteKind::ALL.into_iter().filter(|kind| protocol.is_some() && is_allowed(kind)).collect();
    ListenerState {
        name: listener.name.as_str().into(),
        port: listener.port,
        protocol,
        hostname: Hostname::parse(listener.hostname.as_deref()),
        secrets,
        has_routes: !kinds.is_empty() && accepted.holds,
        kinds,
        accepted,
        conflicted: Verdict { holds: false, reason: "NoConflicts", message: String::new() },
        resolved,
        attached: Vec::new(),
    }
}

/// The Secrets of its certificates.
fn certificates(gateway: &Gateway, listener: &Listener, permits: Permits<'_>) -> (Vec<Key>, Verdict) {
    let (mut secrets, mut resolved) = (Vec::new(), Verdict::yes("ResolvedRefs"));
    let own = &gateway.meta.namespace;
    for reference in &listener.tls.certificate_refs {
        let kind = (reference.group.as_deref().unwrap_or_default(), reference.kind.as_deref().unwrap_or("Secret"));
        if kind != ("", "Secret") {
            let words = format!("certificate {} {} is no Secret", kind.1, reference.name);
            resolved = Verdict::no("InvalidCertificateRef", words);
            continue;
        }
        let namespace = reference.namespace.as_deref().map_or_else(|| own.clone(), Arc::from);
        let asked = grant::Reference { from: ("Gateway", own), to: ("Secret", &namespace, &reference.name) };
        if namespace != *own && !permits(asked) {
            let words = format!("no ReferenceGrant of namespace {namespace} permits secret {}", reference.name);
            resolved = Verdict::no("RefNotPermitted", words);
            continue;
        }
        secrets.push((namespace, reference.name.as_str().into()));
    }
    if listener.tls.certificate_refs.is_empty() {
        resolved = Verdict::no("InvalidCertificateRef", "it names no certificate");
    }
    (secrets, resolved)
}

/// Listeners of one Gateway that cannot be told from each other: none of them is, then.
fn conflicts(specs: &[Listener], listeners: &mut [ListenerState]) {
    let mut protocols: HashMap<u16, Vec<&str>> = HashMap::new();
    let mut hosts: HashMap<(u16, &str, Hostname), usize> = HashMap::new();
    let host = |spec: &Listener| Hostname::parse(spec.hostname.as_deref());
    for spec in specs {
        let known = protocols.entry(spec.port).or_default();
        if !known.contains(&spec.protocol.as_str()) {
            known.push(&spec.protocol);
        }
        *hosts.entry((spec.port, &spec.protocol, host(spec))).or_default() += 1;
    }
    for (spec, listener) in specs.iter().zip(listeners) {
        let conflicted = |reason, message: String| Verdict { holds: true, reason, message };
        if protocols[&spec.port].len() > 1 {
            let words = format!("listeners of port {} have different protocols", spec.port);
            listener.conflicted = conflicted("ProtocolConflict", words);
        } else if hosts[&(spec.port, spec.protocol.as_str(), host(spec))] > 1 {
            let words = format!("another listener of port {} has the same hostname", spec.port);
            listener.conflicted = conflicted("HostnameConflict", words);
        }
    }
}

/// Who had a port first, with which protocol, and who had its hosts.
#[derive(Default)]
pub(crate) struct Ports {
    protocols: BTreeMap<u16, (Protocol, Key)>,
    hosts: HashMap<(u16, Hostname), Key>,
}

impl Ports {
    /// Takes a listener's port and host, or finds the port taken for another protocol, or the host by another namespace: whose routes
    /// may be there is said by one.
    pub fn take(&mut self, gateway: &Key, listener: &mut ListenerState) {
        let Some(protocol) = listener.protocol.filter(|_| listener.is_served()) else { return };
        let (has, holder) = self.protocols.entry(listener.port).or_insert_with(|| (protocol, gateway.clone()));
        if *has != protocol {
            let words = format!(
                "port {} is for another protocol at Gateway {}/{}, which is older",
                listener.port, holder.0, holder.1
            );
            listener.accepted = Verdict::no("PortUnavailable", words);
            listener.has_routes = false;
            return;
        }
        let holder = self.hosts.entry((listener.port, listener.hostname.clone())).or_insert_with(|| gateway.clone());
        if holder.0 != gateway.0 {
            let message = format!(
                "port {} has the same hostname at Gateway {}/{}, which is older and of another namespace",
                listener.port, holder.0, holder.1
            );
            listener.conflicted = Verdict { holds: true, reason: "HostnameConflict", message };
            listener.has_routes = false;
        }
    }
}
