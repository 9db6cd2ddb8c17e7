//! A configuration that is merged into an object without a word about who owns what: what admission policies apply.

use serde_json::Value;

use super::extract::check;
use super::merge::merge;
use super::typed::{resolved, shown};
use crate::schema::{ListKind, Object, Type};

/// The object with what a configuration says. What would be replaced as a whole is refused: a policy that means one item of
/// such a list would drop the others (`sigs.k8s.io/structured-merge-diff`'s atomic types).
///
/// # Errors
/// What is wrong with the configuration, in the reference's words.
pub fn overlay(live: &Value, config: &Value, object: &Object) -> Result<Value, String> {
    let wrong = check(config, object);
    if !wrong.is_empty() {
        return Err(format!("failed to convert patch object to typed object: {}", shown(&wrong)));
    }
    let mut atomics = Vec::new();
    find_fields(config, object, "", &mut atomics);
    if !atomics.is_empty() {
        let list = atomics.join(", ");
        return Err(format!("invalid ApplyConfiguration: may not mutate atomic arrays, maps or structs: {list}"));
    }
    merge(live, config, object).map_err(|wrong| format!("failed to merge patch: {}", shown(&[wrong])))
}

fn find_fields(value: &Value, object: &Object, path: &str, found: &mut Vec<String>) {
    for (name, value) in value.as_object().into_iter().flatten() {
        if let Some(field) = object.fields.get(name) {
            find(value, &field.ty, &format!("{path}.{name}"), found);
        }
    }
}

fn find(value: &Value, ty: &Type, path: &str, found: &mut Vec<String>) {
    let ty = resolved(ty);
    match (&*ty, value) {
        (Type::Object(object), Value::Object(_)) => {
            if object.atomic {
                found.push(path.to_owned());
            }
            find_fields(value, object, path, found);
        }
        (Type::Map(map), Value::Object(fields)) => {
            if map.atomic {
                found.push(path.to_owned());
            }
            fields.iter().for_each(|(name, value)| find(value, &map.values, &format!("{path}.{name}"), found));
        }
        (Type::List(list), Value::Array(items)) => {
            if list.kind == ListKind::Atomic {
                found.push(path.to_owned());
            }
            items.iter().enumerate().for_each(|(at, item)| find(item, &list.items, &format!("{path}[{at}]"), found));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::schema;

    #[test]
    fn what_is_said_is_merged_by_keys() {
        let deployment = schema::named("io.k8s.api.apps.v1.Deployment").expect("deployments");
        let live = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"labels": {"a": "b"}}, "spec": {
            "replicas": 1, "template": {"spec": {"containers": [{"name": "c", "image": "i"}]}},
        }});
        let config = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"labels": {"x": "y"}}, "spec": {
            "replicas": 3, "template": {"spec": {"containers": [{"name": "d", "image": "j"}, {"name": "c", "tty": true}]}},
        }});
        let merged = overlay(&live, &config, &deployment).expect("merged");
        assert_eq!(merged["metadata"]["labels"], json!({"a": "b", "x": "y"}));
        assert_eq!(merged["spec"]["replicas"], 3);
        let containers = merged["spec"]["template"]["spec"]["containers"].as_array().expect("a list");
        assert_eq!(
            containers.iter().find(|one| one["name"] == "c"),
            Some(&json!({"name": "c", "image": "i", "tty": true}))
        );
        assert_eq!(containers.len(), 2);
    }

    #[test]
    fn what_is_unknown_or_atomic_is_refused() {
        let deployment = schema::named("io.k8s.api.apps.v1.Deployment").expect("deployments");
        let live = json!({"apiVersion": "apps/v1", "kind": "Deployment"});
        let wrong = |config: Value| overlay(&live, &config, &deployment).expect_err("refused");
        let unknown = "failed to convert patch object to typed object: .spec.nothing: field not declared in schema";
        assert_eq!(wrong(json!({"spec": {"nothing": 1}})), unknown);
        let atomic = "invalid ApplyConfiguration: may not mutate atomic arrays, maps or structs: \
                      .spec.template.spec.containers[0].args";
        let args = json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "args": ["x"]}]}}}});
        assert_eq!(wrong(args), atomic);
    }
}
