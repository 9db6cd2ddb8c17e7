//! What a pod asks for and a component cannot have is refused, in words its owner understands; what has no meaning
//! for a component (users, capabilities, seccomp: a guest has no system calls) is ignored.

use k8s_openapi::api::core::v1::{Container, LifecycleHandler, Pod, Probe};

use super::core::{mounted, specs};
use crate::volumes;

/// Refuses what the pod as a whole cannot have. The text goes into a `FailedMount` event.
pub fn pod(pod: &Pod) -> Result<(), String> {
    let Some(spec) = &pod.spec else { return Ok(()) };
    if spec.host_network == Some(true) {
        return Err(
            "hostNetwork is not supported by this node: components have no host network; expose them by a Service"
                .to_owned(),
        );
    }
    for volume in mounted(pod) {
        volumes::check(volume)
            .map_err(|error| format!("MountVolume.SetUp failed for volume {:?} : {error}", volume.name))?;
    }
    Ok(())
}

/// What a pod asks for and does not get, although it runs.
pub fn ignored(pod: &Pod) -> Vec<String> {
    let ports = specs(pod).flat_map(|container| container.ports.iter().flatten()).filter_map(|port| port.host_port);
    let ports = ports
        .filter(|port| *port > 0)
        .take(1)
        .map(|port| format!("hostPort {port} is not opened by this node; use a Service of type NodePort"));
    let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default().iter();
    let volumes = volumes.filter(|volume| {
        volume
            .empty_dir
            .as_ref()
            .is_some_and(|source| source.medium.as_deref().is_some_and(|medium| !medium.is_empty()))
    });
    let volumes = volumes.map(|volume| {
        format!("emptyDir {:?} asks for a medium; this node keeps it on disk, within its sizeLimit", volume.name)
    });
    ports.chain(volumes).collect()
}

type Probes<'a> = [(&'static str, &'a Option<Probe>); 3];
type Hooks<'a> = [(&'static str, Option<&'a LifecycleHandler>); 2];

fn probes(container: &Container) -> Probes<'_> {
    [
        ("livenessProbe", &container.liveness_probe),
        ("readinessProbe", &container.readiness_probe),
        ("startupProbe", &container.startup_probe),
    ]
}

fn hooks(container: &Container) -> Hooks<'_> {
    let lifecycle = container.lifecycle.as_ref();
    [
        ("lifecycle.postStart", lifecycle.and_then(|lifecycle| lifecycle.post_start.as_ref())),
        ("lifecycle.preStop", lifecycle.and_then(|lifecycle| lifecycle.pre_stop.as_ref())),
    ]
}

/// Refuses what a component of wasi:http cannot have: it is called, so it runs no commands and speaks no TLS.
pub fn service(container: &Container) -> Result<(), String> {
    let probes = probes(container).into_iter().filter_map(|(name, probe)| Some((name, probe.as_ref()?)));
    if let Some((name, _)) = probes.clone().find(|(_, probe)| probe.grpc.is_some()) {
        return Err(format!(
            "{name}.grpc is not supported: the image is a component of wasi:http, which speaks no gRPC; use httpGet"
        ));
    }
    let probes = probes.map(|(name, probe)| (name, "tcpSocket", &probe.exec, &probe.http_get));
    let hooks = hooks(container).into_iter().filter_map(|(name, hook)| Some((name, hook?)));
    let hooks = hooks.map(|(name, hook)| (name, "sleep", &hook.exec, &hook.http_get));
    for (name, other, exec, get) in probes.chain(hooks) {
        let what = "the image is a component of wasi:http, which";
        if exec.is_some() {
            return Err(format!("{name}.exec is not supported: {what} runs no commands; use httpGet or {other}"));
        }
        if let Some(scheme) = get.as_ref().and_then(|get| get.scheme.as_deref()).filter(|scheme| *scheme != "HTTP") {
            return Err(format!("{name}.httpGet.scheme {scheme} is not supported: {what} speaks no TLS; use HTTP"));
        }
    }
    Ok(())
}

/// Refuses what a container cannot have: a `CreateContainerConfigError`.
pub fn container(container: &Container) -> Result<(), String> {
    if container.volume_devices.as_ref().is_some_and(|devices| !devices.is_empty()) {
        return Err("volumeDevices are not supported: a component has no block devices".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn refuses_by_name() {
        for (value, expected) in [
            (json!({"name": "c"}), ""),
            (json!({"name": "c", "securityContext": {"privileged": true, "runAsUser": 0}}), ""),
            (json!({"name": "c", "livenessProbe": {"exec": {"command": ["true"]}}}), ""),
            (json!({"name": "c", "volumeDevices": [{"name": "v"}]}), "volumeDevices are not supported"),
        ] {
            let container = serde_json::from_value(value).unwrap();
            let refusal = super::container(&container).err().unwrap_or_default();
            assert!(refusal.starts_with(expected) && refusal.is_empty() == expected.is_empty(), "{refusal}");
        }
        for (value, expected) in [
            (json!({"name": "c", "livenessProbe": {"httpGet": {"port": 1}}}), ""),
            (json!({"name": "c", "startupProbe": {"grpc": {"port": 1}}}), "startupProbe.grpc is not supported"),
            (
                json!({"name": "c", "startupProbe": {"exec": {"command": ["true"]}}}),
                "startupProbe.exec is not supported",
            ),
            (json!({"name": "c", "lifecycle": {"preStop": {"exec": {}}}}), "lifecycle.preStop.exec is not supported"),
            (
                json!({"name": "c", "readinessProbe": {"httpGet": {"port": 1, "scheme": "HTTPS"}}}),
                "readinessProbe.httpGet.scheme HTTPS is not supported",
            ),
        ] {
            let refusal = service(&serde_json::from_value(value).unwrap()).err().unwrap_or_default();
            assert!(refusal.starts_with(expected) && refusal.is_empty() == expected.is_empty(), "{refusal}");
        }
        let asks = json!({"spec": {
            "volumes": [{"name": "m", "emptyDir": {"medium": "Memory"}}, {"name": "d", "emptyDir": {}}],
            "containers": [{"name": "c", "ports": [{"containerPort": 1, "hostPort": 2}]}],
        }});
        let told = ignored(&serde_json::from_value(asks).unwrap());
        assert!(told.len() == 2 && told[0].contains("hostPort 2") && told[1].contains("emptyDir \"m\""), "{told:?}");
        let with = |spec| pod(&serde_json::from_value(json!({"spec": spec})).unwrap()).err().unwrap_or_default();
        let volumes = json!([{"name": "h", "hostPath": {"path": "/"}}]);
        let mounts = json!([{"name": "c", "volumeMounts": [{"name": "h", "mountPath": "/h"}]}]);
        assert_eq!(with(json!({"containers": [], "volumes": volumes})), "");
        let refusal = with(json!({"containers": mounts, "volumes": volumes}));
        assert!(refusal.contains("volume type hostPath is not supported"), "{refusal}");
        assert!(with(json!({"hostNetwork": true, "containers": []})).contains("hostNetwork"));
    }
}
