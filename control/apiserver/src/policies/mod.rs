//! The admission policies that are stored (kubernetes-api §22.4), compiled: only those are read again that have changed.
//!
//! Whoever saw the answer to a write of a policy, and asks the same server, is admitted by it ([`Current`]); for the other servers
//! of a group there is the guard of the group ([`crate::hooks::Hooks::guard`]), which is read before policies are, and says so in
//! the transaction.

mod read;

use std::collections::HashMap;
use std::sync::Arc;

use coracle_api::kinds;
use coracle_keyspace::{Keyspace, Record, Records};

use crate::current::Current;
pub(crate) use read::{Action, Annotation, Binding, Does, Mutation, ParamKind, Policy, Program, Validation};

/// Collections: of policies that change objects and that validate them, and of the bindings of each.
const COLLECTIONS: [&str; 4] = [
    "mutatingadmissionpolicies.admissionregistration.k8s.io",
    "validatingadmissionpolicies.admissionregistration.k8s.io",
    "mutatingadmissionpolicybindings.admissionregistration.k8s.io",
    "validatingadmissionpolicybindings.admissionregistration.k8s.io",
];
/// Bytes that the programs of all policies may hold, about; of those that are beyond it, by name, each says that it is.
const PROGRAMS_BYTES_MAX: usize = 256 << 20;

/// A policy and what binds it, by name.
#[derive(Clone)]
pub(crate) struct Bound {
    pub policy: Arc<Policy>,
    pub bindings: Vec<Arc<Binding>>,
}

#[derive(Clone)]
enum Read {
    Policy(Arc<Policy>),
    Binding(Arc<Binding>),
}

/// All policies that are bound, by name.
#[derive(Default)]
pub(crate) struct Configured {
    pub mutating: Vec<Bound>,
    pub validating: Vec<Bound>,
    /// Bindings of which it cannot be read what they bind: until they are gone nothing is admitted.
    pub unreadable: Vec<Arc<Binding>>,
    read: HashMap<(usize, Arc<str>), (Arc<Record>, Read)>,
}

impl Configured {
    fn is_empty(&self) -> bool {
        self.mutating.is_empty() && self.validating.is_empty() && self.unreadable.is_empty()
    }

    /// Whether some are asked with custom resources, which somebody outside may have to convert.
    fn has_custom_params(&self) -> bool {
        let mut params = self.mutating.iter().chain(&self.validating).filter_map(|bound| bound.policy.params.as_ref());
        params.any(|params| kinds::by_kind(params.group_version().0, &params.kind).is_none())
    }

    /// What is made of these records, and of what was read before. `room` is how many bytes all programs may hold.
    fn next(&self, stored: &[Records; 4], mut room: usize) -> Configured {
        let mut next = Configured::default();
        let mut bindings: [HashMap<String, Vec<Arc<Binding>>>; 2] = Default::default();
        // Bindings first: they say which policies are meant.
        for (place, records) in stored.iter().enumerate().rev() {
            for (name, record) in records {
                let key = (place, name.clone());
                let same = self.read.get(&key).filter(|(before, _)| Arc::ptr_eq(before, record)).map(|(_, read)| read);
                let read = if place >= 2 {
                    let binding = match same {
                        Some(Read::Binding(binding)) => binding.clone(),
                        _ => Arc::new(Binding::stored(name, place == 2, &record.bytes)),
                    };
                    match binding.policy.as_str() {
                        "" if binding.unreadable.is_some() => next.unreadable.push(binding.clone()),
                        policy => bindings[place - 2].entry(policy.to_owned()).or_default().push(binding.clone()),
                    }
                    Read::Binding(binding)
                } else {
                    // What nobody has bound is not compiled.
                    let Some(bindings) = bindings[place].remove(&**name) else { continue };
                    let before = match same {
                        Some(Read::Policy(policy)) => Some(policy),
                        _ => None,
                    };
                    let policy = policy(place == 0, name, record, before, &mut room);
                    let list = if place == 0 { &mut next.mutating } else { &mut next.validating };
                    list.push(Bound { policy: policy.clone(), bindings });
                    Read::Policy(policy)
                };
                next.read.insert(key, (record.clone(), read));
            }
        }
        next
    }
}

/// A policy with its program, when there is room for it; of what was read before as much as is the same.
fn policy(mutates: bool, name: &str, record: &Record, before: Option<&Arc<Policy>>, room: &mut usize) -> Arc<Policy> {
    let known = before.filter(|before| before.weight > *room || !before.is_laid_aside).cloned();
    let policy = known.unwrap_or_else(|| Arc::new(Policy::stored(name, mutates, &record.bytes)));
    if policy.weight <= *room {
        *room -= policy.weight;
        policy
    } else if policy.is_laid_aside {
        policy
    } else {
        Arc::new(Policy::laid_aside(name, mutates, &record.bytes, policy.weight))
    }
}

/// The policies as they are now.
pub(crate) struct Policies {
    current: Current<Configured>,
    /// Bytes that all programs may hold.
    room: usize,
}

impl Policies {
    pub fn new(keyspace: &Keyspace) -> Policies {
        Policies::with_room(keyspace, PROGRAMS_BYTES_MAX)
    }

    fn with_room(keyspace: &Keyspace, room: usize) -> Policies {
        Policies { current: Current::new(keyspace, &COLLECTIONS, Configured::is_empty), room }
    }

    /// Whether something may be bound.
    pub fn any(&self) -> bool {
        self.current.any()
    }

    /// Whether somebody outside may have to convert what the policies are asked with, as far as they are read.
    pub fn may_convert(&self) -> bool {
        self.any() && self.current.last().has_custom_params()
    }

    /// What is bound; `None` when nothing is, which is all that most clusters ever pay. A small binding may ask for a policy of long
    /// ago, and what is deleted makes room for others.
    pub async fn now(&self, keyspace: &Keyspace) -> Option<Arc<Configured>> {
        if !self.any() {
            return None;
        }
        let read = || {
            let (keyspace, room) = (keyspace.clone(), self.room);
            move |before: &Configured| {
                before.next(&COLLECTIONS.map(|collection| keyspace.snapshot(collection).records), room)
            }
        };
        let now = self.current.get(read).await;
        (!now.is_empty()).then_some(now)
    }
}

#[cfg(test)]
mod tests {
    use coracle_keyspace::{Guard, Key, Op, Value as Content};
    use serde_json::{Value, json};

    use super::*;

    async fn put(keyspace: &Keyspace, collection: &'static str, name: &'static str, bytes: String) {
        let value = Content { revision_at: 6, bytes: bytes.into() };
        let put = Op::Put { key: Key::new(collection, name), value, guard: Guard::None };
        keyspace.transact(vec![put]).await.unwrap();
    }

    /// The text of an object, into which the revision is put at its place.
    fn stored(object: &Value) -> String {
        format!("{{\"v\":\"\",{}", &object.to_string()[1..])
    }

    #[tokio::test]
    async fn what_is_not_stored_as_it_should_be_is_not_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let keyspace = Keyspace::open(coracle_keyspace::Config::new(dir.path())).await.unwrap();
        let policies = Policies::new(&keyspace);
        let bound = |policy: &str| stored(&json!({"spec": {"policyName": policy, "validationActions": ["Deny"]}}));
        for name in ["broken", "odd", "ignored"] {
            put(&keyspace, COLLECTIONS[3], name, bound(name)).await;
        }
        put(&keyspace, COLLECTIONS[1], "broken", "{\"v\":\"\"".to_owned()).await;
        put(&keyspace, COLLECTIONS[1], "odd", stored(&json!({"spec": {"validations": "none"}}))).await;
        let ignored = json!({"spec": {"validations": 1, "failurePolicy": "Ignore"}});
        put(&keyspace, COLLECTIONS[1], "ignored", stored(&ignored)).await;
        let now = policies.now(&keyspace).await.expect("bound");
        let known = |one: &Bound| (one.policy.name.clone(), one.policy.fails, one.policy.program.is_err());
        let named = |name: &str, fails: bool| (name.to_owned(), fails, true);
        let expected = [named("broken", true), named("ignored", false), named("odd", true)];
        assert_eq!(now.validating.iter().map(known).collect::<Vec<_>>(), expected);
        assert!(now.unreadable.is_empty());
        // What a binding binds is known, or nothing is admitted.
        put(&keyspace, COLLECTIONS[3], "odd", stored(&json!({"spec": {"policyName": "odd", "paramRef": 1}}))).await;
        put(&keyspace, COLLECTIONS[2], "broken", "{\"v\":\"\"".to_owned()).await;
        let now = policies.now(&keyspace).await.expect("bound");
        let odd = now.validating.iter().find(|one| one.policy.name == "odd").expect("it is bound");
        assert!(odd.bindings[0].unreadable.is_some());
        assert_eq!(now.unreadable.iter().map(|binding| binding.name.as_str()).collect::<Vec<_>>(), ["broken"]);
        keyspace.shutdown().await;
    }

    #[tokio::test]
    async fn programs_hold_no_more_than_there_is_room_for() {
        let dir = tempfile::tempdir().unwrap();
        let keyspace = Keyspace::open(coracle_keyspace::Config::new(dir.path())).await.unwrap();
        let policies = Policies::new(&keyspace);
        for name in ["a", "b", "unbound"] {
            let policy = json!({"spec": {"validations": [{"expression": "object.metadata.name != 'x'"}]}});
            put(&keyspace, COLLECTIONS[1], name, stored(&policy)).await;
        }
        for name in ["a", "b"] {
            put(&keyspace, COLLECTIONS[3], name, stored(&json!({"spec": {"policyName": name}}))).await;
        }
        let first = policies.now(&keyspace).await.expect("bound");
        let weight = first.validating[0].policy.weight;
        assert!(weight > 0 && first.read.len() == 4, "what is not bound is not compiled");
        let records = || COLLECTIONS.map(|collection| keyspace.snapshot(collection).records);
        let compiled = |of: &Configured| of.validating.iter().map(|one| one.policy.program.is_ok()).collect::<Vec<_>>();
        let narrow = first.next(&records(), weight);
        assert_eq!(compiled(&narrow), [true, false]);
        assert!(Arc::ptr_eq(&narrow.validating[0].policy, &first.validating[0].policy));
        // One that was laid aside is not compiled again where there is still no room, and is where there is.
        let still = narrow.next(&records(), weight);
        assert!(Arc::ptr_eq(&still.validating[1].policy, &narrow.validating[1].policy));
        assert_eq!(compiled(&still.next(&records(), 2 * weight)), [true, true]);
        keyspace.shutdown().await;
    }

    #[tokio::test]
    async fn what_was_laid_aside_is_compiled_where_there_is_room() {
        let dir = tempfile::tempdir().unwrap();
        let keyspace = Keyspace::open(coracle_keyspace::Config::new(dir.path())).await.unwrap();
        for name in ["a", "b", "later"] {
            let policy = json!({"spec": {"validations": [{"expression": "object.metadata.name.matches('a{900}')"}]}});
            put(&keyspace, COLLECTIONS[1], name, stored(&policy)).await;
        }
        let bind = |name: &'static str| {
            let binding = stored(&json!({"spec": {"policyName": name}}));
            put(&keyspace, COLLECTIONS[3], name, binding)
        };
        bind("a").await;
        bind("b").await;
        let weight = Policies::new(&keyspace).now(&keyspace).await.expect("bound").validating[0].policy.weight;
        let policies = Policies::with_room(&keyspace, weight);
        let compiled = async || {
            let now = policies.now(&keyspace).await.expect("bound");
            now.validating.iter().map(|one| one.policy.program.is_ok()).collect::<Vec<_>>()
        };
        assert_eq!(compiled().await, [true, false]);
        // One that goes makes room for what was laid aside, which has not changed.
        let delete = Op::Delete { key: Key::new(COLLECTIONS[3], "a"), guard: Guard::Present };
        keyspace.transact(vec![delete]).await.unwrap();
        assert_eq!(compiled().await, [true]);
        // A small binding has one compiled that was there before.
        bind("later").await;
        assert_eq!(compiled().await, [true, false]);
        // Who asks when nothing has changed waits for nobody.
        assert!(futures::poll!(Box::pin(policies.now(&keyspace))).is_ready());
        keyspace.shutdown().await;
    }

    #[tokio::test]
    async fn what_is_kept_is_what_is_stored() {
        let dir = tempfile::tempdir().unwrap();
        let keyspace = Keyspace::open(coracle_keyspace::Config::new(dir.path())).await.unwrap();
        let policies = Policies::new(&keyspace);
        assert!(policies.now(&keyspace).await.is_none() && policies.now(&keyspace).await.is_none());
        let put = |collection: &'static str, name: &'static str, object: Value| {
            // The revision is put into the text at this place.
            let bytes = format!("{{\"v\":\"\",{}", &object.to_string()[1..]);
            let value = Content { revision_at: 6, bytes: bytes.into() };
            keyspace.transact(vec![Op::Put { key: Key::new(collection, name), value, guard: Guard::None }])
        };
        let policy = |name: &str, expression: &str| json!({"metadata": {"name": name}, "spec": {"validations": [{"expression": expression}]}});
        let binding = |name: &str, policy: &str| json!({"metadata": {"name": name}, "spec": {"policyName": policy}});
        put(COLLECTIONS[1], "b", policy("b", "true")).await.unwrap();
        put(COLLECTIONS[1], "a", policy("a", "false")).await.unwrap();
        // Without a binding it is nothing.
        assert!(policies.now(&keyspace).await.is_none());
        put(COLLECTIONS[3], "x", binding("x", "b")).await.unwrap();
        put(COLLECTIONS[3], "y", binding("y", "b")).await.unwrap();
        let first = policies.now(&keyspace).await.expect("bound");
        assert!(first.mutating.is_empty());
        let names: Vec<&str> = first.validating[0].bindings.iter().map(|binding| binding.name.as_str()).collect();
        assert_eq!((first.validating.len(), first.validating[0].policy.name.as_str(), names), (1, "b", vec!["x", "y"]));
        // What has not changed stays compiled.
        put(COLLECTIONS[3], "z", binding("z", "a")).await.unwrap();
        let second = policies.now(&keyspace).await.expect("bound");
        assert_eq!(second.validating.len(), 2);
        assert!(Arc::ptr_eq(&first.validating[0].policy, &second.validating[1].policy));
        for name in ["x", "y", "z"] {
            let delete = Op::Delete { key: Key::new(COLLECTIONS[3], name), guard: Guard::Present };
            keyspace.transact(vec![delete]).await.unwrap();
        }
        assert!(policies.now(&keyspace).await.is_none());
        // A binding that cannot be read may be of the one that denies.
        for collection in &COLLECTIONS[2..] {
            let value = Content { revision_at: 1, bytes: "{".into() };
            let put = Op::Put { key: Key::new(*collection, "damaged"), value, guard: Guard::None };
            keyspace.transact(vec![put]).await.unwrap();
            let now = policies.now(&keyspace).await.expect("some");
            assert_eq!(now.unreadable.iter().map(|binding| binding.name.as_str()).collect::<Vec<_>>(), ["damaged"]);
            let delete = Op::Delete { key: Key::new(*collection, "damaged"), guard: Guard::Present };
            keyspace.transact(vec![delete]).await.unwrap();
        }
        keyspace.shutdown().await;
    }
}
