//! From events to the places where they go: one thread makes a line of each, writes it to the log and hands it to the webhook. Who
//! has something to tell hands it over and waits for no disk.

use std::fmt::Write as _;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use tokio::sync::oneshot;

use super::log::{Log, Out};
use super::waiting::Waiting;
use super::webhook::{Mode, Outbox, Webhook};

/// Bytes that wait to be written, beyond which requests wait; and beyond which what does not wait is lost.
const WAITING_MAX: usize = 32 << 20;
const LOST_BEYOND: usize = 64 << 20;
/// How long the end waits for what is not written and sent yet.
const FLUSH_MAX: Duration = Duration::from_secs(10);
/// How long a request waits for what is told of it; sending goes on.
const WAITED_FOR_MAX: Duration = Duration::from_secs(60);

/// What a line can be made of.
pub(super) trait Tells: Send {
    /// With the end of it.
    fn line(&self) -> io::Result<Vec<u8>>;

    /// The same without what was sent and answered, which says that it is; nothing where it never has such.
    fn without_bodies(&self) -> Option<io::Result<Vec<u8>>>;
}

/// Told of once an event is where it goes, or is lost.
pub(super) type Done = Option<oneshot::Sender<bool>>;

/// Whether an event has come where it goes.
pub(super) struct Delivery(oneshot::Receiver<bool>);

impl Delivery {
    /// Waits until that is known, within bounds.
    pub async fn made(self) -> bool {
        matches!(tokio::time::timeout(WAITED_FOR_MAX, self.0).await, Ok(Ok(true)))
    }
}

/// Something that is wrong for a while: it is told when it begins and when it ends, not for each event.
#[derive(Default)]
pub(super) struct Trouble(AtomicBool);

impl Trouble {
    /// It is wrong; whether it was not before.
    pub fn begins(&self) -> bool {
        !self.0.swap(true, Ordering::Relaxed)
    }

    /// It is not; whether it was.
    pub fn ends(&self) -> bool {
        self.0.load(Ordering::Relaxed) && self.0.swap(false, Ordering::Relaxed)
    }
}

/// Who has lost an event, as the metrics name them; the reference's names.
#[derive(Debug, Clone, Copy)]
pub(super) enum Plugin {
    Log,
    Webhook,
    Buffered,
    Truncate,
}

impl Plugin {
    const ALL: [(Plugin, &str); 4] = [
        (Plugin::Log, "log"),
        (Plugin::Webhook, "webhook"),
        (Plugin::Buffered, "buffered"),
        (Plugin::Truncate, "truncate"),
    ];
}

/// What the metrics say.
#[derive(Default)]
pub(super) struct Counts {
    events: AtomicU64,
    rejected: AtomicU64,
    lost: [AtomicU64; Plugin::ALL.len()],
}

impl Counts {
    /// So many events are lost.
    pub fn lost(&self, plugin: Plugin, events: usize) {
        self.lost[plugin as usize].fetch_add(events as u64, Ordering::Relaxed);
    }

    /// How many were.
    pub fn lost_by(&self, plugin: Plugin) -> u64 {
        self.lost[plugin as usize].load(Ordering::Relaxed)
    }
}

/// What the writer and those who tell share.
#[derive(Default)]
struct Shared {
    /// What is told and no line yet.
    waiting: Waiting,
    counts: Arc<Counts>,
    crowded: Trouble,
}

/// An event on its way, and about how many bytes it holds.
struct Told {
    bytes: usize,
    event: Box<dyn Tells>,
    done: Done,
}

/// Hands events over.
pub(super) struct Writer {
    told: Sender<Told>,
    shared: Arc<Shared>,
    webhook: Option<Outbox>,
    has_log: bool,
}

impl Writer {
    /// Opens the log; it must be possible to write it now. A webhook is not asked yet.
    pub fn open(log: Option<Log>, webhook: Option<Webhook>) -> io::Result<Writer> {
        let shared = Arc::new(Shared::default());
        let has_log = log.is_some();
        let out = log.map(Out::open).transpose()?;
        let webhook = webhook.map(|webhook| Outbox::open(webhook, shared.counts.clone())).transpose()?;
        let (told, events) = channel();
        let thread = std::thread::Builder::new().name("audit".to_owned());
        let (of_thread, outbox) = (shared.clone(), webhook.clone());
        thread.spawn(move || write_all(&events, out, outbox, &of_thread))?;
        Ok(Writer { told, shared, webhook, has_log })
    }

    fn mode(&self) -> Mode {
        self.webhook.as_ref().map_or(Mode::Batch, Outbox::mode)
    }

    /// Whether nothing is done of which nobody was told.
    pub fn is_strict(&self) -> bool {
        self.mode() == Mode::BlockingStrict
    }

    /// A request was refused for that.
    pub fn rejected(&self) {
        self.shared.counts.rejected.fetch_add(1, Ordering::Relaxed);
    }

    /// Waits until there is room for what a request has to tell.
    pub async fn room(&self) {
        self.shared.waiting.until(WAITING_MAX).await;
    }

    /// Hands over an event that holds about so many bytes. Where requests wait for what is told of them, for this. One that nobody has
    /// made room for takes none that others wait for.
    pub fn tell(&self, bytes: usize, event: impl Tells + 'static, has_room: bool) -> Option<Delivery> {
        self.shared.counts.events.fetch_add(1, Ordering::Relaxed);
        let (done, made) = match self.mode() {
            Mode::Batch => (None, None),
            Mode::Blocking | Mode::BlockingStrict => {
                let (done, made) = oneshot::channel();
                (Some(done), Some(Delivery(made)))
            }
        };
        if self.shared.waiting.hold(bytes, if has_room { LOST_BEYOND } else { WAITING_MAX }) {
            // The thread ends with this, not before.
            let _ = self.told.send(Told { bytes, event: Box::new(event), done });
            return made;
        }
        for (plugin, exists) in [(Plugin::Log, self.has_log), (Plugin::Buffered, self.webhook.is_some())] {
            self.shared.counts.lost(plugin, usize::from(exists));
        }
        if self.shared.crowded.begins() {
            tracing::error!(
                "the audit log is not written as fast as it is told: events are missing from it until this ends"
            );
        }
        made
    }

    /// Has so many bytes wait, as many as users' requests go on with and one.
    #[cfg(test)]
    pub fn crowd(&self) {
        assert!(self.shared.waiting.hold(WAITING_MAX + 1, LOST_BEYOND));
    }

    /// How many events were told, and lost on their way to the log.
    #[cfg(test)]
    pub fn told_and_lost(&self) -> (u64, u64) {
        (self.shared.counts.events.load(Ordering::Relaxed), self.shared.counts.lost_by(Plugin::Log))
    }

    /// Waits until all is written and sent that was told, within bounds.
    pub async fn flush(&self) {
        let ends = tokio::time::Instant::now() + FLUSH_MAX;
        if tokio::time::timeout_at(ends, self.shared.waiting.until(0)).await.is_err() {
            tracing::error!("the last events of the audit log are not written: its disk stands still");
        }
        if let Some(webhook) = &self.webhook
            && tokio::time::timeout_at(ends, webhook.flush()).await.is_err()
        {
            tracing::error!(bytes = webhook.unsent(), "the last events of the audit log are not sent to its webhook");
        }
    }

    /// What the metrics page says of it.
    pub fn render(&self, page: &mut String) {
        let counts = &self.shared.counts;
        let (events, rejected) = (&counts.events, &counts.rejected);
        // Writing to a string cannot fail.
        let _ = writeln!(
            page,
            "# HELP apiserver_audit_event_total Events of the audit log.\n# TYPE apiserver_audit_event_total counter\n\
             apiserver_audit_event_total {}\n\
             # HELP apiserver_audit_requests_rejected_total Requests that were refused because their event could not be stored.\n\
             # TYPE apiserver_audit_requests_rejected_total counter\napiserver_audit_requests_rejected_total {}\n\
             # HELP apiserver_audit_error_total Events that could not be written or sent.\n\
             # TYPE apiserver_audit_error_total counter",
            events.load(Ordering::Relaxed),
            rejected.load(Ordering::Relaxed),
        );
        for (plugin, name) in Plugin::ALL {
            let exists = if matches!(plugin, Plugin::Log) { self.has_log } else { self.webhook.is_some() };
            if exists {
                let _ = writeln!(page, "apiserver_audit_error_total{{plugin=\"{name}\"}} {}", counts.lost_by(plugin));
            }
        }
    }
}

fn write_all(told: &Receiver<Told>, mut out: Option<Out>, outbox: Option<Outbox>, shared: &Shared) {
    let refused = Trouble::default();
    while let Ok(Told { bytes, event, done }) = told.recv() {
        // One event that cannot be told ends no other.
        let line = catch_unwind(AssertUnwindSafe(|| event.line()));
        let line = line.unwrap_or_else(|_| Err(io::Error::other("an event could not be made into a line")));
        if let Some(out) = &mut out {
            let written = match &line {
                Ok(line) => out.write(line),
                Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
            };
            match written {
                Ok(()) if refused.ends() => tracing::info!("the audit log is written again"),
                Ok(()) => {}
                Err(error) => {
                    shared.counts.lost(Plugin::Log, 1);
                    if refused.begins() {
                        tracing::error!(%error, "write the audit log: events are missing from it until this ends");
                    }
                }
            }
        }
        if let Some(outbox) = &outbox {
            outbox.take(line, &*event, done);
        }
        drop(event);
        if shared.waiting.let_go(bytes) <= WAITING_MAX && shared.crowded.ends() {
            tracing::info!("the audit log has room again");
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// An event of a test.
    pub struct Line(pub &'static str);

    impl Tells for Line {
        fn line(&self) -> io::Result<Vec<u8>> {
            assert!(!self.0.is_empty(), "an event that cannot be told");
            Ok(format!("{}\n", self.0).into_bytes())
        }

        fn without_bodies(&self) -> Option<io::Result<Vec<u8>>> {
            Some(Ok(b"{}\n".to_vec()))
        }
    }

    #[tokio::test]
    async fn requests_wait_while_too_much_is_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        let writer = Writer::open(Some(Log { path: Some(path.clone()), ..Log::default() }), None).unwrap();
        writer.crowd();
        let mut room = std::pin::pin!(writer.room());
        assert!(futures::poll!(&mut room).is_pending());
        writer.tell(3, Line("whoever had no room"), false);
        assert_eq!(writer.told_and_lost(), (1, 1), "it takes none of those who wait");
        writer.shared.waiting.let_go(WAITING_MAX + 1);
        assert!(writer.tell(3, Line(""), true).is_none(), "nobody waits for a log");
        writer.tell(3, Line("{}"), true);
        room.await;
        writer.flush().await;
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{}\n");
        assert_eq!(writer.told_and_lost(), (3, 2));
        // What does not wait is lost, and counted, rather than kept without end.
        assert!(writer.shared.waiting.hold(LOST_BEYOND, LOST_BEYOND));
        writer.tell(1, Line("it has no room"), true);
        assert_eq!(writer.told_and_lost(), (4, 3));
        writer.shared.waiting.let_go(LOST_BEYOND);
    }
}
