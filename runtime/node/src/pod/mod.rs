//! Pods: the pure state machine ([`core`]) and the shell that carries out what it says.
//!
//! A pod at rest is a [`slot::Slot`] and nothing else: no task, no timer but for its probes, no open file. An input is
//! taken under the slot's lock ([`Pods::input`]); the commands that follow are carried out under it too, in
//! order, because none of them waits: what takes time is spawned and comes back as an input.
//!
//! ```text
//!  watch, timers, guests' ends, probes ─► input ─► core ─► commands ─► tasks ─► input …
//!                                                   └────► dirty ─► report (one status PATCH at a time per pod)
//! ```

pub mod core;

mod admission;
mod commands;
mod ends;
pub(crate) mod files;
mod grpc;
mod hooks;
mod prepare;
mod probe;
mod report;
mod slot;
mod start;
mod stop;
mod supported;
mod table;

#[cfg(test)]
pub(crate) use self::report::SETTLE;
pub(crate) use self::slot::Handle;
pub use self::slot::Slot;
pub(crate) use self::slot::Stdin;
pub(crate) use self::start::chain;
pub use self::table::Pods;
