//! Tokens with which a list goes on: the revision of its first page and the last name that was given.
//!
//! The form is etcd's of the reference (opaque to clients), so that tools which look inside find what they expect.

use base64::alphabet::URL_SAFE;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, URL_SAFE_NO_PAD};
use base64::{DecodeError, Engine};
use coracle_api::codec::json;
use coracle_api::status::Status;
use coracle_keyspace::Revision;
use serde_json::json;

/// Go reads base64 whose last character has bits to spare.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new()
        .with_encode_padding(false)
        .with_decode_padding_mode(base64::engine::DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// Where a list goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Token {
    /// At this revision; `None` at the newest.
    pub revision: Option<Revision>,
    /// After this record.
    pub after: String,
}

impl Token {
    pub fn encode(&self) -> String {
        let revision = self.revision.map_or(-1, |revision| i64::try_from(revision.get()).unwrap_or(i64::MAX));
        let text = json!({"v": "meta.k8s.io/v1", "rv": revision, "start": format!("{}\u{0}", self.after)});
        URL_SAFE_NO_PAD.encode(text.to_string())
    }

    pub fn decode(text: &str) -> Result<Token, Status> {
        let invalid =
            |why: &str| Status::bad_request(format!("invalid continue token: continue key is not valid: {why}"));
        let text = text.trim_end_matches('=');
        let bytes = LENIENT.decode(text).map_err(|error| {
            // As Go counts: where the group of four begins that is not whole.
            let at = match error {
                DecodeError::InvalidByte(at, _) | DecodeError::InvalidLastSymbol(at, _) => at,
                DecodeError::InvalidLength(_) | DecodeError::InvalidPadding => text.len() - text.len() % 4,
            };
            invalid(&format!("illegal base64 data at input byte {at}"))
        })?;
        let value = json::decode_any(&bytes).map_err(|error| {
            invalid(error.to_string().trim_start_matches("couldn't get version/kind; json parse error: "))
        })?;
        let value = value.value;
        if value["v"] != "meta.k8s.io/v1" {
            let version = value["v"].as_str().unwrap_or_default();
            return Err(invalid(&format!("server does not recognize this encoded version {version}")));
        }
        let revision = match value["rv"].as_i64() {
            Some(-1) => None,
            Some(revision) if revision > 0 => u64::try_from(revision).ok().map(Revision::new),
            _ => return Err(invalid("incorrect encoded start resourceVersion (version meta.k8s.io/v1)")),
        };
        let after = value["start"].as_str().unwrap_or_default().trim_end_matches('\u{0}').to_owned();
        if after.is_empty() {
            return Err(invalid("encoded start key empty (version meta.k8s.io/v1)"));
        }
        Ok(Token { revision, after })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_come_back() {
        for revision in [None, Some(Revision::new(7))] {
            let token = Token { revision, after: "default/a".to_owned() };
            assert_eq!(Token::decode(&token.encode()).unwrap(), token);
        }
        for wrong in ["", "x", "e30", "!!"] {
            assert_eq!(Token::decode(wrong).unwrap_err().code(), 400, "{wrong}");
        }
        for (wrong, at) in [("!!", 0), ("a", 0), ("abcde", 4), ("\0zz", 0)] {
            let said = format!("{:?}", Token::decode(wrong).unwrap_err());
            assert!(said.contains(&format!("illegal base64 data at input byte {at}")), "{said}");
        }
    }
}
