//! APIServices: which there are of what is served here, whether those of other servers answer, and what these say of themselves.
//!
//! The server that leads writes: an APIService for each group version of a definition, whether each other server is there
//! (`Available`), and the ConfigMap by which other servers know this one. What they say of themselves each server asks for.

mod available;
mod hear;

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use coracle_api::kinds::is_local_version;
use coracle_api::meta;
use coracle_api::status::Status;
use futures::stream::{self, StreamExt};
use jiff::Timestamp;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use self::available::Verdicts;
pub(crate) use self::hear::hear;
use crate::aggregation::{Backend, COLLECTION};
use crate::catalog::{DEFINITIONS, Resource};
use crate::cluster::Cluster;
use crate::discovery::OF_DEFINITIONS;
use crate::duties::{self, Again};
use crate::outward::FrontProxy;
use crate::request::options::DeleteOptions;
use crate::request::own::own_call;
use crate::server::Shared;
use crate::store::Seen;
use crate::verbs::delete;
use crate::verbs::own::Own;

/// Whose work it is.
const WHO: &str = "system:apiservices";
const GROUP: &str = "apiregistration.k8s.io";
/// Who is written down for that (Kubernetes').
const MANAGER: &str = "kube-apiserver";
/// Says of an APIService that this server makes and removes it.
const AUTO_MANAGED: &str = "kube-aggregator.kubernetes.io/automanaged";
/// As whom other servers are asked.
const ASKS_AS: (&str, &[&str]) = ("system:kube-aggregator", &["system:masters"]);
/// How often what is to be there is looked at without a reason.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// How long one has for an answer (Kubernetes').
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);
/// Servers that are asked at a time.
const AT_A_TIME: usize = 16;

/// Goes on until the server stops: while this server leads.
pub(crate) async fn keep(server: Weak<Shared>, stopping: CancellationToken) {
    let verdicts = Arc::<Verdicts>::default();
    duties::keep(server, stopping, WHO, move |server| look(server, verdicts.clone())).await;
}

async fn look(server: Arc<Shared>, verdicts: Arc<Verdicts>) -> Result<Again, Status> {
    let cluster = &server.cluster;
    of_definitions(cluster).await?;
    if let Some(front) = cluster.backends.front() {
        publish(cluster, front, &server.config.authority).await?;
    }
    let configured = cluster.backends.now().await;
    let backends: Vec<Arc<Backend>> = configured.all().cloned().collect();
    let mut again =
        Again { collections: vec![COLLECTION.to_owned(), DEFINITIONS.to_owned()], within: Some(LOOK_EVERY) };
    verdicts.forget_others(&backends);
    if backends.is_empty() {
        return Ok(again);
    }
    for (group, name) in [("", "services"), ("discovery.k8s.io", "endpointslices")] {
        again.collections.extend(cluster.catalog.named(group, name).map(|found| found.row.collection().to_owned()));
    }
    let verdicts = &verdicts;
    let looked =
        stream::iter(backends).map(|backend| async move { available::look(cluster, &backend, verdicts).await });
    let mut failed = None;
    for next in looked.buffer_unordered(AT_A_TIME).collect::<Vec<_>>().await {
        match next {
            Ok(next) => again.within = again.within.min(Some(next)),
            Err(status) => failed = failed.or(Some(status)),
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
        Own::new(cluster, resource, None, name).by(MANAGER).make(object).await?;
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
    let own = Own::new(cluster, resource, Some(NAMESPACE), NAME);
    let object = || {
        json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": NAME, "namespace": NAMESPACE},
            "data": data(&Value::Null),
        })
    };
    let step = |old: &Value| {
        let mut object = old.clone();
        object["data"] = data(old);
        object
    };
    own.keep(object, step).await
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

#[cfg(test)]
mod tests {
    use super::*;

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
