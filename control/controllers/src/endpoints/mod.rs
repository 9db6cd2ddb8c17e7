//! Endpoints of Services with a selector: EndpointSlices and the older Endpoints object (kubernetes-api §20.7).
//!
//! A pod that becomes ready is in its slice after one reconciliation: the first events of a Service are never held
//! back, a storm is spaced out by the queue. What we wrote ourselves and the cache does not show yet is remembered for
//! [`BEHIND_MAX`], so a late cache makes neither a second slice nor a conflict; a slice that nobody knows whether it was
//! created is asked for again by its name.

mod mirror;
mod slices;
#[cfg(test)]
mod tests;
mod topology;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use k8s_openapi::api::core::v1::{Endpoints, Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::client::{self, Client, DeleteOptions, ENDPOINT_SLICES, ENDPOINTS, Meta};
use crate::informer::{Change, Index, Informer, Key, Object as _, Pod, Store, version};
use crate::queue::{Next, Queue, Reconciler};
use crate::workload::{self, Created, generated_name};
use crate::{Error, selector};

/// Between reconciliations of one Service in a storm, at most.
const SPACING: Duration = Duration::from_millis(20);
/// How long the cache may be behind our own write; then it is not waited for (tests do not wait so long).
const BEHIND_MAX: Duration = Duration::from_secs(if cfg!(test) { 2 } else { 5 });
const ZONE: &str = "topology.kubernetes.io/zone";

/// The controller of endpoints.
pub(crate) struct Controller {
    client: Client,
    queue: Queue<Key>,
    services: Arc<Store<Service>>,
    pods: Arc<Store<Pod>>,
    slices: Arc<Store<EndpointSlice>>,
    endpoints: Arc<Store<Endpoints>>,
    nodes: Arc<Store<Node>>,
    written: Arc<Mutex<HashMap<Key, Behind>>>,
    /// Versions of Endpoints objects as we wrote them last, until the cache shows them, for [`BEHIND_MAX`] at most.
    mirrored: Arc<Mutex<HashMap<Key, (u64, Instant)>>>,
    /// Names of slices with an unknown outcome, per Service: the next to be created get them. Bounded by the slices that
    /// were wanted at a time, as new names are drawn only when these are used up.
    unsure: Mutex<HashMap<Key, Vec<String>>>,
}

/// Writes of ours for a Service that the cache does not show yet.
#[derive(Default)]
struct Behind {
    writes: Vec<Written>,
    /// Whether a reconciliation waits for the cache.
    awaited: bool,
}

struct Written {
    name: Arc<str>,
    version: u64,
    at: Instant,
}

impl Behind {
    /// The cache shows this version of the slice; returns whether it is our own write and nobody waits for it.
    fn shown(&mut self, name: &str, version: u64) -> bool {
        let mut ours = false;
        self.writes.retain(|written| {
            ours |= &*written.name == name && written.version == version;
            &*written.name != name || written.version > version
        });
        ours && !(self.awaited && self.writes.is_empty())
    }
}

/// Informers that it listens to.
pub(crate) struct Sources<'a> {
    pub services: &'a mut Informer<Service>,
    pub pods: &'a mut Informer<Pod>,
    pub slices: &'a mut Informer<EndpointSlice>,
    pub endpoints: &'a mut Informer<Endpoints>,
    pub nodes: &'a mut Informer<Node>,
}

impl Controller {
    /// Listens to what concerns endpoints.
    pub(crate) fn new(client: Client, sources: Sources<'_>) -> Arc<Self> {
        let queue = Queue::sparing(SPACING);
        let written: Arc<Mutex<HashMap<Key, Behind>>> = Arc::default();
        let Sources { services, pods, slices, endpoints, nodes } = sources;
        services.on_change({
            let queue = queue.clone();
            move |change| queue.add(&change.object().key())
        });
        pods.on_change({
            let (queue, services) = (queue.clone(), services.store());
            move |change| {
                let pod = change.object();
                if change.before().is_some_and(|before| same_endpoint(before, pod)) {
                    return;
                }
                let before = change.before().filter(|before| before.labels != pod.labels);
                for service in services.select(&pod.key.namespace, |service| {
                    selects(service, &pod.labels) || before.is_some_and(|before| selects(service, &before.labels))
                }) {
                    queue.add(&service.key());
                }
            }
        });
        slices.on_change({
            let (queue, written) = (queue.clone(), written.clone());
            move |change| {
                let slice = change.object();
                // It may have been ours until now.
                if let Some(before) = change.before().and_then(|before| service_of(before))
                    && service_of(slice).as_ref() != Some(&before)
                {
                    queue.add(&before);
                }
                let Some(service) = service_of(slice) else { return };
                // Our own writes come back here; they need no second look.
                let ours = !matches!(change, Change::Deleted(_))
                    && written.lock().get_mut(&service).is_some_and(|behind| {
                        behind.shown(slice.metadata.name.as_deref().unwrap_or_default(), slice.version())
                    });
                if !ours {
                    queue.add(&service);
                }
            }
        });
        nodes.on_change({
            let (queue, services, pods) = (queue.clone(), services.store(), pods.store());
            move |change| {
                let node = change.object();
                let (there, gone) = (change.before().is_some(), matches!(change, Change::Deleted(_)));
                if gone || change.before().and_then(|before| topology::part(before)) != topology::part(node) {
                    // The shares of all zones are others now.
                    for service in services.all().iter().filter(|service| topology::is_asked_for(service)) {
                        queue.add(&service.key());
                    }
                }
                if there && change.before().and_then(|before| zone_of(before)) == zone_of(node) {
                    return;
                }
                // The zone of endpoints is their node's, and those of a node that is not there are none.
                let on_node = pods.by(Index::Node, node.metadata.name.as_deref().unwrap_or_default());
                for pod in on_node {
                    for service in services.select(&pod.key.namespace, |service| selects(service, &pod.labels)) {
                        queue.add(&service.key());
                    }
                }
            }
        });
        let mirrored: Arc<Mutex<HashMap<Key, (u64, Instant)>>> = Arc::default();
        endpoints.on_change({
            let (queue, services, mirrored) = (queue.clone(), services.store(), mirrored.clone());
            move |change| {
                let key = change.object().key();
                if let Change::Deleted(_) = change {
                    mirrored.lock().remove(&key);
                }
                // Of a Service that went while nobody led its own are left: they would be those of the next of its name.
                if services.get(&key).is_some() || is_ours(change.object()) {
                    queue.add(&key);
                }
            }
        });
        let (services, pods, slices) = (services.store(), pods.store(), slices.store());
        let (endpoints, nodes) = (endpoints.store(), nodes.store());
        let unsure = Mutex::default();
        Arc::new(Self { client, queue, services, pods, slices, endpoints, nodes, written, mirrored, unsure })
    }
}

impl Reconciler for Controller {
    type Key = Key;
    const NAME: &'static str = "endpoints";
    const WORKERS: usize = 16;

    fn queue(&self) -> &Queue<Key> {
        &self.queue
    }

    async fn reconcile(self: Arc<Self>, key: Key) -> Result<Next, Error> {
        let Some(service) = self.services.get(&key) else {
            self.written.lock().remove(&key);
            self.mirrored.lock().remove(&key);
            self.unsure.lock().remove(&key);
            // The slices go with their owner; the Endpoints object has none.
            if let Some(endpoints) = self.endpoints.get(&key).filter(|endpoints| is_ours(endpoints)) {
                // Those: a Service of the same name may have some of its own by now.
                self.client
                    .delete(ENDPOINTS, &key, &DeleteOptions::of(endpoints.uid()))
                    .await
                    .map_err(Error::api("delete Endpoints"))?;
            }
            return Ok(Next::OnEvent);
        };
        let Some(selector) = selector_of(&service) else { return Ok(Next::OnEvent) };
        if service.metadata.deletion_timestamp.is_some() {
            return Ok(Next::OnEvent);
        }
        if let Some(wait) = self.behind(&key) {
            return Ok(Next::After(wait));
        }
        // By labels, as the reference finds them: slices of other managers are theirs, whoever owns them.
        let mut existing = self.slices.by(Index::Service, &key.name);
        existing.retain(|slice| service_of(slice).as_ref() == Some(&key));
        let pods = self.pods.select(&key.namespace, |pod| selector::contains(&pod.labels, selector));
        let place = |node: &str| {
            let node = self.nodes.get(&Key::new("", node))?;
            Some(slices::Place { zone: zone_of(&node).map(str::to_owned) })
        };
        let shares = || {
            let nodes = self.nodes.all();
            topology::shares(nodes.iter().map(|node| &**node))
        };
        let plan = slices::plan(&service, &pods, existing, &place, &shares);
        let (endpoints, next) = match self.unmirrored(&key) {
            Some(wait) => (None, Next::After(wait)),
            None => (mirror::plan(&service, &pods, self.endpoints.get(&key).as_deref()), Next::OnEvent),
        };
        let (slices, endpoints) = tokio::join!(self.write_slices(&key, plan), self.write_endpoints(&key, endpoints));
        match slices.and(endpoints) {
            // Everything is going with the namespace.
            Err(Error::Api { source, .. }) if client::is_namespace_terminating(&source) => Ok(Next::OnEvent),
            other => other.map(|()| next),
        }
    }
}

impl Controller {
    /// How long to wait at most until the cache shows what we wrote; its event comes back to the queue.
    fn behind(&self, key: &Key) -> Option<Duration> {
        let mut written = self.written.lock();
        let behind = written.get_mut(key)?;
        behind.writes.retain(|written| {
            let slice = self.slices.get(&Key { namespace: key.namespace.clone(), name: written.name.clone() });
            slice.is_none_or(|slice| slice.version() < written.version) && written.at.elapsed() < BEHIND_MAX
        });
        if behind.writes.is_empty() {
            written.remove(key);
            return None;
        }
        behind.awaited = true;
        Some(BEHIND_MAX)
    }

    async fn write_slices(&self, key: &Key, plan: slices::Plan) -> Result<(), Error> {
        let mut updates = FuturesUnordered::new();
        for slice in &plan.update {
            updates.push(self.write_slice(key, slice));
        }
        while let Some(outcome) = updates.next().await {
            outcome?;
        }
        drop(updates);
        for mut slice in plan.create {
            let prefix = format!("{}-", key.name);
            let name = self.unsure_name(key).unwrap_or_else(|| generated_name(&prefix));
            slice.metadata.name = Some(name.clone());
            slice.metadata.generate_name = Some(prefix);
            match workload::create_named(&self.client, ENDPOINT_SLICES, &key.namespace, &slice).await {
                Created::Made(made) => self.wrote(key, &made),
                Created::Taken(_) => return self.taken(key, &slice).await,
                Created::Unknown(source) => {
                    self.unsure.lock().entry(key.clone()).or_default().push(name);
                    return Err(Error::Api { what: "create an EndpointSlice", source });
                }
                Created::Refused(source) => return Err(Error::Api { what: "create an EndpointSlice", source }),
            }
        }
        for slice in plan.delete {
            let options = DeleteOptions::of(slice.uid());
            self.client
                .delete(ENDPOINT_SLICES, &slice.key(), &options)
                .await
                .map_err(Error::api("delete an EndpointSlice"))?;
        }
        Ok(())
    }

    /// A name whose creation has an unknown outcome and which the cache does not show.
    fn unsure_name(&self, key: &Key) -> Option<String> {
        let mut unsure = self.unsure.lock();
        let names = unsure.get_mut(key)?;
        names.retain(|name| self.slices.get(&Key::new(&key.namespace, name)).is_none());
        let name = names.pop();
        if names.is_empty() {
            unsure.remove(key);
        }
        name
    }

    /// The name is taken: by ourselves in an attempt with an unknown outcome, which is waited for like any write of ours
    /// (what is in it is seen to then); or by somebody else, and another name is drawn.
    async fn taken(&self, key: &Key, slice: &EndpointSlice) -> Result<(), Error> {
        let owner = |owners: &Option<Vec<OwnerReference>>| owners.iter().flatten().map(|it| it.uid.clone()).next();
        match self.client.fetch::<Meta>(ENDPOINT_SLICES, &slice.key()).await {
            Ok(found) if owner(&found.metadata.owner_references) == owner(&slice.metadata.owner_references) => {
                self.wrote(key, &found);
            }
            Ok(_) => {}
            Err(error) if client::is_not_found(&error) => {}
            Err(source) => {
                self.unsure.lock().entry(key.clone()).or_default().extend(slice.metadata.name.clone());
                return Err(Error::Api { what: "look for an EndpointSlice", source });
            }
        }
        Err(Error::Stale("a new EndpointSlice is not in the cache yet"))
    }

    async fn write_slice(&self, key: &Key, slice: &EndpointSlice) -> Result<(), Error> {
        let answer = self.client.replace(ENDPOINT_SLICES, &slice.key(), slice).await;
        self.wrote(key, &answer.map_err(Error::api("write an EndpointSlice"))?);
        Ok(())
    }

    fn wrote(&self, key: &Key, answer: &Meta) {
        let Some(name) = answer.metadata.name.as_deref() else { return };
        let version = version(answer.metadata.resource_version.as_deref());
        let written = Written { name: name.into(), version, at: Instant::now() };
        // The event may have come before this answer.
        let slice = self.slices.get(&Key { namespace: key.namespace.clone(), name: written.name.clone() });
        if slice.is_some_and(|slice| slice.version() >= version) {
            return;
        }
        let mut all = self.written.lock();
        let behind = all.entry(key.clone()).or_default();
        behind.writes.retain(|before| before.name != written.name);
        behind.writes.push(written);
    }

    /// How long to wait at most until the cache shows the Endpoints object that we wrote; its event comes back to the queue.
    fn unmirrored(&self, key: &Key) -> Option<Duration> {
        let mut mirrored = self.mirrored.lock();
        let (version, at) = mirrored.get(key)?;
        let shown = self.endpoints.get(key).is_some_and(|shown| shown.version() >= *version);
        let wait = BEHIND_MAX.saturating_sub(at.elapsed());
        if shown || wait.is_zero() {
            mirrored.remove(key);
            return None;
        }
        Some(wait)
    }

    async fn write_endpoints(&self, key: &Key, endpoints: Option<Endpoints>) -> Result<(), Error> {
        let Some(endpoints) = endpoints else { return Ok(()) };
        let written = match endpoints.metadata.resource_version {
            Some(_) => self.client.replace(ENDPOINTS, key, &endpoints).await,
            None => self.client.create(ENDPOINTS, &key.namespace, &endpoints).await,
        };
        let version = version(written.map_err(Error::api("write Endpoints"))?.metadata.resource_version.as_deref());
        if self.endpoints.get(key).is_none_or(|shown| shown.version() < version) {
            self.mirrored.lock().insert(key.clone(), (version, Instant::now()));
        }
        Ok(())
    }
}

/// Whether nothing changed that an endpoint shows.
fn same_endpoint(a: &Pod, b: &Pod) -> bool {
    a.ready == b.ready
        && a.deleting.is_some() == b.deleting.is_some()
        && a.is_terminal() == b.is_terminal()
        && a.ips == b.ips
        && a.node == b.node
        && a.labels == b.labels
        && a.uid == b.uid
}

/// The selector, if endpoints are ours to make.
fn selector_of(service: &Service) -> Option<&BTreeMap<String, String>> {
    let spec = service.spec.as_ref()?;
    if spec.type_.as_deref() == Some("ExternalName") {
        return None;
    }
    spec.selector.as_ref().filter(|selector| !selector.is_empty())
}

fn selects(service: &Service, labels: &BTreeMap<String, String>) -> bool {
    selector_of(service).is_some_and(|selector| selector::contains(labels, selector))
}

/// The Service whose slice it is, if it is ours to write.
fn service_of(slice: &EndpointSlice) -> Option<Key> {
    let labels = slice.metadata.labels.as_ref()?;
    if labels.get(slices::MANAGED_BY).is_none_or(|manager| manager != slices::MANAGER) {
        return None;
    }
    Some(Key::new(slice.metadata.namespace.as_deref().unwrap_or_default(), labels.get(slices::SERVICE_NAME)?))
}

fn zone_of(node: &Node) -> Option<&str> {
    node.metadata.labels.as_ref()?.get(ZONE).map(String::as_str).filter(|zone| !zone.is_empty())
}

/// Whether this controller has made it.
fn is_ours(endpoints: &Endpoints) -> bool {
    let labels = endpoints.metadata.labels.as_ref();
    labels.and_then(|labels| labels.get(mirror::MANAGED_BY)).is_some_and(|manager| manager == mirror::MANAGER)
}

fn owner_reference(service: &Service) -> OwnerReference {
    workload::owner_reference("v1", "Service", service.metadata.name.as_deref(), service.uid())
}
