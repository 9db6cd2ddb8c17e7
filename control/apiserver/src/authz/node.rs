//! What a node agent may do: what its own pods need, and no more. A stolen node does not read the cluster's secrets, and
//! gets no tokens but those of accounts that run on it.
//!
//! [`allows`] is a table of what may be asked for at all; [`check`] looks at the objects, and at the selectors of lists.

use coracle_api::meta::selector::{FieldSelector, LabelSelector};
use coracle_api::status::Status;
use http::Method;
use serde_json::Value;

use super::Attributes;
use crate::catalog::Resource;
use crate::cluster::Cluster;
use crate::request::call::Call;
use crate::store::{self, Seen};

const READS: [&str; 3] = ["get", "list", "watch"];

/// Whether a node agent may ask for this.
pub(super) fn allows(node: &str, asked: &Attributes<'_>) -> bool {
    let reads = READS.contains(&asked.verb);
    if asked.path.is_some() {
        return asked.verb == "get";
    }
    let creates = asked.verb == "create";
    match (asked.group, asked.resource, asked.subresource) {
        // Which ones, check() knows.
        ("", "pods", "" | "status") if reads => true,
        ("", "nodes", "" | "status") if reads => true,
        ("", "secrets" | "configmaps" | "persistentvolumeclaims", "") if reads => true,
        ("", "services" | "endpoints" | "persistentvolumes" | "serviceaccounts", "") if reads => true,
        ("discovery.k8s.io", "endpointslices", "") if reads => true,
        ("node.k8s.io", "runtimeclasses", "") if reads => true,
        ("storage.k8s.io", "csidrivers" | "csinodes" | "volumeattachments", "") if reads => true,
        ("", "nodes", "" | "status") => creates || asked.name == node,
        ("coordination.k8s.io", "leases", "") => {
            asked.namespace == "kube-node-lease" && (creates || asked.name == node)
        }
        ("" | "events.k8s.io", "events", "") => matches!(asked.verb, "create" | "patch" | "update"),
        ("", "pods", "status") => matches!(asked.verb, "patch" | "update"),
        ("", "pods", "") => asked.verb == "delete",
        ("", "serviceaccounts", "token") => creates,
        ("authentication.k8s.io" | "authorization.k8s.io", _, _) => creates,
        _ => false,
    }
}

/// Refuses a node agent what is not its own.
pub(crate) fn check(cluster: &Cluster, call: &Call, resource: &Resource, verb: &str) -> Result<(), Status> {
    let Some(node) = call.identity.node() else { return Ok(()) };
    let refused = |why: &str| {
        let mut status = super::refusal(&call.identity, &Attributes::of(call, verb));
        status.message = format!("{}: {why}", status.message);
        status
    };
    let selector = FieldSelector::parse(call.query.get("fieldSelector").unwrap_or_default()).unwrap_or_default();
    let named = call.target.name.as_deref().or_else(|| selector.exact("metadata.name"));
    let reads = READS.contains(&verb);
    match (resource.row.group, resource.row.resource) {
        ("", "pods") => match call.target.name.as_deref() {
            // A pod that is watched by name may come to be later, and anywhere.
            Some(_) if verb == "watch" && selector.exact("spec.nodeName") != Some(node) => {
                Err(refused("can only watch pods with the field selector spec.nodeName set to itself"))
            }
            Some(name) => own_pod(cluster, call, resource, node, name),
            None if selector.exact("spec.nodeName") == Some(node) => Ok(()),
            None => Err(refused("can only list and watch pods with the field selector spec.nodeName set to itself")),
        },
        ("", "nodes") if reads && named != Some(node) => Err(refused("can only read its own Node object")),
        ("", kind @ ("secrets" | "configmaps" | "persistentvolumeclaims")) => match (call.namespace(), named) {
            (Some(namespace), Some(name)) => {
                if any_pod(cluster, node, namespace, |pod| refers(&pod["spec"], kind, name)) {
                    return Ok(());
                }
                Err(refused(&format!("no relationship found between node '{node}' and this object")))
            }
            _ => Err(refused("can only read one named object at a time")),
        },
        ("", "serviceaccounts") if call.subresource() == "token" => {
            let namespace = call.namespace().unwrap_or_default();
            if any_pod(cluster, node, namespace, |pod| pod["spec"]["serviceAccountName"] == call.name()) {
                return Ok(());
            }
            Err(refused(&format!("no relationship found between node '{node}' and this object")))
        }
        _ => Ok(()),
    }
}

/// A pod that is bound elsewhere is none of its business; one that is gone is a 404 for everyone.
fn own_pod(cluster: &Cluster, call: &Call, resource: &Resource, node: &str, name: &str) -> Result<(), Status> {
    let Some(record) = cluster.store.get(resource, &resource.record_name(call.namespace(), name)) else {
        return Ok(());
    };
    if Seen::new(resource, &record).stored()?["spec"]["nodeName"] == node {
        return Ok(());
    }
    let does = if matches!(call.method, Method::GET | Method::HEAD) { "read" } else { "update" };
    let message = format!("node {node} can only {does} pods with spec.nodeName set to itself");
    Err(resource.forbidden(name, message))
}

/// Whether a pod of `namespace` on `node` is such a one.
fn any_pod(cluster: &Cluster, node: &str, namespace: &str, is_such: impl Fn(&Value) -> bool) -> bool {
    let Some(pods) = cluster.catalog.named("", "pods") else { return false };
    let Ok(here) = FieldSelector::parse(&format!("spec.nodeName={node}")) else { return false };
    let snapshot = cluster.store.keyspace.snapshot(pods.row.collection);
    store::range(&snapshot.records, Some(namespace), None).any(|(_, record)| {
        let seen = Seen::new(pods, record);
        seen.matches(&LabelSelector::default(), &here) && seen.stored().is_ok_and(|pod| is_such(&pod))
    })
}

/// Whether a pod names the object `name` of this kind.
fn refers(spec: &Value, kind: &str, name: &str) -> bool {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let (source, reference, key_reference, named) = match kind {
        "secrets" => ("secret", "secretRef", "secretKeyRef", "secretName"),
        "configmaps" => ("configMap", "configMapRef", "configMapKeyRef", "name"),
        _ => {
            let claims = |volume: &Value| volume["persistentVolumeClaim"]["claimName"] == name;
            return list(&spec["volumes"]).iter().any(claims);
        }
    };
    let in_volume = |volume: &Value| {
        volume[source][named] == name
            || list(&volume["projected"]["sources"]).iter().any(|part| part[source]["name"] == name)
    };
    let in_container = |container: &Value| {
        list(&container["envFrom"]).iter().any(|from| from[reference]["name"] == name)
            || list(&container["env"]).iter().any(|env| env["valueFrom"][key_reference]["name"] == name)
    };
    list(&spec["volumes"]).iter().any(in_volume)
        || ["initContainers", "containers", "ephemeralContainers"]
            .iter()
            .any(|field| list(&spec[*field]).iter().any(in_container))
        || kind == "secrets" && list(&spec["imagePullSecrets"]).iter().any(|secret| secret["name"] == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn nodes_ask_only_for_what_they_need() {
        let ask = |verb, group, resource, subresource, namespace, name| Attributes {
            verb,
            group,
            resource,
            subresource,
            namespace,
            name,
            path: None,
        };
        for (asked, expected) in [
            (ask("patch", "", "nodes", "status", "", "a"), true),
            (ask("patch", "", "nodes", "status", "", "b"), false),
            (ask("update", "coordination.k8s.io", "leases", "", "kube-node-lease", "a"), true),
            (ask("update", "coordination.k8s.io", "leases", "", "default", "a"), false),
            (ask("patch", "", "pods", "status", "default", "p"), true),
            (ask("create", "", "pods", "", "default", ""), false),
            (ask("create", "", "secrets", "", "default", ""), false),
            (ask("get", "", "secrets", "", "default", "s"), true),
            (ask("get", "", "pods", "exec", "default", "p"), false),
            (ask("get", "", "pods", "portforward", "default", "p"), false),
            (ask("get", "", "pods", "proxy", "default", "p"), false),
            (ask("get", "", "services", "proxy", "default", "s"), false),
            (ask("get", "", "nodes", "proxy", "", "b"), false),
            (ask("list", "apps", "deployments", "", "default", ""), false),
            (ask("impersonate", "", "users", "", "", "admin"), false),
        ] {
            assert_eq!(allows("a", &asked), expected, "{asked:?}");
        }
    }

    #[test]
    fn a_pod_names_objects_in_many_places() {
        let spec = json!({
            "imagePullSecrets": [{"name": "pull"}],
            "volumes": [
                {"secret": {"secretName": "files"}}, {"persistentVolumeClaim": {"claimName": "disk"}},
                {"projected": {"sources": [{"configMap": {"name": "root"}}, {"secret": {"name": "part"}}]}},
            ],
            "initContainers": [{"envFrom": [{"configMapRef": {"name": "all"}}]}],
            "containers": [{"env": [{"valueFrom": {"secretKeyRef": {"name": "key"}}}]}],
        });
        for (kind, name, expected) in [
            ("secrets", "pull", true),
            ("secrets", "files", true),
            ("secrets", "part", true),
            ("secrets", "key", true),
            ("secrets", "all", false),
            ("configmaps", "root", true),
            ("configmaps", "all", true),
            ("configmaps", "key", false),
            ("persistentvolumeclaims", "disk", true),
            ("persistentvolumeclaims", "files", false),
        ] {
            assert_eq!(refers(&spec, kind, name), expected, "{kind} {name}");
        }
    }
}
