//! An API server of somebody else, as a person with kubectl sees it: what it serves is a part of the cluster's API, also in the
//! documents, and where it is gone the rest goes on.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use coracle_tests::Cluster;

/// It serves things, and remembers who asked for them.
struct Extension {
    port: u16,
    gone: Arc<AtomicBool>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Extension {
    fn start() -> Extension {
        let made = rcgen::generate_simple_self_signed(vec!["things.default.svc".to_owned()]).expect("a certificate");
        let key = rustls::pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let tls = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
        let tls = tls.with_safe_default_protocol_versions().expect("versions").with_no_client_auth();
        let tls = Arc::new(tls.with_single_cert(vec![made.cert.der().clone()], key.into()).expect("a certificate"));
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let (gone, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let extension = Extension { port, gone: gone.clone(), asked: asked.clone() };
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if gone.load(Ordering::Relaxed) {
                    continue;
                }
                let (tls, asked) = (tls.clone(), asked.clone());
                std::thread::spawn(move || answer(stream, tls, &asked));
            }
        });
        extension
    }
}

/// Answers one request.
fn answer(stream: TcpStream, tls: Arc<rustls::ServerConfig>, asked: &Mutex<Vec<String>>) -> Option<()> {
    let mut stream = rustls::StreamOwned::new(rustls::ServerConnection::new(tls).ok()?, stream);
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let path = head.split(' ').nth(1)?.split('?').next()?.to_owned();
    let resource = r#"{"name":"things","singularName":"thing","namespaced":true,"kind":"Thing","shortNames":["thg"],"verbs":["get","list"]}"#;
    let body = match path.as_str() {
        "/apis/things.example.com/v1" => format!(
            r#"{{"kind":"APIResourceList","apiVersion":"v1","groupVersion":"things.example.com/v1","resources":[{resource}]}}"#
        ),
        "/apis/things.example.com/v1/namespaces/default/things" => {
            asked.lock().expect("the list").push(head);
            r#"{"kind":"ThingList","apiVersion":"things.example.com/v1","metadata":{},"items":[{"kind":"Thing","apiVersion":"things.example.com/v1","metadata":{"name":"one","namespace":"default"}}]}"#.to_owned()
        }
        _ => String::new(),
    };
    let code = if body.is_empty() { "404 Not Found" } else { "200 OK" };
    let answer = format!(
        "HTTP/1.1 {code}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(answer.as_bytes()).ok()?;
    stream.conn.send_close_notify();
    stream.flush().ok()
}

#[test]
fn kubectl_sees_another_api_server_as_a_part_of_the_cluster() {
    let cluster = Cluster::start();
    let extension = Extension::start();
    cluster.apply(&format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: things}}\nspec: {{type: ExternalName, externalName: localhost}}\n---\n\
         apiVersion: apiregistration.k8s.io/v1\nkind: APIService\nmetadata: {{name: v1.things.example.com}}\n\
         spec: {{group: things.example.com, version: v1, groupPriorityMinimum: 1000, versionPriority: 10, insecureSkipTLSVerify: true, \
         service: {{namespace: default, name: things, port: {}}}}}\n",
        extension.port
    ));
    cluster.kubectl("wait --for=condition=Available apiservice/v1.things.example.com --timeout=60s");
    let services = cluster.kubectl("get apiservices");
    let row = |name: &str| services.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned();
    assert!(row("v1.things.example.com ").contains("default/things"), "{services}");
    assert!(row("v1.apps ").contains("Local") && row("v1.apps ").contains("True"), "{services}");
    let listed = cluster.eventually("api-resources --api-group=things.example.com", |text| text.contains("thg"));
    assert!(listed.contains("things.example.com/v1") && listed.contains("Thing"), "{listed}");
    assert!(cluster.kubectl("get thg").contains("one"));
    assert_eq!(cluster.kubectl("get things.v1.things.example.com -o name").trim(), "thing.things.example.com/one");
    let asked = extension.asked.lock().expect("the list").pop().expect("it was asked").to_ascii_lowercase();
    assert!(asked.contains("x-remote-group: system:masters") && asked.contains("x-remote-user: "), "{asked}");
    assert!(!asked.contains("authorization:"), "{asked}");
    assert!(cluster.kubectl_fails("get things --as alice").contains("(Forbidden)"));

    // It goes: what it serves is unavailable, and the rest is as it was.
    extension.gone.store(true, Ordering::Relaxed);
    cluster.eventually("get apiservices v1.things.example.com", |row| row.contains("False (FailedDiscoveryCheck)"));
    assert!(cluster.kubectl_fails("get things").contains("(ServiceUnavailable)"));
    cluster.kubectl("create namespace going");
    cluster.kubectl("create configmap -n going c --from-literal=a=b");
    cluster.kubectl("create deployment -n going d --image=standin --replicas=0");
    cluster.kubectl("wait -n going --for=create replicaset -l app=d --timeout=60s");
    cluster.kubectl("delete deployment -n going d");
    cluster.eventually("get replicasets -n going -o name", str::is_empty);
    cluster.kubectl("delete namespace going --wait=false");
    let conditions =
        "get namespace going -o jsonpath={.status.conditions[?(@.type==\"NamespaceDeletionDiscoveryFailure\")].status}";
    cluster.eventually(conditions, |status| status == "True");
    cluster.eventually("get configmaps -n going -o name", str::is_empty);
    // Nobody serves it any more, and nothing is missing.
    cluster.kubectl("delete apiservice v1.things.example.com");
    cluster.kubectl("wait --for=delete namespace/going --timeout=120s");
}
