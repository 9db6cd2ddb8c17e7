//! Containers: regular ones, those that initialize, and those that are added to a running pod.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use super::{Ratchet, env, probe, resources, security};
use crate::kinds::value::{Read, repeats};
use crate::kinds::{FieldError, FieldErrors, checks};
use crate::meta::field::Path;
use crate::meta::names;

const RULES_MAX: usize = 20;
const EXIT_CODES_MAX: usize = 255;

/// What checks of containers know of the pod.
pub(super) struct Scope<'a> {
    /// The pod's spec.
    pub(super) spec: &'a Value,
    /// Its valid volumes, by name.
    volumes: HashMap<&'a str, &'a Value>,
    /// Names of its resource claims.
    pub(super) claims: &'a [&'a str],
    pub(super) ratchet: Ratchet,
}

impl<'a> Scope<'a> {
    pub(super) fn new(spec: &'a Value, volumes: &[&'a Value], claims: &'a [&'a str], ratchet: Ratchet) -> Self {
        // Of volumes of one name the first counts.
        let volumes = volumes.iter().rev().map(|volume| (volume["name"].text(), *volume)).collect();
        Self { spec, volumes, claims, ratchet }
    }

    /// The valid volume of a name.
    pub(super) fn volume(&self, name: &str) -> Option<&'a Value> {
        self.volumes.get(name).copied()
    }
}

/// The names of containers.
fn names_of(containers: &[Value]) -> impl Iterator<Item = &str> {
    containers.iter().map(|container| container["name"].text())
}

pub(super) fn regular(scope: &Scope<'_>, path: &Path<'_>, errors: &mut FieldErrors) {
    let containers = scope.spec["containers"].items();
    if containers.is_empty() {
        errors.push(FieldError::required(path, ""));
        return;
    }
    let repeated = repeats(names_of(containers));
    for (index, container) in containers.iter().enumerate() {
        let path = path.index(index);
        common(container, scope, &path, errors);
        if repeated[index] {
            errors.push(FieldError::duplicate(path.child("name"), container["name"].text()));
        }
        probe::lifecycle_and_probes(container, scope.spec, &path, errors);
        restart_policy(container, &path, errors);
    }
    host_ports(containers, path, errors);
}

pub(super) fn init(scope: &Scope<'_>, path: &Path<'_>, errors: &mut FieldErrors) {
    let containers = scope.spec["initContainers"].items();
    let regular: HashSet<&str> = names_of(scope.spec["containers"].items()).collect();
    let repeated = repeats(names_of(containers));
    for (index, container) in containers.iter().enumerate() {
        let list = path;
        let path = list.index(index);
        common(container, scope, &path, errors);
        let policy = &container["restartPolicy"];
        restart_policy(container, &path, errors);
        let name = container["name"].text();
        if regular.contains(name) || (!name.is_empty() && repeated[index]) {
            errors.push(FieldError::duplicate(path.child("name"), name));
        }
        host_ports(std::slice::from_ref(container), list, errors);
        if policy == "Always" {
            probe::lifecycle_and_probes(container, scope.spec, &path, errors);
        } else {
            for field in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
                if container[field].is_set() {
                    let detail = "may not be set for init containers without restartPolicy=Always";
                    errors.push(FieldError::forbidden(path.child(field), detail));
                }
            }
            if !scope.ratchet.init_restarts {
                let resize = path.child("resizePolicy");
                for (index, policy) in container["resizePolicy"].items().iter().enumerate() {
                    if policy["restartPolicy"] == "RestartContainer" {
                        let detail = "must not be set to 'RestartContainer' for non-sidecar initContainers";
                        let path = resize.index(index);
                        errors.push(FieldError::invalid(path.child("restartPolicy"), "RestartContainer", detail));
                    }
                }
            }
        }
    }
}

pub(super) fn ephemeral(scope: &Scope<'_>, path: &Path<'_>, errors: &mut FieldErrors) {
    let containers = scope.spec["ephemeralContainers"].items();
    let (regular, init) = (scope.spec["containers"].items(), scope.spec["initContainers"].items());
    let others: HashSet<&str> = names_of(regular).chain(names_of(init)).collect();
    let repeated = repeats(names_of(containers));
    for (index, container) in containers.iter().enumerate() {
        let path = path.index(index);
        common(container, scope, &path, errors);
        image_without_padding(container, &path, errors);
        let name = container["name"].text();
        if others.contains(name) || repeated[index] {
            errors.push(FieldError::duplicate(path.child("name"), name));
        }
        let target = container["targetContainerName"].text();
        if !target.is_empty() && !others.contains(target) {
            errors.push(FieldError::not_found(path.child("targetContainerName"), target));
        }
        const FORBIDDEN: [&str; 9] = [
            "ports",
            "resources",
            "resizePolicy",
            "restartPolicy",
            "restartPolicyRules",
            "livenessProbe",
            "readinessProbe",
            "startupProbe",
            "lifecycle",
        ];
        const DETAIL: &str = "cannot be set for an Ephemeral Container";
        // An empty list is none, an empty structure is one, but for resources.
        let is_given = |field: &&str| {
            let value = &container[*field];
            value.is_set() && (!value.is_empty() || (value.is_object() && *field != "resources"))
        };
        for field in FORBIDDEN.into_iter().filter(is_given) {
            errors.push(FieldError::forbidden(path.child(field), DETAIL));
        }
        let mounts = path.child("volumeMounts");
        for (index, mount) in container["volumeMounts"].items().iter().enumerate() {
            for field in ["subPath", "subPathExpr"].into_iter().filter(|field| !mount[*field].is_empty()) {
                errors.push(FieldError::forbidden(mounts.index(index).child(field), DETAIL));
            }
        }
    }
}

fn common(container: &Value, scope: &Scope<'_>, path: &Path<'_>, errors: &mut FieldErrors) {
    match container["name"].text() {
        "" => errors.push(FieldError::required(path.child("name"), "")),
        name => checks::dns_label(&path.child("name"), name, errors),
    }
    checks::required(&path.child("image"), &container["image"], errors);
    let policies = ["File", "FallbackToLogsOnError"];
    let policy = &container["terminationMessagePolicy"];
    checks::required_of(&path.child("terminationMessagePolicy"), policy, &policies, errors);
    ports(container["ports"].items(), &path.child("ports"), errors);
    env::variables(container["env"].items(), &path.child("env"), errors);
    env::sources(container["envFrom"].items(), &path.child("envFrom"), errors);
    mounts(container, scope, &path.child("volumeMounts"), errors);
    devices(container, scope, &path.child("volumeDevices"), errors);
    pull_policy(&container["imagePullPolicy"], &path.child("imagePullPolicy"), errors);
    resources::container(container, scope, &path.child("resources"), errors);
    resize_policy(container, scope.spec, &path.child("resizePolicy"), errors);
    let context = &container["securityContext"];
    security::container_context(context, scope, &path.child("securityContext"), errors);
}

pub(super) fn pull_policy(policy: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    checks::required_of(path, policy, &["Always", "IfNotPresent", "Never"], errors);
}

/// An image reference has no spaces around it.
pub(super) fn image_without_padding(container: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    let image = container["image"].text();
    if image.trim() != image {
        let detail = "must not have leading or trailing whitespace";
        errors.push(FieldError::invalid(path.child("image"), image, detail));
    }
}

fn ports(ports: &[Value], path: &Path<'_>, errors: &mut FieldErrors) {
    let repeated = repeats(ports.iter().map(|port| port["name"].text()));
    for (index, port) in ports.iter().enumerate() {
        let (path, name) = (path.index(index), port["name"].text());
        if !name.is_empty() {
            let wrong = names::port_name(name);
            if wrong.is_empty() && repeated[index] {
                errors.push(FieldError::duplicate(path.child("name"), name));
            }
            checks::invalid(&path.child("name"), name, wrong, errors);
        }
        if port["containerPort"].int() == 0 {
            errors.push(FieldError::required(path.child("containerPort"), ""));
        } else {
            checks::port_number(&path.child("containerPort"), &port["containerPort"], errors);
        }
        if port["hostPort"].int() != 0 {
            checks::port_number(&path.child("hostPort"), &port["hostPort"], errors);
        }
        checks::required_of(&path.child("protocol"), &port["protocol"], &checks::PROTOCOLS, errors);
    }
}

/// A port of the host is taken once.
fn host_ports(containers: &[Value], path: &Path<'_>, errors: &mut FieldErrors) {
    let mut taken: HashSet<String> = HashSet::new();
    for (index, container) in containers.iter().enumerate() {
        let container_path = path.index(index);
        let list = container_path.child("ports");
        for (index, port) in
            container["ports"].items().iter().enumerate().filter(|(_, port)| port["hostPort"].int() != 0)
        {
            let key = format!("{}/{}/{}", port["protocol"].text(), port["hostIP"].text(), port["hostPort"].int());
            if taken.contains(&key) {
                errors.push(FieldError::duplicate(list.index(index).child("hostPort"), &key));
            } else {
                taken.insert(key);
            }
        }
    }
}

fn mounts(container: &Value, scope: &Scope<'_>, path: &Path<'_>, errors: &mut FieldErrors) {
    let (mounts, devices) = (container["volumeMounts"].items(), container["volumeDevices"].items());
    let repeated = repeats(mounts.iter().map(|mount| mount["mountPath"].text()));
    let device_names: HashSet<&str> = names_of(devices).collect();
    let device_paths = paths_by_name(devices, "devicePath");
    for (index, mount) in mounts.iter().enumerate() {
        let item = path.index(index);
        let (name, target) = (mount["name"].text(), mount["mountPath"].text());
        checks::required(&item.child("name"), &mount["name"], errors);
        if scope.volume(name).is_none() {
            errors.push(FieldError::not_found(item.child("name"), name));
        }
        checks::required(&item.child("mountPath"), &mount["mountPath"], errors);
        if repeated[index] {
            errors.push(FieldError::invalid(item.child("mountPath"), target, "must be unique"));
        }
        if device_names.contains(name) {
            errors.push(FieldError::invalid(item.child("name"), name, "must not already exist in volumeDevices"));
        }
        if device_paths.contains(target) {
            let detail = "must not already exist as a path in volumeDevices";
            errors.push(FieldError::invalid(item.child("mountPath"), target, detail));
        }
        let (sub, expression) = (mount["subPath"].text(), mount["subPathExpr"].text());
        if !sub.is_empty() {
            super::metadata::local_path(sub, &path.child("subPath"), errors);
        }
        if !expression.is_empty() {
            if !sub.is_empty() {
                let detail = "subPathExpr and subPath are mutually exclusive";
                errors.push(FieldError::invalid(item.child("subPathExpr"), expression, detail));
            }
            super::metadata::local_path(expression, &path.child("subPathExpr"), errors);
        }
        propagation(container, mount, path, errors);
        bind_options(mount, scope, &item.child("bindMountOptions"), errors);
    }
}

/// How mounts on one side show on the other, and whether all below is read-only.
fn propagation(container: &Value, mount: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    let (mode, mode_path) = (&mount["mountPropagation"], path.child("mountPropagation"));
    if mode.is_set() {
        checks::supported(&mode_path, mode, &["Bidirectional", "HostToContainer", "None"], errors);
        if mode == "Bidirectional" && !container["securityContext"]["privileged"].flag() {
            let detail = "Bidirectional mount propagation is available only to privileged containers";
            errors.push(FieldError::forbidden(mode_path, detail));
        }
    }
    let (recursive, path) = (&mount["recursiveReadOnly"], path.child("recursiveReadOnly"));
    if recursive.is_set() {
        checks::supported(&path, recursive, &["Disabled", "Enabled", "IfPossible"], errors);
        if ["Enabled", "IfPossible"].contains(&recursive.text()) {
            if !mount["readOnly"].flag() {
                errors.push(FieldError::forbidden(path, "may only be specified when readOnly is true"));
            }
            if mode.is_set() && mode != "None" {
                let detail = "may only be specified when mountPropagation is None or not specified";
                errors.push(FieldError::forbidden(path, detail));
            }
        }
    }
}

fn bind_options(mount: &Value, scope: &Scope<'_>, path: &Path<'_>, errors: &mut FieldErrors) {
    let options = &mount["bindMountOptions"];
    let all = options.items();
    let repeated = repeats(all);
    for (index, option) in all.iter().enumerate() {
        checks::supported(&path.index(index), option, &["nodev", "noexec", "nosuid"], errors);
        if repeated[index] {
            errors.push(FieldError::duplicate(path.index(index), option));
        }
    }
    if !all.is_empty() && scope.volume(mount["name"].text()).is_some_and(|volume| volume["image"].is_set()) {
        let detail = "bindMountOptions may not be used with image volumes";
        errors.push(FieldError::invalid(path, options, detail));
    }
}

fn devices(container: &Value, scope: &Scope<'_>, path: &Path<'_>, errors: &mut FieldErrors) {
    let (devices, mounts) = (container["volumeDevices"].items(), container["volumeMounts"].items());
    let has_backsteps = |path: &str| path.split('/').any(|part| part == "..");
    let repeated_names = repeats(names_of(devices));
    let repeated_paths = repeats(devices.iter().map(|device| device["devicePath"].text()));
    let mount_names: HashSet<&str> = names_of(mounts).collect();
    let mount_paths = paths_by_name(mounts, "mountPath");
    for (index, device) in devices.iter().enumerate() {
        let path = path.index(index);
        let (name, target) = (device["name"].text(), device["devicePath"].text());
        let (name_path, target_path) = (path.child("name"), path.child("devicePath"));
        checks::required(&name_path, &device["name"], errors);
        if !name.is_empty() && repeated_names[index] {
            errors.push(FieldError::invalid(name_path, name, "must be unique"));
        }
        match scope.volume(name) {
            None => errors.push(FieldError::not_found(name_path, name)),
            Some(volume) if volume["persistentVolumeClaim"].is_null() && volume["ephemeral"].is_null() => {
                let detail = "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode";
                errors.push(FieldError::invalid(name_path, name, detail));
            }
            Some(_) => {}
        }
        checks::required(&target_path, &device["devicePath"], errors);
        if repeated_paths[index] && !has_backsteps(target) {
            errors.push(FieldError::invalid(target_path, target, "must be unique"));
        }
        if has_backsteps(target) {
            errors.push(FieldError::invalid(target_path, target, "can not contain backsteps ('..')"));
        }
        if mount_names.contains(name) {
            errors.push(FieldError::invalid(name_path, name, "must not already exist in volumeMounts"));
        }
        if mount_paths.contains(target) {
            let detail = "must not already exist as a path in volumeMounts";
            errors.push(FieldError::invalid(target_path, target, detail));
        }
    }
}

/// The path of each volume in a container; of one that is there more than once, the last.
fn paths_by_name<'a>(items: &'a [Value], field: &str) -> HashSet<&'a str> {
    let last: HashMap<&str, &str> = items.iter().map(|item| (item["name"].text(), item[field].text())).collect();
    last.into_values().collect()
}

fn resize_policy(container: &Value, spec: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    let policies = container["resizePolicy"].items();
    let repeated = repeats(policies.iter().map(|policy| &policy["resourceName"]));
    for (index, policy) in policies.iter().enumerate() {
        let (resource, restart) = (&policy["resourceName"], &policy["restartPolicy"]);
        if repeated[index] {
            errors.push(FieldError::duplicate(path.index(index), resource));
        }
        checks::required_of(path, resource, &["cpu", "memory"], errors);
        checks::required_of(path, restart, &["NotRequired", "RestartContainer"], errors);
        if spec["restartPolicy"] == "Never" && restart != "NotRequired" {
            let detail = "must be 'NotRequired' when pod `restartPolicy` is 'Never'";
            errors.push(FieldError::invalid(path, restart.text(), detail));
        }
    }
}

/// When a container is restarted, other than its pod says.
fn restart_policy(container: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    let (policy, rules) = (&container["restartPolicy"], container["restartPolicyRules"].items());
    let policy_path = path.child("restartPolicy");
    if policy.is_set() {
        checks::supported(&policy_path, policy, &["Always", "Never", "OnFailure"], errors);
    } else if rules.is_empty() {
        return;
    } else {
        errors.push(FieldError::required(policy_path, "must specify restartPolicy when restart rules are used"));
    }
    let list = path.child("restartPolicyRules");
    if rules.len() > RULES_MAX {
        errors.push(FieldError::too_many(list, rules.len(), RULES_MAX));
    }
    for (index, rule) in rules.iter().enumerate() {
        let path = list.index(index);
        checks::supported(&path.child("action"), &rule["action"], &["Restart", "RestartAllContainers"], errors);
        let (codes, path) = (&rule["exitCodes"], path.child("exitCodes"));
        if codes.is_null() {
            errors.push(FieldError::required(path, "must be specified"));
            continue;
        }
        checks::supported(&path.child("operator"), &codes["operator"], &["In", "NotIn"], errors);
        if codes["values"].count() > EXIT_CODES_MAX {
            errors.push(FieldError::too_many(path.child("values"), codes["values"].count(), EXIT_CODES_MAX));
        }
    }
}
