//! Gateway API as people use it: its definitions are applied, then Gateways and routes; kubectl on one side, an HTTP client on the other.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use coracle_tests::{Cluster, DEADLINE, WEB, free_port};
use http::{HeaderMap, Request};
use http_body_util::{BodyExt, Empty};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use rustls::pki_types::CertificateDer;
use serde_json::Value;

/// The definitions of Gateway API in a reduced form: the same names, versions, scopes and subresources, with open schemas.
fn definitions() -> String {
    let one = |kind: &str, plural: &str, version: &str, scope: &str| {
        format!(
            "---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata:
  name: {plural}.gateway.networking.k8s.io
  annotations: {{api-approved.kubernetes.io: 'https://github.com/kubernetes-sigs/gateway-api/pull/3328'}}
spec:
  group: gateway.networking.k8s.io
  scope: {scope}
  names: {{kind: {kind}, listKind: {kind}List, plural: {plural}, singular: {}}}
  versions:
  - name: {version}
    served: true
    storage: true
    subresources: {{status: {{}}}}
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec: {{type: object, x-kubernetes-preserve-unknown-fields: true}}
          status: {{type: object, x-kubernetes-preserve-unknown-fields: true}}
",
            kind.to_lowercase()
        )
    };
    [
        one("GatewayClass", "gatewayclasses", "v1", "Cluster"),
        one("Gateway", "gateways", "v1", "Namespaced"),
        one("HTTPRoute", "httproutes", "v1", "Namespaced"),
        one("GRPCRoute", "grpcroutes", "v1", "Namespaced"),
        one("ReferenceGrant", "referencegrants", "v1beta1", "Namespaced"),
    ]
    .concat()
}

/// What is answered to a request of this client.
fn exchange(mut stream: impl Read + Write, head: &str) -> String {
    write!(stream, "{head}connection: close\r\n\r\n").expect("it reads");
    let mut answer = String::new();
    // Who ends TLS without a word has said all that there is.
    let _ = stream.read_to_string(&mut answer);
    answer
}

/// What is answered to a GET for this host, with further headers.
fn get(port: &str, host: &str, path: &str, headers: &str) -> String {
    match TcpStream::connect(format!("127.0.0.1:{port}")) {
        Ok(stream) => exchange(stream, &format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n{headers}")),
        Err(error) => error.to_string(),
    }
}

/// What is answered to a call of gRPC in HTTP/2 without TLS: `grpc-status`, and the body.
fn call(port: &str, path: &str) -> String {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let asked = async {
        let client = Client::builder(TokioExecutor::new()).http2_only(true).build_http::<Empty<Bytes>>();
        let request =
            Request::post(format!("http://localhost:{port}{path}")).header("content-type", "application/grpc");
        let response = client.request(request.body(Empty::new())?).await?;
        let status = |headers: &HeaderMap| headers.get("grpc-status").map(|status| format!("{status:?}"));
        let (head, body) = response.into_parts();
        let status = status(&head.headers).unwrap_or_else(|| "none".to_owned());
        let body = body.collect().await?.to_bytes();
        Ok::<_, Box<dyn std::error::Error>>(format!("{} {status} {}", head.status, String::from_utf8_lossy(&body)))
    };
    runtime.block_on(asked).unwrap_or_else(|error| error.to_string())
}

/// Waits until an answer is so.
fn until(mut ask: impl FnMut() -> String, is: impl Fn(&str) -> bool) -> String {
    let begun = Instant::now();
    loop {
        let answer = ask();
        if is(&answer) {
            return answer;
        }
        assert!(begun.elapsed() < DEADLINE, "{answer}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

fn status(code: &'static str) -> impl Fn(&str) -> bool {
    move |answer: &str| answer.starts_with(&format!("HTTP/1.1 {code}"))
}

/// `TYPE=STATUS/REASON` of conditions at this path.
fn conditions(cluster: &Cluster, object: &str, at: &str) -> String {
    let object: Value = serde_json::from_str(&cluster.kubectl(&format!("get {object} -o json"))).expect("an object");
    let place = format!("/status/{}", at.replace(['.', '['], "/").replace(']', ""));
    let conditions = object.pointer(&place).and_then(Value::as_array);
    let text = |condition: &Value, field: &str| condition[field].as_str().unwrap_or_default().to_owned();
    let told = conditions.into_iter().flatten().map(|condition| {
        let [kind, status, reason] = ["type", "status", "reason"].map(|field| text(condition, field));
        format!("{kind}={status}/{reason},")
    });
    told.collect()
}

fn gateway(name: &str, listeners: &str) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: {name}}}\nspec:\n  gatewayClassName: coracle\n  \
         listeners:\n{listeners}"
    )
}

fn route(name: &str, spec: &str) -> String {
    format!("---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name}\nspec:\n{spec}")
}

#[test]
fn gateways_and_their_routes_are_served_by_every_node() {
    let cluster = Cluster::start();
    cluster.push("standin", "standin");
    cluster.push("probe", "probe");
    cluster.apply(WEB);
    cluster.apply(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: probe, labels: {app: probe}}\nspec:\n  containers:\n  - {name: main, image: probe, ports: \
         [{containerPort: 8080}]}\n",
    );
    cluster.kubectl("expose pod probe --port=80 --target-port=8080");
    cluster.apply(&definitions());
    cluster.kubectl("wait --for=condition=Established crd/gatewayclasses.gateway.networking.k8s.io --timeout=60s");
    // The class is made, and accepted.
    cluster.eventually("get gatewayclass coracle", |text| !text.contains("NotFound"));
    let class = "gatewayclass coracle";
    until(|| conditions(&cluster, class, "conditions"), |said| said.contains("Accepted=True/Accepted"));

    let (plain, secure) = (free_port(), free_port());
    let listeners = format!(
        "  - {{name: http, port: {plain}, protocol: HTTP, allowedRoutes: {{namespaces: {{from: Selector, selector: {{matchLabels: {{exposed: \
         'yes'}}}}}}}}}}\n  - {{name: https, port: {secure}, protocol: HTTPS, hostname: '*.secure.example', tls: {{certificateRefs: [{{name: \
         tls}}]}}}}\n  - {{name: odd, port: 5353, protocol: UDP}}\n"
    );
    cluster.kubectl("label namespace default exposed=yes");
    cluster.apply(&gateway("front", &listeners));
    let said = |object: &str, at: &str, words: &'static str| {
        until(|| conditions(&cluster, object, at), move |said| said.contains(words))
    };
    said("gateway front", "listeners[0].conditions", "Programmed=True/Programmed");
    said("gateway front", "listeners[1].conditions", "ResolvedRefs=False/InvalidCertificateRef");
    said("gateway front", "listeners[2].conditions", "Accepted=False/UnsupportedProtocol");
    said("gateway front", "conditions", "Accepted=True/ListenersNotValid,Programmed=True/Programmed");
    let address =
        cluster.kubectl("get gateway front -o jsonpath={.status.addresses[0].type}={.status.addresses[0].value}");
    assert_eq!(address, "IPAddress=127.0.0.1");

    // Matches, and what is done with them.
    let rules = "  parentRefs: [{name: front, sectionName: http}]
  hostnames: [app.example]
  rules:
  - matches: [{path: {type: PathPrefix, value: /}}]
    backendRefs: [{name: web, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /api}}]
    filters:
    - {type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}}
    - {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-team, value: red}]}}
    - {type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: x-from, value: gateway}]}}
    backendRefs: [{name: web, port: 80}]
  - matches: [{path: {type: Exact, value: /old}}]
    filters: [{type: RequestRedirect, requestRedirect: {scheme: https, hostname: new.example, path: {type: ReplaceFullPath, replaceFullPath: /new}, statusCode: 301}}]
  - matches: [{path: {type: RegularExpression, value: '/v[0-9]+'}, headers: [{name: version, value: two}]}]
    backendRefs: [{name: missing, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /slow}}]
    timeouts: {request: 200ms}
    filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replaceFullPath: /sleep}}}]
    backendRefs: [{name: probe, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /mirror}}]
    filters: [{type: RequestMirror, requestMirror: {backendRef: {name: probe, port: 80}, percent: 100}}]
    backendRefs: [{name: web, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /odd}}]
    filters: [{type: CORS, cors: {}}]
    backendRefs: [{name: web, port: 80}]
";
    cluster.apply(&route("{name: app}", rules));
    let ask = |path: &str, headers: &str| get(&plain, "app.example", path, headers);
    until(|| ask("/hostname", ""), status("200"));
    let answer = ask("/api/header?key=x-team", "x-team: blue\r\n");
    assert!(answer.contains("x-from: gateway\r\n") && answer.contains("red") && !answer.contains("blue"), "{answer}");
    let answer = ask("/old?q", "");
    let location = "location: https://new.example/new?q\r\n";
    assert!(answer.starts_with("HTTP/1.1 301") && answer.contains(location), "{answer}");
    assert!(ask("/v1", "").contains("\"path\":\"/v1\""));
    let answer = ask("/v1", "version: two\r\n");
    assert!(answer.starts_with("HTTP/1.1 500") && answer.contains("default/missing"), "{answer}");
    until(|| ask("/slow?60000", ""), status("504"));
    let answer = ask("/odd", "");
    assert!(answer.starts_with("HTTP/1.1 500") && answer.contains("filter CORS is not supported"), "{answer}");
    // Somebody else gets a copy.
    let answer = ask("/mirror", "");
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"path\":\"/mirror\""), "{answer}");
    let node = cluster.kubectl("get nodes -o jsonpath={.items[0].metadata.name}");
    let copied = "coracle_gateway_mirrors_total{result=\"answered\"} 1\n";
    cluster.eventually(&format!("get --raw /api/v1/nodes/{node}/proxy/metrics"), |page| page.contains(copied));
    let answer = get(&plain, "other.example", "/", "");
    assert!(answer.starts_with("HTTP/1.1 404") && answer.contains("no HTTPRoute has a rule"), "{answer}");
    let expected = "Accepted=True/Accepted,ResolvedRefs=False/BackendNotFound,PartiallyInvalid=True/UnsupportedValue,";
    said("httproute app", "parents[0].conditions", expected);
    assert_eq!(cluster.kubectl("get gateway front -o jsonpath={.status.listeners[*].attachedRoutes}"), "1 0 0");

    // TLS, once the certificate is there.
    let key = rcgen::KeyPair::generate().expect("a key");
    let names = vec!["a.secure.example".to_owned()];
    let certificate =
        rcgen::CertificateParams::new(names).and_then(|wanted| wanted.self_signed(&key)).expect("a certificate");
    let (cert_file, key_file) = (cluster.data_dir().join("tls.crt"), cluster.data_dir().join("tls.key"));
    std::fs::write(&cert_file, certificate.pem()).expect("write");
    std::fs::write(&key_file, key.serialize_pem()).expect("write");
    let files = format!("--cert={} --key={}", cert_file.display(), key_file.display());
    cluster.kubectl(&format!("create secret tls tls {files}"));
    cluster.apply(&route(
        "{name: secure}",
        "  parentRefs: [{name: front, sectionName: https}]\n  rules: [{backendRefs: [{name: web, port: 80}]}]\n",
    ));
    said("gateway front", "listeners[1].conditions", "Programmed=True/Programmed");
    let der = certificate.der().clone();
    until(|| get_tls(&secure, "a.secure.example", &der), status("200"));

    // Other namespaces: routes as labels allow, backends as grants permit, weights as they say.
    cluster.kubectl("create namespace team");
    let team = "  parentRefs: [{name: front, namespace: default, sectionName: http}]
  hostnames: [team.example]
  rules: [{backendRefs: [{name: web, namespace: default, port: 80, weight: 1}, {name: none, port: 80, weight: 0}]}]
";
    cluster.apply(&route("{name: team, namespace: team}", team));
    said("httproute team -n team", "parents[0].conditions", "Accepted=False/NotAllowedByListeners");
    cluster.kubectl("label namespace team exposed=yes");
    said("httproute team -n team", "parents[0].conditions", "Accepted=True/Accepted");
    until(|| get(&plain, "team.example", "/", ""), status("500"));
    said("httproute team -n team", "parents[0].conditions", "ResolvedRefs=False/");
    cluster.apply(
        "apiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: {name: web}\nspec:\n  from: [{group: \
         gateway.networking.k8s.io, kind: HTTPRoute, namespace: team}]\n  to: [{group: '', kind: Service, name: web}]\n",
    );
    until(|| get(&plain, "team.example", "/", ""), status("200"));

    // Calls of gRPC: a GRPCRoute gives way to an older HTTPRoute for its hosts, and has others.
    let calls = |hostnames: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {{name: calls}}
spec:
  parentRefs: [{{name: front, sectionName: http}}]
  hostnames: {hostnames}
  rules:
  - matches: [{{method: {{service: web.Service, method: Get}}}}]
    backendRefs: [{{name: web, port: 80}}]
  - matches: [{{method: {{service: gone.Service}}}}]
    backendRefs: [{{name: missing, port: 80}}]
"
        )
    };
    cluster.apply(&calls("[localhost, app.example]"));
    said("grpcroute calls", "parents[0].conditions", "Accepted=False/HostnameConflict");
    cluster.apply(&calls("[localhost]"));
    said("grpcroute calls", "parents[0].conditions", "Accepted=True/Accepted,ResolvedRefs=False/BackendNotFound");
    until(|| call(&plain, "/web.Service/Get"), |answer| answer.contains("\"path\":\"/web.Service/Get\""));
    until(|| call(&plain, "/gone.Service/Get"), |answer| answer == "200 OK \"14\" ");
    until(|| call(&plain, "/web.Service/Set"), |answer| answer == "200 OK \"12\" ");

    // An address of nobody is told, and a Gateway that goes takes its port with it.
    cluster.kubectl("patch gateway front --type=merge -p {\"spec\":{\"addresses\":[{\"type\":\"IPAddress\",\"value\":\"192.0.2.1\"}]}}");
    said("gateway front", "conditions", "Programmed=False/AddressNotUsable");
    cluster.kubectl("delete gateway front");
    until(|| get(&plain, "app.example", "/", ""), |answer| answer.contains("refused"));
    let parents = "get httproute app -o jsonpath={.status.parents}";
    cluster.eventually(parents, |text| text == "[]");
    // The definitions go, and come again.
    let manifest = definitions();
    assert!(cluster.kubectl_with("delete", &manifest).status.success());
    cluster.apply(&manifest);
    cluster.eventually("get gatewayclass coracle", |text| !text.contains("NotFound") && !text.contains("doesn't have"));
}

#[test]
fn a_gateway_shares_the_port_of_ingresses() {
    let (http, https) = (free_port(), free_port());
    let cluster = Cluster::start_with(&["--http-port", &http, "--https-port", &https]);
    cluster.push("standin", "standin");
    cluster.apply(WEB);
    cluster.kubectl("rollout status deployment web --timeout=120s");
    cluster.kubectl("create ingress web --rule=ingress.example/*=web:80");
    cluster.apply(&definitions());
    cluster.kubectl("wait --for=condition=Established crd/gateways.gateway.networking.k8s.io --timeout=60s");
    cluster.kubectl("wait --for=condition=Established crd/httproutes.gateway.networking.k8s.io --timeout=60s");
    let taken = std::net::TcpListener::bind("0.0.0.0:0").expect("a port");
    let held = taken.local_addr().expect("its address").port();
    let listeners = format!(
        "  - {{name: http, port: {http}, protocol: HTTP}}\n  - {{name: other, port: {https}, protocol: HTTP}}\n  - {{name: taken, port: {held}, \
         protocol: HTTP}}\n"
    );
    cluster.apply(&gateway("front", &listeners));
    cluster.apply(&route(
        "{name: web}",
        "  parentRefs: [{name: front}]\n  hostnames: [gateway.example]\n  rules: [{backendRefs: [{name: web, port: 80}]}]\n",
    ));
    until(|| get(&http, "gateway.example", "/", ""), status("200"));
    until(|| get(&http, "ingress.example", "/", ""), status("200"));
    let said = |at: &str, words: &'static str| {
        until(|| conditions(&cluster, "gateway front", at), move |said| said.contains(words))
    };
    said("listeners[0].conditions", "Programmed=True/Programmed");
    // TLS is spoken at the one, and the other is somebody else's.
    said("listeners[1].conditions", "Programmed=False/PortUnavailable");
    said("listeners[2].conditions", "Programmed=False/PortUnavailable");
    cluster.eventually("get events", |text| {
        text.contains("GatewayPortUnavailable") && text.contains(&format!("process {}", std::process::id()))
    });
    drop(taken);
    said("listeners[2].conditions", "Programmed=True/Programmed");
}

/// The same by TLS, to whoever shows this certificate.
fn get_tls(port: &str, host: &str, certificate: &CertificateDer<'static>) -> String {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate.clone()).expect("a certificate");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = builder.expect("versions of TLS").with_root_certificates(roots).with_no_client_auth();
    let name = host.to_owned().try_into().expect("a name");
    let mut session = rustls::ClientConnection::new(Arc::new(config), name).expect("a client");
    let mut socket = match TcpStream::connect(format!("127.0.0.1:{port}")) {
        Ok(socket) => socket,
        Err(error) => return error.to_string(),
    };
    if let Err(error) = session.complete_io(&mut socket) {
        return error.to_string();
    }
    exchange(rustls::Stream::new(&mut session, &mut socket), &format!("GET / HTTP/1.1\r\nhost: {host}\r\n"))
}
