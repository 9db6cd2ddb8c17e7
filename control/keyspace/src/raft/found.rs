//! Members that were found elsewhere than where the group knew them to be, while nobody led who could be told.
//!
//! What the group says counts as soon as it says anything newer, and where nobody answers any more it counts again: a member that
//! was found may have gone back.

use std::collections::BTreeMap;

use parking_lot::Mutex;

use super::types::MemberId;

/// Where they are.
#[derive(Default)]
pub struct Found(Mutex<BTreeMap<MemberId, Place>>);

struct Place {
    /// Where the group knew it to be.
    known: String,
    /// Where it answered.
    at: String,
}

impl Found {
    /// Where `member` was found, unless the group knows it to be elsewhere by now than at `known`.
    pub fn at(&self, member: MemberId, known: &str) -> Option<String> {
        self.0.lock().get(&member).filter(|place| place.known == known).map(|place| place.at.clone())
    }

    /// Notes that `member`, which the group knows to be at `known`, was found `at` another address.
    pub fn note(&self, member: MemberId, known: String, at: String) {
        self.0.lock().insert(member, Place { known, at });
    }

    /// Forgets that `member` was found at `address`, where nobody answers, if it was.
    pub fn nobody_at(&self, member: MemberId, address: &str) {
        let mut found = self.0.lock();
        if found.get(&member).is_some_and(|place| place.at == address) {
            found.remove(&member);
        }
    }

    /// Forgets those that the group, which says where each is, knows to be elsewhere than it did.
    pub fn told<'a>(&self, known: impl Fn(MemberId) -> Option<&'a str>) {
        self.0.lock().retain(|member, place| known(*member) == Some(place.known.as_str()));
    }

    /// Forgets all.
    pub fn forget(&self) {
        self.0.lock().clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_found_counts_until_the_group_says_otherwise_or_nobody_answers() {
        let found = Found::default();
        let note = || found.note(3, "here:1".to_owned(), "there:1".to_owned());
        note();
        assert_eq!(found.at(3, "here:1").as_deref(), Some("there:1"));
        assert_eq!((found.at(3, "elsewhere:1"), found.at(2, "here:1")), (None, None));
        // Another change of the group says nothing about it.
        found.told(|_| Some("here:1"));
        found.nobody_at(3, "here:1");
        assert!(found.at(3, "here:1").is_some());
        // It was there, and is back where it was before: what was found then is no news.
        found.told(|_| Some("there:1"));
        assert_eq!(found.at(3, "here:1"), None);
        note();
        found.told(|_| None);
        assert_eq!(found.at(3, "here:1"), None);
        note();
        found.nobody_at(3, "there:1");
        assert_eq!(found.at(3, "here:1"), None);
    }
}
