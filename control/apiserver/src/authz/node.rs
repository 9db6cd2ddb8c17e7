//! What a node agent may do: what its own pods need, and no more. A stolen node does not read the cluster's secrets, and
//! gets no tokens but those of accounts that run on it.
//!
//! [`allows`] is a table of what may be asked for at all; [`check`] looks at the selectors of lists; [`sees`], [`creates`] and
//! [`changes`] (NodeRestriction, kubernetes-api §19) look at the objects themselves, and at no others than those that are
//! answered or written.

use std::collections::BTreeSet;
use std::sync::Arc;

use coracle_api::meta;
use coracle_api::meta::selector::{FieldSelector, FieldTerm};
use coracle_api::status::Status;
use coracle_api::volumes;
use coracle_keyspace::Record;
use serde_json::{Map, Value};

use super::Attributes;
use crate::catalog::Resource;
use crate::cluster::Cluster;
use crate::identity::Identity;
use crate::request::call::Call;
use crate::store::keyed::NODE;
use crate::store::{self, Seen};

/// The annotation of a Node that joined, which is written by who gives out its name: a node that was removed makes its object anew, and
/// is not taken for one that joined again.
pub const JOINED: &str = "coracle.dev/joined";
/// Of Secrets that hold a certificate.
const TYPE: &str = "type";
const TLS: &str = "kubernetes.io/tls";
const READS: [&str; 3] = ["get", "list", "watch"];

/// Whether a node agent may ask for this.
pub(super) fn allows(node: &str, asked: &Attributes<'_>) -> bool {
    let reads = READS.contains(&asked.verb);
    // Paths are for it what they are for everybody: an agent asks for objects alone.
    if asked.path.is_some() {
        return false;
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
        // Every node enforces them: it needs their selectors' other half, too.
        ("networking.k8s.io", "networkpolicies", "") | ("", "namespaces", "") if reads => true,
        // Every node serves them.
        ("networking.k8s.io", "ingresses" | "ingressclasses", "") if reads => true,
        // And Gateways, while their definitions are there.
        (coracle_gateway::GROUP, _, "") if reads => true,
        ("apiextensions.k8s.io", "customresourcedefinitions", "") if reads => true,
        ("storage.k8s.io", "csidrivers" | "volumeattachments", "") if reads => true,
        // Which, and what of them, changes() knows.
        ("", "persistentvolumes", "") if asked.verb == "patch" => true,
        ("", "nodes", "") if creates => true,
        ("", "nodes", "" | "status") => matches!(asked.verb, "update" | "patch") && asked.name == node,
        ("coordination.k8s.io", "leases", "") => {
            asked.namespace == "kube-node-lease" && (creates || is_own(node, asked))
        }
        ("storage.k8s.io", "csinodes", "") => creates || is_own(node, asked),
        ("" | "events.k8s.io", "events", "") => matches!(asked.verb, "create" | "patch" | "update"),
        ("", "pods", "status") => matches!(asked.verb, "patch" | "update"),
        ("", "pods", "") => asked.verb == "delete",
        ("", "pods", "eviction") => creates,
        ("", "serviceaccounts", "token") => creates,
        ("authentication.k8s.io" | "authorization.k8s.io", _, _) => creates,
        // For volumes. Which, check() and what admits them know.
        ("certificates.k8s.io", "clustertrustbundles", "") => reads,
        ("certificates.k8s.io", "podcertificaterequests", "") => creates || reads,
        _ => false,
    }
}

/// Whether it is about one object that has the node's name.
fn is_own(node: &str, asked: &Attributes<'_>) -> bool {
    matches!(asked.verb, "get" | "update" | "patch" | "delete") && asked.name == node
}

/// Refuses a node agent what is not its own, as far as the request itself says so.
pub(crate) async fn check(cluster: &Cluster, call: &Call, resource: &Resource, verb: &str) -> Result<(), Status> {
    let Some(node) = call.identity.node() else { return Ok(()) };
    let selector = FieldSelector::parse(call.query.get("fieldSelector").unwrap_or_default()).unwrap_or_default();
    let asked = Attributes {
        verb,
        group: resource.row.group(),
        resource: resource.row.resource(),
        namespace: call.namespace().unwrap_or_default(),
        name: call.target.name.as_deref().unwrap_or_default(),
        ..Attributes::default()
    };
    is_related(cluster, node, &asked, &selector).await.map_err(|why| {
        let mut status = super::refusal(&call.identity, &Attributes::of(call, verb));
        status.message = format!("{}: node: {why}", status.message);
        status
    })
}

/// Whether a review says yes to a node agent that asks for what it may ask for at all: the request would be refused
/// otherwise, here or by the pod that it reads.
pub(crate) async fn promises(cluster: &Cluster, node: &str, asked: &Attributes<'_>, selector: &FieldSelector) -> bool {
    let reads_pod = (asked.group, asked.resource) == ("", "pods") && asked.verb == "get";
    let sees = || {
        let record = cluster.catalog.named("", "pods").and_then(|pods| {
            let record = cluster.store.get(pods, &pods.record_name(Some(asked.namespace), asked.name))?;
            Some(Seen::new(pods, &record).field(NODE) == Some(node))
        });
        record.unwrap_or_default()
    };
    is_related(cluster, node, asked, selector).await.is_ok() && (!reads_pod || sees())
}

/// Whether what is asked for has to do with the node; why not.
async fn is_related(
    cluster: &Cluster,
    node: &str,
    asked: &Attributes<'_>,
    selector: &FieldSelector,
) -> Result<(), String> {
    let in_path = Some(asked.name).filter(|name| !name.is_empty());
    let named = in_path.or_else(|| selector.exact("metadata.name"));
    match (asked.group, asked.resource) {
        // A pod that is watched by name may come to be later, and anywhere.
        ("", "pods") if in_path.is_some() && asked.verb != "watch" => Ok(()),
        ("", "pods") if selector.exact(NODE) == Some(node) => Ok(()),
        ("", "pods") => Err("can only list/watch pods with spec.nodeName field selector".to_owned()),
        ("", "nodes") if READS.contains(&asked.verb) && named != Some(node) => {
            let other = named.map(|name| format!(" '{name}'")).unwrap_or_default();
            Err(format!("node '{node}' cannot read{other}, only its own Node object"))
        }
        // As a pod: one that is made, what is asked for is looked at by who admits it, and one that is read, by sees().
        ("certificates.k8s.io", "podcertificaterequests") => match asked.verb {
            "create" => Ok(()),
            "get" if in_path.is_some() => Ok(()),
            _ if selector.exact(NODE) == Some(node) => Ok(()),
            _ => Err("can only list/watch podcertificaterequests with nodeName field selector".to_owned()),
        },
        ("", kind @ ("secrets" | "configmaps" | "persistentvolumeclaims")) => match (asked.namespace, named) {
            ("", _) | (_, None) => Err("can only read one named object at a time".to_owned()),
            (namespace, Some(name)) => {
                let is_related = any_pod(cluster, node, namespace, |pod| refers(pod, kind, name))
                    || kind == "secrets" && serves_with(cluster, namespace, name).await;
                if is_related { Ok(()) } else { Err(unrelated(node)) }
            }
        },
        _ => Ok(()),
    }
}

/// What a node agent does to a pod, in the reference's words.
pub(crate) const READ: &str = "read";
pub(crate) const UPDATE: &str = "update pod status for";
pub(crate) const DELETE: &str = "delete";
pub(crate) const EVICT: &str = "evict";

fn unrelated(node: &str) -> String {
    format!("no relationship found between node '{node}' and this object")
}

/// A pod that is bound elsewhere is none of a node agent's business: neither to read nor to change. Nor is a Secret that it knows of
/// by an Ingress only and that holds no certificate.
pub(crate) fn sees(
    cluster: &Cluster,
    caller: &Identity,
    resource: &Resource,
    record: &Arc<Record>,
    does: &str,
) -> Result<(), Status> {
    let Some(node) = caller.node() else { return Ok(()) };
    let seen = Seen::new(resource, record);
    let (namespace, name) = store::memo::split(&record.key.name);
    let sees = match (resource.row.group(), resource.row.resource()) {
        ("", "pods") => seen.field(NODE) == Some(node),
        ("", "secrets") => seen.field(TYPE) == Some(TLS) || has_pod_with(cluster, node, namespace, name),
        ("certificates.k8s.io", "podcertificaterequests") => seen.field(NODE) == Some(node),
        _ => true,
    };
    if sees {
        return Ok(());
    }
    if does == READ {
        let asked = Attributes {
            verb: "get",
            group: resource.row.group(),
            resource: resource.row.resource(),
            namespace,
            name,
            ..Attributes::default()
        };
        let mut status = super::refusal(caller, &asked);
        status.message = format!("{}: node: {}", status.message, unrelated(node));
        return Err(status);
    }
    let message = format!("node {} can only {does} pods with spec.nodeName set to itself", meta::text::quote(node));
    Err(resource.forbidden(name, message))
}

/// What else is true of all that a node agent is shown in a list or watch that it may ask for: as [`sees`] has it of one object.
pub(crate) fn narrow(cluster: &Cluster, call: &Call, resource: &Resource, fields: &mut FieldSelector) {
    let Some(node) = call.identity.node().filter(|_| is(resource, "", "secrets")) else { return };
    let (namespace, name) = (call.namespace().unwrap_or_default(), fields.exact("metadata.name").unwrap_or_default());
    if !has_pod_with(cluster, node, namespace, name) {
        fields.terms_mut().push(FieldTerm { field: TYPE.to_owned(), equal: true, value: TLS.to_owned() });
    }
}

/// Whether a pod on the node names the Secret.
fn has_pod_with(cluster: &Cluster, node: &str, namespace: &str, secret: &str) -> bool {
    any_pod(cluster, node, namespace, |pod| refers(pod, "secrets", secret))
}

/// What a node agent makes has its name, and says nothing of it that only others may say.
pub(crate) fn creates(caller: &Identity, resource: &Resource, object: &Value) -> Result<(), Status> {
    let Some(node) = caller.node() else { return Ok(()) };
    let quoted = meta::text::quote(node);
    let refused = |why: String| Err(resource.forbidden(meta::name(object), why));
    match (resource.row.group(), resource.row.resource()) {
        ("", "nodes") => {
            let forbidden = restricted(labels(object).keys());
            if !forbidden.is_empty() {
                return refused(format!("node {quoted} is not allowed to set the following labels: {forbidden}"));
            }
            if !owners(object).is_empty() {
                return refused(format!("node {quoted} is not allowed to set owner references"));
            }
            if !object["metadata"]["annotations"][JOINED].is_null() {
                return refused(format!("node {quoted} is not allowed to set the annotation {JOINED}"));
            }
            own_node(node, resource, object)
        }
        ("coordination.k8s.io", "leases") if meta::name(object) != node => {
            refused("can only access node lease with the same name as the requesting node".to_owned())
        }
        ("storage.k8s.io", "csinodes") if meta::name(object) != node => {
            refused("can only access CSINode with the same name as the requesting node".to_owned())
        }
        _ => Ok(()),
    }
}

/// What a node agent changes of its Node and of its pods is not what others rely on: taints, restricted labels, owners.
pub(crate) fn changes(caller: &Identity, resource: &Resource, object: &Value, old: &Value) -> Result<(), Status> {
    let Some(node) = caller.node() else { return Ok(()) };
    let quoted = meta::text::quote(node);
    let refused = |why: String| Err(resource.forbidden(meta::name(old), why));
    match (resource.row.group(), resource.row.resource()) {
        ("", "nodes") => {
            own_node(node, resource, old)?;
            let list = |node: &Value| node["spec"]["taints"].as_array().cloned().unwrap_or_default();
            if list(object) != list(old) {
                return refused(format!("node {quoted} is not allowed to modify taints"));
            }
            if object["spec"]["podCIDRs"] != old["spec"]["podCIDRs"] {
                return refused(format!("node {quoted} is not allowed to modify its range of addresses"));
            }
            let (new, before) = (labels(object), labels(old));
            let changed = new.keys().chain(before.keys()).filter(|key| new.get(*key) != before.get(*key));
            let forbidden = restricted(changed);
            if !forbidden.is_empty() {
                return refused(format!("is not allowed to modify labels: {forbidden}"));
            }
            // The reference lets it: it could have itself collected, and come back without its taints and labels.
            if owners(object) != owners(old) {
                return refused(format!("node {quoted} is not allowed to modify owner references"));
            }
            if object["metadata"]["annotations"][JOINED] != old["metadata"]["annotations"][JOINED] {
                return refused(format!("node {quoted} is not allowed to modify the annotation {JOINED}"));
            }
            Ok(())
        }
        ("", "persistentvolumes") if !keeps(node, object, old) => {
            refused(format!("node {quoted} can only say of its own volumes that their directories are made or gone"))
        }
        ("", "pods") if labels(object) != labels(old) => {
            refused(format!("node {quoted} cannot update labels through pod status"))
        }
        _ => Ok(()),
    }
}

/// Whether a node agent that changes a volume keeps it, and says nothing of it but that it has made the directory, or that it is
/// done with one that goes.
fn keeps(node: &str, object: &Value, old: &Value) -> bool {
    let mut said = old.clone();
    // What the server keeps itself.
    for field in ["managedFields", "resourceVersion"] {
        said["metadata"][field] = object["metadata"][field].clone();
    }
    if let Some(made) = object["metadata"]["annotations"].get(volumes::MADE) {
        said["metadata"]["annotations"][volumes::MADE] = made.clone();
    }
    if meta::is_deleting(old) && meta::finalizers(object).all(|name| name != volumes::FINALIZER) {
        let rest = meta::finalizers(old).filter(|name| *name != volumes::FINALIZER).map(Value::from);
        said["metadata"]["finalizers"] = rest.collect::<Vec<_>>().into();
    }
    let strip = |object: &Value| {
        let mut object = object.clone();
        if let Some(metadata) = object["metadata"].as_object_mut() {
            metadata.retain(|_, value| !value.is_null() && value.as_array().is_none_or(|list| !list.is_empty()));
        }
        object
    };
    labels(old).get(volumes::NODE).is_some_and(|of| of == node) && strip(&said) == strip(object)
}

fn own_node(node: &str, resource: &Resource, object: &Value) -> Result<(), Status> {
    let name = meta::name(object);
    if name == node {
        return Ok(());
    }
    let (node, other) = (meta::text::quote(node), meta::text::quote(name));
    Err(resource.forbidden(name, format!("node {node} is not allowed to modify node {other}")))
}

fn labels(object: &Value) -> Map<String, Value> {
    object["metadata"]["labels"].as_object().cloned().unwrap_or_default()
}

fn owners(object: &Value) -> &[Value] {
    object["metadata"]["ownerReferences"].as_array().map(Vec::as_slice).unwrap_or_default()
}

/// Labels of Kubernetes' own that a node agent may set; others of theirs are for administrators.
const AGENT_LABELS: [&str; 11] = [
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "kubernetes.io/arch",
    "kubernetes.io/instance-type",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
    "beta.kubernetes.io/instance-type",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/arch",
];

/// Those of `keys` that a node agent may not set, as text.
fn restricted<'a>(keys: impl Iterator<Item = &'a String>) -> String {
    let within = |namespace: &str, domain: &str| {
        namespace.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    };
    let forbidden = |key: &&String| {
        let namespace = key.split_once('/').map_or("", |(namespace, _)| namespace);
        let any = |domains: &[&str]| domains.iter().any(|domain| within(namespace, domain));
        let agents = AGENT_LABELS.contains(&key.as_str()) || any(&["kubelet.kubernetes.io", "node.kubernetes.io"]);
        any(&["node-restriction.kubernetes.io"]) || any(&["kubernetes.io", "k8s.io"]) && !agents
    };
    let keys: BTreeSet<&str> = keys.filter(forbidden).map(String::as_str).collect();
    keys.into_iter().collect::<Vec<_>>().join(", ")
}

fn is(resource: &Resource, group: &str, name: &str) -> bool {
    (resource.row.group(), resource.row.resource()) == (group, name)
}

/// Whether a pod of `namespace` on `node` is such a one.
fn any_pod(cluster: &Cluster, node: &str, namespace: &str, is_such: impl Fn(&Value) -> bool) -> bool {
    let Some(pods) = cluster.catalog.named("", "pods") else { return false };
    let snapshot = cluster.store.keyspace.snapshot(pods.row.collection());
    store::range(&snapshot.records, Some(namespace), None).any(|(_, record)| {
        let seen = Seen::new(pods, record);
        seen.field(NODE) == Some(node) && seen.stored().is_ok_and(|pod| is_such(&pod))
    })
}

/// Whether an Ingress or a Gateway that nodes serve names the Secret for TLS, which holds a certificate or does not exist yet.
async fn serves_with(cluster: &Cluster, namespace: &str, secret: &str) -> bool {
    // Whoever may write those has no node read anything but certificates.
    let holds = || {
        let secrets = cluster.catalog.named("", "secrets")?;
        let record = cluster.store.get(secrets, &secrets.record_name(Some(namespace), secret))?;
        Some(Seen::new(secrets, &record).stored().ok()?["type"] == TLS)
    };
    cluster.shown.has(&cluster.store.keyspace, namespace, secret).await && holds().unwrap_or(true)
}

/// Whether a pod names the object `name` of this kind.
fn refers(pod: &Value, kind: &str, name: &str) -> bool {
    let spec = &pod["spec"];
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let (source, reference, key_reference, named) = match kind {
        "secrets" => ("secret", "secretRef", "secretKeyRef", "secretName"),
        "configmaps" => ("configMap", "configMapRef", "configMapKeyRef", "name"),
        _ => {
            // That of an ephemeral volume is made for the pod, and called after it.
            let own = |volume: &Value| {
                let rest = name.strip_prefix(meta::name(pod)).and_then(|rest| rest.strip_prefix('-'));
                volume["ephemeral"].is_object() && volume["name"].as_str().is_some_and(|volume| rest == Some(volume))
            };
            let claims = |volume: &Value| volume["persistentVolumeClaim"]["claimName"] == name || own(volume);
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
            (ask("delete", "", "nodes", "", "", "a"), false),
            (ask("deletecollection", "", "nodes", "", "", ""), false),
            (ask("update", "coordination.k8s.io", "leases", "", "kube-node-lease", "a"), true),
            (ask("update", "coordination.k8s.io", "leases", "", "kube-node-lease", "b"), false),
            (ask("list", "coordination.k8s.io", "leases", "", "kube-node-lease", ""), false),
            (ask("patch", "storage.k8s.io", "csinodes", "", "", "a"), true),
            (ask("get", "storage.k8s.io", "csinodes", "", "", "b"), false),
            (ask("update", "coordination.k8s.io", "leases", "", "default", "a"), false),
            (ask("patch", "", "pods", "status", "default", "p"), true),
            (ask("patch", "", "persistentvolumes", "", "", "v"), true),
            (ask("update", "", "persistentvolumes", "", "", "v"), false),
            (ask("delete", "", "persistentvolumes", "", "", "v"), false),
            (ask("patch", "", "persistentvolumes", "status", "", "v"), false),
            (ask("patch", "", "persistentvolumeclaims", "", "default", "c"), false),
            (ask("create", "", "pods", "", "default", ""), false),
            (ask("create", "", "secrets", "", "default", ""), false),
            (ask("get", "", "secrets", "", "default", "s"), true),
            (ask("get", "", "pods", "exec", "default", "p"), false),
            (ask("get", "", "pods", "portforward", "default", "p"), false),
            (ask("get", "", "pods", "proxy", "default", "p"), false),
            (ask("get", "", "services", "proxy", "default", "s"), false),
            (ask("get", "", "nodes", "proxy", "", "b"), false),
            (ask("list", "apps", "deployments", "", "default", ""), false),
            (ask("watch", "networking.k8s.io", "ingresses", "", "", ""), true),
            (ask("list", "networking.k8s.io", "ingressclasses", "", "", ""), true),
            (ask("patch", "networking.k8s.io", "ingresses", "status", "default", "i"), false),
            (ask("update", "networking.k8s.io", "ingresses", "", "default", "i"), false),
            (ask("watch", "gateway.networking.k8s.io", "gateways", "", "", ""), true),
            (ask("list", "gateway.networking.k8s.io", "referencegrants", "", "", ""), true),
            (ask("patch", "gateway.networking.k8s.io", "gateways", "status", "default", "g"), false),
            (ask("update", "gateway.networking.k8s.io", "httproutes", "", "default", "r"), false),
            (ask("watch", "apiextensions.k8s.io", "customresourcedefinitions", "", "", ""), true),
            (ask("create", "apiextensions.k8s.io", "customresourcedefinitions", "", "", ""), false),
            (ask("impersonate", "", "users", "", "", "admin"), false),
            (ask("create", "certificates.k8s.io", "podcertificaterequests", "", "default", ""), true),
            (ask("update", "certificates.k8s.io", "podcertificaterequests", "", "default", "r"), false),
            (ask("patch", "certificates.k8s.io", "podcertificaterequests", "status", "default", "r"), false),
            (ask("create", "certificates.k8s.io", "clustertrustbundles", "", "", ""), false),
            (ask("watch", "certificates.k8s.io", "clustertrustbundles", "", "", ""), true),
        ] {
            assert_eq!(allows("a", &asked), expected, "{asked:?}");
        }
        for path in ["/metrics", "/debug/api_priority_and_fairness/dump_requests", "/openapi/v2"] {
            let asked = Attributes { verb: "get", path: Some(path), ..Attributes::default() };
            assert!(!allows("a", &asked), "{path}");
        }
    }

    #[test]
    fn labels_that_others_rely_on_are_not_the_agents() {
        for (key, expected) in [
            ("own", ""),
            ("example.com/x", ""),
            ("notkubernetes.io/x", ""),
            ("kubernetes.io/hostname", ""),
            ("node.kubernetes.io/instance-type", ""),
            ("sub.node.kubernetes.io/x", ""),
            ("node-restriction.kubernetes.io/team", "node-restriction.kubernetes.io/team"),
            ("a.node-restriction.kubernetes.io/team", "a.node-restriction.kubernetes.io/team"),
            ("node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/control-plane"),
            ("k8s.io/x", "k8s.io/x"),
        ] {
            assert_eq!(restricted([key.to_owned()].iter()), expected, "{key}");
        }
    }

    #[test]
    fn a_node_says_of_its_volumes_that_they_are_made_or_gone_and_nothing_else() {
        let old = json!({"metadata": {"name": "v", "resourceVersion": "1", "labels": {volumes::NODE: "a"},
            "finalizers": ["x/y", volumes::FINALIZER]}, "spec": {"capacity": {"storage": "1Gi"}}});
        let mut going = old.clone();
        going["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        let with = |old: &Value, patch: Value| {
            let mut new = old.clone();
            new["metadata"]["resourceVersion"] = "2".into();
            for (field, value) in patch.as_object().into_iter().flatten() {
                match field.as_str() {
                    "spec" => new["spec"] = value.clone(),
                    field => new["metadata"][field] = value.clone(),
                }
            }
            new
        };
        let made = json!({"annotations": {volumes::MADE: "true"}});
        let (none, rest) = (json!({"finalizers": []}), json!({"finalizers": ["x/y"]}));
        for (old, patch, expected) in [
            (&old, json!({}), true),
            (&old, made.clone(), true),
            (&old, rest.clone(), false),
            (&going, rest, true),
            (&going, none, false),
            (&going, json!({"finalizers": [volumes::FINALIZER]}), false),
            (&old, json!({"labels": {volumes::NODE: "b"}}), false),
            (&old, json!({"annotations": {volumes::MADE: "true", "pv.kubernetes.io/provisioned-by": "x"}}), false),
            (&old, json!({"spec": {"capacity": {"storage": "2Gi"}}}), false),
        ] {
            assert_eq!(keeps("a", &with(old, patch.clone()), old), expected, "{patch}");
        }
        assert!(!keeps("b", &with(&old, made), &old), "it is another's");
    }

    #[test]
    fn a_pod_names_objects_in_many_places() {
        let pod = json!({"metadata": {"name": "web-0"}, "spec": {
            "imagePullSecrets": [{"name": "pull"}],
            "volumes": [
                {"secret": {"secretName": "files"}}, {"persistentVolumeClaim": {"claimName": "disk"}},
                {"name": "scratch", "ephemeral": {}},
                {"projected": {"sources": [{"configMap": {"name": "root"}}, {"secret": {"name": "part"}}]}},
            ],
            "initContainers": [{"envFrom": [{"configMapRef": {"name": "all"}}]}],
            "containers": [{"env": [{"valueFrom": {"secretKeyRef": {"name": "key"}}}]}],
        }});
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
            ("persistentvolumeclaims", "web-0-scratch", true),
            ("persistentvolumeclaims", "web-1-scratch", false),
            ("persistentvolumeclaims", "web-0-disk", false),
        ] {
            assert_eq!(refers(&pod, kind, name), expected, "{kind} {name}");
        }
    }
}
