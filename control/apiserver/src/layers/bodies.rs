//! Bodies while they arrive. No request holds a place among those at work before its body is there; who is slow here is in
//! nobody's way, and is bounded in number, bytes and time.
//!
//! At a bound a newcomer is not turned away: the body that has been arriving for longest, of the caller who has most, is
//! given up instead. So clients that dribble only push out each other.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use coracle_api::status::Status;
use futures::FutureExt;
use http_body::Body as _;
use http_body_util::BodyExt;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::request::body::BODY_BYTES_MAX;

/// Bodies that arrive at a time: of one caller, and of all.
const PER_FLOW_MAX: usize = 2_048;
const ALL_MAX: usize = 8_192;
/// Bytes of bodies that are not complete: of one caller, and of all.
const PER_FLOW_BYTES_MAX: usize = 64 << 20;
const ALL_BYTES_MAX: usize = 256 << 20;
/// How long a body may take to arrive: 3 MB at 100 KB/s.
const ARRIVAL: Duration = Duration::from_secs(30);

/// The bodies that are arriving.
pub(crate) struct Bodies {
    arrival: Duration,
    arriving: Arc<Mutex<Arriving>>,
}

#[derive(Default)]
struct Arriving {
    next: u64,
    /// The oldest first.
    readers: BTreeMap<u64, Reader>,
    flows: HashMap<Arc<str>, Share>,
    bytes: usize,
}

#[derive(Default)]
struct Share {
    readers: usize,
    bytes: usize,
}

struct Reader {
    flow: Arc<str>,
    bytes: usize,
    given_up: Arc<Notify>,
}

impl Arriving {
    /// Gives up the oldest body of the caller who has most by this measure.
    fn give_up_greediest(&mut self, measure: impl Fn(&Share) -> usize) {
        let greediest = self.flows.iter().max_by_key(|(_, share)| measure(share)).map(|(name, _)| name.clone());
        if let Some(flow) = greediest {
            self.give_up(&flow);
        }
    }

    /// Gives up the oldest body of `flow`.
    fn give_up(&mut self, flow: &str) {
        let oldest = self.readers.iter().find(|(_, reader)| &*reader.flow == flow).map(|(number, _)| *number);
        if let Some(number) = oldest {
            if let Some(reader) = self.readers.get(&number) {
                reader.given_up.notify_one();
            }
            self.remove(number);
        }
    }

    fn remove(&mut self, number: u64) {
        let Some(reader) = self.readers.remove(&number) else { return };
        self.bytes -= reader.bytes;
        if let Some(share) = self.flows.get_mut(&reader.flow) {
            share.readers -= 1;
            share.bytes -= reader.bytes;
            if share.readers == 0 {
                self.flows.remove(&reader.flow);
            }
        }
    }

    /// Makes room until the bounds hold.
    fn bound(&mut self, flow: &str) {
        while self.flows.get(flow).is_some_and(|s| s.readers > PER_FLOW_MAX || s.bytes > PER_FLOW_BYTES_MAX) {
            self.give_up(flow);
        }
        // Who has most of what there is too much of: a few large bodies do not make room for thousands of small ones.
        while self.readers.len() > ALL_MAX {
            self.give_up_greediest(|share| share.readers);
        }
        while self.bytes > ALL_BYTES_MAX {
            self.give_up_greediest(|share| share.bytes);
        }
    }
}

/// One body that is counted among those that arrive.
struct Arrival {
    arriving: Arc<Mutex<Arriving>>,
    number: u64,
    flow: Arc<str>,
    given_up: Arc<Notify>,
}

impl Arrival {
    fn new(bodies: &Bodies, flow: &str) -> Arrival {
        let mut arriving = bodies.arriving.lock();
        let number = arriving.next;
        arriving.next += 1;
        let known = arriving.flows.get_key_value(flow).map(|(name, _)| name.clone());
        let flow = known.unwrap_or_else(|| Arc::from(flow));
        let given_up = Arc::new(Notify::new());
        arriving.flows.entry(flow.clone()).or_default().readers += 1;
        arriving.readers.insert(number, Reader { flow: flow.clone(), bytes: 0, given_up: given_up.clone() });
        arriving.bound(&flow);
        Arrival { arriving: bodies.arriving.clone(), number, flow, given_up }
    }

    fn grown(&self, bytes: usize) {
        let mut arriving = self.arriving.lock();
        let Some(reader) = arriving.readers.get_mut(&self.number) else { return };
        reader.bytes += bytes;
        arriving.bytes += bytes;
        if let Some(share) = arriving.flows.get_mut(&self.flow) {
            share.bytes += bytes;
        }
        arriving.bound(&self.flow);
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        self.arriving.lock().remove(self.number);
    }
}

/// What has arrived; most bodies are one frame, and those are not copied.
#[derive(Default)]
struct Collected {
    first: Option<Bytes>,
    more: BytesMut,
}

impl Collected {
    fn len(&self) -> usize {
        if self.more.is_empty() { self.first.as_ref().map_or(0, Bytes::len) } else { self.more.len() }
    }

    fn push(&mut self, data: Bytes) -> Result<(), Status> {
        if self.len() + data.len() > BODY_BYTES_MAX {
            return Err(too_large());
        }
        match &self.first {
            None => self.first = Some(data),
            Some(begun) => {
                if self.more.is_empty() {
                    self.more.extend_from_slice(begun);
                }
                self.more.extend_from_slice(&data);
            }
        }
        Ok(())
    }

    fn finish(self) -> Bytes {
        if self.more.is_empty() { self.first.unwrap_or_default() } else { self.more.freeze() }
    }
}

fn too_large() -> Status {
    Status::request_too_large(format!("limit is {BODY_BYTES_MAX}"))
}

impl Default for Bodies {
    fn default() -> Bodies {
        Bodies { arrival: ARRIVAL, arriving: Arc::default() }
    }
}

impl Bodies {
    /// Reads a body whole, for `flow`, until `deadline`.
    pub async fn read(&self, flow: &str, mut body: Body, deadline: Instant) -> Result<Bytes, Status> {
        if body.is_end_stream() {
            return Ok(Bytes::new());
        }
        if body.size_hint().lower() > BODY_BYTES_MAX as u64 {
            return Err(too_large());
        }
        let broken =
            |error: axum::Error| Status::bad_request(format!("the body of the request could not be read: {error}"));
        let mut collected = Collected::default();
        // What is here already costs no place.
        let mut next = body.frame().now_or_never();
        let mut arrival: Option<Arrival> = None;
        let deadline = deadline.min(Instant::now() + self.arrival);
        loop {
            let frame = match next.take() {
                Some(frame) => frame,
                None => {
                    let arrival = arrival.get_or_insert_with(|| {
                        let arrival = Arrival::new(self, flow);
                        arrival.grown(collected.len());
                        arrival
                    });
                    tokio::select! {
                        frame = body.frame() => frame,
                        () = arrival.given_up.notified() => {
                            return Err(Status::too_many_requests("the body of this request arrived too slowly", 1));
                        }
                        () = tokio::time::sleep_until(deadline) => {
                            return Err(Status::timeout("the body of the request did not arrive in time", 0));
                        }
                    }
                }
            };
            let Some(frame) = frame else { return Ok(collected.finish()) };
            if let Ok(data) = frame.map_err(broken)?.into_data() {
                if let Some(arrival) = &arrival {
                    arrival.grown(data.len());
                }
                collected.push(data)?;
            }
            next = body.frame().now_or_never();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::stream::{self, StreamExt};
    use std::convert::Infallible;

    /// Sends one byte and then nothing.
    fn dribble() -> Body {
        let begun = stream::once(async { Ok::<_, Infallible>(Bytes::from_static(b"{")) });
        Body::from_stream(begun.chain(stream::pending()))
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(3600)
    }

    #[tokio::test]
    async fn a_body_that_does_not_arrive_is_given_up_in_time() {
        let bodies = Bodies { arrival: Duration::from_millis(20), ..Bodies::default() };
        let failed = bodies.read("a", dribble(), soon()).await.unwrap_err();
        assert_eq!(failed.code(), 504);
        assert!(bodies.arriving.lock().readers.is_empty());
    }

    #[tokio::test]
    async fn slow_bodies_push_out_each_other_and_nobody_else() {
        let bodies = Bodies::default();
        let mut other = Box::pin(bodies.read("other", dribble(), soon()));
        assert!((&mut other).now_or_never().is_none());
        let mut slow: Vec<_> = (0..=PER_FLOW_MAX).map(|_| Box::pin(bodies.read("slow", dribble(), soon()))).collect();
        for reader in &mut slow {
            assert!(reader.now_or_never().is_none());
        }
        let first = (&mut slow[0]).now_or_never().expect("the oldest is given up").unwrap_err();
        assert_eq!(first.code(), 429);
        assert!((&mut slow[1]).now_or_never().is_none() && (&mut other).now_or_never().is_none());
        let whole = bodies.read("slow", Body::from("{}"), soon()).now_or_never().expect("it is there already");
        assert_eq!(whole.unwrap(), "{}");
    }

    #[tokio::test]
    async fn too_many_bodies_push_out_one_of_whoever_has_most_of_them() {
        let bodies = Bodies::default();
        let large = Arrival::new(&bodies, "one large");
        large.grown(1 << 20);
        let flows = ["a", "b", "c", "d", "e"];
        let mut small: Vec<Arrival> = Vec::new();
        for number in 0..=ALL_MAX {
            let arrival = Arrival::new(&bodies, flows[number % flows.len()]);
            arrival.grown(1);
            small.push(arrival);
        }
        let arriving = bodies.arriving.lock();
        assert!(arriving.readers.len() <= ALL_MAX);
        assert!(arriving.readers.contains_key(&large.number), "the large one is not what there are too many of");
        drop(arriving);
    }

    #[tokio::test]
    async fn a_body_is_bounded_whatever_its_head_says() {
        let bodies = Bodies::default();
        let piece = Bytes::from(vec![b'x'; 1 << 20]);
        let endless = stream::repeat_with(move || Ok::<_, Infallible>(piece.clone()));
        let failed = bodies.read("a", Body::from_stream(endless), soon()).await.unwrap_err();
        assert_eq!(failed.code(), 413);
    }
}
