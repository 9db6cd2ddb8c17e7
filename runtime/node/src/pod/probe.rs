//! Probes: a timer entry for each, and a task only while one is under way.
//!
//! Verdicts follow the kubelet (`pkg/kubelet/prober/worker.go`), but for one thing: until a probe has succeeded for the first
//! time it is tried in quick succession for one period (liveness: for a second), because a component is up in milliseconds and
//! should not wait for a period of ten seconds that was made for containers. What fails in that time is not counted. Nor is a try
//! that could not be made at all.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container as Spec, Probe};
use tokio::time::Instant;

use super::core::{Index, Input, ProbeKind, Run, specs};
use super::hooks::{self, Asker, Trouble};
use super::slot::{Container, Slot, State};
use super::table::{Alarm, Pods};
use crate::network::GuestNetwork;

/// First wait between quick tries; it doubles.
const QUICK_FIRST: Duration = Duration::from_millis(4);
/// Quick tries are made for this long at most.
const QUICK_MAX: Duration = Duration::from_secs(10);
/// The same for liveness probes, whose failure ends a container: only as long as one needs to come up.
const QUICK_LIVENESS_MAX: Duration = Duration::from_secs(1);

/// A try that took this much longer than its timeout was not slow: nothing has run.
const STALL_MIN: Duration = Duration::from_secs(2);

/// Where a probe stands.
#[derive(Debug, Clone)]
pub(super) struct ProbeState {
    pub container: Index,
    pub run: Run,
    pub kind: ProbeKind,
    successes: u32,
    failures: u32,
    /// Quick tries made.
    quick: u32,
    verdict: Option<bool>,
    is_under_way: bool,
}

/// What a try has shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shown {
    Success,
    Failure,
    /// It could not be made.
    Nothing,
}

/// What a try leads to.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    /// A new verdict.
    verdict: Option<bool>,
    /// Whether the failure is told.
    is_told: bool,
    /// When to try again.
    next: Duration,
}

/// Numbers of a probe, with the API's defaults.
#[derive(Debug, Clone, Copy)]
struct Numbers {
    delay: Duration,
    period: Duration,
    timeout: Duration,
    successes: u32,
    failures: u32,
}

impl Numbers {
    fn of(probe: &Probe) -> Self {
        let number =
            |value: Option<i32>, default: u32| value.and_then(|value| u32::try_from(value).ok()).unwrap_or(default);
        let seconds = |value, default| Duration::from_secs(u64::from(number(value, default)));
        Self {
            delay: seconds(probe.initial_delay_seconds, 0),
            period: seconds(probe.period_seconds, 10).max(Duration::from_secs(1)),
            timeout: seconds(probe.timeout_seconds, 1).max(Duration::from_secs(1)),
            successes: number(probe.success_threshold, 1).max(1),
            failures: number(probe.failure_threshold, 3).max(1),
        }
    }
}

impl ProbeState {
    fn new(container: Index, run: Run, kind: ProbeKind) -> Self {
        Self { container, run, kind, successes: 0, failures: 0, quick: 0, verdict: None, is_under_way: false }
    }

    /// Counts a try.
    fn count(&mut self, shown: Shown, numbers: Numbers, age: Duration) -> Outcome {
        if shown == Shown::Success {
            self.failures = 0;
            self.successes += 1;
            let verdict = self.decide(self.successes >= numbers.successes, true);
            return Outcome { verdict, is_told: false, next: numbers.period };
        }
        let quick_max = if self.kind == ProbeKind::Liveness { QUICK_LIVENESS_MAX } else { QUICK_MAX };
        let window = numbers.delay + numbers.period.min(quick_max);
        if self.verdict.is_none() && self.successes == 0 && age < window {
            let next = QUICK_FIRST.saturating_mul(1 << self.quick.min(12)).min(window - age);
            self.quick += 1;
            return Outcome { verdict: None, is_told: false, next };
        }
        if shown == Shown::Nothing {
            return Outcome { verdict: None, is_told: true, next: numbers.period };
        }
        self.successes = 0;
        self.failures += 1;
        let verdict = self.decide(self.failures >= numbers.failures, false);
        Outcome { verdict, is_told: true, next: numbers.period }
    }

    fn decide(&mut self, is_reached: bool, verdict: bool) -> Option<bool> {
        if !is_reached || self.verdict == Some(verdict) {
            return None;
        }
        self.verdict = Some(verdict);
        self.verdict
    }
}

impl Pods {
    /// Begins to probe.
    pub(super) fn start_probe(
        self: &Arc<Self>,
        slot: &Arc<Slot>,
        state: &mut State,
        container: Index,
        run: Run,
        kind: ProbeKind,
    ) {
        let pod = state.core.pod();
        let Some(probe) = specs(pod).nth(container).and_then(|spec| probe_of(spec, kind)) else { return };
        let delay = Numbers::of(probe).delay;
        state.probes.retain(|old| (old.container, old.kind) != (container, kind));
        state.probes.push(ProbeState::new(container, run, kind));
        let key = (slot.uid.clone(), Alarm::Probe(container, kind));
        if !delay.is_zero() {
            self.timers.set(key, delay);
            return;
        }
        self.timers.cancel(key);
        let (pods, slot) = (self.clone(), slot.clone());
        tokio::spawn(async move { pods.probe(&slot, container, kind) });
    }

    /// A probe is due.
    pub(super) fn probe(self: &Arc<Self>, slot: &Arc<Slot>, container: Index, kind: ProbeKind) {
        let mut state = slot.lock();
        let State { core, network, containers, probes, .. } = &mut *state;
        let Some(at) = probes.iter().position(|probe| (probe.container, probe.kind) == (container, kind)) else {
            return;
        };
        let run = probes[at].run;
        let life = match containers.get(container) {
            Some(Container::Running(life)) => Some(life),
            // Whether it can still be reached is asked until it has ended.
            Some(Container::Stopping { life, .. }) if kind == ProbeKind::Readiness => Some(life),
            _ => None,
        };
        let Some(handle) = life.filter(|life| life.run == run).map(|life| life.handle.clone()) else {
            probes.swap_remove(at);
            return;
        };
        let Some(network) = network.clone() else { return };
        if std::mem::replace(&mut probes[at].is_under_way, true) {
            return;
        }
        let pod = core.pod().clone();
        drop(state);
        let (pods, slot) = (self.clone(), slot.clone());
        tokio::spawn(async move {
            let Some(spec) = specs(&pod).nth(container) else { return };
            let Some(probe) = probe_of(spec, kind) else { return };
            let numbers = Numbers::of(probe);
            let asker = Asker { network: &network, spec, handle: &handle };
            let mut tried = pods.attempt_in_time(&asker, probe, numbers.timeout).await;
            if tried.is_none() {
                // This process was stopped meanwhile, or the machine slept: that says nothing about the guest.
                tried = pods.attempt_in_time(&asker, probe, numbers.timeout).await;
            }
            let result = tried.unwrap_or_else(|| Err(Trouble::Failed(timed_out(&network, spec, probe))));
            if let Ok(Some(warning)) = &result {
                let path = super::start::field_path(&pod, container, &spec.name);
                let message = format!("{} probe warning: {warning}", kind.title());
                pods.event(&slot, Some(path), true, "ProbeWarning", message);
            }
            pods.probed(&slot, (container, run, kind), numbers, result.map(drop));
        });
    }

    /// One try; `None` when time has passed in which nothing could have answered.
    async fn attempt_in_time(
        &self,
        asker: &Asker<'_>,
        probe: &Probe,
        timeout: Duration,
    ) -> Option<Result<Option<String>, Trouble>> {
        let begun = Instant::now();
        match tokio::time::timeout(timeout, self.attempt(asker, probe)).await {
            Ok(result) => Some(result),
            Err(_) if begun.elapsed() > timeout + STALL_MIN => None,
            Err(_) => Some(Err(Trouble::Failed(timed_out(asker.network, asker.spec, probe)))),
        }
    }

    /// One try; a success may come with a warning.
    async fn attempt(&self, asker: &Asker<'_>, probe: &Probe) -> Result<Option<String>, Trouble> {
        if let Some(get) = &probe.http_get {
            let answer = hooks::http_get(&self.context, asker, get).await?;
            return match answer.status {
                200..300 => Ok(None),
                300..400 => Ok(Some(format!("Probe terminated redirects, Response body: {}", answer.body))),
                status => Err(Trouble::Failed(format!("HTTP probe failed with statuscode: {status}"))),
            };
        }
        if let Some(exec) = &probe.exec {
            let words = exec.command.as_deref().unwrap_or_default();
            let (code, printed) = hooks::run_command(asker, words, true).await?;
            return if code == 0 { Ok(None) } else { Err(Trouble::Failed(printed)) };
        }
        if let Some(action) = &probe.grpc {
            return hooks::grpc(&self.context, asker, action).await.map(|()| None);
        }
        match &probe.tcp_socket {
            Some(socket) => hooks::tcp_socket(&self.context, asker, socket).await.map(|()| None),
            None => Err(Trouble::NotMade("the probe has no handler that this node knows".to_owned())),
        }
    }

    fn probed(
        self: &Arc<Self>,
        slot: &Arc<Slot>,
        (container, run, kind): (Index, Run, ProbeKind),
        numbers: Numbers,
        result: Result<(), Trouble>,
    ) {
        let shown = match &result {
            Ok(()) => Shown::Success,
            Err(Trouble::Failed(_)) => Shown::Failure,
            Err(Trouble::NotMade(_)) => Shown::Nothing,
        };
        let outcome = {
            let mut state = slot.lock();
            let Some(age) = state.life(container, run).map(|life| Instant::now() - life.since) else { return };
            let found = state
                .probes
                .iter_mut()
                .find(|probe| (probe.container, probe.run, probe.kind) == (container, run, kind));
            let Some(probe) = found else { return };
            probe.is_under_way = false;
            let outcome = probe.count(shown, numbers, age);
            if kind == ProbeKind::Startup && outcome.verdict.is_some() {
                // It has done what it is for.
                state.probes.retain(|probe| (probe.container, probe.kind) != (container, kind));
            } else {
                self.timers.set((slot.uid.clone(), Alarm::Probe(container, kind)), outcome.next);
            }
            outcome
        };
        if let Err(trouble) = result
            && outcome.is_told
        {
            let pod = slot.pod();
            let name = specs(&pod).nth(container).map_or("", |spec| spec.name.as_str());
            let path = super::start::field_path(&pod, container, name);
            let what = match trouble {
                Trouble::Failed(why) => format!("failed: {why}"),
                Trouble::NotMade(why) => format!("errored and resulted in unknown state: {why}"),
            };
            self.event(slot, Some(path), true, "Unhealthy", format!("{} probe {what}", kind.title()));
        }
        if let Some(healthy) = outcome.verdict {
            self.input(slot, Input::Probed { container, run, kind, healthy });
        }
    }
}

fn probe_of(spec: &Spec, kind: ProbeKind) -> Option<&Probe> {
    match kind {
        ProbeKind::Startup => spec.startup_probe.as_ref(),
        ProbeKind::Readiness => spec.readiness_probe.as_ref(),
        ProbeKind::Liveness => spec.liveness_probe.as_ref(),
    }
}

fn timed_out(network: &GuestNetwork, spec: &Spec, probe: &Probe) -> String {
    if let Some(exec) = &probe.exec {
        let command = exec.command.as_deref().unwrap_or_default().join(" ");
        return format!("command timed out: {command:?} timed out after {:?}", Numbers::of(probe).timeout);
    }
    if probe.grpc.is_some() {
        return format!("timeout: health rpc did not complete within {:?}", Numbers::of(probe).timeout);
    }
    match (&probe.http_get, &probe.tcp_socket) {
        (Some(get), _) => {
            let url = hooks::url(network, spec, get).map(|url| url.to_string()).unwrap_or_default();
            format!("Get {url:?}: context deadline exceeded (Client.Timeout exceeded while awaiting headers)")
        }
        _ => format!("dial tcp {}: i/o timeout", network.address.pod),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers() -> Numbers {
        let second = Duration::from_secs(1);
        Numbers { delay: Duration::ZERO, period: 10 * second, timeout: second, successes: 1, failures: 3 }
    }

    #[test]
    fn tries_quickly_until_the_first_success() {
        let mut probe = ProbeState::new(0, 1, ProbeKind::Readiness);
        let waits: Vec<u128> = [0, 4, 12, 28]
            .map(|age| probe.count(Shown::Failure, numbers(), Duration::from_millis(age)).next.as_millis())
            .into();
        assert_eq!(waits, [4, 8, 16, 32]);
        let outcome = probe.count(Shown::Success, numbers(), Duration::from_millis(60));
        assert_eq!(outcome, Outcome { verdict: Some(true), is_told: false, next: Duration::from_secs(10) });
    }

    #[test]
    fn counts_to_its_thresholds_and_says_what_changed_once() {
        let mut probe = ProbeState::new(0, 1, ProbeKind::Liveness);
        let late = Duration::from_secs(100);
        let (yes, no) = (Shown::Success, Shown::Failure);
        let verdicts: Vec<Option<bool>> =
            [yes, yes, no, no, yes, no, no, no, no].map(|shown| probe.count(shown, numbers(), late).verdict).into();
        assert_eq!(verdicts, [Some(true), None, None, None, None, None, None, Some(false), None]);
    }

    #[test]
    fn a_try_that_could_not_be_made_counts_for_nothing() {
        let mut probe = ProbeState::new(0, 1, ProbeKind::Liveness);
        let (late, unknown, no) = (Duration::from_secs(100), Shown::Nothing, Shown::Failure);
        let verdicts: Vec<Option<bool>> = [Shown::Success, no, no, unknown, unknown, unknown, no]
            .map(|shown| probe.count(shown, numbers(), late).verdict)
            .into();
        assert_eq!(verdicts, [Some(true), None, None, None, None, None, Some(false)], "the third failure");
        let told = probe.count(unknown, numbers(), late);
        assert_eq!(told, Outcome { verdict: None, is_told: true, next: Duration::from_secs(10) });
    }
}
