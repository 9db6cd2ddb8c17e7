//! Checks of pods and pod templates, in the words of Kubernetes (`pkg/apis/core/validation`), in its order.

mod affinity;
mod container;
mod diff;
mod env;
mod metadata;
mod persistent;
mod probe;
pub(in crate::kinds) mod projected;
pub(super) mod resources;
mod security;
mod spec;
mod spread;
pub(super) mod status;
pub(super) mod update;
mod volume;
mod volume_rare;
mod windows;

pub(in crate::kinds) use affinity::{node_selector, unique_tolerations};
pub(in crate::kinds) use diff::of as structure_difference;
pub(in crate::kinds) use persistent::source as persistent_source;
pub(in crate::kinds) use resources::fixed_overhead;
use serde_json::Value;
pub(in crate::kinds) use volume::{access_modes, claim_spec};

pub(in crate::kinds) use resources::{container_resource, resource_name};

use crate::kinds::value::Read;
use crate::kinds::{FieldError, FieldErrors, checks};
use crate::meta::field::Path;
use crate::meta::{validate_annotations, validate_labels};

const SPEC: Path<'static> = Path::new("spec");
const ANNOTATIONS: Path<'static> = Path::new("metadata.annotations");
/// The lists of containers, in the order in which all are visited.
const ALL_CONTAINERS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];

/// What a changed object may keep although a new one may not have it: rules that were not always there. It is asked for
/// only when a check fails.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::kinds) struct Ratchet {
    /// It is a pod and not a template.
    is_pod: bool,
    deletion_cost: bool,
    selector_values: bool,
    node_affinity_values: bool,
    spread_selectors: bool,
    spread_label_keys: bool,
    huge_pages: bool,
    host_sysctls: bool,
    token_paths: bool,
    comparing_tolerations: bool,
    init_restarts: bool,
    user_namespace_devices: bool,
    user_namespace_host_network: bool,
    empty_image_volumes: bool,
    sys_admin: bool,
}

impl Ratchet {
    const POD: Self = Self {
        is_pod: true,
        deletion_cost: false,
        selector_values: false,
        node_affinity_values: false,
        spread_selectors: false,
        spread_label_keys: false,
        huge_pages: false,
        host_sysctls: false,
        token_paths: false,
        comparing_tolerations: false,
        init_restarts: false,
        user_namespace_devices: false,
        user_namespace_host_network: false,
        empty_image_volumes: false,
        sys_admin: false,
    };

    /// A template's, with everything allowed.
    const ALL: Self = Self {
        is_pod: false,
        deletion_cost: true,
        selector_values: true,
        node_affinity_values: true,
        spread_selectors: true,
        spread_label_keys: true,
        huge_pages: true,
        host_sysctls: true,
        token_paths: true,
        comparing_tolerations: true,
        init_restarts: true,
        user_namespace_devices: true,
        user_namespace_host_network: true,
        empty_image_volumes: true,
        sys_admin: true,
    };

    /// What the old object of an update has of these: each rule is run on it by itself.
    fn of_old(spec: &Value, annotations: &Value) -> Self {
        let all = Self::default();
        let count = |check: &dyn Fn(Self, &mut FieldErrors), allowed: Self| {
            let mut errors = FieldErrors::new();
            check(allowed, &mut errors);
            errors.len()
        };
        let in_spec = |allowed: Self| count(&|ratchet, errors| spec::spec(spec, None, &SPEC, ratchet, errors), allowed);
        let in_annotations =
            |allowed: Self| count(&|r, errors| metadata::annotations(annotations, spec, &SPEC, r, errors), allowed);
        // What was well under every rule needs none of them relaxed; usually that is the case.
        let (strict, strict_annotations) = (in_spec(all), in_annotations(all));
        let any = strict > 0 && strict > in_spec(Self::ALL);
        let of_spec = |allowed: Self| any && strict > in_spec(allowed);
        let cost = Self { deletion_cost: true, ..all };
        Self {
            is_pod: false,
            deletion_cost: strict_annotations > 0 && strict_annotations > in_annotations(cost),
            selector_values: of_spec(Self { selector_values: true, ..all }),
            node_affinity_values: of_spec(Self { node_affinity_values: true, ..all }),
            spread_selectors: of_spec(Self { spread_selectors: true, ..all }),
            spread_label_keys: of_spec(Self { spread_label_keys: true, ..all }),
            huge_pages: of_spec(Self { huge_pages: true, ..all }),
            host_sysctls: of_spec(Self { host_sysctls: true, ..all }),
            token_paths: of_spec(Self { token_paths: true, ..all }),
            comparing_tolerations: of_spec(Self { comparing_tolerations: true, ..all }),
            init_restarts: of_spec(Self { init_restarts: true, ..all }),
            user_namespace_devices: of_spec(Self { user_namespace_devices: true, ..all }),
            user_namespace_host_network: of_spec(Self { user_namespace_host_network: true, ..all }),
            empty_image_volumes: of_spec(Self { empty_image_volumes: true, ..all }),
            sys_admin: of_spec(Self { sys_admin: true, ..all }),
        }
    }
}

/// Checks a pod template; `old` is the one before an update.
pub(in crate::kinds) fn template(template: &Value, old: Option<&Value>, path: &Path<'_>, errors: &mut FieldErrors) {
    ratcheted(
        errors,
        |ratchet, errors| template_with(template, path, ratchet, errors),
        || old.map(|old| Ratchet::of_old(&old["spec"], &old["metadata"]["annotations"])),
    );
}

/// Runs checks, and once more with what the old object may keep when there is something to complain about.
fn ratcheted(
    errors: &mut FieldErrors,
    check: impl Fn(Ratchet, &mut FieldErrors),
    old: impl FnOnce() -> Option<Ratchet>,
) {
    let before = errors.len();
    check(Ratchet::default(), errors);
    if errors.len() > before
        && let Some(ratchet) = old()
    {
        errors.truncate(before);
        check(ratchet, errors);
    }
}

fn template_with(template: &Value, path: &Path<'_>, ratchet: Ratchet, errors: &mut FieldErrors) {
    let (metadata, spec, spec_path) = (&template["metadata"], &template["spec"], path.child("spec"));
    let annotations_path = path.child("annotations");
    validate_labels(metadata["labels"].as_object(), &path.child("labels"), errors);
    validate_annotations(metadata["annotations"].as_object(), &annotations_path, errors);
    metadata::annotations(&metadata["annotations"], spec, &annotations_path, ratchet, errors);
    spec::spec(spec, None, &spec_path, ratchet, errors);
    metadata::match_seccomp_fields(metadata, spec, &spec_path, errors);
    metadata::match_app_armor_fields(metadata, spec, &spec_path, errors);
    if !spec["ephemeralContainers"].is_empty() {
        let detail = "ephemeral containers not allowed in pod template";
        errors.push(FieldError::forbidden(spec_path.child("ephemeralContainers"), detail));
    }
}

/// Checks a new pod.
pub(in crate::kinds::pod) fn create(pod: &Value, errors: &mut FieldErrors) {
    pod_with(pod, Ratchet::POD, errors);
    let spec = &pod["spec"];
    if !spec["ephemeralContainers"].is_empty() {
        errors.push(FieldError::forbidden(SPEC.child("ephemeralContainers"), "cannot be set on create"));
    }
    if !spec["nodeName"].is_empty() && !spec["schedulingGates"].is_empty() {
        let detail = "cannot be set until all schedulingGates have been cleared";
        errors.push(FieldError::forbidden(SPEC.child("nodeName"), detail));
    }
    metadata::match_seccomp_fields(&pod["metadata"], spec, &SPEC, errors);
    metadata::match_app_armor_fields(&pod["metadata"], spec, &SPEC, errors);
}

/// Checks metadata and spec of a pod, new or changed.
fn pod_with(pod: &Value, ratchet: Ratchet, errors: &mut FieldErrors) {
    let (metadata, spec) = (&pod["metadata"], &pod["spec"]);
    metadata::annotations(&metadata["annotations"], spec, &ANNOTATIONS, ratchet, errors);
    spec::spec(spec, Some(metadata), &SPEC, ratchet, errors);
    if spec["serviceAccountName"].is_empty() {
        for (index, volume) in spec["volumes"].items().iter().enumerate() {
            let volumes = SPEC.child("volumes");
            let volume_path = volumes.index(index);
            let sources_path = volume_path.child("projected.sources");
            for (index, source) in volume["projected"]["sources"].items().iter().enumerate() {
                if source["serviceAccountToken"].is_set() {
                    let detail = "must not be specified when serviceAccountName is not set";
                    let path = sources_path.index(index);
                    errors.push(FieldError::forbidden(path.child("serviceAccountToken"), detail));
                }
            }
        }
    }
    let grace = &spec["terminationGracePeriodSeconds"];
    checks::nonnegative(&SPEC.child("terminationGracePeriodSeconds"), grace, errors);
    for list in ["containers", "initContainers"] {
        for (index, container) in spec[list].items().iter().enumerate() {
            container::image_without_padding(container, &SPEC.child(list).index(index), errors);
        }
    }
}

/// Runs `visit` for every container with its path.
fn each_container(spec: &Value, path: &Path<'_>, mut visit: impl FnMut(&Value, &Path<'_>)) {
    for list in ALL_CONTAINERS {
        let path = path.child(list);
        for (index, container) in spec[list].items().iter().enumerate() {
            visit(container, &path.index(index));
        }
    }
}
