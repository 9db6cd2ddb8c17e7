//! One request, from when it is here until its answer is whole, as far as the policy wants it told.

use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::extract::ConnectInfo;
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use coracle_api::status::Status;
use futures::future::BoxFuture;
use http::{HeaderMap, StatusCode, header};
use http_body::{Body as _, Frame, SizeHint};
use jiff::Timestamp;
use serde_json::json;

use super::event::{Answered, BODY_TOLD_MAX, Body, Event};
use super::policy::{Level, Stage, Verdict};
use super::writer::Delivery;
use super::{Asked, Audit};
use crate::identity::Identity;
use crate::limits::{Class, Flow, Here, Place};
use crate::request::annotations::{Annotations, Named};

/// Most characters of a User-Agent; the reference's bound.
const AGENT_MAX: usize = 1024;
/// Most addresses that a request may say it came by.
const ADDRESSES_MAX: usize = 16;
/// Most characters of the URI.
const URI_MAX: usize = 16 << 10;
/// How long a request waits for room before it is told to come again.
const ROOM_MAX: Duration = Duration::from_secs(10);

/// A request that is told of, if the policy says so.
pub(crate) struct Trail {
    audit: Arc<Audit>,
    pub(super) asked: Asked,
    pub(super) id: String,
    pub(super) uri: String,
    pub(super) agent: String,
    pub(super) addresses: Vec<String>,
    pub(super) received: Timestamp,
    annotations: Arc<Annotations>,
    known: OnceLock<Known>,
    acting: OnceLock<Identity>,
    sent: OnceLock<Body>,
    /// What it tells may take of the room that others wait for: it has waited for that, too, or is a duty's.
    has_room: AtomicBool,
    /// Its caller waits until what is told of it is where it goes, as far as anybody does.
    waits: AtomicBool,
}

struct Known {
    user: Option<Identity>,
    verdict: Verdict,
}

impl Trail {
    pub(super) fn new<B>(audit: &Arc<Audit>, request: &http::Request<B>, id: &str) -> Trail {
        let mut uri = request.uri().path_and_query().map_or("/", |all| all.as_str()).to_owned();
        uri.truncate(uri.floor_char_boundary(URI_MAX));
        Trail {
            audit: audit.clone(),
            asked: Asked::of(request.method(), request.uri()),
            id: id.to_owned(),
            uri,
            agent: agent(request.headers()),
            addresses: addresses(request),
            received: Timestamp::now(),
            annotations: Arc::default(),
            known: OnceLock::new(),
            acting: OnceLock::new(),
            sent: OnceLock::new(),
            has_room: AtomicBool::new(false),
            waits: AtomicBool::new(false),
        }
    }

    /// What those who decide about the request add.
    pub fn annotations(&self) -> &Arc<Annotations> {
        &self.annotations
    }

    /// Who sent it is known now, and with that how much is told.
    pub fn called_by(&self, user: &Identity) {
        self.judge(Some(user));
    }

    /// Tells that it is here, now that it is known who sent it, or nobody will know. One of a user, or of a stranger, waits for that:
    /// until there is room for what it will tell, and until this is heard, where somebody is waited for. Duties and health wait for no
    /// disk and for nobody.
    ///
    /// # Errors
    /// There is no room, or what was told did not get where it goes, and nothing may be done of which nobody was told.
    pub async fn let_in(self: &Arc<Self>, class: Class, is_health: bool) -> Result<(), Status> {
        self.judge(None);
        let waits = class == Class::User && !is_health;
        if waits && self.is_told() {
            let waited = tokio::time::timeout(ROOM_MAX, self.audit.writer.room()).await;
            waited.map_err(|_| {
                Status::too_many_requests("the audit log waits for its disk, please try again later", 1)
            })?;
        }
        self.has_room.store(waits || class != Class::User, Ordering::Relaxed);
        let told = self.user().and_then(|_| self.tell(Stage::RequestReceived, None));
        if waits { self.heard(told).await } else { Ok(()) }
    }

    fn judge(&self, user: Option<&Identity>) {
        let verdict = || self.audit.policy.judge(user, &self.asked);
        self.known.get_or_init(|| Known { user: user.cloned(), verdict: verdict() });
    }

    /// As whom the caller acts.
    pub fn acts_as(&self, identity: &Identity) {
        let _ = self.acting.set(identity.clone());
    }

    /// Whether something is told of it.
    pub fn is_told(&self) -> bool {
        self.level() > Level::None
    }

    fn level(&self) -> Level {
        self.known.get().map_or(Level::None, |known| known.verdict.level)
    }

    /// Waits until what was told when it was here is where it goes, if anybody waits for that: then its caller waits for the rest, too.
    async fn heard(&self, told: Option<Delivery>) -> Result<(), Status> {
        self.waits.store(true, Ordering::Relaxed);
        let Some(told) = told else { return Ok(()) };
        if told.made().await || !self.audit.writer.is_strict() {
            return Ok(());
        }
        self.audit.writer.rejected();
        Err(Status::internal_error("failed to store audit event"))
    }

    /// What its caller waits for of what is told.
    fn waited_for(&self, told: Option<Delivery>) -> Option<Delivery> {
        told.filter(|_| self.waits.load(Ordering::Relaxed))
    }

    /// Its body was read.
    pub fn has_sent(&self, headers: &HeaderMap, bytes: &Bytes) {
        if self.level() >= Level::Request && !bytes.is_empty() {
            let _ = self.sent.set(Body::sent(headers, bytes.clone()));
        }
    }

    /// The answer, which is told of when it begins or when it is whole.
    async fn answered(self: &Arc<Self>, response: Response) -> Response {
        let code = response.status();
        let answered = Answered::of(code, response.extensions().get());
        if self.user().is_none() {
            self.tell_and_wait(Stage::ResponseStarted, answered).await;
            return response;
        }
        if !self.is_told() {
            return response;
        }
        let is_long = self.asked.is_long() && (code.is_success() || code == StatusCode::SWITCHING_PROTOCOLS);
        // Of one without a body nobody reads to its end.
        let keeps = !is_long && self.level() == Level::RequestResponse && !response.body().is_end_stream();
        if !is_long && !keeps {
            self.tell_and_wait(Stage::ResponseComplete, answered).await;
            return response;
        }
        let (parts, body) = response.into_parts();
        let kept = keeps.then(Kept::default);
        let (started, headers) = (is_long.then(|| answered.clone()), parts.headers.clone());
        // It is there before anybody waits: who leaves meanwhile has ended, and that is told.
        let body = Recorded { body, trail: Some(self.clone()), answered, headers, kept, last: None };
        if let Some(started) = started {
            self.tell_and_wait(Stage::ResponseStarted, started).await;
        }
        Response::from_parts(parts, axum::body::Body::new(body))
    }

    /// The server failed in it.
    pub fn panicked(self: &Arc<Self>) {
        let status = Status::internal_error("the server failed in this request; its log says why");
        self.tell(Stage::Panic, Some(Answered::of(StatusCode::INTERNAL_SERVER_ERROR, Some(&status))));
    }

    async fn tell_and_wait(self: &Arc<Self>, stage: Stage, answered: Answered) {
        let told = self.tell(stage, Some(answered));
        if let Some(told) = self.waited_for(told) {
            told.made().await;
        }
    }

    /// Tells of a moment; of what is not told of there is nothing to wait for.
    fn tell(self: &Arc<Self>, stage: Stage, answered: Option<Answered>) -> Option<Delivery> {
        let known = self.known.get()?;
        if !known.verdict.tells(stage) {
            return None;
        }
        let event = Event {
            trail: self.clone(),
            level: known.verdict.level,
            stage,
            at: Timestamp::now(),
            answered,
            annotations: self.annotations.all(),
        };
        self.audit.writer.tell(event.bytes(), event, self.has_room.load(Ordering::Relaxed))
    }

    pub(super) fn user(&self) -> Option<&Identity> {
        self.known.get().and_then(|known| known.user.as_ref())
    }

    pub(super) fn acting(&self) -> Option<&Identity> {
        self.acting.get()
    }

    pub(super) fn omits_managed_fields(&self) -> bool {
        self.known.get().is_some_and(|known| known.verdict.omits_managed_fields)
    }

    pub(super) fn sent(&self) -> Option<&Body> {
        self.sent.get()
    }

    /// What the object that was sent says it is.
    pub(super) fn named(&self) -> Option<Named> {
        self.annotations.named().cloned()
    }

    /// About as many bytes as it holds without bodies.
    pub(super) fn bytes(&self) -> usize {
        let lengths = |texts: &[String]| texts.iter().map(String::len).sum::<usize>();
        let who = |identity: &Identity| {
            let extra = identity.extra.iter().map(|(key, values)| key.len() + lengths(values));
            identity.user.len() + lengths(&identity.groups) + extra.sum::<usize>()
        };
        // A path is there whole and taken apart.
        (1 << 10)
            + self.uri.len()
            + 2 * self.asked.path.len()
            + self.agent.len()
            + [self.user(), self.acting()].into_iter().flatten().map(who).sum::<usize>()
    }
}

impl Answered {
    /// With this code; of what failed the status says why.
    fn of(code: StatusCode, said: Option<&Status>) -> Answered {
        let Some(said) = said.filter(|_| !code.is_success()) else {
            return Answered { status: json!({"metadata": {}, "code": code.as_u16()}), status_bytes: 64, body: None };
        };
        let mut status = serde_json::to_value(said).unwrap_or_default();
        if let Some(status) = status.as_object_mut() {
            status.remove("kind");
            status.remove("apiVersion");
        }
        let causes = said.details.as_ref().map_or(0, |details| details.causes.len());
        Answered { status, status_bytes: said.message.len() * 2 + (causes + 1) * 256, body: None }
    }
}

/// A request whose answer is not known yet. If there never is one, that is told.
pub(crate) struct Unanswered(Option<Arc<Trail>>);

impl Unanswered {
    pub fn new(trail: Arc<Trail>) -> Unanswered {
        Unanswered(Some(trail))
    }

    /// The answer, which is told of when it begins or when it is whole.
    pub async fn answered(mut self, response: Response) -> Response {
        match self.0.take() {
            Some(trail) => trail.answered(response).await,
            None => response,
        }
    }
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        let Some(trail) = self.0.take() else { return };
        /// nginx's, of a client that has closed its connection.
        const CLIENT_CLOSED: u16 = 499;
        let why = "the client has left before its answer: what it asked for may have been done, or not";
        let status = Status::generic(CLIENT_CLOSED, why);
        let code = StatusCode::from_u16(CLIENT_CLOSED).unwrap_or(StatusCode::REQUEST_TIMEOUT);
        trail.tell(Stage::ResponseComplete, Some(Answered::of(code, Some(&status))));
    }
}

fn agent(headers: &HeaderMap) -> String {
    let agent = headers.get(header::USER_AGENT).map(|value| String::from_utf8_lossy(value.as_bytes()));
    let mut agent = agent.unwrap_or_default().into_owned();
    if agent.len() > AGENT_MAX {
        agent.truncate(agent.floor_char_boundary(AGENT_MAX));
        agent.push_str("...TRUNCATED");
    }
    agent
}

/// By which addresses it came: those that it says first, then the one that it was heard from.
fn addresses<B>(request: &http::Request<B>) -> Vec<String> {
    let texts = |name: &str| request.headers().get_all(name).iter().filter_map(|value| value.to_str().ok());
    let said = texts("x-forwarded-for").flat_map(|list| list.split(','));
    let said = said.chain(texts("x-real-ip")).filter_map(|one| one.trim().parse::<IpAddr>().ok());
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|peer| peer.0.ip());
    let here = request.extensions().get::<Here>().map(|_| IpAddr::from([127, 0, 0, 1]));
    let mut addresses: Vec<String> = Vec::new();
    for address in said.take(ADDRESSES_MAX).chain(peer.or(here)) {
        let address = address.to_canonical().to_string();
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    addresses
}

/// An answer that is told of when it ends, however it does.
struct Recorded {
    body: axum::body::Body,
    trail: Option<Arc<Trail>>,
    answered: Answered,
    headers: HeaderMap,
    kept: Option<Kept>,
    last: Option<Last>,
}

/// The end of an answer, which its client does not have before what is told of it is where it goes.
struct Last {
    frame: Option<Frame<Bytes>>,
    told: BoxFuture<'static, bool>,
}

/// What was sent of it, of which there is no more at a time than there is room for.
#[derive(Default)]
struct Kept {
    bytes: BytesMut,
    place: Option<Place>,
    is_too_long: bool,
}

impl Kept {
    fn add(&mut self, trail: &Trail, data: &Bytes) {
        if self.is_too_long {
            return;
        }
        if self.bytes.len() + data.len() > BODY_TOLD_MAX || !self.has_room(trail, data.len()) {
            *self = Kept { is_too_long: true, ..Kept::default() };
            return;
        }
        self.bytes.extend_from_slice(data);
    }

    fn has_room(&mut self, trail: &Trail, bytes: usize) -> bool {
        if let Some(place) = &mut self.place {
            return place.grow(bytes);
        }
        let user = trail.user().map_or("", |user| &user.user);
        self.place = trail.audit.kept.take(Flow::of(Class::User, user).name, bytes);
        self.place.is_some()
    }
}

impl Recorded {
    /// It is whole, or there will be no more of it. What its client waits for.
    fn end(&mut self) -> Option<Delivery> {
        let trail = self.trail.take()?;
        let mut answered = self.answered.clone();
        // Held until the event counts the bytes.
        let mut _place = None;
        if let Some(Kept { bytes, place, is_too_long }) = self.kept.take() {
            _place = place;
            match is_too_long {
                true => trail.annotations.cut(),
                false => answered.body = Some(Body::answered(&self.headers, bytes.freeze())),
            }
        }
        let told = trail.tell(Stage::ResponseComplete, Some(answered));
        trail.waited_for(told)
    }
}

impl http_body::Body for Recorded {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let recorded = &mut *self;
        if recorded.last.is_none() {
            let frame = match ready!(Pin::new(&mut recorded.body).poll_frame(cx)).transpose() {
                Ok(frame) => frame,
                Err(error) => {
                    recorded.end();
                    return Poll::Ready(Some(Err(error)));
                }
            };
            let data = frame.as_ref().and_then(Frame::data_ref);
            if let (Some(kept), Some(trail), Some(data)) = (&mut recorded.kept, &recorded.trail, data) {
                kept.add(trail, data);
            }
            if frame.is_some() && !recorded.body.is_end_stream() {
                return Poll::Ready(frame.map(Ok));
            }
            match recorded.end() {
                None => return Poll::Ready(frame.map(Ok)),
                Some(told) => recorded.last = Some(Last { frame, told: Box::pin(told.made()) }),
            }
        }
        if let Some(last) = &mut recorded.last {
            ready!(last.told.as_mut().poll(cx));
        }
        Poll::Ready(recorded.last.take().and_then(|last| last.frame).map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        self.last.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match self.last.as_ref().map(|last| last.frame.as_ref().and_then(Frame::data_ref)) {
            Some(data) => SizeHint::with_exact(data.map_or(0, |data| data.len() as u64)),
            None => self.body.size_hint(),
        }
    }
}

impl Drop for Recorded {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::super::{AuditLog, Log, Policy};
    use super::*;

    /// An audit log that tells all of everything, in a directory of its own.
    fn audit() -> (Arc<Audit>, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let log = Log { path: Some(dir.path().join("audit.log")), ..Log::default() };
        let text = "{apiVersion: audit.k8s.io/v1, kind: Policy, rules: [{level: RequestResponse}]}";
        let policy = Policy::parse(text).unwrap();
        (Audit::open(AuditLog { policy, log: Some(log), webhook: None }).unwrap(), dir)
    }

    fn trail(audit: &Arc<Audit>, user: &str) -> Arc<Trail> {
        let trail = audit.begin(&http::Request::get("/version").body(()).unwrap(), "id");
        trail.called_by(&Identity::authenticated(user, vec![]));
        trail
    }

    #[tokio::test(start_paused = true)]
    async fn who_was_not_let_in_or_asks_for_health_has_nothing_of_others_lost() {
        let (audit, _dir) = audit();
        audit.writer.crowd();
        let refused = trail(&audit, "many");
        assert_eq!(refused.let_in(Class::User, false).await.unwrap_err().code(), 429);
        Unanswered::new(refused).answered(Response::default()).await;
        let health = trail(&audit, "many");
        health.let_in(Class::User, true).await.unwrap();
        // What it began with, and its answer.
        Unanswered::new(health).answered(Response::default()).await;
        assert_eq!(audit.writer.told_and_lost(), (3, 3));
        let duty = trail(&audit, "system:kube-scheduler");
        duty.let_in(Class::Duty, false).await.unwrap();
        Unanswered::new(duty).answered(Response::default()).await;
        assert_eq!(audit.writer.told_and_lost(), (5, 3));
    }

    #[tokio::test]
    async fn who_does_not_read_its_answers_leaves_room_for_others() {
        use http_body_util::BodyExt as _;
        const PIECE: usize = 8 << 20;
        let (audit, _dir) = audit();
        let answered = async |user: &str| {
            let trail = trail(&audit, user);
            trail.let_in(Class::User, false).await.unwrap();
            let pieces =
                futures::stream::iter([PIECE, 1].map(|size| Ok::<_, axum::Error>(Bytes::from(vec![b' '; size]))));
            let response = Response::new(axum::body::Body::from_stream(pieces));
            let mut body = Unanswered::new(trail.clone()).answered(response).await.into_body();
            body.frame().await.unwrap().unwrap();
            (trail, body)
        };
        let is_cut = |trail: &Trail| trail.annotations.all().iter().any(|(key, _)| key.ends_with("/truncated"));
        let mut held = Vec::new();
        for _ in 0..8 {
            held.push(answered("greedy").await);
        }
        let room = tokio::time::timeout(ROOM_MAX, audit.writer.room());
        assert!(room.await.is_ok(), "it is in nobody's way");
        let (other, mut body) = answered("other").await;
        while body.frame().await.is_some() {}
        assert!(!is_cut(&other));
        let told: Vec<bool> = held.into_iter().map(|(trail, body)| (drop(body), is_cut(&trail)).1).collect();
        assert_eq!(told.iter().filter(|is_cut| **is_cut).count(), 4, "half of all is its own");
    }
}
