//! YAML as Kubernetes' server reads and writes it: YAML 1.1 with Go's reading of scalars (`y` is true, `010` is eight,
//! `2024-01-02` is text), turned into JSON first and decoded as JSON then.

mod emit;
mod node;
mod resolve;

pub use emit::from_json;

use super::DecodeError;

/// YAML turned into JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Json {
    /// The JSON text of the first document; keys are sorted, `null` when there is no document.
    pub bytes: Vec<u8>,
    /// Keys that stand twice, in the words of strict decoding; at most one problem that names them all. They come before
    /// the problems of decoding the JSON.
    pub problems: Vec<String>,
}

/// Turns the first document into JSON.
///
/// # Errors
/// Text that is no YAML, that nests too deeply, or whose aliases unfold into too much.
pub fn to_json(bytes: &[u8]) -> Result<Json, DecodeError> {
    let unrecognized = |words: String| DecodeError::Unrecognized(format!("yaml: {words}"));
    // The parser is a port of libyaml whose remaining panics are for "impossible" states; a request must not end a task.
    let parsed = std::panic::catch_unwind(|| node::parse(bytes));
    let document = match parsed {
        Ok(document) => document.map_err(unrecognized)?,
        Err(_) => return Err(unrecognized("unknown problem parsing YAML content".to_owned())),
    };
    let Some(document) = document else { return Ok(Json { bytes: b"null".to_vec(), problems: Vec::new() }) };
    let mut unfolding = resolve::Unfolding::default();
    let value = unfolding.value(&document).map_err(|error| match error {
        resolve::Failure::Yaml(words) => unrecognized(words),
        resolve::Failure::Json(words) => DecodeError::Unrecognized(words),
    })?;
    let problems = match unfolding.twice.as_slice() {
        [] => Vec::new(),
        lines => vec![format!("yaml: unmarshal errors:\n  {}", lines.join("\n  "))],
    };
    Ok(Json { bytes: serde_json::to_vec(&value).unwrap_or_default(), problems })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(text: &str) -> Value {
        serde_json::from_slice(&to_json(text.as_bytes()).expect(text).bytes).expect(text)
    }

    #[test]
    fn scalars_are_read_as_go_reads_them() {
        let rows = [
            ("y", json!(true)),
            ("'y'", json!("y")),
            ("Off", json!(false)),
            ("~", json!(null)),
            ("010", json!(8)),
            ("0o17", json!(15)),
            ("0x1F", json!(31)),
            ("0b11", json!(3)),
            ("1_000", json!(1000)),
            ("1e3", json!(1000)),
            ("1.5", json!(1.5)),
            (".5", json!(0.5)),
            ("1.", json!(1)),
            ("08", json!(8)),
            ("1.2.3", json!("1.2.3")),
            ("12:30", json!("12:30")),
            ("2024-01-02", json!("2024-01-02")),
            ("2024-01-02T03:04:05Z", json!("2024-01-02T03:04:05Z")),
            ("18446744073709551615", json!(18_446_744_073_709_551_615_u64)),
            ("!!str 5", json!("5")),
            ("!!int \"5\"", json!(5)),
            ("!!float 5", json!(5)),
            ("!!binary YQ==", json!("a")),
            ("\"\\u00e9\"", json!("é")),
            ("1Gi", json!("1Gi")),
            ("-", json!([null])),
        ];
        for (text, expected) in rows {
            assert_eq!(read(text), expected, "{text}");
        }
    }

    #[test]
    fn keys_become_text_and_anchors_and_merges_unfold() {
        assert_eq!(read("{1: a, true: b, 1.5: c}"), json!({"1": "a", "true": "b", "1.5": "c"}));
        assert_eq!(
            read("a: &l {x: 1, y: 2}\nb: {<<: *l, x: 3}"),
            json!({"a": {"x": 1, "true": 2}, "b": {"x": 3, "true": 2}})
        );
        assert_eq!(read("a: &l [1]\nb: *l\n---\nc: 1"), json!({"a": [1], "b": [1]}));
        assert_eq!(read(""), json!(null));
    }

    #[test]
    fn keys_that_stand_twice_are_one_problem() {
        let found = to_json(b"a: 1\nb: {k: v, k: w}\na: 2\n").expect("YAML");
        assert_eq!(found.bytes, br#"{"a":2,"b":{"k":"w"}}"#);
        let expected =
            "yaml: unmarshal errors:\n  line 2: key \"k\" already set in map\n  line 3: key \"a\" already set in map";
        assert_eq!(found.problems, [expected]);
    }

    #[test]
    fn what_is_wrong_is_told_as_go_tells_it() {
        let bomb = "a: &a [x,x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b,*b]\n\
                    d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: [*d,*d,*d,*d,*d,*d,*d,*d,*d,*d]\n";
        let deep = "[".repeat(100_000);
        let text = "x".repeat(100_000);
        let wide = format!("a: &a {text}\nb: [{}]", ["*a"; 100].join(","));
        let keys = format!("a: &a {text}\nb: [{}]", ["{*a : 1}"; 100].join(","));
        let merged = format!("a: &a\n  ? {text}\n  : 1\nb: [{}]", ["{<<: *a}"; 100].join(","));
        let rows = [
            ("apiVersion: v1\nkind: [ConfigMap\n", "yaml: line 2: did not find expected ',' or ']'"),
            ("kind: ConfigMap\na:\n\tb: c\n", "yaml: line 3: found character that cannot start any token"),
            (
                "apiVersion: v1\nkind: ConfigMap\n data: x\n",
                "yaml: line 3: mapping values are not allowed in this context",
            ),
            ("{{a: b}: c}", r#"yaml: invalid map key: map[interface {}]interface {}{"a":"b"}"#),
            ("{~: a}", r#"unsupported map key of type: %!s(<nil>), key: <nil>, value: "a""#),
            ("a: *b", "yaml: unknown anchor 'b' referenced"),
            ("a: &a [*a]", "yaml: anchor 'a' value contains itself"),
            (bomb, "yaml: document contains excessive aliasing"),
            (&wide, "yaml: document contains excessive aliasing"),
            (&keys, "yaml: document contains excessive aliasing"),
            (&merged, "yaml: document contains excessive aliasing"),
            ("{<<: 1}", "yaml: map merge requires map or sequence of maps as the value"),
            ("a: .inf", "json: unsupported value: +Inf"),
            (&deep, "yaml: exceeded max depth"),
        ];
        for (text, expected) in rows {
            let error = to_json(text.as_bytes()).expect_err(expected);
            assert_eq!(error.to_string(), expected);
        }
    }

    #[test]
    fn text_that_would_be_read_as_something_else_is_quoted_when_written() {
        let value = json!({"a": "y", "b": "5", "c": ["x", {"d": 1, "e": null}], "f": {}, "g": [], "h": "a\nb\n", "i": "2024-01-02",
                           "j": true, "k": "12:30", "l": "", "m": "plain text"});
        let text = from_json(&value);
        assert_eq!(
            text,
            "a: \"y\"\nb: \"5\"\nc:\n- x\n- d: 1\n  e: null\nf: {}\ng: []\nh: |\n  a\n  b\ni: \"2024-01-02\"\nj: true\nk: \"12:30\"\nl: \"\"\nm: plain text\n"
        );
        assert_eq!(read(&text), value);
    }

    /// What a Kubernetes 1.37 server answered for the same objects in JSON and in YAML.
    #[test]
    fn yaml_is_written_as_the_reference_writes_it() {
        let rows = [
            (include_bytes!("../golden/pods.json").as_slice(), include_str!("../golden/pods.yaml")),
            (include_bytes!("../golden/deployments.json").as_slice(), include_str!("../golden/deployments.yaml")),
        ];
        for (text, expected) in rows {
            let value: Value = serde_json::from_slice(text).expect("JSON");
            assert_eq!(from_json(&value), expected);
            assert_eq!(read(expected), value);
        }
    }
}
