//! How others check this cluster's tokens: OpenID discovery and the public key.

use axum::response::Response;
use serde_json::json;

use super::tokens::Tokens;
use crate::answer::respond;
use crate::request::negotiate;

/// `/.well-known/openid-configuration`. Whoever reads it has come by the issuer's name, and finds the key by the same: no pod can reach
/// an address of this machine.
pub(crate) fn configuration(tokens: &Tokens) -> Response {
    let document = json!({
        "issuer": tokens.issuer,
        "jwks_uri": format!("{}/openid/v1/jwks", tokens.issuer),
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["ES256"],
    });
    respond::bytes(200, negotiate::JSON, document.to_string())
}

/// `/openid/v1/jwks`.
pub(crate) fn keys(tokens: &Tokens) -> Response {
    let key = json!({
        "use": "sig", "kty": "EC", "kid": tokens.key_id, "crv": "P-256", "alg": "ES256", "x": tokens.x, "y": tokens.y,
    });
    respond::bytes(200, "application/jwk-set+json", json!({ "keys": [key] }).to_string())
}
