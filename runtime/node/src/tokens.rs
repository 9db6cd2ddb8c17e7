//! Tokens of service accounts for pods, by the API's `TokenRequest`, bound to the pod that uses them.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use crate::volumes::TokenRequest;

/// A token is asked for anew after this share of its life (kubelet's token manager).
const REFRESH_AT: f64 = 0.8;
/// At the latest, however long it would live.
const REFRESH_MAX: Duration = Duration::from_secs(24 * 3600);

/// A token is waited for so long: the pod's other volumes wait behind it.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// A token.
#[derive(Clone)]
pub struct Token {
    /// The secret text.
    pub text: String,
    /// How long from now it should be used.
    pub refresh_in: Duration,
}

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The API server refused, or could not be reached.
    #[error("failed to fetch token: {0}")]
    Refused(#[from] kube::Error),
    /// There was no answer.
    #[error("failed to fetch token: the API server has not answered in time")]
    Late,
    /// The answer holds none.
    #[error("failed to fetch token: the answer holds none")]
    Empty,
}

/// Asks for a token of the pod's service account; `now` is on the wall's clock.
pub async fn request(
    client: &kube::Client,
    pod: &Pod,
    wanted: &TokenRequest,
    now: Timestamp,
) -> Result<Token, TokenError> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.as_deref());
    let account = account.filter(|name| !name.is_empty()).unwrap_or("default");
    let audiences: Vec<&str> =
        Some(wanted.audience.as_str()).filter(|audience| !audience.is_empty()).into_iter().collect();
    let body = json!({
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenRequest",
        "metadata": {"name": account, "namespace": namespace},
        "spec": {
            "audiences": audiences,
            "expirationSeconds": wanted.expiration_seconds,
            "boundObjectRef": {
                "apiVersion": "v1", "kind": "Pod", "name": pod.metadata.name, "uid": pod.metadata.uid,
            },
        },
    });
    let request = http::Request::post(format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"))
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(body.to_string().into_bytes())
        .map_err(kube::Error::HttpError)?;
    let answer = tokio::time::timeout(ANSWER_MAX, client.request::<Value>(request));
    let answer = answer.await.map_err(|_| TokenError::Late)??;
    let text = answer.pointer("/status/token").and_then(Value::as_str).ok_or(TokenError::Empty)?;
    let expires = answer.pointer("/status/expirationTimestamp").and_then(Value::as_str);
    let expires: Option<Timestamp> = expires.and_then(|text| text.parse().ok());
    let lives = expires.and_then(|at| Duration::try_from(at.duration_since(now)).ok());
    let lives = lives.unwrap_or(Duration::from_secs(wanted.expiration_seconds.max(600).unsigned_abs()));
    Ok(Token { text: text.to_owned(), refresh_in: lives.mul_f64(REFRESH_AT).min(REFRESH_MAX) })
}
