//! What must hold, one file each, with where it is said.

pub mod allocatable;
pub mod bound_once;
pub mod endpoints;
pub mod fenced_duties;
pub mod fenced_nodes;
pub mod owners;
pub mod replicas;
pub mod revisions;
pub mod watches;
pub mod workloads;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

use crate::cluster::wire::revision;
use crate::cluster::world::World;

/// The objects of one kind as one server says that they are, event by event.
pub struct State {
    kind: &'static str,
    objects: BTreeMap<String, Arc<Value>>,
}

impl State {
    /// Nothing is known yet.
    pub fn new(kind: &'static str) -> State {
        State { kind, objects: BTreeMap::new() }
    }

    /// All there is, at `at`.
    pub fn list(&mut self, world: &World, at: u64, items: Vec<Value>) {
        let known = std::mem::take(&mut self.objects);
        for item in items {
            let (uid, item) = (uid(&item), Arc::new(item));
            if self.kind == "pods" {
                world.judge(bound_once::judge(world, known.get(&uid).map(Arc::as_ref), &item));
            }
            self.objects.insert(uid, item);
        }
        self.judge(world, at);
    }

    /// Something happened.
    pub fn event(&mut self, world: &World, at: u64, event: &Value) {
        let object = &event["object"];
        let uid = uid(object);
        if self.kind == "pods" {
            world.judge(bound_once::judge(world, self.objects.get(&uid).map(Arc::as_ref), object));
            let is_going = event["type"] == "DELETED" || !object["metadata"]["deletionTimestamp"].is_null();
            if is_going {
                let mut deleted = world.history.deleted.lock();
                let first = deleted.entry(uid.clone()).or_insert(at);
                *first = (*first).min(at);
            }
        }
        match event["type"] == "DELETED" {
            true => drop(self.objects.remove(&uid)),
            false => drop(self.objects.insert(uid, Arc::new(object.clone()))),
        }
        self.judge(world, at);
    }

    fn judge(&self, world: &World, at: u64) {
        match self.kind {
            "pods" => {
                world.judge(allocatable::judge(world, at, self.objects.values().map(Arc::as_ref)));
                replicas::owned(world, at, self.objects.values().map(Arc::as_ref));
            }
            "replicasets" => {
                for set in self.objects.values() {
                    replicas::wanted(world, revision(set).unwrap_or_default(), set);
                }
            }
            _ => (),
        }
    }
}

/// Who an object is.
pub fn uid(object: &Value) -> String {
    object["metadata"]["uid"].as_str().unwrap_or_default().to_owned()
}

/// What an object is called, for people.
pub fn called(object: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    format!("{}/{}", text(&object["metadata"]["namespace"]), text(&object["metadata"]["name"]))
}

/// Whether a pod takes room on its node, or will: it has not ended.
pub fn lives(pod: &Value) -> bool {
    !matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"))
}

/// The uid of the controller of an object.
pub fn controller(object: &Value) -> Option<&str> {
    let owners = object["metadata"]["ownerReferences"].as_array()?;
    owners.iter().find(|owner| owner["controller"] == true)?["uid"].as_str()
}
