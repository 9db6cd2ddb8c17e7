//! Warnings about pods and templates: what is deprecated, does nothing, or is likely a mistake.

mod paths;
mod ports;

use serde_json::Value;

use crate::kinds::network;
use crate::kinds::value::{Read, repeats};
use crate::meta::field::Path;
use crate::meta::text::quote;
use crate::meta::{Quantity, names};

const NULL_SELECTOR: &str = "a null labelSelector results in matching no pod";
/// Most warnings about pairs of ports or files, of which there can be as many as the square of the list.
const WARNINGS_MAX: usize = 1_000;
const FRACTIONAL: [&str; 2] = ["memory", "ephemeral-storage"];
const SECCOMP_POD: &str = "seccomp.security.alpha.kubernetes.io/pod";
const SECCOMP_CONTAINER: &str = "container.seccomp.security.alpha.kubernetes.io/";
const APP_ARMOR: &str = "container.apparmor.security.beta.kubernetes.io/";

/// Labels of nodes that have newer names.
fn deprecated_label(key: &str) -> Option<&'static str> {
    Some(match key {
        "beta.kubernetes.io/arch" => "deprecated since v1.14; use \"kubernetes.io/arch\" instead",
        "beta.kubernetes.io/os" => "deprecated since v1.14; use \"kubernetes.io/os\" instead",
        "failure-domain.beta.kubernetes.io/region" => {
            "deprecated since v1.17; use \"topology.kubernetes.io/region\" instead"
        }
        "failure-domain.beta.kubernetes.io/zone" => {
            "deprecated since v1.17; use \"topology.kubernetes.io/zone\" instead"
        }
        "beta.kubernetes.io/instance-type" => {
            "deprecated since v1.17; use \"node.kubernetes.io/instance-type\" instead"
        }
        "app.kubernetes.io/created-by" => "deprecated since v1.9",
        "scheduler.alpha.kubernetes.io/preferAvoidPods" => "deprecated since v1.22; use Taints and Tolerations instead",
        "node-role.kubernetes.io/master" => "use \"node-role.kubernetes.io/control-plane\" instead",
        _ => return None,
    })
}

/// Warnings about a new pod.
pub(super) fn pod(pod: &Value) -> Vec<String> {
    let mut warnings = Vec::new();
    let wrong = names::dns_label(pod["metadata"]["name"].text());
    if !wrong.is_empty() {
        warnings.push(format!(
            "metadata.name: this is used in the Pod's hostname, which can result in surprising behavior; a DNS label is \
             recommended: [{}]",
            wrong.join(" ")
        ));
    }
    of_spec(&pod["metadata"], &pod["spec"], None, &mut warnings);
    warnings
}

/// Warnings about a template.
pub(in crate::kinds) fn template(template: &Value, path: &Path<'_>) -> Vec<String> {
    let mut warnings = Vec::new();
    of_spec(&template["metadata"], &template["spec"], Some(path), &mut warnings);
    warnings
}

fn of_spec(metadata: &Value, spec: &Value, template: Option<&Path<'_>>, warnings: &mut Vec<String>) {
    let (spec_path, annotations) = match template {
        Some(path) => (path.child("spec"), path.child("metadata.annotations")),
        None => (Path::new("spec"), Path::new("metadata.annotations")),
    };
    let path = &spec_path;
    placement(spec, path, warnings);
    deprecated_annotations(&metadata["annotations"], &annotations, warnings);
    deprecated_volumes(spec, path, warnings);
    paths::overlapping(spec["volumes"].items(), warnings);
    repeated(spec, path, warnings);
    for resource in FRACTIONAL {
        fraction(&spec["overhead"], resource, &path.child("overhead"), warnings);
    }
    let seccomp = |annotation: &str, context: &Value, warnings: &mut Vec<String>| {
        if context["seccompProfile"].is_null() && metadata["annotations"].get(annotation).is_some() {
            let words = "non-functional in v1.27+; use the \"seccompProfile\" field instead";
            warnings.push(format!("{}: {words}", annotations.key(annotation)));
        }
    };
    seccomp(SECCOMP_POD, &spec["securityContext"], warnings);
    each_container(spec, path, |container, path| {
        let name = container["name"].text();
        let context = &container["securityContext"];
        if metadata["annotations"].is_set() {
            seccomp(&format!("{SECCOMP_CONTAINER}{name}"), context, warnings);
            app_armor(name, metadata, spec, context, template.is_some(), &annotations, warnings);
        }
        for resource in FRACTIONAL {
            for list in ["limits", "requests"] {
                let resources = path.child("resources");
                fraction(&container["resources"][list], resource, &resources.child(list), warnings);
            }
        }
        hidden_variables(container["env"].items(), &path.child("env"), warnings);
    });
    ports::overlapping(spec, path, warnings);
    if spec["terminationGracePeriodSeconds"].int() < 0 {
        let words = "must be >= 0; negative values are invalid and will be treated as 1";
        warnings.push(format!("{}: {words}", path.child("terminationGracePeriodSeconds")));
    }
    pod_affinity(spec, path, warnings);
    for (index, server) in spec["dnsConfig"]["nameservers"].items().iter().enumerate() {
        let list = path.child("dnsConfig.nameservers");
        warnings.extend(network::ip_warnings(&list.index(index), server.text()));
    }
    for (index, alias) in spec["hostAliases"].items().iter().enumerate() {
        let list = path.child("hostAliases");
        warnings.extend(network::ip_warnings(&list.index(index).child("ip"), alias["ip"].text()));
    }
}

fn each_container<'a>(spec: &'a Value, path: &Path<'_>, mut visit: impl FnMut(&'a Value, &Path<'_>)) {
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        let path = path.child(list);
        for (index, container) in spec[list].items().iter().enumerate() {
            visit(container, &path.index(index));
        }
    }
}

fn placement(spec: &Value, path: &Path<'_>, warnings: &mut Vec<String>) {
    for (key, words) in spec["nodeSelector"].entries().filter_map(|(key, _)| Some((key, deprecated_label(key)?))) {
        warnings.push(format!("{}: {words}", path.child("nodeSelector").key(key)));
    }
    let rules = &spec["affinity"]["nodeAffinity"];
    let rules_path = path.child("affinity.nodeAffinity");
    let required = rules_path.child("requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms");
    let terms = &rules["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"];
    for (index, term) in terms.items().iter().enumerate() {
        node_term(term, false, &required.index(index), warnings);
    }
    let preferred = rules_path.child("preferredDuringSchedulingIgnoredDuringExecution");
    for (index, term) in rules["preferredDuringSchedulingIgnoredDuringExecution"].items().iter().enumerate() {
        node_term(&term["preference"], true, &preferred.index(index).child("preference"), warnings);
    }
    let list = path.child("topologySpreadConstraints");
    for (index, constraint) in spec["topologySpreadConstraints"].items().iter().enumerate() {
        let (item, key) = (list.index(index), constraint["topologyKey"].text());
        if let Some(words) = deprecated_label(key) {
            warnings.push(format!("{}: {key} is {words}", item.child("topologyKey")));
        }
        if constraint["labelSelector"].is_null() {
            warnings.push(format!("{}: {NULL_SELECTOR}", item.child("labelSelector")));
        }
    }
}

pub(in crate::kinds) fn node_term(term: &Value, with_values: bool, path: &Path<'_>, warnings: &mut Vec<String>) {
    let list = path.child("matchExpressions");
    for (index, expression) in term["matchExpressions"].items().iter().enumerate() {
        let (item, key) = (list.index(index), expression["key"].text());
        if let Some(words) = deprecated_label(key) {
            warnings.push(format!("{}: {key} is {words}", item.child("key")));
        }
        for (index, value) in expression["values"].items().iter().enumerate().filter(|_| with_values) {
            for words in names::label_value(value.text()) {
                warnings.push(format!("{}: {} is invalid, {words}", item.child("values").index(index), value.text()));
            }
        }
    }
}

fn deprecated_annotations(annotations: &Value, path: &Path<'_>, warnings: &mut Vec<String>) {
    const DEPRECATED: [(&str, &str); 3] = [
        (
            "scheduler.alpha.kubernetes.io/critical-pod",
            "non-functional in v1.16+; use the \"priorityClassName\" field instead",
        ),
        ("security.alpha.kubernetes.io/sysctls", "non-functional in v1.11+; use the \"sysctls\" field instead"),
        ("security.alpha.kubernetes.io/unsafe-sysctls", "non-functional in v1.11+; use the \"sysctls\" field instead"),
    ];
    for (key, words) in DEPRECATED.into_iter().filter(|(key, _)| annotations.get(key).is_some()) {
        warnings.push(format!("{}: {words}", path.key(key)));
    }
}

fn deprecated_volumes(spec: &Value, path: &Path<'_>, warnings: &mut Vec<String>) {
    // Type, name in the message, since when.
    const DEPRECATED: [(&str, &str, &str); 9] = [
        ("photonPersistentDisk", "photonPersistentDisk", "deprecated in v1.11, non-functional in v1.16+"),
        ("gitRepo", "gitRepo", "deprecated in v1.11, and disabled by default in v1.33+"),
        ("scaleIO", "scaleIO", "deprecated in v1.16, non-functional in v1.22+"),
        ("flocker", "flocker", "deprecated in v1.22, non-functional in v1.25+"),
        ("storageos", "storageOS", "deprecated in v1.22, non-functional in v1.25+"),
        ("quobyte", "quobyte", "deprecated in v1.22, non-functional in v1.25+"),
        ("glusterfs", "glusterfs", "deprecated in v1.25, non-functional in v1.26+"),
        ("cephfs", "cephfs", "deprecated in v1.28, non-functional in v1.31+"),
        ("rbd", "rbd", "deprecated in v1.28, non-functional in v1.31+"),
    ];
    let list = path.child("volumes");
    for (index, volume) in spec["volumes"].items().iter().enumerate() {
        for (_, shown, words) in DEPRECATED.into_iter().filter(|(kind, ..)| volume[*kind].is_set()) {
            warnings.push(format!("{}: {words}", list.index(index).child(shown)));
        }
        let resources = &volume["ephemeral"]["volumeClaimTemplate"]["spec"]["resources"];
        for kind in ["requests", "limits"] {
            let item = list.index(index);
            let resources_path = item.child("ephemeral.volumeClaimTemplate.spec.resources");
            fraction(&resources[kind], "storage", &resources_path.child(kind), warnings);
        }
    }
}

fn repeated(spec: &Value, path: &Path<'_>, warnings: &mut Vec<String>) {
    for (list, field, what) in [("hostAliases", "ip", "ip"), ("imagePullSecrets", "name", "name")] {
        let items = spec[list].items();
        let list_path = path.child(list);
        let repeated = repeats(items.iter().map(|item| item[field].text()));
        for (index, item) in items.iter().enumerate() {
            let text = item[field].text();
            if repeated[index] {
                warnings.push(format!("{}: duplicate {what} {}", list_path.index(index).child(field), quote(text)));
            }
        }
    }
    let secrets = path.child("imagePullSecrets");
    for (index, _) in spec["imagePullSecrets"].items().iter().enumerate().filter(|(_, item)| item["name"].is_empty()) {
        warnings.push(format!("{}: invalid empty name \"\"", secrets.index(index).child("name")));
    }
}

fn fraction(list: &Value, resource: &str, path: &Path<'_>, warnings: &mut Vec<String>) {
    // Canonical text of whole numbers has no such end.
    let may_be = list[resource].text().ends_with('m');
    if may_be
        && let Ok(quantity) = Quantity::from_json(&list[resource])
        && quantity.milli_value() % 1000 != 0
    {
        let shown = quote(&quantity.to_string());
        warnings.push(format!("{}: fractional byte value {shown} is invalid, must be an integer", path.key(resource)));
    }
}

/// A container's AppArmor annotation without the field that replaced it.
fn app_armor(
    name: &str,
    metadata: &Value,
    spec: &Value,
    context: &Value,
    is_template: bool,
    path: &Path<'_>,
    warnings: &mut Vec<String>,
) {
    let key = format!("{APP_ARMOR}{name}");
    let Some(annotation) = metadata["annotations"].get(&key).map(Read::text) else { return };
    let of_pod = &spec["securityContext"]["appArmorProfile"];
    let says_the_same = match annotation.strip_prefix("localhost/") {
        Some(file) => of_pod["type"] == "Localhost" && of_pod["localhostProfile"] == file,
        None if annotation == "unconfined" => of_pod["type"] == "Unconfined",
        None => of_pod["type"] == "RuntimeDefault",
    };
    if is_template && context["appArmorProfile"].is_null() && !says_the_same {
        let words = "deprecated since v1.30; use the \"appArmorProfile\" field instead";
        warnings.push(format!("{}: {words}", path.key(&key)));
    }
}

/// A variable that is given twice, the second time without the first.
fn hidden_variables(variables: &[Value], path: &Path<'_>, warnings: &mut Vec<String>) {
    let repeated = repeats(variables.iter().map(|variable| variable["name"].text()));
    for (index, variable) in variables.iter().enumerate() {
        let name = variable["name"].text();
        if !repeated[index] {
            continue;
        }
        let (value, reference) = (variable["value"].text(), format!("$({name})"));
        if variable["valueFrom"].is_set() || value == reference || !value.contains(&reference) {
            let words = "which may be dropped when using apply";
            warnings.push(format!("{}: hides previous definition of {}, {words}", path.index(index), quote(name)));
        }
    }
}

fn pod_affinity(spec: &Value, path: &Path<'_>, warnings: &mut Vec<String>) {
    if spec["affinity"].is_null() {
        return;
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let affinity = path.child("affinity");
        let kind_path = affinity.child(kind);
        for (list, selector) in [
            ("requiredDuringSchedulingIgnoredDuringExecution", "labelSelector"),
            ("preferredDuringSchedulingIgnoredDuringExecution", "podAffinityTerm.labelSelector"),
        ] {
            let list_path = kind_path.child(list);
            for (index, term) in spec["affinity"][kind][list].items().iter().enumerate() {
                let term = if list.starts_with('p') { &term["podAffinityTerm"] } else { term };
                if term["labelSelector"].is_null() {
                    warnings.push(format!("{}: {NULL_SELECTOR}", list_path.index(index).child(selector)));
                }
            }
        }
    }
}
