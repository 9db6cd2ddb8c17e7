//! Volumes that outlive their pods, as kubectl sees them.

use std::path::PathBuf;

use coracle_tests::Cluster;

/// A StatefulSet of one with a claim; its command takes these steps and stays.
fn set(steps: &str) -> String {
    format!(
        "apiVersion: apps/v1
kind: StatefulSet
metadata: {{name: web}}
spec:
  serviceName: web
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: main
        image: probe-command
        args: [{steps}, tick, '100000']
        volumeMounts: [{{name: data, mountPath: /data}}]
  volumeClaimTemplates:
  - metadata: {{name: data}}
    spec: {{accessModes: [ReadWriteOnce], resources: {{requests: {{storage: 1Mi}}}}}}
"
    )
}

/// Names of the directories of volumes.
fn directories(cluster: &Cluster) -> Vec<PathBuf> {
    let dir = cluster.data_dir().join("node/volumes");
    let entries = std::fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    entries.map(|entry| entry.expect("an entry").path()).collect()
}

#[test]
fn what_a_pod_of_a_stateful_set_writes_is_there_until_its_claim_goes() {
    let mut cluster = Cluster::start();
    cluster.push("probe-command", "probe-command");
    let class = cluster.kubectl("get storageclass --no-headers");
    assert!(class.starts_with("local (default)") && class.contains("WaitForFirstConsumer"), "{class}");
    cluster.apply(&set("write, /data/x, first, echo, wrote"));
    cluster.eventually("logs web-0", |log| log.contains("wrote"));
    let claim = cluster.kubectl("get pvc data-web-0 --no-headers");
    assert!(claim.contains("Bound") && claim.contains("1Mi") && claim.contains("local"), "{claim}");
    let [dir] = directories(&cluster).try_into().expect("one directory");
    assert_eq!(std::fs::read_to_string(dir.join("x")).expect("what it has written"), "first");

    // Neither the end of the set nor a kill of everything takes it away.
    cluster.kubectl("delete statefulset web");
    cluster.eventually("get pods -o name", |pods| pods.trim().is_empty());
    cluster.apply(&set("cat, /data/x, echo, read"));
    let log = cluster.eventually("logs web-0", |log| log.contains("read"));
    assert!(log.contains("first"), "{log}");
    cluster.kill_and_restart();
    cluster.kubectl("delete pod web-0");
    cluster.eventually("get pod web-0 --no-headers", |row| row.contains("1/1"));
    let log = cluster.eventually("logs web-0", |log| log.contains("read"));
    assert!(log.contains("first"), "{log}");

    // Who fills it is evicted, and does not start again before it has room.
    cluster.kubectl("delete statefulset web");
    cluster.eventually("get pods -o name", |pods| pods.trim().is_empty());
    cluster.apply(&set("fill, /data/large, '3', echo, filled"));
    let full = |text: &str| text.contains("its capacity is 1Mi");
    cluster.eventually("get events --field-selector reason=FailedMount -o custom-columns=M:.message", full);
    let grow = r#"{"spec":{"resources":{"requests":{"storage":"8Mi"}}}}"#;
    cluster.kubectl(&format!("patch pvc data-web-0 -p {grow}"));
    cluster.eventually("get pod web-0 --no-headers", |row| row.contains("1/1"));
    let status = cluster.kubectl("get pvc data-web-0 -o jsonpath={.status.capacity.storage}");
    assert_eq!(status, "8Mi");

    // A claim in use stays; then it goes, and its volume with what is in it.
    cluster.kubectl("delete pvc data-web-0 --wait=false");
    let claim = cluster.kubectl("get pvc data-web-0 --no-headers");
    assert!(claim.contains("Terminating"), "{claim}");
    cluster.kubectl("delete statefulset web");
    cluster.eventually("get pvc,pv -o name", |left| left.trim().is_empty());
    assert_eq!(directories(&cluster), Vec::<PathBuf>::new());
}
