//! What NetworkPolicies say, as it is now. One task watches them and the labels of namespaces that they may name ([`Policies::run`]);
//! each change makes a new [`Table`], and readers take the latest without a lock. When the API server is gone they keep the last one.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use coracle_policy::{Rules, Table};
use futures::stream::SelectAll;
use futures::{FutureExt, Stream, StreamExt};
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::runtime::watcher::{Error, Event};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Resource, ResourceExt};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::Again;
use crate::words::{is_refused, words};

/// Changes that are taken together into one table.
const BATCH: usize = 1024;
/// Where it is not known for so long what policies say, somebody should look.
const UNHEARD_MAX: Duration = Duration::from_secs(60);

/// Watches NetworkPolicies. Clones share the table.
#[derive(Clone)]
pub struct Policies {
    client: kube::Client,
    table: Arc<ArcSwap<Table>>,
    generation: watch::Sender<u64>,
    synced: watch::Sender<bool>,
}

impl Policies {
    /// Knows nothing until [`Policies::run`] does, and allows everything until then.
    pub fn new(client: kube::Client) -> Policies {
        Policies {
            client,
            table: Arc::new(ArcSwap::from_pointee(Table::default())),
            generation: watch::Sender::new(0),
            synced: watch::Sender::new(false),
        }
    }

    /// The latest table.
    pub fn table(&self) -> arc_swap::Guard<Arc<Table>> {
        self.table.load()
    }

    /// The generation of the latest table, to wait for the next.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    /// Waits until it is known what policies say, or that nobody here is told.
    pub async fn synced(&self) {
        let mut synced = self.synced.subscribe();
        // The sender lives as long as `self`.
        let _ = synced.wait_for(|synced| *synced).await;
    }

    /// Watches until shutdown.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut changes = SelectAll::new();
        changes.push(events::<NetworkPolicy>(self.client.clone()).map(Change::Policies).boxed());
        changes.push(events::<Namespace>(self.client.clone()).map(Change::Namespaces).boxed());
        let mut followed = Followed::default();
        let unheard = tokio::time::sleep(UNHEARD_MAX);
        tokio::pin!(unheard);
        let mut is_told = false;
        loop {
            // Waiting is all that is cut here.
            let first = tokio::select! {
                change = changes.next() => change,
                () = &mut unheard, if !is_told => {
                    is_told = true;
                    if !followed.is_listed() {
                        tracing::warn!("what network policies say is not known yet, and no pod starts before it is: the API server does not answer");
                    }
                    continue;
                }
                () = shutdown.cancelled() => return,
            };
            let Some(first) = first else { return };
            followed.take(first);
            for _ in 1..BATCH {
                match changes.next().now_or_never() {
                    Some(Some(change)) => followed.take(change),
                    _ => break,
                }
            }
            // Of half a list nothing is known but that there is more.
            if !followed.is_listed() {
                continue;
            }
            // Where there is no policy, and was none, labels of namespaces are nothing new.
            if followed.is_changed() && !(followed.rules.is_empty() && self.table.load().is_empty()) {
                let generation = self.table.load().generation() + 1;
                self.table.store(Arc::new(Table::new(followed.rules.clone(), generation)));
                self.generation.send_replace(generation);
            }
            self.synced.send_replace(true);
        }
    }
}

/// What a watch said.
enum Change {
    Policies(Result<Event<NetworkPolicy>, Error>),
    Namespaces(Result<Event<Namespace>, Error>),
}

fn events<K>(client: kube::Client) -> impl Stream<Item = Result<Event<K>, Error>> + Send
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + serde::de::DeserializeOwned + Send + 'static,
{
    watcher(Api::<K>::all(client), watcher::Config::default()).backoff(Again::new())
}

/// Namespace and name; of a namespace the second.
type Key = (String, String);

/// Objects of a kind.
#[derive(Default)]
struct Known {
    all: HashSet<Key>,
    /// Those of a list that is being read again: what is missing in it is gone.
    relisted: Option<HashSet<Key>>,
    is_listed: bool,
}

#[derive(Default)]
struct Followed {
    rules: Rules,
    policies: Known,
    namespaces: Known,
    is_changed: bool,
}

impl Followed {
    fn is_listed(&self) -> bool {
        self.policies.is_listed && self.namespaces.is_listed
    }

    /// Whether the rules are others than when it was asked last.
    fn is_changed(&mut self) -> bool {
        std::mem::take(&mut self.is_changed)
    }

    fn take(&mut self, change: Change) {
        let Followed { rules, policies, namespaces, is_changed } = self;
        *is_changed |= match change {
            Change::Policies(event) => {
                policies.take(event, rules, Rules::put, |rules, (namespace, name)| rules.remove(namespace, name))
            }
            Change::Namespaces(event) => namespaces.take(
                event,
                rules,
                |rules, namespace| rules.label(&namespace.name_any(), namespace.labels().clone()),
                |rules, (_, name)| rules.forget(name),
            ),
        };
    }
}

impl Known {
    /// Takes what a watch said into the rules; whether they are others now.
    fn take<K: Resource<DynamicType = ()>>(
        &mut self,
        event: Result<Event<K>, Error>,
        rules: &mut Rules,
        put: impl Fn(&mut Rules, &K) -> bool,
        remove: impl Fn(&mut Rules, &Key) -> bool,
    ) -> bool {
        match event {
            Ok(Event::Init) => {
                self.relisted = Some(HashSet::new());
                false
            }
            Ok(Event::InitApply(object) | Event::Apply(object)) => {
                let key = key(&object);
                if let Some(seen) = &mut self.relisted {
                    seen.insert(key.clone());
                }
                self.all.insert(key);
                put(rules, &object)
            }
            Ok(Event::InitDone) => {
                self.is_listed = true;
                let seen = self.relisted.take().unwrap_or_default();
                let gone: Vec<Key> = self.all.difference(&seen).cloned().collect();
                gone.iter().fold(false, |is_changed, key| {
                    self.all.remove(key);
                    remove(rules, key) | is_changed
                })
            }
            Ok(Event::Delete(object)) => {
                let key = key(&object);
                self.all.remove(&key);
                remove(rules, &key)
            }
            Err(error) => {
                tracing::debug!(%error, kind = %K::kind(&()), "watch");
                // Another's API server, or one that is older, does not tell nodes: then there is nothing to wait for.
                if !self.is_listed && is_refused(&error) {
                    tracing::warn!(error = words(&error), kind = %K::kind(&()), "{}", unshown::<K>());
                    self.is_listed = true;
                }
                false
            }
        }
    }
}

fn key<K: Resource>(object: &K) -> Key {
    (object.namespace().unwrap_or_default(), object.name_any())
}

/// What it means that this kind is not shown.
fn unshown<K: Resource<DynamicType = ()>>() -> &'static str {
    match &*K::kind(&()) {
        "Namespace" => {
            "rules of network policies that name namespaces by labels allow nobody at this node: the API server does not show it namespaces"
        }
        _ => "network policies are not enforced by this node: the API server does not show them to it",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use coracle_policy::{Destination, Port, Protocol, Source, Workload};
    use serde_json::json;

    use super::*;

    fn policy(name: &str, spec: serde_json::Value) -> Change {
        let object = json!({"metadata": {"namespace": "n", "name": name}, "spec": spec});
        Change::Policies(Ok(Event::Apply(serde_json::from_value(object).unwrap())))
    }

    fn namespace(name: &str, team: &str) -> Change {
        let object = json!({"metadata": {"name": name, "labels": {"team": team}}});
        Change::Namespaces(Ok(Event::Apply(serde_json::from_value(object).unwrap())))
    }

    /// Whether a pod of the same namespace may connect.
    fn allows(followed: &Followed) -> bool {
        let pod =
            |at: u8| Arc::new(Workload::new([10, 0, 0, at].into(), "n", &at.to_string(), "a", BTreeMap::new(), vec![]));
        let port = Port { protocol: Protocol::Tcp, number: 80 };
        Table::new(followed.rules.clone(), 1).allows(&Source::Pod(pod(1)), &Destination::Pod(pod(2)), port)
    }

    #[test]
    fn follows_policies_and_what_namespaces_are_called() {
        let mut followed = Followed::default();
        followed.take(Change::Policies(Ok(Event::Init)));
        followed.take(policy("shut", json!({"podSelector": {}})));
        followed.take(policy(
            "team",
            json!({"podSelector": {}, "ingress": [{"from": [{"namespaceSelector": {"matchLabels": {"team": "a"}}}]}]}),
        ));
        followed.take(Change::Policies(Ok(Event::InitDone)));
        assert!(!followed.is_listed() && followed.is_changed() && !followed.is_changed());
        followed.take(Change::Namespaces(Ok(Event::Init)));
        followed.take(namespace("n", "b"));
        followed.take(Change::Namespaces(Ok(Event::InitDone)));
        assert!(followed.is_listed() && followed.is_changed() && !allows(&followed));
        followed.take(namespace("n", "b"));
        assert!(!followed.is_changed(), "the same labels");
        followed.take(namespace("n", "a"));
        assert!(followed.is_changed() && allows(&followed));
        // A list that lacks one.
        followed.take(Change::Policies(Ok(Event::Init)));
        followed.take(policy("shut", json!({"podSelector": {}})));
        assert!(allows(&followed), "what was known counts until the list is whole");
        followed.take(Change::Policies(Ok(Event::InitDone)));
        assert!(!allows(&followed));
        assert!(followed.is_changed());
        // The same list once more, and a namespace of which something else has changed.
        followed.take(Change::Policies(Ok(Event::Init)));
        followed.take(policy("shut", json!({"podSelector": {}})));
        followed.take(Change::Policies(Ok(Event::InitDone)));
        followed.take(namespace("n", "a"));
        assert!(!followed.is_changed(), "nothing is new");
        followed.take(Change::Policies(Ok(Event::Init)));
        followed.take(Change::Policies(Ok(Event::InitDone)));
        assert!(followed.rules.is_empty() && followed.is_changed());
    }

    #[test]
    fn who_is_not_told_does_not_wait_and_who_was_told_forgets_nothing() {
        let refused = |code| {
            let status = kube::core::Status { code, ..kube::core::Status::failure("no", "Forbidden") };
            Change::Policies(Err(Error::InitialListFailed(kube::Error::Api(status.boxed()))))
        };
        let mut followed =
            Followed { namespaces: Known { is_listed: true, ..Known::default() }, ..Followed::default() };
        followed.take(refused(500));
        assert!(!followed.is_listed());
        followed.take(policy("shut", json!({"podSelector": {}})));
        followed.take(refused(403));
        assert!(followed.is_listed() && !allows(&followed));
    }
}
