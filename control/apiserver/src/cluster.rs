//! What is served, and where it is kept: all that admission, verbs and subresources know of the server.

use crate::catalog::Catalog;
use crate::store::Store;

/// The resources and their records.
pub(crate) struct Cluster {
    pub catalog: Catalog,
    pub store: Store,
}
