//! Prints figures and judges nothing: `cargo test -p coracle-engine figures -- --ignored --nocapture`.

use std::time::{Duration, Instant};

use super::{built, component, engine, get, soon};
use crate::{Config, Engine, HttpOptions, Spec};

fn resident_kb() -> f64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<f64>().unwrap() * 4.0
}

fn percentiles(name: &str, times: &mut [Duration]) {
    times.sort_unstable();
    let at = |part: usize| times[(times.len() - 1) * part / 100];
    println!("{name:<44} p50 {:?} p99 {:?} max {:?}", at(50), at(99), at(100));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "prints figures"]
async fn figures_of_a_small_service() {
    let dir = tempfile::tempdir().unwrap();
    let hello = tokio::task::spawn_blocking(|| built("hello")).await.unwrap();
    for figure in crate::bench(dir.path(), &hello).await.unwrap() {
        println!("{:<44} {:>12.2} {}", figure.name, figure.value, figure.unit);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "prints figures"]
async fn figures_of_parked_commands() {
    let dir = tempfile::tempdir().unwrap();
    let wasm = tokio::task::spawn_blocking(|| built("probe-command")).await.unwrap();
    let engine = Engine::new(Config::new(dir.path())).unwrap();
    let component = engine.prepare("probe-command", &wasm).await.unwrap();
    let (before, begun, count) = (resident_kb(), Instant::now(), 5_000);
    let mut commands = Vec::new();
    for _ in 0..count {
        let args = ["probe", "sleep", "1000000"].map(str::to_owned).to_vec();
        commands.push(engine.start_command(&component, Spec { args, ..Spec::new("a") }).await.unwrap());
    }
    println!("started {count} in {:?}", begun.elapsed());
    tokio::time::sleep(Duration::from_secs(1)).await;
    println!("resident for each: {:.1} kB", (resident_kb() - before) / f64::from(count));
    let begun = Instant::now();
    commands.iter().for_each(crate::Command::kill);
    for command in &commands {
        soon(command.wait()).await;
    }
    println!("ended in {:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "prints figures"]
async fn figures_beside_endless_loops() {
    let hello = component("hello").await;
    let command = component("probe-command").await;
    for hogs in [0, 1, 10, 50] {
        let mut spinning = Vec::new();
        for _ in 0..hogs {
            let args = ["probe", "spin"].map(str::to_owned).to_vec();
            spinning.push(engine().start_command(&command, Spec { args, ..Spec::new("a") }).await.unwrap());
        }
        let service = engine().start_http(&hello, Spec::new("a"), HttpOptions::default()).await.unwrap();
        let mut times = tokio::spawn(async move {
            let mut times = Vec::new();
            for _ in 0..3000 {
                let begun = Instant::now();
                get(&service, "/").await.unwrap();
                times.push(begun.elapsed());
            }
            times
        })
        .await
        .unwrap();
        percentiles(&format!("request beside {hogs} endless loops"), &mut times);
        spinning.iter().for_each(crate::Command::kill);
    }
}
