//! How a node joins: it shows a token, and gets a certificate for its name.
//!
//! | route | who | what |
//! | --- | --- | --- |
//! | `GET /coracle/v1/authority` | everybody | the cluster's authority, which whoever joins compares with the hash in its token |
//! | `POST /coracle/v1/join` | who has a token | signs a node's key |
//! | `POST /coracle/v1/renew` | the node itself | the same again, before its certificate ends |
//!
//! A token is a Secret of `kube-system` that holds the hash of its secret half and when it ends; until then it may be used
//! again. A name that a node of this process has, or that the API is reached by, is nobody else's; nor is that of a node that
//! is Ready.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use coracle_apiserver::Identity;
use http::{Method, StatusCode, header};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::authority::Authority;

/// Largest body: a name and a request for a certificate.
const BODY_BYTES_MAX: usize = 64 << 10;
/// A client that has not sent all of it by then is let go.
const BODY_MAX: Duration = Duration::from_secs(10);
/// Requests at work at the same time: a signature is checked and another made for each. More are told to come again.
const AT_WORK_MAX: usize = 16;
/// Longest name of a node (RFC 1123 label; the API would allow more, host names of machines do not).
const NAME_CHARS_MAX: usize = 63;
/// Labels and name prefix of the Secrets that hold tokens.
const SECRETS: &str = "/api/v1/namespaces/kube-system/secrets";
const PREFIX: &str = "coracle-join-";

/// What the routes need.
pub struct Joining {
    pub authority: Arc<Authority>,
    /// With every right.
    pub client: kube::Client,
    /// Names that the API is reached by.
    pub reserved: Vec<String>,
    places: Semaphore,
}

/// Why nobody joins. The words are for the person who called.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("the token is not one of this cluster's: `coracle token create` makes one")]
    Token,
    #[error("the token ended at {0}: `coracle token create` makes another")]
    Ended(String),
    #[error("{0}")]
    Request(String),
    #[error("{0}")]
    Name(String),
    #[error("too many nodes join at once: come again in a moment")]
    Busy,
    #[error("this cannot be looked up now: {0}")]
    Unavailable(String),
}

impl Refusal {
    fn code(&self) -> StatusCode {
        match self {
            Refusal::Token | Refusal::Ended(_) => StatusCode::UNAUTHORIZED,
            Refusal::Request(_) => StatusCode::BAD_REQUEST,
            Refusal::Name(_) => StatusCode::CONFLICT,
            Refusal::Busy => StatusCode::TOO_MANY_REQUESTS,
            Refusal::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

fn refuse(refusal: &Refusal) -> Response {
    let code = refusal.code();
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "code": code.as_u16(), "reason": code.canonical_reason(), "message": refusal.to_string(),
    });
    (code, Json(status)).into_response()
}

impl Joining {
    pub fn new(authority: Arc<Authority>, client: kube::Client, reserved: Vec<String>) -> Arc<Joining> {
        Arc::new(Joining { authority, client, reserved, places: Semaphore::new(AT_WORK_MAX) })
    }

    /// Routes that nobody authenticates before: whoever joins has nothing but a token.
    pub fn open(self: &Arc<Joining>) -> Router {
        let authority = self.authority.certificate().to_owned();
        Router::new()
            .route("/coracle/v1/authority", get(|| async { authority }))
            .route("/coracle/v1/join", post(join))
            .with_state(self.clone())
    }

    /// Routes behind authentication.
    pub fn authenticated(self: &Arc<Joining>) -> Router {
        Router::new().route("/coracle/v1/renew", post(renew)).with_state(self.clone())
    }

    /// The object at `path`; `None` when there is none.
    async fn read(&self, path: &str) -> Result<Option<Value>, Refusal> {
        let request = http::Request::get(path).body(Vec::new()).map_err(|e| Refusal::Request(e.to_string()))?;
        match self.client.request::<Value>(request).await {
            Ok(object) => Ok(Some(object)),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
            Err(error) => Err(Refusal::Unavailable(error.to_string())),
        }
    }

    /// Whether the token that was shown is one.
    async fn admit(&self, shown: Option<&str>) -> Result<(), Refusal> {
        let (id, secret) = shown.and_then(|token| token.split_once('.')).ok_or(Refusal::Token)?;
        let is_plain = |text: &str| text.len() <= 64 && text.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if !is_plain(id) || !is_plain(secret) || id.is_empty() {
            return Err(Refusal::Token);
        }
        let stored = self.read(&format!("{SECRETS}/{PREFIX}{id}")).await?.ok_or(Refusal::Token)?;
        let text = |field: &str| {
            let encoded = stored["data"][field].as_str().unwrap_or_default();
            let bytes = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, encoded);
            bytes.ok().and_then(|bytes| String::from_utf8(bytes).ok()).unwrap_or_default()
        };
        // Hashes are compared, so that the time it takes says nothing about the secret.
        if text("hash") != hash(secret) {
            return Err(Refusal::Token);
        }
        let (ends, now) = (text("ends"), seconds_now());
        match ends.parse::<u64>() {
            Ok(ends) if now < ends => Ok(()),
            _ => Err(Refusal::Ended(
                stored["metadata"]["annotations"]["coracle.dev/ends"].as_str().unwrap_or("a time past").to_owned(),
            )),
        }
    }

    /// Whether a node may come by this name.
    async fn admit_name(&self, name: &str) -> Result<(), Refusal> {
        check_name(name).map_err(Refusal::Request)?;
        if self.authority.is_own_node(name) || self.reserved.iter().any(|reserved| reserved.eq_ignore_ascii_case(name))
        {
            let message = format!("the name {name} belongs to the server itself: choose another with --name");
            return Err(Refusal::Name(message));
        }
        let Some(node) = self.read(&format!("/api/v1/nodes/{name}")).await? else { return Ok(()) };
        let mut conditions = node["status"]["conditions"].as_array().into_iter().flatten();
        match conditions.any(|condition| condition["type"] == "Ready" && condition["status"] == "True") {
            false => Ok(()),
            true => Err(Refusal::Name(format!(
                "there is a node {name} that is alive: choose another name with --name; if it is gone for good, wait a minute \
                 until the cluster knows it, or `kubectl delete node {name}`"
            ))),
        }
    }

    fn sign(&self, name: &str, request: &str) -> Result<Response, Refusal> {
        let certificate = self.authority.sign_node(name, request).map_err(|e| Refusal::Request(e.to_string()))?;
        tracing::info!(node = name, "a certificate is issued");
        Ok(Json(json!({"certificate": certificate, "authority": self.authority.certificate()})).into_response())
    }
}

async fn join(State(joining): State<Arc<Joining>>, request: Request) -> Response {
    let joined = async {
        let _place = joining.places.try_acquire().map_err(|_| Refusal::Busy)?;
        let shown = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let shown = shown.and_then(|text| text.strip_prefix("Bearer ")).map(str::to_owned);
        joining.admit(shown.as_deref()).await?;
        let body = body(request.into_body()).await?;
        let (name, request) = (body["name"].as_str().unwrap_or_default(), body["request"].as_str().unwrap_or_default());
        joining.admit_name(name).await?;
        joining.sign(name, request)
    };
    joined.await.unwrap_or_else(|refusal| refuse(&refusal))
}

async fn renew(State(joining): State<Arc<Joining>>, request: Request) -> Response {
    let renewed = async {
        let _place = joining.places.try_acquire().map_err(|_| Refusal::Busy)?;
        let node = request.extensions().get::<Identity>().and_then(Identity::node).map(str::to_owned);
        let node = node.ok_or_else(|| Refusal::Request("only a node may ask for its next certificate".to_owned()))?;
        // Whom somebody has removed from the cluster does not stay in it for longer than its certificate.
        if joining.read(&format!("/api/v1/nodes/{node}")).await?.is_none() {
            return Err(Refusal::Name(format!("there is no node {node} any more: it may join again with a token")));
        }
        let body = body(request.into_body()).await?;
        joining.sign(&node, body["request"].as_str().unwrap_or_default())
    };
    renewed.await.unwrap_or_else(|refusal| refuse(&refusal))
}

/// What a node may ask for beside the API itself: images, which it only reads, the other nodes, and its next certificate.
pub async fn nodes_only(request: Request, next: Next) -> Response {
    let is_node = request.extensions().get::<Identity>().and_then(Identity::node).is_some();
    let path = request.uri().path();
    let allowed = match *request.method() {
        Method::GET | Method::HEAD => path == "/coracle/v1/peers" || path == "/v2" || path.starts_with("/v2/"),
        _ => path == "/coracle/v1/renew",
    };
    match is_node && !allowed {
        true => (StatusCode::FORBIDDEN, "a node reads images here, and asks for its next certificate; nothing else")
            .into_response(),
        false => next.run(request).await,
    }
}

async fn body(body: Body) -> Result<Value, Refusal> {
    let bytes = tokio::time::timeout(BODY_MAX, to_bytes(body, BODY_BYTES_MAX)).await;
    let bytes = bytes.map_err(|_| Refusal::Request("the request did not come in time".to_owned()))?;
    let bytes = bytes.map_err(|error| Refusal::Request(error.to_string()))?;
    serde_json::from_slice(&bytes).map_err(|error| Refusal::Request(format!("the request is not JSON: {error}")))
}

/// A name of a machine (RFC 1123), and no address: a certificate would be one for that address.
fn check_name(name: &str) -> Result<(), String> {
    let label = |label: &str| {
        let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        ends(label.chars().next())
            && ends(label.chars().next_back())
            && label.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
    };
    let is_name = name.len() <= NAME_CHARS_MAX && name.split('.').all(label) && name.parse::<IpAddr>().is_err();
    match is_name {
        true => Ok(()),
        false => Err(format!(
            "{name:?} is no name for a node: lower case letters, digits, '-' and '.', at most {NAME_CHARS_MAX}, and no address"
        )),
    }
}

/// What of a token's secret is kept: it has 128 random bits, so that a plain hash tells nothing.
pub fn hash(secret: &str) -> String {
    use sha2::Digest as _;
    sha2::Sha256::digest(secret.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn seconds_now() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_nodes_are_names_of_machines() {
        for (name, expected) in [
            ("boat", true),
            ("boat-2.example", true),
            ("10.0.0.1", false),
            ("", false),
            ("Boat", false),
            ("-boat", false),
            ("boat.", false),
            ("a/b", false),
            ("::1", false),
        ] {
            assert_eq!(check_name(name).is_ok(), expected, "{name}");
        }
    }
}
