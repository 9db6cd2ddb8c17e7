//! Behaviour of the core, as tables, and laws about counting against a world that goes wrong.

mod laws;

use std::collections::HashSet;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobStatus};
use serde_json::{Value, json};

use super::backoff::Backoff;
use super::plan::{Observed, Plan, finished, plan};
use super::{is_written, patch_of, template};
use crate::informer::{Object as _, Pod};

fn now() -> Timestamp {
    "2026-01-01T01:00:00Z".parse().expect("a time")
}

fn merge(into: &mut Value, change: &Value) {
    match (into, change) {
        (Value::Object(into), Value::Object(change)) => {
            for (name, value) in change {
                merge(into.entry(name.clone()).or_insert(Value::Null), value);
            }
        }
        (into, change) => *into = change.clone(),
    }
}

/// A Job that has begun, with changes to its specification and its status.
fn job(spec: Value, status: Value) -> Job {
    let mut wire = json!({
        "metadata": {"name": "j", "namespace": "n", "uid": "job", "generation": 1, "resourceVersion": "1"},
        "spec": {
            "parallelism": 1, "completions": 1, "backoffLimit": 6, "completionMode": "NonIndexed", "suspend": false,
            "podReplacementPolicy": "TerminatingOrFailed", "selector": {"matchLabels": {"job": "j"}},
            "template": {"metadata": {"labels": {"job": "j"}}, "spec": {"restartPolicy": "Never", "containers": [{"name": "c"}]}},
        },
        "status": {"startTime": "2026-01-01T00:00:00Z", "ready": 0, "terminating": 0, "uncountedTerminatedPods": {}},
    });
    merge(&mut wire["spec"], &spec);
    merge(&mut wire["status"], &status);
    serde_json::from_value(wire).expect("a Job")
}

fn indexed(spec: Value, status: Value) -> Job {
    let mut all = json!({"completionMode": "Indexed", "completions": 3, "parallelism": 3});
    merge(&mut all, &spec);
    job(all, status)
}

/// A pod of the Job at work, with changes.
fn pod(uid: &str, change: Value) -> Arc<Pod> {
    let mut wire = json!({
        "metadata": {
            "name": uid, "namespace": "n", "uid": uid, "labels": {"job": "j"}, "creationTimestamp": "2026-01-01T00:00:00Z",
            "finalizers": ["batch.kubernetes.io/job-tracking"], "resourceVersion": "1",
            "ownerReferences": [{"apiVersion": "batch/v1", "kind": "Job", "name": "j", "uid": "job", "controller": true}],
        },
        "spec": {"nodeName": "one"},
        "status": {"phase": "Running"},
    });
    merge(&mut wire, &change);
    Arc::new(Pod::keep(serde_json::from_value(wire).expect("a pod")))
}

fn ended(uid: &str, phase: &str) -> Arc<Pod> {
    pod(uid, json!({"status": {"phase": phase}}))
}

/// A pod of an index.
fn at(index: u32, phase: &str) -> Arc<Pod> {
    with_index(&format!("p{index}"), index, json!({"status": {"phase": phase}}))
}

fn with_index(uid: &str, index: u32, change: Value) -> Arc<Pod> {
    let mut all = json!({"metadata": {"annotations": {"batch.kubernetes.io/job-completion-index": index.to_string()}}});
    merge(&mut all, &change);
    pod(uid, all)
}

/// A pod that failed with an exit code, so many seconds ago.
fn failed(uid: &str, code: i32, ago: i64) -> Arc<Pod> {
    pod(uid, failure(code, ago))
}

fn failure(code: i32, ago: i64) -> Value {
    let end = now().checked_sub(jiff::SignedDuration::from_secs(ago)).expect("a time").to_string();
    json!({"status": {"phase": "Failed", "containerStatuses": [
        {"name": "c", "state": {"terminated": {"exitCode": code, "finishedAt": end}}}]}})
}

/// What is known beside the objects.
#[derive(Default)]
struct Known {
    sent: Vec<Arc<str>>,
    unknown: Vec<Arc<str>>,
    deleting: HashSet<Arc<str>>,
    untracked: HashSet<Arc<str>>,
    orphans: Vec<Arc<Pod>>,
    backoff: Backoff,
}

impl Known {
    fn plan(&self, job: &Job, owned: &[Arc<Pod>]) -> Plan {
        plan(&Observed {
            job,
            owned,
            orphans: &self.orphans,
            sent: &self.sent,
            unknown: &self.unknown,
            deleting: &self.deleting,
            untracked: &self.untracked,
            backoff: self.backoff,
            now: now(),
        })
    }
}

fn planned(job: &Job, owned: &[Arc<Pod>]) -> Plan {
    Known::default().plan(job, owned)
}

fn set(uids: &[&str]) -> HashSet<Arc<str>> {
    uids.iter().map(|uid| (*uid).into()).collect()
}

fn uids(pods: &[Arc<Pod>]) -> Vec<&str> {
    pods.iter().map(|pod| &*pod.uid).collect()
}

fn conditions(status: &JobStatus) -> Vec<String> {
    let conditions = status.conditions.iter().flatten();
    conditions
        .map(|known| format!("{}={} {}", known.type_, known.status, known.reason.as_deref().unwrap_or_default()))
        .collect()
}

fn indexes(plan: &Plan) -> Vec<u32> {
    plan.create.iter().filter_map(|create| create.index).collect()
}

#[test]
fn keeps_as_many_at_work_as_are_wanted_and_left() {
    let many = |count: usize, phase: &str| (0..count).map(|i| ended(&format!("{phase}{i}"), phase)).collect::<Vec<_>>();
    for (why, spec, running, succeeded, create, delete) in [
        ("the first", json!({}), 0, 0, 1, 0),
        ("parallel", json!({"parallelism": 3, "completions": 5}), 1, 0, 2, 0),
        ("what is left", json!({"parallelism": 3, "completions": 5}), 1, 3, 1, 0),
        ("any number until one succeeds", json!({"parallelism": 3, "completions": null}), 1, 0, 2, 0),
        ("none after one has", json!({"parallelism": 3, "completions": null}), 2, 1, 0, 0),
        ("too many", json!({"parallelism": 2, "completions": 5}), 4, 0, 0, 2),
        ("more than are left", json!({"parallelism": 4, "completions": 5}), 3, 4, 0, 2),
        ("none", json!({"parallelism": 0}), 2, 0, 0, 2),
        ("in pieces", json!({"parallelism": 2000, "completions": 3000}), 0, 0, 500, 0),
        ("in pieces", json!({"parallelism": 0}), 700, 0, 0, 500),
        ("suspended", json!({"suspend": true, "parallelism": 3, "completions": 3}), 2, 0, 0, 2),
    ] {
        let pods: Vec<_> = many(running, "Running").into_iter().chain(many(succeeded, "Succeeded")).collect();
        let plan = planned(&job(spec, json!({})), &pods);
        assert_eq!((plan.create.len(), plan.delete.len()), (create, delete), "{why}");
        assert!(delete == 0 || plan.strip, "{why}: who is given up counts for nothing");
    }
}

#[test]
fn what_is_in_flight_counts() {
    let job = job(json!({"parallelism": 3, "completions": 3}), json!({}));
    let known = Known { sent: vec!["j-aaaaa".into()], unknown: vec!["j-bbbbb".into()], ..Known::default() };
    let plan = known.plan(&job, &[pod("p", json!({}))]);
    let names: Vec<_> = plan.create.iter().map(|create| create.name.as_deref()).collect();
    assert_eq!(names, [Some("j-bbbbb")], "what nobody knows of is asked for again, and nothing else");
    assert_eq!(plan.status.active, Some(2), "what nobody knows of is not told");
    let more = Known { sent: known.sent, unknown: vec!["j-bbbbb".into(), "j-ccccc".into()], ..Known::default() };
    assert!(
        more.plan(&job, &[pod("p", json!({}))]).create.is_empty(),
        "more than there is room for is looked for first"
    );
    // A deletion that was asked for makes room at once.
    let known = Known { deleting: set(&["p"]), ..Known::default() };
    let plan = known.plan(&job, &[pod("p", json!({}))]);
    assert_eq!((plan.create.len(), plan.status.active, plan.status.terminating), (3, Some(0), Some(1)));
}

#[test]
fn gives_up_the_pod_that_is_missed_least() {
    let ready = json!([{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:30:00Z"}]);
    for (why, worse) in [
        ("no node", json!({"spec": {"nodeName": ""}})),
        ("pending", json!({"status": {"phase": "Pending"}})),
        ("not ready", json!({"status": {"conditions": []}})),
        ("young", json!({"metadata": {"creationTimestamp": "2026-01-01T00:59:00Z"}})),
        ("given up before", json!({"metadata": {"finalizers": []}})),
    ] {
        let good = json!({"status": {"conditions": ready}});
        let mut change = good.clone();
        merge(&mut change, &worse);
        let pods = [pod("a", good.clone()), pod("z", change), pod("b", good)];
        let plan = planned(&job(json!({"parallelism": 2, "completions": 5}), json!({})), &pods);
        assert_eq!(uids(&plan.delete), ["z"], "{why}");
    }
}

#[test]
fn counts_in_three_steps() {
    let before = job(json!({"completions": 2, "parallelism": 2}), json!({}));
    let pods = [ended("a", "Succeeded"), pod("b", json!({}))];
    let first = planned(&before, &pods);
    let waiting = first.status.uncounted_terminated_pods.clone().expect("uncounted");
    assert_eq!((waiting.succeeded, waiting.failed), (Some(vec!["a".to_owned()]), None));
    assert_eq!((first.status.succeeded, uids(&first.untrack)), (None, vec!["a"]));
    // The finalizer is still there: it is named once, and not counted.
    let mut named = before.clone();
    named.status = Some(first.status.clone());
    let second = planned(&named, &pods);
    assert_eq!((second.status.clone(), uids(&second.untrack)), (first.status, vec!["a"]));
    // It is removed, whether the informer shows it or not.
    let known = Known { untracked: set(&["a"]), ..Known::default() };
    let shown = [pod("a", json!({"metadata": {"finalizers": []}, "status": {"phase": "Succeeded"}})), pods[1].clone()];
    for third in [known.plan(&named, &pods), planned(&named, &shown), planned(&named, &shown[1..])] {
        assert_eq!((third.status.succeeded, third.untrack), (Some(1), vec![]));
        assert_eq!(third.status.uncounted_terminated_pods, Some(Default::default()));
    }
    // And counted once.
    named.status = Some(known.plan(&named, &pods).status);
    assert_eq!(known.plan(&named, &pods).status.succeeded, Some(1));
    assert_eq!(planned(&named, &shown).status.succeeded, Some(1));
}

#[test]
fn names_so_many_at_a_time_that_the_status_stays_small() {
    let pods: Vec<_> = (0..700).map(|i| ended(&format!("p{i}"), "Succeeded")).collect();
    let plan = planned(&job(json!({"completions": 700, "parallelism": 700}), json!({})), &pods);
    assert_eq!(plan.untrack.len(), 500);
    assert!(finished(&Job { status: Some(plan.status), ..Job::default() }).is_none());
}

#[test]
fn completes_when_nothing_is_left() {
    let done = json!({"succeeded": 1});
    let plan = planned(&job(json!({}), done.clone()), &[]);
    assert_eq!(
        conditions(&plan.status),
        ["SuccessCriteriaMet=True CompletionsReached", "Complete=True CompletionsReached"]
    );
    assert_eq!(plan.status.completion_time.as_ref().map(|time| time.0), Some(now()));
    assert_eq!(plan.told.iter().map(|told| told.reason).collect::<Vec<_>>(), ["Completed"]);
    // Not while one is at work, may turn up, goes, or is not counted.
    let going =
        pod("p", json!({"metadata": {"deletionTimestamp": "2026-01-01T01:00:00Z"}, "status": {"phase": "Running"}}));
    let known = Known { unknown: vec!["j-aaaaa".into()], ..Known::default() };
    for (why, plan) in [
        ("at work", planned(&job(json!({"parallelism": 0}), done.clone()), &[pod("p", json!({}))])),
        ("may turn up", known.plan(&job(json!({}), done.clone()), &[])),
        ("goes", planned(&job(json!({"podReplacementPolicy": "Failed"}), done.clone()), &[going])),
        ("not counted", planned(&job(json!({}), json!({})), &[ended("p", "Succeeded")])),
    ] {
        assert!(!conditions(&plan.status).iter().any(|known| known.starts_with("Complete=")), "{why}");
    }
}

#[test]
fn fails_for_the_reasons_that_there_are() {
    let two = || vec![failed("a", 1, 100), failed("b", 1, 100)];
    let restarts =
        |count: i32| vec![pod("a", json!({"status": {"containerStatuses": [{"name": "c", "restartCount": count}]}}))];
    let on_failure = json!({"backoffLimit": 3, "template": {"spec": {"restartPolicy": "OnFailure"}}});
    for (spec, status, pods, reason) in [
        (json!({"backoffLimit": 1}), json!({}), two(), Some("BackoffLimitExceeded")),
        (json!({"backoffLimit": 2}), json!({}), two(), None),
        (json!({"backoffLimit": 2}), json!({"failed": 1}), two(), Some("BackoffLimitExceeded")),
        (
            json!({"backoffLimit": 2}),
            json!({"uncountedTerminatedPods": {"failed": ["a"]}, "failed": 1}),
            two(),
            Some("BackoffLimitExceeded"),
        ),
        (json!({"backoffLimit": 0}), json!({}), vec![ended("a", "Succeeded")], None),
        (on_failure.clone(), json!({}), restarts(3), Some("BackoffLimitExceeded")),
        (on_failure, json!({}), restarts(2), None),
        (json!({"backoffLimit": 3}), json!({}), restarts(9), None),
        (json!({"activeDeadlineSeconds": 3600}), json!({}), vec![], Some("DeadlineExceeded")),
        (json!({"activeDeadlineSeconds": 3601}), json!({}), vec![], None),
        (json!({"activeDeadlineSeconds": 1, "suspend": true}), json!({}), vec![], None),
    ] {
        let mut known = Known::default();
        let job = job(spec.clone(), status);
        let plan = known.plan(&job, &pods);
        // Who is at work goes first.
        known.deleting = plan.delete.iter().map(|pod| pod.uid.clone()).collect();
        let status = if reason.is_some() { known.plan(&job, &pods).status } else { plan.status };
        let found = conditions(&status).into_iter().find(|known| known.starts_with("FailureTarget="));
        assert_eq!(found, reason.map(|reason| format!("FailureTarget=True {reason}")), "{spec}");
    }
    let plan = planned(&job(json!({"activeDeadlineSeconds": 3601}), json!({})), &[pod("p", json!({}))]);
    assert_eq!(plan.check_after.map(|after| after.as_secs()), Some(1));
    let plan = planned(&job(json!({"activeDeadlineSeconds": i64::MAX}), json!({})), &[]);
    assert_eq!(plan.check_after.map(|after| after.as_secs()), Some(365 * 24 * 3600 - 3600));
}

#[test]
fn what_has_failed_ends_its_pods_and_counts_them_before_it_says_so() {
    let job = job(json!({"backoffLimit": 0, "completions": 2, "parallelism": 2}), json!({}));
    let pods = [failed("a", 1, 0), pod("b", json!({}))];
    let plan = planned(&job, &pods);
    assert_eq!((uids(&plan.delete), plan.strip), (vec!["b"], false));
    assert!(conditions(&plan.status).is_empty(), "not before they go");
    let mut known = Known { deleting: set(&["b"]), ..Known::default() };
    let plan = known.plan(&job, &pods);
    assert_eq!(conditions(&plan.status), ["FailureTarget=True BackoffLimitExceeded"]);
    let waiting = plan.status.uncounted_terminated_pods.as_ref().and_then(|waiting| waiting.failed.clone());
    assert_eq!(waiting, Some(vec!["a".to_owned(), "b".to_owned()]), "who is ended has failed, too");
    let mut next = job;
    next.status = Some(plan.status);
    known.untracked = set(&["a", "b"]);
    let plan = known.plan(&next, &pods);
    assert_eq!(plan.status.failed, Some(2));
    assert_eq!(conditions(&plan.status).len(), 1, "b still goes");
    next.status = Some(plan.status);
    let plan = planned(&next, &[]);
    assert_eq!(conditions(&plan.status)[1], "Failed=True BackoffLimitExceeded");
    assert_eq!((plan.told[0].reason, plan.told[0].warning), ("BackoffLimitExceeded", true));
    assert_eq!(plan.status.completion_time, None);
}

#[test]
fn waits_longer_after_each_failure() {
    for (failures, ago, wait) in [(1, 0, Some(10)), (1, 9, Some(1)), (1, 10, None), (3, 0, Some(40)), (6, 599, None)] {
        let pods: Vec<_> = (0..failures).map(|i| failed(&format!("p{i}"), 1, ago)).collect();
        let plan = planned(&job(json!({"backoffLimit": 9}), json!({})), &pods);
        assert_eq!(plan.check_after.map(|after| after.as_secs()), wait, "{failures} failures");
        assert_eq!(plan.create.len(), usize::from(wait.is_none()), "{failures} failures");
    }
    // What was remembered counts; a success forgives it.
    let known = Known { backoff: Backoff::after(3, Some(now())), ..Known::default() };
    let job = job(json!({"completions": 5, "backoffLimit": 9}), json!({"failed": 3}));
    assert!(known.plan(&job, &[]).create.is_empty());
    assert_eq!(known.plan(&job, &[ended("a", "Succeeded")]).create.len(), 1);
}

#[test]
fn indexes_are_each_done_once() {
    let job_with = |spec, status| indexed(spec, status);
    for (why, job, pods, sent, create, delete) in [
        ("all", job_with(json!({}), json!({})), vec![], vec![], vec![0, 1, 2], vec![]),
        (
            "what is missing",
            job_with(json!({}), json!({"completedIndexes": "1", "succeeded": 1})),
            vec![at(0, "Running")],
            vec![],
            vec![2],
            vec![],
        ),
        ("not what is in flight", job_with(json!({}), json!({})), vec![], vec!["j-1-abcde"], vec![0, 2], vec![]),
        (
            "not what has just succeeded",
            job_with(json!({}), json!({})),
            vec![at(0, "Succeeded")],
            vec![],
            vec![1, 2],
            vec![],
        ),
        (
            "again what failed",
            job_with(json!({}), json!({})),
            vec![with_index("p0", 0, failure(1, 100)), at(1, "Running"), at(2, "Running")],
            vec![],
            vec![0],
            vec![],
        ),
        (
            "one of each",
            job_with(json!({}), json!({})),
            vec![at(0, "Running"), with_index("q", 0, json!({"spec": {"nodeName": ""}}))],
            vec![],
            vec![],
            vec!["q"],
        ),
        ("none without", job_with(json!({}), json!({})), vec![pod("q", json!({}))], vec![], vec![], vec!["q"]),
        (
            "none beyond",
            job_with(json!({"completions": 2, "parallelism": 2}), json!({})),
            vec![at(2, "Running")],
            vec![],
            vec![],
            vec!["p2"],
        ),
    ] {
        let known = Known { sent: sent.iter().map(|name| (*name).into()).collect(), ..Known::default() };
        let plan = known.plan(&job, &pods);
        assert_eq!((indexes(&plan), uids(&plan.delete)), (create, delete), "{why}");
    }
    // What nobody knows of keeps its index and its name.
    let known = Known { unknown: vec!["j-1-abcde".into(), "j-0-abcde".into(), "j-0-other".into()], ..Known::default() };
    let with = |parallelism: u32| {
        let spec = json!({"parallelism": parallelism, "completions": 9});
        known.plan(&indexed(spec, json!({})), &[at(0, "Running")])
    };
    let plan = with(5);
    assert_eq!((plan.create[0].name.as_deref(), indexes(&plan)), (Some("j-1-abcde"), vec![1, 2]));
    assert_eq!(indexes(&with(4)), [1], "what is not asked for again may be there as well");
    assert!(with(3).create.is_empty(), "more than there is room for is looked for first");
}

#[test]
fn indexes_that_succeeded_need_no_names() {
    let pods = [at(0, "Succeeded"), at(1, "Running"), at(2, "Succeeded")];
    let plan = planned(&indexed(json!({}), json!({})), &pods);
    assert_eq!((plan.status.succeeded, plan.status.completed_indexes.as_deref()), (Some(2), Some("0,2")));
    assert_eq!(plan.status.uncounted_terminated_pods, Some(Default::default()));
    assert_eq!(uids(&plan.untrack), ["p0", "p2"]);
    // A Job that shrinks has fewer.
    let small =
        indexed(json!({"completions": 1, "parallelism": 1}), json!({"completedIndexes": "0-2", "succeeded": 3}));
    let plan = planned(&small, &[]);
    assert_eq!((plan.status.succeeded, plan.status.completed_indexes.as_deref()), (Some(1), Some("0")));
    assert_eq!(conditions(&plan.status).len(), 2);
}

#[test]
fn indexes_have_limits_of_their_own() {
    let spec = json!({"backoffLimitPerIndex": 1, "backoffLimit": i32::MAX});
    let second = |ago| {
        let mut change = failure(1, ago);
        merge(&mut change, &json!({"metadata": {"annotations": {"batch.kubernetes.io/job-index-failure-count": "1"}}}));
        with_index("p0", 0, change)
    };
    let others = [at(1, "Running"), at(2, "Running")];
    // The first failure: the index is tried again, and its successor knows. Until there is one, the pod stays.
    let pods = [with_index("p0", 0, failure(1, 100)), others[0].clone(), others[1].clone()];
    let plan = planned(&indexed(spec.clone(), json!({})), &pods);
    assert_eq!((plan.create[0].index, plan.create[0].failures), (Some(0), Some((1, 0))));
    assert_eq!((plan.status.failed_indexes.as_deref(), plan.untrack.len()), (Some(""), 0));
    // Its own back-off holds up no other.
    let pods = [with_index("p0", 0, failure(1, 0)), others[0].clone()];
    let plan = planned(&indexed(spec.clone(), json!({})), &pods);
    assert_eq!((indexes(&plan), plan.check_after.map(|after| after.as_secs())), (vec![2], Some(10)));
    // The second: the index has failed, and is not tried again.
    let pods = [second(100), others[0].clone(), others[1].clone()];
    let plan = planned(&indexed(spec.clone(), json!({})), &pods);
    assert_eq!((indexes(&plan), plan.status.failed_indexes.as_deref()), (vec![], Some("0")));
    assert_eq!(uids(&plan.untrack), ["p0"]);
    // All are through.
    let over = json!({"completedIndexes": "1,2", "succeeded": 2, "failedIndexes": "0", "failed": 2});
    let plan = planned(&indexed(spec.clone(), over), &[]);
    assert_eq!(conditions(&plan.status), ["FailureTarget=True FailedIndexes", "Failed=True FailedIndexes"]);
    let mut strict = spec;
    merge(&mut strict, &json!({"maxFailedIndexes": 0}));
    let plan = planned(&indexed(strict, json!({"failedIndexes": "0", "failed": 2})), &[]);
    assert_eq!(conditions(&plan.status)[0], "FailureTarget=True MaxFailedIndexesExceeded");
}

#[test]
fn failures_have_the_effect_that_the_policy_says() {
    let rule = |action: &str, on: Value| {
        let mut rule = json!({"action": action});
        merge(&mut rule, &on);
        json!({"backoffLimit": 0, "podFailurePolicy": {"rules": [rule]}, "podReplacementPolicy": "Failed"})
    };
    let codes = |operator: &str, values: &[i32]| json!({"onExitCodes": {"operator": operator, "values": values}});
    let disrupted = json!({"onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]});
    let conditioned = || {
        let mut change = failure(3, 100);
        change["status"]["conditions"] = json!([{"type": "DisruptionTarget", "status": "True"}]);
        pod("p", change)
    };
    let plain = || failed("p", 3, 100);
    for (spec, pod, expected) in [
        (
            rule("FailJob", codes("In", &[3])),
            plain(),
            "PodFailurePolicy: Container c for pod n/p failed with exit code 3 matching FailJob rule at index 0",
        ),
        (
            rule("FailJob", codes("In", &[4])),
            plain(),
            "BackoffLimitExceeded: Job has reached the specified backoff limit",
        ),
        (
            rule("FailJob", codes("NotIn", &[4])),
            plain(),
            "PodFailurePolicy: Container c for pod n/p failed with exit code 3 matching FailJob rule at index 0",
        ),
        (
            rule("FailJob", json!({"onExitCodes": {"operator": "In", "values": [3], "containerName": "other"}})),
            plain(),
            "BackoffLimitExceeded: Job has reached the specified backoff limit",
        ),
        (
            rule("FailJob", disrupted.clone()),
            conditioned(),
            "PodFailurePolicy: Pod n/p has condition DisruptionTarget matching FailJob rule at index 0",
        ),
        (rule("Ignore", disrupted.clone()), conditioned(), ""),
        (rule("Ignore", disrupted), plain(), "BackoffLimitExceeded: Job has reached the specified backoff limit"),
        (
            rule("Count", codes("In", &[3])),
            plain(),
            "BackoffLimitExceeded: Job has reached the specified backoff limit",
        ),
    ] {
        let plan = planned(&job(spec.clone(), json!({})), &[pod]);
        let condition = plan.status.conditions.iter().flatten().next();
        let text = condition.map(|known| {
            format!("{}: {}", known.reason.as_deref().unwrap_or_default(), known.message.as_deref().unwrap_or_default())
        });
        assert_eq!(text.unwrap_or_default(), expected, "{spec}");
        // What is ignored is in no count, and makes room.
        assert_eq!(uids(&plan.untrack), ["p"]);
        let named = plan.status.uncounted_terminated_pods.and_then(|waiting| waiting.failed);
        assert_eq!(named.is_some(), !expected.is_empty());
    }
    let fail_index = json!({"backoffLimitPerIndex": 5, "podFailurePolicy": {"rules": [
        {"action": "FailIndex", "onExitCodes": {"operator": "In", "values": [3]}}]}, "podReplacementPolicy": "Failed"});
    let pods = [with_index("p0", 0, failure(3, 100)), at(1, "Running"), at(2, "Running")];
    let plan = planned(&indexed(fail_index, json!({})), &pods);
    assert_eq!((plan.status.failed_indexes.as_deref(), plan.create.len()), (Some("0"), 0));
}

#[test]
fn enough_may_be_less_than_all() {
    let rules = |rules: Value| json!({"completions": 5, "parallelism": 5, "successPolicy": {"rules": rules}});
    for (rule, done, met) in [
        (json!({"succeededIndexes": "0,2"}), "0,2", true),
        (json!({"succeededIndexes": "0,2"}), "0,1", false),
        (json!({"succeededIndexes": "0-2", "succeededCount": 1}), "2", true),
        (json!({"succeededIndexes": "0-2", "succeededCount": 1}), "3", false),
        (json!({"succeededCount": 2}), "1,4", true),
        (json!({"succeededCount": 2}), "1", false),
    ] {
        let status = json!({"completedIndexes": done});
        let plan = planned(&indexed(rules(json!([{"succeededCount": 5}, rule])), status.clone()), &[]);
        let expected = ["SuccessCriteriaMet=True SuccessPolicy", "Complete=True SuccessPolicy"];
        assert_eq!(conditions(&plan.status), if met { &expected[..] } else { &[] }, "{rule} with {done}");
        if met {
            let message = plan.status.conditions.as_ref().and_then(|all| all[0].message.clone());
            assert_eq!(message.as_deref(), Some("Matched rules at index 1"));
            // Who is at work then goes, and has not failed.
            let job = indexed(rules(json!([{"succeededCount": 5}, rule])), status);
            let running = [with_index("q", 3, json!({}))];
            let known = Known { deleting: set(&["q"]), ..Known::default() };
            assert_eq!(uids(&planned(&job, &running).delete), ["q"]);
            let plan = known.plan(&job, &running);
            let named = plan.status.uncounted_terminated_pods.and_then(|waiting| waiting.failed);
            assert_eq!((named, uids(&plan.untrack)), (None, vec!["q"]));
        }
    }
}

#[test]
fn stands_still_while_it_is_suspended() {
    let pods = [pod("p", json!({}))];
    let before = job(json!({"suspend": true}), json!({}));
    let known = Known { deleting: set(&["p"]), untracked: set(&["p"]), ..Known::default() };
    let plan = known.plan(&before, &pods);
    assert_eq!(conditions(&plan.status), ["Suspended=True JobSuspended"]);
    assert_eq!((plan.status.start_time, plan.told[0].reason), (None, "Suspended"));
    let mut resumed = job(json!({}), json!({}));
    resumed.status = Some(known.plan(&before, &pods).status);
    let plan = planned(&resumed, &[]);
    assert_eq!(conditions(&plan.status), ["Suspended=False JobResumed"]);
    assert_eq!((plan.status.start_time.map(|time| time.0), plan.told[0].reason), (Some(now()), "Resumed"));
    assert_eq!(plan.create.len(), 1);
    // One that never was does not say so.
    assert!(conditions(&planned(&job(json!({}), json!({})), &[]).status).is_empty());
}

#[test]
fn replaces_a_pod_that_goes_at_once_or_when_it_has_failed() {
    let going = [pod("p", json!({"metadata": {"deletionTimestamp": "2026-01-01T01:00:00Z"}}))];
    let plan = planned(&job(json!({}), json!({})), &going);
    assert_eq!((plan.create.len(), uids(&plan.untrack)), (0, vec!["p"]), "it counts as failed, hence the back-off");
    assert_eq!(plan.check_after.map(|after| after.as_secs()), Some(10));
    let plan = planned(&job(json!({"podReplacementPolicy": "Failed"}), json!({})), &going);
    assert_eq!((plan.create.len(), plan.untrack.len(), plan.status.terminating), (0, 0, Some(1)));
    assert_eq!(plan.check_after, None);
}

#[test]
fn adopts_releases_and_leaves_alone() {
    let orphan = |uid: &str, change: Value| {
        let mut all = json!({"metadata": {"ownerReferences": []}});
        merge(&mut all, &change);
        pod(uid, all)
    };
    let known = Known {
        orphans: vec![
            orphan("mine", json!({})),
            orphan("other", json!({"metadata": {"labels": {"job": "k"}}})),
            orphan("going", json!({"metadata": {"deletionTimestamp": "2026-01-01T01:00:00Z"}})),
        ],
        ..Known::default()
    };
    let stray = pod("stray", json!({"metadata": {"labels": {"job": "k"}}}));
    let mut job = job(json!({}), json!({}));
    let plan = known.plan(&job, std::slice::from_ref(&stray));
    assert_eq!((uids(&plan.adopt), uids(&plan.release), plan.status.active), (vec!["mine"], vec!["stray"], Some(0)));
    job.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now()));
    let plan = known.plan(&job, &[stray, pod("p", json!({}))]);
    assert_eq!((plan.adopt.len(), plan.release.len(), plan.create.len(), plan.delete.len()), (0, 0, 0, 0));
    assert_eq!(uids(&plan.untrack), ["p"], "a Job that goes holds nothing back");
}

#[test]
fn makes_pods_that_know_their_index() {
    let job = indexed(
        json!({"template": {"metadata": {"annotations": {"a": "b"}}, "spec": {"hostname": "h", "initContainers": [
            {"name": "i", "env": [{"name": "JOB_COMPLETION_INDEX", "value": "mine"}]}]}}}),
        json!({}),
    );
    let template = template::Template::of(&job).expect("a template").expect("a template");
    let create = super::plan::Create { index: Some(7), failures: Some((2, 1)), ..Default::default() };
    let name = template.name(Some(7));
    let pod = serde_json::to_value(template.pod(&name, &create).expect("a pod")).expect("JSON");
    assert!(name.starts_with("j-7-") && template::index_of(&name) == Some(7), "{name}");
    let meta = &pod["metadata"];
    assert_eq!(meta["generateName"], "j-7-");
    assert_eq!(meta["finalizers"], json!(["batch.kubernetes.io/job-tracking"]));
    assert_eq!(meta["labels"], json!({"job": "j", "batch.kubernetes.io/job-completion-index": "7"}));
    let expected = json!({
        "a": "b", "batch.kubernetes.io/job-completion-index": "7", "batch.kubernetes.io/job-index-failure-count": "2",
        "batch.kubernetes.io/job-index-ignored-failure-count": "1",
    });
    assert_eq!(meta["annotations"], expected);
    assert_eq!((&meta["ownerReferences"][0]["uid"], &pod["spec"]["hostname"]), (&json!("job"), &json!("j-7")));
    let field = "metadata.labels['batch.kubernetes.io/job-completion-index']";
    let variable = json!([{"name": "JOB_COMPLETION_INDEX", "valueFrom": {"fieldRef": {"fieldPath": field}}}]);
    assert_eq!(pod["spec"]["containers"][0]["env"], variable);
    assert_eq!(pod["spec"]["initContainers"][0]["env"][0]["value"], "mine");
    let plain = self::job(json!({}), json!({}));
    let template = template::Template::of(&plain).expect("a template").expect("a template");
    let pod = serde_json::to_value(template.pod("j-abcde", &Default::default()).expect("a pod")).expect("JSON");
    assert_eq!(
        (&pod["spec"], &pod["metadata"]["generateName"]),
        (&json!({"containers": [{"name": "c"}], "restartPolicy": "Never"}), &json!("j-"))
    );
    for (name, index) in [("j-abcde", None), ("a-12-abcde", Some(12)), ("abc", None), ("", None), ("5-abcde", Some(5))]
    {
        assert_eq!(template::index_of(name), index, "{name}");
    }
}

#[test]
fn writes_only_what_is_new() {
    let before = job(json!({}), json!({}));
    let plan = planned(&before, &[]);
    assert!(is_written(before.status.as_ref(), &plan.status), "nothing has come yet");
    let plan = planned(&before, &[pod("p", json!({}))]);
    assert!(!is_written(before.status.as_ref(), &plan.status));
    let patch = patch_of(&plan.status);
    assert_eq!((&patch["active"], &patch["ready"], &patch["failed"]), (&json!(1), &json!(0), &Value::Null));
    assert_eq!(patch["uncountedTerminatedPods"], json!({"succeeded": null, "failed": null}));
    assert!(!is_written(None, &plan.status));
}
