//! What a registry wants to be shown: a password, or a token that another service gives for it
//! (docs.docker.com, "Token authentication specification").

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use base64::Engine as _;
use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use serde::Deserialize;

/// Bytes of a token service's answer; tokens go into headers, and no server takes headers of that size.
pub const TOKEN_BYTES_MAX: usize = 64 << 10;

/// How long it is remembered that a registry wants the password itself.
pub const BASIC_KEPT: Duration = Duration::from_secs(600);

/// Repositories whose tokens are kept per set of credentials.
const TOKENS_MAX: usize = 256;

/// How long before its end a token is no longer used.
const TOKEN_MARGIN: Duration = Duration::from_secs(10);

/// How a registry wants to be asked.
pub enum Challenge {
    /// With a token from another service.
    Token {
        /// The service's address.
        realm: String,
        /// The registry's name there.
        service: Option<String>,
    },
    /// With the password, or in a way that is not known here.
    Password,
}

impl Challenge {
    /// What the answer 401 asks for.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let mut found = None;
        for value in headers.get_all(WWW_AUTHENTICATE) {
            for challenge in http_auth::parse_challenges(value.to_str().ok()?).ok()? {
                let param = |name: &str| {
                    let param = challenge.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
                    param.map(|(_, value)| value.to_unescaped())
                };
                match param("realm").filter(|_| challenge.scheme.eq_ignore_ascii_case("bearer")) {
                    Some(realm) => return Some(Self::Token { realm, service: param("service") }),
                    None => found = Some(Self::Password),
                }
            }
        }
        found
    }
}

/// Where a token for reading `repository` is asked for. A registry reached by https names no service without it: the
/// password goes there.
pub fn token_url(realm: &str, service: &Option<String>, repository: &str, is_plain: bool) -> Result<Url, String> {
    let mut url = Url::parse(realm).map_err(|error| format!("its token service {realm:?} is no address: {error}"))?;
    if url.scheme() != "https" && !(is_plain && url.scheme() == "http") {
        return Err(format!("its token service {realm:?} is not reached by https"));
    }
    if let Some(service) = service {
        url.query_pairs_mut().append_pair("service", service);
    }
    url.query_pairs_mut().append_pair("scope", &format!("repository:{repository}:pull"));
    Ok(url)
}

#[derive(Deserialize)]
struct Answer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

/// Reads a token service's answer: what to show, and for how long.
pub fn token(answer: Option<&[u8]>) -> Result<(HeaderValue, Duration), String> {
    let answer = answer.ok_or_else(|| format!("its token service answers more than {TOKEN_BYTES_MAX} bytes"))?;
    // What cannot be read is not quoted: it may hold the token.
    let Answer { token, access_token, expires_in } =
        serde_json::from_slice(answer).map_err(|_| "its token service's answer cannot be read".to_owned())?;
    let token = token.or(access_token).ok_or("its token service gives no token")?;
    let lives = Duration::from_secs(expires_in.unwrap_or(60).clamp(60, 3600));
    Ok((bearer(&token)?, lives - TOKEN_MARGIN))
}

/// The header that shows a token.
pub fn bearer(token: &str) -> Result<HeaderValue, String> {
    sensitive(format!("Bearer {token}"))
}

/// The header that shows a password.
pub fn basic(user: &str, password: &str) -> Result<HeaderValue, String> {
    let both = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
    sensitive(format!("Basic {both}"))
}

fn sensitive(value: String) -> Result<HeaderValue, String> {
    let mut value = HeaderValue::try_from(value).map_err(|_| "the token has bytes that no header may have")?;
    value.set_sensitive(true);
    Ok(value)
}

/// What was shown with success, by registry and repository.
#[derive(Default)]
pub struct Tokens(Mutex<HashMap<String, (HeaderValue, Instant)>>);

impl Tokens {
    /// What to show at once.
    pub fn known(&self, scope: &str) -> Option<HeaderValue> {
        let tokens = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        tokens.get(scope).filter(|(_, until)| Instant::now() < *until).map(|(shown, _)| shown.clone())
    }

    /// Keeps it for some time.
    pub fn remember(&self, scope: String, shown: HeaderValue, kept: Duration) {
        let now = Instant::now();
        let mut tokens = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if tokens.len() >= TOKENS_MAX {
            tokens.retain(|_, (_, until)| now < *until);
        }
        if tokens.len() >= TOKENS_MAX {
            tokens.clear();
        }
        tokens.insert(scope, (shown, now + kept));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_goes_to_no_service_in_clear() {
        let error = token_url("http://tokens.example/t", &None, "team/app", false).unwrap_err();
        assert!(error.contains("not reached by https"), "{error}");
        assert!(token_url("http://tokens.example/t", &None, "team/app", true).is_ok());
        assert!(token_url("file:///etc/passwd", &None, "team/app", true).is_err());
    }

    #[test]
    fn reads_challenges_as_registries_write_them() {
        let of = |value: &str| {
            let headers = HeaderMap::from_iter([(WWW_AUTHENTICATE, HeaderValue::from_str(value).unwrap())]);
            match Challenge::of(&headers) {
                Some(Challenge::Token { realm, service }) => format!("{realm} {}", service.unwrap_or_default()),
                Some(Challenge::Password) => "password".to_owned(),
                None => "nothing".to_owned(),
            }
        };
        assert_eq!(of(r#"Basic realm="r""#), "password");
        assert_eq!(of(r#"Basic realm="r", bearer Realm="https://a/t",Service="s, t""#), "https://a/t s, t");
        assert_eq!(of(r#"Bearer realm="https://a/t""#), "https://a/t ");
        assert_eq!(of("Bearer"), "password");
    }

    #[test]
    fn a_token_lives_as_long_as_it_says_and_is_never_quoted() {
        assert_eq!(token(Some(br#"{"token":"a","expires_in":1}"#)).unwrap().1, Duration::from_secs(50));
        assert_eq!(token(Some(br#"{"token":"a","expires_in":99999999}"#)).unwrap().1, Duration::from_secs(3590));
        for answer in [&br#"{"token":"a secret" "#[..], b"{\"token\":\"a secret\\n\"}", b"{}"] {
            assert!(!token(Some(answer)).unwrap_err().contains("secret"));
        }
    }
}
