//! A claim that is deleted stays for as long as pods on nodes use it ([`CLAIM_PROTECTION`]).
//!
//! That nobody does is asked of the API: a pod may be bound and not in the cache yet. One list answers for all claims of a
//! namespace that are going.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use coracle_api::volumes::CLAIM_PROTECTION;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use serde_json::json;

use crate::Error;
use crate::client::{self, Client, PERSISTENT_VOLUME_CLAIMS, PODS};
use crate::foreign::Pages;
use crate::informer::{Change, Index, Informer, Object as _, Pod, PodWire, Store};
use crate::queue::{Next, Queue, Reconciler};

/// Between looks at one namespace in a storm.
const SPACING: Duration = Duration::from_millis(100);

/// Lets claims go. Its keys are namespaces.
pub(crate) struct Controller {
    client: Client,
    queue: Queue<Arc<str>>,
    claims: Arc<Store<PersistentVolumeClaim>>,
    pods: Arc<Store<Pod>>,
}

impl Controller {
    pub(crate) fn new(
        client: Client,
        claims: &mut Informer<PersistentVolumeClaim>,
        pods: &mut Informer<Pod>,
    ) -> Arc<Self> {
        let queue: Queue<Arc<str>> = Queue::new(SPACING);
        claims.on_change({
            let queue = queue.clone();
            move |change| match change {
                Change::Deleted(_) => {}
                change if is_going(change.object()) => queue.add(&change.object().key().namespace),
                _ => {}
            }
        });
        pods.on_change({
            let (queue, claims) = (queue.clone(), claims.store());
            move |change| {
                let pod = change.object();
                let is_over = matches!(change, Change::Deleted(_)) || pod.is_terminal() || pod.deleting.is_some();
                if !is_over || pod.claims.is_empty() {
                    return;
                }
                let names: HashSet<&str> = pod.claims.iter().map(|claim| &*claim.name).collect();
                let used = |claim: &PersistentVolumeClaim| {
                    claim.metadata.name.as_deref().is_some_and(|name| names.contains(name))
                };
                if !claims.select(&pod.key.namespace, |claim| is_going(claim) && used(claim)).is_empty() {
                    queue.add(&pod.key.namespace);
                }
            }
        });
        Arc::new(Self { client, queue, claims: claims.store(), pods: pods.store() })
    }
}

/// Whether a claim is deleted and waits for this.
fn is_going(claim: &PersistentVolumeClaim) -> bool {
    claim.is_deleting() && claim.finalizers().iter().any(|name| name == CLAIM_PROTECTION)
}

/// The claims that pods on nodes use, each with the pod that it was made for, if any: by its uid.
#[derive(Default)]
struct Used(HashSet<(Box<str>, Option<Arc<str>>)>);

impl Used {
    /// What was made for a pod is not used any more by one that its node has ended.
    fn add(&mut self, pod: &Pod) {
        let is_over = pod.is_terminal() && pod.deleting.is_some();
        let claims = pod.claims.iter().filter(|claim| pod.node.is_some() && !(is_over && claim.made_for.is_some()));
        self.0.extend(claims.map(|claim| (claim.name.clone(), claim.made_for.as_ref().map(|_| pod.uid.clone()))));
    }

    fn has(&self, claim: &PersistentVolumeClaim) -> bool {
        let name: Box<str> = (&*claim.key().name).into();
        let maker: Option<Arc<str>> = claim.controller().map(Into::into);
        self.0.contains(&(name.clone(), None)) || (maker.is_some() && self.0.contains(&(name, maker)))
    }
}

impl Reconciler for Controller {
    type Key = Arc<str>;
    const NAME: &'static str = "pvc-protection";
    const WORKERS: usize = 2;

    fn queue(&self) -> &Queue<Arc<str>> {
        &self.queue
    }

    async fn reconcile(self: Arc<Self>, namespace: Arc<str>) -> Result<Next, Error> {
        let mut going = self.claims.select(&namespace, is_going);
        let (mut used, mut seen) = (Used::default(), HashSet::new());
        for pod in going.iter().flat_map(|claim| self.pods.by(Index::Claim, &claim.key().to_string())) {
            if seen.insert(pod.uid.clone()) {
                used.add(&pod);
            }
        }
        going.retain(|claim| !used.has(claim));
        if going.is_empty() {
            return Ok(Next::OnEvent);
        }
        let mut pods = Pages::of_whole(&self.client, client::path(PODS.version, PODS.plural, &namespace, ""));
        while let Some(page) = pods.next::<PodWire>().await.map_err(Error::api("list the pods that may use a claim"))? {
            page.items.into_iter().map(Pod::keep).for_each(|pod| used.add(&pod));
        }
        for claim in going.iter().filter(|claim| !used.has(claim)) {
            let left: Vec<&String> = claim.finalizers().iter().filter(|name| *name != CLAIM_PROTECTION).collect();
            let (uid, version) = (&claim.metadata.uid, &claim.metadata.resource_version);
            let patch = json!({"metadata": {"uid": uid, "resourceVersion": version, "finalizers": left}});
            match self.client.patch(PERSISTENT_VOLUME_CLAIMS, &claim.key(), &patch).await {
                Err(error) if client::is_not_found(&error) => {}
                patched => drop(patched.map_err(Error::api("let go of a claim"))?),
            }
        }
        Ok(Next::OnEvent)
    }
}
