//! The options of writes, from the query or the body.

use coracle_api::kinds::{FieldError, FieldErrors};
use coracle_api::meta::field::Path;
use coracle_api::meta::validate_field_manager;
use coracle_api::status::Status;
use coracle_keyspace::Op;
use serde_json::Value;

use super::call::Call;

/// What becomes of fields that are not known or given twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Validation {
    Ignore,
    Warn,
    Strict,
}

/// Options of create, update and patch.
#[derive(Debug, Clone)]
pub(crate) struct WriteOptions {
    pub dry_run: bool,
    /// The manager to write down.
    pub manager: String,
    pub validation: Validation,
    pub force: bool,
    /// The server's own hand, which may write what clients may not (endpoints at loopback).
    pub own: bool,
    pub admitted: Admitted,
}

/// Who is asked about a write.
#[derive(Debug, Clone, Default)]
pub(crate) enum Admitted {
    /// Whoever is configured.
    #[default]
    Asks,
    /// Nobody: it is a part of what was admitted as something else (an eviction's deletion). What configured admission then is
    /// in this, where that has to be said in the transaction.
    As(Option<Op>),
}

impl Admitted {
    pub fn guard(&self) -> Option<&Op> {
        match self {
            Admitted::Asks => None,
            Admitted::As(guard) => guard.as_ref(),
        }
    }
}

/// `kind` is the name of the options in errors, as `CreateOptions`; `patch_type` is given for patches.
pub(crate) fn write_options(call: &Call, kind: &str, patch_type: Option<&str>) -> Result<WriteOptions, Status> {
    let mut errors = FieldErrors::new();
    let apply = patch_type.is_some_and(|patch| patch.starts_with("application/apply-patch"));
    let force = call.query.flag("force");
    if patch_type.is_some() && !apply && force.is_some() {
        errors.push(FieldError::forbidden("force", "may not be specified for non-apply patch"));
    }
    let asked = call.query.get("fieldManager").unwrap_or_default();
    if apply && asked.is_empty() {
        errors.push(FieldError::required("fieldManager", "is required for apply patch"));
    }
    validate_field_manager(asked, &Path::new("fieldManager"), &mut errors);
    let dry_run = dry_run(call.query.all("dryRun"), &mut errors);
    let validation = match call.query.get("fieldValidation").unwrap_or_default() {
        "" | "Warn" => Validation::Warn,
        "Ignore" => Validation::Ignore,
        "Strict" => Validation::Strict,
        other => {
            errors.push(FieldError::not_supported("fieldValidation", other, &["", "Ignore", "Strict", "Warn"]));
            Validation::Warn
        }
    };
    if !errors.is_empty() {
        return Err(Status::invalid("meta.k8s.io", kind, "", errors));
    }
    let manager = if asked.is_empty() { call.default_manager() } else { asked.to_owned() };
    Ok(WriteOptions {
        dry_run,
        manager,
        validation,
        force: force.unwrap_or(false),
        own: false,
        admitted: Admitted::Asks,
    })
}

fn dry_run<'a>(values: impl Iterator<Item = &'a str>, errors: &mut FieldErrors) -> bool {
    let values: Vec<&str> = values.collect();
    if !values.is_empty() && values.iter().any(|value| *value != "All") {
        let shown: Value = values.iter().map(|value| Value::from(*value)).collect();
        errors.push(FieldError::not_supported("dryRun", &shown, &["All"]));
    }
    !values.is_empty()
}

/// Which way dependents go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Propagation {
    Orphan,
    Background,
    Foreground,
}

/// Options of delete and deletecollection.
#[derive(Debug, Clone, Default)]
pub(crate) struct DeleteOptions {
    pub grace: Option<i64>,
    pub uid: Option<String>,
    pub resource_version: Option<String>,
    pub propagation: Option<Propagation>,
    /// The older form of the same.
    pub orphan_dependents: Option<bool>,
    pub dry_run: bool,
    /// Whether it is a part of what was admitted as something else.
    pub admitted: Admitted,
}

impl DeleteOptions {
    /// From the query, when there is no body.
    pub fn from_query(call: &Call) -> Result<DeleteOptions, Status> {
        let mut errors = FieldErrors::new();
        let query = &call.query;
        let options = DeleteOptions {
            grace: query.integer("gracePeriodSeconds")?,
            propagation: propagation(query.text("propagationPolicy"), &mut errors),
            orphan_dependents: query.text("orphanDependents").and(query.flag("orphanDependents")),
            dry_run: dry_run(query.all("dryRun"), &mut errors),
            ..DeleteOptions::default()
        };
        options.checked(errors)
    }

    /// From the body, which was read as a DeleteOptions object.
    pub fn from_body(body: &Value) -> Result<DeleteOptions, Status> {
        let mut errors = FieldErrors::new();
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let dry = body["dryRun"].as_array().map(Vec::as_slice).unwrap_or_default();
        let options = DeleteOptions {
            grace: body["gracePeriodSeconds"].as_i64(),
            uid: text(&body["preconditions"]["uid"]),
            resource_version: text(&body["preconditions"]["resourceVersion"]),
            propagation: propagation(body["propagationPolicy"].as_str(), &mut errors),
            orphan_dependents: body["orphanDependents"].as_bool(),
            dry_run: dry_run(dry.iter().filter_map(Value::as_str), &mut errors),
            admitted: Admitted::Asks,
        };
        options.checked(errors)
    }

    fn checked(self, mut errors: FieldErrors) -> Result<DeleteOptions, Status> {
        if self.propagation.is_some() && self.orphan_dependents.is_some() {
            errors.push_first(FieldError::invalid(
                "propagationPolicy",
                self.propagation.map_or("", Propagation::name),
                "orphanDependents and deletionPropagation cannot be both set",
            ));
        }
        if errors.is_empty() { Ok(self) } else { Err(Status::invalid("meta.k8s.io", "DeleteOptions", "", errors)) }
    }
}

impl Propagation {
    pub fn name(self) -> &'static str {
        match self {
            Propagation::Orphan => "Orphan",
            Propagation::Background => "Background",
            Propagation::Foreground => "Foreground",
        }
    }
}

fn propagation(text: Option<&str>, errors: &mut FieldErrors) -> Option<Propagation> {
    Some(match text? {
        "Orphan" => Propagation::Orphan,
        "Background" => Propagation::Background,
        "Foreground" => Propagation::Foreground,
        other => {
            errors.push(FieldError::not_supported(
                "propagationPolicy",
                other,
                &["Foreground", "Background", "Orphan", "nil"],
            ));
            return None;
        }
    })
}
