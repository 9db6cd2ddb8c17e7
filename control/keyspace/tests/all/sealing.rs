//! Contents that are sealed, in a group: whoever writes them, whoever leads, and while the key is renewed.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use coracle_keyspace::{
    Config, Formats, Guard, Key, Keyspace, NoRoom, Op, SealingError, SecretKey, TransactError, Value,
};

use crate::group::{Group, until, voters};

fn put(name: &str, text: &str, guard: Guard) -> Op {
    let value = Value { bytes: Bytes::copy_from_slice(text.as_bytes()), revision_at: text.len() };
    Op::Put { key: Key::new("secrets", name), value, guard }
}

/// Files below `dir` that hold `text`.
fn holding(dir: &Path, text: &str) -> Vec<String> {
    let (mut left, mut found) = (vec![dir.to_owned()], Vec::new());
    while let Some(path) = left.pop() {
        if path.is_dir() {
            left.extend(std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
        } else if std::fs::read(&path).unwrap().windows(text.len()).any(|window| window == text.as_bytes()) {
            found.push(path.strip_prefix(dir).unwrap().display().to_string());
        }
    }
    found
}

/// Servers are upgraded one after the other. What a member that does not know of keys has to read is as it was; from the moment that
/// all know, no disk of a member is given it in the clear, whoever leads and whoever wrote.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_sealed_before_all_know_how_and_then_no_member_s_disk_has_it_in_the_clear() {
    let (before, after, open) = ("Jd6Rb0Wp3Yx9Kc5Ge2Vu", "Zq7RmV2xK9tLw4Ns8Yc1", "Xw2Bk8Hd5Jq0Mz7Tn3Uv");
    let mut group = Group::found_with(Some(SecretKey::generate())).await;
    group.join_with("second", Formats::FIRST).await;
    group.join("third").await;
    until("three voters", async || (voters(&group.members[2]) == [1, 2, 3]).then_some(())).await;
    for (at, member) in group.members.iter().enumerate() {
        until("it is introduced", async || member.introduce("x", &[]).await.ok()).await;
        member.begin_sealing().await;
        member.transact(vec![put(&format!("a/{at}"), before, Guard::Absent)]).await.unwrap();
    }
    assert!(
        matches!(group.members[0].renew_key().await, Err(SealingError::Refused(why)) if why.contains("all servers"))
    );
    for member in &group.members {
        member.barrier().await.unwrap();
        assert_eq!((member.format(), member.sealing().key), (Some(2), None));
        let records = member.snapshot("secrets").records;
        assert!(records.len() == 3 && records.values().all(|record| record.sealed_by().is_none()));
    }
    assert!(group.dirs.iter().all(|dir| !holding(dir.path(), before).is_empty()), "it is looked at");
    group.restart(1, Formats::OWN).await;
    for member in &group.members {
        until("there is a key", async || member.sealing().key).await;
        until("all is under it", async || (member.sealing().unsettled == 0).then_some(())).await;
    }
    for (at, member) in group.members.iter().enumerate() {
        let done = member.transact(vec![put(&format!("b/{at}"), after, Guard::Absent)]).await.unwrap();
        assert!(done.records[0].bytes.starts_with(after.as_bytes()));
        let value = Value { bytes: Bytes::from(open), revision_at: 0 };
        let put = Op::Put { key: Key::new("things", format!("{at}")), value, guard: Guard::Absent };
        member.transact(vec![put]).await.unwrap();
    }
    for member in &group.members {
        member.barrier().await.unwrap();
        member.flush_history().await;
        let records = member.snapshot("secrets").records;
        let opened =
            |record: &coracle_keyspace::Record| record.sealed_by() == Some(1) && record.why_unreadable().is_none();
        assert!(records.len() == 6 && records.values().all(|record| opened(record)));
    }
    for member in group.members.drain(..) {
        member.shutdown().await;
    }
    for dir in &group.dirs {
        assert!(!holding(dir.path(), open).is_empty(), "it is looked at");
        assert_eq!(holding(dir.path(), after), Vec::<String>::new());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_renewed_while_everybody_writes() {
    let group = Group::three_with(Some(SecretKey::generate())).await;
    for member in &group.members {
        until("it is introduced", async || member.introduce("x", &[]).await.ok()).await;
    }
    until("there is a key", async || group.members[2].sealing().key).await;
    let stop = AtomicBool::new(false);
    // One object each, which nobody else writes: what was acknowledged last is there.
    let write = async |at: usize, member: &Keyspace| {
        let (name, mut count, mut last) = (format!("a/{at}"), 0_u64, None);
        while !stop.load(Ordering::Relaxed) {
            let guard = last.map_or(Guard::Absent, Guard::Revision);
            match member.transact(vec![put(&name, &format!("{at}-{count}-"), guard)]).await {
                Ok(done) => {
                    assert!(done.records[0].bytes.starts_with(format!("{at}-{count}-").as_bytes()));
                    (last, count) = (Some(done.revision), count + 1);
                }
                // The leader has sealed it anew: its content is the same.
                Err(TransactError::Guard(failed)) => {
                    let found = failed.found.expect("it is there");
                    assert_eq!(found.why_unreadable(), None);
                    assert!(found.bytes.starts_with(format!("{at}-{}-", count - 1).as_bytes()), "{:?}", found.bytes);
                    last = Some(found.revision);
                }
                Err(error) => panic!("nobody who writes is refused: {error}"),
            }
        }
        count
    };
    let renew = async {
        for expected in 2..=5 {
            // Whoever is asked.
            let asked = &group.members[expected as usize % 3];
            until("the next key", async || (asked.renew_key().await.unwrap() == expected).then_some(())).await;
            until("all is under it", async || (asked.sealing().unsettled == 0).then_some(())).await;
        }
        stop.store(true, Ordering::Relaxed);
    };
    let [first, second, third] = [0, 1, 2].map(|at| write(at, &group.members[at]));
    let ((), first, second, third) = tokio::join!(renew, first, second, third);
    for (at, count) in [first, second, third].into_iter().enumerate() {
        assert!(count > 3, "member {at} wrote {count} times");
    }
    for member in &group.members {
        until("it has caught up", async || member.barrier().await.ok()).await;
        let records = member.snapshot("secrets").records;
        let keys: BTreeSet<_> = records.values().map(|record| record.sealed_by()).collect();
        assert_eq!((records.len(), keys), (3, BTreeSet::from([Some(5)])));
        let expected = [first, second, third].map(|count| count - 1);
        for (at, (record, last)) in records.values().zip(expected).enumerate() {
            assert!(record.bytes.starts_with(format!("{at}-{last}-").as_bytes()), "{:?}", record.bytes);
        }
    }
    group.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_joins_late_gets_a_snapshot_that_it_can_open() {
    let root = Some(SecretKey::generate());
    let mut group = Group::found_with(root).await;
    group.members[0].introduce("first", &[]).await.unwrap();
    group.members[0].begin_sealing().await;
    assert_eq!(group.members[0].sealing().key, Some(1));
    // So much that the log is cut, and only a snapshot has the beginning.
    let large = "x".repeat(1 << 20);
    for at in 0..40 {
        group.members[0].transact(vec![put(&format!("a/{at}"), &format!("{at}{large}"), Guard::Absent)]).await.unwrap();
    }
    group.join("second").await;
    let second = &group.members[1];
    until("it has caught up", async || second.barrier().await.ok()).await;
    let records = second.snapshot("secrets").records;
    assert!(records.len() == 40 && records.values().all(|record| record.sealed_by() == Some(1)));
    assert!(records.values().all(|record| record.why_unreadable().is_none() && record.bytes.len() > 1 << 20));
    group.shutdown().await;
}

/// What replaces something sealed is compared with what is kept of that, which is a little more than was written.
#[tokio::test(flavor = "multi_thread")]
async fn at_its_bound_nothing_sealed_grows_and_a_key_can_still_be_made() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config { stored_max: 10_000, root: Some(SecretKey::generate()), ..Config::new(dir.path()) };
    let keyspace = Keyspace::open(config).await.unwrap();
    keyspace.introduce("x", &[]).await.unwrap();
    keyspace.begin_sealing().await;
    let text = "x".repeat(5_400);
    for name in ["a/one", "a/two"] {
        keyspace.transact(vec![put(name, &text, Guard::Absent)]).await.unwrap();
    }
    let grown = keyspace.transact(vec![put("a/one", &text.repeat(2)[..6_900], Guard::Present)]).await.unwrap_err();
    assert!(matches!(grown, TransactError::NoRoom(NoRoom::Quota { max: 10_000, .. })), "{grown}");
    keyspace.transact(vec![put("a/one", &"y".repeat(5_400), Guard::Present)]).await.unwrap();
    keyspace.transact(vec![Op::Delete { key: Key::new("secrets", "a/two"), guard: Guard::Present }]).await.unwrap();
    keyspace.transact(vec![put("a/two", &"y".repeat(5_400), Guard::Absent)]).await.unwrap();
    assert!(keyspace.status().stored_bytes > 10_000, "it is at its bound");
    assert_eq!(keyspace.renew_key().await.unwrap(), 2);
    until("all is under it", async || (keyspace.sealing().unsettled == 0).then_some(())).await;
    keyspace.shutdown().await;
}

#[tokio::test]
async fn beyond_its_bound_what_is_in_the_clear_is_sealed() {
    let dir = tempfile::tempdir().unwrap();
    let config = |root| Config { stored_max: 10_000, root, ..Config::new(dir.path()) };
    let keyspace = Keyspace::open(config(None)).await.unwrap();
    keyspace.introduce("x", &[]).await.unwrap();
    for name in ["a/one", "a/two", "a/three", "a/four"] {
        keyspace.transact(vec![put(name, &"x".repeat(3_200), Guard::Absent)]).await.unwrap();
    }
    assert!(keyspace.status().stored_bytes > 10_000 + 10_000 / 16, "nothing may grow");
    keyspace.shutdown().await;
    let keyspace = Keyspace::open(config(Some(SecretKey::generate()))).await.unwrap();
    keyspace.introduce("x", &[]).await.unwrap();
    keyspace.begin_sealing().await;
    until("all is sealed", async || (keyspace.sealing().unsettled == 0).then_some(())).await;
    assert_eq!(keyspace.sealing().key, Some(1));
    let grown = keyspace.transact(vec![put("a/one", &"y".repeat(3_201), Guard::Present)]).await.unwrap_err();
    assert!(matches!(grown, TransactError::NoRoom(NoRoom::Quota { .. })), "{grown}");
    keyspace.shutdown().await;
}
