//! What every request passes through on its way to a verb: time, turns, bytes, and being counted.

pub(crate) mod bodies;
pub(crate) mod deadline;
pub(crate) mod lanes;
pub(crate) mod metrics;
pub(crate) mod websocket;
