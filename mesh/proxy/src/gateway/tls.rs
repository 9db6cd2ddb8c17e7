//! Certificates of hosts, found by the name that a client asks for. They may change at any time: who connects afterwards is shown
//! the new one, who is connected notices nothing.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use coracle_discovery::gateway_api::Protocol;
use coracle_discovery::{Ingresses, SecretKey};
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::ports::GatewayRoutes;

/// Certificates in a chain.
const CHAIN_MAX: usize = 20;

/// A certificate with its chain and its key.
#[derive(Debug, Clone)]
pub struct Certificate(Arc<CertifiedKey>);

/// Why a certificate cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// The text of the certificate.
    #[error("the certificate is no PEM that can be read: {0}")]
    Certificate(pem::Error),
    /// There is none.
    #[error("there is no certificate in it")]
    None,
    /// The chain.
    #[error("its chain has more than {CHAIN_MAX} certificates")]
    TooMany,
    /// The text of the key.
    #[error("the private key is no PEM that can be read: {0}")]
    Key(pem::Error),
    /// They do not belong together.
    #[error("the certificate does not match the private key")]
    Mismatch,
    /// Anything else.
    #[error("{0}")]
    Unusable(rustls::Error),
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

impl Certificate {
    /// From `tls.crt` and `tls.key` of a Secret.
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Certificate, CertificateError> {
        let mut certificates = Vec::new();
        for certificate in CertificateDer::pem_slice_iter(chain) {
            if certificates.len() == CHAIN_MAX {
                return Err(CertificateError::TooMany);
            }
            certificates.push(certificate.map_err(CertificateError::Certificate)?);
        }
        if certificates.is_empty() {
            return Err(CertificateError::None);
        }
        let key = PrivateKeyDer::from_pem_slice(key).map_err(CertificateError::Key)?;
        Certificate::from_der(certificates, key)
    }

    /// From what such texts stand for.
    pub fn from_der(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Certificate, CertificateError> {
        match CertifiedKey::from_der(chain, key, &provider()) {
            Ok(certified) => Ok(Certificate(Arc::new(certified))),
            Err(rustls::Error::InconsistentKeys(_)) => Err(CertificateError::Mismatch),
            Err(error) => Err(CertificateError::Unusable(error)),
        }
    }
}

/// The certificates of all hosts.
#[derive(Debug)]
pub struct Certificates {
    by_secret: RwLock<HashMap<SecretKey, Certificate>>,
    default: Certificate,
}

impl Certificates {
    /// None yet but the one for names that have none.
    pub fn new(default: Certificate) -> Certificates {
        Certificates { by_secret: RwLock::default(), default }
    }

    /// The certificate of a Secret is this one from now on.
    pub fn set(&self, secret: &SecretKey, certificate: Option<Certificate>) {
        let mut all = self.by_secret.write().unwrap_or_else(PoisonError::into_inner);
        match certificate {
            Some(certificate) => all.insert(secret.clone(), certificate),
            None => all.remove(secret),
        };
    }

    /// Whether a Secret has one.
    pub fn has(&self, secret: &SecretKey) -> bool {
        self.by_secret.read().unwrap_or_else(PoisonError::into_inner).contains_key(secret)
    }

    fn get(&self, secret: &SecretKey) -> Option<Certificate> {
        self.by_secret.read().unwrap_or_else(PoisonError::into_inner).get(secret).cloned()
    }
}

/// Finds the Secret by the name, and what is in it: of a Gateway's listener at this port, else of an Ingress.
struct ByName {
    gateways: Option<(GatewayRoutes, u16)>,
    ingresses: Option<(Arc<Certificates>, Ingresses)>,
}

impl std::fmt::Debug for ByName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ByName")
    }
}

impl ByName {
    /// Its listener's, and whether it goes before an Ingress.
    fn of_gateway(&self, name: &str) -> Option<(Certificate, bool)> {
        let (of, port) = self.gateways.as_ref()?;
        let ports = of.routes.ports();
        let routes = ports.get(*port).filter(|routes| routes.protocol == Protocol::Https)?;
        let listener = routes.listener(name, |secret| of.certificates.has(secret))?;
        let ingress = self.ingresses.as_ref().and_then(|(_, routes)| routes.routing().claim(name));
        let is_first = ingress.is_none_or(|ingress| !ingress.is_before(listener.claim(name)));
        listener.secrets.iter().find_map(|secret| of.certificates.get(secret)).map(|found| (found, is_first))
    }

    fn of_ingress(&self, name: &str) -> Option<Certificate> {
        let (certificates, routes) = self.ingresses.as_ref()?;
        certificates.get(routes.routing().secret(name)?)
    }

    /// The one for all others.
    fn default(&self) -> Option<Certificate> {
        let of_gateways = self.gateways.as_ref().map(|(of, _)| &of.certificates);
        of_gateways.or(self.ingresses.as_ref().map(|(of, _)| of)).map(|of| of.default.clone())
    }
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, client: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = client.server_name().unwrap_or_default().to_ascii_lowercase();
        let found = match self.of_gateway(&name) {
            Some((found, true)) => Some(found),
            other => self.of_ingress(&name).or(other.map(|(found, _)| found)).or_else(|| self.default()),
        };
        found.map(|found| found.0)
    }
}

/// TLS 1.2 and 1.3 with these certificates, for HTTP/2 and HTTP/1.1.
pub(super) fn server(
    ingresses: Option<(Arc<Certificates>, Ingresses)>,
    gateways: Option<(GatewayRoutes, u16)>,
) -> Arc<ServerConfig> {
    let by_name = ByName { gateways, ingresses };
    let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let builder = builder.expect("ring has what TLS 1.2 and 1.3 need");
    let mut config = builder.with_no_client_auth().with_cert_resolver(Arc::new(by_name));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Arc::new(config)
}
