//! Checks of pods and pod templates, in the words of Kubernetes (`pkg/apis/core/validation`).

pub(super) mod status;
pub(super) mod update;

use serde_json::Value;

use crate::kinds::FieldError;
use crate::meta::field::Path;

/// What a changed object may keep although a new one may not have it.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::kinds) struct Ratchet {}

impl Ratchet {
    pub(in crate::kinds) fn from_templates(_new: &Value, _old: &Value) -> Self {
        Self::default()
    }
}

pub(in crate::kinds) fn template(
    _template: &Value,
    _path: &Path<'_>,
    _ratchet: Ratchet,
    _errors: &mut Vec<FieldError>,
) {
}
pub(in crate::kinds::pod) fn create(_pod: &Value, _errors: &mut Vec<FieldError>) {}
