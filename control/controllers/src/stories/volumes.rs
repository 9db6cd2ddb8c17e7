//! Volumes and their claims against an API that goes wrong.

use super::*;

const CLAIMS: &str = "/api/v1/namespaces/n/persistentvolumeclaims";
const VOLUMES: &str = "/api/v1/persistentvolumes";

fn world_with_class() -> World {
    let api = Scripted::new();
    let class = json!({"provisioner": "coracle.dev/local", "reclaimPolicy": "Delete", "volumeBindingMode": "WaitForFirstConsumer"});
    api.put("/apis/storage.k8s.io/v1/storageclasses/local", class);
    api.put("/api/v1/nodes/one", node("True"));
    start(&api, 600_000)
}

fn claim(name: &str, selected: &str) -> Value {
    let annotations =
        if selected.is_empty() { json!({}) } else { json!({"volume.kubernetes.io/selected-node": selected}) };
    json!({
        "metadata": {"name": name, "annotations": annotations, "finalizers": ["kubernetes.io/pvc-protection"]},
        "spec": {"storageClassName": "local", "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
        "status": {"phase": "Pending"},
    })
}

fn phase(api: &Scripted, path: &str) -> String {
    api.get(path).unwrap_or_default()["status"]["phase"].as_str().unwrap_or_default().to_owned()
}

/// The claim's volume, when both are each other's.
async fn bound(api: &Scripted, name: &str) -> String {
    let at = format!("{CLAIMS}/{name}");
    api.until("claim and volume are each other's", |api| {
        let volume = api.get(&at)?["spec"]["volumeName"].as_str()?.to_owned();
        let path = format!("{VOLUMES}/{volume}");
        (phase(api, &at) == "Bound" && phase(api, &path) == "Bound").then_some(path)
    })
    .await
}

fn finalizers(api: &Scripted, path: &str) -> Vec<String> {
    let object = api.get(path).unwrap_or_default();
    let names = object["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
    names.iter().filter_map(|name| name.as_str().map(str::to_owned)).collect()
}

#[tokio::test]
async fn a_volume_is_made_for_a_claim_whatever_answers_are_lost_and_goes_after_it() {
    let world = world_with_class();
    let api = &world.api;
    api.next(Method::POST, "/persistentvolumes", Answer::DoneButUnknown);
    api.next(Method::PATCH, "/persistentvolumeclaims/data", Answer::Refused(409, "Conflict"));
    let at = format!("{CLAIMS}/data");
    api.put(&at, claim("data", ""));
    let waits = |_: &Scripted| Some(world.events("WaitForFirstConsumer")).filter(|events| !events.is_empty());
    api.until("it waits for a consumer", waits).await;
    api.merge(&at, &json!({"metadata": {"annotations": {"volume.kubernetes.io/selected-node": "one"}}}));
    let volume = bound(api, "data").await;
    assert_eq!(api.list(VOLUMES).len(), 1);
    let status = api.get(&at).unwrap()["status"].clone();
    assert_eq!((&status["capacity"]["storage"], &status["accessModes"]), (&json!("1Gi"), &json!(["ReadWriteOnce"])));
    // It grows when the claim does.
    api.merge(&at, &json!({"spec": {"resources": {"requests": {"storage": "2Gi"}}}}));
    let has = |api: &Scripted| (api.get(&at)?["status"]["capacity"]["storage"] == "2Gi").then_some(());
    api.until("it has grown", has).await;
    assert_eq!(api.get(&volume).unwrap()["spec"]["capacity"]["storage"], "2Gi");
    // While a pod uses the claim it stays, although it is deleted; the list that says so comes from the API.
    api.hold("pods");
    let volumes = json!([{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]);
    api.put("/api/v1/namespaces/n/pods/p", json!({"spec": {"nodeName": "one", "volumes": volumes, "containers": []}}));
    api.merge(&at, &json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}));
    let asked = |api: &Scripted| (!api.requests(&Method::GET, "/namespaces/n/pods").is_empty()).then_some(());
    api.until("the API is asked", asked).await;
    api.release("pods");
    world.all_collected("after-the-claim").await;
    assert!(api.get(&at).is_some());
    api.remove("/api/v1/namespaces/n/pods/p");
    api.until("the claim goes", |api| api.get(&at).is_none().then_some(())).await;
    // Its volume is deleted, and waits for its node.
    let going = |api: &Scripted| (!api.get(&volume)?["metadata"]["deletionTimestamp"].is_null()).then_some(());
    api.until("the volume goes", going).await;
    assert_eq!(
        (phase(api, &volume).as_str(), finalizers(api, &volume)),
        ("Released", vec!["coracle.dev/local-volume".to_owned()])
    );
    world.all_collected("after-the-volume").await;
    assert!(api.get(&volume).is_some());
    // A node that is gone says nothing any more; it may come back under its name, so that it is looked for again before that.
    let asked = |api: &Scripted| api.requests(&Method::GET, "/api/v1/nodes/one").len();
    let before = asked(api);
    api.remove("/api/v1/nodes/one");
    api.until("nobody waits for it", |api| api.get(&volume).is_none().then_some(())).await;
    assert!(asked(api) >= before + 2, "it goes no earlier");
}

#[tokio::test]
async fn a_claim_that_is_not_in_the_cache_is_not_gone() {
    let world = world_with_class();
    let api = &world.api;
    api.put(&format!("{CLAIMS}/data"), claim("data", "one"));
    let volume = bound(api, "data").await;
    // The watch of claims is late: one that took the name of another is not known yet.
    api.hold("persistentvolumeclaims");
    api.remove(&format!("{CLAIMS}/data"));
    api.put(&format!("{CLAIMS}/data"), claim("data", ""));
    let uid = world.uid(&format!("{CLAIMS}/data"));
    api.merge(&volume, &json!({"spec": {"claimRef": {"uid": uid}}}));
    api.until("the API is asked", |api| {
        (!api.requests(&Method::GET, "/persistentvolumeclaims/data").is_empty()).then_some(())
    })
    .await;
    world.all_collected("s").await;
    assert_eq!(phase(api, &volume), "Bound");
    assert!(api.get(&volume).is_some_and(|volume| volume["metadata"]["deletionTimestamp"].is_null()));
    api.release("persistentvolumeclaims");
}

#[tokio::test]
async fn what_is_retained_stays_and_who_is_selected_and_gone_is_not_waited_for() {
    let world = world_with_class();
    let api = &world.api;
    api.put(&format!("{CLAIMS}/data"), claim("data", "one"));
    let volume = bound(api, "data").await;
    api.merge(&volume, &json!({"spec": {"persistentVolumeReclaimPolicy": "Retain"}}));
    api.merge(&format!("{CLAIMS}/data"), &json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}));
    api.until("it is released", |api| (phase(api, &volume) == "Released").then_some(())).await;
    world.all_collected("s").await;
    assert!(api.get(&volume).is_some_and(|volume| volume["metadata"]["deletionTimestamp"].is_null()));
    api.put(&format!("{CLAIMS}/other"), claim("other", "gone"));
    let free = |api: &Scripted| {
        let claim = api.get(&format!("{CLAIMS}/other"))?;
        claim["metadata"]["annotations"]["volume.kubernetes.io/selected-node"].is_null().then_some(())
    };
    api.until("another node may be selected", free).await;
    assert_eq!(api.list(VOLUMES).len(), 1);
}

#[tokio::test]
async fn a_claim_gets_a_free_volume_of_its_class_whichever_comes_first() {
    let world = world_with_class();
    let api = &world.api;
    for (class, early) in [("hand", true), ("hand", false), ("", true), ("", false)] {
        let name = format!("c{}{}", class.len(), u8::from(early));
        let volume = json!({"spec": {"storageClassName": class, "accessModes": ["ReadWriteOnce"],
            "capacity": {"storage": "1Gi"}}, "status": {"phase": "Available"}});
        let mut claim = claim(&name, "");
        claim["spec"]["storageClassName"] = json!(class);
        let at = (format!("{VOLUMES}/{name}"), format!("{CLAIMS}/{name}"));
        let all = [(&at.0, volume), (&at.1, claim)];
        let order = if early { [0, 1] } else { [1, 0] };
        for index in order {
            let (path, object) = &all[index];
            api.put(path, object.clone());
            world.all_collected(&format!("{name}-{index}")).await;
        }
        assert_eq!(bound(api, &name).await, at.0, "of class {class:?}, the volume first: {early}");
    }
}

#[tokio::test]
async fn a_pods_own_volume_has_a_claim_that_is_its() {
    let world = world_with_class();
    let api = &world.api;
    let template = json!({"metadata": {"labels": {"x": "y"}}, "spec": claim("", "")["spec"]});
    let pod = |volume: &str| {
        let volumes = json!([{"name": volume, "ephemeral": {"volumeClaimTemplate": template}}]);
        json!({"spec": {"volumes": volumes, "containers": []}})
    };
    api.put(&format!("{CLAIMS}/q-taken"), claim("q-taken", ""));
    api.put("/api/v1/namespaces/n/pods/p", pod("scratch"));
    api.put("/api/v1/namespaces/n/pods/q", pod("taken"));
    let made = api.until("its claim is made", |api| api.get(&format!("{CLAIMS}/p-scratch"))).await;
    let owner = &made["metadata"]["ownerReferences"][0];
    assert_eq!((&owner["kind"], &owner["uid"]), (&json!("Pod"), &world.uid("/api/v1/namespaces/n/pods/p")));
    assert_eq!((&made["metadata"]["labels"], &made["spec"]), (&json!({"x": "y"}), &template["spec"]));
    let told = |_: &Scripted| Some(world.events("FailedBinding")).filter(|events| !events.is_empty());
    let told = api.until("another's is not taken", told).await;
    let words = "ephemeral volume taken: PVC n/q-taken was not created for pod n/q (pod is not owner)";
    assert!(told[0].ends_with(words), "{told:?}");
}

#[tokio::test]
async fn what_is_refused_is_told_of_the_claim_or_volume_and_tried_again() {
    let world = world_with_class();
    let api = &world.api;
    let told = async |reason: &str, words: &str| {
        let found = |_: &Scripted| world.events(reason).into_iter().find(|event| event.contains(words));
        api.until(&format!("{reason} is told"), found).await
    };
    api.next(Method::POST, "/persistentvolumes", Answer::Refused(403, "Forbidden"));
    api.put(&format!("{CLAIMS}/data"), claim("data", "one"));
    told("ProvisioningFailed", "create a volume: ").await;
    let volume = bound(api, "data").await;
    api.next(Method::PATCH, &volume, Answer::Refused(422, "Invalid"));
    api.merge(&format!("{CLAIMS}/data"), &json!({"spec": {"resources": {"requests": {"storage": "2Gi"}}}}));
    told("VolumeResizeFailed", "let a volume grow: ").await;
    let has = |api: &Scripted| (api.get(&volume)?["spec"]["capacity"]["storage"] == "2Gi").then_some(());
    api.until("it has grown", has).await;
    api.next(Method::DELETE, &volume, Answer::Refused(403, "Forbidden"));
    api.merge(&format!("{CLAIMS}/data"), &json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}));
    told("VolumeFailedDelete", "delete a volume: ").await;
    let going = |api: &Scripted| (!api.get(&volume)?["metadata"]["deletionTimestamp"].is_null()).then_some(());
    api.until("the volume goes", going).await;
    // Whoever was faster is nothing to tell of.
    api.next(Method::POST, "/persistentvolumes", Answer::Refused(409, "AlreadyExists"));
    let before = world.events("ProvisioningFailed").len();
    api.put(&format!("{CLAIMS}/more"), claim("more", "one"));
    bound(api, "more").await;
    assert_eq!(world.events("ProvisioningFailed").len(), before);
    assert!(api.is_done());
}
