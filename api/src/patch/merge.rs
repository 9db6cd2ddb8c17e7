//! Merge patch (RFC 7386), with what the reference does where the RFC does not look: nulls within lists stay.

use serde_json::Value;

use super::json;
use crate::status::Status;

/// Applies a patch.
pub fn merge(value: &mut Value, patch: &Value) -> Result<(), Status> {
    match patch {
        Value::Object(_) => {
            merge_into(value, patch);
            Ok(())
        }
        Value::Null => Err(Status::bad_request("Invalid JSON Patch")),
        other => Err(Status::bad_request(format!(
            "error decoding patch: json: cannot unmarshal {} into Go value of type map[string]interface {{}}",
            json::name(other)
        ))),
    }
}

fn merge_into(value: &mut Value, patch: &Value) {
    let Value::Object(changes) = patch else {
        // A list in place of an object is taken as it is; in place of anything else its objects lose their nulls.
        *value = if value.is_object() { patch.clone() } else { without_nulls(patch) };
        return;
    };
    let Value::Object(fields) = value else {
        *value = without_nulls(patch);
        return;
    };
    for (name, change) in changes {
        match fields.get_mut(name) {
            _ if change.is_null() => drop(fields.remove(name)),
            Some(present) if !present.is_null() => merge_into(present, change),
            _ => drop(fields.insert(name.clone(), without_nulls(change))),
        }
    }
}

fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let kept = fields.iter().filter(|(_, value)| !value.is_null());
            Value::Object(kept.map(|(name, value)| (name.clone(), without_nulls(value))).collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(without_nulls).collect()),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json as v;

    use super::*;

    #[test]
    fn merges_as_the_rfc_says() {
        for (mut value, patch, expected) in [
            (v!({"a": "b"}), v!({"a": "c"}), v!({"a": "c"})),
            (v!({"a": "b"}), v!({"b": "c"}), v!({"a": "b", "b": "c"})),
            (v!({"a": "b", "b": "c"}), v!({"a": null}), v!({"b": "c"})),
            (v!({"a": ["b"]}), v!({"a": "c"}), v!({"a": "c"})),
            (v!({"a": {"b": "c"}}), v!({"a": {"b": "d", "c": null}}), v!({"a": {"b": "d"}})),
            (v!({"a": [{"b": "c"}]}), v!({"a": [1, null]}), v!({"a": [1, null]})),
            (v!({"e": null}), v!({"a": 1}), v!({"e": null, "a": 1})),
            (v!({}), v!({"a": {"bb": {"ccc": null}}}), v!({"a": {"bb": {}}})),
            (v!({"a": 1}), v!({"a": [{"b": null}]}), v!({"a": [{}]})),
            (v!({"a": {}}), v!({"a": [{"b": null}]}), v!({"a": [{"b": null}]})),
        ] {
            merge(&mut value, &patch).unwrap();
            assert_eq!(value, expected, "{patch}");
        }
        for (patch, expected) in [
            (
                v!([1]),
                "error decoding patch: json: cannot unmarshal array into Go value of type map[string]interface {}",
            ),
            (v!(null), "Invalid JSON Patch"),
        ] {
            assert_eq!(merge(&mut v!({}), &patch).unwrap_err().message, expected);
        }
    }
}
