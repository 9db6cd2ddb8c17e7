//! Takes fields out of an object that their manager no longer applies, unless another owns them.

use serde_json::{Map, Value};

use super::element;
use super::extract::fields;
use super::fieldset::{FieldSet, below, is_member, put};
use super::typed::{Fields, Shape, resolved, shape, step};
use crate::schema::{Object, Type};

/// Takes out of the merged object what `last` (what the manager applied before) has and nobody in `owned` (all managers
/// together, with what the manager applies now) has.
pub(super) fn prune(merged: Value, last: &FieldSet, owned: FieldSet, object: &Object) -> Value {
    if last.is_empty() {
        return merged;
    }
    let named = |set: &FieldSet| with_named_fields(set.tree(), Fields::of_object(object));
    let all = named(&fields(&merged, object));
    let last = named(last);
    let mut pruned = merged.clone();
    remove(&mut pruned, last.tree(), object);
    // What was taken along although it has an owner comes back,
    let mut gone = all.clone();
    let mut kept = named(&fields(&pruned, object));
    kept.union(named(&owned));
    gone.subtract(&kept);
    let mut pruned = merged.clone();
    remove(&mut pruned, gone.tree(), object);
    // and so does what was below it but never belonged to this manager.
    let mut gone = all;
    gone.subtract(&named(&fields(&pruned, object)));
    let gone = gone.intersection(&last);
    let mut pruned = merged;
    remove(&mut pruned, gone.tree(), object);
    pruned
}

/// Takes these fields out.
fn remove(value: &mut Value, set: &Map<String, Value>, object: &Object) {
    remove_as(value, set, Shape::Fields(Fields::of_object(object)));
}

fn remove_below(value: &mut Value, set: &Map<String, Value>, ty: &Type) {
    let ty = resolved(ty);
    let shape = shape(&ty, Some(value));
    remove_as(value, set, shape);
}

fn remove_as(value: &mut Value, set: &Map<String, Value>, shape: Shape<'_>) {
    match (shape, &mut *value) {
        (Shape::Fields(known), Value::Object(map)) => {
            map.retain(|name, field| {
                let step = element::field(name);
                let Some(Value::Object(node)) = set.get(&step) else { return true };
                if is_member(node) {
                    return false;
                }
                if let Some(ty) = known.of(name) {
                    remove_below(field, node, ty);
                }
                true
            });
            // What became empty by this is nothing: it is left out when the object is read again.
            if map.is_empty() {
                *value = Value::Null;
            }
        }
        (Shape::Items(list), Value::Array(items)) => {
            items.retain_mut(|item| {
                let Ok(step) = step(list, item) else { return true };
                let Some(Value::Object(node)) = set.get(&step) else { return true };
                if is_member(node) {
                    return false;
                }
                remove_below(item, node, &list.items);
                true
            });
            if items.is_empty() {
                *value = Value::Null;
            }
        }
        // One value has no parts that could be owned; a set that says otherwise is of another time.
        (Shape::Leaf, Value::Object(_) | Value::Array(_)) => *value = Value::Null,
        _ => {}
    }
}

/// The set with all declared fields on the way to its members: sets do not list `spec`, only what is below.
fn with_named_fields(set: &Map<String, Value>, known: Fields<'_>) -> FieldSet {
    let mut out = Map::new();
    for step in set.keys().filter(|step| *step != ".") {
        let member = set.get(step).and_then(Value::as_object).is_some_and(is_member);
        let Some(node) = below(set, step) else {
            put(&mut out, step.clone(), member, Map::new());
            continue;
        };
        let name = step.strip_prefix("f:").unwrap_or_default();
        let is_declared = known.declared(name).is_some();
        let children = match known.of(name) {
            Some(ty) if step.starts_with("f:") => named_below(node, ty),
            _ => with_named_fields(node, Fields { object: None, others: None }),
        };
        put(&mut out, step.clone(), member || is_declared, children.into_tree());
    }
    FieldSet::trusted(out)
}

fn named_below(set: &Map<String, Value>, ty: &Type) -> FieldSet {
    let ty = &*resolved(ty);
    match ty {
        Type::Object(object) => with_named_fields(set, Fields::of_object(object)),
        Type::Map(map) => with_named_fields(set, Fields { object: None, others: Some(&map.values) }),
        Type::List(list) => {
            let mut out = Map::new();
            for step in set.keys().filter(|step| *step != ".") {
                let member = set.get(step).and_then(Value::as_object).is_some_and(is_member);
                let children = below(set, step).map(|node| named_below(node, &list.items)).unwrap_or_default();
                put(&mut out, step.clone(), member, children.into_tree());
            }
            FieldSet::trusted(out)
        }
        _ => with_named_fields(set, Fields { object: None, others: None }),
    }
}
