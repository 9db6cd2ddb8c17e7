//! Asking again: when, how often, and with which body.

mod budget;
mod replay;

use http::Method;

pub(crate) use self::budget::Budget;
pub(crate) use self::replay::{Replay, empty};

/// Endpoints that one request is sent to at most.
pub(crate) const ATTEMPTS_MAX: usize = 3;

/// Whether a request that somebody may have acted on may be repeated (RFC 9110 §9.2.2).
pub(crate) fn is_idempotent(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE)
}
