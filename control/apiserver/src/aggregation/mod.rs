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
use std::fmt::Write as _;
use std::sync::Arc;

use arc_swap::ArcSwap;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use coracle_api::codec::json;
use coracle_api::kinds::is_local_version;
use coracle_api::meta::condition;
use coracle_keyspace::{Keyspace, Record};
use parking_lot::Mutex;
use serde_json::Value;

use crate::current::Current;
use crate::limits::NodeStreams;
use crate::outward::{FrontProxy, Passage};
pub(crate) use told::{Documents, OPENAPI_BYTES_MAX, Told, resources_of, spec_of};

/// Collection of the APIServices.
pub(crate) const COLLECTION: &str = "apiservices.apiregistration.k8s.io";

/// The condition that says whether another server is there.
pub(crate) const AVAILABLE: &str = "Available";

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
    /// As it is written down.
    pub spec: Arc<Value>,
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
        let trusts_alike = |before: &&Backend| {
            ["caBundle", "insecureSkipTLSVerify"].iter().all(|field| before.spec[*field] == spec[*field])
        };
        let passage = match before.filter(trusts_alike) {
            Some(before) => before.passage.clone(),
            None => {
                // What is no base64 was refused when it was written; it trusts nobody.
                let bundle =
                    spec["caBundle"].as_str().map(|text| STANDARD.decode(text).unwrap_or_else(|_| b"?".to_vec()));
                let is_unproven = spec["insecureSkipTLSVerify"] == true;
                Arc::new(Passage::new(bundle.unwrap_or_default(), is_unproven, front.cloned()))
            }
        };
        Some(Backend {
            name: name.clone(),
            group,
            version,
            namespace: text(field("namespace")),
            service: text(field("name")),
            port: field("port").as_u64().and_then(|port| u16::try_from(port).ok()).unwrap_or(443),
            group_priority: spec["groupPriorityMinimum"].as_i64().unwrap_or_default(),
            version_priority: spec["versionPriority"].as_i64().unwrap_or_default(),
            is_available: condition::is_true(object, AVAILABLE),
            passage,
            spec: Arc::new(spec.clone()),
        })
    }
}

/// As it would be read.
#[cfg(test)]
pub(crate) fn backend_of(name: &str, object: &Value) -> Backend {
    Backend::read(&name.into(), object, None, None).expect("another server")
}

/// A record as it was read, and the server that it means; `None` where it means none.
type Read = (Arc<Record>, Option<Arc<Backend>>);

/// All of them.
#[derive(Default)]
pub(crate) struct Configured {
    /// By group and version.
    backends: BTreeMap<String, BTreeMap<String, Arc<Backend>>>,
    read: HashMap<Arc<str>, Read>,
}

impl Configured {
    /// All of them, by group and version.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Backend>> {
        self.backends.values().flat_map(BTreeMap::values)
    }

    /// Who serves this version of a group.
    pub fn find(&self, group: &str, version: &str) -> Option<&Arc<Backend>> {
        self.backends.get(group)?.get(version)
    }

    fn is_empty(&self) -> bool {
        self.backends.is_empty()
    }

    /// Those of these records, of what was read before as much as is the same.
    fn next<'a>(
        &self,
        records: impl Iterator<Item = (&'a Arc<str>, &'a Arc<Record>)>,
        front: Option<&Arc<FrontProxy>>,
    ) -> Configured {
        let mut next = Configured::default();
        for (name, record) in records {
            let known = self.read.get(name);
            let backend = match known.filter(|(known, _)| Arc::ptr_eq(known, record)) {
                Some((_, backend)) => backend.clone(),
                None => {
                    let known = known.and_then(|(_, backend)| backend.as_deref());
                    let read = json::parse(&record.bytes).inspect_err(|error| {
                        tracing::error!("the stored bytes of APIService {name} cannot be read: {error}");
                    });
                    let read = read.ok().and_then(|object| Backend::read(name, &object, known, front));
                    read.map(Arc::new)
                }
            };
            if let Some(backend) = &backend {
                let of_group = next.backends.entry(backend.group.clone()).or_default();
                of_group.insert(backend.version.clone(), backend.clone());
            }
            next.read.insert(name.clone(), (record.clone(), backend));
        }
        next
    }
}

/// What they have told last, by their names.
pub(crate) type Heard = HashMap<Arc<str>, Arc<Told>>;

/// The backends as they are now.
pub(crate) struct Backends {
    current: Current<Configured>,
    heard: ArcSwap<Heard>,
    /// How often this server has found that one is not there any more, by its name and why; of those that are configured.
    lost: Mutex<BTreeMap<(Arc<str>, &'static str), u64>>,
    keyspace: Keyspace,
    front: Option<Arc<FrontProxy>>,
    pub streams: NodeStreams,
}

impl Backends {
    pub fn new(keyspace: &Keyspace, front: Option<Arc<FrontProxy>>) -> Backends {
        Backends {
            current: Current::new(keyspace, &[COLLECTION], Configured::is_empty),
            heard: ArcSwap::default(),
            lost: Mutex::default(),
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
    pub async fn now(&self) -> Arc<Configured> {
        let read = || {
            let (keyspace, front) = (self.keyspace.clone(), self.front.clone());
            move |before: &Configured| before.next(keyspace.snapshot(COLLECTION).records.iter(), front.as_ref())
        };
        self.current.get(read).await
    }

    /// Who else serves what is at a path, when somebody does.
    pub async fn at(&self, path: &str) -> Option<Arc<Backend>> {
        if !self.current.any() {
            return None;
        }
        let mut parts = path.strip_prefix("/apis/")?.split('/');
        let (group, version) = (parts.next()?, parts.next()?);
        self.now().await.find(group, version).cloned()
    }

    /// What they have told; one value for as long as nobody tells anything else.
    pub fn heard(&self) -> Arc<Heard> {
        self.heard.load_full()
    }

    /// Remembers something that one has told.
    pub fn remember(&self, name: &Arc<str>, change: impl Fn(&mut Told)) {
        self.heard.rcu(|heard| {
            let known = heard.get(name);
            let mut told = known.map(|told| Told::clone(told)).unwrap_or_default();
            change(&mut told);
            // What is the same is no news.
            if known.is_some_and(|known| **known == told) {
                return heard.clone();
            }
            let mut heard = Heard::clone(heard);
            heard.insert(name.clone(), Arc::new(told));
            Arc::new(heard)
        });
    }

    /// One is not there any more.
    pub fn lose(&self, name: &Arc<str>, why: &'static str) {
        *self.lost.lock().entry((name.clone(), why)).or_default() += 1;
    }

    /// Adds to the metrics page, by the reference's names.
    pub async fn render(&self, page: &mut String) {
        let configured = self.now().await;
        // Writing to a string cannot fail.
        let _ = writeln!(
            page,
            "# HELP aggregator_unavailable_apiservice Gauge of APIServices which are marked as unavailable broken down by APIService name.\n\
             # TYPE aggregator_unavailable_apiservice gauge"
        );
        // What is served here is there.
        let records = self.keyspace.snapshot(COLLECTION).records;
        for name in records.keys() {
            let backend = configured.read.get(name).and_then(|(_, backend)| backend.as_ref());
            let is_unavailable = backend.is_some_and(|backend| !backend.is_available);
            let _ = writeln!(page, "aggregator_unavailable_apiservice{{name=\"{name}\"}} {}", u8::from(is_unavailable));
        }
        let _ = writeln!(
            page,
            "# HELP aggregator_unavailable_apiservice_total Counter of APIServices which are marked as unavailable broken down by \
             APIService name and reason.\n# TYPE aggregator_unavailable_apiservice_total counter"
        );
        for ((name, reason), count) in &*self.lost.lock() {
            let _ = writeln!(
                page,
                "aggregator_unavailable_apiservice_total{{name=\"{name}\",reason=\"{reason}\"}} {count}"
            );
        }
    }

    /// Forgets what others have told than these.
    pub fn forget_others(&self, backends: &Configured) {
        let is_there = |name: &Arc<str>| matches!(backends.read.get(name), Some((_, Some(_))));
        self.lost.lock().retain(|(name, _), _| is_there(name));
        if self.heard.load().keys().all(is_there) {
            return;
        }
        self.heard.rcu(|heard| {
            let mut heard = Heard::clone(heard);
            heard.retain(|name, _| is_there(name));
            heard
        });
    }
}
