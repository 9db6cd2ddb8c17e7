//! HTTP services, good and hostile ones.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use http::{Request, Response};
use http_body_util::BodyExt;

use super::{component, engine, get, ok, probe, rest, soon, spec};
use crate::{Body, Exit, HttpOptions, Outbound, OutboundError, RequestError, Spec, empty, full};

fn quick(millis: u64) -> HttpOptions {
    HttpOptions { request_timeout: Duration::from_millis(millis), reuse: Some(1), ..HttpOptions::default() }
}

#[tokio::test]
async fn hello_answers_from_a_fresh_instance_each_time() {
    let service = engine().start_http(&component("hello").await, Spec::new("a"), quick(300_000)).await.unwrap();
    for _ in 0..100 {
        assert_eq!(get(&service, "/").await, ok("hello\n"));
    }
    soon(service.drain()).await;
    let counters = service.counters();
    assert_eq!((counters.requests, counters.failed, counters.in_flight), (100, 0, 0));
    rest(&service).await;
    assert_eq!(get(&service, "/").await, Err(RequestError::Stopped));
}

#[tokio::test]
async fn requests_reach_the_guest_and_answers_come_back() {
    let (spec, printed) = spec();
    let env = vec![("NAME".to_owned(), "value".to_owned())];
    let service = probe(Spec { env, args: vec!["probe".to_owned(), "--flag".to_owned()], ..spec }, quick(30_000)).await;
    assert_eq!(get(&service, "/env?NAME").await, ok("value"));
    assert_eq!(get(&service, "/args").await, ok("probe\n--flag\n"));
    assert_eq!(get(&service, "/stream?3").await, ok("line 0\nline 1\nline 2\n"));
    assert_eq!(get(&service, "/sleep?50").await, ok("awake\n"));
    assert_eq!(get(&service, "/status?418").await.unwrap().0, 418);
    assert_eq!(get(&service, "/spin?50").await.unwrap().0, 200, "it moves to the guests' threads and comes back");
    get(&service, "/log?words").await.unwrap();
    assert_eq!(printed.text(), "words\nwords\n");
    let large = vec![b'x'; 3 << 20];
    let request = Request::post("http://probe/echo").body(full(large.clone())).unwrap();
    let echoed = service.handle(request).await.unwrap().into_body().collect().await.unwrap().to_bytes();
    assert_eq!(echoed.len(), large.len());
}

#[tokio::test]
async fn many_requests_run_at_the_same_time() {
    let service = probe(Spec::new("a"), quick(30_000)).await;
    let requests = (0..50).map(|number| {
        let service = service.clone();
        tokio::spawn(async move { get(&service, if number % 2 == 0 { "/sleep?30" } else { "/spin?10" }).await })
    });
    for request in futures::future::join_all(requests).await {
        assert_eq!(request.unwrap().unwrap().0, 200);
    }
    assert_eq!(service.counters().failed, 0);
}

#[tokio::test]
async fn a_guest_that_fails_harms_its_request_only() {
    let (spec, printed) = spec();
    let service = probe(spec, quick(30_000)).await;
    let error = get(&service, "/panic").await.unwrap_err();
    assert!(matches!(&error, RequestError::Trap(message) if message.contains("unreachable")), "{error:?}");
    assert_eq!(error.status(), 500);
    assert!(printed.text().contains("asked to") && printed.text().contains("wasm trap"), "{}", printed.text());
    assert_eq!(get(&service, "/healthz").await, ok("ok\n"));
    let counters = service.counters();
    assert_eq!((counters.traps, counters.failed), (1, 1), "{counters:?}");
    let broken = service.handle(Request::get("http://probe/break").body(empty()).unwrap()).await.unwrap();
    assert!(broken.into_body().collect().await.is_err(), "the body breaks off");
}

#[tokio::test]
async fn endless_guests_are_ended_and_do_not_stop_others() {
    let service = probe(Spec::new("a"), quick(400)).await;
    let hogs: Vec<_> = (0..4)
        .map(|number| {
            let service = service.clone();
            tokio::spawn(async move { get(&service, if number % 2 == 0 { "/spin" } else { "/sleep?100000" }).await })
        })
        .collect();
    for _ in 0..20 {
        assert_eq!(get(&service, "/healthz").await, ok("ok\n"));
    }
    for hog in hogs {
        assert_eq!(soon(hog).await.unwrap(), Err(RequestError::Timeout));
    }
    soon(service.drain()).await;
}

#[tokio::test]
async fn the_memory_limit_is_one_for_all_instances_of_a_service() {
    let service = probe(Spec { memory_bytes_max: Some(64 << 20), ..Spec::new("a") }, quick(30_000)).await;
    assert_eq!(get(&service, "/alloc?20").await.unwrap().0, 200);
    assert_eq!(get(&service, "/alloc?80").await, Err(RequestError::OutOfMemory));
    assert_eq!(soon(service.failed()).await, Exit::OutOfMemory);
    assert_eq!(get(&service, "/healthz").await, ok("ok\n"));
    rest(&service).await;
    assert!(service.usage().memory_bytes_peak > 20 << 20);
}

#[tokio::test]
async fn requests_wait_for_memory_instead_of_failing() {
    // A fresh instance has a little more than 1 MiB.
    let service = probe(Spec { memory_bytes_max: Some(6 << 20), ..Spec::new("a") }, quick(30_000)).await;
    let requests = (0..40).map(|_| {
        let service = service.clone();
        tokio::spawn(async move { get(&service, "/sleep?5").await })
    });
    for request in futures::future::join_all(requests).await {
        assert_eq!(request.unwrap(), ok("awake\n"));
    }
    assert_eq!(service.counters().out_of_memory, 0);
}

#[tokio::test]
async fn fuel_is_a_budget_of_each_request() {
    let service = probe(Spec { fuel_max: Some(20_000_000), ..Spec::new("a") }, quick(30_000)).await;
    assert_eq!(get(&service, "/spin").await, Err(RequestError::FuelExhausted));
    assert_eq!(get(&service, "/healthz").await, ok("ok\n"));
}

#[tokio::test]
async fn instances_are_reused_when_the_service_says_so() {
    let options = HttpOptions { reuse: Some(3), ..quick(30_000) };
    let service = probe(Spec::new("a"), options).await;
    let mut counts = Vec::new();
    for _ in 0..6 {
        counts.push(get(&service, "/count").await.unwrap().1);
        // The instance is back when the guest has returned, which may be after its answer was read.
        while service.counters().in_flight > 0 {
            tokio::task::yield_now().await;
        }
    }
    assert_eq!(counts.concat(), "1\n2\n3\n1\n2\n3\n");
}

#[tokio::test]
async fn idle_instances_are_dropped() {
    let options = HttpOptions { reuse: Some(100), idle_timeout: Duration::from_millis(20), ..quick(30_000) };
    let service = probe(Spec::new("a"), options).await;
    get(&service, "/healthz").await.unwrap();
    rest(&service).await;
}

#[tokio::test]
async fn beyond_concurrency_requests_queue_and_beyond_the_queue_they_are_refused() {
    let options = HttpOptions { concurrency: 1, queue: 1, ..quick(30_000) };
    let service = probe(Spec::new("a"), options).await;
    let asked = [(); 3].map(|()| {
        let service = service.clone();
        tokio::spawn(async move { get(&service, "/sleep?200").await })
    });
    let mut answers = Vec::new();
    for answer in asked {
        answers.push(soon(answer).await.unwrap());
    }
    let refused = answers.iter().filter(|answer| **answer == Err(RequestError::Overloaded)).count();
    let answered = answers.iter().filter(|answer| **answer == ok("awake\n")).count();
    assert_eq!((answered, refused), (2, 1));
    assert_eq!(service.counters().refused, 1);
}

#[tokio::test]
async fn killing_a_service_ends_what_is_under_way() {
    for path in ["/sleep?100000", "/spin"] {
        let service = probe(Spec::new("a"), quick(300_000)).await;
        let asked = tokio::spawn({
            let service = service.clone();
            async move { get(&service, path).await }
        });
        while service.counters().in_flight == 0 {
            tokio::task::yield_now().await;
        }
        service.kill();
        assert_eq!(soon(asked).await.unwrap(), Err(RequestError::Killed), "{path}: a guest had seen it");
        assert_eq!(get(&service, path).await, Err(RequestError::Stopped), "{path}: no guest sees it");
        soon(service.drain()).await;
    }
}

#[tokio::test]
async fn a_reader_that_goes_away_or_stalls_holds_nothing_for_long() {
    let service = probe(Spec::new("a"), quick(500)).await;
    let stalled = service.handle(Request::get("http://probe/stream?1000").body(empty()).unwrap()).await.unwrap();
    let gone = service.handle(Request::get("http://probe/stream?1000").body(empty()).unwrap()).await.unwrap();
    drop(gone);
    soon(service.drain()).await;
    assert!(stalled.into_body().collect().await.is_err(), "its guest was ended");
    rest(&service).await;
}

/// Answers with what it was asked for.
struct Mirror;

#[async_trait]
impl Outbound for Mirror {
    async fn send(&self, request: Request<Body>) -> Result<Response<Body>, OutboundError> {
        if request.uri().host() == Some("nowhere") {
            return Err(OutboundError::Name("nowhere".to_owned()));
        }
        let seen = format!("{} {} {:?}", request.method(), request.uri(), request.headers().get("host"));
        Ok(Response::new(full(seen)))
    }
}

#[tokio::test]
async fn outgoing_requests_go_through_the_node() {
    let service = probe(Spec { outbound: Arc::new(Mirror), ..Spec::new("a") }, quick(30_000)).await;
    let (status, body) = get(&service, "/get?http://api.default.svc/v1").await.unwrap();
    assert_eq!((status, body.as_str()), (200, "GET http://api.default.svc/v1 Some(\"api.default.svc\")"));
    assert_eq!(get(&service, "/get?http://nowhere/").await.unwrap().0, 502);
    let denied = probe(Spec::new("a"), quick(30_000)).await;
    assert_eq!(get(&denied, "/get?http://api/").await.unwrap().0, 502);
}

#[tokio::test]
async fn services_of_wasi_0_3_answer_too() {
    for reuse in [1, 5] {
        let (spec, printed) = spec();
        let options = HttpOptions { reuse: Some(reuse), ..quick(30_000) };
        let service = engine().start_http(&component("hello-p3").await, spec, options).await.unwrap();
        for _ in 0..12 {
            assert_eq!(get(&service, "/").await, ok("hello\n"));
        }
        assert_eq!(get(&service, "/sleep").await, ok("awake\n"));
        let large = vec![b'x'; 1 << 20];
        let request = Request::post("http://hello/echo").body(full(large.clone())).unwrap();
        let echoed = service.handle(request).await.unwrap().into_body().collect().await.unwrap().to_bytes();
        assert_eq!(echoed.len(), large.len());
        assert!(matches!(get(&service, "/panic").await, Err(RequestError::Trap(_))));
        assert!(printed.text().contains("asked to"), "{}", printed.text());
        assert_eq!(get(&service, "/").await, ok("hello\n"));
        soon(service.drain()).await;
        rest(&service).await;
    }
}
