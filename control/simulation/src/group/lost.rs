//! A member whose data was replaced by an older copy while it was down. Its word may have been what made a majority; nobody can make that
//! good, so the leader says so, and goes on with the others as if it were down.

use coracle_keyspace::{Alarm, Guard, Keyspace};

use super::clients::put;
use super::{MEMBERS, World, patient, until};
use crate::plants::Plant;
use crate::{apart, clock};

#[test]
fn who_lost_what_it_acknowledged_counts_for_nothing_and_stops_nobody() {
    let lived = apart::apart(|| clock::world(1, play));
    lived.expect("it ends").expect("nothing panics");
}

async fn write(keyspace: &Keyspace, value: u64) -> bool {
    patient(keyspace.transact(vec![put("it", value, Guard::None)])).await.is_some_and(|written| written.is_ok())
}

async fn play() {
    let world = World::new(1, Plant::Nothing);
    world.grow().await;
    let mut all = Vec::new();
    for member in MEMBERS {
        all.push(world.up(member).await.expect("it is up"));
    }
    let leads = |keyspace: &&Keyspace| keyspace.lead().borrow().is_some();
    let leader = until(async || all.iter().find(leads).cloned()).await.expect("one leads");
    let others: Vec<&Keyspace> = all.iter().filter(|other| other.member() != leader.member()).collect();
    let (loser, witness) = (others[0], others[1].member());
    assert!(write(&leader, 1).await);
    loser.wait_for(leader.revision()).await.expect("it follows");
    let disk = world.members.read().await[&loser.member()].disk.clone();
    let old = disk.image();
    for value in 2..10 {
        assert!(write(&leader, value).await);
    }
    loser.wait_for(leader.revision()).await.expect("it follows");
    let loser = loser.member();
    world.kill(loser).await;
    disk.restore(&old);
    world.start_again(loser).await;
    let is_told = async || leader.alarms().contains(&Alarm::Lost { member: loser }).then_some(());
    until(is_told).await.expect("people are told");
    assert!(write(&leader, 10).await, "the two others go on");
    world.kill(witness).await;
    assert!(!write(&leader, 11).await, "it makes no majority");
    world.start_again(witness).await;
    until(async || write(&leader, 12).await.then_some(())).await.expect("the two others go on again");
    // Whoever was told has done what there is to be done.
    let is_removed = async || leader.remove([loser].into()).await.ok();
    until(is_removed).await.expect("it is removed");
    assert_eq!(leader.alarms(), Vec::new());
    assert_eq!(*world.wrong.lock(), Vec::<String>::new());
}
