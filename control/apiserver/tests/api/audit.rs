//! The audit log: what a policy has told, a line of JSON each.

use std::time::Duration;

use super::webhooks::Hook;
use super::*;
use coracle_apiserver::{AuditLog, Endpoint, Log, Mode, Policy, Sending, Webhook};

const POLICY: &str = r#"
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- {level: None, users: ["system:apiserver"]}
- {level: RequestResponse, resources: [{group: "", resources: [configmaps]}], omitManagedFields: true}
- {level: Metadata}
"#;

/// A server with an audit log, and where that is.
async fn audited(policy: &str) -> (Server, tempfile::TempDir) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let log = Log { path: Some(dir.path().join("audit.log")), ..Log::default() };
    let audit = AuditLog { policy: Policy::parse(policy).expect("a policy"), log: Some(log), webhook: None };
    (Server::start_with(|config| config.audit = Some(audit)).await, dir)
}

/// What was told, in order.
async fn told(server: &Server, dir: &tempfile::TempDir) -> Vec<Value> {
    server.api.flush_audit().await;
    let text = std::fs::read_to_string(dir.path().join("audit.log")).expect("the log");
    text.lines().map(|line| serde_json::from_str(line).expect("a line is an event")).collect()
}

#[tokio::test]
async fn who_asked_for_what_and_what_came_of_it_is_told_as_the_policy_says() {
    let (server, dir) = audited(POLICY).await;
    let path = "/api/v1/namespaces/default/configmaps";
    let request = Request::post(path).header("content-type", "application/json");
    let request = request.body(Body::from(config_map("a", json!({"k": "v"})).to_string())).expect("a request");
    let made = server.send(Some(admin()), request).await;
    assert_eq!(made.code, 201);
    assert_eq!(server.get(&format!("{path}/missing")).await.0, 404);
    assert_eq!(server.get("/api/v1/namespaces/default/secrets").await.0, 200);
    assert_eq!(server.get("/version").await.0, 200);
    let events = told(&server, &dir).await;
    let of = |uri: &str| {
        let found: Vec<&Value> = events.iter().filter(|event| event["requestURI"] == uri).collect();
        assert_eq!(found.len(), 1, "{uri}: {events:#?}");
        found[0].clone()
    };
    let create = of(path);
    assert_eq!((create["kind"].as_str(), create["apiVersion"].as_str()), (Some("Event"), Some("audit.k8s.io/v1")));
    assert_eq!((&create["level"], &create["stage"]), (&json!("RequestResponse"), &json!("ResponseComplete")));
    assert_eq!(create["verb"], "create");
    assert_eq!(create["auditID"].as_str(), made.headers["audit-id"].to_str().ok());
    assert_eq!(
        create["objectRef"],
        json!({"resource": "configmaps", "namespace": "default", "name": "a", "apiVersion": "v1"})
    );
    assert_eq!(create["requestObject"]["data"]["k"], "v");
    assert_eq!(create["responseObject"]["metadata"]["uid"], made.json()["metadata"]["uid"]);
    assert!(create["responseObject"]["metadata"].get("managedFields").is_none(), "{create:#}");
    assert_eq!(create["responseStatus"], json!({"metadata": {}, "code": 201}));
    assert_eq!(create["annotations"]["authorization.k8s.io/decision"], "allow");
    let missing = of(&format!("{path}/missing"));
    assert_eq!(
        (&missing["responseStatus"]["reason"], &missing["responseStatus"]["code"]),
        (&json!("NotFound"), &json!(404))
    );
    let secrets = of("/api/v1/namespaces/default/secrets");
    assert_eq!((&secrets["level"], &secrets["verb"]), (&json!("Metadata"), &json!("list")));
    assert!(secrets.get("responseObject").is_none() && secrets.get("requestObject").is_none());
    let version = of("/version");
    assert!(version.get("objectRef").is_none() && version["user"]["username"].is_string());
}

#[tokio::test]
async fn who_acts_as_whom_and_who_is_refused_is_told() {
    let (server, dir) = audited("{apiVersion: audit.k8s.io/v1, kind: Policy, rules: [{level: Metadata}]}").await;
    let request = Request::get("/api/v1/namespaces/default/pods").header("impersonate-user", "zoe");
    let refused = server.send(Some(admin()), request.body(Body::empty()).expect("a request")).await;
    assert_eq!(refused.code, 403);
    let request = Request::get("/api/v1/nodes").header("authorization", "Bearer wrong");
    let unknown = server.send(None, request.body(Body::empty()).expect("a request")).await;
    assert_eq!(unknown.code, 401);
    let events = told(&server, &dir).await;
    let of = |uri: &str| events.iter().filter(|event| event["requestURI"] == uri).collect::<Vec<_>>();
    let stages: Vec<&Value> = of("/api/v1/namespaces/default/pods").iter().map(|event| &event["stage"]).collect();
    assert_eq!(stages, ["RequestReceived", "ResponseComplete"]);
    let last = of("/api/v1/namespaces/default/pods")[1];
    assert_eq!(last["impersonatedUser"]["username"], "zoe");
    assert_ne!(last["user"]["username"], "zoe");
    assert_eq!(last["annotations"]["authorization.k8s.io/decision"], "forbid");
    assert_eq!(last["responseStatus"]["reason"], "Forbidden");
    let unknown = of("/api/v1/nodes");
    assert_eq!(unknown.len(), 1);
    assert_eq!((&unknown[0]["stage"], &unknown[0]["user"]), (&json!("ResponseStarted"), &json!({})));
    assert_eq!(unknown[0]["responseStatus"]["code"], 401);
}

#[tokio::test]
async fn what_is_served_beside_the_api_is_told_and_pulls_are_not() {
    let (server, dir) = audited("{apiVersion: audit.k8s.io/v1, kind: Policy, rules: [{level: Metadata}]}").await;
    let beside = axum::Router::new()
        .route("/coracle/v1/backup", axum::routing::post(|| async { "all" }))
        .route("/v2/", axum::routing::get(|| async { "images" }));
    let router = server.api.authenticated(beside);
    let ask = async |who: Option<Identity>, method: &str, path: &str| {
        let mut request = Request::builder().method(method).uri(path).body(Body::empty()).expect("a request");
        if let Some(who) = who {
            request.extensions_mut().insert(who);
        }
        router.clone().oneshot(request).await.expect("the router never fails").status().as_u16()
    };
    let zoe = || Some(Identity::authenticated("zoe", vec![]));
    for (who, code) in [(Some(admin()), 200), (zoe(), 403), (None, 401)] {
        assert_eq!(ask(who, "POST", "/coracle/v1/backup").await, code);
    }
    assert_eq!(ask(Some(admin()), "GET", "/v2/").await, 200);
    let events = told(&server, &dir).await;
    assert!(events.iter().all(|event| event["requestURI"] != "/v2/"), "{events:#?}");
    let of = events.iter().filter(|event| event["requestURI"] == "/coracle/v1/backup");
    let said: Vec<_> = of
        .filter(|event| event["stage"] != "RequestReceived")
        .map(|event| {
            let decision = &event["annotations"]["authorization.k8s.io/decision"];
            (event["user"]["username"].as_str(), &event["responseStatus"]["code"], decision.as_str())
        })
        .collect();
    let expected = [
        (Some("admin"), &json!(200), Some("allow")),
        (Some("zoe"), &json!(403), Some("forbid")),
        (Some("system:anonymous"), &json!(401), None),
    ];
    assert_eq!(said, expected);
}

#[tokio::test]
async fn nobody_hides_what_it_sends_or_why_it_failed() {
    let policy = "{apiVersion: audit.k8s.io/v1, kind: Policy, omitStages: [RequestReceived], rules: [\
        {level: Request, resources: [{group: '', resources: [configmaps]}]}, {level: Metadata}]}";
    let (server, dir) = audited(policy).await;
    let path = "/api/v1/namespaces/default/configmaps";
    let make = async |body: String, headers: &[(&str, &str)]| {
        let request = headers.iter().fold(Request::post(path), |request, (name, value)| request.header(*name, *value));
        server.send(Some(admin()), request.body(Body::from(body)).expect("a request")).await.code
    };
    let json = ("content-type", "application/json");
    // The server reads no encoding of requests.
    assert_eq!(make(config_map("a", json!({})).to_string(), &[json, ("content-encoding", "gzip")]).await, 201);
    let twice = r#"{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x", "uid": null}, "metadata": {"name": "b"}}"#;
    assert_eq!(make(twice.to_owned(), &[json]).await, 201);
    assert_eq!(
        make(
            "kind: ConfigMap\napiVersion: v1\nmetadata: {name: c}\n".to_owned(),
            &[("content-type", "application/yaml")]
        )
        .await,
        201
    );
    let protobuf = ("accept", "application/vnd.kubernetes.protobuf");
    assert_eq!(make(config_map("a", json!({})).to_string(), &[json, protobuf]).await, 409);
    let events = told(&server, &dir).await;
    let made: Vec<&Value> = events
        .iter()
        .filter(|event| event["objectRef"]["resource"] == "configmaps" && event["verb"] == "create")
        .collect();
    assert_eq!(made.len(), 4, "{events:#?}");
    let names: Vec<&Value> = made.iter().map(|event| &event["objectRef"]["name"]).collect();
    assert_eq!(names, ["a", "b", "c", "a"]);
    assert!(made.iter().all(|event| event["requestObject"]["kind"] == "ConfigMap"), "{made:#?}");
    assert_eq!(made[3]["responseStatus"]["reason"], "AlreadyExists");
}

#[tokio::test]
async fn what_a_client_asked_for_that_left_is_told() {
    let (server, dir) = audited(POLICY).await;
    let path = "/api/v1/namespaces/default/configmaps";
    let mut request = Request::post(path).header("content-type", "application/json");
    request.extensions_mut().expect("a request").insert(admin());
    // A body that does not end: the client leaves while it is read.
    let body = Body::from_stream(futures::stream::pending::<Result<bytes::Bytes, std::convert::Infallible>>());
    let request = request.body(body).expect("a request");
    let mut asked = Box::pin(server.api.router().oneshot(request));
    assert!(futures::poll!(&mut asked).is_pending());
    drop(asked);
    let events = told(&server, &dir).await;
    let event = events.iter().find(|event| event["requestURI"] == path).expect("an event");
    assert_eq!((&event["stage"], &event["responseStatus"]["code"]), (&json!("ResponseComplete"), &json!(499)));
}

#[tokio::test]
async fn what_violates_what_its_namespace_only_has_audited_is_told() {
    let (server, dir) = audited("{apiVersion: audit.k8s.io/v1, kind: Policy, rules: [{level: Metadata}]}").await;
    let server = server.with_account().await;
    let label = json!({"metadata": {"labels": {"pod-security.kubernetes.io/audit": "restricted"}}});
    let request = Request::patch("/api/v1/namespaces/default").header("content-type", "application/merge-patch+json");
    let labelled = server.send(Some(admin()), request.body(Body::from(label.to_string())).expect("a request")).await;
    assert_eq!((labelled.code, labelled.headers.get("warning")), (200, None));
    server.make("/api/v1/namespaces/default/pods", pod("a")).await;
    let events = told(&server, &dir).await;
    let made = events.iter().rfind(|event| event["objectRef"]["resource"] == "pods").expect("the pod's");
    let annotations = &made["annotations"];
    assert_eq!(annotations["pod-security.kubernetes.io/enforce-policy"], "privileged:latest");
    let why = annotations["pod-security.kubernetes.io/audit-violations"].as_str().expect("why");
    assert!(why.starts_with("would violate PodSecurity \"restricted:latest\""), "{why}");
}

#[tokio::test]
async fn what_admission_policies_say_is_told() {
    let (server, dir) = audited("{apiVersion: audit.k8s.io/v1, kind: Policy, rules: [{level: Metadata}]}").await;
    let group = "/apis/admissionregistration.k8s.io/v1";
    let rules =
        json!([{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["configmaps"]}]);
    let spec = json!({
        "matchConstraints": {"resourceRules": rules},
        "validations": [{"expression": "false", "message": "never"}],
        "auditAnnotations": [{"key": "name", "valueExpression": "string(object.metadata.name)"}],
    });
    let policy = json!({"metadata": {"name": "p"}, "spec": spec});
    server.make(&format!("{group}/validatingadmissionpolicies"), policy).await;
    let binding = json!({"metadata": {"name": "b"}, "spec": {"policyName": "p", "validationActions": ["Audit"]}});
    server.make(&format!("{group}/validatingadmissionpolicybindings"), binding).await;
    server.make("/api/v1/namespaces/default/configmaps", config_map("a", json!({}))).await;
    let events = told(&server, &dir).await;
    let made = events.iter().rfind(|event| event["objectRef"]["resource"] == "configmaps").expect("the map's");
    assert_eq!(made["annotations"]["p/name"], "a");
    let failures = made["annotations"]["validation.policy.admission.k8s.io/validation_failure"].as_str();
    let failures: Value = serde_json::from_str(failures.expect("the failure")).expect("JSON");
    assert_eq!((&failures[0]["message"], &failures[0]["policy"]), (&json!("never"), &json!("p")));
}

#[tokio::test]
async fn what_policies_have_no_room_to_say_is_marked() {
    let (server, dir) = audited("{apiVersion: audit.k8s.io/v1, kind: Policy, rules: [{level: Metadata}]}").await;
    let group = "/apis/admissionregistration.k8s.io/v1";
    let rules =
        json!([{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["configmaps"]}]);
    let annotations: Vec<Value> = (0..20)
        .map(|number| json!({"key": format!("k{number}"), "valueExpression": "string(object.data.text)"}))
        .collect();
    let spec = json!({"matchConstraints": {"resourceRules": rules}, "auditAnnotations": annotations});
    for name in ["p", "q"] {
        let policy = json!({"metadata": {"name": name}, "spec": spec});
        server.make(&format!("{group}/validatingadmissionpolicies"), policy).await;
        let binding = json!({"metadata": {"name": name}, "spec": {"policyName": name, "validationActions": ["Audit"]}});
        server.make(&format!("{group}/validatingadmissionpolicybindings"), binding).await;
    }
    for (name, bytes, cut) in [("a", 10, Value::Null), ("b", 10_000, json!("true"))] {
        let path = "/api/v1/namespaces/default/configmaps";
        server.make(path, config_map(name, json!({"text": "x".repeat(bytes)}))).await;
        let events = told(&server, &dir).await;
        let made = events.iter().rfind(|event| event["objectRef"]["resource"] == "configmaps").expect("the map's");
        let annotations = &made["annotations"];
        assert_eq!(annotations["p/k0"].as_str().map(str::len), Some(bytes), "{name}");
        assert_eq!(
            (&annotations["audit.k8s.io/truncated"], annotations["q/k19"].is_null()),
            (&cut, cut == "true"),
            "{name}"
        );
    }
}

#[tokio::test]
async fn a_watch_is_told_when_it_begins_and_when_it_ends() {
    let (server, dir) = audited("{apiVersion: audit.k8s.io/v1, kind: Policy, rules: [{level: RequestResponse}]}").await;
    let uri = "/api/v1/namespaces/default/configmaps?watch=1&timeoutSeconds=1";
    assert_eq!(server.get(uri).await.0, 200);
    let events = told(&server, &dir).await;
    let stages: Vec<&Value> =
        events.iter().filter(|event| event["requestURI"] == uri).map(|event| &event["stage"]).collect();
    assert_eq!(stages, ["RequestReceived", "ResponseStarted", "ResponseComplete"]);
    assert!(events.iter().all(|event| event["verb"] != "watch" || event.get("responseObject").is_none()));
}

/// What the webhook heard, in order: each of these was a list.
fn sent(hook: &Hook) -> Vec<Value> {
    let lists = hook.bodies();
    assert!(lists.iter().all(|list| list["kind"] == "EventList" && list["apiVersion"] == "audit.k8s.io/v1"));
    lists.iter().flat_map(|list| list["items"].as_array().cloned().unwrap_or_default()).collect()
}

/// A server that sends what it tells of ConfigMaps, and may have a log.
async fn sending(hook: &Hook, level: &str, log: Option<Log>, sending: Sending) -> Server {
    let policy = format!(
        "{{apiVersion: audit.k8s.io/v1, kind: Policy, rules: [{{level: {level}, resources: [{{group: '', resources: [configmaps]}}]}}]}}"
    );
    let url = format!("https://127.0.0.1:{}/events", hook.port);
    let authorities = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, &hook.bundle).expect("base64");
    let webhook = Some(Webhook { endpoint: Endpoint { url, authorities, ..Endpoint::default() }, sending });
    let audit = AuditLog { policy: Policy::parse(&policy).expect("a policy"), log, webhook };
    Server::start_with(|config| config.audit = Some(audit)).await
}

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

#[tokio::test]
async fn what_is_written_is_sent_to_a_webhook_too() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let log = Log { path: Some(dir.path().join("audit.log")), ..Log::default() };
    let hook = Hook::start(|_| Some(json!({}))).await;
    let server = sending(&hook, "RequestResponse", Some(log), Sending::default()).await;
    server.make(MAPS, config_map("a", json!({"k": "v"}))).await;
    assert_eq!(server.get(MAPS).await.0, 200);
    // Half a minute is not waited for more.
    let written = told(&server, &dir).await;
    assert!(hook.paths().iter().all(|path| path == "/events"), "{:?}", hook.paths());
    let mut sent = sent(&hook);
    // Batches may pass each other.
    sent.sort_by_key(|event| event["stageTimestamp"].to_string());
    assert_eq!(sent, written);
    let stages: Vec<&Value> = sent.iter().map(|event| &event["stage"]).collect();
    assert_eq!(stages, ["RequestReceived", "ResponseComplete", "RequestReceived", "ResponseComplete"]);
    assert_eq!(sent[1]["requestObject"]["data"]["k"], "v");
}

#[tokio::test]
async fn in_blocking_mode_a_request_waits_for_the_webhook_and_duties_do_not() {
    for level in ["Metadata", "RequestResponse"] {
        let hook = Hook::start(|_| Some(json!({}))).await;
        let sending = Sending { mode: Mode::Blocking, ..Sending::default() };
        let server = self::sending(&hook, level, None, sending).await;
        hook.hold(true);
        let asked = server.get(MAPS);
        tokio::pin!(asked);
        let heard = async |count: usize| hook.hears(count).await;
        // It is not looked at before its beginning is heard of.
        tokio::select! {
            _ = &mut asked => panic!("{level}: nobody had heard of it"),
            () = heard(1) => {}
        }
        let read = Request::get(format!("{MAPS}/a")).body(Body::empty()).expect("a request");
        assert_eq!(server.send(Some(node("n")), read).await.code, 403, "{level}");
        hook.hold(false);
        assert_eq!(asked.await.0, 200, "{level}");
        // And not answered before its end is.
        let own = |event: &Value| event["requestURI"] == MAPS && event["stage"] == "ResponseComplete";
        assert!(sent(&hook).iter().any(own), "{level}");
    }
}

#[tokio::test]
async fn who_is_told_of_nothing_lets_nothing_be_done_if_that_is_asked_for() {
    for (mode, code) in [(Mode::Blocking, 201), (Mode::BlockingStrict, 500)] {
        let hook = Hook::start(|_| Some("no".into())).await;
        let sending = Sending { mode, initial_backoff: Duration::from_millis(1), ..Sending::default() };
        let server = self::sending(&hook, "Metadata", None, sending).await;
        let (answered, answer) = server.call("POST", MAPS, config_map("a", json!({}))).await;
        assert_eq!(answered, code, "{mode:?}: {answer}");
        let (_, page) = server.get("/metrics").await;
        let page = page.as_str().expect("text");
        let is_strict = mode == Mode::BlockingStrict;
        assert!(page.contains("\napiserver_audit_error_total{plugin=\"webhook\"} 2\n"), "{mode:?}: {page}");
        let rejected = format!("\napiserver_audit_requests_rejected_total {}\n", u8::from(is_strict));
        assert!(page.contains(&rejected), "{mode:?}: {page}");
        if is_strict {
            let message = answer["message"].as_str().unwrap_or_default();
            assert!(message.contains("failed to store audit event"), "{message}");
            hook.says(|_| Some(json!({})));
            assert_eq!(server.get(&format!("{MAPS}/a")).await.0, 404, "nothing was made");
        }
    }
}
