//! Objects by place, every change with its version, and the watches that hear of them.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::mpsc;

/// Where an object or a collection is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// `/api/v1` or `/apis/GROUP/VERSION`.
    pub group: String,
    /// `pods`.
    pub plural: String,
    /// Empty for cluster-scoped objects, and for collections of all namespaces.
    pub namespace: String,
    /// Empty for a collection.
    pub name: String,
    /// `status`, or empty.
    pub sub: String,
}

impl Place {
    /// Reads a path.
    #[must_use]
    pub fn parse(path: &str) -> Option<Self> {
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let (group, rest) = match parts.as_slice() {
            ["api", version, rest @ ..] => (format!("/api/{version}"), rest),
            ["apis", group, version, rest @ ..] => (format!("/apis/{group}/{version}"), rest),
            _ => return None,
        };
        let (namespace, rest) = match rest {
            ["namespaces", _, "status" | "finalize"] | ["namespaces"] | ["namespaces", _] => ("", rest),
            ["namespaces", namespace, rest @ ..] => (*namespace, rest),
            rest => ("", rest),
        };
        let at = |index: usize| rest.get(index).copied().unwrap_or_default().to_owned();
        (!rest.is_empty()).then(|| Self {
            group,
            plural: at(0),
            namespace: namespace.to_owned(),
            name: at(1),
            sub: at(2),
        })
    }

    fn kind(&self) -> (String, String) {
        (self.group.clone(), self.plural.clone())
    }

    fn object(&self) -> Self {
        Self { sub: String::new(), ..self.clone() }
    }
}

struct Event {
    version: u64,
    type_: &'static str,
    place: Place,
    object: Value,
}

struct Watcher {
    place: Place,
    /// `metadata.name` that is selected.
    name: Option<String>,
    /// Version of the last event that was sent.
    cursor: u64,
    lines: mpsc::UnboundedSender<Bytes>,
}

/// All objects.
#[derive(Default)]
pub(crate) struct Store {
    version: u64,
    objects: BTreeMap<Place, Value>,
    history: HashMap<(String, String), Vec<Event>>,
    watchers: Vec<Watcher>,
    held: HashSet<String>,
    next_uid: u64,
}

impl Store {
    pub(crate) fn get(&self, place: &Place) -> Option<&Value> {
        self.objects.get(&place.object())
    }

    /// What discovery says of a group that has objects, whether it is one that is served from the beginning or not.
    pub(crate) fn group(&self, name: &str) -> Option<Value> {
        let versions = self.objects.keys().filter_map(|place| place.group.strip_prefix("/apis/")?.split_once('/'));
        let versions: BTreeSet<&str> =
            versions.filter(|(group, _)| *group == name).map(|(_, version)| version).collect();
        let versions: Vec<Value> = versions
            .into_iter()
            .map(|version| json!({"groupVersion": format!("{name}/{version}"), "version": version}))
            .collect();
        let preferred = versions.first()?.clone();
        Some(json!({"kind": "APIGroup", "name": name, "versions": versions, "preferredVersion": preferred}))
    }

    /// Objects of a collection.
    pub(crate) fn list(&self, place: &Place) -> Vec<(Place, Value)> {
        let within = |other: &Place| {
            other.kind() == place.kind() && (place.namespace.is_empty() || place.namespace == other.namespace)
        };
        self.objects
            .iter()
            .filter(|(other, _)| within(other))
            .map(|(place, object)| (place.clone(), object.clone()))
            .collect()
    }

    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    /// Stores the object under a new version; what metadata lacks is added.
    pub(crate) fn force(&mut self, place: &Place, mut object: Value) -> Value {
        let place = place.object();
        self.version += 1;
        if !object["metadata"].is_object() {
            object["metadata"] = json!({});
        }
        let meta = &mut object["metadata"];
        meta["resourceVersion"] = json!(self.version.to_string());
        meta["name"] = json!(place.name);
        if !place.namespace.is_empty() {
            meta["namespace"] = json!(place.namespace);
        }
        if meta["uid"].is_null() {
            self.next_uid += 1;
            meta["uid"] = json!(format!("uid-{}", self.next_uid));
        }
        if meta["creationTimestamp"].is_null() {
            meta["creationTimestamp"] = json!("2026-01-01T00:00:00Z");
        }
        if meta["generation"].is_null() {
            meta["generation"] = json!(1);
        }
        let type_ = if self.objects.insert(place.clone(), object.clone()).is_some() { "MODIFIED" } else { "ADDED" };
        self.tell(type_, place, object.clone());
        object
    }

    /// Removes the object; it is told with a new version, as it was last.
    pub(crate) fn remove(&mut self, place: &Place) -> Option<Value> {
        let place = place.object();
        let mut object = self.objects.remove(&place)?;
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.tell("DELETED", place, object.clone());
        Some(object)
    }

    fn tell(&mut self, type_: &'static str, place: Place, object: Value) {
        let plural = place.plural.clone();
        let event = Event { version: self.version, type_, place, object };
        self.history.entry(event.place.kind()).or_default().push(event);
        self.pump(&plural);
    }

    /// A watch: with `since`, everything after it; else all objects first, and a bookmark that ends them.
    pub(crate) fn watch(
        &mut self,
        place: &Place,
        name: Option<String>,
        since: Option<u64>,
    ) -> mpsc::UnboundedReceiver<Bytes> {
        let (lines, heard) = mpsc::unbounded_channel();
        let cursor = match since {
            Some(since) => since,
            None => {
                for (other, object) in self.list(place) {
                    if name.as_ref().is_none_or(|name| *name == other.name) {
                        drop(lines.send(line("ADDED", &object)));
                    }
                }
                let end = json!({"kind": "Bookmark", "apiVersion": "v1", "metadata": {
                    "resourceVersion": self.version.to_string(), "annotations": {"k8s.io/initial-events-end": "true"},
                }});
                drop(lines.send(line("BOOKMARK", &end)));
                self.version
            }
        };
        self.watchers.push(Watcher { place: place.clone(), name, cursor, lines });
        self.pump(&place.plural);
        heard
    }

    pub(crate) fn hold(&mut self, plural: &str, hold: bool) {
        if hold {
            self.held.insert(plural.to_owned());
        } else {
            self.held.remove(plural);
            self.pump(plural);
        }
    }

    pub(crate) fn break_watches(&mut self, plural: &str) {
        self.watchers.retain(|watcher| watcher.place.plural != plural);
    }

    fn pump(&mut self, plural: &str) {
        if self.held.contains(plural) {
            return;
        }
        let history = &self.history;
        self.watchers.retain_mut(|watcher| {
            if watcher.place.plural != plural {
                return true;
            }
            let events = history.get(&watcher.place.kind()).map(Vec::as_slice).unwrap_or_default();
            for event in events.iter().filter(|event| event.version > watcher.cursor) {
                let here = watcher.place.namespace.is_empty() || watcher.place.namespace == event.place.namespace;
                let named = watcher.name.as_ref().is_none_or(|name| *name == event.place.name);
                if here && named && watcher.lines.send(line(event.type_, &event.object)).is_err() {
                    return false;
                }
            }
            if let Some(last) = events.last() {
                watcher.cursor = watcher.cursor.max(last.version);
            }
            true
        });
    }
}

fn line(type_: &str, object: &Value) -> Bytes {
    // The type first, as every server writes it.
    Bytes::from(format!("{{\"type\":\"{type_}\",\"object\":{object}}}\n"))
}
