//! ConfigMaps, Secrets and ClusterTrustBundles that pods of this node, or Ingresses, refer to, and no others.
//!
//! Each referenced object is watched by name (which is also all that a node may see of Secrets) from the first pod that
//! needs it until some time after the last; its initial list answers the first read, so a thousand pods of one Deployment
//! cost one request. A change is told to the pods that use the object. The bundles of a signer are one object here, of several.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use coracle_discovery::Again;
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::certificates::v1::ClusterTrustBundle;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::Api;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, watcher};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How long an object nobody uses is still watched: the next pod of a rollout comes soon.
const LINGER: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 120 });
/// How long a read waits for the API server.
const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of all bundles of a signer: as much as the files of a volume may have.
const BUNDLES_BYTES_MAX: usize = 64 << 20;

/// Objects that one pod may refer to. Each is a watch at the API server, whose places the node's agent shares with other duties.
pub const POD_MAX: usize = 1_000;

/// How many objects there may be.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Who refers to them: one, those of a namespace, and all, in words.
    words: [&'static str; 3],
    user: usize,
    namespace: usize,
    node: usize,
}

impl Bounds {
    /// Those of what pods of this node refer to.
    pub const PODS: Bounds = Bounds {
        words: ["pod", "the namespace's pods of this node", "the pods of this node"],
        user: POD_MAX,
        namespace: 5_000,
        node: 10_000,
    };
    /// Those of what Ingresses refer to: these are watched on every node.
    pub const INGRESSES: Bounds = Bounds {
        words: ["Ingress", "the namespace's Ingresses", "all Ingresses"],
        user: 64,
        namespace: 500,
        node: 5_000,
    };
    /// Those of what Gateways refer to, likewise: each is its own user. Who follows them (`ingress::gateways`) has bounds of his own, for those
    /// that are there and for those that are not, which these hold.
    pub const GATEWAYS: Bounds = Bounds {
        words: ["Secret", "the namespace's listeners of Gateways", "all listeners of Gateways"],
        user: 1,
        namespace: 1_000,
        node: 2_000,
    };
}

/// Which kind is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A ConfigMap.
    ConfigMap,
    /// A Secret.
    Secret,
    /// A ClusterTrustBundle.
    TrustBundle,
    /// Those of a signer that a selector of labels selects; the name is both, [`of_signer`].
    TrustBundlesOf,
}

/// The name of a [`Kind::TrustBundlesOf`]: no signer has a space in its name.
pub fn of_signer(signer: &str, labels: &str) -> Arc<str> {
    format!("{signer} {labels}").into()
}

/// Names one object.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

impl std::fmt::Display for ObjectKey {
    /// As messages about missing objects name it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = match self.kind {
            Kind::ConfigMap => "configmap",
            Kind::Secret => "secret",
            Kind::TrustBundle => "clustertrustbundle",
            Kind::TrustBundlesOf => "a clustertrustbundle of signer and labels",
        };
        write!(f, "{kind} {:?}", self.name)
    }
}

/// What an object holds; what is made of it shares its bytes.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Content {
    /// `data`; of bundles, the PEM text of each by its name.
    pub data: BTreeMap<String, Bytes>,
    /// `binaryData` of a ConfigMap.
    pub binary: BTreeMap<String, Bytes>,
    /// `type` of a Secret.
    pub secret_type: String,
}

impl From<ConfigMap> for Content {
    fn from(object: ConfigMap) -> Self {
        let bytes = |(name, text): (String, String)| (name, Bytes::from(text));
        Self {
            data: object.data.unwrap_or_default().into_iter().map(bytes).collect(),
            binary: object
                .binary_data
                .unwrap_or_default()
                .into_iter()
                .map(|(name, bytes)| (name, bytes.0.into()))
                .collect(),
            secret_type: String::new(),
        }
    }
}

impl From<Secret> for Content {
    fn from(object: Secret) -> Self {
        Self {
            data: object.data.unwrap_or_default().into_iter().map(|(name, bytes)| (name, bytes.0.into())).collect(),
            binary: BTreeMap::new(),
            secret_type: object.type_.unwrap_or_default(),
        }
    }
}

/// Why an object could not be read.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReadError {
    /// The API server refused, or could not be reached.
    #[error("{key}: {message}")]
    Refused {
        /// Which object.
        key: ObjectKey,
        /// The API server's words.
        message: String,
    },
    /// No answer came in time.
    #[error("{0}: timed out waiting for the API server")]
    TimedOut(ObjectKey),
    /// The pod, or whoever it is, refers to too many.
    #[error("the {0} refers to more than {1} ConfigMaps and Secrets")]
    TooMany(&'static str, usize),
    /// Those of its namespace, or all, do.
    #[error("{0}: {1} refer to {2} ConfigMaps and Secrets, and may refer to no more")]
    Full(ObjectKey, &'static str, usize),
}

#[derive(Debug, Clone)]
enum State {
    Unknown,
    Refused(String),
    Absent,
    Present(Arc<Content>),
}

#[derive(Debug)]
struct Entry {
    state: watch::Receiver<State>,
    users: HashSet<Arc<str>>,
    unused_since: Option<Instant>,
    stop: CancellationToken,
}

impl Entry {
    /// Whether this was one of its users, which it is no more.
    fn leave(&mut self, user: &str, now: Instant) -> bool {
        let was_used = self.users.remove(user);
        if was_used && self.users.is_empty() {
            self.unused_since = Some(now);
        }
        was_used
    }
}

/// What is followed, and how much of it is whose.
#[derive(Debug, Default)]
struct Table {
    entries: HashMap<ObjectKey, Entry>,
    /// Objects by the pod that uses them.
    by_user: HashMap<Arc<str>, usize>,
    /// Entries by namespace.
    by_namespace: HashMap<Arc<str>, usize>,
}

impl Table {
    fn insert(&mut self, key: ObjectKey, entry: Entry) {
        *self.by_namespace.entry(key.namespace.clone()).or_default() += 1;
        self.entries.insert(key, entry);
    }

    /// Lets go of what nobody uses and this is true of.
    fn let_go(&mut self, mut is_over: impl FnMut(&ObjectKey, Instant) -> bool) {
        let Self { entries, by_namespace, .. } = self;
        entries.retain(|key, entry| {
            if !entry.unused_since.is_some_and(|since| is_over(key, since)) {
                return true;
            }
            entry.stop.cancel();
            if let Some(count) = by_namespace.get_mut(&key.namespace) {
                *count -= 1;
                if *count == 0 {
                    by_namespace.remove(&key.namespace);
                }
            }
            false
        });
    }

    /// A user has so many less.
    fn has_less(&mut self, user: &str, less: usize) {
        if let Some(count) = self.by_user.get_mut(user) {
            *count -= less;
            if *count == 0 {
                self.by_user.remove(user);
            }
        }
    }

    fn in_namespace(&self, namespace: &str) -> usize {
        self.by_namespace.get(namespace).copied().unwrap_or(0)
    }

    /// Has room for one more object of this namespace, if need be by letting go of what lingers.
    fn make_room(&mut self, key: &ObjectKey, bounds: Bounds) -> Result<(), ReadError> {
        if self.in_namespace(&key.namespace) >= bounds.namespace {
            self.let_go(|other, _| other.namespace == key.namespace);
            if self.in_namespace(&key.namespace) >= bounds.namespace {
                return Err(ReadError::Full(key.clone(), bounds.words[1], bounds.namespace));
            }
        }
        if self.entries.len() >= bounds.node {
            self.let_go(|_, _| true);
            if self.entries.len() >= bounds.node {
                return Err(ReadError::Full(key.clone(), bounds.words[2], bounds.node));
            }
        }
        Ok(())
    }
}

/// Called with the uid of each pod that uses a changed object. Must not block.
pub type OnChange = Arc<dyn Fn(&str) + Send + Sync>;

/// The referenced objects. Clones share them.
#[derive(Clone)]
pub struct Objects {
    client: kube::Client,
    table: Arc<Mutex<Table>>,
    bounds: Bounds,
    /// Whether somebody will look at what nobody uses.
    is_swept: Arc<AtomicBool>,
    on_change: OnChange,
    shutdown: CancellationToken,
}

impl Objects {
    /// No object is watched before somebody reads it.
    pub fn new(client: kube::Client, bounds: Bounds, shutdown: CancellationToken, on_change: OnChange) -> Self {
        Self { client, table: Arc::default(), bounds, is_swept: Arc::default(), on_change, shutdown }
    }

    /// The object as it is now, if it exists; from now on `user` is told about its changes.
    pub async fn read(&self, key: &ObjectKey, user: &Arc<str>) -> Result<Option<Arc<Content>>, ReadError> {
        let mut state = self.subscribe(key, user)?;
        let known = state.wait_for(|state| !matches!(state, State::Unknown));
        let known = match tokio::time::timeout(READ_TIMEOUT, known).await {
            Ok(Ok(known)) => known.clone(),
            _ => return Err(ReadError::TimedOut(key.clone())),
        };
        match known {
            State::Present(content) => Ok(Some(content)),
            State::Refused(message) => Err(ReadError::Refused { key: key.clone(), message }),
            State::Absent | State::Unknown => Ok(None),
        }
    }

    /// The pod uses nothing any more.
    pub fn forget(&self, user: &str) {
        self.keep(user, |_| false);
    }

    /// It uses nothing but such objects any more; says whether it used another.
    pub fn keep(&self, user: &str, is_used: impl Fn(&ObjectKey) -> bool) -> bool {
        let now = Instant::now();
        let (mut is_unused, mut forgotten) = (false, 0);
        let mut table = self.table.lock();
        for (key, entry) in &mut table.entries {
            forgotten += usize::from(!is_used(key) && entry.leave(user, now));
            is_unused |= entry.unused_since.is_some();
        }
        table.has_less(user, forgotten);
        drop(table);
        if is_unused {
            self.have_swept();
        }
        forgotten > 0
    }

    /// It does not use this one any more.
    pub fn let_go(&self, key: &ObjectKey, user: &str) {
        let mut table = self.table.lock();
        let Some(entry) = table.entries.get_mut(key) else { return };
        if entry.leave(user, Instant::now()) {
            table.has_less(user, 1);
            drop(table);
            self.have_swept();
        }
    }

    /// Somebody looks, later, at what nobody uses.
    fn have_swept(&self) {
        if !self.is_swept.swap(true, Ordering::SeqCst) {
            let objects = self.clone();
            tokio::spawn(async move {
                // Only waits.
                tokio::select! {
                    () = objects.sweep() => {}
                    () = objects.shutdown.cancelled() => {}
                }
            });
        }
    }

    #[cfg(test)]
    pub fn may_be(&mut self, user: usize, namespace: usize, node: usize) {
        self.bounds = Bounds { user, namespace, node, ..self.bounds };
    }

    #[cfg(test)]
    pub fn is_used_by(&self, user: &str) -> bool {
        self.table.lock().entries.values().any(|entry| entry.users.contains(user))
    }

    /// Lets go of what nobody has used for a while, until there is no such object left.
    async fn sweep(&self) {
        loop {
            tokio::time::sleep(LINGER).await;
            let now = Instant::now();
            let mut table = self.table.lock();
            table.let_go(|_, since| now.duration_since(since) >= LINGER);
            if table.entries.values().all(|entry| entry.unused_since.is_none()) {
                // Under the lock: who forgets next begins anew.
                self.is_swept.store(false, Ordering::SeqCst);
                return;
            }
        }
    }

    fn subscribe(&self, key: &ObjectKey, user: &Arc<str>) -> Result<watch::Receiver<State>, ReadError> {
        let mut table = self.table.lock();
        if let Some(entry) = table.entries.get(key)
            && entry.users.contains(user)
        {
            return Ok(entry.state.clone());
        }
        if table.by_user.get(user).is_some_and(|count| *count >= self.bounds.user) {
            return Err(ReadError::TooMany(self.bounds.words[0], self.bounds.user));
        }
        if !table.entries.contains_key(key) {
            table.make_room(key, self.bounds)?;
            table.insert(key.clone(), self.start(key));
        }
        let Table { entries, by_user, .. } = &mut *table;
        let Some(entry) = entries.get_mut(key) else { return Err(ReadError::TimedOut(key.clone())) };
        *by_user.entry(user.clone()).or_default() += 1;
        entry.users.insert(user.clone());
        entry.unused_since = None;
        Ok(entry.state.clone())
    }

    fn start(&self, key: &ObjectKey) -> Entry {
        let (sender, state) = watch::channel(State::Unknown);
        let stop = self.shutdown.child_token();
        let observer = Observer { objects: self.clone(), key: key.clone(), sender };
        let cancelled = stop.clone();
        tokio::spawn(async move {
            // The watch holds nothing that is not rebuilt: it may be dropped anywhere.
            tokio::select! {
                () = observer.run() => {}
                () = cancelled.cancelled() => {}
            }
        });
        Entry { state, users: HashSet::new(), unused_since: None, stop }
    }
}

struct Observer {
    objects: Objects,
    key: ObjectKey,
    sender: watch::Sender<State>,
}

impl Observer {
    async fn run(&self) {
        match self.key.kind {
            Kind::ConfigMap => self.watch::<ConfigMap>().await,
            Kind::Secret => self.watch::<Secret>().await,
            Kind::TrustBundle => {
                let config = watcher::Config::default().fields(&format!("metadata.name={}", self.key.name));
                self.watch_bundles(config).await;
            }
            Kind::TrustBundlesOf => {
                let (signer, labels) = self.key.name.split_once(' ').unwrap_or_default();
                let config = watcher::Config::default().fields(&format!("spec.signerName={signer}")).labels(labels);
                self.watch_bundles(config).await;
            }
        }
    }

    async fn watch_bundles(&self, config: watcher::Config) {
        let api: Api<ClusterTrustBundle> = Api::all(self.objects.client.clone());
        let mut events = watcher(api, config).backoff(Again::new()).boxed();
        let mut bundles: BTreeMap<String, Bytes> = BTreeMap::new();
        let one = |bundle: ClusterTrustBundle| {
            (bundle.metadata.name.unwrap_or_default(), Bytes::from(bundle.spec.trust_bundle))
        };
        loop {
            match events.try_next().await {
                Ok(Some(watcher::Event::Init)) => bundles.clear(),
                Ok(Some(watcher::Event::InitApply(bundle))) => bundles.extend([one(bundle)]),
                Ok(Some(watcher::Event::InitDone)) => self.put(together(&bundles)),
                Ok(Some(watcher::Event::Apply(bundle))) => {
                    bundles.extend([one(bundle)]);
                    self.put(together(&bundles));
                }
                Ok(Some(watcher::Event::Delete(bundle))) => {
                    bundles.remove(&bundle.metadata.name.unwrap_or_default());
                    self.put(together(&bundles));
                }
                Ok(None) => return,
                Err(error) => {
                    // What is known stays known while the API server is away.
                    if matches!(*self.sender.borrow(), State::Unknown | State::Refused(_)) {
                        self.put(State::Refused(error.to_string()));
                    }
                }
            }
        }
    }

    async fn watch<K>(&self)
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
            + serde::de::DeserializeOwned
            + Clone
            + std::fmt::Debug
            + Send
            + Sync
            + Into<Content>
            + 'static,
    {
        let api: Api<K> = Api::namespaced(self.objects.client.clone(), &self.key.namespace);
        let config = watcher::Config::default().fields(&format!("metadata.name={}", self.key.name));
        let mut events = watcher(api, config).backoff(Again::new()).boxed();
        let mut listed = State::Absent;
        loop {
            match events.try_next().await {
                Ok(Some(watcher::Event::Init)) => listed = State::Absent,
                Ok(Some(watcher::Event::InitApply(object))) => listed = State::Present(Arc::new(object.into())),
                Ok(Some(watcher::Event::InitDone)) => self.put(listed.clone()),
                Ok(Some(watcher::Event::Apply(object))) => self.put(State::Present(Arc::new(object.into()))),
                Ok(Some(watcher::Event::Delete(_))) => self.put(State::Absent),
                Ok(None) => return,
                Err(error) => {
                    // What is known stays known while the API server is away.
                    if matches!(*self.sender.borrow(), State::Unknown | State::Refused(_)) {
                        self.put(State::Refused(error.to_string()));
                    }
                }
            }
        }
    }

    fn put(&self, state: State) {
        let same = match (&*self.sender.borrow(), &state) {
            (State::Absent, State::Absent) => true,
            (State::Present(old), State::Present(new)) => old == new,
            (State::Refused(old), State::Refused(new)) => old == new,
            _ => false,
        };
        if same {
            return;
        }
        let first = matches!(self.sender.send_replace(state), State::Unknown);
        if first {
            return;
        }
        let users: Vec<Arc<str>> = {
            let table = self.objects.table.lock();
            table.entries.get(&self.key).map(|entry| entry.users.iter().cloned().collect()).unwrap_or_default()
        };
        for user in users {
            (self.objects.on_change)(&user);
        }
    }
}

/// Bundles as one object, which is there when one of them is.
fn together(bundles: &BTreeMap<String, Bytes>) -> State {
    let bytes: usize = bundles.values().map(Bytes::len).sum();
    match bundles.is_empty() {
        true => State::Absent,
        false if bytes > BUNDLES_BYTES_MAX => {
            State::Refused(format!("they have {bytes} bytes together, more than {BUNDLES_BYTES_MAX}"))
        }
        false => State::Present(Arc::new(Content { data: bundles.clone(), ..Content::default() })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_last_pods_objects_go_when_it_has_gone() {
        let api = crate::tests::api::Api::default();
        api.put("secrets", "s", serde_json::json!({"k": "djE="}));
        let objects = Objects::new(api.client(), Bounds::PODS, CancellationToken::new(), Arc::new(|_| {}));
        let key = ObjectKey { kind: Kind::Secret, namespace: "default".into(), name: "s".into() };
        let user: Arc<str> = "uid".into();
        assert!(objects.read(&key, &user).await.unwrap().is_some());
        objects.let_go(&key, "another");
        assert!(objects.is_used_by(&user));
        objects.let_go(&key, &user);
        assert!(!objects.is_used_by(&user));
        assert_eq!(objects.table.lock().entries.len(), 1, "the next pod of a rollout comes soon");
        // Nobody forgets anything any more.
        crate::tests::until("it is let go", || objects.table.lock().entries.is_empty()).await;
        {
            let table = objects.table.lock();
            assert!(table.by_namespace.is_empty() && table.by_user.is_empty());
        }
        assert!(objects.read(&key, &user).await.unwrap().is_some(), "and is read again when it is wanted");
    }

    #[tokio::test]
    async fn a_pod_a_namespace_and_a_node_follow_so_many_and_no_more() {
        let api = crate::tests::api::Api::default();
        let mut objects = Objects::new(api.client(), Bounds::PODS, CancellationToken::new(), Arc::new(|_| {}));
        objects.may_be(3, 4, 6);
        let read = |namespace: &str, number: usize, user: &str| {
            let (namespace, name) = (namespace.into(), format!("o{number}").into());
            let key = ObjectKey { kind: Kind::ConfigMap, namespace, name };
            let (objects, user) = (objects.clone(), Arc::from(user));
            async move { objects.read(&key, &user).await.map(|content| content.is_some()) }
        };
        for number in 0..3 {
            assert!(!read("a", number, "one").await.unwrap());
        }
        let error = read("a", 3, "one").await.unwrap_err();
        assert!(matches!(error, ReadError::TooMany("pod", 3)), "{error}");
        assert!(read("a", 2, "one").await.is_ok(), "what it uses already is no other");
        assert!(read("a", 2, "two").await.is_ok() && read("a", 3, "two").await.is_ok());
        let error = read("a", 4, "two").await.unwrap_err();
        assert!(matches!(error, ReadError::Full(_, _, 4)), "{error}");
        assert!(read("b", 0, "three").await.is_ok() && read("b", 1, "three").await.is_ok());
        let error = read("c", 0, "four").await.unwrap_err();
        assert!(matches!(error, ReadError::Full(_, _, 6)), "{error}");
        // What only lingers gives way.
        objects.forget("three");
        assert!(read("c", 0, "four").await.is_ok());
        objects.forget("one");
        assert!(read("a", 4, "two").await.is_ok());
        // Some of it, and no more, whoever else uses it.
        assert!(read("a", 5, "two").await.is_err());
        assert!(objects.keep("two", |key| *key.name != *"o2") && !objects.keep("two", |_| true));
        assert!(read("a", 5, "two").await.is_ok() && read("a", 3, "two").await.is_ok());
        assert!(read("a", 6, "two").await.is_err());
    }
}
