//! One client for several servers of a cluster: who does not answer is left for another.
//!
//! ```text
//! request ─► the current server ─► answer
//!               │ not reached, broke, or 503
//!               └─► the next one, unless what was asked may have been done
//! ```
//! The current server is kept while it answers, so that a client does not speak with all. One that was not heard of yet is asked
//! first whether it is there, and when it takes its time another is, too: who answers is asked what is to be asked. One that failed is not asked again
//! before a while, which doubles and has jitter; when all have failed, requests wait for the first of those times, and nobody spins.
//!
//! What was certainly not done is asked again of another server, whatever it is: nothing was sent, or the server said 503, which is
//! how a server says that nothing was done. What was sent and has no answer is asked again only when it reads. A watch whose stream
//! breaks is the caller's to continue, from the revision that it has seen; it is asked of the next server then.
//! When nobody does it, a server that said 503 is heard above those that are not there: it says why.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use http::header::RETRY_AFTER;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use hyper_util::client::legacy;
use kube::client::Body;
use kube::core::Status;
use tokio::time::Instant;

/// How long a server that failed is left alone, at first and at most; up to a quarter comes on top. The longest is shorter than
/// what a renewal of a node's lease waits.
const LEFT_FOR: (Duration, Duration) = match cfg!(test) {
    false => (Duration::from_millis(100), Duration::from_millis(1000)),
    true => (Duration::from_millis(5), Duration::from_millis(50)),
};
/// A server that was not heard of yet says that it is there within this time,
const FIRST_WORD: Duration = Duration::from_millis(if cfg!(test) { 300 } else { 3000 });
/// and after this another one is asked the same beside it.
const SECOND_AFTER: Duration = Duration::from_millis(if cfg!(test) { 30 } else { 300 });
/// Who gives up a write after so long has found a server that hangs.
const HANGS_AFTER: Duration = Duration::from_millis(if cfg!(test) { 100 } else { 1000 });
/// The only server that there is is asked again so often, and after so long, when it refuses for the moment.
const WAITS_MAX: u32 = 8;
const WAIT_MAX: Duration = Duration::from_secs(5);
/// Bytes that are read of why a server refuses, within the time of a first word.
const REFUSAL_BYTES_MAX: usize = 16 << 10;

/// That requests go to another server from now on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    /// The server that was asked so far.
    pub from: String,
    /// What is wrong with it.
    pub why: String,
    /// The one that is asked now.
    pub to: String,
}

impl std::fmt::Display for Moved {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "server {} does not answer ({}); asking {}", self.from, self.why, self.to)
    }
}

/// The servers of a cluster; clones are the same.
#[derive(Clone)]
pub struct Servers(Arc<Shared>);

struct Shared {
    known: Mutex<Known>,
    told: Box<dyn Fn(&Moved) + Send + Sync>,
}

struct Known {
    /// Never empty.
    servers: Vec<Server>,
    /// The one that is asked first.
    current: String,
}

struct Server {
    /// Its URL.
    name: String,
    client: kube::Client,
    /// Whether it has answered since it was last left.
    is_heard: bool,
    left: Option<Left>,
}

/// A server failed.
struct Left {
    until: Instant,
    wait: Duration,
}

/// Whom to ask.
enum Next {
    Ask { name: String, client: kube::Client, is_heard: bool },
    Wait(Instant),
    Nobody,
}

impl Servers {
    /// These, with their URLs; the first is asked first. `told` hears of each change.
    ///
    /// # Panics
    /// When there are none.
    pub fn new(servers: Vec<(String, kube::Client)>, told: impl Fn(&Moved) + Send + Sync + 'static) -> Servers {
        let current = servers.first().expect("the caller has a server").0.clone();
        let servers = servers.into_iter().map(Server::new).collect();
        Servers(Arc::new(Shared { known: Mutex::new(Known { servers, current }), told: Box::new(told) }))
    }

    /// A client that asks them.
    pub fn client(&self, namespace: &str) -> kube::Client {
        let servers = self.clone();
        let service = tower::service_fn(move |request| {
            let servers = servers.clone();
            async move { servers.ask(request).await }
        });
        kube::Client::new(service, namespace)
    }

    /// Their URLs.
    pub fn names(&self) -> Vec<String> {
        self.known().servers.iter().map(|server| server.name.clone()).collect()
    }

    /// A client for each of them alone.
    pub fn clients(&self) -> Vec<kube::Client> {
        self.known().servers.iter().map(|server| server.client.clone()).collect()
    }

    /// Takes these for the servers from now on, `connect`ing to those that are new. Nothing changes where there are none.
    pub fn replace<E>(&self, names: &[String], connect: impl Fn(&str) -> Result<kube::Client, E>) -> Result<(), E> {
        let mut known = self.known();
        // All that may fail comes first.
        let new = |name: &String| match known.servers.iter().any(|server| server.name == *name) {
            true => Ok(None),
            false => connect(name).map(|client| Some(Server::new((name.clone(), client)))),
        };
        let new: Vec<Option<Server>> = names.iter().map(new).collect::<Result<_, E>>()?;
        let mut servers = Vec::new();
        for (name, new) in names.iter().zip(new) {
            let at = known.servers.iter().position(|server| server.name == *name);
            servers.extend(new.or_else(|| at.map(|at| known.servers.swap_remove(at))));
        }
        if servers.is_empty() {
            return Ok(());
        }
        if !servers.iter().any(|server| server.name == known.current) {
            known.current = servers[0].name.clone();
        }
        known.servers = servers;
        Ok(())
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks them.
    pub async fn ask(&self, request: Request<Body>) -> Result<Response<Body>, kube::Error> {
        let (parts, body) = request.into_parts();
        let is_read = matches!(parts.method, Method::GET | Method::HEAD);
        let (mut body, mut asked, mut last, mut waits) = (Some(body), Vec::new(), Last::default(), 0);
        loop {
            let next = self.known().next(&asked);
            let (name, client, is_heard) = match next {
                Next::Ask { name, client, is_heard } => (name, client, is_heard),
                Next::Wait(until) => {
                    tokio::time::sleep_until(until).await;
                    continue;
                }
                Next::Nobody => return last.told().await,
            };
            let (name, client) = match is_heard {
                true => (name, client),
                false => match self.first_to_speak(&name, client, &mut asked).await {
                    Ok(speaks) => speaks,
                    Err(error) => {
                        last.error = Some(error);
                        continue;
                    }
                },
            };
            asked.push(name.clone());
            let Some(mine) = body.take() else { return last.told().await };
            // Of a body that comes in pieces there is one.
            body = mine.try_clone();
            let given_up = GivenUp { servers: self, name: &name, since: (!is_read).then(Instant::now) };
            let answer = client.send(Request::from_parts(parts.clone(), mine)).await;
            given_up.answered();
            if let Ok(response) = &answer
                && waits < WAITS_MAX
                && let Some(wait) = self.told_to_wait(parts.uri.path(), response)
                && body.is_some()
            {
                waits += 1;
                asked.clear();
                tokio::time::sleep(wait).await;
                continue;
            }
            let again = match &answer {
                // What a pod or a node says is the answer, and may have been done.
                Ok(response)
                    if response.status() == StatusCode::SERVICE_UNAVAILABLE
                        && match passed_on(parts.uri.path()) {
                            PassedOn::Nowhere => true,
                            PassedOn::ToNode => is_read && response.headers().contains_key(RETRY_AFTER),
                            PassedOn::ToPod => false,
                        } =>
                {
                    self.failed(&name, "it says 503: Service Unavailable");
                    true
                }
                Ok(_) => {
                    self.answered(&name);
                    false
                }
                Err(error) => {
                    self.failed(&name, &why(error));
                    is_read || was_not_sent(error)
                }
            };
            if !again {
                return answer;
            }
            last.take(name, answer);
        }
    }

    /// Waits until a server says that it is there: this one, or, when it takes its time, another. Those that do not are `asked`,
    /// and left.
    async fn first_to_speak(
        &self,
        name: &str,
        client: kube::Client,
        asked: &mut Vec<String>,
    ) -> Result<(String, kube::Client), kube::Error> {
        let word = |name: String, client: kube::Client| async move {
            let said = first_word(&client).await;
            (name, client, said)
        };
        let given_up = GivenUp { servers: self, name, since: Some(Instant::now()) };
        let mut words = FuturesUnordered::new();
        words.push(word(name.to_owned(), client));
        let mut is_alone = true;
        let spoken = loop {
            let said = match is_alone {
                true => tokio::time::timeout(SECOND_AFTER, words.next()).await,
                false => Ok(words.next().await),
            };
            let Ok(said) = said else {
                is_alone = false;
                if let Some((other, client)) = self.known().beside(name, asked) {
                    words.push(word(other, client));
                }
                continue;
            };
            match said.expect("somebody is asked") {
                (speaks, client, Ok(())) => {
                    self.settle(name, &speaks);
                    break Ok((speaks, client));
                }
                (silent, _, Err(error)) => {
                    self.failed(&silent, &why(&error));
                    asked.push(silent);
                    if words.is_empty() {
                        break Err(error);
                    }
                }
            }
        };
        given_up.answered();
        spoken
    }

    /// `to` speaks while `from` takes its time.
    fn settle(&self, from: &str, to: &str) {
        let is_current = {
            let mut known = self.known();
            let is_current = from != to && known.current == from;
            if is_current {
                to.clone_into(&mut known.current);
            }
            is_current
        };
        if is_current {
            (self.0.told)(&Moved { from: from.to_owned(), why: "it takes its time".to_owned(), to: to.to_owned() });
        }
    }

    /// How long to wait for the only server that there is, when it says so: what it refuses so was not done.
    fn told_to_wait(&self, path: &str, response: &Response<Body>) -> Option<Duration> {
        let refuses = [StatusCode::SERVICE_UNAVAILABLE, StatusCode::TOO_MANY_REQUESTS].contains(&response.status());
        if !refuses || passed_on(path) != PassedOn::Nowhere || self.known().servers.len() > 1 {
            return None;
        }
        let seconds = response.headers().get(RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
        Some(Duration::from_secs(seconds).min(WAIT_MAX))
    }

    fn answered(&self, name: &str) {
        let mut known = self.known();
        if let Some(server) = known.servers.iter_mut().find(|server| server.name == name) {
            (server.left, server.is_heard) = (None, true);
        }
    }

    fn failed(&self, name: &str, why: &str) {
        let moved = self.known().leave(name, why, Instant::now());
        if let Some(moved) = moved {
            (self.0.told)(&moved);
        }
    }
}

impl Known {
    /// Whom to ask who has `asked` these.
    fn next(&self, asked: &[String]) -> Next {
        let now = Instant::now();
        let at = self.servers.iter().position(|server| server.name == self.current).unwrap_or_default();
        let in_turn = self.servers[at..].iter().chain(&self.servers[..at]);
        let left: Vec<&Server> = in_turn.filter(|server| !asked.contains(&server.name)).collect();
        let until = |server: &Server| server.left.as_ref().map(|left| left.until).filter(|until| *until > now);
        match (left.iter().find(|server| until(server).is_none()), left.iter().filter_map(|server| until(server)).min())
        {
            (Some(server), _) => Next::Ask {
                name: server.name.clone(),
                client: server.client.clone(),
                // With nobody else to ask, it is asked what is to be asked.
                is_heard: server.is_heard || self.servers.len() == 1,
            },
            (None, Some(until)) if asked.is_empty() => Next::Wait(until),
            // Those that are left have just failed: whoever asks hears so now.
            _ => Next::Nobody,
        }
    }

    /// A server beside this one to ask whether it is there: none that was asked, and none that has failed.
    fn beside(&self, name: &str, asked: &[String]) -> Option<(String, kube::Client)> {
        let now = Instant::now();
        let at = self.servers.iter().position(|server| server.name == name)?;
        let mut others = self.servers[at + 1..].iter().chain(&self.servers[..at]);
        let is_fit = |server: &&Server| {
            !asked.contains(&server.name) && server.left.as_ref().is_none_or(|left| left.until <= now)
        };
        others.find(is_fit).map(|server| (server.name.clone(), server.client.clone()))
    }

    /// Leaves the server alone for a while; says so when it was the current one and there is another.
    fn leave(&mut self, name: &str, why: &str, now: Instant) -> Option<Moved> {
        let server = self.servers.iter_mut().find(|server| server.name == name)?;
        let wait = server.left.as_ref().map_or(LEFT_FOR.0, |left| (left.wait * 2).min(LEFT_FOR.1));
        let jitter = wait.mul_f64(rand::random::<f64>() / 4.0);
        (server.left, server.is_heard) = (Some(Left { until: now + wait + jitter, wait }), false);
        self.move_on(name, why, now)
    }

    /// Has another server than `name` be the current one, if it is and there is one that has not failed.
    fn move_on(&mut self, name: &str, why: &str, now: Instant) -> Option<Moved> {
        if self.current != name {
            return None;
        }
        let at = self.servers.iter().position(|server| server.name == name)?;
        let mut others = self.servers[at + 1..].iter().chain(&self.servers[..at]);
        let to = others.find(|server| server.left.as_ref().is_none_or(|left| left.until <= now))?.name.clone();
        self.current.clone_from(&to);
        Some(Moved { from: name.to_owned(), why: why.to_owned(), to })
    }
}

impl Server {
    fn new((name, client): (String, kube::Client)) -> Server {
        Server { name, client, is_heard: false, left: None }
    }
}

/// What came of asking, while nobody did it.
#[derive(Default)]
struct Last {
    /// Who said 503 last, and why.
    refusal: Option<(String, Response<Body>)>,
    error: Option<kube::Error>,
}

impl Last {
    fn take(&mut self, name: String, answer: Result<Response<Body>, kube::Error>) {
        match answer {
            Ok(refusal) => self.refusal = Some((name, refusal)),
            Err(error) => self.error = Some(error),
        }
    }

    /// What is told when nobody is left to ask. Beside servers that are not there, the one that is has its name told.
    async fn told(self) -> Result<Response<Body>, kube::Error> {
        match (self.refusal, self.error) {
            (Some((name, refusal)), Some(_)) => Err(said(&name, refusal).await),
            (Some((_, refusal)), None) => Ok(refusal),
            (None, error) => Err(error.expect("somebody was asked")),
        }
    }
}

/// A refusal in the words of the server `name`, or, where they do not come in time, by its status.
async fn said(name: &str, refusal: Response<Body>) -> kube::Error {
    let code = refusal.status();
    let text = Limited::new(refusal.into_body(), REFUSAL_BYTES_MAX).collect();
    let text = tokio::time::timeout(FIRST_WORD, text).await.ok().and_then(Result::ok);
    let text = text.map(|text| text.to_bytes()).filter(|text| !text.is_empty());
    let text = text.unwrap_or_else(|| code.to_string().into());
    let plain = |_| Status::failure(&String::from_utf8_lossy(&text), "ServiceUnavailable");
    let mut status = serde_json::from_slice::<Status>(&text).unwrap_or_else(plain).with_code(code.as_u16());
    status.message = format!("server {name} says: {}", status.message);
    kube::Error::Api(status.boxed())
}

/// A write that is under way. When whoever asked gives it up after a while, its server hangs, and others are asked from now on.
struct GivenUp<'a> {
    servers: &'a Servers,
    name: &'a str,
    since: Option<Instant>,
}

impl GivenUp<'_> {
    fn answered(mut self) {
        self.since = None;
    }
}

impl Drop for GivenUp<'_> {
    fn drop(&mut self) {
        if self.since.is_some_and(|since| since.elapsed() >= HANGS_AFTER) {
            let moved = self.servers.known().move_on(self.name, "it gives no answer", Instant::now());
            if let Some(moved) = moved {
                (self.servers.0.told)(&moved);
            }
        }
    }
}

/// Whether a server says anything at all. One that hangs accepts connections and what is sent on them.
async fn first_word(client: &kube::Client) -> Result<(), kube::Error> {
    let request = Request::get("/version").body(Body::empty()).expect("a request of constants");
    match tokio::time::timeout(FIRST_WORD, client.send(request)).await {
        Ok(answer) => answer.map(drop),
        Err(_) => Err(kube::Error::Service(Box::new(std::io::Error::from(std::io::ErrorKind::TimedOut)))),
    }
}

/// The errors in an error.
fn causes(error: &kube::Error) -> impl Iterator<Item = &(dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error as &(dyn std::error::Error + 'static)), |error| error.source())
}

/// Who may answer in the server's place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum PassedOn {
    Nowhere,
    /// A node, whose own words these are.
    ToNode,
    /// A pod, which may say whatever it likes: nothing of it is the server's.
    ToPod,
}

fn passed_on(path: &str) -> PassedOn {
    match path.split('/').collect::<Vec<_>>().as_slice() {
        ["", "api", "v1", "namespaces", _, "pods" | "services", _, "proxy", ..] => PassedOn::ToPod,
        // Through which its pods are reached as well.
        ["", "api", "v1", "nodes", _, "proxy", ..] => PassedOn::ToPod,
        ["", "api", "v1", "namespaces", _, "pods", _, "log" | "exec" | "attach" | "portforward", ..] => {
            PassedOn::ToNode
        }
        _ => PassedOn::Nowhere,
    }
}

/// Whether it is certain that the server knows nothing of the request.
fn was_not_sent(error: &kube::Error) -> bool {
    use std::io::ErrorKind::{ConnectionRefused, HostUnreachable, NetworkUnreachable};
    if let Some(error) = causes(error).find_map(|cause| cause.downcast_ref::<legacy::Error>()) {
        // A connection that was there may break with the same words, after all was sent.
        return error.is_connect();
    }
    let is_of_a_connection = causes(error).any(|cause| cause.is::<hyper::Error>());
    let is_of_dialling = |cause: &(dyn std::error::Error + 'static)| {
        let error = cause.downcast_ref::<std::io::Error>();
        error.is_some_and(|error| matches!(error.kind(), ConnectionRefused | HostUnreachable | NetworkUnreachable))
    };
    !is_of_a_connection && causes(error).any(is_of_dialling)
}

/// In the words of the innermost cause.
pub fn why(error: &kube::Error) -> String {
    let text = causes(error).last().map(ToString::to_string).unwrap_or_default();
    // Without the system's number, and the address of a library's documentation.
    let text = text.split(" (os error").next().unwrap_or_default();
    text.split(": https://").next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    /// How a server answers, one after the other; the last goes on.
    #[derive(Clone, Copy, PartialEq, Debug)]
    enum Does {
        Answers,
        Refuses,
        Breaks,
        Says503,
        Says503Later,
        Hangs,
    }

    #[derive(Default)]
    struct World {
        does: Mutex<std::collections::HashMap<&'static str, VecDeque<Does>>>,
        /// Servers and methods; `/version` is left out.
        asked: Mutex<Vec<String>>,
        moved: Mutex<Vec<(String, String)>>,
    }

    impl World {
        fn client(self: &Arc<World>, name: &'static str) -> kube::Client {
            let world = self.clone();
            let service = tower::service_fn(move |request: Request<Body>| {
                let world = world.clone();
                async move {
                    let is_word = request.uri().path() == "/version";
                    let does = {
                        let mut does = world.does.lock().unwrap();
                        let queue = does.get_mut(name).unwrap();
                        let does = *queue.front().unwrap();
                        if queue.len() > 1 && !is_word {
                            queue.pop_front();
                        }
                        does
                    };
                    let failed = |kind: std::io::ErrorKind| Err(std::io::Error::from(kind));
                    let answer = |status: u16| {
                        Ok(Response::builder().status(status).body(Body::from(name.as_bytes().to_vec())).unwrap())
                    };
                    if does == Does::Refuses {
                        return failed(std::io::ErrorKind::ConnectionRefused);
                    }
                    if is_word && does != Does::Hangs {
                        return answer(200);
                    }
                    if !is_word {
                        world.asked.lock().unwrap().push(format!("{name} {}", request.method()));
                    }
                    match does {
                        Does::Answers | Does::Refuses => answer(200),
                        Does::Breaks => failed(std::io::ErrorKind::ConnectionReset),
                        Does::Says503 => answer(503),
                        Does::Says503Later => {
                            let answer = Response::builder().status(503).header("retry-after", "1");
                            Ok(answer.body(Body::from(name.as_bytes().to_vec())).unwrap())
                        }
                        Does::Hangs => std::future::pending().await,
                    }
                }
            });
            kube::Client::new(service, "default")
        }

        fn does(&self, name: &'static str, does: &[Does]) {
            self.does.lock().unwrap().insert(name, does.iter().copied().collect());
        }

        fn servers(self: &Arc<World>, all: &[(&'static str, &[Does])]) -> Servers {
            all.iter().for_each(|(name, does)| self.does(name, does));
            let clients = all.iter().map(|(name, _)| ((*name).to_owned(), self.client(name))).collect();
            let world = self.clone();
            Servers::new(clients, move |moved| {
                world.moved.lock().unwrap().push((moved.from.clone(), moved.to.clone()));
            })
        }
    }

    fn request(method: &str) -> Request<Body> {
        Request::builder().method(method).uri("/api").body(Body::from(b"text".to_vec())).unwrap()
    }

    #[tokio::test]
    async fn what_was_not_done_goes_to_the_next_server_and_nothing_is_done_twice() {
        use Does::{Answers, Breaks, Hangs, Refuses, Says503};
        for (first, second, method, expected, asked) in [
            (Answers, Answers, "POST", Ok(200), &["a POST"][..]),
            (Refuses, Answers, "POST", Ok(200), &["b POST"]),
            (Breaks, Answers, "GET", Ok(200), &["a GET", "b GET"]),
            (Breaks, Answers, "POST", Err(()), &["a POST"]),
            (Says503, Answers, "PATCH", Ok(200), &["a PATCH", "b PATCH"]),
            (Says503, Says503, "GET", Ok(503), &["a GET", "b GET"]),
            (Refuses, Refuses, "GET", Err(()), &[]),
            // It is not there at all, and is asked nothing.
            (Hangs, Answers, "POST", Ok(200), &["b POST"]),
        ] {
            let world = Arc::new(World::default());
            let servers = world.servers(&[("a", &[first]), ("b", &[second])]);
            let answer = servers.client("default").send(request(method)).await;
            let found = answer.map(|answer| answer.status().as_u16()).map_err(drop);
            assert_eq!(found, expected, "{first:?} {second:?} {method}");
            assert_eq!(*world.asked.lock().unwrap(), asked, "{first:?} {second:?} {method}");
        }
    }

    /// Of those that are not there nobody learns what is wrong.
    #[tokio::test]
    async fn a_server_that_says_why_is_heard_above_those_that_are_not_there() {
        use Does::{Breaks, Refuses, Says503};
        for (others, method) in [(Refuses, "GET"), (Refuses, "POST"), (Breaks, "GET")] {
            for at in 0..3 {
                let world = Arc::new(World::default());
                let does = |n: usize| if n == at { Says503 } else { others };
                let servers = world.servers(&[("a", &[does(0)]), ("b", &[does(1)]), ("c", &[does(2)])]);
                let error = servers.client("default").send(request(method)).await.unwrap_err();
                let kube::Error::Api(status) = &error else { panic!("{others:?} {method} {at}: {error:?}") };
                let name = ["a", "b", "c"][at];
                assert_eq!((status.code, &*status.message), (503, &*format!("server {name} says: {name}")));
            }
        }
        let status = r#"{"kind": "Status", "status": "Failure", "message": "it waits", "code": 503}"#;
        for (body, expected) in [(status, "it waits"), ("", "503 Service Unavailable")] {
            let refusal = Response::builder().status(503).body(Body::from(body.as_bytes().to_vec())).unwrap();
            let kube::Error::Api(status) = said("a", refusal).await else { panic!("{body}") };
            assert_eq!((status.code, &*status.message), (503, &*format!("server a says: {expected}")));
        }
    }

    /// A pod may say what a server says: the server has answered all the same.
    #[tokio::test]
    async fn a_503_of_a_pod_is_no_failure_of_its_server() {
        let pod = "/api/v1/namespaces/n/pods/p";
        for (path, is_believed) in [
            (format!("{pod}/proxy/x"), false),
            ("/api/v1/namespaces/n/services/s:80/proxy/".to_owned(), false),
            ("/api/v1/nodes/n1/proxy/coracle/v1/proxy/n/p/80/".to_owned(), false),
            (format!("{pod}/log"), true),
            (pod.to_owned(), true),
        ] {
            let world = Arc::new(World::default());
            let servers = world.servers(&[("a", &[Does::Says503Later]), ("b", &[Does::Answers])]);
            let request = Request::get(&path).body(Body::empty()).unwrap();
            let status = servers.client("default").send(request).await.unwrap().status().as_u16();
            assert_eq!(status, if is_believed { 200 } else { 503 }, "{path}");
            assert_eq!(world.moved.lock().unwrap().len(), usize::from(is_believed), "{path}");
        }
    }

    #[tokio::test]
    async fn a_server_that_swallows_the_first_word_costs_a_moment() {
        let world = Arc::new(World::default());
        let servers = world.servers(&[("a", &[Does::Hangs]), ("b", &[Does::Hangs]), ("c", &[Does::Answers])]);
        let client = servers.client("default");
        let begun = Instant::now();
        let first = client.send(request("PATCH")).await.unwrap();
        assert_eq!(first.status(), 200);
        // Two at a time, and each for as long as a word may take.
        assert!(begun.elapsed() < 2 * FIRST_WORD, "{:?}", begun.elapsed());
        assert_eq!(*world.asked.lock().unwrap(), ["c PATCH"]);
        // With one that hangs nobody waits for its word to be late.
        let servers = world.servers(&[("a", &[Does::Hangs]), ("b", &[Does::Answers])]);
        let begun = Instant::now();
        servers.client("default").send(request("GET")).await.unwrap();
        assert!(begun.elapsed() < FIRST_WORD - SECOND_AFTER, "{:?}", begun.elapsed());
        assert_eq!(world.moved.lock().unwrap().last().unwrap(), &("a".to_owned(), "b".to_owned()));
    }

    /// All hang, or there is nobody beside it: whoever gives up leaves the first one for another nevertheless.
    #[tokio::test]
    async fn who_gives_up_during_the_first_word_leaves_the_server() {
        let world = Arc::new(World::default());
        let servers = world.servers(&[("a", &[Does::Hangs]), ("b", &[Does::Hangs])]);
        let given_up = tokio::time::timeout(2 * HANGS_AFTER, servers.ask(request("GET"))).await;
        assert!(given_up.is_err());
        assert_eq!(*world.moved.lock().unwrap(), [("a".to_owned(), "b".to_owned())]);
    }

    #[tokio::test]
    async fn the_next_server_is_kept_and_told_of_once() {
        let world = Arc::new(World::default());
        let servers = world.servers(&[("a", &[Does::Refuses]), ("b", &[Does::Answers]), ("c", &[Does::Answers])]);
        let client = servers.client("default");
        for _ in 0..5 {
            client.send(request("POST")).await.unwrap();
            tokio::time::sleep(2 * LEFT_FOR.0).await;
        }
        world.does("a", &[Does::Answers]);
        client.send(request("POST")).await.unwrap();
        assert_eq!(*world.asked.lock().unwrap(), ["b POST"; 6]);
        assert_eq!(*world.moved.lock().unwrap(), [("a".to_owned(), "b".to_owned())]);
        // The list is another: who is gone from it is asked no more.
        servers.replace(&["c".to_owned(), "a".to_owned()], |_| Err("all are known")).unwrap();
        client.send(request("GET")).await.unwrap();
        assert_eq!(world.asked.lock().unwrap().last().unwrap(), "c GET");
        let names = ["a", "d"].map(str::to_owned);
        assert_eq!(servers.replace(&names, |_| Err("it is not reached")), Err("it is not reached"));
        assert_eq!(servers.names(), ["c", "a"], "nothing changed");
        servers.replace(&[], |_| Err("there are none")).unwrap();
        assert_eq!(servers.names(), ["c", "a"]);
    }

    #[tokio::test]
    async fn nobody_spins_while_all_are_gone_and_who_comes_back_is_found() {
        let world = Arc::new(World::default());
        let servers = world.servers(&[("a", &[Does::Breaks]), ("b", &[Does::Breaks])]);
        let client = servers.client("default");
        let begun = Instant::now();
        for _ in 0..30 {
            client.send(request("GET")).await.unwrap_err();
        }
        let elapsed = begun.elapsed();
        // The first waits are shorter than the longest, and each round waits for the sooner of two.
        assert!(elapsed > 12 * LEFT_FOR.1, "{elapsed:?}");
        world.does("b", &[Does::Answers]);
        let begun = Instant::now();
        while client.send(request("GET")).await.is_err() {
            assert!(begun.elapsed() < Duration::from_secs(5));
        }
    }

    #[tokio::test]
    async fn a_server_that_hangs_in_the_middle_is_left_by_who_gives_up() {
        let world = Arc::new(World::default());
        let servers = world.servers(&[("a", &[Does::Answers, Does::Hangs]), ("b", &[Does::Answers])]);
        let client = servers.client("default");
        client.send(request("PATCH")).await.unwrap();
        let lease = tokio::time::timeout(2 * HANGS_AFTER, client.send(request("PATCH"))).await;
        assert!(lease.is_err());
        // A `kube::Client` works in a task of its own, which hears of it later.
        let is_left = async {
            while world.moved.lock().unwrap().is_empty() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(5), is_left).await.expect("it is left");
        client.send(request("PATCH")).await.unwrap();
        assert_eq!(*world.asked.lock().unwrap(), ["a PATCH", "a PATCH", "b PATCH"]);
    }
}
