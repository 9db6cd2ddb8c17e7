//! Commands, good and hostile ones.

use std::cell::Cell;
use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Printed, component, engine, soon, spec};
use crate::limits::FILE_TURNS_MAX;
use crate::{Command, Error, Exit, Invocation, Mount, Pipe, Sink, Spec};

async fn start(spec: Spec, steps: &[&str]) -> Result<Command, Error> {
    let args = std::iter::once("probe").chain(steps.iter().copied()).map(str::to_owned).collect();
    engine().start_command(&component("probe-command").await, Spec { args, ..spec }).await
}

/// How the command ends, and what it prints.
async fn run(change: impl FnOnce(Spec) -> Spec, steps: &[&str]) -> (Exit, String) {
    let (spec, printed) = spec();
    let command = start(change(spec), steps).await.unwrap();
    (soon(command.wait()).await, printed.text())
}

#[tokio::test]
async fn commands_end_as_they_say() {
    let as_is = |spec| spec;
    assert_eq!(run(as_is, &[]).await, (Exit::Code(0), "hello\n".to_owned()));
    assert_eq!(run(as_is, &["echo", "a", "warn", "b", "exit", "0"]).await, (Exit::Code(0), "a\nb\n".to_owned()));
    assert_eq!(run(as_is, &["exit", "7"]).await.0, Exit::Code(1), "Rust's library tells good and bad only");
    assert_eq!(run(as_is, &["end", "7"]).await.0, Exit::Code(7), "WASI 0.2.12 tells the code");
    let (exit, printed) = run(as_is, &["crash"]).await;
    assert!(matches!(&exit, Exit::Trap(message) if message.contains("unreachable")), "{exit:?}");
    assert_eq!((exit.code(), exit.reason()), (134, "Error"));
    assert!(printed.contains("asked to") && printed.contains("wasm trap"), "{printed}");
}

#[tokio::test]
async fn commands_see_environment_and_directories() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("in"), "content\n").unwrap();
    let mount = |read_only| {
        let host = dir.path().to_owned();
        move |spec: Spec| Spec {
            env: vec![("NAME".to_owned(), "value".to_owned())],
            mounts: vec![Mount { host, guest: "/data".to_owned(), read_only }],
            ..spec
        }
    };
    let steps = ["env", "NAME", "cat", "/data/in", "write", "/data/out", "text", "ls", "/data"];
    assert_eq!(run(mount(false), &steps).await, (Exit::Code(0), "value\ncontent\nin\nout\n".to_owned()));
    assert_eq!(fs::read_to_string(dir.path().join("out")).unwrap(), "text");
    let (exit, printed) = run(mount(true), &steps).await;
    assert_eq!(exit, Exit::Code(1), "{printed}");
    let (exit, printed) = run(mount(false), &["cat", "/data/../../etc/passwd"]).await;
    assert_eq!(exit, Exit::Code(1), "{printed}");
    let gone = Mount { host: dir.path().join("gone"), guest: "/x".to_owned(), read_only: true };
    let error = start(Spec { mounts: vec![gone], ..Spec::new("a") }, &[]).await.unwrap_err();
    assert!(matches!(error, Error::Mount { .. }), "{error}");
}

/// A named pipe that nobody writes holds a thread for as long as it likes.
#[tokio::test]
async fn a_file_is_worked_on_in_its_turn_until_it_is_done_also_when_nobody_waits_any_more() {
    use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};
    let dir = tempfile::tempdir().unwrap();
    let mount = Mount { host: dir.path().to_owned(), guest: "/data".to_owned(), read_only: false };
    for package in ["probe-command", "probe-command-p3"] {
        let component = component(package).await;
        // Until one was killed in the middle of it: work that had not begun has nothing open, and never will. Each has a pipe
        // of its own, so that none meets what an earlier one opens late.
        for tried in 0.. {
            assert!(tried < 100, "{package}: no work was begun");
            let pipe = format!("{package}-{tried}");
            let path = dir.path().join(&pipe);
            mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
            let args = match package {
                "probe-command" => vec!["p".to_owned(), "cat".to_owned(), format!("/data/{pipe}")],
                _ => vec!["p".to_owned(), "open".to_owned(), "/data".to_owned(), pipe],
            };
            let spec = Spec { args, mounts: vec![mount.clone()], ..Spec::new("a") };
            let command = engine().start_command(&component, spec).await.unwrap();
            let until = async |reached: &dyn Fn() -> bool| {
                soon(async {
                    while !reached() {
                        tokio::task::yield_now().await;
                    }
                })
                .await;
            };
            until(&|| command.file_turns() < FILE_TURNS_MAX).await;
            command.kill();
            assert_eq!(soon(command.wait()).await, Exit::Killed, "{package}");
            let left = command.file_turns();
            let opens = || rustix::fs::open(&path, OFlags::WRONLY | OFlags::NONBLOCK, Mode::empty()).is_ok();
            let has_left = || command.file_turns() == FILE_TURNS_MAX;
            if left == FILE_TURNS_MAX {
                assert!(!opens(), "{package}: the turn was given back in the middle of the work");
                continue;
            }
            assert_eq!(left, FILE_TURNS_MAX - 1, "{package}");
            // The thread goes on. One that has not come to it yet drops it instead.
            let is_opened = Cell::new(false);
            until(&|| {
                is_opened.set(opens());
                is_opened.get() || has_left()
            })
            .await;
            if is_opened.get() {
                until(&has_left).await;
                break;
            }
        }
    }
}

/// Each waits for its turn with a path of its own, and the guest does not wait in between.
#[tokio::test]
async fn calls_that_wait_for_their_turn_are_memory_of_the_container() {
    const CALLS: u64 = 2_000;
    const PATH: u64 = 4_000;
    let dir = tempfile::tempdir().unwrap();
    let mount = Mount { host: dir.path().to_owned(), guest: "/data".to_owned(), read_only: false };
    let (spec, printed) = spec();
    let spec = Spec { args: ["p", "stats", "/data", "2000"].map(str::to_owned).to_vec(), mounts: vec![mount], ..spec };
    let command = engine().start_command(&component("probe-command-p3").await, spec).await.unwrap();
    assert_eq!(soon(command.wait()).await, Exit::Code(0), "{}", printed.text());
    assert!(printed.text().ends_with("0 of 2000\n"), "{}", printed.text());
    // The guest has its own copy of each.
    let usage = command.usage();
    assert!(usage.memory_bytes_peak > 2 * CALLS * PATH, "{usage:?}");
    assert_eq!(usage.memory_bytes, 0);
}

#[tokio::test]
async fn waiting_and_computing_commands_are_stopped_and_killed() {
    for steps in [["sleep", "1000000"], ["spin", "1000000"]] {
        let (spec, _) = spec();
        let command = start(spec, &steps).await.unwrap();
        command.stop();
        command.kill();
        assert_eq!(soon(command.wait()).await, Exit::Stopped, "the first word counts");
        let command = start(Spec::new("a"), &steps).await.unwrap();
        command.kill();
        assert_eq!(soon(command.wait()).await.code(), 137);
    }
}

#[tokio::test]
async fn a_command_runs_beside_another_on_its_account_and_ends_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let mount = Mount { host: dir.path().to_owned(), guest: "/data".to_owned(), read_only: false };
    let (spec, printed) = spec();
    let given = Spec { mounts: vec![mount], memory_bytes_max: Some(32 << 20), ..spec };
    let first = start(given, &["echo", "first", "alloc", "16", "sleep", "1000000"]).await.unwrap();
    let beside = async |steps: &[&str]| {
        let sink = Arc::new(Printed::default());
        (first.beside(invocation(steps, sink.clone())).await.unwrap(), sink)
    };
    let (second, seen) = beside(&["write", "/data/out", "text", "echo", "second", "end", "3"]).await;
    assert_eq!((soon(second.wait()).await, seen.text()), (Exit::Code(3), "second\n".to_owned()));
    assert_eq!(fs::read_to_string(dir.path().join("out")).unwrap(), "text");
    // Both together have what one may have, once the first has taken its part.
    soon(async {
        while first.usage().memory_bytes < 16 << 20 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let (greedy, _) = beside(&["alloc", "24"]).await;
    assert_eq!(soon(greedy.wait()).await, Exit::OutOfMemory);
    let (third, _) = beside(&["sleep", "1000000"]).await;
    first.kill();
    assert_eq!(soon(third.wait()).await, Exit::Killed);
    assert_eq!(printed.text(), "first\n");
}

fn invocation(steps: &[&str], sink: Arc<dyn Sink>) -> Invocation {
    let args = std::iter::once("probe").chain(steps.iter().copied()).map(str::to_owned).collect();
    Invocation { args, stdin: None, stdout: sink.clone(), stderr: sink, is_terminal: false, is_probe: false }
}

#[tokio::test]
async fn a_command_reads_its_input_and_waits_for_who_reads_its_output() {
    let first = start(Spec::new("a"), &["sleep", "1000000"]).await.unwrap();
    let (typed, printed) = (Pipe::default(), Pipe::default());
    let asked = Invocation { stdin: Some(typed.clone()), ..invocation(&["copy"], Arc::new(printed.clone())) };
    let copies = first.beside(asked).await.unwrap();
    // Far more than both pipes hold, so that each waits for the other.
    let text = "abcdefgh".repeat(64 << 10);
    let writing = async {
        assert!(typed.write_all(text.as_bytes()).await);
        typed.end();
    };
    let reading = async {
        let mut read = Vec::new();
        while read.len() < text.len() {
            read.extend_from_slice(&printed.read().await.expect("it goes on"));
        }
        read
    };
    let ((), read) = soon(async { tokio::join!(writing, reading) }).await;
    assert!(read == text.as_bytes(), "{} bytes", read.len());
    assert_eq!(soon(copies.wait()).await, Exit::Code(0));
    // The same of WASI 0.3.
    let (typed, printed) = (Pipe::default(), Pipe::default());
    let spec = Spec {
        args: ["p", "copy"].map(str::to_owned).to_vec(),
        stdin: Some(typed.clone()),
        stdout: Arc::new(printed.clone()),
        ..Spec::new("a")
    };
    let copies = engine().start_command(&component("probe-command-p3").await, spec).await.unwrap();
    let writing = async {
        assert!(typed.write_all(text.as_bytes()).await);
        typed.end();
        let exit = copies.wait().await;
        printed.end();
        exit
    };
    let reading = async {
        let mut read = Vec::new();
        while let Some(bytes) = printed.read().await {
            read.extend_from_slice(&bytes);
        }
        read
    };
    let (exit, read) = soon(async { tokio::join!(writing, reading) }).await;
    assert_eq!((exit, read.len()), (Exit::Code(0), "p copy\n".len() + text.len()));
    // Nobody reads what this one prints: it waits, and can be ended.
    let unread = Pipe::default();
    let floods = first.beside(invocation(&["flood", "100000"], Arc::new(unread.clone()))).await.unwrap();
    soon(async {
        while unread.room() > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    floods.kill();
    assert_eq!(soon(floods.wait()).await, Exit::Killed);
    // Without any there is nothing to read.
    let none = Arc::new(Printed::default());
    let command = first.beside(invocation(&["copy", "echo", "done"], none.clone())).await.unwrap();
    assert_eq!((soon(command.wait()).await, none.text()), (Exit::Code(0), "done\n".to_owned()));
}

#[tokio::test]
async fn a_probe_by_command_has_a_place_that_commands_cannot_take() {
    let (spec, _) = spec();
    let first = start(spec, &["sleep", "1000000"]).await.unwrap();
    let sink = || -> Arc<dyn Sink> { Arc::new(Printed::default()) };
    let mut others = Vec::new();
    let refused = loop {
        match first.beside(invocation(&["sleep", "1000000"], sink())).await {
            Ok(command) => others.push(command),
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, Error::Limits(_)), "{refused}");
    let probe = Invocation { is_probe: true, ..invocation(&["end", "3"], sink()) };
    let probe = first.beside(probe).await.expect("the node can ask");
    assert_eq!(soon(probe.wait()).await, Exit::Code(3));
    first.kill();
    for command in others {
        soon(command.wait()).await;
    }
}

#[tokio::test]
async fn memory_is_bounded() {
    let limited = |spec| Spec { memory_bytes_max: Some(32 << 20), ..spec };
    assert_eq!(run(limited, &["alloc", "8"]).await.0, Exit::Code(0));
    let (exit, printed) = run(limited, &["alloc", "20", "alloc", "20", "echo", "never"]).await;
    assert_eq!((exit.code(), exit.reason()), (137, "OOMKilled"));
    assert!(printed.contains("memory limit") && !printed.contains("never"), "{printed}");
    let error = start(Spec { memory_bytes_max: Some(1000), ..Spec::new("a") }, &[]).await.unwrap_err();
    assert!(matches!(error, Error::OutOfMemory { bytes_max: 1000 }), "{error}");
}

#[tokio::test]
async fn recursion_and_fuel_and_floods_end() {
    let (exit, _) = run(|spec| spec, &["recurse"]).await;
    assert!(matches!(&exit, Exit::Trap(message) if message.contains("stack")), "{exit:?}");
    let fuel = |spec| Spec { fuel_max: Some(10_000_000), ..spec };
    let (exit, _) = run(fuel, &["spin"]).await;
    assert_eq!((exit.clone(), exit.code()), (Exit::FuelExhausted, 152));
    assert_eq!(run(fuel, &["echo", "a"]).await.0, Exit::Code(0));
    let (exit, printed) = run(|spec| spec, &["flood", "5000"]).await;
    assert_eq!((exit, printed.len()), (Exit::Code(0), 5000 * 1024));
}

#[tokio::test]
async fn a_cpu_limit_is_a_share_of_time() {
    let spec = Spec { cpu_millis_max: Some(100), ..Spec::new("a") };
    let begun = Instant::now();
    let command = start(spec, &["spin", "1000"]).await.unwrap();
    assert_eq!(soon(command.wait()).await, Exit::Code(0));
    let (usage, elapsed) = (command.usage(), begun.elapsed());
    let share = usage.cpu.as_secs_f64() / elapsed.as_secs_f64();
    assert!(share < 0.2, "used {:?} of {elapsed:?}", usage.cpu);
    // A machine that gave it less than its share had nothing to hold back.
    let was_held = usage.throttled > Duration::ZERO || usage.cpu < Duration::from_millis(100);
    assert!(was_held && usage.fuel > 1_000_000, "{usage:?}");
}

#[tokio::test]
async fn instances_are_counted_and_give_all_back() {
    let (spec, _) = spec();
    let command = start(spec, &["alloc", "4", "sleep", "1000000"]).await.unwrap();
    assert!(engine().instances() > 0);
    command.kill();
    soon(command.wait()).await;
    let usage = command.usage();
    assert_eq!(usage.memory_bytes, 0, "{usage:?}");
}

#[tokio::test]
async fn what_a_component_is_not_cannot_be_started() {
    let hello = component("hello").await;
    let error = engine().start_command(&hello, Spec::new("a")).await.unwrap_err();
    assert_eq!(error.to_string(), "the component is not a command");
    let command = component("probe-command").await;
    let error = engine().start_http(&command, Spec::new("a"), crate::HttpOptions::default()).await.unwrap_err();
    assert_eq!(error.to_string(), "the component is not a service");
}

#[tokio::test]
async fn a_start_that_nobody_waits_for_ends() {
    let text =
        "(module (memory (export \"memory\") 1) (func $spin (loop (br 0))) (start $spin) (func (export \"_start\")))";
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("spins.wasm");
    fs::write(&path, wat::parse_str(text).unwrap()).unwrap();
    let spins = engine().prepare("spins", &path).await.unwrap();
    // Held by the instance and nobody else.
    let sink: Arc<dyn Sink> = Arc::new(Printed::default());
    let held = Arc::downgrade(&sink);
    let engine = engine();
    let starting = engine.start_command(&spins, Spec { stdout: sink, ..Spec::new("a") });
    assert!(tokio::time::timeout(Duration::from_millis(100), starting).await.is_err(), "it never comes to run");
    soon(async {
        while held.strong_count() > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}
