//! Errors of watches, for people.

use kube::runtime::watcher::Error;

/// Of what the API server refused it is what the API server said: the client's own text says it twice, and once more for programmers.
pub(crate) fn words(error: &Error) -> String {
    let said = match error {
        Error::InitialListFailed(kube::Error::Api(status))
        | Error::WatchStartFailed(kube::Error::Api(status))
        | Error::WatchFailed(kube::Error::Api(status))
        | Error::WatchError(status) => &status.message,
        _ => "",
    };
    if said.is_empty() { error.to_string() } else { said.to_owned() }
}

/// Whether the API server has said that this kind is not there, or not for nodes.
pub(crate) fn is_refused(error: &Error) -> bool {
    matches!(error, Error::InitialListFailed(kube::Error::Api(status)) if matches!(status.code, 403 | 404))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_in_the_words_of_the_api() {
        let status = || kube::core::Status::failure("the server could not find it", "NotFound").with_code(404).boxed();
        let refused = Error::InitialListFailed(kube::Error::Api(status()));
        assert_eq!(
            [refused, Error::WatchError(status())].map(|error| words(&error)),
            ["the server could not find it"; 2]
        );
        assert_eq!(words(&Error::NoResourceVersion), Error::NoResourceVersion.to_string());
    }
}
