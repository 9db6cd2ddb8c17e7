//! Merges a configuration into an object: what the configuration has wins, what it has not stays.

use std::collections::{HashMap, HashSet, VecDeque};

use serde_json::{Map, Value};

use super::element;
use super::typed::{Fields, Shape, Wrong, no_step, resolved, shape, step};
use crate::schema::{List, Object, Type};

/// The merged object.
pub(super) fn merge(live: &Value, config: &Value, object: &Object) -> Result<Value, Wrong> {
    let shape = Shape::Fields(Fields::of_object(object));
    Ok(merge_as(Some(live), Some(config), shape)?.unwrap_or_else(|| Value::Object(Map::new())))
}

fn merge_value(live: Option<&Value>, config: Option<&Value>, ty: &Type) -> Result<Option<Value>, Wrong> {
    let ty = resolved(ty);
    let looked_at = config.filter(|config| !config.is_null()).or(live).or(config);
    merge_as(live, config, shape(&ty, looked_at))
}

fn merge_as(live: Option<&Value>, config: Option<&Value>, shape: Shape<'_>) -> Result<Option<Value>, Wrong> {
    match shape {
        Shape::Leaf => Ok(config.or(live).cloned()),
        Shape::Fields(fields) => {
            let (old, new) = (live.and_then(Value::as_object), config.and_then(Value::as_object));
            // Nothing on both sides is one value, so that empty and null stay what they are.
            if old.is_none_or(Map::is_empty) && new.is_none_or(Map::is_empty) {
                return Ok(config.or(live).cloned());
            }
            merge_fields(old, new, fields)
        }
        Shape::Items(list) => {
            let (old, new) = (live.and_then(Value::as_array), config.and_then(Value::as_array));
            if old.is_none_or(Vec::is_empty) && new.is_none_or(Vec::is_empty) {
                return Ok(config.or(live).cloned());
            }
            merge_items(old.map_or(&[], Vec::as_slice), new.map_or(&[], Vec::as_slice), list)
        }
    }
}

fn merge_fields(
    live: Option<&Map<String, Value>>,
    config: Option<&Map<String, Value>>,
    fields: Fields<'_>,
) -> Result<Option<Value>, Wrong> {
    let mut out = Map::new();
    for (name, old) in live.into_iter().flatten() {
        let merged = match (config.and_then(|config| config.get(name)), fields.of(name)) {
            (Some(new), Some(ty)) => {
                merge_value(Some(old), Some(new), ty).map_err(|wrong| wrong.within(&element::field(name)))?
            }
            (new, _) => Some(new.unwrap_or(old).clone()),
        };
        out.extend(merged.map(|merged| (name.clone(), merged)));
    }
    for (name, new) in config.into_iter().flatten() {
        if live.is_some_and(|live| live.contains_key(name)) {
            continue;
        }
        // Walked as well: lists are checked, and what turns out to be nothing is left out.
        let merged = match fields.of(name) {
            Some(ty) => merge_value(None, Some(new), ty).map_err(|wrong| wrong.within(&element::field(name)))?,
            None => Some(new.clone()),
        };
        out.extend(merged.map(|merged| (name.clone(), merged)));
    }
    Ok((!out.is_empty()).then_some(Value::Object(out)))
}

/// Items in the order of the configuration, where the live list has others in between they keep their places relative to
/// those that are in both.
fn merge_items(live: &[Value], config: &[Value], list: &List) -> Result<Option<Value>, Wrong> {
    let (new_steps, news) = index(config, list, false)?;
    let (old_steps, olds) = index(live, list, true)?;
    let mut shared: VecDeque<&String> = new_steps.iter().filter(|step| olds.contains_key(step.as_str())).collect();
    let mut next_shared = shared.pop_front();
    let mut merged: HashSet<&str> = HashSet::with_capacity(new_steps.len());
    let mut out = Vec::with_capacity(old_steps.len().max(new_steps.len()));
    let mut merge_item = |step: &str, old: Option<&Value>, new: Option<&Value>| -> Result<(), Wrong> {
        out.extend(merge_value(old, new, &list.items).map_err(|wrong| wrong.within(step))?);
        Ok(())
    };
    let (mut i, mut j) = (0, 0);
    while i < old_steps.len() || j < new_steps.len() {
        if let (Some(old), Some(new)) = (old_steps.get(i), new_steps.get(j)) {
            if old == new {
                merged.insert(old);
                merge_item(old, olds[old.as_str()], news[new.as_str()])?;
                (i, j) = (i + 1, j + 1);
                next_shared = shared.pop_front();
                continue;
            }
            if news.contains_key(old.as_str()) && next_shared.is_some_and(|next| next != old) {
                // In both, but its turn comes later.
                i += 1;
                continue;
            }
        }
        if let Some(old) = old_steps.get(i) {
            if !news.contains_key(old.as_str()) {
                merge_item(old, Some(&live[i]), None)?;
                i += 1;
                continue;
            }
            if merged.contains(old.as_str()) {
                i += 1;
            }
        }
        if let Some(new) = new_steps.get(j) {
            merged.insert(new);
            merge_item(new, olds.get(new.as_str()).copied().flatten(), news[new.as_str()])?;
            j += 1;
            if next_shared == Some(new) {
                next_shared = shared.pop_front();
            }
        }
    }
    Ok((!out.is_empty()).then_some(Value::Array(out)))
}

type Index<'a> = HashMap<String, Option<&'a Value>>;

/// The steps of the items in order, and the items by step. An item whose step occurs twice is not merged: its entry has
/// no value.
fn index<'a>(items: &'a [Value], list: &List, allows_duplicates: bool) -> Result<(Vec<String>, Index<'a>), Wrong> {
    let (mut steps, mut by_step) = (Vec::with_capacity(items.len()), HashMap::with_capacity(items.len()));
    for (at, item) in items.iter().enumerate() {
        let step = step(list, item).map_err(|why| no_step(list, at, why))?;
        match by_step.get_mut(&step) {
            Some(_) if !allows_duplicates => {
                return Err(Wrong::new(format!("duplicate entries for key {}", element::shown(&step))));
            }
            Some(entry) => *entry = None,
            None => drop(by_step.insert(step.clone(), Some(item))),
        }
        steps.push(step);
    }
    Ok((steps, by_step))
}
