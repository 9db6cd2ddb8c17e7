//! The resources that are served, by their path. The generic verbs see a resource only as one [`Resource`].
//!
//! ```text
//! rows of the table ─────────────────────────────► BuiltIn   (for as long as the server runs)
//! records of CustomResourceDefinitions ─► Served ─► Custom   (one snapshot, swapped as a whole)
//! ```
//! What is served of definitions follows from their records alone: every server that has the same records serves the same,
//! after a restart too. A request compares the records with those that the snapshot was made of, which is one pointer, and so
//! never serves less than what this server has applied.

mod custom;
mod served;

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use coracle_api::codec::{DEPTH_MAX, TOO_DEEP, depth};
use coracle_api::kinds::{self, Kind, Row};
use coracle_api::meta;
use coracle_api::meta::text::quote;
use coracle_api::schema::{self, Object};
use coracle_api::status::Status;
use coracle_keyspace::{GuardFailed, Keyspace, Records};
use serde_json::Value;

use crate::request::call::Call;
use crate::request::negotiate::{Form, Offer};

/// Levels of a conversion's answer above the objects in it.
const CONVERTED_BELOW: usize = 3;
pub(crate) use custom::Custom;
pub(crate) use served::{Served, Standing};

/// Collection of the definitions.
pub(crate) const DEFINITIONS: &str = "customresourcedefinitions.apiextensions.k8s.io";

/// A resource that is stored.
pub(crate) struct Resource {
    /// What is special about it.
    pub row: Row,
    /// The type of its objects, as clients of this row see them.
    pub schema: Arc<Object>,
    /// The type in which they are stored; of a custom resource the same, whose versions are told apart when it is stored.
    pub stored_schema: Arc<Object>,
    /// The row in whose form they are stored.
    pub stored: Row,
    /// As `apps/v1`.
    pub api_version: String,
    /// As `PodList`.
    pub list_kind: String,
    /// Whether it is a second view of objects that are stored in another row's form.
    pub is_view: bool,
    /// How objects begin as they are stored, whatever they say of themselves: `{"kind":"Pod","apiVersion":"v1",`.
    pub stored_head: Arc<[u8]>,
    /// What it is of a definition, if it is.
    pub custom: Option<Custom>,
}

/// As `apps/v1`.
fn api_version(row: &Row) -> String {
    match row.group() {
        "" => row.version().to_owned(),
        group => format!("{group}/{}", row.version()),
    }
}

/// How objects of a row and version begin.
fn head(row: &Row, api_version: &str) -> Arc<[u8]> {
    format!("{{\"kind\":\"{}\",\"apiVersion\":\"{api_version}\",", row.kind()).into_bytes().into()
}

impl Resource {
    /// `None` when the type of its objects is not known, which a test rules out.
    fn of(row: &'static Kind) -> Option<Resource> {
        let stored = kinds::all().iter().copied().find(|first| first.collection == row.collection)?;
        let is_view = !std::ptr::eq(stored, row);
        let (schema, stored_schema) = (schema::named(row.schema)?, schema::named(stored.schema)?);
        let (row, stored) = (Row::BuiltIn(row), Row::BuiltIn(stored));
        let (api_version, list_kind) = (api_version(&row), row.list_kind());
        let stored_head = head(&stored, &self::api_version(&stored));
        Some(Resource {
            row,
            stored,
            schema,
            stored_schema,
            api_version,
            list_kind,
            is_view,
            stored_head,
            custom: None,
        })
    }

    /// Name of the record in its collection. The order of names is the order of lists.
    pub fn record_name(&self, namespace: Option<&str>, name: &str) -> Arc<str> {
        match namespace {
            Some(namespace) if self.row.namespaced() => format!("{namespace}/{name}").into(),
            _ => name.into(),
        }
    }

    /// The form of an answer with objects of it.
    pub fn form(&self, call: &Call, offer: Offer) -> Result<Form, Status> {
        if self.custom.is_some() { call.form_without_protobuf(offer) } else { call.form(offer) }
    }

    /// Fills in what the schema and the kind default. An object that a definition makes too large by that is refused.
    pub fn default(&self, object: &mut Value) -> Result<(), Status> {
        self.name_type(object);
        schema::apply_defaults(object, &self.stored_schema).map_err(Status::request_too_large)?;
        self.row.strategy().default(object);
        self.check_depth(object)
    }

    /// Says of an object in the form in which it is stored that it is one of this resource. What a custom resource says is
    /// checked by its definition.
    pub fn name_type(&self, object: &mut Value) {
        if let (None, Some(fields)) = (&self.custom, object.as_object_mut()) {
            fields.insert("kind".to_owned(), self.stored.kind().into());
            fields.insert("apiVersion".to_owned(), api_version(&self.stored).into());
        }
    }

    /// Whether an object says so.
    pub fn is_named(&self, object: &Value) -> bool {
        object["kind"] == self.stored.kind() && object["apiVersion"] == *api_version(&self.stored)
    }

    /// 400 of an object that nests deeper than anything that is read: what was made of it here made it so.
    pub fn check_depth(&self, object: &Value) -> Result<(), Status> {
        // A webhook that converts it answers with it some levels further down.
        let most = if self.custom.is_some() { DEPTH_MAX - CONVERTED_BELOW } else { DEPTH_MAX };
        if depth(object) <= most {
            return Ok(());
        }
        let why = format!("it would nest deeper than {most} levels: {TOO_DEEP}");
        Err(self.too_deep(meta::name(object), &why))
    }

    /// 400 of an object that nests too deeply.
    pub fn too_deep(&self, name: &str, why: &str) -> Status {
        Status::bad_request(format!("{} {}: {why}", self.row.kind(), quote(name)))
    }

    /// 404 of an object.
    pub fn not_found(&self, name: &str) -> Status {
        Status::not_found(self.row.group(), self.row.resource(), name)
    }

    /// 409 of a stale version.
    pub fn stale(&self, name: &str) -> Status {
        Status::stale(self.row.group(), self.row.resource(), name)
    }

    /// What is told to whoever named a version when somebody was quicker: 409, and 404 when the object is gone meanwhile.
    pub fn outrun(&self, name: &str, failed: &GuardFailed) -> Status {
        if failed.found.is_some() { self.stale(name) } else { self.not_found(name) }
    }

    /// 403 by admission.
    pub fn forbidden(&self, name: &str, message: impl std::fmt::Display) -> Status {
        Status::forbidden(self.row.group(), self.row.resource(), name, message)
    }
}

/// A row, and its resource once somebody asked for it: most rows of an idle server are never asked for.
struct Slot {
    row: &'static Kind,
    resource: OnceLock<Option<Arc<Resource>>>,
}

impl Slot {
    fn resource(&self) -> Option<&Arc<Resource>> {
        self.resource.get_or_init(|| Resource::of(self.row).map(Arc::new)).as_ref()
    }
}

/// All resources.
pub(crate) struct Catalog {
    /// By group, then by resource; of several versions the first is the preferred one.
    slots: HashMap<&'static str, HashMap<&'static str, Vec<Slot>>>,
    /// What definitions make.
    served: ArcSwap<Served>,
    /// Whoever makes the next snapshot; nobody waits here who only looks.
    making: parking_lot::Mutex<()>,
}

impl Catalog {
    pub fn new() -> Catalog {
        let mut slots: HashMap<&'static str, HashMap<&'static str, Vec<Slot>>> = HashMap::new();
        for row in kinds::all() {
            let versions = slots.entry(row.group).or_default().entry(row.resource).or_default();
            versions.push(Slot { row, resource: OnceLock::new() });
        }
        Catalog { slots, served: ArcSwap::default(), making: parking_lot::Mutex::new(()) }
    }

    /// The built-in resource at a path.
    pub fn get(&self, group: &str, version: &str, resource: &str) -> Option<&Arc<Resource>> {
        self.slots.get(group)?.get(resource)?.iter().find(|slot| slot.row.version == version)?.resource()
    }

    /// A built-in resource by group and name, in its preferred version.
    pub fn named(&self, group: &str, resource: &str) -> Option<&Arc<Resource>> {
        self.slots.get(group)?.get(resource)?.first()?.resource()
    }

    /// What definitions make of what is applied here.
    pub async fn served(self: &Arc<Self>, keyspace: &Keyspace) -> Arc<Served> {
        let records = keyspace.snapshot(DEFINITIONS).records;
        let known = self.served.load_full();
        if known.is_of(&records) {
            return known;
        }
        if !known.is_much(&records) {
            return self.make(records);
        }
        // Reading large definitions takes a moment.
        let catalog = self.clone();
        let aside = records.clone();
        match tokio::task::spawn_blocking(move || catalog.make(aside)).await {
            Ok(served) => served,
            Err(_) => self.make(records),
        }
    }

    fn make(&self, records: Records) -> Arc<Served> {
        let _one = self.making.lock();
        let known = self.served.load_full();
        if known.is_of(&records) {
            return known;
        }
        let served = Arc::new(known.next(records));
        self.served.store(served.clone());
        known.retire(&served);
        served
    }
}

/// Whether a definition is of a resource that is built in: that one is served, and its objects are not the definition's.
pub(crate) fn is_built_in(group: &str, resource: &str) -> bool {
    kinds::by_resource(group, resource).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_outrun_by_a_deletion_is_told_that_it_is_gone() {
        let catalog = Catalog::new();
        let pods = catalog.get("", "v1", "pods").expect("pods");
        assert_eq!(pods.outrun("a", &GuardFailed { op: 0, found: None }).code(), 404);
    }

    #[test]
    fn every_row_is_a_resource() {
        let catalog = Catalog::new();
        for row in kinds::all() {
            let resource = catalog.get(row.group, row.version, row.resource).expect("a resource for each row");
            assert!(resource.row.built_in().is_some_and(|of| std::ptr::eq(of, *row)));
        }
        let [new, old] = ["v2", "v1"].map(|version| catalog.get("autoscaling", version, "horizontalpodautoscalers"));
        assert!(!new.expect("the stored version").is_view && old.expect("the older version").is_view);
    }
}
