//! A follower that was cut off and comes back. It has asked for votes meanwhile, as often as it liked: nobody gives it one who hears a
//! leader, and its term has not grown by asking (openraft's pre-vote), so it deposes nobody; and what is asked of it is done at once.

use std::time::Duration;

use coracle_keyspace::{Guard, Keyspace, MemberId};
use tokio::time::Instant;

use super::clients::put;
use super::{MEMBERS, World, confirmed, patient, until};
use crate::plants::Plant;
use crate::{apart, clock};

/// How long it is cut off: less than anybody notices, about as long as an election's timeout, and much longer.
const CUT_FOR: [u64; 4] = [300, 800, 1_700, 6_000];
/// How long what is asked of it may take when it is back.
const AT_ONCE: Duration = Duration::from_millis(1_500);

#[test]
fn a_follower_that_was_cut_off_deposes_nobody_and_serves_at_once_when_it_is_back() {
    let lived = apart::apart(|| clock::world(1, play));
    lived.expect("it ends").expect("nothing panics");
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
    let cut = all.iter().find(|other| other.member() != leader.member()).expect("two follow").clone();
    let others: Vec<MemberId> = MEMBERS.into_iter().filter(|other| *other != cut.member()).collect();
    let before = leader.status();
    let mut value = 0;
    // Both ways, and each alone: it hears nothing, or it is not heard.
    for (hears, is_heard) in [(false, false), (false, true), (true, false)] {
        for cut_for in CUT_FOR {
            for other in &others {
                world.net.cut(*other, cut.member(), !hears);
                world.net.cut(cut.member(), *other, !is_heard);
            }
            let over = Instant::now() + Duration::from_millis(cut_for);
            while Instant::now() < over {
                value += 1;
                let written = patient(leader.transact(vec![put("it", value, Guard::None)])).await;
                assert!(written.is_some_and(|written| written.is_ok()), "the others go on");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            world.net.heal();
            let back = Instant::now();
            value += 1;
            let written = patient(cut.transact(vec![put("it", value, Guard::None)])).await;
            let what = format!("hears: {hears}, is heard: {is_heard}, for {cut_for} ms, after {:?}", back.elapsed());
            assert!(written.is_some_and(|written| written.is_ok()), "no write, {what}");
            assert!(confirmed(&cut).await, "no read, {what}");
            assert!(back.elapsed() < AT_ONCE, "late, {what}");
            let now = leader.status();
            assert_eq!((now.term, now.leader), (before.term, before.leader), "another leads, {what}");
        }
    }
    assert_eq!(*world.wrong.lock(), Vec::<String>::new());
}
