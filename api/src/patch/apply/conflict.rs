//! What an apply is told when others own what it changes.

use std::borrow::Cow;

use super::element;
use super::fieldset::FieldSet;
use super::managers::{Entry, Operation};
use crate::meta::text::quote;
use crate::status::{Cause, Status};

/// Fields that a manager owns and an apply would change.
#[derive(Debug, Clone)]
pub(super) struct Conflict {
    identity: String,
    manager: String,
    pub set: FieldSet,
}

impl Conflict {
    pub fn new(entry: &Entry, set: FieldSet) -> Self {
        Self { identity: entry.identity(), manager: shown(entry), set }
    }
}

/// A manager for people: `"helm"`, `"kubectl" with subresource "scale" using apps/v1`.
fn shown(entry: &Entry) -> String {
    let mut out = quote(&entry.manager);
    if !entry.subresource.is_empty() {
        out.push_str(&format!(" with subresource {}", quote(&entry.subresource)));
    }
    if entry.operation == Operation::Update {
        out.push_str(&format!(" using {}", entry.api_version));
    }
    out
}

/// The conflicts as the answer to the client.
pub(super) fn status(mut conflicts: Vec<Conflict>) -> Status {
    conflicts.sort_by(|a, b| a.identity.cmp(&b.identity));
    let mut causes = Vec::new();
    let mut lines = Vec::new();
    for conflict in &conflicts {
        lines.push(format!("conflicts with {}:", conflict.manager));
        for path in conflict.set.paths() {
            let path: String = path.iter().map(|step| element::shown(step)).collect();
            lines.push(format!("- {path}"));
            let message = format!("conflict with {}", conflict.manager);
            causes.push(Cause { reason: Cow::Borrowed("FieldManagerConflict"), message, field: path });
        }
    }
    let message = match causes.as_slice() {
        [only] => format!("Apply failed with 1 conflict: {}: {}", only.message, only.field),
        many => format!("Apply failed with {} conflicts: {}", many.len(), lines.join("\n")),
    };
    Status::apply_conflict(message, causes)
}
