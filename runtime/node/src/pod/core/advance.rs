//! What should be under way, given everything that is known. Called after each input.

use std::time::Duration;

use super::container::{Kind, State};
use super::{Command, Core, Ending, Index, Now, SetupState, full_name, human, seconds};

impl Core {
    pub(super) fn advance(&mut self, now: Now, commands: &mut Vec<Command>) {
        if self.forgotten {
            return;
        }
        self.check_deadline(now, commands);
        match (&self.ending, self.terminal) {
            (Some(_), _) => self.advance_ending(now, commands),
            (None, Some(_)) => self.release(commands),
            (None, None) => {
                // A pod of an earlier life may have nothing left to do.
                let has_work = self.terminal_phase().is_none();
                if has_work && self.advance_setup(now, commands) {
                    // First: they are to show why the others do not start.
                    self.advance_all(Kind::Ephemeral, now, commands);
                    if self.advance_init(now, commands) {
                        self.advance_all(Kind::Regular, now, commands);
                    }
                }
                if let Some(phase) = self.terminal_phase() {
                    self.terminal = Some(phase);
                    self.containers.iter_mut().for_each(|container| container.settle(now));
                    self.stop_beside(now, commands);
                    self.release(commands);
                }
            }
        }
    }

    /// The next moment at which [`super::Input::Wake`] is wanted.
    pub fn wake_at(&self) -> Option<Duration> {
        if self.ending.is_some() || self.terminal.is_some() {
            return None;
        }
        let setup = match &self.setup {
            SetupState::Failed { retry_at } => Some(*retry_at),
            _ => None,
        };
        let containers = self.containers.iter().filter_map(|container| match &container.state {
            State::Failing { show_until, retry_at, .. } => Some(show_until.unwrap_or(*retry_at).min(*retry_at)),
            State::CrashLoop { retry_at, .. } => Some(*retry_at),
            _ => None,
        });
        containers.chain(setup).chain(self.deadline).min()
    }

    fn check_deadline(&mut self, now: Now, commands: &mut Vec<Command>) {
        if self.ending.is_none()
            && self.terminal.is_none()
            && self.deadline.is_some_and(|deadline| deadline <= now.mono)
        {
            let message = "Pod was active on the node longer than the specified deadline".to_owned();
            commands.push(Command::Event {
                container: None,
                warning: false,
                reason: "DeadlineExceeded",
                message: message.clone(),
            });
            let grace = self.pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds).unwrap_or(30);
            self.fail("DeadlineExceeded", message, now, seconds(grace), commands);
        }
    }

    /// Address and volumes; true when they are there.
    fn advance_setup(&mut self, now: Now, commands: &mut Vec<Command>) -> bool {
        match &self.setup {
            SetupState::Done => return true,
            SetupState::Absent => {}
            SetupState::Failed { retry_at } if *retry_at <= now.mono => {}
            SetupState::Failed { .. } | SetupState::UnderWay | SetupState::Released => return false,
        }
        if self.start_time.is_none() {
            self.start_time = Some(now.wall);
            self.deadline = super::deadline_of(&self.pod, self.start_time, now);
        }
        self.setup = SetupState::UnderWay;
        commands.push(Command::SetUp { previous: self.address.or(self.previous_address) });
        false
    }

    /// Init containers in their order; true when the ordinary containers may run.
    fn advance_init(&mut self, now: Now, commands: &mut Vec<Command>) -> bool {
        for index in 0..self.containers.len() {
            match self.containers[index].kind {
                Kind::Regular | Kind::Ephemeral => break,
                Kind::Sidecar => {
                    self.keep_running(now, index, commands);
                    if !self.initialized && !self.containers[index].is_started() {
                        return false;
                    }
                }
                Kind::Init if self.initialized || self.containers[index].is_completed() => {}
                Kind::Init => {
                    self.keep_running(now, index, commands);
                    return false;
                }
            }
        }
        self.initialized = true;
        true
    }

    fn advance_all(&mut self, kind: Kind, now: Now, commands: &mut Vec<Command>) {
        for index in 0..self.containers.len() {
            if self.containers[index].kind == kind {
                self.keep_running(now, index, commands);
            }
        }
    }

    /// Brings one container, whose turn it is, one step towards running.
    fn keep_running(&mut self, now: Now, index: Index, commands: &mut Vec<Command>) {
        let pod = full_name(&self.pod);
        let container = &mut self.containers[index];
        // Whoever waits because of another image than the one that is wanted waits for nothing.
        let changed = container.image != container.wanted_image;
        match &mut container.state {
            State::Waiting => begin(container, index, commands),
            State::Failing { reason, message, show_until, retry_at } => {
                if *retry_at <= now.mono || changed {
                    begin(container, index, commands);
                } else if show_until.is_some_and(|until| until <= now.mono) {
                    *show_until = None;
                    *reason = "ImagePullBackOff";
                    let shown = format!("Back-off pulling image \"{}\"", container.wanted_image);
                    *message = format!("{shown}: ErrImagePull: {message}");
                    commands.push(event(index, false, "BackOff", shown));
                    commands.push(event(index, true, "Failed", "Error: ImagePullBackOff".to_owned()));
                }
            }
            State::Running { .. } if changed => {
                let grace = self.pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds).unwrap_or(30);
                let message = format!("Container {} definition changed, will be restarted", container.name);
                container.stop(now);
                commands.push(event(index, false, "Killing", message));
                commands.push(Command::Stop { container: index, run: container.run, grace: seconds(grace) });
            }
            State::Ended { terminated, finished } => {
                let (terminated, code, finished) = (terminated.clone(), terminated.code, *finished);
                if container.is_over(code) {
                    return;
                }
                let wait = container.crashes.wait(finished).filter(|_| !changed);
                container.crashes.next(finished);
                match wait {
                    Some(wait) if finished + wait > now.mono => {
                        let message = format!(
                            "back-off {} restarting failed container={} pod={pod}",
                            human(wait),
                            container.name
                        );
                        let text = format!("Back-off restarting failed container {} in pod {pod}", container.name);
                        container.last = Some(terminated);
                        container.state = State::CrashLoop { message, retry_at: finished + wait };
                        commands.push(event(index, true, "BackOff", text));
                    }
                    _ => begin(container, index, commands),
                }
            }
            State::CrashLoop { retry_at, .. } if *retry_at <= now.mono || changed => begin(container, index, commands),
            State::Running { .. } | State::Starting { .. } | State::Stopping { .. } | State::CrashLoop { .. } => {}
        }
    }

    /// Ends what runs: ordinary containers first, then sidecars in reverse order; then lets go.
    fn advance_ending(&mut self, now: Now, commands: &mut Vec<Command>) {
        let left = self.ending_by.map_or(Duration::ZERO, |by| by.saturating_sub(now.mono));
        let mut running = false;
        for index in 0..self.containers.len() {
            if self.containers[index].kind != Kind::Sidecar {
                running |= self.stop_container(now, index, left, commands);
            }
        }
        for index in (0..self.containers.len()).rev() {
            if running {
                return;
            }
            if self.containers[index].kind == Kind::Sidecar {
                running |= self.stop_container(now, index, left, commands);
            }
        }
        if running {
            return;
        }
        self.containers.iter_mut().for_each(|container| container.settle(now));
        if self.failure.is_some() {
            self.terminal = Some("Failed");
        }
        if self.terminal.is_none() && matches!(self.ending, Some(Ending::Deleted)) && self.had_run {
            let regular = self.containers.iter().filter(|container| container.kind == Kind::Regular);
            let all_well = regular.clone().all(|container| container.is_completed());
            self.terminal = Some(if all_well { "Succeeded" } else { "Failed" });
        }
        self.release(commands);
        if self.releasing {
            return;
        }
        match &self.ending {
            Some(Ending::Deleted) if !self.finalizing => {
                self.finalizing = true;
                commands.push(Command::Finalize);
            }
            Some(Ending::Gone) if !self.forgotten => {
                self.forgotten = true;
                commands.push(Command::Forget);
            }
            _ => {}
        }
    }

    /// Whether the container still runs, telling it to stop if nobody did.
    fn stop_container(&mut self, now: Now, index: Index, grace: Duration, commands: &mut Vec<Command>) -> bool {
        let container = &mut self.containers[index];
        match container.state {
            State::Running { .. } | State::Starting { .. } => {
                container.stop(now);
                let message = format!("Stopping container {}", container.name);
                commands.push(event(index, false, "Killing", message));
                commands.push(Command::Stop { container: index, run: container.run, grace });
                true
            }
            State::Stopping { .. } => true,
            _ => false,
        }
    }

    /// When all ordinary containers of a pod have ended for good, its sidecars go too, and who looks at it.
    fn stop_beside(&mut self, now: Now, commands: &mut Vec<Command>) {
        let grace = self.pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds).unwrap_or(30);
        for index in (0..self.containers.len()).rev() {
            if matches!(self.containers[index].kind, Kind::Sidecar | Kind::Ephemeral) {
                self.stop_container(now, index, seconds(grace), commands);
            }
        }
    }

    /// Gives address and volumes back once nothing runs.
    fn release(&mut self, commands: &mut Vec<Command>) {
        let holds = matches!(self.setup, SetupState::Done | SetupState::Failed { .. } | SetupState::UnderWay);
        if holds && !self.releasing && self.is_stopped() {
            self.releasing = true;
            let goes_on = self.terminal.is_none() && matches!(self.ending, Some(Ending::NodeStopping));
            commands.push(if goes_on { Command::Leave } else { Command::Release });
        }
    }

    /// The phase that the pod ends in by itself, when it has.
    fn terminal_phase(&self) -> Option<&'static str> {
        let failed_init = self.containers.iter().any(|container| {
            container.kind == Kind::Init
                && matches!(&container.state, State::Ended { terminated, .. }
                    if terminated.code != 0 && container.is_over(terminated.code))
        });
        if failed_init && !self.initialized {
            return Some("Failed");
        }
        let mut all_well = true;
        let mut any = false;
        for container in self.containers.iter().filter(|container| container.kind == Kind::Regular) {
            any = true;
            match &container.state {
                State::Ended { terminated, .. } if container.is_over(terminated.code) => {
                    all_well &= terminated.code == 0;
                }
                _ => return None,
            }
        }
        any.then_some(if all_well { "Succeeded" } else { "Failed" })
    }
}

fn begin(container: &mut super::Container, index: Index, commands: &mut Vec<Command>) {
    let run = container.begin();
    commands.push(Command::Start { container: index, run });
}

fn event(container: Index, warning: bool, reason: &'static str, message: String) -> Command {
    Command::Event { container: Some(container), warning, reason, message }
}
