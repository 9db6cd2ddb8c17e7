//! Patches and what the real API server made of them, on a pod template.

use serde_json::{Value, json};

use super::strategic;
use crate::schema;

fn apply(value: &Value, patch: &Value) -> Result<Value, String> {
    let object = schema::of_kind("", "v1", "PodTemplate").expect("built in");
    let mut value = value.clone();
    strategic(&mut value, patch, &object)
        .map(|()| value)
        .map_err(|status| format!("{} {}", status.code(), status.message))
}

fn spec(spec: Value) -> Value {
    json!({"template": {"spec": spec}})
}

#[test]
fn merges_lists_by_their_keys() {
    let containers = json!([{"name": "c", "image": "x", "args": ["a"], "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}],
        "ports": [{"containerPort": 80, "name": "web"}]}, {"name": "d", "image": "x"}]);
    let table: Vec<(&str, Value, Value, Value)> = vec![
        (
            "items merge, new ones go first, lists of words are replaced",
            json!({"containers": containers}),
            json!({"containers": [{"name": "c", "args": ["z"], "env": [{"name": "B", "value": "3"}, {"name": "C", "value": "4"}],
                "ports": [{"containerPort": 80, "hostIP": "1.2.3.4"}]}, {"name": "e", "image": "y"}]}),
            json!({"containers": [{"name": "c", "image": "x", "args": ["z"],
                "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "3"}, {"name": "C", "value": "4"}],
                "ports": [{"containerPort": 80, "name": "web", "hostIP": "1.2.3.4"}]}, {"name": "e", "image": "y"}, {"name": "d", "image": "x"}]}),
        ),
        (
            "delete takes items out",
            json!({"containers": containers}),
            json!({"containers": [{"name": "d", "$patch": "delete"}, {"name": "c", "env": [{"name": "A", "$patch": "delete"}]}]}),
            json!({"containers": [{"name": "c", "image": "x", "args": ["a"], "env": [{"name": "B", "value": "2"}],
                "ports": [{"containerPort": 80, "name": "web"}]}]}),
        ),
        (
            "replace puts the rest in place of the list",
            json!({"containers": containers}),
            json!({"containers": [{"$patch": "replace"}, {"name": "z"}]}),
            json!({"containers": [{"name": "z"}]}),
        ),
        (
            "lists without a key are replaced",
            json!({"tolerations": [{"key": "a"}]}),
            json!({"tolerations": [{"key": "b"}]}),
            json!({"tolerations": [{"key": "b"}]}),
        ),
        (
            "the order list orders, what it does not know stays in place",
            json!({"containers": [{"name": "a"}, {"name": "b"}, {"name": "c"}]}),
            json!({"$setElementOrder/containers": [{"name": "c"}, {"name": "a"}], "containers": [{"name": "a", "image": "y"}]}),
            json!({"containers": [{"name": "b"}, {"name": "c"}, {"name": "a", "image": "y"}]}),
        ),
        (
            "a new item takes the place that a deleted one leaves",
            json!({"containers": [{"name": "c"}, {"name": "d"}]}),
            json!({"$setElementOrder/containers": [{"name": "e"}], "containers": [{"name": "c", "$patch": "delete"}, {"name": "e"}]}),
            json!({"containers": [{"name": "d"}, {"name": "e"}]}),
        ),
        (
            "retainKeys clears its siblings",
            json!({"volumes": [{"name": "w", "hostPath": {"path": "/w"}}]}),
            json!({"volumes": [{"name": "w", "$retainKeys": ["name", "configMap"], "configMap": {"name": "cm"}}]}),
            json!({"volumes": [{"name": "w", "configMap": {"name": "cm"}}]}),
        ),
        (
            "null removes, also below what is new",
            json!({"volumes": [{"name": "w"}], "dnsPolicy": "Default"}),
            json!({"volumes": null, "dnsPolicy": null, "affinity": {"podAffinity": null, "nodeAffinity": {}}}),
            json!({"affinity": {"nodeAffinity": {}}}),
        ),
        (
            "delete of an object empties it",
            json!({"securityContext": {"runAsUser": 1}}),
            json!({"securityContext": {"$patch": "delete"}}),
            json!({"securityContext": {}}),
        ),
    ];
    for (title, before, patch, after) in table {
        assert_eq!(apply(&spec(before), &spec(patch)), Ok(spec(after)), "{title}");
    }
}

#[test]
fn merges_words_as_sets() {
    let finalizers = |list: Value| json!({"metadata": {"finalizers": list}});
    let before = finalizers(json!(["x/a", "x/b"]));
    for (patch, after) in [
        (finalizers(json!(["x/c", "x/a"])), finalizers(json!(["x/c", "x/a", "x/b"]))),
        (json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["x/b", "x/z"]}}), finalizers(json!(["x/a"]))),
        (
            json!({"metadata": {"$setElementOrder/finalizers": ["x/b", "x/a"], "finalizers": ["x/b"]}}),
            finalizers(json!(["x/b", "x/a"])),
        ),
    ] {
        assert_eq!(apply(&before, &patch), Ok(after), "{patch}");
    }
}

#[test]
fn words_errors_as_the_reference_does() {
    let before = json!({"template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c"}], "volumes": [{"name": "v"}]}}});
    for (patch, expected) in [
        (
            json!({"template": {"metadata": {"$patch": "merge", "labels": {"and": "that"}}}}),
            "500 unknown patch type: merge in map: map[$patch:merge labels:map[and:that]]",
        ),
        (
            spec(json!({"containers": [{"image": "x:7"}]})),
            "500 map: map[image:x:7] does not contain declared merge key: name",
        ),
        (
            spec(
                json!({"$setElementOrder/containers": [{"name": "e"}], "containers": [{"name": "c", "image": "x:7"}]}),
            ),
            "500 The order in patch list:\n[map[image:x:7 name:c]]\n doesn't match $setElementOrder list:\n[map[name:e]]\n",
        ),
        (
            spec(json!({"$setElementOrder/none": []})),
            "500 unable to find api field in struct PodSpec for the json field \"none\"",
        ),
        (spec(json!({"$setElementOrder/containers": "x"})), "500 expected a []interface {}, but received a string"),
        (
            spec(json!({"volumes": [{"name": "v", "$retainKeys": [], "x": 1}]})),
            "400 invalid patch format of retainKeys",
        ),
        (spec(json!({"$deleteFromPrimitiveListx": []})), "400 invalid patch format of primitive list"),
        (
            spec(json!({"containers": [{"name": "c"}, "x"]})),
            "500 list element types are not identical: [[map[name:c]] [map[name:c] x]]",
        ),
        (json!([1]), "400 json: cannot unmarshal array into Go value of type map[string]interface {}"),
    ] {
        assert_eq!(apply(&before, &patch), Err(expected.to_owned()), "{patch}");
    }
}
