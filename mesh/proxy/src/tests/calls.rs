//! A guest's requests, connections and look-ups.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use coracle_policy::Source;
use futures::future::BoxFuture;
use http::{Request, Response};
use http_body_util::BodyExt;
use serde_json::json;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::world::*;
use crate::{Asker, Body, BoxError, Busy, Carried, Deadline, Error, Flows, HttpService};

#[tokio::test]
async fn a_request_that_nobody_took_is_asked_elsewhere() {
    let world = World::new().await;
    // Reads some of the body before it refuses.
    let (refusing, local) = called(|mut request| async move {
        let _ = request.body_mut().frame().await;
        Err("not today".into())
    });
    world.start(1, local);
    world.start(2, closed().await);
    world.start(3, echo().1);
    world.web(&[1, 2, 3]).await;
    for round in 0..60 {
        let body = format!("body {round}");
        assert_eq!(world.ask(["GET", "POST"][round % 2], &body).await, (200, body));
    }
    assert!(refusing.calls.load(Relaxed) > 0);
}

#[tokio::test]
async fn clients_of_a_service_with_affinity_stay_each_with_its_own_pod() {
    let world = World::new().await;
    for n in 1..=6 {
        let named = move |_| async move { Ok(Response::new(text(n.to_string()))) };
        world.start(n, called(named).1);
    }
    world.sticky("web", "10.96.0.7", json!([{"port": 80}]));
    world.ready("web", &[1, 2, 3, 4, 5, 6], json!([{"port": 8080}]));
    world.known("web", 6).await;
    let mut all = HashSet::new();
    for n in 100..120 {
        let client = world.known_as(n, "client");
        let first = world.ask_as(&client, "GET", "").await;
        for _ in 0..10 {
            assert_eq!(world.ask_as(&client, "GET", "").await, first);
        }
        all.insert(first.1);
    }
    assert!(all.len() > 1, "clients are spread");
}

#[tokio::test]
async fn a_service_leads_outside_and_says_where_it_may_not() {
    let world = World::new().await;
    let node_port = free_port().await;
    let script = |mut stream: tokio::net::TcpStream| async move {
        while read_head(&mut stream).await.ends_with("\r\n\r\n") {
            write(&mut stream, "HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\noutside").await;
        }
    };
    let (_, outside) = listening(script).await;
    world.service("web", "10.96.0.7", json!([{"port": 80, "nodePort": node_port}]));
    world.leads_to("web", &[outside.ip()], json!([{"port": outside.port()}]));
    world.known("web", 1).await;
    let words =
        format!("service n/web leads to {outside}, an address of this machine or near it, where no Service may lead");
    let request = || Request::get("http://web/").body(text(String::new())).unwrap();
    let refused = world.proxy.call(&Source::Unknown, "n", request()).await.unwrap_err();
    assert_eq!(refused.to_string(), words);
    let mut client = connect(node_port).await;
    write(&mut client, "GET / HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n").await;
    let mut answer = String::new();
    tokio::io::AsyncReadExt::read_to_string(&mut client, &mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains(&words), "{answer}");
    assert_eq!(world.pods.failures.lock().unwrap()[0], format!("web: Endpoint({outside})"));
    // As it is where it may.
    world.pods.may_dial_near.store(true, Relaxed);
    assert_eq!(world.ask("GET", "").await, (200, "outside".to_owned()));
    let mut client = connect(node_port).await;
    write(&mut client, "GET / HTTP/1.1\r\nhost: web\r\n\r\n").await;
    assert!(read_head(&mut client).await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn a_name_leads_to_pods_and_to_whom_a_service_leads_and_nowhere_else() {
    let world = World::new().await;
    world.pods.may_dial_near.store(true, Relaxed);
    let script = |mut stream: tokio::net::TcpStream| async move {
        while read_head(&mut stream).await.ends_with("\r\n\r\n") {
            write(&mut stream, "HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\noutside").await;
        }
    };
    let ((_, at), (_, other)) = (listening(script).await, listening(script).await);
    let ask = async |host: &str, at: std::net::SocketAddr| {
        let request = Request::get(format!("http://{host}:{}/", at.port())).body(text(String::new())).unwrap();
        match world.proxy.call(&Source::Unknown, "n", request).await {
            Ok(response) => response.status().to_string(),
            Err(error) => error.to_string(),
        }
    };
    let pod = "127-0-0-1.n.pod.cluster.local";
    assert_eq!(ask(pod, at).await, format!("no pod answers at {at}"));
    world.service("db", "None", json!([{"port": 80}]));
    world.leads_to("db", &[at.ip()], json!([{"port": at.port()}]));
    world.known("db", 1).await;
    for host in ["db", pod] {
        assert_eq!(ask(host, at).await, "200 OK", "{host}");
        assert_eq!(ask(host, other).await, format!("no pod answers at {other}"), "{host}");
    }
}

#[tokio::test]
async fn a_pod_of_another_node_answers_as_one_of_this() {
    let world = World::new().await;
    let (theirs, _) = echo();
    let gone = (None, 0);
    world.pods.elsewhere.lock().unwrap().extend([(pod(1), gone), (pod(2), (Some(theirs.clone() as _), 0))]);
    let node_port = free_port().await;
    world.service("web", "10.96.0.7", json!([{"port": 80, "nodePort": node_port}]));
    world.ready("web", &[1, 2], json!([{"port": 8080}]));
    world.known("web", 2).await;
    // Requests, and one whose first choice is not there any more.
    for round in 0..40 {
        let body = format!("body {round}");
        assert_eq!(world.ask(["GET", "POST"][round % 2], &body).await, (200, body));
    }
    // A connection at a port of this node.
    let mut client = connect(node_port).await;
    write(&mut client, "POST / HTTP/1.1\r\nhost: web\r\ncontent-length: 4\r\nconnection: close\r\n\r\nlink").await;
    let mut answer = String::new();
    tokio::io::AsyncReadExt::read_to_string(&mut client, &mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("link"), "{answer}");
    let connections = |n| world.pods.elsewhere.lock().unwrap()[&pod(n)].1;
    assert!(connections(1) > 0, "the one that is gone was asked first at some time");
    assert!(connections(2) < 10, "connections are kept: {}", connections(2));
    assert_eq!(theirs.calls.load(Relaxed), 41);
    // Each used a place for as long as it took.
    let entered = world.pods.entered.lock().unwrap().clone();
    assert!(entered.len() >= 42 && entered.contains(&Asker::NodePort(node_port)), "{entered:?}");
    assert_eq!(Arc::strong_count(&world.pods.taken), 1);
    // A guest that dials is told that there is no socket here, and of whose pod it is; its requests take a connection.
    let to = SocketAddr::new(pod(2), 8080);
    assert!(world.proxy.is_dialled("web", 80, "n") && world.proxy.is_dialled("10.9.0.2", 8080, "n"));
    assert!(matches!(world.proxy.connect_address(&Source::Unknown, to, TCP), Some(Err(Error::NoPod(at))) if at == to));
}

#[tokio::test]
async fn a_request_that_may_have_been_acted_on_is_repeated_only_if_that_is_harmless() {
    let world = World::new().await;
    // Takes the request, and the connection ends.
    let seen = Arc::new(Mutex::new(Vec::new()));
    let heads = seen.clone();
    let (local, _) = listening(move |mut stream| {
        let heads = heads.clone();
        async move {
            let head = read_head(&mut stream).await;
            heads.lock().unwrap().push(head);
        }
    })
    .await;
    world.start(1, local);
    world.start(2, echo().1);
    world.web(&[1, 2]).await;
    let count = |method: &str| seen.lock().unwrap().iter().filter(|head| head.starts_with(method)).count();
    // It is out for a second after each; the other one answers meanwhile.
    let asking = async {
        while count("GET") == 0 {
            assert_eq!(world.ask("GET", "").await.0, 200);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let mut lost = 0;
        while count("POST") == 0 {
            lost += usize::from(world.ask("POST", "pay").await.0 != 200);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        lost
    };
    let lost = tokio::time::timeout(SOON, asking).await.expect("both are taken at some time");
    let posts = count("POST");
    assert_eq!(lost, posts, "a POST that was taken is not sent twice, and its client knows");
}

#[tokio::test]
async fn a_request_that_a_component_was_ended_with_is_repeated_only_if_that_is_harmless() {
    let world = World::new().await;
    let (ended, local) = called(|_| async { Err(crate::Seen("ended".into()).into()) });
    world.start(1, local);
    world.web(&[1]).await;
    let answer = world.ask("POST", "pay").await.1;
    assert!(answer.starts_with("Failed"), "{answer}");
    assert_eq!(ended.calls.load(Relaxed), 1, "a POST that was taken is not sent twice");
    world.start(2, echo().1);
    world.web(&[1, 2]).await;
    for _ in 0..20 {
        assert_eq!(world.ask("GET", "").await.0, 200);
    }
}

#[tokio::test]
async fn what_listens_in_the_place_of_a_pod_is_not_connected_to() {
    let world = World::new().await;
    let taken = Arc::new(Mutex::new(0));
    let count = taken.clone();
    let (local, socket) = listening(move |_| {
        *count.lock().unwrap() += 1;
        async {}
    })
    .await;
    world.pods.foreign.lock().unwrap().push(socket);
    world.start(1, local);
    world.web(&[1]).await;
    let answer = world.ask("GET", "").await.1;
    assert!(answer.starts_with("Unavailable"), "{answer}");
    world.start(2, echo().1);
    world.web(&[1, 2]).await;
    for _ in 0..20 {
        assert_eq!(world.ask("POST", "x").await, (200, "x".to_owned()), "nobody saw it: it is asked elsewhere");
    }
    assert_eq!(*taken.lock().unwrap(), 0);
}

#[tokio::test]
async fn overload_is_said_and_not_multiplied() {
    let world = World::new().await;
    let busy = |_| async { Err(Busy.into()) };
    let (one, two) = (called(busy), called(busy));
    world.start(1, one.1);
    world.start(2, two.1);
    world.web(&[1, 2]).await;
    let begun = Instant::now();
    for _ in 0..500 {
        let request = Request::builder().uri("http://web/").body(text(String::new())).unwrap();
        let error = world.proxy.call(&Source::Unknown, "n", request).await.unwrap_err();
        assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    }
    let asked = one.0.calls.load(Relaxed) + two.0.calls.load(Relaxed);
    // A fifth more, what is saved up, and ten a second.
    let allowed = 500 + 100 + 100 + 10 * (begun.elapsed().as_secs() as usize + 2);
    assert!(asked > 500 && asked <= allowed, "{asked} calls for 500 requests");
}

#[tokio::test]
async fn a_request_waits_a_moment_for_discovery_when_all_it_knows_have_gone() {
    let world = World::new().await;
    world.web(&[1]).await;
    world.start(2, echo().1);
    let asking = world.ask("POST", "hello");
    let telling = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        world.ready("web", &[2], json!([{"port": 8080}]));
    };
    assert_eq!(tokio::join!(asking, telling).0, (200, "hello".to_owned()));
    // None at all is known at once.
    world.ready("web", &[], json!([{"port": 8080}]));
    world.known("web", 0).await;
    let begun = Instant::now();
    assert!(world.ask("GET", "").await.1.contains("NoEndpoints"));
    assert!(begun.elapsed() < Duration::from_millis(400));
}

#[tokio::test]
async fn no_request_is_lost_in_a_rolling_update() {
    let world = Arc::new(World::new().await);
    world.start(1, echo().1);
    world.start(2, echo().1);
    world.web(&[1, 2]).await;
    let client = |number: usize| {
        let world = world.clone();
        tokio::spawn(async move {
            for round in 0..400 {
                let body = format!("{number} {round}");
                assert_eq!(world.ask("POST", &body).await, (200, body));
                tokio::task::yield_now().await;
            }
        })
    };
    let clients: Vec<_> = (0..4).map(client).collect();
    for n in 3..40 {
        world.start(n, echo().1);
        // Discovery hears of the old one's end after it, or before.
        if n % 2 == 0 {
            world.end(n - 2);
        }
        world.ready("web", &[n - 1, n], json!([{"port": 8080}]));
        tokio::time::sleep(Duration::from_millis(2)).await;
        world.end(n - 2);
    }
    for client in clients {
        client.await.unwrap();
    }
}

/// A component of another node, until its pod has ended.
struct Ends {
    inner: Arc<Called>,
    has_ended: AtomicBool,
    end: fn() -> BoxError,
    asked: AtomicUsize,
}

impl Ends {
    fn new(end: fn() -> BoxError) -> Arc<Ends> {
        Arc::new(Ends { inner: echo().0, has_ended: AtomicBool::new(false), end, asked: AtomicUsize::new(0) })
    }
}

impl HttpService for Ends {
    fn call(&self, request: Request<Body>) -> BoxFuture<'static, Result<Response<Body>, BoxError>> {
        self.asked.fetch_add(1, Relaxed);
        match self.has_ended.load(Relaxed) {
            true => {
                let error = (self.end)();
                Box::pin(async move { Err(error) })
            }
            false => self.inner.call(request),
        }
    }
}

/// The streams that lead there stay open when a pod has ended; discovery hears of it later.
#[tokio::test]
async fn no_request_is_lost_in_a_rolling_update_elsewhere() {
    let world = Arc::new(World::new().await);
    let node_port = free_port().await;
    let start = |n: u8| {
        let component = Ends::new(|| "it has gone".into());
        world.start_elsewhere(n, component.clone());
        component
    };
    world.service("web", "10.96.0.7", json!([{"port": 80, "nodePort": node_port}]));
    let mut pods = vec![start(1), start(2)];
    world.ready("web", &[1, 2], json!([{"port": 8080}]));
    world.known("web", 2).await;
    let (stop, answered) = (CancellationToken::new(), Arc::new(AtomicUsize::new(0)));
    let guest = |number: usize| {
        let (world, stop, answered) = (world.clone(), stop.clone(), answered.clone());
        tokio::spawn(async move {
            for round in 0.. {
                if stop.is_cancelled() {
                    break;
                }
                let body = format!("{number} {round}");
                assert_eq!(world.ask("POST", &body).await, (200, body));
                answered.fetch_add(1, Relaxed);
            }
        })
    };
    // One connection for all of its requests.
    let client = |number: usize| {
        let (stop, answered) = (stop.clone(), answered.clone());
        tokio::spawn(async move {
            let mut stream = connect(node_port).await;
            for round in 1000.. {
                if stop.is_cancelled() {
                    break;
                }
                let body = format!("{number} {round}");
                let length = body.len();
                let head = format!("POST / HTTP/1.1\r\nhost: web\r\ncontent-length: {length}\r\n\r\n");
                write(&mut stream, &(head + &body)).await;
                let answer = read_head(&mut stream).await;
                assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
                let mut heard = vec![0; length];
                tokio::io::AsyncReadExt::read_exact(&mut stream, &mut heard).await.unwrap();
                assert_eq!(heard, body.as_bytes());
                answered.fetch_add(1, Relaxed);
            }
        })
    };
    let clients: Vec<_> = (0..2).flat_map(|number| [guest(number), client(number)]).collect();
    for n in 3..20 {
        pods.push(start(n));
        // It ends, and requests come before discovery hears of it.
        pods[usize::from(n) - 3].has_ended.store(true, Relaxed);
        let before = answered.load(Relaxed);
        let going_on = async {
            while answered.load(Relaxed) < before + 20 && clients.iter().all(|client| !client.is_finished()) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(SOON, going_on).await.expect("requests go on");
        world.ready("web", &[n - 1, n], json!([{"port": 8080}]));
    }
    stop.cancel();
    for client in clients {
        client.await.unwrap();
    }
}

#[tokio::test]
async fn how_a_request_ended_on_another_node_is_known_here() {
    type Fails = fn() -> BoxError;
    let cases: [(Fails, &str, &str, bool); 4] = [
        (|| "it has gone".into(), "Unavailable", "POST", true),
        (|| Busy.into(), "Unavailable", "POST", true),
        // It was taken.
        (|| crate::Seen("it was ended".into()).into(), "Failed", "POST", false),
        (|| crate::Seen("it was ended".into()).into(), "Failed", "GET", true),
    ];
    for (end, words, method, is_repeated) in cases {
        let world = World::new().await;
        let component = Ends::new(end);
        component.has_ended.store(true, Relaxed);
        world.start_elsewhere(1, component.clone());
        world.web(&[1]).await;
        let (status, told) = world.ask("POST", "hello").await;
        assert!(status == 0 && told.starts_with(words), "{told}");
        world.start_elsewhere(2, echo().0);
        world.web(&[1, 2]).await;
        let (before, mut lost) = (component.asked.load(Relaxed), 0);
        let asking = async {
            while component.asked.load(Relaxed) == before {
                lost += usize::from(world.ask(method, "hello").await.0 != 200);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(SOON, asking).await.expect("it is asked again");
        assert_eq!(lost == 0, is_repeated, "{words} {method}");
    }
    // Nobody but a component's node says so: a pod that listens itself, or a component, may answer with any header.
    let world = World::new().await;
    let headers = "x-coracle-link-refused: unseen\r\ncontent-length: 2";
    let (local, _) = listening(move |mut stream| async move {
        read_head(&mut stream).await;
        write(&mut stream, &format!("HTTP/1.1 503 Busy\r\n{headers}\r\n\r\nno")).await;
    })
    .await;
    world.start(1, local);
    world.web(&[1]).await;
    assert_eq!(world.ask("POST", "x").await, (503, "no".to_owned()));
    let (forges, _) = called(|_| async {
        let mut response = Response::new(text("mine".to_owned()));
        response.headers_mut().insert("x-coracle-link-refused", "unseen".parse().unwrap());
        Ok(response)
    });
    world.end(1);
    world.start_elsewhere(1, forges.clone());
    assert_eq!(world.ask("POST", "x").await, (200, "mine".to_owned()));
    world.pods.listen_elsewhere.store(true, Relaxed);
    world.start_elsewhere(2, forges);
    let request = Request::post("http://10.9.0.2:8080/").body(text("x".to_owned())).unwrap();
    assert_eq!(read(world.proxy.call(&Source::Unknown, "n", request).await.unwrap()).await, "mine");
}

/// A body that has only begun when nobody takes the request is sent to another.
#[tokio::test]
async fn a_request_whose_body_still_comes_is_asked_elsewhere_too() {
    let world = World::new().await;
    let gone = Ends::new(|| "it has gone".into());
    gone.has_ended.store(true, Relaxed);
    world.start_elsewhere(1, gone.clone());
    world.start_elsewhere(2, echo().0);
    world.web(&[1, 2]).await;
    for _ in 0..20 {
        let (send, receive) = tokio::sync::mpsc::channel::<&'static str>(4);
        let frames = futures::stream::unfold(receive, |mut receive| async {
            let text = receive.recv().await?;
            Some((Ok::<_, BoxError>(http_body::Frame::data(bytes::Bytes::from(text))), receive))
        });
        let body = http_body_util::StreamBody::new(frames).boxed_unsync();
        send.send("one ").await.unwrap();
        let request = Request::post("http://web/").body(body).unwrap();
        let asking = world.proxy.call(&Source::Unknown, "n", request);
        let sending = async move {
            tokio::time::sleep(Duration::from_millis(20)).await;
            send.send("two").await.unwrap();
        };
        let (answer, ()) = tokio::join!(asking, sending);
        assert_eq!(read(answer.unwrap()).await, "one two");
    }
    assert!(gone.asked.load(Relaxed) > 0, "who has ended was never asked");
}

#[tokio::test]
async fn who_has_its_share_of_the_way_to_a_node_waits_for_nobody_and_harms_no_endpoint() {
    let world = World::new().await;
    let (one, two) = (echo().0, echo().0);
    world.start_elsewhere(1, one.clone());
    world.start_elsewhere(2, two.clone());
    world.web(&[1, 2]).await;
    world.pods.places_elsewhere.store(1, Relaxed);
    let request = |by: Asker| {
        let mut request = Request::post("http://web/").body(text("hello".to_owned())).unwrap();
        request.extensions_mut().insert(by);
        request
    };
    let pod = Asker::Pod(pod(9));
    let held = world.proxy.call(&Source::Unknown, "n", request(pod.clone())).await.unwrap();
    let begun = Instant::now();
    let refused = world.proxy.call(&Source::Unknown, "n", request(pod.clone())).await.unwrap_err();
    assert!(
        matches!(refused, Error::Unavailable { .. }) && begun.elapsed() < Duration::from_millis(400),
        "{refused:?}"
    );
    assert_eq!(read(held).await, "hello");
    // Neither endpoint is thought worse of: both are asked at once when there is room.
    world.pods.places_elsewhere.store(usize::MAX, Relaxed);
    let calls = || [&one, &two].map(|component| component.calls.load(Relaxed));
    let before = calls();
    let mut answers = Vec::new();
    for _ in 0..20 {
        answers.push(world.proxy.call(&Source::Unknown, "n", request(pod.clone())).await.unwrap());
    }
    assert!(calls().iter().zip(before).all(|(now, before)| *now > before), "{before:?}, then {:?}", calls());
    assert!(world.pods.entered.lock().unwrap().iter().all(|by| *by == pod));
}

#[tokio::test]
async fn deadlines_and_what_is_carried_reach_a_component_on_another_node() {
    let world = World::new().await;
    let seen = Arc::new(Mutex::new(None));
    let sees = seen.clone();
    let (component, _) = called(move |request| {
        let extensions = request.extensions();
        let names: Vec<String> = request.headers().keys().map(ToString::to_string).collect();
        *sees.lock().unwrap() =
            Some((extensions.get::<Deadline>().copied(), extensions.get::<Carried>().cloned(), names));
        async { Ok(Response::new(text(String::new()))) }
    });
    world.start_elsewhere(1, component);
    world.web(&[1]).await;
    let at = Instant::now() + Duration::from_secs(60);
    // What others have written by these names is not taken for it.
    let mut request = Request::get("http://web/").header("x-coracle-link-carried", "forged").body(text(String::new()));
    world.proxy.call(&Source::Unknown, "n", request.unwrap()).await.unwrap();
    assert_eq!(seen.lock().unwrap().take().unwrap().1, None);
    request = Request::get("http://web/").header("x-coracle-link-deadline", "1").body(text(String::new()));
    let mut request = request.unwrap();
    // Nor does what is said of a connection take ours away.
    request.headers_mut().insert("connection", "x-coracle-link-carried, x-coracle-link-deadline".parse().unwrap());
    request.extensions_mut().insert(Deadline(at));
    request.extensions_mut().insert(Carried("1,2".parse().unwrap()));
    world.proxy.call(&Source::Unknown, "n", request).await.unwrap();
    let (deadline, carried, names) = seen.lock().unwrap().take().unwrap();
    let Deadline(deadline) = deadline.unwrap();
    assert!(deadline <= at + Duration::from_secs(1) && deadline > at - Duration::from_secs(30));
    assert_eq!(carried.unwrap().0, "1,2");
    assert!(!names.iter().any(|name| name.starts_with("x-coracle-link")), "{names:?}");
}

#[tokio::test]
async fn deadlines_travel_and_end_a_request() {
    let world = World::new().await;
    let seen = Arc::new(Mutex::new(None));
    let sees = seen.clone();
    let (_, local) = called(move |request| {
        *sees.lock().unwrap() = request.extensions().get::<Deadline>().copied();
        std::future::pending()
    });
    world.start(1, local);
    world.web(&[1]).await;
    for host in ["web", "10.9.0.1:8080"] {
        let deadline = Deadline(Instant::now() + Duration::from_millis(50));
        let mut request = Request::builder().uri(format!("http://{host}/")).body(text(String::new())).unwrap();
        request.extensions_mut().insert(deadline);
        let answer = tokio::time::timeout(SOON, world.proxy.call(&Source::Unknown, "n", request)).await.unwrap();
        assert!(matches!(answer, Err(Error::Late)), "{host}");
        assert_eq!(seen.lock().unwrap().take(), Some(deadline));
    }
}

#[tokio::test]
async fn what_is_for_one_connection_stays_on_it() {
    let world = World::new().await;
    let seen = Arc::new(Mutex::new(String::new()));
    let head = seen.clone();
    let (local, _) = listening(move |mut stream| {
        let seen = head.clone();
        async move {
            *seen.lock().unwrap() = read_head(&mut stream).await;
            let headers =
                "content-length: 2\r\nconnection: close, x-mine\r\nx-mine: 1\r\nkeep-alive: timeout=5\r\nx-kept: 2";
            write(&mut stream, &format!("HTTP/1.1 200 OK\r\n{headers}\r\n\r\nok")).await;
        }
    })
    .await;
    world.start(1, local);
    world.web(&[1]).await;
    let request = Request::builder().uri("http://web/").header("connection", "x-mine").header("x-mine", "1");
    let request = request.header("te", "trailers").header("upgrade", "h2c").header("x-kept", "2");
    let response = world.proxy.call(&Source::Unknown, "n", request.body(text(String::new())).unwrap()).await.unwrap();
    let names: HashSet<&str> = response.headers().keys().map(|name| name.as_str()).collect();
    assert_eq!(names, HashSet::from(["content-length", "x-kept"]));
    let head = seen.lock().unwrap().clone();
    assert!(head.contains("x-kept: 2\r\n") && head.contains("host: web\r\n"), "{head:?}");
    assert!(!["connection", "x-mine", "te:", "upgrade"].iter().any(|name| head.contains(name)), "{head:?}");
}

#[tokio::test]
async fn connections_go_by_protocol_and_names_lead_everywhere_in_turn() {
    let world = World::new().await;
    let tcp = listening(|_| async {}).await;
    world.start(1, tcp.0);
    world.service(
        "dns",
        "10.96.0.10",
        json!([{"name": "t", "port": 53}, {"name": "u", "port": 53, "protocol": "UDP"}]),
    );
    world.ready("dns", &[1], json!([{"name": "t", "port": 5353}]));
    world.known("dns", 1).await;
    let dns: SocketAddr = "10.96.0.10:53".parse().unwrap();
    assert_eq!(world.proxy.connect_address(&Source::Unknown, dns, TCP).unwrap().unwrap(), tcp.1);
    assert!(matches!(world.proxy.connect_address(&Source::Unknown, dns, UDP), Some(Err(Error::NoEndpoints { .. }))));
    assert!(world.proxy.connect_address(&Source::Unknown, "192.0.2.1:53".parse().unwrap(), TCP).is_none());

    world.service("db", "None", json!([{"port": 80}]));
    world.ready("db", &[1, 2, 3], json!([{"port": 80}]));
    world.known("db", 3).await;
    let first = |_| world.proxy.resolve("DB.n", "m").unwrap()[0];
    assert_eq!((0..200).map(first).collect::<HashSet<_>>(), HashSet::from([pod(1), pod(2), pod(3)]));
}

#[tokio::test]
async fn a_pods_datagrams_to_a_service_stay_together_and_are_answered_by_it() {
    let world = World::new().await;
    let sockets: Vec<SocketAddr> = (1..=4).map(|n| SocketAddr::from(([127, 9, 0, n], 53))).collect();
    for (n, socket) in (1..).zip(&sockets) {
        world.start(n, crate::Local::Tcp(*socket));
    }
    world.service("dns", "10.96.0.10", json!([{"port": 53, "protocol": "UDP"}]));
    world.ready("dns", &[1, 2, 3, 4], json!([{"port": 53}]));
    world.known("dns", 4).await;
    let dns: SocketAddr = "10.96.0.10:53".parse().unwrap();
    let mut used = HashSet::new();
    for _ in 0..50 {
        let flows = Flows::default();
        let real = flows.send(&world.proxy, &Source::Unknown, dns).unwrap().unwrap();
        assert!((0..20).all(|_| flows.send(&world.proxy, &Source::Unknown, dns).unwrap().unwrap() == real));
        assert_eq!(flows.shown(real), Some(dns));
        used.insert(real);
    }
    assert_eq!(used, sockets.iter().copied().collect(), "pods are spread");
    // An endpoint that has gone is replaced.
    let flows = Flows::default();
    let real = flows.send(&world.proxy, &Source::Unknown, dns).unwrap().unwrap();
    world.end(1 + sockets.iter().position(|socket| *socket == real).unwrap() as u8);
    let other = flows.send(&world.proxy, &Source::Unknown, dns).unwrap().unwrap();
    assert_ne!(other, real);
    assert_eq!((flows.shown(real), flows.shown(other)), (None, Some(dns)));
    assert!(flows.send(&world.proxy, &Source::Unknown, "192.0.2.1:53".parse().unwrap()).is_none());
}

#[tokio::test]
async fn responses_count_as_under_way_until_they_are_read() {
    let world = World::new().await;
    // One pod's answers are never read to their end; the other's are.
    let slow = |_| async { Ok(Response::new(text("x".to_owned()))) };
    let (one, two) = (called(slow), called(slow));
    world.start(1, one.1);
    world.start(2, two.1);
    world.web(&[1, 2]).await;
    let mut held = Vec::new();
    for _ in 0..100 {
        let request = Request::builder().uri("http://web/").body(text(String::new())).unwrap();
        held.push(world.proxy.call(&Source::Unknown, "n", request).await.unwrap());
    }
    let calls = (one.0.calls.load(Relaxed), two.0.calls.load(Relaxed));
    assert!(calls.0 >= 25 && calls.1 >= 25, "{calls:?}");
}

#[tokio::test]
async fn what_is_meant_to_be_secret_does_not_go_out_in_the_open() {
    let world = World::new().await;
    let (web, local) = echo();
    world.start(1, local);
    world.web(&[1]).await;
    let request = Request::builder().uri("https://web:80/").body(text("token".to_owned())).unwrap();
    assert!(matches!(world.proxy.call(&Source::Unknown, "n", request).await, Err(Error::Scheme(_))));
    assert_eq!(web.calls.load(Relaxed), 0);
}

/// A WebSocket or another protocol, by a connection that is served as HTTP and by an endpoint that listens itself.
#[tokio::test]
async fn a_connection_may_change_its_protocol() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    struct Through(crate::Proxy);
    impl crate::HttpService for Through {
        fn call(
            &self,
            request: Request<crate::Body>,
        ) -> BoxFuture<'static, Result<Response<crate::Body>, crate::BoxError>> {
            let proxy = self.0.clone();
            Box::pin(async move { proxy.call(&Source::Unknown, "n", request).await.map_err(Into::into) })
        }
    }

    let world = World::new().await;
    let heads = Arc::new(Mutex::new(Vec::new()));
    let seen = heads.clone();
    let (local, _) = listening(move |mut stream| {
        let seen = seen.clone();
        async move {
            let head = read_head(&mut stream).await;
            let agrees = head.contains("/chat");
            seen.lock().unwrap().push(head.to_ascii_lowercase());
            let answer = match agrees {
                true => "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: chat\r\n\r\n",
                false => "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nno",
            };
            stream.write_all(answer.as_bytes()).await.unwrap();
            let mut said = [0; 5];
            while stream.read_exact(&mut said).await.is_ok() {
                said.make_ascii_uppercase();
                stream.write_all(&said).await.unwrap();
            }
        }
    })
    .await;
    world.start(1, local);
    world.web(&[1]).await;
    let ask = async |path: &str| {
        let (mut client, server) = tokio::io::duplex(4 << 10);
        let serving = tokio::spawn(crate::serve_stream(server, Arc::new(Through(world.proxy.clone()))));
        let head =
            format!("GET {path} HTTP/1.1\r\nhost: web\r\nconnection: keep-alive, Upgrade\r\nupgrade: chat\r\n\r\n");
        client.write_all(head.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(client.read_u8().await.unwrap());
        }
        (client, String::from_utf8(answer).unwrap().to_ascii_lowercase(), serving)
    };
    let (mut client, answer, serving) = ask("/chat").await;
    assert!(answer.starts_with("http/1.1 101") && answer.contains("upgrade: chat"), "{answer}");
    for _ in 0..3 {
        let mut heard = [0; 5];
        client.write_all(b"hello").await.unwrap();
        client.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"HELLO");
    }
    drop(client);
    // It ends with the client.
    let _ = tokio::time::timeout(SOON, serving).await.expect("the tunnel ends").unwrap();
    let (_, answer, _) = ask("/none").await;
    assert!(answer.starts_with("http/1.1 200"), "{answer}");
    for head in heads.lock().unwrap().iter() {
        assert!(head.contains("connection: upgrade") && !head.contains("keep-alive"), "{head}");
    }
}
