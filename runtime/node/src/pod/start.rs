//! From a container's spec to a running component, and what follows its end.

use std::path::Path;
use std::sync::Arc;

use coracle_engine::World;
use k8s_openapi::api::core::v1::{Container as Spec, Pod};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::core::{Exit, Index, Input, Run, StartFailure, all_specs, part_of};
use super::hooks::{self, Asker};
use super::prepare::Ready;
use super::slot::{Container, Handle, Life, Slot};
use super::stop::{KILLED, Stopped};
use super::table::Pods;
use crate::{beneath, logs, text};

/// Longest termination message (kubelet's `MaxContainerTerminationMessageLength`).
const MESSAGE_BYTES_MAX: u64 = 4096;
/// What of a log becomes a termination message.
const LOG_LINES_MAX: usize = 80;
const LOG_BYTES_MAX: usize = 2048;

impl Pods {
    /// Starts one life of a container and tells the state machine how that went.
    pub(super) async fn start(self: Arc<Self>, slot: Arc<Slot>, container: Index, run: Run, cancel: CancellationToken) {
        let pod = slot.pod();
        let Some(spec) = all_specs(&pod).nth(container) else { return };
        // Preparing only waits, reads and writes files that are written anew next time: it may be cut.
        let ready = tokio::select! {
            ready = self.prepare(&slot, &pod, container, run, &spec) => ready,
            () = cancel.cancelled() => return self.gave_up(&slot, container, run),
        };
        let started = match ready {
            Ok(_) if cancel.is_cancelled() => return self.gave_up(&slot, container, run),
            Ok(ready) => self.run(&slot, container, run, &spec, ready, &cancel).await,
            Err(failure) => Err(failure),
        };
        if let Err(failure) = started {
            self.idle(&slot, container, run);
            match cancel.is_cancelled() {
                true => self.input(&slot, Input::Exited { container, run, exit: KILLED.exit() }),
                false => self.input(&slot, Input::StartFailed { container, run, failure }),
            }
        }
    }

    /// It was told to stop before it ran.
    fn gave_up(self: &Arc<Self>, slot: &Arc<Slot>, container: Index, run: Run) {
        self.idle(slot, container, run);
        self.input(slot, Input::Exited { container, run, exit: KILLED.exit() });
    }

    fn idle(&self, slot: &Slot, container: Index, run: Run) {
        let mut state = slot.lock();
        if let Some(found) = state.containers.get_mut(container)
            && matches!(found, Container::Starting { run: starting, .. } if *starting == run)
        {
            *found = Container::Idle;
        }
    }

    /// Hands the component to the engine.
    async fn run(
        self: &Arc<Self>,
        slot: &Arc<Slot>,
        container: Index,
        run: Run,
        spec: &Spec,
        ready: Ready,
        cancel: &CancellationToken,
    ) -> Result<(), StartFailure> {
        let Ready { prepared, spec: given, wishes, log, stdin, network } = ready;
        let component = &prepared.component;
        let starting = async {
            match component.world() {
                World::Command => self.context.engine.start_command(component, given).await.map(Handle::Command),
                World::Http => self.context.engine.start_http(component, given, wishes.http).await.map(Handle::Http),
            }
        };
        // A component may compute for ever before it has begun; cut here, it ends.
        let handle = tokio::select! {
            handle = starting => handle.map_err(|error| chain(&error)),
            () = cancel.cancelled() => Err("it was told to stop".to_owned()),
        };
        let handle = handle.map_err(|message| {
            log.finish();
            StartFailure { reason: "RunContainerError", message }
        })?;
        let life = Life {
            run,
            handle: handle.clone(),
            log,
            stdin,
            since: Instant::now(),
            has_sockets: component.imports().iter().any(|import| import.starts_with("wasi:sockets/")),
            stopping: CancellationToken::new(),
            over: CancellationToken::new(),
        };
        let table = &self.context.network.table;
        match &handle {
            Handle::Command(_) => table.listen(network.address.pod, container),
            Handle::Http(service) => {
                let ports = spec.ports.iter().flatten().filter_map(|port| u16::try_from(port.container_port).ok());
                let service = Arc::new(super::stop::Called(service.clone()));
                table.serve(network.address.pod, container, ports.collect(), service);
            }
        }
        let was_cancelled = {
            let mut state = slot.lock();
            match state.containers.get_mut(container) {
                Some(found @ Container::Starting { .. }) => {
                    let cancelled = matches!(found, Container::Starting { cancel, .. } if cancel.is_cancelled());
                    *found = Container::Running(life.clone());
                    cancelled
                }
                _ => true,
            }
        };
        if was_cancelled {
            kill(&handle);
            self.ended(slot, container, run, KILLED);
            return Ok(());
        }
        let hook = spec.lifecycle.as_ref().and_then(|lifecycle| lifecycle.post_start.as_ref());
        let asker = Asker { network: &network, spec, handle: &handle };
        let hooked = match hook {
            // A hook is of no use to a container that has ended or is being ended; what it does can be cut anywhere.
            Some(hook) => tokio::select! {
                hooked = hooks::run(&self.context, &asker, hook) => hooked,
                () = life.stopping.cancelled() => Ok(()),
                () = over(&handle) => Ok(()),
            },
            None => Ok(()),
        };
        let id = container_id(slot, container, run);
        let image_id = prepared.artifact.image_id.clone();
        self.input(slot, Input::Started { container, run, container_id: id, image_id });
        // Only now: a guest that ends at once must be seen to have started.
        self.watch_end(slot, container, &life);
        if let Err(error) = hooked {
            let path = Some(field_path(&slot.pod(), container, &spec.name));
            tracing::debug!(pod = %slot.name, %error, "postStart hook");
            self.event(slot, path, true, "FailedPostStartHook", "PostStartHook failed".to_owned());
            kill(&handle);
            if matches!(handle, Handle::Http(_)) {
                self.ended(slot, container, run, KILLED);
            }
        }
        Ok(())
    }

    /// Waits for a component to end by itself.
    fn watch_end(self: &Arc<Self>, slot: &Arc<Slot>, container: Index, life: &Life) {
        let (pods, slot, run, handle) = (self.clone(), slot.clone(), life.run, life.handle.clone());
        let over = life.over.clone();
        // Small on purpose: there is one for every running container.
        tokio::spawn(async move {
            let stopped = match handle {
                Handle::Command(command) => Stopped::from(command.wait().await),
                Handle::Http(service) => {
                    let exit = tokio::select! {
                        exit = service.failed() => exit,
                        // Else this would hold the service, and its code, for ever.
                        () = over.cancelled() => return,
                    };
                    service.kill();
                    Stopped::from(exit)
                }
            };
            pods.ended(&slot, container, run, stopped);
        });
    }

    /// A component has ended: lets go of what it had and tells the state machine. Only the first word about a life counts.
    pub(super) fn ended(self: &Arc<Self>, slot: &Arc<Slot>, container: Index, run: Run, stopped: Stopped) {
        let (life, network, pod) = {
            let mut state = slot.lock();
            let Some(found) = state.containers.get_mut(container) else { return };
            if found.life().is_none_or(|life| life.run != run) {
                return;
            }
            let (Container::Running(life) | Container::Stopping { life, .. }) = std::mem::take(found) else { return };
            (life, state.network.clone(), state.core.pod().clone())
        };
        if let Some(network) = network {
            self.context.network.table.stop(network.address.pod, container);
        }
        life.over.cancel();
        life.log.finish();
        let exit = Exit { message: message(&pod, container, &life, &stopped), ..stopped.exit() };
        self.input(slot, Input::Exited { container, run, exit });
    }
}

/// Waits until a component has ended by itself.
async fn over(handle: &Handle) {
    match handle {
        Handle::Command(command) => drop(command.wait().await),
        Handle::Http(service) => drop(service.failed().await),
    }
}

/// The termination message of a life.
fn message(pod: &Pod, container: Index, life: &Life, stopped: &Stopped) -> String {
    let read = |path: &Path| beneath::read_regular(path, MESSAGE_BYTES_MAX).ok();
    let written = life.log.message.as_deref().and_then(read).unwrap_or_default();
    if !written.is_empty() {
        return String::from_utf8_lossy(&written).into_owned();
    }
    let policy = all_specs(pod).nth(container).and_then(|spec| spec.termination_message_policy.clone());
    if policy.as_deref() == Some("FallbackToLogsOnError") && stopped.code != 0 {
        let tail = logs::tail(life.log.log.path(), LOG_LINES_MAX, LOG_BYTES_MAX);
        if !tail.is_empty() {
            return tail;
        }
    }
    stopped.message.clone()
}

/// `containerID`: the life of this container of this pod.
pub(super) fn container_id(slot: &Slot, container: Index, run: Run) -> String {
    format!("wasmtime://{}{container:04x}{run:08x}", slot.uid.replace('-', ""))
}

pub(super) fn field_path(pod: &Pod, container: Index, name: &str) -> String {
    format!("spec.{}{{{name}}}", part_of(pod, container).name())
}

pub(super) fn kill(handle: &Handle) {
    match handle {
        Handle::Command(command) => command.kill(),
        Handle::Http(service) => service.kill(),
    }
}

/// An error with its causes, for people, as far as there is room for them; causes that the text holds already are not said twice.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let more = cause.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        source = cause.source();
    }
    text::cut_off(text)
}
