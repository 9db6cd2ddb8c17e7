//! Rules of a schema in CEL, `x-kubernetes-validations`: compiled when a definition is read, evaluated when an object is checked.
//!
//! The rules of one object share a budget, and each has a part of it. What a rule says of a value that an update does not
//! change is no error; rules that name `oldSelf` are asked only where there is an old value.

#[cfg(test)]
mod tests;

use serde_json::Value;

use super::structural::{Additional, Structural, Type};
use crate::cel::{self, Budget, EXPRESSION_BUDGET, Env, Expr, Run, Shape, Stop, Ty, Val};
use crate::meta::field::{FieldError, FieldErrors};
use crate::schema::ListKind;

/// What all rules of one object may cost (Kubernetes').
const COST_MAX: usize = 10_000_000;
/// The place of `oldSelf`; before it is that of `self`.
const OLD: usize = 1;
/// Longest message that an expression may give.
const MESSAGE_MAX: usize = 5 << 10;

/// A rule.
#[derive(Debug)]
pub(crate) struct Rule {
    /// As it is written in the schema.
    pub written: Value,
    /// Why the rule is none.
    pub fault: Option<String>,
    /// Why its message's expression is none.
    pub message_fault: Option<String>,
    pub uses_old: bool,
    program: Option<Expr>,
    message: Option<Expr>,
    optional_old: bool,
    field: String,
}

impl Rule {
    /// Reads a rule for values of a schema.
    pub(super) fn read(written: &Value, schema: &Structural, root: bool, budget: &mut Budget) -> Rule {
        let text = |field: &str| written[field].as_str().unwrap_or_default();
        let (source, message) = (text("rule"), text("messageExpression"));
        let optional_old = written["optionalOldSelf"] == true;
        let mut rule = Rule {
            written: written.clone(),
            fault: None,
            message_fault: None,
            uses_old: false,
            program: None,
            message: None,
            optional_old,
            field: normal(text("fieldPath"), schema),
        };
        if source.trim().is_empty() {
            return rule;
        }
        let shape = if root { Shape::Whole(schema) } else { Shape::of(schema) };
        let own = Ty::of(shape, "selfType");
        let old = if optional_old { Ty::optional(own.clone()) } else { own.clone() };
        let names = vec![("self".to_owned(), own), ("oldSelf".to_owned(), old)];
        let env = Env { names, patches: false, binds: false };
        let mut compile =
            |source: &str| cel::compile(source, &env, budget).map_err(|told| format!("compilation failed: {told}"));
        match compile(source) {
            Ok(made) if !matches!(made.ty, Ty::Bool) => {
                rule.fault = Some("cel expression must evaluate to a bool".to_owned());
            }
            Ok(made) => {
                rule.uses_old = made.uses & (1 << OLD) != 0;
                rule.program = Some(made.expr);
            }
            Err(fault) => rule.fault = Some(fault),
        }
        if !message.trim().is_empty() {
            match compile(message) {
                Ok(made) if !matches!(made.ty, Ty::Text) => {
                    rule.message_fault = Some("messageExpression must evaluate to a string".to_owned());
                }
                Ok(made) => rule.message = Some(made.expr),
                Err(fault) => rule.message_fault = Some(format!("messageExpression {fault}")),
            }
        }
        rule
    }

    /// What an error calls it.
    fn name(&self) -> &str {
        let text = |field: &str| self.written[field].as_str().unwrap_or_default().trim();
        if text("message").is_empty() { text("rule") } else { text("message") }
    }

    fn default_message(&self) -> String {
        match self.written["message"].as_str().unwrap_or_default().trim() {
            "" => format!("failed rule: {}", self.name()),
            message => message.to_owned(),
        }
    }
}

/// A path of fields, `.a['b']`, as errors write it.
fn normal(path: &str, schema: &Structural) -> String {
    let (mut rest, mut schema, mut out) = (path, Some(schema), String::new());
    while !rest.is_empty() {
        let name;
        if let Some(after) = rest.strip_prefix("['") {
            let Some((quoted, after)) = after.split_once("']") else { break };
            (name, rest) = (quoted, after);
        } else {
            let Some(after) = rest.strip_prefix('.') else { break };
            (name, rest) = after.split_at(after.find(['.', '[']).unwrap_or(after.len()));
        }
        match schema.is_none_or(|schema| schema.properties.is_empty()) {
            true => out.push_str(&format!("[{name}]")),
            false if out.is_empty() => out.push_str(name),
            false => out.push_str(&format!(".{name}")),
        }
        schema = schema.and_then(|schema| schema.named_or_other(name));
    }
    out
}

/// Checks an object by the rules of its schema. `old` is what it was.
pub(super) fn validate<'a>(
    schema: &'a Structural,
    object: &'a Value,
    old: Option<&'a Value>,
    errors: &mut FieldErrors,
) {
    if !schema.reach.rules {
        return;
    }
    let mut checker = Checker { left: COST_MAX, path: String::new(), errors };
    let pair = old.map(|old| (object, old));
    let _ = checker.node(schema, object, old, pair, true);
}

/// The rules' budget is spent, or nothing more can be told: nothing further is evaluated.
struct Spent;

struct Checker<'e> {
    left: usize,
    path: String,
    errors: &'e mut FieldErrors,
}

/// A value and what it was: that which an error may be let through by.
type Pair<'a> = Option<(&'a Value, &'a Value)>;

impl Checker<'_> {
    fn node<'a>(
        &mut self,
        schema: &'a Structural,
        value: &'a Value,
        old: Option<&'a Value>,
        pair: Pair<'a>,
        root: bool,
    ) -> Result<(), Spent> {
        if !schema.reach.rules || value.is_null() {
            return Ok(());
        }
        // Null was no value.
        let old = old.filter(|old| !old.is_null());
        self.rules(schema, value, old, pair, root || schema.embedded)?;
        let length = self.path.len();
        match value {
            Value::Object(fields) => {
                let before = old.and_then(Value::as_object);
                for (name, value) in fields {
                    let of = match (schema.properties.get(name), &schema.additional) {
                        (Some(of), _) => {
                            if !self.path.is_empty() {
                                self.path.push('.');
                            }
                            self.path.push_str(name);
                            of
                        }
                        (None, Additional::Of(of)) => {
                            self.path.push_str(&format!("[{name}]"));
                            of
                        }
                        _ => continue,
                    };
                    let old = before.and_then(|before| before.get(name));
                    self.node(of, value, old, old.map(|old| (value, old)).or(pair), false)?;
                    self.path.truncate(length);
                }
            }
            Value::Array(items) => {
                let Some(of) = schema.items.as_deref() else { return Ok(()) };
                if !of.reach.rules {
                    return Ok(());
                }
                let before = old.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
                let known = match &schema.list {
                    Some(ListKind::Map(keys)) => by_keys(before, keys),
                    _ => std::collections::HashMap::new(),
                };
                for (at, item) in items.iter().enumerate() {
                    let old = match &schema.list {
                        Some(ListKind::Map(keys)) => known.get(&key(item, keys)).copied(),
                        _ => None,
                    };
                    self.path.push_str(&format!("[{at}]"));
                    self.node(of, item, old, old.map(|old| (item, old)).or(pair), false)?;
                    self.path.truncate(length);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn place(&self, below: &str) -> String {
        match (self.path.as_str(), below) {
            ("", "") => "<nil>".to_owned(),
            ("", below) => below.to_owned(),
            (path, "") => path.to_owned(),
            (path, below) if below.starts_with('[') => format!("{path}{below}"),
            (path, below) => format!("{path}.{below}"),
        }
    }

    fn wrong(&mut self, schema: &Structural, detail: &str) {
        let place = self.place("");
        self.errors.push(FieldError::invalid(place, schema.ty.name(), detail));
    }

    fn rules<'a>(
        &mut self,
        schema: &'a Structural,
        value: &'a Value,
        old: Option<&'a Value>,
        pair: Pair<'a>,
        root: bool,
    ) -> Result<(), Spent> {
        let shape = if root { Shape::Whole(schema) } else { Shape::Of(schema) };
        for rule in &schema.rules {
            // What nobody would be told need not be found, nor worded.
            if self.errors.is_full() {
                return Err(Spent);
            }
            if let Some(fault) = &rule.fault {
                self.wrong(schema, &format!("rule compile error: {fault}"));
                continue;
            }
            let Some(program) = &rule.program else { continue };
            if rule.uses_old && old.is_none() && !rule.optional_old {
                continue;
            }
            let slots = |run: &mut Run<'a>| -> Result<Vec<Val<'a>>, Stop> {
                let old = match (old, rule.optional_old) {
                    (Some(old), true) => Val::some(Val::of(old, shape, run)?)?,
                    (None, true) => Val::Optional(None),
                    (Some(old), false) => Val::of(old, shape, run)?,
                    (None, false) => Val::Null,
                };
                Ok(vec![Val::of(value, shape, run)?, old])
            };
            match self.eval(program, slots) {
                Ok(Val::Bool(true)) => {}
                Ok(Val::Bool(false)) => self.failed(rule, schema, value, pair, slots)?,
                Ok(_) => {
                    let detail = format!("cel expression must evaluate to a bool evaluating rule: {}", rule.name());
                    self.wrong(schema, &detail);
                }
                Err(Stop::Cost) if self.left == 0 => {
                    let words =
                        "validation failed due to running out of cost budget, no further validation rules will be run";
                    self.wrong(schema, words);
                    return Err(Spent);
                }
                Err(Stop::Cost) => {
                    let detail = format!(
                        "'operation cancelled: actual cost limit exceeded': no further validation rules will be run due to \
                         call cost exceeds limit for rule: {}",
                        rule.name()
                    );
                    self.wrong(schema, &detail);
                    return Err(Spent);
                }
                Err(Stop::Fault(words)) if words.starts_with("no such overload") => {
                    let detail = format!(
                        "'{words}': call arguments did not match a supported operator, function or macro signature for rule: {}",
                        rule.name()
                    );
                    self.wrong(schema, &detail);
                }
                Err(Stop::Fault(words)) => self.wrong(schema, &format!("{words} evaluating rule: {}", rule.name())),
            }
        }
        Ok(())
    }

    fn eval<'a>(
        &mut self,
        program: &'a Expr,
        slots: impl Fn(&mut Run<'a>) -> Result<Vec<Val<'a>>, Stop>,
    ) -> Result<Val<'a>, Stop> {
        let mut run = Run::new(EXPRESSION_BUDGET.min(self.left));
        let value = slots(&mut run).and_then(|slots| run.program(program, slots));
        self.left -= run.spent();
        value
    }

    /// Tells that a value is not as a rule wants it.
    fn failed<'a>(
        &mut self,
        rule: &'a Rule,
        schema: &Structural,
        value: &Value,
        pair: Pair<'_>,
        slots: impl Fn(&mut Run<'a>) -> Result<Vec<Val<'a>>, Stop>,
    ) -> Result<(), Spent> {
        if !rule.uses_old && pair.is_some_and(|(new, old)| new == old) {
            return Ok(());
        }
        let place = self.place(&rule.field);
        let mut detail = None;
        if let Some(message) = &rule.message {
            match self.eval(message, slots) {
                Ok(Val::Text(text)) => {
                    let text = text.trim();
                    let is_right = !text.is_empty() && text.len() <= MESSAGE_MAX && !text.contains('\n');
                    detail = is_right.then(|| text.to_owned());
                }
                Err(Stop::Cost) => {
                    let words = "messageExpression evaluation failed due to running out of cost budget, no further validation rules will be run";
                    self.errors.push(FieldError::invalid(place, schema.ty.name(), words));
                    return Err(Spent);
                }
                _ => {}
            }
        }
        let detail = detail.unwrap_or_else(|| rule.default_message());
        let is_simple = !matches!(schema.ty, Type::Object | Type::Array);
        self.errors.push(match rule.written["reason"].as_str() {
            Some("FieldValueForbidden") => FieldError::forbidden(place, &detail),
            Some("FieldValueRequired") => FieldError::required(place, &detail),
            Some("FieldValueDuplicate") if is_simple => FieldError::duplicate(place, value),
            Some("FieldValueDuplicate") => {
                FieldError { reason: "FieldValueDuplicate", field: place, message: "Duplicate value".to_owned() }
            }
            _ if is_simple => FieldError::invalid(place, value, &detail),
            _ => FieldError { reason: "FieldValueInvalid", field: place, message: format!("Invalid value: {detail}") },
        });
        Ok(())
    }
}

/// What tells items of a list apart.
fn key(item: &Value, keys: &[String]) -> Vec<Option<String>> {
    keys.iter().map(|key| item.get(key).map(ToString::to_string)).collect()
}

fn by_keys<'a>(items: &'a [Value], keys: &[String]) -> std::collections::HashMap<Vec<Option<String>>, &'a Value> {
    items.iter().map(|item| (key(item, keys), item)).collect()
}
