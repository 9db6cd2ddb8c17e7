//! Authentication: a verified client certificate, a ServiceAccount's token, or nothing (kubernetes-api §23).

mod impersonate;
pub(crate) mod oidc;
pub(crate) mod tokens;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use coracle_api::status::Status;
use http::{Request, header};

use crate::identity::Identity;
use crate::server::Shared;

/// WebSocket clients in browsers can send a token only as a subprotocol.
const SUBPROTOCOL: &str = "base64url.bearer.authorization.k8s.io.";

/// Who calls. Credentials that are shown and wrong are refused; no credentials are the anonymous user.
pub(crate) fn authenticate<B>(server: &Shared, request: &Request<B>) -> Result<Identity, Status> {
    let caller = match (request.extensions().get::<Identity>(), bearer(request)) {
        (Some(identity), _) => identity.clone(),
        (None, Some(token)) => {
            let accepted = tokens::authenticate(server, &token, &[]).map_err(|why| {
                tracing::debug!(%why, "a token is refused");
                Status::unauthorized()
            })?;
            accepted.identity
        }
        (None, None) => Identity::anonymous(),
    };
    impersonate::apply(caller, request.headers())
}

fn bearer<B>(request: &Request<B>) -> Option<String> {
    let headers = request.headers();
    if let Some(value) = headers.get(header::AUTHORIZATION) {
        let text = value.to_str().ok()?;
        let (scheme, token) = text.split_once(' ')?;
        return scheme.eq_ignore_ascii_case("bearer").then(|| token.trim().to_owned());
    }
    let protocols = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|value| value.to_str().ok());
    let encoded = protocols.flat_map(|text| text.split(',')).find_map(|text| text.trim().strip_prefix(SUBPROTOCOL))?;
    String::from_utf8(URL_SAFE_NO_PAD.decode(encoded).ok()?).ok()
}
