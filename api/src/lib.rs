//! The vocabulary of both planes: what an API object is, how it is read, checked, changed and told apart.
//!
//! Data and pure functions only: no async runtime, no I/O, no clock (a function that needs the time takes it).
//! Objects are JSON values (`serde_json::Value`); what is known of their types is data ([`schema`]).

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
