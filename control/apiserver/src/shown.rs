//! Secrets whose certificates nodes show: those that an Ingress or a Gateway names which nodes serve. A node agent may read them
//! ([`crate::authz::node`]).

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use coracle_api::codec::json;
use coracle_gateway::{KINDS, Known, Meta, Said};
use coracle_keyspace::{Keyspace, Record};
use serde_json::Value;

use crate::current::Current;

const INGRESSES: &str = "ingresses.networking.k8s.io";
const CLASSES: &str = "ingressclasses.networking.k8s.io";
/// `spec.controller` of classes whose Ingresses nodes serve.
const CONTROLLER: &str = "coracle.dev/ingress";

/// What of an Ingress there is to know.
struct Ingress {
    class: Option<String>,
    secrets: Vec<Arc<str>>,
}

impl Ingress {
    fn read(record: &Record) -> Ingress {
        let object = parsed(record).unwrap_or_default();
        let annotation = &object["metadata"]["annotations"]["kubernetes.io/ingress.class"];
        let class = object["spec"]["ingressClassName"].as_str().or_else(|| annotation.as_str());
        let tls = object["spec"]["tls"].as_array().into_iter().flatten();
        let secrets = tls.filter_map(|tls| tls["secretName"].as_str()).map(Arc::from);
        Ingress { class: class.map(str::to_owned), secrets: secrets.collect() }
    }
}

/// An object as it is stored. One that cannot be read names nothing.
fn parsed(record: &Record) -> Option<Value> {
    json::parse_cut(&record.bytes).ok().map(|(object, _)| object)
}

/// Secrets, by namespace.
type Secrets = HashMap<Arc<str>, HashSet<Arc<str>>>;

/// All that are named, and of what that was read.
#[derive(Default)]
struct Named {
    secrets: Secrets,
    ingresses: HashMap<Arc<str>, (Arc<Record>, Arc<Ingress>)>,
    gateways: Arc<Gateways>,
}

/// A record, and of which kind it is.
type Of = (usize, Arc<Record>);

/// What Gateways name.
#[derive(Default)]
struct Gateways {
    records: Vec<Of>,
    secrets: Vec<(Arc<str>, Arc<str>)>,
}

impl Gateways {
    /// The same where nothing of them has changed.
    fn next(self: &Arc<Gateways>, keyspace: &Keyspace) -> Arc<Gateways> {
        let records = kinds().flat_map(|(kind, collection)| {
            let records = keyspace.snapshot(&collection).records;
            records.values().map(|record| (kind, record.clone())).collect::<Vec<_>>()
        });
        let records: Vec<Of> = records.collect();
        let is_same = |((kind, record), (known, before)): (&Of, &Of)| kind == known && Arc::ptr_eq(record, before);
        if records.len() == self.records.len() && records.iter().zip(&self.records).all(is_same) {
            return self.clone();
        }
        let mut known = Known::default();
        for (kind, record) in &records {
            let Some(mut object) = parsed(record) else { continue };
            let Ok(metadata) = serde_json::from_value(object["metadata"].clone()) else { continue };
            // What cannot be read is served by nobody.
            let _ = known.take(*kind, Said::Object(Meta::of(&metadata), object["spec"].take(), Value::Null));
        }
        let resolved = known.objects.resolve(&|_, _| None);
        let listeners = resolved.gateways.iter().flat_map(|gateway| &gateway.listeners);
        let secrets = listeners.flat_map(|listener| listener.secrets.iter().cloned()).collect();
        Arc::new(Gateways { records, secrets })
    }
}

/// The kinds by which Gateways come to Secrets, by their places in [`KINDS`], and their collections. Routes have none.
fn kinds() -> impl Iterator<Item = (usize, String)> {
    let named = KINDS.iter().enumerate().filter(|(_, (name, ..))| !name.ends_with("Route"));
    named.map(|(kind, (_, plural, _))| (kind, format!("{plural}.{}", coracle_gateway::GROUP)))
}

impl Named {
    fn next(&self, keyspace: &Keyspace) -> Named {
        let is_ours = |class: &Value| class["spec"]["controller"] == CONTROLLER;
        let classes = keyspace.snapshot(CLASSES).records;
        let classes: HashSet<&str> = classes
            .iter()
            .filter(|(_, record)| parsed(record).as_ref().is_some_and(is_ours))
            .map(|(name, _)| &**name)
            .collect();
        let mut next = Named { gateways: self.gateways.next(keyspace), ..Named::default() };
        for (name, record) in &keyspace.snapshot(INGRESSES).records {
            let known = self.ingresses.get(name).filter(|(known, _)| Arc::ptr_eq(known, record));
            let ingress = known.map_or_else(|| Arc::new(Ingress::read(record)), |(_, ingress)| ingress.clone());
            if ingress.class.as_deref().is_some_and(|class| classes.contains(class)) && !ingress.secrets.is_empty() {
                let namespace = name.split_once('/').map_or("", |(namespace, _)| namespace);
                let secrets = next.secrets.entry(namespace.into()).or_default();
                secrets.extend(ingress.secrets.iter().cloned());
            }
            next.ingresses.insert(name.clone(), (record.clone(), ingress));
        }
        for (namespace, name) in &next.gateways.secrets {
            next.secrets.entry(namespace.clone()).or_default().insert(name.clone());
        }
        next
    }
}

/// The Secrets that are named now.
pub(crate) struct Shown(Current<Named>);

impl Shown {
    pub fn new(keyspace: &Keyspace) -> Shown {
        let of_gateways: Vec<String> = kinds().map(|(_, collection)| collection).collect();
        let collections: Vec<&str> =
            [INGRESSES, CLASSES].into_iter().chain(of_gateways.iter().map(String::as_str)).collect();
        Shown(Current::new(keyspace, &collections, |named| named.secrets.is_empty()))
    }

    /// Whether one is among them.
    pub async fn has(&self, keyspace: &Keyspace, namespace: &str, secret: &str) -> bool {
        if !self.0.any() {
            return false;
        }
        let read = || {
            let keyspace = keyspace.clone();
            move |before: &Named| before.next(&keyspace)
        };
        let named = self.0.get(read).await;
        named.secrets.get(namespace).is_some_and(|names| names.contains(secret))
    }
}

#[cfg(test)]
mod tests {
    use coracle_keyspace::{Guard, Key, Op, Value as Content};
    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn what_has_not_changed_is_not_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let keyspace = Keyspace::open(coracle_keyspace::Config::new(dir.path())).await.unwrap();
        let put = async |collection: &str, name: &str, object: Value| {
            // The revision is put into the text at this place.
            let text = format!("{{\"v\":\"\",{}", &object.to_string()[1..]);
            let value = Content { revision_at: 6, bytes: text.into() };
            let key = Key::new(collection, name);
            keyspace.transact(vec![Op::Put { key, value, guard: Guard::None }]).await.unwrap();
        };
        let ingress =
            |class: &str, secret: &str| json!({"spec": {"ingressClassName": class, "tls": [{"secretName": secret}]}});
        let shown = Shown::new(&keyspace);
        let has = async |secret: &str| shown.has(&keyspace, "a", secret).await;
        assert!(!has("one").await);
        put(CLASSES, "ours", json!({"spec": {"controller": CONTROLLER}})).await;
        put(CLASSES, "theirs", json!({"spec": {"controller": "e.com/other"}})).await;
        put(INGRESSES, "a/one", ingress("ours", "one")).await;
        put(INGRESSES, "a/two", ingress("theirs", "two")).await;
        put(INGRESSES, "b/three", ingress("ours", "three")).await;
        assert_eq!((has("one").await, has("two").await, has("three").await), (true, false, false));
        let read = |named: &Named| named.ingresses["a/one"].1.clone();
        let (before, gateways) = (read(&shown.0.last()), shown.0.last().gateways.clone());
        put(INGRESSES, "a/two", ingress("ours", "two")).await;
        assert!(has("two").await && has("one").await);
        let now = shown.0.last();
        assert!(Arc::ptr_eq(&before, &read(&now)) && Arc::ptr_eq(&gateways, &now.gateways));
        put(CLASSES, "ours", json!({"spec": {"controller": "e.com/other"}})).await;
        assert!(!has("one").await && !shown.0.any());
        keyspace.shutdown().await;
    }
}
