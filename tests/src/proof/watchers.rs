//! The watchers of a proof: each follows the objects at one server, goes on at another when that one is gone or silent, and
//! writes down what it hears. What all of them heard is compared with each other and with what was acknowledged.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use coracle_sdk::Remote;
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::{Api, ResourceExt as _};

use super::clients::{LABEL, revision_of, value_in};
use super::history::{Record, written};
use crate::linearizability::{Kind, Outcome, Value};

/// How long a watch may be silent before it goes on at another server: writes come all the time.
const SILENCE: Duration = Duration::from_millis(2_500);
/// How long a watch lasts, in seconds: before its end comes a bookmark, and it goes on elsewhere.
const LASTS: u32 = 6;
/// How long a server may take to begin a watch or to answer a list.
const PATIENCE: Duration = Duration::from_secs(4);

/// What is said of an object.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Change {
    /// It was not there before.
    Added,
    /// It was.
    Modified,
    /// It is no more.
    Deleted,
}

/// An event as it was heard.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Event {
    /// Its revision.
    pub revision: u64,
    /// What happened.
    pub change: Change,
    /// To what.
    pub name: String,
    /// The object's value, the last one where it was deleted.
    pub value: Value,
}

/// What one watcher heard.
#[derive(Clone, Debug, Default)]
pub struct Heard {
    /// The revision after which it began, and the objects that were there.
    pub from: u64,
    /// Those objects.
    pub there: BTreeMap<String, Value>,
    /// The events in the order in which they came.
    pub events: Vec<Event>,
    /// Revisions of bookmarks, each with the number of events before it.
    pub bookmarks: Vec<(usize, u64)>,
    /// How often it went on, at whatever server.
    pub resumed: usize,
    /// What it was told that it should not be.
    pub odd: BTreeSet<String>,
    /// Up to where it heard everything.
    pub upto: u64,
}

/// A watcher.
pub struct Watcher {
    /// Where it begins.
    pub server: usize,
    /// Connections of its own to the servers.
    pub remotes: Vec<Remote>,
    /// The revision that it must hear of; it is not known while there are writes.
    pub end: Arc<AtomicU64>,
}

impl Watcher {
    /// Follows what there was at the [beginning](Watcher::begin), until it has heard of the end, or cannot within `limit` after that is known.
    pub async fn run(mut self, mut heard: Heard, limit: Duration) -> Heard {
        let mut known_at: Option<Instant> = None;
        loop {
            let end = self.end.load(Ordering::Relaxed);
            if heard.upto >= end {
                return heard;
            }
            if end < u64::MAX && known_at.get_or_insert_with(Instant::now).elapsed() > limit {
                heard
                    .odd
                    .insert(format!("revision {end} is not heard of within {limit:?}; the last was {}", heard.upto));
                return heard;
            }
            if let Err(why) = self.follow(&mut heard).await {
                heard.odd.insert(why);
                return heard;
            }
            // At another one, which may know more or less than this one did.
            self.server = (self.server + 1) % self.remotes.len();
            heard.resumed += 1;
        }
    }

    fn api(&self) -> Api<ConfigMap> {
        Api::default_namespaced(self.remotes[self.server].client().clone())
    }

    /// What is there at the beginning, before anybody else does anything.
    pub async fn begin(&mut self) -> Heard {
        loop {
            let listed = tokio::time::timeout(PATIENCE, self.api().list(&ListParams::default().labels(LABEL))).await;
            if let Ok(Ok(list)) = listed
                && let Some(revision) = list.metadata.resource_version.as_ref().and_then(|text| text.parse().ok())
            {
                let there = list.items.iter().filter_map(|map| Some((map.name_any(), value_in(map)?))).collect();
                return Heard { from: revision, upto: revision, there, ..Heard::default() };
            }
            self.server = (self.server + 1) % self.remotes.len();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// One watch, from where the last one ended; an error when it can never go on.
    async fn follow(&self, heard: &mut Heard) -> Result<(), String> {
        let (api, params) = (self.api(), WatchParams::default().labels(LABEL).timeout(LASTS));
        let since = heard.upto.to_string();
        let began = tokio::time::timeout(PATIENCE, api.watch(&params, &since)).await;
        let Ok(Ok(stream)) = began else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            return match began {
                Ok(Err(kube::Error::Api(status))) if status.code == 410 => {
                    Err(format!("revision {since} is forgotten: {status}"))
                }
                _ => Ok(()),
            };
        };
        let mut stream = std::pin::pin!(stream);
        while let Ok(Some(event)) = tokio::time::timeout(SILENCE, stream.next()).await {
            let (change, map) = match event {
                Ok(WatchEvent::Added(map)) => (Change::Added, map),
                Ok(WatchEvent::Modified(map)) => (Change::Modified, map),
                Ok(WatchEvent::Deleted(map)) => (Change::Deleted, map),
                Ok(WatchEvent::Bookmark(bookmark)) => {
                    match bookmark.metadata.resource_version.parse() {
                        Ok(revision) => {
                            heard.bookmarks.push((heard.events.len(), revision));
                            heard.upto = heard.upto.max(revision);
                        }
                        Err(_) => drop(
                            heard
                                .odd
                                .insert(format!("a bookmark of revision {:?}", bookmark.metadata.resource_version)),
                        ),
                    }
                    continue;
                }
                Ok(WatchEvent::Error(status)) if status.code == 410 => {
                    return Err(format!("revision {since} is forgotten: {status}"));
                }
                Ok(WatchEvent::Error(_)) | Err(_) => return Ok(()),
            };
            match (revision_of(&map), value_in(&map)) {
                (Some(revision), Some(value)) => {
                    heard.events.push(Event { revision, change, name: map.name_any(), value });
                    heard.upto = heard.upto.max(revision);
                }
                _ => drop(heard.odd.insert(format!("an event without revision or value: {map:?}"))),
            }
            if heard.upto >= self.end.load(Ordering::Relaxed) {
                break;
            }
        }
        Ok(())
    }
}

/// Whatever cannot be, of what the watchers heard, beside what clients were told; nothing when all is well.
pub fn wrong(all: &[Heard], records: &[Record], refused: &BTreeMap<Value, String>) -> Vec<String> {
    let mut wrong = Vec::new();
    for (number, heard) in all.iter().enumerate() {
        wrong.extend(heard.odd.iter().map(|odd| format!("watcher {number}: {odd}")));
        wrong.extend(out_of_order(heard).into_iter().map(|why| format!("watcher {number}: {why}")));
        wrong.extend(out_of_step(heard).into_iter().map(|why| format!("watcher {number}: {why}")));
    }
    wrong.extend(incomplete(all));
    wrong.extend(untrue(all, records, refused));
    wrong
}

/// Events that are not above all that was heard before, bookmarks among it.
fn out_of_order(heard: &Heard) -> Vec<String> {
    let mut wrong = Vec::new();
    let (mut last, mut bookmarks) = (heard.from, heard.bookmarks.iter().peekable());
    for (at, event) in heard.events.iter().enumerate() {
        while let Some((_, revision)) = bookmarks.next_if(|(before, _)| *before <= at) {
            if *revision < last {
                wrong.push(format!("a bookmark of revision {revision} came after revision {last}"));
            }
            last = last.max(*revision);
        }
        if event.revision <= last {
            wrong.push(format!("{event:?} came after revision {last}"));
        }
        last = last.max(event.revision);
    }
    wrong
}

/// Events that do not follow from those before: an object is added when it is not there, and changed or deleted when it is.
fn out_of_step(heard: &Heard) -> Vec<String> {
    let mut there = heard.there.clone();
    let mut wrong = Vec::new();
    for event in &heard.events {
        let before = match event.change {
            Change::Deleted => there.remove(&event.name),
            Change::Added | Change::Modified => there.insert(event.name.clone(), event.value),
        };
        let fits = match (event.change, before) {
            (Change::Added, before) => before.is_none(),
            (Change::Modified, before) => before.is_some_and(|before| before != event.value),
            (Change::Deleted, before) => before == Some(event.value),
        };
        if !fits {
            wrong.push(format!("{event:?} came when {before:?} was there"));
        }
    }
    wrong
}

/// Events that one heard and another did not, although it heard what came before and after.
fn incomplete(all: &[Heard]) -> Vec<String> {
    let union: BTreeSet<&Event> = all.iter().flat_map(|heard| &heard.events).collect();
    let mut wrong = Vec::new();
    for (number, heard) in all.iter().enumerate() {
        let own: BTreeSet<&Event> = heard.events.iter().collect();
        let missing =
            union.difference(&own).filter(|event| event.revision > heard.from && event.revision <= heard.upto);
        wrong.extend(missing.map(|event| format!("watcher {number} did not hear of {event:?}")));
    }
    wrong
}

/// What was acknowledged and not heard of, and what was heard of and never written.
fn untrue(all: &[Heard], records: &[Record], refused: &BTreeMap<Value, String>) -> Vec<String> {
    let mut wrong = Vec::new();
    let events: BTreeMap<u64, &Event> =
        all.iter().flat_map(|heard| heard.events.iter().map(|event| (event.revision, event))).collect();
    let (from, upto) =
        (all.iter().map(|heard| heard.from).max().unwrap_or(0), all.iter().map(|heard| heard.upto).min().unwrap_or(0));
    let mut possible: BTreeMap<Value, (&Record, bool)> = BTreeMap::new();
    // Of each object those that were acknowledged, and those that may have been done. No revision is told of them.
    let mut deletions: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for record in records {
        let (kind, outcome) = (record.operation.kind, record.operation.outcome);
        match (kind, outcome) {
            (Kind::Delete, Outcome::Done) => deletions.entry(&record.key).or_default().0 += 1,
            (Kind::Delete, Outcome::Unknown) => deletions.entry(&record.key).or_default().1 += 1,
            _ => (),
        }
        let Some(value) = written(kind) else { continue };
        possible.insert(value, (record, matches!(outcome, Outcome::Done | Outcome::Unknown)));
        let Some(revision) = record.revision.filter(|_| outcome == Outcome::Done) else { continue };
        if revision <= from || revision > upto {
            continue;
        }
        let change = if matches!(kind, Kind::Create(_)) { Change::Added } else { Change::Modified };
        let expected = Event { revision, change, name: record.key.clone(), value };
        match events.get(&revision) {
            Some(event) if **event == expected => {}
            heard => wrong.push(format!("{expected:?} was acknowledged, and heard was {heard:?}")),
        }
    }
    let mut times: BTreeMap<Value, usize> = BTreeMap::new();
    for event in events.values() {
        if event.change == Change::Deleted {
            match deletions.get_mut(event.name.as_str()) {
                Some((done @ 1.., _)) => *done -= 1,
                Some((_, perhaps @ 1..)) => *perhaps -= 1,
                _ => wrong.push(format!("{event:?} was heard, and nobody deleted it")),
            }
            continue;
        }
        *times.entry(event.value).or_default() += 1;
        match (possible.get(&event.value), refused.get(&event.value)) {
            (_, Some(said)) => {
                wrong.push(format!("{event:?} was heard, of which was said that nothing was done: {said}"))
            }
            (Some((record, true)), None) if record.key == event.name => {}
            (Some((record, _)), None) => wrong.push(format!("{event:?} was heard, but: {}", record.operation)),
            (None, None) => wrong.push(format!("{event:?} was heard, and nobody wrote it")),
        }
    }
    let unheard = deletions.iter().filter(|(_, (done, _))| *done > 0);
    wrong.extend(
        unheard.map(|(name, (done, _))| format!("{done} deletions of {name} were acknowledged, and not heard of")),
    );
    wrong.extend(
        times
            .iter()
            .filter(|(_, times)| **times > 1)
            .map(|(value, times)| format!("{value} was written {times} times")),
    );
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linearizability::Operation;

    fn event(revision: u64, change: Change, value: Value) -> Event {
        Event { revision, change, name: "a".into(), value }
    }

    fn heard(events: &[Event]) -> Heard {
        Heard { from: 1, upto: 9, events: events.to_vec(), ..Heard::default() }
    }

    fn record(kind: Kind, outcome: Outcome, revision: u64) -> Record {
        let operation = Operation { client: 0, kind, called: 0, returned: 1, outcome };
        Record { key: "a".into(), operation, server: 0, revision: Some(revision) }
    }

    #[test]
    fn what_cannot_be_heard_is_told() {
        use Change::{Added, Deleted, Modified};
        use Outcome::{Conflict, Done};
        let whole = [event(3, Added, 1), event(5, Modified, 2), event(7, Deleted, 2)];
        let records = [
            record(Kind::Create(1), Done, 3),
            record(Kind::Patch(2), Done, 5),
            record(Kind::Delete, Done, 0),
            record(Kind::Patch(4), Conflict, 0),
        ];
        let none = BTreeMap::new();
        let first_wrong =
            |all: &[Heard], records: &[Record], refused: &BTreeMap<_, _>| wrong(all, records, refused).join("\n");
        assert_eq!(first_wrong(&[heard(&whole), heard(&whole)], &records, &none), "");
        let [added, modified, deleted] = whole.clone();
        let bookmarked = |before, revision| Heard { bookmarks: vec![(before, revision)], ..heard(&whole) };
        for (expected, all, records) in [
            ("watcher 1 did not hear of", vec![heard(&whole), heard(&[added.clone(), deleted.clone()])], &records[..]),
            ("came after revision 5", vec![heard(&[added.clone(), modified.clone(), added.clone()])], &records),
            ("came after revision 6", vec![bookmarked(1, 6)], &records),
            ("a bookmark of revision 4 came after revision 5", vec![bookmarked(2, 4)], &records),
            ("came when None was there", vec![heard(&[modified.clone(), deleted.clone()])], &records),
            ("was acknowledged, and heard was None", vec![heard(&whole[..1])], &records),
            ("nobody deleted it", vec![heard(&whole)], &records[..2]),
            ("1 deletions of a were acknowledged, and not heard of", vec![heard(&whole[..2])], &records),
            ("nobody wrote it", vec![heard(&[event(3, Added, 8)])], &records),
            ("but: client 0 Patch(4)", vec![heard(&[added, event(5, Modified, 4)])], &records),
            (
                "2 was written 2 times",
                vec![heard(&[&whole[..2], &[event(6, Modified, 1), event(8, Modified, 2)]].concat())],
                &records,
            ),
        ] {
            let said = first_wrong(&all, records, &none);
            assert!(said.contains(expected), "{expected}: {said}");
        }
        let refused = BTreeMap::from([(2, "503".to_owned())]);
        assert!(first_wrong(&[heard(&whole)], &records, &refused).contains("nothing was done: 503"));
    }
}
