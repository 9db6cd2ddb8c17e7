//! The vocabulary of both planes: what an API object is, how it is read, checked, changed and told apart.
//!
//! Data and pure functions only: no async runtime, no I/O, no clock (a function that needs the time takes it).
//! Objects are JSON values (`serde_json::Value`); what is known of their types is data ([`schema`]).

// The first of our crates to be compiled: elsewhere it would fail in many places, and say nothing that helps.
#[cfg(not(target_os = "linux"))]
compile_error!("Coracle runs on Linux only: build and run it there, or in a virtual machine");

pub mod cel;
pub mod codec;
pub mod custom;
pub mod kinds;
pub mod meta;
pub mod patch;
pub mod pem;
pub mod schedule;
pub mod schema;
#[cfg(test)]
mod spent;
pub mod status;
pub mod volumes;
