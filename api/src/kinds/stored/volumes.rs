//! Volumes, and what provides them.

use serde_json::{Value, json};

use super::show::Show::{Age, Any, Count, Flag, Joined, Made, Name, Of, Text};
use super::{BLANK, Kind, Stored, row};
use crate::kinds::value::{Read, child, default_to, default_when_zero, fields, join, or};
use crate::kinds::{AGE, Cell, Column, NAME, column, wide};

const NO_VOLUMES: &str = "no volume is provisioned, bound or attached by it yet";
const MADE: Column = column("Created At", "date");

pub(super) static ROWS: &[Kind] = &[
    row!(namespaced "" "io.k8s.api.core.v1" "PersistentVolumeClaim" "persistentvolumeclaims" "persistentvolumeclaim",
        [
            NAME => Name,
            column("Status", "string") => Of(phase),
            column("Volume", "string") => Text("spec.volumeName", ""),
            column("Capacity", "string") => Of(claim_capacity),
            column("Access Modes", "string") => Of(claim_modes),
            column("StorageClass", "string") => Of(class),
            column("VolumeAttributesClass", "string") => Text("spec.volumeAttributesClassName", "<unset>"),
            AGE => Age,
            wide("VolumeMode", "string") => Text("spec.volumeMode", "<unset>"),
        ],
        Stored::inert(NO_VOLUMES).default_by(claim).create_by(pending).requires(&["spec.accessModes"]),
        short_names: &["pvc"], has_status: true),
    row!(cluster "" "io.k8s.api.core.v1" "PersistentVolume" "persistentvolumes" "persistentvolume",
        [
            NAME => Name,
            column("Capacity", "string") => Text("spec.capacity.storage", "0"),
            column("Access Modes", "string") => Of(volume_modes),
            column("Reclaim Policy", "string") => Text("spec.persistentVolumeReclaimPolicy", ""),
            column("Status", "string") => Of(phase),
            column("Claim", "string") => Of(volume_claim),
            column("StorageClass", "string") => Of(class),
            column("VolumeAttributesClass", "string") => Text("spec.volumeAttributesClassName", "<unset>"),
            column("Reason", "string") => Text("status.reason", ""),
            AGE => Age,
            wide("VolumeMode", "string") => Text("spec.volumeMode", "<unset>"),
        ],
        Stored::inert(NO_VOLUMES).default_by(volume).create_by(new_volume)
            .requires(&["spec.accessModes", "spec.capacity"]),
        short_names: &["pv"], has_status: true),
    row!(cluster "storage.k8s.io" "io.k8s.api.storage.v1" "CSIDriver" "csidrivers" "csidriver",
        [
            NAME => Name,
            column("AttachRequired", "boolean") => Flag("spec.attachRequired"),
            column("PodInfoOnMount", "boolean") => Flag("spec.podInfoOnMount"),
            column("StorageCapacity", "boolean") => Flag("spec.storageCapacity"),
            column("TokenRequests", "string") => Of(driver_tokens),
            column("RequiresRepublish", "boolean") => Flag("spec.requiresRepublish"),
            column("Modes", "string") => Joined("spec.volumeLifecycleModes", "<none>"),
            AGE => Age,
        ],
        Stored::inert(NO_VOLUMES).counted().default_by(driver).needs_version()),
    row!(cluster "storage.k8s.io" "io.k8s.api.storage.v1" "CSINode" "csinodes" "csinode",
        [NAME => Name, column("Drivers", "integer") => Count("spec.drivers"), AGE => Age],
        Stored::inert(NO_VOLUMES).needs_version(), has_status: true),
    row!(namespaced "storage.k8s.io" "io.k8s.api.storage.v1" "CSIStorageCapacity" "csistoragecapacities"
        "csistoragecapacity",
        [NAME => Name, MADE => Made],
        Stored::inert(NO_VOLUMES).requires(&["storageClassName"]).fixes(&["storageClassName", "nodeTopology"])
            .needs_version()),
    row!(cluster "storage.k8s.io" "io.k8s.api.storage.v1" "StorageClass" "storageclasses" "storageclass",
        [
            Column { name: "Name", kind: "string", format: "name", priority: 0 } => Of(class_name),
            column("Provisioner", "string") => Text("provisioner", ""),
            column("ReclaimPolicy", "string") => Text("reclaimPolicy", "Delete"),
            column("VolumeBindingMode", "string") => Text("volumeBindingMode", "Immediate"),
            column("AllowVolumeExpansion", "string") => Any("allowVolumeExpansion", "false"),
            AGE => Age,
        ],
        Stored::inert(NO_VOLUMES).default_by(storage_class).requires(&["provisioner"])
            .fixes(&["provisioner", "parameters", "reclaimPolicy", "volumeBindingMode"]),
        short_names: &["sc"]),
    row!(cluster "storage.k8s.io" "io.k8s.api.storage.v1" "VolumeAttachment" "volumeattachments" "volumeattachment",
        [
            NAME => Name,
            Column { name: "Attacher", kind: "string", format: "name", priority: 0 } => Text("spec.attacher", ""),
            column("PV", "string") => Text("spec.source.persistentVolumeName", ""),
            column("Node", "string") => Text("spec.nodeName", ""),
            column("Attached", "boolean") => Flag("status.attached"),
            AGE => Age,
        ],
        Stored::inert(NO_VOLUMES).requires(&["spec.attacher", "spec.nodeName"]).fixes(&["spec"]).needs_version(),
        has_status: true),
    row!(cluster "storage.k8s.io" "io.k8s.api.storage.v1" "VolumeAttributesClass" "volumeattributesclasses"
        "volumeattributesclass",
        [NAME => Name, column("DriverName", "string") => Text("driverName", ""), AGE => Age],
        Stored::inert(NO_VOLUMES).requires(&["driverName"]).fixes(&["driverName", "parameters"]),
        short_names: &["vac"]),
];

fn claim(object: &mut Value) {
    default_to(child(object, "spec"), "volumeMode", "Filesystem");
    default_when_zero(child(object, "status"), "phase", "Pending");
}

fn pending(object: &mut Value) {
    fields(object).insert("status".to_owned(), json!({"phase": "Pending"}));
}

fn volume(object: &mut Value) {
    let spec = child(object, "spec");
    default_when_zero(spec, "persistentVolumeReclaimPolicy", "Retain");
    default_to(spec, "volumeMode", "Filesystem");
    default_when_zero(child(object, "status"), "phase", "Pending");
}

/// A new volume is in its phase since it is there.
fn new_volume(object: &mut Value) {
    pending(object);
    let made = object["metadata"]["creationTimestamp"].clone();
    default_to(child(object, "status"), "lastPhaseTransitionTime", made);
}

fn storage_class(object: &mut Value) {
    default_to(object, "reclaimPolicy", "Delete");
    default_to(object, "volumeBindingMode", "Immediate");
}

fn driver(object: &mut Value) {
    let spec = child(object, "spec");
    default_to(spec, "attachRequired", true);
    for field in ["podInfoOnMount", "storageCapacity", "requiresRepublish", "seLinuxMount"] {
        default_to(spec, field, false);
    }
    default_to(spec, "fsGroupPolicy", "ReadWriteOnceWithFSType");
    if spec["volumeLifecycleModes"].is_empty() {
        fields(spec).insert("volumeLifecycleModes".to_owned(), json!(["Persistent"]));
    }
}

fn driver_tokens(object: &Value) -> Cell {
    match &object["spec"]["tokenRequests"] {
        Value::Null => "<unset>".into(),
        requests => join(requests.items().iter().map(|request| request["audience"].text())).into(),
    }
}

/// The phase of a volume or claim.
fn phase(object: &Value) -> Cell {
    match object["metadata"]["deletionTimestamp"].is_set() {
        true => "Terminating".into(),
        false => object["status"]["phase"].text().into(),
    }
}

/// The class of a volume or claim, which once was an annotation.
fn class(object: &Value) -> Cell {
    let annotation = object["metadata"]["annotations"]["volume.beta.kubernetes.io/storage-class"].text();
    or(annotation, object["spec"]["storageClassName"].text()).into()
}

fn class_name(object: &Value) -> Cell {
    let annotations = &object["metadata"]["annotations"];
    let is_default =
        ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"]
            .iter()
            .any(|name| annotations[*name] == "true");
    let name = object["metadata"]["name"].text();
    if is_default { format!("{name} (default)").into() } else { name.into() }
}

/// Access modes in their short form, in a fixed order.
fn modes(modes: &Value) -> Cell {
    const SHORT: [(&str, &str); 4] =
        [("ReadWriteOnce", "RWO"), ("ReadOnlyMany", "ROX"), ("ReadWriteMany", "RWX"), ("ReadWriteOncePod", "RWOP")];
    join(SHORT.iter().filter(|(mode, _)| modes.items().iter().any(|known| known == mode)).map(|(_, short)| *short))
        .into()
}

fn volume_modes(object: &Value) -> Cell {
    modes(&object["spec"]["accessModes"])
}

fn volume_claim(object: &Value) -> Cell {
    match &object["spec"]["claimRef"] {
        Value::Null => "".into(),
        claim => format!("{}/{}", claim["namespace"].text(), claim["name"].text()).into(),
    }
}

fn claim_capacity(object: &Value) -> Cell {
    match object["spec"]["volumeName"].is_empty() {
        true => "".into(),
        false => or(object["status"]["capacity"]["storage"].text(), "0").into(),
    }
}

fn claim_modes(object: &Value) -> Cell {
    match object["spec"]["volumeName"].is_empty() {
        true => "".into(),
        false => modes(&object["status"]["accessModes"]),
    }
}
