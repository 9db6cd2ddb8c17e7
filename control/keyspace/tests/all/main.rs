//! The keyspace from outside: what callers were promised, also over crashes and with several members.

mod backup;
mod basics;
mod crash;
mod group;
mod history;
mod recover;
mod sealing;
mod watch;

use bytes::Bytes;
use coracle_keyspace::{Config, Guard, Key, Keyspace, Op, Value};

/// A small record in `things`.
fn put(name: &str, text: &str, guard: Guard) -> Op {
    let value = Value { bytes: Bytes::copy_from_slice(text.as_bytes()), revision_at: text.len() };
    Op::Put { key: Key::new("things", name), value, guard }
}

fn delete(name: &str) -> Op {
    Op::Delete { key: Key::new("things", name), guard: Guard::Present }
}

async fn open(dir: &tempfile::TempDir) -> Keyspace {
    Keyspace::open(Config::new(dir.path())).await.unwrap()
}
