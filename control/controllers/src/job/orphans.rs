//! Pods whose Job will not count them any more: it is gone or finished, or has let them go. They lose the finalizer, or
//! they would never go.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::batch::v1::Job;

use super::plan::{finished, is_tracked};
use super::{ROW, is_managed_elsewhere, remove_finalizer};
use crate::Error;
use crate::client::{self, Client, JOBS};
use crate::informer::{Change, Informer, Key, Object as _, Pod, Store, controller};
use crate::queue::{Next, Queue, Reconciler};

/// The controller of such pods; its keys are pods.
pub(crate) struct Controller {
    client: Client,
    queue: Queue<Key>,
    jobs: Arc<Store<Job>>,
    pods: Arc<Store<Pod>>,
}

impl Controller {
    /// Listens to pods, and to Jobs that end.
    pub(crate) fn new(client: Client, jobs: &mut Informer<Job>, pods: &mut Informer<Pod>) -> Arc<Self> {
        let queue = Queue::new(Duration::from_millis(20));
        pods.on_change({
            let (queue, jobs) = (queue.clone(), jobs.store());
            move |change| {
                let pod = change.object();
                if !matches!(change, Change::Deleted(_)) && is_tracked(pod) && is_orphan(&jobs, pod) {
                    queue.add(&pod.key);
                }
            }
        });
        jobs.on_change({
            let (queue, pods) = (queue.clone(), pods.store());
            move |change| {
                let job = change.object();
                if matches!(change, Change::Deleted(_)) || finished(job).is_some() {
                    let left = pods.controlled_by(job.uid()).into_iter().filter(|pod| is_tracked(pod));
                    left.for_each(|pod| queue.add(&pod.key));
                }
            }
        });
        Arc::new(Self { client, queue, jobs: jobs.store(), pods: pods.store() })
    }
}

/// Whether no Job is known that will count it.
fn is_orphan(jobs: &Store<Job>, pod: &Pod) -> bool {
    match controller(Some(&pod.owners)) {
        None => true,
        // Not ours to judge.
        Some(owner) if owner.kind != ROW.kind || owner.api_version != ROW.api_version => false,
        Some(owner) => {
            let job = jobs.get(&Key::new(&pod.key.namespace, &owner.name)).filter(|job| job.uid() == owner.uid);
            job.is_none_or(|job| finished(&job).is_some() && !is_managed_elsewhere(&job))
        }
    }
}

impl Reconciler for Controller {
    type Key = Key;
    const NAME: &'static str = "job-orphans";
    const WORKERS: usize = 16;

    fn queue(&self) -> &Queue<Key> {
        &self.queue
    }

    async fn reconcile(self: Arc<Self>, key: Key) -> Result<Next, Error> {
        let Some(pod) = self.pods.get(&key) else { return Ok(Next::OnEvent) };
        if !is_tracked(&pod) || !is_orphan(&self.jobs, &pod) {
            return Ok(Next::OnEvent);
        }
        // A Job that is not known may be newer than what is known.
        if let Some(owner) = controller(Some(&pod.owners)) {
            let job = Key::new(&key.namespace, &owner.name);
            match self.client.fetch::<Job>(JOBS, &job).await {
                Ok(job) if job.uid() == owner.uid && (finished(&job).is_none() || is_managed_elsewhere(&job)) => {
                    return Ok(Next::OnEvent);
                }
                Ok(_) => {}
                Err(error) if client::is_not_found(&error) => {}
                Err(source) => return Err(Error::Api { what: "look for the Job of a pod", source }),
            }
        }
        remove_finalizer(&self.client, &pod, None).await.map_err(Error::api("remove the finalizer of a pod"))?;
        Ok(Next::OnEvent)
    }
}
