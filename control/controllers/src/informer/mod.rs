//! Shared informers: one watch and one decode per kind and process, whoever looks.
//!
//! An informer keeps what controllers need of each object (see [`Object`]), by name and by controlling owner, and tells
//! handlers about every change, in order. A watch that breaks is taken up again by the kube runtime; after a relist the
//! difference is told as changes, so handlers never miss a deletion. An object that does not decode ([`Tolerant`]) is passed
//! over with a warning: what was known of it stays, and all others go on.

mod meta;
mod pod;
mod requests;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use coracle_tolerant::Tolerant;
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::Api;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, watcher};
use parking_lot::RwLock;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub(crate) use meta::{AnyObject, COMPLETION_INDEX, INDEX_FAILURES, INDEX_IGNORED_FAILURES, slim};
pub(crate) use pod::{Phase, Pod, Run, Wire as PodWire};

/// Names an object of some kind; the namespace of a cluster-scoped one is empty.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Key {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

impl Key {
    pub(crate) fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for Key {
    /// As Kubernetes writes it: `namespace/name`, or the name alone.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.namespace.is_empty() {
            write!(f, "{}/", self.namespace)?;
        }
        f.write_str(&self.name)
    }
}

/// What an informer keeps of a kind.
pub(crate) trait Object: Send + Sync + Sized + 'static {
    /// As it comes over the wire.
    type Wire: kube::Resource<DynamicType = ()> + Clone + serde::de::DeserializeOwned + fmt::Debug + Send + 'static;

    /// Keeps what is needed.
    fn keep(wire: Self::Wire) -> Self;
    /// Takes over what is equal in a similar object, so that it is in memory once.
    fn share(&mut self, _like: &Self) {}
    /// Its name.
    fn key(&self) -> Key;
    /// Its uid.
    fn uid(&self) -> &str;
    /// Uid of its controller.
    fn controller(&self) -> Option<&str>;
    /// Orders versions of an object.
    fn version(&self) -> u64;
    /// Whether it is as it was `before`. Its version says so, unless it can be renewed without one.
    fn is_same(&self, before: &Self) -> bool {
        self.version() == before.version()
    }
    /// Its finalizers.
    fn finalizers(&self) -> &[String];
    /// All its owners.
    fn owners(&self) -> &[OwnerReference];
    /// Whether it is being deleted.
    fn is_deleting(&self) -> bool;
    /// By what it is found besides its name.
    fn index(&self, add: &mut dyn FnMut(Index, &str)) {
        by_controller(self, add);
    }
}

/// By what objects are found besides their name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Index {
    /// The uid of the controlling owner.
    Controller,
    /// The namespace of an object that nobody controls.
    Orphan,
    /// The node of a pod.
    Node,
    /// The Service of an EndpointSlice, by name.
    Service,
    /// Pods that have finished, under the empty text.
    Finished,
    /// The claim of a volume, and those of a pod, as `NAMESPACE/NAME`.
    Claim,
    /// Volumes that are kept for no claim, and claims that name no volume, by their class.
    Unbound,
}

/// Number of variants of [`Index`].
const INDEXES: usize = 7;

/// The entry that every object has.
pub(crate) fn by_controller<K: Object>(object: &K, add: &mut dyn FnMut(Index, &str)) {
    match object.controller() {
        Some(owner) => add(Index::Controller, owner),
        None => add(Index::Orphan, &object.key().namespace),
    }
}

/// A change, told to handlers after the store has it.
pub(crate) enum Change<'a, K> {
    /// It was there before.
    Updated(&'a Arc<K>, &'a Arc<K>),
    /// It is new.
    Added(&'a Arc<K>),
    /// It is gone.
    Deleted(&'a Arc<K>),
}

impl<K> Change<'_, K> {
    /// The object as it is, or was last.
    pub(crate) fn object(&self) -> &Arc<K> {
        match self {
            Self::Updated(_, object) | Self::Added(object) | Self::Deleted(object) => object,
        }
    }

    /// The object before, if this is an update.
    pub(crate) fn before(&self) -> Option<&Arc<K>> {
        match self {
            Self::Updated(before, _) => Some(before),
            _ => None,
        }
    }
}

type Handler<K> = Box<dyn Fn(&Change<'_, K>) + Send + Sync>;

/// Objects by name and by [`Index`].
pub(crate) struct Store<K> {
    content: RwLock<Content<K>>,
}

struct Content<K> {
    objects: HashMap<Arc<str>, BTreeMap<Arc<str>, Arc<K>>>,
    indexes: [HashMap<Arc<str>, HashSet<Key>>; INDEXES],
}

impl<K> Default for Store<K> {
    fn default() -> Self {
        Self { content: RwLock::new(Content { objects: HashMap::new(), indexes: Default::default() }) }
    }
}

impl<K: Object> Store<K> {
    pub(crate) fn get(&self, key: &Key) -> Option<Arc<K>> {
        self.content.read().get(key).cloned()
    }

    /// Those in the namespace that match; the test must be short.
    pub(crate) fn select(&self, namespace: &str, mut test: impl FnMut(&K) -> bool) -> Vec<Arc<K>> {
        let content = self.content.read();
        let Some(objects) = content.objects.get(namespace) else { return Vec::new() };
        objects.values().filter(|object| test(object)).cloned().collect()
    }

    /// All.
    pub(crate) fn all(&self) -> Vec<Arc<K>> {
        self.content.read().objects.values().flat_map(BTreeMap::values).cloned().collect()
    }

    /// Those that this owner controls.
    pub(crate) fn controlled_by(&self, uid: &str) -> Vec<Arc<K>> {
        self.by(Index::Controller, uid)
    }

    /// Those under an entry of an index.
    pub(crate) fn by(&self, index: Index, entry: &str) -> Vec<Arc<K>> {
        let content = self.content.read();
        let Some(keys) = content.indexes[index as usize].get(entry) else { return Vec::new() };
        keys.iter().filter_map(|key| content.get(key)).cloned().collect()
    }

    /// How many there are under an entry of an index.
    pub(crate) fn count(&self, index: Index, entry: &str) -> usize {
        self.content.read().indexes[index as usize].get(entry).map_or(0, HashSet::len)
    }

    /// The object as it is kept, and as it was before.
    fn put(&self, mut object: K) -> (Arc<K>, Option<Arc<K>>) {
        let mut key = object.key();
        let mut content = self.content.write();
        let before = content.get(&key).cloned();
        let sibling = || {
            let siblings = content.indexes[Index::Controller as usize].get(object.controller()?)?;
            content.get(siblings.iter().next()?).cloned()
        };
        if let Some(like) = before.clone().or_else(sibling) {
            object.share(&like);
            key = object.key();
        }
        let object = Arc::new(object);
        content.link(before.as_deref(), &object, &key);
        content.objects.entry(key.namespace).or_default().insert(key.name, object.clone());
        (object, before)
    }

    fn remove(&self, key: &Key) -> Option<Arc<K>> {
        let mut content = self.content.write();
        let objects = content.objects.get_mut(&key.namespace)?;
        let before = objects.remove(&key.name)?;
        if objects.is_empty() {
            content.objects.remove(&key.namespace);
        }
        for (index, entry) in entries(&*before) {
            content.unlink(index, &entry, key);
        }
        Some(before)
    }

    fn keys(&self) -> HashSet<Key> {
        let content = self.content.read();
        let keys = content.objects.iter().flat_map(|(namespace, objects)| {
            objects.keys().map(|name| Key { namespace: namespace.clone(), name: name.clone() })
        });
        keys.collect()
    }
}

impl<K: Object> Content<K> {
    fn get(&self, key: &Key) -> Option<&Arc<K>> {
        self.objects.get(&key.namespace)?.get(&key.name)
    }

    fn link(&mut self, before: Option<&K>, now: &K, key: &Key) {
        let old = before.map(entries).unwrap_or_default();
        let new = entries(now);
        for (index, entry) in old.iter().filter(|entry| new.binary_search(entry).is_err()) {
            self.unlink(*index, entry, key);
        }
        for (index, entry) in new.iter().filter(|entry| old.binary_search(entry).is_err()) {
            self.indexes[*index as usize].entry(entry.as_str().into()).or_default().insert(key.clone());
        }
    }

    fn unlink(&mut self, index: Index, entry: &str, key: &Key) {
        let index = &mut self.indexes[index as usize];
        if let Some(keys) = index.get_mut(entry) {
            keys.remove(key);
            if keys.is_empty() {
                index.remove(entry);
            }
        }
    }
}

/// The entries of an object, in order: a pod may have thousands of claims.
fn entries<K: Object>(object: &K) -> Vec<(Index, String)> {
    let mut entries = Vec::with_capacity(2);
    object.index(&mut |index, entry| entries.push((index, entry.to_owned())));
    entries.sort_unstable();
    entries
}

/// Feeds a store from a watch.
pub(crate) struct Informer<K: Object> {
    store: Arc<Store<K>>,
    handlers: Vec<Handler<K>>,
    synced: watch::Sender<bool>,
}

impl<K: Object> Default for Informer<K> {
    fn default() -> Self {
        Self { store: Arc::default(), handlers: Vec::new(), synced: watch::Sender::new(false) }
    }
}

impl<K: Object> Informer<K> {
    pub(crate) fn store(&self) -> Arc<Store<K>> {
        self.store.clone()
    }

    /// Calls `handler` for every change. It must not block, and may only be added before the informer runs.
    pub(crate) fn on_change(&mut self, handler: impl Fn(&Change<'_, K>) + Send + Sync + 'static) {
        self.handlers.push(Box::new(handler));
    }

    /// Becomes true when the first list is in the store.
    pub(crate) fn synced(&self) -> watch::Receiver<bool> {
        self.synced.subscribe()
    }

    /// Watches until shutdown.
    pub(crate) async fn run(self, client: kube::Client, config: watcher::Config, shutdown: CancellationToken)
    where
        K::Wire: kube::Resource,
    {
        let api: Api<Tolerant<K::Wire>> = Api::all(client);
        let mut events = watcher(api, config.streaming_lists()).default_backoff().boxed();
        let mut absent: Option<HashSet<Key>> = None;
        loop {
            // Waiting is all that is cut here.
            let event = tokio::select! {
                event = events.try_next() => event,
                () = shutdown.cancelled() => return,
            };
            match event {
                Ok(Some(watcher::Event::Init)) => absent = Some(self.store.keys()),
                Ok(Some(watcher::Event::InitApply(wire))) => {
                    let object = Self::keep(wire);
                    if let Some(absent) = &mut absent {
                        absent.remove(&object.as_ref().map_or_else(Key::clone, K::key));
                    }
                    if let Ok(object) = object {
                        self.apply(object);
                    }
                }
                Ok(Some(watcher::Event::InitDone)) => {
                    for key in absent.take().unwrap_or_default() {
                        self.delete(&key);
                    }
                    self.synced.send_replace(true);
                }
                Ok(Some(watcher::Event::Apply(wire))) => {
                    if let Ok(object) = Self::keep(wire) {
                        self.apply(object);
                    }
                }
                Ok(Some(watcher::Event::Delete(wire))) => match Self::keep(wire) {
                    // The last state is told: it may carry what only the deletion has set.
                    Ok(object) => {
                        let object = Arc::new(object);
                        if self.store.remove(&object.key()).is_some() {
                            self.tell(&Change::Deleted(&object));
                        }
                    }
                    Err(key) => self.delete(&key),
                },
                Ok(None) => return,
                Err(error) => {
                    let kind = <K::Wire as kube::Resource>::kind(&());
                    tracing::debug!(%kind, error = %crate::error::chain(&error), "watch again");
                }
            }
        }
    }

    /// What is kept of it; the name alone of one that does not decode.
    fn keep(wire: Tolerant<K::Wire>) -> Result<K, Key> {
        match wire {
            Tolerant::Good(wire) => Ok(K::keep(wire)),
            Tolerant::Odd { meta, why } => {
                let key =
                    Key::new(meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default());
                let kind = <K::Wire as kube::Resource>::kind(&());
                tracing::warn!(%kind, object = %key, %why, "an object does not decode and is passed over");
                Err(key)
            }
        }
    }

    fn apply(&self, object: K) {
        let (object, before) = self.store.put(object);
        match before {
            // One that took the name of another, whose end was missed.
            Some(before) if before.uid() != object.uid() => {
                self.tell(&Change::Deleted(&before));
                self.tell(&Change::Added(&object));
            }
            Some(before) if object.is_same(&before) => {}
            Some(before) => self.tell(&Change::Updated(&before, &object)),
            None => self.tell(&Change::Added(&object)),
        }
    }

    fn delete(&self, key: &Key) {
        if let Some(before) = self.store.remove(key) {
            self.tell(&Change::Deleted(&before));
        }
    }

    /// As if the watch had told of the object.
    #[cfg(test)]
    pub(crate) fn show(&self, object: K) {
        self.apply(object);
    }

    /// As if the watch had told of its end.
    #[cfg(test)]
    pub(crate) fn show_end(&self, key: &Key) {
        self.delete(key);
    }

    fn tell(&self, change: &Change<'_, K>) {
        for handler in &self.handlers {
            handler(change);
        }
    }
}

/// The reference of the controller.
pub(crate) fn controller(owners: Option<&[OwnerReference]>) -> Option<&OwnerReference> {
    owners?.iter().find(|owner| owner.controller == Some(true))
}

/// `metadata.resourceVersion` as a number; Coracle's always are.
pub(crate) fn version(text: Option<&str>) -> u64 {
    text.and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// Label of EndpointSlices.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Kinds that are kept as they come, but for `managedFields`.
macro_rules! whole {
    ($($kind:ty $(, by $more:path)?);*) => {$(
        impl Object for $kind {
            type Wire = Self;

            fn keep(mut wire: Self) -> Self {
                wire.metadata.managed_fields = None;
                if let Some(annotations) = &mut wire.metadata.annotations {
                    // Large, and never read or copied by controllers.
                    annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
                }
                wire
            }

            fn key(&self) -> Key {
                Key::new(
                    self.metadata.namespace.as_deref().unwrap_or_default(),
                    self.metadata.name.as_deref().unwrap_or_default(),
                )
            }

            fn uid(&self) -> &str {
                self.metadata.uid.as_deref().unwrap_or_default()
            }

            fn controller(&self) -> Option<&str> {
                controller(self.metadata.owner_references.as_deref()).map(|owner| owner.uid.as_str())
            }

            fn version(&self) -> u64 {
                version(self.metadata.resource_version.as_deref())
            }

            // A node's lease is renewed without another version.
            fn is_same(&self, before: &Self) -> bool {
                self.version() == before.version() && self == before
            }

            fn finalizers(&self) -> &[String] {
                self.metadata.finalizers.as_deref().unwrap_or_default()
            }

            fn owners(&self) -> &[OwnerReference] {
                self.metadata.owner_references.as_deref().unwrap_or_default()
            }

            fn is_deleting(&self) -> bool {
                self.metadata.deletion_timestamp.is_some()
            }

            fn index(&self, add: &mut dyn FnMut(Index, &str)) {
                by_controller(self, add);
                if let Some(service) = self.metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE_NAME)) {
                    add(Index::Service, service);
                }
                $($more(self, add);)?
            }
        }
    )*};
}

whole!(
    k8s_openapi::api::apps::v1::ControllerRevision;
    k8s_openapi::api::apps::v1::DaemonSet;
    k8s_openapi::api::apps::v1::Deployment;
    k8s_openapi::api::apps::v1::ReplicaSet;
    k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
    k8s_openapi::api::apps::v1::StatefulSet;
    k8s_openapi::api::batch::v1::CronJob;
    k8s_openapi::api::certificates::v1::CertificateSigningRequest;
    k8s_openapi::api::certificates::v1::PodCertificateRequest;
    k8s_openapi::api::batch::v1::Job;
    k8s_openapi::api::coordination::v1::Lease;
    k8s_openapi::api::core::v1::ConfigMap;
    k8s_openapi::api::core::v1::Endpoints;
    k8s_openapi::api::core::v1::Namespace;
    k8s_openapi::api::core::v1::Node;
    k8s_openapi::api::core::v1::ResourceQuota;
    k8s_openapi::api::core::v1::PersistentVolume, by crate::volumes::index_volume;
    k8s_openapi::api::core::v1::PersistentVolumeClaim, by crate::volumes::index_claim;
    k8s_openapi::api::core::v1::Service;
    k8s_openapi::api::core::v1::ServiceAccount;
    k8s_openapi::api::discovery::v1::EndpointSlice;
    k8s_openapi::api::networking::v1::Ingress;
    k8s_openapi::api::networking::v1::IngressClass;
    k8s_openapi::api::policy::v1::PodDisruptionBudget;
    k8s_openapi::api::storage::v1::StorageClass
);

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(name: &str, uid: &str, owner: &str, version: u64) -> Pod {
        pod::tests::pod(json!({"metadata": {
            "name": name, "namespace": "n", "uid": uid, "resourceVersion": version.to_string(), "labels": {"app": "a"},
            "ownerReferences": [{"apiVersion": "v1", "kind": "Owner", "name": owner, "uid": owner, "controller": true}],
        }}))
    }

    fn names(pods: &[Arc<Pod>]) -> Vec<String> {
        let mut names: Vec<_> = pods.iter().map(|pod| pod.key.name.to_string()).collect();
        names.sort();
        names
    }

    #[test]
    fn finds_objects_by_controller_as_it_changes() {
        let store = Store::default();
        store.put(pod("a", "a", "one", 1));
        store.put(pod("b", "b", "one", 1));
        assert_eq!(names(&store.controlled_by("one")), ["a", "b"]);
        store.put(pod("a", "a", "two", 2));
        assert_eq!(
            (names(&store.controlled_by("one")), names(&store.controlled_by("two"))),
            (vec!["b".into()], vec!["a".into()])
        );
        store.remove(&Key::new("n", "b"));
        assert!(store.controlled_by("one").is_empty());
        assert_eq!(store.content.read().indexes[Index::Controller as usize].len(), 1);
    }

    #[test]
    fn a_pod_with_thousands_of_claims_and_ports_keeps_nobody_waiting() {
        let volume = |index: usize| json!({"name": "v", "persistentVolumeClaim": {"claimName": format!("c{index}")}});
        let port = |index: usize| json!({"name": format!("p{index}"), "containerPort": index % 65_536});
        let pod = |version: usize| {
            pod::tests::pod(json!({
                "metadata": {"name": "a", "namespace": "n", "uid": "a", "resourceVersion": version.to_string()},
                "spec": {
                    "volumes": (version..version + 30_000).map(volume).collect::<Vec<_>>(),
                    "containers": [{"ports": (0..30_000).map(port).collect::<Vec<_>>()}],
                },
            }))
        };
        let (store, pods) = (Store::default(), [pod(1), pod(2)]);
        let begun = std::time::Instant::now();
        let found = (0..30_000).filter(|index| pods[0].port(&format!("p{index}"), "TCP") == Some(*index)).count();
        assert_eq!((found, pods[0].port("p1", "UDP"), pods[0].port("p", "TCP")), (30_000, None, None));
        pods.into_iter().for_each(|pod| drop(store.put(pod)));
        assert!(begun.elapsed() < std::time::Duration::from_secs(5), "{:?}", begun.elapsed());
        assert_eq!((store.by(Index::Claim, "n/c1").len(), store.by(Index::Claim, "n/c30001").len()), (0, 1));
    }

    #[test]
    fn keeps_once_what_siblings_have_in_common() {
        let store = Store::default();
        let (a, _) = store.put(pod("a", "a", "one", 1));
        let (b, _) = store.put(pod("b", "b", "one", 1));
        assert!(Arc::ptr_eq(&a.labels, &b.labels) && Arc::ptr_eq(&a.owners, &b.owners));
        assert!(Arc::ptr_eq(&a.key.namespace, &b.key.namespace));
    }

    #[test]
    fn tells_what_changed() {
        let mut informer = Informer::default();
        let told: Arc<parking_lot::Mutex<Vec<String>>> = Arc::default();
        informer.on_change({
            let told = told.clone();
            move |change: &Change<'_, Pod>| {
                let kind = match change {
                    Change::Added(_) => "added",
                    Change::Updated(..) => "updated",
                    Change::Deleted(_) => "deleted",
                };
                told.lock().push(format!("{kind} {}", change.object().uid));
            }
        });
        informer.apply(pod("a", "one", "o", 1));
        informer.apply(pod("a", "one", "o", 1));
        informer.apply(pod("a", "one", "o", 2));
        informer.apply(pod("a", "two", "o", 3));
        informer.delete(&Key::new("n", "a"));
        let expected = ["added one", "updated one", "deleted one", "added two", "deleted two"];
        assert_eq!(*told.lock(), expected);
    }
}
