//! Lists in strategic merge patches: items are told apart by a key, and put in an order.

use std::collections::HashMap;

use serde_json::Value;

use super::without_directives;
use super::{
    Context, DIRECTIVE, Error, Fields, Known, ORDER, bad_directive, bad_type, field_of, go_type, merge_map, other,
};
use crate::meta::text::sprint;

/// Merges the lists that the patch gives an order for, and takes them out of the patch.
pub(super) fn merge_ordered(original: &mut Fields, patch: &mut Fields, context: &Context<'_>) -> Result<(), Error> {
    let directives: Vec<String> = patch.keys().filter(|key| key.starts_with(ORDER)).cloned().collect();
    for directive in directives {
        let order = match patch.remove(&directive) {
            Some(Value::Array(order)) => order,
            Some(found) => return Err(bad_type("[]interface {}", &found)),
            None => continue,
        };
        let name = field_of(&directive, ORDER).ok_or(Error::Order)?;
        let before = match original.get(name) {
            Some(Value::Array(items)) => Some(items.clone()),
            Some(found) => return Err(bad_type("[]interface {}", found)),
            None => None,
        };
        let change = match patch.get(name) {
            Some(Value::Array(items)) => Some(items.clone()),
            Some(found) => return Err(bad_type("[]interface {}", found)),
            None => None,
        };
        let known = context.list(name)?;
        check_order(change.as_deref().unwrap_or_default(), &order, &known.merge_key)?;
        let kind = Kind::of(before.iter().chain(&change).flatten(), || lists_text(&before, &change));
        let merged = match (&before, &change) {
            (None, None) => continue,
            (Some(before), None) => before.clone(),
            (None, Some(change)) => without_directives(change.clone()),
            (Some(before), Some(change)) => {
                let mut merged = before.clone();
                merge_list(&mut merged, change.clone(), &known, false)?;
                merged
            }
        };
        let server = order_of_server(before.unwrap_or_default(), &merged, &known);
        let (first, second) = partition(merged, &order, &known.merge_key)?;
        let both = in_order(first, second, &order, &server, &known.merge_key, kind?)?;
        original.insert(name.to_owned(), Value::Array(both));
        patch.remove(name);
    }
    Ok(())
}

/// The order of the server's items. Where items were deleted the reference puts new ones into the places that are left
/// at the end (its lists share memory), and then takes them for the server's.
fn order_of_server(before: Vec<Value>, merged: &[Value], known: &Known) -> Vec<Value> {
    let key = known.merge_key.as_str();
    let (olds, news) = (Places::of(&before, key), Places::of(merged, key));
    if !known.merges || key.is_empty() || before.iter().all(|item| news.get(item).is_some()) {
        return before;
    }
    let left = before.iter().filter(|item| news.get(item).is_some());
    let new = merged.iter().filter(|item| olds.get(item).is_none());
    left.chain(new).take(before.len()).cloned().collect()
}

/// Where the items of a list are, by their key (by themselves when there is none): lists may be long.
struct Places<'a> {
    key: &'a str,
    places: HashMap<String, usize>,
}

impl<'a> Places<'a> {
    fn of(items: &[Value], key: &'a str) -> Self {
        let mut places = Self { key, places: HashMap::with_capacity(items.len()) };
        for (at, item) in items.iter().enumerate() {
            places.add(item, at);
        }
        places
    }

    /// Of items that are the same the first counts.
    fn add(&mut self, item: &Value, at: usize) {
        if let Some(text) = self.text(item) {
            self.places.entry(text).or_insert(at);
        }
    }

    fn get(&self, item: &Value) -> Option<usize> {
        self.places.get(&self.text(item)?).copied()
    }

    fn text(&self, item: &Value) -> Option<String> {
        match self.key {
            "" => Some(item.to_string()),
            key => item.get(key).map(Value::to_string),
        }
    }
}

/// `[[a b] [c]]`, as the reference prints the two lists.
fn lists_text(before: &Option<Vec<Value>>, change: &Option<Vec<Value>>) -> String {
    let list = |items: &Option<Vec<Value>>| sprint(&Value::Array(items.clone().unwrap_or_default()));
    format!("[{} {}]", list(before), list(change))
}

/// The items of the patch must be in the order list, in that order.
fn check_order(change: &[Value], order: &[Value], key: &str) -> Result<(), Error> {
    if change.is_empty() || order.is_empty() {
        return Ok(());
    }
    let mut left = Vec::new();
    for item in change {
        match item {
            Value::Object(item) if item.contains_key(DIRECTIVE) => {}
            Value::Object(_) => left.push(item),
            found if !key.is_empty() => return Err(bad_type("map[string]interface {}", found)),
            _ => left.push(item),
        }
    }
    let mut left = left.into_iter().peekable();
    for wanted in order {
        match left.peek() {
            Some(item) if same_item(item, wanted, key)? => drop(left.next()),
            Some(_) => {}
            None => break,
        }
    }
    if left.peek().is_some() {
        let list = |items: &[Value]| sprint(&Value::Array(items.to_vec()));
        let (change, order) = (list(change), list(order));
        return other(format!("The order in patch list:\n{change}\n doesn't match {ORDER} list:\n{order}\n"));
    }
    Ok(())
}

fn same_item(a: &Value, b: &Value, key: &str) -> Result<bool, Error> {
    if key.is_empty() {
        return Ok(a == b);
    }
    Ok(key_of(a, key)? == key_of(b, key)?)
}

/// The value of the merge key of an item.
fn key_of<'a>(item: &'a Value, key: &str) -> Result<&'a Value, Error> {
    match item {
        Value::Object(fields) => fields
            .get(key)
            .ok_or_else(|| Error::Other(format!("map: {} does not contain declared merge key: {key}", sprint(item)))),
        found => Err(bad_type("map[string]interface {}", found)),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Maps,
    Scalars,
}

impl Kind {
    /// What the items are; they must be all of one type.
    fn of<'a>(items: impl Iterator<Item = &'a Value>, shown: impl Fn() -> String) -> Result<Self, Error> {
        let mut first: Option<&Value> = None;
        for item in items {
            match first {
                None if item.is_array() => return Err(Error::NestedLists),
                None => first = Some(item),
                Some(first) if go_type(first) != go_type(item) => {
                    return other(format!("list element types are not identical: {}", shown()));
                }
                Some(_) => {}
            }
        }
        match first {
            Some(Value::Object(_)) => Ok(Self::Maps),
            Some(_) => Ok(Self::Scalars),
            None => other("no elements in any of the given slices".to_owned()),
        }
    }
}

pub(super) fn merge_list(
    original: &mut Vec<Value>,
    change: Vec<Value>,
    known: &Known,
    deletes: bool,
) -> Result<(), Error> {
    if !known.merges && !deletes {
        *original = change;
        return Ok(());
    }
    if original.is_empty() && change.is_empty() {
        return Ok(());
    }
    let shown = || lists_text(&Some(original.clone()), &Some(change.clone()));
    let key = known.merge_key.as_str();
    let kind = Kind::of(original.iter().chain(&change), shown)?;
    let (merged, change, order) = match kind {
        Kind::Scalars if deletes => {
            let gone = Places::of(&change, "");
            original.retain(|item| gone.get(item).is_none());
            return Ok(());
        }
        Kind::Scalars => {
            let mut merged = Vec::with_capacity(original.len() + change.len());
            let mut places = Places::of(&[], "");
            for item in original.iter().chain(&change) {
                if places.get(item).is_none() {
                    places.add(item, merged.len());
                    merged.push(item.clone());
                }
            }
            (merged, change, std::mem::take(original))
        }
        Kind::Maps if key.is_empty() => {
            return other("cannot merge lists without merge key for struct".to_owned());
        }
        Kind::Maps => {
            let change = apply_item_directives(original, change, key)?;
            let order = original.clone();
            let context = Context::of(&known.ty);
            let mut places = Places::of(original, key);
            for item in &change {
                key_of(item, key)?;
                match (places.get(item).map(|at| &mut original[at]), item) {
                    (Some(Value::Object(found)), Value::Object(item)) => merge_map(found, item.clone(), &context)?,
                    _ => {
                        places.add(item, original.len());
                        original.push(item.clone());
                    }
                }
            }
            (std::mem::take(original), change, order)
        }
    };
    let (first, second) = partition(merged, &change, key)?;
    *original = in_order(first, second, &change, &order, key, kind)?;
    Ok(())
}

/// Does what the items with `$patch` say and gives the others.
fn apply_item_directives(original: &mut Vec<Value>, change: Vec<Value>, key: &str) -> Result<Vec<Value>, Error> {
    let (mut rest, mut replaces) = (Vec::with_capacity(change.len()), false);
    let mut gone = Places::of(&[], key);
    for item in change {
        match item.get(DIRECTIVE).map(|directive| directive.as_str().unwrap_or_default()) {
            None => rest.push(item),
            Some("delete") => {
                key_of(&item, key)?;
                gone.add(&item, 0);
            }
            Some("replace") => replaces = true,
            Some("merge") => return other("merging lists cannot yet be specified in the patch".to_owned()),
            Some(_) => match &item {
                Value::Object(fields) => return Err(bad_directive(&fields[DIRECTIVE], fields)),
                found => return Err(bad_type("map[string]interface {}", found)),
            },
        }
    }
    original.retain(|item| gone.get(item).is_none());
    if replaces {
        *original = rest;
        rest = Vec::new();
    }
    Ok(rest)
}

/// The items that the list names, and the others.
fn partition(items: Vec<Value>, by: &[Value], key: &str) -> Result<(Vec<Value>, Vec<Value>), Error> {
    if !key.is_empty() {
        for item in &items {
            key_of(item, key)?;
        }
        if let Some(at) = by.iter().position(|one| !one.is_object()).filter(|_| !items.is_empty()) {
            return other(format!("value for key {at} is not a map"));
        }
    }
    let places = Places::of(by, key);
    Ok(items.into_iter().partition(|item| places.get(item).is_some()))
}

/// Puts both parts together: the named ones in the order of the patch, the others in the order of the server, and where
/// both are known to the server in that order.
fn in_order(
    mut named: Vec<Value>,
    mut others: Vec<Value>,
    order: &[Value],
    server: &[Value],
    key: &str,
    kind: Kind,
) -> Result<Vec<Value>, Error> {
    if kind == Kind::Maps {
        for item in named.iter().chain(order).chain(&others).chain(server) {
            key_of(item, key)?;
        }
    }
    let key = if kind == Kind::Maps { key } else { "" };
    let (order, server) = (Places::of(order, key), Places::of(server, key));
    named.sort_by_cached_key(|item| order.get(item).unwrap_or(usize::MAX));
    others.sort_by_cached_key(|item| server.get(item).unwrap_or(usize::MAX));
    let mut all = Vec::with_capacity(named.len() + others.len());
    let (mut named, mut others) = (named.into_iter().peekable(), others.into_iter().peekable());
    loop {
        let next = match (others.peek(), named.peek()) {
            (Some(theirs), Some(ours)) => match (server.get(theirs), server.get(ours)) {
                (Some(theirs), Some(ours)) if theirs < ours => others.next(),
                _ => named.next(),
            },
            (Some(_), None) => others.next(),
            (None, _) => named.next(),
        };
        match next {
            Some(item) => all.push(item),
            None => return Ok(all),
        }
    }
}
