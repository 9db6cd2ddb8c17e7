//! What is served, and where it is kept: all that admission, verbs and subresources know of the server.

use std::sync::Arc;

use crate::catalog::Catalog;
use crate::roles::{Index, Roles};
use crate::store::Store;

/// The resources and their records.
pub(crate) struct Cluster {
    pub catalog: Catalog,
    pub store: Store,
    roles: Roles,
}

impl Cluster {
    pub fn new(store: Store) -> Cluster {
        Cluster { catalog: Catalog::new(), store, roles: Roles::default() }
    }

    /// Who is bound to which roles, as it is stored now.
    pub fn roles(&self) -> Arc<Index> {
        self.roles.index(&self.catalog, &self.store)
    }
}
