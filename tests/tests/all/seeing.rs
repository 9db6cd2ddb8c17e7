//! What people see of requests: a tap, routes, metrics, and spans at a collector.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, mpsc};

use coracle_tests::{Background, Cluster, WEB, coracle, eventually_answers};

/// A collector of traces: the first line of each request that comes, with its body's length.
fn collector() -> (String, mpsc::Receiver<(String, usize)>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("its address"));
    let (sender, arrives) = mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let sender = sender.clone();
            std::thread::spawn(move || collect(stream, &sender));
        }
    });
    (url, arrives)
}

fn collect(mut stream: std::net::TcpStream, sender: &mpsc::Sender<(String, usize)>) {
    loop {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            if !matches!(stream.read(&mut byte), Ok(1)) {
                return;
            }
            head.push(byte[0]);
        }
        let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok()).unwrap_or(0);
        let mut body = vec![0; length];
        if stream.read_exact(&mut body).is_err()
            || stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").is_err()
        {
            return;
        }
        // Nobody may be left to hear of it.
        let _ = sender.send((head.lines().next().unwrap_or_default().to_owned(), length));
    }
}

#[test]
fn requests_are_seen_as_they_are_answered_counted_and_traced() {
    let (collector, spans) = collector();
    let cluster = Cluster::start_with(&["--otlp-endpoint", &collector]);
    cluster.push("standin", "standin");
    cluster.apply(WEB);
    cluster.kubectl("rollout status deployment web --timeout=120s");
    let url = format!("{}/seen?secret=1", cluster.service_url("web"));
    eventually_answers(&url);
    let (line, length) = spans.recv_timeout(coracle_tests::DEADLINE).expect("spans arrive");
    assert!(line.starts_with("post /v1/traces ") && length > 100, "{line} {length}");

    let mut tap = Command::new(coracle());
    tap.args(["tap", "web", "-o", "json"]).env("CORACLE_DATA_DIR", cluster.data_dir()).env_remove("KUBECONFIG");
    let tap = Background::start(tap);
    // Nobody knows when it listens: it is asked until it is seen.
    let is_seen = Arc::<AtomicBool>::default();
    let asking = std::thread::spawn({
        let is_seen = is_seen.clone();
        move || {
            while !is_seen.load(Relaxed) {
                eventually_answers(&url);
            }
        }
    });
    let seen = tap.line(|line| line.contains("/seen"));
    is_seen.store(true, Relaxed);
    let seen: serde_json::Value = serde_json::from_str(&seen).expect("JSON");
    assert_eq!((&seen["service"], &seen["status"], &seen["path"]), (&"web".into(), &200.into(), &"/seen".into()));
    assert!(seen["pod"].as_str().is_some_and(|pod| pod.starts_with("default/web-")), "{seen}");
    assert_eq!(seen["source"], format!("node port {}", cluster.node_port("web")));
    asking.join().expect("it asks");

    let node = cluster.kubectl("get nodes -o jsonpath={.items[0].metadata.name}");
    let routes = cluster.coracle(&["routes", "svc/web"]);
    let routes = String::from_utf8_lossy(&routes.stdout).into_owned();
    assert!(routes.contains(&format!("node {node}")) && routes.matches(": ready,").count() == 2, "{routes}");
    assert_eq!(cluster.coracle(&["routes", "none.example"]).status.code(), Some(1));
    let page = cluster.kubectl(&format!("get --raw /api/v1/nodes/{node}/proxy/metrics"));
    let mut lines = page.lines().filter(|line| line.starts_with("istio_requests_total{"));
    assert!(lines.any(|line| line.contains("destination_service_name=\"web\"") && line.contains("\"2xx\"")), "{page}");
}
