//! The containers that a pod asks for, in the order of [`Index`](super::Index).

use std::borrow::Cow;

use k8s_openapi::api::core::v1::{Container, EphemeralContainer, Pod};

/// Those that make the pod, init containers first.
pub fn specs(pod: &Pod) -> impl Iterator<Item = &Container> {
    let spec = pod.spec.as_ref();
    let init = spec.and_then(|spec| spec.init_containers.as_deref()).unwrap_or_default();
    init.iter().chain(spec.map(|spec| spec.containers.as_slice()).unwrap_or_default())
}

/// The same, then the ephemeral ones.
pub fn all(pod: &Pod) -> impl Iterator<Item = Cow<'_, Container>> {
    let ephemeral = pod.spec.as_ref().and_then(|spec| spec.ephemeral_containers.as_deref()).unwrap_or_default();
    specs(pod).map(Cow::Borrowed).chain(ephemeral.iter().map(|spec| Cow::Owned(container(spec))))
}

/// The list of the spec that a container is in.
pub fn list(pod: &Pod, index: super::Index) -> &'static str {
    let Some(spec) = &pod.spec else { return "containers" };
    let init = spec.init_containers.as_ref().map_or(0, Vec::len);
    match () {
        () if index < init => "initContainers",
        () if index < init + spec.containers.len() => "containers",
        () => "ephemeralContainers",
    }
}

/// An ephemeral container as a container: the API server lets it have none of the other fields.
fn container(spec: &EphemeralContainer) -> Container {
    let spec = spec.clone();
    Container {
        name: spec.name,
        image: spec.image,
        image_pull_policy: spec.image_pull_policy,
        command: spec.command,
        args: spec.args,
        working_dir: spec.working_dir,
        env: spec.env,
        env_from: spec.env_from,
        volume_mounts: spec.volume_mounts,
        volume_devices: spec.volume_devices,
        security_context: spec.security_context,
        stdin: spec.stdin,
        stdin_once: spec.stdin_once,
        tty: spec.tty,
        termination_message_path: spec.termination_message_path,
        termination_message_policy: spec.termination_message_policy,
        ..Container::default()
    }
}
