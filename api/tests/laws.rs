//! Laws of the decoders and patches, and bytes that nobody would send on purpose. Every run is the same: seeds are fixed,
//! mutations are counted, nothing depends on the clock.

use coracle_api::codec::{json, protobuf, yaml};
use coracle_api::custom::{self, Structural};
use coracle_api::meta::Quantity;
use coracle_api::meta::field::FieldErrors;
use coracle_api::meta::selector::{FieldSelector, LabelSelector};
use coracle_api::meta::{field, time};
use coracle_api::patch::{self, apply};
use coracle_api::schema::{self, Object};
use proptest::prelude::*;
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// Mutations of each seed by each test.
const ROUNDS: usize = 400;

macro_rules! golden {
    ($($name:literal),*) => {
        [$(($name,
            include_bytes!(concat!("../src/codec/golden/", $name, ".json")).as_slice(),
            include_bytes!(concat!("../src/codec/golden/", $name, ".pb")).as_slice())),*]
    };
}

const GOLDEN: [(&str, &[u8], &[u8]); 8] = golden!(
    "pods",
    "deployments",
    "services",
    "secrets",
    "leases",
    "ingresses",
    "horizontalpodautoscalers",
    "customresourcedefinitions"
);

/// The lines of a file of the corpus, `\n` and `\t` meant.
fn lines(text: &str) -> Vec<Vec<u8>> {
    text.lines().map(|line| line.replace("\\n", "\n").replace("\\t", "\t").into_bytes()).collect()
}

fn plain_lines(text: &str) -> Vec<Vec<u8>> {
    text.lines().map(|line| line.as_bytes().to_vec()).collect()
}

/// Numbers that look random and are not (xorshift).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % below.max(1) as u64) as usize
    }

    /// A few changes of a seed: flipped bits, pieces cut, doubled, swapped in from another seed, bytes that mean something.
    fn mutate(&mut self, seed: &[u8], others: &[Vec<u8>]) -> Vec<u8> {
        const MEANT: &[u8] = b"{}[]\",:\\\0\xff\x80-.eE0 \n&*!|>'k8s~/=()";
        let mut bytes = seed.to_vec();
        for _ in 0..=self.roll(4) {
            let at = self.roll(bytes.len() + 1);
            let end = (at + self.roll(16)).min(bytes.len());
            match self.roll(7) {
                0 if at < bytes.len() => bytes[at] ^= 1 << self.roll(8),
                1 => bytes.insert(at, MEANT[self.roll(MEANT.len())]),
                2 if at < bytes.len() => bytes[at] = MEANT[self.roll(MEANT.len())],
                3 => drop(bytes.drain(at..end)),
                4 => {
                    let piece = bytes[at..end].to_vec();
                    let times = 1 + self.roll(20);
                    bytes.splice(at..at, piece.repeat(times));
                }
                5 => bytes.truncate(at),
                _ => {
                    let other = &others[self.roll(others.len())];
                    let from = self.roll(other.len() + 1);
                    let to = (from + self.roll(40)).min(other.len());
                    bytes.splice(at..end, other[from..to].iter().copied());
                }
            }
        }
        bytes
    }
}

/// Runs `check` on every seed and its mutations.
fn on_mutations(number: u64, seeds: &[Vec<u8>], check: impl Fn(&[u8])) {
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15 ^ number);
    for seed in seeds {
        check(seed);
        for _ in 0..ROUNDS {
            check(&dice.mutate(seed, seeds));
        }
    }
}

fn types() -> Vec<Arc<Object>> {
    GOLDEN.iter().map(|(_, text, _)| type_of(text)).collect()
}

fn type_of(text: &[u8]) -> Arc<Object> {
    let (api_version, kind) = json::type_of(text).expect("a kind");
    let (group, version) = api_version.split_once('/').unwrap_or(("", &api_version));
    schema::of_kind(group, version, &kind).expect("built in")
}

fn text(value: &Value) -> Vec<u8> {
    serde_json::to_vec(value).expect("JSON")
}

#[test]
fn whatever_is_read_as_json_is_written_and_read_as_itself() {
    let types = types();
    let mut seeds: Vec<Vec<u8>> = GOLDEN.iter().map(|(_, text, _)| text.to_vec()).collect();
    seeds.extend(plain_lines(include_str!("corpus/json.lines")));
    on_mutations(1, &seeds, |bytes| {
        let _ = json::type_of(bytes);
        let _ = json::pretty(bytes);
        if let Ok(value) = json::parse(bytes) {
            assert_eq!(json::parse(&text(&value)).as_ref(), Ok(&value));
            assert_eq!(json::parse(&json::pretty(&text(&value))).as_ref(), Ok(&value));
            assert!(yaml::to_json(yaml::from_json(&value).as_bytes()).is_ok());
        }
        if let Ok(decoded) = json::decode_any(bytes) {
            assert_eq!(json::decode_any(&text(&decoded.value)).expect("it was an object").value, decoded.value);
        }
        for object in &types {
            if let Ok(decoded) = json::decode(bytes, object) {
                let again = json::decode(&text(&decoded.value), object).expect("what was written can be read");
                assert_eq!(again.value, decoded.value, "decoding twice is decoding once");
                let value = json::decode_value(&decoded.value, object).expect("a clean value");
                assert_eq!(value.value, decoded.value, "both ways lead to the same");
            }
        }
    });
}

/// The reader of values takes the short way where it can; the reader of text is the judge.
#[test]
fn values_are_cleaned_as_text_is() {
    let types = types();
    let mut seeds: Vec<Vec<u8>> = GOLDEN.iter().map(|(_, text, _)| text.to_vec()).collect();
    seeds.extend(plain_lines(include_str!("corpus/json.lines")));
    on_mutations(2, &seeds, |bytes| {
        let Ok(value) = json::parse(bytes) else { return };
        for object in &types {
            let (by_value, by_text) = (json::decode_value(&value, object), json::decode(&text(&value), object));
            assert_eq!(by_value, by_text, "{value}");
        }
    });
}

#[test]
fn yaml_ends_and_gives_json() {
    let mut seeds = lines(include_str!("corpus/yaml.lines"));
    seeds.push(include_bytes!("../src/codec/golden/pods.yaml")[..2_000].to_vec());
    seeds.push(include_bytes!("../src/codec/golden/deployments.yaml").to_vec());
    on_mutations(3, &seeds, |bytes| {
        if let Ok(read) = yaml::to_json(bytes) {
            let value = json::parse(&read.bytes).expect("YAML comes out as JSON");
            let again = yaml::to_json(yaml::from_json(&value).as_bytes()).expect("what was written can be read");
            assert_eq!(json::parse(&again.bytes).as_ref(), Ok(&value));
        }
    });
}

#[test]
fn protobuf_is_written_as_it_was_read() {
    let seeds: Vec<Vec<u8>> = GOLDEN.iter().map(|(_, _, bytes)| bytes.to_vec()).collect();
    let types = types();
    on_mutations(4, &seeds, |bytes| {
        let _ = protobuf::open(bytes);
        for object in &types {
            if let Ok(decoded) = protobuf::decode(bytes, object) {
                let encoded = protobuf::encode(&decoded.value, object);
                let again = protobuf::decode(&encoded, object).expect("what was written can be read");
                assert_eq!(protobuf::encode(&again.value, object), encoded);
            }
        }
    });
    for ((name, text, bytes), object) in GOLDEN.iter().zip(&types) {
        let value = json::decode(text, object).expect(name).value;
        assert_eq!(protobuf::decode(bytes, object).expect(name).value, value, "{name}");
        assert_eq!(protobuf::decode(&protobuf::encode(&value, object), object).expect(name).value, value, "{name}");
    }
}

#[test]
fn selectors_and_scalars_are_read_back() {
    let mut seeds = plain_lines(include_str!("corpus/selectors.lines"));
    seeds.extend(plain_lines(include_str!("corpus/scalars.lines")));
    on_mutations(5, &seeds, |bytes| {
        let text = String::from_utf8_lossy(bytes);
        if let Ok(selector) = LabelSelector::parse(&text) {
            let shown = selector.to_string();
            assert_eq!(LabelSelector::parse(&shown).map(|again| again.to_string()).ok(), Some(shown), "{text}");
        }
        if let Ok(selector) = FieldSelector::parse(&text) {
            let shown = selector.to_string();
            assert_eq!(FieldSelector::parse(&shown).map(|again| again.to_string()).ok(), Some(shown), "{text}");
        }
        if let Ok(quantity) = Quantity::parse(&text) {
            let shown = quantity.to_string();
            let again = Quantity::parse(&shown).expect("canonical text");
            assert_eq!((again.cmp(&quantity), again.to_string()), (std::cmp::Ordering::Equal, shown), "{text}");
        }
        if let Some(moment) = time::parse(&text) {
            assert_eq!(
                time::parse(&time::format_micro(moment)).map(|again| again.as_microsecond()),
                Some(moment.as_microsecond()),
                "{text}"
            );
        }
        let _ = field::aggregate([text.into_owned()]);
    });
}

/// Patches of all kinds out of mutated text, against a real object: never a panic, and the result is still readable or refused.
#[test]
fn odd_patches_are_refused_or_leave_something_readable() {
    let pods = schema::of_kind("", "v1", "Pod").expect("built in");
    let pod = json::decode(GOLDEN[0].1, &pods).expect("golden").value;
    let seeds = plain_lines(include_str!("corpus/patches.lines"));
    on_mutations(6, &seeds, |bytes| {
        let Ok(change) = json::parse(bytes) else { return };
        let mut one = pod.clone();
        if patch::json(&mut one, &change).is_ok() {
            let _ = json::decode_value(&one, &pods);
        }
        let mut one = pod.clone();
        if patch::merge(&mut one, &change).is_ok() {
            let once = one.clone();
            patch::merge(&mut one, &change).expect("it merged before");
            assert_eq!(one, once, "a merge patch twice is a merge patch once: {change}");
        }
        let mut one = pod.clone();
        if patch::strategic(&mut one, &change, &pods).is_ok() {
            let _ = json::decode_value(&one, &pods);
        }
        let writer = apply::Writer { manager: "m", now: None };
        if let Ok(applied) = apply::apply(Some(&pod), &change, &target(&pods, "Pod"), &writer, true) {
            let _ = json::decode_value(&applied, &pods);
        }
    });
}

fn target<'a>(object: &'a Object, kind: &'a str) -> apply::Target<'a> {
    apply::Target { object, api_version: "v1", kind, subresource: "", reset: apply::Reset::Nothing }
}

/// The merge patch that makes one object of another (RFC 7386; neither has nulls).
fn difference(from: &Value, to: &Value) -> Value {
    let (Value::Object(from), Value::Object(to)) = (from, to) else { return to.clone() };
    let mut patch = Map::new();
    for (name, old) in from {
        match to.get(name) {
            None => drop(patch.insert(name.clone(), Value::Null)),
            Some(new) if new == old => {}
            Some(new @ Value::Object(_)) if old.is_object() => drop(patch.insert(name.clone(), difference(old, new))),
            Some(new) => drop(patch.insert(name.clone(), new.clone())),
        }
    }
    for (name, new) in to.iter().filter(|(name, _)| !from.contains_key(*name)) {
        patch.insert(name.clone(), new.clone());
    }
    Value::Object(patch)
}

/// JSON without nulls.
fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "[a-z~/\"\\\\ü\n]{0,6}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
            prop::collection::btree_map("[a-d~/]{1,2}", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

fn any_object() -> impl Strategy<Value = Value> {
    prop::collection::btree_map("[a-d~/]{1,2}", any_value(), 0..5)
        .prop_map(|map| Value::Object(map.into_iter().collect()))
}

fn any_map() -> impl Strategy<Value = Map<String, Value>> {
    prop::collection::btree_map("[a-f]", "[a-z]{0,3}".prop_map(Value::from), 0..6)
        .prop_map(|map| map.into_iter().collect())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, rng_seed: prop::test_runner::RngSeed::Fixed(7), ..ProptestConfig::default() })]

    #[test]
    fn a_merge_patch_of_the_difference_makes_the_one_of_the_other(a in any_object(), b in any_object()) {
        let mut made = a.clone();
        patch::merge(&mut made, &difference(&a, &b)).expect("a patch");
        prop_assert_eq!(&made, &b);
        patch::merge(&mut made, &json!({})).expect("a patch");
        prop_assert_eq!(&made, &b);
        patch::merge(&mut made, &b).expect("a patch");
        prop_assert_eq!(&made, &b);
    }

    #[test]
    fn json_patches_can_be_taken_back(a in any_object(), name in "[a-d~/]{1,3}", value in any_value()) {
        let path = format!("/{}", name.replace('~', "~0").replace('/', "~1"));
        let mut changed = a.clone();
        patch::json(&mut changed, &json!([])).expect("nothing to do");
        prop_assert_eq!(&changed, &a);
        patch::json(&mut changed, &json!([{"op": "add", "path": path, "value": value}])).expect("it can be added");
        prop_assert_eq!(&changed[&name], &value);
        let back = match a.get(&name) {
            Some(before) => json!([{"op": "test", "path": path, "value": value}, {"op": "replace", "path": path, "value": before}]),
            None => json!([{"op": "remove", "path": path}]),
        };
        patch::json(&mut changed, &back).expect("it can be taken back");
        prop_assert_eq!(&changed, &a);
    }

    #[test]
    fn any_json_goes_through_text_yaml_and_back(value in any_value()) {
        prop_assert_eq!(&json::parse(&text(&value)).expect("JSON"), &value);
        let read = yaml::to_json(yaml::from_json(&value).as_bytes()).expect("YAML");
        prop_assert_eq!(&json::parse(&read.bytes).expect("JSON"), &value);
    }

    #[test]
    fn strategic_patches_are_idempotent(data in any_map(), change in any_map(), ports in prop::collection::vec(1..6_i64, 0..4)) {
        let services = schema::of_kind("", "v1", "Service").expect("built in");
        let mut service = json!({"metadata": {"annotations": data}, "spec": {"ports": [{"port": 1, "name": "a"}, {"port": 9, "name": "b"}]}});
        let before = service.clone();
        patch::strategic(&mut service, &json!({}), &services).expect("nothing to do");
        prop_assert_eq!(&service, &before);
        let mut unique = ports;
        unique.sort_unstable();
        unique.dedup();
        let ports: Vec<Value> = unique.iter().map(|port| json!({"port": port, "protocol": "UDP"})).collect();
        let change = json!({"metadata": {"annotations": change}, "spec": {"ports": ports}});
        patch::strategic(&mut service, &change, &services).expect("a patch");
        let once = service.clone();
        patch::strategic(&mut service, &change, &services).expect("a patch");
        prop_assert_eq!(&service, &once);
        for port in unique {
            prop_assert!(service["spec"]["ports"].as_array().expect("ports").iter().any(|one| one["port"] == port && one["protocol"] == "UDP"));
        }
    }

    #[test]
    fn applies_are_idempotent_and_commute_where_they_are_apart(data in any_map(), left in any_map(), right in any_map()) {
        let maps = schema::of_kind("", "v1", "ConfigMap").expect("built in");
        let target = target(&maps, "ConfigMap");
        let live = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x", "uid": "u"}, "data": data});
        let config = |prefix: &str, data: &Map<String, Value>| {
            let data: Map<String, Value> = data.iter().map(|(key, value)| (format!("{prefix}{key}"), value.clone())).collect();
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}, "data": data})
        };
        let by = |live: &Value, manager: &str, config: &Value| {
            apply::apply(Some(live), config, &target, &apply::Writer { manager, now: None }, false).expect("no conflict")
        };
        let (left, right) = (config("l", &left), config("r", &right));
        let once = by(&live, "left", &left);
        prop_assert_eq!(&by(&once, "left", &left), &once);
        let (one_way, other_way) = (by(&once, "right", &right), by(&by(&live, "right", &right), "left", &left));
        prop_assert_eq!(&one_way["data"], &other_way["data"]);
        prop_assert_eq!(&one_way["metadata"], &other_way["metadata"]);
        // Who lets go of everything leaves what the others have.
        let let_go = by(&one_way, "left", &config("l", &Map::new()));
        // Nothing and an empty map are the same once it is decoded.
        let data = |object: &Value| object["data"].as_object().cloned().unwrap_or_default();
        prop_assert_eq!(data(&let_go), data(&by(&live, "right", &right)));
    }
}

/// A schema of a custom resource's field, without its default.
fn any_plain_schema() -> BoxedStrategy<Value> {
    let leaf = prop_oneof![
        (0..9).prop_map(|most| json!({"type": "string", "maxLength": most})),
        (0..9).prop_map(|most| json!({"type": "integer", "maximum": most})),
        Just(json!({"type": "string", "nullable": true, "pattern": "^[a-c]+$"})),
        Just(json!({"type": "boolean", "default": true})),
        Just(json!({"type": "integer", "default": 7, "minimum": 3})),
        Just(json!({"type": "string", "default": "b", "enum": ["a", "b"]})),
        Just(json!({"type": "string", "default": "n", "nullable": true})),
        Just(json!({"x-kubernetes-int-or-string": true, "default": 80})),
        Just(json!({"x-kubernetes-preserve-unknown-fields": true})),
    ];
    leaf.prop_recursive(4, 40, 4, |inner| {
        let properties = prop::collection::btree_map("[a-d]", inner.clone(), 0..4);
        let required = prop::collection::btree_set("[a-d]", 0..2);
        let lists = prop::sample::select(vec!["atomic", "set"]);
        prop_oneof![
            (properties, required, any::<[bool; 3]>()).prop_map(|(properties, required, [open, filled, nullable])| {
                let mut schema =
                    json!({"type": "object", "properties": properties, "required": required, "nullable": nullable});
                if open {
                    schema["x-kubernetes-preserve-unknown-fields"] = json!(true);
                }
                if filled {
                    schema["default"] = json!({});
                }
                schema
            }),
            inner.clone().prop_map(|of| json!({"type": "object", "additionalProperties": of, "maxProperties": 3})),
            (inner, lists)
                .prop_map(|(items, lists)| json!({"type": "array", "items": items, "x-kubernetes-list-type": lists})),
        ]
    })
    .boxed()
}

/// What somebody may send for it: its fields, others, nulls, the wrong types.
fn any_sent() -> BoxedStrategy<Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-3..12_i64).prop_map(Value::from),
        (0..8_u8).prop_map(|half| json!(f64::from(half) / 2.0)),
        "[a-e]{0,4}".prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 40, 5, |inner| {
        prop_oneof![
            3 => prop::collection::btree_map("[a-e]", inner.clone(), 0..5).prop_map(|fields| json!(fields)),
            1 => prop::collection::vec(inner, 0..4).prop_map(Value::from),
        ]
    })
    .boxed()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, rng_seed: prop::test_runner::RngSeed::Fixed(11), ..ProptestConfig::default() })]

    /// What is kept of a custom resource is all that is ever made of it: read again it is the same, with the same faults.
    #[test]
    fn a_custom_resource_that_is_read_again_is_the_same(of in any_plain_schema(), sent in any_sent()) {
        let schema = Structural::read(&json!({"type": "object", "properties": {"spec": of}}));
        let read = |object: &Value| {
            let mut decoded = custom::decode(object.to_string().as_bytes(), &schema).expect("an object");
            custom::apply_defaults(&mut decoded.value, &schema).unwrap();
            let mut faults = FieldErrors::new();
            custom::validate(&schema, &decoded.value, None, "", &mut faults);
            let faults: Vec<_> = faults.into_told().iter().map(ToString::to_string).collect();
            (decoded.value, decoded.problems, faults)
        };
        let (once, _, faults) = read(&json!({"apiVersion": "e.com/v1", "kind": "E", "metadata": {"name": "e"}, "spec": sent}));
        let (twice, unknown, again) = read(&once);
        prop_assert_eq!(&twice, &once);
        prop_assert_eq!(again, faults);
        prop_assert!(unknown.is_empty(), "{:?}", unknown);
    }
}
