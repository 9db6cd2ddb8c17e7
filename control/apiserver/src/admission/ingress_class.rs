//! Ingresses that name no class are of the default one (DefaultIngressClass).

use coracle_api::meta;
use coracle_api::status::Status;
use serde_json::Value;

use super::Attributes;
use crate::store::{self, Seen};

/// Of an IngressClass: whether it is the default one.
pub(crate) const IS_DEFAULT: &str = "ingressclass.kubernetes.io/is-default-class";
/// Of an Ingress: its class, before there was a field for it.
const CLASS: &str = "kubernetes.io/ingress.class";

pub(super) fn create(at: &Attributes<'_>, ingress: &mut Value) -> Result<(), Status> {
    if !ingress["spec"]["ingressClassName"].is_null() || !ingress["metadata"]["annotations"][CLASS].is_null() {
        return Ok(());
    }
    let mut defaults = defaults(at.cluster)?;
    match (defaults.pop(), defaults.len()) {
        (None, _) => {}
        (Some(class), 0) if ingress["spec"].is_object() => ingress["spec"]["ingressClassName"] = class.into(),
        // Validation has its own words for it.
        (Some(_), 0) => {}
        (Some(_), more) => {
            let why = format!("{} default IngressClasses were found, only 1 allowed", more + 1);
            return Err(at.resource.forbidden(meta::name(ingress), format!("Internal error occurred: {why}")));
        }
    }
    Ok(())
}

/// The names of the classes that are said to be the default.
pub(crate) fn defaults(cluster: &crate::cluster::Cluster) -> Result<Vec<String>, Status> {
    let Some(classes) = cluster.catalog.named("networking.k8s.io", "ingressclasses") else { return Ok(Vec::new()) };
    let snapshot = cluster.store.keyspace.snapshot(classes.row.collection());
    let mut defaults = Vec::new();
    for (_, record) in store::range(&snapshot.records, None, None) {
        let class = Seen::new(classes, record).stored()?;
        if class["metadata"]["annotations"][IS_DEFAULT] == "true" {
            defaults.push(meta::name(&class).to_owned());
        }
    }
    Ok(defaults)
}
