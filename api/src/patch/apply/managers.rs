//! The entries of `metadata.managedFields`.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;

use serde_json::{Map, Value};

use super::fieldset::FieldSet;

/// Most entries of writes that were no apply; the oldest beyond are put together.
const UPDATERS_MAX: usize = 10;
/// The manager that gets what is put together.
const ANCIENT: &str = "ancient-changes";

/// How a manager writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Operation {
    Apply,
    Update,
}

impl Operation {
    fn name(self) -> &'static str {
        match self {
            Self::Apply => "Apply",
            Self::Update => "Update",
        }
    }
}

/// One entry.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Entry {
    pub manager: String,
    pub operation: Operation,
    pub api_version: String,
    pub subresource: String,
    /// RFC 3339, as it is written.
    pub time: Option<String>,
    pub set: FieldSet,
}

impl Entry {
    /// Whether both are entries of the same manager: an applier is the same in every version.
    pub fn is_same(&self, other: &Self) -> bool {
        self.manager == other.manager
            && self.operation == other.operation
            && self.subresource == other.subresource
            && (self.operation == Operation::Apply || self.api_version == other.api_version)
    }

    /// The text by which the reference sorts managers.
    pub fn identity(&self) -> String {
        let text = |text: &str| Value::from(text).to_string();
        let mut out = format!("{{\"manager\":{},\"operation\":\"{}\"", text(&self.manager), self.operation.name());
        if self.operation == Operation::Update {
            out.push_str(&format!(",\"apiVersion\":{}", text(&self.api_version)));
        }
        if !self.subresource.is_empty() {
            out.push_str(&format!(",\"subresource\":{}", text(&self.subresource)));
        }
        out.push('}');
        out
    }
}

/// Whether sets of fields come from ourselves or from a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    Stored,
    Client,
}

/// Reads the entries.
pub(super) fn decode(list: Vec<Value>, origin: Origin) -> Result<Vec<Entry>, String> {
    let mut entries: Vec<Entry> = Vec::with_capacity(list.len() + 1);
    let mut places: HashMap<String, usize> = HashMap::new();
    for (index, entry) in list.into_iter().enumerate() {
        let Value::Object(mut fields) = entry else { return Err("operation must be `Apply` or `Update`".to_owned()) };
        let mut text = |name: &str| match fields.remove(name) {
            Some(Value::String(text)) => text,
            _ => String::new(),
        };
        let operation = match text("operation").as_str() {
            "Apply" => Operation::Apply,
            "Update" => Operation::Update,
            _ => return Err("operation must be `Apply` or `Update`".to_owned()),
        };
        let (api_version, fields_type) = (text("apiVersion"), text("fieldsType"));
        if api_version.is_empty() {
            return Err("apiVersion must not be empty".to_owned());
        }
        match fields_type.as_str() {
            "FieldsV1" => {}
            "" => return Err(format!("missing fieldsType in managed fields entry {index}")),
            other => return Err(format!("invalid fieldsType \"{other}\" in managed fields entry {index}")),
        }
        let (manager, subresource, time) = (text("manager"), text("subresource"), text("time"));
        let set = match (fields.remove("fieldsV1"), origin) {
            (Some(Value::Object(tree)), Origin::Stored) => FieldSet::trusted(tree),
            (Some(Value::Object(tree)), Origin::Client) => FieldSet::read(tree)?,
            (None | Some(Value::Null), _) => FieldSet::default(),
            (Some(_), _) => return Err("expected an object".to_owned()),
        };
        let time = Some(time).filter(|time| !time.is_empty());
        let entry = Entry { manager, operation, api_version, subresource, time, set };
        match places.entry(entry.identity()) {
            Slot::Occupied(at) => entries[*at.get()] = entry,
            Slot::Vacant(free) => {
                free.insert(entries.len());
                entries.push(entry);
            }
        }
    }
    Ok(entries)
}

/// Writes the entries: appliers first, then by time and name.
pub(super) fn encode(mut entries: Vec<Entry>) -> Vec<Value> {
    // Times are in one form, so their text sorts as they do; none is before all.
    entries.sort_by(|a, b| {
        let key = |e: &Entry| e.operation;
        key(a)
            .cmp(&key(b))
            .then_with(|| a.time.cmp(&b.time))
            .then_with(|| a.manager.cmp(&b.manager))
            .then_with(|| a.api_version.cmp(&b.api_version))
            .then_with(|| a.subresource.cmp(&b.subresource))
    });
    entries.into_iter().map(encode_one).collect()
}

fn encode_one(entry: Entry) -> Value {
    let mut fields = Map::new();
    let mut put = |name: &str, value: Value| drop(fields.insert(name.to_owned(), value));
    put("apiVersion", Value::String(entry.api_version));
    put("fieldsType", Value::from("FieldsV1"));
    put("fieldsV1", Value::Object(entry.set.into_tree()));
    put("operation", Value::from(entry.operation.name()));
    if !entry.manager.is_empty() {
        put("manager", Value::String(entry.manager));
    }
    if !entry.subresource.is_empty() {
        put("subresource", Value::String(entry.subresource));
    }
    if let Some(time) = entry.time {
        put("time", Value::String(time));
    }
    Value::Object(fields)
}

/// Puts the oldest entries of updates together, one for each version, until there are few enough.
pub(super) fn cap(entries: &mut Vec<Entry>) {
    let mut updaters: Vec<usize> =
        (0..entries.len()).filter(|at| entries[*at].operation == Operation::Update).collect();
    if updaters.len() <= UPDATERS_MAX {
        return;
    }
    updaters.sort_by_cached_key(|at| (entries[*at].time.clone(), entries[*at].identity()));
    let mut left = updaters.len();
    // Of each version the first that was seen: it becomes the bucket once there is a second.
    let mut firsts: HashMap<String, usize> = HashMap::new();
    // Buckets of earlier times, of each version the first.
    let is_bucket = |e: &Entry| e.manager == ANCIENT && e.operation == Operation::Update && e.subresource.is_empty();
    let mut buckets: HashMap<String, usize> = HashMap::new();
    for (at, entry) in entries.iter().enumerate().filter(|(_, entry)| is_bucket(entry)) {
        buckets.entry(entry.api_version.clone()).or_insert(at);
    }
    let mut gone = vec![false; entries.len()];
    for at in updaters {
        if left <= UPDATERS_MAX {
            break;
        }
        let version = entries[at].api_version.clone();
        let Some(&first) = firsts.get(&version) else {
            firsts.insert(version, at);
            continue;
        };
        let into = *buckets.entry(version).or_insert(first);
        if into == at {
            continue;
        }
        let (set, time) = (std::mem::take(&mut entries[at].set), entries[at].time.clone());
        let bucket = &mut entries[into];
        ANCIENT.clone_into(&mut bucket.manager);
        bucket.subresource.clear();
        bucket.set.union(set);
        // The one that was put in is the newer.
        bucket.time = time;
        gone[at] = true;
        left -= 1;
    }
    let mut gone = gone.into_iter();
    entries.retain(|_| !gone.next().unwrap_or_default());
}
