//! Defaults that a schema states, filled into a value.

use serde_json::Value;

use super::{Object, Type};

/// Fills in the defaults of absent fields, at every depth, as apiextensions does: a default is filled in before what lies
/// below it, and a null takes the default of a field that may not be null.
pub fn apply_defaults(value: &mut Value, object: &Object) {
    let Value::Object(fields) = value else { return };
    for (name, field) in &object.fields {
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
        Type::Object(object) => apply_defaults(value, object),
        Type::Named(name) => {
            if let Some(object) = super::named(name) {
                apply_defaults(value, &object);
            }
        }
        Type::List(list) => value.as_array_mut().into_iter().flatten().for_each(|item| within(item, &list.items)),
        Type::Map(map) => {
            value.as_object_mut().into_iter().flat_map(|map| map.values_mut()).for_each(|v| within(v, &map.values));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn defaults_reach_into_lists_and_leave_what_is_there() {
        let service = super::super::of_kind("", "v1", "Service").expect("built in");
        let mut value = json!({"spec": {"ports": [{"port": 80}, {"port": 53, "protocol": "UDP"}]}});
        apply_defaults(&mut value, &service);
        assert_eq!(
            value,
            json!({"spec": {"ports": [
            {"port": 80, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]}})
        );
    }
}
