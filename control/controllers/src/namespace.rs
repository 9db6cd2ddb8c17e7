//! The end of a namespace: first its pods, then everything else, then the finalizer (kubernetes-api §8.4).
//!
//! Level-driven: each reconciliation asks for what is left of every namespaced kind and deletes it; deletions in a
//! namespace that goes bring it back to the queue (from the garbage collector's view of all kinds).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use coracle_tolerant::cut;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition, NamespaceStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};

use crate::client::{self, Client, DeleteOptions, Meta, NAMESPACES};
use crate::discovery::{Discovery, Kind, Kinds};
use crate::error::chain;
use crate::foreign::{self, Pages};
use crate::informer::{Informer, Key, Object as _, Store};
use crate::queue::{Next, Queue, Reconciler};
use crate::{Error, now_in_seconds};

/// The finalizer that is ours.
const FINALIZER: &str = "kubernetes";
/// Looks again at the latest, should an event be missed.
const LOOK_AGAIN: Duration = Duration::from_secs(15);
/// Of what is left so much is told of each sort: kinds, finalizers, failures. Of more finalizers the names are not kept.
const TOLD_MAX: usize = 32;

/// Ends namespaces.
pub(crate) struct Controller {
    client: Client,
    discovery: Discovery,
    queue: Queue<Key>,
    namespaces: Arc<Store<Namespace>>,
}

/// What was left when we looked.
#[derive(Debug, Default)]
struct Remaining {
    /// Objects by `plural.group`.
    objects: BTreeMap<String, u64>,
    finalizers: Finalizers,
    /// What could not be listed or deleted.
    failures: Vec<String>,
    /// Groups whose kinds nobody could tell.
    discovery_failures: Vec<String>,
}

/// What is left of a kind.
#[derive(Debug, Default)]
struct Left {
    count: u64,
    /// Of those that were looked at.
    finalizers: Finalizers,
}

/// Objects by finalizer. There may be any number of finalizers, of any length: whoever writes an object names them.
#[derive(Debug, Default)]
struct Finalizers {
    named: BTreeMap<String, u64>,
    /// Times that others were met, beyond [`TOLD_MAX`].
    others: u64,
}

impl Finalizers {
    fn add(&mut self, name: &str, count: u64) {
        let name = cut(name);
        if let Some(known) = self.named.get_mut(name) {
            *known += count;
        } else if self.named.len() < TOLD_MAX {
            self.named.insert(name.to_owned(), count);
        } else {
            self.others += count;
        }
    }

    fn extend(&mut self, more: &Finalizers) {
        more.named.iter().for_each(|(name, count)| self.add(name, *count));
        self.others += more.others;
    }
}

impl Left {
    fn add(&mut self, items: &[Meta]) {
        self.count += items.len() as u64;
        for finalizer in items.iter().flat_map(|item| item.metadata.finalizers.iter().flatten()) {
            self.finalizers.add(finalizer, 1);
        }
    }
}

impl Controller {
    pub(crate) fn new(client: Client, discovery: Discovery, namespaces: &mut Informer<Namespace>) -> Arc<Self> {
        let queue: Queue<Key> = Queue::new(Duration::from_millis(100));
        namespaces.on_change({
            let queue = queue.clone();
            move |change| {
                if change.object().metadata.deletion_timestamp.is_some() {
                    queue.add(&change.object().key());
                }
            }
        });
        Arc::new(Self { client, discovery, queue, namespaces: namespaces.store() })
    }

    /// Something in the namespace is gone.
    pub(crate) fn on_deletion(&self, namespace: &str) {
        let key = Key::new("", namespace);
        if self.namespaces.get(&key).is_some_and(|namespace| namespace.metadata.deletion_timestamp.is_some()) {
            self.queue.add(&key);
        }
    }
}

impl Reconciler for Controller {
    type Key = Key;
    const NAME: &'static str = "namespace";
    const WORKERS: usize = 8;

    fn queue(&self) -> &Queue<Key> {
        &self.queue
    }

    async fn reconcile(self: Arc<Self>, key: Key) -> Result<Next, Error> {
        let Some(namespace) = self.namespaces.get(&key) else { return Ok(Next::OnEvent) };
        let finalizers = namespace.spec.as_ref().and_then(|spec| spec.finalizers.clone()).unwrap_or_default();
        if namespace.metadata.deletion_timestamp.is_none() || !finalizers.iter().any(|name| name == FINALIZER) {
            return Ok(Next::OnEvent);
        }
        let mut kinds = self.discovery.kinds();
        if kinds.kinds.is_empty() || !kinds.failures.is_empty() {
            kinds = self.discovery.refresh().await.map_err(Error::api("ask for the kinds"))?;
        }
        let mut remaining = self.delete_content(&key.name, &kinds).await;
        if remaining.is_empty() {
            // It seems to be empty; the last word is with the kinds that there are now.
            let kinds = self.discovery.refresh().await.map_err(Error::api("ask for the kinds"))?;
            remaining = self.delete_content(&key.name, &kinds).await;
        }
        self.write_conditions(&namespace, &remaining).await?;
        if !remaining.is_empty() {
            return if remaining.failures.is_empty() {
                Ok(Next::After(LOOK_AGAIN))
            } else {
                Err(Error::Stale("content of the namespace could not be deleted"))
            };
        }
        let others: Vec<_> = finalizers.into_iter().filter(|name| name != FINALIZER).collect();
        let body = json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": &*key.name, "uid": namespace.uid()},
            "spec": {"finalizers": others},
        });
        let path = format!("{}/finalize", client::path(NAMESPACES.version, NAMESPACES.plural, "", &key.name));
        match self.client.put_at(&path, &body).await {
            Err(error) if client::is_not_found(&error) => Ok(Next::OnEvent),
            other => other.map(|_| Next::OnEvent).map_err(Error::api("remove the finalizer of a namespace")),
        }
    }
}

impl Controller {
    async fn delete_content(&self, namespace: &str, kinds: &Kinds) -> Remaining {
        let mut remaining = Remaining::default();
        let namespaced: Vec<&Kind> = kinds.kinds.iter().filter(|kind| kind.namespaced).collect();
        let is_pods = |kind: &&&Kind| kind.group.is_empty() && &*kind.plural == "pods";
        if let Some(pods) = namespaced.iter().find(is_pods) {
            self.delete_kind(pods, namespace, &mut remaining).await;
        }
        // Pods alone hold the others up: kinds that nobody could tell of do not.
        if remaining.is_empty() {
            for kind in namespaced.iter().filter(|kind| !is_pods(kind)) {
                self.delete_kind(kind, namespace, &mut remaining).await;
            }
        }
        remaining.discovery_failures.clone_from(&kinds.failures);
        remaining
    }

    /// Deletes what there is of the kind; notes what is left.
    async fn delete_kind(&self, kind: &Kind, namespace: &str, remaining: &mut Remaining) {
        let name = format!("{}.{}", kind.plural, kind.group);
        match self.delete_all(kind, namespace).await {
            Ok(left) if left.count == 0 => {}
            Ok(left) => {
                *remaining.objects.entry(name).or_default() += left.count;
                remaining.finalizers.extend(&left.finalizers);
            }
            // Nobody serves it any more.
            Err(error) if client::is_not_found(&error) => {}
            Err(error) => remaining.failures.push(format!("{name}: {}", cut(&chain(&error)))),
        }
    }

    /// Asks all that there is of the kind to go, but for what goes already: each deletion of something that stays for a while is
    /// work for whoever admits it, and this is called for every object that has gone. Returns what is left.
    async fn delete_all(&self, kind: &Kind, namespace: &str) -> Result<Left, kube::Error> {
        let path = kind.path(namespace, "");
        let options = DeleteOptions { propagation_policy: Some("Background"), ..DeleteOptions::default() };
        let (mut left, mut asked) = (Left::default(), false);
        let mut pages = Pages::of_metadata(&self.client, path.clone());
        loop {
            let page = match pages.next::<Meta>().await {
                Ok(Some(page)) => page,
                Ok(None) => break,
                // One that cannot be read fails the list, and so do many large ones; whoever deletes all of them need not read them.
                Err(error)
                    if kind.delete_collection
                        && (client::code(&error) == Some(500) || foreign::is_too_long(&error)) =>
                {
                    self.client.delete_at(&path, &options).await?;
                    asked = true;
                    break;
                }
                Err(error) => return Err(error),
            };
            let staying: Vec<&Meta> =
                page.items.iter().filter(|item| item.metadata.deletion_timestamp.is_none()).collect();
            asked |= !staying.is_empty();
            if kind.delete_collection && asked {
                self.client.delete_at(&path, &options).await?;
                break;
            }
            for item in staying {
                let name = item.metadata.name.as_deref().unwrap_or_default();
                self.client.delete_at(&kind.path(namespace, name), &options).await?;
            }
            left.add(&page.items);
        }
        if !asked {
            return Ok(left);
        }
        let mut left = Left::default();
        if let Some(page) = Pages::of_metadata(&self.client, path).next::<Meta>().await? {
            left.add(&page.items);
            let rest = page.metadata.remaining_item_count.and_then(|count| u64::try_from(count).ok());
            left.count = left.count.saturating_add(rest.unwrap_or(0));
        }
        Ok(left)
    }

    async fn write_conditions(&self, namespace: &Namespace, remaining: &Remaining) -> Result<(), Error> {
        let before = namespace.status.clone().unwrap_or_default();
        let conditions = remaining.conditions(&before, now_in_seconds());
        if before.conditions.as_deref() == Some(&conditions[..]) {
            return Ok(());
        }
        let status: Value = json!({"conditions": conditions, "phase": "Terminating"});
        match self.client.patch_status(NAMESPACES, &namespace.key(), namespace.uid(), &status).await {
            Err(error) if client::is_not_found(&error) => Ok(()),
            other => other.map(drop).map_err(Error::api("write the status of a namespace")),
        }
    }
}

impl Remaining {
    fn is_empty(&self) -> bool {
        self.objects.is_empty() && self.failures.is_empty() && self.discovery_failures.is_empty()
    }

    /// The five conditions of a namespace that goes; those that were never true are written when one of them is.
    fn conditions(&self, before: &NamespaceStatus, now: Timestamp) -> Vec<NamespaceCondition> {
        let list = |counts: &BTreeMap<String, u64>, words: &str, others: u64| {
            let counts = counts.iter().map(|(name, count)| format!("{name} {words} {count} resource instances"));
            let others = (others > 0).then(|| format!("others {words} {others}"));
            told(counts.chain(others))
        };
        let rows = [
            (
                "NamespaceDeletionDiscoveryFailure",
                (!self.discovery_failures.is_empty()).then(|| {
                    let (count, groups) =
                        (self.discovery_failures.len(), told(self.discovery_failures.iter().cloned()));
                    ("DiscoveryFailed", format!("Discovery failed for some groups, {count} failing: {groups}"))
                }),
                ("ResourcesDiscovered", "All resources successfully discovered"),
            ),
            (
                "NamespaceDeletionGroupVersionParsingFailure",
                None,
                ("ParsedGroupVersions", "All legacy kube types successfully parsed"),
            ),
            (
                "NamespaceDeletionContentFailure",
                (!self.failures.is_empty()).then(|| {
                    let (count, failures) = (self.failures.len(), told(self.failures.iter().cloned()));
                    (
                        "ContentDeletionFailed",
                        format!("Failed to delete all resource types, {count} remaining: {failures}"),
                    )
                }),
                ("ContentDeleted", "All content successfully deleted, may be waiting on finalization"),
            ),
            (
                "NamespaceContentRemaining",
                (!self.objects.is_empty()).then(|| {
                    let message = format!("Some resources are remaining: {}", list(&self.objects, "has", 0));
                    ("SomeResourcesRemain", message)
                }),
                ("ContentRemoved", "All content successfully removed"),
            ),
            (
                "NamespaceFinalizersRemaining",
                (!self.finalizers.named.is_empty()).then(|| {
                    let list = list(&self.finalizers.named, "in", self.finalizers.others);
                    let message = format!("Some content in the namespace has finalizers remaining: {list}");
                    ("SomeFinalizersRemain", message)
                }),
                ("ContentHasNoFinalizers", "All content-preserving finalizers finished"),
            ),
        ];
        let conditions = rows.into_iter().map(|(type_, bad, good)| {
            let known = before.conditions.iter().flatten().find(|condition| condition.type_ == type_);
            let (status, reason, message) = match bad {
                Some((reason, message)) => ("True", reason, message),
                None => ("False", good.0, good.1.to_owned()),
            };
            let same = known.filter(|known| known.status == status);
            NamespaceCondition {
                type_: type_.to_owned(),
                status: status.to_owned(),
                reason: Some(reason.to_owned()),
                message: Some(message),
                last_transition_time: same.map_or(Some(Time(now)), |known| known.last_transition_time.clone()),
            }
        });
        conditions.collect()
    }
}

/// So many of them as a condition tells, and how many more there are.
fn told(all: impl Iterator<Item = String>) -> String {
    let mut all: Vec<String> = all.collect();
    if all.len() > TOLD_MAX + 1 {
        let more = all.len() - TOLD_MAX;
        all.truncate(TOLD_MAX);
        all.push(format!("{more} more"));
    }
    all.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn null_is_an_empty_list() {
        for list in [r#"{"metadata": {}, "items": null}"#, r#"{"metadata": {}}"#] {
            assert!(serde_json::from_str::<foreign::Page<Meta>>(list).unwrap().items.is_empty());
        }
    }

    #[test]
    fn tells_of_so_much_and_no_more_whatever_finalizers_are_called() {
        let names: Vec<String> = (0..10_000).map(|index| format!("x.y/{index:05}{}", "z".repeat(1000))).collect();
        let item: Meta = serde_json::from_value(json!({"metadata": {"finalizers": names}})).unwrap();
        let mut left = Left::default();
        left.add(&[item]);
        let mut remaining =
            Remaining { failures: (0..500).map(|index| format!("kind{index}")).collect(), ..Remaining::default() };
        remaining.finalizers.extend(&left.finalizers);
        let conditions = remaining.conditions(&NamespaceStatus::default(), "2026-01-01T00:00:00Z".parse().unwrap());
        let message = |at: usize| conditions[at].message.as_deref().unwrap_or_default();
        assert!(message(4).len() < 32 << 10 && message(4).ends_with(", others in 9968"), "{}", message(4));
        assert!(message(2).contains("500 remaining: kind0, ") && message(2).ends_with("kind31, 468 more"));
    }

    #[test]
    fn says_what_is_left() {
        let remaining = Remaining {
            objects: [("pods.".to_owned(), 2)].into(),
            finalizers: Finalizers { named: [("a.b/c".to_owned(), 1)].into(), others: 0 },
            ..Remaining::default()
        };
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        let conditions = remaining.conditions(&NamespaceStatus::default(), now);
        let text: Vec<_> = conditions.iter().map(|c| (c.status.as_str(), c.message.as_deref().unwrap())).collect();
        assert_eq!(text[3], ("True", "Some resources are remaining: pods. has 2 resource instances"));
        assert_eq!(
            text[4],
            ("True", "Some content in the namespace has finalizers remaining: a.b/c in 1 resource instances")
        );
        assert!(text[..3].iter().all(|(status, _)| *status == "False"));
        let before = NamespaceStatus { conditions: Some(conditions.clone()), phase: None };
        let later = "2026-01-02T00:00:00Z".parse().unwrap();
        assert_eq!(remaining.conditions(&before, later), conditions, "a transition has one time");
    }
}
