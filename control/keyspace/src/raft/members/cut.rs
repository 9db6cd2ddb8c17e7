//! Changes of the group that are cut: by whoever asked for them and went away, by a change of leader, at any step.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;

use tempfile::TempDir;

use super::*;
use crate::simulation::until;
use crate::{Begin, Config, GroupError, Guard, Hub, Key, Keyspace, Op, Value};

struct Group {
    hub: Hub,
    dirs: Vec<TempDir>,
    all: Vec<Keyspace>,
}

impl Group {
    async fn of(count: usize) -> Group {
        let mut group = Group { hub: Hub::new(), dirs: Vec::new(), all: Vec::new() };
        group.open(Begin::Found).await;
        let first = group.all[0].clone();
        until("the first has an address", async || first.0.member.address_of(1).filter(|at| !at.is_empty())).await;
        for _ in 1..count {
            group.join().await;
        }
        if count >= 3 {
            let last = group.all[count - 1].clone();
            until("all are voters", async || (last.0.member.view().voters.len() == count).then_some(())).await;
        }
        group
    }

    async fn open(&mut self, begin: Begin) {
        let dir = tempfile::tempdir().unwrap();
        let config = Config { begin, ..Config::new(dir.path()) };
        self.all.push(Keyspace::open_at(config, &self.hub).await.unwrap());
        self.dirs.push(dir);
    }

    /// Another one, which has caught up.
    async fn join(&mut self) -> MemberId {
        let name = format!("s{}", self.dirs.len());
        let admission = self.all[0].admit(&name, crate::Formats::OWN).await.unwrap();
        let id = admission.member;
        self.open(Begin::Join(admission)).await;
        let first = self.all[0].clone();
        let is_there = async || {
            let view = first.0.member.view();
            (view.up.contains(&id) && view.caught_up.contains(&id)).then_some(())
        };
        until("it has caught up", is_there).await;
        id
    }

    fn member(&self, at: usize) -> &Arc<Member> {
        &self.all[at].0.member
    }

    async fn shutdown(self) {
        for keyspace in self.all {
            keyspace.shutdown().await;
        }
    }
}

fn ids(members: &[MemberId]) -> BTreeSet<MemberId> {
    members.iter().copied().collect()
}

/// What `work` gives when it is not done after so many `steps` is nothing: it is dropped then.
async fn cut<T>(work: impl Future<Output = T>, mut steps: usize) -> Option<T> {
    let mut work = pin!(work);
    poll_fn(|context| {
        if steps == 0 {
            return Poll::Ready(None);
        }
        steps -= 1;
        work.as_mut().poll(context).map(Some)
    })
    .await
}

/// Returns when everything that was proposed to `keyspace` before is there.
async fn settled(keyspace: &Keyspace) {
    let value = Value { bytes: "x".into(), revision_at: 1 };
    keyspace.transact(vec![Op::Put { key: Key::new("things", "a"), value, guard: Guard::None }]).await.unwrap();
}

fn announce(member: MemberId) -> Change {
    Change::Announce { member, address: format!("hub:{member}") }
}

/// Between its two steps three voters are two majorities: one server that stops may stop all.
#[tokio::test(flavor = "multi_thread")]
async fn a_membership_that_was_left_joint_is_made_uniform_whoever_leads() {
    for how in ["the same leads", "another leads", "it is handed over"] {
        let mut group = Group::of(3).await;
        assert_eq!(group.join().await, 4);
        let first = group.member(0);
        let one = first.changing().clone().lock_owned().await;
        until("it has begun", async || {
            // The step that is taken may be one that only waits for its turn.
            if !first.is_joint() {
                let change = first.raft().change_membership(ChangeMembers::ReplaceAllVoters(ids(&[1, 2, 4])), false);
                // Refused at once where one that was begun before is under way.
                let _ = cut(change, 1).await;
            }
            [0, 1].iter().all(|at| group.member(*at).is_joint()).then_some(())
        })
        .await;
        match how {
            "another leads" => {
                assert!(first.transfer(2).await);
                drop(one);
            }
            "it is handed over" => {
                drop(one);
                assert!(first.hand_over().await);
                assert!(!first.is_joint(), "whoever stops now may be needed to finish it");
            }
            _ => drop(one),
        }
        for at in [0, 1, 3] {
            let member = group.member(at);
            let is_done = async || (!member.is_joint() && member.view().voters == ids(&[1, 2, 4])).then_some(());
            until(how, is_done).await;
        }
        group.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removal_goes_on_when_whoever_asked_for_it_goes_away() {
    for asked in [0, 1] {
        let group = Group::of(3).await;
        assert!(cut(group.all[asked].remove(ids(&[3])), 1).await.is_none());
        let first = group.member(0);
        let is_gone = async || {
            let number = group::number(&first.machine().state.read(), 3);
            (number == Number::Gone && first.view().voters == ids(&[1, 2])).then_some(())
        };
        until("the third is gone", is_gone).await;
        group.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_left_the_group_does_not_come_back_wherever_its_removal_was_cut() {
    let mut group = Group::of(1).await;
    let mut cut_between = 0;
    // Now and then it goes from the one step to the other without waiting.
    for _ in 0..10 {
        if cut_between > 0 {
            break;
        }
        for steps in 1.. {
            let id = group.join().await;
            let (keyspace, first) = (group.all[0].clone(), group.member(0).clone());
            let done = {
                let _one = first.changing().lock().await;
                let done = cut(first.remove(&ids(&[id])), steps).await;
                settled(&keyspace).await;
                done
            };
            let is_member = first.address_of(id).is_some();
            let is_known = group::number(&first.machine().state.read(), id) == Number::Taken;
            cut_between += usize::from(!is_member && is_known);
            let told = first.change(announce(id)).await;
            assert_eq!(told, if is_member { Ok(()) } else { Err(Refusal::Removed(id)) }, "after {steps} steps");
            assert_eq!(first.address_of(id).is_some(), is_member, "after {steps} steps");
            // Once more, it is done, or was.
            match keyspace.remove(ids(&[id])).await {
                Ok(()) => assert!(is_member || is_known),
                // Whoever leads may have finished it meanwhile.
                Err(GroupError::Refused(why)) => assert!(!is_member && why.contains("there is no member"), "{why}"),
                Err(error) => panic!("{error}"),
            }
            assert_eq!(first.change(announce(id)).await, Err(Refusal::Removed(id)));
            group.all.pop().unwrap().shutdown().await;
            if let Some(done) = done {
                assert_eq!((done, is_member, is_known), (Ok(()), false, false));
                break;
            }
        }
    }
    assert!(cut_between > 0, "a removal was cut between its steps");
    group.shutdown().await;
}

/// What finishes it may not get that far either: the operator repeats what failed.
#[tokio::test(flavor = "multi_thread")]
async fn a_number_that_is_nobody_is_forgotten_when_it_is_removed() {
    let group = Group::of(1).await;
    let first = group.member(0);
    let id = group.all[0].admit("never came", crate::Formats::OWN).await.unwrap().member;
    group.all[0].remove(ids(&[id])).await.unwrap();
    assert_eq!(first.change(announce(id)).await, Err(Refusal::Removed(id)));
    let again = group.all[0].remove(ids(&[id])).await;
    assert!(matches!(&again, Err(GroupError::Refused(why)) if why.contains("there is no member 2")), "{again:?}");
    group.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_has_just_begun_to_lead_hears_of_all_before_it_calls_one_unreachable() {
    let group = Group::of(3).await;
    group.hub.isolate(3, true);
    assert!(group.member(0).transfer(2).await);
    until("the second leads", async || group.member(1).leading()).await;
    let back = async {
        tokio::time::sleep(group.member(1).up_within() / 8).await;
        group.hub.isolate(3, false);
    };
    // With the third not heard of, this would leave one of two.
    let (removed, ()) = tokio::join!(group.all[1].remove(ids(&[1])), back);
    removed.unwrap();
    assert_eq!(group.member(1).view().voters, ids(&[2, 3]));
    group.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_begins_anew_at_a_time_and_only_while_all_others_are_there() {
    let group = Group::of(3).await;
    let refused = async |at: usize, part: &str| match group.all[at].begin_anew(Formats::OWN).await {
        Err(GroupError::Refused(why)) => assert!(why.contains(part), "{why}"),
        told => panic!("it is not refused for {part}: {told:?}"),
    };
    // Whoever leads asked, or who follows, at the moment at which one is gone, as at any other.
    group.hub.isolate(3, true);
    refused(1, "member 3 cannot be reached").await;
    refused(0, "member 3 cannot be reached").await;
    group.hub.isolate(3, false);
    let first = group.member(0);
    until("the third is there again", async || first.all_others(2).await.ok()).await;
    group.all[1].begin_anew(Formats::OWN).await.unwrap();
    for other in [0, 2] {
        refused(other, "member 2 is beginning anew").await;
    }
    // It has not heard the answer, and asks again.
    group.all[1].begin_anew(Formats::OWN).await.unwrap();
    group.all[1].is_back().await.unwrap();
    group.all[0].begin_anew(Formats::OWN).await.unwrap();
    refused(1, "member 1 is beginning anew").await;
    group.all[0].is_back().await.unwrap();
    // Who is removed on the way keeps nobody waiting.
    group.all[2].begin_anew(Formats::OWN).await.unwrap();
    group.all[0].remove(ids(&[3])).await.unwrap();
    group.all[1].begin_anew(Formats::OWN).await.unwrap();
    group.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_says_late_that_it_is_back_takes_back_nothing_that_it_was_let_since() {
    let group = Group::of(1).await;
    let (keyspace, member) = (&group.all[0], group.member(0));
    let revision = || member.machine().state.read().record(&group::anew_key(1)).map(|record| record.revision);
    keyspace.begin_anew(Formats::OWN).await.unwrap();
    keyspace.was_let_begin_anew().await;
    let first = revision().unwrap();
    keyspace.begin_anew(Formats::OWN).await.unwrap();
    keyspace.is_back_after(first).await.unwrap();
    assert!(revision() > Some(first), "it is about to go");
    keyspace.is_back().await.unwrap();
    assert_eq!(revision(), None);
    group.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_begins_anew_with_a_program_that_does_not_know_the_log() {
    let group = Group::of(1).await;
    let newer = Formats { oldest: Formats::OWN.newest + 1, newest: Formats::OWN.newest + 2 };
    let told = group.all[0].begin_anew(newer).await;
    assert!(matches!(&told, Err(GroupError::Refused(why)) if why.contains("in format")), "{told:?}");
    group.all[0].begin_anew(Formats::OWN).await.unwrap();
    group.shutdown().await;
}

/// What was acknowledged by the one voter that there was is on one of three when two more count, unless they have it by then.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_to_count_says_that_it_has_everything_after_nothing_is_acknowledged_without_it() {
    let mut group = Group::of(1).await;
    for name in ["second", "third"] {
        let admission = group.all[0].admit_until(name, Formats::OWN, crate::Promotion::WhenComplete).await.unwrap();
        group.open(Begin::Join(admission)).await;
        let last = group.all.last().unwrap();
        until("it says that it keeps more", async || last.keeps_more().await.ok()).await;
    }
    let [first, second, third] = &group.all[..] else { panic!("three") };
    first.keeps_more().await.unwrap();
    let before = first.counted();
    assert_eq!(before.sets, [ids(&[1])]);
    let acknowledge = async |by: &Keyspace, version: u64| {
        let value = Value { bytes: "x".into(), revision_at: 1 };
        let put = Op::Put { key: Key::new("images", "a"), value, guard: Guard::None };
        by.transact(vec![crate::Counted::condition(version), put]).await.map(drop)
    };
    acknowledge(first, before.version).await.unwrap();
    // They have what there was when they joined.
    for member in [second, third] {
        member.complete(member.incomplete().unwrap()).await.unwrap();
    }
    until("both are asked", async || (second.incomplete().is_some() && third.incomplete().is_some()).then_some(()))
        .await;
    // From now on they are needed, although they do not vote, and what asked only those who voted is not acknowledged.
    assert_eq!(first.counted().sets, [ids(&[1]), ids(&[1, 2, 3])]);
    let late = acknowledge(second, before.version).await.unwrap_err();
    assert!(matches!(&late, crate::TransactError::Guard(failed) if failed.op == 0), "{late}");
    second.complete(second.incomplete().unwrap()).await.unwrap();
    settled(first).await;
    assert_eq!(group.member(0).view().voters, ids(&[1]));
    // One that has gone is waited for by nobody.
    let asked = third.incomplete().unwrap();
    group.hub.isolate(3, true);
    until("the first alone counts", async || (first.counted().sets == [ids(&[1])]).then_some(())).await;
    group.hub.isolate(3, false);
    until("they are asked again", async || (first.counted().sets.len() == 2).then_some(())).await;
    third.barrier().await.unwrap();
    // What was asked before is another question.
    third.complete(asked).await.unwrap();
    assert!(third.incomplete().is_some());
    for member in [second, third] {
        let completed = async || match member.incomplete() {
            Some(asked) => member.complete(asked).await.ok().filter(|()| false),
            None => Some(()),
        };
        until("it has said so", completed).await;
    }
    until("three voters", async || (first.0.member.view().voters.len() == 3).then_some(())).await;
    assert_eq!(first.counted().sets, [ids(&[1, 2, 3])]);
    // Nor does one go whose copy may be the second of two.
    let removed = first.remove(ids(&[3]));
    let (removed, ()) = tokio::join!(removed, async {
        until("who is left is asked", async || first.incomplete().or(second.incomplete()).map(drop)).await;
        assert_eq!(first.0.member.view().voters.len(), 3);
        for member in [first, second] {
            until("it is asked", async || member.incomplete()).await;
            member.complete(member.incomplete().unwrap()).await.unwrap();
        }
    });
    removed.unwrap();
    until("two voters", async || (first.counted().sets == [ids(&[1, 2])]).then_some(())).await;
    group.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_only_voter_that_is_left_is_a_majority() {
    let group = Group::of(3).await;
    let first = &group.all[0];
    until("the others are removed", async || first.remove(ids(&[2, 3])).await.ok()).await;
    assert_eq!((first.members().len(), group.member(0).leading().is_some()), (1, true));
    // It asks nobody any more, and nobody acknowledges anything.
    assert_eq!(group.member(0).alone_for(), Duration::ZERO);
    group.shutdown().await;
}
