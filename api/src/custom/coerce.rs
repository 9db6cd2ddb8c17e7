//! What becomes of an object when it is read: metadata is read as of any kind, fields that the schema does not name are pruned,
//! and so are nulls where none may be and no default stands for them.
//!
//! Rules: `pruning`, `defaulting` and `objectmeta` of apiextensions-apiserver.

use serde_json::{Map, Value};

use super::TooMuch;
use super::structural::{Additional, META, Structural};
use crate::codec::{DecodeError, Decoded, json};
use crate::meta::field::FieldError;
use crate::schema;

const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

/// Problems that are told at most.
const PROBLEMS_MAX: usize = 100;

/// Reads a body as an object of this schema.
///
/// # Errors
/// Bytes that are no JSON object, and metadata of a wrong type.
pub fn decode(bytes: &[u8], schema: &Structural) -> Result<Decoded, DecodeError> {
    let Decoded { value, problems } = json::decode_any(bytes)?;
    coerced(value, problems, schema)
}

/// The same of a value.
///
/// # Errors
/// Metadata of a wrong type, and what is no object.
pub fn decode_value(value: &Value, schema: &Structural) -> Result<Decoded, DecodeError> {
    if !value.is_object() {
        return decode(&serde_json::to_vec(value).unwrap_or_default(), schema);
    }
    coerced(value.clone(), Vec::new(), schema)
}

fn coerced(mut value: Value, mut problems: Vec<String>, schema: &Structural) -> Result<Decoded, DecodeError> {
    json::whole_numbers(&mut value);
    let mut told = problems.len();
    if let Some(metadata) = value.get_mut("metadata") {
        let found = object_meta(metadata, "metadata").map_err(DecodeError::Mistyped)?;
        problems.extend(found);
    }
    let mut pruned = prune(&mut value, schema);
    pruned.sort_unstable();
    problems.extend(pruned.iter().map(|path| format!("unknown field {path:?}")));
    drop_nulls(&mut value, schema);
    if schema.reach.embedded {
        let mut path = String::new();
        embedded(&mut value, schema, &mut path, &mut problems).map_err(DecodeError::Mistyped)?;
    }
    told = told.max(PROBLEMS_MAX);
    problems.truncate(told);
    Ok(Decoded { value, problems })
}

/// Brings a stored object into the form that it would be stored in now. Says whether that changed it.
///
/// # Errors
/// Its defaults are too much; it is as it was.
pub(super) fn renew(value: &mut Value, schema: &Structural) -> Result<bool, TooMuch> {
    let before = value.clone();
    prune(value, schema);
    drop_nulls(value, schema);
    if let Err(error) = super::defaults::apply(value, schema) {
        *value = before;
        return Err(error);
    }
    Ok(*value != before)
}

/// Reads metadata as of any kind; tells the fields that are unknown.
fn object_meta(metadata: &mut Value, path: &str) -> Result<Vec<String>, String> {
    let Some(of) = schema::named(OBJECT_META) else { return Ok(Vec::new()) };
    if metadata.is_null() {
        *metadata = Value::Object(Map::new());
    }
    if !metadata.is_object() {
        let what = match metadata {
            Value::Array(_) => "array",
            Value::String(_) => "string",
            Value::Bool(_) => "bool",
            _ => "number",
        };
        return Err(format!("json: cannot unmarshal {what} into Go value of type v1.ObjectMeta"));
    }
    let Decoded { value, problems } = json::decode_value(metadata, &of).map_err(|error| error.to_string())?;
    *metadata = value;
    Ok(problems.into_iter().map(|problem| problem.replacen("field \"", &format!("field \"{path}."), 1)).collect())
}

/// Removes what the schema of a whole object does not name; the paths of what was removed, a hundred at most.
pub(super) fn prune(value: &mut Value, schema: &Structural) -> Vec<String> {
    let mut pruning = Pruning { path: String::new(), pruned: Vec::new() };
    let Value::Object(fields) = value else { return Vec::new() };
    pruning.fields(fields, Some(schema), true, schema.preserves_unknown);
    pruning.pruned
}

/// The same of a value that is no whole object. Says whether anything was removed.
pub(super) fn prunes(value: &mut Value, schema: &Structural) -> bool {
    let mut pruning = Pruning { path: String::new(), pruned: Vec::new() };
    pruning.value(value, Some(schema));
    !pruning.pruned.is_empty()
}

struct Pruning {
    path: String,
    pruned: Vec<String>,
}

impl Pruning {
    fn within(&mut self, step: impl FnOnce(&mut String), work: impl FnOnce(&mut Self)) {
        let length = self.path.len();
        step(&mut self.path);
        work(self);
        self.path.truncate(length);
    }

    fn value(&mut self, value: &mut Value, schema: Option<&Structural>) {
        let keeps = schema.is_some_and(|schema| schema.preserves_unknown);
        self.kept(value, schema, keeps);
    }

    /// `keeps` says that what has no name is let through.
    fn kept(&mut self, value: &mut Value, schema: Option<&Structural>, keeps: bool) {
        match value {
            Value::Object(fields) => self.fields(fields, schema, schema.is_some_and(|schema| schema.embedded), keeps),
            Value::Array(items) => {
                let of = schema.and_then(|schema| schema.items.as_deref());
                if keeps && of.is_none() {
                    return;
                }
                for (at, item) in items.iter_mut().enumerate() {
                    let keeps = keeps || of.is_some_and(|of| of.preserves_unknown);
                    self.within(|path| path.push_str(&format!("[{at}]")), |this| this.kept(item, of, keeps));
                }
            }
            _ => {}
        }
    }

    /// `is_object` says that apiVersion, kind and metadata are not the schema's.
    fn fields(&mut self, fields: &mut Map<String, Value>, schema: Option<&Structural>, is_object: bool, keeps: bool) {
        let mut gone = Vec::new();
        for (name, value) in fields.iter_mut() {
            if is_object && META.contains(&name.as_str()) {
                continue;
            }
            let of = match schema.map(|schema| (schema.properties.get(name), &schema.additional)) {
                Some((Some(of), _)) => Some(Some(of)),
                Some((None, Additional::Of(of))) => Some(Some(&**of)),
                Some((None, Additional::Any | Additional::None)) => Some(None),
                Some((None, Additional::Unsaid)) | None => None,
            };
            match of {
                Some(of) => self.within(|path| step(path, name), |this| this.value(value, of)),
                None if keeps => {}
                None => gone.push(name.clone()),
            }
        }
        for name in gone {
            fields.remove(&name);
            if self.pruned.len() < PROBLEMS_MAX {
                let mut path = self.path.clone();
                step(&mut path, &name);
                self.pruned.push(path);
            }
        }
    }
}

fn step(path: &mut String, name: &str) {
    if !path.is_empty() {
        path.push('.');
    }
    path.push_str(name);
}

/// Removes nulls of fields that may not be null and have no default.
pub(super) fn drop_nulls(value: &mut Value, schema: &Structural) {
    match value {
        Value::Object(fields) => fields.retain(|name, value| {
            let Some(of) = schema.field(name) else { return true };
            if value.is_null() {
                return of.nullable || of.default.is_some();
            }
            drop_nulls(value, of);
            true
        }),
        Value::Array(items) => {
            if let Some(of) = &schema.items {
                items.iter_mut().for_each(|item| drop_nulls(item, of));
            }
        }
        _ => {}
    }
}

/// Reads the metadata of objects within the object.
fn embedded(
    value: &mut Value,
    schema: &Structural,
    path: &mut String,
    problems: &mut Vec<String>,
) -> Result<(), String> {
    if !schema.reach.embedded {
        return Ok(());
    }
    let length = path.len();
    match value {
        Value::Object(fields) => {
            for (name, value) in fields.iter_mut() {
                step(path, name);
                if schema.embedded {
                    let invalid = |words: &str| Err(FieldError::invalid(&*path, &*value, words).to_string());
                    match name.as_str() {
                        "apiVersion" | "kind" if !value.is_string() => return invalid("must be a string"),
                        "metadata" => match object_meta(value, path) {
                            Ok(found) => problems.extend(found),
                            Err(words) => return Err(FieldError::invalid(&*path, &*value, &words).to_string()),
                        },
                        _ => {}
                    }
                }
                if let Some(of) = schema.field(name) {
                    embedded(value, of, path, problems)?;
                }
                path.truncate(length);
            }
        }
        Value::Array(items) => {
            for (at, item) in items.iter_mut().enumerate() {
                if let Some(of) = &schema.items {
                    path.push_str(&format!("[{at}]"));
                    embedded(item, of, path, problems)?;
                    path.truncate(length);
                }
            }
        }
        _ => {}
    }
    Ok(())
}
