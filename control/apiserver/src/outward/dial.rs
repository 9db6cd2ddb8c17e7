//! Connections to webhooks.

use std::sync::Arc;

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use http::{HeaderValue, Request, header};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{CertificateError, ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::net::TcpStream;
use tokio::sync::OnceCell;
use tokio_rustls::TlsConnector;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::{Sender, Target, Way, why};

/// The subprotocol of a port-forward whose channels are numbered.
const CHANNELS: &str = "v4.channel.k8s.io";
/// The channels of the one port that is asked for.
const DATA: u8 = 0;
const ERROR: u8 = 1;
/// Bytes of a tunnel that wait for the other side, each way.
const BUFFER: usize = 64 << 10;

/// TLS that trusts these authorities, or the machine's where there are none.
pub(super) async fn tls(authorities: &[u8]) -> Result<TlsConnector, String> {
    static MACHINE: OnceCell<Arc<RootCertStore>> = OnceCell::const_new();
    let roots = if authorities.is_empty() {
        MACHINE.get_or_try_init(machine).await?.clone()
    } else {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(authorities) {
            let certificate = certificate.map_err(|error| format!("unable to load root certificates: {error}"))?;
            roots.add(certificate).map_err(|error| format!("unable to load root certificates: {error}"))?;
        }
        if roots.is_empty() {
            return Err("unable to load root certificates: unable to parse bytes as PEM block".to_owned());
        }
        Arc::new(roots)
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let mut tls = tls.map_err(|error| error.to_string())?.with_root_certificates(roots).with_no_client_auth();
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsConnector::from(Arc::new(tls)))
}

async fn machine() -> Result<Arc<RootCertStore>, String> {
    let loaded = tokio::task::spawn_blocking(rustls_native_certs::load_native_certs).await;
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(loaded.map_err(|error| error.to_string())?.certs);
    Ok(Arc::new(roots))
}

/// A connection over which requests to the target can be sent.
pub(super) async fn connect(
    own: Option<&TlsConnector>,
    nodes: Option<&TlsConnector>,
    target: &Target,
) -> Result<Sender, String> {
    let own = || own.ok_or_else(|| "there is no TLS for it".to_owned());
    match &target.way {
        Way::Direct { host, port } => handshake(secured(own()?, &target.name, tcp(host, *port).await?).await?).await,
        Way::Node { host, port, node } => handshake(to_node(nodes, host, *port, node).await?).await,
        Way::Tunnel { host, port, node, path } => {
            let pod = tunnel(to_node(nodes, host, *port, node).await?, path, node).await?;
            handshake(secured(own()?, &target.name, pod).await?).await
        }
    }
}

async fn to_node(
    nodes: Option<&TlsConnector>,
    host: &str,
    port: u16,
    node: &str,
) -> Result<tokio_rustls::client::TlsStream<TcpStream>, String> {
    let nodes = nodes.ok_or("this server has no certificate for nodes")?;
    secured(nodes, node, tcp(host, port).await?).await
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
    Ok(stream)
}

async fn secured<S>(tls: &TlsConnector, name: &str, stream: S) -> Result<tokio_rustls::client::TlsStream<S>, String>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let server = ServerName::try_from(name.trim_matches(['[', ']']).to_owned()).map_err(|error| error.to_string())?;
    tls.connect(server, stream).await.map_err(|error| {
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        match inner {
            Some(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer)) => {
                "tls: failed to verify certificate: x509: certificate signed by unknown authority".to_owned()
            }
            Some(rustls::Error::InvalidCertificate(other)) => {
                format!("tls: failed to verify certificate: x509: {other}")
            }
            Some(rustls::Error::InvalidMessage(_)) => "tls: first record does not look like a TLS handshake".to_owned(),
            _ => format!("tls: {}", why(&error)),
        }
    })
}

async fn handshake<S>(stream: S) -> Result<Sender, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| why(&error))?;
    // Ends when the sender is dropped, or the other side closes it.
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "connection to a webhook");
        }
    });
    Ok(sender)
}

/// A stream to a port of a pod: a port-forward of its node.
async fn tunnel<S>(node: S, path: &str, host: &str) -> Result<DuplexStream, String>
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
    let socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Client, None).await;
    let (ours, theirs) = tokio::io::duplex(BUFFER);
    // Ends with either side.
    tokio::spawn(carry(socket, theirs));
    Ok(ours)
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
                tracing::debug!(why = %String::from_utf8_lossy(bytes), "the pod of a webhook takes no connection");
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
