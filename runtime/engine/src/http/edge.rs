//! What no guest could answer rightly, and what no client could read. Headers of one connection are not looked at: who passes
//! a request on (the mesh) takes them away.

use http::header::{CONTENT_LENGTH, HOST, UPGRADE};
use http::uri::Authority;
use http::{Method, Request, Response, StatusCode};

use super::RequestError;

/// Bytes of a request's headers, names and values. The gateway's own bound is the same.
const HEADER_BYTES_MAX: usize = 64 << 10;

/// Refuses what no guest could answer rightly.
pub(super) fn receive<B>(request: &Request<B>) -> Result<(), RequestError> {
    if *request.method() == Method::CONNECT {
        return Err(RequestError::Upgrade("a tunnel".to_owned()));
    }
    let headers = request.headers();
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
    Ok(())
}

/// Makes an answer one that may be sent.
pub(super) fn send<B>(response: &mut Response<B>) {
    let status = response.status();
    if status.is_informational() {
        // No last word: a client would wait for it, or speak another protocol.
        *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    }
    if status == StatusCode::NO_CONTENT {
        response.headers_mut().remove(CONTENT_LENGTH);
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    fn received(headers: &[(&str, &str)]) -> Result<(), RequestError> {
        let mut request = Request::new(());
        for (name, value) in headers {
            request.headers_mut().append(HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
        }
        receive(&request)
    }

    #[test]
    fn an_answer_without_content_has_no_length() {
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::NO_CONTENT;
        response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from_static("5"));
        send(&mut response);
        assert!(response.headers().is_empty());
    }

    #[test]
    fn an_answer_is_a_last_word() {
        for (code, expected) in [(100, 500), (101, 500), (103, 500), (200, 200), (304, 304)] {
            let mut response = Response::new(());
            *response.status_mut() = StatusCode::from_u16(code).unwrap();
            send(&mut response);
            assert_eq!(response.status().as_u16(), expected, "{code}");
        }
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
        assert_eq!(receive(&tunnel).unwrap_err().status().as_u16(), 501);
    }

    /// Any bytes that a header may have: no panic, and no two hosts.
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
            if receive(&request).is_ok() {
                assert!(request.headers().get_all(HOST).iter().count() <= 1, "seed {seed}: {request:?}");
            }
        }
    }
}
