//! A member that goes on alone, and those that it leaves behind.

use coracle_keyspace::{Begin, Compacted, Config, DirError, Guard, Hub, Keyspace, RecoverError, Survivor};

use crate::group::{Group, LIMIT, until, voters};
use crate::{delete, put};

fn names(keyspace: &Keyspace) -> Vec<String> {
    keyspace.snapshot("things").records.keys().map(ToString::to_string).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_left_has_everything_and_the_others_are_told_to_go() {
    let mut group = Group::three().await;
    for at in 0..30 {
        group.members[at % 3].transact(vec![put(&format!("k{at}"), "x", Guard::Absent)]).await.unwrap();
    }
    group.members[0].transact(vec![delete("k7")]).await.unwrap();
    let third = group.members.pop().unwrap();
    let last = third.barrier().await.unwrap();
    let (cluster, expected) = (third.cluster(), names(&third));
    assert_eq!(expected.len(), 29);
    // Not while it runs.
    let path = group.dirs[2].path();
    assert!(matches!(Survivor::read(path), Err(RecoverError::Dir(DirError::Locked { .. }))));
    for member in [third].into_iter().chain(std::mem::take(&mut group.members)) {
        member.shutdown().await;
    }

    let mut survivor = Survivor::read(path).unwrap();
    assert_eq!((survivor.member(), survivor.cluster(), survivor.records()), (3, cluster, 29));
    assert!(survivor.revision() >= last);
    let lost: Vec<_> = survivor.lost().into_iter().map(|lost| (lost.member, lost.name, lost.address)).collect();
    assert_eq!(lost, [(1, String::new(), "hub:1".to_owned()), (2, "second".to_owned(), "hub:2".to_owned())]);
    let anew = tempfile::tempdir().unwrap();
    let control = anew.path().join("control");
    survivor.make(&control).await.unwrap();
    // Nobody starts the old one meanwhile.
    let resume = |path: &std::path::Path| Config { begin: Begin::Resume, ..Config::new(path) };
    assert!(Keyspace::open_at(resume(path), &group.hub).await.is_err());
    drop(survivor);

    let third = Keyspace::open_at(resume(&control), &group.hub).await.unwrap();
    assert_eq!((third.cluster(), third.member(), voters(&third)), (cluster, 3, vec![3]));
    assert_eq!(names(&third), expected);
    // What the lost ones may have written is no revision of this one's.
    assert!(third.revision().get() > last.get() + 999_000_000);
    assert!(matches!(third.watch("things", last), Err(Compacted(_))));
    third.transact(vec![put("new", "x", Guard::Absent)]).await.unwrap();
    until("it is known where it is", async || (!third.members()[0].address.is_empty()).then_some(())).await;
    assert_eq!(
        third.admit("fourth", coracle_keyspace::Formats::OWN).await.unwrap().member,
        104,
        "numbers that the lost may have given are left out"
    );

    // Both come back, with a majority of their own: the one that leads is told, and then the other.
    let mut back = Vec::new();
    for dir in &group.dirs[..2] {
        back.push(Keyspace::open_at(resume(dir.path()), &group.hub).await.unwrap());
    }
    while !back.is_empty() {
        let told: Vec<_> = back.iter().map(|member| Box::pin(member.removed())).collect();
        let (alarm, at, _) = tokio::time::timeout(LIMIT, futures::future::select_all(told)).await.expect("it is told");
        assert!(alarm.to_string().contains("coracle reset"), "{alarm}");
        back.remove(at).shutdown().await;
    }
    assert_eq!(voters(&third), [3]);
    third.shutdown().await;
    assert!(matches!(Survivor::read(&control), Err(RecoverError::Alone(3))));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_nothing_does_not_go_on_alone() {
    let group = Group::three().await;
    let admission = group.members[0].admit("fourth", coracle_keyspace::Formats::OWN).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let nobody = Hub::new();
    let config = Config { begin: Begin::Join(admission), ..Config::new(dir.path()) };
    Keyspace::open_at(config, &nobody).await.unwrap().shutdown().await;
    assert!(matches!(Survivor::read(dir.path()), Err(RecoverError::Empty(4))));
    group.shutdown().await;
}
