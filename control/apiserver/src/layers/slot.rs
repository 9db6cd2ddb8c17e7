//! A body that can be taken away from whoever sends it: what stands still is given up by others. Its connection goes with
//! it, since that may hold pieces of the body which it was given and has not sent.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Body;
use bytes::Bytes;
use http_body::{Body as _, Frame};
use parking_lot::Mutex;

use crate::limits::Connection;

/// The next of a body.
pub(crate) type Polled = Poll<Option<Result<Frame<Bytes>, axum::Error>>>;

/// The body, until it is given up.
pub(crate) struct Slot {
    state: Mutex<State>,
    connection: Option<Connection>,
}

enum State {
    Here(Body),
    /// Somebody is reading it at this moment.
    Read,
    GivenUp,
}

impl Slot {
    pub fn new(body: Body, connection: Option<Connection>) -> Slot {
        Slot { state: Mutex::new(State::Here(body)), connection }
    }

    /// Over what it is sent.
    pub fn connection(&self) -> Option<&Connection> {
        self.connection.as_ref()
    }

    /// Lets go of the body and of its connection; who reads it hears an error.
    pub fn give_up(&self) {
        // Dropping a long list takes a moment: not under the lock.
        let was = std::mem::replace(&mut *self.state.lock(), State::GivenUp);
        drop(was);
        if let Some(connection) = &self.connection {
            connection.cut();
        }
    }

    /// Whether it was given up.
    pub fn is_given_up(&self) -> bool {
        matches!(&*self.state.lock(), State::GivenUp)
    }

    pub fn poll_frame(&self, cx: &mut Context<'_>) -> Polled {
        let taken = {
            let mut state = self.state.lock();
            match &*state {
                State::Here(_) => std::mem::replace(&mut *state, State::Read),
                State::Read | State::GivenUp => State::GivenUp,
            }
        };
        let State::Here(mut body) = taken else {
            let late = std::io::Error::new(std::io::ErrorKind::TimedOut, "the answer was not read in time");
            return Poll::Ready(Some(Err(axum::Error::new(late))));
        };
        let polled = Pin::new(&mut body).poll_frame(cx);
        let given_up = {
            let mut state = self.state.lock();
            match &*state {
                State::Read => {
                    *state = State::Here(body);
                    None
                }
                _ => Some(body),
            }
        };
        drop(given_up);
        polled
    }
}
