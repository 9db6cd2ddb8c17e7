//! Listeners: accept, TLS, who is calling, HTTP/1.1 and HTTP/2, and an orderly end.
//!
//! The caller's verified client certificate becomes the request extension that the API server authenticates by, until it ends; the
//! listener itself decides nothing about rights.

use std::collections::HashMap;
use std::future::{Future as _, poll_fn};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use axum::Router;
use axum::extract::ConnectInfo;
use bytes::Bytes;
use coracle_apiserver::{Connection, Identity};
use http::{HeaderValue, Request, StatusCode, Version, header};
use http_body_util::BodyExt;
use hyper::body::{Body as _, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::Service;

use crate::cork::Corked;
use crate::join;

/// Connections of one listener at a time, however many descriptors there are.
const CONNECTIONS_MAX: usize = 20_000;
/// Descriptors that connections never take: the log, the checkpoint, the registry's files, calls to nodes.
const DESCRIPTORS_KEPT: u64 = 512;
/// How long a client may leave what was sent to it unread before its connection is cut.
const UNREAD_TIMEOUT: Duration = Duration::from_secs(60);
/// How often it is looked whether a client takes its small answers. One that the look before has seen ends its connection.
const LOOK_AT_ANSWERS_EVERY: Duration = if cfg!(test) { Duration::from_secs(2) } else { UNREAD_TIMEOUT };
/// Answers below this are the listener's to count: of larger ones the API server and the registry see to it that they are read.
const SMALL: u64 = coracle_apiserver::COUNTED as u64;
/// What an answer costs besides its bytes.
const ANSWER_BYTES: usize = 2 << 10;
/// Bytes of small answers that a listener keeps for clients that do not take them. Beyond that whoever has most of them goes.
const WAITING_BYTES_MAX: usize = 256 << 20;
/// How long a client may take for its TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// One Go client runs every watch over one connection (kubernetes-api §1.1).
const STREAMS_PER_CONNECTION_MAX: u32 = 2_000;
/// How long connections may finish what they began after the listener is told to stop.
const DRAIN: Duration = Duration::from_secs(5);
/// How long a client of HTTP/1.1 may send one more request then, whose answer tells it that the connection ends: closing it at once
/// would meet requests on their way, of which nobody could say whether they were done. HTTP/2 has a word for it.
const LAST_REQUEST: Duration = Duration::from_millis(500);
/// How often it is looked whether a client's certificate has ended, by a clock that may be set meanwhile.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// Listeners of a process that begins anew as another program: what they are asked meanwhile waits for that one.
#[derive(Clone, Debug, Default)]
pub struct Listeners {
    /// The API's.
    pub api: Option<Arc<std::net::TcpListener>>,
    /// The registry's.
    pub registry: Option<Arc<std::net::TcpListener>>,
}

/// A second descriptor of the same listener; nothing where there is none to be had.
pub fn keep(listener: &TcpListener) -> Option<Arc<std::net::TcpListener>> {
    let kept = listener.as_fd().try_clone_to_owned();
    let kept = kept.inspect_err(|error| tracing::warn!(%error, "a listener is not kept: it is made again"));
    kept.ok().map(|kept| Arc::new(std::net::TcpListener::from(kept)))
}

/// Binds `address`, or takes what was `kept` if it is there; the error names it and says what to do.
pub async fn bind(
    address: SocketAddr,
    kept: Option<Arc<std::net::TcpListener>>,
    what: &'static str,
    flag: &'static str,
) -> Result<TcpListener, crate::Error> {
    let is_there = |kept: &Arc<std::net::TcpListener>| {
        kept.local_addr().is_ok_and(|at| at.ip() == address.ip() && [0, at.port()].contains(&address.port()))
    };
    if let Some(kept) = kept.filter(is_there) {
        let taken = kept.try_clone().and_then(|kept| {
            kept.set_nonblocking(true)?;
            TcpListener::from_std(kept)
        });
        match taken {
            Ok(taken) => return Ok(taken),
            Err(error) => tracing::warn!(%error, %address, "a listener that was kept cannot be used: it is made again"),
        }
    }
    TcpListener::bind(address).await.map_err(|source| crate::Error::Bind { what, flag, address, source })
}

/// Where the registry is when nobody says where: as that of Docker.
const REGISTRY_PORT: u16 = 5000;

/// The registry's listener. Many a machine has something at its usual port, which is no reason not to start: whoever has not asked for
/// that is given another one.
pub async fn bind_registry(
    ip: IpAddr,
    port: Option<u16>,
    kept: Option<Arc<std::net::TcpListener>>,
) -> Result<TcpListener, crate::Error> {
    registry_at(ip, port, kept, REGISTRY_PORT).await
}

async fn registry_at(
    ip: IpAddr,
    port: Option<u16>,
    kept: Option<Arc<std::net::TcpListener>>,
    usual: u16,
) -> Result<TcpListener, crate::Error> {
    let bind_at = |port, kept| bind(SocketAddr::new(ip, port), kept, "the registry", "--registry-port");
    if let Some(port) = port {
        return bind_at(port, kept).await;
    }
    // What clients were told in an earlier life holds.
    if kept.as_ref().is_some_and(|kept| kept.local_addr().is_ok_and(|at| at.ip() == ip)) {
        return bind_at(0, kept).await;
    }
    match bind_at(usual, None).await {
        Err(crate::Error::Bind { source, .. }) if source.kind() == io::ErrorKind::AddrInUse => bind_at(0, None).await,
        bound => bound,
    }
}

/// Serves `router` until `stop`, then lets connections finish.
pub async fn serve(listener: Arc<TcpListener>, tls: Option<TlsAcceptor>, router: Router, stop: CancellationToken) {
    let mut http = auto::Builder::new(TokioExecutor::new());
    http.http1().timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(30)).max_buf_size(128 * 1024);
    http.http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(8 << 20)
        .max_frame_size(256 * 1024)
        .max_send_buf_size(1 << 20)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(20));
    let http = Arc::new(http);
    let tasks = TaskTracker::new();
    let connections = Connections::new(connections_max());
    let mut looks = tokio::time::interval(LOOK_AT_ANSWERS_EVERY);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let (stream, peer) = tokio::select! {
            () = stop.cancelled() => break,
            _ = looks.tick() => {
                connections.look();
                continue;
            }
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) if is_connection_error(&error) => continue,
                Err(error) => {
                    // Out of file descriptors: a pause lets connections end, instead of spinning on the error.
                    tracing::warn!(%error, "accept");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
        };
        // Where there is no room for one more, whoever is busy stays, and the newcomer is turned away.
        let Some(mine) = connections.add() else { continue };
        let (http, stop, tls, router) = (http.clone(), stop.clone(), tls.clone(), router.clone());
        tasks.spawn(async move {
            let work = connection(stream, peer, tls, router, &http, stop, &mine);
            let ended = tokio::select! {
                ended = work => ended,
                () = mine.cut.cancelled() => Err("others needed what it held, or it did not take what it asked for".to_owned()),
            };
            if let Err(error) = ended {
                tracing::debug!(%peer, error, "connection");
            }
        });
    }
    drop(listener);
    tasks.close();
    let _ = tokio::time::timeout(DRAIN, tasks.wait()).await;
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    tls: Option<TlsAcceptor>,
    router: Router,
    http: &auto::Builder<TokioExecutor>,
    stop: CancellationToken,
    mine: &Arc<Mine>,
) -> Result<(), String> {
    let _ = stream.set_nodelay(true);
    let unread = u32::try_from(UNREAD_TIMEOUT.as_millis()).unwrap_or(u32::MAX);
    let _ = rustix::net::sockopt::set_tcp_user_timeout(&stream, unread);
    let _ = coracle_apiserver::keep_alive(&stream);
    match tls {
        None => exchange(stream, (peer, None, false), router, http, stop, mine).await,
        Some(tls) => {
            let stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.accept(stream))
                .await
                .map_err(|_| "TLS handshake took too long".to_owned())?
                .map_err(|e| e.to_string())?;
            let session = stream.get_ref().1;
            let proven = session.peer_certificates().and_then(|chain| Proven::read(chain.first()?));
            let is_http2 = session.alpn_protocol() == Some(b"h2");
            exchange(stream, (peer, proven, is_http2), router, http, stop, mine).await
        }
    }
}

async fn exchange<S>(
    stream: S,
    (peer, proven, is_http2): (SocketAddr, Option<Proven>, bool),
    router: Router,
    http: &auto::Builder<TokioExecutor>,
    stop: CancellationToken,
    mine: &Arc<Mine>,
) -> Result<(), String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    // What is told of the end of a connection, whyever it is.
    let (mine, ending) = (mine.clone(), stop.child_token());
    let (stopping, ends) = (ending.clone(), proven.as_ref().map(|proven| proven.ends));
    let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(peer));
        // The handshake may be of long ago, or of another connection whose session goes on here.
        let has_ended = proven.as_ref().is_some_and(|proven| proven.is_over(SystemTime::now()));
        if let Some(proven) = &proven {
            request.extensions_mut().insert(proven.identity.clone());
        }
        // Held by the request and by its answer: a stream that the connection becomes keeps it as busy.
        let busy = Arc::new(mine.busy());
        request.extensions_mut().insert(Connection::new(mine.cut.clone(), busy.clone()));
        let (version, stopping, mine) = (request.version(), stopping.clone(), mine.clone());
        let answer = (!has_ended).then(|| router.clone().call(request));
        async move {
            let mut answer = match answer {
                Some(answer) => answer.await,
                None => {
                    Ok(join::status(StatusCode::UNAUTHORIZED, "the client certificate of this connection has ended"))
                }
            };
            // An upgrade has its own word there.
            if let Ok(response) = &mut answer
                && stopping.is_cancelled()
                && version <= Version::HTTP_11
                && response.status() != StatusCode::SWITCHING_PROTOCOLS
            {
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            // An answer that goes on keeps its connection as busy as the request did.
            answer.map(|response| {
                response.map(|body| {
                    let waiting = body.size_hint().exact().and_then(|size| mine.waits(size));
                    body.map_frame(move |frame| {
                        let _busy = &busy;
                        frame.map_data(|bytes| match &waiting {
                            Some(waiting) => Bytes::from_owner(Piece { bytes, _waiting: waiting.clone() }),
                            None => bytes,
                        })
                    })
                })
            })
        }
    });
    let (stream, cork) = Corked::new(stream);
    let connection = http.serve_connection_with_upgrades(TokioIo::new(stream), service).into_owned();
    let mut connection = std::pin::pin!(connection);
    let end = async {
        tokio::select! {
            () = ending.cancelled() => {}
            // Who has another by now comes again with that.
            () = until(ends) => ending.cancel(),
        }
        if !is_http2 {
            tokio::time::sleep(LAST_REQUEST).await;
        }
    };
    tokio::select! {
        served = poll_fn(|cx| cork.after(connection.as_mut().poll(cx), cx)) => return served.map_err(|e| e.to_string()),
        () = end => connection.as_mut().graceful_shutdown(),
    }
    poll_fn(|cx| cork.after(connection.as_mut().poll(cx), cx)).await.map_err(|e| e.to_string())
}

/// How many connections a listener may have: there are two listeners, and the rest of the process needs descriptors, too.
fn connections_max() -> usize {
    usize::try_from(share_of(open_files())).unwrap_or(CONNECTIONS_MAX).clamp(16, CONNECTIONS_MAX)
}

fn share_of(open_files: u64) -> u64 {
    open_files.saturating_sub(DESCRIPTORS_KEPT).min(open_files / 2) / 2
}

/// How many files this process may have open, now that it asks for all it can get.
fn open_files() -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let most = if setrlimit(Resource::Nofile, raised).is_ok() { limit.maximum } else { limit.current };
    most.unwrap_or(u64::MAX)
}

/// The connections of a listener. When there is no room for one more, the one that has been idle for longest goes: many
/// idle clients only push out each other.
struct Connections {
    most: usize,
    all: Arc<All>,
    next: AtomicU64,
}

struct All {
    began: Instant,
    connections: Mutex<HashMap<u64, Arc<State>>>,
    /// How often it was looked at small answers that wait.
    looks: AtomicUsize,
    /// What they hold.
    waiting: AtomicUsize,
}

/// What is known of one connection.
struct State {
    /// Requests whose answers are not complete.
    active: AtomicUsize,
    /// Since when there are none, in milliseconds of the listener.
    idle_since: AtomicU64,
    /// Small answers that its client has not taken: those made since a look and those made before it, turn by turn.
    small: [AtomicUsize; 2],
    /// What these hold.
    waiting: AtomicUsize,
    /// Ends it: others need its place, or its client does not read what was sent to it.
    cut: CancellationToken,
}

/// A connection's own entry; it goes with the connection.
struct Mine {
    number: u64,
    state: Arc<State>,
    all: Arc<All>,
}

/// A request that is not answered completely.
struct Busy(Arc<Mine>);

/// A small answer that its client has not taken completely.
struct Waiting {
    mine: Arc<Mine>,
    turn: usize,
    bytes: usize,
}

/// A part of a small answer, wherever on its way it is.
struct Piece {
    bytes: Bytes,
    _waiting: Arc<Waiting>,
}

impl Connections {
    fn new(most: usize) -> Connections {
        let all = All {
            began: Instant::now(),
            connections: Mutex::default(),
            looks: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
        };
        Connections { most, all: Arc::new(all), next: AtomicU64::new(0) }
    }

    /// An entry for one more; `None` when all are busy.
    fn add(&self) -> Option<Arc<Mine>> {
        let mut connections = self.all.connections();
        if connections.len() >= self.most {
            let idle = connections.iter().filter(|(_, state)| state.active.load(Ordering::Relaxed) == 0);
            let longest = idle.min_by_key(|(number, state)| (state.idle_since.load(Ordering::Relaxed), **number));
            let (number, state) = longest.map(|(number, state)| (*number, state.clone()))?;
            connections.remove(&number);
            state.cut.cancel();
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let state = Arc::new(State {
            active: AtomicUsize::new(0),
            idle_since: AtomicU64::new(self.all.millis()),
            small: Default::default(),
            waiting: AtomicUsize::new(0),
            cut: CancellationToken::new(),
        });
        connections.insert(number, state.clone());
        Some(Arc::new(Mine { number, state, all: self.all.clone() }))
    }

    /// Ends whatever has not taken in one turn what was answered in the one before.
    fn look(&self) {
        let connections = self.all.connections();
        let before = (self.all.looks.load(Ordering::Relaxed) + 1) % 2;
        let slow = connections.values().filter(|state| state.small[before].load(Ordering::Relaxed) > 0);
        slow.for_each(|state| state.cut.cancel());
        self.all.looks.fetch_add(1, Ordering::Relaxed);
    }
}

impl All {
    fn connections(&self) -> MutexGuard<'_, HashMap<u64, Arc<State>>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn millis(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Ends the connection that keeps most, unless those that end already give back enough.
    fn relieve(&self) {
        let connections = self.connections();
        let stay = connections.values().filter(|state| !state.cut.is_cancelled());
        let kept = stay.map(|state| (state.waiting.load(Ordering::Relaxed), state)).collect::<Vec<_>>();
        if kept.iter().map(|(bytes, _)| bytes).sum::<usize>() > WAITING_BYTES_MAX
            && let Some((_, state)) = kept.iter().max_by_key(|(bytes, _)| bytes)
        {
            state.cut.cancel();
        }
    }
}

impl Mine {
    fn busy(self: &Arc<Mine>) -> Busy {
        self.state.active.fetch_add(1, Ordering::Relaxed);
        Busy(self.clone())
    }

    /// Counts a small answer until its client has taken it; others are counted elsewhere.
    fn waits(self: &Arc<Mine>, size: u64) -> Option<Arc<Waiting>> {
        let size = (1..SMALL).contains(&size).then(|| usize::try_from(size).ok())??;
        let (turn, bytes) = (self.all.looks.load(Ordering::Relaxed) % 2, size + ANSWER_BYTES);
        self.small[turn].fetch_add(1, Ordering::Relaxed);
        self.waiting.fetch_add(bytes, Ordering::Relaxed);
        if self.all.waiting.fetch_add(bytes, Ordering::Relaxed) + bytes > WAITING_BYTES_MAX {
            self.all.relieve();
        }
        Some(Arc::new(Waiting { mine: self.clone(), turn, bytes }))
    }
}

impl std::ops::Deref for Mine {
    type Target = State;

    fn deref(&self) -> &State {
        &self.state
    }
}

impl Drop for Mine {
    fn drop(&mut self) {
        self.all.connections().remove(&self.number);
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.state.idle_since.store(self.0.all.millis(), Ordering::Relaxed);
        self.0.state.active.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.mine.small[self.turn].fetch_sub(1, Ordering::Relaxed);
        self.mine.waiting.fetch_sub(self.bytes, Ordering::Relaxed);
        self.mine.all.waiting.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Who showed a verified client certificate, and when that ends.
#[derive(Clone, Debug)]
struct Proven {
    /// Its common name and organizations (kubernetes-api §23.2).
    identity: Identity,
    ends: SystemTime,
}

impl Proven {
    fn read(certificate: &CertificateDer<'_>) -> Option<Proven> {
        let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
        let user = certificate.subject().iter_common_name().next()?.as_str().ok()?.to_owned();
        let groups = certificate.subject().iter_organization().filter_map(|o| o.as_str().ok()).map(str::to_owned);
        // What ended before 1970 has ended.
        let ends = u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0);
        let ends = SystemTime::UNIX_EPOCH + Duration::from_secs(ends);
        Some(Proven { identity: Identity::authenticated(user, groups.collect()), ends })
    }

    /// Whether nobody is heard by it any more. What was on its way when it ended is.
    fn is_over(&self, now: SystemTime) -> bool {
        now > self.ends + DRAIN
    }
}

/// Waits for a moment; for ever where there is none.
async fn until(moment: Option<SystemTime>) {
    let Some(moment) = moment else { return std::future::pending().await };
    while let Some(left) = moment.duration_since(SystemTime::now()).ok().filter(|left| !left.is_zero()) {
        tokio::time::sleep(left.min(LOOK_EVERY)).await;
    }
}

/// Errors of one connection that say nothing about the listener.
fn is_connection_error(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_idle_connection_makes_room_and_busy_ones_stay() {
        let connections = Connections::new(2);
        let (first, second) = (connections.add().unwrap(), connections.add().unwrap());
        let busy = first.busy();
        let third = connections.add().unwrap();
        let is_out = |mine: &Arc<Mine>| mine.cut.is_cancelled();
        assert!(is_out(&second) && !is_out(&first) && !is_out(&third));
        let _also = third.busy();
        assert!(connections.add().is_none(), "all are busy");
        drop((busy, second));
        assert!(connections.add().is_some());
        assert!(is_out(&first));
    }

    #[test]
    fn who_does_not_take_small_answers_ends_and_so_does_who_keeps_most_of_them() {
        let connections = Connections::new(4);
        let mut mine = (0..3).map(|_| connections.add().unwrap()).collect::<Vec<_>>();
        let out = |mine: &[Arc<Mine>]| mine.iter().map(|mine| mine.cut.is_cancelled()).collect::<Vec<_>>();
        assert!(mine[0].waits(0).is_none() && mine[0].waits(SMALL).is_none());
        // The first takes nothing, the second takes each within a turn, and the third has just asked.
        let (_never, in_time) = (mine[0].waits(1), mine[1].waits(1));
        connections.look();
        drop(in_time);
        let _in_time = mine[1].waits(1);
        let _just_now = mine[2].waits(1);
        assert_eq!(out(&mine), [false; 3]);
        connections.look();
        assert_eq!(out(&mine), [true, false, false]);
        mine.remove(0);

        // More than a listener keeps: whoever has most goes, at once and alone.
        let connections = Connections::new(4);
        let mine = (0..3).map(|_| connections.add().unwrap()).collect::<Vec<_>>();
        let one = 16_000 + ANSWER_BYTES;
        let most = WAITING_BYTES_MAX / one;
        let keep = |mine: &Arc<Mine>, many: usize| (0..many).map(|_| mine.waits(16_000)).collect::<Vec<_>>();
        let (a, b) = (keep(&mine[0], most / 3), keep(&mine[1], most - most / 3));
        assert_eq!(out(&mine), [false; 3]);
        let c = keep(&mine[2], 10);
        assert_eq!(out(&mine), [false, true, false]);
        drop((a, b, c));
        assert_eq!(connections.all.waiting.load(Ordering::Relaxed), 0);
    }

    /// A client that opens no window, or one of a byte, and answers pings.
    #[tokio::test(flavor = "multi_thread")]
    async fn who_does_not_take_its_small_answers_loses_its_connection_and_others_go_on() {
        let router = Router::new().fallback(|| async { "said" });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
        let serving = tokio::spawn(serve(Arc::new(listener), None, router, stop.clone()));
        let ask = async |window: u32| {
            let stream = TokioIo::new(TcpStream::connect(address).await.unwrap());
            let mut http = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
            let (mut sender, connection) = http.initial_stream_window_size(window).handshake(stream).await.unwrap();
            let connection = tokio::spawn(connection);
            let request = http::Request::get(format!("http://{address}/"));
            let request = request.body(http_body_util::Empty::<Bytes>::new()).unwrap();
            (sender.send_request(request).await.unwrap(), sender, connection)
        };
        let (answer, _sender, stays) = ask(1 << 20).await;
        assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "said");
        for window in [0, 1] {
            let (_answer, _sender, connection) = ask(window).await;
            let cut = tokio::time::timeout(Duration::from_secs(60), connection).await;
            assert!(cut.expect("it is cut").unwrap().is_err());
        }
        assert!(!stays.is_finished());
        stop.cancel();
        serving.await.unwrap();
    }

    #[tokio::test]
    async fn a_usual_port_that_is_taken_is_no_reason_not_to_start_and_a_named_one_is_with_its_flag() {
        let ip = IpAddr::from([127, 0, 0, 1]);
        let taken = TcpListener::bind((ip, 0)).await.unwrap();
        let usual = taken.local_addr().unwrap().port();
        let another = registry_at(ip, None, None, usual).await.unwrap();
        assert_ne!(another.local_addr().unwrap().port(), usual);
        let said = registry_at(ip, Some(usual), None, usual).await.unwrap_err().to_string();
        assert!(said.contains(&usual.to_string()) && said.contains("--registry-port"), "{said}");
        // A process that begins anew has the port that its clients were told, whatever is free by now.
        drop(taken);
        let again = registry_at(ip, None, keep(&another), usual).await.unwrap();
        assert_eq!(again.local_addr().unwrap(), another.local_addr().unwrap());
        let usually = registry_at(ip, None, None, usual).await.unwrap();
        assert_eq!(usually.local_addr().unwrap().port(), usual);
        // Something else than another program: that there is no such address.
        assert!(registry_at([192, 0, 2, 1].into(), None, None, usual).await.is_err());
    }

    #[tokio::test]
    async fn a_request_names_its_connection_which_is_cut_by_that() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let (sent, mut named) = tokio::sync::mpsc::unbounded_channel::<Connection>();
        let router = Router::new().fallback(move |request: axum::extract::Request| {
            let _ = request.extensions().get::<Connection>().cloned().map(|named| sent.send(named));
            async { "said" }
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
        let serving = tokio::spawn(serve(Arc::new(listener), None, router, stop.clone()));
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"said") {
            assert!(stream.read_buf(&mut answer).await.unwrap() > 0, "it stays open");
        }
        named.recv().await.expect("it is named").cut();
        let ended = tokio::time::timeout(Duration::from_secs(10), stream.read_buf(&mut answer)).await;
        assert!(matches!(ended.expect("it ends"), Ok(0) | Err(_)));
        stop.cancel();
        serving.await.unwrap();
    }

    #[tokio::test]
    async fn who_is_about_to_ask_when_a_listener_stops_is_answered_and_told_that_it_was_the_last() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let router = Router::new().fallback(|| async { "said" });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
        let serving = tokio::spawn(serve(Arc::new(listener), None, router, stop.clone()));
        let mut used = TcpStream::connect(address).await.unwrap();
        let ask = async |stream: &mut TcpStream| {
            stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
            let mut answer = Vec::new();
            while !answer.ends_with(b"said") {
                assert!(stream.read_buf(&mut answer).await.unwrap() > 0, "it is answered");
            }
            String::from_utf8(answer).unwrap()
        };
        assert!(!ask(&mut used).await.contains("connection: close"));
        let mut idle = TcpStream::connect(address).await.unwrap();
        ask(&mut idle).await;
        stop.cancel();
        assert!(ask(&mut used).await.contains("connection: close"));
        for stream in [&mut used, &mut idle] {
            assert_eq!(stream.read(&mut [0]).await.unwrap(), 0, "it ends");
        }
        serving.await.unwrap();
    }

    #[tokio::test]
    async fn a_connection_ends_with_the_certificate_that_its_client_has_shown() {
        use coracle_controllers::Signer as _;
        use rustls::pki_types::pem::PemObject as _;
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        const LIFE: Duration = Duration::from_secs(5);
        let dir = tempfile::tempdir().unwrap();
        let authority = crate::Authority::open(dir.path(), false).unwrap();
        let subject = crate::Subject {
            file: "api".into(),
            user: "api".into(),
            groups: vec![],
            hosts: vec!["localhost".into()],
            addresses: vec![],
        };
        let tls = crate::tls::Shown::issue(&authority, subject).unwrap().server(&authority).unwrap();
        let who = |request: axum::extract::Request| async move {
            let user = request.extensions().get::<Identity>().map(|identity| identity.user.clone());
            format!("it is {}.", user.unwrap_or_default())
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
        let accept = Some(TlsAcceptor::from(Arc::new(tls)));
        let serving = tokio::spawn(serve(Arc::new(listener), accept, Router::new().fallback(who), stop.clone()));

        let key = rcgen::KeyPair::generate().unwrap();
        let mut asked = rcgen::CertificateParams::default();
        asked.distinguished_name.push(rcgen::DnType::CommonName, "anna");
        let request = asked.serialize_request(&key).unwrap().der().to_vec();
        let signed = authority.sign(&request, &["client auth".to_owned()], LIFE).unwrap();
        let certificate = CertificateDer::from_pem_slice(signed.as_bytes()).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(authority.root()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let client =
            rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let client = client.with_root_certificates(roots).with_client_auth_cert(vec![certificate], key).unwrap();
        let stream = TcpStream::connect(address).await.unwrap();
        let name = "localhost".try_into().unwrap();
        let mut stream = tokio_rustls::TlsConnector::from(Arc::new(client)).connect(name, stream).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"it is anna.") {
            assert!(stream.read_buf(&mut answer).await.unwrap() > 0, "{}", String::from_utf8_lossy(&answer));
        }
        // Sooner than for having said nothing for long.
        let ended = tokio::time::timeout(LIFE * 4, stream.read_buf(&mut answer)).await.expect("it ends");
        assert!(matches!(ended, Ok(0) | Err(_)));
        stop.cancel();
        serving.await.unwrap();
    }

    #[test]
    fn nobody_is_heard_by_a_certificate_that_has_ended() {
        let ends = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000);
        let proven = Proven { identity: Identity::authenticated("anna", vec![]), ends };
        let after = |seconds| ends + Duration::from_secs(seconds);
        assert!([0, 1, 5].into_iter().all(|seconds| !proven.is_over(after(seconds))));
        assert!(proven.is_over(after(6)));
    }

    #[tokio::test]
    async fn a_listener_that_was_kept_goes_on_at_its_port_and_nowhere_else() {
        let first = bind("127.0.0.1:0".parse().unwrap(), None, "a test", "--port").await.unwrap();
        let address = first.local_addr().unwrap();
        let kept = keep(&first);
        drop(first);
        // It waits, and is not refused.
        let waiting = TcpStream::connect(address).await.unwrap();
        for asked in ["127.0.0.1:0".parse().unwrap(), address] {
            let again = bind(asked, kept.clone(), "a test", "--port").await.unwrap();
            assert_eq!(again.local_addr().unwrap(), address);
        }
        let again = bind(address, kept.clone(), "a test", "--port").await.unwrap();
        let (_, from) = again.accept().await.unwrap();
        assert_eq!(from, waiting.local_addr().unwrap());
        let elsewhere = bind("127.0.0.2:0".parse().unwrap(), kept, "a test", "--port").await.unwrap();
        assert_eq!(elsewhere.local_addr().unwrap().ip().to_string(), "127.0.0.2");
    }

    /// A client that opens no window and answers pings: each of its watches has a large piece ready that nobody takes.
    #[tokio::test(flavor = "multi_thread")]
    async fn who_does_not_read_its_watches_loses_its_connection_and_others_go_on() {
        use axum::extract::Request;
        use coracle_apiserver::{ApiServer, Config};
        use coracle_keyspace::Keyspace;
        const MAPS: &str = "/api/v1/namespaces/default/configmaps";
        const LIMIT: Duration = Duration::from_secs(60);
        let dir = tempfile::tempdir().unwrap();
        let keyspace = Keyspace::open(coracle_keyspace::Config::new(dir.path())).await.unwrap();
        let token_key = rcgen::KeyPair::generate().unwrap().serialize_pem();
        let config = Config { external_url: "https://127.0.0.1:6443".to_owned(), token_key, ..Config::default() };
        let api = ApiServer::start(keyspace.clone(), config).await.unwrap();
        let caller = Identity::authenticated("caller", vec![crate::MASTERS.to_owned()]);
        let as_caller = move |mut request: Request, next: axum::middleware::Next| {
            request.extensions_mut().insert(caller.clone());
            async move { next.run(request).await }
        };
        let router = api.router().layer(axum::middleware::from_fn(as_caller));
        let large = serde_json::json!({"metadata": {"name": "large"}, "data": {"k": "x".repeat(1_000_000)}});
        let make = Request::post(MAPS).header("content-type", "application/json");
        let make = make.body(axum::body::Body::from(large.to_string()));
        let made = tower::ServiceExt::oneshot(router.clone(), make.unwrap()).await.unwrap();
        assert_eq!(made.status(), 201);

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
        let serving = tokio::spawn(serve(Arc::new(listener), None, router, stop.clone()));
        let connect = async |window: u32| {
            let stream = TokioIo::new(TcpStream::connect(address).await.unwrap());
            let mut http = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
            let (sender, connection) = http.initial_stream_window_size(window).handshake(stream).await.unwrap();
            (sender, tokio::spawn(connection))
        };
        let watch = || {
            let request = http::Request::get(format!("http://{address}{MAPS}?watch=1"));
            request.body(http_body_util::Empty::<bytes::Bytes>::new()).unwrap()
        };
        // Of more than a caller may have.
        let (mut sender, connection) = connect(0).await;
        let mut held = Vec::new();
        while held.len() < 200 {
            match sender.send_request(watch()).await {
                Ok(answer) => held.push(answer),
                Err(_) => break,
            }
        }
        assert!(held.len() > 100, "{}", held.len());
        let cut = tokio::time::timeout(LIMIT, connection).await;
        assert!(cut.expect("it is cut").unwrap().is_err());
        let (mut sender, _connection) = connect(1 << 20).await;
        let mut body = sender.send_request(watch()).await.unwrap().into_body();
        let mut read = 0;
        while read < 1_000_000 {
            let frame = tokio::time::timeout(LIMIT, body.frame()).await.expect("it goes on").unwrap().unwrap();
            read += frame.data_ref().map_or(0, bytes::Bytes::len);
        }
        drop((body, sender));
        stop.cancel();
        api.shutdown();
        serving.await.unwrap();
        keyspace.shutdown().await;
    }

    #[tokio::test]
    async fn the_kernel_asks_whether_a_silent_client_is_there() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
        let serving = tokio::spawn(serve(Arc::new(listener), None, Router::new(), stop.clone()));
        let client = TcpStream::connect(address).await.unwrap();
        let ports = [address.port(), client.local_addr().unwrap().port()].map(|port| format!(":{port:04X}"));
        // The server's end, whose timer is the one of keep-alives (proc(5): `tr`).
        let is_asked = || {
            let sockets = std::fs::read_to_string("/proc/net/tcp").unwrap();
            let fields = sockets.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
            let mut own = fields.filter(|fields| fields[1].ends_with(&ports[0]) && fields[2].ends_with(&ports[1]));
            own.any(|fields| fields[5].starts_with("02:"))
        };
        let asked = async {
            while !is_asked() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), asked).await.expect("keep-alives are on");
        drop(client);
        stop.cancel();
        serving.await.unwrap();
    }

    #[test]
    fn connections_leave_descriptors_to_the_rest() {
        for (open_files, share) in [(1024, 256), (600, 44), (100, 0), (20_000, 5_000)] {
            assert_eq!(share_of(open_files), share);
        }
    }
}
