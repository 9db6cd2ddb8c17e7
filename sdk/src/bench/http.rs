//! Requests through a NodePort to a component, beside a bare hyper server and `wasmtime serve` in the same run.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body_util::{BodyExt, Empty, Full, Limited};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::Api;
use kube::api::PostParams;
use kube::runtime::conditions::is_pod_running;
use kube::runtime::wait::await_condition;
use serde_json::json;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::task::JoinSet;

use super::cluster::{Process, examples};
use super::{Error, Figure};

/// How long each measurement runs.
const WINDOW: Duration = Duration::from_secs(5);
/// Rounds over all servers, so that a slow moment of the machine does not hit one alone.
const ROUNDS: usize = 3;
/// Requests that an instance serves where it is used again.
const REUSE: &str = "1000000";
/// A body a person wants to see is small.
const BODY_BYTES_MAX: usize = 1 << 20;
const START_DEADLINE: Duration = Duration::from_secs(30);

/// An answer to [`http_get`].
#[derive(Clone, Debug)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Text of the body.
    pub body: String,
}

/// Asks `url` (plain HTTP) on a connection of its own.
pub async fn http_get(url: &str) -> Result<Answer, Error> {
    let uri: Uri = url.parse()?;
    let authority = uri.authority().ok_or("the URL has no host")?.to_string();
    let stream = TcpStream::connect(&authority).await?;
    stream.set_nodelay(true)?;
    let (mut send, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let request = Request::get(path).header("host", authority).body(Empty::<Bytes>::new())?;
    let answer = async {
        let response = send.send_request(request).await?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), BODY_BYTES_MAX).collect().await?.to_bytes();
        Ok(Answer { status, body: String::from_utf8_lossy(&body).into_owned() })
    };
    // The connection is driven here and ends with this function.
    tokio::pin!(connection);
    tokio::pin!(answer);
    tokio::select! {
        answer = &mut answer => answer,
        ended = &mut connection => {
            ended?;
            answer.await
        }
    }
}

/// Runs it.
pub async fn run(program: &Path, report: &mut impl FnMut(Figure)) -> Result<(), Error> {
    let cluster = Process::start(program).await?;
    let fresh = SocketAddr::from(([127, 0, 0, 1], expose(&cluster, "fresh", "1").await?));
    let reused = SocketAddr::from(([127, 0, 0, 1], expose(&cluster, "reused", REUSE).await?));
    let (_bare, hyper) = bare_server(program).await?;
    let mut servers = vec![("coracle_fresh", fresh), ("coracle_reused", reused), ("hyper", hyper)];
    // What each is compared with: another way to do the same.
    let mut pairs = vec![(0, 2), (1, 2)];
    let peers = [wasmtime_serve(&[]).await?, wasmtime_serve(&["--max-instance-reuse-count", REUSE]).await?];
    for (at, (name, peer)) in ["wasmtime_fresh", "wasmtime_reused"].into_iter().zip(&peers).enumerate() {
        if let Some((_, address)) = peer {
            pairs.push((at, servers.len()));
            servers.push((name, *address));
        }
    }
    if peers.iter().any(Option::is_none) {
        eprintln!("wasmtime is not in PATH: its figures are left out (cargo install wasmtime-cli --version 48.0.8)");
    }
    for connections in [1, 64] {
        let mut best = vec![0.0_f64; servers.len()];
        for _ in 0..ROUNDS {
            for (at, (_, address)) in servers.iter().enumerate() {
                best[at] = best[at].max(load(*address, connections).await?);
            }
        }
        for (at, (name, _)) in servers.iter().enumerate() {
            report(Figure::new(format!("http.{connections}_connections.{name}"), best[at], "requests/s"));
        }
        for (ours, theirs) in &pairs {
            let name = format!("http.{connections}_connections.{}_of_{}", servers[*ours].0, servers[*theirs].0);
            report(Figure::new(name, best[*ours] / best[*theirs], "ratio"));
        }
    }
    cluster.stop().await
}

/// Runs the hello component behind a NodePort, each instance for so many requests; returns the port once it answers.
async fn expose(cluster: &Process, name: &str, reuse: &str) -> Result<u16, Error> {
    let client = cluster.remote.client().clone();
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": name, "labels": {"app": name}, "annotations": {"coracle.dev/http-reuse": reuse}},
        "spec": {"containers": [{"name": "hello", "image": "hello:latest", "ports": [{"containerPort": 8080}]}]},
    }))?;
    pods.create(&PostParams::default(), &pod).await?;
    tokio::time::timeout(START_DEADLINE, await_condition(pods, name, is_pod_running())).await??;
    let services: Api<Service> = Api::default_namespaced(client);
    let service: Service = serde_json::from_value(json!({
        "metadata": {"name": name},
        "spec": {"type": "NodePort", "selector": {"app": name}, "ports": [{"port": 80, "targetPort": 8080}]},
    }))?;
    let service = services.create(&PostParams::default(), &service).await?;
    let port = service.spec.and_then(|s| s.ports).and_then(|p| p.first()?.node_port).ok_or("no node port")?;
    answers(SocketAddr::from(([127, 0, 0, 1], u16::try_from(port)?))).await?;
    Ok(u16::try_from(port)?)
}

async fn answers(address: SocketAddr) -> Result<(), Error> {
    let begun = Instant::now();
    loop {
        match http_get(&format!("http://{address}/")).await {
            Ok(answer) if answer.status == 200 => return Ok(()),
            other if begun.elapsed() > START_DEADLINE => {
                return Err(format!("{address} does not answer: {other:?}").into());
            }
            _ => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

/// What HTTP alone costs here: hyper answering a constant, until this process ends. Calls `tell` with its address.
pub async fn peer(tell: impl FnOnce(SocketAddr)) -> Result<(), Error> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    tell(listener.local_addr()?);
    loop {
        let (stream, _) = listener.accept().await?;
        let _ = stream.set_nodelay(true);
        tokio::spawn(async move {
            let answer = service_fn(|_: Request<hyper::body::Incoming>| async {
                Ok::<_, Infallible>(Response::new(Full::<Bytes>::from("hello\n")))
            });
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
        });
    }
}

/// The same in a process of its own, as all that it is compared with: in the client's process a request wakes nobody.
async fn bare_server(program: &Path) -> Result<(Child, SocketAddr), Error> {
    let mut child = Command::new(program)
        .arg("bench-peer")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut lines = BufReader::new(child.stdout.take().ok_or("no standard output")?).lines();
    let line = tokio::time::timeout(START_DEADLINE, lines.next_line()).await??;
    Ok((child, line.ok_or("the bare server ended")?.parse()?))
}

/// `wasmtime serve` with the same component, when it is there.
async fn wasmtime_serve(options: &[&str]) -> Result<Option<(Child, SocketAddr)>, Error> {
    let hello = crate::component(&examples()?, "hello").await?;
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let child = Command::new("wasmtime")
        .args(["serve", "-Scli"])
        .args(options)
        .arg("--addr")
        .arg(address.to_string())
        .arg(hello)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn();
    let Ok(child) = child else { return Ok(None) };
    answers(address).await?;
    Ok(Some((child, address)))
}

/// Requests per second over `connections` kept alive.
async fn load(address: SocketAddr, connections: usize) -> Result<f64, Error> {
    let count = Arc::new(AtomicU64::new(0));
    let begun = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..connections {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (mut send, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let count = count.clone();
        tasks.spawn(async move {
            let driver = tokio::spawn(connection);
            while begun.elapsed() < WINDOW {
                let request = Request::get("/").header("host", "bench").body(Empty::<Bytes>::new())?;
                let response = send.send_request(request).await?;
                if response.status() != 200 {
                    return Err::<(), Error>(format!("answered {}", response.status()).into());
                }
                response.into_body().collect().await?;
                count.fetch_add(1, Ordering::Relaxed);
            }
            driver.abort();
            Ok(())
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(count.load(Ordering::Relaxed) as f64 / begun.elapsed().as_secs_f64())
}
