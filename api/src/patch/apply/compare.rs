//! Which fields a write changes: the object before and after, walked together along its type.
//!
//! What is equal is not walked: a write of one field of a large object costs little more than comparing the two.

use std::cmp::Ordering;

use serde_json::{Map, Value};

use super::fieldset::{FieldSet, put};
use super::typed::{EMPTY, Fields, Shape, Wrong, no_step, resolved, shape, stand_in, step};
use super::{UNOWNED, UNOWNED_METADATA, element};
use crate::schema::{List, Object, Type};

/// What differs between two objects.
#[derive(Debug, Default)]
pub(super) struct Difference {
    /// Fields that are new or have another value.
    pub changed: FieldSet,
    /// Fields that are gone.
    pub removed: FieldSet,
}

/// The same below some field, and whether the field itself belongs to it.
#[derive(Default)]
struct Delta {
    changed: Map<String, Value>,
    removed: Map<String, Value>,
    is_changed: bool,
    is_removed: bool,
}

impl Delta {
    /// Takes over what is below a step.
    fn take(&mut self, step: impl FnOnce() -> String, below: Delta) {
        let removes = below.is_removed || !below.removed.is_empty();
        let changes = below.is_changed || !below.changed.is_empty();
        if !removes && !changes {
            return;
        }
        let step = step();
        if removes {
            put(&mut self.removed, step.clone(), below.is_removed, below.removed);
        }
        if changes {
            put(&mut self.changed, step, below.is_changed, below.changed);
        }
    }

    fn leaf(before: Option<&Value>, after: Option<&Value>) -> Self {
        Self {
            is_changed: after.is_some() && before != after,
            is_removed: before.is_some() && after.is_none(),
            ..Self::default()
        }
    }
}

/// Compares two objects; fields that nobody can own are left out.
pub(super) fn compare(before: &Value, after: &Value, object: &Object) -> Result<Difference, Wrong> {
    let fields = Fields::of_object(object);
    let mut delta = fields_of(before.as_object(), after.as_object(), fields, UNOWNED)?;
    let metadata = (before.get("metadata").unwrap_or(&EMPTY), after.get("metadata").unwrap_or(&EMPTY));
    if let (Some(ty), (Value::Object(before), Value::Object(after))) = (fields.of("metadata"), metadata)
        && let Shape::Fields(fields) = shape(&resolved(ty), None)
    {
        let step = || element::field("metadata");
        delta.changed.remove(&step());
        delta.removed.remove(&step());
        delta.take(step, fields_of(Some(before), Some(after), fields, UNOWNED_METADATA)?);
    }
    Ok(Difference { changed: FieldSet::trusted(delta.changed), removed: FieldSet::trusted(delta.removed) })
}

fn walk(before: Option<&Value>, after: Option<&Value>, ty: &Type) -> Result<Delta, Wrong> {
    if before == after {
        return Ok(Delta::default());
    }
    let ty = &*resolved(ty);
    let of = |value| walk_as(before, after, shape(ty, value));
    match (ty, before, after) {
        // A value of any type that turns into another kind of value loses its parts and gets new ones.
        (Type::Deduced, Some(old), Some(new)) if old.is_object() != new.is_object() => {
            let mut delta = of(before)?;
            let other = of(after)?;
            delta.is_changed |= other.is_changed;
            delta.changed.extend(other.changed);
            delta.removed.extend(other.removed);
            Ok(delta)
        }
        _ => of(after.or(before)),
    }
}

fn walk_as(before: Option<&Value>, after: Option<&Value>, shape: Shape<'_>) -> Result<Delta, Wrong> {
    let mut delta = match shape {
        Shape::Leaf => return Ok(Delta::leaf(before, after)),
        Shape::Fields(fields) => {
            let (old, new) = (before.and_then(Value::as_object), after.and_then(Value::as_object));
            // Nothing on both sides is one value: empty and absent are told apart.
            if old.is_none_or(Map::is_empty) && new.is_none_or(Map::is_empty) {
                return Ok(Delta::leaf(before, after));
            }
            fields_of(old, new, fields, &[])?
        }
        Shape::Items(list) => {
            let (old, new) = (before.and_then(Value::as_array), after.and_then(Value::as_array));
            if old.is_none_or(Vec::is_empty) && new.is_none_or(Vec::is_empty) {
                return Ok(Delta::leaf(before, after));
            }
            items_of(old.map_or(&[], Vec::as_slice), new.map_or(&[], Vec::as_slice), list)?
        }
    };
    delta.is_changed = before.is_none();
    delta.is_removed = after.is_none();
    Ok(delta)
}

fn fields_of(
    before: Option<&Map<String, Value>>,
    after: Option<&Map<String, Value>>,
    fields: Fields<'_>,
    skipped: &[&str],
) -> Result<Delta, Wrong> {
    let mut delta = Delta::default();
    let mut olds = before.into_iter().flatten().peekable();
    let mut news = after.into_iter().flatten().peekable();
    loop {
        // Both are sorted by name.
        let order = match (olds.peek(), news.peek()) {
            (None, None) => return Ok(delta),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((old, _)), Some((new, _))) => old.cmp(new),
        };
        let old = if order.is_le() { olds.next() } else { None };
        let new = if order.is_ge() { news.next() } else { None };
        let Some((name, _)) = old.or(new) else { return Ok(delta) };
        let (old, new) = (old.map(|(_, value)| value), new.map(|(_, value)| value));
        if old == new || skipped.contains(&name.as_str()) {
            continue;
        }
        let declared = fields.declared(name);
        let Some(ty) = declared.map(|field| &field.ty).or(fields.others) else { continue };
        let stand_in = declared.and_then(stand_in);
        let old = old.or(stand_in.filter(|_| before.is_some()));
        let new = new.or(stand_in.filter(|_| after.is_some()));
        let below = walk(old, new, ty).map_err(|wrong| wrong.within(&element::field(name)))?;
        delta.take(|| element::field(name), below);
    }
}

fn items_of(before: &[Value], after: &[Value], list: &List) -> Result<Delta, Wrong> {
    let (olds, news) = (indexed(before, list)?, indexed(after, list)?);
    let mut delta = Delta::default();
    let (mut i, mut j) = (0, 0);
    while i < olds.len() || j < news.len() {
        // The smaller of both steps, and the items with it.
        let step = match (olds.get(i), news.get(j)) {
            (Some((old, _)), Some((new, _))) => old.min(new),
            (Some((step, _)), None) | (None, Some((step, _))) => step,
            (None, None) => break,
        };
        let count = |items: &[(String, &Value)]| items.iter().take_while(|(other, _)| other == step).count();
        let (old, new) = (&olds[i..i + count(&olds[i..])], &news[j..j + count(&news[j..])]);
        (i, j) = (i + old.len(), j + new.len());
        let below = match (old, new) {
            ([], []) => break,
            ([] | [_], [] | [_]) => {
                walk(old.first().map(|(_, item)| *item), new.first().map(|(_, item)| *item), &list.items)
            }
            // Items that share a step are looked at together, as one value.
            ([_, _, ..], [_, _, ..]) => {
                let is_equal = old.iter().map(|(_, item)| item).eq(new.iter().map(|(_, item)| item));
                Ok(Delta { is_changed: !is_equal, ..Delta::default() })
            }
            ([_, _, ..], rest) => {
                let below = rest.first().map(|(_, item)| walk(None, Some(item), &list.items)).transpose();
                below.map(|below| Delta { is_removed: true, ..below.unwrap_or_default() })
            }
            (rest, [_, _, ..]) => {
                let below = rest.first().map(|(_, item)| walk(Some(item), None, &list.items)).transpose();
                below.map(|below| Delta { is_changed: true, ..below.unwrap_or_default() })
            }
        };
        let below = below.map_err(|wrong| wrong.within(step))?;
        delta.take(|| step.clone(), below);
    }
    Ok(delta)
}

/// The items with their steps, sorted by these; items that share one stay in order.
fn indexed<'a>(items: &'a [Value], list: &List) -> Result<Vec<(String, &'a Value)>, Wrong> {
    let mut indexed = Vec::with_capacity(items.len());
    for (index, item) in items.iter().enumerate() {
        indexed.push((step(list, item).map_err(|why| no_step(list, index, why))?, item));
    }
    indexed.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(indexed)
}
