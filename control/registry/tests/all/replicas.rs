//! Three registries that share a catalog: what one is given all serve, with one of them dead, full, lying or late.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use coracle_registry::{Caller, Config, Electorate, Registry, Replica, Replicas, peers_router};
use futures::future::{BoxFuture, FutureExt as _};
use futures::stream::{self, StreamExt as _};
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use crate::digest;
use crate::memory::Memory;

const LIMIT: Duration = Duration::from_secs(30);
/// Longer than what is written at a time.
const LENGTH: usize = 3 << 20;

/// How a server answers others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fault {
    /// Not at all.
    Down,
    /// With a wrong byte.
    Flipped,
    /// With more than there is.
    Longer,
    /// With half of it.
    Cut,
    /// With half of it, and then nothing more.
    Stalled,
    /// It takes what it is asked, and says nothing.
    Mute,
}

#[derive(Default)]
struct Net {
    routers: Mutex<HashMap<u64, Router>>,
    faults: Mutex<HashMap<u64, Fault>>,
    learners: Mutex<HashSet<u64>>,
    /// Who is to count next.
    next: Mutex<Option<BTreeSet<u64>>>,
    unanswered: AtomicUsize,
}

impl Net {
    fn fault(&self, member: u64) -> Option<Fault> {
        self.faults.lock().unwrap().get(&member).copied()
    }

    fn set(&self, member: u64, fault: impl Into<Option<Fault>>) {
        let mut faults = self.faults.lock().unwrap();
        match fault.into() {
            Some(fault) => drop(faults.insert(member, fault)),
            None => drop(faults.remove(&member)),
        }
    }
}

struct Port {
    net: Arc<Net>,
    catalog: Arc<Memory>,
    own: u64,
}

impl Replicas for Port {
    fn members(&self) -> Vec<Replica> {
        (1..=3).map(|member| Replica { member, own: member == self.own }).collect()
    }

    fn electorate(&self) -> Electorate {
        let learners = self.net.learners.lock().unwrap();
        let voters = (1..=3).filter(|member| !learners.contains(member)).collect();
        let mut sets = vec![voters];
        sets.extend(self.net.next.lock().unwrap().clone());
        Electorate { sets, version: self.catalog.electorate() }
    }

    fn call(&self, to: u64, mut request: Request<Body>) -> BoxFuture<'static, io::Result<Response<Body>>> {
        let (net, own) = (self.net.clone(), self.own);
        async move {
            if [to, own].iter().any(|member| net.fault(*member) == Some(Fault::Down)) {
                return Err(io::Error::other(format!("server {to} is down")));
            }
            if net.fault(to) == Some(Fault::Mute) {
                net.unanswered.fetch_add(1, Ordering::Relaxed);
                std::future::pending::<()>().await;
            }
            request.extensions_mut().insert(Caller(own));
            let router = net.routers.lock().unwrap()[&to].clone();
            let gives = request.method() == Method::GET;
            let answer = router.oneshot(request).await.unwrap();
            match net.fault(to) {
                Some(fault) if gives && answer.status() == StatusCode::OK => Ok(spoiled(answer, fault).await),
                _ => Ok(answer),
            }
        }
        .boxed()
    }
}

async fn spoiled(answer: Response<Body>, fault: Fault) -> Response<Body> {
    let (head, body) = answer.into_parts();
    let mut content = body.collect().await.unwrap().to_bytes().to_vec();
    let half = Bytes::copy_from_slice(&content[..content.len() / 2]);
    let half = stream::iter([io::Result::Ok(half)]);
    let body = match fault {
        Fault::Flipped => {
            content[7] ^= 1;
            Body::from(content)
        }
        Fault::Longer => {
            content.push(0);
            Body::from(content)
        }
        Fault::Cut => Body::from_stream(half.chain(stream::iter([Err(io::Error::other("cut"))]))),
        _ => Body::from_stream(half.chain(stream::pending())),
    };
    Response::from_parts(head, body)
}

/// A server.
struct Server {
    dir: TempDir,
    registry: Registry,
    router: Router,
}

struct Group {
    net: Arc<Net>,
    catalog: Memory,
    servers: Vec<Server>,
}

impl Group {
    fn new() -> Group {
        Group::with(|_, _| ())
    }

    fn with(change: impl Fn(u64, &mut Config)) -> Group {
        let (net, catalog) = (Arc::<Net>::default(), Memory::default());
        let servers = (1..=3).map(|own| {
            let dir = tempfile::tempdir().unwrap();
            let mut config = Config::new(dir.path());
            change(own, &mut config);
            let beside = Arc::new(catalog.beside());
            let port = Port { net: net.clone(), catalog: beside.clone(), own };
            let registry = Registry::open(config, beside, Arc::new(port)).unwrap();
            net.routers.lock().unwrap().insert(own, peers_router(registry.clone()));
            let router = coracle_registry::router(registry.clone());
            Server { dir, registry, router }
        });
        let servers = servers.collect();
        Group { net, catalog, servers }
    }

    fn server(&self, member: u64) -> &Server {
        &self.servers[member as usize - 1]
    }

    /// The servers that have a content on disk.
    fn holders(&self, digest: &str) -> Vec<u64> {
        (1..=3).filter(|member| self.server(*member).path(digest).exists()).collect()
    }

    async fn push(&self, member: u64, content: Vec<u8>) -> (StatusCode, String) {
        let path = format!("/v2/app/blobs/uploads/?digest={}", digest(&content));
        let (status, body) = self.server(member).send(Method::POST, &path, content).await;
        (status, String::from_utf8_lossy(&body).into_owned())
    }

    /// What another server gives when it is asked for a blob.
    async fn pull(&self, member: u64, digest: &str) -> (StatusCode, Bytes) {
        self.server(member).send(Method::GET, &format!("/v2/app/blobs/{digest}"), Vec::new()).await
    }

    /// Pushes a blob that the third server lacks.
    async fn push_without_third(&self, seed: u8) -> String {
        self.net.set(3, Fault::Down);
        let (status, why) = self.push(1, content(seed)).await;
        assert_eq!(status, StatusCode::CREATED, "{why}");
        self.net.set(3, None);
        let digest = digest(&content(seed));
        assert_eq!(self.holders(&digest), [1, 2]);
        digest
    }
}

impl Server {
    async fn send(&self, method: Method, path: &str, body: Vec<u8>) -> (StatusCode, Bytes) {
        let request = Request::builder().method(method).uri(path).body(Body::from(body)).unwrap();
        let answer =
            tokio::time::timeout(LIMIT, self.router.clone().oneshot(request)).await.expect("an answer").unwrap();
        (answer.status(), answer.into_body().collect().await.unwrap().to_bytes())
    }

    fn path(&self, digest: &str) -> PathBuf {
        let hex = digest.strip_prefix("sha256:").unwrap();
        self.dir.path().join("blobs/sha256").join(&hex[..2]).join(hex)
    }

    fn has_halves(&self) -> bool {
        std::fs::read_dir(self.dir.path().join("uploads")).unwrap().count() > 0
    }
}

fn content(seed: u8) -> Vec<u8> {
    (0..LENGTH).map(|at| (at % 251) as u8 ^ seed).collect()
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let tries = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LIMIT, tries).await.unwrap_or_else(|_| panic!("{what}: not within {LIMIT:?}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_pushed_at_one_is_pulled_at_any_and_held_by_a_majority_before_it_is_acknowledged() {
    let group = Group::new();
    let layer = content(1);
    let (status, why) = group.push(1, layer.clone()).await;
    assert_eq!(status, StatusCode::CREATED, "{why}");
    let layer_digest = digest(&layer);
    assert!(group.holders(&layer_digest).len() >= 2);
    // The manifest comes through another server.
    let manifest = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"digest": layer_digest}, "layers": []})
    .to_string();
    let (status, _) = group.server(2).send(Method::PUT, "/v2/app/manifests/v1", manifest.clone().into_bytes()).await;
    assert_eq!(status, StatusCode::CREATED);
    assert!(group.holders(&digest(manifest.as_bytes())).len() >= 2);
    for member in 1..=3 {
        let (status, pulled) = group.server(member).send(Method::GET, "/v2/app/manifests/v1", Vec::new()).await;
        assert_eq!((status, pulled), (StatusCode::OK, manifest.clone().into()), "{member}");
        let (status, pulled) = group.pull(member, &layer_digest).await;
        assert!(status == StatusCode::OK && pulled == layer, "{member}: {status}");
        let tags: Value =
            serde_json::from_slice(&group.server(member).send(Method::GET, "/v2/app/tags/list", vec![]).await.1)
                .unwrap();
        assert_eq!(tags["tags"], json!(["v1"]));
    }
}

/// What another server knows by itself may be older.
#[tokio::test(flavor = "multi_thread")]
async fn what_one_was_given_any_other_mounts_and_deletes_at_once() {
    let group = Group::new();
    let layer = content(16);
    let manifest =
        json!({"schemaVersion": 2, "config": {"digest": digest(&layer)}, "layers": []}).to_string().into_bytes();
    let layer_path = format!("/v2/app/blobs/{}", digest(&layer));
    let manifest_path = format!("/v2/app/manifests/{}", digest(&manifest));
    let tag_path = "/v2/app/manifests/v1";
    for (member, method, path) in [
        (2, Method::POST, format!("/v2/other/blobs/uploads/?mount={}&from=app", digest(&layer))),
        (2, Method::DELETE, tag_path.to_owned()),
        (3, Method::DELETE, manifest_path),
        (2, Method::DELETE, layer_path),
    ] {
        // The one that is asked has not heard of it.
        let (status, why) = group.push(1, layer.clone()).await;
        assert_eq!(status, StatusCode::CREATED, "{why}");
        let (status, _) = group.server(1).send(Method::PUT, tag_path, manifest.clone()).await;
        assert_eq!(status, StatusCode::CREATED);
        let (status, why) = group.server(member).send(method.clone(), &path, Vec::new()).await;
        let expected = if method == Method::POST { StatusCode::CREATED } else { StatusCode::ACCEPTED };
        assert_eq!(status, expected, "{method} {path}: {why:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_was_away_gets_what_it_is_asked_for_and_keeps_it() {
    let group = Group::new();
    let digest = group.push_without_third(2).await;
    // It is there for who asks for its head, too: a client that hears so does not push it.
    let path = format!("/v2/app/blobs/{digest}");
    assert_eq!(group.server(3).send(Method::HEAD, &path, Vec::new()).await.0, StatusCode::OK);
    assert_eq!(group.holders(&digest), [1, 2, 3]);
    for dead in [1, 2] {
        group.net.set(dead, Fault::Down);
    }
    let (status, pulled) = group.pull(3, &digest).await;
    assert!(status == StatusCode::OK && pulled == content(2), "{status}");
    // What is named, and lost everywhere, is not there: who pushes it again heals that.
    for member in 1..=3 {
        group.net.set(member, None);
        std::fs::remove_file(group.server(member).path(&digest)).unwrap();
    }
    assert_eq!(group.pull(3, &digest).await.0, StatusCode::NOT_FOUND);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_majority_a_push_is_refused_and_the_next_one_succeeds() {
    let group = Group::new();
    group.net.set(2, Fault::Down);
    group.net.set(3, Fault::Down);
    let (status, why) = group.push(1, content(3)).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(why.contains("1 of 2 servers") && why.contains("server 3 is down"), "{why}");
    let digest = digest(&content(3));
    assert_eq!(group.pull(1, &digest).await.0, StatusCode::NOT_FOUND, "it was not acknowledged");
    group.net.set(2, None);
    assert_eq!(group.push(1, content(3)).await.0, StatusCode::CREATED);
    // Who does not count is not counted.
    group.net.set(3, None);
    group.net.learners.lock().unwrap().insert(3);
    group.net.set(2, Fault::Down);
    let (status, why) = group.push(1, content(4)).await;
    assert!(status == StatusCode::SERVICE_UNAVAILABLE && !why.contains("server 3"), "{why}");
    assert_eq!(group.push(3, content(4)).await.0, StatusCode::SERVICE_UNAVAILABLE);
}

/// Two join the one that there is: what is pushed meanwhile is on a majority of the three before it is acknowledged.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_pushed_while_others_begin_to_count_is_held_by_a_majority_of_them() {
    let group = Group::new();
    group.net.learners.lock().unwrap().extend([2, 3]);
    group.net.set(3, Fault::Down);
    let (status, why) = group.push(1, content(31)).await;
    assert_eq!(status, StatusCode::CREATED, "{why}");
    assert_eq!(group.holders(&digest(&content(31))), [1]);
    // It was asked of the one, and is to be named when two more are to count.
    for (seed, name) in [(32, None), (33, Some("/v2/app/manifests/v1"))] {
        *group.net.next.lock().unwrap() = None;
        let net = group.net.clone();
        group.catalog.recount(move || *net.next.lock().unwrap() = Some([1, 2, 3].into()));
        let pushed = match name {
            None => {
                let (status, why) = group.push(1, content(seed)).await;
                assert_eq!(status, StatusCode::CREATED, "{why}");
                digest(&content(seed))
            }
            Some(path) => {
                let manifest =
                    json!({"schemaVersion": 2, "config": {"digest": digest(&content(31))}, "layers": []}).to_string();
                let (status, _) = group.server(1).send(Method::PUT, path, manifest.clone().into_bytes()).await;
                assert_eq!(status, StatusCode::CREATED);
                digest(manifest.as_bytes())
            }
        };
        assert_eq!(group.holders(&pushed), [1, 2]);
    }
    // Nor without them.
    group.net.set(2, Fault::Down);
    let (status, why) = group.push(1, content(34)).await;
    assert!(status == StatusCode::SERVICE_UNAVAILABLE && why.contains("1 of 2 servers"), "{status} {why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_of_one_is_no_reason_and_of_a_majority_is_said() {
    let group = Group::with(|member, config| {
        if member == 3 {
            config.free_min = u64::MAX / 2;
        }
    });
    let (status, why) = group.push(1, content(5)).await;
    assert_eq!(status, StatusCode::CREATED, "{why}");
    group.net.set(2, Fault::Down);
    let (status, why) = group.push(1, content(6)).await;
    assert_eq!(status, StatusCode::INSUFFICIENT_STORAGE);
    assert!(why.contains("server 3: the disk of this server is full"), "{why}");
    let (status, why) = group.pull(3, &digest(&content(5))).await;
    assert_eq!(status, StatusCode::INSUFFICIENT_STORAGE, "{why:?}");
    assert!(!group.server(3).has_halves());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_what_its_digest_says_is_neither_served_nor_kept() {
    let group = Group::new();
    let blob = group.push_without_third(7).await;
    for fault in [Fault::Flipped, Fault::Longer, Fault::Cut] {
        group.net.set(1, fault);
        group.net.set(2, fault);
        let (status, why) = group.pull(3, &blob).await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{fault:?}: {why:?}");
        assert!(group.holders(&blob) == [1, 2] && !group.server(3).has_halves(), "{fault:?}");
    }
    // One that tells the truth is enough.
    group.net.set(2, None);
    let (status, pulled) = group.pull(3, &blob).await;
    assert!(status == StatusCode::OK && pulled == content(7), "{status}");
    // Nor does a liar's word make a majority.
    group.net.set(1, Fault::Flipped);
    group.net.set(2, Fault::Down);
    assert_eq!(group.push(1, content(8)).await.0, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(group.holders(&digest(&content(8))), [1]);
    // Who needs everything is told when it is not to be had, and has it when it can be had.
    group.net.set(1, None);
    group.net.set(2, None);
    let blob = group.push_without_third(13).await;
    group.net.set(1, Fault::Down);
    group.net.set(2, Fault::Down);
    let why = group.server(3).registry.complete().await.unwrap_err();
    assert!(why.contains("server 2 is down"), "{why}");
    group.net.set(2, None);
    assert_eq!(group.server(3).registry.complete().await, Ok(()));
    assert_eq!(group.holders(&blob), [1, 2, 3]);
}

/// What a disk has spoiled at one server comes from another, and nobody takes it for held.
#[tokio::test]
async fn what_is_damaged_at_one_comes_from_another() {
    let group = Group::new();
    let (status, why) = group.push(1, content(21)).await;
    assert_eq!(status, StatusCode::CREATED, "{why}");
    let blob = digest(&content(21));
    until("all have it", || group.holders(&blob) == [1, 2, 3]).await;
    let damage = |member: u64| {
        let mut bytes = std::fs::read(group.server(member).path(&blob)).unwrap();
        bytes[LENGTH / 2] ^= 1;
        std::fs::write(group.server(member).path(&blob), bytes).unwrap();
    };
    let is_whole =
        |member: u64| std::fs::read(group.server(member).path(&blob)).is_ok_and(|bytes| bytes == content(21));
    // Asked for at the one, and asked by the other.
    damage(1);
    let path = format!("/v2/app/blobs/{blob}");
    assert_eq!(group.server(1).send(Method::HEAD, &path, Vec::new()).await.0, StatusCode::OK);
    assert!(is_whole(1));
    for method in [Method::HEAD, Method::GET] {
        std::fs::File::options().write(true).open(group.server(1).path(&blob)).unwrap().set_len(10).unwrap();
        assert_eq!(group.server(1).send(method, &path, Vec::new()).await.0, StatusCode::OK);
        assert!(is_whole(1));
    }
    damage(2);
    damage(3);
    let (status, why) = group.push(1, content(21)).await;
    assert_eq!(status, StatusCode::CREATED, "{why}");
    until("the others have it again", || is_whole(2) && is_whole(3)).await;
}

#[tokio::test]
async fn what_a_disk_has_changed_is_found_before_anybody_asks_and_told() {
    let group = Group::new();
    let (status, why) = group.push(1, content(22)).await;
    assert_eq!(status, StatusCode::CREATED, "{why}");
    let blob = digest(&content(22));
    until("all have it", || group.holders(&blob) == [1, 2, 3]).await;
    let first = group.server(1);
    // It takes its time.
    let begun = Instant::now();
    let round = first.registry.scrub_once(4 * LENGTH as u64).await.unwrap();
    assert_eq!((round.read, round.damaged, first.registry.alarms()), (1, 0, Vec::new()));
    assert!(begun.elapsed() >= Duration::from_millis(250), "{:?}", begun.elapsed());
    let damage = || {
        let mut bytes = std::fs::read(first.path(&blob)).unwrap();
        bytes[LENGTH / 2] ^= 1;
        std::fs::write(first.path(&blob), bytes).unwrap();
    };
    damage();
    assert_eq!(first.registry.scrub_once(u64::MAX).await.unwrap().damaged, 1);
    assert!(std::fs::read(first.path(&blob)).unwrap() == content(22), "it came from another server");
    let alarms = first.registry.alarms();
    assert!(alarms.len() == 1 && alarms[0].contains("damaged 1 contents"), "{alarms:?}");
    // Nobody has it who can be asked: whose image that is is told until it is here again.
    for other in [2, 3] {
        group.net.set(other, Fault::Down);
    }
    damage();
    assert_eq!(first.registry.scrub_once(u64::MAX).await.unwrap().damaged, 1);
    let alarms = first.registry.alarms();
    assert!(alarms.len() == 2 && alarms[1].contains("push them again (app)"), "{alarms:?}");
    group.net.set(2, None);
    assert_eq!(first.registry.complete().await, Ok(()));
    assert_eq!(first.registry.alarms().len(), 1);
}

/// Has the disk of a server not give what is at `path`, until what this gives is called: the system answers whoever reads the
/// beginning of a process's memory as it answers for a bad sector.
fn unreadable(path: &Path) -> impl FnOnce() + use<> {
    let (path, kept) = (path.to_owned(), path.with_extension("kept"));
    std::fs::rename(&path, &kept).unwrap();
    std::os::unix::fs::symlink("/proc/self/mem", &path).unwrap();
    let error = std::fs::read(&path).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()), "{error}");
    move || std::fs::rename(&kept, &path).unwrap()
}

#[tokio::test]
async fn what_a_disk_does_not_give_for_a_while_is_not_damaged_and_keeps_no_round_from_going_on() {
    let group = Group::new();
    for seed in [23, 24, 25] {
        let (status, why) = group.push(1, content(seed)).await;
        assert_eq!(status, StatusCode::CREATED, "{why}");
    }
    let first = group.server(1);
    let readable = unreadable(&first.path(&digest(&content(24))));
    group.net.set(2, Fault::Down);
    group.net.set(3, Fault::Down);
    let round = first.registry.scrub_once(u64::MAX).await.unwrap();
    assert_eq!((round.read, round.damaged, round.unread), (2, 0, 1));
    assert!(!first.dir.path().join("damaged").exists());
    let alarms = first.registry.alarms();
    assert!(alarms.len() == 1 && alarms[0].contains("did not give 1 contents"), "{alarms:?}");
    // Nobody is told that it is not there, but who would push it.
    let path = format!("/v2/app/blobs/{}", digest(&content(24)));
    assert_eq!(first.send(Method::HEAD, &path, Vec::new()).await.0, StatusCode::SERVICE_UNAVAILABLE);
    readable();
    let round = first.registry.scrub_once(u64::MAX).await.unwrap();
    assert_eq!((round.read, round.damaged, round.unread), (3, 0, 0));
    assert!(std::fs::read(first.path(&digest(&content(24)))).unwrap() == content(24));
    assert_eq!(first.registry.alarms(), Vec::<String>::new());
}

#[tokio::test]
async fn what_a_disk_does_not_give_any_more_comes_from_another_server() {
    let group = Group::new();
    let (status, why) = group.push(1, content(26)).await;
    assert_eq!(status, StatusCode::CREATED, "{why}");
    let blob = digest(&content(26));
    until("all have it", || group.holders(&blob) == [1, 2, 3]).await;
    let first = group.server(1);
    let is_whole = |member: u64| std::fs::read(group.server(member).path(&blob)).is_ok_and(|is| is == content(26));
    // Read by the round, asked for by a client, pulled, and asked by another server to hold it.
    drop(unreadable(&first.path(&blob)));
    assert_eq!(first.registry.scrub_once(u64::MAX).await.unwrap().unread, 1);
    assert!(is_whole(1));
    drop(unreadable(&first.path(&blob)));
    let path = format!("/v2/app/blobs/{blob}");
    assert_eq!(first.send(Method::HEAD, &path, Vec::new()).await.0, StatusCode::OK);
    assert!(is_whole(1));
    drop(unreadable(&first.path(&blob)));
    let request = Request::get(&path).body(Body::empty()).unwrap();
    let answer = first.router.clone().oneshot(request).await.unwrap();
    assert!(answer.into_body().collect().await.is_err(), "it breaks off");
    until("it came", || is_whole(1)).await;
    for member in [2, 3] {
        drop(unreadable(&group.server(member).path(&blob)));
    }
    let (status, why) = group.push(1, content(26)).await;
    assert_eq!(status, StatusCode::CREATED, "{why}");
    until("the others have it again", || is_whole(2) && is_whole(3)).await;
    assert!((1..=3).all(|member| !group.server(member).dir.path().join("damaged").exists()));
}

/// Ten minutes pass.
async fn later() {
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(601)).await;
    tokio::time::resume();
}

/// A bad sector near the end of what is large costs a minute each time that it is read, wherever it is asked for.
#[tokio::test]
async fn what_a_disk_did_not_give_is_not_read_for_others_until_it_is_asked_again() {
    let group = Group::new();
    let (status, why) = group.push(1, content(32)).await;
    assert_eq!(status, StatusCode::CREATED, "{why}");
    let blob = digest(&content(32));
    until("all have it", || group.holders(&blob) == [1, 2, 3]).await;
    let [first, second] = [1, 2].map(|member| group.server(member));
    group.net.set(3, Some(Fault::Down));
    let readable = unreadable(&second.path(&blob));
    group.net.set(1, Some(Fault::Down));
    assert_eq!(second.registry.scrub_once(u64::MAX).await.unwrap().unread, 1);
    group.net.set(1, None);
    std::fs::remove_file(first.path(&blob)).unwrap();
    readable();
    let why = first.registry.complete().await.unwrap_err();
    assert!(why.contains("it answers 503"), "{why}");
    later().await;
    assert_eq!(first.registry.complete().await, Ok(()));
}

#[tokio::test]
async fn who_cannot_read_a_content_lacks_it_until_another_one_gives_it() {
    let group = Group::new();
    let (status, why) = group.push(1, content(31)).await;
    assert_eq!(status, StatusCode::CREATED, "{why}");
    let blob = digest(&content(31));
    until("all have it", || group.holders(&blob) == [1, 2, 3]).await;
    let first = group.server(1);
    let is_whole = || std::fs::read(first.path(&blob)).is_ok_and(|is| is == content(31));
    let others = |fault: Option<Fault>| [2, 3].map(|other| group.net.set(other, fault));
    let readable = unreadable(&first.path(&blob));
    others(Some(Fault::Down));
    assert_eq!(first.registry.scrub_once(u64::MAX).await.unwrap().unread, 1);
    let why = first.registry.complete().await.unwrap_err();
    assert!(why.contains("is down"), "{why}");
    // The disk gives it after all, which is seen when it is asked again: not whenever somebody looks what is missing.
    readable();
    for _ in 0..3 {
        assert!(first.registry.complete().await.is_err());
        let path = format!("/v2/app/blobs/{blob}");
        assert_eq!(first.send(Method::HEAD, &path, Vec::new()).await.0, StatusCode::SERVICE_UNAVAILABLE);
    }
    assert_eq!(first.registry.alarms().len(), 1);
    later().await;
    assert_eq!(first.registry.complete().await, Ok(()));
    assert_eq!(first.registry.alarms(), Vec::<String>::new());
    drop(unreadable(&first.path(&blob)));
    assert_eq!(first.registry.scrub_once(u64::MAX).await.unwrap().unread, 1);
    others(None);
    assert_eq!(first.registry.complete().await, Ok(()));
    assert!(is_whole());
    // What did not come by a round comes by itself, long before the next one.
    others(Some(Fault::Down));
    drop(unreadable(&first.path(&blob)));
    assert_eq!(first.registry.scrub_once(u64::MAX).await.unwrap().unread, 1);
    others(None);
    let stop = CancellationToken::new();
    let caught_up = tokio::spawn(first.registry.clone().catch_up(stop.clone()));
    until("it came", is_whole).await;
    stop.cancel();
    caught_up.await.unwrap();
}

#[tokio::test]
async fn what_is_damaged_lies_aside_until_a_whole_one_is_here() {
    let group = Group::new();
    let (status, why) = group.push(1, content(28)).await;
    assert_eq!(status, StatusCode::CREATED, "{why}");
    let blob = digest(&content(28));
    let manifest = json!({"schemaVersion": 2, "config": {"digest": blob}, "layers": []}).to_string();
    let first = group.server(1);
    assert_eq!(first.send(Method::PUT, "/v2/app/manifests/v1", manifest.into_bytes()).await.0, StatusCode::CREATED);
    until("all have it", || group.holders(&blob) == [1, 2, 3]).await;
    for other in [2, 3] {
        group.net.set(other, Fault::Down);
    }
    let mut bytes = content(28);
    bytes[LENGTH / 2] ^= 1;
    std::fs::write(first.path(&blob), &bytes).unwrap();
    assert_eq!(first.registry.scrub_once(u64::MAX).await.unwrap().damaged, 1);
    let aside = first.dir.path().join("damaged").join(blob.strip_prefix("sha256:").unwrap());
    first.registry.collect_garbage(Duration::ZERO).await.unwrap();
    assert!(std::fs::read(&aside).unwrap() == bytes, "nobody else may have more of it");
    group.net.set(2, None);
    assert_eq!(first.registry.complete().await, Ok(()));
    assert!(!aside.exists() && std::fs::read(first.path(&blob)).unwrap() == content(28));
}

#[tokio::test]
async fn one_content_that_cannot_be_had_keeps_no_other_away() {
    let group = Group::new();
    let blobs = [group.push_without_third(29).await, group.push_without_third(30).await];
    let third = group.server(3);
    // The directory that it would be in is none.
    let at = third.path(&blobs[0]);
    std::fs::write(at.parent().unwrap(), "").unwrap();
    let why = third.registry.complete().await.unwrap_err();
    assert!(why.contains("cannot use its disk"), "{why}");
    assert_eq!(group.holders(&blobs[1]), [1, 2, 3]);
}

/// A push may wait for minutes for another server to have what is large; who stops does not.
#[tokio::test(flavor = "multi_thread")]
async fn who_stops_does_not_wait_for_what_it_has_asked_of_others() {
    let group = Group::new();
    group.net.set(2, Fault::Mute);
    group.net.set(3, Fault::Mute);
    let ended = async {
        until("both are asked", || group.net.unanswered.load(Ordering::Relaxed) == 2).await;
        group.server(1).registry.shutdown().await;
    };
    let both = futures::future::join(group.push(1, content(14)), ended);
    let ((status, why), ()) = tokio::time::timeout(LIMIT / 2, both).await.expect("the push ends");
    assert!(status == StatusCode::SERVICE_UNAVAILABLE && why.contains("is stopping"), "{status} {why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_reads_is_not_collected() {
    let group = Group::new();
    let (status, why) = group.push(1, content(15)).await;
    assert_eq!(status, StatusCode::CREATED, "{why}");
    let registry = &group.server(1).registry;
    let kept = [registry.keep_contents().await.unwrap(), registry.keep_contents().await.unwrap()];
    for kept in kept {
        assert_eq!(registry.collect_garbage(Duration::ZERO).await.unwrap().blobs, 0);
        drop(kept);
    }
    assert_eq!(registry.collect_garbage(Duration::ZERO).await.unwrap().blobs, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_outlives_who_wanted_it_and_leaves_nothing_when_it_is_ended() {
    let group = Group::new();
    let blob = group.push_without_third(9).await;
    group.net.set(1, Fault::Stalled);
    group.net.set(2, Fault::Stalled);
    let mut pulls: Vec<_> = (0..3).map(|_| Box::pin(group.pull(3, &blob))).collect();
    for pull in &mut pulls {
        assert!(tokio::time::timeout(Duration::from_millis(20), pull).await.is_err());
    }
    let third = group.server(3);
    until("a half of it is there", || third.has_halves()).await;
    drop(pulls);
    let halves = std::fs::read_dir(third.dir.path().join("uploads")).unwrap().count();
    assert_eq!(halves, 1, "one fetch serves all, and goes on");
    tokio::time::timeout(LIMIT, third.registry.shutdown()).await.expect("it ends");
    // What was being written when it was ended goes when that is done.
    until("nothing is left", || !third.has_halves()).await;
    assert_eq!(group.holders(&blob), [1, 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_named_comes_by_itself_and_what_was_collected_does_not_come_back() {
    let group = Group::new();
    let (kept, loose) = (group.push_without_third(10).await, group.push_without_third(11).await);
    let manifest = json!({"schemaVersion": 2, "config": {"digest": kept}, "layers": []}).to_string();
    let (status, _) = group.server(1).send(Method::PUT, "/v2/app/manifests/v1", manifest.into_bytes()).await;
    assert_eq!(status, StatusCode::CREATED);
    // One collects, and so it is named by nobody.
    assert_eq!(group.server(1).registry.collect_garbage(Duration::ZERO).await.unwrap().blobs, 1);
    let stop = CancellationToken::new();
    let catching_up: Vec<_> =
        group.servers.iter().map(|server| tokio::spawn(server.registry.clone().catch_up(stop.clone()))).collect();
    until("the third has what is named", || group.holders(&kept) == [1, 2, 3]).await;
    assert_eq!(group.holders(&loose), [2], "nobody fetches what nobody names");
    assert_eq!(group.server(2).registry.collect_garbage(Duration::ZERO).await.unwrap().blobs, 1);
    assert_eq!(group.server(3).registry.complete().await, Ok(()));
    // And what is named later comes without being asked for.
    let later = group.push_without_third(12).await;
    until("the third has it, too", || group.holders(&later) == [1, 2, 3]).await;
    assert!(group.holders(&loose).is_empty());
    stop.cancel();
    for task in catching_up {
        task.await.unwrap();
    }
}
