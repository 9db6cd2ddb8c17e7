//! Pods that wait for a node: those to decide about now, highest priority first, and those that nothing can be decided
//! for until something happens that helps.
//!
//! Bounded by the number of pods.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::class::Class;
use crate::filter::Reason;
use crate::report::Subject;
use crate::view::Uid;

/// First and longest time between two attempts for a pod (the reference begins with a second; a wrong early attempt
/// costs us microseconds, a late one costs the user).
const BACKOFF_FIRST: Duration = Duration::from_millis(10);
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// Without any event a pod is looked at again after this.
const LEFTOVER: Duration = Duration::from_secs(300);

/// A pod without a node.
#[derive(Debug, Clone)]
pub(crate) struct Pending {
    pub subject: Subject,
    pub class: Arc<Class>,
    /// Message of the condition that was written last.
    pub told: Option<Arc<str>>,
    attempts: u32,
    tried: Option<Instant>,
    sequence: u64,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// In `active`.
    Active,
    /// In `timed`, to become active then.
    Backoff(Instant),
    /// In `waiting` for an event that helps, and in `timed` as a last resort.
    Waiting(Instant),
    /// Decided; the answer is awaited.
    InFlight,
}

/// What may help a pod, as a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Helps(u8);

impl Helps {
    /// A node came or changed.
    pub(crate) const NODE: Self = Self(1);
    /// A pod left a node.
    pub(crate) const ROOM: Self = Self(2);
    /// A pod came to a node.
    pub(crate) const COMPANY: Self = Self(4);
    const ALL: Self = Self(7);

    /// What helps against these reasons.
    pub(crate) fn with(reasons: &[Reason]) -> Self {
        let mut helps = Self::NODE;
        for reason in reasons {
            helps.0 |= match reason {
                Reason::Unschedulable | Reason::Taint | Reason::NodeAffinity | Reason::SpreadLabel => 0,
                Reason::Ports
                | Reason::TooManyPods
                | Reason::Insufficient(..)
                | Reason::ExistingAntiAffinity
                | Reason::AntiAffinity => Self::ROOM.0,
                Reason::Spread => Self::ROOM.0 | Self::COMPANY.0,
                Reason::Affinity => Self::COMPANY.0,
            };
        }
        helps
    }

    fn meets(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

/// Order in which pods are decided about.
type Rank = (Reverse<i32>, u64);

/// The queue.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    pods: HashMap<Uid, Pending>,
    active: BTreeMap<Rank, Uid>,
    /// Those in the state `Waiting`.
    waiting: HashMap<Uid, Helps>,
    timed: BTreeSet<(Instant, u64, Uid)>,
    sequence: u64,
}

impl Queue {
    /// The pod has no node. What is known of it stays, unless it changed in what decides.
    pub(crate) fn put(&mut self, subject: Subject, class: Arc<Class>, told: Option<Arc<str>>) {
        let uid = &subject.uid.clone();
        if let Some(known) = self.pods.get_mut(uid) {
            if Arc::ptr_eq(&known.class, &class) || known.state == State::InFlight {
                return;
            }
            self.remove(uid);
        }
        self.sequence += 1;
        let sequence = self.sequence;
        let pending = Pending { subject, class, told, attempts: 0, tried: None, sequence, state: State::Active };
        self.active.insert(rank(&pending), uid.clone());
        self.pods.insert(uid.clone(), pending);
    }

    pub(crate) fn remove(&mut self, uid: &str) -> Option<Pending> {
        let pending = self.pods.remove(uid)?;
        self.unlink(&pending, uid);
        Some(pending)
    }

    fn unlink(&mut self, pending: &Pending, uid: &str) {
        match pending.state {
            State::Active => drop(self.active.remove(&rank(pending))),
            State::Backoff(at) | State::Waiting(at) => {
                self.waiting.remove(uid);
                self.timed.remove(&(at, pending.sequence, Uid::from(uid)));
            }
            State::InFlight => {}
        }
    }

    pub(crate) fn get(&self, uid: &str) -> Option<&Pending> {
        self.pods.get(uid)
    }

    /// The next to decide about; it is in flight until told otherwise.
    pub(crate) fn pop(&mut self) -> Option<(Uid, Arc<Class>)> {
        let (_, uid) = self.active.pop_first()?;
        let pending = self.pods.get_mut(&uid)?;
        pending.state = State::InFlight;
        Some((uid, pending.class.clone()))
    }

    /// No node can take it; returns whether the message is news.
    pub(crate) fn wait(&mut self, uid: &Uid, helps: Helps, message: &str, now: Instant) -> bool {
        let Some(pending) = self.pods.get_mut(uid) else { return false };
        let news = pending.told.as_deref() != Some(message);
        if news {
            pending.told = Some(message.into());
        }
        pending.attempts = pending.attempts.saturating_add(1);
        pending.tried = Some(now);
        let at = now + LEFTOVER;
        pending.state = State::Waiting(at);
        self.waiting.insert(uid.clone(), helps);
        self.timed.insert((at, pending.sequence, uid.clone()));
        news
    }

    /// Something went wrong with it that was not its fault.
    pub(crate) fn retry(&mut self, uid: &Uid, now: Instant) {
        let Some(pending) = self.pods.get_mut(uid) else { return };
        pending.attempts = pending.attempts.saturating_add(1);
        pending.tried = Some(now);
        let at = now + backoff(pending.attempts);
        pending.state = State::Backoff(at);
        self.timed.insert((at, pending.sequence, uid.clone()));
    }

    /// Something happened that helps with this.
    pub(crate) fn wake(&mut self, by: Helps, now: Instant) {
        let woken = self.waiting.iter().filter(|(_, helps)| helps.meets(by));
        let woken: Vec<Uid> = woken.map(|(uid, _)| uid.clone()).collect();
        for uid in woken {
            self.activate(&uid, now);
        }
    }

    /// Moves what waits to the active ones, or lets it back off first.
    fn activate(&mut self, uid: &Uid, now: Instant) {
        let Some(mut pending) = self.pods.get(uid).cloned() else { return };
        self.unlink(&pending, uid);
        let due = pending.tried.map_or(now, |tried| tried + backoff(pending.attempts));
        if due <= now {
            pending.state = State::Active;
            self.active.insert(rank(&pending), uid.clone());
        } else {
            pending.state = State::Backoff(due);
            self.timed.insert((due, pending.sequence, uid.clone()));
        }
        self.pods.insert(uid.clone(), pending);
    }

    /// Activates what is due; returns the next deadline.
    pub(crate) fn on_time(&mut self, now: Instant) -> Option<Instant> {
        while let Some((at, _, uid)) = self.timed.first() {
            if *at > now {
                return Some(*at);
            }
            let uid = uid.clone();
            self.activate(&uid, now);
        }
        None
    }

    /// Everything is decided about anew.
    pub(crate) fn wake_all(&mut self, now: Instant) {
        self.wake(Helps::ALL, now);
    }

    /// Uids of all pods without a node.
    pub(crate) fn uids(&self) -> impl Iterator<Item = &Uid> {
        self.pods.keys()
    }
}

fn rank(pending: &Pending) -> Rank {
    (Reverse(pending.class.priority), pending.sequence)
}

fn backoff(attempts: u32) -> Duration {
    let doubled = 1_u32.checked_shl(attempts.saturating_sub(1).min(16)).unwrap_or(u32::MAX);
    BACKOFF_FIRST.saturating_mul(doubled).min(BACKOFF_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn put(queue: &mut Queue, uid: &str, priority: i32) {
        let pod = serde_json::from_value(json!({"metadata": {}, "spec": {"priority": priority}})).unwrap();
        let subject = Subject { namespace: "n".into(), name: uid.into(), uid: uid.into(), generation: None };
        queue.put(subject, Arc::new(Class::of(&pod)), None);
    }

    fn pop(queue: &mut Queue) -> Option<String> {
        queue.pop().map(|(uid, _)| uid.to_string())
    }

    #[test]
    fn takes_the_most_important_first_and_then_the_oldest() {
        let mut queue = Queue::default();
        for (uid, priority) in [("a", 0), ("b", 5), ("c", 0), ("d", 5)] {
            put(&mut queue, uid, priority);
        }
        queue.remove("d");
        let order: Vec<_> = std::iter::from_fn(|| pop(&mut queue)).collect();
        assert_eq!(order, ["b", "a", "c"]);
    }

    #[test]
    fn wakes_those_that_an_event_helps() {
        let mut queue = Queue::default();
        let now = Instant::now();
        put(&mut queue, "room", 0);
        put(&mut queue, "label", 0);
        while queue.pop().is_some() {}
        assert!(queue.wait(&"room".into(), Helps::with(&[Reason::TooManyPods]), "full", now));
        assert!(queue.wait(&"label".into(), Helps::with(&[Reason::NodeAffinity]), "none", now));
        queue.wake(Helps::COMPANY, now);
        assert_eq!(queue.on_time(now), Some(now + LEFTOVER));
        queue.wake(Helps::ROOM, now);
        assert_eq!(pop(&mut queue), None, "not so soon after the last attempt");
        let due = queue.on_time(now).unwrap();
        assert_eq!(due, now + BACKOFF_FIRST);
        queue.on_time(due);
        assert_eq!(pop(&mut queue), Some("room".to_owned()));
        assert!(!queue.wait(&"room".into(), Helps::NODE, "full", now), "the same message is no news");
        queue.on_time(now + LEFTOVER);
        assert_eq!((pop(&mut queue), pop(&mut queue)), (Some("room".to_owned()), Some("label".to_owned())));
    }
}
