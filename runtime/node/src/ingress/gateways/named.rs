//! Which of the Secrets that listeners name are followed: nothing but accounts.
//!
//! Each that is followed is a watch at the API server, on every node, so there are so many and no more. Whoever may write a Gateway may
//! name what is not there: those count by themselves, and take no place from Secrets that are.
//!
//! ```text
//!  Waiting ─(there is room)─► Asked ─► Present ◄─► Missing
//!     ▲                         └─────────┴──(no room to wait for it)──► Left ─(there is room)─► Asked
//!     └──(it comes, and there is no room for it)──────────────────────── Missing
//! ```

use std::collections::HashMap;
use std::sync::Arc;

use coracle_discovery::SecretKey;

/// How many, and how many of those of one namespace.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bound {
    all: usize,
    namespace: usize,
}

/// What there may be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Names that are looked at.
    names: Bound,
    /// Those beyond that are told of.
    beyond: usize,
    /// Secrets that are shown, or of which it is not known yet whether they are there.
    present: Bound,
    /// Secrets that are not there, and are waited for.
    missing: Bound,
}

impl Bounds {
    /// Those of a node; followed are as many as [`crate::objects::Bounds::GATEWAYS`] has room for.
    pub const NODE: Bounds = Bounds {
        names: Bound { all: 10_000, namespace: 1_000 },
        beyond: 1_000,
        present: Bound { all: 1_000, namespace: 500 },
        missing: Bound { all: 1_000, namespace: 500 },
    };
}

/// How many there are.
#[derive(Debug, Default)]
struct Count {
    all: usize,
    by_namespace: HashMap<Arc<str>, usize>,
}

impl Count {
    fn has_room(&self, secret: &SecretKey, bound: Bound) -> bool {
        let own = self.by_namespace.get(&secret.namespace).copied().unwrap_or_default();
        self.all < bound.all && own < bound.namespace
    }

    fn add(&mut self, secret: &SecretKey) {
        self.all += 1;
        *self.by_namespace.entry(secret.namespace.clone()).or_default() += 1;
    }

    fn remove(&mut self, secret: &SecretKey) {
        let Some(own) = self.by_namespace.get_mut(&secret.namespace) else { return };
        *own -= 1;
        self.all -= 1;
        if *own == 0 {
            self.by_namespace.remove(&secret.namespace);
        }
    }
}

/// How it stands with a Secret; see the head of the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Waiting,
    Asked,
    Present,
    Missing,
    Left,
}

/// Secrets that listeners name.
#[derive(Debug)]
pub(super) struct Named {
    bounds: Bounds,
    standing: HashMap<SecretKey, Standing>,
    /// Those of the oldest Gateways first.
    order: Vec<SecretKey>,
    /// The first of those for which there is no room even in that.
    beyond: Vec<SecretKey>,
    /// Those that are asked or present.
    present: Count,
    missing: Count,
    /// Whether some are not followed for which there may be room.
    may_begin: bool,
}

impl Named {
    /// Nothing is named.
    pub fn new(bounds: Bounds) -> Named {
        Named {
            bounds,
            standing: HashMap::new(),
            order: Vec::new(),
            beyond: Vec::new(),
            present: Count::default(),
            missing: Count::default(),
            may_begin: false,
        }
    }

    /// These are named now, each once, those that go first in front; returns those that are not looked at any more.
    pub fn set<'a>(&mut self, names: impl Iterator<Item = &'a SecretKey>) -> Vec<SecretKey> {
        let (mut count, mut order, mut standing) = (Count::default(), Vec::new(), HashMap::new());
        let mut gone = std::mem::take(&mut self.beyond);
        for secret in names {
            if count.has_room(secret, self.bounds.names) {
                count.add(secret);
                standing.insert(secret.clone(), self.standing.remove(secret).unwrap_or(Standing::Waiting));
                order.push(secret.clone());
            } else if self.beyond.len() < self.bounds.beyond {
                self.beyond.push(secret.clone());
            }
        }
        self.order = order;
        for (secret, standing) in std::mem::replace(&mut self.standing, standing) {
            self.uncount(&secret, standing);
            gone.push(secret);
        }
        self.may_begin = true;
        gone
    }

    /// Begins to follow those for which there is room: they are to be read.
    pub fn begin(&mut self) -> Vec<SecretKey> {
        let mut begun = Vec::new();
        if !std::mem::take(&mut self.may_begin) {
            return begun;
        }
        for secret in &self.order {
            let Some(standing) = self.standing.get_mut(secret) else { continue };
            let may_be = match standing {
                Standing::Waiting => true,
                Standing::Left => self.missing.has_room(secret, self.bounds.missing),
                Standing::Asked | Standing::Present | Standing::Missing => false,
            };
            if may_be && self.present.has_room(secret, self.bounds.present) {
                self.present.add(secret);
                *standing = Standing::Asked;
                begun.push(secret.clone());
            }
        }
        begun
    }

    /// Whether it is followed.
    pub fn is_followed(&self, secret: &SecretKey) -> bool {
        matches!(self.standing.get(secret), Some(Standing::Asked | Standing::Present | Standing::Missing))
    }

    /// Those that are named and not followed.
    pub fn left_out(&self) -> impl Iterator<Item = &SecretKey> {
        self.order.iter().filter(|secret| !self.is_followed(secret)).chain(&self.beyond)
    }

    /// One that is followed was read: it is there or not. Returns whether it is followed still.
    pub fn found(&mut self, secret: &SecretKey, is_there: bool) -> bool {
        let Some(before) = self.standing.get(secret).copied().filter(|_| self.is_followed(secret)) else {
            return false;
        };
        let now = if is_there { Standing::Present } else { Standing::Missing };
        if before == now {
            return true;
        }
        self.uncount(secret, before);
        let now = match now {
            Standing::Missing if self.missing.has_room(secret, self.bounds.missing) => {
                self.missing.add(secret);
                Standing::Missing
            }
            Standing::Missing => Standing::Left,
            _ if self.present.has_room(secret, self.bounds.present) => {
                self.present.add(secret);
                Standing::Present
            }
            _ => Standing::Waiting,
        };
        self.standing.insert(secret.clone(), now);
        self.is_followed(secret)
    }

    /// It counts no more: then there may be room for others.
    fn uncount(&mut self, secret: &SecretKey, standing: Standing) {
        match standing {
            Standing::Waiting | Standing::Left => return,
            Standing::Asked | Standing::Present => self.present.remove(secret),
            Standing::Missing => self.missing.remove(secret),
        }
        self.may_begin = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> SecretKey {
        let (namespace, name) = text.split_once('/').unwrap();
        SecretKey { namespace: namespace.into(), name: name.into() }
    }

    const BOUNDS: Bounds = Bounds {
        names: Bound { all: 8, namespace: 6 },
        beyond: 3,
        present: Bound { all: 3, namespace: 2 },
        missing: Bound { all: 2, namespace: 1 },
    };

    impl Named {
        /// Has these named; says what is begun.
        fn set_all(&mut self, names: &[&str]) -> Vec<String> {
            let keys: Vec<SecretKey> = names.iter().map(|name| key(name)).collect();
            self.set(keys.iter());
            self.begun()
        }

        fn begun(&mut self) -> Vec<String> {
            self.begin().iter().map(|secret| format!("{}/{}", secret.namespace, secret.name)).collect()
        }

        fn finds(&mut self, name: &str, is_there: bool) -> (bool, Vec<String>) {
            (self.found(&key(name), is_there), self.begun())
        }
    }

    #[test]
    fn what_is_missing_takes_no_place_from_what_is_there() {
        let mut named = Named::new(BOUNDS);
        assert_eq!(named.set_all(&["a/1", "a/2", "a/3", "a/4", "b/1"]), ["a/1", "a/2", "b/1"]);
        // One may be waited for, and the next is looked at; what is waited for no more is not followed.
        assert_eq!(named.finds("a/1", false), (true, vec!["a/3".to_owned()]));
        assert_eq!(named.finds("a/2", false), (false, vec!["a/4".to_owned()]));
        assert_eq!(named.finds("a/3", true), (true, vec![]));
        assert_eq!(named.finds("a/4", true), (true, vec![]));
        assert_eq!(named.finds("b/1", true), (true, vec![]));
        assert_eq!(named.left_out().cloned().collect::<Vec<_>>(), [key("a/2")]);
        // The one that is waited for comes, and there is no room for it; then there is one to wait for the other.
        assert_eq!(named.finds("a/1", true), (false, vec![]));
        // There is room: the older one first, then the one that was missing.
        assert_eq!(named.finds("a/3", false), (true, vec!["a/1".to_owned()]));
        assert_eq!(named.finds("a/1", true), (true, vec![]));
        assert_eq!(named.set_all(&["a/2", "a/4"]), ["a/2"]);
        assert!(named.found(&key("a/2"), false) && named.found(&key("a/4"), true));
        assert_eq!(named.set(std::iter::empty()).len(), 2);
        assert!(named.present.by_namespace.is_empty() && named.missing.by_namespace.is_empty());
        assert_eq!((named.present.all, named.missing.all), (0, 0));
    }

    #[test]
    fn names_are_so_many_and_a_namespace_leaves_some_for_others() {
        let mut named = Named::new(BOUNDS);
        let many: Vec<SecretKey> = (0..100).map(|number| key(&format!("a/{number}"))).collect();
        let others: Vec<SecretKey> = (0..100).map(|number| key(&format!("b/{number}"))).collect();
        named.set(many.iter().chain(&others));
        assert_eq!(named.order, [&many[..6], &others[..2]].concat());
        assert_eq!(named.beyond, many[6..9]);
        assert!(!named.found(&many[50], true), "nobody looks at it");
        assert_eq!(named.begun(), ["a/0", "a/1", "b/0"]);
        // What goes on being named stays as it is; what was beyond is told of no more.
        assert!(named.found(&many[0], true));
        assert_eq!(named.set(many[..1].iter()).len(), 7 + 3);
        assert!(named.begin().is_empty() && named.is_followed(&many[0]));
        // Names that go before push others out.
        named.set(many[1..].iter().chain(&many[..1]));
        assert!(!named.is_followed(&many[0]) && !named.found(&many[0], true));
    }
}
