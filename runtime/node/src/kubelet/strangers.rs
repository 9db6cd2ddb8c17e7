//! Connections of whom nobody knows yet who they are. Everybody is a stranger until a certificate is shown; there are few places
//! for them, and whoever has had one longest leaves it to the next, so that those who say nothing keep nobody out.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

/// Strangers at a time.
const STRANGERS_MAX: usize = 256;

#[derive(Default)]
pub(super) struct Strangers {
    /// In the order in which they came.
    places: Mutex<(u64, BTreeMap<u64, CancellationToken>)>,
}

/// A place, until it is dropped: when the stranger has gone, or is none any more.
pub(super) struct Stranger {
    strangers: Arc<Strangers>,
    number: u64,
    /// It has to leave.
    pub over: CancellationToken,
}

impl Strangers {
    pub fn enter(self: &Arc<Self>) -> Stranger {
        let over = CancellationToken::new();
        let mut places = self.places.lock();
        let (next, taken) = &mut *places;
        *next += 1;
        while taken.len() >= STRANGERS_MAX {
            let Some((_, oldest)) = taken.pop_first() else { break };
            oldest.cancel();
        }
        taken.insert(*next, over.clone());
        Stranger { strangers: self.clone(), number: *next, over }
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.strangers.places.lock().1.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_been_one_longest_leaves_and_who_is_known_stays() {
        let strangers = Arc::new(Strangers::default());
        let mut silent: Vec<Stranger> = (0..STRANGERS_MAX).map(|_| strangers.enter()).collect();
        let known = silent.remove(0);
        let token = known.over.clone();
        drop(known);
        let _one = strangers.enter();
        assert!(silent.iter().all(|stranger| !stranger.over.is_cancelled()), "a place was free");
        let _two = strangers.enter();
        assert!(silent[0].over.is_cancelled() && !silent[1].over.is_cancelled() && !token.is_cancelled());
        silent.clear();
        assert_eq!(strangers.places.lock().1.len(), 2);
    }
}
