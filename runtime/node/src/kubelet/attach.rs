//! `/attach`: what a container prints, from its beginning to its end; and the connection that [`exec`](super::exec) has, too.
//!
//! Two forms: numbered channels of a WebSocket (kubectl), and SPDY/3.1 streams (older clients). What a container prints is what its
//! log has, so that nothing of a short life is missed. What is typed goes to a container with `stdin`, from everybody who is attached;
//! elsewhere it is dropped, and that is said once. A client that asks for a terminal has one of its own ([`Input`]); the container has none.
//!
//! A client that says no more ends the input of a container with `stdinOnce`, and sees it to its end. Any other input stays open for who
//! comes next: there the client's part is over, as with the runtimes that a kubelet asks (containerd's `container_io.go`, CRI-O's
//! `runtime_oci.go`); but what comes of the last that it said is shown before.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use bytes::Bytes;
use coracle_engine::Pipe;
use futures::StreamExt as _;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::exec::Execution;
use super::input::Input;
use super::places::{Place, hold};
use super::traffic::{IDLE_MAX, PARTING_MAX, STREAMS_WAIT};
use super::upgrade::{self, Channels, Over, Wanted, WebSocket};
use super::{refusal, spdy, terminal};
use crate::logs::{self, Options};
use crate::pod::core::{self, State as ContainerState};
use crate::pod::{Handle, Pods, Slot, Stdin};

/// Subprotocols, the newest first. `v5` can close a single channel ([`CLOSE`]), which is how input ends; the last says how it went only
/// where it went wrong, and then in words.
const PROTOCOLS: [&str; 3] = ["v5.channel.k8s.io", "v4.channel.k8s.io", WORDS_PROTOCOL];
const WORDS_PROTOCOL: &str = "channel.k8s.io";
const SPDY_PROTOCOL: &str = "v4.channel.k8s.io";
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
/// A message of it is the number of a channel on which nothing more comes.
const CLOSE: u8 = 255;
/// Chunks between the reader of a log and the connection.
const CHUNKS_MAX: usize = 4;
/// How long a client that says no more waits for what comes of that, where it does not wait for the container's end.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// Streams that a client opens: error, stdin, stdout, stderr, resize.
const STREAMS_MAX: usize = 5;
const NO_INPUT: &[u8] =
    b"coracle: the container has no standard input, or none any more; what is typed is dropped (a command has one with \
    stdin: true, and kubectl exec -i runs it once more, with one)\r\n";

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

    /// Whether anybody reads what the client says.
    fn takes_input(&self) -> bool {
        match self {
            Shown::Log(output) => output.typing.as_ref().is_some_and(|typing| !typing.stdin.is_over()),
            Shown::Command(_) => true,
        }
    }

    /// Takes what the client says; returns when there is room for more.
    async fn typed(&self, bytes: &[u8]) {
        match self {
            Shown::Log(Output { typing: Some(typing), .. }) => typing.typed(bytes).await,
            Shown::Log(_) => {}
            Shown::Command(execution) => execution.typed(bytes).await,
        }
    }

    /// The client says no more.
    fn typed_all(&self) {
        match self {
            Shown::Log(output) => output.typed_all(),
            Shown::Command(execution) => execution.typed_all(),
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
    is_terminal: bool,
    typing: Option<Typing>,
    /// Whether its input is open for the next client, so that this one's part ends with what it says.
    is_for_many: bool,
    /// The client says no more.
    is_said: CancellationToken,
}

/// What a client says to a container.
struct Typing {
    stdin: Arc<Stdin>,
    input: Input,
    /// What its terminal shows of it.
    echo: Pipe,
    handle: Handle,
    has_typed: AtomicBool,
}

impl Typing {
    async fn typed(&self, bytes: &[u8]) {
        if self.stdin.is_over() {
            return;
        }
        self.has_typed.store(true, Relaxed);
        if self.input.typed(bytes, Some(&self.echo)).await
            && let Handle::Command(command) = &self.handle
        {
            command.kill();
        }
    }
}

impl Drop for Typing {
    fn drop(&mut self) {
        self.stdin.leave();
    }
}

impl Output {
    /// Sends what is printed on `stream` to its end.
    async fn copy(&self, stream: &'static str, out: mpsc::Sender<Bytes>) {
        let echo = self.typing.as_ref().filter(|_| stream == "stdout").map(|typing| &typing.echo);
        let (sender, mut printed) = mpsc::channel::<Bytes>(CHUNKS_MAX);
        let shown = out.clone();
        let showing = async {
            pass_on(&mut printed, &shown, self.is_terminal).await;
            // The log is left, too.
            drop(printed);
            if let Some(echo) = echo {
                echo.end();
            }
        };
        let echoing = async {
            while let Some(echo) = echo
                && let Some(bytes) = echo.read().await
                && out.send(terminal::shown(&bytes).into()).await.is_ok()
            {}
        };
        tokio::join!(self.read(stream, sender), showing, echoing);
    }

    async fn read(&self, stream: &'static str, out: mpsc::Sender<Bytes>) {
        let run = self.slot.with_core(|core| core.containers().get(self.container).map(|container| container.run));
        let Some(run) = run else { return };
        let dir = logs::pod_dir(&self.pods.context.logs_dir, &self.slot.namespace, &self.slot.name, &self.slot.uid);
        let live = self.slot.live_log(self.container).filter(|(live, _)| *live == run).map(|(_, log)| log);
        let options = Options { follow: true, stream: Some(stream), ..Options::default() };
        let stop = CancellationToken::new();
        let reading = logs::read_until(logs::file(&dir, &self.name, run), live, options, &stop, out);
        let parting = async {
            self.parting().await;
            stop.cancel();
            std::future::pending().await
        };
        // Only a wait is cut.
        tokio::select! {
            read = reading => if let Err(error) = read {
                tracing::debug!(%error, "attach");
            },
            () = parting => {}
        }
    }

    /// The client says no more.
    fn typed_all(&self) {
        self.is_said.cancel();
        if let Some(typing) = &self.typing {
            typing.stdin.leave();
        }
    }

    /// Waits until the client's part is over before the container's is.
    async fn parting(&self) {
        if !self.is_for_many {
            return std::future::pending().await;
        }
        self.is_said.cancelled().await;
        if let Some(typing) = self.typing.as_ref().filter(|typing| typing.has_typed.load(Relaxed)) {
            // Who does not read, or computes for long, is not waited for.
            let _ = tokio::time::timeout(ANSWER_MAX, typing.stdin.pipe.drained()).await;
        }
    }
}

/// Passes on what is printed, until its end or until the client has gone.
async fn pass_on(printed: &mut mpsc::Receiver<Bytes>, shown: &mpsc::Sender<Bytes>, is_terminal: bool) {
    loop {
        // Only waits are cut. Who prints nothing keeps nothing of a client that has gone.
        let bytes = tokio::select! {
            bytes = printed.recv() => bytes,
            () = shown.closed() => return,
        };
        let Some(bytes) = bytes else { return };
        let bytes = if is_terminal { terminal::shown(&bytes).into() } else { bytes };
        if shown.send(bytes).await.is_err() {
            return;
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
    let Some((index, spec)) = core::all_specs(&object).enumerate().find(|(_, spec)| spec.name == container) else {
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
    let name = container.to_owned();
    let is_for_many = spec.stdin == Some(true) && spec.stdin_once != Some(true);
    converse(request, async |wishes| {
        let stdin = slot.stdin(index).filter(|(stdin, _)| wishes.stdin && !stdin.is_over());
        let typing = stdin.map(|(stdin, handle)| {
            let (input, echo) = (Input::new(stdin.pipe.clone(), wishes.tty), Pipe::default());
            Typing { stdin, input, echo, handle, has_typed: AtomicBool::new(false) }
        });
        let (is_said, is_for_many) = (CancellationToken::new(), wishes.stdin && is_for_many);
        let is_terminal = wishes.tty;
        Ok(Shown::Log(Output { pods, slot, container: index, name, is_terminal, typing, is_for_many, is_said }))
    })
    .await
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
            tokio::spawn(hold(place, async move {
                match upgrading.await {
                    Ok(upgraded) => channels(upgrade::websocket(upgraded).await, shown, wishes, chosen).await,
                    Err(error) => tracing::debug!(%error, "attach"),
                }
            }));
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
            tokio::spawn(hold(place, streams(upgrading, shown, wishes)));
            response
        }
        Wanted::Nothing => refusal(StatusCode::BAD_REQUEST, "Upgrade request required".to_owned()),
    }
}

async fn channels(socket: WebSocket, shown: Shown, wishes: Wishes, protocol: &str) {
    let (sink, mut messages) = socket.split();
    let client = Channels::new(sink);
    let forward = async |stream: &'static str, channel: u8| {
        let (sender, mut receiver) = mpsc::channel::<Bytes>(CHUNKS_MAX);
        let sending = async {
            while let Some(bytes) = receiver.recv().await {
                client.send(channel, &bytes).await;
            }
        };
        tokio::join!(shown.copy(stream, sender), sending);
    };
    let stderr = if wishes.tty { STDOUT } else { STDERR };
    let printing = async {
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
        tell(&client, protocol, &shown.status().await).await;
    };
    let reading = async {
        let mut is_told = false;
        while let Some(Ok(message)) = messages.next().await {
            let bytes = match message {
                Message::Binary(bytes) => bytes,
                // As the Python client sends what is text.
                Message::Text(text) => text.into(),
                Message::Close(_) => return,
                _ => continue,
            };
            client.heard();
            match bytes.split_first() {
                Some((&STDIN, data)) if shown.takes_input() => shown.typed(data).await,
                Some((&STDIN, [_, ..])) if !std::mem::replace(&mut is_told, true) => {
                    client.send(stderr, NO_INPUT).await;
                }
                Some((&CLOSE, [STDIN])) => shown.typed_all(),
                _ => {}
            }
        }
    };
    // The client's end ends everything.
    let over = tokio::select! {
        () = printing => None,
        () = reading => Some(Over::Gone),
        over = client.over() => Some(over),
    };
    // A command does not go on while a client is parted from that reads nothing.
    drop(shown);
    if over == Some(Over::Idle) {
        let message = format!("nothing was carried for {} hours", IDLE_MAX.as_secs() / 3600);
        let status = status("Failure", &json!({"reason": "Timeout", "message": message}));
        let _ = tokio::time::timeout(PARTING_MAX, tell(&client, protocol, &status)).await;
    }
    client.close(&mut messages, if over.is_none() { IDLE_MAX } else { PARTING_MAX }).await;
}

/// Says how it went.
async fn tell(client: &Channels, protocol: &str, status: &Value) {
    match (protocol, status["message"].as_str()) {
        (WORDS_PROTOCOL, message) => client.send(ERROR, message.unwrap_or_default().as_bytes()).await,
        _ => client.send(ERROR, status.to_string().as_bytes()).await,
    }
}

/// The streams that a client opens for its wishes, by what they are for; none when it takes too long over them.
async fn opened_streams(
    opened: &mut mpsc::Receiver<spdy::Stream>,
    wishes: Wishes,
) -> Option<HashMap<String, DuplexStream>> {
    let mut found = HashMap::new();
    let expected = 1
        + usize::from(wishes.stdin)
        + usize::from(wishes.stdout)
        + usize::from(wishes.stderr && !wishes.tty)
        + usize::from(wishes.tty);
    let opening = async {
        while found.len() < expected.min(STREAMS_MAX)
            && let Some(stream) = opened.recv().await
        {
            let kind = stream.headers.get("streamtype").cloned().unwrap_or_default();
            found.insert(kind, stream.io);
        }
    };
    let is_done = tokio::time::timeout(STREAMS_WAIT, opening).await.is_ok();
    is_done.then_some(found)
}

/// Serves a SPDY connection: the client opens a stream for errors and one for each thing it wants.
async fn streams(upgrading: OnUpgrade, shown: Shown, wishes: Wishes) {
    let upgraded = match upgrading.await {
        Ok(upgraded) => upgraded,
        Err(error) => return tracing::debug!(%error, "attach"),
    };
    conversation(TokioIo::new(upgraded), shown, wishes).await;
}

async fn conversation<S: AsyncRead + AsyncWrite + Send + 'static>(io: S, shown: Shown, wishes: Wishes) {
    let (sender, mut opened) = mpsc::channel(STREAMS_MAX);
    let serving = AbortOnDropHandle::new(tokio::spawn(spdy::serve(io, sender)));
    let Some(mut found) = opened_streams(&mut opened, wishes).await else {
        return tracing::debug!("attach: the client does not open its streams");
    };
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
    let reading = async {
        let mut buffer = vec![0; 4096];
        if let Some(mut io) = input {
            while let Ok(count @ 1..) = io.read(&mut buffer).await {
                shown.typed(&buffer[..count]).await;
            }
        }
        shown.typed_all();
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
        () = reading => {}
        () = leaving => {}
    }
    drop((found, shown));
    // What was written is sent on; the connection is the client's to close.
    if let Ok(Err(error)) = serving.await {
        tracing::debug!(%error, "attach");
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    #[tokio::test]
    async fn what_is_printed_is_left_with_the_client_that_sees_it() {
        let ((print, mut printed), (sender, client)) = (mpsc::channel(1), mpsc::channel(1));
        drop(client);
        // Nothing is printed.
        pass_on(&mut printed, &sender, false).await;
        assert!(!print.is_closed());
        let (sender, mut client) = mpsc::channel(1);
        print.send(Bytes::from_static(b"a\n")).await.unwrap();
        drop(print);
        pass_on(&mut printed, &sender, true).await;
        assert_eq!(client.recv().await.as_deref(), Some(&b"a\r\n"[..]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_has_its_time_to_open_streams() {
        let wishes = Wishes { stdout: true, ..Wishes::default() };
        let stream = |kind: &str| spdy::Stream {
            headers: HashMap::from([("streamtype".to_owned(), kind.to_owned())]),
            io: tokio::io::duplex(1).0,
            gone: CancellationToken::new(),
        };
        let (client, mut opened) = mpsc::channel(STREAMS_MAX);
        client.send(stream("error")).await.unwrap();
        let begun = Instant::now();
        assert!(opened_streams(&mut opened, wishes).await.is_none());
        assert_eq!(begun.elapsed().as_secs(), STREAMS_WAIT.as_secs());
        for kind in ["stdout", "error"] {
            client.send(stream(kind)).await.unwrap();
        }
        let found = opened_streams(&mut opened, wishes).await.unwrap();
        assert!(found.contains_key("stdout") && found.contains_key("error"));
    }

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
