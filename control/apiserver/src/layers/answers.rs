//! Answers while clients read them. Who asks for much and does not read holds memory: it is bounded in bytes and in time.
//!
//! At a bound the answer that has not gone on for longest, of the caller who has most, is given up; who reads is never cut
//! off for others: when nobody stands still the newcomer is told to come again, unless it is told what was done.

use std::collections::{BTreeMap, HashMap};
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use coracle_api::status::Status;
use http_body::{Frame, SizeHint};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::slot::Slot;
use crate::answer::pieces::Holds;

/// Smaller answers are left to the buffers of their connections.
const COUNTED: usize = 16 << 10;
/// What an answer without a length is taken to hold.
const UNKNOWN: usize = 128 << 10;
/// Bytes of answers that are being sent: of one caller, and of all. One answer alone may be larger.
const PER_FLOW_BYTES_MAX: usize = 128 << 20;
const ALL_BYTES_MAX: usize = 384 << 20;
/// Most of them at a time.
const ALL_MAX: usize = 16_384;
/// Who has taken nothing for so long stands still.
const STILL: Duration = Duration::from_secs(2);

/// The answers that are being sent.
pub(crate) struct Answers {
    still: Duration,
    sending: Arc<Mutex<Sending>>,
}

impl Default for Answers {
    fn default() -> Answers {
        Answers { still: STILL, sending: Arc::default() }
    }
}

#[derive(Default)]
struct Sending {
    next: u64,
    /// Whoever has stood still for longest first.
    readers: BTreeMap<u64, Reader>,
    flows: HashMap<Arc<str>, usize>,
    bytes: usize,
}

struct Reader {
    flow: Arc<str>,
    bytes: usize,
    since: Instant,
    slot: Weak<Slot>,
}

impl Sending {
    fn add(&mut self, flow: Arc<str>, bytes: usize, slot: Weak<Slot>) -> u64 {
        let number = self.next;
        self.next += 1;
        self.bytes += bytes;
        *self.flows.entry(flow.clone()).or_default() += bytes;
        self.readers.insert(number, Reader { flow, bytes, since: Instant::now(), slot });
        number
    }

    fn remove(&mut self, number: u64) -> Option<Reader> {
        let reader = self.readers.remove(&number)?;
        self.bytes -= reader.bytes;
        if let Some(mine) = self.flows.get_mut(&reader.flow) {
            *mine -= reader.bytes;
            if *mine == 0 {
                self.flows.remove(&reader.flow);
            }
        }
        Some(reader)
    }

    /// Whose answer must go before `flow` gets `bytes` more; `None` when there is room.
    fn too_much(&self, flow: &str, bytes: usize) -> Option<Arc<str>> {
        let mine = self.flows.get_key_value(flow);
        if let Some((name, mine)) = mine
            && *mine + bytes > PER_FLOW_BYTES_MAX
        {
            return Some(name.clone());
        }
        let full = self.bytes + bytes > ALL_BYTES_MAX || self.readers.len() >= ALL_MAX;
        let greediest = || self.flows.iter().max_by_key(|(_, bytes)| **bytes).map(|(name, _)| name.clone());
        full.then(greediest).flatten()
    }

    /// Makes room for `bytes` of `flow`; says whether there is enough now, and what was given up for it.
    fn make_room(&mut self, flow: &str, bytes: usize, still: Duration) -> (bool, Vec<Reader>) {
        let mut gone = Vec::new();
        while let Some(flow) = self.too_much(flow, bytes) {
            let stillest = self.readers.iter().find(|(_, reader)| reader.flow == flow);
            let stood = stillest.filter(|(_, reader)| reader.since.elapsed() >= still).map(|(number, _)| *number);
            match stood.and_then(|number| self.remove(number)) {
                Some(reader) => gone.push(reader),
                None => return (false, gone),
            }
        }
        (true, gone)
    }
}

impl Answers {
    /// The same answer, counted for `flow` while it is sent, and let go of when it was not read after `longest`.
    pub fn hold(&self, flow: &str, response: Response, longest: Duration) -> Result<Response, Status> {
        let full = || Status::too_many_requests("too many bytes in answers, please try again later", 1);
        self.count(flow, response, longest, true).ok_or_else(full)
    }

    /// The same for the answer to what was done already: it is counted, and never refused.
    pub fn hold_done(&self, flow: &str, response: Response, longest: Duration) -> Response {
        self.count(flow, response, longest, false).expect("only what is bounded is refused")
    }

    /// `None` when it is `bounded`, and there is no room for it.
    fn count(&self, flow: &str, response: Response, longest: Duration, bounded: bool) -> Option<Response> {
        use http_body::Body as _;
        let hint = response.body().size_hint();
        let exact = hint.exact().map(|size| usize::try_from(size).unwrap_or(usize::MAX));
        if exact.is_some_and(|size| size < COUNTED) {
            return Some(response);
        }
        let holds = response.extensions().get::<Holds>().map(|holds| holds.0);
        let bytes = holds.or(exact).unwrap_or(UNKNOWN);
        let (parts, body) = response.into_parts();
        let slot = Arc::new(Slot::new(body));
        let (number, gone) = {
            let mut sending = self.sending.lock();
            let (has_room, gone) = sending.make_room(flow, bytes, self.still);
            let known = sending.flows.get_key_value(flow).map(|(name, _)| name.clone());
            let flow = known.unwrap_or_else(|| Arc::from(flow));
            let is_taken = has_room || !bounded;
            (is_taken.then(|| sending.add(flow, bytes, Arc::downgrade(&slot))), gone)
        };
        gone.iter().filter_map(|reader| reader.slot.upgrade()).for_each(|slot| slot.give_up());
        let number = number?;
        let weak = Arc::downgrade(&slot);
        let watchdog = tokio::spawn(async move {
            tokio::time::sleep(longest).await;
            if let Some(slot) = weak.upgrade() {
                slot.give_up();
            }
        });
        // What is known to be sent is not held any more.
        let shrinks = holds.is_none() && exact.is_some();
        let sending = self.sending.clone();
        let body = Counted { slot, hint, sending, number, shrinks, watchdog };
        Some(Response::from_parts(parts, Body::new(body)))
    }
}

/// A body that is counted while it is sent.
struct Counted {
    slot: Arc<Slot>,
    /// What is left.
    hint: SizeHint,
    sending: Arc<Mutex<Sending>>,
    number: u64,
    shrinks: bool,
    watchdog: tokio::task::JoinHandle<()>,
}

impl Counted {
    /// A piece was taken: the answer goes on.
    fn progress(&mut self, size: usize) {
        let left = self.hint.exact().map(|left| left.saturating_sub(size as u64));
        if let Some(left) = left {
            self.hint = SizeHint::with_exact(left);
        }
        let mut sending = self.sending.lock();
        if let Some(reader) = sending.remove(self.number) {
            let bytes = if self.shrinks { reader.bytes.saturating_sub(size) } else { reader.bytes };
            self.number = sending.add(reader.flow, bytes, reader.slot);
        }
    }
}

impl http_body::Body for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = self.slot.poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled {
            self.progress(frame.data_ref().map_or(0, Bytes::len));
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.hint.exact() == Some(0)
    }

    fn size_hint(&self) -> SizeHint {
        self.hint
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.watchdog.abort();
        drop(self.sending.lock().remove(self.number));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answer::pieces::in_pieces;
    use http_body::Body as _;
    use http_body_util::BodyExt;

    const MINUTE: Duration = Duration::from_secs(60);

    fn answer(size: usize) -> Response {
        in_pieces(Response::new(Body::from(vec![b'x'; size])))
    }

    #[tokio::test]
    async fn answers_that_nobody_reads_push_out_each_other_and_nobody_else() {
        let mut answers = Answers { still: MINUTE, ..Answers::default() };
        let size = PER_FLOW_BYTES_MAX / 8;
        let mut reads = answers.hold("a", answer(size), MINUTE).unwrap().into_body();
        let mut other = answers.hold("other", answer(size), MINUTE).unwrap().into_body();
        let mut idle: Vec<Body> =
            (0..7).map(|_| answers.hold("a", answer(size), MINUTE).unwrap().into_body()).collect();
        assert_eq!(answers.hold("a", answer(size), MINUTE).unwrap_err().code(), 429, "nobody stands still yet");
        let done = answers.hold_done("a", answer(size), MINUTE).into_body().collect().await.unwrap().to_bytes();
        assert_eq!(done.len(), size, "what was done is said");
        answers.still = Duration::ZERO;
        assert!(reads.frame().await.unwrap().is_ok());
        let mut newest = answers.hold("a", answer(size), MINUTE).unwrap().into_body();
        assert!(idle[0].frame().await.unwrap().is_err(), "it stood still for longest");
        for goes_on in [&mut reads, &mut other, &mut newest, &mut idle[1]] {
            let mut read = 0;
            while let Some(frame) = goes_on.frame().await {
                read += frame.unwrap().into_data().unwrap().len();
            }
            assert!(read == size || read == size - (64 << 10));
        }
        drop((reads, other, newest, idle));
        let sending = answers.sending.lock();
        assert!(sending.bytes == 0 && sending.readers.is_empty() && sending.flows.is_empty());
    }

    #[tokio::test]
    async fn an_answer_that_nobody_reads_is_let_go_of() {
        let held = Arc::new(());
        let holds = held.clone();
        let endless = futures::stream::repeat_with(move || {
            let _ = &holds;
            Ok::<_, std::convert::Infallible>(Bytes::from_static(b"x"))
        });
        let answers = Answers::default();
        let response = Response::new(Body::from_stream(endless));
        let mut body = answers.hold("a", response, Duration::from_millis(20)).unwrap().into_body();
        assert!(body.frame().await.unwrap().is_ok());
        while Arc::strong_count(&held) > 1 {
            tokio::task::yield_now().await;
        }
        assert!(body.frame().await.unwrap().is_err());
    }

    #[tokio::test]
    async fn one_answer_may_be_larger_than_all_that_a_caller_may_have() {
        let answers = Answers::default();
        let size = PER_FLOW_BYTES_MAX + 1;
        let body = answers.hold("a", answer(size), MINUTE).unwrap().into_body();
        assert_eq!(body.size_hint().exact(), Some(size as u64));
        let read = body.collect().await.unwrap().to_bytes();
        assert_eq!(read.len(), size);
    }
}
