//! What nests as deep as is taken goes all the way through the router, and one level more is refused: on a worker with less
//! than the stack that workers have, so that there is room for what calls the router.

use axum::body::Body;
use coracle_api::codec::{DEPTH_MAX, protobuf};
use coracle_api::schema;
use http::Request;
use serde_json::{Value, json};

use super::{Server, admin, config_map};

/// Half of a worker's 2 MiB. In a debug build the calls take some 450 KiB, and the worst of what nests here 350 KiB beside them.
const STACK_BYTES: usize = 1 << 20;
const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const REVISIONS: &str = "/apis/apps/v1/namespaces/default/controllerrevisions";
const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const THINGS: &str = "/apis/example.com/v1/namespaces/default/things";
const POLICIES: &str = "/apis/admissionregistration.k8s.io/v1";
const JSON: &str = "application/json";
const YAML: &str = "application/yaml";
const MERGE: &str = "application/merge-patch+json";

fn on_a_worker(work: impl Future<Output = ()> + Send + 'static) {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).thread_stack_size(STACK_BYTES).enable_all().build().expect("a runtime");
    runtime.block_on(async { tokio::spawn(work).await.expect("no panic") });
}

/// Objects in objects, so many levels.
fn objects(levels: usize) -> Value {
    (1..levels).fold(json!({}), |inner, _| json!({ "f:a": inner }))
}

fn lists(levels: usize) -> Value {
    (1..levels).fold(json!([]), |inner, _| json!([inner]))
}

/// Managed fields that make an object nest so deep.
fn managed(levels: usize) -> Value {
    json!([{
        "manager": "m", "operation": "Update", "apiVersion": "v1", "time": "2020-01-01T00:00:00Z", "fieldsType": "FieldsV1",
        "fieldsV1": objects(levels - 4),
    }])
}

fn definition(schema: &Value) -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "things.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced", "names": {"plural": "things", "kind": "Thing"}, "versions": [
            {"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}},
        ]},
    })
}

/// A schema of so many objects in each other.
fn nested(objects: usize) -> Value {
    (0..objects).fold(json!({"type": "string"}), |inner, _| json!({"type": "object", "properties": {"a": inner}}))
}

impl Server {
    async fn put_through(&self, method: &str, path: &str, media_type: &str, body: impl Into<Body>) -> (u16, String) {
        let request = Request::builder().method(method).uri(path).header("content-type", media_type);
        let answer = self.send(Some(admin()), request.body(body.into()).expect("a request")).await;
        (answer.code, String::from_utf8_lossy(&answer.bytes).into_owned())
    }

    /// Sends what nests so deep.
    async fn takes(&self, (method, path, media_type): (&str, &str, &str), body: impl Fn(usize) -> Value) {
        for (levels, taken) in [(DEPTH_MAX - 8, true), (DEPTH_MAX, false), (DEPTH_MAX + 1, false), (700, false)] {
            let (code, said) = self.put_through(method, path, media_type, body(levels).to_string()).await;
            let what = format!("{method} {path} {media_type} of {levels} levels: {code}");
            match code {
                200 | 201 => assert!(levels <= DEPTH_MAX, "{what}"),
                400 | 422 => assert!(!taken && said.contains("exceeded max depth"), "{what}: {said:.600}"),
                _ => panic!("{what}: {said:.600}"),
            }
        }
    }
}

#[test]
fn one_who_may_do_nothing_asks_as_deep_as_is_taken() {
    on_a_worker(async {
        let server = Server::start().await;
        for (path, spec) in [
            ("/apis/authentication.k8s.io/v1/selfsubjectreviews", json!({})),
            (
                "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
                json!({"nonResourceAttributes": {"path": "/", "verb": "get"}}),
            ),
            ("/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", json!({"namespace": "default"})),
        ] {
            let review = |levels| json!({"metadata": {"managedFields": managed(levels)}, "spec": spec});
            server.takes(("POST", path, JSON), review).await;
            server.takes(("POST", path, YAML), review).await;
        }
    });
}

#[test]
fn objects_are_made_and_patched_as_deep_as_is_taken() {
    on_a_worker(async {
        let server = Server::start().await;
        server.make(MAPS, config_map("x", json!({"a": "b"}))).await;
        let path = format!("{MAPS}/x");
        for media_type in [JSON, YAML] {
            server
                .takes(
                    ("POST", MAPS, media_type),
                    |levels| json!({"metadata": {"generateName": "a-", "managedFields": managed(levels)}}),
                )
                .await;
            for data in [objects as fn(usize) -> Value, lists] {
                server
                    .takes(
                        ("POST", REVISIONS, media_type),
                        |levels| json!({"metadata": {"generateName": "a-"}, "revision": 1, "data": {"a": data(levels - 2)}}),
                    )
                    .await;
            }
        }
        for data in [objects as fn(usize) -> Value, lists] {
            server.takes(("PATCH", &path, MERGE), |levels| json!({"z": data(levels - 1)})).await;
            server
                .takes(
                    ("PATCH", &path, "application/strategic-merge-patch+json"),
                    |levels| json!({"z": data(levels - 1)}),
                )
                .await;
            server
                .takes(
                    ("PATCH", &path, "application/json-patch+json"),
                    |levels| json!([{"op": "add", "path": "/z", "value": data(levels - 2)}]),
                )
                .await;
        }
        server.takes(("PATCH", &path, MERGE), |levels| json!({"metadata": {"managedFields": managed(levels)}})).await;
        // Short operations that would make something deep.
        let steps: Vec<Value> = std::iter::once(json!({"op": "add", "path": "/z", "value": {}}))
            .chain(
                (0..DEPTH_MAX)
                    .map(|level| json!({"op": "add", "path": format!("/z{}", "/a".repeat(level + 1)), "value": {}})),
            )
            .collect();
        let (code, said) =
            server.put_through("PATCH", &path, "application/json-patch+json", json!(steps).to_string()).await;
        assert_eq!((code, said.contains("exceeded max depth")), (400, true), "{said}");
        let schema = schema::of_kind("apps", "v1", "ControllerRevision").expect("a type");
        for (levels, expected) in [(DEPTH_MAX - 8, 201), (DEPTH_MAX + 1, 400)] {
            let object = json!({"apiVersion": "apps/v1", "kind": "ControllerRevision", "metadata": {"name": "p"}, "revision": 1,
                "data": objects(levels - 1)});
            let body = protobuf::encode(&object, &schema);
            let (code, said) = server.put_through("POST", REVISIONS, "application/vnd.kubernetes.protobuf", body).await;
            assert_eq!(code, expected, "{said:.300}");
        }
    });
}

#[test]
fn custom_resources_and_their_schemas_nest_as_deep_as_is_taken() {
    on_a_worker(async {
        let server = Server::start().await;
        for (levels, expected) in [(40, 201), (56, 201), (60, 400), (150, 400)] {
            let (code, said) = server.call("POST", DEFINITIONS, definition(&nested(levels))).await;
            assert_eq!(code, expected, "a schema of {levels} objects: {said:.300}");
            if code == 201 {
                server
                    .says(&format!("{DEFINITIONS}/things.example.com"), |found| {
                        found["status"]["conditions"].to_string().contains("Established")
                    })
                    .await;
                let object = (0..levels).fold(json!("x"), |inner, _| json!({ "a": inner }));
                let mut object = if object.is_object() { object } else { json!({}) };
                object["metadata"] = json!({"name": "x"});
                object["kind"] = "Thing".into();
                object["apiVersion"] = "example.com/v1".into();
                server.make(THINGS, object).await;
                assert_eq!(server.get("/openapi/v2").await.0, 200);
                assert_eq!(server.get("/openapi/v3/apis/example.com/v1").await.0, 200);
                server.call("DELETE", &format!("{DEFINITIONS}/things.example.com"), Value::Null).await;
                server.says(&format!("{DEFINITIONS}/things.example.com"), |found| found["code"] == 404).await;
            }
        }
        server
            .make(DEFINITIONS, definition(&json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})))
            .await;
        server
            .says(&format!("{DEFINITIONS}/things.example.com"), |found| {
                found["status"]["conditions"].to_string().contains("Established")
            })
            .await;
        let thing = |field: &str, name: &str, data: Value| json!({"apiVersion": "example.com/v1", "kind": "Thing", "metadata": {field: name}, "data": data});
        server.make(THINGS, thing("name", "a", json!(1))).await;
        for data in [objects as fn(usize) -> Value, lists] {
            for media_type in [JSON, YAML] {
                server
                    .takes(("POST", THINGS, media_type), |levels| thing("generateName", "a-", data(levels - 1)))
                    .await;
            }
            server.takes(("PATCH", &format!("{THINGS}/a"), MERGE), |levels| json!({"data": data(levels - 1)})).await;
        }
    });
}

#[test]
fn what_was_stored_deeper_is_read_and_deleted_and_not_changed() {
    on_a_worker(async {
        let server = Server::start().await;
        for levels in [DEPTH_MAX + 1, 535, 1_000] {
            let metadata = json!({"name": "deep", "namespace": "default", "uid": "u", "finalizers": ["x.y/z"], "labels": {"l": "m"},
                "managedFields": managed(levels)});
            // As objects are laid out.
            let text = format!(
                "{{\"kind\":\"ConfigMap\",\"apiVersion\":\"v1\",\"metadata\":{{\"resourceVersion\":\"\",{},\"data\":{{\"a\":\"b\"}}}}",
                &metadata.to_string()[1..],
            );
            server.put_record("configmaps", "default/deep", &text).await;
            let path = format!("{MAPS}/deep");
            for accept in [
                "application/json",
                "application/yaml",
                "application/vnd.kubernetes.protobuf",
                "application/json;as=Table;v=v1;g=meta.k8s.io",
            ] {
                for path in [&path, &format!("{MAPS}?labelSelector=l%3Dm")] {
                    let request = Request::get(path).header("accept", accept).body(Body::empty()).expect("a request");
                    let answer = server.send(Some(admin()), request).await;
                    assert!(
                        answer.code == 200 && String::from_utf8_lossy(&answer.bytes).contains("deep"),
                        "{accept} {path}"
                    );
                }
            }
            for media_type in [MERGE, "application/strategic-merge-patch+json", "application/apply-patch+yaml"] {
                let patch =
                    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "deep"}, "data": {"a": "c"}});
                let asked = format!("{path}?fieldManager=m&force=true");
                let asked = if media_type.contains("apply") { &asked } else { &path };
                let (code, said) = server.put_through("PATCH", asked, media_type, patch.to_string()).await;
                assert_eq!((code, said.contains("nests so deep")), (400, true), "{media_type}: {said:.300}");
            }
            // What is on its way out is stored as deep as is taken.
            let (code, said) = server.call("DELETE", &path, Value::Null).await;
            assert_eq!(code, 200, "{said}");
            let (_, going) = server.get(&path).await;
            assert_eq!(going["metadata"]["finalizers"], json!(["x.y/z"]), "{going}");
            server.call("PATCH", &path, json!({"metadata": {"finalizers": null}})).await;
            assert_eq!(server.get(&path).await.0, 404, "{levels}");
        }
    });
}

#[test]
fn what_policies_make_nests_as_deep_as_is_taken() {
    on_a_worker(async {
        let server = Server::start().await;
        server
            .make(DEFINITIONS, definition(&json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})))
            .await;
        server.appears(THINGS).await;
        // Each mutation wraps what the one before it made.
        let wrapped = |what: &str| format!("{}{what}{}", "{'a': ".repeat(15), "}".repeat(15));
        let mut variables = vec![json!({"name": "v0", "expression": "object.data"})];
        variables.extend(
            (0..6)
                .map(|at| json!({"name": format!("v{}", at + 1), "expression": wrapped(&format!("variables.v{at}"))})),
        );
        let mutation = json!({"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": "Object{data: variables.v6}"}});
        let rules = json!({"resourceRules": [{"operations": ["CREATE"], "apiGroups": ["apps", "example.com"], "apiVersions": ["v1"],
            "resources": ["controllerrevisions", "things"]}]});
        let policies = format!("{POLICIES}/mutatingadmissionpolicies");
        let spec = json!({"matchConstraints": rules, "reinvocationPolicy": "IfNeeded", "failurePolicy": "Fail",
            "variables": variables, "mutations": vec![mutation; 60]});
        server.make(&policies, json!({"metadata": {"name": "p"}, "spec": spec})).await;
        let bound = json!({"metadata": {"name": "p"}, "spec": {"policyName": "p"}});
        server.make(&format!("{POLICIES}/mutatingadmissionpolicybindings"), bound).await;
        let objects = [
            (REVISIONS, json!({"metadata": {"name": "x"}, "revision": 1, "data": {}})),
            (THINGS, json!({"apiVersion": "example.com/v1", "kind": "Thing", "metadata": {"name": "x"}, "data": {}})),
        ];
        for (path, object) in &objects {
            let (code, said) = server.call("POST", path, object.clone()).await;
            assert!(code == 403 && said["message"].to_string().contains("exceeded max depth"), "{path}: {code} {said}");
        }
        // What fails and is ignored leaves what the mutation before it made.
        server.call("PATCH", &format!("{policies}/p"), json!({"spec": {"failurePolicy": "Ignore"}})).await;
        for (path, object) in objects {
            server.make(path, object).await;
            let path = format!("{path}/x");
            assert_eq!(server.get(&path).await.0, 200);
            assert_eq!(server.call("DELETE", &path, Value::Null).await.0, 200);
            assert_eq!(server.get(&path).await.0, 404);
        }
    });
}
