//! Volumes that outlive their pods.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::{World, command, until};

const FINALIZER: &str = "coracle.dev/local-volume";

/// A claim that is bound to a volume of this node, both of this name.
fn put_bound(world: &World, name: &str, size: &str, modes: &Value) {
    let claim = json!({"metadata": {"uid": name}, "spec": {"volumeName": name}, "status": {"phase": "Bound"}});
    world.api.put_object("persistentvolumeclaims", name, claim);
    let volume = json!({
        "metadata": {
            "uid": name, "labels": {"coracle.dev/volume-node": "n1"}, "finalizers": [FINALIZER],
            "annotations": {"pv.kubernetes.io/provisioned-by": "coracle.dev/local"},
        },
        "spec": {
            "local": {"path": format!("volumes/{name}")}, "capacity": {"storage": size}, "accessModes": modes,
            "claimRef": {"namespace": "default", "name": name, "uid": name}, "persistentVolumeReclaimPolicy": "Delete",
        },
        "status": {"phase": "Bound"},
    });
    world.api.put_object("persistentvolumes", name, volume);
}

/// Runs a command with the claim at `/data`.
fn run(world: &World, pod: &str, claim: &str, read_only: bool, steps: &[&str]) {
    let mut container = command(steps);
    container["volumeMounts"] = json!([{"name": "v", "mountPath": "/data"}]);
    let source = json!({"claimName": claim, "readOnly": read_only});
    let volumes = json!([{"name": "v", "persistentVolumeClaim": source}]);
    world.run_spec(pod, json!({"restartPolicy": "Never", "volumes": volumes, "containers": [container]}));
}

async fn ended(world: &World, pod: &str) -> String {
    let is_over = |status: &Value| ["Succeeded", "Failed"].contains(&status["phase"].as_str().unwrap_or_default());
    let status = world.status(pod, "over", is_over).await;
    status["phase"].as_str().unwrap_or_default().to_owned()
}

async fn told(world: &World, pod: &str, words: &str) {
    until(words, || world.api.messages(pod).iter().any(|message| message.contains(words))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_stays_when_its_pods_go_and_goes_when_its_object_says_so() {
    let mut world = World::start().await;
    put_bound(&world, "data", "1Gi", &json!(["ReadWriteOnce"]));
    run(&world, "writer", "data", false, &["write", "/data/x", "kept"]);
    assert_eq!(ended(&world, "writer").await, "Succeeded");
    let dir: PathBuf = world.dir.path().join("volumes/data");
    assert_eq!(std::fs::read_to_string(dir.join("x")).unwrap(), "kept");
    let volume = world.api.object("persistentvolumes", "data").unwrap();
    assert_eq!(volume["metadata"]["annotations"]["coracle.dev/volume-made"], "true");
    // What was under way when it ended opens nothing for it.
    let pods = world.pods();
    let slot = pods.find("default", "writer").unwrap();
    until("it has let go of it", || pods.context.kept.of(&slot.uid).is_empty()).await;
    pods.check_volumes(&slot, &slot.pod()).await.unwrap_err();
    assert!(pods.context.kept.of(&slot.uid).is_empty());
    drop((pods, slot));
    world.api.delete("writer", 0);
    world.api.gone("writer").await;
    // Others find it, also after a restart; who may only read does not write.
    world.stop_node().await;
    world.start_node().await;
    run(&world, "reader", "data", true, &["cat", "/data/x"]);
    assert_eq!(ended(&world, "reader").await, "Succeeded");
    run(&world, "meddler", "data", true, &["write", "/data/x", "other"]);
    assert_eq!(ended(&world, "meddler").await, "Failed");
    assert_eq!(std::fs::read_to_string(dir.join("x")).unwrap(), "kept");
    for pod in ["reader", "meddler"] {
        world.api.delete(pod, 0);
        world.api.gone(pod).await;
    }

    // An object that is not there is no reason to remove anything; that is told of.
    let stranger = world.dir.path().join("volumes/stranger");
    std::fs::create_dir(&stranger).unwrap();
    // It is deleted while the node is away.
    world.stop_node().await;
    let mut going = world.api.object("persistentvolumes", "data").unwrap();
    going["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    going["status"]["phase"] = json!("Released");
    world.api.put_object("persistentvolumes", "data", going);
    world.start_node().await;
    let left = |world: &World| world.api.object("persistentvolumes", "data").unwrap()["metadata"]["finalizers"].clone();
    until("the node lets go of the object", || left(&world) == json!([])).await;
    assert!(!dir.exists() && stranger.exists());
    told(&world, "n1", "1 directories of volumes belong to no PersistentVolume, and are kept: stranger").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_that_cannot_be_had_says_why() {
    let world = World::start().await;
    run(&world, "early", "none", false, &["ls", "/data"]);
    told(&world, "early", "persistentvolumeclaim \"none\" not found").await;
    put_bound(&world, "lost", "1Gi", &json!(["ReadWriteOnce"]));
    let mut lost = world.api.object("persistentvolumes", "lost").unwrap();
    lost["metadata"]["annotations"]["coracle.dev/volume-made"] = json!("true");
    world.api.put_object("persistentvolumes", "lost", lost);
    run(&world, "lost", "lost", false, &["ls", "/data"]);
    told(&world, "lost", "the directory of persistentvolume \"lost\" is gone").await;
    assert!(!world.dir.path().join("volumes/lost").exists());
    // Nobody has put anything there.
    put_bound(&world, "hand", "1Gi", &json!(["ReadOnlyMany"]));
    let mut hand = world.api.object("persistentvolumes", "hand").unwrap();
    hand["metadata"]["annotations"] = json!({});
    world.api.put_object("persistentvolumes", "hand", hand);
    run(&world, "hand", "hand", false, &["ls", "/data"]);
    told(&world, "hand", "the directory of persistentvolume \"hand\" does not exist").await;
    assert!(!world.dir.path().join("volumes/hand").exists());
    // One pod at a time; the next one follows at once.
    put_bound(&world, "once", "1Gi", &json!(["ReadWriteOncePod"]));
    run(&world, "first", "once", false, &["tick", "100"]);
    world.ready("first").await;
    run(&world, "second", "once", false, &["write", "/data/x", "second"]);
    told(&world, "second", "already in use by another pod").await;
    world.api.delete("first", 0);
    assert_eq!(ended(&world, "second").await, "Succeeded");
    // Too much: who has filled it ends, and who comes next does not begin.
    put_bound(&world, "small", "1Mi", &json!(["ReadWriteOnce"]));
    run(&world, "fills", "small", false, &["fill", "/data/x", "3", "tick", "100"]);
    let status = world.status("fills", "evicted", |status| status["reason"] == "Evicted").await;
    let message = status["message"].as_str().unwrap_or_default();
    assert!(message.contains("Usage of PersistentVolume \"small\" exceeds its capacity \"1Mi\""), "{message}");
    run(&world, "next", "small", false, &["ls", "/data"]);
    told(&world, "next", "its capacity is 1Mi").await;
    std::fs::remove_file(world.dir.path().join("volumes/small/x")).unwrap();
    run(&world, "after", "small", false, &["ls", "/data"]);
    assert_eq!(ended(&world, "after").await, "Succeeded");
}

/// Its end frees nothing, and the disk is filled no further.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_low_disk_ends_who_fills_a_volume_that_stays_and_bounds_hold_meanwhile() {
    let mut world = World::start().await;
    put_bound(&world, "large", "1Gi", &json!(["ReadWriteOnce"]));
    put_bound(&world, "small", "1Ki", &json!(["ReadWriteOnce"]));
    world.run("first", command(&["sleep", "600000"]));
    world.ready("first").await;
    world.stop_node().await;
    world.min_free_bytes = u64::MAX;
    world.start_node().await;
    run(&world, "fills", "large", false, &["fill", "/data/x", "8", "sleep", "600000"]);
    run(&world, "beyond", "small", false, &["write", "/data/x", "much", "sleep", "600000"]);
    for (pod, words) in [("fills", "low on resource: ephemeral-storage"), ("beyond", "exceeds its capacity \"1Ki\"")] {
        let status = world.status(pod, "evicted", |status| status["reason"] == "Evicted").await;
        assert!(status["message"].as_str().is_some_and(|message| message.contains(words)), "{status}");
    }
    assert!(world.dir.path().join("volumes/large/x").exists());
    world.ready("first").await;
}

/// What a container was shown by second names is not its own, also before a node that was started anew can start it again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_file_of_a_claim_is_not_held_against_a_pod_whose_node_starts_anew() {
    let mut world = World::start().await;
    put_bound(&world, "model", "1Gi", &json!(["ReadWriteOnce"]));
    run(&world, "writer", "model", false, &["fill", "/data/weights", "12"]);
    assert_eq!(ended(&world, "writer").await, "Succeeded");
    let mut container = command(&["tick", "100"]);
    container["volumeMounts"] = json!([{"name": "v", "mountPath": "/app/weights", "subPath": "weights"}]);
    let volumes = json!([{"name": "v", "persistentVolumeClaim": {"claimName": "model"}}]);
    world.run_spec("shown", json!({"volumes": volumes, "containers": [container]}));
    world.ready("shown").await;
    world.stop_node().await;
    let claim = world.api.object("persistentvolumeclaims", "model").unwrap();
    let mut going = claim.clone();
    going["status"]["phase"] = json!("Pending");
    world.api.put_object("persistentvolumeclaims", "model", going);
    world.start_node().await;
    told(&world, "shown", "persistentvolumeclaim \"model\" is not bound").await;
    // All pods are measured between the ends of these two.
    for name in ["fills", "fills-too"] {
        let mut container = command(&["fill", "/data/x", "3", "tick", "100"]);
        container["volumeMounts"] = json!([{"name": "v", "mountPath": "/data"}]);
        let volumes = json!([{"name": "v", "emptyDir": {"sizeLimit": "1Mi"}}]);
        world.run_spec(name, json!({"restartPolicy": "Never", "volumes": volumes, "containers": [container]}));
        world.status(name, "evicted", |status| status["reason"] == "Evicted").await;
    }
    let status = world.status("shown", "there", |_| true).await;
    assert_ne!(status["reason"], "Evicted", "{status}");
    world.api.put_object("persistentvolumeclaims", "model", claim);
    world.ready("shown").await;
}

/// What could not be made is not left on the disk, and nothing is excused for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mounts_that_fail_leave_nothing_behind() {
    let world = World::start().await;
    put_bound(&world, "model", "1Gi", &json!(["ReadWriteOnce"]));
    run(&world, "writer", "model", false, &["fill", "/data/weights", "12"]);
    assert_eq!(ended(&world, "writer").await, "Succeeded");
    let mut container = command(&["tick", "100"]);
    container["volumeMounts"] = json!([
        {"name": "v", "mountPath": "/app/weights", "subPath": "weights"},
        {"name": "v", "mountPath": "/app/same", "subPath": "weights", "readOnly": true},
    ]);
    let volumes = json!([{"name": "v", "persistentVolumeClaim": {"claimName": "model"}}]);
    world.run_spec("mixed", json!({"volumes": volumes, "containers": [container]}));
    told(&world, "mixed", "cannot be mounted beside each other").await;
    let slot = world.pods().find("default", "mixed").unwrap();
    let files = world.pods().context.pods_dir.join(&*slot.uid).join("files/c");
    until("it is known what is left", || slot.shown_bytes() == [Some(0)]).await;
    assert_eq!(std::fs::read_dir(files).map_or(0, Iterator::count), 0);
}
