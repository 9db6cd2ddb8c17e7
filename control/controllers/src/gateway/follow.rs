//! Watches of Gateway API's kinds: which there are, and what is said of each, [`coracle_gateway::follow`] says.

use std::collections::HashMap;
use std::time::Duration;

use coracle_gateway::follow::{self, Failed, Followed, Heard, Step, TRIES_MAX, Watched};
use coracle_gateway::{GROUP, KINDS, Meta, Said};
use futures::StreamExt as _;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Api;
use kube::api::{ApiResource, DynamicObject, PartialObjectMeta};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::foreign;

/// A definition that could not be read is read again after this time.
const AGAIN: Duration = Duration::from_secs(1);

/// Of a kind, by its place in [`KINDS`].
pub(super) type Change = (usize, Said);

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
    let mut watches: HashMap<usize, Watch> = HashMap::new();
    let mut followed = Followed::default();
    let definitions: Api<PartialObjectMeta<CustomResourceDefinition>> = Api::all(client.clone());
    let mut events = watcher::watcher(definitions, watcher::Config::default()).default_backoff().boxed();
    while let Some(event) = events.next().await {
        let heard = match event {
            Ok(Event::Init) => Heard::Listing,
            Ok(Event::InitApply(definition) | Event::Apply(definition)) => Heard::Is(definition.metadata),
            Ok(Event::InitDone) => Heard::Listed,
            Ok(Event::Delete(definition)) => Heard::Gone(definition.metadata),
            Err(error) => {
                tracing::debug!(error = %crate::error::chain(&error), "watch custom resource definitions");
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
                    if changes.send((kind, said)).await.is_err() {
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
    let mut events = watcher::watcher(api, foreign::in_pages()).default_backoff().boxed();
    let mut watched = Watched::default();
    let tell = |said| changes.send((kind, said));
    let follow = async {
        if !is_served(&client, kind).await {
            tracing::warn!(kind = name, version, "a kind of Gateway API is defined, and not served in this version");
            let _ = tell(Said::Undefined).await;
            return;
        }
        while let Some(event) = events.next().await {
            let said = match event {
                Ok(Event::Init) => Ok(Said::Listing),
                Ok(Event::InitApply(mut object) | Event::Apply(mut object)) => {
                    let mut part = |name: &str| object.data.get_mut(name).map(Value::take).unwrap_or_default();
                    let (spec, status) = (part("spec"), part("status"));
                    // A write is of this version, or is refused.
                    let kept = json!({"status": status, "version": object.metadata.resource_version});
                    Ok(Said::Object(Meta::of(&object.metadata), spec, kept))
                }
                Ok(Event::InitDone) => Ok(Said::Listed),
                Ok(Event::Delete(object)) => Ok(Said::Gone(Meta::of(&object.metadata).key())),
                Err(error) => {
                    tracing::debug!(error = %crate::error::chain(&error), kind = name, "watch");
                    Err(failed(&error))
                }
            };
            let is_answered = said == Err(Failed::Answered);
            for said in watched.take(said) {
                if is_answered {
                    tracing::warn!(
                        kind = name,
                        "a kind cannot be listed: until it can, there is none of it for Gateways"
                    );
                }
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
    for _ in 0..TRIES_MAX {
        let request = http::Request::get(&path).body(Vec::new()).expect("a path of letters");
        let answer = client.request_text(request).await.map_err(|error| {
            tracing::debug!(error = %crate::error::chain(&error), kind = KINDS[kind].0, "read a definition");
            match error {
                kube::Error::Api(status) => Failed::of_list(status.code),
                _ => Failed::Later,
            }
        });
        if let Some(is_served) = follow::is_served(kind, answer.as_deref().map_err(|failed| *failed)) {
            return is_served;
        }
        tokio::time::sleep(AGAIN).await;
    }
    true
}
