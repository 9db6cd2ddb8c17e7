//! Requests of the node to its pods: lifecycle hooks and the substance of probes.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use coracle_api::meta::link::scheme;
use coracle_engine::{Invocation, OpenSocket, Protocol};
use coracle_proxy::{Body, BoxError, HttpService, Local};
use http::{HeaderName, HeaderValue, Request, header};
use http_body_util::BodyExt as _;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Container as Spec, GRPCAction, HTTPGetAction, LifecycleHandler, TCPSocketAction};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use parking_lot::Mutex;
use tokio::net::TcpStream;

use super::grpc;
use super::slot::Handle;
use crate::context::Context;
use crate::network::{GuestNetwork, Within, over, secured};

/// A hook's request may take this long.
const HOOK_TIMEOUT: Duration = Duration::from_secs(30);
/// What of an answer's body is read, so that its end is seen (kubelet's `maxRespBodyLength`).
const BODY_BYTES_MAX: usize = 10 << 10;
/// Requests that one probe may make, the first and those to which it is sent on (Go's HTTP client).
const REQUESTS_MAX: usize = 10;
/// What of a command's output is read (kubelet's `maxReadLength` of exec probes).
const PRINTED_BYTES_MAX: usize = 10 << 10;
/// As which client the node asks.
const USER_AGENT: &str = "kube-probe/1.37";

/// For whom the node asks.
#[derive(Clone, Copy)]
pub struct Asker<'a> {
    /// Its pod's network.
    pub network: &'a GuestNetwork,
    /// The container.
    pub spec: &'a Spec,
    /// What runs of it, to which sockets are counted.
    pub handle: &'a Handle,
}

/// Why a request of the node to a pod has led to nothing.
#[derive(Debug, PartialEq, Eq)]
pub enum Trouble {
    /// It could not be made, which says nothing about the pod.
    NotMade(String),
    /// The pod has failed it.
    Failed(String),
}

impl Trouble {
    /// In words.
    pub fn why(self) -> String {
        match self {
            Self::NotMade(why) | Self::Failed(why) => why,
        }
    }
}

/// Runs a lifecycle hook.
pub async fn run(context: &Context, asker: &Asker<'_>, hook: &LifecycleHandler) -> Result<(), String> {
    if let Some(sleep) = &hook.sleep {
        tokio::time::sleep(Duration::from_secs(sleep.seconds.max(0).unsigned_abs())).await;
        return Ok(());
    }
    if let Some(exec) = &hook.exec {
        let command = exec.command.as_deref().unwrap_or_default();
        let (code, printed) = run_command(asker, command, false).await.map_err(Trouble::why)?;
        return if code == 0 { Ok(()) } else { Err(format!("command {command:?} exited with {code}: {printed}")) };
    }
    let request = async {
        if let Some(get) = &hook.http_get {
            let status = http_get(context, asker, get).await.map_err(Trouble::why)?.status;
            return if status < 400 { Ok(()) } else { Err(format!("HTTP hook failed with statuscode: {status}")) };
        }
        match &hook.tcp_socket {
            Some(socket) => tcp_socket(context, asker, socket).await.map_err(Trouble::why),
            None => Ok(()),
        }
    };
    tokio::time::timeout(HOOK_TIMEOUT, request).await.unwrap_or_else(|_| Err("timed out".to_owned()))
}

/// Runs the container's component once more with these arguments; its exit code, and the beginning of what it printed. Dropping this
/// ends it. A probe has places of its own.
pub async fn run_command(asker: &Asker<'_>, args: &[String], is_probe: bool) -> Result<(i32, String), Trouble> {
    struct Ends(coracle_engine::Command);
    impl Drop for Ends {
        fn drop(&mut self) {
            self.0.kill();
        }
    }
    let Handle::Command(main) = asker.handle else {
        return Err(Trouble::NotMade("a component of wasi:http runs no commands".to_owned()));
    };
    let printed = Arc::new(Mutex::new(Vec::new()));
    let sink: Arc<dyn coracle_engine::Sink> = {
        let printed = printed.clone();
        Arc::new(move |bytes: &[u8]| {
            let mut printed = printed.lock();
            let left = PRINTED_BYTES_MAX - printed.len();
            printed.extend_from_slice(&bytes[..bytes.len().min(left)]);
        })
    };
    let invocation = Invocation {
        args: args.to_vec(),
        stdin: None,
        stdout: sink.clone(),
        stderr: sink,
        is_terminal: false,
        is_probe,
    };
    let command = main.beside(invocation).await;
    let command = Ends(command.map_err(|error| Trouble::NotMade(super::start::chain(&error)))?);
    let exit = command.0.wait().await;
    let printed = String::from_utf8_lossy(&printed.lock()).into_owned();
    Ok((exit.code(), printed))
}

/// Asks a pod's port for its health by gRPC.
pub async fn grpc(context: &Context, asker: &Asker<'_>, action: &GRPCAction) -> Result<(), Trouble> {
    let port = resolve_port(asker.spec, &IntOrString::Int(action.port)).map_err(Trouble::NotMade)?;
    let checked = match target(context, asker.network, None, port) {
        Target::Called { .. } => Err("a component of wasi:http is called, and speaks no gRPC to a node".to_owned()),
        Target::NotAllowed { host } => Err(refused(&host, port)),
        Target::Dialled { host, local } => {
            let (stream, _socket) = dial(context, asker, &host, port, local).await.map_err(Trouble::Failed)?;
            let authority = SocketAddr::new(asker.network.address.pod, port).to_string();
            let service = action.service.as_deref().unwrap_or_default();
            if action.mode.as_deref() != Some("TLS") {
                grpc::check(stream, &authority, service).await
            } else {
                match secured(stream, &host, Within::Grpc).await {
                    Ok(secured) => grpc::check(secured, &authority, service).await,
                    Err(error) => Err(format!("error: health rpc probe failed: tls: {error}")),
                }
            }
        }
    };
    checked.map_err(Trouble::Failed)
}

/// Opens a connection to a pod's port, and closes it.
pub async fn tcp_socket(context: &Context, asker: &Asker<'_>, socket: &TCPSocketAction) -> Result<(), Trouble> {
    let port = resolve_port(asker.spec, &socket.port).map_err(Trouble::NotMade)?;
    let opened = match target(context, asker.network, socket.host.as_deref(), port) {
        Target::Called { .. } => Ok(()),
        Target::NotAllowed { host } => Err(refused(&host, port)),
        Target::Dialled { host, local } => dial(context, asker, &host, port, local).await.map(drop),
    };
    opened.map_err(Trouble::Failed)
}

/// What was answered to a request of the node.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status of the last answer.
    pub status: u16,
    /// The beginning of its body.
    pub body: String,
}

/// Sends a request to a pod's port and returns the answer; redirects within the host are followed, as the kubelet does.
pub async fn http_get(context: &Context, asker: &Asker<'_>, get: &HTTPGetAction) -> Result<Answer, Trouble> {
    let mut url = url(asker.network, asker.spec, get).map_err(Trouble::NotMade)?;
    let mut host = given_host(get);
    for _ in 0..REQUESTS_MAX {
        let failed = |error: BoxError| Trouble::Failed(format!("Get \"{url}\": {error}"));
        let request = request(get, &url, host.as_deref());
        let mut request = request.map_err(|error| Trouble::NotMade(format!("Get \"{url}\": {error}")))?;
        // Counted until the answer has been read.
        let (response, _socket) = match target(context, asker.network, Some(&url.host), url.port) {
            Target::Called { .. } if url.secure => {
                return Err(failed("a component of wasi:http is called, and speaks no TLS".into()));
            }
            Target::Called { service, is_own } => {
                if is_own {
                    // It does not wait behind the requests of others. In another pod it is one of those.
                    request.extensions_mut().insert(coracle_engine::Probe);
                }
                (service.call(request).await, None)
            }
            Target::NotAllowed { host } => return Err(failed(refused(&host, url.port).into())),
            Target::Dialled { host, local } => {
                let dialled = dial(context, asker, &host, url.port, local).await;
                let (stream, socket) = dialled.map_err(|error| failed(error.into()))?;
                let answered = match url.secure {
                    true => {
                        let secured =
                            secured(stream, &host, Within::Http).await.map_err(|error| failed(error.into()))?;
                        over(TokioIo::new(secured), request).await
                    }
                    false => over(TokioIo::new(stream), request).await,
                };
                (answered, socket)
            }
        };
        let response = response.map_err(failed)?;
        let status = response.status();
        let location = match status.as_u16() {
            301 | 302 | 303 | 307 | 308 => response.headers().get(header::LOCATION).cloned(),
            _ => None,
        };
        // A guest that fails while it writes the body has not answered.
        let body = beginning(response.into_body()).await.map_err(failed)?;
        let answer = Answer { status: status.as_u16(), body };
        let Some(location) = location else { return Ok(answer) };
        let location = location.to_str().map_err(|error| failed(error.into()))?;
        match url.join(location) {
            Location::Elsewhere => return Ok(answer),
            Location::Unsupported(what) => {
                return Err(Trouble::Failed(format!("Get {what:?}: only http and https are supported")));
            }
            Location::Here { next, is_absolute } => {
                // A name that was given is for the paths of this host; a full URL brings its own.
                if is_absolute {
                    host = None;
                }
                url = next;
            }
        }
    }
    Err(Trouble::Failed(format!("Get \"{url}\": stopped after {REQUESTS_MAX} redirects")))
}

/// What a probe or hook asks for, as messages show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url {
    /// With TLS, whose certificate is not looked at.
    secure: bool,
    host: String,
    port: u16,
    /// With the query.
    path: String,
}

impl std::fmt::Display for Url {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let scheme = if self.secure { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority(), self.path)
    }
}

/// Where an answer points to.
#[derive(Debug, PartialEq, Eq)]
enum Location {
    /// The same host.
    Here { next: Url, is_absolute: bool },
    /// Another host, which is not asked.
    Elsewhere,
    /// The same host by another protocol.
    Unsupported(String),
}

impl Url {
    fn authority(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }

    fn join(&self, location: &str) -> Location {
        let location = location.split('#').next().unwrap_or_default();
        let own = if self.secure { "https" } else { "http" };
        let (scheme, rest) = scheme(location).unwrap_or((own, location));
        if rest.starts_with("//") || rest.len() < location.len() {
            let (secure, port) = match scheme.to_ascii_lowercase().as_str() {
                "http" => (false, 80),
                "https" => (true, 443),
                _ => return Location::Unsupported(location.to_owned()),
            };
            let Ok(uri) = format!("{scheme}:{rest}").parse::<http::Uri>() else { return Location::Elsewhere };
            let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
            if !host.eq_ignore_ascii_case(&self.host) {
                return Location::Elsewhere;
            }
            let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
            let next = Url { secure, host: self.host.clone(), port: uri.port_u16().unwrap_or(port), path };
            return Location::Here { next, is_absolute: true };
        }
        let own = self.path.split('?').next().unwrap_or("/");
        let path = match location.as_bytes().first() {
            Some(b'/') => location.to_owned(),
            Some(b'?') => format!("{own}{location}"),
            None => self.path.clone(),
            Some(_) => format!("{}/{location}", own.rsplit_once('/').map_or("", |(parent, _)| parent)),
        };
        Location::Here { next: Url { path, ..self.clone() }, is_absolute: false }
    }
}

/// What a request asks for.
pub fn url(network: &GuestNetwork, spec: &Spec, get: &HTTPGetAction) -> Result<Url, String> {
    let port = resolve_port(spec, &get.port)?;
    let host = get.host.as_deref().filter(|host| !host.is_empty());
    let host = host.map_or_else(|| network.address.pod.to_string(), str::to_owned);
    let path = path_of(get.path.as_deref().unwrap_or_default());
    Ok(Url { secure: get.scheme.as_deref() == Some("HTTPS"), host, port, path })
}

/// The path and query that a given path asks for: as the kubelet does it, of one that is a link to a host only what is behind that.
fn path_of(given: &str) -> String {
    let path = scheme(given).map(|(_, rest)| rest).filter(|rest| rest.starts_with("//")).unwrap_or(given);
    let path = path.strip_prefix("//").map_or(path, |rest| rest.find(['/', '?', '#']).map_or("", |at| &rest[at..]));
    if path.starts_with('/') { path.to_owned() } else { format!("/{path}") }
}

/// The `Host` that a request is to have.
fn given_host(get: &HTTPGetAction) -> Option<String> {
    let mut headers = get.http_headers.iter().flatten();
    headers.find(|header| header.name.eq_ignore_ascii_case("host")).map(|header| header.value.clone())
}

/// The beginning of a body, which is read until then or to its end.
async fn beginning(mut body: Body) -> Result<String, BoxError> {
    let mut read = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame?;
        let data = frame.data_ref().map(Bytes::as_ref).unwrap_or_default();
        let left = BODY_BYTES_MAX - read.len();
        read.extend_from_slice(&data[..data.len().min(left)]);
        if read.len() == BODY_BYTES_MAX {
            break;
        }
    }
    Ok(String::from_utf8_lossy(&read).into_owned())
}

/// How a request of the node gets there.
enum Target {
    /// A component that is called, of the pod itself or of another.
    Called { service: Arc<dyn HttpService>, is_own: bool },
    /// Another pod, to which network policies do not let this one.
    NotAllowed { host: String },
    /// A connection, to this pod's socket where it is known.
    Dialled { host: String, local: Option<SocketAddr> },
}

/// Where a probe goes: the pod, unless another host is written.
fn target(context: &Context, network: &GuestNetwork, host: Option<&str>, port: u16) -> Target {
    let own = network.address.pod;
    let host = host.filter(|host| !host.is_empty()).map_or_else(|| own.to_string(), str::to_owned);
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().ok();
    // A pod is always reached by its node, and by its probes no other that it may not reach itself.
    if let Some(other) = address.filter(|address| *address != own)
        && context.network.local(other, port).is_some()
        && !network.may_connect(SocketAddr::new(other, port), Protocol::Tcp)
    {
        return Target::NotAllowed { host };
    }
    match address.and_then(|address| context.network.local(address, port)) {
        Some(Local::Http(service)) => Target::Called { service, is_own: address == Some(own) },
        Some(Local::Tcp(at)) => Target::Dialled { host, local: Some(at) },
        None if address == Some(own) => {
            let port = context.network.table.twin_port(port);
            Target::Dialled { host, local: Some(SocketAddr::new(network.address.loopback, port)) }
        }
        None => Target::Dialled { host, local: None },
    }
}

fn request(get: &HTTPGetAction, url: &Url, host: Option<&str>) -> Result<Request<Body>, http::Error> {
    // Each is what it is said to be: a host with a path of its own in it is none.
    let uri = http::Uri::builder()
        .scheme(if url.secure { "https" } else { "http" })
        .authority(host.map_or_else(|| url.authority(), str::to_owned))
        .path_and_query(url.path.as_str())
        .build()?;
    let mut request = Request::get(uri);
    request = request.header(header::USER_AGENT, USER_AGENT).header(header::ACCEPT, "*/*");
    for given in get.http_headers.iter().flatten() {
        let name = HeaderName::try_from(&given.name)?;
        let value = HeaderValue::try_from(&given.value)?;
        if let Some(headers) = request.headers_mut() {
            match name {
                // It is the request's authority already.
                header::HOST => {}
                // One that is given replaces ours.
                header::USER_AGENT | header::ACCEPT => drop(headers.insert(name, value)),
                _ => drop(headers.append(name, value)),
            }
        }
    }
    request.body(coracle_engine::empty())
}

/// Connects to a pod, or to another host as the pod itself might: then the socket is one of the container's, as long as the second
/// is held. One to a pod is the node's own, so that a container with all that it may have open is still seen to answer.
async fn dial(
    context: &Context,
    asker: &Asker<'_>,
    host: &str,
    port: u16,
    local: Option<SocketAddr>,
) -> Result<(TcpStream, Option<OpenSocket>), String> {
    let shown = shown(host, port);
    let Some(local) = local else {
        // A probe is no way around what the pod may not reach.
        if !asker.network.may_leave() {
            return Err(format!(
                "dial tcp {shown}: connect: permission denied: it is outside of the cluster, and the pod has no annotation {}: \"true\"",
                crate::annotations::EGRESS
            ));
        }
        let too_many = || format!("dial tcp {shown}: too many files are open");
        let socket = asker.handle.open_socket().ok_or_else(too_many)?;
        let may = |to| asker.network.may_connect(to, Protocol::Tcp);
        return match context.network.outside.connect(&asker.network.namespace, host, port, may).await {
            // The last descriptors of the process are not for what pods ask for.
            Ok(stream) if !coracle_proxy::is_spare(&stream) => Err(too_many()),
            Ok(stream) => Ok((stream, Some(socket))),
            Err(error) => Err(format!("dial tcp {shown}: {}", super::start::chain(&error))),
        };
    };
    let dialled = context.network.dial(local).await.map(|stream| (stream, None));
    dialled.map_err(|error| {
        let why = match error.kind() {
            std::io::ErrorKind::ConnectionRefused => "connect: connection refused".to_owned(),
            _ => error.to_string(),
        };
        format!("dial tcp {shown}: {why}")
    })
}

fn shown(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

fn refused(host: &str, port: u16) -> String {
    format!("dial tcp {}: connect: connection refused", shown(host, port))
}

/// A port by its number or by the name it has in the container.
fn resolve_port(spec: &Spec, port: &IntOrString) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(name) => name.parse().ok().or_else(|| {
            let ports = spec.ports.iter().flatten();
            ports.clone().find(|port| port.name.as_deref() == Some(name)).map(|port| port.container_port)
        }),
    };
    let number = number.and_then(|number| u16::try_from(number).ok()).filter(|number| *number > 0);
    number.ok_or_else(|| match port {
        IntOrString::Int(number) => format!("invalid port number: {number}"),
        IntOrString::String(name) => format!("couldn't find port: {name:?} in {:?}", spec.name),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn follows_within_the_host_only() {
        let url = Url { secure: false, host: "10.1.0.2".to_owned(), port: 8080, path: "/a/b?c".to_owned() };
        let here = |port, path: &str, is_absolute| Location::Here {
            next: Url { port, path: path.to_owned(), ..url.clone() },
            is_absolute,
        };
        for (location, expected) in [
            ("/x?y#z", here(8080, "/x?y", false)),
            ("x", here(8080, "/a/x", false)),
            ("?q", here(8080, "/a/b?q", false)),
            ("", here(8080, "/a/b?c", false)),
            ("http://10.1.0.2:81/x", here(81, "/x", true)),
            ("//10.1.0.2/x", here(80, "/x", true)),
            ("/x?next=http://other.example/", here(8080, "/x?next=http://other.example/", false)),
            ("?next=http://10.1.0.2:81/", here(8080, "/a/b?next=http://10.1.0.2:81/", false)),
            ("x?y=//z", here(8080, "/a/x?y=//z", false)),
            (
                "https://10.1.0.2/x",
                Location::Here {
                    next: Url { secure: true, port: 443, path: "/x".to_owned(), ..url.clone() },
                    is_absolute: true,
                },
            ),
            ("HTTP://10.1.0.2/x", here(80, "/x", true)),
            ("ftp://10.1.0.2/", Location::Unsupported("ftp://10.1.0.2/".to_owned())),
            ("mailto:x", Location::Unsupported("mailto:x".to_owned())),
            ("http://127.0.0.1:5000/v2/", Location::Elsewhere),
            ("https://other.example/", Location::Elsewhere),
        ] {
            assert_eq!(url.join(location), expected, "{location}");
        }
        assert_eq!(url.to_string(), "http://10.1.0.2:8080/a/b?c");
    }

    #[test]
    fn the_given_host_is_the_requests_authority() {
        let get =
            json!({"port": 80, "httpHeaders": [{"name": "host", "value": "a.example"}, {"name": "X", "value": "y"}]});
        let get: HTTPGetAction = serde_json::from_value(get).unwrap();
        let url = Url { secure: false, host: "10.1.0.2".to_owned(), port: 80, path: "/".to_owned() };
        let request = request(&get, &url, given_host(&get).as_deref()).unwrap();
        assert_eq!(request.uri().to_string(), "http://a.example/");
        assert_eq!(request.headers()["x"], "y");
        assert!(!request.headers().contains_key("host"));
        assert!(super::request(&get, &url, Some("a.example/other?")).is_err(), "that is no host");
    }

    #[test]
    fn a_given_path_leads_to_no_other_host() {
        for (given, expected) in [
            ("", "/"),
            ("healthz", "/healthz"),
            ("/a?b=http://c", "/a?b=http://c"),
            ("?b", "/?b"),
            ("//other.example/x?y", "/x?y"),
            ("//other.example", "/"),
            ("http://other.example:81/x", "/x"),
            ("a:b", "/a:b"),
        ] {
            assert_eq!(path_of(given), expected, "{given}");
        }
    }

    #[test]
    fn resolves_ports_by_name() {
        let spec =
            serde_json::from_value(json!({"name": "c", "ports": [{"name": "web", "containerPort": 80}]})).unwrap();
        for (port, expected) in [
            (IntOrString::Int(8080), Ok(8080)),
            (IntOrString::String("web".to_owned()), Ok(80)),
            (IntOrString::String("81".to_owned()), Ok(81)),
            (IntOrString::String("x".to_owned()), Err("couldn't find port: \"x\" in \"c\"".to_owned())),
            (IntOrString::Int(0), Err("invalid port number: 0".to_owned())),
        ] {
            assert_eq!(resolve_port(&spec, &port), expected);
        }
    }
}
