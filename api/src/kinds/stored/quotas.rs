//! How much a namespace may have: ResourceQuota and LimitRange.

use std::collections::BTreeSet;

use serde_json::Value;

use super::show::Show::{Age, Made, Name, Of};
use super::{BLANK, Kind, Stored, Support, row};
use crate::kinds::limits::default_items;
use crate::kinds::pod::{container_resource, default_resources, resource_name};
use crate::kinds::value::{Read, child, fields};
use crate::kinds::{AGE, Cell, FieldError, FieldErrors, NAME, checks, column};
use crate::meta::field::{Path, Printed};
use crate::meta::{Quantity, text};

pub(super) static ROWS: &[Kind] = &[
    row!(namespaced "" "io.k8s.api.core.v1" "LimitRange" "limitranges" "limitrange",
        [NAME => Name, column("Created At", "date") => Made],
        Stored::new(Support::Honoured).default_by(default_items).create_by(name_by_uid).check_by(limit_range)
            .made_by_update(),
        short_names: &["limits"]),
    row!(namespaced "" "io.k8s.api.core.v1" "ResourceQuota" "resourcequotas" "resourcequota",
        [
            NAME => Name,
            column("Request", "string") => Of(requests),
            column("Limit", "string") => Of(limits),
            AGE => Age,
        ],
        Stored::new(Support::Honoured).default_by(quota_defaults).check_by(quota).check_change_by(scopes_stay)
            .check_status_by(|object, _, errors| quota_status(object, errors)).warn_by(quota_warnings),
        short_names: &["quota"], has_status: true),
];

/// What can be the limit of a quota without a domain.
const COUNTED: [&str; 19] = [
    "configmaps",
    "cpu",
    "ephemeral-storage",
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "memory",
    "persistentvolumeclaims",
    "pods",
    "replicationcontrollers",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
    "requests.storage",
    "resourcequotas",
    "secrets",
    "services",
    "services.loadbalancers",
    "services.nodeports",
];
/// What of it can be limited for some pods only.
const OF_PODS: [&str; 7] = ["cpu", "limits.cpu", "limits.memory", "memory", "pods", "requests.cpu", "requests.memory"];
const SCOPES: [&str; 7] = [
    "BestEffort",
    "CrossNamespacePodAffinity",
    "NotBestEffort",
    "NotTerminating",
    "PriorityClass",
    "Terminating",
    "VolumeAttributesClass",
];
/// Scopes that an object is in or not, whatever their values.
const PLAIN_SCOPES: [&str; 5] =
    ["BestEffort", "CrossNamespacePodAffinity", "NotBestEffort", "NotTerminating", "Terminating"];
const CONFLICTS: [[&str; 2]; 2] = [["BestEffort", "NotBestEffort"], ["NotTerminating", "Terminating"]];
const NO_SCOPE_OF_IT: &str = "unsupported scope applied to resource";

/// A limit range may come without a name.
fn name_by_uid(range: &mut Value) {
    let metadata = child(range, "metadata");
    if metadata["name"].is_empty() {
        let uid = metadata["uid"].clone();
        fields(metadata).insert("name".to_owned(), uid);
    }
}

fn quota_defaults(quota: &mut Value) {
    default_resources(child(quota, "spec"), "hard");
    for list in ["hard", "used"] {
        if let Some(status) = quota.get_mut("status") {
            default_resources(status, list);
        }
    }
}

fn is_standard(name: &str) -> bool {
    COUNTED.contains(&name) || checks::is_huge_pages(name) || name.starts_with("requests.hugepages-")
}

fn counted(list: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    for (name, quantity) in list.entries() {
        let path = path.key(name);
        resource_name(name, &path, errors);
        if !name.contains('/') && !is_standard(name) {
            errors.push(FieldError::invalid(path, name, "must be a standard resource for quota"));
        }
        checks::resource_quantity(&path, name, quantity, errors);
    }
}

fn quota(quota: &Value, errors: &mut FieldErrors) {
    let spec = &quota["spec"];
    counted(&spec["hard"], &Path::new("spec.hard"), errors);
    let named: Vec<&str> = spec["scopes"].items().iter().map(Read::text).collect();
    let path = Path::new("spec.scopes");
    for scope in &named {
        if !SCOPES.contains(scope) {
            errors.push(FieldError::invalid(path, &spec["scopes"], "unsupported scope"));
        }
        for _ in out_of_scope(spec, scope) {
            errors.push(FieldError::invalid(path, &spec["scopes"], NO_SCOPE_OF_IT));
        }
    }
    conflicts(&named, spec, &path, errors);
    if spec["scopeSelector"].is_object() {
        scope_selector(spec, errors);
    }
}

/// The limits that a scope can have no part of.
fn out_of_scope<'a>(spec: &'a Value, scope: &'a str) -> impl Iterator<Item = &'a str> {
    let names = spec["hard"].entries().map(|(name, _)| name.as_str()).filter(|name| is_standard(name));
    names.filter(move |name| match scope {
        "BestEffort" => *name != "pods",
        "VolumeAttributesClass" => !matches!(*name, "persistentvolumeclaims" | "requests.storage"),
        scope => SCOPES.contains(&scope) && !OF_PODS.contains(name),
    })
}

fn conflicts(named: &[&str], spec: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    for pair in CONFLICTS {
        if pair.iter().all(|scope| named.contains(scope)) {
            errors.push(FieldError::invalid(path, &spec["scopes"], "conflicting scopes"));
        }
    }
}

fn scope_selector(spec: &Value, errors: &mut FieldErrors) {
    let selector = &spec["scopeSelector"];
    let path = Path::new("spec.scopeSelector.matchExpressions");
    let wanted = selector["matchExpressions"].items();
    for requirement in wanted {
        let (scope, operator) = (requirement["scopeName"].text(), requirement["operator"].text());
        let values = &requirement["values"];
        if !SCOPES.contains(&scope) {
            errors.push(FieldError::invalid(path.child("scopeName"), scope, "unsupported scope"));
        }
        for _ in out_of_scope(spec, scope) {
            errors.push(FieldError::invalid(path, Printed(&selector_text(wanted)), NO_SCOPE_OF_IT));
        }
        if PLAIN_SCOPES.contains(&scope) && operator != "Exists" {
            let detail = "must be 'Exists' when scope is any of ResourceQuotaScopeTerminating, \
                          ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, \
                          ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity";
            errors.push(FieldError::invalid(path.child("operator"), operator, detail));
        }
        match operator {
            "In" | "NotIn" if values.is_empty() => {
                let detail = "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector";
                errors.push(FieldError::required(path.child("values"), detail));
            }
            "In" | "NotIn" => {}
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                let detail = "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector";
                errors.push(FieldError::invalid(path.child("values"), values, detail));
            }
            "Exists" | "DoesNotExist" => {}
            _ => errors.push(FieldError::invalid(path.child("operator"), operator, "not a valid selector operator")),
        }
    }
    let named: Vec<&str> = wanted.iter().map(|requirement| requirement["scopeName"].text()).collect();
    conflicts(&named, spec, &path, errors);
}

/// A selector as Go prints its own form of it.
fn selector_text(wanted: &[Value]) -> String {
    let requirement = |it: &Value| {
        let [scope, operator, values] = ["scopeName", "operator", "values"].map(|field| text::json(&it[field]));
        format!("{{\"ScopeName\":{scope},\"Operator\":{operator},\"Values\":{values}}}")
    };
    let wanted: Vec<String> = wanted.iter().map(requirement).collect();
    format!("{{\"MatchExpressions\":[{}]}}", wanted.join(","))
}

fn scopes_stay(quota: &Value, old: &Value, errors: &mut FieldErrors) {
    let scopes = |quota: &Value| -> BTreeSet<String> {
        quota["spec"]["scopes"].items().iter().map(|scope| scope.text().to_owned()).collect()
    };
    if scopes(quota) != scopes(old) {
        errors.push(FieldError::invalid("spec.scopes", &quota["spec"]["scopes"], "field is immutable"));
    }
}

fn quota_status(quota: &Value, errors: &mut FieldErrors) {
    for list in ["hard", "used"] {
        let path = Path::new("status");
        counted(&quota["status"][list], &path.child(list), errors);
    }
}

/// A limit that is below its request is likely a mistake.
fn quota_warnings(quota: &Value, old: Option<&Value>) -> Vec<String> {
    if old.is_some() {
        return Vec::new();
    }
    let hard = &quota["spec"]["hard"];
    let amount = |name: &str| Quantity::from_json(hard.get(name)?).ok().map(|amount| (name.to_owned(), amount));
    let warning = |name: &str| {
        let may_be_bare = matches!(name, "cpu" | "memory");
        let request = amount(&format!("requests.{name}")).or_else(|| may_be_bare.then(|| amount(name))?);
        let ((request_name, request), (limit_name, limit)) = (request?, amount(&format!("limits.{name}"))?);
        (request > limit)
            .then(|| format!("ResourceQuota {request_name} ({request}) should be less than {limit_name} ({limit})"))
    };
    ["cpu", "memory", "storage", "ephemeral-storage"].into_iter().filter_map(warning).collect()
}

fn requests(quota: &Value) -> Cell {
    column_of(quota, false)
}

fn limits(quota: &Value) -> Cell {
    column_of(quota, true)
}

/// As `pods: 1/2, services: 0/3`.
fn column_of(quota: &Value, limits: bool) -> Cell {
    let (hard, used) = (&quota["status"]["hard"], &quota["status"]["used"]);
    let amount = |list: &Value, name: &str| {
        Quantity::from_json(&list[name]).map_or_else(|_| "0".to_owned(), |it| it.to_string())
    };
    let shown = hard.entries().filter(|(name, _)| name.starts_with("limits.") == limits);
    let mut shown: Vec<String> =
        shown.map(|(name, _)| format!("{name}: {}/{}", amount(used, name), amount(hard, name))).collect();
    shown.sort();
    shown.join(", ").into()
}

/// Bounds that cannot all hold, and amounts of what nobody asks for (`ValidateLimitRange`).
fn limit_range(range: &Value, errors: &mut FieldErrors) {
    let mut kinds = BTreeSet::new();
    let list = Path::new("spec.limits");
    for (index, item) in range["spec"]["limits"].items().iter().enumerate() {
        let path = list.index(index);
        let kind = item["type"].text();
        item_kind(kind, &path.child("type"), errors);
        if !kinds.insert(kind) {
            errors.push(FieldError::duplicate(path.child("type"), kind));
        }
        item_bounds(item, kind, &path, errors);
    }
}

fn item_kind(kind: &str, path: &Path<'_>, errors: &mut FieldErrors) {
    let before = errors.len();
    checks::qualified_name(path, kind, errors);
    let is_standard = matches!(kind, "Container" | "PersistentVolumeClaim" | "Pod");
    if errors.len() == before && !kind.contains('/') && !is_standard {
        errors.push(FieldError::invalid(path, kind, "must be a standard limit type or fully qualified"));
    }
}

fn item_bounds(item: &Value, kind: &str, path: &Path<'_>, errors: &mut FieldErrors) {
    let mut all = BTreeSet::new();
    for field in ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"] {
        if kind == "Pod" && field.starts_with("default") {
            if !item[field].is_empty() {
                errors.push(FieldError::forbidden(path.child(field), "may not be specified when `type` is 'Pod'"));
            }
            continue;
        }
        for (name, _) in item[field].entries() {
            let list = path.child(field);
            let path = list.key(name);
            match kind {
                "Pod" | "Container" => container_resource(name, &path, errors),
                _ => resource_name(name, &path, errors),
            }
            all.insert(name.as_str());
        }
        if field == "defaultRequest"
            && kind == "PersistentVolumeClaim"
            && item["min"]["storage"].is_null()
            && item["max"]["storage"].is_null()
        {
            let detail = "either minimum or maximum storage value is required, but neither was provided";
            errors.push(FieldError::required(path.child("limits"), detail));
        }
    }
    for name in all {
        bounds_of(item, kind, name, path, errors);
    }
}

/// What the bounds of one resource say of each other.
fn bounds_of(item: &Value, kind: &str, name: &str, path: &Path<'_>, errors: &mut FieldErrors) {
    let amount = |field: &str| {
        let is_ignored = kind == "Pod" && field.starts_with("default");
        item[field].get(name).filter(|_| !is_ignored).and_then(|amount| Quantity::from_json(amount).ok())
    };
    let mut invalid = |field: &str, value: &Quantity, detail: String| {
        errors.push(FieldError::invalid(path.child(field).key(name), value.to_string(), &detail));
    };
    let (min, max, limit, request) = (amount("min"), amount("max"), amount("default"), amount("defaultRequest"));
    if let (Some(min), Some(max)) = (&min, &max)
        && min > max
    {
        invalid("min", min, format!("min value {min} is greater than max value {max}"));
    }
    if let (Some(request), Some(min)) = (&request, &min)
        && min > request
    {
        invalid("defaultRequest", request, format!("min value {min} is greater than default request value {request}"));
    }
    if let (Some(request), Some(max)) = (&request, &max)
        && request > max
    {
        invalid("defaultRequest", request, format!("default request value {request} is greater than max value {max}"));
    }
    if let (Some(request), Some(limit)) = (&request, &limit)
        && request > limit
    {
        let detail = format!("default request value {request} is greater than default limit value {limit}");
        invalid("defaultRequest", request, detail);
    }
    if let (Some(limit), Some(min)) = (&limit, &min)
        && min > limit
    {
        invalid("default", min, format!("min value {min} is greater than default value {limit}"));
    }
    if let (Some(limit), Some(max)) = (&limit, &max)
        && limit > max
    {
        invalid("default", max, format!("default value {limit} is greater than max value {max}"));
    }
    if let Some(ratio) = amount("maxLimitRequestRatio") {
        if ratio < crate::kinds::quota::number(1) {
            invalid("maxLimitRequestRatio", &ratio, format!("ratio {ratio} is less than 1"));
        }
        if let (Some(min), Some(max)) = (&min, &max) {
            let (most, least) = (max.as_f64(), min.as_f64());
            let bound = most / least;
            if ratio.as_f64() > bound {
                let detail = format!("ratio {ratio} is greater than max/min = {bound:.6}");
                invalid("maxLimitRequestRatio", &ratio, detail);
            }
        }
    }
    let may_overcommit = checks::is_native_resource(name) && !checks::is_huge_pages(name);
    if let (Some(request), Some(limit)) = (&request, &limit)
        && !may_overcommit
        && request != limit
    {
        let detail = format!("default value {limit} must equal to defaultRequest value {request} in {name}");
        invalid("defaultRequest", request, detail);
    }
}
