//! What this machine does with a small component, beside what was measured where the bars were set.

use std::path::Path;
use std::time::{Duration, Instant};

use http::Request;
use http_body_util::BodyExt;

use crate::{Config, Engine, Error, HttpOptions, HttpService, Spec, empty};

/// One measured figure.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// What was measured.
    pub name: String,
    /// How much.
    pub value: f64,
    /// Of what.
    pub unit: &'static str,
}

/// How often each thing is done.
const ROUNDS: usize = 20_000;

/// Measures with the service `hello`, in `dir`. Takes some seconds.
pub async fn bench(dir: &Path, hello: &Path) -> Result<Vec<Figure>, Error> {
    let mut figures = Vec::new();
    let mut report = |name: &str, value: f64, unit| figures.push(Figure { name: format!("engine.{name}"), value, unit });

    let begun = Instant::now();
    let engine = Engine::new(Config::new(dir))?;
    report("start", millis(begun.elapsed()), "ms");
    report("instances_max", f64::from(engine.instances_max()), "instances");

    let begun = Instant::now();
    drop(engine.prepare("hello", hello).await?);
    report("compile", millis(begun.elapsed()), "ms");
    let mut loads = Vec::new();
    for _ in 0..200 {
        let begun = Instant::now();
        drop(engine.prepare("hello", hello).await?);
        loads.push(begun.elapsed());
    }
    percentiles(&mut loads, "load", &mut report);

    let component = engine.prepare("hello", hello).await?;
    for (name, reuse) in [("request.fresh_instance", 1), ("request.warm_instance", 1000)] {
        let options = HttpOptions { reuse, ..HttpOptions::default() };
        let service = engine.start_http(&component, Spec::new("bench"), options).await?;
        // On a task, as requests are.
        let mut times = tokio::spawn(async move { requests(&service).await })
            .await
            .map_err(|panic| Error::Start(panic.to_string()))??;
        let sum: Duration = times.iter().sum();
        report(&format!("{name}.rate"), ROUNDS as f64 / sum.as_secs_f64(), "requests/s");
        percentiles(&mut times, name, &mut report);
    }
    Ok(figures)
}

async fn requests(service: &HttpService) -> Result<Vec<Duration>, Error> {
    let mut times = Vec::with_capacity(ROUNDS);
    for round in 0..ROUNDS + 1000 {
        let request = Request::get("http://bench/").body(empty()).map_err(|error| Error::Start(error.to_string()))?;
        let begun = Instant::now();
        let response = service.handle(request).await.map_err(|error| Error::Start(error.to_string()))?;
        let body = response.into_body().collect().await.map_err(|error| Error::Start(error.to_string()))?;
        std::hint::black_box(body.to_bytes());
        // The first ones fill caches.
        if round >= 1000 {
            times.push(begun.elapsed());
        }
    }
    Ok(times)
}

fn percentiles(times: &mut [Duration], name: &str, report: &mut impl FnMut(&str, f64, &'static str)) {
    times.sort_unstable();
    for (percentile, at) in [("p50", times.len() / 2), ("p99", times.len() * 99 / 100)] {
        report(&format!("{name}.{percentile}"), times[at].as_secs_f64() * 1e6, "µs");
    }
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
