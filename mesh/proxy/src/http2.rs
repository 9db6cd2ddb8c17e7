//! Connections that speak HTTP/2, for requests that need it: few to an endpoint, each for many requests at a time.
//!
//! A request takes the first connection to its endpoint that has room, or makes another. Nobody asks first whether HTTP/2 is spoken there
//! ("prior knowledge", RFC 9113 §3.3): that is what whoever wants it says.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::uri::Authority;
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioTimer};

use crate::dial::Connection;
use crate::guard::locked;
use crate::held::{Held, Holder};
use crate::{Body, BoxError};

/// It is to be asked in HTTP/2: in the extensions of a request to a backend of a GRPCRoute.
#[derive(Debug, Clone, Copy)]
pub(crate) struct InHttp2;

/// Requests at a time on one connection: as many as a server should take at least (RFC 9113 §6.5.2).
pub(crate) const STREAMS_MAX: usize = 100;
/// Connections that are kept for other requests, to all endpoints together; one that is made beyond it ends with its request.
const KEPT_MAX: usize = 1024;
/// One that nobody has used for so long ends, after as long again at most.
const IDLE_MAX: Duration = Duration::from_secs(30);
/// An endpoint that has been silent for so long, while it is asked, is asked whether it is there,
const PING_AFTER: Duration = Duration::from_secs(30);
/// and answers within this time.
const PONG_MAX: Duration = Duration::from_secs(15);
/// Bytes of a body that have come and wait for who reads it, towards clients as towards who answers;
pub(crate) const STREAM_WINDOW_BYTES: u32 = 128 << 10;
/// of all bodies of a connection as many as of each: what is left unread holds up itself, and none that others read. The price is 12.5 MiB
/// that a client may leave unread on one connection; their number is bounded ([`crate::places::CONNECTIONS_MAX`]), their bytes are not.
pub(crate) const CONNECTION_WINDOW_BYTES: u32 = STREAMS_MAX as u32 * STREAM_WINDOW_BYTES;
/// Bytes of one that wait to be sent.
pub(crate) const SEND_BYTES_MAX: usize = 128 << 10;
/// Bytes of an answer's headers, and of its trailers.
const HEADER_BYTES_MAX: u32 = 64 << 10;

/// Why there is no answer.
pub(crate) enum Failed {
    /// Nobody has seen the request.
    Unseen(BoxError),
    /// Somebody may have.
    Seen(BoxError),
}

/// A connection.
struct Open {
    sender: SendRequest<Body>,
    /// Each request under way holds one.
    streams: Arc<Streams>,
    is_called: bool,
}

/// What is asked on a connection.
struct Streams {
    under_way: AtomicUsize,
    /// Since it was looked last whether anybody uses it.
    begun: AtomicUsize,
    /// As many at a time as the endpoint takes: of more the rest would wait there for the others.
    max: AtomicUsize,
}

impl Default for Streams {
    fn default() -> Streams {
        Streams { under_way: 0.into(), begun: 0.into(), max: STREAMS_MAX.into() }
    }
}

/// A request under way, to the end of its answer.
struct Stream(Arc<Streams>);

impl Stream {
    fn begin(streams: &Arc<Streams>) -> Stream {
        streams.under_way.fetch_add(1, Relaxed);
        streams.begun.fetch_add(1, Relaxed);
        Stream(streams.clone())
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Relaxed);
    }
}

impl Holder for Stream {}

#[derive(Default)]
struct Kept {
    by: HashMap<Authority, Vec<Open>>,
    all: usize,
}

impl Kept {
    /// Those that are not wanted go.
    fn retain(&mut self, to: &Authority, is_wanted: impl Fn(&Open) -> bool) {
        let Some(open) = self.by.get_mut(to) else { return };
        let before = open.len();
        open.retain(is_wanted);
        self.all -= before - open.len();
        if open.is_empty() {
            self.by.remove(to);
        }
    }
}

/// The connections. Clones share them.
#[derive(Clone, Default)]
pub(crate) struct Pool(Arc<Mutex<Kept>>);

/// What a request takes: a way to send it, its place, and whether a component is called at the other end.
type Taken = (SendRequest<Body>, Stream, bool);

impl Pool {
    /// Sends a request on a connection that is kept under `to`, or on the one that `connect` makes; the answer, and whether a component
    /// is called there.
    pub async fn send<C>(
        &self,
        to: &Authority,
        mut request: Request<Body>,
        connect: impl Fn() -> C,
    ) -> Result<(Response<Body>, bool), Failed>
    where
        C: Future<Output = Result<Connection, BoxError>>,
    {
        loop {
            let taken = self.take(to);
            let is_kept = taken.is_some();
            let (mut sender, stream, is_called) = match taken {
                Some(taken) => taken,
                None => self.open(to, connect().await.map_err(Failed::Unseen)?).await.map_err(Failed::Unseen)?,
            };
            match sender.try_send_request(request).await {
                Ok(response) => {
                    let response = response.map(|body| {
                        let body = body.map_err(BoxError::from).boxed_unsync();
                        Held { body, by: stream }.boxed_unsync()
                    });
                    return Ok((response, is_called));
                }
                Err(mut error) => match error.take_message() {
                    // It has ended meanwhile, which says nothing of the endpoint; it is not taken again, so that there is an end of them.
                    Some(unsent) if is_kept => {
                        self.forget(to, &stream.0);
                        request = unsent;
                    }
                    Some(_) => return Err(Failed::Unseen(error.into_error().into())),
                    None => return Err(Failed::Seen(error.into_error().into())),
                },
            }
        }
    }

    /// The first connection with room.
    fn take(&self, to: &Authority) -> Option<Taken> {
        let mut kept = locked(&self.0);
        kept.retain(to, |open| !open.sender.is_closed());
        let mut all = kept.by.get(to)?.iter();
        let open = all.find(|open| open.streams.under_way.load(Relaxed) < open.streams.max.load(Relaxed))?;
        Some((open.sender.clone(), Stream::begin(&open.streams), open.is_called))
    }

    async fn open(&self, to: &Authority, connection: Connection) -> Result<Taken, BoxError> {
        let (is_called, may_be_kept) = (connection.is_called(), connection.may_be_kept());
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder.timer(TokioTimer::new()).max_header_list_size(HEADER_BYTES_MAX);
        builder.keep_alive_interval(PING_AFTER).keep_alive_timeout(PONG_MAX);
        builder.initial_stream_window_size(STREAM_WINDOW_BYTES).initial_connection_window_size(CONNECTION_WINDOW_BYTES);
        builder.max_send_buf_size(SEND_BYTES_MAX);
        let (sender, connection) = builder.handshake(connection).await?;
        let streams: Arc<Streams> = Arc::default();
        let stream = Stream::begin(&streams);
        {
            let mut kept = locked(&self.0);
            if may_be_kept && kept.all < KEPT_MAX {
                kept.all += 1;
                let open = Open { sender: sender.clone(), streams: streams.clone(), is_called };
                kept.by.entry(to.clone()).or_default().push(open);
            }
        }
        let (pool, to) = (self.clone(), to.clone());
        // It ends when nobody can send anything any more, and nothing is under way: with the pool at the latest.
        tokio::spawn(async move {
            let mut connection = pin!(connection);
            let mut over = pin!(std::future::poll_fn(|cx| {
                let polled = connection.as_mut().poll(cx);
                streams.max.store(connection.current_max_send_streams().clamp(1, STREAMS_MAX), Relaxed);
                polled
            }));
            loop {
                tokio::select! {
                    ended = &mut over => {
                        if let Err(error) = ended {
                            tracing::debug!(%error, %to, "a connection of HTTP/2 has ended");
                        }
                        break;
                    }
                    () = tokio::time::sleep(IDLE_MAX) => pool.rest(&to, &streams),
                }
            }
            pool.forget(&to, &streams);
        });
        Ok((sender, stream, is_called))
    }

    /// Keeps a connection no more that nobody has used since it was looked last.
    fn rest(&self, to: &Authority, streams: &Arc<Streams>) {
        let mut kept = locked(&self.0);
        // Whoever takes one does so behind the same lock.
        if streams.begun.swap(0, Relaxed) == 0 && streams.under_way.load(Relaxed) == 0 {
            kept.retain(to, |open| !Arc::ptr_eq(&open.streams, streams));
        }
    }

    fn forget(&self, to: &Authority, streams: &Arc<Streams>) {
        locked(&self.0).retain(to, |open| !Arc::ptr_eq(&open.streams, streams));
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http_body::Frame;
    use http_body_util::StreamBody;
    use hyper_util::rt::TokioIo;

    use super::*;
    use crate::serve::serve;
    use crate::turns::Turns;

    /// A server of HTTP/2 whose answers come when they are let go; and how many connections it had.
    struct Server {
        pool: Pool,
        answers: fn() -> Body,
        connections: AtomicUsize,
        go: tokio::sync::watch::Sender<bool>,
    }

    impl Server {
        async fn ask(&self) -> Result<Response<Body>, String> {
            let connect = || async {
                self.connections.fetch_add(1, Relaxed);
                let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
                let client = tokio::net::TcpStream::connect(listener.local_addr()?).await?;
                let (server, _) = listener.accept().await?;
                let (go, answers) = (self.go.subscribe(), self.answers);
                let answer = move |_: Request<Body>| {
                    let mut go = go.clone();
                    async move {
                        let _ = go.wait_for(|go| *go).await;
                        Ok(Response::new(answers()))
                    }
                };
                tokio::spawn(serve(server, Arc::<Turns>::default(), Default::default(), answer));
                Ok::<_, BoxError>(Connection::Socket(TokioIo::new(client)))
            };
            let request = Request::post("http://a.x/s/m").body(crate::retry::empty()).unwrap();
            match self.pool.send(&"a.x".parse().unwrap(), request, connect).await {
                Ok((response, _)) => Ok(response),
                Err(Failed::Unseen(error) | Failed::Seen(error)) => Err(error.to_string()),
            }
        }

        fn kept(&self) -> usize {
            let kept = locked(&self.pool.0);
            assert_eq!(kept.all, kept.by.values().map(Vec::len).sum::<usize>());
            kept.all
        }
    }

    fn server(go: bool) -> Server {
        let (connections, go) = (AtomicUsize::new(0), tokio::sync::watch::Sender::new(go));
        Server { pool: Pool::default(), answers: crate::retry::empty, connections, go }
    }

    #[tokio::test]
    async fn many_requests_have_one_connection_and_more_have_another() {
        let server = server(true);
        for _ in 0..3 {
            server.ask().await.unwrap();
        }
        assert_eq!((server.connections.load(Relaxed), server.kept()), (1, 1));
        let answers: Vec<_> = futures::future::join_all((0..3).map(|_| server.ask())).await;
        assert_eq!(server.connections.load(Relaxed), 1);
        // An answer that is not read to its end is under way.
        let streams = locked(&server.pool.0).by.values().next().unwrap()[0].streams.clone();
        assert_eq!(streams.under_way.load(Relaxed), 3);
        drop(answers);
        assert_eq!(streams.under_way.load(Relaxed), 0);
        let _full: Vec<Stream> = (0..STREAMS_MAX).map(|_| Stream::begin(&streams)).collect();
        server.ask().await.unwrap();
        assert_eq!((server.connections.load(Relaxed), server.kept()), (2, 2));
    }

    #[tokio::test]
    async fn one_that_rests_is_kept_no_more_and_one_that_has_ended_is_not_taken() {
        let server = server(true);
        let (to, answer) = ("a.x".parse().unwrap(), server.ask().await.unwrap());
        let streams = locked(&server.pool.0).by.values().next().unwrap()[0].streams.clone();
        server.pool.rest(&to, &streams);
        server.pool.rest(&to, &streams);
        assert_eq!(server.kept(), 1, "an answer is under way");
        drop(answer);
        server.pool.rest(&to, &streams);
        assert_eq!(server.kept(), 0);
        server.ask().await.unwrap();
        assert_eq!(server.connections.load(Relaxed), 2);
    }

    #[tokio::test]
    async fn beyond_so_many_none_is_kept() {
        let server = server(true);
        locked(&server.pool.0).all = KEPT_MAX;
        server.ask().await.unwrap();
        server.ask().await.unwrap();
        assert_eq!((server.connections.load(Relaxed), locked(&server.pool.0).by.len()), (2, 0));
    }

    #[tokio::test]
    async fn answers_that_nobody_reads_hold_up_no_other() {
        static PIECE: [u8; 16 << 10] = [0; 16 << 10];
        let endless = || {
            let pieces = futures::stream::repeat_with(|| Ok(Frame::data(Bytes::from_static(&PIECE))));
            StreamBody::new(pieces).boxed_unsync()
        };
        let server = Server { answers: endless, ..server(true) };
        server.ask().await.unwrap();
        let _unread = futures::future::join_all((2..STREAMS_MAX).map(|_| server.ask())).await;
        let mut read = server.ask().await.unwrap().into_body();
        let (mut left, soon) = (4 * CONNECTION_WINDOW_BYTES as usize, Duration::from_secs(20));
        while left > 0 {
            let frame = tokio::time::timeout(soon, read.frame()).await.expect("more of it comes");
            left = left.saturating_sub(frame.unwrap().unwrap().data_ref().unwrap().len());
        }
        assert_eq!(server.connections.load(Relaxed), 1);
    }
}
