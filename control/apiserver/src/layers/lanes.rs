//! Work that keeps a processor busy for long (large bodies, long lists, documents) runs on threads of its own, few at a time,
//! so that whoever asks for little never waits behind it.

use std::collections::HashMap;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;

use coracle_api::status::Status;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

/// From this size of body and stored object a request is heavy: a millisecond of work or so.
pub(crate) const HEAVY_BYTES: usize = 16 << 10;
/// From this many records a list that must look into them is heavy.
pub(crate) const HEAVY_RECORDS: usize = 1_000;

/// The threads for heavy work.
pub(crate) struct Lanes {
    lanes: Arc<Semaphore>,
    most: usize,
    /// Each caller has no more at the gate than there are lanes: behind it the turns go by caller.
    flows: Arc<Mutex<HashMap<Arc<str>, Arc<Semaphore>>>>,
}

impl Lanes {
    /// Half of the processors, so that half are left.
    pub fn new() -> Lanes {
        let most = std::thread::available_parallelism().map_or(1, |cores| cores.get().div_ceil(2));
        Lanes { lanes: Arc::new(Semaphore::new(most)), most, flows: Arc::default() }
    }

    /// Runs the future that `work` makes. When the caller goes away it ends at its next wait; the lane is held until then.
    pub async fn run<T, F>(&self, flow: &str, work: impl FnOnce() -> F + Send + 'static) -> Result<T, Status>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Status>>,
    {
        let turn = Turn::take(self, flow).await?;
        let cancelled = CancellationToken::new();
        let gone = cancelled.clone();
        let here = tokio::runtime::Handle::current();
        let working = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            here.block_on(async move {
                let work = pin!(work());
                tokio::select! {
                    answer = work => answer,
                    () = gone.cancelled() => Err(Status::internal_error("the client of a request has left")),
                }
            })
        });
        let _cancels = cancelled.drop_guard();
        working.await.unwrap_or_else(|error| {
            tracing::error!(%error, "a request handler panicked");
            Err(Status::internal_error("this request caused the server to fail; its log says why"))
        })
    }
}

/// A lane, held.
struct Turn {
    flows: Arc<Mutex<HashMap<Arc<str>, Arc<Semaphore>>>>,
    flow: Arc<str>,
    held: Option<(OwnedSemaphorePermit, OwnedSemaphorePermit)>,
}

impl Turn {
    async fn take(lanes: &Lanes, flow: &str) -> Result<Turn, Status> {
        let (name, gate) = {
            let mut flows = lanes.flows.lock();
            match flows.get_key_value(flow) {
                Some((name, gate)) => (name.clone(), gate.clone()),
                None => {
                    let name: Arc<str> = Arc::from(flow);
                    let gate = Arc::new(Semaphore::new(lanes.most));
                    flows.insert(name.clone(), gate.clone());
                    (name, gate)
                }
            }
        };
        // Made before the first wait: whoever leaves while waiting tidies up, too.
        let mut turn = Turn { flows: lanes.flows.clone(), flow: name, held: None };
        let closed = |_| Status::internal_error("the lanes are never closed");
        let mine = gate.acquire_owned().await.map_err(closed)?;
        let lane = lanes.lanes.clone().acquire_owned().await.map_err(closed)?;
        turn.held = Some((mine, lane));
        Ok(turn)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.held = None;
        let mut flows = self.flows.lock();
        // Only the map itself still has it: nobody of this flow waits or works.
        if flows.get(&self.flow).is_some_and(|gate| Arc::strong_count(gate) == 1) {
            flows.remove(&self.flow);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn heavy_work_holds_up_neither_the_others_nor_for_ever() {
        let lanes = Lanes::new();
        let (began, begun) = tokio::sync::oneshot::channel();
        // On this test's only thread nothing else would happen if the work ran here.
        let busy = lanes.run("a", move || async move {
            let _ = began.send(());
            let until = std::time::Instant::now() + std::time::Duration::from_millis(50);
            while std::time::Instant::now() < until {
                std::hint::spin_loop();
            }
            Ok(1)
        });
        let (done, ()) = tokio::join!(busy, async { begun.await.expect("the work has begun") });
        assert_eq!(done.ok(), Some(1));
        assert!(lanes.flows.lock().is_empty());
    }

    #[tokio::test]
    async fn work_ends_when_its_caller_leaves() {
        let lanes = Lanes::new();
        let (ended, end) = tokio::sync::oneshot::channel::<()>();
        let endless = lanes.run("a", move || async move {
            let _ended = ended;
            std::future::pending::<Result<(), Status>>().await
        });
        assert!(tokio::time::timeout(std::time::Duration::from_millis(20), endless).await.is_err());
        assert!(end.await.is_err(), "dropped, not sent");
    }

    #[tokio::test]
    async fn a_panic_is_an_answer() {
        let lanes = Lanes::new();
        let failed = lanes.run::<(), _>("a", || async { panic!("on purpose") }).await.unwrap_err();
        assert_eq!(failed.code(), 500);
    }
}
