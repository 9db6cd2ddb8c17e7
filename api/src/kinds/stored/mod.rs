//! The kinds of Kubernetes that this version stores without acting on them, as tables. The generic path serves them like
//! any other kind. What each row promises is said in its [`Support`]: what would be ignored is told to the client.

mod access;
mod addresses;
pub(super) mod aggregation;
mod autoscaler;
mod devices;
mod flow;
mod network;
mod network_policies;
mod policies;
mod quotas;
mod rules;
mod show;
#[cfg(test)]
mod tests;
mod volumes;
mod webhooks;
mod workloads;

use serde_json::Value;

use super::value::{Read, child, fields, keep, remove};
use super::{Cell, FieldError, FieldErrors, Kind, Strategy, Support, VERBS, checks, keep_all_but_status};
use crate::meta::field::Path;
use crate::meta::names;
use crate::schema::{self, Absent};
use rules::Rule;
use show::Show;

/// All of them, in no order.
pub(super) fn rows() -> impl Iterator<Item = &'static Kind> {
    [
        access::ROWS,
        aggregation::ROWS,
        autoscaler::ROWS,
        devices::ROWS,
        network::ROWS,
        network_policies::ROWS,
        policies::ROWS,
        quotas::ROWS,
        volumes::ROWS,
        webhooks::ROWS,
        workloads::ROWS,
    ]
    .into_iter()
    .flatten()
}

/// What a kind whose objects are only kept still has of its own.
#[derive(Clone, Copy)]
pub(super) struct Stored {
    support: Support,
    /// Type of what is stored.
    schema: &'static str,
    /// What its columns show.
    shows: &'static [Show],
    /// Whether changes of what is wanted are counted.
    generation: bool,
    /// Where that stands.
    wanted: &'static str,
    /// Whether they are counted, beginning with the first change.
    changes: bool,
    default: fn(&mut Value),
    /// What a new object gets, after its status was emptied.
    create: fn(&mut Value),
    /// What a change of the object itself keeps or gets, beside its status.
    change: fn(&mut Value, &Value),
    /// What must be true of single fields.
    rules: &'static [Rule],
    check: fn(&Value, &mut FieldErrors),
    /// Whether only a new object is checked, and of a change what it may not do.
    once: bool,
    /// What a change may not do: the new one and the old one.
    check_change: fn(&Value, &Value, &mut FieldErrors),
    /// What must be true of a changed status: the new object and the old one.
    check_status: fn(&Value, &Value, &mut FieldErrors),
    warn: fn(&Value, Option<&Value>) -> Vec<String>,
    /// Paths of what must be there.
    required: &'static [&'static str],
    /// Fields of the object that never change.
    fixed: &'static [&'static str],
    /// The same, where the reference does not show what they would be.
    locked: &'static [&'static str],
    /// What is wrong with a name, see [`Strategy::check_name`].
    name: fn(&str, bool) -> Vec<String>,
    create_on_update: bool,
    unconditional_update: bool,
    /// See [`Strategy::is_status_alone`].
    status_alone: bool,
    /// See [`Strategy::compiles`].
    compiles: bool,
    /// Of a row that is another version: to and from what is stored.
    convert: Option<[fn(&mut Value); 2]>,
}

impl Stored {
    const fn new(support: Support) -> Stored {
        Stored {
            support,
            schema: "",
            shows: &[],
            generation: false,
            wanted: "spec",
            changes: false,
            default: |_| {},
            create: |_| {},
            change: |_, _| {},
            rules: &[],
            check: |_, _| {},
            once: false,
            check_change: |_, _, _| {},
            check_status: |_, _, _| {},
            warn: |_, _| Vec::new(),
            required: &[],
            fixed: &[],
            locked: &[],
            name: names::name_is_dns_subdomain,
            create_on_update: false,
            unconditional_update: true,
            status_alone: false,
            compiles: false,
            convert: None,
        }
    }

    const fn inert(why: &'static str) -> Stored {
        Stored::new(Support::Inert(why))
    }

    const fn counted(self) -> Stored {
        Stored { generation: true, ..self }
    }

    const fn compiling(self) -> Stored {
        Stored { compiles: true, ..self }
    }

    const fn counted_by(self, wanted: &'static str) -> Stored {
        Stored { wanted, ..self }
    }

    const fn counted_from_change(self) -> Stored {
        Stored { changes: true, ..self }
    }

    const fn default_by(self, default: fn(&mut Value)) -> Stored {
        Stored { default, ..self }
    }

    const fn create_by(self, create: fn(&mut Value)) -> Stored {
        Stored { create, ..self }
    }

    const fn check_by(self, check: fn(&Value, &mut FieldErrors)) -> Stored {
        Stored { check, ..self }
    }

    const fn change_by(self, change: fn(&mut Value, &Value)) -> Stored {
        Stored { change, ..self }
    }

    const fn rules(self, rules: &'static [Rule]) -> Stored {
        Stored { rules, ..self }
    }

    const fn check_change_by(self, check_change: fn(&Value, &Value, &mut FieldErrors)) -> Stored {
        Stored { check_change, ..self }
    }

    const fn checked_once(self) -> Stored {
        Stored { once: true, ..self }
    }

    const fn check_status_by(self, check_status: fn(&Value, &Value, &mut FieldErrors)) -> Stored {
        Stored { check_status, ..self }
    }

    const fn status_alone(self) -> Stored {
        Stored { status_alone: true, ..self }
    }

    const fn warn_by(self, warn: fn(&Value, Option<&Value>) -> Vec<String>) -> Stored {
        Stored { warn, ..self }
    }

    const fn requires(self, required: &'static [&'static str]) -> Stored {
        Stored { required, ..self }
    }

    const fn fixes(self, fixed: &'static [&'static str]) -> Stored {
        Stored { fixed, ..self }
    }

    const fn locks(self, locked: &'static [&'static str]) -> Stored {
        Stored { locked, ..self }
    }

    const fn named_as_path(self) -> Stored {
        self.named_by(names::name_is_path_segment)
    }

    const fn named_by(self, name: fn(&str, bool) -> Vec<String>) -> Stored {
        Stored { name, ..self }
    }

    const fn made_by_update(self) -> Stored {
        Stored { create_on_update: true, ..self }
    }

    const fn needs_version(self) -> Stored {
        Stored { unconditional_update: false, ..self }
    }
}

/// What a row says beside the obvious.
const BLANK: Kind = Kind {
    group: "",
    version: "v1",
    kind: "",
    resource: "",
    singular: "",
    short_names: &[],
    categories: &[],
    namespaced: false,
    schema: "",
    collection: "",
    verbs: VERBS,
    has_status: false,
    has_scale: false,
    subresources: &[],
    selectable: &[],
    columns: &[],
    strategy: &Stored::new(Support::Honoured),
};

const ALL: &[&str] = &["all"];

/// A row of version v1: scope, group, package of its type, kind, resource, singular; its columns with what they show; what
/// is special; further fields of [`Kind`].
macro_rules! row {
    (@scope namespaced) => { true };
    (@scope cluster) => { false };
    (@collection "" $resource:literal) => { $resource };
    (@collection $group:tt $resource:literal) => { concat!($resource, ".", $group) };
    ($scope:ident $group:tt $package:literal $kind:literal $resource:literal $singular:literal,
     [$($column:expr => $show:expr),* $(,)?], $stored:expr $(, $field:ident: $value:expr)* $(,)?) => {
        Kind {
            group: $group,
            kind: $kind,
            resource: $resource,
            singular: $singular,
            namespaced: row!(@scope $scope),
            schema: concat!($package, ".", $kind),
            collection: row!(@collection $group $resource),
            columns: &[$($column),*],
            strategy: &Stored { schema: concat!($package, ".", $kind), shows: &[$($show),*], ..$stored },
            $($field: $value,)*
            ..BLANK
        }
    };
}
use row;

impl Strategy for Stored {
    fn support(&self) -> Support {
        self.support
    }

    fn compiles(&self) -> bool {
        self.compiles
    }

    fn default(&self, object: &mut Value) {
        (self.default)(object);
    }

    /// Status is the controllers'.
    fn prepare_create(&self, object: &mut Value) {
        let schema = schema::named(self.schema);
        match schema.as_ref().and_then(|schema| schema.fields.get("status")) {
            Some(status) if status.absent == Absent::Zero => {
                fields(object).insert("status".to_owned(), status.zero());
            }
            _ => remove(object, "status"),
        }
        (self.create)(object);
    }

    fn prepare_update(&self, object: &mut Value, old: &Value) {
        keep(object, old, "status");
        (self.change)(object, old);
    }

    fn to_storage(&self, object: &mut Value) {
        if let Some([to, _]) = self.convert {
            to(object);
        }
    }

    fn from_storage(&self, object: &mut Value) {
        if let Some([_, from]) = self.convert {
            from(object);
        }
    }

    fn validate(&self, object: &Value, errors: &mut FieldErrors) {
        for path in self.required {
            checks::required(&Path::new(path), show::at(object, path), errors);
        }
        rules::check(self.rules, object, errors);
        (self.check)(object, errors);
    }

    fn validate_update(&self, object: &Value, old: &Value, errors: &mut FieldErrors) {
        if !self.once {
            self.validate(object, errors);
        }
        for field in self.fixed {
            let (new, old) = (show::at(object, field), show::at(old, field));
            match new.is_null() && !old.is_empty() && is_pointer(self.schema, field) {
                true => errors.push(FieldError::invalid(field, &Value::Null, "field is immutable")),
                false => checks::immutable(&Path::new(field), new, old, errors),
            }
        }
        for field in self.locked {
            let (new, old) = (show::at(object, field), show::at(old, field));
            if new != old && !(new.is_empty() && old.is_empty()) {
                errors.push(FieldError::invalid(field, &Value::Null, "field is immutable"));
            }
        }
        (self.check_change)(object, old, errors);
    }

    fn validate_status_update(&self, object: &Value, old: &Value, errors: &mut FieldErrors) {
        (self.check_status)(object, old, errors);
    }

    #[cfg(test)]
    fn named_fields(&self) -> Vec<&'static str> {
        let rules = self.rules.iter().map(|Rule(path, _)| *path);
        rules.chain([self.required, self.fixed, self.locked].concat()).collect()
    }

    fn check_name(&self, name: &str, is_prefix: bool) -> Vec<String> {
        (self.name)(name, is_prefix)
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        (self.warn)(object, old)
    }

    fn has_generation(&self) -> bool {
        self.generation
    }

    fn changes_generation(&self, object: &Value, old: &Value) -> bool {
        (self.generation || self.changes) && object.get(self.wanted) != old.get(self.wanted)
    }

    fn allows_create_on_update(&self) -> bool {
        self.create_on_update
    }

    fn allows_unconditional_update(&self) -> bool {
        self.unconditional_update
    }

    fn prepare_status_update(&self, object: &mut Value, old: &Value) {
        keep_all_but_status(object, old);
        if self.status_alone {
            for field in ["labels", "annotations", "finalizers", "ownerReferences"] {
                keep(child(object, "metadata"), &old["metadata"], field);
            }
        }
    }

    fn is_status_alone(&self) -> bool {
        self.status_alone
    }

    fn field(&self, object: &Value, path: &str) -> Option<String> {
        Some(match show::at(object, path) {
            Value::Null => String::new(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        })
    }

    fn cells(&self, object: &Value) -> Vec<Cell> {
        self.shows.iter().map(|show| show.cell(object)).collect()
    }
}

/// Whether a field of a type can be told apart from an empty one when it is absent.
fn is_pointer(schema: &str, path: &str) -> bool {
    let mut at = schema::named(schema);
    let mut is_pointer = false;
    for name in path.split('.') {
        let Some(field) = at.as_ref().and_then(|object| object.fields.get(name)).cloned() else { return false };
        is_pointer = field.pointer;
        at = field.ty.object().cloned();
    }
    is_pointer
}

/// The status of a condition; empty when there is none of this type.
fn condition<'a>(object: &'a Value, kind: &str) -> &'a str {
    let conditions = object["status"]["conditions"].items();
    conditions.iter().find(|condition| condition["type"] == kind).map_or("", |condition| condition["status"].text())
}
