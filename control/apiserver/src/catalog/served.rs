//! What all definitions together make: one snapshot, which is made anew when a definition changes and takes over what has not.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use coracle_api::codec::json;
use coracle_api::custom::{CustomKind, Definition, Schemas};
use coracle_api::kinds::Row;
use coracle_api::meta;
use coracle_keyspace::{Record, Records, Revision};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::{Custom, Resource, is_built_in};
use crate::hooks::Conversion;

/// Bytes of changed definitions that are read where the request is; more are read aside.
const MUCH_BYTES: usize = 64 << 10;

/// Numbers of kinds, in the order in which they were made.
static NUMBERS: AtomicU64 = AtomicU64::new(1);

/// A definition, and what it makes.
pub(crate) struct Standing {
    pub record: Arc<Record>,
    pub definition: Arc<Definition>,
    /// Counts changes of what it says.
    generation: i64,
    since: Revision,
    made: Arc<Made>,
    /// By version; made when they are first asked for.
    resources: Vec<OnceLock<Option<Arc<Resource>>>>,
}

/// A kind and its number.
type Numbered = (Arc<CustomKind>, u64);

/// What stays while a definition says the same, whatever is written to its status.
struct Made {
    kinds: OnceLock<Vec<Option<Numbered>>>,
    conversion: OnceLock<Option<Arc<Conversion>>>,
    retired: CancellationToken,
}

/// All definitions.
#[derive(Default)]
pub(crate) struct Served {
    records: Records,
    /// By the definition's name, `gadgets.example.com`.
    definitions: HashMap<Arc<str>, Arc<Standing>>,
}

impl Served {
    /// Whether it was made of these records.
    pub fn is_of(&self, records: &Records) -> bool {
        self.records.ptr_eq(records) || (self.records.is_empty() && records.is_empty())
    }

    /// Whether reading what is new in these takes long.
    pub fn is_much(&self, records: &Records) -> bool {
        let new = records.iter().filter(|(name, record)| self.knows(name, record).is_none());
        new.map(|(_, record)| record.bytes.len()).sum::<usize>() > MUCH_BYTES
    }

    fn knows(&self, name: &str, record: &Arc<Record>) -> Option<&Arc<Standing>> {
        self.definitions.get(name).filter(|known| Arc::ptr_eq(&known.record, record))
    }

    /// What is served of these records.
    pub fn next(&self, records: Records) -> Served {
        let stand = |(name, record): (&Arc<str>, &Arc<Record>)| {
            let known = self.knows(name, record).cloned();
            let standing = known.or_else(|| Standing::read(record, self.definitions.get(name)).map(Arc::new))?;
            Some((name.clone(), standing))
        };
        Served { definitions: records.iter().filter_map(stand).collect(), records }
    }

    /// Ends what `next` does not go on with.
    pub fn retire(&self, next: &Served) {
        for (name, standing) in &self.definitions {
            let goes_on = next.definitions.get(name).is_some_and(|next| Arc::ptr_eq(&next.made, &standing.made));
            if !goes_on {
                standing.made.retired.cancel();
            }
        }
    }

    /// The resource at a path. Making one for the first time takes a moment: a small definition, too, may have large expressions.
    pub async fn find(&self, group: &str, version: &str, resource: &str) -> Option<Arc<Resource>> {
        let standing = self.definitions.get(format!("{resource}.{group}").as_str())?;
        let at = standing.served(version)?;
        if standing.made.kinds.get().is_none() {
            let aside = standing.clone();
            // Whoever fails here tries again below.
            let _ = tokio::task::spawn_blocking(move || drop(aside.resource(at))).await;
        }
        standing.resource(at)
    }

    /// Whether a definition serves this version of a group.
    pub fn serves(&self, group: &str, version: &str) -> bool {
        self.definitions
            .values()
            .any(|standing| standing.definition.group == group && standing.served(version).is_some())
    }

    /// Every definition, by name.
    pub fn all(&self) -> Vec<&Arc<Standing>> {
        let mut all: Vec<&Arc<Standing>> = self.definitions.values().collect();
        all.sort_by(|a, b| a.record.key.name.cmp(&b.record.key.name));
        all
    }
}

impl Standing {
    /// `None` when the record is damaged, which the log says.
    fn read(record: &Arc<Record>, before: Option<&Arc<Standing>>) -> Option<Standing> {
        let object = parse(record)?;
        let definition = Definition::read(&object);
        let generation = meta::generation(&object);
        // What is written to its status changes nothing of how its objects are read, but for the names it has.
        let same = before.filter(|before| before.generation == generation && *before.definition == definition);
        let (definition, since, made) = match same {
            Some(before) => (before.definition.clone(), before.since, before.made.clone()),
            None => {
                let made =
                    Made { kinds: OnceLock::new(), conversion: OnceLock::new(), retired: CancellationToken::new() };
                (Arc::new(definition), record.revision, Arc::new(made))
            }
        };
        let resources = definition.versions.iter().map(|_| OnceLock::new()).collect();
        Some(Standing { record: record.clone(), definition, generation, since, made, resources })
    }

    /// Whether its resources are served.
    pub fn is_served(&self) -> bool {
        self.definition.established && !is_built_in(&self.definition.group, &self.definition.names.plural)
    }

    /// Whether its objects are of this kind.
    pub fn is_of(&self, kind: &str) -> bool {
        self.is_served() && self.definition.names.kind == kind
    }

    /// The place of a version that is served.
    fn served(&self, version: &str) -> Option<usize> {
        let place = self.definition.versions.iter().position(|known| known.name == version && known.served);
        place.filter(|_| self.is_served())
    }

    /// The resource in its stored version, for whoever removes its objects.
    pub fn stored(&self) -> Option<Arc<Resource>> {
        let place = self.definition.versions.iter().position(|version| version.name == self.definition.storage)?;
        self.resource(place)
    }

    fn kinds(&self) -> &[Option<Numbered>] {
        self.made.kinds.get_or_init(|| {
            let object = parse(&self.record).unwrap_or_default();
            let schemas = Arc::new(Schemas::read(&object));
            let kind = |version: &coracle_api::custom::Version| {
                let kind = CustomKind::new(&self.definition, &object, &schemas, &version.name)?;
                Some((Arc::new(kind), NUMBERS.fetch_add(1, Ordering::Relaxed)))
            };
            self.definition.versions.iter().map(kind).collect()
        })
    }

    fn resource(&self, at: usize) -> Option<Arc<Resource>> {
        let make = || {
            let (kind, number) = self.kinds().get(at)?.clone()?;
            let schema = Arc::new(kind.object());
            let read = || self.object().and_then(|object| Conversion::read(&object)).map(Arc::new);
            let conversion = self.made.conversion.get_or_init(read).clone();
            let (api_version, row) = (kind.api_version.clone(), Row::Custom(kind.clone()));
            let (head, stored_head) = (super::head(&row, &api_version), super::head(&row, &kind.stored_version));
            let alike = self.kinds().iter().flatten().map(|(other, _)| other);
            let alike = alike.filter(|other| kind.is_alike(&other.version.name));
            let heads_alike = alike.map(|other| super::head(&Row::Custom(other.clone()), &other.api_version)).collect();
            let custom = Custom {
                heads_alike,
                kind,
                number,
                definition: self.record.clone(),
                since: self.since,
                retired: self.made.retired.clone(),
                conversion,
                head,
            };
            Some(Arc::new(Resource {
                list_kind: row.list_kind(),
                stored: row.clone(),
                row,
                stored_schema: schema.clone(),
                schema,
                api_version,
                is_view: false,
                stored_head,
                custom: Some(custom),
            }))
        };
        self.resources.get(at)?.get_or_init(make).clone()
    }

    /// Which incarnation of it says what for the how-many-eth time, and whether it is on its way out.
    pub fn said(&self) -> (&str, i64, bool) {
        (&self.definition.uid, self.generation, self.definition.terminating)
    }

    /// The definition as it is stored.
    pub fn object(&self) -> Option<Value> {
        parse(&self.record)
    }
}

fn parse(record: &Record) -> Option<Value> {
    json::parse(&record.bytes)
        .inspect_err(|error| {
            tracing::error!("the stored bytes of definition {} cannot be read: {error}", record.key.name);
        })
        .ok()
}
