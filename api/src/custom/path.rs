//! The JSONPath of columns, selectable fields and scales: what kubectl takes between `{` and `}`.

use std::cmp::Ordering;

use serde_json::Value;

/// Values that are found at most: a column shows the first.
const FOUND_MAX: usize = 1_000;
/// Values that are looked at at most.
const LOOKED_AT_MAX: usize = 100_000;

/// A path, taken apart.
#[derive(Debug, Clone, PartialEq)]
pub struct JsonPath(Vec<Step>);

#[derive(Debug, Clone, PartialEq)]
enum Step {
    Field(String),
    /// Any field or item.
    Every,
    /// This field at any depth.
    Deep(String),
    Index(i64),
    Slice(Option<i64>, Option<i64>, i64),
    Union(Vec<String>),
    Filter(Box<Filter>),
}

#[derive(Debug, Clone, PartialEq)]
struct Filter {
    left: Operand,
    /// With the other side; without, the left side must be there.
    right: Option<(String, Operand)>,
}

#[derive(Debug, Clone, PartialEq)]
enum Operand {
    Path(JsonPath),
    Value(Value),
}

impl JsonPath {
    /// Reads a path such as `.status.conditions[?(@.type=="Ready")].status`.
    ///
    /// # Errors
    /// What is no path, in a few words.
    pub fn parse(text: &str) -> Result<JsonPath, String> {
        let mut reader = Reader { rest: text.strip_prefix('$').unwrap_or(text) };
        let path = reader.path(0)?;
        if reader.rest.is_empty() { Ok(path) } else { Err(format!("unexpected {:?}", reader.rest)) }
    }

    /// What it leads to; nothing where something on the way is missing.
    #[must_use]
    pub fn find<'a>(&self, value: &'a Value) -> Vec<&'a Value> {
        let mut found = vec![value];
        let mut left = LOOKED_AT_MAX;
        for step in &self.0 {
            let mut next = Vec::new();
            for value in found {
                step.follow(value, &mut next, &mut left);
                if next.len() >= FOUND_MAX || left == 0 {
                    break;
                }
            }
            next.truncate(FOUND_MAX);
            found = next;
        }
        found
    }

    /// The first thing it leads to.
    #[must_use]
    pub fn first<'a>(&self, value: &'a Value) -> Option<&'a Value> {
        self.find(value).into_iter().next()
    }
}

impl Step {
    fn follow<'a>(&self, value: &'a Value, out: &mut Vec<&'a Value>, left: &mut usize) {
        *left = left.saturating_sub(1);
        match (self, value) {
            (Step::Field(name), Value::Object(fields)) => out.extend(fields.get(name)),
            (Step::Union(names), Value::Object(fields)) => out.extend(names.iter().filter_map(|name| fields.get(name))),
            (Step::Every, Value::Object(fields)) => out.extend(fields.values()),
            (Step::Every, Value::Array(items)) => out.extend(items),
            (Step::Deep(name), value) => deep(name, value, out, left),
            (Step::Index(at), Value::Array(items)) => out.extend(place(*at, items.len()).and_then(|at| items.get(at))),
            (Step::Slice(from, to, by), Value::Array(items)) => {
                let length = i64::try_from(items.len()).unwrap_or(i64::MAX);
                let clamp =
                    |at: i64| usize::try_from(if at < 0 { at + length } else { at }.clamp(0, length)).unwrap_or(0);
                let (from, to) = (clamp(from.unwrap_or(0)), clamp(to.unwrap_or(length)));
                let by = usize::try_from(*by).unwrap_or(1).max(1);
                out.extend(items.get(from..to.max(from)).unwrap_or_default().iter().step_by(by));
            }
            (Step::Filter(filter), Value::Array(items)) => {
                *left = left.saturating_sub(items.len());
                out.extend(items.iter().filter(|item| filter.holds(item)));
            }
            _ => {}
        }
    }
}

fn place(at: i64, length: usize) -> Option<usize> {
    let length = i64::try_from(length).ok()?;
    usize::try_from(if at < 0 { at + length } else { at }).ok()
}

fn deep<'a>(name: &str, value: &'a Value, out: &mut Vec<&'a Value>, left: &mut usize) {
    if *left == 0 || out.len() >= FOUND_MAX {
        return;
    }
    *left -= 1;
    match value {
        Value::Object(fields) => {
            out.extend(fields.get(name));
            fields.values().for_each(|value| deep(name, value, out, left));
        }
        Value::Array(items) => items.iter().for_each(|item| deep(name, item, out, left)),
        _ => {}
    }
}

impl Filter {
    fn holds(&self, item: &Value) -> bool {
        let value = |operand: &Operand| match operand {
            Operand::Path(path) => path.first(item).cloned(),
            Operand::Value(value) => Some(value.clone()),
        };
        let left = value(&self.left);
        let Some((operator, right)) = &self.right else { return left.is_some() };
        let (Some(left), Some(right)) = (left, value(right)) else { return false };
        let order = match (&left, &right) {
            (Value::Number(a), Value::Number(b)) => a.as_f64().partial_cmp(&b.as_f64()),
            (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
            (a, b) if a == b => Some(Ordering::Equal),
            _ => None,
        };
        match operator.as_str() {
            "==" => order == Some(Ordering::Equal),
            "!=" => order != Some(Ordering::Equal),
            "<" => order == Some(Ordering::Less),
            ">" => order == Some(Ordering::Greater),
            "<=" => order.is_some_and(Ordering::is_le),
            ">=" => order.is_some_and(Ordering::is_ge),
            _ => false,
        }
    }
}

struct Reader<'a> {
    rest: &'a str,
}

impl Reader<'_> {
    fn path(&mut self, depth: usize) -> Result<JsonPath, String> {
        if depth > 8 {
            return Err("nested too deeply".to_owned());
        }
        let mut steps = Vec::new();
        loop {
            if let Some(rest) = self.rest.strip_prefix("..") {
                self.rest = rest;
                steps.push(Step::Deep(self.name()));
            } else if let Some(rest) = self.rest.strip_prefix('.') {
                self.rest = rest;
                match self.name() {
                    // A dot alone is the object itself.
                    name if name.is_empty() => {}
                    name if name == "*" => steps.push(Step::Every),
                    name => steps.push(Step::Field(name)),
                }
            } else if let Some(rest) = self.rest.strip_prefix('[') {
                self.rest = rest;
                steps.push(self.bracket(depth)?);
            } else if steps.is_empty() && self.rest.starts_with(|c: char| c.is_alphanumeric() || c == '_') {
                steps.push(Step::Field(self.name()));
            } else {
                return Ok(JsonPath(steps));
            }
        }
    }

    /// A name; a backslash takes what follows as it is.
    fn name(&mut self) -> String {
        let (mut name, mut end, mut escaped) = (String::new(), self.rest.len(), false);
        for (at, c) in self.rest.char_indices() {
            if !escaped && c == '\\' {
                escaped = true;
                continue;
            }
            if !escaped && ". []()=!<>@,'\"".contains(c) {
                end = at;
                break;
            }
            escaped = false;
            name.push(c);
        }
        self.rest = &self.rest[end..];
        name
    }

    fn bracket(&mut self, depth: usize) -> Result<Step, String> {
        if let Some(rest) = self.rest.strip_prefix("?(") {
            self.rest = rest;
            let filter = self.filter(depth)?;
            self.rest = self.rest.strip_prefix(")]").ok_or("unterminated filter")?;
            return Ok(Step::Filter(Box::new(filter)));
        }
        if self.rest.starts_with(['\'', '"']) {
            let mut names = vec![self.quoted()?];
            while let Some(rest) = self.rest.trim_start().strip_prefix(',') {
                self.rest = rest.trim_start();
                names.push(self.quoted()?);
            }
            self.rest = self.rest.strip_prefix(']').ok_or("unterminated array")?;
            return Ok(if names.len() == 1 { Step::Field(names.remove(0)) } else { Step::Union(names) });
        }
        let (inside, rest) = self.rest.split_once(']').ok_or("unterminated array")?;
        self.rest = rest;
        let number = |text: &str| match text.trim() {
            "" => Ok(None),
            text => text.parse::<i64>().map(Some).map_err(|_| format!("invalid array index {text}")),
        };
        let parts: Vec<&str> = inside.split(':').collect();
        match parts.as_slice() {
            ["*"] => Ok(Step::Every),
            [at] => Ok(Step::Index(number(at)?.ok_or("invalid array index")?)),
            [from, to] => Ok(Step::Slice(number(from)?, number(to)?, 1)),
            [from, to, by] => match number(by)?.unwrap_or(1) {
                by if by > 0 => Ok(Step::Slice(number(from)?, number(to)?, by)),
                _ => Err("step must be > 0".to_owned()),
            },
            _ => Err(format!("invalid array index {inside}")),
        }
    }

    fn quoted(&mut self) -> Result<String, String> {
        let quote = self.rest.chars().next().filter(|c| matches!(c, '\'' | '"')).ok_or("a quote is missing")?;
        let (mut text, mut escaped) = (String::new(), false);
        for (at, c) in self.rest.char_indices().skip(1) {
            match c {
                _ if escaped => {
                    escaped = false;
                    text.push(c);
                }
                '\\' => escaped = true,
                c if c == quote => {
                    self.rest = &self.rest[at + 1..];
                    return Ok(text);
                }
                c => text.push(c),
            }
        }
        Err("unterminated quoted string".to_owned())
    }

    fn filter(&mut self, depth: usize) -> Result<Filter, String> {
        let left = self.operand(depth)?;
        self.rest = self.rest.trim_start();
        let operator = ["==", "!=", "<=", ">=", "<", ">"].into_iter().find(|operator| self.rest.starts_with(operator));
        let Some(operator) = operator else { return Ok(Filter { left, right: None }) };
        self.rest = &self.rest[operator.len()..];
        let right = self.operand(depth)?;
        self.rest = self.rest.trim_start();
        Ok(Filter { left, right: Some((operator.to_owned(), right)) })
    }

    fn operand(&mut self, depth: usize) -> Result<Operand, String> {
        self.rest = self.rest.trim_start();
        if let Some(rest) = self.rest.strip_prefix('@') {
            self.rest = rest;
            return Ok(Operand::Path(self.path(depth + 1)?));
        }
        if self.rest.starts_with(['\'', '"']) {
            return Ok(Operand::Value(self.quoted()?.into()));
        }
        let end = self.rest.find([' ', ')', '=', '!', '<', '>']).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        match serde_json::from_str::<Value>(word) {
            Ok(value @ (Value::Bool(_) | Value::Number(_))) => Ok(Operand::Value(value)),
            _ => Err(format!("unrecognized identifier {word}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_path_leads_where_kubectl_goes() {
        let object = json!({
            "metadata": {"annotations": {"a.b/c": "dotted"}},
            "spec": {"ports": [{"n": "a", "p": 1}, {"n": "b", "p": 2}], "list": [1, 2, 3]},
            "status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "Bad", "status": "False"}]},
        });
        for (path, expected) in [
            (".spec.list[0]", json!([1])),
            (".spec.list[-1:]", json!([3])),
            (".spec.list[0:2]", json!([1, 2])),
            (".spec.ports[*].p", json!([1, 2])),
            (".status.conditions[?(@.type==\"Ready\")].status", json!(["True"])),
            (".status.conditions[?(@.type=='Bad')].status", json!(["False"])),
            (".spec.ports[?(@.p > 1)].n", json!(["b"])),
            (".spec.ports[?(@.q)].n", json!([])),
            (r".metadata.annotations.a\.b/c", json!(["dotted"])),
            (".metadata.annotations['a.b/c']", json!(["dotted"])),
            (
                "..status",
                json!([{"conditions": [{"type": "Ready", "status": "True"}, {"type": "Bad", "status": "False"}]}, "True", "False"]),
            ),
            (".spec.none.more", json!([])),
        ] {
            let found = JsonPath::parse(path).unwrap_or_else(|error| panic!("{path}: {error}"));
            assert_eq!(json!(found.find(&object)), expected, "{path}");
        }
        for path in [".a[", ".a[x]", ".a[?(@.b==)]", ".a[::0]", ".a b"] {
            assert!(JsonPath::parse(path).is_err(), "{path}");
        }
    }
}
