//! HTTP on a byte stream, answered by something that is called.

use std::pin::pin;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use coracle_policy::Source;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use http::header::{CONTENT_TYPE, HOST, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use http::uri::Authority;
use http::{Request, Response, StatusCode, Version};
use http_body::Body as _;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

use crate::held::{Awaited, Held};
use crate::stream::{Limits, Patient};
use crate::turns::{Turn, Turns};
use crate::{Body, BoxError, Error, HttpService, Kept, NotAllowed, Seen, headers, http2, link, retry, upgrade};

/// HTTP headers of a request may take this many bytes (design.md §6). hyper looks after each read, so that somewhat more may
/// pass when it comes at once.
const HEADER_BYTES_MAX: usize = 64 << 10;
/// The next request of a connection comes within this time. Once it begins, [`Limits`] are shorter.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// A client of HTTP/2 that has been silent for so long is asked whether it is there,
const PING_AFTER: Duration = Duration::from_secs(30);
/// and answers within this time.
const PONG_MAX: Duration = Duration::from_secs(15);

static SERVER: LazyLock<auto::Builder<TokioExecutor>> = LazyLock::new(|| {
    let mut http = auto::Builder::new(TokioExecutor::new());
    http.http1().timer(TokioTimer::new()).header_read_timeout(IDLE_MAX).max_buf_size(HEADER_BYTES_MAX + 8192);
    http.http2()
        .timer(TokioTimer::new())
        .max_header_list_size(HEADER_BYTES_MAX as u32)
        .max_concurrent_streams(http2::STREAMS_MAX as u32)
        .initial_stream_window_size(http2::STREAM_WINDOW_BYTES)
        .initial_connection_window_size(http2::CONNECTION_WINDOW_BYTES)
        .max_send_buf_size(http2::SEND_BYTES_MAX)
        .keep_alive_interval(PING_AFTER)
        .keep_alive_timeout(PONG_MAX);
    http
});

/// A connection that speaks another protocol from now on, with who answers it. As long as it does, it is under way.
struct Changed {
    client: OnUpgrade,
    endpoint: OnUpgrade,
    turn: Turn,
    /// Of the endpoint's connection.
    kept: Option<Kept>,
}

/// The connection's place was needed for another.
#[derive(Debug, thiserror::Error)]
#[error("the connection gave way to another")]
struct GaveWay;

/// Serves HTTP/1.1 and HTTP/2 (prior knowledge) on a byte stream, until its end.
pub async fn serve_stream<S>(stream: S, service: Arc<dyn HttpService>) -> Result<(), BoxError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let call = move |request| {
        let answer = service.call(request);
        async move { answer.await.map_err(no_answer) }
    };
    serve(stream, Arc::default(), CancellationToken::new(), call).await
}

/// Who asks, of what another node says of it ([`crate::SOURCE`]); `None` when it may not.
pub type Admit = Arc<dyn Fn(Option<&HeaderValue>) -> Option<Source> + Send + Sync>;

/// The same for requests of another node's proxy ([`crate::Purpose::Requests`]): who sends each is asked for, what came with it is
/// heard, and how it ends is told. When it is `over`, what has begun is finished, and the stream ends.
pub async fn serve_link<S>(
    stream: S,
    service: Arc<dyn HttpService>,
    admit: Admit,
    over: CancellationToken,
) -> Result<(), BoxError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let call = move |mut request: Request<Body>| {
        let source = admit(request.headers().get(link::SOURCE));
        link::receive(&mut request);
        // In HTTP/2 it names a host before its path, too.
        if let Some(path) = request.uri().path_and_query().filter(|_| request.uri().authority().is_some()).cloned() {
            *request.uri_mut() = path.into();
        }
        let has_more = !request.body().is_end_stream();
        let answer = source.map(|source| {
            request.extensions_mut().insert(source);
            service.call(request)
        });
        async move {
            let answered = match answer {
                Some(answer) => answer.await,
                None => Err(NotAllowed.into()),
            };
            Ok(match answered {
                Ok(mut response) => {
                    link::strip(response.headers_mut());
                    response
                }
                Err(error) => {
                    tracing::debug!(%error, "not taken");
                    link::refuse(&error, has_more)
                }
            })
        }
    };
    serve(stream, Arc::default(), over, call).await
}

/// Why a component's client has no answer.
fn no_answer(source: BoxError) -> Error {
    let endpoint = "the pod".to_owned();
    if source.is::<NotAllowed>() {
        return Error::NotAllowed(endpoint);
    }
    match source.is::<Seen>() {
        true => Error::Failed { endpoint, source },
        false => Error::Unavailable { endpoint, source },
    }
}

/// The same with an answer for each request; errors become a plain response, and `turns` know when one is under way. When told
/// to drain, what has begun is finished and nothing more is taken: HTTP/1.1 says `Connection: close`, HTTP/2 GOAWAY.
pub(crate) async fn serve<S, F, A>(
    stream: S,
    turns: Arc<Turns>,
    drain: CancellationToken,
    answer: F,
) -> Result<(), BoxError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Fn(Request<Body>) -> A,
    A: Future<Output = Result<Response<Body>, Error>> + Send + 'static,
{
    let changed: Arc<Mutex<Option<Changed>>> = Arc::default();
    let service = service_fn({
        let (changed, turns) = (changed.clone(), turns.clone());
        move |mut request: Request<Incoming>| {
            let upgrade = headers::upgrade(request.headers()).map(|_| hyper::upgrade::on(&mut request));
            let changed = upgrade.map(|upgrade| (upgrade, changed.clone()));
            let turn = turns.begin();
            let answer = turn
                .as_ref()
                .map(|turn| is_for_one_host(&request).map(|()| answer(request.map(|incoming| body(incoming, turn)))));
            async move {
                let (Some(mut turn), Some(answer)) = (turn, answer) else { return Err(GaveWay) };
                let answered = match answer {
                    Ok(answer) => answer.await,
                    Err(error) => Err(error),
                };
                let mut response = answered.unwrap_or_else(|error| refuse(&error));
                turn.charge(response.extensions_mut().remove());
                if let Some((client, changed)) = changed
                    && response.status() == StatusCode::SWITCHING_PROTOCOLS
                {
                    let (kept, endpoint) = (response.extensions_mut().remove(), hyper::upgrade::on(&mut response));
                    let tunnel = turn.again().map(|turn| Changed { client, endpoint, turn, kept });
                    *changed.lock().unwrap_or_else(PoisonError::into_inner) = tunnel;
                }
                // From here on it may be the client who does not take it.
                turn.passes();
                Ok(response.map(|body| Held { body, by: turn }))
            }
        }
    });
    let io = TokioIo::new(Patient::new(stream, Limits::default(), turns));
    let mut connection = pin!(SERVER.serve_connection_with_upgrades(io, service));
    let mut drained = aside(drain.cancelled());
    tokio::select! {
        // What is told first counts first: nothing begins afterwards.
        biased;
        _ = drained.next() => {
            connection.as_mut().graceful_shutdown();
            connection.await?;
        }
        ended = &mut connection => ended?,
    }
    // A connection that has changed its protocol is no longer the server's.
    let changed = changed.lock().unwrap_or_else(PoisonError::into_inner).take();
    match changed {
        Some(Changed { client, endpoint, turn, kept: _kept }) => {
            upgrade::tunnel_in(client, endpoint, Some(turn)).await.map_err(BoxError::from)
        }
        None => Ok(()),
    }
}

/// A future that is looked at only when it has woken itself, however often its task is: what many wait for is behind a lock.
pub(crate) fn aside<F: Future>(future: F) -> FuturesUnordered<F> {
    std::iter::once(future).collect()
}

/// A body that is known to be empty costs no box.
fn body(body: Incoming, turn: &Turn) -> Body {
    match body.is_end_stream() {
        true => retry::empty(),
        false => Awaited { body, by: turn.sent() }.boxed_unsync(),
    }
}

/// Two hosts, or none, are taken for two different requests by who stands behind (RFC 9112 §3.2); and so is one behind the name of a
/// user, which no host has there (RFC 9110 §4.2.4).
fn is_for_one_host<B>(request: &Request<B>) -> Result<(), Error> {
    let names_user = |authority: &[u8]| authority.contains(&b'@');
    if request.uri().authority().is_some_and(|authority| names_user(authority.as_str().as_bytes())) {
        return Err(Error::Malformed("it names a user"));
    }
    let mut hosts = request.headers().get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (Some(_), Some(_)) => Err(Error::Malformed("it names several hosts")),
        (Some(host), None)
            if !host.is_empty() && (names_user(host.as_bytes()) || Authority::try_from(host.as_bytes()).is_err()) =>
        {
            Err(Error::Malformed("its Host is no host"))
        }
        (None, _) if request.version() == Version::HTTP_11 => Err(Error::Malformed("it names no host")),
        _ => Ok(()),
    }
}

/// What a client is told when nothing answered it.
pub(crate) fn refuse(error: &Error) -> Response<Body> {
    if let Error::Unavailable { source, .. } | Error::Failed { source, .. } = error {
        tracing::debug!(error = %error, cause = %source, "no answer");
    }
    say(status_of(error), &error.to_string())
}

/// With which status.
pub(crate) fn status_of(error: &Error) -> StatusCode {
    match error {
        Error::NoEndpoints { .. }
        | Error::NoneHere { .. }
        | Error::Forbidden { .. }
        | Error::NoPod(_)
        | Error::Crowded { .. }
        | Error::Unavailable { .. } => StatusCode::SERVICE_UNAVAILABLE,
        Error::NotInCluster(_) | Error::NoPort { .. } => StatusCode::NOT_FOUND,
        Error::NotAllowed(_) => StatusCode::FORBIDDEN,
        Error::NoAuthority | Error::Scheme(_) | Error::Malformed(_) => StatusCode::BAD_REQUEST,
        Error::Late | Error::Asleep { .. } => StatusCode::GATEWAY_TIMEOUT,
        Error::Failed { .. } => StatusCode::BAD_GATEWAY,
    }
}

/// What an answer of our own says: in its extensions, for who tells it in other words.
#[derive(Debug, Clone)]
pub(crate) struct Own(pub Arc<str>);

/// An answer of our own. What it says may be the client's own words, so nobody is to take it for more than text.
pub(crate) fn say(status: StatusCode, words: &str) -> Response<Body> {
    let body = Full::new(Bytes::from(format!("{words}\n"))).map_err(|never| match never {}).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response.extensions_mut().insert(Own(words.into()));
    response
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use futures::future::BoxFuture;
    use http_body::Frame;
    use http_body_util::StreamBody;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// Answers its path; `/broken` not at all, and `/ended` is ended.
    struct Echo;

    impl HttpService for Echo {
        fn call(&self, request: Request<Body>) -> BoxFuture<'static, Result<Response<Body>, BoxError>> {
            let path = request.uri().path().to_owned();
            Box::pin(async move {
                if path == "/broken" {
                    return Err("it broke".into());
                }
                if path == "/ended" {
                    return Err(Seen("it was ended".into()).into());
                }
                let body = Full::new(Bytes::from(path)).map_err(|never| match never {}).boxed_unsync();
                Ok(Response::new(body))
            })
        }
    }

    async fn ask(request: &str) -> String {
        let (mut client, server) = tokio::io::duplex(64 << 10);
        let serving = tokio::spawn(serve_stream(server, Arc::new(Echo)));
        // Who is refused early is not read to the end.
        let _ = client.write_all(request.as_bytes()).await;
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        let _ = serving.await.unwrap();
        answer
    }

    #[tokio::test]
    async fn every_request_that_came_whole_is_answered() {
        let old = ask("GET /old HTTP/1.0\r\n\r\n\n").await;
        assert!(old.starts_with("HTTP/1.0 200") && old.ends_with("/old"), "{old:?}");
        let two =
            ask("GET /one HTTP/1.1\r\nhost: a\r\n\r\nGET /two HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
        assert!(two.contains("/one") && two.ends_with("/two"), "{two:?}");
        let none = ask("GET /broken HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
        assert!(none.starts_with("HTTP/1.1 503") && none.contains("the pod takes no requests now"), "{none:?}");
        let ended = ask("GET /ended HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
        assert!(ended.starts_with("HTTP/1.1 502"), "as at a port of the node: {ended:?}");
        let large = ask(&format!("GET / HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "y".repeat(400 << 10))).await;
        assert!(large.starts_with("HTTP/1.1 431"), "{large:?}");
    }

    #[tokio::test]
    async fn a_request_is_for_one_host() {
        for (hosts, status) in [
            ("host: a\r\n", 200),
            ("host: a.example:8080\r\n", 200),
            ("host: [::1]:80\r\n", 200),
            ("host:\r\n", 200),
            ("", 400),
            ("host: a\r\nhost: a\r\n", 400),
            ("host: a\r\nhost: b\r\n", 400),
            ("host: a b\r\n", 400),
        ] {
            let answer = ask(&format!("GET / HTTP/1.1\r\n{hosts}connection: close\r\n\r\n")).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{hosts:?}: {answer:?}");
        }
    }

    #[tokio::test]
    async fn draining_finishes_what_has_begun() {
        let (mut client, server) = tokio::io::duplex(64 << 10);
        let (drain, (begun, mut begins)) = (CancellationToken::new(), tokio::sync::mpsc::channel(1));
        let (go, wait) = tokio::sync::oneshot::channel::<()>();
        let wait = Arc::new(tokio::sync::Mutex::new(Some(wait)));
        let answer = move |_: Request<Body>| {
            let (begun, wait) = (begun.clone(), wait.clone());
            async move {
                begun.send(()).await.unwrap();
                wait.lock().await.take().unwrap().await.unwrap();
                Ok(Response::new(retry::empty()))
            }
        };
        let serving = tokio::spawn(serve(server, Arc::default(), drain.clone(), answer));
        let two = b"GET / HTTP/1.1\r\nhost: a\r\n\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n";
        client.write_all(two).await.unwrap();
        begins.recv().await.unwrap();
        drain.cancel();
        go.send(()).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer.matches("HTTP/1.1 200").count(), 1, "the second has not begun: {answer:?}");
        assert!(answer.contains("connection: close"), "{answer:?}");
        let _ = serving.await.unwrap();
    }

    #[tokio::test]
    async fn who_does_not_send_what_it_has_said_gives_way_and_who_is_not_asked_for_it_does_not() {
        const REST: Duration = Duration::from_millis(200);
        for reads in [true, false] {
            let (mut client, server) = tokio::io::duplex(64 << 10);
            let turns = Arc::new(Turns::resting_after(REST));
            let (read, mut reading) = tokio::sync::mpsc::channel(1);
            let answer = move |mut request: Request<Body>| {
                let read = read.clone();
                async move {
                    while reads && let Some(frame) = request.body_mut().frame().await {
                        read.send(frame.is_ok()).await.unwrap();
                    }
                    std::future::pending().await
                }
            };
            tokio::spawn(serve(server, turns.clone(), CancellationToken::new(), answer));
            client.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\n1").await.unwrap();
            if reads {
                assert_eq!(reading.recv().await, Some(true));
            }
            tokio::time::sleep(REST * 3).await;
            assert_eq!(turns.patience().is_some(), reads, "the second byte has not come");
            client.write_all(b"2").await.unwrap();
            if reads {
                assert_eq!(reading.recv().await, Some(true));
            }
            assert!(turns.patience().is_none(), "it has just come");
            client.write_all(b"3").await.unwrap();
            tokio::time::sleep(REST * 3).await;
            assert!(turns.patience().is_none() && !turns.give_way(), "from now on it is for us to answer");
        }
    }

    #[tokio::test]
    async fn a_body_that_nobody_reads_is_small_here_and_holds_up_no_other() {
        const UNREAD: usize = 20;
        static PIECE: [u8; 16 << 10] = [0; 16 << 10];
        let (client, server) = tokio::io::duplex(64 << 10);
        let answer = |request: Request<Body>| async move {
            if request.uri().path() == "/unread" {
                std::future::pending::<()>().await;
            }
            request.into_body().collect().await.map_err(|_| Error::Malformed("its body broke off"))?;
            Ok::<_, Error>(Response::new(retry::empty()))
        };
        tokio::spawn(serve(server, Arc::default(), CancellationToken::new(), answer));
        let http = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
        let (mut sender, connection) = http.handshake::<_, Body>(TokioIo::new(client)).await.unwrap();
        tokio::spawn(connection);
        let sent = Arc::<AtomicUsize>::default();
        let mut ask = |path: &str, sent: &Arc<AtomicUsize>| {
            let sent = sent.clone();
            let pieces = futures::stream::iter(0..256).map(move |_| {
                sent.fetch_add(PIECE.len(), Relaxed);
                Ok(Frame::data(Bytes::from_static(&PIECE)))
            });
            let request = Request::post(format!("http://a{path}")).body(StreamBody::new(pieces).boxed_unsync());
            sender.send_request(request.unwrap())
        };
        let unread: Vec<_> = (0..UNREAD).map(|_| tokio::spawn(ask("/unread", &sent))).collect();
        while sent.load(Relaxed) < 1 << 20 {
            tokio::task::yield_now().await;
        }
        let read = tokio::time::timeout(Duration::from_secs(20), ask("/read", &Arc::default())).await;
        assert_eq!(read.expect("it is read").unwrap().status(), 200);
        let each = sent.load(Relaxed) / UNREAD;
        assert!(each <= 2 * http2::STREAM_WINDOW_BYTES as usize, "{each} bytes of each have come");
        drop(unread);
    }
}
