//! The kubeconfig that a person or a tool uses to reach the cluster: a context for each server. kubectl speaks with one server
//! of a context; `coracle` is this one, `coracle-NAME` another.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use coracle_keyspace::Keyspace;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::authority::{Authority, Pair, Subject};
use crate::{Error, MASTERS};

/// How often it is looked whether the administrator's certificate was issued again.
const LOOK_EVERY: Duration = Duration::from_secs(12 * 3600);
const USER: &str = "coracle-admin";

/// The administrator's kubeconfig, which follows the cluster.
pub struct Kubeconfig {
    /// The file.
    pub path: PathBuf,
    /// This server's API, as it is reached from this machine.
    pub api_url: String,
    /// Who signs the administrator's certificate.
    pub authority: Arc<Authority>,
    /// Who the other servers are.
    pub keyspace: Keyspace,
}

impl Kubeconfig {
    /// Writes it, where it says something else.
    pub fn write(&self) -> Result<(), Error> {
        let credentials = self.authority.issue(
            &Subject {
                file: "admin".into(),
                user: USER.into(),
                groups: vec![MASTERS.into()],
                hosts: vec![],
                addresses: vec![],
            },
            SystemTime::now(),
        )?;
        let own = self.keyspace.member();
        let members = self.keyspace.members();
        let others = members.iter().filter(|member| member.member != own && !member.api.is_empty());
        let others = others.map(|member| {
            let name = if member.name.is_empty() { member.member.to_string() } else { member.name.clone() };
            (format!("coracle-{name}"), format!("https://{}", member.api))
        });
        let mut servers = vec![("coracle".to_owned(), self.api_url.clone())];
        servers.extend(others);
        crate::write_kubeconfig(&self.path, &render(&servers, self.authority.certificate(), &credentials))
    }

    /// Writes it again whenever there is another server, until `stop`.
    pub async fn follow(self, stop: CancellationToken) {
        loop {
            // Before what it is to follow is looked at.
            let watcher = self.keyspace.watch_group();
            if let Err(error) = self.write() {
                tracing::warn!(%error, "write the kubeconfig");
            }
            let changes = async {
                let changed = match watcher {
                    Some(mut watcher) => watcher.next().await.is_ok(),
                    None => false,
                };
                // Where nothing more is told the slower look finds out.
                if !changed {
                    std::future::pending::<()>().await;
                }
            };
            // Waiting is all that is cut here.
            tokio::select! {
                () = changes => {}
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = stop.cancelled() => return,
            }
        }
    }
}

/// A complete kubeconfig (JSON, which is YAML) for one user of one cluster, whose first server is the current context's.
fn render(servers: &[(String, String)], authority: &str, credentials: &Pair) -> String {
    let authority = STANDARD.encode(authority);
    let clusters = servers
        .iter()
        .map(|(name, url)| json!({"name": name, "cluster": {"server": url, "certificate-authority-data": authority}}));
    let contexts = servers.iter().map(|(name, _)| json!({"name": name, "context": {"cluster": name, "user": USER}}));
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "preferences": {},
        "clusters": clusters.collect::<Vec<Value>>(),
        "users": [{"name": USER, "user": {
            "client-certificate-data": STANDARD.encode(&credentials.certificate),
            "client-key-data": STANDARD.encode(&credentials.key),
        }}],
        "contexts": contexts.collect::<Vec<Value>>(),
        "current-context": servers.first().map(|(name, _)| name),
    });
    let mut text = serde_json::to_string_pretty(&config).expect("JSON of strings");
    text.push('\n');
    text
}
