//! One step of a path in a set of fields, as it is written: `f:name`, `k:{"name":"web"}`, `v:"x"`, `i:3`.

use std::cmp::Ordering;

use serde_json::{Map, Value};

use crate::meta::text;

/// The step to a field.
pub(super) fn field(name: &str) -> String {
    let mut text = String::with_capacity(name.len() + 2);
    text.push_str("f:");
    text.push_str(name);
    text
}

/// The step to an item of a set.
pub(super) fn value(value: &Value) -> String {
    format!("v:{value}")
}

/// The step to an item of a list by its keys, which are sorted by name.
pub(super) fn keys<'a>(keys: impl Iterator<Item = (&'a str, &'a Value)>) -> String {
    let mut text = String::with_capacity(32);
    text.push_str("k:{");
    for (at, (name, value)) in keys.enumerate() {
        text.push_str(if at > 0 { ",\"" } else { "\"" });
        text.push_str(name);
        text.push_str("\":");
        match value {
            // Nearly all keys are plain words: these need no writer.
            Value::String(word) if word.bytes().all(|b| b.is_ascii_graphic() && b != b'"' && b != b'\\') => {
                text.push('"');
                text.push_str(word);
                text.push('"');
            }
            other => text.push_str(&other.to_string()),
        }
    }
    text.push('}');
    text
}

/// A step that a client wrote, in our form; `Ok(None)` for kinds of steps that do not exist yet.
pub(super) fn canonical(text: &str) -> Result<Option<String>, String> {
    let Some((kind, rest)) = text.split_at_checked(2) else {
        return Err("key must be 2 characters long:".to_owned());
    };
    match kind {
        "f:" => Ok(Some(text.to_owned())),
        "i:" => rest.parse::<i64>().map(|index| Some(format!("i:{index}"))).map_err(|error| error.to_string()),
        "v:" => serde_json::from_str(rest).map(|read| Some(value(&read))).map_err(|error| error.to_string()),
        "k:" => {
            let read: Map<String, Value> = serde_json::from_str(rest).map_err(|error| error.to_string())?;
            Ok(Some(keys(read.iter().map(|(name, value)| (name.as_str(), value)))))
        }
        _ if kind.ends_with(':') => Ok(None),
        _ => Err(format!("missing colon: {text}")),
    }
}

/// A step for people: `.name`, `[name="web"]`, `[="x"]`, `[3]`.
pub(super) fn shown(step: &str) -> String {
    let (kind, rest) = step.split_at_checked(2).unwrap_or(("", step));
    match kind {
        "f:" => format!(".{rest}"),
        "v:" => format!("[={}]", scalar(&serde_json::from_str(rest).unwrap_or_default())),
        "k:" => {
            let keys: Map<String, Value> = serde_json::from_str(rest).unwrap_or_default();
            let keys: Vec<String> = keys.iter().map(|(name, value)| format!("{name}={}", scalar(value))).collect();
            format!("[{}]", keys.join(","))
        }
        _ => format!("[{rest}]"),
    }
}

fn scalar(value: &Value) -> String {
    match value {
        Value::String(word) => text::quote(word),
        Value::Null => "null".to_owned(),
        other => text::sprint(other),
    }
}

/// The order in which the reference shows steps: fields, items by keys, items by value, positions; numbers by size.
pub(super) fn order(a: &str, b: &str) -> Ordering {
    let rank = |step: &str| "fkvi".find(|kind| step.starts_with(kind)).unwrap_or(4);
    rank(a).cmp(&rank(b)).then_with(|| match a.as_bytes().first() {
        Some(b'k' | b'v' | b'i') => {
            let read =
                |step: &str| serde_json::from_str::<Value>(step.get(2..).unwrap_or_default()).unwrap_or_default();
            compare(&read(a), &read(b))
        }
        _ => a.cmp(b),
    })
}

fn compare(a: &Value, b: &Value) -> Ordering {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a.as_f64().partial_cmp(&b.as_f64()).unwrap_or(Ordering::Equal),
        (Value::Number(_), _) => Ordering::Less,
        (_, Value::Number(_)) => Ordering::Greater,
        (Value::String(a), Value::String(b)) => a.cmp(b),
        (Value::Object(a), Value::Object(b)) => {
            let by_field = a.iter().zip(b).map(|((a, x), (b, y))| a.cmp(b).then_with(|| compare(x, y)));
            by_field.fold(Ordering::Equal, Ordering::then).then(a.len().cmp(&b.len()))
        }
        _ => a.to_string().cmp(&b.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn writes_reads_and_shows_steps() {
        for (text, expected) in [
            ("f:a", Ok(Some("f:a"))),
            ("k:{ \"b\": 1, \"a\": \"x\" }", Ok(Some("k:{\"a\":\"x\",\"b\":1}"))),
            ("v: \"x\"", Ok(Some("v:\"x\""))),
            ("i:3", Ok(Some("i:3"))),
            ("z:3", Ok(None)),
            ("a", Err("key must be 2 characters long:")),
            ("abc", Err("missing colon: abc")),
        ] {
            let read = canonical(text);
            assert_eq!(read.as_ref().map(|step| step.as_deref()).map_err(String::as_str), expected, "{text}");
        }
        assert!(canonical("k:[1]").is_err() && canonical("v:").is_err() && canonical("é:").is_err());
        let key = keys([("name", &json!("a\"b")), ("port", &json!(80))].into_iter());
        assert_eq!(
            (key.as_str(), shown(&key).as_str()),
            ("k:{\"name\":\"a\\\"b\",\"port\":80}", "[name=\"a\\\"b\",port=80]")
        );
        assert_eq!((shown("f:a"), shown("v:\"x\""), shown("i:3")), (".a".into(), "[=\"x\"]".into(), "[3]".into()));
        let mut steps = ["v:2", "k:{\"p\":443}", "k:{\"p\":80}", "f:b", "f:a", "v:10"];
        steps.sort_by(|a, b| order(a, b));
        assert_eq!(steps, ["f:a", "f:b", "k:{\"p\":80}", "k:{\"p\":443}", "v:2", "v:10"]);
    }
}
