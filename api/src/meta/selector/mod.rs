//! Selectors: which objects a list, a watch, a Service or a controller means.

mod field;
mod label;
mod parse;
mod validate;

pub use field::{FieldSelector, FieldTerm};
pub use label::{LabelSelector, Labels, Operator, Requirement};
pub use validate::validate_label_selector;

/// A selector that cannot be read, in the words of apimachinery.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SelectorError(pub String);
