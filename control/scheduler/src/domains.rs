//! Where nodes are: the domains that a topology key divides them into (a zone, a rack, each node for itself).
//!
//! Domains are numbers, so that counting pods in them is counting in an array. They are made anew when nodes come, go or
//! change in their labels or taints ([`ClusterView::places`]).

use std::collections::HashMap;
use std::sync::Arc;

use crate::view::ClusterView;

/// A node without the label.
const NONE: u32 = u32::MAX;
/// Topology keys that are kept; at the bound all are made anew when they are asked for.
const KEYS_MAX: usize = 256;

/// The domains of one key.
#[derive(Debug, Default)]
pub(crate) struct Domains {
    of_slot: Vec<u32>,
    count: usize,
}

impl Domains {
    fn new(view: &ClusterView, key: &str) -> Self {
        let mut of_slot = vec![NONE; view.slots()];
        let mut values: HashMap<&str, u32> = HashMap::new();
        for (slot, node) in view.nodes() {
            if let Some(value) = node.labels.get(key) {
                let next = u32::try_from(values.len()).unwrap_or(NONE);
                of_slot[slot] = *values.entry(value).or_insert(next);
            }
        }
        Self { of_slot, count: values.len() }
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.count
    }

    /// The domain of the node in a slot, if it has the label.
    pub(crate) fn of(&self, slot: usize) -> Option<usize> {
        self.of_slot.get(slot).filter(|domain| **domain != NONE).map(|domain| *domain as usize)
    }
}

/// The domains of all keys that anybody asked for.
#[derive(Debug, Default)]
pub(crate) struct Topologies {
    places: u64,
    by_key: HashMap<String, Arc<Domains>>,
    /// Of a key that no node has.
    none: Arc<Domains>,
}

impl Topologies {
    /// Forgets what does not hold any more; returns whether anything was forgotten.
    pub(crate) fn follow(&mut self, view: &ClusterView) -> bool {
        if self.places == view.places() {
            return false;
        }
        self.places = view.places();
        self.by_key.clear();
        true
    }

    /// The domains of a key.
    pub(crate) fn of(&mut self, view: &ClusterView, key: &str) -> Arc<Domains> {
        if let Some(known) = self.by_key.get(key) {
            return known.clone();
        }
        if !view.has_label(key) {
            return self.none.clone();
        }
        if self.by_key.len() >= KEYS_MAX {
            self.by_key.clear();
        }
        let made = Arc::new(Domains::new(view, key));
        self.by_key.insert(key.to_owned(), made.clone());
        made
    }
}
