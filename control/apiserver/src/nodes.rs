//! Calls to the nodes' own servers: where a node listens, and a connection to it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use coracle_api::meta::selector::{FieldSelector, LabelSelector};
use coracle_api::status::Status;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::cluster::Cluster;
use crate::limits::{Flow, Place};
use crate::outward;
use crate::store::Seen;

/// What a Service leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum At {
    /// A port of a pod, which its node reaches.
    Pod { node: String, namespace: String, name: String, port: u16 },
    /// Something that has an address.
    Address { host: String, port: u16 },
}

/// How long a node may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Where something listens, and how to speak to it.
///
/// A node's server proves that it is this node by the node's name in its certificate: addresses are what nodes say of
/// themselves, and one that says another's gets no certificate for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    pub host: String,
    pub port: u16,
    pub tls: bool,
    /// The name that its certificate must have, where that is not the host.
    pub name: Option<String>,
    /// The node, on whose machine it is.
    pub node: String,
}

/// The client of the nodes' servers.
pub(crate) struct Nodes {
    way: Arc<outward::Nodes>,
    /// Cancelled when tunnels shall end.
    pub stopping: CancellationToken,
}

impl Nodes {
    pub fn new(way: Arc<outward::Nodes>, stopping: CancellationToken) -> Nodes {
        Nodes { way, stopping }
    }

    /// A place among the streams from a node, to be held for as long as one goes on.
    pub fn stream(&self, to: &Endpoint, flow: Flow<'_>) -> Result<Place, Status> {
        self.way.streams.take(&to.node, flow)
    }

    /// Sends a request over a connection of its own. Streams are few and long, so connections are not kept. That a node cannot be
    /// reached, and that it is there and does not answer as it should (as where a pod's answer that it passes on breaks off), are told
    /// apart.
    pub async fn send(&self, to: &Endpoint, request: Request<Body>) -> Result<Response<Incoming>, Status> {
        let failed = |why: &dyn std::fmt::Display| {
            Status::service_unavailable(format!("error dialing backend {}:{}: {why}", to.host, to.port))
        };
        let broke = |error: hyper::Error| {
            Status::service_unavailable(format!("error reading from backend {}:{}: {error}", to.host, to.port))
        };
        let connect = TcpStream::connect((to.host.trim_matches(['[', ']']), to.port));
        let stream = tokio::time::timeout(CONNECT_TIMEOUT, connect)
            .await
            .map_err(|_| failed(&"connection timed out"))?
            .map_err(|error| failed(&error))?;
        let _ = stream.set_nodelay(true);
        // A stream that only reads would never hear that the node's machine is gone.
        let _ = outward::keep_alive(&stream);
        let stream = Backend { stream, is_whole: false };
        if !to.tls {
            return exchange(stream, request).await.map_err(broke);
        }
        // Only the node's own server is told who this is.
        let connector = if to.name.is_some() { &self.way.tls } else { &self.way.stranger };
        let connector = connector.as_ref().ok_or_else(|| failed(&"this server has no certificate for nodes"))?;
        let name = to.name.as_deref().unwrap_or(to.host.trim_matches(['[', ']'])).to_owned();
        let name = ServerName::try_from(name).map_err(|error| failed(&error))?;
        let stream = tokio::time::timeout(CONNECT_TIMEOUT, connector.connect(name, stream))
            .await
            .map_err(|_| failed(&"the TLS handshake timed out"))?
            .map_err(|error| failed(&error))?;
        exchange(stream, request).await.map_err(broke)
    }
}

/// A connection to a node that is reset when it is dropped, unless it has been ended: an orderly end would wait behind what the node
/// does not take, and so would what the node holds for it.
struct Backend {
    stream: TcpStream,
    is_whole: bool,
}

impl AsyncRead for Backend {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Backend {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let ended = ready!(Pin::new(&mut self.stream).poll_shutdown(cx));
        self.is_whole = ended.is_ok();
        Poll::Ready(ended)
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        if !self.is_whole {
            let _ = self.stream.set_zero_linger();
        }
    }
}

async fn exchange<S>(stream: S, request: Request<Body>) -> Result<Response<Incoming>, hyper::Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // Ends with the exchange: the connection belongs to this request alone.
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "connection to a node");
        }
    });
    sender.send_request(request).await
}

/// The server of a node, from what the node says of itself.
pub(crate) fn kubelet(cluster: &Cluster, node: &str) -> Result<Endpoint, Status> {
    let nodes = cluster.catalog.named("", "nodes").ok_or_else(Status::path_not_found)?;
    let record = cluster.store.get(nodes, node).ok_or_else(|| nodes.not_found(node))?;
    let object = Seen::new(nodes, &record).stored()?;
    endpoint_of(&object).ok_or_else(|| {
        Status::service_unavailable(format!("node {node} does not say at which address and port it listens"))
    })
}

/// Where it listens, as its object says.
pub(crate) fn endpoint_of(node: &Value) -> Option<Endpoint> {
    let addresses = node["status"]["addresses"].as_array()?;
    let of_type = |kind: &str| addresses.iter().find(|address| address["type"] == kind);
    let address = of_type("InternalIP").or_else(|| of_type("ExternalIP")).or_else(|| of_type("Hostname"))?;
    let name = node["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let port = node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"].as_u64()?;
    Some(Endpoint {
        host: address["address"].as_str()?.to_owned(),
        port: u16::try_from(port).ok().filter(|port| *port > 0)?,
        tls: true,
        name: Some(name.clone()),
        node: name,
    })
}

/// Something ready behind a port of a Service, by the port's name or number; of several one by chance.
pub(crate) fn endpoint_of_service(cluster: &Cluster, service: &Value, port: &str) -> Result<At, Status> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (namespace, name) = (text(&service["metadata"]["namespace"]), text(&service["metadata"]["name"]));
    let unavailable = || Status::service_unavailable(format!("no endpoints available for service \"{name}\""));
    let ports = service["spec"]["ports"].as_array().map(Vec::as_slice).unwrap_or_default();
    let chosen = match port {
        "" if ports.len() == 1 => ports.first(),
        "" => ports.iter().find(|port| text(&port["name"]).is_empty()).or(ports.first()),
        wanted => {
            ports.iter().find(|port| text(&port["name"]) == wanted || port["port"].as_u64() == wanted.parse().ok())
        }
    };
    let port_name = text(&chosen.ok_or_else(unavailable)?["name"]);
    let slices = cluster.catalog.named("discovery.k8s.io", "endpointslices").ok_or_else(unavailable)?;
    let pods = cluster.catalog.named("", "pods").ok_or_else(unavailable)?;
    let of_service = LabelSelector::from_pairs([("kubernetes.io/service-name", name.as_str())]);
    let snapshot = cluster.store.keyspace.snapshot(slices.row.collection());
    let mut found = Vec::new();
    for (_, record) in crate::store::range(&snapshot.records, Some(&namespace), None) {
        let seen = Seen::new(slices, record);
        if !seen.matches(&of_service, &FieldSelector::everything()) {
            continue;
        }
        let slice = seen.stored()?;
        let port = slice["ports"].as_array().into_iter().flatten().find(|port| text(&port["name"]) == port_name);
        let port = port.and_then(|port| port["port"].as_u64()).and_then(|port| u16::try_from(port).ok());
        let Some(port) = port else { continue };
        for endpoint in slice["endpoints"].as_array().into_iter().flatten() {
            if !endpoint["conditions"]["ready"].as_bool().unwrap_or(true) {
                continue;
            }
            let target = &endpoint["targetRef"];
            let name = text(&target["name"]);
            if name.is_empty() || target["kind"].as_str().is_some_and(|kind| kind != "Pod") {
                found.extend(endpoint["addresses"][0].as_str().map(|host| At::Address { host: host.to_owned(), port }));
                continue;
            }
            let Some(record) = cluster.store.get(pods, &pods.record_name(Some(&namespace), &name)) else { continue };
            let node = text(&Seen::new(pods, &record).stored()?["spec"]["nodeName"]);
            if !node.is_empty() {
                found.push(At::Pod { node, namespace: namespace.clone(), name, port });
            }
        }
    }
    let chosen = rand::random_range(0..found.len().max(1));
    found.into_iter().nth(chosen).ok_or_else(unavailable)
}

/// A body out of what a node sends.
pub(crate) fn body(incoming: Incoming) -> Body {
    Body::new(incoming)
}

/// No body.
pub(crate) fn empty() -> Body {
    Body::from(Bytes::new())
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    /// Whether a server at `127.0.0.1`, which asks for one, is shown a certificate.
    async fn is_shown_a_certificate(name: Option<&str>) -> bool {
        use rustls::server::WebPkiClientVerifier;
        use rustls::{ClientConfig, RootCertStore, ServerConfig};

        let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned(), "n".to_owned()]).unwrap();
        let own = || (vec![made.cert.der().clone()], made.signing_key.serialize_der().try_into().unwrap());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone()).unwrap();
        let roots = Arc::new(roots);
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone());
        let verifier = verifier.allow_unauthenticated().build().unwrap();
        let ((chain, key), (client_chain, client_key)) = (own(), own());
        let server =
            ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().unwrap();
        let server = server.with_client_cert_verifier(verifier).with_single_cert(chain, key).unwrap();
        let client = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let client = client.with_root_certificates(roots).with_client_auth_cert(client_chain, client_key).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let nodes = Nodes::new(Arc::new(outward::Nodes::new(Some(Arc::new(client)))), CancellationToken::new());
        let name = name.map(str::to_owned);
        let to = Endpoint { host: "127.0.0.1".to_owned(), port, tls: true, name, node: "n".to_owned() };
        let request = Request::get("/").header("host", "x").body(empty()).unwrap();
        let answers = async {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = tokio_rustls::TlsAcceptor::from(Arc::new(server)).accept(stream).await.unwrap();
            stream.read_u8().await.unwrap();
            stream.get_ref().1.peer_certificates().is_some_and(|shown| !shown.is_empty())
        };
        let (_, is_shown) = tokio::join!(nodes.send(&to, request), answers);
        is_shown
    }

    #[tokio::test]
    async fn only_the_server_of_a_node_is_told_who_asks() {
        assert!(is_shown_a_certificate(Some("n")).await);
        // An API server there would do whatever a server of the cluster may.
        assert!(!is_shown_a_certificate(None).await);
    }

    #[tokio::test]
    async fn a_node_that_answers_badly_is_not_one_that_cannot_be_reached() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let nodes = Nodes::new(Arc::new(outward::Nodes::new(None)), CancellationToken::new());
        let to = Endpoint { host: "127.0.0.1".to_owned(), port, tls: false, name: None, node: "n".to_owned() };
        let send = async || {
            let request = Request::get("/").header("host", "x").body(empty()).unwrap();
            nodes.send(&to, request).await.unwrap_err().message.clone()
        };
        let answers_badly = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.read_u8().await.unwrap();
            stream.write_all(b"HTTP/1.1 2").await.unwrap();
        };
        let (message, ()) = tokio::join!(send(), answers_badly);
        assert!(message.starts_with(&format!("error reading from backend 127.0.0.1:{port}: ")), "{message}");
        drop(listener);
        let message = send().await;
        assert!(message.starts_with(&format!("error dialing backend 127.0.0.1:{port}: ")), "{message}");
    }

    #[tokio::test]
    async fn a_node_hears_at_once_of_what_was_given_up_behind_what_it_does_not_take() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        for is_whole in [true, false] {
            let connecting = TcpStream::connect(listener.local_addr().unwrap());
            let (stream, accepted) = tokio::join!(connecting, listener.accept());
            let (mut backend, mut node) = (Backend { stream: stream.unwrap(), is_whole: false }, accepted.unwrap().0);
            backend.write_all(b"hello").await.unwrap();
            if is_whole {
                backend.shutdown().await.unwrap();
            }
            drop(backend);
            let read = node.read_to_end(&mut Vec::new()).await;
            assert_eq!(
                read.map_err(|error| error.kind()),
                if is_whole { Ok(5) } else { Err(io::ErrorKind::ConnectionReset) }
            );
        }
    }
}
