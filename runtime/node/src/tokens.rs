//! Tokens of service accounts for pods, by the API's `TokenRequest`, bound to the pod that uses them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::volumes::TokenRequest;

/// A token is asked for anew after this share of its life (kubelet's token manager).
const REFRESH_AT: f64 = 0.8;
/// At the latest, however long it would live.
const REFRESH_MAX: Duration = Duration::from_secs(24 * 3600);

/// A token is waited for so long. Nobody waits but who wants it.
const ANSWER_MAX: Duration = Duration::from_secs(30);
/// Tokens that one pod may have: each is asked for anew all its life.
const TOKENS_MAX: usize = 100;
/// After a failed refresh of a token.
const RETRY: Duration = Duration::from_secs(30);

/// A token.
#[derive(Clone)]
pub struct Token {
    /// The secret text.
    pub text: String,
    /// How long from now it should be used.
    pub refresh_in: Duration,
}

/// The tokens of a pod.
#[derive(Default)]
pub struct PodTokens(Mutex<HashMap<TokenRequest, Arc<Kept>>>);

/// One that is wanted.
#[derive(Default)]
struct Kept {
    /// Whoever asks holds it, so that it is asked for once.
    turn: tokio::sync::Mutex<()>,
    /// With the moment on the wall clock from which another is wanted: tokens run out by that clock.
    token: Mutex<Option<(String, Timestamp)>>,
}

impl Kept {
    fn is_good(&self, now: Timestamp) -> bool {
        self.token.lock().as_ref().is_some_and(|(_, refresh_at)| *refresh_at > now)
    }
}

impl PodTokens {
    /// Has a token that will still live for a while; `now` is on the wall's clock. Only who wants the same one waits for its answer.
    pub async fn provide(
        &self,
        client: &kube::Client,
        pod: &Pod,
        wanted: &TokenRequest,
        now: Timestamp,
    ) -> Result<(), TokenError> {
        let kept = self.want(wanted)?;
        if kept.is_good(now) {
            return Ok(());
        }
        let _turn = kept.turn.lock().await;
        if kept.is_good(now) {
            return Ok(());
        }
        match request(client, pod, wanted, now).await {
            Ok(token) => *kept.token.lock() = Some((token.text, now + token.refresh_in)),
            Err(error) => match &mut *kept.token.lock() {
                // The old one is good for a fifth of its life.
                Some((_, refresh_at)) => {
                    let pod = pod.metadata.name.as_deref().unwrap_or_default();
                    tracing::debug!(pod, %error, "token is not refreshed");
                    *refresh_at = now + RETRY;
                }
                None => return Err(error),
            },
        }
        Ok(())
    }

    fn want(&self, wanted: &TokenRequest) -> Result<Arc<Kept>, TokenError> {
        let mut all = self.0.lock();
        if let Some(known) = all.get(wanted) {
            return Ok(known.clone());
        }
        if all.len() >= TOKENS_MAX {
            return Err(TokenError::TooMany);
        }
        Ok(all.entry(wanted.clone()).or_default().clone())
    }

    /// The last one that was given.
    pub fn text(&self, wanted: &TokenRequest) -> Option<String> {
        let kept = self.0.lock().get(wanted).cloned()?;
        let token = kept.token.lock();
        token.as_ref().map(|(text, _)| text.clone())
    }

    /// When the next is asked for.
    pub fn refresh_at(&self) -> Option<Timestamp> {
        let all = self.0.lock();
        all.values().filter_map(|kept| kept.token.lock().as_ref().map(|(_, refresh_at)| *refresh_at)).min()
    }

    /// None is wanted any more.
    pub fn forget(&self) {
        self.0.lock().clear();
    }
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
    /// The pod asks for too many.
    #[error("the pod asks for more than {TOKENS_MAX} tokens")]
    TooMany,
    /// The answer holds none.
    #[error("failed to fetch token: the answer holds none")]
    Empty,
}

/// Asks for a token of the pod's service account; `now` is on the wall's clock.
async fn request(client: &kube::Client, pod: &Pod, wanted: &TokenRequest, now: Timestamp) -> Result<Token, TokenError> {
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
