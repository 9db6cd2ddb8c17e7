//! The schemas and levels that are stored, in the shape in which requests are looked up: read again only where a record has
//! changed.
//!
//! Two schemas and two levels nothing works without: those that are mandatory (`exempt`, `catch-all`) are there also when
//! nobody has stored them yet, or somebody has just deleted them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use coracle_api::codec::json;
use coracle_api::meta;
use coracle_keyspace::{Record, Records};
use http::HeaderValue;
use serde_json::Value;

use super::counters::Counters;
use super::dispatch::LevelId;
use super::level::Level;
use super::schema::{Asked, Distinguisher, Index, Schema};
use super::seats::Seats;
use crate::identity::Identity;

/// Collections of levels and of schemas.
pub(crate) const COLLECTIONS: [&str; 2] =
    ["prioritylevelconfigurations.flowcontrol.apiserver.k8s.io", "flowschemas.flowcontrol.apiserver.k8s.io"];
/// The schema and the level that are not limited.
const EXEMPT: &str = "exempt";
/// The schema and the level of whatever belongs nowhere else.
const CATCH_ALL: &str = "catch-all";

/// Facts asked of Kubernetes 1.37: the objects that every cluster has, one a line.
const LINES: &str = include_str!("../../data/flowcontrol.ndjson");

/// What every cluster has of one of the kinds.
pub(crate) struct Facts {
    pub resource: &'static str,
    pub object: Value,
    /// Whether nobody may want it otherwise.
    pub mandatory: bool,
}

/// The objects that every cluster has, levels first.
pub(crate) fn facts() -> impl Iterator<Item = Facts> {
    LINES.lines().filter_map(|line| {
        let object: Value = serde_json::from_str(line).ok()?;
        let resource = match object["kind"].as_str()? {
            "FlowSchema" => "flowschemas",
            _ => "prioritylevelconfigurations",
        };
        let mandatory = [EXEMPT, CATCH_ALL].contains(&meta::name(&object));
        Some(Facts { resource, object, mandatory })
    })
}

/// A schema, with what its requests need.
pub(super) struct Flow {
    pub name: Arc<str>,
    pub level: LevelId,
    pub distinguisher: Distinguisher,
    pub schema_uid: Option<HeaderValue>,
    pub level_uid: Option<HeaderValue>,
    pub level_name: Arc<str>,
    pub counters: Arc<Counters>,
}

/// A record, read; `None` when it is not what it should be.
#[derive(Clone)]
enum Read {
    Level(Option<(Level, String)>),
    Schema(Option<Arc<Schema>>),
}

/// All of them.
pub(super) struct Configured {
    index: Index,
    schemas: Vec<Arc<Schema>>,
    /// One for each schema.
    pub flows: Vec<Arc<Flow>>,
    catch_all: Arc<Flow>,
    pub exempt: Arc<Flow>,
    read: HashMap<(usize, Arc<str>), (Arc<Record>, Read)>,
}

/// A level and the uid of its object.
type Known = (Level, String);

impl Configured {
    /// What is made of these records, and of what was read before; the seats are divided by it.
    pub fn new(before: Option<&Configured>, stored: &[Records; 2], seats: &Seats) -> Configured {
        let mut read = HashMap::new();
        let mut levels: BTreeMap<Arc<str>, Known> = BTreeMap::new();
        let mut schemas: BTreeMap<Arc<str>, Arc<Schema>> = BTreeMap::new();
        for (place, records) in stored.iter().enumerate() {
            for (name, record) in records {
                let key = (place, name.clone());
                let same = before.and_then(|before| before.read.get(&key));
                let one = match same.filter(|(known, _)| Arc::ptr_eq(known, record)) {
                    Some((_, read)) => read.clone(),
                    None => Read::record(place, name, record),
                };
                match &one {
                    Read::Level(Some(level)) => drop(levels.insert(name.clone(), level.clone())),
                    Read::Schema(Some(schema)) => drop(schemas.insert(name.clone(), schema.clone())),
                    Read::Level(None) | Read::Schema(None) => {}
                }
                read.insert(key, (record.clone(), one));
            }
        }
        for Facts { resource, object, .. } in facts().filter(|facts| facts.mandatory) {
            let name: Arc<str> = meta::name(&object).into();
            match resource {
                "flowschemas" => {
                    if let (false, Ok(schema)) = (schemas.contains_key(&name), Schema::read(&object)) {
                        schemas.insert(name, Arc::new(schema));
                    }
                }
                _ => {
                    if let (false, Some(level)) = (levels.contains_key(&name), Level::read(&object)) {
                        levels.insert(name, (level, String::new()));
                    }
                }
            }
        }
        let specs: Vec<(Arc<str>, Level)> =
            levels.iter().map(|(name, (level, _))| (name.clone(), level.clone())).collect();
        let ids = seats.with(|dispatcher| dispatcher.configure(&specs));
        let ids: HashMap<Arc<str>, (LevelId, &str)> =
            levels.iter().zip(ids).map(|((name, (_, uid)), id)| (name.clone(), (id, uid.as_str()))).collect();
        let flow = |schema: &Arc<Schema>| {
            let (level_name, (level, uid)) = ids.get_key_value(schema.level.as_str())?;
            let known = before.and_then(|before| before.flows.iter().find(|flow| *flow.name == schema.name));
            Some(Arc::new(Flow {
                name: schema.name.as_str().into(),
                level: *level,
                distinguisher: schema.distinguisher,
                schema_uid: header(&schema.uid),
                level_uid: header(uid),
                level_name: level_name.clone(),
                counters: known.map(|flow| flow.counters.clone()).unwrap_or_default(),
            }))
        };
        // Of a level that there is not, nothing is made: others come after it.
        let mut all: Vec<(Arc<Schema>, Arc<Flow>)> =
            schemas.values().filter_map(|schema| Some((schema.clone(), flow(schema)?))).collect();
        all.sort_by(|(a, _), (b, _)| (a.precedence, &a.name).cmp(&(b.precedence, &b.name)));
        let of = |wanted: &str| {
            let found = all.iter().find(|(schema, _)| schema.name == wanted).map(|(_, flow)| flow.clone());
            // Somebody has named another level in it, which there is not: its own is always there.
            found.unwrap_or_else(|| {
                let (level_name, (level, uid)) = ids.get_key_value(wanted).expect("the mandatory levels are there");
                Arc::new(Flow {
                    name: wanted.into(),
                    level: *level,
                    distinguisher: Distinguisher::None,
                    schema_uid: None,
                    level_uid: header(uid),
                    level_name: level_name.clone(),
                    counters: Arc::default(),
                })
            })
        };
        let (exempt, catch_all) = (of(EXEMPT), of(CATCH_ALL));
        let index = Index::new(all.iter().map(|(schema, _)| &**schema));
        let (schemas, flows) = all.into_iter().unzip();
        Configured { index, schemas, flows, catch_all, exempt, read }
    }

    /// Where a request belongs.
    pub fn find(&self, who: &Identity, asked: &Asked<'_>) -> &Arc<Flow> {
        let found = self.index.find(&self.schemas, who, asked).and_then(|at| self.flows.get(at));
        found.unwrap_or(&self.catch_all)
    }

    /// Where a request belongs now that belonged to the schema of this name.
    pub fn again(&self, name: &str) -> Arc<Flow> {
        self.flows.iter().find(|flow| &*flow.name == name).unwrap_or(&self.catch_all).clone()
    }
}

impl Read {
    fn record(place: usize, name: &str, record: &Record) -> Read {
        let object = json::parse(&record.bytes).map_err(|error| error.to_string());
        let uid = |object: &Value| meta::uid(object).to_owned();
        let failed = |why: &str| {
            tracing::error!(
                collection = COLLECTIONS[place],
                name,
                why,
                "what is stored cannot be read: it limits nothing"
            );
        };
        if place == 0 {
            let level = object.and_then(|object| {
                let level = Level::read(&object).ok_or("it is no level")?;
                Ok((level, uid(&object)))
            });
            return Read::Level(level.inspect_err(|why| failed(why)).ok());
        }
        let schema = object.and_then(|object| Schema::read(&object).map(Arc::new));
        Read::Schema(schema.inspect_err(|why| failed(why)).ok())
    }
}

/// A uid as a header; none where the object is not stored.
fn header(uid: &str) -> Option<HeaderValue> {
    HeaderValue::from_str(uid).ok().filter(|_| !uid.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_facts_are_what_is_mandatory_and_what_is_suggested() {
        let all: Vec<Facts> = facts().collect();
        assert_eq!(all.len(), LINES.lines().count(), "each line is an object");
        let mandatory: Vec<String> = all
            .iter()
            .filter(|facts| facts.mandatory)
            .map(|facts| format!("{}/{}", facts.resource, meta::name(&facts.object)))
            .collect();
        assert_eq!(
            mandatory,
            [
                "prioritylevelconfigurations/catch-all",
                "prioritylevelconfigurations/exempt",
                "flowschemas/catch-all",
                "flowschemas/exempt"
            ]
        );
        for facts in all {
            match facts.resource {
                "flowschemas" => drop(Schema::read(&facts.object).expect("a schema")),
                _ => drop(Level::read(&facts.object).expect("a level")),
            }
        }
    }

    #[test]
    fn without_anything_stored_requests_are_exempt_or_caught() {
        let seats = Seats::new(100);
        let configured = Configured::new(None, &Default::default(), &seats);
        let asked = Asked { verb: "get", group: "", resource: "pods", subresource: "", namespace: "n", path: None };
        let of = |groups: &[&str]| {
            let who = Identity::authenticated("u", groups.iter().map(|group| (*group).to_owned()).collect());
            configured.find(&who, &asked).name.to_string()
        };
        assert_eq!((of(&["system:masters"]), of(&[])), ("exempt".to_owned(), "catch-all".to_owned()));
    }
}
