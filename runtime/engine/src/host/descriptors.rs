//! Files and sockets that guests have open: bounded per container, and the last ones of the process are not for guests. The containers
//! of a namespace have a share of what guests may have that shrinks as it is used up ([`share`]), however many they are: those of other
//! namespaces start, answer and run commands.
//!
//! What an instance opens is counted before it does ([`Descriptors::take`]), and what it really has whenever its table of
//! handles is looked at ([`Descriptors::count`]): a connection that it was given counts, too, and closing what was never
//! counted gives nothing back. A stream keeps its file open by itself, so it has a place of its own ([`Taken`]).

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, LazyLock, Weak};

use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::limits::Account;
use crate::machine;

static BOUNDS: LazyLock<machine::Descriptors> = LazyLock::new(machine::descriptors);

/// A namespace may have as many as are free, times this: one that alone wants all has two thirds of them; of ten, each has nearly a tenth,
/// and a twentieth is left (dynamic thresholds: Choudhury and Hahne, 1998).
const PART: u32 = 2;

/// What all guests have open: descriptors are the process's.
static OPEN: AtomicU32 = AtomicU32::new(0);

/// Look-ups of names for one namespace that the machine's resolver works on at the same time; more wait.
const LOOK_UPS_MAX: usize = 8;

/// Files of one namespace that are worked on at the same time: half of the threads that look-ups leave. More wait.
pub(super) const FILE_TURNS_MAX: usize = 16;

/// What the containers of a namespace have together.
#[derive(Debug)]
pub(crate) struct Namespace {
    open: AtomicU32,
    /// Turns to have the machine's resolver look something up.
    pub(crate) look_ups: Arc<Semaphore>,
    /// Turns to work on files.
    pub(crate) file_turns: Arc<Semaphore>,
}

impl Default for Namespace {
    fn default() -> Namespace {
        let turns = |max| Arc::new(Semaphore::new(max));
        Namespace { open: AtomicU32::new(0), look_ups: turns(LOOK_UPS_MAX), file_turns: turns(FILE_TURNS_MAX) }
    }
}

/// Those that have containers.
static NAMESPACES: LazyLock<Mutex<HashMap<String, Weak<Namespace>>>> = LazyLock::new(Mutex::default);

impl Namespace {
    pub(crate) fn of(name: &str) -> Arc<Namespace> {
        let mut all = NAMESPACES.lock();
        if let Some(found) = all.get(name).and_then(Weak::upgrade) {
            return found;
        }
        all.retain(|_, namespace| namespace.strong_count() > 0);
        let new: Arc<Namespace> = Arc::default();
        all.insert(name.to_owned(), Arc::downgrade(&new));
        new
    }

    pub(crate) fn add(&self, count: u32) {
        self.open.fetch_add(count, Relaxed);
        OPEN.fetch_add(count, Relaxed);
    }

    pub(crate) fn give(&self, count: u32) {
        self.open.fetch_sub(count, Relaxed);
        OPEN.fetch_sub(count, Relaxed);
    }

    /// Whether its containers may open one more.
    fn has_more(&self) -> bool {
        lowest()
            .is_some_and(|lowest| self.open.load(Relaxed) < share(BOUNDS.number_max, lowest.max(OPEN.load(Relaxed))))
    }
}

/// How many a namespace may have while so many of those for guests are taken.
fn share(number_max: u32, taken: u32) -> u32 {
    number_max.saturating_sub(taken).saturating_mul(PART)
}

/// The lowest number that is free, which the kernel gives next: all below it are taken.
fn lowest() -> Option<u32> {
    u32::try_from(File::open("/dev/null").ok()?.as_raw_fd()).ok()
}

/// Takes one for a container: false at its bound, or its namespace's, or the node's.
fn take(account: &Account) -> bool {
    account.namespace.has_more() && account.take_descriptor(BOUNDS.container_max)
}

/// What one instance has open.
pub(crate) struct Descriptors {
    account: Arc<Account>,
    open: u32,
    /// Directories that it was given, which stay open as long as it lives.
    mounts: u32,
}

impl Descriptors {
    /// None when there is no room for the directories that an instance is given.
    pub(crate) fn new(account: Arc<Account>, mounts: u32) -> Option<Descriptors> {
        let mut descriptors = Descriptors { account, open: 0, mounts };
        (0..mounts).all(|_| descriptors.take()).then_some(descriptors)
    }

    pub(crate) fn account(&self) -> &Arc<Account> {
        &self.account
    }

    /// Whether one more may be opened, which is counted then.
    pub(crate) fn take(&mut self) -> bool {
        let is_free = take(&self.account);
        self.open += u32::from(is_free);
        is_free
    }

    /// One was closed, or not opened after all. What is wrong about it is set right by the next count.
    pub(crate) fn give(&mut self) {
        if self.open > self.mounts {
            self.open -= 1;
            self.account.give_descriptors(1);
        }
    }

    /// So many are among its handles.
    pub(crate) fn count(&mut self, handles: u32) {
        // Handles of directories that it was given open nothing, and cannot be told from the others.
        let open = handles.max(self.mounts);
        if open > self.open {
            self.account.add_descriptors(open - self.open);
        } else {
            self.account.give_descriptors(self.open - open);
        }
        self.open = open;
    }
}

impl Drop for Descriptors {
    fn drop(&mut self) {
        self.account.give_descriptors(self.open);
    }
}

/// One more descriptor of a container, given back when this is dropped.
pub(super) struct Taken(Arc<Account>);

impl Taken {
    /// None at the bound of the container, its namespace or the node.
    pub(super) fn take(account: &Arc<Account>) -> Option<Taken> {
        take(account).then(|| Taken(account.clone()))
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.0.give_descriptors(1);
    }
}

/// A socket that the node has open on behalf of a container, counted among those of its instances while this is held.
pub struct OpenSocket {
    _taken: Taken,
}

impl OpenSocket {
    /// None at the bound of the container, its namespace or the node.
    pub(crate) fn take(account: &Arc<Account>) -> Option<OpenSocket> {
        Taken::take(account).map(|_taken| OpenSocket { _taken })
    }
}

impl std::fmt::Debug for OpenSocket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OpenSocket")
    }
}

/// Whether a container could open one more.
pub(crate) fn has_room(account: &Account) -> bool {
    account.descriptors() < BOUNDS.container_max && account.namespace.has_more()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Spec;
    use crate::memory::NodeMemory;

    #[test]
    fn what_was_never_counted_gives_nothing_back_and_what_is_there_counts() {
        let account = Account::new(&Spec::new("a"), &NodeMemory::new(u64::MAX));
        let mut descriptors = Descriptors::new(account.clone(), 2).unwrap();
        assert!(descriptors.take() && descriptors.take());
        assert_eq!(account.descriptors(), 4);
        // Handles of what it was given, closed again and again.
        (0..100).for_each(|_| descriptors.give());
        descriptors.count(4);
        assert_eq!(account.descriptors(), 4, "two of its own, two that it was given");
        descriptors.count(9);
        assert_eq!(account.descriptors(), 9, "connections that came by themselves");
        descriptors.count(0);
        assert_eq!(account.descriptors(), 2);
        let taken = Taken::take(&account).unwrap();
        drop(descriptors);
        assert_eq!(account.descriptors(), 1);
        drop(taken);
        assert_eq!(account.descriptors(), 0);
        // What the node opens for it is among its own.
        let held: Vec<OpenSocket> = std::iter::from_fn(|| OpenSocket::take(&account)).collect();
        assert_eq!(held.len(), BOUNDS.container_max as usize);
        drop(held);
        assert_eq!(account.descriptors(), 0);
    }

    #[test]
    fn one_namespace_does_not_take_all_however_many_containers_it_has() {
        let node = NodeMemory::new(u64::MAX);
        let account = |namespace: &str| Account::new(&Spec { namespace: namespace.into(), ..Spec::new("a") }, &node);
        let greedy: Vec<Arc<Account>> = (0..32).map(|_| account("greedy")).collect();
        let taken: Vec<Taken> = greedy.iter().flat_map(|account| std::iter::from_fn(|| Taken::take(account))).collect();
        let (count, all) = (taken.len() as u32, BOUNDS.number_max);
        assert!(count >= all / 4 && count <= all / 3 * 2 + PART, "{count} of {all}");
        assert!(!has_room(&greedy[31]));
        // The directories of a pod of somebody else, and what that opens.
        let other = account("other");
        let mut descriptors = Descriptors::new(other.clone(), 4).expect("it starts");
        assert!((0..BOUNDS.container_max.min(all / 12)).all(|_| descriptors.take()));
        assert!(has_room(&account("third")));
        drop((taken, descriptors));
        let open = |account: &Arc<Account>| account.namespace.open.load(Relaxed);
        assert_eq!((open(&greedy[0]), open(&other)), (0, 0));
    }

    #[test]
    fn a_share_shrinks_as_what_is_free_does() {
        for (taken, expected) in [(0, 2000), (400, 1200), (999, 2), (1000, 0), (2000, 0)] {
            assert_eq!(share(1000, taken), expected, "{taken}");
        }
    }
}
