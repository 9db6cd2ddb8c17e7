//! Where events are sent: an `EventList` of `audit.k8s.io/v1` is posted for each batch, as kube-apiserver's `--audit-webhook-*` say.
//!
//! ```text
//! the writer's thread ─ a line ─► the queue ─ batches, so many a second ─► posts, five tries each ─► the webhook
//! ```
//! In batches nobody waits for the webhook: what finds no room is lost and counted. In the blocking modes each event is a batch of its
//! own, and the request that it tells of waits for it, for a minute at most; the cluster's duties and health do not.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::waiting::Waiting;
use super::writer::{Counts, Done, Plugin, Tells, Trouble};
use crate::outward::{self, Caller, Endpoint};

/// Bytes of events that are neither sent nor lost.
const UNSENT_BYTES_MAX: usize = 64 << 20;
/// Posts under way at a time.
const SENDING_MAX: usize = 64;
/// How often a batch is sent until it is lost, how long one try may take, and how much longer the next wait is than the one before: the
/// reference's.
const TRIES: u32 = 5;
const TRY_MAX: Duration = Duration::from_secs(30);
const BACKOFF_FACTOR: f64 = 1.5;
const BACKOFF_JITTER: f64 = 0.2;
/// Bytes of a batch where nothing else is said; an event that is larger goes alone.
const BATCH_BYTES_MAX: usize = 10 << 20;

/// Who waits for the webhook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Nobody.
    Batch,
    /// Requests, until their events are sent or lost.
    Blocking,
    /// The same, and one whose first event is lost is refused.
    BlockingStrict,
}

/// How many batches are sent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Throttle {
    /// A second, on average.
    pub qps: f32,
    /// At once, after a time without any.
    pub burst: u32,
}

/// How large what is sent may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Truncate {
    /// Bytes of a batch.
    pub max_batch_size: usize,
    /// Bytes of an event. A larger one is sent without the bodies that it tells of, or is lost.
    pub max_event_size: usize,
}

/// How events are sent; fields are named as kube-apiserver's flags.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sending {
    /// Who waits for it.
    pub mode: Mode,
    /// Events that wait to be in a batch.
    pub batch_buffer_size: usize,
    /// Events of a batch.
    pub batch_max_size: usize,
    /// How long a batch waits for more.
    pub batch_max_wait: Duration,
    /// How many batches are sent, if there is a bound.
    pub batch_throttle: Option<Throttle>,
    /// How long the first failure is waited after; each further one longer.
    pub initial_backoff: Duration,
    /// How large they may be, if there is a bound.
    pub truncate: Option<Truncate>,
}

impl Default for Sending {
    fn default() -> Sending {
        Sending {
            mode: Mode::Batch,
            batch_buffer_size: 10_000,
            batch_max_size: 400,
            batch_max_wait: Duration::from_secs(30),
            batch_throttle: Some(Throttle { qps: 10.0, burst: 15 }),
            initial_backoff: Duration::from_secs(10),
            truncate: None,
        }
    }
}

/// Where events are sent, and how.
#[derive(Debug, Clone, PartialEq)]
pub struct Webhook {
    /// Where.
    pub endpoint: Endpoint,
    /// How.
    pub sending: Sending,
}

/// What waits to be sent.
struct Item {
    line: Vec<u8>,
    done: Done,
}

struct Shared {
    caller: Caller,
    sending: Sending,
    counts: Arc<Counts>,
    unsent: Waiting,
    crowded: Trouble,
    too_large: Trouble,
    refused: Trouble,
}

/// What is to be sent goes here; clones are the same.
#[derive(Clone)]
pub(super) struct Outbox {
    queue: mpsc::Sender<Item>,
    shared: Arc<Shared>,
    /// How many want all of it sent now.
    hurry: watch::Sender<usize>,
}

impl Outbox {
    /// Sends nothing yet.
    pub fn open(webhook: Webhook, counts: Arc<Counts>) -> io::Result<Outbox> {
        let Webhook { endpoint, sending } = webhook;
        let failed = |why| io::Error::new(io::ErrorKind::InvalidInput, format!("the audit webhook: {why}"));
        let caller = Caller::new(endpoint, "kube-apiserver-audit").map_err(failed)?;
        let (queue, items) = mpsc::channel(sending.batch_buffer_size.max(1));
        let (hurry, hurried) = watch::channel(0);
        let shared = Arc::new(Shared {
            caller,
            sending,
            counts,
            unsent: Waiting::default(),
            crowded: Trouble::default(),
            too_large: Trouble::default(),
            refused: Trouble::default(),
        });
        tokio::spawn(send_all(shared.clone(), Batches { items, hurried, carried: None }));
        Ok(Outbox { queue, shared, hurry })
    }

    /// Who waits for it.
    pub fn mode(&self) -> Mode {
        self.shared.sending.mode
    }

    /// Takes an event, or counts it as lost.
    pub fn take(&self, line: io::Result<Vec<u8>>, event: &dyn Tells, done: Done) {
        let shared = &self.shared;
        let Some(line) = self.fitting(line, event) else { return };
        let bytes = line.len();
        let has_room = shared.unsent.hold(bytes, UNSENT_BYTES_MAX);
        if has_room && self.queue.try_send(Item { line, done }).is_ok() {
            if shared.crowded.ends() {
                tracing::info!("the audit webhook has room again");
            }
            return;
        }
        if has_room {
            shared.unsent.let_go(bytes);
        }
        shared.counts.lost(Plugin::Buffered, 1);
        if shared.crowded.begins() {
            tracing::error!("the audit webhook takes less than it is told: events are lost until this ends");
        }
    }

    /// What is sent of an event; nothing of one that cannot be.
    fn fitting(&self, line: io::Result<Vec<u8>>, event: &dyn Tells) -> Option<Vec<u8>> {
        let shared = &self.shared;
        let most = shared.sending.truncate.map_or(usize::MAX, |truncate| truncate.max_event_size);
        let cut = match line {
            Ok(line) if line.len() > most => event.without_bodies(),
            line => Some(line),
        };
        match cut {
            Some(Ok(line)) if line.len() <= most => return Some(line),
            Some(Err(_)) => shared.counts.lost(Plugin::Webhook, 1),
            Some(Ok(_)) | None => shared.counts.lost(Plugin::Truncate, 1),
        }
        if shared.too_large.begins() {
            tracing::error!("an event is too large for the audit webhook, or is none: it and others like it are lost");
        }
        None
    }

    /// Waits until all is sent or lost. No batch waits for more meanwhile.
    pub async fn flush(&self) {
        struct Hurry<'a>(&'a watch::Sender<usize>);
        impl Drop for Hurry<'_> {
            fn drop(&mut self) {
                self.0.send_modify(|hurrying| *hurrying -= 1);
            }
        }
        self.hurry.send_modify(|hurrying| *hurrying += 1);
        let _hurry = Hurry(&self.hurry);
        self.shared.unsent.until(0).await;
    }

    /// Bytes that are neither sent nor lost.
    pub fn unsent(&self) -> usize {
        self.shared.unsent.now()
    }
}

/// What waits, in batches.
struct Batches {
    items: mpsc::Receiver<Item>,
    hurried: watch::Receiver<usize>,
    /// The first of the next batch.
    carried: Option<Item>,
}

impl Batches {
    /// The next, once it is full or has waited long enough; nothing once nobody tells any more.
    async fn next(&mut self, sending: &Sending) -> Option<Vec<Item>> {
        let (count, wait) = match sending.mode {
            Mode::Batch => (sending.batch_max_size, sending.batch_max_wait),
            Mode::Blocking | Mode::BlockingStrict => (1, Duration::ZERO),
        };
        let most = sending.truncate.map_or(BATCH_BYTES_MAX, |truncate| truncate.max_batch_size);
        let first = match self.carried.take() {
            Some(first) => first,
            None => self.items.recv().await?,
        };
        let until = Instant::now() + wait;
        let mut bytes = first.line.len();
        let mut batch = vec![first];
        while batch.len() < count {
            let more = tokio::select! {
                biased;
                more = self.items.recv() => more,
                _ = self.hurried.wait_for(|hurrying| *hurrying > 0) => None,
                () = sleep_until(until) => None,
            };
            let Some(more) = more else { break };
            bytes = bytes.saturating_add(more.line.len());
            if bytes > most {
                self.carried = Some(more);
                break;
            }
            batch.push(more);
        }
        Some(batch)
    }
}

/// Says when the next batch may be sent.
struct Turns {
    throttle: Option<Throttle>,
    left: f64,
    at: Instant,
}

impl Turns {
    fn new(throttle: Option<Throttle>) -> Turns {
        Turns { throttle, left: throttle.map_or(0.0, |throttle| f64::from(throttle.burst)), at: Instant::now() }
    }

    /// Takes a turn; how long it is until then.
    fn take(&mut self, now: Instant) -> Duration {
        let Some(Throttle { qps, burst }) = self.throttle else { return Duration::ZERO };
        let (qps, burst) = (f64::from(qps), f64::from(burst));
        let earned = now.saturating_duration_since(self.at).as_secs_f64() * qps;
        self.at = now;
        self.left = (self.left + earned).min(burst) - 1.0;
        Duration::try_from_secs_f64((-self.left).max(0.0) / qps).unwrap_or(Duration::MAX)
    }
}

async fn send_all(shared: Arc<Shared>, mut batches: Batches) {
    let places = Arc::new(Semaphore::new(SENDING_MAX));
    let is_batched = shared.sending.mode == Mode::Batch;
    let mut turns = Turns::new(shared.sending.batch_throttle.filter(|_| is_batched));
    while let Some(batch) = batches.next(&shared.sending).await {
        let wait = turns.take(Instant::now());
        if !wait.is_zero() {
            sleep(wait).await;
        }
        // It is never closed.
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let shared = shared.clone();
        tokio::spawn(async move {
            send(&shared, batch).await;
            drop(place);
        });
    }
}

/// Sends a batch until it is heard, or lost.
async fn send(shared: &Shared, batch: Vec<Item>) {
    let (body, bytes) = list(&batch);
    let all: Vec<Done> = batch.into_iter().map(|item| item.done).collect();
    let heard = tries(shared, &body).await;
    match &heard {
        Ok(()) if shared.refused.ends() => tracing::info!("the audit webhook takes events again"),
        Ok(()) => {}
        Err(why) => {
            shared.counts.lost(Plugin::Webhook, all.len());
            if shared.refused.begins() {
                tracing::error!(%why, "the audit webhook does not take events: they are lost until this ends");
            }
        }
    }
    for done in all.into_iter().flatten() {
        // Who waited may have left.
        let _ = done.send(heard.is_ok());
    }
    shared.unsent.let_go(bytes);
}

async fn tries(shared: &Shared, body: &Bytes) -> Result<(), String> {
    let mut backoff = shared.sending.initial_backoff;
    let mut tried = 0;
    loop {
        let why = match timeout(TRY_MAX, shared.caller.post(body.clone())).await {
            Ok(Ok((code, _))) if code.is_success() => return Ok(()),
            Ok(Ok((code, answer))) => format!("{code}: {}", outward::words(&String::from_utf8_lossy(&answer))),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "it does not answer".to_owned(),
        };
        tried += 1;
        if tried == TRIES {
            return Err(why);
        }
        tracing::debug!(%why, tried, "the audit webhook did not take a batch");
        sleep(backoff.mul_f64(1.0 + BACKOFF_JITTER * rand::random::<f64>())).await;
        backoff = backoff.mul_f64(BACKOFF_FACTOR);
    }
}

/// The body of a post, and how many bytes of events are in it.
fn list(batch: &[Item]) -> (Bytes, usize) {
    let bytes = batch.iter().map(|item| item.line.len()).sum::<usize>();
    let mut body = Vec::with_capacity(bytes + batch.len() + 128);
    body.extend_from_slice(br#"{"kind":"EventList","apiVersion":"audit.k8s.io/v1","metadata":{},"items":["#);
    for (at, item) in batch.iter().enumerate() {
        if at > 0 {
            body.push(b',');
        }
        body.extend_from_slice(item.line.trim_ascii_end());
    }
    body.extend_from_slice(b"]}");
    (body.into(), bytes)
}

#[cfg(test)]
mod tests {
    use super::super::writer::tests::Line;
    use super::*;

    fn outbox(sending: Sending) -> Outbox {
        // Nobody listens there.
        let endpoint = Endpoint { url: "http://127.0.0.1:1/audit".to_owned(), ..Endpoint::default() };
        Outbox::open(Webhook { endpoint, sending }, Arc::default()).unwrap()
    }

    fn take(outbox: &Outbox, text: &'static str) {
        let line = Line(text);
        outbox.take(line.line(), &line, None);
    }

    fn batches(lines: &[&str]) -> (Batches, mpsc::Sender<Item>, watch::Sender<usize>) {
        let (queue, items) = mpsc::channel(100);
        for line in lines {
            queue.try_send(Item { line: line.as_bytes().to_vec(), done: None }).ok().unwrap();
        }
        let (hurry, hurried) = watch::channel(0);
        (Batches { items, hurried, carried: None }, queue, hurry)
    }

    fn texts(batch: Option<Vec<Item>>) -> Vec<String> {
        batch.into_iter().flatten().map(|item| String::from_utf8(item.line).unwrap()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_is_full_by_count_by_bytes_or_by_time() {
        let truncate = Some(Truncate { max_batch_size: 10, max_event_size: 10 });
        let sending = Sending { batch_max_size: 3, truncate, ..Sending::default() };
        let (mut batches, queue, hurry) = batches(&["aa", "bb", "cc", "dddddd", "eeeeee", "f"]);
        assert_eq!(texts(batches.next(&sending).await), ["aa", "bb", "cc"]);
        assert_eq!(texts(batches.next(&sending).await), ["dddddd"]);
        let began = Instant::now();
        assert_eq!(texts(batches.next(&sending).await), ["eeeeee", "f"]);
        assert!(began.elapsed() >= sending.batch_max_wait);
        // Who wants all of it does not wait for more.
        queue.send(Item { line: b"g".to_vec(), done: None }).await.ok().unwrap();
        hurry.send_replace(1);
        let began = Instant::now();
        assert_eq!(texts(batches.next(&sending).await), ["g"]);
        assert_eq!(began.elapsed(), Duration::ZERO);
        drop(queue);
        assert!(batches.next(&sending).await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn batches_are_sent_so_often_and_not_more() {
        let mut turns = Turns::new(Some(Throttle { qps: 2.0, burst: 2 }));
        let now = Instant::now();
        let half = Duration::from_millis(500);
        assert_eq!([(); 4].map(|()| turns.take(now)), [Duration::ZERO, Duration::ZERO, half, 2 * half]);
        assert_eq!(turns.take(now + 2 * half), half);
        // What was not used is not kept without end.
        let later = now + Duration::from_secs(60);
        assert_eq!([(); 3].map(|()| turns.take(later)), [Duration::ZERO, Duration::ZERO, half]);
        assert_eq!(Turns::new(None).take(now), Duration::ZERO);
    }

    #[tokio::test]
    async fn what_has_no_room_is_lost_by_count_and_by_bytes() {
        let outbox = outbox(Sending { batch_buffer_size: 2, ..Sending::default() });
        // Nothing else runs until this waits.
        for _ in 0..3 {
            take(&outbox, "{}");
        }
        assert_eq!((outbox.shared.counts.lost_by(Plugin::Buffered), outbox.unsent()), (1, 6));
        assert!(outbox.shared.unsent.hold(UNSENT_BYTES_MAX - 6, UNSENT_BYTES_MAX));
        take(&outbox, "{}");
        assert_eq!(outbox.shared.counts.lost_by(Plugin::Buffered), 2);
    }

    #[tokio::test]
    async fn what_is_too_large_is_sent_without_bodies_or_is_lost() {
        let truncate = |max_event_size| Some(Truncate { max_batch_size: 100, max_event_size });
        let roomy = outbox(Sending { truncate: truncate(3), ..Sending::default() });
        take(&roomy, "{\"a\": 1}");
        assert_eq!((roomy.unsent(), roomy.shared.counts.lost_by(Plugin::Truncate)), (3, 0));
        let narrow = outbox(Sending { truncate: truncate(2), ..Sending::default() });
        take(&narrow, "{\"a\": 1}");
        assert_eq!((narrow.unsent(), narrow.shared.counts.lost_by(Plugin::Truncate)), (0, 1));
    }

    #[tokio::test]
    async fn what_nobody_takes_is_lost_after_some_tries_and_counted() {
        let initial_backoff = Duration::from_millis(1);
        let outbox = outbox(Sending { initial_backoff, ..Sending::default() });
        take(&outbox, "{}");
        take(&outbox, "{}");
        outbox.flush().await;
        assert_eq!((outbox.shared.counts.lost_by(Plugin::Webhook), outbox.unsent()), (2, 0));
    }
}
