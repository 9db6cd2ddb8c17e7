//! Volumes, and what provides them.

mod claim;
mod class;
mod volume;

use serde_json::{Value, json};

use super::show::Show::{Age, Any, Count, Flag, Joined, Made, Name, Of, Text};
use super::{BLANK, Kind, Stored, Support, row};
use crate::kinds::value::{Read, fields, join, or};
use crate::kinds::{AGE, Cell, Column, NAME, column, wide};

/// Of kinds that drivers of volumes and those who run them speak of.
const NO_DRIVERS: &str = "its volumes are kept by its nodes themselves; no driver of volumes runs there";
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
        Stored::new(Support::Honoured).default_by(claim::default).create_by(claim::create).change_by(claim::change)
            .check_by(claim::check).check_change_by(claim::check_change).check_status_by(claim::check_status)
            .warn_by(|object, _| claim::warn(object)),
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
        Stored::new(Support::Honoured).default_by(volume::default).create_by(volume::create)
            .check_by(|object, errors| volume::check(&object["spec"], object["metadata"]["name"].text(), errors))
            .check_change_by(volume::check_change)
            .warn_by(|object, old| [volume::warn(object), volume::warn_unused(object, old)].concat()),
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
        Stored::inert(NO_DRIVERS).counted_from_change().default_by(class::default_driver).rules(class::DRIVER)
            .check_by(class::check_driver).check_change_by(class::check_driver_change).warn_by(class::warn_driver)
            .needs_version()),
    row!(cluster "storage.k8s.io" "io.k8s.api.storage.v1" "CSINode" "csinodes" "csinode",
        [NAME => Name, column("Drivers", "integer") => Count("spec.drivers"), AGE => Age],
        Stored::inert(NO_DRIVERS).rules(class::NODE).check_by(class::check_node).check_change_by(class::check_node_change)
            .status_alone().needs_version(),
        has_status: true),
    row!(namespaced "storage.k8s.io" "io.k8s.api.storage.v1" "CSIStorageCapacity" "csistoragecapacities"
        "csistoragecapacity",
        [NAME => Name, MADE => Made],
        Stored::inert(NO_DRIVERS).rules(class::CAPACITY).fixes(&["storageClassName", "nodeTopology"]).needs_version()),
    row!(cluster "storage.k8s.io" "io.k8s.api.storage.v1" "StorageClass" "storageclasses" "storageclass",
        [
            Column { name: "Name", kind: "string", format: "name", priority: 0 } => Of(class_name),
            column("Provisioner", "string") => Text("provisioner", ""),
            column("ReclaimPolicy", "string") => Text("reclaimPolicy", "Delete"),
            column("VolumeBindingMode", "string") => Text("volumeBindingMode", "Immediate"),
            column("AllowVolumeExpansion", "string") => Any("allowVolumeExpansion", "false"),
            AGE => Age,
        ],
        Stored::new(Support::Honoured).default_by(class::default).rules(class::CLASS).check_by(class::check)
            .locks(&["provisioner", "parameters", "reclaimPolicy", "volumeBindingMode"]),
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
        Stored::inert(NO_DRIVERS).rules(class::ATTACHMENT).check_by(class::check_attachment).locks(&["spec"])
            .check_status_by(class::check_attachment_status).status_alone().needs_version(),
        has_status: true),
    row!(cluster "storage.k8s.io" "io.k8s.api.storage.v1" "VolumeAttributesClass" "volumeattributesclasses"
        "volumeattributesclass",
        [NAME => Name, column("DriverName", "string") => Text("driverName", ""), AGE => Age],
        Stored::inert(NO_DRIVERS).rules(class::ATTRIBUTES).check_by(class::check_attributes)
            .check_change_by(class::check_attributes_change),
        short_names: &["vac"]),
];

/// What is new has not been looked at.
fn pending(object: &mut Value) {
    fields(object).insert("status".to_owned(), json!({"phase": "Pending"}));
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
