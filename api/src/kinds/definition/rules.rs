//! Whether the rules of a schema are rules: that they are written in CEL, speak of fields that there are, and of old values only
//! where one can be told.

use crate::custom::rules::Rule;
use crate::custom::{Additional, Structural};
use crate::kinds::{FieldError, FieldErrors, internal};
use crate::meta::field::{Path, Printed};
use crate::schema::ListKind;

/// Checks the rules of a schema that is otherwise as it has to be.
pub(super) fn check(schema: &Structural, path: &Path<'_>, errors: &mut FieldErrors) {
    below(schema, path, None, errors);
}

/// `lost` is where the values of an update can no longer be told to be those of before.
fn below(schema: &Structural, path: &Path<'_>, lost: Option<&str>, errors: &mut FieldErrors) {
    if !schema.has_rules() || errors.is_full() {
        return;
    }
    let all = path.child("x-kubernetes-validations");
    for (index, rule) in schema.rules.iter().enumerate() {
        one(rule, &all.index(index), lost, errors);
    }
    let properties = path.child("properties");
    for (name, of) in schema.properties.iter() {
        below(of, &properties.key(name), lost, errors);
    }
    if let Additional::Of(of) = &schema.additional {
        below(of, &path.child("additionalProperties"), lost, errors);
    }
    if let Some(items) = &schema.items {
        let path = path.child("items");
        let here = (!matches!(schema.list, Some(ListKind::Map(_)))).then(|| path.to_string());
        below(items, &path, lost.or(here.as_deref()), errors);
    }
}

fn one(rule: &Rule, path: &Path<'_>, lost: Option<&str>, errors: &mut FieldErrors) {
    let at = path.child("rule");
    let shown = || internal::text("ValidationRule", &rule.written);
    if let Some(fault) = &rule.fault {
        return errors.push(FieldError::invalid(at, Printed(&shown()), fault));
    }
    if let Some(fault) = &rule.message_fault {
        errors.push(FieldError::invalid(path.child("messageExpression"), Printed(&shown()), fault));
    }
    if let Some(lost) = lost.filter(|_| rule.uses_old) {
        let detail = format!("oldSelf cannot be used on the uncorrelatable portion of the schema within {lost}");
        errors.push(FieldError::invalid(at, &rule.written["rule"], &detail));
    }
    let optional = &rule.written["optionalOldSelf"];
    if !rule.uses_old && optional.is_boolean() {
        let detail = "may not be set if oldSelf is not used in rule";
        errors.push(FieldError::invalid(path.child("optionalOldSelf"), optional, detail));
    }
}
