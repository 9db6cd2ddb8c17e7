//! From what pods use to how many there should be (the reference's `replica_calculator.go`). No I/O, no clock.

use std::collections::{HashMap, HashSet};

use jiff::{SignedDuration, Timestamp};

use super::measure::Measured;
use crate::informer::{Phase, Pod};

/// For so long after its start a pod uses the processor for its beginning: only what it used while it was ready counts
/// (kube-controller-manager's `--horizontal-pod-autoscaler-cpu-initialization-period`).
const CPU_INITIALIZATION: SignedDuration = SignedDuration::from_secs(300);
/// A pod that became unready so soon after its start was never ready (`--horizontal-pod-autoscaler-initial-readiness-delay`).
const INITIAL_READINESS: SignedDuration = SignedDuration::from_secs(30);

/// What is to be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    /// Percent of what is requested.
    Utilization(i32),
    /// By each pod, in thousandths.
    AverageValue(i64),
}

/// How far from the target, as a share of it, is as good as at it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Tolerance {
    pub up: f64,
    pub down: f64,
}

impl Tolerance {
    fn allows(self, ratio: f64) -> bool {
        (1.0 - self.down..=1.0 + self.up).contains(&ratio)
    }
}

/// What is wanted of which resource.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Wanted<'a> {
    pub resource: &'a str,
    /// Of this container alone.
    pub container: Option<&'a str>,
    pub target: Target,
    pub tolerance: Tolerance,
}

/// How many there should be, and what they use now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Proposal {
    pub replicas: i32,
    /// Percent of what is requested.
    pub utilization: Option<i32>,
    /// By each pod, in thousandths.
    pub average_milli: i64,
}

/// Pods by what their measures are good for.
#[derive(Debug, Default)]
struct Groups<'a> {
    ready: usize,
    unready: HashSet<&'a str>,
    missing: HashSet<&'a str>,
    ignored: HashSet<&'a str>,
}

fn group<'a>(pods: &[&'a Pod], measured: &HashMap<&str, Measured>, resource: &str, now: Timestamp) -> Groups<'a> {
    let mut groups = Groups::default();
    for pod in pods {
        let name = &*pod.key.name;
        if pod.deleting.is_some() || pod.phase == Phase::Failed {
            groups.ignored.insert(name);
        } else if pod.phase == Phase::Pending {
            groups.unready.insert(name);
        } else if let Some(measured) = measured.get(name) {
            if resource == "cpu" && !counts(pod, measured, now) {
                groups.unready.insert(name);
            } else {
                groups.ready += 1;
            }
        } else {
            groups.missing.insert(name);
        }
    }
    groups
}

/// Whether what a pod uses of the processor says what it needs.
fn counts(pod: &Pod, measured: &Measured, now: Timestamp) -> bool {
    let (Some(started), Some(since)) = (pod.started, pod.ready_since) else { return false };
    let after = |time: Timestamp, by: SignedDuration| time.saturating_add(by).unwrap_or(time);
    if after(started, CPU_INITIALIZATION) > now {
        // Measured in a time in which it was ready.
        !pod.unready && measured.at >= after(since, measured.window)
    } else {
        !pod.unready || after(started, INITIAL_READINESS) <= since
    }
}

/// What each pod requests, in thousandths. One that requests nothing has no share to speak of.
fn requests<'a>(pods: &[&'a Pod], wanted: &Wanted<'_>) -> Result<HashMap<&'a str, i64>, String> {
    let one = |pod: &&'a Pod| {
        let name = &*pod.key.name;
        let whole = &pod.requests.pod;
        let is_whole = wanted.container.is_none() && (whole.cpu.is_some() || whole.memory.is_some());
        if is_whole {
            let containers = pod.requests.containers.iter().filter_map(|(_, request)| request.of(wanted.resource));
            let sum = containers.reduce(i64::saturating_add);
            let request = whole.of(wanted.resource).or(sum);
            let missing = || format!("missing pod-level request for {} in Pod {name}", wanted.resource);
            return Ok((name, request.ok_or_else(missing)?));
        }
        let (mut sum, mut found) = (0_i64, wanted.container.is_none());
        for (container, request) in &pod.requests.containers {
            if wanted.container.is_some_and(|wanted| wanted != &**container) {
                continue;
            }
            let missing = || format!("missing request for {} in container {container} of Pod {name}", wanted.resource);
            sum = sum.saturating_add(request.of(wanted.resource).ok_or_else(missing)?);
            found = true;
        }
        match wanted.container {
            Some(container) if !found => Err(format!("container {container} not found in Pod {name}")),
            _ => Ok((name, sum)),
        }
    };
    pods.iter().map(one).collect()
}

/// Use as a share of the target, and what is used.
#[derive(Debug, Clone, Copy)]
struct Ratio {
    ratio: f64,
    utilization: Option<i32>,
    average_milli: i64,
}

fn ratio(
    measured: &HashMap<&str, i64>,
    requests: Option<&HashMap<&str, i64>>,
    target: Target,
) -> Result<Ratio, String> {
    // Of hundreds of thousands of pods, each of whatever was written.
    let (mut used, mut requested, mut pods) = (0_i128, 0_i128, 0_i128);
    for (name, milli) in measured {
        if let Some(requests) = requests {
            let Some(request) = requests.get(name) else { continue };
            requested += i128::from(*request);
        }
        used += i128::from(*milli);
        pods += 1;
    }
    let clamp = |number: i128| i64::try_from(number).unwrap_or(if number < 0 { i64::MIN } else { i64::MAX });
    let average = used.checked_div(pods).map(clamp);
    match target {
        Target::Utilization(target) => {
            let percent = (used * 100).checked_div(requested);
            let (Some(percent), Some(average_milli)) = (percent, average) else {
                return Err("no metrics returned matched known pods".to_owned());
            };
            let percent = i32::try_from(percent).unwrap_or(i32::MAX);
            let ratio = f64::from(percent) / f64::from(target.max(1));
            Ok(Ratio { ratio, utilization: Some(percent), average_milli })
        }
        Target::AverageValue(target) => {
            let average_milli = average.ok_or("no metrics returned matched known pods")?;
            Ok(Ratio { ratio: average_milli as f64 / target.max(1) as f64, utilization: None, average_milli })
        }
    }
}

/// How many pods there should be for one metric; `current` is how many are wanted now, `pods` are those that are selected.
pub(super) fn propose(
    pods: &[&Pod],
    measured: &HashMap<&str, Measured>,
    current: i32,
    wanted: &Wanted<'_>,
    now: Timestamp,
) -> Result<Proposal, String> {
    if pods.is_empty() {
        return Err("no pods returned by selector while calculating replica count".to_owned());
    }
    let groups = group(pods, measured, wanted.resource, now);
    let is_counted = |name: &str| !groups.ignored.contains(name) && !groups.unready.contains(name);
    let known: HashSet<&str> = pods.iter().map(|pod| &*pod.key.name).collect();
    let mut counted: HashMap<&str, i64> = measured
        .iter()
        .filter(|(name, _)| known.contains(*name) && is_counted(name))
        .map(|(name, measured)| (*name, measured.milli))
        .collect();
    if counted.is_empty() {
        return Err("did not receive metrics for targeted pods (pods might be unready)".to_owned());
    }
    let requests = match wanted.target {
        Target::Utilization(_) => Some(requests(pods, wanted)?),
        Target::AverageValue(_) => None,
    };
    let first = ratio(&counted, requests.as_ref(), wanted.target)?;
    let proposal = |replicas| Proposal { replicas, utilization: first.utilization, average_milli: first.average_milli };
    let grows_with_unready = !groups.unready.is_empty() && first.ratio > 1.0;
    if !grows_with_unready && groups.missing.is_empty() {
        let replicas = match wanted.tolerance.allows(first.ratio) {
            true => current,
            false => ceil(first.ratio * groups.ready as f64),
        };
        return Ok(proposal(replicas));
    }
    // What is not known is taken for what speaks against the change: all of it when there may be fewer, none when there
    // should be more.
    for name in &groups.missing {
        let milli = match wanted.target {
            _ if first.ratio > 1.0 => 0,
            Target::AverageValue(target) if first.ratio < 1.0 => target,
            Target::Utilization(target) if first.ratio < 1.0 => {
                let request = requests.as_ref().and_then(|requests| requests.get(name)).copied().unwrap_or_default();
                let milli = i128::from(request) * i128::from(target.max(100)) / 100;
                i64::try_from(milli).unwrap_or(i64::MAX)
            }
            _ => continue,
        };
        counted.insert(name, milli);
    }
    if grows_with_unready {
        counted.extend(groups.unready.iter().map(|name| (*name, 0)));
    }
    let second = ratio(&counted, requests.as_ref(), wanted.target)?.ratio;
    let turns = first.ratio < 1.0 && second > 1.0 || first.ratio > 1.0 && second < 1.0;
    if wanted.tolerance.allows(second) || turns {
        return Ok(proposal(current));
    }
    let replicas = ceil(second * counted.len() as f64);
    let turns = second < 1.0 && replicas > current || second > 1.0 && replicas < current;
    Ok(proposal(if turns { current } else { replicas }))
}

/// How many there should be where something that is not measured by pods is so many times of what it should be.
pub(super) fn by_ratio(pods: &[&Pod], current: i32, ratio: f64, tolerance: Tolerance) -> Result<i32, String> {
    if current == 0 {
        return Ok(ceil(ratio));
    }
    if tolerance.allows(ratio) {
        return Ok(current);
    }
    if pods.is_empty() {
        let why = "unable to calculate ready pods: no pods returned by selector while calculating replica count";
        return Err(why.to_owned());
    }
    let ready = pods.iter().filter(|pod| pod.phase == Phase::Running && pod.ready).count();
    Ok(ceil(ratio * ready as f64))
}

/// How many there should be where each of those that there `are` has a share of the value, and that share, in thousandths.
pub(super) fn by_share(are: i32, milli: i64, target: i64, tolerance: Tolerance) -> (i32, i64) {
    let (value, target) = (milli as f64, target.max(1) as f64);
    let replicas = if tolerance.allows(value / (target * f64::from(are))) { are } else { ceil(value / target) };
    (replicas, (value / f64::from(are.max(1))).ceil() as i64)
}

/// Rounded up; the nearest number that there is.
fn ceil(replicas: f64) -> i32 {
    replicas.ceil() as i32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::informer::Object as _;

    const NOW: i64 = 1_800_000_000;
    const TOLERANCE: Tolerance = Tolerance { up: 0.1, down: 0.1 };

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(NOW + seconds).unwrap()
    }

    /// A pod of a container that requests 1 processor. It is described by a word:
    ///
    /// `ready`, `pending`, `failed`, `going`; `unready`, never ready and started long ago; `was-ready`, unready since a minute,
    /// `hot`, ready since 10 s; `warm`, ready since 50 s, both within the time of their beginning; `cold`, unready within it.
    fn pod(index: usize, word: &str) -> Pod {
        let (phase, started, ready, since) = match word {
            "pending" => ("Pending", None, None, 0),
            "failed" => ("Failed", Some(-1_000), Some("False"), -900),
            "unready" => ("Running", Some(-1_000), Some("False"), -990),
            "was-ready" => ("Running", Some(-1_000), Some("False"), -60),
            "hot" => ("Running", Some(-60), Some("True"), -10),
            "warm" => ("Running", Some(-60), Some("True"), -50),
            "cold" => ("Running", Some(-60), Some("False"), -50),
            "unknown" => ("Running", None, None, 0),
            _ => ("Running", Some(-1_000), Some("True"), -990),
        };
        let condition =
            ready.map(|ready| json!({"type": "Ready", "status": ready, "lastTransitionTime": at(since).to_string()}));
        let mut pod = json!({
            "metadata": {"name": format!("p{index}"), "namespace": "n", "uid": format!("u{index}")},
            "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "1", "memory": "1Ki"}}}]},
            "status": {"phase": phase, "conditions": condition.into_iter().collect::<Vec<_>>(),
                "startTime": started.map(|started| at(started).to_string())},
        });
        if word == "going" {
            pod["metadata"]["deletionTimestamp"] = json!(at(0).to_string());
        }
        Pod::keep(serde_json::from_value(pod).unwrap())
    }

    fn wanted(target: Target) -> Wanted<'static> {
        Wanted { resource: "cpu", container: None, target, tolerance: TOLERANCE }
    }

    /// Pods by their words, what each uses of the processor (a negative number: nothing is known), what is wanted.
    fn proposed(words: &str, used: &[i64], current: i32, wanted: &Wanted<'_>) -> Result<Proposal, String> {
        let pods: Vec<Pod> = words.split_whitespace().enumerate().map(|(index, word)| pod(index, word)).collect();
        let pods: Vec<&Pod> = pods.iter().collect();
        let window = SignedDuration::from_secs(15);
        let measured = pods.iter().zip(used).filter(|(_, milli)| **milli >= 0);
        let measured = measured.map(|(pod, milli)| (&*pod.key.name, Measured { at: at(0), window, milli: *milli }));
        propose(&pods, &measured.collect(), current, wanted, at(0))
    }

    #[test]
    fn a_value_that_is_of_no_pod_is_for_those_that_are_ready_or_shared() {
        let pods: Vec<Pod> =
            ["ready", "ready", "unready", "pending"].iter().enumerate().map(|(at, word)| pod(at, word)).collect();
        let pods: Vec<&Pod> = pods.iter().collect();
        for (current, ratio, expected) in
            [(4, 1.05, 4), (4, 1.5, 3), (4, 0.5, 1), (0, 2.5, 3), (0, 0.0, 0), (4, 1e300, i32::MAX)]
        {
            assert_eq!(by_ratio(&pods, current, ratio, TOLERANCE), Ok(expected), "{current} {ratio}");
        }
        let none = "unable to calculate ready pods: no pods returned by selector while calculating replica count";
        assert_eq!(by_ratio(&[], 1, 2.0, TOLERANCE), Err(none.to_owned()));
        for (are, milli, target, expected) in [
            (3, 15_000, 5_000, (3, 5_000)),
            (2, 15_000, 5_000, (3, 7_500)),
            (3, 1, 5_000, (1, 1)),
            (0, 15_000, 5_000, (3, 15_000)),
            (0, 0, 5_000, (0, 0)),
            (1, i64::MAX, 1, (i32::MAX, i64::MAX)),
        ] {
            assert_eq!(by_share(are, milli, target, TOLERANCE), expected, "{are} {milli} {target}");
        }
    }

    fn replicas(words: &str, used: &[i64], current: i32, percent: i32) -> i32 {
        proposed(words, used, current, &wanted(Target::Utilization(percent))).expect("a proposal").replicas
    }

    #[test]
    fn as_many_as_use_the_target_together() {
        let (four, three) = ("ready ready ready ready", "ready ready ready");
        for (words, used, current, percent, expected) in [
            (three, &[300, 500, 700][..], 3, 30, 5),
            (three, &[300, 500, 700], 3, 60, 3),
            // Within a tenth.
            (three, &[540, 540, 540], 3, 50, 3),
            (three, &[560, 560, 560], 3, 50, 4),
            (four, &[460, 460, 460, 460], 4, 50, 4),
            (four, &[440, 440, 440, 440], 4, 50, 4),
            (four, &[300, 300, 300, 300], 4, 50, 3),
            (four, &[0, 0, 0, 0], 4, 50, 0),
            // Percentages are cut, as Kubernetes' are.
            ("ready", &[559], 1, 50, 1),
            ("ready", &[i64::MAX], 1, 1, i32::MAX),
        ] {
            assert_eq!(replicas(words, used, current, percent), expected, "{words} {used:?} {percent}");
        }
        let found = proposed(three, &[300, 500, 703], 3, &wanted(Target::Utilization(30))).unwrap();
        assert_eq!(found, Proposal { replicas: 5, utilization: Some(50), average_milli: 501 });
    }

    #[test]
    fn what_is_not_known_speaks_against_the_change() {
        for (words, used, current, percent, expected, why) in [
            ("ready ready ready", &[1_000, 1_000, -1][..], 3, 50, 4, "missing counts 0 on the way up: 200 of 150 %"),
            ("ready ready ready", &[300, 300, -1], 3, 50, 3, "missing counts 100 % on the way down: 160 of 150 %"),
            ("ready ready ready ready", &[100, 100, 100, -1], 4, 50, 3, "130 of 200 %"),
            ("ready ready", &[1_300, -1], 2, 120, 2, "0 would turn the change around"),
            (
                "ready ready ready ready",
                &[100, -1, -1, -1],
                4,
                200,
                4,
                "of a target above 100 % it counts that: 610 of 800 %",
            ),
            ("ready hot", &[1_000, 900], 2, 30, 4, "who is not ready counts 0: 100 of 60 %"),
            ("ready hot", &[400, 900], 2, 30, 2, "…and does not turn the change around"),
            ("ready hot", &[100, 900], 2, 30, 1, "on the way down it does not count"),
            ("ready pending pending", &[1_200, -1, -1], 3, 30, 4, "those that are about to come count: 120 of 90 %"),
            ("ready pending pending", &[500, -1, -1], 3, 30, 3, "50 of 90 %"),
            ("ready pending", &[-1, -1], 2, 30, 2, "nothing"),
        ] {
            let found = proposed(words, used, current, &wanted(Target::Utilization(percent)));
            match why {
                "nothing" => assert_eq!(
                    found,
                    Err("did not receive metrics for targeted pods (pods might be unready)".to_owned())
                ),
                _ => assert_eq!(found.map(|found| found.replicas), Ok(expected), "{words} {used:?} {percent}: {why}"),
            }
        }
    }

    #[test]
    fn who_counts() {
        for (word, counted) in [
            ("ready", true),
            ("warm", true),
            ("was-ready", true),
            ("hot", false),
            ("cold", false),
            ("unready", false),
            ("pending", false),
            ("failed", false),
            ("going", false),
            ("unknown", false),
        ] {
            let pod = pod(0, word);
            let measured = Measured { at: at(0), window: SignedDuration::from_secs(15), milli: 1 };
            let groups = group(&[&pod], &HashMap::from([("p0", measured)]), "cpu", at(0));
            assert_eq!(groups.ready == 1, counted, "{word}: {groups:?}");
            let of_memory = group(&[&pod], &HashMap::from([("p0", measured)]), "memory", at(0));
            let runs = !matches!(word, "pending" | "failed" | "going");
            assert_eq!(of_memory.ready == 1, runs, "{word}: only the processor has a beginning");
        }
    }

    #[test]
    fn an_average_value_needs_no_requests() {
        for (words, used, current, target, expected) in [
            ("ready ready ready", &[300, 500, 700][..], 3, 300, 5),
            ("ready ready ready", &[300, 500, 700], 3, 500, 3),
            ("ready ready ready", &[1_000, 1_000, -1], 3, 500, 4),
            ("ready ready ready", &[300, 300, -1], 3, 500, 3),
            ("ready ready ready", &[100, 100, -1], 3, 500, 2),
        ] {
            let found = proposed(words, used, current, &wanted(Target::AverageValue(target))).unwrap();
            assert_eq!((found.replicas, found.utilization), (expected, None), "{used:?} {target}");
        }
    }

    #[test]
    fn a_share_of_nothing_is_an_error() {
        let of = |spec: Value, container: Option<&'static str>| {
            let pod = json!({"metadata": {"name": "p"}, "spec": spec, "status": {"phase": "Running",
                "startTime": at(-1_000).to_string(), "conditions": [
                {"type": "Ready", "status": "True", "lastTransitionTime": at(-900).to_string()}]}});
            let pod = Pod::keep(serde_json::from_value(pod).unwrap());
            let measured = Measured { at: at(0), window: SignedDuration::ZERO, milli: 600 };
            let wanted = Wanted { container, ..wanted(Target::Utilization(50)) };
            propose(&[&pod], &HashMap::from([("p", measured)]), 1, &wanted, at(0)).map(|found| found.utilization)
        };
        let requests = |cpu: &str| json!({"requests": {"cpu": cpu}});
        for (spec, container, expected) in [
            (json!({"containers": [{"name": "a"}]}), None, Err("missing request for cpu in container a of Pod p")),
            (
                json!({"containers": [{"name": "a", "resources": requests("0")}]}),
                None,
                Err("no metrics returned matched known pods"),
            ),
            (
                json!({"containers": [{"name": "a", "resources": requests("1")}, {"name": "b"}]}),
                Some("a"),
                Ok(Some(60)),
            ),
            (
                json!({"containers": [{"name": "a", "resources": requests("1")}]}),
                Some("x"),
                Err("container x not found in Pod p"),
            ),
            (json!({"containers": [{"name": "a"}], "resources": requests("2")}), None, Ok(Some(30))),
            (
                json!({"containers": [{"name": "a"}], "resources": {"requests": {"memory": "1"}}}),
                None,
                Err("missing pod-level request for cpu in Pod p"),
            ),
            (
                json!({"containers": [{"name": "a", "resources": requests("1")}],
                    "initContainers": [{"name": "s", "restartPolicy": "Always", "resources": requests("1")}, {"name": "i"}]}),
                None,
                Ok(Some(30)),
            ),
        ] {
            assert_eq!(of(spec.clone(), container), expected.map_err(str::to_owned), "{spec} {container:?}");
        }
        let none = proposed("", &[], 1, &wanted(Target::Utilization(50)));
        assert_eq!(none, Err("no pods returned by selector while calculating replica count".to_owned()));
    }

    #[test]
    fn a_tolerance_has_two_sides() {
        for (up, down, used, expected) in
            [(0.5, 0.0, 740, 1), (0.5, 0.0, 760, 2), (0.0, 0.0, 510, 2), (0.0, 0.9, 60, 1), (0.0, 0.0, 490, 1)]
        {
            let wanted = Wanted { tolerance: Tolerance { up, down }, ..wanted(Target::Utilization(50)) };
            assert_eq!(proposed("ready", &[used], 1, &wanted).unwrap().replicas, expected, "{up} {down} {used}");
        }
    }

    proptest! {
        /// Whoever uses more never has fewer, where as many are there as are wanted.
        #[test]
        fn more_use_never_means_fewer(
            words in proptest::collection::vec(proptest::sample::select(vec!["ready", "missing", "hot", "pending"]), 0..6),
            used in 0_i64..4_000,
            more in 0_i64..4_000,
            target in 1_i32..200,
        ) {
            let words: Vec<&str> = std::iter::once("ready").chain(words).collect();
            let at = |used: i64| {
                let used: Vec<i64> = words.iter().map(|word| if *word == "missing" { -1 } else { used }).collect();
                replicas(&words.join(" "), &used, words.len() as i32, target)
            };
            prop_assert!(at(used) <= at(used + more));
        }
    }
}
