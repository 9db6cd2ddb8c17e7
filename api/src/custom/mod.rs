//! Custom resources: kinds that a CustomResourceDefinition makes while the server runs (kubernetes-api §22).
//!
//! ```text
//! CustomResourceDefinition (JSON) ─► Definition: names, versions          ─► what is served, discovery
//!                                 └► Schemas: a Structural for each version ─► CustomKind: reads, prunes, fills in, checks,
//!                                                                              shows, as any other kind's strategy
//! ```
//! Everything here is owned by whoever holds it: a kind goes when nobody serves it any more.

mod coerce;
mod defaults;
mod definition;
mod embedded;
pub(crate) mod format;
mod kind;
mod lists;
pub mod names;
pub mod openapi;
mod path;
pub(crate) mod pattern;
pub(crate) mod rules;
mod structural;
#[cfg(test)]
mod tests;
mod typed;
mod validate;

pub use coerce::{decode, decode_value};
pub(crate) use defaults::unfold;
pub use defaults::{TooMuch, apply as apply_defaults};
pub use definition::{CLEANUP, Definition, ESTABLISHED, NAMES_ACCEPTED, Names, Scale, TERMINATING, Version, order};
pub use format::Format;
pub use kind::{Column, CustomKind, Schemas, at};
pub use path::JsonPath;
pub(crate) use structural::Additional;
pub use structural::{Structural, Type};
pub use validate::validate;

use serde_json::Value;

use crate::meta::field::FieldErrors;

/// Whether a default of a schema is what the schema would make of it: what is not said of it is pruned.
pub(crate) fn is_pruned(default: &Value, schema: &Structural) -> bool {
    let mut pruned = default.clone();
    !coerce::prunes(&mut pruned, schema)
}

/// Checks a default, which stands at `path`; gives the steps that it took.
pub(crate) fn check_default(schema: &Structural, default: &Value, path: &str, errors: &mut FieldErrors) -> usize {
    embedded::validate(schema, default, &mut path.to_owned(), errors);
    validate::validate_at(schema, default, None, path, errors)
}
