//! Who a node is: its name, its key, its certificate, and the cluster it belongs to. One file that is replaced whole, for its
//! owner alone.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{CertificateParams, KeyPair};
use rustls::client::ResolvesClientCert;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig, SignatureScheme};
use serde::{Deserialize, Serialize};
use std::sync::{PoisonError, RwLock};

/// Name of the file in the data directory.
const FILE: &str = "identity.json";
/// Version of its form.
const LAYOUT: u32 = 1;

/// What a node keeps.
#[derive(Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct Identity {
    /// Version of this form.
    pub layout: u32,
    /// The node's name.
    pub name: String,
    /// `https://HOST:PORT` of the API.
    pub server: String,
    /// The cluster's authority, PEM.
    pub authority: String,
    /// The node's certificate, PEM.
    pub certificate: String,
    /// Its key, PEM.
    pub key: String,
}

/// What a file or a server has given cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file.
    #[error("{path}")]
    File {
        /// Which one.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Its content.
    #[error("{what} cannot be used: {why}")]
    Content {
        /// What it is.
        what: String,
        /// Why.
        why: String,
    },
}

fn content(what: &str, why: impl std::fmt::Display) -> IdentityError {
    IdentityError::Content { what: what.to_owned(), why: why.to_string() }
}

/// A new key, and the request for a certificate for it (both PEM).
pub fn request() -> Result<(String, String), IdentityError> {
    let failed = |error: rcgen::Error| content("a new key", error);
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(failed)?;
    // The server says what the certificate is for.
    let request = CertificateParams::default().serialize_request(&key).and_then(|request| request.pem());
    Ok((key.serialize_pem(), request.map_err(failed)?))
}

/// Keeps the file `name` in `dir`, which is made when it is missing: whole or not at all, and for its owner alone.
pub fn write(dir: &Path, name: &str, content: &[u8]) -> io::Result<()> {
    let (path, part) = (dir.join(name), dir.join(format!("{name}.part")));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let _ = fs::remove_file(&part);
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&part)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&part, &path)?;
    fs::File::open(dir)?.sync_all()
}

impl Identity {
    /// One that was just given; it is looked at before it is kept.
    pub fn new(
        name: &str,
        server: &str,
        authority: String,
        certificate: String,
        key: String,
    ) -> Result<Identity, IdentityError> {
        let identity =
            Identity { layout: LAYOUT, name: name.to_owned(), server: server.to_owned(), authority, certificate, key };
        identity.certified()?;
        Ok(identity)
    }

    /// The identity that is kept in `dir`, if there is one.
    pub fn load(dir: &Path) -> Result<Option<Identity>, IdentityError> {
        let path = dir.join(FILE);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(IdentityError::File { path, source }),
        };
        let broken = |why: &dyn std::fmt::Display| content(&path.display().to_string(), why);
        let identity: Identity = serde_json::from_slice(&bytes).map_err(|error| broken(&error))?;
        match identity.layout {
            LAYOUT => Ok(Some(identity)),
            other => Err(broken(&format!("it is of version {other}, which this coracle does not know"))),
        }
    }

    /// Keeps it in `dir`, which is made when it is missing: whole or not at all.
    pub fn store(&self, dir: &Path) -> Result<(), IdentityError> {
        let text = serde_json::to_vec_pretty(self).expect("JSON of strings and a number");
        write(dir, FILE, &text).map_err(|source| IdentityError::File { path: dir.join(FILE), source })
    }

    /// The cluster's authority.
    pub fn root(&self) -> Result<CertificateDer<'static>, IdentityError> {
        CertificateDer::from_pem_slice(self.authority.as_bytes()).map_err(|error| content("the authority", error))
    }

    /// The share of its certificate's life that is left, from 1 to 0; it is over at 0.
    pub fn left(&self) -> Result<f64, IdentityError> {
        let der = CertificateDer::from_pem_slice(self.certificate.as_bytes());
        let der = der.map_err(|error| content("the node's certificate", error))?;
        let parsed = x509_parser::parse_x509_certificate(&der);
        let (_, certificate) = parsed.map_err(|error| content("the node's certificate", error))?;
        let validity = certificate.validity();
        let all = (validity.not_after.timestamp() - validity.not_before.timestamp()).max(1);
        Ok((left_of(validity.not_after.timestamp()) / all as f64).clamp(0.0, 1.0))
    }

    fn certified(&self) -> Result<Arc<CertifiedKey>, IdentityError> {
        let chain: Vec<_> =
            CertificateDer::pem_slice_iter(self.certificate.as_bytes()).filter_map(Result::ok).collect();
        let key =
            PrivateKeyDer::from_pem_slice(self.key.as_bytes()).map_err(|error| content("the node's key", error))?;
        let provider = rustls::crypto::ring::default_provider();
        let certified = CertifiedKey::from_der(chain, key, &provider);
        certified.map(Arc::new).map_err(|error| content("the node's certificate", error))
    }
}

fn left_of(not_after: i64) -> f64 {
    (not_after - jiff::Timestamp::now().as_second()) as f64
}

/// The certificate of the moment, for all that show it: it is replaced while they run.
pub struct Current(RwLock<Arc<CertifiedKey>>);

impl Current {
    /// That of `identity`.
    pub fn new(identity: &Identity) -> Result<Arc<Current>, IdentityError> {
        Ok(Arc::new(Current(RwLock::new(identity.certified()?))))
    }

    /// Shows that of `identity` from now on.
    pub fn replace(&self, identity: &Identity) -> Result<(), IdentityError> {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = identity.certified()?;
        Ok(())
    }

    fn get(&self) -> Arc<CertifiedKey> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// TLS towards servers and nodes of the cluster.
    pub fn client(self: &Arc<Current>, identity: &Identity) -> Result<ClientConfig, IdentityError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let builder = builder.map_err(|error| content("TLS", error))?;
        Ok(builder.with_root_certificates(roots(identity)?).with_client_cert_resolver(self.clone()))
    }

    /// TLS of the node's own listener; who calls shows a certificate of the cluster, or learns no more than that it is well.
    pub fn server(self: &Arc<Current>, identity: &Identity) -> Result<ServerConfig, IdentityError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(identity)?), provider.clone());
        let clients = clients.allow_unauthenticated().build().map_err(|error| content("the authority", error))?;
        let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let builder = builder.map_err(|error| content("TLS", error))?;
        let mut tls = builder.with_client_cert_verifier(clients).with_cert_resolver(self.clone());
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(tls)
    }
}

fn roots(identity: &Identity) -> Result<RootCertStore, IdentityError> {
    let mut roots = RootCertStore::empty();
    roots.add(identity.root()?).map_err(|error| content("the authority", error))?;
    Ok(roots)
}

impl std::fmt::Debug for Current {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Current")
    }
}

impl ResolvesClientCert for Current {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.get())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(days: i64) -> Identity {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["boat".to_owned()]).unwrap();
        let at = |days: i64| {
            let now = std::time::SystemTime::now();
            let span = std::time::Duration::from_secs(days.unsigned_abs() * 86_400);
            if days < 0 { now - span } else { now + span }
        };
        (params.not_before, params.not_after) = (at(days - 90).into(), at(days).into());
        let certificate = params.self_signed(&key).unwrap().pem();
        let authority = certificate.clone();
        Identity::new("boat", "https://192.0.2.1:6443", authority, certificate, key.serialize_pem()).unwrap()
    }

    #[test]
    fn an_identity_is_kept_for_its_owner_and_says_when_it_ends() {
        use std::os::unix::fs::PermissionsExt as _;
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("node");
        assert!(Identity::load(&dir).unwrap().is_none());
        let identity = identity(45);
        identity.store(&dir).unwrap();
        assert!(Identity::load(&dir).unwrap().unwrap() == identity);
        for path in [dir.clone(), dir.join(FILE)] {
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o077, 0, "{}", path.display());
        }
        assert!((identity.left().unwrap() - 0.5).abs() < 0.01);
        assert_eq!(super::tests::identity(-1).left().unwrap(), 0.0);
        fs::write(dir.join(FILE), "{}").unwrap();
        assert!(Identity::load(&dir).is_err(), "damage is not taken for a node that has not joined");
    }

    #[test]
    fn a_key_that_is_not_the_certificate_s_is_refused() {
        let (one, other) = (identity(45), identity(45));
        let mixed = Identity::new("boat", "https://x", one.authority.clone(), one.certificate.clone(), other.key);
        assert!(mixed.is_err());
    }
}
