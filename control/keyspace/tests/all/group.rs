//! Several members in one process: growing, writing through any of them, losing the leader, shrinking.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use coracle_keyspace::{
    Begin, Config, Formats, GroupError, Guard, Hub, Key, Keyspace, MemberStatus, Op, Promotion, Renewal, Revision,
    Role, SecretKey, TransactError, Value,
};
use tempfile::TempDir;

use crate::put;

/// How long anything may take that takes an election or two.
pub const LIMIT: Duration = Duration::from_secs(60);

/// Tries until `done` gives something.
pub async fn until<T>(what: &str, mut done: impl AsyncFnMut() -> Option<T>) -> T {
    let tries = async {
        loop {
            if let Some(done) = done().await {
                return done;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LIMIT, tries).await.unwrap_or_else(|_| panic!("{what}: not within {LIMIT:?}"))
}

/// The numbers of those who are voters, as `member` sees it.
pub fn voters(member: &Keyspace) -> Vec<u64> {
    member.members().iter().filter(|member| member.role == Role::Voter).map(|member| member.member).collect()
}

pub struct Group {
    pub dirs: Vec<TempDir>,
    pub hub: Hub,
    pub members: Vec<Keyspace>,
    root: Option<SecretKey>,
}

impl Group {
    /// One member, at a hub.
    async fn found() -> Group {
        Group::found_with(None).await
    }

    /// The same, which seals with keys under `root`.
    pub async fn found_with(root: Option<SecretKey>) -> Group {
        let (hub, dir) = (Hub::new(), tempfile::tempdir().unwrap());
        let config = Config { root: root.clone(), ..Config::new(dir.path()) };
        let first = Keyspace::open_at(config, &hub).await.unwrap();
        until("it is known where the first is", async || (!first.members()[0].address.is_empty()).then_some(())).await;
        Group { dirs: vec![dir], hub, members: vec![first], root }
    }

    pub async fn join(&mut self, name: &str) -> u64 {
        self.join_with(name, Formats::OWN).await
    }

    pub async fn join_with(&mut self, name: &str, formats: Formats) -> u64 {
        self.join_until(name, formats, Promotion::WhenCaughtUp).await
    }

    async fn join_until(&mut self, name: &str, formats: Formats, promotion: Promotion) -> u64 {
        let admission = self.members[0].admit_until(name, formats, promotion).await.unwrap();
        let (member, dir) = (admission.member, tempfile::tempdir().unwrap());
        let begin = Begin::Join(admission);
        let config = Config { begin, formats, root: self.root.clone(), ..Config::new(dir.path()) };
        self.members.push(Keyspace::open_at(config, &self.hub).await.unwrap());
        self.dirs.push(dir);
        member
    }

    /// Three voters, the first of which leads.
    pub async fn three() -> Group {
        Group::three_with(None).await
    }

    /// The same, which seal with keys under `root`.
    pub async fn three_with(root: Option<SecretKey>) -> Group {
        let mut group = Group::found_with(root).await;
        group.join("second").await;
        assert_eq!(voters(&group.members[0]), [1], "two are more fragile than one");
        group.join("third").await;
        until("three voters", async || (voters(&group.members[2]) == [1, 2, 3]).then_some(())).await;
        // Changes happen one after the other: this one is refused when the last entry of that promotion is in the log.
        assert!(group.members[0].remove(BTreeSet::from([9])).await.is_err());
        group
    }

    /// Ends a member, and starts it again as one that knows these formats.
    pub async fn restart(&mut self, at: usize, formats: Formats) {
        self.members.remove(at).shutdown().await;
        let config =
            Config { begin: Begin::Resume, formats, root: self.root.clone(), ..Config::new(self.dirs[at].path()) };
        let next = Keyspace::open_at(config, &self.hub).await.unwrap();
        until("it has caught up", async || next.barrier().await.ok()).await;
        until("it is introduced", async || next.introduce("x", &[]).await.ok()).await;
        self.members.insert(at, next);
    }

    /// Who leads of those that are not cut off.
    async fn leader_among(&self, members: &[usize]) -> usize {
        until("one leads", async || members.iter().copied().find(|at| self.members[*at].lead().borrow().is_some()))
            .await
    }

    pub async fn shutdown(self) {
        for member in self.members {
            member.shutdown().await;
        }
        drop(self.dirs);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_to_be_complete_counts_when_it_says_so() {
    let mut group = Group::found().await;
    for name in ["second", "third"] {
        group.join_until(name, Formats::OWN, Promotion::WhenComplete).await;
    }
    for at in [1, 2] {
        let member = &group.members[at];
        until("it has what the others have", async || member.barrier().await.ok()).await;
        assert!(member.waits() && group.members[0].members()[at].waits);
        assert_eq!(voters(&group.members[0]), [1]);
        member.complete(member.incomplete().unwrap()).await.unwrap();
        assert!(!member.waits() && member.incomplete().is_none());
    }
    until("three voters", async || (voters(&group.members[0]) == [1, 2, 3]).then_some(())).await;
    // A number that is given up leaves nothing.
    let gone = group.members[0].admit_until("gone", Formats::OWN, Promotion::WhenComplete).await.unwrap().member;
    group.members[0].remove(BTreeSet::from([gone])).await.unwrap();
    assert!(group.members[0].get("coracle group", &format!("waits {gone}")).is_none());
    group.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_is_given_all_have_whoever_leads() {
    let group = Group::three().await;
    for (at, member) in group.members.iter().enumerate() {
        let name = format!("k{at}");
        let done = member.transact(vec![put(&name, "x", Guard::Absent)]).await.unwrap();
        // At once where it was written, and everywhere after a barrier.
        assert_eq!(member.get("things", &name).unwrap().revision, done.revision);
        assert_eq!(done.records[0].bytes, member.get("things", &name).unwrap().bytes);
        for other in &group.members {
            assert!(other.barrier().await.unwrap() >= done.revision);
            assert_eq!(other.get("things", &name).unwrap().revision, done.revision);
        }
        let again = member.transact(vec![put(&name, "y", Guard::Absent)]).await.unwrap_err();
        assert!(
            matches!(&again, TransactError::Guard(failed) if failed.found.as_ref().unwrap().revision == done.revision)
        );
        let gone = member.transact(vec![crate::delete(&name)]).await.unwrap();
        assert_eq!(gone.records[0].bytes, format!("x{}", gone.revision).as_bytes());
    }
    group.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewal_is_known_to_whoever_leads_until_the_record_changes_or_another_leads() {
    let group = Group::three().await;
    let first = &group.members[0];
    let done = first.transact(vec![put("a", "old", Guard::Absent)]).await.unwrap();
    first.transact(vec![put("b", "old", Guard::Absent)]).await.unwrap();
    let renewal = |text: &'static str, revision: Revision| Renewal {
        key: Key::new("things", "a"),
        revision,
        value: Value { bytes: text.into(), revision_at: 0 },
    };
    let texts = async |member: &Keyspace, name: Option<&str>| {
        let renewed = member.renewed("things", name).await;
        renewed.iter().map(|record| String::from_utf8_lossy(&record.bytes).into_owned()).collect::<Vec<_>>()
    };
    let mut told = first.renewals();
    let revision = done.revision;
    // From any member; it writes nothing, and the record is what it was.
    for (member, text) in group.members.iter().zip(["one", "two", "three"]) {
        member.renew(renewal(text, revision)).await.unwrap();
        assert_eq!(told.next().await.bytes, format!("{revision}{text}").as_bytes());
        for other in &group.members {
            assert_eq!(texts(other, None).await, [format!("{revision}{text}")]);
            assert_eq!(texts(other, Some("a")).await, [format!("{revision}{text}")]);
            assert!(texts(other, Some("b")).await.is_empty());
        }
    }
    let again = first.transact(vec![put("c", "x", Guard::Absent)]).await.unwrap();
    // One for "b", one for "c", and perhaps one of a leader that was elected meanwhile: three renewals would be more.
    assert!(again.revision.get() < revision.get() + 4, "{} to {}: no entry of the log", revision, again.revision);
    assert_eq!(first.get("things", "a").unwrap().bytes, done.records[0].bytes);
    // Of a record that has changed a renewal says nothing.
    let changed = group.members[1].transact(vec![put("a", "new", Guard::Revision(revision))]).await.unwrap();
    assert!(texts(first, None).await.is_empty());
    let late = group.members[2].renew(renewal("late", revision)).await.unwrap_err();
    assert!(
        matches!(&late, TransactError::Guard(failed) if failed.found.as_ref().unwrap().revision == changed.revision),
        "{late}"
    );
    first.renew(renewal("four", changed.revision)).await.unwrap();
    assert!(first.hand_over().await);
    let leader = group.leader_among(&[1, 2]).await;
    assert!(texts(&group.members[leader], None).await.is_empty(), "whoever leads next is told anew");
    first.renew(renewal("five", changed.revision)).await.unwrap();
    assert_eq!(texts(&group.members[leader], None).await, [format!("{}five", changed.revision)]);
    group.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leadership_is_handed_over_and_a_deposed_leader_cannot_write_what_it_began() {
    let group = Group::three().await;
    let first = &group.members[0];
    let lead = first.lead().borrow().expect("the founder leads");
    first.transact(vec![lead.fence(), put("a", "x", Guard::None)]).await.unwrap();
    assert!(first.hand_over().await);
    let leader = group.leader_among(&[1, 2]).await;
    assert!(first.lead().borrow().is_none());
    // Forwarded to the new leader, as all writes are: the fence is what stops it.
    let late = first.transact(vec![lead.fence(), put("b", "x", Guard::None)]).await.unwrap_err();
    assert!(matches!(&late, TransactError::Guard(failed) if failed.op == 0), "{late}");
    let lead = group.members[leader].lead().borrow().unwrap();
    first.transact(vec![lead.fence(), put("b", "x", Guard::None)]).await.unwrap();
    group.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_cut_off_confirms_nothing_and_is_replaced() {
    let group = Group::three().await;
    let before = group.members[0].transact(vec![put("a", "x", Guard::None)]).await.unwrap().revision;
    let mut watchers: Vec<_> = group.members.iter().map(|member| member.watch("things", before).unwrap()).collect();
    group.hub.isolate(1, true);
    let lost = group.members[0].clone();
    let alone = tokio::spawn(async move { lost.transact(vec![put("lost", "x", Guard::None)]).await });
    let leader = group.leader_among(&[1, 2]).await;
    let after = group.members[leader].transact(vec![put("b", "x", Guard::None)]).await.unwrap().revision;
    assert!(after > before);
    assert!(group.members[0].barrier().await.is_err(), "a read was confirmed without a majority");
    let value = Value { bytes: "renewed".into(), revision_at: 0 };
    let renewal = Renewal { key: Key::new("things", "a"), revision: before, value };
    let renewed = tokio::time::timeout(Duration::from_millis(500), group.members[0].renew(renewal.clone())).await;
    assert!(!matches!(renewed, Ok(Ok(()))), "who renews here would be heard by nobody");
    group.members[leader].renew(renewal).await.unwrap();
    group.hub.isolate(1, false);
    tokio::time::timeout(LIMIT, group.members[0].wait_for(after)).await.unwrap().unwrap();
    let lost = alone.await.unwrap();
    assert!(matches!(lost, Err(TransactError::Unknown | TransactError::Unavailable { .. })), "{lost:?}");
    assert!(group.members[0].get("things", "b").is_some() && group.members[0].get("things", "lost").is_none());
    // Whoever watched, also where nobody led, heard the same, once and in order.
    for watcher in &mut watchers {
        let mut events: Vec<(Revision, String)> = Vec::new();
        while watcher.revision() < after {
            let batch = tokio::time::timeout(LIMIT, watcher.next()).await.unwrap().unwrap();
            events.extend(batch.events.iter().map(|e| (e.record.revision, e.record.key.name.to_string())));
        }
        assert_eq!(events, [(after, "b".to_owned())]);
    }
    group.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_answers_is_not_called_missing_by_whom_the_leader_does_not_reach() {
    let group = Group::three().await;
    let leader = group.members[group.leader_among(&[0, 1, 2]).await].member();
    let [cut, other] = [1, 2, 3].into_iter().filter(|member| *member != leader).collect::<Vec<u64>>()[..] else {
        panic!("two follow")
    };
    group.hub.cut(leader, cut);
    let member = group.members.iter().find(|member| member.member() == cut).unwrap();
    let heard = |of: u64| member.members().into_iter().find(|known| known.member == of)?.heard;
    let silent = Duration::from_secs(6);
    until("the leader is missed", async || heard(leader).filter(|heard| *heard > silent)).await;
    // It follows a leader, and calls nobody.
    assert!(heard(other).is_some_and(|heard| heard < silent / 2), "{:?}", heard(other));
    group.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_asked_of_a_leader_that_was_replaced_is_given_up_before_its_time() {
    let group = Group::three().await;
    let (written, over) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let writers: Vec<_> = (0..32)
        .map(|writer| {
            let (member, written, over) = (group.members[1].clone(), written.clone(), over.clone());
            tokio::spawn(async move {
                while !over.load(Ordering::Relaxed) {
                    match member.transact(vec![put(&format!("w{writer}"), "x", Guard::None)]).await {
                        Ok(_) => written.store(true, Ordering::Relaxed),
                        Err(error) => return Some(error),
                    }
                }
                None
            })
        })
        .collect();
    until("something is written", async || written.load(Ordering::Relaxed).then_some(())).await;
    // Most of what is under way is at the leader, which cannot finish it, and from which nothing comes back.
    group.hub.isolate(1, true);
    let isolated = Instant::now();
    group.leader_among(&[1, 2]).await;
    over.store(true, Ordering::Relaxed);
    let mut unknown = 0;
    for writer in writers {
        match writer.await.unwrap() {
            Some(TransactError::Unknown) => unknown += 1,
            Some(error) => panic!("{error}"),
            None => (),
        }
    }
    assert!(unknown > 0, "nothing was under way");
    assert!(isolated.elapsed() < LIMIT / 2, "only the end of its time ended it");
    group.hub.isolate(1, false);
    group.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_founder_is_heard_of_as_soon_as_there_is_somebody_to_hear() {
    let mut group = Group::found().await;
    let first = group.members[0].clone();
    // While it is alone its clock stands still.
    let lead = first.lead().borrow().expect("the founder leads");
    group.join("second").await;
    group.join("third").await;
    until("three voters", async || (voters(&group.members[2]) == [1, 2, 3]).then_some(())).await;
    // Nothing is written, so that heartbeats are all that is heard: for longer than anybody waits for one.
    let mut times = 0;
    let mut last = Instant::now();
    until("heartbeats are answered all the time", async || {
        let is_heard = |member: &MemberStatus| member.heard.is_some_and(|heard| heard < Duration::from_millis(500));
        if last.elapsed() > Duration::from_millis(600) && first.members().iter().all(is_heard) {
            (times, last) = (times + 1, Instant::now());
        }
        (times >= 4).then_some(())
    })
    .await;
    assert_eq!(*first.lead().borrow(), Some(lead));
    group.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn members_go_and_come_and_no_number_is_used_again() {
    let mut group = Group::three().await;
    let remove = |members: &[u64]| members.iter().copied().collect::<BTreeSet<_>>();
    group.hub.isolate(3, true);
    let first = group.members[0].clone();
    until("the third is missed", async || {
        first.members()[2].heard.is_some_and(|heard| heard > Duration::from_secs(2)).then_some(())
    })
    .await;
    let third = &group.members[2];
    until("the third knows that it is alone", async || third.alone_for().map(drop)).await;
    // With the third cut off, the second is needed.
    let refused = first.remove(remove(&[2])).await.unwrap_err();
    assert!(matches!(&refused, GroupError::Refused(why) if why.contains("member 3 cannot be reached")), "{refused}");
    assert!(matches!(first.remove(remove(&[9])).await, Err(GroupError::Refused(_))));
    // Its replacement takes its place in the same change.
    assert_eq!(group.join("fourth").await, 4);
    until("the fourth has caught up", async || {
        let members = first.members();
        let fourth = members.iter().find(|member| member.member == 4)?;
        (fourth.matched.is_some() && fourth.name == "fourth").then_some(())
    })
    .await;
    // Asked of whoever does not lead.
    group.members[1].remove(remove(&[3])).await.unwrap();
    assert_eq!(voters(&first), [1, 2, 4]);
    // Back in the network, it is told to go, and is not let in again.
    group.hub.isolate(3, false);
    first.transact(vec![put("a", "x", Guard::None)]).await.unwrap();
    assert!(group.members[2].transact(vec![put("b", "x", Guard::None)]).await.is_err());
    // Back to one, in one step; the leader itself may go.
    first.remove(remove(&[1, 2])).await.unwrap();
    let last = &group.members[3];
    until("the fourth alone", async || (voters(last) == [4]).then_some(())).await;
    last.transact(vec![put("c", "x", Guard::None)]).await.unwrap();
    assert_eq!(last.admit("fifth", Formats::OWN).await.unwrap().member, 5);
    assert!(last.get("things", "a").is_some());
    group.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_only_voter_can_be_removed_when_a_learner_takes_its_place() {
    let mut group = Group::found().await;
    group.members[0].transact(vec![put("a", "x", Guard::None)]).await.unwrap();
    group.join("second").await;
    let [first, second] = &group.members[..] else { panic!("two members") };
    until("the second alone", async || {
        // Refused as long as the second has not caught up.
        let _ = first.remove(BTreeSet::from([1])).await;
        (voters(second) == [2]).then_some(())
    })
    .await;
    until("it leads", async || second.transact(vec![put("b", "x", Guard::None)]).await.ok()).await;
    assert!(second.get("things", "a").is_some() && second.members().len() == 1);
    group.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_of_two_versions_live_together_and_the_log_is_written_in_what_all_understand() {
    let (old, both) = (Formats { oldest: 2, newest: 2 }, Formats { oldest: 2, newest: 3 });
    let mut group = Group::found().await;
    group.join_with("second", old).await;
    group.join_with("third", both).await;
    until("three voters", async || (voters(&group.members[2]) == [1, 2, 3]).then_some(())).await;
    let formats = |member: &Keyspace| member.members().iter().map(|m| m.formats.newest).collect::<Vec<_>>();
    assert_eq!((formats(&group.members[0]), group.members[0].format()), (vec![2, 2, 3], Some(2)));
    let newer = group.members[0].admit("fourth", Formats { oldest: 3, newest: 4 }).await.unwrap_err();
    assert!(newer.to_string().contains("in format 2") && newer.to_string().contains("older version"), "{newer}");
    // One after the other is started with the next version.
    for at in 0..2 {
        let config = Config { begin: Begin::Resume, formats: both, ..Config::new(group.dirs[at].path()) };
        group.members.remove(at).shutdown().await;
        let next = Keyspace::open_at(config, &group.hub).await.unwrap();
        until("it has caught up", async || next.barrier().await.ok()).await;
        assert_eq!(next.format(), Some(2), "not all understand more");
        until("it is introduced", async || next.introduce("x", &[]).await.ok()).await;
        group.members.insert(at, next);
    }
    for member in &group.members {
        until("the next version is in use", async || (member.format() == Some(3)).then_some(())).await;
    }
    // From now on nobody who does not know it is let in, or comes back.
    let older = group.members[1].admit("fourth", old).await.unwrap_err();
    assert!(older.to_string().contains("in format 3") && older.to_string().contains("newer version"), "{older}");
    group.join_with("fourth", both).await;
    let config = || Config { begin: Begin::Resume, formats: old, ..Config::new(group.dirs[1].path()) };
    let last = group.members.remove(1);
    last.shutdown().await;
    // Its own checkpoint says so, or the others do.
    match Keyspace::open_at(config(), &group.hub).await {
        Err(error) => assert!(format!("{error:?}").contains("in format 3"), "{error:?}"),
        Ok(open) => {
            until("it has caught up", async || open.barrier().await.ok()).await;
            let refused = open.introduce("x", &[]).await.unwrap_err();
            assert!(refused.to_string().contains("in format 3"), "{refused}");
            open.shutdown().await;
        }
    }
    group.shutdown().await;
}

/// What a watch of each kind hears after `after`, up to `last`.
async fn heard(keyspace: &Keyspace, after: Revision, last: Revision) -> [Vec<String>; 2] {
    let mut all = [Vec::new(), Vec::new()];
    for (collection, told) in ["quiet", "things"].iter().zip(&mut all) {
        let mut watcher = keyspace.watch(collection, after).expect("it is remembered");
        while watcher.revision() < last {
            for event in watcher.there().await.expect("it is remembered").events {
                let previous = event.previous.as_ref().map(|previous| (previous.revision, previous.bytes.len()));
                let record = &event.record;
                told.push(format!("{:?} {:?} {} {previous:?}", event.kind, record, record.bytes.len()));
            }
        }
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_is_far_behind_gets_a_snapshot_with_its_past_and_a_new_start_keeps_both() {
    let mut group = Group::found().await;
    let first = group.members[0].clone();
    // A kind of which something is heard at the beginning, and never again.
    let quiet = |text: &'static str| Op::Put {
        key: Key::new("quiet", "q"),
        value: Value { bytes: text.into(), revision_at: 0 },
        guard: Guard::None,
    };
    let begun = first.transact(vec![quiet("a")]).await.unwrap().revision;
    first.transact(vec![quiet("b"), put("gone", "x", Guard::None)]).await.unwrap();
    first.transact(vec![crate::delete("gone")]).await.unwrap();
    let text = "x".repeat(256 << 10);
    for at in 0..120 {
        first.transact(vec![put(&format!("k{at}"), &text, Guard::None)]).await.unwrap();
    }
    until("the log is cut", async || (first.status().log_bytes < 16 << 20).then_some(())).await;
    group.join("second").await;
    let last = first.transact(vec![put("last", "", Guard::None)]).await.unwrap().revision;
    let second = group.members.pop().unwrap();
    tokio::time::timeout(LIMIT, second.wait_for(last)).await.unwrap().unwrap();
    let names = |keyspace: &Keyspace| keyspace.snapshot("things").records.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&second), names(&first));
    // Who watched elsewhere goes on here, from before the snapshot.
    let told = heard(&first, begun, last).await;
    assert_eq!((told[0].len(), told[1].len()), (1, 120 + 3));
    assert_eq!(heard(&second, begun, last).await, told);
    let past = second.snapshot_at("things", begun).await.unwrap();
    assert_eq!((past.revision, past.records.len()), (begun, 0));
    second.shutdown().await;
    let config = Config { begin: Begin::Resume, ..Config::new(group.dirs[1].path()) };
    let second = Keyspace::open_at(config, &group.hub).await.unwrap();
    tokio::time::timeout(LIMIT, second.wait_for(last)).await.unwrap().unwrap();
    assert_eq!(names(&second), names(&first));
    assert_eq!(heard(&second, begun, last).await, told);
    group.members.push(second);
    group.shutdown().await;
}
