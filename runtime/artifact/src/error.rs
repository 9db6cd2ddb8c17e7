//! Why an image could not be had, in the classes that a pod's status shows.

use std::sync::Arc;

/// Bytes of a message that are passed on: what a registry or an image says of itself is as long as somebody liked.
const MESSAGE_BYTES_MAX: usize = 1 << 10;

/// The message, or its beginning.
pub(crate) fn shortened(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(MESSAGE_BYTES_MAX));
    text
}

/// Why an image could not be pulled.
///
/// Cheap to clone, because all who waited for one coalesced pull get the same answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PullError {
    /// The name is not an image name at all.
    #[error("couldn't parse image name {name:?}: {message}")]
    InvalidName {
        /// What was asked for.
        name: String,
        /// What is wrong with it.
        message: String,
    },
    /// No registry that was asked has this name and tag.
    #[error("{image}: not found ({message})")]
    NotFound {
        /// Canonical image name.
        image: String,
        /// Where it was looked for.
        message: String,
    },
    /// The registry wants other credentials, or refuses these.
    #[error("{image}: pull access denied, repository does not exist or may require authorization ({message})")]
    Unauthorized {
        /// Canonical image name.
        image: String,
        /// The registry's words.
        message: String,
    },
    /// The image exists and holds no WebAssembly that could run here.
    #[error("{image}: not a WebAssembly image: {message}")]
    NotWasm {
        /// Canonical image name.
        image: String,
        /// What it holds instead.
        message: String,
    },
    /// The registry did not answer, or answered with a failure of its own.
    #[error("{image}: registry unavailable: {message}")]
    Unreachable {
        /// Canonical image name.
        image: String,
        /// The transport's words.
        message: String,
    },
    /// What arrived is not what the digest says.
    #[error("{image}: content does not match its digest: {message}")]
    Corrupt {
        /// Canonical image name.
        image: String,
        /// Which digest.
        message: String,
    },
    /// The image is larger than the store may ever hold.
    #[error("{image}: {size} bytes is more than the limit of {limit} bytes")]
    TooLarge {
        /// Canonical image name.
        image: String,
        /// Announced or seen size.
        size: u64,
        /// The bound.
        limit: u64,
    },
    /// `imagePullPolicy: Never`, and the image is not here.
    #[error("container image {image:?} is not present with pull policy of Never")]
    NotPresent {
        /// Canonical image name.
        image: String,
    },
    /// The store's own disk failed.
    #[error("{image}: image store: {source}")]
    Io {
        /// Canonical image name.
        image: String,
        /// The cause.
        source: Arc<std::io::Error>,
    },
}

impl PullError {
    /// The waiting reason that Kubernetes gives this failure the first time.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::InvalidName { .. } => "InvalidImageName",
            Self::NotPresent { .. } => "ErrImageNeverPull",
            _ => "ErrImagePull",
        }
    }

    /// Whether asking again later can help without the pod being changed.
    pub fn is_transient(&self) -> bool {
        !matches!(self, Self::InvalidName { .. })
    }

    pub(crate) fn io(image: &str, source: std::io::Error) -> Self {
        Self::Io { image: image.to_owned(), source: Arc::new(source) }
    }
}
