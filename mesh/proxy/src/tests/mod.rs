//! The whole mesh of a node, with a scripted API server before it and scripted endpoints behind it.

mod calls;
mod datagrams;
mod demand;
mod gateway;
mod node_ports;
mod observe;
mod opening;
mod policies;
pub(crate) mod world;
