//! Group versions that other API servers serve (apiregistration.k8s.io/v1): which they are, and what those say of themselves.
//!
//! ```text
//! APIServices with a Service ─► Configured (where each group version is) ─► requests are passed on
//!                                   └► told: discovery, OpenAPI ──────────► documents
//! ```
//! A request looks at one number to know that what is kept is what is stored, and goes on where there is none. What is served
//! here is not looked for elsewhere: of it no such APIService can be made, and what a definition serves comes first.

mod told;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use coracle_api::codec::json;
use coracle_api::kinds::is_local_version;
use coracle_keyspace::{Keyspace, Record};
use serde_json::Value;

use crate::limits::NodeStreams;
use crate::outward::{FrontProxy, Passage};
pub(crate) use told::{OPENAPI_BYTES_MAX, Told, resources_of, spec_of};

/// Collection of the APIServices.
pub(crate) const COLLECTION: &str = "apiservices.apiregistration.k8s.io";
/// No change has this number.
const NEVER: u64 = u64::MAX;

/// A group version that another server serves.
#[derive(Debug)]
pub(crate) struct Backend {
    /// As `v1.example.com`.
    pub name: Arc<str>,
    pub group: String,
    pub version: String,
    /// The Service that leads there.
    pub namespace: String,
    pub service: String,
    pub port: u16,
    /// Where it comes in lists of groups, and among the versions of its own; the greatest first.
    pub group_priority: i64,
    pub version_priority: i64,
    /// Whether it has answered when it was last asked, as its status says.
    pub is_available: bool,
    pub passage: Arc<Passage>,
    /// What the passage was made of.
    trust: (Value, Value),
}

impl Backend {
    /// Of a stored APIService; `None` of one that is local.
    fn read(
        name: &Arc<str>,
        object: &Value,
        before: Option<&Backend>,
        front: Option<&Arc<FrontProxy>>,
    ) -> Option<Backend> {
        let (spec, text) = (&object["spec"], |value: &Value| value.as_str().unwrap_or_default().to_owned());
        let (group, version) = (text(&spec["group"]), text(&spec["version"]));
        let service = spec["service"].as_object()?;
        if is_local_version(&group, &version) {
            return None;
        }
        let field = |name: &str| service.get(name).unwrap_or(&Value::Null);
        let trust = (spec["caBundle"].clone(), spec["insecureSkipTLSVerify"].clone());
        let passage = match before.filter(|before| before.trust == trust) {
            Some(before) => before.passage.clone(),
            None => {
                // What is no base64 was refused when it was written; it trusts nobody.
                let bundle = trust.0.as_str().map(|text| STANDARD.decode(text).unwrap_or_else(|_| b"?".to_vec()));
                Arc::new(Passage::new(bundle.unwrap_or_default(), trust.1 == true, front.cloned()))
            }
        };
        let conditions = object["status"]["conditions"].as_array().into_iter().flatten();
        let is_available =
            conditions.into_iter().any(|condition| condition["type"] == "Available" && condition["status"] == "True");
        Some(Backend {
            name: name.clone(),
            group,
            version,
            namespace: text(field("namespace")),
            service: text(field("name")),
            port: field("port").as_u64().and_then(|port| u16::try_from(port).ok()).unwrap_or(443),
            group_priority: spec["groupPriorityMinimum"].as_i64().unwrap_or_default(),
            version_priority: spec["versionPriority"].as_i64().unwrap_or_default(),
            is_available,
            passage,
            trust,
        })
    }
}

/// A record as it was read, and the server that it means; `None` where it means none.
type Read = (Arc<Record>, Option<Arc<Backend>>);

/// All of them, and what they have told.
#[derive(Default)]
pub(crate) struct Configured {
    /// By group and version.
    backends: BTreeMap<(String, String), Arc<Backend>>,
    told: HashMap<Arc<str>, Arc<Told>>,
    read: HashMap<Arc<str>, Read>,
    at: u64,
}

impl Configured {
    /// All of them, by group and version.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Backend>> {
        self.backends.values()
    }

    /// What one has told last.
    pub fn told(&self, backend: &Backend) -> Option<&Arc<Told>> {
        self.told.get(&backend.name)
    }

    /// Who serves this version of a group.
    pub fn find(&self, group: &str, version: &str) -> Option<&Arc<Backend>> {
        self.backends.get(&(group.to_owned(), version.to_owned()))
    }
}

/// The backends as they are now.
pub(crate) struct Backends {
    changes: Arc<AtomicU64>,
    /// The change after which there was none.
    empty_at: AtomicU64,
    now: ArcSwap<Configured>,
    making: parking_lot::Mutex<()>,
    keyspace: Keyspace,
    front: Option<Arc<FrontProxy>>,
    pub streams: NodeStreams,
}

impl Backends {
    pub fn new(keyspace: &Keyspace, front: Option<Arc<FrontProxy>>) -> Backends {
        Backends {
            changes: keyspace.count_changes(&[COLLECTION]),
            empty_at: AtomicU64::new(NEVER),
            now: ArcSwap::from_pointee(Configured { at: NEVER, ..Configured::default() }),
            making: parking_lot::Mutex::default(),
            keyspace: keyspace.clone(),
            front,
            streams: NodeStreams::of_api_services(),
        }
    }

    /// The authority by which others know this server.
    pub fn front(&self) -> Option<&Arc<FrontProxy>> {
        self.front.as_ref()
    }

    /// The backends; one value for as long as nothing of them changes.
    pub fn now(&self) -> Arc<Configured> {
        let at = self.changes.load(Ordering::Acquire);
        let now = self.now.load_full();
        if now.at == at { now } else { self.make() }
    }

    /// Who else serves what is at a path, when somebody does.
    pub fn at(&self, path: &str) -> Option<Arc<Backend>> {
        if self.changes.load(Ordering::Acquire) == self.empty_at.load(Ordering::Acquire) {
            return None;
        }
        let mut parts = path.strip_prefix("/apis/")?.split('/');
        let (group, version) = (parts.next()?, parts.next()?);
        self.now().find(group, version).cloned()
    }

    #[cold]
    fn make(&self) -> Arc<Configured> {
        let _one = self.making.lock();
        // What changes while it is read has another number, and is read again by whoever looks next.
        let (before, at) = (self.now.load_full(), self.changes.load(Ordering::Acquire));
        if before.at == at {
            return before;
        }
        let mut next = Configured { at, ..Configured::default() };
        for (name, record) in &self.keyspace.snapshot(COLLECTION).records {
            let known = before.read.get(name);
            let backend = match known.filter(|(known, _)| Arc::ptr_eq(known, record)) {
                Some((_, backend)) => backend.clone(),
                None => {
                    let known = known.and_then(|(_, backend)| backend.as_deref());
                    let read = json::parse(&record.bytes).inspect_err(|error| {
                        tracing::error!("the stored bytes of APIService {name} cannot be read: {error}");
                    });
                    let read = read.ok().and_then(|object| Backend::read(name, &object, known, self.front.as_ref()));
                    read.map(Arc::new)
                }
            };
            if let Some(backend) = &backend {
                next.backends.insert((backend.group.clone(), backend.version.clone()), backend.clone());
                next.told.extend(before.told.get_key_value(name).map(|(name, told)| (name.clone(), told.clone())));
            }
            next.read.insert(name.clone(), (record.clone(), backend));
        }
        let next = Arc::new(next);
        self.now.store(next.clone());
        self.empty_at.store(if next.backends.is_empty() { at } else { NEVER }, Ordering::Release);
        next
    }

    /// Remembers what some have told.
    pub fn remember(&self, told: Vec<(Arc<str>, Told)>) {
        if told.is_empty() {
            return;
        }
        let _one = self.making.lock();
        let before = self.now.load_full();
        let mut all = before.told.clone();
        all.extend(told.into_iter().map(|(name, told)| (name, Arc::new(told))));
        all.retain(|name, _| before.read.contains_key(name));
        self.now.store(Arc::new(Configured {
            backends: before.backends.clone(),
            told: all,
            read: before.read.clone(),
            at: before.at,
        }));
    }
}
