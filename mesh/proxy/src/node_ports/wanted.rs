//! Which ports of the node are whose: nothing but a look at Services.
//!
//! What the API server gives out (node ports, and those for health checks) has each number once. The ports of balancers are what
//! people have written, so that several Services may want the same: then the one that has it keeps it, and else the oldest has it, on
//! every node.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::sync::Arc;

use coracle_discovery::{Protocol, Service, Snapshot};

use crate::opening::Had;
use crate::places::Key;

/// Ports that a node opens as a balancer. Those of the newest Services are left out beyond it: all that a node says of them is an
/// annotation of its object, which is bounded.
const BALANCED_MAX: usize = 1000;
/// Those of one namespace: it leaves as many for others.
const BALANCED_SHARE_MAX: usize = BALANCED_MAX / 2;

/// What a port is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// The Service, at every node by the number that it was given.
    NodePort,
    /// The Service, by its own number.
    Balancer,
    /// To say whether the node has endpoints of its own.
    HealthCheck,
}

/// The Service that a port belongs to, and which of its ports it is.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub service: Arc<Service>,
    /// For a health check, any.
    pub at: usize,
    pub purpose: Purpose,
}

impl Target {
    /// Whether this client may connect.
    pub fn lets_in(&self, client: IpAddr) -> bool {
        let balanced = self.service.balanced.as_ref().filter(|_| self.purpose == Purpose::Balancer);
        balanced.is_none_or(|balanced| balanced.lets_in(client))
    }

    /// Whether it is a port of a balancer that no node has had for the Service.
    pub fn is_new(&self, key: Key, had: &Had) -> bool {
        let balanced = self.service.balanced.as_ref().filter(|_| self.purpose == Purpose::Balancer);
        balanced.is_some_and(|balanced| !balanced.held.contains(&key) && !had.has(&self.service, key))
    }
}

/// Why a Service does not get a port of its own.
#[derive(Debug, Clone)]
pub(super) enum Refused {
    /// It is this one's.
    TakenBy(Arc<Service>),
    /// There are too many.
    TooMany,
}

/// All ports that are wanted.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    pub ports: HashMap<Key, Target>,
    /// Those that Services do not get.
    pub refused: Vec<(Target, Key, Refused)>,
}

impl Wanted {
    /// `has` says whether this node listens at a port as a Service's balancer, `had` whether it did in an earlier life.
    pub fn of(snapshot: &Snapshot, has: impl Fn(&Service, Key) -> bool, had: &Had) -> Wanted {
        Wanted::within(snapshot.services(), has, had, BALANCED_MAX, BALANCED_SHARE_MAX)
    }

    fn within<'a>(
        services: impl Iterator<Item = &'a Arc<Service>>,
        has: impl Fn(&Service, Key) -> bool,
        had: &Had,
        balanced_max: usize,
        share_max: usize,
    ) -> Wanted {
        let mut wants: Vec<(Rank, Key, Target)> = Vec::new();
        for service in services {
            let target = |at, purpose| Target { service: service.clone(), at, purpose };
            for (at, port) in service.ports.iter().enumerate() {
                if let Some(number) = port.node_port {
                    wants.push((Rank::NodePort, (number, port.protocol), target(at, Purpose::NodePort)));
                }
                if let Some(balanced) = &service.balanced {
                    let key = (port.port, port.protocol);
                    let rank = if has(service, key) {
                        Rank::Here
                    } else if balanced.held.contains(&key) || had.has(service, key) {
                        Rank::Held
                    } else {
                        Rank::New
                    };
                    wants.push((rank, key, target(at, Purpose::Balancer)));
                }
            }
            if let Some(number) = service.health_port {
                wants.push((Rank::NodePort, (number, Protocol::Tcp), target(0, Purpose::HealthCheck)));
            }
        }
        let order = |(rank, _, Target { service, at, .. }): &(Rank, Key, Target)| {
            // Of one age by uid, which nobody chooses.
            (*rank, service.created, service.uid.clone(), service.namespace.clone(), service.name.clone(), *at)
        };
        wants.sort_by_cached_key(order);
        let mut wanted = Wanted::default();
        let mut opened = 0;
        let mut shares: HashMap<Arc<str>, usize> = HashMap::new();
        for (_, key, target) in wants {
            let is_balancer = target.purpose == Purpose::Balancer;
            let share = shares.entry(target.service.namespace.clone()).or_default();
            let refused = match wanted.ports.entry(key) {
                Entry::Occupied(holder) => Refused::TakenBy(holder.get().service.clone()),
                Entry::Vacant(_) if is_balancer && (opened >= balanced_max || *share >= share_max) => Refused::TooMany,
                Entry::Vacant(place) => {
                    opened += usize::from(is_balancer);
                    *share += usize::from(is_balancer);
                    place.insert(target);
                    continue;
                }
            };
            wanted.refused.push((target, key, refused));
        }
        wanted
    }
}

/// Who goes first where several want a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// A balancer's that this node has for the Service.
    Here,
    /// One that nodes had for it.
    Held,
    /// A node port, or one for health checks.
    NodePort,
    /// A balancer's.
    New,
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use coracle_discovery::{Balanced, Port, ServiceKind, Traffic};

    use super::*;

    /// A Service that was made at this second, with a port at nodes or none, for balancers or not.
    fn service(name: &str, created: i64, ports: &[(u16, Option<u16>)], is_balanced: bool) -> Arc<Service> {
        let port = |(port, node_port): &(u16, Option<u16>)| Port {
            name: String::new(),
            port: *port,
            node_port: *node_port,
            protocol: Protocol::Tcp,
            ready: [].into(),
            leaving: [].into(),
        };
        Arc::new(Service {
            namespace: "n".into(),
            name: name.into(),
            // Names and uids are in different orders.
            uid: name.chars().rev().collect::<String>().into(),
            created,
            kind: ServiceKind::LoadBalancer,
            inside: Traffic::Cluster,
            outside: Traffic::Cluster,
            balanced: is_balanced.then(|| Balanced { ranges: None, held: HashSet::new() }),
            health_port: (name == "healthy").then_some(32_000),
            cluster_ip: None,
            external_name: None,
            ports: ports.iter().map(port).collect(),
            activates: false,
            affinity: None,
            ready: [].into(),
            hosts: HashMap::new(),
        })
    }

    #[test]
    fn who_is_older_has_the_port_and_ports_of_nodes_go_before() {
        let a = || service("a", 2, &[(80, Some(30_080)), (443, None)], true);
        for (services, opened, refused) in [
            (vec![a()], vec!["30080 a NodePort", "443 a Balancer", "80 a Balancer"], vec![]),
            // Another class, or another type.
            (vec![service("x", 1, &[(80, None)], false)], vec![], vec![]),
            (
                vec![a(), service("b", 1, &[(80, None)], true)],
                vec!["30080 a NodePort", "443 a Balancer", "80 b Balancer"],
                vec!["a 80 TakenBy b"],
            ),
            (
                vec![service("b", 2, &[(80, None)], true), a()],
                vec!["30080 a NodePort", "443 a Balancer", "80 a Balancer"],
                vec!["b 80 TakenBy a"],
            ),
            // Of one age by uid, whatever the name.
            (
                vec![service("az", 1, &[(80, None)], true), service("ba", 1, &[(80, None)], true)],
                vec!["80 ba Balancer"],
                vec!["az 80 TakenBy ba"],
            ),
            (
                vec![service("old", 1, &[(30_080, None)], true), service("new", 9, &[(80, Some(30_080))], false)],
                vec!["30080 new NodePort"],
                vec!["old 30080 TakenBy new"],
            ),
            (
                vec![service("healthy", 9, &[(80, None)], true), service("x", 1, &[(32_000, None)], true)],
                vec!["32000 healthy HealthCheck", "80 healthy Balancer"],
                vec!["x 32000 TakenBy healthy"],
            ),
            (
                vec![service("a", 1, &[(1, None), (2, None)], true), service("b", 2, &[(3, None), (4, None)], true)],
                vec!["1 a Balancer", "2 a Balancer", "3 b Balancer"],
                vec!["b 4 TooMany"],
            ),
        ] {
            let wanted = Wanted::within(services.iter(), |_, _| false, &Had::default(), 3, 3);
            let mut found: Vec<String> = wanted
                .ports
                .iter()
                .map(|((number, _), target)| format!("{number} {} {:?}", target.service.name, target.purpose))
                .collect();
            found.sort();
            assert_eq!(found, opened);
            let told: Vec<String> = wanted
                .refused
                .iter()
                .map(|(Target { service, .. }, (number, _), why)| match why {
                    Refused::TakenBy(holder) => format!("{} {number} TakenBy {}", service.name, holder.name),
                    Refused::TooMany => format!("{} {number} TooMany", service.name),
                })
                .collect();
            assert_eq!(told, refused);
        }
    }

    #[test]
    fn who_has_a_port_keeps_it() {
        let young = || service("young", 9, &[(443, None), (30_080, None)], true);
        let others = [service("old", 1, &[(443, None)], true), service("np", 1, &[(80, Some(30_080))], false)];
        let holders = |services: &[Arc<Service>], is_here: bool| {
            let has = |service: &Service, _| is_here && &*service.name == "young";
            let wanted = Wanted::within(services.iter(), has, &Had::default(), 9, 9);
            [443, 30_080].map(|port| wanted.ports[&(port, Protocol::Tcp)].service.name.to_string())
        };
        let all = |young: Arc<Service>| [&others[..], &[young][..]].concat();
        assert_eq!(holders(&all(young()), false), ["old", "np"]);
        assert_eq!(holders(&all(young()), true), ["young", "young"]);
        let mut told = Arc::into_inner(young()).unwrap();
        let held = [(443, Protocol::Tcp), (30_080, Protocol::Tcp)].into();
        told.balanced = Some(Balanced { ranges: None, held });
        assert_eq!(holders(&all(Arc::new(told)), false), ["young", "young"]);
    }

    #[test]
    fn a_namespace_leaves_ports_for_others() {
        let mut other = Arc::into_inner(service("b", 2, &[(4, None), (5, None)], true)).unwrap();
        other.namespace = "other".into();
        let services = [service("a", 1, &[(1, None), (2, None), (3, None)], true), Arc::new(other)];
        let wanted = Wanted::within(services.iter(), |_, _| false, &Had::default(), 3, 2);
        let mut opened: Vec<u16> = wanted.ports.keys().map(|key| key.0).collect();
        opened.sort_unstable();
        let refused: Vec<u16> = wanted.refused.iter().map(|(_, key, _)| key.0).collect();
        assert_eq!((opened, refused), (vec![1, 2, 4], vec![3, 5]));
    }

    #[test]
    fn ranges_are_for_the_port_of_the_balancer_alone() {
        let mut of = Arc::into_inner(service("a", 1, &[(80, Some(30_080))], true)).unwrap();
        let ranges = coracle_policy::Block::of_ranges(["10.0.0.0/8"]);
        of.balanced = Some(Balanced { ranges: Some(ranges), held: HashSet::new() });
        let of = Arc::new(of);
        for (purpose, client, expected) in [
            (Purpose::Balancer, "10.1.2.3", true),
            (Purpose::Balancer, "192.0.2.1", false),
            (Purpose::NodePort, "192.0.2.1", true),
            (Purpose::HealthCheck, "192.0.2.1", true),
        ] {
            let target = Target { service: of.clone(), at: 0, purpose };
            assert_eq!(target.lets_in(client.parse().unwrap()), expected, "{purpose:?} {client}");
        }
    }
}
