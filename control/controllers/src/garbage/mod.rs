//! The garbage collector: objects whose owners are gone go too (kubernetes-api §8.3).
//!
//! [`feed`] keeps a [`graph`] of all deletable kinds; [`plan`] decides about one object. A graph that is behind does no
//! harm: that an owner is gone is asked of the API, and a dependent is deleted only in the version that was decided on.

mod feed;
mod graph;
mod plan;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::Error;
use crate::client::{self, Client, DeleteOptions, Meta};
use crate::discovery::{Discovery, Kind};
use crate::informer::{Key, version};
use crate::queue::{Next, Queue};

pub(crate) use feed::shared_kind;
use graph::{FOREGROUND, Graph, ORPHAN, Owner, Seen, Uid};
use plan::{Fate, OwnerState};

/// An owner that is referred to is usually seen a moment later; only then is it asked for.
const APPEARS_WITHIN: Duration = Duration::from_millis(500);

/// Absent owners that are remembered; at the bound they are asked for again.
const ABSENT_MAX: usize = 4096;

type OnDeletion = Box<dyn Fn(&str) + Send + Sync>;

/// The garbage collector.
pub(crate) struct Controller {
    client: Client,
    discovery: Discovery,
    pub(crate) queue: Queue<Uid>,
    graph: Mutex<Graph>,
    /// Kinds that shared informers watch, by group and plural.
    shared: Mutex<HashSet<(Arc<str>, Arc<str>)>>,
    definitions_changed: Notify,
    on_deletion: OnDeletion,
    /// Owners that were found absent. Uids do not come back.
    absent: Mutex<HashSet<Uid>>,
}

impl Controller {
    /// `on_deletion` is called with the namespace of everything that is gone; it must not block.
    pub(crate) fn new(client: Client, discovery: Discovery, on_deletion: OnDeletion) -> Arc<Self> {
        Arc::new(Self {
            client,
            discovery,
            queue: Queue::new(Duration::ZERO),
            graph: Mutex::default(),
            shared: Mutex::default(),
            definitions_changed: Notify::new(),
            on_deletion,
            absent: Mutex::default(),
        })
    }

    pub(crate) async fn reconcile(self: Arc<Self>, uid: Uid) -> Result<Next, Error> {
        let (seen, unseen) = {
            let graph = self.graph.lock();
            (graph.get(&uid).cloned(), graph.is_unseen(&uid))
        };
        let Some(seen) = seen else {
            if unseen {
                self.look_for(&uid).await?;
            }
            return Ok(Next::OnEvent);
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

    /// An owner nobody has seen: if it does not exist, its dependents are to be looked at.
    async fn look_for(&self, uid: &Uid) -> Result<(), Error> {
        let Some((dependent, owner)) = self.graph.lock().reference_to(uid) else { return Ok(()) };
        if self.ask(&dependent, &owner).await? == OwnerState::Absent {
            for (dependent, _) in self.graph.lock().dependents(uid) {
                self.queue.add(&dependent);
            }
        }
        Ok(())
    }

    /// Removes references to `uid` from everything that depends on it, then lets it go.
    async fn orphan(&self, uid: &Uid, seen: &Seen) -> Result<Next, Error> {
        let dependents = self.graph.lock().dependents(uid);
        for (_, dependent) in dependents {
            self.forget(&dependent, std::slice::from_ref(uid)).await?;
        }
        self.remove_finalizer(uid, seen, ORPHAN).await?;
        Ok(Next::OnEvent)
    }

    /// Lets an owner go when nothing that holds it up is left.
    async fn wait_for_dependents(&self, uid: &Uid, seen: &Seen) -> Result<(), Error> {
        let (blocked, dependents) = {
            let graph = self.graph.lock();
            (graph.is_blocked(uid), graph.dependents(uid))
        };
        if !blocked {
            return self.remove_finalizer(uid, seen, FOREGROUND).await;
        }
        for (dependent, seen) in dependents {
            if !seen.deleting {
                self.queue.add(&dependent);
            }
        }
        Ok(())
    }

    /// Decides about an object with owners; if it is not as the graph has it, as the API has it.
    async fn collect(&self, uid: &Uid) -> Result<Next, Error> {
        let Some(mut object) = self.graph.lock().get(uid).cloned() else { return Ok(Next::OnEvent) };
        loop {
            let mut owners = Vec::with_capacity(object.owners.len());
            for owner in object.owners.iter() {
                let state = match self.known(&object, owner) {
                    Some(state) => state,
                    None => self.ask(&object.key, owner).await?,
                };
                owners.push((owner.clone(), state));
            }
            let dependents = self.graph.lock().dependents(uid);
            match plan::fate(&object, &owners, &dependents) {
                Fate::Keep => return Ok(Next::OnEvent),
                Fate::Forget(gone) => return self.forget(&object, &gone).await.map(|()| Next::OnEvent),
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
    }

    /// What the graph says of an owner; `None` where the API must be asked.
    fn known(&self, object: &Seen, owner: &Owner) -> Option<OwnerState> {
        if self.absent.lock().contains(&owner.uid) {
            return Some(OwnerState::Absent);
        }
        let graph = self.graph.lock();
        let seen = graph.get(&owner.uid)?;
        if !graph::reaches(seen, object) {
            return Some(OwnerState::Absent);
        }
        Some(if seen.is_waiting() { OwnerState::Waiting } else { OwnerState::Solid })
    }

    /// Asks the API for an owner, which must have the uid that is referred to.
    async fn ask(&self, dependent: &Key, owner: &Owner) -> Result<OwnerState, Error> {
        let kind = self.kind_of(owner).await?;
        if kind.namespaced && dependent.namespace.is_empty() {
            // Invalid, and not ours to judge: it stays (the reference does the same).
            return Ok(OwnerState::Solid);
        }
        match self.client.get::<Meta>(&kind.path(&dependent.namespace, &owner.name)).await {
            Ok(found) if found.metadata.uid.as_deref() != Some(&*owner.uid) => Ok(self.absent(owner)),
            Ok(found) => {
                let finalizers = found.metadata.finalizers.unwrap_or_default();
                let waiting =
                    found.metadata.deletion_timestamp.is_some() && finalizers.iter().any(|name| name == FOREGROUND);
                Ok(if waiting { OwnerState::Waiting } else { OwnerState::Solid })
            }
            Err(error) if client::is_not_found(&error) => Ok(self.absent(owner)),
            Err(source) => Err(Error::Api { what: "look for an owner", source }),
        }
    }

    fn absent(&self, owner: &Owner) -> OwnerState {
        let mut absent = self.absent.lock();
        if absent.len() >= ABSENT_MAX {
            absent.clear();
        }
        absent.insert(owner.uid.clone());
        OwnerState::Absent
    }

    async fn kind_of(&self, owner: &Owner) -> Result<Kind, Error> {
        let group = owner.api_version.split_once('/').map_or("", |(group, _)| group);
        let find = |kinds: &[Kind]| kinds.iter().find(|kind| &*kind.group == group && kind.kind == owner.kind).cloned();
        if let Some(kind) = find(&self.discovery.kinds().kinds) {
            return Ok(kind);
        }
        let kinds = self.discovery.refresh().await.map_err(Error::api("ask for the kinds"))?;
        // Whether such an owner exists cannot be known; nothing is deleted for it.
        find(&kinds.kinds).ok_or(Error::Stale("the kind of an owner is not served"))
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

    /// Removes references to these owners.
    async fn forget(&self, object: &Seen, gone: &[Uid]) -> Result<(), Error> {
        let owners = plan::without(&object.owners, gone);
        self.patch_owners(object, &owners, "remove references to owners").await
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
