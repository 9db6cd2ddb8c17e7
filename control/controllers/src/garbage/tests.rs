//! Behaviour of graph and core.

use std::sync::Arc;

use coracle_tolerant::Tolerant;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use super::Controller;
use super::feed::{NAME_BYTES_MAX, OTHERS_MAX};
use super::graph::{Graph, OWNERS_MAX, Owner, Seen, Work};
use super::plan::{Fate, OwnerState, fate};
use super::shared_kind;
use crate::client::Client;
use crate::discovery::{Discovery, Kind};
use crate::events::Recorder;
use crate::informer::{AnyObject, Key};
use crate::queue::{Next, Reconciler as _};

fn seen(graph: &mut Graph, name: &str, owners: &[(&str, bool)]) -> Seen {
    let owners: Vec<OwnerReference> = owners
        .iter()
        .map(|(uid, block)| OwnerReference {
            uid: (*uid).to_owned(),
            api_version: "v1".to_owned(),
            kind: "ConfigMap".to_owned(),
            name: (*uid).to_owned(),
            block_owner_deletion: Some(*block),
            controller: None,
        })
        .collect();
    Seen {
        kind: Arc::new(shared_kind("", "v1", "ConfigMap", "configmaps", true)),
        key: Key::new("n", name),
        version: 1,
        owners: graph.share(&owners),
        deleting: false,
        foreground: false,
        orphan: false,
    }
}

fn put(graph: &mut Graph, name: &str, owners: &[(&str, bool)], change: impl FnOnce(&mut Seen)) -> Work {
    let mut object = seen(graph, name, owners);
    change(&mut object);
    graph.put(&name.into(), object)
}

fn now(work: &Work) -> Vec<&str> {
    let mut now: Vec<_> = work.now.iter().map(|uid| &**uid).collect();
    now.sort_unstable();
    now.dedup();
    now
}

#[test]
fn looks_at_dependents_when_an_owner_is_gone() {
    let mut graph = Graph::default();
    let work = put(&mut graph, "child", &[("owner", true)], |_| {});
    assert_eq!(work.unseen, ["owner".into()]);
    assert!(graph.is_unseen("owner"));
    assert_eq!(put(&mut graph, "owner", &[], |_| {}), Work::default());
    assert!(!graph.is_unseen("owner"));
    assert_eq!(now(&graph.remove("owner")), ["child"]);
    assert!(graph.is_unseen("owner"), "still referred to");
    graph.remove("child");
    assert!(!graph.is_unseen("owner"), "nothing is left of it");
}

#[test]
fn an_owner_waits_for_those_that_block_it() {
    let mut graph = Graph::default();
    put(&mut graph, "owner", &[], |_| {});
    put(&mut graph, "blocking", &[("owner", true)], |_| {});
    put(&mut graph, "other", &[("owner", false)], |_| {});
    let work = put(&mut graph, "owner", &[], |owner| (owner.deleting, owner.foreground) = (true, true));
    assert_eq!(now(&work), ["blocking", "other", "owner"]);
    assert!(graph.is_blocked("owner"));
    assert_eq!(now(&graph.remove("blocking")), ["owner"]);
    assert!(!graph.is_blocked("owner"));
    assert_eq!(now(&put(&mut graph, "late", &[("owner", true)], |_| {})), ["late"]);
    assert_eq!(now(&put(&mut graph, "late", &[("owner", false)], |_| {})), ["late", "owner"]);
}

#[test]
fn who_means_another_owner_by_its_uid_holds_nobody_up() {
    let mut graph = Graph::default();
    put(&mut graph, "owner", &[], |owner| (owner.deleting, owner.foreground) = (true, true));
    put(&mut graph, "elsewhere", &[("owner", true)], |dependent| dependent.key = Key::new("m", "elsewhere"));
    assert!(!graph.is_blocked("owner"), "its owner would be in its own namespace");
    put(&mut graph, "renamed", &[("owner", true)], |dependent| {
        let owner = Owner { name: "another".into(), ..dependent.owners[0].clone() };
        dependent.owners = Arc::new([owner]);
    });
    assert!(!graph.is_blocked("owner"), "it names another");
    put(&mut graph, "right", &[("owner", true)], |_| {});
    assert!(graph.is_blocked("owner"));
}

#[test]
fn objects_are_counted_by_group_with_their_references() {
    let mut graph = Graph::default();
    put(&mut graph, "a", &[("b", true), ("c", true)], |_| {});
    assert_eq!(graph.weight(""), 3, "an owner that was not seen is remembered, too");
    put(&mut graph, "a", &[], |_| {});
    assert_eq!((graph.weight(""), graph.weight("other.x")), (1, 0));
    let other = Arc::new(shared_kind("other.x", "v1", "Thing", "things", true));
    put(&mut graph, "a", &[("b", true)], |object| object.kind = other.clone());
    assert_eq!((graph.weight(""), graph.weight("other.x")), (0, 2));
    graph.remove("a");
    graph.remove("a");
    assert_eq!(graph.weight("other.x"), 0);
}

#[tokio::test]
async fn another_server_may_say_that_there_are_any_number_of_objects_of_any_size() {
    let client = Client(coracle_scripted::Scripted::new().client());
    let recorder = Recorder::new(client.clone());
    let controller = Controller::new(client.clone(), recorder, Discovery::new(client), Box::new(|_, _, _| ()));
    let kind = Arc::new(shared_kind("other.x", "v1", "Thing", "things", true));
    let see_owned = |kind: &Arc<Kind>, uid: &str, name: &str, owners: usize| {
        let owner = |index: usize| OwnerReference { uid: format!("owner{index}"), ..OwnerReference::default() };
        let owner_references = Some((0..owners).map(owner).collect());
        let (uid, name) = (Some(uid.into()), Some(name.into()));
        let metadata = ObjectMeta { uid, name, owner_references, ..ObjectMeta::default() };
        controller.seen_object(kind, &Tolerant::Good(AnyObject { metadata }), &mut false);
    };
    let see = |kind: &Arc<Kind>, uid: &str, name: &str| see_owned(kind, uid, name, 0);
    let count = || controller.graph.lock().weight("other.x");
    see(&kind, "long", &"x".repeat(NAME_BYTES_MAX + 1));
    assert_eq!(count(), 0);
    (0..OTHERS_MAX + 10).for_each(|index| see(&kind, &format!("u{index}"), "name"));
    assert_eq!(count(), OTHERS_MAX);
    controller.gone(&kind, "u0", &Key::new("", "name"));
    see(&kind, "again", "name");
    assert!(controller.graph.lock().get("again").is_some(), "there is room again");
    // References take room as objects do, also those that come later.
    (0..10).for_each(|index| controller.gone(&kind, &format!("u{index}"), &Key::new("", "name")));
    see_owned(&kind, "owned", "name", 20);
    assert!(controller.graph.lock().get("owned").is_none());
    see_owned(&kind, "owned", "name", 5);
    see_owned(&kind, "owned", "name", 20);
    assert_eq!(controller.graph.lock().get("owned").map(|seen| seen.owners.len()), Some(5));
    assert!(count() <= OTHERS_MAX);
    let own = Arc::new(shared_kind("rbac.authorization.k8s.io", "v1", "Role", "roles", true));
    (0..OTHERS_MAX + 10).for_each(|index| see(&own, &format!("r{index}"), "name"));
    assert_eq!(controller.graph.lock().weight("rbac.authorization.k8s.io"), OTHERS_MAX + 10, "ours are as they are");
}

#[test]
fn decides_by_all_owners() {
    let mut graph = Graph::default();
    let object = seen(&mut graph, "o", &[("a", true)]);
    let waiting = {
        let mut seen = seen(&mut graph, "w", &[]);
        (seen.deleting, seen.foreground) = (true, true);
        seen
    };
    let owner = |uid: &str, state: OwnerState| {
        let owner = Owner {
            uid: uid.into(),
            api_version: "v1".into(),
            kind: "ConfigMap".into(),
            name: uid.into(),
            block: true,
            controller: false,
        };
        (owner, state)
    };
    let delete = |policy, unblock| Fate::Delete { policy, unblock };
    let dependent = |seen: &Seen| vec![("d".into(), seen.clone())];
    use OwnerState::{Absent, Solid, Waiting};
    for (owners, dependents, expected) in [
        (vec![], vec![], Fate::Keep),
        (vec![owner("a", Solid)], vec![], Fate::Keep),
        (vec![owner("a", Absent)], vec![], delete("Background", false)),
        (vec![owner("a", Absent), owner("b", Solid)], vec![], Fate::Forget(vec!["a".into()])),
        (vec![owner("a", Waiting), owner("b", Solid)], vec![], Fate::Forget(vec!["a".into()])),
        (vec![owner("a", Waiting)], vec![], delete("Background", false)),
        (vec![owner("a", Waiting)], dependent(&object), delete("Foreground", false)),
        (vec![owner("a", Waiting)], dependent(&waiting), delete("Foreground", true)),
    ] {
        assert_eq!(fate(&object, &owners, &dependents), expected, "{owners:?}");
    }
    assert_eq!(fate(&waiting, &[owner("a", Absent)], &[]), Fate::Keep, "it goes already");
}

#[test]
fn dependents_of_one_owner_share_its_reference() {
    let mut graph = Graph::default();
    let (a, b) = (seen(&mut graph, "a", &[("o", true)]), seen(&mut graph, "b", &[("o", true)]));
    assert!(Arc::ptr_eq(&a.owners, &b.owners));
}

#[test]
fn owners_that_change_are_told_from_those_that_stay() {
    let mut graph = Graph::default();
    let wait = |owner: &mut Seen| (owner.deleting, owner.foreground) = (true, true);
    for owner in ["stays", "goes", "lets"] {
        put(&mut graph, owner, &[], wait);
    }
    put(&mut graph, "o", &[("stays", true), ("goes", true), ("lets", true)], |_| {});
    let work = put(&mut graph, "o", &[("stays", true), ("lets", false), ("comes", true)], |_| {});
    assert_eq!((now(&work), &*work.unseen), (vec!["goes", "lets", "o"], &["comes".into()][..]));
    for (owner, dependents) in [("stays", 1), ("goes", 0), ("lets", 1), ("comes", 1)] {
        assert_eq!(graph.dependents(owner).len(), dependents, "{owner}");
    }
}

#[test]
fn what_has_more_owners_than_anybody_looks_at_is_nobodys_dependent() {
    let mut graph = Graph::default();
    let uids: Vec<String> = (0..=OWNERS_MAX).map(|index| format!("owner{index}")).collect();
    let owners: Vec<(&str, bool)> = uids.iter().map(|uid| (uid.as_str(), true)).collect();
    let work = put(&mut graph, "o", &owners[1..], |_| {});
    assert_eq!(work.unseen.len(), OWNERS_MAX);
    assert!(graph.is_blocked("owner1"));
    assert!(put(&mut graph, "o", &owners, |_| {}).unseen.is_empty());
    assert!(!graph.is_blocked("owner1") && !graph.is_unseen("owner1"), "it holds nobody up");
}

#[tokio::test]
async fn an_owner_that_waits_does_not_tell_all_dependents_again_whenever_one_goes() {
    let client = Client(coracle_scripted::Scripted::new().client());
    let recorder = Recorder::new(client.clone());
    let controller = Controller::new(client.clone(), recorder, Discovery::new(client), Box::new(|_, _, _| ()));
    {
        let mut graph = controller.graph.lock();
        for index in 0..100 {
            put(&mut graph, &format!("d{index}"), &[("owner", true)], |_| {});
        }
        let work = put(&mut graph, "owner", &[], |owner| (owner.deleting, owner.foreground) = (true, true));
        assert_eq!(now(&work).len(), 101, "they are told once, when it begins to wait");
    }
    let next = controller.clone().reconcile("owner".into()).await.unwrap();
    assert_eq!((next, controller.queue().ready()), (Next::OnEvent, 0));
}
