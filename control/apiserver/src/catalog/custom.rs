//! What a resource is of a definition: how its records become what clients of one version see.
//!
//! A record that was written under the definition as it is now needs nothing: its bytes are copied, behind the version that
//! was asked for. Of others it is found out once whether the definition would write them otherwise now.

use std::sync::Arc;

use coracle_api::custom::CustomKind;
use coracle_keyspace::{Guard, Op, Record, Revision};
use tokio_util::sync::CancellationToken;

use crate::hooks::Conversion;

/// Of one version of a definition.
#[derive(Clone)]
pub(crate) struct Custom {
    pub kind: Arc<CustomKind>,
    /// Tells what was computed with it from what was computed with another.
    pub number: u64,
    /// The definition, as it was when this was looked up.
    pub definition: Arc<Record>,
    /// The schemas are what they are since this revision at least.
    pub since: Revision,
    /// Cancelled when it is served no more as it is.
    pub retired: CancellationToken,
    /// The webhook that turns its versions into each other, if one does.
    pub conversion: Option<Arc<Conversion>>,
    /// How objects of this version begin: `{"kind":"Gadget","apiVersion":"example.com/v1",`.
    pub head: Arc<[u8]>,
    /// How objects begin of all versions that have the schema of this one.
    pub heads_alike: Arc<[Arc<[u8]>]>,
}

impl Custom {
    /// That the definition is still what it was: a part of each transaction that was decided by it.
    pub fn guard(&self) -> Op {
        Op::Check { key: self.definition.key.clone(), guard: Guard::Revision(self.definition.revision) }
    }

    /// Whether a record was written under the schemas as they are.
    pub fn is_recent(&self, record: &Record) -> bool {
        record.revision > self.since
    }

    /// The webhook that is asked for a record before clients of this version see it. Of what cannot be opened there is nothing to ask.
    pub fn converter(&self, record: &Record) -> Option<&Arc<Conversion>> {
        self.conversion.as_ref().filter(|_| record.why_unreadable().is_none() && !record.bytes.starts_with(&self.head))
    }

    /// Whether a record has a version whose objects are those of this one: of another, fields may be left out here.
    pub fn is_alike(&self, record: &Record) -> bool {
        record.bytes.starts_with(&self.head) || self.heads_alike.iter().any(|head| record.bytes.starts_with(head))
    }
}
