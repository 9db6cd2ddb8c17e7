//! HorizontalPodAutoscalers: how many pods there are follows from what they use (the reference's podautoscaler).
//!
//! ```text
//! the target's scale ─► pods and what they use ─► replicas (one number a metric) ─► limits ─► the scale again
//! ```
//! All of them are looked at at the same moment, every 15 s: whoever is asked for measures collects them once for all, and
//! what was measured is acted on at once. A new or changed object is looked at when it is seen. What was recommended and done
//! of late is remembered here and nowhere else, as in the reference.

mod limits;
mod measure;
mod others;
mod plan;
mod replicas;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use coracle_api::meta::selector::LabelSelector;
use coracle_tolerant::cut;
use k8s_openapi::api::autoscaling::v2::{HorizontalPodAutoscaler, HorizontalPodAutoscalerStatus};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::client::{self, Client, HORIZONTAL_POD_AUTOSCALERS};
use crate::discovery::Discovery;
use crate::error::chain;
use crate::events::{Record, Recorder, Subject};
use crate::informer::{Change, Informer, Key, Object as _, Pod, Store, version};
use crate::queue::{Next, Queue, Reconciler};
use crate::workload::Written;
use crate::{Error, now_in_seconds};
use limits::History;
use measure::Measures;
pub(crate) use measure::go_duration;
use others::{Asked, Others};
use plan::{Conditions, Decision, Said, Seen, WrongSelector};

/// From one look at all of them to the next (kube-controller-manager's `--horizontal-pod-autoscaler-sync-period`; tests do
/// not wait so long).
const PERIOD: Duration = if cfg!(test) { Duration::from_millis(500) } else { Duration::from_secs(15) };
/// Between reconciliations of one object in a storm.
const SPACING: Duration = Duration::from_millis(100);
/// A number that somebody else changes at the same time is written again so often.
const ATTEMPTS: u32 = 5;
const COMPONENT: &str = "horizontal-pod-autoscaler";

/// `autoscaling/v1`'s Scale. What is not read is written back as it came.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
struct Scale {
    #[serde(default)]
    spec: Replicas,
    #[serde(default)]
    status: Selected,
    #[serde(flatten)]
    rest: serde_json::Map<String, Value>,
}

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
struct Replicas {
    #[serde(default)]
    replicas: i32,
}

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
struct Selected {
    #[serde(default)]
    replicas: i32,
    #[serde(default)]
    selector: String,
}

/// What is remembered of an object.
#[derive(Debug, Clone, Default)]
struct Memory {
    uid: Arc<str>,
    history: History,
    /// By what its target selects pods.
    selector: Option<LabelSelector>,
}

/// The controller of autoscalers.
pub(crate) struct Controller {
    client: Client,
    recorder: Recorder,
    discovery: Discovery,
    queue: Queue<Key>,
    autoscalers: Arc<Store<HorizontalPodAutoscaler>>,
    written: Arc<Written<HorizontalPodAutoscalerStatus>>,
    pods: Arc<Store<Pod>>,
    /// Of those that there are.
    memory: Mutex<HashMap<Key, Memory>>,
    /// The moments at which all are looked at are counted from here.
    begun: Instant,
}

impl Controller {
    pub(crate) fn new(
        client: Client,
        recorder: Recorder,
        discovery: Discovery,
        autoscalers: &mut Informer<HorizontalPodAutoscaler>,
        pods: &Informer<Pod>,
    ) -> Arc<Self> {
        let queue: Queue<Key> = Queue::new(SPACING);
        let written = Arc::new(Written::<HorizontalPodAutoscalerStatus>::default());
        autoscalers.on_change({
            let (queue, written) = (queue.clone(), written.clone());
            move |change| {
                if matches!(change, Change::Deleted(_)) {
                    written.forget(change.object().uid());
                }
                // Its status is ours.
                let is_changed = |before: &Arc<HorizontalPodAutoscaler>| before.spec != change.object().spec;
                if !matches!(change, Change::Updated(before, _) if !is_changed(before)) {
                    queue.add(&change.object().key());
                }
            }
        });
        Arc::new(Self {
            client,
            recorder,
            discovery,
            queue,
            autoscalers: autoscalers.store(),
            written,
            pods: pods.store(),
            memory: Mutex::default(),
            begun: Instant::now(),
        })
    }

    /// How long it is until all are looked at.
    fn until_next(&self) -> Duration {
        let since = self.begun.elapsed().as_nanos() % PERIOD.as_nanos();
        PERIOD.saturating_sub(Duration::from_nanos(u64::try_from(since).unwrap_or_default()))
    }
}

impl Reconciler for Controller {
    type Key = Key;
    const NAME: &'static str = "horizontal-pod-autoscaler";
    const WORKERS: usize = 5;

    fn queue(&self) -> &Queue<Key> {
        &self.queue
    }

    async fn reconcile(self: Arc<Self>, key: Key) -> Result<Next, Error> {
        let Some(shown) = self.autoscalers.get(&key) else {
            self.memory.lock().remove(&key);
            return Ok(Next::OnEvent);
        };
        if shown.is_deleting() {
            return Ok(Next::OnEvent);
        }
        self.scale(&key, self.newest(shown)).await?;
        Ok(Next::After(self.until_next()))
    }
}

impl Controller {
    /// The object with the status that was written last: by an older one a zero of its own may be taken for somebody else's, and the
    /// other way round.
    fn newest(&self, shown: Arc<HorizontalPodAutoscaler>) -> HorizontalPodAutoscaler {
        let after = self.written.after(shown.uid(), shown.version());
        let mut autoscaler = Arc::unwrap_or_clone(shown);
        if let Some((version, status)) = after {
            autoscaler.metadata.resource_version = Some(version.to_string());
            autoscaler.status = Some(status);
        }
        autoscaler
    }

    async fn scale(&self, key: &Key, mut seen: HorizontalPodAutoscaler) -> Result<(), Error> {
        let autoscaler = &seen;
        let now = now_in_seconds();
        let (path, scale) = match self.target(key, autoscaler).await {
            Ok(found) => found,
            Err(why) => {
                self.tell(autoscaler, Said::warning("FailedGetScale", why.clone()));
                let mut conditions = Conditions::of(autoscaler, now);
                conditions.no_scale(&why);
                let status = plan::unread(autoscaler, conditions);
                return self.write(&mut seen, status).await.map(drop);
            }
        };
        let current = scale.spec.replicas;
        let needs = plan::needs_measures(autoscaler, current, now);
        let (pods, measures) = match needs {
            true => self.measured(key, autoscaler, &scale).await,
            false => (Ok(Vec::new()), Ok(Measures::default())),
        };
        let others = match &pods {
            Ok(pods) if needs && plan::asks_others(autoscaler) => self.told(key, autoscaler, &scale, pods).await,
            _ => Others::default(),
        };
        // What was waited for has taken its time.
        let now = now_in_seconds();
        let mut decision = {
            let pods: Result<Vec<&Pod>, &WrongSelector> =
                pods.as_ref().map(|pods| pods.iter().map(|pod| &**pod).collect());
            let pods = pods.as_ref().map(Vec::as_slice).map_err(|wrong| *wrong);
            let measures = measures.as_ref().map_err(String::as_str);
            let seen = Seen { autoscaler, current, are: scale.status.replicas, pods, measures, others: &others };
            let mut history = self.remembered(key, autoscaler).history;
            let decision = plan::decide(&seen, &mut history, now, Instant::now());
            self.remember(key, autoscaler, |memory| memory.history = history);
            decision
        };
        if let Some(mark) = plan::mark(autoscaler, current, &decision)
            && !self.write(&mut seen, mark).await?
        {
            return Ok(());
        }
        let autoscaler = &seen;
        let rescaled = self.rescale(key, autoscaler, (&path, scale), &mut decision).await;
        for said in std::mem::take(&mut decision.events) {
            self.tell(autoscaler, said);
        }
        let status = plan::status(autoscaler, current, &decision, rescaled);
        self.write(&mut seen, status).await.map(drop)
    }

    /// The scale of what it is to scale, and where that is; or why it is not to be had.
    async fn target(&self, key: &Key, autoscaler: &HorizontalPodAutoscaler) -> Result<(String, Scale), String> {
        let target = &autoscaler.spec.scale_target_ref;
        let version = target.api_version.as_deref().unwrap_or_default();
        let group = match version.split('/').collect::<Vec<_>>().as_slice() {
            [group, _] => *group,
            [_] => "",
            _ => return Err(format!("unexpected GroupVersion string: {version}")),
        };
        let found = self.discovery.find(group, &target.kind).await.map_err(|error| chain(&error))?;
        let kind = found.ok_or_else(|| format!("no matches for kind {:?} in group {group:?}", target.kind))?;
        // What is in no namespace is no tenant's: the reference, which asks in the namespace, is answered so.
        if !kind.namespaced {
            return Err("the server could not find the requested resource".to_owned());
        }
        let path = format!("{}/scale", kind.path(&key.namespace, &target.name));
        let scale = self.client.get(&path).await.map_err(|error| cut(&chain(&error)).to_owned())?;
        Ok((path, scale))
    }

    /// The pods of the target, and what they use.
    async fn measured(
        &self,
        key: &Key,
        autoscaler: &HorizontalPodAutoscaler,
        scale: &Scale,
    ) -> (Result<Vec<Arc<Pod>>, WrongSelector>, Result<Measures, String>) {
        let text = scale.status.selector.as_str();
        let pods = match text {
            "" => Err(WrongSelector::missing()),
            text => match LabelSelector::parse(text) {
                Ok(selector) => self.selected(key, autoscaler, &selector),
                Err(error) => Err(WrongSelector::unreadable(&error.to_string())),
            },
        };
        let asked = plan::asks_measures(autoscaler);
        if pods.is_err() || !asked {
            return (pods, Ok(Measures::default()));
        }
        let path = client::path("metrics.k8s.io/v1beta1", "pods", &key.namespace, "");
        let measures = self.client.get(&format!("{path}?labelSelector={}", escaped(text))).await;
        (pods, measures.map_err(|error| cut(&chain(&error)).to_owned()))
    }

    /// What other servers measure.
    async fn told(&self, key: &Key, autoscaler: &HorizontalPodAutoscaler, scale: &Scale, pods: &[Arc<Pod>]) -> Others {
        let (client, discovery, selector) = (&self.client, &self.discovery, scale.status.selector.as_str());
        let pods = pods.iter().map(|pod| &*pod.key.name).collect();
        let asked = Asked { client, discovery, namespace: &key.namespace, selector, pods: &pods };
        asked.ask(autoscaler.spec.metrics.as_deref().unwrap_or_default()).await
    }

    /// The pods that are selected, if no other autoscaler's target selects any of them.
    fn selected(
        &self,
        key: &Key,
        autoscaler: &HorizontalPodAutoscaler,
        selector: &LabelSelector,
    ) -> Result<Vec<Arc<Pod>>, WrongSelector> {
        self.remember(key, autoscaler, |memory| memory.selector = Some(selector.clone()));
        let pods = self.pods.select(&key.namespace, |pod| selector.matches(&*pod.labels));
        let others: Vec<(Key, LabelSelector)> = {
            let memory = self.memory.lock();
            let others = memory.iter().filter(|(other, _)| other.namespace == key.namespace && *other != key);
            others.filter_map(|(other, memory)| Some((other.clone(), memory.selector.clone()?))).collect()
        };
        let shares = |selector: &LabelSelector| pods.iter().any(|pod| selector.matches(&*pod.labels));
        match others
            .into_iter()
            .filter(|(_, selector)| shares(selector))
            .map(|(other, _)| other)
            .min_by(|a, b| a.name.cmp(&b.name))
        {
            None => Ok(pods),
            Some(other) => {
                let mut both = [key, &other];
                both.sort_by_key(|key| key.name.clone());
                let words = both.map(|key| format!("{{{} {}}}", key.name, key.namespace));
                Err(WrongSelector::ambiguous(&selector.to_string(), &format!("[{}]", words.join(" "))))
            }
        }
    }

    /// Writes the number that was decided on. Says whether it was written.
    async fn rescale(
        &self,
        key: &Key,
        autoscaler: &HorizontalPodAutoscaler,
        (path, mut scale): (&str, Scale),
        decision: &mut Decision,
    ) -> bool {
        let Some(rescale) = decision.rescale.take() else { return false };
        let (current, desired) = (scale.spec.replicas, decision.desired);
        let mut attempt = 1;
        // Whether an attempt may have been carried out without an answer.
        let mut may_be = false;
        let written = loop {
            scale.spec.replicas = desired;
            let error = match self.client.put_at(&format!("{path}?{}", client::MANAGER), &scale).await {
                Ok(_) => break Ok(()),
                Err(error) => error,
            };
            may_be |= client::is_unknown(&error);
            if attempt >= ATTEMPTS || !(client::is_conflict(&error) || client::is_unknown(&error)) {
                break Err(error);
            }
            // Somebody else was faster; or nobody knows, and then it may be written already.
            tokio::time::sleep(Duration::from_millis(10 << attempt)).await;
            attempt += 1;
            match self.client.get::<Scale>(path).await {
                Ok(latest) if client::is_unknown(&error) && latest.spec.replicas == desired => break Ok(()),
                Ok(latest) => scale = latest,
                Err(_) => {}
            }
        };
        match written {
            Ok(()) => {
                let has_rules = autoscaler.spec.behavior.is_some();
                if has_rules {
                    self.remember(key, autoscaler, |memory| memory.history.changed(current, desired, Instant::now()));
                }
                decision.rescaled(&rescale, autoscaler, current);
                true
            }
            Err(error) => {
                decision.not_rescaled(&rescale, current, &chain(&error), may_be);
                false
            }
        }
    }

    fn remembered(&self, key: &Key, autoscaler: &HorizontalPodAutoscaler) -> Memory {
        let memory = self.memory.lock();
        memory.get(key).filter(|memory| *memory.uid == *autoscaler.uid()).cloned().unwrap_or_default()
    }

    /// Changes what is remembered; nothing of one that had the name before.
    fn remember(&self, key: &Key, autoscaler: &HorizontalPodAutoscaler, change: impl FnOnce(&mut Memory)) {
        let mut memory = self.memory.lock();
        let mine = memory.entry(key.clone()).or_default();
        if *mine.uid != *autoscaler.uid() {
            *mine = Memory { uid: autoscaler.uid().into(), ..Memory::default() };
        }
        change(mine);
    }

    /// Writes the status of the object as it was seen, which is what was decided on: of another it is refused, and looked at again.
    /// Says whether the object is still there.
    async fn write(
        &self,
        autoscaler: &mut HorizontalPodAutoscaler,
        status: HorizontalPodAutoscalerStatus,
    ) -> Result<bool, Error> {
        let before = autoscaler.status.clone().unwrap_or_default();
        let before = HorizontalPodAutoscalerStatus {
            current_replicas: before.current_replicas.filter(|replicas| *replicas != 0),
            ..before
        };
        if before == status {
            return Ok(true);
        }
        // A merge patch takes away what is null only.
        let mut wanted = json!({"currentReplicas": null, "currentMetrics": null, "lastScaleTime": null});
        if let (Some(wanted), Ok(Value::Object(status))) = (wanted.as_object_mut(), serde_json::to_value(&status)) {
            wanted.extend(status);
        }
        let patch = json!({
            "metadata": {"uid": autoscaler.uid(), "resourceVersion": autoscaler.metadata.resource_version},
            "status": wanted,
        });
        let key = autoscaler.key();
        match self.client.patch_through_status(HORIZONTAL_POD_AUTOSCALERS, &key, &patch).await {
            Err(error) if client::is_not_found(&error) => Ok(false),
            Err(source) => Err(Error::Api { what: "write the status of a HorizontalPodAutoscaler", source }),
            Ok(made) => {
                let made = version(made.metadata.resource_version.as_deref());
                self.written.note(autoscaler.uid(), made, status.clone());
                // Its event may have come before.
                if self.autoscalers.get(&key).is_none_or(|now| now.uid() != autoscaler.uid() || now.version() >= made) {
                    self.written.forget(autoscaler.uid());
                }
                autoscaler.metadata.resource_version = Some(made.to_string());
                autoscaler.status = Some(status);
                Ok(true)
            }
        }
    }

    fn tell(&self, autoscaler: &HorizontalPodAutoscaler, said: Said) {
        let (key, uid) = (autoscaler.key(), autoscaler.uid().into());
        let subject =
            Subject { api_version: "autoscaling/v2".into(), kind: "HorizontalPodAutoscaler".into(), key, uid };
        let Said { warning, reason, message } = said;
        self.recorder.record(Record { subject, component: COMPONENT, warning, reason, message });
    }
}

/// A value of a query.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => escaped.push(char::from(byte)),
            other => escaped.push_str(&format!("%{other:02X}")),
        }
    }
    escaped
}
