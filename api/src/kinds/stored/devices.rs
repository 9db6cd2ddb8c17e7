//! Devices, and claims on them.

use std::collections::{HashMap, HashSet};

use serde_json::{Value, json};

use super::rules::{Check, Rule};
use super::show::Show::{Age, Name, Of, Text};
use super::{BLANK, Kind, Stored, row};
use crate::cel::Budget;
use crate::cel::devices::fault;
use crate::kinds::value::{Read, child, default_when_zero, items_mut, repeats};
use crate::kinds::{AGE, Cell, FieldError, FieldErrors, NAME, checks, column, internal};
use crate::meta::field::{Path, Printed};
use crate::meta::{names, validate_annotations, validate_labels};
use crate::schema::{Named, Type};

const NOT_ALLOCATED: &str = "no device is allocated by it yet";

/// Most items of each list of a claim or a class, and most alternatives of one request.
const LIST_MAX: usize = 32;
const ALTERNATIVES_MAX: usize = 8;
const EXPRESSION_BYTES_MAX: usize = 10 << 10;
const PARAMETERS_BYTES_MAX: usize = 10 << 10;
/// Most attributes and capacities of a device, and most bytes of the value and of each part of the name of one.
const ATTRIBUTES_MAX: usize = 32;
const ATTRIBUTE_BYTES_MAX: usize = 64;
const DOMAIN_BYTES_MAX: usize = 63;
const NAME_BYTES_MAX: usize = 32;
const EFFECTS: &[&str] = &["NoExecute", "NoSchedule", "None"];

const CLASS: &[Rule] = &[
    Rule("spec.selectors", Check::Items(LIST_MAX)),
    Rule("spec.config", Check::Items(LIST_MAX)),
    Rule("spec.extendedResourceName", Check::ExtendedResource),
];

const TAINT: &[Rule] = &[
    Rule("spec.taint.key", Check::LabelName),
    Rule("spec.taint.value", Check::LabelValue),
    Rule("spec.taint.effect", Check::Required("")),
    Rule("spec.taint.effect", Check::OneOfGiven(EFFECTS)),
    Rule("spec.deviceSelector.driver", Check::Subdomain),
    Rule("spec.deviceSelector.pool", Check::Subdomain),
    Rule("spec.deviceSelector.device", Check::Label),
];

const SLICE: &[Rule] = &[
    Rule("spec.driver", Check::Driver),
    Rule("spec.pool.name", Check::Required("")),
    Rule("spec.pool.resourceSliceCount", Check::Least(1, "must be greater than zero")),
    Rule("spec.pool.generation", Check::Least(0, "must be greater than or equal to zero")),
    Rule("spec.nodeName", Check::Subdomain),
    Rule("spec.devices[].name", Check::LabelAlways),
    Rule("spec.devices[].taints[].key", Check::LabelName),
    Rule("spec.devices[].taints[].value", Check::LabelValue),
    Rule("spec.devices[].taints[].effect", Check::Required("")),
    Rule("spec.devices[].taints[].effect", Check::OneOfGiven(EFFECTS)),
];

pub(super) static ROWS: &[Kind] = &[
    row!(cluster "resource.k8s.io" "io.k8s.api.resource.v1" "DeviceClass" "deviceclasses" "deviceclass",
    [NAME => Name, AGE => Age],
    Stored::inert(NOT_ALLOCATED).counted().compiling().rules(CLASS).check_by(|object, errors| {
        let config = object["spec"]["config"].items();
        configurations(&config[..config.len().min(LIST_MAX)], &Path::new("spec.config"), errors);
        selectors(&object["spec"]["selectors"], &Path::new("spec.selectors"), &mut Budget::default(), errors);
    })),
    row!(cluster "resource.k8s.io" "io.k8s.api.resource.v1" "DeviceTaintRule" "devicetaintrules" "devicetaintrule",
        [
            NAME => Name,
            column("Key", "string") => Text("spec.taint.key", ""),
            column("Value", "string") => Text("spec.taint.value", ""),
            column("Effect", "string") => Text("spec.taint.effect", ""),
            column("TimeAdded", "string") => Of(|object| Cell::Age(object["spec"]["taint"]["timeAdded"].time())),
            AGE => Age,
        ],
        Stored::inert("no controller acts on it yet").counted().create_by(taint_time)
            .rules(TAINT),
        has_status: true),
    row!(namespaced "resource.k8s.io" "io.k8s.api.resource.v1" "ResourceClaim" "resourceclaims" "resourceclaim",
        [NAME => Name, column("State", "string") => Of(claim_state), AGE => Age],
        Stored::inert(NOT_ALLOCATED).compiling().default_by(|object| requests(child(object, "spec"))).locks(&["spec"])
            .check_by(|object, errors| claim(&object["spec"], &Path::new("spec.devices"), errors)).checked_once(),
        has_status: true),
    row!(namespaced "resource.k8s.io" "io.k8s.api.resource.v1" "ResourceClaimTemplate" "resourceclaimtemplates"
        "resourceclaimtemplate",
        [NAME => Name, AGE => Age],
        Stored::inert(NOT_ALLOCATED).compiling().default_by(|object| requests(child(child(object, "spec"), "spec"))).locks(&["spec"])
            .check_by(template).checked_once()),
    row!(cluster "resource.k8s.io" "io.k8s.api.resource.v1" "ResourceSlice" "resourceslices" "resourceslice",
        [
            NAME => Name,
            column("Node", "string") => Text("spec.nodeName", ""),
            column("Driver", "string") => Text("spec.driver", ""),
            column("Pool", "string") => Text("spec.pool.name", ""),
            AGE => Age,
        ],
        Stored::inert(NOT_ALLOCATED).counted().rules(SLICE).check_by(slice)
            .fixes(&["spec.driver", "spec.pool.name", "spec.nodeName"]),
        selectable: &["spec.driver", "spec.nodeName"]),
];

/// Requests of a claim are for one device, unless they say otherwise.
fn requests(claim: &mut Value) {
    if !claim["devices"].is_object() {
        return;
    }
    for request in items_mut(child(claim, "devices"), "requests") {
        if request["exactly"].is_object() {
            one(child(request, "exactly"));
        }
        items_mut(request, "firstAvailable").iter_mut().for_each(one);
    }
}

fn one(request: &mut Value) {
    default_when_zero(request, "allocationMode", "ExactCount");
    if request["allocationMode"] == "ExactCount" {
        default_when_zero(request, "count", 1);
    }
}

/// A taint is there since the rule is, unless the client knows better.
fn taint_time(object: &mut Value) {
    let made = object["metadata"]["creationTimestamp"].clone();
    let taint = child(child(object, "spec"), "taint");
    if taint["timeAdded"].is_null() {
        taint["timeAdded"] = json!(made);
    }
}

fn claim_state(object: &Value) -> Cell {
    let (deleted, status) = (object["metadata"]["deletionTimestamp"].is_set(), &object["status"]);
    let state = match (deleted, status["allocation"].is_set(), !status["reservedFor"].is_empty()) {
        (true, false, _) => "deleted",
        (false, false, _) => "pending",
        (true, true, false) => "deleted,allocated",
        (true, true, true) => "deleted,allocated,reserved",
        (false, true, false) => "allocated",
        (false, true, true) => "allocated,reserved",
    };
    state.into()
}

/// What a claim asks for (`validateDeviceClaim`).
fn claim(spec: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    let (devices, mut budget) = (&spec["devices"], Budget::default());
    let list = path.child("requests");
    let requests = bounded(&devices["requests"], LIST_MAX, &list, errors);
    duplicates(requests, "DeviceRequest", &list, errors);
    for (index, asked) in requests.iter().enumerate() {
        request(asked, &list.index(index), &mut budget, errors);
    }
    let all = devices["requests"].items().iter();
    let known: HashMap<&str, HashSet<&str>> = all.map(|asked| (asked["name"].text(), parts(asked))).collect();
    let list = path.child("constraints");
    let constraints = bounded(&devices["constraints"], LIST_MAX, &list, errors);
    for (index, constraint) in constraints.iter().enumerate() {
        let path = list.index(index);
        references(&constraint["requests"], &known, &path.child("requests"), errors);
        match ["matchAttribute", "distinctAttribute"].into_iter().find(|field| constraint[*field].is_set()) {
            Some(field) => attribute(constraint[field].text(), &path.child(field), errors),
            None => {
                let detail = "exactly one of \"matchAttribute\" or \"distinctAttribute\" is required, but multiple \
                              fields are set";
                errors.push(FieldError::required(path, detail));
            }
        }
    }
    let list = path.child("config");
    let config = bounded(&devices["config"], LIST_MAX, &list, errors);
    for (index, configuration) in config.iter().enumerate() {
        references(&configuration["requests"], &known, &list.index(index).child("requests"), errors);
    }
    configurations(config, &list, errors);
}

fn template(object: &Value, errors: &mut FieldErrors) {
    let metadata = &object["spec"]["metadata"];
    validate_labels(metadata["labels"].as_object(), &Path::new("spec.metadata.labels"), errors);
    validate_annotations(metadata["annotations"].as_object(), &Path::new("spec.metadata.annotations"), errors);
    claim(&object["spec"]["spec"], &Path::new("spec.spec.devices"), errors);
}

/// Names of the alternatives of a request.
fn parts(request: &Value) -> HashSet<&str> {
    request["firstAvailable"].items().iter().map(|part| part["name"].text()).collect()
}

/// The items of a list that are looked at: no more than there may be, however many there are.
fn bounded<'v>(list: &'v Value, most: usize, path: &Path<'_>, errors: &mut FieldErrors) -> &'v [Value] {
    let items = list.items();
    if items.len() > most {
        errors.push(FieldError::too_many(path, items.len(), most));
    }
    &items[..items.len().min(most)]
}

/// Items of one name, shown whole.
fn duplicates(items: &[Value], kind: &str, path: &Path<'_>, errors: &mut FieldErrors) {
    let ty = Type::Named(Named::new(format!("io.k8s.api.resource.v1.{kind}")));
    for (index, again) in repeats(items.iter().map(|item| item["name"].text())).into_iter().enumerate() {
        if again {
            let shown = internal::ordered(&ty, &items[index]);
            errors.push(FieldError::duplicate(path.index(index), Printed(&shown)));
        }
    }
}

fn request(asked: &Value, path: &Path<'_>, budget: &mut Budget, errors: &mut FieldErrors) {
    checks::dns_label(&path.child("name"), asked["name"].text(), errors);
    let (exactly, alternatives) = (&asked["exactly"], asked["firstAvailable"].items());
    let one = "exactly one of `exactly` or `firstAvailable` is required";
    match (exactly.is_set(), alternatives.is_empty()) {
        (false, true) => errors.push(FieldError::required(path, one)),
        (true, false) => {
            let detail = format!("{one}, but multiple fields are set");
            errors.push(FieldError::invalid(path, &Value::Null, &detail));
        }
        (true, true) => devices_of(exactly, &path.child("exactly"), budget, errors),
        (false, false) => {
            let list = path.child("firstAvailable");
            let alternatives = bounded(&asked["firstAvailable"], ALTERNATIVES_MAX, &list, errors);
            duplicates(alternatives, "DeviceSubRequest", &list, errors);
            for (index, alternative) in alternatives.iter().enumerate() {
                let path = list.index(index);
                checks::dns_label(&path.child("name"), alternative["name"].text(), errors);
                devices_of(alternative, &path, budget, errors);
            }
        }
    }
}

/// Which devices, and how many.
fn devices_of(asked: &Value, path: &Path<'_>, budget: &mut Budget, errors: &mut FieldErrors) {
    let class = path.child("deviceClassName");
    match asked["deviceClassName"].text() {
        "" => errors.push(FieldError::required(class, "")),
        name => checks::dns_subdomain(&class, name, errors),
    }
    selectors(&asked["selectors"], &path.child("selectors"), budget, errors);
    let count = asked["count"].int();
    match asked["allocationMode"].text() {
        "All" if count != 0 => {
            let detail = "must not be specified when allocationMode is 'All'";
            errors.push(FieldError::invalid(path.child("count"), count, detail));
        }
        "ExactCount" if count <= 0 => {
            errors.push(FieldError::invalid(path.child("count"), count, "must be greater than zero"));
        }
        "All" | "ExactCount" => {}
        other => errors.push(FieldError::not_supported(path.child("allocationMode"), other, &["All", "ExactCount"])),
    }
    let list = path.child("tolerations");
    for (index, toleration) in asked["tolerations"].items().iter().enumerate() {
        tolerate(toleration, &list.index(index), errors);
    }
}

fn tolerate(toleration: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    let (key, value, effect) = (toleration["key"].text(), toleration["value"].text(), toleration["effect"].text());
    if !key.is_empty() {
        checks::qualified_name(&path.child("key"), key, errors);
    }
    match toleration["operator"].text() {
        "Exists" if !value.is_empty() => {
            errors.push(FieldError::invalid(path.child("value"), value, "must be empty for operator `Exists`"));
        }
        "Equal" => checks::invalid(&path.child("value"), value, names::label_value(value), errors),
        "Exists" => {}
        other => errors.push(FieldError::not_supported(path.child("operator"), other, &["Equal", "Exists"])),
    }
    if !effect.is_empty() && !EFFECTS.contains(&effect) {
        errors.push(FieldError::not_supported(path.child("effect"), effect, EFFECTS));
    }
}

fn selectors(list: &Value, path: &Path<'_>, budget: &mut Budget, errors: &mut FieldErrors) {
    for (index, selector) in bounded(list, LIST_MAX, path, errors).iter().enumerate() {
        let path = path.index(index);
        let expression = selector["cel"]["expression"].text();
        if selector["cel"].is_null() {
            errors.push(FieldError::required(path.child("cel"), ""));
        } else if expression.len() > EXPRESSION_BYTES_MAX {
            errors.push(FieldError::too_long(path.child("cel.expression"), EXPRESSION_BYTES_MAX));
        } else if let Some(words) = fault(expression, budget) {
            errors.push(FieldError::invalid(path.child("cel.expression"), expression, &words));
        }
    }
}

/// Names of requests, alone or with one of their alternatives.
fn references(list: &Value, known: &HashMap<&str, HashSet<&str>>, path: &Path<'_>, errors: &mut FieldErrors) {
    let names: Vec<&str> = bounded(list, LIST_MAX, path, errors).iter().map(Read::text).collect();
    for ((index, name), again) in names.iter().enumerate().zip(repeats(names.iter())) {
        let path = path.index(index);
        if again {
            errors.push(FieldError::duplicate(path, *name));
            continue;
        }
        if name.split('/').count() <= 2 {
            name.split('/').for_each(|part| checks::dns_label(&path, part, errors));
        }
        let is_known = match name.split_once('/') {
            None => known.contains_key(name),
            Some((request, part)) => known.get(request).is_some_and(|parts| parts.contains(part)),
        };
        if !is_known {
            let detail =
                "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'";
            errors.push(FieldError::invalid(path, *name, detail));
        }
    }
}

/// The name of an attribute with its domain.
fn attribute(name: &str, path: &Path<'_>, errors: &mut FieldErrors) {
    let (domain, name) = match name.split_once('/') {
        Some((domain, name)) => (Some(domain), name),
        None => (None, name),
    };
    match domain {
        Some("") => errors.push(FieldError::invalid(path, "", "prefix must not be empty")),
        Some(domain) => {
            for words in names::dns_subdomain(&domain.to_lowercase()) {
                errors.push(FieldError::invalid(path, domain, &format!("prefix: {words}")));
            }
        }
        None => {
            let detail = "a fully qualified name must be a domain and a name separated by a slash";
            errors.push(FieldError::invalid(path, name, detail));
        }
    }
    match name {
        "" if domain.is_some() => errors.push(FieldError::invalid(path, "", "name must not be empty")),
        name => checks::invalid(path, name, names::c_identifier(name), errors),
    }
}

fn configurations(list: &[Value], path: &Path<'_>, errors: &mut FieldErrors) {
    for (index, configuration) in list.iter().enumerate() {
        let (opaque, path) = (&configuration["opaque"], path.index(index));
        let path = path.child("opaque");
        if opaque.is_null() {
            errors.push(FieldError::required(path, ""));
            continue;
        }
        let (driver, driver_path) = (opaque["driver"].text(), path.child("driver"));
        if driver.is_empty() {
            errors.push(FieldError::required(driver_path, ""));
        } else if !names::is_dns_subdomain(&driver.to_lowercase()) {
            errors.push(FieldError::invalid(driver_path, driver, &names::any_case_dns_subdomain()));
        }
        let (parameters, path) = (&opaque["parameters"], path.child("parameters"));
        if parameters.is_null() {
            errors.push(FieldError::required(path, ""));
        } else if parameters.to_string().len() > PARAMETERS_BYTES_MAX {
            errors.push(FieldError::too_long(path, PARAMETERS_BYTES_MAX));
        } else if !parameters.is_object() {
            errors.push(FieldError::invalid(path, "<value omitted>", "must be a valid JSON object"));
        }
    }
}

/// The name of an attribute or a capacity of a device, which may have a domain.
fn own_name(name: &str, path: &Path<'_>, errors: &mut FieldErrors) {
    let own = match name.split_once('/') {
        Some((domain, own)) => {
            match domain {
                "" => errors.push(FieldError::invalid(path, "", "the domain must not be empty")),
                domain if domain.len() > DOMAIN_BYTES_MAX => {
                    errors.push(FieldError::too_long(path, DOMAIN_BYTES_MAX));
                }
                domain => checks::invalid(path, domain, names::dns_subdomain(&domain.to_lowercase()), errors),
            }
            if own.is_empty() {
                errors.push(FieldError::invalid(path, "", "the name must not be empty"));
                return;
            }
            own
        }
        None => name,
    };
    if own.len() > NAME_BYTES_MAX {
        errors.push(FieldError::too_long(path, NAME_BYTES_MAX));
    }
    checks::invalid(path, own, names::c_identifier(own), errors);
}

/// Whether a text is a version (semver.org, 2.0.0). Its numbers may be of any size.
fn is_version(text: &str) -> bool {
    let is_digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let is_number = |part: &str| is_digits(part) && (part == "0" || !part.starts_with('0'));
    let is_word =
        |part: &str| !part.is_empty() && part.bytes().all(|byte| byte == b'-' || byte.is_ascii_alphanumeric());
    let (text, build) = text.split_once('+').map_or((text, None), |(text, build)| (text, Some(build)));
    let (core, before) = text.split_once('-').map_or((text, None), |(core, before)| (core, Some(before)));
    core.split('.').count() == 3
        && core.split('.').all(is_number)
        && before
            .is_none_or(|parts| parts.split('.').all(|part| is_word(part) && (is_number(part) || !is_digits(part))))
        && build.is_none_or(|parts| parts.split('.').all(is_word))
}

/// The attributes and capacities of a device.
fn attributes(device: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    let count = device["attributes"].count() + device["capacity"].count();
    if count > ATTRIBUTES_MAX {
        let detail = format!("the total number of attributes and capacities must not exceed {ATTRIBUTES_MAX}");
        errors.push(FieldError::invalid(path, count, &detail));
    }
    let list = path.child("attributes");
    for (name, attribute) in device["attributes"].entries() {
        own_name(name, &list, errors);
        let path = list.key(name);
        let given: Vec<&str> = VALUES.into_iter().filter(|value| attribute[*value].is_set()).collect();
        let known = || VALUES.map(|value| format!("`{value}`")).join(", ");
        match given.as_slice() {
            [] => errors.push(FieldError::invalid(path, "", &format!("must specify one of: {}", known()))),
            [_] => {}
            several => {
                let shown = format!("{{{}}}", several.join(", "));
                errors.push(FieldError::invalid(path, shown, &format!("must specify exactly one of: {}", known())));
                continue;
            }
        }
        for value in ["string", "version"] {
            let text = attribute[value].text();
            if text.len() > ATTRIBUTE_BYTES_MAX {
                errors.push(FieldError::too_long(path.child(value), ATTRIBUTE_BYTES_MAX));
            } else if value == "version" && attribute[value].is_set() && !is_version(text) {
                let detail = "must be a string compatible with semver.org spec 2.0.0";
                errors.push(FieldError::invalid(path.child(value), text, detail));
            }
        }
    }
    let list = path.child("capacity");
    device["capacity"].entries().for_each(|(name, _)| own_name(name, &list, errors));
}

/// The types of attributes.
const VALUES: [&str; 8] = ["int", "bool", "string", "version", "ints", "bools", "strings", "versions"];

/// Where devices are, that each has a name of its own, and that its attributes have values.
fn slice(object: &Value, errors: &mut FieldErrors) {
    const PLACES: [&str; 4] = ["nodeName", "nodeSelector", "allNodes", "perDeviceNodeSelection"];
    let spec = &object["spec"];
    let pool = spec["pool"]["name"].text();
    for part in pool.split('/').filter(|_| !pool.is_empty()) {
        checks::dns_subdomain(&Path::new("spec.pool.name"), part, errors);
    }
    if spec["nodeName"] == "" {
        let detail = "must be either unset or set to a non-empty string";
        errors.push(FieldError::invalid("spec.nodeName", "", detail));
    }
    for place in ["allNodes", "perDeviceNodeSelection"].into_iter().filter(|place| spec[*place] == false) {
        let detail = "must be either unset or set to true";
        errors.push(FieldError::invalid(Path::new("spec").child(place), false, detail));
    }
    let given: Vec<&str> = PLACES
        .into_iter()
        .filter(|place| spec[*place].is_set() && spec[*place] != false && spec[*place] != "")
        .collect();
    let one = "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required";
    match given.as_slice() {
        [] => errors.push(FieldError::required("spec", one)),
        [_] => {}
        several => {
            let several: Vec<String> = several.iter().map(|place| format!("`{place}`")).collect();
            let shown = format!("{{{}}}", several.join(", "));
            errors.push(FieldError::invalid("spec", shown, &format!("{one}, but multiple fields are set")));
        }
    }
    let (devices, list) = (spec["devices"].items(), Path::new("spec.devices"));
    for (index, device) in devices.iter().enumerate() {
        attributes(device, &list.index(index), errors);
    }
    for (index, again) in repeats(devices.iter().map(|device| device["name"].text())).into_iter().enumerate() {
        if again {
            errors.push(FieldError::duplicate(list.index(index), devices[index]["name"].text()));
        }
    }
}
