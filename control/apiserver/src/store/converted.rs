//! What somebody outside makes of a record: asked for once. Who wants it meanwhile waits for that, and no call is made for them.

use std::sync::Arc;

use coracle_api::status::Status;
use coracle_keyspace::Record;
use parking_lot::Mutex;
use tokio::sync::watch;

/// How the call for some records ended.
#[derive(Clone)]
enum End {
    /// What came of each is kept with it. Where there is nothing, the others were in its way, and it is asked for by itself.
    Answered,
    /// Nobody answered: whoever asked now would not be answered either.
    Failed(Status),
}

/// A call that is about to be made for some records. While it exists others wait for it.
pub(crate) struct Asking(watch::Sender<Option<End>>);

impl Asking {
    pub fn new() -> Asking {
        Asking(watch::Sender::new(None))
    }

    /// What came of the records was kept.
    pub fn answered(self) {
        self.0.send_replace(Some(End::Answered));
    }

    /// Nothing came of any.
    pub fn failed(self, status: &Status) {
        self.0.send_replace(Some(End::Failed(status.clone())));
    }
}

/// A call of somebody else.
pub(crate) struct Asked(watch::Receiver<Option<End>>);

impl Asked {
    /// Waits for its end; says whether it is worth to wait for another. Who asked may also have left.
    pub async fn end(mut self) -> Result<bool, Status> {
        let end = self.0.wait_for(Option::is_some).await.map(|end| end.clone());
        match end {
            Ok(Some(End::Failed(status))) => Err(status),
            Ok(_) => Ok(false),
            Err(_) => Ok(true),
        }
    }
}

/// What is known of it.
pub(crate) enum Look {
    Known(Arc<Record>),
    /// Somebody asks for it now.
    Asked(Asked),
    /// It is for whoever looked to ask.
    Open,
}

/// A record in one version of its definition.
#[derive(Default)]
pub(crate) struct Converted(Mutex<State>);

#[derive(Default)]
struct State {
    known: Option<Arc<Record>>,
    asked: Option<watch::Receiver<Option<End>>>,
}

impl Converted {
    /// Looks at it; with `asking`, whoever finds nothing asks by that.
    pub fn look(&self, asking: &Asking) -> Look {
        let mut state = self.0.lock();
        if let Some(known) = &state.known {
            return Look::Known(known.clone());
        }
        // One that has ended without an answer, or whose asker has left, is nobody's.
        let goes_on = |asked: &&watch::Receiver<Option<End>>| asked.borrow().is_none() && asked.has_changed().is_ok();
        match state.asked.as_ref().filter(goes_on) {
            Some(asked) => Look::Asked(Asked(asked.clone())),
            None => {
                state.asked = Some(asking.0.subscribe());
                Look::Open
            }
        }
    }

    pub fn known(&self) -> Option<Arc<Record>> {
        self.0.lock().known.clone()
    }

    pub fn keep(&self, record: Arc<Record>) {
        *self.0.lock() = State { known: Some(record), asked: None };
    }
}

#[cfg(test)]
mod tests {
    use coracle_keyspace::{Guard, Key, Keyspace, Op, Value};
    use futures::FutureExt as _;

    use super::*;

    async fn record() -> Arc<Record> {
        let dir = tempfile::tempdir().unwrap();
        let keyspace = Keyspace::open(coracle_keyspace::Config::new(dir.path())).await.unwrap();
        let value = Value { bytes: bytes::Bytes::from_static(b"{}"), revision_at: 1 };
        let op = Op::Put { key: Key::new("things", "a"), value, guard: Guard::None };
        let committed = keyspace.transact(vec![op]).await.unwrap();
        keyspace.shutdown().await;
        committed.records[0].clone()
    }

    fn asked(look: Look) -> Asked {
        match look {
            Look::Asked(asked) => asked,
            Look::Known(_) => panic!("it is known"),
            Look::Open => panic!("nobody asks"),
        }
    }

    #[tokio::test]
    async fn one_asks_and_the_others_wait_for_the_answer() {
        let (converted, first, second) = (Converted::default(), Asking::new(), Asking::new());
        assert!(matches!(converted.look(&first), Look::Open));
        let waiting = asked(converted.look(&second));
        let mut end = Box::pin(waiting.end());
        assert!((&mut end).now_or_never().is_none());
        converted.keep(record().await);
        first.answered();
        assert_eq!(end.await, Ok(false));
        assert!(matches!(converted.look(&second), Look::Known(_)));
    }

    #[tokio::test]
    async fn a_failure_is_everybody_s_and_is_not_kept() {
        let (converted, first, second) = (Converted::default(), Asking::new(), Asking::new());
        assert!(matches!(converted.look(&first), Look::Open));
        let waiting = asked(converted.look(&second));
        let why = Status::internal_error("nobody listens");
        first.failed(&why);
        assert_eq!(waiting.end().await, Err(why));
        assert!(matches!(converted.look(&second), Look::Open), "the next asks anew");
    }

    #[tokio::test]
    async fn when_who_asks_leaves_another_asks() {
        let (converted, first, second) = (Converted::default(), Asking::new(), Asking::new());
        assert!(matches!(converted.look(&first), Look::Open));
        let waiting = asked(converted.look(&second));
        drop(first);
        assert_eq!(waiting.end().await, Ok(true));
        assert!(matches!(converted.look(&second), Look::Open));
    }
}
