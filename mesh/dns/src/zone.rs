//! What the names of the cluster's domain mean, as `dns-specification.md` of kubernetes/dns says it, and addresses of Services in
//! the reverse zones.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use coracle_discovery::{Discovery, Port, Protocol, Resolved, Service, Snapshot};
use rand::seq::SliceRandom;

/// The zone, as labels.
const ZONE: [&str; 2] = ["cluster", "local"];
/// Answers to one question; of more, other ones each time.
const ANSWERS_MAX: usize = 1000;
/// How many names that stand for each other are followed within the zone.
const ALIASES_MAX: usize = 8;

/// Where a node serves Services at ports of its own.
pub trait Served: Send + Sync {
    /// The address of those ports.
    fn address(&self) -> IpAddr;
    /// The number of this one's port there; `None` where it is not served.
    fn number(&self, service: &Service, port: &Port) -> Option<u16>;
    /// Whether an address is in the ranges of the cluster, for whose reverse zones it speaks.
    fn is_clusters(&self, address: IpAddr) -> bool;
}

/// What is known of names.
#[derive(Clone)]
pub struct Zone {
    discovery: Discovery,
    served: Arc<dyn Served>,
}

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    A,
    Aaaa,
    Srv,
    Ptr,
    Cname,
    Soa,
    Ns,
    /// What there is, of the kinds that are told.
    Any,
    Other,
}

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Data {
    Address(IpAddr),
    Cname(String),
    Srv {
        port: u16,
        target: String,
    },
    Ptr(String),
    /// Of the zone that is named.
    Soa,
    Ns(String),
}

/// An answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Nothing that is known here.
    Refused,
    /// It is not known yet.
    Failed,
    /// There is no such name in this zone.
    NoName(String),
    /// There is, and these are its records, by their names; when there are none of the kind, the zone says so.
    Records { zone: String, records: Vec<(String, Data)>, additional: Vec<(String, Data)> },
}

impl Zone {
    /// The zone of a cluster.
    pub fn new(discovery: Discovery, served: Arc<dyn Served>) -> Zone {
        Zone { discovery, served }
    }

    /// What is known of a name, which has these labels, in whatever case.
    pub(crate) fn ask(&self, labels: &[&str], kind: Kind) -> Answer {
        let snapshot = self.discovery.snapshot();
        ask(&snapshot, &*self.served, labels, kind)
    }
}

/// The same at one moment.
pub(crate) fn ask(snapshot: &Snapshot, served: &dyn Served, labels: &[&str], kind: Kind) -> Answer {
    let labels: Vec<String> = labels.iter().map(|label| label.to_ascii_lowercase()).collect();
    let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
    if let Some(answer) = reverse(snapshot, served, &labels, kind) {
        return answer;
    }
    let Some(within) = labels.strip_suffix(&ZONE[..]) else { return Answer::Refused };
    // Until it was heard of once nothing is said to be missing.
    if snapshot.generation == 0 {
        return Answer::Failed;
    }
    let (name, zone) = (labels.join("."), ZONE.join("."));
    let of_name = |data: Vec<Data>| Answer::Records {
        zone: zone.clone(),
        records: data.into_iter().map(|data| (name.clone(), data)).collect(),
        additional: Vec::new(),
    };
    match *within {
        [] => of_name(apex(kind, &zone)),
        // Whether there is such a namespace, or one with names, is not told; a resolver may ask for each label (RFC 9156).
        ["svc" | "pod"] | [_, "svc" | "pod"] => of_name(Vec::new()),
        [port, protocol, service, namespace, "svc"] if port.starts_with('_') && protocol.starts_with('_') => {
            match snapshot.service(namespace, service) {
                Some(service) if service.external_name.is_none() => {
                    services(snapshot, served, service, &port[1..], &protocol[1..], kind, &name)
                }
                _ => Answer::NoName(zone),
            }
        }
        ["_tcp" | "_udp", service, namespace, "svc"] if snapshot.service(namespace, service).is_some() => {
            of_name(Vec::new())
        }
        _ => match snapshot.meaning(&name) {
            Some(meaning) => {
                let mut records = Vec::new();
                follow(snapshot, served, name, meaning, kind, &mut records);
                Answer::Records { zone, records, additional: Vec::new() }
            }
            None => Answer::NoName(zone),
        },
    }
}

fn apex(kind: Kind, zone: &str) -> Vec<Data> {
    let mut data = Vec::new();
    if matches!(kind, Kind::Soa | Kind::Any) {
        data.push(Data::Soa);
    }
    if matches!(kind, Kind::Ns | Kind::Any) {
        data.push(Data::Ns(server(zone)));
    }
    data
}

/// Who speaks for a zone; a name that nobody has to look up.
pub(crate) fn server(zone: &str) -> String {
    format!("ns.dns.{zone}")
}

/// The records of a name, and of those within the zone for which it stands.
fn follow(
    snapshot: &Snapshot,
    served: &dyn Served,
    mut name: String,
    mut meaning: Resolved,
    kind: Kind,
    records: &mut Vec<(String, Data)>,
) {
    for _ in 0..=ALIASES_MAX {
        let Resolved::External(other) = meaning else {
            let addresses = addresses(served, &meaning);
            let of_kind = addresses.into_iter().filter(|address| is_of(kind, *address));
            records.extend(of_kind.map(|address| (name.clone(), Data::Address(address))));
            return;
        };
        let other = other.trim_end_matches('.').to_ascii_lowercase();
        records.push((name, Data::Cname(other.clone())));
        // Who asks for the alias itself gets that.
        let next = if kind == Kind::Cname { None } else { snapshot.meaning(&other) };
        match next {
            Some(next) => (name, meaning) = (other, next),
            None => return,
        }
    }
}

fn is_of(kind: Kind, address: IpAddr) -> bool {
    match kind {
        Kind::A => address.is_ipv4(),
        Kind::Aaaa => address.is_ipv6(),
        Kind::Any => true,
        Kind::Srv | Kind::Ptr | Kind::Cname | Kind::Soa | Kind::Ns | Kind::Other => false,
    }
}

/// Those of a name that is no alias: several come in a new order each time, since most clients take the first.
fn addresses(served: &dyn Served, meaning: &Resolved) -> Vec<IpAddr> {
    match meaning {
        Resolved::Service(service) => match is_served(served, service) {
            true => vec![served.address()],
            false => service.cluster_ip.into_iter().collect(),
        },
        Resolved::Addresses(addresses) => {
            let mut addresses = addresses.clone();
            let (some, _) = addresses.partial_shuffle(&mut rand::rng(), ANSWERS_MAX);
            some.to_vec()
        }
        Resolved::External(_) => Vec::new(),
    }
}

fn is_served(served: &dyn Served, service: &Service) -> bool {
    service.ports.iter().any(|port| served.number(service, port).is_some())
}

/// The records of `_PORT._PROTOCOL.SERVICE`.
fn services(
    snapshot: &Snapshot,
    served: &dyn Served,
    service: &Arc<Service>,
    port: &str,
    protocol: &str,
    kind: Kind,
    name: &str,
) -> Answer {
    let zone = ZONE.join(".");
    let protocol = match protocol {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "sctp" => Protocol::Sctp,
        _ => return Answer::NoName(zone),
    };
    let found = service.ports.iter().find(|found| found.protocol == protocol && found.name == port);
    let Some(found) = found.filter(|found| !found.name.is_empty()) else { return Answer::NoName(zone) };
    let (mut records, mut additional) = (Vec::new(), Vec::new());
    if matches!(kind, Kind::Srv | Kind::Any) {
        let own = format!("{}.{}.svc.{zone}", service.name, service.namespace);
        let mut targets: Vec<(u16, String, Vec<IpAddr>)> = Vec::new();
        match service.cluster_ip {
            Some(address) => {
                let served_at = is_served(served, service).then(|| served.address());
                // A port that this node does not serve is not at the address that the name has here.
                let number = if served_at.is_some() { served.number(service, found) } else { Some(found.port) };
                targets.extend(number.map(|number| (number, own, vec![served_at.unwrap_or(address)])));
            }
            None => {
                let hosts = service.hosts.iter();
                let hosts = hosts.flat_map(|(host, of)| of.iter().map(move |address| (*address, host)));
                let hosts: HashMap<IpAddr, &Arc<str>> = hosts.collect();
                let mut endpoints: Vec<_> = found.ready.iter().collect();
                let (some, _) = endpoints.partial_shuffle(&mut rand::rng(), ANSWERS_MAX);
                for endpoint in some {
                    let target = match (hosts.get(&endpoint.address), endpoint.address) {
                        (Some(host), _) => format!("{host}.{own}"),
                        // By a name that means this address and no other.
                        (None, IpAddr::V4(v4)) => {
                            format!("{}.{}.pod.{zone}", v4.to_string().replace('.', "-"), service.namespace)
                        }
                        (None, IpAddr::V6(_)) => continue,
                    };
                    targets.push((endpoint.port, target, vec![endpoint.address]));
                }
            }
        }
        // Several endpoints may have one name.
        let mut told = HashSet::new();
        for (port, target, addresses) in targets {
            // What does not mean anything to whoever asks next is not told.
            if snapshot.meaning(&target).is_none() {
                continue;
            }
            additional.extend(addresses.into_iter().map(|address| (target.clone(), Data::Address(address))));
            if told.insert((port, target.clone())) {
                records.push((name.to_owned(), Data::Srv { port, target }));
            }
        }
    }
    Answer::Records { zone, records, additional }
}

/// What is known of a name in the reverse zones; `None` when it is in none of them.
fn reverse(snapshot: &Snapshot, served: &dyn Served, labels: &[&str], kind: Kind) -> Option<Answer> {
    let (digits, address) = match labels {
        [digits @ .., "in-addr", "arpa"] => (digits, octets(digits)),
        [digits @ .., "ip6", "arpa"] => (digits, nibbles(digits)),
        _ => return None,
    };
    // An address in whole: for its range nobody speaks but the cluster.
    let Some(address) = address.filter(|address| served.is_clusters(*address)) else { return Some(Answer::Refused) };
    if snapshot.generation == 0 {
        return Some(Answer::Failed);
    }
    // The smallest zone that is the cluster's as a whole: the network of the first two digits, or of 32 bits.
    let of_zone = if address.is_ipv4() { 2 } else { 8 };
    let zone = labels[digits.len() - of_zone..].join(".");
    let Some(service) = snapshot.by_address(address) else { return Some(Answer::NoName(zone)) };
    let mut records = Vec::new();
    if matches!(kind, Kind::Ptr | Kind::Any) {
        let name = format!("{}.{}.svc.{}", service.name, service.namespace, ZONE.join("."));
        records.push((labels.join("."), Data::Ptr(name)));
    }
    Some(Answer::Records { zone, records, additional: Vec::new() })
}

fn octets(labels: &[&str]) -> Option<IpAddr> {
    let [d, c, b, a] = labels else { return None };
    let octet = |label: &str| label.parse::<u8>().ok().filter(|octet| octet.to_string() == label);
    Some(Ipv4Addr::new(octet(a)?, octet(b)?, octet(c)?, octet(d)?).into())
}

fn nibbles(labels: &[&str]) -> Option<IpAddr> {
    let mut address = 0_u128;
    for label in labels.iter().rev() {
        let [digit] = label.as_bytes() else { return None };
        address = address << 4 | u128::from(char::from(*digit).to_digit(16)?);
    }
    (labels.len() == 32).then(|| Ipv6Addr::from(address).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use coracle_discovery::{Endpoint, ServiceKind, Traffic};

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn port(name: &str, port: u16, node_port: Option<u16>, protocol: Protocol, ready: &[&str]) -> Port {
        let endpoint = |at: &&str| Endpoint { address: address(at), port: port + 8000, node: None };
        let ready: Arc<[Endpoint]> = ready.iter().map(endpoint).collect();
        Port { name: name.to_owned(), port, node_port, protocol, ready, leaving: Arc::default() }
    }

    fn service(name: &str, cluster_ip: Option<&str>, ports: Vec<Port>) -> Service {
        let all = ports.iter().flat_map(|port| port.ready.iter().map(|endpoint| endpoint.address));
        Service {
            namespace: "n".into(),
            name: name.into(),
            uid: "".into(),
            created: 0,
            kind: ServiceKind::ClusterIp,
            inside: Traffic::Cluster,
            outside: Traffic::Cluster,
            balanced: None,
            health_port: None,
            cluster_ip: cluster_ip.map(address),
            external_name: None,
            activates: false,
            affinity: None,
            ready: all.collect(),
            hosts: HashMap::new(),
            ports,
        }
    }

    fn alias(name: &str, of: &str) -> Service {
        let mut alias = service(name, None, Vec::new());
        (alias.kind, alias.external_name) = (ServiceKind::ExternalName, Some(of.to_owned()));
        alias
    }

    struct Node;

    impl Served for Node {
        fn address(&self) -> IpAddr {
            address("192.0.2.1")
        }

        fn number(&self, _: &Service, port: &Port) -> Option<u16> {
            port.node_port
        }

        fn is_clusters(&self, at: IpAddr) -> bool {
            matches!(at, IpAddr::V4(v4) if v4.octets()[..2] == [10, 96])
                || matches!(at, IpAddr::V6(v6) if v6.segments()[0] == 0xfd00)
        }
    }

    fn world() -> Snapshot {
        let mut named =
            service("sets", None, vec![port("web", 80, None, Protocol::Tcp, &["10.244.0.2", "10.244.0.3"])]);
        named.hosts.insert("sets-0".into(), vec![address("10.244.0.2")]);
        let mut twins =
            service("twins", None, vec![port("web", 80, None, Protocol::Tcp, &["10.244.0.2", "10.244.0.3"])]);
        twins.hosts.insert("twin".into(), vec![address("10.244.0.2"), address("10.244.0.3")]);
        Snapshot::of([
            service("db", Some("10.96.0.9"), vec![port("sql", 5432, None, Protocol::Tcp, &["10.244.0.2"])]),
            service("six", Some("fd00::9"), vec![port("", 80, None, Protocol::Tcp, &[])]),
            service(
                "open",
                Some("10.96.0.10"),
                vec![
                    port("http", 80, Some(30_080), Protocol::Tcp, &["10.244.0.2"]),
                    port("inner", 81, None, Protocol::Tcp, &["10.244.0.2"]),
                    port("dns", 53, Some(30_053), Protocol::Udp, &["10.244.0.2"]),
                ],
            ),
            named,
            twins,
            service("empty", None, vec![port("web", 80, None, Protocol::Tcp, &[])]),
            alias("outside", "Example.com."),
            alias("inside", "db.n.svc.cluster.local"),
            alias("round", "round.n.svc.cluster.local"),
        ])
    }

    /// The answer as one line.
    fn said(name: &str, kind: Kind) -> String {
        let labels: Vec<&str> = name.split('.').collect();
        let data = |(name, data): &(String, Data)| match data {
            Data::Address(address) => format!("{name} {address}"),
            Data::Cname(other) | Data::Ptr(other) | Data::Ns(other) => format!("{name} -> {other}"),
            Data::Srv { port, target } => format!("{name} {port} {target}"),
            Data::Soa => format!("{name} soa"),
        };
        match ask(&world(), &Node, &labels, kind) {
            Answer::Refused => "refused".to_owned(),
            Answer::Failed => "failed".to_owned(),
            Answer::NoName(zone) => format!("none in {zone}"),
            Answer::Records { zone, records, additional } if records.is_empty() && additional.is_empty() => {
                format!("nothing in {zone}")
            }
            Answer::Records { records, additional, .. } => {
                let mut all: Vec<String> = records.iter().map(data).collect();
                all.sort();
                let mut more: Vec<String> = additional.iter().map(data).collect();
                more.sort();
                all.extend(more.into_iter().map(|more| format!("({more})")));
                all.join(", ")
            }
        }
    }

    const NOTHING: &str = "nothing in cluster.local";
    const NONE: &str = "none in cluster.local";

    #[test]
    fn names_mean_what_they_mean_to_pods_and_what_is_served_here_is_where_it_is_served() {
        for (name, kind, expected) in [
            ("db.n.svc.cluster.local", Kind::A, "db.n.svc.cluster.local 10.96.0.9"),
            ("DB.N.Svc.Cluster.LOCAL", Kind::A, "db.n.svc.cluster.local 10.96.0.9"),
            ("db.n.svc.cluster.local", Kind::Aaaa, NOTHING),
            ("db.n.svc.cluster.local", Kind::Other, NOTHING),
            ("six.n.svc.cluster.local", Kind::Aaaa, "six.n.svc.cluster.local fd00::9"),
            ("open.n.svc.cluster.local", Kind::A, "open.n.svc.cluster.local 192.0.2.1"),
            (
                "sets.n.svc.cluster.local",
                Kind::A,
                "sets.n.svc.cluster.local 10.244.0.2, sets.n.svc.cluster.local 10.244.0.3",
            ),
            ("sets-0.sets.n.svc.cluster.local", Kind::A, "sets-0.sets.n.svc.cluster.local 10.244.0.2"),
            ("sets-9.sets.n.svc.cluster.local", Kind::A, NONE),
            (
                "twin.twins.n.svc.cluster.local",
                Kind::A,
                "twin.twins.n.svc.cluster.local 10.244.0.2, twin.twins.n.svc.cluster.local 10.244.0.3",
            ),
            ("empty.n.svc.cluster.local", Kind::A, NOTHING),
            ("10-244-0-3.n.pod.cluster.local", Kind::A, "10-244-0-3.n.pod.cluster.local 10.244.0.3"),
            ("outside.n.svc.cluster.local", Kind::A, "outside.n.svc.cluster.local -> example.com"),
            (
                "inside.n.svc.cluster.local",
                Kind::A,
                "db.n.svc.cluster.local 10.96.0.9, inside.n.svc.cluster.local -> db.n.svc.cluster.local",
            ),
            ("inside.n.svc.cluster.local", Kind::Cname, "inside.n.svc.cluster.local -> db.n.svc.cluster.local"),
            ("none.n.svc.cluster.local", Kind::A, NONE),
            ("a.cluster.local", Kind::A, NONE),
            // A resolver may ask for each label.
            ("n.svc.cluster.local", Kind::A, NOTHING),
            ("svc.cluster.local", Kind::A, NOTHING),
            ("_tcp.db.n.svc.cluster.local", Kind::A, NOTHING),
            ("_tcp.none.n.svc.cluster.local", Kind::A, NONE),
            ("cluster.local", Kind::A, NOTHING),
            ("cluster.local", Kind::Soa, "cluster.local soa"),
            ("cluster.local", Kind::Ns, "cluster.local -> ns.dns.cluster.local"),
            ("local", Kind::A, "refused"),
            ("db", Kind::A, "refused"),
            ("db.n.svc", Kind::A, "refused"),
            ("example.com", Kind::A, "refused"),
        ] {
            assert_eq!(said(name, kind), expected, "{name} {kind:?}");
        }
        assert!(matches!(
            ask(&Snapshot::default(), &Node, &["db", "n", "svc", "cluster", "local"], Kind::A),
            Answer::Failed
        ));
        // It ends.
        assert_eq!(said("round.n.svc.cluster.local", Kind::A).matches("->").count(), ALIASES_MAX + 1);
    }

    #[test]
    fn ports_are_told_by_their_names_where_they_are() {
        let (db, open, sets) = ("db.n.svc.cluster.local", "open.n.svc.cluster.local", "sets.n.svc.cluster.local");
        let twins = "twins.n.svc.cluster.local";
        for (name, expected) in [
            (format!("_sql._tcp.{db}"), format!("_sql._tcp.{db} 5432 {db}, ({db} 10.96.0.9)")),
            (format!("_sql._udp.{db}"), NONE.to_owned()),
            (format!("_none._tcp.{db}"), NONE.to_owned()),
            (format!("_http._tcp.{open}"), format!("_http._tcp.{open} 30080 {open}, ({open} 192.0.2.1)")),
            (format!("_dns._udp.{open}"), format!("_dns._udp.{open} 30053 {open}, ({open} 192.0.2.1)")),
            // Nobody reaches that one where the name leads.
            (format!("_inner._tcp.{open}"), NOTHING.to_owned()),
            (
                format!("_web._tcp.{sets}"),
                format!(
                    "_web._tcp.{sets} 8080 10-244-0-3.n.pod.cluster.local, _web._tcp.{sets} 8080 sets-0.{sets}, \
                     (10-244-0-3.n.pod.cluster.local 10.244.0.3), (sets-0.{sets} 10.244.0.2)"
                ),
            ),
            (
                format!("_web._tcp.{twins}"),
                format!("_web._tcp.{twins} 8080 twin.{twins}, (twin.{twins} 10.244.0.2), (twin.{twins} 10.244.0.3)"),
            ),
        ] {
            assert_eq!(said(&name, Kind::Srv), expected, "{name}");
        }
        assert_eq!(said(&format!("_sql._tcp.{db}"), Kind::A), NOTHING);
    }

    #[test]
    fn an_address_of_the_cluster_has_a_name_and_others_are_nobodys_affair() {
        let six = "9.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa";
        for (name, kind, expected) in [
            ("9.0.96.10.in-addr.arpa", Kind::Ptr, "9.0.96.10.in-addr.arpa -> db.n.svc.cluster.local".to_owned()),
            ("9.0.96.10.in-addr.arpa", Kind::A, "nothing in 96.10.in-addr.arpa".to_owned()),
            ("77.0.96.10.in-addr.arpa", Kind::Ptr, "none in 96.10.in-addr.arpa".to_owned()),
            ("1.2.0.192.in-addr.arpa", Kind::Ptr, "refused".to_owned()),
            ("96.10.in-addr.arpa", Kind::Ptr, "refused".to_owned()),
            ("09.0.96.10.in-addr.arpa", Kind::Ptr, "refused".to_owned()),
            ("9.0.0.96.10.in-addr.arpa", Kind::Ptr, "refused".to_owned()),
            ("in-addr.arpa", Kind::Ptr, "refused".to_owned()),
            (six, Kind::Ptr, format!("{six} -> six.n.svc.cluster.local")),
            (&six[2..], Kind::Ptr, "refused".to_owned()),
            (&six.replace('d', "g"), Kind::Ptr, "refused".to_owned()),
        ] {
            assert_eq!(said(name, kind), expected, "{name}");
        }
    }
}
