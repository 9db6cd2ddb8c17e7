//! The webhooks that are configured (kubernetes-api §22.3), in the shape in which they are asked: read again only when a
//! configuration has changed, and then only that one.
//!
//! Whoever saw the answer to a write of a configuration, and asks the same server, is admitted by it ([`Current`]); for the other
//! servers of a group there is [`Hooks::guard`].

pub(crate) mod matching;
mod metrics;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use coracle_api::cel::admission::Condition;
use coracle_api::codec::json;
use coracle_api::schema;
use coracle_keyspace::{Guard, Key, Keyspace, Op, Record, Value as Content};
use serde_json::Value;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::current::Current;
use crate::outward::Client;
use matching::MatchResources;
pub(crate) use metrics::{Called, Metrics};

/// Collections of the configurations.
pub(crate) const MUTATING: &str = "mutatingwebhookconfigurations.admissionregistration.k8s.io";
pub(crate) const VALIDATING: &str = "validatingwebhookconfigurations.admissionregistration.k8s.io";
/// The group of what configures admission, which is not admitted itself.
pub(crate) const GROUP: &str = "admissionregistration.k8s.io";
/// Written with every configuration, where nobody watches: whoever admits says in its transaction which of them it knew.
const KNOWN: &str = "coracle.admission";
/// How long a webhook has that says nothing of it: what the API fills in.
const TIMEOUT_SECONDS: u64 = 10;
/// Records that one webhook converts at a time: each takes a few times its size while it is converted, here and there.
const CONVERTED_KIB_MAX: usize = 16 << 10;

/// Where a webhook is, as it is configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// An address that is written out.
    Url(String),
    /// A Service of the cluster.
    Service { namespace: String, name: String, port: u16, path: String },
    /// None: why what is said is no place.
    Nowhere(String),
}

/// Where a webhook is, and how it is reached.
#[derive(Debug)]
pub(crate) struct Callee {
    pub place: Place,
    pub client: Client,
}

impl Callee {
    /// Of a `clientConfig`.
    pub fn read(config: &Value) -> Callee {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let service = &config["service"];
        let port = match &service["port"] {
            Value::Null => Some(443),
            port => port.as_u64().and_then(|port| u16::try_from(port).ok()),
        };
        let place = match (config["url"].as_str(), port) {
            (Some(url), _) => Place::Url(url.to_owned()),
            (None, None) => Place::Nowhere(format!("service port {} is none", service["port"])),
            (None, Some(port)) => Place::Service {
                namespace: text(&service["namespace"]),
                name: text(&service["name"]),
                port,
                path: text(&service["path"]),
            },
        };
        // What is no base64 was refused when it was written; it trusts nobody.
        let bundle = config["caBundle"].as_str().map(|text| STANDARD.decode(text).unwrap_or_else(|_| b"?".to_vec()));
        Callee { place, client: Client::new(bundle.unwrap_or_default()) }
    }
}

/// The form of the review that a webhook wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReviewVersion {
    V1,
    V1Beta1,
}

impl ReviewVersion {
    /// The first that is known of those that a webhook lists.
    pub fn of(list: &Value) -> Option<ReviewVersion> {
        list.as_array()?.iter().find_map(|version| match version.as_str() {
            Some("v1") => Some(ReviewVersion::V1),
            Some("v1beta1") => Some(ReviewVersion::V1Beta1),
            _ => None,
        })
    }

    /// As `v1`.
    pub fn name(self) -> &'static str {
        match self {
            ReviewVersion::V1 => "v1",
            ReviewVersion::V1Beta1 => "v1beta1",
        }
    }
}

/// One webhook of a configuration.
#[derive(Debug)]
pub(crate) struct Hook {
    /// As `check.example.com`.
    pub name: String,
    /// Tells it from all others.
    pub id: String,
    pub matching: MatchResources,
    /// Or why they are none.
    pub conditions: Result<Vec<Condition>, String>,
    /// Whether a request fails when the webhook cannot be asked.
    pub fails: bool,
    pub timeout: Duration,
    /// Whether a dry run may ask it.
    pub allows_dry_run: bool,
    /// Whether it is asked again when others changed the object behind it.
    pub reinvoked: bool,
    pub version: Option<ReviewVersion>,
    pub callee: Callee,
}

impl Hook {
    fn read(configuration: &str, webhook: &Value, same: usize) -> Hook {
        let name = webhook["name"].as_str().unwrap_or_default().to_owned();
        let conditions = webhook["matchConditions"].as_array().into_iter().flatten().map(|condition| {
            let text = |field: &str| condition[field].as_str().unwrap_or_default();
            Condition::compile(text("name"), text("expression").trim(), false)
        });
        Hook {
            id: format!("{configuration}/{name}/{same}"),
            matching: MatchResources::of_webhook(webhook),
            conditions: conditions.collect(),
            fails: webhook["failurePolicy"] != "Ignore",
            timeout: Duration::from_secs(webhook["timeoutSeconds"].as_u64().unwrap_or(TIMEOUT_SECONDS)),
            allows_dry_run: matches!(webhook["sideEffects"].as_str(), Some("None" | "NoneOnDryRun")),
            reinvoked: webhook["reinvocationPolicy"] == "IfNeeded",
            version: ReviewVersion::of(&webhook["admissionReviewVersions"]),
            callee: Callee::read(&webhook["clientConfig"]),
            name,
        }
    }
}

/// The webhook that converts the objects of a definition between its versions.
#[derive(Debug)]
pub(crate) struct Conversion {
    pub version: Option<ReviewVersion>,
    pub callee: Callee,
    room: Semaphore,
}

impl Conversion {
    /// Waits until there is room for so many bytes of records among those that are converted, and holds it.
    pub async fn room(&self, bytes: usize) -> Option<SemaphorePermit<'_>> {
        let kib = bytes.div_ceil(1 << 10).min(CONVERTED_KIB_MAX);
        self.room.acquire_many(kib as u32).await.ok()
    }

    /// Of a CustomResourceDefinition; `None` when its versions differ in their names alone.
    pub fn read(definition: &Value) -> Option<Conversion> {
        let conversion = &definition["spec"]["conversion"];
        let webhook = &conversion["webhook"];
        (conversion["strategy"] == "Webhook").then(|| Conversion {
            version: ReviewVersion::of(&webhook["conversionReviewVersions"]),
            callee: Callee::read(&webhook["clientConfig"]),
            room: Semaphore::new(CONVERTED_KIB_MAX),
        })
    }
}

/// A configuration, read.
#[derive(Clone)]
struct Read {
    record: Arc<Record>,
    /// Or why it cannot be read.
    hooks: Result<Vec<Arc<Hook>>, String>,
}

impl Read {
    fn of(record: &Arc<Record>, kind: &str) -> Read {
        let hooks = Read::hooks(record, kind).map_err(|error| {
            let why = format!("the stored bytes of {kind} {} cannot be read: {error}", record.key.name);
            tracing::error!("every write is refused until it is removed: {why}");
            why
        });
        Read { record: record.clone(), hooks }
    }

    /// What is not of the types that the API stores is damaged: nothing is guessed of who is to be asked about what.
    fn hooks(record: &Record, kind: &str) -> Result<Vec<Arc<Hook>>, String> {
        let schema = schema::of_kind(GROUP, "v1", kind).ok_or("its type is not known")?;
        let object = json::decode(&record.bytes, &schema).map_err(|error| error.to_string())?.value;
        let mut same: HashMap<&str, usize> = HashMap::new();
        let webhooks = object["webhooks"].as_array().map(Vec::as_slice).unwrap_or_default();
        let hooks = webhooks.iter().map(|webhook| {
            let count = same.entry(webhook["name"].as_str().unwrap_or_default()).or_default();
            *count += 1;
            Arc::new(Hook::read(&record.key.name, webhook, *count - 1))
        });
        Ok(hooks.collect())
    }
}

/// All webhooks, in the order in which they are asked: by the names of their configurations, within one as they are listed.
#[derive(Default)]
pub(crate) struct Configured {
    pub mutating: Vec<Arc<Hook>>,
    pub validating: Vec<Arc<Hook>>,
    /// Why one of them cannot be read. It may be the one that refuses: nothing is admitted.
    pub unreadable: Option<String>,
    /// By collection and name.
    read: HashMap<(&'static str, Arc<str>), Read>,
    /// What [`KNOWN`] was then.
    known: Option<coracle_keyspace::Revision>,
}

impl Configured {
    fn is_empty(&self) -> bool {
        self.mutating.is_empty() && self.validating.is_empty() && self.unreadable.is_none()
    }

    /// What is stored now; only what has changed is read.
    fn next(&self, keyspace: &Keyspace) -> Configured {
        let known = keyspace.get(KNOWN, KNOWN).map(|record| record.revision);
        let mut next = Configured { known, ..Configured::default() };
        for (collection, kind) in
            [(MUTATING, "MutatingWebhookConfiguration"), (VALIDATING, "ValidatingWebhookConfiguration")]
        {
            for (name, record) in &keyspace.snapshot(collection).records {
                let key = (collection, name.clone());
                let before = self.read.get(&key).filter(|before| Arc::ptr_eq(&before.record, record));
                let read = before.cloned().unwrap_or_else(|| Read::of(record, kind));
                let list = if collection == MUTATING { &mut next.mutating } else { &mut next.validating };
                match &read.hooks {
                    Ok(hooks) => list.extend(hooks.iter().cloned()),
                    Err(why) => drop(next.unreadable.get_or_insert_with(|| why.clone())),
                }
                next.read.insert(key, read);
            }
        }
        next
    }
}

/// The webhooks as they are now.
pub(crate) struct Hooks(Current<Configured>);

impl Hooks {
    pub fn new(keyspace: &Keyspace) -> Hooks {
        Hooks(Current::new(keyspace, &[MUTATING, VALIDATING, KNOWN], Configured::is_empty))
    }

    /// Whether something may be configured.
    pub fn any(&self) -> bool {
        self.0.any()
    }

    /// What is configured; `None` when nothing is, which is all that most clusters ever pay.
    pub async fn now(&self, keyspace: &Keyspace) -> Option<Arc<Configured>> {
        if !self.any() {
            return None;
        }
        let configured = self.configured(keyspace).await;
        (!configured.is_empty()).then_some(configured)
    }

    async fn configured(&self, keyspace: &Keyspace) -> Arc<Configured> {
        let read = || {
            let keyspace = keyspace.clone();
            move |before: &Configured| before.next(&keyspace)
        };
        self.0.get(read).await
    }

    /// That no configuration was written since what is kept here was: a part of each transaction that was admitted by it. One
    /// server sees each change before its writer is told; of several one may lag behind, and only there this costs something.
    pub async fn guard(&self, keyspace: &Keyspace) -> Option<Op> {
        if keyspace.is_sole_voter() {
            return None;
        }
        let known = self.configured(keyspace).await.known;
        Some(Op::Check { key: Key::new(KNOWN, KNOWN), guard: known.map_or(Guard::Absent, Guard::Revision) })
    }

    /// What goes into the transaction that writes or removes a configuration.
    pub fn mark(group: &str) -> Option<Op> {
        let value = Content { bytes: Default::default(), revision_at: 0 };
        (group == GROUP).then(|| Op::Put { key: Key::new(KNOWN, KNOWN), value, guard: Guard::None })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_webhook_is_read_with_what_the_api_fills_in() {
        let hook =
            Hook::read("c", &json!({"name": "a.b.c", "clientConfig": {"service": {"name": "s", "namespace": "n"}}}), 1);
        assert_eq!((hook.id.as_str(), hook.fails, hook.timeout), ("c/a.b.c/1", true, Duration::from_secs(10)));
        assert!(!hook.allows_dry_run && !hook.reinvoked && hook.version.is_none());
        let service = Place::Service { namespace: "n".into(), name: "s".into(), port: 443, path: String::new() };
        assert_eq!(hook.callee.place, service);
        assert!(!hook.callee.client.has_authorities());
        let hook = Hook::read(
            "c",
            &json!({
                "name": "a.b.c", "failurePolicy": "Ignore", "timeoutSeconds": 3, "sideEffects": "NoneOnDryRun",
                "reinvocationPolicy": "IfNeeded", "admissionReviewVersions": ["v2", "v1beta1", "v1"],
                "clientConfig": {"url": "https://h/x", "caBundle": "eA=="},
            }),
            0,
        );
        assert_eq!((hook.fails, hook.timeout, hook.reinvoked), (false, Duration::from_secs(3), true));
        assert_eq!(
            (hook.version, &hook.callee.place),
            (Some(ReviewVersion::V1Beta1), &Place::Url("https://h/x".into()))
        );
        // What is no port is not the usual one.
        let callee = Callee::read(&json!({"service": {"name": "s", "namespace": "n", "port": 70_000}}));
        assert!(matches!(callee.place, Place::Nowhere(_)), "{callee:?}");
        assert!(hook.allows_dry_run && hook.callee.client.has_authorities());
    }

    #[test]
    fn records_that_are_converted_at_a_time_are_bounded_in_bytes() {
        use futures::FutureExt as _;
        let spec = json!({"conversion": {"strategy": "Webhook", "webhook": {"clientConfig": {"url": "https://h"}}}});
        let conversion = Conversion::read(&json!({ "spec": spec })).expect("a webhook");
        let half = (CONVERTED_KIB_MAX << 10) / 2;
        let held = conversion.room(half).now_or_never().expect("room");
        assert!(conversion.room(half + 1).now_or_never().is_none());
        drop(held);
        // More than there is waits for all of it.
        let all = conversion.room(usize::MAX).now_or_never().expect("room");
        assert!(conversion.room(1).now_or_never().is_none());
        drop(all);
        assert!(conversion.room(1).now_or_never().is_some());
    }

    #[tokio::test]
    async fn what_is_kept_is_what_is_stored() {
        let dir = tempfile::tempdir().unwrap();
        let keyspace = Keyspace::open(coracle_keyspace::Config::new(dir.path())).await.unwrap();
        let hooks = Hooks::new(&keyspace);
        assert!(hooks.now(&keyspace).await.is_none() && hooks.now(&keyspace).await.is_none());
        let put = |collection: &'static str, name: &'static str, webhooks: Value| {
            // The revision is put into the text at this place.
            let bytes = format!("{{\"v\":\"\",{}", &json!({"webhooks": webhooks}).to_string()[1..]);
            let value = Content { revision_at: 6, bytes: bytes.into() };
            keyspace.transact(vec![Op::Put { key: Key::new(collection, name), value, guard: Guard::None }])
        };
        put(MUTATING, "b", json!([{"name": "1"}, {"name": "2"}])).await.unwrap();
        put(MUTATING, "a", json!([{"name": "3"}])).await.unwrap();
        put(VALIDATING, "x", json!([{"name": "4"}, {"name": "4"}])).await.unwrap();
        let names = |hooks: &[Arc<Hook>]| hooks.iter().map(|hook| hook.id.clone()).collect::<Vec<_>>();
        let asked = || Box::pin(hooks.now(&keyspace));
        let first = asked().await.expect("some");
        // Who asks when nothing has changed waits for nobody.
        assert!(futures::poll!(asked()).is_ready());
        assert_eq!(names(&first.mutating), ["a/3/0", "b/1/0", "b/2/0"]);
        assert_eq!(names(&first.validating), ["x/4/0", "x/4/1"]);
        // What has not changed keeps its connections.
        put(MUTATING, "a", json!([])).await.unwrap();
        let second = hooks.now(&keyspace).await.expect("some");
        assert_eq!(names(&second.mutating), ["b/1/0", "b/2/0"]);
        assert!(Arc::ptr_eq(&first.mutating[1], &second.mutating[0]));
        for (collection, name) in [(MUTATING, "a"), (MUTATING, "b"), (VALIDATING, "x")] {
            let delete = Op::Delete { key: Key::new(collection, name), guard: Guard::Present };
            keyspace.transact(vec![delete]).await.unwrap();
        }
        assert!(hooks.now(&keyspace).await.is_none());
        // One that cannot be read may be the one that refuses.
        for webhooks in [json!("none"), json!([{"name": "5", "rules": 7}]), json!([{"name": "5", "failurePolicy": 7}])]
        {
            put(VALIDATING, "damaged", webhooks.clone()).await.unwrap();
            let why = hooks.now(&keyspace).await.expect("some").unreadable.clone().expect("why");
            let words = "the stored bytes of ValidatingWebhookConfiguration damaged cannot be read";
            assert!(why.starts_with(words), "{webhooks}: {why}");
        }
        keyspace.shutdown().await;
    }
}
