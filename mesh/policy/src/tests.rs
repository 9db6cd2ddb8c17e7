//! The table of cases (`cases.json`), and comparison with what the objects say when they are read anew for each question.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::networking::v1::{IPBlock, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::{Destination, Direction, Port, Protocol, Rules, Source, Table, Workload};

/// Pods by name: of namespace `default` unless they say another.
fn pods() -> BTreeMap<&'static str, Arc<Workload>> {
    let pod = |namespace: &str, app: &str, address: &str| {
        let ports =
            json!([{"name": "sql", "containerPort": 5432}, {"name": "dns", "containerPort": 53, "protocol": "SCTP"}]);
        let spec = json!({"containers": [{"name": "c", "ports": if app == "db" { ports } else { json!([]) }}]});
        let pod = json!({"metadata": {"namespace": namespace, "name": app, "labels": {"app": app}}, "spec": spec});
        Arc::new(Workload::of(&serde_json::from_value::<Pod>(pod).unwrap(), address.parse().unwrap()))
    };
    BTreeMap::from([
        ("web", pod("default", "web", "10.1.0.2")),
        ("db", pod("default", "db", "10.1.0.3")),
        ("mon/prom", pod("mon", "prom", "10.2.0.1")),
        ("mon/web", pod("mon", "web", "10.2.0.2")),
        // Its namespace is not known.
        ("new/web", pod("new", "web", "10.3.0.2")),
    ])
}

fn namespaces() -> BTreeMap<&'static str, BTreeMap<String, String>> {
    let ops = BTreeMap::from([("team".to_owned(), "ops".to_owned())]);
    BTreeMap::from([("default", BTreeMap::new()), ("mon", ops)])
}

fn policy(number: usize, mut spec: Value) -> NetworkPolicy {
    let namespace = spec.as_object_mut().unwrap().remove("namespace").unwrap_or(json!("default"));
    let metadata = json!({"namespace": namespace, "name": format!("p{number}")});
    serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap()
}

fn table(policies: &[NetworkPolicy]) -> Table {
    let mut rules = Rules::default();
    namespaces().into_iter().for_each(|(name, labels)| assert!(rules.label(name, labels)));
    policies.iter().for_each(|policy| assert!(rules.put(policy)));
    Table::new(rules, 1)
}

fn source(text: &str) -> Source {
    match text {
        "node" => Source::Node,
        "nobody" => Source::Unknown,
        text => text.parse().map_or_else(|_| Source::Pod(pods_of(text)), Source::Outside),
    }
}

fn destination(text: &str) -> Destination {
    match text {
        "nobody" => Destination::Unknown,
        text => text.parse().map_or_else(|_| Destination::Pod(pods_of(text)), Destination::Outside),
    }
}

fn pods_of(name: &str) -> Arc<Workload> {
    pods().remove(name).unwrap_or_else(|| panic!("no pod {name}"))
}

fn port(value: &Value) -> Port {
    let (protocol, number) = match value.as_str().and_then(|text| text.split_once('/')) {
        Some(("udp", number)) => (Protocol::Udp, number.parse().unwrap()),
        Some((_, number)) => (Protocol::Sctp, number.parse().unwrap()),
        None => (Protocol::Tcp, u16::try_from(value.as_u64().unwrap()).unwrap()),
    };
    Port { protocol, number }
}

#[test]
fn the_table_of_cases() {
    let cases: Vec<Value> = serde_json::from_str(include_str!("cases.json")).unwrap();
    let mut wrong = Vec::new();
    for case in &cases {
        let specs = case["policies"].as_array().unwrap();
        let policies: Vec<_> = specs.iter().enumerate().map(|(at, spec)| policy(at, spec.clone())).collect();
        let table = table(&policies);
        for ask in case["asks"].as_array().unwrap() {
            let (from, to) = (ask[0].as_str().unwrap(), ask[1].as_str().unwrap());
            let (source, to, port) = (source(from), destination(to), port(&ask[2]));
            let answers = [table.allows(&source, &to, port), table.allows(&source, &to, port)];
            if answers != [ask[3] == json!(true); 2] {
                wrong.push(format!("{}: {ask} is {answers:?}", case["title"]));
            }
            if naive(&policies, &source, &to, port) != (ask[3] == json!(true)) {
                wrong.push(format!("{}: {ask} is otherwise by the naive reading", case["title"]));
            }
        }
    }
    assert!(wrong.is_empty() && cases.len() > 15, "{}", wrong.join("\n"));
}

#[test]
fn rules_change_one_by_one() {
    let (web, db) = (source("web"), destination("db"));
    let port = Port { protocol: Protocol::Tcp, number: 80 };
    let mut rules = Rules::default();
    let allows = |rules: &Rules| Table::new(rules.clone(), 1).allows(&web, &db, port);
    assert!(rules.put(&policy(1, json!({"podSelector": {}}))));
    let before = rules.clone();
    assert!(!allows(&rules));
    assert!(rules.put(&policy(
        2,
        json!({"podSelector": {}, "ingress": [{"from": [{"namespaceSelector": {"matchLabels": {"a": "b"}}}]}]}),
    )));
    assert!(!allows(&rules), "its namespace is not known");
    let labels = BTreeMap::from([("a".to_owned(), "b".to_owned())]);
    assert!(rules.label("default", labels.clone()) && !rules.label("default", labels));
    assert!(allows(&rules));
    assert!(rules.forget("default") && !rules.forget("default"));
    assert!(!allows(&rules));
    let open = policy(2, json!({"podSelector": {}, "ingress": [{}]}));
    assert!(rules.put(&open) && !rules.put(&open), "it says the same again");
    assert!(allows(&rules) && !allows(&before), "it is the same policy, and a clone keeps what it was");
    assert!(rules.remove("default", "p2") && !rules.remove("default", "p2") && !rules.remove("other", "p1"));
    assert!(!allows(&rules) && !rules.is_empty());
    rules.remove("default", "p1");
    assert!(allows(&rules) && rules.is_empty());
}

#[test]
fn who_is_isolated_and_who_a_pod_is() {
    let table = table(&[policy(1, json!({"podSelector": {"matchLabels": {"app": "db"}}, "policyTypes": ["Egress"]}))]);
    let isolated = |pod: &str| [Direction::Ingress, Direction::Egress].map(|one| table.isolates(&pods_of(pod), one));
    assert_eq!([isolated("db"), isolated("web"), isolated("mon/web")], [[false, true], [false; 2], [false; 2]]);
    assert_eq!(pods_of("mon/prom").identity(), "spiffe://cluster.local/ns/mon/sa/default");
    let pod =
        json!({"metadata": {"namespace": "n", "name": "a"}, "spec": {"serviceAccountName": "robot", "containers": []}});
    let pod = Workload::of(&serde_json::from_value(pod).unwrap(), [10, 0, 0, 1].into());
    assert_eq!(pod.identity(), "spiffe://cluster.local/ns/n/sa/robot");
}

#[test]
fn what_a_node_tells_is_understood_by_another() {
    let pod = pods_of("db");
    for source in
        [Source::Pod(pod.clone()), source("198.51.100.7"), source("2001:db8::1"), Source::Node, Source::Unknown]
    {
        let text = source.text().into_owned();
        assert!(text.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{text}");
        assert_eq!(Source::from_text(&text), Some(source));
    }
    assert_eq!(Workload::from_text(pod.text()).as_ref(), Some(&*pod));
    assert_eq!(Source::from_text("outside ::ffff:10.1.0.3"), Some(source("10.1.0.3")), "an address has one form");
    for nonsense in ["", "outside", "outside x", "{}", "{\"address\":1}", "[", &pod.text().replace("10.1", "10.x")] {
        assert_eq!(Source::from_text(nonsense), None, "{nonsense}");
    }
    let labels = (0..200).map(|at| (format!("label{at}"), "x".repeat(63))).collect();
    let large = Workload::new([10, 0, 0, 1].into(), "n", "a", "b", labels, Vec::new());
    assert!(Workload::from_text(large.text()).is_none());
    assert_eq!(Source::Pod(Arc::new(large)).text(), "unknown");
}

/// Ten thousand peers in a thousand rules, of which two are distinct.
#[test]
fn what_is_said_again_is_compared_once() {
    let peers = json!([{"podSelector": {"matchLabels": {"app": "a"}}}, {"podSelector": {"matchLabels": {"app": "b"}}}]);
    let peers: Vec<_> = peers.as_array().unwrap().iter().cycle().take(10).cloned().collect();
    let rules: Vec<_> =
        std::iter::repeat_n(json!({"from": peers, "ports": [{"port": 1}, {"port": 1}]}), 1000).collect();
    let many = policy(1, json!({"podSelector": {}, "ingress": rules}));
    let few = policy(1, json!({"podSelector": {}, "ingress": [{"from": peers[..2], "ports": [{"port": 1}]}]}));
    let mut rules = Rules::default();
    assert!(rules.put(&few) && !rules.put(&many), "they say the same, and are kept as the same");
}

/// What thousands of pods and policies cost is what one of them does.
#[test]
fn a_question_has_an_end_however_much_policies_say_and_what_is_beyond_it_is_not_allowed() {
    let long: Vec<Value> = (0..1000).map(|n| json!({"key": format!("k{n}"), "operator": "Exists"})).collect();
    let mut nobody =
        policy(0, json!({"podSelector": {}, "ingress": [{"from": [{"podSelector": {"matchExpressions": long}}]}]}));
    let all = policy(1000, json!({"podSelector": {}, "ingress": [{}]}));
    let port = Port { protocol: Protocol::Tcp, number: 80 };
    let mut rules = Rules::default();
    rules.put(&all);
    for (policies, is_allowed) in [(10, true), (300, false)] {
        for n in 0..policies {
            nobody.metadata.name = Some(format!("a{n}"));
            rules.put(&nobody);
        }
        let table = Table::new(rules.clone(), 1);
        assert_eq!(table.allows(&source("web"), &destination("db"), port), is_allowed, "{policies}");
        assert!(table.isolates(&pods_of("db"), Direction::Ingress));
    }
}

#[test]
fn an_answer_is_found_once() {
    let policies: Vec<_> = (0..2_000)
        .map(|at| policy(at, json!({"podSelector": {}, "ingress": [{"from": [{"podSelector": {"matchLabels": {"n": at.to_string()}}}]}]})))
        .collect();
    let table = table(&policies);
    let port = Port { protocol: Protocol::Tcp, number: 80 };
    let pod = |at: usize| {
        let labels = BTreeMap::from([("n".to_owned(), at.to_string())]);
        Arc::new(Workload::new(
            [10, 9, (at >> 8) as u8, at as u8].into(),
            "default",
            &at.to_string(),
            "default",
            labels,
            Vec::new(),
        ))
    };
    let all: Vec<_> = (0..4_000).map(pod).collect();
    let to = Destination::Pod(pods_of("db"));
    for (at, pod) in all.iter().enumerate() {
        assert_eq!(table.allows(&Source::Pod(pod.clone()), &to, port), at < 2_000, "{at}");
    }
    let begun = std::time::Instant::now();
    for _ in 0..25 {
        assert_eq!(all.iter().filter(|pod| table.allows(&Source::Pod((*pod).clone()), &to, port)).count(), 2_000);
    }
    // 100,000 answers; each took 20,000 comparisons the first time.
    assert!(begun.elapsed() < std::time::Duration::from_secs(5), "{:?}", begun.elapsed());
}

/// The answer as Kubernetes' page on network policies words it, from the objects as they are.
fn naive(policies: &[NetworkPolicy], source: &Source, to: &Destination, port: Port) -> bool {
    let is_same = |a: &Workload, b: &Workload| a.namespace == b.namespace && a.name == b.name;
    if let (Source::Pod(from), Destination::Pod(to)) = (source, to)
        && is_same(from, to)
    {
        return true;
    }
    let called = match to {
        Destination::Pod(pod) => Some(&**pod),
        Destination::Outside(_) | Destination::Unknown => None,
    };
    let lets_out = || match source {
        Source::Pod(from) => {
            let other = match to {
                Destination::Pod(pod) => (Some(&**pod), Some(pod.address)),
                Destination::Outside(address) => (None, Some(*address)),
                Destination::Unknown => (None, None),
            };
            naive_side(policies, from, "Egress", other, called, port)
        }
        _ => true,
    };
    let lets_in = || match (source, called) {
        (Source::Node, _) | (_, None) => true,
        (Source::Pod(from), Some(to)) => {
            naive_side(policies, to, "Ingress", (Some(from), Some(from.address)), called, port)
        }
        (Source::Outside(address), Some(to)) => {
            naive_side(policies, to, "Ingress", (None, Some(*address)), called, port)
        }
        (Source::Unknown, Some(to)) => naive_side(policies, to, "Ingress", (None, None), called, port),
    };
    lets_out() && lets_in()
}

fn naive_side(
    policies: &[NetworkPolicy],
    pod: &Workload,
    direction: &str,
    other: (Option<&Workload>, Option<IpAddr>),
    called: Option<&Workload>,
    port: Port,
) -> bool {
    let mut isolated = false;
    for policy in policies.iter().filter(|policy| policy.metadata.namespace.as_deref() == Some(&*pod.namespace)) {
        let spec = policy.spec.as_ref().unwrap();
        let types = match spec.policy_types.clone() {
            Some(types) => types,
            None if spec.egress.as_ref().is_some_and(|rules| !rules.is_empty()) => {
                vec!["Ingress".into(), "Egress".into()]
            }
            None => vec!["Ingress".into()],
        };
        let selects =
            spec.pod_selector.as_ref().is_none_or(|selector| matches(selector, Some(&pod.labels)) == Some(true));
        if !selects || !types.iter().any(|one| one == direction) {
            continue;
        }
        isolated = true;
        let rules: Vec<_> = match direction {
            "Ingress" => spec.ingress.iter().flatten().map(|rule| (rule.ports.clone(), rule.from.clone())).collect(),
            _ => spec.egress.iter().flatten().map(|rule| (rule.ports.clone(), rule.to.clone())).collect(),
        };
        for (ports, peers) in rules {
            let (ports, peers) = (ports.unwrap_or_default(), peers.unwrap_or_default());
            let has_port = ports.is_empty() || ports.iter().any(|one| naive_port(one, called, port));
            let has_peer = peers.is_empty() || peers.iter().any(|one| naive_peer(one, &pod.namespace, other));
            if has_port && has_peer {
                return true;
            }
        }
    }
    !isolated
}

fn naive_port(one: &NetworkPolicyPort, called: Option<&Workload>, port: Port) -> bool {
    let is_protocol = Protocol::of(one.protocol.as_deref()) == port.protocol;
    let number = i32::from(port.number);
    is_protocol
        && match (&one.port, one.end_port) {
            (None, _) => true,
            (Some(IntOrString::Int(first)), None) => *first == number,
            (Some(IntOrString::Int(first)), Some(last)) => *first <= number && number <= last,
            (Some(IntOrString::String(name)), _) => {
                called.is_some_and(|pod| pod.ports.iter().any(|named| named.name == *name && named.port == port))
            }
        }
}

fn naive_peer(peer: &NetworkPolicyPeer, namespace: &str, (pod, address): (Option<&Workload>, Option<IpAddr>)) -> bool {
    if let Some(block) = &peer.ip_block {
        return address.is_some_and(|address| naive_block(block, address));
    }
    let Some(pod) = pod else { return false };
    let all = namespaces();
    let in_namespace = match &peer.namespace_selector {
        None if peer.pod_selector.is_none() => false,
        None => *pod.namespace == *namespace,
        Some(selector) => matches(selector, all.get(&*pod.namespace)) == Some(true),
    };
    in_namespace && peer.pod_selector.as_ref().is_none_or(|selector| matches(selector, Some(&pod.labels)) == Some(true))
}

/// Of labels that are not known nothing but an empty selector is true. `None`: it cannot be read.
fn matches(selector: &LabelSelector, labels: Option<&BTreeMap<String, String>>) -> Option<bool> {
    let mut all = true;
    for (key, value) in selector.match_labels.iter().flatten() {
        (key != "-").then_some(())?;
        all &= labels.and_then(|labels| labels.get(key)) == Some(value);
    }
    for expression in selector.match_expressions.iter().flatten() {
        let value = labels.and_then(|labels| labels.get(&expression.key));
        let among = value.is_some_and(|value| expression.values.iter().flatten().any(|one| one == value));
        all &= labels.is_some()
            && match expression.operator.as_str() {
                "In" => among,
                "NotIn" => !among,
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                _ => return None,
            };
    }
    Some(all)
}

fn naive_block(block: &IPBlock, address: IpAddr) -> bool {
    let address = address.to_canonical();
    let near = match address {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unicast_link_local(),
    };
    let within = |range: &str| {
        let (of, bits) = range.split_once('/')?;
        let bits: usize = bits.parse().ok()?;
        let digits = |address: IpAddr| -> Vec<bool> {
            let bytes = match address {
                IpAddr::V4(v4) => v4.octets().to_vec(),
                IpAddr::V6(v6) => v6.octets().to_vec(),
            };
            bytes.iter().flat_map(|byte| (0..8).rev().map(move |at| byte >> at & 1 == 1)).collect()
        };
        let (of, address) = (digits(of.parse().ok()?), digits(address));
        Some(of.len() == address.len() && of[..bits] == address[..bits])
    };
    !near
        && within(&block.cidr).unwrap_or(false)
        && !block.except.iter().flatten().any(|except| within(except).unwrap_or(true))
}

fn some_labels() -> impl Strategy<Value = BTreeMap<String, String>> {
    prop::collection::btree_map(
        prop::sample::select(vec!["app", "tier"]),
        prop::sample::select(vec!["a", "b", "c"]),
        0..3,
    )
    .prop_map(|labels| labels.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect())
}

fn some_selector() -> impl Strategy<Value = Value> {
    let expression =
        (prop::sample::select(vec!["app", "tier"]), 0..4_usize, prop::sample::subsequence(vec!["a", "b", "c"], 1..3))
            .prop_map(|(key, operator, values)| {
                let operator = ["In", "NotIn", "Exists", "DoesNotExist"][operator];
                match operator {
                    "In" | "NotIn" => json!({"key": key, "operator": operator, "values": values}),
                    _ => json!({"key": key, "operator": operator}),
                }
            });
    (some_labels(), prop::collection::vec(expression, 0..2)).prop_map(|(labels, expressions)| {
        // Often one label: else almost nothing matches.
        let labels: BTreeMap<_, _> = labels.into_iter().take(1).collect();
        json!({"matchLabels": labels, "matchExpressions": expressions})
    })
}

fn some_range() -> impl Strategy<Value = (u8, u8)> {
    (0..4_u8, 16..=32_u8)
}

fn some_peer() -> impl Strategy<Value = Value> {
    let block = (some_range(), prop::collection::vec(some_range(), 0..2)).prop_map(|((at, bits), excepted)| {
        let except: Vec<_> = excepted.iter().map(|(at, bits)| format!("10.0.0.{at}/{bits}")).collect();
        json!({"ipBlock": {"cidr": format!("10.0.0.{at}/{bits}"), "except": except}})
    });
    prop_oneof![
        some_selector().prop_map(|selector| json!({"podSelector": selector})),
        some_selector().prop_map(|selector| json!({"namespaceSelector": selector})),
        (some_selector(), some_selector())
            .prop_map(|(pods, all)| json!({"podSelector": pods, "namespaceSelector": all})),
        block,
    ]
}

fn some_port() -> impl Strategy<Value = Value> {
    let protocol = prop::sample::select(vec!["TCP", "UDP"]);
    (protocol, 0..4_usize, 1..4_u16, 0..3_u16).prop_map(|(protocol, form, first, more)| match form {
        0 => json!({"protocol": protocol}),
        1 => json!({"protocol": protocol, "port": first}),
        2 => json!({"protocol": protocol, "port": first, "endPort": first + more}),
        _ => {
            let name = ["http", "dns", "none"][usize::from(more)];
            json!({"protocol": protocol, "port": name})
        }
    })
}

fn some_rules(peers: &'static str) -> impl Strategy<Value = Value> {
    let rule = (prop::collection::vec(some_port(), 0..3), prop::collection::vec(some_peer(), 0..3));
    prop::collection::vec(rule.prop_map(move |(ports, all)| json!({"ports": ports, peers: all})), 0..3)
        .prop_map(Value::from)
}

fn some_policy() -> impl Strategy<Value = Value> {
    let types =
        prop::sample::select(vec![json!(null), json!(["Ingress"]), json!(["Egress"]), json!(["Ingress", "Egress"])]);
    let namespace = prop::sample::select(vec!["default", "mon"]);
    (namespace, some_selector(), some_rules("from"), some_rules("to"), types).prop_map(|(namespace, selector, from, to, types)| {
        json!({"namespace": namespace, "podSelector": selector, "ingress": from, "egress": to, "policyTypes": types})
    })
}

fn some_pod(at: u8) -> impl Strategy<Value = Arc<Workload>> {
    let namespace = prop::sample::select(vec!["default", "mon", "new"]);
    (namespace, some_labels(), any::<bool>()).prop_map(move |(namespace, labels, declares)| {
        let ports = match declares {
            true => {
                json!([{"name": "http", "containerPort": 1}, {"name": "dns", "containerPort": 2, "protocol": "UDP"}])
            }
            false => json!([]),
        };
        let metadata = json!({"namespace": namespace, "name": format!("pod{at}"), "labels": labels});
        let pod = json!({"metadata": metadata, "spec": {"containers": [{"name": "c", "ports": ports}]}});
        Arc::new(Workload::of(&serde_json::from_value::<Pod>(pod).unwrap(), [10, 0, 0, at].into()))
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]
    #[test]
    fn the_table_says_what_the_objects_say(
        specs in prop::collection::vec(some_policy(), 0..4),
        pods in (some_pod(0), some_pod(1), some_pod(2)),
    ) {
        let policies: Vec<_> = specs.into_iter().enumerate().map(|(at, spec)| policy(at, spec)).collect();
        let table = table(&policies);
        let pods = [pods.0, pods.1, pods.2];
        let outside: [IpAddr; 3] = [[10, 0, 0, 3].into(), [127, 0, 0, 1].into(), [192, 0, 2, 1].into()];
        let mut sources: Vec<Source> = pods.iter().cloned().map(Source::Pod).collect();
        sources.extend(outside.map(Source::Outside));
        sources.extend([Source::Node, Source::Unknown]);
        let mut to: Vec<Destination> = pods.iter().cloned().map(Destination::Pod).collect();
        to.extend(outside.map(Destination::Outside));
        to.push(Destination::Unknown);
        for source in &sources {
            for to in &to {
                for protocol in [Protocol::Tcp, Protocol::Udp] {
                    for number in 0..5 {
                        let port = Port { protocol, number };
                        let (is, should) = (table.allows(source, to, port), naive(&policies, source, to, port));
                        prop_assert_eq!(is, should, "{:?} to {:?} at {:?}", source, to, port);
                    }
                }
            }
        }
    }
}
