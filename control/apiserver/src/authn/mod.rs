//! Authentication: a verified client certificate, a ServiceAccount's token, or nothing (kubernetes-api §23).

mod impersonate;
pub(crate) mod oidc;
pub(crate) mod tokens;

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use coracle_api::status::Status;
use http::{Extensions, HeaderMap, HeaderValue, header};

use self::tokens::{Refused, Tokens};
use crate::audit::Trail;
use crate::cluster::Cluster;
use crate::identity::Identity;
use crate::limits::{Class, Flow, Here};
use crate::request::call::Call;
use crate::request::path::ResourcePath;

/// WebSocket clients in browsers can send a token only as a subprotocol.
const SUBPROTOCOL: &str = "base64url.bearer.authorization.k8s.io.";

/// Who calls, and as whom.
pub(crate) struct Caller {
    /// For whom the request is made.
    pub identity: Arc<Identity>,
    /// Whether the caller is a part of the cluster itself. Nobody becomes one by impersonation.
    pub class: Class,
    /// Who really calls, when that is somebody else.
    name: Option<Arc<str>>,
}

impl Caller {
    /// Whose turn it takes.
    pub fn flow(&self) -> Flow<'_> {
        Flow::of(self.class, self.name.as_deref().unwrap_or(&self.identity.user))
    }

    /// A call of this caller's.
    pub fn call(&self, parts: http::request::Parts, target: ResourcePath) -> Call {
        Call::new(parts, self.identity.clone(), target).taking_turns(self.class, self.name.clone())
    }
}

/// Who calls. Credentials that are shown and wrong are refused; no credentials are the anonymous user.
pub(crate) async fn authenticate(
    cluster: &Cluster,
    tokens: &Tokens,
    headers: &HeaderMap,
    extensions: &Extensions,
) -> Result<Caller, Status> {
    let caller = match extensions.get::<Identity>() {
        Some(identity) => Arc::new(identity.clone()),
        None => match bearer(headers)? {
            Some(token) => {
                let accepted = tokens::authenticate(cluster, tokens, &token, &[]).await;
                let accepted = accepted.map_err(|refused| match refused {
                    Refused::Bad(why) => {
                        tracing::debug!(%why, "a token is refused");
                        Status::unauthorized()
                    }
                    Refused::Unknown(status) => status,
                })?;
                accepted.identity
            }
            None => Arc::new(Identity::anonymous()),
        },
    };
    let trail = extensions.get::<Arc<Trail>>();
    if let Some(trail) = trail {
        trail.called_by(&caller);
    }
    let class = match (caller.is_duty(), extensions.get::<Here>()) {
        (true, Some(Here)) => Class::Own,
        (true, None) => Class::Duty,
        (false, _) => Class::User,
    };
    if !impersonate::is_asked(headers) {
        return Ok(Caller { identity: caller, class, name: None });
    }
    let name = Arc::from(caller.user.as_str());
    let identity = impersonate::apply(cluster, &caller, headers)?;
    if let Some(trail) = trail {
        trail.acts_as(&identity);
    }
    Ok(Caller { identity: Arc::new(identity), class, name: Some(name) })
}

/// The token that a request shows.
fn bearer(headers: &HeaderMap) -> Result<Option<String>, Status> {
    if let Some(value) = headers.get(header::AUTHORIZATION) {
        let text = value.to_str().map_err(|_| Status::unauthorized())?;
        let Some((scheme, token)) = text.split_once(' ') else { return Ok(None) };
        return Ok(scheme.eq_ignore_ascii_case("bearer").then(|| token.trim().to_owned()));
    }
    if !is_websocket(headers) {
        return Ok(None);
    }
    let (tokens, others): (Vec<&str>, Vec<&str>) =
        protocols(headers).partition(|protocol| protocol.starts_with(SUBPROTOCOL));
    let Some(encoded) = tokens.first().and_then(|token| token.strip_prefix(SUBPROTOCOL)) else { return Ok(None) };
    // There must be one that the server can answer with: it is never the token.
    if tokens.len() > 1 || others.is_empty() {
        return Err(Status::unauthorized());
    }
    let token = URL_SAFE_NO_PAD.decode(encoded).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    token.map(Some).ok_or_else(Status::unauthorized)
}

/// Turns a name and a password into the token that the password is: tools of registries know no other way to log in.
pub(crate) fn accept_basic(headers: &mut HeaderMap) {
    let basic = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).and_then(|text| {
        let (scheme, encoded) = text.split_once(' ')?;
        scheme.eq_ignore_ascii_case("basic").then(|| STANDARD.decode(encoded.trim()).ok()).flatten()
    });
    let password = basic
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .and_then(|text| text.split_once(':').map(|(_, password)| password.to_owned()));
    if let Some(bearer) = password.and_then(|token| HeaderValue::from_str(&format!("Bearer {token}")).ok()) {
        headers.insert(header::AUTHORIZATION, bearer);
    }
}

/// Whether the connection is to become a WebSocket.
pub(crate) fn is_websocket(headers: &HeaderMap) -> bool {
    let has = |name, wanted: &str| {
        headers
            .get_all(name)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .any(|text| text.split(',').any(|part| part.trim().eq_ignore_ascii_case(wanted)))
    };
    has(header::UPGRADE, "websocket") && has(header::CONNECTION, "upgrade")
}

fn protocols(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let all = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|value| value.to_str().ok());
    all.flat_map(|text| text.split(',')).map(str::trim).filter(|protocol| !protocol.is_empty())
}

/// The subprotocol that a WebSocket speaks: the first that is no token.
pub(crate) fn subprotocol(headers: &HeaderMap) -> Option<&str> {
    protocols(headers).find(|protocol| !protocol.starts_with(SUBPROTOCOL))
}

/// Takes everything out of `headers` by which a caller proves who it is or says as whom it acts: that is for this server,
/// and for nobody to whom it passes the request on.
pub(crate) fn strip_credentials(headers: &mut HeaderMap) {
    headers.remove(header::AUTHORIZATION);
    headers.remove(header::PROXY_AUTHORIZATION);
    let of_identity = |name: &str| name.starts_with("impersonate-") || name.starts_with("x-remote-");
    let names: Vec<_> = headers.keys().filter(|name| of_identity(name.as_str())).cloned().collect();
    names.iter().for_each(|name| drop(headers.remove(name)));
    if !headers.contains_key(header::SEC_WEBSOCKET_PROTOCOL) {
        return;
    }
    let others: Vec<&str> = protocols(headers).filter(|protocol| !protocol.starts_with(SUBPROTOCOL)).collect();
    let others = (!others.is_empty()).then(|| HeaderValue::from_str(&others.join(", ")).ok()).flatten();
    headers.remove(header::SEC_WEBSOCKET_PROTOCOL);
    if let Some(others) = others {
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, others);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(list: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in list {
            let name = http::HeaderName::from_bytes(name.as_bytes()).unwrap();
            headers.append(name, value.parse().unwrap());
        }
        headers
    }

    const UPGRADE: [(&str, &str); 2] = [("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")];
    const TOKEN: &str = "base64url.bearer.authorization.k8s.io.dG9rZW4";

    #[test]
    fn a_token_as_a_subprotocol_counts_on_websockets_and_beside_another_one() {
        let ask = |upgrade: bool, protocol: &str| {
            let mut list = if upgrade { UPGRADE.to_vec() } else { Vec::new() };
            list.push(("sec-websocket-protocol", protocol));
            bearer(&headers(&list)).map_err(|status| status.code())
        };
        assert_eq!(ask(true, &format!("{TOKEN}, chat")), Ok(Some("token".to_owned())));
        assert_eq!(ask(false, &format!("{TOKEN}, chat")), Ok(None), "nothing is shown, so it is anonymous");
        assert_eq!(ask(true, TOKEN), Err(401));
        assert_eq!(ask(true, &format!("{TOKEN}, {TOKEN}, chat")), Err(401));
        assert_eq!(ask(true, "base64url.bearer.authorization.k8s.io.%, chat"), Err(401));
        assert_eq!(ask(true, "chat"), Ok(None));
        let mut unreadable = HeaderMap::new();
        unreadable.insert(header::AUTHORIZATION, HeaderValue::from_bytes(b"Bearer \xff").unwrap());
        assert_eq!(bearer(&unreadable).map_err(|status| status.code()), Err(401));
    }

    #[test]
    fn nothing_that_proves_who_calls_is_passed_on() {
        let mut given = headers(&[
            ("authorization", "Bearer x"),
            ("impersonate-user", "root"),
            ("impersonate-extra-scopes", "all"),
            ("x-remote-user", "root"),
            ("sec-websocket-protocol", TOKEN),
            ("sec-websocket-protocol", "chat, superchat"),
            ("cookie", "the=application's"),
            ("x-own", "stays"),
        ]);
        strip_credentials(&mut given);
        let expected = headers(&[
            ("cookie", "the=application's"),
            ("x-own", "stays"),
            ("sec-websocket-protocol", "chat, superchat"),
        ]);
        assert_eq!(given, expected);
        let mut only = headers(&[("sec-websocket-protocol", TOKEN)]);
        strip_credentials(&mut only);
        assert!(only.is_empty());
    }
}
