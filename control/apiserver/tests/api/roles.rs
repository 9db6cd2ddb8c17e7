//! Who may do what: roles, bindings, and that nobody gives more than it has.

use super::webhooks::{Hook, MUTATING, allow, configure, patched, webhook};
use super::*;

const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";
const HERE: &str = "/apis/rbac.authorization.k8s.io/v1/namespaces/default";

/// Asks as the user `guest`, with further headers.
async fn guest(server: &Server, method: &str, path: &str, body: Value, headers: &[(&str, &str)]) -> (u16, Value) {
    let mut request = Request::builder().method(method).uri(path).header("content-type", "application/json");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
    let identity = Identity::authenticated("guest", Vec::new());
    let answer = server.send(Some(identity), request.body(body).expect("a request")).await;
    (answer.code, answer.json())
}

async fn get(server: &Server, path: &str) -> u16 {
    guest(server, "GET", path, Value::Null, &[]).await.0
}

fn role(name: &str, rules: Value) -> Value {
    json!({"metadata": {"name": name}, "rules": rules})
}

fn binding(name: &str, kind: &str, role: &str) -> Value {
    json!({
        "metadata": {"name": name},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "guest"}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": role},
    })
}

#[tokio::test]
async fn nobody_may_do_more_than_its_roles_say() {
    let server = Server::start().await;
    let (maps, others) = ("/api/v1/namespaces/default/configmaps", "/api/v1/namespaces/kube-system/configmaps");
    assert_eq!((get(&server, "/api").await, get(&server, "/apis/apps/v1").await), (200, 200), "what there is, all see");
    for path in [maps, "/api/v1/nodes", "/metrics", "/api/v1/namespaces/default"] {
        assert_eq!(get(&server, path).await, 403, "{path}");
    }
    let (code, refused) = guest(&server, "GET", "/api/v1/namespaces/default/secrets/s", Value::Null, &[]).await;
    let message = "secrets \"s\" is forbidden: User \"guest\" cannot get resource \"secrets\" in API group \"\" in the \
                   namespace \"default\"";
    assert_eq!((code, refused["message"].as_str()), (403, Some(message)));

    server.make(&format!("{HERE}/rolebindings"), binding("b", "ClusterRole", "view")).await;
    assert_eq!((get(&server, maps).await, get(&server, others).await), (200, 403), "a binding is for its namespace");
    assert_eq!(get(&server, "/api/v1/namespaces/default").await, 200, "a namespace is in itself");
    assert_eq!(get(&server, "/api/v1/namespaces/default/secrets").await, 403);
    let ask = json!({"spec": {"namespace": "default"}});
    let path = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews";
    let (_, said) = guest(&server, "POST", path, ask, &[]).await;
    let rules = said["status"]["resourceRules"].as_array().expect("rules");
    assert!(rules.iter().any(|rule| rule["resources"].as_array().unwrap().contains(&json!("configmaps"))), "{said}");
    server.call("DELETE", &format!("{HERE}/rolebindings/b"), Value::Null).await;
    assert_eq!(get(&server, maps).await, 403, "what is not bound any more is over at once");
}

#[tokio::test]
async fn nobody_grants_what_it_does_not_have() {
    let server = Server::start().await;
    let own = json!([
        {"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["roles", "rolebindings"], "verbs": ["create", "update"]},
        {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "list"]},
    ]);
    server.make(&format!("{HERE}/roles"), role("own", own)).await;
    server.make(&format!("{HERE}/rolebindings"), binding("own", "Role", "own")).await;
    let rules = |resource: &str, verb: &str| json!([{"apiGroups": [""], "resources": [resource], "verbs": [verb]}]);
    let (roles, bindings) = (format!("{HERE}/roles"), format!("{HERE}/rolebindings"));
    for (path, object, code) in [
        (&roles, role("a", rules("configmaps", "get")), 201),
        (&roles, role("b", rules("secrets", "get")), 403),
        (&roles, role("c", rules("configmaps", "*")), 403),
        (&roles, role("d", rules("*", "get")), 403),
        (&bindings, binding("a", "Role", "a"), 201),
        (&bindings, binding("b", "ClusterRole", "cluster-admin"), 403),
        (&bindings, binding("c", "Role", "missing"), 404),
        // What it says, its owner may change.
        (&bindings, binding("d", "ClusterRole", "default/a"), 404),
    ] {
        let (given, answer) = guest(&server, "POST", path, object.clone(), &[]).await;
        assert_eq!(given, code, "{object}: {answer}");
    }
    let (_, mut mine) = server.get(&format!("{roles}/a")).await;
    mine["rules"] = rules("secrets", "get");
    assert_eq!(guest(&server, "PUT", &format!("{roles}/a"), mine, &[]).await.0, 403, "nor by a change");

    let verbs = ["bind", "escalate"].map(|verb| {
        json!({"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["roles", "clusterroles"], "verbs": [verb]})
    });
    server.make(&format!("{RBAC}/clusterroles"), role("grants", json!(verbs))).await;
    server.make(&format!("{RBAC}/clusterrolebindings"), binding("grants", "ClusterRole", "grants")).await;
    assert_eq!(guest(&server, "POST", &roles, role("b", rules("secrets", "get")), &[]).await.0, 201);
    assert_eq!(guest(&server, "POST", &bindings, binding("b", "ClusterRole", "cluster-admin"), &[]).await.0, 201);
}

/// A webhook that is asked twice adds a rule only when another has added a label.
#[tokio::test]
async fn nobody_grants_it_by_what_webhooks_add_late() {
    let server = Server::start().await;
    let roles = format!("{HERE}/roles");
    let own = json!([{"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["roles"], "verbs": ["create"]}]);
    server.make(&roles, role("own", own)).await;
    server.make(&format!("{HERE}/rolebindings"), binding("own", "Role", "own")).await;
    let late = Hook::start(|review| {
        let rule = json!({"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]});
        match &review["request"]["object"]["metadata"]["labels"] {
            Value::Null => allow(review),
            _ => patched(review, &json!([{"op": "add", "path": "/rules", "value": [rule]}])),
        }
    });
    let label =
        Hook::start(|review| patched(review, &json!([{"op": "add", "path": "/metadata/labels", "value": {"a": "b"}}])));
    let (late, label) = (late.await, label.await);
    let mut again = webhook("late", late.url(), &["roles"]);
    again["reinvocationPolicy"] = "IfNeeded".into();
    configure(&server, MUTATING, "m", vec![again, webhook("label", label.url(), &["roles"])]).await;
    let (code, answer) = guest(&server, "POST", &roles, role("new", json!([])), &[]).await;
    assert_eq!((code, late.heard().len()), (403, 2), "{answer}");
    assert!(answer["message"].as_str().unwrap().contains("secrets"), "{answer}");
}

#[tokio::test]
async fn a_server_that_starts_adds_what_roles_of_every_cluster_lack_and_leaves_what_says_so() {
    let server = Server::start().await;
    let (roles, bindings) = (format!("{RBAC}/clusterroles"), format!("{RBAC}/clusterrolebindings"));
    let (discovery, scheduler) = (format!("{roles}/system:discovery"), format!("{roles}/system:kube-scheduler"));
    let (basic, public) = (format!("{bindings}/system:basic-user"), format!("{bindings}/system:public-info-viewer"));
    let read = async |server: &Server, path: &str| server.get(path).await.1;
    let (whole, subjects) =
        (read(&server, &discovery).await["rules"].clone(), read(&server, &basic).await["subjects"].clone());
    assert!(!whole.as_array().unwrap().is_empty() && !subjects.as_array().unwrap().is_empty());
    let own = json!({"apiGroups": [""], "resources": ["nodes"], "verbs": ["list"]});
    // As an older version left them, and as somebody wants them to stay.
    let off = json!({"annotations": {"rbac.authorization.kubernetes.io/autoupdate": "false"}});
    for (path, change) in [
        (&discovery, json!({"rules": [own]})),
        (&scheduler, json!({"rules": [own], "metadata": off})),
        (&basic, json!({"subjects": []})),
        (&public, json!({"subjects": [], "metadata": off})),
    ] {
        let (code, changed) = server.call("PATCH", path, change).await;
        assert_eq!(code, 200, "{changed}");
    }
    // What a binding is of cannot be changed: one of another role is made again.
    let other = format!("{bindings}/system:discovery");
    let is_to_be = read(&server, &other).await;
    assert_eq!(server.call("DELETE", &other, Value::Null).await.0, 200);
    server.make(&bindings, binding("system:discovery", "ClusterRole", "view")).await;
    let before = server.keyspace.revision();
    let server = server.restart().await;
    let is = read(&server, &other).await;
    assert_eq!((&is["roleRef"], &is["subjects"]), (&is_to_be["roleRef"], &is_to_be["subjects"]));
    assert_eq!(
        read(&server, &discovery).await["rules"],
        json!([[own.clone()].as_slice(), whole.as_array().unwrap()].concat())
    );
    assert_eq!(read(&server, &basic).await["subjects"], subjects);
    assert_eq!(read(&server, &scheduler).await["rules"], json!([own]));
    assert_eq!(read(&server, &public).await["subjects"].as_array().map_or(0, Vec::len), 0);
    // What is complete is not written again.
    let now = server.keyspace.revision();
    assert!(now > before);
    let version = async |server: &Server, path: &str| read(server, path).await["metadata"]["resourceVersion"].clone();
    let versions = (version(&server, &discovery).await, version(&server, &format!("{roles}/view")).await);
    let server = server.restart().await;
    assert_eq!((version(&server, &discovery).await, version(&server, &format!("{roles}/view")).await), versions);
}

#[tokio::test]
async fn each_part_of_whom_one_acts_as_is_asked_for() {
    let server = Server::start().await;
    let rules = json!([{"apiGroups": [""], "resources": ["users"], "verbs": ["impersonate"]}]);
    server.make(&format!("{RBAC}/clusterroles"), role("as", rules)).await;
    server.make(&format!("{RBAC}/clusterrolebindings"), binding("as", "ClusterRole", "as")).await;
    let path = "/api";
    for (headers, code) in [
        (vec![("impersonate-user", "other")], 200),
        (vec![("impersonate-user", "other"), ("impersonate-group", "system:masters")], 403),
        (vec![("impersonate-user", "other"), ("impersonate-uid", "1")], 403),
        (vec![("impersonate-user", "other"), ("impersonate-extra-scopes", "all")], 403),
        (vec![("impersonate-user", "system:serviceaccount:default:default")], 403),
    ] {
        assert_eq!(guest(&server, "GET", path, Value::Null, &headers).await.0, code, "{headers:?}");
    }
}

#[tokio::test]
async fn a_role_of_roles_says_what_they_say() {
    let server = Server::start().await;
    let of = json!({"metadata": {"name": "of"}, "rules": [],
        "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"into": "of"}}]}});
    server.make(&format!("{RBAC}/clusterroles"), of).await;
    server.make(&format!("{RBAC}/clusterrolebindings"), binding("of", "ClusterRole", "of")).await;
    assert_eq!(get(&server, "/api/v1/nodes").await, 403);
    let mut part = role("part", json!([{"apiGroups": [""], "resources": ["nodes"], "verbs": ["list"]}]));
    part["metadata"]["labels"] = json!({"into": "of"});
    server.make(&format!("{RBAC}/clusterroles"), part).await;
    assert_eq!(get(&server, "/api/v1/nodes").await, 200);
}

#[tokio::test]
async fn who_may_only_change_or_read_makes_and_runs_nothing() {
    let server = Server::start().await.with_account().await;
    let maps = "/api/v1/namespaces/default/configmaps";
    server.make(maps, config_map("there", json!({}))).await;
    server.make("/api/v1/namespaces/default/pods", pod("p")).await;
    let rules = json!([
        {"apiGroups": [""], "resources": ["*"], "verbs": ["get", "update", "patch"]},
        {"apiGroups": [""], "resources": ["secrets"], "verbs": ["list", "watch"], "resourceNames": ["one"]},
    ]);
    server.make(&format!("{HERE}/roles"), role("changes", rules)).await;
    server.make(&format!("{HERE}/rolebindings"), binding("changes", "Role", "changes")).await;
    for (name, code) in [("there", 200), ("new", 403)] {
        let path = format!("{maps}/{name}?fieldManager=guest");
        let request = Request::patch(&path).header("content-type", "application/apply-patch+yaml");
        let request = request.body(Body::from(config_map(name, json!({"a": "b"})).to_string())).expect("a request");
        let identity = Identity::authenticated("guest", Vec::new());
        assert_eq!(server.send(Some(identity), request).await.code, code, "apply {name}");
    }
    // A kind that the reference makes by an update, too.
    let object = json!({"metadata": {"name": "new"}, "spec": {"ports": [{"port": 80}]}});
    let service = "/api/v1/namespaces/default/services/new";
    assert_eq!(guest(&server, "PUT", service, object, &[]).await.0, 403);
    for stream in ["exec?command=a&stdout=1", "attach?stdout=1", "portforward"] {
        assert_eq!(get(&server, &format!("/api/v1/namespaces/default/pods/p/{stream}")).await, 403, "{stream}");
    }
    let secrets = "/api/v1/namespaces/default/secrets";
    assert_eq!(get(&server, secrets).await, 403);
    assert_eq!(get(&server, &format!("{secrets}?fieldSelector=metadata.name%3Done")).await, 200);
    assert_eq!(get(&server, &format!("{secrets}?fieldSelector=metadata.name%3Dtwo")).await, 403);
}

#[tokio::test]
async fn a_label_makes_nobody_a_part_of_what_it_may_not_grant() {
    let server = Server::start().await;
    let rules = json!([
        {"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["clusterroles"], "verbs": ["get", "patch"]},
        {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get"]},
    ]);
    server.make(&format!("{RBAC}/clusterroles"), role("labels", rules)).await;
    server.make(&format!("{RBAC}/clusterrolebindings"), binding("labels", "ClusterRole", "labels")).await;
    server.make(&format!("{RBAC}/clusterrolebindings"), binding("view", "ClusterRole", "view")).await;
    let small = json!([{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get"]}]);
    server.make(&format!("{RBAC}/clusterroles"), role("small", small)).await;
    let labels = json!({"metadata": {"labels": {"rbac.authorization.k8s.io/aggregate-to-view": "true"}}});
    let finalizers = json!({"metadata": {"finalizers": ["example.com/x"]}});
    for (name, change, code) in [
        ("cluster-admin", &labels, 403),
        ("small", &labels, 200),
        // Whoever collects garbage has to be able to.
        ("cluster-admin", &finalizers, 200),
        // What it said is not known: it was made of others.
        ("view", &json!({"aggregationRule": null, "rules": []}), 403),
    ] {
        let request = Request::patch(format!("{RBAC}/clusterroles/{name}"))
            .header("content-type", "application/merge-patch+json");
        let request = request.body(Body::from(change.to_string())).expect("a request");
        let answer = server.send(Some(Identity::authenticated("guest", Vec::new())), request).await;
        assert_eq!(answer.code, code, "{name} {change}: {}", answer.json());
    }
}

/// Whether somebody may do something, as a review says it.
async fn may(server: &Server, spec: Value) -> Value {
    let path = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
    server.make(path, json!({ "spec": spec })).await["status"]["allowed"].clone()
}

#[tokio::test]
async fn a_role_has_what_its_parts_are_made_of_and_nothing_of_its_own() {
    let server = Server::start().await;
    let rules = |resource: &str| json!([{"apiGroups": ["example.com"], "resources": [resource], "verbs": ["get"]}]);
    let mut part = role("widgets", rules("widgets"));
    part["metadata"]["labels"] = json!({"rbac.authorization.k8s.io/aggregate-to-view": "true"});
    server.make(&format!("{RBAC}/clusterroles"), part).await;
    let mut round = role("round", rules("own"));
    round["metadata"]["labels"] = json!({"into": "round", "rbac.authorization.k8s.io/aggregate-to-admin": "true"});
    round["aggregationRule"] = json!({"clusterRoleSelectors": [{"matchLabels": {"into": "round"}}]});
    server.make(&format!("{RBAC}/clusterroles"), round).await;
    server.make(&format!("{HERE}/rolebindings"), binding("b", "ClusterRole", "admin")).await;
    for (group, resource, allowed) in
        [("example.com", "widgets", true), ("", "pods", true), ("", "secrets", true), ("example.com", "own", false)]
    {
        let asked = json!({"group": group, "resource": resource, "verb": "get", "namespace": "default"});
        let spec = json!({"user": "guest", "resourceAttributes": asked});
        assert_eq!(may(&server, spec).await, allowed, "{resource}");
    }
}

#[tokio::test]
async fn a_review_asks_for_exactly_whom_it_names() {
    let server = Server::start().await;
    let path = json!({"path": "/api", "verb": "get"});
    for (groups, allowed) in
        [(json!([]), false), (json!(["system:unauthenticated"]), false), (json!(["system:authenticated"]), true)]
    {
        let spec = json!({"user": "x", "groups": groups, "nonResourceAttributes": path});
        assert_eq!(may(&server, spec).await, allowed, "{groups}");
    }
}

#[tokio::test]
async fn a_method_that_means_nothing_is_not_a_read() {
    let server = Server::start().await;
    let rules = json!([{"apiGroups": [""], "resources": ["services/proxy", "pods"], "verbs": ["get", "list"]}]);
    server.make(&format!("{HERE}/roles"), role("reads", rules)).await;
    server.make(&format!("{HERE}/rolebindings"), binding("reads", "Role", "reads")).await;
    let (pods, proxy) = ("/api/v1/namespaces/default/pods", "/api/v1/namespaces/default/services/s/proxy/x");
    for method in ["OPTIONS", "PROPFIND", "PURGE"] {
        for path in [pods, proxy] {
            assert_eq!(guest(&server, method, path, json!({}), &[]).await.0, 403, "{method} {path}");
        }
        assert_eq!(server.call(method, pods, Value::Null).await.0, 405, "{method}");
    }
    assert_eq!((get(&server, pods).await, get(&server, proxy).await), (200, 404));
}

#[tokio::test]
async fn roles_and_bindings_that_mean_nothing_are_refused() {
    let server = Server::start().await;
    let (roles, bindings) = (format!("{HERE}/roles"), format!("{HERE}/rolebindings"));
    let (cluster_roles, cluster_bindings) = (format!("{RBAC}/clusterroles"), format!("{RBAC}/clusterrolebindings"));
    let refers = |field: &str, text: &str| {
        let mut binding = binding("x", "ClusterRole", "view");
        binding["roleRef"][field] = text.into();
        binding
    };
    let subject = |subject: Value| {
        let mut binding = binding("x", "ClusterRole", "view");
        binding["subjects"] = json!([subject]);
        binding
    };
    let group = "rbac.authorization.k8s.io";
    let mut aggregated = role("x", json!([]));
    aggregated["aggregationRule"] = json!({});
    for (path, object, field) in [
        (&roles, role("x", json!([{"resources": ["pods"], "verbs": ["get"]}])), "rules[0].apiGroups"),
        (&roles, role("x", json!([{"apiGroups": [""], "verbs": ["get"]}])), "rules[0].resources"),
        (&cluster_roles, role("x", json!([{"apiGroups": [""], "resources": ["pods"], "verbs": []}])), "rules[0].verbs"),
        (&roles, role("x", json!([{"nonResourceURLs": ["/x"], "verbs": ["get"]}])), "rules[0].nonResourceURLs"),
        (
            &cluster_roles,
            role("x", json!([{"nonResourceURLs": ["/x"], "resources": ["pods"], "verbs": ["get"]}])),
            "rules[0].nonResourceURLs",
        ),
        (&cluster_roles, aggregated, "aggregationRule.clusterRoleSelectors"),
        (&bindings, refers("kind", "Foo"), "roleRef.kind"),
        (&bindings, refers("apiGroup", "x"), "roleRef.apiGroup"),
        (&cluster_bindings, refers("kind", "Role"), "roleRef.kind"),
        (&bindings, refers("name", "default/x"), "roleRef.name"),
        (&cluster_bindings, refers("name", ".."), "roleRef.name"),
        (&bindings, subject(json!({"kind": "Foo", "name": "a"})), "subjects[0].kind"),
        (&bindings, subject(json!({"kind": "User", "name": "a", "apiGroup": "x"})), "subjects[0].apiGroup"),
        (&bindings, subject(json!({"kind": "Group", "apiGroup": group})), "subjects[0].name"),
        (&bindings, subject(json!({"kind": "ServiceAccount", "name": "a", "apiGroup": group})), "subjects[0].apiGroup"),
        (&cluster_bindings, subject(json!({"kind": "ServiceAccount", "name": "a"})), "subjects[0].namespace"),
    ] {
        let (code, answer) = server.call("POST", path, object.clone()).await;
        assert_eq!((code, &answer["details"]["causes"][0]["field"]), (422, &json!(field)), "{object}: {answer}");
    }
    let urls = json!([{"nonResourceURLs": ["/x"], "verbs": ["get"]}]);
    server.make(&cluster_roles, role("x", urls)).await;
    server.make(&bindings, subject(json!({"kind": "ServiceAccount", "name": "a"}))).await;
}

#[tokio::test]
async fn a_blob_is_mounted_by_who_may_read_it() {
    use tower::ServiceExt;
    let server = Server::start().await;
    let rules = json!([{"nonResourceURLs": ["/v2/mine/*", "/v2/shared/*"], "verbs": ["get", "post"]}]);
    server.make(&format!("{RBAC}/clusterroles"), role("pushes", rules)).await;
    server.make(&format!("{RBAC}/clusterrolebindings"), binding("pushes", "ClusterRole", "pushes")).await;
    let registry = axum::Router::new().fallback(|request: Request<Body>| async move { request.uri().to_string() });
    let router = server.api.authenticated(registry);
    let uploads = "/v2/mine/app/blobs/uploads/";
    for (query, seen) in [
        ("mount=sha256:0&from=shared/app", format!("{uploads}?mount=sha256:0&from=shared/app")),
        ("mount=sha256:0&from=secret/app", uploads.to_owned()),
        ("%6dount=sha256:0&%66rom=secret%2Fapp", uploads.to_owned()),
        ("digest=sha256:0", format!("{uploads}?digest=sha256:0")),
    ] {
        let mut request = Request::post(format!("{uploads}?{query}")).body(Body::empty()).unwrap();
        request.extensions_mut().insert(Identity::authenticated("guest", Vec::new()));
        let answer = router.clone().oneshot(request).await.unwrap();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body, seen.as_bytes(), "{query}");
    }
}

#[tokio::test]
async fn what_is_said_a_thousand_times_is_told_once_and_more_than_can_be_told_says_so() {
    let server = Server::start().await;
    let pods = json!({"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]});
    server.make(&format!("{HERE}/roles"), role("doubled", json!(vec![pods.clone(); 1000]))).await;
    for name in ["first", "second"] {
        let mut doubled = binding(name, "Role", "doubled");
        doubled["subjects"] = json!(vec![doubled["subjects"][0].clone(); 1000]);
        server.make(&format!("{HERE}/rolebindings"), doubled).await;
    }
    let review = || async {
        let ask = json!({"spec": {"namespace": "default"}});
        guest(&server, "POST", "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", ask, &[]).await.1["status"]
            .take()
    };
    let told = review().await;
    let rules = told["resourceRules"].as_array().unwrap();
    assert_eq!(rules.iter().filter(|rule| **rule == pods).count(), 1, "{told}");
    assert_eq!(told["incomplete"], false);

    let many: Vec<Value> =
        (0..10_000).map(|n| json!({"apiGroups": [""], "resources": [format!("r{n}")], "verbs": ["get"]})).collect();
    server.make(&format!("{HERE}/roles"), role("many", json!(many))).await;
    server.make(&format!("{HERE}/rolebindings"), binding("many", "Role", "many")).await;
    let told = review().await;
    assert!(told["resourceRules"].as_array().unwrap().len() < 10_000);
    assert_eq!((&told["incomplete"], told["evaluationError"].is_string()), (&json!(true), true));
}

#[tokio::test]
async fn what_a_role_grants_is_compared_within_bounds() {
    let server = Server::start().await;
    let held: Vec<Value> =
        (0..100).map(|n| json!({"apiGroups": [""], "resources": [format!("r{n}")], "verbs": ["get"]})).collect();
    let mut own = held.clone();
    own.push(json!({"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["roles"], "verbs": ["create"]}));
    server.make(&format!("{HERE}/roles"), role("own", json!(own))).await;
    server.make(&format!("{HERE}/rolebindings"), binding("own", "Role", "own")).await;
    let roles = format!("{HERE}/roles");
    // Said very often, it is not more.
    let again = |text: &str| vec![text.to_owned(); 100];
    let rule = |n: usize| json!({"apiGroups": again(""), "resources": again("r99"), "verbs": ["get"], "resourceNames": [format!("n{n}")]});
    let doubled: Vec<Value> = (0..300).map(rule).collect();
    let (code, answer) = guest(&server, "POST", &roles, role("doubled", json!(doubled)), &[]).await;
    assert_eq!(code, 201, "{answer}");
    // All held, and nobody looks at a hundred million of them.
    let names: Vec<String> = (0..1000).map(|n| format!("n{n}")).collect();
    let resources: Vec<String> = (0..100).map(|n| format!("r{n}")).collect();
    let rule = |n: usize| {
        let names = [&names[..], &[format!("x{n}")]].concat();
        json!({"apiGroups": [""], "resources": resources, "verbs": ["get"], "resourceNames": names})
    };
    let vast: Vec<Value> = (0..100).map(rule).collect();
    let (code, answer) = guest(&server, "POST", &roles, role("vast", json!(vast)), &[]).await;
    let message = answer["message"].as_str().unwrap_or_default();
    assert_eq!(code, 403, "{message}");
    assert!(message.contains("too much to be compared") && message.contains("`escalate`"), "{message}");
    // Nor does a refusal tell megabytes.
    let missing: Vec<Value> =
        (0..10_000).map(|n| json!({"apiGroups": [""], "resources": [format!("s{n}")], "verbs": ["get"]})).collect();
    let (code, answer) = guest(&server, "POST", &roles, role("missing", json!(missing)), &[]).await;
    let message = answer["message"].as_str().unwrap_or_default();
    assert_eq!((code, message.len() < 5_000, message.contains("\"s0\"")), (403, true, true), "{message}");
}

#[tokio::test]
async fn who_may_watch_runs_and_calls_nothing_by_the_old_path() {
    let server = Server::start().await.with_account().await;
    server.make("/api/v1/namespaces/default/pods", pod("p")).await;
    let rules = json!([{"apiGroups": [""], "resources": ["*"], "verbs": ["list", "watch"]}]);
    server.make(&format!("{RBAC}/clusterroles"), role("watches", rules)).await;
    server.make(&format!("{RBAC}/clusterrolebindings"), binding("watches", "ClusterRole", "watches")).await;
    for path in [
        "nodes/n/proxy/exec/default/p/c?command=a",
        "namespaces/default/pods/p/log",
        "namespaces/default/pods/p/exec?command=a&stdout=1",
        "namespaces/default/services/s/proxy/x",
    ] {
        let (code, answer) = guest(&server, "GET", &format!("/api/v1/watch/{path}"), Value::Null, &[]).await;
        let message = "the server could not find the requested resource";
        assert_eq!((code, answer["message"].as_str()), (404, Some(message)), "{path}: {answer}");
    }
}

#[tokio::test]
async fn what_somebody_lacks_is_told_thing_by_thing_and_why_somebody_may() {
    let server = Server::start().await;
    let own = json!([
        {"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["roles", "rolebindings"], "verbs": ["create"]},
        {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get"]},
    ]);
    server.make(&format!("{HERE}/roles"), role("own", own)).await;
    server.make(&format!("{HERE}/rolebindings"), binding("b", "Role", "own")).await;
    let more = json!([
        {"apiGroups": ["", "apps"], "resources": ["configmaps", "pods/log"], "verbs": ["get", "list"]},
        {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["a"], "verbs": ["update"]},
    ]);
    let (code, refused) = guest(&server, "POST", &format!("{HERE}/roles"), role("more", more), &[]).await;
    let expected = "roles.rbac.authorization.k8s.io \"more\" is forbidden: user \"guest\" (groups=[\"system:authenticated\"]) \
                    is attempting to grant RBAC permissions not currently held:\n\
                    {APIGroups:[\"\"], Resources:[\"configmaps\"], ResourceNames:[\"a\"], Verbs:[\"update\"]}\n\
                    {APIGroups:[\"\"], Resources:[\"configmaps\"], Verbs:[\"list\"]}\n\
                    {APIGroups:[\"\"], Resources:[\"pods/log\"], Verbs:[\"get\" \"list\"]}\n\
                    {APIGroups:[\"apps\"], Resources:[\"configmaps\"], Verbs:[\"get\" \"list\"]}\n\
                    {APIGroups:[\"apps\"], Resources:[\"pods/log\"], Verbs:[\"get\" \"list\"]}";
    assert_eq!((code, refused["message"].as_str()), (403, Some(expected)));
    let (code, missing) =
        guest(&server, "POST", &format!("{HERE}/rolebindings"), binding("c", "Role", "none"), &[]).await;
    let expected = "rolebindings.rbac.authorization.k8s.io \"none\" not found";
    assert_eq!((code, missing["message"].as_str()), (404, Some(expected)));

    let reviews = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
    let ask = |verb: &str| json!({"spec": {"user": "guest", "resourceAttributes": {"verb": verb, "resource": "configmaps", "namespace": "default"}}});
    let status = async |verb: &str| server.make(reviews, ask(verb)).await["status"].clone();
    let why = "RBAC: allowed by RoleBinding \"b/default\" of Role \"own\" to User \"guest\"";
    assert_eq!(status("get").await, json!({"allowed": true, "reason": why}));
    assert_eq!(status("list").await, json!({"allowed": false}));
}
