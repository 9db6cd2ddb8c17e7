//! The pods of a workload: how they are asked for, given up, taken over and let go.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, OwnerReference};
use serde::Serialize;

use super::{Created, InFlight, claim, create_named, owner_reference};
use crate::Error;
use crate::client::{self, Client, DeleteOptions, PODS, Resource};
use crate::error::chain;
use crate::events::{Record, Recorder, Subject};
use crate::informer::{Change, Informer, Key, Object, Pod, Store, controller};
use crate::queue::Queue;
use crate::selector;

/// Creations and deletions in flight per workload.
pub(crate) const WINDOW_MAX: usize = 64;

/// A kind of workloads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    pub resource: Resource,
    /// `apps/v1`.
    pub api_version: &'static str,
    /// `ReplicaSet`.
    pub kind: &'static str,
    /// Whom events come from: `replicaset-controller`.
    pub component: &'static str,
}

/// The workload that pods are of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Owner<'a> {
    pub key: &'a Key,
    pub uid: &'a str,
}

/// What a controller does with the pods of its workloads.
pub(crate) struct Pods {
    pub client: Client,
    pub recorder: Recorder,
    pub store: Arc<Store<Pod>>,
    pub in_flight: Arc<InFlight>,
    pub row: Row,
}

/// What became of a pod that was asked for.
pub(crate) enum Asked {
    /// It is there, and ours.
    Made,
    /// Nobody knows: it stays in flight under its name.
    Unknown(kube::Error),
    /// It is not made; a conflict when another pod has the name.
    Refused(kube::Error),
}

/// Wakes workloads of a kind when their pods change, and notes in `in_flight` what is seen of them. A pod that nobody controls
/// wakes those that select it, for they may adopt it. What workloads that are gone have asked for is forgotten.
pub(crate) fn listen<K: Object>(
    row: Row,
    queue: &Queue<Key>,
    in_flight: &Arc<InFlight>,
    (workloads, selector): (&mut Informer<K>, fn(&K) -> &LabelSelector),
    pods: &mut Informer<Pod>,
) {
    workloads.on_change({
        let in_flight = in_flight.clone();
        move |change| {
            if let Change::Deleted(workload) = change {
                in_flight.forget(workload.uid());
            }
        }
    });
    let orphan = wake_selecting(queue, &workloads.store(), selector);
    let (queue, in_flight) = (queue.clone(), in_flight.clone());
    pods.on_change(move |change| {
        let pod = change.object();
        if let Some(owner) = controller(Some(&pod.owners)) {
            let going = matches!(change, Change::Deleted(_)) || pod.deleting.is_some();
            in_flight.seen(&owner.uid, &pod.key.name, &pod.uid, going);
        }
        let owner = workload_of(row, pod);
        if let Some(former) = change.before().and_then(|before| workload_of(row, before))
            && owner.as_ref() != Some(&former)
        {
            queue.add(&former);
        }
        match owner {
            Some(owner) => queue.add(&owner),
            None if controller(Some(&pod.owners)).is_none() && !matches!(change, Change::Deleted(_)) => {
                orphan(&pod.key.namespace, &pod.labels);
            }
            None => {}
        }
    });
}

/// Wakes those of a namespace that select by these labels.
pub(crate) fn wake_selecting<K: Object>(
    queue: &Queue<Key>,
    workloads: &Arc<Store<K>>,
    selector: fn(&K) -> &LabelSelector,
) -> impl Fn(&str, &BTreeMap<String, String>) + Send + Sync + 'static + use<K> {
    let (queue, workloads) = (queue.clone(), workloads.clone());
    move |namespace, labels| {
        for workload in workloads.select(namespace, |workload| selector::matches(selector(workload), labels)) {
            queue.add(&workload.key());
        }
    }
}

/// The workload of this kind that controls the pod.
pub(crate) fn workload_of(row: Row, pod: &Pod) -> Option<Key> {
    let owner = controller(Some(&pod.owners)).filter(|owner| owner.kind == row.kind)?;
    Some(Key { namespace: pod.key.namespace.clone(), name: owner.name.as_str().into() })
}

impl Pods {
    /// The reference to the workload in what it controls.
    pub(crate) fn owner_reference(&self, owner: Owner<'_>) -> OwnerReference {
        owner_reference(self.row.api_version, self.row.kind, Some(&owner.key.name), owner.uid)
    }

    pub(crate) fn event(&self, owner: Owner<'_>, warning: bool, reason: &'static str, message: String) {
        let subject = Subject {
            api_version: self.row.api_version.into(),
            kind: self.row.kind.into(),
            key: owner.key.clone(),
            uid: owner.uid.into(),
        };
        self.recorder.record(Record { subject, component: self.row.component, warning, reason, message });
    }

    /// The members among the pods that the workload controls, as [`claim::claim`] says.
    pub(crate) async fn members(
        &self,
        owner: Owner<'_>,
        is_deleting: bool,
        is_member: impl Fn(&Pod) -> bool,
    ) -> Result<Option<Vec<Arc<Pod>>>, Error> {
        claim::claim(&self.client, (PODS, &self.store), (self.row, owner), is_deleting, is_member).await
    }

    /// Takes pods over that match and belong to nobody, and lets go of those that no longer match.
    pub(crate) async fn claim(&self, owner: Owner<'_>, adopt: &[Arc<Pod>], release: &[Arc<Pod>]) -> Result<(), Error> {
        claim::transfer(&self.client, PODS, (self.row, owner), adopt, release).await
    }

    /// Whether the API has a pod of this name that the workload controls.
    pub(crate) async fn is_ours(&self, owner: Owner<'_>, key: &Key) -> Result<bool, kube::Error> {
        match self.client.fetch::<client::Meta>(PODS, key).await {
            Ok(found) => {
                let reference = controller(found.metadata.owner_references.as_deref());
                Ok(reference.is_some_and(|reference| reference.uid == owner.uid))
            }
            Err(error) if client::is_not_found(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Looks for pods that were asked for and are not seen; returns whether some are not there.
    pub(crate) async fn look_for(&self, owner: Owner<'_>, names: &[Arc<str>]) -> Result<bool, Error> {
        let mut dropped = false;
        for name in names {
            let key = Key { namespace: owner.key.namespace.clone(), name: name.clone() };
            match self.is_ours(owner, &key).await.map_err(Error::api("look for a pod that was asked for"))? {
                true => self.in_flight.done(owner.uid, name),
                false => {
                    self.in_flight.created(owner.uid, name);
                    dropped = true;
                }
            }
        }
        Ok(dropped)
    }

    /// Asks for a pod of this name, which is in flight from here on until it is seen, or refused.
    pub(crate) async fn ask<B: Serialize>(
        &self,
        owner: Owner<'_>,
        name: &Arc<str>,
        place: Option<&Arc<str>>,
        body: &B,
    ) -> Asked {
        let key = Key { namespace: owner.key.namespace.clone(), name: name.clone() };
        self.in_flight.creating(owner.uid, name, place);
        let mut created = create_named(&self.client, PODS, &owner.key.namespace, body).await;
        // Among thousands of pods the same name is drawn twice now and then; or it is our own of an earlier attempt.
        if let Created::Taken(error) = created {
            created = match self.is_ours(owner, &key).await {
                Ok(true) => Created::Made(Box::default()),
                Ok(false) => Created::Taken(error),
                Err(error) => Created::Unknown(error),
            };
        }
        match created {
            Created::Made(_) => {
                // Its event may have come before it was noted.
                let shown = self.store.get(&key);
                if shown.is_some_and(|pod| controller(Some(&pod.owners)).is_some_and(|it| it.uid == owner.uid)) {
                    self.in_flight.created(owner.uid, name);
                }
                Asked::Made
            }
            Created::Unknown(error) => {
                self.in_flight.unknown(owner.uid, name);
                Asked::Unknown(error)
            }
            Created::Taken(error) | Created::Refused(error) => {
                self.in_flight.created(owner.uid, name);
                Asked::Refused(error)
            }
        }
    }

    /// Gives pods up, with events in the words of ReplicaSets.
    pub(crate) async fn delete(&self, owner: Owner<'_>, pods: &[Arc<Pod>]) -> Result<(), kube::Error> {
        side_by_side(pods.iter().map(|pod| self.delete_one(owner, pod))).await
    }

    async fn delete_one(&self, owner: Owner<'_>, pod: &Pod) -> Result<(), kube::Error> {
        let deleted = self.give_up(owner, pod).await;
        match &deleted {
            Ok(()) => self.event(owner, false, "SuccessfulDelete", format!("Deleted pod: {}", pod.key.name)),
            Err(error) if client::is_unknown(error) => {}
            Err(error) => self.event(owner, true, "FailedDelete", format!("Error deleting: {}", chain(error))),
        }
        deleted
    }

    /// Gives a pod up; its deletion is in flight until it is seen, or refused.
    pub(crate) async fn give_up(&self, owner: Owner<'_>, pod: &Pod) -> Result<(), kube::Error> {
        self.in_flight.deleting(owner.uid, &pod.uid);
        let deleted = self.client.delete(PODS, &pod.key, &DeleteOptions::of(&pod.uid)).await;
        // Perhaps it goes when nobody knows: until that is seen, or for a while, no other is given up for it.
        if deleted.as_ref().is_err_and(|error| !client::is_unknown(error)) {
            self.in_flight.deleted(owner.uid, &pod.uid);
        }
        // The event of its end may have come before the entry above.
        if self.store.get(&pod.key).is_none_or(|now| now.uid != pod.uid || now.deleting.is_some()) {
            self.in_flight.deleted(owner.uid, &pod.uid);
        }
        deleted
    }
}

/// Runs requests concurrently, in a window that opens with success (the reference's slow start, without waiting between
/// batches): what fails for one will fail for all. Those that have begun are waited for.
pub(crate) async fn slow_start<F, E>(mut work: impl Iterator<Item = F>) -> Result<(), E>
where
    F: Future<Output = Result<(), E>>,
{
    let mut running = FuturesUnordered::new();
    let (mut window, mut failure) = (1, None);
    loop {
        while running.len() < window
            && failure.is_none()
            && let Some(next) = work.next()
        {
            running.push(next);
        }
        match running.next().await {
            Some(Ok(())) => window = (window + 1).min(WINDOW_MAX),
            Some(Err(error)) => failure = failure.or(Some(error)),
            None => return failure.map_or(Ok(()), Err),
        }
    }
}

/// Runs requests, so many at a time; all of them, whatever becomes of some. The first failure is told.
pub(crate) async fn side_by_side<F, E>(mut work: impl Iterator<Item = F>) -> Result<(), E>
where
    F: Future<Output = Result<(), E>>,
{
    let mut running = FuturesUnordered::new();
    let mut failure = None;
    loop {
        while running.len() < WINDOW_MAX
            && let Some(next) = work.next()
        {
            running.push(next);
        }
        match running.next().await {
            Some(outcome) => failure = failure.or(outcome.err()),
            None => return failure.map_or(Ok(()), Err),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::apps::v1::StatefulSet;
    use serde_json::json;

    #[test]
    fn what_a_workload_that_is_gone_has_asked_for_is_forgotten() {
        let row = Row { resource: PODS, api_version: "apps/v1", kind: "StatefulSet", component: "c" };
        let (mut sets, mut pods) = (Informer::<StatefulSet>::default(), Informer::default());
        let (queue, in_flight) = (Queue::new(std::time::Duration::ZERO), Arc::new(InFlight::default()));
        listen(row, &queue, &in_flight, (&mut sets, |set| &set.spec.selector), &mut pods);
        let set =
            json!({"metadata": {"name": "s", "namespace": "n", "uid": "u"}, "spec": {"selector": {}, "template": {}}});
        sets.show(StatefulSet::keep(serde_json::from_value(set).unwrap()));
        in_flight.unknown("u", &"s-0".into());
        assert_eq!(in_flight.of("u").unknown.len(), 1);
        sets.show_end(&Key::new("n", "s"));
        assert!(in_flight.of("u").unknown.is_empty());
    }
}
