//! Structures as Kubernetes prints them in some messages: with the names and the order of its own fields, and with all
//! that is not set. Which fields there are is data (`internal.txt`: a structure a line, then `name=jsonName:type`; type
//! `s` text, `b` boolean, `i` number, `q` quantity, `I` number or text, `.X` structure, `p.X` maybe a structure, `*X`
//! list of structures, `L` label selector, `M` object metadata, none for what is null when it is not set).

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::LazyLock;

use serde_json::Value;

use super::checks::selector_text;
use super::value::Read;
use crate::meta::text;
use crate::schema::Type;

static STRUCTURES: LazyLock<HashMap<&'static str, Vec<Field>>> = LazyLock::new(|| {
    let lines = include_str!("internal.txt").lines();
    lines.filter_map(|line| line.split_once(' ')).map(|(name, rest)| (name, fields(rest))).collect()
});

struct Field {
    name: &'static str,
    json: &'static str,
    kind: Kind,
}

#[derive(Clone, Copy)]
enum Kind {
    Text,
    Flag,
    Number,
    Quantity,
    Selector,
    Metadata,
    Maybe,
    Structure(&'static str),
    MaybeStructure(&'static str),
    List(&'static str),
}

fn fields(line: &'static str) -> Vec<Field> {
    let field = |part: &'static str| {
        let (name, rest) = part.split_once('=')?;
        let (json, kind) = rest.split_once(':').unwrap_or((rest, ""));
        let kind = match kind {
            "s" => Kind::Text,
            "b" => Kind::Flag,
            "i" | "I" => Kind::Number,
            "q" => Kind::Quantity,
            "L" => Kind::Selector,
            "M" => Kind::Metadata,
            _ => match (kind.strip_prefix('.'), kind.strip_prefix("p."), kind.strip_prefix('*')) {
                (Some(name), _, _) => Kind::Structure(name),
                (_, Some(name), _) => Kind::MaybeStructure(name),
                (_, _, Some(name)) => Kind::List(name),
                _ => Kind::Maybe,
            },
        };
        Some(Field { name, json, kind })
    };
    line.split(' ').filter_map(field).collect()
}

/// A structure on one line.
pub(super) fn text(structure: &str, value: &Value) -> String {
    let mut printer = Printer { out: String::new(), indent: None };
    printer.structure(structure, value);
    printer.out
}

/// A structure with each field on a line of its own, indented by one space.
pub(super) fn pretty(structure: &str, value: &Value) -> String {
    let mut printer = Printer { out: String::new(), indent: Some(0) };
    printer.structure(structure, value);
    printer.out
}

/// A value as Go prints a structure of the API: its fields in the order of the structure, without what is not set.
pub(super) fn ordered(ty: &Type, value: &Value) -> String {
    match (ty.resolve(), value) {
        (Type::Object(object), Value::Object(fields)) => {
            let number = |name: &str| object.fields.get(name).map_or(u32::MAX, |field| field.number);
            let mut names: Vec<&String> = fields.keys().collect();
            names.sort_by_key(|name| number(name));
            let field = |name: &&String| {
                let ty = object.fields.get(name).map_or(&Type::Any, |field| &field.ty);
                format!("{}:{}", text::json(&name.as_str().into()), ordered(ty, &fields[*name]))
            };
            format!("{{{}}}", names.iter().map(field).collect::<Vec<_>>().join(","))
        }
        (Type::List(list), Value::Array(items)) => {
            let items: Vec<String> = items.iter().map(|item| ordered(&list.items, item)).collect();
            format!("[{}]", items.join(","))
        }
        _ => text::json(value),
    }
}

struct Printer {
    out: String,
    /// How deep, when it is printed on many lines.
    indent: Option<usize>,
}

impl Printer {
    fn structure(&mut self, structure: &str, value: &Value) {
        let fields = STRUCTURES.get(structure).map(Vec::as_slice).unwrap_or_default();
        self.block(['{', '}'], fields.iter(), |printer, field| {
            printer.name(field.name);
            printer.field(field.kind, &value[field.json]);
        });
    }

    fn field(&mut self, kind: Kind, value: &Value) {
        match kind {
            Kind::Text => self.out.push_str(&text::json(&value.text().into())),
            Kind::Flag => self.out.push_str(if value.flag() { "true" } else { "false" }),
            Kind::Number if value.is_null() => self.out.push('0'),
            Kind::Quantity if value.is_null() => self.out.push_str("\"0\""),
            Kind::Selector if self.indent.is_none() => self.out.push_str(&selector_text(value)),
            Kind::Selector if value.is_object() => {
                let fields = ["matchLabels", "matchExpressions"].into_iter().filter(|field| !value[*field].is_empty());
                self.block(['{', '}'], fields, |printer, field| {
                    printer.name(field);
                    printer.json(&value[field]);
                });
            }
            Kind::Metadata if value.is_null() => self.out.push_str("{}"),
            Kind::Structure(name) => self.structure(name, value),
            Kind::MaybeStructure(name) if value.is_set() => self.structure(name, value),
            Kind::List(name) if !value.is_empty() => {
                self.block(['[', ']'], value.items().iter(), |printer, item| printer.structure(name, item));
            }
            Kind::Maybe if value.is_empty() && !value.is_string() => self.out.push_str("null"),
            _ => self.json(value),
        }
    }

    /// Any JSON.
    fn json(&mut self, value: &Value) {
        match value {
            Value::Object(fields) => self.block(['{', '}'], fields.iter(), |printer, (name, value)| {
                printer.name(name);
                printer.json(value);
            }),
            Value::Array(items) => self.block(['[', ']'], items.iter(), Self::json_item),
            other => self.out.push_str(&text::json(other)),
        }
    }

    fn json_item(&mut self, value: &Value) {
        self.json(value);
    }

    fn name(&mut self, name: &str) {
        self.out.push_str(&text::json(&name.into()));
        self.out.push_str(if self.indent.is_some() { ": " } else { ":" });
    }

    fn block<T>(&mut self, brackets: [char; 2], parts: impl Iterator<Item = T>, mut print: impl FnMut(&mut Self, T)) {
        self.out.push(brackets[0]);
        let outer = self.indent;
        self.indent = outer.map(|depth| depth + 1);
        let mut is_empty = true;
        for part in parts {
            if !is_empty {
                self.out.push(',');
            }
            is_empty = false;
            self.line();
            print(self, part);
        }
        self.indent = outer;
        if !is_empty {
            self.line();
        }
        self.out.push(brackets[1]);
    }

    fn line(&mut self) {
        if let Some(depth) = self.indent {
            let _ = write!(self.out, "\n{:depth$}", "");
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn prints_all_fields_in_the_order_of_the_structure() {
        let port = json!({"port": 80, "protocol": "TCP"});
        let expected = r#"{"Name":"","Protocol":"TCP","AppProtocol":null,"Port":80,"TargetPort":0,"NodePort":0}"#;
        assert_eq!(text("ServicePort", &port), expected);
        let pretty = pretty("EnvVar", &json!({"name": "A", "value": "1"}));
        assert_eq!(pretty, "{\n \"Name\": \"A\",\n \"Value\": \"1\",\n \"ValueFrom\": null\n}");
    }
}
