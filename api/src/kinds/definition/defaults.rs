//! Checks the defaults of a schema: each is a value of its schema, and has no fields that would be pruned; and an object of
//! nothing but defaults is not too large.

use super::schema::Work;
use crate::custom::{self, Structural};
use crate::kinds::{FieldError, FieldErrors};
use crate::meta::field::Path;

/// Steps that checking all defaults of a definition may take.
const STEPS_MAX: usize = 8_000_000;

pub(super) fn check(schema: &Structural, path: &Path<'_>, work: &mut Work, errors: &mut FieldErrors) {
    each(schema, path, work, errors);
    if work.steps > STEPS_MAX || errors.is_full() {
        return;
    }
    match custom::unfold(schema) {
        Ok(steps) => work.steps += steps,
        Err(_) => {
            errors.push(FieldError::forbidden(path, "the defaults unfold to more than an object may have"));
        }
    }
}

fn each(schema: &Structural, path: &Path<'_>, work: &mut Work, errors: &mut FieldErrors) {
    if errors.is_full() {
        return;
    }
    if let Some(default) = &schema.default {
        let at = path.child("default");
        if !custom::is_pruned(default, schema) {
            errors.push(FieldError::invalid(at, default, "must not have unknown fields"));
        }
        if work.steps > STEPS_MAX {
            return errors.push(FieldError::forbidden(at, "the defaults of this definition are too much to check"));
        }
        work.steps += custom::check_default(schema, default, &at.to_string(), errors);
    }
    if let Some(items) = &schema.items {
        each(items, &path.child("items"), work, errors);
    }
    let properties = path.child("properties");
    for (name, property) in schema.properties.iter() {
        each(property, &properties.key(name), work, errors);
    }
}
