//! A cluster as a client sees it: by its kubeconfig, from this process or from afar.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::{Request, StatusCode};
use k8s_openapi::api::core::v1::{Node, NodeCondition, Pod};
use kube::api::ListParams;
use kube::client::Body;
use kube::config::{Context, KubeConfigOptions, Kubeconfig, NamedContext};
use kube::{Api, Client, Config, ResourceExt};
use serde::{Deserialize, Serialize};

use crate::failover::{Moved, Servers};

/// A server is connected within this time, or another is asked.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// Where every server of Coracle says how it is.
const STATUS: &str = "/coracle/v1/status";

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
    /// It says to go by a proxy.
    #[error(
        "the kubeconfig {path} has a proxy-url for context {context}, and coracle goes by no proxy: take it out, or name a kubeconfig \
         without one with --kubeconfig"
    )]
    Proxy {
        /// The file.
        path: PathBuf,
        /// The context.
        context: String,
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

/// Why a question to a cluster has no answer, in words for a person.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AskError {
    /// Nobody answers there.
    #[error("the cluster does not answer ({reason}); does it run? `coracle up` starts one, --kubeconfig names another")]
    Unreachable {
        /// What the network said.
        reason: String,
    },
    /// What answers shows a certificate that is not the cluster's.
    #[error("{reason}")]
    Untrusted {
        /// What is wrong with it, and what to do.
        reason: String,
    },
    /// What answers is a cluster of another kind.
    #[error("{0}")]
    NotCoracle(String),
    /// It answered, and said no.
    #[error("{message} (HTTP status {code})")]
    Refused {
        /// The status code.
        code: u16,
        /// The API's message.
        message: String,
    },
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

impl From<kube::Error> for AskError {
    fn from(error: kube::Error) -> AskError {
        AskError::from(&error)
    }
}

impl From<&kube::Error> for AskError {
    fn from(error: &kube::Error) -> AskError {
        if let kube::Error::Api(status) = error {
            return AskError::Refused { code: status.code, message: status.message.clone() };
        }
        if let kube::Error::Service(inner) = error
            && let Some(NotCoracle { whose }) = inner.downcast_ref()
        {
            return AskError::NotCoracle(format!(
                "{whose} is no Coracle cluster: name yours with --data-dir or --kubeconfig, or `coracle up` starts one"
            ));
        }
        if let Some(reason) = untrusted(error) {
            return AskError::Untrusted { reason };
        }
        // The innermost cause is what happened; the ones around it say which library was at work.
        let mut cause: &(dyn std::error::Error + 'static) = error;
        let mut from_network = matches!(error, kube::Error::HyperError(_) | kube::Error::Service(_));
        while let Some(inner) = cause.source() {
            cause = inner;
            from_network |= cause.is::<std::io::Error>();
        }
        let text = cause.to_string();
        let reason = text.split(" (os error").next().unwrap_or(&text).to_owned();
        if from_network { AskError::Unreachable { reason } } else { AskError::Other(reason) }
    }
}

/// That what answers is a cluster, and none of Coracle.
#[derive(Debug, thiserror::Error)]
#[error("{whose} is no Coracle cluster")]
struct NotCoracle {
    /// Its URL, the context and the files.
    whose: String,
}

/// What is wrong with the certificate that a server has shown, if it is that.
fn untrusted(error: &kube::Error) -> Option<String> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    let wrong = loop {
        let error = cause?;
        // An io::Error passes over what it holds, which may be one, too: its source is that one's.
        let mut held = error;
        while let Some(inner) = held.downcast_ref::<std::io::Error>().and_then(|error| error.get_ref()) {
            held = inner;
        }
        if let Some(rustls::Error::InvalidCertificate(wrong)) = held.downcast_ref() {
            break wrong;
        }
        cause = error.source();
    };
    use rustls::CertificateError as Wrong;
    Some(match wrong {
        Wrong::UnknownIssuer | Wrong::BadSignature => {
            "the server's certificate is not of the authority in the kubeconfig: that is of another cluster, or of one that was founded \
             anew since; --data-dir and --kubeconfig name another"
                .to_owned()
        }
        Wrong::NotValidForName | Wrong::NotValidForNameContext { .. } => {
            "the server's certificate does not name the host by which it was asked: start it with --tls-san HOST".to_owned()
        }
        Wrong::Expired | Wrong::ExpiredContext { .. } | Wrong::NotValidYet | Wrong::NotValidYetContext { .. } => {
            "the server's certificate is not valid at this time: look at the clocks of both machines".to_owned()
        }
        other => format!("the server's certificate cannot be trusted: {other}"),
    })
}

/// Most entries of [`Status::not_ready`].
pub const NOT_READY_MAX: usize = 50;

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotReady {
    /// `node/NAME` or `pod/NAMESPACE/NAME`.
    pub what: String,
    /// Why, in the cluster's words.
    pub why: String,
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
    /// URLs at which other machines may find the API, the likeliest first.
    #[serde(default)]
    pub join_urls: Vec<String>,
    /// Where the registry answers on the server's machine, without TLS.
    pub registry: String,
    /// Where the server keeps everything.
    pub data_dir: PathBuf,
    /// Version of the server.
    pub version: String,
    /// The format in which the log is written: the newest that all servers know.
    #[serde(default)]
    pub format: u32,
    /// Revision of the data: the position in the replicated log.
    pub revision: u64,
    /// Term of the Raft leader.
    pub term: u64,
    /// The servers, as the one that was asked sees them.
    #[serde(default)]
    pub members: Vec<crate::Member>,
    /// This server's number.
    #[serde(default)]
    pub member: u64,
    /// Certificates of the server that was asked, and the cluster's authority (`ca`).
    #[serde(default)]
    pub certificates: Vec<crate::Certificate>,
    /// How long the server has been without a majority of the servers: nothing can be written, and nodes and pods are not known.
    #[serde(default)]
    pub alone_milliseconds: Option<u64>,
    /// What is wrong with the data, in the server's words.
    #[serde(default)]
    pub alarms: Vec<String>,
    /// What is encrypted, and under which key; nothing of a server of an earlier version.
    #[serde(default)]
    pub encryption: Option<crate::Encryption>,
    /// Size of the data on disk.
    pub disk_bytes: u64,
    /// Resident memory of the server's process.
    pub memory_bytes: Option<u64>,
    /// The server's process.
    pub process_id: u32,
    /// Nodes.
    #[serde(default)]
    pub nodes: Count,
    /// Where nodes that are ready serve Ingresses, as URLs, each once.
    #[serde(default)]
    pub ingress: Vec<String>,
    /// Pods that should run: those that have ended well are in [`Status::finished`].
    #[serde(default)]
    pub pods: Count,
    /// Pods that have ended well.
    #[serde(default)]
    pub finished: usize,
    /// What is not ready and why; the first [`NOT_READY_MAX`].
    #[serde(default)]
    pub not_ready: Vec<NotReady>,
}

/// How many there are, and how many of them are ready.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// All.
    pub total: usize,
    /// Those whose condition `Ready` is true.
    pub ready: usize,
}

/// The current context (`None`), and others by which the same cluster is reached with the same credentials: their authority is the
/// same one, and is no other's.
pub(crate) fn contexts(config: &Kubeconfig) -> Vec<Option<String>> {
    let context = |name: &str| config.contexts.iter().find(|context| context.name == name)?.context.as_ref();
    let authority = |context: &Context| {
        let cluster = config.clusters.iter().find(|cluster| cluster.name == context.cluster)?.cluster.as_ref()?;
        let authority = (cluster.certificate_authority_data.clone(), cluster.certificate_authority.clone());
        (authority != (None, None)).then_some(authority)
    };
    let current = config.current_context.as_deref().and_then(context);
    let known = current.and_then(|current| Some((current.user.clone(), authority(current)?)));
    let is_same = |named: &&NamedContext| {
        let other = named.context.as_ref().and_then(|other| Some((other.user.clone(), authority(other)?)));
        known.is_some() && other == known && config.current_context.as_deref() != Some(named.name.as_str())
    };
    let others = config.contexts.iter().filter(is_same).map(|context| Some(context.name.clone()));
    [None].into_iter().chain(others).collect()
}

/// The configuration of a context. The library would take a proxy from the environment (`HTTPS_PROXY`), for loopback, too, and refuse
/// to go by it: a cluster is asked where it is.
async fn config(kubeconfig: &Kubeconfig, context: Option<String>, path: &Path) -> Result<Config, ConnectError> {
    let mut kubeconfig = kubeconfig.clone();
    let name = context.as_ref().or(kubeconfig.current_context.as_ref()).cloned().unwrap_or_default();
    let cluster = kubeconfig.contexts.iter().find(|context| context.name == name);
    let cluster = cluster.and_then(|context| context.context.as_ref()).map(|context| context.cluster.clone());
    for named in &mut kubeconfig.clusters {
        let Some(inner) = &mut named.cluster else { continue };
        // Said here the environment is not looked at, whose text may be no URL either.
        let said = inner.proxy_url.replace("http://proxy.invalid".to_owned()).filter(|url| !url.is_empty());
        if said.is_some() && Some(&named.name) == cluster.as_ref() {
            return Err(ConnectError::Proxy { path: path.to_owned(), context: name });
        }
    }
    let options = KubeConfigOptions { context, ..KubeConfigOptions::default() };
    let failed = |source| ConnectError::Kubeconfig { path: path.to_owned(), source: Box::new(source) };
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(failed)?;
    config.proxy_url = None;
    Ok(config)
}

/// Several kubeconfigs as one, as kubectl merges those of `KUBECONFIG`: what an earlier file says holds.
pub(crate) fn merged(paths: &[PathBuf]) -> Result<Kubeconfig, ConnectError> {
    let mut merged = Kubeconfig::default();
    for path in paths {
        let failed = |source| ConnectError::Kubeconfig { path: path.clone(), source: Box::new(source) };
        merged = Kubeconfig::read_from(path).and_then(|read| merged.merge(read)).map_err(failed)?;
    }
    Ok(merged)
}

/// The servers of the cluster that kubeconfigs lead to ([`Remote::connect_merged`]), the namespace that they say, and in words whose they are.
async fn reached(
    paths: &[PathBuf],
    told: impl Fn(&Moved) + Send + Sync + 'static,
) -> Result<(Servers, String, String), ConnectError> {
    let merged = merged(paths)?;
    let path = paths.first().cloned().unwrap_or_default();
    let mut servers: Vec<(String, Client)> = Vec::new();
    let mut namespace = String::new();
    for context in contexts(&merged) {
        let mut config = config(&merged, context, &path).await?;
        let server = config.cluster_url.to_string().trim_end_matches('/').to_owned();
        if servers.iter().any(|(known, _)| *known == server) {
            continue;
        }
        if servers.is_empty() {
            namespace.clone_from(&config.default_namespace);
        }
        config.connect_timeout = Some(CONNECT_MAX);
        // The library would ask one that says 503 again and again, for minutes, before another is asked; and it would send a
        // write again whose outcome is unknown (504).
        config.default_retry = false;
        let client = Client::try_from(config)
            .map_err(|source| ConnectError::Client { path: path.clone(), source: source.into() })?;
        servers.push((server, client));
    }
    let server = servers.first().map(|(server, _)| server.clone()).unwrap_or_default();
    let context = merged.current_context.unwrap_or_default();
    let files: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
    let whose = format!("{server} (context {context} of {})", files.join(":"));
    Ok((Servers::new(servers, told), namespace, whose))
}

/// A client of the cluster that kubeconfigs lead to, Coracle's or not: what only Coracle has is not found there, as anything else.
pub(crate) async fn any_kubernetes(
    paths: &[PathBuf],
    told: impl Fn(&Moved) + Send + Sync + 'static,
) -> Result<Client, ConnectError> {
    let (servers, namespace, _) = reached(paths, told).await?;
    let service = tower::service_fn(move |request: Request<Body>| {
        let servers = servers.clone();
        async move { servers.ask(request).await }
    });
    Ok(Client::new(service, namespace))
}

/// A client of these servers. `whose` are they, should they be none of Coracle: whoever asks for what only Coracle has is told so, and not
/// that it was not found.
fn client(servers: Servers, namespace: &str, whose: String) -> Client {
    // Once one has answered nobody asks again: a push finds out by 404 what is to be sent.
    let is_coracle = Arc::new(AtomicBool::new(false));
    let service = tower::service_fn(move |request: Request<Body>| {
        let (servers, is_coracle, whose) = (servers.clone(), is_coracle.clone(), whose.clone());
        async move {
            let is_own = ["/coracle/", "/v2/"].iter().any(|own| request.uri().path().starts_with(own));
            let answer = servers.ask(request).await?;
            if is_own && answer.status() == StatusCode::NOT_FOUND && !is_coracle.load(Ordering::Relaxed) {
                let asked = Request::get(STATUS).body(Body::empty()).expect("a request of constants");
                if servers.ask(asked).await?.status() == StatusCode::NOT_FOUND {
                    return Err(kube::Error::Service(Box::new(NotCoracle { whose })));
                }
            }
            is_coracle.fetch_or(is_own, Ordering::Relaxed);
            Ok(answer)
        }
    });
    Client::new(service, namespace)
}

impl Remote {
    pub(crate) fn new(client: Client) -> Remote {
        Remote { client }
    }

    /// Connects by the kubeconfig in `path` (its current context); nothing is sent yet.
    pub async fn connect(path: &Path) -> Result<Remote, ConnectError> {
        Remote::connect_merged(&[path.to_owned()], |moved| tracing::warn!("{moved}")).await
    }

    /// The same, asking that server alone, and with everything sent once. Others send again what a server refuses for the moment
    /// (429, 503).
    pub async fn connect_once(path: &Path) -> Result<Remote, ConnectError> {
        let mut config = config(&merged(&[path.to_owned()])?, None, path).await?;
        config.default_retry = false;
        let client = Client::try_from(config);
        let client = client.map_err(|source| ConnectError::Client { path: path.to_owned(), source: source.into() })?;
        Ok(Remote { client })
    }

    /// Connects by several kubeconfigs merged as kubectl merges those of `KUBECONFIG`: what an earlier file says holds. When the server
    /// of the current context does not answer, those of other contexts are asked that are of the same cluster, with the same
    /// credentials; `told` hears of it.
    pub async fn connect_merged(
        paths: &[PathBuf],
        told: impl Fn(&Moved) + Send + Sync + 'static,
    ) -> Result<Remote, ConnectError> {
        let (servers, namespace, whose) = reached(paths, told).await?;
        Ok(Remote { client: client(servers, &namespace, whose) })
    }

    /// The Kubernetes client.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// What the server says of itself.
    pub(crate) async fn server(&self) -> Result<Status, AskError> {
        let request = Request::get(STATUS).body(Vec::new()).expect("a request of constants");
        Ok(self.client.request(request).await?)
    }

    /// Asks the cluster how it is. A server without a majority of the servers says what it knows.
    pub async fn status(&self) -> Result<Status, AskError> {
        let mut status = self.server().await?;
        if status.alone_milliseconds.is_some() {
            return Ok(status);
        }
        for node in Api::<Node>::all(self.client.clone()).list(&ListParams::default()).await?.items {
            let state = node_state(&node);
            status.nodes.add(&state);
            if state == State::Ready {
                status.ingress.extend(ingress_urls(&node));
            }
            let state = unreached(&node).filter(|_| state == State::Ready).map_or(state, State::NotReady);
            status.say(|| format!("node/{}", node.name_any()), state);
        }
        status.ingress.sort_unstable();
        status.ingress.dedup();
        let mut params = ListParams::default().limit(500);
        loop {
            let page = Api::<Pod>::all(self.client.clone()).list(&params).await?;
            for pod in page.items.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()) {
                match pod_state(pod) {
                    State::Finished => status.finished += 1,
                    state => {
                        status.pods.add(&state);
                        let what = || format!("pod/{}/{}", pod.namespace().unwrap_or_default(), pod.name_any());
                        status.say(what, state);
                    }
                }
            }
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params.continue_token = Some(token),
                None => return Ok(status),
            }
        }
    }
}

/// How a node or a pod is.
#[derive(Debug, PartialEq, Eq)]
enum State {
    Ready,
    Finished,
    NotReady(String),
}

impl Count {
    fn add(&mut self, state: &State) {
        self.total += 1;
        self.ready += usize::from(*state == State::Ready);
    }
}

impl Status {
    fn say(&mut self, what: impl FnOnce() -> String, state: State) {
        if let State::NotReady(why) = state
            && self.not_ready.len() < NOT_READY_MAX
        {
            self.not_ready.push(NotReady { what: what(), why });
        }
    }
}

/// The first of these words that is there.
fn first_of(words: [Option<&String>; 3], otherwise: &str) -> String {
    words.into_iter().flatten().find(|word| !word.is_empty()).map_or_else(|| otherwise.to_owned(), Clone::clone)
}

/// Where a node says that it serves Ingresses.
fn ingress_urls(node: &Node) -> Vec<String> {
    let said = node.annotations().get(coracle_node::INGRESS_ANNOTATION);
    said.map(|said| said.split(',').map(str::to_owned).collect()).unwrap_or_default()
}

fn condition<'a>(node: &'a Node, type_: &str) -> Option<&'a NodeCondition> {
    let mut conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.find(|condition| condition.type_ == type_)
}

/// Why a node that is ready is of no use to other machines.
fn unreached(node: &Node) -> Option<String> {
    let network = condition(node, "NetworkUnavailable").filter(|network| network.status != "False")?;
    Some(first_of([network.message.as_ref(), network.reason.as_ref(), None], "its network is not available"))
}

fn node_state(node: &Node) -> State {
    match condition(node, "Ready") {
        Some(ready) if ready.status == "True" => State::Ready,
        Some(ready) => State::NotReady(first_of([ready.message.as_ref(), ready.reason.as_ref(), None], "not ready")),
        None => State::NotReady("it has not reported yet".to_owned()),
    }
}

fn pod_state(pod: &Pod) -> State {
    let Some(status) = &pod.status else { return State::NotReady("nothing has looked at it yet".to_owned()) };
    let phase = status.phase.as_deref().unwrap_or_default();
    if phase == "Succeeded" {
        return State::Finished;
    }
    let condition = |type_: &str| status.conditions.iter().flatten().find(|condition| condition.type_ == type_);
    if condition("Ready").is_some_and(|ready| ready.status == "True") {
        return State::Ready;
    }
    let containers = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    for container in containers.filter(|container| !container.ready) {
        let Some(state) = &container.state else { continue };
        let said = match (&state.waiting, &state.terminated) {
            (Some(waiting), _) => (waiting.reason.as_ref(), waiting.message.as_ref()),
            // An init container that is done is not what the pod waits for.
            (_, Some(ended)) if ended.exit_code != 0 => (ended.reason.as_ref(), ended.message.as_ref()),
            _ => continue,
        };
        let why: Vec<&str> =
            [said.0, said.1].into_iter().flatten().map(String::as_str).filter(|s| !s.is_empty()).collect();
        if !why.is_empty() {
            return State::NotReady(format!("{}: {}", container.name, why.join(": ")));
        }
    }
    let unscheduled = condition("PodScheduled").filter(|scheduled| scheduled.status != "True");
    let unready = condition("Ready").and_then(|ready| ready.message.as_ref());
    let said =
        [status.message.as_ref().or(status.reason.as_ref()), unscheduled.and_then(|c| c.message.as_ref()), unready];
    State::NotReady(first_of(said, if phase.is_empty() { "Pending" } else { phase }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(status: serde_json::Value) -> State {
        pod_state(&serde_json::from_value(serde_json::json!({"metadata": {"name": "p"}, "status": status})).unwrap())
    }

    #[test]
    fn a_node_that_is_ready_and_not_reached_is_told_of() {
        let node = |status: &str| -> Node {
            let network =
                serde_json::json!({"type": "NetworkUnavailable", "status": status, "message": "it is behind NAT"});
            let ready = serde_json::json!({"type": "Ready", "status": "True"});
            serde_json::from_value(serde_json::json!({"metadata": {}, "status": {"conditions": [ready, network]}}))
                .unwrap()
        };
        for (status, expected) in
            [("True", Some("it is behind NAT")), ("Unknown", Some("it is behind NAT")), ("False", None)]
        {
            assert_eq!(unreached(&node(status)).as_deref(), expected, "{status}");
            assert_eq!(node_state(&node(status)), State::Ready);
        }
    }

    #[test]
    fn a_pod_says_why_it_is_not_ready() {
        let not = |why: &str| State::NotReady(why.to_owned());
        let waiting = serde_json::json!({"name": "c", "ready": false, "restartCount": 0, "image": "", "imageID": "",
            "state": {"waiting": {"reason": "ErrImagePull", "message": "no such image"}}});
        let unscheduled = serde_json::json!({"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "no node fits"});
        for (status, expected) in [
            (serde_json::json!({"phase": "Succeeded"}), State::Finished),
            (
                serde_json::json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}),
                State::Ready,
            ),
            (
                serde_json::json!({"phase": "Pending", "containerStatuses": [waiting]}),
                not("c: ErrImagePull: no such image"),
            ),
            (serde_json::json!({"phase": "Pending", "conditions": [unscheduled]}), not("no node fits")),
            (
                serde_json::json!({"phase": "Failed", "reason": "Evicted", "message": "the disk is full"}),
                not("the disk is full"),
            ),
            (serde_json::json!({}), not("Pending")),
        ] {
            assert_eq!(pod(status.clone()), expected, "{status}");
        }
    }

    #[test]
    fn other_contexts_are_used_when_they_are_of_the_same_cluster_and_user() {
        let cluster = |name: &str, authority: Option<&str>| {
            serde_json::json!({"name": name, "cluster": {
                "server": format!("https://{name}:6443"), "certificate-authority-data": authority,
            }})
        };
        let context = |name: &str, user: &str| serde_json::json!({"name": name, "context": {"cluster": name.trim_end_matches('2'), "user": user}});
        let config = |current: &str| -> Kubeconfig {
            serde_json::from_value(serde_json::json!({
                "clusters": [cluster("a", Some("QQ==")), cluster("b", Some("QQ==")), cluster("x", Some("WA==")), cluster("n", None)],
                "contexts": [context("b", "me"), context("a", "me"), context("x", "me"), context("a2", "you"), context("n", "me")],
                "current-context": current,
            }))
            .unwrap()
        };
        let named = |name: &str| Some(name.to_owned());
        assert_eq!(contexts(&config("a")), [None, named("b")]);
        assert_eq!(contexts(&config("b")), [None, named("a")]);
        for alone in ["x", "a2", "n", "nothing"] {
            assert_eq!(contexts(&config(alone)), [None], "{alone}");
        }
    }

    /// Answers requests by their paths, without TLS; its URL.
    async fn answering(answer: fn(&str) -> (u16, &'static str)) -> String {
        use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let mut stream = BufReader::new(stream);
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n")
                    && stream.read_until(b'\n', &mut head).await.is_ok_and(|read| read > 0)
                {}
                let head = String::from_utf8_lossy(&head).into_owned();
                let (code, body) = answer(head.split(' ').nth(1).unwrap_or_default());
                let head = format!("HTTP/1.1 {code} X\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
                let _ = stream.write_all(format!("{head}{body}").as_bytes()).await;
            }
        });
        url
    }

    fn kubeconfig(dir: &Path, cluster: serde_json::Value) -> PathBuf {
        let path = dir.join("kubeconfig");
        let config = serde_json::json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "work",
            "clusters": [{"name": "c", "cluster": cluster}, {"name": "other", "cluster": {"server": "https://other", "proxy-url": "http://p"}}],
            "users": [{"name": "u", "user": {"token": "t"}}],
            "contexts": [{"name": "work", "context": {"cluster": "c", "user": "u", "namespace": "team"}}],
        });
        std::fs::write(&path, config.to_string()).unwrap();
        path
    }

    #[tokio::test]
    async fn a_cluster_of_another_kind_is_told_apart_from_what_is_not_found() {
        let dir = tempfile::tempdir().unwrap();
        let url = answering(|_| (404, "404 page not found\n")).await;
        let path = kubeconfig(dir.path(), serde_json::json!({"server": url}));
        let remote = Remote::connect_merged(std::slice::from_ref(&path), |_| ()).await.unwrap();
        assert_eq!(remote.client().default_namespace(), "team");
        let expected = format!("{url} (context work of {}) is no Coracle cluster: ", path.display());
        let told = remote.server().await.unwrap_err();
        assert!(matches!(told, AskError::NotCoracle(_)) && told.to_string().starts_with(&expected), "{told}");
        assert!(remote.encryption().await.unwrap_err().to_string().starts_with(&expected));
        assert!(!crate::is_unreachable(&told));
        // What any cluster has is another thing.
        let nodes = Api::<Node>::all(remote.client().clone()).list(&ListParams::default()).await.unwrap_err();
        assert!(matches!(AskError::from(nodes), AskError::Refused { code: 404, .. }));

        const MISSING: &str =
            r#"{"kind":"Status","apiVersion":"v1","status":"Failure","message":"none","reason":"NotFound","code":404}"#;
        let url = answering(|path| if path == STATUS { (200, "{}") } else { (404, MISSING) }).await;
        let path = kubeconfig(dir.path(), serde_json::json!({"server": url}));
        let remote = Remote::connect_merged(&[path], |_| ()).await.unwrap();
        let told = remote.encryption().await.unwrap_err();
        assert!(matches!(told, AskError::Refused { code: 404, .. }), "{told}");
    }

    /// The variables of a process are all its threads': the test runs itself again with them.
    #[tokio::test]
    async fn a_cluster_is_asked_where_it_is_whatever_proxy_the_environment_names() {
        const NAME: &str = "remote::tests::a_cluster_is_asked_where_it_is_whatever_proxy_the_environment_names";
        if std::env::var_os("CORACLE_TEST_PROXY").is_none() {
            // Nobody listens at the first; the second is no URL.
            for proxy in ["http://127.0.0.1:1", "what is this"] {
                let mut again = std::process::Command::new(std::env::current_exe().unwrap());
                again.args(["--exact", NAME]).env("CORACLE_TEST_PROXY", "1");
                for name in ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"] {
                    again.env(name, proxy);
                }
                let done = again.env_remove("NO_PROXY").env_remove("no_proxy").output().unwrap();
                let said = String::from_utf8_lossy(&done.stdout);
                assert!(done.status.success() && said.contains("1 passed"), "{said}");
            }
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let url = answering(|_| (404, "404 page not found\n")).await;
        let path = kubeconfig(dir.path(), serde_json::json!({"server": url}));
        let remote = Remote::connect_merged(std::slice::from_ref(&path), |_| ()).await.unwrap();
        assert!(matches!(remote.server().await, Err(AskError::NotCoracle(_))));
        let remote = Remote::connect_once(&path).await.unwrap();
        assert!(matches!(remote.server().await, Err(AskError::Refused { code: 404, .. })));
        // What the kubeconfig itself says is not left out without a word.
        let path = kubeconfig(dir.path(), serde_json::json!({"server": url, "proxy-url": "http://127.0.0.1:1"}));
        let told = Remote::connect_once(&path).await.err().unwrap();
        assert!(matches!(&told, ConnectError::Proxy { context, .. } if context == "work"), "{told}");
    }

    #[tokio::test]
    async fn a_certificate_of_somebody_else_is_no_cluster_that_does_not_answer() {
        let key = rcgen::KeyPair::generate().unwrap();
        let own = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().self_signed(&key).unwrap();
        let private = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let tls = Arc::new(tls.with_no_client_auth().with_single_cert(vec![own.der().clone()], private).unwrap());
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let connection = rustls::ServerConnection::new(tls.clone()).unwrap();
                let _ = std::io::Read::read(&mut rustls::StreamOwned::new(connection, stream), &mut [0]);
            }
        });
        let other = rcgen::CertificateParams::new(vec!["other".to_owned()]).unwrap();
        let other = other.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().pem();
        let other = serde_json::to_value(k8s_openapi::ByteString(other.into_bytes())).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let cluster = serde_json::json!({"server": url, "certificate-authority-data": other});
        let remote = Remote::connect_merged(&[kubeconfig(dir.path(), cluster)], |_| ()).await.unwrap();
        let told = remote.server().await.unwrap_err();
        assert!(
            matches!(&told, AskError::Untrusted { reason } if reason.contains("authority in the kubeconfig")),
            "{told}"
        );
        assert!(!crate::is_unreachable(&told));
    }

    #[test]
    fn errors_are_told_in_the_words_of_their_cause() {
        let refused = std::io::Error::from_raw_os_error(111);
        let error = AskError::from(kube::Error::Service(Box::new(refused)));
        assert!(error.to_string().contains("does not answer (Connection refused)"), "{error}");
        let status = kube::core::Status::failure("Unauthorized", "Unauthorized").with_code(401);
        let error = AskError::from(kube::Error::Api(Box::new(status)));
        assert_eq!(error.to_string(), "Unauthorized (HTTP status 401)");
    }
}
