//! What those who decide about a request add to what the audit log says of it.

use std::collections::BTreeMap;

use parking_lot::Mutex;

/// Most annotations of a request, and most bytes of them.
const COUNT_MAX: usize = 128;
const BYTES_MAX: usize = 256 << 10;

/// The annotations of a request's events.
#[derive(Default)]
pub(crate) struct Annotations(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    values: BTreeMap<String, String>,
    bytes: usize,
}

impl Annotations {
    /// Adds one. The first of a key stays: nobody says otherwise than who came before. Beyond the bounds none is added.
    pub fn add(&self, key: &str, value: &str) {
        let mut kept = self.0.lock();
        let bytes = key.len() + value.len();
        if kept.values.contains_key(key) || kept.values.len() >= COUNT_MAX || kept.bytes + bytes > BYTES_MAX {
            return;
        }
        kept.bytes += bytes;
        kept.values.insert(key.to_owned(), value.to_owned());
    }

    /// All of them, in order of their keys.
    pub fn all(&self) -> Vec<(String, String)> {
        self.0.lock().values.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
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
        for number in 0..1_000 {
            annotations.add(&number.to_string(), "");
        }
        assert_eq!(annotations.all().len(), COUNT_MAX);
    }
}
