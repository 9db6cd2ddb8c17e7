//! Leases of nodes. That one is renewed is for the leader's memory (`coracle_keyspace::Renewal`): a node says every second
//! that it lives, and in the log that would be most of what is in it.
//!
//! A renewal is a write that changes when the lease was renewed and nothing else. It has no version of its own: the lease
//! keeps its resourceVersion, by which it can be replaced as before, and a watch tells of it as of where the watch is: that
//! counts as its version, too, so that who follows leases can write what it has heard ([`is_version`]). Every other write to a
//! lease, and every lease elsewhere, goes through the log.

use std::sync::Arc;

use coracle_api::meta;
use coracle_keyspace::{Keyspace, Record, Records, Renewal, RenewalWatcher, TransactError};
use serde_json::Value;

use super::{Refused, Store};
use crate::catalog::Resource;

/// The namespace of the leases of nodes, and how names of records in it begin.
const NAMESPACE: &str = "kube-node-lease";
const PREFIX: &str = "kube-node-lease/";

fn are(resource: &Resource) -> bool {
    (resource.row.group(), resource.row.resource()) == ("coordination.k8s.io", "leases")
}

/// Whether `object`, which is to replace `old`, renews a node's lease and changes nothing.
pub(crate) fn is_renewed(resource: &Resource, object: &Value, old: &Value) -> bool {
    let renewed = |lease: &Value| lease["spec"]["renewTime"].is_string();
    if !are(resource) || old["metadata"]["namespace"] != NAMESPACE || !renewed(old) || !renewed(object) {
        return false;
    }
    let mut before = old.clone();
    before["spec"]["renewTime"] = object["spec"]["renewTime"].clone();
    coracle_api::patch::apply::equal_but_times(object, &before)
}

/// Whether somebody who names this version means a node's lease as it is: a watch tells of it as of a later one than it has, and
/// that is after whatever else changed.
pub(crate) fn is_version(resource: &Resource, lease: &Value, asked: u64) -> bool {
    let known = meta::resource_version(lease).parse::<u64>();
    are(resource) && lease["metadata"]["namespace"] == NAMESPACE && known.is_ok_and(|known| known <= asked)
}

impl Store {
    /// Has the leader know that a node's lease was renewed; gives the lease as it is now.
    pub async fn renew(&self, record: &Arc<Record>, value: coracle_keyspace::Value) -> Result<Arc<Record>, Refused> {
        let renewed = Arc::new(record.renewed(&value));
        let renewal = Renewal { key: record.key.clone(), revision: record.revision, value };
        match self.keyspace.renew(renewal).await {
            Ok(()) => Ok(renewed),
            Err(TransactError::Guard(failed)) => Err(Refused::Guard(failed)),
            Err(error) => Err(super::refused(error)),
        }
    }

    /// The record as the leader knows it, if it is a node's lease.
    pub async fn renewed(&self, resource: &Resource, record: Arc<Record>) -> Arc<Record> {
        if !are(resource) || !record.key.name.starts_with(PREFIX) {
            return record;
        }
        let renewed = self.keyspace.renewed(resource.row.collection(), Some(&record.key.name)).await.pop();
        renewed.filter(|renewed| renewed.revision == record.revision).unwrap_or(record)
    }

    /// The records with what the leader knows of nodes' leases.
    pub async fn all_renewed(&self, resource: &Resource, namespace: Option<&str>, mut records: Records) -> Records {
        if !are(resource) || namespace.is_some_and(|namespace| namespace != NAMESPACE) {
            return records;
        }
        for renewed in self.keyspace.renewed(resource.row.collection(), None).await {
            if records.get(&renewed.key.name).is_some_and(|record| record.revision == renewed.revision) {
                records.insert(renewed.key.name.clone(), renewed);
            }
        }
        records
    }

    /// Renewals as they come, for a watch.
    pub fn renewals(&self, resource: &Resource, namespace: Option<&str>) -> Option<Renewals> {
        let wanted = are(resource) && namespace.is_none_or(|namespace| namespace == NAMESPACE);
        wanted.then(|| Renewals { told: self.keyspace.renewals(), keyspace: self.keyspace.clone() })
    }
}

/// Follows renewals, where this server leads.
pub(crate) struct Renewals {
    keyspace: Keyspace,
    told: RenewalWatcher,
}

impl Renewals {
    /// The next one. May be dropped and called again.
    pub async fn next(&mut self) -> Arc<Record> {
        self.told.next().await
    }

    /// Another that has come already.
    pub fn try_next(&mut self) -> Option<Arc<Record>> {
        self.told.try_next()
    }

    /// Whether what was renewed is still what there is.
    pub fn is_valid(&self, renewed: &Record) -> bool {
        let record = self.keyspace.get(&renewed.key.collection, &renewed.key.name);
        record.is_some_and(|record| record.revision == renewed.revision)
    }
}

/// The next of `renewals`; never, when there can be none.
pub(crate) async fn next(renewals: &mut Option<Renewals>) -> Arc<Record> {
    match renewals {
        Some(renewals) => renewals.next().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::catalog::Catalog;

    #[test]
    fn only_the_time_of_a_nodes_lease_is_renewed_without_the_log() {
        let catalog = Catalog::new();
        let leases = catalog.named("coordination.k8s.io", "leases").expect("a kind");
        let pods = catalog.named("", "pods").expect("a kind");
        let lease = |namespace: &str, holder: &str, renewed: Value, labels: Value| {
            json!({
                "metadata": {"namespace": namespace, "name": "n", "labels": labels},
                "spec": {"holderIdentity": holder, "leaseDurationSeconds": 4, "renewTime": renewed},
            })
        };
        let old = lease(NAMESPACE, "n", json!("1"), json!({}));
        for (why, resource, new, old, expected) in [
            ("a renewal", leases, lease(NAMESPACE, "n", json!("2"), json!({})), &old, true),
            ("another holder", leases, lease(NAMESPACE, "m", json!("2"), json!({})), &old, false),
            ("a label", leases, lease(NAMESPACE, "n", json!("2"), json!({"a": "b"})), &old, false),
            ("never renewed before", leases, old.clone(), &lease(NAMESPACE, "n", Value::Null, json!({})), false),
            ("no time any more", leases, lease(NAMESPACE, "n", Value::Null, json!({})), &old, false),
            (
                "elsewhere",
                leases,
                lease("kube-system", "n", json!("2"), json!({})),
                &lease("kube-system", "n", json!("1"), json!({})),
                false,
            ),
            ("another kind", pods, lease(NAMESPACE, "n", json!("2"), json!({})), &old, false),
        ] {
            assert_eq!(is_renewed(resource, &new, old), expected, "{why}");
        }
    }
}
