//! A body that is read before it is wanted, up to a bound.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::AbortHandle;

use crate::exit::OverLimit;
use crate::limits::Account;
use crate::{Body, BoxError};

/// Bytes that are read ahead: somewhat less than what Linux lets two sockets of this machine hold between them.
const BYTES_MAX: usize = 2 << 20;

/// What one frame counts at least, so that many small ones are bounded, too.
const FRAME_BYTES_MIN: usize = 256;

/// A frame with its room, and the memory of the container that it takes.
type Read = (Result<Frame<Bytes>, BoxError>, OwnedSemaphorePermit, Option<Held>);

/// Memory of a container that the host holds for it, given back when this is dropped.
pub(super) struct Held(Arc<Account>, u64);

impl Held {
    pub(super) fn take(account: &Arc<Account>, bytes: u64) -> Result<Held, OverLimit> {
        account.take(bytes)?;
        Ok(Held(account.clone(), bytes))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.give(self.1);
    }
}

/// Reads ahead for the guest of `account`, on a task that ends with the body.
pub(super) fn read_ahead(account: Arc<Account>, mut body: Body) -> Body {
    if body.is_end_stream() {
        return body;
    }
    let hint = body.size_hint();
    let room = Arc::new(Semaphore::new(BYTES_MAX));
    let (sender, frames) = mpsc::unbounded_channel();
    let reader = tokio::spawn(async move {
        while let Some(frame) = body.frame().await {
            let bytes = frame.as_ref().ok().and_then(|frame| frame.data_ref()).map_or(0, Bytes::len);
            let bytes = u32::try_from(bytes.clamp(FRAME_BYTES_MIN, BYTES_MAX)).unwrap_or(u32::MAX);
            // It is never closed.
            let Ok(room) = room.clone().acquire_many_owned(bytes).await else { return };
            let (frame, held) = match Held::take(&account, u64::from(bytes)) {
                Ok(held) => (frame, Some(held)),
                Err(over) => (Err(over.into()), None),
            };
            let is_last = frame.is_err();
            if sender.send((frame, room, held)).is_err() || is_last {
                return;
            }
        }
    });
    ReadAhead { frames, reader: reader.abort_handle(), hint, has_begun: false }.boxed_unsync()
}

struct ReadAhead {
    frames: mpsc::UnboundedReceiver<Read>,
    reader: AbortHandle,
    /// Of the body when nothing had been read.
    hint: SizeHint,
    has_begun: bool,
}

impl http_body::Body for ReadAhead {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.has_begun = true;
        self.frames.poll_recv(context).map(|read| read.map(|(frame, ..)| frame))
    }

    fn size_hint(&self) -> SizeHint {
        if self.has_begun { SizeHint::default() } else { self.hint }
    }
}

impl Drop for ReadAhead {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::StreamBody;

    use super::*;
    use crate::memory::NodeMemory;

    #[tokio::test]
    async fn a_writer_gets_ahead_of_its_reader_by_the_bound_and_nothing_is_lost() {
        let (sender, mut written) = mpsc::unbounded_channel();
        let frames = futures::stream::iter(0..200_u8).map(move |number| {
            let _ = sender.send(number);
            Ok::<_, BoxError>(Frame::data(Bytes::from(vec![number; 32 << 10])))
        });
        use futures::StreamExt as _;
        let node = NodeMemory::new(u64::MAX);
        let account = Account::new(&crate::Spec::new("a"), &node);
        let body = read_ahead(account.clone(), BodyExt::boxed_unsync(StreamBody::new(frames)));
        let mut seen = 0;
        while seen < BYTES_MAX / (32 << 10) {
            written.recv().await.unwrap();
            seen += 1;
        }
        assert!(account.usage().memory_bytes >= BYTES_MAX as u64 - (64 << 10), "it is charged: {account:?}");
        let all = body.collect().await.unwrap().to_bytes();
        assert_eq!(account.usage().memory_bytes, 0);
        assert_eq!(all.len(), 200 * (32 << 10));
        assert!(all.chunks(32 << 10).zip(0..200_u8).all(|(chunk, number)| chunk.iter().all(|byte| *byte == number)));
    }
}
