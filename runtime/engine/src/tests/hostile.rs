//! Hostile guests, each beside a well-behaved neighbour: every request of the neighbour is answered, and the guest ends
//! as said. What the neighbour feels of it is measured by `coracle bench neighbours`.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use http::{Request, Response};
use http_body_util::BodyExt;

use super::{built, component, engine, get, ok, rest, soon, spec};
use crate::{
    Body, Command, Component, Config, Engine, Error, Exit, HttpOptions, HttpService, Mount, Outbound, OutboundError,
    Probe, Qos, RequestError, Spec, empty, full,
};

/// An engine with a ceiling of its own.
fn small_engine(memory_bytes_max: u64) -> (Engine, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let config = Config { instances_max: 64, memory_bytes_max, guest_threads: 2, ..Config::new(dir.path()) };
    (Engine::new(config).unwrap(), dir)
}

async fn prepared(engine: &Engine, package: &'static str) -> Component {
    let path = tokio::task::spawn_blocking(move || built(package)).await.unwrap();
    engine.prepare(package, &path).await.unwrap()
}

fn options(millis: u64) -> HttpOptions {
    HttpOptions { request_timeout: Duration::from_millis(millis), reuse: Some(1), ..HttpOptions::default() }
}

async fn hostile(spec: Spec, options: HttpOptions) -> HttpService {
    engine().start_http(&component("hostile").await, spec, options).await.unwrap()
}

/// The neighbour, and its requests until `until` is done: all are answered, each within `patience`, and of every two one within
/// [`MEDIAN_MAX`].
async fn beside<T>(until: impl Future<Output = T>, patience: Duration) -> T {
    let neighbour =
        engine().start_http(&component("hello").await, Spec::new("neighbour"), options(60_000)).await.unwrap();
    tokio::pin!(until);
    let mut waits = Vec::new();
    loop {
        let asked = async {
            let begun = Instant::now();
            assert_eq!(get(&neighbour, "/").await, ok("hello\n"));
            begun.elapsed()
        };
        tokio::select! {
            biased;
            done = &mut until => {
                waits.sort_unstable();
                let median = waits.get(waits.len() / 2).copied().unwrap_or_default();
                assert!(median < MEDIAN_MAX, "every second time the neighbour waited for {median:?}");
                return done;
            }
            waited = asked => {
                assert!(waited < patience, "the neighbour waited for {waited:?}");
                waits.push(waited);
            }
        }
    }
}

/// What a neighbour may wait at most in a test, whatever the machine does beside it.
const PATIENCE: Duration = Duration::from_secs(5);

/// The same for one request of two: some slices of 100 µs go first, on a machine that does much else.
const MEDIAN_MAX: Duration = Duration::from_millis(200);

async fn hostile_command(engine: &Engine, spec: Spec, steps: &[&str]) -> Result<Command, Error> {
    let path = tokio::task::spawn_blocking(|| {
        let library = built("hostile");
        library.with_file_name("hostile-command.wasm")
    });
    let component = engine.prepare("hostile-command", &path.await.unwrap()).await?;
    let args = std::iter::once("hostile").chain(steps.iter().copied()).map(str::to_owned).collect();
    engine.start_command(&component, Spec { args, ..spec }).await
}

/// How it ends beside the neighbour, and what it prints.
async fn run(change: impl FnOnce(Spec) -> Spec, steps: &[&str]) -> (Exit, String) {
    let (spec, printed) = spec();
    let command = hostile_command(&engine(), change(spec), steps).await.unwrap();
    let exit = beside(soon(command.wait()), PATIENCE).await;
    (exit, printed.text())
}

#[tokio::test]
async fn endless_guests_of_every_kind_are_ended_by_the_clock_and_stay_within_their_share() {
    let paths = ["/spin", "/random?65536", "/random?1", "/clock", "/poll", "/log", "/newlines", "/timers", "/never"];
    // What a log has to do for each line.
    let log = |bytes: &[u8]| {
        for line in bytes.split(|byte| *byte == b'\n') {
            std::hint::black_box(line.to_vec());
        }
    };
    for path in paths {
        let limited = Spec { cpu_millis_max: Some(200), stdout: Arc::new(log), ..Spec::new("a") };
        let service = hostile(limited, options(1_000)).await;
        let begun = Instant::now();
        let hogs = [(); 3].map(|()| {
            let service = service.clone();
            tokio::spawn(async move { get(&service, path).await })
        });
        let ended = beside(soon(futures::future::join_all(hogs)), PATIENCE).await;
        for hog in ended {
            assert_eq!(hog.unwrap(), Err(RequestError::Timeout), "{path}");
        }
        let elapsed = begun.elapsed();
        rest(&service).await;
        // Budget of the periods that began, and at most one slice of each guest beyond it.
        let cpu = service.usage().cpu;
        assert!(cpu < elapsed / 5 + Duration::from_millis(60), "{path}: {cpu:?} of {elapsed:?}");
    }
}

/// On the gateway's threads, where time is measured by a clock that is cut off.
#[tokio::test]
async fn long_lists_are_paid_for_as_they_are() {
    let service = hostile(Spec::new("a"), options(60_000)).await;
    let cpu_of = async |path: &'static str, answer: &str| {
        let (before, asked) = (service.usage().cpu, service.clone());
        let answered = engine().gateway().spawn(async move { get(&asked, path).await });
        assert_eq!(soon(answered).await.unwrap(), ok(answer), "{path}");
        rest(&service).await;
        service.usage().cpu - before
    };
    let short = cpu_of("/lists?1", "[false, false]\n").await;
    let long = cpu_of("/lists?20000", "[true, true]\n").await;
    // Else both polls of it are, and what the guest does beside that is next to nothing.
    assert!(long > short + Duration::from_millis(1), "{long:?} beside {short:?}");
}

#[tokio::test]
async fn a_kill_does_not_wait_for_guests_that_never_rest() {
    for path in ["/spin", "/random?65536", "/clock"] {
        let service = hostile(Spec::new("a"), options(300_000)).await;
        let hog = tokio::spawn({
            let service = service.clone();
            async move { get(&service, path).await }
        });
        while service.counters().in_flight == 0 || service.usage().cpu < Duration::from_millis(5) {
            tokio::task::yield_now().await;
        }
        service.kill();
        assert_eq!(soon(hog).await.unwrap(), Err(RequestError::Killed), "{path}");
        rest(&service).await;
    }
    let command = hostile_command(&engine(), Spec::new("a"), &["random"]).await.unwrap();
    command.kill();
    assert_eq!(soon(command.wait()).await, Exit::Killed);
}

#[tokio::test]
async fn what_the_host_holds_for_a_guest_counts_against_its_memory() {
    let limited = || Spec { memory_bytes_max: Some(16 << 20), ..Spec::new("a") };
    let service = hostile(limited(), options(50_000)).await;
    assert_eq!(beside(soon(get(&service, "/fields?1000")), PATIENCE).await, Err(RequestError::OutOfMemory));
    assert_eq!(beside(soon(get(&service, "/memory?20")), PATIENCE).await, Err(RequestError::OutOfMemory));
    assert!(matches!(get(&service, "/handles").await, Err(RequestError::Trap(_))), "handles have a bound");
    assert!(matches!(get(&service, "/recurse").await, Err(RequestError::Trap(message)) if message.contains("stack")));
    assert!(matches!(get(&service, "/random?1000000").await, Err(RequestError::Trap(_))));
    let flood = get(&service, "/flood?512").await;
    assert!(matches!(&flood, Err(RequestError::Trap(message)) if message.contains("permitted")), "{flood:?}");
    assert_eq!(get(&service, "/").await, ok("hello\n"));
    rest(&service).await;
}

#[tokio::test]
async fn at_the_nodes_ceiling_guests_end_and_the_one_that_asked_for_memory_stays() {
    let (engine, _dir) = small_engine(96 << 20);
    let hostile = prepared(&engine, "hostile").await;
    let burstable = Spec { memory_bytes_request: Some(32 << 20), qos: Qos::Burstable, ..Spec::new("asked") };
    let neighbour = engine.start_http(&hostile, burstable, options(60_000)).await.unwrap();
    let keeps = tokio::spawn({
        let neighbour = neighbour.clone();
        async move { get(&neighbour, "/memory?20").await }
    });
    while neighbour.usage().memory_bytes < 20 << 20 {
        tokio::task::yield_now().await;
    }
    let best_effort = |name: &str| Spec { qos: Qos::BestEffort, ..Spec::new(name) };
    let greedy = engine.start_http(&hostile, best_effort("greedy"), options(60_000)).await.unwrap();
    // One that waits with a lot of memory, then one that asks for what is no longer there: the first ends for it, and it does
    // not, although it asked for no more than the first.
    let first = tokio::spawn({
        let greedy = greedy.clone();
        async move { get(&greedy, "/memory?40").await }
    });
    while greedy.usage().memory_bytes < 40 << 20 {
        tokio::task::yield_now().await;
    }
    let second = hostile_command(&engine, best_effort("second"), &["memory", "34", "sleep", "1000"]).await.unwrap();
    assert_eq!(soon(first).await.unwrap(), Err(RequestError::OutOfMemory));
    assert_eq!(soon(greedy.failed()).await, Exit::OutOfMemory);
    soon(async {
        while second.usage().memory_bytes < 34 << 20 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    second.kill();
    assert_eq!(soon(second.wait()).await, Exit::Killed);
    assert_eq!(get(&neighbour, "/").await, ok("hello\n"));
    assert_eq!(neighbour.counters().out_of_memory, 0);
    neighbour.kill();
    assert_eq!(keeps.await.unwrap(), Err(RequestError::Killed));
    soon(async {
        while engine.memory().memory_bytes > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(engine.memory().memory_bytes_peak <= (96 << 20) / 16 * 17);
}

/// What others have taken is no fault of a service that wants one more instance: who asked is told so, and it lives.
#[tokio::test]
async fn a_node_without_memory_for_another_instance_says_so_and_ends_nobody() {
    let (engine, _dir) = small_engine(96 << 20);
    let hostile = prepared(&engine, "hostile").await;
    let spec = Spec { qos: Qos::BestEffort, ..Spec::new("a") };
    let service = engine.start_http(&hostile, spec, options(60_000)).await.unwrap();
    soon(async {
        while engine.memory().memory_bytes > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let mut others = engine.beside_guests();
    for left in [0, 100 << 10] {
        assert!(others.set((96 << 20) - left));
        let refused = get(&service, "/").await.unwrap_err();
        assert!(matches!(refused, RequestError::Unavailable(_)) && refused.status() == 503, "{refused:?}");
        assert_eq!(service.counters().out_of_memory, 0);
    }
    // Neither does one that begins.
    let error = engine.start_http(&hostile, Spec::new("b"), options(60_000)).await.unwrap_err();
    assert!(matches!(error, Error::Limits(_)) && !error.is_permanent(), "{error:?}");
    drop(others);
    assert_eq!(get(&service, "/").await, ok("hello\n"));
    assert!(futures::FutureExt::now_or_never(service.failed()).is_none(), "its container goes on");
}

#[tokio::test]
async fn files_that_rest_hold_nobody_up_and_directories_are_read_in_parts() {
    let dir = tempfile::tempdir().unwrap();
    (0..1000).for_each(|number| std::fs::write(dir.path().join(number.to_string()), "").unwrap());
    let mounted = |spec: Spec| Spec {
        mounts: vec![Mount { host: dir.path().to_owned(), guest: "/data".to_owned(), read_only: false }],
        ..spec
    };
    // More files than a container may work on at the same time.
    let steps = ["idle-files", "/data", "8", "list", "/data", "list", "/data"];
    let (exit, printed) = soon(run(mounted, &steps)).await;
    assert_eq!((exit, printed.as_str()), (Exit::Code(0), "1\n1008\n1008\n"));
    // The same of WASI 0.3, beside directories that nobody reads on.
    let (spec, printed) = spec();
    let spec = Spec { args: ["p", "files", "/data"].map(str::to_owned).to_vec(), ..mounted(spec) };
    let command = engine().start_command(&component("probe-command-p3").await, spec).await.unwrap();
    let exit = soon(command.wait()).await;
    assert_eq!((exit, printed.text().as_str()), (Exit::Code(0), "p files /data\n100010 bytes, 1009 entries\n"));
    assert_eq!(command.descriptors(), 0);
}

#[tokio::test]
async fn commands_cannot_take_files_sockets_and_threads_of_others() {
    let dir = tempfile::tempdir().unwrap();
    let mounted = |spec: Spec| Spec {
        mounts: vec![Mount { host: dir.path().to_owned(), guest: "/data".to_owned(), read_only: false }],
        ..spec
    };
    let (exit, printed) = run(mounted, &["files", "/data", "20000"]).await;
    assert_eq!(exit, Exit::Code(0));
    let opened: u32 = printed.trim().parse().unwrap();
    let bound = crate::machine::descriptors().container_max;
    assert!(opened > 0 && opened < bound, "{opened} of {bound}");
    // A stream keeps its file open, whatever becomes of the descriptor that it was made from.
    let (exit, printed) = run(mounted, &["streams", "/data", "8000"]).await;
    assert_eq!(exit, Exit::Code(0));
    let opened: u32 = printed.trim().parse().unwrap();
    assert!(opened > 0 && opened < bound, "{opened} of {bound}");
    let (exit, printed) = run(|spec| spec, &["log", "20000"]).await;
    assert_eq!((exit, printed.len()), (Exit::Code(0), 20_000 << 10));
    assert_eq!(run(|spec| spec, &["look-up", "name.invalid", "50"]).await.0, Exit::Code(0));
    let (exit, _) = run(|spec| spec, &["recurse"]).await;
    assert!(matches!(&exit, Exit::Trap(message) if message.contains("stack")), "{exit:?}");
    let (_, printed) = run(|spec| spec, &["listen", "0.0.0.0:80", "connect", "127.0.0.1:22"]).await;
    assert_eq!(printed.matches("Err").count(), 2, "{printed}");
}

#[tokio::test]
async fn links_lead_nowhere() {
    let dir = tempfile::tempdir().unwrap();
    let (outside, inside) = (dir.path().join("outside"), dir.path().join("inside"));
    fs::create_dir(&inside).unwrap();
    fs::write(&outside, "secret").unwrap();
    std::os::unix::fs::symlink("../outside", inside.join("made")).unwrap();
    let mounted = |spec: Spec| Spec {
        mounts: vec![Mount { host: inside.clone(), guest: "/data".to_owned(), read_only: false }],
        ..spec
    };
    let absolute = outside.to_str().unwrap();
    let steps = [
        &["link", "../outside", "/data/relative", "read", "/data/relative"][..],
        &["link", absolute, "/data/absolute", "read", "/data/absolute"],
        &["read", "/data/made", "read", "/data/../outside", "read", "/data/x/../../outside", "read", absolute],
    ];
    for steps in steps {
        let (_, printed) = run(mounted, steps).await;
        assert!(printed.contains("refused") && !printed.contains("secret"), "{steps:?}: {printed}");
    }
}

#[tokio::test]
async fn slow_readers_give_their_places_to_others_and_are_cut_off() {
    let options = HttpOptions {
        concurrency: 4,
        read_stall: Duration::from_secs(3),
        request_timeout: Duration::from_secs(50),
        reuse: Some(1),
        ..HttpOptions::default()
    };
    let service = hostile(Spec::new("a"), options).await;
    let ask = async || service.handle(Request::get("http://a/big?64").body(empty()).unwrap()).await.unwrap();
    let slow = [ask().await, ask().await, ask().await, ask().await];
    let begun = Instant::now();
    assert_eq!(beside(soon(get(&service, "/")), PATIENCE).await, ok("hello\n"));
    assert!(begun.elapsed() < Duration::from_secs(40), "its turn came before the time of the readers was over");
    for response in slow {
        let mut body = response.into_body();
        // They are cut off while they do nothing; what had been written before may still be read.
        while service.counters().in_flight > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let error = loop {
            match body.frame().await {
                Some(Ok(_)) => {}
                Some(Err(error)) => break error,
                None => panic!("it looks whole"),
            }
        };
        assert_eq!(error.to_string(), RequestError::Stalled.to_string());
    }
    rest(&service).await;
}

/// A request whose body does not come.
fn half_sent() -> Request<Body> {
    let never = futures::stream::pending::<Result<http_body::Frame<bytes::Bytes>, crate::BoxError>>();
    let body = BodyExt::boxed_unsync(http_body_util::StreamBody::new(never));
    Request::post("http://a/proxy?http://nobody/").body(body).unwrap()
}

#[tokio::test]
async fn requests_that_do_not_come_on_give_their_places_to_others_and_are_ended() {
    // With memory for more instances, and without.
    for (memory_bytes_max, body_stall) in [(None, 3), (Some(6 << 20), 300)] {
        let options = HttpOptions {
            concurrency: 4,
            body_stall: Duration::from_secs(body_stall),
            request_timeout: Duration::from_secs(50),
            reuse: Some(1),
            ..HttpOptions::default()
        };
        let service = hostile(Spec { memory_bytes_max, ..Spec::new("a") }, options).await;
        let half = [(); 8].map(|()| {
            let service = service.clone();
            tokio::spawn(async move { service.handle(half_sent()).await.map(drop) })
        });
        let begun = Instant::now();
        while service.counters().requests < 8 {
            tokio::task::yield_now().await;
        }
        assert_eq!(beside(soon(get(&service, "/")), PATIENCE).await, ok("hello\n"));
        assert!(begun.elapsed() < Duration::from_secs(30), "its turn came before their time was over");
        if memory_bytes_max.is_none() {
            for half in half {
                let ended = soon(half).await.unwrap().unwrap_err();
                assert_eq!((&ended, ended.status().as_u16()), (&RequestError::Unfinished, 408));
            }
        }
        service.kill();
        rest(&service).await;
    }
}

#[tokio::test]
async fn a_probe_does_not_wait_behind_requests() {
    let options = HttpOptions { concurrency: 1, ..options(50_000) };
    let service = hostile(Spec::new("a"), options).await;
    let busy = [(); 5].map(|()| {
        let service = service.clone();
        tokio::spawn(async move { get(&service, "/never").await })
    });
    while service.counters().in_flight == 0 {
        tokio::task::yield_now().await;
    }
    let mut probe = Request::get("http://a/").body(empty()).unwrap();
    probe.extensions_mut().insert(Probe);
    let answer = soon(service.handle(probe)).await.unwrap();
    assert_eq!(answer.status(), 200);
    service.kill();
    // The one that a guest had seen was ended; those that waited were turned away.
    let mut ends = Vec::new();
    for busy in busy {
        ends.push(soon(busy).await.unwrap().unwrap_err());
    }
    ends.sort_by_key(|end| *end != RequestError::Killed);
    let stopped = || RequestError::Stopped;
    assert_eq!(ends, [RequestError::Killed, stopped(), stopped(), stopped(), stopped()]);
}

#[tokio::test]
async fn an_instance_without_an_answer_is_not_used_again() {
    let service = hostile(Spec::new("a"), HttpOptions { reuse: Some(100), ..options(50_000) }).await;
    for _ in 0..3 {
        assert_eq!(get(&service, "/none").await, Err(RequestError::NoResponse));
        assert_eq!(get(&service, "/").await, ok("hello\n"));
    }
}

#[tokio::test]
async fn large_answers_and_headers_are_bounded_both_ways() {
    let service = hostile(Spec { memory_bytes_max: Some(32 << 20), ..Spec::new("a") }, options(2_000)).await;
    let error = get(&service, "/headers?200000").await.unwrap_err();
    assert!(matches!(&error, RequestError::Trap(message) if message.contains("fields")), "{error:?}");
    assert!(get(&service, "/headers?10000").await.unwrap().1.contains("Ok"));
    let large = Request::get("http://a/").header("x", "y".repeat(100_000)).body(empty()).unwrap();
    assert_eq!(service.handle(large).await.unwrap_err().status(), 431);
    // More than the host takes before there is an answer: it waits, and ends with its time.
    assert_eq!(beside(soon(get(&service, "/before?64")), PATIENCE).await, Err(RequestError::Timeout));
    assert!(service.usage().memory_bytes_peak < 32 << 20);
}

/// Leads to the services it knows, as the mesh does within one node.
#[derive(Default)]
struct Loopback(std::sync::OnceLock<HttpService>);

#[async_trait]
impl Outbound for Loopback {
    async fn send(&self, request: Request<Body>) -> Result<Response<Body>, OutboundError> {
        let service = self.0.get().ok_or(OutboundError::Refused)?;
        match service.handle(request).await {
            Ok(response) => Ok(response),
            Err(error) => Ok(Response::builder().status(error.status()).body(full(error.to_string())).unwrap()),
        }
    }
}

#[tokio::test]
async fn calls_to_itself_cannot_stop_a_service() {
    let outbound = Arc::new(Loopback::default());
    let spec = Spec { outbound: outbound.clone(), ..Spec::new("a") };
    let service = hostile(spec, HttpOptions { concurrency: 4, ..options(100_000) }).await;
    assert!(outbound.0.set(service.clone()).is_ok());
    assert_eq!(get(&service, "/call?http://a/").await, ok("hello\n"));
    // Each needs one place more than there are.
    let asked = [(); 4].map(|()| {
        let service = service.clone();
        tokio::spawn(async move { get(&service, "/call?http://a/call?http://a/call?http://a/call?http://a/").await })
    });
    let circle = format!("/call?{}http://a/", "http://a/call?".repeat(40));
    for asked in asked {
        let (status, _) = soon(asked).await.unwrap().unwrap();
        assert_eq!(status, 503);
    }
    let circling = Arc::new(Loopback::default());
    let spec = Spec { outbound: circling.clone(), ..Spec::new("c") };
    let circling_service = hostile(spec, HttpOptions { concurrency: 50, ..options(100_000) }).await;
    assert!(circling.0.set(circling_service.clone()).is_ok());
    assert_eq!(soon(get(&circling_service, &circle)).await.unwrap().0, 508);
    assert_eq!(get(&service, "/").await, ok("hello\n"));
    // They hold each other.
    for service in [service, circling_service] {
        service.kill();
    }
}

#[tokio::test]
async fn a_body_that_comes_back_as_it_is_sent_does_not_hang() {
    let echo = hostile(Spec::new("echo"), options(50_000)).await;
    let outbound = Arc::new(Loopback::default());
    assert!(outbound.0.set(echo).is_ok());
    let proxy = hostile(Spec { outbound, ..Spec::new("proxy") }, options(50_000)).await;
    let request = Request::post("http://a/proxy?http://echo/echo").body(full(vec![b'x'; 1 << 20])).unwrap();
    let answer = soon(proxy.handle(request)).await.unwrap();
    let bytes = soon(answer.into_body().collect()).await.unwrap().to_bytes();
    assert_eq!(bytes, (1 << 20).to_string());
}

/// A command of so many core modules with a memory each.
fn many_memories(count: u32) -> Vec<u8> {
    let instances: String = (0..count).map(|_| "(core instance (instantiate $m))".to_owned()).collect();
    let text = format!(
        r#"(component
            (core module $m (memory 0))
            (core module $r (func (export "run") (result i32) i32.const 0))
            (core instance $r (instantiate $r))
            {instances}
            (func $run (result (result)) (canon lift (core func $r "run")))
            (instance $i (export "run" (func $run)))
            (export "wasi:cli/run@0.2.0" (instance $i)))"#
    );
    wat::parse_str(text).unwrap()
}

async fn write_and_prepare(dir: &Path, name: &str, bytes: &[u8]) -> Result<Component, Error> {
    let path = dir.join(name);
    fs::write(&path, bytes).unwrap();
    soon(engine().prepare(name, &path)).await
}

#[tokio::test]
async fn a_component_counts_for_as_many_places_as_it_has_memories() {
    let dir = tempfile::tempdir().unwrap();
    let ten = write_and_prepare(dir.path(), "ten-memories", &many_memories(10)).await.unwrap();
    assert_eq!(ten.places(), 10);
    let command = engine().start_command(&ten, Spec::new("a")).await.unwrap();
    assert_eq!(soon(command.wait()).await, Exit::Code(0));
    let error = write_and_prepare(dir.path(), "memory-bomb", &many_memories(100)).await.map(drop);
    assert!(matches!(&error, Err(error) if error.to_string().contains("memories")), "{error:?}");
}

/// Whatever a file holds: it is a component or an error, nothing panics, and what a compiler did not write is not loaded.
#[tokio::test]
async fn mutated_components_are_compiled_or_refused() {
    use rand::{Rng, SeedableRng};
    let dir = tempfile::tempdir().unwrap();
    let whole = many_memories(2);
    for seed in 0..150_u64 {
        let mut random = rand::rngs::StdRng::seed_from_u64(seed);
        let mut bytes = whole.clone();
        for _ in 0..random.random_range(1..4) {
            let at = random.random_range(0..bytes.len());
            match random.random_range(0..3) {
                0 => bytes[at] = random.random(),
                1 => bytes.truncate(at.max(1)),
                _ => bytes.insert(at, random.random()),
            }
        }
        match write_and_prepare(dir.path(), &format!("mutated-{seed}"), &bytes).await {
            Ok(_) => {}
            // How long an error may be is shown where one has long names.
            Err(error) => assert!(error.is_permanent(), "seed {seed}: {error}"),
        }
    }
    // Native code instead of a component.
    let elf = fs::read(std::env::current_exe().unwrap()).unwrap();
    let error = write_and_prepare(dir.path(), "native", &elf[..4096]).await.unwrap_err();
    assert!(matches!(error, Error::NotWasm), "{error}");
}
