//! Answers of the gateway itself to calls of gRPC: status and words are in headers behind which nothing comes ("Trailers-Only", gRPC over
//! HTTP2), since a client of gRPC makes little of a status of HTTP.

use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode};

use crate::serve::Own;
use crate::{Body, retry};

const STATUS: HeaderName = HeaderName::from_static("grpc-status");
const MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
/// Bytes of a message before it is escaped; three times as many afterwards at most.
const MESSAGE_BYTES_MAX: usize = 1024;

/// Whether this is a call of gRPC: `application/grpc`, or that with what its messages are written in. gRPC-Web frames trailers otherwise.
pub(super) fn is_call(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    let name = b"application/grpc";
    let is_named = kind.len() >= name.len() && kind[..name.len()].eq_ignore_ascii_case(name);
    is_named && matches!(kind.get(name.len()), None | Some(b'+' | b';'))
}

/// An answer to a call: one of our own in the words of gRPC, a backend's as it is.
pub(super) fn told(response: Response<Body>) -> Response<Body> {
    let Some(Own(words)) = response.extensions().get::<Own>() else { return response };
    let mut told = Response::new(retry::empty());
    let headers = told.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(STATUS, HeaderValue::from(code(response.status())));
    if let Ok(message) = HeaderValue::try_from(escaped(words)) {
        headers.insert(MESSAGE, message);
    }
    told
}

/// The code for a status of ours. Those of a proxy are as gRPC's own page has them ("HTTP to gRPC Status Code Mapping"); a rule that
/// leads nowhere is answered UNAVAILABLE, as Gateway API has it.
fn code(status: StatusCode) -> u16 {
    const DEADLINE_EXCEEDED: u16 = 4;
    const PERMISSION_DENIED: u16 = 7;
    const RESOURCE_EXHAUSTED: u16 = 8;
    const UNIMPLEMENTED: u16 = 12;
    const INTERNAL: u16 = 13;
    const UNAVAILABLE: u16 = 14;
    const UNKNOWN: u16 = 2;
    match status.as_u16() {
        400 => INTERNAL,
        403 => PERMISSION_DENIED,
        404 => UNIMPLEMENTED,
        413 | 431 => RESOURCE_EXHAUSTED,
        500 | 502 | 503 => UNAVAILABLE,
        504 => DEADLINE_EXCEEDED,
        _ => UNKNOWN,
    }
}

/// "Percent-Encoded" of gRPC over HTTP2.
fn escaped(words: &str) -> String {
    let mut text = String::new();
    for byte in words.bytes().take(MESSAGE_BYTES_MAX) {
        match byte {
            b' '..=b'~' if byte != b'%' => text.push(char::from(byte)),
            _ => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::say;

    #[test]
    fn calls_are_known_by_what_they_bring() {
        for (kind, expected) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("Application/gRPC; charset=utf-8", true),
            ("application/grpc-web", false),
            ("application/grpc-web+proto", false),
            ("application/json", false),
            ("", false),
        ] {
            let headers: HeaderMap = [(CONTENT_TYPE, kind.parse().unwrap())].into_iter().collect();
            assert_eq!(is_call(&headers), expected, "{kind}");
        }
        assert!(!is_call(&HeaderMap::new()));
    }

    #[test]
    fn what_is_our_own_is_told_in_the_words_of_grpc() {
        for (status, code) in [
            (400, "13"),
            (403, "7"),
            (404, "12"),
            (413, "8"),
            (431, "8"),
            (500, "14"),
            (502, "14"),
            (503, "14"),
            (504, "4"),
            (505, "2"),
        ] {
            let told = told(say(StatusCode::from_u16(status).unwrap(), "100% übel\n"));
            assert_eq!((told.status(), told.headers()[STATUS].to_str().unwrap()), (StatusCode::OK, code));
            assert_eq!(told.headers()[MESSAGE], "100%25 %C3%BCbel%0A");
            assert_eq!(told.headers()[CONTENT_TYPE], "application/grpc");
            assert!(http_body::Body::is_end_stream(told.body()), "nothing comes behind");
        }
        let backend = told(Response::builder().status(503).body(retry::empty()).unwrap());
        assert_eq!((backend.status(), backend.headers().len()), (StatusCode::SERVICE_UNAVAILABLE, 0));
        let long = told(say(StatusCode::NOT_FOUND, &"ü".repeat(4096)));
        assert_eq!(long.headers()[MESSAGE].len(), 3 * MESSAGE_BYTES_MAX);
    }
}
