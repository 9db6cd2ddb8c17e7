//! Rules about single fields, as data: which field, and what must be true of it. What crosses fields is written by hand
//! where the kind is.
//!
//! A path names its fields from the object's root; `[]` behind a name stands for every item of a list, `{}` for every value
//! of a map, and `?` for a structure that may be missing, in which case nothing below it is asked for.

use serde_json::Value;

use crate::kinds::value::{Read, repeats};
use crate::kinds::{FieldError, FieldErrors, checks};
use crate::meta::field::Path;
use crate::meta::selector::validate_label_selector;
use crate::meta::{Quantity, names};

/// A path, and what must be true of what is there.
#[derive(Clone, Copy)]
pub(super) struct Rule(pub &'static str, pub Check);

/// What must be true of a field. What is absent is well, where nothing else is said.
#[derive(Clone, Copy)]
pub(super) enum Check {
    /// It is there and not empty; with what the message says beside.
    Required(&'static str),
    /// It is one of these, when it is there.
    OneOf(&'static [&'static str]),
    /// It is one of these, when it is not empty.
    OneOfGiven(&'static [&'static str]),
    /// It is there; a structure may be empty.
    Set,
    /// It is a DNS subdomain.
    Subdomain,
    /// The same, and what is empty is none.
    SubdomainAlways,
    /// It is a DNS subdomain in either case.
    AnyCaseSubdomain,
    /// It is a DNS label.
    Label,
    /// The same, and what is empty is none.
    LabelAlways,
    /// It is a DNS label that starts with a letter.
    Label1035,
    /// It can be part of a path.
    PathSegment,
    /// It is a qualified name, whatever its case.
    Qualified,
    /// It is the name of a label; what is empty is none.
    LabelName,
    /// It can be the value of a label.
    LabelValue,
    /// It is the name of another's resource, with a domain.
    ExtendedResource,
    /// It is the name of a CSI driver.
    Driver,
    /// It is no less than this; with the words for it.
    Least(i64, &'static str),
    /// It is no more than this; with the words for it.
    Most(i64, &'static str),
    /// It is a number or a quantity that is not below 0.
    NonNegative,
    /// It is a label selector.
    Selector,
    /// It has no more items than this.
    Items(usize),
    /// It has no more characters than this.
    Characters(usize),
    /// No item of it is there twice.
    Distinct,
    /// No two of its items have the same text in this field.
    DistinctBy(&'static str),
}

/// Checks an object.
pub(super) fn check(rules: &[Rule], object: &Value, errors: &mut FieldErrors) {
    for Rule(path, check) in rules {
        walk(object, path, None, *check, errors);
    }
}

/// Goes down the rest of a path.
fn walk(value: &Value, rest: &str, at: Option<&Path<'_>>, check: Check, errors: &mut FieldErrors) {
    let (step, rest) = rest.split_once('.').unwrap_or((rest, ""));
    let name = step.trim_end_matches(['[', ']', '{', '}', '?']);
    let path = at.map_or(Path::new(name), |at| at.child(name));
    let value = &value[name];
    let next = |value: &Value, path: &Path<'_>, errors: &mut FieldErrors| match rest {
        "" => apply(value, path, check, errors),
        rest => walk(value, rest, Some(path), check, errors),
    };
    match &step[name.len()..] {
        "[]" => value.items().iter().enumerate().for_each(|(index, item)| next(item, &path.index(index), errors)),
        "{}" => value.entries().for_each(|(key, value)| next(value, &path.key(key), errors)),
        "?" if value.is_null() => {}
        _ => next(value, &path, errors),
    }
}

fn apply(value: &Value, path: &Path<'_>, check: Check, errors: &mut FieldErrors) {
    let text = value.text();
    match check {
        Check::Required(detail) if value.is_empty() => errors.push(FieldError::required(path, detail)),
        Check::OneOf(all) if value.is_set() => checks::supported(path, value, all, errors),
        Check::Set if value.is_null() => errors.push(FieldError::required(path, "")),
        Check::SubdomainAlways => checks::dns_subdomain(path, text, errors),
        Check::AnyCaseSubdomain if !text.is_empty() && !names::is_dns_subdomain(&text.to_lowercase()) => {
            checks::invalid(path, text, vec![names::any_case_dns_subdomain()], errors);
        }
        Check::OneOfGiven(all) if !text.is_empty() => checks::supported(path, value, all, errors),
        Check::LabelAlways => checks::dns_label(path, text, errors),
        Check::LabelValue => checks::invalid(path, text, names::label_value(text), errors),
        Check::ExtendedResource if value.is_set() && !text.contains('/') => {
            let detail = "a name must be a domain-prefixed path, such as 'example.com/my-prop'";
            errors.push(FieldError::invalid(path, text, detail));
        }
        Check::LabelName => checks::qualified_name(path, text, errors),
        Check::Subdomain if !text.is_empty() => checks::dns_subdomain(path, text, errors),
        Check::Label if !text.is_empty() => checks::dns_label(path, text, errors),
        Check::Label1035 if !text.is_empty() => checks::invalid(path, text, names::dns_1035_label(text), errors),
        Check::PathSegment if !text.is_empty() => checks::invalid(path, text, names::path_segment(text), errors),
        Check::Qualified if !text.is_empty() => {
            let lower = text.to_lowercase();
            checks::invalid(path, &lower, names::qualified_name(&lower), errors);
        }
        Check::Driver => checks::csi_driver(path, text, errors),
        Check::Least(least, detail) if value.maybe_int().is_some_and(|number| number < least) => {
            errors.push(FieldError::invalid(path, value, detail));
        }
        Check::Most(most, detail) if value.maybe_int().is_some_and(|number| number > most) => {
            errors.push(FieldError::invalid(path, value, detail));
        }
        Check::NonNegative if value.is_number() => checks::nonnegative(path, value, errors),
        Check::NonNegative => {
            if let Some(quantity) = Quantity::from_json(value).ok().filter(|quantity| quantity.signum() < 0) {
                errors.push(FieldError::invalid(path, quantity.to_string(), checks::NEGATIVE));
            }
        }
        Check::Selector if value.is_set() => validate_label_selector(value, path, errors),
        Check::Items(most) if value.count() > most => errors.push(FieldError::too_many(path, value.count(), most)),
        Check::Characters(most) if text.chars().count() > most => {
            errors.push(FieldError::too_long_characters(path, most));
        }
        Check::Distinct => {
            let items = value.items();
            let again = repeats(items.iter().map(|item| item.text()));
            for (index, _) in again.into_iter().enumerate().filter(|(_, again)| *again) {
                errors.push(FieldError::duplicate(path.index(index), &items[index]));
            }
        }
        Check::DistinctBy(field) => {
            let items = value.items();
            let again = repeats(items.iter().map(|item| item[field].text()));
            for (index, _) in again.into_iter().enumerate().filter(|(_, again)| *again) {
                errors.push(FieldError::duplicate(path.index(index).child(field), &items[index][field]));
            }
        }
        _ => {}
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::schema::{Object, Type};

    /// Whether a type has a path.
    pub(in crate::kinds::stored) fn exists(object: &Arc<Object>, path: &str) -> bool {
        let (step, rest) = path.split_once('.').unwrap_or((path, ""));
        let name = step.trim_end_matches(['[', ']', '{', '}', '?']);
        let Some(field) = object.fields.get(name) else { return false };
        let ty = match (&step[name.len()..], field.ty.resolve()) {
            ("[]", Type::List(list)) => list.items.resolve(),
            ("{}", Type::Map(map)) => map.values.resolve(),
            ("" | "?", ty) => ty,
            _ => return false,
        };
        rest.is_empty() || ty.object().is_some_and(|object| exists(object, rest))
    }

    fn told(rule: Rule, object: &Value) -> Vec<String> {
        let mut errors = FieldErrors::new();
        check(&[rule], object, &mut errors);
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_rule_holds_for_every_place_that_its_path_names() {
        let object = json!({"spec": {
            "list": [{"name": "a"}, {"name": ""}, {"name": "A_"}, {"name": "a"}], "map": {"x": -1, "y": "-2", "z": 0},
        }});
        let required = Check::Required("words");
        for (path, check, expected) in [
            ("spec.list[].name", required, vec!["spec.list[1].name: Required value: words"]),
            ("spec.none", required, vec!["spec.none: Required value: words"]),
            ("spec.none?.below", required, vec![]),
            ("spec.none.below", required, vec!["spec.none.below: Required value: words"]),
            ("spec.list", Check::Items(3), vec!["spec.list: Too many: 4: must have at most 3 items"]),
            ("spec.list", Check::DistinctBy("name"), vec!["spec.list[3].name: Duplicate value: \"a\""]),
            (
                "spec.list[].name",
                Check::OneOf(&["a", ""]),
                vec!["spec.list[2].name: Unsupported value: \"A_\": supported values: \"a\", \"\""],
            ),
            (
                "spec.map{}",
                Check::NonNegative,
                vec![
                    "spec.map[x]: Invalid value: -1: must be greater than or equal to 0",
                    "spec.map[y]: Invalid value: \"-2\": must be greater than or equal to 0",
                ],
            ),
            ("spec.map.x", Check::Least(0, "is less"), vec!["spec.map.x: Invalid value: -1: is less"]),
            ("spec.map.z", Check::Most(-1, "is more"), vec!["spec.map.z: Invalid value: 0: is more"]),
        ] {
            assert_eq!(told(Rule(path, check), &object), expected, "{path}");
        }
    }
}
