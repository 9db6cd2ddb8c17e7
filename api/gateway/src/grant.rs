//! ReferenceGrants: who may refer to objects of another namespace.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;

use crate::kinds::Meta;

/// A ReferenceGrant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    namespace: Arc<str>,
    spec: Spec,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct Spec {
    from: Vec<From>,
    to: Vec<To>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct From {
    group: String,
    kind: String,
    namespace: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct To {
    group: String,
    kind: String,
    name: Option<String>,
}

/// A reference.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reference<'a> {
    /// Kind of who refers, of this group, and its namespace.
    pub from: (&'static str, &'a str),
    /// Kind (of the core group), namespace and name.
    pub to: (&'static str, &'a str, &'a str),
}

impl Grant {
    /// Reads one.
    pub fn read(meta: &Meta, spec: &Value) -> Result<Grant, serde_json::Error> {
        Ok(Grant { namespace: meta.namespace.clone(), spec: Spec::deserialize(spec)? })
    }

    pub(crate) fn permits(&self, reference: Reference<'_>) -> bool {
        let ((kind, namespace), (to_kind, to_namespace, name)) = (reference.from, reference.to);
        *self.namespace == *to_namespace
            && self.spec.from.iter().any(|from| {
                (from.group.as_str(), from.kind.as_str(), from.namespace.as_str()) == (crate::GROUP, kind, namespace)
            })
            && self.spec.to.iter().any(|to| {
                let is_named = to.name.as_deref().is_none_or(|of| of.is_empty() || of == name);
                (to.group.as_str(), to.kind.as_str()) == ("", to_kind) && is_named
            })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_grant_is_for_its_namespace_for_kinds_and_for_names() {
        let grant = |to: Value| {
            let meta = Meta { namespace: "backends".into(), ..Meta::default() };
            let from = json!({"group": crate::GROUP, "kind": "HTTPRoute", "namespace": "routes"});
            Grant::read(&meta, &json!({"from": [from], "to": [to]})).unwrap()
        };
        let all = || json!({"group": "", "kind": "Service"});
        let one = || json!({"group": "", "kind": "Service", "name": "web"});
        let reference = Reference { from: ("HTTPRoute", "routes"), to: ("Service", "backends", "web") };
        for (grant, reference, expected) in [
            (grant(all()), reference, true),
            (grant(one()), reference, true),
            (grant(one()), Reference { to: ("Service", "backends", "other"), ..reference }, false),
            (grant(all()), Reference { to: ("Service", "elsewhere", "web"), ..reference }, false),
            (grant(all()), Reference { to: ("Secret", "backends", "web"), ..reference }, false),
            (grant(all()), Reference { from: ("HTTPRoute", "strangers"), ..reference }, false),
            (grant(all()), Reference { from: ("Gateway", "routes"), ..reference }, false),
        ] {
            assert_eq!(grant.permits(reference), expected, "{reference:?}");
        }
    }
}
