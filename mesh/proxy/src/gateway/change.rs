//! What routes change of requests and answers, and where they send them instead (`HTTPRoute` of Gateway API: its filters).

use coracle_discovery::gateway_api::{Forward, HeaderChanges, Redirect, Rewrite};
use http::header::{HOST, LOCATION};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri};
use rand::Rng;

use crate::serve::say;
use crate::{Body, Error};

/// One of those that may answer, by their weights. The sum of all is not 0.
pub(super) fn choose<'a>(all: &'a [Forward], random: &mut impl Rng) -> Option<&'a Forward> {
    let sum: u64 = all.iter().map(|forward| u64::from(forward.weight)).sum();
    if let [only] = all {
        return (sum > 0).then_some(only);
    }
    let mut left = random.random_range(0..sum.max(1));
    all.iter().find(|forward| match left.checked_sub(u64::from(forward.weight)) {
        Some(rest) => {
            left = rest;
            false
        }
        None => true,
    })
}

/// Changes headers.
pub(super) fn headers(headers: &mut HeaderMap, changes: &HeaderChanges) {
    for (name, value) in &changes.set {
        headers.insert(name, value.clone());
    }
    for (name, value) in &changes.add {
        headers.append(name, value.clone());
    }
    for name in &changes.remove {
        headers.remove(name);
    }
}

/// Changes what is asked for, and of whom.
pub(super) fn rewrite(request: &mut Request<Body>, change: &Rewrite) -> Result<(), Error> {
    if let Some(path) = &change.path {
        *request.uri_mut() = Uri::from(with_query(&path.apply(request.uri().path()), request.uri())?);
    }
    if let Some(hostname) = &change.hostname
        && let Ok(hostname) = HeaderValue::from_str(hostname)
    {
        request.headers_mut().insert(HOST, hostname);
    }
    Ok(())
}

/// A path with the query that there was.
fn with_query(path: &str, uri: &Uri) -> Result<PathAndQuery, Error> {
    let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    PathAndQuery::try_from(format!("{path}{query}")).map_err(|_| Error::Malformed("its path cannot be changed"))
}

/// Where a request came in.
pub(super) struct Came<'a> {
    /// Whether it came with TLS.
    pub has_tls: bool,
    /// The host that it names, without a port.
    pub host: &'a str,
    /// At which port.
    pub port: u16,
}

/// Sends a request elsewhere.
pub(super) fn redirect(came: &Came<'_>, uri: &Uri, to: &Redirect) -> Result<Response<Body>, Error> {
    let own = if came.has_tls { "https" } else { "http" };
    let scheme = to.scheme.unwrap_or(own);
    let usual = if scheme == "https" { 443 } else { 80 };
    // The listener's own port, unless the scheme is said: then that scheme's.
    let port = to.port.unwrap_or(if to.scheme.is_some() { usual } else { came.port });
    let port = if port == usual { String::new() } else { format!(":{port}") };
    let host = to.hostname.as_deref().unwrap_or(came.host);
    if host.is_empty() {
        return Err(Error::NoAuthority);
    }
    let path = match &to.path {
        Some(path) => with_query(&path.apply(uri.path()), uri)?,
        None => uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/")),
    };
    let location = HeaderValue::try_from(format!("{scheme}://{host}{port}{path}"));
    let location = location.map_err(|_| Error::Malformed("it names no place to be sent to"))?;
    let status = StatusCode::from_u16(to.status).unwrap_or(StatusCode::FOUND);
    let mut response = say(status, "it is elsewhere");
    response.headers_mut().insert(LOCATION, location);
    Ok(response)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use coracle_discovery::gateway_api::{Filters, PathChange, Target};
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;
    use crate::retry;

    #[test]
    fn weights_are_shares_and_who_has_none_gets_none() {
        let forward = |port, weight| Forward {
            weight,
            target: Ok(Target { namespace: "n".into(), name: "s".into(), port }),
            filters: Arc::new(Filters::default()),
        };
        let mut random = StdRng::seed_from_u64(7);
        for (weights, expected) in [
            (vec![1], vec![1000]),
            (vec![0], vec![0]),
            (vec![9, 1], vec![900, 100]),
            (vec![1, 0, 1], vec![500, 0, 500]),
            (vec![0, 0], vec![0, 0]),
        ] {
            let all: Vec<Forward> = (0..).zip(&weights).map(|(port, weight)| forward(port, *weight)).collect();
            let mut counts = vec![0_i32; weights.len()];
            for _ in 0..1000 {
                if let Some(chosen) = choose(&all, &mut random) {
                    counts[usize::from(chosen.target.as_ref().unwrap().port)] += 1;
                }
            }
            let is_near =
                |(found, expected): (&i32, &i32)| (found - expected).abs() <= if *expected == 0 { 0 } else { 60 };
            assert!(counts.iter().zip(&expected).all(is_near), "{weights:?}: {counts:?}");
        }
    }

    #[test]
    fn headers_are_set_added_and_removed() {
        let mut all = HeaderMap::new();
        for (name, value) in [("a", "1"), ("a", "2"), ("b", "1"), ("c", "1")] {
            all.append(name, value.parse().unwrap());
        }
        let pair = |name: &'static str, value: &'static str| {
            (http::HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        let changes = HeaderChanges {
            set: vec![pair("a", "3"), pair("d", "1")],
            add: vec![pair("b", "2")],
            remove: vec![http::HeaderName::from_static("c")],
        };
        headers(&mut all, &changes);
        let mut found: Vec<String> =
            all.iter().map(|(name, value)| format!("{name}={}", value.to_str().unwrap())).collect();
        found.sort();
        assert_eq!(found, ["a=3", "b=1", "b=2", "d=1"]);
    }

    /// As the description of the filter's field `port` says.
    #[test]
    fn a_redirect_names_a_port_unless_it_is_the_scheme_s() {
        let to = |scheme, port, path: Option<PathChange>| Redirect { scheme, hostname: None, path, port, status: 301 };
        let prefix = PathChange::Prefix { from: "/a".into(), to: "/b".into() };
        for (has_tls, at, to, location) in [
            (false, 80, to(None, None, None), "http://h.x/a/c?q"),
            (false, 8080, to(None, None, None), "http://h.x:8080/a/c?q"),
            (false, 8080, to(Some("https"), None, None), "https://h.x/a/c?q"),
            (false, 8080, to(Some("https"), Some(8443), None), "https://h.x:8443/a/c?q"),
            (true, 8443, to(Some("http"), None, None), "http://h.x/a/c?q"),
            (true, 443, to(None, None, None), "https://h.x/a/c?q"),
            (true, 8443, to(None, Some(443), None), "https://h.x/a/c?q"),
            (false, 80, to(None, Some(8080), None), "http://h.x:8080/a/c?q"),
            (false, 80, to(None, None, Some(prefix)), "http://h.x/b/c?q"),
            (false, 80, to(None, None, Some(PathChange::Full("/new".into()))), "http://h.x/new?q"),
            (false, 80, Redirect { hostname: Some("other".into()), ..to(None, None, None) }, "http://other/a/c?q"),
        ] {
            let came = Came { has_tls, host: "h.x", port: at };
            let response = redirect(&came, &Uri::from_static("/a/c?q"), &to).unwrap();
            assert_eq!(response.headers()[LOCATION], location);
            assert_eq!(response.status(), 301);
        }
    }

    #[test]
    fn a_request_is_rewritten_with_its_query() {
        let mut request = Request::get("/a/c?q=1").body(retry::empty()).unwrap();
        let path = Some(PathChange::Prefix { from: "/a".into(), to: "".into() });
        rewrite(&mut request, &Rewrite { hostname: Some("inside".into()), path }).unwrap();
        assert_eq!(
            (request.uri().to_string().as_str(), request.headers()[HOST].to_str().unwrap()),
            ("/c?q=1", "inside")
        );
    }
}
