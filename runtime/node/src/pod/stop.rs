//! The end of a container that is told to end: preStop hook, then the component is stopped, then it is killed.
//!
//! WASI has no signals, so a command cannot be told that it is to end. Its grace is that of its clients: while the pod is deleted,
//! its listeners stay open until the mesh has looked elsewhere and its connections are quiet, or until the time is over. One that
//! does not listen has nobody to wait for. An HTTP component finishes the requests it has begun.

use std::sync::Arc;
use std::time::Duration;

use coracle_engine::{Chain, HttpService};
use coracle_proxy::{Body, BoxError};
use futures::future::BoxFuture;
use http::{Request, Response};
use tokio::sync::watch;
use tokio::time::Instant;

use super::core::{self, Index, Input, Run, specs};
use super::hooks::{self, Asker};
use super::slot::{Container, Handle, Life, Slot, State};
use super::start::kill;
use super::table::Pods;
use crate::network::Patience;

/// What is left of the grace period after the preStop hook, at least (kubelet's `minimumGracePeriodInSeconds`).
const AFTER_HOOK_MIN: Duration = Duration::from_secs(2);

/// How a component ended.
#[derive(Debug, Clone)]
pub(super) struct Stopped {
    pub code: i32,
    pub reason: &'static str,
    pub message: String,
}

/// Ended before its time.
pub(super) const KILLED: Stopped = Stopped { code: 137, reason: "Error", message: String::new() };
/// An HTTP component that had answered everything.
const DRAINED: Stopped = Stopped { code: 0, reason: "Completed", message: String::new() };

impl Stopped {
    /// As the state machine knows it.
    pub fn exit(&self) -> core::Exit {
        core::Exit { code: self.code, reason: self.reason, message: self.message.clone() }
    }
}

impl From<coracle_engine::Exit> for Stopped {
    fn from(exit: coracle_engine::Exit) -> Self {
        Self { code: exit.code(), reason: exit.reason(), message: exit.message() }
    }
}

/// An HTTP component as the mesh calls it.
pub(super) struct Called(pub HttpService);

impl coracle_proxy::HttpService for Called {
    fn call(&self, mut request: Request<Body>) -> BoxFuture<'static, Result<Response<Body>, BoxError>> {
        use coracle_engine::RequestError;
        let service = self.0.clone();
        // A guest is given none of what is for one connection only; a request to change it is refused as what it is.
        if coracle_proxy::wanted_upgrade(request.headers()).is_none() {
            coracle_proxy::strip_connection_headers(request.headers_mut());
        }
        // Who has called on other nodes; of what began on this one more is known.
        let carried = request.extensions_mut().remove::<coracle_proxy::Carried>();
        if let Some(coracle_proxy::Carried(text)) = carried
            && request.extensions().get::<Chain>().is_none()
            && let Some(chain) = text.to_str().ok().and_then(|text| text.parse::<Chain>().ok())
        {
            request.extensions_mut().insert(chain);
        }
        Box::pin(async move {
            match service.handle(request).await {
                Ok(mut response) => {
                    coracle_proxy::strip_connection_headers(response.headers_mut());
                    Ok(response)
                }
                // Nobody has seen these: another pod may still answer.
                Err(RequestError::Overloaded) => Err(coracle_proxy::Busy.into()),
                Err(error @ (RequestError::Stopped | RequestError::Unavailable(_))) => Err(error.into()),
                // A guest had it: only what may be done twice is asked of another pod.
                Err(error @ RequestError::Killed) => Err(coracle_proxy::Seen(error.into()).into()),
                // These are the answer: the component was asked and failed.
                Err(error) => {
                    let body = coracle_engine::full(format!("{error}\n"));
                    let mut response = Response::new(body);
                    *response.status_mut() = error.status();
                    let text = http::HeaderValue::from_static("text/plain; charset=utf-8");
                    response.headers_mut().insert(http::header::CONTENT_TYPE, text);
                    Ok(response)
                }
            }
        })
    }
}

/// The end of one life.
struct Ending {
    container: Index,
    life: Life,
    has_hook: bool,
    /// For a command's connections.
    patience: Option<Patience>,
}

impl Pods {
    /// Begins to end a life. What follows at once is returned.
    pub(super) fn stop(
        self: &Arc<Self>,
        slot: &Arc<Slot>,
        state: &mut State,
        container: Index,
        run: Run,
        grace: Duration,
    ) -> Option<Input> {
        let gone = Input::Exited { container, run, exit: KILLED.exit() };
        let Some(found) = state.containers.get_mut(container) else { return Some(gone) };
        match found {
            Container::Starting { run: starting, cancel } if *starting == run => {
                cancel.cancel();
                None
            }
            Container::Running(life) if life.run == run => {
                let (deadline, until) = watch::channel(Instant::now() + grace);
                let life = life.clone();
                *found = Container::Stopping { life: life.clone(), deadline };
                life.stopping.cancel();
                if let Handle::Command(command) = &life.handle
                    && grace.is_zero()
                {
                    command.kill();
                    return None;
                }
                let has_hook = specs(state.core.pod())
                    .nth(container)
                    .is_some_and(|spec| spec.lifecycle.as_ref().is_some_and(|lifecycle| lifecycle.pre_stop.is_some()));
                // A container that is only restarted, because it does not answer, has no use for patience.
                let patience = match (life.has_sockets, state.core.is_ending(), state.core.is_leaving()) {
                    (true, true, false) => Some(Patience::Sessions),
                    (true, true, true) => Some(Patience::Requests),
                    _ => None,
                };
                if let Handle::Command(command) = &life.handle
                    && !has_hook
                    && patience.is_none()
                {
                    command.stop();
                    return None;
                }
                let ending = Ending { container, life, has_hook: has_hook && !grace.is_zero(), patience };
                self.context.tasks.spawn(self.clone().end(slot.clone(), ending, until));
                None
            }
            Container::Idle | Container::Starting { .. } | Container::Running(_) => Some(gone),
            Container::Stopping { .. } => None,
        }
    }

    /// Brings the deadline of a stop nearer.
    pub(super) fn hurry(&self, state: &State, container: Index, run: Run, grace: Duration) {
        if let Some(Container::Stopping { life, deadline }) = state.containers.get(container)
            && life.run == run
        {
            let until = Instant::now() + grace;
            deadline.send_if_modified(|old| {
                let nearer = until < *old;
                *old = until.min(*old);
                nearer
            });
        }
    }

    async fn end(self: Arc<Self>, slot: Arc<Slot>, ending: Ending, mut until: watch::Receiver<Instant>) {
        let Ending { container, life, has_hook, patience } = ending;
        if has_hook {
            self.pre_stop(&slot, container, &life.handle, &mut until).await;
        }
        let network = slot.lock().network.clone();
        match &life.handle {
            // Its end is waited for since its start.
            Handle::Command(command) => {
                let quiet = async {
                    if let (Some(network), Some(patience)) = (&network, patience) {
                        self.context.network.connections.quiet(network.address.loopback, patience).await;
                    }
                };
                // All of these only wait.
                tokio::select! {
                    biased;
                    _ = command.wait() => {}
                    () = quiet => command.stop(),
                    () = deadline(&mut until) => command.kill(),
                }
            }
            Handle::Http(service) => {
                if let Some(network) = network {
                    self.context.network.table.stop(network.address.pod, container);
                }
                // Draining only waits.
                let stopped = tokio::select! {
                    biased;
                    () = service.drain() => DRAINED,
                    () = deadline(&mut until) => KILLED,
                };
                kill(&life.handle);
                self.ended(&slot, container, life.run, stopped);
            }
        }
    }

    async fn pre_stop(&self, slot: &Slot, container: Index, handle: &Handle, until: &mut watch::Receiver<Instant>) {
        let pod = slot.pod();
        let Some(spec) = specs(&pod).nth(container) else { return };
        let Some(hook) = spec.lifecycle.as_ref().and_then(|lifecycle| lifecycle.pre_stop.as_ref()) else { return };
        let Some(network) = slot.lock().network.clone() else { return };
        let asker = Asker { network: &network, spec, handle };
        // A hook that takes longer than the pod may is given up, as is one that the pod's owner hurries.
        let result = tokio::select! {
            result = hooks::run(&self.context, &asker, hook) => result,
            () = deadline(until) => Err("the grace period is over".to_owned()),
        };
        if let Err(error) = result {
            tracing::debug!(pod = %slot.name, %error, "preStop hook");
            let path = super::start::field_path(&pod, container, &spec.name);
            self.event(slot, Some(path), true, "FailedPreStopHook", "PreStopHook failed".to_owned());
        }
        let at_least = Instant::now() + AFTER_HOOK_MIN;
        if *until.borrow() < at_least {
            let (_, later) = watch::channel(at_least);
            *until = later;
        }
    }
}

/// Waits for a deadline that can come nearer.
async fn deadline(until: &mut watch::Receiver<Instant>) {
    loop {
        let at = *until.borrow_and_update();
        // Both branches only wait.
        tokio::select! {
            () = tokio::time::sleep_until(at) => return,
            changed = until.changed() => if changed.is_err() {
                return tokio::time::sleep_until(at).await;
            },
        }
    }
}
