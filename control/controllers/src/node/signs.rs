//! Signs of life of nodes, and how long a node may be silent. No I/O, no clock.
//!
//! A lease says for how long its node promises to be heard of: who is silent for longer is suspected. That is a few seconds for
//! a node of ours and tens of them for a kubelet, and it takes a witness: when nobody is heard any more, it is rather us
//! who are cut off, or were busy, so a whole grace period has to pass. The node in this process is no witness: it is heard
//! also when we are cut off. (Where there is one other node alone it has to do, for nobody else could tell.) So it has for who was not heard yet by this controller,
//! with a shorter one: another one led before, and nodes have to find the way to this server first.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use tokio::time::Instant;

/// No promise is shorter: what a busy machine may take to hear of a renewal.
const PROMISE_MIN: Duration = Duration::from_secs(2);
/// How long nodes have to find a controller that has just begun.
const BEGINNING: Duration = Duration::from_secs(15);
/// How often a witness is looked for.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// The last signs of all nodes.
#[derive(Debug)]
pub(crate) struct Signs {
    /// The longest silence, whatever a lease promises.
    grace: Duration,
    /// The node in this process.
    own: Option<String>,
    nodes: HashMap<Arc<str>, Sign>,
}

#[derive(Debug)]
struct Sign {
    at: Instant,
    /// Something new was heard, and not only what was there at the beginning.
    heard: bool,
    heartbeat: Option<Time>,
    renewed: Option<MicroTime>,
    promise: Option<Duration>,
}

/// What a node's silence means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Silence {
    /// Nothing, until so much more of it.
    Fine(Duration),
    /// It is not known to live.
    Unknown,
}

impl Signs {
    /// Nobody was heard yet.
    pub(crate) fn new(grace: Duration, own: Option<String>) -> Signs {
        Signs { grace, own, nodes: HashMap::new() }
    }

    /// The node says how it is. One that was not known before has a whole period from `now` on.
    pub(crate) fn node(&mut self, name: &Arc<str>, heartbeat: Option<Time>, now: Instant) {
        let first = || Sign { at: now, heard: false, heartbeat: heartbeat.clone(), renewed: None, promise: None };
        let sign = self.nodes.entry(name.clone()).or_insert_with(first);
        if sign.heartbeat != heartbeat {
            (sign.at, sign.heard, sign.heartbeat) = (now, true, heartbeat);
        }
    }

    /// The lease of a node that is known; returns when it is time to look whether it was renewed.
    pub(crate) fn lease(
        &mut self,
        name: &str,
        renewed: Option<MicroTime>,
        promise: Option<Duration>,
        now: Instant,
    ) -> Option<Duration> {
        let sign = self.nodes.get_mut(name)?;
        sign.promise = promise;
        if sign.renewed != renewed {
            // The first one may be an old one.
            sign.heard |= sign.renewed.is_some();
            (sign.at, sign.renewed) = (now, renewed);
        }
        Some(promise.map_or(self.grace, |promise| promise.max(PROMISE_MIN).min(self.grace)))
    }

    /// The node is gone.
    pub(crate) fn forget(&mut self, name: &str) {
        self.nodes.remove(name);
    }

    /// Everybody is heard of now: whoever was not could not be.
    pub(crate) fn hear_all(&mut self, now: Instant) {
        self.nodes.values_mut().for_each(|sign| sign.at = now);
    }

    /// What it means that `name` was not heard since its last sign, or since we were last awake for sure. It has
    /// `startup` at least.
    pub(crate) fn silence(&self, name: &str, awake_since: Instant, startup: Option<Duration>, now: Instant) -> Silence {
        let Some(sign) = self.nodes.get(name) else { return Silence::Fine(self.grace) };
        let silent = now.saturating_duration_since(awake_since.max(sign.at));
        let beginning = if sign.heard { PROMISE_MIN } else { BEGINNING };
        let own = sign.promise.unwrap_or(self.grace).max(beginning).min(self.grace).max(startup.unwrap_or_default());
        if silent < own {
            return Silence::Fine(own - silent);
        }
        let whole = self.grace.max(own);
        // Half of it: who was heard just after `name` and not since has fallen silent with it.
        if silent >= whole || self.has_witness(name, own / 2, now) {
            return Silence::Unknown;
        }
        Silence::Fine(LOOK_AGAIN.min(whole - silent))
    }

    /// Whether another node was heard within this time, that could not be heard if we were cut off.
    fn has_witness(&self, name: &str, within: Duration, now: Instant) -> bool {
        let heard = |sign: &Sign| sign.heard && now.saturating_duration_since(sign.at) < within;
        let own = self.own.as_deref().filter(|own| self.nodes.contains_key(*own));
        let elsewhere = self.nodes.len() - usize::from(own.is_some());
        let counts = |other: &str| other != name && (elsewhere <= 1 || Some(other) != own);
        self.nodes.iter().any(|(other, sign)| counts(other) && heard(sign))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(50);

    struct World {
        signs: Signs,
        begun: Instant,
        renewals: i64,
    }

    impl World {
        fn new(nodes: &[&str]) -> World {
            World::with(nodes, None)
        }

        fn with(nodes: &[&str], own: Option<&str>) -> World {
            let signs = Signs::new(GRACE, own.map(str::to_owned));
            let mut world = World { signs, begun: Instant::now(), renewals: 0 };
            for node in nodes {
                world.signs.node(&Arc::from(*node), None, world.begun);
                world.renew(node, 0, 4);
            }
            world
        }

        fn at(&self, seconds: u64) -> Instant {
            self.begun + Duration::from_secs(seconds)
        }

        fn renew(&mut self, node: &str, seconds: u64, promise: u64) {
            self.renewals += 1;
            let renewed = MicroTime(jiff::Timestamp::from_second(self.renewals).unwrap());
            let now = self.at(seconds);
            self.signs.lease(node, Some(renewed), Some(Duration::from_secs(promise)), now);
        }

        fn unknown(&self, node: &str, seconds: u64) -> bool {
            self.signs.silence(node, self.begun, None, self.at(seconds)) == Silence::Unknown
        }
    }

    #[test]
    fn a_node_is_held_to_what_its_lease_promises() {
        let mut world = World::new(&["ours", "kubelet", "other"]);
        for second in 1..=20 {
            world.renew("other", second, 4);
        }
        world.renew("ours", 20, 4);
        world.renew("kubelet", 20, 40);
        for second in 21..=70 {
            world.renew("other", second, 4);
            let expected = (second >= 24, second >= 60);
            assert_eq!((world.unknown("ours", second), world.unknown("kubelet", second)), expected, "{second}");
        }
    }

    #[test]
    fn where_nobody_is_heard_it_is_rather_us() {
        let mut world = World::new(&["a", "b"]);
        world.renew("a", 1, 4);
        // Just after the other, and not since: no witness.
        world.renew("b", 2, 4);
        for (second, expected) in [(5, false), (6, false), (40, false), (51, true)] {
            assert_eq!(world.unknown("a", second), expected, "{second}");
        }
        world.renew("b", 40, 4);
        assert!(world.unknown("a", 41), "b has been heard again");
    }

    #[test]
    fn the_node_of_this_process_is_no_witness_of_others() {
        // The cable is away for as long as 40 seconds: all but our own node are silent.
        let mut world = World::with(&["own", "a", "b"], Some("own"));
        world.renew("a", 1, 4);
        world.renew("b", 1, 4);
        for second in 1..=40 {
            world.renew("own", second, 4);
            assert!(!world.unknown("a", second) && !world.unknown("b", second), "{second}");
        }
        assert!(world.unknown("a", 51), "but not for ever");
        world.renew("b", 47, 4);
        assert!(world.unknown("a", 48), "b is one");
        assert!(world.unknown("own", 48), "and our own is held to its promise as others are");
        // Where there is one other alone, nobody else could tell.
        let mut two = World::with(&["own", "a"], Some("own"));
        two.renew("a", 1, 4);
        two.renew("own", 6, 4);
        assert!(two.unknown("a", 6));
    }

    #[test]
    fn whoever_has_just_begun_waits_until_nodes_have_found_it() {
        let mut world = World::new(&["a", "b"]);
        for second in 1..=14 {
            world.renew("b", second, 4);
            assert!(!world.unknown("a", second), "{second}");
        }
        world.renew("b", 15, 4);
        assert!(world.unknown("a", 15));
        world.renew("a", 15, 4);
        world.renew("b", 18, 4);
        assert!(!world.unknown("a", 18) && world.unknown("a", 19), "it was heard: now it is held to its promise");
    }

    #[test]
    fn time_that_was_slept_does_not_count_and_a_new_node_has_more() {
        let mut world = World::new(&["a", "b"]);
        world.renew("a", 1, 4);
        world.renew("b", 1, 4);
        world.renew("b", 31, 4);
        let awake = world.at(28);
        let silence = |startup: Option<u64>, second| {
            world.signs.silence("a", awake, startup.map(Duration::from_secs), world.at(second))
        };
        assert_eq!(silence(None, 31), Silence::Fine(Duration::from_secs(1)));
        assert_eq!(silence(None, 32), Silence::Unknown);
        assert_eq!(silence(Some(60), 32), Silence::Fine(Duration::from_secs(56)));
    }
}
