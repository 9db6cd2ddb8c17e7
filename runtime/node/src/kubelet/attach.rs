//! `/attach`: what a container prints, from its beginning to its end; and the connection that [`exec`](super::exec) has, too.
//!
//! Two forms: numbered channels of a WebSocket (kubectl), and SPDY/3.1 streams (older clients). What a container prints is what its
//! log has, so that nothing of a short life is missed. A guest has no standard input: what is typed is dropped, and said so once, because
//! `kubectl run -i` always brings its input along.

use std::collections::HashMap;
use std::sync::Arc;

use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use bytes::Bytes;
use futures::stream::SplitSink;
use futures::{SinkExt as _, StreamExt as _};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::sync::{Mutex, mpsc};
use tokio_tungstenite::tungstenite::Message;

use super::exec::Execution;
use super::places::Place;
use super::upgrade::{self, Wanted, WebSocket};
use super::{refusal, spdy};
use crate::logs::{self, Options};
use crate::pod::core::{self, State as ContainerState};
use crate::pod::{Pods, Slot};

/// Subprotocols, the newest first. `v5` can close a single channel, which only matters for input; the last says how it went only
/// where it went wrong, and then in words.
const PROTOCOLS: [&str; 3] = ["v5.channel.k8s.io", "v4.channel.k8s.io", WORDS_PROTOCOL];
const WORDS_PROTOCOL: &str = "channel.k8s.io";
const SPDY_PROTOCOL: &str = "v4.channel.k8s.io";
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
/// Chunks between the reader of a log and the connection.
const CHUNKS_MAX: usize = 4;
/// Streams that a client opens: error, stdin, stdout, stderr, resize.
const STREAMS_MAX: usize = 5;
const NO_INPUT: &[u8] = b"coracle: a component has no standard input here; what is typed is dropped\r\n";

/// What a client wants to see.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Wishes {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}

impl Wishes {
    fn of(query: &str) -> Self {
        let is = |name: &str| {
            query
                .split('&')
                .filter_map(|pair| pair.split_once('='))
                .any(|(key, value)| key == name && matches!(value, "true" | "1"))
        };
        // The kubelet's own names, and those of the API.
        let any = |names: [&str; 2]| names.into_iter().any(is);
        Self {
            stdin: any(["stdin", "input"]),
            stdout: any(["stdout", "output"]),
            stderr: any(["stderr", "error"]),
            tty: is("tty"),
        }
    }
}

/// What a client is shown.
pub(super) enum Shown {
    Log(Output),
    Command(Execution),
}

impl Shown {
    /// Sends what is printed on `stream` to its end.
    async fn copy(&self, stream: &'static str, out: mpsc::Sender<Bytes>) {
        match self {
            Shown::Log(output) => output.copy(stream, out).await,
            Shown::Command(execution) => execution.copy(stream, out).await,
        }
    }

    /// How it went, in the end.
    async fn status(&self) -> Value {
        match self {
            Shown::Log(_) => status("Success", &json!({})),
            Shown::Command(execution) => execution.status().await,
        }
    }
}

/// A Status, with what more is to be said.
pub(super) fn status(status: &str, more: &Value) -> Value {
    let mut value = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": status});
    for (name, more) in more.as_object().into_iter().flatten() {
        value[name] = more.clone();
    }
    value
}

/// One container's output.
pub(super) struct Output {
    pods: Arc<Pods>,
    slot: Arc<Slot>,
    container: core::Index,
    name: String,
}

impl Output {
    /// Sends what is printed on `stream` to its end.
    async fn copy(&self, stream: &'static str, out: mpsc::Sender<Bytes>) {
        let run = self.slot.with_core(|core| core.containers().get(self.container).map(|container| container.run));
        let Some(run) = run else { return };
        let dir = logs::pod_dir(&self.pods.context.logs_dir, &self.slot.namespace, &self.slot.name, &self.slot.uid);
        let live = self.slot.live_log(self.container).filter(|(live, _)| *live == run).map(|(_, log)| log);
        let options = Options { follow: true, stream: Some(stream), ..Options::default() };
        if let Err(error) = logs::read(logs::file(&dir, &self.name, run), live, options, out).await {
            tracing::debug!(%error, "attach");
        }
    }
}

/// Answers by changing to one of the protocols.
pub async fn any(
    State(pods): State<Arc<Pods>>,
    Path(path): Path<HashMap<String, String>>,
    request: Request,
) -> Response {
    let (namespace, name, container) = (path["namespace"].as_str(), path["pod"].as_str(), path["container"].as_str());
    let slot = pods.find(namespace, name).filter(|slot| path.get("uid").is_none_or(|uid| **uid == *slot.uid));
    let Some(slot) = slot else {
        return refusal(StatusCode::NOT_FOUND, format!("pod does not exist: {name:?}"));
    };
    let object = slot.pod();
    let Some(index) = core::specs(&object).position(|spec| spec.name == container) else {
        return refusal(StatusCode::NOT_FOUND, format!("container not found ({container:?})"));
    };
    let has_run = slot.with_core(|core| {
        let state = core.containers().get(index).map(|found| &found.state);
        matches!(
            state,
            Some(ContainerState::Running { .. } | ContainerState::Stopping { .. } | ContainerState::Ended { .. })
        )
    });
    if !has_run {
        return refusal(StatusCode::BAD_REQUEST, format!("container {container} is not running"));
    }
    let output = Output { pods, slot, container: index, name: container.to_owned() };
    converse(request, async |_| Ok(Shown::Log(output))).await
}

/// Agrees on a protocol, begins what is shown, and has the connection carry it.
pub(super) async fn converse(
    mut request: Request,
    begin: impl AsyncFnOnce(Wishes) -> Result<Shown, Response>,
) -> Response {
    let wishes = Wishes::of(request.uri().query().unwrap_or_default());
    if !(wishes.stdin || wishes.stdout || wishes.stderr) {
        let message = "you must specify at least 1 of stdin, stdout, stderr".to_owned();
        return refusal(StatusCode::BAD_REQUEST, message);
    }
    let place = request.extensions_mut().remove::<Place>();
    match Wanted::of(request.headers()) {
        Wanted::WebSocket(offered) => {
            let chosen = PROTOCOLS.into_iter().find(|known| offered.iter().any(|name| name == known));
            let Some(chosen) = chosen else {
                return refusal(
                    StatusCode::BAD_REQUEST,
                    format!("unable to upgrade: none of {offered:?} is supported"),
                );
            };
            let Some((response, upgrading)) = upgrade::accept_websocket(&mut request, Some(chosen)) else {
                return refusal(StatusCode::BAD_REQUEST, "the WebSocket handshake has no key".to_owned());
            };
            let shown = match begin(wishes).await {
                Ok(shown) => shown,
                Err(refused) => return refused,
            };
            tokio::spawn(async move {
                let _place = place;
                match upgrading.await {
                    Ok(upgraded) => channels(upgrade::websocket(upgraded).await, &shown, wishes, chosen).await,
                    Err(error) => tracing::debug!(%error, "attach"),
                }
            });
            response
        }
        Wanted::Spdy(offered) => {
            if !offered.iter().any(|name| name == SPDY_PROTOCOL) {
                return refusal(StatusCode::FORBIDDEN, format!("unable to upgrade: none of {offered:?} is supported"));
            }
            let shown = match begin(wishes).await {
                Ok(shown) => shown,
                Err(refused) => return refused,
            };
            let (response, upgrading) = upgrade::accept_spdy(&mut request, SPDY_PROTOCOL);
            tokio::spawn(async move {
                let _place = place;
                streams(upgrading, shown, wishes).await;
            });
            response
        }
        Wanted::Nothing => refusal(StatusCode::BAD_REQUEST, "Upgrade request required".to_owned()),
    }
}

type Sink = Mutex<SplitSink<WebSocket, Message>>;

async fn channels(socket: WebSocket, shown: &Shown, wishes: Wishes, protocol: &str) {
    let (sink, mut messages) = socket.split();
    let sink: Sink = Mutex::new(sink);
    let forward = async |stream: &'static str, channel: u8| {
        let (sender, mut receiver) = mpsc::channel::<Bytes>(CHUNKS_MAX);
        let sending = async {
            while let Some(bytes) = receiver.recv().await {
                send(&sink, channel, &bytes).await;
            }
        };
        tokio::join!(shown.copy(stream, sender), sending);
    };
    let printing = async {
        let stderr = if wishes.tty { STDOUT } else { STDERR };
        tokio::join!(
            async {
                if wishes.stdout {
                    forward("stdout", STDOUT).await;
                }
            },
            async {
                if wishes.stderr || wishes.tty {
                    forward("stderr", stderr).await;
                }
            },
        );
        let status = shown.status().await;
        match (protocol, status["message"].as_str()) {
            (WORDS_PROTOCOL, message) => send(&sink, ERROR, message.unwrap_or_default().as_bytes()).await,
            _ => send(&sink, ERROR, status.to_string().as_bytes()).await,
        }
    };
    let reading = async {
        let mut is_told = false;
        while let Some(Ok(message)) = messages.next().await {
            match message {
                Message::Binary(bytes) => match bytes.split_first() {
                    Some((&STDIN, data)) if !data.is_empty() && !is_told => {
                        is_told = true;
                        send(&sink, if wishes.tty { STDOUT } else { STDERR }, NO_INPUT).await;
                    }
                    _ => {}
                },
                Message::Close(_) => return,
                _ => {}
            }
        }
    };
    // The client's end ends everything.
    tokio::select! {
        () = printing => {}
        () = reading => {}
    }
    upgrade::close(&mut *sink.lock().await).await;
}

async fn send(sink: &Sink, channel: u8, bytes: &[u8]) {
    let message = [&[channel], bytes].concat();
    let _ = sink.lock().await.send(Message::Binary(message.into())).await;
}

/// Serves a SPDY connection: the client opens a stream for errors and one for each thing it wants.
async fn streams(upgrading: OnUpgrade, shown: Shown, wishes: Wishes) {
    let upgraded = match upgrading.await {
        Ok(upgraded) => upgraded,
        Err(error) => return tracing::debug!(%error, "attach"),
    };
    let (sender, mut opened) = mpsc::channel(STREAMS_MAX);
    let serving = tokio::spawn(spdy::serve(TokioIo::new(upgraded), sender));
    let mut found: HashMap<String, DuplexStream> = HashMap::new();
    let expected = 1
        + usize::from(wishes.stdin)
        + usize::from(wishes.stdout)
        + usize::from(wishes.stderr && !wishes.tty)
        + usize::from(wishes.tty);
    while found.len() < expected.min(STREAMS_MAX)
        && let Some(stream) = opened.recv().await
    {
        let kind = stream.headers.get("streamtype").cloned().unwrap_or_default();
        found.insert(kind, stream.io);
    }
    let forward = async |stream: &'static str, io: Option<DuplexStream>| {
        let Some(mut io) = io else { return };
        let (sender, mut receiver) = mpsc::channel::<Bytes>(CHUNKS_MAX);
        let sending = async move {
            while let Some(bytes) = receiver.recv().await {
                if io.write_all(&bytes).await.is_err() {
                    return;
                }
            }
            let _ = io.shutdown().await;
        };
        tokio::join!(shown.copy(stream, sender), sending);
    };
    let input = found.remove("stdin");
    let (stdout, stderr) = (found.remove("stdout"), found.remove("stderr"));
    let swallowing = async {
        let mut buffer = [0; 4096];
        if let Some(mut io) = input {
            while let Ok(1..) = io.read(&mut buffer).await {}
        }
        std::future::pending::<()>().await;
    };
    let printing = async {
        tokio::join!(forward("stdout", stdout), forward("stderr", stderr));
        if let Some(mut error) = found.remove("error") {
            let _ = error.write_all(shown.status().await.to_string().as_bytes()).await;
            let _ = error.shutdown().await;
        }
    };
    // The client opens no more streams; when it goes, so does this.
    let leaving = async { while opened.recv().await.is_some() {} };
    tokio::select! {
        () = printing => {}
        () = swallowing => {}
        () = leaving => {}
    }
    drop(found);
    // What was written is sent on; the connection is the client's to close.
    if let Ok(Err(error)) = serving.await {
        tracing::debug!(%error, "attach");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_is_wanted() {
        let all = Wishes { stdin: true, stdout: true, stderr: true, tty: false };
        for (query, expected) in [
            ("", Wishes::default()),
            ("stdin=true&stdout=true&stderr=true&container=c", all),
            ("input=1&output=1&error=1", all),
            ("stdout=false&tty=1", Wishes { tty: true, ..Wishes::default() }),
        ] {
            assert_eq!(Wishes::of(query), expected, "{query}");
        }
    }
}
