//! What control plane and nodes agree on about volumes: which PersistentVolumes nodes keep, and which of all a claim may have.

use crate::meta::{Quantity, names};

/// `provisioner` of classes whose volumes nodes keep.
pub const PROVISIONER: &str = "coracle.dev/local";
/// Finalizer of such a volume: its node is still to say what becomes of its directory.
pub const FINALIZER: &str = "coracle.dev/local-volume";
/// Label of such a volume: its node, which watches by it.
pub const NODE: &str = "coracle.dev/volume-node";
/// Annotation of such a volume: its node has made the directory. One that is missing after that is not made a second time,
/// since nobody would notice that the data is gone.
pub const MADE: &str = "coracle.dev/volume-made";
/// Annotation of a claim: the node on which the scheduler wants its volume.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// Annotation of a volume or claim that was bound to the other by a controller, and not by who made it.
pub const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
/// Finalizer of claims, while pods use them.
pub const CLAIM_PROTECTION: &str = "kubernetes.io/pvc-protection";
/// Finalizer of volumes, while they are bound.
pub const VOLUME_PROTECTION: &str = "kubernetes.io/pv-protection";
/// Annotation of the class that claims are of which name none.
pub const IS_DEFAULT: &str = "storageclass.kubernetes.io/is-default-class";
/// Annotation with the class of a claim or a volume, from before there was a field for it.
pub const CLASS: &str = "volume.beta.kubernetes.io/storage-class";

/// The directory that `local.path` means: `volumes/NAME`, beneath the data directory of the node. Any other path is none that
/// a node gives to a pod.
pub fn directory(path: &str) -> Option<&str> {
    path.strip_prefix("volumes/").filter(|name| names::is_dns_subdomain(name))
}

/// A claim by its name, and its uid where that is known.
#[derive(Clone, Copy, Debug)]
pub struct Claimant<'a> {
    /// Its namespace.
    pub namespace: &'a str,
    /// Its name.
    pub name: &'a str,
    /// Its uid; empty when any of this name is meant.
    pub uid: &'a str,
}

/// What a claim asks for.
#[derive(Clone, Debug)]
pub struct Asked<'a> {
    /// Who asks.
    pub claim: Claimant<'a>,
    /// Bytes at least.
    pub size: Quantity,
    /// All of these.
    pub access_modes: &'a [String],
    /// Name of the StorageClass; empty for none.
    pub class: &'a str,
    /// `Filesystem` or `Block`.
    pub volume_mode: &'a str,
    /// Name of the VolumeAttributesClass; empty for none.
    pub attributes_class: &'a str,
}

/// What a volume has.
#[derive(Clone, Debug)]
pub struct Offered<'a> {
    /// Whom it is kept for.
    pub claim: Option<Claimant<'a>>,
    /// Its capacity in bytes.
    pub size: Quantity,
    /// Those that it has.
    pub access_modes: &'a [String],
    /// Name of the StorageClass; empty for none.
    pub class: &'a str,
    /// `Filesystem` or `Block`.
    pub volume_mode: &'a str,
    /// Name of the VolumeAttributesClass; empty for none.
    pub attributes_class: &'a str,
    /// Whether its phase is `Available`.
    pub is_available: bool,
    /// Whether it is being deleted.
    pub is_deleting: bool,
}

impl Offered<'_> {
    /// Whether it is kept for this claim.
    pub fn is_for(&self, claim: Claimant<'_>) -> bool {
        self.claim.is_some_and(|kept| {
            (kept.namespace, kept.name) == (claim.namespace, claim.name)
                && (kept.uid.is_empty() || kept.uid == claim.uid)
        })
    }
}

/// Whether a claim may have a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// It may not.
    No,
    /// It is kept for it.
    Kept,
    /// It is free, and enough.
    Free,
}

/// Whether a claim may have a volume, whose labels it selects or not (`FindMatchingVolume` of the reference).
pub fn fit(asked: &Asked<'_>, offered: &Offered<'_>, selected: bool) -> Fit {
    let is_kept = offered.is_for(asked.claim);
    let is_enough = offered.size >= asked.size
        && offered.volume_mode == asked.volume_mode
        && offered.attributes_class == asked.attributes_class
        && !offered.is_deleting;
    if !is_enough || (offered.claim.is_some() && !is_kept) {
        return Fit::No;
    }
    let offers = |mode: &String| offered.access_modes.contains(mode);
    match is_kept {
        true => Fit::Kept,
        false
            if offered.is_available
                && selected
                && offered.class == asked.class
                && asked.access_modes.iter().all(offers) =>
        {
            Fit::Free
        }
        false => Fit::No,
    }
}

/// Why a claim cannot have the volume that it names, in the reference's words (`checkVolumeSatisfyClaim`).
pub fn mismatch(asked: &Asked<'_>, offered: &Offered<'_>) -> Option<&'static str> {
    let offers = |mode: &String| offered.access_modes.contains(mode);
    match () {
        () if offered.is_deleting => Some("the volume is marked for deletion"),
        () if offered.size < asked.size => Some("requested PV is too small"),
        () if offered.class != asked.class => Some("storageClassName does not match"),
        () if offered.attributes_class != asked.attributes_class => Some("volumeAttributesClassName does not match"),
        () if offered.volume_mode != asked.volume_mode => Some("incompatible volumeMode"),
        () if !asked.access_modes.iter().all(offers) => Some("incompatible accessMode"),
        () => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_name_within_volumes_is_a_directory() {
        for (path, expected) in [
            ("volumes/pvc-1.a", Some("pvc-1.a")),
            ("volumes/", None),
            ("volumes/.", None),
            ("volumes/..", None),
            ("volumes/a/b", None),
            ("volumes/../pki", None),
            ("/volumes/a", None),
            ("/etc", None),
            ("pki", None),
        ] {
            assert_eq!(directory(path), expected, "{path}");
        }
    }

    #[test]
    fn a_claim_has_what_is_kept_for_it_or_what_is_free_and_enough() {
        let modes = ["ReadWriteOnce".to_owned(), "ReadOnlyMany".to_owned()];
        let size = |text| Quantity::parse(text).unwrap();
        let claim = Claimant { namespace: "n", name: "c", uid: "u" };
        let asked = Asked {
            claim,
            size: size("2Gi"),
            access_modes: &modes[..1],
            class: "local",
            volume_mode: "Filesystem",
            attributes_class: "",
        };
        let offered = Offered {
            claim: None,
            size: size("3Gi"),
            access_modes: &modes,
            class: "local",
            volume_mode: "Filesystem",
            attributes_class: "",
            is_available: true,
            is_deleting: false,
        };
        let other = Claimant { uid: "other", ..claim };
        let no_uid = Claimant { uid: "", ..claim };
        let with = |change: fn(&mut Offered<'_>)| {
            let mut offered = offered.clone();
            change(&mut offered);
            offered
        };
        assert_eq!(fit(&asked, &offered, true), Fit::Free);
        assert_eq!(fit(&asked, &offered, false), Fit::No, "it does not select it");
        for (kept, expected) in [(claim, Fit::Kept), (no_uid, Fit::Kept), (other, Fit::No)] {
            // Whatever else it says: somebody has chosen it.
            let kept = Offered { claim: Some(kept), class: "x", is_available: false, ..offered.clone() };
            assert_eq!(fit(&asked, &kept, false), expected);
        }
        for (offered, words) in [
            (with(|it| it.is_deleting = true), "the volume is marked for deletion"),
            (with(|it| it.size = Quantity::parse("1Gi").unwrap()), "requested PV is too small"),
            (with(|it| it.class = ""), "storageClassName does not match"),
            (with(|it| it.attributes_class = "fast"), "volumeAttributesClassName does not match"),
            (with(|it| it.volume_mode = "Block"), "incompatible volumeMode"),
            (with(|it| it.access_modes = &[]), "incompatible accessMode"),
        ] {
            assert_eq!((fit(&asked, &offered, true), mismatch(&asked, &offered)), (Fit::No, Some(words)));
        }
        assert_eq!(fit(&asked, &with(|it| it.is_available = false), true), Fit::No);
        assert_eq!(mismatch(&asked, &offered), None);
    }
}
