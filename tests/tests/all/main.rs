//! Everything that needs more than one crate, in one binary: linking is what costs.

mod arrows;
mod backup;
mod command_line;
mod crash;
mod images;
mod kubectl;
mod nodes;
mod servers;
mod time;
mod workloads;
