//! In every second world: what clients write is sealed, and keys come one after the other, by whoever is asked, while members are killed and
//! cut off. Nobody who writes or reads sees any of it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use coracle_keyspace::{Keyspace, SecretKey};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::{MEMBERS, World, patient, until};

/// Whether there are keys in the world of this seed.
pub fn are_in(seed: u64) -> bool {
    seed % 2 == 1
}

/// What they are sealed under.
pub fn root(seed: u64) -> SecretKey {
    SecretKey::derive(&seed.to_le_bytes(), "a world")
}

impl World {
    pub fn seals(&self) -> bool {
        are_in(self.seed)
    }

    /// Has the members say that they know of keys, and what is written be sealed.
    pub async fn begin_to_seal(&self) {
        let mut all = Vec::new();
        for member in MEMBERS {
            all.push(self.up(member).await.expect("it is up"));
        }
        for keyspace in &all {
            until(async || keyspace.introduce("boat", &[]).await.ok()).await.expect("it is introduced");
        }
        for keyspace in &all {
            until(async || keyspace.sealing().key).await.expect("whoever leads makes the first key");
        }
        let things = BTreeSet::from(["things".to_owned()]);
        until(async || all[0].seal_collections(&things).await.ok()).await.expect("it is said what is sealed");
    }

    /// Renews the key until the storm is over.
    pub async fn renew(self: Arc<World>) {
        let mut random = StdRng::seed_from_u64(self.seed ^ 0x6b65_7973);
        while !self.is_over() {
            let member = MEMBERS[random.random_range(0..MEMBERS.len())];
            if let Some(keyspace) = self.up(member).await {
                // Refused while there is no leader, too many keys, or an earlier one has not taken over yet.
                let _ = patient(keyspace.renew_key()).await;
            }
            tokio::time::sleep(Duration::from_millis(random.random_range(20..300))).await;
        }
    }

    /// Whoever leads has sealed everything anew, whatever cut that before; and each member opens it.
    pub async fn is_sealed(&self, keyspaces: &[Keyspace]) {
        let settled = until(async || {
            for keyspace in keyspaces {
                keyspace.barrier().await.ok()?;
                (keyspace.sealing().unsettled == 0).then_some(())?;
            }
            Some(())
        });
        if settled.await.is_none() {
            return self.is_wrong("what is stored is not sealed anew".into());
        }
        for keyspace in keyspaces {
            let (member, sealing) = (keyspace.member(), keyspace.sealing());
            let records = keyspace.snapshot("things").records;
            let wrong = records.values().find(|record| record.sealed_by() != sealing.key);
            let verdict = match (wrong, sealing.unreadable.first()) {
                (None, None) => Ok(()),
                (Some(record), _) => Err(format!("member {member} has {record:?} not under {:?}", sealing.key)),
                (_, Some((what, why))) => Err(format!("member {member} cannot open {what}: {why}")),
            };
            self.judges("sealed", verdict);
            if sealing.key.is_some_and(|key| key > 1) && !records.is_empty() {
                self.judges("renewed", Ok(()));
            }
        }
    }
}
