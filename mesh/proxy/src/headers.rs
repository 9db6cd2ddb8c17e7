//! Headers that are for one connection only (RFC 9110 §7.6.1): the one list of them, and the one of them that some pass on.

use http::header::{
    CONNECTION, CONTENT_LENGTH, HOST, HeaderMap, HeaderName, HeaderValue, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE,
    TRAILER, TRANSFER_ENCODING, UPGRADE,
};

/// Beside those that `Connection` names.
const OF_A_CONNECTION: [HeaderName; 9] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// Takes away what is for one connection only. Whom a request is for is never that.
pub fn strip(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        let named: Vec<HeaderName> =
            named(headers).filter_map(|name| name.parse().ok()).filter(|name| *name != HOST).collect();
        for name in named {
            headers.remove(name);
        }
    }
    // What has both is chunked, however long it says that it is (RFC 9112 §6.3): the length would be believed on the next connection.
    if headers.contains_key(TRANSFER_ENCODING) {
        headers.remove(CONTENT_LENGTH);
    }
    for name in &OF_A_CONNECTION {
        headers.remove(name);
    }
}

/// The protocol to which the connection of a request is to change. An offer that may be ignored (HTTP/2 without TLS) is none.
pub fn upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let wanted = headers.get(UPGRADE)?;
    let is_offer = wanted.to_str().is_ok_and(|protocol| protocol.trim().eq_ignore_ascii_case("h2c"));
    let is_meant = named(headers).any(|name| name.eq_ignore_ascii_case("upgrade"));
    (is_meant && !is_offer).then(|| wanted.clone())
}

/// Asks for that protocol on another connection.
pub(crate) fn ask(headers: &mut HeaderMap, protocol: HeaderValue) {
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, protocol);
}

/// What `Connection` names.
fn named(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let values = headers.get_all(CONNECTION).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(headers: &[(&'static str, &str)]) -> HeaderMap {
        headers.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    #[test]
    fn what_is_for_one_connection_stays_there() {
        let mut headers = map(&[
            ("connection", "keep-alive, X-Secret"),
            ("keep-alive", "timeout=5"),
            ("x-secret", "1"),
            ("te", "trailers"),
            ("upgrade", "h2c"),
            ("proxy-connection", "close"),
            ("proxy-authorization", "Basic x"),
            ("accept", "*/*"),
        ]);
        strip(&mut headers);
        assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["accept"]);
    }

    /// Any bytes that a header may have: no panic, and nothing of the connection is left.
    #[test]
    fn no_header_confuses_it() {
        use rand::{Rng, SeedableRng};
        for seed in 0..3_000 {
            let mut random = rand::rngs::StdRng::seed_from_u64(seed);
            let mut headers = HeaderMap::new();
            for _ in 0..random.random_range(0..8) {
                let mut value: Vec<u8> = (0..random.random_range(0..40)).map(|_| random.random()).collect();
                if random.random() {
                    value = [&b"close, x-a ,,"[..], &value].concat();
                }
                let name = ["connection", "upgrade", "te", "x-a", "x-b"][random.random_range(0..5)];
                if let Ok(value) = HeaderValue::from_bytes(&value) {
                    headers.append(HeaderName::from_static(name), value);
                }
            }
            let _ = upgrade(&headers);
            strip(&mut headers);
            assert!(headers.keys().all(|name| !OF_A_CONNECTION.contains(name)), "seed {seed}: {headers:?}");
        }
    }

    #[test]
    fn whom_a_request_is_for_is_not_taken_away() {
        let mut headers = map(&[("connection", "host, x-a"), ("host", "a.x"), ("x-a", "1")]);
        strip(&mut headers);
        assert_eq!(headers, map(&[("host", "a.x")]));
    }

    #[test]
    fn an_upgrade_is_one_that_the_connection_names() {
        for (headers, wanted) in [
            (map(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")]), Some("websocket")),
            (map(&[("upgrade", "websocket")]), None),
            (map(&[("connection", "Upgrade")]), None),
            (map(&[("connection", "Upgrade, HTTP2-Settings"), ("upgrade", "h2c")]), None),
        ] {
            assert_eq!(upgrade(&headers).as_ref().and_then(|value| value.to_str().ok()), wanted, "{headers:?}");
        }
    }
}
