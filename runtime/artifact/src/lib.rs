//! Images: pulls WebAssembly components from OCI registries and keeps them on disk.
//!
//! An image name is first looked for in the registry that the cluster carries itself ("embedded", plain
//! http on loopback), then in the registry that its name says (docker.io when it says none). What is pulled is
//! verified against its digest and kept in a content-addressed store of bounded size; a component that a
//! pod still uses is never evicted. Concurrent pulls of one image by one owner are one pull.
//!
//! | module | holds |
//! |---|---|
//! | [`name`] | image names as Kubernetes users write them |
//! | [`layout`] | which layer of a manifest is the component (CNCF, oras, Spin, wasmCloud, runwasi, docker) |
//! | [`credential`] | pull secrets, and which of them belong to a registry |
//! | [`blobs`] | the content-addressed store and its eviction |
//! | [`registry`] | registries, spoken to within bounds |
//! | [`store`] | the door: [`Store::pull`] |
//! | `turns` | who may download and unpack, and how much at a time |

pub mod blobs;
pub mod credential;
mod error;
pub mod layout;
pub mod name;
pub mod registry;
pub mod store;
mod turns;
mod unpack;

pub use credential::Credential;
pub use error::PullError;
pub use name::ImageName;
pub use store::{Artifact, Config, PullPolicy, Store};

#[cfg(test)]
mod tests;
