//! Accepting connections at a port of this node, whoever serves them: within its places, and until told to stop.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::{FutureExt as _, StreamExt as _};
use rustix::net::listen;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::coop::unconstrained;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::places::{Key, Place, Places};
use crate::turns::Turns;
use crate::{BoxError, serve, spare};

/// How long connections may finish what they began when the node goes down or what they are for is gone.
pub(crate) const DRAIN: Duration = Duration::from_secs(5);
/// First wait until a port that is taken is tried again; doubles.
pub(crate) const RETRY_FIRST: Duration = Duration::from_secs(1);
/// Longest wait until a port that is taken is tried again.
pub(crate) const RETRY_MAX: Duration = Duration::from_secs(30);

/// First wait after a connection could not be accepted, as when there are no more descriptors; doubles.
const ACCEPT_RETRY_FIRST: Duration = Duration::from_millis(5);
/// Longest wait until connections are accepted again.
const ACCEPT_RETRY_MAX: Duration = Duration::from_secs(1);

/// Clients that the kernel has connected and nobody has accepted yet: many may come at once. Of one more it would hear again after a second
/// only; tokio's own bound is 128.
const QUEUED_MAX: u16 = 1024;

/// What all connections of one port have in common.
#[derive(Clone)]
pub(crate) struct Door {
    pub key: Key,
    /// Nothing more is taken.
    pub stop: CancellationToken,
    pub tasks: TaskTracker,
    pub places: Arc<Places>,
    /// Whose clients come here: of the namespace of the Service that has the port now, or nobody's.
    pub whose: Arc<dyn Fn() -> Option<Arc<str>> + Send + Sync>,
}

/// Accepts until told to stop; `serve` gets each connection, its client and its turns.
pub(crate) async fn accept<F, S>(door: Door, listener: TcpListener, serve: F)
where
    F: Fn(TcpStream, SocketAddr, Arc<Turns>) -> S,
    S: Future<Output = Result<(), BoxError>> + Send + 'static,
{
    if let Err(error) = listen(&listener, QUEUED_MAX.into()) {
        tracing::debug!(%error, "few clients may wait at a port");
    }
    let mut wait = ACCEPT_RETRY_FIRST;
    loop {
        // Waiting is all that is cut here: who is connected by then is one of those at the end.
        let accepted = tokio::select! {
            () = door.stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            // One that was among the last is served for others that leave.
            Ok((stream, client)) if spare::is_spare(&stream) || door.places.make_way() => {
                wait = ACCEPT_RETRY_FIRST;
                let (over, whose) = (CancellationToken::new(), (door.whose)());
                let place = tokio::select! {
                    () = door.stop.cancelled() => None,
                    place = door.places.enter(door.key, whose.as_ref(), &over) => Some(place),
                };
                let turns = turns_of(place.as_ref());
                spawn(&door, serve(stream, client, turns), over, place);
            }
            Ok((stream, _)) => {
                tracing::debug!("a client is let go: the process has few descriptors left");
                drop(stream);
                tokio::time::sleep(ACCEPT_RETRY_FIRST).await;
            }
            Err(error) => {
                // A pause lets connections end, instead of spinning on the error.
                tracing::debug!(%error, "accept");
                door.places.make_way();
                tokio::select! {
                    () = door.stop.cancelled() => break,
                    () = tokio::time::sleep(wait) => wait = (wait * 2).min(ACCEPT_RETRY_MAX),
                }
            }
        }
    }
    // Who is connected as far as it knows is answered, not reset: all of the kernel's queue, which is more than a task's share of a turn.
    for _ in 0..QUEUED_MAX {
        let accepted = unconstrained(listener.accept()).now_or_never();
        let Some(Ok((stream, client))) = accepted else { break };
        spawn(&door, serve(stream, client, turns_of(None)), CancellationToken::new(), None);
    }
}

fn turns_of(place: Option<&Place>) -> Arc<Turns> {
    place.map(|place| place.turns.clone()).unwrap_or_default()
}

fn spawn(
    door: &Door,
    serving: impl Future<Output = Result<(), BoxError>> + Send + 'static,
    gave_way: CancellationToken,
    place: Option<Place>,
) {
    let stop = door.stop.clone();
    door.tasks.spawn(async move {
        let over = async {
            stop.cancelled().await;
            tokio::time::sleep(DRAIN).await;
        };
        let (mut over, mut gave_way) = (serve::aside(over), serve::aside(gave_way.cancelled()));
        tokio::select! {
            result = serving => if let Err(error) = result {
                tracing::debug!(error, "connection");
            },
            // What is under way has had its time.
            _ = over.next() => {}
            _ = gave_way.next() => tracing::debug!("a client that waits gives way to others"),
        }
        drop(place);
    });
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use coracle_discovery::Protocol;

    use super::*;
    use crate::places::CONNECTIONS_MAX;

    #[tokio::test]
    async fn all_who_wait_at_the_end_are_served() {
        const WAITING: usize = 160;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listen(&listener, QUEUED_MAX.into()).unwrap();
        let address = listener.local_addr().unwrap();
        let mut clients = Vec::new();
        for _ in 0..WAITING {
            clients.push(TcpStream::connect(address).await.unwrap());
        }
        let door = Door {
            key: (address.port(), Protocol::Tcp),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            places: Places::new(CONNECTIONS_MAX),
            whose: Arc::new(|| None),
        };
        door.stop.cancel();
        let (tasks, served) = (door.tasks.clone(), Arc::<AtomicUsize>::default());
        let count = served.clone();
        accept(door, listener, move |_, _, _| {
            count.fetch_add(1, Relaxed);
            std::future::ready(Ok(()))
        })
        .await;
        tasks.close();
        tasks.wait().await;
        assert_eq!(served.load(Relaxed), WAITING);
    }
}
