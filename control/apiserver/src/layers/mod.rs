//! What every request passes through on its way to a verb: time, turns, bytes, and being counted.

mod account;
pub(crate) mod answers;
pub(crate) mod bodies;
pub(crate) mod deadline;
pub(crate) mod fair;
pub(crate) mod lanes;
pub(crate) mod metrics;
mod slot;

pub use account::COUNTED;
pub(crate) mod stalls;
pub(crate) mod websocket;
