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
use crate::words::{is_refused, words};

/// Of this kind the controller says something, that it is not served: nodes do not look at it.
const UNSERVED: &str = "GRPCRoute";
/// A kind that the API server has, and cannot list, counts as one that is not there after so many tries (some 15 s), until it can:
/// others do not wait for it.
const TRIES_MAX: u32 = 8;

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
        Some((followed(metadata.name.as_deref()?)?, (metadata.uid.clone(), metadata.generation)))
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
                tracing::debug!(error = words(&error), "watch custom resource definitions");
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

/// The kind that a definition of this name is for, if it is followed.
fn followed(definition: &str) -> Option<usize> {
    defined_by(definition).filter(|kind| KINDS[*kind].0 != UNSERVED)
}

/// How long a kind is waited for.
#[derive(Default)]
struct Patience {
    /// Whether it was said what there is, or that there is nothing.
    is_over: bool,
    failed: u32,
}

impl Patience {
    /// Whether it ends here, by this error.
    fn ends(&mut self, name: &str, error: &watcher::Error) -> bool {
        // It may be served a moment after its definition is there; or never, to a node.
        let mut ends = is_refused(error);
        if !self.is_over && !ends && is_answered(error) {
            self.failed += 1;
            ends = self.failed >= TRIES_MAX;
            if ends {
                let error = words(error);
                tracing::warn!(
                    error,
                    kind = name,
                    "a kind cannot be listed: until it can, there is none of it for Gateways"
                );
            }
        }
        ends && !std::mem::replace(&mut self.is_over, true)
    }
}

/// Whether it is the answer to a list that failed. Who could not be reached, or has no time, answers when he can.
fn is_answered(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status)) => !matches!(status.code, 429 | 503 | 504),
        watcher::Error::InitialListFailed(kube::Error::SerdeError(_)) => true,
        _ => false,
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
    let mut events = watcher::watcher(api, watcher::Config::default()).backoff(Again::new()).boxed();
    let mut patience = Patience::default();
    // Whether a list has begun and that was not said.
    let mut is_listing = false;
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
                    patience.is_over = true;
                    Said::Listed
                }
                Ok(Event::Delete(object)) => Said::Gone(Meta::of(&object.metadata).key()),
                Err(error) => {
                    tracing::debug!(error = words(&error), kind = name, "watch");
                    if !patience.ends(name, &error) {
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
    for wait in Again::new().take(TRIES_MAX as usize) {
        let request = http::Request::get(&path).body(Vec::new()).expect("a path of letters");
        match client.request_text(request).await {
            // What is no definition does not tell.
            Ok(text) => return serde_json::from_str(&text).map_or(true, |of: Definition| of.serves(kind)),
            Err(kube::Error::Api(status)) if matches!(status.code, 403 | 404) => return true,
            Err(error) => tracing::debug!(%error, kind = KINDS[kind].0, "read a custom resource definition"),
        }
        tokio::time::sleep(wait).await;
    }
    true
}

/// Labels of namespaces. Where they are not shown to this node nobody has any.
async fn namespaces(client: kube::Client, changes: mpsc::Sender<Change>) {
    let api: Api<PartialObjectMeta<Namespace>> = Api::all(client);
    let mut events = watcher::watcher(api, watcher::Config::default()).backoff(Again::new()).boxed();
    let mut patience = Patience::default();
    while let Some(event) = events.next().await {
        let (said, labels) = match event {
            Ok(Event::Init) => (Said::Listing, BTreeMap::new()),
            Ok(Event::InitApply(namespace) | Event::Apply(namespace)) => {
                let labels = namespace.labels().clone();
                (Said::Object(Meta::of(&namespace.metadata), Value::Null, Value::Null), labels)
            }
            Ok(Event::InitDone) => {
                patience.is_over = true;
                (Said::Listed, BTreeMap::new())
            }
            Ok(Event::Delete(namespace)) => (Said::Gone(Meta::of(&namespace.metadata).key()), BTreeMap::new()),
            Err(error) => {
                tracing::debug!(error = words(&error), "watch namespaces");
                if !patience.ends("Namespace", &error) {
                    continue;
                }
                (Said::Listed, BTreeMap::new())
            }
        };
        if changes.send(Change::Namespace(said, labels)).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(code: u16) -> watcher::Error {
        let status = kube::core::Status::failure("no", "Failure").with_code(code);
        watcher::Error::InitialListFailed(kube::Error::Api(status.boxed()))
    }

    #[test]
    fn what_is_not_served_is_not_followed() {
        let all = KINDS.map(|(name, plural, _)| (name, followed(&format!("{plural}.{GROUP}")).is_some()));
        let expected = KINDS.map(|(name, ..)| (name, name != "GRPCRoute"));
        assert_eq!(all, expected);
    }

    #[test]
    fn a_kind_that_cannot_be_listed_is_waited_for_a_while() {
        let tries = 3 * TRIES_MAX;
        for (error, ends_at) in [
            (failed(404), vec![0]),
            (failed(403), vec![0]),
            (failed(500), vec![TRIES_MAX - 1]),
            (failed(503), vec![]),
            (failed(429), vec![]),
            (watcher::Error::NoResourceVersion, vec![]),
        ] {
            let mut patience = Patience::default();
            let ends: Vec<u32> = (0..tries).filter(|_| patience.ends("HTTPRoute", &error)).collect();
            assert_eq!(ends, ends_at, "{error}");
        }
        let mut patience = Patience { is_over: true, ..Patience::default() };
        assert!(!(0..tries).any(|_| patience.ends("HTTPRoute", &failed(500))), "what there was stays");
    }
}
