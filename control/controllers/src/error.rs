//! Why a reconciliation ended early; the driver comes back to it.

use crate::client;

/// Why a reconciliation ended early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A request was refused, or its outcome is unknown.
    #[error("{what}")]
    Api {
        /// The step.
        what: &'static str,
        /// The answer.
        #[source]
        source: kube::Error,
    },
    /// What was read is not what was acted upon.
    #[error("{0}")]
    Stale(&'static str),
    /// Our bug.
    #[error("reconcile panicked")]
    Panicked,
}

impl Error {
    /// For `map_err`.
    pub(crate) fn api(what: &'static str) -> impl FnOnce(kube::Error) -> Self {
        move |source| Self::Api { what, source }
    }

    /// Whether it is part of normal life: somebody else was faster, or the namespace goes.
    pub(crate) fn is_expected(&self) -> bool {
        match self {
            Self::Api { source, .. } => {
                client::is_conflict(source) || client::is_not_found(source) || client::is_namespace_terminating(source)
            }
            Self::Stale(_) => true,
            Self::Panicked => false,
        }
    }
}

/// The message with its causes.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        let next = source.to_string();
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = source.source();
    }
    text
}
