//! What the real API server answered, step by step (`requests/apply.http` and its like).

use jiff::Timestamp;
use serde_json::{Value, json};

use super::*;
use crate::schema;

/// One kind and the state of one object of it.
struct Bench {
    object: std::sync::Arc<Object>,
    api_version: &'static str,
    kind: &'static str,
    live: Option<Value>,
    second: i64,
}

impl Bench {
    fn new(group: &str, version: &str, kind: &'static str) -> Self {
        let api_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
        let object = schema::of_kind(group, version, kind).expect("built in");
        Self { object, api_version: api_version.leak(), kind, live: None, second: 0 }
    }

    fn target<'a>(&'a self, subresource: &'a str) -> Target<'a> {
        let reset = match subresource {
            "" => Reset::Fields(&[&["status"]]),
            "status" => Reset::Fields(&[&["spec"]]),
            _ => Reset::Nothing,
        };
        Target { object: &self.object, api_version: self.api_version, kind: self.kind, subresource, reset }
    }

    fn now(&mut self) -> Option<Timestamp> {
        self.second += 1;
        Timestamp::from_second(self.second).ok()
    }

    fn apply_to(&mut self, subresource: &str, manager: &str, config: Value, force: bool) -> Result<(), String> {
        let now = self.now();
        let mut config = config;
        config["apiVersion"] = json!(self.api_version);
        config["kind"] = json!(self.kind);
        let writer = Writer { manager, now };
        let done = apply(self.live.as_ref(), &config, &self.target(subresource), &writer, force);
        self.live = Some(self.stored(done.map_err(|status| format!("{} {}", status.code(), status.message))?));
        Ok(())
    }

    fn apply(&mut self, manager: &str, config: Value) -> Result<(), String> {
        self.apply_to("", manager, config, false)
    }

    /// As it is after it was decoded: without nulls, with a uid.
    fn stored(&self, mut object: Value) -> Value {
        without_nulls(&mut object);
        object["metadata"]["uid"] = json!("u");
        object
    }

    fn update(&mut self, subresource: &str, manager: &str, new: Value) {
        let now = self.now();
        let mut new = new;
        let writer = Writer { manager, now };
        track_update(self.live.as_ref(), &mut new, &self.target(subresource), &writer);
        self.live = Some(self.stored(new));
    }

    fn change(&mut self, manager: &str, pointer: &str, value: Value) {
        let mut new = self.live.clone().unwrap_or_default();
        match new.pointer_mut(pointer) {
            Some(place) => *place = value,
            None => {
                let (parent, name) = pointer.rsplit_once('/').unwrap();
                new.pointer_mut(parent).unwrap()[name] = value;
            }
        }
        self.update("", manager, new);
    }

    fn live(&self) -> &Value {
        self.live.as_ref().unwrap()
    }

    /// Managers and their sets, in the order of the entries.
    fn owners(&self) -> Value {
        let entries =
            self.live().pointer("/metadata/managedFields").and_then(Value::as_array).cloned().unwrap_or_default();
        let text = |e: &Value, field: &str| e.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
        let one = |e: &Value| {
            let subresource = text(e, "subresource");
            let slash = if subresource.is_empty() { "" } else { "/" };
            json!([format!("{} {}{slash}{subresource}", text(e, "operation"), text(e, "manager")), e["fieldsV1"]])
        };
        Value::Array(entries.iter().map(one).collect())
    }
}

fn without_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, value| !value.is_null());
            fields.values_mut().for_each(without_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(without_nulls),
        _ => {}
    }
}

fn config(data: Value) -> Value {
    json!({"metadata": {"name": "a"}, "data": data})
}

#[test]
fn appliers_share_conflict_force_and_let_go() {
    let mut map = Bench::new("", "v1", "ConfigMap");
    let first = json!({"metadata": {"name": "a", "labels": {"app": "x"}}, "data": {"k": "v", "l": "w"}});
    map.apply("one", first.clone()).unwrap();
    let set = json!({"f:data": {"f:k": {}, "f:l": {}}, "f:metadata": {"f:labels": {"f:app": {}}}});
    assert_eq!(map.owners(), json!([["Apply one", set]]));

    let before = map.live().clone();
    map.apply("one", first).unwrap();
    assert_eq!(*map.live(), before, "the same again changes nothing, not even the time");

    map.apply("two", config(json!({"k": "v", "m": "x"}))).unwrap();
    assert_eq!(map.owners(), json!([["Apply one", set], ["Apply two", {"f:data": {"f:k": {}, "f:m": {}}}]]));

    let others = json!({"metadata": {"name": "a", "labels": {"app": "y"}}, "data": {"l": "2"}});
    assert_eq!(
        map.apply("three", others).unwrap_err(),
        "409 Apply failed with 2 conflicts: conflicts with \"one\":\n- .data.l\n- .metadata.labels.app"
    );
    map.apply_to("", "three", config(json!({"k": "1"})), true).unwrap();
    assert_eq!(
        map.owners(),
        json!([
            ["Apply one", {"f:data": {"f:l": {}}, "f:metadata": {"f:labels": {"f:app": {}}}}],
            ["Apply two", {"f:data": {"f:m": {}}}],
            ["Apply three", {"f:data": {"f:k": {}}}],
        ])
    );

    map.apply("one", config(json!({}))).unwrap();
    assert_eq!(map.live()["data"], json!({"k": "1", "m": "x"}));
    assert_eq!(map.live()["metadata"].get("labels"), None);
    map.apply("two", json!({"metadata": {"name": "a"}})).unwrap();
    assert_eq!(map.live()["data"], json!({"k": "1"}));
    assert_eq!(map.owners(), json!([["Apply three", {"f:data": {"f:k": {}}}], ["Apply one", {"f:data": {}}]]));

    let mut edited = map.live().clone();
    edited["data"] = json!({"k": "edited", "e": "1"});
    map.update("", "editor", edited);
    assert_eq!(
        map.owners(),
        json!([["Apply one", {"f:data": {}}], ["Update editor", {"f:data": {"f:e": {}, "f:k": {}}}]])
    );
    assert_eq!(
        map.apply("three", config(json!({"k": "1", "e": "2"}))).unwrap_err(),
        "409 Apply failed with 2 conflicts: conflicts with \"editor\" using v1:\n- .data.e\n- .data.k"
    );
    map.change("three", "/data/z", json!("1"));
    map.apply("three", json!({"data": {"n": "1"}})).unwrap();
    assert_eq!(
        map.owners(),
        json!([
            ["Apply one", {"f:data": {}}],
            ["Apply three", {"f:data": {"f:n": {}}}],
            ["Update editor", {"f:data": {"f:e": {}, "f:k": {}}}],
            ["Update three", {"f:data": {"f:z": {}}}],
        ])
    );
}

#[test]
fn refuses_what_does_not_fit_the_type() {
    let mut map = Bench::new("", "v1", "ConfigMap");
    let mut template = Bench::new("", "v1", "PodTemplate");
    let spec = |containers: Value| json!({"metadata": {"name": "t"}, "template": {"spec": {"containers": containers}}});
    for (result, expected) in [
        (
            map.apply("m", json!({"metadata": {"name": "a"}, "dada": {}})),
            "500 failed to create typed patch object (/a; /v1, Kind=ConfigMap): .dada: field not declared in schema",
        ),
        (
            map.apply("m", config(json!([1]))),
            "500 failed to create typed patch object (/a; /v1, Kind=ConfigMap): .data: expected map, got &{[1]}",
        ),
        (
            map.apply("m", json!({"metadata": {"name": "a", "managedFields": []}})),
            "400 metadata.managedFields must be nil",
        ),
        (
            template.apply("m", spec(json!([{"name": "c"}, {"name": "c"}]))),
            "500 failed to create typed patch object (/t; /v1, Kind=PodTemplate): .template.spec.containers: duplicate entries for key [name=\"c\"]",
        ),
    ] {
        assert_eq!(result.unwrap_err(), expected);
    }
    let target = map.target("");
    let writer = Writer { manager: "m", now: None };
    for (config, expected) in [
        (json!({}), "invalid object type: /, Kind="),
        (json!({"apiVersion": "v1", "kind": "Secret"}), "invalid object type: /v1, Kind=Secret"),
    ] {
        assert_eq!(apply(None, &config, &target, &writer, false).unwrap_err().message, expected);
    }
    template.apply("m", spec(json!([{"image": "x"}]))).unwrap();
    assert_eq!(
        template.live().pointer("/template/spec/containers"),
        Some(&json!([{"image": "x"}])),
        "an empty name is one"
    );
}

#[test]
fn lists_with_keys_have_owners_for_each_item() {
    let mut t = Bench::new("", "v1", "PodTemplate");
    let one = json!({"metadata": {"name": "t", "finalizers": ["example.com/a"]}, "template": {"metadata": {"labels": {"app": "t"}}, "spec": {
        "containers": [{"name": "c", "image": "x:1", "args": ["a"], "env": [{"name": "A", "value": "1"}], "ports": [{"containerPort": 80}]}],
        "tolerations": [{"key": "a", "operator": "Exists"}], "volumes": [{"name": "v", "emptyDir": {}}]}}});
    t.apply("one", one).unwrap();
    let first = json!(["Apply one", {"f:metadata": {"f:finalizers": {"v:\"example.com/a\"": {}}}, "f:template": {
        "f:metadata": {"f:labels": {"f:app": {}}}, "f:spec": {
            "f:containers": {"k:{\"name\":\"c\"}": {".": {}, "f:args": {}, "f:env": {"k:{\"name\":\"A\"}": {".": {}, "f:name": {}, "f:value": {}}},
                "f:image": {}, "f:name": {}, "f:ports": {"k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}}}}},
            "f:tolerations": {}, "f:volumes": {"k:{\"name\":\"v\"}": {".": {}, "f:emptyDir": {}, "f:name": {}}}}}}]);
    assert_eq!(t.owners(), json!([first]));
    // As defaults fill it in.
    t.live.as_mut().unwrap()["template"]["spec"]["containers"][0]["ports"][0]["protocol"] = json!("TCP");

    let two = json!({"metadata": {"name": "t", "finalizers": ["example.com/b"]}, "template": {"spec": {"containers": [
        {"name": "d", "image": "x:1"}, {"name": "c", "env": [{"name": "B", "value": "2"}], "ports": [{"containerPort": 80, "protocol": "UDP"}]}]}}});
    t.apply("two", two).unwrap();
    let second = json!(["Apply two", {"f:metadata": {"f:finalizers": {"v:\"example.com/b\"": {}}}, "f:template": {"f:spec": {"f:containers": {
        "k:{\"name\":\"c\"}": {".": {}, "f:env": {"k:{\"name\":\"B\"}": {".": {}, "f:name": {}, "f:value": {}}}, "f:name": {},
            "f:ports": {"k:{\"containerPort\":80,\"protocol\":\"UDP\"}": {".": {}, "f:containerPort": {}, "f:protocol": {}}}},
        "k:{\"name\":\"d\"}": {".": {}, "f:image": {}, "f:name": {}}}}}}]);
    assert_eq!(t.owners(), json!([first, second]));
    assert_eq!(t.live()["metadata"]["finalizers"], json!(["example.com/a", "example.com/b"]));
    assert_eq!(
        t.live()["template"]["spec"]["containers"],
        json!([{"name": "d", "image": "x:1"}, {"name": "c", "image": "x:1", "args": ["a"],
            "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}],
            "ports": [{"containerPort": 80, "protocol": "TCP"}, {"containerPort": 80, "protocol": "UDP"}]}])
    );

    let three = json!({"metadata": {"name": "t"}, "template": {"spec": {"containers": [{"name": "c", "args": ["b"], "image": "x:2"}],
        "tolerations": [{"key": "b", "operator": "Exists"}]}}});
    assert_eq!(
        t.apply("three", three).unwrap_err(),
        "409 Apply failed with 3 conflicts: conflicts with \"one\":\n- .template.spec.tolerations\n- .template.spec.containers[name=\"c\"].args\n- .template.spec.containers[name=\"c\"].image"
    );

    t.apply(
        "one",
        json!({"metadata": {"name": "t"}, "template": {"spec": {"containers": [{"name": "c", "image": "x:1"}]}}}),
    )
    .unwrap();
    assert_eq!(
        t.owners(),
        json!([second, ["Apply one", {"f:template": {"f:spec": {"f:containers": {"k:{\"name\":\"c\"}": {".": {}, "f:image": {}, "f:name": {}}}}}}]])
    );
    assert_eq!(
        t.live()["template"]["spec"],
        json!({"containers": [{"name": "d", "image": "x:1"},
            {"name": "c", "image": "x:1", "env": [{"name": "B", "value": "2"}], "ports": [{"containerPort": 80, "protocol": "UDP"}]}]})
    );
    assert_eq!(t.live()["metadata"]["finalizers"], json!(["example.com/b"]));
}

#[test]
fn creates_and_updates_own_what_they_set() {
    let mut pod = Bench::new("", "v1", "Pod");
    let new = json!({"metadata": {"name": "p"}, "spec": {"automountServiceAccountToken": false, "containers": [{"name": "c", "image": "x",
        "imagePullPolicy": "Always", "resources": {}, "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File"}],
        "dnsPolicy": "ClusterFirst", "schedulingGates": [{"name": "hold"}], "securityContext": {}}, "status": {"phase": "Pending"}});
    pod.update("", "creator", new);
    let spec = json!({"f:spec": {"f:automountServiceAccountToken": {}, "f:containers": {"k:{\"name\":\"c\"}": {".": {}, "f:image": {},
        "f:imagePullPolicy": {}, "f:name": {}, "f:resources": {}, "f:terminationMessagePath": {}, "f:terminationMessagePolicy": {}}},
        "f:dnsPolicy": {}, "f:schedulingGates": {".": {}, "k:{\"name\":\"hold\"}": {".": {}, "f:name": {}}}, "f:securityContext": {}}});
    assert_eq!(pod.owners(), json!([["Update creator", spec]]));

    let status = json!({"metadata": {"name": "p"}, "status": {"message": "m", "conditions": [{"type": "example.com/x", "status": "True"}]}});
    pod.apply_to("status", "one", status, false).unwrap();
    let owned = json!({"f:status": {"f:conditions": {"k:{\"type\":\"example.com/x\"}": {".": {}, "f:status": {}, "f:type": {}}}, "f:message": {}}});
    assert_eq!(pod.owners(), json!([["Apply one/status", owned], ["Update creator", spec]]));

    let status = json!({"metadata": {"name": "p", "labels": {"from": "status"}}, "spec": {"activeDeadlineSeconds": 5}, "status": {"message": "m2"}});
    pod.apply_to("status", "one", status, false).unwrap();
    let owned = json!({"f:metadata": {"f:labels": {"f:from": {}}}, "f:status": {"f:message": {}}});
    assert_eq!(pod.owners(), json!([["Apply one/status", owned], ["Update creator", spec]]));
    assert_eq!(
        pod.apply("one", json!({"metadata": {"name": "p", "labels": {"from": "apply"}}, "status": {"message": "m3"}}))
            .unwrap_err(),
        "409 Apply failed with 1 conflict: conflict with \"one\" with subresource \"status\": .metadata.labels.from"
    );
}

#[test]
fn tracking_can_be_reset_and_starts_again_with_an_apply() {
    let mut map = Bench::new("", "v1", "ConfigMap");
    map.update("", "creator", config(json!({"k": "v"})));
    assert_eq!(map.owners(), json!([["Update creator", {"f:data": {".": {}, "f:k": {}}}]]));
    for reset in [json!([{}]), json!([])] {
        let mut again = map.live().clone();
        again["metadata"]["managedFields"] = reset;
        map.update("", "dropper", again);
        assert_eq!(map.live()["metadata"].get("managedFields"), None);
    }
    map.change("editor", "/data/k", json!("w"));
    assert_eq!(map.owners(), json!([]));
    assert_eq!(
        map.apply("late", config(json!({"k": "late"}))).unwrap_err(),
        "409 Apply failed with 1 conflict: conflict with \"before-first-apply\" using v1: .data.k"
    );
    map.apply("late", config(json!({"k": "w", "n": "1"}))).unwrap();
    assert_eq!(
        map.owners(),
        json!([["Apply late", {"f:data": {"f:k": {}, "f:n": {}}}], ["Update before-first-apply", {"f:data": {".": {}, "f:k": {}}}]])
    );
}

#[test]
fn kubectl_takes_over_from_its_annotation() {
    let mut map = Bench::new("", "v1", "ConfigMap");
    let last = "{\"apiVersion\":\"v1\",\"data\":{\"k\":\"v\",\"old\":\"1\"},\"kind\":\"ConfigMap\",\"metadata\":{\"annotations\":{},\"name\":\"a\"}}\n";
    let mut made = config(json!({"k": "v", "old": "1"}));
    made["metadata"]["annotations"] = json!({"kubectl.kubernetes.io/last-applied-configuration": last});
    map.update("", "kubectl-client-side-apply", made);
    map.apply("kubectl", config(json!({"k": "w"}))).unwrap();
    assert_eq!(map.live()["data"], json!({"k": "w", "old": "1"}));
    assert_eq!(
        map.live().pointer("/metadata/annotations/kubectl.kubernetes.io~1last-applied-configuration"),
        Some(&json!(
            "{\"apiVersion\":\"v1\",\"data\":{\"k\":\"w\"},\"kind\":\"ConfigMap\",\"metadata\":{\"name\":\"a\"}}\n"
        ))
    );
    assert_eq!(
        map.apply("other", config(json!({"k": "x"}))).unwrap_err(),
        "409 Apply failed with 1 conflict: conflict with \"kubectl\": .data.k"
    );
}

#[test]
fn atomic_structures_have_one_owner() {
    let mut service = Bench::new("", "v1", "Service");
    let ports = json!([{"name": "a", "port": 80}, {"name": "b", "port": 80, "protocol": "UDP"}]);
    service.apply("one", json!({"metadata": {"name": "s"}, "spec": {"clusterIP": "None", "ports": ports}})).unwrap();
    let set = json!({"f:spec": {"f:clusterIP": {}, "f:ports": {
        "k:{\"port\":80,\"protocol\":\"TCP\"}": {".": {}, "f:name": {}, "f:port": {}},
        "k:{\"port\":80,\"protocol\":\"UDP\"}": {".": {}, "f:name": {}, "f:port": {}, "f:protocol": {}}}}});
    assert_eq!(service.owners(), json!([["Apply one", set]]));
    service.apply("two", json!({"metadata": {"name": "s"}, "spec": {"selector": {"a": "b"}}})).unwrap();
    assert_eq!(
        service.apply("one", json!({"metadata": {"name": "s"}, "spec": {"selector": {"c": "d"}}})).unwrap_err(),
        "409 Apply failed with 1 conflict: conflict with \"two\": .spec.selector"
    );
}

#[test]
fn old_updates_are_put_together_and_managers_without_fields_leave() {
    let mut map = Bench::new("", "v1", "ConfigMap");
    map.update("", "m00", config(json!({"k00": "v"})));
    for at in 1..14 {
        map.change(&format!("m{at:02}"), &format!("/data/k{at:02}"), json!("v"));
    }
    let owners = map.owners();
    let names: Vec<&str> = owners.as_array().unwrap().iter().filter_map(|owner| owner[0].as_str()).collect();
    assert_eq!(names.len(), 10);
    assert_eq!(&names[..2], ["Update ancient-changes", "Update m05"]);
    assert_eq!(
        owners[0][1],
        json!({"f:data": {".": {}, "f:k00": {}, "f:k01": {}, "f:k02": {}, "f:k03": {}, "f:k04": {}}})
    );
    map.change("last", "/data", json!({"k00": "v"}));
    assert_eq!(map.owners(), json!([["Update ancient-changes", {"f:data": {".": {}, "f:k00": {}}}]]));
}

#[test]
fn a_write_that_moves_only_times_is_none() {
    let mut map = Bench::new("", "v1", "ConfigMap");
    map.update("", "creator", config(json!({"k": "v"})));
    let old = map.live().clone();
    let mut new = old.clone();
    new["metadata"]["managedFields"][0]["time"] = json!("2030-01-01T00:00:00Z");
    assert!(equal_but_times(&new, &old) && new != old);
    keep_times(&mut new, &old);
    assert_eq!(new, old);
    new["data"]["k"] = json!("w");
    assert!(!equal_but_times(&new, &old));
}

/// The schema of the custom resource in `requests/apply.http`.
fn gadget() -> Object {
    use crate::schema::{Field, List, ListKind, Map, Named, Type};
    use std::collections::HashMap;
    use std::sync::Arc;
    let list = |items, kind| Field::of(Type::List(Arc::new(List { items, kind })));
    let map = |atomic| Field::of(Type::Map(Arc::new(Map { values: Type::String, atomic })));
    let fields = |fields: Vec<(&str, Field)>| -> HashMap<String, Field> {
        fields.into_iter().map(|(name, field)| (name.to_owned(), field)).collect()
    };
    let number = Field { default: Some(json!(7)), ..Field::of(Type::Int64) };
    let item = Object::new("", fields(vec![("name", Field::of(Type::String)), ("v", number)]));
    let spec = Object::new(
        "",
        fields(vec![
            ("plain", list(Type::String, ListKind::Atomic)),
            ("set", list(Type::String, ListKind::Set)),
            ("map", list(Type::Object(Arc::new(item)), ListKind::Map(vec!["name".to_owned()]))),
            ("atomic", map(true)),
            ("granular", map(false)),
            ("any", Field::of(Type::Object(Arc::new(Object { preserves_unknown: true, ..Object::default() })))),
        ]),
    );
    let metadata = Field::of(Type::Named(Named::new("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta")));
    let text = || Field::of(Type::String);
    let spec = Field::of(Type::Object(Arc::new(spec)));
    Object::new("", fields(vec![("apiVersion", text()), ("kind", text()), ("metadata", metadata), ("spec", spec)]))
}

#[test]
fn custom_resources_are_owned_along_their_schema() {
    let mut g = Bench { object: gadget().into(), api_version: "example.com/v1", kind: "Gadget", live: None, second: 0 };
    let spec = |spec: Value| json!({"metadata": {"name": "g"}, "spec": spec});
    g.apply(
        "one",
        spec(json!({"plain": ["a"], "set": ["a"], "map": [{"name": "a"}], "atomic": {"a": "1"}, "granular": {"a": "1"}, "any": {"a": {"b": [1]}}})),
    )
    .unwrap();
    let one = json!(["Apply one", {"f:spec": {"f:any": {"f:a": {".": {}, "f:b": {}}}, "f:atomic": {}, "f:granular": {"f:a": {}},
        "f:map": {"k:{\"name\":\"a\"}": {".": {}, "f:name": {}}}, "f:plain": {}, "f:set": {"v:\"a\"": {}}}}]);
    assert_eq!(g.owners(), json!([one]));
    g.apply(
        "two",
        spec(json!({"set": ["b"], "map": [{"name": "b", "v": 1}], "granular": {"b": "1"}, "any": {"c": 1}})),
    )
    .unwrap();
    let two = json!(["Apply two", {"f:spec": {"f:any": {"f:c": {}}, "f:granular": {"f:b": {}},
        "f:map": {"k:{\"name\":\"b\"}": {".": {}, "f:name": {}, "f:v": {}}}, "f:set": {"v:\"b\"": {}}}}]);
    assert_eq!(g.owners(), json!([one, two]));
    let three = json!({"plain": ["b"], "map": [{"name": "a", "v": 2}], "atomic": {"b": "1"}, "granular": {"a": "2"}, "any": {"a": {"b": [2]}}});
    assert_eq!(
        g.apply("three", spec(three)).unwrap_err(),
        "409 Apply failed with 4 conflicts: conflicts with \"one\":\n- .spec.atomic\n- .spec.plain\n- .spec.any.a.b\n- .spec.granular.a"
    );
    g.apply("one", spec(json!({"plain": ["a"]}))).unwrap();
    assert_eq!(
        g.live()["spec"],
        json!({"any": {"c": 1}, "granular": {"b": "1"}, "map": [{"name": "b", "v": 1}], "plain": ["a"], "set": ["b"]})
    );
    assert_eq!(g.owners(), json!([two, ["Apply one", {"f:spec": {"f:plain": {}}}]]));
    assert_eq!(
        g.apply("one", spec(json!({"set": ["a", "a"]}))).unwrap_err(),
        "500 failed to create typed patch object (/g; example.com/v1, Kind=Gadget): .spec.set: duplicate entries for key [=\"a\"]"
    );
}
