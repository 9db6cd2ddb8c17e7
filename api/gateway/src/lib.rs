//! Gateway API (`gateway.networking.k8s.io/v1`): what Gateways, HTTPRoutes and GRPCRoutes mean, and what is said of them. No clock, no I/O, no task.
//!
//! [`Objects`] are the objects as they are known; [`Objects::resolve`] says which listeners there are, which routes are attached to them,
//! and what is wrong with each ([`Resolved`]). Nodes make routes of that and serve them; a controller writes it into statuses
//! ([`status`]). Both look at the same objects and so come to the same.
//!
//! ```text
//! GatewayClass ─► Gateway ─► listeners (listener.rs) ◄─ attach (attach.rs) ─ routes ─► rules (rule.rs) ─► Services
//!                              │ Secrets                                                    ReferenceGrants (grant.rs)
//! ```
//!
//! All Gateways of our classes have the same addresses, those of nodes. So listeners of two Gateways with one port and host are one
//! listener with the routes of both; where their protocols differ, the older one has the port.

mod attach;
pub mod follow;
mod grant;
mod grpc;
mod host;
mod kinds;
mod known;
mod listener;
mod resolve;
mod rivals;
mod rule;
mod served;
pub mod status;
#[cfg(test)]
mod tests;
mod text;

use std::sync::Arc;

pub use grant::Grant;
pub use host::Hostname;
pub use kinds::{Class, Gateway, Meta, Route, RouteKind};
pub use known::{Known, Said};
pub use listener::Protocol;
pub use resolve::{GatewayState, ListenerState, Objects, ParentState, Resolved, RouteState};
pub use rule::{
    Action, Conditions, Filters, Forward, HeaderChanges, Match, Mirror, PathChange, PathMatch, Rank, Redirect, Rewrite,
    Rule, Share, Target,
};
pub use served::{PORTS_MAX, PortState, PortStates, Served, ServedAt};
pub use text::{Pattern, TextMatch};

/// The group of all these kinds.
pub const GROUP: &str = "gateway.networking.k8s.io";
/// `spec.controllerName` of classes whose Gateways nodes serve.
pub const CONTROLLER: &str = "coracle.dev/gateway";
/// The class that is made when there are classes.
pub const CLASS: &str = "coracle";
/// The kinds that are followed: name, plural, version. `ReferenceGrant` is not in v1.
pub const KINDS: [(&str, &str, &str); 5] = [
    ("GatewayClass", "gatewayclasses", "v1"),
    ("Gateway", "gateways", "v1"),
    ("HTTPRoute", "httproutes", "v1"),
    ("GRPCRoute", "grpcroutes", "v1"),
    ("ReferenceGrant", "referencegrants", "v1beta1"),
];

/// Namespace and name.
pub type Key = (Arc<str>, Arc<str>);

/// What a condition says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Its status.
    pub holds: bool,
    /// In a word.
    pub reason: &'static str,
    /// In words.
    pub message: String,
}

impl Verdict {
    pub(crate) fn yes(reason: &'static str) -> Verdict {
        Verdict { holds: true, reason, message: String::new() }
    }

    pub(crate) fn no(reason: &'static str, message: impl Into<String>) -> Verdict {
        Verdict { holds: false, reason, message: message.into() }
    }
}
