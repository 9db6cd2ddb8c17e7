//! Requests by the Ingress whose rule took them. One load and one look-up a request; the table is made anew when an Ingress answers
//! its first one, or its first one since it was changed.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use coracle_discovery::Origin;
use http::StatusCode;

use super::stats::Classes;

/// Ingresses that are counted; more are not told apart, and not counted.
const INGRESSES_MAX: usize = 5000;
/// Where there are as many, it is looked so often for those that are gone.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// Namespace and name.
type Key = (Arc<str>, Arc<str>);

#[derive(Debug, Clone)]
struct Counted {
    /// The Ingress as it was when its latest request came; gone when it is, or is another.
    origin: Weak<Origin>,
    classes: Arc<Classes>,
}

/// Requests by Ingress.
#[derive(Debug)]
pub struct ByIngress {
    all: ArcSwap<HashMap<Key, Counted>>,
    begun: Instant,
    /// When it was looked for those that are gone, in milliseconds since then.
    looked: AtomicU64,
}

impl Default for ByIngress {
    fn default() -> ByIngress {
        ByIngress { all: ArcSwap::default(), begun: Instant::now(), looked: AtomicU64::new(0) }
    }
}

/// A request of an Ingress: counted when it is dropped, by its answer or as one that has none.
#[derive(Debug)]
pub(crate) struct Asked {
    classes: Option<Arc<Classes>>,
    /// How it was answered.
    pub status: Option<StatusCode>,
}

impl Drop for Asked {
    fn drop(&mut self) {
        if let Some(classes) = &self.classes {
            classes.count(self.status);
        }
    }
}

impl ByIngress {
    /// A request of this Ingress begins.
    pub(crate) fn begin(&self, origin: &Arc<Origin>) -> Asked {
        Asked { classes: self.classes(origin), status: None }
    }

    fn classes(&self, origin: &Arc<Origin>) -> Option<Arc<Classes>> {
        let key = (origin.namespace.clone(), origin.name.clone());
        let is_now = |counted: &Counted| std::ptr::eq(counted.origin.as_ptr(), Arc::as_ptr(origin));
        let all = self.all.load();
        let found = all.get(&key);
        if let Some(counted) = found.filter(|counted| is_now(counted)) {
            return Some(counted.classes.clone());
        }
        let has_room = found.is_some() || all.len() < INGRESSES_MAX;
        if !has_room && !self.may_look() {
            return None;
        }
        self.all.rcu(|all| {
            let mut all = HashMap::clone(all);
            if !has_room {
                all.retain(|_, counted| counted.origin.strong_count() > 0);
            }
            if all.len() < INGRESSES_MAX || all.contains_key(&key) {
                let new = || Counted { origin: Weak::new(), classes: Arc::default() };
                all.entry(key.clone()).or_insert_with(new).origin = Arc::downgrade(origin);
            }
            all
        });
        self.all.load().get(&key).map(|counted| counted.classes.clone())
    }

    /// Whether it is time to look for those that are gone; it is for one of all who ask.
    fn may_look(&self) -> bool {
        let now = self.begun.elapsed().as_millis() as u64;
        let looked = self.looked.load(Relaxed);
        let is_time = now.saturating_sub(looked) >= LOOK_EVERY.as_millis() as u64;
        is_time && self.looked.compare_exchange(looked, now, Relaxed, Relaxed).is_ok()
    }

    /// All that is counted: namespace, name, class, how many.
    pub(crate) fn each(&self, mut tell: impl FnMut(&str, &str, &str, u64)) {
        let all = self.all.load();
        let mut keys: Vec<_> = all.iter().collect();
        keys.sort_unstable_by(|a, b| a.0.cmp(b.0));
        for ((namespace, name), counted) in keys {
            counted.classes.all().for_each(|(class, count)| tell(namespace, name, class, count));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(name: &str) -> Arc<Origin> {
        Arc::new(Origin { kind: "Ingress", namespace: "n".into(), name: name.into(), uid: "u".into() })
    }

    fn told(by_ingress: &ByIngress) -> Vec<String> {
        let mut told = Vec::new();
        by_ingress.each(|_, name, class, count| {
            if count > 0 {
                told.push(format!("{name} {class} {count}"));
            }
        });
        told
    }

    #[test]
    fn each_ingress_is_counted_for_itself_also_after_it_has_changed() {
        let by_ingress = ByIngress::default();
        for (name, status) in [("a", 200), ("a", 200), ("b", 404), ("a", 500), ("b", 0)] {
            by_ingress.begin(&origin(name)).status = StatusCode::from_u16(status).ok();
        }
        assert_eq!(told(&by_ingress), ["a 2xx 2", "a 5xx 1", "b 0 1", "b 4xx 1"]);
    }

    #[test]
    fn there_is_an_end_of_them_and_those_that_are_gone_make_room() {
        let (begun, looked) = (Instant::now().checked_sub(LOOK_EVERY).unwrap(), LOOK_EVERY.as_millis() as u64);
        let by_ingress = ByIngress { begun, looked: AtomicU64::new(looked), ..ByIngress::default() };
        let mut all: Vec<_> = (0..INGRESSES_MAX).map(|n| origin(&n.to_string())).collect();
        let table = all.iter().map(|origin| {
            let key = (origin.namespace.clone(), origin.name.clone());
            (key, Counted { origin: Arc::downgrade(origin), classes: Arc::default() })
        });
        by_ingress.all.store(Arc::new(table.collect()));
        let (before, late) = (by_ingress.all.load_full(), origin("late"));
        by_ingress.begin(&late).status = Some(StatusCode::OK);
        by_ingress.begin(&all[0]).status = Some(StatusCode::OK);
        assert!(Arc::ptr_eq(&before, &by_ingress.all.load()), "nothing is made anew for whom there is no room");
        // Once it is looked.
        by_ingress.looked.store(0, Relaxed);
        by_ingress.begin(&late).status = Some(StatusCode::OK);
        assert_eq!(told(&by_ingress), ["0 2xx 1"], "all are there still");
        all.pop();
        by_ingress.begin(&late).status = Some(StatusCode::OK);
        assert_eq!(told(&by_ingress).len(), 1, "it was looked a moment ago");
        by_ingress.looked.store(0, Relaxed);
        by_ingress.begin(&late).status = Some(StatusCode::OK);
        assert_eq!(told(&by_ingress), ["0 2xx 1", "late 2xx 1"]);
    }
}
