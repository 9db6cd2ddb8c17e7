//! StatefulSet: pods with names, and what stays with them.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::deployment::{count_or_percent, percent_of, value_of};
use super::value::{Read, child, default_to, default_when_zero, fields, items_mut, keep, remove};
use super::{
    AGE, Cell, FieldError, FieldErrors, Kind, NAME, Strategy, VERBS, checks, column, pod, podtemplate, table, wide,
};
use crate::meta::field::{Path, Printed};
use crate::meta::selector::{LabelSelector, validate_label_selector};
use crate::meta::{names, text};

pub(super) static KIND: Kind = Kind {
    group: "apps",
    version: "v1",
    kind: "StatefulSet",
    resource: "statefulsets",
    singular: "statefulset",
    short_names: &["sts"],
    categories: &["all"],
    namespaced: true,
    schema: "io.k8s.api.apps.v1.StatefulSet",
    collection: "statefulsets.apps",
    verbs: VERBS,
    has_status: true,
    has_scale: true,
    subresources: &[],
    selectable: &[],
    columns: &[NAME, column("Ready", "string"), AGE, wide("Containers", "string"), wide("Images", "string")],
    strategy: &StatefulSet,
};

struct StatefulSet;

impl Strategy for StatefulSet {
    fn default(&self, object: &mut Value) {
        let spec = child(object, "spec");
        default_when_zero(spec, "podManagementPolicy", "OrderedReady");
        let strategy = child(spec, "updateStrategy");
        if strategy["type"].is_empty() {
            default_when_zero(strategy, "type", "RollingUpdate");
            child(strategy, "rollingUpdate");
        }
        if strategy["type"] == "RollingUpdate" && strategy["rollingUpdate"].is_object() {
            let rolling = child(strategy, "rollingUpdate");
            default_to(rolling, "partition", 0);
            default_to(rolling, "maxUnavailable", 1);
        }
        let retention = child(spec, "persistentVolumeClaimRetentionPolicy");
        default_when_zero(retention, "whenDeleted", "Retain");
        default_when_zero(retention, "whenScaled", "Retain");
        default_to(spec, "replicas", 1);
        default_to(spec, "revisionHistoryLimit", 10);
        for claim in items_mut(spec, "volumeClaimTemplates") {
            fields(claim).insert("apiVersion".to_owned(), "v1".into());
            fields(claim).insert("kind".to_owned(), "PersistentVolumeClaim".into());
            default_to(child(claim, "spec"), "volumeMode", "Filesystem");
            default_when_zero(child(claim, "status"), "phase", "Pending");
        }
        podtemplate::default(child(spec, "template"));
        default_to(child(object, "status"), "replicas", 0);
        default_to(child(object, "status"), "availableReplicas", 0);
    }

    fn prepare_create(&self, object: &mut Value) {
        fields(object).insert("status".to_owned(), json!({"replicas": 0, "availableReplicas": 0}));
        pod::drop_disabled(child(child(child(object, "spec"), "template"), "spec"), None);
    }

    fn prepare_update(&self, object: &mut Value, old: &Value) {
        keep(object, old, "status");
        let spec = child(child(child(object, "spec"), "template"), "spec");
        pod::drop_disabled(spec, Some(&old["spec"]["template"]["spec"]));
    }

    fn prepare_status_update(&self, object: &mut Value, old: &Value) {
        keep(object, old, "spec");
    }

    fn validate(&self, object: &Value, errors: &mut FieldErrors) {
        validate_spec(&object["spec"], Judge::New, errors);
    }

    fn validate_update(&self, object: &Value, old: &Value, errors: &mut FieldErrors) {
        let (spec, before) = (&object["spec"], &old["spec"]);
        let mut known = FieldErrors::new();
        validate_spec(before, Judge::Changed, &mut known);
        let judge = if known.is_empty() { Judge::Changed } else { Judge::ChangedWithoutTemplate };
        validate_spec(spec, judge, errors);
        let path = Path::new("spec");
        checks::immutable_selector(&path.child("selector"), &spec["selector"], &before["selector"], errors);
        for field in ["volumeClaimTemplates", "serviceName", "podManagementPolicy"] {
            checks::immutable(&path.child(field), &spec[field], &before[field], errors);
        }
    }

    fn validate_status_update(&self, object: &Value, old: &Value, errors: &mut FieldErrors) {
        const COUNTS: [&str; 7] = [
            "replicas",
            "readyReplicas",
            "currentReplicas",
            "updatedReplicas",
            "availableReplicas",
            "observedGeneration",
            "collisionCount",
        ];
        let (status, path) = (&object["status"], Path::new("status"));
        for count in COUNTS {
            checks::nonnegative(&path.child(count), &status[count], errors);
        }
        let mut limit = |part: &str, whole: &str| {
            if status[part].int() > status[whole].int() {
                let detail = format!("cannot be greater than status.{whole}");
                errors.push(FieldError::invalid(path.child(part), status[part].int(), &detail));
            }
        };
        for part in ["readyReplicas", "currentReplicas", "updatedReplicas", "availableReplicas"] {
            limit(part, "replicas");
        }
        limit("availableReplicas", "readyReplicas");
        podtemplate::validate_collisions(status, &old["status"], errors);
    }

    /// Its pods are named after it, and their names are names of hosts.
    fn check_name(&self, name: &str, is_prefix: bool) -> Vec<String> {
        names::name_is_dns_label(name, is_prefix)
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        let spec = &object["spec"];
        let mut warnings = Vec::new();
        if old.is_none_or(|old| old["spec"] != *spec) {
            warnings = pod::template_warnings(&spec["template"], &Path::new("spec.template"));
        }
        if spec["revisionHistoryLimit"].int() < 0 {
            warnings.push(
                "spec.revisionHistoryLimit: a negative value retains all historical revisions; a value >= 0 is recommended"
                    .to_owned(),
            );
        }
        warnings
    }

    fn cells(&self, object: &Value) -> Vec<Cell> {
        let (spec, status) = (&object["spec"], &object["status"]);
        let [names, images] = table::containers(&spec["template"]["spec"]);
        vec![
            table::name(object),
            format!("{}/{}", status["readyReplicas"].int(), spec["replicas"].int()).into(),
            table::age(object),
            names,
            images,
        ]
    }
}

/// What an object is measured by: rules that were not always there do not hold for what was taken before.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Judge {
    New,
    Changed,
    /// The template was wrong before, too.
    ChangedWithoutTemplate,
}

fn validate_spec(spec: &Value, judge: Judge, errors: &mut FieldErrors) {
    let path = Path::new("spec");
    match spec["podManagementPolicy"].text() {
        "OrderedReady" | "Parallel" => {}
        "" => errors.push(FieldError::required(path.child("podManagementPolicy"), "")),
        policy => {
            let detail = "must be 'OrderedReady' or 'Parallel'";
            errors.push(FieldError::invalid(path.child("podManagementPolicy"), policy, detail));
        }
    }
    validate_strategy(&spec["updateStrategy"], &path.child("updateStrategy"), errors);
    let (retention, retention_path) =
        (&spec["persistentVolumeClaimRetentionPolicy"], path.child("persistentVolumeClaimRetentionPolicy"));
    if retention.is_set() {
        for field in ["whenDeleted", "whenScaled"] {
            checks::supported(&retention_path.child(field), &retention[field], &["Retain", "Delete"], errors);
        }
    }
    let claims = spec["volumeClaimTemplates"].items();
    if judge == Judge::New {
        let path = path.child("volumeClaimTemplates");
        for (index, claim) in claims.iter().enumerate() {
            pod::claim_spec(&claim["spec"], &path.index(index).child("spec"), errors);
        }
    }
    checks::nonnegative(&path.child("replicas"), &spec["replicas"], errors);
    checks::nonnegative(&path.child("minReadySeconds"), &spec["minReadySeconds"], errors);
    checks::nonnegative(&path.child("ordinals.start"), &spec["ordinals"]["start"], errors);
    if judge == Judge::New && !spec["serviceName"].is_empty() {
        checks::dns_label(&path.child("serviceName"), spec["serviceName"].text(), errors);
    }
    let (selector, selector_path) = (&spec["selector"], path.child("selector"));
    let shown = || checks::selector_text(selector);
    if selector.is_null() {
        errors.push(FieldError::required(selector_path, ""));
    } else {
        validate_label_selector(selector, &selector_path, errors);
        if selector["matchLabels"].is_empty() && selector["matchExpressions"].is_empty() {
            let detail = "empty selector is invalid for statefulset";
            errors.push(FieldError::invalid(selector_path, Printed(&shown()), detail));
        }
    }
    let (template, path) = (&spec["template"], path.child("template"));
    match LabelSelector::from_object(selector) {
        Err(_) => errors.push(FieldError::invalid(selector_path, Printed(&shown()), "")),
        Ok(parsed) => {
            let labels = &template["metadata"]["labels"];
            if !parsed.is_everything() && !parsed.matches(&labels.as_object()) {
                let detail = "`selector` does not match template `labels`";
                errors.push(FieldError::invalid(path.child("metadata.labels"), Printed(&text::json(labels)), detail));
            }
            if judge != Judge::ChangedWithoutTemplate {
                pod::validate_template(&of_a_pod(template, claims), None, &path, errors);
            }
        }
    }
    podtemplate::validate_endless(template, "StatefulSet", &path, errors);
}

/// The template as its pods have it: what the controller overwrites is not judged, and claims are volumes.
fn of_a_pod(template: &Value, claims: &[Value]) -> Value {
    let mut template = template.clone();
    let spec = child(&mut template, "spec");
    remove(spec, "subdomain");
    remove(spec, "hostname");
    if claims.is_empty() {
        return template;
    }
    let named: BTreeSet<&str> = claims.iter().map(|claim| claim["metadata"]["name"].text()).collect();
    let own = spec["volumes"].items().iter().filter(|volume| !named.contains(volume["name"].text()));
    let own: Vec<Value> = own.cloned().collect();
    let claimed = named.into_iter().map(|name| json!({"name": name, "persistentVolumeClaim": {"claimName": name}}));
    let volumes = claimed.chain(own).collect();
    fields(spec).insert("volumes".to_owned(), volumes);
    template
}

fn validate_strategy(strategy: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    let (rolling, rolling_path) = (&strategy["rollingUpdate"], path.child("rollingUpdate"));
    let null = |value: &Value| if value.is_null() { "null".to_owned() } else { text::json(value) };
    let shown = match rolling {
        Value::Null => "null".to_owned(),
        _ => {
            let (partition, unavailable) = (rolling["partition"].int(), null(&rolling["maxUnavailable"]));
            format!("{{\"Partition\":{partition},\"MaxUnavailable\":{unavailable}}}")
        }
    };
    match strategy["type"].text() {
        "" => errors.push(FieldError::required(path, "")),
        "OnDelete" if rolling.is_set() => {
            let detail = "only allowed for updateStrategy 'RollingUpdate'";
            errors.push(FieldError::invalid(rolling_path, Printed(&shown), detail));
        }
        "OnDelete" => {}
        "RollingUpdate" => {
            checks::nonnegative(&rolling_path.child("partition"), &rolling["partition"], errors);
            let (unavailable, path) = (&rolling["maxUnavailable"], rolling_path.child("maxUnavailable"));
            if unavailable.is_set() {
                count_or_percent(&path, unavailable, errors);
                if value_of(unavailable) == 0 {
                    errors.push(FieldError::invalid(path, unavailable, "cannot be 0"));
                }
                if percent_of(unavailable).is_some_and(|percent| percent > 100) {
                    errors.push(FieldError::invalid(path, unavailable, "must not be greater than 100%"));
                }
            }
        }
        kind => {
            let shown = format!("{{\"Type\":{},\"RollingUpdate\":{shown}}}", text::json(&kind.into()));
            let detail = "must be 'RollingUpdate' or 'OnDelete'";
            errors.push(FieldError::invalid(path, Printed(&shown), detail));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(change: &Value) -> Value {
        let mut set = json!({
            "metadata": {"name": "s"},
            "spec": {
                "selector": {"matchLabels": {"a": "b"}},
                "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "x"}]}},
            },
        });
        crate::patch::merge(&mut set, change).expect("a patch");
        StatefulSet.default(&mut set);
        StatefulSet.prepare_create(&mut set);
        set
    }

    fn words(errors: &FieldErrors) -> Vec<String> {
        errors.iter().map(|error| format!("{}: {}", error.field, error.message)).collect()
    }

    fn refusal(change: &Value) -> Vec<String> {
        let mut errors = FieldErrors::new();
        StatefulSet.validate(&set(&json!({ "spec": change })), &mut errors);
        words(&errors)
    }

    #[test]
    fn fills_in_what_the_reference_does() {
        let claim = json!({"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"]}});
        let set = set(&json!({"spec": {"volumeClaimTemplates": [claim]}}));
        let spec = &set["spec"];
        let rolling = json!({"type": "RollingUpdate", "rollingUpdate": {"partition": 0, "maxUnavailable": 1}});
        assert_eq!(spec["updateStrategy"], rolling);
        assert_eq!(spec["podManagementPolicy"], "OrderedReady");
        let retention = json!({"whenDeleted": "Retain", "whenScaled": "Retain"});
        assert_eq!(spec["persistentVolumeClaimRetentionPolicy"], retention);
        assert_eq!((&spec["replicas"], &spec["revisionHistoryLimit"]), (&json!(1), &json!(10)));
        let claim = json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "data"},
            "spec": {"accessModes": ["ReadWriteOnce"], "volumeMode": "Filesystem"}, "status": {"phase": "Pending"},
        });
        assert_eq!(spec["volumeClaimTemplates"], json!([claim]));
        assert_eq!(set["status"], json!({"replicas": 0, "availableReplicas": 0}));
    }

    #[test]
    fn refuses_what_the_reference_refuses_in_its_words() {
        let claim = json!([{"metadata": {"name": "d"}, "spec": {"accessModes": []}}]);
        for (change, expected) in [
            (json!({}), vec![]),
            (
                json!({"podManagementPolicy": "X"}),
                vec!["spec.podManagementPolicy: Invalid value: \"X\": must be 'OrderedReady' or 'Parallel'"],
            ),
            (
                json!({"updateStrategy": {"type": "Recreate"}}),
                vec![
                    "spec.updateStrategy: Invalid value: {\"Type\":\"Recreate\",\"RollingUpdate\":null}: must be \
                     'RollingUpdate' or 'OnDelete'",
                ],
            ),
            (
                json!({"updateStrategy": {"type": "OnDelete", "rollingUpdate": {"partition": -1}}}),
                vec![
                    "spec.updateStrategy.rollingUpdate: Invalid value: {\"Partition\":-1,\"MaxUnavailable\":null}: only \
                     allowed for updateStrategy 'RollingUpdate'",
                ],
            ),
            (
                json!({"updateStrategy": {"rollingUpdate": {"partition": -1, "maxUnavailable": 0}}}),
                vec![
                    "spec.updateStrategy.rollingUpdate.partition: Invalid value: -1: must be greater than or equal to 0",
                    "spec.updateStrategy.rollingUpdate.maxUnavailable: Invalid value: 0: cannot be 0",
                ],
            ),
            (
                json!({"updateStrategy": {"rollingUpdate": {"maxUnavailable": "101%"}}}),
                vec![
                    "spec.updateStrategy.rollingUpdate.maxUnavailable: Invalid value: \"101%\": must not be greater than \
                     100%",
                ],
            ),
            (
                json!({"persistentVolumeClaimRetentionPolicy": {"whenScaled": "Keep"}}),
                vec![
                    "spec.persistentVolumeClaimRetentionPolicy.whenScaled: Unsupported value: \"Keep\": supported values: \
                     \"Retain\", \"Delete\"",
                ],
            ),
            (
                json!({"volumeClaimTemplates": claim}),
                vec![
                    "spec.volumeClaimTemplates[0].spec.accessModes: Required value: at least 1 access mode is required",
                    "spec.volumeClaimTemplates[0].spec.resources[storage]: Required value",
                ],
            ),
            (
                json!({"ordinals": {"start": -1}, "replicas": -1}),
                vec![
                    "spec.replicas: Invalid value: -1: must be greater than or equal to 0",
                    "spec.ordinals.start: Invalid value: -1: must be greater than or equal to 0",
                ],
            ),
            (
                json!({"selector": {"matchLabels": {"a": "c"}}}),
                vec![
                    "spec.template.metadata.labels: Invalid value: {\"a\":\"b\"}: `selector` does not match template \
                     `labels`",
                ],
            ),
            (
                json!({"selector": null}),
                vec![
                    "spec.selector: Required value",
                    "spec.template.metadata.labels: Invalid value: {\"a\":\"b\"}: `selector` does not match template `labels`",
                ],
            ),
            (
                json!({"selector": {"matchLabels": null}}),
                vec!["spec.selector: Invalid value: {}: empty selector is invalid for statefulset"],
            ),
            (
                json!({"template": {"spec": {"activeDeadlineSeconds": 5}}}),
                vec![
                    "spec.template.spec.activeDeadlineSeconds: Forbidden: activeDeadlineSeconds in StatefulSet is not Supported",
                ],
            ),
            // What the controller writes itself is not judged, and claims are volumes.
            (json!({"template": {"spec": {"hostname": "No Name", "subdomain": "-"}}}), vec![]),
        ] {
            assert_eq!(refusal(&change), expected, "{change}");
        }
        let mounts = json!([{"name": "c", "image": "x", "volumeMounts": [{"name": "data", "mountPath": "/d"}]}]);
        let claim = json!([{"metadata": {"name": "data"}, "spec": {
            "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}]);
        let change = json!({"volumeClaimTemplates": claim, "template": {"spec": {"containers": mounts}}});
        assert_eq!(refusal(&change), Vec::<String>::new());
        assert_eq!(StatefulSet.check_name("big.name", false).len(), 1);
    }

    #[test]
    fn some_of_it_never_changes() {
        let before = set(&json!({"spec": {"serviceName": "old_name"}}));
        for (change, field) in [
            (json!({"serviceName": "other"}), Some("spec.serviceName")),
            (json!({"podManagementPolicy": "Parallel"}), Some("spec.podManagementPolicy")),
            (json!({"volumeClaimTemplates": [{"metadata": {"name": "d"}}]}), Some("spec.volumeClaimTemplates")),
            (
                json!({"replicas": 7, "minReadySeconds": 3, "ordinals": {"start": 1}, "updateStrategy": {"type": "OnDelete", "rollingUpdate": null}}),
                None,
            ),
            (json!({"template": {"spec": {"containers": [{"name": "c", "image": "y"}]}}}), None),
        ] {
            let mut after = before.clone();
            crate::patch::merge(&mut after, &json!({ "spec": change })).expect("a patch");
            StatefulSet.default(&mut after);
            let mut errors = FieldErrors::new();
            StatefulSet.validate_update(&after, &before, &mut errors);
            let words = words(&errors);
            assert_eq!(words.len(), usize::from(field.is_some()), "{change}: {words:?}");
            assert!(field.is_none_or(|field| words[0].starts_with(field) && words[0].ends_with("field is immutable")));
        }
        let mut errors = FieldErrors::new();
        let mut after = before.clone();
        after["status"] = json!({"replicas": 1, "readyReplicas": 2, "collisionCount": -1});
        StatefulSet.validate_status_update(&after, &before, &mut errors);
        assert_eq!(
            words(&errors),
            [
                "status.collisionCount: Invalid value: -1: must be greater than or equal to 0",
                "status.readyReplicas: Invalid value: 2: cannot be greater than status.replicas",
            ]
        );
    }
}
