//! How nodes and servers join: they show a token. A node gets a certificate for its name, a server its place among the members
//! and the cluster's keys.
//!
//! | route | who | what |
//! | --- | --- | --- |
//! | `GET /coracle/v1/authority` | everybody | the cluster's authority, which whoever joins compares with the hash in its token |
//! | `POST /coracle/v1/join` | who has a node's token | signs a node's key |
//! | `POST /coracle/v1/join-server` | who has a server's token | admits a server ([`Joining`](crate::Joining)) |
//! | `POST /coracle/v1/renew` | the node itself | signs again, before its certificate ends |
//!
//! A token is a Secret of `kube-system` that holds the hash of its secret half, whom it is for, and when it ends; until then it
//! may be used again. A name by which a server's API is reached, or that the node in its process has, is no other node's; nor
//! is that of a node that is Ready, or was given a moment ago: the join itself makes the Node, so that two machines that ask
//! at once do not both get it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use coracle_apiserver::Identity;
use coracle_keyspace::{Formats, GroupError, Keyspace, Promotion};
use http::{HeaderMap, Method, StatusCode, header};
use serde::Deserialize as _;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::authority::Authority;

/// Largest body: a name and a request for a certificate.
const BODY_BYTES_MAX: usize = 64 << 10;
/// A client that has not sent all of it by then is let go.
const BODY_MAX: Duration = Duration::from_secs(10);
/// Requests at work at the same time, all of which have come: a signature is checked and another made for each. More are told to come
/// again.
const AT_WORK_MAX: usize = 16;
/// Tokens that are looked up at the same time and that this server does not know: guesses, and those of a moment ago. They have places of
/// their own, so that whoever guesses keeps out no one who has a token.
const UNKNOWN_MAX: usize = 16;
/// Longest name of a node (RFC 1123 label; the API would allow more, host names of machines do not).
const NAME_CHARS_MAX: usize = 63;
/// Labels and name prefix of the Secrets that hold tokens.
const SECRETS: &str = "/api/v1/namespaces/kube-system/secrets";
const PREFIX: &str = "coracle-join-";

/// The annotation of a Node that says when its name was given, and to which key. No node says it of itself.
const GIVEN: &str = coracle_apiserver::JOINED;
/// By this a node asks for a range of addresses for its pods.
const RANGE: &str = "coracle.dev/pod-range";
/// A name that was given is no other machine's for this long, in seconds; by then its node is Ready, or gone.
const GIVEN_FOR: u64 = 60;
/// How long it may take to reach a new server or node.
const REACH_MAX: Duration = Duration::from_secs(3);

/// What the routes need.
pub struct Joining {
    pub authority: Arc<Authority>,
    /// With every right.
    pub client: kube::Client,
    pub keyspace: Keyspace,
    places: Semaphore,
    unknown: Semaphore,
}

/// Whom a token is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum For {
    Node,
    Server,
}

/// Why nobody joins. The words are for the person who called.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("the token is not one of this cluster's: `coracle token create` makes one")]
    Token,
    #[error("the token ended at {0}: `coracle token create` makes another")]
    Ended(String),
    #[error(
        "this token is for a server, which joins with `coracle server --join`: `coracle token create` makes one for nodes"
    )]
    ForServer,
    #[error("this token is for nodes: `coracle token create --server` makes one for servers")]
    ForNode,
    #[error("{0}")]
    Request(String),
    #[error("{0}")]
    Name(String),
    #[error("too many machines join at once: come again in a moment")]
    Busy,
    #[error("this cannot be looked up now: {0}")]
    Unavailable(String),
}

impl Refusal {
    fn code(&self) -> StatusCode {
        match self {
            Refusal::Token | Refusal::Ended(_) => StatusCode::UNAUTHORIZED,
            Refusal::ForServer | Refusal::ForNode => StatusCode::FORBIDDEN,
            Refusal::Request(_) => StatusCode::BAD_REQUEST,
            Refusal::Name(_) => StatusCode::CONFLICT,
            Refusal::Busy => StatusCode::TOO_MANY_REQUESTS,
            Refusal::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

fn refuse(refusal: &Refusal) -> Response {
    status(refusal.code(), &refusal.to_string())
}

/// An answer that says why something was not done, in the API's form.
pub fn status(code: StatusCode, message: &str) -> Response {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "code": code.as_u16(), "reason": code.canonical_reason(), "message": message,
    });
    (code, Json(status)).into_response()
}

impl From<GroupError> for Refusal {
    fn from(error: GroupError) -> Refusal {
        match error {
            GroupError::Refused(why) => Refusal::Name(why),
            error => Refusal::Unavailable(error.to_string()),
        }
    }
}

impl Joining {
    pub fn new(authority: Arc<Authority>, client: kube::Client, keyspace: Keyspace) -> Arc<Joining> {
        let (places, unknown) = (Semaphore::new(AT_WORK_MAX), Semaphore::new(UNKNOWN_MAX));
        Arc::new(Joining { authority, client, keyspace, places, unknown })
    }

    /// Routes that nobody authenticates before: whoever joins has nothing but a token.
    pub fn open(self: &Arc<Joining>) -> Router {
        let authority = self.authority.certificate().to_owned();
        Router::new()
            .route("/coracle/v1/authority", get(|| async { authority }))
            .route("/coracle/v1/join", post(join))
            .route("/coracle/v1/join-server", post(join_server))
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

    /// Writes `body` to `path`; false when somebody else did.
    async fn write(&self, method: Method, path: &str, body: &Value) -> Result<bool, Refusal> {
        let form = if method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
        let request = http::Request::builder().method(method).uri(path).header("content-type", form);
        let request = request.body(body.to_string().into_bytes()).map_err(|e| Refusal::Request(e.to_string()))?;
        match self.client.request::<Value>(request).await {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(Refusal::Unavailable(error.to_string())),
        }
    }

    /// Whether the request shows a token that is one for `whom`. In a place, which is free again afterwards. It comes first: of whom has none
    /// nothing is read and kept, and who has one and sends half a request holds no place.
    async fn admit(&self, headers: &HeaderMap, whom: For) -> Result<(), Refusal> {
        let shown = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let shown = shown.and_then(|text| text.strip_prefix("Bearer "));
        let (id, secret) = shown.and_then(|token| token.split_once('.')).ok_or(Refusal::Token)?;
        let is_plain = |text: &str| text.len() <= 64 && text.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if !is_plain(id) || !is_plain(secret) || id.is_empty() {
            return Err(Refusal::Token);
        }
        let text = |stored: &Value, field: &str| {
            let encoded = stored["data"][field].as_str().unwrap_or_default();
            let bytes = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, encoded);
            bytes.ok().and_then(|bytes| String::from_utf8(bytes).ok()).unwrap_or_default()
        };
        // Hashes are compared, so that the time it takes says nothing about the secret.
        let is_shown = |stored: &Value| text(stored, "hash") == hash(secret);
        let path = format!("{SECRETS}/{PREFIX}{id}");
        // As it is here, for which nobody is asked and nobody waits: it may be an old one, and decides about the place alone.
        let known = self.read(&format!("{path}?resourceVersion=0")).await?;
        let places = if known.as_ref().is_some_and(is_shown) { &self.places } else { &self.unknown };
        let _place = places.try_acquire().map_err(|_| Refusal::Busy)?;
        let stored = self.read(&path).await?.filter(is_shown).ok_or(Refusal::Token)?;
        let text = |field: &str| text(&stored, field);
        // Tokens from before there were others are nodes'.
        let is_for = match text("for").as_str() {
            "" | "node" => Some(For::Node),
            "server" => Some(For::Server),
            _ => None,
        };
        if is_for != Some(whom) {
            return Err(if whom == For::Node { Refusal::ForServer } else { Refusal::ForNode });
        }
        let (ends, now) = (text("ends"), seconds_now());
        match ends.parse::<u64>() {
            Ok(ends) if now < ends => Ok(()),
            _ => Err(Refusal::Ended(
                stored["metadata"]["annotations"]["coracle.dev/ends"].as_str().unwrap_or("a time past").to_owned(),
            )),
        }
    }

    /// Whether a server's API, or the node in its process, is reached by this name: whoever had a certificate for it could be that.
    fn is_reached_by(&self, name: &str) -> bool {
        self.keyspace.api_names().iter().any(|reserved| reserved.eq_ignore_ascii_case(name))
    }

    /// Refuses a node a server's name. One that was admitted may come at any time, so its name counts here; and not for a node that has
    /// it already, which goes on until there is a server that is reached by it.
    fn check_is_no_servers(&self, name: &str) -> Result<(), Refusal> {
        if !self.authority.is_own_node(name) && !self.is_reached_by(name) && self.keyspace.taken(name).is_none() {
            return Ok(());
        }
        let absent = self.keyspace.absent().into_iter().find(|member| member.name == name);
        Err(Refusal::Name(match absent {
            Some(absent) => format!(
                "the name {name} belongs to a server itself, which was admitted as member {number} and has not come: choose another with \
                 --name; if that server does not come, `coracle member remove {number}` first",
                number = absent.member
            ),
            None => format!("the name {name} belongs to a server itself: choose another with --name"),
        }))
    }

    /// Says which of this server's `names` are names of nodes that joined before: their certificates are good for these names until
    /// they end, and they get no others.
    pub async fn warn_of_nodes(&self, names: &[String]) {
        for name in names.iter().map(|name| name.to_ascii_lowercase()).filter(|name| check_name(name).is_ok()) {
            match self.read(&format!("/api/v1/nodes/{name}")).await {
                Ok(Some(node)) if node["metadata"]["annotations"][GIVEN].is_string() => tracing::warn!(
                    name,
                    "this server is reached by the name of a node that joined: that node gets no other certificate for it and ends with \
                     the one that it has; have it join again with another --name"
                ),
                Ok(_) => (),
                Err(error) => tracing::warn!(%error, name, "look whether a node has the name of this server"),
            }
        }
    }

    /// Gives the node's name to whoever sent `request`, if it may have it.
    async fn give_name(&self, name: &str, request: &str) -> Result<(), Refusal> {
        check_name(name).map_err(Refusal::Request)?;
        self.check_is_no_servers(name)?;
        let path = format!("/api/v1/nodes/{name}");
        let given = json!({RANGE: "joined", GIVEN: format!("{} {}", seconds_now(), hash(request))});
        let is_mine = match self.read(&path).await? {
            None => {
                let node =
                    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "annotations": given}});
                self.write(Method::POST, "/api/v1/nodes", &node).await?
            }
            Some(node) => {
                may_be_given(name, &node, &hash(request), seconds_now())?;
                // Only if nobody else was given it meanwhile.
                let seen = &node["metadata"]["resourceVersion"];
                let patch = json!({"metadata": {"resourceVersion": seen, "annotations": {GIVEN: given[GIVEN]}}});
                self.write(Method::PATCH, &path, &patch).await?
            }
        };
        match is_mine {
            // A server of this name that was admitted meanwhile is known by now, or it finds this node.
            true => self.check_is_no_servers(name),
            false => Err(Refusal::Name(format!("another machine joins as {name} at this moment: choose another name"))),
        }
    }

    /// Refuses a server whose node would be called as another machine's is.
    async fn check_node_of(&self, name: &str) -> Result<(), Refusal> {
        match self.read(&format!("/api/v1/nodes/{name}")).await? {
            Some(node) => may_be_given(name, &node, "", seconds_now()),
            None => Ok(()),
        }
    }

    /// Whether a server may come by this name and address.
    async fn admit_server(
        &self,
        name: &str,
        address: &str,
        formats: Formats,
        promotion: Promotion,
    ) -> Result<crate::Joining, Refusal> {
        check_name(name).map_err(Refusal::Request)?;
        if let Some(why) = self.keyspace.taken(name) {
            return Err(Refusal::Name(why));
        }
        let members = self.keyspace.members();
        if let Some(other) = members.iter().find(|member| member.address == address) {
            return Err(Refusal::Name(format!(
                "{address} is where member {} {} is reached: say with --peer-address where this one is",
                other.member, other.name
            )));
        }
        self.check_node_of(name).await?;
        if let Some(why) = unreached(address).await {
            return Err(Refusal::Name(format!(
                "this server cannot reach the new one at {address} ({why}): servers call each other there. Open the port, or say \
                 with --peer-address and --peer-port where it is reached"
            )));
        }
        // First: whoever cannot be given the keys takes no number.
        let keys = self.authority.shared().map_err(|error| Refusal::Unavailable(error.to_string()))?;
        let admission = self.keyspace.admit_until(name, formats, promotion).await?;
        // A node that was given the name meanwhile is there by now, or it finds this server.
        if let Err(refusal) = self.check_node_of(name).await {
            if let Err(error) = self.keyspace.remove([admission.member].into()).await {
                tracing::warn!(%error, member = admission.member, name, "take back the number of a server that is not let in");
            }
            return Err(refusal);
        }
        tracing::info!(member = admission.member, name, address, "a server is admitted");
        Ok(crate::Joining { admission, keys })
    }

    fn sign(&self, name: &str, request: &str) -> Result<Response, Refusal> {
        let certificate = self.authority.sign_node(name, request).map_err(|e| Refusal::Request(e.to_string()))?;
        Ok(Json(json!({"certificate": certificate, "authority": self.authority.certificate()})).into_response())
    }
}

/// Why nobody is reached at an address, if that is so.
async fn unreached(address: &str) -> Option<String> {
    let reach = tokio::time::timeout(REACH_MAX, tokio::net::TcpStream::connect(address)).await;
    let why = reach.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into())).err()?.to_string();
    Some(why.split(" (os error").next().unwrap_or_default().to_owned())
}

/// Refuses a node that this server does not reach: nobody would hear of its pods but itself.
async fn check_is_reached(address: &str) -> Result<(), Refusal> {
    if address.parse::<SocketAddr>().is_err() {
        return Err(Refusal::Request(format!("{address:?} is no address and port of a node")));
    }
    match unreached(address).await {
        None => Ok(()),
        Some(why) => Err(Refusal::Name(format!(
            "this server cannot reach the node at {address} ({why}): servers and other nodes call it there. Open the port, or say with \
             --address and --port where it is reached; a node behind NAT is not, and cannot join"
        ))),
    }
}

async fn join(State(joining): State<Arc<Joining>>, headers: HeaderMap, sent: Body) -> Response {
    let joined = async {
        joining.admit(&headers, For::Node).await?;
        let body = body(sent).await?;
        let _place = joining.places.try_acquire().map_err(|_| Refusal::Busy)?;
        let (name, request) = (body["name"].as_str().unwrap_or_default(), body["request"].as_str().unwrap_or_default());
        // Where it listens already. Nodes of earlier versions do not say it.
        if let Some(address) = body["address"].as_str() {
            check_is_reached(address).await?;
        }
        // What cannot be signed takes no name.
        let signed = check_name(name).map_err(Refusal::Request).and_then(|()| joining.sign(name, request))?;
        joining.give_name(name, request).await?;
        tracing::info!(node = name, "a certificate is issued");
        Ok(signed)
    };
    joined.await.unwrap_or_else(|refusal| refuse(&refusal))
}

async fn join_server(State(joining): State<Arc<Joining>>, headers: HeaderMap, sent: Body) -> Response {
    let joined = async {
        joining.admit(&headers, For::Server).await?;
        let body = body(sent).await?;
        let _place = joining.places.try_acquire().map_err(|_| Refusal::Busy)?;
        let text = |field: &str| body[field].as_str().unwrap_or_default();
        let formats = match body.get("formats") {
            None => Formats::FIRST,
            Some(told) => Formats::deserialize(told)
                .map_err(|error| Refusal::Request(format!("formats is not what a server says: {error}")))?,
        };
        // A version that says nothing of images never says that it has them.
        let promotion = match body["images"].as_bool() {
            Some(true) => Promotion::WhenComplete,
            _ => Promotion::WhenCaughtUp,
        };
        let admitted = joining.admit_server(text("name"), text("address"), formats, promotion).await?;
        Ok(Json(admitted.to_json()).into_response())
    };
    joined.await.unwrap_or_else(|refusal| refuse(&refusal))
}

/// Whether the name of this node, which there is, may be given to the key that `hash` is of.
fn may_be_given(name: &str, node: &Value, hash: &str, now: u64) -> Result<(), Refusal> {
    let mut conditions = node["status"]["conditions"].as_array().into_iter().flatten();
    if conditions.any(|condition| condition["type"] == "Ready" && condition["status"] == "True") {
        return Err(Refusal::Name(format!(
            "there is a node {name} that is alive: choose another name with --name; if it is gone for good, wait a minute \
             until the cluster knows it, or `kubectl delete node {name}`"
        )));
    }
    let given = node["metadata"]["annotations"][GIVEN].as_str().and_then(|given| given.split_once(' '));
    let given = given.and_then(|(at, to)| Some((at.parse::<u64>().ok()?, to)));
    match given {
        Some((at, to)) if to != hash && now.saturating_sub(at) < GIVEN_FOR => Err(Refusal::Name(format!(
            "another machine has joined as {name} a moment ago: choose another name with --name; if that was this one, wait a \
             minute"
        ))),
        _ => Ok(()),
    }
}

async fn renew(State(joining): State<Arc<Joining>>, request: Request) -> Response {
    let renewed = async {
        let node = request.extensions().get::<Identity>().and_then(Identity::node).map(str::to_owned);
        let node = node.ok_or_else(|| Refusal::Request("only a node may ask for its next certificate".to_owned()))?;
        let body = body(request.into_body()).await?;
        let _place = joining.places.try_acquire().map_err(|_| Refusal::Busy)?;
        // Whom somebody has removed from the cluster does not stay in it for longer than its certificate. It may well have made its
        // Node anew, as an agent does that finds none; that it joined it cannot say of itself.
        let found = joining.read(&format!("/api/v1/nodes/{node}")).await?;
        if !found.is_some_and(|node| node["metadata"]["annotations"][GIVEN].is_string()) {
            return Err(Refusal::Name(format!(
                "there is no node {node} that joined and was not removed since: it may join again with a token"
            )));
        }
        // A server that came later is reached by it. One that only may come takes no node's place: that one may never.
        if joining.is_reached_by(&node) {
            let message =
                format!("the name {node} belongs to a server itself: let this node join again with another --name");
            return Err(Refusal::Name(message));
        }
        joining.sign(&node, body["request"].as_str().unwrap_or_default())
    };
    renewed.await.unwrap_or_else(|refusal| refuse(&refusal))
}

/// What a node may ask for beside the API itself: images, which it only reads, the other nodes, and its next
/// certificate.
pub async fn nodes_only(request: Request, next: Next) -> Response {
    let is_node = request.extensions().get::<Identity>().and_then(Identity::node).is_some();
    let path = request.uri().path();
    let allowed = match *request.method() {
        Method::GET | Method::HEAD => matches!(path, "/coracle/v1/peers" | "/v2") || path.starts_with("/v2/"),
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

/// A name of a machine (RFC 1123) in lower case, and no address: a certificate would be one for that address.
fn check_name(name: &str) -> Result<(), String> {
    match is_node_name(name) && name.parse::<IpAddr>().is_err() {
        true => Ok(()),
        false => Err(format!(
            "{name:?} is no name for a machine: lower case letters, digits, '-' and '.', at most {NAME_CHARS_MAX}, and no address"
        )),
    }
}

/// Whether a Node can be called so: its name is the value of a label, too (RFC 1123).
pub fn is_node_name(name: &str) -> bool {
    let label = |label: &str| {
        let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        ends(label.chars().next())
            && ends(label.chars().next_back())
            && label.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
    };
    name.len() <= NAME_CHARS_MAX && name.split('.').all(label)
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
    fn a_name_is_given_once_in_a_while_and_never_while_its_node_is_ready() {
        let node = |given: &str, ready: &str| {
            json!({
                "metadata": {"annotations": {GIVEN: given}},
                "status": {"conditions": [{"type": "Ready", "status": ready}]},
            })
        };
        for (given, ready, expected) in [
            ("1000 mine", "Unknown", true),
            ("1000 other", "Unknown", false),
            ("900 other", "Unknown", true),
            ("nonsense", "False", true),
            ("900 mine", "True", false),
        ] {
            let may = may_be_given("boat", &node(given, ready), "mine", 1030);
            assert_eq!(may.is_ok(), expected, "{given} {ready}");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_node_gets_no_further_certificate_for_a_name_by_which_a_server_is_reached() {
        let dir = tempfile::tempdir().unwrap();
        let server = crate::Server::start(crate::tests::config(dir.path())).await.unwrap();
        let post = |client: kube::Client, path: &'static str, body: Value| async move {
            let request = http::Request::post(path).header("content-type", "application/json");
            client.request::<Value>(request.body(body.to_string().into_bytes()).unwrap()).await
        };
        let joined = json!({"name": "laptop", "annotations": {GIVEN: "1 x"}});
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": joined});
        post(server.admin(), "/api/v1/nodes", node).await.unwrap();
        let params = rcgen::CertificateParams::new(vec!["laptop".to_owned()]).unwrap();
        let request = params.serialize_request(&rcgen::KeyPair::generate().unwrap()).unwrap().pem().unwrap();
        let renew = || post(server.node_client("laptop"), "/coracle/v1/renew", json!({"request": request}));
        assert!(renew().await.unwrap()["certificate"].is_string());
        server.keyspace().introduce("boat", &["laptop".to_owned()]).await.unwrap();
        let refused = renew().await.unwrap_err();
        assert!(refused.to_string().contains("belongs to a server itself"), "{refused}");
        server.shutdown().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_node_that_was_removed_comes_back_for_no_longer_than_its_certificate() {
        let dir = tempfile::tempdir().unwrap();
        let server = crate::Server::start(crate::tests::config(dir.path())).await.unwrap();
        let send = |client: kube::Client, method: Method, path: &'static str, body: Value| async move {
            let form = if method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
            let request = http::Request::builder().method(method).uri(path).header("content-type", form);
            client.request::<Value>(request.body(body.to_string().into_bytes()).unwrap()).await
        };
        let joining = Joining::new(server.authority.clone(), server.admin(), server.keyspace().clone());
        joining.give_name("laptop", "a request").await.unwrap();
        let params = rcgen::CertificateParams::new(vec!["laptop".to_owned()]).unwrap();
        let request = params.serialize_request(&rcgen::KeyPair::generate().unwrap()).unwrap().pem().unwrap();
        let as_node = || server.node_client("laptop");
        let renew = || send(as_node(), Method::POST, "/coracle/v1/renew", json!({"request": request}));
        let object = "/api/v1/nodes/laptop";
        assert!(renew().await.unwrap()["certificate"].is_string());
        send(server.admin(), Method::DELETE, object, json!({})).await.unwrap();
        assert!(renew().await.unwrap_err().to_string().contains("join again"));
        // As an honest agent makes it, and as one would that is in strange hands.
        let node = |annotations: Value| json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "laptop", "annotations": annotations}});
        let forged = send(as_node(), Method::POST, "/api/v1/nodes", node(json!({GIVEN: "1 x"}))).await.unwrap_err();
        assert!(forged.to_string().contains("coracle.dev/joined"), "{forged}");
        send(as_node(), Method::POST, "/api/v1/nodes", node(json!({}))).await.unwrap();
        let patch = json!({"metadata": {"annotations": {GIVEN: "1 x"}}});
        let forged = send(as_node(), Method::PATCH, object, patch).await.unwrap_err();
        assert!(forged.to_string().contains("coracle.dev/joined"), "{forged}");
        assert!(renew().await.unwrap_err().to_string().contains("join again"));
        // It joins again.
        let again = async {
            // Others write of the Node at the same time.
            while joining.give_name("laptop", "another request").await.is_err() {}
        };
        tokio::time::timeout(Duration::from_secs(60), again).await.expect("it joins again");
        assert!(renew().await.unwrap()["certificate"].is_string());
        server.shutdown().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn who_sends_half_a_request_holds_no_place() {
        let dir = tempfile::tempdir().unwrap();
        let server = crate::Server::start(crate::tests::config(dir.path())).await.unwrap();
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": format!("{PREFIX}ab")},
            "stringData": {"hash": hash("cd"), "ends": (seconds_now() + 1_000).to_string(), "for": "node"},
        });
        let joining = Joining::new(server.authority.clone(), server.admin(), server.keyspace().clone());
        joining.write(Method::POST, SECRETS, &secret).await.unwrap();
        let invited = HeaderMap::from_iter([(header::AUTHORIZATION, "Bearer ab.cd".parse().unwrap())]);
        let read = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let slow = || {
            let read = read.clone();
            let pending = futures::stream::poll_fn(move |_| {
                read.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                std::task::Poll::<Option<Result<bytes::Bytes, std::io::Error>>>::Pending
            });
            Body::from_stream(pending)
        };
        for at in 1..=AT_WORK_MAX {
            tokio::spawn(join(State(joining.clone()), invited.clone(), slow()));
            let waits = async {
                while read.load(std::sync::atomic::Ordering::SeqCst) < at {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(Duration::from_secs(60), waits).await.expect("its request is waited for");
        }
        let answer = join(State(joining.clone()), invited, Body::from("{}")).await;
        assert_eq!(answer.status(), StatusCode::BAD_REQUEST, "there is a place for who has sent all");
        let stranger = join(State(joining.clone()), HeaderMap::new(), slow()).await;
        assert_eq!(stranger.status(), StatusCode::UNAUTHORIZED);
        let asked = read.load(std::sync::atomic::Ordering::SeqCst);
        assert_eq!(asked, AT_WORK_MAX, "of who has no token nothing is read");
        // Whoever guesses keeps out others who do.
        let _guesses = joining.unknown.acquire_many(UNKNOWN_MAX as u32).await.unwrap();
        let show = |token: &str| {
            let shown = HeaderMap::from_iter([(header::AUTHORIZATION, format!("Bearer {token}").parse().unwrap())]);
            join(State(joining.clone()), shown, Body::from("{}"))
        };
        for (token, expected) in [
            ("ab.cd", StatusCode::BAD_REQUEST),
            ("ab.ce", StatusCode::TOO_MANY_REQUESTS),
            ("aa.cd", StatusCode::TOO_MANY_REQUESTS),
        ] {
            assert_eq!(show(token).await.status(), expected, "{token}");
        }
        server.shutdown().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_node_that_no_server_reaches_does_not_join_and_leaves_no_name_behind() {
        let dir = tempfile::tempdir().unwrap();
        let server = crate::Server::start(crate::tests::config(dir.path())).await.unwrap();
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": format!("{PREFIX}ab")},
            "stringData": {"hash": hash("cd"), "ends": (seconds_now() + 1_000).to_string(), "for": "node"},
        });
        let joining = Joining::new(server.authority.clone(), server.admin(), server.keyspace().clone());
        joining.write(Method::POST, SECRETS, &secret).await.unwrap();
        let invited = HeaderMap::from_iter([(header::AUTHORIZATION, "Bearer ab.cd".parse().unwrap())]);
        let params = rcgen::CertificateParams::new(vec!["laptop".to_owned()]).unwrap();
        let request = params.serialize_request(&rcgen::KeyPair::generate().unwrap()).unwrap().pem().unwrap();
        let ask = async |address: Option<String>| {
            let body = json!({"name": "laptop", "request": request, "address": address}).to_string();
            let answer = join(State(joining.clone()), invited.clone(), Body::from(body)).await;
            let code = answer.status();
            let answer: Value =
                serde_json::from_slice(&to_bytes(answer.into_body(), BODY_BYTES_MAX).await.unwrap()).unwrap();
            (code, answer["message"].as_str().unwrap_or_default().to_owned())
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        drop(listener);
        let (code, said) = ask(Some(address.clone())).await;
        assert_eq!(code, StatusCode::CONFLICT);
        let told = [format!("cannot reach the node at {address} ("), "--address and --port".to_owned()];
        assert!(told.iter().all(|told| said.contains(told)), "{said}");
        // Names are looked up for nobody.
        assert_eq!(ask(Some("localhost:1".to_owned())).await.0, StatusCode::BAD_REQUEST);
        assert!(joining.read("/api/v1/nodes/laptop").await.unwrap().is_none());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        assert_eq!(ask(Some(address)).await, (StatusCode::OK, String::new()));
        // A node of an earlier version.
        assert_eq!(ask(None).await, (StatusCode::OK, String::new()));
        server.shutdown().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_name_is_a_servers_or_a_nodes_and_never_both() {
        let dir = tempfile::tempdir().unwrap();
        let any = std::net::SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);
        let config = crate::Config {
            peers: Some(crate::Peering::listen(any, None, dir.path()).await.unwrap()),
            ..crate::tests::config(dir.path())
        };
        let server = crate::Server::start(config).await.unwrap();
        let joining = Joining::new(server.authority.clone(), server.admin(), server.keyspace().clone());
        let addressed = async || {
            while server.keyspace().members()[0].address.is_empty() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), addressed()).await.unwrap();
        let admit = |name: &'static str, address: &'static str| {
            joining.admit_server(name, address, Formats::OWN, Promotion::WhenComplete)
        };
        // Where a server might be.
        let listener = tokio::net::TcpListener::bind(any).await.unwrap();
        let address: &'static str = listener.local_addr().unwrap().to_string().leak();
        // Two machines called the same come at once: one is let in.
        let (admitted, refused) = match tokio::join!(admit("two", address), admit("two", address)) {
            (Ok(admitted), Err(refused)) | (Err(refused), Ok(admitted)) => (admitted, refused),
            both => panic!("one of both is let in: {both:?}"),
        };
        assert!(refused.to_string().contains("there is a server two already, member 2"), "{refused}");
        assert!(refused.to_string().contains("has not come"), "{refused}");
        assert_eq!(server.keyspace().absent()[0].member, admitted.admission.member);
        // It takes its time; its node's name is taken.
        let refused = joining.give_name("two", "a request").await.unwrap_err();
        let told = ["belongs to a server itself", "coracle member remove 2`"];
        assert!(told.iter().all(|told| refused.to_string().contains(told)), "{refused}");
        // And the other way round.
        joining.give_name("three", "a request").await.unwrap();
        let refused = admit("three", address).await.unwrap_err();
        assert!(refused.to_string().contains("another machine has joined as three"), "{refused}");
        // Whoever was a node of that name before goes on with it: that server may never come.
        let joined = json!({"name": "four", "annotations": {GIVEN: "1 x"}});
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": joined}).to_string();
        let made = http::Request::post("/api/v1/nodes").header("content-type", "application/json");
        server.admin().request::<Value>(made.body(node.into_bytes()).unwrap()).await.unwrap();
        let four = admit("four", address).await.unwrap().admission.member;
        assert!(server.keyspace().absent().iter().any(|absent| absent.member == four));
        let params = rcgen::CertificateParams::new(vec!["four".to_owned()]).unwrap();
        let request = params.serialize_request(&rcgen::KeyPair::generate().unwrap()).unwrap().pem().unwrap();
        let renewal = http::Request::post("/coracle/v1/renew").header("content-type", "application/json");
        let renewal = renewal.body(json!({"request": request}).to_string().into_bytes()).unwrap();
        let renewed = server.node_client("four").request::<Value>(renewal).await.unwrap();
        assert!(renewed["certificate"].is_string());
        server.keyspace().remove([four].into()).await.unwrap();
        // A number that is taken back leaves its name.
        server.keyspace().remove([admitted.admission.member].into()).await.unwrap();
        assert!(server.keyspace().absent().is_empty());
        admit("two", address).await.unwrap();
        server.shutdown().await;
    }

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
