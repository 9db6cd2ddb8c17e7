//! Registries: resolve a name, read a manifest, download a blob. What they answer is foreign: everything is read within
//! a bound of bytes, verified by its digest, and nothing of it is kept whole but what has to be parsed.
//!
//! A client remembers the tokens that it was given. Two namespaces with different pull secrets must not share them, so
//! there is one client per set of credentials (at most [`CLIENTS_MAX`]; the oldest goes first).

mod authorization;
mod content;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use oci_client::Reference;
use reqwest::{Method, Response, StatusCode, Url, header};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncWriteExt as _;

use crate::PullError;
use crate::credential::Auth;
use crate::error::shortened;
use crate::layout::{Descriptor, MANIFEST_BYTES_MAX};
use authorization::{Challenge, Tokens};
pub(crate) use content::Check;
use content::whole;

/// Clients kept, one per set of credentials and transport.
const CLIENTS_MAX: usize = 32;

/// Bytes of a refusal that are read.
const REFUSAL_BYTES_MAX: usize = 16 << 10;

const MANIFEST_TYPES: &str = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json, application/vnd.docker.distribution.manifest.list.v2+json";

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
    clients: Mutex<VecDeque<([u8; 32], Arc<Client>)>>,
}

impl std::fmt::Debug for Registries {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registries").field("transport", &self.transport).finish_non_exhaustive()
    }
}

/// How a registry is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// On this machine: plain http, and through no proxy.
    Own,
    /// Plain http.
    Plain,
    /// https.
    Tls,
}

/// Connections and tokens of one set of credentials.
struct Client {
    http: reqwest::Client,
    tokens: Tokens,
}

/// A reference with the authorization to use for it.
pub struct Remote {
    client: Arc<Client>,
    reference: Reference,
    auth: Auth,
    is_plain: bool,
    image: String,
}

/// What a registry says when it refuses (OCI distribution, "Error codes").
#[derive(Deserialize, Default)]
#[serde(default)]
struct Refusal {
    errors: Vec<Reason>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Reason {
    code: String,
    message: String,
}

impl Registries {
    /// Registries reached as `transport` says.
    pub fn new(transport: Transport) -> Self {
        // reqwest is built without a TLS provider of its own; whoever came first has chosen.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Self { transport, clients: Mutex::default() }
    }

    /// A reference to speak about, as `auth`; `image` is the name that error messages carry.
    pub fn remote(&self, reference: Reference, auth: Auth, image: &str) -> Result<Remote, PullError> {
        let way = match reference.registry() {
            registry if is_loopback(registry) => Way::Own,
            registry if self.transport.plain_http.iter().any(|plain| plain == registry) => Way::Plain,
            _ => Way::Tls,
        };
        let key: [u8; 32] = Sha256::digest(match &auth {
            Auth::Anonymous => format!("{way:?}"),
            Auth::Basic(user, password) => format!("{way:?}\0basic\0{user}\0{password}"),
            Auth::Bearer(token) => format!("{way:?}\0bearer\0{token}"),
        })
        .into();
        let mut clients = self.clients.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let client = match clients.iter().find(|(have, _)| *have == key) {
            Some((_, client)) => client.clone(),
            None => {
                let http = self
                    .connect(way)
                    .map_err(|error| PullError::Unreachable { image: image.to_owned(), message: chain(&error) })?;
                let client = Arc::new(Client { http, tokens: Tokens::default() });
                if clients.len() == CLIENTS_MAX {
                    clients.pop_front();
                }
                clients.push_back((key, client.clone()));
                client
            }
        };
        Ok(Remote { client, reference, auth, is_plain: way != Way::Tls, image: image.to_owned() })
    }

    fn connect(&self, way: Way) -> reqwest::Result<reqwest::Client> {
        let client = reqwest::Client::builder()
            .connect_timeout(Duration::from_secs(10))
            .read_timeout(Duration::from_secs(60))
            .user_agent(concat!("coracle/", env!("CARGO_PKG_VERSION")));
        // What never verifies anything must not pay for loading the system's roots.
        match way {
            // A proxy's own loopback has no such registry.
            Way::Own => return client.no_proxy().danger_accept_invalid_certs(true).build(),
            Way::Plain => return client.danger_accept_invalid_certs(true).build(),
            Way::Tls => {}
        }
        let mut roots = Vec::new();
        for bundle in &self.transport.extra_roots {
            roots.extend(reqwest::Certificate::from_pem_bundle(bundle)?);
        }
        client.tls_certs_merge(roots).build()
    }
}

impl Remote {
    /// Asks which manifest digest the reference has now.
    pub async fn resolve(&self) -> Result<String, PullError> {
        let name = self.reference.digest().or(self.reference.tag()).unwrap_or("latest");
        let manifest = format!("manifests/{name}");
        let head = self.ask(Method::HEAD, &manifest).await?;
        let named = head.headers().get("docker-content-digest").and_then(|digest| digest.to_str().ok());
        if let Some(digest) = named.filter(|digest| Check::of(digest).is_some()) {
            return Ok(digest.to_owned());
        }
        // Not every registry says it; then it is what the manifest has.
        let bytes = self.read_manifest(&manifest).await?;
        Ok(format!("sha256:{:x}", Sha256::digest(&bytes)))
    }

    /// Reads the manifest `digest`, verified.
    pub async fn manifest(&self, digest: &str) -> Result<bytes::Bytes, PullError> {
        let mut check = self.check(digest)?;
        let bytes = self.read_manifest(&format!("manifests/{digest}")).await?;
        check.update(&bytes);
        check.done().map_err(|actual| self.corrupt(digest, &actual))?;
        Ok(bytes)
    }

    /// Downloads a blob into `out`, at most `limit` bytes, verified against its digest and its size.
    pub async fn blob(
        &self,
        blob: &Descriptor,
        mut out: tokio::fs::File,
        limit: u64,
        written: &mut (dyn FnMut(u64) + Send),
    ) -> Result<(), PullError> {
        let too_large = |size| PullError::TooLarge { image: self.image.clone(), size, limit };
        if blob.size > limit {
            return Err(too_large(blob.size));
        }
        let mut check = self.check(&blob.digest)?;
        let mut response = self.ask(Method::GET, &format!("blobs/{}", blob.digest)).await?;
        let mut size = 0;
        while let Some(chunk) = response.chunk().await.map_err(|error| self.unreachable(error))? {
            size += chunk.len() as u64;
            if size > blob.size {
                return Err(self.corrupt(&blob.digest, &format!("longer than its {} bytes", blob.size)));
            }
            if size > limit {
                return Err(too_large(size));
            }
            check.update(&chunk);
            out.write_all(&chunk).await.map_err(|error| PullError::io(&self.image, error))?;
            written(chunk.len() as u64);
        }
        out.flush().await.map_err(|error| PullError::io(&self.image, error))?;
        check.done().map_err(|actual| self.corrupt(&blob.digest, &actual))
    }

    /// How it was asked for, and where.
    pub fn auth(&self) -> (&Auth, &str) {
        (&self.auth, self.reference.registry())
    }

    /// The registry, for messages.
    pub fn place(&self) -> String {
        self.reference.registry().to_owned()
    }

    async fn read_manifest(&self, manifest: &str) -> Result<bytes::Bytes, PullError> {
        let mut response = self.ask(Method::GET, manifest).await?;
        match whole(&mut response, MANIFEST_BYTES_MAX).await.map_err(|error| self.unreachable(error))? {
            Some(bytes) => Ok(bytes),
            None => Err(PullError::NotWasm {
                image: self.image.clone(),
                message: format!("its manifest has more than {MANIFEST_BYTES_MAX} bytes"),
            }),
        }
    }

    /// Asks for something of the repository, with what the registry wants to be shown.
    async fn ask(&self, method: Method, what: &str) -> Result<Response, PullError> {
        let scheme = if self.is_plain { "http" } else { "https" };
        let (host, repository) = (self.reference.resolve_registry(), self.reference.repository());
        let url = Url::parse(&format!("{scheme}://{host}/v2/{repository}/{what}"))
            .map_err(|error| self.unavailable(error.to_string()))?;
        let send = async |shown: Option<header::HeaderValue>| {
            let mut request =
                self.client.http.request(method.clone(), url.clone()).header(header::ACCEPT, MANIFEST_TYPES);
            if let Some(shown) = shown {
                request = request.header(header::AUTHORIZATION, shown);
            }
            request.send().await.map_err(|error| self.unreachable(error))
        };
        let scope = format!("{host}/{repository}");
        let known = match &self.auth {
            Auth::Bearer(token) => Some(authorization::bearer(token).map_err(|error| self.unavailable(error))?),
            Auth::Anonymous | Auth::Basic(..) => self.client.tokens.known(&scope),
        };
        let mut response = send(known).await?;
        if response.status() == StatusCode::UNAUTHORIZED
            && let Some(shown) = self.authorize(Challenge::of(response.headers()), scope).await?
        {
            response = send(Some(shown)).await?;
        }
        match response.status().is_success() {
            true => Ok(response),
            false => Err(self.refused(response).await),
        }
    }

    /// What to show to a registry that asks for it, if there is something.
    async fn authorize(
        &self,
        challenge: Option<Challenge>,
        scope: String,
    ) -> Result<Option<header::HeaderValue>, PullError> {
        let basic = match &self.auth {
            Auth::Bearer(_) => return Ok(None),
            Auth::Anonymous => None,
            Auth::Basic(user, password) => {
                Some(authorization::basic(user, password).map_err(|error| self.unavailable(error))?)
            }
        };
        let Some(Challenge::Token { realm, service }) = challenge else {
            if let Some(basic) = &basic {
                self.client.tokens.remember(scope, basic.clone(), authorization::BASIC_KEPT);
            }
            return Ok(basic);
        };
        let url = authorization::token_url(&realm, &service, self.reference.repository(), self.is_plain)
            .map_err(|error| self.unavailable(error))?;
        let mut request = self.client.http.get(url);
        if let Some(basic) = basic {
            request = request.header(header::AUTHORIZATION, basic);
        }
        let mut response = request.send().await.map_err(|error| self.unreachable(error))?;
        if !response.status().is_success() {
            return Err(self.refused(response).await);
        }
        let read =
            whole(&mut response, authorization::TOKEN_BYTES_MAX).await.map_err(|error| self.unreachable(error))?;
        let (token, kept) = authorization::token(read.as_deref()).map_err(|error| self.unavailable(error))?;
        self.client.tokens.remember(scope, token.clone(), kept);
        Ok(Some(token))
    }

    /// What a registry's refusal means to the pod.
    async fn refused(&self, mut response: Response) -> PullError {
        let status = response.status();
        let body = whole(&mut response, REFUSAL_BYTES_MAX).await.ok().flatten().unwrap_or_default();
        let said: Refusal = serde_json::from_slice(&body).unwrap_or_default();
        let has = |codes: &[&str]| said.errors.iter().any(|reason| codes.contains(&reason.code.as_str()));
        let image = self.image.clone();
        let message = match said.errors.first() {
            Some(Reason { code, message }) => format!("{status}: {code}: {message}"),
            None => status.to_string(),
        };
        let message = shortened(format!("{}: {message}", self.place()));
        if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) || has(&["UNAUTHORIZED", "DENIED"]) {
            return PullError::Unauthorized { image, message };
        }
        let unknown = ["MANIFEST_UNKNOWN", "NAME_UNKNOWN", "NOT_FOUND", "MANIFEST_BLOB_UNKNOWN", "BLOB_UNKNOWN"];
        if status == StatusCode::NOT_FOUND || has(&unknown) {
            return PullError::NotFound { image, message: format!("not in {}", self.place()) };
        }
        PullError::Unreachable { image, message }
    }

    fn check(&self, digest: &str) -> Result<Check, PullError> {
        Check::of(digest).ok_or_else(|| PullError::NotWasm {
            image: self.image.clone(),
            message: shortened(format!("the digest {digest:?} is none of sha256, sha384 and sha512")),
        })
    }

    fn corrupt(&self, digest: &str, actual: &str) -> PullError {
        PullError::Corrupt { image: self.image.clone(), message: format!("{digest} is {actual}") }
    }

    /// Addresses may carry signatures (of storage that a registry leads to): they are not passed on.
    fn unreachable(&self, error: reqwest::Error) -> PullError {
        self.unavailable(chain(&error.without_url()))
    }

    fn unavailable(&self, message: String) -> PullError {
        PullError::Unreachable { image: self.image.clone(), message: format!("{}: {message}", self.place()) }
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
    shortened(text)
}
