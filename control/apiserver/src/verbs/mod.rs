//! The verbs, written once for every kind.

pub(crate) mod create;
pub(crate) mod delete;
pub(crate) mod deletecollection;
pub(crate) mod get;
pub(crate) mod list;
pub(crate) mod own;
pub(crate) mod ownership;
pub(crate) mod patch;
pub(crate) mod selection;
mod token;
pub(crate) mod update;
pub(crate) mod watch;
pub(crate) mod write;
