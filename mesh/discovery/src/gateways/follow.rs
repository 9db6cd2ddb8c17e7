//! Watches of Gateway API's kinds, each while its definition is there: one that is not would be refused again and again.

use std::collections::{BTreeMap, HashMap};

use coracle_gateway::{Definition, GROUP, KINDS, Known, Meta, Said, defined_by};
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{ApiResource, DynamicObject, PartialObjectMeta};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event};
use kube::{Api, ResourceExt as _};
use serde_json::Value;
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

/// Takes it; says whether it means anything.
pub(super) fn take(known: &mut Known, change: Change) -> bool {
    match change {
        Change::Object(kind, said) => known.take(kind, said).unwrap_or_else(|error| {
            tracing::warn!(%error, kind = KINDS[kind].0, "an object cannot be read and is passed over");
            true
        }),
        Change::Namespace(said, labels) => known.take_namespace(said, labels),
    }
}

/// A kind whose definition is there.
struct Watched {
    /// Which definition, and of which generation: another one may be served in other versions.
    definition: Which,
    stop: CancellationToken,
    task: AbortOnDropHandle<()>,
}

impl Watched {
    /// Nothing of what it says comes later.
    async fn end(self) {
        self.stop.cancel();
        let _ = self.task.await;
    }
}

/// A definition: its uid and its generation.
type Which = (Option<String>, Option<i64>);

/// Follows all of them; ends when nobody hears it.
pub(super) async fn run(client: kube::Client, changes: mpsc::Sender<Change>) {
    let mut namespaces_watch = None;
    let mut watched: HashMap<usize, Watched> = HashMap::new();
    let definitions: Api<PartialObjectMeta<CustomResourceDefinition>> = Api::all(client.clone());
    let mut events = watcher::watcher(definitions, watcher::Config::default()).backoff(Again::new()).boxed();
    // Those of a list that is being read.
    let mut listed: HashMap<usize, Which> = HashMap::new();
    // Whether it was said which there are: who is refused the list later, for a moment perhaps, knows what there was.
    let mut is_told = false;
    let of = |definition: &PartialObjectMeta<CustomResourceDefinition>| {
        let metadata = &definition.metadata;
        Some((defined_by(metadata.name.as_deref()?)?, (metadata.uid.clone(), metadata.generation)))
    };
    while let Some(event) = events.next().await {
        let (now, gone): (HashMap<usize, Which>, Vec<usize>) = match event {
            Ok(Event::Init) => {
                listed.clear();
                continue;
            }
            Ok(Event::InitApply(definition)) => {
                listed.extend(of(&definition));
                continue;
            }
            Ok(Event::InitDone) => {
                is_told = true;
                let now = std::mem::take(&mut listed);
                let gone = (0..KINDS.len()).filter(|kind| !now.contains_key(kind)).collect();
                (now, gone)
            }
            Ok(Event::Apply(definition)) => (of(&definition).into_iter().collect(), Vec::new()),
            Ok(Event::Delete(definition)) => {
                (HashMap::new(), of(&definition).map(|(kind, _)| kind).into_iter().collect())
            }
            Err(error) => {
                // Another's API server does not tell nodes which definitions there are: then there are none.
                tracing::debug!(%error, "watch custom resource definitions");
                match is_refused(&error) && !std::mem::replace(&mut is_told, true) {
                    true => (HashMap::new(), (0..KINDS.len()).collect()),
                    false => continue,
                }
            }
        };
        for kind in gone {
            if let Some(watched) = watched.remove(&kind) {
                watched.end().await;
            }
            if changes.send(Change::Object(kind, Said::Undefined)).await.is_err() {
                return;
            }
        }
        for (kind, definition) in now {
            if watched.get(&kind).is_some_and(|watched| watched.definition == definition) {
                continue;
            }
            if let Some(watched) = watched.remove(&kind) {
                watched.end().await;
            }
            let stop = CancellationToken::new();
            let task = tokio::spawn(watch(client.clone(), kind, changes.clone(), stop.clone()));
            watched.insert(kind, Watched { definition, stop, task: AbortOnDropHandle::new(task) });
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
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
    let mut events = watcher::watcher(api, watcher::Config::default()).backoff(Again::new()).boxed();
    // Whether it was said what there is, or that there is nothing; and whether a list has begun and that was not said.
    let (mut is_known, mut is_listing) = (false, false);
    let tell = |said| changes.send(Change::Object(kind, said));
    let follow = async {
        if !is_served(&client, kind).await {
            tracing::warn!(kind = name, version, "a kind of Gateway API is defined, and not served in this version");
            let _ = tell(Said::Undefined).await;
            return;
        }
        while let Some(event) = events.next().await {
            let said = match event {
                Ok(Event::Init) => {
                    is_listing = true;
                    continue;
                }
                Ok(Event::InitApply(mut object) | Event::Apply(mut object)) => {
                    let spec = object.data.get_mut("spec").map(Value::take).unwrap_or_default();
                    Said::Object(Meta::of(&object.metadata), spec, Value::Null)
                }
                Ok(Event::InitDone) => {
                    is_known = true;
                    Said::Listed
                }
                Ok(Event::Delete(object)) => Said::Gone(Meta::of(&object.metadata).key()),
                Err(error) => {
                    tracing::debug!(%error, kind = name, "watch");
                    // It may be served a moment after its definition is there; or never, to a node: others do not wait for it.
                    if !is_refused(&error) || std::mem::replace(&mut is_known, true) {
                        continue;
                    }
                    Said::Undefined
                }
            };
            let listing = std::mem::take(&mut is_listing) && !matches!(said, Said::Undefined);
            if listing && tell(Said::Listing).await.is_err() || tell(said).await.is_err() {
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

/// Whether the kind is served in our version, as its definition says. Where that is not told, whoever watches hears whether it is.
async fn is_served(client: &kube::Client, kind: usize) -> bool {
    let path = format!("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{}.{GROUP}", KINDS[kind].1);
    let mut again = Again::new();
    loop {
        let request = http::Request::get(&path).body(Vec::new()).expect("a path of letters");
        match client.request::<Definition>(request).await {
            Ok(definition) => return definition.serves(kind),
            Err(kube::Error::Api(status)) if matches!(status.code, 403 | 404) => return true,
            Err(error) => tracing::debug!(%error, kind = KINDS[kind].0, "read a custom resource definition"),
        }
        let Some(wait) = again.next() else { return true };
        tokio::time::sleep(wait).await;
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
                (Said::Object(Meta::of(&namespace.metadata), Value::Null, Value::Null), labels)
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
