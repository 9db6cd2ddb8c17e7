//! Faults, as the seed has them; and the calm afterwards, in which the group has to become well by itself.

use std::sync::Arc;
use std::time::Duration;

use coracle_keyspace::simulation::SimDisk;
use coracle_keyspace::{Begin, Keyspace, MemberId};
use futures::FutureExt as _;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{CLIENTS, MEMBERS, World, confirmed, until, voters};
use crate::plants::Plant;

/// How long faults happen.
const STORM: Duration = Duration::from_millis(2_500);

impl World {
    /// Lets faults happen.
    pub async fn storm(self: &Arc<World>) {
        let mut random = StdRng::seed_from_u64(self.seed);
        let end = Instant::now() + STORM;
        let mut crashes = JoinSet::new();
        while Instant::now() < end {
            let member = MEMBERS[random.random_range(0..MEMBERS.len())];
            let other = MEMBERS[random.random_range(0..MEMBERS.len())];
            match random.random_range(0..10) {
                0..=1 if crashes.is_empty() => {
                    let (world, down) = (self.clone(), Duration::from_millis(random.random_range(20..400)));
                    crashes.spawn(async move { world.crash(member, down).await });
                }
                2 if crashes.is_empty() && self.plant.needs_all_disks() => {
                    for member in MEMBERS {
                        let world = self.clone();
                        crashes.spawn(async move { world.crash(member, Duration::from_millis(50)).await });
                    }
                }
                2 => {
                    if let Some(keyspace) = self.up(member).await {
                        keyspace.hand_over().await;
                    }
                }
                3..=4 if member != other => self.net.cut(member, other, true),
                5 => {
                    // One is cut off from all, both ways or one.
                    let both = random.random();
                    for other in MEMBERS.into_iter().filter(|other| *other != member) {
                        self.net.cut(member, other, true);
                        self.net.cut(other, member, both);
                    }
                }
                6 => self.net.set_unreliable(random.random_range(0..30)),
                7 if member != other => {
                    // The other is a learner for a while; whoever does it may be gone between the steps, or not lead at all.
                    if let Some(keyspace) = self.up(member).await {
                        let voters = MEMBERS.into_iter().filter(|voter| *voter != other).collect();
                        let patience = Duration::from_millis(random.random_range(0..40));
                        let _ = tokio::time::timeout(patience, keyspace.replace_voters(voters)).await;
                    }
                }
                8 => {
                    let slow = random.random::<bool>().then(|| Duration::from_millis(random.random_range(5..300)));
                    self.members.read().await[&member].disk.set_slow(slow);
                }
                _ => self.net.mend(),
            }
            tokio::time::sleep(Duration::from_millis(random.random_range(30..350))).await;
            while let Some(ended) = crashes.try_join_next() {
                ended.expect("a crash does not panic");
            }
        }
        while let Some(ended) = crashes.join_next().await {
            ended.expect("a crash does not panic");
        }
        self.net.heal();
        self.members.read().await.values().for_each(|machine| machine.disk.set_slow(None));
        for member in MEMBERS {
            self.start_again(member).await;
        }
    }

    /// A member, unless it is down.
    pub async fn up(&self, member: MemberId) -> Option<Keyspace> {
        self.members.read().await[&member].keyspace.clone()
    }

    /// Kills a member with its power, and starts it again after a while.
    async fn crash(&self, member: MemberId, down: Duration) {
        self.kill(member).await;
        tokio::time::sleep(down).await;
        self.start_again(member).await;
    }

    /// Kills a member with its power.
    pub async fn kill(&self, member: MemberId) {
        let mut members = self.members.write().await;
        let Some(machine) = members.get_mut(&member) else { return };
        let Some(keyspace) = machine.keyspace.take() else { return };
        self.net.detach(member);
        machine.disk.power_off();
        drop(members);
        keyspace.abandon().await;
    }

    /// Gives a member its power back, if it has none.
    pub async fn start_again(&self, member: MemberId) {
        let mut members = self.members.write().await;
        let Some(machine) = members.get_mut(&member).filter(|machine| machine.keyspace.is_none()) else { return };
        machine.disk.power_cut();
        let mut begin = Begin::Resume;
        if self.plant == Plant::ReusedNumber && matches!(machine.began, Begin::Join(_)) {
            machine.disk = SimDisk::new(self.seed ^ member);
            begin = machine.began.clone();
        }
        match self.open(member, &machine.disk, &begin).await {
            Ok(keyspace) => machine.keyspace = Some(keyspace),
            Err(why) => self.is_wrong(format!("member {member} does not start: {why}")),
        }
    }

    /// Everything is well again: all have the same, and all that was promised.
    pub async fn settle(&self) {
        let members = self.members.read().await;
        let keyspaces: Vec<Keyspace> = members.values().filter_map(|machine| machine.keyspace.clone()).collect();
        if keyspaces.len() < MEMBERS.len() {
            return self.is_wrong("a member is not there".into());
        }
        let ended = |keyspace: &Keyspace| keyspace.failed().now_or_never();
        let well = until(async || {
            for keyspace in &keyspaces {
                let is_well = voters(keyspace) == MEMBERS.len() && !keyspace.is_joint() && confirmed(keyspace).await;
                if !is_well && ended(keyspace).is_none() {
                    return None;
                }
            }
            Some(())
        });
        if well.await.is_none() {
            let states: Vec<_> = keyspaces.iter().map(Keyspace::status).collect();
            return self.is_wrong(format!("the group is not well again: {states:?}"));
        }
        for keyspace in &keyspaces {
            if let Some(why) = ended(keyspace) {
                return self.is_wrong(format!("member {} ended: {why}", keyspace.member()));
            }
        }
        if self.seals() {
            self.is_sealed(&keyspaces).await;
        }
        // Once more, so that the first has what the last confirmed.
        for keyspace in &keyspaces {
            let _ = keyspace.barrier().await;
        }
        let contents = |keyspace: &Keyspace| {
            let records = keyspace.snapshot("things").records;
            records.values().map(|r| (r.key.name.to_string(), r.revision.get(), r.bytes.clone())).collect::<Vec<_>>()
        };
        let first = contents(&keyspaces[0]);
        for keyspace in &keyspaces[1..] {
            if contents(keyspace) != first {
                self.is_wrong(format!("members 1 and {} differ", keyspace.member()));
            }
        }
        for client in 0..CLIENTS {
            self.read(&keyspaces[0], client).await;
        }
        self.read_counter(&keyspaces[0]);
    }
}
