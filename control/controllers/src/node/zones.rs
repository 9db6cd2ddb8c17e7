//! How many nodes fail in each zone, and what that means for driving pods out (the reference's 55 % rule). No I/O.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;

use super::plan;

/// Zones up to this size do not evict at all in a partial failure.
const SMALL: usize = 50;

/// How fast pods may be driven out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    /// One node of the zone per this many seconds.
    Every(u64),
    /// No more nodes for now: replacing would bury the rest.
    Never,
    /// Every node of every zone fails: it is rather us who are cut off. Whom we drove out so far is let stay.
    Lift,
}

/// Nodes that fail, by zone. Nodes that never said how they are do not count.
#[derive(Debug, Default)]
pub(crate) struct Zones {
    /// The node in this process.
    own: Option<String>,
    nodes: HashMap<Arc<str>, (Arc<str>, bool)>,
    zones: HashMap<Arc<str>, Count>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Count {
    failing: usize,
    all: usize,
}

impl Zones {
    pub(crate) fn new(own: Option<String>) -> Zones {
        Zones { own, ..Zones::default() }
    }

    /// A node is as told; returns whether that changes the pace of any zone.
    pub(crate) fn put(&mut self, name: &Arc<str>, node: &Node) -> bool {
        let Some(ready) = plan::readiness(node) else { return self.remove(name) };
        let state = (zone_of(node), ready != "True");
        if self.nodes.get(name) == Some(&state) {
            return false;
        }
        let before = self.paces();
        self.take(name);
        let count = self.zones.entry(state.0.clone()).or_default();
        count.all += 1;
        count.failing += usize::from(state.1);
        self.nodes.insert(name.clone(), state);
        before != self.paces()
    }

    /// A node is gone; returns whether that changes the pace of any zone.
    pub(crate) fn remove(&mut self, name: &str) -> bool {
        let before = self.paces();
        self.take(name);
        before != self.paces()
    }

    fn take(&mut self, name: &str) {
        let Some((zone, failing)) = self.nodes.remove(name) else { return };
        if let Some(count) = self.zones.get_mut(&zone) {
            count.all -= 1;
            count.failing -= usize::from(failing);
            if count.all == 0 {
                self.zones.remove(&zone);
            }
        }
    }

    fn paces(&self) -> HashMap<Arc<str>, Pace> {
        self.zones.keys().map(|zone| (zone.clone(), self.pace(zone))).collect()
    }

    /// Whether every node fails. That the one in this process does not says nothing about several others, which may all be
    /// behind the same cable; one other alone may well have died.
    pub(crate) fn all_down(&self) -> bool {
        let sum = |(failing, all), count: &Count| (failing + count.failing, all + count.all);
        let (failing, all) = self.zones.values().fold((0, 0), sum);
        let own = self.own.as_deref().and_then(|own| self.nodes.get(own));
        let only_own_is_left = own.is_some_and(|(_, fails)| !fails) && all > 2 && failing == all - 1;
        all > 0 && failing == all || only_own_is_left
    }

    /// How fast pods of nodes in the zone may be driven out.
    pub(crate) fn pace(&self, zone: &str) -> Pace {
        if self.all_down() {
            return Pace::Lift;
        }
        let Count { failing, all } = self.zones.get(zone).copied().unwrap_or_default();
        if failing < all && failing > 2 && failing * 100 >= all * 55 {
            return if all <= SMALL { Pace::Never } else { Pace::Every(100) };
        }
        Pace::Every(10)
    }
}

/// Region and zone of a node.
pub(crate) fn zone_of(node: &Node) -> Arc<str> {
    let label =
        |name: &str| node.metadata.labels.as_ref().and_then(|labels| labels.get(name)).map_or("", String::as_str);
    format!("{}/{}", label("topology.kubernetes.io/region"), label("topology.kubernetes.io/zone")).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn node(zone: &str, ready: &str) -> Node {
        serde_json::from_value(json!({
            "metadata": {"labels": {"topology.kubernetes.io/zone": zone}},
            "status": {"conditions": [{"type": "Ready", "status": ready}]},
        }))
        .unwrap()
    }

    #[test]
    fn mass_failure_slows_down_and_total_failure_is_ours() {
        for (failing, all, expected) in [
            (1, 1, Pace::Lift),
            (5, 5, Pace::Lift),
            (1, 3, Pace::Every(10)),
            (2, 3, Pace::Every(10)),
            (3, 5, Pace::Never),
            (60, 100, Pace::Every(100)),
            (50, 100, Pace::Every(10)),
        ] {
            let mut zones = Zones::default();
            for index in 0..all {
                let ready = if index < failing { "Unknown" } else { "True" };
                zones.put(&format!("n{index}").into(), &node("a", ready));
            }
            assert_eq!(zones.pace("/a"), expected, "{failing} of {all}");
        }
    }

    #[test]
    fn that_the_node_of_this_process_is_heard_says_nothing_of_several_others() {
        for (others, failing, expected) in
            [(1, 1, Pace::Every(10)), (2, 2, Pace::Lift), (2, 1, Pace::Every(10)), (60, 60, Pace::Lift)]
        {
            let mut zones = Zones::new(Some("own".to_owned()));
            zones.put(&"own".into(), &node("b", "True"));
            for index in 0..others {
                let ready = if index < failing { "Unknown" } else { "True" };
                zones.put(&format!("n{index}").into(), &node("a", ready));
            }
            assert_eq!(zones.pace("/a"), expected, "{failing} of {others}");
        }
    }

    #[test]
    fn a_zone_that_fails_beside_another_that_does_not_is_evicted() {
        let mut zones = Zones::default();
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        assert!(zones.put(&a, &node("a", "Unknown")));
        assert_eq!(zones.pace("/a"), Pace::Lift);
        assert!(zones.put(&b, &node("b", "True")), "no longer all");
        assert_eq!((zones.pace("/a"), zones.all_down()), (Pace::Every(10), false));
        assert!(!zones.put(&b, &node("b", "True")), "nothing new");
        assert!(zones.remove(&b));
        assert!(zones.all_down());
        assert!(zones.put(&b, &node("b", "True")) && zones.put(&a, &serde_json::from_value(json!({})).unwrap()));
        assert!(zones.nodes.len() == 1, "one that never said how it is does not count");
    }
}
