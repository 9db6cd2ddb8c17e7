//! Transactions, snapshots, limits, restarts.

use std::time::Duration;

use bytes::Bytes;
use coracle_keyspace::{
    Config, DirError, Formats, Guard, Key, Keyspace, NoRoom, OPS_MAX, Op, OpenError, Retention, Revision,
    TRANSACTION_BYTES_MAX, TransactError, Value,
};

use crate::group::until;
use crate::{delete, open, put};

#[tokio::test(flavor = "multi_thread")]
async fn what_was_answered_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let keyspace = open(&dir).await;
    let first = keyspace.transact(vec![put("a", "x", Guard::Absent), put("b", "y", Guard::Absent)]).await.unwrap();
    let second = keyspace.transact(vec![put("a", "z", Guard::Revision(first.revision)), delete("b")]).await.unwrap();
    assert!(second.revision > first.revision);
    assert_eq!(second.records.iter().map(|r| r.revision).collect::<Vec<_>>(), [second.revision; 2]);
    let clone = keyspace.clone();
    keyspace.shutdown().await;
    // A clone that is left over hinders nobody.
    assert!(matches!(clone.transact(vec![delete("a")]).await, Err(TransactError::Stopped)));
    let keyspace = open(&dir).await;
    assert!(keyspace.revision() >= second.revision);
    assert_eq!(keyspace.get("things", "a").unwrap().bytes, format!("z{}", second.revision));
    assert!(keyspace.get("things", "b").is_none());
    assert!(keyspace.barrier().await.unwrap() >= second.revision);
    let third = keyspace.transact(vec![delete("a")]).await.unwrap();
    assert!(third.revision > second.revision);
    keyspace.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn guards_and_limits_refuse_without_a_trace() {
    let dir = tempfile::tempdir().unwrap();
    let keyspace = open(&dir).await;
    keyspace.transact(vec![put("a", "x", Guard::Absent)]).await.unwrap();
    let big = Op::Put {
        key: Key::new("things", "big"),
        value: Value { bytes: Bytes::from(vec![0; TRANSACTION_BYTES_MAX]), revision_at: 0 },
        guard: Guard::None,
    };
    let many = (0..=OPS_MAX).map(|at| put(&at.to_string(), "", Guard::None)).collect();
    let (failed, large, too_many) = tokio::join!(
        keyspace.transact(vec![put("b", "y", Guard::None), put("a", "y", Guard::Absent)]),
        keyspace.transact(vec![big]),
        keyspace.transact(many),
    );
    assert!(matches!(failed, Err(TransactError::Guard(failed)) if failed.op == 1 && failed.found.is_some()));
    assert!(matches!(large, Err(TransactError::TooLarge { .. })));
    assert!(matches!(too_many, Err(TransactError::TooLarge { .. })));
    assert_eq!(keyspace.snapshot("things").records.len(), 1);
    keyspace.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_past_can_be_read_until_it_is_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let retention = Retention { age: Duration::from_secs(300), bytes: 2_000, memory: 2_000 };
    let keyspace = Keyspace::open(Config { retention, ..Config::new(dir.path()) }).await.unwrap();
    let before = keyspace.revision();
    let first = keyspace.transact(vec![put("a", "x", Guard::None)]).await.unwrap().revision;
    let second =
        keyspace.transact(vec![put("a", "y", Guard::None), put("b", "y", Guard::None)]).await.unwrap().revision;
    let texts = async |revision: Revision| {
        let snapshot = keyspace.snapshot_at("things", revision).await.unwrap();
        snapshot.records.values().map(|r| String::from_utf8_lossy(&r.bytes).into_owned()).collect::<Vec<_>>()
    };
    assert!(texts(before).await.is_empty());
    assert_eq!(texts(first).await, [format!("x{first}")]);
    assert_eq!(texts(second).await, [format!("y{second}"), format!("y{second}")]);
    assert_eq!(texts(Revision::new(u64::MAX)).await.len(), 2);
    // From disk it is the same.
    keyspace.flush_history().await;
    assert_eq!(texts(first).await, [format!("x{first}")]);
    for _ in 0..40 {
        keyspace.transact(vec![put("c", "z", Guard::None)]).await.unwrap();
        keyspace.flush_history().await;
    }
    let oldest = keyspace.snapshot_at("things", first).await.unwrap_err().0;
    assert!(oldest > first && keyspace.snapshot_at("things", oldest).await.is_ok());
    keyspace.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_in_use_is_refused_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let keyspace = open(&dir).await;
    let error = Keyspace::open(Config::new(dir.path())).await.err().expect("it is in use");
    assert!(matches!(&error, OpenError::Dir(DirError::Locked { .. })) && error.to_string().contains("stop that one"));
    keyspace.shutdown().await;
    open(&dir).await.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_grown_large_is_cut_and_nothing_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let keyspace = open(&dir).await;
    let text = "x".repeat(512 << 10);
    // Three times what the log may hold before it is cut.
    let mut last = Revision::default();
    for at in 0..100 {
        last = keyspace.transact(vec![put(&format!("k{}", at % 7), &text, Guard::None)]).await.unwrap().revision;
    }
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while keyspace.status().log_bytes >= 16 << 20 {
        assert!(tokio::time::Instant::now() < deadline, "{:?}", keyspace.status());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    keyspace.transact(vec![put("after", "", Guard::None)]).await.unwrap();
    let segments = || std::fs::read_dir(dir.path().join("log")).unwrap().count();
    assert!(segments() <= 4, "{} segments", segments());
    keyspace.shutdown().await;
    let keyspace = open(&dir).await;
    assert!(keyspace.revision() > last);
    assert_eq!(keyspace.snapshot("things").records.len(), 8);
    assert_eq!(keyspace.get("things", "k1").unwrap().bytes.len(), text.len() + last.to_string().len());
    keyspace.shutdown().await;
}

/// Not for the age of its last checkpoint, which is minutes.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_burst_leaves_in_the_log_goes_when_nobody_writes() {
    let dir = tempfile::tempdir().unwrap();
    let keyspace = open(&dir).await;
    let text = "x".repeat(1 << 20);
    for at in 0..8 {
        keyspace.transact(vec![put(&format!("k{at}"), &text, Guard::None)]).await.unwrap();
    }
    until("the log is cut", async || (keyspace.status().log_bytes < 4 << 20).then_some(())).await;
    keyspace.shutdown().await;
    let keyspace = open(&dir).await;
    assert_eq!(keyspace.snapshot("things").records.len(), 8);
    keyspace.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_costs_no_log() {
    let dir = tempfile::tempdir().unwrap();
    let keyspace = open(&dir).await;
    let big = "x".repeat(1 << 20);
    keyspace.transact(vec![put("a", &big, Guard::Absent)]).await.unwrap();
    let before = keyspace.status();
    // More than the log holds.
    for _ in 0..80 {
        let refused = keyspace.transact(vec![put("a", &big, Guard::Absent)]).await;
        assert!(matches!(refused, Err(TransactError::Guard(failed)) if failed.found.is_some()));
        let refused = keyspace.transact(vec![delete("a"), put("a", &big, Guard::None)]).await;
        assert!(matches!(refused, Err(TransactError::Duplicate { op: 1 })));
    }
    let after = keyspace.status();
    assert_eq!((before.log_bytes, before.revision), (after.log_bytes, after.revision));
    keyspace.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn at_its_bound_the_group_can_still_change() {
    let dir = tempfile::tempdir().unwrap();
    let keyspace = Keyspace::open(Config { stored_max: 16_000, ..Config::new(dir.path()) }).await.unwrap();
    let mut count = 0;
    let refused = loop {
        match keyspace.transact(vec![put(&count.to_string(), &"x".repeat(100), Guard::Absent)]).await {
            Ok(_) => count += 1,
            Err(refused) => break refused,
        }
    };
    assert!(matches!(refused, TransactError::NoRoom(NoRoom::Quota { .. })), "{refused}");
    keyspace.begin_anew(Formats::OWN).await.unwrap();
    keyspace.is_back().await.unwrap();
    keyspace.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn at_its_bound_the_keyspace_takes_deletions_only() {
    let dir = tempfile::tempdir().unwrap();
    let keyspace = Keyspace::open(Config { stored_max: 10_000, ..Config::new(dir.path()) }).await.unwrap();
    let text = "x".repeat(6_000);
    keyspace.transact(vec![put("a", &text, Guard::Absent)]).await.unwrap();
    keyspace.transact(vec![put("b", &text, Guard::Absent)]).await.unwrap();
    for refused in [
        put("c", "", Guard::Absent),
        put("a", &text.repeat(2), Guard::None),
        put("a", &(text.clone() + "a little more"), Guard::None),
    ] {
        let refused = keyspace.transact(vec![refused]).await.unwrap_err();
        assert!(matches!(refused, TransactError::NoRoom(NoRoom::Quota { max: 10_000, .. })), "{refused}");
    }
    keyspace.transact(vec![delete("b")]).await.unwrap();
    keyspace.transact(vec![put("c", "", Guard::Absent)]).await.unwrap();
    keyspace.shutdown().await;
}
