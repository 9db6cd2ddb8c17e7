//! Objects as watches tell of them.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::Value;

use crate::{Class, Gateway, Grant, KINDS, Key, Meta, Objects, Route, RouteKind, Verdict};

/// What a watch says.
#[derive(Debug, Clone, PartialEq)]
pub enum Said {
    /// All objects are about to come. Of a list that fails before its first object nothing is said: it may never come.
    Listing,
    /// One is so: its metadata, its `spec`, and what else of it is kept ([`Known::kept`]).
    Object(Meta, Value, Value),
    /// All have come.
    Listed,
    /// One is gone.
    Gone(Key),
    /// The kind's definition is not there, so that nobody watches.
    Undefined,
    /// The kind's definition is of this version of Gateway API, as its annotation says.
    Bundle(Option<String>),
}

/// Versions whose definitions are known, by their second numbers: v1.0 to v1.4.
const MINOR_MAX: u32 = 4;

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
    bundle: Option<String>,
    /// All there are, also those that cannot be read.
    kept: HashMap<Key, Value>,
}

impl Kind {
    /// Takes what was said; says what is gone, and whether something else is known than before of the kind itself.
    fn take(&mut self, said: &Said) -> (Vec<Key>, bool) {
        let before = (self.is_listed, self.is_defined);
        let gone: Vec<Key> = match said {
            Said::Listing => {
                // That there was nothing without a definition says nothing of what there is with one.
                self.is_listed &= self.is_defined;
                self.listing = Some(HashSet::new());
                Vec::new()
            }
            Said::Object(meta, ..) => {
                if let Some(listing) = &mut self.listing {
                    listing.insert(meta.key());
                }
                Vec::new()
            }
            Said::Listed => {
                self.is_listed = true;
                let seen = self.listing.take().unwrap_or_default();
                self.kept.keys().filter(|key| !seen.contains(*key)).cloned().collect()
            }
            Said::Gone(key) => vec![key.clone()],
            Said::Undefined => {
                // Of which version it is was said before, where it is there and not served yet.
                (self.is_listed, self.listing) = (true, None);
                self.kept.keys().cloned().collect()
            }
            Said::Bundle(version) => {
                let is_new = self.bundle != *version;
                self.bundle.clone_from(version);
                return (Vec::new(), is_new);
            }
        };
        self.is_defined = !matches!(said, Said::Undefined);
        gone.iter().for_each(|key| drop(self.kept.remove(key)));
        (gone, before != (self.is_listed, self.is_defined))
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

    /// Whether definitions are of versions that are known, as the condition `SupportedVersion` of a class says.
    pub fn versions(&self) -> Verdict {
        let is_known = |version: &str| {
            let mut numbers = version.strip_prefix("v1.").unwrap_or_default().split('.');
            numbers.next().and_then(|minor| minor.parse().ok()).is_some_and(|minor: u32| minor <= MINOR_MAX)
        };
        let defined = KINDS.iter().zip(&self.kinds).filter(|(_, kind)| kind.is_defined);
        let odd: Vec<String> = defined
            .filter(|(_, kind)| !kind.bundle.as_deref().is_some_and(is_known))
            .map(|((name, ..), kind)| format!("{name} of {}", kind.bundle.as_deref().unwrap_or("no version")))
            .collect();
        if odd.is_empty() {
            return Verdict::yes("SupportedVersion");
        }
        let words = format!("there are definitions of {}: v1.0 to v1.{MINOR_MAX} are known", odd.join(", "));
        Verdict::no("UnsupportedVersion", words)
    }

    /// What is kept of the objects of a kind, by its place in [`KINDS`].
    pub fn kept(&self, kind: usize) -> impl Iterator<Item = (&Key, &Value)> {
        self.kinds.get(kind).into_iter().flat_map(|kind| &kind.kept)
    }

    /// Takes what was said of a kind, by its place in [`KINDS`]; says whether anything means something else than before: a status, which
    /// is what changes most, does not. What of an object cannot be read is the error, which is such a change: it is as if that were not
    /// there.
    pub fn take(&mut self, kind: usize, said: Said) -> Result<bool, serde_json::Error> {
        let Some(of) = self.kinds.get_mut(kind) else { return Ok(false) };
        let (gone, mut is_new) = of.take(&said);
        for key in gone {
            is_new |= remove(kind, &key, &mut self.objects);
        }
        let Said::Object(meta, spec, kept) = said else { return Ok(is_new) };
        let key = meta.key();
        of.kept.insert(key.clone(), kept);
        let put = put(kind, meta, &spec, &mut self.objects);
        if put.is_err() {
            remove(kind, &key, &mut self.objects);
        }
        put.map(|put| put || is_new)
    }

    /// Takes what was said of namespaces; of one that is there, its labels. Says whether that means anything: labels do where a listener
    /// looks at them.
    pub fn take_namespace(&mut self, said: Said, labels: BTreeMap<String, String>) -> bool {
        let (gone, mut is_new) = self.namespaces.take(&said);
        let mut are_others = false;
        for (_, name) in gone {
            are_others |= self.objects.namespaces.remove(&name).is_some();
        }
        if let Said::Object(meta, ..) = said {
            self.namespaces.kept.insert(meta.key(), Value::Null);
            are_others |= set(&mut self.objects.namespaces, meta.name, labels);
        }
        is_new |= are_others && self.objects.gateways.values().any(Gateway::looks_at_labels);
        is_new
    }
}

/// Says whether it was another before, or none.
fn set<K: Ord, T: PartialEq>(all: &mut BTreeMap<K, T>, key: K, value: T) -> bool {
    let is_new = all.get(&key) != Some(&value);
    if is_new {
        all.insert(key, value);
    }
    is_new
}

fn put(kind: usize, meta: Meta, spec: &Value, objects: &mut Objects) -> Result<bool, serde_json::Error> {
    let key = meta.key();
    Ok(match KINDS[kind].0 {
        "GatewayClass" => set(&mut objects.classes, meta.name.clone(), Class::read(meta, spec)),
        "Gateway" => set(&mut objects.gateways, key, Gateway::read(meta, spec)?),
        "HTTPRoute" => {
            let route = Route::read(RouteKind::Http, meta, spec)?.after(objects.routes.get(&key));
            set(&mut objects.routes, key, route)
        }
        "GRPCRoute" => {
            let route = Route::read(RouteKind::Grpc, meta, spec)?.after(objects.grpc_routes.get(&key));
            set(&mut objects.grpc_routes, key, route)
        }
        _ => set(&mut objects.grants, key, Grant::read(&meta, spec)?),
    })
}

/// Says whether it was there.
fn remove(kind: usize, key: &Key, objects: &mut Objects) -> bool {
    match KINDS[kind].0 {
        "GatewayClass" => objects.classes.remove(&key.1).is_some(),
        "Gateway" => objects.gateways.remove(key).is_some(),
        "HTTPRoute" => objects.routes.remove(key).is_some(),
        "GRPCRoute" => objects.grpc_routes.remove(key).is_some(),
        _ => objects.grants.remove(key).is_some(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn meta(name: &str) -> Meta {
        Meta { namespace: "n".into(), name: name.into(), ..Meta::default() }
    }

    fn object(name: &str) -> Said {
        Said::Object(meta(name), json!({"gatewayClassName": "coracle"}), json!({"status": {"of": name}}))
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
        known.take_namespace(Said::Listed, BTreeMap::new());
        assert!(known.is_complete());
        let names = |known: &Known| known.objects.gateways.keys().map(|key| key.1.to_string()).collect::<Vec<_>>();
        assert_eq!(names(&known), ["a", "b"]);
        known.take(1, Said::Listing).unwrap();
        known.take(1, object("b")).unwrap();
        assert_eq!(names(&known), ["a", "b"], "until the list has ended");
        assert!(known.is_complete(), "as it was before");
        known.take(1, Said::Listed).unwrap();
        assert_eq!(names(&known), ["b"]);
        let odd = Said::Object(meta("b"), json!(7), Value::Null);
        assert!(known.take(1, odd).is_err() && names(&known).is_empty());
        known.take(1, object("c")).unwrap();
        known.take(1, Said::Undefined).unwrap();
        assert!(names(&known).is_empty() && known.kept(1).count() == 0 && known.is_complete());
    }

    /// A definition that comes late is of a kind of which nothing is known again.
    #[test]
    fn a_kind_that_is_defined_late_is_listed_before_it_is_known() {
        let mut known = Known::default();
        (0..KINDS.len()).for_each(|kind| assert!(known.take(kind, Said::Undefined).unwrap(), "{kind}"));
        assert!(known.is_complete());
        known.take_namespace(Said::Listed, BTreeMap::new());
        known.take(1, Said::Listing).unwrap();
        known.take(1, object("a")).unwrap();
        assert!(!known.is_complete());
        known.take(1, Said::Listed).unwrap();
        assert!(known.is_complete());
        assert!(!known.take(2, Said::Undefined).unwrap(), "as it was");
    }

    #[test]
    fn a_status_means_nothing_and_labels_do_where_a_listener_looks_at_them() {
        let mut known = Known::default();
        let spec = || json!({"gatewayClassName": "coracle"});
        assert!(known.take(1, Said::Object(meta("g"), spec(), Value::Null)).unwrap());
        assert!(!known.take(1, Said::Object(meta("g"), spec(), json!({"status": 1}))).unwrap());
        assert_eq!(known.kept(1).next().unwrap().1, &json!({"status": 1}));
        let later = Meta { generation: 2, ..meta("g") };
        assert!(known.take(1, Said::Object(later, spec(), Value::Null)).unwrap(), "a status says of which generation");
        let route = |path: &str| json!({"rules": [{"matches": [{"path": {"value": path}}]}]});
        for (path, is_new) in [("/a", true), ("/a", false), ("/b", true)] {
            assert_eq!(known.take(2, Said::Object(meta("r"), route(path), Value::Null)).unwrap(), is_new);
        }
        known.take_namespace(Said::Listed, BTreeMap::new());
        let labels = |known: &mut Known, value: &str| {
            let said = Said::Object(Meta { name: "n".into(), ..Meta::default() }, Value::Null, Value::Null);
            known.take_namespace(said, [("exposed".to_owned(), value.to_owned())].into())
        };
        assert!(!labels(&mut known, "a"), "nobody looks");
        let listener = json!({"name": "l", "allowedRoutes": {"namespaces": {"from": "Selector", "selector": {}}}});
        known.take(1, Said::Object(meta("g"), json!({"listeners": [listener]}), Value::Null)).unwrap();
        assert_eq!(["a", "b", "b"].map(|value| labels(&mut known, value)), [false, true, false]);
        assert!(known.take(2, Said::Gone(meta("r").key())).unwrap());
        assert!(!known.take(2, Said::Gone(meta("r").key())).unwrap());
    }

    #[test]
    fn definitions_of_unknown_versions_are_told() {
        let mut known = Known::default();
        assert!(known.versions().holds, "there are none");
        let bundle = |version: &str| Said::Bundle(Some(version.to_owned()));
        for (version, expected) in [
            (bundle("v1.4.0"), true),
            (bundle("v1.4.0-rc.1"), true),
            (bundle("v1.5.0"), false),
            (bundle("v0.8.1"), false),
            (bundle("odd"), false),
            (Said::Bundle(None), false),
        ] {
            assert!(known.take(1, version.clone()).unwrap());
            assert!(!known.take(1, version.clone()).unwrap());
            known.take(1, Said::Listing).unwrap();
            assert_eq!(known.versions().holds, expected, "{version:?}");
        }
        assert!(known.versions().message.starts_with("there are definitions of Gateway of no version"));
        known.take(1, Said::Undefined).unwrap();
        assert!(known.versions().holds);
        // One that is not served in its first moment.
        for said in [bundle("v1.4.0"), Said::Undefined, Said::Listing, Said::Listed] {
            known.take(1, said).unwrap();
        }
        assert!(known.is_defined(1) && known.versions().holds);
    }
}
