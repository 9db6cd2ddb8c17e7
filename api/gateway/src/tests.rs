//! Objects, and what they say together, as tables.

use serde_json::{Value, json};

use super::*;

const NOW: &str = "2026-01-01T00:00:00Z";

fn meta(namespace: &str, name: &str, created: i64) -> Meta {
    Meta { namespace: namespace.into(), name: name.into(), uid: name.into(), created, generation: 3 }
}

/// Objects with a class of ours, one of another's, and three namespaces.
fn objects() -> Objects {
    let mut objects = Objects::default();
    for (name, controller) in [("coracle", CONTROLLER), ("other", "example.com/other")] {
        let class = Class::read(meta("", name, 1), &json!({"controllerName": controller}));
        objects.classes.insert(name.into(), class);
    }
    for (name, label) in [("infra", "none"), ("a", "yes"), ("b", "no")] {
        objects.namespaces.insert(name.into(), [("exposed".to_owned(), label.to_owned())].into());
    }
    objects
}

impl Objects {
    fn gateway(&mut self, name: &str, created: i64, mut spec: Value) {
        if spec["gatewayClassName"].is_null() {
            spec["gatewayClassName"] = json!("coracle");
        }
        let gateway = Gateway::read(meta("infra", name, created), &spec).unwrap();
        self.gateways.insert(gateway.meta.key(), gateway);
    }

    fn route(&mut self, (namespace, name): (&str, &str), created: i64, spec: Value) {
        let route = Route::read(RouteKind::Http, meta(namespace, name, created), &spec).unwrap();
        self.routes.insert(route.meta.key(), route);
    }

    fn grpc_route(&mut self, (namespace, name): (&str, &str), created: i64, spec: Value) {
        let route = Route::read(RouteKind::Grpc, meta(namespace, name, created), &spec).unwrap();
        self.grpc_routes.insert(route.meta.key(), route);
    }

    fn grant(&mut self, from: (&str, &str), to: (&str, &str)) {
        let from = json!([{"group": GROUP, "kind": from.0, "namespace": from.1}]);
        let grant = Grant::read(&meta(to.0, "grant", 1), &json!({"from": from, "to": [{"group": "", "kind": to.1}]}));
        self.grants.insert((to.0.into(), to.1.into()), grant.unwrap());
    }

    fn resolved(&self) -> Resolved {
        self.resolve(&|_, target| {
            (&*target.name == "missing").then(|| ("BackendNotFound", "service missing does not exist".to_owned()))
        })
    }
}

fn listener(name: &str, port: u16, protocol: &str, more: Value) -> Value {
    let mut listener = json!({"name": name, "port": port, "protocol": protocol});
    listener.as_object_mut().unwrap().append(&mut more.as_object().unwrap().clone());
    listener
}

fn served(texts: &[&str]) -> Served {
    let mut served = Served::default();
    texts.iter().for_each(|text| served.add(&ServedAt::parse(text).unwrap()));
    served
}

/// `TYPE=STATUS REASON` of conditions.
fn said(conditions: &Value) -> Vec<String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let one = |of: &Value| format!("{}={} {}", text(&of["type"]), text(&of["status"]), text(&of["reason"]));
    conditions.as_array().into_iter().flatten().map(one).collect()
}

/// What is said of the first listener, and of its Gateway.
fn of_gateway(objects: &Objects, name: &str, served: &Served) -> (Vec<String>, Vec<String>, Value) {
    let resolved = objects.resolved();
    let state = resolved.gateways.iter().find(|gateway| &*gateway.meta.name == name).expect("it is ours");
    let status = status::gateway(state, served, &Value::Null, NOW);
    (said(&status["listeners"][0]["conditions"]), said(&status["conditions"]), status)
}

#[test]
fn a_listener_s_conditions_say_what_is_wrong_with_it() {
    let secret = |name: &str| json!({"tls": {"certificateRefs": [{"name": name}]}});
    let open = "127.0.0.1,80,443";
    let fine = ["Accepted=True Accepted", "Conflicted=False NoConflicts", "ResolvedRefs=True ResolvedRefs"];
    for (listeners, nodes, differs) in [
        (vec![listener("l", 80, "HTTP", json!({}))], open, vec!["Programmed=True Programmed"]),
        (vec![listener("l", 443, "HTTPS", secret("s"))], open, vec!["Programmed=True Programmed"]),
        (vec![listener("l", 80, "HTTP", json!({}))], "127.0.0.1", vec!["Programmed=False Pending"]),
        (vec![listener("l", 80, "HTTP", json!({}))], "127.0.0.1,80=taken", vec!["Programmed=False PortUnavailable"]),
        (vec![listener("l", 80, "HTTP", json!({}))], "127.0.0.1,+beyond", vec!["Programmed=False PortUnavailable"]),
        (
            vec![listener("l", 53, "UDP", json!({}))],
            open,
            vec!["Accepted=False UnsupportedProtocol", "Programmed=False Invalid"],
        ),
        (
            vec![listener(
                "l",
                443,
                "HTTPS",
                json!({"tls": {"mode": "Passthrough", "certificateRefs": [{"name": "s"}]}}),
            )],
            open,
            vec!["Accepted=False UnsupportedProtocol", "Programmed=False Invalid"],
        ),
        (
            vec![listener(
                "l",
                443,
                "HTTPS",
                json!({"tls": {"certificateRefs": [{"name": "s"}], "frontendValidation": {}}}),
            )],
            open,
            vec!["Accepted=False UnsupportedValue", "Programmed=False Invalid"],
        ),
        (
            vec![listener("l", 443, "HTTPS", json!({}))],
            open,
            vec!["ResolvedRefs=False InvalidCertificateRef", "Programmed=False Invalid"],
        ),
        (
            vec![listener("l", 443, "HTTPS", secret("broken"))],
            "127.0.0.1,443,!infra/broken",
            vec!["ResolvedRefs=False InvalidCertificateRef", "Programmed=False Invalid"],
        ),
        (
            vec![listener("l", 443, "HTTPS", json!({"tls": {"certificateRefs": [{"name": "s", "namespace": "a"}]}}))],
            open,
            vec!["ResolvedRefs=False RefNotPermitted", "Programmed=False Invalid"],
        ),
        (
            vec![listener("l", 443, "HTTPS", json!({"tls": {"certificateRefs": [{"name": "s", "namespace": "b"}]}}))],
            open,
            vec!["Programmed=True Programmed"],
        ),
        (
            vec![listener(
                "l",
                443,
                "HTTPS",
                json!({"tls": {"certificateRefs": [{"name": "s", "kind": "ConfigMap"}]}}),
            )],
            open,
            vec!["ResolvedRefs=False InvalidCertificateRef", "Programmed=False Invalid"],
        ),
        (
            vec![listener(
                "l",
                80,
                "HTTP",
                json!({"allowedRoutes": {"kinds": [{"kind": "TCPRoute"}, {"kind": "HTTPRoute"}]}}),
            )],
            open,
            vec!["ResolvedRefs=False InvalidRouteKinds", "Programmed=True Programmed"],
        ),
        (
            vec![listener("l", 80, "HTTP", json!({})), listener("m", 80, "HTTPS", secret("s"))],
            open,
            vec!["Conflicted=True ProtocolConflict", "Programmed=False Invalid"],
        ),
        (
            vec![
                listener("l", 80, "HTTP", json!({"hostname": "a.x"})),
                listener("m", 80, "HTTP", json!({"hostname": "A.x"})),
            ],
            open,
            vec!["Conflicted=True HostnameConflict", "Programmed=False Invalid"],
        ),
        (
            vec![
                listener("l", 80, "HTTP", json!({"hostname": "a.x"})),
                listener("m", 80, "HTTP", json!({"hostname": "b.x"})),
            ],
            open,
            vec!["Programmed=True Programmed"],
        ),
    ] {
        let mut objects = objects();
        objects.grant(("Gateway", "infra"), ("b", "Secret"));
        objects.gateway("g", 1, json!({"listeners": listeners}));
        let (found, _, _) = of_gateway(&objects, "g", &served(&[nodes]));
        let kind = |text: &str| text.split('=').next().unwrap().to_owned();
        let replaced = |fine: &&str| !differs.iter().any(|one| kind(one) == kind(fine));
        let mut expected: Vec<String> =
            fine.iter().filter(|fine| replaced(fine)).chain(&differs).map(|text| (*text).to_owned()).collect();
        let mut found = found;
        expected.sort();
        found.sort();
        assert_eq!(found, expected, "{listeners:?} {nodes}");
    }
}

#[test]
fn a_gateway_s_conditions_and_addresses() {
    let http = || listener("l", 80, "HTTP", json!({}));
    for (spec, nodes, conditions, addresses) in [
        (
            json!({"listeners": [http()]}),
            vec!["10.0.0.1,80", "10.0.0.2,80=taken"],
            ["True Accepted", "True Programmed"],
            vec!["10.0.0.1"],
        ),
        (json!({"listeners": [http()]}), vec![], ["True Accepted", "False AddressNotAssigned"], vec![]),
        (json!({"listeners": [http()]}), vec!["10.0.0.1,80=taken"], ["True Accepted", "False Pending"], vec![]),
        (
            json!({"listeners": [http(), listener("u", 53, "UDP", json!({}))]}),
            vec!["10.0.0.1,80"],
            ["True ListenersNotValid", "True Programmed"],
            vec!["10.0.0.1"],
        ),
        (
            json!({"listeners": [listener("u", 53, "UDP", json!({}))]}),
            vec!["10.0.0.1,80"],
            ["False ListenersNotValid", "False Invalid"],
            vec![],
        ),
        (
            json!({"listeners": [http()], "addresses": [{"value": "10.0.0.2"}]}),
            vec!["10.0.0.1,80", "10.0.0.2,80"],
            ["True Accepted", "True Programmed"],
            vec!["10.0.0.2"],
        ),
        (
            json!({"listeners": [http()], "addresses": [{"value": "2001:DB8:0::2"}, {"type": "IPAddress"}]}),
            vec!["10.0.0.1,80", "2001:db8::2,80"],
            ["True Accepted", "True Programmed"],
            vec!["2001:db8::2"],
        ),
        (
            json!({"listeners": [http()], "addresses": [{"type": "IPAddress", "value": "192.0.2.1"}]}),
            vec!["10.0.0.1,80"],
            ["True Accepted", "False AddressNotUsable"],
            vec![],
        ),
        (
            json!({"listeners": [http()], "addresses": [{"type": "Hostname", "value": "x"}]}),
            vec!["10.0.0.1,80"],
            ["False UnsupportedAddress", "False Invalid"],
            vec![],
        ),
        (
            json!({"listeners": [http()], "infrastructure": {"parametersRef": {"name": "x"}}}),
            vec!["10.0.0.1,80"],
            ["False InvalidParameters", "False Invalid"],
            vec![],
        ),
        (
            json!({"listeners": [http()], "tls": {"frontend": {}}}),
            vec!["10.0.0.1,80"],
            ["False Invalid", "False Invalid"],
            vec![],
        ),
        (
            json!({"listeners": [http()], "defaultScope": "All"}),
            vec!["10.0.0.1,80"],
            ["False Invalid", "False Invalid"],
            vec![],
        ),
    ] {
        let mut objects = objects();
        objects.gateway("g", 1, spec.clone());
        let (_, found, status) = of_gateway(&objects, "g", &served(&nodes));
        let expected = ["Accepted=", "Programmed="].iter().zip(conditions).map(|(kind, rest)| format!("{kind}{rest}"));
        assert_eq!(found, expected.collect::<Vec<_>>(), "{spec}");
        let found: Vec<&Value> =
            status["addresses"].as_array().unwrap().iter().map(|address| &address["value"]).collect();
        assert_eq!(found, addresses, "{spec}");
        assert_eq!(status["conditions"][0]["observedGeneration"], json!(3));
    }
}

/// Gateway API's tests of conformance want it so, also of listeners that have no routes for another reason.
#[test]
fn a_listener_s_status_says_for_which_kinds_it_is() {
    let kinds = |names: &[&str]| {
        let kinds: Vec<Value> = names.iter().map(|name| json!({"kind": name})).collect();
        json!({"allowedRoutes": {"kinds": kinds}})
    };
    let of = |kinds: &[&str]| kinds.iter().map(|kind| json!({"group": GROUP, "kind": kind})).collect::<Value>();
    let (ours, http, grpc) = (of(&["HTTPRoute", "GRPCRoute"]), of(&["HTTPRoute"]), of(&["GRPCRoute"]));
    let all = ["l", "m"].map(|name| listener(name, 80, "HTTP", json!({})));
    for (listeners, expected) in [
        (vec![listener("l", 80, "HTTP", json!({}))], &ours),
        (vec![listener("l", 80, "HTTP", kinds(&["InvalidRoute"]))], &json!([])),
        (vec![listener("l", 80, "HTTP", kinds(&["InvalidRoute", "HTTPRoute"]))], &http),
        (vec![listener("l", 80, "HTTP", kinds(&["GRPCRoute"]))], &grpc),
        (vec![listener("l", 80, "HTTP", kinds(&["GRPCRoute", "HTTPRoute"]))], &ours),
        (vec![listener("l", 80, "TCP", json!({}))], &json!([])),
        (all.to_vec(), &ours),
    ] {
        let mut objects = objects();
        objects.gateway("g", 1, json!({"listeners": listeners}));
        let (_, _, status) = of_gateway(&objects, "g", &Served::default());
        assert_eq!(status["listeners"][0]["supportedKinds"], *expected, "{listeners:?}");
    }
}

#[test]
fn a_port_for_which_there_is_no_room_is_told_on_the_listener() {
    let mut objects = objects();
    objects.gateway("g", 1, json!({"listeners": [listener("l", 80, "HTTP", json!({}))]}));
    let message = |nodes: &[&str]| {
        let (_, _, status) = of_gateway(&objects, "g", &served(nodes));
        status["listeners"][0]["conditions"][3]["message"].as_str().unwrap().to_owned()
    };
    assert!(message(&["127.0.0.1,+beyond"]).starts_with("there is no room for port 80"));
    assert_eq!(message(&["127.0.0.1,+beyond", "127.0.0.2,80"]), "", "another node has it");
}

#[test]
fn of_two_of_one_age_the_uid_decides_and_not_the_name() {
    let mut objects = objects();
    for (name, uid, protocol) in [("a", "2", "HTTP"), ("b", "1", "HTTPS")] {
        let tls = json!({"tls": {"certificateRefs": [{"name": "s"}]}});
        let spec = json!({"gatewayClassName": "coracle", "listeners": [listener("l", 80, protocol, tls)]});
        let gateway = Gateway::read(Meta { uid: uid.into(), ..meta("infra", name, 1) }, &spec).unwrap();
        objects.gateways.insert(gateway.meta.key(), gateway);
    }
    let accepted = |name| of_gateway(&objects, name, &Served::default()).0[0].clone();
    assert_eq!(["a", "b"].map(accepted), ["Accepted=False PortUnavailable", "Accepted=True Accepted"]);
}

#[test]
fn a_port_is_for_one_protocol_and_the_older_gateway_s() {
    let mut objects = objects();
    let tls = json!({"tls": {"certificateRefs": [{"name": "s"}]}});
    objects.gateway("young", 2, json!({"listeners": [listener("l", 80, "HTTPS", tls)]}));
    objects.gateway("old", 1, json!({"listeners": [listener("l", 80, "HTTP", json!({}))]}));
    objects.gateway("same", 3, json!({"listeners": [listener("l", 80, "HTTP", json!({}))]}));
    let nodes = served(&["127.0.0.1,80"]);
    let accepted = |name| of_gateway(&objects, name, &nodes).0[0].clone();
    assert_eq!(
        ["old", "young", "same"].map(accepted),
        ["Accepted=True Accepted", "Accepted=False PortUnavailable", "Accepted=True Accepted"]
    );
}

/// What is said of a route's first parent.
fn of_route(objects: &Objects, name: &str) -> Vec<String> {
    let resolved = objects.resolved();
    let Some(state) = resolved.routes.iter().find(|route| &*route.meta.name == name) else { return Vec::new() };
    said(&status::route(Some(state), 3, &Value::Null, NOW)["parents"][0]["conditions"])
}

fn parent(more: Value) -> Value {
    let mut parent = json!({"name": "g", "namespace": "infra"});
    parent.as_object_mut().unwrap().append(&mut more.as_object().unwrap().clone());
    json!([parent])
}

#[test]
fn routes_attach_where_listeners_let_them() {
    let rules = || json!([{"backendRefs": [{"name": "web", "port": 80}]}]);
    let selector = json!({"from": "Selector", "selector": {"matchLabels": {"exposed": "yes"}}});
    let odd = json!({"matchExpressions": [{"key": "exposed", "operator": "Perhaps"}]});
    for (from, more, namespace, route, expected) in [
        (json!({"from": "All"}), json!({}), "a", json!({}), "True Accepted"),
        (json!({}), json!({}), "a", json!({}), "False NotAllowedByListeners"),
        (json!({"from": "Same"}), json!({}), "infra", json!({}), "True Accepted"),
        (json!({"from": "None"}), json!({}), "infra", json!({}), "False NotAllowedByListeners"),
        (selector.clone(), json!({}), "a", json!({}), "True Accepted"),
        (selector.clone(), json!({}), "b", json!({}), "False NotAllowedByListeners"),
        (selector, json!({}), "unknown", json!({}), "False NotAllowedByListeners"),
        (json!({"from": "Selector"}), json!({}), "a", json!({}), "False NotAllowedByListeners"),
        (json!({"from": "Selector", "selector": null}), json!({}), "a", json!({}), "False NotAllowedByListeners"),
        (json!({"from": "Selector", "selector": odd}), json!({}), "a", json!({}), "False NotAllowedByListeners"),
        (json!({"from": "All"}), json!({"sectionName": "l"}), "a", json!({}), "True Accepted"),
        (json!({"from": "All"}), json!({"sectionName": "x"}), "a", json!({}), "False NoMatchingParent"),
        (json!({"from": "All"}), json!({"port": 80}), "a", json!({}), "True Accepted"),
        (json!({"from": "All"}), json!({"port": 81}), "a", json!({}), "False NoMatchingParent"),
        (json!({"from": "All"}), json!({}), "a", json!({"hostnames": ["x.example.com"]}), "True Accepted"),
        (json!({"from": "All"}), json!({}), "a", json!({"hostnames": ["x.other"]}), "False NoMatchingListenerHostname"),
    ] {
        let mut objects = objects();
        let allowed = json!({"hostname": "*.example.com", "allowedRoutes": {"namespaces": from}});
        objects.gateway("g", 1, json!({"listeners": [listener("l", 80, "HTTP", allowed)]}));
        let mut spec = route.clone();
        (spec["parentRefs"], spec["rules"]) = (parent(more.clone()), rules());
        objects.route((namespace, "r"), 1, spec);
        assert_eq!(of_route(&objects, "r")[0], format!("Accepted={expected}"), "{from} {more} {namespace} {route}");
        let attached = of_gateway(&objects, "g", &Served::default()).2["listeners"][0]["attachedRoutes"].clone();
        assert_eq!(attached, json!(usize::from(expected.starts_with("True"))));
    }
    // A Gateway of another's class is another's, as are other kinds of parents.
    let mut objects = objects();
    objects.gateway("g", 1, json!({"gatewayClassName": "other", "listeners": [listener("l", 80, "HTTP", json!({}))]}));
    objects.route(("infra", "r"), 1, json!({"parentRefs": parent(json!({}))}));
    objects.route(("infra", "s"), 1, json!({"parentRefs": parent(json!({"group": "", "kind": "Service"}))}));
    assert_eq!(objects.resolved(), Resolved::default());
}

#[test]
fn a_route_s_conditions_say_what_is_wrong_with_its_rules() {
    let good = || json!({"backendRefs": [{"name": "web", "port": 80}]});
    let odd = || json!({"filters": [{"type": "CORS", "cors": {}}]});
    let mirror = |namespace: &str, name: &str| {
        let to = json!({"backendRef": {"name": name, "namespace": namespace, "port": 80}});
        json!({"filters": [{"type": "RequestMirror", "requestMirror": to}], "backendRefs": [{"name": "web", "port": 80}]})
    };
    let to = |namespace: &str, name: &str| json!({"backendRefs": [{"name": name, "namespace": namespace, "port": 80}]});
    for (rules, expected) in [
        (json!([good()]), vec!["Accepted=True Accepted", "ResolvedRefs=True ResolvedRefs"]),
        (
            json!([good(), odd()]),
            vec!["Accepted=True Accepted", "ResolvedRefs=True ResolvedRefs", "PartiallyInvalid=True UnsupportedValue"],
        ),
        (json!([odd()]), vec!["Accepted=False UnsupportedValue", "ResolvedRefs=True ResolvedRefs"]),
        (json!([to("a", "missing")]), vec!["Accepted=True Accepted", "ResolvedRefs=False BackendNotFound"]),
        (json!([to("b", "web")]), vec!["Accepted=True Accepted", "ResolvedRefs=True ResolvedRefs"]),
        (json!([to("infra", "web")]), vec!["Accepted=True Accepted", "ResolvedRefs=False RefNotPermitted"]),
        (json!([mirror("b", "web")]), vec!["Accepted=True Accepted", "ResolvedRefs=True ResolvedRefs"]),
        (json!([mirror("a", "missing")]), vec!["Accepted=True Accepted", "ResolvedRefs=False BackendNotFound"]),
        (json!([mirror("infra", "web")]), vec!["Accepted=True Accepted", "ResolvedRefs=False RefNotPermitted"]),
    ] {
        let mut objects = objects();
        objects.grant(("HTTPRoute", "a"), ("b", "Service"));
        let all = json!({"allowedRoutes": {"namespaces": {"from": "All"}}});
        objects.gateway("g", 1, json!({"listeners": [listener("l", 80, "HTTP", all)]}));
        objects.route(("a", "r"), 1, json!({"parentRefs": parent(json!({})), "rules": rules}));
        assert_eq!(of_route(&objects, "r"), expected, "{rules}");
    }
}

#[test]
fn a_route_is_read_where_it_is_served_and_there_is_room() {
    let expression = |text: &str| json!([{"matches": [{"path": {"type": "RegularExpression", "value": text}}]}]);
    let deep = json!([{"matches": vec![json!({"path": {"value": "/a".repeat(512)}}); 128],
        "backendRefs": [{"name": "web", "port": 80}]}]);
    let hosts = |count: usize| (0..count).map(|at| format!("h{at}.x")).collect::<Vec<_>>();
    let many = json!(
        (0..251)
            .map(|at| json!({"matches": [{"path": {"type": "RegularExpression", "value": format!("/{at}")}}],
        "backendRefs": [{"name": "web", "port": 80}]}))
            .collect::<Vec<_>>()
    );
    for (from, rules, hostnames, expected) in [
        // An expression that is none is not looked at where nobody lets the route in.
        ("Same", expression("("), hosts(1), "Accepted=False NotAllowedByListeners"),
        ("All", expression("("), hosts(1), "Accepted=False UnsupportedValue"),
        ("All", deep.clone(), hosts(0), "Accepted=False UnsupportedValue"),
        ("All", many, hosts(0), "Accepted=False UnsupportedValue"),
    ] {
        let mut objects = objects();
        let all = json!({"allowedRoutes": {"namespaces": {"from": from}}});
        objects.gateway("g", 1, json!({"listeners": [listener("l", 80, "HTTP", all)]}));
        objects.route(("a", "r"), 1, json!({"parentRefs": parent(json!({})), "hostnames": hostnames, "rules": rules}));
        assert_eq!(of_route(&objects, "r")[0], expected);
        // Others have theirs.
        let rules = json!([{"backendRefs": [{"name": "web", "port": 80}]}]);
        objects.route(("b", "s"), 2, json!({"parentRefs": parent(json!({})), "rules": rules}));
        let is_let_in = from == "All";
        assert_eq!(of_route(&objects, "s")[0] == "Accepted=True Accepted", is_let_in);
    }
}

#[test]
fn what_was_read_of_a_route_is_kept_while_its_rules_are_the_same() {
    let spec = |value: &str| json!({"rules": [{"matches": [{"path": {"value": value}}]}]});
    let read = |spec: &Value| Route::read(RouteKind::Http, meta("a", "r", 1), spec).unwrap();
    let first = read(&spec("/a"));
    first.matches();
    let (same, other) = (read(&spec("/a")).after(Some(&first)), read(&spec("/b")).after(Some(&first)));
    assert!(std::ptr::eq(same.matches(), first.matches()));
    assert_ne!(other.matches(), first.matches());
}

#[test]
fn a_hostname_is_of_the_older_gateway_s_namespace() {
    let mut objects = objects();
    let spec = |hostname: &str| json!({"gatewayClassName": "coracle", "listeners": [listener("l", 80, "HTTP", json!({"hostname": hostname}))]});
    objects.gateway("old", 1, spec("a.x"));
    objects.gateway("same", 2, spec("a.x"));
    for (name, hostname) in [("other", "a.x"), ("elsewhere", "b.x")] {
        let gateway = Gateway::read(meta("b", name, 3), &spec(hostname)).unwrap();
        objects.gateways.insert(gateway.meta.key(), gateway);
    }
    let conflicted = |name| of_gateway(&objects, name, &Served::default()).0[1].clone();
    let none = "Conflicted=False NoConflicts";
    let expected = [none, none, "Conflicted=True HostnameConflict", none];
    assert_eq!(["old", "same", "other", "elsewhere"].map(conflicted), expected);
}

#[test]
fn what_others_have_said_of_a_route_stays_and_times_move_with_statuses() {
    let mut objects = objects();
    objects.gateway("g", 1, json!({"listeners": [listener("l", 80, "HTTP", json!({}))]}));
    objects.route(
        ("infra", "r"),
        1,
        json!({"parentRefs": parent(json!({})), "rules": [{"backendRefs": [{"name": "missing", "port": 1}]}]}),
    );
    let resolved = objects.resolved();
    let other = json!({"controllerName": "example.com/other", "parentRef": {"name": "x"}, "conditions": []});
    let old = json!({"parents": [other]});
    let first = status::route(Some(&resolved.routes[0]), 3, &old, NOW);
    assert_eq!((first["parents"].as_array().unwrap().len(), &first["parents"][0]), (2, &other));
    // Ours stays where it is, too.
    let swapped = json!({"parents": [first["parents"][1], other]});
    assert_eq!(status::route(Some(&resolved.routes[0]), 3, &swapped, NOW), swapped);
    let full = json!({"parents": vec![other.clone(); 32]});
    assert_eq!(status::route(Some(&resolved.routes[0]), 3, &full, NOW), full);
    let later = "2027-01-01T00:00:00Z";
    assert_eq!(status::route(Some(&resolved.routes[0]), 3, &first, later), first);
    let mended = objects.resolve(&|_, _| None);
    let second = status::route(Some(&mended.routes[0]), 4, &first, later);
    let times: Vec<&Value> =
        second["parents"][1]["conditions"].as_array().unwrap().iter().map(|one| &one["lastTransitionTime"]).collect();
    assert_eq!(times, [NOW, later], "Accepted was so before");
    // It has no parent of ours any more.
    assert_eq!(status::route(None, 5, &second, later), old);
}

#[test]
fn a_grpc_route_is_a_route_with_words_of_its_own() {
    let good = || json!({"matches": [{"method": {"service": "a.B"}}], "backendRefs": [{"name": "web", "port": 80}]});
    let odd = || json!({"matches": [{"path": {"value": "/"}}]});
    let to = |namespace: &str| json!({"backendRefs": [{"name": "web", "namespace": namespace, "port": 80}]});
    let all = json!({"namespaces": {"from": "All"}});
    let only = |kind: &str| json!({"namespaces": {"from": "All"}, "kinds": [{"kind": kind}]});
    let fine = ["Accepted=True Accepted", "ResolvedRefs=True ResolvedRefs"];
    for (allowed, rules, expected) in [
        (&all, json!([good()]), fine.to_vec()),
        (&only("GRPCRoute"), json!([good()]), fine.to_vec()),
        (&only("HTTPRoute"), json!([good()]), vec!["Accepted=False NotAllowedByListeners", fine[1]]),
        (&all, json!([good(), odd()]), vec![fine[0], fine[1], "PartiallyInvalid=True UnsupportedValue"]),
        (&all, json!([odd()]), vec!["Accepted=False UnsupportedValue", fine[1]]),
        // Grants are for a kind of route.
        (&all, json!([to("b")]), fine.to_vec()),
        (&all, json!([to("c")]), vec![fine[0], "ResolvedRefs=False RefNotPermitted"]),
    ] {
        let mut objects = objects();
        objects.grant(("GRPCRoute", "a"), ("b", "Service"));
        objects.grant(("HTTPRoute", "a"), ("c", "Service"));
        objects.gateway("g", 1, json!({"listeners": [listener("l", 80, "HTTP", json!({"allowedRoutes": allowed}))]}));
        objects.grpc_route(("a", "r"), 1, json!({"parentRefs": parent(json!({})), "rules": rules}));
        assert_eq!(of_route(&objects, "r"), expected, "{allowed} {rules}");
        let is_accepted = expected[0] == fine[0];
        let attached = of_gateway(&objects, "g", &Served::default()).2["listeners"][0]["attachedRoutes"].clone();
        assert_eq!(attached, json!(usize::from(is_accepted)));
    }
}

/// The description of `hostnames` of a GRPCRoute.
#[test]
fn of_two_kinds_of_routes_for_one_host_the_older_one_is_there() {
    let spec = |hostnames: &[&str]| {
        let rules = json!([{"backendRefs": [{"name": "web", "port": 80}]}]);
        json!({"parentRefs": parent(json!({})), "hostnames": hostnames, "rules": rules})
    };
    let lost = "Accepted=False HostnameConflict";
    let fine = "Accepted=True Accepted";
    for (http, grpc, expected) in [
        ((1, vec!["a.x"]), (2, vec!["a.x"]), [fine, lost]),
        ((2, vec!["a.x"]), (1, vec!["a.x"]), [lost, fine]),
        // By `NAMESPACE/NAME`, as one text: `b-c/grpc` before `b/http`.
        ((1, vec!["a.x"]), (1, vec!["a.x"]), [lost, fine]),
        ((1, vec!["a.x"]), (2, vec!["b.x"]), [fine, fine]),
        ((1, vec!["*.x"]), (2, vec!["b.x"]), [fine, lost]),
        ((2, vec![]), (1, vec!["b.x", "c.x"]), [lost, fine]),
    ] {
        let mut objects = objects();
        let all = json!({"allowedRoutes": {"namespaces": {"from": "All"}}});
        objects.gateway("g", 1, json!({"listeners": [listener("l", 80, "HTTP", all)]}));
        objects.route(("b", "http"), http.0, spec(&http.1));
        objects.grpc_route(("b-c", "grpc"), grpc.0, spec(&grpc.1));
        let found = ["http", "grpc"].map(|name| of_route(&objects, name)[0].clone());
        assert_eq!(found, expected, "{http:?} {grpc:?}");
        let is_lost = expected.contains(&lost);
        let attached = of_gateway(&objects, "g", &Served::default()).2["listeners"][0]["attachedRoutes"].clone();
        assert_eq!(attached, json!(2 - usize::from(is_lost)));
    }
    // A route of which nothing can be honoured has no host; one that is elsewhere, too, is there.
    let mut objects = objects();
    let all = |hostname: &str| json!({"hostname": hostname, "allowedRoutes": {"namespaces": {"from": "All"}}});
    let listeners = json!([listener("l", 80, "HTTP", all("*.x")), listener("m", 80, "HTTP", all("*.y"))]);
    objects.gateway("g", 1, json!({"listeners": listeners}));
    let mut odd = spec(&["a.x"]);
    odd["rules"] = json!([{"filters": [{"type": "CORS"}]}]);
    objects.route(("b", "odd"), 1, odd);
    objects.route(("b", "http"), 2, spec(&["b.x"]));
    objects.grpc_route(("b", "both"), 3, spec(&["b.x", "b.y"]));
    objects.grpc_route(("b", "first"), 3, spec(&["a.x"]));
    let found = ["odd", "http", "both", "first"].map(|name| of_route(&objects, name)[0].clone());
    assert_eq!(found, ["Accepted=False UnsupportedValue", fine, fine, fine]);
    let resolved = objects.resolved();
    let both = resolved.routes.iter().find(|route| &*route.meta.name == "both").unwrap();
    let message = &both.parents[0].accepted.message;
    assert!(message.starts_with("HTTPRoute b/http, which goes before, has a hostname at port 80"), "{message}");
    let attached: Vec<usize> = resolved.gateways[0].listeners.iter().map(|of| of.attached.len()).collect();
    assert_eq!(attached, [2, 1]);
}

#[test]
fn a_class_with_parameters_has_no_gateways() {
    let mut objects = objects();
    let spec = json!({"controllerName": CONTROLLER, "parametersRef": {"name": "x"}});
    let class = Class::read(meta("", "coracle", 1), &spec);
    let status = status::class(&objects.accepts(&class), &Known::default().versions(), 3, &Value::Null, NOW);
    let conditions = ["Accepted=False InvalidParameters", "SupportedVersion=True SupportedVersion"];
    assert_eq!(said(&status["conditions"]), conditions);
    let names: Vec<&str> =
        status["supportedFeatures"].as_array().unwrap().iter().map(|of| of["name"].as_str().unwrap()).collect();
    assert!(names.is_sorted(), "{names:?}");
    objects.classes.insert("coracle".into(), class);
    objects.gateway("g", 1, json!({"listeners": [listener("l", 80, "HTTP", json!({}))]}));
    assert_eq!(objects.resolved(), Resolved::default());
}
