//! Jobs: pods until enough of them have succeeded (kubernetes-api §20.5).
//!
//! [`plan`] decides. This shell creates and deletes what it says, plans once more with what came of that, writes the status
//! in the version that it planned with, and only then removes the finalizers of pods that the status names. What is asked
//! for and not seen yet ([`InFlight`], [`Memory`], [`Written`]) would be seen again after a restart; only back-off is lost.

mod backoff;
mod indexes;
mod memory;
mod orphans;
mod plan;
mod policy;
mod template;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use serde_json::{Value, json};

use crate::client::{self, Client, JOBS, PODS};
use crate::error::chain;
use crate::events::Recorder;
use crate::informer::{Change, Index, Informer, Key, Object as _, Pod, Store, controller, version};
use crate::queue::{Next, Queue, Reconciler};
use crate::workload::{self, Asked, Flight, InFlight, Owner, Pods, Row, Settle, Written};
use crate::{Error, selector};
use memory::Memory;
use plan::{BURST, Create, Observed, Plan, is_tracked};
use template::Template;

pub(crate) use orphans::Controller as Orphans;
pub(crate) use plan::finished;

/// The finalizer of pods that are not counted yet.
const TRACKING: &str = "batch.kubernetes.io/job-tracking";
/// The value of `spec.managedBy` that means this controller.
const MANAGER: &str = "kubernetes.io/job-controller";
/// Names that are tried for one pod (as the API server does for `generateName`).
const NAMES: u32 = 8;

const ROW: Row = Row { resource: JOBS, api_version: "batch/v1", kind: "Job", component: "job-controller" };

/// The controller of Jobs.
pub(crate) struct Controller {
    client: Client,
    queue: Queue<Key>,
    jobs: Arc<Store<Job>>,
    pods: Pods,
    memory: Arc<Memory>,
    written: Arc<Written<JobStatus>>,
    settle: Settle,
}

impl Controller {
    /// Listens to what concerns Jobs.
    pub(crate) fn new(
        client: Client,
        recorder: Recorder,
        jobs: &mut Informer<Job>,
        pods: &mut Informer<Pod>,
    ) -> Arc<Self> {
        let queue = Queue::sparing(Duration::from_millis(20));
        let in_flight = Arc::new(InFlight::default());
        let (memory, written) = (Arc::new(Memory::default()), Arc::new(Written::default()));
        jobs.on_change({
            let (queue, in_flight, memory, written) =
                (queue.clone(), in_flight.clone(), memory.clone(), written.clone());
            move |change| {
                let job = change.object();
                if matches!(change, Change::Deleted(_)) || finished(job).is_some() {
                    in_flight.forget(job.uid());
                    memory.forget(job.uid());
                    written.forget(job.uid());
                } else if !written.is(job.uid(), job.version()) {
                    queue.add(&job.key());
                }
            }
        });
        pods.on_change({
            let (queue, in_flight, memory, jobs) = (queue.clone(), in_flight.clone(), memory.clone(), jobs.store());
            move |change| {
                let pod = change.object();
                let gone = matches!(change, Change::Deleted(_));
                let owner = controller(Some(&pod.owners)).filter(|owner| owner.kind == ROW.kind);
                if let Some(owner) = owner {
                    in_flight.seen(&owner.uid, &pod.key.name, &pod.uid, gone || pod.deleting.is_some());
                    if gone || !is_tracked(pod) {
                        memory.seen(&owner.uid, &pod.uid);
                    }
                }
                let now = workload::workload_of(ROW, pod);
                if let Some(former) = change.before().and_then(|before| workload::workload_of(ROW, before))
                    && now.as_ref() != Some(&former)
                {
                    queue.add(&former);
                }
                match now {
                    Some(job) => queue.add(&job),
                    // One that nobody controls may be adopted.
                    None if controller(Some(&pod.owners)).is_none() && !gone => {
                        for job in jobs.select(&pod.key.namespace, |job| selects(job, pod)) {
                            queue.add(&job.key());
                        }
                    }
                    None => {}
                }
            }
        });
        let pods = Pods { client: client.clone(), recorder, store: pods.store(), in_flight, row: ROW };
        Arc::new(Self { client, queue, jobs: jobs.store(), pods, memory, written, settle: Settle::default() })
    }
}

impl Reconciler for Controller {
    type Key = Key;
    const NAME: &'static str = "job";
    const WORKERS: usize = 16;

    fn queue(&self) -> &Queue<Key> {
        &self.queue
    }

    async fn reconcile(self: Arc<Self>, key: Key) -> Result<Next, Error> {
        let Some(shown) = self.jobs.get(&key) else { return Ok(Next::OnEvent) };
        let job = self.newest(shown);
        let job = &*job;
        if finished(job).is_some() || is_managed_elsewhere(job) {
            return Ok(Next::OnEvent);
        }
        let owner = Owner { key: &key, uid: job.uid() };
        let mode = job.spec.as_ref().and_then(|spec| spec.completion_mode.as_deref());
        if !matches!(mode, None | Some("NonIndexed" | "Indexed")) {
            let message = "Skipped Job sync because completion mode is unknown".to_owned();
            self.pods.event(owner, true, "UnknownCompletionMode", message);
            return Ok(Next::OnEvent);
        }
        let (plan, flight) = self.look(job);
        if self.claim(job, &plan).await? {
            // It is one's own by the event that tells so.
            return Ok(Next::OnEvent);
        }
        // What turns out not to be there was counted, and no event will tell of it.
        let mut more = self.look_for(owner, &flight, &plan).await?;
        let mut failure = None;
        let plan = if plan.create.is_empty() && plan.delete.is_empty() {
            plan
        } else {
            let full = plan.create.len().max(plan.delete.len()) >= BURST;
            let done = match plan.create.is_empty() {
                false => self.create(job, plan.create).await,
                true => self.delete(owner, &plan.delete, plan.strip).await,
            };
            more |= full && done.is_ok();
            failure = done.err();
            self.look(job).0
        };
        if failure.is_none()
            && !more
            && may_wait(job, &plan)
            && let Some(wait) = self.settle.wait(owner.uid)
        {
            return Ok(Next::After(plan.check_after.map_or(wait, |after| after.min(wait))));
        }
        self.settle.done(owner.uid);
        self.write(owner, job, &plan).await?;
        if !plan.untrack.is_empty() {
            self.untrack(owner, &plan.untrack).await.map_err(Error::api("remove the finalizer of a pod"))?;
            more = true;
        }
        match failure {
            // All further creations would fail as well; the namespace takes the Job with it.
            Some(error) if client::is_namespace_terminating(&error) => Ok(Next::OnEvent),
            Some(source) => Err(Error::Api { what: "create or delete pods", source }),
            None if more => Ok(Next::Again),
            None => {
                // What is asked for is looked for should it not be seen.
                let flight = self.pods.in_flight.of(owner.uid);
                let unseen = (!flight.sent.is_empty() || !flight.deleting.is_empty()).then_some(workload::OVERDUE);
                Ok(plan.check_after.into_iter().chain(unseen).min().map_or(Next::OnEvent, Next::After))
            }
        }
    }
}

impl Controller {
    /// The Job with the status that was written last.
    fn newest(&self, shown: Arc<Job>) -> Arc<Job> {
        let Some((version, status)) = self.written.after(shown.uid(), shown.version()) else { return shown };
        let mut job = (*shown).clone();
        job.metadata.resource_version = Some(version.to_string());
        job.status = Some(status);
        Arc::new(job)
    }

    /// Plans with what is there now.
    fn look(&self, job: &Job) -> (Plan, Flight) {
        let uid = job.uid();
        // Before the store: what leaves them is in the store by then.
        let flight = self.pods.in_flight.of(uid);
        let untracked = self.memory.untracked(uid);
        let owned = self.pods.store.controlled_by(uid);
        let names: HashSet<Arc<str>> = owned.iter().map(|pod| pod.key.name.clone()).collect();
        let flight = flight.without(&names);
        let plan = plan::plan(&Observed {
            job,
            owned: &owned,
            orphans: &self.pods.store.by(Index::Orphan, &job.key().namespace),
            sent: &flight.sent,
            unknown: &flight.unknown,
            deleting: &flight.deleting,
            untracked: &untracked,
            backoff: self.memory.backoff(uid),
            now: Timestamp::now(),
        });
        (plan, flight)
    }

    /// Takes pods over that match and belong to nobody, and lets go of those that no longer match; whether there were any.
    async fn claim(&self, job: &Job, plan: &Plan) -> Result<bool, Error> {
        if !plan.adopt.is_empty() {
            workload::may_adopt(&self.client, ROW.resource, &job.key(), job.uid()).await?;
        }
        for pod in &plan.adopt {
            let owners: Vec<_> = pod.owners.iter().cloned().chain([owner_reference(job)]).collect();
            let others = pod.finalizers.iter().filter(|finalizer| *finalizer != TRACKING);
            let finalizers: Vec<_> = others.map(String::as_str).chain([TRACKING]).collect();
            self.set_owners(pod, &owners, &finalizers, "adopt a pod").await?;
        }
        for pod in &plan.release {
            let owners: Vec<_> = pod.owners.iter().filter(|owner| owner.uid != job.uid()).cloned().collect();
            let finalizers: Vec<_> =
                pod.finalizers.iter().map(String::as_str).filter(|finalizer| *finalizer != TRACKING).collect();
            self.set_owners(pod, &owners, &finalizers, "release a pod").await?;
        }
        Ok(!plan.adopt.is_empty() || !plan.release.is_empty())
    }

    /// Writes owners and finalizers of a pod in the version that was decided on: one is not there without the other.
    async fn set_owners(
        &self,
        pod: &Pod,
        owners: &[OwnerReference],
        finalizers: &[&str],
        what: &'static str,
    ) -> Result<(), Error> {
        let patch = json!({"metadata": {
            "uid": pod.uid, "resourceVersion": pod.version.to_string(),
            "ownerReferences": owners, "finalizers": finalizers,
        }});
        match self.client.patch(PODS, &pod.key, &patch).await {
            Err(error) if client::is_not_found(&error) => Ok(()),
            other => other.map(drop).map_err(Error::api(what)),
        }
    }

    /// Looks for pods whose creation has an unknown outcome and that are not asked for again, and for those that nobody has
    /// seen; whether some are not there.
    async fn look_for(&self, owner: Owner<'_>, flight: &Flight, plan: &Plan) -> Result<bool, Error> {
        let again: HashSet<&Arc<str>> = plan.create.iter().filter_map(|create| create.name.as_ref()).collect();
        let others = flight.unknown.iter().filter(|name| !again.contains(name));
        let names: Vec<Arc<str>> = others.chain(&flight.overdue).cloned().collect();
        self.pods.look_for(owner, &names).await
    }

    async fn create(&self, job: &Job, creates: Vec<Create>) -> Result<(), kube::Error> {
        let Some(template) = Template::of(job)? else { return Ok(()) };
        let template = &template;
        workload::slow_start(creates.into_iter().map(|create| self.create_one(job, template, create))).await
    }

    /// Creates a pod, under the name that was asked for before if there is one.
    async fn create_one(&self, job: &Job, template: &Template<'_>, mut create: Create) -> Result<(), kube::Error> {
        let key = job.key();
        let owner = Owner { key: &key, uid: job.uid() };
        let mut names = NAMES;
        loop {
            let again = create.name.is_some();
            let name = create.name.take().unwrap_or_else(|| template.name(create.index).into());
            let error = match self.pods.ask(owner, &name, None, &template.pod(&name, &create)?).await {
                Asked::Made => {
                    self.pods.event(owner, false, "SuccessfulCreate", format!("Created pod: {name}"));
                    return Ok(());
                }
                Asked::Unknown(error) => return Err(error),
                Asked::Refused(error) => error,
            };
            if again {
                // It may have been made when nobody knew.
                match self.pods.is_ours(owner, &Key { namespace: key.namespace.clone(), name: name.clone() }).await {
                    Ok(false) => {}
                    Ok(true) => {
                        self.pods.in_flight.done(owner.uid, &name);
                        return Ok(());
                    }
                    Err(unknown) => {
                        self.pods.in_flight.unknown(owner.uid, &name);
                        return Err(unknown);
                    }
                }
            }
            names -= 1;
            if client::is_conflict(&error) && names > 0 {
                continue;
            }
            if !client::is_namespace_terminating(&error) {
                self.pods.event(owner, true, "FailedCreate", format!("Error creating: {}", chain(&error)));
            }
            return Err(error);
        }
    }

    /// Gives pods up. Those that count for nothing lose their finalizer first.
    async fn delete(&self, owner: Owner<'_>, pods: &[Arc<Pod>], strip: bool) -> Result<(), kube::Error> {
        if strip {
            // As they were seen: one that has ended meanwhile is to be counted.
            let tracked = pods.iter().filter(|pod| is_tracked(pod));
            workload::side_by_side(tracked.map(|pod| self.untrack_one(owner, pod, Some(pod.version)))).await?;
        }
        workload::side_by_side(pods.iter().map(|pod| self.delete_one(owner, pod))).await
    }

    async fn delete_one(&self, owner: Owner<'_>, pod: &Pod) -> Result<(), kube::Error> {
        let deleted = self.pods.give_up(owner, pod).await;
        match &deleted {
            Ok(()) => self.pods.event(owner, false, "SuccessfulDelete", format!("Deleted pod: {}", pod.key.name)),
            // As long as nobody knows it is at work, and nothing takes its place: it is deleted once more.
            Err(error) if client::is_unknown(error) => self.pods.in_flight.deleted(owner.uid, &pod.uid),
            Err(error) => self.pods.event(owner, true, "FailedDelete", format!("Error deleting: {}", chain(error))),
        }
        deleted
    }

    /// Removes the finalizers of pods.
    async fn untrack(&self, owner: Owner<'_>, pods: &[Arc<Pod>]) -> Result<(), kube::Error> {
        workload::side_by_side(pods.iter().map(|pod| self.untrack_one(owner, pod, None))).await
    }

    /// Removes the finalizer of a pod; of one in this version, if any.
    async fn untrack_one(&self, owner: Owner<'_>, pod: &Pod, version: Option<u64>) -> Result<(), kube::Error> {
        // Its event may come before the answer.
        self.memory.untrack(owner.uid, &pod.uid);
        let removed = remove_finalizer(&self.client, pod, version).await;
        // What nobody knows is as good as not done: it is asked for again, and names no pod twice.
        if removed.is_err() {
            self.memory.seen(owner.uid, &pod.uid);
        }
        // The event may have come before the entry above.
        if self.pods.store.get(&pod.key).is_none_or(|now| now.uid != pod.uid || !is_tracked(&now)) {
            self.memory.seen(owner.uid, &pod.uid);
        }
        removed
    }

    /// Writes the status, and remembers what goes with it.
    async fn write(&self, owner: Owner<'_>, job: &Job, plan: &Plan) -> Result<(), Error> {
        let status = &plan.status;
        if !is_written(job.status.as_ref(), status) {
            let metadata = json!({"uid": owner.uid, "resourceVersion": job.metadata.resource_version});
            let patch = json!({"metadata": metadata, "status": patch_of(status)});
            match self.client.patch_through_status(JOBS, owner.key, &patch).await {
                Ok(made) => {
                    let made = version(made.metadata.resource_version.as_deref());
                    self.written.note(owner.uid, made, status.clone());
                    // Its event may have come before.
                    if self.jobs.get(owner.key).is_none_or(|now| now.uid() != owner.uid || now.version() >= made) {
                        self.written.forget(owner.uid);
                    }
                }
                Err(error) if client::is_not_found(&error) => return Ok(()),
                Err(source) => return Err(Error::Api { what: "write the status of a Job", source }),
            }
        }
        if plan.status.completion_time.is_none() && self.jobs.get(owner.key).is_some() {
            self.memory.set_backoff(owner.uid, plan.backoff);
        }
        for told in &plan.told {
            self.pods.event(owner, told.warning, told.reason, told.message.clone());
        }
        Ok(())
    }
}

/// Removes the finalizer of a pod, which may be gone; of one in this version, if any.
async fn remove_finalizer(client: &Client, pod: &Pod, version: Option<u64>) -> Result<(), kube::Error> {
    let mut patch = json!({"metadata": {"uid": pod.uid, "$deleteFromPrimitiveList/finalizers": [TRACKING]}});
    if let Some(version) = version {
        patch["metadata"]["resourceVersion"] = version.to_string().into();
    }
    match client.merge(PODS, &pod.key, &patch).await {
        Err(error) if client::is_not_found(&error) => Ok(()),
        other => other.map(drop),
    }
}

fn selects(job: &Job, pod: &Pod) -> bool {
    let selector = job.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    selector.is_some_and(|selector| selector::matches(selector, &pod.labels))
}

/// Whether another controller takes care of it.
fn is_managed_elsewhere(job: &Job) -> bool {
    let manager = job.spec.as_ref().and_then(|spec| spec.managed_by.as_deref());
    manager.is_some_and(|manager| manager != MANAGER)
}

/// Whether the status says only how many pods are at work or have ended, while others go on: more will come of it soon.
fn may_wait(job: &Job, plan: &Plan) -> bool {
    let started = job.status.as_ref().is_some_and(|status| status.start_time.is_some());
    started
        && !plan.ends
        && plan.told.is_empty()
        && plan.status.active.is_some_and(|active| active > 0)
        && (!plan.untrack.is_empty() || !is_written(job.status.as_ref(), &plan.status))
}

/// Whether writing `status` would change nothing.
fn is_written(before: Option<&JobStatus>, status: &JobStatus) -> bool {
    let normal = |status: &JobStatus| {
        let mut status = status.clone();
        for count in [&mut status.active, &mut status.succeeded, &mut status.failed] {
            *count = count.and_then(workload::unless_zero);
        }
        status.completed_indexes = status.completed_indexes.filter(|indexes| !indexes.is_empty());
        status.conditions = status.conditions.filter(|conditions| !conditions.is_empty());
        status
    };
    before.is_some_and(|before| normal(before) == normal(status))
}

/// The status as a merge patch, what is absent as null.
fn patch_of(status: &JobStatus) -> Value {
    let waiting = status.uncounted_terminated_pods.as_ref();
    json!({
        "active": status.active.and_then(workload::unless_zero),
        "ready": status.ready,
        "terminating": status.terminating,
        "succeeded": status.succeeded.and_then(workload::unless_zero),
        "failed": status.failed.and_then(workload::unless_zero),
        "completedIndexes": status.completed_indexes,
        "failedIndexes": status.failed_indexes,
        "startTime": status.start_time,
        "completionTime": status.completion_time,
        "conditions": status.conditions,
        "uncountedTerminatedPods": waiting.map(|waiting| json!({
            "succeeded": waiting.succeeded, "failed": waiting.failed,
        })),
    })
}

fn owner_reference(job: &Job) -> OwnerReference {
    workload::owner_reference(ROW.api_version, ROW.kind, job.metadata.name.as_deref(), job.uid())
}
