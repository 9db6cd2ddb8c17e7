//! What is on the disk, what becomes of a frame that is not what it should be, and which keys go.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;

use super::*;
use crate::record::{Guard, Key, Op, Revision, Value};
use crate::state::State;
use crate::{Config, Restoring};

/// Nothing of it repeats, so that no compression takes it apart.
const PLAIN: &str = "Zq7RmV2xK9tLw4Ns8Yc1";
/// [`PLAIN`] in base64, as a Secret has it, at one of three places.
const ENCODED: &str = "WnE3Um1WMnhLOXRMdzROczhZYzE=";

fn root() -> SecretKey {
    SecretKey::derive(b"root", "test")
}

fn put(collection: &str, name: &str, text: &str, guard: Guard) -> Op {
    let value = Value { bytes: Bytes::from(format!("{{\"rv\":\"\",\"data\":\"{text}\"}}")), revision_at: 7 };
    Op::Put { key: Key::new(collection, name), value, guard }
}

async fn open(dir: &Path, root: Option<SecretKey>, remembered: Duration) -> Keyspace {
    let mut config = Config { root, ..Config::new(dir) };
    config.retention.age = remembered;
    let keyspace = Keyspace::open(config).await.unwrap();
    keyspace.introduce("boat", &[]).await.unwrap();
    keyspace.begin_sealing().await;
    keyspace
}

async fn until<T>(what: &str, mut done: impl AsyncFnMut() -> Option<T>) -> T {
    let tries = async {
        loop {
            if let Some(done) = done().await {
                return done;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), tries).await.unwrap_or_else(|_| panic!("{what}: it never came"))
}

/// Files below `dir` in which `text` stands.
fn holding(dir: &Path, text: &str) -> Vec<String> {
    let (mut left, mut found, mut files) = (vec![dir.to_owned()], Vec::new(), 0);
    while let Some(path) = left.pop() {
        if path.is_dir() {
            left.extend(std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
            continue;
        }
        files += 1;
        let bytes = std::fs::read(&path).unwrap();
        if bytes.windows(text.len()).any(|window| window == text.as_bytes()) {
            found.push(path.strip_prefix(dir).unwrap().display().to_string());
        }
    }
    assert!(files >= 4, "a log and a checkpoint, at least");
    found
}

fn text(keyspace: &Keyspace, name: &str) -> String {
    let record = keyspace.get("secrets", name).unwrap();
    assert_eq!(record.why_unreadable(), None);
    String::from_utf8_lossy(&record.bytes).into_owned()
}

/// Whatever is written of a record is looked through: log, checkpoint, history and what others are sent. Without a root key
/// all of them hold it: so they are looked at.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_sealed_stands_nowhere_in_the_clear() {
    for (root, is_sealed) in [(Some(root()), true), (None, false)] {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path();
        let keyspace = open(dir, root.clone(), Duration::from_secs(360)).await;
        let before = keyspace.revision();
        for (name, guard) in [("a/one", Guard::Absent), ("a/one", Guard::Present), ("a/two", Guard::None)] {
            let done = keyspace.transact(vec![put("secrets", name, PLAIN, guard)]).await.unwrap();
            let expected = format!("{{\"rv\":\"{}\",\"data\":\"{PLAIN}\"}}", done.revision);
            assert_eq!(done.records[0].bytes, expected, "whoever wrote it is given it");
            assert_eq!(text(&keyspace, name), expected);
        }
        keyspace.transact(vec![put("secrets", "a/one", ENCODED, Guard::Present)]).await.unwrap();
        let delete = Op::Delete { key: Key::new("secrets", "a/two"), guard: Guard::Present };
        let gone = keyspace.transact(vec![delete]).await.unwrap();
        assert!(String::from_utf8_lossy(&gone.records[0].bytes).contains(PLAIN), "its last content");
        let mut places = holding(dir, PLAIN);
        keyspace.flush_history().await;
        keyspace.0.member.checkpoint().await.unwrap();
        places.extend(holding(dir, PLAIN));
        places.extend(holding(dir, ENCODED));

        // A watch from before reads it back from the history.
        let mut watcher = keyspace.watch("secrets", before).unwrap();
        let mut told = Vec::new();
        while told.len() < 5 {
            let batch = tokio::time::timeout(Duration::from_secs(30), watcher.next()).await.unwrap().unwrap();
            told.extend(batch.events);
        }
        let contents: Vec<String> =
            told.iter().map(|event| String::from_utf8_lossy(&event.record.bytes).into_owned()).collect();
        assert!(contents[..3].iter().all(|content| content.contains(PLAIN)), "{contents:?}");
        assert!(contents[3].contains(ENCODED) && told[3].previous.as_ref().unwrap().why_unreadable().is_none());
        assert!(told.iter().all(|event| event.record.sealed_by().is_some() == is_sealed));
        let past = keyspace.snapshot_at("secrets", told[2].record.revision).await.unwrap();
        assert_eq!((past.records.len(), &past.records["a/one"].bytes), (2, &told[1].record.bytes));

        // What goes to another member, and into a backup.
        let whole = keyspace.whole();
        let parts: Vec<Vec<u8>> = whole.parts().collect();
        let sent = parts.concat();
        if sent.windows(ENCODED.len()).any(|window| window == ENCODED.as_bytes()) {
            places.push("backup".to_owned());
        }
        keyspace.shutdown().await;
        let again = open(dir, root.clone(), Duration::from_secs(360)).await;
        assert!(text(&again, "a/one").contains(ENCODED), "read back from the checkpoint");
        places.extend(holding(dir, PLAIN));
        again.shutdown().await;
        match is_sealed {
            true => assert_eq!(places, Vec::<String>::new()),
            false => {
                for expected in ["log/", "state.redb", "history/", "backup"] {
                    assert!(
                        places.iter().any(|place| place.starts_with(expected)),
                        "{expected} is not among {places:?}"
                    );
                }
            }
        }

        // A cluster that is made of the backup has it, with the same root key.
        let restored = temp.path().join("restored");
        let mut restoring = Restoring::new();
        parts.iter().for_each(|part| restoring.part(part).unwrap());
        restoring.finish(&restored, whole.revision()).await.unwrap();
        let restored = open(&restored, root, Duration::from_secs(360)).await;
        assert!(text(&restored, "a/one").contains(ENCODED));
        assert_eq!(restored.format(), Some(formats::SEALED), "an earlier version does not take it for something else");
        restored.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_key_takes_over_and_the_old_one_goes() {
    let temp = tempfile::tempdir().unwrap();
    let keyspace = open(temp.path(), Some(root()), Duration::from_millis(200)).await;
    let before = keyspace.revision();
    for at in 0..40 {
        keyspace
            .transact(vec![put("secrets", &format!("a/{at}"), &format!("{PLAIN}{at}"), Guard::Absent)])
            .await
            .unwrap();
    }
    keyspace.transact(vec![put("configmaps", "a/open", "x", Guard::Absent)]).await.unwrap();
    keyspace.flush_history().await;
    let sealing = keyspace.sealing();
    assert_eq!((sealing.key, sealing.records, sealing.unsettled), (Some(1), 40, 0));
    assert_eq!(keyspace.renew_key().await.unwrap(), 2);
    until("all is sealed under it", async || (keyspace.sealing().unsettled == 0).then_some(())).await;
    for at in 0..40 {
        assert!(text(&keyspace, &format!("a/{at}")).contains(&format!("{PLAIN}{at}\"")));
        assert_eq!(keyspace.get("secrets", &format!("a/{at}")).unwrap().sealed_by(), Some(2));
    }
    assert_eq!(keyspace.get("configmaps", "a/open").unwrap().sealed_by(), None);
    until("the old key is gone", async || keyspace.sealing().older.is_empty().then_some(())).await;
    // What is only under that is forgotten, and said to be.
    keyspace.flush_history().await;
    let told = match keyspace.watch("secrets", before) {
        Ok(mut watcher) => tokio::time::timeout(Duration::from_secs(30), watcher.next()).await.unwrap().map(drop),
        Err(compacted) => Err(compacted.into()),
    };
    assert!(matches!(told, Err(crate::WatchEnded::Compacted(_))), "{told:?}");
    // A key is never given the number of one that is gone.
    assert_eq!(keyspace.renew_key().await.unwrap(), 3);
    // Other collections, by what is said, and back.
    let chosen = |names: &[&str]| names.iter().map(ToString::to_string).collect::<BTreeSet<_>>();
    until("the third took over", async || (keyspace.sealing().unsettled == 0).then_some(())).await;
    keyspace.seal_collections(&chosen(&["secrets", "configmaps"])).await.unwrap();
    until("it is sealed", async || keyspace.get("configmaps", "a/open").unwrap().sealed_by()).await;
    keyspace.seal_collections(&chosen(&["secrets"])).await.unwrap();
    until("it is open", async || keyspace.get("configmaps", "a/open").unwrap().sealed_by().is_none().then_some(()))
        .await;
    for wrong in [&["coracle keys"][..], &["coracle group"], &["a b"], &[""]] {
        assert!(keyspace.seal_collections(&chosen(wrong)).await.is_err(), "{wrong:?}");
    }
    keyspace.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_stored_open_is_sealed_when_all_know_how_and_a_cut_rotation_goes_on() {
    let temp = tempfile::tempdir().unwrap();
    // A version that does not seal.
    let old = Config { formats: crate::Formats::FIRST, ..Config::new(temp.path()) };
    let keyspace = Keyspace::open(old).await.unwrap();
    keyspace.introduce("boat", &[]).await.unwrap();
    for at in 0..20 {
        keyspace.transact(vec![put("secrets", &format!("a/{at}"), PLAIN, Guard::Absent)]).await.unwrap();
    }
    assert_eq!(keyspace.format(), Some(2));
    let held_back: Vec<_> = keyspace.not_sealing().into_iter().map(|member| member.member).collect();
    assert_eq!((held_back, keyspace.whole().key(), keyspace.whole().open()), (vec![1], None, 20));
    keyspace.shutdown().await;
    let all_under = async |keyspace: &Keyspace, key: u64| {
        until("all is sealed", async || (keyspace.sealing().unsettled == 0).then_some(())).await;
        assert_eq!(keyspace.sealing().key, Some(key));
        for at in 0..20 {
            assert!(text(keyspace, &format!("a/{at}")).contains(PLAIN));
            assert_eq!(keyspace.get("secrets", &format!("a/{at}")).unwrap().sealed_by(), Some(key));
        }
    };
    let keyspace = open(temp.path(), Some(root()), Duration::from_secs(360)).await;
    all_under(&keyspace, 1).await;
    assert_eq!((keyspace.not_sealing().len(), keyspace.whole().key(), keyspace.whole().open()), (0, Some(1), 0));
    // Killed as soon as the new key is there.
    keyspace.renew_key().await.unwrap();
    keyspace.abandon().await;
    let keyspace = open(temp.path(), Some(root()), Duration::from_secs(360)).await;
    all_under(&keyspace, 2).await;
    keyspace.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_root_key_nothing_starts_and_nothing_is_changed() {
    let temp = tempfile::tempdir().unwrap();
    let keyspace = open(temp.path(), Some(root()), Duration::from_secs(360)).await;
    keyspace.transact(vec![put("secrets", "a/one", PLAIN, Guard::Absent)]).await.unwrap();
    let refused = async |why: &str| {
        let other = Config { root: Some(SecretKey::generate()), ..Config::new(temp.path()) };
        let error = Keyspace::open(other).await.err().unwrap_or_else(|| panic!("it is refused: {why}"));
        let said = format!("{error}: {}", std::error::Error::source(&error).unwrap());
        assert!(said.contains("encryption key 1 cannot be opened") && said.contains("pki/ca.key"), "{said}");
    };
    // Once the key is in the log only, once in the checkpoint.
    keyspace.abandon().await;
    refused("the log").await;
    let keyspace = open(temp.path(), Some(root()), Duration::from_secs(360)).await;
    keyspace.0.member.checkpoint().await.unwrap();
    keyspace.shutdown().await;
    refused("the checkpoint").await;
    let keyspace = open(temp.path(), Some(root()), Duration::from_secs(360)).await;
    assert!(text(&keyspace, "a/one").contains(PLAIN));
    keyspace.shutdown().await;
}

/// A frame in another's place, one with a wrong bit, and one of a key that was never there are told, and others are read.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_what_was_sealed_is_an_error_and_no_empty_content() {
    let temp = tempfile::tempdir().unwrap();
    let keyspace = open(temp.path(), Some(root()), Duration::from_secs(360)).await;
    keyspace.transact(vec![put("secrets", "a/one", PLAIN, Guard::Absent)]).await.unwrap();
    let frame = keyspace.get("secrets", "a/one").unwrap().stored().0.clone();
    let as_it_is = |name: &str, bytes: Vec<u8>| {
        let value = Value { bytes: bytes.into(), revision_at: 0 };
        vec![Op::Put { key: Key::new("secrets", name), value, guard: Guard::None }]
    };
    let mut wrong = frame.to_vec();
    *wrong.last_mut().unwrap() ^= 1;
    for (name, bytes) in [("a/swapped", frame.to_vec()), ("a/wrong", wrong), ("a/cut", frame[..30].to_vec())] {
        keyspace.0.member.propose_unchecked(as_it_is(name, bytes)).await.unwrap().unwrap();
        let record = keyspace.get("secrets", name).unwrap();
        let why = record.why_unreadable().unwrap();
        assert!(why.contains("encryption key 1") && why.contains("restore the object"), "{why}");
        assert_eq!(record.stored().0, &record.bytes, "nothing else is shown");
    }
    // Nothing is written there in the clear or under another key, whoever proposes it.
    let mut other = frame.to_vec();
    other[8] = 9;
    for bytes in [b"{}".to_vec(), other] {
        assert!(keyspace.0.member.propose_unchecked(as_it_is("a/one", bytes)).await.unwrap().is_err());
    }
    let sealing = keyspace.sealing();
    assert_eq!((sealing.unreadable_count, sealing.unreadable.len(), sealing.unsettled), (3, 3, 0));
    assert!(sealing.unreadable[0].0.starts_with("secrets a/"), "{sealing:?}");
    // The others go on, over a rotation, too; what cannot be read stays as it is, with its key.
    assert_eq!(keyspace.renew_key().await.unwrap(), 2);
    until("the good one is sealed anew", async || (keyspace.sealing().unsettled == 0).then_some(())).await;
    assert!(text(&keyspace, "a/one").contains(PLAIN));
    assert_eq!(keyspace.sealing().older, [1]);
    keyspace.0.member.checkpoint().await.unwrap();
    keyspace.shutdown().await;
    let again = open(temp.path(), Some(root()), Duration::from_secs(360)).await;
    assert_eq!(again.sealing().unreadable_count, 3);
    assert!(text(&again, "a/one").contains(PLAIN));
    let delete = Op::Delete { key: Key::new("secrets", "a/wrong"), guard: Guard::Present };
    again.transact(vec![delete]).await.unwrap();
    again.transact(vec![put("secrets", "a/cut", PLAIN, Guard::Present)]).await.unwrap();
    assert!(text(&again, "a/cut").contains(PLAIN) && again.sealing().unreadable_count == 1);
    again.shutdown().await;
}

/// One look of the duty, as it goes about it itself at the same time.
async fn look(keyspace: &Keyspace) -> Option<Duration> {
    let member = &keyspace.0.member;
    let mut lead = keyspace.lead();
    let lead = lead.wait_for(Option::is_some).await.unwrap().unwrap();
    duty::look(member, lead, Duration::from_millis(200), &mut None, &mut false).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_an_unreadable_record_held_goes_after_it() {
    let temp = tempfile::tempdir().unwrap();
    let keyspace = open(temp.path(), Some(root()), Duration::from_millis(200)).await;
    keyspace.transact(vec![put("secrets", "a/one", PLAIN, Guard::Absent)]).await.unwrap();
    let cut = keyspace.get("secrets", "a/one").unwrap().stored().0.slice(..30);
    let value = Value { bytes: cut, revision_at: 0 };
    let key = Key::new("secrets", "a/cut");
    let broken = Op::Put { key: key.clone(), value, guard: Guard::None };
    keyspace.0.member.propose_unchecked(vec![broken]).await.unwrap().unwrap();
    assert_eq!(keyspace.renew_key().await.unwrap(), 2);
    until("the good one is sealed anew", async || (keyspace.sealing().unsettled == 0).then_some(())).await;
    // It looks again, whatever says nothing.
    assert_eq!(look(&keyspace).await, Some(duty::AGAIN));
    assert_eq!(keyspace.sealing().older, [1]);
    keyspace.transact(vec![Op::Delete { key, guard: Guard::Present }]).await.unwrap();
    until("the old key is gone", async || keyspace.sealing().older.is_empty().then_some(())).await;
    assert_eq!(look(&keyspace).await, None, "nothing is left to look for");
    keyspace.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_sealed_anew_with_what_a_full_disk_keeps() {
    let temp = tempfile::tempdir().unwrap();
    let keyspace = open(temp.path(), Some(root()), Duration::from_secs(360)).await;
    for at in 0..20 {
        keyspace.transact(vec![put("secrets", &format!("a/{at}"), PLAIN, Guard::Absent)]).await.unwrap();
    }
    keyspace.0.member.set_short_of_space(true);
    assert_eq!(keyspace.renew_key().await.unwrap(), 2);
    assert_eq!(look(&keyspace).await, Some(duty::AGAIN));
    assert_eq!(keyspace.sealing().unsettled, 20);
    keyspace.0.member.set_short_of_space(false);
    until("all is sealed", async || (keyspace.sealing().unsettled == 0).then_some(())).await;
    keyspace.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sealed_counts_once_towards_the_bound() {
    let temp = tempfile::tempdir().unwrap();
    let keyspace = open(temp.path(), Some(root()), Duration::from_secs(360)).await;
    let content = PLAIN.repeat(500);
    for at in 0..10 {
        keyspace.transact(vec![put("configmaps", &format!("a/{at}"), &content, Guard::Absent)]).await.unwrap();
    }
    let before = keyspace.status().stored_bytes;
    let both = ["secrets", "configmaps"].map(str::to_owned).into();
    keyspace.seal_collections(&both).await.unwrap();
    until("all is sealed", async || (keyspace.sealing().unsettled == 0).then_some(())).await;
    let after = keyspace.status().stored_bytes;
    assert!(before > 10 * content.len() as u64 && after < before + 10 * 100, "{before} {after}");
    keyspace.0.member.checkpoint().await.unwrap();
    keyspace.shutdown().await;
    let again = open(temp.path(), Some(root()), Duration::from_secs(360)).await;
    // What the group writes of itself at a start is a number or two.
    let read_back = again.status().stored_bytes;
    assert!(read_back.abs_diff(after) < 100, "and the same when it is read back: {after} {read_back}");
    again.shutdown().await;
}

/// What the records of the keys say is compared with bytes of today: a change is a new version (docs/formats.md).
#[test]
fn the_records_of_keys_are_those_of_format_3() {
    let mut state = State::with_root(Config::new("").retention, Some(root()));
    let line = |name: &str, text: &str| crate::group::line(Key::new(KEYS, name), text, Guard::None);
    let sealed = "005345414c4544310000000000000000202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f\
                  cdf43c0bc30befd69334b5edadc26544a17fbe534712ee5c761521b5bc3fb815ec9da593f84e85999ff15fc097716aee\
                  96e0c1c32aa87580d21a3bf12f54fcae68f9669fe64ea6c7dc3f16162809c4b6";
    let ops = [line("key 1", &format!("1700000000 {sealed}")), line("current", "1 configmaps secrets")];
    state.apply(Revision::new(1), &ops, crate::host::now()).unwrap();
    let keys = state.keys();
    assert_eq!((keys.newest(), keys.broken()), (Some((1, 1_700_000_000)), None));
    assert_eq!((keys.wanted("secrets"), keys.wanted("configmaps"), keys.wanted("pods")), (Some(1), Some(1), None));
    let frame = key::from_hex(
        "005345414c4544310100000000000000404142434445464748494a4b4c4d4e4f505152535455565758595a5b5c5d5e5f\
             540ea2c020b5169f9d6522ac7f0eb840f7f416afba631238109675a1e1a75d38b597ed2b6794b87f",
    )
    .unwrap();
    let value = Value { bytes: frame.into(), revision_at: 0 };
    let put = Op::Put { key: Key::new("secrets", "a/one"), value, guard: Guard::None };
    let done = state.apply(Revision::new(2), &[put], crate::host::now()).unwrap();
    assert_eq!(done.records[0].bytes, "{\"rv\":\"2\",\"data\":\"x\"}");
    for (name, text) in [("current", "x secrets"), ("key 2", "1 zz"), ("key x", "1 00"), ("other", "1")] {
        let mut ring = Keyring::new(Some(root()));
        let bytes = Bytes::from(format!("{text}\n"));
        let value = Value { revision_at: bytes.len(), bytes };
        let record = Record::new(Key::new(KEYS, name), &value, Revision::new(1));
        ring.learn(name, Some(&record));
        let records = crate::state::Records::from_iter([(record.key.name.clone(), Arc::new(record))]);
        assert!(Keyring::read(Some(root()), Some(&records)).is_err(), "{name}: {text}");
    }
}
