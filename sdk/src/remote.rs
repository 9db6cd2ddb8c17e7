//! A cluster as a client sees it: by its kubeconfig, from this process or from afar.

use std::path::{Path, PathBuf};

use http::Request;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::ListParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use serde::{Deserialize, Serialize};

/// Why a cluster cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No kubeconfig there.
    #[error("read the kubeconfig {path}: is the cluster started? `coracle up` writes it")]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<kube::config::KubeconfigError>,
    },
    /// The client could not be made of it.
    #[error("use the kubeconfig {path}")]
    Client {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<kube::Error>,
    },
}

/// A cluster reached through its API.
#[derive(Clone)]
pub struct Remote {
    client: Client,
}

/// What a cluster says of itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Where the API is.
    pub api_url: String,
    /// Where the registry answers on the server's machine, without TLS.
    pub registry: String,
    /// Where the server keeps everything.
    pub data_dir: PathBuf,
    /// Version of the server.
    pub version: String,
    /// Revision of the data: the position in the replicated log.
    pub revision: u64,
    /// Term of the Raft leader.
    pub term: u64,
    /// Size of the data on disk.
    pub disk_bytes: u64,
    /// Resident memory of the server's process.
    pub memory_bytes: Option<u64>,
    /// The server's process.
    pub process_id: u32,
    /// Nodes.
    #[serde(default)]
    pub nodes: Count,
    /// Pods.
    #[serde(default)]
    pub pods: Count,
}

/// How many there are, and how many of them are ready.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// All.
    pub total: usize,
    /// Those whose condition `Ready` is true.
    pub ready: usize,
}

impl Remote {
    pub(crate) fn new(client: Client) -> Remote {
        Remote { client }
    }

    /// Connects by the kubeconfig in `path` (its current context); nothing is sent yet.
    pub async fn connect(path: &Path) -> Result<Remote, ConnectError> {
        let kubeconfig = |source: kube::config::KubeconfigError| ConnectError::Kubeconfig {
            path: path.into(),
            source: source.into(),
        };
        let read = Kubeconfig::read_from(path).map_err(kubeconfig)?;
        let config = Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await.map_err(kubeconfig)?;
        let client = Client::try_from(config)
            .map_err(|source| ConnectError::Client { path: path.into(), source: source.into() })?;
        Ok(Remote { client })
    }

    /// The Kubernetes client.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Asks the cluster how it is.
    pub async fn status(&self) -> Result<Status, kube::Error> {
        let request = Request::get("/coracle/v1/status").body(Vec::new()).expect("a request of constants");
        let mut status: Status = self.client.request(request).await?;
        let nodes: Vec<Node> = Api::all(self.client.clone()).list(&ListParams::default()).await?.items;
        let ready = |conditions: Option<Vec<(String, String)>>| {
            conditions.is_some_and(|all| all.iter().any(|(type_, status)| type_ == "Ready" && status == "True"))
        };
        status.nodes = count(nodes.into_iter().map(|node| {
            ready(
                node.status
                    .and_then(|s| s.conditions)
                    .map(|all| all.into_iter().map(|c| (c.type_, c.status)).collect()),
            )
        }));
        let mut pods = Count::default();
        let mut params = ListParams::default().limit(500);
        loop {
            let page = Api::<Pod>::all(self.client.clone()).list(&params).await?;
            let more = page.metadata.continue_.clone().filter(|token| !token.is_empty());
            let part =
                count(page.items.into_iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).map(|pod| {
                    ready(
                        pod.status
                            .and_then(|s| s.conditions)
                            .map(|all| all.into_iter().map(|c| (c.type_, c.status)).collect()),
                    )
                }));
            pods.total += part.total;
            pods.ready += part.ready;
            match more {
                Some(token) => params.continue_token = Some(token),
                None => break,
            }
        }
        status.pods = pods;
        Ok(status)
    }
}

fn count(all: impl Iterator<Item = bool>) -> Count {
    all.fold(Count::default(), |count, ready| Count { total: count.total + 1, ready: count.ready + usize::from(ready) })
}
