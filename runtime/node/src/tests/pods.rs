//! Pods from their binding to their end.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{World, command, until};
use crate::pod::Slot;

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
    // A start that takes longer than a status is held back for, which is long here, is told in two.
    assert!(writes == 1 || took > crate::pod::SETTLE, "{writes} in {took:?}");
    println!("bound to ready: {took:?}");
    assert_eq!(status["phase"], "Running");
    assert!(status["podIP"].as_str().unwrap().starts_with("10.244."), "{status}");
    assert!(status["containerStatuses"][0]["imageID"].as_str().unwrap().starts_with("hello@sha256:"), "{status}");
    world.api.delete("second", 30);
    world.api.gone("second").await;
    // Events come a little behind what they tell of.
    let reasons = world.api.first_reasons("first", 6).await;
    assert_eq!(reasons, ["Pulling", "Pulled", "Compiling", "Compiled", "Created", "Started"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_are_probes_and_hooks() {
    let world = World::start().await;
    let mut container = command(&["write", "/data/alive", "yes", "sleep", "1000000"]);
    container["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
    let probe = |steps: &[&str]| {
        let command = [&["probe"], steps].concat();
        json!({"exec": {"command": command}, "periodSeconds": 1})
    };
    container["readinessProbe"] = probe(&["cat", "/data/alive"]);
    container["livenessProbe"] = probe(&["cat", "/data/alive"]);
    container["livenessProbe"]["failureThreshold"] = json!(1);
    let hook = json!({"exec": {"command": ["probe", "write", "/data/hooked", "yes", "cat", "/data/hooked"]}});
    container["lifecycle"] = json!({"postStart": hook});
    let volumes = json!([{"name": "data", "emptyDir": {}}]);
    world.run_spec("lives", json!({"volumes": volumes, "containers": [container.clone()]}));
    world.ready("lives").await;
    let files = world.dir.path().join("pods").join(&*world.pods().find("default", "lives").unwrap().uid);
    let hooked = |dir: &std::path::Path| walk(dir, "hooked").is_some();
    until("the hook has run", || hooked(&files)).await;
    // A probe that fails ends it, and says what it printed.
    std::fs::remove_file(walk(&files, "alive").unwrap()).unwrap();
    world.status("lives", "restarted", |status| status["containerStatuses"][0]["restartCount"] == 1).await;
    // A hook that fails ends the container.
    container["lifecycle"] = json!({"postStart": {"exec": {"command": ["probe", "end", "3"]}}});
    world.run_spec("fails", json!({"volumes": volumes, "containers": [container]}));
    let failed =
        |status: &Value| status["containerStatuses"][0]["restartCount"].as_u64().is_some_and(|count| count > 0);
    world.status("fails", "restarted", failed).await;
}

/// The file of this name below a directory.
fn walk(dir: &std::path::Path, name: &str) -> Option<std::path::PathBuf> {
    std::fs::read_dir(dir).ok()?.filter_map(Result::ok).find_map(|entry| match entry.path() {
        path if path.is_dir() => walk(&path, name),
        path => (entry.file_name() == name).then_some(path),
    })
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

    // Whether the container says it or the whole pod, and whichever is less.
    let limits = |bytes: &str| json!({"limits": {"memory": bytes}});
    for (name, own, whole) in [
        ("hungry", limits("50Mi"), json!({})),
        ("group", json!({}), limits("50Mi")),
        ("both", limits("1Gi"), limits("50Mi")),
    ] {
        let mut hungry = command(&["alloc", "100"]);
        hungry["resources"] = own;
        world.run_spec(name, json!({"restartPolicy": "Never", "containers": [hungry], "resources": whole}));
        let status = world.status(name, "Failed", |status| status["phase"] == "Failed").await;
        let ended = &status["containerStatuses"][0]["state"]["terminated"];
        assert_eq!((&ended["exitCode"], &ended["reason"]), (&json!(137), &json!("OOMKilled")), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_are_found_again_after_a_restart() {
    let mut world = World::start().await;
    let mut tick = command(&["tick", "1000"]);
    tick["volumeMounts"] = json!([{"name": "e", "mountPath": "/e"}]);
    world.run_spec("tick", json!({"containers": [tick], "volumes": [{"name": "e", "emptyDir": {}}]}));
    world.run("never", json!({"image": "hello:1"}));
    let before = world.ready("tick").await;
    let uid = world.pods().find("default", "tick").unwrap().uid.clone();
    let files = world.pods().context.pods_dir.join(&*uid);
    let volume = files.join("volumes/e");
    std::fs::write(volume.join("kept"), "").unwrap();
    world.stop_node().await;
    assert!(volume.join("kept").exists(), "an emptyDir lives as long as its pod");
    let stopped = world.status("tick", "stopped", |status| !super::is_ready(status)).await;
    assert_eq!(stopped["containerStatuses"][0]["state"]["terminated"]["exitCode"], 143);
    world.start_node().await;
    let after = world.ready("tick").await;
    assert_eq!(after["containerStatuses"][0]["restartCount"], 1);
    assert_eq!(after["podIP"], before["podIP"]);
    assert!(volume.join("kept").exists());
    // One that is deleted while the node is away goes when it is back.
    world.stop_node().await;
    world.api.delete("tick", 30);
    world.start_node().await;
    world.api.gone("tick").await;
    let removed = async {
        while files.exists() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(super::PATIENCE, removed).await.expect("its files go with it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_has_gone_uses_nothing_any_more() {
    use crate::objects::{Kind, ObjectKey};
    let world = World::start().await;
    world.api.put("configmaps", "cm", json!({"k": "v"}));
    world.run("tick", command(&["tick", "1000"]));
    world.ready("tick").await;
    let pods = world.pods();
    let slot = pods.find("default", "tick").unwrap();
    let key = ObjectKey { kind: Kind::ConfigMap, namespace: "default".into(), name: "cm".into() };
    pods.object(&key, &slot).await.unwrap().unwrap();
    assert!(pods.context.objects.is_used_by(&slot.uid));
    world.api.delete("tick", 0);
    world.api.gone("tick").await;
    super::until("it is forgotten", || slot.with_core(|core| core.is_forgotten())).await;
    // What began before comes to its end.
    pods.object(&key, &slot).await.unwrap().unwrap();
    assert!(!pods.context.objects.is_used_by(&slot.uid));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_node_has_not_is_refused_and_comes_back_with_the_pod_that_had_it() {
    let world = World::start().await;
    let wants = |cpu: &str| json!({"image": "probe-command:1", "args": ["tick", "1000"], "resources": {"requests": {"cpu": cpu}}});
    world.run("first", wants(&format!("{}m", world.pods().context.machine.cpu_millis)));
    world.ready("first").await;
    world.run("second", wants("1m"));
    let refused = world.status("second", "Failed", |status| status["phase"] == "Failed").await;
    assert_eq!(refused["reason"], "OutOfcpu");
    let message = refused["message"].as_str().unwrap();
    assert!(
        message.starts_with("Pod was rejected: Node didn't have enough resource: cpu, requested: 1, "),
        "{message}"
    );
    // It has taken nothing: one that asks for nothing runs.
    world.run("third", command(&["tick", "1000"]));
    world.ready("third").await;
    world.api.delete("first", 0);
    world.api.gone("first").await;
    world.run("fourth", wants("1m"));
    world.ready("fourth").await;
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

/// Whatever is not allowed any more is not begun any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn egress_is_given_and_taken_away_while_a_pod_runs() {
    let world = World::start().await;
    let probe = json!({"tcpSocket": {"host": "192.0.2.1", "port": 9}, "periodSeconds": 1});
    let spec = json!({"containers": [{"image": "hello:1", "readinessProbe": probe}]});
    // Whether a probe has failed for want of the grant, or otherwise.
    let has_failed = |name: &str, is_granted: bool| {
        let mut messages = world.api.messages(name).into_iter().filter(|message| message.starts_with("Readiness"));
        messages.any(|message| message.contains("has no annotation") != is_granted)
    };
    for (name, is_granted) in [("given", false), ("taken", true)] {
        let annotation = |is: bool| json!({"coracle.dev/egress": is.to_string()});
        world.run_annotated(name, annotation(is_granted), spec.clone());
        until(name, || has_failed(name, is_granted)).await;
        assert!(!has_failed(name, !is_granted), "{name}");
        world.api.modify(name, |pod| pod["metadata"]["annotations"] = annotation(!is_granted));
        until(name, || has_failed(name, !is_granted)).await;
    }
}

/// An object that somebody has stored in a form that this node does not know.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_cannot_be_read_keeps_no_other_from_running_and_goes_on_as_it_was() {
    let world = World::start().await;
    world.api.create("odd", json!({}), json!({"nodeName": "n1", "containers": 3}));
    world.run("web", json!({"image": "hello:1"}));
    world.ready("web").await;
    world.api.modify("web", |pod| pod["spec"]["containers"] = json!(3));
    world.run("next", json!({"image": "hello:1"}));
    world.ready("next").await;
    // All are listed again.
    world.give_up().await;
    assert!(world.pods().find("default", "web").is_some_and(|slot| slot.address().is_some()));
    world.api.delete("web", 0);
    world.api.lose("web");
    world.give_up().await;
    until("it is gone", || world.pods().find("default", "web").is_none()).await;
}

/// A guest's links lead nowhere: what is mounted, read and removed for it stays beneath its own directories.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn links_do_not_lead_out_of_a_volume() {
    let world = World::start().await;
    let secret = world.dir.path().join("pki");
    std::fs::create_dir(&secret).unwrap();
    std::fs::write(secret.join("ca.key"), "private").unwrap();
    let mount = |path: &str, sub: &str| {
        let mut mount = json!({"name": "v", "mountPath": path});
        if !sub.is_empty() {
            mount["subPath"] = json!(sub);
        }
        json!([mount])
    };
    let mut link = command(&[
        "symlink",
        "../../../../pki",
        "/v/x",
        "symlink",
        "../../../../pki/ca.key",
        "/v/key",
        "symlink",
        "../../../../made",
        "/v/nd",
        "write",
        "/v/f",
        "old",
    ]);
    link["name"] = json!("link");
    link["volumeMounts"] = mount("/v", "");
    let mut follow = command(&["cat", "/v/key"]);
    follow["name"] = json!("follow");
    follow["volumeMounts"] = mount("/v", "");
    let spec = |init: Vec<Value>, container: Value| {
        json!({
            "restartPolicy": "Never", "volumes": [{"name": "v", "emptyDir": {}}],
            "initContainers": init, "containers": [container],
        })
    };
    for (name, path, sub) in [
        ("dir", "/p", "x"),
        ("file", "/p/k", "key"),
        ("deeper", "/p", "x/sub/dir"),
        ("new", "/p", "nd"),
        ("nd", "/p", "nd/x"),
    ] {
        let mut container = command(&["ls", "/p", "write", "/p/evil", "x"]);
        container["volumeMounts"] = mount(path, sub);
        world.run_spec(name, spec(vec![link.clone()], container));
        let status = world.status(name, "refused", |status| waiting(status) == "CreateContainerConfigError").await;
        let text = status["containerStatuses"][0]["state"]["waiting"]["message"].as_str().unwrap();
        assert!(
            text.starts_with("failed to prepare subPath for volumeMount \"v\" of container \"c\""),
            "{name}: {text}"
        );
    }
    // The guest itself does not get out either.
    world.run_spec("inside", spec(vec![link.clone(), follow], command(&["echo", "x"])));
    let failed = |status: &Value| status["phase"] == "Failed";
    let status = world.status("inside", "Failed", failed).await;
    assert_eq!(status["initContainerStatuses"][1]["state"]["terminated"]["exitCode"], 1);
    // Its termination message is its own file or nothing, and of a bounded size.
    let escape =
        ["unlink", "/dev/termination-log", "symlink", "../../../../pki/ca.key", "/dev/termination-log", "exit", "1"];
    for (name, steps, length) in
        [("message", &escape[..], 0), ("sparse", &["sparse", "/dev/termination-log", "100000", "exit", "1"], 4096)]
    {
        world.run_spec(name, json!({"restartPolicy": "Never", "containers": [command(steps)]}));
        let status = world.status(name, "Failed", failed).await;
        let message = status["containerStatuses"][0]["state"]["terminated"]["message"].as_str().unwrap_or_default();
        assert_eq!(message.len(), length, "{name}: {message:?}");
    }
    // A file of a volume is the same file for all of its containers.
    let mut writer = command(&["write", "/w/f", "new"]);
    writer["volumeMounts"] = mount("/w/f", "f");
    writer["name"] = json!("writer");
    let mut reader = command(&["cat", "/v/f", "exit", "1"]);
    reader["volumeMounts"] = mount("/v", "");
    reader["terminationMessagePolicy"] = json!("FallbackToLogsOnError");
    world.run_spec("same", spec(vec![link, writer], reader));
    let status = world.status("same", "Failed", failed).await;
    assert_eq!(status["containerStatuses"][0]["state"]["terminated"]["message"].as_str().unwrap().trim(), "new");
    let names: Vec<_> = std::fs::read_dir(&secret).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["ca.key"], "nothing was made outside");
    assert!(!world.dir.path().join("made").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_empty_dir_may_not_hold_evicts_its_pod() {
    let world = World::start().await;
    let mut container = command(&["fill", "/v/big", "20", "sleep", "600000"]);
    container["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
    let volumes = json!([{"name": "v", "emptyDir": {"sizeLimit": "10Mi"}}]);
    world.run_spec("fill", json!({"volumes": volumes, "containers": [container]}));
    let status = world.status("fill", "Evicted", |status| status["reason"] == "Evicted").await;
    assert_eq!(status["message"], "Usage of EmptyDir volume \"v\" exceeds the limit \"10Mi\". ");
    world.status("fill", "Failed", |status| status["phase"] == "Failed").await;
    // What it held goes at once.
    let dir = world.dir.path().join("pods/uid-fill");
    tokio::time::timeout(super::PATIENCE, async {
        while dir.exists() {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    })
    .await
    .expect("its files are removed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_condition_that_somebody_else_has_set_is_set_right() {
    let world = World::start().await;
    world.run("web", json!({"image": "hello:1"}));
    world.ready("web").await;
    for _ in 0..3 {
        world.api.modify("web", |pod| {
            let conditions = pod["status"]["conditions"].as_array_mut().unwrap();
            let ready = conditions.iter_mut().find(|condition| condition["type"] == "Ready").unwrap();
            ready["status"] = json!("False");
            ready["reason"] = json!("NodeNotReady");
        });
        world.ready("web").await;
    }
    // And the node's own, as after a minute without a word of it.
    world.give_up().await;
    world.ready("web").await;
}

/// The node was cut off and went on: it ends what was replaced meanwhile before it says that it is ready.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_comes_back_ends_what_was_replaced_before_it_is_ready() {
    let world = World::start().await;
    for name in ["stays", "goes"] {
        world.run(name, json!({"image": "hello:1"}));
        world.ready(name).await;
    }
    // Its watch has not told of it when it hears that it was given up.
    world.api.lose("goes");
    world.give_up().await;
    let running = |slot: &&Arc<Slot>| !slot.with_core(|core| core.is_ending());
    let left: Vec<String> = world.pods().all().iter().filter(running).map(|slot| slot.name.to_string()).collect();
    assert_eq!(left, ["stays"]);
    world.ready("stays").await;
}

/// Somebody has copied the machine.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_older_of_two_that_are_the_same_node_ends_and_says_nothing_more_of_its_pods() {
    let mut world = World::start().await;
    world.run("web", json!({"image": "hello:1"}));
    world.ready("web").await;
    until("it holds the lease", || world.api.lease().is_object()).await;
    // Killed and started again it is the same node, at once.
    let held = world.api.lease()["metadata"]["annotations"].clone();
    world.stop_node().await;
    world.start_node().await;
    world.ready("web").await;
    assert_ne!(world.api.lease()["metadata"]["annotations"], held, "another process");
    let newer = "0a 192.0.2.7:10250";
    let ended = async |node: super::Running| {
        let ended = tokio::time::timeout(super::PATIENCE, node.task).await.expect("it ends");
        ended.unwrap().unwrap_err().to_string()
    };
    world.api.hold_lease(newer);
    let why = ended(world.node.take().unwrap()).await;
    assert!(why.contains("another process runs as node n1, at 192.0.2.7:10250") && why.contains("--name"), "{why}");
    assert!(super::is_ready(&world.api.pod_status("web")), "it is the other's to say how it is");
    assert!(super::is_ready(&world.api.node()["status"]));
    assert!(world.api.reasons("n1").contains(&"NodeReplaced".to_owned()), "{:?}", world.api.reasons("n1"));
    // Whoever starts it again finds the other there; it runs nothing.
    world.launch_node().await;
    let again = world.node.take().unwrap();
    let pods = again.node.pods().clone();
    let renewing = async {
        loop {
            world.api.hold_lease(newer);
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    };
    let why = tokio::select! {
        why = ended(again) => why,
        () = renewing => unreachable!(),
    };
    assert!(why.contains("at 192.0.2.7:10250") && pods.all().is_empty(), "{why}");
    // The other does not run any more.
    world.start_node().await;
    world.ready("web").await;
}

/// Addresses that others wrote are no reason to write the status again and again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_addresses_of_a_node_are_what_it_says_and_no_others() {
    let world = World::start().await;
    until("the status is written", || world.api.node_writes()[0] >= 2).await;
    let own = world.api.node()["status"]["addresses"].clone();
    world.api.modify_node(|node| {
        let more = [
            json!({"type": "ExternalIP", "address": "192.0.2.1"}),
            json!({"type": "InternalIP", "address": "192.0.2.2"}),
        ];
        node["status"]["addresses"].as_array_mut().unwrap().extend(more);
    });
    let is_own = world.api.node_is(|node| node["status"]["addresses"] == own);
    tokio::time::timeout(super::PATIENCE, is_own).await.expect("it says its addresses");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_who_do_not_agree_go_slowly() {
    let world = World::start().await;
    world.run("web", json!({"image": "hello:1"}));
    world.ready("web").await;
    world.api.contradict("web");
    world.api.modify("web", |pod| {
        for condition in pod["status"]["conditions"].as_array_mut().unwrap() {
            condition["status"] = json!("False");
        }
    });
    let writes = world.api.next_writes("web", 4).await;
    let apart = writes[3] - writes[1];
    assert!(apart > std::time::Duration::from_millis(1500), "two writes later after {apart:?}");
}

/// Nobody else would ever say how it ended: it would run twice, or fail.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_that_no_server_was_told_of_is_told_by_the_nodes_next_life() {
    let mut world = World::start().await;
    world.api.put("configmaps", "cm", json!({"k": "v"}));
    world.api.be_silent("/pods/once/status", u32::MAX);
    let mut container = command(&["env", "K"]);
    container["env"] = json!([{"name": "K", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "k"}}}]);
    world.run_spec("once", json!({"restartPolicy": "Never", "containers": [container]}));
    let pods = world.pods();
    let is_over =
        || pods.find("default", "once").is_some_and(|slot| slot.with_core(|core| core.phase() == "Succeeded"));
    until("it has ended", is_over).await;
    drop(pods);
    world.stop_node().await;
    // It could not run a second time.
    world.api.put("configmaps", "cm", json!({}));
    world.api.be_silent("/pods/once/status", 0);
    world.start_node().await;
    let status = world.status("once", "Succeeded", |status| status["phase"] == "Succeeded").await;
    assert_eq!(status["containerStatuses"][0]["state"]["terminated"]["exitCode"], 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_stops_waits_for_what_a_server_takes_a_little_later() {
    let mut world = World::start().await;
    world.run("tick", command(&["tick", "1000"]));
    world.ready("tick").await;
    world.api.refuse_status("tick", 503);
    let node = world.node.take().unwrap();
    node.stop.cancel();
    until("it is tried again", || world.api.refusals("tick") >= 3).await;
    world.api.take_status("tick");
    tokio::time::timeout(super::PATIENCE, node.task).await.expect("the node stops").unwrap().unwrap();
    let status = world.api.pod_status("tick");
    assert_eq!(status["containerStatuses"][0]["state"]["terminated"]["exitCode"], 143);
}

/// What is under way about a pod when it goes comes to its end, and nobody waits for another try.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_fails_when_its_pod_has_gone_is_not_waited_for() {
    let world = World::start().await;
    world.run("web", json!({"image": "hello:1"}));
    world.ready("web").await;
    let pods = world.pods();
    let slot = pods.find("default", "web").unwrap();
    until("all is told", || pods.has_reported()).await;
    let held = world.api.hold_refusals();
    world.api.refuse_status("web", 503);
    world.api.modify("web", |pod| pod["status"]["conditions"][0]["status"] = json!("False"));
    until("it is refused", || world.api.refusals("web") == 1).await;
    pods.remove(&slot.uid);
    until("it is forgotten", || slot.with_core(|core| core.is_forgotten())).await;
    held.notify_one();
    until("nothing is waited for", || pods.has_reported()).await;
}

/// A conflict is not judged by its words: the pod is the one it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conflict_ends_what_is_told_of_a_pod_only_where_it_is_another_one() {
    let world = World::start().await;
    world.api.refuse_status("web", 409);
    world.run("web", json!({"image": "hello:1"}));
    until("it is tried again", || world.api.refusals("web") >= 4).await;
    world.api.take_status("web");
    world.ready("web").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_goes_although_its_last_status_is_refused() {
    let world = World::start().await;
    world.run("web", json!({"image": "hello:1"}));
    world.ready("web").await;
    world.api.refuse_status("web", 422);
    world.api.delete("web", 1);
    world.api.gone("web").await;
    // One that is too large stays so, however often it is written.
    world.run("large", json!({"image": "hello:1"}));
    world.ready("large").await;
    world.api.refuse_status("large", 413);
    world.api.delete("large", 1);
    world.api.gone("large").await;
}

/// What an image says of itself has no bound; what a pod's status and its events say of it has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_have_a_bound_wherever_they_come_from() {
    let world = World::start().await;
    let key = "k".repeat(100_000);
    let env = json!([{"name": "X", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": key}}}]);
    world.api.put("configmaps", "cm", json!({"k": "v"}));
    world.run("long", json!({"image": "hello:1", "env": env}));
    let failed = |status: &Value| waiting(status) == "CreateContainerConfigError";
    let status = world.status("long", "refused", failed).await;
    let message = status["containerStatuses"][0]["state"]["waiting"]["message"].as_str().unwrap();
    assert!(message.starts_with("couldn't find key kkkk") && message.len() <= 4096, "{} bytes", message.len());
    until("it is told", || world.api.reasons("long").iter().any(|reason| reason == "Failed")).await;
    let longest = world.api.messages("long").iter().map(String::len).max();
    assert!(longest.is_some_and(|longest| longest <= 4096), "{longest:?}");
}

/// A pod with more references than a node follows for one of them opens none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_refers_to_too_much_says_so() {
    let world = World::start().await;
    let source = |number: usize| json!({"configMapRef": {"name": format!("cm-{number}"), "optional": true}});
    let sources: Vec<Value> = (0..=crate::objects::POD_MAX).map(source).collect();
    world.run("many", json!({"image": "hello:1", "envFrom": sources}));
    let failed = |status: &Value| waiting(status) == "CreateContainerConfigError";
    let status = world.status("many", "refused", failed).await;
    let message = status["containerStatuses"][0]["state"]["waiting"]["message"].as_str().unwrap();
    assert_eq!(message, "the pod refers to more than 1000 ConfigMaps and Secrets");
    let uid = world.pods().find("default", "many").unwrap().uid.clone();
    assert!(!world.pods().context.objects.is_used_by(&uid));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deletion_does_not_wait_for_a_post_start_hook() {
    let world = World::start().await;
    let mut container = command(&["sleep", "3600000"]);
    container["lifecycle"] = json!({"postStart": {"sleep": {"seconds": 3600}}});
    for (name, grace) in [("slow", 3), ("forced", 0)] {
        world.run_spec(name, json!({"terminationGracePeriodSeconds": 4000, "containers": [container.clone()]}));
        world.status(name, "being started", |status| !status["podIP"].is_null()).await;
        let begun = std::time::Instant::now();
        world.api.delete(name, grace);
        world.api.gone(name).await;
        assert!(begun.elapsed() < std::time::Duration::from_secs(10), "{name}: {:?}", begun.elapsed());
    }
    // One that ends by itself meanwhile is seen to have ended.
    let mut short = command(&["exit", "1"]);
    short["lifecycle"] = json!({"postStart": {"sleep": {"seconds": 3600}}});
    world.run_spec("short", json!({"restartPolicy": "Never", "containers": [short]}));
    world.status("short", "Failed", |status| status["phase"] == "Failed").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commands_clients_are_given_its_grace() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let world = World::start().await;
    let mut listener = command(&["listen", "7"]);
    listener["readinessProbe"] = json!({"tcpSocket": {"port": 7}});
    world.run("echo", listener);
    world.ready("echo").await;
    let mut forward = world.forward("echo", 7).await;
    let mut line = [0; 4];
    for text in ["one\n", "two\n"] {
        forward.write_all(text.as_bytes()).await.unwrap();
        forward.read_exact(&mut line).await.unwrap();
        assert_eq!(std::str::from_utf8(&line).unwrap(), text.to_uppercase());
        if text == "one\n" {
            world.api.delete("echo", 30);
        }
    }
    // Quiet now: nobody waits for the whole of it.
    let begun = std::time::Instant::now();
    world.api.gone("echo").await;
    assert!(begun.elapsed() < std::time::Duration::from_secs(15), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_key_is_waited_for() {
    let world = World::start().await;
    world.api.put("configmaps", "cm", json!({"k": "v"}));
    let mut container = command(&["sleep", "600000"]);
    container["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
    let volumes = json!([{"name": "v", "configMap": {"name": "cm", "items": [{"key": "none", "path": "x"}]}}]);
    world.run_spec("waits", json!({"volumes": volumes, "containers": [container]}));
    let failed = |reasons: Vec<String>| reasons.iter().any(|reason| reason == "FailedMount");
    let status = world.status("waits", "told", |_| failed(world.api.reasons("waits"))).await;
    assert_eq!(waiting(&status), "ContainerCreating", "{status}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn probes_do_not_wait_behind_the_requests_of_others() {
    use tokio::io::AsyncWriteExt as _;
    let world = World::start().await;
    let probe = json!({"httpGet": {"path": "/healthz", "port": 80}, "periodSeconds": 1, "timeoutSeconds": 1, "failureThreshold": 1});
    let mut container = json!({"image": "probe:1", "ports": [{"containerPort": 80}]});
    container["livenessProbe"] = probe.clone();
    container["readinessProbe"] = probe;
    world.run_annotated("busy", json!({"coracle.dev/http-concurrency": "1"}), json!({"containers": [container]}));
    world.ready("busy").await;
    // All that the service may do at once, and some that wait for it.
    let mut held = Vec::new();
    for _ in 0..4 {
        let mut stream = world.forward("busy", 80).await;
        stream.write_all(b"GET /sleep?5000 HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        held.push(stream);
    }
    // Several periods pass; each would have ended the container.
    let over = tokio::time::Instant::now() + std::time::Duration::from_secs(5);
    while tokio::time::Instant::now() < over {
        let status = world.status("busy", "there", |_| true).await;
        assert!(super::is_ready(&status), "{status}");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    let reasons = world.api.reasons("busy");
    assert!(!reasons.iter().any(|reason| reason == "Unhealthy" || reason == "Killing"), "{reasons:?}");
}

/// A pod may have others probed on its behalf, as their client: the places for their probes are for their own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_probe_of_another_pods_address_waits_as_its_clients_do() {
    use tokio::io::AsyncWriteExt as _;
    let world = World::start().await;
    let container = json!({"image": "probe:1", "ports": [{"containerPort": 80}]});
    world.run_annotated("busy", json!({"coracle.dev/http-concurrency": "1"}), json!({"containers": [container]}));
    let address = world.ready("busy").await["podIP"].as_str().unwrap().to_owned();
    let probing = |host: &str| {
        let get = json!({"path": "/healthz", "port": 80, "host": host});
        let probe = json!({"httpGet": get, "periodSeconds": 1, "timeoutSeconds": 1, "failureThreshold": 1});
        json!({"image": "hello:1", "readinessProbe": probe})
    };
    // While it is not busy, it answers.
    world.run("first", probing(&address));
    world.ready("first").await;
    let mut held = Vec::new();
    for _ in 0..5 {
        let mut stream = world.forward("busy", 80).await;
        stream.write_all(b"GET /sleep?5000 HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        held.push(stream);
    }
    let slot = world.pods().find("default", "busy").unwrap();
    let running = slot.running();
    let crate::pod::Handle::Http(service) = &running[0].1 else { panic!("a service") };
    until("it is busy", || service.counters().in_flight > 0).await;
    world.run("other", probing(&address));
    until("it is told", || world.api.reasons("other").iter().any(|reason| reason == "Unhealthy")).await;
    let status = world.status("other", "there", |_| true).await;
    assert!(!super::is_ready(&status), "{status}");
}

/// What a pod may say of times are numbers up to 2^31 and 2^63: none of them stops a clock of the node or its watch.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_with_times_beyond_any_clock_harms_nobody() {
    let world = World::start().await;
    let mut container = command(&["listen", "7"]);
    let probe =
        |initial: i32| json!({"tcpSocket": {"port": 7}, "periodSeconds": i32::MAX, "initialDelaySeconds": initial});
    container["readinessProbe"] = probe(0);
    container["livenessProbe"] = probe(i32::MAX);
    container["lifecycle"] = json!({"preStop": {"sleep": {"seconds": 1}}});
    let spec = json!({
        "terminationGracePeriodSeconds": i64::MAX, "activeDeadlineSeconds": i32::MAX, "containers": [container],
    });
    world.run_spec("eternal", spec);
    world.ready("eternal").await;
    world.api.delete("eternal", i64::MAX);
    world.api.gone("eternal").await;
    // One that needs the node's timers.
    let mut container = command(&["listen", "7"]);
    container["readinessProbe"] = json!({"tcpSocket": {"port": 7}, "initialDelaySeconds": 1});
    world.run("after", container);
    world.ready("after").await;
}

/// An answer that never comes holds up nothing for longer than its time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_server_that_does_not_answer_is_asked_again() {
    let world = World::start().await;
    world.api.be_silent("/pods/silent/status", 2);
    world.run("silent", json!({"image": "hello:1"}));
    world.ready("silent").await;
    assert_eq!(world.api.silence_left(), 0);
    // The node's own word.
    world.api.be_silent("/nodes/n1/status", 2);
    world.api.modify_node(|node| {
        for condition in node["status"]["conditions"].as_array_mut().unwrap() {
            condition["status"] = json!("Unknown");
        }
    });
    let is_ready = |node: &Value| {
        let conditions = node["status"]["conditions"].as_array().into_iter().flatten();
        conditions.clone().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
    };
    tokio::time::timeout(super::PATIENCE, world.api.node_is(is_ready)).await.expect("the node says that it is ready");
    assert_eq!(world.api.silence_left(), 0);
}

/// What the API does not take of a node's annotations is no reason to write its status again, nor to go on asking.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn annotations_that_are_refused_hold_up_nothing() {
    let world = World::start().await;
    // At its registration, and once it is registered.
    until("the status is written", || world.api.node_writes()[0] >= 2).await;
    world.api.refuse_annotations();
    let [status, annotations] = world.api.node_writes();
    world.api.modify_node(|node| {
        node["metadata"]["annotations"][crate::balancer::ANNOTATION] = json!("192.0.2.1,n/web:80/TCP");
    });
    until("they are tried again and again", || world.api.node_writes()[1] >= annotations + 3).await;
    assert!(world.api.node_writes()[0] <= status + 1, "{:?} after {status}", world.api.node_writes());
}

/// Who signs takes its time, or the API server does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_that_wants_no_certificate_does_not_wait_for_one() {
    let source =
        json!({"podCertificate": {"signerName": "a.b/c", "keyType": "ED25519", "credentialBundlePath": "pem"}});
    nobody_else_waits("/podcertificaterequests", source).await;
}

/// The same of a token.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_that_wants_no_token_does_not_wait_for_one() {
    let source = json!({"serviceAccountToken": {"path": "token", "expirationSeconds": 3600}});
    nobody_else_waits("/token", source).await;
}

/// While the API server is silent there, a container without this source of a volume runs.
async fn nobody_else_waits(silent: &'static str, source: Value) {
    let world = World::start().await;
    world.api.be_silent(silent, 1);
    let volumes = json!([{"name": "signed", "projected": {"sources": [source]}}, {"name": "own", "emptyDir": {}}]);
    let container = |name: &str, volume: &str| {
        let mut container = command(&["sleep", "600000"]);
        container["name"] = json!(name);
        container["volumeMounts"] = json!([{"name": volume, "mountPath": "/v"}]);
        container
    };
    let containers = json!([container("a", "signed"), container("b", "own")]);
    world.run_spec("signed", json!({"volumes": volumes, "containers": containers}));
    let runs = |status: &Value, index: usize| status["containerStatuses"][index]["state"]["running"].is_object();
    let status = world.status("signed", "b runs", |status| runs(status, 1)).await;
    assert!(!runs(&status, 0) && world.api.silence_left() == 0, "{status}");
}

/// Tokens run out by the clock on the wall: when that has gone on, as over a night, another one is written at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_is_renewed_when_the_clock_has_gone_on() {
    let world = World::start().await;
    let mut container = command(&["sleep", "600000"]);
    container["volumeMounts"] = json!([{"name": "t", "mountPath": "/t"}]);
    let source = json!({"serviceAccountToken": {"path": "token", "expirationSeconds": 3600}});
    let volumes = json!([{"name": "t", "projected": {"sources": [source]}}]);
    world.run_spec("holder", json!({"volumes": volumes, "containers": [container]}));
    world.ready("holder").await;
    let file = world.dir.path().join("pods/uid-holder/volumes/t/token");
    let text = || std::fs::read_to_string(&file).unwrap_or_default();
    assert_eq!(text(), "token 1");
    let pods = world.pods();
    for (seconds, tokens) in [(60, 1), (50 * 60, 2)] {
        pods.context.wall.advance(seconds);
        // As the node does when it sees that.
        pods.time_jumped();
        until("the token is the one of this time", || text() == format!("token {tokens}")).await;
    }
    assert_eq!(world.api.tokens(), 2, "one that is good is not asked for again");
}

/// Below its floor of free space the node ends who holds most, pulls nothing, and says so; who holds nothing stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_low_disk_ends_the_pod_that_holds_most_and_no_other() {
    let mut world = World::start().await;
    let writer = |mib: &str| {
        let mut container = command(&["fill", "/e/x", mib, "echo", "written", "sleep", "600000"]);
        container["volumeMounts"] = json!([{"name": "e", "mountPath": "/e"}]);
        json!({"volumes": [{"name": "e", "emptyDir": {}}], "containers": [container]})
    };
    world.run_spec("large", writer("8"));
    world.run_spec("small", writer("0"));
    world.run("none", command(&["sleep", "600000"]));
    for name in ["large", "small", "none"] {
        world.ready(name).await;
    }
    let held = world.dir.path().join("pods/uid-large/volumes/e/x");
    until("it is written", || std::fs::metadata(&held).is_ok_and(|file| file.len() == 8 << 20)).await;
    world.stop_node().await;
    world.min_free_bytes = u64::MAX;
    world.start_node().await;
    let status = world.status("large", "Failed", |status| status["phase"] == "Failed").await;
    assert_eq!(status["reason"], "Evicted");
    assert!(status["message"].as_str().unwrap().contains("low on resource: ephemeral-storage"), "{status}");
    until("its files go", || !held.exists()).await;
    let is_low = |node: &Value| {
        let conditions = node["status"]["conditions"].as_array().into_iter().flatten();
        conditions.clone().any(|condition| condition["type"] == "DiskPressure" && condition["status"] == "True")
    };
    tokio::time::timeout(super::PATIENCE, world.api.node_is(is_low)).await.expect("the node says so");
    for name in ["small", "none"] {
        world.ready(name).await;
    }
    world.run("pulls", json!({"image": "hello:1"}));
    let refused = |status: &Value| ["ErrImagePull", "ImagePullBackOff"].contains(&waiting(status));
    world.status("pulls", "refused", refused).await;
    assert!(!world.api.reasons("small").iter().chain(&world.api.reasons("none")).any(|reason| reason == "Evicted"));
}

/// There is no bound on how long a component may compute before it has begun; the end of its pod does not wait for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_never_comes_to_run_goes_when_it_is_deleted() {
    let world = World::start().await;
    world.run("spins", json!({"image": "spins:1"}));
    let reasons = world.api.first_reasons("spins", 4).await;
    assert_eq!(reasons, ["Pulling", "Pulled", "Compiling", "Compiled"]);
    world.api.delete("spins", 600);
    world.api.gone("spins").await;
    let engine = &world.pods().context.engine;
    until("its place is given back", || engine.instances() == 0).await;
}
