//! Runs WebAssembly components: the only crate that knows wasmtime.
//!
//! ```text
//!  file ─► Engine::prepare ─► Component ─┬─► Engine::start_http ────► HttpService ─► handle(request)
//!          (compile once, map)           └─► Engine::start_command ─► Command ─────► wait()
//! ```
//!
//! * [`Engine`] compiles each component once, in a limited process of its own, and maps the result.
//! * [`Component`] knows its world by what it exports; what it imports and nobody offers is an error with a name.
//! * [`Spec`] is all that an instance gets: arguments, environment, directories, output, limits, network.
//! * [`HttpService`] has an instance while it answers; [`Command`] has one until it ends.
//!
//! Invariants: a guest gives its thread back after a slice, whatever it does, and never runs on a thread of its caller but
//! the gateway's ([`Engine::gateway`]); memory of all instances of a container is one sum, that of all containers another;
//! a store that trapped is thrown away; no address reaches the kernel that [`Network`] has not named; no request leaves
//! but through [`Outbound`]; nothing that is not compiled by this crate is ever loaded.

mod adapt;
mod bench;
mod body;
mod cache;
mod check;
mod command;
mod compile;
mod component;
mod config;
mod engine;
mod error;
mod exec;
mod exit;
mod facts;
mod functions;
mod guest;
mod host;
mod http;
mod limits;
mod machine;
mod memory;
mod meter;
mod neighbours;
mod network;
mod pipe;
mod settings;
mod slice;
mod spec;
#[cfg(test)]
mod tests;

pub use self::bench::{Figure, bench};
pub use self::body::{Body, BoxError, empty, full};
pub use self::check::{Checked, Unfit, check};
pub use self::command::{Command, Invocation};
pub use self::compile::{COMPONENT_BYTES_MAX, compile_worker};
pub use self::component::{Component, World};
pub use self::config::{Compiler, Config};
pub use self::engine::{Engine, Phase};
pub use self::error::Error;
pub use self::exit::Exit;
pub use self::host::{Chain, NoChain, OpenSocket, Outbound, OutboundError, Timeouts, look_up};
pub use self::http::{Counters, HttpOptions, HttpService, Probe, RequestError};
pub use self::limits::Usage;
pub use self::memory::{NodeUsage, Qos};
pub use self::neighbours::neighbours;
pub use self::network::{Network, NoNetwork, Protocol, Refused, Resolved, SocketUse};
pub use self::pipe::Pipe;
pub use self::spec::{Discard, Mount, Sink, Spec};
