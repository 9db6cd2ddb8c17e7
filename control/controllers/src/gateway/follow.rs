//! Watches of Gateway API's kinds, each while its definition is there: one that is not would be refused again and again.

use std::collections::HashMap;
use std::time::Duration;

use coracle_gateway::{BUNDLE, Definition, GROUP, KINDS, Meta, Said, defined_by};
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

/// A definition that could not be read is read again after this time.
const AGAIN: Duration = Duration::from_secs(1);
/// How often a definition is asked for before its kind is watched whatever it says.
const TRIES_MAX: u32 = 8;

/// Of a kind, by its place in [`KINDS`].
pub(super) type Change = (usize, Said);

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

/// A definition: its uid, its generation, and of which version of Gateway API it is.
type Which = (Option<String>, Option<i64>, Option<String>);

/// Follows all of them; ends when nobody hears it.
pub(super) async fn run(client: kube::Client, changes: mpsc::Sender<Change>) {
    let mut watched: HashMap<usize, Watched> = HashMap::new();
    let definitions: Api<PartialObjectMeta<CustomResourceDefinition>> = Api::all(client.clone());
    let mut events = watcher::watcher(definitions, watcher::Config::default()).default_backoff().boxed();
    // Those of a list that is being read.
    let mut listed: HashMap<usize, Which> = HashMap::new();
    let of = |definition: &PartialObjectMeta<CustomResourceDefinition>| {
        let metadata = &definition.metadata;
        let bundle = metadata.annotations.as_ref().and_then(|annotations| annotations.get(BUNDLE)).cloned();
        Some((defined_by(metadata.name.as_deref()?)?, (metadata.uid.clone(), metadata.generation, bundle)))
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
                let now = std::mem::take(&mut listed);
                let gone = (0..KINDS.len()).filter(|kind| !now.contains_key(kind)).collect();
                (now, gone)
            }
            Ok(Event::Apply(definition)) => (of(&definition).into_iter().collect(), Vec::new()),
            Ok(Event::Delete(definition)) => {
                (HashMap::new(), of(&definition).map(|(kind, _)| kind).into_iter().collect())
            }
            Err(error) => {
                tracing::debug!(error = %crate::error::chain(&error), "watch custom resource definitions");
                continue;
            }
        };
        for kind in gone {
            if let Some(watched) = watched.remove(&kind) {
                watched.end().await;
            }
            if changes.send((kind, Said::Undefined)).await.is_err() {
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
            if changes.send((kind, Said::Bundle(definition.2.clone()))).await.is_err() {
                return;
            }
            let stop = CancellationToken::new();
            let task = tokio::spawn(watch(client.clone(), kind, changes.clone(), stop.clone()));
            watched.insert(kind, Watched { definition, stop, task: AbortOnDropHandle::new(task) });
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
    let mut events = watcher::watcher(api, watcher::Config::default()).default_backoff().boxed();
    // Whether it was said what there is, or that there is nothing; and whether a list has begun and that was not said.
    let (mut is_known, mut is_listing) = (false, false);
    let tell = |said| changes.send((kind, said));
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
                    let mut part = |name: &str| object.data.get_mut(name).map(Value::take).unwrap_or_default();
                    let (spec, status) = (part("spec"), part("status"));
                    // A write is of this version, or is refused.
                    let kept = json!({"status": status, "version": object.metadata.resource_version});
                    Said::Object(Meta::of(&object.metadata), spec, kept)
                }
                Ok(Event::InitDone) => {
                    is_known = true;
                    Said::Listed
                }
                Ok(Event::Delete(object)) => Said::Gone(Meta::of(&object.metadata).key()),
                Err(error) => {
                    tracing::debug!(error = %crate::error::chain(&error), kind = name, "watch");
                    // It may be served a moment after its definition is there: others do not wait for it.
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
    for _ in 0..TRIES_MAX {
        let request = http::Request::get(&path).body(Vec::new()).expect("a path of letters");
        match client.request_text(request).await {
            // What is no definition does not tell.
            Ok(text) => return serde_json::from_str(&text).map_or(true, |of: Definition| of.serves(kind)),
            Err(kube::Error::Api(status)) if matches!(status.code, 403 | 404) => return true,
            Err(error) => {
                tracing::debug!(error = %crate::error::chain(&error), kind = KINDS[kind].0, "read a definition")
            }
        }
        tokio::time::sleep(AGAIN).await;
    }
    true
}
