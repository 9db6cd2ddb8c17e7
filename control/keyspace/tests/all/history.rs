//! The past on disk: behind the memory, over restarts and kills, and when it is damaged.
//!
//! Every event says what was there before it. A reader that applies events to what it has, and finds each time what the
//! event says, and at the end what the keyspace has, has missed nothing and heard nothing twice: that is what is compared.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use coracle_keyspace::{Config, EventKind, Guard, Keyspace, Retention, Revision, WatchEnded};

use crate::{delete, open, put};

/// Names the victim's directory, and makes a run of this binary the victim.
const VICTIM: &str = "CORACLE_HISTORY_VICTIM";
const KILLS: u64 = 3;
const WRITERS: usize = 8;

/// Records as somebody who watches knows them.
type Model = BTreeMap<String, (u64, Bytes)>;

/// Less stays in memory than is written here.
fn config(dir: &std::path::Path) -> Config {
    let retention = Retention { age: Duration::from_secs(300), bytes: 1 << 30, memory: 1 << 20 };
    Config { retention, ..Config::new(dir) }
}

fn now(keyspace: &Keyspace) -> Model {
    let snapshot = keyspace.snapshot("things");
    let one = |record: &std::sync::Arc<coracle_keyspace::Record>| (record.revision.get(), record.bytes.clone());
    snapshot.records.iter().map(|(name, record)| (name.to_string(), one(record))).collect()
}

/// Follows `model`, which is of `after`, up to the present. Returns the revision and the content of every event.
async fn follow(keyspace: &Keyspace, model: &mut Model, after: Revision) -> Vec<(u64, String, Bytes)> {
    let mut watcher = keyspace.watch("things", after).unwrap();
    let mut all: Vec<(u64, String, Bytes)> = Vec::new();
    let end = keyspace.revision();
    while watcher.revision() < end {
        let batch =
            tokio::time::timeout(Duration::from_secs(20), watcher.next()).await.expect("events in time").unwrap();
        for event in &batch.events {
            let (name, revision) = (event.record.key.name.to_string(), event.record.revision.get());
            assert!(all.last().is_none_or(|(last, ..)| *last <= revision) && revision > after.get());
            let before = event.previous.as_ref().map(|record| (record.revision.get(), record.bytes.clone()));
            assert!(before.as_ref() == model.get(&name), "before {revision}, {name} was something else");
            match event.kind {
                EventKind::Put => model.insert(name.clone(), (revision, event.record.bytes.clone())),
                EventKind::Delete => model.remove(&name),
            };
            all.push((revision, name, event.record.bytes.clone()));
        }
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn victim() {
    let Ok(dir) = std::env::var(VICTIM) else { return };
    let keyspace = Keyspace::open(config(dir.as_ref())).await.unwrap();
    let writers = (0..WRITERS).map(|writer| {
        let keyspace = keyspace.clone();
        tokio::spawn(async move {
            // Large now and then, so that checkpoints are written and the log is cut while it is being killed.
            let texts = ["small".to_owned(), "L".repeat(100 << 10)];
            for at in 0_u64.. {
                let text = format!("{}-{writer}-{at}-", texts[usize::from(at % 8 == 7)]);
                let name = format!("{writer}-{}", at % 5);
                let ops = if at % 11 == 10 && keyspace.get("things", &name).is_some() {
                    vec![delete(&name)]
                } else {
                    vec![put(&name, &text, Guard::None), put(&format!("{writer}-twin"), &text, Guard::None)]
                };
                let done = keyspace.transact(ops).await.unwrap();
                let line = format!("done {name} {} {}\n", done.revision, done.records[0].bytes.len());
                std::io::stdout().lock().write_all(line.as_bytes()).unwrap();
            }
        })
    });
    futures::future::join_all(writers).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_from_before_a_kill_hears_exactly_what_happened() {
    let dir = tempfile::tempdir().unwrap();
    // What a client that watched from the beginning, or since the last start, would know.
    let (mut since, mut model) = (Revision::default(), Model::new());
    let (mut answered, mut rounds) = (BTreeMap::new(), Vec::new());
    for round in 0..KILLS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["history::victim", "--exact", "--nocapture", "--test-threads=1"])
            .env(VICTIM, dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap()).lines();
        let said = tokio::task::spawn_blocking(move || {
            // Enough for checkpoints (16 MiB of log), and never the same moment.
            let mut lines = output.map_while(Result::ok).filter(|line| line.starts_with("done ")).fuse();
            let mut some: Vec<String> = lines.by_ref().take(2_000 + 333 * round as usize).collect();
            child.kill().unwrap();
            child.wait().unwrap();
            some.extend(lines);
            some
        });
        for line in said.await.unwrap() {
            let parts: Vec<&str> = line.split(' ').collect();
            // The last line may be cut.
            if let [_, name, revision, length] = parts[..]
                && line.len() > 8
                && let (Ok(revision), Ok(length)) = (revision.parse::<u64>(), length.parse::<usize>())
            {
                answered.insert(revision, (name.to_owned(), length));
            }
        }
        let keyspace = Keyspace::open(config(dir.path())).await.unwrap();
        let mut from_the_beginning = Model::new();
        let all = follow(&keyspace, &mut from_the_beginning, Revision::default()).await;
        let missed = follow(&keyspace, &mut model, since).await;
        assert!(now(&keyspace) == model && model == from_the_beginning, "round {round}");
        assert!(all.ends_with(&missed), "round {round}");
        let told: BTreeMap<u64, &(u64, String, Bytes)> = all.iter().rev().map(|event| (event.0, event)).collect();
        // The last one may be cut in the middle of its length.
        let last = answered.keys().next_back().copied();
        for (revision, (name, length)) in &answered {
            let event = told.get(revision);
            let same = event.is_some_and(|e| e.1 == *name && (e.2.len() == *length || Some(*revision) == last));
            assert!(same, "round {round}: {name} was written at {revision}");
        }
        rounds.push(missed.len());
        since = keyspace.revision();
        keyspace.shutdown().await;
    }
    assert!(rounds.iter().all(|events| *events > 1_000), "{rounds:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_watcher_hears_everything_from_disk_while_others_write() {
    let dir = tempfile::tempdir().unwrap();
    let keyspace = Keyspace::open(config(dir.path())).await.unwrap();
    let start = keyspace.revision();
    let writing = {
        let keyspace = keyspace.clone();
        tokio::spawn(async move {
            for at in 0..400 {
                keyspace.transact(vec![put(&format!("{}", at % 7), &format!("{at}-"), Guard::None)]).await.unwrap();
                if at % 16 == 0 {
                    keyspace.flush_history().await;
                }
            }
        })
    };
    let mut model = Model::new();
    let mut after = start;
    while !writing.is_finished() {
        let upto = follow(&keyspace, &mut model, after).await.last().map_or(after.get(), |event| event.0);
        after = Revision::new(upto);
        tokio::task::yield_now().await;
    }
    writing.await.unwrap();
    follow(&keyspace, &mut model, after).await;
    assert!(model == now(&keyspace));
    keyspace.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_past_is_the_same_from_memory_from_disk_and_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let mut states: BTreeMap<u64, Model> = BTreeMap::new();
    let keyspace = open(&dir).await;
    for at in 0..120_usize {
        let name = format!("k{}", at * 7 % 5);
        let ops = if at % 4 == 3 && keyspace.get("things", &name).is_some() {
            vec![delete(&name)]
        } else {
            vec![put(&name, &format!("{at}-"), Guard::None), put("twin", &format!("{at}-"), Guard::None)]
        };
        let revision = keyspace.transact(ops).await.unwrap().revision;
        states.insert(revision.get(), now(&keyspace));
    }
    let same = async |keyspace: &Keyspace, from: &str| {
        for (revision, expected) in &states {
            let snapshot = keyspace.snapshot_at("things", Revision::new(*revision)).await.unwrap();
            let records = snapshot.records.iter();
            let found: Model = records.map(|(n, r)| (n.to_string(), (r.revision.get(), r.bytes.clone()))).collect();
            assert!(found == *expected, "{revision} {from}");
        }
    };
    same(&keyspace, "from memory").await;
    keyspace.shutdown().await;
    let keyspace = Keyspace::open(config(dir.path())).await.unwrap();
    same(&keyspace, "from the log").await;
    keyspace.flush_history().await;
    same(&keyspace, "from disk").await;
    keyspace.shutdown().await;
    let keyspace = Keyspace::open(config(dir.path())).await.unwrap();
    same(&keyspace, "after a restart").await;
    keyspace.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_ends_a_watch_with_forgotten_and_is_remembered() {
    let dir = tempfile::tempdir().unwrap();
    let keyspace = Keyspace::open(config(dir.path())).await.unwrap();
    let start = keyspace.revision();
    for at in 0..50 {
        keyspace.transact(vec![put("a", &format!("{at}-"), Guard::None)]).await.unwrap();
    }
    keyspace.flush_history().await;
    for entry in std::fs::read_dir(dir.path().join("history")).unwrap() {
        let path = entry.unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(path, bytes).unwrap();
    }
    let ended = keyspace.watch("things", start).unwrap().next().await.unwrap_err();
    assert!(matches!(ended, WatchEnded::Compacted(oldest) if oldest.0 > start), "{ended}");
    // Whoever comes next is told at once, and from there on everything is there.
    let oldest = keyspace.watch("things", start).unwrap_err().0;
    let mut watcher = keyspace.watch("things", oldest).unwrap();
    let later = keyspace.transact(vec![put("b", "x", Guard::None)]).await.unwrap().revision;
    let mut heard = Vec::new();
    while heard.last() != Some(&later) {
        heard.extend(watcher.next().await.unwrap().events.iter().map(|event| event.record.revision));
    }
    assert_eq!(heard, (oldest.get() + 1..=later.get()).map(Revision::new).collect::<Vec<_>>());
    keyspace.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_history_that_cannot_be_written_shortens_the_window_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let (history, aside) = (dir.path().join("history"), dir.path().join("aside"));
    let retention = Retention { age: Duration::from_secs(300), bytes: 1 << 20, memory: 4_000 };
    let keyspace = Keyspace::open(Config { retention, ..Config::new(dir.path()) }).await.unwrap();
    let start = keyspace.revision();
    let write = async |count: usize| {
        for at in 0..count {
            keyspace.transact(vec![put("a", &format!("{at}-"), Guard::None)]).await.unwrap();
        }
        keyspace.flush_history().await;
    };
    // Everything that can be followed, from the oldest revision that is not refused.
    let window = async |keyspace: &Keyspace| {
        let oldest = keyspace.watch("things", start).map_or_else(|compacted| compacted.0, |_| start);
        let mut watcher = keyspace.watch("things", oldest).unwrap();
        let mut heard = Vec::new();
        while watcher.revision() < keyspace.revision() {
            let batch = tokio::time::timeout(Duration::from_secs(10), watcher.next()).await.expect("in time").unwrap();
            heard.extend(batch.events.iter().map(|event| event.record.revision.get()));
        }
        // After a start the present is an entry of the leader's own, which changes no record.
        let last = keyspace.get("things", "a").unwrap().revision.get();
        assert_eq!(heard, (oldest.get() + 1..=last).collect::<Vec<_>>());
        heard.len()
    };
    write(10).await;
    assert_eq!(window(&keyspace).await, 10);
    std::fs::rename(&history, &aside).unwrap();
    write(200).await;
    // What is in memory, four times what is usual.
    let short = window(&keyspace).await;
    assert!((40..=64).contains(&short), "{short}");
    std::fs::rename(&aside, &history).unwrap();
    write(0).await;
    write(100).await;
    let again = window(&keyspace).await;
    assert_eq!(again, short + 100, "it is written again, and nothing more is lost");
    keyspace.shutdown().await;
    let keyspace = Keyspace::open(config(dir.path())).await.unwrap();
    assert!(window(&keyspace).await >= again);
    keyspace.shutdown().await;
}
