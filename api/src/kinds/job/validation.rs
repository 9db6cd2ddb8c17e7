//! Checks of Jobs, in the words of Kubernetes (`pkg/apis/batch/validation`), in its order.

use serde_json::{Map, Value};

use super::{CONTROLLER_UID, JOB_NAME, LEGACY_CONTROLLER_UID, LEGACY_JOB_NAME, is_indexed, policies, template};
use crate::kinds::value::Read;
use crate::kinds::{FieldError, FieldErrors, checks, pod};
use crate::meta::field::{Path, Printed};
use crate::meta::selector::{LabelSelector, validate_label_selector};
use crate::meta::{names, text};

const SPEC: Path<'static> = Path::new("spec");
/// Of an indexed Job, so that `status.completedIndexes` has a bound.
const PARALLELISM_MAX: i64 = 100_000;
const FAILED_INDEXES_MAX: i64 = 100_000;
/// Beyond so many completions other limits hold.
const COMPLETIONS_SOFT_MAX: i64 = 100_000;
const HIGH_PARALLELISM_MAX: i64 = 10_000;
const HIGH_FAILED_INDEXES_MAX: i64 = 10_000;
const MANAGED_BY_MAX: usize = 63;

/// Checks a new Job.
pub(super) fn create(job: &Value, errors: &mut FieldErrors) {
    generated_selector(job, errors);
    spec_with_selector(&job["spec"], None, errors);
    name_allows_completions(job, errors);
}

/// Checks a changed Job.
pub(super) fn update(job: &Value, old: &Value, errors: &mut FieldErrors) {
    let (spec, before) = (&job["spec"], &old["spec"]);
    spec_with_selector(spec, Some(before), errors);
    completions(spec, before, errors);
    checks::immutable_selector(&SPEC.child("selector"), &spec["selector"], &before["selector"], errors);
    template::update(job, old, errors);
    checks::immutable(&SPEC.child("completionMode"), &spec["completionMode"], &before["completionMode"], errors);
    let fixed = |field: &'static str, print: fn(&Value) -> String, errors: &mut FieldErrors| {
        if spec[field] != before[field] {
            let shown = print(&spec[field]);
            errors.push(FieldError::invalid(SPEC.child(field), Printed(&shown), "field is immutable"));
        }
    };
    fixed("podFailurePolicy", policies::pod_failure_text, errors);
    for field in ["backoffLimitPerIndex", "managedBy"] {
        checks::immutable(&SPEC.child(field), &spec[field], &before[field], errors);
    }
    fixed("successPolicy", policies::success_text, errors);
    name_allows_completions(job, errors);
}

/// Checks `spec.jobTemplate` of a CronJob; `path` is the way to it.
pub(in crate::kinds) fn template_of_jobs(
    template: &Value,
    old: Option<&Value>,
    path: &Path<'_>,
    errors: &mut FieldErrors,
) {
    let (spec, path) = (&template["spec"], path.child("spec"));
    self::spec(spec, old.map(|old| &old["spec"]), &path, errors);
    if spec["selector"].is_set() {
        let shown = checks::selector_text(&spec["selector"]);
        errors.push(FieldError::invalid(path.child("selector"), Printed(&shown), "`selector` will be auto-generated"));
    }
    if spec["manualSelector"].flag() {
        errors.push(FieldError::not_supported(path.child("manualSelector"), true, &["nil", "false"]));
    }
}

/// Of a Job whose selector is made for it: whether labels of the pods, selector and Job agree.
fn generated_selector(job: &Value, errors: &mut FieldErrors) {
    let (spec, metadata) = (&job["spec"], &job["metadata"]);
    if spec["manualSelector"].flag() || spec["selector"].is_null() {
        return;
    }
    if metadata["uid"].is_empty() {
        errors.push(FieldError::required("metadata.uid", ""));
    }
    let labels = &spec["template"]["metadata"]["labels"];
    let (uid, name) = (metadata["uid"].text(), metadata["name"].text());
    let expected = [(LEGACY_CONTROLLER_UID, uid), (LEGACY_JOB_NAME, name), (CONTROLLER_UID, uid), (JOB_NAME, name)];
    for (label, value) in expected {
        let path = SPEC.child("template.metadata.labels");
        let detail = format!("must be '{value}'");
        match labels[label].as_str() {
            // Of one without a name, which is refused for that.
            None if value.is_empty() => {}
            None => errors.push(FieldError::required(path.key(label), &detail)),
            Some(actual) if actual != value => {
                errors.push(FieldError::invalid(path.key(label), Printed(&text::json(labels)), &detail));
            }
            Some(_) => {}
        }
    }
    let own: Map<String, Value> =
        expected.iter().map(|(label, value)| ((*label).to_owned(), (*value).into())).collect();
    let selector = &spec["selector"];
    if LabelSelector::from_object(selector).is_ok_and(|selector| !selector.matches(&Some(&own))) {
        let shown = checks::selector_text(selector);
        errors.push(FieldError::invalid("spec.selector", Printed(&shown), "`selector` not auto-generated"));
    }
}

fn spec_with_selector(spec: &Value, old: Option<&Value>, errors: &mut FieldErrors) {
    self::spec(spec, old, &SPEC, errors);
    let selector = &spec["selector"];
    if selector.is_null() {
        errors.push(FieldError::required(SPEC.child("selector"), ""));
    } else {
        validate_label_selector(selector, &SPEC.child("selector"), errors);
    }
    let labels = &spec["template"]["metadata"]["labels"];
    if LabelSelector::from_object(selector).is_ok_and(|selector| !selector.matches(&labels.as_object())) {
        let detail = "`selector` does not match template `labels`";
        let path = SPEC.child("template.metadata.labels");
        errors.push(FieldError::invalid(path, Printed(&text::json(labels)), detail));
    }
}

/// Checks what a Job's specification and that of a template of Jobs have in common.
fn spec(spec: &Value, old: Option<&Value>, path: &Path<'_>, errors: &mut FieldErrors) {
    for field in [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
    ] {
        checks::nonnegative(&path.child(field), &spec[field], errors);
    }
    if spec["maxFailedIndexes"].is_set() && spec["backoffLimitPerIndex"].is_null() {
        let detail = "when maxFailedIndexes is specified";
        errors.push(FieldError::required(path.child("backoffLimitPerIndex"), detail));
    }
    if let Some(manager) = spec["managedBy"].as_str() {
        managed_by(manager, &path.child("managedBy"), errors);
    }
    let mode = &spec["completionMode"];
    if mode.is_set() {
        checks::supported(&path.child("completionMode"), mode, &["NonIndexed", "Indexed"], errors);
    }
    if is_indexed(spec) {
        indexed(spec, path, errors);
    }
    if mode.is_null() || mode == "NonIndexed" {
        for field in ["backoffLimitPerIndex", "maxFailedIndexes"] {
            if spec[field].is_set() {
                let detail = "requires indexed completion mode";
                errors.push(FieldError::invalid(path.child(field), &spec[field], detail));
            }
        }
    }
    if spec["podFailurePolicy"].is_set() {
        policies::pod_failure(spec, &path.child("podFailurePolicy"), errors);
    }
    if spec["successPolicy"].is_set() {
        let path = path.child("successPolicy");
        if is_indexed(spec) {
            policies::success(spec, &path, errors);
        } else {
            let shown = policies::success_text(&spec["successPolicy"]);
            errors.push(FieldError::invalid(path, Printed(&shown), "requires indexed completion mode"));
        }
    }
    replacement(spec, &path.child("podReplacementPolicy"), errors);
    let template = &spec["template"];
    pod::validate_template(template, old.map(|old| &old["template"]), &path.child("template"), errors);
    restart_policy(spec, &path.child("template.spec.restartPolicy"), errors);
}

fn indexed(spec: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    let completions = spec["completions"].maybe_int();
    let (parallelism, failed) = (spec["parallelism"].int(), spec["maxFailedIndexes"].maybe_int());
    let (parallelism_path, failed_path) = (path.child("parallelism"), path.child("maxFailedIndexes"));
    if completions.is_none() {
        errors.push(FieldError::required(path.child("completions"), "when completion mode is Indexed"));
    }
    if parallelism > PARALLELISM_MAX {
        let detail = format!("must be less than or equal to {PARALLELISM_MAX} when completion mode is Indexed");
        errors.push(FieldError::invalid(parallelism_path, parallelism, &detail));
    }
    if let (Some(completions), Some(failed)) = (completions, failed)
        && failed > completions
    {
        errors.push(FieldError::invalid(failed_path, failed, "must be less than or equal to completions"));
    }
    if let Some(failed) = failed.filter(|failed| *failed > FAILED_INDEXES_MAX) {
        let detail = format!("must be less than or equal to {FAILED_INDEXES_MAX}");
        errors.push(FieldError::invalid(failed_path, failed, &detail));
    }
    if completions.is_none_or(|completions| completions <= COMPLETIONS_SOFT_MAX)
        || spec["backoffLimitPerIndex"].is_null()
    {
        return;
    }
    if failed.is_none() {
        let detail = format!("must be specified when completions is above {COMPLETIONS_SOFT_MAX}");
        errors.push(FieldError::required(failed_path, &detail));
    }
    let above = |most: i64| {
        format!(
            "must be less than or equal to {most} when completions are above {COMPLETIONS_SOFT_MAX} and used with backoff \
             limit per index"
        )
    };
    if parallelism > HIGH_PARALLELISM_MAX {
        errors.push(FieldError::invalid(parallelism_path, parallelism, &above(HIGH_PARALLELISM_MAX)));
    }
    if let Some(failed) = failed.filter(|failed| *failed > HIGH_FAILED_INDEXES_MAX) {
        errors.push(FieldError::invalid(failed_path, failed, &above(HIGH_FAILED_INDEXES_MAX)));
    }
}

/// A name with a domain: `acme.io/foo`.
fn managed_by(manager: &str, path: &Path<'_>, errors: &mut FieldErrors) {
    const CHARACTERS: &str = "/-._~%!$&'()*+,;=:";
    if manager.is_empty() {
        errors.push(FieldError::required(path, ""));
        return;
    }
    match manager.split_once('/').filter(|(host, rest)| !host.is_empty() && !rest.is_empty()) {
        None => {
            let detail = "must be a domain-prefixed path (such as \"acme.io/foo\")";
            errors.push(FieldError::invalid(path, manager, detail));
        }
        Some((host, rest)) => {
            checks::dns_subdomain(path, host, errors);
            if !rest.chars().all(|c| c.is_ascii_alphanumeric() || CHARACTERS.contains(c)) {
                let detail = names::regex("Invalid path", r"[A-Za-z0-9/\-._~%!$&'()*+,;=:]+", &[]);
                errors.push(FieldError::invalid(path, rest, &detail));
            }
        }
    }
    if manager.len() > MANAGED_BY_MAX {
        errors.push(FieldError::too_long(path, MANAGED_BY_MAX));
    }
}

fn replacement(spec: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    let policy = &spec["podReplacementPolicy"];
    if policy.is_set() {
        let all: &[&str] =
            if spec["podFailurePolicy"].is_set() { &["Failed"] } else { &["Failed", "TerminatingOrFailed"] };
        checks::supported(path, policy, all, errors);
    }
}

fn restart_policy(spec: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    match spec["template"]["spec"]["restartPolicy"].text() {
        "" | "Always" => errors.push(FieldError::required(path, "valid values: \"OnFailure\", \"Never\"")),
        "Never" => {}
        "OnFailure" if spec["podFailurePolicy"].is_set() => {
            let detail = "only \"Never\" is supported when podFailurePolicy is specified";
            errors.push(FieldError::invalid(path, "OnFailure", detail));
        }
        "OnFailure" => {}
        other => errors.push(FieldError::not_supported(path, other, &["OnFailure", "Never"])),
    }
}

/// The pods of an indexed Job have hostnames of its name and their index.
fn name_allows_completions(job: &Value, errors: &mut FieldErrors) {
    let completions = job["spec"]["completions"].int();
    if !is_indexed(&job["spec"]) || completions <= 0 {
        return;
    }
    let name = job["metadata"]["name"].text();
    let longest = format!("{name}-{}", completions - 1);
    if !names::dns_label(&longest).is_empty() {
        let detail = format!("will not able to create pod with invalid DNS label: {longest}");
        errors.push(FieldError::invalid("metadata.name", name, &detail));
    }
}

/// Only an indexed Job may grow or shrink, and only as a whole.
fn completions(spec: &Value, old: &Value, errors: &mut FieldErrors) {
    let (path, new) = (SPEC.child("completions"), &spec["completions"]);
    if !is_indexed(spec) {
        checks::immutable(&path, new, &old["completions"], errors);
    } else if new != &old["completions"] && new.is_set() && new.int() != spec["parallelism"].int() {
        errors.push(FieldError::invalid(path, new, "can only be modified in tandem with spec.parallelism"));
    }
}
