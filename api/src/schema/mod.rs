//! The types of the API as data: fields, defaults, list types, merge keys, protobuf numbers.
//!
//! Built-in types come from a table that is generated from Kubernetes' own OpenAPI documents and protobuf files
//! (`data/`); the schema of a custom resource becomes the same [`Type`], so that every function on values works for both.

mod defaults;
mod fields;
pub mod openapi;
mod table;

use std::sync::{Arc, OnceLock};

use serde_json::Value;

use crate::custom::Structural;
pub use defaults::apply_defaults;
pub use fields::Fields;
pub use table::{Kinds, kinds_of, named, names, of_kind};

/// A type.
#[derive(Debug, Clone, Default)]
pub enum Type {
    /// A structure with named fields.
    Object(Arc<Object>),
    /// A structure of the built-in table by its name, looked up when it is needed (types refer to themselves).
    Named(Arc<Named>),
    /// String keys, values of one type.
    Map(Arc<Map>),
    /// A list.
    List(Arc<List>),
    /// Text.
    String,
    /// Base64 of bytes.
    Bytes,
    /// RFC 3339 with whole seconds.
    Time,
    /// RFC 3339 with microseconds.
    MicroTime,
    /// A quantity: text or a number.
    Quantity,
    /// An int32 or text.
    IntOrString,
    /// 32 bits, signed.
    Int32,
    /// 64 bits, signed.
    Int64,
    /// A double.
    Float64,
    /// true or false.
    Bool,
    /// Any JSON, kept as it is and one value to apply (RawExtension, JSON, FieldsV1).
    #[default]
    Any,
    /// Any JSON whose fields apply tells apart by what they are: below `x-kubernetes-preserve-unknown-fields`.
    Deduced,
}

impl Type {
    /// The type itself, with a name of the built-in table replaced by what it stands for; an unknown name is anything.
    #[must_use]
    pub fn resolve(&self) -> Type {
        match self {
            Type::Named(named) => named.ty().clone(),
            other => other.clone(),
        }
    }

    /// The structure, when it is one.
    #[must_use]
    pub fn object(&self) -> Option<&Arc<Object>> {
        match self {
            Type::Named(named) => named.object(),
            Type::Object(object) => Some(object),
            _ => None,
        }
    }

    /// The type's name in decoding errors, which are worded as Go's.
    #[must_use]
    pub fn go(&self) -> String {
        match self {
            Type::Object(object) => go_struct(&object.name),
            Type::Named(named) => go_struct(named.name()),
            Type::Map(map) => format!("map[string]{}", map.values.go()),
            Type::List(list) => format!("[]{}", list.items.go()),
            Type::String => "string".into(),
            Type::Bytes => "[]uint8".into(),
            Type::Time => "v1.Time".into(),
            Type::MicroTime => "v1.MicroTime".into(),
            Type::Quantity => "resource.Quantity".into(),
            Type::IntOrString => "intstr.IntOrString".into(),
            Type::Int32 => "int32".into(),
            Type::Int64 => "int64".into(),
            Type::Float64 => "float64".into(),
            Type::Bool => "bool".into(),
            Type::Any | Type::Deduced => "interface {}".into(),
        }
    }
}

/// The name of a structure of the built-in table. It is looked up once, when it is first needed.
pub struct Named {
    name: Arc<str>,
    /// Whether apply looks into it here, although it takes it as one value elsewhere (`structType=granular` of a field).
    granular: bool,
    ty: OnceLock<Type>,
}

impl Named {
    /// Of this OpenAPI name, `io.k8s.api.core.v1.Pod`.
    #[must_use]
    pub fn new(name: impl Into<Arc<str>>) -> Arc<Named> {
        Arc::new(Named { name: name.into(), granular: false, ty: OnceLock::new() })
    }

    /// The same, and apply looks into it whatever its type says.
    #[must_use]
    pub fn granular(name: impl Into<Arc<str>>) -> Arc<Named> {
        Arc::new(Named { name: name.into(), granular: true, ty: OnceLock::new() })
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it stands for; an unknown name is anything.
    #[must_use]
    pub fn ty(&self) -> &Type {
        let find = if self.granular { table::granular } else { named };
        self.ty.get_or_init(|| find(&self.name).map_or(Type::Any, Type::Object))
    }

    /// The structure, when the name is known.
    #[must_use]
    pub fn object(&self) -> Option<&Arc<Object>> {
        match self.ty() {
            Type::Object(object) => Some(object),
            _ => None,
        }
    }
}

/// The name alone: structures refer to themselves.
impl std::fmt::Debug for Named {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)
    }
}

/// `v1.Pod` of `io.k8s.api.core.v1.Pod`.
fn go_struct(name: &str) -> String {
    match name.rmatch_indices('.').nth(1) {
        Some((at, _)) => name[at + 1..].to_owned(),
        None if name.is_empty() => "map[string]interface {}".to_owned(),
        None => name.to_owned(),
    }
}

/// A structure.
#[derive(Debug, Default)]
pub struct Object {
    /// `io.k8s.api.core.v1.Pod`; empty for one without a name.
    pub name: String,
    /// Fields by their JSON name.
    pub fields: Fields,
    /// Apply treats it as one value (`x-kubernetes-map-type: atomic`).
    pub atomic: bool,
    /// Unknown fields are kept (`x-kubernetes-preserve-unknown-fields`).
    pub preserves_unknown: bool,
    /// `retainKeys` patch strategy and `x-kubernetes-unions` are rare; what field carries them is in [`Field`].
    pub description: String,
    /// Of whole custom resources: the schema that says how they are read. The rest is what apply wants to know of it.
    pub custom: Option<Arc<Structural>>,
    /// What decoding needs of the fields in another order; made when it is first asked for.
    pub index: OnceLock<Index>,
    /// Whether anything at or below it has a default; made when it is first asked for.
    pub(crate) has_defaults: OnceLock<bool>,
}

/// The fields of a structure as the codecs want them.
#[derive(Debug, Default)]
pub struct Index {
    /// Names of fields that are written even when they are zero, with their [`Absent::Zero`].
    pub written: Vec<String>,
    /// Path of protobuf numbers to a field's name, in the order of the paths.
    pub numbers: Vec<(Box<[u32]>, String)>,
    /// Names of fields that have a default.
    pub defaulted: Vec<String>,
}

impl Field {
    /// A field of this type and nothing special about it.
    #[must_use]
    pub fn of(ty: Type) -> Field {
        Field { ty, ..Field::default() }
    }

    /// The value that stands for nothing when the field is written all the same.
    #[must_use]
    pub fn zero(&self) -> Value {
        if self.pointer { Value::Null } else { zero(&self.ty) }
    }
}

/// What Go writes for the zero value of a type.
#[must_use]
pub fn zero(ty: &Type) -> Value {
    match ty {
        Type::Object(object) => zero_object(object),
        Type::Named(named) => named.object().map_or(Value::Null, |object| zero_object(object)),
        Type::String => Value::String(String::new()),
        Type::Quantity => Value::String("0".into()),
        Type::IntOrString | Type::Int32 | Type::Int64 | Type::Float64 => Value::from(0),
        Type::Bool => Value::Bool(false),
        Type::Map(_) | Type::List(_) | Type::Bytes | Type::Time | Type::MicroTime | Type::Any | Type::Deduced => {
            Value::Null
        }
    }
}

fn zero_object(object: &Object) -> Value {
    let written = object.index().written.iter();
    Value::Object(written.map(|name| (name.clone(), object.fields[name].zero())).collect())
}

impl Object {
    /// The structure of these fields.
    #[must_use]
    pub fn new(name: impl Into<String>, fields: impl Into<Fields>) -> Object {
        Object { name: name.into(), fields: fields.into(), ..Object::default() }
    }

    /// The fields in the order the codecs want.
    pub fn index(&self) -> &Index {
        self.index.get_or_init(|| {
            let mut index = Index::default();
            for (name, field) in &self.fields {
                if field.absent == Absent::Zero {
                    index.written.push(name.clone());
                }
                if field.default.is_some() {
                    index.defaulted.push(name.clone());
                }
                if field.number != 0 {
                    let path = field.outer.iter().copied().chain([field.number]).collect();
                    index.numbers.push((path, name.clone()));
                }
            }
            index.written.sort_unstable();
            index.numbers.sort_unstable();
            index.defaulted.sort_unstable();
            index
        })
    }
}

/// Makes lists and maps that are empty nothing, where that is written out: the reference stores objects as protobuf, which
/// cannot tell one from the other.
pub fn forget_empty(value: &mut Value, object: &Object) {
    let Value::Object(fields) = value else { return };
    for (name, value) in fields {
        let Some(field) = object.fields.get(name) else { continue };
        let is_empty = match value {
            Value::Array(items) => items.is_empty(),
            Value::Object(fields) => fields.is_empty() && matches!(field.ty, Type::Map(_)),
            _ => false,
        };
        match (is_empty, field.absent) {
            (true, Absent::Zero) if !field.pointer => *value = Value::Null,
            _ => forget_below(value, &field.ty),
        }
    }
}

fn forget_below(value: &mut Value, ty: &Type) {
    match (value, ty) {
        (Value::Array(items), Type::List(list)) => items.iter_mut().for_each(|item| forget_below(item, &list.items)),
        (Value::Object(fields), Type::Map(map)) => {
            fields.values_mut().for_each(|value| forget_below(value, &map.values))
        }
        (value @ Value::Object(_), ty) => {
            if let Some(object) = ty.object() {
                forget_empty(value, object);
            }
        }
        _ => {}
    }
}

/// What becomes of a field that is absent or zero when an object is read: as reading it into Go's structure and writing
/// that again would do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Absent {
    /// Absent stays absent, zero stays zero (pointers; fields of custom resources).
    #[default]
    Kept,
    /// Zero becomes absent (`omitempty`, `omitzero`).
    Dropped,
    /// Absent becomes zero (neither; and structures, that `omitempty` does not omit).
    Zero,
}

/// A field of a structure.
#[derive(Debug, Clone, Default)]
pub struct Field {
    /// Its type.
    pub ty: Type,
    /// Must be present.
    pub required: bool,
    /// Value when absent.
    pub default: Option<Value>,
    /// Allowed values; empty means any.
    pub allowed: Vec<String>,
    /// Strategic merge patch merges it instead of replacing it.
    pub merges: bool,
    /// Strategic merge patch clears keys that the patch does not name (`retainKeys`).
    pub retains_keys: bool,
    /// Key by which strategic merge patch tells the items of a list apart; `None` for lists of primitives.
    pub merge_key: Option<String>,
    /// Number in protobuf; 0 when there is none.
    pub number: u32,
    /// Numbers of the messages around it within the structure's message, when protobuf nests what JSON does not.
    pub outer: Box<[u32]>,
    /// What becomes of it when absent or zero.
    pub absent: Absent,
    /// Who asks for it by its key reads what is absent as zero.
    pub zero_as_key: bool,
    /// It can be told apart from zero when absent (a pointer in Go).
    pub pointer: bool,
    /// Its type's name in decoding errors, when it is another than [`Type::go`].
    pub go: Option<Arc<str>>,
    /// The embedded structures it comes from, for decoding errors: `VolumeSource`.
    pub within: Option<Arc<str>>,
}

/// A map.
#[derive(Debug)]
pub struct Map {
    /// Type of its values.
    pub values: Type,
    /// Apply treats it as one value.
    pub atomic: bool,
}

/// A list.
#[derive(Debug)]
pub struct List {
    /// Type of its items.
    pub items: Type,
    /// How apply tells the items apart.
    pub kind: ListKind,
}

/// How apply tells the items of a list apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListKind {
    /// Not at all: one value.
    Atomic,
    /// By their value.
    Set,
    /// By these fields.
    Map(Vec<String>),
}
