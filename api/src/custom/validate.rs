//! Checks a value against a schema, in the words of `kube-openapi`'s validator.
//!
//! An update is let through what was wrong before and has not changed (ratcheting, KEP-4008): with each value goes the old one
//! at the same place, as far as the two can be told to be the same.
//!
//! The work is bounded: a schema may say a thousand things of each of a thousand items, and an object of a few kilobytes then
//! costs what a large one costs. Beyond [`STEPS_MAX`] the object is refused, and the error says so.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use super::format::Format;
use super::structural::{Additional, Checks, Structural, Type};
use crate::meta::field::{ERRORS_MAX, FieldError, FieldErrors};
use crate::meta::text;
use crate::schema::ListKind;

/// Things that are looked at for one object; about half a second's work.
const STEPS_MAX: usize = 4_000_000;

/// Checks `value`, which stands at `prefix` (empty for a whole object). `old` is what was there before.
pub fn validate(schema: &Structural, value: &Value, old: Option<&Value>, prefix: &str, errors: &mut FieldErrors) {
    validate_at(schema, value, old, prefix, errors);
}

/// The same; gives the steps that it took.
pub(super) fn validate_at(
    schema: &Structural,
    value: &Value,
    old: Option<&Value>,
    prefix: &str,
    errors: &mut FieldErrors,
) -> usize {
    let mut checker = Checker { path: String::new(), prefix, steps: 0 };
    let old = old.map(|value| Old { value, at: Some(schema) });
    let mut found = checker.ratcheted(schema, value, old).errors;
    if checker.steps > STEPS_MAX {
        let detail = format!("the schema asks for more than {STEPS_MAX} checks of this object");
        found = vec![FieldError::invalid(checker.place(""), "", &detail)];
    }
    // The same may be found by several parts of a schema.
    let mut told = HashSet::new();
    errors.extend(found.into_iter().filter(|error| told.insert((error.field.clone(), error.message.clone()))));
    checker.steps
}

/// What stood at a place before, and what the schema says of that place: parts of `allOf` and its like do not say which items
/// are the same.
#[derive(Clone, Copy)]
struct Old<'a> {
    value: &'a Value,
    at: Option<&'a Structural>,
}

impl<'a> Old<'a> {
    fn field(self, name: &str) -> Option<Old<'a>> {
        let at = self.at?.field(name)?;
        Some(Old { value: self.value.get(name)?, at: Some(at) })
    }
}

/// What was found, and how much of the schema was met: of several alternatives the errors of the nearest are told.
#[derive(Default)]
struct Found {
    errors: Vec<FieldError>,
    met: usize,
}

impl Found {
    fn merge(&mut self, other: Found) {
        self.met += other.met;
        let room = ERRORS_MAX.saturating_sub(self.errors.len());
        self.errors.extend(other.errors.into_iter().take(room));
    }

    fn push(&mut self, error: FieldError) {
        if self.errors.len() < ERRORS_MAX {
            self.errors.push(error);
        }
    }

    fn is_valid(&self) -> bool {
        self.errors.is_empty()
    }

    fn of(error: FieldError) -> Found {
        Found { errors: vec![error], met: 0 }
    }
}

struct Checker<'a> {
    /// Where it is, below the prefix.
    path: String,
    prefix: &'a str,
    steps: usize,
}

impl Checker<'_> {
    fn spend(&mut self, steps: usize) -> bool {
        self.steps = self.steps.saturating_add(steps);
        self.steps <= STEPS_MAX
    }

    /// The field that an error is about.
    fn place(&self, name: &str) -> String {
        let name = name.strip_prefix('.').unwrap_or(name);
        match (self.prefix, name) {
            ("", "") => "<nil>".to_owned(),
            ("", name) => name.to_owned(),
            (prefix, "") => prefix.to_owned(),
            (prefix, name) => format!("{prefix}.{name}"),
        }
    }

    fn here(&self) -> String {
        self.place(&self.path)
    }

    /// An error that names no field.
    fn general(&self, message: &str) -> FieldError {
        FieldError::invalid(self.place(""), "", message)
    }

    /// A value that is not what a check wants.
    fn wrong(&self, value: &Value, words: &str) -> FieldError {
        FieldError::invalid(self.here(), value, &format!("{} in body {words}", self.path))
    }

    fn mistyped(&self, wanted: &str, given: &str) -> FieldError {
        let message = format!("{} in body must be of type {wanted}: {}", self.path, text::quote(given));
        FieldError::type_invalid(self.here(), given, &message)
    }

    fn within<T>(&mut self, step: &str, work: impl FnOnce(&mut Self) -> T) -> T {
        let length = self.path.len();
        self.path.push_str(step);
        let done = work(self);
        self.path.truncate(length);
        done
    }

    /// The same as [`Checker::check`]; what has not changed may be wrong.
    fn ratcheted(&mut self, schema: &Structural, value: &Value, old: Option<Old<'_>>) -> Found {
        let mut found = self.check(schema, value, old);
        if !found.is_valid() && old.is_some_and(|old| old.value == value) {
            found.errors.clear();
        }
        found
    }

    fn check(&mut self, schema: &Structural, value: &Value, old: Option<Old<'_>>) -> Found {
        let mut found = Found::default();
        if !self.spend(1) {
            return found;
        }
        let nothing = Checks::default();
        let checks = schema.checks.as_deref().unwrap_or(&nothing);
        if value.is_null() {
            found.merge(self.null(schema));
            found.merge(self.choice(checks, value));
            return found;
        }
        if schema.ty != Type::Any || checks.format.is_some() {
            found.merge(self.ty(schema, checks, value));
            found.met += 1;
        }
        found.merge(self.junctors(checks, value, old));
        found.met += 1;
        match value {
            Value::String(text) => {
                found.merge(self.string(checks, text));
                found.met += 1;
                if let Some(format @ Format::Text(_)) = checks.format {
                    found.merge(self.format(format, text));
                    found.met += 1;
                }
            }
            Value::Number(_) => {
                found.merge(self.number(schema, checks, value));
                found.met += 1;
            }
            Value::Array(items) => {
                found.merge(self.items(schema, checks, items, old));
                found.met += 1;
            }
            _ => {}
        }
        found.merge(self.choice(checks, value));
        found.met += 1;
        if let Value::Object(fields) = value {
            found.merge(self.fields(schema, checks, fields, old));
            found.met += 1;
        }
        found.met += 1;
        found
    }

    fn null(&self, schema: &Structural) -> Found {
        if schema.ty == Type::Any || schema.nullable {
            return Found { errors: Vec::new(), met: 1 };
        }
        Found::of(self.mistyped(type_names(schema.ty), "null"))
    }

    fn ty(&self, schema: &Structural, checks: &Checks, value: &Value) -> Found {
        let given = type_of(value);
        let is_whole = given == Type::Number && value.as_f64().is_some_and(is_json_integer);
        let fits = match schema.ty {
            Type::Any => false,
            Type::IntOrString => matches!(given, Type::Integer | Type::String) || is_whole,
            Type::Integer => given == Type::Integer || is_whole,
            Type::Number => matches!(given, Type::Integer | Type::Number),
            ty => ty == given,
        };
        let is_listed = matches!(value, Value::String(_) | Value::Array(_));
        if let Some(format) = checks.format {
            if !is_listed && !fits {
                let given = match given {
                    Type::Integer => "int64",
                    Type::Number => "float64",
                    _ => "",
                };
                return Found::of(self.mistyped(format.name(), given));
            }
            // A text with a format of its own is what the format says.
            if is_listed && !matches!(schema.ty, Type::Integer | Type::Number | Type::IntOrString) {
                return Found { errors: Vec::new(), met: 1 };
            }
        }
        if fits {
            Found { errors: Vec::new(), met: 1 }
        } else {
            Found::of(self.mistyped(type_names(schema.ty), type_names(given)))
        }
    }

    fn junctors(&mut self, checks: &Checks, value: &Value, old: Option<Old<'_>>) -> Found {
        let mut found = Found::default();
        if !checks.any_of.is_empty() {
            let mut nearest: Option<Found> = None;
            let mut met = false;
            for schema in &checks.any_of {
                let one = self.check(schema, value, old);
                if one.is_valid() {
                    (met, nearest) = (true, Some(one));
                    break;
                }
                if nearest.as_ref().is_none_or(|nearest| one.met > nearest.met) {
                    nearest = Some(one);
                }
            }
            if !met {
                found.push(
                    self.general(&format!("{} must validate at least one schema (anyOf)", text::quote(&self.path))),
                );
            }
            found.merge(nearest.unwrap_or_default());
        }
        if !checks.one_of.is_empty() {
            let (mut nearest, mut first, mut valid): (Option<Found>, Option<Found>, usize) = (None, None, 0);
            for schema in &checks.one_of {
                let one = self.check(schema, value, old);
                if one.is_valid() {
                    valid += 1;
                    first.get_or_insert(one);
                } else if valid == 0 && nearest.as_ref().is_none_or(|nearest| one.met > nearest.met) {
                    nearest = Some(one);
                }
            }
            if valid == 1 {
                found.merge(first.unwrap_or_default());
            } else {
                let how_many = match valid {
                    0 => "Found none valid".to_owned(),
                    valid => format!("Found {valid} valid alternatives"),
                };
                let path = text::quote(&self.path);
                found.push(self.general(&format!("{path} must validate one and only one schema (oneOf). {how_many}")));
                if valid == 0 {
                    found.merge(nearest.unwrap_or_default());
                }
            }
        }
        if !checks.all_of.is_empty() {
            let mut valid = 0;
            for schema in &checks.all_of {
                let one = self.check(schema, value, old);
                valid += usize::from(one.is_valid());
                found.merge(one);
            }
            if valid < checks.all_of.len() {
                let none = if valid == 0 { ". None validated" } else { "" };
                found.push(
                    self.general(&format!("{} must validate all the schemas (allOf){none}", text::quote(&self.path))),
                );
            }
        }
        if let Some(schema) = &checks.not
            && self.check(schema, value, old).is_valid()
        {
            found.push(self.general(&format!("{} must not validate the schema (not)", text::quote(&self.path))));
        }
        found.met += 1;
        found
    }

    /// The first thing that is wrong with a text.
    fn string(&mut self, checks: &Checks, given: &str) -> Found {
        let value = || Value::from(given);
        // Characters are counted only where their number matters.
        let count = || i64::try_from(given.chars().count()).unwrap_or(i64::MAX);
        if let Some(most) = checks.max_length.filter(|most| count() > *most) {
            return Found::of(FieldError::too_long(self.here(), usize::try_from(most).unwrap_or(0)));
        }
        if let Some(least) = checks.min_length.filter(|least| count() < *least) {
            return Found::of(self.wrong(&value(), &format!("should be at least {least} chars long")));
        }
        if let Some(pattern) = &checks.pattern
            && self.spend(pattern.cost(given.len()))
            && !pattern.matches(given)
        {
            return Found::of(self.wrong(&value(), &format!("should match '{}'", pattern.text())));
        }
        Found::default()
    }

    fn format(&self, format: Format, given: &str) -> Found {
        if format.takes(given) {
            return Found::default();
        }
        let message = format!("{} in body must be of type {}: {}", self.path, format.name(), text::quote(given));
        Found::of(FieldError::type_invalid(self.here(), given, &message))
    }

    fn number(&self, schema: &Structural, checks: &Checks, value: &Value) -> Found {
        let mut found = Found { errors: Vec::new(), met: 1 };
        let whole = value.as_i64();
        let number = value.as_f64().unwrap_or_default();
        let mut in_range = |number: f64, what: &str| {
            let error = self.out_of_range(schema.ty, checks.format, number, what);
            let ok = error.is_none();
            error.into_iter().for_each(|error| found.push(error));
            ok
        };
        in_range(number, "Checked");
        let multiple = checks.multiple_of.map(|factor| (factor, in_range(factor, "MultipleOf")));
        let minimum = checks.minimum.map(|least| (least, in_range(least, "Minimum boundary")));
        let maximum = checks.maximum.map(|most| (most, in_range(most, "Maximum boundary")));
        if let Some((factor, fits)) = multiple {
            let shown = |factor: &Value| format!("should be a multiple of {}", text::sprint(factor));
            let (is_positive, is_multiple, factor) = match whole.filter(|_| fits) {
                Some(whole) => {
                    let factor = factor as i64;
                    (factor > 0, factor > 0 && whole % factor == 0, Value::from(factor))
                }
                None => {
                    let quotient = if factor < 1.0 { 1.0 / factor * number } else { number / factor };
                    (factor > 0.0, is_json_integer(quotient), Value::from(factor))
                }
            };
            if !is_positive {
                let words = text::sprint(&factor);
                let message = format!("factor MultipleOf declared for {} must be positive: {words}", self.path);
                found.push(FieldError::invalid(self.here(), &factor, &message));
            } else if !is_multiple {
                found.push(self.wrong(value, &shown(&factor)));
            }
        }
        if let Some((least, fits)) = minimum {
            let (low, least) = match whole.filter(|_| fits) {
                Some(whole) => (is_below(&whole, &(least as i64), checks.below_minimum), Value::from(least as i64)),
                None => (is_below(&number, &least, checks.below_minimum), Value::from(least)),
            };
            if low {
                let words = if checks.below_minimum { "greater than" } else { "greater than or equal to" };
                found.push(self.wrong(value, &format!("should be {words} {}", text::sprint(&least))));
            }
        }
        if let Some((most, fits)) = maximum {
            let (high, most) = match whole.filter(|_| fits) {
                Some(whole) => (is_below(&(most as i64), &whole, checks.above_maximum), Value::from(most as i64)),
                None => (is_below(&most, &number, checks.above_maximum), Value::from(most)),
            };
            if high {
                let words = if checks.above_maximum { "less than" } else { "less than or equal to" };
                found.push(self.wrong(value, &format!("should be {words} {}", text::sprint(&most))));
            }
        }
        found
    }

    /// What is wrong with a number, or with a bound, that its type cannot have.
    fn out_of_range(&self, ty: Type, format: Option<Format>, number: f64, what: &str) -> Option<FieldError> {
        let fits = match (ty, format) {
            (Type::Integer, Some(Format::Int32)) => number.fract() == 0.0 && f64::from(number as i32) == number,
            (Type::Integer, _) => number.fract() == 0.0 && number.abs() < 9.3e18,
            (Type::Number, Some(Format::Float)) => number.abs() <= f64::from(f32::MAX),
            _ => true,
        };
        if fits {
            return None;
        }
        let name = type_names(ty);
        let of = match format {
            Some(format) => format!("of type {name} with format {}", format.name()),
            None => format!("of type {name} (default format)"),
        };
        Some(self.general(&format!("{what} value must be {of} in {}", self.path)))
    }

    fn choice(&mut self, checks: &Checks, value: &Value) -> Found {
        if checks.choices.is_empty() {
            return Found::default();
        }
        self.spend(checks.choices.len() / 8);
        let is = |choice: &Value| match (choice, value) {
            (Value::Null, _) => false,
            (Value::Number(_), Value::Number(_)) => choice.as_f64() == value.as_f64(),
            (choice, value) => choice == value,
        };
        if checks.choices.iter().any(is) {
            return Found::default();
        }
        let words: Vec<String> = checks
            .choices
            .iter()
            .map(|choice| choice.as_str().map_or_else(|| text::json(choice), str::to_owned))
            .collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        Found::of(FieldError::not_supported(self.here(), value, &words))
    }

    fn items(&mut self, schema: &Structural, checks: &Checks, items: &[Value], old: Option<Old<'_>>) -> Found {
        let mut found = Found { errors: Vec::new(), met: 1 };
        if let Some(of) = &schema.items {
            let known = old.filter(|_| !items.is_empty()).and_then(|old| Known::of(old, self));
            for (at, item) in items.iter().enumerate() {
                let old = known.as_ref().and_then(|known| known.get(item, self));
                found.merge(self.within(&format!("[{at}]"), |this| this.ratcheted(of, item, old)));
            }
        }
        let count = i64::try_from(items.len()).unwrap_or(i64::MAX);
        if let Some(least) = checks.min_items.filter(|least| count < *least) {
            found.push(self.wrong(&count.into(), &format!("should have at least {least} items")));
        }
        if let Some(most) = checks.max_items.filter(|most| count > *most) {
            found.push(FieldError::too_many(self.here(), items.len(), usize::try_from(most).unwrap_or(0)));
        }
        found
    }

    fn fields(
        &mut self,
        schema: &Structural,
        checks: &Checks,
        fields: &Map<String, Value>,
        old: Option<Old<'_>>,
    ) -> Found {
        let mut found = Found::default();
        let count = i64::try_from(fields.len()).unwrap_or(i64::MAX);
        if let Some(least) = checks.min_properties.filter(|least| count < *least) {
            found.push(self.wrong(&count.into(), &format!("should have at least {least} properties")));
        }
        if let Some(most) = checks.max_properties.filter(|most| count > *most) {
            found.push(FieldError::too_many(self.here(), fields.len(), usize::try_from(most).unwrap_or(0)));
        }
        for (name, value) in fields {
            if !self.spend(1) {
                return found;
            }
            let dot = if self.path.is_empty() { "" } else { "." };
            match (schema.properties.get(name), &schema.additional) {
                (Some(of), _) => {
                    // Its version is what the object was read as, not what it was written as.
                    let is_type = self.path.is_empty() && matches!(name.as_str(), "apiVersion" | "kind");
                    let old = old.filter(|_| !is_type).and_then(|old| old.field(name));
                    found.merge(self.within(&format!("{dot}{name}"), |this| this.ratcheted(of, value, old)));
                }
                (None, Additional::Of(of)) => {
                    let old = old.and_then(|old| old.field(name));
                    found.merge(self.within(&format!(".{name}"), |this| this.ratcheted(of, value, old)));
                }
                (None, Additional::None) => {
                    let message = format!("{}.{name} in body is a forbidden property", self.path);
                    found.push(FieldError::invalid(self.here(), name, &message));
                }
                (None, Additional::Any | Additional::Unsaid) => {}
            }
        }
        for name in checks.required.iter().filter(|name| !fields.contains_key(&***name)) {
            found.push(FieldError::required(self.place(&format!("{}.{name}", self.path)), ""));
        }
        found
    }
}

/// The old items of a list whose items have keys, by these.
struct Known<'a> {
    keys: &'a [String],
    at: Option<&'a Structural>,
    items: HashMap<String, &'a Value>,
}

impl<'a> Known<'a> {
    /// Each alternative of a schema asks for them anew: that is paid for.
    fn of(old: Old<'a>, checker: &mut Checker<'_>) -> Option<Known<'a>> {
        let Some(ListKind::Map(keys)) = &old.at?.list else { return None };
        let mut items = HashMap::new();
        for item in old.value.as_array()? {
            let key = key_of(keys, item);
            if !checker.spend(1 + key.len() / 64) {
                return None;
            }
            items.entry(key).or_insert(item);
        }
        Some(Known { keys, at: old.at?.items.as_deref(), items })
    }

    fn get(&self, item: &Value, checker: &mut Checker<'_>) -> Option<Old<'a>> {
        let key = key_of(self.keys, item);
        checker.spend(1 + key.len() / 64);
        Some(Old { value: self.items.get(&key)?, at: self.at })
    }
}

fn key_of(keys: &[String], item: &Value) -> String {
    keys.iter().map(|key| item[key.as_str()].to_string()).collect::<Vec<_>>().join(",")
}

fn is_below<T: PartialOrd>(a: &T, b: &T, or_equal: bool) -> bool {
    a < b || (or_equal && a == b)
}

/// Whether a double is whole, or as near to it as the arithmetic of doubles lets it be.
fn is_json_integer(number: f64) -> bool {
    const EPSILON: f64 = 1e-9;
    const WHOLE_MAX: f64 = 9_007_199_254_740_991.0;
    if !number.is_finite() || number.abs() > WHOLE_MAX {
        return false;
    }
    let whole = number.trunc();
    let difference = (number - whole).abs();
    difference == 0.0 || difference / number.abs().max(whole.abs()).max(f64::MIN_POSITIVE) < EPSILON
}

fn type_of(value: &Value) -> Type {
    match value {
        Value::Null => Type::Any,
        Value::Bool(_) => Type::Boolean,
        Value::Number(number) if number.is_f64() => Type::Number,
        Value::Number(_) => Type::Integer,
        Value::String(_) => Type::String,
        Value::Array(_) => Type::Array,
        Value::Object(_) => Type::Object,
    }
}

fn type_names(ty: Type) -> &'static str {
    match ty {
        Type::Any => "",
        Type::Object => "object",
        Type::Array => "array",
        Type::String => "string",
        Type::Integer => "integer",
        Type::Number => "number",
        Type::Boolean => "boolean",
        Type::IntOrString => "integer,string",
    }
}
