//! A kind as it is served: a row of the table, or one that a CustomResourceDefinition made. Whoever serves kinds holds these;
//! they are owned, so that a kind can go.

use std::sync::Arc;

use serde_json::Value;

use super::{FieldErrors, Kind, Strategy, Subresource, VERBS};
use crate::custom::CustomKind;

/// A kind as it is served. Clones are the same one.
#[derive(Clone)]
pub enum Row {
    /// Of the table.
    BuiltIn(&'static Kind),
    /// Of a definition.
    Custom(Arc<CustomKind>),
}

/// What a definition that is going still lets its objects do.
const ENDING: &[&str] = &["delete", "deletecollection", "get", "list", "patch", "update", "watch"];

impl Row {
    /// Group; empty for the core group.
    #[must_use]
    pub fn group(&self) -> &str {
        match self {
            Row::BuiltIn(row) => row.group,
            Row::Custom(kind) => &kind.definition.group,
        }
    }

    /// Version.
    #[must_use]
    pub fn version(&self) -> &str {
        match self {
            Row::BuiltIn(row) => row.version,
            Row::Custom(kind) => &kind.version.name,
        }
    }

    /// Kind, as `Deployment`.
    #[must_use]
    pub fn kind(&self) -> &str {
        match self {
            Row::BuiltIn(row) => row.kind,
            Row::Custom(kind) => &kind.definition.names.kind,
        }
    }

    /// Kind of lists, as `DeploymentList`.
    #[must_use]
    pub fn list_kind(&self) -> String {
        match self {
            Row::BuiltIn(row) => format!("{}List", row.kind),
            Row::Custom(kind) => kind.definition.names.list_kind.clone(),
        }
    }

    /// Resource, as `deployments`.
    #[must_use]
    pub fn resource(&self) -> &str {
        match self {
            Row::BuiltIn(row) => row.resource,
            Row::Custom(kind) => &kind.definition.names.plural,
        }
    }

    /// Whether it lives in a namespace.
    #[must_use]
    pub fn namespaced(&self) -> bool {
        match self {
            Row::BuiltIn(row) => row.namespaced,
            Row::Custom(kind) => kind.definition.namespaced,
        }
    }

    /// Collection it is kept in, as `deployments.apps`.
    #[must_use]
    pub fn collection(&self) -> &str {
        match self {
            Row::BuiltIn(row) => row.collection,
            Row::Custom(kind) => &kind.definition.name,
        }
    }

    /// Verbs, sorted.
    #[must_use]
    pub fn verbs(&self) -> &'static [&'static str] {
        match self {
            Row::BuiltIn(row) => row.verbs,
            Row::Custom(kind) if kind.definition.terminating => ENDING,
            Row::Custom(_) => VERBS,
        }
    }

    /// Whether there is a `status` subresource.
    #[must_use]
    pub fn has_status(&self) -> bool {
        match self {
            Row::BuiltIn(row) => row.has_status,
            Row::Custom(kind) => kind.version.has_status,
        }
    }

    /// Whether there is a `scale` subresource.
    #[must_use]
    pub fn has_scale(&self) -> bool {
        match self {
            Row::BuiltIn(row) => row.has_scale,
            Row::Custom(kind) => kind.version.scale.is_some(),
        }
    }

    /// Further subresources.
    #[must_use]
    pub fn subresources(&self) -> &'static [Subresource] {
        match self {
            Row::BuiltIn(row) => row.subresources,
            Row::Custom(_) => &[],
        }
    }

    /// Field selectors beside metadata.name and metadata.namespace, in the order in which they are kept.
    pub fn selectable(&self) -> impl Iterator<Item = &str> {
        let (built_in, custom) = match self {
            Row::BuiltIn(row) => (row.selectable, &[][..]),
            Row::Custom(kind) => (&[][..], kind.selectable.as_slice()),
        };
        built_in.iter().copied().chain(custom.iter().map(String::as_str))
    }

    /// Whether a selector may ask for a field.
    #[must_use]
    pub fn is_selectable(&self, path: &str) -> bool {
        self.selectable().any(|field| field == path)
    }

    /// What is special about it.
    #[must_use]
    pub fn strategy(&self) -> &dyn Strategy {
        match self {
            Row::BuiltIn(row) => row.strategy,
            Row::Custom(kind) => &**kind,
        }
    }

    /// The row of the table, if it is one.
    #[must_use]
    pub fn built_in(&self) -> Option<&'static Kind> {
        match self {
            Row::BuiltIn(row) => Some(row),
            Row::Custom(_) => None,
        }
    }

    /// What it is of a definition, if it is.
    #[must_use]
    pub fn custom(&self) -> Option<&Arc<CustomKind>> {
        match self {
            Row::BuiltIn(_) => None,
            Row::Custom(kind) => Some(kind),
        }
    }

    /// What the client is told about an object that it made or changed.
    #[must_use]
    pub fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        match self {
            Row::BuiltIn(row) => super::warnings(row, object, old),
            Row::Custom(kind) => kind.warnings(object, old),
        }
    }

    /// Checks the metadata of a new object, whose name is known.
    pub fn validate_metadata(&self, object: &Value, errors: &mut FieldErrors) {
        let strategy = self.strategy();
        super::validate_metadata_of(strategy, self.namespaced(), object, errors);
    }

    /// Checks the metadata of a changed object against the old one.
    pub fn validate_metadata_update(&self, object: &Value, old: &Value, errors: &mut FieldErrors) {
        super::validate_metadata_update_of(self.strategy(), object, old, errors);
    }
}
