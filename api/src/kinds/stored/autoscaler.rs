//! HorizontalPodAutoscaler. What is stored is version 2; version 1 knows one target, the use of the processor, and keeps
//! everything else in annotations, so that nothing is lost when it is read and written in that version.

mod validation;

use serde_json::{Map, Value, json};

use super::show::Show::{Age, Name, Number, Of, Text};
use super::show::at;
use super::{ALL, BLANK, Kind, Stored, Support};
use crate::codec;
use crate::kinds::value::{Read, child, default_to, fields, or, remove};
use crate::kinds::{AGE, Cell, Column, NAME, column};
use crate::schema;

const COLUMNS: &[Column] = &[
    NAME,
    column("Reference", "string"),
    column("Targets", "string"),
    column("MinPods", "string"),
    column("MaxPods", "string"),
    column("Replicas", "string"),
    AGE,
];

const STORED: Stored = Stored {
    schema: "io.k8s.api.autoscaling.v2.HorizontalPodAutoscaler",
    shows: &[
        Name,
        Of(|object| {
            let target = &object["spec"]["scaleTargetRef"];
            format!("{}/{}", target["kind"].text(), target["name"].text()).into()
        }),
        Of(targets),
        Text("spec.minReplicas", "<unset>"),
        Number("spec.maxReplicas"),
        Number("status.currentReplicas"),
        Age,
    ],
    once: true,
    check_change: validation::update,
    check_status: |object, _, errors| validation::status(object, errors),
    ..Stored::new(Support::Honoured).counted().default_by(default).check_by(validation::create)
};

const ROW: Kind = Kind {
    group: "autoscaling",
    version: "v2",
    kind: "HorizontalPodAutoscaler",
    resource: "horizontalpodautoscalers",
    singular: "horizontalpodautoscaler",
    short_names: &["hpa"],
    categories: ALL,
    namespaced: true,
    schema: "io.k8s.api.autoscaling.v2.HorizontalPodAutoscaler",
    collection: "horizontalpodautoscalers.autoscaling",
    has_status: true,
    columns: COLUMNS,
    strategy: &STORED,
    ..BLANK
};

pub(super) static ROWS: &[Kind] = &[
    ROW,
    Kind {
        version: "v1",
        schema: "io.k8s.api.autoscaling.v1.HorizontalPodAutoscaler",
        strategy: &Stored { convert: Some([to_v2, to_v1]), ..STORED },
        ..ROW
    },
];

fn default(object: &mut Value) {
    let spec = child(object, "spec");
    default_to(spec, "minReplicas", 1);
    if spec["metrics"].is_empty() {
        fields(spec).insert("metrics".to_owned(), json!([cpu_target(&json!(80))]));
    }
    if !spec["behavior"].is_object() {
        return;
    }
    let behavior = child(spec, "behavior");
    let up = child(behavior, "scaleUp");
    default_to(up, "stabilizationWindowSeconds", 0);
    default_to(up, "selectPolicy", "Max");
    let policy = |kind: &str, value: i32| json!({"type": kind, "value": value, "periodSeconds": 15});
    default_to(up, "policies", json!([policy("Pods", 4), policy("Percent", 100)]));
    let down = child(behavior, "scaleDown");
    default_to(down, "selectPolicy", "Max");
    default_to(down, "policies", json!([policy("Percent", 100)]));
}

fn cpu_target(percent: &Value) -> Value {
    let target = json!({"type": "Utilization", "averageUtilization": percent});
    json!({"type": "Resource", "resource": {"name": "cpu", "target": target}})
}

/// Kinds of metrics: type, field, and where version 2 and version 1 keep what they say. `V` is `target` or `current`, `%`
/// is the same as a prefix.
type Source = (&'static str, &'static str, &'static [(&'static str, &'static str)]);
const SOURCES: [Source; 5] = [
    (
        "Resource",
        "resource",
        &[("name", "name"), ("V.averageUtilization", "%AverageUtilization"), ("V.averageValue", "%AverageValue")],
    ),
    (
        "ContainerResource",
        "containerResource",
        &[
            ("name", "name"),
            ("container", "container"),
            ("V.averageUtilization", "%AverageUtilization"),
            ("V.averageValue", "%AverageValue"),
        ],
    ),
    (
        "Pods",
        "pods",
        &[("metric.name", "metricName"), ("metric.selector", "selector"), ("V.averageValue", "%AverageValue")],
    ),
    (
        "Object",
        "object",
        &[
            ("describedObject", "target"),
            ("metric.name", "metricName"),
            ("metric.selector", "selector"),
            ("V.value", "%Value"),
            ("V.averageValue", "averageValue"),
        ],
    ),
    (
        "External",
        "external",
        &[
            ("metric.name", "metricName"),
            ("metric.selector", "metricSelector"),
            ("V.value", "%Value"),
            ("V.averageValue", "%AverageValue"),
        ],
    ),
];

/// Lists of metrics: where, the word in it, the annotation of version 1, and its field for the processor.
const LISTS: [(&str, &str, &str, &str, &str); 2] = [
    ("spec", "metrics", "target", "autoscaling.alpha.kubernetes.io/metrics", "targetCPUUtilizationPercentage"),
    (
        "status",
        "currentMetrics",
        "current",
        "autoscaling.alpha.kubernetes.io/current-metrics",
        "currentCPUUtilizationPercentage",
    ),
];
/// What version 1 keeps as it is in an annotation.
const WHOLE: [(&str, &str, &str); 2] = [
    ("spec", "behavior", "autoscaling.alpha.kubernetes.io/behavior"),
    ("status", "conditions", "autoscaling.alpha.kubernetes.io/conditions"),
];

fn source(metric: &Value) -> Option<&'static Source> {
    SOURCES.iter().find(|(kind, _, _)| metric["type"] == *kind)
}

/// A metric in the form of version 1's annotation.
fn metric_to_v1(metric: &Value, word: &str) -> Value {
    let Some((kind, field, pairs)) = source(metric) else { return metric.clone() };
    let mut flat = Map::new();
    for (new, old) in *pairs {
        let value = at(&metric[*field], &new.replace("V.", &format!("{word}.")));
        if value.is_set() {
            flat.insert(old.replace('%', word), value.clone());
        }
    }
    json!({"type": kind, *field: flat})
}

fn metric_to_v2(metric: &Value, word: &str) -> Value {
    let Some((kind, field, pairs)) = source(metric) else { return metric.clone() };
    let mut full = json!({});
    for (new, old) in *pairs {
        let value = &metric[*field][old.replace('%', word).as_str()];
        if value.is_null() {
            continue;
        }
        match new.replace("V.", &format!("{word}.")).split_once('.') {
            Some((outer, inner)) => drop(fields(child(&mut full, outer)).insert(inner.to_owned(), value.clone())),
            None => drop(fields(&mut full).insert((*new).to_owned(), value.clone())),
        }
    }
    if word == "target" {
        let target = child(&mut full, "target");
        let kinds = [("averageUtilization", "Utilization"), ("averageValue", "AverageValue"), ("value", "Value")];
        if let Some((_, name)) = kinds.iter().find(|(field, _)| target[*field].is_set()) {
            default_to(target, "type", *name);
        }
    }
    json!({"type": kind, *field: full})
}

/// Whether it is what version 1 has a field for.
fn is_cpu(metric: &Value, word: &str) -> bool {
    let resource = &metric["resource"];
    metric["type"] == "Resource" && resource["name"] == "cpu" && resource[word]["averageUtilization"].is_set()
}

fn to_v1(object: &mut Value) {
    fields(object).insert("apiVersion".to_owned(), "autoscaling/v1".into());
    let mut notes: Vec<(&str, Value)> = Vec::new();
    for (place, list, word, note, field) in LISTS {
        let Some(metrics) = object.get_mut(place).and_then(Value::as_object_mut).and_then(|part| part.remove(list))
        else {
            continue;
        };
        let (cpu, others): (Vec<&Value>, Vec<&Value>) = metrics.items().iter().partition(|metric| is_cpu(metric, word));
        if let Some(metric) = cpu.last() {
            let percent = metric["resource"][word]["averageUtilization"].clone();
            fields(child(object, place)).insert(field.to_owned(), percent);
        }
        if !others.is_empty() {
            notes.push((note, others.into_iter().map(|metric| metric_to_v1(metric, word)).collect()));
        }
    }
    for (place, field, note) in WHOLE {
        let value = object.get_mut(place).and_then(Value::as_object_mut).and_then(|part| part.remove(field));
        notes.extend(value.filter(|value| !value.is_empty()).map(|value| (note, value)));
    }
    // Version 1 always writes it, version 2 never when it is 0.
    if object["status"].is_object() {
        default_to(child(object, "status"), "currentReplicas", 0);
    }
    for (note, value) in notes {
        let annotations = child(child(object, "metadata"), "annotations");
        fields(annotations).insert(note.to_owned(), value.to_string().into());
    }
}

/// What an annotation says of a field, if version 2 can hold it. As in the reference, everything else is dropped: what is
/// stored has to be read by clients that know its types.
fn typed(place: &str, field: &str, said: &Value) -> Option<Value> {
    let part = if place == "spec" { "Spec" } else { "Status" };
    let schema = schema::named(&format!("io.k8s.api.autoscaling.v2.HorizontalPodAutoscaler{part}"))?;
    let mut read = codec::json::decode_value(&json!({field: said}), &schema).ok()?.value;
    Some(read.get_mut(field)?.take()).filter(|value| !value.is_empty())
}

fn to_v2(object: &mut Value) {
    fields(object).insert("apiVersion".to_owned(), "autoscaling/v2".into());
    if object["status"]["currentReplicas"] == 0 {
        remove(child(object, "status"), "currentReplicas");
    }
    let take = |object: &mut Value, note: &str| -> Option<Value> {
        let annotations = object.get_mut("metadata")?.get_mut("annotations")?.as_object_mut()?;
        serde_json::from_str(annotations.remove(note)?.as_str()?).ok()
    };
    for (place, list, word, note, field) in LISTS {
        let mut metrics: Vec<Value> = Vec::new();
        if let Some(others) = take(object, note) {
            let others: Value = others.items().iter().map(|metric| metric_to_v2(metric, word)).collect();
            metrics.extend(typed(place, list, &others).iter().flat_map(|others| others.items()).cloned());
        }
        let percent = object.get_mut(place).and_then(Value::as_object_mut).and_then(|part| part.remove(field));
        if let Some(percent) = percent.filter(Value::is_number) {
            let mut metric = cpu_target(&percent);
            if word == "current" {
                metric["resource"] = json!({"name": "cpu", "current": {"averageUtilization": percent}});
            }
            metrics.insert(0, metric);
        }
        if !metrics.is_empty() {
            fields(child(object, place)).insert(list.to_owned(), metrics.into());
        }
    }
    for (place, field, note) in WHOLE {
        if let Some(value) = take(object, note).and_then(|said| typed(place, field, &said)) {
            fields(child(object, place)).insert(field.to_owned(), value);
        }
    }
    let metadata = child(object, "metadata");
    if metadata["annotations"].is_object() && metadata["annotations"].is_empty() {
        fields(metadata).remove("annotations");
    }
}

/// Current and wanted values of the first two metrics, and how many more there are.
fn targets(object: &Value) -> Cell {
    const SHOWN: usize = 2;
    let metrics = object["spec"]["metrics"].items();
    let current = &object["status"]["currentMetrics"];
    let shown: Vec<String> =
        metrics.iter().take(SHOWN).enumerate().map(|(i, metric)| target(metric, &current[i])).collect();
    match metrics.len() {
        0 => "<none>".into(),
        count if count > SHOWN => format!("{} + {} more...", shown.join(", "), count - SHOWN).into(),
        _ => shown.join(", ").into(),
    }
}

fn target(metric: &Value, status: &Value) -> String {
    let Some((kind, field, _)) = source(metric) else { return "<unknown type>".to_owned() };
    let (target, current) = (&metric[*field]["target"], &status[*field]["current"]);
    let of_resource = kind.ends_with("Resource");
    let prefix = if of_resource { format!("{}: ", metric[*field]["name"].text()) } else { String::new() };
    let known = |value: &Value| or(value.text(), "<unknown>").to_owned();
    if target["averageValue"].is_set() {
        let suffix = if matches!(*kind, "Object" | "External") { " (avg)" } else { "" };
        return format!("{prefix}{}/{}{suffix}", known(&current["averageValue"]), target["averageValue"].text());
    }
    if of_resource {
        let percent = |value: &Value, otherwise: &str| match value.maybe_int() {
            Some(percent) => format!("{percent}%"),
            None => otherwise.to_owned(),
        };
        let (is, wanted) = (&current["averageUtilization"], &target["averageUtilization"]);
        return format!("{prefix}{}/{}", percent(is, "<unknown>"), percent(wanted, "<auto>"));
    }
    format!("{}/{}", known(&current["value"]), or(target["value"].text(), "0"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_1_loses_nothing() {
        let stored = json!({
            "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "a"},
            "spec": {
                "scaleTargetRef": {"kind": "Deployment", "name": "a"}, "maxReplicas": 3, "minReplicas": 1,
                "behavior": {"scaleDown": {"selectPolicy": "Max"}},
                "metrics": [
                    cpu_target(&json!(50)),
                    {"type": "Pods", "pods": {"metric": {"name": "hits"}, "target": {"type": "AverageValue", "averageValue": "5"}}},
                    {"type": "Object", "object": {
                        "describedObject": {"kind": "Service", "name": "s"}, "metric": {"name": "hits"},
                        "target": {"type": "Value", "value": "7"},
                    }},
                ],
            },
            "status": {
                "currentMetrics": [{"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": 20}}}],
            },
        });
        let mut old = stored.clone();
        to_v1(&mut old);
        assert_eq!(old["spec"]["targetCPUUtilizationPercentage"], 50);
        assert_eq!(old["status"], json!({"currentCPUUtilizationPercentage": 20, "currentReplicas": 0}));
        assert_eq!(old["metadata"]["annotations"].count(), 2);
        to_v2(&mut old);
        assert_eq!(old, stored);
        let expected: Cell = "cpu: 20%/50%, <unknown>/5 + 1 more...".into();
        assert_eq!(targets(&stored), expected);
    }

    #[test]
    fn an_annotation_that_version_2_cannot_hold_is_dropped() {
        for (note, said) in [
            ("behavior", "7"),
            ("behavior", "[]"),
            ("behavior", r#"{"scaleDown": {"policies": 7}}"#),
            ("behavior", "no JSON"),
            ("metrics", "[7]"),
            ("metrics", r#"[{"type": "Pods", "pods": {"metricName": 7}}]"#),
            ("metrics", "7"),
            ("current-metrics", r#"[{"type": 7}]"#),
            ("conditions", r#"{"type": "x"}"#),
            ("conditions", "[7]"),
        ] {
            let spec = json!({"scaleTargetRef": {"kind": "Deployment", "name": "a"}, "maxReplicas": 3});
            let annotations = json!({format!("autoscaling.alpha.kubernetes.io/{note}"): said});
            let mut object = json!({"metadata": {"name": "a", "annotations": annotations}, "spec": spec.clone()});
            to_v2(&mut object);
            assert_eq!(
                object,
                json!({"apiVersion": "autoscaling/v2", "metadata": {"name": "a"}, "spec": spec}),
                "{said}"
            );
        }
    }
}
