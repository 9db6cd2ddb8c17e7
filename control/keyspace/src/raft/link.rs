//! The links between members: long-lived connections with TLS on both sides, many calls on each.
//!
//! ```text
//! Links ─► Link (member, class) ─► hello ─► frames: length, number, body ─► answer ─► frames: length, number, body
//! ```
//! A member has up to four connections to each other one, so that entries and forwarded writes, which are large, never stand
//! before heartbeats and votes, nor before what other clients' reads and nodes' leases wait for; a snapshot has a connection of its own. They are made when something is to be said, and made
//! again after a failure, at growing intervals. A dial belongs to its link: those who wait for it give up at their own
//! deadlines, which may be shorter than the way there and back, and it goes on.
//!
//! Whoever calls checks that the other shows a certificate for the member it means, of this cluster; whoever is called checks
//! the same of the caller, and that both mean the same cluster and member. So the cluster's id and both numbers are bound to
//! every message by the connection it came on. Whoever was removed may call, and is told so whatever it asks
//! ([`answer`]).
//!
//! Another hello asks for a [stream](PeerStream) instead: bytes both ways for whatever the program that runs the member has to
//! say to the one that runs the other. What that is, is not known here; it has connections and places of its own.
//!
//! Strangers are bounded apart from members: whoever has not said hello yet has a place among its own kind ([`greetings`]), and a
//! deadline.
//!
//! [`greetings`]: super::greetings

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use rustix::net::sockopt;
use rustls::pki_types::ServerName;
use rustls::{AlertDescription, CertificateError, ClientConfig, ServerConfig};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, BufWriter};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::Member;
use super::ask::{Ask, Told};
use super::greetings::{Bounds, Greeting, Greetings};
use super::members::removed;
use super::network::{Answer, Answering, Call, Part, Transport, TransportError, answer};
use super::places::{Place, Places, Work};
use super::types::{MemberId, Transaction};
use super::wire::{self, Incoming, IncomingPart};
use crate::group::{self, ClusterId, Number};

/// What a connection begins with; the number is the version of all that follows.
const MAGIC: &[u8; 16] = b"coracle members1";
/// The same where a stream is asked for.
const STREAM_MAGIC: &[u8; 16] = b"coracle streams1";
const HELLO_BYTES: usize = 16 + 16 + 8 + 8;
/// How long it may take to have a connection, and to say hello on it.
const DIAL_TIMEOUT: Duration = Duration::from_secs(2);
/// How long what was sent may stay unacknowledged before a connection is taken for dead. It bounds the kernel's questions, too.
const UNACKNOWLEDGED_MS: u32 = 4_000;
/// After how much silence the kernel asks whether the other side is there still, and how often: twice within
/// [`UNACKNOWLEDGED_MS`], which counts from the last that came. Whoever has nothing to send notices nothing else: the other side gave
/// up in an outage, and its last word was lost.
const ASKED: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(1));
/// How long after a failed dial the next one comes, at first and at most.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// Largest frame: an append of 1 MiB of entries and one of 4 MiB more, or a record beyond a snapshot's part.
const FRAME_BYTES_MAX: usize = 16 << 20;
/// Calls that wait to be written to a connection; more wait in their callers.
const CALLS_QUEUED: usize = 64;
/// Calls of one connection that are being answered, and their bytes; the others wait in the sockets.
const CALLS_ANSWERED: usize = 256;
const CALLS_BYTES: usize = 2 * FRAME_BYTES_MAX;
/// Connections from other members at a time, of all and of one: four each, a snapshot, and those that are about to end. Beyond, the
/// one that has rested for longest goes.
const CONNECTIONS_MAX: (usize, usize) = (128, 16);
/// Streams from other members at a time, of all and of one. They take no connection from the log.
const STREAMS_MAX: (usize, usize) = (128, 32);
/// Connections on which nobody has said hello yet. Servers may share an address.
const GREETINGS: Bounds = Bounds { strangers: 256, known: 64, one: 32 };
/// How long whoever stops waits for the answers to what others asked of it.
const ANSWERS_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a part of a snapshot may take on its way, on either side.
const PART_TIMEOUT: Duration = Duration::from_secs(30);

/// TLS of the links: both sides show a certificate of the cluster's authority with the name that
/// [`ClusterId::certificate_name`] gives for their number, and accept only such. [`PeerTls::server`] must ask for a client's
/// certificate and refuse whoever has none.
#[derive(Clone)]
pub struct PeerTls {
    /// For members that call.
    pub server: Arc<ServerConfig>,
    /// For calling members.
    pub client: Arc<ClientConfig>,
}

/// What a connection is for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Class {
    /// Votes, heartbeats, hand-over: small, and they decide about who leads.
    Control,
    /// Entries.
    Log,
    /// What clients write: large, and it may have to wait for room.
    Writes,
    /// Whatever else is asked of a leader: small, and answered at once or rare. Everybody's reads and nodes' leases wait for it.
    Questions,
}

/// Bytes to and from another member.
pub type PeerStream = Box<dyn Stream>;

/// What a [`PeerStream`] is.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// A stream that another member has asked for.
pub struct Called {
    /// Who.
    pub from: MemberId,
    /// What it says, and where it is answered.
    pub stream: PeerStream,
    /// As long as this is kept, so is its place among the streams.
    _place: (Place<MemberId>, Work<MemberId>),
}

/// A caller or a called one of this cluster.
#[derive(Clone, Copy)]
struct Own {
    cluster: ClusterId,
    member: MemberId,
}

/// The links to other members; clones are the same.
#[derive(Clone)]
pub struct Links(Arc<Shared>);

struct Shared {
    dialer: Dialer,
    links: Mutex<HashMap<(MemberId, Class), Arc<Link>>>,
    /// The connections; they end with this.
    tasks: Mutex<JoinSet<()>>,
}

impl Links {
    /// Links of `member` of `cluster` to the others.
    pub fn new(cluster: ClusterId, member: MemberId, tls: &PeerTls) -> Links {
        Links(Arc::new(Shared {
            dialer: Dialer {
                own: Own { cluster, member },
                tls: TlsConnector::from(tls.client.clone()),
                clocks: Arc::default(),
            },
            links: Mutex::default(),
            tasks: Mutex::default(),
        }))
    }

    fn link(&self, to: MemberId, class: Class) -> Arc<Link> {
        self.0.links.lock().entry((to, class)).or_default().clone()
    }
}

impl Transport for Links {
    fn call(&self, to: MemberId, address: &str, call: Call) -> BoxFuture<'static, Result<Answer, TransportError>> {
        let (links, address) = (self.clone(), address.to_owned());
        let class = match &call {
            Call::Append(request) if !request.entries.is_empty() => Class::Log,
            Call::Append(_) | Call::Vote(_) | Call::PreVote(_) | Call::Transfer(_) => Class::Control,
            Call::Ask(Ask::Write(_)) => Class::Writes,
            Call::Ask(Ask::ReadIndex | Ask::Renew(_) | Ask::Renewed { .. } | Ask::Change(_) | Ask::Process) => {
                Class::Questions
            }
            Call::Snapshot { .. } => {
                return Box::pin(async move { links.0.dialer.send_snapshot(to, &address, call).await });
            }
        };
        let link = self.link(to, class);
        Box::pin(async move {
            let asked = transaction(&call);
            let frame = wire::call(&call);
            drop(call);
            if frame.len() > FRAME_BYTES_MAX {
                return Err(TransportError::Failed { member: to, reason: too_large(&frame) });
            }
            let calls = link.open(&links.0, to, &address).await?;
            let (reply, answer) = oneshot::channel();
            // Nothing of it is written when this fails.
            calls.send(Outgoing { frame, reply }).await.map_err(|_| TransportError::Unreachable(to))?;
            let lost = |_| TransportError::Failed { member: to, reason: "the connection broke".into() };
            wire::incoming_answer(&answer.await.map_err(lost)?, to, asked.as_ref())
        })
    }

    fn stream(&self, to: MemberId, address: &str) -> BoxFuture<'static, io::Result<PeerStream>> {
        let (links, address) = (self.clone(), address.to_owned());
        Box::pin(async move {
            let stream = links.0.dialer.dial(STREAM_MAGIC, to, &address).await?;
            Ok(Box::new(stream) as PeerStream)
        })
    }

    fn clock(&self, of: MemberId) -> Option<Clock> {
        self.0.dialer.clocks.lock().get(&of).copied()
    }

    fn process(&self, to: MemberId, address: &str) -> BoxFuture<'static, Answering> {
        let (links, address) = (self.clone(), address.to_owned());
        Box::pin(async move {
            // Not over the link, which is where the member is known to be.
            let asked = async {
                let mut stream = links.0.dialer.dial(MAGIC, to, &address).await?;
                write_frame(&mut stream, 1, &wire::call(&Call::Ask(Ask::Process))).await?;
                stream.flush().await?;
                timed(read_frame(&mut stream)).await
            };
            match asked.await.map(|(_, answer)| wire::incoming_answer(&answer, to, None)) {
                Ok(Ok(Answer::Told(Ok(Told::Process { process, .. })))) => Answering::Process(process),
                Ok(_) => Answering::Unnamed,
                Err(_) => Answering::Nobody,
            }
        })
    }
}

/// The transaction that a call asks for.
fn transaction(call: &Call) -> Option<Transaction> {
    match call {
        Call::Ask(Ask::Write(transaction)) => Some(transaction.clone()),
        _ => None,
    }
}

/// A connection, or the memory of one.
#[derive(Default)]
struct Link(Mutex<State>);

#[derive(Default)]
struct State {
    address: String,
    phase: Phase,
    failed: Option<Failed>,
    /// Of the dial whose outcome counts.
    dial: u64,
}

#[derive(Default)]
enum Phase {
    #[default]
    Closed,
    /// Ends with the dial.
    Dialing(watch::Receiver<()>),
    Open(mpsc::Sender<Outgoing>),
}

/// The last dial failed.
struct Failed {
    retry_at: Instant,
    back_off: Duration,
}

/// A call on its way out.
struct Outgoing {
    frame: Vec<u8>,
    reply: oneshot::Sender<Bytes>,
}

impl Link {
    /// Where calls to `to` go; a new connection if need be. Those who want one at the same time wait for the same.
    async fn open(
        self: &Arc<Link>,
        shared: &Shared,
        to: MemberId,
        address: &str,
    ) -> Result<mpsc::Sender<Outgoing>, TransportError> {
        loop {
            let mut dialing = match self.look(shared, to, address) {
                Ok(calls) => return Ok(calls),
                Err(None) => return Err(TransportError::Unreachable(to)),
                Err(Some(dialing)) => dialing,
            };
            // It says nothing but that it has ended.
            let _ = dialing.changed().await;
        }
    }

    /// The connection, or what ends when there may be one; nothing while it is too early to try again.
    fn look(
        self: &Arc<Link>,
        shared: &Shared,
        to: MemberId,
        address: &str,
    ) -> Result<mpsc::Sender<Outgoing>, Option<watch::Receiver<()>>> {
        let mut state = self.0.lock();
        if state.address != address {
            // Numbers of dials go on: one that is under way has another address in mind.
            *state = State { address: address.to_owned(), dial: state.dial, ..State::default() };
        }
        match &state.phase {
            Phase::Open(calls) if !calls.is_closed() => return Ok(calls.clone()),
            Phase::Dialing(dialing) if dialing.has_changed().is_ok() => return Err(Some(dialing.clone())),
            Phase::Open(_) | Phase::Dialing(_) | Phase::Closed => (),
        }
        if state.failed.as_ref().is_some_and(|failed| Instant::now() < failed.retry_at) {
            return Err(None);
        }
        state.dial += 1;
        let (ended, dialing) = watch::channel(());
        state.phase = Phase::Dialing(dialing.clone());
        let (link, dialer, address, dial) = (self.clone(), shared.dialer.clone(), address.to_owned(), state.dial);
        drop(state);
        shared.spawn(async move {
            let dialed = dialer.dial(MAGIC, to, &address).await;
            let opened = link.dialed(dial, to, dialed);
            drop(ended);
            if let Some((stream, queue)) = opened
                && let Err(error) = exchange(stream, queue).await
            {
                tracing::debug!(%error, member = to, "a link to another member ended");
            }
        });
        Err(Some(dialing))
    }

    /// Notes what came of the dial number `dial`: the connection, and the calls for it.
    fn dialed(
        &self,
        dial: u64,
        to: MemberId,
        dialed: io::Result<ClientStream>,
    ) -> Option<(ClientStream, mpsc::Receiver<Outgoing>)> {
        let mut state = self.0.lock();
        if state.dial != dial {
            return None;
        }
        match dialed {
            Ok(stream) => {
                let (calls, queue) = mpsc::channel(CALLS_QUEUED);
                (state.failed, state.phase) = (None, Phase::Open(calls));
                Some((stream, queue))
            }
            Err(error) => {
                let before = state.failed.as_ref().map(|failed| failed.back_off);
                if before.is_none() {
                    tracing::warn!(%error, member = to, state.address, "reach another member; it is tried again");
                }
                let back_off = before.map_or(BACK_OFF.0, |before| (before * 2).min(BACK_OFF.1));
                state.failed = Some(Failed { retry_at: Instant::now() + back_off, back_off });
                state.phase = Phase::Closed;
                None
            }
        }
    }
}

type ClientStream = tokio_rustls::client::TlsStream<TcpStream>;

impl Shared {
    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock();
        while tasks.try_join_next().is_some() {}
        tasks.spawn(work);
    }
}

/// Makes connections to other members.
#[derive(Clone)]
struct Dialer {
    own: Own,
    tls: TlsConnector,
    /// Whose last connection failed by a clock.
    clocks: Arc<Mutex<HashMap<MemberId, Clock>>>,
}

/// Why a certificate of the cluster is not valid where it is looked at: a clock is wrong there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Clock {
    /// This machine's is ahead of the end of the other's certificate, by so much.
    Ahead(Duration),
    /// This machine's is behind the beginning of the other's certificate, by so much.
    Behind(Duration),
    /// The other one's: it refuses this member's certificate, which is valid here.
    Other,
}

impl Clock {
    /// What `error`, the end of a handshake, says about clocks.
    fn of(error: &io::Error) -> Option<Clock> {
        let between = |from: rustls::pki_types::UnixTime, to: rustls::pki_types::UnixTime| {
            Duration::from_secs(to.as_secs().saturating_sub(from.as_secs()))
        };
        match error.get_ref()?.downcast_ref::<rustls::Error>()? {
            rustls::Error::InvalidCertificate(CertificateError::ExpiredContext { time, not_after }) => {
                Some(Clock::Ahead(between(*not_after, *time)))
            }
            rustls::Error::InvalidCertificate(CertificateError::NotValidYetContext { time, not_before }) => {
                Some(Clock::Behind(between(*time, *not_before)))
            }
            rustls::Error::AlertReceived(AlertDescription::CertificateExpired) => Some(Clock::Other),
            _ => None,
        }
    }
}

impl Dialer {
    /// A connection to the member `to` on which both have said hello.
    async fn dial(&self, magic: &[u8; 16], to: MemberId, address: &str) -> io::Result<ClientStream> {
        let dial = async {
            let stream = TcpStream::connect(address).await?;
            prepare(&stream);
            let name = ServerName::try_from(self.own.cluster.certificate_name(to)).map_err(io::Error::other)?;
            let mut stream = self.tls.connect(name, stream).await?;
            let mut hello = [0; HELLO_BYTES];
            hello[..16].copy_from_slice(magic);
            hello[16..32].copy_from_slice(self.own.cluster.bytes());
            hello[32..40].copy_from_slice(&self.own.member.to_le_bytes());
            hello[40..].copy_from_slice(&to.to_le_bytes());
            stream.write_all(&hello).await?;
            stream.flush().await?;
            let why = read_reply(&mut stream).await?;
            if why.is_empty() { Ok(stream) } else { Err(io::Error::other(format!("it refuses: {why}"))) }
        };
        let dialed = timeout(DIAL_TIMEOUT, dial).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        match dialed.as_ref().err().and_then(Clock::of) {
            Some(clock) => drop(self.clocks.lock().insert(to, clock)),
            None => drop(self.clocks.lock().remove(&to)),
        }
        dialed
    }

    async fn send_snapshot(&self, to: MemberId, address: &str, call: Call) -> Result<Answer, TransportError> {
        let stream = self.dial(MAGIC, to, address).await.map_err(|error| {
            tracing::debug!(%error, member = to, "reach a member for a snapshot");
            TransportError::Unreachable(to)
        })?;
        let head = wire::call(&call);
        let Call::Snapshot { parts, .. } = call else { return Err(TransportError::Unreachable(to)) };
        let (read, write) = tokio::io::split(stream);
        let (mut read, mut write) = (BufReader::new(read), BufWriter::new(write));
        let mut answer = std::pin::pin!(read_frame(&mut read));
        // An answer to less than the whole is a refusal: the rest is not sent.
        let answered = tokio::select! {
            early = &mut answer => early,
            // It is installed now, which may take long; whoever called has a deadline.
            sent = send_parts(&mut write, &head, parts) => match sent {
                Ok(()) => answer.await,
                Err(error) => Err(error),
            },
        };
        let failed = |error: io::Error| TransportError::Failed { member: to, reason: error.to_string() };
        wire::incoming_answer(&answered.map_err(failed)?.1, to, None)
    }
}

async fn send_parts(
    write: &mut (impl AsyncWrite + Unpin),
    head: &[u8],
    mut parts: mpsc::Receiver<Part>,
) -> io::Result<()> {
    timed(write_frame(write, 0, head)).await?;
    while let Some(part) = parts.recv().await {
        let (frame, ends) = match part {
            Part::Records(records) => (wire::part(&records), false),
            Part::End(sent) => (wire::end(sent), true),
        };
        timed(write_frame(write, 0, &frame)).await?;
        if ends {
            return timed(write.flush()).await;
        }
    }
    Err(io::Error::other("the snapshot could not be read"))
}

async fn timed<T>(step: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(PART_TIMEOUT, step).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

fn prepare(stream: &TcpStream) {
    let _ = stream.set_nodelay(true);
    let _ = sockopt::set_tcp_user_timeout(stream, UNACKNOWLEDGED_MS);
    let asked = sockopt::set_tcp_keepidle(stream, ASKED.0).and_then(|()| sockopt::set_tcp_keepintvl(stream, ASKED.1));
    let _ = asked.and_then(|()| sockopt::set_socket_keepalive(stream, true));
}

/// Sends what comes, and hands out the answers, until either side ends. Whoever waits for an answer then finds out.
async fn exchange(stream: ClientStream, mut queue: mpsc::Receiver<Outgoing>) -> io::Result<()> {
    let (read, write) = tokio::io::split(stream);
    let (mut read, mut write) = (BufReader::with_capacity(64 << 10, read), BufWriter::with_capacity(64 << 10, write));
    let waiting: Mutex<HashMap<u64, oneshot::Sender<Bytes>>> = Mutex::default();
    let writing = async {
        let mut number = 0;
        while let Some(Outgoing { frame, reply }) = queue.recv().await {
            number += 1;
            waiting.lock().insert(number, reply);
            write_frame(&mut write, number, &frame).await?;
            if queue.is_empty() {
                write.flush().await?;
            }
        }
        Ok(())
    };
    let reading = async {
        loop {
            let (number, answer) = read_frame(&mut read).await?;
            let reply = waiting.lock().remove(&number);
            if let Some(reply) = reply {
                let _ = reply.send(answer);
            }
        }
    };
    // Neither is resumed: what is cut here is a connection that ends.
    tokio::select! {
        ended = writing => ended,
        ended = reading => ended,
    }
}

async fn write_frame(stream: &mut (impl AsyncWrite + Unpin), number: u64, body: &[u8]) -> io::Result<()> {
    if body.len() > FRAME_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, too_large(body)));
    }
    stream.write_all(&(body.len() as u32).to_le_bytes()).await?;
    stream.write_all(&number.to_le_bytes()).await?;
    stream.write_all(body).await
}

fn too_large(body: &[u8]) -> String {
    format!("a message of {} bytes is too large for another member", body.len())
}

/// The bytes of an answer; of one that does not fit, that it does not. The others of the connection come nevertheless.
fn fitting(answer: &Result<Answer, TransportError>, by: MemberId) -> Vec<u8> {
    let bytes = wire::answer(answer);
    if bytes.len() <= FRAME_BYTES_MAX {
        return bytes;
    }
    wire::answer(&Err(TransportError::Failed { member: by, reason: too_large(&bytes) }))
}

async fn read_frame(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<(u64, Bytes)> {
    let (length, number) = read_head(stream).await?;
    Ok((number, read_body(stream, length).await?))
}

/// How long a frame's body is, and its number.
async fn read_head(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<(u32, u64)> {
    let (length, number) = (stream.read_u32_le().await?, stream.read_u64_le().await?);
    if length as usize > FRAME_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a message of another member is too large"));
    }
    Ok((length, number))
}

async fn read_body(stream: &mut (impl AsyncRead + Unpin), length: u32) -> io::Result<Bytes> {
    // No more memory than has come.
    let mut body = Vec::with_capacity(length.min(1 << 20) as usize);
    let came = (&mut *stream).take(u64::from(length)).read_to_end(&mut body).await?;
    if came < length as usize {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(body.into())
}

/// The reply to a hello: nothing, or why not.
async fn read_reply(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<String> {
    let length = stream.read_u16_le().await?;
    let mut why = vec![0; usize::from(length)];
    stream.read_exact(&mut why).await?;
    Ok(String::from_utf8_lossy(&why).into_owned())
}

/// Takes the calls of other members to `member` at `listener`, until `stopped` says so; their streams go to `streams`.
pub async fn serve(
    listener: TcpListener,
    tls: PeerTls,
    own: (ClusterId, MemberId),
    member: Weak<Member>,
    streams: mpsc::Sender<Called>,
    mut stopped: watch::Receiver<bool>,
) {
    let own = Own { cluster: own.0, member: own.1 };
    let acceptor = TlsAcceptor::from(tls.server);
    let (greetings, members) = (Greetings::new(GREETINGS), Rooms::new());
    let asked = TaskTracker::new();
    let mut tasks = JoinSet::new();
    loop {
        while tasks.try_join_next().is_some() {}
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stopped.wait_for(|stopped| *stopped) => break,
        };
        let (stream, from) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, perhaps: a pause lets some come back.
                tracing::warn!(%error, "accept another member");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let is_known = member.upgrade().is_some_and(|member| member.is_at(from.ip()));
        let place = greetings.add(from.ip(), is_known);
        let (acceptor, members, member) = (acceptor.clone(), members.clone(), member.clone());
        let (streams, asked) = (streams.clone(), asked.clone());
        tasks.spawn(async move {
            let greeted = match greet(stream, acceptor, own, place, members).await {
                Ok(greeted) => greeted,
                // Somebody looked whether anybody listens here, or others needed its place.
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionAborted) =>
                {
                    return;
                }
                Err(error) => {
                    tracing::warn!(%error, %from, "refuse another member");
                    return;
                }
            };
            let ended = match greeted.purpose {
                Purpose::Calls => answer_calls(greeted, member, asked).await,
                Purpose::Stream => pass_on(greeted, member, streams).await,
            };
            if let Err(error) = ended {
                tracing::debug!(%error, %from, "a link from another member ended");
            }
        });
    }
    // What it accepted as leader its successor carries out: clients of others would otherwise be told that nobody knows.
    asked.close();
    if timeout(ANSWERS_TIMEOUT, asked.wait()).await.is_err() {
        tracing::warn!(calls = asked.len(), "what other members asked is left without an answer");
    }
    // The set ends what is left in it.
}

type ServerStream = tokio_rustls::server::TlsStream<TcpStream>;

/// Places for members' connections.
#[derive(Clone)]
struct Rooms {
    calls: Arc<Places<MemberId>>,
    streams: Arc<Places<MemberId>>,
}

impl Rooms {
    fn new() -> Rooms {
        Rooms { calls: Places::new(CONNECTIONS_MAX), streams: Places::new(STREAMS_MAX) }
    }
}

/// What a connection is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Purpose {
    Calls,
    Stream,
}

/// A connection of a member.
struct Greeted {
    stream: ServerStream,
    caller: MemberId,
    purpose: Purpose,
    place: (Place<MemberId>, Work<MemberId>),
}

/// Hands a stream to whoever serves them. Whoever was removed gets none.
async fn pass_on(greeted: Greeted, member: Weak<Member>, streams: mpsc::Sender<Called>) -> io::Result<()> {
    let Greeted { stream, caller, place, .. } = greeted;
    let ended = || io::Error::other("the keyspace was shut down");
    let member = member.upgrade().ok_or_else(ended)?;
    if group::number(&member.machine().state.read(), caller) == Number::Gone {
        return Err(io::Error::other(removed(caller)));
    }
    drop(member);
    let called = Called { from: caller, stream: Box::new(stream), _place: place };
    streams.send(called).await.map_err(|_| io::Error::other("nobody serves streams here"))
}

/// Says hello; the stranger's place is free again when it is a member, and others may need it before.
async fn greet(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    own: Own,
    stranger: Greeting,
    members: Rooms,
) -> io::Result<Greeted> {
    prepare(&stream);
    let greet = async {
        let mut stream = acceptor.accept(stream).await?;
        let mut hello = [0; HELLO_BYTES];
        stream.read_exact(&mut hello).await?;
        let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        let checked = check(&hello, certificate, own).and_then(|(caller, purpose)| {
            let room = if purpose == Purpose::Calls { &members.calls } else { &members.streams };
            let place = room.take(caller);
            let place = place.ok_or_else(|| format!("member {caller} has too many connections to this server"))?;
            Ok((caller, purpose, place))
        });
        let why = checked.as_ref().err().cloned().unwrap_or_default();
        stream.write_u16_le(u16::try_from(why.len()).unwrap_or_default()).await?;
        stream.write_all(why.as_bytes()).await?;
        stream.flush().await?;
        let (caller, purpose, place) = checked.map_err(io::Error::other)?;
        Ok(Greeted { stream, caller, purpose, place })
    };
    tokio::select! {
        greeted = timeout(DIAL_TIMEOUT * 2, greet) => greeted.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())),
        // It did not say hello.
        () = stranger.pushed_out() => Err(io::ErrorKind::ConnectionAborted.into()),
    }
}

/// Answers what a member asks, until either side ends; what is asked for clients is among `asked` until its answer is sent.
async fn answer_calls(greeted: Greeted, member: Weak<Member>, asked: TaskTracker) -> io::Result<()> {
    let Greeted { stream, caller, place: (room, greeting), .. } = greeted;
    let (read, write) = tokio::io::split(stream);
    let (mut read, mut write) = (BufReader::with_capacity(64 << 10, read), BufWriter::with_capacity(64 << 10, write));
    let (answers, mut queue) = mpsc::channel::<(u64, Vec<u8>, Unsent)>(CALLS_QUEUED);
    drop(greeting);
    let writing = async {
        let mut unsent = Vec::new();
        while let Some((number, answer, until_sent)) = queue.recv().await {
            write_frame(&mut write, number, &answer).await?;
            unsent.push(until_sent);
            if queue.is_empty() {
                write.flush().await?;
                unsent.clear();
            }
        }
        Ok(())
    };
    let reading = async {
        let (places, bytes) = (Arc::new(Semaphore::new(CALLS_ANSWERED)), Arc::new(Semaphore::new(CALLS_BYTES)));
        let mut tasks = JoinSet::new();
        loop {
            while tasks.try_join_next().is_some() {}
            let (length, number) = read_head(&mut read).await?;
            let work = room.work();
            let taken = bytes.clone().acquire_many_owned(length).await.map_err(io::Error::other)?;
            let body = read_body(&mut read, length).await?;
            let member = member.upgrade().ok_or_else(|| io::Error::other("the keyspace was shut down"))?;
            let incoming = match wire::incoming(&body) {
                // Numbers begin with 1: what has none belongs to a snapshot, and what follows may, too.
                Err(error) if number > 0 => {
                    // From a newer version, perhaps: that is no reason to leave the others without an answer.
                    let failed = TransportError::Failed { member: member.id(), reason: error.to_string() };
                    let answer = wire::answer(&Err(failed));
                    answers.send((number, answer, (work, None))).await.map_err(io::Error::other)?;
                    continue;
                }
                incoming => incoming?,
            };
            match incoming {
                Incoming::Snapshot { vote, meta } => {
                    let (parts, incoming) = mpsc::channel(1);
                    let call = Call::Snapshot { vote, meta, parts: incoming };
                    let answering = async {
                        let answer = answer(&member, caller, call).await;
                        let sent = answers.send((number, wire::answer(&answer), (work, None)));
                        sent.await.map_err(io::Error::other)
                    };
                    let (taken, answered) = tokio::join!(take_parts(&mut read, parts), answering);
                    taken.and(answered)?;
                }
                Incoming::Call(call) => {
                    let place = places.clone().acquire_owned().await.map_err(io::Error::other)?;
                    let answers = answers.clone();
                    let token = matches!(call, Call::Ask(_)).then(|| asked.token());
                    tasks.spawn(async move {
                        let transaction = transaction(&call);
                        let mut answer = answer(&member, caller, call).await;
                        if let (Ok(answer), Some(transaction)) = (&mut answer, &transaction) {
                            wire::spare(answer, transaction);
                        }
                        let _ = answers.send((number, fitting(&answer, member.id()), (work, token))).await;
                        drop((place, taken));
                    });
                }
            }
        }
    };
    // None is resumed: what is cut here is a connection that ends.
    tokio::select! {
        ended = writing => ended,
        ended = reading => ended,
        () = room.pushed_out() => Err(io::Error::other("a newer connection of a member has its place")),
    }
}

/// What is kept until an answer is sent: the connection is at work, and what was asked for a client waited for.
type Unsent = (Work<MemberId>, Option<TaskTrackerToken>);

/// Takes the parts of a snapshot to whoever receives it. One who has failed has said so: the rest is read and dropped, since a
/// connection that is closed with unread bytes loses what was answered on it.
async fn take_parts(read: &mut (impl AsyncRead + Unpin), parts: mpsc::Sender<Part>) -> io::Result<()> {
    loop {
        let (_, body) = timed(read_frame(read)).await?;
        let (part, ends) = match wire::incoming_part(&body)? {
            IncomingPart::Records(records) => (Part::Records(records), false),
            IncomingPart::End(sent) => (Part::End(sent), true),
        };
        let _ = parts.send(part).await;
        if ends {
            return Ok(());
        }
    }
}

/// Who calls and for what, if it may.
fn check(
    hello: &[u8; HELLO_BYTES],
    certificate: Option<&rustls::pki_types::CertificateDer<'_>>,
    own: Own,
) -> Result<(MemberId, Purpose), String> {
    let number = |at: usize| hello[at..at + 8].iter().rev().fold(0, |number: u64, byte| number << 8 | u64::from(*byte));
    let (caller, called) = (number(32), number(40));
    let purpose = match &hello[..16] {
        magic if magic == MAGIC => Purpose::Calls,
        magic if magic == STREAM_MAGIC => Purpose::Stream,
        _ => return Err("this server speaks another version of the protocol between servers".into()),
    };
    if hello[16..32] != *own.cluster.bytes() {
        return Err(format!("this server belongs to cluster {}", own.cluster));
    }
    if called != own.member {
        return Err(format!("this is member {}, not {called}", own.member));
    }
    let name = own.cluster.certificate_name(caller);
    let valid = certificate.is_some_and(|certificate| {
        let name = ServerName::try_from(name.as_str());
        let certificate = rustls::server::ParsedCertificate::try_from(certificate);
        matches!((certificate, name), (Ok(certificate), Ok(name))
            if rustls::client::verify_server_name(&certificate, &name).is_ok())
    });
    if valid { Ok((caller, purpose)) } else { Err(format!("the certificate is not that of member {caller}")) }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    use rustls::RootCertStore;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    use rustls::server::WebPkiClientVerifier;

    use super::*;
    use crate::host::Host;
    use crate::raft::{Change, Refusal};
    use crate::simulation::{SIZES, SimDisk, until};
    use crate::{Begin, Config, Formats, Guard, Key, Keyspace, MemberStatus, Op, Peers, Role, Value};

    /// An authority of a test.
    struct Authority {
        certificate: CertificateDer<'static>,
        issuer: Issuer<'static, KeyPair>,
    }

    impl Authority {
        fn new() -> Authority {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let certificate = params.self_signed(&key).unwrap();
            Authority { certificate: certificate.der().clone(), issuer: Issuer::new(params, key) }
        }

        /// TLS for whoever has `name`.
        fn tls(&self, name: &str) -> PeerTls {
            self.tls_with(CertificateParams::new(vec![name.to_owned()]).unwrap())
        }

        fn tls_with(&self, params: CertificateParams) -> PeerTls {
            let key = KeyPair::generate().unwrap();
            let certificate = params.signed_by(&key, &self.issuer).unwrap();
            let mut roots = RootCertStore::empty();
            roots.add(self.certificate.clone()).unwrap();
            let roots = Arc::new(roots);
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let chain = || vec![certificate.der().clone()];
            let private = || PrivateKeyDer::try_from(key.serialize_der()).unwrap();
            let verifier =
                WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone()).build().unwrap();
            let server = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
            let client = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
            PeerTls {
                server: Arc::new(
                    server.unwrap().with_client_cert_verifier(verifier).with_single_cert(chain(), private()).unwrap(),
                ),
                client: Arc::new(
                    client.unwrap().with_root_certificates(roots).with_client_auth_cert(chain(), private()).unwrap(),
                ),
            }
        }
    }

    #[tokio::test]
    async fn a_certificate_that_is_not_valid_where_it_is_looked_at_is_a_clock_that_is_wrong_there() {
        let (authority, cluster) = (Authority::new(), ClusterId::new([1, 2]));
        let valid = |member, years: (i32, i32)| {
            let mut params = CertificateParams::new(vec![cluster.certificate_name(member)]).unwrap();
            (params.not_before, params.not_after) =
                (rcgen::date_time_ymd(years.0, 1, 1), rcgen::date_time_ymd(years.1, 1, 1));
            authority.tls_with(params)
        };
        let (past, now, future) = ((1999, 2001), (1999, 4000), (3999, 4000));
        let clock = async |called: PeerTls, calls: PeerTls| {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap().to_string();
            let accepted = tokio::spawn(async move {
                let (stream, _) = listener.accept().await.unwrap();
                // The caller reads what ended it.
                let _ = TlsAcceptor::from(called.server).accept(stream).await;
            });
            let links = Links::new(cluster, 2, &calls);
            assert!(links.stream(1, &address).await.is_err());
            accepted.await.unwrap();
            links.clock(1)
        };
        let year = Duration::from_secs(365 * 86_400);
        assert!(matches!(clock(valid(1, past), valid(2, now)).await, Some(Clock::Ahead(by)) if by > 20 * year));
        assert!(matches!(clock(valid(1, future), valid(2, now)).await, Some(Clock::Behind(by)) if by > 1000 * year));
        assert_eq!(clock(valid(1, now), valid(2, past)).await, Some(Clock::Other));
        // Whoever hangs up says nothing about clocks.
        assert_eq!(clock(valid(1, now), valid(2, now)).await, None);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn only_members_of_the_cluster_with_their_own_certificate_are_heard() {
        let dir = tempfile::tempdir().unwrap();
        let prepared = Keyspace::prepare(Config::new(dir.path())).await.unwrap();
        let (authority, stranger) = (Authority::new(), Authority::new());
        let (own, other) = (prepared.cluster(), ClusterId::new([1, 2]));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let tls = authority.tls(&own.certificate_name(1));
        let (streams, mut called) = mpsc::channel(1);
        let peers = Peers { listener, address: address.clone(), places: Vec::new(), tls, streams };
        let keyspace = prepared.start(Some(peers)).await.unwrap();
        let own_address = || keyspace.members()[0].address.clone();
        until("its address is known", async || (own_address() == address).then_some(())).await;
        let second = keyspace.admit("second", Formats::OWN).await.unwrap();
        assert_eq!((second.member, second.cluster), (2, own));
        let ask = async |says: ClusterId, member: MemberId, tls: PeerTls, to: MemberId| {
            let links = Links::new(says, member, &tls);
            let called = links.call(to, &address, Call::Ask(Ask::ReadIndex));
            let answer = tokio::time::timeout(Duration::from_secs(10), called).await.expect("an answer or a refusal");
            matches!(answer, Ok(Answer::Told(Ok(Told::ReadIndex(_)) | Err(Refusal::NotLeader(_)))))
        };
        let named = |authority: &Authority, member| authority.tls(&own.certificate_name(member));
        assert!(ask(own, 2, named(&authority, 2), 1).await);
        for (what, heard) in [
            ("another's certificate", ask(own, 2, named(&authority, 3), 1).await),
            ("a node's certificate", ask(own, 2, authority.tls("node-2"), 1).await),
            ("another cluster's member", ask(other, 2, authority.tls(&other.certificate_name(2)), 1).await),
            ("another authority", ask(own, 2, named(&stranger, 2), 1).await),
            ("for another member", ask(own, 2, named(&authority, 2), 3).await),
        ] {
            assert!(!heard, "{what}");
        }
        // Streams are as particular, and come with who asked for them.
        let mut stream = async |member: MemberId, tls: PeerTls| {
            let opened = Links::new(own, member, &tls).stream(1, &address).await?;
            let Called { from, stream, .. } = called.recv().await.expect("it is passed on");
            let (mut here, mut there) = (opened, stream);
            here.write_all(b"ping").await?;
            here.flush().await?;
            let mut came = [0; 4];
            there.read_exact(&mut came).await?;
            io::Result::Ok((from, came))
        };
        assert_eq!(stream(2, named(&authority, 2)).await.unwrap(), (2, *b"ping"));
        assert!(stream(2, named(&authority, 3)).await.unwrap_err().to_string().contains("not that of member 2"));
        // Of the same authority, with another cluster's id in its words alone.
        let mut hello = [0; HELLO_BYTES];
        hello[..16].copy_from_slice(MAGIC);
        hello[16..32].copy_from_slice(other.bytes());
        (hello[32], hello[40]) = (2, 1);
        let words = |hello: &[u8; HELLO_BYTES]| check(hello, None, Own { cluster: own, member: 1 }).unwrap_err();
        assert!(words(&hello).contains("belongs to cluster"));
        hello[15] = b'2';
        assert!(words(&hello).contains("another version"));
        // Removed: it has nothing to say any more, on a connection that it has as on a new one.
        let tls = named(&authority, 2);
        let links = Links::new(own, 2, &tls);
        let announce = Change::Announce { member: 2, address: "127.0.0.1:1".into() };
        let told = links.call(1, &address, Call::Ask(Ask::Change(announce))).await.unwrap();
        assert!(matches!(told, Answer::Told(Ok(Told::Changed))), "{told:?}");
        keyspace.remove([2].into()).await.unwrap();
        for links in [&links, &Links::new(own, 2, &tls)] {
            let told = links.call(1, &address, Call::Ask(Ask::ReadIndex)).await.unwrap();
            assert!(matches!(told, Answer::Told(Err(Refusal::Removed(2)))), "{told:?}");
        }
        let mut opened = Links::new(own, 2, &tls).stream(1, &address).await.unwrap();
        let ended = timeout(Duration::from_secs(10), opened.read_u8()).await.expect("it is closed");
        assert!(ended.is_err() && called.try_recv().is_err());
        // A snapshot of it is refused before it is there, and it hears so.
        let (parts, incoming) = mpsc::channel(1);
        let send =
            tokio::spawn(
                async move { while parts.send(Part::Records(Bytes::from(vec![0; 1 << 20]))).await.is_ok() {} },
            );
        let by = crate::raft::testing::Vote::new(1, 2);
        let told = links.call(1, &address, Call::Snapshot { vote: by, meta: Box::default(), parts: incoming }).await;
        assert!(matches!(&told, Err(TransportError::Failed { reason, .. }) if reason.contains("removed")), "{told:?}");
        send.await.unwrap();
        assert_eq!(keyspace.admit("third", Formats::OWN).await.unwrap().member, 3);
        keyspace.shutdown().await;
    }

    /// Strangers that take all places do not keep a member out, nor does what is not understood end what is.
    #[tokio::test(flavor = "multi_thread")]
    async fn who_says_nothing_or_nonsense_is_in_nobodys_way() {
        let dir = tempfile::tempdir().unwrap();
        let prepared = Keyspace::prepare(Config::new(dir.path())).await.unwrap();
        let (authority, own) = (Authority::new(), prepared.cluster());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let tls = authority.tls(&own.certificate_name(1));
        let peers = Peers { listener, address: address.clone(), places: Vec::new(), tls, streams: mpsc::channel(1).0 };
        let keyspace = prepared.start(Some(peers)).await.unwrap();
        let mut silent = Vec::new();
        for _ in 0..2 * GREETINGS.one {
            silent.push(TcpStream::connect(&address).await.unwrap());
        }
        let links = Links::new(own, 2, &authority.tls(&own.certificate_name(2)));
        let mut stream = links.0.dialer.dial(MAGIC, 1, &address).await.expect("it is heard while strangers wait");
        let asked = wire::call(&Call::Ask(Ask::ReadIndex));
        for (number, frame) in [(1, &[0xff; 40][..]), (2, &asked[..])] {
            write_frame(&mut stream, number, frame).await.unwrap();
        }
        stream.flush().await.unwrap();
        let mut told = HashMap::new();
        for _ in 0..2 {
            let (number, answer) = timeout(Duration::from_secs(30), read_frame(&mut stream)).await.unwrap().unwrap();
            told.insert(number, wire::incoming_answer(&answer, 1, None));
        }
        assert!(matches!(&told[&1], Err(TransportError::Failed { .. })), "{told:?}");
        assert!(matches!(&told[&2], Ok(Answer::Told(Ok(Told::ReadIndex(_))))), "{told:?}");
        drop(silent);
        keyspace.shutdown().await;
    }

    /// A member on a simulated disk, with small bounds, at a listener of its own.
    async fn member(authority: &Authority, seed: u64, begin: Begin) -> Keyspace {
        member_on(authority, seed, begin, &SimDisk::new(seed), None).await
    }

    /// The same on this disk, which has no more than this `free` once its directory is made.
    async fn member_on(authority: &Authority, seed: u64, begin: Begin, disk: &SimDisk, free: Option<u64>) -> Keyspace {
        let host = Host::simulated(Arc::new(disk.clone()), seed, true, SIZES);
        let config = Config { begin, ..Config::new("/data") };
        let prepared = Keyspace::prepare_on(host, config).await.unwrap();
        if let Some(free) = free {
            disk.set_capacity(disk.used() + free);
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let tls = authority.tls(&prepared.cluster().certificate_name(prepared.member()));
        let streams = mpsc::channel(1).0;
        prepared.start(Some(Peers { listener, address, places: Vec::new(), tls, streams })).await.unwrap()
    }

    /// The member in `dir`, at a port of its own, and where that is.
    async fn member_in(authority: &Authority, dir: &std::path::Path, begin: Begin) -> (Keyspace, String) {
        looking_in(authority, dir, begin, Vec::new()).await
    }

    /// The same, which looks for others at `places`.
    async fn looking_in(
        authority: &Authority,
        dir: &std::path::Path,
        begin: Begin,
        places: Vec<String>,
    ) -> (Keyspace, String) {
        let prepared = Keyspace::prepare(Config { begin, ..Config::new(dir) }).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let tls = authority.tls(&prepared.cluster().certificate_name(prepared.member()));
        let streams = mpsc::channel(1).0;
        let peers = Peers { listener, address: address.clone(), places, tls, streams };
        (prepared.start(Some(peers)).await.unwrap(), address)
    }

    /// Three voters in directories of their own, and where they are.
    async fn three_in(authority: &Authority, dirs: &[tempfile::TempDir; 3]) -> Vec<(Keyspace, String)> {
        let mut members = vec![member_in(authority, dirs[0].path(), Begin::Found).await];
        for (dir, name) in dirs[1..].iter().zip(["second", "third"]) {
            let admitted = async || members[0].0.admit(name, Formats::OWN).await.ok();
            let admission = until("it has an address", admitted).await;
            members.push(member_in(authority, dir.path(), Begin::Join(admission)).await);
        }
        let is_voter = |member: &MemberStatus| member.role == Role::Voter;
        let voters = async || (members[2].0.members().iter().filter(|m| is_voter(m)).count() == 3).then_some(());
        until("three voters", voters).await;
        members
    }

    /// Two of three come back elsewhere. Only one of those two can be elected, for the third reaches neither; and the other one
    /// knows the address of nobody but the third.
    #[tokio::test(flavor = "multi_thread")]
    async fn who_comes_back_elsewhere_is_found_through_one_that_does_not_lead() {
        let authority = Authority::new();
        let dirs = [(); 3].map(|()| tempfile::tempdir().unwrap());
        let mut members = three_in(&authority, &dirs).await.into_iter();
        let (first, _) = members.next().unwrap();
        until("another leads", async || first.hand_over().await.then_some(())).await;
        for (member, _) in members {
            member.abandon().await;
        }
        let mut moved = Vec::new();
        for dir in &dirs[1..] {
            moved.push(member_in(&authority, dir.path(), Begin::Resume).await);
        }
        for (member, address) in &moved {
            until("it has caught up", async || member.barrier().await.ok()).await;
            let known = async || first.members().iter().any(|known| known.address == *address).then_some(());
            until("it is known where it is", known).await;
        }
        for (member, _) in moved {
            member.shutdown().await;
        }
        first.shutdown().await;
    }

    /// All come back elsewhere at once: nobody leads who could be told. Each but one is told where one other is.
    #[tokio::test(flavor = "multi_thread")]
    async fn when_all_come_back_elsewhere_one_place_is_enough_to_find_each_other() {
        let authority = Authority::new();
        let dirs = [(); 3].map(|()| tempfile::tempdir().unwrap());
        for (member, _) in three_in(&authority, &dirs).await {
            member.abandon().await;
        }
        let (first, at) = member_in(&authority, dirs[0].path(), Begin::Resume).await;
        let (second, second_at) = looking_in(&authority, dirs[1].path(), Begin::Resume, vec![at.clone()]).await;
        until("a majority is there", async || second.barrier().await.ok()).await;
        // The first, which was told of nobody, knows the second since that one has called.
        let places = vec!["127.0.0.1:1".to_owned(), second_at.clone()];
        let (third, third_at) = looking_in(&authority, dirs[2].path(), Begin::Resume, places).await;
        for member in [&first, &second, &third] {
            until("it has caught up", async || member.barrier().await.ok()).await;
            let all = [&at, &second_at, &third_at];
            let known = async || member.members().iter().map(|known| &known.address).eq(all).then_some(());
            until("it knows where all are", known).await;
        }
        for member in [third, second, first] {
            member.shutdown().await;
        }
    }

    /// It answered elsewhere while nobody led, and has gone back to where the group knows it to be.
    #[tokio::test(flavor = "multi_thread")]
    async fn who_was_found_elsewhere_and_is_back_is_reached_where_the_group_knows_it_to_be() {
        let authority = Authority::new();
        let dirs = [(); 3].map(|()| tempfile::tempdir().unwrap());
        let members = three_in(&authority, &dirs).await;
        let (first, second) = (&members[0].0, &members[1].0);
        for (member, other) in [(first, 3), (second, 1)] {
            let known = member.0.member.address_of(other).unwrap();
            member.0.machine.found.note(other, known, "127.0.0.1:1".to_owned());
        }
        // The leader's entries, and what is forwarded to it.
        let value = Value { bytes: "x".into(), revision_at: 1 };
        let put = Op::Put { key: Key::new("things", "a"), value, guard: Guard::None };
        let done = second.transact(vec![put]).await.unwrap().revision;
        let reached = async || members[2].0.get("things", "a").filter(|record| record.revision == done).map(drop);
        until("the third has it", reached).await;
        for (member, _) in members.into_iter().rev() {
            member.shutdown().await;
        }
    }

    fn copy_dir(from: &std::path::Path, to: &std::path::Path) {
        for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
            let to = to.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                std::fs::create_dir(&to).unwrap();
                copy_dir(&entry.path(), &to);
            } else {
                std::fs::copy(entry.path(), to).unwrap();
            }
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_old_copy_of_a_member_does_not_take_its_address_while_it_runs() {
        let authority = Authority::new();
        let dirs = [(); 3].map(|()| tempfile::tempdir().unwrap());
        let mut members = three_in(&authority, &dirs).await;
        let (third, before) = members.pop().unwrap();
        let cluster = third.cluster();
        third.abandon().await;
        let copied = tempfile::tempdir().unwrap();
        copy_dir(dirs[2].path(), copied.path());
        // Where it was, nobody answers: it may move.
        let (third, address) = member_in(&authority, dirs[2].path(), Begin::Resume).await;
        let (first, first_address) = &members[0];
        let is_known = |address: &str| first.members()[2].address == *address;
        until("it is known where it is", async || is_known(&address).then_some(())).await;
        assert_ne!(before, address);
        let (copy, copy_address) = member_in(&authority, copied.path(), Begin::Resume).await;
        let links = Links::new(cluster, 3, &authority.tls(&cluster.certificate_name(3)));
        let announce = |address: &str| {
            let announce = Change::Announce { member: 3, address: address.to_owned() };
            links.call(1, first_address, Call::Ask(Ask::Change(announce)))
        };
        // Where nobody answers at all is nowhere either.
        for (elsewhere, why) in [(&*copy_address, "another process"), ("127.0.0.1:1", "does not reach it")] {
            let told = announce(elsewhere).await.unwrap();
            let Answer::Told(Err(Refusal::Refused(refused))) = &told else { panic!("{told:?}") };
            assert!(refused.contains(why) && refused.contains(&address), "{refused}");
        }
        assert!(is_known(&address));
        assert!(matches!(announce(&address).await, Ok(Answer::Told(Ok(Told::Changed)))));
        copy.abandon().await;
        third.barrier().await.unwrap();
        third.shutdown().await;
        for (member, _) in members.into_iter().rev() {
            member.shutdown().await;
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_snapshot_comes_over_a_link_and_writes_go_the_other_way() {
        let authority = Authority::new();
        let first = member(&authority, 1, Begin::Found).await;
        let put = |name: String, length: usize| {
            let value = Value { bytes: Bytes::from(vec![b'x'; length]), revision_at: length };
            vec![Op::Put { key: Key::new("things", name), value, guard: Guard::None }]
        };
        for at in 0..120 {
            first.transact(put(format!("k{at}"), 2_000)).await.unwrap();
        }
        until("the log is cut", async || (first.status().log_bytes < SIZES.cut).then_some(())).await;
        let admission = until("it has an address", async || first.admit("second", Formats::OWN).await.ok()).await;
        let second = member(&authority, 2, Begin::Join(admission)).await;
        // What was put is not sent back: it is made again here.
        let done = until("it is in the group", async || second.transact(put("large".into(), 9_000)).await.ok()).await;
        assert_eq!(done.records[0].bytes, first.get("things", "large").unwrap().bytes);
        let gone =
            second.transact(vec![Op::Delete { key: Key::new("things", "k3"), guard: Guard::Present }]).await.unwrap();
        assert_eq!(gone.records[0].bytes.len(), 2_000 + gone.revision.to_string().len());
        assert!(second.barrier().await.unwrap() >= gone.revision);
        let contents = |keyspace: &Keyspace| {
            let records = keyspace.snapshot("things").records;
            records.values().map(|r| (r.key.clone(), r.revision, r.bytes.clone())).collect::<Vec<_>>()
        };
        assert_eq!(contents(&second), contents(&first));
        assert!(contents(&second).len() == 120);
        // What was before the snapshot was not sent as entries.
        assert!(second.watch("things", crate::Revision::new(3)).is_err());
        for keyspace in [second, first] {
            keyspace.shutdown().await;
        }
    }

    /// A transaction that puts so many bytes.
    fn put(name: String, length: usize) -> Vec<Op> {
        let value = Value { bytes: Bytes::from(vec![b'x'; length]), revision_at: length };
        vec![Op::Put { key: Key::new("things", name), value, guard: Guard::None }]
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_snapshot_without_room_for_it_is_refused_until_there_is() {
        let authority = Authority::new();
        let first = member(&authority, 1, Begin::Found).await;
        for at in 0..120 {
            first.transact(put(format!("k{at}"), 2_000)).await.unwrap();
        }
        // It is written until then: a log whose last entries came while it was being cut is cut with what comes next.
        until("the log is cut", async || {
            first.transact(put("k0".into(), 2_000)).await.unwrap();
            (first.status().log_bytes < SIZES.cut).then_some(())
        })
        .await;
        let admission = until("it has an address", async || first.admit("second", Formats::OWN).await.ok()).await;
        let disk = SimDisk::new(2);
        // The parts themselves are elsewhere here: room for the next file of the log, and nothing for the records.
        let free = Some(3 * SIZES.segment);
        let second = member_on(&authority, 2, Begin::Join(admission), &disk, free).await;
        // Twice for each: before, and to say how much there is.
        let asked = disk.asked();
        until("it is refused, and tried again", async || (disk.asked() >= asked + 4).then_some(())).await;
        assert_eq!(second.snapshot("things").records.len(), 0);
        disk.set_capacity(u64::MAX);
        until("it has everything", async || (second.snapshot("things").records.len() == 120).then_some(())).await;
        assert!(second.barrier().await.is_ok(), "it has not ended");
        for keyspace in [second, first] {
            keyspace.shutdown().await;
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_member_with_a_full_disk_takes_no_entries_and_votes_nevertheless() {
        let authority = Authority::new();
        let first = member(&authority, 1, Begin::Found).await;
        let mut others = Vec::new();
        let disk = SimDisk::new(3);
        for (seed, name, disk) in [(2, "second", &SimDisk::new(2)), (3, "third", &disk)] {
            let admission = until("it has an address", async || first.admit(name, Formats::OWN).await.ok()).await;
            others.push(member_on(&authority, seed, Begin::Join(admission), disk, None).await);
        }
        let (third, second) = (others.pop().unwrap(), others.pop().unwrap());
        let voters = |members: &[MemberStatus]| members.iter().filter(|member| member.role == Role::Voter).count();
        until("three voters", async || (voters(&third.members()) == 3).then_some(())).await;
        let space = || third.0.member.log().space().unwrap();
        until("it has the next file", async || space().ready.then_some(())).await;
        disk.set_capacity(disk.used());
        for at in 0..200 {
            first.transact(put(format!("k{at}"), 900)).await.unwrap();
            if space().stuck && third.revision().get() + 10 < first.revision().get() {
                break;
            }
        }
        assert!(space().stuck, "its disk is full");
        assert!(first.0.member.transfer(2).await);
        until("the third knows who leads", async || (third.status().leader == Some(2)).then_some(())).await;
        let done = until("writes go on", async || second.transact(put("after".into(), 900)).await.ok()).await;
        // It ends and starts as it is, and has everything once it can.
        timeout(Duration::from_secs(30), third.shutdown()).await.expect("it ends");
        let third = member_on(&authority, 3, Begin::Resume, &disk, None).await;
        until("it knows who leads", async || (third.status().leader == Some(2)).then_some(())).await;
        assert!(third.revision() < done.revision);
        disk.set_capacity(u64::MAX);
        until("it has everything", async || (third.revision() >= done.revision).then_some(())).await;
        for keyspace in [third, second, first] {
            timeout(Duration::from_secs(30), keyspace.shutdown()).await.expect("it ends");
        }
    }

    /// Whoever leads with a full disk would refuse all writes, although a majority has room.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_leader_whose_disk_is_full_hands_over_to_one_that_has_room() {
        let (authority, disk) = (Authority::new(), SimDisk::new(1));
        let first = member_on(&authority, 1, Begin::Found, &disk, None).await;
        let mut others = Vec::new();
        for (seed, name) in [(2, "second"), (3, "third")] {
            let admission = until("it has an address", async || first.admit(name, Formats::OWN).await.ok()).await;
            others.push(member(&authority, seed, Begin::Join(admission)).await);
        }
        let voters = |members: &[MemberStatus]| members.iter().filter(|member| member.role == Role::Voter).count();
        until("three voters", async || (voters(&others[1].members()) == 3).then_some(())).await;
        assert_eq!(others[0].status().leader, Some(1));
        let has_next_file = || first.0.member.log().space().unwrap().ready;
        until("it has the next file", async || has_next_file().then_some(())).await;
        disk.set_capacity(disk.used());
        let write = async || others[0].transact(put(format!("k{}", others[0].revision()), 900)).await;
        until("another leads", async || {
            // Some are refused before.
            let _ = write().await;
            others[0].status().leader.filter(|leader| *leader != 1)
        })
        .await;
        assert!(first.0.member.is_short_of_space() && others[0].0.member.has_room());
        until("writes go on", async || write().await.ok()).await;
        for keyspace in others.into_iter().chain([first]) {
            timeout(Duration::from_secs(30), keyspace.shutdown()).await.expect("it ends");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn who_hands_over_and_ends_answers_what_was_forwarded_to_it() {
        let authority = Authority::new();
        let first = member(&authority, 1, Begin::Found).await;
        let mut others = Vec::new();
        for (seed, name) in [(2, "second"), (3, "third")] {
            let admission = until("it has an address", async || first.admit(name, Formats::OWN).await.ok()).await;
            others.push(member(&authority, seed, Begin::Join(admission)).await);
        }
        let voters = |members: &[MemberStatus]| members.iter().filter(|member| member.role == Role::Voter).count();
        until("three voters", async || (voters(&others[1].members()) == 3).then_some(())).await;
        let (written, over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let writers: Vec<_> = (0..32)
            .map(|writer| {
                let (member, written, over) = (others[writer % 2].clone(), written.clone(), over.clone());
                tokio::spawn(async move {
                    while !over.load(Ordering::Relaxed) {
                        let value = Value { bytes: Bytes::from_static(b"x"), revision_at: 1 };
                        let key = Key::new("things", format!("w{writer}"));
                        let ops = vec![Op::Put { key, value, guard: Guard::None }];
                        member.transact(ops).await.map_err(|error| error.to_string())?;
                        written.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok::<(), String>(())
                })
            })
            .collect();
        let more = async |count: u64| {
            let before = written.load(Ordering::Relaxed);
            until("there are writes", async || (written.load(Ordering::Relaxed) >= before + count).then_some(())).await;
        };
        more(200).await;
        first.shutdown().await;
        more(200).await;
        over.store(true, Ordering::Relaxed);
        for writer in writers {
            assert_eq!(writer.await.unwrap(), Ok(()));
        }
        for keyspace in others {
            keyspace.shutdown().await;
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_was_asked_is_answered_before_the_links_end() {
        let authority = Authority::new();
        let keyspace = member(&authority, 1, Begin::Found).await;
        let (own, at) = (keyspace.cluster(), keyspace.0.member.clone());
        let admission = until("it has an address", async || keyspace.admit("second", Formats::OWN).await.ok()).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (stop, stopped) = watch::channel(false);
        let tls = authority.tls(&own.certificate_name(1));
        let streams = mpsc::channel(1).0;
        let mut serving = tokio::spawn(serve(listener, tls, (own, 1), Arc::downgrade(&at), streams, stopped));
        // What is asked waits for its turn.
        let one = at.changing().lock().await;
        let links = Links::new(own, admission.member, &authority.tls(&own.certificate_name(admission.member)));
        let change = crate::raft::Change::Announce { member: admission.member, address: "127.0.0.1:1".into() };
        let mut stream = links.0.dialer.dial(MAGIC, 1, &address).await.unwrap();
        for (number, ask) in [(1, Ask::Change(change)), (2, Ask::ReadIndex)] {
            write_frame(&mut stream, number, &wire::call(&Call::Ask(ask))).await.unwrap();
        }
        stream.flush().await.unwrap();
        let mut answered = async || timeout(Duration::from_secs(30), read_frame(&mut stream)).await.unwrap().unwrap();
        assert_eq!(answered().await.0, 2, "the first was taken before");
        stop.send(true).unwrap();
        assert!(timeout(Duration::from_millis(500), &mut serving).await.is_err(), "it waits for its answer");
        drop(one);
        let (number, told) = answered().await;
        let told = wire::incoming_answer(&told, 1, None);
        assert!(number == 1 && matches!(told, Ok(Answer::Told(Ok(Told::Changed)))), "{told:?}");
        timeout(Duration::from_secs(30), serving).await.expect("it ends").unwrap();
        keyspace.shutdown().await;
    }

    /// The other side has lost them in an outage, as a rule, and nothing of that came here.
    #[tokio::test(flavor = "multi_thread")]
    async fn connections_that_are_silent_do_not_keep_their_member_out() {
        let authority = Authority::new();
        let dir = tempfile::tempdir().unwrap();
        let (keyspace, address) = member_in(&authority, dir.path(), Begin::Found).await;
        let admission = until("it has an address", async || keyspace.admit("second", Formats::OWN).await.ok()).await;
        let own = keyspace.cluster();
        let links = Links::new(own, admission.member, &authority.tls(&own.certificate_name(admission.member)));
        let mut silent = Vec::new();
        for _ in 0..2 * CONNECTIONS_MAX.1 {
            let mut stream = links.0.dialer.dial(MAGIC, 1, &address).await.unwrap();
            write_frame(&mut stream, 1, &wire::call(&Call::Ask(Ask::ReadIndex))).await.unwrap();
            stream.flush().await.unwrap();
            timed(read_frame(&mut stream)).await.unwrap();
            silent.push(stream);
        }
        let told = links.call(1, &address, Call::Ask(Ask::ReadIndex)).await;
        assert!(matches!(told, Ok(Answer::Told(Ok(Told::ReadIndex(_))))), "{told:?}");
        // The oldest have ended, and the newest not.
        assert!(timed(read_frame(&mut silent[0])).await.is_err());
        let newest = silent.last_mut().unwrap();
        write_frame(newest, 2, &wire::call(&Call::Ask(Ask::ReadIndex))).await.unwrap();
        newest.flush().await.unwrap();
        assert_eq!(timed(read_frame(newest)).await.unwrap().0, 2);
        keyspace.shutdown().await;
    }

    #[tokio::test]
    async fn both_sides_ask_a_silent_one_whether_it_is_there() {
        let (authority, cluster) = (Authority::new(), ClusterId::new([1, 2]));
        let tls = |member| authority.tls(&cluster.certificate_name(member));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let links = Links::new(cluster, 2, &tls(2));
        for magic in [MAGIC, STREAM_MAGIC] {
            let greeted = async {
                let (stream, from) = listener.accept().await.unwrap();
                let place = Greetings::new(GREETINGS).add(from.ip(), false);
                let own = Own { cluster, member: 1 };
                greet(stream, TlsAcceptor::from(tls(1).server), own, place, Rooms::new()).await
            };
            let (dialed, greeted) = tokio::join!(links.0.dialer.dial(magic, 1, &address), greeted);
            let (dialed, greeted) = (dialed.unwrap(), greeted.unwrap());
            for socket in [dialed.get_ref().0, greeted.stream.get_ref().0] {
                assert!(sockopt::socket_keepalive(socket).unwrap());
                assert_eq!(sockopt::tcp_keepidle(socket).unwrap(), ASKED.0);
                assert_eq!(sockopt::tcp_keepintvl(socket).unwrap(), ASKED.1);
                assert_eq!(sockopt::tcp_user_timeout(socket).unwrap(), UNACKNOWLEDGED_MS);
            }
        }
    }

    #[tokio::test]
    async fn a_dial_outlives_those_who_gave_it_up() {
        let (authority, cluster) = (Authority::new(), ClusterId::new([1, 2]));
        let tls = |member| authority.tls(&cluster.certificate_name(member));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let links = Links::new(cluster, 2, &tls(2));
        let call = || links.call(1, &address, Call::Ask(Ask::ReadIndex));
        // Nobody says hello within the deadlines of heartbeats.
        for _ in 0..3 {
            assert!(timeout(Duration::from_millis(1), call()).await.is_err());
        }
        let (stream, _) = listener.accept().await.unwrap();
        let members = Rooms::new();
        let place = Greetings::new(GREETINGS).add([127, 0, 0, 1].into(), false);
        let own = Own { cluster, member: 1 };
        let greeted = greet(stream, TlsAcceptor::from(tls(1).server), own, place, members);
        let answers = async {
            let Greeted { stream, caller, .. } = greeted.await.unwrap();
            let (mut read, mut write) = tokio::io::split(stream);
            let (number, _) = read_frame(&mut read).await.unwrap();
            let answer = wire::answer(&Ok(Answer::Told(Ok(Told::ReadIndex(crate::Revision::new(caller))))));
            write_frame(&mut write, number, &answer).await.unwrap();
            write.flush().await.unwrap();
            read_frame(&mut read).await.err()
        };
        let answers = tokio::spawn(answers);
        assert!(matches!(call().await, Ok(Answer::Told(Ok(Told::ReadIndex(revision)))) if revision.get() == 2));
        drop(links);
        answers.await.unwrap();
        assert!(futures::FutureExt::now_or_never(listener.accept()).is_none(), "there was one dial for all");
    }

    /// A leader that does not take more writes, because those that it has wait for room.
    #[tokio::test]
    async fn reads_and_renewals_do_not_wait_behind_writes() {
        let (authority, cluster) = (Authority::new(), ClusterId::new([1, 2]));
        let tls = |member| authority.tls(&cluster.certificate_name(member));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let links = Links::new(cluster, 2, &tls(2));
        let (full, mut filled) = mpsc::channel(1);
        let acceptor = TlsAcceptor::from(tls(1).server);
        let leader = tokio::spawn(async move {
            let greetings = Greetings::new(GREETINGS);
            let members = Rooms::new();
            let mut connections = JoinSet::new();
            loop {
                let (stream, from) = listener.accept().await.unwrap();
                let place = greetings.add(from.ip(), false);
                let own = Own { cluster, member: 1 };
                let (acceptor, members, full) = (acceptor.clone(), members.clone(), full.clone());
                connections.spawn(async move {
                    let greeted = greet(stream, acceptor, own, place, members).await.unwrap();
                    let (mut read, mut write) = tokio::io::split(greeted.stream);
                    while let Ok((number, body)) = read_frame(&mut read).await {
                        let Ok(Incoming::Call(Call::Ask(ask))) = wire::incoming(&body) else { return };
                        let told = match ask {
                            Ask::Write(_) => {
                                let _ = full.send(()).await;
                                return std::future::pending().await;
                            }
                            Ask::ReadIndex => Told::ReadIndex(crate::Revision::new(7)),
                            Ask::Change(_) => Told::Changed,
                            Ask::Renew(_) | Ask::Renewed { .. } => Told::Renewed(Vec::new()),
                            Ask::Process => Told::Process { process: 1, has_room: true },
                        };
                        let answer = wire::answer(&Ok(Answer::Told(Ok(told))));
                        write_frame(&mut write, number, &answer).await.unwrap();
                        write.flush().await.unwrap();
                    }
                });
            }
        });
        let value = Value { bytes: vec![b'x'; 1 << 20].into(), revision_at: 0 };
        let key = Key::new("things", "large");
        let write = Op::Put { key: key.clone(), value, guard: Guard::None };
        let mut writes = JoinSet::new();
        for _ in 0..CALLS_BYTES >> 20 {
            writes.spawn(links.call(1, &address, Call::Ask(Ask::Write(Transaction::new(vec![write.clone()])))));
        }
        timeout(Duration::from_secs(30), filled.recv()).await.unwrap().unwrap();
        let value = Value { bytes: "x".into(), revision_at: 0 };
        let of = crate::raft::Renewed::All;
        for ask in [
            Ask::ReadIndex,
            Ask::Renew(crate::Renewal { key, revision: crate::Revision::new(7), value }),
            Ask::Renewed { collection: "things".into(), of },
            Ask::Change(crate::raft::Change::Announce { member: 2, address: "127.0.0.1:1".into() }),
        ] {
            let asked = links.call(1, &address, Call::Ask(ask.clone()));
            let told = timeout(Duration::from_secs(30), asked).await.unwrap_or_else(|_| panic!("{ask:?} waits"));
            assert!(matches!(told, Ok(Answer::Told(Ok(_)))), "{ask:?}: {told:?}");
        }
        assert!(writes.try_join_next().is_none());
        leader.abort();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn renewals_that_do_not_fit_in_a_frame_come_one_after_the_other() {
        let authority = Authority::new();
        let first = member(&authority, 1, Begin::Found).await;
        let admission =
            until("it has an address", async || first.admit("second", crate::Formats::OWN).await.ok()).await;
        let second = member(&authority, 2, Begin::Join(admission)).await;
        let large = vec![b'x'; 1_400_000];
        let mut expected = Vec::new();
        for at in 0..12 {
            let key = Key::new("things", format!("k{at:02}"));
            let value = Value { bytes: "x".into(), revision_at: 0 };
            let put = vec![Op::Put { key: key.clone(), value, guard: Guard::None }];
            let done = until("it is in the group", async || second.transact(put.clone()).await.ok()).await;
            let value = Value { bytes: large.clone().into(), revision_at: 0 };
            second.renew(crate::Renewal { key: key.clone(), revision: done.revision, value }).await.unwrap();
            expected.push((key.name, large.len() + done.revision.to_string().len()));
        }
        assert!(expected.iter().map(|(_, bytes)| bytes).sum::<usize>() > FRAME_BYTES_MAX);
        let renewed = second.renewed("things", None).await;
        let found: Vec<_> = renewed.iter().map(|record| (record.key.name.clone(), record.bytes.len())).collect();
        assert_eq!(found, expected);
        assert_eq!(second.renewed("things", Some("k05")).await.len(), 1);
        let value = Value { bytes: vec![b'x'; crate::TRANSACTION_BYTES_MAX].into(), revision_at: 0 };
        let revision = renewed[0].revision;
        let refused = second.renew(crate::Renewal { key: Key::new("things", "k00"), revision, value }).await;
        assert!(matches!(refused, Err(crate::TransactError::TooLarge { ops: 1, .. })), "{refused:?}");
        for keyspace in [second, first] {
            keyspace.shutdown().await;
        }
    }

    #[tokio::test]
    async fn a_call_or_an_answer_that_is_too_large_ends_nothing_but_itself() {
        let value = Value { bytes: vec![b'x'; FRAME_BYTES_MAX].into(), revision_at: 0 };
        let key = Key::new("things", "large");
        let record = Arc::new(crate::Record::new(key.clone(), &value, crate::Revision::new(7)));
        let frame = fitting(&Ok(Answer::Told(Ok(Told::Renewed(vec![record])))), 1);
        write_frame(&mut Vec::new(), 1, &frame).await.unwrap();
        let told = wire::incoming_answer(&Bytes::from(frame), 1, None);
        assert!(
            matches!(&told, Err(TransportError::Failed { reason, .. }) if reason.contains("too large")),
            "{told:?}"
        );
        let (authority, cluster) = (Authority::new(), ClusterId::new([1, 2]));
        let links = Links::new(cluster, 2, &authority.tls(&cluster.certificate_name(2)));
        let transaction = Transaction::new(vec![Op::Put { key, value, guard: Guard::None }]);
        // It is not even dialled.
        let told = links.call(1, "127.0.0.1:1", Call::Ask(Ask::Write(transaction))).await;
        assert!(
            matches!(&told, Err(TransportError::Failed { reason, .. }) if reason.contains("too large")),
            "{told:?}"
        );
    }

    #[tokio::test]
    async fn a_frame_that_is_too_large_or_ends_early_is_an_error() {
        for (bytes, whole) in [
            (&b"\x02\0\0\0\x07\0\0\0\0\0\0\0ab"[..], true),
            (b"\x03\0\0\0\x07\0\0\0\0\0\0\0ab", false),
            (b"\x02\0\0\0\x07\0\0\0", false),
            (b"\xff\xff\xff\xff\x07\0\0\0\0\0\0\0ab", false),
        ] {
            let read = read_frame(&mut &bytes[..]).await;
            assert_eq!(read.ok(), whole.then(|| (7, Bytes::from_static(b"ab"))), "{bytes:?}");
        }
    }
}
