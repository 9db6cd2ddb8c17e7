//! Images that were pushed lately, for somebody who prepares them before a pod asks: who that is, is not known here.
//!
//! One queue, one memory: an image waits, is at work, and is ready or has failed. Both are bounded by count; an entry has
//! two names and, when it failed, one message.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

/// Images that are remembered, waiting or not; the oldest goes first, and if it waited it is prepared when a pod asks.
const REMEMBERED_MAX: usize = 128;

/// Bytes of one message that are kept.
const MESSAGE_BYTES_MAX: usize = 1_024;

/// An image that was pushed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Push {
    /// `NAME@DIGEST`, as a node pulls it.
    pub image: String,
    /// `sha256:…` of its manifest.
    pub manifest_digest: String,
}

/// How far the preparation of an image is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "camelCase")]
pub enum State {
    /// Others are before it.
    Waiting,
    /// It is being compiled.
    Compiling,
    /// A pod of it starts at once.
    #[serde(rename_all = "camelCase")]
    Ready {
        /// How long that took.
        took_millis: u64,
    },
    /// It cannot run.
    Failed {
        /// Why, for people.
        message: String,
    },
}

impl State {
    /// Ready after so much time.
    pub fn ready(took: Duration) -> State {
        State::Ready { took_millis: u64::try_from(took.as_millis()).unwrap_or(u64::MAX) }
    }
}

#[derive(Default)]
pub(crate) struct Pushes {
    is_followed: AtomicBool,
    remembered: Mutex<VecDeque<(Push, State)>>,
    added: Notify,
}

impl Pushes {
    /// Adds an image unless it waits already; one that was ready or failed is tried again.
    pub fn add(&self, image: String, manifest_digest: String) {
        if !self.is_followed.load(Ordering::Acquire) {
            return;
        }
        let mut remembered = self.remembered.lock();
        if let Some(at) = remembered.iter().position(|(push, _)| push.manifest_digest == manifest_digest) {
            if matches!(remembered[at].1, State::Waiting | State::Compiling) {
                return;
            }
            remembered.remove(at);
        }
        if remembered.len() == REMEMBERED_MAX {
            remembered.pop_front();
        }
        remembered.push_back((Push { image, manifest_digest }, State::Waiting));
        drop(remembered);
        self.added.notify_one();
    }

    /// The one that waits longest; it is at work now.
    pub async fn next(&self) -> Push {
        self.is_followed.store(true, Ordering::Release);
        loop {
            {
                let mut remembered = self.remembered.lock();
                if let Some((push, state)) = remembered.iter_mut().find(|(_, state)| *state == State::Waiting) {
                    *state = State::Compiling;
                    return push.clone();
                }
            }
            self.added.notified().await;
        }
    }

    pub fn tell(&self, manifest_digest: &str, mut state: State) {
        if let State::Failed { message } = &mut state
            && message.len() > MESSAGE_BYTES_MAX
        {
            message.truncate(message.floor_char_boundary(MESSAGE_BYTES_MAX));
        }
        let mut remembered = self.remembered.lock();
        if let Some(entry) = remembered.iter_mut().find(|(push, _)| push.manifest_digest == manifest_digest) {
            entry.1 = state;
        }
    }

    pub fn state(&self, manifest_digest: &str) -> Option<State> {
        let remembered = self.remembered.lock();
        remembered.iter().find(|(push, _)| push.manifest_digest == manifest_digest).map(|(_, state)| state.clone())
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[test]
    fn pushes_are_told_once_in_order_and_within_bounds() {
        let pushes = Pushes::default();
        let add = |number: usize| pushes.add(format!("app@{number}"), number.to_string());
        add(0);
        assert_eq!(pushes.state("0"), None, "nobody prepares");
        assert!(pushes.next().now_or_never().is_none());
        for number in [1, 2, 1, 1] {
            add(number);
        }
        let next = || pushes.next().now_or_never().map(|push| push.image);
        assert_eq!(next().as_deref(), Some("app@1"));
        assert_eq!(pushes.state("1"), Some(State::Compiling));
        add(1);
        assert_eq!((next().as_deref(), next()), (Some("app@2"), None), "one at work is not begun again");
        pushes.tell("1", State::ready(Duration::from_secs(2)));
        pushes.tell("2", State::Failed { message: "ä".repeat(1_000) });
        assert!(matches!(pushes.state("2"), Some(State::Failed { message }) if message == "ä".repeat(512)));
        add(2);
        assert_eq!(next().as_deref(), Some("app@2"), "what failed is tried again when it is pushed again");
        for number in 10..10 + 2 * REMEMBERED_MAX {
            add(number);
        }
        assert_eq!(pushes.remembered.lock().len(), REMEMBERED_MAX);
        assert_eq!(next(), Some(format!("app@{}", 10 + REMEMBERED_MAX)));
        assert_eq!(
            serde_json::to_value(State::ready(Duration::from_secs(2))).unwrap(),
            serde_json::json!({"state": "ready", "tookMillis": 2_000})
        );
    }
}
