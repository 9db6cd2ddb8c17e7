//! The four ways to change a part of an object: JSON patch, merge patch, strategic merge patch and server-side apply.
//!
//! All work on JSON values in the version of the request. What comes out may have fields that the schema lacks, nulls and
//! wrong types: the caller decodes it again, as if a client had sent it whole.

pub mod apply;
mod json;
mod merge;
mod strategic;

pub use json::{json, json_if, json_problems};
pub use merge::merge;
pub use strategic::strategic;
