//! StatefulSets and DaemonSets, as kubectl drives them.

use coracle_tests::{Cluster, root};

/// Each pod with its greeting, in the order of their names.
fn greetings(cluster: &Cluster, app: &str) -> Vec<String> {
    let columns = "NAME:.metadata.name,GREETING:.spec.containers[0].env[0].value";
    let rows = cluster.kubectl(&format!("get pods -l app={app} --no-headers -o custom-columns={columns}"));
    let mut rows: Vec<String> = rows.lines().map(|row| row.split_whitespace().collect::<Vec<_>>().join("=")).collect();
    rows.sort();
    rows
}

#[test]
fn a_stateful_set_keeps_its_names_through_rollouts_and_a_daemon_set_its_nodes() {
    let cluster = Cluster::start();
    cluster.push("greeter", "greeter");
    cluster.push("probe-command", "probe-command");
    cluster.kubectl(&format!("apply -f {}", root().join("examples/manifests/sets.yaml").display()));
    cluster.kubectl("rollout status statefulset/greeter --timeout=120s");
    cluster.kubectl("rollout status daemonset/greeter-node --timeout=120s");
    assert_eq!(greetings(&cluster, "greeter"), ["greeter-0=Ahoy", "greeter-1=Ahoy", "greeter-2=Ahoy"]);
    let row = cluster.kubectl("get statefulset greeter --no-headers");
    assert!(row.contains("3/3"), "{row}");

    // A pod's name is a name of the network.
    let address = cluster.kubectl("get pod greeter-1 -o jsonpath={.status.podIP}");
    cluster.apply(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: asks}\nspec:\n  restartPolicy: Never\n  containers:\n  - {name: main, \
         image: probe-command, args: [resolve, greeter-1.greeter, resolve, greeter-1.greeter.default.svc.cluster.local]}\n",
    );
    cluster.eventually("get pod asks -o jsonpath={.status.phase}", |phase| phase == "Succeeded");
    let log = cluster.kubectl("logs asks");
    assert_eq!(log.matches(&address).count(), 2, "{address} in {log}");

    // Only the highest is new while the partition says so; then all are.
    let patch = r#"{"spec":{"updateStrategy":{"rollingUpdate":{"partition":2}}}}"#;
    cluster.kubectl(&format!("patch statefulset greeter -p {patch}"));
    cluster.kubectl("set env statefulset/greeter GREETING=Hello");
    cluster.eventually("rollout status statefulset/greeter --timeout=60s", |text| {
        text.contains("partitioned roll out complete")
    });
    assert_eq!(greetings(&cluster, "greeter"), ["greeter-0=Ahoy", "greeter-1=Ahoy", "greeter-2=Hello"]);
    cluster.kubectl(&format!("patch statefulset greeter -p {}", patch.replace(":2}", ":0}")));
    cluster.kubectl("rollout status statefulset/greeter --timeout=120s");
    assert_eq!(greetings(&cluster, "greeter"), ["greeter-0=Hello", "greeter-1=Hello", "greeter-2=Hello"]);
    cluster.kubectl("set env statefulset/greeter GREETING=Salut");
    cluster.kubectl("rollout status statefulset/greeter --timeout=120s");
    let history = cluster.kubectl("rollout history statefulset/greeter");
    assert_eq!(history.lines().filter(|line| line.starts_with(|c: char| c.is_ascii_digit())).count(), 3, "{history}");
    let first = cluster.kubectl("rollout history statefulset/greeter --revision=1");
    assert!(first.contains("Ahoy"), "{first}");
    cluster.kubectl("rollout undo statefulset/greeter");
    cluster.kubectl("rollout status statefulset/greeter --timeout=120s");
    assert_eq!(greetings(&cluster, "greeter"), ["greeter-0=Hello", "greeter-1=Hello", "greeter-2=Hello"]);

    cluster.kubectl("scale statefulset/greeter --replicas=1");
    cluster.eventually("get pods -l app=greeter -o name", |pods| pods.trim() == "pod/greeter-0");
    cluster.kubectl("scale statefulset/greeter --replicas=2");
    cluster.kubectl("rollout status statefulset/greeter --timeout=120s");
    cluster.kubectl("delete pod greeter-0");
    cluster.eventually("get pod greeter-0 --no-headers", |row| row.contains("1/1"));

    let counts = "get daemonset greeter-node -o jsonpath={.status.desiredNumberScheduled}/{.status.numberReady}";
    assert_eq!(cluster.kubectl(counts), "1/1");
    cluster.kubectl("set env daemonset/greeter-node GREETING=Hello");
    cluster.kubectl("rollout status daemonset/greeter-node --timeout=120s");
    assert!(greetings(&cluster, "greeter-node")[0].ends_with("=Hello"));
    cluster.kubectl("rollout undo daemonset/greeter-node");
    cluster.kubectl("rollout status daemonset/greeter-node --timeout=120s");
    assert!(greetings(&cluster, "greeter-node")[0].ends_with("=Ahoy"));
    cluster.kubectl("delete statefulset,daemonset --all");
    cluster.eventually("get pods,controllerrevisions -o name", |left| left.trim() == "pod/asks");
}
