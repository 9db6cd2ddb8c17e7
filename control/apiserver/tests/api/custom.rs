//! Kinds that come and go while the server runs: CustomResourceDefinitions and what they make.

use axum::body::Body;
use http::Request;
use serde_json::{Value, json};

use super::watches::{Watch, said};
use super::{Server, admin};

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const NAME: &str = "gadgets.example.com";
const GADGETS: &str = "/apis/example.com/v1/namespaces/default/gadgets";
const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io";

fn version(name: &str, schema: Value) -> Value {
    json!({"name": name, "served": true, "storage": name == "v1", "schema": {"openAPIV3Schema": schema}})
}

fn definition(plural: &str, kind: &str, versions: &[Value]) -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.example.com")},
        "spec": {
            "group": "example.com", "scope": "Namespaced", "names": {"plural": plural, "kind": kind, "shortNames": [plural[..2]]},
            "versions": versions,
        },
    })
}

fn open() -> Value {
    json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
}

/// A kind with a schema, a status, a scale, columns, a field that selectors know, and other versions.
fn gadgets() -> Value {
    let spec = json!({"type": "object", "required": ["colour"], "properties": {
        "colour": {"type": "string", "enum": ["red", "green"]},
        "replicas": {"type": "integer", "minimum": 0, "default": 1},
        "map": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"], "items": {
            "type": "object", "required": ["k"], "properties": {"k": {"type": "string"}, "v": {"type": "string"}},
        }},
    }});
    let status =
        json!({"type": "object", "properties": {"replicas": {"type": "integer"}, "selector": {"type": "string"}}});
    let mut v1 =
        version("v1", json!({"type": "object", "required": ["spec"], "properties": {"spec": spec, "status": status}}));
    v1["subresources"] = json!({"status": {}, "scale": {
        "specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas", "labelSelectorPath": ".status.selector",
    }});
    v1["selectableFields"] = json!([{"jsonPath": ".spec.colour"}]);
    v1["additionalPrinterColumns"] = json!([{"name": "Colour", "type": "string", "jsonPath": ".spec.colour"}]);
    let mut old = version("v1beta1", open());
    old["deprecated"] = true.into();
    let mut gone = version("v0", open());
    gone["served"] = false.into();
    let mut definition = definition("gadgets", "Gadget", &[v1, version("v2", open()), old, gone]);
    definition["spec"]["names"]["categories"] = json!(["all"]);
    definition
}

fn gadget(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "example.com/v1", "kind": "Gadget", "metadata": {"name": name}, "spec": spec})
}

/// Waits until a definition says so.
async fn says(server: &Server, name: &str, what: impl Fn(&Value) -> bool) -> Value {
    server.says(&format!("{DEFINITIONS}/{name}"), what).await
}

fn condition<'a>(definition: &'a Value, kind: &str) -> &'a str {
    let conditions = definition["status"]["conditions"].as_array();
    let found = conditions.into_iter().flatten().find(|condition| condition["type"] == kind);
    found.and_then(|condition| condition["status"].as_str()).unwrap_or_default()
}

/// Makes a definition and waits until it is established.
async fn define(server: &Server, definition: Value) -> Value {
    let name = definition["metadata"]["name"].as_str().unwrap().to_owned();
    server.make(DEFINITIONS, definition).await;
    says(server, &name, |found| condition(found, "Established") == "True").await
}

async fn with_gadgets() -> Server {
    let server = Server::start().await;
    define(&server, gadgets()).await;
    server
}

async fn get_as(server: &Server, path: &str, accept: &str) -> super::Answer {
    let request = Request::builder().uri(path).header("accept", accept).body(Body::empty()).unwrap();
    server.send(Some(admin()), request).await
}

#[tokio::test]
async fn a_definition_is_established_and_its_kind_is_there_at_once() {
    let server = Server::start().await;
    assert_eq!(server.get(GADGETS).await.0, 404);
    let made = server.make(DEFINITIONS, gadgets()).await;
    let none = json!({"conditions": null, "acceptedNames": {"plural": "", "kind": ""}, "storedVersions": ["v1"]});
    assert_eq!(made["status"], none);
    let found = says(&server, NAME, |found| condition(found, "Established") == "True").await;
    assert_eq!(condition(&found, "NamesAccepted"), "True");
    assert_eq!(found["status"]["acceptedNames"]["listKind"], "GadgetList");
    assert_eq!(found["metadata"]["generation"], 1);
    let (code, made) = server.call("POST", GADGETS, gadget("a", json!({"colour": "red", "extra": 1}))).await;
    assert_eq!((code, &made["spec"]), (201, &json!({"colour": "red", "replicas": 1})), "{made}");
    assert_eq!((&made["metadata"]["generation"], &made["apiVersion"]), (&json!(1), &json!("example.com/v1")));
    let (_, list) = server.get(GADGETS).await;
    assert_eq!((&list["kind"], &list["items"][0]["kind"]), (&json!("GadgetList"), &json!("Gadget")));
    assert_eq!(list["items"][0]["apiVersion"], "example.com/v1");
    assert_eq!(server.get(&format!("{GADGETS}/a")).await.1, made);
    assert_eq!(server.get(&format!("{GADGETS}/none")).await.1["reason"], "NotFound");
    // Another server over the same records serves the same.
    let config = coracle_apiserver::Config {
        external_url: "https://127.0.0.1:1".into(),
        token_key: include_str!("../token.key").into(),
        ..Default::default()
    };
    let other = coracle_apiserver::ApiServer::start(server.keyspace.clone(), config).await.unwrap();
    let mut request = Request::get(format!("{GADGETS}/a")).body(Body::empty()).unwrap();
    request.extensions_mut().insert(admin());
    let answer = tower::ServiceExt::oneshot(other.router(), request).await.unwrap();
    assert_eq!(answer.status(), 200);
    other.shutdown();
    let server = server.restart().await;
    assert_eq!(server.get(&format!("{GADGETS}/a")).await.1, made, "after a restart");
    assert_eq!(server.get(GADGETS).await.1["items"][0], made);
}

#[tokio::test]
async fn a_definition_that_is_wrong_is_refused() {
    let server = Server::start().await;
    let mut wrong = gadgets();
    wrong["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["colour"] =
        json!({"default": 1});
    let (code, status) = server.call("POST", DEFINITIONS, wrong).await;
    assert_eq!((code, &status["reason"]), (422, &json!("Invalid")), "{status}");
    assert!(status["message"].as_str().unwrap().contains("must not be empty for specified object fields"), "{status}");
    let mut webhook = gadgets();
    webhook["spec"]["conversion"] = json!({"strategy": "Webhook", "webhook": {
        "conversionReviewVersions": ["v1"], "clientConfig": {"url": "http://example.com"},
    }});
    let (code, status) = server.call("POST", DEFINITIONS, webhook).await;
    assert_eq!(code, 422);
    assert!(status["message"].as_str().unwrap().contains("'https' is the only allowed URL scheme"), "{status}");
    let mut rules = gadgets();
    rules["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["x-kubernetes-validations"] =
        json!([{"rule": "has(self.strange)"}]);
    let (code, status) = server.call("POST", DEFINITIONS, rules).await;
    assert_eq!(code, 422);
    assert!(status["message"].as_str().unwrap().contains("undefined field 'strange'"), "{status}");
}

#[tokio::test]
async fn rules_are_asked_about_every_write() {
    let server = Server::start().await;
    let mut rules = gadgets();
    let schema = &mut rules["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"];
    schema["spec"]["x-kubernetes-validations"] = json!([
        {"rule": "self.colour != 'red' || self.replicas < 5", "messageExpression": "'%d are too many'.format([self.replicas])"},
        {"rule": "self.replicas >= oldSelf.replicas", "message": "never fewer", "reason": "FieldValueForbidden", "fieldPath": ".replicas"},
    ]);
    define(&server, rules).await;
    let (code, status) = server.call("POST", GADGETS, gadget("a", json!({"colour": "red", "replicas": 7}))).await;
    assert_eq!(
        (code, &status["details"]["causes"][0]["message"]),
        (422, &json!("Invalid value: 7 are too many")),
        "{status}"
    );
    let made = server.make(GADGETS, gadget("a", json!({"colour": "red", "replicas": 3}))).await;
    let path = format!("{GADGETS}/a");
    let (code, status) =
        server.call_as("PATCH", &path, "application/merge-patch+json", &json!({"spec": {"replicas": 2}})).await;
    let words = "Gadget.example.com \"a\" is invalid: spec.replicas: Forbidden: never fewer";
    assert_eq!((code, &status["message"]), (422, &json!(words)));
    let mut more = made;
    more["spec"]["replicas"] = 4.into();
    assert_eq!(server.call("PUT", &path, more).await.0, 200);
    // What is wrong otherwise is told first.
    let (_, status) = server.call("POST", GADGETS, gadget("b", json!({"colour": "blue", "replicas": 7}))).await;
    assert!(status["message"].as_str().unwrap().contains("some validation rules were not checked"), "{status}");
}

#[tokio::test]
async fn objects_are_checked_by_the_schema() {
    let server = with_gadgets().await;
    let refused = async |object: Value| {
        let (code, status) = server.call("POST", GADGETS, object).await;
        assert_eq!(code, 422, "{status}");
        status["message"].as_str().unwrap().to_owned()
    };
    let message = refused(gadget("bad", json!({"replicas": -1}))).await;
    assert!(
        message.starts_with("Gadget.example.com \"bad\" is invalid: [")
            && message.contains("spec.colour: Required value"),
        "{message}"
    );
    assert!(refused(gadget("Bad_Name", json!({"colour": "red"}))).await.contains("metadata.name: Invalid value"));
    let mut gizmo = gadget("x", json!({"colour": "red"}));
    gizmo["kind"] = "Gizmo".into();
    let expected = "Gizmo.example.com \"x\" is invalid: kind: Invalid value: \"Gizmo\": must be Gadget";
    assert_eq!(refused(gizmo).await, expected);
    let (code, status) = server.call("POST", GADGETS, json!({"metadata": {"name": "x"}})).await;
    assert_eq!(code, 400);
    assert!(status["message"].as_str().unwrap().contains("Object 'Kind' is missing in"), "{status}");
    let mut strict = gadget("x", json!({"colour": "red", "extra": 1}));
    strict["metadata"]["strange"] = 1.into();
    let (code, status) = server.call("POST", &format!("{GADGETS}?fieldValidation=Strict"), strict).await;
    let expected = "Gadget in version \"v1\" cannot be handled as a Gadget: strict decoding error: unknown field \"metadata.strange\", unknown field \"spec.extra\"";
    assert_eq!((code, &status["message"]), (400, &json!(expected)));
    let proto =
        Request::post(GADGETS).header("content-type", "application/vnd.kubernetes.protobuf").body(Body::from("k8s"));
    assert_eq!(server.send(Some(admin()), proto.unwrap()).await.code, 415);
    server.make(GADGETS, gadget("a", json!({"colour": "red"}))).await;
    let (code, _) =
        server.call_as("PATCH", &format!("{GADGETS}/a"), "application/strategic-merge-patch+json", &json!({})).await;
    assert_eq!(code, 415);
    let proto = get_as(&server, &format!("{GADGETS}/a"), "application/vnd.kubernetes.protobuf").await;
    assert_eq!(proto.code, 406);
    let metadata =
        get_as(&server, &format!("{GADGETS}/a"), "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io").await;
    assert_eq!(metadata.json()["kind"], "PartialObjectMetadata");
}

#[tokio::test]
async fn changes_count_and_subresources_change_their_part() {
    let server = with_gadgets().await;
    let path = format!("{GADGETS}/a");
    server.make(GADGETS, gadget("a", json!({"colour": "red"}))).await;
    let (code, status) = server.call("PUT", &path, gadget("a", json!({"colour": "red"}))).await;
    assert_eq!(code, 422);
    assert!(
        status["message"]
            .as_str()
            .unwrap()
            .contains("metadata.resourceVersion: Invalid value: 0: must be specified for an update")
    );
    let (_, changed) = server.call("PATCH", &path, json!({"spec": {"replicas": 3}, "status": {"replicas": 9}})).await;
    assert_eq!((&changed["metadata"]["generation"], changed.get("status")), (&json!(2), None), "{changed}");
    let patch = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"replicas": 7}, "status": {"replicas": 3, "selector": "app=x", "extra": 1}});
    let (_, changed) = server.call("PATCH", &format!("{path}/status"), patch).await;
    assert_eq!((&changed["metadata"]["generation"], &changed["spec"]["replicas"]), (&json!(2), &json!(3)));
    assert_eq!(changed["status"], json!({"replicas": 3, "selector": "app=x"}));
    assert!(changed["metadata"].get("labels").is_none());
    let (_, scale) = server.get(&format!("{path}/scale")).await;
    assert_eq!(
        (&scale["spec"], &scale["status"]),
        (&json!({"replicas": 3}), &json!({"replicas": 3, "selector": "app=x"}))
    );
    let (code, scale) = server.call("PATCH", &format!("{path}/scale"), json!({"spec": {"replicas": 5}})).await;
    assert_eq!((code, &scale["spec"]["replicas"]), (200, &json!(5)), "{scale}");
    let (_, object) = server.get(&path).await;
    assert_eq!((&object["spec"]["replicas"], &object["metadata"]["generation"]), (&json!(5), &json!(3)));
    // A change of nothing makes no revision.
    let (_, same) = server.call("PATCH", &path, json!({"spec": {"replicas": 5}})).await;
    assert_eq!(same["metadata"]["resourceVersion"], object["metadata"]["resourceVersion"]);
}

#[tokio::test]
async fn apply_knows_the_lists_of_the_schema() {
    let server = with_gadgets().await;
    let apply = async |manager: &str, spec: Value| {
        let path = format!("{GADGETS}/a?fieldManager={manager}");
        server.call_as("PATCH", &path, "application/apply-patch+yaml", &gadget("a", spec)).await
    };
    let (code, _) = apply("one", json!({"colour": "red", "map": [{"k": "a", "v": "1"}]})).await;
    assert_eq!(code, 201);
    let (code, both) = apply("two", json!({"colour": "red", "map": [{"k": "b", "v": "2"}]})).await;
    assert_eq!((code, &both["spec"]["map"]), (200, &json!([{"k": "a", "v": "1"}, {"k": "b", "v": "2"}])), "{both}");
    let (code, status) = apply("two", json!({"colour": "green", "map": [{"k": "b", "v": "2"}]})).await;
    assert_eq!(code, 409, "{status}");
    let (code, status) = apply("two", json!({"colour": "red", "strange": 1})).await;
    assert_eq!(code, 500);
    assert!(status["message"].as_str().unwrap().contains(".spec.strange: field not declared in schema"), "{status}");
    let fields = &both["metadata"]["managedFields"];
    assert!(fields.to_string().contains("k:{\\\"k\\\":\\\"b\\\"}"), "{fields}");
}

#[tokio::test]
async fn versions_are_the_same_objects() {
    let server = with_gadgets().await;
    let made = server.make(GADGETS, gadget("a", json!({"colour": "red"}))).await;
    let (_, seen) = server.get("/apis/example.com/v2/namespaces/default/gadgets/a").await;
    assert_eq!((&seen["apiVersion"], &seen["spec"]), (&json!("example.com/v2"), &made["spec"]));
    let (_, list) = server.get("/apis/example.com/v2/gadgets").await;
    assert_eq!(list["items"][0]["apiVersion"], "example.com/v2");
    assert_eq!(server.get("/apis/example.com/v0/namespaces/default/gadgets/a").await.0, 404);
    let old = get_as(&server, "/apis/example.com/v1beta1/namespaces/default/gadgets/a", "application/json").await;
    let warned = old.headers["warning"].to_str().unwrap();
    assert_eq!(warned, "299 - \"example.com/v1beta1 Gadget is deprecated; use example.com/v2 Gadget\"");
    let mut second = gadget("b", json!({"colour": "green", "unknown": 1}));
    second["apiVersion"] = "example.com/v2".into();
    let (code, answer) = server.call("POST", "/apis/example.com/v2/namespaces/default/gadgets", second).await;
    assert_eq!((code, &answer["apiVersion"]), (201, &json!("example.com/v2")), "{answer}");
    assert!(answer["spec"].get("unknown").is_none(), "the stored version does not know it");
    let mut watch = Watch::open_at(&server, "/apis/example.com/v2/namespaces/default/gadgets?watch=1").await;
    let event = watch.next().await.unwrap();
    assert_eq!((&event["type"], &event["object"]["apiVersion"]), (&json!("ADDED"), &json!("example.com/v2")));
    // Objects are stored as v2 from now on; what is there is written anew when it is next written.
    let switch = json!([
        {"op": "replace", "path": "/spec/versions/0/storage", "value": false},
        {"op": "replace", "path": "/spec/versions/1/storage", "value": true},
    ]);
    let definition = format!("{DEFINITIONS}/{NAME}");
    let (code, changed) = server.call_as("PATCH", &definition, "application/json-patch+json", &switch).await;
    assert_eq!((code, &changed["status"]["storedVersions"]), (200, &json!(["v1", "v2"])), "{changed}");
    let (_, seen) = server.get(&format!("{GADGETS}/a")).await;
    assert_eq!((&seen["apiVersion"], &seen["spec"]), (&json!("example.com/v1"), &made["spec"]));
    let stored = |server: &Server| server.keyspace.get(NAME, "default/a").unwrap().bytes.clone();
    assert!(String::from_utf8_lossy(&stored(&server)).contains("example.com/v1\""));
    let (code, again) = server.call("PUT", &format!("{GADGETS}/a"), seen).await;
    assert_eq!(code, 200, "{again}");
    assert!(String::from_utf8_lossy(&stored(&server)).contains("example.com/v2\""));
    let remove = json!([{"op": "remove", "path": "/spec/versions/0"}]);
    let (code, status) = server.call_as("PATCH", &definition, "application/json-patch+json", &remove).await;
    assert_eq!(code, 422);
    assert!(status["message"].as_str().unwrap().contains("v1 was previously a storage version"), "{status}");
}

/// Of a definition that converts nothing, too: a version has its own fields, and what is stored is complete in its own.
#[tokio::test]
async fn a_version_shows_its_own_fields() {
    let server = Server::start().await;
    let of =
        |fields: Value| json!({"type": "object", "properties": {"spec": {"type": "object", "properties": fields}}});
    let mut v1 = version("v1", of(json!({"a": {"type": "string"}, "own": {"type": "string"}})));
    v1["storage"] = false.into();
    v1["additionalPrinterColumns"] = json!([{"name": "B", "type": "string", "jsonPath": ".spec.b"}]);
    let mut v2 = version("v2", of(json!({"a": {"type": "string"}, "b": {"type": "string", "default": "B"}})));
    v2["storage"] = true.into();
    define(&server, definition("gadgets", "Gadget", &[v1, v2])).await;
    let at = |version: &str, rest: &str| format!("/apis/example.com/{version}/namespaces/default/gadgets{rest}");
    let mut watch = Watch::open_at(&server, &at("v1", "?watch=1")).await;
    let apply = async |a: &str| {
        let object = gadget("x", json!({"a": a}));
        let path = at("v1", "/x?fieldManager=m&fieldValidation=Strict");
        let (code, answer) = server.call_as("PATCH", &path, "application/apply-patch+yaml", &object).await;
        assert!([200, 201].contains(&code), "{answer}");
        answer["metadata"]["resourceVersion"].clone()
    };
    for a in ["1", "2"] {
        let written = apply(a).await;
        let (_, seen) = server.get(&at("v1", "/x")).await;
        assert_eq!(seen["spec"], json!({"a": a}));
        assert_eq!(watch.next().await.unwrap()["object"]["spec"], seen["spec"]);
        let (_, list) = server.get(&at("v1", "")).await;
        assert_eq!(list["items"][0]["spec"], seen["spec"]);
        let table = get_as(&server, &at("v1", ""), TABLE).await.json();
        assert_eq!(table["rows"][0]["cells"], json!(["x", null]));
        let (_, stored) = server.get(&at("v2", "/x")).await;
        assert_eq!(stored["spec"], json!({"a": a, "b": "B"}), "complete, whoever wrote it");
        assert_eq!(apply(a).await, written, "nothing would be stored otherwise");
    }
    let test = json!([{"op": "test", "path": "/spec/b", "value": "B"}]);
    assert_eq!(server.call_as("PATCH", &at("v1", "/x"), "application/json-patch+json", &test).await.0, 422);
    // What v1 does not know is lost when it is written there, as in the reference.
    let set = json!({"spec": {"b": "mine"}});
    server.call_as("PATCH", &at("v2", "/x"), "application/merge-patch+json", &set).await;
    apply("2").await;
    assert_eq!(server.get(&at("v2", "/x")).await.1["spec"], json!({"a": "2", "b": "B"}));
}

#[tokio::test]
async fn a_changed_schema_holds_at_once_and_ends_watches() {
    let server = with_gadgets().await;
    server.make(GADGETS, gadget("a", json!({"colour": "red"}))).await;
    let mut watch = Watch::open_at(&server, &format!("{GADGETS}?watch=1")).await;
    assert_eq!(watch.heard().await, said("ADDED", "a"));
    let path = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/size";
    let add = json!([{"op": "add", "path": path, "value": {"type": "integer", "default": 7}}]);
    let definition = format!("{DEFINITIONS}/{NAME}");
    let (code, changed) = server.call_as("PATCH", &definition, "application/json-patch+json", &add).await;
    assert_eq!((code, &changed["metadata"]["generation"]), (200, &json!(2)), "{changed}");
    let (_, seen) = server.get(&format!("{GADGETS}/a")).await;
    assert_eq!(seen["spec"]["size"], 7, "what was stored before has the default, too");
    assert_eq!(server.get(GADGETS).await.1["items"][0]["spec"]["size"], 7);
    let made = server.make(GADGETS, gadget("b", json!({"colour": "red", "size": 8}))).await;
    assert_eq!(made["spec"]["size"], 8);
    // Whatever happened before is told; then the client comes again.
    while let Some(event) = watch.next().await {
        assert_eq!(event["object"]["metadata"]["name"], "b");
    }
}

#[tokio::test]
async fn what_defaults_would_make_too_large_is_refused_and_can_be_deleted() {
    let server = Server::start().await;
    let list = |below: Value| json!({"type": "array", "items": {"type": "object", "properties": {"a": below}}});
    let many = |name: &str| {
        let mut object = gadget(name, Value::Null);
        object["l"] = json!(vec![json!({}); 1_000]);
        object
    };
    let schema = json!({"type": "object", "properties": {"l": list(json!({"type": "string"}))}});
    define(&server, definition("gadgets", "Gadget", &[version("v1", schema)])).await;
    server.make(GADGETS, gadget("small", Value::Null)).await;
    server.make(GADGETS, many("a")).await;
    let path = "/spec/versions/0/schema/openAPIV3Schema/properties/l/items/properties/a/default";
    let add = json!([{"op": "add", "path": path, "value": "x".repeat(100_000)}]);
    let definition = format!("{DEFINITIONS}/{NAME}");
    let (code, _) = server.call_as("PATCH", &definition, "application/json-patch+json", &add).await;
    assert_eq!(code, 200);
    let too_much = "the defaults of its definition unfold to more than 16 MiB in this object";
    let (code, refused) = server.call("POST", GADGETS, many("b")).await;
    assert_eq!(code, 413, "{refused}");
    assert_eq!(refused["message"], format!("Request entity too large: {too_much}"));
    // What was stored before cannot be read, and no list ends by it.
    let (code, seen) = server.get(&format!("{GADGETS}/a")).await;
    assert_eq!(code, 500, "{seen}");
    let message = seen["message"].as_str().unwrap();
    assert!(message.contains("default/a ") && message.contains(too_much), "{message}");
    let (code, listed) = server.get(GADGETS).await;
    assert_eq!((code, &listed["items"][1]["metadata"]["name"]), (200, &json!("small")), "{listed}");
    assert_eq!(server.get(&format!("{GADGETS}/small")).await.0, 200);
    let (code, gone) = server.call("DELETE", &format!("{GADGETS}/a"), Value::Null).await;
    assert_eq!((code, &gone["status"]), (200, &json!("Success")), "{gone}");
    assert_eq!(server.get(&format!("{GADGETS}/a")).await.0, 404);
}

#[tokio::test]
async fn selectors_and_tables_show_what_the_definition_says() {
    let server = with_gadgets().await;
    for (name, colour) in [("a", "red"), ("b", "green")] {
        server.make(GADGETS, gadget(name, json!({"colour": colour}))).await;
    }
    let (_, list) = server.get(&format!("{GADGETS}?fieldSelector=spec.colour%3Dgreen")).await;
    let names: Vec<&Value> = list["items"].as_array().unwrap().iter().map(|item| &item["metadata"]["name"]).collect();
    assert_eq!(names, ["b"]);
    let (code, status) = server.get(&format!("{GADGETS}?fieldSelector=spec.low%3D1")).await;
    assert_eq!((code, &status["message"]), (400, &json!("field label not supported: spec.low")));
    let table = get_as(&server, &format!("{GADGETS}?includeObject=None"), TABLE).await.json();
    let columns: Vec<&Value> =
        table["columnDefinitions"].as_array().unwrap().iter().map(|column| &column["name"]).collect();
    assert_eq!((columns, &table["rows"][1]["cells"]), (vec![&json!("Name"), &json!("Colour")], &json!(["b", "green"])));
    let table = get_as(&server, "/apis/example.com/v2/gadgets", TABLE).await.json();
    assert_eq!(table["columnDefinitions"][1]["name"], "Age");
    let crds = get_as(&server, DEFINITIONS, TABLE).await.json();
    let cells = &crds["rows"][0]["cells"];
    assert_eq!(
        (&cells[1], &cells[2], &cells[7]),
        (&json!("Namespaced"), &json!("v1(storage),v1beta1,v2"), &json!(true))
    );
    let (code, list) = server.call("DELETE", GADGETS, Value::Null).await;
    assert_eq!((code, list["items"].as_array().unwrap().len()), (200, 2));
    assert_eq!(server.get(GADGETS).await.1["items"], json!([]));
}

#[tokio::test]
async fn discovery_and_documents_name_what_is_served() {
    let server = with_gadgets().await;
    let (_, group) = server.get("/apis/example.com").await;
    let versions: Vec<&Value> =
        group["versions"].as_array().unwrap().iter().map(|version| &version["version"]).collect();
    assert_eq!(
        (versions, &group["preferredVersion"]["version"]),
        (vec![&json!("v2"), &json!("v1"), &json!("v1beta1")], &json!("v2"))
    );
    let (_, list) = server.get("/apis/example.com/v1").await;
    let resources = list["resources"].as_array().unwrap();
    let names: Vec<&Value> = resources.iter().map(|resource| &resource["name"]).collect();
    assert_eq!(names, ["gadgets", "gadgets/status", "gadgets/scale"]);
    assert_eq!((&resources[0]["shortNames"], &resources[0]["categories"]), (&json!(["ga"]), &json!(["all"])));
    let aggregated = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let all = get_as(&server, "/apis", aggregated).await.json();
    let found = all["items"].as_array().unwrap().iter().find(|group| group["metadata"]["name"] == "example.com");
    assert_eq!(found.unwrap()["versions"][1]["resources"][0]["singularResource"], "gadget");
    let (_, documents) = server.get("/openapi/v3").await;
    let url = documents["paths"]["apis/example.com/v1"]["serverRelativeURL"].as_str().unwrap().to_owned();
    let (code, document) = server.get(&url).await;
    assert_eq!(code, 200);
    let schema = &document["components"]["schemas"]["com.example.v1.Gadget"];
    assert_eq!(schema["properties"]["spec"]["properties"]["replicas"]["default"], 1, "{schema}");
    assert!(
        schema["properties"]["metadata"].is_object()
            && document["components"]["schemas"]["com.example.v1.GadgetList"].is_object()
    );
    let operations = &document["paths"]["/apis/example.com/v1/namespaces/{namespace}/gadgets/{name}"]["patch"];
    assert!(operations["requestBody"]["content"].get("application/strategic-merge-patch+json").is_none());
    let (_, two) = server.get("/openapi/v2").await;
    assert_eq!(two["definitions"]["com.example.v1.Gadget"]["x-kubernetes-group-version-kind"][0]["kind"], "Gadget");
    let (code, _) = server.call("DELETE", &format!("{DEFINITIONS}/{NAME}"), Value::Null).await;
    assert_eq!(code, 200);
    says(&server, NAME, |found| found["code"] == 404).await;
    assert_eq!(server.get("/apis/example.com").await.0, 404);
    assert!(server.get("/openapi/v3").await.1["paths"].get("apis/example.com/v1").is_none());
    assert!(server.get("/openapi/v2").await.1["definitions"].get("com.example.v1.Gadget").is_none());
}

#[tokio::test]
async fn a_definition_that_goes_takes_its_objects_with_it() {
    let server = with_gadgets().await;
    let mut held = gadget("held", json!({"colour": "red"}));
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    server.make(GADGETS, held).await;
    for number in 0..100 {
        server.make(GADGETS, gadget(&format!("g{number}"), json!({"colour": "red"}))).await;
    }
    let (code, going) = server.call("DELETE", &format!("{DEFINITIONS}/{NAME}"), Value::Null).await;
    assert_eq!((code, condition(&going, "Terminating")), (200, "True"), "{going}");
    let cleanup = "customresourcecleanup.apiextensions.k8s.io";
    assert_eq!(going["metadata"]["finalizers"], json!([cleanup]));
    let (code, status) = server.call("POST", GADGETS, gadget("late", json!({"colour": "red"}))).await;
    assert_eq!(code, 405, "{status}");
    let is_going = |_: &Value| {
        let records = server.keyspace.snapshot(NAME).records;
        let has_mark = |text: &[u8]| String::from_utf8_lossy(text).contains("deletionTimestamp");
        records.len() == 1 && records.values().all(|record| has_mark(&record.bytes))
    };
    says(&server, NAME, is_going).await;
    let (_, left) = server.get(&format!("{GADGETS}/held")).await;
    assert!(left["metadata"]["deletionTimestamp"].is_string(), "{left}");
    let (_, waiting) = server.get(&format!("{DEFINITIONS}/{NAME}")).await;
    assert_eq!(waiting["metadata"]["finalizers"], json!([cleanup]));
    let (code, _) = server.call("PATCH", &format!("{GADGETS}/held"), json!({"metadata": {"finalizers": null}})).await;
    assert_eq!(code, 200);
    says(&server, NAME, |found| found["code"] == 404).await;
    assert_eq!(server.get(GADGETS).await.0, 404);
    // It can come again, and finds nothing of what was.
    define(&server, gadgets()).await;
    assert_eq!(server.get(GADGETS).await.1["items"], json!([]));
}

#[tokio::test]
async fn names_are_given_once() {
    let server = with_gadgets().await;
    let other = definition("gizmos", "Gadget", &[version("v1", open())]);
    server.make(DEFINITIONS, other).await;
    let refused = says(&server, "gizmos.example.com", |found| condition(found, "NamesAccepted") == "False").await;
    assert_eq!(condition(&refused, "Established"), "False");
    assert_eq!(server.get("/apis/example.com/v1/gizmos").await.0, 404);
    server.call("DELETE", &format!("{DEFINITIONS}/{NAME}"), Value::Null).await;
    says(&server, "gizmos.example.com", |found| condition(found, "Established") == "True").await;
    assert_eq!(server.get("/apis/example.com/v1/gizmos").await.1["kind"], "GadgetList");
}

#[tokio::test]
async fn nothing_is_written_by_a_schema_that_is_no_more() {
    let server = with_gadgets().await;
    let server = &server;
    let definition = format!("{DEFINITIONS}/{NAME}");
    let path = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/colour/enum";
    let changes = async {
        for round in 0..20 {
            let colours = if round % 2 == 0 { json!(["red"]) } else { json!(["green"]) };
            let patch = json!([{"op": "replace", "path": path, "value": colours}]);
            let (code, answer) = server.call_as("PATCH", &definition, "application/json-patch+json", &patch).await;
            assert_eq!(code, 200, "{answer}");
        }
    };
    let creates = async {
        for number in 0..200 {
            let colour = if number % 2 == 0 { "red" } else { "green" };
            let (code, answer) =
                server.call("POST", GADGETS, gadget(&format!("g{number}"), json!({"colour": colour}))).await;
            assert!(matches!(code, 201 | 422), "{answer}");
        }
    };
    tokio::join!(changes, creates);
    // Each object is one of the schema that was in force when it was written.
    let mut definitions = server
        .keyspace
        .watch("customresourcedefinitions.apiextensions.k8s.io", coracle_keyspace::Revision::new(1))
        .unwrap();
    let mut in_force = Vec::new();
    loop {
        let there = definitions.there().await.unwrap();
        for event in there.events {
            let object: Value = serde_json::from_slice(&event.record.bytes).unwrap();
            let colours = object
                .pointer("/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/colour/enum")
                .cloned();
            in_force.push((event.record.revision, colours.unwrap()));
        }
        if there.revision >= server.keyspace.revision() {
            break;
        }
    }
    let records = server.keyspace.snapshot(NAME).records;
    assert!(!records.is_empty());
    for record in records.values() {
        let object: Value = serde_json::from_slice(&record.bytes).unwrap();
        let colours = &in_force.iter().rev().find(|(since, _)| *since < record.revision).unwrap().1;
        assert!(colours.as_array().unwrap().contains(&object["spec"]["colour"]), "{object} under {colours}");
    }
}

/// As many and as large as those of the operators that are installed most.
#[tokio::test]
async fn many_large_definitions_come_at_once() {
    let server = Server::start().await;
    let large = |number: usize| {
        let fields: serde_json::Map<String, Value> = (0..640)
            .map(|field| {
                let text = "what this field is for, in so many words that a page is filled ".repeat(2);
                (
                    format!("field{field}"),
                    json!({"type": "string", "description": text, "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"}),
                )
            })
            .collect();
        let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": fields}}});
        definition(&format!("kinds{number}"), &format!("Kind{number}"), &[version("v1", schema)])
    };
    let mut all: Vec<Value> = (0..20).map(large).collect();
    // Short names are given once.
    for definition in &mut all {
        definition["spec"]["names"]["shortNames"] = json!([]);
    }
    let bytes: usize = all.iter().map(|definition| definition.to_string().len()).sum();
    assert!(bytes > 2_600_000, "{bytes}");
    let made = all.iter().map(|definition| server.make(DEFINITIONS, definition.clone()));
    futures::future::join_all(made).await;
    for number in 0..20 {
        says(&server, &format!("kinds{number}.example.com"), |found| condition(found, "Established") == "True").await;
        let path = format!("/apis/example.com/v1/namespaces/default/kinds{number}");
        let object = json!({"apiVersion": "example.com/v1", "kind": format!("Kind{number}"), "metadata": {"name": "a"}, "spec": {"field1": "x", "no": 1}});
        assert_eq!(server.make(&path, object).await["spec"], json!({"field1": "x"}));
    }
    let (_, list) = server.get("/apis/example.com/v1").await;
    assert_eq!(list["resources"].as_array().unwrap().len(), 20);
}
