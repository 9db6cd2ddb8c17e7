//! Why a component cannot be had or started.

use std::io;
use std::path::PathBuf;

/// Why a component cannot be had or started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The engine itself does not come up.
    #[error("start the WebAssembly engine: {0}")]
    Engine(String),
    /// The cache of compiled components.
    #[error("keep compiled components in {path}")]
    Cache {
        /// Which file or directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The image could not be read.
    #[error("read the component {path}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No WebAssembly at all.
    #[error("not a WebAssembly component: the file does not begin as WebAssembly does")]
    NotWasm,
    /// WebAssembly, but broken, or of a kind that cannot run here.
    #[error("not a component that can run here: {0}")]
    Invalid(String),
    /// The component wants an interface that nobody offers.
    #[error("imports `{name}`, which this node does not offer{detail}")]
    Import {
        /// The interface.
        name: String,
        /// More, where the interface is known but does not fit; empty or begins with a separator.
        detail: String,
    },
    /// Neither a service nor a command.
    #[error(
        "exports neither `wasi:http/incoming-handler` nor `wasi:cli/run`, so there is nothing to start (exports: {0})"
    )]
    NoWorld(String),
    /// Started as something that it is not.
    #[error("the component is not a {wanted}")]
    WrongWorld {
        /// What was asked for.
        wanted: &'static str,
    },
    /// The compiler ended without a result.
    #[error("the compiler was ended: {0}")]
    CompilerKilled(String),
    /// The compiler could not be started or listened to.
    #[error("run the compiler {path}")]
    Compiler {
        /// The program.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No slot left.
    #[error("no room for another instance: {0}")]
    Limits(String),
    /// A mount cannot be opened.
    #[error("open {path} to mount it")]
    Mount {
        /// The directory on this machine.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The memory it begins with is above its limit.
    #[error("needs more memory than its limit of {bytes_max} bytes before it has begun")]
    OutOfMemory {
        /// The limit.
        bytes_max: u64,
    },
    /// The instance could not be made.
    #[error("instantiate: {0}")]
    Start(String),
}

impl Error {
    /// The same again, for those who ask while it is remembered; none for what may be better the next moment.
    pub(crate) fn again(&self) -> Option<Error> {
        Some(match self {
            Error::NotWasm => Error::NotWasm,
            Error::Invalid(text) => Error::Invalid(text.clone()),
            Error::Import { name, detail } => Error::Import { name: name.clone(), detail: detail.clone() },
            Error::NoWorld(exports) => Error::NoWorld(exports.clone()),
            Error::CompilerKilled(why) => Error::CompilerKilled(why.clone()),
            _ => return None,
        })
    }

    /// The component or its specification is at fault: trying again gives the same.
    pub fn is_permanent(&self) -> bool {
        match self {
            Error::NotWasm | Error::Invalid(_) | Error::Import { .. } | Error::NoWorld(_) => true,
            Error::WrongWorld { .. } | Error::OutOfMemory { .. } => true,
            Error::Engine(_) | Error::Cache { .. } | Error::Read { .. } | Error::CompilerKilled(_) => false,
            Error::Compiler { .. } | Error::Limits(_) | Error::Mount { .. } | Error::Start(_) => false,
        }
    }
}

/// Bytes of an error's text. Names in a component are as long as somebody liked, and what they end up in is kept, logged and
/// shown in many places.
pub(crate) const TEXT_BYTES_MAX: usize = 4 << 10;

/// The text, or its beginning.
pub(crate) fn cut(text: String) -> String {
    cut_to(text, TEXT_BYTES_MAX)
}

/// The same with a bound of its own.
pub(crate) fn cut_to(mut text: String, bytes_max: usize) -> String {
    const MARK: &str = "…";
    if text.len() > bytes_max {
        text.truncate(text.floor_char_boundary(bytes_max.saturating_sub(MARK.len())));
        text.push_str(MARK);
    }
    text
}

/// Names, as far as there is room for them.
pub(crate) fn list<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let mut text = String::new();
    for name in names {
        if !text.is_empty() {
            text.push_str(", ");
        }
        text.push_str(name);
        if text.len() > TEXT_BYTES_MAX {
            break;
        }
    }
    cut(text)
}

/// wasmtime's own chain of contexts as one line.
pub(crate) fn line(error: &wasmtime::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        // A backtrace of the guest is a context of many lines; its place is the guest's log.
        let cause = cause.lines().next().unwrap_or_default();
        if cause.starts_with("error while executing at wasm backtrace") || text.contains(cause) {
            continue;
        }
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(cause);
        if text.len() > TEXT_BYTES_MAX {
            break;
        }
    }
    cut(text)
}
