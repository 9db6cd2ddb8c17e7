//! What those who decide about a request add to what the audit log says of it.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use parking_lot::Mutex;
use serde_json::Value;

/// Says that something was left out, as the reference does where an event is too large for its log.
pub(crate) const TRUNCATED: &str = "audit.k8s.io/truncated";
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
    /// There was no room for one.
    is_cut: bool,
}

/// What an object says it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Named {
    pub name: String,
    pub uid: String,
    pub resource_version: String,
}

impl Annotations {
    /// Adds one. The first of a key stays: nobody says otherwise than who came before. Beyond the bounds none is added, which is
    /// told.
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

    /// Something was left out.
    pub fn cut(&self) {
        self.kept.lock().is_cut = true;
    }

    /// All of them.
    pub fn all(&self) -> Vec<(String, String)> {
        let kept = self.kept.lock();
        let cut = kept.is_cut.then(|| (TRUNCATED.to_owned(), "true".to_owned()));
        kept.values.iter().map(|(key, value)| (key.clone(), value.clone())).chain(cut).collect()
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
        if is_crowded || bytes > BYTES_MAX {
            self.is_cut = true;
            return;
        }
        self.bytes = bytes;
        self.values.insert(key.to_owned(), value.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotations_stay_as_they_were_said_first_and_are_bounded() {
        let annotations = Annotations::default();
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        annotations.add("a", "1");
        annotations.add("a", "2");
        assert_eq!(annotations.all(), [pair("a", "1")]);
        annotations.add("long", &"x".repeat(BYTES_MAX));
        annotations.set("a", "3");
        assert_eq!(annotations.all(), [pair("a", "3"), pair(TRUNCATED, "true")]);
        for number in 0..1_000 {
            annotations.add(&number.to_string(), "");
        }
        assert_eq!(annotations.all().len(), COUNT_MAX + 1);
        annotations.set("a", "4");
        assert!(annotations.all().contains(&("a".to_owned(), "4".to_owned())), "what is there may be said anew");
    }
}
