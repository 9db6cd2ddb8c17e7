//! The built-in types, read from the generated table (`data/schema.txt`, its format is described in `data/generate.py`).
//!
//! The text stays in the program's read-only data. A look at it when the first type is asked for finds where each type's
//! lines are; a type is made of its lines when it is first asked for itself, and then kept: a server that serves a dozen
//! kinds pays for the types of a dozen kinds.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, OnceLock};

use super::{Absent, Field, Fields, List, ListKind, Map, Named, Object, Type};

const TEXT: &str = include_str!("../../data/schema.txt");

static TABLE: LazyLock<Table> = LazyLock::new(Table::scan);

/// Group, version and kind.
pub type Kinds = Vec<(&'static str, &'static str, &'static str)>;

pub(super) struct Table {
    /// Alias of a package (`core.v1`) to its name.
    packages: HashMap<&'static str, &'static str>,
    types: HashMap<String, Entry>,
    /// `apps/v1/Deployment` to the type's name.
    kinds: HashMap<&'static str, String>,
}

pub(super) struct Entry {
    pub(super) package: &'static str,
    /// What follows the name on the type's line.
    pub(super) attributes: &'static str,
    /// The lines of its fields.
    pub(super) lines: &'static str,
    object: OnceLock<Arc<Object>>,
}

impl Table {
    fn scan() -> Table {
        let mut table = Table { packages: HashMap::new(), types: HashMap::new(), kinds: HashMap::new() };
        let mut package = "";
        let mut rest = TEXT;
        while !rest.is_empty() {
            let (line, after) = rest.split_once('\n').unwrap_or((rest, ""));
            rest = after;
            if let Some(words) = line.strip_prefix("package ") {
                let (alias, name) = words.split_once(' ').unwrap_or((words, words));
                table.packages.insert(alias, name);
                package = name;
            } else if let Some(words) = line.strip_prefix("type ") {
                let (name, attributes) = words.split_once(' ').unwrap_or((words, ""));
                let end = fields_end(rest);
                let name = format!("{package}.{name}");
                for kind in attributes.split(' ').find_map(|word| word.strip_prefix("gvk=")).unwrap_or("").split(',') {
                    // DeleteOptions and WatchEvent are kinds of every group and one type.
                    table.kinds.entry(kind).or_insert_with(|| name.clone());
                }
                let entry = Entry { package, attributes, lines: &rest[..end], object: OnceLock::new() };
                table.types.insert(name, entry);
                rest = &rest[end..];
            }
        }
        table.kinds.remove("");
        table
    }
}

/// Length of the leading lines that are fields (they start with a space).
fn fields_end(text: &str) -> usize {
    let mut end = 0;
    while text[end..].starts_with(' ') {
        end += text[end..].find('\n').map_or(text.len() - end, |length| length + 1);
    }
    end
}

/// A built-in type by its OpenAPI name, `io.k8s.api.core.v1.Pod`.
#[must_use]
pub fn named(name: &str) -> Option<Arc<Object>> {
    let entry = TABLE.types.get(name)?;
    Some(entry.object.get_or_init(|| Arc::new(entry.parse(name))).clone())
}

/// The same with fields that apply tells apart, whatever the type says.
pub(super) fn granular(name: &str) -> Option<Arc<Object>> {
    let object = TABLE.types.get(name)?.parse(name);
    Some(Arc::new(Object { atomic: false, ..object }))
}

/// The type of a kind, `("apps", "v1", "Deployment")`.
#[must_use]
pub fn of_kind(group: &str, version: &str, kind: &str) -> Option<Arc<Object>> {
    named(TABLE.kinds.get(format!("{group}/{version}/{kind}").as_str())?)
}

/// Names of all built-in types, in order.
pub fn names() -> impl Iterator<Item = &'static str> {
    let mut names = TABLE.types.keys().map(String::as_str).collect::<Vec<_>>();
    names.sort_unstable();
    names.into_iter()
}

/// The group, version and kind of a built-in type; several for the options and events of every group.
#[must_use]
pub fn kinds_of(name: &str) -> Kinds {
    let attributes = TABLE.types.get(name).map_or("", |entry| entry.attributes);
    let listed = attributes.split(' ').find_map(|word| word.strip_prefix("gvk=")).unwrap_or("");
    let parts = |kind: &'static str| {
        let (group, rest) = kind.split_once('/')?;
        let (version, kind) = rest.split_once('/')?;
        Some((group, version, kind))
    };
    listed.split(',').filter_map(parts).collect()
}

pub(super) fn entry(name: &str) -> Option<&'static Entry> {
    TABLE.types.get(name)
}

/// The full name a reference means: `Container`, or `meta.v1:ObjectMeta`.
pub(super) fn full_name(reference: &str, package: &str) -> String {
    match reference.split_once(':') {
        Some((alias, name)) => format!("{}.{name}", TABLE.packages.get(alias).copied().unwrap_or(alias)),
        None => format!("{package}.{reference}"),
    }
}

impl Entry {
    fn parse(&self, name: &str) -> Object {
        let fields: Fields = self
            .lines
            .lines()
            .filter_map(|line| self.field(line))
            .map(|(name, field)| (name.to_owned(), field))
            .collect();
        let atomic = self.attributes.split(' ').any(|word| word == "atomic");
        Object { atomic, ..Object::new(name, fields) }
    }

    fn field(&self, line: &'static str) -> Option<(&'static str, Field)> {
        let line = Line::read(line)?;
        let mut numbers = line.number.split('.').filter_map(|part| part.parse().ok()).collect::<Vec<u32>>();
        let number = numbers.pop().unwrap_or(0);
        let mut field = Field { number, outer: numbers.into(), ..Field::default() };
        let (mut omitempty, mut omitzero, mut atomic, mut granular) = (false, false, false, false);
        let mut kind = ListKind::Atomic;
        for word in line.attributes() {
            match word {
                "*" => field.pointer = true,
                "-" => omitempty = true,
                "0" => omitzero = true,
                "!" => field.required = true,
                "~" => field.zero_as_key = true,
                "atomic" => atomic = true,
                "granular" => granular = true,
                "set" => kind = ListKind::Set,
                "merge" => field.merges = true,
                "retain" => field.retains_keys = true,
                _ => match word.split_once('=') {
                    Some(("map", keys)) => kind = ListKind::Map(keys.split(',').map(str::to_owned).collect()),
                    Some(("key", key)) => field.merge_key = Some(key.to_owned()),
                    Some(("enum", values)) => {
                        field.allowed = values.split('|').map(|value| value.replace('^', " ")).collect()
                    }
                    Some(("default", json)) => field.default = serde_json::from_str(json).ok(),
                    Some(("go", name)) => field.go = Some(name.into()),
                    Some(("in", name)) => field.within = Some(name.into()),
                    _ => {}
                },
            }
        }
        field.ty = match line.ty.strip_prefix('@') {
            Some(reference) if granular => Type::Named(Named::granular(full_name(reference, self.package))),
            _ => self.ty(line.ty, atomic, &kind),
        };
        let structure =
            matches!(field.ty, Type::Named(_) | Type::Time | Type::MicroTime | Type::Quantity | Type::IntOrString)
                || line.ty.starts_with('a');
        field.absent = match (field.pointer, omitempty, omitzero) {
            (true, true, _) | (true, _, true) => Absent::Kept,
            (false, _, true) => Absent::Dropped,
            // Go's omitempty never omits a structure.
            (false, true, false) if !structure => Absent::Dropped,
            _ => Absent::Zero,
        };
        Some((line.name, field))
    }

    fn ty(&self, code: &str, atomic: bool, kind: &ListKind) -> Type {
        match code.as_bytes().first() {
            Some(b'[') => {
                Type::List(Arc::new(List { items: self.ty(&code[1..], false, &ListKind::Atomic), kind: kind.clone() }))
            }
            Some(b'{') => Type::Map(Arc::new(Map { values: self.ty(&code[1..], false, &ListKind::Atomic), atomic })),
            Some(b'@') => Type::Named(Named::new(full_name(&code[1..], self.package))),
            Some(b's') => Type::String,
            Some(b'B') => Type::Bytes,
            Some(b't') => Type::Time,
            Some(b'u') => Type::MicroTime,
            Some(b'q') => Type::Quantity,
            Some(b'x') => Type::IntOrString,
            Some(b'i') => Type::Int32,
            Some(b'l') => Type::Int64,
            Some(b'd') => Type::Float64,
            Some(b'b') => Type::Bool,
            _ => Type::Any,
        }
    }
}

/// The line of a field.
pub(super) struct Line {
    pub(super) name: &'static str,
    pub(super) number: &'static str,
    pub(super) ty: &'static str,
    attributes: &'static str,
}

impl Line {
    pub(super) fn read(line: &'static str) -> Option<Line> {
        let mut words = line.strip_prefix(' ')?.splitn(4, ' ');
        let (name, number, ty) = (words.next()?, words.next()?, words.next()?);
        Some(Line { name, number, ty, attributes: words.next().unwrap_or("") })
    }

    pub(super) fn attributes(&self) -> impl Iterator<Item = &'static str> {
        self.attributes.split(' ')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_of_the_table_can_be_read_and_refers_to_types_that_are_there() {
        fn check(ty: &Type, of: &str) {
            match ty {
                Type::Named(named) => assert!(named.object().is_some(), "{of} refers to {named:?}"),
                Type::List(list) => check(&list.items, of),
                Type::Map(map) => check(&map.values, of),
                _ => {}
            }
        }
        let mut count = 0;
        for name in names() {
            let object = named(name).expect("it is in the table");
            object.fields.iter().for_each(|(field, of)| check(&of.ty, &format!("{name}.{field}")));
            count += 1;
        }
        assert!(count > 600, "{count}");
    }

    #[test]
    fn a_field_knows_what_every_part_of_the_system_needs_of_it() {
        let container = named("io.k8s.api.core.v1.Container").expect("built in");
        let ports = &container.fields["ports"];
        assert_eq!((ports.number, ports.merges, ports.merge_key.as_deref()), (6, true, Some("containerPort")));
        let Type::List(list) = &ports.ty else { panic!("{ports:?}") };
        assert_eq!(list.kind, ListKind::Map(vec!["containerPort".into(), "protocol".into()]));
        let port = list.items.object().expect("a structure");
        assert_eq!(port.fields["protocol"].default, Some("TCP".into()));
        let volume = named("io.k8s.api.core.v1.Volume").expect("built in");
        assert_eq!((&*volume.fields["secret"].outer, volume.fields["secret"].number), (&[2][..], 6));
        assert_eq!(container.fields["imagePullPolicy"].allowed, ["Always", "IfNotPresent", "Never"]);
        assert!(named("io.k8s.api.core.v1.NodeSelector").expect("built in").atomic);
        let volume = named("io.k8s.api.core.v1.PersistentVolumeSpec").expect("built in");
        assert!(!volume.fields["claimRef"].ty.object().expect("a structure").atomic, "it is granular in this place");
        assert!(named("io.k8s.api.core.v1.ObjectReference").expect("built in").atomic);
        assert_eq!(of_kind("apps", "v1", "Deployment").expect("a kind").name, "io.k8s.api.apps.v1.Deployment");
    }
}
