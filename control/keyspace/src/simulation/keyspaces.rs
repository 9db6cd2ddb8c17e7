//! Whole keyspaces on the simulated disk: no space, and syncs that fail.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::{LIMIT, SIZES, SimDisk, until};
use crate::host::Host;
use crate::{Alarm, Config, Guard, Key, Keyspace, NoRoom, Op, TransactError, Value};

async fn open(disk: &SimDisk) -> Keyspace {
    let host = Host::simulated(Arc::new(disk.clone()), 7, true, SIZES);
    Keyspace::prepare_on(host, Config::new("/data")).await.unwrap().start(None).await.unwrap()
}

fn put(name: &str, length: usize, guard: Guard) -> Op {
    let value = Value { bytes: Bytes::from(vec![b'x'; length]), revision_at: length };
    Op::Put { key: Key::new("things", name), value, guard }
}

fn records(keyspace: &Keyspace) -> BTreeMap<String, Bytes> {
    let records = keyspace.snapshot("things").records;
    records.values().map(|record| (record.key.name.to_string(), record.bytes.clone())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_writes_and_nothing_else_and_heals_by_itself() {
    let disk = SimDisk::new(1);
    let keyspace = open(&disk).await;
    keyspace.transact(vec![put("kept", 10, Guard::Absent)]).await.unwrap();
    disk.set_capacity(disk.used());
    let mut at = 0;
    let refused = loop {
        match keyspace.transact(vec![put(&format!("k{at}"), 900, Guard::Absent)]).await {
            Ok(_) => at += 1,
            Err(error) => break error,
        }
        assert!(at < 500, "the disk is never full");
    };
    assert!(matches!(&refused, TransactError::NoRoom(NoRoom::Disk { .. })), "{refused}");
    assert!(refused.to_string().contains("free some space"), "{refused}");
    assert!(keyspace.alarms().iter().any(|alarm| matches!(alarm, Alarm::NoRoom(NoRoom::Disk { .. }))));
    // Reads, small changes and deletions go on.
    assert_eq!(records(&keyspace).len(), at + 1);
    keyspace.transact(vec![put("kept", 12, Guard::Present)]).await.unwrap();
    keyspace.transact(vec![Op::Delete { key: Key::new("things", "k0"), guard: Guard::Present }]).await.unwrap();
    // So does a start, and it says the same.
    let before = records(&keyspace);
    keyspace.shutdown().await;
    let keyspace = open(&disk).await;
    assert_eq!(records(&keyspace), before);
    until("refused after a start", async || {
        let refused = keyspace.transact(vec![put("more", 9_000, Guard::Absent)]).await;
        matches!(refused, Err(TransactError::NoRoom(NoRoom::Disk { .. }))).then_some(())
    })
    .await;
    disk.set_capacity(u64::MAX);
    until("writes go on", async || keyspace.transact(vec![put("after", 900, Guard::None)]).await.ok()).await;
    until("the alarm ends", async || keyspace.alarms().is_empty().then_some(())).await;
    for at in 0..200 {
        keyspace.transact(vec![put(&format!("again{at}"), 900, Guard::Absent)]).await.unwrap();
    }
    let before = records(&keyspace);
    keyspace.shutdown().await;
    disk.power_cut();
    let keyspace = open(&disk).await;
    assert_eq!(records(&keyspace), before);
    keyspace.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_without_space_is_tried_again() {
    let disk = SimDisk::new(2);
    let keyspace = open(&disk).await;
    // Room for what the log needs, none for the checkpoint to grow.
    disk.set_capacity(disk.used() + 20 * SIZES.segment);
    let mut at = 0;
    // It is written until then: a checkpoint that came in time has cut the log, and nothing else would call for the next.
    until("a checkpoint fails", async || {
        for _ in 0..20 {
            at += 1;
            match keyspace.transact(vec![put(&format!("k{at}"), 4_000, Guard::Absent)]).await {
                Ok(_) => (),
                // The one that finds no room for the log either is not answered until there is.
                Err(TransactError::NoRoom(NoRoom::Disk { .. }) | TransactError::Unknown) => break,
                Err(error) => panic!("{error}"),
            }
        }
        keyspace.0.member.is_uncut().then_some(())
    })
    .await;
    disk.set_capacity(u64::MAX);
    until("the log is cut", async || {
        keyspace.transact(vec![put("after", 10, Guard::None)]).await.ok()?;
        (keyspace.status().log_bytes < SIZES.cut).then_some(())
    })
    .await;
    until("nothing is wrong any more", async || keyspace.alarms().is_empty().then_some(())).await;
    let before = records(&keyspace);
    keyspace.shutdown().await;
    disk.power_cut();
    let keyspace = open(&disk).await;
    assert_eq!(records(&keyspace), before);
    keyspace.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_sync_ends_it_and_nothing_that_was_answered_is_lost() {
    let disk = SimDisk::new(3);
    let keyspace = open(&disk).await;
    for at in 0..10 {
        keyspace.transact(vec![put(&format!("k{at}"), 300, Guard::Absent)]).await.unwrap();
    }
    let answered = records(&keyspace);
    disk.fail_syncs(1);
    let why = tokio::time::timeout(LIMIT, async {
        let failed = keyspace.failed();
        // More than a page: the mark that a start writes behind it would have its page written anyway.
        let write = keyspace.transact(vec![put("unknown", 9_000, Guard::Absent)]);
        let (why, written) = tokio::join!(failed, write);
        assert!(matches!(written, Err(TransactError::Unknown)), "{written:?}");
        why
    });
    assert!(why.await.unwrap().contains("failed to sync"));
    keyspace.shutdown().await;
    // First the process alone ends, and what it may have read in memory is written again; then the power goes too.
    let keyspace = open(&disk).await;
    let served = records(&keyspace);
    keyspace.shutdown().await;
    disk.power_cut();
    let keyspace = open(&disk).await;
    assert_eq!(records(&keyspace), served);
    let mut found = served;
    found.remove("unknown");
    assert_eq!(found, answered);
    keyspace.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_with_a_poisoned_entry_can_be_started() {
    let disk = SimDisk::new(4);
    let keyspace = open(&disk).await;
    keyspace.transact(vec![put("a", 10, Guard::Absent)]).await.unwrap();
    let delete = || Op::Delete { key: Key::new("things", "a"), guard: Guard::None };
    // As an older version proposed it.
    let outcome = keyspace.0.member.propose_unchecked(vec![delete(), delete()]).await.unwrap();
    assert_eq!(outcome.unwrap_err().op, 1);
    keyspace.shutdown().await;
    let keyspace = open(&disk).await;
    assert_eq!(records(&keyspace).len(), 1);
    keyspace.shutdown().await;
}
