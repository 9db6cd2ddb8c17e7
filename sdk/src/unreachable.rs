//! One answer, for all errors of this crate, to the question whether it was that no cluster answers.

use std::error::Error;

use crate::manifests::ApplyError;
use crate::{AskError, BackupError, ElsewhereError, PushError, StartError, WorkerError};

/// Whether this error, or one of its causes, is that no server of a cluster could be reached: it may work later, with nothing
/// changed. What a server refuses is something else.
pub fn is_unreachable(error: &(dyn Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if says_so(error) {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Errors that only pass on another are looked into: their sources are those of what they pass on.
fn says_so(error: &(dyn Error + 'static)) -> bool {
    let asked = |asked: &AskError| matches!(asked, AskError::Unreachable { .. });
    let of_worker = |error: &WorkerError| match error {
        WorkerError::Unreachable { .. } => true,
        WorkerError::Start(error) => is_unreachable(error),
        _ => false,
    };
    if let Some(error) = error.downcast_ref::<AskError>() {
        asked(error)
    } else if let Some(error) = error.downcast_ref::<kube::Error>() {
        asked(&AskError::from(error))
    } else if let Some(error) = error.downcast_ref::<WorkerError>() {
        of_worker(error)
    } else if let Some(StartError::Join(error)) = error.downcast_ref::<StartError>() {
        of_worker(error)
    } else if let Some(BackupError::Ask(error)) = error.downcast_ref::<BackupError>() {
        asked(error)
    } else if let Some(ElsewhereError::Ask(error)) = error.downcast_ref::<ElsewhereError>() {
        asked(error)
    } else if let Some(ApplyError::Ask { source, .. } | ApplyError::Apply { source, .. }) = error.downcast_ref() {
        asked(source)
    } else if let Some(PushError::Send { source, .. }) = error.downcast_ref::<PushError>() {
        asked(source)
    } else {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::UpgradeError;

    fn asked() -> AskError {
        AskError::Unreachable { reason: "Connection refused".to_owned() }
    }

    fn worker() -> WorkerError {
        WorkerError::Unreachable { server: "https://192.0.2.1:6443".to_owned(), why: "Connection refused".to_owned() }
    }

    /// Something around it, as programs put it.
    #[derive(Debug, thiserror::Error)]
    #[error("do something")]
    struct Around(#[source] Box<dyn Error + Send + Sync>);

    #[test]
    fn whoever_finds_that_no_cluster_answers_says_so() {
        let text = || "x".to_owned();
        let refused = || AskError::Refused { code: 503, message: text() };
        let dead = || kube::Error::Service(Box::new(std::io::Error::from_raw_os_error(111)));
        let cases: Vec<(Box<dyn Error + Send + Sync>, bool)> = vec![
            (asked().into(), true),
            (refused().into(), false),
            (dead().into(), true),
            (worker().into(), true),
            (WorkerError::Refused(text()).into(), false),
            (WorkerError::OtherCluster { server: text() }.into(), false),
            // As `coracle up --join` and `server --join` find it, and a node through them.
            (StartError::Join(Box::new(worker())).into(), true),
            (WorkerError::Start(StartError::Join(Box::new(worker()))).into(), true),
            (StartError::Join(Box::new(WorkerError::Refused(text()))).into(), false),
            (StartError::Ended(text()).into(), false),
            (BackupError::Ask(asked()).into(), true),
            (BackupError::Ask(refused()).into(), false),
            (BackupError::Write(std::io::Error::from_raw_os_error(28)).into(), false),
            (ElsewhereError::Ask(asked()).into(), true),
            (ElsewhereError::Loopback.into(), false),
            (UpgradeError::Ask { title: text(), source: asked() }.into(), true),
            (AskError::NotCoracle(text()).into(), false),
            (AskError::Untrusted { reason: text() }.into(), false),
            (UpgradeError::Ask { title: text(), source: refused() }.into(), false),
            (PushError::Send { step: "push", source: asked() }.into(), true),
            (ApplyError::Ask { origin: text(), kind: text(), source: asked() }.into(), true),
            (ApplyError::Apply { origin: text(), what: text(), source: refused() }.into(), false),
        ];
        for (error, expected) in cases {
            assert_eq!(is_unreachable(&*error), expected, "{error:?}");
            let words = format!("{error:?}");
            assert_eq!(is_unreachable(&Around(error)), expected, "around {words}");
        }
    }
}
