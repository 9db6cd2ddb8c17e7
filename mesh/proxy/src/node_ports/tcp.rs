//! TCP at a node's port. A connection is served as HTTP, each request by an endpoint of its own, when the endpoint picked for
//! it is a component that is called; when that listens itself, bytes are passed on as they are, whatever they mean: HTTP/2,
//! gRPC, WebSocket or no HTTP at all.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::{FutureExt as _, StreamExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::{DRAIN, Inbound};
use crate::balance::{Picked, Tried};
use crate::endpoint::Connected;
use crate::retry::ATTEMPTS_MAX;
use crate::{BoxError, Stream, serve, spare};

/// Connections of one listener at a time; more wait in the kernel's queue.
const CONNECTIONS_PER_LISTENER_MAX: usize = 10_000;
/// First wait after a connection could not be accepted, as when there are no more descriptors; doubles.
const ACCEPT_RETRY_FIRST: Duration = Duration::from_millis(5);
/// Longest wait until connections are accepted again.
const ACCEPT_RETRY_MAX: Duration = Duration::from_secs(1);

/// Accepts until told to stop.
pub(super) async fn accept(inbound: Inbound, listener: TcpListener) {
    let own = Arc::new(Semaphore::new(CONNECTIONS_PER_LISTENER_MAX));
    let mut wait = ACCEPT_RETRY_FIRST;
    loop {
        // Waiting is all that is cut here.
        let next = async {
            let places = (own.clone().acquire_owned().await, inbound.places.clone().acquire_owned().await);
            (places, listener.accept().await)
        };
        let (places, accepted) = tokio::select! {
            () = inbound.stop.cancelled() => break,
            next = next => next,
        };
        match accepted {
            Ok((stream, _)) if spare::is_spare(&stream) => {
                wait = ACCEPT_RETRY_FIRST;
                spawn(&inbound, stream, places);
            }
            Ok((stream, _)) => {
                tracing::debug!("a client of a node port is let go: the process has few descriptors left");
                drop((stream, places));
                tokio::time::sleep(ACCEPT_RETRY_FIRST).await;
            }
            Err(error) => {
                // A pause lets connections end, instead of spinning on the error.
                tracing::debug!(%error, "accept");
                drop(places);
                tokio::select! {
                    () = inbound.stop.cancelled() => break,
                    () = tokio::time::sleep(wait) => wait = (wait * 2).min(ACCEPT_RETRY_MAX),
                }
            }
        }
    }
    // Who is connected as far as it knows is answered, not reset: bounded by the kernel's queue.
    while let Some(Ok((stream, _))) = listener.accept().now_or_never() {
        spawn(&inbound, stream, ());
    }
}

fn spawn(inbound: &Inbound, stream: TcpStream, places: impl Send + 'static) {
    let inbound = inbound.clone();
    inbound.tasks.clone().spawn(async move {
        let stop = inbound.stop.clone();
        let over = async {
            stop.cancelled().await;
            tokio::time::sleep(DRAIN).await;
        };
        let mut over = serve::aside(over);
        tokio::select! {
            result = connection(inbound, stream) => if let Err(error) = result {
                tracing::debug!(error, "connection");
            },
            // What is under way has had its time.
            _ = over.next() => {}
        }
        drop(places);
    });
}

async fn connection(inbound: Inbound, mut stream: TcpStream) -> Result<(), BoxError> {
    stream.set_nodelay(true)?;
    match connect(&inbound).await? {
        Some((mut there, _picked)) => pass(&mut stream, &mut there).await.map_err(BoxError::from),
        None => http(inbound, stream).await,
    }
}

/// A connection to an endpoint that listens itself; `None` when HTTP is to be spoken here: the endpoint is called, or there is
/// none (a client that speaks HTTP learns why; any other sees the connection end).
async fn connect(inbound: &Inbound) -> Result<Option<(Box<dyn Stream>, Picked)>, BoxError> {
    let mut route = inbound.route()?;
    let mut tried = Tried::default();
    let mut failure = None;
    let mut is_renewed = false;
    for _ in 0..=ATTEMPTS_MAX {
        let known = tried.count();
        let Some((mut picked, endpoint)) = inbound.proxy.pick(&route, &mut tried) else {
            // All that discovery named have just gone.
            if tried.count() > known
                && !std::mem::replace(&mut is_renewed, true)
                && let Some(renewed) = inbound.proxy.renew(&route).await
            {
                route = renewed;
                continue;
            }
            break;
        };
        match endpoint.connect(&*inbound.proxy.local).await {
            Ok(Connected::CallsOnly) => return Ok(None),
            Ok(Connected::Socket(there)) if !spare::is_spare(&there) => {
                return Err("the process has few descriptors left".into());
            }
            Ok(Connected::Socket(there)) => {
                picked.answered();
                return Ok(Some((Box::new(there), picked)));
            }
            Ok(Connected::Elsewhere(there)) => {
                picked.answered();
                return Ok(Some((there, picked)));
            }
            // Nothing was sent: another may be asked.
            Err(error) => {
                tried.add(&picked);
                route.balancer.failed(picked);
                failure = Some(error);
            }
        }
    }
    failure.map_or(Ok(None), Err)
}

/// Passes bytes both ways until both ends have said all.
async fn pass(here: &mut TcpStream, there: &mut Box<dyn Stream>) -> io::Result<()> {
    tokio::io::copy_bidirectional(here, there).await.map(|_| ())
}

/// Serves a connection as HTTP: each request takes the route as it is then.
async fn http(inbound: Inbound, stream: TcpStream) -> Result<(), BoxError> {
    let drain = inbound.stop.clone();
    let answer = move |request| {
        let route = inbound.route();
        let proxy = inbound.proxy.clone();
        async move { proxy.call_route(route?, request).await }
    };
    serve::serve(stream, drain, answer).await
}
