//! Three members in one process.

use std::time::Duration;

use coracle_keyspace::{BarrierError, Config, Guard, Hub, Keyspace, TransactError};
use tempfile::TempDir;

use crate::put;

struct Group {
    dirs: Vec<TempDir>,
    hub: Hub,
    members: Vec<Keyspace>,
}

impl Group {
    async fn start() -> Group {
        let (hub, dirs) = (Hub::new(), (0..3).map(|_| tempfile::tempdir().unwrap()).collect::<Vec<_>>());
        let mut members = Vec::new();
        for (at, dir) in dirs.iter().enumerate() {
            let config = Config { member: at as u64 + 1, ..Config::new(dir.path()) };
            members.push(Keyspace::open_at(config, &hub, at == 0).await.unwrap());
        }
        for member in 2..=3 {
            members[0].add_member(member).await.unwrap();
        }
        Group { dirs, hub, members }
    }

    async fn shutdown(self) {
        for member in self.members {
            member.shutdown().await;
        }
        drop(self.dirs);
    }
}

/// Tries until `member` leads and has written.
async fn write_soon(member: &Keyspace, name: &str) -> u64 {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    loop {
        match member.transact(vec![put(name, "x", Guard::None)]).await {
            Ok(done) => return done.revision.get(),
            Err(error) => assert!(tokio::time::Instant::now() < deadline, "{error}: {:?}", member.status()),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_writes_all_have_and_only_the_leader_takes_writes() {
    let group = Group::start().await;
    let done = group.members[0].transact(vec![put("a", "x", Guard::Absent)]).await.unwrap();
    for member in &group.members {
        tokio::time::timeout(Duration::from_secs(10), member.wait_for(done.revision)).await.unwrap().unwrap();
        assert_eq!(member.get("things", "a").unwrap().revision, done.revision);
    }
    assert!(group.members[0].barrier().await.unwrap() >= done.revision);
    let refused = group.members[1].transact(vec![put("b", "x", Guard::None)]).await.unwrap_err();
    assert!(matches!(refused, TransactError::Unavailable { leader: Some(1) }), "{refused}");
    assert_eq!(group.members[1].barrier().await, Err(BarrierError::Unavailable { leader: Some(1) }));
    group.members[0].hand_over(2).await.unwrap();
    assert!(write_soon(&group.members[1], "b").await > done.revision.get());
    group.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_cut_off_confirms_nothing_and_is_replaced() {
    let group = Group::start().await;
    let before = group.members[0].transact(vec![put("a", "x", Guard::None)]).await.unwrap().revision;
    let mut watchers: Vec<_> = group.members.iter().map(|member| member.watch("things", before).unwrap()).collect();
    group.hub.isolate(1, true);
    let lost = group.members[0].clone();
    let alone = tokio::spawn(async move { lost.transact(vec![put("lost", "x", Guard::None)]).await });
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    let leader = loop {
        let leads = |member: &&Keyspace| member.status().leader == Some(member.status().member);
        if let Some(leader) = group.members[1..].iter().find(leads) {
            break leader;
        }
        assert!(tokio::time::Instant::now() < deadline, "nobody leads");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let after = write_soon(leader, "b").await;
    assert!(after > before.get());
    assert!(group.members[0].barrier().await.is_err(), "a read was confirmed without a majority");
    group.hub.isolate(1, false);
    tokio::time::timeout(Duration::from_secs(20), group.members[0].wait_for(coracle_keyspace::Revision::new(after)))
        .await
        .unwrap()
        .unwrap();
    assert!(matches!(alone.await.unwrap(), Err(TransactError::Unknown | TransactError::Unavailable { .. })));
    assert!(group.members[0].get("things", "b").is_some() && group.members[0].get("things", "lost").is_none());
    // Whoever watched, also where nobody led, heard the same, once and in order.
    let mut heard = Vec::new();
    for watcher in &mut watchers {
        let mut events: Vec<(u64, String)> = Vec::new();
        while watcher.revision().get() < after {
            let batch = tokio::time::timeout(Duration::from_secs(20), watcher.next()).await.unwrap().unwrap();
            events.extend(batch.events.iter().map(|e| (e.record.revision.get(), e.record.key.name.to_string())));
        }
        events.retain(|(revision, _)| *revision <= after);
        assert!(
            events.is_sorted_by(|one, next| one.0 < next.0) && events.iter().all(|(_, name)| name == "b"),
            "{events:?}"
        );
        heard.push(events);
    }
    assert!(heard[0].iter().any(|(revision, _)| *revision == after) && heard.iter().all(|events| *events == heard[0]));
    group.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_is_far_behind_gets_a_snapshot() {
    let (hub, dirs) = (Hub::new(), [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()]);
    let first = Keyspace::open_at(Config::new(dirs[0].path()), &hub, true).await.unwrap();
    let text = "x".repeat(256 << 10);
    for at in 0..120 {
        first.transact(vec![put(&format!("k{at}"), &text, Guard::None)]).await.unwrap();
    }
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while first.status().log_bytes >= 16 << 20 {
        assert!(tokio::time::Instant::now() < deadline, "the log is not cut: {:?}", first.status());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let config = Config { member: 2, ..Config::new(dirs[1].path()) };
    let second = Keyspace::open_at(config.clone(), &hub, false).await.unwrap();
    first.add_member(2).await.unwrap();
    let last = first.transact(vec![put("last", "", Guard::None)]).await.unwrap().revision;
    tokio::time::timeout(Duration::from_secs(20), second.wait_for(last)).await.unwrap().unwrap();
    assert_eq!(second.snapshot("things").records.len(), 121);
    second.shutdown().await;
    let second = Keyspace::open_at(config, &hub, false).await.unwrap();
    tokio::time::timeout(Duration::from_secs(20), second.wait_for(last)).await.unwrap().unwrap();
    assert_eq!(second.snapshot("things").records.len(), 121);
    second.shutdown().await;
    first.shutdown().await;
}
