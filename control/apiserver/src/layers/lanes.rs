//! Work that keeps a processor busy for long (large bodies, long lists, documents) runs on threads of its own, few at a time,
//! so that whoever asks for little never waits behind it. A lane is held while its work computes, not while that waits (for
//! a commit, for another writer, for an account that is being made).

use std::future::Future;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use coracle_api::status::Status;
use coracle_keyspace::spawn_blocking;
use tokio::sync::Notify;

use crate::limits::Gate;

/// From this size of body and stored object a request is heavy: a millisecond of work or so.
pub(crate) const HEAVY_BYTES: usize = 16 << 10;
/// From this many records, or bytes of them, a list that must look into them is heavy.
pub(crate) const HEAVY_RECORDS: usize = 1_000;
pub(crate) const HEAVY_RECORDS_BYTES: usize = 1 << 20;

/// The threads for heavy work.
pub(crate) struct Lanes(Gate);

impl Lanes {
    /// Half of the processors, so that half are left.
    pub fn new() -> Lanes {
        Lanes(Gate::new(std::thread::available_parallelism().map_or(1, |cores| cores.get().div_ceil(2))))
    }

    /// Carries out `work`. When the caller goes away it ends at its next wait; the lane is held until then.
    pub async fn run<T, F>(&self, flow: &str, work: F) -> Result<T, Status>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Status>> + Send + 'static,
    {
        let mut work = Box::pin(work);
        let woken = Arc::new(Woken(Notify::new()));
        loop {
            let turn = self.0.take(flow).await;
            let waker = Waker::from(woken.clone());
            let step = spawn_blocking(move || {
                let _turn = turn;
                let polled = work.as_mut().poll(&mut Context::from_waker(&waker));
                (work, polled)
            });
            match step.await {
                Ok((_, Poll::Ready(answer))) => return answer,
                Ok((waiting, Poll::Pending)) => work = waiting,
                Err(error) => {
                    tracing::error!(%error, "a request handler panicked");
                    return Err(Status::internal_error("this request caused the server to fail; its log says why"));
                }
            }
            woken.0.notified().await;
        }
    }
}

/// That work can go on is kept until somebody asks, so none is lost that comes while it is still at it.
struct Woken(Notify);

impl Wake for Woken {
    fn wake(self: Arc<Woken>) {
        self.0.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn heavy_work_holds_up_neither_the_others_nor_for_ever() {
        let lanes = Lanes::new();
        let (began, begun) = tokio::sync::oneshot::channel();
        let (lets, goes_on) = std::sync::mpsc::channel();
        // On this test's only thread nothing else would happen if the work ran here.
        let busy = lanes.run("a", async move {
            let _ = began.send(());
            Ok(goes_on.recv_timeout(std::time::Duration::from_secs(20)).is_ok())
        });
        let other = async {
            begun.await.expect("the work has begun");
            lets.send(()).expect("it waits");
        };
        let (done, ()) = tokio::join!(busy, other);
        assert_eq!(done.ok(), Some(true));
        assert!(lanes.0.is_empty());
    }

    #[tokio::test]
    async fn work_ends_when_its_caller_leaves() {
        let lanes = Lanes::new();
        let (began, begun) = tokio::sync::oneshot::channel();
        let (ended, end) = tokio::sync::oneshot::channel::<()>();
        let endless = lanes.run("a", async move {
            let _ended = ended;
            let _ = began.send(());
            std::future::pending::<Result<(), Status>>().await
        });
        tokio::select! {
            _ = endless => unreachable!("it has no end"),
            begun = begun => begun.expect("the work has begun"),
        }
        assert!(end.await.is_err(), "dropped, not sent");
    }

    #[tokio::test]
    async fn work_that_waits_holds_no_lane() {
        let lanes = Lanes::new();
        let all_wait = Arc::new(tokio::sync::Barrier::new(2 * lanes.0.most()));
        // More than there are lanes, of one caller and of several, and none goes on before all have begun.
        let waiting = (0..2 * lanes.0.most()).map(|number| {
            let all_wait = all_wait.clone();
            let flow = if number % 2 == 0 { "a".to_owned() } else { number.to_string() };
            let lanes = &lanes;
            async move {
                let work = async move {
                    all_wait.wait().await;
                    Ok(number)
                };
                lanes.run(&flow, work).await
            }
        });
        let done = tokio::time::timeout(std::time::Duration::from_secs(10), futures::future::join_all(waiting)).await;
        let done: Vec<usize> = done.expect("they meet").into_iter().filter_map(Result::ok).collect();
        assert_eq!(done, (0..2 * lanes.0.most()).collect::<Vec<_>>());
        assert!(lanes.0.is_empty());
    }

    #[tokio::test]
    async fn a_panic_is_an_answer() {
        let lanes = Lanes::new();
        let failed = lanes.run::<(), _>("a", async { panic!("on purpose") }).await.unwrap_err();
        assert_eq!(failed.code(), 500);
    }
}
