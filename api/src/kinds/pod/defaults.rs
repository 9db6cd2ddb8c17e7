//! Defaults of pods and pod templates.

use serde_json::{Value, json};

use crate::kinds::value::{Read, child, default_to, default_when_zero, fields, items_mut, remove};
use crate::meta::Quantity;

/// Lists of containers in a pod's spec.
const CONTAINERS: [&str; 3] = ["containers", "initContainers", "ephemeralContainers"];
/// `0644`, of files in volumes.
const FILE_MODE: i64 = 0o644;

/// Defaults of a pod: those of its spec, and what templates do not get.
pub(super) fn pod(object: &mut Value) {
    let spec_value = child(object, "spec");
    if spec_value["terminationGracePeriodSeconds"].int() < 0 {
        fields(spec_value).insert("terminationGracePeriodSeconds".to_owned(), 1.into());
    }
    for list in ["containers", "initContainers"] {
        for container in items_mut(spec_value, list) {
            requests_from_limits(container);
        }
    }
    default_to(spec_value, "enableServiceLinks", true);
    if spec_value["hostNetwork"].flag() {
        for list in ["containers", "initContainers"] {
            for container in items_mut(spec_value, list) {
                for port in items_mut(container, "ports") {
                    let number = port["containerPort"].clone();
                    default_when_zero(port, "hostPort", number);
                }
            }
        }
    }
    spec(spec_value);
    status(child(object, "status"));
}

/// Defaults of a pod's spec, also in templates.
pub(in crate::kinds) fn spec(spec: &mut Value) {
    // `serviceAccount` is the old name; the new one wins, and both say the same.
    let account = match spec["serviceAccountName"].text() {
        "" => spec["serviceAccount"].text().to_owned(),
        name => name.to_owned(),
    };
    if !account.is_empty() {
        fields(spec).insert("serviceAccountName".to_owned(), account.clone().into());
        fields(spec).insert("serviceAccount".to_owned(), account.into());
    }
    default_when_zero(spec, "dnsPolicy", "ClusterFirst");
    default_when_zero(spec, "restartPolicy", "Always");
    default_to(spec, "securityContext", json!({}));
    default_to(spec, "terminationGracePeriodSeconds", 30);
    default_when_zero(spec, "schedulerName", "default-scheduler");
    for volume in items_mut(spec, "volumes") {
        self::volume(volume);
    }
    for list in CONTAINERS {
        for container in items_mut(spec, list) {
            self::container(container);
        }
    }
    resources(&mut *spec, "overhead");
    if let Some(requirements) = spec.get_mut("resources") {
        resources(requirements, "limits");
        resources(requirements, "requests");
    }
}

fn requests_from_limits(container: &mut Value) {
    let limits = match container["resources"].get("limits") {
        Some(Value::Object(limits)) if !limits.is_empty() => limits.clone(),
        _ => return,
    };
    let requests = fields(child(child(container, "resources"), "requests"));
    for (resource, limit) in limits {
        requests.entry(resource).or_insert(limit);
    }
}

fn container(container: &mut Value) {
    if container["imagePullPolicy"].is_empty() {
        let policy = if is_latest(container["image"].text()) { "Always" } else { "IfNotPresent" };
        fields(container).insert("imagePullPolicy".to_owned(), policy.into());
    }
    default_when_zero(container, "terminationMessagePath", "/dev/termination-log");
    default_when_zero(container, "terminationMessagePolicy", "File");
    for port in items_mut(container, "ports") {
        default_when_zero(port, "protocol", "TCP");
    }
    for variable in items_mut(container, "env") {
        if let Some(source) = variable.get_mut("valueFrom") {
            field_reference(source);
            if let Some(file) = source.get_mut("fileKeyRef") {
                default_to(file, "optional", false);
            }
        }
    }
    let requirements = child(container, "resources");
    resources(requirements, "limits");
    resources(requirements, "requests");
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = container.get_mut(name).filter(|probe| probe.is_object()) {
            self::probe(probe);
        }
    }
    if let Some(lifecycle) = container.get_mut("lifecycle") {
        for hook in ["postStart", "preStop"] {
            if let Some(hook) = lifecycle.get_mut(hook) {
                http_get(hook);
            }
        }
    }
}

fn probe(probe: &mut Value) {
    for (field, default) in
        [("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)]
    {
        default_when_zero(probe, field, default);
    }
    http_get(probe);
    if let Some(grpc) = probe.get_mut("grpc").filter(|grpc| grpc.is_object()) {
        default_to(grpc, "service", "");
    }
}

fn http_get(handler: &mut Value) {
    if let Some(get) = handler.get_mut("httpGet").filter(|get| get.is_object()) {
        default_when_zero(get, "path", "/");
        default_when_zero(get, "scheme", "HTTP");
    }
}

fn field_reference(holder: &mut Value) {
    if let Some(reference) = holder.get_mut("fieldRef").filter(|reference| reference.is_object()) {
        default_when_zero(reference, "apiVersion", "v1");
    }
}

fn volume(volume: &mut Value) {
    let has_source = volume.entries().any(|(field, source)| field != "name" && source.is_set());
    if !has_source {
        child(volume, "emptyDir");
        return;
    }
    for source in ["secret", "configMap", "downwardAPI", "projected"] {
        if let Some(source) = volume.get_mut(source).filter(|source| source.is_object()) {
            default_to(source, "defaultMode", FILE_MODE);
        }
    }
    if let Some(source) = volume.get_mut("downwardAPI") {
        for item in items_mut(source, "items") {
            field_reference(item);
        }
    }
    if let Some(projected) = volume.get_mut("projected").filter(|source| source.is_object()) {
        for source in items_mut(projected, "sources") {
            if let Some(downward) = source.get_mut("downwardAPI") {
                for item in items_mut(downward, "items") {
                    field_reference(item);
                }
            }
            if let Some(token) = source.get_mut("serviceAccountToken").filter(|token| token.is_object()) {
                default_to(token, "expirationSeconds", 3600);
            }
        }
    }
    if let Some(path) = volume.get_mut("hostPath").filter(|source| source.is_object()) {
        default_to(path, "type", "");
    }
    if let Some(image) = volume.get_mut("image").filter(|source| source.is_object()) {
        let policy = if is_latest(image["reference"].text()) { "Always" } else { "IfNotPresent" };
        default_when_zero(image, "pullPolicy", policy);
    }
    if let Some(template) = volume.get_mut("ephemeral").and_then(|source| source.get_mut("volumeClaimTemplate")) {
        child(template, "metadata");
        let spec = child(template, "spec");
        default_to(spec, "volumeMode", "Filesystem");
        let requirements = child(spec, "resources");
        resources(requirements, "limits");
        resources(requirements, "requests");
    }
    rare_volume(volume);
}

/// Volume types of single vendors.
fn rare_volume(volume: &mut Value) {
    const DEFAULTS: [(&str, &[(&str, &str)]); 4] = [
        ("iscsi", &[("iscsiInterface", "default")]),
        ("rbd", &[("pool", "rbd"), ("user", "admin"), ("keyring", "/etc/ceph/keyring")]),
        ("azureDisk", &[("cachingMode", "ReadWrite"), ("fsType", "ext4"), ("kind", "Shared")]),
        ("scaleIO", &[("storageMode", "ThinProvisioned"), ("fsType", "xfs")]),
    ];
    for (name, defaults) in DEFAULTS {
        if let Some(source) = volume.get_mut(name).filter(|source| source.is_object()) {
            for (field, default) in defaults {
                default_when_zero(source, field, *default);
            }
            if name == "azureDisk" {
                default_to(source, "readOnly", false);
            }
        }
    }
}

/// Quantities are rounded up to thousandths.
pub(in crate::kinds) fn resources(holder: &mut Value, field: &str) {
    let Some(Value::Object(list)) = holder.get_mut(field) else { return };
    for quantity in list.values_mut() {
        // Canonical text shows at once whether it is finer.
        if quantity.text().ends_with(['u', 'n'])
            && let Ok(mut parsed) = Quantity::parse(quantity.text())
        {
            parsed.round_up(-3);
            *quantity = parsed.to_string().into();
        }
    }
}

/// Keeps `podIP` and the first of `podIPs` the same; the singular field wins.
fn status(status: &mut Value) {
    let (ip, first) = (status["podIP"].text(), status["podIPs"][0]["ip"].text());
    if ip == first {
        if ip.is_empty() {
            remove(status, "podIP");
        }
    } else if ip.is_empty() {
        let first = first.to_owned();
        fields(status).insert("podIP".to_owned(), first.into());
    } else {
        let ips = json!([{ "ip": ip }]);
        fields(status).insert("podIPs".to_owned(), ips);
    }
    for condition in items_mut(status, "conditions") {
        default_to(condition, "lastProbeTime", Value::Null);
        default_to(condition, "lastTransitionTime", Value::Null);
    }
    for list in ["containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"] {
        for container in items_mut(status, list) {
            default_to(container, "image", "");
            default_to(container, "imageID", "");
            default_to(container, "ready", false);
            default_to(container, "restartCount", 0);
            child(container, "state");
            child(container, "lastState");
        }
    }
}

/// Whether an image is pulled anew for each pod: it names no tag and no digest, or the tag `latest`. What is no image
/// reference at all is not (`distribution/reference`).
fn is_latest(image: &str) -> bool {
    let (rest, has_digest) = match image.split_once('@') {
        Some((rest, _)) => (rest, true),
        None => (image, false),
    };
    let (repository, tag) = match rest.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => (repository, Some(tag)),
        _ => (rest, None),
    };
    let is_path = |part: &str| {
        let is_word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        part.bytes().all(|b| is_word(b) || matches!(b, b'.' | b'_' | b'-'))
            && part.bytes().next().is_some_and(is_word)
            && part.bytes().last().is_some_and(is_word)
    };
    let path = match repository.split_once('/') {
        Some((domain, path))
            if domain.contains(['.', ':']) || domain == "localhost" || domain.contains(char::is_uppercase) =>
        {
            path
        }
        _ => repository,
    };
    let is_id = repository.len() == 64 && repository.bytes().all(|b| b.is_ascii_hexdigit());
    if is_id || !path.split('/').all(is_path) {
        return false;
    }
    match tag {
        Some(tag) => tag == "latest",
        None => !has_digest,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_images_that_are_pulled_always() {
        for (image, latest) in [
            ("hello", true),
            ("hello:latest", true),
            ("hello:1", false),
            ("localhost:5000/hello", true),
            ("localhost:5000/hello:1.2", false),
            ("hello@sha256:abc", false),
            ("example.com/a/b__c:latest@sha256:abc", true),
            ("Not An Image", false),
            ("UPPER/case", true),
            ("Upper", false),
            ("", false),
        ] {
            assert_eq!(is_latest(image), latest, "{image}");
        }
    }
}
