//! What a caller may do. There are no roles yet: whoever proved who it is may do all, except that node agents see and write
//! only what they need ([`node`]), and strangers see only health and version.

pub(crate) mod node;

use coracle_api::status::Status;

use crate::identity::Identity;
use crate::request::call::Call;

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

impl<'a> Attributes<'a> {
    /// What a request for a resource asks for.
    pub fn of(call: &'a Call, verb: &'a str) -> Attributes<'a> {
        Attributes {
            verb,
            group: &call.target.group,
            resource: &call.target.resource,
            subresource: call.subresource(),
            namespace: call.namespace().unwrap_or_default(),
            name: call.name(),
            path: None,
        }
    }
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
        Some(node) => node::allows(node, asked),
        None => true,
    }
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
