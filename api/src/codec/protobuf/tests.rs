use serde_json::{Value, json};

use super::*;
use crate::codec::json;

/// Objects with every special type in them.
fn samples() -> Vec<(&'static str, &'static str, &'static str, Value)> {
    vec![
        (
            "",
            "v1",
            "ConfigMap",
            json!({"metadata": {"name": "a", "labels": {"x": "1", "a": "2"}}, "data": {"k": "v"},
            "binaryData": {"b": "AAEC"}, "immutable": true}),
        ),
        (
            "",
            "v1",
            "Pod",
            json!({"metadata": {"name": "p", "creationTimestamp": "2024-01-02T03:04:05Z",
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "u", "controller": true}],
                "managedFields": [{"manager": "m", "operation": "Apply", "fieldsType": "FieldsV1", "fieldsV1": {"f:spec": {".": {}}}}]},
            "spec": {"containers": [{"name": "c", "image": "i", "command": ["a", ""],
                    "ports": [{"containerPort": 80, "protocol": "TCP"}],
                    "resources": {"limits": {"cpu": "500m", "memory": "1Gi"}},
                    "livenessProbe": {"httpGet": {"path": "/", "port": "http"}, "periodSeconds": 3}}],
                "volumes": [{"name": "v", "emptyDir": {}}, {"name": "w", "configMap": {"name": "a", "defaultMode": 420}}],
                "priority": -5, "terminationGracePeriodSeconds": 0,
                "overhead": {"cpu": "1"}, "nodeSelector": {"a": "b"}},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True",
                "lastTransitionTime": "2024-01-02T03:04:05Z"}]}}),
        ),
        (
            "",
            "v1",
            "Service",
            json!({"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80, "targetPort": 8080}, {"port": 81, "targetPort": "x"}]}}),
        ),
        (
            "apps",
            "v1",
            "Deployment",
            json!({"metadata": {"name": "d"}, "spec": {"replicas": 3, "selector": {"matchLabels": {"a": "b"}},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": 1}},
            "template": {"spec": {"containers": [{"name": "c"}]}}}}),
        ),
        (
            "apps",
            "v1",
            "ControllerRevision",
            json!({"metadata": {"name": "r"}, "data": {"spec": {"x": [1, null, "y"]}}, "revision": 2}),
        ),
        (
            "coordination.k8s.io",
            "v1",
            "Lease",
            json!({"metadata": {"name": "l"}, "spec": {"renewTime": "2024-01-02T03:04:05.123456Z"}}),
        ),
        (
            "authorization.k8s.io",
            "v1",
            "SubjectAccessReview",
            json!({"spec": {"user": "u", "extra": {"scopes": ["a", "b"]},
            "resourceAttributes": {"verb": "get"}}}),
        ),
        (
            "admissionregistration.k8s.io",
            "v1",
            "ValidatingAdmissionPolicy",
            json!({"metadata": {"name": "v"}, "spec": {"matchConstraints":
            {"resourceRules": [{"apiGroups": ["*"], "operations": ["CREATE"], "resourceNames": ["n"]}]}}}),
        ),
        (
            "apiextensions.k8s.io",
            "v1",
            "CustomResourceDefinition",
            json!({"metadata": {"name": "c"}, "spec": {"group": "g", "scope": "Namespaced",
            "names": {"plural": "ps", "kind": "K"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object",
                "properties": {"a": {"type": "array", "items": {"type": "string"}, "maximum": 1.5, "default": [1]},
                    "b": {"additionalProperties": {"type": "string"}}, "c": {"additionalProperties": false}}}}}]}}),
        ),
        (
            "",
            "v1",
            "DeleteOptions",
            json!({"gracePeriodSeconds": 0, "propagationPolicy": "Orphan", "preconditions": {"uid": "u"}}),
        ),
        (
            "",
            "v1",
            "Status",
            json!({"status": "Failure", "code": 404, "details": {"name": "x", "causes": [{"field": "f"}]}}),
        ),
    ]
}

#[test]
fn what_is_written_is_read_again() {
    for (group, version, kind, mut value) in samples() {
        let object = schema::of_kind(group, version, kind).expect(kind);
        value["apiVersion"] = if group.is_empty() { version.into() } else { format!("{group}/{version}").into() };
        value["kind"] = kind.into();
        let clean = json::decode_value(&value, &object).expect(kind);
        assert!(clean.problems.is_empty(), "{kind}: {:?}", clean.problems);
        let bytes = encode(&clean.value, &object);
        let again = decode(&bytes, &object).expect(kind);
        assert_eq!(again.value, clean.value, "{kind}");
        assert_eq!(encode(&again.value, &object), bytes, "{kind}");
        // Whatever is cut off or changed is an error or another object, never a panic.
        for at in 0..bytes.len() {
            let _ = decode(&bytes[..at], &object);
            let mut changed = bytes.clone();
            changed[at] ^= 0x55;
            let _ = decode(&changed, &object);
        }
    }
}

#[test]
fn bytes_are_those_of_the_reference() {
    let object = schema::of_kind("", "v1", "ConfigMap").expect("built in");
    let value = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"k": "v"}});
    let expected = [
        b"k8s\0".as_slice(),
        b"\x0a\x0f\x0a\x02v1\x12\x09ConfigMap",
        b"\x12\x0d\x0a\x03\x0a\x01a\x12\x06\x0a\x01k\x12\x01v",
        b"\x1a\x00\x22\x00",
    ]
    .concat();
    assert_eq!(encode(&value, &object), expected);
    let envelope = open(&expected).expect("an envelope");
    assert_eq!((envelope.api_version, envelope.kind), ("v1", "ConfigMap"));
}

#[test]
fn lists_and_frames_hold_what_was_encoded_before() {
    let object = schema::of_kind("", "v1", "ConfigMap").expect("built in");
    let item = json!({"metadata": {"name": "a"}});
    let mut message = Vec::new();
    encode_raw_into(&mut message, &item, &object);
    let mut list = Vec::new();
    encode_list(&mut list, "v1", "ConfigMapList", &json!({"resourceVersion": "5"}), [&message[..], &message[..]]);
    let list_type = schema::of_kind("", "v1", "ConfigMapList").expect("built in");
    let read = decode(&list, &list_type).expect("a list").value;
    assert_eq!(read["metadata"], json!({"resourceVersion": "5"}));
    assert_eq!(read["items"], json!([item, item]));

    let mut whole = Vec::new();
    wrap_into(&mut whole, "v1", "ConfigMap", &message);
    let mut frame = Vec::new();
    watch_frame_into(&mut frame, "ADDED", &whole);
    let length = u32::from_be_bytes([frame[0], frame[1], frame[2], frame[3]]) as usize;
    assert_eq!(length, frame.len() - 4);
    assert!(frame.ends_with(&whole));
}

#[test]
fn rubbish_is_told_as_the_reference_tells_it() {
    let object = schema::of_kind("", "v1", "ConfigMap").expect("built in");
    let words = "provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]";
    assert_eq!(decode(b"rubbish", &object), Err(DecodeError::Unrecognized(words.into())));
    let mut bytes = Vec::new();
    wrap_into(&mut bytes, "v1", "ConfigMap", b"\x0a\x7f");
    assert_eq!(decode(&bytes, &object), Err(DecodeError::Mistyped("unexpected EOF".into())));
}

/// What a Kubernetes 1.37 server answered for the same objects in JSON and in protobuf.
#[test]
fn answers_of_the_reference_are_the_same_in_both_forms() {
    macro_rules! golden {
        ($($name:literal)*) => {
            [$(($name, include_bytes!(concat!("../golden/", $name, ".json")).as_slice(),
                include_bytes!(concat!("../golden/", $name, ".pb")).as_slice())),*]
        };
    }
    let rows = golden!["pods" "deployments" "leases" "secrets" "services" "customresourcedefinitions"
        "validatingadmissionpolicies" "horizontalpodautoscalers" "ingresses" "status"];
    for (name, text, bytes) in rows {
        let (api_version, kind) = json::type_of(text).expect(name);
        let object = object_type(&api_version, &kind).expect(name);
        let plain: Value = serde_json::from_slice(text).expect(name);
        let from_json = json::decode(text, &object).expect(name);
        assert_eq!((&from_json.value, from_json.problems.len()), (&plain, 0), "{name}");
        let from_protobuf = decode(bytes, &object).expect(name).value;
        assert_eq!(from_protobuf, plain, "{name}");
        assert_eq!(decode(&encode(&plain, &object), &object).expect(name).value, plain, "{name}");
    }
}
