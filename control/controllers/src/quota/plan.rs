//! What a count makes of the status of a quota.

use coracle_api::kinds::quota::{self, Amounts, MEASURED, tracks};
use serde_json::{Map, Value, json};

/// Kinds that a quota's `spec` has limits for: those whose objects are looked at, and those that are only counted; by group and
/// resource.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Sources {
    pub measured: Vec<(&'static str, &'static str)>,
    pub counted: Vec<(String, String)>,
}

impl Sources {
    pub(super) fn of(spec: &Value) -> Sources {
        let names: Vec<&str> = spec["hard"].as_object().into_iter().flatten().map(|(name, _)| name.as_str()).collect();
        let is_measured = |(group, resource): &&(&str, &str)| names.iter().any(|name| tracks(group, resource, name));
        let counted = names.iter().filter_map(|name| quota::counted(name));
        let mut counted: Vec<(String, String)> = counted
            .filter(|(resource, group)| quota::is_plain(group, resource))
            .map(|(resource, group)| (group.to_owned(), resource.to_owned()))
            .collect();
        counted.sort();
        counted.dedup();
        Sources { measured: MEASURED.iter().filter(is_measured).copied().collect(), counted }
    }
}

/// A merge patch of the status, and whether limits are other ones than before; `None` when all is as it was.
pub(super) fn status(spec: &Value, before: &Value, counted: Amounts) -> Option<(Value, bool)> {
    let hard = quota::amounts(&spec["hard"]);
    let (hard_before, used_before) = (quota::amounts(&before["hard"]), quota::amounts(&before["used"]));
    // What nothing could be counted for stays as it was.
    let mut used = used_before.clone();
    used.extend(counted);
    used.retain(|name, _| hard.contains_key(name));
    let is_new_limit = hard != hard_before;
    let is_first = before["hard"].is_null() || before["used"].is_null();
    if !is_new_limit && !is_first && used == used_before {
        return None;
    }
    let patch = |now: &Amounts, before: &Amounts| {
        let gone = before.keys().filter(|name| !now.contains_key(*name)).map(|name| (name.clone(), Value::Null));
        let mut list: Map<String, Value> = gone.collect();
        if let Value::Object(now) = quota::to_list(now) {
            list.extend(now);
        }
        list
    };
    let status = json!({"hard": patch(&hard, &hard_before), "used": patch(&used, &used_before)});
    Some((status, is_new_limit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_at_what_is_limited() {
        let of = |hard: Value| Sources::of(&json!({ "hard": hard }));
        let sources =
            of(json!({"pods": "1", "services.nodeports": "1", "count/deployments.apps": "1", "configmaps": "1",
            "count/configmaps": "1", "count/pods": "1", "count/events": "1"}));
        assert_eq!(sources.measured, [("", "pods"), ("", "services")]);
        let counted = [("".to_owned(), "configmaps".to_owned()), ("apps".to_owned(), "deployments".to_owned())];
        assert_eq!(sources.counted, counted);
        assert_eq!(of(json!({"requests.storage": "1Gi"})).measured, [("", "persistentvolumeclaims")]);
    }

    #[test]
    fn the_status_follows_limits_and_counts() {
        let spec = json!({"hard": {"pods": "5", "count/widgets.example.com": "2"}});
        let counted = |pods: &str| quota::amounts(&json!({ "pods": pods }));
        let first = json!({"hard": {"pods": "5", "count/widgets.example.com": "2"}, "used": {"pods": "0"}});
        assert_eq!(status(&spec, &json!({}), counted("0")), Some((first, true)));
        let before = json!({"hard": {"pods": "5", "count/widgets.example.com": "2"},
            "used": {"pods": "2", "count/widgets.example.com": "1"}});
        assert_eq!(status(&spec, &before, counted("2")), None, "what was not counted stays");
        let (patch, is_new) = status(&spec, &before, counted("1")).expect("a change");
        assert_eq!((&patch["used"]["pods"], is_new), (&json!("1"), false));
        let wider = json!({"hard": {"pods": "5"}});
        let (patch, is_new) = status(&wider, &before, counted("2")).expect("a change");
        assert!(is_new && patch["hard"]["count/widgets.example.com"].is_null(), "{patch}");
        assert_eq!(patch["used"], json!({"pods": "2", "count/widgets.example.com": null}));
    }
}
