//! How clients reach servers: kube's own client over a network that delays, loses requests or their answers, breaks streams, and
//! cuts whoever the storm cuts. Whoever gets no answer does not know whether it was done.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use coracle_apiserver::Identity;
use coracle_keyspace::Lead;
use futures::stream::{self, BoxStream, StreamExt as _};
use http::{Method, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody};
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use tower::Service as _;

use crate::cluster::world::{SERVERS, Up, World};
use crate::plants::Plant;

/// How long it takes to find that nobody is there.
const UNREACHABLE_AFTER: Duration = Duration::from_millis(50);

type Stream = StreamBody<BoxStream<'static, io::Result<Frame<Bytes>>>>;

fn broken(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, why.to_owned())
}

/// Somebody's way to the servers.
#[derive(Clone)]
pub struct Way {
    world: Arc<World>,
    /// What the storm may cut.
    line: String,
    identity: Identity,
    /// The server that was reached last.
    at: Arc<AtomicUsize>,
    /// Whether it goes to that one alone, over a network that never fails.
    observes: bool,
}

impl Way {
    /// Of a client or a node agent called `line`, which goes to another server when one does not answer.
    pub fn client(world: &Arc<World>, line: &str, user: &str, groups: &[&str]) -> kube::Client {
        let identity = Identity::authenticated(user, groups.iter().map(ToString::to_string).collect());
        let at = line.bytes().map(usize::from).sum::<usize>() % SERVERS.len();
        let at = Arc::new(AtomicUsize::new(at));
        let way = Way { world: world.clone(), line: line.into(), identity, at, observes: false };
        kube::Client::new(way, "default")
    }

    /// Of whoever looks at the server number `server` from outside of the play.
    pub fn observer(world: &Arc<World>, server: usize) -> kube::Client {
        let identity = Identity::authenticated("observer", vec!["system:masters".into()]);
        let at = Arc::new(AtomicUsize::new(server));
        let way = Way { world: world.clone(), line: "observer".into(), identity, at, observes: true };
        kube::Client::new(way, "default")
    }

    async fn send(self, request: Request<kube::client::Body>) -> io::Result<Response<Stream>> {
        let line = self.world.line(&self.line);
        let fate = if self.observes { Default::default() } else { self.world.fate() };
        let at = self.at.load(Ordering::Relaxed);
        let server = self.world.up(SERVERS[at]);
        let Some(up) = server.filter(|_| !line.is_cut && !fate.lost) else {
            tokio::time::sleep(UNREACHABLE_AFTER).await;
            if !self.observes {
                self.at.store((at + 1) % SERVERS.len(), Ordering::Relaxed);
            }
            return Err(broken("nobody is there"));
        };
        tokio::time::sleep(fate.delay).await;
        let request = whole(request).await?;
        let mut service = up.api.in_process(self.identity.clone());
        let world = self.world.clone();
        let work = async move {
            let (reads, before) = (*request.method() == Method::GET, world.applied());
            let answer = answered(service.call(request).await);
            if reads {
                return Ok(answer.map(|body| body.map_err(io::Error::other).boxed_unsync()));
            }
            let (answer, wrote) = written(answer, before).await?;
            world.history.others.lock().extend(wrote);
            Ok(answer.map(|bytes| Full::new(bytes).map_err(io::Error::other).boxed_unsync()))
        };
        let answer = tokio::select! {
            biased;
            () = line.broken.cancelled() => return Err(broken("the line was cut")),
            answer = work_at(&up, work) => answer?,
        };
        if fate.answer_lost {
            return Err(broken("the answer was lost"));
        }
        let (killed, line) = (up.killed.clone(), line.broken.clone());
        let breaks = self.world.break_after().filter(|_| !self.observes);
        let ends = async move {
            let breaks = async {
                match breaks {
                    Some(after) => tokio::time::sleep(after).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = killed.cancelled() => (),
                () = line.cancelled() => (),
                () = breaks => (),
            }
        };
        Ok(answer.map(|body| stream_until(body, ends)))
    }
}

/// A request with all of its body.
async fn whole(request: Request<kube::client::Body>) -> io::Result<Request<Full<Bytes>>> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    Ok(Request::from_parts(head, Full::new(body)))
}

fn answered<T>(answer: Result<T, Infallible>) -> T {
    answer.unwrap_or_else(|never| match never {})
}

/// The answer to a write with all of its body, and the revision that it says it has written, unless what it says was there `before`.
async fn written<B>(answer: Response<B>, before: u64) -> io::Result<(Response<Bytes>, Option<u64>)>
where
    B: http_body::Body<Data = Bytes>,
    B::Error: std::error::Error + Send + Sync + 'static,
{
    let (head, body) = answer.into_parts();
    let bytes = body.collect().await.map_err(io::Error::other)?.to_bytes();
    let object = serde_json::from_slice::<Value>(&bytes).ok().filter(|_| head.status.is_success());
    let wrote = object.as_ref().and_then(revision).filter(|revision| *revision > before);
    Ok((Response::from_parts(head, bytes), wrote))
}

/// Has a server work. It goes on when nobody waits for it any more, and ends when it is killed.
async fn work_at<T: Send + 'static>(
    up: &Up,
    work: impl Future<Output = io::Result<T>> + Send + 'static,
) -> io::Result<T> {
    let killed = up.killed.clone();
    let working = tokio::spawn(async move {
        tokio::select! {
            biased;
            () = killed.cancelled() => Err(broken("the server was killed")),
            done = work => done,
        }
    });
    working.await.map_err(io::Error::other)?
}

/// A body that is broken off when `ends` does.
fn stream_until<B>(body: B, ends: impl Future<Output = ()> + Send + 'static) -> Stream
where
    B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: std::error::Error + Send + Sync + 'static,
{
    let pieces = stream::unfold(Some((body, Box::pin(ends))), |state| async move {
        let (mut body, mut ends) = state?;
        tokio::select! {
            biased;
            () = &mut ends => Some((Err(broken("the stream was broken off")), None)),
            frame = body.frame() => frame.map(|frame| (frame.map_err(io::Error::other), Some((body, ends)))),
        }
    });
    StreamBody::new(pieces.boxed())
}

impl tower::Service<Request<kube::client::Body>> for Way {
    type Response = Response<Stream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Response<Stream>>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<kube::client::Body>) -> Self::Future {
        Box::pin(self.clone().send(request))
    }
}

/// The way of a duty of the leader, in the leader's own process. It may be slow, as a process is that was stopped for a while:
/// what was begun under one lead arrives under the next.
#[derive(Clone)]
pub struct DutyWay {
    pub world: Arc<World>,
    pub up: Up,
    pub user: String,
    pub lead: Lead,
}

impl DutyWay {
    async fn send(self, request: Request<kube::client::Body>) -> io::Result<Response<Stream>> {
        let request = whole(request).await?;
        let up = self.up.clone();
        // It is on its way whether or not the duty ends meanwhile: who is deposed does not wait for it, and cannot take it back.
        work_at(&up, self.answer(request)).await
    }

    async fn answer(self, request: Request<Full<Bytes>>) -> io::Result<Response<Stream>> {
        let identity = Identity::authenticated(self.user.clone(), vec!["system:masters".into()]);
        let mut service = self.up.api.in_process(identity);
        if self.world.plant != Plant::ForgottenFence {
            service = service.under(self.lead);
        }
        let killed = self.up.killed.clone();
        let killed = async move { killed.cancelled().await };
        if *request.method() == Method::GET {
            return Ok(answered(service.call(request).await).map(|body| stream_until(body, killed)));
        }
        tokio::time::sleep(self.world.duty_delay()).await;
        let before = self.world.applied();
        let (answer, wrote) = written(answered(service.call(request).await), before).await?;
        if let Some(revision) = wrote {
            self.world.history.duty_wrote(self.lead.term, revision);
        }
        Ok(answer.map(|bytes| stream_until(Full::new(bytes), killed)))
    }
}

impl tower::Service<Request<kube::client::Body>> for DutyWay {
    type Response = Response<Stream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Response<Stream>>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<kube::client::Body>) -> Self::Future {
        Box::pin(self.clone().send(request))
    }
}

/// The revision that an object says of itself.
pub fn revision(object: &Value) -> Option<u64> {
    object["metadata"]["resourceVersion"].as_str()?.parse().ok()
}

/// What a request came to.
#[derive(Debug)]
pub enum Outcome {
    /// It was done, and this was said.
    Done(Value),
    /// It was not done.
    Refused(u16),
    /// It may or may not be done, now or later.
    Unknown,
}

/// Sends a request, as clients do that wait so long and no longer.
pub async fn ask(client: &kube::Client, method: Method, path: &str, media: &str, body: &Value) -> Outcome {
    let bytes = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
    let request = Request::builder().method(method.clone()).uri(path).header("content-type", media);
    let request =
        request.header("accept", "application/json").body(kube::client::Body::from(bytes)).expect("a request");
    let answered = async {
        let response = client.send(request).await.ok()?;
        let code = response.status().as_u16();
        let body = response.into_body().collect().await.ok()?.to_bytes();
        Some((code, serde_json::from_slice::<Value>(&body).unwrap_or_default()))
    };
    match tokio::time::timeout(Duration::from_secs(10), answered).await {
        Ok(Some((200..300, value))) => Outcome::Done(value),
        // Timeouts and failures of the server say nothing of what was done (kubernetes-api §2.6).
        Ok(Some((500 | 502 | 504, _))) | Ok(None) | Err(_) => Outcome::Unknown,
        Ok(Some((code, _))) => Outcome::Refused(code),
    }
}

/// Lines that the storm may cut.
#[derive(Clone, Default)]
pub struct Line {
    /// Whether nothing comes through.
    pub is_cut: bool,
    /// Cancelled when what is under way breaks.
    pub broken: CancellationToken,
}
