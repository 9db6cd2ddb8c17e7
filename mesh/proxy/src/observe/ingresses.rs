//! Requests by the Ingress whose rule took them. One load and one look-up a request; the table is made anew when an Ingress answers
//! its first one.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use coracle_discovery::Origin;
use http::StatusCode;

use super::stats::Classes;

/// Ingresses that are counted; more are not told apart, and not counted.
const INGRESSES_MAX: usize = 5000;

/// Namespace and name.
type Key = (Arc<str>, Arc<str>);

/// Requests by Ingress.
#[derive(Debug, Default)]
pub struct ByIngress(ArcSwap<HashMap<Key, Arc<Classes>>>);

impl ByIngress {
    /// One more was answered so.
    pub(crate) fn count(&self, origin: &Origin, status: StatusCode) {
        let key = (origin.namespace.clone(), origin.name.clone());
        if let Some(classes) = self.0.load().get(&key) {
            return classes.count(Some(status));
        }
        self.0.rcu(|all| {
            let mut all = HashMap::clone(all);
            if all.len() < INGRESSES_MAX {
                all.entry(key.clone()).or_default();
            }
            all
        });
        if let Some(classes) = self.0.load().get(&key) {
            classes.count(Some(status));
        }
    }

    /// All that is counted: namespace, name, class, how many.
    pub(crate) fn each(&self, mut tell: impl FnMut(&str, &str, &str, u64)) {
        let all = self.0.load();
        let mut keys: Vec<_> = all.iter().collect();
        keys.sort_unstable_by(|a, b| a.0.cmp(b.0));
        for ((namespace, name), classes) in keys {
            classes.all().for_each(|(class, count)| tell(namespace, name, class, count));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_ingress_is_counted_for_itself() {
        let by_ingress = ByIngress::default();
        let origin = |name: &str| Origin { kind: "Ingress", namespace: "n".into(), name: name.into(), uid: "u".into() };
        for (name, status) in [("a", 200), ("a", 200), ("b", 404), ("a", 500)] {
            by_ingress.count(&origin(name), StatusCode::from_u16(status).unwrap());
        }
        let mut told = Vec::new();
        by_ingress.each(|_, name, class, count| {
            if count > 0 {
                told.push(format!("{name} {class} {count}"));
            }
        });
        assert_eq!(told, ["a 2xx 2", "a 5xx 1", "b 4xx 1"]);
    }
}
