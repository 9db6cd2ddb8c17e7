//! The body of an answer, with what counts as under way until it is sent; and that of a request, which is the client's to send.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;

use crate::balance::Picked;
use crate::observe::Stats;
use crate::turns::{Sent, Turn};
use crate::{Body, BoxError, Place};

/// What is held while an answer is sent.
pub(crate) trait Holder: Unpin {
    /// Something was taken of it: so many bytes.
    fn moved(&self, bytes: usize) {
        let _ = bytes;
    }
}

impl Holder for Turn {
    fn moved(&self, _: usize) {
        Turn::moved(self);
    }
}

/// An endpoint that answers a request, to the end of its answer.
pub(crate) struct Answering {
    _picked: Picked,
    stats: Arc<Stats>,
}

impl Answering {
    pub fn new(picked: Picked, stats: &Arc<Stats>) -> Answering {
        Answering { _picked: picked, stats: stats.clone() }
    }
}

impl Holder for Answering {
    fn moved(&self, bytes: usize) {
        Stats::bytes(&self.stats.received_bytes, bytes);
    }
}

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
        if let Poll::Ready(frame) = &polled {
            let data = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref());
            self.by.moved(data.map_or(0, Bytes::len));
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
