//! Conditions: `status.conditions[type]`.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::time;

/// The condition of a type in `status.conditions`.
pub fn get<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    let conditions = object.get("status")?.get("conditions")?.as_array()?;
    conditions.iter().find(|condition| condition.get("type").and_then(Value::as_str) == Some(kind))
}

/// The status of a condition: `True`, `False` or `Unknown`; `None` when it is not there.
pub fn status<'a>(object: &'a Value, kind: &str) -> Option<&'a str> {
    get(object, kind)?.get("status")?.as_str()
}

/// Whether a condition is there and `True`.
pub fn is_true(object: &Value, kind: &str) -> bool {
    status(object, kind) == Some("True")
}

/// Sets a condition in a list of them; `lastTransitionTime` moves only when the status changes. Other fields of the
/// condition stay. Says whether anything changed.
pub fn set(conditions: &mut Vec<Value>, kind: &str, status: &str, reason: &str, message: &str, now: Timestamp) -> bool {
    let found = conditions.iter_mut().find(|condition| condition.get("type").and_then(Value::as_str) == Some(kind));
    let Some(Value::Object(condition)) = found else {
        let mut condition = Map::new();
        condition.insert("type".to_owned(), json!(kind));
        write(&mut condition, status, reason, message, Some(now));
        conditions.push(Value::Object(condition));
        return true;
    };
    let before = condition.clone();
    let moved = condition.get("status").and_then(Value::as_str) != Some(status);
    write(condition, status, reason, message, moved.then_some(now));
    *condition != before
}

/// An object whose status says so of a condition; `None` where it does already.
pub fn said(object: &Value, kind: &str, status: &str, reason: &str, message: &str, now: Timestamp) -> Option<Value> {
    let mut conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    set(&mut conditions, kind, status, reason, message, now).then(|| {
        let mut object = object.clone();
        object["status"]["conditions"] = conditions.into();
        object
    })
}

fn write(condition: &mut Map<String, Value>, status: &str, reason: &str, message: &str, moved: Option<Timestamp>) {
    condition.insert("status".to_owned(), json!(status));
    for (field, text) in [("reason", reason), ("message", message)] {
        match text {
            "" => drop(condition.remove(field)),
            text => drop(condition.insert(field.to_owned(), json!(text))),
        }
    }
    if let Some(now) = moved {
        condition.insert("lastTransitionTime".to_owned(), json!(time::format(now)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moves_the_time_only_with_the_status() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let mut list = Vec::new();
        assert!(set(&mut list, "Ready", "False", "Init", "", at(0)));
        assert!(!set(&mut list, "Ready", "False", "Init", "", at(1)));
        assert!(set(&mut list, "Ready", "False", "Init", "waits", at(2)));
        assert_eq!(list[0]["lastTransitionTime"], "1970-01-01T00:00:00Z");
        assert!(set(&mut list, "Ready", "True", "", "", at(3)));
        let object = json!({"status": {"conditions": list}});
        assert!(is_true(&object, "Ready") && !is_true(&object, "Other"));
        assert_eq!(get(&object, "Ready").unwrap()["lastTransitionTime"], "1970-01-01T00:00:03Z");
        assert_eq!(said(&object, "Ready", "True", "", "", at(4)), None);
        let other = said(&object, "Other", "False", "No", "", at(4)).unwrap();
        assert_eq!((status(&other, "Other"), status(&other, "Ready")), (Some("False"), Some("True")));
    }
}
