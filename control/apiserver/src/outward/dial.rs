//! Connections to webhooks.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use http::{HeaderValue, Request, header};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{CertificateError, ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::net::TcpStream;
use tokio::sync::{OnceCell, watch};
use tokio_rustls::TlsConnector;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::authorities::{Anybody, Bundle};
use super::{IDLE_FOR, Nodes, Sender, Shown, Target, Way, why, words};
use crate::limits::{Class, Flow, Place};

/// The subprotocol of a port-forward whose channels are numbered.
const CHANNELS: &str = "v4.channel.k8s.io";
/// The channels of the one port that is asked for.
const DATA: u8 = 0;
const ERROR: u8 = 1;
/// Bytes of a tunnel that wait for the other side, each way.
const BUFFER: usize = 64 << 10;
/// Bytes of one message of a tunnel; a node sends what it reads at once.
const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// Whose certificates are believed.
pub(super) enum Trust {
    /// Those of these authorities (PEM), or the machine's where there are none.
    Authorities(Vec<u8>),
    /// All: nobody has to prove anything.
    Anybody,
}

/// By what one server proves who it is, and this one to it.
pub(super) struct Proof {
    trust: Trust,
    shown: Option<Arc<Shown>>,
    /// Made when it is first needed.
    tls: OnceCell<TlsConnector>,
}

impl Proof {
    pub fn new(trust: Trust, shown: Option<Arc<Shown>>) -> Proof {
        let trust = match trust {
            Trust::Authorities(pem) if pem.trim_ascii().is_empty() => Trust::Authorities(Vec::new()),
            trust => trust,
        };
        Proof { trust, shown, tls: OnceCell::new() }
    }

    /// Whether the server is to prove itself by a certificate of its own authority.
    pub fn has_authorities(&self) -> bool {
        matches!(&self.trust, Trust::Authorities(pem) if !pem.is_empty())
    }

    /// What is spoken on such a way, where it ends at the server itself.
    pub async fn tls(&self, way: &Way) -> Result<Option<&TlsConnector>, String> {
        match way {
            Way::Node { .. } | Way::Plain { .. } => Ok(None),
            Way::Direct { .. } | Way::Tunnel { .. } => {
                self.tls.get_or_try_init(|| tls(&self.trust, self.shown.as_deref())).await.map(Some)
            }
        }
    }
}

/// TLS of a client, that may show who it is.
async fn tls(trust: &Trust, shown: Option<&Shown>) -> Result<TlsConnector, String> {
    static MACHINE: OnceCell<Arc<RootCertStore>> = OnceCell::const_new();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
    let tls = tls.map_err(|error| error.to_string())?;
    let tls = match trust {
        Trust::Authorities(pem) if pem.is_empty() => {
            tls.with_root_certificates(MACHINE.get_or_try_init(machine).await?.clone())
        }
        Trust::Authorities(pem) => {
            tls.dangerous().with_custom_certificate_verifier(Arc::new(Bundle::read(pem, provider)?))
        }
        Trust::Anybody => tls.dangerous().with_custom_certificate_verifier(Arc::new(Anybody(provider))),
    };
    let mut tls = match shown {
        None => tls.with_no_client_auth(),
        Some(shown) => {
            let (chain, key) = certified(shown)?;
            tls.with_client_auth_cert(chain, key).map_err(|error| error.to_string())?
        }
    };
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsConnector::from(Arc::new(tls)))
}

/// What is shown, as rustls wants it: every certificate of it, and the key.
pub(super) fn certified(shown: &Shown) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), String> {
    let chain = CertificateDer::pem_slice_iter(shown.certificate.as_bytes()).collect::<Result<Vec<_>, _>>();
    let chain = chain.map_err(|error| format!("the certificate that it is to be shown: {error}"))?;
    if chain.is_empty() {
        return Err("there is no certificate in what it is to be shown".to_owned());
    }
    let key = PrivateKeyDer::from_pem_slice(shown.key.as_bytes());
    Ok((chain, key.map_err(|error| format!("the key of the certificate that it is to be shown: {error}"))?))
}

async fn machine() -> Result<Arc<RootCertStore>, String> {
    let loaded = tokio::task::spawn_blocking(rustls_native_certs::load_native_certs).await;
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(loaded.map_err(|error| error.to_string())?.certs);
    Ok(Arc::new(roots))
}

/// Bytes both ways.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// Bytes to and from the target, and what is to be held for as long as they are in use. A node that they go through gives one
/// of its places to `flow`.
pub(super) async fn stream(
    own: Option<&TlsConnector>,
    nodes: &Nodes,
    target: &Target,
    flow: Flow<'_>,
) -> Result<(Box<dyn Stream>, Box<dyn Any + Send>), String> {
    let own = || own.ok_or_else(|| "there is no TLS for it".to_owned());
    Ok(match &target.way {
        Way::Plain { host, port } => (Box::new(tcp(host, *port).await?), Box::new(())),
        Way::Direct { host, port } => {
            (Box::new(secured(own()?, &target.name, tcp(host, *port).await?).await?), Box::new(()))
        }
        Way::Node { host, port, node } => {
            let (node, place) = to_node(nodes, (host, *port, node), flow).await?;
            (Box::new(node), Box::new(place))
        }
        Way::Tunnel { host, port, node, path } => {
            let (stream, place) = to_node(nodes, (host, *port, node), flow).await?;
            let (pod, open) = tunnel(stream, path, node, place).await?;
            (Box::new(secured(own()?, &target.name, pod).await?), Box::new(open))
        }
    })
}

/// A connection over which requests of the server's own can be sent to the target, a webhook.
pub(super) async fn connect(own: Option<&TlsConnector>, nodes: &Nodes, target: &Target) -> Result<Connection, String> {
    let flow = Flow { class: Class::Own, name: &target.name };
    let (stream, held) = stream(own, nodes, target, flow).await?;
    Connection::start(stream, held).await
}

/// A connection to a node. It takes one of the node's places.
async fn to_node(
    nodes: &Nodes,
    (host, port, node): (&str, u16, &str),
    flow: Flow<'_>,
) -> Result<(tokio_rustls::client::TlsStream<TcpStream>, Place), String> {
    let tls = nodes.tls.as_ref().ok_or("this server has no certificate for nodes")?;
    let place = nodes.streams.take(node, flow).map_err(|status| status.message.clone())?;
    Ok((secured(tls, node, tcp(host, port).await?).await?, place))
}

async fn tcp(host: &str, port: u16) -> Result<TcpStream, String> {
    let host = host.trim_matches(['[', ']']);
    let stream = TcpStream::connect((host, port)).await.map_err(|error| {
        let words = match error.kind() {
            std::io::ErrorKind::ConnectionRefused => "connect: connection refused".to_owned(),
            std::io::ErrorKind::TimedOut => "i/o timeout".to_owned(),
            _ => error.to_string(),
        };
        let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        format!("dial tcp {host}:{port}: {words}")
    })?;
    let _ = stream.set_nodelay(true);
    // Who only reads, a watch that is passed on, would never hear that the other machine is gone.
    let _ = keep_alive(&stream);
    Ok(stream)
}

/// Has the kernel ask a silent peer whether it is there still, whatever its connection has become: one that has vanished is gone within
/// two minutes.
pub fn keep_alive(stream: &TcpStream) -> rustix::io::Result<()> {
    use rustix::net::sockopt;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, Duration::from_secs(60))?;
    sockopt::set_tcp_keepintvl(stream, Duration::from_secs(15))?;
    sockopt::set_tcp_keepcnt(stream, 4)
}

async fn secured<S>(tls: &TlsConnector, name: &str, stream: S) -> Result<tokio_rustls::client::TlsStream<S>, String>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let server = ServerName::try_from(name.trim_matches(['[', ']']).to_owned()).map_err(|error| error.to_string())?;
    tls.connect(server, stream).await.map_err(|error| {
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        match inner {
            // The latter is of one that has the authority's name, and not its key.
            Some(rustls::Error::InvalidCertificate(
                CertificateError::UnknownIssuer | CertificateError::BadSignature,
            )) => "tls: failed to verify certificate: x509: certificate signed by unknown authority".to_owned(),
            Some(rustls::Error::InvalidCertificate(other)) => {
                format!("tls: failed to verify certificate: x509: {other}")
            }
            Some(rustls::Error::InvalidMessage(_)) => "tls: first record does not look like a TLS handshake".to_owned(),
            _ => format!("tls: {}", why(&error)),
        }
    })
}

/// A connection to a webhook. It ends when this is dropped, when the other side closes it, or when it has rested too long.
pub(super) struct Connection {
    pub sender: Sender,
    rests: watch::Sender<bool>,
}

impl Connection {
    /// Holds what it is made on until it ends.
    async fn start<S>(stream: S, held: impl Send + 'static) -> Result<Connection, String>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| why(&error))?;
        let (rests, resting) = watch::channel(false);
        tokio::spawn(async move {
            tokio::select! {
                ended = connection => if let Err(error) = ended {
                    tracing::debug!(%error, "connection to a webhook");
                },
                () = rested(resting) => {}
            }
            drop(held);
        });
        Ok(Connection { sender, rests })
    }

    /// Says whether it is out of use, from now on.
    pub fn rest(&self, rests: bool) {
        self.rests.send_replace(rests);
    }
}

/// Waits until a connection has been out of use for [`IDLE_FOR`]. Of one that is dropped nothing is said any more: it ends by
/// itself.
async fn rested(mut resting: watch::Receiver<bool>) {
    while resting.wait_for(|rests| *rests).await.is_ok() {
        match tokio::time::timeout(IDLE_FOR, resting.wait_for(|rests| !rests)).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) => break,
            Err(_) => return,
        }
    }
    std::future::pending().await
}

/// A stream to a port of a pod: a port-forward of its node, open until the guard is dropped. `place` is the node's.
async fn tunnel<S>(node: S, path: &str, host: &str, place: Place) -> Result<(DuplexStream, DropGuard), String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) =
        http1::handshake::<_, http_body_util::Empty<Bytes>>(TokioIo::new(node)).await.map_err(|error| why(&error))?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "tunnel to a webhook");
        }
    });
    let mut request = Request::get(path)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_VERSION, "13")
        .header(header::SEC_WEBSOCKET_KEY, tokio_tungstenite::tungstenite::handshake::client::generate_key())
        .header(header::SEC_WEBSOCKET_PROTOCOL, CHANNELS)
        .body(http_body_util::Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    request.headers_mut().insert(header::HOST, HeaderValue::try_from(host).map_err(|error| error.to_string())?);
    let mut answer = sender.send_request(request).await.map_err(|error| why(&error))?;
    if answer.status() != http::StatusCode::SWITCHING_PROTOCOLS {
        return Err(format!("the node does not forward to the pod's port: it answers {}", answer.status()));
    }
    let upgraded = hyper::upgrade::on(&mut answer).await.map_err(|error| why(&error))?;
    let config =
        WebSocketConfig::default().max_message_size(Some(MESSAGE_BYTES_MAX)).max_frame_size(Some(MESSAGE_BYTES_MAX));
    let socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Client, Some(config)).await;
    let (ours, theirs) = tokio::io::duplex(BUFFER);
    let open = CancellationToken::new();
    let closed = open.clone();
    // Ends with either side, and with the guard, also while the node takes nothing.
    tokio::spawn(async move {
        closed.run_until_cancelled_owned(carry(socket, theirs)).await;
        drop(place);
    });
    Ok((ours, open.drop_guard()))
}

/// Carries bytes between the pod's channel and a stream, until either ends. The first message of a channel is its port.
async fn carry<S>(socket: WebSocketStream<S>, stream: DuplexStream)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut send, mut receive) = socket.split();
    let (mut from, mut to) = tokio::io::split(stream);
    let out = async {
        let mut buffer = vec![0; 16 << 10];
        while let Ok(count @ 1..) = from.read(&mut buffer).await {
            let message = [&[DATA], buffer.get(..count).unwrap_or_default()].concat();
            if send.send(Message::Binary(message.into())).await.is_err() {
                break;
            }
        }
    };
    let back = async {
        let mut is_known = [false; 2];
        while let Some(Ok(message)) = receive.next().await {
            let Message::Binary(bytes) = message else { continue };
            let Some((channel @ (&DATA | &ERROR), bytes)) = bytes.split_first() else { continue };
            if !std::mem::replace(&mut is_known[usize::from(*channel)], true) {
                continue;
            }
            if *channel == ERROR {
                tracing::debug!(
                    why = words(&String::from_utf8_lossy(bytes)),
                    "the pod of a webhook takes no connection"
                );
                break;
            }
            if to.write_all(bytes).await.is_err() {
                break;
            }
        }
    };
    tokio::select! {
        () = out => {}
        () = back => {}
    }
    let _ = to.shutdown().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_connection_that_nobody_uses_ends_with_what_it_is_made_on() {
        let (ours, mut theirs) = tokio::io::duplex(BUFFER);
        let streams = super::super::NodeStreams::default();
        let take = || streams.take("n", Flow { class: Class::Own, name: "webhook" });
        let free = || std::iter::from_fn(|| take().ok()).collect::<Vec<Place>>().len();
        let all = free();
        let connection = Connection::start(ours, take().unwrap()).await.unwrap();
        assert_eq!(free(), all - 1);
        connection.rest(true);
        let mut sent = Vec::new();
        theirs.read_to_end(&mut sent).await.expect("its end");
        assert!(sent.is_empty() && connection.sender.is_closed());
        while free() < all {
            tokio::task::yield_now().await;
        }
        // One that is dropped ends at once.
        let (ours, mut theirs) = tokio::io::duplex(BUFFER);
        drop(Connection::start(ours, ()).await.unwrap());
        theirs.read_to_end(&mut sent).await.expect("its end");
    }

    #[tokio::test]
    async fn the_kernel_asks_whether_the_other_machine_is_there() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = tcp("127.0.0.1", listener.local_addr().unwrap().port()).await.unwrap();
        assert!(rustix::net::sockopt::socket_keepalive(&stream).unwrap());
    }

    #[tokio::test]
    async fn a_connection_to_a_node_takes_one_of_its_places() {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let tls = tls.with_root_certificates(RootCertStore::empty()).with_no_client_auth();
        let nodes = Nodes::new(Some(Arc::new(tls)));
        let users: Vec<String> = (0..1_000).map(|number| number.to_string()).collect();
        let take = |name: &String| nodes.streams.take("n", Flow { class: Class::User, name }).ok();
        let _all: Vec<Place> = users.iter().filter_map(take).collect();
        let (host, node, path) = ("127.0.0.1".to_owned(), "n".to_owned(), "/portForward/ns/p?ports=1".to_owned());
        let ways =
            [Way::Node { host: host.clone(), port: 1, node: node.clone() }, Way::Tunnel { host, port: 1, node, path }];
        for way in ways {
            let target = Target {
                way,
                path: "/".into(),
                host: "h".into(),
                name: "h.ns.svc".into(),
                url: "https://h.ns.svc".into(),
            };
            // A user's request is a user's stream, and takes nothing from the server's own connections.
            let user = Flow { class: Class::User, name: "another" };
            let why = stream(None, &nodes, &target, user).await.err().expect("no place");
            assert!(why.starts_with("too many streams from node n"), "{why}");
            let why = connect(None, &nodes, &target).await.err().expect("nobody is there");
            assert!(!why.starts_with("too many streams"), "{why}");
        }
    }
}
