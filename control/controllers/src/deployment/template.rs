//! Pod templates: their equality and their hash.

use k8s_openapi::api::core::v1::PodTemplateSpec;

use crate::workload;

/// Label that tells the pods of one ReplicaSet of a Deployment from the others'.
pub(crate) const HASH_LABEL: &str = "pod-template-hash";

/// The template as it is compared: without the hash.
pub(crate) fn normal(template: &PodTemplateSpec) -> PodTemplateSpec {
    let mut template = template.clone();
    if let Some(labels) = template.metadata.as_mut().and_then(|meta| meta.labels.as_mut()) {
        labels.remove(HASH_LABEL);
    }
    workload::normal(&template)
}

/// A stable hash of the template's JSON. Collisions are told apart by their count.
pub(crate) fn hash(template: &PodTemplateSpec, collisions: Option<i32>) -> String {
    let json = serde_json::to_vec(&normal(template)).unwrap_or_default();
    let count = collisions.map(i32::to_le_bytes);
    workload::hash(json.iter().chain(count.iter().flatten()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn ignores_the_hash_label_and_empty_maps() {
        let template = |json| -> PodTemplateSpec { serde_json::from_value(json).unwrap() };
        let plain = template(json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": []}}));
        let marked = template(json!({
            "metadata": {"labels": {"a": "b", "pod-template-hash": "x"}, "annotations": {}}, "spec": {"containers": []},
        }));
        let other = template(json!({"metadata": {"labels": {"a": "c"}}, "spec": {"containers": []}}));
        assert_eq!(normal(&plain), normal(&marked));
        assert_ne!(normal(&plain), normal(&other));
        assert_eq!(hash(&plain, None), hash(&marked, None));
        assert_ne!(hash(&plain, None), hash(&other, None));
        assert_ne!(hash(&plain, None), hash(&plain, Some(1)));
        assert!(hash(&plain, None).len() <= 10);
    }
}
