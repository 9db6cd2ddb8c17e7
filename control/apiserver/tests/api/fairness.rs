//! Priority and fairness: where requests belong, who waits, and what every cluster has of it.

use std::time::Duration;

use axum::body::Body;
use coracle_apiserver::Identity;
use futures::{FutureExt as _, StreamExt as _};
use http::Request;
use serde_json::{Value, json};

use crate::webhooks::{Hook, VALIDATING};
use crate::{Answer, Server, admin, config_map, node};

const SCHEMAS: &str = "/apis/flowcontrol.apiserver.k8s.io/v1/flowschemas";
const LEVELS: &str = "/apis/flowcontrol.apiserver.k8s.io/v1/prioritylevelconfigurations";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn user(name: &str, groups: &[&str]) -> Identity {
    Identity::authenticated(name, groups.iter().map(|group| (*group).to_owned()).collect())
}

impl Server {
    /// Sends JSON as somebody.
    pub async fn send_as(&self, who: Identity, method: &str, path: &str, body: Value) -> Answer {
        let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
        let request = Request::builder().method(method).uri(path).header("content-type", "application/json").body(body);
        self.send(Some(who), request.expect("a request")).await
    }

    /// Lets users do everything.
    pub async fn with_users(self, names: &[&str]) -> Server {
        let subjects: Vec<Value> = names.iter().map(|name| json!({"kind": "User", "name": name})).collect();
        let role = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"});
        let binding = json!({"metadata": {"name": "users"}, "subjects": subjects, "roleRef": role});
        self.make("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", binding).await;
        self
    }

    async fn uid(&self, path: &str) -> String {
        self.get(path).await.1["metadata"]["uid"].as_str().expect("a uid").to_owned()
    }

    /// A level, and a schema by which requests of `group` belong to it, each user's a flow.
    async fn level(&self, name: &str, group: &str, response: Value) {
        let spec = json!({"type": "Limited", "limited": {"nominalConcurrencyShares": 5, "borrowingLimitPercent": 0, "limitResponse": response}});
        self.make(LEVELS, json!({"metadata": {"name": name}, "spec": spec})).await;
        self.make(SCHEMAS, schema(name, name, group)).await;
    }

    /// Waits until a line stands on the metrics page.
    pub async fn measures(&self, line: &str) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        loop {
            let (_, page) = self.get("/metrics").await;
            let page = page.as_str().unwrap_or_default().to_owned();
            if page.lines().any(|found| found == line) {
                return;
            }
            let like: Vec<&str> =
                page.lines().filter(|found| line.split(' ').next().is_some_and(|l| found.starts_with(l))).collect();
            assert!(tokio::time::Instant::now() < deadline, "{line} is not there, but {like:?}");
            tokio::task::yield_now().await;
        }
    }
}

fn schema(name: &str, level: &str, group: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {
        "matchingPrecedence": 600,
        "priorityLevelConfiguration": {"name": level},
        "distinguisherMethod": {"type": "ByUser"},
        "rules": [{
            "subjects": [{"kind": "Group", "group": {"name": group}}],
            "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "clusterScope": true, "namespaces": ["*"]}],
        }],
    }})
}

#[tokio::test]
async fn every_answer_says_where_its_request_belongs() {
    let server = Server::start().await;
    let account = user("system:serviceaccount:a:b", &["system:serviceaccounts", "system:serviceaccounts:a"]);
    let lease = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/n";
    for (who, path, code, schema, level) in [
        (admin(), MAPS, 200, "exempt", "exempt"),
        (user("alice", &[]), MAPS, 403, "global-default", "global-default"),
        (user("alice", &[]), "/healthz", 200, "probes", "exempt"),
        (user("alice", &[]), "/version", 200, "global-default", "global-default"),
        (account, MAPS, 403, "service-accounts", "workload-low"),
        (
            user("system:serviceaccount:kube-system:b", &["system:serviceaccounts"]),
            MAPS,
            403,
            "kube-system-service-accounts",
            "workload-high",
        ),
        (user("system:kube-scheduler", &[]), MAPS, 403, "kube-scheduler", "workload-high"),
        (node("n"), "/api/v1/nodes/n", 404, "system-node-high", "node-high"),
        (node("n"), lease, 404, "system-node-high", "node-high"),
        (node("n"), MAPS, 403, "system-nodes", "system"),
    ] {
        let name = who.user.clone();
        let answer = server.send_as(who, "GET", path, Value::Null).await;
        assert_eq!(answer.code, code, "{name} {path}");
        let said = |header: &str| answer.headers[header].to_str().unwrap().to_owned();
        let said = (said("x-kubernetes-pf-flowschema-uid"), said("x-kubernetes-pf-prioritylevel-uid"));
        let expected =
            (server.uid(&format!("{SCHEMAS}/{schema}")).await, server.uid(&format!("{LEVELS}/{level}")).await);
        assert_eq!(said, expected, "{name} {path} belongs to {schema}");
    }
    // As whom somebody acts, as in Kubernetes.
    let request = Request::builder().uri(MAPS).header("impersonate-user", "bob").body(Body::empty()).unwrap();
    let answer = server.send(Some(admin()), request).await;
    let expected = server.uid(&format!("{SCHEMAS}/global-default")).await;
    assert_eq!(
        (answer.code, answer.headers["x-kubernetes-pf-flowschema-uid"].to_str().unwrap()),
        (403, expected.as_str())
    );
    let request = Request::builder().uri(MAPS).header("authorization", "Bearer nonsense").body(Body::empty()).unwrap();
    let answer = server.send(None, request).await;
    assert!(
        answer.code == 401 && !answer.headers.contains_key("x-kubernetes-pf-flowschema-uid"),
        "nobody is known yet"
    );
}

#[tokio::test]
async fn what_every_cluster_has_is_kept() {
    let server = Server::start().await;
    let (_, schemas) = server.get(SCHEMAS).await;
    let (_, levels) = server.get(LEVELS).await;
    assert_eq!((schemas["items"].as_array().unwrap().len(), levels["items"].as_array().unwrap().len()), (11, 8));
    let of = |name: &str| format!("{SCHEMAS}/{name}");
    // Mandatory ones are what they are, whatever is written.
    let change = json!({"metadata": {"annotations": {"apf.kubernetes.io/autoupdate-spec": "false"}}, "spec": {"matchingPrecedence": 7}});
    for (name, precedence) in [("catch-all", 10_000), ("service-accounts", 7)] {
        assert_eq!(server.call("PATCH", &of(name), change.clone()).await.0, 200);
        let is = |schema: &Value| schema["spec"]["matchingPrecedence"] == precedence;
        server.says(&of(name), is).await;
    }
    // So are suggested ones, while they say so.
    let change = json!({"spec": {"matchingPrecedence": 8}});
    assert_eq!(server.call("PATCH", &of("global-default"), change).await.0, 200);
    server.says(&of("global-default"), |schema| schema["spec"]["matchingPrecedence"] == 9_900).await;
    let before = server.uid(&of("probes")).await;
    assert_eq!(server.call("DELETE", &of("probes"), Value::Null).await.0, 200);
    server.says(&of("probes"), |schema| schema["metadata"]["uid"].as_str().is_some_and(|uid| uid != before)).await;
    let (_, mine) = server.get(&of("service-accounts")).await;
    assert_eq!(mine["spec"]["matchingPrecedence"], 7, "what somebody keeps is left to them");
}

#[tokio::test]
async fn a_schema_without_its_level_takes_no_requests_and_says_so() {
    let server = Server::start().await.with_users(&["alice"]).await;
    let path = format!("{SCHEMAS}/team");
    server.make(SCHEMAS, schema("team", "team", "team")).await;
    let condition = |schema: &Value| {
        let text = |field: &str| schema["status"]["conditions"][0][field].as_str().unwrap_or_default().to_owned();
        (text("status"), text("reason"))
    };
    let dangles = server.says(&path, |schema| condition(schema) == ("True".to_owned(), "NotFound".to_owned())).await;
    assert_eq!(
        dangles["status"]["conditions"][0]["message"],
        "This FlowSchema references the PriorityLevelConfiguration object named \"team\" but there is no such object"
    );
    let belongs = async || {
        let answer = server.send_as(user("alice", &["team"]), "GET", MAPS, Value::Null).await;
        answer.headers["x-kubernetes-pf-flowschema-uid"].to_str().unwrap().to_owned()
    };
    assert_eq!(belongs().await, server.uid(&format!("{SCHEMAS}/global-default")).await);
    let spec = json!({"type": "Limited", "limited": {"limitResponse": {"type": "Reject"}}});
    server.make(LEVELS, json!({"metadata": {"name": "team"}, "spec": spec})).await;
    server.says(&path, |schema| condition(schema) == ("False".to_owned(), "Found".to_owned())).await;
    assert_eq!(belongs().await, server.uid(&path).await);
    assert_eq!(server.call("DELETE", &format!("{LEVELS}/team"), Value::Null).await.0, 200);
    server.says(&path, |schema| condition(schema).0 == "True").await;
    assert_eq!(belongs().await, server.uid(&format!("{SCHEMAS}/global-default")).await);
}

/// A server of so many seats, and a webhook that holds the writes of ConfigMaps of those who are not administrators.
async fn held(seats: usize) -> (Server, Hook) {
    let server =
        Server::start_with(|config| config.requests_max = seats).await.with_users(&["alice", "bob", "carol"]).await;
    let hook = Hook::start(|review| {
        let response = json!({"uid": review["request"]["uid"], "allowed": true});
        Some(json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": response}))
    })
    .await;
    let rule = json!({"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"]});
    let webhook = json!({
        "name": "check.example.com", "clientConfig": hook.url(), "rules": [rule], "sideEffects": "None",
        "admissionReviewVersions": ["v1"], "timeoutSeconds": 30,
    });
    server.make(VALIDATING, json!({"metadata": {"name": "check"}, "webhooks": [webhook]})).await;
    hook.hold(true);
    (server, hook)
}

#[tokio::test]
async fn a_level_without_queues_turns_away_whoever_finds_no_seat() {
    // Of 100 seats 250 shares make two.
    let (server, hook) = held(100).await;
    server.level("few", "team", json!({"type": "Reject"})).await;
    let make = |name: &str| server.send_as(user("alice", &["team"]), "POST", MAPS, config_map(name, json!({})));
    let (mut first, mut second) = (Box::pin(make("a")), Box::pin(make("b")));
    assert!((&mut first).now_or_never().is_none() && (&mut second).now_or_never().is_none());
    let working = async { future_all(&mut first, &mut second).await };
    let asked = async {
        hook.hears(2).await;
        let third = make("c").await;
        assert_eq!((third.code, third.headers["retry-after"].to_str().unwrap()), (429, "1"));
        assert_eq!(third.json()["message"], "Too many requests, please try again later.");
        assert!(third.headers.contains_key("x-kubernetes-pf-flowschema-uid"));
        // Who is not limited goes on, and so does everybody else.
        assert_eq!(server.get(MAPS).await.0, 200);
        assert_eq!(server.send_as(user("bob", &[]), "GET", MAPS, Value::Null).await.code, 200);
        for line in [
            "apiserver_flowcontrol_nominal_limit_seats{priority_level=\"few\"} 2",
            "apiserver_flowcontrol_current_executing_requests{flow_schema=\"few\",priority_level=\"few\"} 2",
            "apiserver_flowcontrol_current_executing_seats{flow_schema=\"few\",priority_level=\"few\"} 2",
            "apiserver_flowcontrol_dispatched_requests_total{flow_schema=\"few\",priority_level=\"few\"} 2",
            "apiserver_flowcontrol_rejected_requests_total{flow_schema=\"few\",priority_level=\"few\",reason=\"concurrency-limit\"} 1",
        ] {
            server.measures(line).await;
        }
        hook.hold(false);
    };
    let ((first, second), ()) = futures::join!(working, asked);
    assert_eq!((first.code, second.code), (201, 201));
    assert_eq!(make("c").await.code, 201, "their seats are free again");
}

async fn future_all<A: Future<Output = Answer>>(first: A, second: A) -> (Answer, Answer) {
    futures::join!(first, second)
}

#[tokio::test]
async fn who_finds_no_seat_waits_and_the_queue_of_one_is_before_nobody_else() {
    let (server, hook) = held(100).await;
    server
        .level(
            "few",
            "team",
            json!({"type": "Queue", "queuing": {"queues": 64, "handSize": 1, "queueLengthLimit": 10}}),
        )
        .await;
    let make =
        |who: &str, name: String| server.send_as(user(who, &["team"]), "POST", MAPS, config_map(&name, json!({})));
    // What is said of levels is read aside: from here on requests wait for seats alone.
    assert_eq!(server.get(MAPS).await.0, 200);
    // Two sit, ten wait, and the rest is too many.
    let mut many: futures::stream::FuturesUnordered<_> = (0..14).map(|at| make("alice", format!("a{at}"))).collect();
    for _ in 0..2 {
        let turned_away = tokio::time::timeout(Duration::from_secs(30), many.next()).await.expect("two are too many");
        assert_eq!(turned_away.unwrap().code, 429);
    }
    let other = Box::pin(make("bob", "b".to_owned()));
    tokio::select! {
        answer = make("carol", "c".to_owned()) => panic!("she waits: {}", answer.code),
        // She, too; and then she is gone.
        () = server.measures("apiserver_flowcontrol_current_inqueue_requests{flow_schema=\"few\",priority_level=\"few\"} 11") => {}
    }
    let (all, other) = (many.collect::<Vec<Answer>>(), other);
    let watched = async {
        hook.hears(2).await;
        for line in [
            "apiserver_flowcontrol_current_inqueue_requests{flow_schema=\"few\",priority_level=\"few\"} 11",
            "apiserver_flowcontrol_current_inqueue_seats{flow_schema=\"few\",priority_level=\"few\"} 11",
            "apiserver_flowcontrol_rejected_requests_total{flow_schema=\"few\",priority_level=\"few\",reason=\"queue-full\"} 2",
            "apiserver_flowcontrol_rejected_requests_total{flow_schema=\"few\",priority_level=\"few\",reason=\"cancelled\"} 1",
        ] {
            server.measures(line).await;
        }
        let (_, page) = server.get("/debug/api_priority_and_fairness/dump_priority_levels").await;
        let page = page.as_str().unwrap().to_owned();
        let row = page.lines().find(|line| line.starts_with("few,")).expect("the level's row");
        let cells: Vec<&str> = row.split(',').map(str::trim).collect();
        assert_eq!(cells, ["few", "2", "false", "false", "11", "2", "2", "2", "0", "1"], "{page}");
        let (_, page) = server.get("/debug/api_priority_and_fairness/dump_requests?includeRequestDetails=1").await;
        let page = page.as_str().unwrap().to_owned();
        let rows: Vec<Vec<&str>> = page
            .lines()
            .filter(|line| line.starts_with("few,"))
            .map(|row| row.split(',').map(str::trim).collect())
            .collect();
        let (seated, waiting): (Vec<_>, Vec<_>) = rows.iter().partition(|row| row[3] == "-1");
        assert_eq!((seated.len(), waiting.len()), (2, 11), "{page}");
        let bob = waiting.iter().find(|row| row[4] == "bob").expect("his request");
        assert_eq!((bob[1], bob[3], bob[6], bob[9]), ("few", "0", "1", "0001-01-01T00:00:00Z"), "{page}");
        assert_eq!(bob[10..], ["bob", "create", MAPS, "default", "", "v1", "configmaps", ""], "{page}");
        let mut places: Vec<usize> =
            waiting.iter().filter(|row| row[4] == "alice").map(|row| row[3].parse().unwrap()).collect();
        places.sort_unstable();
        assert_eq!(places, (0..10).collect::<Vec<_>>(), "{page}");
        hook.hold(false);
    };
    let (all, other, ()) = futures::join!(all, other, watched);
    assert!(all.iter().all(|answer| answer.code == 201));
    assert_eq!(other.code, 201);
    // In the order in which they got their seats they were stored: the other came before most of those who came before it.
    let version =
        |answer: &Answer| answer.json()["metadata"]["resourceVersion"].as_str().unwrap().parse::<u64>().unwrap();
    let later = all.iter().filter(|answer| version(answer) > version(&other)).count();
    assert!(later >= 7, "{later}");
    let (_, page) = server.get("/debug/api_priority_and_fairness/dump_requests").await;
    assert!(!page.as_str().unwrap().contains("few,"), "nobody of it is there any more: {page}");
    let lasted = "apiserver_flowcontrol_request_execution_seconds_count{flow_schema=\"few\",priority_level=\"few\"} 13";
    server.measures(lasted).await;
}

#[tokio::test]
async fn a_watch_has_a_seat_only_while_it_begins() {
    let (server, _hook) = held(100).await;
    server.level("few", "team", json!({"type": "Reject"})).await;
    let mut watches = Vec::new();
    for _ in 0..20 {
        let mut request = Request::builder().uri(format!("{MAPS}?watch=true")).body(Body::empty()).unwrap();
        request.extensions_mut().insert(user("alice", &["team"]));
        let response = tower::ServiceExt::oneshot(server.api.router(), request).await.unwrap();
        assert_eq!(response.status(), 200);
        watches.push(response);
    }
    server
        .measures("apiserver_flowcontrol_current_executing_requests{flow_schema=\"few\",priority_level=\"few\"} 0")
        .await;
    server
        .measures("apiserver_flowcontrol_dispatched_requests_total{flow_schema=\"few\",priority_level=\"few\"} 20")
        .await;
    drop(watches);
}

#[tokio::test]
async fn a_list_takes_seats_for_what_it_looks_at() {
    let server = Server::start_with(|config| config.requests_max = 2_000).await.with_users(&["alice"]).await;
    for namespace in ["a", "b"] {
        server.make("/api/v1/namespaces", json!({"metadata": {"name": namespace}})).await;
    }
    let makes = (0..350).map(|at| {
        let server = &server;
        async move { server.make("/api/v1/namespaces/a/configmaps", config_map(&format!("m{at}"), json!({}))).await }
    });
    futures::future::join_all(makes).await;
    let waits = |seats: usize| {
        format!(
            "apiserver_flowcontrol_work_estimated_seats_sum{{flow_schema=\"global-default\",priority_level=\"global-default\"}} {seats}"
        )
    };
    let mut sum = 0;
    for (path, seats) in [
        ("/api/v1/namespaces/a/configmaps", 4),
        ("/api/v1/namespaces/b/configmaps", 1),
        ("/api/v1/configmaps", 4),
        ("/api/v1/configmaps?limit=50", 1),
        ("/api/v1/configmaps?limit=50&labelSelector=a%3Db", 4),
        ("/api/v1/namespaces/a/configmaps?fieldSelector=metadata.name%3Dm1", 1),
        ("/api/v1/namespaces/a/configmaps/m1", 1),
    ] {
        assert_eq!(server.send_as(user("alice", &[]), "GET", path, Value::Null).await.code, 200);
        sum += seats;
        server.measures(&waits(sum)).await;
    }
}
