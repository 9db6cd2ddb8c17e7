//! Tables of decisions, and laws under random histories.

use proptest::prelude::*;

use super::super::level::Queuing;
use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn queue(queues: u32, hand_size: u32, length_limit: u32) -> Kind {
    Kind::Queue(Queuing { queues, hand_size, length_limit })
}

fn level(kind: Kind, shares: u32, lendable_percent: u32, borrowing: Option<u32>) -> Spec {
    Spec { kind, shares, lendable_percent, borrowing_limit_percent: borrowing }
}

/// A dispatcher whose waiters are numbers.
struct World {
    dispatcher: Dispatcher<usize>,
    ids: Vec<LevelId>,
    next: usize,
    seated: Vec<(usize, Seat)>,
    waiting: Vec<(usize, Place)>,
    rejected: usize,
}

impl World {
    fn new(total: u64, specs: &[Spec]) -> World {
        let mut world = World {
            dispatcher: Dispatcher::new(total),
            ids: Vec::new(),
            next: 0,
            seated: Vec::new(),
            waiting: Vec::new(),
            rejected: 0,
        };
        world.configure(specs);
        world
    }

    fn configure(&mut self, specs: &[Spec]) {
        let named: Vec<(Arc<str>, Spec)> =
            specs.iter().enumerate().map(|(at, spec)| (format!("l{at}").into(), spec.clone())).collect();
        let (ids, granted) = self.dispatcher.configure(&named);
        self.ids = ids;
        self.granted(granted);
    }

    fn granted(&mut self, granted: Granted<usize>) {
        for (number, seat) in granted {
            self.waiting.retain(|(waiting, _)| *waiting != number);
            self.seated.push((number, seat));
        }
    }

    /// The number of a request that arrives.
    fn arrive(&mut self, level: usize, flow: u64, width: u32) -> usize {
        self.next += 1;
        let number = self.next;
        match self.dispatcher.arrive(self.ids[level], flow, width, || number) {
            Arrival::Seated(seat) => self.seated.push((number, seat)),
            Arrival::Waits(place) => self.waiting.push((number, place)),
            Arrival::Rejected(_) => self.rejected += 1,
            Arrival::Gone => panic!("the level is there"),
        }
        number
    }

    fn finish(&mut self, at: usize, lasted: Duration) {
        let (_, seat) = self.seated.remove(at);
        let granted = self.dispatcher.finish(seat, lasted);
        self.granted(granted);
    }

    fn sits(&self, number: usize) -> bool {
        self.seated.iter().any(|(seated, _)| *seated == number)
    }

    fn shown(&self, level: usize) -> Shown {
        let name = format!("l{level}");
        self.dispatcher.show().into_iter().find(|shown| *shown.name == name).expect("a level")
    }

    /// What is always true.
    fn check(&self) {
        let (levels, dispatcher) = (&self.dispatcher.levels, &self.dispatcher);
        let (mut taken, mut nominal) = (0, 0);
        for level in levels {
            let of = |(_, seat): &&(usize, Seat)| levels[seat.level.slot].name == level.name;
            let seats: u64 = self.seated.iter().filter(of).map(|(_, seat)| u64::from(seat.width)).sum();
            assert_eq!(level.seats, seats, "every seat is counted");
            let waiting: usize = level.queues.values().map(|queue| queue.waiting.len()).sum();
            assert_eq!(level.waiting, waiting);
            let ready: BTreeSet<(u64, u32)> = level
                .queues
                .iter()
                .filter(|(_, queue)| !queue.waiting.is_empty())
                .map(|(number, queue)| (queue.start, *number))
                .collect();
            assert_eq!(level.ready, ready);
            if level.spec.kind != Kind::Exempt {
                taken += seats.max(level.nominal - level.lendable.min(level.nominal));
                nominal += level.nominal;
            }
        }
        assert_eq!(dispatcher.borrowed, levels.iter().map(Level::borrowed).sum::<u64>());
        assert_eq!(dispatcher.idle, levels.iter().map(Level::idle).sum::<u64>());
        assert_eq!(dispatcher.waiting, self.waiting.len());
        for (slot, level) in levels.iter().enumerate() {
            let width = level.next_width();
            assert!(width.is_none_or(|width| !dispatcher.has_room(slot, width)), "whoever waits cannot go");
        }
        // Who is exempt sits also where its seats are lent.
        let is_exempt = |level: &&Level<usize>| level.spec.kind == Kind::Exempt;
        let exempt: u64 = levels.iter().filter(is_exempt).map(|level| level.lendable).sum();
        assert!(taken <= nominal + exempt, "no more is taken than there is, and what is not lent stays free: {taken}");
    }
}

#[test]
fn seats_are_divided_by_shares() {
    let shares = [5, 20, 10, 40, 30, 40, 100].map(|shares| level(Kind::Reject, shares, 50, None));
    let mut specs = vec![level(Kind::Exempt, 0, 0, None)];
    specs.extend(shares);
    let world = World::new(600, &specs);
    // What kube-apiserver has of 600 (`apiserver_flowcontrol_nominal_limit_seats`).
    let nominal: Vec<u64> = (0..specs.len()).map(|at| world.shown(at).nominal).collect();
    assert_eq!(nominal, [0, 13, 49, 25, 98, 74, 98, 245]);
    assert_eq!((world.shown(7).lower, world.shown(7).upper), (245 - 123, 845));
    assert_eq!(world.dispatcher.width_max(world.ids[1]), 2);
    assert_eq!(world.dispatcher.width_max(world.ids[7]), 10);
}

#[test]
fn who_waits_at_a_level_that_becomes_small_still_goes_on() {
    let of = |shares: u32| level(queue(1, 1, 10), shares, 0, Some(0));
    let mut world = World::new(100, &[of(100), of(1)]);
    for _ in 0..10 {
        world.arrive(0, 1, 10);
    }
    let waits = [world.arrive(0, 1, 10), world.arrive(0, 1, 1)];
    world.configure(&[of(1), of(100)]);
    assert_eq!(world.shown(0).nominal, 1);
    for _ in 0..10 {
        assert!(!waits.iter().any(|number| world.sits(*number)));
        world.finish(0, SECOND);
    }
    assert!(world.sits(waits[0]));
    world.finish(0, SECOND);
    assert!(world.sits(waits[1]));
    world.finish(0, SECOND);
    world.check();
}

#[test]
fn a_level_without_queues_turns_away_and_an_exempt_one_never() {
    let mut world = World::new(4, &[level(Kind::Reject, 1, 0, None), level(Kind::Exempt, 0, 0, None)]);
    for _ in 0..6 {
        world.arrive(0, 1, 1);
        world.arrive(1, 1, 1);
    }
    assert_eq!((world.shown(0).executing, world.shown(1).executing, world.rejected), (4, 6, 2));
}

#[test]
fn a_queue_takes_no_more_than_it_may() {
    let mut world = World::new(1, &[level(queue(1, 1, 3), 1, 0, None)]);
    for _ in 0..10 {
        world.arrive(0, 1, 1);
    }
    assert_eq!((world.seated.len(), world.waiting.len(), world.rejected), (1, 3, 6));
    // And all queues of a server no more than they may together.
    let mut world = World::new(2, &[level(queue(100, 1, 1_000), 1, 0, None)]);
    for flow in 0..WAITING_MAX + 10 {
        world.arrive(0, flow as u64, 1);
    }
    assert_eq!((world.seated.len(), world.waiting.len(), world.rejected), (2, WAITING_MAX, 8));
}

#[test]
fn what_is_lent_comes_back_first() {
    let specs = [level(queue(4, 1, 50), 1, 100, None), level(queue(4, 1, 50), 1, 100, None)];
    let mut world = World::new(10, &specs);
    for _ in 0..20 {
        world.arrive(0, 1, 1);
    }
    assert_eq!((world.shown(0).seats, world.shown(0).waiting), (10, 10), "it has borrowed all");
    assert_eq!((world.shown(0).current, world.shown(1).current), (10, 0));
    let own = world.arrive(1, 2, 1);
    assert!(!world.sits(own));
    world.finish(0, SECOND);
    assert!(world.sits(own), "before all who wait in the other");
    world.check();
}

#[test]
fn what_is_not_lent_is_always_free() {
    let specs = [level(queue(4, 1, 50), 1, 0, None), level(queue(4, 1, 50), 1, 40, Some(20))];
    let mut world = World::new(20, &specs);
    for _ in 0..30 {
        world.arrive(0, 1, 1);
    }
    assert_eq!(world.shown(0).seats, 14, "its own, and four in a hundred of the other's ten");
    for _ in 0..30 {
        world.arrive(1, 1, 1);
    }
    assert_eq!(world.shown(1).seats, 6);
    while world.shown(0).seats > 0 {
        let at = world.seated.iter().position(|(_, seat)| seat.level == world.ids[0]).expect("one sits");
        world.finish(at, SECOND);
        world.check();
    }
    assert_eq!(world.shown(1).seats, 10, "what the first does not lend it cannot borrow");
}

#[test]
fn a_borrower_has_a_limit() {
    let specs = [level(queue(4, 1, 50), 1, 100, Some(20)), level(queue(4, 1, 50), 1, 100, None)];
    let mut world = World::new(20, &specs);
    for _ in 0..30 {
        world.arrive(0, 1, 1);
    }
    assert_eq!((world.shown(0).seats, world.shown(0).upper), (12, 12));
}

#[test]
fn a_wide_request_is_not_passed_by() {
    let mut world = World::new(10, &[level(queue(8, 1, 50), 1, 0, None)]);
    for _ in 0..9 {
        world.arrive(0, 1, 1);
    }
    let wide = world.arrive(0, 2, 5);
    let narrow = world.arrive(0, 3, 1);
    assert!(!world.sits(wide) && !world.sits(narrow));
    for _ in 0..4 {
        world.finish(0, SECOND);
    }
    assert!(world.sits(wide) && !world.sits(narrow));
}

#[test]
fn who_has_gone_is_not_waited_for() {
    let mut world = World::new(2, &[level(queue(1, 1, 50), 1, 0, None)]);
    world.arrive(0, 1, 1);
    let wide = world.arrive(0, 1, 2);
    let narrow = world.arrive(0, 1, 1);
    let (_, place) = *world.waiting.iter().find(|(number, _)| *number == wide).expect("it waits");
    let granted = world.dispatcher.withdraw(place);
    world.waiting.retain(|(number, _)| *number != wide);
    world.granted(granted);
    assert!(world.sits(narrow));
    assert!(world.dispatcher.withdraw(place).is_empty(), "once");
    world.check();
}

#[test]
fn a_level_that_goes_ends_what_it_has_begun() {
    let of = |kind| level(kind, 1, 0, None);
    let mut world = World::new(4, &[of(queue(4, 2, 50)), of(queue(4, 2, 50))]);
    for _ in 0..6 {
        world.arrive(1, 1, 1);
    }
    let gone = world.ids[1];
    world.configure(&[of(queue(4, 2, 50))]);
    assert_eq!(world.dispatcher.arrive(gone, 1, 1, || 0), Arrival::Gone);
    assert_eq!((world.shown(0).nominal, world.shown(1).nominal), (2, 2), "its seats are its own until then");
    while !world.seated.is_empty() {
        world.finish(0, SECOND);
        world.check();
    }
    assert_eq!(world.waiting.len(), 0, "who waited there was served");
    assert_eq!(world.shown(0).nominal, 4);
    // Its place is another's now.
    world.dispatcher.configure(&[("l0".into(), of(queue(4, 2, 50))), ("other".into(), of(Kind::Reject))]);
    assert_eq!(world.dispatcher.levels.len(), 2);
    assert_eq!(world.dispatcher.arrive(gone, 1, 1, || 0), Arrival::Gone);
}

#[test]
fn other_queues_are_dealt_to_those_who_wait() {
    let mut world = World::new(1, &[level(queue(4, 2, 50), 1, 0, None)]);
    for flow in 0..10 {
        world.arrive(0, flow, 1);
    }
    for kind in [queue(1, 1, 1), queue(64, 8, 50), Kind::Reject] {
        world.configure(&[level(kind, 1, 0, None)]);
        assert_eq!(world.waiting.len(), 9);
        world.check();
    }
    world.configure(&[level(Kind::Exempt, 1, 0, None)]);
    assert_eq!(world.seated.len(), 10);
}

/// Lets flows send as much as they can, so many at a time each, and gives the seat-seconds that each has had. A request of the
/// flow at a place lasts as long as its number says, in milliseconds, and is as wide.
fn contend(seats: u64, flows: &[(usize, u64, u32)], rounds: usize) -> Vec<f64> {
    // Each flow has a queue of its own: what several in one queue have is one flow's.
    let mut world = World::new(seats, &[level(queue(512, 1, 10_000), 1, 0, None)]);
    let mut had = vec![0.0; flows.len()];
    let mut of: HashMap<usize, usize> = HashMap::new();
    // When those who sit end, by time.
    let mut ends: BTreeSet<(u64, usize)> = BTreeSet::new();
    let mut known = std::collections::HashSet::new();
    let mut now = 0;
    for (flow, (at_a_time, ..)) in flows.iter().enumerate() {
        for _ in 0..*at_a_time {
            of.insert(world.arrive(0, flow as u64, flows[flow].2), flow);
        }
    }
    for _ in 0..rounds {
        for (number, _) in &world.seated {
            if known.insert(*number) {
                ends.insert((now + flows[of[number]].1, *number));
            }
        }
        let (at, number) = ends.pop_first().expect("somebody sits");
        now = at;
        let flow = of[&number];
        let (_, millis, width) = flows[flow];
        had[flow] += millis as f64 / 1e3 * f64::from(width);
        let place = world.seated.iter().position(|(seated, _)| *seated == number).expect("it sits");
        world.finish(place, Duration::from_millis(millis));
        of.insert(world.arrive(0, flow as u64, width), flow);
    }
    had
}

#[test]
fn flows_that_want_more_than_there_is_have_the_same() {
    for flows in [
        vec![(100, 10, 1), (100, 10, 1)],
        // Many at a time are no reason to have more.
        vec![(1_000, 10, 1), (20, 10, 1), (100, 10, 1)],
        // Nor are long requests, nor wide ones.
        vec![(100, 50, 1), (100, 5, 1)],
        vec![(100, 10, 4), (100, 10, 1)],
        vec![(200, 40, 2), (50, 4, 1), (50, 10, 3)],
    ] {
        let had = contend(8, &flows, 20_000);
        let mean = had.iter().sum::<f64>() / had.len() as f64;
        for share in &had {
            assert!((share - mean).abs() < 0.1 * mean, "{had:?} of {flows:?}");
        }
    }
}

#[test]
fn a_flow_that_wants_little_has_it() {
    // One at a time, beside one with a thousand: each of its requests is the next.
    let had = contend(8, &[(1_000, 10, 1), (1, 10, 1)], 20_000);
    // It alone would have had a seat all the time: half of that is a wait as long as a request.
    let alone = (had[0] + had[1]) / 8.0;
    assert!(had[1] > 0.45 * alone, "{had:?}");
}

#[derive(Debug, Clone)]
enum Step {
    Arrive { level: usize, flow: u64, width: u32 },
    Finish { at: usize, millis: u64 },
    Withdraw { at: usize },
    Configure { seed: u32 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..4_usize, 0..6_u64, 1..5_u32).prop_map(|(level, flow, width)| Step::Arrive { level, flow, width }),
        5 => (0..64_usize, 0..500_u64).prop_map(|(at, millis)| Step::Finish { at, millis }),
        1 => (0..64_usize).prop_map(|at| Step::Withdraw { at }),
        1 => (0..1_000_u32).prop_map(|seed| Step::Configure { seed }),
    ]
}

/// Four levels, the first exempt.
fn specs(seed: u32) -> Vec<Spec> {
    let of = |at: u32| seed.wrapping_mul(2_654_435_761).rotate_left(7 * at);
    let limited = (1..4).map(|at| {
        let bits = of(at);
        let kind = match bits % 4 {
            0 => Kind::Reject,
            _ => queue(1 + bits % 8, 1 + bits % 2, 1 + bits % 9),
        };
        level(kind, bits % 50, bits % 101, (bits % 3 == 0).then_some(bits % 150))
    });
    std::iter::once(level(Kind::Exempt, seed % 5, 50, None)).chain(limited).collect()
}

proptest! {
    #[test]
    fn seats_are_never_given_twice_and_nobody_is_forgotten(
        total in 1..40_u64,
        seed in 0..1_000_u32,
        steps in prop::collection::vec(step(), 1..200),
    ) {
        let mut world = World::new(total, &specs(seed));
        let mut reconfigured = false;
        for step in steps {
            match step {
                Step::Arrive { level, flow, width } => {
                    let width = width.min(world.dispatcher.width_max(world.ids[level]));
                    world.arrive(level, flow, width);
                }
                Step::Finish { at, millis } if !world.seated.is_empty() => {
                    let at = at % world.seated.len();
                    world.finish(at, Duration::from_millis(millis));
                }
                Step::Withdraw { at } if !world.waiting.is_empty() => {
                    let (_, place) = world.waiting.remove(at % world.waiting.len());
                    let granted = world.dispatcher.withdraw(place);
                    world.granted(granted);
                }
                Step::Configure { seed } => {
                    reconfigured = true;
                    world.configure(&specs(seed));
                }
                Step::Finish { .. } | Step::Withdraw { .. } => {}
            }
            // Fewer seats than are taken are no fault of whoever took them.
            if !reconfigured {
                world.check();
            }
        }
        // Whoever waits is served once those before it have ended, if its level may have a seat at all.
        while !world.seated.is_empty() {
            world.finish(0, SECOND);
        }
        let served: Vec<String> = world.waiting.iter().map(|(_, place)| {
            let level = &world.dispatcher.levels[place.level.slot];
            format!("{}+{} of {}", level.nominal, level.borrowable, level.name)
        }).filter(|level| !level.starts_with("0+")).collect();
        prop_assert!(served.is_empty() || world.dispatcher.waiting > 0, "{:?}", served);
        for (_, place) in &world.waiting {
            let level = &world.dispatcher.levels[place.level.slot];
            let width = u64::from(level.next_width().unwrap_or(1));
            let most = level.nominal.max((level.nominal + level.borrowable).min(world.dispatcher.idle));
            prop_assert!(width > most, "{} waits for ever: {} + {}", level.name, level.nominal, level.borrowable);
        }
    }
}
