//! What a pod costs on its way through this crate, in µs: `cargo run --example pod_path [ROUNDS]`.
//!
//! Each figure is the least of five runs: decoding JSON, defaults, validation, writing JSON and protobuf, a merge patch and
//! the check of what it made.

use std::hint::black_box;
use std::time::Instant;

use coracle_api::codec::{json, protobuf};
use coracle_api::kinds;
use coracle_api::patch;
use coracle_api::schema;
use serde_json::{Value, json};

const POD: &[u8] = include_bytes!("../src/codec/golden/pods.json");

fn main() {
    let rounds: u32 = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(500);
    let row = kinds::by_resource("", "pods").expect("a kind");
    let schema = schema::named(row.schema).expect("built in");
    let clean = json::decode(POD, &schema).expect("a pod").value;
    let change = json!({"metadata": {"labels": {"a": "b"}}});
    let decode = || black_box(json::decode(POD, &schema).expect("a pod").value);
    let default = |mut pod: Value| {
        schema::apply_defaults(&mut pod, &schema).expect("a pod has few");
        row.strategy.default(&mut pod);
        pod
    };
    let validate = |pod: &Value| {
        let mut errors = Default::default();
        kinds::validate_metadata(row, pod, &mut errors);
        row.strategy.validate(pod, &mut errors);
        black_box(errors.len());
    };
    let time = |name: &str, work: &dyn Fn()| {
        let run = || {
            let start = Instant::now();
            (0..rounds).for_each(|_| work());
            start.elapsed().as_secs_f64() * 1e6 / f64::from(rounds)
        };
        let least = (0..5).map(|_| run()).fold(f64::MAX, f64::min);
        println!("{name:<36} {least:>8.1} µs");
    };
    time("clone", &|| drop(black_box(clean.clone())));
    time("decode JSON", &|| drop(decode()));
    time("defaults", &|| drop(black_box(default(clean.clone()))));
    time("validate", &|| validate(&clean));
    time("encode JSON", &|| drop(black_box(serde_json::to_vec(&clean))));
    time("encode protobuf", &|| drop(black_box(protobuf::encode(&clean, &schema))));
    time("merge patch and check", &|| {
        let mut pod = clean.clone();
        patch::merge(&mut pod, &change).expect("a patch");
        drop(black_box(json::decode_value(&pod, &schema).expect("a pod")));
    });
    time("decode, default, validate, encode", &|| {
        let pod = default(decode());
        validate(&pod);
        drop(black_box(serde_json::to_vec(&pod)));
    });
}
