//! What is to be done about one HorizontalPodAutoscaler, and what its status says of it, in the reference's words. No I/O,
//! no clock.

use std::collections::HashMap;

use coracle_api::meta::{Format, Quantity};
use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2::{
    ContainerResourceMetricStatus, ExternalMetricSource, ExternalMetricStatus, HPAScalingRules,
    HorizontalPodAutoscaler, HorizontalPodAutoscalerCondition, HorizontalPodAutoscalerStatus, MetricSpec, MetricStatus,
    MetricTarget, MetricValueStatus, ObjectMetricSource, ObjectMetricStatus, PodsMetricSource, PodsMetricStatus,
    ResourceMetricStatus,
};
use k8s_openapi::apimachinery::pkg::api::resource;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, Time};
use tokio::time::Instant;

use super::limits::{Bounds, History, Rules};
use super::measure::{Measured, Measures};
use super::others::{Others, Told};
use super::replicas::{self, Proposal, Target, Tolerance, Wanted};
use crate::informer::Pod;
use crate::selector::printed;

/// As far from the target as this is at it (`--horizontal-pod-autoscaler-tolerance`).
const TOLERANCE: f64 = 0.1;
/// Metrics of one autoscaler: each is asked for, looks at all pods, and is told of, every 15 seconds. One that has more scales
/// nothing.
const METRICS_MAX: usize = 100;

pub(super) const ABLE: &str = "AbleToScale";
pub(super) const ACTIVE: &str = "ScalingActive";
const LIMITED: &str = "ScalingLimited";
const ZERO: &str = "ScaledToZero";

/// An event that tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Said {
    pub warning: bool,
    pub reason: &'static str,
    pub message: String,
}

impl Said {
    pub(super) fn warning(reason: &'static str, message: impl Into<String>) -> Self {
        Self { warning: true, reason, message: message.into() }
    }
}

/// The conditions while they are put together.
#[derive(Debug, Clone)]
pub(super) struct Conditions {
    list: Vec<HorizontalPodAutoscalerCondition>,
    now: Timestamp,
}

impl Conditions {
    /// As the object has them.
    pub(super) fn of(autoscaler: &HorizontalPodAutoscaler, now: Timestamp) -> Self {
        let status = autoscaler.status.as_ref();
        Self { list: status.and_then(|status| status.conditions.clone()).unwrap_or_default(), now }
    }

    /// Says it of a condition, which keeps its time while its status is the same.
    pub(super) fn set(&mut self, type_: &str, is_true: bool, reason: &str, message: impl Into<String>) {
        let status = if is_true { "True" } else { "False" };
        let at = self.list.iter().position(|known| known.type_ == type_).unwrap_or_else(|| {
            self.list.push(HorizontalPodAutoscalerCondition { type_: type_.to_owned(), ..Default::default() });
            self.list.len() - 1
        });
        let condition = &mut self.list[at];
        if condition.status != status {
            condition.last_transition_time = Some(Time(self.now));
            condition.status = status.to_owned();
        }
        condition.reason = Some(reason.to_owned());
        condition.message = Some(message.into());
    }

    fn is_true(&self, type_: &str) -> bool {
        self.list.iter().any(|known| known.type_ == type_ && known.status == "True")
    }

    /// Whether what there is none of is so by this controller.
    fn zeroed(&mut self, is_ours: bool) {
        let (reason, message) = match is_ours {
            true => ("ScaledToZero", "the HPA controller scaled the workload to zero"),
            false => ("NotScaledToZero", "the HPA controller did not scale the workload to zero"),
        };
        self.set(ZERO, is_ours, reason, message);
    }

    /// The scale of what it scales could not be read.
    pub(super) fn no_scale(&mut self, why: &str) {
        let message = format!("the HPA controller was unable to get the target's current scale: {why}");
        self.set(ABLE, false, "FailedGetScale", message);
    }
}

/// What is known when the scale was read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen<'a> {
    pub autoscaler: &'a HorizontalPodAutoscaler,
    /// How many are wanted now.
    pub current: i32,
    /// How many there are, as the scale says.
    pub are: i32,
    /// The pods that are selected, or what is wrong with the selector: a condition's message, and an event.
    pub pods: Result<&'a [&'a Pod], &'a WrongSelector>,
    /// What they use, or why that is not known. It is read when it is [`needs_measures`].
    pub measures: Result<&'a Measures, &'a str>,
    /// What other servers measure. It is read when it is [`asks_others`].
    pub others: &'a Others,
}

/// Why pods are not selected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct WrongSelector {
    pub event: &'static str,
    pub why: String,
    /// The condition's reason, and its message where that is not `why`.
    pub reason: &'static str,
    pub message: Option<&'static str>,
}

impl WrongSelector {
    pub(super) fn missing() -> Self {
        let message = Some("the HPA target's scale is missing a selector");
        Self { event: "SelectorRequired", why: "selector is required".to_owned(), reason: "InvalidSelector", message }
    }

    pub(super) fn unreadable(error: &str) -> Self {
        let why = format!("couldn't convert selector into a corresponding internal selector object: {error}");
        Self { event: "InvalidSelector", why, reason: "InvalidSelector", message: None }
    }

    pub(super) fn ambiguous(selector: &str, autoscalers: &str) -> Self {
        let why = format!("pods by selector {selector} are controlled by more than one HPA (e.g. {autoscalers})");
        Self { event: "AmbiguousSelector", why, reason: "AmbiguousSelector", message: None }
    }
}

/// What is to be done.
#[derive(Debug, Clone)]
pub(super) struct Decision {
    /// Written when it is another than the current number.
    pub desired: i32,
    pub rescale: Option<Rescale>,
    pub conditions: Conditions,
    pub metrics: Vec<MetricStatus>,
    pub events: Vec<Said>,
    /// The number that the status says was wanted, where none could be found: what it said before.
    pub keeps_desired: bool,
}

/// A change of the number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rescale {
    pub reason: String,
}

fn least(autoscaler: &HorizontalPodAutoscaler) -> i32 {
    autoscaler.spec.min_replicas.unwrap_or(1)
}

fn most(autoscaler: &HorizontalPodAutoscaler) -> i32 {
    autoscaler.spec.max_replicas
}

fn metrics(autoscaler: &HorizontalPodAutoscaler) -> &[MetricSpec] {
    autoscaler.spec.metrics.as_deref().unwrap_or_default()
}

/// Whether any of its metrics is there without pods, so that it may ask for the first.
fn wakes(autoscaler: &HorizontalPodAutoscaler) -> bool {
    metrics(autoscaler).iter().any(|metric| matches!(metric.type_.as_str(), "Object" | "External"))
}

/// What is decided without looking at metrics.
enum Plain {
    /// Nobody scales what somebody has switched off.
    Disabled,
    /// It is beyond a bound.
    To(i32, &'static str),
    ByMetrics,
}

fn plain(autoscaler: &HorizontalPodAutoscaler, current: i32, was_zeroed: bool) -> Plain {
    let (least, most) = (least(autoscaler), most(autoscaler));
    match current {
        0 if was_zeroed && (least != 0 || wakes(autoscaler)) => Plain::ByMetrics,
        0 => Plain::Disabled,
        current if current > most => Plain::To(most, "Current number of replicas above Spec.MaxReplicas"),
        current if current < least => Plain::To(least, "Current number of replicas below Spec.MinReplicas"),
        _ => Plain::ByMetrics,
    }
}

/// Whether pods and what they use have to be looked at.
pub(super) fn needs_measures(autoscaler: &HorizontalPodAutoscaler, current: i32, now: Timestamp) -> bool {
    let was_zeroed = Conditions::of(autoscaler, now).is_true(ZERO);
    metrics(autoscaler).len() <= METRICS_MAX && matches!(plain(autoscaler, current, was_zeroed), Plain::ByMetrics)
}

/// Whether what pods use is asked for by any of its metrics.
pub(super) fn asks_measures(autoscaler: &HorizontalPodAutoscaler) -> bool {
    metrics(autoscaler).iter().any(|metric| matches!(metric.type_.as_str(), "Resource" | "ContainerResource"))
}

/// Whether what others measure is asked for by any of its metrics.
pub(super) fn asks_others(autoscaler: &HorizontalPodAutoscaler) -> bool {
    metrics(autoscaler).iter().any(|metric| matches!(metric.type_.as_str(), "Pods" | "Object" | "External"))
}

/// What is to be done; `history` remembers what was recommended.
pub(super) fn decide(seen: &Seen<'_>, history: &mut History, now: Timestamp, at: Instant) -> Decision {
    let Seen { autoscaler, current, .. } = *seen;
    let mut conditions = Conditions::of(autoscaler, now);
    let was_zeroed = conditions.is_true(ZERO);
    conditions.set(ABLE, true, "SucceededGetScale", "the HPA controller was able to get the target's current scale");
    history.begin(current, at);
    let mut decision = Decision {
        desired: current,
        rescale: None,
        conditions,
        metrics: Vec::new(),
        events: Vec::new(),
        keeps_desired: false,
    };
    match plain(autoscaler, current, was_zeroed) {
        Plain::Disabled => {
            let message = "scaling is disabled since the replica count of the target is zero";
            decision.conditions.set(ACTIVE, false, "ScalingDisabled", message);
        }
        Plain::To(replicas, reason) => {
            decision.desired = replicas;
            decision.rescale = Some(Rescale { reason: reason.to_owned() });
        }
        Plain::ByMetrics => by_metrics(seen, history, (now, at), was_zeroed, &mut decision),
    }
    if takes_last(autoscaler, current, decision.desired) {
        decision.conditions.zeroed(true);
    } else if current > 0 && was_zeroed {
        // Somebody else has made some since: a zero that comes now is not ours.
        decision.conditions.zeroed(false);
    }
    decision
}

/// Whether this takes the last one, so that it is for this controller to make one again.
fn takes_last(autoscaler: &HorizontalPodAutoscaler, current: i32, desired: i32) -> bool {
    current > 0 && desired == 0 && least(autoscaler) == 0 && wakes(autoscaler)
}

/// The status that has to be there before the last one is taken, where it is not yet: by this alone a zero of ours is told from one
/// by which somebody has switched it off, and nothing else would ever say so of a zero that was written by a process that ended just
/// after. (The reference says it after the fact.)
pub(super) fn mark(
    autoscaler: &HorizontalPodAutoscaler,
    current: i32,
    decision: &Decision,
) -> Option<HorizontalPodAutoscalerStatus> {
    let mut conditions = Conditions::of(autoscaler, decision.conditions.now);
    if !takes_last(autoscaler, current, decision.desired) || conditions.is_true(ZERO) {
        return None;
    }
    conditions.zeroed(true);
    Some(unread(autoscaler, conditions))
}

fn by_metrics(
    seen: &Seen<'_>,
    history: &mut History,
    (now, at): (Timestamp, Instant),
    was_zeroed: bool,
    decision: &mut Decision,
) {
    let (autoscaler, current) = (seen.autoscaler, seen.current);
    let (recommended, metric) = match recommend(seen, now, decision) {
        Ok(recommended) => recommended,
        Err(why) => {
            decision.events.push(Said::warning("FailedComputeMetricsReplicas", why));
            decision.keeps_desired = true;
            return;
        }
    };
    let mut reason = match recommended {
        more if more > current => format!("{metric} above target"),
        fewer if fewer < current => "All metrics below target".to_owned(),
        _ => String::new(),
    };
    let bounds = Bounds { least: least(autoscaler), most: most(autoscaler), current };
    let behavior = autoscaler.spec.behavior.as_ref();
    let settled = match behavior {
        None => history.settle(recommended, bounds, at),
        Some(behavior) => {
            let (up, down) = (Rules::up(behavior.scale_up.as_ref()), Rules::down(behavior.scale_down.as_ref()));
            history.settle_by(recommended, bounds, (&up, &down), at)
        }
    };
    decision.conditions.set(ABLE, true, settled.able.0, settled.able.1);
    decision.conditions.set(LIMITED, settled.is_limited, settled.limited.0, settled.limited.1);
    decision.desired = settled.replicas;
    // It was this controller that took the last one, and somebody has asked for some since.
    if current == 0 && was_zeroed && decision.desired < bounds.least {
        decision.desired = bounds.least;
        if reason.is_empty() {
            "Current number of replicas below Spec.MinReplicas".clone_into(&mut reason);
        }
    }
    decision.rescale = (decision.desired != current).then_some(Rescale { reason });
}

/// The highest number that a metric asks for, and that metric's words.
fn recommend(seen: &Seen<'_>, now: Timestamp, decision: &mut Decision) -> Result<(i32, String), String> {
    let specs = metrics(seen.autoscaler);
    if specs.len() > METRICS_MAX {
        let why = format!("there are {} metrics, and no autoscaler has more than {METRICS_MAX}", specs.len());
        let message = format!("the HPA was unable to compute the replica count: {why}");
        decision.conditions.set(ACTIVE, false, "TooManyMetrics", message);
        return Err(why);
    }
    let pods = match seen.pods {
        Ok(pods) => pods,
        Err(wrong) => {
            decision.events.push(Said::warning(wrong.event, wrong.why.clone()));
            let message = wrong.message.unwrap_or(&wrong.why);
            decision.conditions.set(ACTIVE, false, wrong.reason, message);
            return Err(wrong.why.clone());
        }
    };
    let mut best: Option<(i32, String)> = None;
    let mut failed: Option<(usize, Failed)> = None;
    for (at, spec) in specs.iter().enumerate() {
        let (status, found) = match one((at, spec), pods, seen, now) {
            Ok((status, replicas, words)) => (status, Ok((replicas, words))),
            Err(error) => (MetricStatus::default(), Err(error)),
        };
        decision.metrics.push(status);
        match found {
            Ok((replicas, words)) if best.as_ref().is_none_or(|(most, _)| *most == 0 || replicas > *most) => {
                best = Some((replicas, words));
            }
            Ok(_) => {}
            Err(error) => {
                decision.events.push(Said::warning(error.reason, error.why.clone()));
                failed = Some(failed.map_or((1, error), |(count, first)| (count + 1, first)));
            }
        }
    }
    if let Some((count, first)) = failed {
        // With one of them missing, there may be more, and not fewer.
        let grows = best.as_ref().is_some_and(|(replicas, _)| *replicas >= seen.current);
        if count >= specs.len() || !grows {
            let message = format!("the HPA was unable to compute the replica count: {}", first.why);
            decision.conditions.set(ACTIVE, false, first.reason, message);
            let (all, error) = (specs.len(), &first.error);
            return Err(format!("invalid metrics ({count} invalid out of {all}), first error is: {error}"));
        }
    }
    let best = best.unwrap_or_else(|| (0, String::new()));
    let message = format!("the HPA was able to successfully calculate a replica count from {}", best.1);
    decision.conditions.set(ACTIVE, true, "ValidMetricFound", message);
    Ok(best)
}

/// Why one metric gives no number.
#[derive(Debug)]
struct Failed {
    reason: &'static str,
    /// What event and condition say.
    why: String,
    /// What the error of all says.
    error: String,
}

/// The status of a metric, the number that it asks for, and what it is called.
fn one(
    (at, spec): (usize, &MetricSpec),
    pods: &[&Pod],
    seen: &Seen<'_>,
    now: Timestamp,
) -> Result<(MetricStatus, i32, String), Failed> {
    let wrong = |reason, why: String, prefix: String| Failed { reason, error: format!("{prefix}: {why}"), why };
    match (spec.type_.as_str(), &spec.resource, &spec.container_resource) {
        ("Resource", Some(source), _) => {
            let found = of_resource(&source.name, None, &source.target, pods, seen, now).map_err(|why| {
                let prefix = format!("failed to get {} resource metric value", source.name);
                wrong("FailedGetResourceMetric", why, prefix)
            })?;
            let current = current(&source.name, &found);
            let status = ResourceMetricStatus { name: source.name.clone(), current };
            let status = MetricStatus { type_: spec.type_.clone(), resource: Some(status), ..MetricStatus::default() };
            Ok((status, found.replicas, words(&source.name, "", &found)))
        }
        ("ContainerResource", _, Some(source)) => {
            let container = Some(source.container.as_str());
            let found = of_resource(&source.name, container, &source.target, pods, seen, now).map_err(|why| {
                let prefix = format!("failed to get {} container metric value", source.container);
                wrong("FailedGetContainerResourceMetric", why, prefix)
            })?;
            let (name, container) = (source.name.clone(), source.container.clone());
            let status = ContainerResourceMetricStatus { name, container, current: current(&source.name, &found) };
            let type_ = spec.type_.clone();
            let status = MetricStatus { type_, container_resource: Some(status), ..MetricStatus::default() };
            Ok((status, found.replicas, words(&source.name, " container", &found)))
        }
        _ => {
            let told = seen.others.get(&at).map(|told| told.as_ref().map_err(String::as_str));
            of_others(spec, told.unwrap_or(Err("nobody was asked")), pods, (seen, now))
        }
    }
}

/// The same of a metric that another server measures.
fn of_others(
    spec: &MetricSpec,
    told: Result<&Told, &str>,
    pods: &[&Pod],
    (seen, now): (&Seen<'_>, Timestamp),
) -> Result<(MetricStatus, i32, String), Failed> {
    let mut status = MetricStatus { type_: spec.type_.clone(), ..MetricStatus::default() };
    let (replicas, words) = match (spec.type_.as_str(), &spec.pods, &spec.object, &spec.external) {
        ("Pods", Some(source), ..) => {
            let (current, replicas) = by_pods(source, told, pods, (seen, now))?;
            status.pods = Some(PodsMetricStatus { metric: source.metric.clone(), current });
            (replicas, format!("pods metric {}", source.metric.name))
        }
        ("Object", _, Some(source), _) => {
            let (object, metric) = (&source.described_object, &source.metric);
            let (current, replicas) = by_object(source, told, pods, seen)?;
            let words = match current.value {
                Some(_) => format!("{} metric {}", object.kind, metric.name),
                None => external_words(&metric.name, metric.selector.as_ref()),
            };
            let described_object = object.clone();
            status.object = Some(ObjectMetricStatus { described_object, metric: metric.clone(), current });
            (replicas, words)
        }
        ("External", .., Some(source)) => {
            let metric = &source.metric;
            let (current, replicas) = by_external(source, told, pods, seen)?;
            status.external = Some(ExternalMetricStatus { metric: metric.clone(), current });
            (replicas, external_words(&metric.name, metric.selector.as_ref()))
        }
        (other, ..) => {
            let why = format!("unknown metric source type {other:?}");
            return Err(Failed { reason: "InvalidMetricSourceType", error: why.clone(), why });
        }
    };
    Ok((status, replicas, words))
}

fn by_pods(
    source: &PodsMetricSource,
    told: Result<&Told, &str>,
    pods: &[&Pod],
    (seen, now): (&Seen<'_>, Timestamp),
) -> Result<(MetricValueStatus, i32), Failed> {
    let failed = |why: String| {
        let error = format!("failed to get pods metric value: {why}");
        Failed { reason: "FailedGetPodsMetric", why, error }
    };
    let told = match told {
        Ok(Told::Pods(told)) => told,
        Ok(Told::Value(_)) => return Err(failed("a value is of no pod".to_owned())),
        Err(why) => return Err(failed(format!("unable to get metric {}: {why}", source.metric.name))),
    };
    let target = milli(source.target.average_value.as_ref());
    let target =
        target.ok_or_else(|| failed("invalid pods metric source: no average value target was set".to_owned()))?;
    let measured = told.iter().map(|(name, measured)| (name.as_str(), *measured)).collect::<HashMap<&str, Measured>>();
    let tolerance = tolerance(seen.autoscaler);
    let wanted = Wanted { resource: "", container: None, target: Target::AverageValue(target), tolerance };
    let found = replicas::propose(pods, &measured, seen.current, &wanted, now).map_err(failed)?;
    Ok((share_of(found.average_milli), found.replicas))
}

fn by_object(
    source: &ObjectMetricSource,
    told: Result<&Told, &str>,
    pods: &[&Pod],
    seen: &Seen<'_>,
) -> Result<(MetricValueStatus, i32), Failed> {
    let (object, metric) = (&source.described_object, &source.metric.name);
    let namespace = seen.autoscaler.metadata.namespace.as_deref().unwrap_or_default();
    let failed = |why: String, before: &str| {
        let error = format!("failed to get object metric value: {before}{why}");
        Failed { reason: "FailedGetObjectMetric", why, error }
    };
    let unread =
        |why: &str| format!("unable to get metric {metric} on {} {namespace}/{}: {why}", object.kind, object.name);
    let target = match source.target.type_.as_str() {
        "Value" => milli(source.target.value.as_ref()).map(To::Value),
        "AverageValue" => milli(source.target.average_value.as_ref()).map(To::Share),
        _ => None,
    };
    let unset = "invalid object metric source: neither a value target nor an average value target was set";
    let target = target.ok_or_else(|| failed(unset.to_owned(), ""))?;
    let before = match target {
        To::Value(_) => String::new(),
        To::Share(_) => format!("failed to get {metric} object metric: "),
    };
    let value = value_of(told).map_err(|why| failed(unread(why), &before))?;
    by_value(value, target, pods, seen).map_err(|why| failed(why, &before))
}

fn by_external(
    source: &ExternalMetricSource,
    told: Result<&Told, &str>,
    pods: &[&Pod],
    seen: &Seen<'_>,
) -> Result<(MetricValueStatus, i32), Failed> {
    let metric = &source.metric.name;
    let namespace = seen.autoscaler.metadata.namespace.as_deref().unwrap_or_default();
    let failed = |why: String, before: &str| {
        let error = format!("failed to get {metric} external metric value: {before}{why}");
        Failed { reason: "FailedGetExternalMetric", why, error }
    };
    let share = milli(source.target.average_value.as_ref()).map(To::Share);
    let unset = "invalid external metric source: neither a value target nor an average value target was set";
    let target = share.or_else(|| milli(source.target.value.as_ref()).map(To::Value));
    let target = target.ok_or_else(|| failed(unset.to_owned(), ""))?;
    let before = match target {
        To::Value(_) => format!("failed to get external metric {metric}: "),
        To::Share(_) => format!("failed to get {metric} external metric: "),
    };
    let selector = source.metric.selector.as_ref().map_or_else(|| "nil".to_owned(), printed);
    let unread = |why: &str| format!("unable to get external metric {namespace}/{metric}/{selector}: {why}");
    let value = value_of(told).map_err(|why| failed(unread(why), &before))?;
    by_value(value, target, pods, seen).map_err(|why| failed(why, &before))
}

/// What a value should be, in thousandths.
#[derive(Debug, Clone, Copy)]
enum To {
    /// All of it.
    Value(i64),
    /// What each pod has of it.
    Share(i64),
}

fn by_value(milli: i64, to: To, pods: &[&Pod], seen: &Seen<'_>) -> Result<(MetricValueStatus, i32), String> {
    let tolerance = tolerance(seen.autoscaler);
    match to {
        To::Value(target) => {
            let ratio = milli as f64 / target.max(1) as f64;
            let replicas = replicas::by_ratio(pods, seen.current, ratio, tolerance)?;
            Ok((MetricValueStatus { value: Some(quantity(milli)), ..MetricValueStatus::default() }, replicas))
        }
        To::Share(target) => {
            let (replicas, share) = replicas::by_share(seen.are, milli, target, tolerance);
            Ok((share_of(share), replicas))
        }
    }
}

fn value_of<'a>(told: Result<&Told, &'a str>) -> Result<i64, &'a str> {
    match told? {
        Told::Value(milli) => Ok(*milli),
        Told::Pods(_) => Err("values of pods are not one value"),
    }
}

fn milli(quantity: Option<&resource::Quantity>) -> Option<i64> {
    Some(Quantity::parse(&quantity?.0).ok()?.milli_value())
}

fn quantity(milli: i64) -> resource::Quantity {
    resource::Quantity(Quantity::from_millis(milli, Format::DecimalSi).to_string())
}

fn share_of(milli: i64) -> MetricValueStatus {
    MetricValueStatus { average_value: Some(quantity(milli)), ..MetricValueStatus::default() }
}

fn external_words(metric: &str, selector: Option<&LabelSelector>) -> String {
    format!("external metric {metric}({})", selector.map_or_else(|| "nil".to_owned(), printed))
}

fn of_resource(
    resource: &str,
    container: Option<&str>,
    target: &MetricTarget,
    pods: &[&Pod],
    seen: &Seen<'_>,
    now: Timestamp,
) -> Result<Proposal, String> {
    let value = target.average_value.as_ref().and_then(|value| Quantity::parse(&value.0).ok());
    let (target, what) = match (value, target.average_utilization) {
        (Some(value), _) => (Target::AverageValue(value.milli_value()), "usage"),
        (None, Some(percent)) => (Target::Utilization(percent), "utilization"),
        (None, None) => {
            let why = "invalid resource metric source: neither an average utilization target nor an average value \
                       (usage) target was set";
            return Err(why.to_owned());
        }
    };
    let prefixed = |why: &str| format!("failed to get {resource} {what}: {why}");
    let unread = |why: &str| prefixed(&format!("unable to get metrics for resource {resource}: {why}"));
    let measures =
        seen.measures.map_err(|why| unread(&format!("unable to fetch metrics from resource metrics API: {why}")))?;
    if measures.is_empty() {
        return Err(unread("no metrics returned from resource metrics API"));
    }
    let wanted = Wanted { resource, container, target, tolerance: tolerance(seen.autoscaler) };
    let measured = measures.of(resource, container);
    replicas::propose(pods, &measured, seen.current, &wanted, now).map_err(|why| prefixed(&why))
}

fn tolerance(autoscaler: &HorizontalPodAutoscaler) -> Tolerance {
    let behavior = autoscaler.spec.behavior.as_ref();
    let of = |rules: Option<&HPAScalingRules>| {
        let said = rules.and_then(|rules| rules.tolerance.as_ref());
        said.and_then(|said| Quantity::parse(&said.0).ok()).map_or(TOLERANCE, |said| said.as_f64())
    };
    Tolerance {
        up: of(behavior.and_then(|behavior| behavior.scale_up.as_ref())),
        down: of(behavior.and_then(|behavior| behavior.scale_down.as_ref())),
    }
}

/// What a status says is used.
fn current(resource: &str, found: &Proposal) -> MetricValueStatus {
    let format = if resource == "memory" { Format::BinarySi } else { Format::DecimalSi };
    let average = Quantity::from_millis(found.average_milli, format).to_string();
    MetricValueStatus {
        average_utilization: found.utilization,
        average_value: Some(resource::Quantity(average)),
        value: None,
    }
}

fn words(resource: &str, container: &str, found: &Proposal) -> String {
    match found.utilization {
        Some(_) => format!("{resource}{container} resource utilization (percentage of request)"),
        None => format!("{resource} resource"),
    }
}

/// The status after it was done, or was found to be right.
pub(super) fn status(
    autoscaler: &HorizontalPodAutoscaler,
    current: i32,
    decision: &Decision,
    rescaled: bool,
) -> HorizontalPodAutoscalerStatus {
    let before = autoscaler.status.as_ref();
    let desired =
        if decision.keeps_desired { before.map_or(0, |before| before.desired_replicas) } else { decision.desired };
    let last = match rescaled {
        true => Some(Time(decision.conditions.now)),
        false => before.and_then(|before| before.last_scale_time.clone()),
    };
    HorizontalPodAutoscalerStatus {
        conditions: Some(decision.conditions.list.clone()),
        current_metrics: Some(decision.metrics.clone()).filter(|metrics| !metrics.is_empty()),
        // 0 is not written.
        current_replicas: Some(current).filter(|current| *current != 0),
        desired_replicas: desired,
        last_scale_time: last,
        observed_generation: autoscaler.metadata.generation,
    }
}

/// The status when the scale could not be read: conditions alone are new.
pub(super) fn unread(autoscaler: &HorizontalPodAutoscaler, conditions: Conditions) -> HorizontalPodAutoscalerStatus {
    let before = autoscaler.status.clone().unwrap_or_default();
    HorizontalPodAutoscalerStatus { conditions: Some(conditions.list), ..before }
}

impl Decision {
    /// The number was written, where it was `current`.
    pub(super) fn rescaled(&mut self, rescale: &Rescale, autoscaler: &HorizontalPodAutoscaler, current: i32) {
        let (desired, reason) = (self.desired, &rescale.reason);
        let message = format!("the HPA controller was able to update the target scale to {desired}");
        self.conditions.set(ABLE, true, "SucceededRescale", message);
        let message = format!("New size: {desired}; reason: {reason}");
        self.events.push(Said { warning: false, reason: "SuccessfulRescale", message });
        self.conditions.zeroed(takes_last(autoscaler, current, desired));
    }

    /// The number could not be written; or nobody knows whether it was, and then a zero that is found later is ours.
    pub(super) fn not_rescaled(&mut self, rescale: &Rescale, current: i32, why: &str, may_be: bool) {
        if current > 0 && !may_be && self.conditions.is_true(ZERO) {
            self.conditions.zeroed(false);
        }
        let (desired, reason) = (self.desired, &rescale.reason);
        let message = format!("New size: {desired}; reason: {reason}; error: {why}");
        self.events.push(Said::warning("FailedRescale", message));
        let message = format!("the HPA controller was unable to update the target scale: {why}");
        self.conditions.set(ABLE, false, "FailedUpdateScale", message);
        self.keeps_desired = true;
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::informer::Object as _;

    const NOW: i64 = 1_800_000_000;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(NOW + seconds).unwrap()
    }

    fn cpu(percent: i32) -> Value {
        json!({"type": "Resource", "resource": {"name": "cpu",
            "target": {"type": "Utilization", "averageUtilization": percent}}})
    }

    fn external() -> Value {
        json!({"type": "External", "external": {"metric": {"name": "hits"}, "target": {"type": "Value", "value": "5"}}})
    }

    fn autoscaler(metrics: Value, more: Value) -> HorizontalPodAutoscaler {
        let mut object = json!({
            "metadata": {"name": "web", "namespace": "n", "uid": "u", "generation": 3},
            "spec": {"scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"}, "minReplicas": 1,
                "maxReplicas": 10, "metrics": metrics},
        });
        for (field, value) in more.as_object().unwrap() {
            let place = if field == "status" { &mut object } else { &mut object["spec"] };
            place[field] = value.clone();
        }
        serde_json::from_value(object).unwrap()
    }

    /// Pods that request 1 processor and 1 Ki, ready since long, with what they use.
    fn world(used: &[(i64, &str)]) -> (Vec<Pod>, Measures) {
        let names = (0..used.len()).map(|index| format!("p{index}"));
        let pod = |name: &String| {
            let ready = json!({"type": "Ready", "status": "True", "lastTransitionTime": at(-900).to_string()});
            let pod = json!({"metadata": {"name": name}, "spec": {"containers": [
                {"name": "c", "resources": {"requests": {"cpu": "1", "memory": "1Ki"}}}]},
                "status": {"phase": "Running", "startTime": at(-1_000).to_string(), "conditions": [ready]}});
            Pod::keep(serde_json::from_value(pod).unwrap())
        };
        let names: Vec<String> = names.collect();
        let items = names.iter().zip(used).map(|(name, (cpu, memory))| {
            json!({"metadata": {"name": name}, "timestamp": at(0).to_string(), "window": "15s", "containers": [
                {"name": "c", "usage": {"cpu": format!("{cpu}m"), "memory": memory}}]})
        });
        let list = json!({"items": items.collect::<Vec<_>>()});
        (names.iter().map(pod).collect(), serde_json::from_value(list).unwrap())
    }

    fn decided(autoscaler: &HorizontalPodAutoscaler, current: i32, used: &[(i64, &str)]) -> Decision {
        let (pods, measures) = world(used);
        let pods: Vec<&Pod> = pods.iter().collect();
        let absent = "unable to fetch metrics from external metrics API: the server could not find the requested resource (get \
                      hits.external.metrics.k8s.io)";
        let others = Others::from([(0, Err(absent.to_owned()))]);
        let seen =
            Seen { autoscaler, current, are: current, pods: Ok(&pods), measures: Ok(&measures), others: &others };
        decide(&seen, &mut History::default(), at(0), Instant::now())
    }

    fn says(decision: &Decision, type_: &str) -> (String, String, String) {
        let found = decision.conditions.list.iter().find(|condition| condition.type_ == type_).cloned();
        let found = found.unwrap_or_default();
        (found.status, found.reason.unwrap_or_default(), found.message.unwrap_or_default())
    }

    #[test]
    fn the_highest_of_several_counts_and_one_that_is_missing_lets_there_be_more_only() {
        let memory = json!({"type": "Resource", "resource": {"name": "memory",
            "target": {"type": "AverageValue", "averageValue": "1Ki"}}});
        for (metrics, used, current, expected, reason) in [
            (json!([cpu(50), memory]), [(600, "3Ki"), (600, "3Ki")], 2, 4, "memory resource above target"),
            (
                json!([cpu(50), memory]),
                [(900, "1Ki"), (900, "1Ki")],
                2,
                4,
                "cpu resource utilization (percentage of request) above target",
            ),
            (
                json!([external(), cpu(50)]),
                [(900, "1Ki"), (900, "1Ki")],
                2,
                4,
                "cpu resource utilization (percentage of request) above target",
            ),
            (json!([external(), cpu(50)]), [(100, "1Ki"), (100, "1Ki")], 2, 2, ""),
        ] {
            let decision = decided(&autoscaler(metrics.clone(), json!({})), current, &used);
            let rescale = decision.rescale.as_ref().map(|rescale| rescale.reason.as_str()).unwrap_or_default();
            assert_eq!((decision.desired, rescale), (expected, reason), "{metrics} {used:?}");
        }
        let decision = decided(&autoscaler(json!([external(), cpu(50)]), json!({})), 2, &[(100, "1Ki"), (100, "1Ki")]);
        let why = "unable to get external metric n/hits/nil: unable to fetch metrics from external metrics API: the server could \
                   not find the requested resource (get hits.external.metrics.k8s.io)";
        let condition = (
            "False".to_owned(),
            "FailedGetExternalMetric".to_owned(),
            format!("the HPA was unable to compute the replica count: {why}"),
        );
        assert_eq!(says(&decision, ACTIVE), condition);
        let expected = [
            Said::warning("FailedGetExternalMetric", why),
            Said::warning(
                "FailedComputeMetricsReplicas",
                format!(
                    "invalid metrics (1 invalid out of 2), first error is: failed to get hits external metric value: failed to get external metric hits: {why}"
                ),
            ),
        ];
        assert_eq!(decision.events, expected);
        let types: Vec<&str> = decision.metrics.iter().map(|metric| metric.type_.as_str()).collect();
        assert_eq!(types, ["", "Resource"], "each at its place, for who reads them by it");
    }

    #[test]
    fn so_many_metrics_are_looked_at_and_no_more() {
        let many = |count: usize| autoscaler(vec![cpu(50); count].into(), json!({}));
        let used = [(1_000, "1Ki")];
        for (count, desired, active, events) in [(METRICS_MAX, 2, "True", 0), (METRICS_MAX + 1, 1, "False", 1)] {
            let autoscaler = many(count);
            assert_eq!(needs_measures(&autoscaler, 1, at(0)), active == "True", "{count}");
            let decision = decided(&autoscaler, 1, &used);
            let (status, ..) = says(&decision, ACTIVE);
            assert_eq!((decision.desired, &*status, decision.events.len()), (desired, active, events), "{count}");
        }
    }

    #[test]
    fn statuses_say_what_is_used_as_kubernetes_writes_it() {
        let container = json!({"type": "ContainerResource", "containerResource": {"name": "memory", "container": "c",
            "target": {"type": "Utilization", "averageUtilization": 100}}});
        let decision = decided(&autoscaler(json!([cpu(50), container]), json!({})), 1, &[(500, "1Ki")]);
        let metrics = serde_json::to_value(&decision.metrics).unwrap();
        assert_eq!(
            metrics,
            json!([
                {"type": "Resource", "resource": {"name": "cpu",
                    "current": {"averageUtilization": 50, "averageValue": "500m"}}},
                {"type": "ContainerResource", "containerResource": {"name": "memory", "container": "c",
                    "current": {"averageUtilization": 100, "averageValue": "1Ki"}}},
            ])
        );
        assert_eq!(says(&decision, ACTIVE).1, "ValidMetricFound");
        assert_eq!(says(&decision, ABLE).1, "ReadyForNewScale");
        assert_eq!(says(&decision, LIMITED).1, "DesiredWithinRange");
        let status = status(&autoscaler(json!([cpu(50)]), json!({})), 1, &decision, false);
        assert_eq!(
            (status.current_replicas, status.desired_replicas, status.observed_generation),
            (Some(1), 1, Some(3))
        );
        assert_eq!(status.last_scale_time, None);
    }

    #[test]
    fn the_tolerance_is_what_the_rules_say() {
        let rules = |tolerance: &str| {
            let always = json!([{"type": "Pods", "value": 10, "periodSeconds": 15}]);
            json!({"behavior": {"scaleUp": {"tolerance": tolerance, "policies": always}, "scaleDown": {"policies": always}}})
        };
        for (tolerance, expected) in [("50m", 2), ("100m", 2), ("200m", 1), ("0", 2)] {
            let decision = decided(&autoscaler(json!([cpu(50)]), rules(tolerance)), 1, &[(560, "1")]);
            assert_eq!(decision.desired, expected, "{tolerance}");
        }
    }

    #[test]
    fn bounds_are_kept_without_looking_at_metrics() {
        let zeroed =
            json!({"status": {"desiredReplicas": 0, "conditions": [{"type": "ScaledToZero", "status": "True"}]}});
        for (current, more, needs, expected, reason) in [
            (11, json!({}), false, 10, Some("Current number of replicas above Spec.MaxReplicas")),
            (1, json!({"minReplicas": 3}), false, 3, Some("Current number of replicas below Spec.MinReplicas")),
            (0, json!({}), false, 0, None),
            (5, json!({}), true, 5, None),
            (0, zeroed, true, 1, Some("")),
        ] {
            let autoscaler = autoscaler(json!([cpu(50)]), more.clone());
            assert_eq!(needs_measures(&autoscaler, current, at(0)), needs, "{current} {more}");
            let used = vec![(500, "1"); if current == 0 { 1 } else { current as usize }];
            let decision = decided(&autoscaler, current, &used);
            let found = decision.rescale.as_ref().map(|rescale| rescale.reason.as_str());
            assert_eq!((decision.desired, found), (expected, reason), "{current} {more}");
        }
        assert_eq!(says(&decided(&autoscaler(json!([cpu(50)]), json!({})), 0, &[]), ACTIVE).1, "ScalingDisabled");
    }

    #[test]
    fn what_was_written_or_not_is_said() {
        let autoscaler = autoscaler(json!([cpu(50)]), json!({"status": {"desiredReplicas": 7, "currentReplicas": 7}}));
        let mut done = decided(&autoscaler, 1, &[(1_000, "1")]);
        let rescale = done.rescale.take().expect("there should be more");
        let mut failed = done.clone();
        done.rescaled(&rescale, &autoscaler, 1);
        assert_eq!(says(&done, ZERO).1, "NotScaledToZero");
        let expected = "the HPA controller was able to update the target scale to 2";
        assert_eq!(says(&done, ABLE), ("True".to_owned(), "SucceededRescale".to_owned(), expected.to_owned()));
        let told = status(&autoscaler, 1, &done, true);
        assert_eq!((told.desired_replicas, told.last_scale_time), (2, Some(Time(at(0)))));
        failed.not_rescaled(&rescale, 1, "no room", false);
        let expected = "the HPA controller was unable to update the target scale: no room";
        assert_eq!(says(&failed, ABLE), ("False".to_owned(), "FailedUpdateScale".to_owned(), expected.to_owned()));
        assert_eq!(status(&autoscaler, 1, &failed, false).desired_replicas, 7, "what it was before");
        let event = failed.events.last().unwrap();
        let expected =
            "New size: 2; reason: cpu resource utilization (percentage of request) above target; error: no room";
        assert_eq!((event.warning, event.reason, event.message.as_str()), (true, "FailedRescale", expected));
    }

    /// A metric that asks for none.
    fn nothing_to_do(more: Value, current: i32) -> (HorizontalPodAutoscaler, Decision) {
        let all = json!([{"type": "Pods", "value": 10, "periodSeconds": 15}]);
        let mut fields = json!({"behavior": {"scaleDown": {"stabilizationWindowSeconds": 0, "policies": all}}});
        fields.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let autoscaler = autoscaler(json!([external()]), fields);
        let (pods, measures) = world(&vec![(500, "1"); current as usize]);
        let pods: Vec<&Pod> = pods.iter().collect();
        let others = Others::from([(0, Ok(Told::Value(0)))]);
        let seen = Seen {
            autoscaler: &autoscaler,
            current,
            are: current,
            pods: Ok(&pods),
            measures: Ok(&measures),
            others: &others,
        };
        let decision = decide(&seen, &mut History::default(), at(0), Instant::now());
        (autoscaler, decision)
    }

    #[test]
    fn whose_zero_it_is_is_said_before_the_last_one_is_taken_and_no_longer_than_there_is_none() {
        let status = |zeroed: &str| {
            json!({"desiredReplicas": 1, "conditions": [
            {"type": "ScaledToZero", "status": zeroed, "reason": "x", "lastTransitionTime": at(-9).to_string()}]})
        };
        for (least, current, zeroed, desired, marked, says_so) in [
            (0, 1, "False", 0, true, "True"),
            (0, 1, "True", 0, false, "True"),
            // Not its own zero any more: somebody has made some, and it does not take them.
            (1, 2, "True", 1, false, "False"),
            (1, 1, "True", 1, false, "False"),
            (1, 1, "False", 1, false, "False"),
            (0, 0, "True", 0, false, "True"),
            (0, 0, "False", 0, false, "False"),
        ] {
            let (autoscaler, decision) =
                nothing_to_do(json!({"minReplicas": least, "status": status(zeroed)}), current);
            let why = format!("{least} {current} {zeroed}");
            assert_eq!((decision.desired, &*says(&decision, ZERO).0), (desired, says_so), "{why}");
            let mark = mark(&autoscaler, current, &decision);
            assert_eq!(mark.is_some(), marked, "{why}");
            if let Some(mark) = mark {
                let zero = &mark.conditions.as_ref().unwrap()[0];
                assert_eq!((&*zero.status, mark.desired_replicas), ("True", 1), "{why}: all else as it was");
            }
        }
    }

    #[test]
    fn a_zero_that_may_have_been_written_is_ours_and_one_that_was_refused_is_not() {
        for (may_be, says_so) in [(true, "True"), (false, "False")] {
            let (_, mut decision) = nothing_to_do(json!({"minReplicas": 0}), 1);
            let rescale = decision.rescale.take().expect("none is wanted");
            decision.not_rescaled(&rescale, 1, "why", may_be);
            assert_eq!(says(&decision, ZERO).0, says_so);
        }
    }

    #[test]
    fn a_condition_keeps_its_time_while_it_says_the_same() {
        let mut conditions = Conditions { list: Vec::new(), now: at(0) };
        conditions.set(ABLE, true, "One", "one");
        conditions.now = at(5);
        conditions.set(ABLE, true, "Two", "two");
        assert_eq!(conditions.list[0].last_transition_time, Some(Time(at(0))));
        assert_eq!(conditions.list[0].reason.as_deref(), Some("Two"));
        conditions.no_scale("why");
        assert_eq!((conditions.list.len(), conditions.list[0].last_transition_time.clone()), (1, Some(Time(at(5)))));
    }
}
