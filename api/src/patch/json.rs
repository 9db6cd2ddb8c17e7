//! JSON patch (RFC 6902), as lenient as the reference's library (`evanphx/json-patch`): `replace` adds what is not there,
//! a missing `value` is null, positions may count from the end. The `json-patch` crate is stricter, so it is not used.

use serde_json::{Map, Value};

use crate::codec::{DEPTH_MAX, TOO_DEEP, depth};
use crate::status::Status;

/// Most operations of a patch.
const OPERATIONS_MAX: usize = 10_000;
/// Most bytes that `copy` may add in one patch; a few copies of copies would fill any memory.
const COPIED_MAX: usize = 3 << 20;

/// Most items of lists that a patch may push aside, and values that it may move: at the front of a long list each
/// operation costs the whole list.
const TOUCHED_MAX: usize = 20_000_000;

/// Most unknown fields that are told, as everywhere in strict decoding.
const PROBLEMS_MAX: usize = 100;

/// Applies a patch. On an error the value is left half changed. What the reference says about an operation that fails is
/// only that it was the client's fault.
pub fn json(value: &mut Value, patch: &Value) -> Result<(), Status> {
    match run(value, patch)? {
        None => Ok(()),
        Some(_) => Err(Status::generic(422, "")),
    }
}

/// The value with a patch whose `test` operations say whether it is to be applied: `None` when one of them fails.
///
/// # Errors
/// Another operation cannot be carried out.
pub fn json_if(value: &Value, patch: &Value) -> Result<Option<Value>, String> {
    let mut changed = value.clone();
    match run(&mut changed, patch).map_err(|status| status.message.clone())? {
        None => Ok(Some(changed)),
        Some(failed) if failed["op"] == "test" => Ok(None),
        Some(failed) => {
            let text = |field: &str| failed[field].as_str().unwrap_or_default().to_owned();
            Err(format!("{} operation does not apply: the path {:?} is not there", text("op"), text("path")))
        }
    }
}

/// Carries out a patch; gives the first operation that cannot be.
fn run<'p>(value: &mut Value, patch: &'p Value) -> Result<Option<&'p Value>, Status> {
    let operations = operations(patch)?;
    if operations.len() > OPERATIONS_MAX {
        return Err(Status::request_too_large(format_args!(
            "The allowed maximum operations in a JSON patch is {OPERATIONS_MAX}, got {}",
            operations.len()
        )));
    }
    let mut work = Work::default();
    let fails =
        |operation: &&Value| operation.as_object().and_then(|operation| apply(value, operation, &mut work)).is_none();
    let failed = operations.iter().find(fails);
    if work.too_deep {
        return Err(Status::bad_request(format!(
            "the patched object would nest deeper than {DEPTH_MAX} levels: {TOO_DEEP}"
        )));
    }
    Ok(failed)
}

/// What strict decoding has to say about a patch that can be applied (`json patch unknown field "[0].valeu"`).
pub fn json_problems(patch: &Value) -> Vec<String> {
    let mut problems = Vec::new();
    for (index, operation) in patch.as_array().into_iter().flatten().enumerate() {
        for field in operation.as_object().into_iter().flat_map(Map::keys) {
            if !matches!(field.as_str(), "op" | "path" | "from" | "value") {
                problems.push(format!("json patch unknown field \"[{index}].{field}\""));
                if problems.len() == PROBLEMS_MAX {
                    return problems;
                }
            }
        }
    }
    problems
}

fn operations(patch: &Value) -> Result<&[Value], Status> {
    let wrong = |found: &Value, place: &str| {
        let message = format!("error decoding patch: json: cannot unmarshal {} into Go {place}", name(found));
        Err(Status::bad_request(message))
    };
    let operations = match patch {
        Value::Array(operations) => operations.as_slice(),
        Value::Null => &[],
        other => return wrong(other, "value of type []handlers.jsonPatchOp"),
    };
    for operation in operations {
        match operation {
            Value::Object(fields) => {
                for field in ["op", "path", "from"] {
                    match fields.get(field) {
                        None | Some(Value::Null | Value::String(_)) => {}
                        Some(other) => {
                            return wrong(other, &format!("struct field jsonPatchOp.{field} of type string"));
                        }
                    }
                }
            }
            Value::Null => {}
            other => return wrong(other, "value of type handlers.jsonPatchOp"),
        }
    }
    Ok(operations)
}

/// The name of a JSON type in errors of Go's decoder.
pub(super) fn name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// What a patch has cost so far. Each operation is small, but what it does need not be.
#[derive(Default)]
struct Work {
    /// Bytes that were copied.
    copied: usize,
    /// Items of lists that were moved aside, and values that were looked at.
    touched: usize,
    /// Whether a value could not stand where it was to be, which ends the patch.
    too_deep: bool,
}

impl Work {
    fn touch(&mut self, count: usize) -> Option<()> {
        self.touched += count;
        (self.touched <= TOUCHED_MAX).then_some(())
    }

    /// Whether a value may stand at a path: together they nest no deeper than anything else that is read.
    fn may_stand(&mut self, path: &str, value: &Value) -> Option<()> {
        let below = match value {
            Value::Array(items) if !items.is_empty() => depth(value),
            Value::Object(fields) if !fields.is_empty() => depth(value),
            Value::Array(_) | Value::Object(_) => 1,
            _ => 0,
        };
        self.too_deep = path.matches('/').count() + below > DEPTH_MAX;
        (!self.too_deep).then_some(())
    }
}

/// One operation; `None` when it cannot be done.
fn apply(document: &mut Value, operation: &Map<String, Value>, work: &mut Work) -> Option<()> {
    let text = |field: &str| operation.get(field).and_then(Value::as_str);
    let value = || operation.get("value").cloned().unwrap_or(Value::Null);
    match text("op")? {
        "add" => add(document, text("path")?, value(), work),
        "remove" => remove(document, text("path")?, work).map(drop),
        "replace" => match text("path")? {
            "" => match value() {
                value @ (Value::Object(_) | Value::Array(_)) => {
                    *document = value;
                    Some(())
                }
                _ => None,
            },
            path => replace(document, path, value(), work),
        },
        "move" => {
            let (from, path) = (text("from")?, text("path")?);
            let value = remove(document, from, work)?;
            work.touch(nodes(&value, TOUCHED_MAX))?;
            add(document, path, value, work)
        }
        "test" => {
            let wanted = operation.get("value").unwrap_or(&Value::Null);
            let found = match text("path")? {
                "" => &*document,
                path => get(document, path)?,
            };
            (found == wanted).then_some(())
        }
        "copy" => {
            let value = get(document, text("from")?)?.clone();
            work.copied += value.to_string().len();
            if work.copied > COPIED_MAX {
                return None;
            }
            add(document, text("path")?, value, work)
        }
        _ => None,
    }
}

/// The container that the last part of a path is in, and that part.
fn parent<'a>(document: &'a mut Value, path: &str) -> Option<(&'a mut Value, String)> {
    // What is before the first slash does not count.
    let (_, path) = path.split_once('/')?;
    let mut parts: Vec<String> = path.split('/').map(|part| part.replace("~1", "/").replace("~0", "~")).collect();
    let last = parts.pop()?;
    let mut at = document;
    for part in parts {
        at = match at {
            Value::Object(fields) => fields.get_mut(&part)?,
            Value::Array(items) => {
                let index = index(&part, items.len())?;
                items.get_mut(index)?
            }
            _ => return None,
        };
    }
    matches!(at, Value::Object(_) | Value::Array(_)).then_some((at, last))
}

/// A position in a list of this length; may be the length itself. Negative ones count from the end.
fn index(part: &str, length: usize) -> Option<usize> {
    let index: i64 = part.parse().ok()?;
    let length = i64::try_from(length).ok()?;
    let index = if index < 0 { index + length } else { index };
    if index > length {
        return None;
    }
    usize::try_from(index).ok()
}

fn get<'a>(document: &'a mut Value, path: &str) -> Option<&'a Value> {
    match parent(document, path)? {
        // A field that is absent is null.
        (Value::Object(fields), part) => Some(fields.get(&part).unwrap_or(&Value::Null)),
        (Value::Array(items), part) => items.get(index(&part, items.len())?),
        _ => None,
    }
}

fn add(document: &mut Value, path: &str, value: Value, work: &mut Work) -> Option<()> {
    work.may_stand(path, &value)?;
    match parent(document, path)? {
        (Value::Object(fields), part) => drop(fields.insert(part, value)),
        (Value::Array(items), part) if part == "-" => items.push(value),
        // From the end, -1 is behind the last.
        (Value::Array(items), part) => {
            let length = items.len() + usize::from(part.starts_with('-'));
            let index = index(&part, length).filter(|index| *index <= items.len())?;
            work.touch(items.len() - index)?;
            items.insert(index, value);
        }
        _ => return None,
    }
    Some(())
}

fn replace(document: &mut Value, path: &str, value: Value, work: &mut Work) -> Option<()> {
    work.may_stand(path, &value)?;
    match parent(document, path)? {
        (Value::Object(fields), part) => drop(fields.insert(part, value)),
        (Value::Array(items), part) => {
            let index = index(&part, items.len())?;
            *items.get_mut(index)? = value;
        }
        _ => return None,
    }
    Some(())
}

fn nodes(value: &Value, most: usize) -> usize {
    match value {
        Value::Array(items) => items.iter().fold(1, |sum, item| if sum > most { sum } else { sum + nodes(item, most) }),
        Value::Object(fields) => {
            fields.values().fold(1, |sum, item| if sum > most { sum } else { sum + nodes(item, most) })
        }
        _ => 1,
    }
}

fn remove(document: &mut Value, path: &str, work: &mut Work) -> Option<Value> {
    match parent(document, path)? {
        (Value::Object(fields), part) => fields.remove(&part),
        (Value::Array(items), part) => {
            let index = index(&part, items.len())?;
            work.touch(items.len().checked_sub(index)?)?;
            (index < items.len()).then(|| items.remove(index))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json as v;

    use super::*;

    #[test]
    fn patches_as_the_reference_does() {
        let table: Vec<(Value, Value, Option<Value>)> = vec![
            (v!({"a": 1}), v!([{"op": "add", "path": "/b", "value": 2}]), Some(v!({"a": 1, "b": 2}))),
            (
                v!({"a": [1]}),
                v!([{"op": "add", "path": "/a/-", "value": 2}, {"op": "add", "path": "/a/0", "value": 0}]),
                Some(v!({"a": [0, 1, 2]})),
            ),
            (v!({"a": [1]}), v!([{"op": "add", "path": "/a/-1", "value": 2}]), Some(v!({"a": [1, 2]}))),
            (v!({"a": [1]}), v!([{"op": "add", "path": "/a/2", "value": 2}]), None),
            (
                v!({"a/b": 1, "c~d": 2}),
                v!([{"op": "remove", "path": "/a~1b"}, {"op": "replace", "path": "/c~0d", "value": 3}]),
                Some(v!({"c~d": 3})),
            ),
            (v!({}), v!([{"op": "replace", "path": "/x", "value": 1}]), Some(v!({"x": 1}))),
            (v!({}), v!([{"op": "add", "path": "/x"}]), Some(v!({"x": null}))),
            (v!({}), v!([{"op": "remove", "path": "/x"}]), None),
            (v!({}), v!([{"op": "add", "path": "/x/y", "value": 1}]), None),
            (v!({"a": [1, 2]}), v!([{"op": "replace", "path": "/a/9", "value": 1}]), None),
            (v!({"a": [1, 2]}), v!([{"op": "remove", "path": "/a/-1"}]), Some(v!({"a": [1]}))),
            (v!({"a": 1}), v!([{"op": "move", "from": "/a", "path": "/b"}]), Some(v!({"b": 1}))),
            (
                v!({"a": {"x": 1}}),
                v!([{"op": "copy", "from": "/a", "path": "/b"}]),
                Some(v!({"a": {"x": 1}, "b": {"x": 1}})),
            ),
            (v!({"a": {"x": 1}}), v!([{"op": "test", "path": "/a", "value": {"x": 1}}]), Some(v!({"a": {"x": 1}}))),
            (v!({"a": 1}), v!([{"op": "test", "path": "/b", "value": null}]), Some(v!({"a": 1}))),
            (v!({"a": 1}), v!([{"op": "test", "path": "/a", "value": 2}]), None),
            (v!({}), v!([{"op": "frobnicate", "path": "/a"}]), None),
            (v!({}), v!([null]), None),
            (v!({"a": 1}), v!([]), Some(v!({"a": 1}))),
        ];
        for (mut value, patch, expected) in table {
            let done = json(&mut value, &patch);
            match expected {
                Some(expected) => assert_eq!((done, value), (Ok(()), expected), "{patch}"),
                None => assert_eq!(done.unwrap_err().code(), 422, "{patch}"),
            }
        }
    }

    /// Copies of a value into itself would double its depth with every operation.
    #[test]
    fn nothing_nests_deeper_than_it_may_be_read() {
        let deep = |levels: usize| (0..levels).fold(v!(1), |inner, _| v!({ "a": inner }));
        let path = |levels: usize| "/a".repeat(levels);
        let copy = |levels: usize| v!([{"op": "copy", "from": "/a", "path": path(levels)}]);
        let (half, most) = (DEPTH_MAX / 2, DEPTH_MAX * 3 / 4);
        let refused = |patch: &Value| {
            let status = json(&mut deep(most), patch).unwrap_err();
            assert!(status.code() == 400 && status.message.ends_with(TOO_DEEP), "{}", status.message);
        };
        assert!(json(&mut deep(half), &copy(half)).is_ok());
        refused(&copy(most));
        refused(&v!([{"op": "add", "path": path(most), "value": deep(half)}]));
        refused(&v!([{"op": "replace", "path": path(most), "value": deep(half)}]));
        refused(
            &v!([{"op": "add", "path": "/b", "value": deep(half)}, {"op": "move", "from": "/b", "path": path(most)}]),
        );
    }

    #[test]
    fn refuses_what_is_no_patch() {
        for (patch, expected) in [
            (
                v!({}),
                "error decoding patch: json: cannot unmarshal object into Go value of type []handlers.jsonPatchOp",
            ),
            (
                v!(["x"]),
                "error decoding patch: json: cannot unmarshal string into Go value of type handlers.jsonPatchOp",
            ),
            (
                v!([{"op": 1}]),
                "error decoding patch: json: cannot unmarshal number into Go struct field jsonPatchOp.op of type string",
            ),
        ] {
            assert_eq!(json(&mut v!({}), &patch).unwrap_err().message, expected);
        }
        let many = Value::Array(vec![v!({}); 10_001]);
        assert_eq!(json(&mut v!({}), &many).unwrap_err().code(), 413);
        let mut bomb = vec![v!({"op": "add", "path": "/a", "value": ["x".repeat(1000)]})];
        bomb.extend(vec![v!({"op": "copy", "from": "/a", "path": "/a/-"}); 100]);
        assert_eq!(json(&mut v!({}), &Value::Array(bomb)).unwrap_err().code(), 422);
        let front = Value::Array(vec![v!({"op": "add", "path": "/a/0", "value": 1}); 2_000]);
        assert_eq!(json(&mut v!({"a": vec![0; 60_000]}), &front).unwrap_err().code(), 422);
        assert!(json(&mut v!({"a": vec![0; 1_000]}), &front).is_ok());
        assert_eq!(json_problems(&v!([{"op": "add"}, {"valeu": 1}])), ["json patch unknown field \"[1].valeu\""]);
        assert_eq!(json_problems(&Value::Array(vec![v!({"valeu": 1}); 1_000])).len(), 100);
    }
}
