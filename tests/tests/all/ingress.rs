//! Ingresses as people use them: kubectl on one side, an HTTP client on the other.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;

use coracle_tests::{Cluster, WEB};

/// The ports at which it serves, without TLS and with.
fn ports(cluster: &Cluster) -> [String; 2] {
    let status = cluster.coracle(&["status", "-o", "json"]);
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).expect("status prints JSON");
    let urls = status["ingress"].as_array().expect("the URLs").clone();
    ["http://127.0.0.1:", "https://127.0.0.1:"].map(|prefix| {
        let mut found = urls.iter().filter_map(|url| url.as_str()?.strip_prefix(prefix));
        found.next().unwrap_or_else(|| panic!("no {prefix} in {urls:?}")).to_owned()
    })
}

/// What is answered to a GET for this host.
fn get(port: &str, host: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(format!("127.0.0.1:{port}")).expect("it listens");
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n").expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}

#[test]
fn an_ingress_serves_a_deployment_under_a_host_name_with_and_without_tls() {
    let cluster = Cluster::start();
    cluster.push("standin", "standin");
    cluster.apply(WEB);
    cluster.kubectl("rollout status deployment web --timeout=120s");
    assert!(cluster.kubectl("get ingressclass").contains("coracle (default)   coracle.dev/ingress"));
    let [http, https] = ports(&cluster);
    cluster.kubectl("create ingress web --rule=web.example/*=web:80 --rule=web.example/none*=nobody:80");
    // The node's address comes into its status, and the table shows it.
    cluster.eventually("get ingress web", |text| text.contains("coracle") && text.contains("127.0.0.1"));
    let answer = get(&http, "web.example", "/");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let answer = get(&http, "other.example", "/");
    assert!(answer.starts_with("HTTP/1.1 404") && answer.contains("no Ingress has a rule for host"), "{answer}");
    let answer = get(&http, "web.example", "/none");
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("service default/nobody"), "{answer}");
    cluster.eventually("describe ingress web", |text| text.contains("service default/nobody does not exist"));

    // With TLS: first the Secret is missing, then it comes.
    let key = rcgen::KeyPair::generate().expect("a key");
    let names = vec!["secure.example".to_owned()];
    let certificate =
        rcgen::CertificateParams::new(names).and_then(|wanted| wanted.self_signed(&key)).expect("a certificate");
    let (cert_file, key_file) = (cluster.data_dir().join("tls.crt"), cluster.data_dir().join("tls.key"));
    std::fs::write(&cert_file, certificate.pem()).expect("write");
    std::fs::write(&key_file, key.serialize_pem()).expect("write");
    cluster.kubectl("create ingress secure --rule=secure.example/*=web:80,tls=secure");
    cluster.eventually("describe ingress secure", |text| text.contains("secret default/secure does not exist"));
    let files = format!("--cert={} --key={}", cert_file.display(), key_file.display());
    cluster.kubectl(&format!("create secret tls secure {files}"));
    let certificate = certificate.der().clone();
    let begun = std::time::Instant::now();
    let answer = loop {
        // Until its certificate is there, nobody trusts it.
        match get_tls(&https, "secure.example", &certificate) {
            Ok(answer) => break answer,
            Err(error) => assert!(begun.elapsed() < coracle_tests::DEADLINE, "the certificate is not shown: {error}"),
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    };
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let answer = get(&http, &format!("secure.example:{http}"), "/");
    assert!(
        answer.starts_with("HTTP/1.1 308") && answer.contains(&format!("location: https://secure.example:{https}/")),
        "{answer}"
    );

    // Of another class it is nobody's.
    cluster.kubectl("patch ingress web --type=merge -p {\"spec\":{\"ingressClassName\":\"nginx\"}}");
    let begun = std::time::Instant::now();
    while !get(&http, "web.example", "/").starts_with("HTTP/1.1 404") {
        assert!(begun.elapsed() < coracle_tests::DEADLINE, "it is served still");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

/// The same by TLS, to whoever shows this certificate.
fn get_tls(port: &str, host: &str, certificate: &CertificateDer<'static>) -> std::io::Result<String> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate.clone()).expect("a certificate");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = builder.expect("versions of TLS").with_root_certificates(roots).with_no_client_auth();
    let name = host.to_owned().try_into().expect("a name");
    let mut session = rustls::ClientConnection::new(Arc::new(config), name).expect("a client");
    let mut socket = TcpStream::connect(format!("127.0.0.1:{port}"))?;
    let mut stream = rustls::Stream::new(&mut session, &mut socket);
    write!(stream, "GET / HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

#[test]
fn a_port_that_is_taken_stops_a_start_only_where_it_was_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("its address").port().to_string();
    let said =
        Cluster::launched(&["up", "--http-port", &port, "--https-port", "off"]).err().expect("it does not start");
    assert!(
        said.contains(&format!("listen at 127.0.0.1:{port} for Ingresses")) && said.contains("--http-port"),
        "{said}"
    );
    let cluster = Cluster::start_with(&["--http-port", "off", "--https-port", "off"]);
    assert!(!String::from_utf8_lossy(&cluster.coracle(&["status"]).stdout).contains("ingress"));
}
