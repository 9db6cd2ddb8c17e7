//! Watches of Gateway API's kinds: which there are, and what is said of each, [`coracle_gateway::follow`] says.

use std::collections::{BTreeMap, HashMap};

use coracle_gateway::follow::{self, Failed, Followed, Heard, Step, TRIES_MAX, Watched};
use coracle_gateway::{GROUP, KINDS, Known, Meta, Said};
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{ApiResource, DynamicObject, PartialObjectMeta};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Resource, ResourceExt as _};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::Again;
use crate::words::words;

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

/// A watch of a kind.
struct Watch {
    stop: CancellationToken,
    task: AbortOnDropHandle<()>,
}

impl Watch {
    /// Nothing of what it says comes later.
    async fn end(self) {
        self.stop.cancel();
        let _ = self.task.await;
    }
}

/// Follows all of them; ends when nobody hears it.
pub(super) async fn run(client: kube::Client, changes: mpsc::Sender<Change>) {
    let mut namespaces_watch = None;
    let mut watches: HashMap<usize, Watch> = HashMap::new();
    let mut followed = Followed::default();
    let definitions: Api<PartialObjectMeta<CustomResourceDefinition>> = Api::all(client.clone());
    let mut events = watcher::watcher(definitions, watcher::Config::default()).backoff(Again::new()).boxed();
    while let Some(event) = events.next().await {
        let heard = match event {
            Ok(Event::Init) => Heard::Listing,
            Ok(Event::InitApply(definition) | Event::Apply(definition)) => Heard::Is(definition.metadata),
            Ok(Event::InitDone) => Heard::Listed,
            Ok(Event::Delete(definition)) => Heard::Gone(definition.metadata),
            Err(error) => {
                tracing::debug!(error = words(&error), "watch custom resource definitions");
                Heard::Failed(failed(&error))
            }
        };
        for step in followed.take(heard) {
            match step {
                Step::End(kind) => {
                    if let Some(watch) = watches.remove(&kind) {
                        watch.end().await;
                    }
                }
                Step::Say(kind, said) => {
                    if changes.send(Change::Object(kind, said)).await.is_err() {
                        return;
                    }
                }
                Step::Watch(kind) => {
                    let stop = CancellationToken::new();
                    let task = tokio::spawn(watch(client.clone(), kind, changes.clone(), stop.clone()));
                    watches.insert(kind, Watch { stop, task: AbortOnDropHandle::new(task) });
                }
            }
        }
        // Labels of namespaces are looked at by listeners only.
        if followed.is_any() && namespaces_watch.is_none() {
            let watch = tokio::spawn(namespaces(client.clone(), changes.clone()));
            namespaces_watch = Some(AbortOnDropHandle::new(watch));
        }
    }
}

/// What a watch's error means.
fn failed(error: &watcher::Error) -> Failed {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status)) => Failed::of_list(status.code),
        watcher::Error::InitialListFailed(kube::Error::SerdeError(_)) => Failed::Answered,
        _ => Failed::Later,
    }
}

/// What is known by an event of a kind's watch; `read` says what an object is.
fn heard<K: Resource>(
    watched: &mut Watched,
    kind: &str,
    event: Result<Event<K>, watcher::Error>,
    read: impl FnOnce(K) -> Said,
) -> Vec<Said> {
    let said = match event {
        Ok(Event::Init) => Ok(Said::Listing),
        Ok(Event::InitApply(object) | Event::Apply(object)) => Ok(read(object)),
        Ok(Event::InitDone) => Ok(Said::Listed),
        Ok(Event::Delete(object)) => Ok(Said::Gone(Meta::of(object.meta()).key())),
        Err(error) => {
            tracing::debug!(error = words(&error), kind, "watch");
            Err(failed(&error))
        }
    };
    let is_answered = said == Err(Failed::Answered);
    let known: Vec<Said> = watched.take(said).collect();
    if is_answered && !known.is_empty() {
        tracing::warn!(kind, "a kind cannot be listed: until it can, there is none of it for Gateways");
    }
    known
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
    let mut watched = Watched::default();
    let tell = |said| changes.send(Change::Object(kind, said));
    let follow = async {
        if !is_served(&client, kind).await {
            tracing::warn!(kind = name, version, "a kind of Gateway API is defined, and not served in this version");
            let _ = tell(Said::Undefined).await;
            return;
        }
        let read = |mut object: DynamicObject| {
            let spec = object.data.get_mut("spec").map(Value::take).unwrap_or_default();
            Said::Object(Meta::of(&object.metadata), spec, Value::Null)
        };
        while let Some(event) = events.next().await {
            for said in heard(&mut watched, name, event, read) {
                if tell(said).await.is_err() {
                    return;
                }
            }
        }
    };
    // Only waits are cut.
    tokio::select! {
        () = follow => {}
        () = stop.cancelled() => {}
    }
}

/// Whether the kind is served in our version, as its definition says.
async fn is_served(client: &kube::Client, kind: usize) -> bool {
    let path = follow::definition_path(kind);
    for wait in Again::new().take(TRIES_MAX as usize) {
        let request = http::Request::get(&path).body(Vec::new()).expect("a path of letters");
        let answer = client.request_text(request).await.map_err(|error| {
            tracing::debug!(%error, kind = KINDS[kind].0, "read a custom resource definition");
            match error {
                kube::Error::Api(status) => Failed::of_list(status.code),
                _ => Failed::Later,
            }
        });
        if let Some(is_served) = follow::is_served(kind, answer.as_deref().map_err(|failed| *failed)) {
            return is_served;
        }
        tokio::time::sleep(wait).await;
    }
    true
}

/// Labels of namespaces. Where they are not shown to this node nobody has any.
async fn namespaces(client: kube::Client, changes: mpsc::Sender<Change>) {
    let api: Api<PartialObjectMeta<Namespace>> = Api::all(client);
    let mut events = watcher::watcher(api, watcher::Config::default()).backoff(Again::new()).boxed();
    let mut watched = Watched::default();
    while let Some(event) = events.next().await {
        let mut labels = BTreeMap::new();
        let read = |namespace: PartialObjectMeta<Namespace>| {
            labels = namespace.labels().clone();
            Said::Object(Meta::of(&namespace.metadata), Value::Null, Value::Null)
        };
        for said in heard(&mut watched, "Namespace", event, read) {
            // They have no definition that could be missing.
            let said = if said == Said::Undefined { Said::Listed } else { said };
            if changes.send(Change::Namespace(said, labels.clone())).await.is_err() {
                return;
            }
        }
    }
}
