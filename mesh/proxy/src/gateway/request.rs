//! A request from outside: to whom it goes, and what it says of who has sent it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use coracle_discovery::gateway_api::{Filters, Protocol as Spoken};
use coracle_discovery::{
    Asked, Backend, Ingresses, MATCHED_BYTES_MAX, Origin, PortName, Protocol, Route as Rule, SecretKey, TooLong,
};
use coracle_policy::Source;
use http::header::{
    FORWARDED, HOST, HeaderMap, HeaderName, HeaderValue, LOCATION, RETRY_AFTER, STRICT_TRANSPORT_SECURITY,
};
use http::uri::{Authority, PathAndQuery};
use http::{Method, Request, Response, StatusCode, Uri, Version};

use super::Inbound;
use super::bounds::{self, Silence};
use super::change::{self, Came};
use super::grpc;
use super::under_way::Full;
use crate::http2::InHttp2;
use crate::routes::{Route, Side};
use crate::serve::{refuse, say, status_of};
use crate::turns::Charged;
use crate::{Asker, Body, Deadline, Error, headers, outbound};

/// What the gateway says of who has sent a request. Whatever a client says by a name that looks like one of these is taken away.
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");

/// When what is about to change is asked for again.
const RETRY_AFTER_SECONDS: HeaderValue = HeaderValue::from_static("1");

/// Bytes of a client's words that an answer repeats.
const REPEATED_MAX: usize = 200;

/// Whom a request names.
struct To {
    /// In lower case, without a port and a dot at the end; empty when it names nobody.
    name: String,
    /// As it was written; none where it names nobody, as HTTP/1.0 may.
    authority: Option<Authority>,
}

impl To {
    fn of(request: &Request<Body>) -> Result<To, Error> {
        let authority = match outbound::authority(request) {
            Ok(authority) => Some(authority),
            Err(_) if request.headers().get(HOST).is_none_or(HeaderValue::is_empty) => None,
            Err(error) => return Err(error),
        };
        let host = authority.as_ref().map_or("", Authority::host);
        Ok(To { name: host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase(), authority })
    }

    /// As it was written, without a port.
    fn host(&self) -> &str {
        self.authority.as_ref().map_or("", Authority::host)
    }

    /// As it was written.
    fn written(&self) -> &str {
        self.authority.as_ref().map_or("", Authority::as_str)
    }
}

impl Inbound {
    /// Answers a request of this client; a call of gRPC in its own words. Who speaks HTTP/1.1 speaks no gRPC, whatever he calls it.
    pub async fn answer(self: Arc<Self>, client: SocketAddr, request: Request<Body>) -> Result<Response<Body>, Error> {
        match grpc::is_call(request.headers()) && request.version() >= Version::HTTP_2 {
            false => self.answer_http(client, request).await,
            true => {
                let answered = Box::pin(self.answer_http(client, request)).await;
                Ok(grpc::told(answered.unwrap_or_else(|error| refuse(&error))))
            }
        }
    }

    async fn answer_http(
        self: Arc<Self>,
        client: SocketAddr,
        mut request: Request<Body>,
    ) -> Result<Response<Body>, Error> {
        if request.method() == Method::CONNECT {
            return Err(Error::Malformed("this is no proxy that connects"));
        }
        let to = To::of(&request)?;
        let rule = match self.find(&to, &request) {
            Ok(rule) => rule,
            Err(answer) => return Ok(*answer),
        };
        if let Some(secure_port) = &self.secure_port
            && rule.is_secure_only
            && self.tls.is_none()
            && !to.name.is_empty()
        {
            return match secure_port.load(Relaxed) {
                0 => Ok(later("this host is served with TLS, and the port for that is not open yet")),
                secure_port => redirect(&to, secure_port, &request),
            };
        }
        if let Some(bytes_max) = rule.options.body_bytes_max.filter(|max| bounds::is_larger(request.headers(), *max)) {
            return Ok(too_large(bytes_max));
        }
        let (is_ingress, is_for_calls) = (rule.origin.kind == "Ingress", rule.origin.kind == "GRPCRoute");
        if is_for_calls && request.version() < Version::HTTP_2 {
            let words = format!("{} is for gRPC, which is spoken in HTTP/2", rule.origin);
            return Ok(say(StatusCode::HTTP_VERSION_NOT_SUPPORTED, &words));
        }
        let mut asked = is_ingress.then(|| self.proxy.by_ingress.begin(&rule.origin));
        let mut count = |status| {
            if let Some(asked) = &mut asked {
                asked.status = Some(status);
            }
        };
        if let Backend::Redirect(elsewhere) = &rule.backend {
            let came = Came { has_tls: self.tls.is_some(), host: to.host(), port: self.port };
            let mut response = change::redirect(&came, request.uri(), elsewhere)?;
            change::headers(response.headers_mut(), &rule.options.filters.response);
            return Ok(response);
        }
        let (route, chosen) = match self.route(&rule) {
            Ok(route) => route,
            Err(why) => {
                // Gateway API wants requests of a rule that leads nowhere to be told from those that nobody answers now.
                let status =
                    if is_ingress { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::INTERNAL_SERVER_ERROR };
                count(status);
                return Ok(say(status, &why));
            }
        };
        let namespace = &rule.origin.namespace;
        let place = match self.requests.take(namespace, client.ip()) {
            Ok(place) => place,
            Err(full) => {
                count(StatusCode::SERVICE_UNAVAILABLE);
                let who = match full {
                    Full::Namespace => "it",
                    Full::Client => "one client of it",
                };
                return Ok(later(&format!(
                    "namespace {namespace} has all requests under way here that {who} may have"
                )));
            }
        };
        let local_port = self.port;
        // Before it is said who asks: what a client names as its connection's own is taken away, and that is not.
        let protocol = headers::upgrade(request.headers());
        headers::strip(request.headers_mut());
        if let Some(protocol) = protocol {
            headers::ask(request.headers_mut(), protocol);
        }
        tell(request.headers_mut(), &to, client.ip(), local_port, self.tls.is_some());
        // As it is without TLS and in HTTP/1.1: who answers need not know how it came.
        let path = request.uri().path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        *request.uri_mut() = Uri::from(path);
        if is_for_calls {
            request.extensions_mut().insert(InHttp2);
        }
        let source = Source::Outside(client.ip());
        let filters = || std::iter::once(&rule.options.filters).chain(&chosen).filter(|filters| !filters.are_none());
        for filters in filters() {
            change::headers(request.headers_mut(), &filters.request);
            change::rewrite(&mut request, &filters.rewrite)?;
            // A copy has what the rule says, and not what is said for who answers.
            if !filters.mirrors.is_empty() {
                request = self.mirror(&source, &rule, request);
            }
        }
        if let Some(max) = rule.options.answer_max {
            let own = Deadline(tokio::time::Instant::now() + max);
            let deadline = request.extensions().get::<Deadline>().map_or(own, |other| own.min(*other));
            request.extensions_mut().insert(deadline);
        }
        request.extensions_mut().insert(Asker::Ingresses(rule.origin.namespace.clone()));
        let answered = self.ask(&source, &rule, route, request).await;
        count(answered.as_ref().map_or_else(status_of, Response::status));
        answered.map(|mut response| {
            for filters in filters() {
                change::headers(response.headers_mut(), &filters.response);
            }
            if let Some(hsts) = rule.options.hsts.as_ref().filter(|_| self.tls.is_some())
                && let Ok(hsts) = HeaderValue::from_str(hsts)
            {
                response.headers_mut().insert(STRICT_TRANSPORT_SECURITY, hsts);
            }
            response.extensions_mut().insert(Charged(Arc::new(place)));
            response
        })
    }

    /// The rule that takes a request: of a Gateway's listener at this port, or of an Ingress; or what is answered without one.
    fn find(&self, to: &To, request: &Request<Body>) -> Result<Arc<Rule>, Box<Response<Body>>> {
        let uri = request.uri();
        let path = uri.path();
        let ports = self.gateways.as_ref().map(|of| of.routes.ports());
        let routing = self.routes.as_ref().map(Ingresses::routing);
        let is_unknown = ports.as_ref().is_some_and(|ports| ports.generation == 0)
            || routing.as_ref().is_some_and(|routing| routing.generation == 0);
        if is_unknown {
            return Err(Box::new(later("which hosts are served here is not known yet")));
        }
        let spoken = if self.tls.is_some() { Spoken::Https } else { Spoken::Http };
        let of_port = ports.as_ref().and_then(|ports| ports.get(self.port)).filter(|port| port.protocol == spoken);
        let has_certificate = |secret: &SecretKey| self.gateways.as_ref().is_some_and(|of| of.certificates.has(secret));
        let listener = of_port.and_then(|port| port.listener(&to.name, has_certificate));
        let asked = Asked::new(path, uri.query(), request.method(), request.headers());
        let of_gateway = || listener.map_or(Ok(None), |listener| listener.find(&to.name, &asked));
        let of_ingress = || routing.as_ref().and_then(|routing| routing.routes.find(&to.name, path));
        let ingress = routing.as_ref().and_then(|routing| routing.claim(&to.name));
        let found = match listener.zip(ingress) {
            Some((listener, ingress)) if ingress.is_before(listener.claim(&to.name)) => {
                of_ingress().map_or_else(of_gateway, |found| Ok(Some(found)))
            }
            _ => of_gateway().map(|found| found.or_else(of_ingress)),
        };
        let found = found.map_err(|TooLong| {
            let words = format!(
                "more than {MATCHED_BYTES_MAX} bytes of the request would have to be compared with regular expressions: its path, \
                 its query or its headers are too long for so many of them"
            );
            Box::new(say(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, &words))
        })?;
        found.cloned().ok_or_else(|| {
            let kind = match grpc::is_call(request.headers()) {
                true => "GRPCRoute",
                false if routing.is_some() => "Ingress",
                false => "HTTPRoute",
            };
            let (host, path) = (cut(&to.name), cut(path));
            Box::new(say(StatusCode::NOT_FOUND, &format!("no {kind} has a rule for host {host:?} and path {path:?}")))
        })
    }

    /// The Service's port that a rule leads to, and what is changed for it beside; why there is none.
    fn route(&self, rule: &Rule) -> Result<(Route, Option<Arc<Filters>>), String> {
        let by_number;
        let (key, port, filters) = match &rule.backend {
            Backend::Service { key, port } => (key.clone(), port, None),
            Backend::Other(what) => return Err(format!("{} leads to {what}, which is no Service", rule.origin)),
            Backend::Nobody(why) => return Err(format!("{}: {why}", rule.origin)),
            Backend::Redirect(_) => return Err(format!("{} leads elsewhere", rule.origin)),
            Backend::Split(all) => {
                let chosen = change::choose(all, &mut rand::rng());
                let chosen = chosen.ok_or_else(|| format!("{}: its rule has no backend", rule.origin))?;
                let target = chosen.target.as_ref().map_err(|why| format!("{}: {why}", rule.origin))?;
                by_number = PortName::Number(target.port);
                ((target.namespace.clone(), target.name.clone()), &by_number, Some(chosen.filters.clone()))
            }
        };
        self.service(&rule.origin, &key, port).map(|route| (route, filters))
    }

    /// A port of a Service; why it is not there.
    pub(super) fn service(
        &self,
        origin: &Origin,
        key: &(Arc<str>, Arc<str>),
        port: &PortName,
    ) -> Result<Route, String> {
        let snapshot = self.proxy.discovery.snapshot();
        let Some(service) = snapshot.by_key(key) else {
            return Err(format!("{origin} leads to service {}/{}, which does not exist", key.0, key.1));
        };
        let at = service.ports.iter().position(|of| {
            of.protocol == Protocol::Tcp
                && match port {
                    PortName::Number(number) => of.port == *number,
                    PortName::Name(name) => of.name == **name,
                }
        });
        let route = at.and_then(|at| self.proxy.routes.find(service, at, Side::Gateway));
        route.ok_or_else(|| {
            format!("{origin} leads to port {port} of service {}/{}, which it does not have", key.0, key.1)
        })
    }

    /// Asks within what the rule allows.
    async fn ask(
        &self,
        source: &Source,
        rule: &Rule,
        route: Route,
        request: Request<Body>,
    ) -> Result<Response<Body>, Error> {
        let options = &rule.options;
        if options.body_bytes_max.is_none() && options.silence_max.is_none() {
            return self.proxy.call_route(source, route, request).await;
        }
        let silence = options.silence_max.map(Silence::new);
        let (head, body) = request.into_parts();
        let (body, is_larger) = bounds::sent(body, options.body_bytes_max, silence.clone());
        let asked = Box::pin(self.proxy.call_route(source, route, Request::from_parts(head, body)));
        let answered = match &silence {
            None => asked.await,
            // Who has not answered by then is not waited for.
            Some(silence) => tokio::select! {
                answered = asked => answered,
                () = silence.over() => Err(Error::Late),
            },
        };
        match answered {
            Err(error) if is_larger.load(Relaxed) => {
                tracing::debug!(%error, "a body is larger than its route allows");
                Ok(too_large(options.body_bytes_max.unwrap_or_default()))
            }
            Err(error) => Ok(refuse(&error)),
            Ok(response) if response.status() == StatusCode::SWITCHING_PROTOCOLS => Ok(response),
            Ok(response) => Ok(match options.silence_max {
                Some(max) => bounds::received(response, max),
                None => response,
            }),
        }
    }
}

/// Of what is about to change: an answer that nobody keeps.
fn later(why: &str) -> Response<Body> {
    let mut response = say(StatusCode::SERVICE_UNAVAILABLE, why);
    response.headers_mut().insert(RETRY_AFTER, RETRY_AFTER_SECONDS);
    response
}

fn too_large(bytes_max: u64) -> Response<Body> {
    say(StatusCode::PAYLOAD_TOO_LARGE, &format!("the request's body has more than {bytes_max} bytes"))
}

fn cut(text: &str) -> &str {
    let end = (0..=REPEATED_MAX.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    &text[..end]
}

/// The same with TLS. Whoever came to a port that the request does not name was sent here by something that knows the usual ones.
fn redirect(to: &To, secure_port: u16, request: &Request<Body>) -> Result<Response<Body>, Error> {
    let has_port = to.written().len() > to.host().len();
    let port = if has_port && secure_port != 443 { format!(":{secure_port}") } else { String::new() };
    let path = request.uri().path_and_query().map_or("/", PathAndQuery::as_str);
    let location = HeaderValue::try_from(format!("https://{}{port}{path}", to.host()));
    let location = location.map_err(|_| Error::Malformed("it names no place that there is with TLS"))?;
    let mut response = say(StatusCode::PERMANENT_REDIRECT, "this host is served with TLS");
    response.headers_mut().insert(LOCATION, location);
    Ok(response)
}

/// Whether a name is one of those by which proxies say who has sent a request. Programs that know headers as variables do not tell
/// `_` from `-`.
fn is_proxys(name: &HeaderName) -> bool {
    let name = name.as_str();
    let is_prefix = |prefix: &str| {
        name.len() >= prefix.len()
            && name.bytes().zip(prefix.bytes()).all(|(of, wanted)| of == wanted || (of == b'_' && wanted == b'-'))
    };
    is_prefix("x-forwarded-")
        || ["forwarded", "x-real-ip"].iter().any(|other| name.len() == other.len() && is_prefix(other))
}

/// Says who has sent the request, and how it came.
fn tell(headers: &mut HeaderMap, to: &To, client: IpAddr, port: u16, has_tls: bool) {
    let spoofed: Vec<HeaderName> = headers.keys().filter(|name| is_proxys(name)).cloned().collect();
    for name in spoofed {
        headers.remove(name);
    }
    let client = client.to_canonical();
    let protocol = if has_tls { "https" } else { "http" };
    let mut forwarded = match client {
        IpAddr::V4(client) => format!("for={client}"),
        IpAddr::V6(client) => format!("for=\"[{client}]\""),
    };
    // What an authority may have a header may have, too.
    if let Some(Ok(host)) = to.authority.as_ref().map(|of| HeaderValue::from_str(of.as_str())) {
        forwarded.push_str(&format!(";host=\"{}\"", to.written()));
        // The same for whoever answers, whatever else the request said.
        headers.insert(HOST, host.clone());
        headers.insert(FORWARDED_HOST, host);
    }
    forwarded.push_str(&format!(";proto={protocol}"));
    if let (Ok(client), Ok(forwarded)) = (HeaderValue::try_from(client.to_string()), HeaderValue::try_from(forwarded)) {
        headers.insert(FORWARDED_FOR, client.clone());
        headers.insert(REAL_IP, client);
        headers.insert(FORWARDED, forwarded);
    }
    headers.insert(FORWARDED_PROTO, HeaderValue::from_static(protocol));
    headers.insert(FORWARDED_PORT, HeaderValue::from(port));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::retry;

    fn request(uri: &str, host: Option<&str>) -> Request<Body> {
        let mut request = Request::get(uri).body(retry::empty()).unwrap();
        if let Some(host) = host {
            request.headers_mut().insert(HOST, host.parse().unwrap());
        }
        request
    }

    #[test]
    fn whom_a_request_names() {
        for (uri, host, name, written) in [
            ("/", Some("Example.COM"), "example.com", "Example.COM"),
            ("/", Some("example.com.:8080"), "example.com", "example.com.:8080"),
            ("/", Some("[::1]:80"), "[::1]", "[::1]:80"),
            ("http://a.x/", Some("b.x"), "a.x", "a.x"),
            ("/", None, "", ""),
            ("/", Some(""), "", ""),
        ] {
            let to = To::of(&request(uri, host)).unwrap();
            assert_eq!((&*to.name, to.written()), (name, written), "{uri} {host:?}");
        }
        assert!(To::of(&request("/", Some("a b"))).is_err());
    }

    #[test]
    fn a_redirect_names_a_port_where_the_request_did() {
        for (host, secure_port, location) in [
            ("a.x:8080", 8443, "https://a.x:8443/p?q"),
            ("a.x", 8443, "https://a.x/p?q"),
            ("a.x:80", 443, "https://a.x/p?q"),
            ("[::1]:8080", 8443, "https://[::1]:8443/p?q"),
            ("[::1]", 8443, "https://[::1]/p?q"),
        ] {
            let request = request("/p?q", Some(host));
            let response = redirect(&To::of(&request).unwrap(), secure_port, &request).unwrap();
            assert_eq!(
                (response.status().as_u16(), &response.headers()[LOCATION]),
                (308, location.parse::<HeaderValue>().as_ref().unwrap())
            );
        }
    }

    #[test]
    fn what_a_client_says_of_itself_is_replaced() {
        let mut request = request("/", Some("a.x:8080"));
        for name in [
            "x-forwarded-for",
            "x_forwarded_for",
            "x-forwarded_proto",
            "forwarded",
            "x-real-ip",
            "x_real_ip",
            "x-forwarded-host",
            "x-forwarded-prefix",
            "x-forwarded-ssl",
        ] {
            request.headers_mut().append(HeaderName::from_static(name), "spoofed".parse().unwrap());
            request.headers_mut().append(HeaderName::from_static(name), "twice".parse().unwrap());
        }
        for name in ["x-forwarded", "x-real-ips", "forwarded-by"] {
            request.headers_mut().insert(HeaderName::from_static(name), "other".parse().unwrap());
        }
        let to = To::of(&request).unwrap();
        tell(request.headers_mut(), &to, "2001:db8::1".parse().unwrap(), 8443, true);
        let mut said: Vec<String> =
            request.headers().iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        said.sort();
        assert_eq!(
            said,
            [
                "forwarded-by: other",
                "forwarded: for=\"[2001:db8::1]\";host=\"a.x:8080\";proto=https",
                "host: a.x:8080",
                "x-forwarded-for: 2001:db8::1",
                "x-forwarded-host: a.x:8080",
                "x-forwarded-port: 8443",
                "x-forwarded-proto: https",
                "x-forwarded: other",
                "x-real-ip: 2001:db8::1",
                "x-real-ips: other",
            ]
        );
        tell(request.headers_mut(), &to, "::ffff:192.0.2.1".parse().unwrap(), 8080, false);
        assert_eq!(request.headers()["forwarded"], "for=192.0.2.1;host=\"a.x:8080\";proto=http");
    }
}
