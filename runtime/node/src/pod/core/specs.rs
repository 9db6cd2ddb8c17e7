//! The containers that a pod asks for, in the order of [`Index`](super::Index).

use std::borrow::Cow;
use std::collections::HashSet;

use k8s_openapi::api::core::v1::{Container, EphemeralContainer, Pod, Volume};

/// The list of the pod's spec that a container is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Those before all others.
    Init,
    /// The ordinary ones.
    Regular,
    /// Those that were put in later.
    Ephemeral,
}

impl Part {
    /// As the API calls it.
    pub fn name(self) -> &'static str {
        match self {
            Part::Init => "initContainers",
            Part::Regular => "containers",
            Part::Ephemeral => "ephemeralContainers",
        }
    }
}

/// Those that make the pod, init containers first.
pub fn specs(pod: &Pod) -> impl Iterator<Item = &Container> {
    let spec = pod.spec.as_ref();
    let init = spec.and_then(|spec| spec.init_containers.as_deref()).unwrap_or_default();
    init.iter().chain(spec.map(|spec| spec.containers.as_slice()).unwrap_or_default())
}

/// The same, then the ephemeral ones, each of which is made for this: who wants no more than names asks [`names`].
pub fn all(pod: &Pod) -> impl Iterator<Item = Cow<'_, Container>> {
    specs(pod).map(Cow::Borrowed).chain(ephemeral(pod).iter().map(|spec| Cow::Owned(container(spec))))
}

/// Names of all of them.
pub fn names(pod: &Pod) -> impl Iterator<Item = &str> {
    specs(pod).map(|spec| spec.name.as_str()).chain(ephemeral(pod).iter().map(|spec| spec.name.as_str()))
}

/// The volumes that some container mounts; the others are not made, as under the kubelet.
pub fn mounted(pod: &Pod) -> impl Iterator<Item = &Volume> {
    let mounts =
        specs(pod).map(|spec| &spec.volume_mounts).chain(ephemeral(pod).iter().map(|spec| &spec.volume_mounts));
    let named: HashSet<&str> = mounts.flatten().flatten().map(|mount| mount.name.as_str()).collect();
    let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default();
    volumes.iter().filter(move |volume| named.contains(volume.name.as_str()))
}

fn ephemeral(pod: &Pod) -> &[EphemeralContainer] {
    pod.spec.as_ref().and_then(|spec| spec.ephemeral_containers.as_deref()).unwrap_or_default()
}

/// The list of the spec that a container is in.
pub fn part(pod: &Pod, index: super::Index) -> Part {
    let Some(spec) = &pod.spec else { return Part::Regular };
    let init = spec.init_containers.as_ref().map_or(0, Vec::len);
    match () {
        () if index < init => Part::Init,
        () if index < init + spec.containers.len() => Part::Regular,
        () => Part::Ephemeral,
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_any_container_mounts_is_mounted_and_each_is_in_its_list() {
        let mounts = |volume: &str| json!([{"name": volume, "mountPath": "/"}]);
        let pod: Pod = serde_json::from_value(json!({"spec": {
            "volumes": [{"name": "a"}, {"name": "b"}, {"name": "c"}, {"name": "d"}],
            "initContainers": [{"name": "init", "volumeMounts": mounts("a")}],
            "containers": [{"name": "one", "volumeMounts": mounts("b")}, {"name": "two", "volumeMounts": mounts("b")}],
            "ephemeralContainers": [{"name": "debug", "volumeMounts": mounts("d")}]}}))
        .unwrap();
        let volumes: Vec<&str> = mounted(&pod).map(|volume| volume.name.as_str()).collect();
        assert_eq!(volumes, ["a", "b", "d"]);
        assert_eq!(names(&pod).collect::<Vec<_>>(), ["init", "one", "two", "debug"]);
        let parts = [0, 1, 2, 3].map(|index| part(&pod, index).name());
        assert_eq!(parts, ["initContainers", "containers", "containers", "ephemeralContainers"]);
    }
}
