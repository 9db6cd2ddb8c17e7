//! Who calls the node's endpoint: an API server, with a certificate for it, or somebody else.

use std::sync::Arc;

use http::{Request, Response};
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// An authority, and what it issues.
pub struct Certificates {
    issuer: Issuer<'static, KeyPair>,
    root: CertificateDer<'static>,
}

impl Certificates {
    pub fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = params.self_signed(&key).unwrap().der().clone();
        Self { issuer: Issuer::new(params, key), root }
    }

    fn issue(&self, name: &str) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        if name.starts_with("system:node:") {
            params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
        }
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (vec![certificate.der().clone()], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
    }

    /// The authority's own.
    pub fn root(&self) -> CertificateDer<'static> {
        self.root.clone()
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.root.clone()).unwrap();
        roots
    }

    /// TLS of the node's endpoint.
    pub fn node(&self) -> Arc<ServerConfig> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(self.roots()), provider.clone());
        let clients = clients.allow_unauthenticated().build().unwrap();
        let (chain, key) = self.issue("system:node:n1");
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        Arc::new(config.with_client_cert_verifier(clients).with_single_cert(chain, key).unwrap())
    }

    /// A connection to the node's endpoint as `name`, or as nobody.
    pub async fn connect(&self, port: u16, name: Option<&str>) -> tokio_rustls::client::TlsStream<TcpStream> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config = config.with_root_certificates(self.roots());
        let config = match name.map(|name| self.issue(name)) {
            Some((chain, key)) => config.with_client_auth_cert(chain, key).unwrap(),
            None => config.with_no_client_auth(),
        };
        let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let server = ServerName::try_from("127.0.0.1").unwrap();
        TlsConnector::from(Arc::new(config)).connect(server, stream).await.unwrap()
    }

    /// Sends a request to the node's endpoint as `name`, or as nobody.
    pub async fn send(&self, port: u16, name: Option<&str>, request: Request<()>) -> Response<Incoming> {
        let stream = self.connect(port, name).await;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection.with_upgrades());
        let request = request.map(|()| Full::new(bytes::Bytes::new()));
        sender.send_request(request).await.unwrap()
    }

    /// A connection of HTTP/2 to the node's endpoint as `name`.
    pub async fn link(&self, port: u16, name: &str) -> http2::SendRequest<Empty<bytes::Bytes>> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let (chain, key) = self.issue(name);
        let config = config.with_root_certificates(self.roots()).with_client_auth_cert(chain, key).unwrap();
        let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let server = ServerName::try_from("127.0.0.1").unwrap();
        let stream = TlsConnector::from(Arc::new(config)).connect(server, stream).await.unwrap();
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        sender
    }

    /// Gets a path as an API server: code and body.
    pub async fn get(&self, port: u16, path: &str) -> (u16, String) {
        let request = Request::get(path).header("host", "127.0.0.1").body(()).unwrap();
        read(self.send(port, Some("kube-apiserver-kubelet-client"), request).await).await
    }
}

pub async fn read(response: Response<Incoming>) -> (u16, String) {
    let code = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (code, String::from_utf8_lossy(&body).into_owned())
}
