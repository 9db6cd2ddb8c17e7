//! Stories of the autoscaler. It looks at all of its objects every half second here.

use super::*;

const DEPLOYMENT: &str = "/apis/apps/v1/namespaces/n/deployments/web";
const SCALER: &str = "/apis/autoscaling/v2/namespaces/n/horizontalpodautoscalers/web";
const PODS: &str = "/api/v1/namespaces/n/pods";

fn deployment(label: &str, replicas: i32) -> Value {
    let mut template = pod_template(label);
    template["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "100m"}});
    json!({"spec": {"replicas": replicas, "selector": {"matchLabels": {"app": label}}, "template": template}})
}

fn scaler(spec: Value) -> Value {
    let mut object = json!({
        "metadata": {"generation": 1},
        "spec": {"scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"}, "minReplicas": 1,
            "maxReplicas": 5, "metrics": [{"type": "Resource", "resource": {"name": "cpu",
            "target": {"type": "Utilization", "averageUtilization": 80}}}]},
    });
    object["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    object
}

/// All pods that there are are ready since long, and use so much.
fn run_pods(api: &Scripted, cpu: &str) {
    for pod in api.list(PODS) {
        let name = pod["metadata"]["name"].as_str().unwrap_or_default();
        let ready = json!({"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:10Z"});
        let status = json!({"phase": "Running", "startTime": "2026-01-01T00:00:00Z", "conditions": [ready]});
        if pod["status"]["phase"] != "Running" {
            api.merge(&format!("{PODS}/{name}"), &json!({ "status": status }));
        }
        let now = jiff::Timestamp::now().to_string();
        let usage = json!({"timestamp": now, "window": "15s", "containers": [{"name": "c", "usage": {"cpu": cpu}}]});
        api.put(&format!("/apis/metrics.k8s.io/v1beta1/namespaces/n/pods/{name}"), usage);
    }
}

/// Waits until there are as many pods, and has them run.
async fn pods(api: &Scripted, count: usize, cpu: &str) {
    api.until("pods are made", |api| (api.list(PODS).len() == count).then_some(())).await;
    run_pods(api, cpu);
}

fn says(object: &Value, type_: &str) -> (String, String, String) {
    let conditions = object["status"]["conditions"].as_array().into_iter().flatten();
    let found = conditions.clone().find(|condition| condition["type"] == type_);
    let text =
        |field: &str| found.map_or_else(String::new, |found| found[field].as_str().unwrap_or_default().to_owned());
    (text("status"), text("reason"), text("message"))
}

/// Waits until a condition has a reason; gives its status, its message and the object.
async fn until(api: &Scripted, path: &str, type_: &str, reason: &str) -> (String, String, Value) {
    let test = |api: &Scripted| {
        let object = api.get(path)?;
        let (status, found, message) = says(&object, type_);
        (found == reason).then_some((status, message, object))
    };
    api.until(&format!("{type_} says {reason}"), test).await
}

#[tokio::test]
async fn autoscaler_makes_a_pod_when_those_that_there_are_use_too_much_and_says_so() {
    let world = world();
    let api = &world.api;
    api.put(DEPLOYMENT, deployment("web", 1));
    pods(api, 1, "120m").await;
    api.put(SCALER, scaler(json!({})));
    pods(api, 2, "60m").await;
    // The status of the change itself is overtaken by that of the next look.
    let test = |api: &Scripted| {
        let object = api.get(SCALER)?;
        (says(&object, "AbleToScale").1 == "ReadyForNewScale" && object["status"]["currentReplicas"] == 2)
            .then_some(object)
    };
    let object = api.until("it is steady", test).await;
    let status = &object["status"];
    assert_eq!((&status["desiredReplicas"], &status["observedGeneration"]), (&json!(2), &json!(1)));
    assert!(status["lastScaleTime"].is_string(), "{status}");
    let current = json!({"averageUtilization": 60, "averageValue": "60m"});
    assert_eq!(
        status["currentMetrics"],
        json!([{"type": "Resource", "resource": {"name": "cpu", "current": current}}])
    );
    let words = "the HPA was able to successfully calculate a replica count from cpu resource utilization (percentage of request)";
    assert_eq!(says(&object, "ScalingActive"), ("True".into(), "ValidMetricFound".into(), words.into()));
    assert_eq!(says(&object, "ScalingLimited").1, "DesiredWithinRange");
    assert_eq!(says(&object, "ScaledToZero").1, "NotScaledToZero");
    let told = |_: &Scripted| Some(world.events("SuccessfulRescale")).filter(|told| !told.is_empty());
    let told = api.until("it is told", told).await;
    let why = "New size: 2; reason: cpu resource utilization (percentage of request) above target";
    assert_eq!(told, [format!("/api/v1/namespaces/n/events: {why}")]);
    // Nothing changes: nothing is written, and there is no third pod.
    let writes = api.writes().len();
    let asked = |api: &Scripted| api.requests(&Method::GET, "/apis/metrics.k8s.io/v1beta1/namespaces/n/pods").len();
    let before = asked(api);
    api.until("it was looked at twice more", |api| (asked(api) >= before + 2).then_some(())).await;
    let wrote: Vec<_> = api.writes().split_off(writes).into_iter().map(|seen| seen.path).collect();
    let ours = |path: &String| path.contains("horizontalpodautoscalers") || path.ends_with("/scale");
    assert!(!wrote.iter().any(ours), "{wrote:?}");
    let query = &api.requests(&Method::GET, "/apis/metrics.k8s.io/v1beta1/namespaces/n/pods")[0].query;
    assert_eq!(query, "labelSelector=app%3Dweb");
}

#[tokio::test]
async fn autoscaler_writes_the_scale_again_when_somebody_was_faster_or_nobody_knows() {
    let world = world();
    let api = &world.api;
    api.put(DEPLOYMENT, deployment("web", 1));
    pods(api, 1, "400m").await;
    api.next(Method::PUT, "/deployments/web/scale", Answer::Refused(409, "Conflict"));
    api.next(Method::PUT, "/deployments/web/scale", Answer::DoneButUnknown);
    let rules = json!({"policies": [{"type": "Pods", "value": 2, "periodSeconds": 1800}], "selectPolicy": "Max"});
    api.put(SCALER, scaler(json!({"behavior": {"scaleUp": rules, "scaleDown": rules}})));
    pods(api, 3, "400m").await;
    let (status, message, _) = until(api, SCALER, "ScalingLimited", "ScaleUpLimit").await;
    let faster = "the desired replica count is increasing faster than the maximum scale rate";
    assert_eq!((&*status, &*message), ("True", faster));
    // What was written without an answer counts: for half an hour there are no more.
    let limited = |api: &Scripted| {
        let object = api.get(SCALER)?;
        (object["status"]["currentReplicas"] == 3 && says(&object, "ScalingLimited").1 == "ScaleUpLimit")
            .then_some(object)
    };
    let object = api.until("it is held", limited).await;
    assert_eq!(object["status"]["desiredReplicas"], 3);
    assert_eq!(api.requests(&Method::PUT, "/deployments/web/scale").len(), 2);
    assert!(world.api.is_done() && api.list(PODS).len() == 3);
}

#[tokio::test]
async fn autoscaler_without_measures_changes_nothing_and_says_why() {
    let world = world();
    let api = &world.api;
    api.put(DEPLOYMENT, deployment("web", 2));
    api.until("pods are made", |api| (api.list(PODS).len() == 2).then_some(())).await;
    api.put(SCALER, scaler(json!({})));
    let (status, message, object) = until(api, SCALER, "ScalingActive", "FailedGetResourceMetric").await;
    let why = "failed to get cpu utilization: unable to get metrics for resource cpu: no metrics returned from resource metrics API";
    assert_eq!((&*status, message), ("False", format!("the HPA was unable to compute the replica count: {why}")));
    assert_eq!(says(&object, "AbleToScale").1, "SucceededGetScale");
    assert_eq!((&object["status"]["currentReplicas"], &object["status"]["desiredReplicas"]), (&json!(2), &json!(0)));
    let told = |_: &Scripted| Some(world.events("FailedComputeMetricsReplicas")).filter(|told| !told.is_empty());
    let told = api.until("it is told", told).await;
    let all = "invalid metrics (1 invalid out of 1), first error is: failed to get cpu resource metric value";
    assert_eq!(told[0], format!("/api/v1/namespaces/n/events: {all}: {why}"));
    // They come: it goes on by itself.
    api.next(Method::GET, "/apis/metrics.k8s.io", Answer::Refused(503, "ServiceUnavailable"));
    run_pods(api, "80m");
    until(api, SCALER, "ScalingActive", "ValidMetricFound").await;
    assert!(api.is_done() && api.requests(&Method::PUT, "/scale").is_empty());
}

#[tokio::test]
async fn autoscaler_names_what_it_cannot_scale_or_measure() {
    let world = world();
    let api = &world.api;
    let at = |name: &str| format!("/apis/autoscaling/v2/namespaces/n/horizontalpodautoscalers/{name}");
    let target =
        |kind: &str, name: &str| json!({"scaleTargetRef": {"apiVersion": "apps/v1", "kind": kind, "name": name}});
    api.put(&at("unserved"), scaler(target("Nothing", "x")));
    let (status, message, _) = until(api, &at("unserved"), "AbleToScale", "FailedGetScale").await;
    let start = "the HPA controller was unable to get the target's current scale: ";
    assert_eq!((&*status, message), ("False", format!("{start}no matches for kind \"Nothing\" in group \"apps\"")));
    api.put(&at("missing"), scaler(target("Deployment", "none")));
    until(api, &at("missing"), "AbleToScale", "FailedGetScale").await;
    api.put(DEPLOYMENT, deployment("web", 1));
    pods(api, 1, "10m").await;
    let hits = json!({"type": "Pods", "pods": {"metric": {"name": "hits"}, "target": {"type": "AverageValue", "averageValue": "5"}}});
    api.put(SCALER, scaler(json!({ "metrics": [hits] })));
    let (_, message, _) = until(api, SCALER, "ScalingActive", "FailedGetPodsMetric").await;
    assert!(message.ends_with("no custom metrics API (custom.metrics.k8s.io) registered"), "{message}");
    assert!(api.requests(&Method::GET, "/apis/metrics.k8s.io").is_empty(), "nobody asks for what is not looked at");
    // Another that scales the same pods: neither does.
    api.put(&at("same"), scaler(json!({})));
    let (_, message, _) = until(api, &at("same"), "ScalingActive", "AmbiguousSelector").await;
    let all = "pods by selector app=web are controlled by more than one HPA (e.g. [{same n} {web n}])";
    assert_eq!(message, all);
    api.remove(SCALER);
    until(api, &at("same"), "ScalingActive", "ValidMetricFound").await;
}

#[tokio::test]
async fn autoscaler_keeps_the_number_within_its_bounds_and_lets_zero_be() {
    let world = world();
    let api = &world.api;
    api.put(DEPLOYMENT, deployment("web", 7));
    api.put(SCALER, scaler(json!({})));
    let replicas = |api: &Scripted, count: i32| (api.get(DEPLOYMENT)?["spec"]["replicas"] == count).then_some(());
    api.until("no more than may be", |api| replicas(api, 5)).await;
    api.merge(SCALER, &json!({"spec": {"minReplicas": 3}, "metadata": {"generation": 2}}));
    api.merge(DEPLOYMENT, &json!({"spec": {"replicas": 1}, "metadata": {"generation": 9}}));
    api.until("no fewer", |api| replicas(api, 3)).await;
    api.merge(DEPLOYMENT, &json!({"spec": {"replicas": 0}, "metadata": {"generation": 10}}));
    let (status, message, _) = until(api, SCALER, "ScalingActive", "ScalingDisabled").await;
    let off = "scaling is disabled since the replica count of the target is zero";
    assert_eq!((&*status, &*message), ("False", off));
    assert_eq!(api.get(DEPLOYMENT).unwrap()["spec"]["replicas"], 0);
}

#[tokio::test]
async fn autoscaler_asks_other_servers_for_what_they_measure() {
    let world = world();
    let api = &world.api;
    let custom = "/apis/custom.metrics.k8s.io/v1beta2/namespaces/n";
    let item = |name: &str, value: &str| {
        let now = jiff::Timestamp::now().to_string();
        json!({"describedObject": {"kind": "Pod", "namespace": "n", "name": name}, "timestamp": now, "value": value,
            "metric": {"name": "hits"}})
    };
    let metric = |name: &str| json!({"name": name, "selector": {"matchLabels": {"code": "200"}}});
    api.put(DEPLOYMENT, deployment("web", 2));
    pods(api, 2, "10m").await;
    let names: Vec<String> =
        api.list(PODS).iter().map(|pod| pod["metadata"]["name"].as_str().unwrap().to_owned()).collect();
    let of_pods = |value: &str| json!({"items": names.iter().map(|name| item(name, value)).collect::<Vec<_>>()});
    let all = json!({"type": "Percent", "value": 1000, "periodSeconds": 15});
    let wants = |metrics: Value| {
        scaler(
            json!({ "metrics": metrics, "behavior": {"scaleDown": {"stabilizationWindowSeconds": 0, "policies": [all]}, "scaleUp": {"stabilizationWindowSeconds": 0, "policies": [all]}} }),
        )
    };
    let replicas = |api: &Scripted, count: i32| (api.get(DEPLOYMENT)?["spec"]["replicas"] == count).then_some(());

    // Of pods: each should have 5, and has 10.
    api.put(&format!("{custom}/pods/*"), of_pods("10"));
    let pods_metric = json!({"type": "Pods", "pods": {"metric": metric("hits"), "target": {"type": "AverageValue", "averageValue": "5"}}});
    api.put(SCALER, wants(json!([pods_metric])));
    api.until("twice as many", |api| replicas(api, 4)).await;
    let asked = api.requests(&Method::GET, "/pods/*/hits");
    assert_eq!(asked[0].query, "labelSelector=app%3Dweb&metricLabelSelector=code%3D200");
    let (_, message, object) = until(api, SCALER, "ScalingActive", "ValidMetricFound").await;
    assert_eq!(message, "the HPA was able to successfully calculate a replica count from pods metric hits");
    let told = json!([{"type": "Pods", "pods": {"metric": metric("hits"), "current": {"averageValue": "10"}}}]);
    assert_eq!(object["status"]["currentMetrics"], told);
    api.remove(SCALER);

    // Of an object: it should have 100m for all of the pods that are ready, and has a half of it.
    pods(api, 4, "10m").await;
    api.put(&format!("{custom}/services/front"), json!({"items": [item("front", "50m")]}));
    let service = json!({"kind": "Service", "name": "front", "apiVersion": "v1"});
    let object_metric = json!({"type": "Object", "object": {"metric": {"name": "load"}, "describedObject": service,
        "target": {"type": "Value", "value": "100m"}}});
    api.put(SCALER, wants(json!([object_metric])));
    api.until("half as many", |api| replicas(api, 2)).await;
    api.remove(SCALER);

    // Of what is no object: the sum of all series, with so much of it for each pod.
    let external = |name: &str| {
        let target = json!({"type": "AverageValue", "averageValue": "5"});
        json!({"type": "External", "external": {"metric": {"name": name}, "target": target}})
    };
    api.put(SCALER, wants(json!([external("queue")])));
    let (_, message, _) = until(api, SCALER, "ScalingActive", "FailedGetExternalMetric").await;
    assert!(message.ends_with("external metrics API: no metrics returned from external metrics API"), "{message}");
    for (name, value) in [("a", "10"), ("b", "5")] {
        let series = json!({"metricName": "queue", "value": value});
        api.put(&format!("/apis/external.metrics.k8s.io/v1beta1/namespaces/n/queue/{name}"), series);
    }
    api.until("one for each 5", |api| replicas(api, 3)).await;
}

const QUEUE: &str = "/apis/external.metrics.k8s.io/v1beta1/namespaces/n/queue/a";

fn series(value: &str) -> Value {
    json!({"metricName": "queue", "value": value})
}

fn replicas(api: &Scripted, count: i32) -> Option<()> {
    (api.get(DEPLOYMENT)?["spec"]["replicas"] == count).then_some(())
}

/// One pod, and an autoscaler that takes it when the queue is empty, and at once.
async fn zero_when_idle(api: &Scripted, value: &str) {
    api.put(QUEUE, series(value));
    api.put(DEPLOYMENT, deployment("web", 1));
    pods(api, 1, "10m").await;
    let metric = json!({"type": "External", "external": {"metric": {"name": "queue"},
        "target": {"type": "AverageValue", "averageValue": "5"}}});
    let all = json!({"type": "Percent", "value": 1000, "periodSeconds": 15});
    // A share of nothing is nothing, for who does not know that there were some.
    let some = json!({"type": "Pods", "value": 4, "periodSeconds": 15});
    let rules = json!({"stabilizationWindowSeconds": 0, "policies": [all, some]});
    let behavior = json!({"scaleDown": rules, "scaleUp": rules});
    api.put(SCALER, scaler(json!({"minReplicas": 0, "metrics": [metric], "behavior": behavior})));
}

#[tokio::test]
async fn autoscaler_that_takes_the_last_one_makes_one_again_when_it_is_asked_for() {
    let world = world();
    let api = &world.api;
    zero_when_idle(api, "0").await;
    let (status, message, _) = until(api, SCALER, "ScaledToZero", "ScaledToZero").await;
    assert_eq!((&*status, &*message), ("True", "the HPA controller scaled the workload to zero"));
    api.until("there is none", |api| replicas(api, 0)).await;
    api.put(QUEUE, series("3"));
    api.until("there is one", |api| replicas(api, 1)).await;
    let (status, ..) = until(api, SCALER, "ScaledToZero", "NotScaledToZero").await;
    assert_eq!(status, "False");
}

#[tokio::test]
async fn autoscaler_scales_nothing_that_is_in_no_namespace_nor_elsewhere_by_its_name() {
    let world = world();
    let api = &world.api;
    let target = |kind: &str, version: &str, name: &str| {
        scaler(json!({"scaleTargetRef": {"apiVersion": version, "kind": kind, "name": name}}))
    };
    api.put("/api/v1/nodes/boat", json!({"spec": {"replicas": 1}}));
    api.put(SCALER, target("Node", "v1", "boat"));
    let (_, why, _) = until(api, SCALER, "AbleToScale", "FailedGetScale").await;
    assert!(why.ends_with("the server could not find the requested resource"), "{why}");
    assert!(api.requests(&Method::GET, "/nodes/boat/scale").is_empty(), "it is not asked for");
    // A name stays a name.
    let other = "/apis/autoscaling/v2/namespaces/n/horizontalpodautoscalers/other";
    api.put(other, target("Deployment", "apps/v1", "x?y"));
    until(api, other, "AbleToScale", "FailedGetScale").await;
    let asked = api.requests(&Method::GET, "/deployments/x");
    assert!(!asked.is_empty() && asked.iter().all(|seen| seen.path.ends_with("/x%3Fy/scale")), "{asked:?}");
}

#[tokio::test]
async fn autoscaler_that_ends_just_after_it_took_the_last_one_is_followed_by_one_that_knows_it() {
    let first = world();
    let api = &first.api;
    // Nothing is written any more once the last one is taken.
    let status = "/horizontalpodautoscalers/web/status";
    api.meanwhile(Method::PUT, "/deployments/web/scale", move |api| {
        api.always(Method::PATCH, status, Answer::Refused(503, "ServiceUnavailable"));
    });
    zero_when_idle(api, "0").await;
    api.until("there is none", |api| replicas(api, 0)).await;
    first.shutdown.cancel();
    first.running.await.unwrap();
    api.relent();
    let second = start(api, 600_000);
    api.put(QUEUE, series("3"));
    second.api.until("there is one", |api| replicas(api, 1)).await;
}

#[tokio::test]
async fn autoscaler_that_is_shown_an_old_status_does_not_forget_whose_zero_it_is() {
    let world = world();
    let api = &world.api;
    zero_when_idle(api, "4").await;
    until(api, SCALER, "ScalingActive", "ValidMetricFound").await;
    api.hold("horizontalpodautoscalers");
    api.put(QUEUE, series("0"));
    api.until("there is none", |api| replicas(api, 0)).await;
    let asked = |api: &Scripted| api.requests(&Method::GET, "/deployments/web/scale").len();
    let before = asked(api);
    api.until("it was looked at twice more", |api| (asked(api) >= before + 2).then_some(())).await;
    assert_eq!(says(&api.get(SCALER).unwrap(), "ScaledToZero").0, "True");
    api.put(QUEUE, series("3"));
    api.until("there is one", |api| replicas(api, 1)).await;
}

#[tokio::test]
async fn autoscaler_lets_a_zero_be_that_comes_after_somebody_made_some() {
    let world = world();
    let api = &world.api;
    zero_when_idle(api, "0").await;
    api.until("there is none", |api| replicas(api, 0)).await;
    // Somebody makes one, while nobody knows whether one is asked for: it is left as it is.
    api.remove(QUEUE);
    until(api, SCALER, "ScalingActive", "FailedGetExternalMetric").await;
    api.merge(DEPLOYMENT, &json!({"spec": {"replicas": 1}, "metadata": {"generation": 9}}));
    until(api, SCALER, "ScaledToZero", "NotScaledToZero").await;
    api.merge(DEPLOYMENT, &json!({"spec": {"replicas": 0}, "metadata": {"generation": 10}}));
    api.put(QUEUE, series("3"));
    until(api, SCALER, "ScalingActive", "ScalingDisabled").await;
    replicas(api, 0).expect("it was switched off, and stays so");
}
