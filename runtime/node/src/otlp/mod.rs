//! Spans of requests, sent to who collects them: OTLP over HTTP in protobuf, to `ENDPOINT/v1/traces`. Off unless an endpoint is
//! named.
//!
//! The queue is the proxy's, and bounded there. A batch that the collector does not take within [`SEND_MAX`] is dropped: what waits
//! behind it is newer, and nobody waits for either. What has come until the node ends is sent, as far as that takes no longer than
//! [`LAST_MAX`]. How much was lost, here or at the queue, is said in the log, once in a while and at the end.

mod encode;

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use coracle_proxy::{Spans, Tracer, Waiting};
use http::{Method, Request, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Spans of one request to the collector,
const BATCH_MAX: usize = 512;
/// and how long the first of them waits for others.
const BATCH_WAIT: Duration = Duration::from_secs(1);
/// How long the collector may take.
const SEND_MAX: Duration = Duration::from_secs(10);
/// What is sent when the node ends may take so long.
const LAST_MAX: Duration = Duration::from_secs(2);
/// Bytes of an answer that are read, so that its connection is used again.
const ANSWER_BYTES_MAX: usize = 64 << 10;
/// Between two words in the log about what is lost.
const SAID_EVERY: Duration = Duration::from_secs(60);
/// Where an endpoint takes traces (the OTLP specification's path).
const PATH: &str = "/v1/traces";

/// Where spans go, and how many.
#[derive(Clone, Debug, PartialEq)]
pub struct Otlp {
    /// The collector.
    pub endpoint: OtlpEndpoint,
    /// Share of the traces that begin at this node which is kept, from 0 to 1; of others their beginner says.
    pub share: f64,
}

/// `http://HOST:PORT` or `https://HOST:PORT`, with a path before `/v1/traces` or without.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtlpEndpoint(Uri);

/// The text is no such endpoint.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is no endpoint for traces: http://HOST:PORT or https://HOST:PORT, as http://127.0.0.1:4318")]
pub struct NoEndpoint(String);

impl FromStr for OtlpEndpoint {
    type Err = NoEndpoint;

    fn from_str(text: &str) -> Result<Self, NoEndpoint> {
        let refuse = || NoEndpoint(text.to_owned());
        let whole: Uri = format!("{}{PATH}", text.trim_end_matches('/')).parse().map_err(|_| refuse())?;
        let is_http = matches!(whole.scheme_str(), Some("http" | "https"));
        let has_host = whole.host().is_some_and(|host| !host.is_empty());
        // A question mark would swallow the path, and so would a fragment.
        if is_http && has_host && whole.query().is_none() && !text.contains('#') {
            Ok(Self(whole))
        } else {
            Err(refuse())
        }
    }
}

/// Sends what comes out of the queue until `stop`, and then what is left in it.
pub async fn run(otlp: Otlp, node: String, (tracer, mut spans): (Tracer, Spans), stop: CancellationToken) {
    let client = match client().await {
        Ok(client) => client,
        Err(error) => return tracing::error!(%error, "no traces are sent"),
    };
    let mut losses = Losses { tracer, taken: 0, sent: 0, error: None, said: None };
    let over = async {
        stop.cancelled().await;
        tokio::time::sleep(LAST_MAX).await;
    };
    // What is cut then is lost.
    tokio::select! {
        () = pass_on(&client, (&otlp, &node), &mut spans, &mut losses, &stop) => {}
        () = over => losses.error = Some("the node ends".to_owned()),
    }
    losses.taken += spans.len() as u64;
    losses.tell();
}

/// Sends batches, until there is nothing left after `stop`.
async fn pass_on(
    client: &Client,
    (otlp, node): (&Otlp, &str),
    spans: &mut Spans,
    losses: &mut Losses,
    stop: &CancellationToken,
) {
    let mut batch = Vec::with_capacity(BATCH_MAX);
    loop {
        // Waiting is all that is cut here: what has come is in the batch.
        tokio::select! {
            () = fill(&mut batch, spans) => {}
            () = stop.cancelled() => take(&mut batch, spans),
        }
        if batch.is_empty() {
            return;
        }
        losses.taken += batch.len() as u64;
        let sent = send(client, otlp, node, &batch).await;
        losses.note(batch.len(), sent);
        batch.clear();
    }
}

/// Takes as many as come within a moment of the first; none when there will be none. Dropping the future loses nothing.
async fn fill(batch: &mut Vec<Waiting>, spans: &mut Spans) {
    if spans.recv_many(batch, BATCH_MAX).await == 0 {
        return;
    }
    let until = Instant::now() + BATCH_WAIT;
    while let left @ 1.. = BATCH_MAX - batch.len() {
        match tokio::time::timeout_at(until, spans.recv_many(batch, left)).await {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
    }
}

/// Takes as many as are there.
fn take(batch: &mut Vec<Waiting>, spans: &mut Spans) {
    while batch.len() < BATCH_MAX
        && let Ok(span) = spans.try_recv()
    {
        batch.push(span);
    }
}

type Client = legacy::Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

/// Trusts the machine's authorities.
async fn client() -> Result<Client, Box<dyn std::error::Error + Send + Sync>> {
    let loaded = tokio::task::spawn_blocking(rustls_native_certs::load_native_certs).await?;
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(loaded.certs);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let tls = tls.with_root_certificates(roots).with_no_client_auth();
    let connector =
        hyper_rustls::HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().build();
    Ok(legacy::Client::builder(TokioExecutor::new()).build(connector))
}

async fn send(client: &Client, otlp: &Otlp, node: &str, spans: &[Waiting]) -> Result<(), String> {
    let body = Full::new(Bytes::from(encode::request(node, spans.iter().map(|waiting| &waiting.span))));
    let mut request = Request::new(body);
    *request.method_mut() = Method::POST;
    *request.uri_mut() = otlp.endpoint.0.clone();
    request.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/x-protobuf"));
    let sending = async {
        let response = client.request(request).await.map_err(|error| text(&error))?;
        let status = response.status();
        // Read, so that the connection is good for the next one; what it says is of no use to anybody here.
        let _ = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        if status.is_success() { Ok(()) } else { Err(format!("the collector answers {status}")) }
    };
    tokio::time::timeout(SEND_MAX, sending).await.unwrap_or_else(|_| Err("it does not answer in time".to_owned()))
}

fn text(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

/// What was lost, and when that was said.
struct Losses {
    tracer: Tracer,
    /// Spans that came out of the queue, and those that the collector has taken.
    taken: u64,
    sent: u64,
    /// Why it has not taken others, the last time.
    error: Option<String>,
    /// How many were lost when it was said, and when that was.
    said: Option<(u64, Instant)>,
}

impl Losses {
    fn note(&mut self, count: usize, sent: Result<(), String>) {
        match sent {
            Ok(()) => self.sent += count as u64,
            Err(error) => self.error = Some(error),
        }
        if self.said.is_none_or(|(_, at)| at.elapsed() >= SAID_EVERY) {
            self.tell();
        }
    }

    /// Says what was lost since it was said last, if anything was.
    fn tell(&mut self) {
        let (not_sent, no_room) = (self.taken - self.sent, self.tracer.dropped());
        let lost = not_sent + no_room;
        if lost > self.said.map_or(0, |(lost, _)| lost) {
            let error = self.error.take().unwrap_or_else(|| "more of them come than it takes".to_owned());
            tracing::warn!(error, not_sent, no_room, "spans are lost: the collector does not take them");
            self.said = Some((lost, Instant::now()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use coracle_proxy::{Asker, Context, Span, Tapped};
    use http::StatusCode;
    use hyper::service::service_fn;
    use hyper_util::rt::TokioIo;
    use tokio::sync::mpsc;

    use super::encode::tests::{Field, attributes_of, fields, inner};
    use super::*;

    fn span(number: u64) -> Span {
        let request = Tapped {
            at: SystemTime::UNIX_EPOCH + Duration::from_secs(5),
            asker: Asker::NodePort(30080),
            namespace: "n".into(),
            service: "web".into(),
            port: 80,
            endpoint: Some("10.244.0.5:8080".parse().unwrap()),
            method: Method::GET,
            path: "/a".to_owned(),
            status: Some(StatusCode::BAD_GATEWAY),
            error: None,
            took: Duration::from_millis(3),
            attempts: 3,
        };
        let context = Context { trace: 0x4bf9_2f35, span: number, is_sampled: true };
        Span { context, parent: Some(7), state: None, request: Arc::new(request) }
    }

    /// A collector, and how many spans each request has brought; it refuses the first, if it is to.
    async fn collector(refuses: bool) -> (Otlp, mpsc::UnboundedReceiver<(String, header::HeaderValue, usize)>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let (arrived, arrives) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            let mut refuses = refuses;
            while let Ok((stream, _)) = listener.accept().await {
                let (arrived, refuse) = (arrived.clone(), std::mem::take(&mut refuses));
                let answer = service_fn(move |request: Request<hyper::body::Incoming>| {
                    let arrived = arrived.clone();
                    async move {
                        let path = request.uri().path().to_owned();
                        let kind = request.headers()[header::CONTENT_TYPE].clone();
                        let body = request.into_body().collect().await?.to_bytes();
                        let spans = inner(&inner(&inner(&fields(&body), 1)[0], 2)[0], 2).len();
                        arrived.send((path, kind, spans)).unwrap();
                        let mut response = http::Response::new(Full::<Bytes>::default());
                        if refuse {
                            // Once: what it refuses is lost, and the next is sent all the same.
                            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
                            response.headers_mut().insert(header::CONNECTION, "close".parse().unwrap());
                        }
                        Ok::<_, hyper::Error>(response)
                    }
                });
                let serving = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer);
                tokio::spawn(serving);
            }
        });
        (Otlp { endpoint: endpoint.parse().unwrap(), share: 1.0 }, arrives)
    }

    #[test]
    fn an_endpoint_is_a_url_without_a_query() {
        for (text, path) in [
            ("http://127.0.0.1:4318", Some("/v1/traces")),
            ("https://otel.example/", Some("/v1/traces")),
            ("https://otel.example/tenant", Some("/tenant/v1/traces")),
            ("127.0.0.1:4318", None),
            ("grpc://otel.example:4317", None),
            ("http://", None),
            ("http://otel.example?key=1", None),
            ("http://otel.example/t#x", None),
            ("", None),
        ] {
            let parsed = text.parse::<OtlpEndpoint>();
            assert_eq!(parsed.as_ref().ok().map(|endpoint| endpoint.0.path()), path, "{text}");
        }
    }

    #[test]
    fn a_span_says_what_a_collector_reads() {
        let request = fields(&encode::request("boat", &[span(1), span(2)]));
        let of_resource = &inner(&request, 1)[0];
        let resource = attributes_of(&inner(of_resource, 1)[0], 1);
        assert!(resource.contains(&"k8s.node.name=boat".to_owned()), "{resource:?}");
        let of_scope = &inner(of_resource, 2)[0];
        let spans = inner(of_scope, 2);
        assert_eq!(spans.len(), 2);
        let has = |number: u64, wanted: Field| {
            assert!(spans[0].contains(&(number, wanted.clone())), "{number} {wanted:?} in {:?}", spans[0]);
        };
        has(1, Field::Bytes([vec![0; 12], vec![0x4b, 0xf9, 0x2f, 0x35]].concat()));
        has(2, Field::Bytes(1_u64.to_be_bytes().to_vec()));
        has(4, Field::Bytes(7_u64.to_be_bytes().to_vec()));
        has(5, Field::Bytes(b"GET web.n".to_vec()));
        has(6, Field::Number(2));
        has(7, Field::Number(5_000_000_000));
        has(8, Field::Number(5_003_000_000));
        has(16, Field::Number(1));
        assert_eq!(inner(&spans[0], 15), [[(3, Field::Number(2))]]);
        let attributes = attributes_of(&spans[0], 9);
        for wanted in [
            "http.request.method=GET",
            "url.path=/a",
            "http.response.status_code=502",
            "error.type=502",
            "k8s.service.name=web",
            "network.peer.port=8080",
            "http.request.resend_count=2",
        ] {
            assert!(attributes.contains(&wanted.to_owned()), "{wanted} in {attributes:?}");
        }
    }

    #[tokio::test]
    async fn spans_arrive_at_a_collector_also_after_it_has_refused_some() {
        let (otlp, mut arrives) = collector(true).await;
        let (tracer, spans) = Tracer::new(1.0);
        let stop = CancellationToken::new();
        let running = tokio::spawn(run(otlp, "boat".to_owned(), (tracer.clone(), spans), stop.clone()));
        let expected = |count| ("/v1/traces".to_owned(), "application/x-protobuf".parse().unwrap(), count);
        for count in [3, 2] {
            for number in 0..count {
                tracer.keep(span(number as u64 + 1));
            }
            assert_eq!(arrives.recv().await.unwrap(), expected(count));
        }
        stop.cancel();
        running.await.unwrap();
    }

    #[tokio::test]
    async fn what_has_come_until_the_end_is_sent() {
        let (otlp, mut arrives) = collector(false).await;
        let (tracer, spans) = Tracer::new(1.0);
        (0..2 * BATCH_MAX as u64 + 1).for_each(|number| tracer.keep(span(number + 1)));
        let stop = CancellationToken::new();
        stop.cancel();
        run(otlp, "boat".to_owned(), (tracer, spans), stop).await;
        let mut batches = Vec::new();
        while let Ok((_, _, spans)) = arrives.try_recv() {
            batches.push(spans);
        }
        assert_eq!(batches, [BATCH_MAX, BATCH_MAX, 1]);
    }

    #[tokio::test]
    async fn a_batch_that_is_given_up_keeps_what_has_come() {
        let (tracer, mut spans) = Tracer::new(1.0);
        let mut batch = Vec::new();
        tracer.keep(span(1));
        assert!(futures::FutureExt::now_or_never(fill(&mut batch, &mut spans)).is_none(), "it waits for others");
        assert_eq!(batch.len(), 1);
    }

    #[test]
    fn what_found_no_room_is_told_also_where_all_else_was_taken() {
        let (tracer, spans) = Tracer::new(1.0);
        let mut losses = Losses { tracer: tracer.clone(), taken: 0, sent: 0, error: None, said: None };
        losses.note(0, Ok(()));
        assert_eq!(losses.said.map(|(lost, _)| lost), None);
        drop(spans);
        tracer.keep(span(1));
        losses.note(0, Ok(()));
        assert_eq!(losses.said.map(|(lost, _)| lost), Some(1));
    }
}
