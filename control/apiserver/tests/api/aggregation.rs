//! Group versions that another API server serves. That is a server of this process, which speaks TLS, and believes only who shows
//! the certificate of a front proxy.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use coracle_apiserver::{FrontProxy, Identity, Shown};
use futures::StreamExt as _;
use http::{HeaderMap, Request, Response, header};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};

use crate::{Server, admin};

const SERVICES: &str = "/apis/apiregistration.k8s.io/v1/apiservices";
const V1: &str = "/apis/apiregistration.k8s.io/v1/apiservices/v1.ext.example.com";
const THINGS: &str = "/apis/ext.example.com/v1/namespaces/default/things";

fn front_proxy() -> FrontProxy {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "front-ca");
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, FrontProxy::NAME);
    let certificate = params.signed_by(&key, &issuer).unwrap().pem();
    FrontProxy { authority: issuer.pem(), shown: Arc::new(Shown { certificate, key: key.serialize_pem() }) }
}

/// Waits until it is so.
async fn until(what: &str, is: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while !is() {
        assert!(tokio::time::Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// What was asked: path with query, headers, body.
type Asked = (String, HeaderMap, String);

/// What one that answers is like.
struct State {
    asked: Vec<Asked>,
    /// Whether it is well.
    well: bool,
    /// Tells its document below `/openapi/v3` from another.
    hash: &'static str,
}

/// Another API server.
struct Extension {
    port: u16,
    bundle: String,
    state: Arc<Mutex<State>>,
}

impl Extension {
    /// One that lets in whom the published authority has signed.
    async fn start(front: &FrontProxy) -> Extension {
        let names = ["127.0.0.1", "ext.default.svc"].map(str::to_owned).to_vec();
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(front.authority.as_bytes()).unwrap()).unwrap();
        let clients = rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
        let tls = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let tls = tls.with_client_cert_verifier(clients.build().unwrap());
        let tls = tls.with_single_cert(vec![made.cert.der().clone()], key).unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(Mutex::new(State { asked: Vec::new(), well: true, hash: "ABC" }));
        let extension = Extension { port, bundle: STANDARD.encode(made.cert.pem()), state: state.clone() };
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, state) = (acceptor.clone(), state.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let service = hyper::service::service_fn(move |request| answer(request, state.clone()));
                    let connection =
                        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                    let _ = connection.with_upgrades().await;
                });
            }
        });
        extension
    }

    /// What was asked of it below a path by others than the API server itself.
    fn asked(&self, path: &str) -> Vec<Asked> {
        let state = self.state.lock();
        state.asked.iter().filter(|(at, headers, _)| at.starts_with(path) && !is_of_itself(headers)).cloned().collect()
    }

    /// What the API server itself has asked at a path: the headers.
    fn asked_by_itself(&self, path: &str) -> Vec<HeaderMap> {
        let state = self.state.lock();
        let asked = state.asked.iter().filter(|(at, headers, _)| at == path && is_of_itself(headers));
        asked.map(|(_, headers, _)| headers.clone()).collect()
    }

    fn is_well(&self, well: bool) {
        self.state.lock().well = well;
    }

    /// Changes something of the APIService, and waits until the API server has asked what it serves since.
    async fn asked_anew(&self, server: &Server, version_priority: u32) {
        let before = self.asked_by_itself("/openapi/v3").len();
        let changed = server.call("PATCH", V1, json!({"spec": {"versionPriority": version_priority}})).await;
        assert_eq!(changed.0, 200, "{}", changed.1);
        until("it is asked", || self.asked_by_itself("/openapi/v3").len() > before).await;
    }

    /// Makes the Service and the APIService that lead here.
    async fn register(&self, server: &Server) {
        let spec = json!({"type": "ExternalName", "externalName": "localhost"});
        server.make("/api/v1/namespaces/default/services", json!({"metadata": {"name": "ext"}, "spec": spec})).await;
        server.make(SERVICES, self.api_service()).await;
    }

    fn api_service(&self) -> Value {
        json!({
            "metadata": {"name": "v1.ext.example.com"},
            "spec": {
                "group": "ext.example.com", "version": "v1", "groupPriorityMinimum": 2000, "versionPriority": 10,
                "caBundle": self.bundle, "service": {"namespace": "default", "name": "ext", "port": self.port},
            },
        })
    }
}

/// Whether it is the API server's own question.
fn is_of_itself(headers: &HeaderMap) -> bool {
    headers.get("user-agent").is_some_and(|agent| agent == "kube-aggregator")
}

async fn answer(
    mut request: Request<hyper::body::Incoming>,
    state: Arc<Mutex<State>>,
) -> Result<Response<Body>, hyper::Error> {
    let (path, headers) = (request.uri().to_string(), request.headers().clone());
    let upgrade = headers.contains_key(header::UPGRADE).then(|| hyper::upgrade::on(&mut request));
    let body = request.into_body().collect().await?.to_bytes();
    let (known, own) = (headers.get("if-none-match").cloned(), is_of_itself(&headers));
    let (well, hash) = {
        let mut state = state.lock();
        state.asked.push((path.clone(), headers, String::from_utf8_lossy(&body).into_owned()));
        (state.well, state.hash)
    };
    let json = |value: Value| {
        Response::builder().header("content-type", "application/json").body(Body::from(value.to_string())).unwrap()
    };
    if !well {
        return Ok(Response::builder().status(500).body(Body::from("unwell")).unwrap());
    }
    let thing = json!({"resource": "things", "singularResource": "thing", "verbs": ["get", "list", "create", "watch"], "scope": "Namespaced",
        "shortNames": ["thg"], "responseKind": {"group": "ext.example.com", "version": "v1", "kind": "Thing"}});
    Ok(match path.split('?').next().unwrap_or_default() {
        "/apis" => json(
            json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": [
                {"metadata": {"name": "ext.example.com"}, "versions": [{"version": "v1", "resources": [thing], "freshness": "Current"}]},
            ]}),
        ),
        "/apis/ext.example.com/v1" => json(
            json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "ext.example.com/v1", "resources": [
                {"name": "things", "singularName": "thing", "namespaced": true, "kind": "Thing", "verbs": ["get", "list", "create", "watch"]},
            ]}),
        ),
        "/openapi/v3" => {
            let url = format!("/openapi/v3/apis/ext.example.com/v1?hash={hash}");
            json(json!({"paths": {"apis/ext.example.com/v1": {"serverRelativeURL": url}}}))
        }
        "/openapi/v3/apis/ext.example.com/v1" => json(json!({"openapi": "3.0.0", "info": {"title": "ext"}})),
        "/openapi/v2" if known.is_some_and(|known| known == "\"one\"") => {
            Response::builder().status(304).body(Body::empty()).unwrap()
        }
        "/openapi/v2" => {
            let mut response = json(json!({
                "paths": {"/apis/ext.example.com/v1/things": {"get": {"responses": {"200": {"description": "OK", "schema": {"$ref": "#/definitions/Thing"}}}}}},
                "definitions": {"Thing": {"type": "object"}},
            }));
            response.headers_mut().insert("etag", "\"one\"".parse().unwrap());
            response
        }
        // A head, and a body without an end.
        path if path == "/apis/endless.example.com/v1" || path.ends_with("/things/endless") => {
            let body = futures::stream::iter([Ok::<_, std::convert::Infallible>(Bytes::from_static(b"{"))]);
            Response::new(Body::from_stream(body.chain(futures::stream::pending())))
        }
        "/apis/moved.example.com/v1" => {
            Response::builder().status(302).header("location", "/elsewhere").body(Body::empty()).unwrap()
        }
        // It is silent to others than the API server itself.
        "/apis/silent.example.com/v1" if !own => std::future::pending().await,
        path if path.ends_with("/things/moved") => {
            let moved = Response::builder().status(302).header("location", "https://elsewhere.example.com/");
            moved.body(Body::from("moved")).unwrap()
        }
        path if path.ends_with("/things/tunnel") => {
            let upgrade = upgrade.expect("an upgrade");
            tokio::spawn(async move {
                let mut stream = TokioIo::new(upgrade.await.expect("upgraded"));
                let (mut read, mut write) = tokio::io::split(&mut stream);
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
            let response = Response::builder().status(101).header("connection", "Upgrade").header("upgrade", "echo");
            response.body(Body::empty()).unwrap()
        }
        _ if path.contains("watch=true") => {
            let events = futures::stream::iter(["{\"type\":\"ADDED\"}\n", "{\"type\":\"MODIFIED\"}\n"]);
            let events = events
                .map(|event| Ok::<_, std::convert::Infallible>(Bytes::from(event)))
                .chain(futures::stream::pending());
            Response::builder().header("content-type", "application/json").body(Body::from_stream(events)).unwrap()
        }
        _ => {
            let mut response = json(json!({"kind": "Thing", "path": path, "body": String::from_utf8_lossy(&body)}));
            response.headers_mut().insert("x-kubernetes-pf-flowschema-uid", "theirs".parse().unwrap());
            *response.status_mut() = if body.is_empty() { http::StatusCode::OK } else { http::StatusCode::CREATED };
            response
        }
    })
}

fn status(object: &Value) -> (String, String) {
    let text = |field: &str| object["status"]["conditions"][0][field].as_str().unwrap_or_default().to_owned();
    (text("status"), text("reason"))
}

fn is(status_: &str, reason: &str) -> impl Fn(&Value) -> bool {
    let expected = (status_.to_owned(), reason.to_owned());
    move |object| status(object) == expected
}

async fn started() -> (Server, Extension) {
    let front = front_proxy();
    let extension = Extension::start(&front).await;
    let server = Server::start_with(|config| config.front_proxy = Some(Arc::new(front))).await;
    extension.register(&server).await;
    server.says(V1, is("True", "Passed")).await;
    (server, extension)
}

impl Server {
    /// Waits until a document says so.
    async fn tells(&self, path: &str, accept: &str, what: impl Fn(&Value) -> bool) -> Value {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        loop {
            let request = Request::builder().uri(path).header("accept", accept).body(Body::empty()).unwrap();
            let found = self.send(Some(admin()), request).await.json();
            if what(&found) {
                return found;
            }
            assert!(tokio::time::Instant::now() < deadline, "{path}: {found:#}");
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn requests_go_to_who_serves_them_with_who_asks() {
    let (server, extension) = started().await;
    let mut who = Identity::authenticated("alice", vec!["team".to_owned()]);
    who.uid = "u-1".to_owned();
    who.extra.insert("scopes/x".to_owned(), vec!["one".to_owned(), "two".to_owned()]);
    let ask = |path: &str, body: &str| {
        let request = Request::builder().method(if body.is_empty() { "GET" } else { "POST" }).uri(path);
        // What a client says of itself there is nobody's word.
        let request = request.header("x-remote-user", "admin").header("x-remote-group", "system:masters");
        let request = request.header("x-remote-extra-forged", "yes").header("x-own", "stays");
        request.body(Body::from(body.to_owned())).unwrap()
    };
    // Whoever may not, may not, and it is not asked.
    let refused = server.send(Some(who.clone()), ask(THINGS, "")).await;
    assert_eq!((refused.code, refused.json()["reason"].clone()), (403, json!("Forbidden")));
    assert!(extension.asked(THINGS).is_empty());
    let rule = json!({"apiGroups": ["ext.example.com"], "resources": ["things"], "verbs": ["list", "create"]});
    let roles = "/apis/rbac.authorization.k8s.io/v1/clusterroles";
    server.make(roles, json!({"metadata": {"name": "things"}, "rules": [rule]})).await;
    let role = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "things"});
    let binding =
        json!({"metadata": {"name": "things"}, "subjects": [{"kind": "User", "name": "alice"}], "roleRef": role});
    server.make("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", binding).await;
    let path = format!("{THINGS}?labelSelector=a%3Db&x=1");
    let answered = server.send(Some(who.clone()), ask(&path, "{\"own\":1}")).await;
    assert_eq!((answered.code, answered.json()["body"].clone()), (201, json!("{\"own\":1}")));
    // Where it belonged here is said, not where it did there.
    assert_ne!(answered.headers["x-kubernetes-pf-flowschema-uid"], "theirs");
    let asked = extension.asked(THINGS);
    let [(at, headers, body)] = asked.as_slice() else { panic!("{asked:?}") };
    assert_eq!((at.as_str(), body.as_str()), (path.as_str(), "{\"own\":1}"));
    let all = |name: &str| headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect::<Vec<_>>();
    assert_eq!(all("x-remote-user"), ["alice"]);
    assert_eq!(all("x-remote-uid"), ["u-1"]);
    assert_eq!(all("x-remote-group"), ["team", "system:authenticated"]);
    assert_eq!(all("x-remote-extra-scopes%2fx"), ["one", "two"]);
    assert!(all("x-remote-extra-forged").is_empty() && all("authorization").is_empty());
    assert_eq!(all("x-own"), ["stays"]);
}

/// Everybody who is known may read about APIs: at paths that are no resources, and only there.
#[tokio::test]
async fn what_was_not_understood_goes_to_nobody() {
    let (server, extension) = started().await;
    let who = Identity::authenticated("alice", vec![]);
    let ask = async |who: &Identity, path: &str| {
        let request = Request::builder().uri(path).body(Body::empty()).unwrap();
        server.send(Some(who.clone()), request).await
    };
    let at = "/apis/ext.example.com/v1";
    assert_eq!(ask(&who, at).await.code, 200);
    for path in [
        "/namespaces//things/x",
        "//things",
        "/things/x/proxy/../../y",
        "/a/b/c/d/../../..",
        "/namespaces/default/things/x/part/more",
        "/namespaces/default/things/x%2Fpart",
        "/namespaces/default/things/%2e%2e",
        "/%6eamespaces/default/things",
    ] {
        let answer = ask(&who, &format!("{at}{path}")).await;
        assert!(matches!(answer.code, 403 | 404), "{path}: {}", answer.code);
        assert_eq!(ask(&admin(), &format!("{at}{path}")).await.code, 404, "{path}");
    }
    for path in ["/../../..", "/things"] {
        let answer = ask(&who, &format!("/openapi/v3{at}{path}")).await;
        assert_eq!(answer.code, 404, "{path}");
    }
    // The old path of watches is of resources, and read.
    for (method, path, code) in [
        ("POST", "/watch/namespaces/default/things", 405),
        ("DELETE", "/watch/namespaces/default/things/x", 405),
        ("GET", "/watch/namespaces/default/things/x/tunnel", 404),
    ] {
        let request = Request::builder().method(method).uri(format!("{at}{path}")).body(Body::empty()).unwrap();
        assert_eq!(server.send(Some(admin()), request).await.code, code, "{method} {path}");
    }
    // Who cannot be named there is not taken for somebody else.
    let mut odd = admin();
    odd.groups.push("a\nb".to_owned());
    let answer = ask(&odd, THINGS).await;
    assert_eq!(answer.code, 400, "{}", answer.json());
    let state = extension.state.lock();
    let asked = state.asked.iter().map(|(path, ..)| path);
    let odd: Vec<&String> = asked.filter(|path| path.contains("things") || path.contains("..")).collect();
    assert!(odd.is_empty(), "{odd:?}");
}

/// Each of these is looked at by whoever asks it whether it is there.
#[tokio::test]
async fn another_server_is_asked_now_and_then_whatever_happens_beside_it() {
    let (server, extension) = started().await;
    let at = "/apis/ext.example.com/v1";
    let before = extension.asked_by_itself(at).len();
    for number in 0..20 {
        let mut object = extension.api_service();
        object["metadata"]["name"] = format!("v1.gone{number}.example.com").into();
        object["spec"]["group"] = format!("gone{number}.example.com").into();
        object["spec"]["service"]["name"] = "gone".into();
        server.make(SERVICES, object).await;
        let path = format!("{SERVICES}/v1.gone{number}.example.com");
        server.says(&path, is("False", "ServiceNotFound")).await;
    }
    let asked = extension.asked_by_itself(at).len() - before;
    // One round is three attempts; half a minute may have passed.
    assert!(asked < 10, "it was asked {asked} times");
}

#[tokio::test]
async fn documents_that_are_the_same_are_not_read_again() {
    let (server, extension) = started().await;
    let has = |document: &Value| !document["paths"]["/apis/ext.example.com/v1/things"].is_null();
    server.tells("/openapi/v2", "application/json", has).await;
    let read = || extension.asked_by_itself("/openapi/v2");
    assert_eq!(read().len(), 1);
    for priority in [11, 12] {
        extension.asked_anew(&server, priority).await;
    }
    assert_eq!(read().len(), 1, "its types are the same");
    // Other types elsewhere, perhaps; it says itself that this document is the same.
    extension.state.lock().hash = "DEF";
    extension.asked_anew(&server, 13).await;
    until("the document is asked for", || read().len() == 2).await;
    for priority in [14, 15] {
        extension.asked_anew(&server, priority).await;
    }
    let read = read();
    assert_eq!(
        read.iter().map(|headers| headers.get("if-none-match").cloned()).collect::<Vec<_>>(),
        [None, Some("\"one\"".parse().unwrap())]
    );
    assert!(has(&server.get("/openapi/v2").await.1));
}

#[tokio::test]
async fn whether_another_server_answers_is_known_by_the_head_of_its_answer() {
    let (server, extension) = started().await;
    let of = |name: &str| {
        let mut object = extension.api_service();
        object["metadata"]["name"] = format!("v1.{name}.example.com").into();
        object["spec"]["group"] = format!("{name}.example.com").into();
        object
    };
    server.make(SERVICES, of("endless")).await;
    server.says(&format!("{SERVICES}/v1.endless.example.com"), is("True", "Passed")).await;
    let says = async |name: &str, message: String| {
        let path = format!("{SERVICES}/v1.{name}.example.com");
        let found = server.says(&path, is("False", "FailedDiscoveryCheck")).await;
        assert_eq!(found["status"]["conditions"][0]["message"], message);
    };
    server.make(SERVICES, of("moved")).await;
    let url = format!("https://localhost:{}/apis/moved.example.com/v1", extension.port);
    says("moved", format!("failing or missing response from {url}: bad status from {url}: 302")).await;
    // Who asks what one serves does not wait for it as for an answer of another kind.
    server.make(SERVICES, of("silent")).await;
    server.says(&format!("{SERVICES}/v1.silent.example.com"), is("True", "Passed")).await;
    let request = Request::builder().uri("/apis/silent.example.com/v1").body(Body::empty()).unwrap();
    let answer = server.send(Some(admin()), request);
    let answer =
        tokio::time::timeout(Duration::from_secs(30), answer).await.expect("an answer before a minute is over");
    let message = b"error trying to reach service: context deadline exceeded\n";
    assert_eq!((answer.code, answer.bytes.as_slice()), (503, message.as_slice()));
    // What leads nowhere has no address.
    let ports = json!([{"port": extension.port}]);
    let service = json!({"metadata": {"name": "lost"}, "spec": {"ports": ports}});
    server.make("/api/v1/namespaces/default/services", service).await;
    let slice = json!({
        "metadata": {"name": "lost", "labels": {"kubernetes.io/service-name": "lost"}}, "addressType": "IPv4",
        "ports": [{"name": "", "port": 1}],
        "endpoints": [{"addresses": ["10.1.2.3"], "targetRef": {"kind": "Pod", "name": "none", "namespace": "default"}}],
    });
    server.make("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices", slice).await;
    let mut lost = of("lost");
    lost["spec"]["service"]["name"] = "lost".into();
    server.make(SERVICES, lost).await;
    says("lost", "no endpoints available for service \"lost\"".to_owned()).await;
}

#[tokio::test]
async fn another_server_sends_nobody_elsewhere() {
    let (server, _extension) = started().await;
    let request = Request::builder().uri(format!("{THINGS}/moved")).body(Body::empty()).unwrap();
    let answer = server.send(Some(admin()), request).await;
    assert_eq!((answer.code, answer.headers.get("location")), (502, None));
    let message = b"the backend attempted to redirect this request, which is not permitted";
    assert_eq!(answer.bytes.as_slice(), message.as_slice());
}

#[tokio::test]
async fn an_answer_of_another_server_is_whole_in_time_or_breaks_off() {
    let (server, _extension) = started().await;
    let mut request = Request::builder().uri(format!("{THINGS}/endless?timeout=1s")).body(Body::empty()).unwrap();
    request.extensions_mut().insert(admin());
    let response = tower::ServiceExt::oneshot(server.api.router(), request).await.unwrap();
    assert_eq!(response.status(), 200);
    let read = tokio::time::timeout(Duration::from_secs(20), response.into_body().collect()).await;
    assert!(read.expect("it ends").is_err(), "what is not whole is not taken for whole");
}

#[tokio::test]
async fn watches_and_upgrades_go_through() {
    let (server, _extension) = started().await;
    let mut request = Request::builder().uri(format!("{THINGS}?watch=true")).body(Body::empty()).unwrap();
    request.extensions_mut().insert(admin());
    let response = tower::ServiceExt::oneshot(server.api.router(), request).await.unwrap();
    let mut events = response.into_body().into_data_stream();
    let mut text = String::new();
    while text.matches('\n').count() < 2 {
        let next = tokio::time::timeout(Duration::from_secs(20), events.next()).await.expect("in time");
        text.push_str(std::str::from_utf8(&next.expect("an event").unwrap()).unwrap());
    }
    assert_eq!(text, "{\"type\":\"ADDED\"}\n{\"type\":\"MODIFIED\"}\n");
    // Upgrades need a connection.
    let router = server.api.router().layer(axum::Extension(admin()));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let head = format!("GET {THINGS}/tunnel HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: echo\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut read = Vec::new();
    let within = Duration::from_secs(20);
    while !read.ends_with(b"\r\n\r\n") {
        read.push(tokio::time::timeout(within, stream.read_u8()).await.expect("in time").unwrap());
    }
    assert!(read.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&read));
    stream.write_all(b"through").await.unwrap();
    let mut echo = [0; 7];
    tokio::time::timeout(within, stream.read_exact(&mut echo)).await.expect("in time").unwrap();
    assert_eq!(&echo, b"through");
}

#[tokio::test]
async fn what_others_serve_is_told_with_what_is_served_here() {
    let (server, extension) = started().await;
    let aggregated = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let of = |list: &Value| {
        list["items"].as_array().unwrap().iter().find(|item| item["metadata"]["name"] == "ext.example.com").cloned()
    };
    let is_current = |list: &Value| of(list).is_some_and(|group| group["versions"][0]["freshness"] == "Current");
    let list = server.tells("/apis", aggregated, is_current).await;
    assert_eq!(of(&list).unwrap()["versions"][0]["resources"][0]["shortNames"], json!(["thg"]));
    let (_, groups) = server.get("/apis").await;
    let group =
        groups["groups"].as_array().unwrap().iter().find(|group| group["name"] == "ext.example.com").cloned().unwrap();
    assert_eq!(group["preferredVersion"]["groupVersion"], "ext.example.com/v1");
    assert_eq!(server.get("/apis/ext.example.com").await.1["versions"], group["versions"]);
    assert_eq!(server.get("/apis/ext.example.com/v1").await.1["resources"][0]["name"], "things");
    assert_eq!(server.get("/apis/ext.example.com/v2").await, (404, server.get("/apis/apps/v2").await.1));
    let index = server
        .tells("/openapi/v3", "application/json", |index| !index["paths"]["apis/ext.example.com/v1"].is_null())
        .await;
    let url = index["paths"]["apis/ext.example.com/v1"]["serverRelativeURL"].as_str().unwrap().to_owned();
    assert_eq!(url, "/openapi/v3/apis/ext.example.com/v1?hash=ABC");
    assert_eq!(server.get(&url).await.1["info"]["title"], "ext");
    // It is asked for in the name of who asks, as everything else.
    let asked = extension.asked("/openapi/v3/apis/ext.example.com/v1");
    assert!(asked.iter().any(|(_, headers, _)| headers["x-remote-user"] == "admin"), "{asked:?}");
    let has = |document: &Value| !document["paths"]["/apis/ext.example.com/v1/things"].is_null();
    let document = server.tells("/openapi/v2", "application/json", has).await;
    assert_eq!(document["definitions"]["Thing"], json!({"type": "object"}));
    // One that does not answer any more is told of as one of which nothing new is known.
    extension.is_well(false);
    let gone = server.call("PATCH", V1, json!({"spec": {"versionPriority": 11}})).await;
    assert_eq!(gone.0, 200, "{}", gone.1);
    let unwell = server.says(V1, is("False", "FailedDiscoveryCheck")).await;
    server.measures("aggregator_unavailable_apiservice{name=\"v1.ext.example.com\"} 1").await;
    let reason = "name=\"v1.ext.example.com\",reason=\"FailedDiscoveryCheck\"";
    server.measures(&format!("aggregator_unavailable_apiservice_total{{{reason}}} 1")).await;
    let message = unwell["status"]["conditions"][0]["message"].as_str().unwrap().to_owned();
    let url = format!("https://localhost:{}/apis/ext.example.com/v1", extension.port);
    assert_eq!(message, format!("failing or missing response from {url}: bad status from {url}: 500"));
    let is_stale = |list: &Value| of(list).is_some_and(|group| group["versions"][0]["freshness"] == "Stale");
    let list = server.tells("/apis", aggregated, is_stale).await;
    assert_eq!(of(&list).unwrap()["versions"][0]["resources"][0]["resource"], "things");
    let request = Request::builder().uri(THINGS).body(Body::empty()).unwrap();
    let answer = server.send(Some(admin()), request).await;
    assert_eq!((answer.code, answer.bytes.as_slice()), (503, b"service unavailable\n".as_slice()));
    assert_eq!(answer.headers["content-type"], "text/plain; charset=utf-8");
    // It is noticed when it is well again, though nothing here has changed.
    extension.is_well(true);
    server.says(V1, is("True", "Passed")).await;
    assert_eq!(server.get(THINGS).await.0, 200);
    assert_eq!(server.call("DELETE", V1, Value::Null).await.0, 200);
    assert_eq!(server.get(THINGS).await.0, 404);
    server.tells("/apis", aggregated, |list| of(list).is_none()).await;
}

#[tokio::test]
async fn why_another_server_is_not_there_is_said() {
    let server = Server::start().await;
    let extension = Extension::start(&front_proxy()).await;
    let mut object = extension.api_service();
    object["spec"]["service"] = json!({"namespace": "default", "name": "web"});
    server.make(SERVICES, object).await;
    let says = async |reason: &str, message: &str| {
        let found = server.says(V1, is("False", reason)).await;
        assert_eq!(found["status"]["conditions"][0]["message"], message);
    };
    says("ServiceNotFound", "service/web in \"default\" is not present").await;
    let services = "/api/v1/namespaces/default/services";
    server.make(services, json!({"metadata": {"name": "web"}, "spec": {"ports": [{"name": "p", "port": 444}]}})).await;
    says("ServicePortError", "service/web in \"default\" is not listening on port 443").await;
    let ports = json!({"spec": {"ports": [{"name": "p", "port": 443}]}});
    assert_eq!(server.call("PATCH", &format!("{services}/web"), ports).await.0, 200);
    says("EndpointsNotFound", "cannot find endpointslices for service/web in \"default\"").await;
    let slice = json!({
        "metadata": {"name": "web", "labels": {"kubernetes.io/service-name": "web"}}, "addressType": "IPv4",
        "ports": [{"name": "other", "port": 1}], "endpoints": [{"addresses": ["10.1.2.3"]}],
    });
    server.make("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices", slice).await;
    says("MissingEndpoints", "endpointslices for service/web in \"default\" have no addresses with port name \"p\"")
        .await;
    // One that does not prove who it is, and one that does not believe this server.
    let external = json!({"spec": {"type": "ExternalName", "externalName": "localhost", "ports": null, "clusterIP": null, "clusterIPs": null}});
    let (code, answer) = server.call("PATCH", &format!("{services}/web"), external).await;
    assert_eq!(code, 200, "{answer}");
    let port = json!({"spec": {"service": {"port": extension.port}, "caBundle": null, "insecureSkipTLSVerify": true}});
    assert_eq!(server.call("PATCH", V1, port).await.0, 200);
    let found = server.says(V1, is("False", "FailedDiscoveryCheck")).await;
    let message = found["status"]["conditions"][0]["message"].as_str().unwrap().to_owned();
    assert!(message.starts_with("failing or missing response from https://localhost:"), "{message}");
}

#[tokio::test]
async fn what_is_served_here_is_served_by_nobody_else() {
    let (server, extension) = started().await;
    let taken = |name: &str, group: &str, version: &str| {
        let mut object = extension.api_service();
        object["metadata"]["name"] = name.into();
        object["spec"]["group"] = group.into();
        object["spec"]["version"] = version.into();
        object
    };
    let service = taken("v1.apps", "apps", "v1")["spec"].clone();
    let change = json!({"spec": {"service": service["service"], "caBundle": service["caBundle"]}});
    let (code, answer) = server.call("PATCH", &format!("{SERVICES}/v1.apps"), change).await;
    assert_eq!((code, &answer["details"]["causes"][0]["field"]), (422, &json!("spec.service")), "{answer}");
    let (code, _) = server.call("DELETE", &format!("{SERVICES}/v1.apps"), Value::Null).await;
    assert_eq!(code, 200);
    assert_eq!(server.call("POST", SERVICES, taken("v1.apps", "apps", "v1")).await.0, 422);
    assert_eq!(server.get("/apis/apps/v1/deployments").await.0, 200);
    // A definition has an APIService of its own, and comes before another's.
    let definition = |group: &str| {
        let schema = json!({"openAPIV3Schema": {"type": "object"}});
        let versions = json!([{"name": "v1", "served": true, "storage": true, "schema": schema}]);
        let names = json!({"plural": "things", "singular": "thing", "kind": "Thing", "listKind": "ThingList"});
        json!({"metadata": {"name": format!("things.{group}")}, "spec": {"group": group, "scope": "Namespaced", "names": names, "versions": versions}})
    };
    let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    server.make(definitions, definition("own.example.com")).await;
    let own = server.appears(&format!("{SERVICES}/v1.own.example.com")).await;
    assert_eq!(status(&own), ("True".to_owned(), "Local".to_owned()));
    assert_eq!(own["metadata"]["labels"]["kube-aggregator.kubernetes.io/automanaged"], "true");
    assert_eq!((&own["spec"]["groupPriorityMinimum"], &own["spec"]["versionPriority"]), (&json!(1000), &json!(100)));
    assert_eq!(server.call("DELETE", &format!("{definitions}/things.own.example.com"), Value::Null).await.0, 200);
    server.says(&format!("{SERVICES}/v1.own.example.com"), |found| found["code"] == 404).await;
    server.make(definitions, definition("ext.example.com")).await;
    server.says(V1, is("False", "ServedLocally")).await;
    let (code, list) = server.get(THINGS).await;
    assert_eq!((code, &list["kind"]), (200, &json!("ThingList")), "{list}");
    // What is measured here may be measured by another.
    let (_, groups) = server.get("/apis/metrics.k8s.io").await;
    assert_eq!(groups["versions"].as_array().map(Vec::len), Some(2));
    server.make(SERVICES, taken("v1beta1.metrics.k8s.io", "metrics.k8s.io", "v1beta1")).await;
    let measured = format!("{SERVICES}/v1beta1.metrics.k8s.io");
    server.says(&measured, is("True", "Passed")).await;
    let nodes = async |version: &str| {
        let (code, found) = server.get(&format!("/apis/metrics.k8s.io/{version}/nodes")).await;
        assert_eq!(code, 200, "{found}");
        found["kind"].as_str().unwrap_or_default().to_owned()
    };
    assert_eq!((nodes("v1beta1").await, nodes("v1").await), ("Thing".to_owned(), "NodeMetricsList".to_owned()));
    assert_eq!(server.call("DELETE", &measured, Value::Null).await.0, 200);
    assert_eq!(nodes("v1beta1").await, "NodeMetricsList");
}

#[tokio::test]
async fn others_know_this_server_by_what_it_has_published() {
    let front = front_proxy();
    let authority = front.authority.clone();
    let server = Server::start_with(|config| {
        config.front_proxy = Some(Arc::new(front));
        config.authority = "clients".to_owned();
    })
    .await;
    let path = "/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication";
    let published = server.appears(path).await;
    let expected = json!({
        "client-ca-file": "clients", "requestheader-client-ca-file": authority,
        "requestheader-allowed-names": "[\"front-proxy-client\"]", "requestheader-username-headers": "[\"X-Remote-User\"]",
        "requestheader-uid-headers": "[\"X-Remote-Uid\"]", "requestheader-group-headers": "[\"X-Remote-Group\"]",
        "requestheader-extra-headers-prefix": "[\"X-Remote-Extra-\"]",
    });
    assert_eq!(published["data"], expected);
    let role =
        "/apis/rbac.authorization.k8s.io/v1/namespaces/kube-system/roles/extension-apiserver-authentication-reader";
    assert_eq!(server.get(role).await.0, 200);
}
