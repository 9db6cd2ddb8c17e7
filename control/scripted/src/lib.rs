//! An API server in memory that does as it is told: for tests of what stands on a `kube::Client` (controllers, scheduler).
//!
//! It keeps objects of any kind as JSON, with versions, uids, preconditions, finalizers and watches as Kubernetes has
//! them, and validates nothing. On top of that a test writes the script of what goes wrong: [`Scripted::next`] answers
//! one request otherwise (refused, or done with an answer that says nobody knows), [`Scripted::hold`] lets the watches of
//! a kind lag, [`Scripted::stream`] is what a node tells, [`Scripted::put`] stores what no real server would.
//!
//! Not for production: queues of watches have no bound but the test's own length.

mod store;
mod verbs;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use http::{Method, Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::{Notify, mpsc};

pub use store::Place;
use store::Store;

/// How long [`Scripted::until`] waits.
const PATIENCE: Duration = Duration::from_secs(30);

/// What one request is answered, instead of what it would be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Nothing is done; a Status of this code and reason.
    Refused(u16, &'static str),
    /// A node is not reached, as an API server says it.
    NotReached,
    /// It is done, and the answer is a 504: the client cannot know.
    DoneButUnknown,
    /// It is not done, and the answer is a 504: the client cannot know.
    LostButUnknown,
    /// No answer comes.
    Silence,
}

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Seen {
    /// `POST`.
    pub method: Method,
    /// Path without the query.
    pub path: String,
    /// The query, undecoded.
    pub query: String,
    /// Its body, or null.
    pub body: Value,
}

struct Line {
    method: Method,
    part: String,
    answer: Answer,
    /// Until it is taken back, and not once.
    always: bool,
}

type Meanwhile = Box<dyn FnOnce(&Scripted) + Send>;

#[derive(Default)]
struct Inner {
    store: Mutex<Store>,
    script: Mutex<Vec<Line>>,
    meanwhile: Mutex<Vec<(Method, String, Meanwhile)>>,
    seen: Mutex<Vec<Seen>>,
    /// What was said at a path, and who hears more.
    streams: Mutex<BTreeMap<String, Vec<mpsc::UnboundedSender<Bytes>>>>,
    changed: Notify,
}

/// The server. Clones share it.
#[derive(Clone, Default)]
pub struct Scripted {
    inner: Arc<Inner>,
}

impl Scripted {
    /// Without any object; it serves the kinds that tests need.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A client of it.
    #[must_use]
    pub fn client(&self) -> kube::Client {
        let this = self.clone();
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            let this = this.clone();
            async move { this.serve(request).await }
        });
        kube::Client::new(service, "default")
    }

    /// Stores an object under a path like `/api/v1/namespaces/n/pods/p`, whatever it is; watches hear of it. What
    /// metadata lacks of name, namespace, uid and times is added.
    pub fn put(&self, path: &str, object: Value) {
        let place = Place::parse(path).expect("the path of an object");
        self.inner.store.lock().force(&place, object);
        self.inner.changed.notify_waiters();
    }

    /// Changes an object that is there by a merge patch, past all checks.
    pub fn merge(&self, path: &str, patch: &Value) {
        let place = Place::parse(path).expect("the path of an object");
        let mut store = self.inner.store.lock();
        let mut object = store.get(&place).cloned().unwrap_or_else(|| panic!("{path} is not there"));
        verbs::merge(&mut object, patch, false);
        store.force(&place, object);
        drop(store);
        self.inner.changed.notify_waiters();
    }

    /// Removes an object at once, finalizers or not.
    pub fn remove(&self, path: &str) {
        self.inner.store.lock().remove(&Place::parse(path).expect("the path of an object"));
        self.inner.changed.notify_waiters();
    }

    /// The object, if it is there.
    #[must_use]
    pub fn get(&self, path: &str) -> Option<Value> {
        self.inner.store.lock().get(&Place::parse(path)?).cloned()
    }

    /// Objects of a collection: `/api/v1/pods` for all namespaces.
    #[must_use]
    pub fn list(&self, path: &str) -> Vec<Value> {
        let place = Place::parse(path).expect("the path of a collection");
        self.inner.store.lock().list(&place).into_iter().map(|(_, object)| object).collect()
    }

    /// Requests that changed something or tried to, in their order.
    #[must_use]
    pub fn writes(&self) -> Vec<Seen> {
        self.inner.seen.lock().iter().filter(|seen| seen.method != Method::GET).cloned().collect()
    }

    /// Requests of one method whose path contains `part`.
    #[must_use]
    pub fn requests(&self, method: &Method, part: &str) -> Vec<Seen> {
        let seen = self.inner.seen.lock();
        seen.iter().filter(|seen| seen.method == *method && seen.path.contains(part)).cloned().collect()
    }

    /// Answers the next request of this method whose path contains `part` otherwise. What was told first counts first.
    pub fn next(&self, method: Method, part: &str, answer: Answer) {
        self.inner.script.lock().push(Line { method, part: part.to_owned(), answer, always: false });
    }

    /// Answers all requests of this method whose path contains `part` otherwise, until [`Scripted::relent`].
    pub fn always(&self, method: Method, part: &str, answer: Answer) {
        self.inner.script.lock().push(Line { method, part: part.to_owned(), answer, always: true });
    }

    /// Takes back what was told by [`Scripted::always`].
    pub fn relent(&self) {
        self.inner.script.lock().retain(|line| !line.always);
    }

    /// Does something when the next request of this method comes whose path contains `part`, before it is answered: what
    /// somebody else is faster with.
    pub fn meanwhile(&self, method: Method, part: &str, act: impl FnOnce(&Self) + Send + 'static) {
        self.inner.meanwhile.lock().push((method, part.to_owned(), Box::new(act)));
    }

    /// Whether everything that was told by [`Scripted::next`] has happened.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.inner.script.lock().iter().all(|line| line.always)
    }

    /// Watches of this kind (its plural) hear of nothing until [`Scripted::release`].
    pub fn hold(&self, plural: &str) {
        self.inner.store.lock().hold(plural, true);
    }

    /// Watches of this kind hear of everything that they missed.
    pub fn release(&self, plural: &str) {
        self.inner.store.lock().hold(plural, false);
    }

    /// Ends all watches of this kind; clients take them up again.
    pub fn break_watches(&self, plural: &str) {
        self.inner.store.lock().break_watches(plural);
    }

    /// Answers at this path with a stream, in which [`Scripted::say`] says something.
    pub fn stream(&self, path: &str) {
        self.inner.streams.lock().entry(path.to_owned()).or_default();
    }

    /// Says a line to all who hear the stream of this path.
    pub fn say(&self, path: &str, line: &Value) {
        let line = Bytes::from(format!("{line}\n"));
        let mut streams = self.inner.streams.lock();
        streams.get_mut(path).expect("there is such a stream").retain(|hears| hears.send(line.clone()).is_ok());
    }

    /// How many hear the stream of this path.
    #[must_use]
    pub fn hear(&self, path: &str) -> usize {
        self.inner.streams.lock().get(path).map_or(0, |hear| hear.iter().filter(|hears| !hears.is_closed()).count())
    }

    /// Ends the streams of this path; clients take them up again.
    pub fn break_streams(&self, path: &str) {
        self.inner.streams.lock().entry(path.to_owned()).or_default().clear();
    }

    /// Waits until `test` gives something, looking after every change and request.
    ///
    /// # Panics
    ///
    /// When it takes too long, with what was written.
    pub async fn until<T>(&self, what: &str, test: impl Fn(&Self) -> Option<T>) -> T {
        let looking = async {
            loop {
                let changed = self.inner.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if let Some(found) = test(self) {
                    return found;
                }
                changed.await;
            }
        };
        match tokio::time::timeout(PATIENCE, looking).await {
            Ok(found) => found,
            Err(_) => {
                let writes: Vec<_> =
                    self.writes().iter().map(|seen| format!("{} {}", seen.method, seen.path)).collect();
                panic!("never came: {what}; written was: {writes:#?}")
            }
        }
    }

    async fn serve(
        &self,
        request: Request<kube::client::Body>,
    ) -> Result<Response<UnsyncBoxBody<Bytes, std::io::Error>>, std::io::Error> {
        let (parts, body) = request.into_parts();
        let bytes = body.collect().await.map_err(std::io::Error::other)?.to_bytes();
        let seen = Seen {
            method: parts.method.clone(),
            path: parts.uri.path().to_owned(),
            query: parts.uri.query().unwrap_or_default().to_owned(),
            body: serde_json::from_slice(&bytes).unwrap_or(Value::Null),
        };
        self.inner.seen.lock().push(seen.clone());
        let meanwhile = {
            let mut meanwhile = self.inner.meanwhile.lock();
            let next = meanwhile
                .iter()
                .position(|(method, part, _)| *method == seen.method && seen.path.contains(part.as_str()));
            next.map(|index| meanwhile.remove(index).2)
        };
        if let Some(meanwhile) = meanwhile {
            meanwhile(self);
        }
        self.inner.changed.notify_waiters();
        let media =
            parts.headers.get(http::header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let answer = self.scripted(&seen);
        let done = match answer {
            Some(Answer::Silence) => std::future::pending().await,
            Some(Answer::Refused(code, reason)) => Err((code, reason, "told to refuse".to_owned())),
            Some(Answer::NotReached) => {
                let message = "error dialing backend 192.0.2.1:10250: connection timed out";
                Err((503, "ServiceUnavailable", message.to_owned()))
            }
            Some(Answer::LostButUnknown) => Err((504, "Timeout", "nobody knows".to_owned())),
            Some(Answer::DoneButUnknown) => {
                drop(self.answer(&seen, media));
                Err((504, "Timeout", "nobody knows".to_owned()))
            }
            None => match self.opened(&seen.path) {
                Some(lines) => Ok(verbs::Body::Watch(lines)),
                None => self.answer(&seen, media),
            },
        };
        self.inner.changed.notify_waiters();
        let (code, body) = match done {
            Ok(verbs::Body::Object(value)) => (200, whole(&value)),
            Ok(verbs::Body::Watch(lines)) => {
                let lines =
                    futures::stream::unfold(lines, |mut lines| async move { Some((lines.recv().await?, lines)) });
                let frames = lines.map(|line: Bytes| Ok::<_, std::io::Error>(http_body::Frame::data(line)));
                (200, StreamBody::new(frames).boxed_unsync())
            }
            Err((code, reason, message)) => {
                let status = json!({
                    "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                    "code": code, "reason": reason, "message": message,
                });
                (code, whole(&status))
            }
        };
        let response = Response::builder().status(code).header(http::header::CONTENT_TYPE, "application/json");
        response.body(body).map_err(std::io::Error::other)
    }

    fn opened(&self, path: &str) -> Option<mpsc::UnboundedReceiver<Bytes>> {
        let mut streams = self.inner.streams.lock();
        let hear = streams.get_mut(path)?;
        let (sender, receiver) = mpsc::unbounded_channel();
        hear.push(sender);
        Some(receiver)
    }

    fn scripted(&self, seen: &Seen) -> Option<Answer> {
        let mut script = self.inner.script.lock();
        let line = script.iter().position(|line| line.method == seen.method && seen.path.contains(&line.part))?;
        match script[line].always {
            true => Some(script[line].answer),
            false => Some(script.remove(line).answer),
        }
    }

    fn answer(&self, seen: &Seen, media: &str) -> Result<verbs::Body, verbs::Refusal> {
        let query: BTreeMap<String, String> = seen
            .query
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.replace("%3D", "=")))
            .collect();
        verbs::answer(&mut self.inner.store.lock(), seen, &query, media)
    }
}

fn whole(value: &Value) -> UnsyncBoxBody<Bytes, std::io::Error> {
    Full::new(Bytes::from(value.to_string())).map_err(|never| match never {}).boxed_unsync()
}
