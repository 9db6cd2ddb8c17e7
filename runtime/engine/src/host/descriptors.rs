//! Files and sockets that guests have open: bounded per container, and the last ones of the process are not for guests.
//!
//! What an instance opens is counted before it does ([`Descriptors::take`]), and what it really has whenever its table of
//! handles is looked at ([`Descriptors::count`]): a connection that it was given counts, too, and closing what was never
//! counted gives nothing back. A stream keeps its file open by itself, so it has a place of its own ([`Taken`]).

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::{Arc, LazyLock};

use crate::limits::Account;
use crate::machine;

static BOUNDS: LazyLock<machine::Descriptors> = LazyLock::new(machine::descriptors);

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
        let is_free = node_has_more() && self.account.take_descriptor(BOUNDS.container_max);
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
    /// None at the bound of the container or of the node.
    pub(super) fn take(account: &Arc<Account>) -> Option<Taken> {
        let is_free = node_has_more() && account.take_descriptor(BOUNDS.container_max);
        is_free.then(|| Taken(account.clone()))
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
    /// None at the bound of the container or of the node.
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
    account.descriptors() < BOUNDS.container_max && node_has_more()
}

/// Whether descriptors of this process are left for guests: the kernel gives the lowest number that is free.
fn node_has_more() -> bool {
    File::open("/dev/null")
        .is_ok_and(|lowest| u32::try_from(lowest.as_raw_fd()).is_ok_and(|number| number < BOUNDS.number_max))
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
}
