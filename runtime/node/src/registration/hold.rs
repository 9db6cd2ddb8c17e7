//! Whose the node is, where two processes say that they are it: somebody has copied a machine, or a data directory.
//!
//! Each process is an *incarnation* of its node: a random word, which it writes into the node's Lease before it runs a pod. From
//! then on it renews that version of the Lease and no other, so that the renewal of whoever was there before is refused. It
//! reads the Lease then: another incarnation, which lives, means that it ends. The newest wins; one that was killed is let in again at once.
//!
//! Whoever was ended so, and is started again by somebody who knows no better, would be the newest: the two would end each other
//! for ever. Therefore the last incarnation is kept in the data directory ([`FILE`]). Who finds neither that nor nothing in the Lease first
//! waits whether somebody renews it.
//!
//! That the Lease is another's is no proof that this one lives: it may have been killed meanwhile, or the cluster be one that was
//! restored. Only a renewal is. No I/O, no clock.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

/// The annotation of the Lease that says which process holds it, and where that serves.
pub(super) const INCARNATION: &str = "coracle.dev/incarnation";
/// Where the last incarnation is kept, in the data directory.
pub(super) const FILE: &str = "incarnation";
/// Who has not renewed the Lease for so long does not run: it is renewed every second.
const SILENT_FOR: Duration = Duration::from_secs(4);

/// What to do about the Lease as it is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Write into this version of it who holds it.
    Claim(Option<String>),
    /// Look again: it is not known whether another one lives.
    Wait,
    /// Another one lives: this one ends.
    Over(String),
}

/// What a process knows of its node's Lease.
#[derive(Debug)]
pub(super) struct Hold {
    own: String,
    /// The last incarnation that had this data directory.
    before: Option<String>,
    held: Option<Held>,
    /// When another one was seen there first, and when it had renewed the Lease as that was read last.
    other: Option<(Instant, String)>,
}

#[derive(Debug)]
struct Held {
    version: Option<String>,
    renewed: String,
}

impl Hold {
    /// A new incarnation of a node that serves at `address`; `before` is what was kept of the last one.
    pub fn new(address: std::net::SocketAddr, before: Option<String>) -> Hold {
        let own = format!("{:016x} {address}", rand::random::<u64>());
        Hold { own, before, held: None, other: None }
    }

    /// Which one this is.
    pub fn own(&self) -> &str {
        &self.own
    }

    /// The metadata by which the Lease is renewed, once it is held.
    pub fn renewal(&self) -> Option<Value> {
        self.held.as_ref().map(|held| of_version(held.version.as_deref()))
    }

    /// The metadata by which this version of the Lease is claimed; of one that is made it is none.
    pub fn claim(&self, version: Option<&str>) -> Value {
        let mut metadata = of_version(version);
        metadata["annotations"] = json!({INCARNATION: self.own});
        metadata
    }

    /// The Lease was written by this one, and is this now.
    pub fn holds(&mut self, lease: &Value, renewed: String) {
        let version = lease["metadata"]["resourceVersion"].as_str().map(str::to_owned);
        (self.held, self.other) = (Some(Held { version, renewed }), None);
    }

    /// What to do when the Lease is this, and not what was renewed last.
    pub fn judge(&mut self, lease: &Value, now: Instant) -> Step {
        let version = || lease["metadata"]["resourceVersion"].as_str().map(str::to_owned);
        let holder = lease["metadata"]["annotations"][INCARNATION].as_str();
        let Some(holder) = holder.filter(|holder| *holder != self.own && Some(*holder) != self.before.as_deref())
        else {
            return Step::Claim(version());
        };
        let renewed = lease["spec"]["renewTime"].as_str().unwrap_or_default();
        // All of these times are written alike. Another leader knows of an older renewal, which says nothing.
        let is_new = match (&self.other, &self.held) {
            (Some((_, seen)), _) => renewed > seen.as_str(),
            (None, Some(held)) => renewed > held.renewed.as_str(),
            (None, None) => false,
        };
        if is_new {
            return Step::Over(holder.to_owned());
        }
        let (since, seen) = self.other.get_or_insert_with(|| (now, String::new()));
        renewed.clone_into(seen);
        match now.saturating_duration_since(*since) >= SILENT_FOR {
            true => Step::Claim(version()),
            false => Step::Wait,
        }
    }
}

fn of_version(version: Option<&str>) -> Value {
    version.map_or_else(|| json!({}), |version| json!({"resourceVersion": version}))
}

/// Where an incarnation says that it serves.
pub(super) fn address(incarnation: &str) -> &str {
    incarnation.split_once(' ').map_or("an address that it does not say", |(_, address)| address)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(holder: Option<&str>, second: u32) -> Value {
        let spec = json!({"renewTime": format!("2026-01-01T00:00:{second:02}.000000Z")});
        json!({"metadata": {"annotations": {INCARNATION: holder}, "resourceVersion": "7"}, "spec": spec})
    }

    fn new(before: Option<&str>) -> Hold {
        Hold::new(([10, 0, 0, 1], 10_250).into(), before.map(str::to_owned))
    }

    fn claim() -> Step {
        Step::Claim(Some("7".to_owned()))
    }

    #[test]
    fn a_node_that_was_killed_and_one_that_nobody_held_are_let_in_at_once() {
        let now = Instant::now();
        assert_eq!(new(None).judge(&lease(None, 1), now), claim());
        assert_eq!(new(Some("last")).judge(&lease(Some("last"), 1), now), claim());
        let mut hold = new(None);
        assert_eq!(hold.renewal(), None);
        let own = hold.own().to_owned();
        assert_eq!(hold.judge(&lease(Some(&own), 1), now), claim(), "its answer was lost");
        hold.holds(&lease(Some(&own), 2), "2026-01-01T00:00:02.000000Z".to_owned());
        assert_eq!(hold.renewal(), Some(json!({"resourceVersion": "7"})));
        assert_eq!(address(&own), "10.0.0.1:10250");
    }

    #[test]
    fn the_older_of_two_ends_as_soon_as_the_newer_has_written() {
        let mut hold = new(Some("last"));
        hold.holds(&lease(None, 2), "2026-01-01T00:00:02.000000Z".to_owned());
        assert_eq!(
            hold.judge(&lease(Some("newer 10.0.0.2:1"), 3), Instant::now()),
            Step::Over("newer 10.0.0.2:1".into())
        );
        // Also when the newer one's clock is behind: its next renewal tells.
        let mut hold = new(Some("last"));
        hold.holds(&lease(None, 30), "2026-01-01T00:00:30.000000Z".to_owned());
        assert_eq!(hold.judge(&lease(Some("newer"), 3), Instant::now()), Step::Wait);
        assert_eq!(hold.judge(&lease(Some("newer"), 4), Instant::now()), Step::Over("newer".into()));
    }

    #[test]
    fn one_that_was_ended_is_not_let_in_while_the_other_runs() {
        let (now, mut hold) = (Instant::now(), new(Some("older")));
        assert_eq!(hold.judge(&lease(Some("newer"), 3), now), Step::Wait);
        assert_eq!(hold.judge(&lease(Some("newer"), 4), now + Duration::from_secs(1)), Step::Over("newer".into()));
    }

    #[test]
    fn whoever_renews_nothing_does_not_run() {
        // The other one was killed, or the cluster was restored from a time when it was there.
        for held in [false, true] {
            let (now, mut hold) = (Instant::now(), new(Some("older")));
            if held {
                hold.holds(&lease(None, 30), "2026-01-01T00:00:30.000000Z".to_owned());
            }
            let old = |second| lease(Some("newer"), if second == 0 { 3 } else { 2 });
            let steps = [0, 3, 4].map(|second| hold.judge(&old(second), now + Duration::from_secs(second)));
            assert_eq!(steps, [Step::Wait, Step::Wait, claim()], "{held}");
        }
    }
}
