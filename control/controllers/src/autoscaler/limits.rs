//! What becomes of a recommendation: recent ones steady it, policies slow it down, and it stays between the bounds (the
//! second half of the reference's `horizontal.go`). No I/O, no clock.

use std::collections::VecDeque;
use std::time::Duration;

use k8s_openapi::api::autoscaling::v2::HPAScalingRules;
use tokio::time::Instant;

/// On the way down, the highest recommendation of this time counts (kube-controller-manager's
/// `--horizontal-pod-autoscaler-downscale-stabilization`).
const DOWN_WINDOW: Duration = Duration::from_secs(300);
/// Without policies: at most so many times as many, or so many.
const UP_FACTOR: i32 = 2;
const UP_LEAST: i32 = 4;
/// What comes within this time of each other is remembered as one: so the longest window the API takes, an hour, holds
/// 3,600 entries, however often somebody changes the object.
const GRAIN: Duration = Duration::from_secs(1);

/// What was recommended and done of late.
#[derive(Debug, Clone, Default)]
pub(super) struct History {
    recommended: VecDeque<Recommended>,
    up: VecDeque<Changed>,
    down: VecDeque<Changed>,
}

#[derive(Debug, Clone, Copy)]
struct Recommended {
    at: Instant,
    lowest: i32,
    highest: i32,
}

#[derive(Debug, Clone, Copy)]
struct Changed {
    at: Instant,
    by: i32,
}

/// How fast the number may change in one direction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rules {
    window: Duration,
    select: Select,
    policies: Vec<Policy>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Select {
    /// The policy that allows the greatest change.
    Max,
    Min,
    Disabled,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Policy {
    percent: bool,
    value: i32,
    period: Duration,
}

impl Rules {
    /// On the way up. What is not said has been filled in by the API.
    pub(super) fn up(rules: Option<&HPAScalingRules>) -> Self {
        Self::of(rules, Duration::ZERO)
    }

    /// On the way down.
    pub(super) fn down(rules: Option<&HPAScalingRules>) -> Self {
        Self::of(rules, DOWN_WINDOW)
    }

    fn of(rules: Option<&HPAScalingRules>, window: Duration) -> Self {
        let seconds = |seconds: i32| Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
        let policies = rules.and_then(|rules| rules.policies.as_deref()).unwrap_or_default();
        let policy = |policy: &k8s_openapi::api::autoscaling::v2::HPAScalingPolicy| Policy {
            percent: policy.type_ == "Percent",
            value: policy.value,
            period: seconds(policy.period_seconds),
        };
        Self {
            window: rules.and_then(|rules| rules.stabilization_window_seconds).map_or(window, seconds),
            select: match rules.and_then(|rules| rules.select_policy.as_deref()) {
                Some("Min") => Select::Min,
                Some("Disabled") => Select::Disabled,
                _ => Select::Max,
            },
            policies: policies.iter().map(policy).collect(),
        }
    }
}

/// How many there may be, and how many there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bounds {
    pub least: i32,
    pub most: i32,
    pub current: i32,
}

/// A number, and the conditions that say how it came about: reason, message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Settled {
    pub replicas: i32,
    pub able: (&'static str, &'static str),
    /// `ScalingLimited`.
    pub is_limited: bool,
    pub limited: (&'static str, &'static str),
}

const READY: (&str, &str) = ("ReadyForNewScale", "recommended size matches current size");
const UP_STEADIED: (&str, &str) = (
    "ScaleUpStabilized",
    "recent recommendations were lower than current one, applying the lowest recent recommendation",
);
const DOWN_STEADIED: (&str, &str) = (
    "ScaleDownStabilized",
    "recent recommendations were higher than current one, applying the highest recent recommendation",
);
const WITHIN: (&str, &str) = ("DesiredWithinRange", "the desired count is within the acceptable range");
const UP_LIMIT: (&str, &str) =
    ("ScaleUpLimit", "the desired replica count is increasing faster than the maximum scale rate");
const DOWN_LIMIT: (&str, &str) =
    ("ScaleDownLimit", "the desired replica count is decreasing faster than the maximum scale rate");
const TOO_MANY: (&str, &str) = ("TooManyReplicas", "the desired replica count is more than the maximum replica count");
const TOO_FEW: (&str, &str) = ("TooFewReplicas", "the desired replica count is less than the minimum replica count");

impl History {
    /// Before the first recommendation, what there is was recommended.
    pub(super) fn begin(&mut self, current: i32, now: Instant) {
        if self.recommended.is_empty() {
            self.recommended.push_back(Recommended { at: now, lowest: current, highest: current });
        }
    }

    /// The number was changed.
    pub(super) fn changed(&mut self, from: i32, to: i32, now: Instant) {
        let list = if to > from { &mut self.up } else { &mut self.down };
        let by = i32::try_from(to.abs_diff(from)).unwrap_or(i32::MAX);
        match list.back_mut() {
            // Of two that are one the later time counts: it lets go of the policies last.
            Some(last) if now.duration_since(last.at) < GRAIN => {
                *last = Changed { at: now, by: last.by.saturating_add(by) };
            }
            _ => list.push_back(Changed { at: now, by }),
        }
    }

    /// What becomes of a recommendation without policies.
    pub(super) fn settle(&mut self, recommended: i32, bounds: Bounds, now: Instant) -> Settled {
        self.forget(DOWN_WINDOW, Duration::ZERO, now);
        let highest = self.recommended.iter().map(|known| known.highest).max().unwrap_or(recommended);
        let steady = highest.max(recommended);
        self.remember(recommended, now);
        let limit = bounds.current.saturating_mul(UP_FACTOR).max(UP_LEAST);
        let (most, why) = if bounds.most > limit { (limit, UP_LIMIT) } else { (bounds.most, TOO_MANY) };
        let (replicas, limited) = if steady < bounds.least {
            (bounds.least, TOO_FEW)
        } else if steady > most {
            (most, why)
        } else {
            (steady, WITHIN)
        };
        let able = if steady == recommended { READY } else { DOWN_STEADIED };
        Settled { replicas, able, is_limited: replicas != steady, limited }
    }

    /// What becomes of a recommendation under rules.
    pub(super) fn settle_by(
        &mut self,
        recommended: i32,
        bounds: Bounds,
        (up, down): (&Rules, &Rules),
        now: Instant,
    ) -> Settled {
        let periods = up.policies.iter().chain(&down.policies).map(|policy| policy.period);
        self.forget(up.window.max(down.window), periods.max().unwrap_or_default(), now);
        let within =
            |window: Duration| self.recommended.iter().filter(move |known| now.duration_since(known.at) < window);
        let lowest = within(up.window).map(|known| known.lowest).min().unwrap_or(recommended).min(recommended);
        let highest = within(down.window).map(|known| known.highest).max().unwrap_or(recommended).max(recommended);
        // As far as all of late agree.
        let steady = bounds.current.max(lowest).min(highest);
        self.remember(recommended, now);
        let able = match steady {
            steady if steady == recommended => READY,
            _ if recommended >= bounds.current => UP_STEADIED,
            _ => DOWN_STEADIED,
        };
        let (replicas, limited) = if steady > bounds.current {
            let limit = self.limit(up, bounds.current, now, true).max(bounds.current);
            let (most, why) = if bounds.most > limit { (limit, UP_LIMIT) } else { (bounds.most, TOO_MANY) };
            if steady > most { (most, why) } else { (steady, WITHIN) }
        } else if steady < bounds.current {
            let limit = self.limit(down, bounds.current, now, false).min(bounds.current);
            let (least, why) = if bounds.least < limit { (limit, DOWN_LIMIT) } else { (bounds.least, TOO_FEW) };
            if steady < least { (least, why) } else { (steady, WITHIN) }
        } else {
            (steady, WITHIN)
        };
        Settled { replicas, able, is_limited: replicas != steady, limited }
    }

    /// How far the policies let the number go in a direction.
    fn limit(&self, rules: &Rules, current: i32, now: Instant, is_up: bool) -> i32 {
        let sum = |list: &VecDeque<Changed>, period: Duration| {
            let recent = list.iter().filter(|change| now.duration_since(change.at) < period);
            recent.fold(0_i32, |sum, change| sum.saturating_add(change.by))
        };
        let allowed = rules.policies.iter().map(|policy| {
            let (added, removed) = (sum(&self.up, policy.period), sum(&self.down, policy.period));
            let before = current.saturating_sub(added).saturating_add(removed);
            let share = f64::from(policy.value) / 100.0;
            match (policy.percent, is_up) {
                (false, true) => before.saturating_add(policy.value),
                (false, false) => before.saturating_sub(policy.value),
                // Rounded so that there is a change.
                (true, true) => (f64::from(before) * (1.0 + share)).ceil() as i32,
                (true, false) => (f64::from(before) * (1.0 - share)) as i32,
            }
        });
        let limit = match (rules.select, is_up) {
            (Select::Disabled, _) => None,
            (Select::Max, true) | (Select::Min, false) => allowed.max(),
            (Select::Min, true) | (Select::Max, false) => allowed.min(),
        };
        limit.unwrap_or(current)
    }

    fn remember(&mut self, recommended: i32, now: Instant) {
        match self.recommended.back_mut() {
            Some(last) if now.duration_since(last.at) < GRAIN => {
                last.lowest = last.lowest.min(recommended);
                last.highest = last.highest.max(recommended);
            }
            _ => self.recommended.push_back(Recommended { at: now, lowest: recommended, highest: recommended }),
        }
    }

    /// Forgets what no window and no period reaches.
    fn forget(&mut self, window: Duration, period: Duration, now: Instant) {
        self.recommended.retain(|known| now.duration_since(known.at) < window);
        for list in [&mut self.up, &mut self.down] {
            list.retain(|change| now.duration_since(change.at) < period);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn rules(up: Value, down: Value) -> (Rules, Rules) {
        let read = |value: Value| serde_json::from_value::<HPAScalingRules>(value).unwrap();
        (Rules::up(Some(&read(up))), Rules::down(Some(&read(down))))
    }

    fn policy(kind: &str, value: i32, seconds: i32) -> Value {
        json!({"type": kind, "value": value, "periodSeconds": seconds})
    }

    fn bounds(least: i32, most: i32, current: i32) -> Bounds {
        Bounds { least, most, current }
    }

    #[test]
    fn without_rules_it_doubles_at_most_and_stays_within_the_bounds() {
        let now = Instant::now();
        for (recommended, least, most, current, expected, reason) in [
            (5, 1, 10, 5, 5, "DesiredWithinRange"),
            (9, 1, 10, 5, 9, "DesiredWithinRange"),
            (11, 1, 10, 5, 10, "TooManyReplicas"),
            (9, 1, 20, 4, 8, "ScaleUpLimit"),
            (9, 1, 20, 1, 4, "ScaleUpLimit"),
            (1, 3, 10, 5, 3, "TooFewReplicas"),
            (i32::MAX, 1, i32::MAX, i32::MAX, i32::MAX, "DesiredWithinRange"),
        ] {
            let found = History::default().settle(recommended, bounds(least, most, current), now);
            assert_eq!((found.replicas, found.limited.0), (expected, reason), "{recommended} of {current}");
            assert_eq!(found.is_limited, reason != "DesiredWithinRange");
        }
    }

    #[test]
    fn on_the_way_down_the_highest_of_five_minutes_counts() {
        let (mut history, now) = (History::default(), Instant::now());
        let mut at = |seconds, recommended, current| {
            let now = now + Duration::from_secs(seconds);
            history.begin(current, now);
            let settled = history.settle(recommended, bounds(1, 100, current), now);
            (settled.replicas, settled.able.0)
        };
        assert_eq!(at(0, 8, 8), (8, "ReadyForNewScale"));
        assert_eq!(at(15, 2, 8), (8, "ScaleDownStabilized"));
        assert_eq!(at(60, 5, 8), (8, "ScaleDownStabilized"));
        assert_eq!(at(299, 2, 8), (8, "ScaleDownStabilized"));
        assert_eq!(at(315, 2, 8), (5, "ScaleDownStabilized"));
        assert_eq!(at(361, 2, 5), (2, "ReadyForNewScale"));
        assert_eq!(at(362, 9, 2), (4, "ReadyForNewScale"), "up at once");
    }

    #[test]
    fn rules_steady_both_directions() {
        let always = json!([policy("Percent", 100, 15), policy("Pods", 100, 15)]);
        let (up, down) = rules(
            json!({"stabilizationWindowSeconds": 60, "policies": always}),
            json!({"stabilizationWindowSeconds": 120, "policies": always}),
        );
        let (mut history, now) = (History::default(), Instant::now());
        let mut at = |seconds, recommended, current| {
            let now = now + Duration::from_secs(seconds);
            history.begin(current, now);
            let settled = history.settle_by(recommended, bounds(1, 100, current), (&up, &down), now);
            (settled.replicas, settled.able.0)
        };
        assert_eq!(at(0, 5, 5), (5, "ReadyForNewScale"));
        assert_eq!(at(15, 9, 5), (5, "ScaleUpStabilized"));
        assert_eq!(at(45, 7, 5), (5, "ScaleUpStabilized"));
        assert_eq!(at(61, 9, 5), (7, "ScaleUpStabilized"), "the lowest of a minute");
        assert_eq!(at(75, 3, 7), (7, "ScaleDownStabilized"));
        assert_eq!(at(182, 3, 7), (3, "ReadyForNewScale"), "nothing higher for two minutes");
    }

    #[test]
    fn policies_hold_for_their_period() {
        let two = json!([policy("Pods", 4, 60), policy("Percent", 50, 60)]);
        let select = |select: &str| json!({"selectPolicy": select, "policies": two, "stabilizationWindowSeconds": 0});
        for (selected, current, expected, lower) in
            [("Max", 10, 15, 5), ("Min", 10, 14, 6), ("Disabled", 10, 10, 10), ("Max", 4, 8, 0), ("Min", 4, 6, 2)]
        {
            let (up, down) = rules(select(selected), select(selected));
            let now = Instant::now();
            let up_to = History::default().settle_by(1_000, bounds(0, 1_000, current), (&up, &down), now);
            assert_eq!((up_to.replicas, up_to.limited.0), (expected, "ScaleUpLimit"), "{selected} {current}");
            let down_to = History::default().settle_by(0, bounds(0, 1_000, current), (&up, &down), now);
            assert_eq!(down_to.replicas, lower, "{selected} {current}");
        }
        let (up, down) = rules(select("Max"), select("Max"));
        let (mut history, now) = (History::default(), Instant::now());
        let mut at = |seconds, recommended, current| {
            let now = now + Duration::from_secs(seconds);
            let settled = history.settle_by(recommended, bounds(0, 1_000, current), (&up, &down), now);
            if settled.replicas != current {
                history.changed(current, settled.replicas, now);
            }
            settled.replicas
        };
        assert_eq!(at(0, 100, 10), 15);
        assert_eq!(at(15, 100, 15), 15, "the minute is not over");
        assert_eq!(at(30, 13, 15), 13, "what was added may go again, and a share of what was");
        assert_eq!(at(61, 100, 13), 23, "of 15, before the two went: 23");
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (up, down) = rules(
            json!({"stabilizationWindowSeconds": 3_600, "policies": [policy("Pods", 1, 1_800)]}),
            json!({"stabilizationWindowSeconds": 3_600, "policies": [policy("Pods", 1, 1_800)]}),
        );
        let (mut history, now) = (History::default(), Instant::now());
        for tenth in 0..100_000_u64 {
            let now = now + Duration::from_millis(100 * tenth);
            history.settle_by(5, bounds(1, 10, 5), (&up, &down), now);
            history.changed(5, 6, now);
        }
        assert!(history.recommended.len() <= 3_601, "{}", history.recommended.len());
        assert!(history.up.len() <= 1_801, "{}", history.up.len());
    }

    fn any_rules() -> impl Strategy<Value = Value> {
        let policy = (any::<bool>(), 1..50_i32, 1..120_i32)
            .prop_map(|(percent, value, period)| policy(if percent { "Percent" } else { "Pods" }, value, period));
        let select = proptest::sample::select(vec!["Max", "Min", "Disabled"]);
        (proptest::collection::vec(policy, 1..4), select, 0..200_i32).prop_map(|(policies, select, window)| {
            json!({"policies": policies, "selectPolicy": select, "stabilizationWindowSeconds": window})
        })
    }

    proptest! {
        /// Whatever is recommended, and however the rules are, nothing leaves the bounds, and no pods-policy's period sees
        /// more than all policies together allow.
        #[test]
        fn never_outside_the_bounds_and_never_beyond_the_policies(
            up in any_rules(),
            down in any_rules(),
            ruled in any::<bool>(),
            steps in proptest::collection::vec((0_u64..60, 0..100_i32), 1..60),
        ) {
            let (rules_up, rules_down) = rules(up, down);
            let (least, most) = (2, 40);
            let (mut history, begun, mut seconds, mut current) = (History::default(), Instant::now(), 0, 10);
            let mut all: Vec<(u64, i32)> = Vec::new();
            for (wait, recommended) in steps {
                seconds += wait + 1;
                let now = begun + Duration::from_secs(seconds);
                history.begin(current, now);
                let bounds = bounds(least, most, current);
                let settled = match ruled {
                    true => history.settle_by(recommended, bounds, (&rules_up, &rules_down), now),
                    false => history.settle(recommended, bounds, now),
                };
                prop_assert!((least..=most).contains(&settled.replicas), "{settled:?}");
                if settled.replicas == current {
                    continue;
                }
                history.changed(current, settled.replicas, now);
                all.push((seconds, settled.replicas - current));
                if ruled && settled.replicas > current {
                    // One policy at least allows what was added in its own period.
                    let fits = |policy: &Policy| {
                        let recent = all.iter().filter(|(at, _)| seconds - at < policy.period.as_secs());
                        let net: i32 = recent.clone().map(|(_, by)| by).sum();
                        let before = settled.replicas - net;
                        let most = match policy.percent {
                            true => (f64::from(before) * (1.0 + f64::from(policy.value) / 100.0)).ceil() as i32,
                            false => before + policy.value,
                        };
                        settled.replicas <= most
                    };
                    let ok = match rules_up.select {
                        Select::Disabled => false,
                        Select::Max => rules_up.policies.iter().any(fits),
                        Select::Min => rules_up.policies.iter().all(fits),
                    };
                    prop_assert!(ok, "{all:?} {rules_up:?}");
                }
                current = settled.replicas;
            }
        }

        /// A higher recommendation never makes fewer.
        #[test]
        fn monotone_in_what_is_recommended(
            up in any_rules(),
            down in any_rules(),
            before in proptest::collection::vec(0..60_i32, 0..20),
            low in 0..100_i32,
            more in 0..100_i32,
        ) {
            let (up, down) = rules(up, down);
            let (mut history, begun) = (History::default(), Instant::now());
            let mut now = begun;
            for recommended in before {
                now += Duration::from_secs(15);
                history.settle_by(recommended, bounds(1, 50, 10), (&up, &down), now);
            }
            now += Duration::from_secs(15);
            let with = |recommended| history.clone().settle_by(recommended, bounds(1, 50, 10), (&up, &down), now).replicas;
            prop_assert!(with(low) <= with(low + more));
            let plain = |recommended| history.clone().settle(recommended, bounds(1, 50, 10), now).replicas;
            prop_assert!(plain(low) <= plain(low + more));
        }
    }
}
