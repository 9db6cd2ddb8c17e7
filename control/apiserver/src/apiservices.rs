//! APIServices: which there are of what is served here, whether those of other servers answer, and what these say of themselves.
//!
//! The server that leads writes: an APIService for each group version of a definition, whether each other server is there
//! (`Available`), and the ConfigMap by which other servers know this one. What they say of themselves each server asks for.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use coracle_api::codec::json;
use coracle_api::kinds::is_local_version;
use coracle_api::meta;
use coracle_api::meta::selector::{FieldSelector, LabelSelector};
use coracle_api::status::Status;
use coracle_keyspace::WatchEnded;
use futures::stream::{self, StreamExt};
use http::{StatusCode, header};
use jiff::Timestamp;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::aggregation::{Backend, COLLECTION, OPENAPI_BYTES_MAX, Told, resources_of, spec_of};
use crate::catalog::{DEFINITIONS, Resource};
use crate::cluster::Cluster;
use crate::duties::{self, Again};
use crate::outward::FrontProxy;
use crate::relay::{self, Read};
use crate::request::negotiate::JSON;
use crate::request::options::DeleteOptions;
use crate::request::own::own_call;
use crate::server::Shared;
use crate::store::{self, Seen};
use crate::verbs::create::insert;
use crate::verbs::delete;
use crate::verbs::update::{Changed, change};
use crate::verbs::write::Write;

/// Whose work it is.
const WHO: &str = "system:apiservices";
const GROUP: &str = "apiregistration.k8s.io";
/// Who is written down for that (Kubernetes').
const MANAGER: &str = "kube-apiserver";
/// Says of an APIService that this server makes and removes it.
const AUTO_MANAGED: &str = "kube-aggregator.kubernetes.io/automanaged";
/// Priorities of what definitions make (Kubernetes').
const OF_DEFINITIONS: (i64, i64) = (1_000, 100);
/// As whom other servers are asked.
const ASKS_AS: (&str, &[&str]) = ("system:kube-aggregator", &["system:masters"]);
/// How often what is to be there is looked at without a reason.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// How often a server that answers is asked whether it still does, and one that does not.
const ASK_EVERY: Duration = Duration::from_secs(30);
const ASK_AGAIN: Duration = Duration::from_secs(3);
/// How long one has for an answer (Kubernetes').
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);
/// Attempts at the same time: of several endpoints one may be gone.
const ATTEMPTS: usize = 3;
/// Servers that are asked at a time.
const AT_A_TIME: usize = 16;
/// How often what they say of themselves is asked for without a reason.
const TOLD_EVERY: Duration = Duration::from_secs(60);
/// Bytes of an answer about resources.
const DISCOVERY_BYTES_MAX: usize = 4 << 20;

/// Goes on until the server stops: while this server leads.
pub(crate) async fn keep(server: Weak<Shared>, stopping: CancellationToken) {
    duties::keep(server, stopping, WHO, look).await;
}

async fn look(server: Arc<Shared>) -> Result<Again, Status> {
    let cluster = &server.cluster;
    of_definitions(cluster).await?;
    if let Some(front) = cluster.backends.front() {
        publish(cluster, front, &server.config.authority).await?;
    }
    let backends: Vec<Arc<Backend>> = cluster.backends.now().all().cloned().collect();
    let mut again =
        Again { collections: vec![COLLECTION.to_owned(), DEFINITIONS.to_owned()], within: Some(LOOK_EVERY) };
    if backends.is_empty() {
        return Ok(again);
    }
    again.within = Some(ASK_EVERY);
    for (group, name) in [("", "services"), ("discovery.k8s.io", "endpointslices")] {
        again.collections.extend(cluster.catalog.named(group, name).map(|found| found.row.collection().to_owned()));
    }
    let asked = stream::iter(backends).map(|backend| async move {
        let found = condition(cluster, &backend).await;
        let is_there = found["status"] == "True";
        (is_there, write(cluster, &backend, found).await)
    });
    let mut failed = None;
    for (is_there, written) in asked.buffer_unordered(AT_A_TIME).collect::<Vec<_>>().await {
        if !is_there {
            again.within = Some(ASK_AGAIN);
        }
        if let Err(status) = written {
            failed = failed.or(Some(status));
        }
    }
    failed.map_or(Ok(again), Err)
}

fn resource<'a>(cluster: &'a Cluster, group: &str, name: &str) -> Result<&'a Arc<Resource>, Status> {
    cluster.catalog.named(group, name).ok_or_else(Status::path_not_found)
}

/// Makes APIServices of what definitions serve, and removes those of what they serve no more.
async fn of_definitions(cluster: &Cluster) -> Result<(), Status> {
    let resource = resource(cluster, GROUP, "apiservices")?;
    let served = cluster.served().await;
    let mut wanted: BTreeMap<String, (String, String)> = BTreeMap::new();
    for standing in served.all().into_iter().filter(|standing| standing.is_served()) {
        for version in standing.definition.served() {
            let (group, version) = (standing.definition.group.clone(), version.name.clone());
            if !is_local_version(&group, &version) {
                wanted.insert(format!("{version}.{group}"), (group, version));
            }
        }
    }
    let records = cluster.store.keyspace.snapshot(COLLECTION).records;
    for (name, (group, version)) in &wanted {
        if records.contains_key(name.as_str()) {
            continue;
        }
        let object = json!({
            "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
            "metadata": {"name": name, "labels": {AUTO_MANAGED: "true"}},
            "spec": {
                "group": group, "version": version, "groupPriorityMinimum": OF_DEFINITIONS.0,
                "versionPriority": OF_DEFINITIONS.1,
            },
        });
        let (call, mut options) = own_call(None, name);
        MANAGER.clone_into(&mut options.manager);
        let write = Write { cluster, call: &call, resource, options: &options, subresource: "" };
        match insert(&write, object, false).await {
            Err(status) if status.reason != "AlreadyExists" => return Err(status),
            _ => {}
        }
    }
    for (name, record) in &records {
        if wanted.contains_key(&**name) {
            continue;
        }
        let object = Seen::new(resource, record).stored()?;
        if object["metadata"]["labels"][AUTO_MANAGED] != "true" || meta::is_deleting(&object) {
            continue;
        }
        let (call, _) = own_call(None, name);
        let options = DeleteOptions { uid: Some(meta::uid(&object).to_owned()), ..DeleteOptions::default() };
        match delete::remove_record(cluster, &call.identity, resource, record, &options, None).await {
            Err(status) if !matches!(status.code(), 404 | 409) => return Err(status),
            _ => {}
        }
    }
    Ok(())
}

/// Says by whom other servers are asked, and who this cluster's clients are.
async fn publish(cluster: &Cluster, front: &FrontProxy, clients: &str) -> Result<(), Status> {
    const NAMESPACE: &str = "kube-system";
    const NAME: &str = "extension-apiserver-authentication";
    let resource = resource(cluster, "", "configmaps")?;
    let list = |text: &str| json!([text]).to_string();
    let data = |old: &Value| {
        let mut data = old["data"].clone();
        if !data.is_object() {
            data = json!({});
        }
        if !clients.is_empty() {
            data["client-ca-file"] = clients.into();
        }
        // Each server writes the certificate anew when it starts, for the same key: which of them is there makes no difference.
        let known = data["requestheader-client-ca-file"].as_str().unwrap_or_default();
        if !is_of_same_key(known, &front.authority) {
            data["requestheader-client-ca-file"] = front.authority.as_str().into();
        }
        data["requestheader-allowed-names"] = list(FrontProxy::NAME).into();
        data["requestheader-username-headers"] = list("X-Remote-User").into();
        data["requestheader-uid-headers"] = list("X-Remote-Uid").into();
        data["requestheader-group-headers"] = list("X-Remote-Group").into();
        data["requestheader-extra-headers-prefix"] = list("X-Remote-Extra-").into();
        data
    };
    let (call, options) = own_call(Some(NAMESPACE), NAME);
    let write = Write { cluster, call: &call, resource, options: &options, subresource: "" };
    if cluster.store.get(resource, &resource.record_name(Some(NAMESPACE), NAME)).is_none() {
        let object = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": NAME, "namespace": NAMESPACE},
            "data": data(&Value::Null),
        });
        return match insert(&write, object, false).await {
            Err(status) if status.reason != "AlreadyExists" => Err(status),
            _ => Ok(()),
        };
    }
    let step = |old: &Value| {
        let mut object = old.clone();
        object["data"] = data(old);
        Ok(Changed { object, owned: false, names_version: false })
    };
    change(&write, step).await.map(drop)
}

/// Whether one certificate (PEM) is of the same key as another, and good for a year.
fn is_of_same_key(known: &str, other: &str) -> bool {
    const YEAR_SECONDS: i64 = 365 * 24 * 3600;
    let key = |pem: &str| {
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).ok()?;
        let (_, certificate) = x509_parser::parse_x509_certificate(&der).ok()?;
        let key = (certificate.public_key().raw.to_vec(), certificate.subject().as_raw().to_vec());
        Some((key, certificate.validity().not_after.timestamp()))
    };
    match (key(known), key(other)) {
        (Some((known, end)), Some((other, _))) => known == other && end > Timestamp::now().as_second() + YEAR_SECONDS,
        _ => false,
    }
}

/// Whether another server is there, as a condition but for its time.
async fn condition(cluster: &Cluster, backend: &Backend) -> Value {
    let of = |status: &str, reason: &str, message: String| json!({"type": "Available", "status": status, "reason": reason, "message": message});
    if cluster.served().await.serves(&backend.group, &backend.version) {
        let message = "a CustomResourceDefinition serves this version of the group".to_owned();
        return of("False", "ServedLocally", message);
    }
    let (namespace, name, port) = (&backend.namespace, &backend.service, backend.port);
    let quoted = meta::text::quote(namespace);
    match endpoints(cluster, namespace, name, port) {
        Ok(None) => {
            return of("False", "ServiceNotFound", format!("service/{name} in {quoted} is not present"));
        }
        Ok(Some(Endpoints::NoPort)) => {
            let message = format!("service/{name} in {quoted} is not listening on port {port}");
            return of("False", "ServicePortError", message);
        }
        Ok(Some(Endpoints::NoSlices)) => {
            let message = format!("cannot find endpointslices for service/{name} in {quoted}");
            return of("False", "EndpointsNotFound", message);
        }
        Ok(Some(Endpoints::NoneReady(port))) => {
            let port = meta::text::quote(&port);
            let message =
                format!("endpointslices for service/{name} in {quoted} have no addresses with port name {port}");
            return of("False", "MissingEndpoints", message);
        }
        Ok(Some(Endpoints::Ready)) => {}
        Err(status) => {
            let message = format!("service/{name} in {quoted} cannot be checked due to: {}", status.message);
            return of("Unknown", "ServiceAccessError", message);
        }
    }
    let path = format!("/apis/{}/{}", backend.group, backend.version);
    let attempts = (0..ATTEMPTS).map(|_| {
        Box::pin(async {
            let bounds = (DISCOVERY_BYTES_MAX, ANSWERS_WITHIN);
            match relay::fetch(cluster, backend, ASKS_AS, &path, &[], bounds).await {
                Ok(Read { code, .. }) if code.is_success() || code.is_redirection() => Ok(()),
                Ok(Read { code, url, .. }) => {
                    Err(format!("failing or missing response from {url}: bad status from {url}: {}", code.as_u16()))
                }
                Err((url, why)) => {
                    let quoted = meta::text::quote(&url);
                    Err(format!("failing or missing response from {url}: Get {quoted}: {why}"))
                }
            }
        })
    });
    match futures::future::select_ok(attempts).await {
        Ok(_) => of("True", "Passed", "all checks passed".to_owned()),
        Err(why) => of("False", "FailedDiscoveryCheck", why),
    }
}

enum Endpoints {
    NoPort,
    NoSlices,
    /// None that is ready at the port of this name.
    NoneReady(String),
    Ready,
}

/// What there is behind a port of a Service; `None` when there is no such Service.
fn endpoints(cluster: &Cluster, namespace: &str, name: &str, port: u16) -> Result<Option<Endpoints>, Status> {
    let services = resource(cluster, "", "services")?;
    let Some(record) = cluster.store.get(services, &services.record_name(Some(namespace), name)) else {
        return Ok(None);
    };
    let service = Seen::new(services, &record).stored()?;
    if !matches!(service["spec"]["type"].as_str(), None | Some("ClusterIP")) {
        return Ok(Some(Endpoints::Ready));
    }
    let ports = service["spec"]["ports"].as_array().into_iter().flatten();
    let Some(found) = ports.into_iter().find(|of| of["port"] == port) else { return Ok(Some(Endpoints::NoPort)) };
    let port_name = found["name"].as_str().unwrap_or_default();
    let slices = resource(cluster, "discovery.k8s.io", "endpointslices")?;
    let of_service = LabelSelector::from_pairs([("kubernetes.io/service-name", name)]);
    let snapshot = cluster.store.keyspace.snapshot(slices.row.collection());
    let (mut any, mut ready) = (false, false);
    for (_, record) in store::range(&snapshot.records, Some(namespace), None) {
        let seen = Seen::new(slices, record);
        if !seen.matches(&of_service, &FieldSelector::everything()) {
            continue;
        }
        any = true;
        let slice = seen.stored()?;
        let mut endpoints = slice["endpoints"].as_array().into_iter().flatten();
        let mut ports = slice["ports"].as_array().into_iter().flatten();
        ready |= endpoints.any(|endpoint| endpoint["conditions"]["ready"].as_bool().unwrap_or(true))
            && ports.any(|port| port["name"].as_str().unwrap_or_default() == port_name && !port["port"].is_null());
    }
    Ok(Some(match (any, ready) {
        (false, _) => Endpoints::NoSlices,
        (true, false) => Endpoints::NoneReady(port_name.to_owned()),
        (true, true) => Endpoints::Ready,
    }))
}

async fn write(cluster: &Cluster, backend: &Backend, found: Value) -> Result<(), Status> {
    let resource = resource(cluster, GROUP, "apiservices")?;
    let (call, mut options) = own_call(None, &backend.name);
    MANAGER.clone_into(&mut options.manager);
    let write = Write { cluster, call: &call, resource, options: &options, subresource: "status" };
    let step = |old: &Value| {
        let mut object = old.clone();
        // It is another's now, or nobody's.
        if !old["spec"]["service"].is_null() {
            tell(&mut object, found.clone());
        }
        Ok(Changed { object, owned: false, names_version: false })
    };
    match change(&write, step).await {
        Err(status) if status.code() != 404 => Err(status),
        _ => Ok(()),
    }
}

/// Says it of an APIService; since when, where it is not what was said before.
fn tell(object: &mut Value, mut found: Value) {
    let known = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let at = known.iter().position(|condition| condition["type"] == found["type"]);
    let before = at.and_then(|at| known.get(at));
    let since =
        before.filter(|before| before["status"] == found["status"]).map(|before| before["lastTransitionTime"].clone());
    found["lastTransitionTime"] = since.unwrap_or_else(|| meta::time::format(Timestamp::now()).into());
    let mut conditions = known.clone();
    match at {
        Some(at) => conditions[at] = found,
        None => conditions.push(found),
    }
    object["status"]["conditions"] = conditions.into();
}

/// Asks other servers what they serve, when an APIService changes and now and then, until the server stops.
pub(crate) async fn hear(server: Weak<Shared>, stopping: CancellationToken) {
    let mut asked = Asked { backends: BTreeMap::new(), at: tokio::time::Instant::now() };
    loop {
        let Some(alive) = server.upgrade() else { return };
        let keyspace = alive.cluster.store.keyspace.clone();
        let after = keyspace.revision();
        if stopping.run_until_cancelled(asked.round(&alive.cluster)).await.is_none() {
            return;
        }
        // A server that is dropped is not kept alive by this.
        drop(alive);
        let changed = async {
            // What is forgotten has changed.
            let Ok(mut watcher) = keyspace.watch(COLLECTION, after) else { return };
            if let Err(WatchEnded::Stopped) = watcher.next().await {
                std::future::pending().await
            }
        };
        let wait = match asked.backends.is_empty() {
            true => Duration::MAX,
            false => TOLD_EVERY.saturating_sub(asked.at.elapsed()),
        };
        tokio::select! {
            () = changed => {}
            () = tokio::time::sleep(wait) => {}
            () = stopping.cancelled() => return,
        }
    }
}

/// What other servers were asked for.
struct Asked {
    /// By what their APIServices said then.
    backends: BTreeMap<Arc<str>, Arc<Backend>>,
    /// When all were asked.
    at: tokio::time::Instant,
}

impl Asked {
    async fn round(&mut self, cluster: &Cluster) {
        let configured = cluster.backends.now();
        let all: Vec<Arc<Backend>> = configured.all().cloned().collect();
        let is_due = self.at.elapsed() >= TOLD_EVERY;
        if is_due {
            self.at = tokio::time::Instant::now();
        }
        let is_new =
            |backend: &Arc<Backend>| self.backends.get(&backend.name).is_none_or(|known| !Arc::ptr_eq(known, backend));
        let due: Vec<Arc<Backend>> = all.iter().filter(|backend| is_due || is_new(backend)).cloned().collect();
        let known = &configured;
        let told = stream::iter(due).map(|backend| async move {
            let known = known.told(&backend).map(|told| Told::clone(told)).unwrap_or_default();
            let told = ask(cluster, &backend, &known).await;
            (told != known).then(|| (backend.name.clone(), told))
        });
        let told: Vec<Option<(Arc<str>, Told)>> = told.buffer_unordered(AT_A_TIME).collect().await;
        cluster.backends.remember(told.into_iter().flatten().collect());
        self.backends = all.into_iter().map(|backend| (backend.name.clone(), backend)).collect();
    }
}

/// What is read of a JSON document of a server's, of so many bytes at most; none when it has none. It is read aside: it may
/// be large, and is somebody else's.
async fn get<T: Send + 'static>(
    cluster: &Cluster,
    backend: &Arc<Backend>,
    path: &str,
    (accept, most): (&str, usize),
    read: impl FnOnce(&Value, &Backend) -> Option<T> + Send + 'static,
) -> Option<T> {
    let accept = [(header::ACCEPT, accept.to_owned())];
    let answer = relay::fetch(cluster, backend, ASKS_AS, path, &accept, (most, ANSWERS_WITHIN)).await.ok()?;
    if answer.code != StatusCode::OK {
        return None;
    }
    let of = backend.clone();
    let read = move || read(&json::parse(&answer.body).ok()?, &of);
    coracle_keyspace::spawn_blocking(read).await.ok()?
}

/// What a server says of a group version; what it does not answer is as it was.
async fn ask(cluster: &Cluster, backend: &Arc<Backend>, known: &Told) -> Told {
    let mut told = known.clone();
    told.is_current = false;
    if !backend.is_available {
        return told;
    }
    let (group, version) = (&backend.group, &backend.version);
    let at = format!("/apis/{group}/{version}");
    let aggregated = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let resources = |document: &Value, of: &Backend| resources_of(document, &of.group, &of.version);
    let found = match get(cluster, backend, "/apis", (aggregated, DISCOVERY_BYTES_MAX), resources).await {
        Some(found) => Some(found),
        None => get(cluster, backend, &at, (JSON, DISCOVERY_BYTES_MAX), resources).await,
    };
    if let Some(resources) = found {
        told.resources = resources;
        told.is_current = true;
    }
    let hash = |index: &Value, of: &Backend| {
        let url = index["paths"][format!("apis/{}/{}", of.group, of.version)]["serverRelativeURL"].as_str();
        Some(url.map(|url| url.split_once("hash=").map_or("", |(_, hash)| hash).to_owned()))
    };
    if let Some(hash) = get(cluster, backend, "/openapi/v3", (JSON, DISCOVERY_BYTES_MAX), hash).await {
        told.v3_hash = hash;
    }
    let spec = |document: &Value, of: &Backend| Some(spec_of(document, &of.group, &of.version));
    if let Some(spec) = get(cluster, backend, "/openapi/v2", (JSON, OPENAPI_BYTES_MAX), spec).await {
        told.v2 = spec;
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_says_since_when_it_is_so() {
        let of = |status: &str, reason: &str| json!({"type": "Available", "status": status, "reason": reason, "message": ""});
        let mut object = json!({"status": {"conditions": [{"type": "Other", "status": "True"}]}});
        tell(&mut object, of("False", "ServiceNotFound"));
        object["status"]["conditions"][1]["lastTransitionTime"] = json!("2001-01-01T00:00:00Z");
        tell(&mut object, of("False", "MissingEndpoints"));
        let condition = &object["status"]["conditions"][1];
        assert_eq!(
            (&condition["reason"], &condition["lastTransitionTime"]),
            (&json!("MissingEndpoints"), &json!("2001-01-01T00:00:00Z"))
        );
        tell(&mut object, of("True", "Passed"));
        assert_ne!(object["status"]["conditions"][1]["lastTransitionTime"], "2001-01-01T00:00:00Z");
        assert_eq!(object["status"]["conditions"].as_array().map(Vec::len), Some(2));
    }

    #[test]
    fn certificates_of_one_key_and_name_are_the_same_authority() {
        let key = rcgen::KeyPair::generate().unwrap();
        let of = |key: &rcgen::KeyPair, name: &str, years: i32| {
            let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
            params.distinguished_name.push(rcgen::DnType::CommonName, name);
            params.not_after = rcgen::date_time_ymd(2026 + years, 12, 31);
            params.self_signed(key).unwrap().pem()
        };
        let published = of(&key, "a", 30);
        assert!(is_of_same_key(&published, &of(&key, "a", 20)));
        assert!(!is_of_same_key(&published, &of(&key, "b", 30)));
        assert!(!is_of_same_key(&published, &of(&rcgen::KeyPair::generate().unwrap(), "a", 30)));
        assert!(!is_of_same_key(&of(&key, "a", -10), &published) && !is_of_same_key("", &published));
    }
}
