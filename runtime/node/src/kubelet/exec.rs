//! `/exec`: the component of a container, run once more beside it.
//!
//! A component starts no other program, but it can be started with other arguments: in the container's directories, its network and its
//! environment, and on its account of memory and CPU. Programs that are several in one go by their first argument. It reads what the
//! client says, through a [`super::terminal`] if the client asks for one. The connection is that of [`super::attach`].

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use axum::extract::{Path, Query, Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use bytes::Bytes;
use coracle_engine::{Command, Discard, Invocation, Pipe, Sink};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::attach::{self, Shown, Wishes};
use super::input::Input;
use super::{refusal, terminal};
use crate::pod::Pods;
use crate::pod::core;

/// The exit code of what is interrupted from its terminal, as shells tell it (128 and the number of SIGINT).
const INTERRUPTED: i32 = 130;

/// A command that runs for a client; it ends when this is dropped. It waits for a client that is slow to read, and a client for a
/// command that is slow to read.
pub(super) struct Execution {
    command: Command,
    stdin: Option<Input>,
    stdout: Option<Pipe>,
    stderr: Option<Pipe>,
    is_terminal: bool,
    is_interrupted: AtomicBool,
}

impl Execution {
    async fn start(beside: &Command, args: Vec<String>, wishes: Wishes) -> Result<Execution, coracle_engine::Error> {
        let pipe = |is_wanted: bool| is_wanted.then(Pipe::default);
        let sink = |pipe: &Option<Pipe>| -> Arc<dyn Sink> {
            pipe.clone().map_or_else(|| Arc::new(Discard) as Arc<dyn Sink>, |pipe| Arc::new(pipe))
        };
        // A terminal has one output.
        let (stdin, stdout, stderr) = (pipe(wishes.stdin), pipe(wishes.stdout), pipe(wishes.stderr && !wishes.tty));
        let out = sink(&stdout);
        let err = if wishes.tty { out.clone() } else { sink(&stderr) };
        let invocation = Invocation {
            args,
            stdin: stdin.clone(),
            stdout: out,
            stderr: err,
            is_terminal: wishes.tty,
            is_probe: false,
        };
        let command = beside.beside(invocation).await?;
        let stdin = stdin.map(|pipe| Input::new(pipe, wishes.tty));
        let is_interrupted = AtomicBool::new(false);
        Ok(Execution { command, stdin, stdout, stderr, is_terminal: wishes.tty, is_interrupted })
    }

    /// Takes what the client says; returns when the command has room for more.
    pub(super) async fn typed(&self, bytes: &[u8]) {
        let Some(stdin) = &self.stdin else { return };
        if stdin.typed(bytes, self.stdout.as_ref()).await {
            self.is_interrupted.store(true, Relaxed);
            self.command.kill();
        }
    }

    /// The client says no more.
    pub(super) fn typed_all(&self) {
        if let Some(stdin) = &self.stdin {
            stdin.end();
        }
    }

    /// Sends what is printed on `stream` to its end.
    pub(super) async fn copy(&self, stream: &'static str, out: mpsc::Sender<Bytes>) {
        let Some(pipe) = (if stream == "stdout" { &self.stdout } else { &self.stderr }) else { return };
        let ending = async {
            self.command.wait().await;
            pipe.end();
        };
        let copying = async move {
            while let Some(bytes) = pipe.read().await {
                let bytes = if self.is_terminal { terminal::shown(&bytes).into() } else { bytes };
                if out.send(bytes).await.is_err() {
                    // The client wants no more of this stream.
                    return pipe.abandon();
                }
            }
        };
        tokio::join!(ending, copying);
    }

    /// How it ended, as a Status.
    pub(super) async fn status(&self) -> Value {
        let exit = self.command.wait().await;
        let (code, more) = match self.is_interrupted.load(Relaxed) {
            true => (INTERRUPTED, String::new()),
            false => (exit.code(), exit.message()),
        };
        if code == 0 {
            return attach::status("Success", &json!({}));
        }
        let message = match more {
            more if more.is_empty() => format!("command terminated with exit code {code}"),
            more => format!("command terminated with exit code {code}: {more}"),
        };
        let cause = json!({"reason": "ExitCode", "message": code.to_string()});
        attach::status(
            "Failure",
            &json!({"reason": "NonZeroExitCode", "message": message, "details": {"causes": [cause]}}),
        )
    }
}

impl Drop for Execution {
    fn drop(&mut self) {
        self.command.kill();
    }
}

/// Answers by changing to one of the protocols.
pub async fn any(
    State(pods): State<Arc<Pods>>,
    Path(path): Path<HashMap<String, String>>,
    Query(query): Query<Vec<(String, String)>>,
    request: Request,
) -> Response {
    let (namespace, name, container) = (path["namespace"].as_str(), path["pod"].as_str(), path["container"].as_str());
    let slot = pods.find(namespace, name).filter(|slot| path.get("uid").is_none_or(|uid| **uid == *slot.uid));
    let Some(slot) = slot else {
        return refusal(StatusCode::NOT_FOUND, format!("pod does not exist: {name:?}"));
    };
    if !core::names(&slot.pod()).any(|name| name == container) {
        return refusal(StatusCode::NOT_FOUND, format!("container not found ({container:?})"));
    }
    let running = slot.running().into_iter().find(|(name, ..)| **name == *container);
    let command = match running.map(|(_, handle, _)| handle) {
        Some(crate::pod::Handle::Command(command)) => command,
        Some(crate::pod::Handle::Http(_)) => {
            let message = format!(
                "exec is not possible: container {container} is a component of wasi:http, which answers requests and runs no commands"
            );
            return refusal(StatusCode::BAD_REQUEST, message);
        }
        None => return refusal(StatusCode::BAD_REQUEST, format!("container {container} is not running")),
    };
    let args: Vec<String> = query.into_iter().filter(|(name, _)| name == "command").map(|(_, value)| value).collect();
    if args.is_empty() {
        return refusal(StatusCode::BAD_REQUEST, "you must specify at least 1 command".to_owned());
    }
    attach::converse(request, async |wishes| match Execution::start(&command, args, wishes).await {
        Ok(execution) => Ok(Shown::Command(execution)),
        Err(error) => {
            let message = format!("the command does not start: {}", crate::pod::chain(&error));
            Err(refusal(StatusCode::INTERNAL_SERVER_ERROR, message))
        }
    })
    .await
}
