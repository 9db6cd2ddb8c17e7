//! Statuses, as JSON. A condition keeps the time of its last change while it is what it was.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde_json::{Value, json};

use crate::resolve::{GatewayState, ListenerState, ParentState, RouteState};
use crate::{CONTROLLER, GROUP, PORTS_MAX, Served, Verdict};

/// Addresses that a status has at most (the field's own bound).
const ADDRESSES_MAX: usize = 16;
/// Bytes of a message (the field's own bound is 32,768).
const MESSAGE_BYTES_MAX: usize = 1024;
/// Parents that a status has at most (the field's own bound).
const PARENTS_MAX: usize = 32;
/// What is there beside the core, by the names of Gateway API, in their order.
const FEATURES: [&str; 27] = [
    "GRPCRoute",
    "GRPCRouteNamedRouteRule",
    "Gateway",
    "GatewayAddressEmpty",
    "GatewayHTTPListenerIsolation",
    "GatewayPort8080",
    "GatewayStaticAddresses",
    "HTTPRoute",
    "HTTPRouteBackendProtocolWebSocket",
    "HTTPRouteBackendRequestHeaderModification",
    "HTTPRouteBackendTimeout",
    "HTTPRouteDestinationPortMatching",
    "HTTPRouteHostRewrite",
    "HTTPRouteMethodMatching",
    "HTTPRouteNamedRouteRule",
    "HTTPRouteParentRefPort",
    "HTTPRoutePathRedirect",
    "HTTPRoutePathRewrite",
    "HTTPRoutePortRedirect",
    "HTTPRouteQueryParamMatching",
    "HTTPRouteRequestMirror",
    "HTTPRouteRequestMultipleMirrors",
    "HTTPRouteRequestPercentageMirror",
    "HTTPRouteRequestTimeout",
    "HTTPRouteResponseHeaderModification",
    "HTTPRouteSchemeRedirect",
    "ReferenceGrant",
];

/// A list of conditions in the making.
struct Conditions<'a> {
    old: &'a Value,
    generation: i64,
    now: &'a str,
    all: Vec<Value>,
}

impl<'a> Conditions<'a> {
    fn new(old: &'a Value, generation: i64, now: &'a str) -> Conditions<'a> {
        Conditions { old, generation, now, all: Vec::new() }
    }

    fn add(mut self, kind: &str, verdict: &Verdict) -> Conditions<'a> {
        let status = if verdict.holds { "True" } else { "False" };
        let known = self.old.as_array().into_iter().flatten().find(|condition| condition["type"] == kind);
        let since = known.filter(|known| known["status"] == status).map(|known| &known["lastTransitionTime"]);
        let end = (0..=MESSAGE_BYTES_MAX.min(verdict.message.len()))
            .rev()
            .find(|at| verdict.message.is_char_boundary(*at))
            .unwrap_or_default();
        self.all.push(json!({
            "type": kind, "status": status, "reason": verdict.reason, "message": &verdict.message[..end],
            "observedGeneration": self.generation,
            "lastTransitionTime": since.cloned().unwrap_or_else(|| json!(self.now)),
        }));
        self
    }

    /// With those that others have written.
    fn and_others(self, ours: &[&str]) -> Vec<Value> {
        let is_other = |condition: &&Value| condition["type"].as_str().is_some_and(|kind| !ours.contains(&kind));
        let others: Vec<Value> = self.old.as_array().into_iter().flatten().filter(is_other).cloned().collect();
        self.all.into_iter().chain(others).collect()
    }
}

/// The status of a class of ours: whether it is accepted, and whether definitions are of known versions. `now` is an RFC 3339 time.
pub fn class(accepted: &Verdict, versions: &Verdict, generation: i64, old: &Value, now: &str) -> Value {
    let conditions = Conditions::new(&old["conditions"], generation, now)
        .add("Accepted", accepted)
        .add("SupportedVersion", versions);
    let features: Vec<Value> = FEATURES.iter().map(|name| json!({"name": name})).collect();
    json!({"conditions": conditions.and_others(&["Accepted", "SupportedVersion"]), "supportedFeatures": features})
}

/// Whether a listener is served somewhere.
fn programmed(gateway: &GatewayState, listener: &ListenerState, served: &Served) -> Verdict {
    if !gateway.accepted.holds || !listener.is_valid() {
        return Verdict::no("Invalid", "it is not accepted");
    }
    if !listener.is_served() || !listener.secrets.is_empty() && is_broken(listener, served) {
        return Verdict::no("Invalid", "it has no certificate");
    }
    let at = served.at(listener.port);
    match at {
        _ if at.is_none_or(BTreeSet::is_empty) && served.is_beyond(listener.port) => {
            let words = format!(
                "there is no room for port {}: a node opens {PORTS_MAX} ports for Gateways, those of a namespace half of \
                 them; the oldest Gateways have theirs",
                listener.port
            );
            Verdict::no("PortUnavailable", words)
        }
        None => Verdict::no("Pending", "no node that is ready has opened the port yet"),
        Some(at) if at.is_empty() => {
            let words = format!("no node could open port {}: events on the nodes say why", listener.port);
            Verdict::no("PortUnavailable", words)
        }
        Some(_) => Verdict::yes("Programmed"),
    }
}

/// Whether none of its Secrets has a certificate.
fn is_broken(listener: &ListenerState, served: &Served) -> bool {
    listener.secrets.iter().all(|secret| served.broken.contains(secret))
}

/// The status of a Gateway of ours.
pub fn gateway(gateway: &GatewayState, served: &Served, old: &Value, now: &str) -> Value {
    let generation = gateway.meta.generation;
    let (mut listeners, mut addresses) = (Vec::new(), BTreeSet::<IpAddr>::new());
    let (mut valid, mut served_count) = (0, 0);
    for listener in &gateway.listeners {
        let programmed = programmed(gateway, listener, served);
        if programmed.holds {
            addresses.extend(served.at(listener.port).into_iter().flatten());
            served_count += 1;
        }
        valid += usize::from(listener.is_valid());
        let mut resolved = listener.resolved.clone();
        let broken = listener.secrets.iter().find(|secret| served.broken.contains(*secret));
        if let (true, Some((namespace, name))) = (resolved.holds, broken) {
            let words = format!("secret {namespace}/{name} has no certificate that could be shown, or does not exist");
            resolved = Verdict::no("InvalidCertificateRef", words);
        }
        let known = old["listeners"].as_array().into_iter().flatten().find(|known| known["name"] == *listener.name);
        let conditions = known.map_or(&Value::Null, |known| &known["conditions"]);
        let conditions = Conditions::new(conditions, generation, now)
            .add("Accepted", &listener.accepted)
            .add("Conflicted", &listener.conflicted)
            .add("ResolvedRefs", &resolved)
            .add("Programmed", &programmed);
        let kinds: Vec<Value> =
            listener.kinds.iter().map(|kind| json!({"group": GROUP, "kind": kind.name()})).collect();
        listeners.push(json!({
            "name": &*listener.name, "supportedKinds": kinds, "attachedRoutes": listener.attached.len(),
            "conditions": conditions.and_others(&["Accepted", "Conflicted", "ResolvedRefs", "Programmed"]),
        }));
    }
    let mut accepted = gateway.accepted.clone();
    if accepted.holds && valid < gateway.listeners.len() {
        // One that is valid is enough.
        let words = "some listeners are not valid: their own conditions say why";
        accepted = Verdict { holds: valid > 0, reason: "ListenersNotValid", message: words.to_owned() };
    }
    let lacking: Vec<&String> = gateway
        .addresses
        .iter()
        .filter(|wanted| !wanted.parse().is_ok_and(|wanted: IpAddr| served.addresses.contains(&wanted)))
        .collect();
    let programmed = match (accepted.holds, lacking.first(), served_count) {
        (false, ..) => Verdict::no("Invalid", "it is not accepted"),
        (true, Some(address), _) => {
            Verdict::no("AddressNotUsable", format!("no node that is ready serves Gateways at {address}"))
        }
        (true, None, 0) if served.addresses.is_empty() => {
            Verdict::no("AddressNotAssigned", "no node that is ready serves Gateways")
        }
        (true, None, 0) => Verdict::no("Pending", "no listener is served: their own conditions say why"),
        (true, None, _) => Verdict::yes("Programmed"),
    };
    if !gateway.addresses.is_empty() {
        // An address may be written in many ways.
        let wanted: BTreeSet<IpAddr> = gateway.addresses.iter().filter_map(|address| address.parse().ok()).collect();
        addresses.retain(|address| wanted.contains(address));
    }
    let conditions =
        Conditions::new(&old["conditions"], generation, now).add("Accepted", &accepted).add("Programmed", &programmed);
    let address = |address: IpAddr| json!({"type": "IPAddress", "value": address.to_string()});
    json!({
        "addresses": addresses.into_iter().take(ADDRESSES_MAX).map(address).collect::<Vec<_>>(),
        "conditions": conditions.and_others(&["Accepted", "Programmed"]),
        "listeners": listeners,
    })
}

/// The status of a route: what is said of our parents, and what others have said of theirs.
pub fn route(route: Option<&RouteState>, generation: i64, old: &Value, now: &str) -> Value {
    let known = || old["parents"].as_array().into_iter().flatten();
    let parent = |state: &ParentState| {
        let is_same = |known: &&Value| known["controllerName"] == CONTROLLER && known["parentRef"] == state.written;
        let before = known().find(is_same).map_or(&Value::Null, |known| &known["conditions"]);
        let conditions = Conditions::new(before, generation, now)
            .add("Accepted", &state.accepted)
            .add("ResolvedRefs", &state.resolved);
        let conditions = match &state.partially {
            Some(partially) => conditions.add("PartiallyInvalid", partially),
            None => conditions,
        };
        let ours = ["Accepted", "ResolvedRefs", "PartiallyInvalid"];
        json!({
            "parentRef": state.written, "controllerName": CONTROLLER, "conditions": conditions.and_others(&ours),
        })
    };
    // In the order that was found: others look for theirs there, and none of theirs gives way.
    let mut ours: Vec<&ParentState> = route.into_iter().flat_map(|route| &route.parents).collect();
    let mut parents = Vec::new();
    for known in known() {
        if known["controllerName"] != CONTROLLER {
            parents.push(known.clone());
        } else if let Some(at) = ours.iter().position(|state| state.written == known["parentRef"]) {
            parents.push(parent(ours.remove(at)));
        }
    }
    let room = PARENTS_MAX.saturating_sub(parents.len());
    parents.extend(ours.into_iter().take(room).map(parent));
    json!({"parents": parents})
}
