//! Who may do what, and how much of it at a time; and what the cluster says of itself.

use std::sync::Arc;

use serde_json::Value;

use super::rules::{Check, Rule};
use super::show::Show::{Age, Any, Made, Name, Number, Of, Text};
use super::{BLANK, Kind, Stored, Support, condition, flow, row};
use crate::kinds::pod::signer_name;
use crate::kinds::value::{Read, child, default_when_zero, items_mut, or};
use crate::kinds::{AGE, Cell, Column, FieldError, FieldErrors, NAME, checks, column, internal, wide};
use crate::meta::field::{Path, Printed};
use crate::meta::names;
use crate::meta::selector::validate_label_selector;
use crate::schema::{List, ListKind, Named, Type};

const MADE: Column = column("Created At", "date");
const GROUP: &str = "rbac.authorization.k8s.io";
const CONDITION: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Condition";

const MIGRATION: &[Rule] = &[
    Rule("spec.resource.resource", Check::Required("resource is required to be set")),
    Rule("spec.resource.resource", Check::Label1035),
    Rule("spec.resource.group", Check::Subdomain),
];

pub(super) static ROWS: &[Kind] = &[
    // Nothing is ever made of this kind: it is an old way to ask for the health of parts that are one process here.
    row!(cluster "" "io.k8s.api.core.v1" "ComponentStatus" "componentstatuses" "componentstatus",
        [
            NAME => Name,
            column("Status", "string") => Text("conditions.status", ""),
            column("Message", "string") => Text("conditions.message", ""),
            column("Error", "string") => Text("conditions.error", ""),
        ],
        Stored::new(Support::Honoured), short_names: &["cs"], verbs: &["get", "list"]),
    row!(cluster "rbac.authorization.k8s.io" "io.k8s.api.rbac.v1" "ClusterRoleBinding" "clusterrolebindings"
        "clusterrolebinding",
        [
            NAME => Name,
            column("Role", "string") => Of(role),
            AGE => Age,
            wide("Users", "string") => Of(users),
            wide("Groups", "string") => Of(groups),
            wide("ServiceAccounts", "string") => Of(accounts),
        ],
        binding().check_by(cluster_role_binding)),
    row!(cluster "rbac.authorization.k8s.io" "io.k8s.api.rbac.v1" "ClusterRole" "clusterroles" "clusterrole",
        [NAME => Name, MADE => Made],
        Stored::new(Support::Honoured).named_as_path().made_by_update().check_by(cluster_role)),
    row!(namespaced "rbac.authorization.k8s.io" "io.k8s.api.rbac.v1" "RoleBinding" "rolebindings" "rolebinding",
        [
            NAME => Name,
            column("Role", "string") => Of(role),
            AGE => Age,
            wide("Users", "string") => Of(users),
            wide("Groups", "string") => Of(groups),
            wide("ServiceAccounts", "string") => Of(accounts),
        ],
        binding().check_by(role_binding)),
    row!(namespaced "rbac.authorization.k8s.io" "io.k8s.api.rbac.v1" "Role" "roles" "role",
        [NAME => Name, MADE => Made],
        Stored::new(Support::Honoured).named_as_path().made_by_update()
            .check_by(role_in_namespace)),
    row!(cluster "flowcontrol.apiserver.k8s.io" "io.k8s.api.flowcontrol.v1" "FlowSchema" "flowschemas" "flowschema",
        [
            NAME => Name,
            column("PriorityLevel", "string") => Text("spec.priorityLevelConfiguration.name", ""),
            column("MatchingPrecedence", "string") => Number("spec.matchingPrecedence"),
            column("DistinguisherMethod", "string") => Text("spec.distinguisherMethod.type", "<none>"),
            AGE => Age,
            column("MissingPL", "string") => Of(dangling),
        ],
        Stored::new(Support::Honoured).counted().default_by(flow::default_schema).rules(flow::SCHEMA)
            .check_by(flow::check_schema).check_status_by(flow::check_status).status_alone(),
        has_status: true),
    row!(cluster "flowcontrol.apiserver.k8s.io" "io.k8s.api.flowcontrol.v1" "PriorityLevelConfiguration"
        "prioritylevelconfigurations" "prioritylevelconfiguration",
        [
            NAME => Name,
            column("Type", "string") => Text("spec.type", ""),
            column("NominalConcurrencyShares", "string") => Any("spec.limited.nominalConcurrencyShares", "<none>"),
            column("Queues", "string") => Any("spec.limited.limitResponse.queuing.queues", "<none>"),
            column("HandSize", "string") => Any("spec.limited.limitResponse.queuing.handSize", "<none>"),
            column("QueueLengthLimit", "string") => Any("spec.limited.limitResponse.queuing.queueLengthLimit", "<none>"),
            AGE => Age,
        ],
        Stored::new(Support::Honoured).counted().default_by(flow::default_level).rules(flow::LEVEL)
            .check_by(flow::check_level).check_status_by(flow::check_status).status_alone(),
        has_status: true),
    row!(cluster "certificates.k8s.io" "io.k8s.api.certificates.v1" "ClusterTrustBundle" "clustertrustbundles"
        "clustertrustbundle",
        [NAME => Name, column("SignerName", "string") => Text("spec.signerName", "<none>")],
        Stored::new(Support::Honoured).check_by(trust_bundle).fixes(&["spec.signerName"])
            .named_by(|_, _| Vec::new()).needs_version(),
        selectable: &["spec.signerName"]),
    row!(cluster "storagemigration.k8s.io" "io.k8s.api.storagemigration.v1" "StorageVersionMigration"
        "storageversionmigrations" "storageversionmigration",
        [
            column("Name", "string") => Name,
            column("Resource", "string") => Of(migrated),
            column("Status", "string") => Of(migration),
        ],
        Stored::inert("no controller acts on it yet").rules(MIGRATION).check_change_by(same_migration)
            .check_status_by(migration_status).status_alone().needs_version(),
        has_status: true),
];

const fn binding() -> Stored {
    Stored::new(Support::Honoured)
        .default_by(default_binding)
        .requires(&["roleRef.name"])
        .check_change_by(same_role)
        .named_as_path()
        .made_by_update()
}

fn default_binding(object: &mut Value) {
    default_when_zero(child(object, "roleRef"), "apiGroup", GROUP);
    for subject in items_mut(object, "subjects") {
        if matches!(subject["kind"].text(), "User" | "Group") {
            default_when_zero(subject, "apiGroup", GROUP);
        }
    }
}

fn cluster_role(role: &Value, errors: &mut FieldErrors) {
    rules(role, true, errors);
    let (selectors, path) = (&role["aggregationRule"]["clusterRoleSelectors"], "aggregationRule.clusterRoleSelectors");
    if !role["aggregationRule"].is_object() {
        return;
    }
    if selectors.items().is_empty() {
        errors.push(FieldError::required(
            path,
            "at least one clusterRoleSelector required if aggregationRule is non-nil",
        ));
    }
    for (index, selector) in selectors.items().iter().enumerate() {
        let (before, path) = (errors.len(), Path::new(path));
        let path = path.index(index);
        validate_label_selector(selector, &path, errors);
        if errors.len() > before {
            errors.push(FieldError::invalid(path, &Value::Null, "invalid label selector."));
        }
    }
}

fn role_in_namespace(role: &Value, errors: &mut FieldErrors) {
    rules(role, false, errors);
}

/// A rule that lacks a part would allow nothing in silence (`ValidatePolicyRule`).
fn rules(role: &Value, is_cluster: bool, errors: &mut FieldErrors) {
    for (index, rule) in role["rules"].items().iter().enumerate() {
        let list = Path::new("rules");
        let path = list.index(index);
        let lacks = |field: &str| rule[field].items().is_empty();
        if lacks("verbs") {
            errors.push(FieldError::required(path.child("verbs"), ""));
        }
        if !lacks("nonResourceURLs") {
            let urls = &rule["nonResourceURLs"];
            if !is_cluster {
                let why = "namespaced rules cannot apply to non-resource URLs";
                errors.push(FieldError::invalid(path.child("nonResourceURLs"), urls, why));
            }
            if !(lacks("apiGroups") && lacks("resources") && lacks("resourceNames")) {
                let why = "rules cannot apply to both regular resources and non-resource URLs";
                errors.push(FieldError::invalid(path.child("nonResourceURLs"), urls, why));
            }
            continue;
        }
        for (field, what) in [("apiGroups", "api group"), ("resources", "resource")] {
            if lacks(field) {
                let why = format!("resource rules must supply at least one {what}");
                errors.push(FieldError::required(path.child(field), &why));
            }
        }
    }
}

/// What is bound stays the same.
fn same_role(binding: &Value, old: &Value, errors: &mut FieldErrors) {
    if binding["roleRef"] != old["roleRef"] {
        let shown = internal::text("RoleRef", &binding["roleRef"]);
        errors.push(FieldError::invalid("roleRef", Printed(&shown), "field is immutable"));
    }
}

fn role_binding(binding: &Value, errors: &mut FieldErrors) {
    whom(binding, &["Role", "ClusterRole"], errors);
}

fn cluster_role_binding(binding: &Value, errors: &mut FieldErrors) {
    whom(binding, &["ClusterRole"], errors);
}

/// What is bound, and to whom (`ValidateRoleBindingSubject`).
fn whom(binding: &Value, kinds: &[&str], errors: &mut FieldErrors) {
    let (role, path) = (&binding["roleRef"], Path::new("roleRef"));
    if role["apiGroup"] != GROUP {
        errors.push(FieldError::not_supported(path.child("apiGroup"), role["apiGroup"].text(), &[GROUP]));
    }
    if !kinds.contains(&role["kind"].text()) {
        errors.push(FieldError::not_supported(path.child("kind"), role["kind"].text(), kinds));
    }
    let name = role["name"].text();
    checks::invalid(&path.child("name"), name, names::path_segment(name), errors);
    let is_namespaced = kinds.contains(&"Role");
    for (index, subject) in binding["subjects"].items().iter().enumerate() {
        let list = Path::new("subjects");
        let path = list.index(index);
        if subject["name"].is_empty() {
            errors.push(FieldError::required(path.child("name"), ""));
        }
        let group = match subject["kind"].text() {
            "ServiceAccount" => {
                if !subject["name"].is_empty() {
                    checks::dns_subdomain(&path.child("name"), subject["name"].text(), errors);
                }
                if subject["namespace"].is_empty() && !is_namespaced {
                    errors.push(FieldError::required(path.child("namespace"), ""));
                }
                ""
            }
            "User" | "Group" => GROUP,
            other => {
                let all = ["ServiceAccount", "User", "Group"];
                errors.push(FieldError::not_supported(path.child("kind"), other, &all));
                continue;
            }
        };
        if subject["apiGroup"].text() != group {
            errors.push(FieldError::not_supported(path.child("apiGroup"), subject["apiGroup"].text(), &[group]));
        }
    }
}

fn role(object: &Value) -> Cell {
    format!("{}/{}", object["roleRef"]["kind"].text(), object["roleRef"]["name"].text()).into()
}

/// Subjects of a kind.
fn subjects(object: &Value, kind: &str) -> Cell {
    let named = |subject: &Value| match (kind, subject["namespace"].text(), subject["name"].text()) {
        ("ServiceAccount", namespace, name) if !namespace.is_empty() => format!("{namespace}/{name}"),
        (_, _, name) => name.to_owned(),
    };
    let subjects = object["subjects"].items().iter().filter(|subject| subject["kind"] == kind);
    subjects.map(named).collect::<Vec<_>>().join(", ").into()
}

fn users(object: &Value) -> Cell {
    subjects(object, "User")
}

fn groups(object: &Value) -> Cell {
    subjects(object, "Group")
}

fn accounts(object: &Value) -> Cell {
    subjects(object, "ServiceAccount")
}

fn dangling(object: &Value) -> Cell {
    or(condition(object, "Dangling"), "?").into()
}

/// A bundle is named after its signer. What its certificates are, the API server looks into.
fn trust_bundle(object: &Value, errors: &mut FieldErrors) {
    let signer = object["spec"]["signerName"].text();
    if !signer.is_empty() {
        signer_name(signer, &Path::new("spec.signerName"), errors);
    }
    let prefix = if signer.is_empty() { String::new() } else { format!("{}:", signer.replace('/', ":")) };
    for (field, is_prefix) in [("generateName", true), ("name", false)] {
        let (name, path) = (object["metadata"][field].text(), Path::new("metadata"));
        let (own, path) = (name.strip_prefix(&prefix), path.child(field));
        match own {
            _ if name.is_empty() => {}
            None => {
                let detail = format!("ClusterTrustBundle for signerName {signer} must be named with prefix {prefix}");
                errors.push(FieldError::invalid(path, name, &detail));
            }
            Some(own) if signer.is_empty() && own.contains(':') => {
                let detail = "ClusterTrustBundle without signer name must not have \":\" in its name";
                errors.push(FieldError::invalid(path, name, detail));
            }
            Some(own) => checks::invalid(&path, name, names::name_is_dns_subdomain(own, is_prefix), errors),
        }
    }
    if !object["spec"]["trustBundle"].text().contains("-----BEGIN ") {
        let detail = "at least one trust anchor must be provided";
        errors.push(FieldError::invalid("spec.trustBundle", "<value omitted>", detail));
    }
}

/// What is migrated stays as it is.
fn same_migration(object: &Value, old: &Value, errors: &mut FieldErrors) {
    if object["spec"] != old["spec"] {
        let shown = internal::text("StorageVersionMigrationSpec", &object["spec"]);
        errors.push(FieldError::invalid("spec", Printed(&shown), "field is immutable"));
    }
}

/// A migration ends once, and in one way.
fn migration_status(object: &Value, old: &Value, errors: &mut FieldErrors) {
    let (status, path) = (&object["status"], Path::new("status"));
    let (conditions, version) = (&status["conditions"], status["resourceVersion"].text());
    checks::conditions(conditions.items(), &path.child("conditions"), errors);
    let path_of_version = path.child("resourceVersion");
    if !version.is_empty() && version.parse::<u64>().is_err() {
        let detail = format!("resource version is not well formed: {version}");
        errors.push(FieldError::invalid(path_of_version, version, &detail));
    }
    let before = old["status"]["resourceVersion"].text();
    if !before.is_empty() && version != before {
        errors.push(FieldError::invalid(path_of_version, version, "field is immutable"));
    }
    let is = |object: &Value, kind: &str| condition(object, kind) == "True";
    let ty = Type::List(Arc::new(List { items: Type::Named(Named::new(CONDITION)), kind: ListKind::Atomic }));
    let mut refuse = |detail: &str| {
        let shown = internal::ordered(&ty, conditions);
        errors.push(FieldError::invalid("status.conditions", Printed(&shown), detail));
    };
    if is(object, "Succeeded") && is(object, "Failed") {
        refuse("Both success and failed conditions cannot be true at the same time");
    }
    for (kind, word) in [("Succeeded", "Success"), ("Failed", "Failed")] {
        if is(old, kind) && !is(object, kind) {
            refuse(&format!("{word} condition cannot be set to false once it is true"));
        }
    }
}

fn migrated(object: &Value) -> Cell {
    let resource = &object["spec"]["resource"];
    match resource["group"].text() {
        "" => resource["resource"].text().into(),
        group => format!("{}.{group}", resource["resource"].text()).into(),
    }
}

fn migration(object: &Value) -> Cell {
    let conditions = object["status"]["conditions"].items().iter().rev();
    let known = |condition: &&Value| {
        condition["status"] == "True" && matches!(condition["type"].text(), "Running" | "Failed" | "Succeeded")
    };
    conditions
        .filter(|condition| condition.is_object())
        .find(known)
        .map_or("Unknown", |found| found["type"].text())
        .into()
}
