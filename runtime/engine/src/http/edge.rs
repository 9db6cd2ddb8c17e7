//! What a guest is given of a request, and the world of its answer.

use http::header::{CONNECTION, CONTENT_LENGTH, HOST, TE, TRAILER, TRANSFER_ENCODING, UPGRADE};
use http::uri::Authority;
use http::{HeaderMap, HeaderName, Method, Request, Response, StatusCode};

use super::RequestError;

/// Bytes of a request's headers, names and values. The gateway's own bound is the same.
const HEADER_BYTES_MAX: usize = 64 << 10;

/// Headers of one connection, beside those that `Connection` names.
const OF_A_CONNECTION: [HeaderName; 7] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// Refuses what no guest could answer rightly; strips what is meant for this hop.
pub(super) fn receive<B>(request: &mut Request<B>) -> Result<(), RequestError> {
    if *request.method() == Method::CONNECT {
        return Err(RequestError::Upgrade("a tunnel".to_owned()));
    }
    let headers = request.headers_mut();
    let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    if bytes > HEADER_BYTES_MAX {
        return Err(RequestError::HeadersTooLarge);
    }
    let mut hosts = headers.get_all(HOST).iter();
    if let Some(host) = hosts.next() {
        let is_authority = host.is_empty() || Authority::try_from(host.as_bytes()).is_ok();
        if hosts.next().is_some() || !is_authority {
            return Err(RequestError::Invalid("its Host is not one host".to_owned()));
        }
    }
    // Other protocols, such as HTTP/2 without TLS, are an offer that may be ignored.
    if let Some(protocol) = headers.get(UPGRADE).and_then(|value| value.to_str().ok())
        && protocol.eq_ignore_ascii_case("websocket")
    {
        return Err(RequestError::Upgrade(protocol.to_owned()));
    }
    strip(headers);
    Ok(())
}

/// Makes an answer one that may be sent.
pub(super) fn send<B>(response: &mut Response<B>) {
    let status = response.status();
    let headers = response.headers_mut();
    strip(headers);
    if status == StatusCode::NO_CONTENT || status.is_informational() {
        headers.remove(CONTENT_LENGTH);
    }
}

fn strip(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        let named: Vec<HeaderName> = headers
            .get_all(CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .filter_map(|name| name.trim().parse().ok())
            .collect();
        for name in named {
            headers.remove(name);
        }
    }
    for name in &OF_A_CONNECTION {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(headers: &[(&str, &str)]) -> Result<Vec<String>, RequestError> {
        let mut request = Request::new(());
        for (name, value) in headers {
            request.headers_mut().append(HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
        }
        receive(&mut request)?;
        Ok(request.headers().keys().map(ToString::to_string).collect())
    }

    #[test]
    fn headers_of_a_connection_stay_on_it() {
        let headers = [
            ("connection", "keep-alive, X-Mine"),
            ("x-mine", "1"),
            ("keep-alive", "5"),
            ("te", "trailers"),
            ("upgrade", "h2c"),
            ("x-other", "2"),
        ];
        assert_eq!(received(&headers), Ok(vec!["x-other".to_owned()]));
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::NO_CONTENT;
        for (name, value) in [("content-length", "5"), ("connection", "x-y"), ("x-y", "1"), ("x-z", "1")] {
            response.headers_mut().append(HeaderName::try_from(name).unwrap(), value.parse().unwrap());
        }
        send(&mut response);
        assert_eq!(response.headers().keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["x-z"]);
    }

    #[test]
    fn requests_that_no_guest_could_answer_are_refused() {
        let status = |headers: &[(&str, &str)]| received(headers).unwrap_err().status().as_u16();
        assert_eq!(status(&[("host", "a"), ("host", "a")]), 400);
        assert_eq!(status(&[("host", "a b")]), 400);
        assert!(received(&[("host", "a:80")]).is_ok() && received(&[("host", "")]).is_ok());
        assert_eq!(status(&[("connection", "Upgrade"), ("upgrade", "WebSocket")]), 501);
        assert_eq!(status(&[("x", &"y".repeat(70 << 10))]), 431);
        let mut tunnel = Request::new(());
        *tunnel.method_mut() = Method::CONNECT;
        assert_eq!(receive(&mut tunnel).unwrap_err().status().as_u16(), 501);
    }

    /// Any bytes that a header may have: no panic, and nothing of the connection gets through.
    #[test]
    fn no_header_confuses_it() {
        use rand::{Rng, SeedableRng};
        for seed in 0..3_000 {
            let mut random = rand::rngs::StdRng::seed_from_u64(seed);
            let mut request = Request::new(());
            for _ in 0..random.random_range(0..8) {
                let mut value: Vec<u8> = (0..random.random_range(0..40)).map(|_| random.random()).collect();
                if random.random() {
                    value = [&b"close, x-a ,,"[..], &value].concat();
                }
                let name = &["host", "connection", "upgrade", "te", "x-a", "x-b"][random.random_range(0..6)];
                if let Ok(value) = http::HeaderValue::from_bytes(&value) {
                    request.headers_mut().append(HeaderName::try_from(*name).unwrap(), value);
                }
            }
            if receive(&mut request).is_ok() {
                let kept = request.headers().keys().all(|name| !OF_A_CONNECTION.contains(name));
                assert!(kept && request.headers().get_all(HOST).iter().count() <= 1, "seed {seed}: {request:?}");
            }
        }
    }
}
