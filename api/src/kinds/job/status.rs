//! Checks of a Job's status: what any controller of Jobs has to keep to. Most rules hold only for what an update changes,
//! so that a status which is wrong already can still be put right.

use std::collections::HashSet;

use serde_json::Value;

use super::{condition, indexes, is_indexed};
use crate::kinds::value::Read;
use crate::kinds::{FieldError, FieldErrors, checks};
use crate::meta::field::{Path, Printed};
use crate::meta::text;

const STATUS: Path<'static> = Path::new("status");

fn has(job: &Value, kind: &str) -> bool {
    condition(job, kind) == "True"
}

fn is_finished(job: &Value) -> bool {
    has(job, "Complete") || has(job, "Failed")
}

/// Checks an update of `status`.
pub(super) fn validate_update(job: &Value, old: &Value, errors: &mut FieldErrors) {
    status(job, old, errors);
    let (status, before) = (&job["status"], &old["status"]);
    for kind in ["Failed", "Complete", "FailureTarget"] {
        if has(old, kind) && !has(job, kind) {
            conditions(&format!("cannot disable the terminal {kind}=True condition"), errors);
        }
    }
    let mut decreased = |field: &str| {
        if status[field].int() < before[field].int() {
            let detail = format!("cannot decrease the {field} counter");
            errors.push(FieldError::invalid(STATUS.child(field), status[field].int(), &detail));
        }
    };
    decreased("failed");
    // An indexed Job that has shrunk has fewer.
    let spec = &job["spec"];
    if !is_indexed(spec) || spec["completions"] != spec["parallelism"] {
        decreased("succeeded");
    }
    let (end, start) = (&status["completionTime"], &status["startTime"]);
    if end.is_set() && before["completionTime"].is_set() && *end != before["completionTime"] {
        errors.push(FieldError::invalid(STATUS.child("completionTime"), end, "field is immutable"));
    }
    let resumes = has(old, "Suspended") && condition(job, "Suspended") == "False";
    if !resumes && before["startTime"].is_set() && *start != before["startTime"] && !spec["suspend"].flag() {
        let detail = "field is immutable for unsuspended job once set";
        errors.push(FieldError::invalid(STATUS.child("startTime"), start, detail));
    }
    if has(old, "SuccessCriteriaMet") && !has(job, "SuccessCriteriaMet") {
        conditions("cannot disable the SuccessCriteriaMet=True condition", errors);
    }
    if has(old, "Complete") && !has(old, "SuccessCriteriaMet") && has(job, "SuccessCriteriaMet") {
        conditions("cannot set SuccessCriteriaMet=True for Job already has Complete=true conditions", errors);
    }
}

fn conditions(detail: &str, errors: &mut FieldErrors) {
    errors.push(FieldError::invalid(STATUS.child("conditions"), Printed(""), detail));
}

fn status(job: &Value, old: &Value, errors: &mut FieldErrors) {
    let (spec, status, before) = (&job["spec"], &job["status"], &old["status"]);
    for count in ["active", "succeeded", "failed", "ready", "terminating"] {
        checks::nonnegative(&STATUS.child(count), &status[count], errors);
    }
    uncounted(&status["uncountedTerminatedPods"], errors);
    let changed = |field: &str| status[field] != before[field];
    let count_changed = |field: &str| status[field].int() != before[field].int();
    let flipped = |kind: &str| has(job, kind) != has(old, kind);
    let (complete, failed) = (flipped("Complete"), flipped("Failed"));
    let finished = is_finished(job) != is_finished(old);
    let (start, end) = (&status["startTime"], &status["completionTime"]);

    if (complete || failed) && has(job, "Complete") && has(job, "Failed") {
        conditions("cannot set Complete=True and Failed=true conditions", errors);
    }
    if (complete || flipped("FailureTarget")) && has(job, "Complete") && has(job, "FailureTarget") {
        conditions("cannot set Complete=True and FailureTarget=true conditions", errors);
    }
    if complete || changed("completionTime") {
        let path = STATUS.child("completionTime");
        match (end.is_set(), has(job, "Complete")) {
            (true, false) => {
                let detail = "cannot set completionTime when there is no Complete=True condition";
                errors.push(FieldError::invalid(path, end, detail));
            }
            (false, true) => {
                errors.push(FieldError::required(path, "completionTime is required for Complete jobs"));
            }
            _ => {}
        }
    }
    if (changed("startTime") || changed("completionTime"))
        && let (Some(start), Some(at)) = (start.time(), end.time())
        && at < start
    {
        let detail = "must be equal to or after `startTime`";
        errors.push(FieldError::invalid(STATUS.child("completionTime"), end, detail));
    }
    if (failed || changed("failedIndexes")) && has(job, "Failed") && !has(job, "FailureTarget") {
        conditions("cannot set Failed=True condition without the FailureTarget=true condition", errors);
    }
    let success = flipped("SuccessCriteriaMet");
    if (complete || success) && has(job, "Complete") && !has(job, "SuccessCriteriaMet") {
        conditions("cannot set Complete=True condition without the SuccessCriteriaMet=true condition", errors);
    }
    let active = status["active"].int();
    if (finished || count_changed("active")) && is_finished(job) && active > 0 {
        errors.push(FieldError::invalid(STATUS.child("active"), active, "active>0 is invalid for finished job"));
    }
    let never_runs = spec["suspend"].flag() && spec["completions"].maybe_int() == Some(0);
    if (finished || changed("startTime")) && !never_runs && is_finished(job) && start.is_null() {
        errors.push(FieldError::required(STATUS.child("startTime"), "startTime is required for finished job"));
    }
    let waiting = &status["uncountedTerminatedPods"];
    let empty = |pods: &Value| pods["succeeded"].is_empty() && pods["failed"].is_empty();
    let were = &before["uncountedTerminatedPods"];
    let waiting_changed = waiting != were && !(empty(waiting) && empty(were));
    if (finished || waiting_changed) && is_finished(job) && !empty(waiting) {
        let [succeeded, failed] = ["succeeded", "failed"].map(|field| text::json(&waiting[field]));
        let shown = format!("{{\"Succeeded\":{succeeded},\"Failed\":{failed}}}");
        let path = STATUS.child("uncountedTerminatedPods");
        errors.push(FieldError::invalid(path, Printed(&shown), "must be empty for finished job"));
    }
    index_lists(job, old, errors);
    let terminating = status["terminating"].int();
    if (finished || changed("terminating")) && is_finished(job) && terminating > 0 {
        let detail = "terminating>0 is invalid for finished job";
        errors.push(FieldError::invalid(STATUS.child("terminating"), terminating, detail));
    }
    let ready = status["ready"].int();
    if (changed("ready") || count_changed("active")) && ready > active {
        errors.push(FieldError::invalid(STATUS.child("ready"), ready, "cannot set more ready pods than active"));
    }
    if has(job, "SuccessCriteriaMet") && has(job, "Failed") {
        conditions("cannot set SuccessCriteriaMet=True and Failed=true conditions", errors);
    }
    if has(job, "SuccessCriteriaMet") && has(job, "FailureTarget") {
        conditions("cannot set SuccessCriteriaMet=True and FailureTarget=true conditions", errors);
    }
    if spec["successPolicy"].is_set() && !has(job, "SuccessCriteriaMet") && has(job, "Complete") {
        conditions("cannot set Complete=True for Job with SuccessPolicy unless SuccessCriteriaMet=True", errors);
    }
}

/// Pods that are finished and not counted yet: each once.
fn uncounted(pods: &Value, errors: &mut FieldErrors) {
    let path = STATUS.child("uncountedTerminatedPods");
    let mut seen = HashSet::new();
    for list in ["succeeded", "failed"] {
        let path = path.child(list);
        for (index, uid) in pods[list].items().iter().map(Read::text).enumerate() {
            if uid.is_empty() {
                errors.push(FieldError::invalid(path.index(index), uid, "must not be empty"));
            } else if !seen.insert(uid) {
                errors.push(FieldError::duplicate(path.index(index), uid));
            }
        }
    }
}

/// `completedIndexes` and `failedIndexes`.
fn index_lists(job: &Value, old: &Value, errors: &mut FieldErrors) {
    let (spec, status, before) = (&job["spec"], &job["status"], &old["status"]);
    let (completed, failed) = (&status["completedIndexes"], &status["failedIndexes"]);
    let completed_changed = completed.text() != before["completedIndexes"].text();
    let failed_changed = *failed != before["failedIndexes"];
    let per_index = spec["backoffLimitPerIndex"].is_set();
    let completions = spec["completions"].maybe_int();
    let mut format = |field: &str, list: &Value| {
        let Some(completions) = completions else { return };
        if let Err(why) = indexes::count(list.text(), completions) {
            let detail = format!("error parsing {field}: {why}");
            errors.push(FieldError::invalid(STATUS.child(field), list, &detail));
        }
    };
    if completed_changed {
        format("completedIndexes", completed);
    }
    if failed_changed && per_index && failed.is_set() {
        format("failedIndexes", failed);
    }
    if completed_changed && !completed.is_empty() && !is_indexed(spec) {
        let detail = "cannot set non-empty completedIndexes when non-indexed completion mode";
        errors.push(FieldError::invalid(STATUS.child("completedIndexes"), completed, detail));
    }
    if failed_changed && !per_index && failed.is_set() {
        let detail = "cannot set non-null failedIndexes when backoffLimitPerIndex is null";
        errors.push(FieldError::invalid(STATUS.child("failedIndexes"), failed, detail));
    }
    if (completed_changed || failed_changed)
        && let Some(completions) = completions
        && let Some(index) = indexes::overlap(completed.text(), failed.text(), completions)
    {
        let detail = format!("failedIndexes and completedIndexes overlap at index: {index}");
        errors.push(FieldError::invalid(STATUS.child("failedIndexes"), failed, &detail));
    }
}
