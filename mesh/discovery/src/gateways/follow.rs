//! Watches of Gateway API's kinds, each while its definition is there: one that is not would be refused again and again.

use std::collections::{BTreeMap, HashMap, HashSet};

use coracle_gateway::{GROUP, KINDS, Known, Meta, Said, defined_by};
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{ApiResource, DynamicObject, PartialObjectMeta};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event};
use kube::{Api, ResourceExt as _};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::Again;

/// What a watch said.
pub(super) enum Change {
    /// Of a kind, by its place in [`KINDS`].
    Object(usize, Said),
    /// Of namespaces, with the labels of one.
    Namespace(Said, BTreeMap<String, String>),
}

/// Takes it.
pub(super) fn take(known: &mut Known, change: Change) {
    match change {
        Change::Object(kind, said) => {
            if let Err(error) = known.take(kind, said) {
                tracing::warn!(%error, kind = KINDS[kind].0, "an object cannot be read and is passed over");
            }
        }
        Change::Namespace(said, labels) => known.take_namespace(&said, labels),
    }
}

/// Follows all of them; ends when nobody hears it.
pub(super) async fn run(client: kube::Client, changes: mpsc::Sender<Change>) {
    let mut namespaces_watch = None;
    let mut watched: HashMap<usize, (CancellationToken, AbortOnDropHandle<()>)> = HashMap::new();
    let definitions: Api<PartialObjectMeta<CustomResourceDefinition>> = Api::all(client.clone());
    let mut events = watcher::watcher(definitions, watcher::Config::default()).backoff(Again::new()).boxed();
    // Those of a list that is being read.
    let mut listed: Option<HashSet<usize>> = None;
    let mut is_told = false;
    let of =
        |definition: &PartialObjectMeta<CustomResourceDefinition>| defined_by(definition.metadata.name.as_deref()?);
    while let Some(event) = events.next().await {
        let (now, gone): (HashSet<usize>, Vec<usize>) = match event {
            Ok(Event::Init) => {
                listed = Some(HashSet::new());
                continue;
            }
            Ok(Event::InitApply(definition)) => {
                listed.get_or_insert_default().extend(of(&definition));
                continue;
            }
            Ok(Event::InitDone) => {
                let now = listed.take().unwrap_or_default();
                let gone = (0..KINDS.len()).filter(|kind| !now.contains(kind)).collect();
                (now, gone)
            }
            Ok(Event::Apply(definition)) => (of(&definition).into_iter().collect(), Vec::new()),
            Ok(Event::Delete(definition)) => (HashSet::new(), of(&definition).into_iter().collect()),
            Err(error) => {
                // Another's API server does not tell nodes which definitions there are: then there are none.
                tracing::debug!(%error, "watch custom resource definitions");
                match is_refused(&error) && !std::mem::replace(&mut is_told, true) {
                    true => (HashSet::new(), (0..KINDS.len()).collect()),
                    false => continue,
                }
            }
        };
        for kind in gone {
            if let Some((stop, watch)) = watched.remove(&kind) {
                stop.cancel();
                // Nothing of what it says comes later.
                let _ = watch.await;
            }
            if changes.send(Change::Object(kind, Said::Undefined)).await.is_err() {
                return;
            }
        }
        for kind in now {
            if watched.contains_key(&kind) {
                continue;
            }
            let stop = CancellationToken::new();
            let watch = tokio::spawn(watch(client.clone(), kind, changes.clone(), stop.clone()));
            watched.insert(kind, (stop, AbortOnDropHandle::new(watch)));
        }
        // Labels of namespaces are looked at by listeners only.
        if !watched.is_empty() && namespaces_watch.is_none() {
            let watch = tokio::spawn(namespaces(client.clone(), changes.clone()));
            namespaces_watch = Some(AbortOnDropHandle::new(watch));
        }
    }
}

fn is_refused(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::InitialListFailed(kube::Error::Api(status)) if matches!(status.code, 403 | 404))
}

/// One kind, until it is stopped.
async fn watch(client: kube::Client, kind: usize, changes: mpsc::Sender<Change>, stop: CancellationToken) {
    let (name, plural, version) = KINDS[kind];
    let resource = ApiResource {
        group: GROUP.to_owned(),
        version: version.to_owned(),
        api_version: format!("{GROUP}/{version}"),
        kind: name.to_owned(),
        plural: plural.to_owned(),
    };
    let api: Api<DynamicObject> = Api::all_with(client, &resource);
    let mut events = watcher::watcher(api, watcher::Config::default()).backoff(Again::new()).boxed();
    // Whether it was said what there is, or that there is nothing.
    let mut is_known = false;
    let follow = async {
        while let Some(event) = events.next().await {
            let said = match event {
                Ok(Event::Init) => Said::Listing,
                Ok(Event::InitApply(object) | Event::Apply(object)) => {
                    Said::Object(Meta::of(&object.metadata), object.data)
                }
                Ok(Event::InitDone) => {
                    is_known = true;
                    Said::Listed
                }
                Ok(Event::Delete(object)) => Said::Gone(Meta::of(&object.metadata).key()),
                Err(error) => {
                    // It may be served a moment after its definition is there; or never, in this version: others do not wait for it.
                    if is_known || !is_refused(&error) {
                        tracing::debug!(%error, kind = name, "watch");
                        continue;
                    }
                    tracing::warn!(%error, kind = name, version, "a kind of Gateway API is defined, and not served in this version");
                    is_known = true;
                    Said::Undefined
                }
            };
            if changes.send(Change::Object(kind, said)).await.is_err() {
                return;
            }
        }
    };
    // Only waits are cut.
    tokio::select! {
        () = follow => {}
        () = stop.cancelled() => {}
    }
}

async fn namespaces(client: kube::Client, changes: mpsc::Sender<Change>) {
    let api: Api<PartialObjectMeta<Namespace>> = Api::all(client);
    let mut events = watcher::watcher(api, watcher::Config::default()).backoff(Again::new()).boxed();
    while let Some(event) = events.next().await {
        let (said, labels) = match event {
            Ok(Event::Init) => (Said::Listing, BTreeMap::new()),
            Ok(Event::InitApply(namespace) | Event::Apply(namespace)) => {
                let labels = namespace.labels().clone();
                (Said::Object(Meta::of(&namespace.metadata), serde_json::Value::Null), labels)
            }
            Ok(Event::InitDone) => (Said::Listed, BTreeMap::new()),
            Ok(Event::Delete(namespace)) => (Said::Gone(Meta::of(&namespace.metadata).key()), BTreeMap::new()),
            Err(error) => {
                tracing::debug!(%error, "watch namespaces");
                continue;
            }
        };
        if changes.send(Change::Namespace(said, labels)).await.is_err() {
            return;
        }
    }
}
