//! What becomes of claims and volumes, as tables.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::plan::{self, Observed, Reclaim, Step, VolumeStep};

fn with(mut object: Value, more: &Value) -> Value {
    for (field, value) in more.as_object().into_iter().flatten() {
        for (name, value) in value.as_object().into_iter().flatten() {
            object[field][name] = value.clone();
        }
    }
    object
}

fn claim(more: &Value) -> PersistentVolumeClaim {
    let claim = json!({
        "metadata": {"name": "c", "namespace": "n", "uid": "c"},
        "spec": {"storageClassName": "local", "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
        "status": {"phase": "Pending"},
    });
    serde_json::from_value(with(claim, more)).unwrap()
}

fn volume(name: &str, more: &Value) -> Arc<PersistentVolume> {
    let volume = json!({
        "metadata": {"name": name, "uid": name},
        "spec": {
            "storageClassName": "local", "accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"},
            "local": {"path": format!("volumes/{name}")}, "persistentVolumeReclaimPolicy": "Delete",
            "nodeAffinity": {"required": {"nodeSelectorTerms": [
                {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": ["a"]}]},
            ]}},
        },
        "status": {"phase": "Available"},
    });
    Arc::new(serde_json::from_value(with(volume, more)).unwrap())
}

fn class(more: Value) -> StorageClass {
    let mut class = json!({
        "metadata": {"name": "local"}, "provisioner": "coracle.dev/local", "reclaimPolicy": "Delete",
        "volumeBindingMode": "WaitForFirstConsumer",
    });
    for (name, value) in more.as_object().into_iter().flatten() {
        class[name] = value.clone();
    }
    serde_json::from_value(class).unwrap()
}

struct World {
    class: Option<StorageClass>,
    volumes: Vec<Arc<PersistentVolume>>,
    waiting: Vec<String>,
    has_node: bool,
    default_class: Option<&'static str>,
}

impl World {
    fn new(class: StorageClass, volumes: &[Arc<PersistentVolume>]) -> Self {
        let (volumes, class) = (volumes.to_vec(), Some(class));
        Self { class, volumes, waiting: Vec::new(), has_node: true, default_class: None }
    }

    fn step(&self, claim: &PersistentVolumeClaim) -> Step {
        let named = plan::named_volume(claim);
        let observed = Observed {
            claim,
            volume: self.volumes.iter().find(|volume| volume.metadata.name.as_deref() == named),
            class: self.class.as_ref(),
            default_class: self.default_class,
            has_selected_node: self.has_node,
            waiting: &self.waiting,
        };
        plan::claim(&observed, &self.volumes)
    }

    /// In short.
    fn shown(&self, claim: &PersistentVolumeClaim) -> String {
        match self.step(claim) {
            Step::Nothing => "nothing".to_owned(),
            Step::Pending(None) => "pending".to_owned(),
            Step::Pending(Some(told)) => format!("{}: {}", told.reason, told.message),
            Step::Lost(told) => format!("lost: {}", told.reason),
            Step::Bind(volume) => format!("bind {}", volume.metadata.name.clone().unwrap_or_default()),
            Step::Provision(volume) => format!("provision {}", volume.metadata.name.unwrap_or_default()),
            Step::AskFor(provisioner) => format!("ask {provisioner}"),
            Step::Classify(class) => format!("classify {class}"),
            Step::Deselect => "deselect".to_owned(),
            Step::Grow(volume) => format!("grow {}", volume.metadata.name.clone().unwrap_or_default()),
        }
    }
}

fn selected() -> Value {
    json!({"metadata": {"annotations": {"volume.kubernetes.io/selected-node": "a"}}})
}

fn kept_for(uid: Value) -> Value {
    json!({"spec": {"claimRef": {"namespace": "n", "name": "c", "uid": uid}}})
}

#[test]
fn a_claim_waits_for_its_consumer_and_is_provided_for_on_its_node() {
    let mut world = World::new(class(json!({})), &[volume("free", &json!({}))]);
    let words = "WaitForFirstConsumer: waiting for first consumer to be created before binding";
    assert_eq!(world.shown(&claim(&json!({}))), words, "not even what is free is bound");
    world.waiting = vec!["p".to_owned(), "q".to_owned()];
    assert_eq!(world.shown(&claim(&json!({}))), "WaitForPodScheduled: waiting for pods p,q to be scheduled");
    world.volumes.clear();
    let Step::Provision(made) = world.step(&claim(&selected())) else { panic!("it is provided for") };
    let made = serde_json::to_value(*made).unwrap();
    assert_eq!(made["metadata"]["name"], "pvc-c");
    assert_eq!(made["metadata"]["labels"], json!({"coracle.dev/volume-node": "a"}));
    assert_eq!(made["metadata"]["finalizers"], json!(["coracle.dev/local-volume"]));
    assert_eq!(made["metadata"]["annotations"], json!({"pv.kubernetes.io/provisioned-by": "coracle.dev/local"}));
    assert_eq!(
        (&made["spec"]["local"]["path"], &made["spec"]["claimRef"]["uid"]),
        (&json!("volumes/pvc-c"), &json!("c"))
    );
    assert_eq!(made["spec"]["persistentVolumeReclaimPolicy"], "Delete");
    let pinned = serde_json::from_value(made).unwrap();
    assert_eq!(plan::pinned(&pinned), Some("a"));
    assert!(plan::completion(&pinned).is_none());
    world.has_node = false;
    assert_eq!(world.shown(&claim(&selected())), "deselect");
}

#[test]
fn what_a_claim_may_have_is_bound_and_the_smallest_first() {
    let mut all = vec![
        volume("large", &json!({"spec": {"capacity": {"storage": "3Gi"}}})),
        volume("enough", &json!({"spec": {"capacity": {"storage": "2Gi"}}})),
        volume("many", &json!({"spec": {"accessModes": ["ReadWriteOnce", "ReadOnlyMany"]}})),
        volume("small", &json!({"spec": {"capacity": {"storage": "1Mi"}}})),
        volume("labelled", &json!({"metadata": {"labels": {"x": "y"}}, "spec": {"capacity": {"storage": "9Gi"}}})),
    ];
    let now = || class(json!({"volumeBindingMode": "Immediate", "provisioner": "kubernetes.io/no-provisioner"}));
    let world = World::new(now(), &all);
    assert_eq!(world.shown(&claim(&json!({}))), "bind enough", "modes before sizes");
    let selector = json!({"spec": {"selector": {"matchLabels": {"x": "y"}}}});
    assert_eq!(world.shown(&claim(&selector)), "bind labelled");
    let none = World::new(now(), &all[3..4]);
    let words = "ProvisioningFailed: no volume plugin matched name: kubernetes.io/no-provisioner";
    assert_eq!(none.shown(&claim(&json!({}))), words);
    // What is kept for it comes first, also while it waits.
    all.push(volume("kept", &kept_for(json!("c"))));
    assert_eq!(World::new(now(), &all).shown(&claim(&json!({}))), "bind kept");
    assert_eq!(World::new(class(json!({})), &all).shown(&claim(&json!({}))), "bind kept");
    // One that names its volume.
    let named = |name: &str| claim(&json!({"spec": {"volumeName": name}}));
    assert_eq!(World::new(now(), &all).shown(&named("large")), "bind large");
    assert_eq!(World::new(now(), &all).shown(&named("none")), "pending");
    let words = "VolumeMismatch: Cannot bind to requested volume \"small\": requested PV is too small";
    assert_eq!(World::new(now(), &all).shown(&named("small")), words);
    let others = [volume("v", &kept_for(json!("other")))];
    let words = "FailedBinding: volume \"v\" already bound to a different claim.";
    assert_eq!(World::new(now(), &others).shown(&named("v")), words);
}

#[test]
fn a_claim_that_cannot_have_a_volume_says_why() {
    let ours = |more: Value| class(more);
    for (class, more, expected) in [
        (ours(json!({"volumeBindingMode": "Immediate"})), json!({}), "the class needs volumeBindingMode WaitForFirst"),
        (ours(json!({"parameters": {"type": "ssd"}})), selected(), "the class has a parameter \"type\""),
        (ours(json!({"mountOptions": ["ro"]})), selected(), "the class has mountOptions"),
        (ours(json!({})), with(selected(), &json!({"spec": {"volumeMode": "Block"}})), "no block devices"),
        (
            ours(json!({})),
            with(selected(), &json!({"spec": {"accessModes": ["ReadWriteMany"]}})),
            "a volume is on one node: ReadWriteMany cannot be had",
        ),
        (
            ours(json!({})),
            with(selected(), &json!({"spec": {"dataSource": {"kind": "PersistentVolumeClaim", "name": "x"}}})),
            "a new volume is empty",
        ),
        (ours(json!({})), with(selected(), &json!({"spec": {"selector": {}}})), "a claim with a selector"),
        (
            ours(json!({})),
            with(selected(), &json!({"spec": {"volumeAttributesClassName": "gold"}})),
            "volumes have no attributes",
        ),
    ] {
        let shown = World::new(class, &[]).shown(&claim(&more));
        assert!(shown.starts_with("ProvisioningFailed: coracle.dev/local: ") && shown.contains(expected), "{shown}");
    }
    let mut world = World::new(class(json!({"provisioner": "example.com/x", "volumeBindingMode": "Immediate"})), &[]);
    assert_eq!(world.shown(&claim(&json!({}))), "ask example.com/x");
    world.class = None;
    assert_eq!(world.shown(&claim(&json!({}))), "ProvisioningFailed: storageclass.storage.k8s.io \"local\" not found");
    let no_class = |class: Value| claim(&json!({"spec": {"storageClassName": class}}));
    let words = "FailedBinding: no persistent volumes available for this claim and no storage class is set";
    assert_eq!(world.shown(&no_class(json!(""))), words);
    assert_eq!(world.shown(&no_class(Value::Null)), words);
    world.default_class = Some("local");
    assert_eq!(world.shown(&no_class(Value::Null)), "classify local");
    assert_eq!(world.shown(&no_class(json!(""))), words, "it says that it wants none");
    let going = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}});
    assert_eq!(world.shown(&claim(&going)), "nothing");
}

#[test]
fn a_claim_that_is_bound_stays_so_grows_or_is_lost() {
    let bound = |more: Value| {
        let base = json!({
            "metadata": {"annotations": {"pv.kubernetes.io/bind-completed": "yes"}}, "spec": {"volumeName": "v"},
            "status": {"phase": "Bound", "capacity": {"storage": "1Gi"}},
        });
        claim(&with(base, &more))
    };
    let world = |volumes: &[Arc<PersistentVolume>]| World::new(class(json!({})), volumes);
    let v = volume("v", &kept_for(json!("c")));
    assert_eq!(world(std::slice::from_ref(&v)).shown(&bound(json!({}))), "nothing");
    assert_eq!(
        world(std::slice::from_ref(&v)).shown(&bound(json!({"status": {"capacity": null}}))),
        "bind v",
        "it says so first"
    );
    let larger = bound(json!({"spec": {"resources": {"requests": {"storage": "2Gi"}}}}));
    assert_eq!(world(&[v]).shown(&larger), "grow v");
    let foreign = with(kept_for(json!("c")), &json!({"spec": {"local": null, "nfs": {"server": "s", "path": "/"}}}));
    assert_eq!(world(&[volume("v", &foreign)]).shown(&larger), "nothing");
    assert_eq!(world(&[]).shown(&bound(json!({}))), "lost: ClaimLost");
    assert_eq!(world(&[volume("v", &kept_for(json!("other")))]).shown(&bound(json!({}))), "lost: ClaimMisbound");
    assert_eq!(world(&[volume("v", &json!({}))]).shown(&bound(json!({}))), "bind v", "it was let go by mistake");
}

#[test]
fn a_volume_is_in_the_phase_that_its_claim_gives_it() {
    let named = |name: &str| claim(&json!({"spec": {"volumeName": name}}));
    let made = json!({"metadata": {"annotations": {"pv.kubernetes.io/provisioned-by": "coracle.dev/local"}}});
    let kept = kept_for(json!("c"));
    for (what, claim, expected) in [
        (json!({}), None, VolumeStep::Nothing),
        (json!({"status": {"phase": "Pending"}}), None, VolumeStep::Phase("Available")),
        (kept_for(Value::Null), None, VolumeStep::Nothing),
        (kept_for(Value::Null), Some(claim(&json!({}))), VolumeStep::LeaveToClaim),
        (kept.clone(), None, VolumeStep::Release),
        (kept.clone(), Some(claim(&json!({}))), VolumeStep::LeaveToClaim),
        (kept.clone(), Some(named("v")), VolumeStep::Phase("Bound")),
        (kept.clone(), Some(named("w")), VolumeStep::Unbind),
        (with(kept, &made), Some(named("w")), VolumeStep::Release),
    ] {
        assert_eq!(plan::volume(&volume("v", &what), claim.as_ref()), expected, "{what}");
    }
}

#[test]
fn a_volume_that_is_released_goes_as_its_policy_says() {
    let policy = |policy: &str| json!({"spec": {"persistentVolumeReclaimPolicy": policy}});
    let foreign = json!({"spec": {"local": null, "nfs": {"server": "s", "path": "/"}}});
    let by_other = json!({"metadata": {"annotations": {"pv.kubernetes.io/provisioned-by": "x"}}});
    let reclaim = |more: &Value| match plan::reclaim(&volume("v", more)) {
        Reclaim::Nothing => "nothing".to_owned(),
        Reclaim::Delete => "delete".to_owned(),
        Reclaim::Fail(told) => format!("{}: {}", told.reason, told.message),
    };
    assert_eq!((reclaim(&policy("Delete")), reclaim(&policy("Retain"))), ("delete".to_owned(), "nothing".to_owned()));
    assert_eq!(reclaim(&policy("Recycle")), "VolumeFailedRecycle: No recycler plugin found for the volume!");
    let words =
        "VolumeFailedDelete: error getting deleter volume plugin for volume \"v\": no deletable volume plugin matched";
    assert_eq!(reclaim(&foreign), words);
    assert_eq!(reclaim(&with(foreign, &by_other)), "nothing");
}

#[test]
fn a_volume_that_somebody_lays_out_by_hand_is_known_to_its_node() {
    let patch = plan::completion(&volume("v", &json!({"metadata": {"finalizers": ["x/y"]}}))).unwrap();
    let expected =
        json!({"labels": {"coracle.dev/volume-node": "a"}, "finalizers": ["x/y", "coracle.dev/local-volume"]});
    assert_eq!(patch, expected);
    for more in [
        json!({"spec": {"local": {"path": "/mnt/disk"}}}),
        json!({"spec": {"nodeAffinity": null}}),
        json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}),
    ] {
        assert_eq!(plan::completion(&volume("v", &more)), None, "{more}");
    }
}

#[test]
fn of_thousands_of_volumes_a_claim_looks_at_those_of_its_class() {
    use super::{Index, index_claim, index_volume};
    let kept = json!({"spec": {"claimRef": {"namespace": "n", "name": "c"}}});
    let other = json!({"metadata": {"annotations": {"volume.beta.kubernetes.io/storage-class": "noted"}}});
    for (volume, expected) in [
        (volume("free", &json!({})), (Index::Unbound, "local")),
        (volume("noted", &other), (Index::Unbound, "noted")),
        (volume("none", &json!({"spec": {"storageClassName": null}})), (Index::Unbound, "")),
        (volume("kept", &kept), (Index::Claim, "n/c")),
    ] {
        let mut found = Vec::new();
        index_volume(&volume, &mut |index, entry| found.push((index, entry.to_owned())));
        assert_eq!(found, [(expected.0, expected.1.to_owned())]);
    }
    for (more, expected) in [
        (json!({}), Some("local")),
        (json!({"spec": {"storageClassName": null}}), Some("")),
        (json!({"spec": {"volumeName": "v"}}), None),
    ] {
        let mut found = Vec::new();
        index_claim(&claim(&more), &mut |index, entry| found.push((index, entry.to_owned())));
        let expected: Vec<_> = expected.into_iter().map(|class| (Index::Unbound, class.to_owned())).collect();
        assert_eq!(found, expected);
    }
}

#[test]
fn a_node_is_waited_for_a_while_after_it_went_whoever_looks() {
    let (missed, begun) = (super::Missed::default(), Instant::now());
    let quarantine = super::QUARANTINE;
    assert_eq!(missed.rest("one", begun), quarantine, "nobody was looked for before");
    assert_eq!(missed.rest("one", begun + quarantine / 2), quarantine / 2, "another volume does not begin it anew");
    assert_eq!(missed.rest("two", begun + quarantine / 2), quarantine);
    assert_eq!(missed.rest("one", begun + quarantine * 2), Duration::ZERO);
    // One that was back in between has all of it again, whatever was seen of that.
    missed.is_back("one");
    assert_eq!(missed.rest("one", begun + quarantine * 2), quarantine);
    missed.went("one", begun + quarantine * 4);
    assert_eq!(missed.rest("one", begun + quarantine * 4), quarantine);
    // However many come and go, under whatever names.
    let now = begun + quarantine * 5;
    (0..super::MISSED_MAX * 3).for_each(|index| missed.went(&format!("node{index}"), now));
    assert!(missed.0.lock().len() <= super::MISSED_MAX);
    missed.went("last", now);
    assert_eq!(missed.rest("last", now + quarantine / 4), quarantine - quarantine / 4);
}
