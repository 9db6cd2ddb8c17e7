//! What feeds the graph: the shared informers, and for every other kind a watch of metadata alone.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use coracle_api::kinds::is_local_version;
use coracle_tolerant::Tolerant;
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Resource as _;
use kube::api::Api;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, watcher};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::graph::{FOREGROUND, ORPHAN, OWNERS_MAX, Seen, Uid, Work};
use super::{Controller, Happened};
use crate::discovery::Kind;
use crate::foreign;
use crate::informer::{AnyObject, Change, Informer, Key, Object, version};

/// After a definition changed, others often do at once.
const SETTLE: Duration = Duration::from_millis(300);
/// Between attempts to discover kinds, and all kinds where some could not be asked for.
const RETRY: Duration = Duration::from_secs(2);
/// Objects of a group that another server may keep, with their references to owners: it may say that there are any number. The
/// others are not collected.
pub(super) const OTHERS_MAX: usize = if cfg!(test) { 100 } else { 100_000 };
/// Bytes of each name in the metadata of such an object: what has more is none.
pub(super) const NAME_BYTES_MAX: usize = 512;
/// How long the first lists of unshared kinds are waited for.
const SYNC_MAX: Duration = Duration::from_secs(20);

/// The watch of a kind.
struct Watch {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Watch {
    /// Nothing is seen by it any more: what it said after all of its kind were forgotten would stay for ever.
    async fn end(self) {
        self.stop.cancel();
        if let Err(error) = self.task.await {
            tracing::error!(%error, "the watch of a kind panicked");
        }
    }
}

/// A kind that a shared informer watches.
pub(crate) fn shared_kind(group: &str, version: &str, kind: &str, plural: &str, namespaced: bool) -> Kind {
    Kind {
        group: group.into(),
        version: version.into(),
        kind: kind.into(),
        plural: plural.into(),
        namespaced,
        delete_collection: true,
    }
}

impl Controller {
    /// Feeds the graph from a shared informer.
    pub(crate) fn listen<K: Object>(self: &Arc<Self>, informer: &mut Informer<K>, kind: Kind) {
        let kind = Arc::new(kind);
        self.shared.lock().insert((kind.group.clone(), kind.plural.clone()));
        let this = self.clone();
        informer.on_change(move |change| {
            let object = change.object();
            match change {
                Change::Deleted(_) => this.gone(&kind, object.uid(), &object.key()),
                // Renewed without another version (a node's lease): what the graph knows of it is as it was.
                Change::Updated(before, _) if before.version() == object.version() => {}
                _ => this.seen(
                    &kind,
                    object.uid(),
                    object.key(),
                    object.version(),
                    object.owners(),
                    object.finalizers(),
                    object.is_deleting(),
                ),
            }
        });
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one object's metadata")]
    fn seen(
        &self,
        kind: &Arc<Kind>,
        uid: &str,
        key: Key,
        version: u64,
        owners: &[OwnerReference],
        finalizers: &[String],
        deleting: bool,
    ) {
        let has = |name: &str| finalizers.iter().any(|finalizer| finalizer == name);
        let (foreground, orphan) = (has(FOREGROUND), has(ORPHAN));
        if !key.namespace.is_empty() {
            (self.on_event)(kind, &key.namespace, Happened::Seen);
        }
        if owners.len() > OWNERS_MAX {
            self.report_crowd(uid, kind, &key, owners.len());
        }
        let mut graph = self.graph.lock();
        let owners = graph.share(owners);
        let seen = Seen { kind: kind.clone(), key, version, owners, deleting, foreground, orphan };
        let work = graph.put(&uid.into(), seen);
        drop(graph);
        self.enqueue(work);
    }

    pub(super) fn gone(&self, kind: &Kind, uid: &str, key: &Key) {
        let work = self.graph.lock().remove(uid);
        self.enqueue(work);
        if !key.namespace.is_empty() {
            (self.on_event)(kind, &key.namespace, Happened::Gone);
        }
    }

    fn enqueue(&self, work: Work) {
        for (uid, owner) in &work.invalid {
            self.report_invalid(uid, owner);
        }
        for uid in work.now {
            self.queue.add(&uid);
        }
        for uid in work.unseen {
            self.queue.add_after(&uid, super::APPEARS_WITHIN);
        }
    }

    /// Watches all kinds that no shared informer watches, as they come and go; returns at shutdown. `synced` is told
    /// when the first lists are complete.
    pub(crate) async fn watch_others(self: Arc<Self>, synced: Arc<Notify>, shutdown: CancellationToken) {
        let tasks = TaskTracker::new();
        let mut watched: HashMap<Arc<Kind>, Watch> = HashMap::new();
        let mut first = true;
        while !shutdown.is_cancelled() {
            match self.discovery.refresh().await {
                Ok(found) => {
                    let kinds: HashSet<Arc<Kind>> =
                        found.kinds.iter().filter(|kind| self.is_other(kind)).cloned().map(Arc::new).collect();
                    // Of a group that did not say everything nothing is known to be gone.
                    let silent: HashSet<&str> = found
                        .failures
                        .iter()
                        .map(|version| version.split_once('/').map_or("", |(group, _)| group))
                        .collect();
                    let stays = |kind: &Arc<Kind>| kinds.contains(kind) || silent.contains(&*kind.group);
                    let gone: Vec<(Arc<Kind>, Watch)> = watched.extract_if(|kind, _| !stays(kind)).collect();
                    for (kind, watch) in gone {
                        watch.end().await;
                        self.unserve(&kind);
                    }
                    let mut waiting = Vec::new();
                    for kind in kinds {
                        // In another version, perhaps, where the preferred one did not answer.
                        let there = |known: &Arc<Kind>| (&known.group, &known.plural) == (&kind.group, &kind.plural);
                        if watched.keys().any(there) {
                            continue;
                        }
                        let stop = shutdown.child_token();
                        let (ready, listed) = tokio::sync::oneshot::channel();
                        waiting.push(listed);
                        let task = tasks.spawn(self.clone().watch(kind.clone(), ready, stop.clone()));
                        watched.insert(kind, Watch { stop, task });
                    }
                    self.unpark();
                    if std::mem::take(&mut first) {
                        let all = futures::future::join_all(waiting);
                        tokio::select! {
                            _ = tokio::time::timeout(SYNC_MAX, all) => {}
                            () = shutdown.cancelled() => {}
                        }
                        synced.notify_one();
                    }
                    let retry = async {
                        match found.failures.is_empty() {
                            true => std::future::pending().await,
                            false => tokio::time::sleep(RETRY).await,
                        }
                    };
                    // Waiting is all that is cut here.
                    tokio::select! {
                        () = retry => {}
                        () = self.definitions_changed.notified() => tokio::time::sleep(SETTLE).await,
                        () = shutdown.cancelled() => {}
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "discovery failed");
                    tokio::select! {
                        () = tokio::time::sleep(RETRY) => {}
                        () = shutdown.cancelled() => {}
                    }
                }
            }
        }
        tasks.close();
        tasks.wait().await;
    }

    /// Events come and go by themselves in masses, and own nothing.
    fn is_other(&self, kind: &Kind) -> bool {
        &*kind.plural != "events" && !self.shared.lock().contains(&(kind.group.clone(), kind.plural.clone()))
    }

    async fn watch(
        self: Arc<Self>,
        kind: Arc<Kind>,
        ready: tokio::sync::oneshot::Sender<()>,
        shutdown: CancellationToken,
    ) {
        let mut ready = Some(ready);
        let api: Api<Tolerant<AnyObject>> = Api::all_with(self.client.0.clone(), &kind.api_resource());
        let streamed = watcher::Config::default().streaming_lists();
        let mut events = watcher(api.clone(), streamed).default_backoff().boxed();
        let mut absent: HashSet<Uid> = HashSet::new();
        let definitions = matches!(&*kind.plural, "customresourcedefinitions" | "apiservices");
        let (mut is_crowded, mut is_streamed) = (false, true);
        loop {
            // Waiting is all that is cut here.
            let event = tokio::select! {
                event = events.try_next() => event,
                () = shutdown.cancelled() => return,
            };
            match event {
                Ok(Some(watcher::Event::Init)) => absent = self.graph.lock().of_kind(&kind),
                Ok(Some(watcher::Event::InitApply(object))) => {
                    absent.remove(object.meta().uid.as_deref().unwrap_or_default());
                    self.seen_object(&kind, &object, &mut is_crowded);
                }
                Ok(Some(watcher::Event::InitDone)) => {
                    self.drop_all(std::mem::take(&mut absent));
                    ready.take().map(|ready| ready.send(()));
                }
                Ok(Some(watcher::Event::Apply(object))) => {
                    self.seen_object(&kind, &object, &mut is_crowded);
                    if definitions {
                        self.definitions_changed.notify_one();
                    }
                }
                Ok(Some(watcher::Event::Delete(object))) => {
                    let key = key(object.meta());
                    self.gone(&kind, object.meta().uid.as_deref().unwrap_or_default(), &key);
                    if definitions {
                        self.definitions_changed.notify_one();
                    }
                }
                Ok(None) => return,
                Err(error) => {
                    tracing::debug!(kind = %kind.plural, error = %crate::error::chain(&error), "watch again");
                    // Once: what is refused to a list in pages, too, is asked for again with back-off.
                    if is_streamed && is_no_stream(&error) {
                        is_streamed = false;
                        events = watcher(api.clone(), foreign::in_pages()).default_backoff().boxed();
                        continue;
                    }
                    // One kind that cannot be listed must not hold the others up.
                    ready.take().map(|ready| ready.send(()));
                }
            }
        }
    }

    pub(super) fn seen_object(&self, kind: &Arc<Kind>, object: &Tolerant<AnyObject>, is_crowded: &mut bool) {
        let meta = match object {
            Tolerant::Good(object) => &object.metadata,
            Tolerant::Odd { meta, why } => {
                tracing::warn!(kind = %kind.plural, object = %key(meta), %why, "an object does not decode and is passed over");
                return;
            }
        };
        if !is_local_version(&kind.group, &kind.version) && !self.has_room(kind, meta) {
            if !std::mem::replace(is_crowded, true) {
                tracing::warn!(kind = %kind.plural, group = %kind.group, "objects beyond the bound are not collected");
            }
            return;
        }
        self.seen(
            kind,
            meta.uid.as_deref().unwrap_or_default(),
            key(meta),
            version(meta.resource_version.as_deref()),
            meta.owner_references.as_deref().unwrap_or_default(),
            meta.finalizers.as_deref().unwrap_or_default(),
            meta.deletion_timestamp.is_some(),
        );
    }

    /// Whether an object that another server may have made up is one, and there is room for what is known of it.
    fn has_room(&self, kind: &Kind, meta: &ObjectMeta) -> bool {
        let own = [&meta.name, &meta.namespace, &meta.uid].into_iter().flatten();
        let owners = meta.owner_references.iter().flatten();
        let owners = owners.flat_map(|owner| [&owner.api_version, &owner.kind, &owner.name, &owner.uid]);
        if own.chain(owners).any(|name| name.len() > NAME_BYTES_MAX) {
            return false;
        }
        let graph = self.graph.lock();
        let known = meta.uid.as_deref().and_then(|uid| graph.get(uid)).filter(|seen| seen.kind.group == kind.group);
        let references = meta.owner_references.as_ref().map(Vec::len).filter(|references| *references <= OWNERS_MAX);
        let (before, after) = (known.map_or(0, Seen::weight), 1 + references.unwrap_or_default());
        after <= before || graph.weight(&kind.group) - before + after <= OTHERS_MAX
    }

    /// The kind is no longer served.
    fn unserve(&self, kind: &Kind) {
        let uids = self.graph.lock().of_kind(kind);
        self.drop_all(uids);
    }

    fn drop_all(&self, uids: HashSet<Uid>) {
        for uid in uids {
            let seen = self.graph.lock().get(&uid).map(|seen| (seen.kind.clone(), seen.key.clone()));
            if let Some((kind, key)) = seen {
                self.gone(&kind, &uid, &key);
            }
        }
    }
}

/// Whether a watch is refused as one that begins with all that there is: not every API server knows of such.
fn is_no_stream(error: &watcher::Error) -> bool {
    let watcher::Error::WatchStartFailed(kube::Error::Api(status)) = error else { return false };
    matches!(status.code, 400 | 422)
}

fn key(meta: &ObjectMeta) -> Key {
    Key::new(meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default())
}
