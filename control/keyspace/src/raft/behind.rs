//! Members that are behind: what the others wait for, and what they get.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use openraft::raft::AppendEntriesResponse;
use tokio::sync::{mpsc, watch};

use super::network::{Answer, Call, Transport, TransportError};
use super::{Hub, MemberId};
use crate::host::Host;
use crate::simulation::{SIZES, SimDisk, until};
use crate::{Begin, Config, Formats, Guard, Key, Keyspace, MemberStatus, Op, Role, Value, leader};

/// The way to one member.
struct Way {
    to: MemberId,
    /// It answers, and takes no entries.
    stands_still: AtomicBool,
    /// How many snapshots it was sent.
    snapshots: watch::Sender<u32>,
    /// Whether snapshots come through, or stand still on the way.
    open: watch::Sender<bool>,
}

impl Way {
    fn new(to: MemberId) -> Arc<Way> {
        let stands_still = AtomicBool::new(false);
        Arc::new(Way { to, stands_still, snapshots: watch::Sender::new(0), open: watch::Sender::new(true) })
    }
}

/// The hub, with what happens on a way.
struct Ways(Arc<dyn Transport>, Arc<Way>);

impl Transport for Ways {
    fn call(&self, to: MemberId, address: &str, call: Call) -> BoxFuture<'static, Result<Answer, TransportError>> {
        let Ways(hub, way) = self;
        if to != way.to {
            return hub.call(to, address, call);
        }
        match call {
            Call::Append(request) if !request.entries.is_empty() && way.stands_still.load(Ordering::Acquire) => {
                Box::pin(async move {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    Ok(Answer::Append(AppendEntriesResponse::PartialSuccess(request.prev_log_id)))
                })
            }
            Call::Snapshot { vote, meta, mut parts } => {
                way.snapshots.send_modify(|count| *count += 1);
                let (send, passed_on) = mpsc::channel(1);
                let (mut open, call) = (way.open.subscribe(), Call::Snapshot { vote, meta, parts: passed_on });
                let call = hub.call(to, address, call);
                let passing_on = async move {
                    let _ = open.wait_for(|open| *open).await;
                    while let Some(part) = parts.recv().await {
                        let _ = send.send(part).await;
                    }
                };
                Box::pin(async move { tokio::join!(call, passing_on).0 })
            }
            call => hub.call(to, address, call),
        }
    }
}

async fn member(hub: &Hub, way: &Arc<Way>, begin: Begin) -> Keyspace {
    let host = Host::simulated(Arc::new(SimDisk::new(1)), rand::random(), true, SIZES);
    let prepared = Keyspace::prepare_on(host, Config { begin, ..Config::new("/data") }).await.unwrap();
    let id = prepared.member();
    let keyspace = prepared.start_with(Arc::new(Ways(hub.transport(id), way.clone()))).await.unwrap();
    hub.attach(id, &keyspace.0.member);
    let announced =
        leader::announce(keyspace.0.member.clone(), format!("hub:{id}"), Vec::new(), keyspace.0.stop.subscribe());
    keyspace.0.tasks.lock().push(tokio::spawn(announced));
    keyspace
}

async fn join(hub: &Hub, way: &Arc<Way>, first: &Keyspace, name: &str) -> Keyspace {
    let admission = until("it has an address", async || first.admit(name, Formats::OWN).await.ok()).await;
    member(hub, way, Begin::Join(admission)).await
}

fn put(name: String, length: usize) -> Vec<Op> {
    let value = Value { bytes: Bytes::from(vec![b'x'; length]), revision_at: length };
    vec![Op::Put { key: Key::new("things", name), value, guard: Guard::None }]
}

async fn has_all(member: &Keyspace, count: usize) {
    until("it has everything", async || (member.snapshot("things").records.len() == count).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_answers_and_takes_nothing_does_not_stop_the_writes_of_the_others() {
    let (hub, way) = (Hub::new(), Way::new(3));
    let first = member(&hub, &way, Begin::Found).await;
    let second = join(&hub, &way, &first, "second").await;
    let third = join(&hub, &way, &first, "third").await;
    let is_voter = |member: &&MemberStatus| member.role == Role::Voter;
    until("three voters", async || (first.members().iter().filter(is_voter).count() == 3).then_some(())).await;
    way.stands_still.store(true, Ordering::Release);
    // Four times what the log holds.
    let count = 4 * SIZES.full / 2_000;
    for at in 0..count {
        first.transact(put(format!("k{at}"), 2_000)).await.unwrap();
    }
    assert!(*way.snapshots.borrow() > 0, "it has no other way");
    way.stands_still.store(false, Ordering::Release);
    for member in [&first, &second, &third] {
        has_all(member, count).await;
    }
    for member in [third, second, first] {
        member.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_follows_a_snapshot_is_kept_until_it_was_sent() {
    let (hub, way) = (Hub::new(), Way::new(2));
    let first = member(&hub, &way, Begin::Found).await;
    let write = async |from: usize, upto: usize| {
        for at in from..upto {
            first.transact(put(format!("k{at}"), 1_000)).await.unwrap();
        }
        first.0.member.checkpoint().await.unwrap();
    };
    write(0, 60).await;
    until("the log is cut", async || (first.status().log_bytes < SIZES.cut / 4).then_some(())).await;
    way.open.send_replace(false);
    let second = join(&hub, &way, &first, "second").await;
    let mut snapshots = way.snapshots.subscribe();
    tokio::time::timeout(Duration::from_secs(30), snapshots.wait_for(|count| *count > 0)).await.unwrap().unwrap();
    // More than is kept for anybody who is a little behind.
    write(60, 80).await;
    way.open.send_replace(true);
    has_all(&second, 80).await;
    assert_eq!(*way.snapshots.borrow(), 1, "the rest came from the log");
    // Nobody is waited for for ever.
    let third = join(&hub, &way, &first, "third").await;
    has_all(&third, 80).await;
    let gone = hub.clone();
    gone.isolate(2, true);
    write(80, 400).await;
    assert!(first.status().log_bytes < SIZES.full);
    gone.isolate(2, false);
    has_all(&second, 400).await;
    for member in [third, second, first] {
        member.shutdown().await;
    }
}
