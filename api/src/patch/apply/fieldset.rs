//! Sets of fields, kept as `fieldsV1` is written: a tree whose keys are steps ([`super::element`]).
//!
//! A node `{}` is a member, a node with children is one only when it has a child `.`; a node that is neither does not
//! exist. All functions keep to that form, so that an empty map is the empty set.

use serde_json::{Map, Value};

use super::element;

const SELF: &str = ".";

/// A set of fields.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct FieldSet(Map<String, Value>);

impl FieldSet {
    /// Takes a tree that is in our form, as all that we wrote is.
    pub fn trusted(tree: Map<String, Value>) -> Self {
        Self(tree)
    }

    /// Reads a tree that a client wrote. Steps of unknown kinds are dropped.
    pub fn read(tree: Map<String, Value>) -> Result<Self, String> {
        let mut read = Map::new();
        for (step, below) in tree {
            if step == SELF {
                continue;
            }
            let Value::Object(below) = below else { return Err("expected an object".to_owned()) };
            let Some(step) = element::canonical(&step)? else { continue };
            let is_member = below.contains_key(SELF);
            let below = Self::read(below)?.0;
            let is_member = is_member || below.is_empty();
            put(&mut read, step, is_member, below);
        }
        Ok(Self(read))
    }

    /// The tree as it is written.
    pub fn into_tree(self) -> Map<String, Value> {
        self.0
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds what is in the other.
    pub fn union(&mut self, other: Self) {
        union(&mut self.0, other.0);
    }

    /// Takes away what is in the other. Fields below a field of the other stay.
    pub fn subtract(&mut self, other: &Self) {
        subtract(&mut self.0, &other.0);
    }

    /// What is in both.
    pub fn intersection(&self, other: &Self) -> Self {
        Self(intersection(&self.0, &other.0))
    }

    /// Takes away a field and all below it.
    pub fn remove_below(&mut self, path: &[&str]) {
        remove_below(&mut self.0, path);
    }

    /// Keeps only these fields, what is below them, and those on the way to them.
    pub fn retain_below(&mut self, paths: &[&[&str]]) {
        retain_below(&mut self.0, paths);
    }

    /// All fields in the order in which the reference lists them, each a list of steps.
    pub fn paths(&self) -> Vec<Vec<String>> {
        let mut paths = Vec::new();
        walk(&self.0, &mut Vec::new(), &mut paths);
        paths
    }

    pub(super) fn tree(&self) -> &Map<String, Value> {
        &self.0
    }
}

/// Whether a node is a member itself.
pub(super) fn is_member(node: &Map<String, Value>) -> bool {
    node.is_empty() || node.contains_key(SELF)
}

/// What is below a step, when there is anything.
pub(super) fn below<'a>(tree: &'a Map<String, Value>, step: &str) -> Option<&'a Map<String, Value>> {
    match tree.get(step) {
        Some(Value::Object(node)) if !node.is_empty() => Some(node),
        _ => None,
    }
}

/// Puts a node in its place, in our form; one that is nothing is left out.
pub(super) fn put(tree: &mut Map<String, Value>, step: String, is_member: bool, mut below: Map<String, Value>) {
    if is_member && !below.is_empty() {
        below.insert(SELF.to_owned(), Value::Object(Map::new()));
    }
    if is_member || !below.is_empty() {
        tree.insert(step, Value::Object(below));
    }
}

/// Makes the node of a step in our form again after its children changed.
fn settle(tree: &mut Map<String, Value>, step: &str, is_member: bool) {
    let Some(Value::Object(node)) = tree.get_mut(step) else { return };
    let has_self = node.contains_key(SELF);
    let has_children = node.len() > usize::from(has_self);
    match (is_member, has_children) {
        (false, false) => drop(tree.remove(step)),
        (true, false) => node.clear(),
        (true, true) if !has_self => drop(node.insert(SELF.to_owned(), Value::Object(Map::new()))),
        (false, true) if has_self => drop(node.remove(SELF)),
        _ => {}
    }
}

fn union(tree: &mut Map<String, Value>, other: Map<String, Value>) {
    for (step, node) in other {
        if step == SELF {
            continue;
        }
        let Value::Object(node) = node else { continue };
        match tree.get_mut(&step) {
            Some(Value::Object(ours)) => {
                let member = is_member(ours) || is_member(&node);
                union(ours, node);
                settle(tree, &step, member);
            }
            _ => drop(tree.insert(step, Value::Object(node))),
        }
    }
}

fn subtract(tree: &mut Map<String, Value>, other: &Map<String, Value>) {
    for (step, node) in other {
        let (Value::Object(node), Some(Value::Object(ours))) = (node, tree.get_mut(step)) else { continue };
        if step == SELF {
            continue;
        }
        let member = is_member(ours) && !is_member(node);
        subtract(ours, node);
        settle(tree, step, member);
    }
}

fn intersection(tree: &Map<String, Value>, other: &Map<String, Value>) -> Map<String, Value> {
    let mut both = Map::new();
    let (few, many) = if tree.len() <= other.len() { (tree, other) } else { (other, tree) };
    for (step, a) in few {
        if let (Value::Object(a), Some(Value::Object(b))) = (a, many.get(step))
            && step != SELF
        {
            put(&mut both, step.clone(), is_member(a) && is_member(b), intersection(a, b));
        }
    }
    both
}

fn remove_below(tree: &mut Map<String, Value>, path: &[&str]) {
    let Some((name, rest)) = path.split_first() else { return };
    let step = element::field(name);
    if rest.is_empty() {
        tree.remove(&step);
    } else if let Some(Value::Object(node)) = tree.get_mut(&step) {
        let member = is_member(node);
        remove_below(node, rest);
        settle(tree, &step, member);
    }
}

fn retain_below(tree: &mut Map<String, Value>, paths: &[&[&str]]) {
    let steps: Vec<String> = tree.keys().filter(|step| *step != SELF).cloned().collect();
    for step in steps {
        let fits =
            |path: &&&[&str]| path.first().is_some_and(|name| *name == "*" || step.strip_prefix("f:") == Some(name));
        let rest: Vec<&[&str]> = paths.iter().filter(fits).map(|path| &path[1..]).collect();
        if rest.is_empty() {
            tree.remove(&step);
        } else if rest.iter().all(|path| !path.is_empty())
            && let Some(Value::Object(node)) = tree.get_mut(&step)
        {
            let member = is_member(node);
            retain_below(node, &rest);
            settle(tree, &step, member);
        }
    }
}

fn walk(tree: &Map<String, Value>, path: &mut Vec<String>, paths: &mut Vec<Vec<String>>) {
    let mut nodes: Vec<(&String, &Map<String, Value>)> = tree
        .iter()
        .filter(|(step, _)| *step != SELF)
        .filter_map(|(step, node)| Some((step, node.as_object()?)))
        .collect();
    nodes.sort_by(|(a, _), (b, _)| element::order(a, b));
    for (step, _) in nodes.iter().filter(|(_, node)| is_member(node)) {
        paths.push(path.iter().chain([*step]).cloned().collect());
    }
    for (step, node) in nodes.iter().filter(|(_, node)| !node.is_empty()) {
        path.push((*step).clone());
        walk(node, path, paths);
        path.pop();
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn set(tree: Value) -> FieldSet {
        match tree {
            Value::Object(tree) => FieldSet::read(tree).unwrap(),
            _ => FieldSet::default(),
        }
    }

    #[test]
    fn calculates_with_sets() {
        type Row = (Value, Value, Value, Value, Value);
        let table: Vec<Row> = vec![
            // a, b, a + b, a - b, a & b
            (json!({"f:a": {}}), json!({"f:b": {}}), json!({"f:a": {}, "f:b": {}}), json!({"f:a": {}}), json!({})),
            (json!({"f:a": {}}), json!({"f:a": {}}), json!({"f:a": {}}), json!({}), json!({"f:a": {}})),
            (
                json!({"f:a": {}}),
                json!({"f:a": {"f:b": {}}}),
                json!({"f:a": {".": {}, "f:b": {}}}),
                json!({"f:a": {}}),
                json!({}),
            ),
            (
                json!({"f:a": {"f:b": {}}}),
                json!({"f:a": {}}),
                json!({"f:a": {".": {}, "f:b": {}}}),
                json!({"f:a": {"f:b": {}}}),
                json!({}),
            ),
            (
                json!({"f:a": {".": {}, "f:b": {}, "f:c": {}}}),
                json!({"f:a": {".": {}, "f:b": {}}}),
                json!({"f:a": {".": {}, "f:b": {}, "f:c": {}}}),
                json!({"f:a": {"f:c": {}}}),
                json!({"f:a": {".": {}, "f:b": {}}}),
            ),
            (
                json!({"f:a": {".": {}, "f:b": {}}}),
                json!({"f:a": {"f:b": {}}}),
                json!({"f:a": {".": {}, "f:b": {}}}),
                json!({"f:a": {}}),
                json!({"f:a": {"f:b": {}}}),
            ),
        ];
        for (a, b, union, difference, intersection) in table {
            let (a, b) = (set(a), set(b));
            let mut sum = a.clone();
            sum.union(b.clone());
            let mut rest = a.clone();
            rest.subtract(&b);
            assert_eq!(
                (sum, rest, a.intersection(&b)),
                (set(union), set(difference), set(intersection)),
                "{a:?} {b:?}"
            );
        }
    }

    #[test]
    fn filters_and_lists() {
        let all = json!({"f:spec": {"f:a": {}, "f:items": {"k:{\"n\":1}": {".": {}, "f:x": {}, "f:y": {}}}}, "f:status": {"f:b": {}}});
        let mut left = set(all.clone());
        left.remove_below(&["status"]);
        left.remove_below(&["spec", "items"]);
        assert_eq!(left, set(json!({"f:spec": {"f:a": {}}})));
        let mut left = set(all.clone());
        left.retain_below(&[&["spec", "items", "*", "x"]]);
        assert_eq!(left, set(json!({"f:spec": {"f:items": {"k:{\"n\":1}": {".": {}, "f:x": {}}}}})));
        let shown: Vec<String> =
            set(all).paths().iter().map(|path| path.iter().map(|step| element::shown(step)).collect()).collect();
        assert_eq!(shown, [".spec.a", ".spec.items[n=1]", ".spec.items[n=1].x", ".spec.items[n=1].y", ".status.b"]);
    }
}
