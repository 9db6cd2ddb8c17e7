//! Why a reconciliation ended early; the driver comes back to it.

use coracle_tolerant::cut_message;

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

/// The message with its causes, as much of it as is told. Of what the API refused it is what the API said: the client's own text says it twice, and once more
/// for programmers.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = String::new();
    let mut cause = Some(error);
    while let Some(error) = cause {
        let (next, source) = match error.downcast_ref() {
            Some(kube::Error::Api(status)) if !status.message.is_empty() => (status.message.clone(), None),
            _ => (error.to_string(), error.source()),
        };
        if !text.ends_with(&next) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&next);
        }
        cause = source;
    }
    text.truncate(cut_message(&text).len());
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_told_once_and_in_the_words_of_the_api() {
        let said = "pods \"p\" is forbidden: exceeded quota: q";
        let refused = || kube::Error::Api(kube::core::Status::failure(said, "Forbidden").with_code(403).boxed());
        assert_eq!(chain(&refused()), said);
        assert_eq!(chain(&Error::api("create a pod")(refused())), format!("create a pod: {said}"));
        let broken = || kube::Error::Service(Box::new(std::io::Error::other("the line is dead")));
        assert_eq!(chain(&broken()), "ServiceError: the line is dead");
        assert_eq!(chain(&Error::api("create a pod")(broken())), "create a pod: ServiceError: the line is dead");
    }
}
