//! The checks, in the order in which they are told: those of the baseline, then the restricted ones, each by its id.
//!
//! A check may be another from some version of Kubernetes on; a restricted one may take the place of a weaker one of the
//! baseline. Details have the reference's words.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Level, Subject, Violation};
use crate::kinds::value::Read;
use crate::meta::text::quote;

type Run = fn(Subject<'_>) -> Option<Violation>;

/// A check.
pub(super) struct Check {
    pub id: &'static str,
    pub level: Level,
    /// From which minor version on it is which.
    versions: &'static [(u32, Run)],
    /// The id of the check of the baseline that it makes needless.
    pub overrides: Option<&'static str>,
}

impl Check {
    /// What it is in a version.
    pub fn at(&self, minor: u32) -> Option<Run> {
        self.versions.iter().rev().find(|(from, _)| *from <= minor).map(|(_, run)| *run)
    }
}

const fn baseline(id: &'static str, versions: &'static [(u32, Run)]) -> Check {
    Check { id, level: Level::Baseline, versions, overrides: None }
}

const fn restricted(id: &'static str, versions: &'static [(u32, Run)], overrides: Option<&'static str>) -> Check {
    Check { id, level: Level::Restricted, versions, overrides }
}

pub(super) static CHECKS: [Check; 19] = [
    baseline("appArmorProfile", &[(0, app_armor)]),
    baseline("capabilities_baseline", &[(0, added_capabilities)]),
    baseline("hostNamespaces", &[(0, host_namespaces)]),
    baseline("hostPathVolumes", &[(0, host_paths)]),
    baseline("hostPorts", &[(0, host_ports)]),
    baseline("hostProbesAndHostLifecycle", &[(34, probed_hosts)]),
    baseline("privileged", &[(0, privileged)]),
    baseline("procMount", &[(0, proc_mount), (35, |pod| if has_users(pod) { None } else { proc_mount(pod) })]),
    baseline("seLinuxOptions", &[(0, |pod| se_linux(pod, &SE_LINUX[..4])), (31, |pod| se_linux(pod, &SE_LINUX))]),
    baseline("seccompProfile_baseline", &[(0, seccomp_annotations), (19, seccomp)]),
    baseline(
        "sysctls",
        &[
            (0, |pod| sysctls(pod, &SYSCTLS[..5])),
            (27, |pod| sysctls(pod, &SYSCTLS[..6])),
            (29, |pod| sysctls(pod, &SYSCTLS[..10])),
            (32, |pod| sysctls(pod, &SYSCTLS[..12])),
            (37, |pod| sysctls(pod, &SYSCTLS)),
        ],
    ),
    baseline("windowsHostProcess", &[(0, host_process)]),
    restricted("allowPrivilegeEscalation", &[(8, escalation), (25, |pod| unless_windows(pod, escalation))], None),
    restricted(
        "capabilities_restricted",
        &[(22, capabilities), (25, |pod| unless_windows(pod, capabilities))],
        Some("capabilities_baseline"),
    ),
    restricted("procMount_restricted", &[(35, proc_mount)], Some("procMount")),
    restricted("restrictedVolumes", &[(0, volumes)], Some("hostPathVolumes")),
    restricted("runAsNonRoot", &[(0, non_root), (35, |pod| if has_users(pod) { None } else { non_root(pod) })], None),
    restricted("runAsUser", &[(23, root_user), (35, |pod| if has_users(pod) { None } else { root_user(pod) })], None),
    restricted(
        "seccompProfile_restricted",
        &[(19, seccomp_set), (25, |pod| unless_windows(pod, seccomp_set))],
        Some("seccompProfile_baseline"),
    ),
];

/// What a component may add to what all containers have.
const CAPABILITIES: [&str; 13] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// In the order in which they became allowed.
const SYSCTLS: [&str; 14] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
    "net.ipv4.tcp_slow_start_after_idle",
    "net.ipv4.tcp_notsent_lowat",
];

/// In the order in which they became allowed.
const SE_LINUX: [&str; 5] = ["", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"];

/// Volumes that a careful pod may have.
const VOLUMES: [&str; 9] = [
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "image",
    "persistentVolumeClaim",
    "projected",
    "secret",
];

/// All other kinds of volumes, in the order in which the first that is there is named.
const OTHER_VOLUMES: [&str; 21] = [
    "hostPath",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "gitRepo",
    "nfs",
    "iscsi",
    "glusterfs",
    "rbd",
    "flexVolume",
    "cinder",
    "cephfs",
    "flocker",
    "fc",
    "azureFile",
    "vsphereVolume",
    "quobyte",
    "azureDisk",
    "photonPersistentDisk",
    "portworxVolume",
    "scaleIO",
    "storageos",
];

/// Containers of all sorts, the first ones first.
fn containers(pod: Subject<'_>) -> impl Iterator<Item = &Value> {
    let lists = ["initContainers", "containers", "ephemeralContainers"];
    lists.into_iter().flat_map(move |list| pod.spec[list].items())
}

/// Names of the containers that are `bad`.
fn bad<'a>(pod: Subject<'a>, mut is_bad: impl FnMut(&'a Value) -> bool) -> Vec<&'a str> {
    containers(pod).filter(|container| is_bad(container)).map(|container| container["name"].text()).collect()
}

fn forbid(reason: &str, detail: String) -> Option<Violation> {
    Some(Violation { reason: reason.to_owned(), detail })
}

fn plural<'a>(one: &'a str, many: &'a str, count: usize) -> &'a str {
    if count == 1 { one } else { many }
}

/// In quotes, as they are.
fn quoted<'a>(texts: impl IntoIterator<Item = &'a str>) -> String {
    let texts: Vec<&str> = texts.into_iter().collect();
    if texts.is_empty() { String::new() } else { format!("\"{}\"", texts.join("\", \"")) }
}

/// As `containers "a", "b"`.
fn named(names: &[&str]) -> String {
    format!("{} {}", plural("container", "containers", names.len()), quoted(names.iter().copied()))
}

/// Who set something: the pod, and containers.
fn setters(pod: bool, containers: &[&str]) -> Option<String> {
    let mut setters = Vec::new();
    setters.extend(pod.then(|| "pod".to_owned()));
    setters.extend((!containers.is_empty()).then(|| named(containers)));
    (!setters.is_empty()).then(|| setters.join(" and "))
}

/// Whether the pod has users of its own, who are nobody on the node.
fn has_users(pod: Subject<'_>) -> bool {
    pod.spec["hostUsers"] == false
}

/// Validation refuses in pods for Windows what these checks want.
fn unless_windows(pod: Subject<'_>, check: Run) -> Option<Violation> {
    if pod.spec["os"]["name"] == "windows" { None } else { check(pod) }
}

fn app_armor(pod: Subject<'_>) -> Option<Violation> {
    const PREFIX: &str = "container.apparmor.security.beta.kubernetes.io/";
    let mut values = BTreeSet::new();
    let mut is_bad = |holder: &Value| {
        let profile = &holder["securityContext"]["appArmorProfile"];
        let is_bad = profile.is_object() && !matches!(profile["type"].text(), "RuntimeDefault" | "Localhost");
        if is_bad {
            values.insert(profile["type"].text().to_owned());
        }
        is_bad
    };
    let by_pod = is_bad(pod.spec);
    let by_containers = bad(pod, &mut is_bad);
    let annotations: BTreeSet<String> = pod.metadata["annotations"]
        .entries()
        .filter(|(key, _)| key.starts_with(PREFIX))
        .filter(|(_, value)| !matches!(value.text(), "" | "runtime/default") && !value.text().starts_with("localhost/"))
        .map(|(key, value)| format!("{key}={}", quote(value.text())))
        .collect();
    let mut by: Vec<String> = setters(by_pod, &by_containers).into_iter().collect();
    if !annotations.is_empty() {
        by.push(plural("annotation", "annotations", annotations.len()).to_owned());
    }
    if by.is_empty() {
        return None;
    }
    let count = values.len() + annotations.len();
    let shown = quoted(values.iter().chain(&annotations).map(String::as_str));
    let reason = plural("forbidden AppArmor profile", "forbidden AppArmor profiles", count);
    forbid(reason, format!("{} must not set AppArmor profile type to {shown}", by.join(" and ")))
}

fn added_capabilities(pod: Subject<'_>) -> Option<Violation> {
    let mut added = BTreeSet::new();
    let names = bad(pod, |container| {
        let wanted = container["securityContext"]["capabilities"]["add"].items().iter().map(Read::text);
        let wanted: Vec<&str> = wanted.filter(|name| !CAPABILITIES.contains(name)).collect();
        let is_bad = !wanted.is_empty();
        added.extend(wanted);
        is_bad
    });
    if names.is_empty() {
        return None;
    }
    let detail = format!("{} must not include {} in securityContext.capabilities.add", named(&names), quoted(added));
    forbid("non-default capabilities", detail)
}

fn host_namespaces(pod: Subject<'_>) -> Option<Violation> {
    let set = ["hostNetwork", "hostPID", "hostIPC"].into_iter().filter(|field| pod.spec[*field].flag());
    let set: Vec<String> = set.map(|field| format!("{field}=true")).collect();
    if set.is_empty() { None } else { forbid("host namespaces", set.join(", ")) }
}

fn host_paths(pod: Subject<'_>) -> Option<Violation> {
    let volumes = pod.spec["volumes"].items().iter().filter(|volume| volume["hostPath"].is_set());
    let names: Vec<&str> = volumes.map(|volume| volume["name"].text()).collect();
    if names.is_empty() {
        return None;
    }
    forbid("hostPath volumes", format!("{} {}", plural("volume", "volumes", names.len()), quoted(names)))
}

fn host_ports(pod: Subject<'_>) -> Option<Violation> {
    let mut ports = BTreeSet::new();
    let names = bad(pod, |container| {
        let used = container["ports"].items().iter().map(|port| port["hostPort"].int()).filter(|port| *port != 0);
        let used: Vec<String> = used.map(|port| port.to_string()).collect();
        let is_bad = !used.is_empty();
        ports.extend(used);
        is_bad
    });
    if names.is_empty() {
        return None;
    }
    let (use_, word) = (plural("uses", "use", names.len()), plural("hostPort", "hostPorts", ports.len()));
    let ports: Vec<String> = ports.into_iter().collect();
    forbid("hostPort", format!("{} {use_} {word} {}", named(&names), ports.join(", ")))
}

fn probed_hosts(pod: Subject<'_>) -> Option<Violation> {
    let (mut hosts, mut names) = (BTreeSet::new(), BTreeSet::new());
    for container in containers(pod) {
        let lifecycle = &container["lifecycle"];
        let probes = ["livenessProbe", "readinessProbe", "startupProbe"].map(|probe| &container[probe]);
        for handler in probes.into_iter().chain([&lifecycle["postStart"], &lifecycle["preStop"]]) {
            for host in [&handler["httpGet"]["host"], &handler["tcpSocket"]["host"]].map(Read::text) {
                if !host.is_empty() {
                    names.insert(container["name"].text());
                    hosts.insert(host);
                }
            }
        }
    }
    if names.is_empty() {
        return None;
    }
    let names: Vec<&str> = names.into_iter().collect();
    let use_ = plural("uses", "use", names.len());
    let word = plural("probe or lifecycle host", "probe or lifecycle hosts", hosts.len());
    forbid("probe or lifecycle host", format!("{} {use_} {word} {}", named(&names), quoted(hosts)))
}

fn privileged(pod: Subject<'_>) -> Option<Violation> {
    let names = bad(pod, |container| container["securityContext"]["privileged"].flag());
    if names.is_empty() {
        return None;
    }
    forbid("privileged", format!("{} must not set securityContext.privileged=true", named(&names)))
}

fn proc_mount(pod: Subject<'_>) -> Option<Violation> {
    let mut values = BTreeSet::new();
    let names = bad(pod, |container| {
        let mount = &container["securityContext"]["procMount"];
        let is_bad = mount.is_set() && mount != "Default";
        if is_bad {
            values.insert(mount.text());
        }
        is_bad
    });
    if names.is_empty() {
        return None;
    }
    forbid("procMount", format!("{} must not set securityContext.procMount to {}", named(&names), quoted(values)))
}

fn se_linux(pod: Subject<'_>, types: &[&str]) -> Option<Violation> {
    let (mut values, mut user, mut role) = (BTreeSet::new(), false, false);
    let mut is_bad = |holder: &Value| {
        let options = &holder["securityContext"]["seLinuxOptions"];
        let (kind, has_user, has_role) =
            (options["type"].text(), !options["user"].is_empty(), !options["role"].is_empty());
        let is_other = !types.contains(&kind);
        if is_other {
            values.insert(kind.to_owned());
        }
        user |= has_user;
        role |= has_role;
        is_other || has_user || has_role
    };
    let by_pod = is_bad(pod.spec);
    let by_containers = bad(pod, &mut is_bad);
    let by = setters(by_pod, &by_containers)?;
    let mut what = Vec::new();
    if !values.is_empty() {
        what.push(format!("{} {}", plural("type", "types", values.len()), quoted(values.iter().map(String::as_str))));
    }
    what.extend(user.then(|| "user may not be set".to_owned()));
    what.extend(role.then(|| "role may not be set".to_owned()));
    forbid("seLinuxOptions", format!("{by} set forbidden securityContext.seLinuxOptions: {}", what.join("; ")))
}

/// The annotation that named the profile of a pod before there was a field for it.
pub(super) const SECCOMP_OF_POD: &str = "seccomp.security.alpha.kubernetes.io/pod";

/// The same of a container.
pub(super) fn seccomp_annotation(container: &str) -> String {
    format!("container.seccomp.security.alpha.kubernetes.io/{container}")
}

/// As profiles were named before there was a field for them.
fn seccomp_annotations(pod: Subject<'_>) -> Option<Violation> {
    let of_containers = containers(pod).map(|container| seccomp_annotation(container["name"].text()));
    let keys = std::iter::once(SECCOMP_OF_POD.to_owned()).chain(of_containers);
    let found: BTreeSet<String> = keys
        .filter_map(|key| {
            let value = pod.metadata["annotations"].get(&key)?.text();
            let is_fine = matches!(value, "runtime/default" | "docker/default") || value.starts_with("localhost/");
            (!is_fine).then(|| format!("{key}={}", quote(value)))
        })
        .collect();
    if found.is_empty() {
        return None;
    }
    let word = plural("annotation", "annotations", found.len());
    forbid("seccompProfile", format!("forbidden {word} {}", found.into_iter().collect::<Vec<_>>().join(", ")))
}

fn is_confined(profile: &Value) -> bool {
    matches!(profile["type"].text(), "RuntimeDefault" | "Localhost")
}

fn seccomp(pod: Subject<'_>) -> Option<Violation> {
    let mut values = BTreeSet::new();
    let mut is_bad = |holder: &Value| {
        let profile = &holder["securityContext"]["seccompProfile"];
        let is_bad = profile.is_object() && !is_confined(profile);
        if is_bad {
            values.insert(profile["type"].text().to_owned());
        }
        is_bad
    };
    let by_pod = is_bad(pod.spec);
    let by_containers = bad(pod, &mut is_bad);
    let by = setters(by_pod, &by_containers)?;
    let values = quoted(values.iter().map(String::as_str));
    forbid("seccompProfile", format!("{by} must not set securityContext.seccompProfile.type to {values}"))
}

/// Somebody must say it, the pod or each container.
fn seccomp_set(pod: Subject<'_>) -> Option<Violation> {
    if let Some(violation) = seccomp(pod) {
        return Some(violation);
    }
    if is_confined(&pod.spec["securityContext"]["seccompProfile"]) {
        return None;
    }
    let names = bad(pod, |container| !container["securityContext"]["seccompProfile"].is_object());
    if names.is_empty() {
        return None;
    }
    let detail = format!(
        "pod or {} must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\"",
        named(&names)
    );
    forbid("seccompProfile", detail)
}

fn sysctls(pod: Subject<'_>, allowed: &[&str]) -> Option<Violation> {
    let set = pod.spec["securityContext"]["sysctls"].items().iter().map(|sysctl| sysctl["name"].text());
    let set: Vec<&str> = set.filter(|name| !allowed.contains(name)).collect();
    if set.is_empty() { None } else { forbid("forbidden sysctls", set.join(", ")) }
}

fn host_process(pod: Subject<'_>) -> Option<Violation> {
    let is_bad = |holder: &Value| holder["securityContext"]["windowsOptions"]["hostProcess"].flag();
    let by = setters(is_bad(pod.spec), &bad(pod, is_bad))?;
    forbid("hostProcess", format!("{by} must not set securityContext.windowsOptions.hostProcess=true"))
}

fn escalation(pod: Subject<'_>) -> Option<Violation> {
    let names = bad(pod, |container| container["securityContext"]["allowPrivilegeEscalation"] != false);
    if names.is_empty() {
        return None;
    }
    let detail = format!("{} must set securityContext.allowPrivilegeEscalation=false", named(&names));
    forbid("allowPrivilegeEscalation != false", detail)
}

fn capabilities(pod: Subject<'_>) -> Option<Violation> {
    let keeps = bad(pod, |container| {
        let dropped = container["securityContext"]["capabilities"]["drop"].items();
        !dropped.iter().any(|name| name == "ALL")
    });
    let mut added = BTreeSet::new();
    let adds = bad(pod, |container| {
        let wanted = container["securityContext"]["capabilities"]["add"].items().iter().map(Read::text);
        let wanted: Vec<&str> = wanted.filter(|name| *name != "NET_BIND_SERVICE").collect();
        let is_bad = !wanted.is_empty();
        added.extend(wanted);
        is_bad
    });
    let mut details = Vec::new();
    if !keeps.is_empty() {
        details.push(format!("{} must set securityContext.capabilities.drop=[\"ALL\"]", named(&keeps)));
    }
    if !adds.is_empty() {
        let names = named(&adds);
        details.push(format!("{names} must not include {} in securityContext.capabilities.add", quoted(added)));
    }
    if details.is_empty() { None } else { forbid("unrestricted capabilities", details.join("; ")) }
}

fn volumes(pod: Subject<'_>) -> Option<Violation> {
    let has = |volume: &Value, kinds: &[&'static str]| kinds.iter().copied().find(|kind| volume[*kind].is_set());
    let bad: Vec<&Value> =
        pod.spec["volumes"].items().iter().filter(|volume| has(volume, &VOLUMES).is_none()).collect();
    if bad.is_empty() {
        return None;
    }
    let kinds: BTreeSet<&str> = bad.iter().map(|volume| has(volume, &OTHER_VOLUMES).unwrap_or("unknown")).collect();
    let (one, use_) = (plural("volume", "volumes", bad.len()), plural("uses", "use", bad.len()));
    let word = plural("restricted volume type", "restricted volume types", kinds.len());
    let names = quoted(bad.iter().map(|volume| volume["name"].text()));
    forbid("restricted volume types", format!("{one} {names} {use_} {word} {}", quoted(kinds)))
}

fn non_root(pod: Subject<'_>) -> Option<Violation> {
    const REASON: &str = "runAsNonRoot != true";
    let said = |holder: &Value| holder["securityContext"]["runAsNonRoot"].as_bool();
    let by_pod = said(pod.spec);
    let by_containers = bad(pod, |container| said(container) == Some(false));
    if let Some(by) = setters(by_pod == Some(false), &by_containers) {
        return forbid(REASON, format!("{by} must not set securityContext.runAsNonRoot=false"));
    }
    let silent = bad(pod, |container| said(container).is_none() && by_pod.is_none());
    if silent.is_empty() {
        return None;
    }
    forbid(REASON, format!("pod or {} must set securityContext.runAsNonRoot=true", named(&silent)))
}

fn root_user(pod: Subject<'_>) -> Option<Violation> {
    let is_root = |holder: &Value| holder["securityContext"]["runAsUser"] == 0;
    let by = setters(is_root(pod.spec), &bad(pod, is_root))?;
    forbid("runAsUser=0", format!("{by} must not set runAsUser=0"))
}
