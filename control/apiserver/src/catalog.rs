//! The resources that are served, by their path. The generic verbs see a resource only as one [`Resource`].

use std::collections::HashMap;
use std::sync::Arc;

use coracle_api::kinds::{self, Kind};
use coracle_api::schema::{self, Object};
use coracle_api::status::Status;

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

    /// 403 by admission.
    pub fn forbidden(&self, name: &str, message: impl std::fmt::Display) -> Status {
        Status::forbidden(self.row.group, self.row.resource, name, message)
    }
}

/// All resources.
pub(crate) struct Catalog {
    /// By group, then by resource.
    by_resource: HashMap<&'static str, HashMap<&'static str, Arc<Resource>>>,
}

impl Catalog {
    pub fn new() -> Result<Catalog, String> {
        let mut by_resource: HashMap<&'static str, HashMap<&'static str, Arc<Resource>>> = HashMap::new();
        for row in kinds::all() {
            let stored = kinds::all().iter().find(|first| first.collection == row.collection).unwrap_or(row);
            let named = |name: &str| schema::named(name).ok_or_else(|| format!("no schema is known for {name}"));
            let api_version = match row.group {
                "" => row.version.to_owned(),
                group => format!("{group}/{}", row.version),
            };
            let resource = Resource {
                row,
                stored,
                schema: named(row.schema)?,
                stored_schema: named(stored.schema)?,
                api_version,
                list_kind: format!("{}List", row.kind),
                is_view: !std::ptr::eq(*stored, *row),
            };
            by_resource.entry(row.group).or_default().insert(row.resource, Arc::new(resource));
        }
        Ok(Catalog { by_resource })
    }

    /// The resource at a path.
    pub fn get(&self, group: &str, version: &str, resource: &str) -> Option<&Arc<Resource>> {
        self.named(group, resource).filter(|found| found.row.version == version)
    }

    /// A built-in resource by group and name.
    pub fn named(&self, group: &str, resource: &str) -> Option<&Arc<Resource>> {
        self.by_resource.get(group)?.get(resource)
    }

    /// Every row, sorted by group and resource.
    pub fn rows(&self) -> impl Iterator<Item = &Arc<Resource>> {
        kinds::all().iter().filter_map(|row| self.named(row.group, row.resource))
    }
}
