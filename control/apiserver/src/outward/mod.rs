//! Calls that this server makes to webhooks: one client for each, which keeps its connections; and requests that it passes on to
//! other API servers, the same ways.
//!
//! ```text
//! Way::Plain   ─ nothing: who names such an address in a file of the server's machine means it ─► an address
//! Way::Direct  ─ TLS, the webhook's certificate ────────────────────────────────────────► an address
//! Way::Node    ─ TLS, the node's certificate ──► the node ─ a call to its component ────► a pod
//! Way::Tunnel  ─ TLS, the node's certificate ──► the node ─ TLS, the webhook's ─────────► a pod
//! ```
//! A component that serves HTTP (wasi:http) ends no TLS: nothing could be read of it before its handler runs. So what is
//! between this server and the node is TLS in which the node proves who it is, and behind that the node calls the component in
//! its own process (Node). A webhook that says which authority it has (`caBundle`) is to prove itself: its bytes are carried
//! to the pod's port as they are, and TLS is between this server and the pod (Tunnel).

mod authorities;
mod dial;
mod endpoint;
mod passage;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use parking_lot::Mutex;
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::sign::CertifiedKey;
use tokio::sync::Semaphore;
use tokio_rustls::TlsConnector;

pub use self::dial::keep_alive;
use self::dial::{Connection, Proof, Trust};
pub(crate) use self::endpoint::Caller;
pub use self::endpoint::{Endpoint, Login, Shown};
pub use self::passage::FrontProxy;
pub(crate) use self::passage::Passage;
use crate::limits::NodeStreams;

/// Calls of one webhook under way at a time; more wait for one of them, and their time goes on. A webhook that hangs so holds
/// the requests that wait for it, and few connections.
const IN_FLIGHT_MAX: usize = 128;
/// Connections of one webhook that are kept for the next call, and for how long (a Go server keeps them longer).
const IDLE_MAX: usize = 8;
const IDLE_FOR: Duration = if cfg!(test) { Duration::from_millis(200) } else { Duration::from_secs(60) };

/// How a webhook is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Way {
    /// At an address, without TLS.
    Plain { host: String, port: u16 },
    /// At an address.
    Direct { host: String, port: u16 },
    /// Through the node that runs it, which is at this address and proves to be of this name.
    Node { host: String, port: u16, node: String },
    /// The same, to a port of a pod as it is: the path at the node that leads there.
    Tunnel { host: String, port: u16, node: String, path: String },
}

/// Where a call goes.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub way: Way,
    /// Of the request, with its query.
    pub path: String,
    /// `Host` of the request.
    pub host: String,
    /// The name that is in the webhook's certificate.
    pub name: String,
    /// As errors call it.
    pub url: String,
}

/// Why a call has no answer. It may have been heard all the same.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// It cannot be made, or broke off.
    #[error("Post {url:?}: {why}")]
    Failed { url: String, why: String },
    /// The answer is larger than it may be.
    #[error("the answer is larger than {most} bytes")]
    TooLarge { most: usize },
}

type Sender = SendRequest<Full<Bytes>>;

/// The way to nodes, and the places there.
pub(crate) struct Nodes {
    /// By which a node proves who it is, and this server to it; without it none is called.
    pub tls: Option<TlsConnector>,
    /// The same towards whatever listens at other ports of a node's machine: who this server is, is nothing to it. An API server there
    /// would do as a server of the cluster asks, for whoever may look at nodes.
    pub stranger: Option<TlsConnector>,
    pub streams: NodeStreams,
}

impl Nodes {
    /// `tls` is this server's certificate towards nodes, for connections that carry HTTP/1.1.
    pub fn new(tls: Option<Arc<rustls::ClientConfig>>) -> Nodes {
        let tls = tls.map(|tls| {
            let mut tls = rustls::ClientConfig::clone(&tls);
            // Upgrades exist in HTTP/1.1 only.
            tls.alpn_protocols = vec![b"http/1.1".to_vec()];
            TlsConnector::from(Arc::new(tls))
        });
        let stranger = tls.as_ref().map(|tls| {
            let mut tls = rustls::ClientConfig::clone(tls.config());
            tls.client_auth_cert_resolver = Arc::new(Nobody);
            // A session that is resumed is that of whoever began it.
            tls.resumption = Resumption::disabled();
            TlsConnector::from(Arc::new(tls))
        });
        Nodes { tls, stranger, streams: NodeStreams::default() }
    }
}

/// Shows no certificate.
#[derive(Debug)]
struct Nobody;

impl ResolvesClientCert for Nobody {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

struct Idle {
    way: Way,
    connection: Connection,
}

/// The client of one webhook.
pub(crate) struct Client {
    proof: Proof,
    agent: &'static str,
    in_flight: Semaphore,
    idle: Mutex<Vec<Idle>>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

impl Client {
    /// Of a webhook with this `caBundle`.
    pub fn new(authorities: Vec<u8>) -> Client {
        Client::proven(Proof::new(Trust::Authorities(authorities), None), "kube-apiserver-admission")
    }

    /// Of what a file names.
    fn of(endpoint: &Endpoint, agent: &'static str) -> Client {
        let trust = match endpoint.is_unproven {
            true => Trust::Anybody,
            false => Trust::Authorities(endpoint.authorities.clone()),
        };
        Client::proven(Proof::new(trust, endpoint.shown.clone()), agent)
    }

    fn proven(proof: Proof, agent: &'static str) -> Client {
        Client { proof, agent, in_flight: Semaphore::new(IN_FLIGHT_MAX), idle: Mutex::default() }
    }

    /// Whether the webhook is to prove itself by a certificate of its own authority.
    pub fn has_authorities(&self) -> bool {
        self.proof.has_authorities()
    }

    /// Posts JSON and reads the answer, which has at most `most` bytes. Whoever drops it has ended the call, as far as this
    /// server is concerned.
    pub async fn post(
        &self,
        nodes: &Nodes,
        target: &Target,
        body: Bytes,
        most: usize,
    ) -> Result<(StatusCode, Bytes), CallError> {
        self.post_as(nodes, target, None, body, most).await
    }

    /// The same, and says with it who this server is.
    async fn post_as(
        &self,
        nodes: &Nodes,
        target: &Target,
        login: Option<&HeaderValue>,
        body: Bytes,
        most: usize,
    ) -> Result<(StatusCode, Bytes), CallError> {
        let failed = |why: String| CallError::Failed { url: target.url.clone(), why };
        let _turn = self.in_flight.acquire().await.map_err(|error| failed(error.to_string()))?;
        let request = || {
            let mut request = Request::post(target.path.as_str())
                .header(header::CONTENT_TYPE, "application/json")
                .header(header::ACCEPT, "application/json, */*")
                .header(header::USER_AGENT, self.agent)
                .body(Full::new(body.clone()))?;
            request.headers_mut().insert(header::HOST, HeaderValue::try_from(target.host.as_str())?);
            if let Some(login) = login {
                request.headers_mut().insert(header::AUTHORIZATION, login.clone());
            }
            Ok::<_, http::Error>(request)
        };
        // A connection that was kept may have been closed by now: only then is it tried on a new one, for nothing was sent.
        let mut answered = None;
        while answered.is_none()
            && let Some(mut connection) = self.kept(&target.way)
        {
            if connection.sender.ready().await.is_err() {
                continue;
            }
            let request = request().map_err(|error| failed(error.to_string()))?;
            match connection.sender.try_send_request(request).await {
                Ok(answer) => answered = Some((answer, connection)),
                Err(mut error) => {
                    if error.take_message().is_none() {
                        return Err(failed(why(&error.into_error())));
                    }
                }
            }
        }
        let (answer, connection) = match answered {
            Some(answered) => answered,
            None => {
                let mut connection = self.dial(nodes, target).await.map_err(failed)?;
                let request = request().map_err(|error| failed(error.to_string()))?;
                let answer = connection.sender.send_request(request).await.map_err(|error| failed(why(&error)))?;
                (answer, connection)
            }
        };
        let code = answer.status();
        let body = match read(answer.into_body(), most).await {
            Ok(body) => body,
            Err(None) => return Err(CallError::TooLarge { most }),
            Err(Some(why)) => return Err(failed(why)),
        };
        self.keep(target.way.clone(), connection);
        Ok((code, body))
    }

    fn kept(&self, way: &Way) -> Option<Connection> {
        let mut idle = self.idle.lock();
        idle.retain(|kept| !kept.connection.sender.is_closed());
        let at = idle.iter().rposition(|kept| kept.way == *way)?;
        let connection = idle.remove(at).connection;
        connection.rest(false);
        Some(connection)
    }

    /// Keeps a connection for the next call; it ends by itself when there is none.
    fn keep(&self, way: Way, connection: Connection) {
        let mut idle = self.idle.lock();
        idle.retain(|kept| !kept.connection.sender.is_closed());
        if idle.len() < IDLE_MAX && !connection.sender.is_closed() {
            connection.rest(true);
            idle.push(Idle { way, connection });
        }
    }

    async fn dial(&self, nodes: &Nodes, target: &Target) -> Result<Connection, String> {
        dial::connect(self.proof.tls(&target.way).await?, nodes, target).await
    }
}

/// A body that somebody outside sends, of at most `most` bytes.
///
/// # Errors
/// Why it broke off; `None` where it is larger.
pub(crate) async fn read(body: Incoming, most: usize) -> Result<Bytes, Option<String>> {
    match Limited::new(body, most).collect().await {
        Ok(read) => Ok(read.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(None),
        Err(error) => Err(Some(why(&*error))),
    }
}

/// As much of what somebody outside says stands in an error and in the log (client-go's bound).
const WORDS_BYTES_MAX: usize = 2_048;

/// The beginning of what somebody outside says of a failure.
pub(crate) fn words(text: &str) -> String {
    let text = text.trim();
    match text.floor_char_boundary(WORDS_BYTES_MAX) {
        end if end < text.len() => format!("{} …", &text[..end]),
        _ => text.to_owned(),
    }
}

/// A failure with its causes: the library's own words say little.
pub fn why(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_outside_is_told_in_few_words() {
        assert_eq!(words(" no \n"), "no");
        let long = words(&"é".repeat(1 << 20));
        assert!(long.len() <= WORDS_BYTES_MAX + 4 && long.ends_with("é …"), "{}", long.len());
    }
}
