//! Contents on several servers. A content is what its digest says, so there is nothing to agree on but who has it.
//!
//! ```text
//! push: on disk here ─► those who count are asked to hold it ─► each fetches it from here ─► a majority holds it ─► it is named,
//!   if it is they who count still; otherwise those are asked who do
//! pull, at a server that lacks it: fetched from another, into a file of its own, hashed while it comes ─► kept ─► read from there
//! what is named and not here: fetched in the background, a few at a time
//! ```
//! There is one way by which a content moves: whoever lacks it fetches it ([`Registry::obtain`]), once for all who wait, and goes on
//! when they have gone. What is not what its digest says is dropped. Everything has a bound and a deadline by size.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Router};
use futures::future::{BoxFuture, Shared};
use futures::stream::{FuturesUnordered, StreamExt as _};
use futures::{FutureExt as _, TryFutureExt as _};
use http::{HeaderMap, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Limited};
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::Registry;
use crate::blob;
use crate::error::Refusal;
use crate::name::Digest;
use crate::store::Found;
use crate::upload::leave_free;

/// Contents that are fetched at a time, and those of them that nobody waits for.
const FETCHES_MAX: usize = 8;
const CATCHING_UP_MAX: usize = 2;
/// How often those are asked who count by now, when others did as it was to be named.
pub const RECOUNTS_MAX: usize = 8;
/// Servers that are asked at a time to hold something.
const HOLDS_MAX: usize = 16;
/// How long anything may take, and how many bytes a second come at least beyond that.
const ANSWER_MAX: Duration = Duration::from_secs(30);
const BYTES_PER_SECOND: u64 = 1 << 20;
/// How often it is looked for what is missing here when nothing says that something is.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// Changes that come together are looked at together.
const TOGETHER: Duration = Duration::from_secs(1);
/// Bytes of what a server says about itself that are kept.
const WHY_BYTES_MAX: usize = 4 << 10;

/// The other servers, and how they are reached.
pub trait Replicas: Send + Sync + 'static {
    /// The servers of the group, this one among them.
    fn members(&self) -> Vec<Replica>;
    /// Who counts for a majority.
    fn electorate(&self) -> Electorate;
    /// Takes a request to [`peers_router`] of another one, which learns by [`Caller`] who asks.
    fn call(&self, to: u64, request: Request<Body>) -> BoxFuture<'static, io::Result<Response<Body>>>;
}

/// A server of the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replica {
    /// Its number.
    pub member: u64,
    /// Whether it is this one.
    pub own: bool,
}

/// Who counts: a content is named when a majority of each of the sets has it, and they are those who count still.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Electorate {
    /// Those who vote, and those who are to.
    pub sets: Vec<BTreeSet<u64>>,
    /// Never the same when others are to count ([`Catalog::change`](crate::Catalog::change)).
    pub version: u64,
}

impl Electorate {
    /// How many of those who `have` a content count, and how many of the same ones are needed, where those are too few.
    fn lacks(&self, have: &BTreeSet<u64>) -> Option<(usize, usize)> {
        let counts = self.sets.iter().map(|set| (set.intersection(have).count(), set.len() / 2 + 1));
        counts.into_iter().find(|(have, needed)| have < needed)
    }
}

/// Which server asks; whoever serves [`peers_router`] has made sure of it, and puts it into the request's extensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller(pub u64);

/// Why a content is not here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotHere {
    /// Nobody has it who was asked, and everybody was.
    #[error("no server has it")]
    Nowhere,
    /// Those that can be reached do not have it.
    #[error("{0}")]
    Unreached(String),
    /// The disk of this server is full.
    #[error("the disk of this server is full")]
    Full,
}

type Fetch = Shared<BoxFuture<'static, Result<(), NotHere>>>;

/// The contents that are being fetched.
#[derive(Default)]
pub struct Fetches {
    under_way: Mutex<HashMap<Digest, Fetch>>,
}

/// Bounds on what is asked of others.
pub struct Places {
    fetches: Semaphore,
    holds: Semaphore,
}

impl Default for Places {
    fn default() -> Places {
        Places { fetches: Semaphore::new(FETCHES_MAX), holds: Semaphore::new(HOLDS_MAX) }
    }
}

/// When something that moves `size` bytes must be done.
fn due(size: u64) -> Instant {
    Instant::now() + ANSWER_MAX + Duration::from_secs(size / BYTES_PER_SECOND)
}

impl Registry {
    /// Has a majority of those who count hold the content `digest`, which this server has; by itself where it is the only one. The
    /// version of who they were.
    pub(crate) async fn replicate(&self, digest: &Digest, size: u64) -> Result<u64, Refusal> {
        let electorate = self.inner().replicas.electorate();
        let members = self.inner().replicas.members();
        let mut have: BTreeSet<u64> = members.iter().filter(|member| member.own).map(|member| member.member).collect();
        let all: BTreeSet<u64> = electorate.sets.iter().flatten().copied().collect();
        let mut asked: FuturesUnordered<_> = all
            .difference(&have)
            .map(|member| {
                let member = *member;
                self.ask_to_hold(member, digest, size).map(move |held| (member, held))
            })
            .collect();
        let mut failed = Vec::new();
        while let Some((count, needed)) = electorate.lacks(&have) {
            match asked.next().await {
                Some((member, Ok(()))) => drop(have.insert(member)),
                Some((member, Err(why))) => failed.push((member, why)),
                None => return Err(Refusal::not_held(count, needed, &failed)),
            }
        }
        // The others go on with what they have begun.
        Ok(electorate.version)
    }

    async fn ask_to_hold(&self, member: u64, digest: &Digest, size: u64) -> Result<(), NotHeld> {
        let unreached = |error: String| NotHeld::Other(error);
        let asked = async {
            let _place = self.inner().places.holds.acquire().await.map_err(|e| unreached(e.to_string()))?;
            let request = Request::post(format!("/blobs/{digest}?size={size}")).body(Body::empty());
            let request = request.map_err(|error| unreached(error.to_string()))?;
            let answer = self.inner().replicas.call(member, request).await.map_err(|e| unreached(e.to_string()))?;
            let (head, body) = answer.into_parts();
            if head.status.is_success() {
                return Ok(());
            }
            let why = Limited::new(body, WHY_BYTES_MAX).collect().await.map(|body| body.to_bytes()).unwrap_or_default();
            let why = String::from_utf8_lossy(&why).into_owned();
            Err(if head.status == StatusCode::INSUFFICIENT_STORAGE { NotHeld::Full(why) } else { NotHeld::Other(why) })
        };
        tokio::select! {
            held = timeout_at(due(size), asked) => {
                held.unwrap_or_else(|_| Err(unreached("it did not answer in time".into())))
            }
            // It goes on with what it has begun; nobody here says that it has it.
            () = self.inner().stop.cancelled() => Err(unreached("this server is stopping".into())),
        }
    }

    /// Whether the content of `digest` is here, or was got from another server now.
    pub(crate) async fn is_here(&self, digest: &Digest, size: u64) -> Result<bool, Refusal> {
        let here = {
            let digest = digest.clone();
            self.blocking(move |inner| inner.store.size_of_whole(&digest, size)).await?
        };
        if here.is_some() {
            return Ok(true);
        }
        is_obtained(self.obtain(digest, size, None).await)
    }

    /// The same, of what is what its digest says: whoever pushes asks, and sends what is not there. Nor is what cannot be read and no
    /// other server has: what is sent takes its place.
    pub(crate) async fn is_here_whole(&self, digest: &Digest, size: u64) -> Result<bool, Refusal> {
        let obtained = match self.look(digest).await? {
            Some(Found::Sound) => return Ok(true),
            Some(Found::Unread) => self.obtain_anew(digest, size, None).await,
            Some(Found::Damaged) | None => self.obtain(digest, size, None).await,
        };
        is_obtained(obtained)
    }

    /// Has the content of `digest` here, from `first` or any other server. One fetch serves all who want it, and goes on when
    /// they do not wait any more.
    pub(crate) async fn obtain(&self, digest: &Digest, size: u64, first: Option<u64>) -> Result<(), NotHere> {
        let held = {
            let digest = digest.clone();
            self.blocking(move |inner| inner.store.hold(&digest)).await
        };
        if held.map_err(|error| NotHere::Unreached(format!("the registry cannot use its disk: {error}")))? {
            return Ok(());
        }
        self.obtain_anew(digest, size, first).await
    }

    /// The same, whatever is here of it: what comes takes its place. It goes on without whoever drops this.
    pub(crate) fn obtain_anew(&self, digest: &Digest, size: u64, first: Option<u64>) -> Fetch {
        let mut under_way = self.inner().fetches.under_way.lock();
        match under_way.get(digest) {
            Some(fetch) => fetch.clone(),
            None => {
                let fetch = self.begin_fetch(digest.clone(), size, first);
                under_way.insert(digest.clone(), fetch.clone());
                fetch
            }
        }
    }

    /// Begins to get from another server what cannot be read here; nothing where there is no other.
    pub(crate) fn begin_to_replace(&self, digest: &Digest, size: u64) {
        let has_others = self.inner().replicas.members().iter().any(|member| !member.own);
        if has_others && self.inner().store.is_unread(digest) {
            drop(self.obtain_anew(digest, size, None));
        }
    }

    fn begin_fetch(&self, digest: Digest, size: u64, first: Option<u64>) -> Fetch {
        let (registry, stop) = (self.clone(), self.inner().stop.clone());
        let fetch = async move {
            let _forget = Forget(&registry, &digest);
            let fetched = tokio::select! {
                fetched = timeout_at(due(size), registry.fetch(&digest, size, first)) => fetched,
                // What has come of it goes with its file.
                () = stop.cancelled() => Ok(Err(NotHere::Unreached("this server is stopping".into()))),
            };
            fetched.unwrap_or_else(|_| Err(NotHere::Unreached("no server gave it in time".into())))
        };
        let ended = |_| Err(NotHere::Unreached("the fetch of it ended".into()));
        self.inner().tasks.spawn(fetch).unwrap_or_else(ended).boxed().shared()
    }

    async fn fetch(&self, digest: &Digest, size: u64, first: Option<u64>) -> Result<(), NotHere> {
        let _place = self.inner().places.fetches.acquire().await.map_err(|e| NotHere::Unreached(e.to_string()))?;
        let others = self.inner().replicas.members().into_iter().filter(|member| !member.own);
        let mut others: Vec<u64> = others.map(|member| member.member).collect();
        // Not everybody asks the same one.
        let turn = digest.hex().as_bytes().iter().fold(0_usize, |sum, byte| sum + usize::from(*byte));
        let turn = turn.checked_rem(others.len()).unwrap_or_default();
        others.rotate_left(turn);
        others.sort_by_key(|member| Some(*member) != first);
        let mut failed = Vec::new();
        for member in others {
            match self.fetch_from(member, digest, size).await {
                Ok(true) => return Ok(()),
                Ok(false) => (),
                Err(refusal) if refusal.is_full() => return Err(NotHere::Full),
                Err(refusal) => {
                    tracing::debug!(member, %digest, why = refusal.message(), "fetch a content from another server");
                    failed.push(format!("server {member}: {}", refusal.message()));
                }
            }
        }
        if failed.is_empty() { Err(NotHere::Nowhere) } else { Err(NotHere::Unreached(failed.join("; "))) }
    }

    /// Gets the content from `member`; false when that one does not have it. Nothing of it stays when it is not whole.
    async fn fetch_from(&self, member: u64, digest: &Digest, size: u64) -> Result<bool, Refusal> {
        // What has no room here is not fetched in vain, with others' room meanwhile.
        let room = self
            .blocking(move |inner| Ok(leave_free(&inner.config.dir.join("uploads/next"), inner.config.free_min, size)));
        room.await?.map_err(|_| Refusal::full())?;
        let request = Request::get(format!("/blobs/{digest}")).body(Body::empty());
        let request = request.map_err(|error| Refusal::unavailable(error.to_string()))?;
        let answer = timeout_at(due(0), self.inner().replicas.call(member, request));
        let answer = answer.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        let (head, body) = answer.map_err(|error| Refusal::unavailable(error.to_string()))?.into_parts();
        match head.status {
            StatusCode::OK => (),
            StatusCode::NOT_FOUND => return Ok(false),
            status => return Err(Refusal::unavailable(format!("it answers {status}"))),
        }
        let upload = self.blocking(|inner| inner.uploads.unlisted()).await?;
        // Not a byte more than there should be.
        blob::receive(self, &upload, body, size).await?;
        blob::keep(self, &upload, digest).await?;
        Ok(true)
    }

    /// Fetches what is named and not here, whenever that may be so, until `stop`: a server that joined later, or was away, has
    /// everything before it is asked.
    pub async fn catch_up(self, stop: CancellationToken) {
        let work = async {
            let mut told = None;
            loop {
                match self.fetch_missing().await {
                    Ok(failed) => {
                        // Not again and again.
                        let why = failed.first().map(|why| (failed.len(), why.clone()));
                        if why != told
                            && let Some((count, why)) = &why
                        {
                            tracing::warn!(count, %why, "contents of images are missing here; it is tried again");
                        }
                        told = why;
                    }
                    Err(error) => tracing::warn!(%error, "look which contents of images are missing here"),
                }
                let _ = tokio::time::timeout(LOOK_EVERY, self.inner().names.changed()).await;
                tokio::time::sleep(TOGETHER).await;
            }
        };
        // Fetches that are under way end with the registry.
        tokio::select! {
            () = work => (),
            () = stop.cancelled() => (),
        }
    }

    /// Has everything here that is named and that any server has, so that it can be read; an error says what is not to be had now.
    pub async fn complete(&self) -> Result<(), String> {
        self.inner().names.current().await.map_err(|error| error.to_string())?;
        let failed = self.fetch_missing().await.map_err(|error| error.to_string())?;
        // What is nowhere is lost, whoever looks.
        failed.into_iter().find(|why| *why != NotHere::Nowhere).map_or(Ok(()), |why| Err(why.to_string()))
    }

    /// Fetches what is named and not here, or cannot be read; gives why some of it is not.
    async fn fetch_missing(&self) -> io::Result<Vec<NotHere>> {
        let missing = self.missing().await?;
        let fetched = futures::stream::iter(missing).map(|(digest, size)| {
            let registry = self.clone();
            async move { registry.bring(&digest, size).await.err() }
        });
        Ok(fetched.buffer_unordered(CATCHING_UP_MAX).filter_map(std::future::ready).collect().await)
    }

    /// Has the content of `digest` here, also in the place of what the disk did not give. Where nobody gives another one, the disk is
    /// asked once more, some time after it was last asked.
    async fn bring(&self, digest: &Digest, size: u64) -> Result<(), NotHere> {
        if !self.inner().store.is_unread(digest) {
            return self.obtain(digest, size, None).await;
        }
        match self.obtain_anew(digest, size, None).await {
            Err(_) if matches!(self.look(digest).await, Ok(Some(Found::Sound))) => Ok(()),
            obtained => obtained,
        }
    }

    /// The contents that are named and not here, or cannot be read; nothing where there is nobody to have them from.
    async fn missing(&self) -> io::Result<Vec<(Digest, u64)>> {
        if self.inner().replicas.members().iter().all(|member| member.own) {
            return Ok(Vec::new());
        }
        self.blocking(|inner| {
            let mut missing = inner.names.contents().map_err(io::Error::other)?;
            // What the disk says nothing of is asked for, too: why it does not come is told of it alone.
            let is_here = |digest: &Digest| matches!(inner.store.size(digest), Ok(Some(_)));
            missing.retain(|(digest, _)| !is_here(digest) || inner.store.is_unread(digest));
            Ok(missing)
        })
        .await
    }
}

/// Whether it is here now.
fn is_obtained(obtained: Result<(), NotHere>) -> Result<bool, Refusal> {
    match obtained {
        Ok(()) => Ok(true),
        Err(NotHere::Nowhere) => Ok(false),
        Err(NotHere::Full) => Err(Refusal::full()),
        Err(error @ NotHere::Unreached(_)) => Err(Refusal::unavailable(error.to_string())),
    }
}

/// Forgets a fetch when it has ended, however.
struct Forget<'a>(&'a Registry, &'a Digest);

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.0.inner().fetches.under_way.lock().remove(self.1);
    }
}

/// Why another server does not hold a content.
#[derive(Debug)]
pub enum NotHeld {
    /// Its disk is full.
    Full(String),
    /// Something else.
    Other(String),
}

/// What servers ask each other:
///
/// | request | answer |
/// | --- | --- |
/// | `GET /blobs/DIGEST` | the content, whatever repository has it |
/// | `POST /blobs/DIGEST?size=BYTES` | 204 once it is on disk here; fetched from whoever asks, if need be. 507: no space |
///
/// The caller serves it to members of the group alone, and says with [`Caller`] who asks.
pub fn peers_router(registry: Registry) -> Router {
    Router::new().route("/blobs/{digest}", get(give).post(hold)).with_state(registry)
}

async fn give(State(registry): State<Registry>, Path(digest): Path<String>) -> Result<Response, StatusCode> {
    let digest: Digest = digest.parse().map_err(|_| StatusCode::BAD_REQUEST)?;
    // Whoever asks asks again whenever something is named.
    if registry.was_unread(&digest) {
        return Err(StatusCode::SERVICE_UNAVAILABLE);
    }
    let size = {
        let digest = digest.clone();
        registry.blocking(move |inner| inner.store.size(&digest)).await
    };
    let size = size.map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?.ok_or(StatusCode::NOT_FOUND)?;
    // Whoever asks may lack it because its own disk does not give it: two such servers would fetch it from each other without end.
    let content = Body::from_stream(blob::pieces(&registry, &digest, (0, size), size));
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_LENGTH, size.into());
    Ok((headers, content).into_response())
}

#[derive(Deserialize)]
struct Held {
    size: u64,
}

async fn hold(
    State(registry): State<Registry>,
    Path(digest): Path<String>,
    Query(Held { size }): Query<Held>,
    Extension(Caller(caller)): Extension<Caller>,
) -> Response {
    let Ok(digest) = digest.parse::<Digest>() else { return StatusCode::BAD_REQUEST.into_response() };
    if size > registry.inner().config.blob_bytes_max {
        return (StatusCode::PAYLOAD_TOO_LARGE, "it is larger than what is taken here").into_response();
    }
    // What is damaged here, or cannot be read, holds nothing: it is fetched.
    let held = match registry.look(&digest).await {
        Ok(Some(Found::Unread)) => registry.obtain_anew(&digest, size, Some(caller)).await,
        Ok(_) => registry.obtain(&digest, size, Some(caller)).await,
        Err(error) => Err(NotHere::Unreached(format!("the registry cannot use its disk: {error}"))),
    };
    match held {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(error @ NotHere::Full) => (StatusCode::INSUFFICIENT_STORAGE, error.to_string()).into_response(),
        Err(error) => (StatusCode::BAD_GATEWAY, error.to_string()).into_response(),
    }
}

impl Registry {
    /// Ends what is being fetched, and waits until it has ended.
    pub async fn shutdown(&self) {
        self.inner().stop.cancel();
        self.inner().tasks.close();
        self.inner().tasks.wait().await;
    }
}
