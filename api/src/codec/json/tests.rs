use serde_json::{Value, json};

use super::*;
use crate::schema;

fn of(kind: &str) -> std::sync::Arc<Object> {
    let (group, version, kind) = match kind {
        "Deployment" => ("apps", "v1", kind),
        "Lease" => ("coordination.k8s.io", "v1", kind),
        "CustomResourceDefinition" => ("apiextensions.k8s.io", "v1", kind),
        _ => ("", "v1", kind),
    };
    schema::of_kind(group, version, kind).expect("a built-in kind")
}

fn read(kind: &str, text: &str) -> Decoded {
    decode(text.as_bytes(), &of(kind)).expect(text)
}

/// Nothing in their place would be taken for what was sent.
#[test]
fn numbers_beyond_doubles_are_none() {
    for text in ["1e400", "-1e400", "[1e400]"] {
        let number = text.trim_matches(['[', ']']);
        let expected = format!("json: cannot unmarshal number {number} into Go value of type float64");
        assert_eq!(parse(text.as_bytes()).unwrap_err().to_string(), expected);
        let body = format!(r#"{{"spec": {text}}}"#);
        assert_eq!(decode_any(body.as_bytes()).unwrap_err().to_string(), format!("{PARSE_ERROR}{expected}"));
    }
    assert_eq!(parse(b"1e308").unwrap(), json!(1e308));
}

/// The rows of `decode.http` that the reference server answered.
#[test]
fn wrong_types_are_told_in_the_words_of_the_reference() {
    let field = "json: cannot unmarshal";
    let quantity = "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";
    let rows = [
        (
            "ConfigMap",
            r#"{"metadata": "x"}"#,
            format!("{field} string into Go struct field ConfigMap.metadata of type v1.ObjectMeta"),
        ),
        (
            "Pod",
            r#"{"spec": {"containers": {"name": "c"}}}"#,
            format!("{field} object into Go struct field PodSpec.spec.containers of type []v1.Container"),
        ),
        ("Pod", r#"{"spec": []}"#, format!("{field} array into Go struct field Pod.spec of type v1.PodSpec")),
        (
            "Pod",
            r#"{"spec": {"volumes": [{"name": "v", "hostPath": 1}]}}"#,
            format!(
                "{field} number into Go struct field Volume.spec.volumes.VolumeSource.hostPath of type v1.HostPathVolumeSource"
            ),
        ),
        (
            "Pod",
            r#"{"spec": {"containers": [{"imagePullPolicy": 1}]}}"#,
            format!(
                "{field} number into Go struct field Container.spec.containers.imagePullPolicy of type v1.PullPolicy"
            ),
        ),
        (
            "Deployment",
            r#"{"spec": {"replicas": 1.0}}"#,
            format!("{field} number 1.0 into Go struct field DeploymentSpec.spec.replicas of type int32"),
        ),
        (
            "Deployment",
            r#"{"metadata": {"generation": 99999999999999999999}, "spec": {"replicas": 1e400}}"#,
            format!(
                "{field} number 99999999999999999999 into Go struct field ObjectMeta.metadata.generation of type int64"
            ),
        ),
        (
            "ConfigMap",
            r#"{"immutable": 1}"#,
            format!("{field} number into Go struct field ConfigMap.immutable of type bool"),
        ),
        (
            "ConfigMap",
            r#"{"metadata": {"labels": {"a": 1}}}"#,
            format!("{field} number into Go struct field ObjectMeta.metadata.labels of type string"),
        ),
        ("Secret", r#"{"data": {"a": "not base64!"}}"#, "illegal base64 data at input byte 3".into()),
        (
            "Service",
            r#"{"spec": {"ports": [{"port": 80, "targetPort": true}]}}"#,
            format!("{field} bool into Go struct field ServicePort.spec.ports.targetPort of type int32"),
        ),
        ("Secret", r#"{"data": {"a": "YQ=x"}}"#, "illegal base64 data at input byte 2".into()),
        ("Secret", r#"{"data": {"a": 5}}"#, format!("{field} number into Go struct field Secret.data of type []uint8")),
        (
            "Pod",
            r#"{"spec": {"containers": [{"resources": {"limits": []}}]}}"#,
            format!(
                "{field} array into Go struct field ResourceRequirements.spec.containers.resources.limits of type v1.ResourceList"
            ),
        ),
        (
            "Service",
            r#"{"spec": {"ports": [{"port": 80, "targetPort": 1.5}]}}"#,
            format!("{field} number 1.5 into Go struct field ServicePort.spec.ports.targetPort of type int32"),
        ),
        (
            "ConfigMap",
            r#"{"metadata": {"creationTimestamp": 5}}"#,
            format!("{field} number into Go struct field ObjectMeta.metadata.creationTimestamp of type string"),
        ),
        (
            "ConfigMap",
            r#"{"metadata": {"uid": 5, "ownerReferences": [{"uid": 1}]}}"#,
            format!("{field} number into Go struct field ObjectMeta.metadata.uid of type types.UID"),
        ),
        (
            "CustomResourceDefinition",
            r#"{"spec": {"versions": [{"schema": {"openAPIV3Schema": {"properties": {"a": {"items": {"type": 5}}}}}}]}}"#,
            format!(
                "{field} number into Go struct field \
                 JSONSchemaProps.spec.versions.schema.openAPIV3Schema.properties.items.type of type string"
            ),
        ),
        (
            "CustomResourceDefinition",
            r#"{"spec": {"versions": [{"schema": {"openAPIV3Schema": {"additionalProperties": 5}}}]}}"#,
            "boolean or JSON schema expected".into(),
        ),
        ("PersistentVolumeClaim", r#"{"spec": {"resources": {"requests": {"storage": {}}}}}"#, quantity.into()),
        ("PersistentVolumeClaim", r#"{"spec": {"resources": {"requests": {"storage": ""}}}}"#, quantity.into()),
        // A value refused by its own reader wins over a wrong type before it.
        (
            "Lease",
            r#"{"metadata": 1, "spec": {"renewTime": "x"}}"#,
            r#"parsing time "x" as "2006-01-02T15:04:05.000000Z07:00": cannot parse "x" as "2006""#.into(),
        ),
    ];
    for (kind, text, expected) in rows {
        assert_eq!(decode(text.as_bytes(), &of(kind)), Err(DecodeError::Mistyped(expected)), "{text}");
    }
}

#[test]
fn what_is_no_json_is_told_in_the_words_of_the_reference() {
    let structure =
        r#"struct { APIVersion string "json:\"apiVersion,omitempty\""; Kind string "json:\"kind,omitempty\"" }"#;
    let deep = "[".repeat(10_001);
    let rows = [
        ("", "unexpected end of JSON input".to_owned()),
        ("\"x\"", format!("json: cannot unmarshal string into Go value of type {structure}")),
        ("[]", format!("json: cannot unmarshal array into Go value of type {structure}")),
        ("{} {}", "invalid character '{' after top-level value".into()),
        ("apiVersion: v1", "invalid character 'a' looking for beginning of value".into()),
        (r#"{"a" 1}"#, "invalid character '1' after object key".into()),
        (r#"{"a": 1,}"#, "invalid character '}' looking for beginning of object key string".into()),
        (r#"{"a": 1 "b"}"#, "invalid character '\"' after object key:value pair".into()),
        (r#"{"a": [1 2]}"#, "invalid character '2' after array element".into()),
        (r#"{"a": [1,]}"#, "invalid character ']' looking for beginning of value".into()),
        (r#"{"a": tru}"#, "invalid character '}' in literal true (expecting 'e')".into()),
        (r#"{"a": 1.x}"#, "invalid character 'x' after decimal point in numeric literal".into()),
        (r#"{"a": -}"#, "invalid character '}' in numeric literal".into()),
        (r#"{"a": "\x"}"#, "invalid character 'x' in string escape code".into()),
        ("{\"a\": \"\n\"}", r"invalid character '\n' in string literal".into()),
        (&deep, "invalid character '[' exceeded max depth".into()),
        // A syntax error wins over a wrong type before it.
        (r#"{"metadata": 1, "data": "#, "unexpected end of JSON input".into()),
    ];
    for (text, expected) in rows {
        let expected = Err(DecodeError::Unrecognized(format!("{PARSE_ERROR}{expected}")));
        assert_eq!(decode(text.as_bytes(), &of("ConfigMap")), expected, "{text:.40}");
    }
}

#[test]
fn strict_problems_come_in_the_order_of_the_text() {
    let rows: [(&str, &str, &[&str]); 4] = [
        (
            "ConfigMap",
            r#"{"Kind": "ConfigMap", "kind": "ConfigMap", "metadata": {"Name": "x", "name": "case"}, "DATA": {"k": "v"}}"#,
            &[r#"unknown field "Kind""#, r#"unknown field "metadata.Name""#, r#"unknown field "DATA""#],
        ),
        (
            "ConfigMap",
            r#"{"metadata": {"name": "x", "name": "y"}, "data": {"k": "v", "k": "w"}}"#,
            &[r#"duplicate field "metadata.name""#, r#"duplicate field "data.k""#],
        ),
        (
            "Pod",
            r#"{"metadata": {"color": "red"}, "spec": {"containers": [{"imagepullpolicy": "Never", "ports": [{"containerport": 1}]}],
                "foo": {"bar": 1}}, "statuss": {}}"#,
            &[
                r#"unknown field "metadata.color""#,
                r#"unknown field "spec.containers[0].imagepullpolicy""#,
                r#"unknown field "spec.containers[0].ports[0].containerport""#,
                r#"unknown field "spec.foo""#,
                r#"unknown field "statuss""#,
            ],
        ),
        (
            "Pod",
            r#"{"spec": {"hostNetwork": false, "hostNetwork": false}}"#,
            &[r#"duplicate field "spec.hostNetwork""#],
        ),
    ];
    for (kind, text, expected) in rows {
        assert_eq!(read(kind, text).problems, expected, "{text}");
    }
    let twice = read(
        "ConfigMap",
        r#"{"metadata": {"name": "x"}, "data": {"a": "1"}, "data": {"b": "2"}, "metadata": {"uid": "u"}}"#,
    );
    assert_eq!(twice.value, json!({"metadata": {"name": "x", "uid": "u"}, "data": {"a": "1", "b": "2"}}));
    let any = decode_any(br#"{"spec": {"a": [{"b": 1, "b": 2}]}, "spec": {}}"#).expect("JSON");
    assert_eq!(any.problems, [r#"duplicate field "spec.a[0].b""#, r#"duplicate field "spec""#]);
}

#[test]
fn an_object_comes_out_as_go_would_write_it() {
    let rows = [
        (
            "ConfigMap",
            r#"{"metadata": {"name": "nulls", "labels": null, "annotations": {"a": null}}, "data": {"k": null}, "immutable": null}"#,
            json!({"metadata": {"name": "nulls", "annotations": {"a": ""}}, "data": {"k": ""}}),
        ),
        (
            "Pod",
            r#"{"spec": {"containers": [{"name": "c", "image": "", "resources": {"limits": {"memory": "1024Mi", "cpu": 0.5}}}],
                "hostNetwork": false, "automountServiceAccountToken": false, "tolerations": []}}"#,
            json!({"metadata": {}, "spec": {"containers": [{"name": "c", "resources": {"limits": {"memory": "1Gi", "cpu": "500m"}}}],
                "automountServiceAccountToken": false}, "status": {}}),
        ),
        (
            "Service",
            r#"{"spec": {"ports": [{"port": 80}]}}"#,
            json!({"metadata": {}, "spec": {"ports": [{"port": 80, "targetPort": 0}]}, "status": {"loadBalancer": {}}}),
        ),
        (
            "Deployment",
            r#"{"metadata": {"creationTimestamp": "2024-01-02T03:04:05.6+01:00"}, "spec": {"replicas": 0, "selector": null}}"#,
            json!({"metadata": {"creationTimestamp": "2024-01-02T02:04:05Z"}, "spec": {"replicas": 0, "selector": null, "strategy": {},
                "template": {"metadata": {}, "spec": {"containers": null}}}, "status": {}}),
        ),
        ("ConfigMap", "null", json!({})),
    ];
    for (kind, text, mut expected) in rows {
        let clean = read(kind, text).value;
        // Every object has metadata; the row says it where it matters.
        let mut found = clean.clone();
        for value in [&mut found, &mut expected] {
            let fields = value.as_object_mut().expect("an object");
            if fields.get("metadata") == Some(&json!({})) {
                fields.remove("metadata");
            }
        }
        assert_eq!(found, expected, "{text}");
        assert_eq!(decode_value(&clean, &of(kind)).expect("clean").value, clean);
    }
}

#[test]
fn schemas_within_schemas_are_read_too() {
    let text = r#"{"spec": {"versions": [{"name": "v1", "schema": {"openAPIV3Schema": {"type": "object", "properties": {
        "a": {"type": "array", "items": {"type": "string", "nope": 1}}, "b": {"additionalProperties": true}}}}}]}}"#;
    let decoded = read("CustomResourceDefinition", text);
    let properties = &decoded.value["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"];
    assert_eq!(properties["a"]["items"], json!({"type": "string"}));
    assert_eq!(properties["b"]["additionalProperties"], json!(true));
    assert!(decoded.problems.is_empty(), "{:?}", decoded.problems);
}

#[test]
fn strings_are_read_as_go_reads_them() {
    let rows = [
        (r#""a\u00e9\n\/""#, "aé\n/"),
        (r#""\ud83d\ude00""#, "😀"),
        (r#""\ud83d""#, "\u{fffd}"),
        (r#""\ud83d\u0041""#, "\u{fffd}A"),
    ];
    for (text, expected) in rows {
        let found = read("ConfigMap", &format!(r#"{{"data": {{"k": {text}}}}}"#));
        assert_eq!(found.value["data"]["k"], Value::from(expected), "{text}");
    }
    let mut invalid = br#"{"data": {"k": "x"}}"#.to_vec();
    invalid[16] = 0xff;
    let found = decode(&invalid, &of("ConfigMap")).expect("taken");
    assert_eq!(found.value["data"]["k"], "\u{fffd}");
}

#[test]
fn the_kind_can_be_looked_at_alone() {
    assert_eq!(
        type_of(br#"{"spec": {"kind": "x"}, "kind": "Pod", "apiVersion": "v1"}"#),
        Ok(("v1".into(), "Pod".into()))
    );
    let words = "couldn't get version/kind; json parse error: json: cannot unmarshal number into Go struct field .kind of type string";
    assert_eq!(type_of(br#"{"kind": 1}"#), Err(DecodeError::Unrecognized(words.into())));
}

#[test]
fn whatever_is_cut_off_or_changed_is_an_error_or_another_object() {
    let text = include_bytes!("../golden/pods.json");
    let object = of("Pod");
    for at in (0..text.len()).step_by(7) {
        assert!(decode(&text[..at], &object).is_err());
        for flip in [0x01, 0x20, 0x80] {
            let mut changed = text.to_vec();
            changed[at] ^= flip;
            let _ = (
                decode(&changed, &object),
                decode_any(&changed),
                type_of(&changed),
                crate::codec::yaml::to_json(&changed),
            );
        }
    }
}

/// Whatever form they come in, and however they are hidden.
#[test]
fn a_body_has_a_bounded_number_of_objects() {
    use crate::codec::{OBJECTS_MAX, protobuf};
    let pods = schema::named("io.k8s.api.core.v1.Pod").unwrap();
    let containers = |count: usize| format!("{{\"spec\":{{\"containers\":[{}{{}}]}}}}", "{},".repeat(count - 1));
    // The pod and its spec are two.
    assert!(decode(containers(OBJECTS_MAX - 3).as_bytes(), &pods).is_ok());
    for count in [OBJECTS_MAX, 1_000_000] {
        let failed = decode(containers(count).as_bytes(), &pods).unwrap_err();
        assert!(failed.to_string().contains("more than 100000 objects"), "{failed}");
    }
    let raw = |count: usize| format!("[{}{{}}]", "{\"\":0},".repeat(count));
    assert!(parse_body(raw(OBJECTS_MAX).as_bytes()).is_ok());
    assert!(parse_body(raw(OBJECTS_MAX + 1).as_bytes()).is_err());
    assert!(parse(raw(OBJECTS_MAX + 1).as_bytes()).is_ok(), "what is stored can be read");
    // field 2 (spec), whose field 2 are containers of no bytes.
    let items: Vec<u8> = [2 << 3 | 2, 0].repeat(OBJECTS_MAX);
    let mut message = vec![2 << 3 | 2];
    let mut length = items.len();
    while length >= 0x80 {
        message.push(length as u8 | 0x80);
        length >>= 7;
    }
    message.push(length as u8);
    message.extend_from_slice(&items);
    let failed = protobuf::decode_raw(&message, &pods).unwrap_err();
    assert!(failed.to_string().contains("more than 100000 objects"), "{failed}");
}
