//! What all policies say, and the labels of namespaces that they name.

use std::collections::BTreeMap;
use std::sync::Arc;

use imbl::{HashMap, OrdMap};
use k8s_openapi::api::networking::v1::NetworkPolicy;

use crate::rule::{NamespaceLabels, Policy};

/// Policies and namespaces. A clone shares what does not change, so that a change costs the same however much there is. Their number has
/// the bound of what the API server stores.
#[derive(Clone, Default)]
pub struct Rules {
    /// By namespace, of those that have some, and name.
    policies: HashMap<Arc<str>, OrdMap<Arc<str>, Arc<Policy>>>,
    pub(crate) namespaces: NamespaceLabels,
}

impl Rules {
    /// A policy is so now; whether it said something else before.
    pub fn put(&mut self, object: &NetworkPolicy) -> bool {
        let text = |text: &Option<String>| Arc::<str>::from(text.as_deref().unwrap_or_default());
        let (namespace, name) = (text(&object.metadata.namespace), text(&object.metadata.name));
        let policy = Policy::of(object);
        let of_namespace = self.policies.entry(namespace).or_default();
        let is_new = of_namespace.get(&name).is_none_or(|before| **before != policy);
        if is_new {
            of_namespace.insert(name, Arc::new(policy));
        }
        is_new
    }

    /// A policy is gone; whether there was one.
    pub fn remove(&mut self, namespace: &str, name: &str) -> bool {
        let Some(of_namespace) = self.policies.get_mut(namespace) else { return false };
        let was_there = of_namespace.remove(name).is_some();
        if of_namespace.is_empty() {
            self.policies.remove(namespace);
        }
        was_there
    }

    /// A namespace has these labels; whether it had others.
    pub fn label(&mut self, namespace: &str, labels: BTreeMap<String, String>) -> bool {
        let is_new = self.namespaces.get(namespace).is_none_or(|before| **before != labels);
        if is_new {
            self.namespaces.insert(namespace.into(), Arc::new(labels));
        }
        is_new
    }

    /// A namespace is gone; whether it was known.
    pub fn forget(&mut self, namespace: &str) -> bool {
        self.namespaces.remove(namespace).is_some()
    }

    /// Whether nothing is said, so that everybody may do everything.
    pub fn is_empty(&self) -> bool {
        self.policies.is_empty()
    }

    /// The policies of a namespace, if it has any.
    pub(crate) fn of(&self, namespace: &str) -> Option<&OrdMap<Arc<str>, Arc<Policy>>> {
        self.policies.get(namespace)
    }
}
