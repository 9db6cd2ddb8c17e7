//! What the server writes by itself.

use std::sync::Arc;

use coracle_api::status::Status;
use serde_json::Value;

use super::create::insert;
use super::update::{Changed, change};
use super::write::{Write, Written};
use crate::catalog::Resource;
use crate::cluster::Cluster;
use crate::request::call::Call;
use crate::request::options::WriteOptions;
use crate::request::own::own_call;
use crate::store::Seen;

/// One object in the server's own hand.
pub(crate) struct Own<'a> {
    cluster: &'a Cluster,
    resource: &'a Arc<Resource>,
    namespace: Option<&'a str>,
    name: &'a str,
    manager: Option<&'static str>,
    subresource: &'static str,
    owned: bool,
}

impl<'a> Own<'a> {
    pub fn new(
        cluster: &'a Cluster,
        resource: &'a Arc<Resource>,
        namespace: Option<&'a str>,
        name: &'a str,
    ) -> Own<'a> {
        Own { cluster, resource, namespace, name, manager: None, subresource: "", owned: false }
    }

    /// As whom it is written down who owns its fields.
    pub fn by(self, manager: &'static str) -> Own<'a> {
        Own { manager: Some(manager), ..self }
    }

    /// Of the object its status alone.
    pub fn status(self) -> Own<'a> {
        Own { subresource: "status", ..self }
    }

    /// Who owns its fields stays as it is.
    pub fn owned(self) -> Own<'a> {
        Own { owned: true, ..self }
    }

    /// Makes the object, unless there is one of its name.
    pub async fn make(&self, object: Value) -> Result<(), Status> {
        let name = self.resource.record_name(self.namespace, self.name);
        if self.cluster.store.get(self.resource, &name).is_some() {
            return Ok(());
        }
        let (call, options) = self.words();
        match insert(&self.write(&call, &options), object, self.owned).await {
            // Somebody was quicker.
            Err(status) if status.reason != "AlreadyExists" => Err(status),
            _ => Ok(()),
        }
    }

    /// Makes the object, or has the one that is there as `step` wants it. It is read once where it is so already.
    pub async fn keep(&self, object: impl FnOnce() -> Value, step: impl Fn(&Value) -> Value) -> Result<(), Status> {
        let name = self.resource.record_name(self.namespace, self.name);
        let Some(record) = self.cluster.store.get(self.resource, &name) else {
            return self.make(object()).await;
        };
        let old = Seen::new(self.resource, &record).stored()?;
        if step(&old) == old { Ok(()) } else { self.change(step).await.map(drop) }
    }

    /// Changes the object as it is when that is written; `None` when there is none.
    pub async fn change(&self, step: impl Fn(&Value) -> Value) -> Result<Option<Written>, Status> {
        let (call, options) = self.words();
        let step = |old: &Value| Ok(Changed { object: step(old), owned: self.owned, names_version: false });
        match change(&self.write(&call, &options), step).await {
            Ok(written) => Ok(Some(written)),
            Err(status) if status.code() == 404 => Ok(None),
            Err(status) => Err(status),
        }
    }

    fn words(&self) -> (Call, WriteOptions) {
        let (call, mut options) = own_call(self.namespace, self.name);
        if let Some(manager) = self.manager {
            manager.clone_into(&mut options.manager);
        }
        (call, options)
    }

    fn write<'w>(&'w self, call: &'w Call, options: &'w WriteOptions) -> Write<'w> {
        let (cluster, resource, subresource) = (self.cluster, self.resource, self.subresource);
        Write { cluster, call, resource, options, subresource }
    }
}
