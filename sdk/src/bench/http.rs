//! Requests through a NodePort and through an Ingress to a component, beside a bare hyper server, nginx before it and `wasmtime serve`
//! in the same run: how many, and what each costs its server's process. Client and server share the machine, so that the former depends on both.

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
use hyper::client::conn::http1::SendRequest;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::networking::v1::Ingress;
use kube::api::PostParams;
use kube::runtime::conditions::is_pod_running;
use kube::runtime::wait::await_condition;
use kube::{Api, Client};
use serde_json::json;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use super::cluster::{Process, examples};
use super::cost::Cost;
use super::{Error, Figure};

/// How long each measurement runs.
const WINDOW: Duration = Duration::from_secs(5);
/// Rounds over all servers, so that a slow moment of the machine does not hit one alone.
const ROUNDS: usize = 3;
/// Requests that an instance serves where it is used again.
const REUSE: &str = "1000000";
/// Whom requests name: what does not matter to a port, and what leads to an Ingress.
pub(super) const HOST: &str = "bench";
const INGRESS_HOST: &str = "bench.example";
/// A body a person wants to see is small.
const BODY_BYTES_MAX: usize = 1 << 20;
const START_DEADLINE: Duration = Duration::from_secs(30);
const ASK_AGAIN: Duration = Duration::from_millis(10);

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
    let (authority, path) = place(&uri)?;
    get(authority, path, authority).await
}

/// Asks `url` (plain HTTP) again until it answers 200, for so long; the body.
pub async fn http_get_ok(url: &str, within: Duration) -> Result<String, Error> {
    let uri: Uri = url.parse()?;
    let (authority, path) = place(&uri)?;
    Ok(until_ok(authority, path, authority, within).await?.body)
}

/// Where a URL leads, and the path there.
fn place(uri: &Uri) -> Result<(&str, &str), Error> {
    let authority = uri.authority().ok_or("the URL has no host")?.as_str();
    Ok((authority, uri.path_and_query().map_or("/", |path| path.as_str())))
}

async fn get(at: &str, path: &str, host: &str) -> Result<Answer, Error> {
    let stream = TcpStream::connect(at).await?;
    stream.set_nodelay(true)?;
    let (mut send, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get(path).header("host", host).body(Empty::<Bytes>::new())?;
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

/// A connection that is kept, for one request after another.
pub(super) struct Caller {
    send: SendRequest<Empty<Bytes>>,
    host: &'static str,
    _driver: AbortOnDropHandle<Result<(), hyper::Error>>,
}

impl Caller {
    /// A connection to `address`, whose requests name `host`.
    pub async fn connect(address: SocketAddr, host: &'static str) -> Result<Caller, Error> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (send, driver) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        Ok(Caller { send, host, _driver: AbortOnDropHandle::new(tokio::spawn(driver)) })
    }

    /// Asks for a path; another answer than 200 is an error.
    pub async fn call(&mut self, path: &str) -> Result<(), Error> {
        self.send.ready().await?;
        let request = Request::get(path).header("host", self.host).body(Empty::<Bytes>::new())?;
        let response = self.send.send_request(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        if status != 200 {
            return Err(format!("{path} answered {status}: {}", String::from_utf8_lossy(&body)).into());
        }
        Ok(())
    }
}

/// Something that answers.
struct Server {
    name: &'static str,
    address: SocketAddr,
    /// Whom its requests name.
    host: &'static str,
    process: u32,
}

/// What was measured of one of them.
#[derive(Clone, Default)]
struct Measured {
    /// Requests a second, in the best round.
    rate: f64,
    /// Of all rounds.
    requests: u64,
    cost: Cost,
}

/// Runs it.
pub async fn run(program: &Path, report: &mut impl FnMut(Figure)) -> Result<(), Error> {
    let cluster = Process::start(program).await?;
    let process = cluster.id()?;
    let loopback = |port| SocketAddr::from(([127, 0, 0, 1], port));
    let ours = |name, address, host| Server { name, address, host, process };
    let fresh = ours("coracle_fresh", loopback(expose(&cluster, "fresh", "1").await?), HOST);
    let reused = ours("coracle_reused", loopback(expose(&cluster, "reused", REUSE).await?), HOST);
    let ingress = ours("coracle_ingress", route(&cluster, "reused").await?, INGRESS_HOST);
    let (bare, address) = bare_server(program).await?;
    let hyper = Server { name: "hyper", address, host: HOST, process: id(&bare)? };
    let mut servers = vec![fresh, reused, ingress, hyper];
    // What each is compared with: another way to do the same.
    let mut pairs = vec![(0, 3), (1, 3), (2, 1)];
    let peers = [wasmtime_serve(&[]).await?, wasmtime_serve(&["--max-instance-reuse-count", REUSE]).await?];
    for (at, (name, peer)) in ["wasmtime_fresh", "wasmtime_reused"].into_iter().zip(&peers).enumerate() {
        if let Some((child, address)) = peer {
            pairs.push((at, servers.len()));
            servers.push(Server { name, address: *address, host: HOST, process: id(child)? });
        }
    }
    if peers.iter().any(Option::is_none) {
        tracing::warn!(
            "wasmtime is not in PATH: its figures are left out (cargo install wasmtime-cli --version 48.0.8)"
        );
    }
    let nginx = nginx(address).await?;
    if let Some((child, address, _)) = &nginx {
        // Both take a request from the network and have it answered by a server that is warm.
        pairs.push((2, servers.len()));
        servers.push(Server { name: "nginx", address: *address, host: HOST, process: id(child)? });
    } else {
        tracing::warn!("nginx is not in PATH: its figures are left out");
    }
    for connections in [1, 64] {
        let mut measured = vec![Measured::default(); servers.len()];
        for _ in 0..ROUNDS {
            for (server, measured) in servers.iter().zip(&mut measured) {
                let before = Cost::of(server.process)?;
                let (requests, time) = load(server, connections).await?;
                measured.cost += Cost::of(server.process)? - before;
                measured.requests += requests;
                measured.rate = measured.rate.max(requests as f64 / time.as_secs_f64());
            }
        }
        for (server, Measured { rate, requests, cost }) in servers.iter().zip(&measured) {
            let name = format!("http.{connections}_connections.{}", server.name);
            let each = |total: f64| total / *requests as f64;
            report(Figure::new(name.clone(), *rate, "requests/s"));
            report(Figure::new(format!("{name}.cpu"), each(cost.cpu.as_secs_f64() * 1e6), "µs/request"));
            report(Figure::new(format!("{name}.waits"), each(cost.waits as f64), "/request"));
        }
        for (ours, theirs) in &pairs {
            let name = format!("http.{connections}_connections.{}_of_{}", servers[*ours].name, servers[*theirs].name);
            report(Figure::new(name, measured[*ours].rate / measured[*theirs].rate, "ratio"));
        }
    }
    cluster.stop().await
}

fn id(child: &Child) -> Result<u32, Error> {
    child.id().ok_or_else(|| "it has ended".into())
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
    let port = node_port(&client, name).await?;
    answers(SocketAddr::from(([127, 0, 0, 1], port)), HOST).await?;
    Ok(port)
}

/// A NodePort for the pods of this name.
pub(super) async fn node_port(client: &Client, name: &str) -> Result<u16, Error> {
    let service: Service = serde_json::from_value(json!({
        "metadata": {"name": name},
        "spec": {"type": "NodePort", "selector": {"app": name}, "ports": [{"port": 80, "targetPort": 8080}]},
    }))?;
    let service = Api::default_namespaced(client.clone()).create(&PostParams::default(), &service).await?;
    let port = service.spec.and_then(|spec| spec.ports).and_then(|ports| ports.first()?.node_port);
    Ok(u16::try_from(port.ok_or("no node port")?)?)
}

/// Puts an Ingress before a Service; returns where it is served once that answers.
async fn route(cluster: &Process, service: &str) -> Result<SocketAddr, Error> {
    let ingress: Ingress = serde_json::from_value(json!({
        "metadata": {"name": service},
        "spec": {"rules": [{"host": INGRESS_HOST, "http": {"paths": [{
            "path": "/", "pathType": "Prefix", "backend": {"service": {"name": service, "port": {"number": 80}}},
        }]}}]},
    }))?;
    let ingresses: Api<Ingress> = Api::default_namespaced(cluster.remote.client().clone());
    ingresses.create(&PostParams::default(), &ingress).await?;
    let begun = Instant::now();
    let address = loop {
        let urls = cluster.remote.status().await?.ingress;
        match urls.iter().find_map(|url| url.strip_prefix("http://")) {
            Some(address) => break address.trim_end_matches('/').parse()?,
            None if begun.elapsed() > START_DEADLINE => return Err("no Ingress is served".into()),
            None => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    };
    answers(address, INGRESS_HOST).await?;
    Ok(address)
}

async fn until_ok(at: &str, path: &str, host: &str, within: Duration) -> Result<Answer, Error> {
    let (begun, mut why) = (Instant::now(), "it does not answer".to_owned());
    loop {
        why = match tokio::time::timeout(within.saturating_sub(begun.elapsed()), get(at, path, host)).await {
            Ok(Ok(answer)) if answer.status == 200 => return Ok(answer),
            Ok(Ok(answer)) => format!("answered {}: {}", answer.status, answer.body),
            Ok(Err(error)) => error.to_string(),
            Err(_) => return Err(format!("GET http://{at}{path}, for {within:?}: {why}").into()),
        };
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

/// Waits until it answers 200.
pub(super) async fn answers(address: SocketAddr, host: &str) -> Result<(), Error> {
    until_ok(&address.to_string(), "/", host, START_DEADLINE).await.map(drop)
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
    let address = free_address()?;
    let mut command = Command::new("wasmtime");
    command.args(["serve", "-Scli"]).args(options).arg("--addr").arg(address.to_string()).arg(hello);
    Ok(other(&mut command, address).await?.map(|child| (child, address)))
}

fn free_address() -> Result<SocketAddr, Error> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// Another program, when it is there, once it answers at `address`.
async fn other(command: &mut Command, address: SocketAddr) -> Result<Option<Child>, Error> {
    let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let child = match quiet.kill_on_drop(true).spawn() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        child => child?,
    };
    answers(address, HOST).await?;
    Ok(Some(child))
}

/// nginx as a reverse proxy before the bare server, when it is there, in one process; its directory goes with it.
async fn nginx(upstream: SocketAddr) -> Result<Option<(Child, SocketAddr, TempDir)>, Error> {
    let (dir, address) = (tempfile::tempdir()?, free_address()?);
    // One process, whose cost is counted whole; connections are kept on both sides, and nothing is logged.
    let configuration = format!(
        "master_process off; daemon off; pid nginx.pid; error_log stderr crit; events {{ worker_connections 4096; }}
         http {{
             access_log off; keepalive_requests 1000000000;
             client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
             upstream bare {{ server {upstream}; keepalive 128; keepalive_requests 1000000000; }}
             server {{
                 listen {address};
                 location / {{ proxy_pass http://bare; proxy_http_version 1.1; proxy_set_header Connection \"\"; }}
             }}
         }}"
    );
    std::fs::write(dir.path().join("nginx.conf"), configuration)?;
    let child = other(Command::new("nginx").arg("-p").arg(dir.path()).args(["-c", "nginx.conf"]), address).await?;
    Ok(child.map(|child| (child, address, dir)))
}

/// Asks a server over so many connections, kept alive; how many answers there were, and in what time.
async fn load(server: &Server, connections: usize) -> Result<(u64, Duration), Error> {
    let count = Arc::new(AtomicU64::new(0));
    let begun = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..connections {
        let mut caller = Caller::connect(server.address, server.host).await?;
        let count = count.clone();
        tasks.spawn(async move {
            while begun.elapsed() < WINDOW {
                caller.call("/").await?;
                count.fetch_add(1, Ordering::Relaxed);
            }
            Ok::<_, Error>(())
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok((count.load(Ordering::Relaxed), begun.elapsed()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_service_that_does_not_answer_yet_is_asked_again() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        tokio::spawn(async move {
            // It breaks off, has nobody to ask, is well, and then has nobody for good.
            for answer in ["", "503 Unavailable", "200 OK"].into_iter().chain(std::iter::repeat("503 Unavailable")) {
                let (mut stream, _) = listener.accept().await.unwrap();
                let _ = stream.read(&mut [0; 1024]).await;
                if !answer.is_empty() {
                    let text = format!("HTTP/1.1 {answer}\r\ncontent-length: 2\r\nconnection: close\r\n\r\nhi");
                    let _ = stream.write_all(text.as_bytes()).await;
                }
            }
        });
        assert_eq!(http_get_ok(&url, Duration::from_secs(30)).await.unwrap(), "hi");
        let told = http_get_ok(&url, Duration::from_millis(200)).await.unwrap_err().to_string();
        assert!(told.contains("answered 503: hi"), "{told}");
    }
}
