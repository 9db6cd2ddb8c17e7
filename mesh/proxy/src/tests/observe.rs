//! What is seen of requests: metrics, taps, routes and traces.

use std::sync::{Arc, Mutex};

use coracle_policy::Source;
use futures::FutureExt;
use http::{Request, Response};
use http_body_util::BodyExt;
use serde_json::json;

use super::world::*;
use crate::{Asker, Filter, Sight, Tracer};

fn get(uri: &str) -> Request<crate::Body> {
    Request::get(uri).body(text(String::new())).unwrap()
}

#[tokio::test]
async fn requests_are_counted_by_service_and_by_endpoint() {
    let world = World::new().await;
    let (_, local) = called(|request| async move {
        let status = request.uri().path().trim_start_matches('/').parse::<u16>().unwrap_or(200);
        let body = request.into_body().collect().await?.to_bytes();
        let mut response = Response::new(text(String::from_utf8(body.to_vec())?));
        *response.status_mut() = http::StatusCode::from_u16(status)?;
        Ok(response)
    });
    world.start(1, local);
    world.web(&[1]).await;
    for path in ["", "404", "404"] {
        world.proxy.call(&Source::Node, "n", get(&format!("http://web/{path}"))).await.unwrap();
    }
    assert_eq!(world.ask("POST", "four").await.0, 200);
    let open = world.proxy.call(&Source::Node, "n", get("http://web/")).await.unwrap();
    let page = world.proxy.metrics();
    let labels = "reporter=\"source\",destination_service_namespace=\"n\",destination_service_name=\"web\",destination_port=\"80\"";
    for line in [
        format!("istio_requests_total{{{labels},response_code=\"2xx\"}} 3"),
        format!("istio_requests_total{{{labels},response_code=\"4xx\"}} 2"),
        format!("istio_request_duration_milliseconds_count{{{labels}}} 5"),
        format!("istio_request_duration_milliseconds_bucket{{{labels},le=\"+Inf\"}} 5"),
        format!("coracle_mesh_sent_bytes_total{{{labels}}} 4"),
        format!("coracle_mesh_received_bytes_total{{{labels}}} 4"),
        format!("coracle_mesh_in_flight{{{labels}}} 1"),
        format!("coracle_mesh_endpoint_requests_total{{{labels},endpoint=\"10.9.0.1:8080\",response_code=\"4xx\"}} 2"),
    ] {
        assert!(page.lines().any(|found| found == line), "{line} is not in\n{page}");
    }
    drop(open);
    // Nobody is there, and whoever is there does not take it.
    world.start(2, called(|_| async { Err("not today".into()) }).1);
    world.ready("web", &[2, 3], json!([{"port": 8080}]));
    world.known("web", 2).await;
    assert!(world.proxy.call(&Source::Node, "n", get("http://web/")).await.is_err());
    let page = world.proxy.metrics();
    let none = format!("istio_requests_total{{{labels},response_code=\"0\"}} 1");
    assert!(page.contains(&none) && page.contains("coracle_mesh_ejections_total"), "{page}");
    assert!(page.contains("coracle_mesh_endpoint_ejected{"), "{page}");
    let view = world.proxy.view("n", "web").unwrap();
    let out: Vec<_> = view.ports[0].endpoints.iter().filter(|endpoint| endpoint.left_out.is_some()).collect();
    assert_eq!((view.ports[0].endpoints.len(), out.len()), (2, 1));
    assert!(world.proxy.view("n", "nobody").is_none());
}

#[tokio::test]
async fn who_taps_sees_requests_and_their_ends() {
    let world = World::new().await;
    world.start(1, echo().1);
    world.web(&[1]).await;
    let filter = Filter { namespace: Some("n".to_owned()), service: Some("web".to_owned()) };
    let mut tapping = world.proxy.tap(filter).unwrap();
    let mut request = get("http://web/a/b?secret=1");
    request.extensions_mut().insert(Asker::Pod(pod(9)));
    world.proxy.call(&Source::Node, "n", request).await.unwrap();
    world.end(1);
    assert_eq!(world.ask("POST", "").await.0, 0);
    let Some(Sight::Request(first)) = tapping.next().await else { panic!("a request") };
    assert_eq!((&*first.path, first.asker.clone(), first.attempts), ("/a/b", Asker::Pod(pod(9)), 1));
    assert_eq!((first.status.unwrap().as_u16(), first.endpoint.unwrap().ip()), (200, pod(1)));
    let Some(Sight::Request(second)) = tapping.next().await else { panic!("a request") };
    assert_eq!((second.status, second.method.as_str()), (None, "POST"));
    assert!(second.error.as_ref().unwrap().contains("no endpoints available for service n/web"));
}

#[tokio::test]
async fn a_request_that_nobody_waits_for_any_more_is_counted_and_shown_as_one_without_an_answer() {
    let world = World::new().await;
    world.start(1, called(|_| std::future::pending()).1);
    world.web(&[1]).await;
    let mut tapping = world.proxy.tap(Filter::default()).unwrap();
    assert!(world.ask("GET", "").now_or_never().is_none(), "it is dropped while it waits");
    let seen = tokio::time::timeout(SOON, tapping.next()).await.expect("it is shown");
    let Some(Sight::Request(seen)) = seen else { panic!("a request") };
    assert_eq!((seen.status, seen.error.as_deref()), (None, Some("whoever asked has gone")));
    let page = world.proxy.metrics();
    let none = "destination_port=\"80\",response_code=\"0\"} 1";
    assert!(page.lines().any(|line| line.starts_with("istio_requests_total{") && line.ends_with(none)), "{page}");
}

#[tokio::test]
async fn what_is_shown_of_a_request_has_an_end_whatever_its_client_says() {
    let world = World::new().await;
    world.web(&[]).await;
    let mut tapping = world.proxy.tap(Filter::default()).unwrap();
    let mut request = get(&format!("http://web/{}", "p".repeat(9000)));
    *request.method_mut() = "M".repeat(60_000).parse().unwrap();
    assert!(world.proxy.call(&Source::Node, "n", request).await.is_err());
    let Some(Sight::Request(seen)) = tapping.next().await else { panic!("a request") };
    assert_eq!((seen.method.as_str(), seen.path.len()), (&*"M".repeat(32), 512));
}

#[tokio::test]
async fn a_request_s_trace_goes_on_at_whoever_answers_it() {
    let world = World::new().await;
    let heard: Arc<Mutex<Vec<Option<String>>>> = Arc::default();
    let hears = heard.clone();
    let (_, local) = called(move |request| {
        let parent = request.headers().get("traceparent").map(|text| text.to_str().unwrap().to_owned());
        hears.lock().unwrap().push(parent);
        async move { Ok(Response::new(text(String::new()))) }
    });
    world.start(1, local);
    world.web(&[1]).await;
    const GIVEN: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let given = || {
        let mut request = get("http://web/");
        request.headers_mut().insert("traceparent", GIVEN.parse().unwrap());
        request
    };
    // Where nobody traces, it passes as it is, and none is made.
    world.proxy.call(&Source::Node, "n", given()).await.unwrap();
    world.proxy.call(&Source::Node, "n", get("http://web/")).await.unwrap();
    assert_eq!(std::mem::take(&mut *heard.lock().unwrap()), [Some(GIVEN.to_owned()), None]);
    let (tracer, mut spans) = Tracer::new(0.0);
    let proxy = world.proxy.clone().traced(tracer);
    proxy.call(&Source::Node, "n", given()).await.unwrap();
    proxy.call(&Source::Node, "n", get("http://web/")).await.unwrap();
    let span = spans.try_recv().unwrap().span;
    assert!(spans.try_recv().is_err(), "of what begins here none is kept");
    assert_eq!(span.parent, Some(0x00f0_67aa_0ba9_02b7));
    let heard = heard.lock().unwrap();
    assert_eq!(heard[0].as_deref(), Some(&*span.context.to_string()));
    assert!(heard[1].as_ref().unwrap().ends_with("-00"), "that it is not kept is told");
}
