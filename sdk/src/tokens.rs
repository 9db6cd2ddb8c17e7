//! Tokens by which machines join: made, listed and deleted through the API.
//!
//! A token reads `c1.ID.SECRET.HASH`. The server keeps the hash of SECRET in the Secret `kube-system/coracle-join-ID`, and
//! when it ends; HASH is that of the cluster's authority, by which whoever joins knows that it speaks to this cluster.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimeParser;
use kube::client::Body;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::{AskError, Remote};

/// What a token begins with: the version of its form.
const VERSION: &str = "c1";
const SECRETS: &str = "/api/v1/namespaces/kube-system/secrets";
const LABEL: &str = "coracle.dev/join-token";
const ENDS: &str = "coracle.dev/ends";
const FOR: &str = "coracle.dev/for";

/// Longest life of a token.
pub const TOKEN_TTL_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// A token as it is pasted.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    id: String,
    secret: String,
    authority: String,
}

/// The text is no token.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("this is not a whole token: `coracle token create` prints one, which begins with c1.")]
pub struct NotAToken;

impl FromStr for Token {
    type Err = NotAToken;

    fn from_str(text: &str) -> Result<Token, NotAToken> {
        let parts: Vec<&str> = text.trim().split('.').collect();
        let is_hex = |text: &str, length: usize| text.len() == length && text.bytes().all(|c| c.is_ascii_hexdigit());
        match parts.as_slice() {
            [VERSION, id, secret, authority] if is_hex(id, 8) && is_hex(secret, 32) && is_hex(authority, 64) => {
                Ok(Token { id: (*id).to_owned(), secret: (*secret).to_owned(), authority: (*authority).to_owned() })
            }
            _ => Err(NotAToken),
        }
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{VERSION}.{}.{}.{}", self.id, self.secret, self.authority)
    }
}

/// Without its secret.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Token {
    /// Its name in lists.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What is shown to the server.
    pub(crate) fn shown(&self) -> String {
        format!("{}.{}", self.id, self.secret)
    }

    /// Whether this authority (PEM) is the one that the token was made for.
    pub(crate) fn is_of(&self, authority: &str) -> bool {
        self.authority == fingerprint(authority)
    }
}

/// Whom a token lets in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenRole {
    /// Nodes.
    Node,
    /// Servers: they get every record and every key of the cluster.
    Server,
}

impl TokenRole {
    /// In one word.
    pub fn word(self) -> &'static str {
        match self {
            TokenRole::Node => "node",
            TokenRole::Server => "server",
        }
    }
}

/// A token that the cluster knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenInfo {
    /// Its id.
    pub id: String,
    /// Whom it lets in: `node` or `server`.
    pub role: String,
    /// When it ends, RFC 3339.
    pub ends: String,
    /// Whether it has ended.
    pub is_over: bool,
}

/// The hash of an authority, whatever line ends its PEM has.
fn fingerprint(authority: &str) -> String {
    let text: String = authority.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    hex(&Sha256::digest(text.as_bytes()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn request(method: &str, path: &str, body: &Value) -> http::Request<Vec<u8>> {
    let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
    let request = http::Request::builder().method(method).uri(path).header("content-type", "application/json");
    request.body(body).expect("a method and a path of constants and ids")
}

impl Remote {
    /// Makes a token for machines of this `role` that is good for `ttl` ([`TOKEN_TTL_MAX`] at most). It is told here and never again. Those that have ended
    /// are removed.
    pub async fn create_token(&self, role: TokenRole, ttl: Duration) -> Result<Token, AskError> {
        let authority = self.client().request_text(request("GET", "/coracle/v1/authority", &Value::Null)).await?;
        let token = Token {
            id: hex(&rand::random::<[u8; 4]>()),
            secret: hex(&rand::random::<[u8; 16]>()),
            authority: fingerprint(&authority),
        };
        let ends = self.now().await?.as_second() + i64::try_from(ttl.min(TOKEN_TTL_MAX).as_secs()).unwrap_or(0);
        let shown = Timestamp::from_second(ends).map(|ends| ends.to_string()).unwrap_or_default();
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "type": LABEL,
            "metadata": {
                "name": format!("coracle-join-{}", token.id),
                "labels": {LABEL: "true"}, "annotations": {ENDS: shown, FOR: role.word()},
            },
            "stringData": {
                "hash": coracle_server::join_token_hash(&token.secret), "ends": ends.to_string(), "for": role.word(),
            },
        });
        self.client().request::<Value>(request("POST", SECRETS, &secret)).await?;
        // Whatever comes of the others, this one is good, and told now or never.
        if let Err(error) = self.delete_over().await {
            tracing::debug!(%error, "tokens that have ended");
        }
        Ok(token)
    }

    async fn delete_over(&self) -> Result<(), AskError> {
        for over in self.tokens().await?.into_iter().filter(|token| token.is_over) {
            self.delete_token(&over.id).await?;
        }
        Ok(())
    }

    /// The time by the cluster's clock, by which tokens end: that of this machine may be another. A cluster in this process has the same.
    async fn now(&self) -> Result<Timestamp, AskError> {
        let request = http::Request::get("/version").body(Body::empty()).expect("a constant path");
        let answer = self.client().send(request).await?;
        Ok(match answer.headers().get(http::header::DATE).map(http::HeaderValue::to_str) {
            Some(Ok(date)) => DateTimeParser::new().parse_timestamp(date).unwrap_or_else(|_| Timestamp::now()),
            _ => Timestamp::now(),
        })
    }

    /// The tokens there are, without their secrets.
    pub async fn tokens(&self) -> Result<Vec<TokenInfo>, AskError> {
        let path = format!("{SECRETS}?labelSelector={}%3Dtrue", LABEL.replace('/', "%2F"));
        let list: Value = self.client().request(request("GET", &path, &Value::Null)).await?;
        let now = self.now().await?;
        let items = list["items"].as_array().into_iter().flatten();
        Ok(items
            .filter_map(|secret| {
                let id = secret["metadata"]["name"].as_str()?.strip_prefix("coracle-join-")?.to_owned();
                let ends = secret["metadata"]["annotations"][ENDS].as_str().unwrap_or_default().to_owned();
                let role = secret["metadata"]["annotations"][FOR].as_str().unwrap_or(TokenRole::Node.word()).to_owned();
                let is_over = ends.parse::<Timestamp>().is_ok_and(|ends| ends <= now);
                Some(TokenInfo { id, role, ends, is_over })
            })
            .collect())
    }

    /// Deletes a token by its id: nobody joins with it any more. False when there is none. Nodes that have joined stay.
    pub async fn delete_token(&self, id: &str) -> Result<bool, AskError> {
        if id.is_empty() || !id.bytes().all(|c| c.is_ascii_alphanumeric()) {
            return Ok(false);
        }
        let path = format!("{SECRETS}/coracle-join-{id}");
        match self.client().request::<Value>(request("DELETE", &path, &Value::Null)).await {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use http_body_util::BodyExt as _;

    use super::*;

    #[test]
    fn a_token_is_read_whole_or_not_at_all_and_never_shown_in_logs() {
        let authority = "-----BEGIN CERTIFICATE-----\nabc\n-----END CERTIFICATE-----\n";
        let token = Token { id: "0a1b2c3d".into(), secret: "5e".repeat(16), authority: fingerprint(authority) };
        let text = token.to_string();
        assert_eq!(text.parse::<Token>(), Ok(token.clone()));
        assert!(token.is_of(&authority.replace('\n', "\r\n")) && !token.is_of("another"));
        assert!(!format!("{token:?}").contains("5e5e"));
        for wrong in ["", "c1", &text[..text.len() - 1], &text[3..], &text.replace("c1", "c2"), "c1.0a1b2c3d.x.y"] {
            assert_eq!(wrong.parse::<Token>(), Err(NotAToken), "{wrong}");
        }
    }
    /// A cluster whose clock stands in 2020, with a token that is good for a minute more and one that has ended, which it does not let
    /// anybody delete.
    #[tokio::test]
    async fn tokens_end_by_the_clusters_clock_and_one_that_was_made_is_told() {
        const NOW: i64 = 1_577_836_800;
        let asked: Arc<Mutex<Vec<(String, Value)>>> = Arc::default();
        let service = {
            let asked = asked.clone();
            tower::service_fn(move |request: http::Request<Body>| {
                let asked = asked.clone();
                async move {
                    let (parts, body) = request.into_parts();
                    let body = body.collect().await.unwrap().to_bytes();
                    asked.lock().unwrap().push((
                        format!("{} {}", parts.method, parts.uri.path()),
                        serde_json::from_slice(&body).unwrap_or_default(),
                    ));
                    let secret = |id: &str, ends: i64| {
                        let ends = Timestamp::from_second(ends).unwrap().to_string();
                        json!({"metadata": {"name": format!("coracle-join-{id}"), "annotations": {ENDS: ends}}})
                    };
                    let status = json!({"kind": "Status", "status": "Failure", "message": "no", "reason": "Forbidden", "code": 403});
                    let (code, answer) = match (parts.method.as_str(), parts.uri.path()) {
                        ("GET", SECRETS) => {
                            (200, json!({"items": [secret("good", NOW + 60), secret("over", NOW - 60)]}))
                        }
                        ("DELETE", _) => (403, status),
                        _ => (200, json!({})),
                    };
                    let answer = Body::from(answer.to_string().into_bytes());
                    let date = "Wed, 01 Jan 2020 00:00:00 GMT";
                    http::Response::builder().status(code).header("date", date).body(answer)
                }
            })
        };
        let remote = Remote::new(kube::Client::new(service, "default"));
        remote.create_token(TokenRole::Node, Duration::from_secs(3600)).await.unwrap();
        let asked = std::mem::take(&mut *asked.lock().unwrap());
        let made = asked.iter().find(|(what, _)| what.starts_with("POST")).unwrap();
        assert_eq!(made.1["stringData"]["ends"], (NOW + 3600).to_string());
        let deleted: Vec<&str> = asked.iter().filter_map(|(what, _)| what.strip_prefix("DELETE ")).collect();
        assert_eq!(deleted, [format!("{SECRETS}/coracle-join-over")]);
    }
}
