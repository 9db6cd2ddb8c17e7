//! The body of an answer: reading it lets the guest go on.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http::{HeaderMap, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use wasmtime_wasi_http::WasiBody;

use super::flight::Flight;
use super::{RequestError, edge};
use crate::BoxError;

/// A guest's body with its flight.
pub(super) struct Answer {
    body: WasiBody,
    flight: Arc<Flight>,
    /// Bytes that are to come, when the head says how many.
    left: Option<u64>,
    /// Whether all of it was read, or an error.
    ended: bool,
}

impl Answer {
    pub(super) fn response(mut response: Response<WasiBody>, flight: Arc<Flight>) -> Response<crate::Body> {
        edge::send(&mut response);
        let left = length(response.headers());
        flight.handed(true);
        response.map(|body| Answer { body, flight, left, ended: false }.boxed_unsync())
    }

    fn poll_body(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if let Some(Ok(frame)) = &frame {
            if let (Some(left), Some(data)) = (&mut self.left, frame.data_ref()) {
                *left = left.saturating_sub(data.len() as u64);
            }
        } else {
            self.ended = true;
        }
        Poll::Ready(match frame {
            Some(Ok(frame)) => Some(Ok(frame)),
            Some(Err(error)) => Some(Err(self.reason().map_or_else(|| error.into(), BoxError::from))),
            // Cut off, though it looks like an end.
            None if self.flight.is_broken() && self.left != Some(0) => {
                Some(Err(self.reason().unwrap_or(RequestError::NoResponse).into()))
            }
            None => None,
        })
    }

    /// Why the guest has gone, which says more than that the body broke off.
    fn reason(&self) -> Option<RequestError> {
        self.flight.outcome().and_then(Result::err)
    }
}

fn length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

impl Body for Answer {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        self.flight.handed(false);
        let flight = self.flight.clone();
        let polled = flight.head.polled(context, |context| {
            let polled = self.poll_body(context);
            if polled.is_ready() {
                return polled;
            }
            // A guest that has ended, or was ended, has let go of its end of the body: the body itself knows and wakes.
            let _ = self.flight.drive(context);
            self.poll_body(context)
        });
        if matches!(polled, Poll::Ready(Some(_))) {
            self.flight.handed(true);
        }
        polled
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
