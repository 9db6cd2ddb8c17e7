//! What those who decide about a request add to what the audit log says of it.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use parking_lot::Mutex;
use serde_json::Value;

/// Most annotations of a request, and most bytes of them.
const COUNT_MAX: usize = 128;
const BYTES_MAX: usize = 256 << 10;

/// The annotations of a request's events, and what the object that it sent says it is.
#[derive(Default)]
pub(crate) struct Annotations {
    kept: Mutex<Kept>,
    named: OnceLock<Named>,
}

#[derive(Default)]
struct Kept {
    values: BTreeMap<String, String>,
    bytes: usize,
}

/// What an object says it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Named {
    pub name: String,
    pub uid: String,
    pub resource_version: String,
}

impl Annotations {
    /// Adds one. The first of a key stays: nobody says otherwise than who came before. Beyond the bounds none is added.
    pub fn add(&self, key: &str, value: &str) {
        let mut kept = self.kept.lock();
        if !kept.values.contains_key(key) {
            kept.insert(key, value);
        }
    }

    /// Says it whatever was said before.
    pub fn set(&self, key: &str, value: &str) {
        self.kept.lock().insert(key, value);
    }

    /// All of them, in order of their keys.
    pub fn all(&self) -> Vec<(String, String)> {
        self.kept.lock().values.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    /// The object that was sent is this one.
    pub fn sent(&self, object: &Value) {
        let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
        self.named.get_or_init(|| Named {
            name: text("name"),
            uid: text("uid"),
            resource_version: text("resourceVersion"),
        });
    }

    /// What the object that was sent says it is.
    pub fn named(&self) -> Option<&Named> {
        self.named.get()
    }
}

impl Kept {
    fn insert(&mut self, key: &str, value: &str) {
        let before = self.values.get(key).map_or(0, |before| key.len() + before.len());
        let bytes = self.bytes - before + key.len() + value.len();
        let is_crowded = before == 0 && self.values.len() >= COUNT_MAX;
        if !is_crowded && bytes <= BYTES_MAX {
            self.bytes = bytes;
            self.values.insert(key.to_owned(), value.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotations_stay_as_they_were_said_first_and_are_bounded() {
        let annotations = Annotations::default();
        annotations.add("a", "1");
        annotations.add("a", "2");
        annotations.add("long", &"x".repeat(BYTES_MAX));
        assert_eq!(annotations.all(), [("a".to_owned(), "1".to_owned())]);
        annotations.set("a", "3");
        assert_eq!(annotations.all(), [("a".to_owned(), "3".to_owned())]);
        for number in 0..1_000 {
            annotations.add(&number.to_string(), "");
        }
        assert_eq!(annotations.all().len(), COUNT_MAX);
        annotations.set("a", "4");
        assert!(annotations.all().contains(&("a".to_owned(), "4".to_owned())), "what is there may be said anew");
    }
}
