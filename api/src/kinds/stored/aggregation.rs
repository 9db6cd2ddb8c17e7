//! Who serves which version of which group: this server, or another that a Service leads to.

use std::collections::HashSet;
use std::sync::LazyLock;

use serde_json::{Value, json};

use super::show::Show::{Age, Name, Of};
use super::{BLANK, Kind, Stored, row};
use crate::kinds::value::{Read, child, default_to};
use crate::kinds::{AGE, Cell, Column, FieldError, FieldErrors, NAME, Support, checks, column};
use crate::meta::field::Path;
use crate::meta::names;
use crate::meta::text;

const OF_GROUP: &str = "must be positive and less than 20000";
const OF_VERSION: &str = "must be positive and less than 1000";

const fn text(name: &'static str) -> Column {
    column(name, "string")
}

pub(super) static ROWS: &[Kind] =
    &[row!(cluster "apiregistration.k8s.io" "io.k8s.kube-aggregator.pkg.apis.apiregistration.v1" "APIService"
        "apiservices" "apiservice",
        [NAME => Name, text("Service") => Of(service), text("Available") => Of(available), AGE => Age],
        Stored::new(Support::Honoured).named_as_path().create_by(local).default_by(default).check_by(check)
            .check_status_by(check_status).status_alone().needs_version(),
        categories: &["api-extensions"], has_status: true)];

/// Whether a group version is served by this server itself, and can be by nobody else.
pub fn is_local(group: &str, version: &str) -> bool {
    static LOCAL: LazyLock<HashSet<(&str, &str)>> = LazyLock::new(|| {
        let answered = [("authentication.k8s.io", "v1"), ("authorization.k8s.io", "v1")];
        crate::kinds::all().iter().map(|row| (row.group, row.version)).chain(answered).collect()
    });
    LOCAL.contains(&(group, version))
}

fn default(object: &mut Value) {
    let spec = child(object, "spec");
    if spec.get("service").is_some_and(Value::is_object) {
        default_to(&mut spec["service"], "port", 443);
    }
}

/// What is served here is always there.
fn local(object: &mut Value) {
    if object["spec"]["service"].is_null() {
        let made = object["metadata"]["creationTimestamp"].clone();
        child(object, "status")["conditions"] = json!([{
            "type": "Available", "status": "True", "lastTransitionTime": made, "reason": "Local",
            "message": "Local APIServices are always available",
        }]);
    }
}

fn check(object: &Value, errors: &mut FieldErrors) {
    let (spec, path) = (&object["spec"], Path::new("spec"));
    let (group, version) = (spec["group"].text(), spec["version"].text());
    let name = object["metadata"]["name"].text();
    let wanted = format!("{version}.{group}");
    if name != wanted && names::path_segment(name).is_empty() {
        let detail = format!("must be `spec.version+\".\"+spec.group`: {}", text::quote(&wanted));
        errors.push(FieldError::invalid("metadata.name", name, &detail));
    }
    if group.is_empty() && version != "v1" {
        let detail = "only v1 may have an empty group and it better be legacy kube";
        errors.push(FieldError::required(path.child("group"), detail));
    }
    if !group.is_empty() {
        checks::dns_subdomain(&path.child("group"), group, errors);
    }
    checks::invalid(&path.child("version"), version, names::dns_1035_label(version), errors);
    for (field, most, detail) in [("groupPriorityMinimum", 20_000, OF_GROUP), ("versionPriority", 1_000, OF_VERSION)] {
        let given = spec[field].int();
        if !(1..=most).contains(&given) {
            errors.push(FieldError::invalid(path.child(field), given, detail));
        }
    }
    let (service, service_path) = (&spec["service"], path.child("service"));
    let (bundle, skips) = (spec["caBundle"].text(), spec["insecureSkipTLSVerify"].flag());
    if service.is_null() {
        if !bundle.is_empty() {
            let detail = "local APIServices may not have a caBundle";
            errors.push(FieldError::invalid(path.child("caBundle"), bundle, detail));
        }
        if skips {
            let detail = "local APIServices may not have insecureSkipTLSVerify";
            errors.push(FieldError::invalid(path.child("insecureSkipTLSVerify"), true, detail));
        }
        return;
    }
    if is_local(group, version) {
        errors
            .push(FieldError::forbidden(service_path, "this version of the group is served by the API server itself"));
        return;
    }
    for field in ["namespace", "name"] {
        checks::required(&service_path.child(field), &service[field], errors);
    }
    let port = service["port"].int();
    let why = names::port_number(port);
    if !why.is_empty() {
        let detail = format!("port is not valid: {}", why.join(", "));
        errors.push(FieldError::invalid(service_path.child("port"), port, &detail));
    }
    if skips && !bundle.is_empty() {
        let detail = "may not be true if caBundle is present";
        errors.push(FieldError::invalid(path.child("insecureSkipTLSVerify"), true, detail));
    }
}

fn check_status(object: &Value, _: &Value, errors: &mut FieldErrors) {
    let list = Path::new("status.conditions");
    for (index, condition) in object["status"]["conditions"].items().iter().enumerate() {
        let (status, known) = (condition["status"].text(), ["True", "False", "Unknown"]);
        if !known.contains(&status) {
            errors.push(FieldError::not_supported(list.index(index).child("status"), status, &known));
        }
    }
}

fn service(object: &Value) -> Cell {
    match &object["spec"]["service"] {
        Value::Null => "Local".into(),
        service => format!("{}/{}", service["namespace"].text(), service["name"].text()).into(),
    }
}

fn available(object: &Value) -> Cell {
    let conditions = object["status"]["conditions"].items();
    let Some(found) = conditions.iter().find(|condition| condition["type"] == "Available") else {
        return "Unknown".into();
    };
    match found["status"].text() {
        "True" => "True".into(),
        status => format!("{status} ({})", found["reason"].text()).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(object: &Value) -> Vec<String> {
        let strategy = ROWS[0].strategy;
        let mut errors = FieldErrors::new();
        strategy.validate(object, &mut errors);
        errors.iter().map(|error| format!("{}: {}", error.field, error.message)).collect()
    }

    #[test]
    fn a_local_group_is_taken_over_by_nobody() {
        let of = |name: &str, group: &str, version: &str| {
            let spec = json!({
                "group": group, "version": version, "groupPriorityMinimum": 1, "versionPriority": 1,
                "service": {"namespace": "n", "name": "s", "port": 443},
            });
            json!({"metadata": {"name": name}, "spec": spec})
        };
        for (group, version) in
            [("", "v1"), ("apps", "v1"), ("authorization.k8s.io", "v1"), ("apiregistration.k8s.io", "v1")]
        {
            let told = errors(&of(&format!("{version}.{group}"), group, version));
            assert_eq!(told, ["spec.service: Forbidden: this version of the group is served by the API server itself"]);
        }
        for (group, version) in [("apps", "v2"), ("example.com", "v1"), ("metrics.k8s.io", "v1beta1")] {
            assert_eq!(errors(&of(&format!("{version}.{group}"), group, version)), Vec::<String>::new());
        }
    }
}
