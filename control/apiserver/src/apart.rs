//! Calls whose state lies apart from their caller's.

use std::pin::Pin;

/// Makes a future on the heap.
///
/// The state of an `async` function holds that of all it awaits, and a build without optimisations moves it about on the stack
/// three times for each: a request that falls through ten calls takes most of a worker's stack before anything was done. Where
/// a call is large and its caller is, too, it is begun here, so that neither lies in the other; what making it takes of the stack is
/// given back before it begins. It costs an allocation.
#[inline(never)]
pub(crate) fn apart<F: Future>(make: impl FnOnce() -> F) -> Pin<Box<F>> {
    Box::pin(make())
}
