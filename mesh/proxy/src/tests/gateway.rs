//! What comes in for Ingresses.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use coracle_discovery::SecretKey;
use coracle_discovery::gateway_api::{PortState, PortStates};
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc, watch};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::world::*;
use crate::{Body, Certificate, Certificates, GatewayRoutes, Listener, Listening, Local, OwnPort};

/// A mesh with a listener without TLS and one with.
struct Gateway {
    world: World,
    certificates: Arc<Certificates>,
    plain: SocketAddr,
    secure: SocketAddr,
}

/// A certificate of this name with its key, as PEM.
fn pair(name: &str) -> (String, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap().self_signed(&key).unwrap();
    (certificate.pem(), key.serialize_pem())
}

pub fn certificate(name: &str) -> Certificate {
    let (certificate, key) = pair(name);
    Certificate::from_pem(certificate.as_bytes(), key.as_bytes()).unwrap()
}

fn secret(name: &str) -> SecretKey {
    SecretKey { namespace: "n".into(), name: name.into() }
}

fn backend(service: &str) -> Value {
    json!({"service": {"name": service, "port": {"number": 80}}})
}

/// A rule for all paths of a host.
fn rule(host: &str, service: &str) -> Value {
    json!({"host": host, "http": {"paths": [{"pathType": "Prefix", "path": "/", "backend": backend(service)}]}})
}

impl Gateway {
    /// With the Service `web`, of which the first pod answers like this.
    async fn new(what: Local) -> Gateway {
        let world = World::new().await;
        world.start(1, what);
        world.web(&[1]).await;
        let certificates = Arc::new(Certificates::new(certificate("default.invalid")));
        let (opened, mut opens) = mpsc::unbounded_channel();
        let listening: Listening = Arc::new(move |at, address| opened.send((at, address.unwrap())).unwrap());
        let listener = |tls| Listener {
            address: ([127, 0, 0, 1], 0).into(),
            bound: None,
            tls,
            routes: world.routes.clone(),
            gateways: None,
        };
        let listeners = vec![listener(None), listener(Some(certificates.clone()))];
        tokio::spawn(world.proxy.clone().serve(listeners, listening, world.stop.clone()));
        let (told, mut hears) = mpsc::channel(16);
        tokio::spawn(world.routes.clone().run(told, world.stop.clone()));
        tokio::spawn(async move { while hears.recv().await.is_some() {} });
        let mut addresses = [([0; 4], 0).into(); 2];
        for _ in 0..2 {
            let (at, address) = tokio::time::timeout(SOON, opens.recv()).await.expect("it is listened at").unwrap();
            addresses[at] = address;
        }
        let [plain, secure] = addresses;
        Gateway { world, certificates, plain, secure }
    }

    /// An Ingress with a rule for `a.x`, known to the mesh.
    async fn ingress(&self, name: &str, annotations: Value, spec: Value) {
        self.world.ingress(name, annotations, spec);
        self.world.routed(|routing| routing.routes.find("a.x", "/").is_some()).await;
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.plain).await.unwrap()
    }

    /// As the client of this number.
    async fn connect_as(&self, client: u8) -> TcpStream {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(([127, 0, 0, client], 0).into()).unwrap();
        socket.connect(self.plain).await.unwrap()
    }

    async fn connect_tls(&self, name: &str, protocols: &[&str]) -> TlsStream<TcpStream> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder =
            rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody));
        let mut config = builder.with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        let stream = TcpStream::connect(self.secure).await.unwrap();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap()
    }

    /// The host of the certificate that is shown for a name.
    async fn shown(&self, name: &str) -> String {
        let stream = self.connect_tls(name, &[]).await;
        let certificate = stream.get_ref().1.peer_certificates().unwrap()[0].clone();
        let text = String::from_utf8_lossy(&certificate).into_owned();
        let known = ["default.invalid", "a.x", "wild.x", "renewed.x"];
        known.into_iter().find(|known| text.contains(known)).unwrap_or("?").to_owned()
    }
}

/// Trusts all, to look at what is shown.
#[derive(Debug)]
struct Anybody;

impl rustls::client::danger::ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        let algorithms = rustls::crypto::ring::default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, &algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        let algorithms = rustls::crypto::ring::default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        rustls::crypto::ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

/// Sends a request that closes its connection; the whole answer.
async fn exchange(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), head: &str, body: &str) -> String {
    let text = format!("{head}connection: close\r\n\r\n{body}");
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // Whoever is refused early may be reset.
    let _ = tokio::time::timeout(SOON, stream.read_to_end(&mut answer)).await.expect("an answer");
    String::from_utf8_lossy(&answer).into_owned()
}

/// Answers with the request as it has come.
fn mirror() -> Local {
    called(|request| async move {
        let (head, body) = request.into_parts();
        let body = body.collect().await?.to_bytes();
        let mut lines: Vec<String> =
            head.headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        lines.sort();
        let text = format!("{} {}\n{}\n{}", head.method, head.uri, lines.join("\n"), String::from_utf8_lossy(&body));
        Ok(Response::new(super::world::text(text)))
    })
    .1
}

#[tokio::test]
async fn a_request_goes_where_its_host_and_path_say_and_others_learn_why_not() {
    let gateway = Gateway::new(mirror()).await;
    let paths = json!([
        {"pathType": "Prefix", "path": "/app", "backend": backend("web")},
        {"pathType": "Exact", "path": "/gone", "backend": backend("nobody")},
        {"pathType": "Exact", "path": "/port", "backend": {"service": {"name": "web", "port": {"name": "x"}}}},
    ]);
    let root = json!({"pathType": "Exact", "path": "/", "backend": backend("web")});
    let mut all = vec![root];
    all.extend(paths.as_array().unwrap().clone());
    gateway.ingress("i", json!({}), json!({"rules": [{"host": "a.x", "http": {"paths": all}}]})).await;
    for (head, status, said) in [
        ("GET /app/1?q=2 HTTP/1.1\r\nhost: a.x\r\n", "200", "GET /app/1?q=2\n"),
        ("GET /app HTTP/1.1\r\nhost: A.X.:8080\r\n", "200", "host: A.X.:8080\n"),
        ("GET http://a.x/app HTTP/1.1\r\nhost: b.x\r\n", "200", "host: a.x\n"),
        ("GET /other HTTP/1.1\r\nhost: a.x\r\n", "404", "no Ingress has a rule for host \"a.x\" and path \"/other\""),
        ("GET /app HTTP/1.1\r\nhost: <b>\r\n", "400", "its Host is no host"),
        ("GET /app HTTP/1.1\r\nhost: b.x@a.x\r\n", "400", "its Host is no host"),
        ("GET http://b.x@a.x/app HTTP/1.1\r\nhost: a.x\r\n", "400", "it names a user"),
        ("GET /<b> HTTP/1.1\r\nhost: b.x\r\n", "40", ""),
        ("GET /app HTTP/1.0\r\n", "404", "host \"\""),
        ("GET /gone HTTP/1.1\r\nhost: a.x\r\n", "503", "Ingress n/i leads to service n/nobody, which does not exist"),
        ("GET /port HTTP/1.1\r\nhost: a.x\r\n", "503", "leads to port x of service n/web, which it does not have"),
        ("CONNECT a.x:80 HTTP/1.1\r\nhost: a.x:80\r\n", "400", "no proxy"),
        ("GET /app HTTP/1.1\r\nhost: a.x\r\nhost: b.x\r\n", "400", "several hosts"),
    ] {
        let answer = exchange(&mut gateway.connect().await, head, "").await;
        let line = answer.lines().next().unwrap_or_default();
        assert!(
            line.split(' ').nth(1).is_some_and(|code| code.starts_with(status)) && answer.contains(said),
            "{head:?}: {answer:?}"
        );
        if !status.starts_with('2') && !said.is_empty() {
            assert!(
                answer.contains("content-type: text/plain") && answer.contains("x-content-type-options: nosniff"),
                "{answer:?}"
            );
        }
    }
    // Nobody is ready, and the Service is named.
    gateway.world.ready("web", &[], json!([{"port": 8080}]));
    gateway.world.known("web", 0).await;
    let answer = exchange(&mut gateway.connect().await, "GET /app HTTP/1.1\r\nhost: a.x\r\n", "").await;
    assert!(
        answer.starts_with("HTTP/1.1 503") && answer.contains("no endpoints available for service n/web"),
        "{answer}"
    );
}

#[tokio::test]
async fn who_answers_hears_who_asks_and_how_and_nothing_that_was_made_up() {
    let gateway = Gateway::new(mirror()).await;
    let tls = json!([{"hosts": ["a.x"], "secretName": "a"}]);
    let annotations = json!({"nginx.ingress.kubernetes.io/ssl-redirect": "false", "coracle.dev/hsts": "max-age=60"});
    gateway.ingress("i", annotations, json!({"tls": tls, "rules": [rule("a.x", "web")]})).await;
    let head = "GET / HTTP/1.1\r\nhost: a.x\r\nx-forwarded-for: 6.6.6.6\r\nforwarded: for=6.6.6.6\r\nx-forwarded-proto: gopher\r\n";
    let plain = exchange(&mut gateway.connect().await, head, "").await;
    let secure = exchange(&mut gateway.connect_tls("a.x", &["http/1.1"]).await, head, "").await;
    // What a client calls its connection's own is not what is said of it.
    let hides = format!("{head}connection: x-forwarded-for, forwarded, x-forwarded-host, x-forwarded-proto, host\r\n");
    let hiding = exchange(&mut gateway.connect().await, &hides, "").await;
    for (answer, protocol, port) in [
        (&plain, "http", gateway.plain.port()),
        (&secure, "https", gateway.secure.port()),
        (&hiding, "http", gateway.plain.port()),
    ] {
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        for line in [
            "forwarded: for=127.0.0.1;host=\"a.x\";proto=",
            "x-forwarded-for: 127.0.0.1\n",
            "x-forwarded-host: a.x\n",
            &format!("x-forwarded-proto: {protocol}\n"),
            &format!("x-forwarded-port: {port}\n"),
        ] {
            assert!(answer.contains(line), "{line}: {answer}");
        }
        assert!(!answer.contains("6.6.6.6") && !answer.contains("gopher"), "{answer}");
    }
    assert!(
        secure.contains("strict-transport-security: max-age=60\r\n") && !plain.contains("strict-transport"),
        "{secure}"
    );
}

#[tokio::test]
async fn what_has_tls_is_for_tls() {
    let gateway = Gateway::new(echo().1).await;
    let tls = json!([{"hosts": ["a.x"]}]);
    gateway.ingress("i", json!({}), json!({"tls": tls, "rules": [rule("a.x", "web"), rule("b.x", "web")]})).await;
    let head = |host: &str| format!("POST /p?q HTTP/1.1\r\nhost: {host}\r\ncontent-length: 2\r\n");
    let port = gateway.plain.port();
    let answer = exchange(&mut gateway.connect().await, &head(&format!("a.x:{port}")), "hi").await;
    let location = format!("location: https://a.x:{}/p?q\r\n", gateway.secure.port());
    assert!(answer.starts_with("HTTP/1.1 308") && answer.contains(&location), "{answer}");
    let answer = exchange(&mut gateway.connect().await, &head("b.x"), "hi").await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("hi"), "{answer}");
    let answer = exchange(&mut gateway.connect_tls("a.x", &[]).await, &head("a.x"), "hi").await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("hi"), "{answer}");
}

#[tokio::test]
async fn each_name_is_shown_its_certificate_also_a_new_one_and_nobody_is_cut_off() {
    let gateway = Gateway::new(echo().1).await;
    let tls = json!([{"hosts": ["a.x"], "secretName": "a"}, {"hosts": ["*.x"], "secretName": "wild"}]);
    gateway.ingress("i", json!({}), json!({"tls": tls, "rules": [rule("a.x", "web")]})).await;
    assert_eq!(gateway.shown("a.x").await, "default.invalid", "its Secret is not there yet");
    gateway.certificates.set(&secret("a"), Some(certificate("a.x")));
    gateway.certificates.set(&secret("wild"), Some(certificate("wild.x")));
    let mut open = gateway.connect_tls("a.x", &[]).await;
    for (name, expected) in [
        ("a.x", "a.x"),
        ("A.x", "a.x"),
        ("b.x", "wild.x"),
        ("c.b.x", "default.invalid"),
        ("127.0.0.1", "default.invalid"),
    ] {
        assert_eq!(gateway.shown(name).await, expected, "{name}");
    }
    gateway.certificates.set(&secret("a"), Some(certificate("renewed.x")));
    assert_eq!(gateway.shown("a.x").await, "renewed.x");
    gateway.certificates.set(&secret("a"), None);
    assert_eq!(gateway.shown("a.x").await, "default.invalid");
    let answer = exchange(&mut open, "POST / HTTP/1.1\r\nhost: a.x\r\ncontent-length: 2\r\n", "hi").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[test]
fn a_certificate_that_cannot_be_shown_says_why() {
    let ((certificate, key), (other, _)) = (pair("a"), pair("b"));
    let of = |certificate: &str, key: &str| {
        Certificate::from_pem(certificate.as_bytes(), key.as_bytes()).map(drop).map_err(|error| error.to_string())
    };
    assert_eq!(of(&certificate, &key), Ok(()));
    assert_eq!(of(&format!("{certificate}{other}"), &key), Ok(()), "a chain");
    assert_eq!(of(&other, &key), Err("the certificate does not match the private key".to_owned()));
    assert_eq!(of("", &key), Err("there is no certificate in it".to_owned()));
    assert!(of(&certificate, "").unwrap_err().starts_with("the private key is no PEM"));
    assert!(of(&certificate, &certificate).unwrap_err().starts_with("the private key is no PEM"));
    assert_eq!(of(&other.repeat(21), &key), Err("its chain has more than 20 certificates".to_owned()));
    assert!(of(&certificate.replace("MII", "!!!"), &key).is_err());
}

#[tokio::test]
async fn http2_is_spoken_where_it_is_agreed_on() {
    let gateway = Gateway::new(mirror()).await;
    let annotations = json!({"coracle.dev/ssl-redirect": "false"});
    gateway.ingress("i", annotations, json!({"tls": [{"hosts": ["a.x"]}], "rules": [rule("a.x", "web")]})).await;
    let stream = gateway.connect_tls("a.x", &["h2", "http/1.1"]).await;
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let io = hyper_util::rt::TokioIo::new(stream);
    let executor = hyper_util::rt::TokioExecutor::new();
    let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, io).await.unwrap();
    tokio::spawn(connection);
    for path in ["/one", "/two"] {
        let request = Request::get(format!("https://a.x{path}")).body(text(String::new())).unwrap();
        let response = sender.send_request(request).await.unwrap();
        assert_eq!(response.status(), 200);
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let body = String::from_utf8_lossy(&body);
        assert!(body.starts_with(&format!("GET {path}\n")) && body.contains("host: a.x\n"), "{body}");
    }
    let stream = gateway.connect_tls("a.x", &["http/1.1"]).await;
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
}

#[tokio::test]
async fn a_websocket_goes_through() {
    let script = |mut stream: TcpStream| async move {
        let head = read_head(&mut stream).await;
        assert!(
            head.to_lowercase().contains("upgrade: websocket") && head.contains("x-forwarded-for: 127.0.0.1"),
            "{head}"
        );
        write(&mut stream, "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")
            .await;
        let (mut read, mut write) = stream.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
    };
    let gateway = Gateway::new(listening(script).await.0).await;
    let annotations = json!({"coracle.dev/ssl-redirect": "false", "coracle.dev/proxy-read-timeout": "1", "coracle.dev/proxy-body-size": "1"});
    gateway.ingress("i", annotations, json!({"tls": [{"hosts": ["a.x"]}], "rules": [rule("a.x", "web")]})).await;
    let mut stream = gateway.connect_tls("a.x", &["http/1.1"]).await;
    let head = "GET /chat HTTP/1.1\r\nhost: a.x\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut said = Vec::new();
    while !said.ends_with(b"\r\n\r\n") {
        said.push(tokio::time::timeout(SOON, stream.read_u8()).await.expect("an answer").unwrap());
    }
    assert!(said.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&said));
    for word in ["ping", "pong"] {
        stream.write_all(word.as_bytes()).await.unwrap();
        let mut heard = [0; 4];
        tokio::time::timeout(SOON, stream.read_exact(&mut heard)).await.expect("an echo").unwrap();
        assert_eq!(&heard, word.as_bytes());
    }
}

/// As some servers send it: the length is of what it was before.
#[tokio::test]
async fn what_is_chunked_is_whole_however_long_it_says_that_it_is() {
    let script = |mut stream: TcpStream| async move {
        read_head(&mut stream).await;
        let head = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n";
        write(&mut stream, &format!("{head}b\r\nhello world\r\n0\r\n\r\n")).await;
    };
    let gateway = Gateway::new(listening(script).await.0).await;
    gateway.ingress("i", json!({}), json!({"rules": [rule("a.x", "web")]})).await;
    for version in ["1.1", "1.0"] {
        let mut stream = gateway.connect().await;
        write(&mut stream, &format!("GET / HTTP/{version}\r\nhost: a.x\r\nconnection: close\r\n\r\n")).await;
        let mut answer = String::new();
        tokio::time::timeout(SOON, stream.read_to_string(&mut answer)).await.expect("an end").unwrap();
        assert!(answer.starts_with("HTTP/1.") && answer.contains("hello world"), "{answer}");
        assert!(!answer.to_lowercase().contains("content-length"), "{answer}");
    }
}

#[tokio::test]
async fn a_body_has_so_many_bytes_and_no_more() {
    let (asked, local) = echo();
    let gateway = Gateway::new(local).await;
    gateway
        .ingress(
            "i",
            json!({"nginx.ingress.kubernetes.io/proxy-body-size": "4"}),
            json!({"rules": [rule("a.x", "web")]}),
        )
        .await;
    let said = |length: usize| format!("POST / HTTP/1.1\r\nhost: a.x\r\ncontent-length: {length}\r\n");
    let chunked = "POST / HTTP/1.1\r\nhost: a.x\r\ntransfer-encoding: chunked\r\n";
    for (head, body, status) in [
        (said(4), "four", "200"),
        (said(5), "fives", "413"),
        (chunked.to_owned(), "4\r\nfour\r\n0\r\n\r\n", "200"),
        (chunked.to_owned(), "4\r\nfour\r\n1\r\n!\r\n0\r\n\r\n", "413"),
    ] {
        let answer = exchange(&mut gateway.connect().await, &head, body).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{head:?} {body:?}: {answer}");
    }
    let calls = asked.calls.load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!(calls, 3, "what is said to be larger is not passed on");
}

#[tokio::test]
async fn a_backend_that_is_silent_for_too_long_is_given_up() {
    let heads = Arc::new(Mutex::new(0));
    let (counted, go) = (heads.clone(), Arc::new(Notify::new()));
    let script = move |mut stream: TcpStream| {
        let counted = counted.clone();
        let go = go.clone();
        async move {
            let head = read_head(&mut stream).await;
            *counted.lock().unwrap() += 1;
            if head.starts_with("GET /half") {
                write(&mut stream, "HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\nhalf").await;
            }
            go.notified().await;
        }
    };
    let gateway = Gateway::new(listening(script).await.0).await;
    gateway.ingress("i", json!({"coracle.dev/proxy-read-timeout": "1"}), json!({"rules": [rule("a.x", "web")]})).await;
    let answer = exchange(&mut gateway.connect().await, "POST /none HTTP/1.1\r\nhost: a.x\r\n", "").await;
    assert!(answer.starts_with("HTTP/1.1 504") && answer.contains("no answer in time"), "{answer}");
    let answer = exchange(&mut gateway.connect().await, "GET /half HTTP/1.1\r\nhost: a.x\r\n", "").await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("half"), "it is cut off: {answer}");
    assert_eq!(*heads.lock().unwrap(), 2);
    // As long as a client sends something, its backend may wait for it.
    let mut slow = gateway.connect().await;
    slow.write_all(b"POST /slow HTTP/1.1\r\nhost: a.x\r\ncontent-length: 8\r\nconnection: close\r\n\r\n")
        .await
        .unwrap();
    let begun = tokio::time::Instant::now();
    for _ in 0..8 {
        tokio::time::sleep(std::time::Duration::from_millis(250)).await;
        slow.write_all(b"x").await.unwrap();
    }
    let mut answer = String::new();
    tokio::time::timeout(SOON, slow.read_to_string(&mut answer)).await.expect("an answer").unwrap_or_default();
    assert!(
        begun.elapsed() >= std::time::Duration::from_millis(2_900) && answer.starts_with("HTTP/1.1 504"),
        "{answer}"
    );
}

#[tokio::test]
async fn a_port_that_is_taken_is_tried_again() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let world = World::new().await;
    let (opened, mut opens) = mpsc::unbounded_channel();
    let listening: Listening = Arc::new(move |_, address| opened.send(address.map_err(|error| error.kind())).unwrap());
    let address = taken.local_addr().unwrap();
    let listener = Listener { address, bound: None, tls: None, routes: world.routes.clone(), gateways: None };
    let serving = tokio::spawn(world.proxy.clone().serve(vec![listener], listening, world.stop.clone()));
    assert_eq!(opens.recv().await, Some(Err(std::io::ErrorKind::AddrInUse)));
    drop(taken);
    let then = async {
        loop {
            if let Ok(address) = opens.recv().await.unwrap() {
                return address;
            }
        }
    };
    assert_eq!(tokio::time::timeout(SOON, then).await.expect("it is had"), address);
    let answer = exchange(&mut TcpStream::connect(address).await.unwrap(), "GET / HTTP/1.1\r\nhost: a\r\n", "").await;
    // No host is known yet: nobody is to keep that it is none.
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("retry-after: 1\r\n"), "{answer}");
    world.stop.cancel();
    tokio::time::timeout(SOON, serving).await.expect("it ends").unwrap();
}

#[tokio::test]
async fn a_host_with_tls_waits_for_the_port_where_it_is_spoken() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let world = World::new().await;
    world.start(1, echo().1);
    world.web(&[1]).await;
    let (opened, mut opens) = mpsc::unbounded_channel();
    let listening: Listening = Arc::new(move |at, address| {
        if let Ok(address) = address {
            opened.send((at, address)).unwrap();
        }
    });
    let certificates = Arc::new(Certificates::new(certificate("default.invalid")));
    let listener = |address, tls| Listener { address, bound: None, tls, routes: world.routes.clone(), gateways: None };
    let listeners =
        vec![listener(([127, 0, 0, 1], 0).into(), None), listener(taken.local_addr().unwrap(), Some(certificates))];
    tokio::spawn(world.proxy.clone().serve(listeners, listening, world.stop.clone()));
    let (told, mut hears) = mpsc::channel(16);
    tokio::spawn(world.routes.clone().run(told, world.stop.clone()));
    tokio::spawn(async move { while hears.recv().await.is_some() {} });
    let rules = json!({"tls": [{"hosts": ["a.x"]}], "rules": [rule("a.x", "web"), rule("b.x", "web")]});
    world.ingress("i", json!({}), rules);
    world.routed(|routing| routing.routes.find("a.x", "/").is_some()).await;
    let (at, plain) = tokio::time::timeout(SOON, opens.recv()).await.expect("it is listened at").unwrap();
    assert_eq!(at, 0);
    let ask = async |host: &str| {
        let head = format!("GET / HTTP/1.1\r\nhost: {host}\r\n");
        exchange(&mut TcpStream::connect(plain).await.unwrap(), &head, "").await
    };
    let answer = ask("a.x").await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("retry-after: 1\r\n"), "{answer}");
    let answer = ask("b.x").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    drop(taken);
    assert_eq!(tokio::time::timeout(SOON, opens.recv()).await.expect("it is had").unwrap().0, 1);
    let answer = ask("a.x").await;
    assert!(answer.starts_with("HTTP/1.1 308"), "{answer}");
    world.stop.cancel();
}

#[tokio::test]
async fn each_namespace_has_its_own_share_of_the_way_to_another_node() {
    let gateway = Gateway::new(mirror()).await;
    gateway.world.start_elsewhere(2, echo().0);
    gateway.world.ready("web", &[2], json!([{"port": 8080}]));
    gateway.ingress("i", json!({}), json!({"rules": [rule("a.x", "web")]})).await;
    let asked = || gateway.world.pods.entered.lock().unwrap().clone();
    let until = async {
        while asked().is_empty() {
            exchange(&mut gateway.connect().await, "GET / HTTP/1.1\r\nhost: a.x\r\n", "").await;
        }
    };
    tokio::time::timeout(SOON, until).await.expect("it goes there");
    let of_namespace = crate::Asker::Ingresses("n".into());
    assert!(asked().iter().all(|by| *by == of_namespace), "{:?}", asked());
}

#[tokio::test]
async fn a_namespace_whose_pods_do_not_answer_has_no_more_than_its_share_of_a_port_and_a_client_leaves_some_of_it() {
    /// What one client may have under way.
    const CLIENT: usize = 10;
    let reached = Arc::new(Mutex::new(0));
    let counted = reached.clone();
    let script = move |mut stream: TcpStream| {
        let counted = counted.clone();
        async move {
            let head = read_head(&mut stream).await;
            if head.starts_with("GET /fast") {
                return write(&mut stream, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await;
            }
            *counted.lock().unwrap() += 1;
            if head.starts_with("GET /chat") {
                let changes = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
                write(&mut stream, changes).await;
            }
            // Until the other side goes.
            let _ = stream.read_u8().await;
        }
    };
    let gateway = Gateway::new(listening(script).await.0).await;
    gateway.ingress("i", json!({}), json!({"rules": [rule("a.x", "web")]})).await;
    let fast = async |client| {
        let mut stream = gateway.connect_as(client).await;
        exchange(&mut stream, "GET /fast HTTP/1.1\r\nhost: a.x\r\n", "").await
    };
    let mut waiting = Vec::new();
    for number in 1..=crate::gateway::REQUESTS_MAX / 3 {
        let client = if number <= CLIENT { 1 } else { u8::try_from(number).unwrap() };
        let mut stream = gateway.connect_as(client).await;
        let what = match number % 2 {
            0 => "GET /never HTTP/1.1\r\nhost: a.x\r\n\r\n",
            _ => "GET /chat HTTP/1.1\r\nhost: a.x\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n",
        };
        stream.write_all(what.as_bytes()).await.unwrap();
        if number % 2 == 1 {
            assert!(read_head(&mut stream).await.starts_with("HTTP/1.1 101"));
        }
        waiting.push(stream);
        let until = async {
            while *reached.lock().unwrap() < number {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(SOON, until).await.expect("it is there");
        if number == CLIENT {
            let answer = fast(1).await;
            assert!(
                answer.starts_with("HTTP/1.1 503") && answer.contains("that one client of it may have"),
                "{answer}"
            );
            assert!(fast(2).await.starts_with("HTTP/1.1 200"), "another has room");
        }
    }
    let answer = fast(1).await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("that it may have"), "{answer}");
    assert!(answer.to_lowercase().contains("retry-after: 1"), "{answer}");
    waiting.pop();
    waiting.remove(0);
    let until = async { while !fast(2).await.starts_with("HTTP/1.1 200") {} };
    tokio::time::timeout(SOON, until).await.expect("a share is given back");
}

#[tokio::test]
async fn who_does_not_end_a_handshake_keeps_nobody_out() {
    let gateway = Gateway::new(echo().1).await;
    gateway.ingress("i", json!({}), json!({"tls": [{"hosts": ["a.x"]}], "rules": [rule("a.x", "web")]})).await;
    let mut silent = Vec::new();
    for _ in 0..50 {
        let mut stream = TcpStream::connect(gateway.secure).await.unwrap();
        stream.write_all(&[0x16, 0x03]).await.unwrap();
        silent.push(stream);
    }
    let answer = exchange(&mut gateway.connect_tls("a.x", &[]).await, "GET / HTTP/1.1\r\nhost: a.x\r\n", "").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    // What is no TLS at all ends at once.
    let mut plain = TcpStream::connect(gateway.secure).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\nhost: a.x\r\n\r\n").await.unwrap();
    let mut said = Vec::new();
    let _ = tokio::time::timeout(SOON, plain.read_to_end(&mut said)).await.expect("an end");
    assert!(!said.starts_with(b"HTTP"), "{said:?}");
}

/// A mesh whose definitions, class and Gateways are there: one with a listener without TLS, and one with.
async fn with_gateways(what: Local, own: Vec<OwnPort>) -> (Gateway, u16, u16, watch::Sender<Vec<OwnPort>>) {
    let gateway = Gateway::new(what).await;
    let world = &gateway.world;
    world.define_gateways();
    let ours = json!({"spec": {"controllerName": "coracle.dev/gateway"}});
    world.gateway_object("gatewayclasses", "coracle", ours);
    let (plain, secure) = (free_port().await, free_port().await);
    let listeners = json!([{"name": "a", "port": plain, "protocol": "HTTP"},
        {"name": "b", "port": secure, "protocol": "HTTPS", "tls": {"certificateRefs": [{"name": "a"}]}}]);
    world.gateway_object("gateways", "g", json!({"spec": {"gatewayClassName": "coracle", "listeners": listeners}}));
    tokio::spawn(world.gateways.clone().run(world.stop.clone()));
    let of = GatewayRoutes { routes: world.gateways.clone(), certificates: gateway.certificates.clone() };
    let (own, hears) = watch::channel(own);
    let failed = Box::new(|port: u16, error: &std::io::Error| panic!("port {port}: {error}"));
    let serving = world.proxy.clone().serve_gateways([127, 0, 0, 1].into(), of, hears, failed, world.stop.clone());
    tokio::spawn(serving);
    let mut ports = world.proxy.gateway_ports();
    let are_open =
        |states: &PortStates| states.ports.values().all(|of| *of == PortState::Open) && states.ports.len() == 2;
    tokio::time::timeout(SOON, ports.wait_for(are_open)).await.expect("both are open").unwrap();
    (gateway, plain, secure, own)
}

/// Rules of a route of the Gateway, known to the mesh when this returns.
async fn routed(world: &World, name: &str, rules: Value) {
    routed_as(world, "httproutes", name, rules).await;
}

/// The same of a kind of route.
async fn routed_as(world: &World, kind: &'static str, name: &str, rules: Value) {
    let mut generations = world.gateways.subscribe();
    generations.borrow_and_update();
    let spec = json!({"parentRefs": [{"name": "g"}], "rules": rules});
    world.gateway_object(kind, name, json!({"spec": spec}));
    tokio::time::timeout(SOON, generations.changed()).await.expect("routes are known").unwrap();
}

#[tokio::test]
async fn a_gateway_s_port_does_what_its_routes_say() {
    let (gateway, plain, _, _own) = with_gateways(mirror(), Vec::new()).await;
    let world = &gateway.world;
    let late = called(|_| async { std::future::pending().await }).1;
    world.start(2, late);
    world.service("late", "10.96.0.8", json!([{"port": 80}]));
    world.ready("late", &[2], json!([{"port": 8080}]));
    world.known("late", 1).await;
    let to = |name: &str| json!([{"name": name, "port": 80}]);
    let prefix = |value: &str| json!([{"path": {"type": "PathPrefix", "value": value}}]);
    let path = json!({"type": "ReplacePrefixMatch", "replacePrefixMatch": "/b"});
    let rules = json!([
        {"matches": prefix("/a"), "backendRefs": to("web"), "filters": [
            {"type": "URLRewrite", "urlRewrite": {"hostname": "inside.x", "path": path}},
            {"type": "RequestHeaderModifier", "requestHeaderModifier":
                {"set": [{"name": "x-one", "value": "1"}], "add": [{"name": "x-two", "value": "2"}], "remove": ["x-three"]}},
            {"type": "ResponseHeaderModifier", "responseHeaderModifier": {"set": [{"name": "x-back", "value": "b"}]}}]},
        {"matches": prefix("/late"), "backendRefs": to("late"), "timeouts": {"request": "50ms"}},
        {"matches": prefix("/missing"), "backendRefs": to("missing")},
        {"matches": prefix("/nobody")},
        {"matches": prefix("/odd"), "filters": [{"type": "CORS", "cors": {}}], "backendRefs": to("web")},
        {"matches": prefix("/else"), "filters": [{"type": "RequestRedirect", "requestRedirect": {"scheme": "https"}}]},
        {"matches": [{"path": {"type": "PathPrefix", "value": "/a"}, "headers": [{"name": "to", "value": "none"}]}],
            "backendRefs": [{"name": "web", "port": 80, "weight": 0}]},
        {"matches": prefix("/own"), "backendRefs": [{"name": "web", "port": 80, "filters": [
            {"type": "RequestHeaderModifier", "requestHeaderModifier": {"set": [{"name": "x-one", "value": "own"}]}}]}]},
    ]);
    routed(world, "r", rules).await;
    for (head, status, said) in [
        (
            "GET /a/c?q HTTP/1.1\r\nhost: a.x\r\nx-one: 7\r\nx-two: 1\r\nx-three: 3\r\n",
            "200",
            vec!["/b/c?q", "x-one: 1\n", "x-two: 2\n", "host: inside.x\n", "x-back: b\r\n", "x-forwarded-host: a.x\n"],
        ),
        ("GET /a HTTP/1.1\r\nhost: a.x\r\nto: none\r\n", "500", vec!["its rule has no backend"]),
        ("GET /late HTTP/1.1\r\nhost: a.x\r\n", "504", vec![]),
        (
            "GET /missing HTTP/1.1\r\nhost: a.x\r\n",
            "500",
            vec!["HTTPRoute n/r leads to service n/missing, which does not exist"],
        ),
        ("GET /nobody HTTP/1.1\r\nhost: a.x\r\n", "500", vec!["its rule has no backend"]),
        ("GET /odd HTTP/1.1\r\nhost: a.x\r\n", "500", vec!["filter CORS is not supported"]),
        ("GET /else/p?q HTTP/1.1\r\nhost: a.x\r\n", "302", vec!["location: https://a.x/else/p?q\r\n"]),
        ("GET /own HTTP/1.1\r\nhost: a.x\r\n", "200", vec!["x-one: own\n"]),
        (
            "GET /none HTTP/1.1\r\nhost: a.x\r\n",
            "404",
            vec!["no HTTPRoute has a rule for host \"a.x\" and path \"/none\""],
        ),
    ] {
        let answer = exchange(&mut connect(plain).await, head, "").await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{head}: {answer}");
        said.iter().for_each(|said| assert!(answer.contains(said), "{head}: {said}: {answer}"));
        assert!(!answer.contains("x-three"), "{answer}");
    }
}

#[tokio::test]
async fn a_gateway_shows_the_certificates_of_its_listeners_and_its_ports_come_and_go() {
    let (mut gateway, plain, secure, _own) = with_gateways(echo().1, Vec::new()).await;
    gateway.secure.set_port(secure);
    assert_eq!(gateway.shown("a.x").await, "default.invalid");
    gateway.certificates.set(&secret("a"), Some(certificate("a.x")));
    assert_eq!(gateway.shown("a.x").await, "a.x");
    let world = &gateway.world;
    routed(world, "r", json!([{"backendRefs": [{"name": "web", "port": 80}]}])).await;
    let answer = exchange(&mut gateway.connect_tls("a.x", &[]).await, "GET / HTTP/1.1\r\nhost: a.x\r\n", "").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    // The definitions go, and all with them.
    world.delete_gateway_object("customresourcedefinitions", "gateways.gateway.networking.k8s.io");
    let mut ports = world.proxy.gateway_ports();
    tokio::time::timeout(SOON, ports.wait_for(|states| *states == PortStates::default()))
        .await
        .expect("they are closed")
        .unwrap();
    for port in [plain, secure] {
        let closed = async {
            while TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(SOON, closed).await.expect("nobody listens");
    }
}

#[tokio::test]
async fn who_is_not_told_of_definitions_any_more_goes_on_with_those_that_there_were() {
    let (gateway, plain, ..) = with_gateways(echo().1, Vec::new()).await;
    let world = &gateway.world;
    let generation = *world.gateways.subscribe().borrow();
    world.refuse_definitions().await;
    assert_eq!(*world.gateways.subscribe().borrow(), generation);
    let answer = exchange(&mut connect(plain).await, "GET / HTTP/1.1\r\nhost: a.x\r\n", "").await;
    assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
    // What comes is heard, and what means nothing is not.
    routed(world, "r", json!([{"backendRefs": [{"name": "web", "port": 80}]}])).await;
    let answer = exchange(&mut connect(plain).await, "GET / HTTP/1.1\r\nhost: a.x\r\n", "").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test]
async fn a_port_may_speak_something_else_from_one_moment_to_the_next() {
    let (mut gateway, plain, secure, _own) = with_gateways(echo().1, Vec::new()).await;
    gateway.certificates.set(&secret("a"), Some(certificate("a.x")));
    let world = &gateway.world;
    routed(world, "r", json!([{"backendRefs": [{"name": "web", "port": 80}]}])).await;
    // Somebody is connected meanwhile.
    let _connected = connect(plain).await;
    let mut ports = world.proxy.gateway_ports();
    ports.borrow_and_update();
    let listeners =
        json!([{"name": "a", "port": plain, "protocol": "HTTPS", "tls": {"certificateRefs": [{"name": "a"}]}}]);
    world.gateway_object("gateways", "g", json!({"spec": {"gatewayClassName": "coracle", "listeners": listeners}}));
    let is_one = |states: &PortStates| !states.ports.contains_key(&secure);
    let now = tokio::time::timeout(SOON, ports.wait_for(is_one)).await.expect("the other port is closed").unwrap();
    assert_eq!(now.ports.get(&plain), Some(&PortState::Open), "nobody has it by then");
    drop(now);
    gateway.secure.set_port(plain);
    let head = "GET / HTTP/1.1\r\nhost: a.x\r\n";
    let answer = exchange(&mut gateway.connect_tls("a.x", &[]).await, head, "").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test]
async fn a_request_that_is_too_long_for_so_many_expressions_is_told_so() {
    let (gateway, plain, ..) = with_gateways(mirror(), Vec::new()).await;
    let of =
        |at: usize| json!({"headers": [{"type": "RegularExpression", "name": "x-long", "value": format!("{at}")}]});
    let to = json!([{"name": "web", "port": 80}]);
    let many: Vec<Value> = (0..64).map(of).collect();
    routed(&gateway.world, "r", json!([{"matches": many, "backendRefs": to}, {"backendRefs": to}])).await;
    let asked = |bytes: usize| format!("GET / HTTP/1.1\r\nhost: a.x\r\nx-long: {}\r\n", "x".repeat(bytes));
    let answer = exchange(&mut connect(plain).await, &asked(4 << 10), "").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let answer = exchange(&mut connect(plain).await, &asked(20 << 10), "").await;
    assert!(answer.starts_with("HTTP/1.1 431") && answer.contains("regular expressions"), "{answer}");
}

#[tokio::test]
async fn a_gateway_takes_a_host_from_an_ingress_only_with_a_certificate_and_if_it_is_older() {
    let mut gateway = Gateway::new(echo().1).await;
    let port = free_port().await;
    gateway.secure.set_port(port);
    let tls = json!([{"hosts": ["a.x"], "secretName": "i"}]);
    gateway.ingress("i", json!({}), json!({"tls": tls, "rules": [rule("a.x", "web")]})).await;
    for (name, host) in [("i", "a.x"), ("any", "wild.x")] {
        gateway.certificates.set(&secret(name), Some(certificate(host)));
    }
    let world = &gateway.world;
    let of = GatewayRoutes { routes: world.gateways.clone(), certificates: gateway.certificates.clone() };
    let listener = Listener {
        address: ([127, 0, 0, 1], port).into(),
        bound: None,
        tls: Some(gateway.certificates.clone()),
        routes: world.routes.clone(),
        gateways: Some(of),
    };
    let (opened, mut opens) = mpsc::unbounded_channel();
    let listening: Listening = Arc::new(move |_, address| opened.send(address.unwrap()).unwrap());
    tokio::spawn(world.proxy.clone().serve(vec![listener], listening, world.stop.clone()));
    tokio::time::timeout(SOON, opens.recv()).await.expect("it is listened at").unwrap();
    let asked = async || {
        let head = "GET / HTTP/1.1\r\nhost: a.x\r\n";
        exchange(&mut gateway.connect_tls("a.x", &[]).await, head, "").await
    };
    let answer = asked().await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("retry-after"), "Gateways are not known: {answer}");
    world.define_gateways();
    world.gateway_object("gatewayclasses", "coracle", json!({"spec": {"controllerName": "coracle.dev/gateway"}}));
    let put = |hostname: &str, secret: &str| {
        let listeners = json!([{"name": "l", "port": port, "protocol": "HTTPS", "hostname": hostname,
            "tls": {"certificateRefs": [{"name": secret}]}}]);
        let metadata = json!({"creationTimestamp": "2020-01-01T00:00:00Z"});
        let spec = json!({"gatewayClassName": "coracle", "listeners": listeners});
        world.gateway_object("gateways", "g", json!({"metadata": metadata, "spec": spec}));
    };
    // It is for all hosts; the Ingress is for this one.
    put("", "any");
    let rules = json!([{"backendRefs": [{"name": "missing", "port": 80}]}]);
    let spec = json!({"parentRefs": [{"name": "g"}], "rules": rules});
    world.gateway_object("httproutes", "r", json!({"spec": spec}));
    tokio::spawn(world.gateways.clone().run(world.stop.clone()));
    let mut generations = world.gateways.subscribe();
    let known = async {
        while world.gateways.ports().get(port).is_none() {
            generations.changed().await.unwrap();
        }
    };
    tokio::time::timeout(SOON, known).await.expect("the Gateway is known");
    assert_eq!([gateway.shown("a.x").await, gateway.shown("b.x").await], ["a.x", "wild.x"]);
    assert!(asked().await.starts_with("HTTP/1.1 200"));
    // It is for this one, too, and has no certificate.
    put("a.x", "own");
    let is_known = |ports: &coracle_discovery::Ports| {
        let listener = ports.get(port).and_then(|port| port.listener("a.x", |_| true));
        listener.is_some_and(|listener| &*listener.secrets[0].name == "own")
    };
    let known = async {
        while !is_known(&world.gateways.ports()) {
            generations.changed().await.unwrap();
        }
    };
    tokio::time::timeout(SOON, known).await.expect("it is known");
    assert_eq!(gateway.shown("a.x").await, "a.x");
    assert!(asked().await.starts_with("HTTP/1.1 200"));
    // Now it has, and is older.
    gateway.certificates.set(&secret("own"), Some(certificate("renewed.x")));
    assert_eq!(gateway.shown("a.x").await, "renewed.x");
    let answer = asked().await;
    assert!(answer.starts_with("HTTP/1.1 500"), "{answer}");
}

/// Answers a call of gRPC with how it came and what it brought, and `grpc-status: 0` behind that.
async fn answer_call(request: Request<Body>) -> Response<Body> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let header = |name: &str| head.headers.get(name).map_or("-", |value| value.to_str().unwrap()).to_owned();
    let text = format!("{:?} {} host={} te={} {body:?}", head.version, head.uri, header("host"), header("te"));
    let mut trailers = http::HeaderMap::new();
    trailers.insert("grpc-status", "0".parse().unwrap());
    let frames = [Frame::data(Bytes::from(text)), Frame::trailers(trailers)].map(Ok::<_, crate::BoxError>);
    let mut response = Response::new(StreamBody::new(futures::stream::iter(frames)).boxed_unsync());
    response.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
    response
}

/// A call of gRPC in HTTP/2, without TLS: the head of the answer, its body, and what comes behind.
async fn call(port: u16, path: &str, body: &str) -> (http::response::Parts, String, http::HeaderMap) {
    let stream = TokioIo::new(connect(port).await);
    let shaken = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream);
    let (mut sender, connection) = shaken.await.unwrap();
    tokio::spawn(connection);
    let request = Request::post(format!("http://a.x{path}")).header("content-type", "application/grpc");
    let request = request.header("te", "trailers").body(text(body.to_owned())).unwrap();
    let answered = tokio::time::timeout(SOON, async {
        let (head, body) = sender.send_request(request).await.unwrap().into_parts();
        let all = body.collect().await.unwrap();
        let trailers = all.trailers().cloned().unwrap_or_default();
        (head, String::from_utf8(all.to_bytes().to_vec()).unwrap(), trailers)
    });
    answered.await.expect("an answer")
}

#[tokio::test]
async fn calls_of_grpc_go_where_their_routes_say_in_http2_with_what_comes_behind_them() {
    let answers = || called(|request| async move { Ok(answer_call(request).await) });
    let (gateway, plain, ..) = with_gateways(answers().1, Vec::new()).await;
    let world = &gateway.world;
    // A guest that listens itself, a component of another node, and nobody.
    let (listens, _) = listening(|stream| async move {
        let answer = |request| async move { Ok(answer_call(request).await) };
        let _ = crate::serve::serve(stream, Arc::default(), Default::default(), answer).await;
    })
    .await;
    world.start(2, listens);
    world.start_elsewhere(3, answers().0);
    for (at, (name, pods)) in [("listens", vec![2]), ("far", vec![3]), ("empty", vec![])].into_iter().enumerate() {
        world.service(name, &format!("10.96.0.{}", 20 + at), json!([{"port": 80}]));
        world.ready(name, &pods, json!([{"port": 8080}]));
        world.known(name, pods.len()).await;
    }
    let rule = |service: &str, to: &str| {
        let backends = json!([{"name": to, "port": 80}]);
        json!({"matches": [{"method": {"service": service}}], "backendRefs": backends})
    };
    let all =
        [("a.Called", "web"), ("a.Listens", "listens"), ("a.Far", "far"), ("a.Empty", "empty"), ("a.Gone", "gone")];
    routed_as(world, "grpcroutes", "r", all.iter().map(|(service, to)| rule(service, to)).collect()).await;
    for (path, came) in [
        ("/a.Called/Get", "HTTP/2.0 /a.Called/Get host=a.x te=-"),
        ("/a.Listens/Get", "HTTP/2.0 http://a.x/a.Listens/Get host=a.x te=trailers"),
        ("/a.Far/Get", "HTTP/2.0 /a.Far/Get host=a.x te=trailers"),
    ] {
        // The second time on a connection that is there.
        for body in ["once", "again"] {
            let (head, said, trailers) = call(plain, path, body).await;
            assert_eq!((head.status.as_u16(), said), (200, format!("{came} b{body:?}")), "{path}");
            assert_eq!(trailers["grpc-status"], "0", "{path}");
        }
    }
    for (path, status, said) in [
        ("/a.Empty/Get", "14", "no endpoints available for service n/empty"),
        ("/a.Gone/Get", "14", "GRPCRoute n/r leads to service n/gone, which does not exist"),
        ("/a.None/Get", "12", "no GRPCRoute has a rule for host"),
    ] {
        let (head, body, trailers) = call(plain, path, "").await;
        let header = |name: &str| head.headers[name].to_str().unwrap();
        assert_eq!((head.status.as_u16(), header("grpc-status"), &*body), (200, status, ""), "{path}");
        assert!(header("grpc-message").starts_with(said) && trailers.is_empty(), "{head:?}");
        assert_eq!(header("content-type"), "application/grpc");
    }
    let answer = exchange(
        &mut connect(plain).await,
        "POST /a.Called/Get HTTP/1.1\r\nhost: a.x\r\ncontent-type: application/grpc\r\n",
        "",
    )
    .await;
    assert!(answer.starts_with("HTTP/1.1 505") && answer.contains("GRPCRoute n/r is for gRPC"), "{answer}");
}

#[tokio::test]
async fn copies_of_requests_go_to_mirrors_and_nobody_waits_for_them() {
    let (gateway, plain, ..) = with_gateways(mirror(), Vec::new()).await;
    let world = &gateway.world;
    let (came, mut comes) = mpsc::unbounded_channel();
    let copies = called(move |request: Request<Body>| {
        let came = came.clone();
        async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await?.to_bytes();
            let header = |name: &str| head.headers.get(name).map_or("-", |value| value.to_str().unwrap()).to_owned();
            let said = format!("{} {} {} {} {body:?}", head.method, head.uri, header("x-one"), header("x-own"));
            came.send(said).unwrap();
            // It takes its time.
            if head.uri.path() == "/late" {
                std::future::pending::<()>().await;
            }
            Ok(Response::new(text("thrown away".to_owned())))
        }
    });
    world.start(2, copies.1);
    world.service("copies", "10.96.0.8", json!([{"port": 80}]));
    world.ready("copies", &[2], json!([{"port": 8080}]));
    world.known("copies", 1).await;
    let copy = |more: Value| {
        let mut spec = json!({"backendRef": {"name": "copies", "port": 80}});
        spec.as_object_mut().unwrap().append(&mut more.as_object().unwrap().clone());
        json!({"type": "RequestMirror", "requestMirror": spec})
    };
    let set = |name: &str| {
        let set = json!({"set": [{"name": name, "value": "1"}]});
        json!({"type": "RequestHeaderModifier", "requestHeaderModifier": set})
    };
    let prefix = |value: &str| json!([{"path": {"type": "PathPrefix", "value": value}}]);
    let own = json!([{"name": "web", "port": 80, "filters": [set("x-own")]}]);
    let web = json!([{"name": "web", "port": 80}]);
    let gone = copy(json!({"backendRef": {"name": "gone", "port": 80}}));
    let rules = json!([
        {"matches": prefix("/both"), "filters": [set("x-one"), copy(json!({})), gone], "backendRefs": own},
        {"matches": prefix("/late"), "filters": [copy(json!({}))], "backendRefs": web},
        {"matches": prefix("/never"), "filters": [copy(json!({"percent": 0}))], "backendRefs": web},
    ]);
    routed(world, "r", rules).await;
    let post = |path: &str| format!("POST {path} HTTP/1.1\r\nhost: a.x\r\ncontent-length: 4\r\n");
    let answer = exchange(&mut connect(plain).await, &post("/both"), "body").await;
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.contains("x-own: 1\n") && answer.ends_with("body"),
        "{answer}"
    );
    let said = tokio::time::timeout(SOON, comes.recv()).await.expect("a copy comes").unwrap();
    assert_eq!(said, "POST /both 1 - b\"body\"");
    for path in ["/late", "/never"] {
        let answer = exchange(&mut connect(plain).await, &post(path), "body").await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("body"), "{answer}");
    }
    let said = tokio::time::timeout(SOON, comes.recv()).await.expect("a copy comes").unwrap();
    assert_eq!(said, "POST /late - - b\"body\"");
    assert!(comes.try_recv().is_err(), "of the others there are none");
    let counted = |result: &str| {
        let line = format!("coracle_gateway_mirrors_total{{result=\"{result}\"}} 1\n");
        world.proxy.metrics().contains(&line)
    };
    // The one is counted when its answer has been thrown away.
    let is_over = async {
        while !counted("answered") {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, is_over).await.expect("it is counted");
    assert!(counted("nowhere") && !counted("late"));
}
