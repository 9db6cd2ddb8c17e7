//! `/coracle/v1/demand`: what is asked of Services whose pods are scaled by it, told to whoever scales them for as long as it
//! listens. A line is a JSON object; one comes at once when somebody begins to wait for a pod, or comes where nothing was asked,
//! every second while something is, and every five seconds in any case, so that a connection which broke is noticed before what was
//! not heard through it counts for nothing.

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
/// Lines are so far apart at least: who comes and goes a thousand times in a second is told of a hundred times.
const SPACING: Duration = Duration::from_millis(10);

/// What was told last.
#[derive(Clone, Copy)]
struct Last {
    at: Instant,
    news: u64,
    is_idle: bool,
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
        let last = Last { at: Instant::now(), news, is_idle: told.is_empty() };
        Some((Ok::<_, Infallible>(line(&told)), (demands, reader, Some(last))))
    });
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response()
}

/// Until there is something to tell.
async fn wait(demands: &Demands, last: Last) {
    tokio::time::sleep_until(last.at + SPACING).await;
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
