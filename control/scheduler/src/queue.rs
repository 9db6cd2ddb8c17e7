//! Pods that wait for a node: those to decide about now, highest priority first, and those that nothing can be decided
//! for until something happens that helps.
//!
//! Bounded by the number of pods.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use coracle_tolerant::cut_message;
use tokio::time::Instant;

use crate::class::Class;
use crate::filter::Reason;
use crate::report::Subject;
use crate::view::Uid;
use crate::wire::Labels;

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
    /// All labels of the pod.
    pub labels: Arc<Labels>,
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
    /// Room was made on a node.
    pub(crate) const ROOM: Self = Self(2);
    /// A pod came that it looks for, or got its labels.
    pub(crate) const COMPANY: Self = Self(4);
    /// A pod left that it keeps away from or is spread with, or lost its labels.
    pub(crate) const DISTANCE: Self = Self(8);
    const ALL: Self = Self(15);

    /// What helps against these reasons.
    pub(crate) fn with(reasons: &[Reason]) -> Self {
        let mut helps = Self::NODE;
        for reason in reasons {
            helps.0 |= match reason {
                Reason::Unschedulable | Reason::Taint | Reason::NodeAffinity | Reason::SpreadLabel => 0,
                // What of them changes changes what the pod asks for, so that it is queued anew.
                Reason::VolumeInUse | Reason::VolumeGone | Reason::VolumeElsewhere | Reason::NoVolume => 0,
                Reason::Ports | Reason::TooManyPods | Reason::Insufficient(..) => Self::ROOM.0,
                Reason::ExistingAntiAffinity | Reason::AntiAffinity => Self::DISTANCE.0,
                Reason::Spread => Self::DISTANCE.0 | Self::COMPANY.0,
                Reason::Affinity => Self::COMPANY.0,
            };
        }
        helps
    }

    /// This or that.
    pub(crate) fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
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
    /// Those of them that wait for other pods to come or go, by the address of their class, which is kept: of many that wait
    /// few do, and those of one class are concerned by the same.
    social: HashMap<usize, (Arc<Class>, HashSet<Uid>)>,
    timed: BTreeSet<(Instant, u64, Uid)>,
    sequence: u64,
}

impl Queue {
    /// The pod has no node. What is known of it stays, unless it changed in what decides.
    pub(crate) fn put(&mut self, subject: Subject, class: Arc<Class>, labels: Arc<Labels>, told: Option<Arc<str>>) {
        let uid = &subject.uid.clone();
        if let Some(known) = self.pods.get_mut(uid) {
            known.subject.version.clone_from(&subject.version);
            known.labels.clone_from(&labels);
            if Arc::ptr_eq(&known.class, &class) || known.state == State::InFlight {
                return;
            }
            self.remove(uid);
        }
        self.sequence += 1;
        let sequence = self.sequence;
        let pending =
            Pending { subject, class, labels, told, attempts: 0, tried: None, sequence, state: State::Active };
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
                self.leave_social(&pending.class, uid);
                self.timed.remove(&(at, pending.sequence, Uid::from(uid)));
            }
            State::InFlight => {}
        }
    }

    fn join_social(&mut self, class: Arc<Class>, uid: Uid) {
        let alike = self.social.entry(Arc::as_ptr(&class).addr()).or_insert_with(|| (class, HashSet::new()));
        alike.1.insert(uid);
    }

    fn leave_social(&mut self, class: &Arc<Class>, uid: &str) {
        let address = Arc::as_ptr(class).addr();
        if let Some((_, uids)) = self.social.get_mut(&address) {
            uids.remove(uid);
            if uids.is_empty() {
                self.social.remove(&address);
            }
        }
    }

    pub(crate) fn get(&self, uid: &str) -> Option<&Pending> {
        self.pods.get(uid)
    }

    /// One that was decided about and whose answer is awaited.
    pub(crate) fn in_flight(&self, uid: &str) -> Option<&Pending> {
        self.pods.get(uid).filter(|pending| pending.state == State::InFlight)
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
        let news = self.tell(uid, message);
        let Some(pending) = self.pods.get_mut(uid) else { return false };
        pending.attempts = pending.attempts.saturating_add(1);
        pending.tried = Some(now);
        let at = now + LEFTOVER;
        pending.state = State::Waiting(at);
        self.waiting.insert(uid.clone(), helps);
        if helps.meets(Helps::COMPANY.or(Helps::DISTANCE)) {
            let class = pending.class.clone();
            self.join_social(class, uid.clone());
        }
        let Some(pending) = self.pods.get(uid) else { return news };
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

    /// Notes what is told of the pod; returns whether it is news.
    pub(crate) fn tell(&mut self, uid: &Uid, message: &str) -> bool {
        let Some(pending) = self.pods.get_mut(uid) else { return false };
        let message = cut_message(message);
        let news = pending.told.as_deref() != Some(message);
        if news {
            pending.told = Some(message.into());
        }
        news
    }

    /// Something happened that helps with this.
    pub(crate) fn wake(&mut self, by: Helps, now: Instant) {
        let woken = self.waiting.iter().filter(|(_, helps)| helps.meets(by));
        let woken: Vec<Uid> = woken.map(|(uid, _)| uid.clone()).collect();
        for uid in woken {
            self.activate(&uid, now);
        }
    }

    /// Something happened with a pod that helps with this, those classes that it concerns. It is about them, so that many
    /// attempts before do not make them wait.
    pub(crate) fn wake_concerned(&mut self, by: Helps, now: Instant, concerns: impl Fn(&Class) -> bool) {
        let concerned = self.social.values().filter(|(class, _)| concerns(class)).flat_map(|(_, uids)| uids);
        let woken = concerned.filter(|uid| self.waiting.get(*uid).is_some_and(|helps| helps.meets(by)));
        let woken: Vec<Uid> = woken.cloned().collect();
        for uid in woken {
            self.activate(&uid, now);
            if let Some(pending) = self.pods.get_mut(&uid)
                && let State::Backoff(at) = pending.state
            {
                let soon = at.min(now + BACKOFF_FIRST);
                pending.state = State::Backoff(soon);
                self.timed.remove(&(at, pending.sequence, uid.clone()));
                self.timed.insert((soon, pending.sequence, uid.clone()));
            }
        }
    }

    /// One is decided about anew, if it waits.
    pub(crate) fn wake_one(&mut self, uid: &Uid, now: Instant) {
        if self.waiting.contains_key(uid) {
            self.activate(uid, now);
        }
    }

    /// Gives the pods that have a label of one of the keys the class that `class` says.
    pub(crate) fn reclassify(&mut self, keys: &HashSet<String>, mut class: impl FnMut(&Class, &Labels) -> Arc<Class>) {
        let concerned = self.pods.iter().filter(|(_, pending)| pending.labels.keys().any(|key| keys.contains(key)));
        let concerned: Vec<Uid> = concerned.map(|(uid, _)| uid.clone()).collect();
        for uid in concerned {
            let Some(pending) = self.pods.get_mut(&uid) else { continue };
            let next = class(&pending.class, &pending.labels);
            let before = std::mem::replace(&mut pending.class, next.clone());
            self.leave_social(&before, &uid);
            if self.waiting.get(&uid).is_some_and(|helps| helps.meets(Helps::COMPANY.or(Helps::DISTANCE))) {
                self.join_social(next, uid);
            }
        }
    }

    /// When something is due.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.timed.first().map(|(at, ..)| *at)
    }

    fn activate_at_once(&mut self, uid: &Uid) {
        let Some(pending) = self.pods.get_mut(uid) else { return };
        let before = pending.clone();
        pending.state = State::Active;
        let rank = rank(pending);
        self.unlink(&before, uid);
        self.active.insert(rank, uid.clone());
    }

    /// Moves what waits to the active ones, or lets it back off first.
    fn activate(&mut self, uid: &Uid, now: Instant) {
        let Some(pending) = self.pods.get(uid).cloned() else { return };
        let due = pending.tried.map_or(now, |tried| tried + backoff(pending.attempts));
        if due <= now {
            return self.activate_at_once(uid);
        }
        self.unlink(&pending, uid);
        self.timed.insert((due, pending.sequence, uid.clone()));
        if let Some(pending) = self.pods.get_mut(uid) {
            pending.state = State::Backoff(due);
        }
    }

    /// Activates what is due; returns the next deadline.
    pub(crate) fn on_time(&mut self, now: Instant) -> Option<Instant> {
        while let Some((at, _, uid)) = self.timed.first() {
            if *at > now {
                return Some(*at);
            }
            let uid = uid.clone();
            self.activate_at_once(&uid);
        }
        None
    }

    /// Everything is decided about anew.
    pub(crate) fn wake_all(&mut self, now: Instant) {
        self.wake(Helps::ALL, now);
    }

    /// Whether something can be decided now.
    pub(crate) fn has_active(&self) -> bool {
        !self.active.is_empty()
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
        let subject =
            Subject { namespace: "n".into(), name: uid.into(), uid: uid.into(), generation: None, version: None };
        queue.put(subject, Arc::new(Class::of(&pod)), Arc::default(), None);
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
    fn a_long_message_is_told_in_part_and_once() {
        let mut queue = Queue::default();
        put(&mut queue, "a", 0);
        let long = "x".repeat(1 << 20);
        assert!(queue.tell(&"a".into(), &long));
        assert!(queue.get("a").and_then(|pending| pending.told.as_ref()).is_some_and(|told| told.len() <= 4 << 10));
        assert!(!queue.tell(&"a".into(), &long));
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

    #[test]
    fn whom_something_concerns_is_asked_once_a_class() {
        let mut queue = Queue::default();
        let now = Instant::now();
        let class = Arc::new(Class::of(&serde_json::from_value(json!({"metadata": {}, "spec": {}})).unwrap()));
        for index in 0..100 {
            let uid: Uid = index.to_string().into();
            let subject = Subject { namespace: "n".into(), name: uid.clone(), uid, generation: None, version: None };
            queue.put(subject, class.clone(), Arc::default(), None);
        }
        while let Some((uid, _)) = queue.pop() {
            queue.wait(&uid, Helps::with(&[Reason::Affinity]), "alone", now);
        }
        let asked = std::cell::Cell::new(0);
        queue.wake_concerned(Helps::COMPANY, now, |_| {
            asked.set(asked.get() + 1);
            true
        });
        queue.on_time(now + BACKOFF_FIRST);
        assert_eq!((asked.get(), queue.active.len(), queue.social.len()), (1, 100, 0));
    }

    #[test]
    fn what_concerns_a_pod_wakes_it_however_often_it_was_tried() {
        let mut queue = Queue::default();
        let mut now = Instant::now();
        put(&mut queue, "a", 0);
        for _ in 0..20 {
            assert_eq!(pop(&mut queue), Some("a".to_owned()));
            queue.wait(&"a".into(), Helps::with(&[Reason::Affinity]), "alone", now);
            queue.wake_concerned(Helps::COMPANY, now, |_| false);
            assert_eq!(queue.next_deadline(), Some(now + LEFTOVER), "it is not about this one");
            queue.wake_concerned(Helps::COMPANY, now, |_| true);
            now += BACKOFF_FIRST;
            queue.on_time(now);
        }
    }
}
