//! A kubeconfig for another machine. The one in a server's data directory names the server as it is reached from its own machine.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use k8s_openapi::ByteString;
use kube::config::{AuthInfo, Cluster, Context, Kubeconfig, NamedAuthInfo, NamedCluster, NamedContext};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use crate::remote::{contexts, merged};
use crate::{AskError, Certificate, ConnectError, Remote};

/// What another machine needs to reach the cluster as whoever made it.
pub struct Elsewhere {
    /// The file, with the key in it.
    pub kubeconfig: String,
    /// The certificate of its user, if it has one, by the user's name.
    pub certificate: Option<Certificate>,
}

/// Why there is none.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ElsewhereError {
    /// There is none here.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The cluster does not say where it is.
    #[error("ask the cluster where others reach it")]
    Ask(#[source] AskError),
    /// Nobody reaches it.
    #[error(
        "the API listens on loopback only: start it with --bind 0.0.0.0, or say with --server by which URL it is reached"
    )]
    Loopback,
    /// What was said is no place of a server.
    #[error("{0:?} is no server: it must be https://HOST:PORT")]
    Server(String),
    /// What this one has cannot be carried away.
    #[error(
        "the kubeconfig {path} does not hold the authority and the credentials of context {context} themselves: --data-dir names the \
             cluster's own"
    )]
    NotWhole {
        /// The file.
        path: PathBuf,
        /// The context.
        context: String,
    },
}

impl Elsewhere {
    /// The current context of `paths`, which are merged as kubectl does, as another machine needs it: by the URL `server`, or by those at
    /// which the cluster says that others reach it.
    pub async fn of(paths: &[PathBuf], server: Option<&str>) -> Result<Elsewhere, ElsewhereError> {
        let config = merged(paths)?;
        let path = paths.first().cloned().unwrap_or_default();
        let known = match server {
            Some(server) => vec![checked(server)?],
            None => {
                let remote = Remote::connect_merged(paths, |moved| tracing::warn!("{moved}")).await?;
                let said = remote.server().await.map_err(ElsewhereError::Ask)?.join_urls;
                let far = said.into_iter().find(|url| !is_loopback(url)).ok_or(ElsewhereError::Loopback)?;
                once_each([far].into_iter().chain(others(&config)))
            }
        };
        whole(&config, &path, &known)
    }
}

fn checked(server: &str) -> Result<String, ElsewhereError> {
    let is_server = server
        .parse::<http::Uri>()
        .is_ok_and(|url| url.scheme_str() == Some("https") && url.host().is_some_and(|host| !host.is_empty()));
    if is_server { Ok(server.to_owned()) } else { Err(ElsewhereError::Server(server.to_owned())) }
}

/// The other servers of the cluster, whose contexts have the URLs that all reach.
fn others(config: &Kubeconfig) -> Vec<String> {
    let named = contexts(config).into_iter().flatten();
    let url = |name: String| {
        let context = config.contexts.iter().find(|context| context.name == name)?.context.as_ref()?;
        config.clusters.iter().find(|cluster| cluster.name == context.cluster)?.cluster.as_ref()?.server.clone()
    };
    named.filter_map(url).filter(|url| !is_loopback(url)).collect()
}

/// These in their order, each once: people make contexts of their own for a server.
fn once_each(urls: impl Iterator<Item = String>) -> Vec<String> {
    let mut known: Vec<String> = Vec::new();
    for url in urls {
        if !known.contains(&url) {
            known.push(url);
        }
    }
    known
}

fn is_loopback(url: &str) -> bool {
    let url = url.parse::<http::Uri>();
    let host = url.as_ref().ok().and_then(http::Uri::host).unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|host| host.is_loopback())
}

fn whole(config: &Kubeconfig, path: &Path, servers: &[String]) -> Result<Elsewhere, ElsewhereError> {
    let name = config.current_context.clone().unwrap_or_default();
    let not_whole = || ElsewhereError::NotWhole { path: path.to_owned(), context: name.clone() };
    let context = config.contexts.iter().find(|context| context.name == name);
    let context = context.and_then(|context| context.context.as_ref()).ok_or_else(not_whole)?;
    let cluster = config.clusters.iter().find(|cluster| cluster.name == context.cluster);
    let authority = cluster.and_then(|cluster| cluster.cluster.as_ref()?.certificate_authority_data.clone());
    let user_name = context.user.clone().ok_or_else(not_whole)?;
    let user = config.auth_infos.iter().find(|user| user.name == user_name);
    let user = user.and_then(|user| user.auth_info.as_ref()).ok_or_else(not_whole)?;
    let has_certificate = user.client_certificate_data.is_some() && user.client_key_data.is_some();
    if !(has_certificate || user.token.is_some()) {
        return Err(not_whole());
    }
    let authority = authority.ok_or_else(not_whole)?;
    let user = AuthInfo {
        client_certificate_data: user.client_certificate_data.clone(),
        client_key_data: user.client_key_data.clone(),
        token: user.token.clone(),
        ..AuthInfo::default()
    };
    let certificate = user.client_certificate_data.as_deref().and_then(ends);
    let certificate = certificate.map(|ends| Certificate { name: user_name.clone(), ends });
    let names = (0..servers.len()).map(|at| if at == 0 { name.clone() } else { format!("{name}-{}", at + 1) });
    let names: Vec<String> = names.collect();
    let clusters = names.iter().zip(servers).map(|(name, server)| NamedCluster {
        name: name.clone(),
        cluster: Some(Cluster {
            server: Some(server.clone()),
            certificate_authority_data: Some(authority.clone()),
            ..Cluster::default()
        }),
        other: BTreeMap::new(),
    });
    let contexts = names.iter().map(|name| NamedContext {
        name: name.clone(),
        context: Some(Context {
            cluster: name.clone(),
            user: Some(user_name.clone()),
            namespace: context.namespace.clone(),
            ..Context::default()
        }),
        other: BTreeMap::new(),
    });
    let kubeconfig = Kubeconfig {
        api_version: Some("v1".to_owned()),
        kind: Some("Config".to_owned()),
        clusters: clusters.collect(),
        contexts: contexts.collect(),
        auth_infos: vec![NamedAuthInfo { name: user_name.clone(), auth_info: Some(user), other: BTreeMap::new() }],
        current_context: Some(name.clone()),
        ..Kubeconfig::default()
    };
    let kubeconfig = serde_json::to_string_pretty(&kubeconfig).expect("JSON of strings");
    Ok(Elsewhere { kubeconfig, certificate })
}

/// When a certificate ends (PEM, in base64), Unix time in seconds.
fn ends(data: &str) -> Option<i64> {
    let ByteString(pem) = serde_json::from_value(data.into()).ok()?;
    let der = CertificateDer::from_pem_slice(&pem).ok()?;
    let (_, certificate) = x509_parser::parse_x509_certificate(&der).ok()?;
    Some(certificate.validity().not_after.timestamp())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn config(user: serde_json::Value) -> Kubeconfig {
        let cluster = |name: &str, url: &str| json!({"name": name, "cluster": {"server": url, "certificate-authority-data": "QQ=="}});
        let context =
            |name: &str| json!({"name": name, "context": {"cluster": name, "user": "me", "namespace": "team"}});
        let names = [("coracle", "https://127.0.0.1:6443"), ("coracle-two", "https://192.0.2.2:6443")];
        serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "coracle",
            "clusters": names.map(|(name, url)| cluster(name, url)),
            "contexts": names.map(|(name, _)| context(name)),
            "users": [{"name": "me", "user": user}],
        }))
        .unwrap()
    }

    #[test]
    fn another_machine_is_given_all_that_it_needs_by_urls_that_it_reaches() {
        let mut params = rcgen::CertificateParams::new(vec!["me".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(2030, 1, 2);
        let key = rcgen::KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        let data = serde_json::to_value(ByteString(pem.into_bytes())).unwrap();
        let own = config(json!({"client-certificate-data": data, "client-key-data": "a2V5"}));
        assert_eq!(others(&own), ["https://192.0.2.2:6443"]);
        let servers = ["https://192.0.2.1:6443".to_owned(), "https://192.0.2.2:6443".to_owned()];
        let made = whole(&own, Path::new("f"), &servers).unwrap();
        let certificate = made.certificate.unwrap();
        assert_eq!((certificate.name.as_str(), certificate.day().as_str()), ("me", "2030-01-02"));
        let made: Kubeconfig = serde_json::from_str(&made.kubeconfig).unwrap();
        let urls: Vec<_> = made.clusters.iter().map(|c| c.cluster.as_ref().unwrap().server.clone().unwrap()).collect();
        assert_eq!(urls, servers);
        assert_eq!(contexts(&made), [None, Some("coracle-2".to_owned())], "each by the same authority and user");
        assert_eq!(made.contexts[0].context.as_ref().unwrap().namespace.as_deref(), Some("team"));
        // Somebody has made contexts of the same servers, with other namespaces.
        let mut used = own.clone();
        used.clusters[0].cluster.as_mut().unwrap().server = Some(servers[0].clone());
        for cluster in ["coracle", "coracle-two"] {
            let context = json!({"name": format!("{cluster}-dev"), "context": {"cluster": cluster, "user": "me", "namespace": "dev"}});
            used.contexts.push(serde_json::from_value(context).unwrap());
        }
        assert_eq!(once_each([servers[0].clone()].into_iter().chain(others(&used))), servers);
        // Files are another machine's.
        let files = config(json!({"client-certificate": "/c", "client-key": "/k"}));
        assert!(matches!(whole(&files, Path::new("f"), &servers), Err(ElsewhereError::NotWhole { .. })));
    }

    #[test]
    fn a_server_for_others_is_an_https_url() {
        for good in ["https://api.example:6443", "https://[2001:db8::1]:6443", "https://api.example"] {
            assert_eq!(checked(good).unwrap(), good);
        }
        for bad in ["api.example:6443", "http://api.example", "https://", ""] {
            assert!(checked(bad).is_err(), "{bad}");
        }
        assert!(
            is_loopback("https://127.0.0.1:1") && is_loopback("https://[::1]:1") && !is_loopback("https://192.0.2.1")
        );
    }
}
