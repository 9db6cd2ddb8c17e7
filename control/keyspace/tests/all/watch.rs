//! Watches: a test for each bug of this kind that etcd recorded (design.md §7).

use std::time::Duration;

use bytes::Bytes;
use coracle_keyspace::{
    Batch, Config, EventKind, Guard, Key, Keyspace, Op, Retention, Revision, Value, WatchEnded, Watcher,
};
use futures::FutureExt;

use crate::{delete, open, put};

fn names(batch: &Batch) -> Vec<(EventKind, String, u64)> {
    let one = |event: &std::sync::Arc<coracle_keyspace::Event>| {
        (event.kind, event.record.key.name.to_string(), event.record.revision.get())
    };
    batch.events.iter().map(one).collect()
}

async fn next(watcher: &mut Watcher) -> Batch {
    tokio::time::timeout(Duration::from_secs(10), watcher.next()).await.expect("an event in time").unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_change_comes_once_and_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let keyspace = open(&dir).await;
    let start = keyspace.revision();
    let mut watcher = keyspace.watch("things", start).unwrap();
    let writers = (0..8).map(|writer| {
        let keyspace = keyspace.clone();
        async move {
            for at in 0..200 {
                let name = format!("{writer}-{at}");
                keyspace
                    .transact(vec![put(&name, "x", Guard::Absent), put(&format!("{name}b"), "x", Guard::Absent)])
                    .await
                    .unwrap();
                keyspace.transact(vec![delete(&name)]).await.unwrap();
            }
        }
    });
    let writing = tokio::spawn(futures::future::join_all(writers));
    let (mut events, mut last) = (0, start);
    while events < 8 * 200 * 3 {
        let batch = next(&mut watcher).await;
        for event in &batch.events {
            assert!(event.record.revision >= last && event.record.revision <= batch.revision);
            last = event.record.revision;
        }
        events += batch.events.len();
        // A transaction is never apart: nothing more of the last revision may follow.
        assert!(batch.revision >= last && watcher.revision() == batch.revision);
        last = Revision::new(batch.revision.get() + 1);
    }
    writing.await.unwrap();
    assert_eq!(events, 8 * 200 * 3);
    keyspace.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_never_runs_ahead_of_the_events() {
    let dir = tempfile::tempdir().unwrap();
    let keyspace = open(&dir).await;
    let mut watcher = keyspace.watch("things", keyspace.revision()).unwrap();
    let writing = {
        let keyspace = keyspace.clone();
        tokio::spawn(async move {
            for at in 0..500 {
                let other = coracle_keyspace::Op::Put {
                    key: coracle_keyspace::Key::new("others", at.to_string()),
                    value: coracle_keyspace::Value { bytes: bytes::Bytes::new(), revision_at: 0 },
                    guard: Guard::None,
                };
                keyspace.transact(vec![other]).await.unwrap();
                keyspace.transact(vec![put("a", "x", Guard::None)]).await.unwrap();
            }
        })
    };
    let mut said = keyspace.revision();
    while !writing.is_finished() {
        // What a bookmark may say: everything up to there was given before.
        let batch = watcher.pending().unwrap();
        assert!(
            batch.events.iter().all(|event| event.record.revision > said && event.record.revision <= batch.revision)
        );
        assert!(batch.revision >= said);
        said = batch.revision;
        tokio::task::yield_now().await;
    }
    writing.await.unwrap();
    watcher.pending().unwrap();
    assert_eq!(watcher.pending().unwrap().revision, keyspace.revision());
    keyspace.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_future_revision_gives_nothing_old() {
    let dir = tempfile::tempdir().unwrap();
    let keyspace = open(&dir).await;
    let first = keyspace.transact(vec![put("a", "x", Guard::None)]).await.unwrap().revision;
    let mut watcher = keyspace.watch("things", Revision::new(first.get() + 2)).unwrap();
    for _ in 0..2 {
        keyspace.transact(vec![put("a", "x", Guard::None)]).await.unwrap();
        assert!(watcher.next().now_or_never().is_none());
        assert!(watcher.pending().unwrap().events.is_empty());
        assert_eq!(watcher.revision().get(), first.get() + 2);
    }
    let third = keyspace.transact(vec![put("b", "x", Guard::None)]).await.unwrap().revision;
    assert_eq!(names(&next(&mut watcher).await), [(EventKind::Put, "b".into(), third.get())]);
    keyspace.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_from_the_compacted_revision_misses_no_deletion() {
    let dir = tempfile::tempdir().unwrap();
    let retention = Retention { age: Duration::from_secs(300), bytes: 2_000, memory: 1_500 };
    let keyspace = Keyspace::open(Config { retention, ..Config::new(dir.path()) }).await.unwrap();
    let start = keyspace.revision();
    for at in 0..40 {
        keyspace.transact(vec![put("a", "x", Guard::None)]).await.unwrap();
        keyspace.transact(vec![delete("a")]).await.unwrap();
        // Now the window ends on disk, and now in memory.
        if at % 2 == 0 {
            keyspace.flush_history().await;
        }
        let compacted = keyspace.compacted();
        // Everything after the compacted revision is there, from the first event on.
        let mut watcher = keyspace.watch("things", compacted).unwrap();
        let mut events = Vec::new();
        while watcher.revision() < keyspace.revision() {
            events.extend(names(&next(&mut watcher).await));
        }
        // A put and a deletion in turn, one a revision.
        let expected = (compacted.max(start).get() + 1..=keyspace.revision().get()).map(|revision| {
            let is_put = (revision - start.get()) % 2 == 1;
            (if is_put { EventKind::Put } else { EventKind::Delete }, "a".to_owned(), revision)
        });
        assert_eq!(events, expected.collect::<Vec<_>>(), "round {at}");
        if compacted > start {
            let before = Revision::new(compacted.get() - 1);
            assert_eq!(keyspace.watch("things", before).unwrap_err().0, compacted);
        }
    }
    assert!(keyspace.compacted() > start);
    keyspace.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_watcher_is_told_and_not_skipped() {
    let dir = tempfile::tempdir().unwrap();
    let retention = Retention { age: Duration::from_secs(300), bytes: 4_000, memory: 1_500 };
    let keyspace = Keyspace::open(Config { retention, ..Config::new(dir.path()) }).await.unwrap();
    let mut slow = keyspace.watch("things", keyspace.revision()).unwrap();
    let mut quiet = keyspace.watch("quiet", keyspace.revision()).unwrap();
    for _ in 0..100 {
        keyspace.transact(vec![put("a", "x", Guard::None)]).await.unwrap();
        keyspace.flush_history().await;
    }
    assert!(matches!(slow.next().await, Err(WatchEnded::Compacted(_))));
    // Nothing happened here, so nothing was missed.
    assert_eq!(quiet.pending().unwrap().revision, keyspace.revision());
    keyspace.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_keeps_revisions_and_forgets_only_what_it_says() {
    let dir = tempfile::tempdir().unwrap();
    let keyspace = open(&dir).await;
    let start = keyspace.revision();
    let first = keyspace.transact(vec![put("a", "x", Guard::None)]).await.unwrap().revision;
    let second = keyspace.transact(vec![delete("a")]).await.unwrap().revision;
    keyspace.shutdown().await;
    let keyspace = open(&dir).await;
    assert!(keyspace.revision() >= second);
    // The log still has them, so they are still events.
    let mut watcher = keyspace.watch("things", start).unwrap();
    let expected = [(EventKind::Put, "a".into(), first.get()), (EventKind::Delete, "a".into(), second.get())];
    assert_eq!(names(&next(&mut watcher).await), expected);
    let mut future = keyspace.watch("things", keyspace.revision()).unwrap();
    let third = keyspace.transact(vec![put("b", "x", Guard::None)]).await.unwrap().revision;
    assert!(third > second);
    assert_eq!(names(&next(&mut future).await), [(EventKind::Put, "b".into(), third.get())]);
    let ended = tokio::spawn(async move { future.next().await.unwrap_err() });
    keyspace.shutdown().await;
    assert_eq!(ended.await.unwrap(), WatchEnded::Stopped);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_object_of_a_kind_is_heard_at_once_by_who_listed_it_empty() {
    let dir = tempfile::tempdir().unwrap();
    let keyspace = open(&dir).await;
    let listed = keyspace.revision();
    for at in 0..10 {
        let value = Value { bytes: Bytes::from_static(b"x"), revision_at: 0 };
        let key = Key::new("others", format!("{at}"));
        keyspace.transact(vec![Op::Put { key, value, guard: Guard::Absent }]).await.unwrap();
    }
    let first = keyspace.transact(vec![put("first", "x", Guard::Absent)]).await.unwrap().revision;
    let mut watcher = keyspace.watch("things", listed).unwrap();
    assert_eq!(names(&next(&mut watcher).await), [(EventKind::Put, "first".into(), first.get())]);
    keyspace.shutdown().await;
}
