//! What a well-behaved service feels of hostile ones beside it.

use std::path::Path;
use std::time::{Duration, Instant};

use http::Request;
use http_body_util::BodyExt;

use crate::bench::{Figure, failed};
use crate::{Config, Engine, Error, HttpOptions, HttpService, Spec, empty};

/// How long the neighbour is measured each time.
const WINDOW: Duration = Duration::from_secs(3);

/// Between two of its requests.
const PACE: Duration = Duration::from_millis(1);

/// Hostile requests at the same time.
const HOGS: usize = 8;

/// Harm, by the path of `examples/hostile`; with more memory than its limit for those that take it.
const HARM: [(&str, &str); 10] = [
    ("spin", "/spin"),
    ("random", "/random?65536"),
    ("clock", "/clock"),
    ("poll", "/poll"),
    ("log", "/log"),
    ("newlines", "/newlines"),
    ("memory", "/memory?200"),
    ("fields", "/fields?900"),
    ("recurse", "/recurse"),
    ("handles", "/handles"),
];

/// Measures in `dir`, with the components `hello` and `hostile`; calls `report` with each figure. Takes a minute.
pub async fn neighbours(dir: &Path, hello: &Path, hostile: &Path, mut report: impl FnMut(Figure)) -> Result<(), Error> {
    let engine = Engine::new(Config::new(dir.join("cache")))?;
    let fresh = HttpOptions { reuse: Some(1), ..HttpOptions::default() };
    let hello = engine.prepare("hello", hello).await?;
    let neighbour = engine.start_http(&hello, Spec::new("neighbour"), fresh.clone()).await?;
    let hostile = engine.prepare("hostile", hostile).await?;
    measure(&engine, &neighbour).await?;
    for (name, path) in HARM {
        let before = measure(&engine, &neighbour).await?;
        let spec = Spec { memory_bytes_max: Some(128 << 20), ..Spec::new("hostile") };
        let service = engine.start_http(&hostile, spec, fresh.clone()).await?;
        let hogs: Vec<_> = (0..HOGS)
            .map(|_| {
                let service = service.clone();
                engine.gateway().spawn(async move {
                    loop {
                        // However it ends, it comes again, until the service is stopped.
                        let request = Request::get(format!("http://hostile{path}")).body(empty());
                        let Ok(request) = request else { return };
                        if let Err(crate::RequestError::Stopped) = service.handle(request).await {
                            return;
                        }
                        // A client waits for its socket between two requests.
                        tokio::task::yield_now().await;
                    }
                })
            })
            .collect();
        let during = measure(&engine, &neighbour).await?;
        service.kill();
        for hog in hogs {
            hog.await.map_err(failed)?;
        }
        let after = measure(&engine, &neighbour).await?;
        for (when, (p50, p99)) in [("before", before), ("during", during), ("after", after)] {
            report(Figure { name: format!("neighbours.{name}.{when}.p50"), value: p50, unit: "µs" });
            report(Figure { name: format!("neighbours.{name}.{when}.p99"), value: p99, unit: "µs" });
        }
        report(Figure { name: format!("neighbours.{name}.p99_of_before"), value: during.1 / before.1, unit: "ratio" });
    }
    Ok(())
}

/// The 50th and the 99th percentile of a request, in microseconds.
async fn measure(engine: &Engine, service: &HttpService) -> Result<(f64, f64), Error> {
    let service = service.clone();
    // Where requests of clients are handled.
    let measured = engine.gateway().spawn(async move {
        let (mut times, begun) = (Vec::new(), Instant::now());
        while begun.elapsed() < WINDOW {
            let asked = Instant::now();
            let request = Request::get("http://hello/").body(empty()).map_err(failed)?;
            let response = service.handle(request).await.map_err(failed)?;
            response.into_body().collect().await.map_err(failed)?;
            times.push(asked.elapsed());
            tokio::time::sleep(PACE).await;
        }
        times.sort_unstable();
        let at = |percent: usize| times.get(times.len() * percent / 100).map_or(0.0, |time| time.as_secs_f64() * 1e6);
        Ok::<_, Error>((at(50), at(99)))
    });
    measured.await.map_err(failed)?
}
