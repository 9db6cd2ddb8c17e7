//! The volumes of a pod, as directories below the node's data directory.
//!
//! A volume is made when the first container that mounts it and can open files at all is started: a component
//! that does not import `wasi:filesystem` costs no file. ConfigMaps, Secrets, projections and the downward API are
//! written by [`atomic`], so that a guest sees either the old content or the new, as under the kubelet. Volumes of claims
//! outlive the pod, and are beside its own ([`kept`]).

mod atomic;
mod content;
pub mod kept;
mod mounts;

#[cfg(test)]
use self::atomic::File;
pub use self::atomic::write;
pub use self::content::{
    CertificateRequest, Credential, Sources, TokenRequest, certificates, check, check_keys, payload, references, tokens,
};
pub use self::mounts::{Access, Bounds, COPIED_BYTES_MAX, Made, Places, Shown, make};
