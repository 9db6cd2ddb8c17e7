//! The other nodes, and the links to them.
//!
//! Which range of pods' addresses leads to which node is asked of the API server (`/coracle/v1/peers`), which answers when
//! there are news; what was heard last holds while nobody answers. To each node that pods speak to there is a connection of
//! HTTP/2 with both nodes' certificates, and in it a `CONNECT POD:PORT` for each connection of a pod (the framing of HBONE). It
//! is made when it is first wanted, and again when it broke; when it is full there is a second. Where the API server has no such
//! path there are no other nodes.
//!
//! Whoever uses the way to a node holds a place of its share ([`Shares`]); connections that the proxy keeps for the next request
//! are beside them, and few enough to fit.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use coracle_policy::{Source, Workload};
use coracle_proxy::{Asker, Elsewhere, KEPT_ELSEWHERE_MAX, NotAllowed, Place, Purpose, Shares};
use http::{Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http2;
use hyper_util::rt::TokioIo;
use parking_lot::RwLock;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
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
/// Places for those who use the links to one node: there is room beside them for what is kept for the next request.
const PLACES_MAX: usize = framing::LINKS_MAX * framing::STREAMS_MAX as usize - KEPT_ELSEWHERE_MAX;

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
    /// The links; held while one is made, so that there are not two instead of one.
    links: tokio::sync::Mutex<Vec<Link>>,
    /// Of those who use them.
    shares: Arc<Shares<Asker>>,
}

impl Peer {
    fn new(said: Said, range: Cidr) -> Peer {
        Peer { said, range, links: tokio::sync::Mutex::default(), shares: Shares::new(PLACES_MAX) }
    }
}

/// A connection of HTTP/2, and how many streams there are in it.
struct Link {
    sender: Sender,
    streams: Arc<AtomicUsize>,
}

/// A stream of a link is open.
struct Open(Arc<AtomicUsize>);

impl Open {
    fn count(streams: &Arc<AtomicUsize>) -> Open {
        streams.fetch_add(1, Relaxed);
        Open(streams.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// A stream that is counted as long as it lives.
struct Counted<S> {
    inner: S,
    _open: Open,
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[derive(Default)]
struct Known {
    /// By the first address of their ranges, which do not overlap.
    by_range: BTreeMap<u32, Arc<Peer>>,
    by_name: HashMap<String, Arc<Peer>>,
}

/// The other nodes.
pub struct Peers {
    own: String,
    tls: Option<TlsConnector>,
    known: RwLock<Known>,
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

    /// The name of this node.
    pub fn own(&self) -> &str {
        &self.own
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
    pub(crate) fn take(&self, list: Vec<serde_json::Value>) {
        let mut known = self.known.write();
        let mut before = std::mem::take(&mut *known).by_name;
        for said in list {
            // One that makes no sense is left out, and is no reason to forget the others.
            let Ok(said) = serde_json::from_value::<Said>(said) else { continue };
            let Ok(range) = said.range.parse::<Cidr>() else { continue };
            if said.name == self.own {
                continue;
            }
            let peer = match before.remove(&said.name).filter(|peer| peer.said == said) {
                Some(peer) => peer,
                None => Arc::new(Peer::new(said, range)),
            };
            known.by_name.insert(peer.said.name.clone(), peer.clone());
            known.by_range.insert(u32::from(range.at(0)), peer);
        }
    }

    /// Whether another node has the pod at this address.
    pub fn has(&self, address: IpAddr) -> bool {
        self.find(address).is_some()
    }

    /// Whether the address is one of the pods of this node; `None` when the node is not known.
    pub fn owns(&self, node: &str, address: IpAddr) -> Option<bool> {
        let known = self.known.read();
        known.by_name.get(node).map(|peer| peer.range.offset(address).is_some())
    }

    /// Where this node is.
    pub fn address_of(&self, node: &str) -> Option<IpAddr> {
        self.known.read().by_name.get(node).map(|peer| peer.said.address)
    }

    fn find(&self, address: IpAddr) -> Option<Arc<Peer>> {
        let IpAddr::V4(v4) = address else { return None };
        let known = self.known.read();
        let (_, peer) = known.by_range.range(..=u32::from(v4)).next_back()?;
        peer.range.offset(address).map(|_| peer.clone())
    }

    /// A place on the way to the node of this pod, if `by` has not taken its share.
    pub fn enter(&self, to: IpAddr, by: Asker) -> Option<Place> {
        let place = self.find(to)?.shares.take(by, 1)?;
        Some(Box::new(place))
    }

    /// A stream of bytes to a pod of another node: there is one when something listens at its end.
    pub async fn connect(self: Arc<Peers>, to: SocketAddr, purpose: Purpose, source: Source) -> io::Result<Elsewhere> {
        let peer = self.find(to.ip()).ok_or(io::ErrorKind::HostUnreachable)?;
        let tls = self.tls.as_ref().ok_or(io::ErrorKind::HostUnreachable)?;
        let (mut sender, open) = peer.open(|| peer.handshake(tls)).await?;
        let target = Uri::builder().authority(to.to_string()).build().map_err(io::Error::other)?;
        let mut request = Request::new(Empty::new());
        *request.method_mut() = Method::CONNECT;
        *request.uri_mut() = target;
        let says = match purpose {
            Purpose::Requests => Some(framing::REQUESTS),
            Purpose::Datagrams => Some(framing::DATAGRAMS),
            Purpose::Bytes => None,
        };
        if let Some(says) = says {
            request.headers_mut().insert(framing::LINK, says);
        }
        request.headers_mut().insert(coracle_proxy::SOURCE, coracle_proxy::source_header(&source));
        sender.ready().await.map_err(broken)?;
        let response = sender.send_request(request).await.map_err(broken)?;
        let said = response.headers().get(framing::LINK);
        match response.status() {
            // One of an older version takes them for the bytes of a connection.
            StatusCode::OK if purpose == Purpose::Datagrams && said != Some(&framing::DATAGRAMS) => {
                Err(io::ErrorKind::Unsupported.into())
            }
            StatusCode::OK => {
                let is_called = said == Some(&framing::REQUESTS);
                let called = response.headers().get(framing::CALLED).and_then(|said| said.to_str().ok());
                let called = called.and_then(Workload::from_text).filter(|called| called.address == to.ip());
                let upgraded = hyper::upgrade::on(response).await.map_err(broken)?;
                let stream = Counted { inner: TokioIo::new(upgraded), _open: open };
                Ok(Elsewhere { stream: Box::new(stream), is_called, called: called.map(Arc::new) })
            }
            StatusCode::SERVICE_UNAVAILABLE => Err(io::ErrorKind::ConnectionRefused.into()),
            // It has as many of our flows as it may, which is over when some have rested.
            StatusCode::TOO_MANY_REQUESTS => Err(io::ErrorKind::QuotaExceeded.into()),
            StatusCode::FORBIDDEN => Err(io::Error::new(io::ErrorKind::PermissionDenied, NotAllowed)),
            other => Err(io::Error::other(format!("node {} answers {other}", peer.said.name))),
        }
    }
}

impl Peer {
    /// Room for a stream in a link, which `make`s one where all are full.
    async fn open<M>(&self, make: impl FnOnce() -> M) -> io::Result<(Sender, Open)>
    where
        M: Future<Output = io::Result<Sender>>,
    {
        let mut links = self.links.lock().await;
        links.retain(|link| !link.sender.is_closed());
        let has_room = |link: &&Link| link.streams.load(Relaxed) < framing::STREAMS_MAX as usize;
        if let Some(link) = links.iter().find(has_room) {
            return Ok((link.sender.clone(), Open::count(&link.streams)));
        }
        if links.len() >= framing::LINKS_MAX {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        let made = tokio::time::timeout(CONNECT_MAX, make()).await;
        let sender = made.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        let streams = Arc::default();
        let open = Open::count(&streams);
        links.push(Link { sender: sender.clone(), streams });
        Ok((sender, open))
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

    /// A link to nobody who answers.
    async fn silent() -> io::Result<Sender> {
        let (ours, theirs) = tokio::io::duplex(1 << 10);
        let (sender, connection) = framing::calling().handshake(TokioIo::new(ours)).await.map_err(broken)?;
        tokio::spawn(async move {
            let _theirs = theirs;
            let _ = connection.await;
        });
        Ok(sender)
    }

    #[tokio::test]
    async fn a_link_that_is_full_has_a_second_beside_it_and_nobody_waits_for_a_third() {
        let said =
            Said { name: "n2".to_owned(), address: [192, 0, 2, 1].into(), port: 1, range: "10.1.0.0/24".to_owned() };
        let peer = Peer::new(said, "10.1.0.0/24".parse().unwrap());
        let mut all = Vec::new();
        for _ in 0..framing::LINKS_MAX * framing::STREAMS_MAX as usize {
            all.push(peer.open(silent).await.unwrap());
        }
        assert_eq!(peer.links.lock().await.len(), framing::LINKS_MAX);
        let full = peer.open(silent).await.map(drop).unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::QuotaExceeded);
        all.pop();
        all.push(peer.open(silent).await.unwrap());
        drop(all);
        assert!(peer.links.lock().await.iter().all(|link| link.streams.load(Relaxed) == 0));
        // All who may use them, and what is kept, have room.
        assert_eq!(PLACES_MAX + KEPT_ELSEWHERE_MAX, framing::LINKS_MAX * framing::STREAMS_MAX as usize);
    }

    #[test]
    fn whoever_uses_the_way_to_a_node_has_a_share_of_it() {
        let peers = Peers::new("own", None);
        let node = |name: &str, range: &str| json!({"name": name, "address": "192.0.2.1", "port": 1, "podCIDR": range});
        peers.take(vec![node("one", "10.1.0.0/24"), node("two", "10.2.0.0/24")]);
        let enter = |to: [u8; 4], by| peers.enter(to.into(), by);
        let port = Asker::NodePort(30_000);
        let places: Vec<_> = std::iter::from_fn(|| enter([10, 1, 0, 2], port.clone())).collect();
        assert!(places.len() < PLACES_MAX / 2, "{} connections of one port's clients", places.len());
        assert!(enter([10, 1, 0, 9], port.clone()).is_none(), "the same node");
        assert!(
            enter([10, 2, 0, 2], port.clone()).is_some() && enter([10, 1, 0, 2], Asker::NodePort(30_001)).is_some()
        );
        assert!(
            enter([10, 1, 0, 2], Asker::Pod([10, 9, 0, 2].into())).is_some() && enter([10, 3, 0, 2], port).is_none()
        );
    }
}
