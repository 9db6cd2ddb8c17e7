//! What a policy is bound with: one object by its name, or all that a selector selects.

use std::sync::Arc;

use coracle_api::status::Status;
use coracle_keyspace::Record;
use serde_json::Value;

use crate::catalog::Resource;
use crate::cluster::Cluster;
use crate::conversion;
use crate::policies::{Binding, ParamKind, Policy};
use crate::store::{self, Seen};

/// Most objects that one binding selects: the policy is asked with each of them.
const SELECTED_MAX: usize = 1_000;

/// The resource of what a policy is bound with.
pub(super) async fn resource(cluster: &Cluster, kind: &ParamKind) -> Result<Arc<Resource>, String> {
    let (group, version) = kind.group_version();
    let found = cluster.of_kind(group, version, &kind.kind).await;
    let shown = || if group.is_empty() { format!("/{version}") } else { kind.api_version.clone() };
    found.ok_or_else(|| format!("failed to find resource referenced by paramKind: '{}, Kind={}'", shown(), kind.kind))
}

/// One of them, as it is stored: read when the policy is asked with it, and only then.
pub(super) struct Param {
    resource: Arc<Resource>,
    record: Arc<Record>,
}

impl Param {
    /// Its bytes.
    pub fn bytes(&self) -> usize {
        self.record.bytes.len()
    }

    /// The object, in the version that the policy names.
    pub async fn read(&self, cluster: &Cluster) -> Result<Value, Status> {
        let converted = conversion::one(cluster, &self.resource, &self.record).await?;
        Seen::new(&self.resource, &converted).value()
    }
}

/// What a binding asks its policy with: nothing once, where it is bound with nothing.
///
/// # Errors
/// Why there is nothing to ask with: what is configured cannot be carried out, or what it names not be found out now.
pub(super) async fn collect(
    cluster: &Cluster,
    policy: &Policy,
    binding: &Binding,
    namespace: &str,
) -> Result<Vec<Option<Param>>, String> {
    let (Some(kind), Some(params)) = (&policy.params, &binding.params) else { return Ok(vec![None]) };
    let resource = resource(cluster, kind).await?;
    let place = match (resource.row.namespaced(), params.namespace.as_str()) {
        (true, "") if namespace.is_empty() => {
            let why = "cannot use namespaced paramRef in policy binding that matches cluster-scoped resources";
            return Err(why.to_owned());
        }
        (true, "") => Some(namespace),
        (true, named) => Some(named),
        (false, "") => None,
        (false, _) => {
            let why = "paramRef.namespace must not be provided for a cluster-scoped `paramKind`";
            return Err(why.to_owned());
        }
    };
    let param = |record: &Arc<Record>| Some(Param { resource: resource.clone(), record: record.clone() });
    let found: Vec<Option<Param>> = match &params.selector {
        Some(selector) => {
            let selector = selector.as_ref().map_err(String::clone)?;
            let records = cluster.store.keyspace.snapshot(resource.row.collection()).records;
            let mut selected = Vec::new();
            for (_, record) in store::range(&records, place, None) {
                let seen = Seen::new(&resource, record);
                if !selector.matches(seen.known_facts().map_err(|status| status.message.clone())?.labels()) {
                    continue;
                }
                if selected.len() == SELECTED_MAX {
                    return Err(format!("a binding can be bound with {SELECTED_MAX} params at most"));
                }
                selected.push(param(record));
            }
            selected
        }
        None => {
            let name = resource.record_name(place, &params.name);
            let found = cluster.store.find(&resource, &name).await.map_err(|status| status.message.clone())?;
            found.iter().map(param).collect()
        }
    };
    if found.is_empty() && params.denies {
        let why = "no params found for policy binding with `Deny` parameterNotFoundAction";
        return Err(why.to_owned());
    }
    Ok(found)
}
