//! Everything that needs more than one crate, in one binary: linking is what costs.

mod arrows;
mod autoscaling;
mod backup;
mod command_line;
mod crash;
mod duties;
mod failover;
mod gateway;
mod images;
mod ingress;
mod kubectl;
mod linearizability;
mod nodes;
mod policies;
mod proof;
mod seeing;
mod servers;
mod services;
mod sets;
mod time;
mod upgrade;
mod volumes;
mod workloads;
