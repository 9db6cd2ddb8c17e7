//! Label selectors, from query text, from `LabelSelector` objects and from plain maps.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use serde_json::{Map, Value};

use super::{SelectorError, parse};
use crate::meta::field::{FieldError, Path, Printed, aggregate};
use crate::meta::{names, text};

/// A label selector: all requirements must hold.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LabelSelector {
    /// `None` selects nothing (the selector of an object that has none).
    requirements: Option<Vec<Requirement>>,
}

/// One condition on one label. Its values are sorted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Requirement {
    key: String,
    operator: Operator,
    values: Vec<String>,
    /// The number of a `Gt` or `Lt`.
    number: i64,
}

/// How a label is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operator {
    /// `=`
    Equals,
    /// `==`, which is the same but is printed as it was written.
    DoubleEquals,
    /// `!=`
    NotEquals,
    /// `in`
    In,
    /// `notin`
    NotIn,
    /// The key is there.
    Exists,
    /// The key is not there.
    DoesNotExist,
    /// The value is a number above.
    GreaterThan,
    /// The value is a number below.
    LessThan,
}

/// Labels in whatever form they are at hand.
pub trait Labels {
    /// The value of a label.
    fn label(&self, key: &str) -> Option<&str>;
}

impl<T: Labels + ?Sized> Labels for &T {
    fn label(&self, key: &str) -> Option<&str> {
        (**self).label(key)
    }
}

impl<T: Labels> Labels for Option<T> {
    fn label(&self, key: &str) -> Option<&str> {
        self.as_ref()?.label(key)
    }
}

impl Labels for Map<String, Value> {
    fn label(&self, key: &str) -> Option<&str> {
        self.get(key)?.as_str()
    }
}

/// The map itself, not the object that has the labels; anything else has no labels.
impl Labels for Value {
    fn label(&self, key: &str) -> Option<&str> {
        self.get(key)?.as_str()
    }
}

impl Labels for BTreeMap<String, String> {
    fn label(&self, key: &str) -> Option<&str> {
        self.get(key).map(String::as_str)
    }
}

impl Labels for HashMap<String, String> {
    fn label(&self, key: &str) -> Option<&str> {
        self.get(key).map(String::as_str)
    }
}

impl<K: AsRef<str>, V: AsRef<str>> Labels for [(K, V)] {
    fn label(&self, key: &str) -> Option<&str> {
        self.iter().find(|(k, _)| k.as_ref() == key).map(|(_, v)| v.as_ref())
    }
}

impl Default for LabelSelector {
    fn default() -> Self {
        Self::everything()
    }
}

impl LabelSelector {
    /// Selects all.
    pub const fn everything() -> Self {
        Self { requirements: Some(Vec::new()) }
    }

    /// Selects nothing.
    pub const fn nothing() -> Self {
        Self { requirements: None }
    }

    /// Reads the text of a query: `a=b,c in (x,y),!d`.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        parse::parse(text).map(Self::of)
    }

    /// Reads a `LabelSelector` object. Null (none) selects nothing, an empty one everything.
    pub fn from_object(selector: &Value) -> Result<Self, SelectorError> {
        if selector.is_null() {
            return Ok(Self::nothing());
        }
        let mut requirements = Vec::new();
        for (key, value) in selector.get("matchLabels").and_then(Value::as_object).into_iter().flatten() {
            let value = value.as_str().unwrap_or_default().to_owned();
            requirements.push(Requirement::new(key, Operator::Equals, vec![value])?);
        }
        for expression in selector.get("matchExpressions").and_then(Value::as_array).into_iter().flatten() {
            let text = |field: &str| expression.get(field).and_then(Value::as_str).unwrap_or_default();
            let operator = match text("operator") {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                other => {
                    let message = format!("{} is not a valid label selector operator", text::quote(other));
                    return Err(SelectorError(message));
                }
            };
            let values = expression.get("values").and_then(Value::as_array).into_iter().flatten();
            let values = values.filter_map(Value::as_str).map(str::to_owned).collect();
            requirements.push(Requirement::new(text("key"), operator, values)?);
        }
        Ok(Self::of(requirements))
    }

    /// The selector of a plain map (`spec.selector` of a Service): each label must have its value. Unchecked.
    pub fn from_map(labels: &Map<String, Value>) -> Self {
        Self::from_pairs(labels.iter().filter_map(|(key, value)| Some((key.as_str(), value.as_str()?))))
    }

    /// As [`LabelSelector::from_map`], of pairs.
    pub fn from_pairs<'a>(labels: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let equal = |(key, value): (&str, &str)| Requirement {
            key: key.to_owned(),
            operator: Operator::Equals,
            values: vec![value.to_owned()],
            number: 0,
        };
        Self::of(labels.into_iter().map(equal).collect())
    }

    fn of(mut requirements: Vec<Requirement>) -> Self {
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Self { requirements: Some(requirements) }
    }

    /// Whether it selects everything.
    pub fn is_everything(&self) -> bool {
        self.requirements.as_ref().is_some_and(Vec::is_empty)
    }

    /// Whether it can select nothing at all.
    pub fn is_nothing(&self) -> bool {
        self.requirements.is_none()
    }

    /// What must hold, sorted by key; none for a selector of nothing.
    pub fn requirements(&self) -> &[Requirement] {
        self.requirements.as_deref().unwrap_or_default()
    }

    /// Adds another condition.
    pub fn require(&mut self, requirement: Requirement) {
        if let Some(requirements) = &mut self.requirements {
            let at = requirements.partition_point(|r| r.key <= requirement.key);
            requirements.insert(at, requirement);
        }
    }

    /// Whether an object with these labels is selected.
    pub fn matches(&self, labels: &(impl Labels + ?Sized)) -> bool {
        self.requirements.as_ref().is_some_and(|all| all.iter().all(|requirement| requirement.matches(labels)))
    }

    /// The only value that the label may have, if there is one; for indexes.
    pub fn exact(&self, key: &str) -> Option<&str> {
        let requirement = self.requirements().iter().find(|requirement| requirement.key == key)?;
        match (requirement.operator, requirement.values.as_slice()) {
            (Operator::Equals | Operator::DoubleEquals | Operator::In, [value]) => Some(value),
            _ => None,
        }
    }
}

/// The text that [`LabelSelector::parse`] reads; empty for everything and for nothing.
impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, requirement) in self.requirements().iter().enumerate() {
            if at > 0 {
                f.write_str(",")?;
            }
            requirement.fmt(f)?;
        }
        Ok(())
    }
}

impl Requirement {
    /// Makes a condition; key and values are checked.
    pub fn new(key: &str, operator: Operator, mut values: Vec<String>) -> Result<Self, SelectorError> {
        let mut errors = Vec::new();
        let at = Path::new("values");
        let mut wrong = |words| {
            let list = match values.is_empty() {
                true => "null".to_owned(),
                false => text::json(&Value::from(values.clone())),
            };
            errors.push(FieldError::invalid(at, Printed(&list), words));
        };
        let mut number = 0;
        match operator {
            Operator::In | Operator::NotIn if values.is_empty() => {
                wrong("for 'in', 'notin' operators, values set can't be empty");
            }
            Operator::Equals | Operator::DoubleEquals | Operator::NotEquals if values.len() != 1 => {
                wrong("exact-match compatibility requires one single value");
            }
            Operator::Exists | Operator::DoesNotExist if !values.is_empty() => {
                wrong("values set must be empty for exists and does not exist");
            }
            Operator::GreaterThan | Operator::LessThan => {
                if values.len() != 1 {
                    wrong("for 'Gt', 'Lt' operators, exactly one value is required");
                }
                for (index, value) in values.iter().enumerate() {
                    match value.parse() {
                        Ok(parsed) => number = parsed,
                        Err(_) => errors.push(FieldError::invalid(
                            at.index(index),
                            value,
                            "for 'Gt', 'Lt' operators, the value must be an integer",
                        )),
                    }
                }
            }
            _ => {}
        }
        let messages = names::qualified_name(key);
        if !messages.is_empty() {
            errors.insert(0, FieldError::invalid("key", key, &messages.join("; ")));
        }
        for (index, value) in values.iter().enumerate() {
            let messages = names::label_value(value);
            if !messages.is_empty() {
                errors.push(FieldError::invalid(at.index(index).key(key), value, &messages.join("; ")));
            }
        }
        if !errors.is_empty() {
            return Err(SelectorError(aggregate(errors.iter().map(FieldError::to_string))));
        }
        values.sort_unstable();
        Ok(Self { key: key.to_owned(), operator, values, number })
    }

    /// Its label.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Its comparison.
    pub fn operator(&self) -> Operator {
        self.operator
    }

    /// Its values, sorted.
    pub fn values(&self) -> &[String] {
        &self.values
    }

    /// Whether it holds.
    pub fn matches(&self, labels: &(impl Labels + ?Sized)) -> bool {
        let value = labels.label(&self.key);
        let among = |value: &str| self.values.binary_search_by(|one| one.as_str().cmp(value)).is_ok();
        match self.operator {
            Operator::Equals | Operator::DoubleEquals | Operator::In => value.is_some_and(among),
            Operator::NotEquals | Operator::NotIn => !value.is_some_and(among),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::GreaterThan => number(value).is_some_and(|value| value > self.number),
            Operator::LessThan => number(value).is_some_and(|value| value < self.number),
        }
    }
}

fn number(value: Option<&str>) -> Option<i64> {
    value?.parse().ok()
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (key, values) = (&self.key, self.values.join(","));
        match self.operator {
            Operator::Equals => write!(f, "{key}={values}"),
            Operator::DoubleEquals => write!(f, "{key}=={values}"),
            Operator::NotEquals => write!(f, "{key}!={values}"),
            Operator::In => write!(f, "{key} in ({values})"),
            Operator::NotIn => write!(f, "{key} notin ({values})"),
            Operator::Exists => write!(f, "{key}"),
            Operator::DoesNotExist => write!(f, "!{key}"),
            Operator::GreaterThan => write!(f, "{key}>{values}"),
            Operator::LessThan => write!(f, "{key}<{values}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn selects_by_labels() {
        let labels = [("app", "web"), ("tier", "2")];
        for (selector, expected) in [
            ("", true),
            ("app=web", true),
            ("app==web,tier", true),
            ("app!=web", false),
            ("zone!=a", true),
            ("app in (db,web)", true),
            ("app notin (db, web)", false),
            ("!zone", true),
            ("!app", false),
            ("tier>1", true),
            ("tier<2", false),
            ("app>1", false),
            ("zone", false),
        ] {
            let parsed = LabelSelector::parse(selector).unwrap();
            assert_eq!(parsed.matches(&labels[..]), expected, "{selector}");
            assert_eq!(parsed.matches(&json!({"app": "web", "tier": "2"})), expected, "{selector}");
        }
        assert!(!LabelSelector::nothing().matches(&labels[..]));
        assert!(LabelSelector::everything().matches(&None::<&Map<String, Value>>));
    }

    #[test]
    fn reads_objects() {
        let read = |value: Value| LabelSelector::from_object(&value).map(|selector| selector.to_string());
        for (object, expected) in [
            (json!({"matchLabels": {"b": "1", "a": "2"}}), Ok("a=2,b=1")),
            (
                json!({"matchExpressions": [{"key": "z", "operator": "In", "values": ["y", "x"]}], "matchLabels": {"a": "b"}}),
                Ok("a=b,z in (x,y)"),
            ),
            (json!({"matchExpressions": [{"key": "a", "operator": "DoesNotExist"}]}), Ok("!a")),
            (
                json!({"matchExpressions": [{"key": "a", "operator": "Near"}]}),
                Err("\"Near\" is not a valid label selector operator"),
            ),
            (
                json!({"matchExpressions": [{"key": "a", "operator": "In"}]}),
                Err("values: Invalid value: null: for 'in', 'notin' operators, values set can't be empty"),
            ),
            (json!({}), Ok("")),
        ] {
            assert_eq!(
                read(object.clone()),
                expected.map(str::to_owned).map_err(|e: &str| SelectorError(e.to_owned())),
                "{object}"
            );
        }
        assert!(LabelSelector::from_object(&Value::Null).unwrap().is_nothing());
    }
}
