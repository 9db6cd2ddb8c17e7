//! Admission policies and their bindings (kubernetes-api §22.4): expressions are compiled when they are written, in the
//! reference's words. What they do is the API server's.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::BLANK;
use super::show::Show::{Age, Count, Name, Of, Text};
use super::{Kind, Stored, Support, row};
use crate::cel::admission::{Compiler, Gives};
use crate::cel::is_name;
use crate::kinds::admission::{conditions, rules};
use crate::kinds::value::{Read, child, default_to, items_mut};
use crate::kinds::{AGE, Cell, FieldError, FieldErrors, NAME, checks, column};
use crate::meta::field::Path;
use crate::meta::names;
use crate::meta::selector::validate_label_selector;

const EXTENSIONS: &[&str] = &["api-extensions"];
const FAILURES: [&str; 2] = ["Fail", "Ignore"];
const MATCHES: [&str; 2] = ["Equivalent", "Exact"];
const ACTIONS: [&str; 3] = ["Audit", "Deny", "Warn"];
const REASONS: [&str; 3] = ["Forbidden", "Invalid", "RequestEntityTooLarge"];
const REINVOCATIONS: [&str; 2] = ["IfNeeded", "Never"];
const PATCHES: [&str; 2] = ["ApplyConfiguration", "JSONPatch"];
/// What can be changed: there is nothing to change in a deletion.
const CHANGED: [&str; 4] = ["*", "CONNECT", "CREATE", "UPDATE"];
const ANNOTATIONS_MAX: usize = 20;
/// Most bytes of the expression of an annotation.
const ANNOTATION_BYTES_MAX: usize = 5 << 10;
/// Names of what only files can configure.
const STATIC: &str = ".static.k8s.io";

const fn policy() -> Stored {
    Stored::new(Support::Honoured).counted().needs_version().checked_once()
}

pub(super) static ROWS: &[Kind] = &[
    row!(cluster "admissionregistration.k8s.io" "io.k8s.api.admissionregistration.v1" "MutatingAdmissionPolicy"
        "mutatingadmissionpolicies" "mutatingadmissionpolicy",
        [
            NAME => Name,
            column("Mutations", "integer") => Count("spec.mutations"),
            column("ParamKind", "string") => Of(param_kind),
            AGE => Age,
        ],
        policy().compiling().default_by(default_policy).check_by(new_mutating)
            .check_change_by(|object, _, errors| mutating(object, errors)),
        categories: EXTENSIONS),
    row!(cluster "admissionregistration.k8s.io" "io.k8s.api.admissionregistration.v1" "MutatingAdmissionPolicyBinding"
        "mutatingadmissionpolicybindings" "mutatingadmissionpolicybinding",
        [
            NAME => Name,
            column("PolicyName", "string") => Text("spec.policyName", ""),
            column("ParamRef", "string") => Of(param_ref),
            AGE => Age,
        ],
        policy().default_by(default_binding).check_by(new_mutating_binding)
            .check_change_by(|object, _, errors| mutating_binding(object, errors)),
        categories: EXTENSIONS),
    row!(cluster "admissionregistration.k8s.io" "io.k8s.api.admissionregistration.v1" "ValidatingAdmissionPolicy"
        "validatingadmissionpolicies" "validatingadmissionpolicy",
        [
            NAME => Name,
            column("Validations", "integer") => Count("spec.validations"),
            column("ParamKind", "string") => Of(param_kind),
            AGE => Age,
        ],
        policy().compiling().default_by(default_policy).check_by(new_validating)
            .check_change_by(|object, _, errors| validating(object, errors)).check_status_by(status),
        categories: EXTENSIONS, has_status: true),
    row!(cluster "admissionregistration.k8s.io" "io.k8s.api.admissionregistration.v1" "ValidatingAdmissionPolicyBinding"
        "validatingadmissionpolicybindings" "validatingadmissionpolicybinding",
        [
            NAME => Name,
            column("PolicyName", "string") => Text("spec.policyName", ""),
            column("ParamRef", "string") => Of(param_ref),
            AGE => Age,
        ],
        policy().default_by(default_binding).check_by(new_validating_binding)
            .check_change_by(|object, _, errors| validating_binding(object, errors)),
        categories: EXTENSIONS),
];

fn param_kind(object: &Value) -> Cell {
    match &object["spec"]["paramKind"] {
        Value::Null => "<unset>".into(),
        kind => format!("{}/{}", kind["apiVersion"].text(), kind["kind"].text()).into(),
    }
}

fn param_ref(object: &Value) -> Cell {
    let params = &object["spec"]["paramRef"];
    match (params["namespace"].text(), params["name"].text()) {
        ("", "") if params["selector"].is_set() => selector_text(&params["selector"]).into(),
        (_, "") => "<unset>".into(),
        ("", name) => format!("*/{name}").into(),
        (namespace, name) => format!("{namespace}/{name}").into(),
    }
}

/// A label selector as Go prints its structure.
fn selector_text(selector: &Value) -> String {
    let labels: String =
        selector["matchLabels"].entries().map(|(key, value)| format!("{key}: {},", value.text())).collect();
    let expressions: String = selector["matchExpressions"]
        .items()
        .iter()
        .map(|one| {
            let values: Vec<&str> = one["values"].items().iter().map(Read::text).collect();
            format!(
                "LabelSelectorRequirement{{Key:{},Operator:{},Values:[{}],}},",
                one["key"].text(),
                one["operator"].text(),
                values.join(" ")
            )
        })
        .collect();
    format!(
        "&LabelSelector{{MatchLabels:map[string]string{{{labels}}},MatchExpressions:[]LabelSelectorRequirement{{{expressions}}},}}"
    )
}

fn default_policy(object: &mut Value) {
    let spec = child(object, "spec");
    default_to(spec, "failurePolicy", "Fail");
    default_resources(spec, "matchConstraints");
}

fn default_binding(object: &mut Value) {
    default_resources(child(object, "spec"), "matchResources");
}

fn default_resources(spec: &mut Value, field: &str) {
    if spec[field].is_null() {
        return;
    }
    let resources = child(spec, field);
    default_to(resources, "matchPolicy", "Equivalent");
    for field in ["namespaceSelector", "objectSelector"] {
        default_to(resources, field, json!({}));
    }
    for list in ["resourceRules", "excludeResourceRules"] {
        for rule in items_mut(resources, list) {
            default_to(rule, "scope", "*");
        }
    }
}

fn new_validating(object: &Value, errors: &mut FieldErrors) {
    validating(object, errors);
    reserved(object, errors);
}

fn new_mutating(object: &Value, errors: &mut FieldErrors) {
    mutating(object, errors);
    reserved(object, errors);
}

fn new_validating_binding(object: &Value, errors: &mut FieldErrors) {
    validating_binding(object, errors);
    reserved(object, errors);
}

fn new_mutating_binding(object: &Value, errors: &mut FieldErrors) {
    mutating_binding(object, errors);
    reserved(object, errors);
}

fn reserved(object: &Value, errors: &mut FieldErrors) {
    let name = object["metadata"]["name"].text();
    if name.ends_with(STATIC) {
        let detail = format!(
            "names ending with \"{STATIC}\" are reserved for static manifest-based configurations and cannot be managed via the API"
        );
        errors.push(FieldError::invalid("metadata.name", name, &detail));
    }
}

/// What both kinds of policy have before their own expressions.
fn head(spec: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    match spec["failurePolicy"].is_set() {
        true => checks::supported(&path.child("failurePolicy"), &spec["failurePolicy"], &FAILURES, errors),
        false => errors.push(FieldError::required(path.child("failurePolicy"), "")),
    }
    if spec["paramKind"].is_set() {
        params_kind(&spec["paramKind"], &path.child("paramKind"), errors);
    }
    let constraints = path.child("matchConstraints");
    match &spec["matchConstraints"] {
        Value::Null => errors.push(FieldError::required(constraints, "")),
        resources => {
            match_resources(resources, &constraints, errors);
            if resources["resourceRules"].items().is_empty() {
                errors.push(FieldError::required(constraints.child("resourceRules"), ""));
            }
        }
    }
}

fn params_kind(kind: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    let (api_version, of) = (path.child("apiVersion"), kind["apiVersion"].text());
    let (group, version) = of.split_once('/').unwrap_or(("", of));
    match of {
        "" => errors.push(FieldError::required(api_version, "")),
        _ if of.matches('/').count() > 1 => {
            errors.push(FieldError::invalid(api_version, of, &format!("unexpected GroupVersion string: {of}")));
        }
        _ => {
            let wrong = if group.is_empty() { Vec::new() } else { names::dns_subdomain(group) };
            if !wrong.is_empty() {
                errors.push(FieldError::invalid(api_version, group, &wrong.join(",")));
            }
            let wrong = names::dns_1035_label(version);
            if version.is_empty() {
                errors.push(FieldError::invalid(api_version, of, "version must be specified"));
            } else if !wrong.is_empty() {
                errors.push(FieldError::invalid(api_version, version, &wrong.join(",")));
            }
        }
    }
    let (path, name) = (path.child("kind"), kind["kind"].text());
    let wrong = names::dns_1035_label(&name.to_lowercase());
    if name.is_empty() {
        errors.push(FieldError::required(path, ""));
    } else if !wrong.is_empty() {
        let detail = format!("may have mixed case, but should otherwise match: {}", wrong.join(","));
        errors.push(FieldError::invalid(path, name, &detail));
    }
}

fn match_resources(resources: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    if resources.is_null() {
        return;
    }
    checks::required_of(&path.child("matchPolicy"), &resources["matchPolicy"], &MATCHES, errors);
    for field in ["namespaceSelector", "objectSelector"] {
        let path = path.child(field);
        match &resources[field] {
            Value::Null => errors.push(FieldError::required(path, "")),
            selector => validate_label_selector(selector, &path, errors),
        }
    }
    for list in ["resourceRules", "excludeResourceRules"] {
        let path = path.child(list);
        for (index, rule) in resources[list].items().iter().enumerate() {
            let path = path.index(index);
            let mut seen = HashSet::new();
            for (index, name) in rule["resourceNames"].items().iter().enumerate() {
                let path = path.child("resourceNames");
                let path = path.index(index);
                checks::invalid(&path, name.text(), names::path_segment(name.text()), errors);
                if !seen.insert(name.text()) {
                    errors.push(FieldError::duplicate(path, name));
                }
            }
            rules::rule_with_operations(rule, &path, errors);
        }
    }
}

/// Rules that are about what cannot be changed.
fn changed_only(resources: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    let path = path.child("resourceRules");
    for operation in resources["resourceRules"].items().iter().flat_map(|rule| rule["operations"].items()) {
        if !CHANGED.contains(&operation.text()) {
            errors.push(FieldError::not_supported(path.child("operations"), operation, &CHANGED));
        }
    }
}

fn variables(compiler: &mut Compiler<'_>, spec: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    let path = path.child("variables");
    for (index, variable) in spec["variables"].items().iter().enumerate() {
        let path = path.index(index);
        let (name, source) = (variable["name"].text(), variable["expression"].text());
        if name.trim().is_empty() {
            errors.push(FieldError::required(path.child("name"), "name is not specified"));
        } else if !is_name(name) {
            errors.push(FieldError::invalid(path.child("name"), name, "must be a valid CEL identifier"));
        }
        let path = path.child("expression");
        if source.trim().is_empty() {
            errors.push(FieldError::required(path, "expression is not specified"));
        } else if let Err(why) = compiler.variable(name, source) {
            errors.push(FieldError::invalid(path, source, &why));
        }
    }
}

fn validating(object: &Value, errors: &mut FieldErrors) {
    let (path, spec) = (Path::new("spec"), &object["spec"]);
    head(spec, &path, errors);
    let has_params = spec["paramKind"].is_set();
    let mut compiler = Compiler::new(has_params);
    conditions::match_conditions(&spec["matchConditions"], &mut compiler, &path.child("matchConditions"), errors);
    if !spec["variables"].items().is_empty() {
        compiler.declare();
        variables(&mut compiler, spec, &path, errors);
    }
    let (validations, annotations) = (spec["validations"].items(), spec["auditAnnotations"].items());
    if validations.is_empty() && annotations.is_empty() {
        for field in ["validations", "auditAnnotations"] {
            let detail = "validations or auditAnnotations must contain at least one item";
            errors.push(FieldError::required(path.child(field), detail));
        }
    }
    let list = path.child("validations");
    for (index, one) in validations.iter().enumerate() {
        validation(&mut compiler, one, &list.index(index), errors);
    }
    let list = path.child("auditAnnotations");
    if annotations.len() > ANNOTATIONS_MAX {
        let detail = format!("must not have more than {ANNOTATIONS_MAX} auditAnnotations");
        errors.push(FieldError::invalid(list, &spec["auditAnnotations"], &detail));
    }
    let mut seen = HashSet::new();
    for (index, one) in annotations.iter().take(ANNOTATIONS_MAX).enumerate() {
        let path = list.index(index);
        annotation(&mut compiler, object["metadata"]["name"].text(), one, &path, errors);
        if !seen.insert(one["key"].text()) {
            errors.push(FieldError::duplicate(path.child("key"), &one["key"]));
        }
    }
}

fn validation(compiler: &mut Compiler<'_>, one: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    let (at, source) = (path.child("expression"), one["expression"].text());
    if source.trim().is_empty() {
        errors.push(FieldError::required(at, "expression is not specified"));
    } else if let Err(why) = compiler.expression(source, Gives::Bool, true) {
        errors.push(FieldError::invalid(at, source, &why));
    }
    let (at, source) = (path.child("messageExpression"), one["messageExpression"].text());
    if !source.is_empty() && source.trim().is_empty() {
        errors.push(FieldError::invalid(at, source, "must be non-empty if specified"));
    } else if !source.is_empty()
        && let Err(why) = compiler.expression(source, Gives::Text, false)
    {
        errors.push(FieldError::invalid(at, source, &why));
    }
    let (at, message) = (path.child("message"), one["message"].text());
    if !message.is_empty() && message.trim().is_empty() {
        errors.push(FieldError::invalid(at, message, "must be non-empty if specified"));
    } else if message.trim().contains(['\n', '\r']) {
        errors.push(FieldError::invalid(at, message, "must not contain line breaks"));
    }
    let reason = &one["reason"];
    if reason.is_set() && !REASONS.contains(&reason.text()) {
        errors.push(FieldError::not_supported(path.child("reason"), reason, &REASONS));
    }
}

fn annotation(compiler: &mut Compiler<'_>, policy: &str, one: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    let (at, key) = (path.child("key"), one["key"].text());
    if policy.is_empty() {
        errors.push(FieldError::invalid(at, key, "requires metadata.name be non-empty"));
    } else {
        checks::qualified_name(&at, &format!("{policy}/{key}"), errors);
    }
    let (path, source) = (path.child("valueExpression"), one["valueExpression"].text());
    let trimmed = source.trim();
    if trimmed.is_empty() {
        errors.push(FieldError::required(path, "valueExpression is not specified"));
    } else if trimmed.len() > ANNOTATION_BYTES_MAX {
        let detail = format!("must not exceed {ANNOTATION_BYTES_MAX} bytes in length");
        errors.push(FieldError::required(path, &detail));
    } else if let Err(why) = compiler.expression(trimmed, Gives::TextOrNull, true) {
        errors.push(FieldError::invalid(path, source, &why));
    }
}

fn mutating(object: &Value, errors: &mut FieldErrors) {
    let (path, spec) = (Path::new("spec"), &object["spec"]);
    head(spec, &path, errors);
    changed_only(&spec["matchConstraints"], &path.child("matchConstraints"), errors);
    let has_params = spec["paramKind"].is_set();
    let mut compiler = Compiler::new(has_params);
    conditions::match_conditions(&spec["matchConditions"], &mut compiler, &path.child("matchConditions"), errors);
    compiler.declare();
    variables(&mut compiler, spec, &path, errors);
    let list = path.child("mutations");
    if spec["mutations"].items().is_empty() {
        errors.push(FieldError::required(list, "mutations must contain at least one item"));
    }
    for (index, one) in spec["mutations"].items().iter().enumerate() {
        mutation(&mut compiler, one, &list.index(index), errors);
    }
    checks::required_of(&path.child("reinvocationPolicy"), &spec["reinvocationPolicy"], &REINVOCATIONS, errors);
}

fn mutation(compiler: &mut Compiler<'_>, one: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    let patch = one["patchType"].text();
    let (own, other, gives) = match patch {
        "JSONPatch" => ("jsonPatch", "applyConfiguration", Gives::Patch),
        "ApplyConfiguration" => ("applyConfiguration", "jsonPatch", Gives::Apply),
        "" => return errors.push(FieldError::required(path.child("patchType"), "")),
        _ => return errors.push(FieldError::not_supported(path.child("patchType"), patch, &PATCHES)),
    };
    let at = path.child(own);
    if one[own].is_null() {
        errors.push(FieldError::required(at, &format!("must be specified when patchType is {patch}")));
    } else {
        let at = at.child("expression");
        match one[own]["expression"].text().trim() {
            "" => errors.push(FieldError::required(at, "")),
            source => {
                if let Err(why) = compiler.expression(source, gives, true) {
                    errors.push(FieldError::invalid(at, source, &why));
                }
            }
        }
    }
    if one[other].is_set() {
        let detail = format!("must not be specified when patchType is {patch}");
        errors.push(FieldError::invalid(path.child(other), format!("{{{other}}}"), &detail));
    }
}

/// What both kinds of binding have.
fn binding(spec: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    let name = path.child("policyName");
    match spec["policyName"].text() {
        "" => errors.push(FieldError::required(name, "")),
        text => checks::invalid(&name, text, names::name_is_dns_subdomain(text, false), errors),
    }
    if spec["paramRef"].is_set() {
        params(&spec["paramRef"], &path.child("paramRef"), errors);
    }
    match_resources(&spec["matchResources"], &path.child("matchResources"), errors);
}

fn params(params: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    const EXCLUSIVE: &str = "name and selector are mutually exclusive";
    let (name, selector) = (params["name"].text(), &params["selector"]);
    if !name.is_empty() {
        checks::invalid(&path.child("name"), name, names::path_segment(name), errors);
        if selector.is_set() {
            errors.push(FieldError::forbidden(path.child("name"), EXCLUSIVE));
        }
    }
    if selector.is_set() {
        validate_label_selector(selector, &path.child("selector"), errors);
        if !name.is_empty() {
            errors.push(FieldError::forbidden(path.child("selector"), EXCLUSIVE));
        }
    } else if name.is_empty() {
        errors.push(FieldError::required(path, "one of name or selector must be specified"));
    }
    let at = path.child("parameterNotFoundAction");
    checks::required_of(&at, &params["parameterNotFoundAction"], &["Deny", "Allow"], errors);
}

fn validating_binding(object: &Value, errors: &mut FieldErrors) {
    let (path, spec) = (Path::new("spec"), &object["spec"]);
    binding(spec, &path, errors);
    let (path, actions) = (path.child("validationActions"), &spec["validationActions"]);
    let mut seen = HashSet::new();
    for (index, action) in actions.items().iter().enumerate() {
        if !ACTIONS.contains(&action.text()) {
            errors.push(FieldError::not_supported(path.index(index), action, &ACTIONS));
        }
        if !seen.insert(action.text()) {
            errors.push(FieldError::duplicate(path.index(index), action));
        }
    }
    if seen.contains("Deny") && seen.contains("Warn") {
        let detail = "must not contain both Deny and Warn (repeating the same validation failure information in the API \
                      response and headers serves no purpose)";
        errors.push(FieldError::invalid(path, actions, detail));
    }
    if seen.is_empty() {
        errors.push(FieldError::required(path, ""));
    }
}

fn mutating_binding(object: &Value, errors: &mut FieldErrors) {
    let (path, spec) = (Path::new("spec"), &object["spec"]);
    binding(spec, &path, errors);
    changed_only(&spec["matchResources"], &path.child("matchResources"), errors);
}

fn status(object: &Value, _: &Value, errors: &mut FieldErrors) {
    let (path, status) = (Path::new("status"), &object["status"]);
    let list = path.child("typeChecking");
    let list = list.child("expressionWarnings");
    for (index, warning) in status["typeChecking"]["expressionWarnings"].items().iter().enumerate() {
        let path = list.index(index);
        for field in ["warning", "fieldRef"] {
            if warning[field].text().trim().is_empty() {
                errors.push(FieldError::required(path.child(field), ""));
            }
        }
    }
    checks::conditions(status["conditions"].items(), &path.child("conditions"), errors);
}
