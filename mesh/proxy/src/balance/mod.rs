//! Choosing an endpoint: the less loaded of two random ones ([`load`]), leaving out those that fail ([`outlier`]).
//!
//! A choice costs the same however many endpoints there are. The clock and the dice are passed in; the shell around it
//! ([`Balancer::pick`]) brings the real ones.

mod affinity;
mod load;
mod outlier;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use coracle_discovery::Endpoint;
use http::StatusCode;
use rand::Rng;

use self::affinity::Affinity;
use self::load::{Load, Nanos};
use self::outlier::Outlier;
use crate::demand::Guard;
use crate::observe::{self, Classes, Stats};
use crate::retry::Budget;

/// An endpoint that has not been picked for so long is asked once, whatever is believed of it.
const PROBE_AFTER: Nanos = Duration::from_secs(5).as_nanos() as Nanos;
/// Further draws when both of the first two are left out. At most half are, so that all are looked
/// through once in 64 times.
const DRAWS: usize = 6;

/// What is known of an endpoint beyond discovery.
#[derive(Debug)]
struct State {
    endpoint: Endpoint,
    load: Load,
    outlier: Outlier,
    picked_at: AtomicU64,
    answers: Classes,
}

impl State {
    fn address(&self) -> SocketAddr {
        SocketAddr::new(self.endpoint.address, self.endpoint.port)
    }

    fn is_overdue(&self, now: Nanos) -> bool {
        now.saturating_sub(self.picked_at.load(Relaxed)) >= PROBE_AFTER
    }
}

/// The endpoints of one port of a Service.
#[derive(Debug)]
pub(crate) struct Balancer {
    /// In the order of their endpoints.
    states: Vec<Arc<State>>,
    affinity: Option<Arc<Affinity>>,
    epoch: Instant,
    /// Retries that its callers may make.
    pub budget: Arc<Budget>,
    pub stats: Arc<Stats>,
}

impl Balancer {
    /// Takes over what `before` knows of endpoints that stay.
    pub fn new(endpoints: &[Endpoint], affinity: Option<Duration>, before: Option<&Balancer>) -> Balancer {
        let mut balancer = Balancer::at(endpoints, &before.into_iter().collect::<Vec<_>>(), Instant::now());
        let kept = || before.and_then(|before| before.affinity.clone());
        balancer.affinity = affinity.map(|timeout| {
            kept().filter(|kept| kept.lasts(timeout)).unwrap_or_else(|| Arc::new(Affinity::new(timeout)))
        });
        balancer
    }

    /// A balancer among some endpoints of the same port: what is known of them, and what is counted, is known and counted once.
    /// `before` is what it was; it may have had endpoints that this one has not.
    pub fn among(&self, endpoints: &[Endpoint], before: Option<&Balancer>) -> Balancer {
        let known: Vec<&Balancer> = std::iter::once(self).chain(before).collect();
        let affinity = self.affinity.clone();
        Balancer { affinity, ..Balancer::at(endpoints, &known, Instant::now()) }
    }

    /// The same for clients that are all alike. Endpoints come in their order, each once. Of `known` the first counts.
    fn at(endpoints: &[Endpoint], known: &[&Balancer], now: Instant) -> Balancer {
        let before = known.first();
        let epoch = before.map_or(now, |before| before.epoch);
        let now = since(epoch, now);
        // The first comes last, and stays.
        let known: HashMap<&Endpoint, &Arc<State>> =
            known.iter().rev().flat_map(|before| &before.states).map(|state| (&state.endpoint, state)).collect();
        let stay = || endpoints.iter().filter_map(|endpoint| known.get(endpoint));
        let usual = match stay().count() {
            0 => None,
            count => Some(stay().map(|state| state.load.latency_ns(now)).sum::<f64>() / count as f64),
        };
        let state = |endpoint: &Endpoint| match known.get(endpoint) {
            Some(state) => Arc::clone(state),
            None => Arc::new(State {
                endpoint: endpoint.clone(),
                load: Load::new(usual, now),
                outlier: Outlier::default(),
                picked_at: AtomicU64::new(now),
                answers: Classes::default(),
            }),
        };
        let budget = before.map_or_else(|| Arc::new(Budget::new(epoch)), |before| before.budget.clone());
        let stats = before.map(|before| before.stats.clone()).unwrap_or_default();
        Balancer { states: endpoints.iter().map(state).collect(), affinity: None, epoch, budget, stats }
    }

    /// The addresses of its endpoints.
    pub fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.states.iter().map(|state| state.address())
    }

    /// What is known of its endpoints.
    pub fn view(&self) -> Vec<observe::Endpoint> {
        let now = since(self.epoch, Instant::now());
        let view = |state: &Arc<State>| observe::Endpoint {
            address: state.address(),
            node: state.endpoint.node.clone(),
            left_out: state.outlier.left_out(now),
            under_way: state.load.under_way(),
            latency: Duration::from_nanos(state.load.latency_ns(now) as u64),
        };
        self.states.iter().map(view).collect()
    }

    /// How requests to each of its endpoints have ended.
    pub fn each(&self, mut tell: impl FnMut(SocketAddr, &Classes)) {
        self.states.iter().for_each(|state| tell(state.address(), &state.answers));
    }

    /// An endpoint for one request or connection of a client, none of those that were tried; `None` when there is no other.
    pub fn pick(&self, tried: &Tried, client: Option<IpAddr>) -> Option<Picked> {
        let now = Instant::now();
        let Some((affinity, client)) = self.affinity.as_deref().zip(client) else {
            return self.pick_at(tried, now, &mut rand::rng());
        };
        let begun = since(self.epoch, now);
        let last = affinity.endpoint(client, begun).and_then(|endpoint| self.state_of(&endpoint));
        let picked = match last.filter(|last| !tried.has(last) && !last.outlier.is_out(begun)) {
            Some(last) => self.take(last, begun),
            None => self.pick_at(tried, now, &mut rand::rng())?,
        };
        affinity.went(client, picked.endpoint(), begun);
        Some(picked)
    }

    fn state_of(&self, endpoint: &Endpoint) -> Option<&Arc<State>> {
        let at = self.states.binary_search_by(|state| state.endpoint.cmp(endpoint)).ok()?;
        self.states.get(at)
    }

    fn pick_at(&self, tried: &Tried, now: Instant, random: &mut impl Rng) -> Option<Picked> {
        let begun = since(self.epoch, now);
        let state = match self.states.as_slice() {
            [] => return None,
            [only] => only,
            states => self.better(states, begun, random),
        };
        let state = match tried.has(state) {
            false => state,
            // Seldom: a retry that met the same endpoint again.
            true => self.least_of_others(tried, begun)?,
        };
        Some(self.take(state, begun))
    }

    fn take(&self, state: &Arc<State>, begun: Nanos) -> Picked {
        state.picked_at.store(begun, Relaxed);
        state.load.begin(begun);
        Picked { state: state.clone(), begun, epoch: self.epoch, is_waiting: true, asked: None }
    }

    fn better<'a>(&self, states: &'a [Arc<State>], now: Nanos, random: &mut impl Rng) -> &'a Arc<State> {
        let first = random.random_range(0..states.len());
        let second = (first + random.random_range(1..states.len())) % states.len();
        let (first, second) = (&states[first], &states[second]);
        match (first.outlier.is_out(now), second.outlier.is_out(now)) {
            (false, true) => return first,
            (true, false) => return second,
            (true, true) => {
                let draw = |_| &states[random.random_range(0..states.len())];
                let drawn = (0..DRAWS).map(draw).find(|state| !state.outlier.is_out(now));
                if let Some(found) = drawn.or_else(|| states.iter().find(|state| !state.outlier.is_out(now))) {
                    return found;
                }
            }
            (false, false) => {}
        }
        match (first.is_overdue(now), second.is_overdue(now)) {
            (true, false) => first,
            (false, true) => second,
            _ if first.load.score(now) <= second.load.score(now) => first,
            _ => second,
        }
    }

    fn least_of_others(&self, tried: &Tried, now: Nanos) -> Option<&Arc<State>> {
        let rank = |state: &Arc<State>| (state.outlier.is_out(now), state.load.score(now));
        let others = self.states.iter().filter(|state| !tried.has(state));
        others.min_by(|a, b| {
            let ((a_out, a), (b_out, b)) = (rank(a), rank(b));
            a_out.cmp(&b_out).then(a.total_cmp(&b))
        })
    }

    /// Takes all endpoints for tried to which it `may` not go, at once: however many they are, the next that is picked is another.
    /// It ends where it is not said whether it may, and begins anywhere: who asks again has others looked at. One of those to which
    /// it may go is remembered.
    pub fn leave_out(&self, tried: &mut Tried, may: impl Fn(SocketAddr) -> Option<bool>) {
        tried.is_judged = true;
        let first = rand::rng().random_range(0..self.states.len().max(1));
        for state in self.states.iter().cycle().skip(first).take(self.states.len()) {
            if tried.has(state) {
                continue;
            }
            match may(state.address()) {
                Some(true) => _ = tried.allowed.get_or_insert_with(|| state.clone()),
                Some(false) => tried.insert_not_allowed(state),
                None => return,
            }
        }
    }

    /// The one that [`Balancer::leave_out`] remembers, once.
    pub fn pick_allowed(&self, tried: &mut Tried, client: Option<IpAddr>) -> Option<Picked> {
        let state = tried.allowed.take().filter(|state| !tried.has(state))?;
        let begun = since(self.epoch, Instant::now());
        if let Some((affinity, client)) = self.affinity.as_deref().zip(client) {
            affinity.went(client, &state.endpoint, begun);
        }
        Some(self.take(&state, begun))
    }

    /// Takes all endpoints for tried that are `beyond` reach, at once: none of them has failed.
    pub fn pass_over(&self, tried: &mut Tried, beyond: impl Fn(SocketAddr) -> bool) {
        self.states.iter().filter(|state| beyond(state.address())).for_each(|state| tried.insert(state));
    }

    /// The endpoint gave no answer: it is left out for a while, unless half of all are.
    pub fn failed(&self, picked: Picked) {
        self.failed_at(picked, Instant::now());
    }

    fn failed_at(&self, picked: Picked, now: Instant) {
        let now = since(self.epoch, now);
        let out = self.states.iter().filter(|state| state.outlier.is_out(now)).count();
        let may_leave = picked.state.outlier.is_out(now) || (out + 1) * 2 <= self.states.len();
        picked.state.answers.count(None);
        if let Some(until) = picked.state.outlier.failed(now, may_leave) {
            Stats::one(&self.stats.ejections);
            picked.state.load.cool(until);
        }
    }
}

fn since(epoch: Instant, now: Instant) -> Nanos {
    now.saturating_duration_since(epoch).as_nanos() as Nanos
}

/// Endpoints that one request has been to.
#[derive(Default)]
pub(crate) struct Tried {
    /// By the addresses of their states in memory.
    all: HashMap<usize, Arc<State>>,
    /// One where it may not go.
    not_allowed: Option<SocketAddr>,
    /// One where it may, if it was looked for.
    allowed: Option<Arc<State>>,
    is_judged: bool,
}

impl Tried {
    /// It has been there.
    pub fn add(&mut self, picked: &Picked) {
        self.insert(&picked.state);
    }

    /// It may not go there, which is no fault of the endpoint.
    pub fn add_not_allowed(&mut self, picked: &Picked) {
        self.insert_not_allowed(&picked.state);
    }

    fn insert_not_allowed(&mut self, state: &Arc<State>) {
        self.not_allowed = Some(SocketAddr::new(state.endpoint.address, state.endpoint.port));
        self.insert(state);
    }

    fn insert(&mut self, state: &Arc<State>) {
        self.all.insert(Arc::as_ptr(state).addr(), state.clone());
    }

    /// Where it may not go, if it came to such a place.
    pub fn not_allowed(&self) -> Option<SocketAddr> {
        self.not_allowed
    }

    /// Whether it was looked for those to which it may go, or not.
    pub fn is_judged(&self) -> bool {
        self.is_judged
    }

    /// To how many.
    pub fn count(&self) -> usize {
        self.all.len()
    }

    fn has(&self, state: &Arc<State>) -> bool {
        self.all.contains_key(&Arc::as_ptr(state).addr())
    }
}

/// An endpoint in use. It counts as under way until this is dropped.
#[derive(Debug)]
pub(crate) struct Picked {
    state: Arc<State>,
    begun: Nanos,
    epoch: Instant,
    is_waiting: bool,
    /// What is asked of the Service with it, to the end.
    pub asked: Option<Guard>,
}

impl Picked {
    /// The endpoint.
    pub fn endpoint(&self) -> &Endpoint {
        &self.state.endpoint
    }

    /// It answered.
    pub fn answered(&mut self) {
        self.answered_at(Instant::now());
    }

    fn answered_at(&mut self, now: Instant) {
        let now = since(self.epoch, now);
        if std::mem::take(&mut self.is_waiting) {
            self.state.load.answered(now.saturating_sub(self.begun), now);
        }
        self.state.outlier.answered();
    }

    /// It answered a request so.
    pub fn answered_with(&mut self, status: StatusCode) {
        self.state.answers.count(Some(status));
        self.answered();
    }

    /// It has too much to do: others are preferred for a moment.
    pub fn refused_busy(self) {
        self.state.outlier.is_busy(since(self.epoch, Instant::now()));
    }
}

impl Drop for Picked {
    fn drop(&mut self) {
        if self.is_waiting {
            self.state.load.unanswered();
        }
        self.state.load.end();
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    /// Endpoints with a clock and dice of their own: each answers after its time in microseconds.
    struct World {
        balancer: Balancer,
        now: Instant,
        random: StdRng,
    }

    impl World {
        fn new(count: u8) -> World {
            let now = Instant::now();
            World { balancer: Balancer::at(&endpoints(count), &[], now), now, random: StdRng::seed_from_u64(7) }
        }

        fn pick(&mut self) -> Picked {
            self.balancer.pick_at(&Tried::default(), self.now, &mut self.random).unwrap()
        }

        fn pass(&mut self, micros: u64) {
            self.now += Duration::from_micros(micros);
        }

        /// Requests one after the other; how many each endpoint got.
        fn ask(&mut self, count: usize, micros: impl Fn(usize) -> u64) -> Vec<usize> {
            let mut got = vec![0; self.balancer.states.len()];
            for _ in 0..count {
                let mut picked = self.pick();
                let at = self.at(&picked);
                self.pass(micros(at));
                picked.answered_at(self.now);
                got[at] += 1;
            }
            got
        }

        fn at(&self, picked: &Picked) -> usize {
            self.balancer.states.iter().position(|state| Arc::ptr_eq(state, &picked.state)).unwrap()
        }

        fn force(&mut self, at: usize) -> Picked {
            loop {
                let picked = self.pick();
                if self.at(&picked) == at {
                    return picked;
                }
            }
        }

        fn fail(&mut self, at: usize) {
            let picked = self.force(at);
            self.balancer.failed_at(picked, self.now);
        }

        fn is_used(&mut self, at: usize) -> bool {
            (0..500).any(|_| {
                let picked = self.pick();
                self.at(&picked) == at
            })
        }
    }

    fn endpoints(count: u8) -> Vec<Endpoint> {
        (0..count).map(|n| Endpoint { address: [10, 0, 0, n].into(), port: 80, node: None }).collect()
    }

    #[test]
    fn one_slow_answer_does_not_cost_an_endpoint_its_place() {
        for count in [2, 5] {
            let mut world = World::new(count);
            world.ask(1_000, |_| 300);
            let mut slow = world.force(0);
            // Its sleep of thirty seconds, while the others answer.
            while world.now < slow_end(&slow) {
                world.ask(100, |_| 300);
            }
            slow.answered_at(world.now);
            drop(slow);
            let got = world.ask(6_000, |_| 300);
            let fair = 6_000 / usize::from(count);
            assert!(got[0] > fair / 3, "{got:?}");
        }
    }

    fn slow_end(picked: &Picked) -> Instant {
        picked.epoch + Duration::from_nanos(picked.begun) + Duration::from_secs(30)
    }

    #[test]
    fn a_slow_endpoint_gets_little_but_is_asked_again() {
        let mut world = World::new(2);
        let got = world.ask(10_000, |at| [100_000, 1_000][at]);
        assert!((2..200).contains(&got[0]), "{got:?}");
        // And the same as the other, once it has become quick.
        let got = world.ask(10_000, |_| 1_000);
        assert!(got[0] > 3_000, "{got:?}");
    }

    #[test]
    fn who_takes_all_and_answers_none_gets_little() {
        let mut world = World::new(2);
        world.ask(1_000, |_| 1_000);
        let mut lost = Vec::new();
        for _ in 0..10_000 {
            let mut picked = world.pick();
            if world.at(&picked) == 0 {
                lost.push(picked);
            } else {
                world.pass(1_000);
                picked.answered_at(world.now);
            }
        }
        assert!((1..20).contains(&lost.len()), "{} of 10,000 lost in ten seconds", lost.len());
    }

    #[test]
    fn spreads_what_is_under_way_answered_or_not() {
        for answered in [false, true] {
            let mut world = World::new(4);
            let mut held: Vec<Picked> = (0..400).map(|_| world.pick()).collect();
            if answered {
                let now = world.now;
                held.iter_mut().for_each(|picked| picked.answered_at(now));
                held.extend((0..400).map(|_| world.pick()));
            }
            for state in &world.balancer.states {
                let (count, fair) = (state.load.under_way(), held.len() as u32 / 4);
                assert!((fair / 2..fair * 3 / 2).contains(&count), "{count} of {} on one of four", held.len());
            }
            drop(held);
            assert!(world.balancer.states.iter().all(|state| state.load.under_way() == 0));
        }
    }

    #[test]
    fn leaves_out_what_fails_at_most_half_and_takes_it_back() {
        let mut world = World::new(4);
        world.fail(0);
        world.fail(1);
        world.fail(2);
        assert!(!world.is_used(0) && !world.is_used(1), "two that failed first are left out");
        assert!(world.is_used(2) && world.is_used(3), "the third would have been more than half");
        // A second out, two in which it is used less.
        world.pass(3_100_000);
        assert!((0..4).all(|at| world.is_used(at)), "after a while all are asked again");
        // It fails again: for longer.
        world.fail(0);
        world.pass(1_900_000);
        assert!(!world.is_used(0));
        world.pass(2_200_000);
        assert!(world.is_used(0));
        // An answer makes good: the next failure counts as the first, not as the third.
        let mut picked = world.force(0);
        picked.answered_at(world.now);
        drop(picked);
        world.fail(0);
        world.pass(3_100_000);
        assert!(world.is_used(0));
        // The only one is never left out.
        let mut alone = World::new(1);
        alone.fail(0);
        assert!(alone.is_used(0));
    }

    #[test]
    fn a_retry_goes_elsewhere() {
        let mut world = World::new(3);
        let mut tried = Tried::default();
        let mut seen = Vec::new();
        while let Some(picked) = world.balancer.pick_at(&tried, world.now, &mut world.random) {
            tried.add(&picked);
            seen.push(picked.endpoint().address);
        }
        seen.sort_unstable();
        assert_eq!(seen, endpoints(3).iter().map(|endpoint| endpoint.address).collect::<Vec<_>>());
    }

    #[test]
    fn newcomers_look_like_their_peers_and_who_stays_is_remembered() {
        let mut world = World::new(2);
        world.ask(2_000, |_| 20_000);
        let after = Balancer::at(&endpoints(3), &[&world.balancer], world.now);
        assert!((0..2).all(|at| Arc::ptr_eq(&world.balancer.states[at], &after.states[at])));
        let now = since(after.epoch, world.now);
        let new = after.states[2].load.latency_ns(now);
        assert!((15e6..25e6).contains(&new), "{new}");
        world.balancer = after;
        let got = world.ask(3_000, |_| 20_000);
        assert!(got[2] > 700 && got[2] < 1_300, "{got:?}");
        assert!(Balancer::new(&[], None, Some(&world.balancer)).pick(&Tried::default(), None).is_none());
    }

    #[test]
    fn a_client_stays_with_its_endpoint_while_that_is_there_and_well() {
        let long = Some(Duration::from_secs(60));
        let balancer = Balancer::new(&endpoints(8), long, None);
        let client = |n: u8| Some(IpAddr::from([192, 0, 2, n]));
        let tried = Tried::default();
        let at = |balancer: &Balancer, n| balancer.pick(&tried, client(n)).unwrap().endpoint().clone();
        let first: Vec<Endpoint> = (0..50).map(|n| at(&balancer, n)).collect();
        assert!(first.iter().any(|endpoint| *endpoint != first[0]), "clients are spread");
        for (n, endpoint) in first.iter().enumerate() {
            assert_eq!(at(&balancer, n as u8), *endpoint);
        }
        // Others come and go.
        let fewer: Vec<Endpoint> = endpoints(8).into_iter().filter(|endpoint| *endpoint != first[0]).collect();
        let after = Balancer::new(&fewer, long, Some(&balancer));
        let elsewhere = at(&after, 0);
        assert_ne!(elsewhere, first[0]);
        assert_eq!(at(&after, 0), elsewhere, "it has another one now");
        let (n, endpoint) = first.iter().enumerate().find(|(_, endpoint)| **endpoint != first[0]).unwrap();
        assert_eq!(at(&after, n as u8), *endpoint);
        // One that fails is left, and so is one that was tried.
        let picked = after.pick(&tried, client(n as u8)).unwrap();
        let mut been = Tried::default();
        been.add(&picked);
        assert_ne!(after.pick(&been, client(n as u8)).unwrap().endpoint(), endpoint);
        let after = Balancer::new(&fewer, None, Some(&after));
        let spread: std::collections::HashSet<Endpoint> = (0..200).map(|_| at(&after, 1)).collect();
        assert!(spread.len() > 1, "nobody asks for it any more");
    }
}
