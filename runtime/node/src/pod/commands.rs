//! Carrying out what the state machine says. Nothing here waits; what takes time is spawned.

use std::net::IpAddr;
use std::sync::Arc;

use coracle_policy::Workload;
use k8s_openapi::api::core::v1::Pod;
use tokio_util::sync::CancellationToken;

use super::core::{Command, Input, part_of};
use super::slot::{Container, Slot, State};
use super::supported;
use super::table::{Alarm, Pods};
use crate::annotations::Wishes;
use crate::events::Record;
use crate::logs;
use crate::network::{GuestNetwork, Why};

impl Pods {
    /// Carries out one command. Some are done at once; what follows from them is returned.
    pub(super) fn execute(self: &Arc<Self>, slot: &Arc<Slot>, state: &mut State, command: Command) -> Option<Input> {
        match command {
            Command::SetUp { previous } => self.set_up(slot, state, previous),
            Command::RefreshVolumes => {
                self.refresh_volumes(slot);
                None
            }
            Command::Start { container, run } => {
                let cancel = CancellationToken::new();
                *state.containers.get_mut(container)? = Container::Starting { run, cancel: cancel.clone() };
                self.context.tasks.spawn(self.clone().start(slot.clone(), container, run, cancel));
                None
            }
            Command::StartProbe { container, run, kind } => {
                self.start_probe(slot, state, container, run, kind);
                None
            }
            Command::Stop { container, run, grace } => self.stop(slot, state, container, run, grace),
            Command::Hurry { container, run, grace } => {
                self.hurry(state, container, run, grace);
                None
            }
            Command::Event { container, warning, reason, message } => {
                let name = container.and_then(|index| state.core.containers().get(index));
                let list = container.map(|index| part_of(state.core.pod(), index).name());
                let path = list.zip(name).map(|(list, container)| format!("spec.{list}{{{}}}", container.name));
                self.event(slot, path, warning, reason, message);
                None
            }
            Command::Release => self.release(slot, state),
            Command::Leave => {
                self.leave(slot, state);
                Some(Input::Released)
            }
            Command::Finalize => {
                state.report.finalize();
                None
            }
            Command::Forget => {
                self.forget(slot, state);
                None
            }
        }
    }

    /// Records an event on a pod.
    pub(super) fn event(
        &self,
        slot: &Slot,
        field_path: Option<String>,
        warning: bool,
        reason: &'static str,
        message: String,
    ) {
        self.context.recorder.record(Record {
            kind: "Pod",
            namespace: slot.namespace.clone(),
            name: slot.name.clone(),
            uid: slot.uid.clone(),
            field_path,
            warning,
            reason,
            message,
        });
    }

    fn set_up(self: &Arc<Self>, slot: &Arc<Slot>, state: &mut State, previous: Option<IpAddr>) -> Option<Input> {
        let pod = state.core.pod().clone();
        if let Err(refusal) = supported::pod(&pod) {
            return Some(Input::SetUp(Err(refusal)));
        }
        if state.network.is_none() {
            match self.network_of(slot, &pod, previous) {
                Ok(network) => state.network = Some(network),
                Err(message) => return Some(Input::SetUp(Err(message))),
            }
        }
        for warning in supported::ignored(&pod) {
            self.event(slot, None, true, "NotSupported", warning);
        }
        let address = state.network.as_ref().map(|network| network.address.pod)?;
        if !Self::needs_objects(&pod) {
            return Some(Input::SetUp(Ok(address)));
        }
        let (pods, slot) = (self.clone(), slot.clone());
        self.context.tasks.spawn(async move {
            let checked = pods.check_volumes(&slot, &pod).await;
            pods.input(&slot, Input::SetUp(checked.map(|()| address)));
        });
        None
    }

    fn network_of(
        self: &Arc<Self>,
        slot: &Arc<Slot>,
        pod: &Pod,
        previous: Option<IpAddr>,
    ) -> Result<Arc<GuestNetwork>, String> {
        let address = self.context.network.table.allocate(previous).map_err(|error| error.to_string())?;
        self.context.network.table.identify(Workload::of(pod, address.pod));
        let spec = pod.spec.as_ref();
        let hostname = spec.and_then(|spec| spec.hostname.clone()).unwrap_or_else(|| slot.name.to_string());
        // As in the hosts file that a kubelet writes; the first is the name that programs see.
        let full = spec.and_then(|spec| spec.subdomain.as_deref()).filter(|subdomain| !subdomain.is_empty());
        let full = full.map(|subdomain| format!("{hostname}.{subdomain}.{}.svc.cluster.local", slot.namespace));
        let mut hosts = vec![(hostname, address.pod)];
        hosts.extend(full.map(|name| (name, address.pod)));
        for alias in spec.and_then(|spec| spec.host_aliases.as_deref()).unwrap_or_default() {
            if let Ok(ip) = alias.ip.parse::<IpAddr>() {
                hosts.extend(alias.hostnames.iter().flatten().map(|name| (name.clone(), ip)));
            }
        }
        let (pods, told) = (Arc::downgrade(self), Arc::downgrade(slot));
        let denied = Box::new(move |destination: &str, why: Why| {
            if let (Some(pods), Some(slot)) = (pods.upgrade(), told.upgrade()) {
                let (reason, why) = match why {
                    Why::Policies => ("PolicyDenied", "network policies do not allow it".to_owned()),
                    Why::Near => (
                        "EgressDenied",
                        "it leads to the node's own machine or near it, where no pod may go".to_owned(),
                    ),
                    Why::NotGranted => {
                        let annotation = crate::annotations::EGRESS;
                        let why = format!(
                            "it is outside of the cluster, and the pod has no annotation {annotation}: \"true\""
                        );
                        ("EgressDenied", why)
                    }
                };
                let message = format!("A connection to {destination} was refused: {why}");
                pods.event(&slot, None, true, reason, message);
            }
        });
        Ok(Arc::new(GuestNetwork {
            network: self.context.network.clone(),
            address,
            namespace: slot.namespace.clone(),
            hosts,
            egress: may_leave(pod).into(),
            denied,
            told: Default::default(),
            flows: Default::default(),
        }))
    }

    fn leave(&self, slot: &Slot, state: &mut State) {
        if let Some(network) = state.network.take() {
            self.context.network.forget(network.address.pod);
            self.context.network.table.release(network.address.pod);
        }
        for probe in state.probes.drain(..) {
            self.timers.cancel((slot.uid.clone(), Alarm::Probe(probe.container, probe.kind)));
        }
    }

    fn release(self: &Arc<Self>, slot: &Arc<Slot>, state: &mut State) -> Option<Input> {
        self.leave(slot, state);
        if !slot.has_files() {
            self.let_go_of_volumes(slot);
            return Some(Input::Released);
        }
        let (pods, slot) = (self.clone(), slot.clone());
        self.context.tasks.spawn(async move {
            pods.remove_files(&slot).await;
            pods.input(&slot, Input::Released);
        });
        None
    }

    fn forget(self: &Arc<Self>, slot: &Arc<Slot>, state: &mut State) {
        self.retries(&mut state.report, false);
        self.context.objects.forget(&slot.uid);
        self.let_go_of_volumes(slot);
        for alarm in [Alarm::Wake, Alarm::Settled, Alarm::Report, Alarm::Tokens] {
            self.timers.cancel((slot.uid.clone(), alarm));
        }
        let dir = logs::pod_dir(&self.context.logs_dir, &slot.namespace, &slot.name, &slot.uid);
        // A pod that had ended in an earlier life of the node was never set up, so nothing was released either.
        let files = slot.has_files().then(|| self.context.pods_dir.join(&*slot.uid));
        let slot = slot.clone();
        self.context.tasks.spawn_blocking(move || {
            let _turn = slot.ends.lock();
            // Most pods have printed nothing.
            let _ = std::fs::remove_dir_all(dir);
            files.map(|files| crate::beneath::remove_tree(&files))
        });
    }
}

/// Whether a pod may leave the cluster. What is wrong with its annotations is told when a container is started.
pub(super) fn may_leave(pod: &Pod) -> bool {
    Wishes::of(pod).is_ok_and(|wishes| wishes.egress)
}
