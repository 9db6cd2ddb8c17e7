//! What every server says happened: its watches of what the invariants are about, followed over restarts, and judged as they come.
//!
//! A watch goes on where it was, at the same server or, when that says that it has forgotten, from a new list.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash as _, Hasher};
use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request};
use http_body_util::BodyExt as _;
use parking_lot::Mutex;
use serde_json::Value;

use crate::cluster::invariants::{State, watches};
use crate::cluster::wire::{Outcome, Way, ask, revision};
use crate::cluster::world::{SERVERS, World};
use crate::heard::{Heard, Span};
use crate::plants::Plant;

/// What is followed, where it is, and the collection that it is kept in.
pub const KINDS: [(&str, &str, &str); 3] = [
    ("pods", "/api/v1/pods", "pods"),
    ("replicasets", "/apis/apps/v1/replicasets", "replicasets.apps"),
    ("configmaps", "/api/v1/configmaps", "configmaps"),
];
/// How many seconds a watch that follows asks for.
const LIFE: u64 = 6;
/// How long a watch that follows may be without a word: bookmarks come more often.
const SILENT: Duration = Duration::from_secs(1);

/// A node that said that it is back: what was committed before it looked, and what ran there then.
pub struct Return {
    pub node: String,
    pub before: u64,
    pub running: BTreeSet<String>,
}

/// Everything that was heard.
#[derive(Default)]
pub struct History {
    pub heard: Mutex<BTreeMap<&'static str, Heard>>,
    /// What duties were told that they had written: the term of their lead, and the revision.
    pub duties: Mutex<Vec<(u64, u64)>>,
    /// What everybody else was told that it had written.
    pub others: Mutex<BTreeSet<u64>>,
    /// Who began to lead: at which revision, in which term.
    pub leads: Mutex<BTreeMap<u64, u64>>,
    /// When pods were first seen to be deleted, by uid.
    pub deleted: Mutex<BTreeMap<String, u64>>,
    pub returns: Mutex<Vec<Return>>,
    /// How often anything was judged, by invariant: one that judges nothing proves nothing.
    pub judged: Mutex<BTreeMap<&'static str, u64>>,
    /// What ReplicaSets wanted, by uid and revision; and how many pods they had.
    pub wanted: Mutex<BTreeMap<String, BTreeMap<u64, u64>>>,
    pub owned: Mutex<Vec<(u64, String, u64)>>,
}

impl History {
    /// A duty was told that it had written.
    pub fn duty_wrote(&self, term: u64, revision: u64) {
        self.duties.lock().push((term, revision));
    }

    /// A node said that it is back, and was believed.
    pub fn node_returned(&self, node: &str, before: u64, running: BTreeSet<String>) {
        self.returns.lock().push(Return { node: node.into(), before, running });
    }

    /// Something was judged.
    pub fn judges(&self, what: &'static str) {
        *self.judged.lock().entry(what).or_default() += 1;
    }

    /// Adds all of it to a fingerprint.
    pub fn print(&self, into: &mut impl Hasher) {
        self.heard.lock().values().for_each(|heard| heard.print(into));
        (&*self.leads.lock(), &*self.duties.lock(), &*self.deleted.lock(), &*self.judged.lock()).hash(into);
    }
}

/// Follows what one server says of one kind until the world is over.
pub async fn follow(world: Arc<World>, server: usize, kind: &'static str, path: &'static str) {
    let client = Way::observer(&world, server);
    let mut state = State::new(kind);
    let mut after = None;
    while !world.over.is_cancelled() {
        let from = match after {
            Some(after) => after,
            None => match ask(&client, Method::GET, path, "application/json", &Value::Null).await {
                Outcome::Done(list) => {
                    let at = revision(&list).unwrap_or_default();
                    state.list(&world, at, list["items"].as_array().cloned().unwrap_or_default());
                    at
                }
                _ => {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
        };
        let mut watch = watches::Watch::new(from);
        let mut events = Vec::new();
        // They end soon, with a bookmark before it, and go on from there.
        let query = format!("{path}?watch=1&allowWatchBookmarks=true&timeoutSeconds={LIFE}&resourceVersion={from}");
        let forgotten = read(&world, &client, &query, |mut line| {
            if world.plant == Plant::EarlyBookmarks && line["type"] == "BOOKMARK" {
                let early = revision(&line["object"]).unwrap_or_default() + 10;
                line["object"]["metadata"]["resourceVersion"] = early.to_string().into();
            }
            // A planted fault: what was said is not heard.
            if world.plant == Plant::SkippedEvents && line["type"] != "BOOKMARK" && world.draw(20) == 0 {
                watch.skips(&line);
                return;
            }
            match watch.hears(&line) {
                Ok(Some(revision)) => {
                    let metadata = &line["object"]["metadata"];
                    let name = format!("{} {}/{}", line["type"], metadata["namespace"], metadata["name"]);
                    events.push((revision, (name, line["object"].to_string())));
                    state.event(&world, revision, &line);
                }
                Ok(None) => (),
                Err(why) => world.is_wrong(format!("server {} watch of {kind}: {why}", SERVERS[server])),
            }
        })
        .await;
        let upto = watch.upto();
        world.history.judges("watches");
        let span = Span { by: SERVERS[server], after: from, upto };
        let wrong = world.history.heard.lock().entry(kind).or_default().takes(kind, span, events);
        wrong.into_iter().for_each(|what| world.is_wrong(what));
        after = (!forgotten).then_some(upto);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Reads a watch until it ends or the world does; whether the server has forgotten what it would have to begin with.
async fn read(world: &World, client: &kube::Client, query: &str, mut line: impl FnMut(Value)) -> bool {
    let request = Request::get(query).header("accept", "application/json").body(kube::client::Body::empty());
    let Ok(response) = client.send(request.expect("a request")).await else { return false };
    if response.status().as_u16() == 410 {
        return true;
    }
    if !response.status().is_success() {
        return false;
    }
    let mut body = std::pin::pin!(response.into_body());
    let mut rest = Vec::new();
    loop {
        let frame = tokio::select! {
            frame = body.frame() => frame,
            // What is under way comes at once.
            () = async { world.over.cancelled().await; tokio::time::sleep(SILENT).await } => return false,
        };
        let Some(Ok(frame)) = frame else { return false };
        let Ok(data) = frame.into_data() else { continue };
        rest.extend_from_slice(&data);
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let one: Vec<u8> = rest.drain(..=end).collect();
            let Ok(said) = serde_json::from_slice::<Value>(&one) else {
                world.is_wrong(format!("a watch said {:?}", String::from_utf8_lossy(&one)));
                return false;
            };
            if said["type"] == "ERROR" {
                return said["object"]["code"] == 410;
            }
            line(said);
        }
    }
}

/// Follows who leads, by the records of the group, at one server.
pub async fn follow_leads(world: Arc<World>, server: usize) {
    while !world.over.is_cancelled() {
        let Some(mut watcher) = world.up(SERVERS[server]).and_then(|up| up.keyspace.watch_group()) else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        loop {
            let batch = tokio::select! {
                batch = watcher.next() => batch,
                () = world.over.cancelled() => return,
            };
            let Ok(batch) = batch else { break };
            for event in batch.events.iter().filter(|event| &*event.record.key.name == "leader") {
                let text = String::from_utf8_lossy(&event.record.bytes).into_owned();
                let term = text.split_whitespace().nth(1).and_then(|term| term.parse().ok()).unwrap_or_default();
                world.history.leads.lock().insert(event.record.revision.get(), term);
            }
        }
    }
}
