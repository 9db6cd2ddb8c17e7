//! Behaviour of the whole engine, with the guests of `examples/` and some written here as text.

mod commands;
mod components;
mod hostile;
mod services;
mod sockets;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command as Process;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use http::Request;
use http_body_util::BodyExt;

use crate::{Component, Config, Engine, HttpOptions, HttpService, RequestError, Sink, Spec, empty};

/// One engine for all tests: each would reserve terabytes of addresses.
fn engine() -> Engine {
    static ENGINE: LazyLock<(Engine, tempfile::TempDir)> = LazyLock::new(|| {
        let dir = tempfile::tempdir().unwrap();
        (Engine::new(Config { instances_max: 200, ..Config::new(dir.path()) }).unwrap(), dir)
    });
    ENGINE.0.clone()
}

/// The component of a package in `examples/`, built when it is first asked for.
fn built(package: &'static str) -> PathBuf {
    static BUILT: LazyLock<Mutex<HashMap<&'static str, PathBuf>>> = LazyLock::new(Mutex::default);
    let mut built = BUILT.lock().unwrap();
    let build = || {
        let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples").canonicalize().unwrap();
        let target = examples.join("target");
        let status = Process::new("cargo")
            .args(["build", "--release", "--locked", "--quiet", "--target", "wasm32-wasip2", "--package", package])
            .arg("--target-dir")
            .arg(&target)
            .env_remove("RUSTFLAGS")
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .current_dir(examples)
            .status()
            .expect("cargo runs");
        assert!(status.success(), "build {package}; is the target installed? rustup target add wasm32-wasip2");
        let built = target.join("wasm32-wasip2/release");
        // A library's file has underscores.
        let names = [package.to_owned(), package.replace('-', "_")];
        names.map(|name| built.join(format!("{name}.wasm"))).into_iter().find(|path| path.exists()).unwrap()
    };
    built.entry(package).or_insert_with(build).clone()
}

async fn component(package: &'static str) -> Component {
    let path = tokio::task::spawn_blocking(move || built(package)).await.unwrap();
    engine().prepare(package, &path).await.unwrap()
}

/// Keeps what is printed.
#[derive(Clone, Default)]
struct Printed(Arc<Mutex<Vec<u8>>>);

impl Printed {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

impl Sink for Printed {
    fn write(&self, bytes: &[u8]) {
        self.0.lock().unwrap().extend_from_slice(bytes);
    }
}

/// A specification, and what its guest prints on both streams.
fn spec() -> (Spec, Printed) {
    let printed = Printed::default();
    (Spec { stdout: Arc::new(printed.clone()), stderr: Arc::new(printed.clone()), ..Spec::new("test") }, printed)
}

/// The service `probe` with these options.
pub(crate) async fn probe(spec: Spec, options: HttpOptions) -> HttpService {
    engine().start_http(&component("probe").await, spec, options).await.unwrap()
}

/// Status and body of an answer.
async fn get(service: &HttpService, path: &str) -> Result<(u16, String), RequestError> {
    let request = Request::get(format!("http://probe{path}")).body(empty()).unwrap();
    let response = service.handle(request).await?;
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

/// Waits until the service has nothing under way: a guest returns after its answer was read.
async fn rest(service: &HttpService) {
    soon(async {
        while service.counters().in_flight > 0 || service.usage().memory_bytes > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

fn ok(body: &str) -> Result<(u16, String), RequestError> {
    Ok((200, body.to_owned()))
}

/// Fails instead of hanging.
async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future).await.expect("it happens within a minute")
}
