//! Connections on which nobody has said hello yet. Their places run out, and whoever comes then pushes out another: the oldest
//! of those who have most. So many strangers only push out each other, and a member that says hello is in time.
//!
//! Places are counted by network: of IPv6 that is a /64, which anybody may have all of. Where members are known to be they have
//! places of their own.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

/// The places.
pub struct Greetings {
    bounds: Bounds,
    waiting: Mutex<Waiting>,
}

/// How many there may be.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Of strangers.
    pub strangers: usize,
    /// From where members are known to be.
    pub known: usize,
    /// From one network, of either.
    pub one: usize,
}

#[derive(Default)]
struct Waiting {
    next: u64,
    /// In the order in which they came.
    all: BTreeMap<u64, One>,
}

struct One {
    network: IpAddr,
    is_known: bool,
    pushed_out: Arc<Notify>,
}

/// A place; it is free again when this is dropped.
pub struct Greeting {
    greetings: Arc<Greetings>,
    number: u64,
    pushed_out: Arc<Notify>,
}

impl Greetings {
    /// None yet.
    pub fn new(bounds: Bounds) -> Arc<Greetings> {
        Arc::new(Greetings { bounds, waiting: Mutex::default() })
    }

    /// A place for who comes from `from`, where a member is, or not.
    pub fn add(self: &Arc<Greetings>, from: IpAddr, is_known: bool) -> Greeting {
        let network = network(from);
        let mut waiting = self.waiting.lock();
        let of_kind = waiting.all.values().filter(|one| one.is_known == is_known);
        let mut counts: HashMap<IpAddr, usize> = HashMap::new();
        of_kind.for_each(|one| *counts.entry(one.network).or_default() += 1);
        let most = if is_known { self.bounds.known } else { self.bounds.strangers };
        let crowded = match counts.get(&network) {
            Some(count) if *count >= self.bounds.one => Some(*count),
            _ if counts.values().sum::<usize>() >= most => counts.values().max().copied(),
            _ => None,
        };
        if let Some(crowded) = crowded {
            let is_crowded = |one: &One| one.is_known == is_known && counts.get(&one.network) == Some(&crowded);
            let own_first = counts.get(&network) == Some(&crowded);
            let goes = waiting.all.iter().find(|(_, one)| is_crowded(one) && (!own_first || one.network == network));
            if let Some(number) = goes.map(|(number, _)| *number)
                && let Some(one) = waiting.all.remove(&number)
            {
                one.pushed_out.notify_one();
            }
        }
        let (number, pushed_out) = (waiting.next, Arc::new(Notify::new()));
        waiting.next += 1;
        waiting.all.insert(number, One { network, is_known, pushed_out: pushed_out.clone() });
        Greeting { greetings: self.clone(), number, pushed_out }
    }
}

impl Greeting {
    /// Waits until others need the place.
    pub async fn pushed_out(&self) {
        self.pushed_out.notified().await;
    }
}

impl Drop for Greeting {
    fn drop(&mut self) {
        self.greetings.waiting.lock().all.remove(&self.number);
    }
}

/// All that one may have who has this address.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6((u128::from(address) & !u128::from(u64::MAX)).into()),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    fn is_out(greeting: &Greeting) -> bool {
        greeting.pushed_out().now_or_never().is_some()
    }

    fn count(greetings: &[Greeting]) -> usize {
        greetings.iter().filter(|greeting| !is_out(greeting)).count()
    }

    #[test]
    fn whoever_comes_has_a_place_and_strangers_push_out_each_other() {
        let greetings = Greetings::new(Bounds { strangers: 8, known: 2, one: 4 });
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let member = greetings.add(address("192.0.2.1"), true);
        // One has its share, whatever address of its network it uses.
        let loud: Vec<_> = (0..9).map(|at| greetings.add(address(&format!("2001:db8::{at}:1")), false)).collect();
        assert_eq!(count(&loud), 4);
        assert!(!is_out(&loud[8]), "the oldest go");
        let mapped: Vec<_> = (0..5).map(|_| greetings.add(address("::ffff:192.0.2.9"), false)).collect();
        let same: Vec<_> = (0..1).map(|_| greetings.add(address("192.0.2.9"), false)).collect();
        assert_eq!((mapped.len(), same.len()), (5, 1));
        assert_eq!(greetings.waiting.lock().all.len(), 9, "eight strangers and a member");
        // All are taken: one more takes a place of those who have most.
        let quiet = greetings.add(address("198.51.100.7"), false);
        let many: Vec<_> = (0..40).map(|at| greetings.add(address(&format!("10.0.{at}.1")), false)).collect();
        assert!(!is_out(&member), "a member is no stranger");
        assert_eq!(greetings.waiting.lock().all.len(), 9);
        drop((loud, mapped, same, quiet, many, member));
        assert!(greetings.waiting.lock().all.is_empty());
    }

    #[test]
    fn a_stranger_of_its_own_network_outlives_a_flood_from_another() {
        let greetings = Greetings::new(Bounds { strangers: 8, known: 2, one: 4 });
        let quiet = greetings.add([198, 51, 100, 7].into(), false);
        let flood: Vec<_> = (0..100).map(|at| greetings.add([203, 0, 113, at % 2].into(), false)).collect();
        assert!(!is_out(&quiet));
        assert!(!is_out(&flood[99]));
    }
}
