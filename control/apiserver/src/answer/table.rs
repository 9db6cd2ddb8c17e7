//! Tables: what `kubectl get` prints (kubernetes-api §12.1). Cells are computed once per record, ages when shown.

use coracle_api::kinds::{Cell, Row};
use coracle_api::status::Status;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::answer::metadata;
use crate::catalog::Resource;
use crate::request::query::Query;
use crate::store::object::write_json;
use crate::store::{self, Seen, object};

/// What of the object stands beside the cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Include {
    Nothing,
    Metadata,
    Object,
}

impl Include {
    pub fn of(query: &Query) -> Result<Include, Status> {
        match query.get("includeObject").unwrap_or_default() {
            "" | "Metadata" => Ok(Include::Metadata),
            "Object" => Ok(Include::Object),
            "None" => Ok(Include::Nothing),
            other => Err(Status::bad_request(format!(
                "Unable to convert to Table as requested: includeObject: Invalid value: {}: must be 'Metadata', 'Object', 'None', or empty",
                coracle_api::meta::text::quote(other)
            ))),
        }
    }
}

/// `"columnDefinitions":[…]` of a resource.
pub(crate) fn columns(resource: &Resource) -> Value {
    match &resource.row {
        Row::BuiltIn(row) => {
            let column = |column: &coracle_api::kinds::Column| {
                json!({
                    "name": column.name, "type": column.kind, "format": column.format, "priority": column.priority,
                    "description": super::columns::description(row.group, row.resource, column.name),
                })
            };
            row.columns.iter().map(column).collect()
        }
        Row::Custom(kind) => {
            let name = json!({
                "name": "Name", "type": "string", "format": "name", "priority": 0,
                "description": super::columns::description("*", "*", "Name"),
            });
            let column = |column: &coracle_api::custom::Column| {
                json!({
                    "name": column.name, "type": column.kind, "format": column.format, "priority": column.priority,
                    "description": column.description,
                })
            };
            std::iter::once(name).chain(kind.columns.iter().map(column)).collect()
        }
    }
}

/// Appends the head of a table, up to and with the bracket that opens its rows. `metadata` is JSON.
pub(crate) fn begin(out: &mut Vec<u8>, columns: Option<&Value>, list_metadata: &[u8], beta: bool) {
    out.extend_from_slice(b"{\"kind\":\"Table\",\"apiVersion\":\"");
    out.extend_from_slice(metadata::api_version(beta).as_bytes());
    out.extend_from_slice(b"\",\"metadata\":");
    out.extend_from_slice(list_metadata);
    out.extend_from_slice(b",\"columnDefinitions\":");
    match columns {
        Some(columns) => write_json(out, columns),
        None => out.extend_from_slice(b"null"),
    }
    out.extend_from_slice(b",\"rows\":[");
}

/// Ends what [`begin`] began.
pub(crate) const END: &[u8] = b"]}";

/// Appends a row.
pub(crate) fn row(out: &mut Vec<u8>, seen: &Seen<'_>, include: Include, beta: bool, now: Timestamp) {
    seen.row().write(out, now);
    match include {
        Include::Nothing => out.extend_from_slice(b"null"),
        Include::Metadata => metadata::write(out, &seen.metadata(), beta),
        Include::Object => out.extend_from_slice(&seen.json()),
    }
    out.push(b'}');
}

/// A table of one record.
pub(crate) fn one(seen: &Seen<'_>, include: Include, beta: bool) -> Vec<u8> {
    single(seen, include, beta, true)
}

/// The same, with the columns or without: in a watch only the first has them.
pub(crate) fn single(seen: &Seen<'_>, include: Include, beta: bool, with_columns: bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(2048);
    let columns = with_columns.then(|| columns(seen.resource));
    begin(&mut out, columns.as_ref(), &version(seen.record.revision), beta);
    row(&mut out, seen, include, beta, Timestamp::now());
    out.extend_from_slice(END);
    out
}

/// A table of one object that is not stored as it is.
pub(crate) fn of_value(
    resource: &Resource,
    value: &Value,
    include: Include,
    beta: bool,
    with_columns: bool,
) -> Vec<u8> {
    let columns = with_columns.then(|| columns(resource));
    let mut stored = value.clone();
    resource.row.strategy().to_storage(&mut stored);
    with_row(columns.as_ref(), &store::Row::of(resource, &stored), value, include, beta)
}

/// A table of a scale.
pub(crate) fn of_scale(scale: &Value, include: Include, beta: bool) -> Vec<u8> {
    let column = |(name, kind): (&str, &str)| {
        let description = super::columns::description("autoscaling", "scales", name);
        json!({"name": name, "type": kind, "format": "", "priority": 0, "description": description})
    };
    let columns = [("Name", "string"), ("Desired", "integer"), ("Available", "integer"), ("Age", "string")];
    let number = |value: &Value| Cell::Value(value.as_i64().unwrap_or(0).into());
    let created = scale["metadata"]["creationTimestamp"].as_str().and_then(|time| time.parse().ok());
    let cells = [
        Cell::Value(scale["metadata"]["name"].clone()),
        number(&scale["spec"]["replicas"]),
        number(&scale["status"]["replicas"]),
        Cell::Age(created),
    ];
    let columns: Value = columns.into_iter().map(column).collect();
    with_row(Some(&columns), &store::Row::new(&cells, None), scale, include, beta)
}

fn with_row(columns: Option<&Value>, row: &store::Row, value: &Value, include: Include, beta: bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(2048);
    let list_metadata = match value["metadata"]["resourceVersion"].as_str() {
        Some(version) => json!({"resourceVersion": version}),
        None => json!({}),
    };
    begin(&mut out, columns, list_metadata.to_string().as_bytes(), beta);
    row.write(&mut out, Timestamp::now());
    match include {
        Include::Nothing => out.extend_from_slice(b"null"),
        Include::Metadata => metadata::write(&mut out, &value["metadata"].to_string().into(), beta),
        Include::Object => out.extend_from_slice(&object::encode_final(value)),
    }
    out.extend_from_slice(b"}]}");
    out
}

/// List metadata with only a version.
pub(crate) fn version(revision: coracle_keyspace::Revision) -> Vec<u8> {
    format!("{{\"resourceVersion\":\"{revision}\"}}").into_bytes()
}
