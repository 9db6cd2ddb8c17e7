//! Claims of pods' own volumes (`volumes[].ephemeral`): made for a pod that is new, under a name that says which, and owned by it, so
//! that they go with it.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod as WholePod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::Error;
use crate::client::{self, Client, PERSISTENT_VOLUME_CLAIMS, PODS};
use crate::error::chain;
use crate::events::{Record, Recorder, Subject};
use crate::informer::{Change, Informer, Key, Object as _, Pod, Store};
use crate::queue::{Next, Queue, Reconciler};
use crate::workload::{self, Created, owner_reference};

/// Between reconciliations of one pod in a storm.
const SPACING: Duration = Duration::from_millis(20);
const COMPONENT: &str = "ephemeral_volume";

/// Makes the claims.
pub(crate) struct Controller {
    client: Client,
    recorder: Recorder,
    queue: Queue<Key>,
    claims: Arc<Store<PersistentVolumeClaim>>,
    pods: Arc<Store<Pod>>,
}

impl Controller {
    pub(crate) fn new(
        client: Client,
        recorder: Recorder,
        claims: &mut Informer<PersistentVolumeClaim>,
        pods: &mut Informer<Pod>,
    ) -> Arc<Self> {
        let queue: Queue<Key> = Queue::new(SPACING);
        pods.on_change({
            let queue = queue.clone();
            move |change| {
                if let Change::Added(pod) = change
                    && wants(pod)
                {
                    queue.add(&pod.key);
                }
            }
        });
        claims.on_change({
            let queue = queue.clone();
            // One that somebody deletes under a pod is made anew.
            move |change| {
                let Change::Deleted(claim) = change else { return };
                let owner = claim.owners().iter().find(|owner| owner.kind == "Pod" && owner.controller == Some(true));
                if let Some(owner) = owner {
                    queue.add(&Key { namespace: claim.key().namespace, name: owner.name.as_str().into() });
                }
            }
        });
        Arc::new(Self { client, recorder, queue, claims: claims.store(), pods: pods.store() })
    }

    fn has_claims(&self, pod: &Pod) -> bool {
        pod.claims.iter().filter(|claim| claim.made_for.is_some()).all(|claim| {
            let key = Key { namespace: pod.key.namespace.clone(), name: claim.name.as_ref().into() };
            self.claims.get(&key).is_some_and(|claim| claim.controller() == Some(&*pod.uid))
        })
    }

    /// Makes the claim of a volume, unless it is there.
    async fn claim(&self, pod: &Pod, volume: &str, claim: &PersistentVolumeClaim) -> Result<(), Error> {
        let failed = |why: String| {
            let subject =
                Subject { api_version: "v1".into(), kind: "Pod".into(), key: pod.key.clone(), uid: pod.uid.clone() };
            let message = format!("ephemeral volume {volume}: {why}");
            let (component, reason) = (COMPONENT, "FailedBinding");
            self.recorder.record(Record { subject, component, warning: true, reason, message });
        };
        let name = claim.metadata.name.as_deref().unwrap_or_default();
        match workload::create_named(&self.client, PERSISTENT_VOLUME_CLAIMS, &pod.key.namespace, claim).await {
            Created::Made(_) => Ok(()),
            Created::Taken(_) => {
                let key = Key::new(&pod.key.namespace, name);
                let there = self.client.fetch::<PersistentVolumeClaim>(PERSISTENT_VOLUME_CLAIMS, &key).await;
                let there = there.map_err(Error::api("look for a claim"))?;
                if there.controller() == Some(&*pod.uid) {
                    return Ok(());
                }
                failed(format!("PVC {key} was not created for pod {} (pod is not owner)", pod.key));
                Err(Error::Stale("the claim of an ephemeral volume is another's"))
            }
            Created::Unknown(source) | Created::Refused(source) => {
                failed(format!("create PVC {name}: {}", chain(&source)));
                Err(Error::Api { what: "create the claim of an ephemeral volume", source })
            }
        }
    }
}

fn wants(pod: &Pod) -> bool {
    pod.is_active() && pod.claims.iter().any(|claim| claim.made_for.is_some())
}

impl Reconciler for Controller {
    type Key = Key;
    const NAME: &'static str = "ephemeral-volume";
    const WORKERS: usize = 4;

    fn queue(&self) -> &Queue<Key> {
        &self.queue
    }

    async fn reconcile(self: Arc<Self>, key: Key) -> Result<Next, Error> {
        let Some(pod) = self.pods.get(&key).filter(|pod| wants(pod) && !self.has_claims(pod)) else {
            return Ok(Next::OnEvent);
        };
        // What is kept of pods does not have the templates.
        let whole: WholePod = match self.client.fetch(PODS, &key).await {
            Ok(whole) => whole,
            Err(error) if client::is_not_found(&error) => return Ok(Next::OnEvent),
            Err(source) => return Err(Error::Api { what: "read a pod", source }),
        };
        if whole.metadata.uid.as_deref() != Some(&*pod.uid) {
            return Err(Error::Stale("another pod has the name"));
        }
        for volume in whole.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
            let Some(template) = volume.ephemeral.as_ref().and_then(|source| source.volume_claim_template.as_ref())
            else {
                continue;
            };
            let metadata = template.metadata.clone().unwrap_or_default();
            let claim = PersistentVolumeClaim {
                metadata: ObjectMeta {
                    name: Some(format!("{}-{}", key.name, volume.name)),
                    namespace: Some(key.namespace.to_string()),
                    annotations: metadata.annotations,
                    labels: metadata.labels,
                    owner_references: Some(vec![owner_reference("v1", "Pod", Some(&key.name), &pod.uid)]),
                    ..ObjectMeta::default()
                },
                spec: Some(template.spec.clone()),
                status: None,
            };
            self.claim(&pod, &volume.name, &claim).await?;
        }
        Ok(Next::OnEvent)
    }
}
