//! Admission policies: what they let through, what they change and what is told of it.

use axum::body::Body;
use coracle_apiserver::Identity;
use http::Request;
use serde_json::{Value, json};

use super::bounds::answered_beside;
use super::{Answer, Server, admin, config_map};

const GROUP: &str = "/apis/admissionregistration.k8s.io/v1";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// Matches ConfigMaps.
fn maps(operations: &[&str]) -> Value {
    json!({"resourceRules": [
        {"operations": operations, "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"]},
    ]})
}

/// A policy of ConfigMaps, with what its spec says beside.
fn policy(name: &str, spec: Value) -> Value {
    let mut policy = json!({"metadata": {"name": name}, "spec": {"matchConstraints": maps(&["CREATE", "UPDATE"])}});
    for (field, value) in spec.as_object().expect("fields") {
        policy["spec"][field] = value.clone();
    }
    policy
}

fn binding(name: &str, of: &str, spec: Value) -> Value {
    let mut binding = json!({"metadata": {"name": name}, "spec": {"policyName": of, "validationActions": ["Deny"]}});
    for (field, value) in spec.as_object().expect("fields") {
        binding["spec"][field] = value.clone();
    }
    binding
}

impl Server {
    /// A policy that validates, and a binding of the same name.
    async fn validates(&self, name: &str, spec: Value, bound: Value) {
        self.make(&format!("{GROUP}/validatingadmissionpolicies"), policy(name, spec)).await;
        self.make(&format!("{GROUP}/validatingadmissionpolicybindings"), binding(name, name, bound)).await;
    }

    /// A policy that changes objects, and a binding of the same name.
    async fn mutates(&self, name: &str, spec: Value) {
        let mut policy = policy(name, spec);
        if policy["spec"]["reinvocationPolicy"].is_null() {
            policy["spec"]["reinvocationPolicy"] = "Never".into();
        }
        self.make(&format!("{GROUP}/mutatingadmissionpolicies"), policy).await;
        let mut binding = binding(name, name, json!({}));
        binding["spec"].as_object_mut().expect("a spec").remove("validationActions");
        self.make(&format!("{GROUP}/mutatingadmissionpolicybindings"), binding).await;
    }

    async fn post_as(&self, identity: Identity, path: &str, object: &Value) -> Answer {
        let request =
            Request::post(path).header("content-type", "application/json").body(Body::from(object.to_string()));
        self.send(Some(identity), request.expect("a request")).await
    }
}

fn one(expression: &str) -> Value {
    json!({"validations": [{"expression": expression}]})
}

#[tokio::test]
async fn what_does_not_hold_is_denied_in_the_words_of_the_reference() {
    let server = Server::start().await;
    let spec = json!({"validations": [
        {"expression": "object.data.a == 'b'", "message": "a must be b"},
        {"expression": "has(object.data.c)", "reason": "Forbidden", "messageExpression": "object.metadata.name + ' lacks c'"},
    ]});
    server.validates("p", spec, json!({})).await;
    let (code, answer) = server.call("POST", MAPS, config_map("x", json!({"a": "no"}))).await;
    let words = "ValidatingAdmissionPolicy 'p' with binding 'p' denied request: a must be b";
    assert_eq!((code, &answer["reason"]), (422, &json!("Invalid")), "{answer}");
    assert_eq!(answer["message"], format!("configmaps \"x\" is forbidden: {words}"));
    assert_eq!(answer["details"]["causes"], json!([{"message": words}]));
    let (code, answer) = server.call("POST", MAPS, config_map("x", json!({"a": "b"}))).await;
    assert_eq!((code, &answer["reason"]), (403, &json!("Forbidden")), "{answer}");
    assert!(answer["message"].as_str().expect("words").ends_with("denied request: x lacks c"), "{answer}");
    server.make(MAPS, config_map("x", json!({"a": "b", "c": ""}))).await;
    // Other resources are no matter of it, and neither is a deletion.
    server.make("/api/v1/namespaces/default/secrets", json!({"metadata": {"name": "s"}})).await;
    for path in [format!("{MAPS}/x"), format!("{MAPS}/x?dryRun=All")] {
        let (code, answer) = server.call("PATCH", &path, json!({"data": {"a": "no"}})).await;
        assert_eq!(code, 422, "{answer}");
    }
    assert_eq!(server.call("DELETE", &format!("{MAPS}/x"), Value::Null).await.0, 200);
    // What is deleted no longer holds for the next write.
    assert_eq!(
        server.call("DELETE", &format!("{GROUP}/validatingadmissionpolicybindings/p"), Value::Null).await.0,
        200
    );
    server.make(MAPS, config_map("y", json!({}))).await;
}

#[tokio::test]
async fn deletions_and_old_objects_are_seen() {
    let server = Server::start().await;
    let spec = json!({
        "matchConstraints": maps(&["UPDATE", "DELETE"]),
        "validations": [
            {"expression": "request.operation != 'DELETE' || oldObject.metadata.name != 'kept'", "message": "it is kept"},
            {"expression": "request.operation == 'DELETE' || !has(oldObject.data.fixed) || object.data.fixed == oldObject.data.fixed"},
        ],
    });
    server.validates("keeps", spec, json!({})).await;
    for name in ["kept", "other"] {
        server.make(MAPS, config_map(name, json!({"fixed": "1"}))).await;
    }
    assert_eq!(server.call("PATCH", &format!("{MAPS}/other"), json!({"data": {"fixed": "2"}})).await.0, 422);
    assert_eq!(server.call("PATCH", &format!("{MAPS}/other"), json!({"data": {"more": "2"}})).await.0, 200);
    let (code, answer) = server.call("DELETE", &format!("{MAPS}/kept"), Value::Null).await;
    assert_eq!(code, 422, "{answer}");
    assert!(answer["message"].as_str().expect("words").ends_with("it is kept"), "{answer}");
    // What a collection's deletion meets first decides.
    assert_eq!(server.call("DELETE", MAPS, Value::Null).await.0, 422);
    assert_eq!(server.get(&format!("{MAPS}/kept")).await.0, 200);
}

#[tokio::test]
async fn a_binding_says_what_is_done_and_where() {
    let server = Server::start().await;
    server.make("/api/v1/namespaces", json!({"metadata": {"name": "b", "labels": {"team": "b"}}})).await;
    server.make(&format!("{GROUP}/validatingadmissionpolicies"), policy("p", one("false"))).await;
    let bindings = format!("{GROUP}/validatingadmissionpolicybindings");
    let selector = json!({"matchResources": {"namespaceSelector": {"matchLabels": {"team": "b"}}}});
    server.make(&bindings, binding("there", "p", selector)).await;
    server.make(MAPS, config_map("x", json!({}))).await;
    assert_eq!(server.call("POST", "/api/v1/namespaces/b/configmaps", config_map("x", json!({}))).await.0, 422);
    server.make(&bindings, binding("warns", "p", json!({"validationActions": ["Warn", "Audit"]}))).await;
    let answer = server.post_as(admin(), MAPS, &config_map("y", json!({}))).await;
    assert_eq!(answer.code, 201);
    let warning = answer.headers["warning"].to_str().expect("text");
    let words = "Validation failed for ValidatingAdmissionPolicy 'p' with binding 'warns': failed expression: false";
    assert!(warning.contains(words), "{warning}");
}

#[tokio::test]
async fn policies_are_asked_with_params() {
    let server = Server::start().await;
    let spec = json!({
        "paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
        "matchConstraints": {"resourceRules": [
            {"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["secrets"]},
        ]},
        "validations": [{
            "expression": "!has(object.stringData) && object.metadata.name.startsWith(params.data.prefix)",
            "messageExpression": "'wants ' + params.data.prefix",
        }],
    });
    let params = |name: &str, action: &str| json!({"paramRef": {"name": name, "namespace": "default", "parameterNotFoundAction": action}});
    server.validates("p", spec, params("limits", "Deny")).await;
    let secrets = "/api/v1/namespaces/default/secrets";
    let secret = |name: &str| json!({"metadata": {"name": name}});
    let (code, answer) = server.call("POST", secrets, secret("a-1")).await;
    assert_eq!(code, 422, "{answer}");
    let words = "failed to configure binding: no params found for policy binding with `Deny` parameterNotFoundAction";
    assert!(answer["message"].as_str().expect("words").contains(words), "{answer}");
    server.make(MAPS, json!({"metadata": {"name": "limits", "labels": {"l": "1"}}, "data": {"prefix": "a-"}})).await;
    server.make(secrets, secret("a-1")).await;
    let (_, answer) = server.call("POST", secrets, secret("b-1")).await;
    assert!(answer["message"].as_str().expect("words").ends_with("wants a-"), "{answer}");
    // Of several that are selected each must hold.
    let selected = json!({"paramRef": {"selector": {"matchLabels": {"l": "1"}}, "parameterNotFoundAction": "Allow"}});
    let path = format!("{GROUP}/validatingadmissionpolicybindings/p");
    let (code, answer) = server.call("PATCH", &path, json!({"spec": {"paramRef": null}})).await;
    assert_eq!(code, 200, "{answer}");
    assert_eq!(server.call("PATCH", &path, json!({"spec": selected})).await.0, 200);
    server.make(MAPS, json!({"metadata": {"name": "more", "labels": {"l": "1"}}, "data": {"prefix": "a-2"}})).await;
    let (_, answer) = server.call("POST", secrets, secret("a-3")).await;
    assert!(answer["message"].as_str().expect("words").ends_with("wants a-2"), "{answer}");
    server.make(secrets, secret("a-2")).await;
    // Who may not read the params binds nobody to them.
    let bob = Identity::authenticated("bob", Vec::new());
    let role = json!({"metadata": {"name": "binds"}, "rules": [{"apiGroups": ["admissionregistration.k8s.io"], "resources": ["*"], "verbs": ["*"]}]});
    server.make("/apis/rbac.authorization.k8s.io/v1/clusterroles", role).await;
    let bound = json!({"metadata": {"name": "binds"}, "subjects": [{"kind": "User", "name": "bob", "apiGroup": "rbac.authorization.k8s.io"}],
        "roleRef": {"kind": "ClusterRole", "name": "binds", "apiGroup": "rbac.authorization.k8s.io"}});
    server.make("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", bound).await;
    let answer = server
        .post_as(
            bob.clone(),
            &format!("{GROUP}/validatingadmissionpolicybindings"),
            &binding("q", "p", params("limits", "Deny")),
        )
        .await;
    assert_eq!(answer.code, 422, "{}", answer.json());
    let spec = json!({"paramKind": {"apiVersion": "v1", "kind": "Secret"}, "validations": [{"expression": "true"}]});
    let answer = server.post_as(bob, &format!("{GROUP}/validatingadmissionpolicies"), &policy("q", spec)).await;
    assert_eq!(answer.code, 422, "{}", answer.json());
    assert_eq!(answer.json()["details"]["causes"][0]["field"], "spec.paramKind");
}

#[tokio::test]
async fn what_cannot_be_asked_is_decided_by_the_failure_policy() {
    let server = Server::start().await;
    let broken = |failure: &str| json!({"failurePolicy": failure, "validations": [{"expression": "object.data.nothing.there == 1"}]});
    server.validates("ignored", broken("Ignore"), json!({})).await;
    server.make(MAPS, config_map("x", json!({"a": "b"}))).await;
    server.validates("fails", broken("Fail"), json!({})).await;
    let (code, answer) = server.call("POST", MAPS, config_map("y", json!({"a": "b"}))).await;
    assert_eq!(code, 422, "{answer}");
    let words = "expression 'object.data.nothing.there == 1' resulted in error: no such key: nothing";
    assert!(answer["message"].as_str().expect("words").ends_with(words), "{answer}");
}

#[tokio::test]
async fn who_asks_and_what_it_may_is_seen() {
    let server = Server::start().await;
    let spec = json!({
        "matchConditions": [{"name": "not-masters", "expression": "!('system:masters' in request.userInfo.groups)"}],
        "variables": [{"name": "deletes", "expression": "authorizer.requestResource.check('delete').allowed()"}],
        "validations": [
            {"expression": "variables.deletes", "messageExpression": "'not even ' + request.userInfo.username"},
            {"expression": "namespaceObject.metadata.name == request.namespace && request.resource.resource == 'configmaps'"},
        ],
    });
    server.validates("p", spec, json!({})).await;
    let rules = |verbs: &[&str]| json!([{"apiGroups": [""], "resources": ["configmaps"], "verbs": verbs}]);
    for (name, verbs) in [("bob", &["create"][..]), ("eve", &["create", "delete"])] {
        let role = json!({"metadata": {"name": name}, "rules": rules(verbs)});
        server.make("/apis/rbac.authorization.k8s.io/v1/namespaces/default/roles", role).await;
        let bound = json!({"metadata": {"name": name}, "subjects": [{"kind": "User", "name": name, "apiGroup": "rbac.authorization.k8s.io"}],
            "roleRef": {"kind": "Role", "name": name, "apiGroup": "rbac.authorization.k8s.io"}});
        server.make("/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings", bound).await;
    }
    let make = async |name: &str| {
        server.post_as(Identity::authenticated(name, Vec::new()), MAPS, &config_map(name, json!({}))).await
    };
    let refused = make("bob").await.json();
    assert!(refused["message"].as_str().expect("words").ends_with("not even bob"), "{refused}");
    assert_eq!(make("eve").await.code, 201);
    server.make(MAPS, config_map("masters", json!({}))).await;
}

#[tokio::test]
async fn objects_are_changed_by_configurations_and_patches() {
    let server = Server::start().await;
    let apply = "Object{metadata: Object.metadata{labels: {'team': object.metadata.namespace}}}";
    server
        .mutates(
            "a",
            json!({"mutations": [{"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": apply}}]}),
        )
        .await;
    let patch = "has(object.data) ? [JSONPatch{op: 'add', path: '/metadata/labels/' + jsonpatch.escapeKey('seen.by/it'), value: object.metadata.labels.team}] : [JSONPatch{op: 'add', path: '/data', value: {'made': 'here'}}]";
    server.mutates("b", json!({"mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": patch}}]})).await;
    let made = server.make(MAPS, json!({"metadata": {"name": "x", "labels": {"own": "1"}}, "data": {"k": "v"}})).await;
    assert_eq!(made["metadata"]["labels"], json!({"own": "1", "team": "default", "seen.by/it": "default"}));
    assert_eq!(made["data"], json!({"k": "v"}));
    // What a policy adds is nobody's own.
    assert!(!made["metadata"]["managedFields"].to_string().contains("team"), "{made}");
    assert_eq!(server.make(MAPS, json!({"metadata": {"name": "y"}})).await["data"], json!({"made": "here"}));
    let (code, changed) =
        server.call("PATCH", &format!("{MAPS}/x"), json!({"metadata": {"labels": {"team": "other"}}})).await;
    assert_eq!((code, &changed["metadata"]["labels"]["team"]), (200, &json!("default")));
    let (code, shown) = server.call("POST", &format!("{MAPS}?dryRun=All"), json!({"metadata": {"name": "z"}})).await;
    assert_eq!((code, &shown["metadata"]["labels"]["team"]), (201, &json!("default")));
    // What cannot be changed so is refused with the reference's words and its odd code.
    let wrong = "Object{metadata: Object.metadata{nothing: 'x'}}";
    server
        .mutates(
            "c",
            json!({"mutations": [{"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": wrong}}]}),
        )
        .await;
    let (code, answer) = server.call("POST", MAPS, json!({"metadata": {"name": "w"}})).await;
    assert_eq!((code, &answer["reason"]), (403, &json!("Invalid")), "{answer}");
    let message = answer["message"].as_str().expect("words");
    assert!(message.starts_with("policy 'c' with binding 'c' denied request: error applying patch: "), "{message}");
    assert!(message.contains(".metadata.nothing: field not declared in schema"), "{message}");
}

#[tokio::test]
async fn what_is_changed_is_looked_at_again() {
    let server = Server::start().await;
    let label = |name: &str, value: &str| {
        let expression = format!("Object{{metadata: Object.metadata{{labels: {{'{name}': {value}}}}}}}");
        json!([{"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": expression}}])
    };
    // The first counts what the second adds, and is asked again for that.
    let spec = json!({"reinvocationPolicy": "IfNeeded", "mutations": label("count", "string(has(object.metadata.labels) ? object.metadata.labels.size() : 0)")});
    server.mutates("a", spec).await;
    server.mutates("b", json!({"mutations": label("b", "'x'")})).await;
    let made = server.make(MAPS, config_map("x", json!({}))).await;
    assert_eq!(made["metadata"]["labels"], json!({"count": "2", "b": "x"}));
    // Policies that validate see what those made that change.
    server.validates("v", one("object.metadata.labels.b == 'x'"), json!({})).await;
    server.make(MAPS, config_map("y", json!({}))).await;
}

#[tokio::test]
async fn custom_resources_are_objects_and_params() {
    let server = Server::start().await;
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
        "size": {"type": "integer"}, "most": {"type": "integer"}, "tags": {"type": "array", "items": {"type": "string"}},
    }}}});
    let definition = json!({"metadata": {"name": "things.example.com"}, "spec": {
        "group": "example.com", "scope": "Namespaced", "names": {"plural": "things", "kind": "Thing"},
        "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}],
    }});
    server.make("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", definition).await;
    let things = "/apis/example.com/v1/namespaces/default/things";
    server.appears(things).await;
    let rules = json!({"resourceRules": [{"operations": ["CREATE"], "apiGroups": ["example.com"], "apiVersions": ["v1"], "resources": ["things"]}]});
    let thing = |name: &str, spec: Value| json!({"apiVersion": "example.com/v1", "kind": "Thing", "metadata": {"name": name}, "spec": spec});
    server.make(things, thing("limit", json!({"most": 3}))).await;
    let spec = json!({
        "matchConstraints": rules, "paramKind": {"apiVersion": "example.com/v1", "kind": "Thing"},
        "validations": [{"expression": "object.spec.size <= params.spec.most"}],
    });
    server.validates("v", spec, json!({"paramRef": {"name": "limit", "parameterNotFoundAction": "Deny"}})).await;
    assert_eq!(server.call("POST", things, thing("x", json!({"size": 4}))).await.0, 422);
    let apply = "Object{spec: Object.spec{size: object.spec.size + 1}}";
    server.mutates("m", json!({"matchConstraints": rules, "mutations": [{"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": apply}}]})).await;
    assert_eq!(server.call("POST", things, thing("x", json!({"size": 3}))).await.0, 422);
    assert_eq!(server.make(things, thing("x", json!({"size": 2}))).await["spec"]["size"], 3);
    // A list that is one value is not replaced by who means one item of it.
    let apply = "Object{spec: Object.spec{tags: ['a']}}";
    server.mutates("n", json!({"matchConstraints": rules, "mutations": [{"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": apply}}]})).await;
    let (_, answer) = server.call("POST", things, thing("y", json!({"size": 1}))).await;
    assert!(
        answer["message"]
            .as_str()
            .expect("words")
            .contains("may not mutate atomic arrays, maps or structs: .spec.tags"),
        "{answer}"
    );
}

#[tokio::test]
async fn what_is_likely_wrong_stands_in_the_status() {
    let server = Server::start().await;
    let rules = json!({"resourceRules": [{"operations": ["*"], "apiGroups": ["apps"], "apiVersions": ["v1"], "resources": ["deployments"]}]});
    let spec = json!({"matchConstraints": rules, "variables": [{"name": "n", "expression": "object.spec.replicas"}], "validations": [
        {"expression": "object.spec.replicas > '1'", "messageExpression": "'wants more than ' + object.spec.replicas"},
        {"expression": "object.spec.nothing == 1"}, {"expression": "variables.n > 1"}, {"expression": "variables.n > 'a'"},
    ]});
    let path = format!("{GROUP}/validatingadmissionpolicies");
    let made = server.make(&path, policy("p", spec)).await;
    assert_eq!(made["status"], json!({}));
    let checked = server.says(&format!("{path}/p"), |found| found["status"]["observedGeneration"] == 1).await;
    let warning = |field: &str, at: usize, words: &str, source: &str| {
        let caret = format!("{}^", ".".repeat(at - 1));
        let warning = format!("apps/v1, Kind=Deployment: ERROR: <input>:1:{at}: {words}\n | {source}\n | {caret}\n");
        json!({"fieldRef": format!("spec.validations{field}"), "warning": warning})
    };
    let expected = [
        warning(
            "[0].expression",
            22,
            "found no matching overload for '_>_' applied to '(int, string)'",
            "object.spec.replicas > '1'",
        ),
        warning(
            "[0].messageExpression",
            20,
            "found no matching overload for '_+_' applied to '(string, int)'",
            "'wants more than ' + object.spec.replicas",
        ),
        warning("[1].expression", 12, "undefined field 'nothing'", "object.spec.nothing == 1"),
        warning(
            "[3].expression",
            13,
            "found no matching overload for '_>_' applied to '(int, string)'",
            "variables.n > 'a'",
        ),
    ];
    assert_eq!(checked["status"]["typeChecking"]["expressionWarnings"], json!(expected));
    let (code, _) = server
        .call(
            "PATCH",
            &format!("{path}/p"),
            json!({"spec": {"validations": [{"expression": "object.spec.replicas > 1"}]}}),
        )
        .await;
    assert_eq!(code, 200);
    let checked = server.says(&format!("{path}/p"), |found| found["status"]["observedGeneration"] == 2).await;
    assert_eq!(checked["status"]["typeChecking"], json!({}));
}

#[tokio::test]
async fn what_is_no_policy_is_refused() {
    let server = Server::start().await;
    let path = format!("{GROUP}/validatingadmissionpolicies");
    let causes = async |object: Value| {
        let (code, answer) = server.call("POST", &path, object).await;
        assert_eq!(code, 422, "{answer}");
        let causes = answer["details"]["causes"].as_array().cloned().unwrap_or_default();
        let said = |cause: &Value| {
            format!(
                "{}: {}",
                cause["field"].as_str().unwrap_or_default(),
                cause["message"].as_str().unwrap_or_default()
            )
        };
        causes.iter().map(said).collect::<Vec<_>>()
    };
    assert_eq!(
        causes(json!({"metadata": {"name": "p"}, "spec": {}})).await,
        [
            "spec.matchConstraints: Required value",
            "spec.validations: Required value: validations or auditAnnotations must contain at least one item",
            "spec.auditAnnotations: Required value: validations or auditAnnotations must contain at least one item",
        ]
    );
    let wrong = policy(
        "p",
        json!({
            "matchConditions": [{"name": "a", "expression": "1"}, {"name": "a", "expression": "variables.x == 1"}],
            "variables": [{"name": "for", "expression": "1"}, {"name": "c", "expression": "object."}],
            "validations": [{"expression": "1"}, {"expression": "params.x == 1", "message": "a\nb", "messageExpression": "authorizer"}],
        }),
    );
    assert_eq!(
        causes(wrong).await,
        [
            "spec.matchConditions[0].expression: Invalid value: \"1\": must evaluate to bool but got int",
            "spec.matchConditions[1].expression: Invalid value: \"variables.x == 1\": compilation failed: ERROR: <input>:1:1: \
             undeclared reference to 'variables' (in container '')\n | variables.x == 1\n | ^",
            "spec.matchConditions[1].name: Duplicate value: \"a\"",
            "spec.variables[0].name: Invalid value: \"for\": must be a valid CEL identifier",
            "spec.variables[1].expression: Invalid value: \"object.\": compilation failed: ERROR: <input>:1:8: \
             Syntax error: no viable alternative at input '.'\n | object.\n | .......^",
            "spec.validations[0].expression: Invalid value: \"1\": must evaluate to bool but got int",
            "spec.validations[1].expression: Invalid value: \"params.x == 1\": compilation failed: ERROR: <input>:1:1: \
             undeclared reference to 'params' (in container '')\n | params.x == 1\n | ^",
            "spec.validations[1].messageExpression: Invalid value: \"authorizer\": compilation failed: ERROR: <input>:1:1: \
             undeclared reference to 'authorizer' (in container '')\n | authorizer\n | ^",
            "spec.validations[1].message: Invalid value: \"a\\nb\": must not contain line breaks",
        ]
    );
    // What configures admission is not admitted by it.
    let all = json!({"resourceRules": [{"operations": ["*"], "apiGroups": ["*"], "apiVersions": ["*"], "resources": ["*/*"]}]});
    let mut spec = one("false");
    spec["matchConstraints"] = all;
    server.validates("all", spec, json!({})).await;
    assert_eq!(server.call("POST", MAPS, config_map("x", json!({}))).await.0, 422);
    let review = json!({"spec": {"resourceAttributes": {"verb": "get", "resource": "pods"}}});
    assert_eq!(server.call("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", review).await.0, 201);
    assert_eq!(server.call("DELETE", &format!("{path}/all"), Value::Null).await.0, 200);
    server.make(MAPS, config_map("x", json!({}))).await;
}

#[tokio::test]
async fn policies_hold_after_a_restart() {
    let server = Server::start().await;
    server.validates("p", one("object.metadata.name != 'x'"), json!({})).await;
    let server = server.restart().await;
    assert_eq!(server.call("POST", MAPS, config_map("x", json!({}))).await.0, 422);
    server.make(MAPS, config_map("y", json!({}))).await;
}

/// Something that is in all of a policy's expressions and costs a million in microseconds: a text of 900 KB that is looked at ten times.
const DEAR: &str = "lists.range(10).all(i, !params.data.text.startsWith('y'))";

impl Server {
    /// A policy of ConfigMaps of `default` whose bindings, so many, ask with a large text.
    async fn asks_dearly(&self, kind: &str, mut spec: Value, bindings: usize) {
        let plural = if kind == "mutating" { "mutatingadmissionpolic" } else { "validatingadmissionpolic" };
        spec["paramKind"] = json!({"apiVersion": "v1", "kind": "ConfigMap"});
        self.make(&format!("{GROUP}/{plural}ies"), policy(kind, spec)).await;
        for number in 0..bindings {
            let params = json!({"name": "large", "namespace": "params", "parameterNotFoundAction": "Deny"});
            let mut binding = binding(&format!("{kind}-{number}"), kind, json!({"paramRef": params}));
            if kind == "mutating" {
                binding["spec"].as_object_mut().expect("a spec").remove("validationActions");
            }
            self.make(&format!("{GROUP}/{plural}ybindings"), binding).await;
        }
    }

    async fn start_dear() -> Server {
        let server = Server::start().await;
        let large = config_map("large", json!({"text": "x".repeat(900_000)}));
        server.make("/api/v1/namespaces", json!({"metadata": {"name": "params"}})).await;
        server.make("/api/v1/namespaces/params/configmaps", large).await;
        server
    }
}

#[tokio::test]
async fn all_phases_of_a_request_share_what_its_policies_may_cost() {
    let same = "[JSONPatch{op: 'test', path: '/kind', value: 'ConfigMap'}]";
    let expression = format!("{DEAR} ? {same} : {same}");
    let changes = json!({"patchType": "JSONPatch", "jsonPatch": {"expression": expression}});
    let changes = json!({"mutations": vec![changes; 10], "reinvocationPolicy": "Never"});
    let validates = json!({"validations": vec![json!({"expression": DEAR}); 10]});
    for (mutating, validating, code) in [(7, 0, 201), (0, 7, 201), (7, 7, 422)] {
        let server = Server::start_dear().await;
        server.asks_dearly("mutating", changes.clone(), mutating).await;
        server.asks_dearly("validating", validates.clone(), validating).await;
        let (told, answer) = server.call("POST", MAPS, config_map("x", json!({}))).await;
        assert_eq!(told, code, "{mutating} {validating}: {answer}");
        let why = "cost more than they may together";
        assert_eq!(answer["message"].as_str().is_some_and(|message| message.contains(why)), code == 422, "{answer}");
        // The next request is another one.
        if code == 201 {
            server.make(MAPS, config_map("y", json!({}))).await;
        }
    }
}

#[tokio::test]
async fn each_deletion_of_a_collection_is_asked_about_as_one_request() {
    let server = Server::start_dear().await;
    for number in 0..20 {
        server.make(MAPS, config_map(&format!("m{number}"), json!({}))).await;
    }
    let spec = json!({"matchConstraints": maps(&["DELETE"]), "validations": vec![json!({"expression": DEAR}); 10]});
    server.asks_dearly("validating", spec, 1).await;
    let (code, answer) = server.call("DELETE", MAPS, Value::Null).await;
    assert_eq!(code, 200, "{answer}");
    assert_eq!(server.get(MAPS).await.1["items"], json!([]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_is_compiled_holds_up_nobody() {
    let server = std::sync::Arc::new(Server::start().await);
    let selectors = vec![json!({"cel": {"expression": "'x'.matches('(a{1000}){19}')"}}); 32];
    let class = json!({"metadata": {"name": "c"}, "spec": {"selectors": selectors}});
    let request = Request::post("/apis/resource.k8s.io/v1/deviceclasses?dryRun=All");
    let request = request.header("content-type", "application/json").body(Body::from(class.to_string())).unwrap();
    let (code, answered) = answered_beside(&server, request).await;
    assert_eq!(code, 201);
    assert!(answered > 4, "{answered} were answered beside it");
}
