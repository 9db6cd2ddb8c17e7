//! What webhooks and admission policies say alike: which requests they are about.

pub(super) mod callee;
pub(super) mod conditions;
pub(super) mod rules;
