//! Commands: instances that run to their end.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;
use wasmtime::Store;
use wasmtime_wasi::p3::bindings::Command as ExportsP3;

use crate::component::Pre;
use crate::engine::{Inner, start_error};
use crate::guest::{self, Claim, Guest};
use crate::limits::Account;
use crate::meter::Metered;
use crate::slice::Clock;
use crate::{Component, Engine, Error, Exit, OpenSocket, Pipe, Sink, Spec, Usage, exit};

/// A running command. It goes on when all clones are dropped; [`Command::stop`] and [`Command::kill`] end it.
#[derive(Clone, Debug)]
pub struct Command(Arc<Running>);

struct Running {
    exit: watch::Receiver<Option<Exit>>,
    end: CancellationToken,
    how: AtomicU8,
    account: Arc<Account>,
    /// What it is made of, for others beside it.
    engine: Engine,
    component: Component,
    spec: Arc<Spec>,
}

impl std::fmt::Debug for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Running").field("account", &self.account).field("exit", &*self.exit.borrow()).finish()
    }
}

/// What a command has of its own that runs beside another.
pub struct Invocation {
    /// Its arguments; the first one is the program's name.
    pub args: Vec<String>,
    /// Its input.
    pub stdin: Option<Pipe>,
    /// Its output.
    pub stdout: Arc<dyn Sink>,
    /// Where it complains.
    pub stderr: Arc<dyn Sink>,
    /// Whether both are a terminal.
    pub is_terminal: bool,
    /// Whether the node asks by it how the guest is: then it has a place that commands of others cannot take.
    pub is_probe: bool,
}

const STOPPED: u8 = 1;
const KILLED: u8 = 2;
/// For the node's memory.
const OUT_OF_MEMORY: u8 = 3;

impl Command {
    /// Waits for its end. Cancel-safe, for any number of callers.
    pub async fn wait(&self) -> Exit {
        let mut exit = self.0.exit.clone();
        match exit.wait_for(Option::is_some).await {
            Ok(exit) => exit.clone().unwrap_or(Exit::Killed),
            // The engine's threads have ended under it.
            Err(_) => Exit::Killed,
        }
    }

    /// Ends it at its next wait or fuel yield, as a pod that is stopped (143).
    ///
    /// Guests have no signals, so there is nothing that they could do with time to end in.
    pub fn stop(&self) {
        self.end(STOPPED);
    }

    /// The same, as a pod whose time is over (137).
    pub fn kill(&self) {
        self.end(KILLED);
    }

    fn end(&self, how: u8) {
        // The first word counts.
        let _ = self.0.how.compare_exchange(0, how, Ordering::Relaxed, Ordering::Relaxed);
        self.0.end.cancel();
    }

    /// Runs the same component once more, beside this command, with other arguments, input and outputs: in its directories, its
    /// network and its environment, on its account, so that both together have what one may have. It ends with this one at the latest.
    pub async fn beside(&self, invocation: Invocation) -> Result<Command, Error> {
        let Running { engine, component, spec, account, .. } = &*self.0;
        let Invocation { args, stdin, stdout, stderr, is_terminal, is_probe } = invocation;
        let spec = Arc::new(Spec { args, stdin, stdout, stderr, is_terminal, ..Spec::clone(spec) });
        let claim = if is_probe { Claim::Probe } else { Claim::Command };
        engine.launch(component, spec, account.clone(), claim, Some(self.clone())).await
    }

    /// Files and sockets that it has open, as far as they were counted.
    #[cfg(test)]
    pub(crate) fn descriptors(&self) -> u32 {
        self.0.account.descriptors()
    }

    /// Files that may be worked on at this moment.
    #[cfg(test)]
    pub(crate) fn file_turns(&self) -> usize {
        self.0.account.file_turns.available_permits()
    }

    /// Counts a socket that is opened on its behalf among its own; none when it has as many as it may.
    pub fn open_socket(&self) -> Option<OpenSocket> {
        OpenSocket::take(&self.0.account)
    }

    /// What it has used so far; its fuel is known when it has ended.
    pub fn usage(&self) -> Usage {
        self.0.account.usage()
    }
}

impl Engine {
    /// Starts a command. Returns when its instance exists, so that what keeps it from existing is an error here. Dropping this
    /// before ends it.
    pub async fn start_command(&self, component: &Component, spec: Spec) -> Result<Command, Error> {
        if !matches!(component.pre(), Pre::CommandP2(_) | Pre::CommandP3(_)) {
            return Err(Error::WrongWorld { wanted: "command" });
        }
        guest::check_mounts(&spec)?;
        let account = self.0.account(&spec);
        self.launch(component, Arc::new(spec), account, Claim::Command, None).await
    }

    /// Starts a command on an account, which is another's where it runs beside it.
    async fn launch(
        &self,
        component: &Component,
        spec: Arc<Spec>,
        account: Arc<Account>,
        claim: Claim,
        beside: Option<Command>,
    ) -> Result<Command, Error> {
        let (started, starting) = oneshot::channel();
        let (ending, exited) = watch::channel(None);
        let running = Arc::new(Running {
            exit: exited,
            end: CancellationToken::new(),
            how: AtomicU8::new(0),
            account: account.clone(),
            engine: self.clone(),
            component: component.clone(),
            spec: spec.clone(),
        });
        let life = {
            let (inner, component, spec, account) = (self.0.clone(), component.clone(), spec.clone(), account.clone());
            async move { live(&inner, &component, &spec, &account, claim, started).await }
        };
        // What runs beside another ends with it.
        if beside.is_none() {
            let weak = Arc::downgrade(&running);
            account.on_kill(move || {
                if let Some(running) = weak.upgrade() {
                    Command(running).end(OUT_OF_MEMORY);
                }
            });
        }
        let lane = account.lane.clone();
        let life = Metered::new(account, Clock::Thread, life);
        let task = running.clone();
        self.0.executor.spawn(&lane, async move {
            let ended = tokio::select! {
                biased;
                () = task.end.cancelled() => match task.how.load(Ordering::Relaxed) {
                    STOPPED => Exit::Stopped,
                    OUT_OF_MEMORY => Exit::OutOfMemory,
                    _ => Exit::Killed,
                },
                () = over(beside) => Exit::Killed,
                exit = life => exit,
            };
            ending.send_replace(Some(ended));
        });
        let mut unwanted = Unwanted(Some(running.clone()));
        match starting.await {
            Ok(Ok(())) => {
                unwanted.0 = None;
                Ok(Command(running))
            }
            Ok(Err(error)) => Err(error),
            Err(_) => Err(Error::Start("the engine ends".to_owned())),
        }
    }
}

/// Waits until the command has ended beside which another runs.
async fn over(command: Option<Command>) {
    match command {
        Some(command) => drop(command.wait().await),
        None => std::future::pending().await,
    }
}

/// A command whose start nobody waits for any more: a component may compute for ever before it has begun.
struct Unwanted(Option<Arc<Running>>);

impl Drop for Unwanted {
    fn drop(&mut self) {
        if let Some(running) = self.0.take() {
            Command(running).kill();
        }
    }
}

/// From instantiation to the end.
async fn live(
    inner: &Inner,
    component: &Component,
    spec: &Arc<Spec>,
    account: &Arc<Account>,
    claim: Claim,
    started: oneshot::Sender<Result<(), Error>>,
) -> Exit {
    let mut store = match inner.store(component, spec, account, claim) {
        Ok(store) => store,
        Err(error) => {
            let _ = started.send(Err(error));
            return Exit::Killed;
        }
    };
    let result = match component.pre() {
        Pre::CommandP2(pre) => match pre.instantiate_async(&mut store).await {
            Ok(command) => {
                let _ = started.send(Ok(()));
                command.wasi_cli_run().call_run(&mut store).await
            }
            Err(error) => return not_started(error, account, started),
        },
        Pre::CommandP3(pre) => match pre.instantiate_async(&mut store).await {
            Ok(instance) => {
                let _ = started.send(Ok(()));
                run_p3(&mut store, &instance).await
            }
            Err(error) => return not_started(error, account, started),
        },
        Pre::HttpP2(_) | Pre::HttpP3(_) => Ok(Err(())),
    };
    account.burnt(guest::burnt(&store));
    match result {
        Ok(Ok(())) => Exit::Code(0),
        Ok(Err(())) => Exit::Code(1),
        Err(error) => {
            let exit = Exit::of(&error);
            if let Exit::Trap(_) | Exit::OutOfMemory | Exit::FuelExhausted = exit {
                spec.stderr.write(format!("{}\n{}", exit.message(), exit::backtrace(&error)).as_bytes());
            }
            exit
        }
    }
}

async fn run_p3(
    store: &mut Store<Guest>,
    instance: &wasmtime::component::Instance,
) -> wasmtime::Result<Result<(), ()>> {
    let command = ExportsP3::new(&mut *store, instance)?;
    store.run_concurrent(async move |accessor| command.wasi_cli_run().call_run(accessor).await).await?
}

fn not_started(error: wasmtime::Error, account: &Account, started: oneshot::Sender<Result<(), Error>>) -> Exit {
    let _ = started.send(Err(start_error(&error, account)));
    Exit::of(&error)
}
