//! HTTP services: instances that exist while they answer.
//!
//! A request is one *flight*: an instance, its future and its answer. On the gateway's threads ([`crate::Engine::gateway`])
//! the future runs on the task of whoever asked, so that a short request costs no hop between threads: the asker polls it
//! until it has the head of the answer, then reading the body polls it on. A guest that computes for longer than
//! [`flight::INLINE_MAX`] moves to the guests' own threads, and so does one that still has work when its answer has been
//! read, or whose reader is slow. The next requests of a service whose guests compute for long begin there, and so does
//! every request that is asked from any other thread: guests never run on the control plane's.
//!
//! ```text
//!  handle ─► edge (headers) ─► admit (place, or a bounded queue) ─► Flight::launch ─► poll ─► head ─► Answer body ─► end
//!                                                                      │ too long                     │ dropped early
//!                                                                      └────────► guests' threads ◄───┘
//! ```
//!
//! Deadlines and kills come from outside and never wait for a poll: the service knows its flights, and a janitor that
//! lives only while there are any ends those whose time is over, whose answer is not read, or whose request does not come on.

mod admission;
mod answer;
mod edge;
mod flight;
mod incoming;
mod janitor;
mod run;
mod service;

pub use self::admission::Probe;
pub use self::service::{Counters, HttpOptions, HttpService};

use http::StatusCode;

use crate::Exit;

/// Why a request has no answer.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum RequestError {
    /// Everything is taken, and the queue is full.
    #[error("too many requests are waiting")]
    Overloaded,
    /// The service is being stopped: the request was refused at the door, and no guest has seen it.
    #[error("the service is being stopped")]
    Stopped,
    /// The service was stopped while a guest had the request: what it has done by then is not known.
    #[error("the service was stopped while it answered")]
    Killed,
    /// It took longer than the service may.
    #[error("the guest did not answer in time")]
    Timeout,
    /// The answer was not read in time.
    #[error("the answer was not read in time")]
    Stalled,
    /// The rest of the request did not come in time.
    #[error("the rest of the request did not come in time")]
    Unfinished,
    /// More headers than a guest is given.
    #[error("the request's headers are too large")]
    HeadersTooLarge,
    /// WASI's HTTP has requests and answers only.
    #[error("{0} is not possible: components answer requests, they cannot take over a connection")]
    Upgrade(String),
    /// Guests call each other in a circle.
    #[error("too many calls stand behind this request")]
    Loop,
    /// The guest trapped or panicked.
    #[error("the guest failed: {0}")]
    Trap(String),
    /// The guest reached its memory limit.
    #[error("the guest reached its memory limit")]
    OutOfMemory,
    /// The guest used up its fuel.
    #[error("the guest used up its fuel")]
    FuelExhausted,
    /// The guest ended without an answer.
    #[error("the guest gave no answer")]
    NoResponse,
    /// The guest answered with an error instead of a response.
    #[error("the guest answered with an error: {0}")]
    Guest(String),
    /// The request itself cannot be given to a guest.
    #[error("the request is not valid: {0}")]
    Invalid(String),
    /// No instance could be made.
    #[error("no instance: {0}")]
    Unavailable(String),
}

impl RequestError {
    /// What a gateway answers.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Overloaded | Self::Stopped | Self::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Timeout | Self::Stalled => StatusCode::GATEWAY_TIMEOUT,
            Self::Unfinished => StatusCode::REQUEST_TIMEOUT,
            Self::HeadersTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::Upgrade(_) => StatusCode::NOT_IMPLEMENTED,
            Self::Loop => StatusCode::LOOP_DETECTED,
            Self::Trap(_) | Self::OutOfMemory | Self::FuelExhausted | Self::NoResponse => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
            Self::Guest(_) | Self::Killed => StatusCode::BAD_GATEWAY,
            Self::Invalid(_) => StatusCode::BAD_REQUEST,
        }
    }
}

impl From<Exit> for RequestError {
    fn from(exit: Exit) -> Self {
        match exit {
            Exit::OutOfMemory => Self::OutOfMemory,
            Exit::FuelExhausted => Self::FuelExhausted,
            Exit::Trap(message) => Self::Trap(message),
            Exit::Code(code) => Self::Trap(format!("it exited with {code} in the middle of a request")),
            Exit::Stopped | Exit::Killed => Self::Killed,
        }
    }
}
