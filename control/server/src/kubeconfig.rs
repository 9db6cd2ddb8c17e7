//! The kubeconfig that a person or a tool uses to reach the cluster: a context for each server. kubectl speaks with one server
//! of a context; `coracle` is this one, `coracle-NAME` another.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use coracle_keyspace::Keyspace;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::authority::{Authority, Pair, Subject};
use crate::{Error, MASTERS, tls};

const USER: &str = "coracle-admin";
/// Name of this server's entries; those of another are called so with its name behind.
const CLUSTER: &str = "coracle";
/// Bytes of a file that may be a kubeconfig; what is longer is replaced.
const BYTES_MAX: u64 = 4 << 20;

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
    /// Writes it, where it says something else, and leaves in it what people have put there.
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
            (format!("{CLUSTER}-{name}"), format!("https://{}", member.api))
        });
        let mut servers = vec![(CLUSTER.to_owned(), self.api_url.clone())];
        servers.extend(others);
        let own = render(&servers, self.authority.certificate(), &credentials);
        let Some(there) = read(&self.path) else {
            self.put_aside()?;
            return crate::write_kubeconfig(&self.path, &text(&own));
        };
        let merged = merge(there.clone(), own);
        if merged == there {
            return Ok(());
        }
        crate::write_kubeconfig(&self.path, &text(&merged))
    }

    /// Keeps a file that is no kubeconfig as it is, beside its place: a slip of an editor is no reason to lose what somebody has put
    /// there.
    fn put_aside(&self) -> Result<(), Error> {
        if !std::fs::symlink_metadata(&self.path).is_ok_and(|there| there.len() > 0) {
            return Ok(());
        }
        let aside = self.path.with_extension("unread");
        let moved = std::fs::rename(&self.path, &aside);
        moved.map_err(|source| Error::File { path: self.path.clone(), source })?;
        tracing::warn!(path = %aside.display(), "the kubeconfig could not be read: it is kept here, and a new one is written");
        Ok(())
    }

    /// Writes it again whenever there is another server, until `stop`.
    pub async fn follow(self, stop: CancellationToken) {
        loop {
            // Before what it is to follow is looked at.
            let (watcher, looked) = (self.keyspace.watch_group(), SystemTime::now());
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
                // The administrator's certificate may be another one then.
                () = tls::due(looked) => {}
                () = stop.cancelled() => return,
            }
        }
    }
}

/// A complete kubeconfig for one user of one cluster, whose first server is the current context's.
fn render(servers: &[(String, String)], authority: &str, credentials: &Pair) -> Value {
    let authority = STANDARD.encode(authority);
    let clusters = servers
        .iter()
        .map(|(name, url)| json!({"name": name, "cluster": {"server": url, "certificate-authority-data": authority}}));
    let contexts = servers.iter().map(|(name, _)| json!({"name": name, "context": {"cluster": name, "user": USER}}));
    json!({
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
    })
}

/// As a file: JSON, which is YAML.
fn text(config: &Value) -> String {
    let mut text = serde_json::to_string_pretty(config).expect("JSON of strings");
    text.push('\n');
    text
}

/// What is in the file, if that is a kubeconfig.
fn read(path: &Path) -> Option<Value> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(BYTES_MAX + 1).read_to_end(&mut bytes).ok()?;
    if bytes.len() as u64 > BYTES_MAX {
        return None;
    }
    let json = coracle_api::codec::yaml::to_json(&bytes).ok()?;
    serde_json::from_slice::<Value>(&json.bytes).ok().filter(|config| config["kind"] == "Config")
}

/// `own` in what is `there`: people are told to use the file, and kubectl writes into it. Whatever is not ours stays as it is (other
/// clusters, users, contexts), and so do the current context and the namespaces of ours. A file without our authority is another
/// cluster's, which was here before: nothing of it is kept.
fn merge(mut there: Value, own: Value) -> Value {
    let authority = &own["clusters"][0]["cluster"]["certificate-authority-data"];
    // Ours are the names that this writes, those of servers that are gone among them.
    let is_own = |cluster: &Value| {
        let name = cluster["name"].as_str().unwrap_or_default();
        (name == CLUSTER || name.strip_prefix(CLUSTER).is_some_and(|rest| rest.starts_with('-')))
            && cluster["cluster"]["certificate-authority-data"] == *authority
    };
    let before: Vec<Value> = list(&there, "clusters").iter().filter(|cluster| is_own(cluster)).cloned().collect();
    if before.is_empty() {
        return own;
    }
    let was_own = |entry: &Value| before.iter().any(|cluster| cluster["name"] == entry["name"]);
    let clusters = replaced(list(&there, "clusters"), list(&own, "clusters"), is_own);
    let users = replaced(list(&there, "users"), list(&own, "users"), |_| false);
    // One of a name of ours that leads to another cluster is somebody's own.
    let is_own_context = |entry: &Value| was_own(entry) && entry["context"]["cluster"] == entry["name"];
    let mut contexts = replaced(list(&there, "contexts"), list(&own, "contexts"), is_own_context);
    for context in &mut contexts {
        let known = list(&there, "contexts").iter().find(|known| known["name"] == context["name"]);
        if let Some(namespace) = known.and_then(|known| known["context"].get("namespace")) {
            context["context"]["namespace"] = namespace.clone();
        }
    }
    let is_there = contexts.iter().any(|context| context["name"] == there["current-context"]);
    if !is_there {
        there["current-context"] = own["current-context"].clone();
    }
    for (key, entries) in [("clusters", clusters), ("users", users), ("contexts", contexts)] {
        there[key] = Value::Array(entries);
    }
    there
}

fn list<'a>(config: &'a Value, key: &str) -> &'a [Value] {
    config[key].as_array().map(Vec::as_slice).unwrap_or_default()
}

/// The entries of `there`, with those of `own` in the place of theirs of the same names, or behind. What `is_stale` otherwise goes.
fn replaced(there: &[Value], own: &[Value], is_stale: impl Fn(&Value) -> bool) -> Vec<Value> {
    let named = |entries: &[Value], name: &Value| entries.iter().find(|entry| entry["name"] == *name).cloned();
    let stays = |entry: &Value| named(own, &entry["name"]).or_else(|| (!is_stale(entry)).then(|| entry.clone()));
    let new = own.iter().filter(|entry| named(there, &entry["name"]).is_none()).cloned();
    there.iter().filter_map(stays).chain(new).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(servers: &[&str], certificate: &str) -> Value {
        let servers: Vec<_> =
            servers.iter().map(|name| ((*name).to_owned(), format!("https://{name}.example"))).collect();
        render(&servers, "authority", &Pair { certificate: certificate.to_owned(), key: "key".to_owned() })
    }

    /// As kubectl leaves it: YAML, with a namespace, another cluster, and a context of ours that somebody made.
    const USED: &str = "
apiVersion: v1
kind: Config
preferences: {}
current-context: theirs
clusters:
- {name: coracle, cluster: {server: https://coracle.example, certificate-authority-data: YXV0aG9yaXR5}}
- {name: theirs, cluster: {server: https://theirs.example, insecure-skip-tls-verify: true}}
- {name: coracle-gone, cluster: {server: https://gone.example, certificate-authority-data: YXV0aG9yaXR5}}
- {name: coracle-other, cluster: {server: https://other.example, certificate-authority-data: b3RoZXI=}}
users:
- {name: coracle-admin, user: {client-certificate-data: b2xk, client-key-data: b2xk}}
- {name: them, user: {token: theirs}}
contexts:
- {name: coracle, context: {cluster: coracle, user: coracle-admin, namespace: team}}
- {name: coracle-gone, context: {cluster: coracle-gone, user: coracle-admin}}
- {name: theirs, context: {cluster: theirs, user: them}}
- {name: coracle-dev, context: {cluster: coracle, user: coracle-admin, namespace: dev}}
";

    #[test]
    fn what_people_have_put_into_the_file_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kubeconfig");
        std::fs::write(&path, USED).unwrap();
        let there = read(&path).unwrap();
        let merged = merge(there.clone(), own(&["coracle", "coracle-two"], "new"));
        let names = |key: &str| -> Vec<String> {
            list(&merged, key).iter().map(|entry| entry["name"].as_str().unwrap().to_owned()).collect()
        };
        assert_eq!(names("clusters"), ["coracle", "theirs", "coracle-other", "coracle-two"]);
        assert_eq!(names("users"), ["coracle-admin", "them"]);
        assert_eq!(names("contexts"), ["coracle", "theirs", "coracle-dev", "coracle-two"]);
        assert_eq!(merged["current-context"], "theirs");
        assert_eq!(merged["contexts"][0]["context"]["namespace"], "team");
        assert_eq!((&merged["clusters"][1], &merged["contexts"][2]), (&there["clusters"][1], &there["contexts"][3]));
        assert_eq!(merged["users"][0]["user"]["client-certificate-data"], STANDARD.encode("new"));
        // With nothing new nothing is written.
        assert_eq!(merge(merged.clone(), own(&["coracle", "coracle-two"], "new")), merged);
        // The current context was of a server that is gone.
        let mut there = there;
        there["current-context"] = "coracle-gone".into();
        assert_eq!(merge(there, own(&["coracle"], "new"))["current-context"], "coracle");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_start_leaves_what_people_have_put_into_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let server = crate::Server::start(crate::tests::config(dir.path())).await.unwrap();
        let path = server.kubeconfig().to_owned();
        server.shutdown().await;
        let mut config = read(&path).unwrap();
        let before = config["clusters"][0]["cluster"]["server"].clone();
        config["contexts"][0]["context"]["namespace"] = "team".into();
        config["contexts"]
            .as_array_mut()
            .unwrap()
            .push(json!({"name": "mine", "context": {"cluster": "x", "user": "y"}}));
        config["current-context"] = "mine".into();
        std::fs::write(&path, text(&config)).unwrap();
        // At another port.
        crate::Server::start(crate::tests::config(dir.path())).await.unwrap().shutdown().await;
        let mut after = read(&path).unwrap();
        assert_ne!(after["clusters"][0]["cluster"]["server"], before);
        after["clusters"][0]["cluster"]["server"] = before;
        assert_eq!(after, config);
        // What cannot be read is kept beside it.
        let slip = format!("{}\t- {{", text(&config));
        std::fs::write(&path, &slip).unwrap();
        crate::Server::start(crate::tests::config(dir.path())).await.unwrap().shutdown().await;
        assert_eq!(std::fs::read_to_string(path.with_extension("unread")).unwrap(), slip);
        assert!(read(&path).is_some());
    }

    #[test]
    fn what_is_no_kubeconfig_or_is_another_clusters_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kubeconfig");
        for text in ["", "rubbish", "kind: Pod", "{", "- a"] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(read(&path), None, "{text}");
        }
        std::fs::write(&path, vec![b' '; BYTES_MAX as usize + 1]).unwrap();
        assert_eq!(read(&path), None);
        let new = own(&["coracle"], "new");
        let other = USED.replace("YXV0aG9yaXR5", "b3RoZXI=");
        std::fs::write(&path, other).unwrap();
        assert_eq!(merge(read(&path).unwrap(), new.clone()), new);
        std::fs::write(&path, text(&new)).unwrap();
        assert_eq!(read(&path), Some(new));
    }
}
