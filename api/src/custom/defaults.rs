//! Fills in the defaults of a schema.

use serde_json::Value;

use super::structural::{Additional, Structural};

/// Fills in what is absent, and what is null where null is no value; what is filled in is filled in below, too.
pub fn apply(value: &mut Value, schema: &Structural) {
    if !schema.reach.defaults {
        return;
    }
    match value {
        Value::Object(fields) => {
            for (name, of) in schema.properties.iter() {
                if let Some(default) = &of.default
                    && fields.get(name).is_none_or(|present| present.is_null() && !of.nullable)
                {
                    fields.insert(name.to_owned(), default.clone());
                }
            }
            for (name, value) in fields.iter_mut() {
                match (schema.properties.get(name), &schema.additional) {
                    (Some(of), _) => apply(value, of),
                    (None, Additional::Of(of)) => stand_in(value, of),
                    _ => {}
                }
            }
        }
        Value::Array(items) => {
            if let Some(of) = &schema.items {
                items.iter_mut().for_each(|item| stand_in(item, of));
            }
        }
        _ => {}
    }
}

/// What has no name is never absent, but may be null.
fn stand_in(value: &mut Value, of: &Structural) {
    if let Some(default) = of.default.as_ref().filter(|_| value.is_null() && !of.nullable) {
        *value = default.clone();
    }
    apply(value, of);
}
