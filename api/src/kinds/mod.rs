//! The kinds: one row and one file for each. What is special about a kind is a pure [`Strategy`] on JSON values; what is
//! the same for all (storage, verbs, patches, watches) is the API server's and is written once.
//!
//! A strategy always sees the form in which an object is stored. That is the form of its own row, except for events:
//! `events.k8s.io` is a second view of the core events, see [`Strategy::to_storage`].

mod admission;
mod certificates;
mod checks;
mod configmap;
mod controllerrevision;
mod cronjob;
mod daemonset;
mod definition;
mod deployment;
mod endpoints;
mod endpointslice;
mod event;
mod fields;
mod ingress;
mod internal;
mod job;
mod lease;
pub mod limits;
mod namespace;
mod network;
mod node;
mod pod;
mod pod_certificates;
pub mod podsecurity;
mod podtemplate;
pub mod quota;
mod replicaset;
mod replicationcontroller;
mod row;
mod secret;
mod service;
mod serviceaccount;
mod statefulset;
mod stored;
mod table;
#[cfg(test)]
mod tests;
mod value;

use std::sync::LazyLock;

use jiff::Timestamp;
use serde_json::Value;

use crate::meta::field::Path;
pub use crate::meta::field::{FieldError, FieldErrors};
use crate::meta::{names, validate_object_meta, validate_object_meta_update};
use crate::schema::{Named, Type};
use value::Read as _;

/// Kinds that something acts on, or that are peculiar enough for a file of their own.
static SPECIAL: [&Kind; 25] = [
    &certificates::KIND,
    &configmap::KIND,
    &definition::KIND,
    &endpoints::KIND,
    &event::CORE,
    &namespace::KIND,
    &node::KIND,
    &pod::KIND,
    &pod_certificates::KIND,
    &podtemplate::KIND,
    &replicationcontroller::KIND,
    &secret::KIND,
    &serviceaccount::KIND,
    &service::KIND,
    &controllerrevision::KIND,
    &daemonset::KIND,
    &deployment::KIND,
    &replicaset::KIND,
    &statefulset::KIND,
    &cronjob::KIND,
    &job::KIND,
    &lease::KIND,
    &endpointslice::KIND,
    &ingress::KIND,
    &event::EVENTS,
];

/// All kinds, sorted by group and resource. Of the rows of one collection the first is that in whose form it is stored;
/// of one resource in several versions the newest is first.
pub fn all() -> &'static [&'static Kind] {
    static ALL: LazyLock<Vec<&Kind>> = LazyLock::new(|| {
        let mut rows: Vec<&Kind> = SPECIAL.iter().copied().chain(stored::rows()).collect();
        rows.sort_by(|a, b| (a.group, a.resource, b.version).cmp(&(b.group, b.resource, a.version)));
        rows
    });
    &ALL
}

/// The row of a resource, as (`apps`, `deployments`).
pub fn by_resource(group: &str, resource: &str) -> Option<&'static Kind> {
    all().iter().copied().find(|row| row.resource == resource && row.group == group)
}

/// The row of a kind, as (`apps`, `Deployment`).
pub fn by_kind(group: &str, kind: &str) -> Option<&'static Kind> {
    all().iter().copied().find(|row| row.kind == kind && row.group == group)
}

pub use pod_certificates::SECONDS_MIN as CERTIFICATE_SECONDS_MIN;
pub use row::Row;
pub use stored::aggregation::is_local as is_local_version;

/// What the client is told about an object that it made or changed.
pub fn warnings(row: &Kind, object: &Value, old: Option<&Value>) -> Vec<String> {
    // A client is shown 4,096 characters of them at most, each once.
    const MOST: usize = 1_000;
    let mut seen = std::collections::HashSet::new();
    let mut warnings = row.strategy.warnings(object, old);
    warnings.extend(fields::warnings(row, object, old));
    warnings.retain(|warning| seen.len() < MOST && seen.insert(warning.clone()));
    warnings.extend(inert_warning(row));
    warnings
}

/// What every write of an object is told, whatever of it is written, when nothing acts on its kind.
pub fn inert_warning(row: &Kind) -> Option<String> {
    let Support::Inert(why) = row.strategy.support() else { return None };
    let slash = if row.group.is_empty() { "" } else { "/" };
    Some(format!(
        "{}{slash}{} {}: this version of Coracle stores the object, but {why}",
        row.group, row.version, row.kind
    ))
}

/// Checks the metadata of a new object, whose name is known.
pub fn validate_metadata(row: &Kind, object: &Value, errors: &mut FieldErrors) {
    validate_metadata_of(row.strategy, row.namespaced, object, errors);
}

/// Checks the metadata of a changed object against the old one.
pub fn validate_metadata_update(row: &Kind, object: &Value, old: &Value, errors: &mut FieldErrors) {
    validate_metadata_update_of(row.strategy, object, old, errors);
}

fn validate_metadata_of(strategy: &dyn Strategy, namespaced: bool, object: &Value, errors: &mut FieldErrors) {
    validate_object_meta(object, namespaced, |name, prefix| strategy.check_name(name, prefix), errors);
    if strategy.knows_finalizers() {
        validate_finalizers(object, errors);
    }
}

fn validate_metadata_update_of(strategy: &dyn Strategy, object: &Value, old: &Value, errors: &mut FieldErrors) {
    validate_object_meta_update(object, old, errors);
    if strategy.knows_finalizers() {
        validate_finalizers(object, errors);
    }
}

/// Finalizers have a domain, but for Kubernetes' own.
fn validate_finalizers(object: &Value, errors: &mut FieldErrors) {
    let list = Path::new("metadata.finalizers");
    for (index, name) in object["metadata"]["finalizers"].items().iter().enumerate() {
        checks::known_finalizer(&list.index(index), name.text(), errors);
    }
}

/// What every kind that is not special can do.
const VERBS: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

const fn column(name: &'static str, kind: &'static str) -> Column {
    Column { name, kind, format: "", priority: 0 }
}

const fn wide(name: &'static str, kind: &'static str) -> Column {
    Column { name, kind, format: "", priority: 1 }
}

const NAME: Column = Column { name: "Name", kind: "string", format: "name", priority: 0 };
const AGE: Column = column("Age", "string");

/// One resource of the API. The generic path is driven by these rows alone.
pub struct Kind {
    /// Group; empty for the core group.
    pub group: &'static str,
    /// Version.
    pub version: &'static str,
    /// Kind, as `Deployment`.
    pub kind: &'static str,
    /// Resource, as `deployments`.
    pub resource: &'static str,
    /// As `deployment`.
    pub singular: &'static str,
    /// As `deploy`.
    pub short_names: &'static [&'static str],
    /// As `all`.
    pub categories: &'static [&'static str],
    /// Whether it lives in a namespace.
    pub namespaced: bool,
    /// Name of its type in [`crate::schema`].
    pub schema: &'static str,
    /// Collection it is kept in, as `deployments.apps`; two rows that are views of the same objects (events) share one.
    pub collection: &'static str,
    /// Verbs, sorted.
    pub verbs: &'static [&'static str],
    /// Whether there is a `status` subresource.
    pub has_status: bool,
    /// Whether there is a `scale` subresource (paths as in apps/v1: spec.replicas, status.replicas, selector).
    pub has_scale: bool,
    /// Further subresources, for discovery: name, group, version, kind, verbs.
    pub subresources: &'static [Subresource],
    /// Field selectors beside metadata.name and metadata.namespace: selector path.
    pub selectable: &'static [&'static str],
    /// Columns of its table, in order.
    pub columns: &'static [Column],
    /// What is special about it.
    pub strategy: &'static dyn Strategy,
}

/// A subresource that is not `status` or `scale`.
pub struct Subresource {
    /// As `eviction`.
    pub name: &'static str,
    /// Group of its kind, when it is another than the resource's.
    pub group: &'static str,
    /// Version of its kind, when group is given.
    pub version: &'static str,
    /// Its kind.
    pub kind: &'static str,
    /// Its verbs.
    pub verbs: &'static [&'static str],
}

/// A column of a table.
pub struct Column {
    /// As `Ready`.
    pub name: &'static str,
    /// `string`, `integer`, `date`, …
    pub kind: &'static str,
    /// `name` for the first, else empty.
    pub format: &'static str,
    /// 0 always, 1 with `-o wide`.
    pub priority: i32,
}

/// A cell of a table row.
#[derive(Debug, Clone, PartialEq)]
pub enum Cell {
    /// Fixed by the object's content.
    Value(Value),
    /// Time since this moment, as `5m12s`; `<unknown>` when there is none. Computed when it is shown.
    Age(Option<Timestamp>),
    /// Text whose parts change with time: `3 (5m ago)`.
    WithAge {
        /// Before the age.
        before: String,
        /// Since when.
        since: Timestamp,
        /// After the age.
        after: String,
    },
}

/// What this version does with the objects of a kind. What is accepted is never ignored in silence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Support {
    /// They have the effect that they have in Kubernetes, or need none.
    Honoured,
    /// They are stored, and every write says so: the object is stored, but …
    Inert(&'static str),
}

/// What is special about a kind. Pure: no clock, no I/O; values are whole objects that were checked against the schema.
/// Everything has a default that suits a kind without peculiarities.
pub trait Strategy: Sync + Send {
    /// What this version does with such objects.
    fn support(&self) -> Support {
        Support::Honoured
    }
    /// Whether a check of such objects compiles expressions: then it takes what these say, however short they are.
    fn compiles(&self) -> bool {
        false
    }
    /// Fills in defaults, also of objects that are read back or updated (`SetObjectDefaults_*`).
    fn default(&self, _object: &mut Value) {}
    /// Before validation of a create: drops what clients may not set (usually status). The generic path has already
    /// set metadata (uid, creationTimestamp, generation 1 when [`Strategy::has_generation`]).
    fn prepare_create(&self, _object: &mut Value) {}
    /// When the generated name `before` of a prepared object was taken, and it has got another.
    fn renamed(&self, _object: &mut Value, _before: &str) {}
    /// Before validation of an update of the main resource: what must stay as it was (usually status).
    fn prepare_update(&self, _object: &mut Value, _old: &Value) {}
    /// Before validation of an update of `status`: everything but status (and what belongs to it) stays as it was.
    fn prepare_status_update(&self, object: &mut Value, old: &Value) {
        keep_all_but_status(object, old);
    }
    /// Before validation of an update of another subresource that is a view of the whole object (`ephemeralcontainers`,
    /// `resize`, `finalize`): what it may not change stays as it was.
    fn prepare_subresource_update(&self, _subresource: &str, object: &mut Value, old: &Value) {
        *object = old.clone();
    }
    /// Turns an object as clients of this row see it into the form that is stored. Everything else of the strategy works
    /// on that form. Only rows that are a second view of another row's objects change anything.
    fn to_storage(&self, _object: &mut Value) {}
    /// Turns a stored object into what clients of this row see.
    #[expect(clippy::wrong_self_convention, reason = "it belongs to to_storage; self is the kind, not the object")]
    fn from_storage(&self, _object: &mut Value) {}
    /// What the other view of its objects calls their fields: that view's version, and its names with those that are
    /// stored. Who wrote through that view owns fields by its names.
    fn view_names(&self) -> Option<(&'static str, &'static [(&'static str, &'static str)])> {
        None
    }
    /// After validation of a create or update, when the name is known.
    fn canonicalize(&self, _object: &mut Value) {}
    /// Checks a new object (metadata is checked by the generic path, names by [`Strategy::check_name`]).
    fn validate(&self, _object: &Value, _errors: &mut FieldErrors) {}
    /// Checks an update; validates the new object as well where the kind does.
    fn validate_update(&self, object: &Value, _old: &Value, errors: &mut FieldErrors) {
        self.validate(object, errors);
    }
    /// Whether an update of `status` changes nothing else: neither labels nor annotations, finalizers or owners.
    fn is_status_alone(&self) -> bool {
        false
    }
    /// Checks an update of `status`.
    fn validate_status_update(&self, _object: &Value, _old: &Value, _errors: &mut FieldErrors) {}
    /// Checks an update of another subresource, see [`Strategy::prepare_subresource_update`].
    fn validate_subresource_update(
        &self,
        _subresource: &str,
        _object: &Value,
        _old: &Value,
        _errors: &mut FieldErrors,
    ) {
    }
    /// What is wrong with `name`; with `is_prefix` it is a `generateName`. Default: DNS subdomain.
    fn check_name(&self, name: &str, is_prefix: bool) -> Vec<String> {
        names::name_is_dns_subdomain(name, is_prefix)
    }
    /// Whether a finalizer without a domain must be one of Kubernetes' own.
    fn knows_finalizers(&self) -> bool {
        true
    }
    /// Paths that its rules name, see `stored::rules`: a test looks for each of them.
    #[cfg(test)]
    fn named_fields(&self) -> Vec<&'static str> {
        Vec::new()
    }
    /// Warnings to the client about what is deprecated or likely a mistake; `old` of an update.
    fn warnings(&self, _object: &Value, _old: Option<&Value>) -> Vec<String> {
        Vec::new()
    }
    /// Whether `metadata.generation` counts changes of the desired state.
    fn has_generation(&self) -> bool {
        false
    }
    /// Whether an update makes a new generation.
    fn changes_generation(&self, object: &Value, old: &Value) -> bool {
        self.has_generation() && object.get("spec") != old.get("spec")
    }
    /// Whether an update may create the object (Lease, Event, Service endpoints …).
    fn allows_create_on_update(&self) -> bool {
        false
    }
    /// Whether an update without a resourceVersion is taken.
    fn allows_unconditional_update(&self) -> bool {
        true
    }
    /// Grace period in seconds of a deletion, from what the client asked; `None` when the kind has none.
    fn grace_period(&self, _object: &Value, _asked: Option<i64>) -> Option<i64> {
        None
    }
    /// Propagation when the client says nothing: false background, true orphan.
    fn orphans_by_default(&self) -> bool {
        false
    }
    /// The value of a selectable field.
    fn field(&self, _object: &Value, _path: &str) -> Option<String> {
        None
    }
    /// The cells of its row, one for each column.
    fn cells(&self, object: &Value) -> Vec<Cell>;
    /// Row conditions, as `Completed` of a pod that ended (a JSON list), `Null` when there are none.
    fn row_conditions(&self, _object: &Value) -> Value {
        Value::Null
    }
}

/// Checks the addresses and families of a Service, before it gets any.
pub fn validate_service_addresses(service: &Value, old: Option<&Value>, errors: &mut FieldErrors) {
    service::addresses(service, old.unwrap_or(&Value::Null), errors);
}

/// The metadata of an object as Go prints it.
pub fn printed_metadata(metadata: &Value) -> String {
    internal::ordered(&Type::Named(Named::new("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta")), metadata)
}

/// Everything but `status` is taken from `old`, except what metadata an update of status may change.
pub fn keep_all_but_status(object: &mut Value, old: &Value) {
    let status = object.get("status").cloned();
    let metadata = object.get("metadata").cloned();
    *object = old.clone();
    match status {
        Some(status) => object["status"] = status,
        None => drop(object.as_object_mut().and_then(|fields| fields.remove("status"))),
    }
    if let Some(metadata) = metadata {
        object["metadata"] = metadata;
    }
}
