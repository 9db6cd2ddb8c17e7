//! In the reference's words: what its own tests of each check say.

use serde_json::{Value, json};

use super::*;

fn standard(level: Level, version: Version) -> Standard {
    Standard { level, version }
}

fn told(standard: Standard, metadata: &Value, spec: &Value) -> String {
    details(&violations(standard, Subject { metadata, spec }))
}

/// A pod that keeps to everything.
fn careful() -> Value {
    json!({
        "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [{"name": "a", "image": "i", "securityContext": {
            "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]},
        }}],
    })
}

fn with(change: impl FnOnce(&mut Value)) -> Value {
    let mut spec = careful();
    change(&mut spec);
    spec
}

#[test]
fn the_baseline_forbids() {
    let security = |context: Value| with(|spec| spec["containers"][0]["securityContext"] = context);
    let pod_security = |context: Value| with(|spec| spec["securityContext"] = context);
    for (spec, expected) in [
        (careful(), ""),
        (with(|spec| spec["hostNetwork"] = json!(true)), "host namespaces (hostNetwork=true)"),
        (
            with(|spec| {
                spec["hostPID"] = json!(true);
                spec["hostIPC"] = json!(true);
            }),
            "host namespaces (hostPID=true, hostIPC=true)",
        ),
        (
            with(|spec| spec["volumes"] = json!([{"name": "v", "hostPath": {"path": "/"}}])),
            "hostPath volumes (volume \"v\")",
        ),
        (
            with(|spec| {
                spec["containers"][0]["ports"] = json!([{"hostPort": 80}, {"hostPort": 9}, {"containerPort": 1}])
            }),
            "hostPort (container \"a\" uses hostPorts 80, 9)",
        ),
        (
            with(|spec| spec["containers"][0]["livenessProbe"] = json!({"httpGet": {"host": "h", "port": 1}})),
            "probe or lifecycle host (container \"a\" uses probe or lifecycle host \"h\")",
        ),
        (
            security(json!({"privileged": true})),
            "privileged (container \"a\" must not set securityContext.privileged=true)",
        ),
        (
            security(json!({"procMount": "Unmasked"})),
            "procMount (container \"a\" must not set securityContext.procMount to \"Unmasked\")",
        ),
        (
            security(json!({"capabilities": {"add": ["NET_RAW", "CHOWN", "BPF"]}})),
            "non-default capabilities (container \"a\" must not include \"BPF\", \"NET_RAW\" in \
             securityContext.capabilities.add)",
        ),
        (
            pod_security(json!({"seLinuxOptions": {"type": "x", "user": "u"}})),
            "seLinuxOptions (pod set forbidden securityContext.seLinuxOptions: type \"x\"; user may not be set)",
        ),
        (
            pod_security(json!({"seccompProfile": {"type": "Unconfined"}})),
            "seccompProfile (pod must not set securityContext.seccompProfile.type to \"Unconfined\")",
        ),
        (
            pod_security(json!({"sysctls": [{"name": "kernel.x"}, {"name": "net.ipv4.tcp_syncookies"}]})),
            "forbidden sysctls (kernel.x)",
        ),
        (
            pod_security(json!({"windowsOptions": {"hostProcess": true}})),
            "hostProcess (pod must not set securityContext.windowsOptions.hostProcess=true)",
        ),
        (
            pod_security(json!({"appArmorProfile": {"type": "Unconfined"}})),
            "forbidden AppArmor profile (pod must not set AppArmor profile type to \"Unconfined\")",
        ),
    ] {
        let baseline = standard(Level::Baseline, Version::Latest);
        assert_eq!(told(baseline, &json!({}), &spec), expected, "{spec}");
        assert_eq!(told(standard(Level::Privileged, Version::Latest), &json!({}), &spec), "");
    }
    let metadata = json!({"annotations": {"container.apparmor.security.beta.kubernetes.io/a": "unconfined"}});
    assert_eq!(
        told(standard(Level::Baseline, Version::Latest), &metadata, &careful()),
        "forbidden AppArmor profile (annotation must not set AppArmor profile type to \
         \"container.apparmor.security.beta.kubernetes.io/a=\"unconfined\"\")"
    );
}

#[test]
fn the_restricted_level_wants_more() {
    let latest = standard(Level::Restricted, Version::Latest);
    assert_eq!(told(latest, &json!({}), &careful()), "");
    let plain = json!({"containers": [{"name": "a"}, {"name": "b"}]});
    assert_eq!(
        told(latest, &json!({}), &plain),
        "allowPrivilegeEscalation != false (containers \"a\", \"b\" must set \
         securityContext.allowPrivilegeEscalation=false), unrestricted capabilities (containers \"a\", \"b\" must set \
         securityContext.capabilities.drop=[\"ALL\"]), runAsNonRoot != true (pod or containers \"a\", \"b\" must set \
         securityContext.runAsNonRoot=true), seccompProfile (pod or containers \"a\", \"b\" must set \
         securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")"
    );
    for (spec, expected) in [
        (
            with(|spec| {
                spec["volumes"] =
                    json!([{"name": "v", "hostPath": {}}, {"name": "w", "nfs": {}}, {"name": "x", "emptyDir": {}}])
            }),
            "restricted volume types (volumes \"v\", \"w\" use restricted volume types \"hostPath\", \"nfs\")",
        ),
        (
            with(|spec| spec["securityContext"]["runAsNonRoot"] = json!(false)),
            "runAsNonRoot != true (pod must not set securityContext.runAsNonRoot=false)",
        ),
        (with(|spec| spec["securityContext"]["runAsUser"] = json!(0)), "runAsUser=0 (pod must not set runAsUser=0)"),
        (
            with(|spec| {
                spec["containers"][0]["securityContext"]["capabilities"]["add"] = json!(["NET_BIND_SERVICE", "CHOWN"])
            }),
            "unrestricted capabilities (container \"a\" must not include \"CHOWN\" in securityContext.capabilities.add)",
        ),
        // What the pod says of users is another matter where it has its own.
        (
            with(|spec| {
                spec["hostUsers"] = json!(false);
                spec["securityContext"]["runAsNonRoot"] = json!(false);
            }),
            "",
        ),
    ] {
        assert_eq!(told(latest, &json!({}), &spec), expected, "{spec}");
    }
}

#[test]
fn versions_have_the_checks_of_their_time() {
    let at = |minor| standard(Level::Restricted, Version::Minor(minor));
    let plain = json!({"containers": [{"name": "a"}]});
    let reasons_at = |minor| {
        let found = violations(at(minor), Subject { metadata: &json!({}), spec: &plain });
        reasons(&found)
    };
    assert_eq!(reasons_at(7), "runAsNonRoot != true");
    assert_eq!(reasons_at(8), "allowPrivilegeEscalation != false, runAsNonRoot != true");
    assert_eq!(reasons_at(19), "allowPrivilegeEscalation != false, runAsNonRoot != true, seccompProfile");
    assert_eq!(
        reasons_at(22),
        "allowPrivilegeEscalation != false, unrestricted capabilities, runAsNonRoot != true, seccompProfile"
    );
    assert_eq!(reasons_at(22), reasons_at(900), "one that is to come is the newest");
    let sysctl = |name: &str| with(|spec| spec["securityContext"]["sysctls"] = json!([{"name": name}]));
    for (name, first) in
        [("net.ipv4.ip_local_reserved_ports", 27), ("net.ipv4.tcp_rmem", 32), ("net.ipv4.tcp_notsent_lowat", 37)]
    {
        let baseline = |minor| told(standard(Level::Baseline, Version::Minor(minor)), &json!({}), &sysctl(name));
        assert_eq!((baseline(first - 1), baseline(first)), (format!("forbidden sysctls ({name})"), String::new()));
    }
    let annotated = json!({"annotations": {"seccomp.security.alpha.kubernetes.io/pod": "unconfined"}});
    assert_eq!(
        told(standard(Level::Baseline, Version::Minor(18)), &annotated, &plain),
        "seccompProfile (forbidden annotation seccomp.security.alpha.kubernetes.io/pod=\"unconfined\")"
    );
    assert_eq!(told(standard(Level::Baseline, Version::Minor(19)), &annotated, &plain), "");
}

#[test]
fn labels_say_the_policy() {
    let read = |labels: &[(&str, &str)]| {
        let labels: Vec<(String, String)> = labels
            .iter()
            .map(|(name, value)| (format!("pod-security.kubernetes.io/{name}"), (*value).to_owned()))
            .collect();
        let (policy, errors) =
            Policy::read(|name| labels.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str()));
        let all = [policy.enforce, policy.audit, policy.warn].map(|standard| standard.to_string());
        (all.join(" "), errors.iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    let none = "privileged:latest privileged:latest privileged:latest";
    assert_eq!(read(&[]), (none.to_owned(), vec![]));
    for (labels, expected) in [
        (
            &[("enforce", "baseline"), ("enforce-version", "v1.30")][..],
            "baseline:v1.30 privileged:latest baseline:v1.30",
        ),
        (&[("enforce", "restricted"), ("warn", "baseline")], "restricted:latest privileged:latest baseline:latest"),
        (&[("enforce", "restricted"), ("warn-version", "v1.1")], "restricted:latest privileged:latest restricted:v1.1"),
        (
            &[("audit", "restricted"), ("audit-version", "latest")],
            "privileged:latest restricted:latest privileged:latest",
        ),
    ] {
        assert_eq!(read(labels), (expected.to_owned(), vec![]), "{labels:?}");
    }
    let (policy, errors) = read(&[("enforce", "x"), ("audit", "y"), ("warn-version", "v1.01")]);
    assert_eq!(policy, "restricted:latest privileged:latest privileged:latest");
    assert_eq!(
        errors,
        [
            "metadata.labels[pod-security.kubernetes.io/enforce]: Invalid value: \"x\": must be one of privileged, \
             baseline, restricted",
            "metadata.labels[pod-security.kubernetes.io/audit]: Invalid value: \"y\": must be one of privileged, \
             baseline, restricted",
            "metadata.labels[pod-security.kubernetes.io/warn-version]: Invalid value: \"v1.01\": must be \"latest\" or \
             \"v1.x\"",
        ]
    );
}

#[test]
fn changes_of_pods_are_looked_at_that_can_violate() {
    let old = json!({"metadata": {}, "spec": careful()});
    let annotated = |key: &str| {
        let mut pod = old.clone();
        pod["metadata"] = json!({"annotations": {key: "unconfined"}});
        is_significant(&pod, &old) && is_significant(&old, &pod)
    };
    assert!(annotated("seccomp.security.alpha.kubernetes.io/pod"));
    assert!(annotated("container.seccomp.security.alpha.kubernetes.io/a"));
    assert!(!annotated("container.seccomp.security.alpha.kubernetes.io/b"));
    let mut imaged = old.clone();
    imaged["spec"]["containers"][0]["image"] = "other".into();
    assert!(is_significant(&imaged, &old) && !is_significant(&old, &old));
}
