//! Killed at any moment, nothing that was answered is lost. A kill is no power cut: what the kernel has in memory survives it;
//! what a disk does is simulated in `src/simulation/`.
//!
//! This test runs its own binary again as the victim, which writes from several tasks and says on its output what it was
//! answered. After each kill everything it said must be there with its content, and the revision may not be lower.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use coracle_keyspace::{Config, Guard, Keyspace};
use rand::Rng;

use crate::put;

/// Names the victim's directory, and makes a run of this binary the victim.
const VICTIM: &str = "CORACLE_KEYSPACE_VICTIM";
const KILLS: usize = 8;
const WRITERS: usize = 16;
/// Lengths of what is written.
const TEXTS: [usize; 2] = [5, 200 << 10];

fn text(length: usize) -> String {
    "x".repeat(length)
}

#[tokio::test(flavor = "multi_thread")]
async fn victim() {
    let Ok(dir) = std::env::var(VICTIM) else { return };
    let keyspace = Keyspace::open(Config::new(dir)).await.unwrap();
    let writers = (0..WRITERS).map(|writer| {
        let keyspace = keyspace.clone();
        tokio::spawn(async move {
            // Large now and then, so that segments end and the log is cut while it is being killed.
            let texts = TEXTS.map(text);
            for at in 0_u64.. {
                let text = &texts[usize::from(at % 16 == 15)];
                let name = format!("{writer}-{}", at % 5);
                let done = keyspace.transact(vec![put(&name, text, Guard::None)]).await.unwrap();
                let line = format!("{name} {} {}\n", done.revision, text.len());
                std::io::stdout().lock().write_all(line.as_bytes()).unwrap();
            }
        })
    });
    futures::future::join_all(writers).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_was_answered_is_lost_in_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let mut answered: HashMap<String, (u64, usize)> = HashMap::new();
    let mut revision = 0;
    for round in 0..KILLS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["crash::victim", "--exact", "--nocapture", "--test-threads=1"])
            .env(VICTIM, dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap()).lines();
        let said = tokio::task::spawn_blocking(move || {
            // The clock of the kill starts with the first answer, so that every round kills a victim at work.
            let mut lines: Vec<String> =
                output.by_ref().map_while(Result::ok).filter(|l| l.contains('-')).take(1).collect();
            let after = Duration::from_millis(rand::rng().random_range(1..1500));
            let killer = std::thread::spawn(move || {
                std::thread::sleep(after);
                child.kill().unwrap();
                child.wait().unwrap();
            });
            lines.extend(output.map_while(Result::ok));
            killer.join().unwrap();
            lines
        });
        for line in said.await.unwrap() {
            // The last line may be cut.
            let mut words = line.split(' ');
            let said =
                (words.next(), words.next().and_then(|r| r.parse().ok()), words.next().and_then(|l| l.parse().ok()));
            if let (Some(name), Some(revision), Some(length)) = said
                && TEXTS.contains(&length)
            {
                let known = answered.entry(name.to_owned()).or_default();
                *known = (*known).max((revision, length));
            }
        }
        let keyspace = Keyspace::open(Config::new(dir.path())).await.unwrap();
        let now = keyspace.revision().get();
        assert!(now >= revision, "round {round}: the revision went from {revision} to {now}");
        for (name, (revision, length)) in &answered {
            let record = keyspace.get("things", name).unwrap_or_else(|| panic!("round {round}: {name} is gone"));
            let found = record.revision.get();
            assert!(found >= *revision, "round {round}: {name} was written at {revision}, and is at {found}");
            assert!(found <= now, "round {round}: {name} is at {found} and the keyspace at {now}");
            // A later write may have been cut off before its answer: then its content is one of the two.
            let lengths = TEXTS.iter().filter(|text| found > *revision || *text == length);
            let mut right = lengths.map(|length| format!("{}{found}", text(*length)));
            assert!(right.any(|right| record.bytes == right), "round {round}: {name} at {found} has another content");
        }
        revision = now;
        keyspace.shutdown().await;
    }
    assert!(answered.len() >= WRITERS, "the victims hardly wrote: {answered:?}");
}
