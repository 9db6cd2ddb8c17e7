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
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio::task::JoinSet;

use super::cluster::{Process, examples};
use super::{Error, Figure};

/// How long each measurement runs.
const WINDOW: Duration = Duration::from_secs(5);
/// Rounds over all servers, so that a slow moment of the machine does not hit one alone.
const ROUNDS: usize = 3;
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
    let request = Request::get(uri.path()).header("host", authority).body(Empty::<Bytes>::new())?;
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
    let node_port = SocketAddr::from(([127, 0, 0, 1], expose(&cluster).await?));
    let bare = bare_server().await?;
    let mut servers = vec![("coracle", node_port), ("hyper", bare)];
    let wasmtime = wasmtime_serve().await?;
    match &wasmtime {
        Some((_, address)) => servers.push(("wasmtime_serve", *address)),
        None => {
            eprintln!("wasmtime is not in PATH: its figures are left out (cargo install wasmtime-cli --version 48.0.8)")
        }
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
        for (at, (name, _)) in servers.iter().enumerate().skip(1) {
            report(Figure::new(
                format!("http.{connections}_connections.coracle_of_{name}"),
                best[0] / best[at],
                "ratio",
            ));
        }
    }
    cluster.stop().await
}

/// Runs the hello component behind a NodePort; returns the port once it answers.
async fn expose(cluster: &Process) -> Result<u16, Error> {
    let client = cluster.remote.client().clone();
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": "hello", "labels": {"app": "hello"}},
        "spec": {"containers": [{"name": "hello", "image": "hello:latest", "ports": [{"containerPort": 8080}]}]},
    }))?;
    pods.create(&PostParams::default(), &pod).await?;
    tokio::time::timeout(START_DEADLINE, await_condition(pods, "hello", is_pod_running())).await??;
    let services: Api<Service> = Api::default_namespaced(client);
    let service: Service = serde_json::from_value(json!({
        "metadata": {"name": "hello"},
        "spec": {"type": "NodePort", "selector": {"app": "hello"}, "ports": [{"port": 80, "targetPort": 8080}]},
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

/// What HTTP alone costs here: hyper answering a constant.
async fn bare_server() -> Result<SocketAddr, Error> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let _ = stream.set_nodelay(true);
            tokio::spawn(async move {
                let answer = service_fn(|_: Request<hyper::body::Incoming>| async {
                    Ok::<_, Infallible>(Response::new(Full::<Bytes>::from("hello\n")))
                });
                let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
            });
        }
    });
    Ok(address)
}

/// `wasmtime serve` with the same component, when it is there.
async fn wasmtime_serve() -> Result<Option<(tokio::process::Child, SocketAddr)>, Error> {
    let hello = crate::component(&examples()?, "hello").await?;
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let child = Command::new("wasmtime")
        .args(["serve", "-Scli", "--addr"])
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
