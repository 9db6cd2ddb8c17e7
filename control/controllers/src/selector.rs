//! Label selectors of objects.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};

type Labels = BTreeMap<String, String>;

/// Whether the labels match. An empty selector matches all; an unknown operator matches nothing.
pub(crate) fn matches(selector: &LabelSelector, labels: &Labels) -> bool {
    let equal = selector.match_labels.iter().flatten().all(|(name, value)| labels.get(name) == Some(value));
    equal
        && selector.match_expressions.iter().flatten().all(|requirement| {
            let value = labels.get(&requirement.key);
            let listed = |value: &String| requirement.values.as_ref().is_some_and(|values| values.contains(value));
            match requirement.operator.as_str() {
                "In" => value.is_some_and(listed),
                "NotIn" => !value.is_some_and(listed),
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                _ => false,
            }
        })
}

/// Whether it selects everything.
pub(crate) fn is_empty(selector: &LabelSelector) -> bool {
    selector.match_labels.as_ref().is_none_or(BTreeMap::is_empty)
        && selector.match_expressions.as_ref().is_none_or(Vec::is_empty)
}

/// Whether all of `wanted` are among `labels`.
pub(crate) fn contains(labels: &Labels, wanted: &Labels) -> bool {
    wanted.iter().all(|(name, value)| labels.get(name) == Some(value))
}

/// A selector as Go prints it.
pub(crate) fn printed(selector: &LabelSelector) -> String {
    let labels = selector.match_labels.iter().flatten().map(|(key, value)| format!("{key}: {value},"));
    let one = |it: &LabelSelectorRequirement| {
        let values = it.values.as_ref().map(|values| values.join(" ")).unwrap_or_default();
        format!("LabelSelectorRequirement{{Key:{},Operator:{},Values:[{values}],}},", it.key, it.operator)
    };
    let expressions = selector.match_expressions.iter().flatten().map(one);
    format!(
        "&LabelSelector{{MatchLabels:map[string]string{{{}}},MatchExpressions:[]LabelSelectorRequirement{{{}}},}}",
        labels.collect::<String>(),
        expressions.collect::<String>()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_as_kubernetes_does() {
        let labels = Labels::from([("a".to_owned(), "1".to_owned())]);
        for (selector, expected) in [
            (serde_json::json!({}), true),
            (serde_json::json!({"matchLabels": {"a": "1"}}), true),
            (serde_json::json!({"matchLabels": {"a": "2"}}), false),
            (serde_json::json!({"matchExpressions": [{"key": "a", "operator": "In", "values": ["0", "1"]}]}), true),
            (serde_json::json!({"matchExpressions": [{"key": "b", "operator": "NotIn", "values": ["0"]}]}), true),
            (serde_json::json!({"matchExpressions": [{"key": "b", "operator": "Exists"}]}), false),
            (serde_json::json!({"matchExpressions": [{"key": "b", "operator": "DoesNotExist"}]}), true),
        ] {
            let parsed = serde_json::from_value(selector.clone()).unwrap();
            assert_eq!(matches(&parsed, &labels), expected, "{selector}");
        }
    }

    #[test]
    fn selectors_are_printed_as_go_does() {
        let selector = serde_json::from_value(serde_json::json!({"matchLabels": {"a": "b"}, "matchExpressions": [
            {"key": "k", "operator": "In", "values": ["x", "y"]}]}));
        assert_eq!(
            printed(&selector.unwrap()),
            "&LabelSelector{MatchLabels:map[string]string{a: b,},MatchExpressions:[]LabelSelectorRequirement{\
             LabelSelectorRequirement{Key:k,Operator:In,Values:[x y],},},}"
        );
    }
}
