//! The HTTP edge: what a request asks, and how an answer looks.

pub(crate) mod body;
pub(crate) mod call;
pub(crate) mod codec;
mod compress;
pub(crate) mod negotiate;
pub(crate) mod options;
pub(crate) mod path;
pub(crate) mod query;
pub(crate) mod respond;
pub(crate) mod router;
