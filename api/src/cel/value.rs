//! Values of CEL: those of an object, which are borrowed from it and typed by its schema, and those that are computed.

use std::cmp::Ordering;
use std::net::IpAddr;
use std::sync::Arc;

use base64::Engine as _;
use jiff::Timestamp;
use serde_json::{Map, Value};

use super::authority::Authority;
use super::eval::{Run, Stop};
use crate::codec::BASE64;
use crate::custom::{Additional, Structural, Type, format};
use crate::meta::{Quantity, duration, time};
use crate::schema::ListKind;

/// What is known of a value of an object.
#[derive(Clone, Copy)]
pub(crate) enum Shape<'a> {
    /// Nothing: it is what it is.
    Free,
    Of(&'a Structural),
    /// An object with kind and metadata of its own.
    Whole(&'a Structural),
    /// Metadata, of which rules see names only.
    Meta,
    /// A text.
    Text,
}

impl<'a> Shape<'a> {
    pub fn of(schema: &'a Structural) -> Shape<'a> {
        if schema.embedded { Shape::Whole(schema) } else { Shape::Of(schema) }
    }

    /// The shape of a field; `None` for one that rules do not see.
    pub fn field(self, name: &str) -> Option<Shape<'a>> {
        match (self, name) {
            (Shape::Free, _) => Some(Shape::Free),
            (Shape::Meta, "name" | "generateName") | (Shape::Whole(_), "apiVersion" | "kind") => Some(Shape::Text),
            (Shape::Whole(_), "metadata") => Some(Shape::Meta),
            (Shape::Meta | Shape::Text, _) => None,
            (Shape::Of(schema) | Shape::Whole(schema), _) => match (schema.properties.get(name), &schema.additional) {
                (Some(of), _) => Some(Shape::of(of)),
                (None, Additional::Of(of)) => Some(Shape::of(of)),
                (None, Additional::Any) => Some(Shape::Free),
                (None, _) if schema.properties.is_empty() && schema.preserves_unknown => Some(Shape::Free),
                (None, _) => None,
            },
        }
    }

    pub fn item(self) -> Shape<'a> {
        match self.schema().and_then(|schema| schema.items.as_deref()) {
            Some(items) => Shape::of(items),
            None => Shape::Free,
        }
    }

    pub fn schema(self) -> Option<&'a Structural> {
        match self {
            Shape::Of(schema) | Shape::Whole(schema) => Some(schema),
            Shape::Free | Shape::Meta | Shape::Text => None,
        }
    }

    /// Whether it has fields, whose names are written as names of CEL, and not keys.
    pub fn has_fields(self) -> bool {
        match self {
            Shape::Whole(_) | Shape::Meta => true,
            Shape::Of(schema) => !schema.properties.is_empty(),
            Shape::Free | Shape::Text => false,
        }
    }
}

/// What is the object's or the expression's, or was computed: it is not copied when it is passed on.
pub(crate) enum Held<'a, T: ?Sized> {
    Of(&'a T),
    Own(Arc<T>),
}

pub(crate) type Text<'a> = Held<'a, str>;

impl<T: ?Sized> Clone for Held<'_, T> {
    fn clone(&self) -> Self {
        match self {
            Held::Of(of) => Held::Of(of),
            Held::Own(own) => Held::Own(own.clone()),
        }
    }
}

impl<T: ?Sized> std::ops::Deref for Held<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        match self {
            Held::Of(of) => of,
            Held::Own(own) => own,
        }
    }
}

/// How deep a value may nest that an expression makes: what is made of values is walked, compared and dropped level by level.
const DEPTH_MAX: usize = 100;

/// What an expression made of values: the parts of a list, a map or a structure, and how deep they nest.
pub(crate) struct Parts<T> {
    parts: Vec<T>,
    depth: usize,
}

impl<T> std::ops::Deref for Parts<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.parts
    }
}

/// Parts of an address of the web.
pub(crate) struct Url {
    pub text: String,
    pub scheme: String,
    pub host: String,
    pub path: String,
    /// As it is written.
    pub query: String,
}

#[derive(Clone)]
pub(crate) enum Val<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    Text(Text<'a>),
    Bytes(Held<'a, [u8]>),
    List(Arc<Parts<Val<'a>>>),
    Map(Arc<Parts<(Val<'a>, Val<'a>)>>),
    Items(&'a [Value], Shape<'a>),
    Fields(&'a Map<String, Value>, Shape<'a>),
    Type(&'static str),
    /// Nanoseconds.
    Duration(i64),
    Timestamp(Timestamp),
    Optional(Option<Arc<Val<'a>>>),
    Quantity(Arc<Quantity>),
    Url(Arc<Url>),
    Ip(IpAddr),
    Cidr(IpAddr, u8),
    Format(&'static str),
    Semver(Arc<semver::Version>),
    /// A structure that the expression made: its type and its fields.
    Struct(&'a str, Arc<Parts<(&'a str, Val<'a>)>>),
    /// What came of `authorizer`.
    Authority(Arc<Authority>),
}

/// A number, whole if it is.
fn whole<'a>(number: &serde_json::Number) -> Val<'a> {
    match (number.as_i64(), number.as_u64()) {
        (Some(whole), _) => Val::Int(whole),
        (None, Some(whole)) => Val::Uint(whole),
        (None, None) => Val::Double(number.as_f64().unwrap_or_default()),
    }
}

/// Pays for a copy of a part of an object, one unit for ten bytes of text and for each part.
fn pay(value: &Value, run: &mut Run<'_>) -> Result<(), Stop> {
    let mut open = vec![value];
    while let Some(value) = open.pop() {
        run.spend(1)?;
        match value {
            Value::String(text) => run.spend(text.len() / 10)?,
            Value::Array(items) => open.extend(items),
            Value::Object(fields) => {
                run.spend(fields.keys().map(|name| name.len() / 10).sum())?;
                open.extend(fields.values());
            }
            _ => {}
        }
    }
    Ok(())
}

/// What finding a name among others costs: they are compared as far as they are alike.
fn finding(name: &str) -> usize {
    name.len() / 100
}

/// The depth of what is made of values.
fn above<'v, 'a: 'v>(values: impl Iterator<Item = &'v Val<'a>>) -> Result<usize, Stop> {
    let depth = 1 + values.map(Val::depth).max().unwrap_or(0);
    if depth <= DEPTH_MAX { Ok(depth) } else { Err(Stop::new("a value nests too deeply")) }
}

impl<'a> Val<'a> {
    pub fn own(text: impl Into<Arc<str>>) -> Val<'a> {
        Val::Text(Text::Own(text.into()))
    }

    pub fn bytes(bytes: impl Into<Arc<[u8]>>) -> Val<'a> {
        Val::Bytes(Held::Own(bytes.into()))
    }

    pub fn list(items: Vec<Val<'a>>) -> Result<Val<'a>, Stop> {
        let depth = above(items.iter())?;
        Ok(Val::List(Arc::new(Parts { parts: items, depth })))
    }

    pub fn map(fields: Vec<(Val<'a>, Val<'a>)>) -> Result<Val<'a>, Stop> {
        let depth = above(fields.iter().map(|(_, value)| value))?;
        Ok(Val::Map(Arc::new(Parts { parts: fields, depth })))
    }

    pub fn structure(name: &'a str, fields: Vec<(&'a str, Val<'a>)>) -> Result<Val<'a>, Stop> {
        let depth = above(fields.iter().map(|(_, value)| value))?;
        Ok(Val::Struct(name, Arc::new(Parts { parts: fields, depth })))
    }

    pub fn some(value: Val<'a>) -> Result<Val<'a>, Stop> {
        above(std::iter::once(&value))?;
        Ok(Val::Optional(Some(Arc::new(value))))
    }

    /// An optional that holds a part of something.
    pub fn optional(value: Option<Val<'a>>) -> Result<Val<'a>, Stop> {
        value.map_or(Ok(Val::Optional(None)), Val::some)
    }

    /// How many levels an expression has made of it.
    fn depth(&self) -> usize {
        match self {
            Val::List(items) => items.depth,
            Val::Map(fields) => fields.depth,
            Val::Struct(_, fields) => fields.depth,
            Val::Optional(Some(of)) => 1 + of.depth(),
            _ => 0,
        }
    }

    /// Bytes that are looked at, or copied, where it is.
    pub fn bytes_held(&self) -> usize {
        match self {
            Val::Text(text) => text.len(),
            Val::Bytes(bytes) => bytes.len(),
            Val::Url(url) => url.text.len(),
            Val::Semver(version) => version.pre.len() + version.build.len(),
            Val::Authority(authority) => authority.bytes(),
            _ => 0,
        }
    }

    /// A value of an object of which nothing is known.
    pub fn free(value: &'a Value) -> Val<'a> {
        match value {
            Value::Null => Val::Null,
            Value::Bool(value) => Val::Bool(*value),
            Value::Number(number) => whole(number),
            Value::String(text) => Val::Text(Text::Of(text)),
            Value::Array(items) => Val::Items(items, Shape::Free),
            Value::Object(fields) => Val::Fields(fields, Shape::Free),
        }
    }

    /// A value of an object. A text with a format is read each time, and pays for it.
    pub fn of(value: &'a Value, shape: Shape<'a>, run: &mut Run<'a>) -> Result<Val<'a>, Stop> {
        let schema = shape.schema();
        Ok(match value {
            Value::Null => Val::Null,
            Value::Bool(value) => Val::Bool(*value),
            Value::Number(number) if schema.is_some_and(|schema| schema.ty == Type::Number) => {
                Val::Double(number.as_f64().unwrap_or_default())
            }
            Value::Number(number) => whole(number),
            Value::String(text) => {
                let format = schema.map_or("", Structural::format);
                if matches!(format, "date-time" | "date" | "duration" | "byte") {
                    run.spend(text.len() / 10)?;
                }
                match format {
                    "date-time" => Val::Timestamp(timestamp(text)?),
                    "date" => Val::Timestamp(timestamp(&format!("{text}T00:00:00Z"))?),
                    "duration" => Val::Duration(format::duration(text).ok_or_else(|| invalid_duration(text))?),
                    "byte" => {
                        let bytes = BASE64.decode(text).map_err(|_| Stop::new("byte format error"))?;
                        Val::bytes(bytes)
                    }
                    _ => Val::Text(Text::Of(text)),
                }
            }
            Value::Array(items) => Val::Items(items, shape),
            Value::Object(fields) => Val::Fields(fields, shape),
        })
    }

    pub fn type_name(&self) -> &'static str {
        match self {
            Val::Null => "null_type",
            Val::Bool(_) => "bool",
            Val::Int(_) => "int",
            Val::Uint(_) => "uint",
            Val::Double(_) => "double",
            Val::Text(_) => "string",
            Val::Bytes(_) => "bytes",
            Val::List(_) | Val::Items(..) => "list",
            Val::Map(_) | Val::Fields(..) => "map",
            Val::Type(_) => "type",
            Val::Duration(_) => "google.protobuf.Duration",
            Val::Timestamp(_) => "google.protobuf.Timestamp",
            Val::Optional(_) => "optional_type",
            Val::Quantity(_) => "kubernetes.Quantity",
            Val::Url(_) => "kubernetes.URL",
            Val::Ip(_) => "net.IP",
            Val::Cidr(..) => "net.CIDR",
            Val::Format(_) => "kubernetes.NamedFormat",
            Val::Semver(_) => "kubernetes.Semver",
            Val::Struct(..) => "object",
            Val::Authority(authority) => authority.type_name(),
        }
    }

    /// How many items, fields or characters it has. Fields that rules see are counted one by one.
    pub fn size(&self, run: &mut Run<'a>) -> Result<Option<usize>, Stop> {
        Ok(Some(match self {
            Val::Text(text) => text.chars().count(),
            Val::Bytes(bytes) => bytes.len(),
            Val::List(items) => items.len(),
            Val::Items(items, _) => items.len(),
            Val::Map(fields) => fields.len(),
            Val::Fields(fields, shape) if shape.has_fields() => {
                run.spend(fields.len())?;
                fields.keys().filter(|name| shape.field(name).is_some()).count()
            }
            Val::Fields(fields, _) => fields.len(),
            _ => return Ok(None),
        }))
    }

    /// What walking it costs.
    fn steps(&self) -> usize {
        match self {
            Val::List(items) => items.len(),
            Val::Items(items, _) => items.len(),
            Val::Map(fields) => fields.len(),
            Val::Fields(fields, _) => fields.len(),
            Val::Struct(_, fields) => fields.len(),
            Val::Text(text) => text.len(),
            Val::Bytes(bytes) => bytes.len(),
            _ => 1,
        }
    }

    /// The item of a list at a place.
    pub fn item(&self, at: usize, run: &mut Run<'a>) -> Result<Option<Val<'a>>, Stop> {
        match self {
            Val::List(items) => Ok(items.get(at).cloned()),
            Val::Items(items, shape) => items.get(at).map(|item| Val::of(item, shape.item(), run)).transpose(),
            _ => Ok(None),
        }
    }

    /// The items of a list; `None` for what is none.
    pub fn items(&self, run: &mut Run<'a>) -> Result<Option<Vec<Val<'a>>>, Stop> {
        run.spend(self.steps())?;
        Ok(match self {
            Val::List(items) => Some(items.to_vec()),
            Val::Items(items, shape) => {
                Some(items.iter().map(|item| Val::of(item, shape.item(), run)).collect::<Result<_, _>>()?)
            }
            _ => None,
        })
    }

    /// The fields of a map; `None` for what is none.
    pub fn fields(&self, run: &mut Run<'a>) -> Result<Option<Vec<(Val<'a>, Val<'a>)>>, Stop> {
        run.spend(self.steps())?;
        Ok(match self {
            Val::Map(fields) => Some(fields.to_vec()),
            Val::Fields(fields, shape) => {
                let mut made = Vec::with_capacity(fields.len());
                for (name, value) in *fields {
                    if let Some(shape) = shape.field(name) {
                        made.push((Val::Text(Text::Of(name)), Val::of(value, shape, run)?));
                    }
                }
                Some(made)
            }
            _ => None,
        })
    }

    /// The value of a map at a key.
    pub fn at(&self, key: &Val<'a>, run: &mut Run<'a>) -> Result<Option<Val<'a>>, Stop> {
        match self {
            Val::Fields(..) => match key {
                Val::Text(name) => self.field(name, run),
                _ => Ok(None),
            },
            Val::Map(fields) => {
                for (known, value) in fields.iter() {
                    if known.same(key, run)? {
                        return Ok(Some(value.clone()));
                    }
                }
                Ok(None)
            }
            _ => Ok(None),
        }
    }

    /// The field of an object by its own name.
    pub fn field(&self, name: &str, run: &mut Run<'a>) -> Result<Option<Val<'a>>, Stop> {
        run.spend(finding(name))?;
        if let Val::Struct(_, fields) = self {
            run.spend(fields.len() * (1 + finding(name)))?;
            return Ok(fields.iter().rev().find(|(known, _)| *known == name).map(|(_, value)| value.clone()));
        }
        let Val::Fields(fields, shape) = self else { return Ok(None) };
        match (fields.get(name), shape.field(name)) {
            (Some(value), Some(shape)) => Val::of(value, shape, run).map(Some),
            _ => Ok(None),
        }
    }

    /// Whether two values are equal. The order of the items of sets and maps of an object is none.
    pub fn same(&self, other: &Val<'a>, run: &mut Run<'a>) -> Result<bool, Stop> {
        run.spend(1 + self.bytes_held().min(other.bytes_held()) / 10)?;
        run.below(|run| self.is_same(other, run))
    }

    fn is_same(&self, other: &Val<'a>, run: &mut Run<'a>) -> Result<bool, Stop> {
        Ok(match (self, other) {
            (Val::Null, Val::Null) => true,
            (Val::Bool(a), Val::Bool(b)) => a == b,
            (Val::Text(a), Val::Text(b)) => **a == **b,
            (Val::Bytes(a), Val::Bytes(b)) => **a == **b,
            (Val::Type(a), Val::Type(b)) => a == b,
            (Val::Duration(a), Val::Duration(b)) => a == b,
            (Val::Timestamp(a), Val::Timestamp(b)) => a == b,
            (Val::Quantity(a), Val::Quantity(b)) => a == b,
            (Val::Url(a), Val::Url(b)) => a.text == b.text,
            (Val::Ip(a), Val::Ip(b)) => a == b,
            (Val::Cidr(a, m), Val::Cidr(b, n)) => (a, m) == (b, n),
            (Val::Format(a), Val::Format(b)) => a == b,
            (Val::Semver(a), Val::Semver(b)) => a.cmp_precedence(b) == Ordering::Equal,
            (Val::Authority(a), Val::Authority(b)) => a == b,
            (Val::Struct(..), Val::Struct(..)) => return self.same_structures(other, run),
            (Val::Optional(a), Val::Optional(b)) => match (a, b) {
                (Some(a), Some(b)) => a.same(b, run)?,
                (a, b) => a.is_none() && b.is_none(),
            },
            (Val::List(_) | Val::Items(..), Val::List(_) | Val::Items(..)) => return self.same_items(other, run),
            (Val::Map(_) | Val::Fields(..), Val::Map(_) | Val::Fields(..)) => return self.same_fields(other, run),
            _ => numbers(self, other) == Some(Ordering::Equal),
        })
    }

    fn same_structures(&self, other: &Val<'a>, run: &mut Run<'a>) -> Result<bool, Stop> {
        let (Val::Struct(a, fields), Val::Struct(b, others)) = (self, other) else { return Ok(false) };
        run.spend(finding(a))?;
        if a != b || fields.len() != others.len() {
            return Ok(false);
        }
        for (name, value) in fields.iter() {
            match other.field(name, run)? {
                Some(found) if value.same(&found, run)? => {}
                _ => return Ok(false),
            }
        }
        Ok(true)
    }

    fn same_fields(&self, other: &Val<'a>, run: &mut Run<'a>) -> Result<bool, Stop> {
        if self.size(run)? != other.size(run)? {
            return Ok(false);
        }
        for (key, value) in self.fields(run)?.unwrap_or_default() {
            match other.at(&key, run)? {
                Some(found) if value.same(&found, run)? => {}
                _ => return Ok(false),
            }
        }
        Ok(true)
    }

    fn list_kind(&self) -> Option<&'a ListKind> {
        match self {
            Val::Items(_, shape) => shape.schema()?.list.as_ref().filter(|list| !matches!(list, ListKind::Atomic)),
            _ => None,
        }
    }

    fn same_items(&self, other: &Val<'a>, run: &mut Run<'a>) -> Result<bool, Stop> {
        if self.size(run)? != other.size(run)? {
            return Ok(false);
        }
        let (ours, theirs) = (self.items(run)?.unwrap_or_default(), other.items(run)?.unwrap_or_default());
        if self.list_kind().is_none() && other.list_kind().is_none() {
            for (a, b) in ours.iter().zip(&theirs) {
                if !a.same(b, run)? {
                    return Ok(false);
                }
            }
            return Ok(true);
        }
        for item in &ours {
            if !contains(&theirs, item, run)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// A list and what is added to it: what a set or a map of an object has already is not added again but replaced.
    pub fn joined(&self, other: &Val<'a>, run: &mut Run<'a>) -> Result<Option<Val<'a>>, Stop> {
        let (Some(mut all), Some(new)) = (self.items(run)?, other.items(run)?) else { return Ok(None) };
        match self.list_kind() {
            None => all.extend(new),
            Some(ListKind::Map(keys)) => {
                let known = all.len();
                for item in new {
                    let mut place = None;
                    for (at, old) in all.iter().take(known).enumerate() {
                        if same_keys(old, &item, keys, run)? {
                            place = Some(at);
                            break;
                        }
                    }
                    match place.and_then(|at| all.get_mut(at)) {
                        Some(old) => *old = item,
                        None => all.push(item),
                    }
                }
            }
            Some(_) => {
                for item in new {
                    if !contains(&all, &item, run)? {
                        all.push(item);
                    }
                }
            }
        }
        Val::list(all).map(Some)
    }

    /// As JSON, into which a patch puts it; what costs is paid for.
    pub fn to_json(&self, run: &mut Run<'a>) -> Result<Value, Stop> {
        run.spend(1 + self.steps())?;
        let number = |value: f64| serde_json::Number::from_f64(value).map_or(Value::Null, Value::Number);
        Ok(match self {
            Val::Null => Value::Null,
            Val::Bool(value) => (*value).into(),
            Val::Int(value) => (*value).into(),
            Val::Uint(value) => (*value).into(),
            Val::Double(value) => number(*value),
            Val::Text(text) => Value::String(text.to_string()),
            Val::Bytes(bytes) => BASE64.encode(&**bytes).into(),
            // An object's own values are as they are.
            Val::Items(items, shape) if shape.schema().is_none() => {
                items.iter().try_for_each(|item| pay(item, run))?;
                Value::Array(items.to_vec())
            }
            Val::Fields(fields, shape) if shape.schema().is_none() => {
                for (name, value) in *fields {
                    run.spend(name.len() / 10)?;
                    pay(value, run)?;
                }
                Value::Object((*fields).clone())
            }
            Val::List(_) | Val::Items(..) => {
                let items = self.items(run)?.unwrap_or_default();
                Value::Array(items.iter().map(|item| item.to_json(run)).collect::<Result<_, _>>()?)
            }
            Val::Map(_) | Val::Fields(..) => {
                let mut made = Map::new();
                for (key, value) in self.fields(run)?.unwrap_or_default() {
                    let Val::Text(name) = key else {
                        return Err(Stop::new(format_args!("map key is of type {}, not string", key.type_name())));
                    };
                    run.spend(name.len() / 10)?;
                    made.insert(name.to_string(), value.to_json(run)?);
                }
                Value::Object(made)
            }
            Val::Struct(_, fields) => {
                let mut made = Map::new();
                for (name, value) in fields.iter() {
                    run.spend(name.len() / 10)?;
                    made.insert((*name).to_owned(), value.to_json(run)?);
                }
                Value::Object(made)
            }
            Val::Timestamp(_) | Val::Duration(_) | Val::Quantity(_) | Val::Ip(_) | Val::Cidr(..) => {
                super::library::Shown(self).to_string().into()
            }
            Val::Optional(Some(of)) => of.to_json(run)?,
            Val::Optional(None) => Value::Null,
            other => return Err(Stop::new(format_args!("a value of type {} has no JSON form", other.type_name()))),
        })
    }

    /// The order of two values, when they have one.
    pub fn order(&self, other: &Val<'a>, run: &mut Run<'a>) -> Result<Option<Ordering>, Stop> {
        Ok(match (self, other) {
            (Val::Bool(a), Val::Bool(b)) => Some(a.cmp(b)),
            (Val::Text(a), Val::Text(b)) => {
                run.spend(a.len().min(b.len()) / 10)?;
                Some((**a).cmp(&**b))
            }
            (Val::Bytes(a), Val::Bytes(b)) => {
                run.spend(a.len().min(b.len()) / 10)?;
                Some((**a).cmp(&**b))
            }
            (Val::Duration(a), Val::Duration(b)) => Some(a.cmp(b)),
            (Val::Timestamp(a), Val::Timestamp(b)) => Some(a.cmp(b)),
            _ => numbers(self, other),
        })
    }
}

/// Whether a list has an item.
pub(crate) fn contains<'a>(items: &[Val<'a>], item: &Val<'a>, run: &mut Run<'a>) -> Result<bool, Stop> {
    for known in items {
        if known.same(item, run)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn same_keys<'a>(a: &Val<'a>, b: &Val<'a>, keys: &'a [String], run: &mut Run<'a>) -> Result<bool, Stop> {
    for key in keys {
        let key = Val::Text(Text::Of(key));
        match (a.at(&key, run)?, b.at(&key, run)?) {
            (Some(a), Some(b)) if a.same(&b, run)? => {}
            (None, None) => {}
            _ => return Ok(false),
        }
    }
    Ok(true)
}

/// The order of numbers, of whatever types.
fn numbers(a: &Val<'_>, b: &Val<'_>) -> Option<Ordering> {
    let whole = |value: &Val<'_>| match value {
        Val::Int(number) => Some(i128::from(*number)),
        Val::Uint(number) => Some(i128::from(*number)),
        _ => None,
    };
    let real = |value: &Val<'_>| match value {
        Val::Int(number) => Some(*number as f64),
        Val::Uint(number) => Some(*number as f64),
        Val::Double(number) => Some(*number),
        _ => None,
    };
    match (whole(a), whole(b)) {
        (Some(a), Some(b)) => Some(a.cmp(&b)),
        _ => real(a)?.partial_cmp(&real(b)?),
    }
}

/// A time, as RFC 3339 has it.
pub(crate) fn timestamp(text: &str) -> Result<Timestamp, Stop> {
    time::parse(text).ok_or_else(|| Stop::new(format_args!("invalid timestamp {text:?}")))
}

/// A duration as Go writes it, `1h2m3.5s`, in nanoseconds.
pub(crate) fn duration(text: &str) -> Result<i64, Stop> {
    duration::parse(text).map_err(|_| invalid_duration(text))
}

fn invalid_duration(text: &str) -> Stop {
    Stop::new(format_args!("invalid duration {text:?}"))
}
