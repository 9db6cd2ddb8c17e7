//! ResourceQuotas: what is used of them (the reference's resource quota controller). Admission charges what comes, in the
//! transaction that brings it; this controller counts anew when something goes, ends or shrinks, when limits change, and now
//! and then.
//!
//! A count reads what is there after it has read the quota, and is written only to the quota that it has read: what was charged
//! in between changes the quota, and the count is made again. So no charge is lost, and what is counted is never too little.

mod plan;

use std::sync::Arc;
use std::time::Duration;

use coracle_api::kinds::quota::{Count, tracks};
use k8s_openapi::api::core::v1::{ResourceQuota, Service};
use serde_json::{Value, json};

use crate::client::{self, Client, Meta, RESOURCE_QUOTAS};
use crate::discovery::{Discovery, Kind};
use crate::foreign::{PAGE, Pages};
use crate::garbage::Happened;
use crate::informer::{Informer, Key, Object as _, Pod, Store};
use crate::queue::{Next, Queue, Reconciler};
use crate::{Error, now_in_seconds};
use plan::Sources;

/// All are counted again after this (kube-controller-manager's `--resource-quota-sync-period`).
const RESYNC: Duration = Duration::from_secs(300);
/// Counts of one quota in a storm: no more of them than take half of the time, and one in this at least.
const SPACING_MAX: Duration = Duration::from_secs(1);
/// A count is made again when something was charged while it was made.
const AGAIN: Duration = Duration::from_millis(250);

/// The controller of quotas.
pub(crate) struct Controller {
    client: Client,
    discovery: Discovery,
    queue: Queue<Key>,
    quotas: Arc<Store<ResourceQuota>>,
}

impl Controller {
    pub(crate) fn new(
        client: Client,
        discovery: Discovery,
        quotas: &mut Informer<ResourceQuota>,
        pods: &mut Informer<Pod>,
        services: &mut Informer<Service>,
    ) -> Arc<Self> {
        let queue: Queue<Key> = Queue::sparing(SPACING_MAX);
        quotas.on_change({
            let queue = queue.clone();
            move |change| {
                let hard = |quota: &Arc<ResourceQuota>| quota.spec.as_ref().and_then(|spec| spec.hard.clone());
                let is_same = |before| hard(before) == hard(change.object());
                if change.before().is_none_or(|before| !is_same(before)) {
                    queue.add(&change.object().key());
                }
            }
        });
        let this = Arc::new(Self { client, discovery, queue, quotas: quotas.store() });
        pods.on_change({
            let this = this.clone();
            move |change| {
                let pod = change.object();
                let frees = |before: &Arc<Pod>| {
                    !before.is_terminal() && pod.is_terminal()
                        || before.has_deadline != pod.has_deadline
                        || before.given != pod.given
                };
                if change.before().is_some_and(frees) {
                    this.recount("", "pods", &pod.key.namespace);
                }
            }
        });
        services.on_change({
            let this = this.clone();
            move |change| {
                let service = change.object();
                let taken = |service: &Arc<Service>| {
                    let spec = service.spec.as_ref()?;
                    let ports = spec.ports.as_deref().unwrap_or_default();
                    let given = ports.iter().filter(|port| port.node_port.is_some()).count();
                    Some((spec.type_.clone(), ports.len(), given))
                };
                if change.before().is_some_and(|before| taken(before) != taken(service)) {
                    this.recount("", "services", &service.key().namespace);
                }
            }
        });
        this
    }

    /// Something happened to an object of any kind.
    pub(crate) fn on_event(&self, kind: &Kind, namespace: &str, happened: Happened) {
        // What others take changes with their content, which is looked at where they are watched.
        let is_measured_by_content = matches!(
            (&*kind.group, &*kind.plural),
            ("", "persistentvolumeclaims") | ("resource.k8s.io", "resourceclaims")
        );
        if happened == Happened::Gone || is_measured_by_content {
            self.recount(&kind.group, &kind.plural, namespace);
        }
    }

    /// Counts the quotas of a namespace that objects of a kind count for.
    fn recount(&self, group: &str, resource: &str, namespace: &str) {
        let limits = |quota: &ResourceQuota| {
            let hard = quota.spec.as_ref().and_then(|spec| spec.hard.as_ref());
            hard.is_some_and(|hard| hard.keys().any(|name| tracks(group, resource, name)))
        };
        for quota in self.quotas.select(namespace, limits) {
            self.queue.add(&quota.key());
        }
    }
}

impl Reconciler for Controller {
    type Key = Key;
    const NAME: &'static str = "resourcequota";
    const WORKERS: usize = 4;

    fn queue(&self) -> &Queue<Key> {
        &self.queue
    }

    async fn reconcile(self: Arc<Self>, key: Key) -> Result<Next, Error> {
        let Some(quota) = self.quotas.get(&key) else { return Ok(Next::OnEvent) };
        let spec = json!(quota.spec);
        let counted = self.count(&spec, &key.namespace).await?;
        let Some((status, is_new_limit)) = plan::status(&spec, &json!(quota.status), counted) else {
            return Ok(Next::After(RESYNC));
        };
        let metadata = json!({"uid": quota.uid(), "resourceVersion": quota.metadata.resource_version});
        let patch = json!({"metadata": metadata, "status": status});
        match self.client.patch_through_status(RESOURCE_QUOTAS, &key, &patch).await {
            // What came while there was no limit was not charged: it is counted when the limit holds.
            Ok(_) if is_new_limit => Ok(Next::After(AGAIN)),
            Ok(_) => Ok(Next::After(RESYNC)),
            Err(error) if client::is_not_found(&error) => Ok(Next::OnEvent),
            Err(error) if client::is_conflict(&error) => Ok(Next::After(AGAIN)),
            Err(error) => Err(Error::api("write the status of a quota")(error)),
        }
    }
}

impl Controller {
    /// What is used of everything that is limited and known.
    async fn count(&self, spec: &Value, namespace: &str) -> Result<coracle_api::kinds::quota::Amounts, Error> {
        let mut count = Count::new(spec);
        let sources = Sources::of(spec);
        for (group, resource) in sources.measured {
            let Some(kind) = self.kind(group, resource).await? else { continue };
            count.begin(group, resource);
            let mut pages = Pages::of_whole(&self.client, kind.path(namespace, ""));
            while let Some(page) = pages.next::<Value>().await.map_err(Error::api("list what a quota counts"))? {
                let now = now_in_seconds();
                page.items.iter().for_each(|object| count.add(group, resource, object, now));
            }
        }
        for (group, resource) in sources.counted {
            let Some(kind) = self.kind(&group, &resource).await? else { continue };
            let number = self.number(&kind, namespace).await.map_err(Error::api("list what a quota counts"))?;
            count.begin(&group, &resource);
            count.add_plain(&group, &resource, number);
        }
        Ok(count.used())
    }

    /// How many objects of a kind there are: a server that says how many are left is asked for one of them only.
    async fn number(&self, kind: &Kind, namespace: &str) -> Result<i64, kube::Error> {
        let (mut number, mut pages) = (0, Pages::of_metadata(&self.client, kind.path(namespace, "")));
        pages.limit = 1;
        while let Some(page) = pages.next::<Meta>().await? {
            number += page.items.len() as i64;
            if let Some(left) = page.metadata.remaining_item_count {
                return Ok(number.saturating_add(left));
            }
            // What was too long at a time stays smaller.
            if pages.limit == 1 {
                pages.limit = PAGE;
            }
        }
        Ok(number)
    }

    async fn kind(&self, group: &str, resource: &str) -> Result<Option<Kind>, Error> {
        let found = self.discovery.find_plural(group, resource).await.map_err(Error::api("ask for the kinds"))?;
        Ok(found.filter(|kind| kind.namespaced))
    }
}
