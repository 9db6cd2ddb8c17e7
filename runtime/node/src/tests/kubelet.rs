//! The node's endpoint, as an API server and as others see it.

use futures::{SinkExt as _, StreamExt as _};
use http::Request;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::caller::read;
use super::{PATIENCE, World, command};

const API_SERVER: Option<&str> = Some("kube-apiserver-kubelet-client");

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_as_the_kubelet_gives_them() {
    let world = World::start().await;
    let port = world.port();
    world.run_spec("once", json!({"restartPolicy": "Never", "containers": [command(&["echo", "one", "echo", "two"])]}));
    world.status("once", "Succeeded", |status| status["phase"] == "Succeeded").await;
    world.run("none", json!({"image": "nothing:1"}));
    world.status("none", "waiting", |status| status["phase"] == "Pending").await;
    world.run("again", command(&["echo", "life", "crash"]));
    world.status("again", "restarted", |status| status["containerStatuses"][0]["restartCount"] == 1).await;
    let cases = [
        ("once/c", 200, "one\ntwo\n"),
        ("once/c?tailLines=1&follow=true", 200, "two\n"),
        ("once/c?limitBytes=2", 200, "on"),
        ("once/c?stream=Stderr", 200, ""),
        ("once/c?previous=true", 400, "previous terminated container \"c\" in pod \"once\" not found"),
        ("once/x", 404, "container \"x\" not found in pod \"once\"\n"),
        ("gone/c", 404, "pod \"gone\" does not exist\n"),
        ("once/c?tailLines=x", 422, "invalid value \"x\" for tailLines"),
    ];
    for (path, code, text) in cases {
        let path = format!("/containerLogs/default/{path}");
        assert_eq!(world.certificates.get(port, &path).await, (code, text.to_owned()), "{path}");
    }
    let (code, text) = world.certificates.get(port, "/containerLogs/default/again/c?previous=true").await;
    assert!(code == 200 && text.starts_with("life\n"), "{text}");
    // Who asks for JSON is refused by a Status.
    let request =
        Request::get("/containerLogs/default/gone/c").header("host", "x").header("accept", "application/json, */*");
    let (code, text) = read(world.certificates.send(port, API_SERVER, request.body(()).unwrap()).await).await;
    let status: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, &status["message"]), (404, &json!("pod \"gone\" does not exist")));
    assert_eq!((&status["kind"], &status["reason"]), (&json!("Status"), &json!("NotFound")));
    let (code, text) = world.certificates.get(port, "/containerLogs/default/none/c").await;
    assert!(code == 400 && text.starts_with("container \"c\" in pod \"none\" is waiting to start: "), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_leads_to_pods_of_this_node_and_only_other_nodes_have_one() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let world = World::start().await;
    let mut listens = command(&["listen", "9000"]);
    listens["readinessProbe"] = json!({"tcpSocket": {"port": 9000}});
    world.run("listens", listens);
    world.run("component", json!({"image": "hello:1"}));
    let address = |status: serde_json::Value| status["podIP"].as_str().unwrap().to_owned();
    let (listens, component) = (address(world.ready("listens").await), address(world.ready("component").await));
    let daemon = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
    let at = daemon.local_addr().unwrap().port();
    let own = world.port();
    let connect = async |name: &str, to: &str| {
        let mut link = world.certificates.link(own, name).await;
        let request = Request::builder().method("CONNECT").uri(to).body(http_body_util::Empty::new()).unwrap();
        let answer = link.send_request(request).await.unwrap();
        match answer.status().as_u16() {
            200 => Ok((TokioIo::new(hyper::upgrade::on(answer).await.unwrap()), link)),
            code => Err(code),
        }
    };
    let node = "system:node:n2";
    for (to, said, expected) in [
        (format!("{listens}:9000"), "over the link\n", "OVER THE LINK\n"),
        (format!("{component}:80"), "GET / HTTP/1.1\r\nhost: x\r\n\r\n", "HTTP/1.1 200 OK\r\n"),
    ] {
        let (mut stream, _link) = connect(node, &to).await.unwrap();
        stream.write_all(said.as_bytes()).await.unwrap();
        let mut answer = vec![0; expected.len()];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(String::from_utf8_lossy(&answer), expected, "{to}");
    }
    // Nothing that is no pod of this node, and no port at which the pod does not listen.
    let elsewhere = [format!("127.0.0.1:{own}"), format!("{listens}:{at}"), "10.240.0.2:80".to_owned()];
    for to in elsewhere {
        assert_eq!(connect(node, &to).await.map(drop).unwrap_err(), 503, "{to}");
    }
    for nobody in ["somebody", "system:node", "kube-apiserver-kubelet-client"] {
        assert!(connect(nobody, &format!("{listens}:9000")).await.is_err(), "{nobody} is no node");
    }
}

/// A stream for requests to a component, as another node's proxy opens one, and what keeps it open.
async fn requests_to(world: &World, to: &str, says_so: bool) -> (TokioIo<hyper::upgrade::Upgraded>, impl Sized) {
    let mut link = world.certificates.link(world.port(), "system:node:n2").await;
    let mut request = Request::builder().method("CONNECT").uri(to);
    if says_so {
        request = request.header("x-coracle-link", "requests");
    }
    let answer = link.send_request(request.body(http_body_util::Empty::new()).unwrap()).await.unwrap();
    assert_eq!((answer.status().as_u16(), &answer.headers()["x-coracle-link"]), (200, &"requests".parse().unwrap()));
    (TokioIo::new(hyper::upgrade::on(answer).await.unwrap()), link)
}

/// Reads a head, and the body behind it.
pub(super) async fn answered(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> String {
    use tokio::io::AsyncReadExt as _;
    let mut text = Vec::new();
    while !text.ends_with(b"\r\n\r\n") {
        text.push(stream.read_u8().await.unwrap());
    }
    let head = String::from_utf8(text).unwrap().to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
    let mut body = vec![0; length.unwrap_or_default()];
    stream.read_exact(&mut body).await.unwrap();
    while head.contains("transfer-encoding: chunked") && !body.ends_with(b"0\r\n\r\n") {
        body.push(stream.read_u8().await.unwrap());
    }
    head
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_says_that_nobody_took_a_request_and_ends_after_the_pod() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let world = World::start().await;
    world.run("component", json!({"image": "hello:1"}));
    let to = format!("{}:80", world.ready("component").await["podIP"].as_str().unwrap());
    let (mut used, _used) = requests_to(&world, &to, true).await;
    let (mut idle, _idle) = requests_to(&world, &to, true).await;
    let (mut raw, _raw) = requests_to(&world, &to, false).await;
    let ask = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";
    for stream in [&mut used, &mut idle, &mut raw] {
        stream.write_all(ask).await.unwrap();
        let head = answered(stream).await;
        assert!(head.starts_with("http/1.1 200"), "{head}");
    }
    world.api.delete("component", 0);
    // It goes while requests come: each is answered, by the component or by its node.
    let asking = async {
        loop {
            used.write_all(ask).await.unwrap();
            let head = answered(&mut used).await;
            // One may have been with the component when that was killed.
            let is_cut = head.starts_with("http/1.1 502") && head.contains("x-coracle-link-refused: seen");
            if !head.starts_with("http/1.1 200") && !is_cut {
                return head;
            }
        }
    };
    let head = tokio::time::timeout(super::PATIENCE, asking).await.expect("the component ends");
    assert!(head.starts_with("http/1.1 503") && head.contains("x-coracle-link-refused: unseen"), "{head}");
    assert!(head.contains("connection: close"), "{head}");
    for stream in [&mut used, &mut idle, &mut raw] {
        // Long before a stream ends that nobody uses.
        let ended = tokio::time::timeout(std::time::Duration::from_secs(20), stream.read(&mut [0; 16])).await;
        assert!(matches!(ended.expect("it ends with the pod"), Ok(0) | Err(_)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_called_is_known_on_another_node_from_its_proxy_only() {
    use tokio::io::AsyncWriteExt as _;
    let world = World::start().await;
    world.run("component", json!({"image": "hello:1"}));
    let to = format!("{}:80", world.ready("component").await["podIP"].as_str().unwrap());
    for (callers, says_so, status) in [(16, true, "200"), (17, true, "508"), (17, false, "200")] {
        let (mut stream, _link) = requests_to(&world, &to, says_so).await;
        let chain = (0..callers).map(|n| format!("{n:016x}")).collect::<Vec<_>>().join(",");
        let ask = format!("GET / HTTP/1.1\r\nhost: x\r\nx-coracle-link-carried: {chain}\r\n\r\n");
        stream.write_all(ask.as_bytes()).await.unwrap();
        let head = answered(&mut stream).await;
        assert!(head.starts_with(&format!("http/1.1 {status}")), "{callers} {says_so}: {head}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_connection_has_become_holds_its_place_and_links_have_their_own() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let world = World::start().await;
    world.run("web", json!({"image": "hello:1"}));
    world.ready("web").await;
    let mut connections = Vec::new();
    for _ in 0..crate::kubelet::API_SERVERS_MAX - 1 {
        connections.push(world.certificates.connect(world.port(), API_SERVER).await);
    }
    let tunnel = websocket(&world, "/portForward/default/web?ports=80", "v4.channel.k8s.io").await;
    let is_let_in = async || {
        let mut stream = world.certificates.connect(world.port(), API_SERVER).await;
        let _ = stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(super::PATIENCE, stream.read_to_end(&mut answer)).await.expect("an end");
        answer.starts_with(b"HTTP/1.1 200")
    };
    assert!(!is_let_in().await, "each has its place still");
    // Other nodes are not kept out; of the links of one the newest stay.
    let mut links = Vec::new();
    for _ in 0..5 {
        let mut link = world.certificates.link(world.port(), "system:node:n2").await;
        let request = Request::get("/healthz").body(http_body_util::Empty::new()).unwrap();
        assert_eq!(link.send_request(request).await.unwrap().status(), 200);
        links.push(link);
    }
    super::until("the oldest has given way", || links[0].is_closed()).await;
    assert!(links[1..].iter().all(|link| !link.is_closed()));
    drop(tunnel);
    let free = async { while !is_let_in().await {} };
    tokio::time::timeout(super::PATIENCE, free).await.expect("a place is free again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_s_pods_take_their_share_of_places_and_not_those_of_others() {
    let world = World::start().await;
    world.run("web", json!({"image": "hello:1"}));
    world.ready("web").await;
    let logs = async |namespace: &str| {
        world.certificates.get(world.port(), &format!("/containerLogs/{namespace}/web/c")).await
    };
    let mut tunnels = Vec::new();
    let (code, why) = loop {
        assert!(tunnels.len() < crate::kubelet::FOR_PODS_MAX / 2);
        tunnels.push(websocket(&world, "/portForward/default/web?ports=80", "v4.channel.k8s.io").await);
        let (code, why) = logs("default").await;
        if code != 200 {
            break (code, why);
        }
    };
    assert_eq!((code, &*why), (503, "too many connections to pods of namespace \"default\" on this node"));
    assert_eq!(world.certificates.get(world.port(), "/coracle/v1/proxy/default/web/80/").await.0, 503);
    // It is let in, and told that there is none.
    assert_eq!(logs("other").await.0, 404);
    assert_eq!(world.certificates.get(world.port(), "/metrics/resource").await.0, 200);
    drop(tunnels);
    let free = async { while logs("default").await.0 != 200 {} };
    tokio::time::timeout(super::PATIENCE, free).await.expect("places are free again");
}

/// Writes until nothing more is taken.
async fn stall(stream: &mut (impl tokio::io::AsyncWrite + Unpin), bytes: &[u8]) {
    use tokio::io::AsyncWriteExt as _;
    let writing = async { while stream.write_all(bytes).await.is_ok() {} };
    let is_over = tokio::time::timeout(std::time::Duration::from_millis(500), writing).await.is_ok();
    assert!(!is_over, "the connection has ended");
}

/// A pod that accepts one connection, and what keeps it busy.
async fn busy_with_one(world: &World) -> tokio::io::DuplexStream {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut listens = command(&["listen", "9000"]);
    listens["readinessProbe"] = json!({"tcpSocket": {"port": 9000}, "periodSeconds": 3600});
    world.run("listens", listens);
    world.ready("listens").await;
    let mut first = forward(world, "listens", 9000).await;
    first.write_all(b"x\n").await.unwrap();
    first.read_exact(&mut [0; 2]).await.unwrap();
    first
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_gone_holds_no_place_while_a_pod_takes_nothing() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let world = World::start().await;
    let _first = busy_with_one(&world).await;
    let upgrade = |protocol: &str| {
        format!(
            "POST /portForward/default/listens HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: {protocol}\r\n\r\n"
        )
    };
    let post = "POST /coracle/v1/proxy/default/listens/9000/ HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000000\r\n\r\n";
    let mut data = vec![0; 8 + (1 << 16)];
    data[..8].copy_from_slice(&[0, 0, 0, 1, 0, 1, 0, 0]);
    for (head, frame) in [(upgrade("SPDY/3.1"), data), (post.to_owned(), vec![b'x'; 1 << 16])] {
        let mut stalled = Vec::new();
        while world.certificates.get(world.port(), "/containerLogs/default/listens/c").await.0 == 200 {
            let mut stream = world.certificates.connect(world.port(), API_SERVER).await;
            stream.write_all(head.as_bytes()).await.unwrap();
            if head != post {
                let mut answer = Vec::new();
                while !answer.ends_with(b"\r\n\r\n") {
                    answer.push(stream.read_u8().await.unwrap());
                }
                let of = |kind| [("streamtype", kind), ("port", "9000"), ("requestid", "1")];
                for opened in [
                    crate::kubelet::syn_stream(1, true, &of("data"), 0),
                    crate::kubelet::syn_stream(3, false, &of("error"), 1),
                ] {
                    stream.write_all(&opened).await.unwrap();
                }
            }
            stall(&mut stream, &frame).await;
            stalled.push(stream);
        }
        assert!(!stalled.is_empty());
        // As an API server whose client has gone.
        stalled.iter().for_each(|stream| stream.get_ref().0.set_zero_linger().unwrap());
        drop(stalled);
        let free =
            async { while world.certificates.get(world.port(), "/containerLogs/default/listens/c").await.0 != 200 {} };
        // Long before the pod is given up.
        let soon = std::time::Duration::from_secs(15);
        tokio::time::timeout(soon, free).await.expect("places are free again");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_takes_nothing_is_not_waited_for_without_end() {
    let world = World::start().await;
    let _first = busy_with_one(&world).await;
    let (mut read, mut write) = tokio::io::split(forward(&world, "listens", 9000).await);
    let ended =
        async { while tokio::io::AsyncReadExt::read(&mut read, &mut [0; 64]).await.is_ok_and(|count| count > 0) {} };
    // Until nothing more goes in, however much that is.
    let writing = async {
        while tokio::io::AsyncWriteExt::write_all(&mut write, &[b'x'; 1 << 16]).await.is_ok() {}
        std::future::pending::<()>().await;
    };
    let either = async {
        tokio::select! { () = ended => {}, () = writing => {} }
    };
    tokio::time::timeout(super::PATIENCE, either).await.expect("it ends");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_at_which_nobody_listens_is_unavailable_and_named_as_the_pods() {
    let world = World::start().await;
    world.run("quiet", command(&["sleep", "600000"]));
    let address = world.ready("quiet").await["podIP"].as_str().unwrap().to_owned();
    // A daemon of the host that listens at every address does not stand in for the pod.
    let daemon = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
    daemon.set_nonblocking(true).unwrap();
    let at = daemon.local_addr().unwrap().port();
    for port in [81, at] {
        let request = Request::get(format!("/coracle/v1/proxy/default/quiet/{port}/"));
        let request = request.header("host", "x").header("accept", "application/json").body(()).unwrap();
        let (code, text) = read(world.certificates.send(world.port(), API_SERVER, request).await).await;
        let status: serde_json::Value = serde_json::from_str(&text).unwrap();
        let message = format!("error trying to reach service: dial tcp {address}:{port}: connect: connection refused");
        assert_eq!((code, &status["reason"], &status["message"]), (503, &json!("ServiceUnavailable"), &json!(message)));
        let path = format!("/portForward/default/quiet?ports={port}");
        let mut socket = websocket(&world, &path, "v4.channel.k8s.io").await;
        let mut text = String::new();
        while let Some(Ok(message)) = socket.next().await {
            if let Message::Binary(bytes) = message
                && bytes[0] == 1
            {
                text.push_str(&String::from_utf8_lossy(&bytes[1..]));
            }
        }
        assert!(text.ends_with("connect: connection refused"), "{text}");
    }
    // Nor for a probe.
    let mut probed = command(&["sleep", "600000"]);
    probed["livenessProbe"] = json!({"tcpSocket": {"port": at}, "periodSeconds": 1, "failureThreshold": 1, "terminationGracePeriodSeconds": 1});
    world.run("probed", probed);
    world.status("probed", "restarted", |status| status["containerStatuses"][0]["restartCount"] == 1).await;
    assert_eq!(daemon.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock, "the daemon was connected to");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_api_servers_are_let_in() {
    let world = World::start().await;
    let port = world.port();
    world.run("web", json!({"image": "hello:1"}));
    world.ready("web").await;
    for (name, path, code) in [
        (API_SERVER, "/pods", 200),
        (API_SERVER, "/stats/summary", 200),
        (API_SERVER, "/metrics/resource", 200),
        (API_SERVER, "/coracle/v1/proxy/default/web/80/x?y=z", 200),
        (API_SERVER, "/coracle/v1/proxy/default/gone/80/", 404),
        (API_SERVER, "/exec/default/web/c?command=ls&output=1", 400),
        (API_SERVER, "/attach/default/web/c?output=1", 400),
        (API_SERVER, "/portForward/default/web", 400),
        (Some("system:node:n2"), "/healthz", 200),
        (Some("system:node:n2"), "/pods", 403),
        (None, "/healthz", 200),
        (None, "/pods", 401),
    ] {
        let request = Request::get(path).header("host", "127.0.0.1").body(()).unwrap();
        let (found, text) = read(world.certificates.send(port, name, request).await).await;
        assert_eq!(found, code, "{name:?} {path}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_containers_have_used_is_counted_since_they_began() {
    let world = World::start().await;
    let begun = jiff::Timestamp::now().as_millisecond() as f64 / 1_000.0;
    world.run("web", json!({"image": "hello:1"}));
    world.ready("web").await;
    let labels = "{container=\"c\",namespace=\"default\",pod=\"web\"} ";
    let figure = async |name: &str, labels: &str| -> f64 {
        let (code, text) = world.certificates.get(world.port(), "/metrics/resource").await;
        assert_eq!(code, 200);
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(labels));
        let line = line.unwrap_or_else(|| panic!("{name} in {text}"));
        line.split_whitespace().next().unwrap().parse().unwrap()
    };
    let started = figure("container_start_time_seconds", labels).await;
    let now = jiff::Timestamp::now().as_millisecond() as f64 / 1_000.0;
    assert!(begun <= started && started <= now, "{begun} {started} {now}");
    let before = figure("container_cpu_usage_seconds_total", labels).await;
    for _ in 0..20 {
        let path = "/coracle/v1/proxy/default/web/80/";
        assert_eq!(world.certificates.get(world.port(), path).await.0, 200);
    }
    assert!(figure("container_cpu_usage_seconds_total", labels).await > before);
    let of_pod = "{namespace=\"default\",pod=\"web\"} ";
    assert!(figure("pod_cpu_usage_seconds_total", of_pod).await > before);
    assert!(figure("container_memory_working_set_bytes", labels).await >= 0.0);
    assert!(
        figure("node_memory_working_set_bytes", " ").await > 1e6
            && figure("node_cpu_usage_seconds_total", " ").await > 0.0
    );
}

/// As a browser's WebSocket through `pods/proxy`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_to_a_pod_may_change_its_protocol() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let world = World::start().await;
    let mut chat = command(&["chat", "7"]);
    chat["readinessProbe"] = json!({"tcpSocket": {"port": 7}});
    world.run("chat", chat);
    world.run("web", json!({"image": "hello:1"}));
    world.ready("chat").await;
    world.ready("web").await;
    let ask = async |name: &str, port: u16, protocol: &str| {
        let request = Request::get(format!("/coracle/v1/proxy/default/{name}/{port}/")).header("host", "x");
        let request = request.header("connection", "Upgrade").header("upgrade", protocol).body(()).unwrap();
        world.certificates.send(world.port(), API_SERVER, request).await
    };
    let response = ask("chat", 7, "chat").await;
    assert_eq!((response.status().as_u16(), &response.headers()["upgrade"]), (101, &"chat".parse().unwrap()));
    let mut stream = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    for _ in 0..2 {
        let mut heard = [0; 6];
        stream.write_all(b"hello\n").await.unwrap();
        stream.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"HELLO\n");
    }
    // A component answers requests and nothing else, and says so.
    let (code, text) = read(ask("web", 80, "websocket").await).await;
    assert!(code == 501 && text.contains("cannot take over a connection"), "{code} {text}");
    assert_eq!(read(ask("web", 80, "h2c").await).await.0, 200, "an offer");
}

/// Who has no certificate and says nothing does not hold a place.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_stranger_is_let_go() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let world = World::start().await;
    // Nothing, the beginning of HTTP/2, and all of that.
    for said in [&b""[..], b"PRI * HTTP/2.0\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"] {
        let mut stream = world.certificates.connect(world.port(), None).await;
        stream.write_all(said).await.unwrap();
        let mut heard = Vec::new();
        // However it ends.
        let ended = tokio::time::timeout(super::PATIENCE, stream.read_to_end(&mut heard)).await;
        assert!(ended.is_ok(), "{said:?}");
    }
}

async fn websocket(world: &World, path: &str, protocol: &str) -> WebSocketStream<TokioIo<hyper::upgrade::Upgraded>> {
    let request = Request::get(path)
        .header("host", "127.0.0.1")
        .header("connection", "Upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
        .header("sec-websocket-protocol", protocol)
        .body(())
        .unwrap();
    let response = world.certificates.send(world.port(), API_SERVER, request).await;
    assert_eq!(response.status(), 101);
    assert_eq!(response.headers()["sec-websocket-protocol"], protocol);
    let upgraded = hyper::upgrade::on(response).await.unwrap();
    WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Client, None).await
}

/// Data of a port-forward as one stream.
pub async fn forward(world: &World, name: &str, port: u16) -> tokio::io::DuplexStream {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut socket = websocket(world, &format!("/portForward/default/{name}?ports={port}"), "v4.channel.k8s.io").await;
    for _ in 0..2 {
        socket.next().await.unwrap().unwrap();
    }
    let (users, ours) = tokio::io::duplex(1 << 16);
    tokio::spawn(async move {
        let (mut from_user, mut to_user) = tokio::io::split(ours);
        let (mut sink, mut messages) = socket.split();
        let inwards = async {
            while let Some(Ok(Message::Binary(bytes))) = messages.next().await {
                if bytes[0] == 0 && to_user.write_all(&bytes[1..]).await.is_err() {
                    return;
                }
            }
        };
        let outwards = async {
            let mut buffer = vec![0; 4096];
            while let Ok(count @ 1..) = from_user.read(&mut buffer).await {
                let message = [&[0], &buffer[..count]].concat();
                if sink.send(Message::Binary(message.into())).await.is_err() {
                    return;
                }
            }
        };
        tokio::join!(inwards, outwards);
    });
    users
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attach_shows_everything_from_the_beginning_to_the_end() {
    let world = World::start().await;
    let spec = json!({"restartPolicy": "Never", "containers": [command(&["echo", "one", "warn", "two", "sleep", "700", "echo", "three"])]});
    world.run_spec("run", spec);
    let is_running = |status: &serde_json::Value| status["phase"] == "Running" || status["phase"] == "Succeeded";
    world.status("run", "Running", is_running).await;
    let path = "/attach/default/run/c?input=1&output=1&error=1";
    let mut socket = websocket(&world, path, "v5.channel.k8s.io").await;
    socket.send(Message::Binary(b"\0typed".to_vec().into())).await.unwrap();
    let mut channels = [String::new(), String::new(), String::new(), String::new()];
    let mut end = None;
    while let Some(Ok(message)) = socket.next().await {
        if let Message::Close(frame) = &message {
            end = frame.as_ref().map(|frame| u16::from(frame.code));
        }
        if let Message::Binary(bytes) = message {
            channels[usize::from(bytes[0])].push_str(&String::from_utf8_lossy(&bytes[1..]));
        }
    }
    assert_eq!(channels[1], "one\nthree\n");
    assert!(channels[2].contains("two\n") && channels[2].contains("no standard input"), "{}", channels[2]);
    assert!(channels[3].contains("\"Success\""), "{}", channels[3]);
    assert_eq!(end, Some(1000), "kubectl takes anything else for a failure");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attach_is_the_input_of_a_container_that_has_one() {
    let world = World::start().await;
    let mut container = command(&["copy", "echo", "done"]);
    (container["stdin"], container["stdinOnce"]) = (json!(true), json!(true));
    let spec = json!({"restartPolicy": "Never", "containers": [container]});
    world.run_spec("once", spec.clone());
    world.status("once", "Running", |status| status["phase"] == "Running").await;
    let mut socket = websocket(&world, "/attach/default/once/c?input=1&output=1&error=1", "v5.channel.k8s.io").await;
    // Clients send what is text as such, too.
    for message in [Message::binary(b"\0one\n".to_vec()), Message::text("\0two\n"), Message::binary(vec![255, 0])] {
        socket.send(message).await.unwrap();
    }
    let [_, stdout, stderr, status] = channels(&mut socket).await;
    assert_eq!((stdout.as_str(), stderr.as_str()), ("one\ntwo\ndone\n", ""));
    assert!(status.contains("\"Success\""), "{status}");
    world.status("once", "Succeeded", |status| status["phase"] == "Succeeded").await;

    // The first client that goes is the end of an input that is there once.
    world.run_spec("goes", spec.clone());
    world.status("goes", "Running", |status| status["phase"] == "Running").await;
    drop(websocket(&world, "/attach/default/goes/c?input=1&output=1", "v5.channel.k8s.io").await);
    world.status("goes", "Succeeded", |status| status["phase"] == "Succeeded").await;

    // Else it stays open, for who comes next: each client sees what comes of what it has said, and no more.
    let mut spec = spec;
    spec["containers"][0].as_object_mut().unwrap().remove("stdinOnce");
    world.run_spec("stays", spec.clone());
    world.status("stays", "Running", |status| status["phase"] == "Running").await;
    let path = "/attach/default/stays/c?input=1&output=1&error=1";
    for (text, shown) in [("first\n", "first\n"), ("second\n", "first\nsecond\n"), ("", "first\nsecond\n")] {
        let mut socket = websocket(&world, path, "v5.channel.k8s.io").await;
        for message in [[b"\0".as_slice(), text.as_bytes()].concat(), vec![255, 0]] {
            socket.send(Message::Binary(message.into())).await.unwrap();
        }
        let [_, stdout, _, status] = channels(&mut socket).await;
        assert_eq!(stdout, shown);
        assert!(status.contains("\"Success\""), "{status}");
    }
    world.status("stays", "Running", |status| status["phase"] == "Running").await;

    // A terminal is the client's own: it shows what is typed, and its key ends the command.
    let mut socket = websocket(&world, &format!("{path}&tty=1"), "v5.channel.k8s.io").await;
    socket.send(Message::Binary(b"\0ab\x7fc\r\x03".to_vec().into())).await.unwrap();
    let [_, stdout, ..] = channels(&mut socket).await;
    assert!(stdout.contains("ab\x08 \x08c\r\n^C\r\n"), "{stdout:?}");
    world.status("stays", "ended", |status| status["phase"] == "Failed").await;
}

/// As with `kubectl attach -it` and its Ctrl-D, then another `kubectl attach -i`; and with a container that reads nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_attaches_where_nothing_is_read_any_more_is_told_and_let_go() {
    let world = World::start().await;
    let mut container = command(&["copy", "echo", "done", "sleep", "1000000"]);
    container["stdin"] = json!(true);
    world.run("ended", container);
    world.run("web", json!({"image": "hello:1", "stdin": true}));
    world.ready("ended").await;
    world.ready("web").await;
    let path = "/attach/default/ended/c?input=1&output=1&error=1";
    let mut socket = websocket(&world, &format!("{path}&tty=1"), "v5.channel.k8s.io").await;
    socket.send(Message::Binary(b"\0\x04".to_vec().into())).await.unwrap();
    let mut shown = String::new();
    while !shown.contains("done\r\n") {
        let bytes = socket.next().await.unwrap().unwrap().into_data();
        shown.push_str(&String::from_utf8_lossy(&bytes[1..]));
    }
    drop(socket);
    for path in [path, "/attach/default/web/c?input=1&output=1&error=1"] {
        let mut socket = websocket(&world, path, "v5.channel.k8s.io").await;
        for message in [b"\0typed\n".as_slice(), &[255, 0]] {
            socket.send(Message::Binary(message.to_vec().into())).await.unwrap();
        }
        let [_, _, stderr, status] = channels(&mut socket).await;
        assert!(stderr.contains("no standard input, or none any more"), "{path}: {stderr}");
        assert!(status.contains("\"Success\""), "{path}: {status}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ephemeral_container_runs_in_a_pod_that_runs() {
    let world = World::start().await;
    let volumes = json!([{"name": "seen", "emptyDir": {}}, {"name": "unseen", "emptyDir": {}}]);
    let mut container = command(&["write", "/seen/f", "shared", "sleep", "1000000"]);
    container["volumeMounts"] = json!([{"name": "seen", "mountPath": "/seen"}]);
    world.run_spec("run", json!({"containers": [container], "volumes": volumes}));
    world.ready("run").await;
    let mut debug = command(&["cat", "/seen/f", "warn", "looked", "copy"]);
    debug["name"] = json!("debug");
    debug["stdin"] = json!(true);
    debug["stdinOnce"] = json!(true);
    debug["imagePullPolicy"] = json!("IfNotPresent");
    debug["volumeMounts"] = json!([{"name": "seen", "mountPath": "/seen"}, {"name": "unseen", "mountPath": "/unseen"}]);
    world.api.modify("run", |pod| pod["spec"]["ephemeralContainers"] = json!([debug]));
    let state =
        |status: &serde_json::Value, state: &str| status["ephemeralContainerStatuses"][0]["state"][state].is_object();
    world.status("run", "the ephemeral container runs", |status| state(status, "running")).await;
    let mut socket = websocket(&world, "/attach/default/run/debug?input=1&output=1&error=1", "v5.channel.k8s.io").await;
    for message in [b"\0typed\n".as_slice(), &[255, 0]] {
        socket.send(Message::Binary(message.to_vec().into())).await.unwrap();
    }
    let [_, stdout, stderr, _] = channels(&mut socket).await;
    assert_eq!((stdout.as_str(), stderr.as_str()), ("sharedtyped\n", "looked\n"));
    let status = world.status("run", "it has ended", |status| state(status, "terminated")).await;
    let shown = &status["ephemeralContainerStatuses"][0];
    assert_eq!((&shown["restartCount"], &shown["state"]["terminated"]["exitCode"]), (&json!(0), &json!(0)));
    assert!(super::is_ready(&status), "{status}");
    let (code, text) = world.certificates.get(world.port(), "/containerLogs/default/run/debug").await;
    assert!(code == 200 && text.contains("typed\n"), "{code} {text}");
}

/// What came on each channel of a WebSocket until it was closed.
async fn channels(socket: &mut WebSocketStream<TokioIo<hyper::upgrade::Upgraded>>) -> [String; 4] {
    let mut channels = <[String; 4]>::default();
    while let Some(Ok(message)) = socket.next().await {
        if let Message::Binary(bytes) = message {
            channels[usize::from(bytes[0])].push_str(&String::from_utf8_lossy(&bytes[1..]));
        }
    }
    channels
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exec_runs_the_component_once_more() {
    let world = World::start().await;
    let mut container = command(&["sleep", "1000000"]);
    container["env"] = json!([{"name": "NAME", "value": "of the container"}]);
    world.run("run", container);
    world.status("run", "Running", |status| status["phase"] == "Running").await;
    let exec = async |words: &[&str], protocol: &str| {
        let words: Vec<_> =
            ["probe"].iter().chain(words).map(|word| format!("command={}", word.replace(' ', "%20"))).collect();
        let path = format!("/exec/default/run/c?{}&output=1&error=1", words.join("&"));
        channels(&mut websocket(&world, &path, protocol).await).await
    };
    let [_, stdout, stderr, status] = exec(&["env", "NAME", "warn", "a word"], "v5.channel.k8s.io").await;
    assert_eq!((stdout.as_str(), stderr.as_str()), ("of the container\n", "a word\n"));
    assert!(status.contains("\"Success\""), "{status}");
    let [.., status] = exec(&["end", "42"], "v4.channel.k8s.io").await;
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    assert_eq!(
        (&status["reason"], &status["details"]["causes"][0]["message"]),
        (&json!("NonZeroExitCode"), &json!("42"))
    );
    // The oldest protocol has no Status.
    let [_, stdout, _, words] = exec(&["echo", "old"], "channel.k8s.io").await;
    assert_eq!((stdout.as_str(), words.as_str()), ("old\n", ""));
    let [.., words] = exec(&["end", "1"], "channel.k8s.io").await;
    assert_eq!(words, "command terminated with exit code 1");
}

fn exec_path(words: &[&str], streams: &str) -> String {
    let words: Vec<_> = ["probe"].iter().chain(words).map(|word| format!("command={word}")).collect();
    format!("/exec/default/run/c?{}&{streams}", words.join("&"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exec_reads_what_is_typed_to_its_end() {
    let world = World::start().await;
    world.run("run", command(&["sleep", "1000000"]));
    world.status("run", "Running", |status| status["phase"] == "Running").await;
    let path = exec_path(&["copy", "echo", "done"], "input=1&output=1&error=1");
    let mut socket = websocket(&world, &path, "v5.channel.k8s.io").await;
    // An answer comes while the input goes on.
    socket.send(Message::Binary(b"\0one\n".to_vec().into())).await.unwrap();
    let mut answer = Vec::new();
    while answer != b"one\n" {
        let bytes = socket.next().await.unwrap().unwrap().into_data();
        assert_eq!(bytes[0], 1, "{bytes:?}");
        answer.extend_from_slice(&bytes[1..]);
    }
    // More than waits anywhere, in messages as large as they may be; and its end.
    let text = vec![b'x'; 1_000_000];
    let (mut sink, mut messages) = socket.split();
    let typing = async {
        for _ in 0..4 {
            sink.send(Message::Binary([&[0], &text[..]].concat().into())).await.unwrap();
        }
        sink.send(Message::Binary(vec![255, 0].into())).await.unwrap();
    };
    let reading = async {
        let (mut stdout, mut status) = (Vec::new(), String::new());
        while let Some(Ok(message)) = messages.next().await {
            match message {
                Message::Binary(bytes) if bytes[0] == 1 => stdout.extend_from_slice(&bytes[1..]),
                Message::Binary(bytes) if bytes[0] == 3 => status.push_str(&String::from_utf8_lossy(&bytes[1..])),
                _ => {}
            }
        }
        (stdout, status)
    };
    let both = async { tokio::join!(typing, reading) };
    let ((), (stdout, status)) = tokio::time::timeout(PATIENCE, both).await.expect("an end");
    assert!(stdout.ends_with(b"xdone\n") && stdout.len() == 4 * text.len() + 5, "{} bytes", stdout.len());
    assert!(status.contains("\"Success\""), "{status}");
}

/// As `yes | kubectl exec -i p -- head -1`: who says everything before he listens hears how it went all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_reads_nothing_of_a_lot_tells_how_it_ended() {
    let world = World::start().await;
    world.run("run", command(&["sleep", "1000000"]));
    world.status("run", "Running", |status| status["phase"] == "Running").await;
    let mut socket = websocket(&world, &exec_path(&["end", "42"], "input=1&output=1"), "v5.channel.k8s.io").await;
    let talking = async {
        for _ in 0..8 {
            socket.send(Message::Binary(vec![0; 1_000_000].into())).await.unwrap();
        }
        channels(&mut socket).await
    };
    let [.., status] = tokio::time::timeout(PATIENCE, talking).await.expect("an end");
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["details"]["causes"][0]["message"], json!("42"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exec_with_a_terminal_shows_what_is_typed_and_can_be_interrupted() {
    let world = World::start().await;
    world.run("run", command(&["sleep", "1000000"]));
    world.status("run", "Running", |status| status["phase"] == "Running").await;
    let typed = async |words: &[&str], keys: &[u8]| {
        let path = exec_path(words, "input=1&output=1&tty=1");
        let mut socket = websocket(&world, &path, "v5.channel.k8s.io").await;
        socket.send(Message::Binary([&[0], keys].concat().into())).await.unwrap();
        let [_, stdout, _, status] = tokio::time::timeout(PATIENCE, channels(&mut socket)).await.expect("an end");
        (stdout, status)
    };
    let (shown, status) = typed(&["terminal", "copy"], b"onf\x7fe\r\x04").await;
    assert!(shown.contains("a terminal\r\n"), "{shown:?}");
    assert_eq!(shown.replace("a terminal\r\n", ""), "onf\x08 \x08e\r\none\r\n", "first what is typed");
    assert!(status.contains("\"Success\""), "{status}");
    // Also where it has heard the end before, in one message.
    for keys in [&b"\x03"[..], b"\x04\x03"] {
        let (shown, status) = typed(&["sleep", "1000000"], keys).await;
        let status: serde_json::Value = serde_json::from_str(&status).unwrap();
        assert_eq!((shown.as_str(), &status["details"]["causes"][0]["message"]), ("^C\r\n", &json!("130")));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_waits_for_a_client_that_reads_slowly() {
    let world = World::start().await;
    world.run("run", command(&["sleep", "1000000"]));
    world.status("run", "Running", |status| status["phase"] == "Running").await;
    let mut slow = websocket(&world, &exec_path(&["flood", "24000"], "output=1"), "v4.channel.k8s.io").await;
    slow.next().await.unwrap().unwrap();
    // Nothing more is read while another prints as much as that, and is read.
    let mut other = websocket(&world, &exec_path(&["flood", "24000"], "output=1"), "v4.channel.k8s.io").await;
    let [_, stdout, ..] = channels(&mut other).await;
    assert_eq!(stdout.len(), 24_000 * 1024);
    let reading = tokio::time::timeout(PATIENCE, channels(&mut slow));
    let [_, stdout, _, status] = reading.await.expect("an end");
    assert!(status.contains("\"Success\""), "{status}");
    assert!(stdout.len() > 23 << 20, "all but what was read first: {}", stdout.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_probe_by_command_has_a_place_when_commands_have_taken_theirs() {
    use coracle_engine::{Command, Discard, Invocation, Pipe};
    let world = World::start().await;
    let mut container = command(&["sleep", "1000000"]);
    container["name"] = json!("c");
    container["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
    container["readinessProbe"] = json!({"exec": {"command": ["probe", "cat", "/data/alive"]}, "periodSeconds": 1});
    world.run_spec("run", json!({"volumes": [{"name": "data", "emptyDir": {}}], "containers": [container]}));
    world.status("run", "Running", |status| status["phase"] == "Running").await;
    let running = world.pods().find("default", "run").unwrap().running();
    let Some((_, crate::pod::Handle::Command(main), _)) = running.into_iter().next() else { panic!("it runs") };
    let beside = async |words: &[&str], stdin: Option<Pipe>| -> Result<Command, coracle_engine::Error> {
        let args = ["probe"].iter().chain(words).map(|word| (*word).to_owned()).collect();
        let nowhere = std::sync::Arc::new(Discard);
        let invocation =
            Invocation { args, stdin, stdout: nowhere.clone(), stderr: nowhere, is_terminal: false, is_probe: false };
        main.beside(invocation).await
    };
    let typed = Pipe::default();
    let mut commands = vec![beside(&["copy", "write", "/data/alive", "yes"], Some(typed.clone())).await.unwrap()];
    let refused = loop {
        match beside(&["sleep", "1000000"], None).await {
            Ok(command) => commands.push(command),
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, coracle_engine::Error::Limits(_)), "{refused}");
    typed.end();
    assert_eq!(commands[0].wait().await.code(), 0);
    // Its place is taken, too.
    commands.push(beside(&["sleep", "1000000"], None).await.unwrap());
    world.ready("run").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_over_a_web_socket() {
    let world = World::start().await;
    world.run("run", command(&["echo", "one", "echo", "two", "sleep", "1000000"]));
    world.status("run", "Running", |status| status["phase"] == "Running").await;
    // What is printed may come after the container is known to run.
    let read = async |protocol: &str| {
        let mut socket = websocket(&world, "/containerLogs/default/run/c", protocol).await;
        let mut text = Vec::new();
        while let Some(Ok(message)) = socket.next().await {
            text.extend_from_slice(&message.into_data());
        }
        String::from_utf8(text).unwrap()
    };
    let printed = async {
        while read("binary.k8s.io").await != "one\ntwo\n" {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, printed).await.expect("it prints");
    assert_eq!(read("base64.binary.k8s.io").await, "b25lCnR3bwo=");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn port_forward_over_channels() {
    let world = World::start().await;
    world.run("web", json!({"image": "hello:1"}));
    world.ready("web").await;
    let mut socket = websocket(&world, "/portForward/default/web?ports=80", "v4.channel.k8s.io").await;
    for channel in [0, 1] {
        let first = socket.next().await.unwrap().unwrap().into_data();
        assert_eq!(&first[..], [channel, 80, 0]);
    }
    let (begin, end) = ("\0GET / HTTP/1.1\r\nhost: x\r\n", b"\0connection: close\r\n\r\n");
    socket.send(Message::text(begin)).await.unwrap();
    socket.send(Message::binary(end.to_vec())).await.unwrap();
    let mut text = String::new();
    while let Some(Ok(message)) = socket.next().await {
        if let Message::Binary(bytes) = message {
            assert_eq!(bytes[0], 0);
            text.push_str(&String::from_utf8_lossy(&bytes[1..]));
        }
    }
    assert!(text.starts_with("HTTP/1.1 200 OK") && text.contains("hello"), "{text}");
}

/// A client that keeps the connection for later, as the API server keeps those to webhooks, must hear of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_closes_its_connection_ends_the_channels_of_it() {
    let world = World::start().await;
    world.run("serves", command(&["serve", "9000"]));
    world.ready("serves").await;
    let is_listening = async || {
        let mut socket = websocket(&world, "/portForward/default/serves?ports=9000", "v4.channel.k8s.io").await;
        let request = [&[0], &b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"[..]].concat();
        socket.send(Message::Binary(request.into())).await.unwrap();
        let mut text = String::new();
        // We close nothing.
        let all = async {
            while let Some(Ok(message)) = socket.next().await {
                if let Message::Binary(bytes) = message
                    && bytes[0] == 0
                {
                    text.push_str(&String::from_utf8_lossy(&bytes[1..]));
                }
            }
        };
        tokio::time::timeout(super::PATIENCE, all).await.expect("the end of the pod's connection");
        text.contains("HTTP/1.1 200 OK")
    };
    let answered = async { while !is_listening().await {} };
    tokio::time::timeout(super::PATIENCE, answered).await.expect("an answer");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn port_forward_over_tunnelled_spdy() {
    let world = World::start().await;
    world.run("web", json!({"image": "hello:1"}));
    world.ready("web").await;
    let mut socket = websocket(&world, "/portForward/default/web", "SPDY/3.1+portforward.k8s.io").await;
    // A SPDY ping is answered by the same frame: the tunnel leads to a SPDY server.
    let ping = [0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1];
    socket.send(Message::Binary(ping.to_vec().into())).await.unwrap();
    assert_eq!(&socket.next().await.unwrap().unwrap().into_data()[..], ping);
}
