//! The resources that are served, by their path. The generic verbs see a resource only as one [`Resource`].

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use coracle_api::kinds::{self, Kind};
use coracle_api::schema::{self, Object};
use coracle_api::status::Status;
use coracle_keyspace::GuardFailed;

/// A resource that is stored.
pub(crate) struct Resource {
    /// What is special about it.
    pub row: &'static Kind,
    /// The type of its objects, as clients of this row see them.
    pub schema: Arc<Object>,
    /// The type in which they are stored.
    pub stored_schema: Arc<Object>,
    /// The row in whose form they are stored.
    pub stored: &'static Kind,
    /// As `apps/v1`.
    pub api_version: String,
    /// As `PodList`.
    pub list_kind: String,
    /// Whether it is a second view of objects that are stored in another row's form.
    pub is_view: bool,
}

impl Resource {
    /// `None` when the type of its objects is not known, which a test rules out.
    fn of(row: &'static Kind) -> Option<Resource> {
        let stored = kinds::all().iter().copied().find(|first| first.collection == row.collection)?;
        let api_version = match row.group {
            "" => row.version.to_owned(),
            group => format!("{group}/{}", row.version),
        };
        Some(Resource {
            row,
            stored,
            schema: schema::named(row.schema)?,
            stored_schema: schema::named(stored.schema)?,
            api_version,
            list_kind: format!("{}List", row.kind),
            is_view: !std::ptr::eq(stored, row),
        })
    }

    /// Name of the record in its collection. The order of names is the order of lists.
    pub fn record_name(&self, namespace: Option<&str>, name: &str) -> Arc<str> {
        match namespace {
            Some(namespace) if self.row.namespaced => format!("{namespace}/{name}").into(),
            _ => name.into(),
        }
    }

    /// 404 of an object.
    pub fn not_found(&self, name: &str) -> Status {
        Status::not_found(self.row.group, self.row.resource, name)
    }

    /// 409 of a stale version.
    pub fn stale(&self, name: &str) -> Status {
        Status::stale(self.row.group, self.row.resource, name)
    }

    /// What is told to whoever named a version when somebody was quicker: 409, and 404 when the object is gone meanwhile.
    pub fn outrun(&self, name: &str, failed: &GuardFailed) -> Status {
        if failed.found.is_some() { self.stale(name) } else { self.not_found(name) }
    }

    /// 403 by admission.
    pub fn forbidden(&self, name: &str, message: impl std::fmt::Display) -> Status {
        Status::forbidden(self.row.group, self.row.resource, name, message)
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
}

impl Catalog {
    pub fn new() -> Catalog {
        let mut slots: HashMap<&'static str, HashMap<&'static str, Vec<Slot>>> = HashMap::new();
        for row in kinds::all() {
            let versions = slots.entry(row.group).or_default().entry(row.resource).or_default();
            versions.push(Slot { row, resource: OnceLock::new() });
        }
        Catalog { slots }
    }

    /// The resource at a path.
    pub fn get(&self, group: &str, version: &str, resource: &str) -> Option<&Arc<Resource>> {
        self.slots.get(group)?.get(resource)?.iter().find(|slot| slot.row.version == version)?.resource()
    }

    /// A built-in resource by group and name, in its preferred version.
    pub fn named(&self, group: &str, resource: &str) -> Option<&Arc<Resource>> {
        self.slots.get(group)?.get(resource)?.first()?.resource()
    }
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
            assert!(std::ptr::eq(resource.row, *row));
        }
        let [new, old] = ["v2", "v1"].map(|version| catalog.get("autoscaling", version, "horizontalpodautoscalers"));
        assert!(!new.expect("the stored version").is_view && old.expect("the older version").is_view);
    }
}
