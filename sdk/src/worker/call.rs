//! Calls to the cluster's API from another machine: before there is an identity, and with one.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Request, Uri};
use http_body_util::{BodyExt as _, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::client::Body;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use serde_json::{Value, json};

use super::WorkerError;
use super::identity::{Current, Identity, request};
use crate::tokens::Token;

/// A server is connected within this time, or not at all.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// A server that has been silent for so long is asked whether it is there,
const PING_AFTER: Duration = Duration::from_secs(2);
/// and answers within this time, or another is asked.
const PONG_MAX: Duration = Duration::from_secs(3);
/// The whole of an answer while a node joins.
const ANSWER_MAX: Duration = Duration::from_secs(30);
/// Its size.
const ANSWER_BYTES_MAX: usize = 1 << 20;

type Https = legacy::Client<HttpsConnector<HttpConnector>, Body>;

/// Where the API is: `https://HOST:PORT`, a port of 6443 where none is said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server(Authority);

impl std::str::FromStr for Server {
    type Err = WorkerError;

    fn from_str(text: &str) -> Result<Server, WorkerError> {
        let refuse = || WorkerError::Server(text.to_owned());
        let uri: Uri = text.trim_end_matches('/').parse().map_err(|_| refuse())?;
        let is_bare = matches!(uri.path(), "" | "/") && uri.query().is_none();
        if uri.scheme() != Some(&Scheme::HTTPS) || !is_bare {
            return Err(refuse());
        }
        let authority = uri.authority().filter(|authority| !authority.as_str().contains('@')).ok_or_else(refuse)?;
        let authority = match authority.port() {
            Some(_) => authority.clone(),
            None => format!("{authority}:6443").parse().map_err(|_| refuse())?,
        };
        Ok(Server(authority))
    }
}

impl std::fmt::Display for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "https://{}", self.0)
    }
}

impl Server {
    /// Host and port.
    pub fn address(&self) -> (&str, u16) {
        (self.0.host().trim_start_matches('[').trim_end_matches(']'), self.0.port_u16().unwrap_or(6443))
    }

    fn uri(&self, path: &Uri) -> Uri {
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(Scheme::HTTPS);
        parts.authority = Some(self.0.clone());
        parts.path_and_query = Some(path.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/")));
        Uri::from_parts(parts).expect("a scheme, an authority and a path are a URI")
    }
}

fn https(tls: ClientConfig) -> Https {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(CONNECT_MAX));
    let connector =
        HttpsConnectorBuilder::new().with_tls_config(tls).https_only().enable_all_versions().wrap_connector(connector);
    // One connection for all watches and requests; it is known to be there.
    legacy::Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .http2_initial_stream_window_size(1 << 20)
        .http2_initial_connection_window_size(8 << 20)
        .http2_keep_alive_interval(PING_AFTER)
        .http2_keep_alive_timeout(PONG_MAX)
        .http2_keep_alive_while_idle(true)
        .build(connector)
}

/// A client of the API that acts as the node.
pub fn client(server: &Server, identity: &Identity, current: &Arc<Current>) -> Result<kube::Client, WorkerError> {
    let (https, server) = (https(current.client(identity)?), server.clone());
    let service = tower::service_fn(move |mut request: Request<Body>| {
        *request.uri_mut() = server.uri(request.uri());
        https.request(request)
    });
    Ok(kube::Client::new(service, "default"))
}

/// Fetches the cluster's authority, compares it with the token's hash, and only then shows the token; returns the authority and
/// what was answered.
async fn prove(server: &Server, token: &Token, path: &str, body: &Value) -> Result<(String, Value), WorkerError> {
    let authority = fetch_authority(server).await?;
    if !token.is_of(&authority) {
        return Err(WorkerError::OtherCluster { server: server.to_string() });
    }
    let https = https(trusting(&authority)?);
    let request = Request::post(path).header("authorization", format!("Bearer {}", token.shown()));
    let answer = send(&https, server, request, body.to_string()).await?;
    Ok((authority, serde_json::from_slice(&answer).map_err(|error| strange(server, error))?))
}

/// Joins as a server that others reach at `address`.
pub async fn join_server(
    server: &Server,
    token: &Token,
    name: &str,
    address: &str,
) -> Result<coracle_server::Joining, WorkerError> {
    let body = json!({"name": name, "address": address, "formats": coracle_server::Formats::OWN, "images": true});
    let (authority, answer) = prove(server, token, "/coracle/v1/join-server", &body).await?;
    let joining = coracle_server::Joining::from_json(&answer).filter(|joining| joining.keys.authority == authority);
    joining.ok_or_else(|| strange(server, "what it gives is no place in a cluster"))
}

/// Joins as a node that listens at `address`, where the server tries whether it is reached.
pub async fn join(
    server: &Server,
    token: &Token,
    name: &str,
    address: Option<SocketAddr>,
) -> Result<Identity, WorkerError> {
    let (key, request) = request()?;
    let mut body = json!({"name": name, "request": request});
    if let Some(address) = address {
        body["address"] = json!(address);
    }
    let (authority, answer) = prove(server, token, "/coracle/v1/join", &body).await?;
    let text = |field: &str| answer[field].as_str().unwrap_or_default().to_owned();
    Ok(Identity::new(name, &server.to_string(), authority, text("certificate"), key)?)
}

/// The next certificate, with a new key.
pub async fn renew(client: &kube::Client, identity: &Identity) -> Result<Identity, WorkerError> {
    let (key, request) = request()?;
    let body = json!({"request": request}).to_string().into_bytes();
    let request = Request::post("/coracle/v1/renew").header("content-type", "application/json").body(body);
    let request = request.expect("a request of constants");
    let answer = tokio::time::timeout(ANSWER_MAX, client.request::<Value>(request)).await;
    let server = || identity.server.clone();
    let answer = match answer {
        Ok(Ok(answer)) => answer,
        Ok(Err(kube::Error::Api(status))) => return Err(WorkerError::Refused(status.message.clone())),
        Ok(Err(error)) => return Err(WorkerError::Unreachable { server: server(), why: crate::failover::why(&error) }),
        Err(_) => return Err(WorkerError::Unreachable { server: server(), why: "no answer in time".to_owned() }),
    };
    let certificate = answer["certificate"].as_str().unwrap_or_default().to_owned();
    Ok(Identity::new(&identity.name, &identity.server, identity.authority.clone(), certificate, key)?)
}

async fn fetch_authority(server: &Server) -> Result<String, WorkerError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let schemes = provider.signature_verification_algorithms.supported_schemes();
    let tls = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let tls = tls.map_err(|error| strange(server, error))?;
    let tls = tls.dangerous().with_custom_certificate_verifier(Arc::new(Anybody(schemes))).with_no_client_auth();
    let answer = send(&https(tls), server, Request::get("/coracle/v1/authority"), String::new()).await?;
    String::from_utf8(answer).map_err(|error| strange(server, error))
}

/// TLS that trusts this authority and nobody else.
fn trusting(authority: &str) -> Result<ClientConfig, WorkerError> {
    let failed = |error: String| WorkerError::Strange { server: "the authority".to_owned(), why: error };
    let mut roots = RootCertStore::empty();
    let root = CertificateDer::from_pem_slice(authority.as_bytes()).map_err(|error| failed(error.to_string()))?;
    roots.add(root).map_err(|error| failed(error.to_string()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    Ok(tls.map_err(|error| failed(error.to_string()))?.with_root_certificates(roots).with_no_client_auth())
}

async fn send(
    https: &Https,
    server: &Server,
    request: http::request::Builder,
    body: String,
) -> Result<Vec<u8>, WorkerError> {
    let request = request.header("content-type", "application/json").body(Body::from(body.into_bytes()));
    let mut request = request.map_err(|error| strange(server, error))?;
    *request.uri_mut() = server.uri(request.uri());
    let exchange = async {
        let response = https.request(request).await.map_err(|error| unreachable(server, &error))?;
        let code = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(|error| strange(server, error))?.to_bytes();
        if code.is_success() {
            return Ok(body.to_vec());
        }
        let message =
            serde_json::from_slice::<Value>(&body).ok().and_then(|v| v["message"].as_str().map(str::to_owned));
        Err(match message {
            Some(message) => WorkerError::Refused(message),
            None => strange(server, format!("it answers {code}")),
        })
    };
    match tokio::time::timeout(ANSWER_MAX, exchange).await {
        Ok(answer) => answer,
        Err(_) => Err(WorkerError::Unreachable { server: server.to_string(), why: "it does not answer".to_owned() }),
    }
}

fn strange(server: &Server, why: impl std::fmt::Display) -> WorkerError {
    WorkerError::Strange { server: server.to_string(), why: why.to_string() }
}

/// In the words of the innermost cause.
fn unreachable(server: &Server, error: &dyn std::error::Error) -> WorkerError {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    let why = cause.to_string();
    let why = why.split(" (os error").next().unwrap_or_default().to_owned();
    WorkerError::Unreachable { server: server.to_string(), why }
}

/// Takes whoever answers: nothing is told, and what is heard is compared with a hash.
#[derive(Debug)]
struct Anybody(Vec<SignatureScheme>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_an_https_address_and_nothing_more() {
        for (text, expected) in [
            ("https://192.0.2.1:7443", Some(("192.0.2.1", 7443))),
            ("https://boat.example/", Some(("boat.example", 6443))),
            ("https://[2001:db8::1]:6443", Some(("2001:db8::1", 6443))),
            ("http://192.0.2.1:6443", None),
            ("192.0.2.1:6443", None),
            ("https://192.0.2.1/api", None),
            ("https://me@192.0.2.1", None),
            ("", None),
        ] {
            let server = text.parse::<Server>().ok();
            assert_eq!(server.as_ref().map(Server::address), expected, "{text}");
        }
    }
}
