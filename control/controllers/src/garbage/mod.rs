//! The garbage collector: objects whose owners are gone go too (kubernetes-api §8.3).
//!
//! [`feed`] keeps a [`graph`] of all deletable kinds; [`plan`] decides about one object. A graph that is behind does no
//! harm: that an owner is gone, or waits for its dependents, is asked of the API, and a dependent is deleted only in the
//! version that was decided on.
//!
//! An owner is what a reference says in full: kind, namespace (the dependent's), name and uid. What is found absent is
//! remembered as that ([`Identity`]), so a reference that is wrong in one of them harms nobody but its own object.

mod feed;
mod graph;
mod plan;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::Error;
use crate::client::{self, Client, DeleteOptions, Meta};
use crate::discovery::{Discovery, Kind};
use crate::events::{Record, Recorder, Subject};
use crate::informer::{Key, version};
use crate::queue::{Next, Queue, Reconciler};

pub(crate) use feed::shared_kind;
use graph::{FOREGROUND, Graph, ORPHAN, OWNERS_MAX, Owner, Seen, Uid};
use plan::{Fate, OwnerState};

/// An owner that is referred to is usually seen a moment later; only then is it asked for.
const APPEARS_WITHIN: Duration = Duration::from_millis(500);

/// After this an object is looked at again whose owner's kind is not served; earlier when kinds change.
const UNSERVED_AGAIN: Duration = Duration::from_secs(300);

/// How often a change by somebody else is met before the object goes back into the queue.
const ATTEMPTS: u32 = 5;

/// Dependents of one owner that are written at a time.
const SIDE_BY_SIDE: usize = 32;

const COMPONENT: &str = "garbage-collector-controller";

/// Absent owners that are remembered; at the bound they are asked for again.
const ABSENT_MAX: usize = 4096;

/// An owner as a reference names it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Identity {
    /// Empty for a cluster-scoped owner.
    namespace: Arc<str>,
    api_version: Arc<str>,
    kind: Arc<str>,
    name: Arc<str>,
    uid: Uid,
}

impl Identity {
    fn new(namespace: &Arc<str>, owner: &Owner) -> Self {
        let Owner { uid, api_version, kind, name, .. } = owner.clone();
        Self { namespace: namespace.clone(), api_version, kind, name, uid }
    }
}

/// What the graph hears of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Happened {
    /// It is there, new or changed.
    Seen,
    /// It is gone.
    Gone,
}

type OnEvent = Box<dyn Fn(&Kind, &str, Happened) + Send + Sync>;

/// The garbage collector.
pub(crate) struct Controller {
    client: Client,
    discovery: Discovery,
    queue: Queue<Uid>,
    graph: Mutex<Graph>,
    /// Kinds that shared informers watch, by group and plural.
    shared: Mutex<HashSet<(Arc<str>, Arc<str>)>>,
    definitions_changed: Notify,
    on_event: OnEvent,
    /// Owners that were found absent. Uids do not come back.
    absent: Mutex<HashSet<Identity>>,
    /// What waits for the kind of an owner to be served. Bounded by the objects.
    parked: Mutex<HashSet<Uid>>,
    recorder: Recorder,
}

impl Controller {
    /// `on_event` is called with kind and namespace of everything that is seen or gone; it must not block.
    pub(crate) fn new(client: Client, recorder: Recorder, discovery: Discovery, on_event: OnEvent) -> Arc<Self> {
        Arc::new(Self {
            client,
            discovery,
            queue: Queue::new(Duration::ZERO),
            graph: Mutex::default(),
            shared: Mutex::default(),
            definitions_changed: Notify::new(),
            on_event,
            absent: Mutex::default(),
            parked: Mutex::default(),
            recorder,
        })
    }
}

impl Reconciler for Controller {
    type Key = Uid;
    const NAME: &'static str = "garbage";
    const WORKERS: usize = 32;

    fn queue(&self) -> &Queue<Uid> {
        &self.queue
    }

    async fn reconcile(self: Arc<Self>, uid: Uid) -> Result<Next, Error> {
        let (seen, unseen) = {
            let graph = self.graph.lock();
            (graph.get(&uid).cloned(), graph.is_unseen(&uid))
        };
        let Some(seen) = seen else {
            return if unseen { self.look_for(&uid).await } else { Ok(Next::OnEvent) };
        };
        if seen.is_orphaning() {
            return self.orphan(&uid, &seen).await;
        }
        if seen.is_waiting() {
            self.wait_for_dependents(&uid, &seen).await?;
            return Ok(Next::OnEvent);
        }
        if seen.deleting || seen.owners.is_empty() {
            return Ok(Next::OnEvent);
        }
        self.collect(&uid).await
    }
}

impl Controller {
    /// An owner nobody has seen: those that name one which does not exist are to be looked at.
    async fn look_for(&self, uid: &Uid) -> Result<Next, Error> {
        let references = self.graph.lock().references_to(uid);
        let mut known: HashMap<Identity, OwnerState> = HashMap::new();
        let mut next = Next::OnEvent;
        for (dependent, seen, owner) in references {
            let identity = Identity::new(&seen.key.namespace, &owner);
            let state = match known.get(&identity) {
                Some(state) => *state,
                None => {
                    let state = self.ask(&seen, &owner).await?;
                    known.insert(identity, state);
                    state
                }
            };
            match state {
                OwnerState::Absent => self.queue.add(&dependent),
                OwnerState::Unknown => next = self.park(uid),
                OwnerState::Solid | OwnerState::Waiting | OwnerState::Invalid => {}
            }
        }
        Ok(next)
    }

    /// Comes back to it when kinds change.
    fn park(&self, uid: &Uid) -> Next {
        self.parked.lock().insert(uid.clone());
        Next::After(UNSERVED_AGAIN)
    }

    /// Kinds have changed.
    fn unpark(&self) {
        for uid in std::mem::take(&mut *self.parked.lock()) {
            self.queue.add(&uid);
        }
    }

    /// Tells of a reference to an owner in another namespace, in the reference's words.
    fn report_invalid(&self, uid: &Uid, owner: &Owner) {
        let Some(seen) = self.graph.lock().get(uid).cloned() else { return };
        let namespace = &seen.key.namespace;
        let Owner { api_version, kind, name, uid: owner, .. } = owner;
        let message = format!(
            "ownerRef [{api_version}/{kind}, namespace: {namespace}, name: {name}, uid: {owner}] does not exist in \
             namespace {namespace:?}"
        );
        self.warn(uid, &seen.kind, &seen.key, "OwnerRefInvalidNamespace", message);
    }

    /// Tells of an object with more owners than are looked at.
    fn report_crowd(&self, uid: &str, kind: &Kind, key: &Key, owners: usize) {
        let message =
            format!("it has {owners} owners: with more than {OWNERS_MAX} it neither goes with them nor holds them up");
        self.warn(uid, kind, key, "TooManyOwners", message);
    }

    fn warn(&self, uid: &str, kind: &Kind, key: &Key, reason: &'static str, message: String) {
        let (api_version, name) = (kind.api_version().into(), kind.kind.to_string().into());
        let subject = Subject { api_version, kind: name, key: key.clone(), uid: uid.into() };
        self.recorder.record(Record { subject, component: COMPONENT, warning: true, reason, message });
    }

    /// Removes references to `uid` from everything that depends on it, then lets it go.
    async fn orphan(&self, uid: &Uid, seen: &Seen) -> Result<Next, Error> {
        let dependents = self.graph.lock().dependents(uid);
        let forgotten = futures::stream::iter(dependents)
            .map(|(dependent, seen)| async move { self.forget(&dependent, seen, std::slice::from_ref(uid)).await });
        // Each is tried, whatever comes of the others.
        let forgotten = forgotten.buffer_unordered(SIDE_BY_SIDE).collect::<Vec<Result<(), Error>>>();
        forgotten.await.into_iter().collect::<Result<(), Error>>()?;
        self.remove_finalizer(uid, seen, ORPHAN).await?;
        Ok(Next::OnEvent)
    }

    /// Lets an owner go when nothing that holds it up is left. Its dependents were told when it began to wait, or are when they
    /// are seen ([`Graph::put`]): to tell all again whenever one of ten thousand goes would be a hundred million times.
    async fn wait_for_dependents(&self, uid: &Uid, seen: &Seen) -> Result<(), Error> {
        if self.graph.lock().is_blocked(uid) {
            return Ok(());
        }
        self.remove_finalizer(uid, seen, FOREGROUND).await
    }

    /// Decides about an object with owners; if it is not as the graph has it, as the API has it.
    async fn collect(&self, uid: &Uid) -> Result<Next, Error> {
        let Some(mut object) = self.graph.lock().get(uid).cloned() else { return Ok(Next::OnEvent) };
        for _ in 0..ATTEMPTS {
            let mut owners = Vec::with_capacity(object.owners.len());
            for owner in object.owners.iter() {
                let state = match self.is_solid(&object, owner) {
                    true => OwnerState::Solid,
                    false => self.ask(&object, owner).await?,
                };
                owners.push((owner.clone(), state));
            }
            if owners.iter().any(|(_, state)| *state == OwnerState::Unknown) {
                return Ok(self.park(uid));
            }
            let dependents = self.graph.lock().dependents(uid);
            match plan::fate(&object, &owners, &dependents) {
                Fate::Keep => return Ok(Next::OnEvent),
                Fate::Forget(gone) => return self.forget(uid, object, &gone).await.map(|()| Next::OnEvent),
                Fate::Delete { unblock: true, .. } => {
                    self.unblock(&object).await?;
                    // The version has changed with that.
                    return Ok(Next::Again);
                }
                Fate::Delete { policy, unblock: false } => {
                    let mut options = DeleteOptions::of(uid);
                    options.propagation_policy = Some(policy);
                    options.preconditions.get_or_insert_default().resource_version = Some(object.version.to_string());
                    let path = object.kind.path(&object.key.namespace, &object.key.name);
                    match self.client.delete_at(&path, &options).await {
                        // It has changed, or another object has the name by now.
                        Err(error) if client::is_conflict(&error) => {}
                        other => {
                            return other.map(|()| Next::OnEvent).map_err(Error::api("delete a dependent"));
                        }
                    }
                }
            }
            let Some(now) = self.read(uid, &object).await? else { return Ok(Next::OnEvent) };
            object = now;
        }
        Err(Error::Stale("the object keeps changing"))
    }

    /// Whether the graph says that the owner is there and does not wait for its dependents; all else is asked of the API,
    /// for something may be deleted for it.
    fn is_solid(&self, object: &Seen, owner: &Owner) -> bool {
        let graph = self.graph.lock();
        graph.get(&owner.uid).is_some_and(|seen| graph::is_meant(seen, object, owner) && !seen.is_waiting())
    }

    /// Asks the API for an owner, which must have the uid that is referred to.
    async fn ask(&self, dependent: &Seen, owner: &Owner) -> Result<OwnerState, Error> {
        let namespace = &dependent.key.namespace;
        let everywhere: Arc<str> = Arc::from("");
        {
            let absent = self.absent.lock();
            if [namespace, &everywhere].into_iter().any(|namespace| absent.contains(&Identity::new(namespace, owner))) {
                return Ok(OwnerState::Absent);
            }
        }
        let Some(kind) = self.kind_of(owner).await? else { return Ok(OwnerState::Unknown) };
        if kind.namespaced && namespace.is_empty() {
            return Ok(OwnerState::Invalid);
        }
        let absent = || self.absent(Identity::new(if kind.namespaced { namespace } else { &everywhere }, owner));
        match self.client.get::<Meta>(&kind.path(namespace, &owner.name)).await {
            Ok(found) if found.metadata.uid.as_deref() != Some(&*owner.uid) => Ok(absent()),
            Ok(found) => {
                let finalizers = found.metadata.finalizers.unwrap_or_default();
                let waiting =
                    found.metadata.deletion_timestamp.is_some() && finalizers.iter().any(|name| name == FOREGROUND);
                Ok(if waiting { OwnerState::Waiting } else { OwnerState::Solid })
            }
            Err(error) if client::is_not_found(&error) => Ok(absent()),
            Err(source) => Err(Error::Api { what: "look for an owner", source }),
        }
    }

    fn absent(&self, identity: Identity) -> OwnerState {
        let mut absent = self.absent.lock();
        if absent.len() >= ABSENT_MAX {
            absent.clear();
        }
        absent.insert(identity);
        OwnerState::Absent
    }

    /// The kind of an owner; `None` if it is not served.
    async fn kind_of(&self, owner: &Owner) -> Result<Option<Kind>, Error> {
        let group = owner.api_version.split_once('/').map_or("", |(group, _)| group);
        self.discovery.find(group, &owner.kind).await.map_err(Error::api("ask for the kinds"))
    }

    /// The object as it is; `None` if it is gone, or another has its name.
    async fn read(&self, uid: &Uid, seen: &Seen) -> Result<Option<Seen>, Error> {
        let path = seen.kind.path(&seen.key.namespace, &seen.key.name);
        let meta = match self.client.get::<Meta>(&path).await {
            Ok(found) => found.metadata,
            Err(error) if client::is_not_found(&error) => return Ok(None),
            Err(source) => return Err(Error::Api { what: "read a dependent again", source }),
        };
        if meta.uid.as_deref() != Some(&**uid) {
            return Ok(None);
        }
        let finalizers = meta.finalizers.unwrap_or_default();
        let has = |name: &str| finalizers.iter().any(|finalizer| finalizer == name);
        Ok(Some(Seen {
            kind: seen.kind.clone(),
            key: seen.key.clone(),
            version: version(meta.resource_version.as_deref()),
            owners: self.graph.lock().share(meta.owner_references.as_deref().unwrap_or_default()),
            deleting: meta.deletion_timestamp.is_some(),
            foreground: has(FOREGROUND),
            orphan: has(ORPHAN),
        }))
    }

    /// Removes references to these owners; again, when somebody else changes the object meanwhile.
    async fn forget(&self, uid: &Uid, mut object: Seen, gone: &[Uid]) -> Result<(), Error> {
        for _ in 0..ATTEMPTS {
            let owners = plan::without(&object.owners, gone);
            if owners.len() == object.owners.len() {
                return Ok(());
            }
            match self.patch_owners(&object, &owners, "remove references to owners").await {
                Err(Error::Api { source, .. }) if client::is_conflict(&source) => {}
                other => return other,
            }
            let Some(now) = self.read(uid, &object).await? else { return Ok(()) };
            object = now;
        }
        Err(Error::Stale("the object keeps changing"))
    }

    async fn unblock(&self, object: &Seen) -> Result<(), Error> {
        let owners: Vec<Owner> = object.owners.iter().map(|owner| Owner { block: false, ..owner.clone() }).collect();
        self.patch_owners(object, &owners, "stop holding owners up").await
    }

    async fn patch_owners(&self, object: &Seen, owners: &[Owner], what: &'static str) -> Result<(), Error> {
        let owners = match owners {
            [] => Value::Null,
            owners => json!(owners.iter().map(Owner::reference).collect::<Vec<_>>()),
        };
        // With the version: references that somebody else adds meanwhile are not lost.
        let patch = json!({"metadata": {"resourceVersion": object.version.to_string(), "ownerReferences": owners}});
        let path = object.kind.path(&object.key.namespace, &object.key.name);
        match self.client.patch_at(&path, &patch).await {
            Err(error) if client::is_not_found(&error) => Ok(()),
            other => other.map(drop).map_err(Error::api(what)),
        }
    }

    async fn remove_finalizer(&self, uid: &Uid, seen: &Seen, finalizer: &str) -> Result<(), Error> {
        let path = seen.kind.path(&seen.key.namespace, &seen.key.name);
        let meta = match self.client.get::<Meta>(&path).await {
            Ok(found) => found.metadata,
            Err(error) if client::is_not_found(&error) => return Ok(()),
            Err(source) => return Err(Error::Api { what: "read an owner again", source }),
        };
        let finalizers = meta.finalizers.unwrap_or_default();
        if meta.uid.as_deref() != Some(&**uid) || !finalizers.iter().any(|name| name == finalizer) {
            return Ok(());
        }
        let others: Vec<_> = finalizers.into_iter().filter(|name| name != finalizer).collect();
        let patch = json!({"metadata": {"resourceVersion": meta.resource_version, "finalizers": others}});
        match self.client.patch_at(&path, &patch).await {
            Err(error) if client::is_not_found(&error) => Ok(()),
            other => other.map(drop).map_err(Error::api("remove a finalizer")),
        }
    }
}
