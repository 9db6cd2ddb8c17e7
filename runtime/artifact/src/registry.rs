//! Registries spoken to with `oci-client`: resolve a name, read a manifest, download a blob.
//!
//! oci-client remembers authorizations per registry, whoever asked. Two namespaces with different pull secrets must not
//! share them, so there is one client per set of credentials (at most [`CLIENTS_MAX`]; the oldest goes first).

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Mutex;
use std::task::{Context, Poll};
use std::time::Duration;

use oci_client::client::{Certificate, CertificateEncoding, ClientConfig, ClientProtocol};
use oci_client::errors::{OciDistributionError, OciErrorCode};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference};
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncWrite;

use crate::PullError;
use crate::layout::Descriptor;

/// Clients kept, one per set of credentials and transport.
const CLIENTS_MAX: usize = 32;

/// Bytes of a message that are passed on.
const MESSAGE_BYTES_MAX: usize = 1 << 10;

const MANIFEST_TYPES: &[&str] = &[
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];

/// How registries are reached.
#[derive(Debug, Clone, Default)]
pub struct Transport {
    /// PEM bundles of private certificate authorities, trusted beside the system's.
    pub extra_roots: Vec<Vec<u8>>,
    /// Registries (host or host:port) reached over plain http. Loopback addresses always are.
    pub plain_http: Vec<String>,
}

/// Clients by credentials.
pub struct Registries {
    transport: Transport,
    clients: Mutex<VecDeque<([u8; 32], Client)>>,
}

impl std::fmt::Debug for Registries {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registries").field("transport", &self.transport).finish_non_exhaustive()
    }
}

/// A reference with the authorization to use for it.
pub struct Remote {
    client: Client,
    reference: Reference,
    auth: RegistryAuth,
    image: String,
}

impl Registries {
    /// Registries reached as `transport` says.
    pub fn new(transport: Transport) -> Self {
        // reqwest is built without a TLS provider of its own; whoever came first has chosen.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Self { transport, clients: Mutex::default() }
    }

    /// A reference to speak about, as `auth`; `image` is the name that error messages carry.
    pub fn remote(&self, reference: Reference, auth: RegistryAuth, image: &str) -> Result<Remote, PullError> {
        let plain =
            is_loopback(reference.registry()) || self.transport.plain_http.iter().any(|r| r == reference.registry());
        let key: [u8; 32] = Sha256::digest(match &auth {
            RegistryAuth::Anonymous => format!("{plain}"),
            RegistryAuth::Basic(user, password) => format!("{plain}\0basic\0{user}\0{password}"),
            RegistryAuth::Bearer(token) => format!("{plain}\0bearer\0{token}"),
        })
        .into();
        let mut clients = self.clients.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let client = match clients.iter().find(|(have, _)| *have == key) {
            Some((_, client)) => client.clone(),
            None => {
                let client = self
                    .connect(plain)
                    .map_err(|error| PullError::Unreachable { image: image.to_owned(), message: chain(&error) })?;
                if clients.len() == CLIENTS_MAX {
                    clients.pop_front();
                }
                clients.push_back((key, client.clone()));
                client
            }
        };
        Ok(Remote { client, reference, auth, image: image.to_owned() })
    }

    fn connect(&self, plain: bool) -> Result<Client, OciDistributionError> {
        let root = |pem: &Vec<u8>| Certificate { encoding: CertificateEncoding::Pem, data: pem.clone() };
        Client::try_from(ClientConfig {
            protocol: if plain { ClientProtocol::Http } else { ClientProtocol::Https },
            // A plain client never verifies anything: it must not pay for loading the system's roots.
            accept_invalid_certificates: plain,
            extra_root_certificates: if plain {
                Vec::new()
            } else {
                self.transport.extra_roots.iter().map(root).collect()
            },
            connect_timeout: Some(Duration::from_secs(10)),
            read_timeout: Some(Duration::from_secs(60)),
            platform_resolver: None,
            user_agent: concat!("coracle/", env!("CARGO_PKG_VERSION")),
            ..ClientConfig::default()
        })
    }
}

impl Remote {
    /// Asks which manifest digest the reference has now.
    pub async fn resolve(&self) -> Result<String, PullError> {
        let digest = self.client.fetch_manifest_digest(&self.reference, &self.auth).await;
        digest.map_err(|error| self.error(error))
    }

    /// Reads the manifest `digest`, verified.
    pub async fn manifest(&self, digest: &str) -> Result<bytes::Bytes, PullError> {
        let reference = self.reference.clone_with_digest(digest.to_owned());
        let read = self.client.pull_manifest_raw(&reference, &self.auth, MANIFEST_TYPES).await;
        let (bytes, actual) = read.map_err(|error| self.error(error))?;
        match actual == digest {
            true => Ok(bytes),
            false => Err(PullError::Corrupt { image: self.image.clone(), message: format!("{digest} is {actual}") }),
        }
    }

    /// Downloads a blob into `out`, at most `limit` bytes, verified against its digest.
    pub async fn blob(
        &self,
        blob: &Descriptor,
        out: tokio::fs::File,
        limit: u64,
        written: &mut (dyn FnMut(u64) + Send),
    ) -> Result<(), PullError> {
        let too_large = |size| PullError::TooLarge { image: self.image.clone(), size, limit };
        if blob.size > limit {
            return Err(too_large(blob.size));
        }
        self.client.store_auth_if_needed(self.reference.resolve_registry(), &self.auth).await;
        let mut out = Bounded { inner: out, left: limit, written };
        match self.client.pull_blob(&self.reference, blob.digest.as_str(), &mut out).await {
            Ok(()) => Ok(()),
            Err(OciDistributionError::IoError(error)) if error.kind() == std::io::ErrorKind::FileTooLarge => {
                Err(too_large(limit + 1))
            }
            Err(error) => Err(self.error(error)),
        }
    }

    /// How it was asked for, and where.
    pub fn auth(&self) -> (&RegistryAuth, &str) {
        (&self.auth, self.reference.registry())
    }

    /// Host and repository, for messages.
    pub fn place(&self) -> String {
        self.reference.registry().to_owned()
    }

    fn error(&self, error: OciDistributionError) -> PullError {
        use OciErrorCode::*;
        let image = self.image.clone();
        let message = format!("{}: {}", self.reference.registry(), chain(&error));
        match error {
            OciDistributionError::ImageManifestNotFoundError(_)
            | OciDistributionError::ServerError { code: 404, .. } => {
                PullError::NotFound { image, message: format!("not in {}", self.reference.registry()) }
            }
            OciDistributionError::ServerError { code: 401 | 403, .. }
            | OciDistributionError::UnauthorizedError { .. }
            | OciDistributionError::AuthenticationFailure(_) => PullError::Unauthorized { image, message },
            OciDistributionError::RegistryError { envelope, .. } => {
                let has = |codes: &[OciErrorCode]| envelope.errors.iter().any(|error| codes.contains(&error.code));
                if has(&[Unauthorized, Denied]) {
                    PullError::Unauthorized { image, message }
                } else if has(&[ManifestUnknown, NameUnknown, NotFound, ManifestBlobUnknown, BlobUnknown]) {
                    PullError::NotFound { image, message: format!("not in {}", self.reference.registry()) }
                } else {
                    PullError::Unreachable { image, message }
                }
            }
            OciDistributionError::DigestError(_) => PullError::Corrupt { image, message },
            OciDistributionError::IoError(source) => PullError::io(&image, source),
            OciDistributionError::ManifestParsingError(_)
            | OciDistributionError::VersionedParsingError(_)
            | OciDistributionError::UnsupportedMediaTypeError(_)
            | OciDistributionError::UnsupportedSchemaVersionError(_) => PullError::NotWasm { image, message },
            _ => PullError::Unreachable { image, message },
        }
    }
}

/// Whether a registry is on this machine, where plain http is what registries speak.
pub(crate) fn is_loopback(registry: &str) -> bool {
    let host = match registry.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        None => registry.split(':').next().unwrap_or(registry),
    };
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// The error with its causes: what a registry says of itself may be long, and goes into events and statuses.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = whole_chain(error);
    text.truncate(text.floor_char_boundary(MESSAGE_BYTES_MAX));
    text
}

fn whole_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// Stops a download that is longer than it may be.
struct Bounded<'a> {
    inner: tokio::fs::File,
    left: u64,
    /// Told of what is written.
    written: &'a mut (dyn FnMut(u64) + Send),
}

impl AsyncWrite for Bounded<'_> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        if bytes.len() as u64 > self.left {
            return Poll::Ready(Err(std::io::ErrorKind::FileTooLarge.into()));
        }
        let written = std::task::ready!(Pin::new(&mut self.inner).poll_write(cx, bytes))?;
        self.left -= written as u64;
        (self.written)(written as u64);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
