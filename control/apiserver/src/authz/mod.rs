//! What a caller may do: what a role says that is bound to it ([`rbac`]); node agents beside it what their pods need
//! ([`node`]); strangers see health and version.

pub(crate) mod node;
pub(crate) mod rbac;

use coracle_api::status::Status;

use crate::cluster::Cluster;
use crate::identity::Identity;
use crate::request::call::Call;
use crate::request::path;
pub(crate) use crate::roles::Attributes;

/// Paths that everybody may read.
fn is_public(path: &str) -> bool {
    let health = |prefix: &str| path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    ["/healthz", "/livez", "/readyz", "/version"].into_iter().any(health)
}

/// Whether `identity` may do everything, whatever the roles say: it could not be shut out by a mistake in them.
fn is_master(identity: &Identity) -> bool {
    identity.is_in("system:masters")
}

/// Whether `identity` may do this.
pub(crate) fn allows(cluster: &Cluster, identity: &Identity, asked: &Attributes<'_>) -> bool {
    is_master(identity)
        || asked.verb == "get" && asked.path.is_some_and(is_public)
        || identity.node().is_some_and(|node| node::allows(node, asked))
        || rbac::allows(cluster, identity, asked)
}

/// Refuses what `identity` may not do.
pub(crate) fn check(cluster: &Cluster, identity: &Identity, asked: &Attributes<'_>) -> Result<(), Status> {
    if allows(cluster, identity, asked) { Ok(()) } else { Err(refusal(identity, asked)) }
}

/// The refusal, in the reference's words.
fn refusal(identity: &Identity, asked: &Attributes<'_>) -> Status {
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

/// The verb of a request for a resource. Methods that mean nothing here have none: only who may do everything sends them on.
pub(crate) fn verb(call: &Call) -> &'static str {
    path::verb(&call.method, &call.target, &call.query)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_sees_health_and_version() {
        for (path, expected) in
            [("/healthz", true), ("/readyz/etcd", true), ("/version", true), ("/versions", false), ("/api", false)]
        {
            assert_eq!(is_public(path), expected, "{path}");
        }
    }
}
