//! One task that wakes many: a pod that waits for something costs an entry here instead of a task of its own.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::time::{DelayQueue, delay_queue};

/// Longest wait: who asked for more is woken then, and sees that it is early. The queue itself panics above two years, and a pod
/// may say any number of seconds.
const WAIT_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// Sets the moment at which a key is woken; the last word wins. Clones share one queue.
#[derive(Debug, Clone)]
pub struct Timers<K> {
    sender: mpsc::UnboundedSender<(K, Option<Instant>)>,
}

impl<K: Clone + Eq + Hash + Send + 'static> Timers<K> {
    /// Starts the task; it ends when the last clone is gone. `wake` must not block.
    ///
    /// The queue of requests is not bounded by itself: there is at most one entry per key after it is read, and
    /// keys are bounded by the pods of the node.
    pub fn start(mut wake: impl FnMut(K) + Send + 'static) -> Self {
        let (sender, mut receiver) = mpsc::unbounded_channel::<(K, Option<Instant>)>();
        tokio::spawn(async move {
            let mut queue: DelayQueue<K> = DelayQueue::new();
            let mut keys: HashMap<K, delay_queue::Key> = HashMap::new();
            loop {
                // Both branches only wait; nothing is lost when one is dropped.
                tokio::select! {
                    request = receiver.recv() => match request {
                        None => return,
                        Some((key, Some(at))) => match keys.get(&key) {
                            Some(entry) => queue.reset_at(entry, at),
                            None => drop(keys.insert(key.clone(), queue.insert_at(key, at))),
                        },
                        Some((key, None)) => if let Some(entry) = keys.remove(&key) {
                            queue.remove(&entry);
                        },
                    },
                    Some(expired) = std::future::poll_fn(|cx| queue.poll_expired(cx)), if !queue.is_empty() => {
                        let key = expired.into_inner();
                        keys.remove(&key);
                        wake(key);
                    }
                }
            }
        });
        Self { sender }
    }

    /// Wakes `key` after `delay`, or after a year, instead of whenever it was to be woken before.
    pub fn set(&self, key: K, delay: Duration) {
        let _ = self.sender.send((key, Some(Instant::now() + delay.min(WAIT_MAX))));
    }

    /// Does not wake `key`.
    pub fn cancel(&self, key: K) {
        let _ = self.sender.send((key, None));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn wakes_in_order_and_only_the_last_word() {
        let (sender, mut woken) = mpsc::unbounded_channel();
        let timers = Timers::start(move |key| {
            let _ = sender.send(key);
        });
        // Any number of seconds is one that a pod may say.
        timers.set("never", Duration::from_secs(u64::MAX));
        timers.set("late", Duration::from_secs(i32::MAX as u64));
        for (key, millis) in [("c", 30), ("a", 1), ("b", 20), ("a", 25), ("gone", 5)] {
            timers.set(key, Duration::from_millis(millis));
        }
        timers.cancel("gone");
        assert_eq!([woken.recv().await, woken.recv().await, woken.recv().await], [Some("b"), Some("a"), Some("c")]);
    }
}
