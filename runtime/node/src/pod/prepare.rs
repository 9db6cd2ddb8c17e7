//! Everything that a container is started with: component, environment, directories, log, network, limits.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use coracle_artifact::{Credential, PullPolicy};
use coracle_engine::{Phase, Qos, Spec as EngineSpec, World};
use k8s_openapi::api::core::v1::{Container as Spec, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::core::{FAILED_MOUNT, Index, Kind, Run, StartFailure, human};
use super::files::{MountFailed, Mounts};
use super::slot::{Log, Slot, Stdin};
use super::start::{chain, field_path};
use super::supported;
use super::table::Pods;
use crate::annotations::Wishes;
use crate::downward::Downward;
use crate::env::{self, Contents, EnvError, Room, ServiceLink, expand};
use crate::images::{Prepared, Progress};
use crate::network::GuestNetwork;
use crate::objects::{self, Kind as ObjectKind, ObjectKey, ReadError};
use crate::{logs, quantity};

/// How long a start waits for the first list of Services, whose variables it hands to the guest.
const SERVICES_WAIT: Duration = Duration::from_secs(5);

/// Everything that a component is started with.
pub(super) struct Ready {
    pub prepared: Prepared,
    pub spec: EngineSpec,
    pub wishes: Wishes,
    pub log: Arc<Log>,
    pub stdin: Option<Arc<Stdin>>,
    pub network: Arc<GuestNetwork>,
}

impl Pods {
    /// Has everything there; nothing runs yet. May be cut anywhere.
    pub(super) async fn prepare(
        self: &Arc<Self>,
        slot: &Arc<Slot>,
        pod: &Pod,
        container: Index,
        run: Run,
        spec: &Spec,
    ) -> Result<Ready, StartFailure> {
        supported::container(spec).map_err(config_error)?;
        let wishes = Wishes::of(pod).map_err(|error| config_error(error.to_string()))?;
        let prepared = self.image(slot, pod, container, spec).await?;
        let (network, kind) = {
            let state = slot.lock();
            (state.network.clone(), state.core.containers().get(container).map(|container| container.kind))
        };
        if kind == Some(Kind::Init) && prepared.component.world() == World::Http {
            let message = "an HTTP component never ends, so it cannot be an init container: the pod would never start";
            return Err(config_error(message.to_owned()));
        }
        if prepared.component.world() == World::Http {
            supported::service(spec).map_err(config_error)?;
        }
        let network = network.ok_or_else(|| config_error("the pod has no address any more".to_owned()))?;
        let env = self.env(slot, pod, spec, &network).await?;
        if kind == Some(Kind::Ephemeral) && Self::needs_objects(pod) {
            // It may mount what nobody did when the pod was set up.
            let checked = self.check_volumes(slot, pod).await;
            checked.map_err(|message| StartFailure { reason: FAILED_MOUNT, message })?;
        }
        let mounts = self.mounts(slot, pod, (container, run), &prepared.component, &env).await;
        let mounts = mounts.map_err(|failed| match failed {
            MountFailed::Volume(message) => StartFailure { reason: FAILED_MOUNT, message },
            MountFailed::Config(message) => config_error(message),
        })?;
        let log = self.log(slot, spec, run, &mounts);
        // A component that is called reads nothing.
        let stdin = Stdin::of(spec).filter(|_| prepared.component.world() == World::Command);
        let mut spec = engine_spec(slot, pod, spec, env, mounts, &log, &network, &wishes)?;
        spec.stdin = stdin.as_ref().map(|stdin| stdin.pipe.clone());
        Ok(Ready { prepared, spec, wishes, log, stdin, network })
    }

    /// Resolves and, if need be, pulls and compiles the image.
    async fn image(
        self: &Arc<Self>,
        slot: &Arc<Slot>,
        pod: &Pod,
        container: Index,
        spec: &Spec,
    ) -> Result<Prepared, StartFailure> {
        let image = spec.image.as_deref().unwrap_or_default();
        let policy = pull_policy(spec, image);
        let path = Some(field_path(pod, container, &spec.name));
        let credentials = self.credentials(slot, pod).await;
        let is_present = policy != PullPolicy::Always && self.context.images.is_present(image, &credentials);
        if !is_present && policy != PullPolicy::Never {
            self.event(slot, path.clone(), false, "Pulling", format!("Pulling image {image:?}"));
        }
        let tell = |progress: Progress<'_>| {
            let (reason, message) = match progress {
                Progress::Pulled(..) if is_present => {
                    let text =
                        format!("Container image {image:?} already present on machine and can be accessed by the pod");
                    ("Pulled", text)
                }
                Progress::Pulled(artifact, took) => {
                    let (took, size) = (human(took), artifact.size);
                    let text = format!(
                        "Successfully pulled image {image:?} in {took} ({took} including waiting). Image size: {size} bytes."
                    );
                    ("Pulled", text)
                }
                Progress::Code(Phase::Compiling) => {
                    ("Compiling", format!("Compiling image {image:?} for this machine"))
                }
                Progress::Code(Phase::Compiled(took)) => {
                    ("Compiled", format!("Compiled image {image:?} in {}", human(took)))
                }
            };
            self.event(slot, path.clone(), false, reason, message);
        };
        // Images of one namespace hold up none of another.
        match self.context.images.prepare(&slot.namespace, image, policy, &credentials, &tell).await {
            Ok(prepared) => Ok(prepared),
            Err(error) => {
                let reason = error.reason();
                let text = chain(&error);
                if reason == "ErrImagePull" {
                    self.event(slot, path, true, "Failed", format!("Failed to pull image {image:?}: {text}"));
                }
                Err(StartFailure { reason, message: text })
            }
        }
    }

    /// The pull secrets of the pod that exist and can be read; a missing one is no reason not to try (kubelet:
    /// `FailedToRetrieveImagePullSecret`).
    async fn credentials(&self, slot: &Slot, pod: &Pod) -> Vec<Credential> {
        let mut credentials = Vec::new();
        let secrets = pod.spec.as_ref().and_then(|spec| spec.image_pull_secrets.as_deref()).unwrap_or_default();
        for secret in secrets {
            let key = ObjectKey {
                kind: ObjectKind::Secret,
                namespace: slot.namespace.clone(),
                name: secret.name.as_str().into(),
            };
            let Ok(Some(content)) = self.object(&key, slot).await else {
                let message = format!(
                    "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
                    secret.name
                );
                self.event(slot, None, true, "FailedToRetrieveImagePullSecret", message);
                continue;
            };
            let read = match content.secret_type.as_str() {
                "kubernetes.io/dockercfg" => {
                    content.data.get(".dockercfg").map(|bytes| Credential::from_docker_cfg(bytes))
                }
                _ => content.data.get(".dockerconfigjson").map(|bytes| Credential::from_docker_config_json(bytes)),
            };
            credentials.extend(read.and_then(Result::ok).into_iter().flatten());
        }
        credentials
    }

    async fn env(
        &self,
        slot: &Slot,
        pod: &Pod,
        spec: &Spec,
        network: &GuestNetwork,
    ) -> Result<Vec<(String, String)>, StartFailure> {
        let mut contents = Contents::new();
        let keys = env::references(spec, &slot.namespace);
        // Before any of them is followed.
        if keys.len() > objects::POD_MAX {
            return Err(config_error(ReadError::TooMany("pod", objects::POD_MAX).to_string()));
        }
        for key in keys {
            let content = self.object(&key, slot).await;
            let content = content.map_err(|error| config_error(error.to_string()))?;
            contents.insert(key, content);
        }
        let discovery = &self.context.network.discovery;
        if tokio::time::timeout(SERVICES_WAIT, discovery.synced()).await.is_err() {
            let message = "services have not yet been read at least once, cannot construct envvars";
            return Err(config_error(message.to_owned()));
        }
        let wants_links = pod.spec.as_ref().and_then(|spec| spec.enable_service_links).unwrap_or(true);
        let snapshot = discovery.snapshot();
        let links = snapshot.services().filter(|service| match &*service.name {
            "kubernetes" if *service.namespace == *"default" => true,
            _ => wants_links && service.namespace == slot.namespace,
        });
        let links = links.filter_map(|service| {
            let port = |port: &coracle_discovery::Port| (port.name.clone(), port.port, format!("{:?}", port.protocol));
            Some(ServiceLink {
                name: service.name.to_string(),
                address: service.cluster_ip?,
                ports: service.ports.iter().map(port).collect(),
            })
        });
        let downward = Downward {
            pod,
            pod_ip: network.address.pod,
            host_ip: self.context.config.node_ip,
            allocatable: &self.context.allocatable,
        };
        let env = env::build(pod, spec, &contents, env::service_links(links), &downward);
        let mut env = env.map_err(|error| config_error(error.to_string()))?;
        if !env.iter().any(|(name, _)| name == "HOSTNAME") {
            let hostname = network.hosts.first().map(|(name, _)| name.clone()).unwrap_or_default();
            env.push(("HOSTNAME".to_owned(), hostname));
        }
        Ok(env)
    }

    fn log(&self, slot: &Slot, spec: &Spec, run: Run, mounts: &Mounts) -> Arc<Log> {
        let dir = logs::pod_dir(&self.context.logs_dir, &slot.namespace, &slot.name, &slot.uid);
        if run > 2 {
            // The last life's log is kept, for `--previous`.
            logs::remove_older(&dir, &spec.name, run - 1);
        }
        let log = logs::ContainerLog::new(logs::file(&dir, &spec.name, run), self.context.open_logs.clone());
        let (stdout, stderr) = (log.stream("stdout"), log.stream("stderr"));
        Arc::new(Log { log, stdout, stderr, message: mounts.message.clone() })
    }
}

#[allow(clippy::too_many_arguments, reason = "all that a container is made of; called once")]
fn engine_spec(
    slot: &Slot,
    pod: &Pod,
    spec: &Spec,
    env: Vec<(String, String)>,
    mounts: Mounts,
    log: &Log,
    network: &Arc<GuestNetwork>,
    wishes: &Wishes,
) -> Result<EngineSpec, StartFailure> {
    // What the pod may have together, each of its containers may have at most.
    let whole = pod.spec.as_ref().and_then(|spec| spec.resources.as_ref());
    let wholes = [spec.resources.as_ref(), whole].into_iter().flatten();
    let limits: Vec<_> = wholes.clone().filter_map(|resources| resources.limits.as_ref()).collect();
    let limit = |name: &str, read: fn(&_) -> Option<u64>| {
        let mut least = None;
        for value in limits.iter().filter_map(|limits| limits.get(name)) {
            let number = read(value)
                .ok_or_else(|| config_error(format!("invalid quantity for limits.{name}: {:?}", value.0)))?;
            // None at all is written as 0, too.
            least = least.into_iter().chain(Some(number).filter(|number| *number > 0)).min();
        }
        Ok(least)
    };
    let mut given = EngineSpec::new(format!("{}/{}/{}", slot.namespace, slot.name, spec.name));
    given.namespace = slot.namespace.clone();
    let request = |name: &str, read: fn(&_) -> Option<u64>| {
        wholes.clone().find_map(|resources| read(resources.requests.as_ref()?.get(name)?))
    };
    given.qos = match pod.status.as_ref().and_then(|status| status.qos_class.as_deref()) {
        Some("Guaranteed") => Qos::Guaranteed,
        Some("BestEffort") => Qos::BestEffort,
        _ => Qos::Burstable,
    };
    given.memory_bytes_request = request("memory", quantity::units);
    given.cpu_millis_request = request("cpu", quantity::millis);
    given.memory_bytes_max = limit("memory", quantity::units)?;
    given.cpu_millis_max = limit("cpu", quantity::millis)?;
    if is_ephemeral(pod, spec) {
        // It has asked for nothing, whatever its pod has, and may have what the pod's containers may have together.
        given.qos = Qos::BestEffort;
        given.memory_bytes_max = given.memory_bytes_max.or_else(|| limits_of_all(pod, "memory", quantity::units));
        given.cpu_millis_max = given.cpu_millis_max.or_else(|| limits_of_all(pod, "cpu", quantity::millis));
    }
    given.fuel_max = wishes.fuel_max;
    given.args = arguments(spec, &env).map_err(|error| config_error(error.to_string()))?;
    given.env = env;
    given.working_dir = spec.working_dir.clone().filter(|dir| !dir.is_empty());
    given.mounts = mounts.mounts;
    given.held = mounts.held;
    let (stdout, stderr) = (log.stdout.clone(), log.stderr.clone());
    given.stdout = Arc::new(move |bytes: &[u8]| stdout.print(bytes));
    given.stderr = Arc::new(move |bytes: &[u8]| stderr.print(bytes));
    given.network = network.clone();
    given.outbound = network.clone();
    Ok(given)
}

/// Whether the container came while the pod ran.
fn is_ephemeral(pod: &Pod, container: &Spec) -> bool {
    let ephemeral = pod.spec.as_ref().and_then(|spec| spec.ephemeral_containers.as_deref()).unwrap_or_default();
    ephemeral.iter().any(|ephemeral| ephemeral.name == container.name)
}

/// The sum of the limits of the containers that make the pod; `None` where one of them has none.
fn limits_of_all(pod: &Pod, name: &str, read: fn(&Quantity) -> Option<u64>) -> Option<u64> {
    pod.spec.as_ref()?.containers.iter().try_fold(0_u64, |sum, container| {
        let limits = container.resources.as_ref()?.limits.as_ref()?;
        let number = read(limits.get(name)?).filter(|number| *number > 0)?;
        Some(sum.saturating_add(number))
    })
}

/// `command` stands for the program's name and first arguments, `args` for the rest; a component without a command is
/// called by its image's name, as an image's entry point is: programs that are several in one go by it.
fn arguments(spec: &Spec, env: &[(String, String)]) -> Result<Vec<String>, EnvError> {
    let known: HashMap<&str, &str> = env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let mut room = Room::beside(env);
    let mut expanded = |list: &Option<Vec<String>>, all: &mut Vec<String>| -> Result<(), EnvError> {
        for text in list.iter().flatten() {
            let number = all.len();
            let what = || format!("argument {number} of container {}", spec.name);
            let text = expand(text, |name| known.get(name).copied(), env::STRING_BYTES_MAX);
            let text = text.ok_or_else(|| EnvError::TooLong(what()))?;
            room.take(text.len(), what)?;
            all.push(text);
        }
        Ok(())
    };
    let mut all = Vec::new();
    expanded(&spec.command, &mut all)?;
    if all.is_empty() {
        all.push(program(spec.image.as_deref().unwrap_or_default()).unwrap_or(&spec.name).to_owned());
    }
    expanded(&spec.args, &mut all)?;
    Ok(all)
}

/// The last part of an image's name.
fn program(image: &str) -> Option<&str> {
    let name = image.split('@').next()?.rsplit('/').next()?.split(':').next()?;
    (!name.is_empty()).then_some(name)
}

fn pull_policy(spec: &Spec, image: &str) -> PullPolicy {
    match spec.image_pull_policy.as_deref() {
        Some("Always") => PullPolicy::Always,
        Some("Never") => PullPolicy::Never,
        Some("IfNotPresent") => PullPolicy::IfNotPresent,
        // The API server has a default; this is the same.
        _ => {
            let name = image.rsplit('/').next().unwrap_or(image);
            let is_latest = !name.contains('@') && name.rsplit_once(':').is_none_or(|(_, tag)| tag == "latest");
            if is_latest { PullPolicy::Always } else { PullPolicy::IfNotPresent }
        }
    }
}

fn config_error(message: String) -> StartFailure {
    StartFailure { reason: "CreateContainerConfigError", message }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn puts_the_command_together() {
        for (spec, expected) in [
            (json!({"name": "c"}), vec!["c"]),
            (json!({"name": "c", "image": "h:5000/a/coreutils:1@sha256:0", "args": ["ls"]}), vec!["coreutils", "ls"]),
            (json!({"name": "c", "args": ["a", "$(X)"]}), vec!["c", "a", "x"]),
            (json!({"name": "c", "command": ["/p", "1"], "args": ["2"]}), vec!["/p", "1", "2"]),
        ] {
            let spec = serde_json::from_value(spec).unwrap();
            assert_eq!(arguments(&spec, &[("X".to_owned(), "x".to_owned())]).unwrap(), expected);
        }
    }

    #[test]
    fn what_has_no_limits_of_its_own_may_have_what_its_pod_may() {
        let pod = |limits: [serde_json::Value; 2]| -> Pod {
            let [a, b] = limits.map(|limits| json!({"name": "c", "resources": {"limits": limits}}));
            let spec = json!({"containers": [a, b], "ephemeralContainers": [{"name": "d"}]});
            serde_json::from_value(json!({"metadata": {}, "spec": spec})).unwrap()
        };
        let both = pod([json!({"memory": "1Mi", "cpu": "100m"}), json!({"memory": "2Mi"})]);
        assert_eq!(limits_of_all(&both, "memory", quantity::units), Some(3 << 20));
        assert_eq!(limits_of_all(&both, "cpu", quantity::millis), None, "one of them has none");
        let container = |name: &str| Spec { name: name.to_owned(), ..Spec::default() };
        assert!(is_ephemeral(&both, &container("d")) && !is_ephemeral(&both, &container("c")));
    }

    #[test]
    fn arguments_have_a_bound_of_bytes_with_the_environment() {
        let env = [("BIG".to_owned(), "x".repeat(100 << 10))];
        let spec = |arg: &str, count: usize| -> Spec {
            serde_json::from_value(json!({"name": "c", "command": ["p"], "args": vec![arg; count]})).unwrap()
        };
        let failed =
            |arg: &str, count, env: &[_]| arguments(&spec(arg, count), env).err().map(|error| error.to_string());
        assert_eq!(failed("$(BIG)", 19, &env), None);
        assert_eq!(failed("$(BIG)", 20, &env), Some(EnvError::TooMuch.to_string()), "the environment counts, too");
        let named = "argument 1 of container c".to_owned();
        assert_eq!(failed("$(BIG)$(BIG)", 1, &env), Some(EnvError::TooLong(named).to_string()));
        assert_eq!(failed("", 500_000, &[]), Some(EnvError::TooMuch.to_string()), "an empty one costs, too");
    }

    #[test]
    fn pulls_as_the_policy_or_the_tag_says() {
        for (policy, image, expected) in [
            (None, "a", PullPolicy::Always),
            (None, "h:5000/a", PullPolicy::Always),
            (None, "a:latest", PullPolicy::Always),
            (None, "a:1", PullPolicy::IfNotPresent),
            (None, "a@sha256:00", PullPolicy::IfNotPresent),
            (Some("Never"), "a", PullPolicy::Never),
            (Some("IfNotPresent"), "a", PullPolicy::IfNotPresent),
        ] {
            let spec = Spec { image_pull_policy: policy.map(str::to_owned), ..Spec::default() };
            assert_eq!(pull_policy(&spec, image), expected, "{image}");
        }
    }
}
