//! Ingresses as they are known, and the route table made of them.
//!
//! What changes is noted by host; a new table makes the changed hosts anew and takes the others over as they are.
//!
//! All of them have so much room together, and those of a namespace half of it: no tenant's Ingresses shut the others' out. Who is
//! served where there is not enough for all follows from their age, and not from the order in which they are heard of; but a change for
//! which there is no room leaves what this node served before, so that a node that begins meanwhile, and knows no before, serves without
//! it what its neighbours serve in the old version (docs/ingress.md).

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::hash::Hash;
use std::sync::Arc;

use k8s_openapi::api::networking::v1 as networking;

use super::read::{Age, Ingress};
use super::{CONTROLLER, Problem, Routing, SecretKey, Told};
use crate::routes::{Claim, Host, Origin, Paths};

/// Paths, segments of paths and hosts of all Ingresses together, which every node has in memory; those of a namespace have half of
/// them at most. The newest are left out beyond it; a change for which there is no room leaves what was served before as it is.
const COST_MAX: usize = 100_000;

/// Namespace and name.
type Key = (Arc<str>, Arc<str>);

/// What a watch said.
#[derive(Debug)]
pub(super) enum Change {
    ClassesInit,
    Class(Box<networking::IngressClass>),
    ClassGone(Box<networking::IngressClass>),
    ClassesListed,
    IngressesInit,
    Ingress(Box<networking::Ingress>),
    IngressGone(Box<networking::Ingress>),
    IngressesListed,
}

/// What a list that is read again has shown so far: what is missing in it at its end is gone.
#[derive(Debug)]
struct Listed<K> {
    is_complete: bool,
    again: Option<HashSet<K>>,
}

impl<K> Default for Listed<K> {
    fn default() -> Listed<K> {
        Listed { is_complete: false, again: None }
    }
}

impl<K: Eq + Hash + Clone> Listed<K> {
    fn begin(&mut self) {
        self.again = Some(HashSet::new());
    }

    fn see(&mut self, key: &K) {
        if let Some(seen) = &mut self.again {
            seen.insert(key.clone());
        }
    }

    /// What of `known` is gone.
    fn end<'a>(&mut self, known: impl Iterator<Item = &'a K>) -> Vec<K>
    where
        K: 'a,
    {
        self.is_complete = true;
        let seen = self.again.take().unwrap_or_default();
        known.filter(|key| !seen.contains(*key)).cloned().collect()
    }
}

pub(super) struct Table {
    /// Classes, and whether they are ours.
    classes: HashMap<Arc<str>, bool>,
    listed_classes: Listed<Arc<str>>,
    /// Ingresses of any class: one may become ours.
    ingresses: HashMap<Key, Arc<Ingress>>,
    listed_ingresses: Listed<Key>,
    by_class: HashMap<Arc<str>, HashSet<Key>>,
    /// Those of classes of ours, the oldest first.
    ours: BTreeSet<(Age, Key)>,
    asked: Asked,
    /// Those of which something has changed since it was decided who is served.
    touched: HashSet<Key>,
    /// Those that are served, in the version that is.
    served: HashMap<Key, Arc<Ingress>>,
    by_host: HashMap<Host, BTreeMap<Age, Arc<Ingress>>>,
    defaults: BTreeMap<Age, Arc<Ingress>>,
    cost_max: usize,
    /// Those for which there is no room, in the version that was told so.
    left_out: HashMap<Key, Arc<Ingress>>,
    changed: HashSet<Host>,
    /// What was told of each host, so that it is told once.
    conflicts: HashMap<Host, HashSet<(Arc<str>, Problem)>>,
    told: Vec<Told>,
}

impl Default for Table {
    fn default() -> Table {
        Table::with_room_for(COST_MAX)
    }
}

impl Table {
    fn with_room_for(cost_max: usize) -> Table {
        Table {
            classes: HashMap::new(),
            listed_classes: Listed::default(),
            ingresses: HashMap::new(),
            listed_ingresses: Listed::default(),
            by_class: HashMap::new(),
            ours: BTreeSet::new(),
            asked: Asked::default(),
            touched: HashSet::new(),
            served: HashMap::new(),
            by_host: HashMap::new(),
            defaults: BTreeMap::new(),
            cost_max,
            left_out: HashMap::new(),
            changed: HashSet::new(),
            conflicts: HashMap::new(),
            told: Vec::new(),
        }
    }

    /// Whether all was heard of once: half a list would look as if everything else were gone.
    pub fn is_listed(&self) -> bool {
        self.listed_classes.is_complete && self.listed_ingresses.is_complete
    }

    pub fn take(&mut self, change: Change) {
        match change {
            Change::ClassesInit => self.listed_classes.begin(),
            Change::Class(class) => {
                let name = Arc::<str>::from(class.metadata.name.unwrap_or_default());
                let controller = class.spec.and_then(|spec| spec.controller);
                self.listed_classes.see(&name);
                self.class(&name, Some(controller.as_deref() == Some(CONTROLLER)));
            }
            Change::ClassGone(class) => self.class(&class.metadata.name.unwrap_or_default().into(), None),
            Change::ClassesListed => {
                for name in self.listed_classes.end(self.classes.keys()) {
                    self.class(&name, None);
                }
            }
            Change::IngressesInit => self.listed_ingresses.begin(),
            Change::Ingress(object) => {
                let ingress = Arc::new(Ingress::read(*object));
                let key = (ingress.origin.namespace.clone(), ingress.origin.name.clone());
                self.listed_ingresses.see(&key);
                // Most changes are of its status.
                if self.ingresses.get(&key).is_some_and(|before| *before == ingress) {
                    return;
                }
                self.remove(&key);
                if let Some(class) = &ingress.class {
                    self.by_class.entry(class.clone()).or_default().insert(key.clone());
                }
                self.ingresses.insert(key.clone(), ingress);
                self.join(&key);
            }
            Change::IngressGone(object) => {
                let text = |value: Option<String>| Arc::<str>::from(value.unwrap_or_default());
                self.remove(&(text(object.metadata.namespace), text(object.metadata.name)));
            }
            Change::IngressesListed => {
                for key in self.listed_ingresses.end(self.ingresses.keys()) {
                    self.remove(&key);
                }
            }
        }
    }

    /// A class is ours, is another's, or is no more.
    fn class(&mut self, name: &Arc<str>, is_ours: Option<bool>) {
        let before = match is_ours {
            Some(is_ours) => self.classes.insert(name.clone(), is_ours),
            None => self.classes.remove(name),
        };
        if before.unwrap_or(false) == is_ours.unwrap_or(false) {
            return;
        }
        for key in self.by_class.get(name).cloned().unwrap_or_default() {
            match is_ours {
                Some(true) => self.join(&key),
                _ => self.leave(&key),
            }
        }
    }

    /// Forgets one.
    fn remove(&mut self, key: &Key) {
        self.leave(key);
        let Some(ingress) = self.ingresses.remove(key) else { return };
        if let Some(class) = &ingress.class
            && let Some(keys) = self.by_class.get_mut(class)
        {
            keys.remove(key);
            if keys.is_empty() {
                self.by_class.remove(class);
            }
        }
    }

    /// One is to be served, if it is of a class of ours.
    fn join(&mut self, key: &Key) {
        let Some(ingress) = self.ingresses.get(key).cloned() else { return };
        let is_ours = ingress.class.as_ref().is_some_and(|class| self.classes.get(class) == Some(&true));
        if is_ours && self.ours.insert((ingress.age.clone(), key.clone())) {
            self.asked.add(&ingress);
            self.touched.insert(key.clone());
        }
    }

    /// One is to be served no more, if it was to be.
    fn leave(&mut self, key: &Key) {
        let Some(ingress) = self.ingresses.get(key).cloned() else { return };
        if self.ours.remove(&(ingress.age.clone(), key.clone())) {
            self.asked.remove(&ingress);
            self.touched.insert(key.clone());
        }
    }

    /// Decides who is served, after something has changed. Where there is room for all, only what has changed is looked at.
    fn settle(&mut self) {
        let touched = std::mem::take(&mut self.touched);
        if touched.is_empty() {
            return;
        }
        if self.asked.is_within(self.cost_max) && self.left_out.is_empty() {
            for key in touched {
                let wanted = self.ingresses.get(&key).filter(|ingress| self.is_wanted(&key, ingress)).cloned();
                self.serve(&key, wanted);
            }
            return;
        }
        let (mut taken, mut now, mut without) = (Asked::default(), Vec::new(), HashMap::new());
        for (_, key) in &self.ours {
            let Some(ingress) = self.ingresses.get(key) else { continue };
            // A change for which there is no room is as good as none, for now.
            let before = self.served.get(key).filter(|before| before.origin.uid == ingress.origin.uid);
            let served =
                [Some(ingress), before].into_iter().flatten().find(|version| taken.has_room(version, self.cost_max));
            if !served.is_some_and(|served| Arc::ptr_eq(served, ingress)) {
                without.insert(key.clone(), (ingress.clone(), served.is_some()));
            }
            if let Some(served) = served {
                taken.add(served);
                now.push((key.clone(), served.clone()));
            }
        }
        let known = std::mem::take(&mut self.left_out);
        for (key, (ingress, is_served)) in without {
            if !known.get(&key).is_some_and(|told| Arc::ptr_eq(told, &ingress)) {
                let what = if is_served { "it is served as it was before" } else { "it is not served" };
                let message = format!(
                    "{what}: it has {} paths, segments of paths and hosts; all Ingresses together may have {}, those of a namespace \
                     half of them",
                    ingress.cost(),
                    self.cost_max
                );
                self.tell(&ingress, Problem { reason: "TooManyRoutes", message });
            }
            self.left_out.insert(key, ingress);
        }
        let stays: HashSet<&Key> = now.iter().map(|(key, _)| key).collect();
        let leaving: Vec<Key> = self.served.keys().filter(|key| !stays.contains(key)).cloned().collect();
        for key in leaving {
            self.serve(&key, None);
        }
        for (key, ingress) in now {
            self.serve(&key, Some(ingress));
        }
    }

    /// Whether this is one of those that are to be served, where there is room.
    fn is_wanted(&self, key: &Key, ingress: &Ingress) -> bool {
        self.ours.contains(&(ingress.age.clone(), key.clone()))
    }

    /// Serves one in this version, or no more.
    fn serve(&mut self, key: &Key, wanted: Option<Arc<Ingress>>) {
        let before = self.served.get(key).cloned();
        if let (Some(before), Some(wanted)) = (&before, &wanted)
            && Arc::ptr_eq(before, wanted)
        {
            return;
        }
        if let Some(before) = &before {
            self.served.remove(key);
            self.link(before, false);
        }
        let uid = wanted.as_ref().map(|ingress| ingress.origin.uid.clone());
        if let Some(ingress) = wanted {
            self.link(&ingress, true);
            self.served.insert(key.clone(), ingress.clone());
            self.told.push(Told::Served(ingress.clone()));
            for problem in &ingress.problems {
                self.tell(&ingress, problem.clone());
            }
        }
        // Who is served on is told of as it is now, and loses nothing meanwhile.
        if let Some(before) = before.filter(|before| uid.as_ref() != Some(&before.origin.uid)) {
            self.told.push(Told::Left(before.origin.clone()));
        }
    }

    /// Notes by host, and as a default, what one wants.
    fn link(&mut self, ingress: &Arc<Ingress>, is_there: bool) {
        for host in ingress.hosts() {
            self.changed.insert(host.clone());
            match is_there {
                true => {
                    drop(self.by_host.entry(host.clone()).or_default().insert(ingress.age.clone(), ingress.clone()))
                }
                false => {
                    if let Some(all) = self.by_host.get_mut(host) {
                        all.remove(&ingress.age);
                        if all.is_empty() {
                            self.by_host.remove(host);
                        }
                    }
                }
            }
        }
        if ingress.default.is_some() {
            match is_there {
                true => drop(self.defaults.insert(ingress.age.clone(), ingress.clone())),
                false => drop(self.defaults.remove(&ingress.age)),
            }
        }
    }

    fn tell(&mut self, ingress: &Arc<Ingress>, problem: Problem) {
        self.told.push(Told::Problem(ingress.origin.clone(), problem));
    }

    /// What somebody has to hear since the last time.
    pub fn told(&mut self) -> Vec<Told> {
        self.settle();
        std::mem::take(&mut self.told)
    }

    /// The table after `before`, in which only hosts that changed are new.
    pub fn routing(&mut self, before: &Routing) -> Routing {
        self.settle();
        let mut next = before.clone();
        next.generation += 1;
        for host in std::mem::take(&mut self.changed) {
            let Made { paths, secret, conflicts } = self.make(&host);
            next.routes.set(&host, paths);
            next.secrets.set(&host, secret);
            next.claims.set(&host, self.claim(&host));
            let known = self.conflicts.remove(&host).unwrap_or_default();
            let mut now = HashSet::new();
            for (ingress, problem) in conflicts {
                let said = (ingress.origin.uid.clone(), problem.clone());
                if !known.contains(&said) && !now.contains(&said) {
                    self.tell(&ingress, problem);
                }
                now.insert(said);
            }
            if !now.is_empty() {
                self.conflicts.insert(host, now);
            }
        }
        let default = self.defaults.values().next();
        next.routes.set_default(default.and_then(|ingress| ingress.default.clone()));
        next.claims.set(&Host::Any, self.claim(&Host::Any));
        next
    }

    /// Who goes before an Ingress, and why.
    fn before(&self, older: &Origin, ingress: &Ingress) -> String {
        let served = self.served.get(&(older.namespace.clone(), older.name.clone()));
        match served.is_some_and(|served| served.age.0 == ingress.age.0) {
            true => format!("{older}, which was made in the same second and has the lower uid"),
            false => format!("{older}, which is older"),
        }
    }

    /// By what a host is that of Ingresses: by the rules of the oldest; a default is for all hosts.
    fn claim(&self, host: &Host) -> Option<Claim> {
        let has_rules = |ingress: &&Arc<Ingress>| ingress.rules_of(host).next().is_some();
        let by_rules = self.by_host.get(host).and_then(|all| all.values().find(has_rules));
        let by_default = self.defaults.values().next().filter(|_| *host == Host::Any);
        let oldest = by_rules.into_iter().chain(by_default).map(|ingress| ingress.age.0).min();
        oldest.map(|since| Claim::of(host, since))
    }

    /// What all Ingresses together say of a host, the older ones first.
    fn make(&self, host: &Host) -> Made {
        let mut made = Made::default();
        let mut secret_of: Option<&Arc<Ingress>> = None;
        for ingress in self.by_host.get(host).into_iter().flat_map(BTreeMap::values) {
            let mut has_rules = false;
            for rules in ingress.rules_of(host) {
                has_rules = true;
                for rule in rules {
                    let Err(older) = made.paths.add(rule.compare, &rule.path, &rule.route) else { continue };
                    if older.origin != ingress.origin {
                        let (path, older) = (&rule.path, self.before(&older.origin, ingress));
                        let message = format!("path {path} of host {host} is served by {older}");
                        made.conflicts.push((ingress.clone(), Problem { reason: "PathConflict", message }));
                    }
                }
            }
            // For all hosts there is a default of its own.
            if let Some(default) = ingress.default.as_ref().filter(|_| has_rules && *host != Host::Any) {
                made.paths.add_default(default);
            }
            for secret in ingress.secrets_of(host) {
                match (&made.secret, secret_of) {
                    (Some(first), Some(older)) if first != secret && older.origin != ingress.origin => {
                        let older = self.before(&older.origin, ingress);
                        let message = format!("the certificate of host {host} is that of {older}");
                        made.conflicts.push((ingress.clone(), Problem { reason: "CertificateConflict", message }));
                    }
                    (Some(_), _) => {}
                    (None, _) => (made.secret, secret_of) = (Some(secret.clone()), Some(ingress)),
                }
            }
        }
        made
    }
}

/// What some Ingresses cost: together, and by their namespaces.
#[derive(Default)]
struct Asked {
    all: usize,
    namespaces: HashMap<Arc<str>, usize>,
}

impl Asked {
    fn of(&self, namespace: &str) -> usize {
        self.namespaces.get(namespace).copied().unwrap_or_default()
    }

    fn has_room(&self, ingress: &Ingress, max: usize) -> bool {
        let cost = ingress.cost();
        self.all + cost <= max && self.of(&ingress.origin.namespace) + cost <= max / 2
    }

    fn is_within(&self, max: usize) -> bool {
        self.all <= max && self.namespaces.values().all(|own| *own <= max / 2)
    }

    fn add(&mut self, ingress: &Ingress) {
        self.all += ingress.cost();
        *self.namespaces.entry(ingress.origin.namespace.clone()).or_default() += ingress.cost();
    }

    fn remove(&mut self, ingress: &Ingress) {
        self.all -= ingress.cost();
        if let Some(own) = self.namespaces.get_mut(&ingress.origin.namespace) {
            *own -= ingress.cost();
            if *own == 0 {
                self.namespaces.remove(&ingress.origin.namespace);
            }
        }
    }
}

#[derive(Default)]
struct Made {
    paths: Paths,
    secret: Option<SecretKey>,
    conflicts: Vec<(Arc<Ingress>, Problem)>,
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::routes::Backend;

    fn class(name: &str, controller: &str) -> Change {
        let object = json!({"metadata": {"name": name}, "spec": {"controller": controller}});
        Change::Class(serde_json::from_value(object).unwrap())
    }

    /// An Ingress of class `coracle` that was made at this second.
    fn ingress(name: &str, second: u8, spec: Value) -> Change {
        let mut spec = spec;
        if spec["ingressClassName"].is_null() {
            spec["ingressClassName"] = json!("coracle");
        }
        let time = format!("2026-01-01T00:00:{second:02}Z");
        let metadata = json!({"name": name, "namespace": "n", "uid": name, "creationTimestamp": time});
        Change::Ingress(serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap())
    }

    fn gone(name: &str) -> Change {
        Change::IngressGone(serde_json::from_value(json!({"metadata": {"name": name, "namespace": "n"}})).unwrap())
    }

    fn rule(host: &str, paths: &[(&str, &str)], service: &str) -> Value {
        let paths: Vec<Value> = paths.iter().map(|(kind, path)| {
            json!({"pathType": kind, "path": path, "backend": {"service": {"name": service, "port": {"number": 80}}}})
        }).collect();
        json!({"host": host, "http": {"paths": paths}})
    }

    fn backend(service: &str) -> Value {
        json!({"service": {"name": service, "port": {"name": "http"}}})
    }

    fn listed(changes: impl IntoIterator<Item = Change>) -> Table {
        let mut table = Table::default();
        listed_in(&mut table, changes);
        table
    }

    /// They are for the hosts of all rules, and an object has room for tens of thousands of both.
    #[test]
    fn entries_of_tls_that_name_no_host_count_once_for_each_secret() {
        let tls: Vec<Value> = (0..1000).map(|n| json!({"secretName": format!("s{}", n % 2)})).collect();
        let table = listed([ingress("one", 1, json!({"rules": [rule("a.x", &[("Prefix", "/")], "web")], "tls": tls}))]);
        let one = table.ingresses.values().next().unwrap();
        let of = |host: &str| one.secrets_of(&Host::parse(host)).map(|secret| &*secret.name).collect::<Vec<_>>();
        assert_eq!(of("a.x"), ["s0", "s1"]);
        assert!(of("b.x").is_empty());
    }

    fn listed_in(table: &mut Table, changes: impl IntoIterator<Item = Change>) {
        let lists = [
            Change::ClassesInit,
            class("coracle", CONTROLLER),
            Change::ClassesListed,
            Change::IngressesInit,
            Change::IngressesListed,
        ];
        lists.into_iter().chain(changes).for_each(|change| table.take(change));
        assert!(table.is_listed());
    }

    fn service(routing: &Routing, host: &str, path: &str) -> String {
        match routing.routes.find(host, path).map(|route| &route.backend) {
            Some(Backend::Service { key, port }) => format!("{}:{port}", key.1),
            Some(other) => match other {
                Backend::Other(what) => what.to_string(),
                _ => unreachable!("no Ingress has it"),
            },
            None => "none".to_owned(),
        }
    }

    fn problems(table: &mut Table) -> Vec<String> {
        let problems = table.told().into_iter().filter_map(|told| match told {
            Told::Problem(origin, problem) => Some(format!("{}: {}: {}", origin.name, problem.reason, problem.message)),
            Told::Served(_) | Told::Left(_) => None,
        });
        problems.collect()
    }

    #[test]
    fn a_change_makes_its_own_hosts_anew_and_no_others() {
        let many = (0..50).map(|n| {
            ingress(&format!("i{n}"), 1, json!({"rules": [rule(&format!("h{n}.x"), &[("Prefix", "/")], "web")]}))
        });
        let mut table = listed(many);
        let first = table.routing(&Routing::default());
        assert_eq!(service(&first, "h7.x", "/a"), "web:80");
        table.take(ingress("i7", 1, json!({"rules": [rule("h7.x", &[("Prefix", "/")], "other")]})));
        let second = table.routing(&first);
        assert_eq!(service(&second, "h7.x", "/a"), "other:80");
        let same = |n: usize| {
            let host = format!("h{n}.x");
            Arc::ptr_eq(&first.routes.paths(&host).unwrap(), &second.routes.paths(&host).unwrap())
        };
        assert_eq!((0..50).filter(|n| !same(*n)).collect::<Vec<_>>(), [7]);
        table.take(gone("i7"));
        let third = table.routing(&second);
        assert_eq!(service(&third, "h7.x", "/"), "none");
        assert_eq!(service(&second, "h7.x", "/"), "other:80", "what was is as it was");
        assert!(table.by_host.len() == 49 && table.asked.all == 49 * 2 && !table.by_class["coracle"].is_empty());
    }

    /// Everybody's thread reads it: each host costs what is about it, not what is about all others.
    #[test]
    fn an_ingress_of_many_hosts_is_read_soon() {
        let hosts: Vec<String> = (0..8000).map(|n| format!("h{n}.x")).collect();
        let rules: Vec<Value> = hosts.iter().map(|host| rule(host, &[("Prefix", "/")], "web")).collect();
        let spec = json!({"rules": rules, "tls": [{"hosts": hosts, "secretName": "certificate"}]});
        let changes = [ingress("one", 1, spec.clone()), ingress("two", 2, spec)];
        let begun = std::time::Instant::now();
        let routing = listed(changes).routing(&Routing::default());
        let took = begun.elapsed();
        let route = routing.routes.find("h7999.x", "/").unwrap();
        assert!(route.is_secure_only && *route.origin.name == *"one" && routing.secret("h7999.x").is_some());
        assert!(took < std::time::Duration::from_secs(8), "{took:?}");
    }

    #[test]
    fn other_classes_are_left_alone_until_they_are_ours() {
        let spec = |class: &str| json!({"ingressClassName": class, "rules": [rule(class, &[("Prefix", "/")], class)]});
        let mut old = json!({"rules": [rule("old", &[("Prefix", "/")], "old")]});
        old["ingressClassName"] = json!("");
        let Change::Ingress(mut annotated) = ingress("annotated", 1, old) else { unreachable!() };
        annotated.spec.as_mut().unwrap().ingress_class_name = None;
        annotated.metadata.annotations =
            Some([("kubernetes.io/ingress.class".to_owned(), "coracle".to_owned())].into());
        let mut none = annotated.clone();
        none.metadata.annotations = None;
        none.metadata.name = Some("none".to_owned());
        none.spec.as_mut().unwrap().rules.as_mut().unwrap()[0].host = Some("unclassed".to_owned());
        let mut table = listed([
            class("nginx", "k8s.io/ingress-nginx"),
            ingress("a", 1, spec("nginx")),
            ingress("b", 1, spec("late")),
            Change::Ingress(annotated),
            Change::Ingress(none),
        ]);
        let routing = table.routing(&Routing::default());
        let all = |routing: &Routing| ["nginx", "late", "old", "unclassed"].map(|host| service(routing, host, "/"));
        assert_eq!(all(&routing), ["none", "none", "old:80", "none"]);
        table.take(class("late", CONTROLLER));
        let routing = table.routing(&routing);
        assert_eq!(all(&routing), ["none", "late:80", "old:80", "none"]);
        // A list of classes without ours.
        [Change::ClassesInit, class("late", CONTROLLER), Change::ClassesListed].into_iter().for_each(|c| table.take(c));
        let routing = table.routing(&routing);
        assert_eq!(all(&routing), ["none", "late:80", "none", "none"]);
    }

    #[test]
    fn the_older_one_keeps_what_two_want_and_the_other_is_told_once() {
        let same = |service: &str| json!({"rules": [rule("a.x", &[("Prefix", "/p/"), ("Exact", "/e")], service)]});
        let mut table = listed([ingress("young", 2, same("young")), ingress("old", 1, same("old"))]);
        let first = table.routing(&Routing::default());
        assert_eq!([service(&first, "a.x", "/p"), service(&first, "a.x", "/e")], ["old:80", "old:80"]);
        assert_eq!(
            problems(&mut table),
            [
                "young: PathConflict: path /p/ of host a.x is served by Ingress n/old, which is older",
                "young: PathConflict: path /e of host a.x is served by Ingress n/old, which is older",
            ]
        );
        table.take(ingress("third", 3, json!({"rules": [rule("a.x", &[("Exact", "/third")], "third")]})));
        let second = table.routing(&first);
        assert_eq!((service(&second, "a.x", "/third"), problems(&mut table)), ("third:80".to_owned(), vec![]));
        table.take(gone("old"));
        let third = table.routing(&second);
        assert_eq!(service(&third, "a.x", "/p"), "young:80");
        // One Ingress with the same path twice is nobody's enemy.
        table.take(ingress("twice", 4, json!({"rules": [rule("b.x", &[("Prefix", "/p"), ("Prefix", "/p/")], "b")]})));
        table.routing(&third);
        assert_eq!(problems(&mut table), [""; 0]);
    }

    #[test]
    fn of_two_of_one_second_no_name_decides_and_none_is_called_older() {
        let of = |name: &str, uid: &str| {
            let spec = json!({"tls": [{"hosts": ["a.x"], "secretName": name}], "rules": [rule("a.x", &[("Exact", "/e")], name)]});
            let Change::Ingress(mut object) = ingress(name, 1, spec) else { unreachable!() };
            object.metadata.uid = Some(uid.to_owned());
            Change::Ingress(object)
        };
        let why = "is served by Ingress n/z, which was made in the same second and has the lower uid";
        let whose = "is that of Ingress n/z, which was made in the same second and has the lower uid";
        for order in [[("a", "2"), ("z", "1")], [("z", "1"), ("a", "2")]] {
            let mut table = listed(order.map(|(name, uid)| of(name, uid)));
            let routing = table.routing(&Routing::default());
            assert_eq!(service(&routing, "a.x", "/e"), "z:80");
            assert_eq!(
                problems(&mut table),
                [
                    format!("a: PathConflict: path /e of host a.x {why}"),
                    format!("a: CertificateConflict: the certificate of host a.x {whose}"),
                ]
            );
        }
    }

    #[test]
    fn a_default_backend_takes_what_its_rules_do_not_and_all_that_nobody_takes() {
        let mut table = listed([
            ingress(
                "one",
                2,
                json!({"defaultBackend": backend("one"), "rules": [rule("a.x", &[("Exact", "/x")], "a")]}),
            ),
            ingress(
                "two",
                1,
                json!({"defaultBackend": backend("two"), "rules": [rule("b.x", &[("Exact", "/x")], "b")]}),
            ),
        ]);
        let routing = table.routing(&Routing::default());
        for (host, path, expected) in
            [("a.x", "/x", "a:80"), ("a.x", "/y", "one:http"), ("b.x", "/y", "two:http"), ("c.x", "/", "two:http")]
        {
            assert_eq!(service(&routing, host, path), expected, "{host}{path}");
        }
        table.take(gone("two"));
        assert_eq!(service(&table.routing(&routing), "c.x", "/"), "one:http");
    }

    #[test]
    fn certificates_are_found_by_name_before_wildcard() {
        let tls = |hosts: &[&str], secret: &str| json!({"hosts": hosts, "secretName": secret});
        let with = |tls: Value, host: &str| json!({"tls": tls, "rules": [rule(host, &[("Prefix", "/")], "web")]});
        let mut table = listed([
            ingress("a", 1, with(json!([tls(&["a.x"], "a"), tls(&["*.x"], "wild")]), "a.x")),
            ingress("b", 2, with(json!([tls(&["a.x"], "stolen")]), "a.x")),
            ingress("c", 3, with(json!([tls(&[], "own")]), "c.y")),
            ingress("d", 4, with(json!([{"hosts": ["d.x"]}]), "d.x")),
            ingress(
                "e",
                5,
                json!({"tls": [tls(&["E.Z"], "e")], "rules": [rule("e.z", &[("Prefix", "/")], "web"),
                rule("plain.z", &[("Prefix", "/")], "web")]}),
            ),
        ]);
        let routing = table.routing(&Routing::default());
        let secret = |name: &str| routing.secret(name).map_or("none", |key| &*key.name);
        assert_eq!(
            ["a.x", "b.x", "x", "c.y", "d.x", "e.z", "other"].map(secret),
            ["a", "wild", "none", "own", "wild", "e", "none"]
        );
        let told = problems(&mut table);
        assert!(
            told.contains(
                &"b: CertificateConflict: the certificate of host a.x is that of Ingress n/a, which is older"
                    .to_owned()
            ),
            "{told:?}"
        );
        // What has TLS is for TLS only, with a certificate or without.
        let is_secure_only = |host: &str| routing.routes.find(host, "/").unwrap().is_secure_only;
        assert_eq!(["a.x", "c.y", "d.x", "e.z", "plain.z"].map(is_secure_only), [true, true, true, true, false]);
        let secrets: Vec<_> =
            table.served.values().flat_map(|ingress| ingress.secrets()).map(|key| &*key.name).collect();
        assert_eq!(secrets.len(), 5, "{secrets:?}");
    }

    #[test]
    fn what_an_ingress_says_in_vain_is_told() {
        let mut odd =
            rule("a.x", &[("ImplementationSpecific", "/v(1|2)"), ("Prefix", &format!("/{}", "x".repeat(5000)))], "web");
        odd["http"]["paths"][0]["backend"] = json!({"resource": {"kind": "Bucket", "name": "b"}});
        let mut table = listed([ingress("a", 1, json!({"rules": [odd]}))]);
        let routing = table.routing(&Routing::default());
        assert_eq!(service(&routing, "a.x", "/v(1|2)/x"), "Bucket b");
        assert_eq!(
            problems(&mut table),
            [
                "a: UnsupportedPath: path \"/v(1|2)\" of host a.x is compared as text: regular expressions are not supported, and \
                 pathType ImplementationSpecific means Prefix",
                "a: UnsupportedBackend: backend Bucket b is not supported: backends are Services; its requests are answered 503",
                "a: UnsupportedPath: a path of host a.x has more than 4096 bytes: it is left out",
            ]
        );
    }

    #[test]
    fn beyond_the_bound_the_newest_are_left_out_until_there_is_room() {
        let one = |host: &str| json!({"rules": [rule(host, &[("Prefix", "/")], "web")]});
        let mut table = Table::with_room_for(8);
        listed_in(&mut table, [ingress("a", 1, one("a")), ingress("b", 2, one("b")), ingress("c", 3, one("c"))]);
        let first = table.routing(&Routing::default());
        assert_eq!(["a", "b", "c"].map(|host| service(&first, host, "/")), ["web:80", "web:80", "none"]);
        assert_eq!(
            problems(&mut table),
            [
                "c: TooManyRoutes: it is not served: it has 2 paths, segments of paths and hosts; all Ingresses together may have 8, \
                 those of a namespace half of them"
            ]
        );
        table.take(gone("a"));
        let second = table.routing(&first);
        assert_eq!(["a", "b", "c"].map(|host| service(&second, host, "/")), ["none", "web:80", "web:80"]);
        assert!(table.left_out.is_empty());
    }

    /// One of a namespace that costs so much, and is for the host of its name.
    fn of(namespace: &str, name: &str, second: u8, cost: usize) -> Change {
        let spec = json!({"rules": [rule(name, &[("Prefix", &"/a".repeat(cost - 2))], "web")]});
        let Change::Ingress(mut object) = ingress(name, second, spec) else { unreachable!() };
        object.metadata.namespace = Some(namespace.to_owned());
        Change::Ingress(object)
    }

    fn hosts(routing: &Routing) -> Vec<&'static str> {
        let is_served = |host: &&str| routing.routes.find(host, &"/a".repeat(50)).is_some();
        ["a", "b", "c", "d", "e"].into_iter().filter(is_served).collect()
    }

    #[test]
    fn a_namespace_has_half_of_the_room_and_the_older_ones_have_what_is_left() {
        // In whatever order they are heard of.
        let all = || {
            [of("n", "a", 3, 20), of("n", "b", 2, 20), of("m", "c", 4, 10), of("o", "d", 1, 10), of("o", "e", 5, 10)]
        };
        let mut orders = vec![all()];
        orders.push(all());
        orders[1].reverse();
        for order in orders {
            let mut table = Table::with_room_for(50);
            listed_in(&mut table, order);
            let routing = table.routing(&Routing::default());
            assert_eq!(hosts(&routing), ["b", "c", "d", "e"], "n has 20 of its 25, and a is its newer one");
            // One that is older than one that is served takes its place, as it would have after a new start.
            table.take(of("p", "a", 0, 10));
            let routing = table.routing(&routing);
            assert_eq!(hosts(&routing), ["a", "b", "c", "d"]);
        }
    }

    #[test]
    fn a_change_for_which_there_is_no_room_changes_nothing_until_there_is() {
        let mut table = Table::with_room_for(40);
        listed_in(&mut table, [of("n", "a", 1, 10), of("n", "b", 2, 10), of("m", "c", 3, 10)]);
        let routing = table.routing(&Routing::default());
        table.told();
        table.take(of("n", "b", 2, 11));
        let routing = table.routing(&routing);
        assert_eq!(
            (hosts(&routing), &routing.routes.find("b", &"/a".repeat(8)).is_some()),
            (vec!["a", "b", "c"], &true)
        );
        let told = problems(&mut table);
        assert!(
            matches!(told.as_slice(), [one] if one.starts_with("b: TooManyRoutes: it is served as it was before: it has 11")),
            "{told:?}"
        );
        // Somebody else's change says nothing of it again.
        table.take(of("m", "c", 3, 9));
        let routing = table.routing(&routing);
        assert_eq!(problems(&mut table), [""; 0]);
        let Change::Ingress(mut a) = of("n", "a", 1, 10) else { unreachable!() };
        a.spec = None;
        table.take(Change::IngressGone(a));
        let routing = table.routing(&routing);
        assert!(routing.routes.find("b", &"/a".repeat(8)).is_none() && hosts(&routing) == ["b", "c"]);
        assert!(table.left_out.is_empty());
    }

    #[test]
    fn segments_and_hosts_count_as_routes_do() {
        let served = |spec: Value| {
            let mut table = Table::with_room_for(200);
            listed_in(&mut table, [ingress("a", 1, spec)]);
            table.settle();
            table.served.len() == 1
        };
        let deep = |segments: usize| json!({"rules": [rule("a", &[("Prefix", &"/a".repeat(segments))], "web")]});
        assert_eq!([98, 99].map(|segments| served(deep(segments))), [true, false]);
        let exact = |paths: usize| {
            let long: Vec<String> = (0..paths).map(|n| format!("/{n:04000}")).collect();
            let paths: Vec<_> = long.iter().map(|path| ("Exact", &**path)).collect();
            json!({"rules": [rule("a", &paths, "web")]})
        };
        assert_eq!([6, 7].map(|paths| served(exact(paths))), [true, false]);
        let hosts = |hosts: usize| {
            let hosts: Vec<String> = (0..hosts).map(|n| format!("h{n}.x")).collect();
            json!({"defaultBackend": backend("web"), "tls": [{"hosts": hosts, "secretName": "s"}]})
        };
        assert_eq!([100, 101].map(|of_tls| served(hosts(of_tls))), [true, false]);
        // Those that name no host have all hosts of the rules.
        let all = |tls: usize| {
            let rules: Vec<Value> = (0..10).map(|n| json!({"host": format!("h{n}.x")})).collect();
            json!({"rules": rules, "tls": vec![json!({"secretName": "s"}); tls]})
        };
        assert_eq!([9, 10].map(|tls| served(all(tls))), [true, false]);
    }

    #[test]
    fn who_is_changed_does_not_leave() {
        let one = |service: &str, uid: &str| {
            let Change::Ingress(mut object) =
                ingress("a", 1, json!({"rules": [rule("a", &[("Prefix", "/")], service)]}))
            else {
                unreachable!()
            };
            object.metadata.uid = Some(uid.to_owned());
            Change::Ingress(object)
        };
        let mut table = Table::with_room_for(8);
        listed_in(&mut table, [one("old", "u")]);
        table.told();
        let mut told = |change: Change| -> Vec<String> {
            table.take(change);
            let told = table.told().into_iter().map(|told| match told {
                Told::Served(ingress) => format!("served {}", ingress.origin.uid),
                Told::Left(origin) => format!("left {}", origin.uid),
                Told::Problem(_, problem) => problem.reason.to_owned(),
            });
            told.collect()
        };
        assert_eq!(told(one("new", "u")), ["served u"]);
        assert_eq!(told(one("new", "u")), [""; 0]);
        assert_eq!(told(one("other", "another")), ["served another", "left u"]);
        let deep = rule("a", &[("Prefix", "/1/2/3")], "web");
        assert_eq!(told(ingress("a", 1, json!({"rules": [deep]}))), ["TooManyRoutes", "left another"]);
        assert_eq!(told(gone("a")), [""; 0]);
    }

    #[test]
    fn so_many_secrets_and_no_more() {
        let tls: Vec<Value> =
            (0..70).map(|n| json!({"hosts": [format!("h{n}")], "secretName": format!("s{n}")})).collect();
        let again = json!({"hosts": ["again"], "secretName": "s0"});
        let tls: Vec<Value> = tls.into_iter().chain([again]).collect();
        let mut table =
            listed([ingress("a", 1, json!({"tls": tls, "rules": [rule("h69", &[("Prefix", "/")], "web")]}))]);
        let routing = table.routing(&Routing::default());
        assert_eq!(["h63", "h64", "again"].map(|host| routing.secret(host).is_some()), [true, false, true]);
        assert!(routing.routes.find("h69", "/").unwrap().is_secure_only, "it is for TLS as it was");
        let message = "it names more than 64 secrets: the certificates of 6 entries of its tls are left out";
        assert_eq!(problems(&mut table), [format!("a: TooManySecrets: {message}")]);
    }
}
