//! The framing of a link between two nodes, the same at both of its ends: HTTP/2, a `CONNECT` for each connection.
//!
//! What a stream's reader leaves unread takes room of the link's window, too. Therefore that has room for all streams: one that
//! nobody reads holds up itself and no other.

use std::time::Duration;

use http::{HeaderName, HeaderValue};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use hyper_util::server::conn::auto;

/// Connections in one link at the same time; for more a node makes a further link.
pub(super) const STREAMS_MAX: u32 = 2048;
/// Links that one node makes to another.
pub const LINKS_MAX: usize = 2;
/// With a `CONNECT`: that HTTP requests of the other node's proxy follow, or datagrams. With the answer: that a component is called with
/// the requests, or that datagrams are understood.
pub const LINK: HeaderName = HeaderName::from_static("x-coracle-link");
/// What it says.
pub const REQUESTS: HeaderValue = HeaderValue::from_static("requests");
/// The same.
pub const DATAGRAMS: HeaderValue = HeaderValue::from_static("datagrams");
/// With the answer: what its node says of the pod that was called (`Workload::text`).
pub const CALLED: HeaderName = HeaderName::from_static("x-coracle-link-called");
/// Bytes on their way in one of them, each way,
const STREAM_WINDOW_BYTES: u32 = 128 << 10;
/// and in all of them together: what a node holds at most for one link of another. 256 MiB.
const LINK_WINDOW_BYTES: u32 = STREAMS_MAX * STREAM_WINDOW_BYTES;
/// A node that has been silent for so long is asked whether it is there,
const PING_AFTER: Duration = Duration::from_secs(5);
/// and answers within this time, or the link is made anew.
const PONG_MAX: Duration = Duration::from_secs(5);
/// The end that was called asks later: who called makes the link anew.
const CALLED_PING_AFTER: Duration = Duration::from_secs(10);
const CALLED_PONG_MAX: Duration = Duration::from_secs(10);

/// The end that calls.
pub fn calling() -> http2::Builder<TokioExecutor> {
    let mut http = http2::Builder::new(TokioExecutor::new());
    http.timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(LINK_WINDOW_BYTES)
        .keep_alive_interval(PING_AFTER)
        .keep_alive_timeout(PONG_MAX)
        .keep_alive_while_idle(true);
    http
}

/// The end that is called; it is asked with HTTP/1 whether it is there.
pub fn called() -> auto::Builder<TokioExecutor> {
    let mut http = auto::Builder::new(TokioExecutor::new());
    http.http1().timer(TokioTimer::new());
    http.http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(LINK_WINDOW_BYTES)
        .keep_alive_interval(CALLED_PING_AFTER)
        .keep_alive_timeout(CALLED_PONG_MAX);
    http
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use http::{Method, Request, Response};
    use http_body_util::Empty;
    use hyper::service::service_fn;
    use hyper::upgrade::Upgraded;
    use hyper_util::rt::TokioIo;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::sync::mpsc;

    /// Streams that nobody reads; twice as many would fill 16 MiB, and so did they once.
    const UNREAD: usize = 200;

    type Stream = TokioIo<Upgraded>;

    /// A link whose called end hands out its streams; and how the calling end opens one.
    async fn link() -> (http2::SendRequest<Empty<Bytes>>, mpsc::UnboundedReceiver<Stream>) {
        let (ours, theirs) = tokio::io::duplex(64 << 10);
        let (opened, streams) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            let answer = service_fn(move |request: Request<hyper::body::Incoming>| {
                let opened = opened.clone();
                tokio::spawn(async move { opened.send(TokioIo::new(hyper::upgrade::on(request).await.unwrap())) });
                async { Ok::<_, std::convert::Infallible>(Response::new(Empty::<Bytes>::new())) }
            });
            let _ = called().serve_connection_with_upgrades(TokioIo::new(theirs), answer).await;
        });
        let (sender, connection) = calling().handshake(TokioIo::new(ours)).await.unwrap();
        tokio::spawn(connection);
        (sender, streams)
    }

    async fn open(
        sender: &mut http2::SendRequest<Empty<Bytes>>,
        streams: &mut mpsc::UnboundedReceiver<Stream>,
    ) -> [Stream; 2] {
        let mut request = Request::new(Empty::new());
        *request.method_mut() = Method::CONNECT;
        *request.uri_mut() = "10.0.0.1:80".parse().unwrap();
        sender.ready().await.unwrap();
        let response = sender.send_request(request).await.unwrap();
        let calling = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
        [calling, streams.recv().await.unwrap()]
    }

    /// Both ways: downloads that nobody reads, and uploads.
    #[tokio::test]
    async fn streams_that_nobody_reads_hold_up_no_other() {
        for writer in [1, 0] {
            let all = async {
                let (mut sender, mut streams) = link().await;
                let mut unread = Vec::new();
                for _ in 0..UNREAD {
                    let mut ends = open(&mut sender, &mut streams).await;
                    // All that the other end takes without being read.
                    ends[writer].write_all(&vec![1; STREAM_WINDOW_BYTES as usize]).await.unwrap();
                    unread.push(ends);
                }
                let mut ends = open(&mut sender, &mut streams).await;
                ends[writer].write_all(b"hello").await.unwrap();
                let mut heard = [0; 5];
                ends[1 - writer].read_exact(&mut heard).await.unwrap();
                assert_eq!(&heard, b"hello");
            };
            let done = tokio::time::timeout(Duration::from_secs(60), all).await;
            assert!(done.is_ok(), "the end {writer} is held up by what nobody reads");
        }
    }
}
