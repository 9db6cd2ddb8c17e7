//! What was answered before.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::{Mutex, PoisonError};

/// Parts that are locked apart, so that threads seldom meet.
const PARTS: usize = 16;
/// Answers of a part: an answer has below 100 bytes, so all have 6 MiB at most. At the bound those of a part are forgotten, and are
/// found again.
const ANSWERS_MAX: usize = 4096;

/// Answers to questions of this kind.
pub(crate) struct Memory<K> {
    hasher: RandomState,
    parts: [Mutex<HashMap<K, bool>>; PARTS],
}

impl<K> Default for Memory<K> {
    fn default() -> Memory<K> {
        Memory { hasher: RandomState::new(), parts: Default::default() }
    }
}

impl<K: Hash + Eq + Copy> Memory<K> {
    /// The answer to a question, found by `find` when it is asked for the first time.
    pub fn answer(&self, question: K, find: impl FnOnce() -> bool) -> bool {
        let at = usize::try_from(self.hasher.hash_one(question) % PARTS as u64).unwrap_or_default();
        let part = || self.parts[at].lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(answer) = part().get(&question) {
            return *answer;
        }
        // Not under the lock: it may take a while.
        let answer = find();
        let mut part = part();
        if part.len() >= ANSWERS_MAX {
            part.clear();
        }
        part.insert(question, answer);
        answer
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.parts.iter().map(|part| part.lock().unwrap().len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_answered_once_and_there_are_not_too_many() {
        let memory = Memory::default();
        assert!(memory.answer(7, || true));
        assert!(memory.answer(7, || panic!("it is known")));
        for question in 0..PARTS * ANSWERS_MAX * 2 {
            assert_eq!(memory.answer(question, || question % 2 == 1), question % 2 == 1);
        }
        assert!(memory.len() <= PARTS * ANSWERS_MAX);
    }
}
