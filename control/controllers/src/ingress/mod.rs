//! Where Ingresses of our classes are served, in their status: the addresses that nodes which serve them have said.

mod plan;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::networking::v1::{Ingress, IngressClass};
use serde_json::json;

use crate::Error;
use crate::client::{Client, INGRESSES};
use crate::informer::{Informer, Key, Object as _, Store};
use crate::queue::{Next, Queue, Reconciler};

/// Between reconciliations of one Ingress in a storm.
const SPACING: Duration = Duration::from_millis(200);

/// The controller of the status of Ingresses.
pub(crate) struct Controller {
    client: Client,
    queue: Queue<Key>,
    ingresses: Arc<Store<Ingress>>,
    classes: Arc<Store<IngressClass>>,
    nodes: Arc<Store<Node>>,
}

impl Controller {
    pub(crate) fn new(
        client: Client,
        ingresses: &mut Informer<Ingress>,
        classes: &mut Informer<IngressClass>,
        nodes: &mut Informer<Node>,
    ) -> Arc<Self> {
        let queue: Queue<Key> = Queue::new(SPACING);
        ingresses.on_change({
            let queue = queue.clone();
            move |change| queue.add(&change.object().key())
        });
        let all = {
            let (queue, ingresses) = (queue.clone(), ingresses.store());
            move || ingresses.all().iter().for_each(|ingress| queue.add(&ingress.key()))
        };
        classes.on_change({
            let all = all.clone();
            move |_| all()
        });
        // Nodes say something every few minutes, and hardly ever that.
        nodes.on_change(move |change| {
            let before = change.before().map(|before| plan::served_at(before));
            let is_gone = matches!(change, crate::informer::Change::Deleted(_));
            if is_gone || before != Some(plan::served_at(change.object())) {
                all();
            }
        });
        let (ingresses, classes, nodes) = (ingresses.store(), classes.store(), nodes.store());
        Arc::new(Self { client, queue, ingresses, classes, nodes })
    }
}

impl Reconciler for Controller {
    type Key = Key;
    const NAME: &'static str = "ingressstatus";
    const WORKERS: usize = 2;

    fn queue(&self) -> &Queue<Key> {
        &self.queue
    }

    async fn reconcile(self: Arc<Self>, key: Key) -> Result<Next, Error> {
        let Some(ingress) = self.ingresses.get(&key) else { return Ok(Next::OnEvent) };
        let class = plan::class_of(&ingress).and_then(|name| self.classes.get(&Key::new("", name)));
        if ingress.is_deleting() || !class.is_some_and(|class| plan::is_ours(&class)) {
            return Ok(Next::OnEvent);
        }
        let served: BTreeSet<plan::Served> = self.nodes.all().iter().flat_map(|node| plan::served_at(node)).collect();
        let wanted = plan::points(&served);
        let is_same = ingress
            .status
            .as_ref()
            .and_then(|status| status.load_balancer.as_ref())
            .map_or_else(|| wanted.is_empty(), |balancer| balancer.ingress.as_deref().unwrap_or_default() == wanted);
        if is_same {
            return Ok(Next::OnEvent);
        }
        let patch = json!({
            "metadata": {"uid": ingress.metadata.uid, "resourceVersion": ingress.metadata.resource_version},
            "status": {"loadBalancer": {"ingress": wanted}},
        });
        let written = self.client.patch_through_status(INGRESSES, &key, &patch).await;
        written.map(|_| Next::OnEvent).map_err(Error::api("write the status of an Ingress"))
    }
}
