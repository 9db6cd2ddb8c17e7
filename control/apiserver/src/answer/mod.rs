//! How an answer looks: an object, a row of a table, its metadata, a status, in the form that was chosen.

mod columns;
pub(crate) mod compress;
pub(crate) mod metadata;
pub(crate) mod pieces;
pub(crate) mod respond;
pub(crate) mod table;
