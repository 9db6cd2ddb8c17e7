//! Defaults that a schema states, filled into a value.

use std::collections::HashSet;

use serde_json::Value;

use super::{Object, Type};
use crate::custom::TooMuch;

/// Fills in the defaults of absent fields, at every depth, as apiextensions does: a default is filled in before what lies
/// below it, and a null takes the default of a field that may not be null.
///
/// # Errors
/// The defaults of a definition are too much for one object.
pub fn apply_defaults(value: &mut Value, object: &Object) -> Result<(), TooMuch> {
    if let Some(custom) = &object.custom {
        return crate::custom::apply_defaults(value, custom);
    }
    fill(value, object);
    Ok(())
}

fn fill(value: &mut Value, object: &Object) {
    let Value::Object(fields) = value else { return };
    if !has_defaults(object) {
        return;
    }
    for name in &object.index().defaulted {
        let field = &object.fields[name];
        if let Some(default) = &field.default
            && fields.get(name).is_none_or(|present| present.is_null() && !field.pointer)
        {
            fields.insert(name.clone(), default.clone());
        }
    }
    for (name, present) in fields {
        if let Some(field) = object.fields.get(name) {
            within(present, &field.ty);
        }
    }
}

fn within(value: &mut Value, ty: &Type) {
    match ty {
        Type::Object(object) => fill(value, object),
        Type::Named(named) => {
            if let Some(object) = named.object() {
                fill(value, object);
            }
        }
        Type::List(list) => value.as_array_mut().into_iter().flatten().for_each(|item| within(item, &list.items)),
        Type::Map(map) => {
            value.as_object_mut().into_iter().flat_map(|map| map.values_mut()).for_each(|v| within(v, &map.values));
        }
        _ => {}
    }
}

/// Whether anything at or below a structure has a default: most have none, and their values need not be walked.
fn has_defaults(object: &Object) -> bool {
    *object.has_defaults.get_or_init(|| reaches(object, &mut HashSet::new()))
}

/// The same without asking what is known, since structures refer to themselves: each is looked at once.
fn reaches(object: &Object, seen: &mut HashSet<*const Object>) -> bool {
    let within = |ty: &Type, seen: &mut HashSet<*const Object>| {
        let mut ty = ty;
        loop {
            ty = match ty {
                Type::List(list) => &list.items,
                Type::Map(map) => &map.values,
                other => break other.object().is_some_and(|object| reaches(object, seen)),
            };
        }
    };
    seen.insert(std::ptr::from_ref(object))
        && object.fields.iter().any(|(_, field)| field.default.is_some() || within(&field.ty, seen))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn defaults_reach_into_lists_and_leave_what_is_there() {
        let service = super::super::of_kind("", "v1", "Service").expect("built in");
        let mut value = json!({"spec": {"ports": [{"port": 80}, {"port": 53, "protocol": "UDP"}]}});
        apply_defaults(&mut value, &service).unwrap();
        assert_eq!(
            value,
            json!({"spec": {"ports": [
            {"port": 80, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]}})
        );
    }
}
