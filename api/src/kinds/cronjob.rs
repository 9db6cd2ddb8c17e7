//! CronJob.

use serde_json::{Value, json};

use super::value::{Read, child, default_to, default_when_zero, fields, keep};
use super::{AGE, Cell, FieldError, FieldErrors, Kind, NAME, Strategy, VERBS, checks, column, job, table, wide};
use crate::meta::field::Path;
use crate::schedule::{Schedule, Zone};

pub(super) static KIND: Kind = Kind {
    group: "batch",
    version: "v1",
    kind: "CronJob",
    resource: "cronjobs",
    singular: "cronjob",
    short_names: &["cj"],
    categories: &["all"],
    namespaced: true,
    schema: "io.k8s.api.batch.v1.CronJob",
    collection: "cronjobs.batch",
    verbs: VERBS,
    has_status: true,
    has_scale: false,
    subresources: &[],
    selectable: &[],
    columns: &[
        NAME,
        column("Schedule", "string"),
        column("Timezone", "string"),
        column("Suspend", "boolean"),
        column("Active", "integer"),
        column("Last Schedule", "string"),
        AGE,
        wide("Containers", "string"),
        wide("Images", "string"),
        wide("Selector", "string"),
    ],
    strategy: &CronJob,
};

/// Longest name: a Job's has eleven characters more, and pods carry it in a label.
const NAME_MAX: usize = 52;
/// Longest part of a time zone's name.
const ZONE_PART_MAX: usize = 14;

struct CronJob;

impl Strategy for CronJob {
    fn default(&self, object: &mut Value) {
        let spec = child(object, "spec");
        default_when_zero(spec, "concurrencyPolicy", "Allow");
        default_to(spec, "suspend", false);
        default_to(spec, "successfulJobsHistoryLimit", 3);
        default_to(spec, "failedJobsHistoryLimit", 1);
        // Its Jobs are completed when they are made.
        job::default_template(child(child(spec, "jobTemplate"), "spec"));
        child(object, "status");
    }

    fn prepare_create(&self, object: &mut Value) {
        fields(object).insert("status".to_owned(), json!({}));
        job::drop_disabled(child(child(child(object, "spec"), "jobTemplate"), "spec"), None);
    }

    fn prepare_update(&self, object: &mut Value, old: &Value) {
        keep(object, old, "status");
        let before = &old["spec"]["jobTemplate"]["spec"];
        job::drop_disabled(child(child(child(object, "spec"), "jobTemplate"), "spec"), Some(before));
    }

    fn prepare_status_update(&self, object: &mut Value, old: &Value) {
        keep(object, old, "spec");
    }

    fn validate(&self, object: &Value, errors: &mut FieldErrors) {
        validate_spec(&object["spec"], None, errors);
        let name = object["metadata"]["name"].text();
        if name.len() > NAME_MAX {
            let detail = format!("must be no more than {NAME_MAX} characters");
            errors.push(FieldError::invalid("metadata.name", name, &detail));
        }
    }

    /// One whose name was long before there was a limit may still be changed.
    fn validate_update(&self, object: &Value, old: &Value, errors: &mut FieldErrors) {
        validate_spec(&object["spec"], Some(&old["spec"]), errors);
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        let mut warnings = Vec::new();
        let spec = &object["spec"];
        if old.is_none() {
            warnings.extend(job::name_warning(object));
        }
        if old.is_none_or(|old| old["spec"] != *spec) {
            warnings.extend(job::spec_warnings(&spec["jobTemplate"]["spec"], &Path::new("spec.jobTemplate.spec")));
        }
        if old.is_some() && spec["schedule"].text().contains("TZ") {
            warnings.push(
                "cannot use TZ or CRON_TZ in spec.spec.schedule, use timeZone instead, see \
                 https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/ for more details"
                    .to_owned(),
            );
        }
        warnings
    }

    fn cells(&self, object: &Value) -> Vec<Cell> {
        let (spec, status) = (&object["spec"], &object["status"]);
        let template = &spec["jobTemplate"]["spec"];
        let [names, images] = table::containers(&template["template"]["spec"]);
        let suspend = match spec["suspend"].as_bool() {
            Some(true) => "True",
            Some(false) => "False",
            None => "<unset>",
        };
        let selector = match &template["selector"] {
            Value::Null => "<none>".into(),
            selector => table::selector(selector, "<none>", "<error>"),
        };
        vec![
            table::name(object),
            spec["schedule"].text().into(),
            spec["timeZone"].as_str().filter(|zone| !zone.is_empty()).unwrap_or("<none>").into(),
            suspend.into(),
            Cell::Value(status["active"].count().into()),
            status["lastScheduleTime"].time().map_or("<none>".into(), |time| Cell::Age(Some(time))),
            table::age(object),
            names,
            images,
            selector,
        ]
    }
}

fn validate_spec(spec: &Value, old: Option<&Value>, errors: &mut FieldErrors) {
    let path = Path::new("spec");
    schedule(spec, old, &path.child("schedule"), errors);
    checks::nonnegative(&path.child("startingDeadlineSeconds"), &spec["startingDeadlineSeconds"], errors);
    let zone = &spec["timeZone"];
    if old.is_none_or(|old| old["timeZone"] != *zone)
        && let Some(zone) = zone.as_str()
    {
        time_zone(zone, &path.child("timeZone"), errors);
    }
    let policies = ["Allow", "Forbid", "Replace"];
    checks::required_of(&path.child("concurrencyPolicy"), &spec["concurrencyPolicy"], &policies, errors);
    let before = old.map(|old| &old["jobTemplate"]);
    job::validate_template_of_jobs(&spec["jobTemplate"], before, &path.child("jobTemplate"), errors);
    for limit in ["successfulJobsHistoryLimit", "failedJobsHistoryLimit"] {
        checks::nonnegative(&path.child(limit), &spec[limit], errors);
    }
}

fn schedule(spec: &Value, old: Option<&Value>, path: &Path<'_>, errors: &mut FieldErrors) {
    let schedule = spec["schedule"].text();
    if schedule.is_empty() {
        errors.push(FieldError::required(path, ""));
        return;
    }
    if let Err(error) = Schedule::parse(schedule) {
        errors.push(FieldError::invalid(path, schedule, &error.to_string()));
    }
    if !schedule.contains("TZ") {
        return;
    }
    // One that had a zone in its schedule before that was refused may keep it.
    if !old.is_some_and(|old| old["schedule"].text().contains("TZ")) {
        let detail = "cannot use TZ or CRON_TZ in schedule, use timeZone field instead";
        errors.push(FieldError::invalid(path, schedule, detail));
    } else if spec["timeZone"].is_set() {
        let detail = "cannot use both timeZone field and TZ or CRON_TZ in schedule";
        errors.push(FieldError::invalid(path, schedule, detail));
    }
}

fn time_zone(zone: &str, path: &Path<'_>, errors: &mut FieldErrors) {
    if zone.is_empty() {
        errors.push(FieldError::invalid(path, zone, "timeZone must be nil or non-empty string"));
        return;
    }
    let is_part = |part: &str| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '+');
        !matches!(part, "." | "..")
            && !part.starts_with('-')
            && (1..=ZONE_PART_MAX).contains(&part.len())
            && part.chars().all(allowed)
    };
    if !zone.split('/').all(is_part) {
        errors.push(FieldError::invalid(path, zone, &format!("unknown time zone {zone}")));
        return;
    }
    if zone.eq_ignore_ascii_case("Local") {
        let detail = "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones";
        errors.push(FieldError::invalid(path, zone, detail));
    }
    // To Go, `Local` is a zone that it knows.
    if zone != "Local"
        && let Err(error) = Zone::load(zone)
    {
        errors.push(FieldError::invalid(path, zone, &error.to_string()));
    }
}
