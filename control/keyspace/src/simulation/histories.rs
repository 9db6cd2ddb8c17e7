//! Random histories of a member's log and checkpoint with power cuts anywhere, against a model in memory.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures::executor::block_on;
use futures::stream;
use openraft::EntryPayload;
use openraft::entry::RaftEntry;
use openraft::storage::{RaftLogStorage, RaftStateMachine};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::{SIZES, SimDisk, seeds};
use crate::dir::Dir;
use crate::host::Host;
use crate::raft::testing::{Applier, Entry, LeaderId, Log, LogId, Transaction, Vote};
use crate::raft::{self, Member};
use crate::record::{Guard, Key, Op, Value};
use crate::{Begin, Config, Machine};

const STEPS: usize = 80;
const NAMES: u8 = 12;

/// A member's files, open.
pub struct Store {
    pub log: Log,
    pub machine: Arc<Machine>,
}

impl Store {
    /// Opens what is on `disk`, founding it when it is new.
    pub fn open(disk: &SimDisk) -> Result<Store, String> {
        let host = Host::simulated(Arc::new(disk.clone()), 7, false, SIZES);
        let mut dir = Dir::open(&host, Path::new("/data"), &Begin::Found).map_err(text)?;
        if dir.is_new() {
            raft::found(&host, &mut dir).map_err(text)?;
        }
        let read = Member::read(&host, dir, Config::new("").retention, crate::Formats::OWN, None)
            .map_err(|error| error.to_string())?;
        let (log, machine) = read.start().map_err(|error| error.to_string())?.parts();
        Ok(Store { log, machine })
    }

    /// Applies the entries after what is applied, up to `upto`.
    pub fn apply(&self, upto: u64) {
        let applied = self.machine.state.read().applied.get();
        let first = if applied > 0 { applied + 1 } else { 0 };
        let entries = self.log.contents().2.into_iter().filter(|entry| (first..=upto).contains(&entry.log_id.index));
        let entries = entries.map(|entry| Ok((entry, None)));
        block_on(Applier(self.machine.clone()).apply(stream::iter(entries.collect::<Vec<_>>()))).unwrap();
    }

    /// All records with their contents.
    pub fn records(&self) -> BTreeMap<String, Vec<u8>> {
        let state = self.machine.state.read();
        let all = state.collections().flat_map(|(_, collection)| collection.records.values());
        all.map(|record| (record.key.name.to_string(), record.bytes.to_vec())).collect()
    }

    pub fn close(self) {
        self.log.close();
        self.machine.close();
    }
}

fn text(error: impl std::error::Error) -> String {
    let source = std::error::Error::source(&error).map(|source| format!(": {source}")).unwrap_or_default();
    format!("{error}{source}")
}

/// What must be there.
#[derive(Clone, Debug, Default)]
pub struct Model {
    vote: Option<Vote>,
    purged: Option<LogId>,
    /// All entries ever, so that the state can be computed anew; those up to `purged` are not expected in the log.
    entries: Vec<(LogId, Option<Transaction>)>,
    applied: Option<u64>,
    covered: Option<u64>,
}

impl Model {
    fn next(&self) -> u64 {
        self.entries.last().map_or(0, |(id, _)| id.index + 1)
    }

    /// The entries that the log must have.
    fn expected(&self) -> Vec<(LogId, String)> {
        let kept = self.entries.iter().filter(|(id, _)| Some(*id) > self.purged);
        kept.map(|(id, transaction)| (*id, print(transaction.as_ref()))).collect()
    }

    /// The records that the state must have.
    fn records(&self) -> BTreeMap<String, Vec<u8>> {
        let mut records = BTreeMap::new();
        for (id, transaction) in self.entries.iter().filter(|(id, _)| Some(id.index) <= self.applied) {
            let ops = transaction.as_ref().map(Transaction::ops).unwrap_or_default();
            let deletes_nothing = |op: &Op| matches!(op, Op::Delete { key, .. } if !records.contains_key(&*key.name));
            if ops.iter().any(deletes_nothing) {
                continue;
            }
            for op in ops {
                match op {
                    Op::Put { key, value, .. } => {
                        let content = [id.index.to_string().as_bytes(), &value.bytes[..]].concat();
                        records.insert(key.name.to_string(), content);
                    }
                    Op::Delete { key, .. } => drop(records.remove(&*key.name)),
                    Op::Check { .. } => (),
                }
            }
        }
        records
    }
}

/// Everything of an entry, for comparing.
fn print(transaction: Option<&Transaction>) -> String {
    transaction.map_or_else(|| "blank".into(), |transaction| format!("{:?}", transaction.ops()))
}

fn print_entry(entry: &Entry) -> (LogId, String) {
    match &entry.payload {
        EntryPayload::Normal(transaction) => (entry.log_id, print(Some(transaction))),
        _ => (entry.log_id, print(None)),
    }
}

/// What a failed checkpoint did not write is in none: the log must not be cut by it, nor a later one be written without it.
#[test]
fn a_checkpoint_that_panics_loses_no_change_and_ends_them_all() {
    let disk = SimDisk::new(5);
    let store = Store::open(&disk).unwrap();
    let value = Value { bytes: Bytes::from_static(b"x"), revision_at: 0 };
    let op = Op::Put { key: Key::new("things", "a"), value, guard: Guard::None };
    let payloads = [EntryPayload::Blank, EntryPayload::Normal(Transaction::new(vec![op]))];
    let leader = LeaderId { term: 1, node_id: 1 };
    let entries = payloads.into_iter().zip(0..).map(|(payload, at)| Entry::new(LogId::new(leader, at), payload));
    store.log.append_entries(entries.collect(), Box::new(Result::unwrap));
    store.apply(1);
    disk.panic_once();
    assert!(store.machine.write_changes().is_err() && store.machine.is_broken());
    assert_eq!(store.machine.state.read().dirty.len(), 1);
    // The disk is well again, and this process may not believe it.
    assert!(store.machine.write_changes().is_err());
    assert!(store.machine.covered().is_none());
    store.close();
    let store = Store::open(&disk).unwrap();
    store.apply(1);
    assert_eq!(store.records().keys().collect::<Vec<_>>(), ["a"]);
    store.machine.write_changes().unwrap();
    store.close();
}

/// Whoever proposed something may go away: what the log has promised it stays promised until it is written.
#[test]
fn room_is_kept_until_the_write_is_done() {
    let store = Store::open(&SimDisk::new(6)).unwrap();
    let room = block_on(store.log.room(500, false)).unwrap();
    let transaction = Transaction::new(Vec::new());
    transaction.occupy(room);
    let id = LogId::new(LeaderId { term: 1, node_id: 1 }, 0);
    let entry = Entry::new(id, EntryPayload::Normal(transaction));
    assert_eq!(store.log.promised(), 500);
    store.log.append_entries(vec![entry], Box::new(Result::unwrap));
    assert_eq!((store.log.promised(), store.log.bytes() > 0), (0, true));
    store.close();
}

/// One history.
pub struct Play {
    pub random: StdRng,
    pub disk: SimDisk,
    pub store: Store,
    model: Model,
    term: u64,
    /// What happened, for whoever reads a failure.
    story: Vec<String>,
}

/// What is compared of a store.
pub type Contents = (Option<Vote>, Option<LogId>, Vec<(LogId, String)>, BTreeMap<String, Vec<u8>>);

impl Play {
    pub fn begin(seed: u64) -> Play {
        let disk = SimDisk::new(seed ^ 0x5eed);
        let store = Store::open(&disk).expect("a new directory on a good disk");
        let random = StdRng::seed_from_u64(seed);
        Play { random, disk, store, model: Model::default(), term: 1, story: Vec::new() }
    }

    fn transaction(&mut self) -> Transaction {
        let mut ops = Vec::new();
        for half in 0..self.random.random_range(1..3_u8) {
            let name = format!("k{}", half * NAMES + self.random.random_range(0..NAMES));
            let key = Key::new("things", name);
            if self.random.random_ratio(1, 5) {
                ops.push(Op::Delete { key, guard: Guard::None });
                continue;
            }
            let mut content = vec![b'x'; self.random.random_range(0..2_000)];
            self.random.fill(&mut content[..]);
            let value = Value { bytes: Bytes::from(content), revision_at: 0 };
            ops.push(Op::Put { key, value, guard: Guard::None });
        }
        Transaction::new(ops)
    }

    /// Does one step; the states that are right when the power went during it.
    pub fn step(&mut self) -> Vec<Model> {
        let before = self.model.clone();
        let mut after = before.clone();
        let mut between = Vec::new();
        let done = match self.random.random_range(0..20) {
            0..=8 => {
                let first = before.next();
                let count = self.random.random_range(1..5);
                let leader = LeaderId { term: self.term, node_id: 1 };
                let mut entries = Vec::new();
                for index in first..first + count {
                    // The first entry of a log writes nothing.
                    let transaction = (index > 0).then(|| self.transaction());
                    let id = LogId::new(leader, index);
                    between.push(after.clone());
                    after.entries.push((id, transaction.clone()));
                    let payload = transaction.map_or(EntryPayload::Blank, EntryPayload::Normal);
                    entries.push(Entry::new(id, payload));
                }
                self.story.push(format!("append {first}..{}", first + count));
                let outcome = Arc::new(Mutex::new(None));
                let told = outcome.clone();
                self.store.log.append_entries(entries, Box::new(move |result| *told.lock() = Some(result)));
                outcome.lock().take().expect("it is told at once")
            }
            9..=11 => {
                self.term += 1;
                let committed = self.random.random();
                let vote = Vote { leader_id: LeaderId { term: self.term, node_id: 1 }, committed };
                after.vote = Some(vote);
                self.story.push(format!("vote {}", self.term));
                block_on(self.store.log.clone().save_vote(&vote))
            }
            12..=13 => {
                let low = before.applied.map_or(0, |applied| applied + 1);
                let from = self.random.random_range(low..=before.next().max(low));
                after.entries.retain(|(id, _)| id.index < from);
                let last = after.entries.last().map(|(id, _)| *id);
                self.term += 1;
                self.story.push(format!("truncate from {from}"));
                block_on(self.store.log.clone().truncate_after(last))
            }
            14..=15 => {
                if let Some(last) = before.next().checked_sub(1) {
                    let upto = self.random.random_range(before.applied.unwrap_or(0)..=last);
                    self.store.apply(upto);
                    after.applied = Some(upto);
                    self.story.push(format!("apply {upto}"));
                }
                Ok(())
            }
            16 => {
                after.covered = before.applied;
                self.story.push(format!("checkpoint {:?}", before.applied));
                self.store.machine.write_changes()
            }
            17..=18 => {
                let low = before.purged.map_or(0, |id| id.index);
                match before.covered.filter(|covered| *covered > low) {
                    Some(covered) => {
                        let upto = self.random.random_range(low + 1..=covered);
                        let found = before.entries.iter().find(|(id, _)| id.index == upto);
                        let upto = found.expect("what is covered was an entry").0;
                        after.purged = Some(upto);
                        self.story.push(format!("purge {upto}"));
                        block_on(self.store.log.clone().purge(upto))
                    }
                    None => Ok(()),
                }
            }
            _ => {
                self.story.push("settle".into());
                self.store.log.settle()
            }
        };
        self.model = after.clone();
        match done {
            Ok(()) => vec![after],
            Err(_) => {
                between.extend([before, after]);
                between
            }
        }
    }

    /// Opens again, with the power going while it does, now and then.
    fn reopen(&mut self, right: &[Model]) -> Result<(), String> {
        self.store.log.close();
        self.store.machine.close();
        loop {
            if self.random.random_ratio(1, 3) {
                self.disk.power_for(Some(self.random.random_range(0..12)));
            }
            match Store::open(&self.disk) {
                Ok(store) => self.store = store,
                Err(_) if self.disk.is_off() => {
                    self.story.push("power cut while opening".into());
                    self.disk.power_cut();
                    continue;
                }
                Err(why) => return Err(why),
            }
            self.disk.power_for(None);
            break;
        }
        let (vote, purged, entries) = self.store.log.contents();
        let covered = self.store.machine.covered().map(|id| id.index);
        let found: Vec<(LogId, String)> = entries.iter().map(print_entry).collect();
        let fits = |model: &&Model| {
            let known: Vec<_> = found.iter().filter(|(id, _)| Some(*id) > model.purged).cloned().collect();
            vote == model.vote && covered == model.covered && purged <= model.purged && known == model.expected()
        };
        let Some(model) = right.iter().find(fits) else {
            let ids = |entries: &[(LogId, String)]| entries.iter().map(|(id, _)| id.to_string()).collect::<Vec<_>>();
            let right: Vec<_> = right.iter().map(|m| (m.vote, m.purged, m.covered, ids(&m.expected()))).collect();
            return Err(format!("found {:?}\nexpected one of {right:?}", (vote, purged, covered, ids(&found))));
        };
        self.model = model.clone();
        if let Some(applied) = self.model.applied {
            self.store.apply(applied);
        }
        self.check_records()
    }

    fn check_records(&self) -> Result<(), String> {
        let (found, expected) = (self.store.records(), self.model.records());
        if found == expected {
            return Ok(());
        }
        let wrong = expected.keys().chain(found.keys()).filter(|name| found.get(*name) != expected.get(*name));
        Err(format!("these records are wrong: {:?}", wrong.collect::<Vec<_>>()))
    }

    /// What a store says that holds this history.
    pub fn contents(&self, store: &Store) -> Contents {
        if let Some(applied) = self.model.applied {
            store.apply(applied);
        }
        let (vote, purged, entries) = store.log.contents();
        (vote, purged, entries.iter().map(print_entry).collect(), store.records())
    }

    fn run(&mut self) -> Result<(), String> {
        for _ in 0..STEPS {
            if self.random.random_ratio(1, 8) {
                self.disk.power_for(Some(self.random.random_range(0..24)));
            }
            let right = self.step();
            if self.disk.is_off() {
                self.story.push("power cut".into());
                self.disk.power_cut();
                self.reopen(&right)?;
            } else if right.len() > 1 {
                return Err("a step failed although the disk is well".into());
            } else if self.random.random_ratio(1, 12) {
                self.disk.power_for(None);
                match self.random.random_range(0..3) {
                    0 => self.story.push("restart".into()),
                    _ => {
                        self.story.push("power cut between steps".into());
                        self.disk.power_cut();
                    }
                }
                self.reopen(&right)?;
            }
            self.check_records()?;
        }
        Ok(())
    }
}

#[test]
fn whatever_the_power_does_what_was_answered_is_there() {
    seeds(150, "simulation::histories", |seed| {
        let mut play = Play::begin(seed);
        play.run().map_err(|why| format!("seed {seed}: {why}\nafter: {}", play.story.join(", ")))
    });
}

#[test]
fn the_same_seed_is_the_same_history() {
    let told = |seed| {
        let mut play = Play::begin(seed);
        play.run().unwrap();
        (play.story.join(", "), play.disk.image())
    };
    let (first, second) = (told(5), told(5));
    assert_eq!(first.0, second.0);
    assert!(first.1 == second.1);
}
