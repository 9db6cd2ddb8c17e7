//! The body of an answer: reading it lets the guest go on.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use wasmtime_wasi_http::WasiBody;

use super::RequestError;
use super::flight::Flight;
use crate::BoxError;

/// A guest's body with its flight.
pub(super) struct Answer {
    body: WasiBody,
    flight: Arc<Flight>,
    /// Whether all of it was read, or an error.
    ended: bool,
}

impl Answer {
    pub(super) fn new(body: WasiBody, flight: Arc<Flight>) -> Answer {
        Answer { body, flight, ended: false }
    }

    fn poll_body(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Pin::new(&mut self.body).poll_frame(context).map(|frame| {
            self.ended = !matches!(frame, Some(Ok(_)));
            frame.map(|frame| {
                frame.map_err(|error| match self.flight.outcome() {
                    // Why the body broke off says more than that it did.
                    Some(Err(reason)) => BoxError::from(reason),
                    _ => BoxError::from(error),
                })
            })
        })
    }
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        if let Poll::Ready(frame) = self.poll_body(context) {
            return Poll::Ready(frame);
        }
        self.flight.watch(context);
        let progress = self.flight.drive(context);
        if let Poll::Ready(frame) = self.poll_body(context) {
            return Poll::Ready(frame);
        }
        match progress {
            // A guest that has ended has let go of its end of the body; this is for one that was ended from outside.
            Poll::Ready(outcome) => {
                self.ended = true;
                Poll::Ready(Some(Err(outcome.err().unwrap_or(RequestError::NoResponse).into())))
            }
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.flight.detach();
    }
}
