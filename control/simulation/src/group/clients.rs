//! Clients: each writes its own register, all count, and read each other's, through any member.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use coracle_keyspace::{Guard, Key, Keyspace, Op, TransactError, Value};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::{CLIENTS, MEMBERS, World, confirmed, patient};
use crate::plants::Plant;

impl World {
    /// Lives until the storm is over.
    pub async fn client(self: Arc<World>, client: u64) {
        let mut random = StdRng::seed_from_u64(self.seed ^ (client << 32));
        let mut next = 0;
        while !self.is_over() {
            let member = MEMBERS[random.random_range(0..MEMBERS.len())];
            let Some(keyspace) = self.members.read().await[&member].keyspace.clone() else {
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            };
            match random.random_range(0..6) {
                0..=2 => {
                    next += 1;
                    self.write(&keyspace, client, next).await;
                }
                3 => self.count(&keyspace).await,
                _ => self.read(&keyspace, random.random_range(0..CLIENTS)).await,
            }
            tokio::time::sleep(Duration::from_millis(random.random_range(1..15))).await;
        }
    }

    async fn write(&self, keyspace: &Keyspace, client: u64, value: u64) {
        // What is unknown may still happen: with a guard it cannot after something newer has.
        if !confirmed(keyspace).await {
            return;
        }
        let name = register(client);
        let there = keyspace.get("things", &name);
        let guard = there.map_or(Guard::Absent, |record| Guard::Revision(record.revision));
        self.promises.tries(&name, value);
        match patient(keyspace.transact(vec![put(&name, value, guard)])).await {
            Some(Ok(_)) => self.promises.acknowledged(&name, value),
            Some(Err(TransactError::Unknown | TransactError::Stopped)) | None => (),
            Some(Err(_)) => self.promises.refused(&name, value),
        }
    }

    async fn count(&self, keyspace: &Keyspace) {
        if !confirmed(keyspace).await {
            return;
        }
        let there = keyspace.get("things", "counter");
        let (guard, value) =
            there.map_or((Guard::Absent, 0), |record| (Guard::Revision(record.revision), value_of(&record.bytes)));
        match patient(keyspace.transact(vec![put("counter", value + 1, guard)])).await {
            Some(Ok(_)) => self.promises.counted(),
            Some(Err(TransactError::Unknown | TransactError::Stopped)) | None => self.promises.perhaps_counted(),
            Some(Err(_)) => (),
        }
    }

    /// Reads somebody's register.
    pub async fn read(&self, keyspace: &Keyspace, of: u64) {
        let name = register(of);
        let least = self.promises.least(&name);
        let trusts = self.plant == Plant::StaleReads && keyspace.lead().borrow().is_some();
        if !trusts && !confirmed(keyspace).await {
            return;
        }
        let found = keyspace.get("things", &name).map_or(0, |record| value_of(&record.bytes));
        self.judges("registers", self.promises.read(&name, least, found));
    }

    /// Reads the counter at the end.
    pub fn read_counter(&self, keyspace: &Keyspace) {
        let found = keyspace.get("things", "counter").map_or(0, |record| value_of(&record.bytes));
        self.judges("the counter", self.promises.count(found));
    }
}

fn register(client: u64) -> String {
    format!("register-{client}")
}

pub fn put(name: &str, value: u64, guard: Guard) -> Op {
    let bytes = Bytes::from(format!("{value}\n"));
    Op::Put { key: Key::new("things", name), value: Value { revision_at: bytes.len(), bytes }, guard }
}

fn value_of(bytes: &[u8]) -> u64 {
    let text = String::from_utf8_lossy(bytes);
    text.lines().next().and_then(|line| line.parse().ok()).expect("what a client wrote")
}
