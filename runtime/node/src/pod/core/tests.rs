//! The life of pods as stories: what happens on the left, what the state machine says to do on the right.
//!
//! A [`World`] holds a pod and a clock. Its methods are inputs; each returns the commands that followed, in a short form:
//! `setup`, `start a#1`, `stop a#1 30`, `hurry a#1 5`, `probe a#1 Readiness`, `release`, `finalize`, `forget`, and
//! `!Reason` for events.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::*;

struct World {
    core: Core,
    object: Value,
    mono: Duration,
}

fn now(mono: Duration) -> Now {
    let start: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
    Now { mono, wall: start + mono }
}

fn read(object: &Value) -> Arc<Pod> {
    Arc::new(serde_json::from_value(object.clone()).unwrap())
}

/// A pod with this spec; its containers get an image each.
fn pod(mut spec: Value) -> Value {
    for list in ["initContainers", "containers"] {
        for container in spec[list].as_array_mut().into_iter().flatten() {
            if container.get("image").is_none() {
                container["image"] = json!("i:1");
            }
        }
    }
    spec["initContainers"].is_null().then(|| spec.as_object_mut().unwrap().remove("initContainers"));
    json!({"metadata": {"name": "p", "namespace": "n", "uid": "u", "generation": 1}, "spec": spec})
}

fn one(policy: &str) -> Value {
    pod(json!({"restartPolicy": policy, "terminationGracePeriodSeconds": 30, "containers": [{"name": "a"}]}))
}

impl World {
    fn new(object: Value) -> Self {
        Self::restored(object, &json!([]))
    }

    /// In another life of the node, of which these ends were kept.
    fn restored(object: Value, ends: &Value) -> Self {
        let ends = serde_json::from_value(ends.clone()).unwrap();
        let core = Core::new(read(&object), ends, "192.168.0.1".parse().unwrap(), now(Duration::ZERO));
        Self { core, object, mono: Duration::ZERO }
    }

    fn step(&mut self, input: Input) -> Vec<String> {
        let commands = self.core.step(now(self.mono), input);
        commands.iter().map(|command| self.show(command)).collect()
    }

    fn show(&self, command: &Command) -> String {
        let name = |container: &Index| &*self.core.containers()[*container].name;
        match command {
            Command::SetUp { previous: None } => "setup".to_owned(),
            Command::SetUp { previous: Some(address) } => format!("setup {address}"),
            Command::RefreshVolumes => "refresh".to_owned(),
            Command::Start { container, run } => format!("start {}#{run}", name(container)),
            Command::StartProbe { container, run, kind } => format!("probe {}#{run} {}", name(container), kind.title()),
            Command::Stop { container, run, grace } => format!("stop {}#{run} {}", name(container), grace.as_secs()),
            Command::Hurry { container, run, grace } => format!("hurry {}#{run} {}", name(container), grace.as_secs()),
            Command::Event { reason, .. } => format!("!{reason}"),
            Command::Release => "release".to_owned(),
            Command::Leave => "leave".to_owned(),
            Command::Finalize => "finalize".to_owned(),
            Command::Forget => "forget".to_owned(),
        }
    }

    fn index(&self, name: &str) -> (Index, Run) {
        let index = self.core.containers().iter().position(|container| *container.name == *name).unwrap();
        (index, self.core.containers()[index].run)
    }

    fn observe(&mut self) -> Vec<String> {
        self.step(Input::Observed(read(&self.object)))
    }

    fn set_up(&mut self) -> Vec<String> {
        self.step(Input::SetUp(Ok("10.244.0.2".parse().unwrap())))
    }

    fn started(&mut self, name: &str) -> Vec<String> {
        let (container, run) = self.index(name);
        let container_id = format!("wasmtime://{name}-{run}");
        self.step(Input::Started { container, run, container_id, image_id: "i@sha256:0".into() })
    }

    fn failed(&mut self, name: &str, reason: &'static str) -> Vec<String> {
        let (container, run) = self.index(name);
        self.step(Input::StartFailed { container, run, failure: StartFailure { reason, message: "why".to_owned() } })
    }

    fn exited(&mut self, name: &str, code: i32) -> Vec<String> {
        let (container, run) = self.index(name);
        let reason = if code == 0 { "Completed" } else { "Error" };
        self.step(Input::Exited { container, run, exit: Exit { code, reason, message: String::new() } })
    }

    fn probed(&mut self, name: &str, kind: ProbeKind, healthy: bool) -> Vec<String> {
        let (container, run) = self.index(name);
        self.step(Input::Probed { container, run, kind, healthy })
    }

    fn after(&mut self, seconds: u64) -> Vec<String> {
        self.mono += Duration::from_secs(seconds);
        self.step(Input::Wake)
    }

    fn delete(&mut self, grace: i64) -> Vec<String> {
        self.object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        self.object["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
        self.observe()
    }

    /// Up to the point where all of these run.
    fn running(object: Value, names: &[&str]) -> Self {
        let mut world = Self::new(object);
        world.observe();
        world.set_up();
        for name in names {
            world.started(name);
        }
        world
    }

    fn status(&mut self) -> Value {
        let now = now(self.mono);
        self.core.status(now)
    }

    /// Phase, `Ready`, and for each container its state with reason, or its restarts.
    fn shown(&mut self) -> String {
        let status = self.status();
        let conditions = status["conditions"].as_array().unwrap();
        let ready = conditions.iter().find(|condition| condition["type"] == "Ready").unwrap();
        let mut text = format!("{} {}", status["phase"].as_str().unwrap(), ready["status"].as_str().unwrap());
        for list in ["initContainerStatuses", "containerStatuses", "ephemeralContainerStatuses"] {
            for container in status[list].as_array().into_iter().flatten() {
                let (state, inner) = container["state"].as_object().unwrap().iter().next().unwrap();
                let reason = inner["reason"].as_str().unwrap_or("-");
                let name = container["name"].as_str().unwrap();
                text.push_str(&format!(" {name}:{state}/{reason}/{}", container["restartCount"]));
            }
        }
        text
    }
}

const QUIET: [&str; 0] = [];

#[test]
fn comes_up_in_one_go() {
    let mut world = World::new(one("Always"));
    assert_eq!(world.observe(), ["setup"]);
    assert!(world.core.is_settling());
    assert_eq!(world.shown(), "Pending False a:waiting/ContainerCreating/0");
    assert_eq!(world.set_up(), ["start a#1"]);
    assert!(world.core.is_settling());
    assert_eq!(world.started("a"), ["!Created", "!Started"]);
    assert!(!world.core.is_settling());
    assert_eq!(world.shown(), "Running True a:running/-/0");
    assert_eq!(world.status()["podIP"], "10.244.0.2");
    // Seeing one's own write changes nothing.
    assert_eq!(world.observe(), QUIET);
}

#[test]
fn restart_policies() {
    for (policy, code, commands, shown) in [
        ("Always", 0, vec!["start a#2"], "Running False a:waiting/ContainerCreating/0"),
        ("Always", 1, vec!["start a#2"], "Running False a:waiting/ContainerCreating/0"),
        ("OnFailure", 0, vec!["release"], "Succeeded False a:terminated/Completed/0"),
        ("OnFailure", 1, vec!["start a#2"], "Running False a:waiting/ContainerCreating/0"),
        ("Never", 0, vec!["release"], "Succeeded False a:terminated/Completed/0"),
        ("Never", 1, vec!["release"], "Failed False a:terminated/Error/0"),
    ] {
        let mut world = World::running(one(policy), &["a"]);
        assert_eq!(world.exited("a", code), commands, "{policy} {code}");
        assert_eq!(world.shown(), shown, "{policy} {code}");
    }
}

#[test]
fn exit_code_rules_of_a_container_come_first() {
    let rules = json!([{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]);
    let object = |code| {
        let container = json!({"name": "a", "restartPolicy": "Never", "restartPolicyRules": rules});
        let mut world = World::running(pod(json!({"restartPolicy": "Never", "containers": [container]})), &["a"]);
        world.exited("a", code)
    };
    assert_eq!(object(42), ["start a#2"]);
    assert_eq!(object(1), ["release"]);
}

#[test]
fn crashes_wait_longer_each_time() {
    let mut world = World::running(one("Always"), &["a"]);
    assert_eq!(world.exited("a", 1), ["start a#2"]);
    let mut waits = Vec::new();
    for _ in 0..7 {
        world.started("a");
        assert_eq!(world.exited("a", 1), ["!BackOff"]);
        assert!(world.shown().contains("waiting/CrashLoopBackOff"), "{}", world.shown());
        let wait = world.core.wake_at().unwrap() - world.mono;
        waits.push(wait.as_secs());
        assert_eq!(world.after(wait.as_secs() - 1), QUIET);
        assert_eq!(world.after(1).len(), 1);
    }
    assert_eq!(waits, [10, 20, 40, 80, 160, 300, 300]);
    // Ten minutes of health are forgiveness.
    world.started("a");
    assert_eq!(world.core.containers()[0].restarts, 8);
    world.mono += Duration::from_secs(1000);
    assert_eq!(world.exited("a", 1), ["start a#10"]);
}

#[test]
fn failed_pulls_back_off() {
    let mut world = World::new(one("Always"));
    world.observe();
    world.set_up();
    assert_eq!(world.failed("a", "ErrImagePull"), ["!Failed"]);
    assert_eq!(world.shown(), "Pending False a:waiting/ErrImagePull/0");
    assert_eq!(world.after(2), ["!BackOff", "!Failed"]);
    assert_eq!(world.shown(), "Pending False a:waiting/ImagePullBackOff/0");
    assert_eq!(world.after(8), ["start a#2"]);
    // What was shown stays shown while it is tried.
    assert_eq!(world.shown(), "Pending False a:waiting/ImagePullBackOff/0");
    world.failed("a", "ErrImagePull");
    assert_eq!(world.after(19).last().map(String::as_str), Some("!Failed"));
    assert_eq!(world.after(1), ["start a#3"]);
    assert_eq!(world.started("a"), ["!Created", "!Started"]);
    assert_eq!(world.shown(), "Running True a:running/-/0");
}

#[test]
fn another_image_does_not_wait_for_the_failures_of_the_last() {
    let mut world = World::new(one("Always"));
    world.observe();
    world.set_up();
    for again in 2..6 {
        world.failed("a", "ErrImagePull");
        assert_eq!(world.after(300).last(), Some(&format!("start a#{again}")));
    }
    world.failed("a", "ErrImagePull");
    world.object["spec"]["containers"][0]["image"] = json!("second");
    assert_eq!(world.observe(), ["start a#6"]);
    assert_eq!(world.shown(), "Pending False a:waiting/ContainerCreating/0");
    world.failed("a", "ErrImagePull");
    assert_eq!(world.after(10).last().map(String::as_str), Some("start a#7"), "the first failure of this one");
    world.started("a");
    assert_eq!(world.exited("a", 1), ["start a#8"]);
    world.started("a");
    assert_eq!(world.exited("a", 1), ["!BackOff"]);
    world.object["spec"]["containers"][0]["image"] = json!("third");
    assert_eq!(world.observe(), ["start a#9"]);
}

#[test]
fn missing_configuration_is_tried_again_when_it_changes() {
    let mut world = World::new(one("Always"));
    world.observe();
    world.set_up();
    assert_eq!(world.failed("a", "CreateContainerConfigError"), ["!Failed"]);
    assert_eq!(world.shown(), "Pending False a:waiting/CreateContainerConfigError/0");
    assert_eq!(world.step(Input::ConfigChanged), ["refresh", "start a#2"]);
}

#[test]
fn volumes_are_tried_again() {
    let mut world = World::new(one("Always"));
    world.observe();
    assert_eq!(world.step(Input::SetUp(Err("no such".to_owned()))), ["!FailedMount"]);
    assert_eq!(world.core.wake_at(), Some(Duration::from_millis(500)));
    assert_eq!(world.after(1), ["setup"]);
    world.step(Input::SetUp(Err("no such".to_owned())));
    assert_eq!(world.step(Input::ConfigChanged), ["setup"]);
    assert_eq!(world.set_up(), ["start a#1"]);
}

#[test]
fn init_containers_run_in_order() {
    let spec = json!({"restartPolicy": "Always", "initContainers": [{"name": "i"}, {"name": "j"}], "containers": [{"name": "a"}]});
    let mut world = World::new(pod(spec));
    world.observe();
    assert_eq!(world.set_up(), ["start i#1"]);
    world.started("i");
    assert_eq!(world.shown(), "Pending False i:running/-/0 j:waiting/PodInitializing/0 a:waiting/PodInitializing/0");
    assert_eq!(world.exited("i", 1), ["start i#2"]);
    world.started("i");
    assert_eq!(world.exited("i", 0), ["start j#1"]);
    world.started("j");
    assert_eq!(world.exited("j", 0), ["start a#1"]);
    world.started("a");
    assert_eq!(world.shown(), "Running True i:terminated/Completed/1 j:terminated/Completed/0 a:running/-/0");
}

#[test]
fn a_failed_init_container_fails_a_pod_that_never_restarts() {
    let spec = json!({"restartPolicy": "Never", "initContainers": [{"name": "i"}], "containers": [{"name": "a"}]});
    let mut world = World::running(pod(spec), &["i"]);
    assert_eq!(world.exited("i", 3), ["release"]);
    assert!(world.shown().starts_with("Failed False i:terminated/Error/0 a:waiting/"), "{}", world.shown());
}

#[test]
fn sidecars_start_first_and_end_last() {
    let spec = json!({
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 30,
        "initContainers": [{"name": "s", "restartPolicy": "Always"}, {"name": "i"}],
        "containers": [{"name": "a"}],
    });
    let mut world = World::new(pod(spec));
    world.observe();
    assert_eq!(world.set_up(), ["start s#1"]);
    assert_eq!(world.started("s").last().map(String::as_str), Some("start i#1"));
    world.started("i");
    assert_eq!(world.exited("i", 0), ["start a#1"]);
    world.started("a");
    // A sidecar comes back whatever the pod's policy is.
    assert_eq!(world.exited("s", 1), ["start s#2"]);
    world.started("s");
    assert_eq!(world.exited("a", 0), ["!Killing", "stop s#2 30"]);
    assert_eq!(world.exited("s", 143), ["release"]);
    assert!(world.shown().starts_with("Succeeded False"), "{}", world.shown());
}

#[test]
fn an_ephemeral_container_runs_once_beside_the_others() {
    let spec = json!({
        "restartPolicy": "Always",
        "terminationGracePeriodSeconds": 30,
        "initContainers": [{"name": "i"}],
        "containers": [{"name": "a"}],
    });
    let mut world = World::new(pod(spec));
    world.observe();
    assert_eq!(world.set_up(), ["start i#1"]);
    // It waits for nobody: it is to show why others do not start.
    world.object["spec"]["ephemeralContainers"] = json!([{"name": "d", "image": "i:2"}]);
    assert_eq!(world.observe(), ["start d#1"]);
    world.started("d");
    world.started("i");
    assert_eq!(world.exited("i", 0), ["start a#1"]);
    world.started("a");
    assert_eq!(world.shown(), "Running True i:terminated/Completed/0 a:running/-/0 d:running/-/0");
    // Nor does it come again, whatever the pod's policy is, or count for the pod.
    assert_eq!(world.exited("d", 1), QUIET);
    assert_eq!(world.shown(), "Running True i:terminated/Completed/0 a:running/-/0 d:terminated/Error/0");
    // A patch may put one in front.
    let more = json!({"name": "e", "image": "i:2"});
    world.object["spec"]["ephemeralContainers"].as_array_mut().unwrap().insert(0, more);
    assert_eq!(world.observe(), ["start e#1"]);
    world.started("e");
    // It ends with the pod; so it does where all others have ended for good.
    assert_eq!(world.delete(30), ["!Killing", "stop a#1 30", "!Killing", "stop e#1 30"]);

    let mut object = one("Never");
    object["spec"]["ephemeralContainers"] = json!([{"name": "d", "image": "i:2"}]);
    let mut world = World::running(object, &["d", "a"]);
    assert_eq!(world.exited("a", 0), ["!Killing", "stop d#1 30"]);
    assert_eq!(world.exited("d", 143), ["release"]);
    assert_eq!(world.shown(), "Succeeded False a:terminated/Completed/0 d:terminated/Error/0");
}

#[test]
fn an_ephemeral_container_of_an_earlier_life_stays_as_it_ended() {
    let mut object = one("Always");
    object["spec"]["ephemeralContainers"] = json!([{"name": "d", "image": "i:2"}]);
    let mut world = World::running(object, &["d", "a"]);
    let mut object = world.object.clone();
    object["status"] = world.status();
    object["status"]["podIPs"] = json!([{"ip": "10.244.0.2"}]);
    let mut world = World::new(object);
    world.observe();
    assert_eq!(world.set_up(), ["start a#2"]);
    assert!(world.shown().ends_with(" d:terminated/Unknown/0"), "{}", world.shown());
}

#[test]
fn deletion_stops_writes_and_removes() {
    let mut world = World::running(one("Always"), &["a"]);
    assert_eq!(world.delete(30), ["!Killing", "stop a#1 30"]);
    assert!(world.shown().starts_with("Running True a:running"), "{}", world.shown());
    // A second deletion with less grace.
    assert_eq!(world.delete(5), ["hurry a#1 5"]);
    assert_eq!(world.exited("a", 143), ["release"]);
    assert_eq!(world.step(Input::Released), ["finalize"]);
    assert!(world.shown().starts_with("Failed False a:terminated/Error/0"), "{}", world.shown());
    assert_eq!(world.observe(), QUIET);
    assert_eq!(world.step(Input::Removed), ["forget"]);
    assert!(world.core.is_forgotten());
}

#[test]
fn deletion_before_anything_ran() {
    let mut world = World::new(one("Always"));
    world.object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    assert_eq!(world.observe(), ["finalize"]);
    assert_eq!(world.step(Input::Removed), ["forget"]);
}

#[test]
fn deletion_during_a_start() {
    let mut world = World::new(one("Always"));
    world.observe();
    world.set_up();
    assert_eq!(world.delete(30), ["!Killing", "stop a#1 30"]);
    // The start wins the race, and counts for nothing.
    assert_eq!(world.started("a"), QUIET);
    assert_eq!(world.exited("a", 137), ["release"]);
    assert_eq!(world.step(Input::Released), ["finalize"]);
}

#[test]
fn removal_without_a_word() {
    let mut world = World::running(one("Always"), &["a"]);
    assert_eq!(world.step(Input::Removed), ["!Killing", "stop a#1 0"]);
    assert_eq!(world.exited("a", 137), ["release"]);
    assert_eq!(world.step(Input::Released), ["forget"]);
}

#[test]
fn deadline() {
    let mut object = one("Always");
    object["spec"]["activeDeadlineSeconds"] = json!(60);
    let mut world = World::running(object, &["a"]);
    assert_eq!(world.core.wake_at(), Some(Duration::from_secs(60)));
    assert_eq!(world.after(59), QUIET);
    assert_eq!(world.after(1), ["!DeadlineExceeded", "!Killing", "stop a#1 30"]);
    assert_eq!(world.exited("a", 143), ["release"]);
    assert_eq!(world.step(Input::Released), QUIET);
    assert!(world.shown().starts_with("Failed False"), "{}", world.shown());
    assert_eq!(world.status()["reason"], "DeadlineExceeded");
}

#[test]
fn a_new_image_restarts_the_container_whatever_the_policy() {
    for policy in ["Always", "Never"] {
        let mut world = World::running(one(policy), &["a"]);
        world.object["spec"]["containers"][0]["image"] = json!("i:2");
        assert_eq!(world.observe(), ["!Killing", "stop a#1 30"]);
        assert_eq!(world.exited("a", 143), ["start a#2"], "{policy}");
        world.started("a");
        assert_eq!(world.status()["containerStatuses"][0]["image"], "i:2");
        assert_eq!(world.shown(), "Running True a:running/-/1");
    }
}

#[test]
fn probes_hold_back_decide_and_restart() {
    let probe = json!({"tcpSocket": {"port": 1}});
    let spec = json!({
        "restartPolicy": "Always",
        "terminationGracePeriodSeconds": 30,
        "containers": [{"name": "a", "startupProbe": probe, "readinessProbe": probe, "livenessProbe": probe}],
    });
    let mut world = World::new(pod(spec));
    world.observe();
    world.set_up();
    assert_eq!(world.started("a"), ["!Created", "!Started", "probe a#1 Startup"]);
    assert_eq!(world.status()["containerStatuses"][0]["started"], false);
    assert_eq!(world.probed("a", ProbeKind::Startup, true), ["probe a#1 Readiness", "probe a#1 Liveness"]);
    assert!(world.core.is_settling());
    assert_eq!(world.shown(), "Running False a:running/-/0");
    world.probed("a", ProbeKind::Readiness, true);
    assert!(!world.core.is_settling());
    assert_eq!(world.shown(), "Running True a:running/-/0");
    world.probed("a", ProbeKind::Readiness, false);
    assert_eq!(world.shown(), "Running False a:running/-/0");
    assert_eq!(world.probed("a", ProbeKind::Liveness, false), ["!Killing", "stop a#1 30"]);
    assert_eq!(world.exited("a", 143), ["start a#2"]);
}

#[test]
fn readiness_gates_of_others_count() {
    let mut object = one("Always");
    object["spec"]["readinessGates"] = json!([{"conditionType": "x.io/ok"}]);
    let mut world = World::running(object, &["a"]);
    assert_eq!(world.shown(), "Running False a:running/-/0");
    world.object["status"] = json!({"conditions": [{"type": "x.io/ok", "status": "True"}]});
    world.observe();
    assert_eq!(world.shown(), "Running True a:running/-/0");
}

#[test]
fn a_node_that_stops_leaves_the_object() {
    let mut world = World::running(one("Always"), &["a"]);
    let stopping = Input::NodeStopping { grace: Duration::from_secs(10) };
    assert_eq!(world.step(stopping), ["!Killing", "stop a#1 10"]);
    assert_eq!(world.exited("a", 143), ["leave"]);
    assert_eq!(world.step(Input::Released), QUIET);
    assert!(world.core.is_stopped() && !world.core.is_forgotten());
}

/// What the API shows of a pod that ran when the node died.
fn left_behind(policy: &str) -> Value {
    let mut world = World::running(one(policy), &["a"]);
    let status = world.status();
    let mut object = world.object;
    object["status"] = status;
    // The patch's directives are no part of the object.
    object["status"]["podIPs"] = json!([{"ip": "10.244.0.2"}]);
    object
}

#[test]
fn takes_up_what_an_earlier_life_left() {
    let mut world = World::new(left_behind("Always"));
    assert_eq!(world.observe(), ["setup 10.244.0.2"]);
    assert_eq!(world.shown(), "Running False a:terminated/Unknown/0");
    assert_eq!(world.set_up(), ["start a#2"]);
    world.started("a");
    assert_eq!(world.shown(), "Running True a:running/-/1");
    let last = world.status()["containerStatuses"][0]["lastState"]["terminated"].clone();
    assert_eq!((&last["exitCode"], &last["containerID"]), (&json!(255), &json!("wasmtime://a-1")));
    // One that is never restarted has nothing left to do.
    let mut world = World::new(left_behind("Never"));
    assert_eq!(world.observe(), QUIET);
    assert_eq!(world.shown(), "Failed False a:terminated/Unknown/0");
    assert_eq!(world.status()["podIP"], "10.244.0.2");
}

#[test]
fn a_pod_that_had_ended_stays_ended() {
    let mut object = left_behind("Never");
    object["status"]["phase"] = json!("Succeeded");
    object["status"]["containerStatuses"][0]["state"] = json!({"terminated": {"exitCode": 0, "reason": "Completed"}});
    let mut world = World::new(object);
    assert_eq!(world.observe(), QUIET);
    assert_eq!(world.shown(), "Succeeded False a:terminated/Completed/0");
    assert_eq!(world.core.wake_at(), None);
}

#[test]
fn a_sidecar_whose_startup_probe_fails_holds_the_others_back() {
    let mut world = World::new(pod(json!({
        "restartPolicy": "Never",
        "initContainers": [{"name": "s", "restartPolicy": "Always", "startupProbe": {"tcpSocket": {"port": 1}}}],
        "containers": [{"name": "m"}],
    })));
    world.observe();
    world.set_up();
    world.started("s");
    let told = world.probed("s", ProbeKind::Startup, false);
    assert_eq!(told, ["!Killing", "stop s#1 30"], "the main container is not started");
    let again = world.exited("s", 143);
    assert_eq!(again, ["start s#2"]);
    let status = world.core.status(now(world.mono));
    assert_eq!(status["containerStatuses"][0]["state"]["waiting"]["reason"], "PodInitializing");
    world.started("s");
    assert_eq!(world.probed("s", ProbeKind::Startup, true), ["start m#1"]);
}

#[test]
fn a_sidecar_in_back_off_is_shown_as_it_ended_when_the_pod_has() {
    let mut world = World::new(pod(json!({
        "restartPolicy": "Never",
        "initContainers": [{"name": "s", "restartPolicy": "Always"}],
        "containers": [{"name": "m"}],
    })));
    world.observe();
    world.set_up();
    world.started("s");
    world.started("m");
    world.exited("s", 1);
    world.started("s");
    world.exited("s", 3);
    let status = world.core.status(now(world.mono));
    assert_eq!(status["initContainerStatuses"][0]["state"]["waiting"]["reason"], "CrashLoopBackOff");
    world.exited("m", 0);
    let status = world.core.status(now(world.mono));
    assert_eq!(status["phase"], "Succeeded");
    assert_eq!(status["initContainerStatuses"][0]["state"]["terminated"]["exitCode"], 3);
}

#[test]
fn a_pod_that_takes_too_much_is_evicted_at_once() {
    let mut world = World::new(one("Always"));
    world.observe();
    world.set_up();
    world.started("a");
    let message = "Usage of EmptyDir volume \"v\" exceeds the limit \"1Mi\". ".to_owned();
    assert_eq!(world.step(Input::Evict { message: message.clone() }), ["!Evicted", "!Killing", "stop a#1 0"]);
    assert_eq!(world.exited("a", 137), ["release"]);
    world.step(Input::Released);
    let status = world.core.status(now(world.mono));
    assert_eq!(
        (&status["phase"], &status["reason"], &status["message"]),
        (&json!("Failed"), &json!("Evicted"), &json!(message))
    );
    let conditions = status["conditions"].as_array().unwrap();
    assert!(conditions.iter().any(|c| c["type"] == "DisruptionTarget" && c["reason"] == "TerminationByKubelet"));
    assert!(world.step(Input::Evict { message: "again".to_owned() }).is_empty());
    // A node that is started again shows the same.
    world.object["status"] = status;
    let mut restored = World::new(world.object.clone());
    restored.observe();
    assert_eq!(restored.core.status(now(world.mono))["reason"], "Evicted");
}

/// The reason stays, whatever else ends the pod afterwards.
#[test]
fn why_a_pod_failed_stays_when_the_node_stops_or_it_is_deleted() {
    let reason = |world: &mut World| {
        let status = world.status();
        let conditions = status["conditions"].as_array().unwrap().clone();
        let since =
            conditions.iter().find(|c| c["type"] == "DisruptionTarget").map(|c| c["lastTransitionTime"].clone());
        (status["phase"].clone(), status["reason"].clone(), status["message"].clone(), since)
    };
    let evicted = (json!("Failed"), json!("Evicted"), json!("why"), Some(json!("2026-01-01T00:00:05Z")));
    let stopping = || Input::NodeStopping { grace: Duration::from_secs(10) };
    // It has ended, or is about to.
    for is_over in [true, false] {
        for deleted in [false, true] {
            let mut world = World::running(one("Always"), &["a"]);
            world.mono = Duration::from_secs(5);
            world.step(Input::Evict { message: "why".to_owned() });
            if is_over {
                assert_eq!(world.exited("a", 137), ["release"]);
                world.step(Input::Released);
            }
            world.mono = Duration::from_secs(60);
            match deleted {
                // As with a finalizer: the object stays.
                true => drop(world.delete(30)),
                false => drop(world.step(stopping())),
            }
            if !is_over {
                assert_eq!(world.exited("a", 137), ["release"], "nothing of it goes on in the node's next life");
                world.step(Input::Released);
            }
            assert_eq!(reason(&mut world), evicted, "{is_over} {deleted}");
        }
    }
    // One that has not failed says nothing.
    let mut world = World::running(one("Always"), &["a"]);
    world.step(stopping());
    world.exited("a", 143);
    assert_eq!(reason(&mut world).1, Value::Null);
    // And one of an earlier life goes on.
    let mut world = World::new(one("Always"));
    let (name, message) = (admission::REASONS[0], "Pod was rejected: no".to_owned());
    world.step(Input::Refused(Refusal { reason: name, message }));
    let status = world.status();
    world.object["status"] = status;
    let mut restored = World::new(world.object.clone());
    restored.observe();
    restored.step(stopping());
    assert_eq!(reason(&mut restored).1, "OutOfcpu");
}

/// A start that fails has a number, too: logs and names of lives are not used again after the node was restarted.
#[test]
fn lives_go_on_counting_after_failed_starts() {
    let mut world = World::new(one("Always"));
    world.observe();
    world.set_up();
    for _ in 0..3 {
        world.failed("a", "RunContainerError");
        world.after(300);
    }
    let (container, run) = world.index("a");
    assert_eq!(run, 4);
    let container_id = format!("wasmtime://0f{container:04x}{run:08x}");
    world.step(Input::Started { container, run, container_id, image_id: "i@sha256:0".into() });
    let status = world.status();
    assert_eq!(status["containerStatuses"][0]["restartCount"], 0);
    world.object["status"] = status;
    world.object["status"]["podIPs"] = json!([{"ip": "10.244.0.2"}]);
    let mut restored = World::new(world.object.clone());
    restored.observe();
    assert_eq!(restored.set_up(), ["start a#5"]);
    // What is no such name counts as it did.
    for id in [
        "wasmtime://a-1",
        "wasmtime://0f0000+0000004",
        "wasmtime://",
        "docker://000000000004",
        "wasmtime://0000ffffffff",
    ] {
        world.object["status"]["containerStatuses"][0]["containerID"] = json!(id);
        let mut restored = World::new(world.object.clone());
        restored.observe();
        assert_eq!(restored.set_up(), ["start a#2"], "{id}");
    }
}

#[test]
fn a_pod_that_is_refused_never_begins() {
    let mut world = World::new(one("Always"));
    let (reason, message) = (admission::REASONS[0], "Pod was rejected: no".to_owned());
    let refused = world.step(Input::Refused(Refusal { reason, message: message.clone() }));
    assert_eq!(refused, ["!OutOfcpu"]);
    world.observe();
    assert!(world.core.is_over());
    let status = world.core.status(now(world.mono));
    assert_eq!((&status["phase"], &status["reason"]), (&json!("Failed"), &json!("OutOfcpu")));
    // A node that is started again shows the same.
    world.object["status"] = status;
    let mut restored = World::new(world.object.clone());
    assert!(restored.observe().is_empty());
    assert_eq!(restored.core.status(now(world.mono))["message"], message);
}

#[test]
fn a_volume_that_is_not_there_is_told_by_an_event() {
    let mut world = World::new(one("Always"));
    world.observe();
    world.set_up();
    assert_eq!(world.failed("a", FAILED_MOUNT), ["!FailedMount"]);
    let state = world.core.status(now(world.mono))["containerStatuses"][0]["state"].clone();
    assert_eq!(state, json!({"waiting": {"reason": "ContainerCreating"}}));
    assert_eq!(world.step(Input::ConfigChanged), ["refresh", "start a#2"]);
}

#[test]
fn a_deadline_goes_by_the_clock_on_the_wall() {
    let mut object = one("Always");
    object["spec"]["activeDeadlineSeconds"] = json!(600);
    let mut world = World::new(object);
    world.observe();
    world.set_up();
    world.started("a");
    // The machine has slept: an hour on the wall, nothing on the node's own clock.
    let later = Now { wall: now(Duration::from_secs(3600)).wall, ..now(world.mono) };
    let commands = world.core.step(later, Input::Wake);
    assert!(commands.iter().any(|c| matches!(c, Command::Event { reason: "DeadlineExceeded", .. })), "{commands:?}");
}

/// The node's process ends before the API server was told how a container has ended.
#[test]
fn an_end_that_nobody_was_told_of_is_taken_up_from_what_was_kept() {
    let id = |run: Run| format!("wasmtime://0f{:04x}{run:08x}", 0);
    let begin = |world: &mut World| {
        let (container, run) = world.index("a");
        world.step(Input::Started { container, run, container_id: id(run), image_id: "i@sha256:0".into() });
    };
    let ended = |world: &mut World| world.status()["containerStatuses"][0]["state"]["terminated"].clone();
    for told in ["nothing", "that it runs", "that it has ended"] {
        let mut world = World::new(one("Never"));
        world.observe();
        world.set_up();
        begin(&mut world);
        if told == "that it runs" {
            world.object["status"] = world.core.status(now(world.mono));
        }
        assert_eq!(world.exited("a", 0), ["release"]);
        if told == "that it has ended" {
            world.object["status"] = world.core.status(now(world.mono));
        }
        let ends = world.core.ends();
        let mut object = world.object.clone();
        object["status"]["podIPs"] = json!([]);
        if told == "nothing" {
            object.as_object_mut().unwrap().remove("status");
        }
        let mut restored = World::restored(object, &ends);
        assert!(restored.core.had_life(), "{told}: it has its room");
        assert!(restored.observe().is_empty(), "{told}: it does not run again");
        let end = ended(&mut restored);
        assert_eq!((restored.core.phase(), &end["exitCode"]), ("Succeeded", &json!(0)), "{told}");
    }
    // Of one that was started again the life before is known, and nobody takes an old end for that of a later life.
    let mut world = World::new(one("Always"));
    world.observe();
    world.set_up();
    begin(&mut world);
    world.object["status"] = world.core.status(now(world.mono));
    assert_eq!(world.exited("a", 7), ["start a#2"]);
    let ends = world.core.ends();
    let mut object = world.object.clone();
    object["status"]["podIPs"] = json!([]);
    let mut restored = World::restored(object.clone(), &ends);
    restored.observe();
    assert_eq!(restored.set_up(), ["start a#2"]);
    let last = restored.status()["containerStatuses"][0]["lastState"]["terminated"].clone();
    assert_eq!(last["exitCode"], 7);
    object["status"]["containerStatuses"][0]["containerID"] = json!(id(2));
    object["status"]["containerStatuses"][0]["restartCount"] = json!(1);
    let mut restored = World::restored(object, &ends);
    restored.observe();
    restored.set_up();
    let last = restored.status()["containerStatuses"][0]["lastState"]["terminated"].clone();
    assert_eq!((&last["exitCode"], &last["containerID"]), (&json!(255), &json!(id(2))));
}

#[test]
fn addresses_of_an_earlier_life_of_the_node_are_replaced_and_not_added_to() {
    let pods = coracle_api::schema::of_kind("", "v1", "Pod").unwrap();
    let mut world = World::running(one("Always"), &["a"]);
    let list = |address: &str| json!([{"ip": address}]);
    let mut object = json!({"status": {
        "hostIP": "192.168.0.9", "hostIPs": list("192.168.0.9"), "podIP": "10.244.9.9", "podIPs": list("10.244.9.9"),
        "conditions": [{"type": "others", "status": "True"}],
    }});
    for _ in 0..2 {
        coracle_api::patch::strategic(&mut object, &json!({"status": world.status()}), &pods).unwrap();
        let status = &object["status"];
        assert_eq!((&status["hostIP"], &status["hostIPs"]), (&json!("192.168.0.1"), &list("192.168.0.1")));
        assert_eq!((&status["podIP"], &status["podIPs"]), (&json!("10.244.0.2"), &list("10.244.0.2")));
        assert!(status["conditions"].as_array().unwrap().iter().any(|condition| condition["type"] == "others"));
    }
}
