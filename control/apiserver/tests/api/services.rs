//! Addresses and node ports are given out once.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::Server;

const SERVICES: &str = "/api/v1/namespaces/default/services";

fn service(name: &str, kind: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"type": kind, "selector": {"app": "x"}, "ports": [{"port": 80}]}})
}

#[tokio::test]
async fn no_two_services_have_the_same_address_or_port() {
    let server = Server::start().await;
    let names: Vec<String> = (0..40).map(|at| format!("s{at}")).collect();
    let made =
        futures::future::join_all(names.iter().map(|name| server.make(SERVICES, service(name, "NodePort")))).await;
    let addresses: BTreeSet<String> = made.iter().map(|made| made["spec"]["clusterIP"].to_string()).collect();
    let ports: BTreeSet<u64> = made.iter().filter_map(|made| made["spec"]["ports"][0]["nodePort"].as_u64()).collect();
    assert_eq!((addresses.len(), ports.len()), (40, 40));
}

#[tokio::test]
async fn what_a_service_held_is_free_when_it_is_gone() {
    let server = Server::start().await;
    let mut asked = service("a", "NodePort");
    asked["spec"]["clusterIP"] = json!("10.96.0.77");
    asked["spec"]["ports"][0]["nodePort"] = json!(30080);
    server.make(SERVICES, asked.clone()).await;
    asked["metadata"]["name"] = json!("b");
    let (code, refused) = server.call("POST", SERVICES, asked.clone()).await;
    assert_eq!(code, 422, "{refused}");
    assert!(refused["message"].as_str().unwrap().contains("provided IP is already allocated"), "{refused}");
    server.call("DELETE", &format!("{SERVICES}/a"), Value::Null).await;
    server.make(SERVICES, asked).await;

    // Another type gives the port back, and a patch keeps the address.
    let (code, changed) = server.call("PATCH", &format!("{SERVICES}/b"), json!({"spec": {"type": "ClusterIP"}})).await;
    assert_eq!((code, &changed["spec"]["clusterIP"]), (200, &json!("10.96.0.77")), "{changed}");
    assert!(changed["spec"]["ports"][0].get("nodePort").is_none());
    let mut again = service("c", "NodePort");
    again["spec"]["ports"][0]["nodePort"] = json!(30080);
    server.make(SERVICES, again).await;
}

#[tokio::test]
async fn an_address_stays_whatever_is_asked_for_in_its_place() {
    let server = Server::start().await;
    server.make(SERVICES, service("a", "ClusterIP")).await;
    for (address, what) in [("10.96.0.1", "another's"), ("10.0.0.12", "not of the range")] {
        let patch = json!({"spec": {"clusterIP": address, "clusterIPs": [address]}});
        let (code, refused) = server.call("PATCH", &format!("{SERVICES}/a"), patch).await;
        let message = refused["message"].as_str().unwrap_or_default();
        assert!(code == 422 && message.contains("may not change once set"), "{what}: {refused}");
        assert!(!message.contains("allocate"), "{what}: {refused}");
    }
}

#[tokio::test]
async fn a_claim_that_is_another_s_is_not_given_back() {
    use coracle_keyspace::{Guard, Key, Op, Value as Content};
    let server = Server::start().await;
    let mut asked = service("a", "NodePort");
    asked["spec"]["ports"][0]["nodePort"] = json!(30081);
    server.make(SERVICES, asked).await;
    let key = Key::new("coracle.nodeports", "30081");
    let bytes = bytes::Bytes::from_static(b"{\"holder\":\"default/other\"}");
    let value = Content { revision_at: bytes.len(), bytes };
    server.keyspace.transact(vec![Op::Put { key, value, guard: Guard::Present }]).await.unwrap();
    let (code, answer) = server.call("DELETE", &format!("{SERVICES}/a"), Value::Null).await;
    assert_eq!(code, 200, "{answer}");
    assert!(server.keyspace.get("coracle.nodeports", "30081").is_some());
}

#[tokio::test]
async fn the_api_has_a_service_of_its_own() {
    let server = Server::start().await;
    let (code, service) = server.get(&format!("{SERVICES}/kubernetes")).await;
    assert_eq!((code, &service["spec"]["clusterIP"]), (200, &json!("10.96.0.1")));
    let (_, slices) = server.get("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices").await;
    assert_eq!(slices["items"][0]["endpoints"][0]["addresses"][0], "127.0.0.1");
}

#[tokio::test]
async fn the_service_of_the_api_is_kept() {
    let server = Server::start().await;
    let objects = [
        "/api/v1/namespaces/default/services/kubernetes",
        "/api/v1/namespaces/default/endpoints/kubernetes",
        "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes",
    ];
    for path in objects {
        let (_, before) = server.get(path).await;
        assert_eq!(server.call("DELETE", path, Value::Null).await.0, 200, "{path}");
        let after = server.appears(path).await;
        for part in ["spec", "subsets", "endpoints", "ports"] {
            assert_eq!(before.get(part), after.get(part), "{path}");
        }
    }
}

#[tokio::test]
async fn what_clients_expect_in_every_cluster_is_there() {
    let server = Server::start().await;
    let (code, role) = server.get("/apis/rbac.authorization.k8s.io/v1/clusterroles/cluster-admin").await;
    assert_eq!((code, &role["rules"][0]["verbs"]), (200, &json!(["*"])));
    assert_eq!(role["metadata"]["labels"]["kubernetes.io/bootstrapping"], "rbac-defaults");
    let (_, binding) = server.get("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/cluster-admin").await;
    assert_eq!(binding["subjects"][0]["name"], "system:masters");
    for name in ["scheduler", "controller-manager", "etcd-0"] {
        let (code, component) = server.get(&format!("/api/v1/componentstatuses/{name}")).await;
        assert_eq!((code, &component["conditions"][0]["type"]), (200, &json!("Healthy")), "{name}");
    }
}

#[tokio::test]
async fn a_port_that_is_asked_for_by_number_is_free_and_of_the_range() {
    let server = Server::start().await;
    let mut holds = service("holds", "NodePort");
    holds["spec"]["ports"][0]["nodePort"] = json!(30090);
    server.make(SERVICES, holds).await;
    let health = |port: i64| {
        let mut asked = service("a", "LoadBalancer");
        asked["spec"]["externalTrafficPolicy"] = json!("Local");
        asked["spec"]["ports"][0]["nodePort"] = json!(30091);
        asked["spec"]["healthCheckNodePort"] = json!(port);
        asked
    };
    let node_port = |port: i64| {
        let mut asked = service("a", "NodePort");
        asked["spec"]["ports"][0]["nodePort"] = json!(port);
        asked
    };
    let mut not_given = node_port(30090);
    not_given["spec"]["type"] = json!("LoadBalancer");
    not_given["spec"]["allocateLoadBalancerNodePorts"] = json!(false);
    let (allocated, range) = ("provided port is already allocated", "provided port is not in the valid range");
    for (asked, why) in [
        (health(30090), allocated),
        (health(30091), allocated),
        (health(443), range),
        (node_port(30090), allocated),
        (node_port(443), range),
        (not_given, allocated),
        (node_port(70_000), range),
        (node_port(-1), range),
    ] {
        let (code, answer) = server.call("POST", SERVICES, asked.clone()).await;
        assert_eq!(code, 422, "{asked}: {answer}");
        assert!(answer["message"].as_str().unwrap().contains(why), "{asked}: {answer}");
    }
    server.make(SERVICES, health(30092)).await;
    let change = json!({"spec": {"healthCheckNodePort": 30092, "ports": [{"port": 80, "nodePort": 30093}]}});
    assert_eq!(server.call("PATCH", &format!("{SERVICES}/a"), change).await.0, 200, "it has it");
}

#[tokio::test]
async fn a_service_of_two_families_is_refused() {
    let server = Server::start().await;
    for (policy, families, field) in [
        (json!("RequireDualStack"), Value::Null, "spec.ipFamilyPolicy"),
        (json!("SingleStack"), json!(["IPv6"]), "spec.ipFamilies[0]"),
        (Value::Null, json!(["IPv4", "IPv6"]), "spec.ipFamilies[1]"),
    ] {
        let mut asked = service("a", "ClusterIP");
        asked["spec"]["ipFamilyPolicy"] = policy;
        asked["spec"]["ipFamilies"] = families;
        let (code, answer) = server.call("POST", SERVICES, asked.clone()).await;
        assert_eq!(code, 422, "{asked}: {answer}");
        let causes = answer["details"]["causes"].as_array().unwrap();
        assert!(causes.iter().any(|cause| cause["field"] == field), "{asked}: {answer}");
    }
    let mut prefers = service("a", "ClusterIP");
    prefers["spec"]["ipFamilyPolicy"] = json!("PreferDualStack");
    assert_eq!(server.make(SERVICES, prefers).await["spec"]["ipFamilies"], json!(["IPv4"]));
    let headless = json!({"metadata": {"name": "b"}, "spec": {"clusterIP": "None", "ports": [{"port": 80}]}});
    assert_eq!(server.make(SERVICES, headless).await["spec"]["ipFamilyPolicy"], "RequireDualStack");
}
