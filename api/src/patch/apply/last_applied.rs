//! `kubectl apply` before server-side apply: its annotation says what kubectl owns.

use serde_json::{Map, Value};

use super::Target;
use super::compare::compare;
use super::extract::{check, fields};
use super::fieldset::FieldSet;
use crate::meta::{annotation, annotations, metadata_mut, text};

const ANNOTATION: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// All annotations together; an annotation that does not fit is left out.
const ANNOTATIONS_MAX: usize = 256 << 10;

/// The fields that the annotation has with the value that they still have: kubectl may take them over.
pub(super) fn owned(live: &Value, target: &Target<'_>) -> Option<FieldSet> {
    let last = crate::codec::json::parse(annotation(live, ANNOTATION)?.as_bytes()).ok()?;
    let version = last.get("apiVersion").and_then(Value::as_str);
    if version != Some(target.api_version) || !check(&last, target.object).is_empty() {
        return None;
    }
    let difference = compare(&last, live, target.object).ok()?;
    let mut owned = fields(&last, target.object);
    owned.subtract(&difference.changed);
    owned.subtract(&difference.removed);
    Some(owned)
}

/// Writes what kubectl applied into the annotation of an object that has one, so that either way of applying can go on.
pub(super) fn refresh(object: &mut Value, config: &Value) {
    if annotation(object, ANNOTATION).is_none_or(str::is_empty) {
        return;
    }
    let mut applied = config.clone();
    if let Some(annotations) = applied.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) {
        annotations.remove(ANNOTATION);
    }
    let mut line = text::json(&applied);
    line.push('\n');
    let others = annotations(object).into_iter().flatten().filter(|(name, _)| *name != ANNOTATION);
    let bytes: usize = others.map(|(name, value)| name.len() + value.as_str().map_or(0, str::len)).sum();
    let fits = bytes + ANNOTATION.len() + line.len() <= ANNOTATIONS_MAX;
    let annotations = metadata_mut(object).entry("annotations").or_insert_with(|| Value::Object(Map::new()));
    if let Value::Object(annotations) = annotations {
        match fits {
            true => drop(annotations.insert(ANNOTATION.to_owned(), Value::String(line))),
            false => drop(annotations.remove(ANNOTATION)),
        }
    }
}
