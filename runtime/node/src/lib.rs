//! The node: runs the pods that are bound to it, and tells the API server about them.
//!
//! It is an ordinary client of the API. What happens is an input of a pod's pure state machine (`pod::core`); what
//! follows are commands that the shell around it carries out with the engine, the image store and the mesh.
//!
//! | module | holds |
//! |---|---|
//! | [`config`] | what a node is told at its start |
//! | `node` | wiring, start and stop |
//! | `registration` | the Node object, its conditions, the Lease |
//! | `pod` | pods: state machine, start and stop of containers, probes, status writes |
//! | `images` | from an image name to a component that can be started |
//! | `env`, `volumes`, `downward`, `objects`, `tokens`, `certificates` | what a container is given |
//! | `network` | a guest's sockets, names and outgoing requests; the table of pods for the mesh |
//! | `logs`, `events` | what is kept of pods for people |
//! | `ingress` | the node's part in serving Ingresses: certificates from Secrets, what is told of them |
//! | `balancer` | what is told of the ports of Services that the node is a balancer of |
//! | `names` | the cluster's names, for programs of the machine |
//! | `otlp` | spans of requests, sent to a collector |
//! | `kubelet` | the HTTPS endpoint for API servers: logs, port-forward, figures |
//!
//! Annotations of a pod that this node understands: see [`annotations`].

mod addresses;
pub mod annotations;
mod balancer;
mod beneath;
mod certificates;
mod clock;
pub mod config;
mod context;
mod disk;
mod downward;
mod env;
mod events;
mod images;
mod ingress;
mod kubelet;
mod logs;
mod machine;
mod names;
mod network;
mod node;
mod objects;
mod otlp;
mod pod;
mod quantity;
mod registration;
#[cfg(test)]
mod tests;
mod text;
mod timers;
mod tokens;
mod volumes;

pub use config::{Capacity, Cidr, Config, IngressPort, IngressPorts, NotACidr, NotAPort};
pub use coracle_engine::{
    Checked, Compiler, Figure, Unfit, bench as engine_bench, check, compile_worker, neighbours as neighbours_bench,
};
pub use images::ImageError;
pub use ingress::ANNOTATION as INGRESS_ANNOTATION;
pub use node::{Error, Node};
pub use otlp::{NoEndpoint as NoOtlpEndpoint, Otlp, OtlpEndpoint};
