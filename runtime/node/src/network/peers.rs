//! The other nodes, and the links to them.
//!
//! Which range of pods' addresses leads to which node is asked of the API server (`/coracle/v1/peers`), which answers when
//! there are news; what was heard last holds while nobody answers. To each node that pods speak to there is one connection of
//! HTTP/2 with both nodes' certificates, and in it a `CONNECT POD:PORT` for each connection of a pod (the framing of HBONE). It
//! is made when it is first wanted, and again when it broke. Where the API server has no such path there are no other nodes.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use coracle_proxy::Stream;
use http::{Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http2;
use hyper_util::rt::TokioIo;
use parking_lot::RwLock;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

use super::framing;
use crate::config::Cidr;

/// A node is connected within this time, or not at all.
const CONNECT_MAX: Duration = Duration::from_secs(4);
/// Largest list of nodes: about 100,000 of them.
const LIST_BYTES_MAX: usize = 16 << 20;
/// How long the API server may take: it waits half a minute for news.
const ANSWER_MAX: Duration = Duration::from_secs(40);
/// First wait after a failure; it doubles,
const RETRY_FIRST: Duration = Duration::from_millis(500);
/// up to this.
const RETRY_MAX: Duration = Duration::from_secs(15);

type Sender = http2::SendRequest<Empty<Bytes>>;

/// What the API server says of a node.
#[derive(Deserialize, Clone, PartialEq, Eq, Debug)]
struct Said {
    name: String,
    address: IpAddr,
    port: u16,
    #[serde(rename = "podCIDR")]
    range: String,
}

#[derive(Deserialize)]
struct List {
    version: String,
    peers: Vec<serde_json::Value>,
}

/// Another node.
struct Peer {
    said: Said,
    range: Cidr,
    /// The link, while there is one; held while it is made, so that there is only one.
    link: tokio::sync::Mutex<Option<Sender>>,
}

/// The other nodes.
pub struct Peers {
    own: String,
    tls: Option<TlsConnector>,
    /// By the first address of their ranges, which do not overlap.
    known: RwLock<BTreeMap<u32, Arc<Peer>>>,
}

impl Peers {
    /// No other nodes yet. `tls` shows the certificate of the node `own`; without it there will be none.
    pub fn new(own: &str, tls: Option<Arc<ClientConfig>>) -> Peers {
        let tls = tls.map(|tls| {
            let mut tls = ClientConfig::clone(&tls);
            tls.alpn_protocols = vec![b"h2".to_vec()];
            TlsConnector::from(Arc::new(tls))
        });
        Peers { own: own.to_owned(), tls, known: RwLock::default() }
    }

    /// Follows which nodes there are, until `stop`.
    pub async fn run(self: Arc<Peers>, client: kube::Client, stop: CancellationToken) {
        if self.tls.is_none() {
            return;
        }
        let follow = async {
            let (mut version, mut wait) = (String::new(), RETRY_FIRST);
            loop {
                let asked = tokio::time::timeout(ANSWER_MAX, ask(&client, &version)).await;
                match asked.unwrap_or_else(|_| Err("no answer in time".into())) {
                    Ok(list) => {
                        // Nobody is asked faster than this, whatever it answers.
                        let is_same = list.version == version;
                        version = list.version;
                        self.take(list.peers);
                        wait = RETRY_FIRST;
                        if is_same {
                            tokio::time::sleep(RETRY_FIRST).await;
                        }
                    }
                    Err(error) => {
                        tracing::debug!(error, "nodes are not known anew");
                        tokio::time::sleep(wait).await;
                        wait = (wait * 2).min(RETRY_MAX);
                    }
                }
            }
        };
        // Only reads and waits are cut.
        tokio::select! {
            () = follow => {}
            () = stop.cancelled() => {}
        }
    }

    /// Takes what was said as true. A node of which the same was said before keeps its link.
    fn take(&self, list: Vec<serde_json::Value>) {
        let mut known = self.known.write();
        let mut before: BTreeMap<String, Arc<Peer>> =
            std::mem::take(&mut *known).into_values().map(|peer| (peer.said.name.clone(), peer)).collect();
        for said in list {
            // One that makes no sense is left out, and is no reason to forget the others.
            let Ok(said) = serde_json::from_value::<Said>(said) else { continue };
            let Ok(range) = said.range.parse::<Cidr>() else { continue };
            if said.name == self.own {
                continue;
            }
            let peer = match before.remove(&said.name).filter(|peer| peer.said == said) {
                Some(peer) => peer,
                None => Arc::new(Peer { said, range, link: tokio::sync::Mutex::default() }),
            };
            known.insert(u32::from(range.at(0)), peer);
        }
    }

    /// Whether another node has the pod at this address.
    pub fn has(&self, address: IpAddr) -> bool {
        self.find(address).is_some()
    }

    fn find(&self, address: IpAddr) -> Option<Arc<Peer>> {
        let IpAddr::V4(v4) = address else { return None };
        let known = self.known.read();
        let (_, peer) = known.range(..=u32::from(v4)).next_back()?;
        peer.range.offset(address).map(|_| peer.clone())
    }

    /// A stream of bytes to a pod of another node: there is one when something listens at its end.
    pub async fn connect(self: Arc<Peers>, to: SocketAddr) -> io::Result<Box<dyn Stream>> {
        let peer = self.find(to.ip()).ok_or(io::ErrorKind::HostUnreachable)?;
        let tls = self.tls.as_ref().ok_or(io::ErrorKind::HostUnreachable)?;
        let mut sender = peer.sender(tls).await?;
        let target = Uri::builder().authority(to.to_string()).build().map_err(io::Error::other)?;
        let mut request = Request::new(Empty::new());
        *request.method_mut() = Method::CONNECT;
        *request.uri_mut() = target;
        sender.ready().await.map_err(broken)?;
        let response = sender.send_request(request).await.map_err(broken)?;
        match response.status() {
            StatusCode::OK => {
                let upgraded = hyper::upgrade::on(response).await.map_err(broken)?;
                Ok(Box::new(TokioIo::new(upgraded)))
            }
            StatusCode::SERVICE_UNAVAILABLE => Err(io::ErrorKind::ConnectionRefused.into()),
            other => Err(io::Error::other(format!("node {} answers {other}", peer.said.name))),
        }
    }
}

impl Peer {
    async fn sender(&self, tls: &TlsConnector) -> io::Result<Sender> {
        let mut link = self.link.lock().await;
        if let Some(sender) = link.as_ref().filter(|sender| !sender.is_closed()) {
            return Ok(sender.clone());
        }
        *link = None;
        let made = tokio::time::timeout(CONNECT_MAX, self.handshake(tls)).await;
        let sender = made.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        *link = Some(sender.clone());
        Ok(sender)
    }

    /// A new link. The node at the other end proves that it is this one by its name.
    async fn handshake(&self, tls: &TlsConnector) -> io::Result<Sender> {
        let stream = TcpStream::connect((self.said.address, self.said.port)).await?;
        stream.set_nodelay(true)?;
        let name = ServerName::try_from(self.said.name.clone()).map_err(io::Error::other)?;
        let stream = tls.connect(name, stream).await?;
        let (sender, connection) = framing::calling().handshake(TokioIo::new(stream)).await.map_err(broken)?;
        let name = self.said.name.clone();
        // Ends with the last sender, when the peer is forgotten, or with the connection.
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, node = name, "the link to a node broke");
            }
        });
        Ok(sender)
    }
}

fn broken(error: hyper::Error) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, error)
}

async fn ask(client: &kube::Client, after: &str) -> Result<List, String> {
    let text = |error: &dyn std::error::Error| error.to_string();
    let request = Request::get(format!("/coracle/v1/peers?after={after}")).body(kube::client::Body::from(Vec::new()));
    let response = client.send(request.map_err(|e| text(&e))?).await.map_err(|e| text(&e))?;
    if !response.status().is_success() {
        return Err(format!("the API server answers {}", response.status()));
    }
    let body = Limited::new(response.into_body(), LIST_BYTES_MAX).collect().await.map_err(|e| e.to_string())?;
    serde_json::from_slice(&body.to_bytes()).map_err(|e| text(&e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_pod_s_address_leads_to_its_node() {
        let peers = Peers::new("own", None);
        let node = |name: &str, range: &str, port: u16| json!({"name": name, "address": "192.0.2.1", "port": port, "podCIDR": range});
        peers.take(vec![
            node("first", "10.244.0.0/16", 1),
            node("own", "10.240.0.0/20", 2),
            node("other", "10.240.16.0/20", 3),
            json!({"name": "senseless"}),
        ]);
        let name = |address: &str| peers.find(address.parse().unwrap()).map(|peer| peer.said.name.clone());
        assert_eq!(name("10.244.3.4").as_deref(), Some("first"));
        assert_eq!(name("10.240.16.2").as_deref(), Some("other"));
        for nobodys in ["10.240.0.2", "10.240.16.0", "10.240.32.2", "10.245.0.2", "9.9.9.9", "::1"] {
            assert_eq!(name(nobodys), None, "{nobodys}");
        }
        let before = peers.find("10.244.0.2".parse().unwrap()).unwrap();
        peers.take(vec![node("first", "10.244.0.0/16", 1), node("other", "10.240.16.0/20", 4)]);
        assert!(Arc::ptr_eq(&before, &peers.find("10.244.0.2".parse().unwrap()).unwrap()), "its link stays");
        assert_eq!(peers.find("10.240.16.2".parse().unwrap()).unwrap().said.port, 4);
        peers.take(Vec::new());
        assert!(!peers.has("10.244.0.2".parse().unwrap()));
    }
}
