//! Claims of a StatefulSet's pods: their names, and who owns them, by which they stay or go
//! (`persistentVolumeClaimRetentionPolicy`). No I/O.

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use crate::workload::owner_reference;

/// What becomes of claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Retention {
    /// Whether they go with the StatefulSet.
    pub ends_with_set: bool,
    /// Whether they go with pods that it is scaled down by.
    pub ends_with_scale: bool,
}

impl Retention {
    pub(super) fn of(set: &StatefulSet) -> Self {
        let policy = set.spec.persistent_volume_claim_retention_policy.as_ref();
        let deletes = |when: Option<&String>| when.is_some_and(|when| when == "Delete");
        Self {
            ends_with_set: deletes(policy.and_then(|policy| policy.when_deleted.as_ref())),
            ends_with_scale: deletes(policy.and_then(|policy| policy.when_scaled.as_ref())),
        }
    }

    fn is_idle(self) -> bool {
        !self.ends_with_set && !self.ends_with_scale
    }
}

/// `apiVersion`, kind, name and uid of one that may own a claim.
#[derive(Clone, Copy, Debug)]
pub(super) struct Who<'a> {
    pub api_version: &'a str,
    pub kind: &'a str,
    pub name: &'a str,
    pub uid: &'a str,
}

impl Who<'_> {
    /// Whether the reference names it, be it this one or one that had its name before.
    fn is_named(&self, reference: &OwnerReference) -> bool {
        reference.api_version == self.api_version && reference.kind == self.kind && reference.name == self.name
    }

    fn owns(&self, claim: &PersistentVolumeClaim) -> bool {
        references(claim).iter().any(|reference| reference.uid == self.uid)
    }

    /// Whether one that had its name before owns the claim.
    pub(super) fn is_reborn(&self, claim: &PersistentVolumeClaim) -> bool {
        references(claim).iter().any(|reference| self.is_named(reference) && reference.uid != self.uid)
    }
}

fn references(claim: &PersistentVolumeClaim) -> &[OwnerReference] {
    claim.metadata.owner_references.as_deref().unwrap_or_default()
}

/// What is to be done about the owners of a claim.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Verdict {
    /// The owners that it shall have, if they are others.
    pub owners: Option<Vec<OwnerReference>>,
    /// Somebody else decides about it.
    pub is_foreign: bool,
}

/// Who shall own the claim of a pod; `stays` says whether the pod's ordinal is wanted.
pub(super) fn verdict(
    claim: &PersistentVolumeClaim,
    set: Who<'_>,
    pod: Who<'_>,
    stays: bool,
    retention: Retention,
) -> Verdict {
    if set.is_reborn(claim) || pod.is_reborn(claim) {
        // It is the garbage collector's.
        return Verdict::default();
    }
    let is_ours = |reference: &OwnerReference| set.is_named(reference) || pod.is_named(reference);
    let others: Vec<OwnerReference> = references(claim).iter().filter(|it| !is_ours(it)).cloned().collect();
    let is_foreign = !retention.is_idle() && others.iter().any(|reference| reference.controller == Some(true));
    if is_foreign {
        let owned = set.owns(claim) || pod.owns(claim);
        return Verdict { owners: owned.then_some(others), is_foreign };
    }
    let by_set = retention.ends_with_set && (stays || !retention.ends_with_scale);
    let by_pod = retention.ends_with_scale && !stays;
    let is_half = |who: Who<'_>| {
        references(claim).iter().any(|reference| reference.uid == who.uid && reference.controller != Some(true))
    };
    if set.owns(claim) == by_set && pod.owns(claim) == by_pod && !is_half(set) && !is_half(pod) {
        return Verdict::default();
    }
    let mut owners = others;
    for (who, owns) in [(set, by_set), (pod, by_pod)] {
        if owns {
            owners.push(owner_reference(who.api_version, who.kind, Some(who.name), who.uid));
        }
    }
    Verdict { owners: Some(owners), is_foreign }
}

/// The name of a claim.
pub(super) fn name(template: &PersistentVolumeClaim, set: &str, ordinal: i32) -> String {
    format!("{}-{set}-{ordinal}", template.metadata.name.as_deref().unwrap_or_default())
}

/// The claims of the pod with this ordinal.
pub(super) fn wanted(set: &StatefulSet, ordinal: i32) -> impl Iterator<Item = PersistentVolumeClaim> {
    let set_name = set.metadata.name.as_deref().unwrap_or_default();
    let selected = set.spec.selector.match_labels.clone().unwrap_or_default();
    set.spec.volume_claim_templates.iter().flatten().map(move |template| {
        let mut labels = template.metadata.labels.clone().unwrap_or_default();
        labels.extend(selected.clone());
        PersistentVolumeClaim {
            metadata: ObjectMeta {
                name: Some(name(template, set_name, ordinal)),
                namespace: set.metadata.namespace.clone(),
                labels: Some(labels).filter(|labels| !labels.is_empty()),
                annotations: template.metadata.annotations.clone(),
                finalizers: template.metadata.finalizers.clone(),
                ..ObjectMeta::default()
            },
            spec: template.spec.clone(),
            status: None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const SET: Who<'_> = Who { api_version: "apps/v1", kind: "StatefulSet", name: "web", uid: "set" };
    const POD: Who<'_> = Who { api_version: "v1", kind: "Pod", name: "web-3", uid: "pod" };

    fn reference(kind: &str, name: &str, uid: &str, controller: bool) -> Value {
        let version = if kind == "Pod" { "v1" } else { "apps/v1" };
        json!({
            "apiVersion": version, "kind": kind, "name": name, "uid": uid, "controller": controller,
            "blockOwnerDeletion": controller,
        })
    }

    fn owners_of(
        references: &Value,
        stays: bool,
        ends_with_set: bool,
        ends_with_scale: bool,
    ) -> (Option<String>, bool) {
        let claim = serde_json::from_value(json!({"metadata": {"ownerReferences": references}, "spec": {}})).unwrap();
        let verdict = verdict(&claim, SET, POD, stays, Retention { ends_with_set, ends_with_scale });
        let uids = |owners: Vec<OwnerReference>| owners.into_iter().map(|it| it.uid).collect::<Vec<_>>().join(",");
        (verdict.owners.map(uids), verdict.is_foreign)
    }

    #[test]
    fn claims_go_with_whom_the_policy_says() {
        let (set, pod) = (reference("StatefulSet", "web", "set", true), reference("Pod", "web-3", "pod", true));
        let (none, by_set, by_pod, both) = (json!([]), json!([set]), json!([pod]), json!([set, pod]));
        for (with_set, with_scale, stays, right, becomes) in [
            (false, false, true, &none, ""),
            (false, false, false, &none, ""),
            (true, false, true, &by_set, "set"),
            (true, false, false, &by_set, "set"),
            (false, true, true, &none, ""),
            (false, true, false, &by_pod, "pod"),
            (true, true, true, &by_set, "set"),
            (true, true, false, &by_pod, "pod"),
        ] {
            for now in [&none, &by_set, &by_pod, &both] {
                let expected = (now != right).then(|| becomes.to_owned());
                let (owners, _) = owners_of(now, stays, with_set, with_scale);
                assert_eq!(owners, expected, "{with_set} {with_scale} {stays} {now}");
            }
        }
    }

    #[test]
    fn claims_of_others_are_left_alone() {
        let set = reference("StatefulSet", "web", "set", true);
        let (reborn, other) = (reference("Pod", "web-3", "older", true), reference("Database", "d", "d", true));
        let (half, guest) = (reference("StatefulSet", "web", "set", false), reference("Database", "d", "d", false));
        assert_eq!(owners_of(&json!([reborn]), false, true, true), (None, false));
        assert_eq!(owners_of(&json!([other]), true, true, false), (None, true));
        assert_eq!(owners_of(&json!([other, set]), true, true, false), (Some("d".to_owned()), true));
        assert_eq!(owners_of(&json!([other]), true, false, false), (None, false), "nothing is asked of it");
        assert_eq!(owners_of(&json!([half]), true, true, false), (Some("set".to_owned()), false));
        assert_eq!(owners_of(&json!([guest]), true, true, false), (Some("d,set".to_owned()), false));
    }

    #[test]
    fn names_and_labels_claims_after_the_set() {
        let set: StatefulSet = serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "n"},
            "spec": {
                "selector": {"matchLabels": {"app": "a"}}, "template": {"spec": {"containers": []}},
                "volumeClaimTemplates": [{
                    "metadata": {"name": "data", "labels": {"tier": "t"}},
                    "spec": {"accessModes": ["ReadWriteOnce"]}, "status": {"phase": "Pending"},
                }],
            },
        }))
        .unwrap();
        let claims: Vec<_> = wanted(&set, 2).collect();
        let expected = json!([{
            "apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "metadata": {"name": "data-web-2", "namespace": "n", "labels": {"app": "a", "tier": "t"}},
            "spec": {"accessModes": ["ReadWriteOnce"]},
        }]);
        assert_eq!(serde_json::to_value(claims).unwrap(), expected);
    }
}
