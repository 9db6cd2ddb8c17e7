//! Objects as watches tell of them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use serde_json::Value;

use crate::{Class, Gateway, Grant, HttpRoute, KINDS, Key, Meta, Objects};

/// What a watch says.
#[derive(Debug, Clone)]
pub enum Said {
    /// All objects are about to come.
    Listing,
    /// One is so: its metadata and all else.
    Object(Meta, Value),
    /// All have come.
    Listed,
    /// One is gone.
    Gone(Key),
    /// The kind's definition is not there, so that nobody watches.
    Undefined,
}

/// What has been heard.
#[derive(Debug, Default)]
pub struct Known {
    /// The objects.
    pub objects: Objects,
    /// By kind, in the order of [`KINDS`].
    kinds: [Kind; KINDS.len()],
    namespaces: Kind,
}

#[derive(Debug, Default)]
struct Kind {
    is_listed: bool,
    is_defined: bool,
    /// Of a list that is being read: what is missing in it is gone.
    listing: Option<HashSet<Key>>,
    /// What was said last of each: a status is compared with it.
    raw: HashMap<Key, Value>,
}

impl Kind {
    /// Takes what was said; says what is gone.
    fn take(&mut self, said: &Said) -> Vec<Key> {
        self.is_defined = !matches!(said, Said::Undefined);
        let gone: Vec<Key> = match said {
            Said::Listing => {
                self.listing = Some(HashSet::new());
                Vec::new()
            }
            Said::Object(meta, _) => {
                if let Some(listing) = &mut self.listing {
                    listing.insert(meta.key());
                }
                Vec::new()
            }
            Said::Listed => {
                self.is_listed = true;
                let seen = self.listing.take().unwrap_or_default();
                self.raw.keys().filter(|key| !seen.contains(*key)).cloned().collect()
            }
            Said::Gone(key) => vec![key.clone()],
            Said::Undefined => {
                (self.is_listed, self.listing) = (true, None);
                self.raw.keys().cloned().collect()
            }
        };
        gone.iter().for_each(|key| drop(self.raw.remove(key)));
        gone
    }
}

impl Known {
    /// Whether all was heard of once: of half a list nothing is known but that there is more.
    pub fn is_complete(&self) -> bool {
        let is_defined = self.kinds.iter().any(|kind| kind.is_defined);
        self.kinds.iter().all(|kind| kind.is_listed) && (!is_defined || self.namespaces.is_listed)
    }

    /// Whether a kind, by its place in [`KINDS`], is there.
    pub fn is_defined(&self, kind: usize) -> bool {
        self.kinds.get(kind).is_some_and(|kind| kind.is_defined)
    }

    /// Objects of a kind, by its place in [`KINDS`], as they were said.
    pub fn raw(&self, kind: usize) -> impl Iterator<Item = (&Key, &Value)> {
        self.kinds.get(kind).into_iter().flat_map(|kind| &kind.raw)
    }

    /// Takes what was said of a kind, by its place in [`KINDS`]. What of an object cannot be read is the error: it is as if that were not
    /// there.
    pub fn take(&mut self, kind: usize, said: Said) -> Result<(), serde_json::Error> {
        let Some(of) = self.kinds.get_mut(kind) else { return Ok(()) };
        for key in of.take(&said) {
            remove(kind, &key, &mut self.objects);
        }
        let Said::Object(meta, data) = said else { return Ok(()) };
        let key = meta.key();
        let put = put(kind, meta, &data["spec"], &mut self.objects);
        if put.is_err() {
            remove(kind, &key, &mut self.objects);
        }
        self.kinds[kind].raw.insert(key, data);
        put
    }

    /// Takes what was said of namespaces; of one that is there, its labels.
    pub fn take_namespace(&mut self, said: &Said, labels: BTreeMap<String, String>) {
        for (_, name) in self.namespaces.take(said) {
            self.objects.namespaces.remove(&name);
        }
        if let Said::Object(meta, _) = said {
            self.namespaces.raw.insert(meta.key(), Value::Null);
            self.objects.namespaces.insert(meta.name.clone(), labels);
        }
    }
}

fn put(kind: usize, meta: Meta, spec: &Value, objects: &mut Objects) -> Result<(), serde_json::Error> {
    let key = meta.key();
    match KINDS[kind].0 {
        "GatewayClass" => drop(objects.classes.insert(meta.name.clone(), Class::read(meta, spec))),
        "Gateway" => drop(objects.gateways.insert(key, Gateway::read(meta, spec)?)),
        "HTTPRoute" => {
            let route = HttpRoute::read(meta, spec)?.after(objects.routes.get(&key));
            objects.routes.insert(key, route);
        }
        "GRPCRoute" => drop(objects.grpc_routes.insert(key, HttpRoute::read(meta, spec)?)),
        _ => drop(objects.grants.insert(key, Grant::read(&meta, spec)?)),
    }
    Ok(())
}

fn remove(kind: usize, key: &Key, objects: &mut Objects) {
    match KINDS[kind].0 {
        "GatewayClass" => drop(objects.classes.remove(&key.1)),
        "Gateway" => drop(objects.gateways.remove(key)),
        "HTTPRoute" => drop(objects.routes.remove(key)),
        "GRPCRoute" => drop(objects.grpc_routes.remove(key)),
        _ => drop(objects.grants.remove(key)),
    }
}

/// The place in [`KINDS`] of the kind that a definition of this name is for, as `gateways.gateway.networking.k8s.io`.
pub fn defined_by(definition: &str) -> Option<usize> {
    let (plural, group) = definition.split_once('.')?;
    KINDS.iter().position(|(_, known, _)| *known == plural).filter(|_| group == crate::GROUP)
}

/// A namespace's or class' key.
pub fn named(name: &str) -> Key {
    (Arc::from(""), Arc::from(name))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(name: &str) -> Said {
        let meta = Meta { namespace: "n".into(), name: name.into(), ..Meta::default() };
        Said::Object(meta, json!({"spec": {"gatewayClassName": "coracle"}, "status": {"of": name}}))
    }

    #[test]
    fn lists_are_whole_before_anything_is_missing_in_them() {
        let mut known = Known::default();
        assert!(!known.is_complete());
        for kind in [0, 2, 3, 4] {
            known.take(kind, Said::Undefined).unwrap();
        }
        known.take(1, Said::Listing).unwrap();
        known.take(1, object("a")).unwrap();
        known.take(1, object("b")).unwrap();
        assert!(!known.is_complete());
        known.take(1, Said::Listed).unwrap();
        assert!(!known.is_complete(), "namespaces are not known");
        known.take_namespace(&Said::Listed, BTreeMap::new());
        assert!(known.is_complete());
        let names = |known: &Known| known.objects.gateways.keys().map(|key| key.1.to_string()).collect::<Vec<_>>();
        assert_eq!(names(&known), ["a", "b"]);
        known.take(1, Said::Listing).unwrap();
        known.take(1, object("b")).unwrap();
        assert_eq!(names(&known), ["a", "b"], "until the list has ended");
        known.take(1, Said::Listed).unwrap();
        assert_eq!(names(&known), ["b"]);
        let odd = Said::Object(Meta { namespace: "n".into(), name: "b".into(), ..Meta::default() }, json!({"spec": 7}));
        assert!(known.take(1, odd).is_err() && names(&known).is_empty());
        known.take(1, object("c")).unwrap();
        known.take(1, Said::Undefined).unwrap();
        assert!(names(&known).is_empty() && known.raw(1).count() == 0 && known.is_complete());
        let found = ["gateways.gateway.networking.k8s.io", "gateways.example.com", "gateways"].map(defined_by);
        assert_eq!(found, [Some(1), None, None]);
    }
}
