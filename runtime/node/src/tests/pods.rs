//! Pods from their binding to their end.

use serde_json::{Value, json};

use super::{World, command};

fn waiting(status: &Value) -> &str {
    status["containerStatuses"][0]["state"]["waiting"]["reason"].as_str().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_becomes_ready_in_one_write_and_goes_when_it_is_deleted() {
    let world = World::start().await;
    let probe = json!({"httpGet": {"path": "/", "port": 8080}});
    let container = json!({"image": "hello:1", "ports": [{"containerPort": 8080}], "readinessProbe": probe});
    world.run("first", container.clone());
    world.ready("first").await;
    // The image is here now, and compiled.
    world.run("second", container);
    let status = world.ready("second").await;
    let (writes, took) = world.api.writes("second");
    assert_eq!(writes, 1, "{took:?}");
    println!("bound to ready: {took:?}");
    assert_eq!(status["phase"], "Running");
    assert!(status["podIP"].as_str().unwrap().starts_with("10.244."), "{status}");
    assert!(status["containerStatuses"][0]["imageID"].as_str().unwrap().starts_with("hello@sha256:"), "{status}");
    world.api.delete("second", 30);
    world.api.gone("second").await;
    let mut reasons = world.api.reasons("first");
    reasons.truncate(4);
    assert_eq!(reasons, ["Pulling", "Pulled", "Created", "Started"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_run_says_why() {
    let world = World::start().await;
    let secret = json!([{"name": "X", "valueFrom": {"secretKeyRef": {"name": "none", "key": "k"}}}]);
    let cases = [
        ("no-image", json!({"image": "nothing:1"}), "ErrImagePull", "not in the embedded registry"),
        ("no-name", json!({"image": "Not/A/Name"}), "InvalidImageName", "couldn't parse image name"),
        (
            "no-secret",
            json!({"image": "hello:1", "env": secret}),
            "CreateContainerConfigError",
            "secret \"none\" not found",
        ),
        (
            "exec",
            json!({"image": "hello:1", "livenessProbe": {"exec": {"command": ["true"]}}}),
            "CreateContainerConfigError",
            "livenessProbe.exec is not supported",
        ),
        (
            "limit",
            json!({"image": "probe-command:1", "args": ["sleep", "1"], "resources": {"limits": {"memory": "1Ki"}}}),
            "RunContainerError",
            "memory",
        ),
    ];
    for (name, container, ..) in &cases {
        world.run(name, container.clone());
    }
    for (name, _, reason, message) in cases {
        // A failed pull turns into its back-off soon.
        let is = |status: &Value| [reason, "ImagePullBackOff"].contains(&waiting(status));
        let status = world.status(name, reason, is).await;
        let text = status["containerStatuses"][0]["state"]["waiting"]["message"].as_str().unwrap();
        assert!(text.contains(message), "{name}: {text}");
        assert_eq!(status["phase"], "Pending");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_are_given_what_the_pod_says_and_end_as_they_do() {
    let world = World::start().await;
    world.api.put("configmaps", "cm", json!({"k": "v", "file": "content"}));
    let mounts = json!([{"name": "v", "mountPath": "/v"}, {"name": "e", "mountPath": "/e"}]);
    let env = json!([
        {"name": "K", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "k"}}},
        {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
    ]);
    let steps = ["env", "K", "env", "IP", "cat", "/v/file", "write", "/e/x", "y", "cat", "/e/x", "exit", "1"];
    let mut container = command(&steps);
    container["volumeMounts"] = mounts;
    container["env"] = env;
    container["terminationMessagePolicy"] = json!("FallbackToLogsOnError");
    let volumes = json!([{"name": "v", "configMap": {"name": "cm"}}, {"name": "e", "emptyDir": {}}]);
    world.run_spec("once", json!({"restartPolicy": "Never", "volumes": volumes, "containers": [container]}));
    let status = world.status("once", "Failed", |status| status["phase"] == "Failed").await;
    let ended = &status["containerStatuses"][0]["state"]["terminated"];
    assert_eq!((&ended["exitCode"], &ended["reason"]), (&json!(1), &json!("Error")));
    let message = format!("v\n{}\ncontenty", status["podIP"].as_str().unwrap());
    assert_eq!(ended["message"].as_str().unwrap().trim(), message);

    let mut hungry = command(&["alloc", "100"]);
    hungry["resources"] = json!({"limits": {"memory": "50Mi"}});
    world.run_spec("hungry", json!({"restartPolicy": "Never", "containers": [hungry]}));
    let status = world.status("hungry", "Failed", |status| status["phase"] == "Failed").await;
    let ended = &status["containerStatuses"][0]["state"]["terminated"];
    assert_eq!((&ended["exitCode"], &ended["reason"]), (&json!(137), &json!("OOMKilled")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_are_found_again_after_a_restart() {
    let mut world = World::start().await;
    world.run("tick", command(&["tick", "1000"]));
    world.run("never", json!({"image": "hello:1"}));
    let before = world.ready("tick").await;
    world.stop_node().await;
    let stopped = world.status("tick", "stopped", |status| !super::is_ready(status)).await;
    assert_eq!(stopped["containerStatuses"][0]["state"]["terminated"]["exitCode"], 143);
    world.start_node().await;
    let after = world.ready("tick").await;
    assert_eq!(after["containerStatuses"][0]["restartCount"], 1);
    assert_eq!(after["podIP"], before["podIP"]);
    // One that is deleted while the node is away goes when it is back.
    world.stop_node().await;
    world.api.delete("tick", 30);
    world.start_node().await;
    world.api.gone("tick").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_reaches_pods_by_address_and_nothing_outside() {
    let world = World::start().await;
    let probe = json!({"tcpSocket": {"port": 7}});
    let mut listener = command(&["listen", "7"]);
    listener["readinessProbe"] = probe;
    world.run("echo", listener);
    let address = world.ready("echo").await["podIP"].as_str().unwrap().to_owned();
    world.run("web", json!({"image": "hello:1"}));
    let web = world.ready("web").await["podIP"].as_str().unwrap().to_owned();
    let (echo, web) = (format!("{address}:7"), format!("{web}:80"));
    // An HTTP component has no socket of its own; it gets one when a guest asks for it.
    let request = "GET / HTTP/1.0\r\n\r";
    let mut client = command(&["send", &echo, "hi there", "send", &web, request, "send", "192.0.2.1:80", "x"]);
    client["terminationMessagePolicy"] = json!("FallbackToLogsOnError");
    world.run_spec("client", json!({"restartPolicy": "Never", "containers": [client]}));
    let status = world.status("client", "Failed", |status| status["phase"] == "Failed").await;
    let message = status["containerStatuses"][0]["state"]["terminated"]["message"].as_str().unwrap();
    assert!(message.contains("HI THERE"), "{message}");
    assert!(message.contains("HTTP/1."), "{message}");
    let denied = |reasons: Vec<String>| reasons.iter().any(|reason| reason == "EgressDenied");
    world.status("client", "told", |_| denied(world.api.reasons("client"))).await;
}
