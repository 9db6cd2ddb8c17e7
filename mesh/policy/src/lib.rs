//! Who may connect to whom, as NetworkPolicies say: matching, and nothing else. No clock, no I/O, no task.
//!
//! [`Rules`] are what policies and the labels of namespaces say, compiled once as each of them changes; a [`Table`] answers from them
//! ([`Table::allows`]) and remembers what it has answered. Who asks says who is meant: a [`Workload`] is a pod as others know it, a
//! [`Source`] somebody who calls, a [`Destination`] somebody who is called.
//!
//! The rules are those of `networking.k8s.io/v1`: a pod that no policy selects may do everything; one that is selected for a direction
//! may do what some policy of its namespace allows, so that policies only add up. What Kubernetes leaves open is decided here:
//!
//! - A pod always reaches itself, and its node always reaches it.
//! - An `ipBlock` is about every address but those near this machine (loopback, link-local, unspecified); a pod's is one of them.
//! - A name for a port is looked up where it leads: among the ports that the called pod declares. Elsewhere it stands for none.

mod block;
mod memory;
mod rule;
mod rules;
mod table;
#[cfg(test)]
mod tests;
mod workload;

pub use block::Block;
pub use rules::Rules;
pub use table::{Direction, Table};
pub use workload::{Destination, NamedPort, Port, Protocol, Source, TEXT_BYTES_MAX, TRUST_DOMAIN, Workload};
