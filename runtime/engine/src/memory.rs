//! The memory of all guests of a node: one ceiling, and who has to go when it is reached.
//!
//! Each container has a bound of its own (see [`crate::limits`]); this is the one above all of them. At the ceiling the
//! guest that is furthest above what it asked for ends as out of memory, those that asked for nothing first, as the
//! kernel's OOM killer would choose by `oom_score_adj`. Whoever else asks meanwhile is given some slack. The process itself is
//! never the one that is killed.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::limits::Account;

/// How far guests may go above the ceiling while the one that has to end ends: a sixteenth.
const SLACK: u64 = 16;
/// The same for those that asked for nothing: the rest is for the others.
const SLACK_BEST_EFFORT: u64 = 2 * SLACK;

/// Kubernetes' classes of service, worst first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Qos {
    /// Asked for nothing, limits nothing: has what the others leave.
    BestEffort,
    /// Asked for something.
    #[default]
    Burstable,
    /// Asked for what it is limited to.
    Guaranteed,
}

/// The memory of all guests.
pub(crate) struct NodeMemory {
    max: u64,
    held: AtomicU64,
    peak: AtomicU64,
    /// Who has it.
    accounts: Mutex<Vec<Weak<Account>>>,
}

/// What the guests of a node hold together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeUsage {
    /// Bytes held now: memories, tables, and what the host holds for guests.
    pub memory_bytes: u64,
    /// The most there was at one time.
    pub memory_bytes_peak: u64,
    /// The ceiling.
    pub memory_bytes_max: u64,
}

impl std::fmt::Debug for NodeMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeMemory").field("held", &self.held).field("max", &self.max).finish()
    }
}

impl NodeMemory {
    pub(crate) fn new(max: u64) -> Arc<NodeMemory> {
        Arc::new(NodeMemory {
            max: max.max(1),
            held: AtomicU64::new(0),
            peak: AtomicU64::new(0),
            accounts: Mutex::default(),
        })
    }

    pub(crate) fn max(&self) -> u64 {
        self.max
    }

    pub(crate) fn usage(&self) -> NodeUsage {
        NodeUsage {
            memory_bytes: self.held.load(Relaxed),
            memory_bytes_peak: self.peak.load(Relaxed),
            memory_bytes_max: self.max,
        }
    }

    pub(crate) fn join(&self, account: &Arc<Account>) {
        let mut accounts = self.accounts.lock();
        // Those that are gone leave when there are as many of them as of the others.
        if accounts.len() == accounts.capacity() {
            accounts.retain(|account| account.strong_count() > 0);
        }
        accounts.push(Arc::downgrade(account));
    }

    /// Takes memory for `account`, which has it within its own bound already. False: there is none, either because the asker
    /// is the one that has to go, or because even the slack is used up.
    pub(crate) fn take(&self, account: &Account, bytes: u64) -> bool {
        if self.take_below(self.max, bytes) {
            return true;
        }
        // The pressure ends when those who go have gone, which is soon; meanwhile there is the slack.
        if self.held.load(Relaxed).saturating_sub(self.owed()).saturating_add(bytes) > self.max {
            let Some(victim) = self.victim() else { return false };
            let asker: *const Account = account;
            if std::ptr::eq(Arc::as_ptr(&victim), asker) {
                return false;
            }
            tracing::warn!(
                name = victim.name(),
                bytes = victim.usage().memory_bytes,
                "guests have taken the node's memory: ends"
            );
            victim.kill_for_memory();
        }
        // Whoever is not the one that ends does not suffer for it, whatever its class: a neighbour that asked for nothing, too.
        let slack = if account.qos() == Qos::BestEffort { SLACK_BEST_EFFORT } else { SLACK };
        !account.is_killed() && self.take_below(self.max.saturating_add(self.max / slack), bytes)
    }

    fn take_below(&self, max: u64, bytes: u64) -> bool {
        let fits = |held: u64| held.checked_add(bytes).filter(|sum| *sum <= max);
        match self.held.fetch_update(Relaxed, Relaxed, fits) {
            Ok(before) => {
                self.peak.fetch_max(before + bytes, Relaxed);
                true
            }
            Err(_) => false,
        }
    }

    pub(crate) fn give(&self, bytes: u64) {
        self.held.fetch_sub(bytes, Relaxed);
    }

    /// Memory beside that of guests, which counts under the same ceiling.
    pub(crate) fn beside(self: &Arc<Self>) -> Beside {
        Beside { node: self.clone(), held: 0 }
    }

    /// What those who are about to go will give back.
    fn owed(&self) -> u64 {
        let accounts = self.accounts.lock();
        let going = accounts.iter().filter_map(Weak::upgrade).filter(|account| account.is_killed());
        going.map(|account| account.usage().memory_bytes).sum()
    }

    /// Who goes first: the lowest class, and within it the one that is furthest above what it asked for. None when all
    /// have no more than they asked for.
    fn victim(&self) -> Option<Arc<Account>> {
        let accounts = self.accounts.lock();
        let above = accounts.iter().filter_map(Weak::upgrade).filter_map(|account| {
            let above = account.usage().memory_bytes.saturating_sub(account.memory_request());
            (above > 0 && !account.is_killed()).then_some((account, above))
        });
        let (victim, _) = above.min_by_key(|(account, above)| (account.qos(), std::cmp::Reverse(*above)))?;
        Some(victim)
    }
}

/// What a compiler's process holds. At the ceiling it is the one that ends, and no guest does.
pub(crate) struct Beside {
    node: Arc<NodeMemory>,
    held: u64,
}

impl Beside {
    /// It holds so much now; false when the node has not as much.
    pub(crate) fn set(&mut self, bytes: u64) -> bool {
        let more = bytes.saturating_sub(self.held);
        if more > 0 && !self.node.take_below(self.node.max, more) {
            return false;
        }
        self.node.give(self.held.saturating_sub(bytes));
        self.held = bytes;
        true
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        self.node.give(self.held);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Spec;
    use crate::exit::OverLimit;

    fn account(node: &Arc<NodeMemory>, qos: Qos, request: u64) -> Arc<Account> {
        Account::new(&Spec { qos, memory_bytes_request: Some(request), ..Spec::new("a") }, node)
    }

    #[test]
    fn at_the_ceiling_the_largest_of_the_lowest_class_goes_and_never_one_that_keeps_to_its_request() {
        let node = NodeMemory::new(1000);
        let guaranteed = account(&node, Qos::Guaranteed, 600);
        let small = account(&node, Qos::BestEffort, 0);
        let large = account(&node, Qos::BestEffort, 0);
        guaranteed.take(500).unwrap();
        small.take(100).unwrap();
        large.take(390).unwrap();
        small.take(20).expect("another one goes, and does not take its neighbour with it");
        assert!(large.is_killed() && !small.is_killed());
        assert_eq!(large.take(1), Err(OverLimit::Node), "who goes gets nothing more");
        assert_eq!(small.take(30), Err(OverLimit::Node), "half of the slack is for those that asked for something");
        guaranteed.take(40).unwrap();
        assert!(!small.is_killed(), "what the large one gives back is enough");
        assert_eq!(node.usage().memory_bytes, 1050);
        assert_eq!(guaranteed.take(200), Err(OverLimit::Node), "the slack is a bound, too");
        large.give(390);
        assert_eq!(large.usage().memory_bytes, 0);
        guaranteed.take(370).unwrap();
        assert!(small.is_killed() && !guaranteed.is_killed(), "the next one in line, when it was not");
        small.give(120);
        guaranteed.take(60).unwrap();
        assert!(!guaranteed.is_killed());
        assert_eq!(node.usage(), NodeUsage { memory_bytes: 970, memory_bytes_peak: 1050, memory_bytes_max: 1000 });
    }

    #[test]
    fn what_is_beside_guests_counts_and_ends_nobody() {
        let node = NodeMemory::new(1000);
        let guest = account(&node, Qos::BestEffort, 0);
        guest.take(600).unwrap();
        let mut compiler = node.beside();
        assert!(compiler.set(300) && compiler.set(100) && compiler.set(400));
        assert!(!compiler.set(401) && !guest.is_killed());
        assert_eq!(node.usage().memory_bytes, 1000);
        drop(compiler);
        assert_eq!(node.usage().memory_bytes, 600);
    }
}
