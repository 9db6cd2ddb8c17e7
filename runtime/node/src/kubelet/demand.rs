//! `/coracle/v1/demand`: what is asked of Services whose pods are scaled by it, told to whoever scales them for as long as it
//! listens. A line is a JSON object; one comes at once when somebody begins to wait for a pod, when nobody does any more, or when somebody
//! comes where nothing was asked, every second while something is, and every five seconds in any case, so that a connection which broke is
//! noticed before what was not heard through it counts for nothing.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use coracle_proxy::{Asked, Demands, Reader};
use futures::stream;
use serde_json::json;
use tokio::time::Instant;

use crate::pod::Pods;

/// From one line to the next while something is asked,
const ACTIVE: Duration = Duration::from_secs(1);
/// and while nothing is.
const IDLE: Duration = Duration::from_secs(5);
/// Lines are so far apart in the long run: who comes and goes a thousand times in a second is told of a hundred times.
const SPACING: Duration = Duration::from_millis(10);
/// So many may come at once: that somebody has come is told a moment before it is seen that he has to wait, and he waits for the second one.
const BURST: u32 = 4;

/// What was told last.
#[derive(Clone, Copy)]
struct Last {
    at: Instant,
    /// When as many may come at once again.
    spaced: Instant,
    news: u64,
    is_idle: bool,
}

impl Last {
    fn after(before: Option<Last>, at: Instant, news: u64, is_idle: bool) -> Last {
        let spaced = before.map_or(at, |before| before.spaced.max(at)) + SPACING;
        Last { at, spaced, news, is_idle }
    }

    /// When the next line may come.
    fn next_at(&self) -> Instant {
        self.at.max(self.spaced - SPACING * (BURST - 1))
    }
}

/// Answers until the other side goes.
pub async fn get(State(pods): State<Arc<Pods>>) -> Response {
    let demands = pods.context.network.proxy.demands().clone();
    let lines = stream::unfold((demands, Reader::default(), None), |(demands, mut reader, last)| async move {
        if let Some(last) = last {
            wait(&demands, last).await;
        }
        // Before: what comes meanwhile is told again.
        let news = demands.news();
        let told = demands.read(&mut reader);
        let last = Last::after(last, Instant::now(), news, told.is_empty());
        Some((Ok::<_, Infallible>(line(&told)), (demands, reader, Some(last))))
    });
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response()
}

/// Until there is something to tell.
async fn wait(demands: &Demands, last: Last) {
    tokio::time::sleep_until(last.next_at()).await;
    // Waiting is all that is cut here.
    tokio::select! {
        () = demands.changed(last.news) => {}
        () = tokio::time::sleep_until(last.at + if last.is_idle { IDLE } else { ACTIVE }) => {}
    }
}

fn line(told: &[Asked]) -> Bytes {
    let service = |asked: &Asked| json!({"namespace": &*asked.namespace, "name": &*asked.name, "average": asked.average, "held": asked.held});
    let services: Vec<_> = told.iter().map(service).collect();
    Bytes::from(format!("{}\n", json!({ "services": services })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_come_is_told_of_at_once_and_a_storm_a_hundred_times_a_second() {
        let begun = Instant::now();
        let mut last = Last::after(None, begun, 0, true);
        let mut told = vec![begun];
        while told.len() < 104 {
            // There is always more to tell.
            let at = last.next_at();
            last = Last::after(Some(last), at, 0, false);
            told.push(at);
        }
        let since = |at: Instant| at.duration_since(begun).as_millis();
        assert_eq!(told.iter().take(6).map(|at| since(*at)).collect::<Vec<_>>(), [0, 0, 0, 0, 10, 20]);
        assert_eq!(since(told[103]), 1000);
        // After a rest some may come at once again.
        let rested = last.at + SPACING * BURST;
        last = Last::after(Some(last), rested, 0, false);
        assert_eq!(last.next_at(), rested);
    }
}
