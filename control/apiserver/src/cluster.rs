//! What is served, and where it is kept: all that admission, verbs and subresources know of the server.

use std::sync::Arc;

use coracle_api::kinds;
use coracle_api::status::Status;
use rustls::ClientConfig;

use crate::aggregation::Backends;
use crate::catalog::{Catalog, Resource, Served};
use crate::hooks::{Configured, Hooks, Metrics};
use crate::outward::{self, FrontProxy};
use crate::policies::Policies;
use crate::roles::{Index, Roles};
use crate::shown::Shown;
use crate::store::Store;

/// The resources and their records.
pub(crate) struct Cluster {
    pub catalog: Arc<Catalog>,
    pub store: Store,
    roles: Roles,
    pub hooks: Hooks,
    /// The admission policies that are bound.
    pub policies: Policies,
    /// Group versions that other API servers serve.
    pub backends: Backends,
    /// Secrets whose certificates nodes show.
    pub shown: Shown,
    /// What is counted of the calls to webhooks.
    pub calls: Metrics,
    /// The way to nodes, by which pods are called.
    pub nodes: Arc<outward::Nodes>,
}

impl Cluster {
    /// `nodes` is this server's certificate towards nodes, `front` the one towards other API servers.
    pub fn new(store: Store, nodes: Option<Arc<ClientConfig>>, front: Option<Arc<FrontProxy>>) -> Cluster {
        Cluster {
            hooks: Hooks::new(&store.keyspace),
            policies: Policies::new(&store.keyspace),
            backends: Backends::new(&store.keyspace, front),
            shown: Shown::new(&store.keyspace),
            catalog: Arc::new(Catalog::new()),
            store,
            roles: Roles::default(),
            calls: Metrics::default(),
            nodes: Arc::new(outward::Nodes::new(nodes)),
        }
    }

    /// The admission webhooks that are configured; `None` when there are none.
    pub async fn webhooks(&self) -> Option<Arc<Configured>> {
        self.hooks.now(&self.store.keyspace).await
    }

    /// Who is bound to which roles, as it is stored now.
    pub fn roles(&self) -> Arc<Index> {
        self.roles.index(&self.catalog, &self.store)
    }

    /// What definitions make of what is applied here.
    pub async fn served(&self) -> Arc<Served> {
        self.catalog.served(&self.store.keyspace).await
    }

    /// The resource at a path. One that is not known here may be known to others: it is looked for once more when everything
    /// that was answered anywhere is here.
    pub async fn resource(&self, group: &str, version: &str, name: &str) -> Result<Option<Arc<Resource>>, Status> {
        if let Some(found) = self.catalog.get(group, version, name) {
            return Ok(Some(found.clone()));
        }
        // Groups of definitions have a domain.
        if !group.contains('.') {
            return Ok(None);
        }
        if let Some(found) = self.served().await.find(group, version, name).await {
            return Ok(Some(found));
        }
        self.store.barrier().await?;
        Ok(self.served().await.find(group, version, name).await)
    }

    /// The resource of a kind, built in or of a definition.
    pub async fn of_kind(&self, group: &str, version: &str, kind: &str) -> Option<Arc<Resource>> {
        if let Some(row) = kinds::by_kind(group, kind) {
            return self.catalog.get(group, version, row.resource).cloned();
        }
        let served = self.served().await;
        let definition =
            &served.all().into_iter().find(|one| one.definition.group == group && one.is_of(kind))?.definition;
        served.find(group, version, &definition.names.plural).await
    }

    /// What a resource is when everything that was answered anywhere is here, if that is something else. What was refused by an
    /// older definition is looked at again by it.
    pub async fn redefined(&self, resource: &Resource) -> Result<Option<Arc<Resource>>, Status> {
        let Some(custom) = &resource.custom else { return Ok(None) };
        self.store.barrier().await?;
        let row = &resource.row;
        let now = self.served().await.find(row.group(), row.version(), row.resource()).await;
        let is_same = |now: &Arc<Resource>| {
            now.custom.as_ref().is_some_and(|now| now.definition.revision == custom.definition.revision)
        };
        match now {
            Some(now) if is_same(&now) => Ok(None),
            Some(now) => Ok(Some(now)),
            None => Err(Status::path_not_found()),
        }
    }
}
