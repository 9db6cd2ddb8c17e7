//! Which listeners a route is attached to.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;

use crate::kinds::{Gateway, Listener, ParentRef, Route};
use crate::resolve::ListenerState;
use crate::{GROUP, Hostname, Key, Verdict};

/// Labels of namespaces, by their names.
pub(crate) type Namespaces = BTreeMap<Arc<str>, BTreeMap<String, String>>;

/// The parent that a route names, if it is a Gateway.
pub(crate) fn parent(route: &Route, written: &Value) -> Option<(Key, ParentRef)> {
    let parent = ParentRef::deserialize(written).ok()?;
    let is_gateway =
        parent.group.as_deref().unwrap_or(GROUP) == GROUP && parent.kind.as_deref().unwrap_or("Gateway") == "Gateway";
    let namespace = parent.namespace.as_deref().map_or_else(|| route.meta.namespace.clone(), Arc::from);
    is_gateway.then(|| ((namespace, parent.name.as_str().into()), parent))
}

/// The listeners of a Gateway that a route is attached to, and for which hosts; or why to none.
pub(crate) fn attach(
    gateway: &Gateway,
    listeners: &[ListenerState],
    route: &Route,
    parent: &ParentRef,
    namespaces: &Namespaces,
) -> Result<Vec<(usize, Vec<Hostname>)>, Verdict> {
    let named = gateway.spec.listeners.iter().zip(listeners).enumerate().filter(|(_, (spec, _))| {
        parent.section_name.as_ref().is_none_or(|name| *name == spec.name)
            && parent.port.is_none_or(|port| port == spec.port)
    });
    let named: Vec<(usize, &Listener, &ListenerState)> = named.map(|(at, (spec, state))| (at, spec, state)).collect();
    if named.is_empty() {
        return Err(Verdict::no("NoMatchingParent", "the Gateway has no such listener"));
    }
    let allowed: Vec<(usize, &ListenerState)> = named
        .into_iter()
        .filter(|(_, spec, state)| state.lets_in(route.kind) && allows(gateway, spec, route, namespaces))
        .map(|(at, _, state)| (at, state))
        .collect();
    if allowed.is_empty() {
        let words = "no listener allows routes of this kind and namespace";
        return Err(Verdict::no("NotAllowedByListeners", words));
    }
    let hosts: Vec<Hostname> = match route.spec.hostnames.is_empty() {
        true => vec![Hostname::Any],
        false => route.spec.hostnames.iter().map(|host| Hostname::parse(Some(host))).collect(),
    };
    let attached = allowed.into_iter().filter_map(|(at, state)| {
        let mut met: Vec<Hostname> = hosts.iter().filter_map(|host| state.hostname.with(host)).collect();
        met.sort_unstable();
        met.dedup();
        (!met.is_empty()).then_some((at, met))
    });
    let attached: Vec<_> = attached.collect();
    match attached.is_empty() {
        true => {
            let words = "no listener has a hostname that one of the route's meets";
            Err(Verdict::no("NoMatchingListenerHostname", words))
        }
        false => Ok(attached),
    }
}

/// Whether a listener allows routes of the route's namespace.
fn allows(gateway: &Gateway, listener: &Listener, route: &Route, namespaces: &Namespaces) -> bool {
    let allowed = &listener.allowed_routes.namespaces;
    match allowed.from.as_deref().unwrap_or("Same") {
        "All" => true,
        "Same" => route.meta.namespace == gateway.meta.namespace,
        "Selector" => namespaces.get(&route.meta.namespace).is_some_and(|labels| allowed.selector.matches(labels)),
        _ => false,
    }
}
