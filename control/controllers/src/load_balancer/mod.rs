//! Services of type LoadBalancer: nodes are their balancers, and their status has the addresses that those have said.

mod plan;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Service};
use parking_lot::Mutex;

use self::plan::{Ports, Said};
use crate::client::{Client, SERVICES};
use crate::informer::{Change, Informer, Key, Object as _, Store};
use crate::queue::{Next, Queue, Reconciler};
use crate::{Error, now_in_seconds};

/// Between reconciliations of one Service in a storm.
const SPACING: Duration = Duration::from_millis(200);

/// What ready nodes say, by their names.
type BySaid = Mutex<BTreeMap<Key, Arc<Said>>>;

/// The controller of the status of Services of type LoadBalancer.
pub(crate) struct Controller {
    client: Client,
    queue: Queue<Key>,
    services: Arc<Store<Service>>,
    said: Arc<BySaid>,
}

impl Controller {
    pub(crate) fn new(client: Client, services: &mut Informer<Service>, nodes: &mut Informer<Node>) -> Arc<Self> {
        let (queue, said) = (Queue::new(SPACING), Arc::<BySaid>::default());
        services.on_change({
            let queue: Queue<Key> = queue.clone();
            move |change| {
                let is_one = |service: &Arc<Service>| plan::is_ours(service) || plan::has_condition(service);
                if is_one(change.object()) || change.before().is_some_and(is_one) {
                    queue.add(&change.object().key());
                }
            }
        });
        nodes.on_change({
            let (queue, all) = (queue.clone(), said.clone());
            // A Node changes every few minutes, and that hardly ever.
            move |change| {
                let (node, is_gone) = (change.object(), matches!(change, Change::Deleted(_)));
                let now = if is_gone { Arc::default() } else { Arc::new(plan::said(node)) };
                let mut all = all.lock();
                let before = match now.is_empty() {
                    true => all.remove(&node.key()),
                    false => all.insert(node.key(), now.clone()),
                };
                drop(all);
                let before = before.unwrap_or_default();
                let others = before.iter().filter(|(service, said)| now.get(*service) != Some(*said));
                let new = now.iter().filter(|(service, said)| before.get(*service) != Some(*said));
                others.chain(new).for_each(|(service, _)| queue.add(service));
            }
        });
        Arc::new(Self { client, queue, services: services.store(), said })
    }
}

impl Reconciler for Controller {
    type Key = Key;
    const NAME: &'static str = "service-lb";
    const WORKERS: usize = 2;

    fn queue(&self) -> &Queue<Key> {
        &self.queue
    }

    async fn reconcile(self: Arc<Self>, key: Key) -> Result<Next, Error> {
        let Some(service) = self.services.get(&key).filter(|service| !service.is_deleting()) else {
            return Ok(Next::OnEvent);
        };
        let patch = {
            let said = self.said.lock();
            let of: Vec<&Ports> = said.values().filter_map(|said| said.get(&key)).collect();
            plan::patch(&service, &of, now_in_seconds())
        };
        let Some(patch) = patch else { return Ok(Next::OnEvent) };
        let written = self.client.merge_status(SERVICES, &key, &patch).await;
        written.map(|_| Next::OnEvent).map_err(Error::api("write the status of a Service"))
    }
}
