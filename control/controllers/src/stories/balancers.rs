//! Services of type LoadBalancer, and Gateways: what nodes say of them comes into statuses.

use super::*;

const LOAD_BALANCER: &str = "coracle.dev/load-balancer";
const GATEWAY: &str = "coracle.dev/gateway";
/// Gateway API's own kinds.
const GROUP: &str = "/apis/gateway.networking.k8s.io/v1";

/// Where the definition of a kind of Gateway API is.
fn definition(plural: &str) -> String {
    format!("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{plural}.gateway.networking.k8s.io")
}

/// One that is served in v1, or is not any more.
fn served(is_served: bool) -> Value {
    json!({"spec": {"versions": [{"name": "v1beta1", "served": true}, {"name": "v1", "served": is_served}]}})
}

/// Whether a condition of an object of Gateway API, or of its first parent, has this reason.
fn reason(at: &'static str, condition: &'static str, wanted: &'static str) -> impl Fn(&Scripted) -> Option<()> {
    move |api: &Scripted| {
        let status = api.get(&format!("{GROUP}/{at}"))?["status"].clone();
        let of_parent = &status["parents"][0]["conditions"];
        let all = if of_parent.is_null() { &status["conditions"] } else { of_parent };
        let found = all.as_array()?.iter().find(|one| one["type"] == condition)?;
        (found["reason"] == wanted).then_some(())
    }
}

/// A Gateway, and a route of it to a Service.
fn put_gateway(api: &Scripted) {
    let listener = json!({"name": "l", "port": 80, "protocol": "HTTP"});
    let spec = json!({"spec": {"gatewayClassName": "coracle", "listeners": [listener]}});
    api.put(&format!("{GROUP}/namespaces/n/gateways/g"), spec);
    let rules = json!([{"backendRefs": [{"name": "web", "port": 80}]}]);
    let route = json!({"spec": {"parentRefs": [{"name": "g"}], "rules": rules}});
    api.put(&format!("{GROUP}/namespaces/n/httproutes/r"), route);
}

fn says(ready: &str, annotation: &str, text: &str) -> Value {
    let mut node = node(ready);
    node["metadata"]["annotations"] = json!({ annotation: text });
    node
}

#[tokio::test]
async fn a_load_balancer_has_the_addresses_of_ready_nodes_that_have_its_ports() {
    let world = world();
    let api = &world.api;
    let service = |name: &str| format!("/api/v1/namespaces/n/services/{name}");
    let spec = |class: Value| json!({"spec": {"type": "LoadBalancer", "loadBalancerClass": class, "ports": [{"port": 80, "protocol": "TCP"}]}});
    api.put("/api/v1/nodes/one", says("True", LOAD_BALANCER, "10.0.0.1,n/ours:80/TCP,n/theirs:80/TCP"));
    api.put("/api/v1/nodes/two", says("True", LOAD_BALANCER, "10.0.0.2,n/ours:80/TCP"));
    api.put(&service("theirs"), spec(json!("example.com/own")));
    api.put(&service("ours"), spec(Value::Null));
    let are = |wanted: &'static [&'static str]| {
        move |api: &Scripted| {
            let status = api.get("/api/v1/namespaces/n/services/ours")?["status"].clone();
            let points = status["loadBalancer"]["ingress"].as_array()?.clone();
            (points.iter().map(|point| &point["ip"]).collect::<Vec<_>>() == wanted).then_some(())
        }
    };
    api.until("both nodes are in its status", are(&["10.0.0.1", "10.0.0.2"])).await;
    let not_ready = json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}});
    api.merge("/api/v1/nodes/one", &not_ready);
    api.until("one is not any more", are(&["10.0.0.2"])).await;
    assert!(api.get(&service("theirs")).unwrap()["status"].is_null());
    let written = api.requests(&Method::PATCH, "/services").len();
    api.merge("/api/v1/nodes/two", &json!({"status": {"images": []}}));
    world.all_collected("s").await;
    assert_eq!(api.requests(&Method::PATCH, "/services").len(), written, "nothing is written twice");
}

#[tokio::test]
async fn gateways_are_told_of_while_their_definitions_are_there() {
    let world = world();
    let api = &world.api;
    world.all_collected("before").await;
    let asked = |api: &Scripted| api.requests(&Method::GET, "gateway.networking.k8s.io/").len();
    assert_eq!(asked(api), 0, "nobody watches what is not there");
    api.put("/api/v1/namespaces/n", json!({}));
    put_gateway(api);
    for plural in ["gatewayclasses", "gateways", "httproutes"] {
        api.put(&definition(plural), served(true));
    }
    api.until("the class is made and accepted", reason("gatewayclasses/coracle", "Accepted", "Accepted")).await;
    let gateway = "namespaces/n/gateways/g";
    api.until("no node serves it", reason(gateway, "Programmed", "AddressNotAssigned")).await;
    let route = "namespaces/n/httproutes/r";
    api.until("its Service is missing", reason(route, "ResolvedRefs", "BackendNotFound")).await;
    api.put("/api/v1/nodes/one", says("True", GATEWAY, "10.0.0.1,80"));
    api.until("a node serves it", reason(gateway, "Programmed", "Programmed")).await;
    api.put("/api/v1/namespaces/n/services/web", json!({"spec": {"ports": [{"port": 80, "protocol": "TCP"}]}}));
    api.until("its Service is there", reason(route, "ResolvedRefs", "ResolvedRefs")).await;
    let service = "/api/v1/namespaces/n/services/web";
    api.merge(service, &json!({"spec": {"type": "ExternalName", "externalName": "elsewhere.x"}}));
    api.until("its Service is a name", reason(route, "ResolvedRefs", "BackendNotFound")).await;
    api.merge(service, &json!({"spec": {"type": "ClusterIP"}}));
    api.until("its Service is one again", reason(route, "ResolvedRefs", "ResolvedRefs")).await;
    // What somebody else writes there does not stay.
    api.merge(&format!("{GROUP}/{gateway}"), &json!({"status": {"conditions": []}}));
    api.until("it is said again", reason(gateway, "Programmed", "Programmed")).await;
    let written = |api: &Scripted| api.requests(&Method::PATCH, "gateway.networking.k8s.io/").len();
    let before = written(api);
    world.all_collected("after").await;
    assert_eq!(written(api), before, "nothing is written twice");
}

#[tokio::test]
async fn a_kind_that_is_not_served_in_our_version_is_not_watched_until_it_is() {
    let world = world();
    let api = &world.api;
    put_gateway(api);
    for plural in ["gatewayclasses", "gateways", "httproutes"] {
        api.put(&definition(plural), served(plural != "gateways"));
    }
    api.until("nobody waits for it", reason("gatewayclasses/coracle", "Accepted", "Accepted")).await;
    let asked = |api: &Scripted| api.requests(&Method::GET, "/v1/gateways").len();
    assert_eq!(asked(api), 0);
    let change = |generation: i64, is_served: bool| {
        let mut definition = served(is_served);
        definition["metadata"] = json!({"generation": generation});
        definition
    };
    api.merge(&definition("gateways"), &change(2, true));
    let route = "namespaces/n/httproutes/r";
    api.until("its route is told", reason(route, "ResolvedRefs", "BackendNotFound")).await;
    api.merge(&definition("gateways"), &change(3, false));
    let is_silent = |api: &Scripted| {
        let object = api.get(&format!("{GROUP}/namespaces/n/httproutes/r"))?;
        object["status"]["parents"].as_array()?.is_empty().then_some(())
    };
    api.until("there are no Gateways any more", is_silent).await;
}

/// Also when something else is heard of before it is tried again, which says nothing of it.
#[tokio::test]
async fn a_status_that_was_refused_is_written_later() {
    let world = world();
    let api = &world.api;
    api.put("/api/v1/namespaces/n", json!({}));
    put_gateway(api);
    let route = "namespaces/n/httproutes/r";
    let refused = format!("{GROUP}/{route}/status");
    api.next(Method::PATCH, &refused, Answer::Refused(500, "InternalError"));
    for plural in ["gatewayclasses", "gateways", "httproutes"] {
        api.put(&definition(plural), served(true));
    }
    api.until("one is refused", |api| api.is_done().then_some(())).await;
    let gateway = "namespaces/n/gateways/g";
    let is_told = || reason(gateway, "Programmed", "AddressNotAssigned");
    api.until("another was written", is_told()).await;
    api.merge(&format!("{GROUP}/{gateway}"), &json!({"status": {"conditions": []}}));
    api.until("it is written again", is_told()).await;
    api.until("so is the one that was refused", reason(route, "ResolvedRefs", "BackendNotFound")).await;
}
