//! `/exec`: the component of a container, run once more beside it.
//!
//! A component starts no other program, but it can be started with other arguments: in the container's directories, its network and its
//! environment, and on its account of memory and CPU. Programs that are several in one go by their first argument. The connection
//! is that of [`super::attach`].

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use axum::extract::{Path, Query, Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use bytes::Bytes;
use coracle_engine::Command;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::attach::{self, Shown, Wishes};
use super::refusal;
use crate::pod::Pods;
use crate::pod::core;

/// Bytes that a command may have printed and nobody read; beyond them it ends.
const PENDING_BYTES_MAX: usize = 4 << 20;

/// A command that runs for a client; it ends when this is dropped.
pub(super) struct Execution {
    command: Command,
    stdout: Printed,
    stderr: Printed,
    overflow: CancellationToken,
}

/// What was printed, and is taken once.
struct Printed {
    chunks: Mutex<Option<mpsc::UnboundedReceiver<Bytes>>>,
    pending: Arc<AtomicUsize>,
}

impl Printed {
    /// With what the guest writes into. It is bounded in bytes by `pending`, which both streams share.
    fn new(
        pending: &Arc<AtomicUsize>,
        overflow: &CancellationToken,
        is_wanted: bool,
    ) -> (Printed, Arc<dyn coracle_engine::Sink>) {
        let (sender, chunks) = mpsc::unbounded_channel();
        let printed = Printed { chunks: Mutex::new(is_wanted.then_some(chunks)), pending: pending.clone() };
        let (pending, overflow) = (pending.clone(), overflow.clone());
        let sink = move |bytes: &[u8]| {
            if sender.is_closed() {
                return;
            }
            if pending.fetch_add(bytes.len(), Relaxed) + bytes.len() > PENDING_BYTES_MAX {
                overflow.cancel();
            } else {
                let _ = sender.send(Bytes::copy_from_slice(bytes));
            }
        };
        (printed, Arc::new(sink))
    }
}

impl Execution {
    async fn start(beside: &Command, args: Vec<String>, wishes: Wishes) -> Result<Execution, coracle_engine::Error> {
        let (pending, overflow) = (Arc::default(), CancellationToken::new());
        let (stdout, out) = Printed::new(&pending, &overflow, wishes.stdout);
        // A terminal has one output.
        let (stderr, err) = Printed::new(&pending, &overflow, wishes.stderr && !wishes.tty);
        let err = if wishes.tty { out.clone() } else { err };
        let command = beside.beside(args, out, err).await?;
        Ok(Execution { command, stdout, stderr, overflow })
    }

    /// Waits until nothing more is printed.
    async fn ended(&self) {
        tokio::select! {
            _ = self.command.wait() => {}
            () = self.overflow.cancelled() => {
                self.command.kill();
                self.command.wait().await;
            }
        }
    }

    /// Sends what is printed on `stream` to its end.
    pub(super) async fn copy(&self, stream: &'static str, out: mpsc::Sender<Bytes>) {
        let printed = if stream == "stdout" { &self.stdout } else { &self.stderr };
        let Some(mut chunks) = printed.chunks.lock().take() else { return };
        let send = async |bytes: Bytes| {
            printed.pending.fetch_sub(bytes.len(), Relaxed);
            out.send(bytes).await.is_ok()
        };
        let ended = self.ended();
        tokio::pin!(ended);
        loop {
            // Both branches only wait.
            let bytes = tokio::select! {
                biased;
                bytes = chunks.recv() => bytes,
                () = &mut ended => break,
            };
            match bytes {
                Some(bytes) => {
                    if !send(bytes).await {
                        return;
                    }
                }
                None => break,
            }
        }
        while let Ok(bytes) = chunks.try_recv() {
            if !send(bytes).await {
                return;
            }
        }
    }

    /// How it ended, as a Status.
    pub(super) async fn status(&self) -> Value {
        self.ended().await;
        if self.overflow.is_cancelled() {
            let message =
                format!("the command was ended: more than {PENDING_BYTES_MAX} bytes of what it printed were not read");
            return attach::status("Failure", &json!({"reason": "InternalError", "message": message}));
        }
        let exit = self.command.wait().await;
        if exit.code() == 0 {
            return attach::status("Success", &json!({}));
        }
        let message = match exit.message() {
            more if more.is_empty() => format!("command terminated with exit code {}", exit.code()),
            more => format!("command terminated with exit code {}: {more}", exit.code()),
        };
        let cause = json!({"reason": "ExitCode", "message": exit.code().to_string()});
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
    if !core::specs(&slot.pod()).any(|spec| spec.name == container) {
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
