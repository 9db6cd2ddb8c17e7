//! ResourceQuota and LimitRange. There is no controller here: a test writes what it would count.

use std::collections::BTreeMap;

use axum::body::Body;
use http::Request;
use serde_json::{Value, json};

use crate::{Server, admin, config_map, pod};

const PODS: &str = "/api/v1/namespaces/default/pods";
const QUOTAS: &str = "/api/v1/namespaces/default/resourcequotas";
const RANGES: &str = "/api/v1/namespaces/default/limitranges";
const PENDING: &str = "coracle.quotacharges";

/// A quota that was counted: nothing is used of it yet.
async fn quota(server: &Server, name: &str, spec: Value) -> Value {
    let quota = json!({"metadata": {"name": name}, "spec": spec});
    let made = server.make(QUOTAS, quota).await;
    let hard = made["spec"]["hard"].clone();
    let used: Value = hard.as_object().expect("limits").keys().map(|name| (name.clone(), json!("0"))).collect();
    let status = json!({"status": {"hard": hard, "used": used}});
    let (code, counted) = server.call("PATCH", &format!("{QUOTAS}/{name}/status"), status).await;
    assert_eq!(code, 200, "{counted}");
    counted
}

async fn used(server: &Server, name: &str) -> Value {
    server.get(&format!("{QUOTAS}/{name}")).await.1["status"]["used"].clone()
}

fn pending(server: &Server) -> usize {
    server.keyspace.snapshot(PENDING).records.len()
}

fn message(answer: &Value) -> &str {
    answer["message"].as_str().unwrap_or_default()
}

#[tokio::test]
async fn a_race_takes_what_there_is_and_no_more() {
    const CLIENTS: usize = 64;
    let server = Server::start().await.with_account().await;
    quota(&server, "a", json!({"hard": {"pods": "20", "count/pods": "40"}})).await;
    quota(&server, "b", json!({"hard": {"pods": "30"}})).await;
    quota(&server, "c", json!({"hard": {"pods": "1"}, "scopes": ["Terminating"]})).await;
    let creates = (0..CLIENTS).map(|index| {
        let server = &server;
        async move { server.call("POST", PODS, pod(&format!("p{index}"))).await }
    });
    let mut outcomes: BTreeMap<u16, usize> = BTreeMap::new();
    for (code, answer) in futures::future::join_all(creates).await {
        *outcomes.entry(code).or_default() += 1;
        if code != 201 {
            let why = "is forbidden: exceeded quota: a, requested: pods=1, used: pods=20, limited: pods=20";
            assert!(message(&answer).ends_with(why), "{answer}");
        }
    }
    assert_eq!(outcomes, BTreeMap::from([(201, 20), (403, CLIENTS - 20)]));
    assert_eq!(used(&server, "a").await, json!({"pods": "20", "count/pods": "20"}));
    assert_eq!(used(&server, "b").await, json!({"pods": "20"}));
    assert_eq!(used(&server, "c").await, json!({"pods": "0"}), "it is about other pods");
    assert_eq!((server.get(PODS).await.1["items"].as_array().map(Vec::len), pending(&server)), (Some(20), 0));
}

#[tokio::test]
async fn what_is_not_written_takes_nothing() {
    let server = Server::start().await;
    quota(&server, "q", json!({"hard": {"count/configmaps": "2"}})).await;
    let path = "/api/v1/namespaces/default/configmaps";
    server.make(path, config_map("a", json!({}))).await;
    let one = json!({"count/configmaps": "1"});
    for (query, object, expected) in [
        ("", config_map("a", json!({})), 409),
        ("", config_map("A", json!({})), 422),
        ("?dryRun=All", config_map("b", json!({})), 201),
    ] {
        assert_eq!(server.call("POST", &format!("{path}{query}"), object).await.0, expected);
        assert_eq!(used(&server, "q").await, one);
    }
    let (code, _) = server.call("PATCH", &format!("{path}/a"), json!({"data": {"x": "y"}})).await;
    assert_eq!((code, used(&server, "q").await), (200, one), "a change of it is none of its number");
    server.make(path, config_map("b", json!({}))).await;
    for query in ["", "?dryRun=All"] {
        let (code, answer) = server.call("POST", &format!("{path}{query}"), config_map("c", json!({}))).await;
        assert_eq!(
            (code, message(&answer)),
            (
                403,
                "configmaps \"c\" is forbidden: exceeded quota: q, requested: count/configmaps=1, used: \
              count/configmaps=2, limited: count/configmaps=2"
            ),
        );
    }
    // By whatever door it comes: an apply makes it, too.
    let apply = format!("{path}/d?fieldManager=m");
    let object = config_map("d", json!({}));
    assert_eq!(server.call_as("PATCH", &apply, "application/apply-patch+yaml", &object).await.0, 403);
}

#[tokio::test]
async fn a_pod_says_what_a_quota_asks_for_and_a_range_says_it_for_it() {
    let server = Server::start().await.with_account().await;
    quota(&server, "q", json!({"hard": {"requests.cpu": "1", "limits.memory": "1Gi"}})).await;
    let (code, answer) = server.call("POST", PODS, pod("p")).await;
    assert_eq!(
        (code, message(&answer)),
        (403, "pods \"p\" is forbidden: failed quota: q: must specify limits.memory for: c; requests.cpu for: c"),
    );
    let items = json!([{"type": "Container", "default": {"memory": "512Mi"}, "defaultRequest": {"cpu": "600m"},
        "max": {"memory": "1Gi"}, "min": {"cpu": "100m"}}]);
    let range = server.make(RANGES, json!({"metadata": {"name": "r"}, "spec": {"limits": items}})).await;
    assert_eq!(range["spec"]["limits"][0]["defaultRequest"], json!({"cpu": "600m", "memory": "512Mi"}));
    let made = server.make(PODS, pod("p")).await;
    let given = json!({"limits": {"memory": "512Mi"}, "requests": {"cpu": "600m", "memory": "512Mi"}});
    assert_eq!(made["spec"]["containers"][0]["resources"], given);
    assert_eq!(
        made["metadata"]["annotations"]["kubernetes.io/limit-ranger"],
        "LimitRanger plugin set: cpu, memory request for container c; memory limit for container c"
    );
    assert_eq!(made["status"]["qosClass"], "Burstable");
    assert_eq!(used(&server, "q").await, json!({"requests.cpu": "600m", "limits.memory": "512Mi"}));
    let with = |name: &str, resources: Value| {
        let mut pod = pod(name);
        pod["spec"]["containers"][0]["resources"] = resources;
        pod
    };
    for (resources, expected) in [
        (
            json!({}),
            "exceeded quota: q, requested: requests.cpu=600m, used: requests.cpu=600m, limited: requests.cpu=1",
        ),
        // Ranges are asked before quotas.
        (
            json!({"requests": {"cpu": "50m"}, "limits": {"memory": "2Gi"}}),
            "[minimum cpu usage per Container is 100m, but request is 50m, maximum memory usage per Container is 1Gi, \
             but limit is 2Gi]",
        ),
    ] {
        let (code, answer) = server.call("POST", PODS, with("x", resources)).await;
        assert_eq!((code, message(&answer)), (403, &*format!("pods \"x\" is forbidden: {expected}")));
    }
    let claim = |storage: &str| {
        json!({"metadata": {"name": "v"}, "spec": {"accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": storage}}}})
    };
    let bounds = json!([{"type": "PersistentVolumeClaim", "max": {"storage": "1Gi"}}]);
    server.make(RANGES, json!({"metadata": {"name": "claims"}, "spec": {"limits": bounds}})).await;
    let claims = "/api/v1/namespaces/default/persistentvolumeclaims";
    let (code, answer) = server.call("POST", claims, claim("2Gi")).await;
    assert_eq!(
        (code, message(&answer)),
        (
            403,
            "persistentvolumeclaims \"v\" is forbidden: maximum storage usage per PersistentVolumeClaim is 1Gi, but \
          request is 2Gi"
        ),
    );
    quota(&server, "storage", json!({"hard": {"requests.storage": "2Gi", "persistentvolumeclaims": "3"}})).await;
    server.make(claims, claim("1Gi")).await;
    assert_eq!(used(&server, "storage").await, json!({"requests.storage": "1Gi", "persistentvolumeclaims": "1"}));
}

#[tokio::test]
async fn changes_are_charged_and_kinds_of_services_told_apart() {
    let server = Server::start().await;
    quota(&server, "q", json!({"hard": {"services": "2", "services.nodeports": "1", "services.loadbalancers": "0"}}))
        .await;
    let path = "/api/v1/namespaces/default/services";
    let service = |name: &str| json!({"metadata": {"name": name}, "spec": {"ports": [{"port": 80}]}});
    server.make(path, service("a")).await;
    server.make(path, service("b")).await;
    let (code, answer) = server.call("POST", path, service("c")).await;
    assert_eq!(code, 403, "{answer}");
    let retype = async |name: &str, kind: &str| {
        let (code, answer) = server.call("PATCH", &format!("{path}/{name}"), json!({"spec": {"type": kind}})).await;
        (code, message(&answer).to_owned())
    };
    assert_eq!(retype("a", "NodePort").await.0, 200);
    let all = json!({"services": "2", "services.nodeports": "1", "services.loadbalancers": "0"});
    assert_eq!(used(&server, "q").await, all);
    assert_eq!(
        retype("b", "NodePort").await,
        (
            403,
            "services \"b\" is forbidden: exceeded quota: q, requested: services.nodeports=1, used: services.nodeports=1, \
             limited: services.nodeports=1"
                .to_owned()
        )
    );
    // What is given back is counted by the controller.
    assert_eq!((retype("a", "ClusterIP").await.0, used(&server, "q").await), (200, all));
}

#[tokio::test]
async fn a_quota_counts_quotas_and_holds_when_it_was_counted() {
    let server = Server::start().await;
    server.make(QUOTAS, json!({"metadata": {"name": "new"}, "spec": {"hard": {"configmaps": "0"}}})).await;
    server.make("/api/v1/namespaces/default/configmaps", config_map("a", json!({}))).await;
    let status = json!({"status": {"hard": {"configmaps": "0"}, "used": {}}});
    server.call("PATCH", &format!("{QUOTAS}/new/status"), status).await;
    let (code, answer) = server.call("POST", "/api/v1/namespaces/default/configmaps", config_map("b", json!({}))).await;
    assert_eq!(
        (code, message(&answer)),
        (403, "configmaps \"b\" is forbidden: status unknown for quota: new, resources: configmaps")
    );
    quota(&server, "quotas", json!({"hard": {"resourcequotas": "1"}})).await;
    server.make(QUOTAS, json!({"metadata": {"name": "first"}, "spec": {"hard": {"pods": "1"}}})).await;
    assert_eq!((used(&server, "quotas").await, pending(&server)), (json!({"resourcequotas": "1"}), 0));
    let (code, answer) =
        server.call("POST", QUOTAS, json!({"metadata": {"name": "second"}, "spec": {"hard": {"pods": "1"}}})).await;
    assert_eq!(code, 403, "{answer}");
    let (code, gone) = server.call("DELETE", &format!("{QUOTAS}/quotas"), Value::Null).await;
    assert_eq!((code, &gone["metadata"]["name"]), (200, &json!("quotas")));
}

#[tokio::test]
async fn a_count_that_knows_nothing_of_a_charge_is_refused() {
    let server = Server::start().await;
    let before = quota(&server, "q", json!({"hard": {"configmaps": "2"}})).await;
    let path = "/api/v1/namespaces/default/configmaps";
    server.make(path, config_map("a", json!({}))).await;
    let version = &before["metadata"]["resourceVersion"];
    let count =
        |used: &str| json!({"metadata": {"resourceVersion": version}, "status": {"used": {"configmaps": used}}});
    let status = format!("{QUOTAS}/q/status");
    assert_eq!(server.call("PATCH", &status, count("0")).await.0, 409);
    assert_eq!(used(&server, "q").await, json!({"configmaps": "1"}));
    // A server died before it told what was taken: it counts, and is told by the next.
    let now = server.get(&format!("{QUOTAS}/q")).await.1;
    let charge = json!({"uid": now["metadata"]["uid"], "amounts": {"configmaps": "1"}}).to_string();
    let put = async |text: &str| {
        use coracle_keyspace::{Guard, Key, Op, Value};
        let value = Value { bytes: text.to_owned().into(), revision_at: text.len() };
        let key = Key::new(PENDING, std::sync::Arc::<str>::from("default/q"));
        server.keyspace.transact(vec![Op::Put { key, value, guard: Guard::None }]).await.expect("written");
    };
    put(&charge).await;
    let (code, answer) = server.call("POST", path, config_map("b", json!({}))).await;
    assert_eq!(code, 403, "{answer}");
    assert!(message(&answer).ends_with("used: configmaps=2, limited: configmaps=2"), "{answer}");
    let version = &now["metadata"]["resourceVersion"];
    let count = json!({"metadata": {"resourceVersion": version}, "status": {"used": {"configmaps": "0"}}});
    assert_eq!(server.call("PATCH", &status, count).await.0, 409, "whoever counted knew nothing of it");
    assert_eq!((used(&server, "q").await, pending(&server)), (json!({"configmaps": "2"}), 0));
    // Of a quota that had the name before nothing is taken for it.
    put(&json!({"uid": "another", "amounts": {"configmaps": "9"}}).to_string()).await;
    server.call("PATCH", &status, json!({"status": {"used": {"configmaps": "0"}}})).await;
    server.make(path, config_map("b", json!({}))).await;
    assert_eq!((used(&server, "q").await, pending(&server)), (json!({"configmaps": "1"}), 0));
    // What cannot be read is not nothing; it goes with its quota all the same.
    put("damaged").await;
    let (code, answer) = server.call("POST", path, config_map("c", json!({}))).await;
    assert!(code == 500 && message(&answer).contains("what is pending for the quota default/q"), "{answer}");
    assert_eq!(server.call("DELETE", &format!("{QUOTAS}/q"), Value::Null).await.0, 200);
    assert_eq!(pending(&server), 0, "it goes with its quota");
}

#[tokio::test]
async fn limits_that_mean_nothing_are_refused() {
    let server = Server::start().await;
    let long = "must be 'Exists' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, \
                ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or \
                ResourceQuotaScopeCrossNamespacePodAffinity";
    let in_ = json!({"matchExpressions": [{"scopeName": "BestEffort", "operator": "In", "values": ["x"]}]});
    for (spec, expected) in [
        (json!({"hard": {"pods": "-1"}}), "spec.hard[pods]: Invalid value: \"-1\": must be greater than or equal to 0"),
        (json!({"hard": {"pods": "1500m"}}), "spec.hard[pods]: Invalid value: \"1500m\": must be an integer"),
        (
            json!({"hard": {"storage": "1"}}),
            "spec.hard[storage]: Invalid value: \"storage\": must be a standard resource for quota",
        ),
        (
            json!({"hard": {"pods": "1"}, "scopes": ["BestEffort", "NotBestEffort"]}),
            "spec.scopes: Invalid value: [\"BestEffort\",\"NotBestEffort\"]: conflicting scopes",
        ),
        (
            json!({"hard": {"services": "1"}, "scopes": ["Terminating"]}),
            "spec.scopes: Invalid value: [\"Terminating\"]: unsupported scope applied to resource",
        ),
        (
            json!({"hard": {"services": "1"}, "scopeSelector": {"matchExpressions": [
                {"scopeName": "PriorityClass", "operator": "In", "values": ["x"]}]}}),
            "spec.scopeSelector.matchExpressions: Invalid value: {\"MatchExpressions\":[{\"ScopeName\":\"PriorityClass\",\
             \"Operator\":\"In\",\"Values\":[\"x\"]}]}: unsupported scope applied to resource",
        ),
        (
            json!({"hard": {"pods": "1"}, "scopeSelector": in_}),
            &*format!("spec.scopeSelector.matchExpressions.operator: Invalid value: \"In\": {long}"),
        ),
    ] {
        let (code, answer) = server.call("POST", QUOTAS, json!({"metadata": {"name": "q"}, "spec": spec})).await;
        assert_eq!((code, message(&answer)), (422, &*format!("ResourceQuota \"q\" is invalid: {expected}")), "{spec}");
    }
    for (item, expected) in [
        (
            json!({"type": "Pods"}),
            "spec.limits[0].type: Invalid value: \"Pods\": must be a standard limit type or fully qualified",
        ),
        (
            json!({"type": "Pod", "default": {"cpu": "1"}}),
            "spec.limits[0].default: Forbidden: may not be specified when `type` is 'Pod'",
        ),
        (
            json!({"type": "Pod", "min": {"cpu": "2"}, "max": {"cpu": "1"}}),
            "spec.limits[0].min[cpu]: Invalid value: \"2\": min value 2 is greater than max value 1",
        ),
        (
            json!({"type": "PersistentVolumeClaim"}),
            "spec.limits[0].limits: Required value: either minimum or maximum storage value is required, but neither was provided",
        ),
        (
            json!({"type": "Container", "maxLimitRequestRatio": {"cpu": "500m"}}),
            "spec.limits[0].maxLimitRequestRatio[cpu]: Invalid value: \"500m\": ratio 500m is less than 1",
        ),
    ] {
        let range = json!({"metadata": {"name": "r"}, "spec": {"limits": [item]}});
        let (code, answer) = server.call("POST", RANGES, range).await;
        assert_eq!((code, message(&answer)), (422, &*format!("LimitRange \"r\" is invalid: {expected}")));
    }
    quota(&server, "q", json!({"hard": {"pods": "1"}})).await;
    let (code, answer) =
        server.call("PATCH", &format!("{QUOTAS}/q"), json!({"spec": {"scopes": ["BestEffort"]}})).await;
    assert_eq!(
        (code, message(&answer)),
        (422, "ResourceQuota \"q\" is invalid: spec.scopes: Invalid value: [\"BestEffort\"]: field is immutable")
    );
    // A range may come without a name.
    let nameless = server.make(RANGES, json!({"spec": {"limits": [{"type": "Pod", "max": {"cpu": "1"}}]}})).await;
    assert!(nameless["metadata"]["name"].as_str().is_some_and(|name| name.len() == 36), "{nameless}");
    let table = Request::builder().uri(QUOTAS).header("accept", "application/json;as=Table;v=v1;g=meta.k8s.io");
    let table = server.send(Some(admin()), table.body(Body::empty()).expect("a request")).await.json();
    assert_eq!(
        table["rows"][0]["cells"].as_array().map(|cells| &cells[..3]),
        Some(&[json!("q"), json!("pods: 0/1"), json!("")][..])
    );
}
