//! What a cluster encrypts before it keeps it, and under which key.

use std::collections::BTreeSet;

use http::Request;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{AskError, Remote};

/// How a cluster encrypts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Encryption {
    /// The number of the newest key; `None` as long as not all servers know of keys.
    pub key: Option<u64>,
    /// When that was made, Unix time in seconds.
    pub created: Option<i64>,
    /// Servers because of which there is no key yet.
    #[serde(default)]
    pub held_back_by: Vec<HeldBack>,
    /// Numbers of older keys that are still kept.
    #[serde(default)]
    pub older_keys: Vec<u64>,
    /// What is encrypted, as `secrets` or `deployments.apps`.
    #[serde(default)]
    pub resources: BTreeSet<String>,
    /// How many objects are to be encrypted.
    pub objects: usize,
    /// How many objects are not yet as they are to be: under the newest key, or not encrypted any more.
    pub left: usize,
    /// Some of those objects that cannot be opened.
    #[serde(default)]
    pub unreadable: Vec<Unreadable>,
    /// How many these are.
    #[serde(default)]
    pub unreadable_count: usize,
}

/// A server whose version does not know of encryption, or may not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldBack {
    /// Its number.
    pub member: u64,
    /// Its name.
    pub name: String,
    /// Whether it was given that number and has not come.
    pub absent: bool,
}

/// An object that cannot be opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unreadable {
    /// Its resource, namespace and name.
    pub what: String,
    /// Why, and what to do.
    pub why: String,
}

impl Encryption {
    /// Days since the newest key was made.
    pub fn age_days(&self) -> Option<i64> {
        Some((Timestamp::now().as_second() - self.created?).max(0) / 86_400)
    }

    /// What is wrong and what to do, in words; nothing when all is well.
    pub(crate) fn in_words(&self) -> Vec<String> {
        let told = self.unreadable.iter().map(|one| format!("{} cannot be read: {}", one.what, one.why));
        let mut words: Vec<String> = told.collect();
        words.extend(self.held_back_by.iter().map(|server| {
            let HeldBack { member, name, absent } = server;
            match absent {
                true => format!(
                    "Secrets are stored in the clear, in backups, too: server {name} ({member}) was given a place by a version that does \
                     not encrypt, and has not come; `coracle member remove {member}` if it does not"
                ),
                false => format!(
                    "Secrets are stored in the clear, in backups, too: server {name} ({member}) has a version that does not encrypt; \
                     start it with this one"
                ),
            }
        }));
        if self.unreadable_count > self.unreadable.len() {
            words.push(format!("{} more objects cannot be read", self.unreadable_count - self.unreadable.len()));
        }
        words
    }
}

impl Remote {
    /// How the cluster encrypts.
    pub async fn encryption(&self) -> Result<Encryption, AskError> {
        self.ask_encryption(Request::get("/coracle/v1/encryption").body(Vec::new())).await
    }

    /// Makes a new key, known to all servers before anything is written under it; the cluster encrypts anew by itself what is stored.
    /// While it does so for an earlier key, or for other resources, no key is made.
    pub async fn rotate_encryption_key(&self) -> Result<Encryption, AskError> {
        self.ask_encryption(Request::post("/coracle/v1/encryption/rotate").body(Vec::new())).await
    }

    /// Has exactly these resources encrypted, of which `secrets` must be one; the cluster writes anew by itself what is stored.
    pub async fn encrypt_resources(&self, resources: &BTreeSet<String>) -> Result<Encryption, AskError> {
        let request = Request::put("/coracle/v1/encryption").header("content-type", "application/json");
        self.ask_encryption(request.body(json!({"resources": resources}).to_string().into_bytes())).await
    }

    async fn ask_encryption(&self, request: Result<Request<Vec<u8>>, http::Error>) -> Result<Encryption, AskError> {
        Ok(self.client().request(request.expect("a request of constants")).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_keeps_secrets_in_the_clear_is_named_with_what_to_do() {
        let told = json!({
            "key": null, "created": null, "objects": 0, "left": 0, "heldBackBy": [
                {"member": 2, "name": "two", "absent": false}, {"member": 3, "name": "three", "absent": true},
            ],
        });
        let words = serde_json::from_value::<Encryption>(told).unwrap().in_words();
        assert!(words.len() == 2 && words[0].contains("two (2) has a version"), "{words:?}");
        assert!(!words[0].contains("remove") && words[1].contains("`coracle member remove 3`"), "{words:?}");
        // A server of an earlier version says nothing of it.
        let told = json!({"key": null, "created": null, "objects": 0, "left": 0});
        assert!(serde_json::from_value::<Encryption>(told).unwrap().in_words().is_empty());
    }
}
