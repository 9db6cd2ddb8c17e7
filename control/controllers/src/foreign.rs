//! Of what other servers answer a bounded part is held, for a bounded time: API servers behind APIServices, and nodes, answer
//! whatever they like, and what reads it has the memory and the few workers of all controllers.
//!
//! One gate for every request of the controllers. What this cluster's own servers keep passes as it is: it is bounded where it is
//! written. Who serves any other group a path does not say, so objects of custom resources go through the gate, too.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use coracle_api::kinds::is_local_version;
use coracle_tolerant::nullable;
use http::{Method, Request, Response};
use http_body::Frame;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ListMeta;
use kube::client::Body;
use kube::runtime::watcher;
use parking_lot::Mutex;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep};

use crate::client::{self, Client};

/// Bytes of an answer; one that has more is an error.
const ANSWER_BYTES_MAX: usize = 16 << 20;
/// Bytes of one that says why not.
const REFUSAL_BYTES_MAX: usize = 64 << 10;
/// Bytes of a line of an answer that goes on, as a watch does: an object has fewer.
const LINE_BYTES_MAX: usize = 4 << 20;
/// How long a group may take for an answer, to its last byte. What is held up is one of few workers.
const PATIENCE: Duration = if cfg!(test) { Duration::from_secs(2) } else { Duration::from_secs(10) };
/// The same for a write, in which others may have their say (a webhook's time is 30 s).
const WRITE_PATIENCE: Duration = if cfg!(test) { Duration::from_secs(4) } else { Duration::from_secs(40) };
/// A group that did not answer in time is not asked again for so long: who asks is told so at once.
const SILENT_FOR: Duration = Duration::from_secs(if cfg!(test) { 3 } else { 15 });
/// Requests to one group under way at a time, watches apart: fewer than workers has any controller whose workers ask groups.
pub(crate) const TURNS: usize = 3;
/// How long a turn is waited for.
const TURN_WITHIN: Duration = if cfg!(test) { Duration::from_millis(100) } else { Duration::from_secs(1) };
/// Groups that are remembered before those that nobody asks are forgotten.
const GROUPS_MAX: usize = 1024;

/// Objects of which metadata alone is asked for, and whole ones, that are asked for at a time: what a page has is held.
pub(crate) const PAGE: usize = 500;
pub(crate) const WHOLE_PAGE: usize = 50;
/// So many are no answer that is too long, whatever they have in them: an object has 1.5 MiB at most.
const SMALL_PAGE: usize = 10;
/// Pages of a list of a group: there may always be one more.
const PAGES_MAX: usize = if cfg!(test) { 20 } else { 1000 };

/// Marks a request whose answer is lines without an end, and is no watch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lines;

/// Why an answer was not heard.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum Unheard {
    #[error("the answer has more than {0} bytes")]
    TooLong(usize),
    #[error("a line of the answer has more than {LINE_BYTES_MAX} bytes")]
    LineTooLong,
    #[error("no answer of {0} within {time} s", time = .1.as_secs())]
    Late(Arc<str>, Duration),
    #[error("{0} did not answer, and is not asked again before {time} s have passed", time = SILENT_FOR.as_secs())]
    Silent(Arc<str>),
    #[error("{TURNS} requests to {0} are under way already")]
    Busy(Arc<str>),
    #[error("the list has more than {PAGES_MAX} pages")]
    Endless,
}

impl From<Unheard> for kube::Error {
    fn from(why: Unheard) -> Self {
        Self::Service(why.into())
    }
}

/// Whether there was more of an answer than is held.
pub(crate) fn is_too_long(error: &kube::Error) -> bool {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = next {
        if let Some(why) = error.downcast_ref::<Unheard>() {
            return matches!(why, Unheard::TooLong(ANSWER_BYTES_MAX));
        }
        next = error.source();
    }
    false
}

/// How a kind is watched whose first list is not streamed.
pub(crate) fn in_pages() -> watcher::Config {
    watcher::Config::default().page_size(SMALL_PAGE as u32)
}

/// A list that is read page by page.
pub(crate) struct Pages<'a> {
    client: &'a Client,
    path: String,
    asks_whole: bool,
    /// Objects of the next page.
    pub limit: usize,
    /// Where it begins, as a part of a query; nothing behind the last.
    next: Option<String>,
    /// Pages that may come yet.
    left: usize,
}

/// A page of a list.
#[derive(Deserialize)]
#[serde(bound = "T: Deserialize<'de>")]
pub(crate) struct Page<T> {
    #[serde(default)]
    pub metadata: ListMeta,
    /// Go writes null for none.
    #[serde(default, deserialize_with = "nullable")]
    pub items: Vec<T>,
}

impl<'a> Pages<'a> {
    /// Of objects of which metadata alone is asked for.
    pub(crate) fn of_metadata(client: &'a Client, path: String) -> Self {
        // What is kept here has an end.
        let left = if Server::of(&path) == Server::Own { usize::MAX } else { PAGES_MAX };
        Self { client, path, asks_whole: false, limit: PAGE, next: Some(String::new()), left }
    }

    /// Of whole objects.
    pub(crate) fn of_whole(client: &'a Client, path: String) -> Self {
        Self { asks_whole: true, limit: WHOLE_PAGE, ..Self::of_metadata(client, path) }
    }

    /// The next page; there is a first one, if only an empty one.
    pub(crate) async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<Page<T>>, kube::Error> {
        let Some(after) = &self.next else { return Ok(None) };
        self.left = self.left.checked_sub(1).ok_or(Unheard::Endless)?;
        let page: Page<T> = loop {
            let path = format!("{}?limit={}{after}", self.path, self.limit);
            let read = match self.asks_whole {
                true => self.client.get(&path).await,
                false => self.client.list_meta(&path).await,
            };
            match read {
                Err(error) if self.limit > SMALL_PAGE && is_too_long(&error) => self.limit = SMALL_PAGE,
                read => break read?,
            }
        };
        self.next = client::page_after(&page.metadata);
        Ok(Some(page))
    }
}

/// The same client behind the gate.
pub(crate) fn bounded(client: kube::Client) -> kube::Client {
    let groups = Arc::<Groups>::default();
    let service = tower::service_fn(move |request: Request<Body>| {
        let (client, groups) = (client.clone(), groups.clone());
        async move { groups.ask(&client, request).await }
    });
    kube::Client::new(service, "default")
}

/// Who answers at a path.
#[derive(Debug, PartialEq, Eq)]
enum Server<'a> {
    Own,
    Node,
    /// Whoever serves a group.
    Group(&'a str),
}

impl Server<'_> {
    fn of(path: &str) -> Server<'_> {
        let parts: Vec<&str> = path.trim_start_matches('/').splitn(6, '/').collect();
        match parts.as_slice() {
            ["apis", group, version, ..] if is_local_version(group, version) => Server::Own,
            ["apis", group, ..] => Server::Group(group),
            ["api", _, "nodes", _, "proxy", ..] => Server::Node,
            _ => Server::Own,
        }
    }
}

/// Whether the answer is lines, each of which is read for itself.
fn has_lines(request: &Request<Body>) -> bool {
    let is_watch = |query: &str| query.split('&').any(|pair| matches!(pair, "watch=true" | "watch=1"));
    request.extensions().get::<Lines>().is_some() || request.uri().query().is_some_and(is_watch)
}

/// Groups that are asked, or do not answer.
#[derive(Default)]
struct Groups {
    known: Mutex<HashMap<Arc<str>, Arc<Group>>>,
}

struct Group {
    name: Arc<str>,
    turns: Arc<Semaphore>,
    /// When somebody waited in vain last.
    silent_at: Mutex<Option<Instant>>,
}

impl Group {
    fn is_silent(&self) -> bool {
        self.silent_at.lock().is_some_and(|at| at.elapsed() < SILENT_FOR)
    }
}

impl Groups {
    fn group(&self, name: &str) -> Arc<Group> {
        let mut known = self.known.lock();
        if let Some(group) = known.get(name) {
            return group.clone();
        }
        if known.len() >= GROUPS_MAX {
            known.retain(|_, group| Arc::strong_count(group) > 1 || group.is_silent());
        }
        let turns = Arc::new(Semaphore::new(TURNS));
        let group = Arc::new(Group { name: name.into(), turns, silent_at: Mutex::default() });
        known.insert(group.name.clone(), group.clone());
        group
    }

    /// A turn to ask a group.
    async fn turn(&self, name: &str, patience: Duration) -> Result<Turn, Unheard> {
        let group = self.group(name);
        if group.is_silent() {
            return Err(Unheard::Silent(group.name.clone()));
        }
        let place = tokio::time::timeout(TURN_WITHIN, group.turns.clone().acquire_owned()).await;
        let Ok(Ok(place)) = place else { return Err(Unheard::Busy(group.name.clone())) };
        // As somebody else may have found meanwhile.
        if group.is_silent() {
            return Err(Unheard::Silent(group.name.clone()));
        }
        Ok(Turn { group, begun: Instant::now(), patience, is_over: false, _place: place })
    }

    async fn ask(&self, client: &kube::Client, request: Request<Body>) -> Result<Response<Answer>, kube::Error> {
        let has_lines = has_lines(&request);
        let patience = if request.method() == Method::GET { PATIENCE } else { WRITE_PATIENCE };
        let server = Server::of(request.uri().path());
        let (is_own, mut turn) = match server {
            Server::Own => (true, None),
            // A watch holds no worker.
            Server::Node | Server::Group(_) if has_lines => (false, None),
            Server::Node => (false, None),
            Server::Group(name) => (false, Some(self.turn(name, patience).await?)),
        };
        let response = match &mut turn {
            None => client.send(request).await?,
            Some(turn) => match tokio::time::timeout_at(turn.until(), client.send(request)).await {
                Ok(Ok(response)) => response,
                Ok(Err(error)) => {
                    turn.is_over = true;
                    return Err(error);
                }
                Err(_) => return Err(turn.late().into()),
            },
        };
        let bound = match response.status().is_success() {
            _ if is_own => Bound::None,
            true if has_lines => Bound::Line(0),
            true => Bound::Whole { taken: 0, max: ANSWER_BYTES_MAX },
            false => Bound::Whole { taken: 0, max: REFUSAL_BYTES_MAX },
        };
        let turn = turn.map(|turn| (Box::pin(tokio::time::sleep_until(turn.until())), turn));
        Ok(response.map(|body| Answer { body, bound, turn }))
    }
}

/// A request to a group that is under way. One that is given up before it is over, and not at once, was waited for in vain.
struct Turn {
    group: Arc<Group>,
    begun: Instant,
    patience: Duration,
    is_over: bool,
    _place: OwnedSemaphorePermit,
}

impl Turn {
    fn until(&self) -> Instant {
        self.begun + self.patience
    }

    fn late(&self) -> Unheard {
        Unheard::Late(self.group.name.clone(), self.patience)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if !self.is_over && self.begun.elapsed() >= self.patience / 2 {
            *self.group.silent_at.lock() = Some(Instant::now());
        }
    }
}

/// What has come so far.
#[derive(Debug)]
enum Bound {
    None,
    Whole { taken: usize, max: usize },
    Line(usize),
}

impl Bound {
    fn take(&mut self, data: &[u8]) -> Result<(), Unheard> {
        match self {
            Bound::None => Ok(()),
            Bound::Whole { taken, max } => {
                *taken = taken.saturating_add(data.len());
                (*taken <= *max).then_some(()).ok_or(Unheard::TooLong(*max))
            }
            Bound::Line(taken) => {
                for (at, piece) in data.split(|byte| *byte == b'\n').enumerate() {
                    *taken = if at == 0 { *taken + piece.len() } else { piece.len() };
                    if *taken > LINE_BYTES_MAX {
                        return Err(Unheard::LineTooLong);
                    }
                }
                Ok(())
            }
        }
    }
}

/// The body of an answer.
struct Answer {
    body: Body,
    bound: Bound,
    turn: Option<(Pin<Box<Sleep>>, Turn)>,
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = tower::BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, tower::BoxError>>> {
        let this = &mut *self;
        if let Some((late, turn)) = &mut this.turn
            && late.as_mut().poll(context).is_ready()
        {
            return Poll::Ready(Some(Err(turn.late().into())));
        }
        let frame = ready!(Pin::new(&mut this.body).poll_frame(context));
        let frame = frame.map(|frame| {
            let frame = frame.map_err(tower::BoxError::from)?;
            frame.data_ref().map_or(Ok(()), |data| this.bound.take(data))?;
            Ok(frame)
        });
        if !matches!(frame, Some(Ok(_)))
            && let Some((_, mut turn)) = this.turn.take()
        {
            turn.is_over = true;
        }
        Poll::Ready(frame)
    }
}

#[cfg(test)]
mod tests {
    use coracle_scripted::{Answer, Scripted};
    use serde_json::{Value, json};

    use super::*;

    async fn get(client: &kube::Client, path: &str) -> Result<Value, kube::Error> {
        client.request(Request::get(path).body(Vec::new()).unwrap()).await
    }

    fn why(answer: Result<Value, kube::Error>) -> String {
        crate::error::chain(&answer.expect_err("it is not heard"))
    }

    #[test]
    fn a_path_says_who_may_answer() {
        for (path, server) in [
            ("/api/v1/namespaces/n/pods/p", Server::Own),
            ("/api/v1/namespaces/n/pods/proxy", Server::Own),
            ("/apis", Server::Own),
            ("/apis/apps/v1/namespaces/n/deployments", Server::Own),
            ("/apis/apps/v7/namespaces/n/deployments", Server::Group("apps")),
            ("/apis/custom.metrics.k8s.io", Server::Group("custom.metrics.k8s.io")),
            ("/apis/metrics.k8s.io/v1beta1/pods", Server::Group("metrics.k8s.io")),
            ("/api/v1/nodes/n/proxy/coracle/v1/demand", Server::Node),
            ("/api/v1/nodes/proxy", Server::Own),
        ] {
            assert_eq!(Server::of(path), server, "{path}");
        }
    }

    #[test]
    fn lines_are_bounded_each_for_itself() {
        let mut bound = Bound::Line(0);
        let half = vec![b'x'; LINE_BYTES_MAX / 2];
        for _ in 0..4 {
            bound.take(&half).unwrap();
            bound.take(b"\n").unwrap();
        }
        let two = [&half[..], b"\n", &half].concat();
        bound.take(&two).unwrap();
        bound.take(&half).unwrap();
        assert!(matches!(bound.take(b"xx\n"), Err(Unheard::LineTooLong)));
    }

    #[tokio::test]
    async fn whole_answers_of_others_are_bounded_and_our_own_are_not() {
        let api = Scripted::new();
        let long = json!({"data": {"long": "x".repeat(ANSWER_BYTES_MAX)}});
        api.put("/apis/other.x/v1/namespaces/n/things/long", long.clone());
        api.put("/api/v1/namespaces/n/configmaps/long", long);
        let client = bounded(api.client());
        let answer = get(&client, "/apis/other.x/v1/namespaces/n/things/long").await;
        assert!(is_too_long(answer.as_ref().unwrap_err()), "{answer:?}");
        assert!(get(&client, "/api/v1/namespaces/n/configmaps/long").await.is_ok());
    }

    #[tokio::test]
    async fn a_stream_of_another_has_no_end_and_its_lines_have() {
        let api = Scripted::new();
        let path = "/api/v1/nodes/n/proxy/coracle/v1/demand";
        api.stream(path);
        let client = bounded(api.client());
        let request = Request::get(path).extension(Lines).body(Vec::new()).unwrap();
        let mut lines = Box::pin(client.request_stream(request).await.unwrap());
        let mut line = Vec::new();
        for _ in 0..5 {
            api.say(path, &json!("x".repeat(LINE_BYTES_MAX - 2)));
            line.clear();
            futures::AsyncBufReadExt::read_until(&mut lines, b'\n', &mut line).await.unwrap();
            assert_eq!(line.len(), LINE_BYTES_MAX + 1);
        }
        api.say(path, &json!("x".repeat(LINE_BYTES_MAX - 1)));
        let read = futures::AsyncBufReadExt::read_until(&mut lines, b'\n', &mut line).await;
        assert!(read.unwrap_err().to_string().contains("a line"), "it is too long");
    }

    #[tokio::test]
    async fn a_group_that_does_not_answer_is_left_alone_for_a_while_and_others_are_not() {
        let api = Scripted::new();
        api.put("/apis/good.x/v1/namespaces/n/things/a", json!({}));
        api.put("/apis/slow.x/v1/namespaces/n/things/a", json!({}));
        api.next(Method::GET, "/slow.x/", Answer::Silence);
        let client = bounded(api.client());
        let slow = "/apis/slow.x/v1/namespaces/n/things/a";
        assert!(why(get(&client, slow).await).contains("no answer of slow.x within 2 s"));
        assert!(why(get(&client, slow).await).contains("slow.x did not answer"));
        assert_eq!(api.requests(&Method::GET, "/slow.x/").len(), 1, "it is not asked");
        get(&client, "/apis/good.x/v1/namespaces/n/things/a").await.unwrap();
        let until = async {
            while get(&client, slow).await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(10 * SILENT_FOR, until).await.expect("it is asked again");
    }

    async fn read(client: &Client, path: &str) -> Result<(usize, usize), kube::Error> {
        let (mut pages, mut objects) = (0, 0);
        let mut list = Pages::of_whole(client, path.to_owned());
        list.limit = 1;
        while let Some(page) = list.next::<Value>().await? {
            (pages, objects) = (pages + 1, objects + page.items.len());
        }
        Ok((pages, objects))
    }

    #[tokio::test]
    async fn a_list_of_another_has_so_many_pages_and_no_more() {
        let api = Scripted::new();
        for index in 0..=PAGES_MAX {
            api.put(&format!("/apis/other.x/v1/namespaces/n/things/{index:02}"), json!({}));
            api.put(&format!("/api/v1/namespaces/n/configmaps/{index:02}"), json!({}));
        }
        let client = Client(bounded(api.client()));
        let endless = read(&client, "/apis/other.x/v1/namespaces/n/things").await.expect_err("it is given up");
        assert!(crate::error::chain(&endless).contains("more than 20 pages"), "{endless}");
        let own = read(&client, "/api/v1/namespaces/n/configmaps").await.expect("it is ours");
        assert_eq!(own, (PAGES_MAX + 1, PAGES_MAX + 1));
    }

    #[tokio::test]
    async fn of_large_objects_fewer_are_asked_for_at_a_time() {
        let api = Scripted::new();
        let large = json!({"data": {"large": "x".repeat(1_400_000)}});
        (0..12).for_each(|index| api.put(&format!("/apis/other.x/v1/namespaces/n/things/{index:02}"), large.clone()));
        let client = Client(bounded(api.client()));
        let mut list = Pages::of_whole(&client, "/apis/other.x/v1/namespaces/n/things".to_owned());
        let mut objects = Vec::new();
        while let Some(page) = list.next::<Value>().await.expect("it is heard") {
            objects.push(page.items.len());
        }
        assert_eq!(objects, [SMALL_PAGE, 2]);
    }

    #[test]
    fn one_group_leaves_every_controller_a_worker() {
        use crate::queue::Reconciler;
        use crate::{autoscaler, disruption, garbage, namespace, quota};
        let workers = [
            autoscaler::Controller::WORKERS,
            disruption::Controller::WORKERS,
            garbage::Controller::WORKERS,
            namespace::Controller::WORKERS,
            quota::Controller::WORKERS,
        ];
        assert!(workers.into_iter().all(|workers| TURNS < workers), "{workers:?}");
    }

    #[tokio::test]
    async fn one_group_holds_few_up() {
        let api = Scripted::new();
        api.put("/apis/good.x/v1/namespaces/n/things/a", json!({}));
        api.always(Method::GET, "/slow.x/", Answer::Silence);
        let client = bounded(api.client());
        let asked = (0..TURNS + 3).map(|_| {
            let client = client.clone();
            tokio::spawn(async move { why(get(&client, "/apis/slow.x/v1/things").await) })
        });
        let asked: Vec<_> = asked.collect();
        let mut told = Vec::new();
        for one in asked {
            told.push(one.await.unwrap());
        }
        let count = |words: &str| told.iter().filter(|why| why.contains(words)).count();
        assert_eq!((count("no answer"), count("under way")), (TURNS, 3), "{told:?}");
        get(&client, "/apis/good.x/v1/namespaces/n/things/a").await.unwrap();
    }
}
