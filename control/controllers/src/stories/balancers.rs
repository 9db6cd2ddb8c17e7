//! Services of type LoadBalancer, and Gateways: what nodes say of them comes into statuses.

use super::*;

const LOAD_BALANCER: &str = "coracle.dev/load-balancer";
const GATEWAY: &str = "coracle.dev/gateway";

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
    let group = "/apis/gateway.networking.k8s.io/v1";
    let definition = |plural: &str| {
        format!("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{plural}.gateway.networking.k8s.io")
    };
    world.all_collected("before").await;
    let asked = |api: &Scripted| api.requests(&Method::GET, "gateway.networking.k8s.io/").len();
    assert_eq!(asked(api), 0, "nobody watches what is not there");
    api.put("/api/v1/namespaces/n", json!({}));
    let listener = json!({"name": "l", "port": 80, "protocol": "HTTP"});
    let spec = json!({"spec": {"gatewayClassName": "coracle", "listeners": [listener]}});
    api.put(&format!("{group}/namespaces/n/gateways/g"), spec);
    let rules = json!([{"backendRefs": [{"name": "web", "port": 80}]}]);
    let route = json!({"spec": {"parentRefs": [{"name": "g"}], "rules": rules}});
    api.put(&format!("{group}/namespaces/n/httproutes/r"), route);
    for plural in ["gatewayclasses", "gateways", "httproutes"] {
        api.put(&definition(plural), json!({}));
    }
    let reason = |at: &'static str, condition: &'static str, wanted: &'static str| {
        move |api: &Scripted| {
            let object = api.get(&format!("/apis/gateway.networking.k8s.io/v1/{at}"))?;
            let status = &object["status"];
            let of_parent = &status["parents"][0]["conditions"];
            let all = if of_parent.is_null() { &status["conditions"] } else { of_parent };
            let found = all.as_array()?.iter().find(|one| one["type"] == condition)?;
            (found["reason"] == wanted).then_some(())
        }
    };
    api.until("the class is made and accepted", reason("gatewayclasses/coracle", "Accepted", "Accepted")).await;
    let gateway = "namespaces/n/gateways/g";
    api.until("no node serves it", reason(gateway, "Programmed", "AddressNotAssigned")).await;
    let route = "namespaces/n/httproutes/r";
    api.until("its Service is missing", reason(route, "ResolvedRefs", "BackendNotFound")).await;
    api.put("/api/v1/nodes/one", says("True", GATEWAY, "10.0.0.1,80"));
    api.until("a node serves it", reason(gateway, "Programmed", "Programmed")).await;
    api.put("/api/v1/namespaces/n/services/web", json!({"spec": {"ports": [{"port": 80, "protocol": "TCP"}]}}));
    api.until("its Service is there", reason(route, "ResolvedRefs", "ResolvedRefs")).await;
    let written = |api: &Scripted| api.requests(&Method::PATCH, "gateway.networking.k8s.io/").len();
    let before = written(api);
    world.all_collected("after").await;
    assert_eq!(written(api), before, "nothing is written twice");
}
