//! What Gateways and their routes say together, as routes of ports.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use coracle_gateway::{Action, Hostname, ListenerState, PathMatch, Protocol, Resolved, RouteState, Rule};

use super::{Listener, PortRoutes, Ports, Wants};
use crate::SecretKey;
use crate::routes::{Backend, ByHost, Claim, Compare, Host, Options, Origin, Paths, Route, RouteTable};

/// A listener in the making, of all Gateways that have it.
struct Made<'a> {
    /// When the oldest was made.
    created: i64,
    secrets: Vec<SecretKey>,
    /// Routes by their hosts.
    attached: Vec<(usize, &'a [Hostname])>,
}

/// A port in the making.
struct MadePort<'a> {
    protocol: Protocol,
    wanted_by: Vec<Wants>,
    hosts: HashMap<Hostname, Made<'a>>,
}

/// Routes by the ports at which requests for them come in.
pub(super) fn compile(resolved: &Resolved, generation: u64) -> Ports {
    let mut ports: BTreeMap<u16, MadePort<'_>> = BTreeMap::new();
    let mut wanted: HashSet<(u16, &str)> = HashSet::new();
    let served = resolved.gateways.iter().enumerate().filter(|(_, gateway)| gateway.accepted.holds);
    let listeners =
        served.flat_map(|(age, gateway)| gateway.listeners.iter().map(move |listener| (age, &gateway.meta, listener)));
    for (age, meta, listener) in listeners.filter(|(.., listener)| listener.is_served()) {
        let ListenerState { port, protocol: Some(protocol), hostname, secrets, attached, .. } = listener else {
            continue;
        };
        let of_port = ports.entry(*port).or_insert_with(|| MadePort {
            protocol: *protocol,
            wanted_by: Vec::new(),
            hosts: HashMap::new(),
        });
        if wanted.insert((*port, &meta.namespace)) {
            of_port.wanted_by.push(Wants { age, namespace: meta.namespace.clone() });
        }
        let made = of_port.hosts.entry(hostname.clone()).or_insert_with(|| Made {
            created: meta.created,
            secrets: Vec::new(),
            attached: Vec::new(),
        });
        let secret =
            |(namespace, name): &coracle_gateway::Key| SecretKey { namespace: namespace.clone(), name: name.clone() };
        made.secrets.extend(secrets.iter().map(secret));
        made.attached.extend(attached.iter().map(|(at, hosts)| (*at, &hosts[..])));
    }
    // Each rule once, however many listeners it is attached to.
    let routes: Vec<Vec<(PathMatch, Arc<Route>)>> = resolved.routes.iter().map(of_route).collect();
    let port = |(number, made): (u16, MadePort<'_>)| {
        let MadePort { protocol, wanted_by, hosts } = made;
        let mut of_port = PortRoutes { protocol, wanted_by, listeners: ByHost::default() };
        for (hostname, mut made) in hosts {
            let meta = |(at, _): &(usize, &[Hostname])| &resolved.routes[*at].meta;
            made.attached.sort_by(|a, b| meta(a).precedence(meta(b)));
            // By a host of its own a listener has it since the Gateway was made, by a more precise one since the oldest route was.
            let mut by_host: HashMap<&Hostname, (i64, Paths)> = HashMap::new();
            for (at, hosts) in made.attached {
                let created = resolved.routes[at].meta.created.max(made.created);
                for host in hosts {
                    let since = if *host == hostname { made.created } else { created };
                    let (_, paths) = by_host.entry(host).or_insert_with(|| (since, Paths::default()));
                    routes[at].iter().for_each(|(path, route)| add(paths, path, route));
                }
            }
            let (mut routes, mut claims) = (RouteTable::default(), ByHost::default());
            for (host, (since, paths)) in by_host {
                let host = Host::from(host);
                claims.set(&host, Some(Claim::of(&host, since)));
                routes.set(&host, paths);
            }
            let host = Host::from(&hostname);
            let claim = Claim::of(&host, made.created);
            let listener = Listener { secrets: made.secrets.into(), routes, claim, claims };
            of_port.listeners.set(&host, Some(Arc::new(listener)));
        }
        (number, of_port)
    };
    Ports { generation, ports: ports.into_iter().map(port).collect() }
}

fn add(paths: &mut Paths, path: &PathMatch, route: &Arc<Route>) {
    match path {
        PathMatch::Exact(path) => paths.add_among(Compare::Exact, path, route),
        PathMatch::Prefix(path) => paths.add_among(Compare::Prefix, path, route),
        PathMatch::Pattern(pattern) => paths.add_pattern(pattern, route),
    }
}

fn of_route(state: &RouteState) -> Vec<(PathMatch, Arc<Route>)> {
    let meta = &state.meta;
    let origin = Arc::new(Origin {
        kind: state.kind.name(),
        namespace: meta.namespace.clone(),
        name: meta.name.clone(),
        uid: meta.uid.clone(),
    });
    let mut routes = Vec::new();
    for Rule { matches, filters, action, timeout } in &state.rules {
        let backend = match action {
            Action::Forward(forward) => Backend::Split(forward.clone().into()),
            Action::Redirect(redirect) => Backend::Redirect(Arc::new(redirect.clone())),
            Action::Fail(why) => Backend::Nobody(why.clone()),
        };
        let options = Arc::new(Options { answer_max: *timeout, filters: filters.clone(), ..Options::default() });
        for of in matches {
            let conditions = (!of.conditions.are_none()).then(|| Arc::new(of.conditions.clone()));
            let route = Route {
                origin: origin.clone(),
                backend: backend.clone(),
                is_secure_only: false,
                options: options.clone(),
                conditions,
            };
            routes.push((of.path.clone(), Arc::new(route)));
        }
    }
    routes
}

#[cfg(test)]
mod tests {
    use coracle_gateway::{Class, Gateway, Meta, Objects, Route as Written, RouteKind};
    use http::{HeaderMap, Method};
    use serde_json::{Value, json};

    use super::*;
    use crate::Asked;

    fn meta(name: &str, created: i64) -> Meta {
        Meta { namespace: "n".into(), name: name.into(), uid: name.into(), created, generation: 1 }
    }

    /// Gateways with these listeners, and HTTPRoutes with these specs, the older ones first.
    fn compiled(gateways: &[Value], routes: &[(&str, Value)]) -> Ports {
        compiled_of(RouteKind::Http, gateways, routes)
    }

    /// The same with routes of a kind.
    fn compiled_of(kind: RouteKind, gateways: &[Value], routes: &[(&str, Value)]) -> Ports {
        let mut objects = Objects::default();
        let class = Class::read(meta("coracle", 1), &json!({"controllerName": coracle_gateway::CONTROLLER}));
        objects.classes.insert("coracle".into(), class);
        for (at, listeners) in gateways.iter().enumerate() {
            let spec = json!({"gatewayClassName": "coracle", "listeners": listeners});
            let gateway = Gateway::read(meta(&format!("g{at}"), i64::try_from(at).unwrap() + 1), &spec).unwrap();
            objects.gateways.insert(gateway.meta.key(), gateway);
        }
        for (at, (name, spec)) in routes.iter().enumerate() {
            let mut spec = spec.clone();
            if spec["parentRefs"].is_null() {
                spec["parentRefs"] = json!([{"name": "g0"}]);
            }
            let route = Written::read(kind, meta(name, i64::try_from(at).unwrap()), &spec).unwrap();
            let of_kind = match kind {
                RouteKind::Http => &mut objects.routes,
                RouteKind::Grpc => &mut objects.grpc_routes,
            };
            of_kind.insert(route.meta.key(), route);
        }
        compile(&objects.resolve(&|_, _| None), 1)
    }

    fn http(hostname: &str) -> Value {
        json!({"name": format!("l-{hostname}"), "port": 80, "protocol": "HTTP", "hostname": hostname})
    }

    /// A rule that leads to a Service of this name.
    fn rule(matches: Value, service: &str) -> Value {
        json!({"matches": [matches], "backendRefs": [{"name": service, "port": 80}]})
    }

    fn path(kind: &str, value: &str) -> Value {
        json!({"path": {"type": kind, "value": value}})
    }

    /// The Service to which a request goes: `METHOD host path?query header=value`.
    fn found(ports: &Ports, request: &str) -> String {
        let words: Vec<&str> = request.split(' ').collect();
        let (path, query) = words[2].split_once('?').map_or((words[2], None), |(path, query)| (path, Some(query)));
        let mut headers = HeaderMap::new();
        for (name, value) in words[3..].iter().filter_map(|header| header.split_once('=')) {
            headers.insert(http::HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
        }
        let method: Method = words[0].parse().unwrap();
        let asked = Asked::new(path, query, &method, &headers);
        match ports
            .get(80)
            .and_then(|port| port.listener(words[1], |_| true)?.find(words[1], &asked).unwrap())
            .map(|route| &route.backend)
        {
            Some(Backend::Split(forward)) => forward[0].target.as_ref().unwrap().name.to_string(),
            Some(other) => format!("{other:?}"),
            None => "none".to_owned(),
        }
    }

    /// The order that the description of `rules[].matches` gives.
    #[test]
    fn the_most_precise_match_takes_a_request() {
        let header = json!({"path": {"type": "PathPrefix", "value": "/a"}, "headers": [{"name": "v", "value": "2"}]});
        let two = json!({"path": {"type": "PathPrefix", "value": "/a"}, "headers": [{"name": "v", "value": "2"}, {"name": "w", "value": "1"}]});
        let query =
            json!({"path": {"type": "PathPrefix", "value": "/a"}, "queryParams": [{"name": "q", "value": "1"}]});
        let post = json!({"path": {"type": "PathPrefix", "value": "/a"}, "method": "POST"});
        let ports = compiled(
            &[json!([http("")])],
            &[
                (
                    "old",
                    json!({"rules": [
                        rule(path("PathPrefix", "/"), "root"), rule(path("PathPrefix", "/a"), "prefix"),
                        rule(path("Exact", "/a"), "exact"), rule(path("PathPrefix", "/a/b"), "longer"),
                        rule(path("RegularExpression", "/a/[0-9]+"), "pattern"),
                        rule(query, "query"), rule(header, "header"), rule(two, "two"), rule(post, "post"),
                        rule(path("PathPrefix", "/a"), "late"),
                    ]}),
                ),
                ("young", json!({"rules": [rule(path("PathPrefix", "/a"), "young"), rule(path("Exact", "/y"), "y")]})),
            ],
        );
        for (request, service) in [
            ("GET h /x", "root"),
            ("GET h /a", "exact"),
            ("GET h /a/", "prefix"),
            ("GET h /ab", "root"),
            ("GET h /a/b/c", "longer"),
            ("GET h /a/12", "pattern"),
            ("GET h /a/12x", "prefix"),
            ("GET h /a/c v=2", "header"),
            ("GET h /a/c v=2 w=1", "two"),
            ("GET h /a/c?q=1 v=2", "header"),
            ("GET h /a/c?q=1", "query"),
            ("POST h /a/c v=2 w=1", "post"),
            ("GET h /y", "y"),
        ] {
            assert_eq!(found(&ports, request), service, "{request}");
        }
    }

    /// The order that the description of a GRPCRoute's `rules[].matches` gives.
    #[test]
    fn the_longer_name_of_a_service_and_then_of_a_method_takes_a_call() {
        let method = |service: &str, method: &str| json!({"method": {"service": service, "method": method}});
        let header = json!({"method": {"service": "a.B"}, "headers": [{"name": "v", "value": "2"}]});
        let expression = json!({"method": {"type": "RegularExpression", "service": "a[.]R.*"}});
        let ports = compiled_of(
            RouteKind::Grpc,
            &[json!([http("")])],
            &[
                (
                    "old",
                    json!({"rules": [
                        {"backendRefs": [{"name": "rest", "port": 80}]}, rule(method("", "Get"), "get"),
                        rule(method("", "Delete"), "delete"), rule(method("a.B", ""), "service"),
                        rule(method("a.B", "Get"), "both"), rule(header, "header"), rule(expression, "expression"),
                    ]}),
                ),
                ("young", json!({"rules": [rule(method("a.B", ""), "young"), rule(method("a.B", "Set"), "set")]})),
            ],
        );
        for (request, service) in [
            ("POST h /a.B/Get", "both"),
            ("POST h /a.B/Get v=2", "both"),
            ("POST h /a.B/Set", "set"),
            ("POST h /a.B/Delete", "service"),
            ("POST h /a.B/Delete v=2", "header"),
            ("POST h /a.BC/Get", "get"),
            ("POST h /a.Real/Get", "expression"),
            ("POST h /x.Y/Delete", "delete"),
            ("POST h /x.Y/Put", "rest"),
        ] {
            assert_eq!(found(&ports, request), service, "{request}");
        }
    }

    #[test]
    fn where_no_condition_of_a_longer_path_is_met_a_shorter_one_takes_it() {
        let only = json!({"path": {"type": "PathPrefix", "value": "/a/b"}, "headers": [{"name": "v", "value": "2"}]});
        let exact = json!({"path": {"type": "Exact", "value": "/a/b"}, "method": "PUT"});
        let rules = json!([rule(path("PathPrefix", "/a"), "a"), rule(only, "v2"), rule(exact, "put")]);
        let ports = compiled(&[json!([http("")])], &[("r", json!({"rules": rules}))]);
        let requests = ["GET h /a/b", "GET h /a/b v=2", "PUT h /a/b", "PUT h /a/b v=2", "GET h /b"];
        assert_eq!(requests.map(|request| found(&ports, request)), ["a", "v2", "put", "put", "none"]);
    }

    #[test]
    fn a_listener_s_host_decides_first_and_then_a_route_s() {
        let to = |service: &str| json!([rule(path("PathPrefix", "/"), service)]);
        let parent = |listener: &str| json!([{"name": "g0", "sectionName": format!("l-{listener}")}]);
        let ports = compiled(
            &[json!([http(""), http("*.example.com"), http("foo.example.com")])],
            &[
                ("any", json!({"parentRefs": parent(""), "rules": to("any")})),
                ("wild", json!({"parentRefs": parent("*.example.com"), "rules": to("wild")})),
                (
                    "bar",
                    json!({"parentRefs": parent("*.example.com"), "hostnames": ["bar.example.com"], "rules": to("bar")}),
                ),
                (
                    "deep",
                    json!({"parentRefs": parent("*.example.com"), "hostnames": ["*.deep.example.com"], "rules": to("deep")}),
                ),
                (
                    "foo",
                    json!({"parentRefs": parent("foo.example.com"), "rules": [rule(path("PathPrefix", "/only"), "foo")]}),
                ),
            ],
        );
        for (request, service) in [
            ("GET other /", "any"),
            ("GET x.example.com /", "wild"),
            ("GET x.y.example.com /", "wild"),
            ("GET bar.example.com /", "bar"),
            ("GET a.b.deep.example.com /", "deep"),
            ("GET foo.example.com /only", "foo"),
            // Another listener's routes are not asked (`GatewayHTTPListenerIsolation`).
            ("GET foo.example.com /", "none"),
            ("GET example.com /", "any"),
        ] {
            assert_eq!(found(&ports, request), service, "{request}");
        }
    }

    #[test]
    fn gateways_with_one_listener_share_it_and_what_is_not_served_has_no_port() {
        let to = |service: &str| json!([rule(path("PathPrefix", "/"), service)]);
        let ports = compiled(
            &[json!([http("a.x")]), json!([http("a.x"), {"name": "t", "port": 443, "protocol": "HTTPS"}])],
            &[
                ("first", json!({"rules": [rule(path("Exact", "/first"), "first")]})),
                ("second", json!({"parentRefs": [{"name": "g1"}], "rules": to("second")})),
            ],
        );
        assert_eq!([found(&ports, "GET a.x /first"), found(&ports, "GET a.x /")], ["first", "second"]);
        assert!(ports.get(443).is_none(), "it has no certificate");
    }

    #[test]
    fn certificates_are_found_by_the_listener_s_host() {
        let tls = |hostname: &str, secret: &str| {
            json!({"name": secret, "port": 443, "protocol": "HTTPS", "hostname": hostname,
                "tls": {"certificateRefs": [{"name": secret}]}})
        };
        let ports = compiled(&[json!([tls("a.x", "a"), tls("*.x", "wild"), tls("", "any")])], &[]);
        let port = ports.get(443).unwrap();
        let shown = |name: &str, missing: &str| {
            let listener = port.listener(name, |secret| &*secret.name != missing).unwrap();
            listener.secrets[0].name.to_string()
        };
        assert_eq!(["a.x", "b.x", "c.b.x", "y", ""].map(|name| shown(name, "")), ["a", "wild", "wild", "any", "any"]);
        assert_eq!(shown("a.x", "a"), "wild", "one without a certificate is not served");
    }

    #[test]
    fn a_port_is_wanted_by_each_namespace_once_the_oldest_first() {
        let mut objects = Objects::default();
        let class = Class::read(meta("coracle", 1), &json!({"controllerName": coracle_gateway::CONTROLLER}));
        objects.classes.insert("coracle".into(), class);
        for (namespace, name, created) in [("b", "old", 1), ("a", "young", 3), ("b", "younger", 4), ("a", "second", 2)]
        {
            let listeners = json!([http(&format!("{name}.x"))]);
            let spec = json!({"gatewayClassName": "coracle", "listeners": listeners});
            let meta = Meta { namespace: namespace.into(), ..meta(name, created) };
            objects.gateways.insert(meta.key(), Gateway::read(meta, &spec).unwrap());
        }
        let ports = compile(&objects.resolve(&|_, _| None), 1);
        let wants: Vec<_> = ports.get(80).unwrap().wanted_by.iter().map(|of| (of.age, &*of.namespace)).collect();
        assert_eq!(wants, [(0, "b"), (1, "a")]);
    }

    #[test]
    fn of_routes_of_one_age_the_name_decides_as_gateway_api_says() {
        let mut objects = Objects::default();
        let class = Class::read(meta("coracle", 1), &json!({"controllerName": coracle_gateway::CONTROLLER}));
        objects.classes.insert("coracle".into(), class);
        let spec = json!({"gatewayClassName": "coracle", "listeners": [http("")]});
        objects.gateways.insert(meta("g0", 1).key(), Gateway::read(meta("g0", 1), &spec).unwrap());
        for (name, uid) in [("a", "2"), ("b", "1")] {
            let spec = json!({"parentRefs": [{"name": "g0"}], "rules": [rule(path("PathPrefix", "/"), name)]});
            let meta = Meta { uid: uid.into(), ..meta(name, 1) };
            let route = Written::read(RouteKind::Http, meta, &spec).unwrap();
            objects.routes.insert(route.meta.key(), route);
        }
        assert_eq!(found(&compile(&objects.resolve(&|_, _| None), 1), "GET h /"), "a");
    }

    #[test]
    fn secrets_of_older_gateways_come_first_and_each_once() {
        let tls = |hostname: &str, secrets: &[&str]| {
            let secrets: Vec<Value> = secrets.iter().map(|name| json!({"name": name})).collect();
            json!([{"name": "l", "port": 443, "protocol": "HTTPS", "hostname": hostname,
                "tls": {"certificateRefs": secrets}}])
        };
        let ports = compiled(&[tls("b.x", &["z", "y"]), tls("a.x", &["a", "z"])], &[]);
        let names: Vec<&str> = ports.all_secrets().map(|secret| &*secret.name).collect();
        assert_eq!(names, ["y", "z", "a"]);
    }

    #[test]
    fn a_name_is_whose_host_is_more_precise_and_then_older() {
        let claim = |host: &str, since| Claim::of(&Host::parse(host), since);
        for (of, other, is_before) in [
            (claim("a.x", 9), claim("*.x", 1), true),
            (claim("*.x", 1), claim("a.x", 9), false),
            (claim("*.b.x", 9), claim("*.x", 1), true),
            (claim("", 9), claim("*.x", 1), false),
            (claim("a.x", 1), claim("a.x", 2), true),
            (claim("a.x", 2), claim("a.x", 2), false),
        ] {
            assert_eq!(of.is_before(other), is_before, "{of:?} {other:?}");
        }
        let rules = json!([rule(path("PathPrefix", "/"), "a")]);
        let ports = compiled(
            &[json!([http("a.x"), http("")])],
            &[("first", json!({"rules": rules})), ("b", json!({"hostnames": ["b.x"], "rules": rules}))],
        );
        let claimed = |name: &str| ports.get(80).unwrap().listener(name, |_| true).unwrap().claim(name);
        // The Gateway is of second 1, as the second route is; a listener's own host is the Gateway's.
        let expected = [claim("a.x", 1), claim("b.x", 1), claim("", 1)];
        assert_eq!(["a.x", "b.x", "c.x"].map(claimed), expected);
    }
}
