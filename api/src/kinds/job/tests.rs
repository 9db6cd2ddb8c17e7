//! What is refused, allowed and made of Jobs and CronJobs, in the words of the reference.

use serde_json::{Value, json};

use crate::kinds::{FieldErrors, Kind, by_resource};

fn row(resource: &str) -> &'static Kind {
    by_resource("batch", resource).expect("a row")
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

/// A new Job as it is checked, with changes to its specification.
fn job(name: &str, spec: Value) -> Value {
    let mut job = json!({
        "metadata": {"name": name, "namespace": "n", "uid": "u"},
        "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [
            {"name": "c", "image": "x", "terminationMessagePolicy": "File", "imagePullPolicy": "Always"}]}}},
    });
    merge(&mut job["spec"], &spec);
    let strategy = row("jobs").strategy;
    strategy.default(&mut job);
    strategy.prepare_create(&mut job);
    job
}

fn refused(name: &str, spec: Value) -> Vec<String> {
    let mut errors = FieldErrors::new();
    row("jobs").strategy.validate(&job(name, spec), &mut errors);
    errors.iter().map(ToString::to_string).collect()
}

/// Errors of an update of the Job, or of its status.
fn updated(old: &Value, change: &Value, status: bool) -> Vec<String> {
    let strategy = row("jobs").strategy;
    let mut new = old.clone();
    merge(&mut new, change);
    let mut errors = FieldErrors::new();
    if status {
        strategy.prepare_status_update(&mut new, old);
        strategy.validate_status_update(&new, old, &mut errors);
    } else {
        strategy.prepare_update(&mut new, old);
        strategy.validate_update(&new, old, &mut errors);
    }
    errors.iter().map(ToString::to_string).collect()
}

#[test]
fn what_a_job_lacks_is_filled_in() {
    let made = job("j", json!({}));
    for (field, expected) in [
        ("completions", json!(1)),
        ("parallelism", json!(1)),
        ("backoffLimit", json!(6)),
        ("completionMode", json!("NonIndexed")),
        ("suspend", json!(false)),
        ("podReplacementPolicy", json!("TerminatingOrFailed")),
        ("manualSelector", json!(false)),
    ] {
        assert_eq!(made["spec"][field], expected, "{field}");
    }
    assert_eq!(job("j", json!({"parallelism": 2}))["spec"]["completions"], Value::Null);
    let policy = json!({"rules": [{"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]}]});
    let made = job("j", json!({"podFailurePolicy": policy, "backoffLimitPerIndex": 1, "scheduling": {"x": 1}}));
    assert_eq!(
        (&made["spec"]["podReplacementPolicy"], &made["spec"]["backoffLimit"]),
        (&json!("Failed"), &json!(i32::MAX))
    );
    assert_eq!(made["spec"]["podFailurePolicy"]["rules"][0]["onPodConditions"][0]["status"], "True");
    assert_eq!(made["spec"]["scheduling"], Value::Null, "a feature that is off");
    // Labels of one's own are kept, and refused where they contradict.
    let labels = json!({"template": {"metadata": {"labels": {"job-name": "other", "a": "b"}}}});
    assert_eq!(job("j", labels)["metadata"]["labels"]["a"], "b");
    let made = job("j", json!({"manualSelector": true, "selector": {"matchLabels": {"a": "b"}}}));
    assert_eq!(made["spec"]["template"]["metadata"]["labels"], Value::Null);
}

/// Where a generated name is taken, the next one is tried of the same object.
#[test]
fn a_job_that_gets_another_name_knows_its_pods_by_that() {
    let mut made = job("j-1", json!({}));
    made["metadata"]["name"] = "j-2".into();
    row("jobs").strategy.renamed(&mut made, "j-1");
    for labels in [&made["metadata"]["labels"], &made["spec"]["template"]["metadata"]["labels"]] {
        let of = |label: &str| labels[label].as_str().unwrap_or_default();
        assert_eq!((of("job-name"), of("batch.kubernetes.io/job-name")), ("j-2", "j-2"), "{labels}");
    }
    let mut errors = FieldErrors::new();
    row("jobs").strategy.validate(&made, &mut errors);
    assert!(errors.iter().next().is_none(), "{made}");
}

#[test]
fn what_is_no_job_is_refused() {
    let failure = |rule: Value| json!({"podFailurePolicy": {"rules": [rule]}});
    let success =
        |rule: Value| json!({"completionMode": "Indexed", "completions": 5, "successPolicy": {"rules": [rule]}});
    for (spec, expected) in [
        (json!({}), vec![]),
        (
            json!({"parallelism": -1, "completions": -1, "activeDeadlineSeconds": -1, "backoffLimit": -1, "ttlSecondsAfterFinished": -1}),
            ["parallelism", "completions", "activeDeadlineSeconds", "backoffLimit", "ttlSecondsAfterFinished"]
                .map(|field| format!("spec.{field}: Invalid value: -1: must be greater than or equal to 0"))
                .to_vec(),
        ),
        (
            json!({"template": {"spec": {"restartPolicy": "Always"}}}),
            vec!["spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \"Never\"".into()],
        ),
        (
            json!({"completionMode": "Indexed", "completions": null, "parallelism": 100_001}),
            vec![
                "spec.completions: Required value: when completion mode is Indexed".into(),
                "spec.parallelism: Invalid value: 100001: must be less than or equal to 100000 when completion mode is Indexed".into(),
            ],
        ),
        (
            json!({"backoffLimitPerIndex": 1}),
            vec!["spec.backoffLimitPerIndex: Invalid value: 1: requires indexed completion mode".into()],
        ),
        (
            json!({"completionMode": "Indexed", "completions": 2, "maxFailedIndexes": 3}),
            vec![
                "spec.backoffLimitPerIndex: Required value: when maxFailedIndexes is specified".into(),
                "spec.maxFailedIndexes: Invalid value: 3: must be less than or equal to completions".into(),
            ],
        ),
        (
            json!({"completionMode": "Indexed", "completions": 100_001, "parallelism": 10_001, "backoffLimitPerIndex": 1}),
            vec![
                "spec.maxFailedIndexes: Required value: must be specified when completions is above 100000".into(),
                "spec.parallelism: Invalid value: 10001: must be less than or equal to 10000 when completions are above 100000 and used with backoff limit per index".into(),
            ],
        ),
        (
            json!({"managedBy": "me"}),
            vec!["spec.managedBy: Invalid value: \"me\": must be a domain-prefixed path (such as \"acme.io/foo\")".into()],
        ),
        (
            json!({"managedBy": format!("a.b/{}", "x".repeat(60))}),
            vec!["spec.managedBy: Too long: may not be more than 63 bytes".into()],
        ),
        (json!({"managedBy": "acme.io/queue"}), vec![]),
        (
            json!({"podReplacementPolicy": "Never"}),
            vec!["spec.podReplacementPolicy: Unsupported value: \"Never\": supported values: \"Failed\", \"TerminatingOrFailed\"".into()],
        ),
        (
            failure(json!({"action": "FailIndex", "onExitCodes": {"operator": "In", "values": [0, 2, 1, 1], "containerName": "x"}})),
            vec![
                "spec.podFailurePolicy.rules[0].action: Invalid value: \"FailIndex\": requires the backoffLimitPerIndex to be set".into(),
                "spec.podFailurePolicy.rules[0].onExitCodes.containerName: Invalid value: \"x\": must be one of the container or initContainer names in the pod template".into(),
                "spec.podFailurePolicy.rules[0].onExitCodes.values[0]: Invalid value: 0: must not be 0 for the In operator".into(),
                "spec.podFailurePolicy.rules[0].onExitCodes.values[3]: Duplicate value: 1".into(),
                "spec.podFailurePolicy.rules[0].onExitCodes.values: Invalid value: [0,2,1,1]: must be ordered".into(),
            ],
        ),
        (
            failure(json!({})),
            vec![
                "spec.podFailurePolicy.rules[0].action: Required value: valid values: [\"Count\" \"FailIndex\" \"FailJob\" \"Ignore\"]".into(),
                "spec.podFailurePolicy.rules[0]: Invalid value: specifying one of OnExitCodes and OnPodConditions is required".into(),
            ],
        ),
        (
            failure(json!({"action": "Count", "onExitCodes": {"operator": "Eq"}, "onPodConditions": [{"type": "a b", "status": "x"}]})),
            vec![
                "spec.podFailurePolicy.rules[0].onExitCodes.operator: Unsupported value: \"Eq\": supported values: \"In\", \"NotIn\"".into(),
                "spec.podFailurePolicy.rules[0].onExitCodes.values: Invalid value: null: at least one value is required".into(),
                format!("spec.podFailurePolicy.rules[0].onPodConditions[0].type: Invalid value: \"a b\": {}", crate::meta::names::qualified_name("a b")[0]),
                "spec.podFailurePolicy.rules[0].onPodConditions[0].status: Unsupported value: \"x\": supported values: \"False\", \"True\", \"Unknown\"".into(),
                "spec.podFailurePolicy.rules[0]: Invalid value: specifying both OnExitCodes and OnPodConditions is not supported".into(),
            ],
        ),
        (
            json!({"podFailurePolicy": {"rules": []}, "template": {"spec": {"restartPolicy": "OnFailure"}}}),
            vec!["spec.template.spec.restartPolicy: Invalid value: \"OnFailure\": only \"Never\" is supported when podFailurePolicy is specified".into()],
        ),
        (
            json!({"successPolicy": {"rules": [{"succeededCount": 1}]}}),
            vec!["spec.successPolicy: Invalid value: {\"Rules\":[{\"SucceededIndexes\":null,\"SucceededCount\":1}]}: requires indexed completion mode".into()],
        ),
        (
            success(json!({})),
            vec!["spec.successPolicy.rules[0]: Required value: at least one of succeededCount or succeededIndexes must be specified".into()],
        ),
        (
            success(json!({"succeededIndexes": "0-2,2", "succeededCount": 6})),
            vec![
                "spec.successPolicy.rules[0].succeededIndexes: Invalid value: \"0-2,2\": error parsing succeededIndexes: non-increasing order, previous: 2, current: 2".into(),
                "spec.successPolicy.rules[0].succeededCount: Invalid value: 6: must be less than or equal to 5 (the number of specified completions)".into(),
                "spec.successPolicy.rules[0].succeededCount: Invalid value: 6: must be less than or equal to 0 (the number of indexes in the specified succeededIndexes field)".into(),
            ],
        ),
        (success(json!({"succeededIndexes": "0-2,4", "succeededCount": 4})), vec![]),
        (
            json!({"template": {"metadata": {"labels": {"job-name": "other"}}}}),
            vec!["spec.template.metadata.labels[job-name]: Invalid value: {\"batch.kubernetes.io/controller-uid\":\"u\",\"batch.kubernetes.io/job-name\":\"j\",\"controller-uid\":\"u\",\"job-name\":\"other\"}: must be 'j'".into()],
        ),
        (
            json!({"selector": {"matchLabels": {"a": "b"}}}),
            vec![
                "spec.selector: Invalid value: {\"matchLabels\":{\"a\":\"b\",\"batch.kubernetes.io/controller-uid\":\"u\"}}: `selector` not auto-generated".into(),
                "spec.template.metadata.labels: Invalid value: {\"batch.kubernetes.io/controller-uid\":\"u\",\"batch.kubernetes.io/job-name\":\"j\",\"controller-uid\":\"u\",\"job-name\":\"j\"}: `selector` does not match template `labels`".into(),
            ],
        ),
        (
            json!({"manualSelector": true}),
            vec![
                "spec.selector: Required value".into(),
                "spec.template.metadata.labels: Invalid value: null: `selector` does not match template `labels`".into(),
            ],
        ),
    ] {
        let expected: Vec<String> = expected;
        assert_eq!(refused("j", spec.clone()), expected, "{spec}");
    }
    let long = "a".repeat(62);
    let expected = format!(
        "metadata.name: Invalid value: \"{long}\": will not able to create pod with invalid DNS label: {long}-9"
    );
    assert_eq!(refused(&long, json!({"completionMode": "Indexed", "completions": 10})), [expected]);
    assert_eq!(refused(&long, json!({})), Vec::<String>::new());
}

#[test]
fn what_was_said_of_a_job_stays_but_for_what_may_change() {
    let plain = job("j", json!({"completions": 3}));
    let indexed = job("j", json!({"completionMode": "Indexed", "completions": 3, "parallelism": 3}));
    for (old, change, expected) in [
        (
            &plain,
            json!({"spec": {"parallelism": 9, "suspend": true, "backoffLimit": 1, "activeDeadlineSeconds": 5, "ttlSecondsAfterFinished": 5}}),
            vec![],
        ),
        (&plain, json!({"spec": {"completions": 4}}), vec!["spec.completions: Invalid value: 4: field is immutable"]),
        (
            &plain,
            json!({"spec": {"completionMode": "Indexed"}}),
            vec!["spec.completionMode: Invalid value: \"Indexed\": field is immutable"],
        ),
        (
            &plain,
            json!({"spec": {"managedBy": "a.b/c"}}),
            vec!["spec.managedBy: Invalid value: \"a.b/c\": field is immutable"],
        ),
        (
            &plain,
            json!({"spec": {"podFailurePolicy": {"rules": []}, "podReplacementPolicy": "Failed"}}),
            vec!["spec.podFailurePolicy: Invalid value: {\"Rules\":[]}: field is immutable"],
        ),
        (
            &plain,
            json!({"spec": {"selector": {"matchLabels": {"job-name": "j"}}}}),
            vec![
                "spec.selector: Invalid value: {\"matchLabels\":{\"batch.kubernetes.io/controller-uid\":\"u\",\"job-name\":\"j\"}}: field is immutable",
            ],
        ),
        (&indexed, json!({"spec": {"completions": 4, "parallelism": 4}}), vec![]),
        (
            &indexed,
            json!({"spec": {"completions": 4}}),
            vec!["spec.completions: Invalid value: 4: can only be modified in tandem with spec.parallelism"],
        ),
        (
            &indexed,
            json!({"spec": {"successPolicy": {"rules": [{"succeededCount": 1}]}}}),
            vec![
                "spec.successPolicy: Invalid value: {\"Rules\":[{\"SucceededIndexes\":null,\"SucceededCount\":1}]}: field is immutable",
            ],
        ),
        (
            &indexed,
            json!({"spec": {"backoffLimitPerIndex": 1}}),
            vec!["spec.backoffLimitPerIndex: Invalid value: 1: field is immutable"],
        ),
    ] {
        assert_eq!(updated(old, &change, false), expected, "{change}");
    }
}

#[test]
fn a_suspended_job_may_get_another_place_and_other_resources() {
    let place = json!({"spec": {"template": {
        "metadata": {"labels": {"x": "y"}, "annotations": {"x": "y"}},
        "spec": {"nodeSelector": {"a": "b"}, "tolerations": [{"key": "k", "operator": "Exists"}],
            "affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}}}}}});
    let resources = json!({"spec": {"template": {"spec": {"containers": [
        {"name": "c", "image": "x", "terminationMessagePolicy": "File", "imagePullPolicy": "Always",
         "terminationMessagePath": "/dev/termination-log", "resources": {"requests": {"cpu": "1"}}}]}}}});
    let image = json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "y"}]}}}});
    let suspended = job("j", json!({"suspend": true}));
    let with = |old: &Value, status: Value| {
        let mut old = old.clone();
        old["status"] = status;
        old
    };
    let told = json!([{"type": "Suspended", "status": "True"}]);
    for (why, old, change, allowed) in [
        ("runs", job("j", json!({})), &place, false),
        ("never ran", suspended.clone(), &place, true),
        ("never ran", suspended.clone(), &resources, true),
        ("another image", suspended.clone(), &image, false),
        ("began", with(&suspended, json!({"startTime": "2026-01-01T00:00:00Z"})), &place, false),
        (
            "stands still",
            with(&suspended, json!({"startTime": "2026-01-01T00:00:00Z", "conditions": told})),
            &place,
            true,
        ),
        ("has pods", with(&suspended, json!({"conditions": told, "active": 1})), &resources, false),
    ] {
        let errors = updated(&old, change, false);
        let immutable =
            errors.iter().any(|error| error.starts_with("spec.template") && error.ends_with("field is immutable"));
        assert_eq!(!immutable, allowed, "{why}: {errors:?}");
    }
}

#[test]
fn a_status_keeps_to_the_rules_of_jobs() {
    let condition = |kinds: &[&str]| -> Value {
        kinds.iter().map(|kind| json!({"type": kind, "status": "True"})).collect::<Vec<_>>().into()
    };
    let plain = |status: Value| {
        let mut job = job("j", json!({"completions": 3}));
        job["status"] = status;
        job
    };
    let start = "2026-01-01T00:00:00Z";
    let done = json!({"startTime": start, "completionTime": start, "conditions": condition(&["SuccessCriteriaMet", "Complete"])});
    for (old, status, expected) in [
        (
            json!({}),
            json!({"active": 2, "ready": 1, "startTime": start, "uncountedTerminatedPods": {"failed": ["a"]}}),
            vec![],
        ),
        (json!({}), done.clone(), vec![]),
        (
            json!({}),
            json!({"active": -1, "ready": -2}),
            vec![
                "status.active: Invalid value: -1: must be greater than or equal to 0",
                "status.ready: Invalid value: -2: must be greater than or equal to 0",
            ],
        ),
        (
            json!({}),
            json!({"ready": 1}),
            vec!["status.ready: Invalid value: 1: cannot set more ready pods than active"],
        ),
        (
            json!({"failed": 2, "succeeded": 1}),
            json!({"failed": 1, "succeeded": 0}),
            vec![
                "status.failed: Invalid value: 1: cannot decrease the failed counter",
                "status.succeeded: Invalid value: 0: cannot decrease the succeeded counter",
            ],
        ),
        (
            json!({}),
            json!({"uncountedTerminatedPods": {"failed": ["a", ""], "succeeded": ["a"]}}),
            vec![
                "status.uncountedTerminatedPods.failed[0]: Duplicate value: \"a\"",
                "status.uncountedTerminatedPods.failed[1]: Invalid value: \"\": must not be empty",
            ],
        ),
        (
            json!({"startTime": start}),
            json!({"startTime": "2026-01-01T00:00:01Z"}),
            vec![
                "status.startTime: Invalid value: \"2026-01-01T00:00:01Z\": field is immutable for unsuspended job once set",
            ],
        ),
        (
            done.clone(),
            json!({"conditions": []}),
            vec![
                "status.completionTime: Invalid value: \"2026-01-01T00:00:00Z\": cannot set completionTime when there is no Complete=True condition",
                "status.conditions: Invalid value: cannot disable the terminal Complete=True condition",
                "status.conditions: Invalid value: cannot disable the SuccessCriteriaMet=True condition",
            ],
        ),
        (
            done,
            json!({"completionTime": "2026-01-01T00:00:01Z"}),
            vec!["status.completionTime: Invalid value: \"2026-01-01T00:00:01Z\": field is immutable"],
        ),
        (
            json!({}),
            json!({"conditions": condition(&["Failed"]), "active": 1}),
            vec![
                "status.conditions: Invalid value: cannot set Failed=True condition without the FailureTarget=true condition",
                "status.active: Invalid value: 1: active>0 is invalid for finished job",
                "status.startTime: Required value: startTime is required for finished job",
            ],
        ),
        (
            json!({}),
            json!({"conditions": condition(&["Complete"]), "startTime": start, "terminating": 1}),
            vec![
                "status.completionTime: Required value: completionTime is required for Complete jobs",
                "status.conditions: Invalid value: cannot set Complete=True condition without the SuccessCriteriaMet=true condition",
                "status.terminating: Invalid value: 1: terminating>0 is invalid for finished job",
            ],
        ),
        (
            json!({}),
            json!({"conditions": condition(&["FailureTarget", "Failed"]), "startTime": start, "uncountedTerminatedPods": {"failed": ["a"]}}),
            vec![
                "status.uncountedTerminatedPods: Invalid value: {\"Succeeded\":null,\"Failed\":[\"a\"]}: must be empty for finished job",
            ],
        ),
        (
            json!({}),
            json!({"conditions": condition(&["SuccessCriteriaMet", "FailureTarget"])}),
            vec![
                "status.conditions: Invalid value: cannot set SuccessCriteriaMet=True and FailureTarget=true conditions",
            ],
        ),
        (
            json!({}),
            json!({"completedIndexes": "0"}),
            vec![
                "status.completedIndexes: Invalid value: \"0\": cannot set non-empty completedIndexes when non-indexed completion mode",
            ],
        ),
        (
            json!({}),
            json!({"failedIndexes": ""}),
            vec![
                "status.failedIndexes: Invalid value: \"\": cannot set non-null failedIndexes when backoffLimitPerIndex is null",
            ],
        ),
    ] {
        assert_eq!(updated(&plain(old), &json!({"status": status}), true), expected, "{status}");
    }
    let indexed =
        job("j", json!({"completionMode": "Indexed", "completions": 3, "parallelism": 3, "backoffLimitPerIndex": 1}));
    for (status, expected) in [
        (json!({"completedIndexes": "0,2", "failedIndexes": "1"}), ""),
        (
            json!({"completedIndexes": "3"}),
            "status.completedIndexes: Invalid value: \"3\": error parsing completedIndexes: too large index: \"3\"",
        ),
        (
            json!({"completedIndexes": "x"}),
            "status.completedIndexes: Invalid value: \"x\": error parsing completedIndexes: cannot convert string to integer for index: \"x\"",
        ),
        (
            json!({"completedIndexes": "0-1-2"}),
            "status.completedIndexes: Invalid value: \"0-1-2\": error parsing completedIndexes: the fragment \"0-1-2\" violates the requirement that an index interval can have at most two parts separated by '-'",
        ),
        (
            json!({"completedIndexes": "0-2", "failedIndexes": "1"}),
            "status.failedIndexes: Invalid value: \"1\": failedIndexes and completedIndexes overlap at index: 1",
        ),
    ] {
        assert_eq!(updated(&indexed, &json!({"status": status}), true).join("; "), expected, "{status}");
    }
}

#[test]
fn what_is_no_cron_job_is_refused() {
    let strategy = row("cronjobs").strategy;
    let made = |name: &str, spec: &Value| {
        let mut cron = json!({"metadata": {"name": name, "namespace": "n"}, "spec": {
            "schedule": "* * * * *", "jobTemplate": {"spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [
                {"name": "c", "image": "x", "terminationMessagePolicy": "File", "imagePullPolicy": "Always"}]}}}}}});
        merge(&mut cron["spec"], spec);
        strategy.default(&mut cron);
        strategy.prepare_create(&mut cron);
        cron
    };
    let shown = |errors: &FieldErrors| errors.iter().map(ToString::to_string).collect::<Vec<_>>();
    for (spec, expected) in [
        (json!({}), vec![]),
        (json!({"schedule": "@hourly", "timeZone": "Europe/Berlin"}), vec![]),
        (json!({"schedule": ""}), vec!["spec.schedule: Required value"]),
        (
            json!({"schedule": "TZ=UTC 0 * * * *"}),
            vec![
                "spec.schedule: Invalid value: \"TZ=UTC 0 * * * *\": cannot use TZ or CRON_TZ in schedule, use timeZone field instead",
            ],
        ),
        (json!({"timeZone": ""}), vec!["spec.timeZone: Invalid value: \"\": timeZone must be nil or non-empty string"]),
        (json!({"timeZone": "../x"}), vec!["spec.timeZone: Invalid value: \"../x\": unknown time zone ../x"]),
        (
            json!({"timeZone": "Local"}),
            vec![
                "spec.timeZone: Invalid value: \"Local\": timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones",
            ],
        ),
        (
            json!({"concurrencyPolicy": "X"}),
            vec![
                "spec.concurrencyPolicy: Unsupported value: \"X\": supported values: \"Allow\", \"Forbid\", \"Replace\"",
            ],
        ),
        (
            json!({"startingDeadlineSeconds": -1, "successfulJobsHistoryLimit": -1, "failedJobsHistoryLimit": -1}),
            vec![
                "spec.startingDeadlineSeconds: Invalid value: -1: must be greater than or equal to 0",
                "spec.successfulJobsHistoryLimit: Invalid value: -1: must be greater than or equal to 0",
                "spec.failedJobsHistoryLimit: Invalid value: -1: must be greater than or equal to 0",
            ],
        ),
        (
            json!({"jobTemplate": {"spec": {"manualSelector": true, "selector": {}, "backoffLimit": -1}}}),
            vec![
                "spec.jobTemplate.spec.backoffLimit: Invalid value: -1: must be greater than or equal to 0",
                "spec.jobTemplate.spec.selector: Invalid value: {}: `selector` will be auto-generated",
                "spec.jobTemplate.spec.manualSelector: Unsupported value: true: supported values: \"nil\", \"false\"",
            ],
        ),
    ] {
        let mut errors = FieldErrors::new();
        strategy.validate(&made("c", &spec), &mut errors);
        assert_eq!(shown(&errors), expected, "{spec}");
    }
    let long = "a".repeat(53);
    let (mut errors, cron) = (FieldErrors::new(), made(&long, &json!({})));
    strategy.validate(&cron, &mut errors);
    assert_eq!(
        shown(&errors),
        [format!("metadata.name: Invalid value: \"{long}\": must be no more than 52 characters")]
    );
    // What was there before these rules may stay.
    let mut errors = FieldErrors::new();
    let old = made(&long, &json!({"schedule": "TZ=UTC 0 * * * *", "timeZone": "Old/Zone"}));
    strategy.validate_update(
        &made(&long, &json!({"schedule": "TZ=UTC 1 * * * *", "timeZone": "Old/Zone"})),
        &old,
        &mut errors,
    );
    let expected = "spec.schedule: Invalid value: \"TZ=UTC 1 * * * *\": cannot use both timeZone field and TZ or CRON_TZ in schedule";
    assert_eq!(shown(&errors), [expected]);
}
