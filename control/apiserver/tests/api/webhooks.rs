//! Admission webhooks: who is asked what, and what becomes of the answers. The webhooks are servers of this process, with
//! certificates of their own authorities.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};

use super::{Server, admin, config_map, pod};

pub(super) const MUTATING: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";
pub(super) const VALIDATING: &str = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const PODS: &str = "/api/v1/namespaces/default/pods";

type Says = Box<dyn Fn(&Value) -> Option<Value> + Send>;

/// A server that answers what it is told to answer.
pub(super) struct Hook {
    pub port: u16,
    /// Its authority, for `caBundle`.
    pub bundle: String,
    /// The same as it is trusted by a client.
    pub certificate: rustls::pki_types::CertificateDer<'static>,
    heard: Arc<Mutex<Vec<(String, Value)>>>,
    says: Arc<Mutex<Says>>,
    /// Whether answers wait.
    held: tokio::sync::watch::Sender<bool>,
}

impl Hook {
    /// Answers a body with what `says` makes of it; with nothing it never answers, with words it fails.
    pub async fn start(says: impl Fn(&Value) -> Option<Value> + Send + 'static) -> Hook {
        let names = ["127.0.0.1", "outside.default.svc", "n"].map(str::to_owned).to_vec();
        let made = rcgen::generate_simple_self_signed(names).expect("a certificate");
        let certificate = made.cert.der().clone();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let tls = tls.with_no_client_auth().with_single_cert(vec![certificate.clone()], key).unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let heard: Arc<Mutex<Vec<(String, Value)>>> = Arc::default();
        let says: Arc<Mutex<Says>> = Arc::new(Mutex::new(Box::new(says)));
        let hook = Hook {
            port,
            bundle: STANDARD.encode(made.cert.pem()),
            certificate,
            heard: heard.clone(),
            says: says.clone(),
            held: tokio::sync::watch::Sender::new(false),
        };
        let held = hook.held.subscribe();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, heard, says, held) = (acceptor.clone(), heard.clone(), says.clone(), held.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
                        let (heard, says, mut held) = (heard.clone(), says.clone(), held.clone());
                        async move {
                            let path = request.uri().to_string();
                            let body = request.into_body().collect().await?.to_bytes();
                            let body: Value = serde_json::from_slice(&body).unwrap_or_default();
                            let answer = (says.lock())(&body);
                            heard.lock().push((path, body));
                            let _ = held.wait_for(|held| !held).await;
                            match answer {
                                Some(Value::String(words)) => {
                                    let answer = Response::builder().status(500).body(Full::new(Bytes::from(words)));
                                    Ok::<_, hyper::Error>(answer.expect("an answer"))
                                }
                                Some(answer) => Ok(Response::new(Full::new(Bytes::from(answer.to_string())))),
                                None => std::future::pending().await,
                            }
                        }
                    });
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        hook
    }

    pub fn says(&self, says: impl Fn(&Value) -> Option<Value> + Send + 'static) {
        *self.says.lock() = Box::new(says);
    }

    /// Lets answers wait, or go.
    pub fn hold(&self, held: bool) {
        self.held.send_replace(held);
    }

    /// Waits until it has heard so many requests.
    pub async fn hears(&self, count: usize) {
        let heard = async {
            while self.heard.lock().len() < count {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), heard).await.expect("it is asked");
    }

    /// The requests that it heard, since it was asked.
    pub fn heard(&self) -> Vec<Value> {
        std::mem::take(&mut *self.heard.lock()).into_iter().map(|(_, body)| body["request"].clone()).collect()
    }

    /// All that it heard.
    pub fn bodies(&self) -> Vec<Value> {
        self.heard.lock().iter().map(|(_, body)| body.clone()).collect()
    }

    pub fn paths(&self) -> Vec<String> {
        self.heard.lock().iter().map(|(path, _)| path.clone()).collect()
    }

    pub fn url(&self) -> Value {
        json!({"url": format!("https://127.0.0.1:{}/admit", self.port), "caBundle": self.bundle})
    }
}

/// An answer to a review.
fn answer(review: &Value, mut response: Value) -> Option<Value> {
    response["uid"] = review["request"]["uid"].clone();
    Some(json!({"kind": "AdmissionReview", "apiVersion": review["apiVersion"], "response": response}))
}

pub(super) fn allow(review: &Value) -> Option<Value> {
    answer(review, json!({"allowed": true}))
}

pub(super) fn patched(review: &Value, patch: &Value) -> Option<Value> {
    let patch = STANDARD.encode(patch.to_string());
    answer(review, json!({"allowed": true, "patchType": "JSONPatch", "patch": patch}))
}

pub(super) fn webhook(name: &str, client: Value, resources: &[&str]) -> Value {
    json!({
        "name": format!("{name}.example.com"), "sideEffects": "None", "admissionReviewVersions": ["v1"],
        "clientConfig": client,
        "rules": [{"operations": ["*"], "apiGroups": ["*"], "apiVersions": ["*"], "resources": resources}],
    })
}

/// Makes a configuration.
pub(super) async fn configure(server: &Server, path: &str, name: &str, webhooks: Vec<Value>) {
    server.make(path, json!({"metadata": {"name": name}, "webhooks": webhooks})).await;
}

#[tokio::test]
async fn mutating_webhooks_are_asked_in_order_and_validating_ones_see_what_they_made() {
    let server = Server::start().await;
    let add = |key: &'static str| {
        move |review: &Value| {
            let seen = review["request"]["object"]["data"].as_object().map_or(0, serde_json::Map::len);
            let patch = json!([{"op": "add", "path": format!("/data/{key}"), "value": seen.to_string()}]);
            patched(review, &patch)
        }
    };
    let (a, b, judge) = (Hook::start(add("a")).await, Hook::start(add("b")).await, Hook::start(allow).await);
    // Of the names of the configurations the order is made.
    configure(&server, MUTATING, "2", vec![webhook("b", b.url(), &["configmaps"])]).await;
    configure(&server, MUTATING, "1", vec![webhook("a", a.url(), &["configmaps"])]).await;
    configure(&server, VALIDATING, "v", vec![webhook("judge", judge.url(), &["configmaps"])]).await;
    let made = server.make(MAPS, config_map("m", json!({"own": "x"}))).await;
    assert_eq!(made["data"], json!({"own": "x", "a": "1", "b": "2"}));
    let heard = judge.heard();
    assert_eq!(heard[0]["object"]["data"], made["data"]);
    assert_eq!(heard[0]["object"]["metadata"]["uid"], made["metadata"]["uid"]);
    // What admission adds nobody owns.
    let owned = made["metadata"]["managedFields"].to_string();
    assert!(owned.contains("f:own") && !owned.contains("f:a"), "{owned}");
    judge.says(|review| {
        let status = json!({"code": 403, "reason": "Forbidden", "message": "no maps today"});
        answer(review, json!({"allowed": false, "status": status, "warnings": ["think again"]}))
    });
    let request = Request::post(MAPS).header("content-type", "application/json");
    let request = request.body(Body::from(config_map("n", json!({"own": "x"})).to_string())).unwrap();
    let refused = server.send(Some(admin()), request).await;
    let status = refused.json();
    assert_eq!((refused.code, &status["reason"]), (403, &json!("Forbidden")));
    let expected = "admission webhook \"judge.example.com\" denied the request: no maps today";
    assert_eq!(status["message"], expected);
    assert_eq!(refused.headers["warning"], "299 - \"think again\"");
    assert_eq!(server.get(&format!("{MAPS}/n")).await.0, 404);
    // What configures admission is not admitted.
    configure(&server, VALIDATING, "w", vec![webhook("judge", judge.url(), &["*"])]).await;
    for (path, name) in [(MUTATING, "1"), (MUTATING, "2"), (VALIDATING, "v"), (VALIDATING, "w")] {
        assert_eq!(server.call("DELETE", &format!("{path}/{name}"), Value::Null).await.0, 200);
    }
    judge.heard();
    server.make(MAPS, config_map("n", json!({}))).await;
    assert!(judge.heard().is_empty());
}

#[tokio::test]
async fn a_webhook_is_told_what_is_asked_for() {
    let server = Server::start().await;
    let hook = Hook::start(allow).await;
    configure(&server, MUTATING, "m", vec![webhook("m", hook.url(), &["configmaps", "namespaces"])]).await;
    let path = format!("{MAPS}?fieldManager=me&fieldValidation=Strict&dryRun=All");
    let object =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"generateName": "m-"}, "data": {"a": "b"}});
    assert_eq!(server.call("POST", &path, object).await.0, 201);
    let heard = hook.heard();
    let [create] = heard.as_slice() else { panic!("{heard:?}") };
    for (field, expected) in [
        ("kind", json!({"group": "", "version": "v1", "kind": "ConfigMap"})),
        ("resource", json!({"group": "", "version": "v1", "resource": "configmaps"})),
        ("requestKind", json!({"group": "", "version": "v1", "kind": "ConfigMap"})),
        ("requestResource", json!({"group": "", "version": "v1", "resource": "configmaps"})),
        ("namespace", json!("default")),
        ("name", Value::Null),
        ("operation", json!("CREATE")),
        ("userInfo", json!({"username": "admin", "groups": ["system:masters", "system:authenticated"]})),
        ("oldObject", Value::Null),
        ("dryRun", json!(true)),
        (
            "options",
            json!({
                "kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1", "dryRun": ["All"], "fieldManager": "me",
                "fieldValidation": "Strict",
            }),
        ),
    ] {
        assert_eq!(create[field], expected, "{field}");
    }
    let object = &create["object"];
    assert_eq!(
        (&object["kind"], &object["apiVersion"], &object["data"]["a"]),
        (&json!("ConfigMap"), &json!("v1"), &json!("b"))
    );
    let metadata = &object["metadata"];
    assert!(metadata["name"].is_null() && metadata["uid"].is_null() && metadata["generateName"] == "m-", "{metadata}");
    server.make(MAPS, config_map("m", json!({"a": "1"}))).await;
    // A name that it gives is the name, also where it is taken.
    hook.says(|review| patched(review, &json!([{"op": "add", "path": "/metadata/name", "value": "m"}])));
    let (code, status) = server.call("POST", MAPS, json!({"metadata": {"generateName": "m-"}})).await;
    assert_eq!((code, &status["reason"]), (409, &json!("AlreadyExists")), "{status}");
    hook.says(allow);
    hook.heard();
    let (code, _) = server.call("PATCH", &format!("{MAPS}/m"), json!({"data": {"a": "2"}})).await;
    assert_eq!(code, 200);
    let update = hook.heard().remove(0);
    assert_eq!((&update["operation"], &update["name"]), (&json!("UPDATE"), &json!("m")));
    assert_eq!((&update["object"]["data"]["a"], &update["oldObject"]["data"]["a"]), (&json!("2"), &json!("1")));
    assert_eq!(update["options"]["kind"], "UpdateOptions");
    let delete = json!({"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": 0});
    assert_eq!(server.call("DELETE", &format!("{MAPS}/m"), delete).await.0, 200);
    let delete = hook.heard().remove(0);
    assert_eq!((&delete["operation"], &delete["object"]), (&json!("DELETE"), &Value::Null));
    assert_eq!((&delete["oldObject"]["data"]["a"], &delete["options"]["gracePeriodSeconds"]), (&json!("2"), &json!(0)));
    for name in ["x", "y"] {
        server.make(MAPS, config_map(name, json!({}))).await;
    }
    hook.heard();
    assert_eq!(server.call("DELETE", &format!("{MAPS}?labelSelector=none"), Value::Null).await.0, 200);
    assert!(hook.heard().is_empty());
    assert_eq!(server.call("DELETE", MAPS, Value::Null).await.0, 200);
    let heard = hook.heard();
    assert_eq!(heard.len(), 2);
    assert!(heard.iter().all(|request| request["operation"] == "DELETE" && request["name"].is_null()));
    server.make("/api/v1/namespaces", json!({"metadata": {"name": "team"}})).await;
    let namespace = hook.heard().remove(0);
    assert_eq!((&namespace["name"], &namespace["namespace"]), (&json!("team"), &json!("team")));
}

#[tokio::test]
async fn who_cannot_be_asked_fails_the_request_or_not_as_is_said() {
    let server = Server::start().await;
    let hook = Hook::start(|_| None).await;
    let mut hung = webhook("hung", hook.url(), &["configmaps"]);
    hung["timeoutSeconds"] = 1.into();
    configure(&server, VALIDATING, "v", vec![hung.clone()]).await;
    let (code, status) = server.call("POST", MAPS, config_map("m", json!({}))).await;
    assert_eq!((code, &status["reason"]), (500, &json!("InternalError")));
    let expected = format!(
        "Internal error occurred: failed calling webhook \"hung.example.com\": failed to call webhook: Post \"https://127.0.0.1:{}/admit?timeout=1s\": context deadline exceeded",
        hook.port
    );
    assert_eq!(status["message"], expected);
    let replace = |webhook: Value| {
        let patch = json!({"webhooks": [webhook]});
        let server = &server;
        async move {
            let (code, answer) = server.call("PATCH", &format!("{VALIDATING}/v"), patch).await;
            assert_eq!(code, 200, "{answer}");
        }
    };
    hung["failurePolicy"] = "Ignore".into();
    replace(hung).await;
    server.make(MAPS, config_map("m", json!({}))).await;
    // Nobody listens; a certificate of another authority; an answer to another question.
    let other = Hook::start(allow).await;
    for (client, words) in [
        (json!({"url": "https://127.0.0.1:1/", "caBundle": hook.bundle}), "connect: connection refused"),
        (
            json!({"url": format!("https://127.0.0.1:{}", other.port), "caBundle": hook.bundle}),
            "x509: certificate signed by unknown authority",
        ),
        (
            json!({"service": {"namespace": "default", "name": "gone"}, "caBundle": hook.bundle}),
            "service \"gone\" not found",
        ),
    ] {
        replace(webhook("other", client, &["configmaps"])).await;
        let (code, status) = server.call("POST", MAPS, config_map("n", json!({}))).await;
        let message = status["message"].as_str().unwrap();
        assert!(code == 500 && message.contains(words), "{message}");
    }
    other.says(|_| Some(json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": {"uid": "x", "allowed": true}})));
    replace(webhook("other", other.url(), &["configmaps"])).await;
    let (code, status) = server.call("POST", MAPS, config_map("n", json!({}))).await;
    let message = status["message"].as_str().unwrap();
    assert!(code == 500 && message.contains("received invalid webhook response: expected response.uid="), "{message}");
    // A dry run asks nobody whom it would have an effect on.
    let mut loud = webhook("loud", other.url(), &["configmaps"]);
    loud["sideEffects"] = "Some".into();
    let (code, status) = server.call("PATCH", &format!("{VALIDATING}/v"), json!({"webhooks": [loud]})).await;
    assert_eq!(code, 422, "{status}");
}

#[tokio::test]
async fn who_waits_for_a_webhook_holds_up_nobody_else() {
    let server = Arc::new(Server::start().await);
    let hook = Hook::start(|review| if review["request"]["name"] == "slow" { None } else { allow(review) }).await;
    for name in ["slow", "quick"] {
        server.make(MAPS, config_map(name, json!({}))).await;
    }
    let mut hung = webhook("hung", hook.url(), &["configmaps"]);
    hung["timeoutSeconds"] = 30.into();
    configure(&server, MUTATING, "m", vec![hung]).await;
    // As many as there are turns at objects, and lanes for heavy work.
    let large = "x".repeat(64 << 10);
    let waiting: Vec<_> = (0..32)
        .map(|number| {
            let (server, large) = (server.clone(), large.clone());
            tokio::spawn(async move {
                let data = json!({"data": {"a": number.to_string(), "b": large}});
                server.call("PATCH", &format!("{MAPS}/slow"), data).await
            })
        })
        .collect();
    while hook.paths().len() < 32 {
        tokio::task::yield_now().await;
    }
    let path = format!("{MAPS}/quick");
    let quick = server.call("PATCH", &path, json!({"data": {"a": large}}));
    let (code, _) = tokio::time::timeout(Duration::from_secs(10), quick).await.expect("it waits for nobody");
    assert_eq!(code, 200);
    waiting.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn selectors_and_conditions_decide_who_is_asked() {
    let server = Server::start().await;
    let hook = Hook::start(allow).await;
    let with = |name: &str, field: &str, value: Value| {
        let mut webhook = webhook(name, hook.url(), &["configmaps"]);
        webhook[field] = value;
        webhook
    };
    let condition = |text: &str| json!([{"name": "c", "expression": text}]);
    server.make("/api/v1/namespaces", json!({"metadata": {"name": "team", "labels": {"ask": "yes"}}})).await;
    for (field, value, namespace, expected) in [
        ("namespaceSelector", json!({"matchLabels": {"ask": "yes"}}), "team", 1),
        ("namespaceSelector", json!({"matchLabels": {"ask": "yes"}}), "default", 0),
        ("objectSelector", json!({"matchLabels": {"a": "b"}}), "team", 1),
        ("objectSelector", json!({"matchLabels": {"a": "c"}}), "team", 0),
        ("matchConditions", condition("object.data.a == 'b' && request.operation == 'CREATE'"), "team", 1),
        ("matchConditions", condition("object.data.a == 'c'"), "team", 0),
        ("matchConditions", condition("authorizer.group('').resource('secrets').check('get').allowed()"), "team", 1),
    ] {
        configure(&server, VALIDATING, "v", vec![with("v", field, value.clone())]).await;
        hook.heard();
        let mut map = config_map("m", json!({"a": "b"}));
        map["metadata"]["labels"] = json!({"a": "b"});
        server.make(&format!("/api/v1/namespaces/{namespace}/configmaps"), map).await;
        assert_eq!(hook.heard().len(), expected, "{field} {value}");
        for path in [format!("{VALIDATING}/v"), format!("/api/v1/namespaces/{namespace}/configmaps/m")] {
            assert_eq!(server.call("DELETE", &path, Value::Null).await.0, 200);
        }
    }
    // A condition without a value is as a webhook that cannot be asked.
    configure(&server, VALIDATING, "v", vec![with("v", "matchConditions", condition("object.data.nothing == 'b'"))])
        .await;
    let (code, status) = server.call("POST", MAPS, config_map("m", json!({}))).await;
    assert_eq!((code, &status["reason"]), (403, &json!("Forbidden")), "{status}");
    let patch = json!({"webhooks": [with("v", "failurePolicy", json!("Ignore"))]});
    assert_eq!(server.call("PATCH", &format!("{VALIDATING}/v"), patch).await.0, 200);
    server.make(MAPS, config_map("m", json!({}))).await;
}

#[tokio::test]
async fn webhooks_that_want_it_are_asked_again_when_others_change_the_object() {
    let server = Server::start().await;
    let count = |review: &Value| {
        let seen = review["request"]["object"]["data"].as_object().map_or(0, serde_json::Map::len);
        patched(review, &json!([{"op": "add", "path": "/data/seen", "value": seen.to_string()}]))
    };
    let (eager, calm) = (Hook::start(count).await, Hook::start(allow).await);
    let change =
        Hook::start(|review| patched(review, &json!([{"op": "add", "path": "/data/more", "value": "x"}]))).await;
    let mut again = webhook("again", eager.url(), &["configmaps"]);
    again["reinvocationPolicy"] = "IfNeeded".into();
    let webhooks =
        vec![again, webhook("once", calm.url(), &["configmaps"]), webhook("change", change.url(), &["configmaps"])];
    configure(&server, MUTATING, "m", webhooks).await;
    let made = server.make(MAPS, config_map("m", json!({"own": "x"}))).await;
    // It saw one, then its own, and what was added behind it.
    assert_eq!(made["data"]["seen"], "3");
    assert_eq!((eager.heard().len(), calm.heard().len(), change.heard().len()), (2, 1, 1));
    // Nothing changes: nobody is asked again.
    change.says(allow);
    server.call("PATCH", &format!("{MAPS}/m"), json!({"data": {"own": "y"}})).await;
    assert_eq!(eager.heard().len(), 1);
}

#[tokio::test]
async fn what_webhooks_put_into_a_pod_gets_its_defaults_and_is_checked() {
    let server = Server::start().await.with_account().await;
    let hook = Hook::start(|review| {
        let container = json!({"name": "side", "image": "proxy", "ports": [{"containerPort": 80}]});
        patched(review, &json!([{"op": "add", "path": "/spec/containers/-", "value": container}]))
    })
    .await;
    configure(&server, MUTATING, "m", vec![webhook("m", hook.url(), &["pods"])]).await;
    let made = server.make(PODS, pod("p")).await;
    let side = &made["spec"]["containers"][1];
    assert_eq!((&side["ports"][0]["protocol"], &side["imagePullPolicy"]), (&json!("TCP"), &json!("Always")));
    let mounts = side["volumeMounts"].to_string();
    assert!(mounts.contains("serviceaccount"), "plugins look at it again: {side}");
    hook.says(|review| patched(review, &json!([{"op": "replace", "path": "/spec/containers/0/name", "value": "A B"}])));
    let (code, status) = server.call("POST", PODS, pod("q")).await;
    assert_eq!((code, &status["reason"]), (422, &json!("Invalid")), "{status}");
    hook.says(|review| patched(review, &json!([{"op": "remove", "path": "/spec/nothing"}])));
    assert_eq!(server.call("POST", PODS, pod("q")).await.0, 500);
    hook.says(|review| patched(review, &json!([{"op": "replace", "path": "/metadata/namespace", "value": "other"}])));
    assert_eq!(server.call("POST", PODS, pod("q")).await.0, 400);
}

#[tokio::test]
async fn subresources_are_admitted_as_what_is_written_to_them() {
    let server = Server::start().await.with_account().await;
    let hook = Hook::start(allow).await;
    configure(&server, VALIDATING, "v", vec![webhook("v", hook.url(), &["*/*"])]).await;
    server.make("/api/v1/nodes", json!({"metadata": {"name": "n"}})).await;
    for name in ["p", "q"] {
        server.make(PODS, pod(name)).await;
    }
    let deployment = json!({"metadata": {"name": "d"}, "spec": {"replicas": 1, "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": pod("x")["spec"]}}});
    server.make("/apis/apps/v1/namespaces/default/deployments", deployment).await;
    hook.heard();
    let status = json!({"status": {"phase": "Running"}});
    let scale = json!({"spec": {"replicas": 3}});
    let binding = json!({"metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n"}});
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "q"}});
    let bindings = json!({"bindings": [{"namespace": "default", "name": "q", "node": "n"}]});
    for (method, path, body, subresource, kind, operation) in [
        ("PATCH", format!("{PODS}/p/status"), status, "status", "Pod", "UPDATE"),
        ("PATCH", "/apis/apps/v1/namespaces/default/deployments/d/scale".to_owned(), scale, "scale", "Scale", "UPDATE"),
        ("POST", format!("{PODS}/p/binding"), binding, "binding", "Binding", "CREATE"),
        ("POST", "/coracle/v1/bindings".to_owned(), bindings, "binding", "Binding", "CREATE"),
        ("POST", format!("{PODS}/q/eviction"), eviction, "eviction", "Eviction", "CREATE"),
        (
            "GET",
            format!("{PODS}/p/exec?command=ls&command=-l&stdout=true"),
            Value::Null,
            "exec",
            "PodExecOptions",
            "CONNECT",
        ),
    ] {
        let (code, answer) = server.call(method, &path, body).await;
        assert!(code < 300 || operation == "CONNECT", "{path}: {answer}");
        let heard = hook.heard();
        let [request] = heard.as_slice() else { panic!("{path}: {heard:?}") };
        assert_eq!((&request["subResource"], &request["kind"]["kind"]), (&json!(subresource), &json!(kind)), "{path}");
        assert_eq!((&request["operation"], &request["object"]["kind"]), (&json!(operation), &json!(kind)), "{path}");
        match subresource {
            "scale" => {
                assert_eq!(request["object"]["spec"]["replicas"], 3);
                assert_eq!(request["oldObject"]["spec"]["replicas"], 1);
            }
            "binding" => assert_eq!(request["object"]["target"]["name"], "n"),
            "exec" => assert_eq!(request["object"]["command"], json!(["ls", "-l"])),
            _ => {}
        }
    }
    hook.says(|review| answer(review, json!({"allowed": false, "status": {"code": 403, "message": "stay"}})));
    for path in
        [format!("{PODS}/p/exec?command=ls"), format!("{PODS}/p/portforward"), "/api/v1/nodes/n/proxy/".to_owned()]
    {
        let (code, status) = server.get(&path).await;
        assert_eq!((code, status["message"].as_str().unwrap().ends_with("stay")), (403, true), "{path} {status}");
    }
    let scale = json!({"spec": {"replicas": 5}});
    let path = "/apis/apps/v1/namespaces/default/deployments/d/scale";
    assert_eq!(server.call("PATCH", path, scale).await.0, 403);
    assert_eq!(server.get(path).await.1["spec"]["replicas"], 3);
}

#[tokio::test]
async fn what_runs_in_a_pod_by_way_of_its_node_is_admitted_as_by_way_of_the_pod() {
    let server = Server::start().await.with_account().await;
    let hook =
        Hook::start(|review| answer(review, json!({"allowed": false, "status": {"code": 403, "message": "stay"}})))
            .await;
    configure(&server, VALIDATING, "v", vec![webhook("v", hook.url(), &["pods/exec"])]).await;
    server.make("/api/v1/nodes", json!({"metadata": {"name": "n"}})).await;
    let says = json!({"status": {"addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": 1}}}});
    assert_eq!(server.call("PATCH", "/api/v1/nodes/n/status", says).await.0, 200);
    server.make(PODS, pod("p")).await;
    let (code, status) = server.get("/api/v1/nodes/n/proxy/exec/default/p/c?command=ls").await;
    assert_eq!((code, status["message"].as_str().unwrap().ends_with("stay")), (403, true), "{status}");
    let heard = hook.heard();
    let [request] = heard.as_slice() else { panic!("{heard:?}") };
    assert_eq!((&request["name"], &request["subResource"]), (&json!("p"), &json!("exec")));
    let object = &request["object"];
    assert_eq!(object["kind"], "PodExecOptions");
    assert_eq!((&object["command"], &object["container"]), (&json!(["ls"]), &json!("c")));
}

#[tokio::test]
async fn a_scale_that_a_webhook_changes_is_what_is_set() {
    let server = Server::start().await;
    let deployment = json!({"metadata": {"name": "d"}, "spec": {"replicas": 1, "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": pod("x")["spec"]}}});
    server.make("/apis/apps/v1/namespaces/default/deployments", deployment).await;
    let hook =
        Hook::start(|review| patched(review, &json!([{"op": "replace", "path": "/spec/replicas", "value": 2}]))).await;
    configure(&server, MUTATING, "m", vec![webhook("m", hook.url(), &["deployments/scale"])]).await;
    let path = "/apis/apps/v1/namespaces/default/deployments/d";
    let (_, scale) = server.call("PATCH", &format!("{path}/scale"), json!({"spec": {"replicas": 9}})).await;
    assert_eq!(scale["spec"]["replicas"], 2);
    assert_eq!(server.get(path).await.1["spec"]["replicas"], 2);
}

/// Read as bodies are: what is of a wrong type is nobody's zero.
#[tokio::test]
async fn what_a_webhook_makes_of_the_wrong_type_or_kind_is_an_error() {
    let server = Server::start().await.with_account().await;
    server.make("/api/v1/nodes", json!({"metadata": {"name": "n"}})).await;
    server.make(PODS, pod("p")).await;
    let deployment = json!({"metadata": {"name": "d"}, "spec": {"replicas": 1, "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": pod("x")["spec"]}}});
    server.make("/apis/apps/v1/namespaces/default/deployments", deployment).await;
    let hook = Hook::start(allow).await;
    let resources = ["configmaps", "deployments/scale", "pods/binding", "pods/eviction", "serviceaccounts/token"];
    configure(&server, MUTATING, "m", vec![webhook("m", hook.url(), &resources)]).await;
    let scale = "/apis/apps/v1/namespaces/default/deployments/d/scale";
    let token = "/api/v1/namespaces/default/serviceaccounts/default/token";
    let binding = json!({"metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n"}});
    let bindings = json!({"bindings": [{"namespace": "default", "name": "p", "node": "n"}]});
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "p"}});
    for (method, path, body, at, value) in [
        ("PATCH", scale.to_owned(), json!({"spec": {"replicas": 9}}), "/spec/replicas", json!("3")),
        ("PATCH", scale.to_owned(), json!({"spec": {"replicas": 9}}), "/spec", json!(7)),
        ("POST", token.to_owned(), json!({"spec": {}}), "/spec", json!("none")),
        ("POST", token.to_owned(), json!({"spec": {}}), "/spec/expirationSeconds", json!("4000")),
        ("POST", token.to_owned(), json!({"spec": {}}), "/kind", json!("Scale")),
        ("POST", format!("{PODS}/p/binding"), binding.clone(), "/target", json!("n")),
        ("POST", format!("{PODS}/p/binding"), binding.clone(), "/target/name", json!(7)),
        ("POST", format!("{PODS}/p/eviction"), eviction, "/deleteOptions", json!("none")),
        ("POST", MAPS.to_owned(), config_map("m", json!({"k": "v"})), "/data/k", json!(7)),
        ("POST", MAPS.to_owned(), config_map("m", json!({"k": "v"})), "/kind", json!("Secret")),
        ("POST", MAPS.to_owned(), config_map("m", json!({"k": "v"})), "/apiVersion", json!("v2")),
    ] {
        let patch = json!([{"op": "add", "path": at, "value": value}]);
        hook.says(move |review| patched(review, &patch));
        let (code, status) = server.call(method, &path, body).await;
        assert_eq!((code, &status["reason"]), (500, &json!("InternalError")), "{path} {at}: {status}");
    }
    hook.says(|review| patched(review, &json!([{"op": "add", "path": "/target/name", "value": 7}])));
    let (_, answer) = server.call("POST", "/coracle/v1/bindings", bindings.clone()).await;
    assert_eq!(answer["results"][0]["code"], 500, "{answer}");
    // What is of the right type is looked at as if the caller had said it.
    hook.says(|review| patched(review, &json!([{"op": "add", "path": "/target/kind", "value": "Pod"}])));
    let (code, status) = server.call("POST", &format!("{PODS}/p/binding"), binding).await;
    assert_eq!((code, status["message"].as_str().unwrap().contains("target.kind")), (500, true), "{status}");
    let (_, answer) = server.call("POST", "/coracle/v1/bindings", bindings).await;
    assert_eq!(answer["results"][0]["message"], status["message"], "{answer}");
    assert!(server.get(&format!("{PODS}/p")).await.1["spec"]["nodeName"].is_null());
    assert_eq!(server.get(scale).await.1["spec"]["replicas"], 1);
    assert_eq!(server.get(&format!("{MAPS}/m")).await.0, 404);
}

#[tokio::test]
async fn what_is_the_server_s_of_the_metadata_no_webhook_changes() {
    let server = Server::start().await;
    let deployment = json!({"metadata": {"name": "d"}, "spec": {"replicas": 1, "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": pod("x")["spec"]}}});
    let path = "/apis/apps/v1/namespaces/default/deployments";
    let made = server.make(path, deployment).await;
    let hook = Hook::start(allow).await;
    configure(&server, MUTATING, "m", vec![webhook("m", hook.url(), &["deployments"])]).await;
    let path = format!("{path}/d");
    for (field, value) in [
        ("name", json!("e")),
        ("namespace", json!("other")),
        ("uid", json!("u")),
        ("creationTimestamp", json!("2001-01-01T00:00:00Z")),
        ("deletionTimestamp", json!("2001-01-01T00:00:00Z")),
    ] {
        hook.says(move |review| {
            patched(review, &json!([{"op": "add", "path": format!("/metadata/{field}"), "value": value}]))
        });
        let (code, status) = server.call("PATCH", &path, json!({"metadata": {"labels": {"l": "m"}}})).await;
        let expected = format!("metadata.{field}: Invalid value");
        assert!(code == 422 && status["message"].as_str().unwrap().contains(&expected), "{field}: {status}");
    }
    hook.says(|review| patched(review, &json!([{"op": "add", "path": "/metadata/generation", "value": 99}])));
    let (code, changed) = server.call("PATCH", &path, json!({"metadata": {"labels": {"l": "m"}}})).await;
    assert_eq!((code, &changed["metadata"]["generation"]), (200, &made["metadata"]["generation"]), "{changed}");
}

#[tokio::test]
async fn who_refuses_has_refused_whatever_else_is_wrong() {
    let server = Server::start().await;
    let hook = Hook::start(|review| {
        let patch = STANDARD.encode("no patch");
        answer(review, json!({"allowed": false, "patchType": "JSONPatch", "patch": patch}))
    })
    .await;
    let mut refuses = webhook("refuses", hook.url(), &["configmaps"]);
    refuses["failurePolicy"] = "Ignore".into();
    configure(&server, MUTATING, "m", vec![refuses]).await;
    let (code, status) = server.call("POST", MAPS, config_map("m", json!({}))).await;
    let expected = "admission webhook \"refuses.example.com\" denied the request without explanation";
    assert_eq!((code, &status["message"]), (400, &json!(expected)));
    // With the same patch one that consents has given no answer, which is ignored.
    hook.says(|review| {
        let patch = STANDARD.encode("no patch");
        answer(review, json!({"allowed": true, "patchType": "JSONPatch", "patch": patch}))
    });
    server.make(MAPS, config_map("m", json!({}))).await;
}

#[tokio::test]
async fn what_a_webhook_says_of_its_failure_is_told_in_few_words() {
    let server = Server::start().await;
    let hook = Hook::start(|_| Some(Value::from("why ".repeat(1 << 18)))).await;
    configure(&server, VALIDATING, "v", vec![webhook("v", hook.url(), &["configmaps"])]).await;
    for says in [None, Some(json!({"kind": "AdmissionReview", "response": {"uid": "x".repeat(1 << 20)}}))] {
        if let Some(says) = says {
            hook.says(move |_| Some(says.clone()));
        }
        let (code, status) = server.call("POST", MAPS, config_map("m", json!({}))).await;
        let text = status.to_string();
        assert!(code == 500 && text.contains("failed calling webhook") && text.len() < 16 << 10, "{}", text.len());
    }
}

/// It may be the one that refuses.
#[tokio::test]
async fn a_configuration_that_cannot_be_read_admits_nothing_until_it_is_removed() {
    let server = Server::start().await;
    for (path, kind) in [
        (MUTATING, "MutatingWebhookConfiguration"),
        (VALIDATING, "ValidatingWebhookConfiguration"),
        ("/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings", "ValidatingAdmissionPolicyBinding"),
    ] {
        let collection = format!("{}.admissionregistration.k8s.io", path.rsplit('/').next().unwrap());
        let text = format!("{{\"kind\":\"{kind}\",\"metadata\":{{\"resourceVersion\":\"\",\"name\":\"d\"");
        server.put_record(&collection, "d", &text).await;
        let (code, status) = server.call("POST", MAPS, config_map("m", json!({}))).await;
        let message = status["message"].as_str().unwrap();
        let is_told = match kind.ends_with("Binding") {
            true => code == 403 && message.contains("admission policies cannot be asked: binding 'd': "),
            false => code == 500 && message.contains("the stored bytes of") && message.contains(" d cannot be read"),
        };
        assert!(is_told, "{code}: {message}");
        let (code, status) = server.call("DELETE", &format!("{path}/d"), Value::Null).await;
        assert_eq!((code, &status["status"]), (200, &json!("Success")), "{status}");
        server.make(MAPS, config_map("m", json!({}))).await;
        assert_eq!(server.call("DELETE", &format!("{MAPS}/m"), Value::Null).await.0, 200);
    }
}

#[tokio::test]
async fn equivalent_versions_are_shown_as_they_are_asked_for() {
    let server = Server::start().await;
    let hook = Hook::start(allow).await;
    let mut old = webhook("old", hook.url(), &["horizontalpodautoscalers"]);
    old["rules"][0]["apiVersions"] = json!(["v1"]);
    configure(&server, VALIDATING, "v", vec![old]).await;
    let autoscaler = json!({"metadata": {"name": "a"}, "spec": {"maxReplicas": 3,
        "scaleTargetRef": {"kind": "Deployment", "name": "d", "apiVersion": "apps/v1"},
        "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 70}}}]}});
    server.make("/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers", autoscaler).await;
    let request = hook.heard().remove(0);
    assert_eq!((&request["resource"]["version"], &request["requestResource"]["version"]), (&json!("v1"), &json!("v2")));
    let object = &request["object"];
    assert_eq!(
        (&object["apiVersion"], &object["spec"]["targetCPUUtilizationPercentage"]),
        (&json!("autoscaling/v1"), &json!(70))
    );
}

#[tokio::test]
async fn a_webhook_behind_a_service_is_called_through_the_node_that_runs_it() {
    // It stands for the node: what comes there is what the node passes to the pod.
    let node = Hook::start(allow).await;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(node.certificate.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let tls = tls.with_root_certificates(roots).with_no_client_auth();
    let server = Server::start_with(|config| config.node_client = Some(tls.into())).await.with_account().await;
    server.make("/api/v1/nodes", json!({"metadata": {"name": "n"}})).await;
    let says = json!({"status": {"addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": node.port}}}});
    assert_eq!(server.call("PATCH", "/api/v1/nodes/n/status", says).await.0, 200);
    let mut hook = pod("hook-0");
    hook["spec"]["nodeName"] = "n".into();
    server.make(PODS, hook).await;
    let service = json!({"metadata": {"name": "hook"}, "spec": {"ports": [{"port": 443, "targetPort": 8443}]}});
    server.make("/api/v1/namespaces/default/services", service).await;
    let target = json!({"kind": "Pod", "namespace": "default", "name": "hook-0"});
    let slice = json!({
        "metadata": {"name": "hook-1", "labels": {"kubernetes.io/service-name": "hook"}}, "addressType": "IPv4",
        "ports": [{"port": 8443}], "endpoints": [{"addresses": ["10.1.2.3"], "targetRef": target}],
    });
    server.make("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices", slice).await;
    let client = json!({"service": {"namespace": "default", "name": "hook", "path": "/check"}});
    configure(&server, VALIDATING, "v", vec![webhook("v", client, &["configmaps"])]).await;
    server.make(MAPS, config_map("m", json!({}))).await;
    assert_eq!(node.paths(), ["/coracle/v1/proxy/default/hook-0/8443/check?timeout=10s"]);
    // One that is not in a pod proves itself, by the name of its Service.
    let hook = Hook::start(allow).await;
    let service =
        json!({"metadata": {"name": "outside"}, "spec": {"type": "ExternalName", "externalName": "localhost"}});
    server.make("/api/v1/namespaces/default/services", service).await;
    let service = json!({"namespace": "default", "name": "outside", "port": hook.port, "path": "/check"});
    let client = json!({"service": service, "caBundle": hook.bundle});
    let patch = json!({"webhooks": [webhook("v", client, &["configmaps"])]});
    let (code, answer) = server.call("PATCH", &format!("{VALIDATING}/v"), patch).await;
    assert_eq!(code, 200, "{answer}");
    server.make(MAPS, config_map("n", json!({}))).await;
    assert_eq!(hook.paths(), ["/check?timeout=10s"]);
}

#[tokio::test]
async fn calls_are_counted() {
    let server = Server::start().await;
    let hook = Hook::start(allow).await;
    configure(&server, VALIDATING, "v", vec![webhook("v", hook.url(), &["configmaps"])]).await;
    server.make(MAPS, config_map("m", json!({}))).await;
    let page = server.send(Some(admin()), Request::get("/metrics").body(Body::empty()).unwrap()).await;
    let expected = "apiserver_admission_webhook_request_total{code=\"200\",name=\"v.example.com\",operation=\"CREATE\",rejected=\"false\",type=\"validating\"} 1";
    assert!(String::from_utf8_lossy(&page.bytes).contains(expected));
}
