//! Roles and bindings that every cluster has. They are brought up to date when a server starts, as the reference does it:
//! a newer version may need more of them than an older one made. What they lack is added, what somebody added stays, and
//! one whose annotation says so is left alone.

use coracle_api::meta;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::roles::{GROUP, Role, Rule};

/// Facts asked of Kubernetes 1.37, one a line; `bootstrap.py` made it.
const LINES: &str = include_str!("../../data/bootstrap.ndjson");
/// What metrics-server brings along: whoever may see pods may see what they use.
const MEASURES: &str = r#"{"kind":"ClusterRole","metadata":{"name":"system:aggregated-metrics-reader","labels":{"rbac.authorization.k8s.io/aggregate-to-admin":"true","rbac.authorization.k8s.io/aggregate-to-edit":"true","rbac.authorization.k8s.io/aggregate-to-view":"true"}},"rules":[{"apiGroups":["metrics.k8s.io"],"resources":["pods","nodes"],"verbs":["get","list","watch"]}]}"#;
/// Whether one is brought up to date: unless it says `false`.
const AUTO_UPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";

/// All of them, each with its resource.
pub(super) fn all() -> impl Iterator<Item = Result<(&'static str, Value), serde_json::Error>> {
    LINES.lines().chain([MEASURES]).map(|line| {
        let mut object: Value = serde_json::from_str(line)?;
        object["apiVersion"] = format!("{GROUP}/v1").into();
        object["metadata"]["annotations"] = json!({AUTO_UPDATE: "true"});
        object["metadata"]["labels"]["kubernetes.io/bootstrapping"] = "rbac-defaults".into();
        let resource = match object["kind"].as_str().unwrap_or_default() {
            "ClusterRole" => "clusterroles",
            "ClusterRoleBinding" => "clusterrolebindings",
            "Role" => "roles",
            _ => "rolebindings",
        };
        Ok((resource, object))
    })
}

/// Whether one that is there may be changed.
pub(super) fn may_change(old: &Value) -> bool {
    old["metadata"]["annotations"][AUTO_UPDATE] != "false"
}

/// Whether a binding is of another role than it is to be; what it is of cannot be changed.
pub(super) fn is_of_another(old: &Value, wanted: &Value) -> bool {
    ["kind", "name"].iter().any(|field| old["roleRef"][field] != wanted["roleRef"][field])
}

/// The one that is there, with all that is `wanted`.
pub(super) fn completed(old: &Value, wanted: &Value) -> Value {
    let mut new = old.clone();
    for field in ["labels", "annotations"] {
        let Some(wanted) = wanted["metadata"][field].as_object() else { continue };
        let metadata = meta::metadata_mut(&mut new);
        let known = metadata.entry(field).or_insert_with(|| Map::new().into());
        for (key, value) in wanted {
            if known.get(key).is_none() {
                known[key.as_str()] = value.clone();
            }
        }
    }
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mut add = |path: &[&str], missing: Vec<Value>| {
        if missing.is_empty() {
            return;
        }
        let place = path.iter().fold(&mut new, |place, field| &mut place[*field]);
        *place = [list(&*place), missing].concat().into();
    };
    let parts = |role: &Value| list(&role["aggregationRule"]["clusterRoleSelectors"]);
    let (known, wanted_parts) = (parts(old), parts(wanted));
    // The rules of one that is made of parts are theirs.
    if wanted_parts.is_empty() {
        add(&["rules"], missing_rules(old, wanted));
    }
    let missing = wanted_parts.into_iter().filter(|part| !known.contains(part)).collect();
    add(&["aggregationRule", "clusterRoleSelectors"], missing);
    let known = list(&old["subjects"]);
    let is_same = |one: &Value, other: &Value| ["kind", "namespace", "name"].iter().all(|at| one[at] == other[at]);
    let missing = list(&wanted["subjects"]).into_iter().filter(|one| !known.iter().any(|other| is_same(one, other)));
    add(&["subjects"], missing.collect());
    new
}

/// Rules of `wanted` that allow something which no rule of `old` does.
fn missing_rules(old: &Value, wanted: &Value) -> Vec<Value> {
    // What cannot be read allows nothing.
    let held = Role::read(old).unwrap_or_default().rules;
    let is_held = |rule: &Rule| rule.permissions("").all(|asked| held.iter().any(|held| held.allows(&asked)));
    let lacks = |text: &&Value| Rule::deserialize(*text).is_ok_and(|rule| !is_held(&rule));
    wanted["rules"].as_array().into_iter().flatten().filter(lacks).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(resources: &[&str], verbs: &[&str]) -> Value {
        json!({"apiGroups": [""], "resources": resources, "verbs": verbs})
    }

    #[test]
    fn what_is_there_as_it_is_to_be_stays_as_it_is() {
        let mut kinds = std::collections::BTreeMap::new();
        for found in all() {
            let (resource, object) = found.unwrap();
            assert_eq!(completed(&object, &object), object);
            *kinds.entry(resource).or_insert(0) += 1;
        }
        assert_eq!(kinds.len(), 4, "{kinds:?}");
    }

    #[test]
    fn what_is_missing_is_added_and_what_was_added_stays() {
        let role = |rules: &[Value]| json!({"metadata": {"name": "r"}, "rules": rules});
        let (pods, nodes) = (rule(&["pods"], &["get", "list"]), rule(&["nodes"], &["get"]));
        let own = rule(&["secrets"], &["*"]);
        let mut old = role(&[rule(&["pods", "x"], &["list", "get", "watch"]), own.clone()]);
        old["metadata"]["labels"] = json!({"a": "mine"});
        let mut wanted = role(&[pods, nodes.clone()]);
        wanted["metadata"]["labels"] = json!({"a": "theirs", "b": "new"});
        let new = completed(&old, &wanted);
        assert_eq!(new["rules"], json!([old["rules"][0], own, nodes]), "what another rule allows is not missing");
        assert_eq!(new["metadata"]["labels"], json!({"a": "mine", "b": "new"}));

        let subject = |name: &str| json!({"kind": "Group", "apiGroup": GROUP, "name": name});
        let binding = |subjects: &[Value]| json!({"metadata": {}, "subjects": subjects, "roleRef": {"name": "r"}});
        let new = completed(&binding(&[subject("own")]), &binding(&[subject("wanted")]));
        assert_eq!(new["subjects"], json!([subject("own"), subject("wanted")]));

        let of = |label: &str| json!({"matchLabels": {label: "true"}});
        let made_of = |parts: &[Value]| json!({"aggregationRule": {"clusterRoleSelectors": parts}, "rules": [own]});
        let new = completed(&made_of(&[of("own")]), &made_of(&[of("wanted")]));
        assert_eq!(new["aggregationRule"]["clusterRoleSelectors"], json!([of("own"), of("wanted")]));
    }

    #[test]
    fn one_that_says_so_is_left_alone() {
        let says = |text: &str| json!({"metadata": {"annotations": {AUTO_UPDATE: text}}});
        assert!(may_change(&says("true")) && may_change(&json!({"metadata": {}})) && !may_change(&says("false")));
    }
}
