//! What clients saw: every operation with its call and its return, and what of it cannot be.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::linearizability::{Kind, Operation, Outcome, Value, Verdict, check};

/// When an operation returns whose outcome nobody knows.
pub const NEVER: u64 = u64::MAX;

/// What came of an operation on an object.
#[derive(Clone, Debug)]
pub struct Record {
    /// The object.
    pub key: String,
    /// What was asked and answered.
    pub operation: Operation,
    /// Through which server.
    pub server: usize,
    /// The resourceVersion that was told, if one was.
    pub revision: Option<u64>,
}

/// What clients write down.
pub struct History {
    begun: Instant,
    values: AtomicU64,
    /// Everything that was answered, or may have happened.
    pub records: Mutex<Vec<Record>>,
    /// Writes of which a server said that nothing was done; and what it said.
    pub refused: Mutex<BTreeMap<Value, String>>,
    /// When lists began, and of which revision they are.
    pub lists: Mutex<Vec<(u64, u64)>>,
    /// Answers that nobody should get.
    pub odd: Mutex<BTreeSet<String>>,
    /// The longest time that anybody waited for an answer, in milliseconds.
    pub longest: AtomicU64,
}

impl History {
    /// An empty one.
    pub fn new() -> History {
        History {
            begun: Instant::now(),
            values: AtomicU64::new(1),
            records: Mutex::default(),
            refused: Mutex::default(),
            lists: Mutex::default(),
            odd: Mutex::default(),
            longest: AtomicU64::new(0),
        }
    }

    /// Now.
    pub fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_nanos()).expect("no run lasts for centuries")
    }

    /// A value that was never written.
    pub fn value(&self) -> Value {
        self.values.fetch_add(1, Ordering::Relaxed)
    }

    /// Writes something down.
    pub fn note(&self, record: Record) {
        let Operation { called, returned, .. } = record.operation;
        if returned != NEVER {
            self.longest.fetch_max((returned - called) / 1_000_000, Ordering::Relaxed);
        }
        self.records.lock().expect("nobody panics with it").push(record);
    }

    /// The longest time without an accepted write since `since`.
    pub fn longest_gap(&self, since: u64) -> Duration {
        let records = self.records.lock().expect("nobody panics with it");
        let done = records.iter().filter(|record| record.operation.outcome == Outcome::Done);
        let mut times: Vec<u64> =
            done.map(|record| record.operation.returned).filter(|returned| *returned > since).collect();
        drop(records);
        times.extend([since, self.now()]);
        times.sort_unstable();
        Duration::from_nanos(times.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(0))
    }

    /// Whatever cannot be; nothing when all is well.
    pub fn wrong(&self) -> Vec<String> {
        let records = self.records.lock().expect("nobody panics with it");
        let mut wrong: Vec<String> = self.odd.lock().expect("nobody panics with it").iter().cloned().collect();
        wrong.extend(not_linearizable(&records));
        wrong.extend(revisions_that_differ(&records));
        wrong.extend(revisions_that_go_back(&records, &self.lists.lock().expect("nobody panics with it")));
        let refused = self.refused.lock().expect("nobody panics with it");
        for record in records.iter() {
            if let Outcome::Found(value) = record.operation.outcome
                && let Some(said) = refused.get(&value)
            {
                wrong.push(format!(
                    "{}: {} was read, of which was said that nothing was done: {said}",
                    record.key, value
                ));
            }
        }
        wrong
    }
}

/// What an operation writes.
pub fn written(kind: Kind) -> Option<Value> {
    match kind {
        Kind::Create(value) | Kind::Update { value, .. } | Kind::Patch(value) => Some(value),
        Kind::Delete | Kind::Get => None,
    }
}

/// The value that is there at its revision, by this record.
fn there(record: &Record) -> Option<(Value, u64)> {
    let value = match record.operation.outcome {
        Outcome::Found(value) => Some(value),
        Outcome::Done => written(record.operation.kind),
        _ => None,
    };
    value.zip(record.revision)
}

/// Objects whose histories cannot have happened.
fn not_linearizable(records: &[Record]) -> Vec<String> {
    let mut by_key: BTreeMap<&str, Vec<Operation>> = BTreeMap::new();
    for record in records {
        by_key.entry(&record.key).or_default().push(record.operation);
    }
    let judged = by_key.into_iter().map(|(key, history)| (key, check(&history)));
    judged
        .filter_map(|(key, verdict)| match verdict {
            Verdict::Linearizable => None,
            Verdict::Impossible(why) => Some(format!("the history of {key} is not linearizable: {why}")),
            Verdict::Undecided => Some(format!("the history of {key} has too many unknown operations to be judged")),
        })
        .collect()
}

/// Values that were seen at two revisions.
fn revisions_that_differ(records: &[Record]) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut known: BTreeMap<Value, u64> = BTreeMap::new();
    for (value, revision) in records.iter().filter_map(there) {
        let first = *known.entry(value).or_insert(revision);
        if first != revision {
            wrong.push(format!("value {value} was told at revision {first} and at revision {revision}"));
        }
    }
    wrong
}

/// Writes and lists whose revision is not above that of a write which had returned, through whatever server, before they were
/// called. `lists` are their calls and their revisions.
fn revisions_that_go_back(records: &[Record], lists: &[(u64, u64)]) -> Vec<String> {
    let writes: Vec<(&Record, u64)> = records
        .iter()
        .filter(|record| record.operation.outcome == Outcome::Done)
        .filter_map(|record| Some((record, record.revision?)))
        .collect();
    // By time: what was called, and what had returned.
    let mut returned: Vec<(u64, u64)> =
        writes.iter().map(|(record, revision)| (record.operation.returned, *revision)).collect();
    returned.sort_unstable();
    let mut highest = 0;
    for (_, revision) in &mut returned {
        highest = highest.max(*revision);
        *revision = highest;
    }
    let before = |called: u64| {
        let count = returned.partition_point(|(at, _)| *at < called);
        count.checked_sub(1).map_or(0, |last| returned[last].1)
    };
    let mut wrong = Vec::new();
    for (record, revision) in &writes {
        let before = before(record.operation.called);
        if *revision <= before {
            wrong.push(format!(
                "{}: {} got revision {revision}, when {before} was told already",
                record.key, record.operation
            ));
        }
    }
    for (called, revision) in lists {
        let before = before(*called);
        if *revision < before {
            wrong.push(format!("a list is of revision {revision}, when {before} was told already"));
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(kind: Kind, called: u64, returned: u64, outcome: Outcome, revision: u64) -> Record {
        let operation = Operation { client: 0, kind, called, returned, outcome };
        Record { key: "key".into(), operation, server: 0, revision: Some(revision) }
    }

    fn said(records: Vec<Record>, lists: Vec<(u64, u64)>, refused: &[Value]) -> Vec<String> {
        let history = History::new();
        *history.records.lock().unwrap() = records;
        *history.lists.lock().unwrap() = lists;
        *history.refused.lock().unwrap() = refused.iter().map(|value| (*value, "503".to_owned())).collect();
        history.wrong()
    }

    #[test]
    fn what_cannot_be_is_told() {
        use Outcome::{Done, Found};
        let good = || vec![record(Kind::Create(1), 0, 1, Done, 7), record(Kind::Get, 2, 3, Found(1), 7)];
        assert_eq!(said(good(), vec![(2, 7)], &[]), Vec::<String>::new());
        let with = |more: Record| [good(), vec![more]].concat();
        for (wrong, records, lists, refused) in [
            ("not linearizable", with(record(Kind::Get, 4, 5, Found(9), 8)), vec![], &[][..]),
            ("told at revision 7 and at revision 8", with(record(Kind::Get, 4, 5, Found(1), 8)), vec![], &[]),
            ("got revision 7", with(record(Kind::Patch(2), 4, 5, Done, 7)), vec![], &[]),
            ("a list is of revision 6", good(), vec![(4, 6)], &[]),
            ("nothing was done: 503", good(), vec![], &[1]),
        ] {
            let said = said(records, lists, refused);
            assert!(said.len() == 1 && said[0].contains(wrong), "{wrong}: {said:?}");
        }
    }
}
