//! Who is calling.

use std::collections::BTreeMap;

/// Every caller that proved who it is belongs to this group.
pub(crate) const AUTHENTICATED: &str = "system:authenticated";
/// Callers that showed nothing.
pub(crate) const ANONYMOUS: &str = "system:anonymous";
/// Their group.
pub(crate) const UNAUTHENTICATED: &str = "system:unauthenticated";

/// A new random id. The generator of the thread is used: a system call for each would cost more than all else here.
pub(crate) fn new_uuid() -> String {
    uuid::Builder::from_random_bytes(rand::random()).into_uuid().to_string()
}

/// A caller, after authentication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// User name.
    pub user: String,
    /// Groups, `system:authenticated` or `system:unauthenticated` among them.
    pub groups: Vec<String>,
    /// Unique id of the user, if known.
    pub uid: String,
    /// Further facts, as `authentication.kubernetes.io/pod-name`.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl Identity {
    /// A caller that proved to be `user` in `groups`.
    pub fn authenticated(user: impl Into<String>, mut groups: Vec<String>) -> Identity {
        if !groups.iter().any(|group| group == AUTHENTICATED) {
            groups.push(AUTHENTICATED.to_owned());
        }
        Identity { user: user.into(), groups, uid: String::new(), extra: BTreeMap::new() }
    }

    /// A caller that showed nothing.
    pub(crate) fn anonymous() -> Identity {
        Identity {
            user: ANONYMOUS.to_owned(),
            groups: vec![UNAUTHENTICATED.to_owned()],
            uid: String::new(),
            extra: BTreeMap::new(),
        }
    }

    /// Whether it belongs to `group`.
    pub(crate) fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|member| member == group)
    }

    /// Whether it proved who it is.
    pub(crate) fn is_authenticated(&self) -> bool {
        self.is_in(AUTHENTICATED)
    }

    /// Whether it is a part of the cluster itself, which has its own turns. Only the cluster's authority and this process
    /// give out these names.
    pub(crate) fn is_duty(&self) -> bool {
        const PARTS: [&str; 3] = ["system:kube-controller-manager", "system:kube-scheduler", "system:apiserver"];
        PARTS.contains(&self.user.as_str()) || self.node().is_some()
    }

    /// The node's name, when it is a node agent.
    pub fn node(&self) -> Option<&str> {
        self.user.strip_prefix("system:node:").filter(|_| self.is_in("system:nodes"))
    }
}
