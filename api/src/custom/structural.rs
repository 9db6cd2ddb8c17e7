//! A structural schema (`openAPIV3Schema` of a CustomResourceDefinition), read from JSON into what is asked of it: which
//! values there may be, what is pruned and what is filled in.
//!
//! The same structure stands for what is below `allOf`, `anyOf`, `oneOf` and `not`: there it only checks. Whether a schema is
//! structural at all is decided when its definition is written (`kinds::definition`); reading one takes what it understands.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::defaults;
use super::format::Format;
use super::pattern::Pattern;
use super::rules::Rule;
use crate::cel::Budget;
use crate::schema::ListKind;

/// The JSON type of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Type {
    /// Nothing is said.
    #[default]
    Any,
    /// Fields.
    Object,
    /// Items.
    Array,
    /// Text.
    String,
    /// A whole number.
    Integer,
    /// A number.
    Number,
    /// true or false.
    Boolean,
    /// A whole number or text.
    IntOrString,
}

impl Type {
    fn read(schema: &Value) -> Type {
        if flag(schema, "x-kubernetes-int-or-string") {
            return Type::IntOrString;
        }
        match text(schema, "type") {
            "object" => Type::Object,
            "array" => Type::Array,
            "string" => Type::String,
            "integer" => Type::Integer,
            "number" => Type::Number,
            "boolean" => Type::Boolean,
            _ => Type::Any,
        }
    }

    /// As it is written.
    pub(super) fn name(self) -> &'static str {
        match self {
            Type::Any | Type::IntOrString => "",
            Type::Object => "object",
            Type::Array => "array",
            Type::String => "string",
            Type::Integer => "integer",
            Type::Number => "number",
            Type::Boolean => "boolean",
        }
    }
}

/// What fields may be there that are not named.
#[derive(Debug, Default)]
pub enum Additional {
    /// Nothing is said: they are pruned.
    #[default]
    Unsaid,
    /// None: each is an error.
    None,
    /// Any; what is in them is pruned.
    Any,
    /// Of this schema.
    Of(Box<Structural>),
}

/// A schema.
#[derive(Debug, Default)]
pub struct Structural {
    /// Of what type a value is.
    pub ty: Type,
    /// The named fields.
    pub properties: Properties,
    /// The others.
    pub additional: Additional,
    /// Items of a list.
    pub items: Option<Box<Structural>>,
    /// Whether null is a value.
    pub nullable: bool,
    /// What stands where nothing is.
    pub default: Option<Value>,
    /// About what that takes each time.
    pub(super) default_size: usize,
    /// Fields that are not named are kept (`x-kubernetes-preserve-unknown-fields`).
    pub preserves_unknown: bool,
    /// It is an object with kind and metadata of its own (`x-kubernetes-embedded-resource`).
    pub embedded: bool,
    /// How items are told apart.
    pub list: Option<ListKind>,
    /// Apply treats it as one value.
    pub atomic: bool,
    /// What else a value must be.
    pub checks: Option<Box<Checks>>,
    /// What expressions say of a value.
    pub(crate) rules: Box<[Rule]>,
    /// What is somewhere at or below it.
    pub(super) reach: Reach,
}

impl Structural {
    /// The format of a text that is of one; otherwise empty.
    pub(crate) fn format(&self) -> &'static str {
        self.checks.as_ref().and_then(|checks| checks.format).map_or("", Format::name)
    }
}

/// What is somewhere at or below a schema: where there is nothing, values are not walked.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Reach {
    pub defaults: bool,
    pub keyed_lists: bool,
    pub embedded: bool,
    pub rules: bool,
}

/// Named fields, sorted.
#[derive(Debug, Default)]
pub struct Properties {
    all: Box<[(Box<str>, Structural)]>,
    /// Which of them have a default.
    defaulted: Box<[usize]>,
}

impl Properties {
    /// The schema of a field.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Structural> {
        let at = self.all.binary_search_by(|(known, _)| (**known).cmp(name)).ok()?;
        self.all.get(at).map(|(_, schema)| schema)
    }

    /// All of them, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Structural)> {
        self.all.iter().map(|(name, schema)| (&**name, schema))
    }

    /// Those that have a default: of a hundred thousand that have none, none is asked of each item of a list.
    pub(super) fn defaulted(&self) -> impl Iterator<Item = (&str, &Structural)> {
        self.defaulted.iter().filter_map(|at| self.all.get(*at)).map(|(name, schema)| (&**name, schema))
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }
}

/// What a value must be beside its type. What is not said is not checked.
#[derive(Debug, Default)]
pub struct Checks {
    pub(super) format: Option<Format>,
    pub(super) maximum: Option<f64>,
    pub(super) above_maximum: bool,
    pub(super) minimum: Option<f64>,
    pub(super) below_minimum: bool,
    pub(super) multiple_of: Option<f64>,
    pub(super) max_length: Option<i64>,
    pub(super) min_length: Option<i64>,
    pub(super) pattern: Option<Pattern>,
    pub(super) max_items: Option<i64>,
    pub(super) min_items: Option<i64>,
    pub(super) max_properties: Option<i64>,
    pub(super) min_properties: Option<i64>,
    pub(super) choices: Vec<Value>,
    pub(super) required: Vec<Box<str>>,
    pub(super) all_of: Vec<Structural>,
    pub(super) any_of: Vec<Structural>,
    pub(super) one_of: Vec<Structural>,
    pub(super) not: Option<Structural>,
}

impl Structural {
    /// Reads a schema. What it does not understand, or what is of a wrong type, was refused when it was written.
    #[must_use]
    pub fn read(schema: &Value) -> Structural {
        let ty = Type::read(schema);
        let fields = schema["properties"].as_object().into_iter().flatten();
        // The map is sorted by the same order that the search has.
        let all: Box<[(Box<str>, Structural)]> =
            fields.map(|(name, schema)| (name.as_str().into(), Structural::read(schema))).collect();
        let has_default = |(at, (_, of)): (usize, &(Box<str>, Structural))| of.default.is_some().then_some(at);
        let defaulted = all.iter().enumerate().filter_map(has_default).collect();
        let properties = Properties { all, defaulted };
        let additional = match &schema["additionalProperties"] {
            Value::Bool(false) => Additional::None,
            Value::Bool(true) => Additional::Any,
            of @ Value::Object(_) => Additional::Of(Box::new(Structural::read(of))),
            _ => Additional::Unsaid,
        };
        let items = schema["items"].is_object().then(|| Box::new(Structural::read(&schema["items"])));
        let list = match text(schema, "x-kubernetes-list-type") {
            "atomic" => Some(ListKind::Atomic),
            "set" => Some(ListKind::Set),
            "map" => Some(ListKind::Map(texts(&schema["x-kubernetes-list-map-keys"]).map(str::to_owned).collect())),
            _ => None,
        };
        let default = schema.get("default").filter(|default| !default.is_null()).cloned();
        let mut read = Structural {
            ty,
            properties,
            additional,
            items,
            nullable: flag(schema, "nullable"),
            default_size: default.as_ref().map_or(0, defaults::size),
            default,
            preserves_unknown: flag(schema, "x-kubernetes-preserve-unknown-fields"),
            embedded: flag(schema, "x-kubernetes-embedded-resource"),
            list,
            atomic: text(schema, "x-kubernetes-map-type") == "atomic",
            checks: Checks::read(schema, ty).map(Box::new),
            rules: Box::default(),
            reach: Reach::default(),
        };
        read.reach = read.reach();
        read
    }

    /// Reads the schema of whole objects, and its rules.
    #[must_use]
    pub fn read_whole(schema: &Value) -> Structural {
        Structural::read_within(schema, &mut Budget::default())
    }

    /// The same for one of several schemas that share what compiling their rules may take.
    pub(crate) fn read_within(schema: &Value, budget: &mut Budget) -> Structural {
        let mut read = Structural::read(schema);
        read.add_rules(schema, &[], true, budget);
        read
    }

    /// Adds the rules of a schema, and of what `allOf` says of the same place.
    fn add_rules(&mut self, schema: &Value, more: &[&Value], root: bool, budget: &mut Budget) {
        let mut here = vec![schema];
        here.extend(more);
        let mut at = 0;
        while let Some(part) = here.get(at) {
            let parts = part["allOf"].as_array();
            here.extend(parts.into_iter().flatten());
            at += 1;
        }
        let (_, nested) = here.split_at(1);
        let written = here.iter().filter_map(|part| part["x-kubernetes-validations"].as_array()).flatten();
        let root = root || self.embedded;
        self.rules = written.map(|rule| Rule::read(rule, self, root, budget)).collect();
        let below = |field: &str| -> Vec<&Value> {
            nested.iter().filter_map(|part| part.get(field)).filter(|part| part.is_object()).collect()
        };
        let mut more: HashMap<&str, Vec<&Value>> = HashMap::new();
        for (name, of) in below("properties").into_iter().flat_map(fields) {
            more.entry(name).or_default().push(of);
        }
        for (name, of) in &mut self.properties.all {
            let more = more.remove(&**name).unwrap_or_default();
            of.add_rules(&schema["properties"][&**name], &more, false, budget);
        }
        if let Additional::Of(of) = &mut self.additional {
            of.add_rules(&schema["additionalProperties"], &below("additionalProperties"), false, budget);
        }
        if let Some(of) = &mut self.items {
            of.add_rules(&schema["items"], &below("items"), false, budget);
        }
        self.reach = self.reach();
    }

    /// Whether there is a rule anywhere.
    pub(crate) fn has_rules(&self) -> bool {
        self.reach.rules
    }

    fn reach(&self) -> Reach {
        let mut reach = Reach {
            defaults: self.default.is_some(),
            keyed_lists: matches!(self.list, Some(ListKind::Set | ListKind::Map(_))),
            embedded: self.embedded,
            rules: !self.rules.is_empty(),
        };
        for below in self.below() {
            reach.rules |= below.reach.rules;
            reach.defaults |= below.reach.defaults;
            reach.keyed_lists |= below.reach.keyed_lists;
            reach.embedded |= below.reach.embedded;
        }
        reach
    }

    /// The schemas of what is in a value.
    fn below(&self) -> impl Iterator<Item = &Structural> {
        let others = match &self.additional {
            Additional::Of(schema) => Some(&**schema),
            _ => None,
        };
        self.properties.iter().map(|(_, schema)| schema).chain(others).chain(self.items.as_deref())
    }

    /// The schema of a field; of one that has named fields only these.
    pub(crate) fn named_or_other(&self, name: &str) -> Option<&Structural> {
        if self.properties.is_empty() { self.field(name) } else { self.properties.get(name) }
    }

    /// The schema of a field, named or not.
    pub(super) fn field(&self, name: &str) -> Option<&Structural> {
        match (self.properties.get(name), &self.additional) {
            (Some(schema), _) => Some(schema),
            (None, Additional::Of(schema)) => Some(schema),
            (None, _) => None,
        }
    }
}

impl Checks {
    /// `None` when there is nothing to check.
    fn read(schema: &Value, ty: Type) -> Option<Checks> {
        let number = |name: &str| schema[name].as_f64();
        let whole = |name: &str| schema[name].as_i64();
        let all = |name: &str| schema[name].as_array().into_iter().flatten().map(Structural::read).collect();
        let pattern = text(schema, "pattern");
        let checks = Checks {
            format: Format::read(text(schema, "format"), ty),
            maximum: number("maximum"),
            above_maximum: flag(schema, "exclusiveMaximum"),
            minimum: number("minimum"),
            below_minimum: flag(schema, "exclusiveMinimum"),
            multiple_of: number("multipleOf"),
            max_length: whole("maxLength"),
            min_length: whole("minLength"),
            pattern: (!pattern.is_empty()).then(|| Pattern::new(pattern)),
            max_items: whole("maxItems"),
            min_items: whole("minItems"),
            max_properties: whole("maxProperties"),
            min_properties: whole("minProperties"),
            choices: schema["enum"].as_array().cloned().unwrap_or_default(),
            required: texts(&schema["required"]).map(Into::into).collect(),
            all_of: all("allOf"),
            any_of: all("anyOf"),
            one_of: all("oneOf"),
            not: schema["not"].is_object().then(|| Structural::read(&schema["not"])),
        };
        checks.says_something().then_some(checks)
    }

    fn says_something(&self) -> bool {
        let numbers = [self.maximum, self.minimum, self.multiple_of];
        let bounds = [
            self.max_length,
            self.min_length,
            self.max_items,
            self.min_items,
            self.max_properties,
            self.min_properties,
        ];
        self.format.is_some()
            || self.pattern.is_some()
            || numbers.iter().any(Option::is_some)
            || bounds.iter().any(Option::is_some)
            || !self.choices.is_empty()
            || !self.required.is_empty()
            || [&self.all_of, &self.any_of, &self.one_of].iter().any(|schemas| !schemas.is_empty())
            || self.not.is_some()
    }
}

/// Adds the fields that every object has to a schema of whole objects: they are not described by it.
pub(super) const META: [&str; 3] = ["apiVersion", "kind", "metadata"];

fn text<'a>(schema: &'a Value, name: &str) -> &'a str {
    schema[name].as_str().unwrap_or_default()
}

fn flag(schema: &Value, name: &str) -> bool {
    schema[name] == true
}

fn texts(list: &Value) -> impl Iterator<Item = &str> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str)
}

/// The fields of an object, for the places where a value may be none.
pub(super) fn fields(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flat_map(Map::iter)
}
