//! Server-side apply: who owns which field of an object, and what follows from it.
//!
//! `metadata.managedFields` keeps a set of fields for each manager. A write of any kind takes the fields that it changes
//! ([`track_update`]); an apply ([`apply`]) merges a configuration into the object, takes all fields of the configuration,
//! lets go of those it had before and no longer has, and is in conflict with the others who own what it changes. The rules
//! are those of `sigs.k8s.io/structured-merge-diff` and `apimachinery/pkg/util/managedfields`.
//!
//! A set of fields is kept in the form in which it is written, `fieldsV1` ([`FieldSet`]): what a write does not touch is
//! neither decoded nor encoded. Where the reference converts objects between versions of a kind to compare them in the
//! version of each manager, we compare once: our versions of a kind share their fields.

mod applier;
mod compare;
mod conflict;
mod element;
mod extract;
mod fieldset;
mod last_applied;
mod managers;
mod merge;
mod overlay;
mod remove;
mod track;
mod typed;

use jiff::Timestamp;

pub use applier::apply;
pub use fieldset::FieldSet;
pub use overlay::overlay;
pub use track::{equal_but_times, keep_times, track_update};

use crate::schema::Object;

/// What is written to.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// Type of the object.
    pub object: &'a Object,
    /// As `apps/v1`.
    pub api_version: &'a str,
    /// As `Deployment`.
    pub kind: &'a str,
    /// As `status`; empty for the object itself.
    pub subresource: &'a str,
    /// What writes to this resource or subresource never own.
    pub reset: Reset<'a>,
}

/// Who writes, and when.
#[derive(Debug, Clone, Copy)]
pub struct Writer<'a> {
    /// Name of the field manager; empty becomes `unknown`.
    pub manager: &'a str,
    /// The time that is noted. Writes through `scale` note none, as in the reference.
    pub now: Option<Timestamp>,
}

/// Fields that a write leaves unowned because it cannot change them.
#[derive(Debug, Clone, Copy)]
pub enum Reset<'a> {
    /// None.
    Nothing,
    /// These and what is below: `["status"]` for writes of the object, `["spec"]` for writes of its status.
    Fields(&'a [&'a [&'a str]]),
    /// All but these and what is below; `*` is any item of a list or any field.
    AllBut(&'a [&'a [&'a str]]),
}

impl Reset<'_> {
    fn filter(&self, set: &mut FieldSet) {
        match self {
            Self::Nothing => {}
            Self::Fields(paths) => paths.iter().for_each(|path| set.remove_below(path)),
            Self::AllBut(paths) => set.retain_below(paths),
        }
    }
}

/// Fields of the object that nobody owns.
const UNOWNED: &[&str] = &["apiVersion", "kind"];
/// Fields of `metadata` that nobody owns.
const UNOWNED_METADATA: &[&str] = &[
    "name",
    "namespace",
    "creationTimestamp",
    "selfLink",
    "uid",
    "clusterName",
    "generation",
    "managedFields",
    "resourceVersion",
];

#[cfg(test)]
mod tests;
