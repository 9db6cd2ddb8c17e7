//! Services and slices as they are known, and the snapshot made of them.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use coracle_policy::Protocol;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;

use crate::balanced;
use crate::snapshot::{ACTIVATES, Endpoint, Port, Service, ServiceKey, ServiceKind, Snapshot, Traffic};

/// Label by which a slice names its Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// What a watch said.
pub(crate) enum Change {
    ServicesInit,
    Service(Box<core::Service>),
    ServiceGone(Box<core::Service>),
    ServicesListed,
    SlicesInit,
    Slice(Box<discovery::EndpointSlice>),
    SliceGone(Box<discovery::EndpointSlice>),
    SlicesListed,
}

/// What is kept of a slice.
struct Slice {
    service: ServiceKey,
    /// Port name, port number.
    ports: Vec<(String, u16)>,
    endpoints: Vec<Serving>,
}

/// An address of a slice that answers.
struct Serving {
    address: IpAddr,
    /// Not ready any more, since it ends.
    is_leaving: bool,
    node: Option<Arc<str>>,
    host: Option<Arc<str>>,
}

#[derive(Default)]
pub(crate) struct Table {
    specs: HashMap<ServiceKey, Box<core::Service>>,
    slices: HashMap<ServiceKey, Slice>,
    by_service: HashMap<ServiceKey, HashSet<ServiceKey>>,
    dirty: HashSet<ServiceKey>,
    /// Keys of a list that is being read again: what is missing in it is gone.
    relisted_services: Option<HashSet<ServiceKey>>,
    relisted_slices: Option<HashSet<ServiceKey>>,
    services_listed: bool,
    slices_listed: bool,
}

impl Table {
    pub fn is_listed(&self) -> bool {
        // While a list is read again all that was known stays, until what is missing in it goes at its end.
        self.services_listed && self.slices_listed
    }

    pub fn take(&mut self, change: Change) {
        match change {
            Change::ServicesInit => self.relisted_services = Some(HashSet::new()),
            Change::Service(mut service) => {
                let key = key(&service.metadata);
                // As large as all the rest, and looked at by nobody.
                service.metadata.managed_fields = None;
                if let Some(seen) = &mut self.relisted_services {
                    seen.insert(key.clone());
                }
                self.dirty.insert(key.clone());
                self.specs.insert(key, service);
            }
            Change::ServiceGone(service) => self.remove_service(&key(&service.metadata)),
            Change::ServicesListed => {
                self.services_listed = true;
                let seen = self.relisted_services.take().unwrap_or_default();
                let gone: Vec<ServiceKey> = self.specs.keys().filter(|key| !seen.contains(*key)).cloned().collect();
                gone.iter().for_each(|key| self.remove_service(key));
            }
            Change::SlicesInit => self.relisted_slices = Some(HashSet::new()),
            Change::Slice(slice) => {
                let key = key(&slice.metadata);
                if let Some(seen) = &mut self.relisted_slices {
                    seen.insert(key.clone());
                }
                self.remove_slice(&key);
                if let Some(slice) = read_slice(&slice) {
                    self.dirty.insert(slice.service.clone());
                    self.by_service.entry(slice.service.clone()).or_default().insert(key.clone());
                    self.slices.insert(key, slice);
                }
            }
            Change::SliceGone(slice) => self.remove_slice(&key(&slice.metadata)),
            Change::SlicesListed => {
                self.slices_listed = true;
                let seen = self.relisted_slices.take().unwrap_or_default();
                let gone: Vec<ServiceKey> = self.slices.keys().filter(|key| !seen.contains(*key)).cloned().collect();
                gone.iter().for_each(|key| self.remove_slice(key));
            }
        }
    }

    fn remove_service(&mut self, key: &ServiceKey) {
        self.specs.remove(key);
        self.dirty.insert(key.clone());
    }

    fn remove_slice(&mut self, key: &ServiceKey) {
        let Some(slice) = self.slices.remove(key) else { return };
        if let Some(slices) = self.by_service.get_mut(&slice.service) {
            slices.remove(key);
            if slices.is_empty() {
                self.by_service.remove(&slice.service);
            }
        }
        self.dirty.insert(slice.service);
    }

    /// The snapshot after `before`, in which only Services that changed are new: not those of which the same was said again, as in a list
    /// that is read anew.
    pub fn snapshot(&mut self, before: &Snapshot) -> Snapshot {
        let mut services = before.services.clone();
        let mut addresses = before.addresses.clone();
        let dirty = std::mem::take(&mut self.dirty);
        // All that was goes before anything comes: an address may pass from one Service to another.
        for key in &dirty {
            if let Some(address) = services.remove(key).and_then(|old| old.cluster_ip) {
                addresses.remove(&address);
            }
        }
        for key in dirty {
            let Some(spec) = self.specs.get(&key) else { continue };
            let slices = self.by_service.get(&key).into_iter().flatten().filter_map(|slice| self.slices.get(slice));
            let service = service(&key, spec, slices);
            let known = before.services.get(&key).filter(|known| ***known == service);
            let service = known.cloned().unwrap_or_else(|| Arc::new(service));
            if let Some(address) = service.cluster_ip {
                addresses.insert(address, service.clone());
            }
            services.insert(key, service);
        }
        Snapshot { generation: before.generation + 1, services, addresses }
    }
}

fn key(metadata: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) -> ServiceKey {
    let text = |value: &Option<String>| Arc::from(value.as_deref().unwrap_or_default());
    (text(&metadata.namespace), text(&metadata.name))
}

fn read_slice(slice: &discovery::EndpointSlice) -> Option<Slice> {
    let name = slice.metadata.labels.as_ref()?.get(SERVICE_NAME)?;
    let ports = slice.ports.iter().flatten();
    let ports = ports.filter_map(|port| Some((port.name.clone().unwrap_or_default(), u16::try_from(port.port?).ok()?)));
    let mut endpoints = Vec::new();
    for endpoint in slice.endpoints.iter().flatten() {
        // No condition means ready (EndpointConditions).
        let conditions = endpoint.conditions.clone().unwrap_or_default();
        let is_ready = conditions.ready.unwrap_or(true);
        let is_leaving = !is_ready && conditions.serving == Some(true) && conditions.terminating == Some(true);
        if !is_ready && !is_leaving {
            continue;
        }
        let node: Option<Arc<str>> = endpoint.node_name.as_deref().map(Arc::from);
        let host: Option<Arc<str>> = endpoint.hostname.as_deref().map(Arc::from);
        let addresses = endpoint.addresses.iter().filter_map(|address| address.parse().ok());
        endpoints.extend(addresses.map(|address| Serving {
            address,
            is_leaving,
            node: node.clone(),
            host: host.clone(),
        }));
    }
    let namespace = Arc::from(slice.metadata.namespace.as_deref().unwrap_or_default());
    Some(Slice { service: (namespace, Arc::from(name.as_str())), ports: ports.collect(), endpoints })
}

fn service<'a>(key: &ServiceKey, object: &core::Service, slices: impl Iterator<Item = &'a Slice>) -> Service {
    let spec = object.spec.clone().unwrap_or_default();
    let balanced = balanced::read(object);
    let slices: Vec<&Slice> = slices.collect();
    let ports = spec.ports.unwrap_or_default().into_iter().filter_map(|port| {
        let name = port.name.unwrap_or_default();
        Some(Port {
            port: u16::try_from(port.port).ok()?,
            node_port: port.node_port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0),
            protocol: Protocol::of(port.protocol.as_deref()),
            ready: answering(&slices, &name, false).into(),
            leaving: answering(&slices, &name, true).into(),
            name,
        })
    });
    let all_ready = || slices.iter().flat_map(|slice| &slice.endpoints).filter(|endpoint| !endpoint.is_leaving);
    let mut ready: Vec<IpAddr> = all_ready().map(|endpoint| endpoint.address).collect();
    ready.sort_unstable();
    ready.dedup();
    let mut hosts: HashMap<Arc<str>, Vec<IpAddr>> = HashMap::new();
    for endpoint in all_ready() {
        if let Some(host) = &endpoint.host {
            hosts.entry(host.clone()).or_default().push(endpoint.address);
        }
    }
    for addresses in hosts.values_mut() {
        addresses.sort_unstable();
        addresses.dedup();
    }
    let kind = match spec.type_.as_deref() {
        Some("NodePort") => ServiceKind::NodePort,
        Some("LoadBalancer") => ServiceKind::LoadBalancer,
        Some("ExternalName") => ServiceKind::ExternalName,
        _ => ServiceKind::ClusterIp,
    };
    // One that was an ExternalName once may have the field still, as in Kubernetes: it means nothing then.
    let external_name = spec.external_name.filter(|name| kind == ServiceKind::ExternalName && !name.is_empty());
    Service {
        namespace: key.0.clone(),
        name: key.1.clone(),
        uid: object.metadata.uid.as_deref().unwrap_or_default().into(),
        created: object.metadata.creation_timestamp.as_ref().map_or(i64::MAX, |time| time.0.as_second()),
        kind,
        inside: traffic(spec.internal_traffic_policy.as_deref()),
        outside: traffic(spec.external_traffic_policy.as_deref()),
        balanced,
        health_port: spec.health_check_node_port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0),
        cluster_ip: spec.cluster_ip.and_then(|address| address.parse().ok()),
        external_name,
        ports: ports.collect(),
        activates: object.metadata.annotations.as_ref().is_some_and(|said| said.contains_key(ACTIVATES)),
        affinity: affinity(spec.session_affinity.as_deref(), spec.session_affinity_config.as_ref()),
        ready: ready.into(),
        hosts,
    }
}

fn traffic(policy: Option<&str>) -> Traffic {
    match policy {
        Some("Local") => Traffic::Local,
        _ => Traffic::Cluster,
    }
}

/// Three hours where nothing is said, as the API server writes it.
const AFFINITY: Duration = Duration::from_secs(10_800);

fn affinity(said: Option<&str>, config: Option<&core::SessionAffinityConfig>) -> Option<Duration> {
    let timeout = config.and_then(|config| config.client_ip.as_ref()?.timeout_seconds);
    let timeout = timeout.and_then(|seconds| u64::try_from(seconds).ok()).map_or(AFFINITY, Duration::from_secs);
    (said == Some("ClientIP")).then_some(timeout)
}

/// Endpoints of the port of this name: the ready ones, or those that leave; sorted, each once.
fn answering(slices: &[&Slice], name: &str, is_leaving: bool) -> Vec<Endpoint> {
    let mut endpoints = Vec::new();
    for slice in slices {
        for (_, number) in slice.ports.iter().filter(|(found, _)| found == name) {
            let found = slice.endpoints.iter().filter(|endpoint| endpoint.is_leaving == is_leaving);
            endpoints.extend(found.map(|endpoint| Endpoint {
                address: endpoint.address,
                port: *number,
                node: endpoint.node.clone(),
            }));
        }
    }
    endpoints.sort_unstable();
    endpoints.dedup();
    endpoints
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Resolved;
    use serde_json::json;

    fn service(name: &str, cluster_ip: &str) -> Change {
        let object = json!({"metadata": {"name": name, "namespace": "n"}, "spec": {"clusterIP": cluster_ip, "ports": [
            {"name": "http", "port": 80, "nodePort": 30080}, {"name": "dns", "port": 53, "protocol": "UDP"}]}});
        Change::Service(serde_json::from_value(object).unwrap())
    }

    fn slice(name: &str, of: &str, endpoints: &[(&str, bool)]) -> Box<discovery::EndpointSlice> {
        let endpoints: Vec<_> = endpoints
            .iter()
            .map(
                |(address, ready)| json!({"addresses": [address], "conditions": {"ready": ready}, "hostname": "web-0"}),
            )
            .collect();
        serde_json::from_value(json!({"addressType": "IPv4", "endpoints": endpoints,
            "metadata": {"name": name, "namespace": "n", "labels": {SERVICE_NAME: of}},
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}]}))
        .unwrap()
    }

    fn ready(snapshot: &Snapshot, name: &str) -> Vec<String> {
        let service = snapshot.service("n", name).unwrap();
        service
            .port(80, Protocol::Tcp)
            .unwrap()
            .endpoints()
            .iter()
            .map(|e| format!("{}:{}", e.address, e.port))
            .collect()
    }

    #[test]
    fn follows_services_and_slices() {
        let mut table = Table::default();
        let begin = [Change::ServicesInit, service("web", "10.96.0.7"), Change::ServicesListed, Change::SlicesInit];
        begin.into_iter().for_each(|change| table.take(change));
        assert!(!table.is_listed());
        table.take(Change::Slice(slice(
            "s1",
            "web",
            &[("10.244.0.3", true), ("10.244.0.2", true), ("10.244.0.9", false)],
        )));
        table.take(Change::Slice(slice("s2", "web", &[("10.244.0.2", true)])));
        table.take(Change::SlicesListed);
        assert!(table.is_listed());
        let first = table.snapshot(&Snapshot::default());
        assert_eq!(ready(&first, "web"), ["10.244.0.2:8080", "10.244.0.3:8080"]);
        assert!(first.service("n", "web").unwrap().port(53, Protocol::Udp).unwrap().endpoints().is_empty());
        let web = first.by_address("10.96.0.7".parse().unwrap()).unwrap().clone();
        assert_eq!(first.resolve("web", "n"), Some(Resolved::Service(web.clone())));
        assert_eq!(first.resolve("web", "m"), None);

        table.take(service("other", "None"));
        table.take(Change::Slice(slice("s3", "other", &[("10.244.0.5", true)])));
        let second = table.snapshot(&first);
        assert!(Arc::ptr_eq(second.service("n", "web").unwrap(), &web), "what did not change is the same");
        table.take(service("web", "10.96.0.7"));
        let again = table.snapshot(&second);
        let by_address = again.by_address("10.96.0.7".parse().unwrap()).unwrap();
        assert!([again.service("n", "web").unwrap(), by_address].into_iter().all(|same| Arc::ptr_eq(same, &web)));
        let address = Resolved::Addresses(vec!["10.244.0.5".parse().unwrap()]);
        assert_eq!(second.resolve("other.n.svc.cluster.local", "x"), Some(address.clone()));
        assert_eq!(second.resolve("web-0.other.n", "x"), Some(address.clone()));
        // A host of a Service here is found before a Service of a namespace of that name.
        assert_eq!(second.resolve("web-0.other", "n"), Some(address));
        assert_eq!(second.resolve("web.n", "n"), Some(Resolved::Service(web.clone())));
        assert_eq!(second.resolve("web-0.other", "x"), None);
        // Pods of a Deployment that says a host name have it all.
        let both = ["10.244.0.2", "10.244.0.3"].map(|address| address.parse().unwrap());
        assert_eq!(second.resolve("web-0.web.n", "x"), Some(Resolved::Addresses(both.to_vec())));

        table.take(Change::SliceGone(slice("s1", "web", &[])));
        let third = table.snapshot(&second);
        assert_eq!(ready(&third, "web"), ["10.244.0.2:8080"]);

        // A new list without a Service: it is gone, and with it its address.
        [Change::ServicesInit, service("other", "None"), Change::ServicesListed]
            .into_iter()
            .for_each(|c| table.take(c));
        let fourth = table.snapshot(&third);
        assert!(fourth.service("n", "web").is_none() && fourth.by_address("10.96.0.7".parse().unwrap()).is_none());
    }

    fn listed(changes: impl IntoIterator<Item = Change>) -> (Table, Snapshot) {
        let mut table = Table::default();
        let lists = [Change::ServicesInit, Change::ServicesListed, Change::SlicesInit, Change::SlicesListed];
        lists.into_iter().chain(changes).for_each(|change| table.take(change));
        let snapshot = table.snapshot(&Snapshot::default());
        (table, snapshot)
    }

    #[test]
    fn while_a_list_is_read_again_what_the_other_tells_counts() {
        let (mut table, first) =
            listed([service("web", "10.96.0.7"), Change::Slice(slice("s", "web", &[("10.244.0.2", true)]))]);
        table.take(Change::ServicesInit);
        table.take(Change::Slice(slice("s", "web", &[("10.244.0.3", true)])));
        assert!(table.is_listed());
        let second = table.snapshot(&first);
        assert_eq!(ready(&second, "web"), ["10.244.0.3:8080"]);
        table.take(Change::ServicesListed);
        assert!(table.snapshot(&second).service("n", "web").is_none());
    }

    #[test]
    fn an_external_name_counts_for_that_kind_only() {
        for (kind, is_external) in [("ExternalName", true), ("ClusterIP", false)] {
            let spec = json!({"type": kind, "clusterIP": "10.96.0.7", "externalName": "db.example"});
            let object = json!({"metadata": {"name": "db", "namespace": "n"}, "spec": spec});
            let (_, snapshot) = listed([Change::Service(serde_json::from_value(object).unwrap())]);
            let resolved = snapshot.resolve("db", "n").unwrap();
            assert_eq!(matches!(resolved, Resolved::External(_)), is_external, "{kind}: {resolved:?}");
        }
    }

    #[test]
    fn an_external_name_of_the_cluster_is_followed() {
        let alias = |name: &str, to: &str| {
            let spec = json!({"type": "ExternalName", "externalName": to});
            let object = json!({"metadata": {"name": name, "namespace": "n"}, "spec": spec});
            Change::Service(serde_json::from_value(object).unwrap())
        };
        let (_, snapshot) = listed([
            service("web", "10.96.0.7"),
            alias("one", "two.n.svc.cluster.local"),
            alias("two", "WEB.n.svc.Cluster.Local."),
            alias("gone", "nobody.n.svc.cluster.local"),
            alias("round", "round.n.svc.cluster.local"),
            alias("out", "cluster.local.example"),
        ]);
        let web = snapshot.service("n", "web").unwrap().clone();
        assert_eq!(snapshot.resolve("one", "n"), Some(Resolved::Service(web)));
        assert_eq!(snapshot.resolve("gone", "n"), None);
        assert_eq!(snapshot.resolve("round", "n"), None);
        assert_eq!(snapshot.resolve("out", "n"), Some(Resolved::External("cluster.local.example".to_owned())));
    }

    #[test]
    fn an_address_passes_from_one_service_to_another_in_one_moment() {
        let address: IpAddr = "10.96.0.7".parse().unwrap();
        // The order in which changed Services are visited is random: some of these go one way, some the other.
        for round in 0..32 {
            let (old, new) = (format!("old{round}"), format!("new{round}"));
            let (mut table, first) = listed([service(&old, "10.96.0.7")]);
            let Change::Service(gone) = service(&old, "10.96.0.7") else { unreachable!() };
            table.take(Change::ServiceGone(gone));
            table.take(service(&new, "10.96.0.7"));
            let second = table.snapshot(&first);
            assert_eq!(second.by_address(address).map(|service| service.name.to_string()), Some(new));
        }
    }

    #[test]
    fn endpoints_that_end_are_asked_only_when_none_is_ready() {
        let condition = |ready: bool, serving: bool, terminating: bool| json!({"ready": ready, "serving": serving, "terminating": terminating});
        let slice = |conditions: &[serde_json::Value]| {
            let endpoint =
                |(at, conditions)| json!({"addresses": [format!("10.244.0.{at}")], "conditions": conditions});
            let endpoints: Vec<_> = conditions.iter().enumerate().map(endpoint).collect();
            let slice = json!({"addressType": "IPv4", "endpoints": endpoints, "ports": [{"name": "http", "port": 80}],
                "metadata": {"name": "s", "namespace": "n", "labels": {SERVICE_NAME: "web"}}});
            Change::Slice(serde_json::from_value(slice).unwrap())
        };
        let (ready, leaving, dead) =
            (condition(true, true, false), condition(false, true, true), condition(false, false, true));
        for (conditions, asked) in [
            (vec![ready.clone(), leaving.clone()], vec!["10.244.0.0:80"]),
            (vec![leaving.clone(), dead.clone(), leaving.clone()], vec!["10.244.0.0:80", "10.244.0.2:80"]),
            (vec![dead, condition(false, true, false)], vec![]),
            // Made ready by `publishNotReadyAddresses`, also when it ends.
            (vec![condition(true, false, true), leaving], vec!["10.244.0.0:80"]),
        ] {
            let (_, snapshot) = listed([service("web", "None"), slice(&conditions)]);
            assert_eq!(self::ready(&snapshot, "web"), asked, "{conditions:?}");
            let named = snapshot.service("n", "web").unwrap().ready.len();
            assert_eq!(
                named,
                conditions.iter().filter(|c| c["ready"] == json!(true)).count(),
                "a name stands for the ready"
            );
        }
    }

    /// What kube-proxy chooses for a policy `Local`, node by node.
    #[test]
    fn a_node_s_own_are_those_that_are_ready_there_or_else_those_that_end_there() {
        let ready = json!({"ready": true});
        let leaving = json!({"ready": false, "serving": true, "terminating": true});
        let broken = json!({"ready": false, "serving": false});
        for (endpoints, of_a, of_b, ready_at_a) in [
            (vec![("a", &ready), ("b", &ready)], vec![0], vec![1], 1),
            (vec![("a", &ready), ("a", &leaving), ("b", &leaving)], vec![0], vec![2], 1),
            // While others are ready elsewhere, too.
            (vec![("a", &leaving), ("b", &ready)], vec![0], vec![1], 0),
            (vec![("a", &broken), ("b", &ready)], vec![], vec![1], 0),
            (vec![("a", &ready), ("a", &ready)], vec![0, 1], vec![], 2),
        ] {
            let rows = endpoints.iter().enumerate().map(|(at, (node, conditions))| {
                json!({"addresses": [format!("10.244.0.{at}")], "nodeName": node, "conditions": conditions})
            });
            let slice = json!({"addressType": "IPv4", "endpoints": rows.collect::<Vec<_>>(), "ports": [{"name": "http", "port": 80}],
                "metadata": {"name": "s", "namespace": "n", "labels": {SERVICE_NAME: "web"}}});
            let (_, snapshot) = listed([service("web", "None"), Change::Slice(serde_json::from_value(slice).unwrap())]);
            let web = snapshot.service("n", "web").unwrap();
            let of = |node: &str| -> Vec<u8> {
                let octet = |address| match address {
                    IpAddr::V4(address) => address.octets()[3],
                    IpAddr::V6(_) => unreachable!("there is none"),
                };
                web.ports[0].endpoints_of(node).iter().map(|endpoint| octet(endpoint.address)).collect()
            };
            assert_eq!((of("a"), of("b"), of("c")), (of_a, of_b, vec![]), "{endpoints:?}");
            assert_eq!(web.ready_of("a"), ready_at_a, "{endpoints:?}");
            assert_eq!(web.answers_at("a"), !of("a").is_empty());
        }
    }

    #[test]
    fn policies_of_traffic_are_read() {
        let spec = json!({"type": "LoadBalancer", "internalTrafficPolicy": "Local", "externalTrafficPolicy": "Cluster",
            "healthCheckNodePort": 30999, "loadBalancerSourceRanges": ["10.0.0.0/8"]});
        let object = json!({"metadata": {"name": "web", "namespace": "n", "uid": "u"}, "spec": spec});
        let (_, snapshot) = listed([Change::Service(serde_json::from_value(object).unwrap())]);
        let web = snapshot.service("n", "web").unwrap();
        assert_eq!((web.inside, web.outside, web.health_port), (Traffic::Local, Traffic::Cluster, Some(30999)));
        let balanced = web.balanced.as_ref().unwrap();
        assert!(balanced.lets_in("10.1.2.3".parse().unwrap()) && !balanced.lets_in("127.0.0.1".parse().unwrap()));
        let (_, snapshot) = listed([service("plain", "10.96.0.7")]);
        let plain = snapshot.service("n", "plain").unwrap();
        assert_eq!((plain.inside, plain.outside, &plain.balanced), (Traffic::Cluster, Traffic::Cluster, &None));
    }

    #[test]
    fn one_number_may_be_served_by_two_protocols_and_names_have_no_case() {
        let both = json!({"metadata": {"name": "dns", "namespace": "n"}, "spec": {"clusterIP": "10.96.0.10", "ports": [
            {"name": "tcp", "port": 53, "nodePort": 30053}, {"name": "udp", "port": 53, "nodePort": 30053, "protocol": "UDP"}]}});
        let (_, snapshot) = listed([Change::Service(serde_json::from_value(both).unwrap())]);
        let dns = snapshot.service("n", "dns").unwrap();
        assert_eq!(dns.port(53, Protocol::Tcp).unwrap().name, "tcp");
        assert_eq!(dns.port(53, Protocol::Udp).unwrap().name, "udp");
        assert!(dns.port(53, Protocol::Sctp).is_none());
        assert_eq!(snapshot.resolve("DNS.N.Svc.Cluster.Local", "x"), Some(Resolved::Service(dns.clone())));
    }
}
