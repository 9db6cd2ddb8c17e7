//! Watches of Gateway API's kinds, each while its definition is there: one that is not would be refused again and again.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use coracle_gateway::{Class, GROUP, Gateway, Grant, HttpRoute, KINDS, Key, Meta, Objects};
use futures::{FutureExt as _, StreamExt as _};
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{ApiResource, DynamicObject, PartialObjectMeta};
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt as _, metadata_watcher};
use kube::{Api, ResourceExt as _};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::Again;

/// What a watch said.
pub(super) enum Change {
    /// Of a kind, by its place in [`KINDS`].
    Object(usize, Event<DynamicObject>),
    /// The kind's definition is gone, and all its objects; or there was none from the beginning.
    Undefined(usize),
    Namespace(Event<PartialObjectMeta<Namespace>>),
    /// The API server does not tell which definitions there are.
    Refused,
}

/// Follows all of them; ends when nobody hears it.
pub(super) async fn run(client: kube::Client, changes: mpsc::Sender<Change>) {
    let mut watches = JoinSet::new();
    let mut watched: HashMap<usize, CancellationToken> = HashMap::new();
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    let mut events = metadata_watcher(definitions, watcher::Config::default()).backoff(Again::new()).boxed();
    // Those of a list that is being read.
    let mut listed: Option<HashSet<usize>> = None;
    let of = |definition: &PartialObjectMeta<CustomResourceDefinition>| {
        let (plural, group) = definition.metadata.name.as_deref()?.split_once('.')?;
        KINDS.iter().position(|(_, known, _)| *known == plural).filter(|_| group == GROUP)
    };
    loop {
        let Some(event) = events.next().await else { return };
        let (now, gone) = match event {
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
                tracing::debug!(%error, "watch custom resource definitions");
                // Another's API server does not tell nodes.
                if is_refused(&error) && changes.send(Change::Refused).await.is_err() {
                    return;
                }
                continue;
            }
        };
        for kind in gone {
            if let Some(stop) = watched.remove(&kind) {
                stop.cancel();
            }
            if changes.send(Change::Undefined(kind)).await.is_err() {
                return;
            }
        }
        let is_first = watched.is_empty();
        for kind in now {
            if watched.contains_key(&kind) {
                continue;
            }
            let stop = CancellationToken::new();
            watched.insert(kind, stop.clone());
            watches.spawn(watch(client.clone(), kind, changes.clone(), stop));
        }
        // Labels of namespaces are looked at by listeners only.
        if is_first && !watched.is_empty() && watches.len() == watched.len() {
            watches.spawn(namespaces(client.clone(), changes.clone()));
        }
        while watches.join_next().now_or_never().flatten().is_some() {}
    }
}

fn is_refused(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::InitialListFailed(kube::Error::Api(status)) if matches!(status.code, 403 | 404))
}

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
    let follow = async {
        while let Some(event) = events.next().await {
            match event {
                Ok(event) => {
                    if changes.send(Change::Object(kind, event)).await.is_err() {
                        return;
                    }
                }
                // It may be served a moment after its definition is there.
                Err(error) => tracing::debug!(%error, kind = name, "watch"),
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
    let api: Api<Namespace> = Api::all(client);
    let mut events = metadata_watcher(api, watcher::Config::default()).backoff(Again::new()).boxed();
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                if changes.send(Change::Namespace(event)).await.is_err() {
                    return;
                }
            }
            Err(error) => tracing::debug!(%error, "watch namespaces"),
        }
    }
}

/// What lists have told so far.
#[derive(Default)]
pub(super) struct Known {
    /// By kind; those that are not there say so. Namespaces come last.
    is_listed: [bool; KINDS.len() + 1],
    is_defined: bool,
    /// Keys of lists that are being read again: what is missing in them is gone.
    relisted: HashMap<usize, HashSet<Key>>,
}

const NAMESPACES: usize = KINDS.len();

impl Known {
    /// Whether all was heard of once.
    pub fn is_complete(&self) -> bool {
        let (kinds, namespaces) = (&self.is_listed[..NAMESPACES], self.is_listed[NAMESPACES]);
        kinds.iter().all(|is_listed| *is_listed) && (namespaces || !self.is_defined)
    }

    pub fn take(&mut self, change: Change, objects: &mut Objects) {
        match change {
            Change::Object(kind, event) => {
                self.is_defined = true;
                self.object(kind, event, objects);
            }
            Change::Undefined(kind) => {
                retain(kind, objects, |_| false);
                self.relisted.remove(&kind);
                self.is_listed[kind] = true;
            }
            Change::Namespace(event) => self.namespace(event, objects),
            Change::Refused => self.is_listed = [true; KINDS.len() + 1],
        }
    }

    fn object(&mut self, kind: usize, event: Event<DynamicObject>, objects: &mut Objects) {
        match event {
            Event::Init => drop(self.relisted.insert(kind, HashSet::new())),
            Event::InitApply(object) | Event::Apply(object) => {
                let meta = Meta::of(&object.metadata);
                if let Some(seen) = self.relisted.get_mut(&kind) {
                    seen.insert(meta.key());
                }
                put(kind, meta, &object.data, objects);
            }
            Event::InitDone => {
                let seen = self.relisted.remove(&kind).unwrap_or_default();
                retain(kind, objects, |key| seen.contains(key));
                self.is_listed[kind] = true;
            }
            Event::Delete(object) => {
                let gone = Meta::of(&object.metadata).key();
                retain(kind, objects, |key| *key != gone);
            }
        }
    }

    fn namespace(&mut self, event: Event<PartialObjectMeta<Namespace>>, objects: &mut Objects) {
        let key = |name: &str| -> Key { (Arc::from(""), Arc::from(name)) };
        match event {
            Event::Init => drop(self.relisted.insert(NAMESPACES, HashSet::new())),
            Event::InitApply(namespace) | Event::Apply(namespace) => {
                let name = namespace.name_any();
                if let Some(seen) = self.relisted.get_mut(&NAMESPACES) {
                    seen.insert(key(&name));
                }
                let labels: BTreeMap<String, String> = namespace.labels().clone();
                objects.namespaces.insert(name.into(), labels);
            }
            Event::InitDone => {
                let seen = self.relisted.remove(&NAMESPACES).unwrap_or_default();
                objects.namespaces.retain(|name, _| seen.contains(&key(name)));
                self.is_listed[NAMESPACES] = true;
            }
            Event::Delete(namespace) => drop(objects.namespaces.remove(namespace.name_any().as_str())),
        }
    }
}

/// Puts an object where it belongs. One that cannot be read is as if it were not there.
fn put(kind: usize, meta: Meta, data: &Value, objects: &mut Objects) {
    let (name, spec, key) = (KINDS[kind].0, &data["spec"], meta.key());
    let is_read = match name {
        "GatewayClass" => {
            objects.classes.insert(meta.name.clone(), Class::read(meta, spec));
            Ok(())
        }
        "Gateway" => Gateway::read(meta, spec).map(|gateway| drop(objects.gateways.insert(key.clone(), gateway))),
        "HTTPRoute" => HttpRoute::read(meta, spec).map(|route| drop(objects.routes.insert(key.clone(), route))),
        "ReferenceGrant" => Grant::read(&meta, spec).map(|grant| drop(objects.grants.insert(key.clone(), grant))),
        // Nobody serves them.
        _ => Ok(()),
    };
    if let Err(error) = is_read {
        tracing::warn!(%error, kind = name, namespace = %key.0, name = %key.1, "an object cannot be read and is passed over");
        retain(kind, objects, |known| *known != key);
    }
}

fn retain(kind: usize, objects: &mut Objects, stays: impl Fn(&Key) -> bool) {
    match KINDS[kind].0 {
        "GatewayClass" => objects.classes.retain(|name, _| stays(&(Arc::from(""), name.clone()))),
        "Gateway" => objects.gateways.retain(|key, _| stays(key)),
        "HTTPRoute" => objects.routes.retain(|key, _| stays(key)),
        "ReferenceGrant" => objects.grants.retain(|key, _| stays(key)),
        _ => objects.grpc_routes.retain(|key, _| stays(key)),
    }
}
