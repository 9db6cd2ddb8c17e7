//! Stories of workloads that are scaled by what is asked of them.

use super::*;

const DEPLOYMENT: &str = "/apis/apps/v1/namespaces/n/deployments/web";
const SERVICE: &str = "/api/v1/namespaces/n/services/web";
const NODE: &str = "/api/v1/nodes/boat";
const DEMAND: &str = "/api/v1/nodes/boat/proxy/coracle/v1/demand";
const MARK: &str = "autoscaling.coracle.dev/activates";

fn deployment(replicas: i32, annotations: Value) -> Value {
    let selector = json!({"matchLabels": {"app": "web"}});
    let spec = json!({"replicas": replicas, "selector": selector, "template": pod_template("web")});
    json!({"metadata": {"annotations": annotations}, "spec": spec})
}

fn service() -> Value {
    json!({"spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]}})
}

/// One of our own, which tells.
pub(super) fn telling() -> Value {
    let mut telling = node("True");
    telling["status"]["nodeInfo"] = json!({
        "kubeletVersion": "v1.37.0+coracle.0.1.0", "architecture": "", "bootID": "", "containerRuntimeVersion": "",
        "kernelVersion": "", "kubeProxyVersion": "", "machineID": "", "operatingSystem": "", "osImage": "", "systemUUID": "",
    });
    telling
}

/// A node that tells, a Service and a Deployment.
fn cluster(replicas: i32, annotations: Value) -> World {
    let world = world();
    world.api.stream(DEMAND);
    world.api.put(NODE, telling());
    world.api.put(SERVICE, service());
    world.api.put(DEPLOYMENT, deployment(replicas, annotations));
    world
}

fn says(average: f64, held: usize) -> Value {
    json!({"services": [{"namespace": "n", "name": "web", "average": average, "held": held}]})
}

async fn replicas(api: &Scripted, wanted: i64) {
    let is = |api: &Scripted| (api.get(DEPLOYMENT)?["spec"]["replicas"] == wanted).then_some(());
    api.until(&format!("there are {wanted}"), is).await;
}

async fn marked(api: &Scripted, wanted: &Value) {
    let is = |api: &Scripted| (api.get(SERVICE)?["metadata"]["annotations"][MARK] == *wanted).then_some(());
    api.until(&format!("its Service says {wanted}"), is).await;
}

async fn heard(api: &Scripted) {
    api.until("the node is heard", |api| (api.hear(DEMAND) == 1).then_some(())).await;
}

#[tokio::test]
async fn concurrency_wakes_who_sleeps_when_a_node_says_that_somebody_waits_and_lets_it_sleep_again() {
    let annotations = json!({"autoscaling.coracle.dev/window": "6s", "autoscaling.coracle.dev/target": "10"});
    let world = cluster(0, annotations);
    let api = &world.api;
    marked(api, &json!("deployment.apps/web")).await;
    heard(api).await;
    api.say(DEMAND, &json!({"services": []}));
    // Somebody else is faster with something: it is done in the version that comes then.
    api.next(Method::PATCH, "/deployments/web/scale", Answer::Refused(409, "Conflict"));
    api.say(DEMAND, &says(1.0, 2));
    replicas(api, 1).await;
    let told = |_: &Scripted| Some(world.events("SuccessfulRescale")).filter(|told| !told.is_empty());
    let told = api.until("it is told", told).await;
    assert_eq!(told, ["/api/v1/namespaces/n/events: New size: 1; reason: 2 wait for a pod"]);
    api.say(DEMAND, &says(0.0, 0));
    replicas(api, 0).await;
    let reason = |_: &Scripted| world.events("SuccessfulRescale").pop().filter(|told| told.contains("New size: 0"));
    let reason = api.until("it is told", reason).await;
    assert!(reason.ends_with("nothing was asked for 6s"), "{reason}");
    assert!(api.is_done());
}

#[tokio::test]
async fn concurrency_makes_more_when_more_is_asked_also_where_a_node_is_not_heard_yet() {
    let world = cluster(1, json!({"autoscaling.coracle.dev/window": "6s", "autoscaling.coracle.dev/target": "10"}));
    let api = &world.api;
    // The nodes of others have no such stream, and say so; this one has one, whatever somebody on the way answers in its place: it is not
    // taken for one where nothing is asked.
    api.put("/api/v1/nodes/other", node("True"));
    api.next(Method::GET, "/nodes/silent/proxy/coracle/v1/demand", Answer::Refused(404, "NotFound"));
    api.put("/api/v1/nodes/silent", telling());
    let silent = "/api/v1/nodes/silent/proxy/coracle/v1/demand";
    heard(api).await;
    api.say(DEMAND, &says(40.0, 0));
    let more = |api: &Scripted| (api.get(DEPLOYMENT)?["spec"]["replicas"].as_i64()? > 1).then_some(());
    api.until("there are more", more).await;
    api.say(DEMAND, &says(0.0, 0));
    // Until it is there again.
    api.stream(silent);
    api.until("it is asked again", |api| (api.hear(silent) == 1).then_some(())).await;
    let begun = tokio::time::Instant::now();
    api.say(silent, &json!({"services": []}));
    api.say(DEMAND, &json!({"services": []}));
    replicas(api, 0).await;
    assert!(begun.elapsed() >= Duration::from_secs(5), "it is listened to for a window");
}

#[tokio::test]
async fn concurrency_and_an_autoscaler_do_not_scale_the_same() {
    let world = cluster(1, json!({"autoscaling.coracle.dev/min-scale": "0"}));
    let api = &world.api;
    marked(api, &json!("deployment.apps/web")).await;
    let scaler = "/apis/autoscaling/v2/namespaces/n/horizontalpodautoscalers/web";
    let target = json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"});
    api.put(scaler, json!({"spec": {"scaleTargetRef": target, "minReplicas": 1, "maxReplicas": 2}}));
    marked(api, &Value::Null).await;
    let told = |_: &Scripted| Some(world.events("AutoscalingConflict")).filter(|told| !told.is_empty());
    let told = api.until("it is told", told).await;
    assert!(told.len() == 1 && told[0].contains("HorizontalPodAutoscaler web scales it"), "{told:?}");
    api.until("nobody listens any more", |api| (api.hear(DEMAND) == 0).then_some(())).await;
    api.remove(scaler);
    marked(api, &json!("deployment.apps/web")).await;
    heard(api).await;
}

#[tokio::test]
async fn concurrency_says_what_it_cannot_do() {
    let world = cluster(1, json!({"autoscaling.coracle.dev/min-scael": "0"}));
    let api = &world.api;
    let wrong = |_: &Scripted| world.events("InvalidAutoscaling").pop();
    let wrong = api.until("it is told", wrong).await;
    assert!(wrong.ends_with("annotation autoscaling.coracle.dev/min-scael is not known"), "{wrong}");
    api.remove(SERVICE);
    api.merge(
        DEPLOYMENT,
        &json!({"metadata": {"annotations": {
        "autoscaling.coracle.dev/min-scael": null, "autoscaling.coracle.dev/min-scale": "0"}}}),
    );
    let alone = |_: &Scripted| world.events("NoService").pop();
    api.until("it is told", alone).await;
    api.put(SERVICE, service());
    marked(api, &json!("deployment.apps/web")).await;
    // Who asks no more is scaled no more.
    api.merge(DEPLOYMENT, &json!({"metadata": {"annotations": {"autoscaling.coracle.dev/min-scale": null}}}));
    marked(api, &Value::Null).await;
}
