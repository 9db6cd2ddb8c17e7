//! `/containerLogs`: what a container has printed, as a body or as the messages of a WebSocket.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, Query, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _};
use hyper::upgrade::OnUpgrade;
use jiff::Timestamp;
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_tungstenite::tungstenite::Message;

use super::places::{Place, hold};
use super::refusal;
use super::traffic::{IDLE_MAX, PARTING_MAX};
use super::upgrade::{self, Wanted, WebSocket};
use crate::logs::{self, Options};
use crate::pod::core::{self, Container, Run};
use crate::pod::{Pods, Slot};

/// Subprotocols of a log's WebSocket.
const PROTOCOLS: [&str; 2] = ["binary.k8s.io", BASE64_PROTOCOL];
const BASE64_PROTOCOL: &str = "base64.binary.k8s.io";
/// Chunks between the reader of the file and the connection.
const CHUNKS_MAX: usize = 4;

/// Query parameters, as `PodLogOptions` has them.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LogQuery {
    follow: Option<String>,
    previous: Option<String>,
    timestamps: Option<String>,
    tail_lines: Option<String>,
    limit_bytes: Option<String>,
    since_seconds: Option<String>,
    since_time: Option<String>,
    stream: Option<String>,
}

/// Answers with the log.
pub async fn get(
    State(pods): State<Arc<Pods>>,
    Path((namespace, pod, container)): Path<(String, String, String)>,
    Query(wanted): Query<LogQuery>,
    request: Request,
) -> Response {
    let options = match options(&wanted, Timestamp::now()) {
        Ok(options) => options,
        Err(message) => return refusal(StatusCode::UNPROCESSABLE_ENTITY, message),
    };
    let Some(slot) = pods.find(&namespace, &pod) else {
        return refusal(StatusCode::NOT_FOUND, format!("pod {pod:?} does not exist\n"));
    };
    let object = slot.pod();
    let Some(index) = core::names(&object).position(|name| name == container) else {
        return refusal(StatusCode::NOT_FOUND, format!("container {container:?} not found in pod {pod:?}\n"));
    };
    let is_previous = is_true(wanted.previous.as_ref());
    let run = slot.with_core(|core| match core.containers().get(index) {
        Some(found) => life(found, &pod, is_previous),
        None => Err(format!("container {container:?} in pod {pod:?} is not available")),
    });
    match run {
        Ok(run) => stream(&pods, &slot, index, &container, run, options, request),
        Err(message) => refusal(StatusCode::BAD_REQUEST, message),
    }
}

fn stream(
    pods: &Pods,
    slot: &Slot,
    index: usize,
    container: &str,
    run: Run,
    options: Options,
    mut request: Request,
) -> Response {
    let messages = match Wanted::of(request.headers()) {
        Wanted::WebSocket(offered) => match messages(&mut request, &offered) {
            Ok(messages) => Some(messages),
            Err(refused) => return *refused,
        },
        Wanted::Spdy(_) | Wanted::Nothing => None,
    };
    let dir = logs::pod_dir(&pods.context.logs_dir, &slot.namespace, &slot.name, &slot.uid);
    let live = slot.live_log(index).filter(|(live, _)| *live == run).map(|(_, log)| log);
    let (sender, receiver) = mpsc::channel(CHUNKS_MAX);
    let path = logs::file(&dir, container, run);
    // Ends when the client goes: the channel is closed then.
    tokio::spawn(async move {
        if let Err(error) = logs::read(path, live, options, sender).await {
            tracing::debug!(%error, "log is not read to its end");
        }
    });
    if let Some((response, upgrading, is_text)) = messages {
        let place = request.extensions_mut().remove::<Place>();
        tokio::spawn(hold(place, async move {
            match upgrading.await {
                Ok(upgraded) => send(upgrade::websocket(upgraded).await, receiver, is_text).await,
                Err(error) => tracing::debug!(%error, "log"),
            }
        }));
        return response;
    }
    let body = Body::from_stream(ReceiverStream::new(receiver).map(Ok::<_, std::convert::Infallible>));
    ([(header::CONTENT_TYPE, "text/plain")], body).into_response()
}

/// Accepts a WebSocket for a log, whose chunks are messages then, in base64 if so agreed.
fn messages(request: &mut Request, offered: &[String]) -> Result<(Response, OnUpgrade, bool), Box<Response>> {
    let chosen = PROTOCOLS.into_iter().find(|known| offered.iter().any(|name| name == known));
    if chosen.is_none() && !offered.is_empty() {
        let message = format!("unable to upgrade: none of {offered:?} is supported");
        return Err(Box::new(refusal(StatusCode::BAD_REQUEST, message)));
    }
    let accepted = upgrade::accept_websocket(request, chosen);
    let no_key = || Box::new(refusal(StatusCode::BAD_REQUEST, "the WebSocket handshake has no key".to_owned()));
    accepted.map(|(response, upgrading)| (response, upgrading, chosen == Some(BASE64_PROTOCOL))).ok_or_else(no_key)
}

async fn send(socket: WebSocket, mut chunks: mpsc::Receiver<Bytes>, is_text: bool) {
    let (mut sink, mut messages) = socket.split();
    let sending = async {
        while let Some(bytes) = chunks.recv().await {
            let message = match is_text {
                true => Message::text(BASE64_STANDARD.encode(&bytes)),
                false => Message::Binary(bytes),
            };
            if sink.send(message).await.is_err() {
                return;
            }
        }
    };
    // What the client says is read, so that its end is seen, and means nothing.
    let reading = async { while let Some(Ok(_)) = messages.next().await {} };
    // Both only wait.
    let patience = tokio::select! {
        () = sending => IDLE_MAX,
        () = reading => PARTING_MAX,
    };
    upgrade::close(&mut sink, &mut messages, patience).await;
}

/// Which life of a container is meant, or why there is none, in the kubelet's words (`validateContainerLogStatus`).
fn life(container: &Container, pod: &str, is_previous: bool) -> Result<Run, String> {
    use core::State;
    let name = &container.name;
    let waiting = |why: &str| Err(format!("container {name:?} in pod {pod:?} is waiting to start: {why}"));
    let last = container.last.as_ref().and_then(|last| run_of(&last.container_id));
    if is_previous {
        return last.ok_or_else(|| format!("previous terminated container {name:?} in pod {pod:?} not found"));
    }
    match &container.state {
        State::Running { .. } | State::Stopping { .. } if !container.container_id.is_empty() => Ok(container.run),
        State::Ended { terminated, .. } => run_of(&terminated.container_id)
            .or(last)
            .ok_or_else(|| format!("container {name:?} in pod {pod:?} is terminated")),
        _ if last.is_some() => Ok(last.unwrap_or_default()),
        State::Failing { reason: "ErrImagePull", .. } => waiting("image can't be pulled"),
        State::Failing { reason: "ImagePullBackOff", .. } => waiting("trying and failing to pull image"),
        State::Failing { reason: core::FAILED_MOUNT, .. } => waiting("ContainerCreating"),
        State::Failing { reason, .. } => waiting(reason),
        State::Starting { shown: Some((reason, _)) } => match reason.as_str() {
            "ErrImagePull" => waiting("image can't be pulled"),
            "ImagePullBackOff" => waiting("trying and failing to pull image"),
            reason => waiting(reason),
        },
        State::CrashLoop { .. } => waiting("CrashLoopBackOff"),
        _ if !container.kind.is_init() => waiting("ContainerCreating"),
        _ => waiting("PodInitializing"),
    }
}

/// The life that a `containerID` names; its last eight digits are the number.
fn run_of(container_id: &str) -> Option<Run> {
    Run::from_str_radix(container_id.get(container_id.len().checked_sub(8)?..)?, 16).ok()
}

fn is_true(value: Option<&String>) -> bool {
    value.is_some_and(|value| matches!(value.as_str(), "true" | "1" | "True" | "TRUE" | "t" | "T"))
}

fn options(wanted: &LogQuery, now: Timestamp) -> Result<Options, String> {
    let number = |name: &str, value: &Option<String>| match value.as_deref().filter(|value| !value.is_empty()) {
        None => Ok(None),
        Some(text) => match text.parse::<u64>() {
            Ok(number) => Ok(Some(number)),
            Err(_) => Err(format!("invalid value {text:?} for {name}")),
        },
    };
    let seconds = number("sinceSeconds", &wanted.since_seconds)?;
    let since = match (seconds, wanted.since_time.as_deref().filter(|time| !time.is_empty())) {
        (Some(seconds), _) => {
            let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
            Some(now.checked_sub(jiff::SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MIN))
        }
        (None, Some(time)) => Some(time.parse().map_err(|_| format!("invalid value {time:?} for sinceTime"))?),
        (None, None) => None,
    };
    let stream = match wanted.stream.as_deref() {
        None | Some("" | "All") => None,
        Some("Stdout") => Some("stdout"),
        Some("Stderr") => Some("stderr"),
        Some(other) => return Err(format!("invalid value {other:?} for stream")),
    };
    Ok(Options {
        follow: is_true(wanted.follow.as_ref()),
        timestamps: is_true(wanted.timestamps.as_ref()),
        tail_lines: number("tailLines", &wanted.tail_lines)?,
        since,
        limit_bytes: number("limitBytes", &wanted.limit_bytes)?,
        stream,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_query() {
        let text = |text: &str| Some(text.to_owned());
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        let wanted = LogQuery {
            follow: text("true"),
            tail_lines: text("5"),
            since_seconds: text("60"),
            stream: text("Stderr"),
            ..LogQuery::default()
        };
        let expected = Options {
            follow: true,
            tail_lines: Some(5),
            since: Some("2026-01-01T00:00:00Z".parse().unwrap()),
            stream: Some("stderr"),
            ..Options::default()
        };
        assert_eq!(options(&wanted, now), Ok(expected));
        for wrong in [
            LogQuery { tail_lines: text("-1"), ..LogQuery::default() },
            LogQuery { since_time: text("yesterday"), ..LogQuery::default() },
            LogQuery { stream: text("Both"), ..LogQuery::default() },
        ] {
            assert!(options(&wrong, now).is_err(), "{wrong:?}");
        }
        assert_eq!(run_of("wasmtime://0123000000000a"), Some(10));
        assert_eq!(run_of(""), None);
    }
}
