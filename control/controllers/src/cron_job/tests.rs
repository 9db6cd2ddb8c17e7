//! Behaviour of the core, as tables, and a law about moments.

use std::collections::HashSet;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{CronJob, Job};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::due::{self, Missed};
use super::job_of;
use super::plan::{Observed, Plan, plan};

fn at(text: &str) -> Timestamp {
    text.parse().expect("a time")
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

/// A CronJob of ten o'clock that is due every hour, with changes.
fn cron(spec: Value, status: Value) -> CronJob {
    let mut wire = json!({
        "metadata": {"name": "c", "namespace": "n", "uid": "cron", "creationTimestamp": "2026-01-01T10:00:00Z"},
        "spec": {
            "schedule": "0 * * * *", "concurrencyPolicy": "Allow", "successfulJobsHistoryLimit": 3, "failedJobsHistoryLimit": 1,
            "jobTemplate": {"metadata": {"labels": {"a": "b"}}, "spec": {"template": {"spec": {"containers": []}}}},
        },
        "status": status,
    });
    merge(&mut wire["spec"], &spec);
    serde_json::from_value(wire).expect("a CronJob")
}

fn job(name: &str, condition: &str, minute: u32) -> Arc<Job> {
    let end = format!("2026-01-01T10:{minute:02}:30Z");
    let conditions = match condition {
        "" => json!([]),
        kind => json!([{"type": kind, "status": "True", "lastTransitionTime": end}]),
    };
    let wire = json!({
        "metadata": {"name": name, "namespace": "n", "uid": name},
        "status": {"startTime": format!("2026-01-01T10:{minute:02}:00Z"), "conditions": conditions,
            "completionTime": if condition == "Complete" { json!(end) } else { Value::Null }},
    });
    Arc::new(serde_json::from_value(wire).expect("a Job"))
}

fn active(names: &[&str]) -> Value {
    names.iter().map(|name| json!({"name": name, "uid": name, "namespace": "n"})).collect()
}

fn planned(cron: &CronJob, jobs: &[Arc<Job>], gone: &[&str], now: &str) -> Plan {
    let gone: HashSet<String> = gone.iter().map(|uid| (*uid).to_owned()).collect();
    plan(&Observed { cron, jobs, gone: &gone, now: at(now) })
}

fn reasons(plan: &Plan) -> Vec<&str> {
    plan.told.iter().map(|told| told.reason).collect()
}

#[test]
fn starts_what_is_due_unless_something_is_against_it() {
    for (why, spec, status, now, start, next, told) in [
        ("not yet", json!({}), json!({}), "2026-01-01T10:59:59Z", None, Some(1), vec![]),
        ("due", json!({}), json!({}), "2026-01-01T11:00:00Z", Some("11:00"), Some(3600), vec![]),
        ("a little late", json!({}), json!({}), "2026-01-01T11:20:00Z", Some("11:00"), Some(2400), vec![]),
        ("the latest of several", json!({}), json!({}), "2026-01-01T14:20:00Z", Some("14:00"), Some(2400), vec![]),
        (
            "started before",
            json!({}),
            json!({"lastScheduleTime": "2026-01-01T11:00:00Z"}),
            "2026-01-01T11:20:00Z",
            None,
            Some(2400),
            vec![],
        ),
        (
            "at work by its name",
            json!({}),
            json!({"active": active(&["c-29454420"])}),
            "2026-01-01T11:00:00Z",
            None,
            Some(3600),
            vec![],
        ),
        (
            "many missed",
            json!({}),
            json!({}),
            "2026-01-06T10:20:00Z",
            Some("10:00"),
            Some(2400),
            vec!["TooManyMissedTimes"],
        ),
        (
            "within its deadline",
            json!({"startingDeadlineSeconds": 1200}),
            json!({}),
            "2026-01-06T10:20:00Z",
            None,
            Some(2400),
            vec![],
        ),
        (
            "too late",
            json!({"startingDeadlineSeconds": 60}),
            json!({}),
            "2026-01-01T11:20:00Z",
            None,
            Some(2400),
            vec![],
        ),
        (
            "in time",
            json!({"startingDeadlineSeconds": 60}),
            json!({}),
            "2026-01-01T11:00:30Z",
            Some("11:00"),
            Some(3570),
            vec![],
        ),
        ("suspended", json!({"suspend": true}), json!({}), "2026-01-01T11:20:00Z", None, None, vec![]),
        (
            "another is at work",
            json!({"concurrencyPolicy": "Forbid"}),
            json!({"active": active(&["x"])}),
            "2026-01-01T11:20:00Z",
            None,
            Some(2400),
            vec!["JobAlreadyActive"],
        ),
        (
            "another may be",
            json!({}),
            json!({"active": active(&["x"])}),
            "2026-01-01T11:20:00Z",
            Some("11:00"),
            Some(2400),
            vec![],
        ),
        (
            "never",
            json!({"schedule": "0 0 31 2 *"}),
            json!({}),
            "2026-01-01T11:20:00Z",
            None,
            None,
            vec!["InvalidSchedule"],
        ),
        (
            "no schedule",
            json!({"schedule": "often"}),
            json!({}),
            "2026-01-01T11:20:00Z",
            None,
            None,
            vec!["UnparseableSchedule"],
        ),
        (
            "no zone",
            json!({"timeZone": "Mars/Base"}),
            json!({}),
            "2026-01-01T11:20:00Z",
            None,
            None,
            vec!["UnknownTimeZone"],
        ),
        (
            "a zone in the schedule",
            json!({"schedule": "TZ=Asia/Tokyo 30 20 * * *"}),
            json!({}),
            "2026-01-01T11:30:00Z",
            Some("11:30"),
            Some(24 * 3600),
            vec!["UnsupportedSchedule"],
        ),
        (
            "in its zone",
            json!({"timeZone": "Asia/Kathmandu", "schedule": "0 17 * * *"}),
            json!({}),
            "2026-01-01T11:15:00Z",
            Some("11:15"),
            Some(24 * 3600),
            vec![],
        ),
    ] {
        let status = if status == json!({}) { Value::Null } else { status };
        let plan = planned(&cron(spec, status.clone()), &[], &[], now);
        let started = plan.start.as_ref().map(|start| start.at.strftime("%H:%M").to_string());
        assert_eq!(started.as_deref(), start, "{why}");
        // A tenth of a second later than due, so that it is not missed.
        let next = next.map(|seconds: u64| std::time::Duration::from_millis(seconds * 1000 + 100));
        assert_eq!((plan.next, reasons(&plan)), (next, told), "{why}");
    }
    let mut going = cron(json!({}), Value::Null);
    going.metadata.deletion_timestamp = going.metadata.creation_timestamp.clone();
    let plan = planned(&going, &[], &[], "2026-01-01T11:20:00Z");
    assert_eq!((plan.start, plan.next), (None, None));
}

#[test]
fn what_may_not_be_started_any_more_is_passed_over() {
    for (deadline, starts) in [(0, false), (1, true)] {
        let cron = cron(json!({"startingDeadlineSeconds": deadline}), Value::Null);
        let plan = planned(&cron, &[], &[], "2026-01-01T11:00:00.5Z");
        assert_eq!((plan.start.is_some(), plan.told), (starts, vec![]));
    }
}

#[test]
fn replaces_what_is_at_work() {
    let busy = cron(json!({"concurrencyPolicy": "Replace"}), json!({"active": active(&["x", "y"])}));
    let jobs = [job("x", "", 0), job("y", "", 1)];
    let start = planned(&busy, &jobs, &[], "2026-01-01T11:00:00Z").start.expect("it is due");
    let names: Vec<_> = start.replaces.iter().filter_map(|job| job.name.as_deref()).collect();
    assert_eq!(names, ["x", "y"]);
}

#[test]
fn takes_up_a_job_of_its_own_that_its_status_does_not_know() {
    let made = |name: &str, moment: &str, deleting: bool| {
        let mut job = (*job(name, "", 0)).clone();
        if !moment.is_empty() {
            job.metadata.annotations = Some([(super::SCHEDULED.to_owned(), moment.to_owned())].into());
        }
        job.metadata.deletion_timestamp =
            deleting.then(|| serde_json::from_value(json!("2026-01-01T11:30:00Z")).unwrap());
        Arc::new(job)
    };
    let last = json!({"lastScheduleTime": "2026-01-01T10:00:00Z"});
    let of_eleven = "2026-01-01T12:00:00+01:00";
    for (why, policy, status, job, active, start, schedule) in [
        ("forgotten", "Forbid", &last, made("c-29454420", of_eleven, false), true, false, "11:00"),
        ("of the first moment", "Forbid", &Value::Null, made("c-29454420", of_eleven, false), true, false, "11:00"),
        ("to be replaced", "Replace", &last, made("c-29454420", of_eleven, false), true, true, "11:00"),
        ("made by hand", "Forbid", &last, made("c-29454420", "", false), false, true, "10:00"),
        ("under another name", "Forbid", &last, made("mine", of_eleven, false), false, true, "10:00"),
        ("going", "Forbid", &last, made("c-29454420", of_eleven, true), false, true, "10:00"),
        (
            "replaced long ago",
            "Replace",
            &json!({"lastScheduleTime": "2026-01-01T11:00:00Z"}),
            made("c-29454420", of_eleven, false),
            false,
            true,
            "11:00",
        ),
    ] {
        let cron = cron(json!({"concurrencyPolicy": policy}), status.clone());
        let plan = planned(&cron, &[job], &[], "2026-01-01T12:00:00Z");
        assert!(reasons(&plan).contains(&"UnexpectedJob"), "{why}");
        assert_eq!((plan.status.active.is_some(), plan.start.is_some()), (active, start), "{why}");
        let replaces = plan.start.map_or(0, |start| start.replaces.len());
        assert_eq!(replaces, usize::from(active && start), "{why}");
        let known = plan.status.last_schedule_time.map(|time| time.0.strftime("%H:%M").to_string());
        assert_eq!(known.as_deref(), Some(schedule), "{why}");
    }
}

#[test]
fn the_moment_of_a_finished_job_is_over_although_nothing_is_kept_of_it() {
    let made = |name: &str, kind: &str, moment: &str, deleting: bool| {
        let mut job = (*job(name, kind, 0)).clone();
        job.metadata.annotations = Some([(super::SCHEDULED.to_owned(), moment.to_owned())].into());
        job.metadata.deletion_timestamp =
            deleting.then(|| serde_json::from_value(json!("2026-01-01T11:30:00Z")).unwrap());
        Arc::new(job)
    };
    let of_eleven = |kind: &str, deleting: bool| made("c-29454420", kind, "2026-01-01T11:00:00Z", deleting);
    let of_twelve = |kind: &str| made("c-29454480", kind, "2026-01-01T12:00:00Z", false);
    let last = json!({"lastScheduleTime": "2026-01-01T10:00:00Z"});
    for (why, jobs, now, schedule, at_work) in [
        ("it succeeded", vec![of_eleven("Complete", false)], "11:20", "11:00", 0),
        ("it failed", vec![of_eleven("Failed", false)], "11:20", "11:00", 0),
        ("it goes already", vec![of_eleven("Complete", true)], "11:20", "11:00", 0),
        ("a later one", vec![of_twelve("Complete"), of_eleven("", false)], "12:20", "12:00", 1),
        ("an earlier one", vec![of_eleven("", false), of_twelve("Complete")], "12:20", "12:00", 1),
    ] {
        let spec = json!({"successfulJobsHistoryLimit": 0, "failedJobsHistoryLimit": 0});
        let plan = planned(&cron(spec, last.clone()), &jobs, &[], &format!("2026-01-01T{now}:00Z"));
        assert_eq!(plan.start, None, "{why}");
        let known = plan.status.last_schedule_time.map(|time| time.0.strftime("%H:%M").to_string());
        assert_eq!(known.as_deref(), Some(schedule), "{why}");
        assert_eq!(plan.status.active.map_or(0, |active| active.len()), at_work, "{why}");
    }
}

#[test]
fn follows_what_becomes_of_its_jobs() {
    let status = json!({"active": active(&["done", "bad", "runs", "lost", "unseen"]), "lastSuccessfulTime": "2026-01-01T10:00:00Z"});
    let jobs = [job("done", "Complete", 5), job("bad", "Failed", 6), job("runs", "", 7), job("surprise", "", 8)];
    let plan = planned(&cron(json!({"suspend": true}), status), &jobs, &["lost"], "2026-01-01T10:10:00Z");
    let left: Vec<_> = plan.status.active.iter().flatten().filter_map(|job| job.name.as_deref()).collect();
    assert_eq!(left, ["runs", "unseen"]);
    assert_eq!(plan.status.last_successful_time.map(|time| time.0), Some(at("2026-01-01T10:05:30Z")));
    let told: Vec<_> = plan.told.iter().map(|told| (told.reason, told.message.as_str())).collect();
    let expected = [
        ("SawCompletedJob", "Saw completed job: done, condition: Complete"),
        ("SawCompletedJob", "Saw completed job: bad, condition: Failed"),
        ("UnexpectedJob", "Saw a job that the controller did not create or forgot: surprise"),
        ("MissingJob", "Active job went missing: lost"),
    ];
    assert_eq!(told, expected);
    // Nothing is told twice, and an earlier success changes nothing.
    let status = json!({"lastSuccessfulTime": "2026-01-01T10:30:00Z"});
    let plan = planned(&cron(json!({"suspend": true}), status), &jobs[..2], &[], "2026-01-01T10:10:00Z");
    assert_eq!((reasons(&plan).len(), plan.status.active), (0, None));
    assert_eq!(plan.status.last_successful_time.map(|time| time.0), Some(at("2026-01-01T10:30:00Z")));
}

#[test]
fn keeps_a_history_of_each_kind() {
    let jobs = [
        job("s3", "Complete", 3),
        job("s1", "Complete", 1),
        job("s2", "Complete", 2),
        job("f2", "Failed", 5),
        job("f1", "Failed", 4),
        job("runs", "", 0),
    ];
    for (good, bad, expected) in [
        (json!(3), json!(1), vec!["f1"]),
        (json!(1), json!(0), vec!["s1", "s2", "f1", "f2"]),
        (json!(9), json!(9), vec![]),
        (Value::Null, Value::Null, vec![]),
    ] {
        let spec = json!({"suspend": true, "successfulJobsHistoryLimit": good, "failedJobsHistoryLimit": bad});
        let plan = planned(&cron(spec, Value::Null), &jobs, &[], "2026-01-01T10:10:00Z");
        let names: Vec<_> = plan.forget.iter().filter_map(|job| job.metadata.name.as_deref()).collect();
        assert_eq!(names, expected);
    }
}

#[test]
fn a_job_says_which_moment_it_is_for() {
    let cron = cron(
        json!({"timeZone": "Europe/Berlin", "jobTemplate": {"metadata": {"annotations": {"x": "y"}}}}),
        Value::Null,
    );
    let made = job_of(&cron, "c-29454420", at("2026-01-01T11:00:00Z"));
    let meta = &made["metadata"];
    assert_eq!((&meta["name"], &meta["labels"]), (&json!("c-29454420"), &json!({"a": "b"})));
    let expected = json!({"x": "y", "batch.kubernetes.io/cronjob-scheduled-timestamp": "2026-01-01T12:00:00+01:00"});
    assert_eq!(meta["annotations"], expected);
    assert_eq!(
        (&meta["ownerReferences"][0]["uid"], &meta["ownerReferences"][0]["controller"]),
        (&json!("cron"), &json!(true))
    );
    assert_eq!(super::plan::job_name(&cron, at("2026-01-01T11:00:59Z")), "c-29454420");
}

proptest! {
    /// However long nobody looked: what is due is a moment of the schedule, in the past, and the latest.
    #[test]
    fn what_is_due_is_the_latest_moment(
        schedule in prop::sample::select(vec!["* * * * *", "*/7 3-5 * * *", "0 0 1 * *", "30 6-16/4 * * 1-5", "@hourly", "@weekly", "59 23 31 * *"]),
        zone in prop::sample::select(vec!["Etc/UTC", "America/New_York", "Asia/Kathmandu"]),
        passed in 0..40_000_000_i64,
    ) {
        let cron = cron(json!({"schedule": schedule, "timeZone": zone}), Value::Null);
        let schedule = due::schedule(&cron).expect("a schedule");
        let now = at("2026-01-01T10:00:00Z").checked_add(jiff::SignedDuration::from_secs(passed)).expect("a time");
        let status = Default::default();
        let due = due::due(&cron, &status, &schedule, now, true).expect("it has moments");
        match due.latest {
            Some(latest) => prop_assert!(latest <= now && schedule.next(latest).is_some_and(|next| next > now)),
            // Where moments are far apart, the rough count may end behind the last one, as the reference's does.
            None => prop_assert!(due.missed != Missed::None || schedule.next(at("2026-01-01T10:00:00Z")).is_some_and(|next| next > now)),
        }
        let wait = due::wait(&cron, &status, &schedule, now).expect("it goes on");
        let wakes = now.checked_add(jiff::SignedDuration::try_from(wait).expect("a year at most")).expect("a time");
        prop_assert!(wakes > now);
    }
}
