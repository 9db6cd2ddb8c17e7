//! The body of an answer, with what counts as under way until it is sent; and that of a request, which is the client's to send.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;

use crate::balance::Picked;
use crate::turns::{Sent, Turn};
use crate::{Body, BoxError, Place};

/// What is held while an answer is sent.
pub(crate) trait Holder: Unpin {
    /// Something was taken of it.
    fn moved(&self) {}
}

impl Holder for Turn {
    fn moved(&self) {
        Turn::moved(self);
    }
}

impl Holder for Picked {}

impl Holder for Place {}

/// A body, and what is let go of with it.
pub(crate) struct Held<T> {
    pub body: Body,
    pub by: T,
}

impl<T: Holder> http_body::Body for Held<T> {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if polled.is_ready() {
            self.by.moved();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The body of a request, with who has to send it.
pub(crate) struct Awaited {
    pub body: Incoming,
    pub by: Sent,
}

impl http_body::Body for Awaited {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        self.by.polled(polled.is_ready());
        polled.map_err(BoxError::from)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
