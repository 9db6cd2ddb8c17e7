//! Controllers and scheduler that run elsewhere than the API server.

use std::process::Command;

use coracle_tests::{Background, Cluster, coracle};

const DEPLOYMENT: &str = "\
apiVersion: apps/v1
kind: Deployment
metadata: {name: app}
spec:
  replicas: 2
  selector: {matchLabels: {app: app}}
  template:
    metadata: {labels: {app: app}}
    spec: {containers: [{name: app, image: standin}]}
";

/// `coracle controllers` for this server, with further arguments.
fn controllers(server: &Cluster, arguments: &[&str]) -> Background {
    let mut command = Command::new(coracle());
    command.arg("controllers").arg("--kubeconfig").arg(server.kubeconfig()).args(arguments);
    Background::start(command)
}

#[test]
fn a_server_leaves_controllers_and_scheduler_to_others() {
    let server = Cluster::server_with("one", &["--disable-controllers", "--disable-scheduler"]);
    let _worker = server.join("worker");
    server.push("standin", "standin");
    server.apply(DEPLOYMENT);
    let controllers_alone = controllers(&server, &["--disable-scheduler"]);
    // Controllers have seen it, nobody has a place for its pods.
    server.eventually("get pods -l app=app -o name", |pods| pods.lines().count() == 2);
    let placed = server.kubectl("get pods -l app=app -o jsonpath={.items[*].spec.nodeName}");
    assert_eq!(placed, "", "there is no scheduler");
    // The authority is published by them, not by the server.
    server.eventually("get configmap kube-root-ca.crt -o jsonpath={.data}", |data| data.contains("BEGIN CERTIFICATE"));
    let _scheduler = controllers(&server, &["--disable-controllers"]);
    server.eventually("get deployment app -o jsonpath={.status.readyReplicas}", |ready| ready == "2");
    // The server has not made up its mind meanwhile.
    drop(controllers_alone);
    server.kubectl("scale deployment app --replicas=3");
    server.kubectl("annotate deployment app seen=now");
    assert_eq!(server.kubectl("get pods -l app=app -o name").lines().count(), 2, "there are no controllers");

    let said = server.coracle(&["controllers", "--disable-controllers", "--disable-scheduler"]);
    assert!(String::from_utf8_lossy(&said.stderr).contains("nothing to run"), "{said:?}");
    assert_eq!(said.status.code(), Some(2), "{said:?}");
}
