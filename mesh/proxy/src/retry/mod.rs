//! Asking again: when, how often, and with which body.

mod budget;
mod replay;

use http::Method;

pub(crate) use self::budget::Budget;
pub(crate) use self::replay::{AHEAD_BYTES_MAX, Replay, empty};

/// Endpoints that one request is sent to at most.
pub(crate) const ATTEMPTS_MAX: usize = 3;
/// Nodes that are asked whether one request or connection may come to a pod of theirs, and say that it may not, at most: each costs a way
/// there and back. Those of which this node can tell are not asked.
pub(crate) const REFUSALS_MAX: usize = 64;

/// Whether a request that somebody may have acted on may be repeated (RFC 9110 §9.2.2).
pub(crate) fn is_idempotent(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE)
}
