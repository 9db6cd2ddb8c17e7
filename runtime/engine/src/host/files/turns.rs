//! Turns to work on files: of the container, which has few, and of its namespace, whose containers together leave threads for those
//! of others.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::host::Namespace;
use crate::limits::Account;

/// Whose turns work on files takes.
#[derive(Clone)]
pub(super) struct Turns {
    container: Arc<Semaphore>,
    namespace: Arc<Namespace>,
}

/// A turn, which is over when this is dropped.
pub(super) struct Permit {
    _container: OwnedSemaphorePermit,
    _namespace: OwnedSemaphorePermit,
    /// Who comes next of the same namespace waits for the same turns.
    _of: Arc<Namespace>,
}

impl Turns {
    pub fn of(account: &Account) -> Turns {
        Turns { container: account.file_turns.clone(), namespace: account.namespace.clone() }
    }

    /// The next one. The semaphores are never closed.
    pub async fn next(self) -> Option<Permit> {
        let container = self.container.acquire_owned().await.ok()?;
        let namespace = self.namespace.file_turns.clone().acquire_owned().await.ok()?;
        Some(Permit { _container: container, _namespace: namespace, _of: self.namespace })
    }
}

/// Turns of a stream, for which it waits whenever it is polled.
pub(super) struct Queue {
    pub turns: Turns,
    place: Option<Pin<Box<dyn Future<Output = Option<Permit>> + Send + Sync>>>,
}

impl Queue {
    pub fn new(turns: Turns) -> Queue {
        Queue { turns, place: None }
    }

    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Permit>> {
        let turns = &self.turns;
        let place = self.place.get_or_insert_with(|| Box::pin(turns.clone().next()));
        let next = place.as_mut().poll(context);
        if next.is_ready() {
            self.place = None;
        }
        next
    }

    /// Nobody waits any more: a place in the line would become a turn that rests.
    pub fn leave(&mut self) {
        self.place = None;
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use futures::task::noop_waker_ref;

    use super::*;
    use crate::Spec;
    use crate::host::descriptors::FILE_TURNS_MAX as NAMESPACE_MAX;
    use crate::limits::FILE_TURNS_MAX;
    use crate::memory::NodeMemory;

    fn account(namespace: &str) -> Arc<Account> {
        Account::new(&Spec { namespace: namespace.into(), ..Spec::new("a") }, &NodeMemory::new(u64::MAX))
    }

    #[test]
    fn a_namespace_has_some_turns_however_many_containers_it_has() {
        let accounts: Vec<_> = (0..10).map(|_| account("turns")).collect();
        let turn = |account: &Account| Turns::of(account).next().now_or_never().flatten();
        let mut taken: Vec<Permit> = accounts.iter().flat_map(|account| std::iter::from_fn(|| turn(account))).collect();
        assert_eq!(taken.len(), NAMESPACE_MAX);
        assert!(turn(&account("other")).is_some());
        // Of one that is gone a thread may still work, and the next of its name waits for that, too.
        drop(accounts);
        let next = account("turns");
        assert!(turn(&next).is_none());
        taken.pop();
        assert!(turn(&next).is_some());
        taken.clear();
        let own: Vec<Permit> = std::iter::from_fn(|| turn(&next)).collect();
        assert_eq!(own.len(), FILE_TURNS_MAX);
    }

    #[test]
    fn who_waits_no_more_has_no_place_in_the_line() {
        let account = account("line");
        let mut taken: Vec<Permit> =
            std::iter::from_fn(|| Turns::of(&account).next().now_or_never().flatten()).collect();
        let mut queue = Queue::new(Turns::of(&account));
        let mut context = Context::from_waker(noop_waker_ref());
        assert!(queue.poll_next(&mut context).is_pending());
        queue.leave();
        taken.pop();
        assert!(Turns::of(&account).next().now_or_never().flatten().is_some());
        assert!(queue.poll_next(&mut context).is_ready());
    }
}
