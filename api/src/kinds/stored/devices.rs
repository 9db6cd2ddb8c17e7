//! Devices, and claims on them.

use serde_json::{Value, json};

use super::show::Show::{Age, Name, Of, Text};
use super::{BLANK, Kind, Stored, row};
use crate::kinds::value::{Read, child, default_when_zero, items_mut};
use crate::kinds::{AGE, Cell, NAME, column};

const NOT_ALLOCATED: &str = "no device is allocated by it yet";

pub(super) static ROWS: &[Kind] = &[
    row!(cluster "resource.k8s.io" "io.k8s.api.resource.v1" "DeviceClass" "deviceclasses" "deviceclass",
        [NAME => Name, AGE => Age],
        Stored::inert(NOT_ALLOCATED).counted()),
    row!(cluster "resource.k8s.io" "io.k8s.api.resource.v1" "DeviceTaintRule" "devicetaintrules" "devicetaintrule",
        [
            NAME => Name,
            column("Key", "string") => Text("spec.taint.key", ""),
            column("Value", "string") => Text("spec.taint.value", ""),
            column("Effect", "string") => Text("spec.taint.effect", ""),
            column("TimeAdded", "string") => Of(|object| Cell::Age(object["spec"]["taint"]["timeAdded"].time())),
            AGE => Age,
        ],
        Stored::inert("no controller acts on it yet").counted().create_by(taint_time)
            .requires(&["spec.taint.key", "spec.taint.effect"]),
        has_status: true),
    row!(namespaced "resource.k8s.io" "io.k8s.api.resource.v1" "ResourceClaim" "resourceclaims" "resourceclaim",
        [NAME => Name, column("State", "string") => Of(claim_state), AGE => Age],
        Stored::inert(NOT_ALLOCATED).default_by(|object| requests(child(object, "spec"))).fixes(&["spec"]),
        has_status: true),
    row!(namespaced "resource.k8s.io" "io.k8s.api.resource.v1" "ResourceClaimTemplate" "resourceclaimtemplates"
        "resourceclaimtemplate",
        [NAME => Name, AGE => Age],
        Stored::inert(NOT_ALLOCATED).default_by(|object| requests(child(child(object, "spec"), "spec"))).fixes(&["spec"])),
    row!(cluster "resource.k8s.io" "io.k8s.api.resource.v1" "ResourceSlice" "resourceslices" "resourceslice",
        [
            NAME => Name,
            column("Node", "string") => Text("spec.nodeName", ""),
            column("Driver", "string") => Text("spec.driver", ""),
            column("Pool", "string") => Text("spec.pool.name", ""),
            AGE => Age,
        ],
        Stored::inert(NOT_ALLOCATED).counted().requires(&["spec.driver", "spec.pool.name"])
            .fixes(&["spec.driver", "spec.pool.name", "spec.nodeName"]),
        selectable: &["spec.driver", "spec.nodeName"]),
];

/// Requests of a claim are for one device, unless they say otherwise.
fn requests(claim: &mut Value) {
    if !claim["devices"].is_object() {
        return;
    }
    for request in items_mut(child(claim, "devices"), "requests") {
        if request["exactly"].is_object() {
            one(child(request, "exactly"));
        }
        items_mut(request, "firstAvailable").iter_mut().for_each(one);
    }
}

fn one(request: &mut Value) {
    default_when_zero(request, "allocationMode", "ExactCount");
    if request["allocationMode"] == "ExactCount" {
        default_when_zero(request, "count", 1);
    }
}

/// A taint is there since the rule is, unless the client knows better.
fn taint_time(object: &mut Value) {
    let made = object["metadata"]["creationTimestamp"].clone();
    let taint = child(child(object, "spec"), "taint");
    if taint["timeAdded"].is_null() {
        taint["timeAdded"] = json!(made);
    }
}

fn claim_state(object: &Value) -> Cell {
    let (deleted, status) = (object["metadata"]["deletionTimestamp"].is_set(), &object["status"]);
    let state = match (deleted, status["allocation"].is_set(), !status["reservedFor"].is_empty()) {
        (true, false, _) => "deleted",
        (false, false, _) => "pending",
        (true, true, false) => "deleted,allocated",
        (true, true, true) => "deleted,allocated,reserved",
        (false, true, false) => "allocated",
        (false, true, true) => "allocated,reserved",
    };
    state.into()
}
