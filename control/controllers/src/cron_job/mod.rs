//! CronJobs: a Job at each moment of a schedule (kubernetes-api §20.6).
//!
//! [`plan`] decides, this shell does it. A Job is named after its moment, so that none is made twice, whatever is known
//! of the attempts before. Schedules and time zones are `coracle_api::schedule`'s; one without a zone is in UTC.

mod due;
mod plan;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use coracle_api::schedule::Zone;
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{CronJob, CronJobStatus, Job};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};

use crate::Error;
use crate::client::{self, CRON_JOBS, Client, DeleteOptions, JOBS, Meta};
use crate::error::chain;
use crate::events::{Record, Recorder, Subject, Told};
use crate::informer::{Change, Informer, Key, Object as _, Store, controller, version};
use crate::queue::{Next, Queue, Reconciler};
use crate::workload::{self, Created, Written};
use plan::{Observed, Start};

const COMPONENT: &str = "cronjob-controller";
/// Annotation of a Job with the moment that it is for.
const SCHEDULED: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";

/// The controller of CronJobs.
pub(crate) struct Controller {
    client: Client,
    recorder: Recorder,
    queue: Queue<Key>,
    crons: Arc<Store<CronJob>>,
    jobs: Arc<Store<Job>>,
    written: Arc<Written<CronJobStatus>>,
}

impl Controller {
    /// Listens to what concerns CronJobs.
    pub(crate) fn new(
        client: Client,
        recorder: Recorder,
        crons: &mut Informer<CronJob>,
        jobs: &mut Informer<Job>,
    ) -> Arc<Self> {
        let queue = Queue::new(Duration::from_millis(20));
        let written = Arc::new(Written::<CronJobStatus>::default());
        crons.on_change({
            let (queue, written) = (queue.clone(), written.clone());
            move |change| {
                let cron = change.object();
                if matches!(change, Change::Deleted(_)) {
                    written.forget(cron.uid());
                } else if !written.is(cron.uid(), cron.version()) {
                    enqueue(&queue, change.before(), cron);
                }
            }
        });
        jobs.on_change({
            let queue = queue.clone();
            move |change| {
                let now = cron_of(change.object());
                if let Some(former) = change.before().and_then(|before| cron_of(before))
                    && now.as_ref() != Some(&former)
                {
                    queue.add(&former);
                }
                now.iter().for_each(|cron| queue.add(cron));
            }
        });
        let (crons, jobs) = (crons.store(), jobs.store());
        Arc::new(Self { client, recorder, queue, crons, jobs, written })
    }
}

/// A new schedule begins with its next moment, not with those that it would have had.
fn enqueue(queue: &Queue<Key>, before: Option<&Arc<CronJob>>, cron: &CronJob) {
    let other = |before: &CronJob| {
        (&before.spec.schedule, &before.spec.time_zone) != (&cron.spec.schedule, &cron.spec.time_zone)
    };
    if before.is_some_and(|before| other(before))
        && let Ok(schedule) = due::schedule(cron)
    {
        let status = cron.status.clone().unwrap_or_default();
        if let Some(wait) = due::wait(cron, &status, &schedule, Timestamp::now()) {
            queue.add_after(&cron.key(), wait);
        }
        return;
    }
    queue.add(&cron.key());
}

impl Reconciler for Controller {
    type Key = Key;
    const NAME: &'static str = "cronjob";
    const WORKERS: usize = 8;

    fn queue(&self) -> &Queue<Key> {
        &self.queue
    }

    async fn reconcile(self: Arc<Self>, key: Key) -> Result<Next, Error> {
        let Some(shown) = self.crons.get(&key) else { return Ok(Next::OnEvent) };
        let cron = self.newest(shown);
        let cron = &*cron;
        let jobs = self.jobs.controlled_by(cron.uid());
        let gone = self.gone(cron, &jobs).await?;
        let plan = plan::plan(&Observed { cron, jobs: &jobs, gone: &gone, now: Timestamp::now() });
        let (mut status, mut told) = (plan.status, plan.told);
        // Of what is not there any more nobody could say that its moment is over.
        let said = cron.status.as_ref().and_then(|status| status.last_schedule_time.as_ref());
        if !plan.forget.is_empty() && status.last_schedule_time.as_ref() != said {
            self.write(&key, cron, &status).await?;
            told.into_iter().for_each(|told| self.event(cron, told));
            return Ok(Next::Again);
        }
        for job in &plan.forget {
            self.delete(&job.key(), job.uid(), &mut status, &mut told).await;
        }
        let started = match plan.start {
            Some(start) => self.start(cron, start, &mut status, &mut told).await,
            None => Ok(()),
        };
        let written = self.write(&key, cron, &status).await;
        told.into_iter().for_each(|told| self.event(cron, told));
        written?;
        match started {
            // The namespace takes the CronJob with it.
            Err(Error::Api { source, .. }) if client::is_namespace_terminating(&source) => Ok(Next::OnEvent),
            Err(error) => Err(error),
            Ok(()) => Ok(plan.next.map_or(Next::OnEvent, Next::After)),
        }
    }
}

impl Controller {
    /// The CronJob with the status that was written last.
    fn newest(&self, shown: Arc<CronJob>) -> Arc<CronJob> {
        let Some((version, status)) = self.written.after(shown.uid(), shown.version()) else { return shown };
        let mut cron = (*shown).clone();
        cron.metadata.resource_version = Some(version.to_string());
        cron.status = Some(status);
        Arc::new(cron)
    }

    /// Uids of Jobs that the status names, the informer does not show and the API does not have.
    async fn gone(&self, cron: &CronJob, jobs: &[Arc<Job>]) -> Result<HashSet<String>, Error> {
        let shown: HashSet<&str> = jobs.iter().map(|job| job.uid()).collect();
        let mut gone = HashSet::new();
        for named in cron.status.iter().flat_map(|status| status.active.iter().flatten()) {
            let uid = named.uid.as_deref().unwrap_or_default();
            if shown.contains(uid) {
                continue;
            }
            match self.client.fetch::<Meta>(JOBS, &key_of(cron, named)).await {
                Ok(found) if found.metadata.uid.as_deref() == Some(uid) => {}
                Err(error) if !client::is_not_found(&error) => {
                    return Err(Error::Api { what: "look for a Job", source: error });
                }
                Ok(_) | Err(_) => drop(gone.insert(uid.to_owned())),
            }
        }
        Ok(gone)
    }

    /// Deletes a Job and its pods; whether it goes.
    async fn delete(&self, key: &Key, uid: &str, status: &mut CronJobStatus, told: &mut Vec<Told>) -> bool {
        let options = DeleteOptions { propagation_policy: Some("Background"), ..DeleteOptions::of(uid) };
        match self.client.delete(JOBS, key, &options).await {
            Ok(()) => {
                plan::drop_active(status, uid);
                told.push(Told::normal("SuccessfulDelete", format!("Deleted job {}", key.name)));
                true
            }
            Err(error) => {
                told.push(Told::warning("FailedDelete", format!("Deleted job: {}", chain(&error))));
                false
            }
        }
    }

    /// Starts the Job of a moment.
    async fn start(
        &self,
        cron: &CronJob,
        start: Start,
        status: &mut CronJobStatus,
        told: &mut Vec<Told>,
    ) -> Result<(), Error> {
        for named in &start.replaces {
            let key = key_of(cron, named);
            if !self.delete(&key, named.uid.as_deref().unwrap_or_default(), status, told).await {
                return Err(Error::Stale("could not replace a Job"));
            }
        }
        let name = plan::job_name(cron, start.at);
        let namespace = cron.metadata.namespace.as_deref().unwrap_or_default();
        let made = match workload::create_named(&self.client, JOBS, namespace, &job_of(cron, &name, start.at)).await {
            Created::Made(made) => {
                told.push(Told::normal("SuccessfulCreate", format!("Created job {name}")));
                *made
            }
            // Its own of an earlier attempt, or one of the same name that somebody else takes care of.
            Created::Taken(_) => {
                let found = self.client.fetch::<Meta>(JOBS, &Key::new(namespace, &name)).await;
                let found = found.map_err(Error::api("read a Job that is there already"))?;
                let owner = controller(found.metadata.owner_references.as_deref());
                if owner.is_none_or(|owner| owner.uid != cron.uid()) {
                    return Ok(());
                }
                found
            }
            Created::Refused(source) | Created::Unknown(source) => {
                if !client::is_namespace_terminating(&source) {
                    told.push(Told::warning("FailedCreate", format!("Error creating job: {}", chain(&source))));
                }
                return Err(Error::Api { what: "create a Job", source });
            }
        };
        plan::add_active(status, &made.metadata);
        status.last_schedule_time = Some(Time(start.at));
        Ok(())
    }

    async fn write(&self, key: &Key, cron: &CronJob, status: &CronJobStatus) -> Result<(), Error> {
        if cron.status.clone().unwrap_or_default() == *status {
            return Ok(());
        }
        let patch = json!({
            "metadata": {"uid": cron.uid(), "resourceVersion": cron.metadata.resource_version},
            "status": {
                "active": status.active,
                "lastScheduleTime": status.last_schedule_time,
                "lastSuccessfulTime": status.last_successful_time,
            },
        });
        match self.client.patch_through_status(CRON_JOBS, key, &patch).await {
            Err(error) if client::is_not_found(&error) => Ok(()),
            Err(source) => Err(Error::Api { what: "write the status of a CronJob", source }),
            Ok(made) => {
                let made = version(made.metadata.resource_version.as_deref());
                self.written.note(cron.uid(), made, status.clone());
                // Its event may have come before.
                if self.crons.get(key).is_none_or(|now| now.uid() != cron.uid() || now.version() >= made) {
                    self.written.forget(cron.uid());
                }
                Ok(())
            }
        }
    }

    fn event(&self, cron: &CronJob, told: Told) {
        let subject =
            Subject { api_version: "batch/v1".into(), kind: "CronJob".into(), key: cron.key(), uid: cron.uid().into() };
        let Told { warning, reason, message } = told;
        self.recorder.record(Record { subject, component: COMPONENT, warning, reason, message });
    }
}

/// The CronJob that controls the Job.
fn cron_of(job: &Job) -> Option<Key> {
    let owner = controller(job.metadata.owner_references.as_deref()).filter(|owner| owner.kind == "CronJob")?;
    Some(Key { namespace: job.key().namespace, name: owner.name.as_str().into() })
}

fn key_of(cron: &CronJob, named: &ObjectReference) -> Key {
    Key { namespace: cron.key().namespace, name: named.name.as_deref().unwrap_or_default().into() }
}

/// The Job of a moment.
fn job_of(cron: &CronJob, name: &str, at: Timestamp) -> Value {
    let template = &cron.spec.job_template;
    let meta = template.metadata.clone().unwrap_or_default();
    let mut annotations = meta.annotations.unwrap_or_default();
    let zone = cron.spec.time_zone.as_deref().and_then(|zone| Zone::load(zone).ok()).unwrap_or(Zone::UTC);
    annotations.insert(SCHEDULED.to_owned(), zone.format(at));
    let owner = workload::owner_reference("batch/v1", "CronJob", cron.metadata.name.as_deref(), cron.uid());
    json!({
        "apiVersion": "batch/v1", "kind": "Job",
        "metadata": {
            "name": name, "labels": meta.labels.unwrap_or_default(), "annotations": annotations, "ownerReferences": [owner],
        },
        "spec": template.spec,
    })
}
