//! What nests as deep as is accepted can be read, patched, compared, written and dropped, on a stack of 2 MiB as workers
//! have it, in a debug build; one level more is refused by every reader.

use coracle_api::codec::{DEPTH_MAX, STRUCTURES_MAX, depth, json, protobuf, yaml};
use coracle_api::kinds::{self, FieldErrors};
use coracle_api::patch::{self, apply};
use coracle_api::schema;
use serde_json::{Value, json};

/// Runs on the stack of a worker.
fn on_a_worker(work: impl FnOnce() + Send + 'static) {
    std::thread::Builder::new().stack_size(2 << 20).spawn(work).expect("a thread").join().expect("no panic");
}

/// Text of JSON that nests so deep.
fn objects(levels: usize) -> String {
    "{\"f:a\":".repeat(levels) + "1" + &"}".repeat(levels)
}

fn lists(levels: usize) -> String {
    "[".repeat(levels) + &"]".repeat(levels)
}

fn revision(data: &str) -> String {
    format!(
        "{{\"apiVersion\":\"apps/v1\",\"kind\":\"ControllerRevision\",\"metadata\":{{\"name\":\"x\",\"namespace\":\"n\"}},\
         \"data\":{data},\"revision\":1}}"
    )
}

#[test]
fn what_is_accepted_goes_all_the_way() {
    on_a_worker(|| {
        let row = kinds::by_resource("apps", "controllerrevisions").expect("a kind");
        let schema = schema::named(row.schema).expect("a type");
        for data in [objects(DEPTH_MAX - 1), lists(DEPTH_MAX - 1)] {
            let text = revision(&data);
            let decoded = json::decode(text.as_bytes(), &schema).expect("as deep as it may be");
            let mut object = decoded.value;
            assert_eq!(depth(&object), DEPTH_MAX);
            assert_eq!(json::parse(text.as_bytes()).as_ref(), Ok(&object));
            assert_eq!(json::decode_value(&object, &schema).expect("it is what it was").value, object);
            let any = json::decode_any(text.as_bytes()).expect("any object");
            assert_eq!(any.value, object);

            let copy = object.clone();
            schema::apply_defaults(&mut object, &schema).unwrap();
            row.strategy.default(&mut object);
            row.strategy.validate(&object, &mut FieldErrors::new());
            row.strategy.validate_update(&object, &copy, &mut FieldErrors::new());
            patch::merge(&mut object, &copy).expect("merges");
            patch::strategic(&mut object, &json!({"metadata": {"labels": {"a": "b"}}}), &schema).expect("merges");
            patch::merge(&mut object, &json!({"metadata": {"labels": null}})).expect("merges");
            let operations = json!([{"op": "test", "path": "/data", "value": copy["data"]}, {"op": "replace", "path": "/data", "value": copy["data"]}]);
            patch::json(&mut object, &operations).expect("patches");
            assert_eq!(object, copy);

            let stored = serde_json::to_vec(&object).expect("JSON");
            assert_eq!(json::parse(&stored).as_ref(), Ok(&object), "stored bytes");
            assert!(json::pretty(&stored).ends_with(b"\n"));
            assert!(!yaml::from_json(&object).is_empty());
            let bytes = protobuf::encode(&object, &schema);
            assert_eq!(protobuf::decode(&bytes, &schema).expect("as deep as JSON").value, object);
        }
        let nested = yaml::to_json(lists(DEPTH_MAX).as_bytes()).expect("YAML");
        assert_eq!(depth(&json::parse(&nested.bytes).expect("JSON")), DEPTH_MAX);
    });
}

#[test]
fn managed_fields_may_nest_as_deep() {
    on_a_worker(|| {
        let row = kinds::by_resource("", "configmaps").expect("a kind");
        let schema = schema::named(row.schema).expect("a type");
        let fields = "{\"f:a\":".repeat(DEPTH_MAX - 5) + "{}" + &"}".repeat(DEPTH_MAX - 5);
        let text = format!(
            "{{\"metadata\":{{\"name\":\"x\",\"managedFields\":[{{\"manager\":\"m\",\"operation\":\"Update\",\"apiVersion\":\"v1\",\
             \"fieldsType\":\"FieldsV1\",\"fieldsV1\":{fields}}}]}}}}"
        );
        let object = json::decode(text.as_bytes(), &schema).expect("as deep as it may be").value;
        let target = apply::Target {
            object: &schema,
            api_version: "v1",
            kind: "ConfigMap",
            subresource: "",
            reset: apply::Reset::Nothing,
        };
        let mut new = object.clone();
        new["data"] = json!({"a": "b"});
        apply::track_update(Some(&object), &mut new, &target, &apply::Writer { manager: "w", now: None });
        assert!(apply::equal_but_times(&new, &new.clone()));
        assert!(depth(&new) <= DEPTH_MAX);
    });
}

#[test]
fn one_level_more_is_refused_by_every_reader() {
    on_a_worker(|| {
        let schema = schema::of_kind("apps", "v1", "ControllerRevision").expect("a type");
        for data in [objects(DEPTH_MAX), lists(DEPTH_MAX), lists(200_000)] {
            let text = revision(&data);
            let words = json::decode(text.as_bytes(), &schema).expect_err("too deep").to_string();
            assert!(words.contains("exceeded max depth"), "{words}");
            assert!(json::decode_any(text.as_bytes()).is_err() && json::parse(text.as_bytes()).is_err());
        }
        assert!(yaml::to_json(lists(DEPTH_MAX + 1).as_bytes()).is_err());
        // Each alias nests what the one before it has.
        let mut text = String::from("a0: &a0 [x]\n");
        for n in 1..300 {
            text.push_str(&format!("a{n}: &a{n} {}*a{}{}\n", "[".repeat(500), n - 1, "]".repeat(500)));
        }
        assert!(yaml::to_json(text.as_bytes()).is_err());
        // Raw JSON within a message, and messages within messages.
        let mut deep =
            json!({"apiVersion": "apps/v1", "kind": "ControllerRevision", "metadata": {"name": "x"}, "revision": 1});
        deep["data"] = json::parse(objects(DEPTH_MAX).as_bytes()).expect("alone it is not too deep");
        let bytes = protobuf::encode(&deep, &schema);
        assert!(protobuf::decode(&bytes, &schema).is_err());
        let props =
            schema::named("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps").expect("a type");
        let nested = |levels: usize| (0..levels).fold(json!({"type": "string"}), |inner, _| json!({ "not": inner }));
        let mut out = Vec::new();
        protobuf::encode_raw_into(&mut out, &nested(STRUCTURES_MAX - 1), &props);
        let read: Value = protobuf::decode_raw(&out, &props).expect("as deep as JSON");
        assert_eq!(depth(&read), STRUCTURES_MAX);
        let text = nested(STRUCTURES_MAX - 1).to_string();
        assert_eq!(json::decode(text.as_bytes(), &props).expect("as deep as protobuf").value, read);
        assert_eq!(json::decode_value(&read, &props).expect("as deep as text").value, read);
        let text = nested(STRUCTURES_MAX).to_string();
        assert!(json::decode(text.as_bytes(), &props).is_err());
        assert!(json::decode_value(&nested(STRUCTURES_MAX), &props).is_err());
        out.clear();
        protobuf::encode_raw_into(&mut out, &nested(STRUCTURES_MAX), &props);
        assert!(protobuf::decode_raw(&out, &props).is_err());
    });
}
