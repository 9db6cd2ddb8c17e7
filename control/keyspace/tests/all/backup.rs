//! Everything at one moment, and another cluster that begins with it.

use std::collections::BTreeMap;

use coracle_keyspace::{Begin, Compacted, Config, Guard, Hub, Keyspace, Restoring, Revision};

use crate::group::{until, voters};
use crate::{delete, put};

/// A wrong backup is restored, used, and deleted; then another one is restored in its place. Clients know revisions of the first.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_restored_again_begins_behind_what_was_restored_before() {
    let (old, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let first = Keyspace::open(Config::new(old.path())).await.unwrap();
    first.transact(vec![put("a", "x", Guard::Absent)]).await.unwrap();
    let whole = first.whole();
    let parts: Vec<Vec<u8>> = whole.parts().collect();
    let mut known = Vec::new();
    for again in 0..3 {
        let dir = new.path().join(format!("control {again}"));
        let mut restoring = Restoring::new();
        parts.iter().for_each(|part| restoring.part(part).unwrap());
        restoring.finish(&dir, whole.revision()).await.unwrap();
        let config = Config { begin: Begin::Resume, ..Config::new(&dir) };
        let restored = Keyspace::open(config).await.unwrap();
        for before in &known {
            assert!(*before < restored.compacted());
            assert!(matches!(restored.watch("things", *before), Err(Compacted(_))), "{before}");
        }
        for _ in 0..20 {
            known.push(restored.transact(vec![put("a", "y", Guard::Present)]).await.unwrap().revision);
        }
        restored.shutdown().await;
    }
    first.shutdown().await;
}

/// Names, revisions and contents of a collection.
fn contents(keyspace: &Keyspace) -> BTreeMap<String, (Revision, Vec<u8>)> {
    let records = keyspace.snapshot("things").records;
    records.iter().map(|(name, record)| (name.to_string(), (record.revision, record.bytes.to_vec()))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn another_cluster_begins_with_what_was_there_far_ahead_of_it() {
    let (old, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let hub = Hub::new();
    let first = Keyspace::open(Config::new(old.path())).await.unwrap();
    for index in 0..100 {
        first.transact(vec![put(&format!("k{index}"), &"x".repeat(20_000), Guard::Absent)]).await.unwrap();
    }
    let gone = first.transact(vec![delete("k7")]).await.unwrap();
    let whole = first.whole();
    let expected = contents(&first);
    // What is written while it is read is not in it.
    let later = first.transact(vec![put("later", "x", Guard::None), put("k1", "y", Guard::None)]).await.unwrap();
    let parts: Vec<Vec<u8>> = whole.parts().collect();
    assert!(parts.len() > 2 && (whole.revision(), whole.len()) == (gone.revision, expected.len()));

    let mut restoring = Restoring::new();
    parts.iter().for_each(|part| restoring.part(part).unwrap());
    assert!(restoring.part(b"not a part").is_err());
    let dir = new.path().join("control");
    let id = restoring.finish(&dir, whole.revision()).await.unwrap();
    assert_ne!(id, first.cluster());
    let resume = || Config { begin: Begin::Resume, ..Config::new(&dir) };
    let restored = Keyspace::open_at(resume(), &hub).await.unwrap();
    assert_eq!((restored.cluster(), restored.member(), voters(&restored)), (id, 1, vec![1]));
    assert_eq!(contents(&restored), expected);
    assert!(restored.revision().get() > later.revision.get() + 999_000_000);
    // Revisions of before, also those after the backup, are over.
    for before in [Revision::new(1), whole.revision(), later.revision, Revision::new(later.revision.get() + 1000)] {
        assert!(matches!(restored.watch("things", before), Err(Compacted(_))), "{before}");
        assert!(restored.snapshot_at("things", before).await.is_err(), "{before}");
    }
    // A client that has an object of before changes it as ever.
    let mut watcher = restored.watch("things", restored.revision()).unwrap();
    let known = expected["k1"].0;
    let done = restored.transact(vec![put("k1", "new", Guard::Revision(known))]).await.unwrap();
    // What the members say of themselves may have come behind it.
    assert_eq!(watcher.next().await.unwrap().events[0].record.revision, done.revision);
    let expected = contents(&restored);
    restored.shutdown().await;

    // It is a cluster like any other: it starts again, and grows.
    let restored = Keyspace::open_at(resume(), &hub).await.unwrap();
    until("it is known where it is", async || (!restored.members()[0].address.is_empty()).then_some(())).await;
    let (mut dirs, mut others) = (Vec::new(), Vec::new());
    for name in ["second", "third"] {
        let admission = restored.admit(name, coracle_keyspace::Formats::OWN).await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        let config = Config { begin: Begin::Join(admission), ..Config::new(dir.path()) };
        others.push(Keyspace::open_at(config, &hub).await.unwrap());
        dirs.push(dir);
    }
    until("three voters", async || (voters(&restored) == [1, 2, 3]).then_some(())).await;
    for other in &others {
        other.barrier().await.unwrap();
        assert_eq!(contents(other), expected);
    }
    for member in others.into_iter().chain([restored, first]) {
        member.shutdown().await;
    }
}
