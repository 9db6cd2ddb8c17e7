//! What expressions are answered that ask who may do what.

use coracle_api::cel::admission::{Asked, Authorizer, Decision};

use super::review::Review;
use crate::authz::{self, Attributes};
use crate::identity::Identity;

impl Authorizer for Review<'_> {
    fn request_resource(&self) -> Asked {
        Asked {
            path: None,
            group: self.of.group.clone(),
            resource: self.of.resource.clone(),
            subresource: self.at.subresource.to_owned(),
            namespace: self.namespace().to_owned(),
            name: self.name.clone(),
        }
    }

    fn check(&self, account: Option<(&str, &str)>, asked: &Asked, verb: &str) -> Decision {
        let account = account.map(|(namespace, name)| {
            let groups = vec!["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")];
            Identity::authenticated(format!("system:serviceaccount:{namespace}:{name}"), groups)
        });
        let who = account.as_ref().unwrap_or(self.at.caller);
        let attributes = Attributes {
            verb,
            group: &asked.group,
            resource: &asked.resource,
            subresource: &asked.subresource,
            namespace: &asked.namespace,
            name: &asked.name,
            path: asked.path.as_deref(),
        };
        let allowed = authz::allows(self.at.cluster, who, &attributes);
        let reason = if allowed { authz::rbac::reason(self.at.cluster, who, &attributes) } else { None };
        let reason = reason.map(|reason| format!("RBAC: allowed by {reason}")).unwrap_or_default();
        Decision { allowed, reason }
    }
}
