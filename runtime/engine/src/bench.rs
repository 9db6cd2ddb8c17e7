//! What this machine does with a small component, beside what was the best on the machine where the bars were set.

use std::path::Path;
use std::time::{Duration, Instant};

use http::Request;
use http_body_util::BodyExt;

use crate::{Config, Engine, Error, Exit, HttpOptions, HttpService, Spec, adapt, empty};

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

/// The best that was measured with bare wasmtime 48 on two cores, nearly idle: what a component costs at least.
const LIMITS: [(&str, f64); 6] = [
    ("load.p50", 89.0),
    ("request.fresh_instance.p50", 15.2),
    ("request.fresh_instance.p99", 43.0),
    ("request.warm_instance.p50", 6.8),
    ("request.warm_instance.p99", 11.0),
    ("command.life.p50", 11.2),
];

/// How often the quick things are done.
const ROUNDS: usize = 20_000;
/// How often the slower ones are.
const LIVES: usize = 2_000;
/// Services that are started and left alone.
const SERVICES: usize = 2_000;

/// `(module (memory (export "memory") 1) (func (export "_start")))`: the smallest command.
const COMMAND: &[u8] = b"\0asm\x01\0\0\0\x01\x04\x01\x60\0\0\x03\x02\x01\0\x05\x03\x01\0\x01\
    \x07\x13\x02\x06memory\x02\0\x06_start\0\0\x0a\x04\x01\x02\0\x0b";

#[derive(Default)]
struct Report(Vec<Figure>);

impl Report {
    fn add(&mut self, name: &str, value: f64, unit: &'static str) {
        self.0.push(Figure { name: format!("engine.{name}"), value, unit });
        if let Some((_, limit)) = LIMITS.iter().find(|(limited, _)| *limited == name) {
            self.0.push(Figure { name: format!("engine.{name}.limit"), value: *limit, unit });
        }
    }

    fn percentiles(&mut self, name: &str, times: &mut [Duration]) {
        times.sort_unstable();
        for (percentile, at) in [("p50", times.len() / 2), ("p99", times.len() * 99 / 100)] {
            self.add(&format!("{name}.{percentile}"), times[at].as_secs_f64() * 1e6, "µs");
        }
    }
}

/// Measures with the service `hello`, in `dir`. Takes some seconds.
pub async fn bench(dir: &Path, hello: &Path) -> Result<Vec<Figure>, Error> {
    let mut report = Report::default();
    let before = resident_bytes();
    let begun = Instant::now();
    let engine = Engine::new(Config::new(dir.join("cache")))?;
    report.add("start", begun.elapsed().as_secs_f64() * 1e3, "ms");
    report.add("start.resident", (resident_bytes() - before) / 1e6, "MB");
    report.add("instances_max", f64::from(engine.instances_max()), "instances");

    let begun = Instant::now();
    drop(engine.prepare("hello", hello).await?);
    report.add("compile", begun.elapsed().as_secs_f64() * 1e3, "ms");
    let mut loads = Vec::with_capacity(200);
    for _ in 0..200 {
        let begun = Instant::now();
        drop(engine.prepare("hello", hello).await?);
        loads.push(begun.elapsed());
    }
    report.percentiles("load", &mut loads);

    services(&engine, hello, &mut report).await?;
    commands(&engine, dir, &mut report).await?;
    Ok(report.0)
}

async fn services(engine: &Engine, hello: &Path, report: &mut Report) -> Result<(), Error> {
    let component = engine.prepare("hello", hello).await?;
    for (name, reuse) in [("request.fresh_instance", 1), ("request.warm_instance", 1000)] {
        let options = HttpOptions { reuse: Some(reuse), ..HttpOptions::default() };
        let service = engine.start_http(&component, Spec::new("bench"), options).await?;
        // Where requests of clients are handled.
        let mut times = engine.gateway().spawn(async move { requests(&service).await }).await.map_err(failed)??;
        let sum: Duration = times.iter().sum();
        report.add(&format!("{name}.rate"), ROUNDS as f64 / sum.as_secs_f64(), "requests/s");
        report.percentiles(name, &mut times);
    }
    let before = resident_bytes();
    let begun = Instant::now();
    let mut idle = Vec::with_capacity(SERVICES);
    for number in 0..SERVICES {
        let spec = Spec { env: environment(), ..Spec::new(format!("bench/{number}")) };
        idle.push(engine.start_http(&component, spec, HttpOptions { reuse: Some(1), ..HttpOptions::default() }).await?);
    }
    report.add("service.start", begun.elapsed().as_secs_f64() * 1e6 / SERVICES as f64, "µs");
    report.add("service.idle.resident", (resident_bytes() - before) / 1e3 / SERVICES as f64, "kB");
    Ok(())
}

async fn commands(engine: &Engine, dir: &Path, report: &mut Report) -> Result<(), Error> {
    let path = dir.join("command.wasm");
    let component = adapt::component(COMMAND).map_err(Error::Invalid)?;
    std::fs::write(&path, component).map_err(|source| Error::Read { path: path.clone(), source })?;
    let component = engine.prepare("command", &path).await?;
    let mut lives = Vec::with_capacity(LIVES);
    for _ in 0..LIVES {
        let begun = Instant::now();
        let command = engine.start_command(&component, Spec::new("bench")).await?;
        if command.wait().await != Exit::Code(0) {
            return Err(Error::Start("the command did not end well".to_owned()));
        }
        lives.push(begun.elapsed());
    }
    report.percentiles("command.life", &mut lives);
    Ok(())
}

async fn requests(service: &HttpService) -> Result<Vec<Duration>, Error> {
    let mut times = Vec::with_capacity(ROUNDS);
    // The first ones fill caches.
    let warm_up = 1000;
    for round in 0..ROUNDS + warm_up {
        let request = Request::get("http://bench/").body(empty()).map_err(failed)?;
        let begun = Instant::now();
        let response = service.handle(request).await.map_err(failed)?;
        let body = response.into_body().collect().await.map_err(failed)?;
        if body.to_bytes().is_empty() {
            return Err(Error::Start("the service answered nothing".to_owned()));
        }
        if round >= warm_up {
            times.push(begun.elapsed());
        }
    }
    Ok(times)
}

/// As much as a pod has among some services.
fn environment() -> Vec<(String, String)> {
    (0..20).map(|number| (format!("SERVICE_{number}_PORT"), format!("tcp://10.96.0.{number}:80"))).collect()
}

fn resident_bytes() -> f64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u32 = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
    f64::from(pages) * rustix::param::page_size() as f64
}

pub(crate) fn failed(error: impl std::fmt::Display) -> Error {
    Error::Start(error.to_string())
}
