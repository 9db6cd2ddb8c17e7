//! Network policies, as a guest, another node and a person see them.

use http::Request;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::kubelet::answered;
use super::{World, command};

/// Pods of the namespace are called by those with this label only, and may themselves call all.
fn only(app: &str) -> Value {
    json!({"spec": {"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": app}}}]}]}})
}

/// Those of the label `web` may call every pod but those with the label `shut`, from the node's first moment on.
async fn open_to_web_or_shut() -> World {
    let mut world = World::start().await;
    world.stop_node().await;
    let mut open = only("web");
    open["spec"]["podSelector"] = json!({"matchExpressions": [{"key": "shut", "operator": "DoesNotExist"}]});
    world.api.put_object("networkpolicies", "only-web", open);
    world.api.put_object("networkpolicies", "shut", json!({"spec": {"podSelector": {"matchLabels": {"shut": "yes"}}}}));
    world.start_node().await;
    world
}

/// A pod as the node `n2` tells of it.
fn told(address: &str, app: &str) -> String {
    let pod = json!({"address": address, "namespace": "default", "name": "a", "account": "default", "labels": {"app": app}, "ports": []});
    pod.to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_node_is_let_in_for_the_pods_that_policies_name_and_for_its_own_only() {
    let world = open_to_web_or_shut().await;
    // Both are reached by their node: probes, and port-forward.
    let mut listens = command(&["listen", "9000"]);
    listens["readinessProbe"] = json!({"tcpSocket": {"port": 9000}});
    world.run("listens", listens.clone());
    world.run("forwards", listens);
    world.run("component", json!({"image": "hello:1", "readinessProbe": {"httpGet": {"port": 80}}}));
    let address = |status: Value| status["podIP"].as_str().unwrap().to_owned();
    let (listens, component) = (address(world.ready("listens").await), address(world.ready("component").await));
    world.ready("forwards").await;
    let mut forwarded = world.forward("forwards", 9000).await;
    forwarded.write_all(b"forwarded\n").await.unwrap();
    let mut heard = [0; 10];
    forwarded.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"FORWARDED\n");

    let peers = world.pods().context.network.table.peers().unwrap().clone();
    peers.take(vec![json!({"name": "n2", "address": "192.0.2.1", "port": 1, "podCIDR": "10.77.0.0/24"})]);
    let connect = async |to: &str, source: Option<&str>, asks: bool| {
        let mut link = world.certificates.link(world.port(), "system:node:n2").await;
        let mut request = Request::builder().method("CONNECT").uri(to);
        if let Some(source) = source {
            request = request.header("x-coracle-link-source", source);
        }
        if asks {
            request = request.header("x-coracle-link", "requests");
        }
        let answer = link.send_request(request.body(http_body_util::Empty::new()).unwrap()).await.unwrap();
        match answer.status().as_u16() {
            200 => {
                let called = answer.headers()["x-coracle-link-called"].to_str().unwrap().to_owned();
                Ok((TokioIo::new(hyper::upgrade::on(answer).await.unwrap()), link, called))
            }
            code => Err(code),
        }
    };
    let (web, other, stolen) = (told("10.77.0.2", "web"), told("10.77.0.3", "other"), told("10.78.0.2", "web"));
    let (listens, component) = (format!("{listens}:9000"), format!("{component}:80"));
    for (source, is_let_in) in [
        (Some(web.as_str()), true),
        (Some(other.as_str()), false),
        (Some(stolen.as_str()), false),
        (Some("outside 198.51.100.7"), false),
        (Some("node"), false),
        (Some("unknown"), false),
        (None, false),
    ] {
        for to in [&listens, &component] {
            let connected = connect(to, source, false).await.map(drop);
            assert_eq!(connected, if is_let_in { Ok(()) } else { Err(403) }, "{source:?} to {to}");
        }
    }
    let (mut stream, _link, called) = connect(&listens, Some(&web), false).await.unwrap();
    let called: Value = serde_json::from_str(&called).unwrap();
    assert_eq!((&called["namespace"], &called["name"]), (&json!("default"), &json!("listens")));
    stream.write_all(b"over the link\n").await.unwrap();
    let mut heard = [0; 14];
    stream.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"OVER THE LINK\n");

    // One that a proxy keeps ends when its source may not come any more; one of bytes stays.
    let (mut kept, _links, _) = connect(&listens, Some(&web), true).await.unwrap();
    world.api.modify("listens", |pod| pod["metadata"]["labels"] = json!({"shut": "yes"}));
    let ended = tokio::time::timeout(std::time::Duration::from_secs(30), kept.read_u8()).await.expect("it ends");
    assert!(ended.is_err());
    stream.write_all(b"over the link\n").await.unwrap();
    stream.read_exact(&mut heard).await.unwrap();
    assert_eq!(connect(&listens, Some(&web), true).await.map(drop), Err(403));

    // A stream of requests is opened for whomever, and each of them is judged.
    let (mut stream, _link, _) = connect(&component, None, true).await.unwrap();
    for (source, status) in [(&web, "200"), (&other, "403"), (&web, "200"), (&stolen, "403")] {
        let ask = format!("GET / HTTP/1.1\r\nhost: x\r\nx-coracle-link-source: {source}\r\n\r\n");
        stream.write_all(ask.as_bytes()).await.unwrap();
        let head = answered(&mut stream).await;
        assert!(head.starts_with(&format!("http/1.1 {status}")), "{source}: {head}");
        assert_eq!(head.contains("x-coracle-link-refused: not-allowed"), status == "403", "{head}");
    }
}

/// The node's own end of a flow; the other is said in bytes. What a guest would bind is bound by the test, at the same address.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_node_s_datagrams_come_to_the_pod_from_the_node_while_policies_name_who_sends_them() {
    let world = open_to_web_or_shut().await;
    let mut listens = command(&["listen", "9000"]);
    listens["readinessProbe"] = json!({"tcpSocket": {"port": 9000}});
    world.run("listens", listens);
    world.run("component", json!({"image": "hello:1", "readinessProbe": {"httpGet": {"port": 80}}}));
    let address = |status: Value| status["podIP"].as_str().unwrap().to_owned();
    let (listens, component) = (address(world.ready("listens").await), address(world.ready("component").await));
    let network = world.pods().context.network.clone();
    let peers = network.table.peers().unwrap().clone();
    peers.take(vec![json!({"name": "n2", "address": "192.0.2.1", "port": 1, "podCIDR": "10.77.0.0/24"})]);
    let twin = network.table.twin(listens.parse().unwrap()).unwrap();
    let socket = tokio::net::UdpSocket::bind((twin, 5353)).await.unwrap();
    let connect = async |to: &str, source: &str| {
        let mut link = world.certificates.link(world.port(), "system:node:n2").await;
        let request = Request::builder().method("CONNECT").uri(to).header("x-coracle-link", "datagrams");
        let request = request.header("x-coracle-link-source", source).body(http_body_util::Empty::new()).unwrap();
        let answer = link.send_request(request).await.unwrap();
        match answer.status().as_u16() {
            200 => {
                assert_eq!(answer.headers()["x-coracle-link"], "datagrams", "it understands");
                assert!(answer.headers()["x-coracle-link-called"].to_str().unwrap().contains("\"listens\""));
                Ok((TokioIo::new(hyper::upgrade::on(answer).await.unwrap()), link))
            }
            code => Err(code),
        }
    };
    let (web, other, stolen) = (told("10.77.0.2", "web"), told("10.77.0.3", "other"), told("10.78.0.2", "web"));
    let at = format!("{listens}:5353");
    assert_eq!(connect(&at, &other).await.map(drop), Err(403));
    assert_eq!(connect(&at, &stolen).await.map(drop), Err(403));
    assert_eq!(connect(&format!("{component}:80"), &web).await.map(drop), Err(503), "it has no socket");
    assert_eq!(connect("10.240.9.9:80", &web).await.map(drop), Err(503));
    let (mut stream, _link) = connect(&at, &web).await.unwrap();
    stream.write_all(b"\0\x05hello").await.unwrap();
    let mut heard = [0; 16];
    let (count, from) = socket.recv_from(&mut heard).await.unwrap();
    assert_eq!((&heard[..count], from.ip()), (&b"hello"[..], network.table.gateway().loopback));
    assert!(network.proxy.has_upstream(twin, from.port()));
    socket.send_to(b"you", from).await.unwrap();
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"\0\x03you");
    // It ends with who the pod is to policies, and what it might answer with it.
    world.api.modify("listens", |pod| pod["metadata"]["labels"] = json!({"shut": "yes"}));
    let ended = tokio::time::timeout(super::PATIENCE, stream.read_u8()).await.expect("it ends");
    assert!(ended.is_err());
    super::until("nothing leads there", || !network.proxy.has_upstream(twin, from.port())).await;
    assert_eq!(connect(&at, &web).await.map(drop), Err(403));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_is_refused_what_policies_do_not_allow_and_a_person_is_told() {
    let mut world = World::start().await;
    world.stop_node().await;
    world.api.put_object("networkpolicies", "only-web", only("web"));
    world.start_node().await;
    let mut listens = command(&["listen", "9000"]);
    listens["readinessProbe"] = json!({"tcpSocket": {"port": 9000}});
    world.run("listens", listens);
    let to = format!("{}:9000", world.ready("listens").await["podIP"].as_str().unwrap());
    let sends = |name: &str| {
        let spec = json!({"restartPolicy": "Never", "containers": [command(&["send", &to, "hello"])]});
        world.run_spec(name, spec);
    };
    sends("stranger");
    let over = |status: &Value| status["phase"] == "Failed" || status["phase"] == "Succeeded";
    assert_eq!(world.status("stranger", "over", over).await["phase"], "Failed");
    let told = format!("A connection to {to} was refused: network policies do not allow it");
    super::until("it is told", || world.api.messages("stranger").contains(&told)).await;
    assert!(world.api.reasons("stranger").contains(&"PolicyDenied".to_owned()));
    world.api.labels(json!({"app": "web"}));
    sends("web");
    assert_eq!(world.status("web", "over", over).await["phase"], "Succeeded");
    // A pod that is told apart later is another to its policies.
    world.api.labels(json!({}));
    world.run("later", command(&["tick", "100"]));
    world.ready("later").await;
    let pods = world.pods();
    let own = pods.find("default", "later").unwrap().address().expect("it runs").pod;
    let to = to.parse().unwrap();
    let network = &pods.context.network;
    let may = || network.proxy.permits(&network.table.source(own), to, coracle_policy::Protocol::Tcp);
    assert!(!may());
    world.api.modify("later", |pod| pod["metadata"]["labels"] = json!({"app": "web"}));
    super::until("its labels are known", may).await;
}
