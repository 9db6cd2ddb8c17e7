//! The words of a request: what it asks and by whom, its options, its body, the form it wants. Knows no verb and no store.

pub(crate) mod annotations;
pub(crate) mod body;
pub(crate) mod call;
pub(crate) mod codec;
pub(crate) mod negotiate;
pub(crate) mod options;
pub(crate) mod own;
pub(crate) mod path;
pub(crate) mod query;
pub(crate) mod spent;
