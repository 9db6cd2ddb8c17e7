//! A cluster in a file, taken while others write, and another cluster made of it.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use coracle_sdk::Remote;
use coracle_tests::{Cluster, WEB, coracle, eventually_answers, output};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::PostParams;
use serde_json::Value;

/// Who may ask for everything that is no resource.
const SOMEBODY: &str = "
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: everything}
rules: [{nonResourceURLs: ['*'], verbs: ['*']}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: everything}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: everything}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: somebody}]
---
apiVersion: v1
kind: Secret
metadata: {name: db}
stringData: {password: Zq7RmV2xK9tLw4Ns8Yc1}
";

/// What the Secret holds, as it is and in base64.
const PASSWORD: [&str; 2] = ["Zq7RmV2xK9tLw4Ns8Yc1", "WnE3Um1WMnhLOXRMdzROczhZYzE="];

/// What is listed at `path`, by name: each object as it is.
fn listed(cluster: &Cluster, path: &str) -> BTreeMap<String, Value> {
    let list: Value = serde_json::from_str(&cluster.kubectl(&format!("get --raw {path}"))).expect("a list");
    let items = list["items"].as_array().cloned().unwrap_or_default();
    let named = |item: Value| {
        (format!("{}/{}", item["metadata"]["namespace"], item["metadata"]["name"]).replace('"', ""), item)
    };
    items.into_iter().map(named).collect()
}

/// Runs `coracle restore`; its exit code and what it said.
fn restore(file: &Path, dir: &Path) -> (Option<i32>, String) {
    let mut command = std::process::Command::new(coracle());
    let output = output(command.arg("restore").arg(file).arg("--data-dir").arg(dir));
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn a_backup_under_load_becomes_a_cluster_that_goes_on() {
    let mut cluster = Cluster::start();
    cluster.push("standin", "standin");
    cluster.apply(WEB);
    cluster.apply(SOMEBODY);
    cluster.kubectl("rollout status deployment/web --timeout=120s");
    let temp = tempfile::tempdir().expect("a temporary directory");
    let file = temp.path().join("cluster.backup");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let remote = runtime.block_on(Remote::connect(&cluster.kubeconfig())).expect("connect");
    let (stop, written) = (AtomicBool::new(false), AtomicUsize::new(0));
    // One object after the other: what is in the backup must be the first so many of them.
    let (before, said) = std::thread::scope(|scope| {
        scope.spawn(|| {
            let api: Api<ConfigMap> = Api::default_namespaced(remote.client().clone());
            while !stop.load(Ordering::Relaxed) {
                let mut object = ConfigMap::default();
                object.metadata.name = Some(format!("w{:05}", written.load(Ordering::Relaxed)));
                runtime.block_on(api.create(&PostParams::default(), &object)).expect("nobody who writes is refused");
                written.fetch_add(1, Ordering::Relaxed);
            }
        });
        while written.load(Ordering::Relaxed) < 50 {
            std::thread::yield_now();
        }
        let before = written.load(Ordering::Relaxed);
        let made = cluster.coracle(&["backup".as_ref(), file.as_os_str()]);
        let after = written.load(Ordering::Relaxed);
        stop.store(true, Ordering::Relaxed);
        let said = String::from_utf8_lossy(&made.stderr).into_owned();
        assert!(made.status.success() && after > before, "{said}");
        (before, said)
    });
    let revision: u64 = said
        .split("revision ")
        .nth(1)
        .and_then(|rest| rest.split(':').next())
        .and_then(|number| number.parse().ok())
        .unwrap_or_else(|| panic!("no revision: {said}"));
    assert_eq!(std::fs::metadata(&file).expect("the backup").permissions().mode() & 0o777, 0o600);
    let key = temp.path().join("cluster.backup.key");
    assert_eq!(std::fs::metadata(&key).expect("its key").permissions().mode() & 0o777, 0o600);
    assert_eq!(std::fs::read_dir(temp.path()).expect("list").count(), 2, "nothing is left beside them");
    let again = cluster.coracle(&["backup".as_ref(), file.as_os_str()]);
    assert!(!again.status.success(), "a backup that is there is not overwritten");
    assert!(!cluster.coracle(&["backup", "--no-images", "-"]).status.success(), "its key has no place");
    let key_file = key.display().to_string();
    let standard = cluster.coracle(&["backup", "--no-images", "--key-file", &key_file, "-"]);
    assert!(standard.status.success() && standard.stdout.starts_with(b"coracle backup 2\n"));
    // Neither a Secret nor a key of the cluster stands in it in the clear; other objects do.
    let holds = |text: &str| standard.stdout.windows(text.len()).any(|window| window == text.as_bytes());
    assert!(holds("w00000") && !holds("PRIVATE KEY"));
    assert!(PASSWORD.iter().all(|text| !holds(text)));
    let status = cluster.coracle(&["status"]);
    assert!(
        String::from_utf8_lossy(&status.stdout).contains("encryption  secrets under key 1, 0 days old"),
        "{status:?}"
    );
    let rotated = cluster.coracle(&["encryption", "rotate"]);
    assert!(String::from_utf8_lossy(&rotated.stdout).contains("key        2, 0 days old"), "{rotated:?}");
    let refused = cluster.kubectl_fails("get --raw /coracle/v1/backup --as=somebody");
    assert!(refused.contains("system:masters"), "{refused}");

    // What the old cluster says of the revision of the backup.
    let kinds = ["/api/v1/configmaps", "/api/v1/secrets", "/api/v1/serviceaccounts", "/api/v1/namespaces"];
    let exactly = |path: &str| format!("{path}?resourceVersion={revision}&resourceVersionMatch=Exact");
    let expected: Vec<_> = kinds.iter().map(|path| listed(&cluster, &exactly(path))).collect();
    let configs = expected[0].keys().filter(|name| name.starts_with("default/w")).count();
    assert!(configs >= before, "{configs} of at least {before}");
    assert!(expected[0].contains_key(&format!("default/w{:05}", configs - 1)), "the first {configs}, without a gap");
    let nodes = cluster.kubectl("get nodes -o name");
    assert_eq!(cluster.terminate(), Some(0));

    // What is no whole backup is refused, and leaves nothing.
    let whole = std::fs::read(&file).expect("the backup");
    let dir = temp.path().join("restored");
    let mut wrong = whole.clone();
    wrong[whole.len() / 2] ^= 1;
    for (name, bytes, expected) in [
        ("damaged", wrong, "damaged at byte"),
        ("cut", whole[..whole.len() - 1].to_vec(), "before its end"),
        ("foreign", b"PK\x03\x04".to_vec(), "no backup of coracle"),
        ("next", b"coracle backup 3\n".to_vec(), "version"),
        ("keyless", whole.clone(), "--key-file"),
        ("locked", whole.clone(), "and the one that was given is"),
        ("spoilt", whole.clone(), "no backup key"),
    ] {
        let path = temp.path().join(name);
        std::fs::write(&path, bytes).expect("write it");
        let beside = temp.path().join(format!("{name}.key"));
        match name {
            "keyless" => (),
            "locked" => {
                let other = format!("coracle backup key 1\n{}\n", "0a".repeat(32));
                std::fs::write(&beside, other).expect("write another key");
            }
            "spoilt" => std::fs::write(&beside, "coracle backup key 1\n").expect("write no key"),
            _ => drop(std::fs::copy(&key, &beside).expect("copy the key")),
        }
        let (code, said) = restore(&path, &dir);
        assert!(code == Some(1) && said.contains(expected), "{name}: {said}");
        std::fs::remove_file(path).expect("remove it");
        if name != "keyless" {
            std::fs::remove_file(beside).expect("remove its key");
        }
        assert_eq!(std::fs::read_dir(temp.path()).expect("list").count(), 2, "{name} left something");
    }
    std::fs::create_dir(&dir).and_then(|()| std::fs::write(dir.join("mine"), "x")).expect("a directory");
    let (code, said) = restore(&file, &dir);
    assert!(code == Some(1) && said.contains("not empty") && dir.join("mine").exists(), "{said}");

    // On a machine of the old one's name, as people do it: its node is the one that is there already.
    let replaced = Cluster::start_restored(&file, &[]);
    assert_eq!(replaced.kubectl("get nodes -o name"), nodes);
    replaced.kubectl("rollout status deployment/web --timeout=120s");
    drop(replaced);
    let restored = Cluster::start_restored(&file, &["--name", "other"]);
    for (path, expected) in kinds.iter().zip(&expected) {
        let mut found = listed(&restored, path);
        found.retain(|name, _| expected.contains_key(name));
        assert_eq!(&found, expected, "{path}");
    }
    let password = restored.kubectl("get secret db -o jsonpath={.data.password}");
    assert_eq!(password, PASSWORD[1]);
    // The old node's range is its own, gone or not.
    let ranges = restored.kubectl("get nodes -o jsonpath={.items[*].spec.podCIDR}");
    let ranges: Vec<&str> = ranges.split_whitespace().collect();
    assert!(ranges.len() == 2 && ranges[0] != ranges[1], "{ranges:?}");
    let watched = restored.kubectl(&format!(
        "get --raw /api/v1/namespaces/default/configmaps?watch=true&timeoutSeconds=5&resourceVersion={revision}"
    ));
    assert!(watched.contains("\"code\":410"), "who watched the old cluster lists again: {watched}");
    restored.kubectl("rollout status deployment/web --timeout=120s");
    eventually_answers(&restored.service_url("web"));
    // Another pod of the image: it is in the registry of the restored cluster.
    restored.kubectl("scale deployment/web --replicas=3");
    restored.kubectl("rollout status deployment/web --timeout=120s");
}
