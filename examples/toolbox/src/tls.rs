//! TLS for servers and clients, in Rust alone: a component links no C.

use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};

use crate::net::{Failure, Stream};

/// For servers that are given no certificate: of `localhost`, which clients that ask for it do not check.
const LOCALHOST: &[u8] = include_bytes!("localhost.pem");

/// The certificate without its key.
pub fn localhost() -> &'static [u8] {
    let key = LOCALHOST.windows(11).rposition(|window| window == b"-----BEGIN ");
    &LOCALHOST[..key.unwrap_or_default()]
}

/// A server's side, with the certificate and the key of two files, or with that of `localhost`.
pub fn server(files: Option<(&Path, &Path)>) -> Result<Arc<ServerConfig>, String> {
    let (certificates, key) = match files {
        Some((certificates, key)) => (read(certificates)?, read(key)?),
        None => (LOCALHOST.to_vec(), LOCALHOST.to_vec()),
    };
    let (certificates, key) = (certificates_of(&certificates)?, key_of(&key)?);
    let config = ServerConfig::builder_with_provider(Arc::new(rustls_rustcrypto::provider()))
        .with_safe_default_protocol_versions();
    let config = config.map_err(|error| error.to_string())?.with_no_client_auth().with_single_cert(certificates, key);
    Ok(Arc::new(config.map_err(|error| error.to_string())?))
}

/// A server's side with what is in one file, the key and the certificates, that asks clients for a certificate of these authorities.
/// Who shows none is served, too, and told apart.
pub fn mutual_server(bundle: &Path, authorities: &Path) -> Result<Arc<ServerConfig>, String> {
    let (bundle, provider) = (read(bundle)?, Arc::new(rustls_rustcrypto::provider()));
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(authorities)?, provider.clone());
    let verifier = verifier.allow_unauthenticated().build().map_err(|error| error.to_string())?;
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.map_err(|error| error.to_string())?.with_client_cert_verifier(verifier);
    let config = config.with_single_cert(certificates_of(&bundle)?, key_of(&bundle)?);
    Ok(Arc::new(config.map_err(|error| error.to_string())?))
}

/// A client's side that believes these authorities, and shows what is in a bundle of a key and certificates.
pub fn trusting_client(authorities: &Path, bundle: Option<&Path>) -> Result<Arc<ClientConfig>, String> {
    let config = ClientConfig::builder_with_provider(Arc::new(rustls_rustcrypto::provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots(authorities)?);
    let Some(bundle) = bundle else { return Ok(Arc::new(config.with_no_client_auth())) };
    let bundle = read(bundle)?;
    let config = config.with_client_auth_cert(certificates_of(&bundle)?, key_of(&bundle)?);
    Ok(Arc::new(config.map_err(|error| error.to_string())?))
}

/// Whether a signature of a message was made with a key of curve P-256 (an uncompressed point) and SHA-256; the signature is in DER.
pub fn is_signed(point: &[u8], message: &[u8], signature: &[u8]) -> bool {
    let provider = rustls_rustcrypto::provider();
    let known = provider.signature_verification_algorithms.mapping.iter();
    let algorithms = known.filter(|(scheme, _)| *scheme == SignatureScheme::ECDSA_NISTP256_SHA256);
    let mut algorithms = algorithms.flat_map(|(_, algorithms)| algorithms.iter());
    algorithms.any(|algorithm| algorithm.verify_signature(point, message, signature).is_ok())
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))
}

fn certificates_of(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>().map_err(|error| error.to_string())
}

fn key_of(pem: &[u8]) -> Result<PrivateKeyDer<'static>, String> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|error| error.to_string())
}

fn roots(authorities: &Path) -> Result<Arc<RootCertStore>, String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates_of(&read(authorities)?)? {
        roots.add(certificate).map_err(|error| error.to_string())?;
    }
    Ok(Arc::new(roots))
}

/// A client's side, which believes everyone: as `curl -k`, since nobody here asks with a secret.
pub fn client() -> Result<Arc<ClientConfig>, String> {
    let config = ClientConfig::builder_with_provider(Arc::new(rustls_rustcrypto::provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    Ok(Arc::new(config.dangerous().with_custom_certificate_verifier(Arc::new(Everyone)).with_no_client_auth()))
}

#[derive(Debug)]
struct Everyone;

impl ServerCertVerifier for Everyone {
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
        rustls_rustcrypto::provider().signature_verification_algorithms.supported_schemes()
    }
}

/// A connection that is secured, as a client has it.
pub struct Secured<'a> {
    stream: &'a Stream,
    tls: ClientConnection,
    deadline: Option<Instant>,
}

impl<'a> Secured<'a> {
    pub fn new(
        stream: &'a Stream,
        host: &str,
        config: Arc<ClientConfig>,
        deadline: Option<Instant>,
    ) -> Result<Secured<'a>, Failure> {
        let name = ServerName::try_from(host.to_owned()).map_err(|error| Failure::Other(error.to_string()))?;
        let tls = ClientConnection::new(config, name).map_err(|error| Failure::Other(error.to_string()))?;
        Ok(Secured { stream, tls, deadline })
    }

    fn flush(&mut self) -> Result<(), Failure> {
        let mut bytes = Vec::new();
        while self.tls.wants_write() {
            self.tls.write_tls(&mut bytes).map_err(|error| Failure::Other(error.to_string()))?;
        }
        self.stream.write(&bytes, self.deadline)
    }

    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.tls.writer().write_all(bytes).map_err(|error| Failure::Other(error.to_string()))?;
        self.flush()
    }

    /// What comes next; none at the end of the connection.
    pub fn read(&mut self) -> Result<Option<Vec<u8>>, Failure> {
        loop {
            self.flush()?;
            let Some(bytes) = self.stream.read(self.deadline)? else { return Ok(None) };
            let (mut rest, mut plain) = (bytes.as_slice(), Vec::new());
            while !rest.is_empty() {
                self.tls.read_tls(&mut rest).map_err(|error| Failure::Other(error.to_string()))?;
                let state = self.tls.process_new_packets().map_err(|error| Failure::Other(error.to_string()))?;
                let mut part = vec![0; state.plaintext_bytes_to_read()];
                self.tls.reader().read_exact(&mut part).map_err(|error| Failure::Other(error.to_string()))?;
                plain.append(&mut part);
            }
            if !plain.is_empty() {
                return Ok(Some(plain));
            }
        }
    }
}
