//! What a caller may do. There are no roles yet: whoever proved who it is may do all, except that node agents write only
//! what is theirs, and strangers see only health and version.

use coracle_api::status::Status;

use http::Method;

use crate::catalog::Resource;
use crate::edge::call::Call;
use crate::identity::Identity;
use crate::server::Shared;
use crate::store::Seen;

/// What is asked for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Attributes<'a> {
    pub verb: &'a str,
    pub group: &'a str,
    pub resource: &'a str,
    pub subresource: &'a str,
    pub namespace: &'a str,
    pub name: &'a str,
    /// Of what is no resource.
    pub path: Option<&'a str>,
}

/// Paths that everybody may read.
fn is_public(path: &str) -> bool {
    let health = |prefix: &str| path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    ["/healthz", "/livez", "/readyz", "/version"].into_iter().any(health)
}

/// Whether `identity` may do this.
pub(crate) fn allows(identity: &Identity, asked: &Attributes<'_>) -> bool {
    if !identity.is_authenticated() {
        return asked.verb == "get" && asked.path.is_some_and(is_public);
    }
    match identity.node() {
        Some(node) => allows_node(node, asked),
        None => true,
    }
}

/// A node agent reads what it likes, and writes its own node, lease and events, and the status of pods. Whether a pod is
/// its own is looked at where the pod is known.
fn allows_node(node: &str, asked: &Attributes<'_>) -> bool {
    let reads = matches!(asked.verb, "get" | "list" | "watch");
    if reads || asked.path.is_some() {
        return reads || asked.path.is_some();
    }
    match (asked.group, asked.resource, asked.subresource) {
        ("", "nodes", "" | "status") => asked.verb == "create" || asked.name == node,
        ("coordination.k8s.io", "leases", "") => {
            asked.namespace == "kube-node-lease" && (asked.verb == "create" || asked.name == node)
        }
        ("" | "events.k8s.io", "events", "") => true,
        ("", "pods", "status") => true,
        ("", "pods", "") => asked.verb == "delete",
        ("", "serviceaccounts", "token") => asked.verb == "create",
        ("authentication.k8s.io" | "authorization.k8s.io", _, _) => asked.verb == "create",
        _ => false,
    }
}

/// A node agent changes only pods that are bound to its node.
pub(crate) fn own_pods_only(server: &Shared, call: &Call, resource: &Resource) -> Result<(), Status> {
    let Some(node) = call.identity.node() else { return Ok(()) };
    let writes = !matches!(call.method, Method::GET | Method::HEAD);
    if !writes || (resource.row.group, resource.row.resource) != ("", "pods") {
        return Ok(());
    }
    let Some(record) = server.store.get(resource, &resource.record_name(call.namespace(), call.name())) else {
        return Ok(());
    };
    if Seen::new(resource, &record).stored()["spec"]["nodeName"] == node {
        return Ok(());
    }
    let message = format!("node {node} can only update pod status for pods with spec.nodeName set to itself");
    Err(resource.forbidden(call.name(), message))
}

/// The refusal, in the reference's words.
pub(crate) fn refusal(identity: &Identity, asked: &Attributes<'_>) -> Status {
    let user = coracle_api::meta::text::quote(&identity.user);
    if let Some(path) = asked.path {
        let message = format!("User {user} cannot {} path {}", asked.verb, coracle_api::meta::text::quote(path));
        return Status::forbidden("", "", "", message);
    }
    let resource = match asked.subresource {
        "" => asked.resource.to_owned(),
        subresource => format!("{}/{subresource}", asked.resource),
    };
    let place = match asked.namespace {
        "" => "at the cluster scope".to_owned(),
        namespace => format!("in the namespace \"{namespace}\""),
    };
    let message =
        format!("User {user} cannot {} resource \"{resource}\" in API group \"{}\" {place}", asked.verb, asked.group);
    Status::forbidden(asked.group, asked.resource, asked.name, message)
}

/// The verb of a request for a resource.
pub(crate) fn verb(call: &Call) -> &'static str {
    let named = call.target.name.is_some();
    match call.method.as_str() {
        "POST" => "create",
        "PUT" => "update",
        "PATCH" => "patch",
        "DELETE" if named => "delete",
        "DELETE" => "deletecollection",
        _ if call.target.watch => "watch",
        _ if named => "get",
        _ if call.query.flag("watch") == Some(true) => "watch",
        _ => "list",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_write_only_what_is_theirs() {
        let node = Identity::authenticated("system:node:a", vec!["system:nodes".to_owned()]);
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
            (ask("list", "", "secrets", "", "default", ""), true),
        ] {
            assert_eq!(allows(&node, &asked), expected, "{asked:?}");
        }
    }

    #[test]
    fn strangers_see_health_and_version() {
        let stranger = Identity::anonymous();
        for (path, expected) in
            [("/healthz", true), ("/readyz/etcd", true), ("/version", true), ("/versions", false), ("/api", false)]
        {
            let asked = Attributes { verb: "get", path: Some(path), ..Attributes::default() };
            assert_eq!(allows(&stranger, &asked), expected, "{path}");
        }
    }
}
