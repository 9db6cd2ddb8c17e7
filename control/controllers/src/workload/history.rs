//! The history of a workload: each template that its pods were made from is kept in a ControllerRevision, whose name is made
//! of its content. Going back to an earlier template takes the old revision up again, under the highest number.

use std::collections::BTreeMap;
use std::sync::Arc;

use coracle_api::meta::{generate, text};
use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use serde_json::{Value, json};

use super::{Created, Owner, Row, create_named, normal, owner_reference};
use crate::client::{CONTROLLER_REVISIONS, Client, DeleteOptions};
use crate::informer::{Change, Informer, Key, Object as _, Store, controller};
use crate::queue::Queue;
use crate::{Error, selector};

/// Label of pods: which revision they are of.
pub(crate) const REVISION_LABEL: &str = "controller-revision-hash";
/// Longest part of a workload's name that stands in names of its revisions.
const PREFIX_MAX: usize = 223;
/// Names that are tried for one revision before the workload is looked at again.
const NAMES: u32 = 16;

/// The workload whose history it is.
pub(crate) struct Parent<'a> {
    pub row: Row,
    pub key: &'a Key,
    pub metadata: &'a ObjectMeta,
    pub selector: &'a LabelSelector,
}

/// What makes the template the one in force.
#[derive(Debug, PartialEq)]
pub(crate) enum Step {
    /// It is.
    None(Arc<ControllerRevision>),
    /// This earlier revision gets this number.
    Again(Arc<ControllerRevision>, i64),
    /// A new revision of this number.
    New(i64),
}

/// What a revision keeps: a strategic merge patch that brings the template back.
pub(crate) fn content(template: &PodTemplateSpec) -> Value {
    let mut template = serde_json::to_value(template).expect("a template has texts for keys");
    template["$patch"] = "replace".into();
    json!({"spec": {"template": template}})
}

/// The template that a revision keeps.
pub(crate) fn template(revision: &ControllerRevision) -> Result<PodTemplateSpec, serde_json::Error> {
    serde_json::from_value(revision.data.0["spec"]["template"].clone())
}

/// The name of a content (`HashControllerRevision` of the reference: FNV-1 of what Go writes, and of the collisions).
pub(crate) fn hash(content: &Value, collisions: Option<i32>) -> String {
    let count = collisions.map(|count| count.to_string()).unwrap_or_default();
    let text = text::json(content);
    let bytes = text.bytes().chain(count.bytes());
    let hash = bytes.fold(0x811c_9dc5_u32, |hash, byte| hash.wrapping_mul(0x0100_0193) ^ u32::from(byte));
    generate::safe_encode(&hash.to_string())
}

/// The name of a revision.
pub(crate) fn name(parent: &str, hash: &str) -> String {
    format!("{}-{hash}", &parent[..parent.floor_char_boundary(PREFIX_MAX)])
}

/// Oldest first.
pub(crate) fn sort(revisions: &mut [Arc<ControllerRevision>]) {
    let made = |it: &ControllerRevision| it.metadata.creation_timestamp.as_ref().map(|time| time.0);
    revisions.sort_by(|a, b| {
        let by = |it: &ControllerRevision| (it.revision.unwrap_or(0), made(it));
        by(a).cmp(&by(b)).then_with(|| a.metadata.name.cmp(&b.metadata.name))
    });
}

/// What makes `wanted` the template in force, given all revisions, oldest first.
pub(crate) fn step(revisions: &[Arc<ControllerRevision>], wanted: &PodTemplateSpec, content: &Value) -> Step {
    let Some(last) = revisions.last() else { return Step::New(1) };
    let next = last.revision.unwrap_or(0).saturating_add(1);
    let equal = revisions.iter().rfind(|revision| revision.data.0 == *content);
    match equal {
        Some(equal) if equal.data == last.data => Step::None(last.clone()),
        Some(equal) => Step::Again(equal.clone(), next),
        // One that was written by another version may say the same in other words.
        None if template(last).is_ok_and(|last| normal(&last) == normal(wanted)) => Step::None(last.clone()),
        None => Step::New(next),
    }
}

/// Those that nobody needs: all that are not `live` but the newest `limit`; a limit below 0 keeps all.
pub(crate) fn surplus(
    revisions: &[Arc<ControllerRevision>],
    limit: i32,
    live: impl Fn(&ControllerRevision) -> bool,
) -> Vec<Arc<ControllerRevision>> {
    let Ok(limit) = usize::try_from(limit) else { return Vec::new() };
    let mut old: Vec<_> = revisions.iter().filter(|revision| !live(revision)).cloned().collect();
    old.truncate(old.len().saturating_sub(limit));
    old
}

/// Wakes workloads of a kind when their revisions change. `orphan` wakes those that select by these labels in a namespace: they
/// may adopt a revision that nobody controls.
pub(crate) fn listen(
    row: Row,
    queue: &Queue<Key>,
    revisions: &mut Informer<ControllerRevision>,
    orphan: impl Fn(&str, &BTreeMap<String, String>) + Send + Sync + 'static,
) {
    let queue = queue.clone();
    revisions.on_change(move |change| {
        let revision = change.object();
        for of in change.before().into_iter().chain([revision]) {
            let owner = controller(of.metadata.owner_references.as_deref());
            if let Some(owner) = owner.filter(|owner| owner.kind == row.kind) {
                queue.add(&Key { namespace: of.key().namespace, name: owner.name.as_str().into() });
            }
        }
        if revision.controller().is_none() && !matches!(change, Change::Deleted(_)) {
            orphan(&revision.key().namespace, revision.metadata.labels.as_ref().unwrap_or(&BTreeMap::new()));
        }
    });
}

impl Parent<'_> {
    fn uid(&self) -> &str {
        self.metadata.uid.as_deref().unwrap_or_default()
    }

    fn owner(&self) -> OwnerReference {
        owner_reference(self.row.api_version, self.row.kind, Some(&self.key.name), self.uid())
    }
}

/// The revisions of a workload, oldest first; otherwise as [`super::claim()`] says.
pub(crate) async fn claim(
    client: &Client,
    store: &Store<ControllerRevision>,
    parent: &Parent<'_>,
) -> Result<Option<Vec<Arc<ControllerRevision>>>, Error> {
    let none = BTreeMap::new();
    let is_member = |revision: &ControllerRevision| {
        selector::matches(parent.selector, revision.metadata.labels.as_ref().unwrap_or(&none))
    };
    let owner = (parent.row, Owner { key: parent.key, uid: parent.uid() });
    let is_deleting = parent.metadata.deletion_timestamp.is_some();
    let mut owned = super::claim(client, (CONTROLLER_REVISIONS, store), owner, is_deleting, is_member).await?;
    if let Some(owned) = &mut owned {
        sort(owned);
    }
    Ok(owned)
}

/// Makes a revision the newest.
pub(crate) async fn renumber(client: &Client, revision: &ControllerRevision, number: i64) -> Result<(), Error> {
    let patch = json!({
        "metadata": {"uid": revision.uid(), "resourceVersion": revision.metadata.resource_version},
        "revision": number,
    });
    let written = client.patch(CONTROLLER_REVISIONS, &revision.key(), &patch).await;
    written.map(drop).map_err(Error::api("take up a ControllerRevision again"))
}

/// Deletes a revision that nobody needs.
pub(crate) async fn delete(client: &Client, revision: &ControllerRevision) -> Result<(), Error> {
    let deleted = client.delete(CONTROLLER_REVISIONS, &revision.key(), &DeleteOptions::of(revision.uid())).await;
    deleted.map_err(Error::api("delete an old ControllerRevision"))
}

/// Makes a new revision; while its name is taken by another content, under the name that the next count of collisions makes.
/// `named` says name and labels for a count.
pub(crate) async fn create(
    client: &Client,
    parent: &Parent<'_>,
    number: i64,
    content: &Value,
    collisions: &mut i32,
    named: impl Fn(i32) -> (String, BTreeMap<String, String>),
) -> Result<ControllerRevision, Error> {
    for _ in 0..NAMES {
        let (name, labels) = named(*collisions);
        let revision = ControllerRevision {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: Some(parent.key.namespace.to_string()),
                labels: Some(labels),
                annotations: parent.metadata.annotations.clone(),
                owner_references: Some(vec![parent.owner()]),
                ..ObjectMeta::default()
            },
            data: RawExtension(content.clone()),
            revision: Some(number),
        };
        match create_named(client, CONTROLLER_REVISIONS, &parent.key.namespace, &revision).await {
            Created::Made(_) => return Ok(revision),
            Created::Unknown(source) | Created::Refused(source) => {
                return Err(Error::Api { what: "create a ControllerRevision", source });
            }
            Created::Taken(_) => {}
        }
        let key = Key { namespace: parent.key.namespace.clone(), name: name.into() };
        let taken: ControllerRevision =
            client.fetch(CONTROLLER_REVISIONS, &key).await.map_err(Error::api("read the revision of that name"))?;
        let owner = controller(taken.metadata.owner_references.as_deref());
        let is_namesakes = owner.is_none_or(|owner| owner.kind == parent.row.kind && owner.name == *parent.key.name);
        match (taken.data.0 == *content, owner) {
            (true, Some(owner)) if owner.uid == parent.uid() => return Ok(taken),
            // It is adopted in a moment, or goes with the one that had the workload's name before.
            (true, _) if is_namesakes => return Err(Error::Stale("the revision of that name is not ours yet")),
            _ => *collisions = collisions.saturating_add(1),
        }
    }
    Err(Error::Stale("the hashes of the template are taken"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template_of(image: &str) -> PodTemplateSpec {
        serde_json::from_value(json!({
            "metadata": {"labels": {"app": "s"}},
            "spec": {
                "containers": [{
                    "name": "c", "image": image, "imagePullPolicy": "Always", "resources": {},
                    "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
                }],
                "dnsPolicy": "ClusterFirst", "restartPolicy": "Always", "schedulerName": "default-scheduler",
                "securityContext": {}, "terminationGracePeriodSeconds": 30,
            },
        }))
        .unwrap()
    }

    fn revision(number: i64, image: &str) -> Arc<ControllerRevision> {
        let metadata = ObjectMeta { name: Some(format!("s-{number}")), ..ObjectMeta::default() };
        let data = RawExtension(content(&template_of(image)));
        Arc::new(ControllerRevision { metadata, data, revision: Some(number) })
    }

    #[test]
    fn names_revisions_as_the_reference_does() {
        // As recorded from it.
        assert_eq!(name("s", &hash(&content(&template_of("x")), Some(0))), "s-7b8c8dd589");
        assert_ne!(hash(&content(&template_of("x")), Some(1)), hash(&content(&template_of("x")), Some(0)));
        assert_eq!(name(&"a".repeat(300), "h").len(), PREFIX_MAX + 2);
    }

    #[test]
    fn finds_what_makes_a_template_the_one_in_force() {
        let three = [revision(1, "a"), revision(2, "b"), revision(5, "c")];
        for (known, wanted, expected) in [
            (&three[..0], "a", Step::New(1)),
            (&three[..], "c", Step::None(three[2].clone())),
            (&three[..], "a", Step::Again(three[0].clone(), 6)),
            (&three[..], "d", Step::New(6)),
        ] {
            let wanted = template_of(wanted);
            assert_eq!(step(known, &wanted, &content(&wanted)), expected);
        }
        let mut other_words = (*three[0]).clone();
        other_words.data.0["spec"]["template"]["metadata"]["creationTimestamp"] = Value::Null;
        other_words.data.0["spec"]["template"]["metadata"]["annotations"] = json!({});
        let other_words = Arc::new(other_words);
        let wanted = template_of("a");
        assert_eq!(step(std::slice::from_ref(&other_words), &wanted, &content(&wanted)), Step::None(other_words));
    }

    #[test]
    fn keeps_the_newest_and_the_living() {
        let mut all = vec![revision(3, "c"), revision(1, "a"), revision(4, "d"), revision(2, "b")];
        sort(&mut all);
        let gone = |limit: i32, live: &[i64]| -> Vec<i64> {
            let gone = surplus(&all, limit, |it| live.contains(&it.revision.unwrap_or(0)));
            gone.iter().map(|it| it.revision.unwrap_or(0)).collect()
        };
        assert_eq!(gone(2, &[4]), [1]);
        assert_eq!(gone(1, &[1, 4]), [2]);
        assert_eq!(gone(0, &[4]), [1, 2, 3]);
        assert_eq!(gone(-1, &[4]), Vec::<i64>::new());
    }
}
