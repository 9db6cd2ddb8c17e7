//! The listener that asks nobody who they are: whoever is on this machine may push. That is no web page which a browser on this
//! machine shows. It says where it is from (`Origin`), or has had its own name point here meanwhile (DNS rebinding), and says that
//! name (`Host`).

use std::net::IpAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use http::uri::Authority;
use http::{HeaderMap, header};

use crate::Registry;
use crate::error::Refusal;

/// The registry under `/v2/` for programs on this machine, which call it by a loopback address, by `localhost` or a name below that,
/// or by one of `names`.
pub fn local_router(registry: Registry, names: &[String]) -> Router {
    let names: Arc<[String]> = names.iter().map(|name| name.to_ascii_lowercase()).collect();
    crate::api::router(registry).layer(from_fn_with_state(names, check))
}

async fn check(State(names): State<Arc<[String]>>, request: Request, next: Next) -> Response {
    let named = request.uri().authority().cloned();
    match is_local(named, request.headers(), &names) {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    }
}

/// Whether a request comes from no other place. One without a host comes from no browser.
fn is_local(named: Option<Authority>, headers: &HeaderMap, names: &[String]) -> Result<(), Refusal> {
    let foreign = |what: &str| Refusal::foreign(format!("{what}: this listener is for programs on its machine"));
    let mut hosts: Vec<Authority> = named.into_iter().collect();
    for host in headers.get_all(header::HOST) {
        hosts.push(Authority::try_from(host.as_bytes()).map_err(|_| foreign("the host cannot be read"))?);
    }
    if let Some(other) = hosts.iter().find(|host| !is_here(host.host(), names)) {
        return Err(foreign(&format!("{:?} is not called so", other.host())));
    }
    for origin in headers.get_all(header::ORIGIN) {
        let origin = origin.to_str().unwrap_or_default();
        let at = origin.split_once("://").map(|(_, at)| at);
        if !hosts.iter().any(|host| at.is_some_and(|at| at.eq_ignore_ascii_case(host.as_str()))) {
            return Err(foreign(&format!("the page at {origin:?} is from elsewhere")));
        }
    }
    Ok(())
}

/// Whether a host, a name or an address, is this machine to itself.
fn is_here(host: &str, names: &[String]) -> bool {
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(&host);
    match address.parse::<IpAddr>() {
        Ok(address) => address.to_canonical().is_loopback() || names.iter().any(|name| name == &address.to_string()),
        // Browsers never look these up (RFC 6761 §6.3).
        Err(_) => host == "localhost" || host.ends_with(".localhost") || names.contains(&host),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_this_machine_or_a_name_that_somebody_gave_it() {
        for (host, origin, expected) in [
            ("127.0.0.1:5000", "", true),
            ("127.8.9.10", "", true),
            ("[::1]:5000", "", true),
            ("[::ffff:127.0.0.1]:5000", "", true),
            ("localhost:5000", "", true),
            ("LOCALHOST", "", true),
            ("registry.localhost:5000", "", true),
            ("laptop.example:5000", "", true),
            ("10.0.0.7:5000", "", true),
            ("", "", true),
            ("evil.example:5000", "", false),
            ("evil.example.:5000", "", false),
            ("localhost.evil.example", "", false),
            ("127.0.0.1.evil.example", "", false),
            ("notlocalhost", "", false),
            ("10.0.0.8:5000", "", false),
            ("0.0.0.0:5000", "", false),
            ("a b", "", false),
            ("localhost:5000", "http://localhost:5000", true),
            ("localhost:5000", "http://localhost:3000", false),
            ("localhost:5000", "https://evil.example", false),
            ("localhost:5000", "null", false),
            ("evil.example:5000", "http://evil.example:5000", false),
            ("", "http://evil.example:5000", false),
        ] {
            let mut headers = HeaderMap::new();
            for (name, value) in [(header::HOST, host), (header::ORIGIN, origin)] {
                if !value.is_empty() {
                    headers.insert(name, value.parse().unwrap());
                }
            }
            let names = ["laptop.example".to_owned(), "10.0.0.7".to_owned()];
            assert_eq!(is_local(None, &headers, &names).is_ok(), expected, "{host:?} from {origin:?}");
        }
        let named = Some(Authority::from_static("evil.example:5000"));
        assert!(is_local(named, &HeaderMap::new(), &[]).is_err(), "HTTP/2 says it elsewhere");
    }
}
