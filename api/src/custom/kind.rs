//! One version of a definition as a kind: what is special about custom resources, driven by their schema.

use std::sync::Arc;

use serde_json::Value;

use super::definition::{Definition, Scale, Version};
use super::path::JsonPath;
use super::structural::{META, Structural};
use super::{TooMuch, coerce, embedded, lists, rules, typed, validate};
use crate::kinds::{Cell, FieldError, FieldErrors, Strategy};
use crate::meta::{self, names, text};
use crate::schema::Object;

/// A column of a definition.
#[derive(Debug)]
pub struct Column {
    /// As `Ready`.
    pub name: String,
    /// `string`, `integer`, `date`, …
    pub kind: String,
    /// As `int32`; often empty.
    pub format: String,
    /// What it means.
    pub description: String,
    /// 0 always, 1 with `-o wide`.
    pub priority: i64,
    path: JsonPath,
}

/// What the metadata's creation time means, as the reference says it of the column that is there when none is defined.
const CREATION: &str = "CreationTimestamp is a timestamp representing the server time when this object was created. It is not guaranteed to be set in happens-before order across separate operations. Clients may not set this value. It is represented in RFC3339 form and is in UTC.\n\nPopulated by the system. Read-only. Null for lists. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata";

/// The schemas of a definition, by version.
pub struct Schemas(Vec<(String, Arc<Structural>)>);

impl Schemas {
    /// Reads them all. Versions that say the same share one.
    #[must_use]
    pub fn read(definition: &Value) -> Schemas {
        let mut read: Vec<(&Value, String, Arc<Structural>)> = Vec::new();
        for version in definition["spec"]["versions"].as_array().into_iter().flatten() {
            let (schema, name) = (&version["schema"]["openAPIV3Schema"], version["name"].as_str().unwrap_or_default());
            let known = read.iter().find(|(known, _, _)| *known == schema).map(|(_, _, read)| read.clone());
            let structural = known.unwrap_or_else(|| Arc::new(Structural::read_whole(schema)));
            read.push((schema, name.to_owned(), structural));
        }
        Schemas(read.into_iter().map(|(_, name, schema)| (name, schema)).collect())
    }

    fn of(&self, version: &str) -> Option<&Arc<Structural>> {
        self.0.iter().find(|(name, _)| name == version).map(|(_, schema)| schema)
    }
}

/// A custom resource in one version.
pub struct CustomKind {
    /// What it belongs to.
    pub definition: Arc<Definition>,
    /// As `v1`.
    pub version: Version,
    /// As `example.com/v1`.
    pub api_version: String,
    /// The same of the version in which objects are stored.
    pub stored_version: String,
    /// Its columns, without that of the name.
    pub columns: Vec<Column>,
    /// Fields that selectors may ask for, as `spec.colour`.
    pub selectable: Vec<String>,
    selected: Vec<Option<JsonPath>>,
    schema: Arc<Structural>,
    schemas: Arc<Schemas>,
}

impl CustomKind {
    /// Of a definition that was read from `object`; `None` when it has no such version.
    #[must_use]
    pub fn new(
        definition: &Arc<Definition>,
        object: &Value,
        schemas: &Arc<Schemas>,
        version: &str,
    ) -> Option<CustomKind> {
        let known = definition.versions.iter().find(|known| known.name == version)?;
        let written = object["spec"]["versions"].as_array()?.iter().find(|written| written["name"] == version)?;
        let paths =
            written["selectableFields"].as_array().into_iter().flatten().filter_map(|field| field["jsonPath"].as_str());
        let paths: Vec<&str> = paths.collect();
        Some(CustomKind {
            definition: definition.clone(),
            version: known.clone(),
            api_version: format!("{}/{version}", definition.group),
            stored_version: format!("{}/{}", definition.group, definition.storage),
            columns: columns(written),
            selectable: paths.iter().map(|path| path.trim_start_matches('.').to_owned()).collect(),
            selected: paths.iter().map(|path| JsonPath::parse(path).ok()).collect(),
            schema: schemas.of(version)?.clone(),
            schemas: schemas.clone(),
        })
    }

    /// The type of its objects.
    #[must_use]
    pub fn object(&self) -> Object {
        let group: Vec<&str> = self.definition.group.rsplit('.').collect();
        let name = format!("{}.{}.{}", group.join("."), self.version.name, self.definition.names.kind);
        typed::object(&self.schema, name)
    }

    /// The schema of this version.
    #[must_use]
    pub fn schema(&self) -> &Structural {
        &self.schema
    }

    /// Turns a stored object into what clients of this version see: complete by the schema of the version that it has, and
    /// without what this one does not know (`schemaCoercingDecoder` and `schemaCoercingConverter` of the reference). Says whether
    /// that changed more than the version's name.
    ///
    /// # Errors
    /// Its defaults are too much: but for its version and what this one does not know it is as it was stored.
    pub fn show(&self, object: &mut Value) -> Result<bool, TooMuch> {
        let is_alike = self.is_alike(version_of(object));
        let renewed = self.renew(object);
        object["apiVersion"] = self.api_version.as_str().into();
        if is_alike {
            return renewed;
        }
        let before = object.clone();
        coerce::prune(object, &self.schema);
        coerce::drop_nulls(object, &self.schema);
        Ok(renewed? || *object != before)
    }

    /// Turns an object of this version into what is stored, when nobody is asked to convert it: what the stored version does not
    /// know goes, and what it sets comes.
    ///
    /// # Errors
    /// Those defaults are too much.
    pub fn store(&self, object: &mut Value) -> Result<(), TooMuch> {
        object["apiVersion"] = self.stored_version.as_str().into();
        match self.schemas.of(&self.definition.storage) {
            Some(schema) if !Arc::ptr_eq(schema, &self.schema) => coerce::renew(object, schema).map(drop),
            _ => Ok(()),
        }
    }

    /// Whether objects of a version of this definition are what clients of this one see, but for the version's name.
    #[must_use]
    pub fn is_alike(&self, version: &str) -> bool {
        let schema = self.schemas.of(version).or_else(|| self.schemas.of(&self.definition.storage));
        schema.is_none_or(|schema| Arc::ptr_eq(schema, &self.schema))
    }

    /// Brings a stored object into the form that it would be stored in now; says whether that changed it. It was written by a
    /// definition that may have been another since.
    ///
    /// # Errors
    /// Its defaults are too much; it is as it was.
    pub fn renew(&self, object: &mut Value) -> Result<bool, TooMuch> {
        let schema = self.schemas.of(version_of(object)).or_else(|| self.schemas.of(&self.definition.storage));
        schema.map_or(Ok(false), |schema| coerce::renew(object, schema))
    }

    fn check(&self, object: &Value, old: Option<&Value>, errors: &mut FieldErrors) {
        validate::validate(&self.schema, object, old, "", errors);
        if let Some(scale) = &self.version.scale {
            replicas(object, &scale.spec_replicas, errors);
            self.check_scale_status(object, scale, errors);
        }
        embedded::validate(&self.schema, object, &mut String::new(), errors);
        self.check_lists(object, old, errors);
        self.check_rules(object, old, errors);
    }

    /// Rules are asked about what has the types that they expect.
    fn check_rules(&self, object: &Value, old: Option<&Value>, errors: &mut FieldErrors) {
        const IN_THE_WAY: [&str; 5] = [
            "FieldValueNotSupported",
            "FieldValueRequired",
            "FieldValueTooLong",
            "FieldValueTooMany",
            "FieldValueTypeInvalid",
        ];
        if !self.schema.has_rules() {
            return;
        }
        if errors.iter().any(|error| IN_THE_WAY.contains(&error.reason)) {
            let words = "some validation rules were not checked because the object was invalid; correct the existing errors to complete validation";
            errors.push(FieldError::invalid("<nil>", &Value::Null, words));
            return;
        }
        rules::validate(&self.schema, object, old, errors);
    }

    fn check_scale_status(&self, object: &Value, scale: &Scale, errors: &mut FieldErrors) {
        replicas(object, &scale.status_replicas, errors);
        if !scale.selector.is_empty()
            && let Some(found) = at(object, &scale.selector).filter(|found| !found.is_string())
        {
            errors.push(FieldError::invalid(&scale.selector, "", &accessor(&scale.selector, found, "string")));
        }
    }

    /// Lists that had an item twice before may have it still.
    fn check_lists(&self, object: &Value, old: Option<&Value>, errors: &mut FieldErrors) {
        let find = |object: &Value| {
            let mut found = FieldErrors::new();
            lists::validate(&self.schema, object, &mut String::new(), &mut found);
            found
        };
        let found = find(object);
        if !found.is_empty() && old.is_none_or(|old| find(old).is_empty()) {
            errors.append(found);
        }
    }
}

/// As `v1`, of an object.
fn version_of(object: &Value) -> &str {
    object["apiVersion"].as_str().and_then(|version| version.rsplit('/').next()).unwrap_or_default()
}

fn columns(version: &Value) -> Vec<Column> {
    let mut columns = Vec::new();
    let written = version["additionalPrinterColumns"].as_array().map(Vec::as_slice).unwrap_or_default();
    for column in written {
        let text = |field: &str| column[field].as_str().unwrap_or_default().to_owned();
        let path = text("jsonPath");
        // As the reference, which shows what is before a path that it cannot read.
        let Ok(parsed) = JsonPath::parse(&path) else { break };
        let description = match text("description") {
            empty if empty.is_empty() => format!("Custom resource definition column (in JSONPath format): {path}"),
            description => description,
        };
        columns.push(Column {
            name: text("name"),
            kind: text("type"),
            format: text("format"),
            description,
            priority: column["priority"].as_i64().unwrap_or(0),
            path: parsed,
        });
    }
    if written.is_empty()
        && let Ok(path) = JsonPath::parse(".metadata.creationTimestamp")
    {
        let (name, kind, format) = ("Age".to_owned(), "date".to_owned(), String::new());
        columns.push(Column { name, kind, format, description: CREATION.to_owned(), priority: 0, path });
    }
    columns
}

/// The value at a path of fields, `.spec.replicas`.
pub fn at<'a>(object: &'a Value, path: &str) -> Option<&'a Value> {
    path.trim_start_matches('.').split('.').try_fold(object, |value, field| value.get(field))
}

fn accessor(path: &str, found: &Value, wanted: &str) -> String {
    let given = match found {
        Value::Null => "<nil>",
        Value::Bool(_) => "bool",
        Value::Number(number) if number.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    };
    let value = text::sprint(found);
    format!("{path} accessor error: {value} is of the type {given}, expected {wanted}")
}

fn replicas(object: &Value, path: &str, errors: &mut FieldErrors) {
    let Some(found) = at(object, path) else { return };
    match found.as_i64() {
        None => errors.push(FieldError::invalid(path, 0, &accessor(path, found, "int64"))),
        Some(count) if count < 0 => errors.push(FieldError::invalid(path, count, "should be a non-negative integer")),
        Some(count) if count > i64::from(i32::MAX) => {
            let detail = format!("should be less than or equal to {}", i32::MAX);
            errors.push(FieldError::invalid(path, count, &detail));
        }
        Some(_) => {}
    }
}

impl Strategy for CustomKind {
    fn prepare_create(&self, object: &mut Value) {
        if self.version.has_status
            && let Some(fields) = object.as_object_mut()
        {
            fields.remove("status");
        }
    }

    fn prepare_update(&self, object: &mut Value, old: &Value) {
        if self.version.has_status {
            set_status(object, old.get("status").cloned());
        }
    }

    /// Nothing but the status changes, and who owns which field.
    fn prepare_status_update(&self, object: &mut Value, old: &Value) {
        let (status, owners) = (object.get("status").cloned(), object["metadata"].get("managedFields").cloned());
        *object = old.clone();
        set_status(object, status);
        let metadata = meta::metadata_mut(object);
        match owners {
            Some(owners) => drop(metadata.insert("managedFields".to_owned(), owners)),
            None => drop(metadata.remove("managedFields")),
        }
    }

    fn validate(&self, object: &Value, errors: &mut FieldErrors) {
        self.check(object, None, errors);
    }

    fn validate_update(&self, object: &Value, old: &Value, errors: &mut FieldErrors) {
        self.check(object, Some(old), errors);
    }

    fn validate_status_update(&self, object: &Value, old: &Value, errors: &mut FieldErrors) {
        if let (Some(schema), Some(status)) = (self.schema.properties.get("status"), object.get("status")) {
            validate::validate(schema, status, old.get("status"), "status", errors);
        }
        if let Some(scale) = &self.version.scale {
            self.check_scale_status(object, scale, errors);
        }
        self.check_lists(object, Some(old), errors);
        self.check_rules(object, Some(old), errors);
    }

    fn knows_finalizers(&self) -> bool {
        false
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        const KNOWN: [&str; 3] = ["orphan", "foregroundDeletion", "kubernetes"];
        let mut new: Vec<&str> = meta::finalizers(object).collect();
        new.retain(|name| old.is_none_or(|old| meta::finalizers(old).all(|known| known != *name)));
        new.sort_unstable();
        let mut warnings = Vec::new();
        for name in new {
            let mut warn = |words: &str| warnings.push(format!("metadata.finalizers: {}: {words}", text::quote(name)));
            names::qualified_name(name).iter().for_each(|words| warn(words));
            if name.contains('/') || KNOWN.contains(&name) {
                continue;
            }
            let path = if name.contains('.') { " including a path (/)" } else { "" };
            warn(&format!(
                "prefer a domain-qualified finalizer name{path} to avoid accidental conflicts with other finalizer writers"
            ));
        }
        warnings
    }

    fn has_generation(&self) -> bool {
        true
    }

    /// Anything but metadata counts, and the status where that is written apart: there it is the old one.
    fn changes_generation(&self, object: &Value, old: &Value) -> bool {
        let content = |object| super::structural::fields(object).filter(|(name, _)| !META.contains(&name.as_str()));
        !content(object).eq(content(old))
    }

    fn allows_unconditional_update(&self) -> bool {
        false
    }

    fn field(&self, object: &Value, path: &str) -> Option<String> {
        let at = self.selectable.iter().position(|known| known == path)?;
        let found = self.selected.get(at)?.as_ref()?.first(object);
        Some(found.filter(|found| !found.is_null()).map(text::sprint).unwrap_or_default())
    }

    fn cells(&self, object: &Value) -> Vec<Cell> {
        let name = Cell::Value(meta::name(object).into());
        std::iter::once(name).chain(self.columns.iter().map(|column| column.cell(object))).collect()
    }
}

fn set_status(object: &mut Value, status: Option<Value>) {
    let Some(fields) = object.as_object_mut() else { return };
    match status {
        Some(status) => drop(fields.insert("status".to_owned(), status)),
        None => drop(fields.remove("status")),
    }
}

impl Column {
    fn cell(&self, object: &Value) -> Cell {
        let Some(value) = self.path.first(object).filter(|value| !value.is_null()) else {
            return Cell::Value(Value::Null);
        };
        Cell::Value(match self.kind.as_str() {
            "string" => match value {
                Value::Array(_) | Value::Object(_) => text::json(value).into(),
                scalar => text::sprint(scalar).into(),
            },
            "integer" => {
                value.as_i64().or_else(|| value.as_f64().map(|number| number as i64)).map_or(Value::Null, Into::into)
            }
            "number" => value.as_f64().map_or(Value::Null, |number| match value.as_i64() {
                Some(whole) => whole.into(),
                None => number.into(),
            }),
            "boolean" => value.as_bool().map_or(Value::Null, Into::into),
            "date" => match value.as_str() {
                None => Value::Null,
                Some("") => return Cell::Age(None),
                Some(text) => match meta::time::parse(text) {
                    Some(time) => return Cell::Age(Some(time)),
                    None => "<invalid>".into(),
                },
            },
            _ => Value::Null,
        })
    }
}
