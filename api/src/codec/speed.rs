//! Figures of the codecs: `cargo test --release -p coracle-api speed -- --ignored --nocapture`.

use std::time::Instant;

use crate::codec::{json, protobuf};
use crate::schema;

#[test]
#[ignore = "prints figures"]
fn speed() {
    let text = include_bytes!("golden/pods.json");
    let object = schema::of_kind("", "v1", "Pod").expect("built in");
    let value = json::decode(text, &object).expect("a pod").value;
    let bytes = protobuf::encode(&value, &object);
    let time = |name: &str, length: usize, work: &dyn Fn()| {
        const TIMES: u32 = 2_000;
        let start = Instant::now();
        (0..TIMES).for_each(|_| work());
        println!("{name}: {length} bytes in {:.1} us", start.elapsed().as_secs_f64() * 1e6 / f64::from(TIMES));
    };
    time("json decode", text.len(), &|| drop(json::decode(text, &object)));
    time("serde_json alone", text.len(), &|| drop(serde_json::from_slice::<serde_json::Value>(text)));
    time("json encode", text.len(), &|| drop(serde_json::to_vec(&value)));
    time("protobuf decode", bytes.len(), &|| drop(protobuf::decode(&bytes, &object)));
    time("protobuf encode", bytes.len(), &|| drop(protobuf::encode(&value, &object)));
}
