//! How many pods what is asked needs: Knative's autoscaler, as it documents itself (stable and panic mode), with two rules of our
//! own: who has not listened to all nodes for a whole window takes nobody away, and a number that somebody sets by hand stands for
//! a window. Pure.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use super::settings::Settings;
use super::window::Window;

/// As fast as pods may become more, at each look, and fewer (Knative's `max-scale-up-rate` and `max-scale-down-rate`).
const UP_RATE: f64 = 1000.0;
const DOWN_RATE: f64 = 2.0;
/// While something is asked it is looked at so often.
pub(super) const TICK: Duration = Duration::from_secs(1);

/// What is known now.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Seen {
    /// `spec.replicas`.
    pub replicas: i32,
    /// Pods that are ready.
    pub ready: i32,
    /// Requests under way, and those among them that wait for a pod.
    pub asked: f64,
    pub held: usize,
    /// Since when all nodes are heard without a gap that may have something to tell; `None` when one is not.
    pub heard_since: Option<Instant>,
}

/// What is remembered of a workload.
#[derive(Debug)]
pub(super) struct Memory {
    /// Since when anything is remembered.
    begun: Instant,
    window: Window,
    panic: Option<Panic>,
    /// How many were wanted at each look, as long as that delays.
    wanted: VecDeque<(Instant, i32)>,
    /// Since when none is wanted.
    idle: Option<Instant>,
    /// The number as it was seen last, and as it was to be written.
    number: Option<i32>,
    written: Option<i32>,
    /// Somebody else has set it.
    by_hand: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
struct Panic {
    since: Instant,
    replicas: i32,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Decision {
    /// How many there are to be, and why, if that is another number.
    pub change: Option<(i32, String)>,
    /// When to look again, if nothing happens before.
    pub next: Option<Duration>,
}

impl Memory {
    pub(super) fn new(now: Instant, settings: &Settings) -> Self {
        Self {
            begun: now,
            window: Window::new(now, settings.window),
            panic: None,
            wanted: VecDeque::new(),
            idle: None,
            number: None,
            written: None,
            by_hand: None,
        }
    }

    /// This number is about to be written.
    pub(super) fn writes(&mut self, replicas: i32) {
        self.written = Some(replicas);
    }

    /// Notes whether somebody else has set the number. What is seen first is nobody's.
    fn note(&mut self, replicas: i32, now: Instant) {
        let before = self.number.replace(replicas);
        if self.written == Some(replicas) {
            if before != Some(replicas) {
                self.by_hand = None;
            }
        } else if before.is_some_and(|before| before != replicas) {
            (self.by_hand, self.written) = (Some(now), None);
        }
    }
}

/// What is to be done about a workload.
pub(super) fn decide(settings: &Settings, memory: &mut Memory, seen: &Seen, now: Instant) -> Decision {
    memory.note(seen.replicas, now);
    memory.window.resize(settings.window);
    memory.window.record(now, seen.asked.max(seen.held as f64));
    let usual = memory.window.average(now, settings.window);
    let is_asked = usual > 0.0 || seen.held > 0;
    let wanted = wanted(settings, memory, seen, usual, now);
    memory.idle = match wanted {
        0 => Some(memory.idle.unwrap_or(now)),
        _ => None,
    };
    let left = |since: Option<Instant>, lasts: Duration| {
        since.map(|since| (since + lasts).saturating_duration_since(now)).filter(|left| !left.is_zero())
    };
    // What was asked counts for a while.
    let least = memory.wanted.back().map_or(0, |(_, last)| *last);
    let is_delayed = memory.wanted.iter().any(|(_, before)| *before > least);
    let is_settling = is_asked || memory.panic.is_some() || is_delayed;
    let stay = |next: Option<Duration>| Decision { change: None, next: if is_settling { Some(TICK) } else { next } };
    let wakes = seen.replicas == 0 && seen.held > 0;
    if let Some(left) = left(memory.by_hand, settings.window).filter(|_| !wakes) {
        return stay(Some(left));
    }
    if wanted < seen.replicas {
        let heard = seen.heard_since.map(|since| left(Some(since.max(memory.begun)), settings.window));
        let rest = match (heard, wanted) {
            // Somebody is heard again, and then it is looked at.
            (None, _) => return stay(None),
            (Some(Some(left)), _) => Some(left),
            (Some(None), 0) => left(memory.idle, settings.retention),
            (Some(None), _) => None,
        };
        if rest.is_some() {
            return stay(rest);
        }
    }
    if wanted == seen.replicas {
        return stay(None);
    }
    let why = match (wakes, wanted) {
        (true, _) => format!("{} wait for a pod", seen.held),
        (_, 0) => format!("nothing was asked for {:?}", settings.window.max(settings.retention)),
        _ if !is_asked => "the least that is to be there".to_owned(),
        _ if memory.panic.is_some() => {
            format!("{:.1} under way of late", memory.window.average(now, settings.panic_window))
        }
        _ => format!("{usual:.1} under way on average"),
    };
    Decision { change: Some((wanted, why)), next: Some(TICK) }
}

/// How many there are to be, whatever speaks against the change.
fn wanted(settings: &Settings, memory: &mut Memory, seen: &Seen, usual: f64, now: Instant) -> i32 {
    let ready = f64::from(seen.ready.max(1));
    let needed = |asked: f64| (asked / settings.target).ceil();
    let of_late = needed(memory.window.average(now, settings.panic_window));
    let within_rates = |pods: f64| pods.clamp((ready / DOWN_RATE).floor(), (ready * UP_RATE).ceil()) as i32;
    // Who has just been woken has not been asked before.
    let usual = match seen.replicas {
        0 if seen.held == 0 => 0,
        _ => within_rates(needed(usual)),
    };
    let is_over = seen.replicas > 0 && of_late / ready >= settings.panic_threshold;
    memory.panic = match memory.panic {
        _ if is_over => {
            Some(Panic { since: now, replicas: memory.panic.map_or(seen.replicas, |panic| panic.replicas) })
        }
        Some(panic) if now.saturating_duration_since(panic.since) < settings.window => Some(panic),
        _ => None,
    };
    let mut wanted = match &mut memory.panic {
        // Nobody is taken away meanwhile.
        Some(panic) => {
            panic.replicas = panic.replicas.max(within_rates(of_late));
            panic.replicas.max(usual)
        }
        None => usual,
    };
    if seen.held > 0 {
        wanted = wanted.max(if seen.replicas == 0 { within_rates(needed(seen.held as f64)).max(1) } else { 1 });
    }
    memory.wanted.push_back((now, wanted));
    while memory.wanted.front().is_some_and(|(at, _)| now.saturating_duration_since(*at) > settings.delay) {
        memory.wanted.pop_front();
    }
    let delayed = memory.wanted.iter().map(|(_, wanted)| *wanted).max().unwrap_or(wanted);
    let wanted = if wanted < seen.replicas { delayed.min(seen.replicas) } else { wanted };
    wanted.max(settings.min).min(settings.max.unwrap_or(i32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A workload that is looked at once a second, and does what is decided at once.
    struct Life {
        settings: Settings,
        memory: Memory,
        now: Instant,
        replicas: i32,
        heard_since: Option<Instant>,
    }

    impl Life {
        fn new(replicas: i32, settings: Settings) -> Life {
            let now = Instant::now();
            let memory = Memory::new(now, &settings);
            Life { settings, memory, now, replicas, heard_since: Some(now) }
        }

        fn look(&mut self, asked: f64, held: usize) -> Decision {
            let (replicas, heard_since) = (self.replicas, self.heard_since);
            let seen = Seen { replicas, ready: replicas, asked, held, heard_since };
            let decision = decide(&self.settings, &mut self.memory, &seen, self.now);
            if let Some((replicas, _)) = &decision.change {
                self.memory.writes(*replicas);
                self.replicas = *replicas;
            }
            decision
        }

        /// So many seconds of this; the numbers that there are at the end of each, without repetition.
        fn live(&mut self, seconds: u64, asked: f64) -> Vec<i32> {
            let mut numbers = Vec::new();
            for _ in 0..seconds {
                self.look(asked, 0);
                if numbers.last() != Some(&self.replicas) {
                    numbers.push(self.replicas);
                }
                self.now += TICK;
            }
            numbers
        }
    }

    /// Ten requests a pod.
    fn ten() -> Settings {
        Settings { target: 10.0, ..Settings::default() }
    }

    #[test]
    fn who_is_not_asked_goes_to_zero_after_a_window_and_comes_back_when_somebody_waits() {
        let mut life = Life::new(1, ten());
        assert_eq!(life.live(60, 0.0), [1], "it was listened for less than a window");
        assert_eq!(life.live(1, 0.0), [0]);
        let decision = life.look(0.0, 0);
        assert_eq!(decision, Decision { change: None, next: None }, "nothing is looked at while nothing happens");
        let decision = life.look(0.0, 3);
        assert_eq!(decision.change, Some((1, "3 wait for a pod".to_owned())));
        life.now += TICK;
        assert_eq!(life.live(59, 0.0), [1]);
        assert_eq!(life.live(2, 0.0), [0]);
        assert_eq!(life.look(0.0, 45).change.map(|(replicas, _)| replicas), Some(5), "as many as who waits needs");
    }

    #[test]
    fn whatever_it_was_it_comes_to_rest_by_looks_that_it_asks_for_itself() {
        let delayed = Settings { delay: Duration::from_secs(20), retention: Duration::from_secs(70), ..ten() };
        for (settings, asked) in [(ten(), 5.0), (ten(), 300.0), (delayed, 300.0)] {
            let mut life = Life::new(1, settings);
            life.live(70, asked);
            // By hand, too.
            life.replicas += 2;
            let begun = life.now;
            while let Some(next) = life.look(0.0, 0).next {
                life.now += next;
                assert!(life.now < begun + Duration::from_secs(3600), "{asked}: it has no end");
            }
            assert_eq!(life.replicas, 0, "{asked}");
        }
    }

    #[test]
    fn it_is_looked_at_when_something_is_due() {
        let mut life = Life::new(1, Settings { retention: Duration::from_secs(90), ..ten() });
        assert_eq!(life.look(0.0, 0).next, Some(Duration::from_secs(60)));
        life.now += Duration::from_secs(60);
        assert_eq!(life.look(0.0, 0), Decision { change: None, next: Some(Duration::from_secs(30)) });
        life.now += Duration::from_secs(30);
        assert_eq!(life.look(0.0, 0).change.map(|(replicas, _)| replicas), Some(0));
        let mut asked = Life::new(1, ten());
        assert_eq!(asked.look(1.0, 0).next, Some(TICK));
    }

    #[test]
    fn as_many_as_are_needed_on_average() {
        for (before, asked, seconds, expected) in [
            (1, 10.0, 70, &[1][..]),
            (1, 15.0, 5, &[2]),
            (3, 25.0, 90, &[3]),
            // Half at a look, and no faster.
            (8, 10.0, 90, &[8, 4, 2, 1]),
            // A tenth of one is one.
            (1, 0.1, 300, &[1]),
        ] {
            assert_eq!(Life::new(before, ten()).live(seconds, asked), expected, "{before} pods, {asked} asked");
        }
    }

    #[test]
    fn a_burst_is_followed_at_once_and_nobody_is_taken_away_for_a_window_after() {
        let mut life = Life::new(1, ten());
        life.live(70, 5.0);
        assert_eq!(life.live(6, 100.0).last(), Some(&10), "six seconds say what sixty would hide");
        assert_eq!(life.live(30, 5.0), [10], "it may come again");
        assert_eq!(life.live(120, 5.0), [10, 5, 2, 1]);
        // Twice as many as there are is no burst where there are four: they have what the average needs.
        let mut many = Life::new(4, ten());
        many.live(61, 38.0);
        assert_eq!(many.live(3, 60.0), [4]);
    }

    #[test]
    fn bounds_hold_and_a_delay_keeps_the_most_of_its_time() {
        let bounded = Settings { min: 2, max: Some(3), ..ten() };
        assert_eq!(Life::new(1, bounded.clone()).live(1, 0.0), [2]);
        assert_eq!(Life::new(2, bounded.clone()).live(90, 500.0), [3]);
        assert_eq!(Life::new(3, bounded).live(90, 0.0), [3, 2]);
        let delayed = Settings { delay: Duration::from_secs(100), ..ten() };
        let mut life = Life::new(4, delayed);
        life.live(61, 40.0);
        assert_eq!(life.live(110, 0.0), [4], "the average fell below four a quarter of a minute ago");
        assert_eq!(life.live(400, 0.0), [4, 3, 2, 1, 0], "each half of the way waits for the delay");
    }

    #[test]
    fn what_somebody_sets_by_hand_stands_for_a_window_but_sleep_ends_with_the_next_request() {
        let mut life = Life::new(1, ten());
        life.live(70, 5.0);
        life.replicas = 6;
        assert_eq!(life.live(60, 5.0), [6]);
        assert_eq!(life.live(3, 5.0), [3, 1], "then what is asked counts again");
        life.replicas = 1;
        life.live(70, 5.0);
        life.replicas = 2;
        assert_eq!(life.live(30, 80.0), [2], "also when more are needed");
        life.replicas = 0;
        assert_eq!(life.live(30, 0.0), [0]);
        assert_eq!(life.look(0.0, 1).change.map(|(replicas, _)| replicas > 0), Some(true));
    }

    #[test]
    fn who_does_not_hear_all_takes_nobody_away_but_makes_more() {
        let mut life = Life::new(2, ten());
        life.heard_since = None;
        assert_eq!(life.live(300, 0.0), [2]);
        assert_eq!(life.look(0.0, 0).next, None);
        assert_eq!(life.live(6, 90.0).last(), Some(&9));
        life.heard_since = Some(life.now);
        life.live(50, 0.0);
        // One of them was not heard for a moment, which nobody has looked at.
        life.heard_since = Some(life.now);
        assert_eq!(life.live(60, 0.0), [9], "a window is waited for from when all are heard");
        assert_eq!(life.live(10, 0.0).last(), Some(&0));
    }
}
